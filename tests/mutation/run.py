"""Mutation testing: `python tests/mutation/run.py spec [FILE …]` (or `models`, `explain`, `check`), extra `mutation`.

cosmic-ray changes the files in one place at a time, and the tests must fail each time, but for the mutants of
`equivalent.toml`, which must exist and pass. A mutant's name is its function and the expression that it has changed, as
`ast.unparse` writes it, so no layout of the source is part of it. Each statement of the specification is also struck
out once. A copy is changed, not the checkout.
"""

import ast
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).parents[2]
FILES = {
    "spec": ["refmeta/algorithms.py", "refmeta/adjoint.py", "refmeta/trees.py"],
    "models": ["refmeta/models.py"],
    "explain": ["refmeta/conformance/rules.py", "refmeta/conformance/explain.py"],
    "check": ["refmeta/conformance/check.py", "refmeta/conformance/report.py"],
}
TESTS = {  # wherever these files are; what kills soonest comes first
    "spec": [
        "test_gradients.py::test_the_head_is_the_last_layer_unless_said_otherwise",
        "test_closed_forms.py::test_torchmetas_literal_for_three_steps",
        "test_errors.py",
        "test_gradients.py",
        "test_closed_forms.py",
        "test_identities.py",
    ],
    "models": ["test_models.py", "test_errors.py", "test_gradients.py", "test_identities.py"],
    "explain": [
        "test_explain.py",
        "test_cases.py",
        "test_vectors.py::test_the_rules_give_the_intermediate_values_too",
        "test_conformance.py",
    ],
    "check": ["test_check.py"],
}
# Of the specification all but what any test sees as a type error (floats have no shifts and bits), | in annotations,
# and +x, which is −x without its minus. Elsewhere the nearest replacements of an operator.
ALL = ["Binary.*_(RShift|LShift|Bit.*)", "Binary.*_BitOr_.*", "Unary.*_USub_UAdd"]
NEAREST = [
    "Binary(?!.*(Add_Sub|Sub_Add|Mul_Div|_Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|BitAnd_BitOr)$)",
    "Comparison(?!.*(_Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|(Lt|Gt)_(Lt|Gt)E|(Lt|Gt)E_(Lt|Gt))$)",
    "Unary.*_USub_",
]
TIMEOUT = 300  # seconds, ten times what the tests take
OUT_OF_TIME = "out of time"
CONFIG = """[cosmic-ray]
module-path = {files}
timeout = {timeout}
excluded-modules = []
test-command = "{command}"
distributor.name = "local"
filters.operators-filter.exclude-operators = {filter}
"""
STEPS = [
    "cosmic-ray baseline config",
    "cosmic-ray init config db",
    "cr-filter-operators db config",
    "cosmic-ray exec config db",
]


def mutants(target: str, files: list[str], command: list[str]) -> dict[str, dict[str, list[str]]]:
    """Of every file the names of all mutants, and the outcomes of those of each name."""
    left_out = [f"core/Replace{name}" for name in (ALL if target == "spec" else NEAREST)]
    Path("config").write_text(
        CONFIG.format(timeout=float(TIMEOUT), files=files, command=shlex.join(command), filter=left_out)
    )
    for step in STEPS:
        program, *arguments = step.split()
        subprocess.run([Path(sys.executable).parent / program, *arguments], check=True)
    found: dict[str, dict[str, list[str]]] = {}
    with use_db("db") as db:
        for item, result in db.completed_work_items:
            if result.worker_outcome != "skipped":
                (mutation,) = item.mutations
                name = name_of(mutation)
                outcome = OUT_OF_TIME if result.output == "timeout" else result.test_outcome
                found.setdefault(str(mutation.module_path), {}).setdefault(name, []).append(outcome)
    return found


def name_of(mutation: MutationSpec) -> str:
    """ "function: the smallest telling expression that the mutant has changed"."""
    before = mutation.module_path.read_text()
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    try:
        after = ast.parse(mutate_code(before, operator, mutation.occurrence))
    except SyntaxError:  # as of {*d} for {**d}: it is killed, whatever its name
        return f"{mutation.definition_name}: no Python"
    return f"{mutation.definition_name}: {ast.unparse(changed(ast.parse(before), after)).splitlines()[0]}"


