"""The README and the documents say what is so."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import groupby
from math import log2
from operator import itemgetter
from pathlib import Path

import pytest

import refmeta
from refmeta.conformance.cases import FOLDER, load
from refmeta.conformance.harness import meta_gradient
from refmeta.conformance.mistakes import MISTAKES
from refmeta.lab.display import FAINT

ROOT = Path(refmeta.__file__).parent.parent
if not (ROOT / "docs/build.py").exists():
    pytest.skip("the docs are in the checkout only", allow_module_level=True)
spec = importlib.util.spec_from_file_location("build", ROOT / "docs/build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

PAGES = build.pages()
BLOCK = re.compile(
    r"(<!-- code: [^\n]*\n)?```python\n(.*?)```(?:(?:\n\n<details>[^\n]*)?\n\n```text\n(?!\$)(.*?)```)?", re.S
)
QUICK = ["refmeta geometry", "refmeta check"]

assert all(any(words in page.read_text() for page in PAGES) for words in QUICK)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def examples():
    for page in PAGES:
        if page.name != "sweeps.md":  # test_sweep.py runs those, made smaller
            for i, (taken, code, printed) in enumerate(BLOCK.findall(page.read_text())):
                if not taken:
                    yield pytest.param(code, printed, id=f"{page.stem}-{i}")


MY_MAML = "from refmeta.conformance.harness import meta_gradient as my_meta_gradient\n"


@pytest.mark.filterwarnings("ignore:Output seems independent")  # ANIL without a head, one of the vectors
@pytest.mark.parametrize("code, printed", list(examples()))
def test_every_example_runs_and_prints_what_is_said(code, printed, tmp_path, monkeypatch, capsys):
    for node in ast.walk(ast.parse(code)):
        for name in {a.name for a in node.names} & {"torch", "jax"} if isinstance(node, ast.Import) else ():
            pytest.importorskip(name, reason=f"{name} is not installed")
    shutil.copy(ROOT / "refmeta/vectors/quadratic.json", tmp_path)
    (tmp_path / "my_maml.py").write_text(MY_MAML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    exec(code, {"__name__": "__main__", "my_meta_gradient": meta_gradient})
    got = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
    assert not printed or unrounded(got) == unrounded(printed)


def with_pytest(tmp_path, my_maml):
    """The exit code and the last lines of pytest on the test file in the recipe for CI, of a right or wrong MAML."""
    (code,) = (code for _, code, _ in BLOCK.findall((ROOT / "docs/checking.md").read_text()) if "def test_" in code)
    (tmp_path / "my_maml.py").write_text(my_maml)
    (tmp_path / "test_meta_gradient.py").write_text(code)
    options = ["-q", "-rfs", "-p", "no:cacheprovider", "test_meta_gradient.py"]
    environment = {**os.environ, "CI": "1"}  # in which pytest cuts no line
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout


def test_the_recipe_for_ci_is_short_and_passes_what_is_right(tmp_path):
    page = (ROOT / "docs/checking.md").read_text()
    recipe = [code for code in re.findall(r"```(?:python|yaml)\n(.*?)```", page, re.S) if code.startswith("# ")]
    assert len(recipe) == 2 and "".join(recipe).count("\n") <= 25
    code, out = with_pytest(tmp_path, MY_MAML)
    assert code == 0 and re.search(r"^38 passed in", out, re.M), out


def test_the_recipe_for_ci_names_what_is_wrong_in_the_first_line_of_each_failure(tmp_path):
    code, out = with_pytest(tmp_path, WRONG_MAML)
    failed = dict(re.findall(r"^FAILED test_meta_gradient.py::(\S+) - AssertionError: (.*)", out, re.M))
    assert code == 1 and failed.pop("test_all_vectors") == "maml: first-order: the second-order term is missing."
    assert "raised ValueError: no such thing (my_maml.py:7)" in failed.pop("test_vector[maml-softmax-k2-t3]")
    assert len(failed) == 23 and all(said.startswith("maml: one vector, no diagnosis: ") for said in failed.values())
    assert "1 skipped" in out and "no scalars" in out and "wired" not in out
    crash = out[out.index("test_vector[maml-softmax-k2-t3]") :]
    assert 'raise ValueError("no such thing")' in crash[: crash.index("direct cause")], "the traceback is the caller's"
    assert "answer_of(" not in out and "def assert_case" not in out


WRONG_MAML = """import pytest
import refmeta

