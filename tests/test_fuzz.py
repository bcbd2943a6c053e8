"""Data from outside, spoilt at random: a clear error of the reader's own kind, or a right answer, and nothing else.

REFMETA_FUZZ=1000 tries as many of each; the cases are counted at the end (with -n, where each process has its own
end, they are not shown).
"""

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
import sys
import tempfile
import tracemalloc
from collections import Counter
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoint import SETTINGS, forged, state_of
from test_fewshot import PARTS, drawing, members, png, zipped

from refmeta.__main__ import main
from refmeta.conformance import checker, doors
from refmeta.conformance import command as check_line
from refmeta.conformance.cases import FOLDER, VectorError, load, parse
from refmeta.conformance.checker import Report, select
from refmeta.conformance.doors import DoorError, check_command, check_results
from refmeta.lab import checkpoint, command, fewshot, geometry, sweep_command
from refmeta.lab.experiment import Config
from refmeta.lab.files import new_folder
from refmeta.lab.images import glyphs, omniglot
from refmeta.lab.sweep import name_of, read, table

MOST = int(os.environ.get("REFMETA_FUZZ", 15))
fuzzed = settings(max_examples=MOST, suppress_health_check=list(HealthCheck))
CASES: Counter[str] = Counter()
MEMORY = 2**26  # bytes: no case is larger than 2**17


@pytest.fixture(scope="module", autouse=True)
def count(request):
    yield
    if "REFMETA_FUZZ" in os.environ:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\n" + "\n".join(f"{number:>8} {name}" for name, number in sorted(CASES.items())))


def tried(reader, read, *errors):
    """What `read()` returns, or None where it raised one of these; it is counted, and its memory limited."""
    tracemalloc.start()
    try:
        found = read()
        CASES[f"{reader}: accepted"] += 1
    except errors as error:
        assert str(error)
        found = None
        CASES[f"{reader}: refused"] += 1
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < MEMORY, f"{most} bytes"
    return found


# --- What is spoilt ---

NESTED = "[" * 20_000 + "]" * 20_000
HOSTILE = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1, 2**63, -(2**200), 10**400, 1e308, -0.0, float("nan"), float("inf"), "", "0x1p+1"]
        + ["0x1p+99999", "nan", "1e5", "\0", "\ud800", "../x", "/dev/zero", "x" * 5000, [], {}, [[]], [{}], "NESTED"]
        + [{"shape": [10**18], "data": []}, {"shape": [-1], "data": [1]}, {"data": [1], "shape": [2**70]}]
    ),
    st.text(max_size=9),
    st.integers(),
    st.floats(),
    st.recursive(st.none() | st.booleans() | st.floats(), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)


def places(content, path=()):
    """The path of every value in a tree of JSON."""
    yield path
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*path, key))


@st.composite
def spoilt(draw, data):
    """JSON with up to three of its values replaced, removed or joined by others; or with bytes changed."""
    if draw(st.booleans()):
        return draw(damaged(data))
    content = [json.loads(data)]
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([path for path in places(content) if path]))
        inside = functools.reduce(lambda tree, key: tree[key], path, content)
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "remove" and inside is not content:
            del inside[last]
        elif what == "add" and isinstance(inside, dict):
            inside[draw(st.text(max_size=5))] = deepcopy(draw(HOSTILE))
        else:
            inside[last] = deepcopy(draw(HOSTILE))
    return json.dumps(content[0]).replace('"NESTED"', NESTED).encode()


@st.composite
def damaged(draw, data):
    """Bytes that are cut off, changed, or have others among them."""
    at = draw(
        st.integers(0, len(data)) | st.integers(max(0, len(data) - 1000), len(data))
    )  # an archive lists itself last
    what = draw(st.sampled_from(["cut", "change", "insert", "drop"]))
    other = draw(st.binary(min_size=1, max_size=8))
    if what == "cut":
        return data[:at]
    return data[:at] + other * (what != "drop") + data[at + len(other) * (what != "insert") :]


# --- Vectors ---


def smallest(name):
    """A file of vectors with the shortest of them only."""
    content = json.loads((FOLDER / name).read_bytes())
    return json.dumps({**content, "vectors": [min(content["vectors"], key=lambda v: len(str(v)))]}).encode()


SMALL = {name: smallest(name) for name in ("canary.json", "scalar.json", "softmax.json")}


