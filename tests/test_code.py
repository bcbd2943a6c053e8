"""What the code promises its reader: a small house, a page that is read in one go, and imports that only go down."""

import ast
import io
import tokenize
from pathlib import Path
from statistics import median

import pytest

import refmeta

PACKAGE = Path(refmeta.__file__).parent
PAGE = "algorithms.py", "adjoint.py", "trees.py"

# --- Size -------------------------------------------------------------------------------------------

PROMISED = 3300  # lines of code in refmeta/: what docs/design.md promises, and what is not reached yet
MOST = 6877  # and what it has: it only goes down, until it is PROMISED; a change that saves lines lowers it
# The lines that a coming feature may add: whoever builds it adds them to MOST in the same commit, and strikes it out.
ROOMS: dict[str, int] = {}
WHAT_TO_DO = (
    "Look first for what can go: code that no command, page or test of behaviour uses, the same thing said twice, a "
    "case that cannot happen; then for a function of a library that is there already. A feature that has a room in "
    f"ROOMS {ROOMS} may take it: add the room to MOST. A function that is too long has parts that have names."
)


def code_lines(source):
    """The lines that hold code: no blank lines, comments or docstrings."""
    blank = tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return lines


def lengths(source):
    """The lines of code of every function, those of the functions in it included."""
    lines = code_lines(source)
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))
    return {f.name: len(lines & set(range(f.lineno, f.end_lineno + 1))) for f in functions}


SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def test_code_is_counted_without_blank_lines_comments_and_docstrings():
    source = '"""One\n\ntwo."""\n\n# three\ndef f(x):\n    """Four."""\n\n    return (\n        x  # five\n    )\n'
    source += '\n\nS = """a\nb"""\n'
    assert len(code_lines(source)) == 6 and lengths(source) == {"f": 4}


def test_the_house_is_small():
    size = sum(len(code_lines(source)) for source in SOURCES.values())
    assert 1000 < size <= MOST, (
        f"refmeta/ has {size} lines of code, more than the {MOST} it had; {PROMISED} are promised. {WHAT_TO_DO}"
    )


def test_the_page_is_a_page():
    size = {name: len(code_lines(SOURCES[name])) for name in PAGE}
    assert 20 < sum(size.values()) <= 60, f"{size}: at most 60 lines were promised"
    assert max(len(line) for line in SOURCES["algorithms.py"].splitlines()) <= 120
    bodies = lengths(SOURCES["algorithms.py"])
    assert len(bodies) == 9 and max(bodies.values()) <= 5, f"{bodies}: an algorithm takes five lines"


def test_functions_are_short():
    found = {f"{file}: {name}": n for file, source in SOURCES.items() for name, n in lengths(source).items()}
    long = {name: n for name, n in found.items() if n > 30}
    assert not long, f"more than 30 lines of code: {long}. {WHAT_TO_DO}"
    assert 1 <= median(found.values()) <= 5, f"half of the functions have more than 5 lines. {WHAT_TO_DO}"


# --- Imports ----------------------------------------------------------------------------------------

# Each floor may use those below it, and what is in its own folder; units of one floor do not know each other.
FLOORS = [
    ["trees"],
    ["algorithms"],
    ["adjoint"],
    ["models", "checks"],
    ["fast"],
    ["lab.display"],
    ["conformance", "lab.training", "lab.files"],
    ["lab.checkpoint", "lab.geometry.quadratics"],
    ["lab.runs", "lab.plots"],
    ["lab.sine", "lab.fewshot", "lab.geometry", "lab.explore"],
    ["lab.reuse", "lab.sweep", "torch", "jax"],
    ["lab.reproduce"],
    ["__main__"],
]
CORE = {"autograd", "numpy", "refmeta"}  # and the standard library: what is installed without an extra


