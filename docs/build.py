"""The documents, from the files beside this one: `python -m docs.build` in the checkout, with the extra `docs`.

    python -m docs.build               puts the code that pages show into them, and makes the site, build/site
    python -m docs.build --run WORDS   first runs the commands that pages show and that contain WORDS ("" for all),
                                       and puts what they print into the pages; DIR is $REFMETA_OMNIGLOT

A page takes functions from the package by `<!-- code: FILE: NAME, … -->` before a block of Python. A block of text that
begins with `$` is a command and what it printed; one right after a block of Python is what that printed.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "README.md"
EXPLORER, SHOWN = ROOT / "refmeta/lab/explorer.html", "explore.html"  # a page that is whole, and its name on the site
TOUR = ROOT / "docs/tour.ipynb"
CODE = re.compile(r"(<!-- code: (\S+): ([^\n]+) -->\n+```python\n).*?(?=```)", re.S)
OUTPUT = re.compile(r"(```text\n\$ ((?:[^\n]*\\\n)*[^\n]*)\n).*?(?=```)", re.S)
EXAMPLE = re.compile(r"(```python\n((?:(?!```).)*)```(?:\n\n<details>[^\n]*)?\n\n```text\n)(?!\$).*?(?=```)", re.S)
PRINTED = re.compile(r"^Made by `(python .* > docs/\S+)`", re.M)
LINK = re.compile(r"(?P<code>^```.*?^```$)|(\]\()([^()\s#:]+)((?:#[^()\s]*)?\))", re.S | re.M)
TEST = re.compile(r"(\[`(test_\w+)`\]\([^()\s#]+\.py)(?=\))")

API = {
    "refmeta": "trajectory adapt objective joint maml fomaml anil reptile stacked recorded",
    "refmeta.adjoint": "maml anil hvp",
    "refmeta.models": "MLP ConvNet squared_error cross_entropy accuracy",
    "refmeta.conformance": "check assert_case parameters audit Case Skip Report Row Verdict",
    "refmeta.lab": "train progress Checkpoint evaluate adam sgd linear reptile_by trajectory_by Diverged Interrupted",
    "refmeta.lab.plots": "plot_adaptation plot_curves plot_training plot_geometry plot_weights plot_similarity",
    "refmeta.lab.sweep": "grid sweep Incomplete",
}
API_HEAD = """# Every public name

θ, batches, tasks and losses are what [the specification](specification.md) says, and a gradient is a list of arrays of
θ's shapes. The functions of `refmeta` check their arguments: TypeError if one is of the wrong kind, ValueError if its
value is impossible; both say which, what was expected and what was got.
"""


def definitions(page: str, words: str = "") -> dict[str, Any]:
    """All names that the page's first block of Python with these words defines, for the scripts that draw figures."""
    shown: dict[str, Any] = {}
    exec(next(code for _, code in EXAMPLE.findall((ROOT / "docs" / page).read_text()) if words in code), shown)
    return shown


def pages() -> list[Path]:
    """README.md, then the documents that it lists under "Read on", in that order."""
    listed = re.findall(r"\]\((docs/\w+\.md)\)", HOME.read_text().partition("## Read on")[2])
    return [HOME, *(ROOT / name for name in dict.fromkeys(listed))]


# --- What pages take from elsewhere ---


def functions(path: Path, names: list[str]) -> str:
    """The named functions as they stand in the file, without their docstrings."""
    source = path.read_text()
    found = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    if missing := set(names) - set(found):
        raise ValueError(f"{path}: expected the functions {', '.join(sorted(missing))}")
    return "\n".join(_without_docstring(_lines(source), found[name]) for name in names)


def _lines(source: str) -> list[str]:
    return re.split(r"(?<=\n)", source)  # as ast counts them; splitlines has other line ends too


def _without_docstring(lines: list[str], node: ast.FunctionDef) -> str:
    first = node.body[0]
    end = first.end_lineno if ast.get_docstring(node) else first.lineno - 1
    end += not lines[end].strip()  # the blank line that parts a docstring from a function within
    return "".join(lines[_first_line(node) - 1 : first.lineno - 1] + lines[end : node.end_lineno])