@fuzzed
@given(st.data(), st.sampled_from(sorted(SMALL)))
def test_a_vector_file_is_refused_or_keeps_to_its_schema(data, name):
    jsonschema = pytest.importorskip("jsonschema", reason="extra test")
    given = data.draw(spoilt(SMALL[name]))
    vectors = tried("vector file", lambda: parse(Path(name), given), VectorError)
    if vectors is not None:
        schema = json.loads((FOLDER / "schema.json").read_bytes())
        jsonschema.validate(json.loads(given), schema)
        assert len(vectors) == len(json.loads(given)["vectors"])


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
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checker, "pairs", lambda answers: set())  # the search for two mistakes at once takes seconds
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
def test_a_program_behind_the_door_is_refused_or_judged(data, end):
    some = VECTORS[:2]
    right = [GREETING, *(line_of(v, seq) + b"\n" for seq, v in enumerate(some))]
    answers = [data.draw(st.just(line) | spoilt(line).map(lambda b: b + b"\n") | damaged(line)) for line in right]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "program.py").write_text(PROGRAM)
        (Path(folder) / "answers").write_text(repr((answers, end)))
        program = [sys.executable, "-I", "-S", f"{folder}/program.py", f"{folder}/answers"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checker, "pairs", lambda answers: set())
            patch.setattr(doors, "LONGEST", 2**18)
            report = tried("program", lambda: check_command(program, some, 0.4), DoorError)
    if report is not None:
        assert_judged(report, some)


def test_the_judgement_tells_a_right_answer_from_a_wrong_one(tmp_path):
    """What the fuzzing takes for granted: a changed number fails, and the rest passes."""
    (tmp_path / "results.json").write_text(json.dumps({**RIGHT, "maml-canary": [[-1, -2.5]]}))
    report = check_results(str(tmp_path / "results.json"), VECTORS)
    assert [row.id for row in report.rows if row.status != "pass"] == ["maml-canary"]


# --- Images ---


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The bytes of a good archive of each part, and all its drawings."""
    folder = tmp_path_factory.mktemp("good")
    for part in PARTS:
        zipped(folder / f"{part}.zip", members(part))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        read = omniglot(folder, 14, rotations=False)
    return {part: (folder / f"{part}.zip").read_bytes() for part in PARTS}, drawings(read)


def drawings(read):
    return {image.tobytes() for images in read.train + read.test for image in images}


def omniglot_of(archives):
    """What the reader makes of these bytes; beside its cache nothing has been written."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder, "a/b/root")
        root.mkdir(parents=True)
        patch.setenv("XDG_CACHE_HOME", str(Path(folder, "cache")))
        patch.chdir(root)
        for part, data in archives.items():
            (root / f"{part}.zip").write_bytes(data)
        read = tried("image archive", lambda: omniglot(root, 14, rotations=False), ValueError)
        left = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
        assert {path for path in left if not path.startswith("cache/")} == {f"a/b/root/{part}.zip" for part in archives}
        return read


@fuzzed
@given(st.data(), st.sampled_from(PARTS))
def test_a_damaged_archive_is_refused_or_has_drawings_of_the_good_one(archive, data, part):
    good, known = archive
    bad = good[part]
    for _ in range(data.draw(st.integers(1, 3))):
        bad = data.draw(damaged(bad))
    read = omniglot_of({**good, part: bad})
    assert read is None or drawings(read) <= known


NAMES = st.one_of(
    st.sampled_from(
        ["../../evil.png", "/evil.png", "..\\evil.png", "images_evaluation/../../e.png", "x\0.png", ".png"]
    ),
    st.text(max_size=20).map(lambda name: f"images_evaluation/{name}/character01/0001_01.png"),
    st.text(max_size=20).map(lambda name: f"images_evaluation/Greek/{name}.png"),
    st.integers(0, 99).map(lambda n: f"images_evaluation/Ge_ez/character{n:02}/0001_{n:02}.png"),
)
CONTENTS = st.one_of(
    st.binary(max_size=99),
    damaged(drawing(0)),
    st.sampled_from([b"\0" * 2_000_000, b"\0" * 2**14, b"GIF89a", b""]),
    st.builds(
        lambda h, w, mode: png(np.full((h, w), 255, np.uint8), mode),
        *[st.sampled_from([1, 104, 105, 3000])] * 2,
        st.sampled_from(["1", "L", "RGB", "RGBA", "P", "LA"]),
    ),
)


@fuzzed
@given(st.data())
def test_an_archive_of_other_members_is_refused_or_read(archive, data):
    extra = data.draw(st.dictionaries(NAMES, CONTENTS, min_size=1, max_size=2))
    zipped(bad := io.BytesIO(), {**members(PARTS[1]), **extra})
    read = omniglot_of({**archive[0], PARTS[1]: bad.getvalue()})
    if read is not None:
        assert {images.shape[1:] for images in read.train + read.test} == {(14, 14, 1)}
        assert all(0 <= images.min() <= images.max() <= 1 for images in read.test)


@fuzzed
@given(st.data())
def test_a_damaged_cache_of_images_is_made_anew(archive, data):
    good, known = archive
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        for part, content in good.items():
            Path(folder, f"{part}.zip").write_bytes(content)
        omniglot(folder, 14, rotations=False)
        (cache,) = Path(folder, "refmeta").iterdir()
        cache.write_bytes(data.draw(damaged(cache.read_bytes())))
        read = tried("cache of images", lambda: omniglot(folder, 14, rotations=False))
    assert drawings(read) == known


