"""The program in plain JavaScript, written without a look at the package's code: it is right, its slips have names."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refmeta.conformance.cases import FOLDER, load

PROGRAM = Path(__file__).parents[1] / "javascript"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node is not installed")


def refmeta_check(*arguments):
    """The exit code and the report of `refmeta check`, as data."""
    command = [sys.executable, "-m", "refmeta", "check", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def assert_all_right(code, report):
    assert code == 0 and report["passed"]
    assert [v["kind"] for v in report["verdicts"]] == ["pass"] * 5, "a remark is no plain pass"
    assert [row["id"] for row in report["rows"] if row["status"] == "pass"] == [v.case.id for v in load()]


@needs_node
def test_it_answers_every_vector():
    assert_all_right(*refmeta_check("--", NODE, PROGRAM / "harness.mjs"))


@needs_node
def test_it_reads_the_files_of_vectors_without_refmeta(tmp_path):
    files = sorted(set(FOLDER.glob("*.json")) - {FOLDER / "manifest.json", FOLDER / "schema.json"})
    answers = tmp_path / "answers.json"
    answers.write_bytes(subprocess.check_output([NODE, PROGRAM / "harness.mjs", *files]))
    assert_all_right(*refmeta_check("--results", answers))


SLIPS = {
    "first_order": ("v = axpy(-problem.alpha, problem.hessianTimes(problem.moving(v), phis[k], supports[k]), v)", ""),
    "product_reversed": ("let k = supports.length - 1; k >= 0; k--", "let k = 0; k < supports.length; k++"),
}


@needs_node
@pytest.mark.parametrize("mistake", SLIPS)
def test_a_slip_is_refused_under_its_name(mistake, tmp_path):
    shutil.copytree(PROGRAM, tmp_path, dirs_exist_ok=True)
    right, wrong = SLIPS[mistake]
    text = (tmp_path / "refmeta.mjs").read_text()
    assert text.count(right) == 1
    (tmp_path / "refmeta.mjs").write_text(text.replace(right, wrong))
    code, report = refmeta_check("--tier", "quadratic", "--tier", "tanh", "--", NODE, tmp_path / "harness.mjs")
    assert code == 1 and not report["passed"]
    named = {v["algorithm"]: [e["suspects"] for e in v["explanations"]] for v in report["verdicts"]}
    assert named == {"maml": [[mistake]], "anil": [[mistake]], "fomaml": [], "reptile": [], "joint": []}


def test_its_mathematics_is_short_and_neither_reads_nor_prints():
    """A page in a browser can import it as it is."""
    text = (PROGRAM / "refmeta.mjs").read_text()
    assert re.findall(r"\b(import|require|process|console|document)\b", text) == []
    assert text.count("\n") <= 150, "docs/specification.md says so"
