"""Vectors and answers from outside, spoilt at random: a clear error of the reader's own kind, or a right judgement."""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spoiling import damaged, fuzzed, spoilt, tried

from refmeta.conformance import Report, doors
from refmeta.conformance.cases import FOLDER, VectorError, load, parse
from refmeta.conformance.check import select
from refmeta.conformance.doors import DoorError, check_command, check_results

pytestmark = pytest.mark.usefixtures("listed_alone_here")

# --- Vectors ---


def smallest(name):
    """A file of vectors with the shortest of them only."""
    content = json.loads((FOLDER / name).read_bytes())
    return json.dumps({**content, "vectors": [min(content["vectors"], key=lambda v: len(str(v)))]}).encode()


SMALL = {name: smallest(name) for name in ("canary.json", "scalar.json", "softmax.json")}


@fuzzed
@given(st.data(), st.sampled_from(sorted(SMALL)))
def test_a_vector_file_is_refused_or_read_as_what_it_says(data, name):
    given = data.draw(spoilt(SMALL[name]))
    vectors = tried("vector file", lambda: parse(Path(name), given), VectorError)
    for vector, content in zip(vectors or [], json.loads(given)["vectors"] if vectors else [], strict=True):
        case = vector.case
        assert plain({name: content[name] for name in case.to_json()}) == plain(case.to_json())
        assert plain(content["expected"]["gradient"]) == [leaf.ravel().tolist() for leaf in vector.gradient]
        trees = [vector.gradient, *(tree for trees in vector.suspects.values() for tree in trees)]
        for task in vector.per_task:
            trees += [task["gradient"], *task["phi"], *task["inner_gradient"], *task.get("adjoint", [])]
        assert {tuple(leaf.shape for leaf in tree) for tree in trees} == {tuple(leaf.shape for leaf in case.theta)}
        assert all(np.isfinite(leaf).all() for tree in trees for leaf in tree)
        assert [*vector.tolerance] == ["float32", "float64"] and min(vector.scale) > 0
        assert (
            len(case.settings) == len(case.tasks)
            and case.loss_fn
            and case.algorithm in ("maml", "fomaml", "anil", "reptile", "joint")
        )


def plain(content):
    """A vector's JSON without the note that integers are labels, and its hex floats as numbers."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items() if key != "labels"}
    if isinstance(content, list):
        return [plain(each) for each in content]
    return float.fromhex(content) if isinstance(content, str) and "0x" in content.lower() else content


@fuzzed
@given(st.data())
def test_a_manifest_is_refused_or_its_files_are_those_it_names(data):
    manifest = {
        **json.loads((FOLDER / "manifest.json").read_bytes()),
        "files": {name: {"sha256": hashlib.sha256(text).hexdigest(), "ids": []} for name, text in SMALL.items()},
    }
    given = data.draw(spoilt(json.dumps(manifest).encode()))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(given)
        for name, text in SMALL.items():
            (Path(folder) / name).write_bytes(text)
        vectors = tried("manifest", lambda: load(Path(folder)), VectorError)
    if vectors is not None:
        expected = [v.case.id for name in json.loads(given)["files"] for v in parse(Path(name), SMALL[name])]
        assert [v.case.id for v in vectors] == expected


# --- Answers from elsewhere ---

VECTORS = select(["maml"], ["canary", "quadratic", "scalar"])
RIGHT = {v.case.id: [leaf.tolist() for leaf in v.gradient] for v in VECTORS}


def assert_judged(report, expected):
    """A whole report, with a row for every vector."""
    assert isinstance(report, Report) and json.loads(report.json()) and str(report)
    assert [row.id for row in report.rows] == [v.case.id for v in expected]
    assert {row.status for row in report.rows} <= {"pass", "fail", "error", "skip"}


@fuzzed
@given(st.data())
def test_a_results_file_is_refused_or_judged(data):
    content = data.draw(spoilt(json.dumps(RIGHT).encode()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        path.write_bytes(content)
        report = tried("results file", lambda: check_results(str(path), VECTORS), DoorError)
    if report is not None:
        assert_judged(report, VECTORS)
        answers = json.loads(content)
        untouched = {name for name in RIGHT if answers.get(name) == RIGHT[name]}
        assert untouched <= {row.id for row in report.rows if row.status == "pass"}


# A program that says what it was given, a line for a line, and then does what is left: end, hang, or never stop.
PROGRAM = """
import os, sys, time
answers, end = eval(open(sys.argv[1]).read())
out = sys.stdout.buffer
for line in sys.stdin:
    if not answers:
        break
    out.write(answers.pop(0))
    out.flush()
while end == "flood":
    out.write(b"x" * 65536)
while end == "errors":
    sys.stderr.write("no" * 65536)
while end == "lines":
    out.write(b'{"seq": 0}\\n')
time.sleep(60 * (end == "hang"))
"""
GREETING = b'{"version": 1, "name": "a program"}\n'


def line_of(vector, seq):
    return json.dumps({"seq": seq, "gradient": RIGHT[vector.case.id]}).encode()


@fuzzed
@given(st.data(), st.sampled_from(["", "flood", "errors", "lines", "hang"]))
def test_a_program_is_refused_or_judged(data, end):
    some = VECTORS[:2]
    right = [GREETING, *(line_of(v, seq) + b"\n" for seq, v in enumerate(some))]
    answers = [data.draw(st.just(line) | spoilt(line).map(lambda b: b + b"\n") | damaged(line)) for line in right]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "program.py").write_text(PROGRAM)
        (Path(folder) / "answers").write_text(repr((answers, end)))
        program = [sys.executable, "-I", "-S", f"{folder}/program.py", f"{folder}/answers"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(doors, "LONGEST", 2**18)
            report = tried("program", lambda: check_command(program, some, 0.2), DoorError)
    if report is not None:
        assert_judged(report, some)


def test_the_judgement_tells_a_right_answer_from_a_wrong_one(tmp_path):
    """What the fuzzing takes for granted: a changed number fails, and the rest passes."""
    (tmp_path / "results.json").write_text(json.dumps({**RIGHT, "maml-canary": [[-1, -2.5]]}))
    report = check_results(str(tmp_path / "results.json"), VECTORS)
    assert [row.id for row in report.rows if row.status != "pass"] == ["maml-canary"]
