"""What the code promises its reader: short algorithms, and imports that only go down."""

import ast
from pathlib import Path

import pytest

import refmeta

PACKAGE = Path(refmeta.__file__).parent


def code_lines(node):
    """Lines that hold code: no blank lines, comments or docstrings."""
    strings = {
        line
        for n in ast.walk(node)
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str)
        for line in range(n.lineno, n.end_lineno + 1)
    }
    return {n.lineno for n in ast.walk(node) if hasattr(n, "lineno")} - strings


def functions(path):
    return {n.name: n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}


def test_all_the_algorithms_take_at_most_80_lines_of_code():
    assert 20 < len(code_lines(ast.parse((PACKAGE / "spec/algorithms.py").read_text()))) <= 80


@pytest.mark.parametrize("name", ["joint", "maml", "fomaml", "anil", "reptile", "adapt", "objective"])
def test_an_algorithms_body_has_at_most_5_lines(name):
    function = functions(PACKAGE / "spec/algorithms.py")[name]
    body = [line for statement in function.body for line in code_lines(statement)]
    assert 1 <= len(body) <= 5


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    """spec knows NumPy and autograd only; lab and conformance build on it, and not on each other."""
    place = path.relative_to(PACKAGE).parts[0]
    modules = set(imports(path))
    own = {m for m in modules if m.startswith("refmeta.")}
    if place == "spec":
        roots = {m.split(".")[0] for m in modules - own}
        assert roots <= {"autograd", "numpy", "collections", "typing"}
        assert all(m.startswith("refmeta.spec") for m in own)
    if place in ("models.py", "execution.py", "checks.py"):
        assert all(m.startswith("refmeta.spec") for m in own)
    if place == "lab":
        assert not any(m.startswith("refmeta.conformance") for m in own)
    if place == "conformance":
        assert not any(m.startswith("refmeta.lab") for m in own)


def test_the_public_names_are_those_of_the_contract():
    names = ["trajectory", "adapt", "joint", "maml", "fomaml", "anil", "reptile", "stacked", "recorded"]
    assert sorted(names) == refmeta.__all__
    for name in names:
        assert getattr(refmeta, name).__doc__ and getattr(refmeta, name).__name__ == name