# --- Checkpoints ---


@fuzzed
@given(st.data())
def test_a_checkpoint_is_refused_or_what_was_saved(data):
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "checkpoint"
        state = state_of([np.arange(6.0).reshape(2, 3), np.ones(3)], "adam", history=[(0, 2.5)])
        checkpoint.save(kept, SETTINGS, state)
        whole = kept.read_bytes()
        _, head, raw = whole.split(b"\n", 2)
        if data.draw(st.booleans()):
            kept.write_bytes(data.draw(damaged(whole)))
        else:  # with the right checksum
            kept.write_bytes(forged(data.draw(spoilt(head)), data.draw(st.just(raw) | damaged(raw))))
        read = tried("checkpoint", lambda: checkpoint.load(kept, SETTINGS, state), ValueError)
        if read is not None:
            checkpoint.save(Path(folder) / "again", SETTINGS, read)
            numbers = [(Path(folder) / name).read_bytes().split(b"\n", 2)[-1] for name in ("checkpoint", "again")]
            assert numbers[0] == numbers[1]


# --- A sweep's folder ---

JOB = Config(report_steps=(0, 1)), 3
ROW = {"steps": 0, "mse": 1.5, "median": 1.0, "ci95": None, "diverged": 0}
RECORD = {"config": asdict(JOB[0]), "seed": JOB[1], "curve": [ROW, {**ROW, "steps": 1}], "seconds": 1.0}


@fuzzed
@given(st.data())
def test_a_sweeps_record_is_refused_or_stands_in_the_table(data):
    record = data.draw(spoilt(json.dumps(RECORD).encode()))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{name_of(JOB)}.json").write_bytes(record)
        rows = tried("sweep record", lambda: table(read(Path(folder)).values()), ValueError)
    assert rows is None or [row["steps"] for row in rows] == [0, 1]


# --- The command line ---


class Refused(Exception):
    """The command ended with 2, and said why."""


class Reached(Exception):
    """All arguments are taken, and the work would begin."""


def work(*args, **kwargs):
    raise Reached


DRAWN = functools.cache(lambda: glyphs(14, 0, 60))
WORD = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "-", "--", "-1", "0", "1", "2", "nan", "inf", "1e400", "9" * 5000, "0-9999999999", "4-0"])
    | st.sampled_from(["0--1", "maml", "all", "adam:0.1:linear", "sgd:", ":", ",", "1,2,", "8,8", "\0", "\ud800", "/"])
    | st.sampled_from(["omniglot", "glyphs", "sine", "refmeta:maml", "'", "list", "show", "--help", "1000000000000"]),
).filter(lambda word: not word.startswith("/") and ".." not in word)  # nothing is to be written outside


@functools.cache
def options_of(name):
    """Every option of a command, as its parser has them."""
    with pytest.MonkeyPatch.context() as patch:
        seen = {}

        def look(parser, *_):
            seen.update(parser._subparsers._group_actions[0].choices)
            raise Reached

        patch.setattr(argparse.ArgumentParser, "parse_args", look)
        with pytest.raises(Reached):
            main([])
    return [(option, action.nargs == 0) for action in seen[name]._actions for option in action.option_strings]


COMMANDS = ["sine", "fewshot", "geometry", "reuse", "sweep", "check", "vectors"]


@st.composite
def command_lines(draw, name):
    words = []
    for option, flag in draw(st.lists(st.sampled_from(options_of(name)), max_size=3)):
        words.append(option if flag else f"{option}={draw(WORD)}")
    return [name, *words, *draw(st.lists(WORD, max_size=2 if name in ("check", "vectors") else 0))]


@pytest.mark.parametrize("name", COMMANDS)
@fuzzed
@given(data=st.data())
def test_a_command_line_is_refused_with_2_or_taken(name, data):
    words = data.draw(command_lines(name))
    out, err = io.StringIO(), io.StringIO()

    def run():
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(Reached):
            try:
                code = main(words)
            except SystemExit as exit:
                code = exit.code
            if code == 2:
                raise Refused(err.getvalue())
            assert code == 0 and out.getvalue(), (code, err.getvalue())

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(command, "new_folder", work)

        for module, function in ((geometry, "recorded"), (sweep_command, "sweep")):
            patch.setattr(module, function, work)
        for function in ("check", "check_command"):
            patch.setattr(check_line, function, work)
        patch.setattr(fewshot.sources, "glyphs", lambda size: DRAWN())
        tried(f"refmeta {name}", run, Refused)


@fuzzed
@given(WORD)
def test_a_folder_for_results_is_refused_or_made_and_empty(wanted):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = tried("--out", lambda: new_folder(wanted, "runs"), ValueError)
        assert made is None or (made.resolve().is_relative_to(Path(folder).resolve()) and not any(made.iterdir()))