def changed(before: ast.AST, after: ast.AST) -> ast.AST:
    """The smallest part of `after` that is other than in `before`, and tells more than a number or a name."""
    pairs = zip(ast.iter_child_nodes(before), ast.iter_child_nodes(after), strict=False)
    different = [(a, b) for a, b in pairs if ast.dump(a) != ast.dump(b)]
    if len(different) != 1:
        return after
    inner = changed(*different[0])
    mute = (ast.Constant, ast.Name, ast.UnaryOp, ast.Tuple, ast.List)
    return inner if isinstance(inner, (ast.expr, ast.stmt)) and not isinstance(inner, mute) else after


def struck_out(path: Path, command: list[str]) -> Iterator[tuple[str, bool]]:
    """Every statement but docstrings, and whether the tests pass with `pass` in its place."""
    source = path.read_text()
    for s in ast.walk(ast.parse(source)):
        if isinstance(s, ast.stmt) and not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)):
            lines = source.splitlines()
            lines[s.lineno - 1 : s.end_lineno] = [" " * s.col_offset + "pass"]
            path.write_text("\n".join(lines))
            quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": TIMEOUT}
            try:
                passed = subprocess.run(command, **quiet).returncode == 0
            except subprocess.TimeoutExpired:
                passed = False
            yield f"{path}:{s.lineno}", passed
    path.write_text(source)


def located(tests: list[str]) -> list[str]:
    """The tests as pytest names them, wherever their files are below tests/."""
    names = [test.partition(".py") for test in tests]
    return [f"{path.relative_to(ROOT)}{rest}" for stem, py, rest in names for path in (ROOT / "tests").rglob(stem + py)]


def main(target: str, *some: str) -> int:
    """Prints the table; 1 if a mutant survives that is not listed, or one is listed that does not."""
    listed = tomllib.loads((ROOT / "tests/mutation/equivalent.toml").read_text())
    command = [sys.executable, "-m", "pytest", "-xq", "--assert=plain", "-p", "no:cacheprovider"]
    command += ["--hypothesis-profile=mutation", *located(TESTS[target]), "-k", "not noise"]
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    wrong, endless, files = [], [], list(some) or FILES[target]
    with TemporaryDirectory() as copy:
        for folder in ("refmeta", "tests"):
            shutil.copytree(ROOT / folder, f"{copy}/{folder}", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "setup.cfg", copy)
        os.chdir(copy)
        print("| file | mutants | killed | equivalent | survived |\n|---|--:|--:|--:|--:|")
        for file, found in sorted(mutants(target, files, command).items()):
            equivalent = {name for group in listed.get(file, []) for name in group["mutants"]}
            outcomes = [
                (name, outcome in ("killed", OUT_OF_TIME)) for name, several in found.items() for outcome in several
            ]
            endless += [f"{file}: {name}" for name, several in found.items() if OUT_OF_TIME in several]
            survived = [name for name, killed in outcomes if not killed]
            missed = [name for name in survived if name not in equivalent]
            stale = equivalent - set(survived) | {name for name, killed in outcomes if killed} & equivalent
            dead = len(outcomes) - len(survived)
            print(f"| {file} | {len(outcomes)} | {dead} | {len(survived) - len(missed)} | {len(missed)} |")
            wrong += [f"{file}: survived: {name}" for name in missed]
            wrong += [f"{file}: listed, but killed or gone: {name}" for name in stale]
        print("\n".join([f"Killed by {TIMEOUT} seconds without an end: {name}" for name in endless]))
        if target == "spec":
            struck = [line for path in files for line in struck_out(Path(path), command)]
            missed = [f"{line}: struck out, and the tests pass" for line, passed in struck if passed]
            print(
                f"\n{len(struck)} statements struck out one by one: {len(struck) - len(missed)} turned the tests red."
            )
            wrong += missed
    print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