def _first_line(node: ast.FunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def with_code(text: str) -> str:
    """The page with its functions as they are in the package now."""
    return CODE.sub(lambda m: m[1] + functions(ROOT / m[2], m[3].split(", ")), text)


def with_output(text: str, words: str) -> str:
    """The page with what its commands that contain `words` print now."""
    data = quote(os.environ.get("REFMETA_OMNIGLOT", "DIR"))

    def output(m: re.Match[str]) -> str:
        return m[1] + printed(re.sub(r"\bDIR\b", lambda _: data, m[2])) if words in m[2] else m[0]

    def example(m: re.Match[str]) -> str:
        return m[1] + printed(f"python -c {quote(m[2])}") if words in m[2] else m[0]

    return EXAMPLE.sub(example, OUTPUT.sub(output, text))


@cache
def printed(command: str) -> str:
    """What a command prints, run in a folder that has nothing but `tests`.

    SystemExit: it failed, or printed nothing. `refmeta check` alone says no with 1, as any program that crashes does.
    """
    print(f"$ {command.partition(chr(10))[0]}", flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with TemporaryDirectory() as folder:
        (Path(folder) / "tests").symlink_to(ROOT / "tests")
        run = ["bash", "-o", "pipefail", "-c", command]
        done = subprocess.run(run, cwd=folder, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, text=True)
    if done.returncode > ("refmeta check" in command) or not done.stdout.strip():
        raise SystemExit(f"docs.build: exit code {done.returncode}: {command}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").split("\n"))


def renew(words: str | None = None) -> None:
    """Rewrite the pages that show what is no longer so; with `words`, also what commands with these words print."""
    for page in pages():
        text = page.read_text()
        for part in OUTPUT.findall(text) + EXAMPLE.findall(text) if words is not None else []:
            if words in part[1]:  # each as soon as it is there: some take a quarter of an hour
                _rewrite(page, with_output(page.read_text(), part[1]))
        for command in PRINTED.findall(text) if words is not None else []:
            if words in command:
                made = subprocess.run(
                    [sys.executable, *command.split()[1:-2]], cwd=ROOT, check=True, stdout=subprocess.PIPE
                )
                _rewrite(page, made.stdout.decode())
        _rewrite(page, with_code(page.read_text()))


def _rewrite(page: Path, text: str) -> None:
    if text != page.read_text():
        page.write_text(text)
        print(f"{page.relative_to(ROOT)}: renewed")


# --- The site ---


def site(out: Path) -> None:
    """Sphinx's HTML of the pages, of every public name, and of every source file that they name."""
    from sphinx.cmd.build import main as sphinx

    with TemporaryDirectory() as folder:
        source = Path(folder)
        shutil.copytree(ROOT / "docs/figures", source / "figures")
        sources = {path.relative_to(ROOT) for path in ROOT.glob("refmeta/**/*.py")}
        for page in pages():
            text = TEST.sub(r"\1#\2", page.read_text())
            text = LINK.sub(lambda m, page=page: m["code"] or m[2] + _target(page, m[3], sources) + m[4], text)
            _write(source / ("index.md" if page == HOME else page.name), text + (_contents() if page == HOME else ""))
        shutil.copy(TOUR, source)
        _write(source / "tour.md", "".join(_notebook(source / TOUR.name)))
        _write(source / "api.md", "".join(_api()))
        for path in sources:
            _write(source / f"source/{path}.md", "".join(_listing(path)), "orphan: true\n")
        shutil.rmtree(out, ignore_errors=True)
        code = sphinx(["-q", "-W", "--keep-going", "-j", "auto", "-c", str(ROOT / "docs"), str(source), str(out)])
    if code:
        raise SystemExit(code)
    shutil.rmtree(out / ".doctrees")
    shutil.copy(EXPLORER, out / SHOWN)


def _write(path: Path, text: str, meta: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if text.count("\n### ") < 10:  # else a page to look things up in: Furo lists its headings at the side
        meta += "hide-toc: true\n"
    path.write_text(f"---\n{meta}---\n\n{text}" if meta else text)


def _target(page: Path, link: str, sources: set[Path]) -> str:
    path = (page.parent / link).resolve().relative_to(ROOT)
    if path.parts[0] == "docs" and path.suffix in (".md", ".png", ".svg", ".ipynb"):
        return str(path.relative_to("docs")).replace(".ipynb", ".md")
    if path == HOME.relative_to(ROOT):
        return "index.md"
    if path == EXPLORER.relative_to(ROOT):
        return f"site:{SHOWN}"
    if not (ROOT / path).is_file():
        raise SystemExit(f"{page}: {link} is no file")
    sources.add(path)
    return f"source:{path}"


def _contents() -> str:
    names = "\n".join(page.stem for page in pages()[1:])
    return f"\n```{{toctree}}\n:hidden:\n\n{names}\ntour\napi\n```\n"


def _notebook(path: Path) -> Iterator[str]:
    """A notebook's cells, what they printed and what they drew; its pictures go into figures/ beside it."""
    for i, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        yield f"```python\n{source}\n```\n\n" if cell["cell_type"] == "code" else f"{source}\n\n"
        for output in cell.get("outputs", ()):
            if output["output_type"] == "stream":
                yield f"```text\n{''.join(output['text'])}\n```\n\n"
            else:
                (path.parent / f"figures/{path.stem}-{i}.png").write_bytes(b64decode(output["data"]["image/png"]))
                yield f"![What this cell draws](figures/{path.stem}-{i}.png)\n\n"
    yield f"{{download}}`This page as a notebook <{path.name}>`\n"


def _api() -> Iterator[str]:
    yield API_HEAD
    for module, names in API.items():
        yield f"\n## {module}\n\n```{{eval-rst}}\n.. currentmodule:: {module}\n\n"
        for name in names.split():
            kind = "autoclass" if name[0].isupper() else "autofunction"
            members = "   :members:\n   :inherited-members: BaseException, tuple\n" if kind == "autoclass" else ""
            yield f".. {kind}:: {module}.{name}\n{members}\n"
        yield "```\n"


def _listing(path: Path) -> Iterator[str]:
    text = (ROOT / path).read_text()
    lines, starts = _lines(text), {1: "top"}
    if path.suffix == ".py":
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                starts[_first_line(node)] = node.name
    yield f'# {path}\n\n<div class="source">\n'
    language = "python" if path.suffix == ".py" else "text"
    for start, end in zip(starts, [*list(starts)[1:], len(lines) + 1], strict=True):
        block = "".join(lines[start - 1 : end - 1]).rstrip()
        yield f'\n<a id="{starts[start]}"></a>\n\n``````{language}\n{block}\n``````\n'
    yield "\n</div>\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.build", description="Renew the documents, make the site.")
    parser.add_argument("--run", metavar="WORDS", help="first renew what the commands that contain WORDS print")
    renew(parser.parse_args().run)
    site(ROOT / "build/site")
    print("build/site/index.html")


if __name__ == "__main__":
    main()