def modules(source):
    """The modules that a source imports, anywhere in it; of `from a import b` both a and a.b, for b may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def floor(module):
    """Which floor a module of the package is on; None for the package itself, which opens on all of them."""
    name = module.removeprefix("refmeta").removeprefix(".")
    return next(
        (i for i, names in enumerate(FLOORS) for each in names if name == each or name.startswith(f"{each}.")), None
    )


def unit(module):
    """The file or folder of FLOORS that a module is in."""
    name = module.removeprefix("refmeta.")
    return next((u for names in FLOORS for u in names if name == u or name.startswith(f"{u}.")), name)


def wrong_way(module, source):
    """The imports of a module that do not go down."""
    mine = floor(module)
    return [
        other
        for other in modules(source)
        if other.startswith("refmeta.") and floor(other) is not None and mine is not None
        if floor(other) > mine or (floor(other) == mine and unit(other) != unit(module))
    ]


def name_of(file):
    return "refmeta." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


NAMES = {name_of(file): source for file, source in SOURCES.items() if file not in ("__init__.py", "lab/__init__.py")}


def test_imports_only_go_down():
    for module, source in NAMES.items():
        assert floor(module) is not None, f"{module} has no floor in FLOORS"
        assert not wrong_way(module, source), f"{module} imports {wrong_way(module, source)}"


def test_an_import_that_goes_up_or_aside_is_seen():
    assert wrong_way("refmeta.fast.stacked", "from refmeta.conformance import check")
    assert wrong_way("refmeta.lab.sine.waves", "def f():\n    import refmeta.lab.reuse")
    assert wrong_way("refmeta.lab.sine.waves", "from refmeta.lab import fewshot")
    assert wrong_way("refmeta.conformance.check", "from refmeta.lab.training import train")
    assert not wrong_way("refmeta.lab.reuse.measurements", "from refmeta.lab.fewshot import images\nimport numpy")


def cycle(imports):
    """A module from which one comes back to it, in a graph of {module: the modules it imports}."""
    for start in imports:
        seen, waiting = set(), list(imports[start])
        while waiting:
            module = waiting.pop()
            if module == start:
                return start
            if module not in seen:
                seen.add(module)
                waiting += imports.get(module, ())
    return None


def test_no_file_imports_itself_by_way_of_others():
    files = {name for name in NAMES if not any(other.startswith(f"{name}.") for other in NAMES)}  # no folders
    assert cycle({module: set(modules(NAMES[module])) & files - {module} for module in files}) is None
    assert cycle({"a": ["b"], "b": ["c"], "c": ["a"]}) and not cycle({"a": ["b", "c"], "b": ["c"], "c": []})


def test_the_core_needs_numpy_and_autograd_alone_and_only_figures_draw():
    for module, source in NAMES.items():
        at_the_top = "\n".join(
            ast.unparse(node) for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)
        )
        foreign = {name.split(".")[0] for name in modules(at_the_top)} & {"matplotlib", "tqdm", "PIL", "pytest"}
        assert not foreign or module.rpartition(".")[2] == "figures", f"{module} imports {foreign}"
    for module in ("trees", "algorithms", "adjoint"):
        roots = {name.split(".")[0] for name in modules(NAMES[f"refmeta.{module}"])}
        assert roots <= CORE | {"collections", "typing"}


# --- Names ------------------------------------------------------------------------------------------


def test_the_public_names_are_those_of_the_contract():
    names = ["trajectory", "adapt", "objective", "joint", "maml", "fomaml", "anil", "reptile", "stacked", "recorded"]
    assert sorted(names) == refmeta.__all__
    for name in names:
        assert getattr(refmeta, name).__doc__ and getattr(refmeta, name).__name__ == name


def defined(source):
    """The names that a source defines: functions, classes, values."""
    body = ast.parse(source).body
    targets = [target for node in body for target in getattr(node, "targets", [getattr(node, "target", None)])]
    return {node.name for node in body if hasattr(node, "name")} | {t.id for t in targets if isinstance(t, ast.Name)}


@pytest.mark.parametrize(
    "folder", ["lab/sine", "lab/fewshot", "lab/reuse", "lab/geometry", "lab/sweep", "lab/reproduce"]
)
def test_every_experiment_has_the_same_names(folder):
    names = {file: defined(SOURCES[f"{folder}/{file}.py"]) for file in ("experiment", "figures")}
    assert {"options", "text"} <= names["experiment"] and "draw" in names["figures"]
    assert names["experiment"] & {"run", "plan"}, "neither runs of its own, nor a plan of others' runs"