def my_meta_gradient(case):
    if case.tier == "scalar":
        pytest.skip("no scalars")
    if case.tier == "softmax" and case.algorithm == "maml": raise ValueError("no such thing")
    per_task = [refmeta.fomaml(case.loss_fn, case.theta, [task], case.alpha) for task in case.tasks]
    return case.combine(per_task)
"""


@each_page
def test_code_taken_from_the_package_is_as_it_is_there(page):
    assert build.with_code(page.read_text()) == page.read_text()


def test_code_that_has_drifted_is_put_right_and_what_is_gone_is_named():
    page = (ROOT / "docs/specification.md").read_text()
    assert len(build.CODE.findall(page)) == page.count("<!-- code: ") >= 7
    assert build.with_code(page.replace("phi = axpy(-alpha, g, phi)", "phi = axpy(alpha, g, phi)")) == page
    with pytest.raises(ValueError, match="algorithms.py: expected the functions mamel"):
        build.with_code("<!-- code: refmeta/algorithms.py: maml, mamel -->\n```python\n```")


def test_a_taken_function_is_whole_but_for_its_docstring():
    taken = build.functions(ROOT / "refmeta/adjoint.py", ["task_gradient", "hvp"])
    source = (ROOT / "refmeta/adjoint.py").read_text()
    assert [line for line in taken.splitlines() if line] == [
        line for line in source[source.index("def task_gradient") :].splitlines() if line and '"""' not in line
    ]


def commands():
    """What pages show of commands that take seconds."""
    for page in PAGES:
        for match in build.OUTPUT.finditer(page.read_text()):
            if any(words in match[2] for words in QUICK):
                yield pytest.param(match[2], match[0], id=match[2])


def unrounded(text):
    """Without the digits that are rounding, and differ from machine to machine."""
    return re.sub(r"\d(\.\d)?e-1\d|\d\d\.\d digits|precise to \de-\d+", "…", text)


@pytest.mark.parametrize("command, shown", list(commands()))
def test_what_a_quick_command_prints_is_shown(command, shown):
    if "torch" in command:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    if not shutil.which("refmeta", path=str(Path(build.sys.executable).parent)):
        pytest.skip("the command refmeta is not installed here")
    assert unrounded(build.with_output(shown, command)) == unrounded(shown)


def test_what_a_command_prints_replaces_what_was_shown():
    page = (
        "```text\n$ echo new \\\n    lines\nold\n```\n\n```text\n$ echo other\nold\n```\n\n```python\nprint(7)\n```\n\n"
    )
    page += "```text\n8\n```\n"
    assert build.with_output(page, "echo new") == page.replace("old\n", "new lines\n", 1)
    assert build.with_output(page, "print") == page.replace("8", "7")
    for bad in ("exit 3", "exit 1", "true"):
        with pytest.raises(SystemExit, match=bad):
            build.with_output(f"```text\n$ {bad}\n```\n", bad)


def test_what_a_block_prints_may_be_folded():
    page = "```python\nprint(7)\n```\n\n<details><summary>Answer</summary>\n\n```text\n8\n```\n\n</details>\n"
    assert BLOCK.findall(page) == [("", "print(7)\n", "8\n")]
    assert build.with_output(page, "print") == page.replace("8", "7")
    assert BLOCK.findall(page.replace("<details>", "Some text.\n\n<details>")) == [("", "print(7)\n", "")]


UNPRINTED = re.compile(r"```text\n(\$ (?:[^\n]*\\\n)*[^\n]*\n)?\s*```")


@each_page
def test_no_output_is_missing(page):
    assert not UNPRINTED.search(page.read_text())


@pytest.mark.parametrize("block", ["```text\n```", "```text\n$ a\n```", "```text\n$ a \\\n  b\n\n```"])
def test_a_missing_output_is_found(block):
    assert UNPRINTED.search(block) and not UNPRINTED.search(block.replace("\n```", "\n1\n```"))


