"""Other people's automatic differentiation agrees with the vectors, and the documentation shows what happens."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import refmeta
from refmeta.conformance import check
from tests.bench.measure import own, side_by_side
from tests.bench.workloads import WORKLOADS

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs"
CHECKING = (DOCS / "checking.md").read_text()
FENCES = re.findall(r"```python\n(.*?)```", CHECKING, re.S)
PEERS = {"torch_func": "torch", "jax_grad": "jax", "higher_maml": "higher", "learn2learn_maml": "learn2learn"}

pytestmark = pytest.mark.filterwarnings("ignore")  # what the packages themselves warn of


def code_lines(source):
    """The number of lines with code: no blank lines, comments or docstrings."""
    tree = ast.parse(source)
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    texts = {line for n in strings for line in range(n.lineno, n.end_lineno + 1)}
    return len({n.lineno for n in ast.walk(tree) if hasattr(n, "lineno")} - texts)


@pytest.mark.parametrize("name", PEERS)
def test_peer_passes(name):
    pytest.importorskip(PEERS[name], reason=f"{PEERS[name]} is not installed", exc_type=ImportError)
    report = check(importlib.import_module(name).meta_gradient)
    report.raise_on_failure()
    skipped = [row for row in report.rows if row.status == "skip"]
    assert not skipped or name in ("higher_maml", "learn2learn_maml")


@pytest.mark.parametrize("name", [*PEERS, "torch_first_order"])
def test_peer_is_short(name):
    assert code_lines((HERE / f"{name}.py").read_text()) <= 30


def test_the_most_copied_mistake_is_named():
    pytest.importorskip("torch", reason="torch is not installed")
    report = check(importlib.import_module("torch_first_order").meta_gradient, title=TITLE)
    assert not report.passed
    verdict = report.verdicts[0]
    assert verdict.algorithm == "maml" and verdict.explanations[0].suspects == ("first_order",)
    assert "create_graph=True" in verdict.text
    assert str(report) in CHECKING  # the report in the documentation is a real one


WORKERS = {
    ("torch_func",): "torch",
    ("torch_func", "im2col"): "torch",
    ("jax_jit",): "jax",
    ("jax_jit", "im2col"): "jax",
    ("higher_maml",): "higher",
    ("torchopt_maml",): "torchopt",
    ("torchopt_maml", "functional"): "torchopt",
    ("learn2learn_maml",): "learn2learn",
}


@pytest.mark.parametrize("words", WORKERS, ids=" ".join)
def test_a_benchmarks_worker_does_the_same_work(words):
    pytest.importorskip(WORKERS[words], reason=f"{WORKERS[words]} is not installed", exc_type=ImportError)
    small = {name: work._replace(tasks=3, steps=min(work.steps, 3), shots=5) for name, work in WORKLOADS.items()}
    small["C1 in double precision"] = small["C1"]._replace(dtype="float64")
    wanted = [(n, small[n], a) for n in ("S2", "S4", "C1", "C1 in double precision") for a in small[n].algorithms]
    wanted.append(("C1, its gradient", small["C1 in double precision"], "joint"))
    worker = [sys.executable, "-m", f"tests.bench.workers.{words[0]}", *words[1:]]
    rows = side_by_side([own("recorded"), worker], wanted, 0.01, 1)
    assert len(rows) > len(wanted) and all(row["difference"] < 1e-4 for row in rows)


TITLE = "refmeta check torch_first_order:meta_gradient"


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_the_consumers_in_the_documentation_run_alone(package, tmp_path):
    pytest.importorskip(package, reason=f"{package} is not installed")
    fence = next(fence for fence in FENCES if f"import {package}" in fence and "refmeta" not in fence)
    assert code_lines(fence) <= 15
    shutil.copy(Path(refmeta.__file__).parent / "vectors/quadratic.json", tmp_path)

    def run(source):
        command = [sys.executable, "-I", "-c", source]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    good = run(fence)
    assert good.returncode == 0, good.stderr
    bad = run(fence.replace("phi - alpha", "phi + alpha"))
    assert bad.returncode == 1 and "AssertionError: maml-quadratic-k1-t1" in bad.stderr


def test_jax_computes_in_float64_where_the_caller_says_so():
    """What `enable_x64` holds for is its own thread."""
    jax = pytest.importorskip("jax", reason="jax is not installed")
    found = []

    def meta_gradient(case):
        found.append(jax.numpy.array(case.theta[0]).dtype.name)
        return case.theta

    for wide in (True, False):
        with jax.enable_x64(wide):
            check(meta_gradient, algorithms=["maml"], tiers=["canary"])
    assert found == ["float64", "float32"]


def test_the_audit_in_the_documentation_prints_what_it_says(capsys):
    exec(next(fence for fence in FENCES if "import audit" in fence), {})
    assert f"```text\n{capsys.readouterr().out}```" in CHECKING


def test_every_link_is_there():
    targets = re.findall(r"\]\(([^)]+)\)", CHECKING)
    assert targets and all((DOCS / target.partition("#")[0]).exists() for target in targets)