def slugs(path):
    """The anchors of a page's headings, as code-hosting pages make them."""
    for line in re.sub(r"```.*?```", "", path.read_text(), flags=re.S).splitlines():
        if heading := re.match(r"#+ (.*)", line):
            yield re.sub(r"[^\w\- ]", "", re.sub(r"\$|`", "", heading[1]).lower()).replace(" ", "-")


def dead_links(page):
    """The links of a page that lead nowhere, and the tests that it names and that are not there."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for name, target, anchor in re.findall(r"\[([^\]]*)\]\(([^()\s#]*)(#[^()\s]*)?\)", text):
        if not target.startswith("http"):
            path = page.parent / target if target else page
            test = re.fullmatch(r"`(test_\w+)`", name)
            if (
                not path.exists()
                or (anchor and anchor[1:] not in slugs(path))
                or (test and f"def {test[1]}(" not in path.read_text())
            ):
                yield f"[{name}]({target}{anchor})"


@each_page
def test_every_link_leads_somewhere_and_every_test_named_is_there(page):
    assert not list(dead_links(page))


def test_dead_links_are_found(tmp_path):
    page, bad = tmp_path / "page.md", ["[a](gone.md)", "[b](#gone)", "[c](page.md#gone)", "[`test_gone`](page.md)"]
    page.write_text("# Here, now\n[d](#here-now) [e](https://x.y/z) [`f`](page.md#here-now) " + " ".join(bad))
    assert list(dead_links(page)) == bad


MADE = re.compile(r"^```.*?^```$|^<!-- measured: .*?^<!-- end of what was measured -->$", re.S | re.M)
UNBREAKABLE = re.compile(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)")


def too_wide(text, tables=True):
    """The lines of more than 100 columns; but not in code or measured parts, nor a single word, which cannot break."""
    wide = [line for line in MADE.sub("", text).splitlines() if len(line) > 100]
    words = {line: UNBREAKABLE.sub("", line.strip().lstrip("*->").strip()) for line in wide}
    return [line for line in wide if (tables if line.startswith("|") else " " in words[line])]


@each_page
def test_lines_of_pages_have_at_most_100_columns(page):
    """Whole pages that a program writes are excepted, and the tables that `refmeta reproduce` prints."""
    text = page.read_text()
    if not build.PRINTED.search(text):
        assert not too_wide(text, tables=page.name != "reproduction.md")


def test_lines_that_are_too_wide_are_found():
    link, fence = f"[`test`](../tests/{'x' * 90}.py)", "```text\n" + "a " * 60 + "\n```"
    measured = f"<!-- measured: x -->\n{'b ' * 60}\n<!-- end of what was measured -->"
    assert not too_wide("\n".join([link, f"* {link},", f"- ${'x + ' * 30}$:", "a " * 50, fence, measured]))
    for bad in ("a " * 51, f"see {link}", f"* {link} {link}", "| a " * 26, f"[a b]({'x' * 99})"):
        assert too_wide(f"{bad}\n{fence}") == [bad]
    assert not too_wide("| a " * 26, tables=False)


def lost_in_the_dark(figure):
    """The colours that an SVG says and its rules for a dark page do not, but for FAINT, which is seen on both."""
    (rules, *_), drawn = re.findall(r"<style>(.*?)</style>", figure) or [""], re.sub(r"<style>.*?</style>", "", figure)
    said = set(re.findall(r"""\b(?:fill|stroke)[:=] ?["']?[^;"']+""", drawn))
    return {s for s in said if f'"{s}"' not in rules and not s.endswith((": none", FAINT))}


TILES = {"episode.svg": {"fill: #131416", "fill: #e4e4e4"}}  # its letters lie on tiles that keep their colours


def test_figures_can_be_seen_on_a_dark_page():
    lost = {path.name: lost_in_the_dark(path.read_text()) for path in (ROOT / "docs/figures").glob("*.svg")}
    assert {name: colours for name, colours in lost.items() if colours} == TILES


def test_a_colour_that_is_lost_on_a_dark_page_is_found():
    figure = (ROOT / "docs/figures/start.svg").read_text()
    for said, wrong in ("stroke: #2460a7", "stroke: #b08d00"), ("fill: #2460a7", 'fill="white'):
        assert said in figure and lost_in_the_dark(figure.replace(f"{said};", f"{wrong};")) == {wrong}
    assert "stroke: #2460a7" in lost_in_the_dark(re.sub("<style>.*?</style>", "", figure))


def test_the_readme_lists_every_document():
    assert set(PAGES[1:]) == set((ROOT / "docs").glob("*.md"))


def test_the_documents_name_every_public_name():
    for module, names in build.API.items():
        public = getattr(importlib.import_module(module), "__all__", None)
        assert public is None or set(public) == set(names.split()), module


def test_the_ledger_has_every_mistake_that_the_checker_knows():
    ledger = (ROOT / "docs/bugs.md").read_text()
    assert set(re.findall(r"\(kill_matrix\.md#(\w+)\)", ledger)) == set(MISTAKES)
    for suspect in MISTAKES.values():
        for entry in re.findall(r"B\d+", suspect.ledger):
            assert re.search(rf"^(### {entry}[ab]? |\* \*\*{entry}\*\* )", ledger, re.M), suspect.id


def test_the_version_to_cite_is_this_one():
    assert f"version: {refmeta.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {refmeta.__version__}\n" in (ROOT / "docs/changes.md").read_text()


def test_the_example_of_own_tasks_is_short():
    code = next(c for _, c, _ in BLOCK.findall((ROOT / "docs/sine.md").read_text()) if "def line" in c)
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) < 10


def tiers(files):
    """The specification's table of tiers, a line for each."""
    for path in files:
        vectors = json.loads(path.read_text())["vectors"]
        losses = {(v["loss"]["kind"], "-".join(map(str, v["model"].get("widths", [])))) for v in vectors}
        kinds = [(kind, ", ".join(w for _, w in group)) for kind, group in groupby(sorted(losses), itemgetter(0))]
        named = "; ".join(f"`{kind}` {widths}".strip() for kind, widths in kinds)
        yield f"| `{path.stem}` | {len(vectors)} | {named} |"


def assert_knows_the_vectors(page):
    manifest, vectors, prose = json.loads((FOLDER / "manifest.json").read_text()), load(), " ".join(page.split())
    assert f"have version {manifest['vectors_version']}." in prose
    shown = page[page.index("| tier |") :].split("\n\n")[0].splitlines()[2:]
    assert sorted(shown) == sorted(tiers(FOLDER / name for name in manifest["files"]))
    exact = [v.case.tier for v in vectors if not v.tolerance["float64"]]
    assert set(exact) == {"canary", "scalar", "quadratic", "regression"} and f"these {len(exact)} answers" in prose
    for dtype in "float64", "float32":
        tolerances = {int(log2(v.tolerance[dtype])) for v in vectors if v.tolerance[dtype]}
        assert f"$2^{{{min(tolerances)}}}$ to $2^{{{max(tolerances)}}}$ in {dtype}" in prose


def test_the_specification_knows_the_vectors():
    assert_knows_the_vectors((ROOT / "docs/specification.md").read_text())


@pytest.mark.parametrize("right", ["1.2.0", "| `tanh` | 11 |", "2-3-3-1", "these 27", "2^{-45}", "2^{-15}"])
def test_a_specification_that_knows_other_vectors_is_refused(right):
    page = (ROOT / "docs/specification.md").read_text()
    assert right in page
    with pytest.raises(AssertionError):
        assert_knows_the_vectors(page.replace(right, right.translate(str.maketrans("157", "268"))))


@each_page
def test_inline_equations_survive_a_code_hosting_page(page):
    """Its Markdown takes `}_` for emphasis and drops the backslash of `\\,` before it looks for equations."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.S | re.M)
    assert not [eq for eq in re.findall(r"\$[^$\n]+\$", text) if re.search(r"[})]_\S|\\[^A-Za-z]|\$ | \$$", eq)]


def test_inline_equations_that_would_not_survive_are_found(tmp_path):
    page = tmp_path / "page.md"
    for bad in (r"$\hat{G}_t$", r"$(a)_b$", r"$a\, b$", "$ a$"):
        page.write_text(f"{bad} and `$` ")
        with pytest.raises(AssertionError):
            test_inline_equations_survive_a_code_hosting_page(page)
    page.write_text(r"$\hat{G}_ t = \sum_i a_i$")
    test_inline_equations_survive_a_code_hosting_page(page)
