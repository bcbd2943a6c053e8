"""Data from outside, spoilt at random: a clear error of the reader's own kind, or a right answer, and nothing else.

REFMETA_FUZZ=1000 tries as many of each; the cases are counted at the end (with -n, where each process has its own
end, they are not shown).
"""

import argparse
import contextlib
import functools
import io
import json
import os
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from archives import PARTS, drawing, members, png, unpacked, zipped
from hypothesis import given
from hypothesis import strategies as st
from spoiling import CASES, damaged, fuzzed, spoilt, tried
from test_checkpoint import SETTINGS, bits, forged, parts, state_of
from test_sweep import sealed

from refmeta.__main__ import main
from refmeta.lab import checkpoint, fewshot, files, geometry, sweep
from refmeta.lab.fewshot.drawings import omniglot
from refmeta.lab.fewshot.images import glyphs
from refmeta.lab.files import new_folder
from refmeta.lab.sine import Config
from refmeta.lab.sweep.experiment import name_of, read, table


@pytest.fixture(scope="module", autouse=True)
def count(request):
    yield
    if "REFMETA_FUZZ" in os.environ:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\n" + "\n".join(f"{number:>8} {name}" for name, number in sorted(CASES.items())))


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


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM"])
def test_a_folder_with_a_damaged_image_is_refused_or_read(form, data):
    image = pytest.importorskip("PIL.Image", reason="images need the extra images")
    pixels = np.arange(20 * 16 * 3).reshape(20, 16, 3).astype(np.uint8)
    image.fromarray(pixels).save(file := io.BytesIO(), form)
    bad = data.draw(damaged(file.getvalue()))
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pillow warns of much that it can read
        patch.setenv("XDG_CACHE_HOME", str(Path(root, "cache")))
        for place in ("train/a", "train/b", "test/c", "test/d"):
            unpacked(Path(root), {f"{place}/0.png": file.getvalue()})
        unpacked(Path(root), {"test/d/1.png": bad})
        read = tried(f"folder with a {form}", lambda: fewshot.folder(root, 8), ValueError)
        assert read is None or [images.shape for images in read.test] == [(1, 8, 8, 3), (2, 8, 8, 3)]


# --- Checkpoints ---


@fuzzed
@given(st.data())
def test_a_checkpoint_is_refused_or_what_was_saved(data):
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "checkpoint"
        state = state_of([np.arange(6.0).reshape(2, 3), np.ones(3)], "adam", history=[(0, 2.5)])
        checkpoint.save(kept, SETTINGS, state)
        settings, found = parts([kept])
        if data.draw(st.booleans()):
            kept.write_bytes(data.draw(damaged(kept.read_bytes())))
        else:  # with the right checksums
            kept.write_bytes(forged(np.array(data.draw(spoilt(json.dumps(settings).encode()))), found))
        read = tried("checkpoint", lambda: checkpoint.load(kept, SETTINGS, state), ValueError)
        assert read is None or bits(read) == bits(state)


@fuzzed
@given(st.data())
def test_a_forged_array_of_a_checkpoint_is_refused_or_of_the_same_kind(data):
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "checkpoint"
        state = state_of([np.arange(6.0).reshape(2, 3), np.ones(3)], "adam", history=[(0, 2.5)])
        checkpoint.save(kept, SETTINGS, state)
        settings, found = parts([kept])
        name = data.draw(st.sampled_from(sorted(found)))
        kinds = st.sampled_from(["f8", "f4", "i8", "u1", "U3", "S2", "c16", "M8[s]", found["history"].dtype])
        shapes = st.lists(st.integers(0, 3), max_size=3)
        other = np.zeros(data.draw(shapes), data.draw(kinds))
        kept.write_bytes(forged(settings, {**found, name: other}))
        read = tried("forged checkpoint", lambda: checkpoint.load(kept, SETTINGS, state), ValueError)
        alike = other.dtype == found[name].dtype and other.ndim == found[name].ndim
        assert read is None or (alike and (name == "history" or other.shape == found[name].shape))


# --- A sweep's folder ---

JOB = Config(test_steps=(0, 1)), 3
ROW = {"steps": 0, "mse": 1.5, "median": 1.0, "ci95": None, "diverged": 0}
RECORD = {"config": asdict(JOB[0]), "seed": JOB[1], "curve": [ROW, {**ROW, "steps": 1}], "seconds": 1.0}


@fuzzed
@given(st.data())
def test_a_sweeps_record_is_refused_or_stands_in_the_table(data):
    """Half of them have the checksum of what they say now."""
    record = data.draw(spoilt(json.dumps(RECORD).encode()))
    if data.draw(st.booleans()):
        record = sealed(record.decode(errors="replace")).encode(errors="replace")
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


# Where the work of the commands begins: a folder to write into, and two that work before.
WORK = [(files, "writable"), (sweep.experiment, "sweep"), (geometry.quadratics, "recorded")]
DRAWN = functools.cache(lambda: glyphs(14, 0, 60))
WORD = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "-", "--", "-1", "0", "1", "2", "nan", "inf", "1e400", "9" * 5000, "0-9999999999", "4-0"])
    | st.sampled_from(["0--1", "maml", "all", "adam:0.1:linear", "sgd:", ":", ",", "1,2,", "8,8", "\0", "\ud800", "/"])
    | st.sampled_from(
        ["omniglot", "folder", "glyphs", "sine", "refmeta:maml", "'", "list", "show", "--help", "1000000000000"]
    ),
).filter(lambda word: not word.startswith("/") and ".." not in word)  # nothing is to be written outside


@functools.cache
def options_of(name):
    """Every option of a command, as its parser has them."""
    with pytest.MonkeyPatch.context() as patch:
        seen = {}

        def look(parser, *_):
            seen.update(parser._subparsers._group_actions[0].choices)
            raise Reached

        patch.setattr(argparse.ArgumentParser, "parse_known_args", look)
        with pytest.raises(Reached):
            main([])
    return [(option, action.nargs == 0) for action in seen[name]._actions for option in action.option_strings]


COMMANDS = ["sine", "fewshot", "geometry", "reuse", "sweep"]


@st.composite
def command_lines(draw, name):
    words = []
    for option, flag in draw(st.lists(st.sampled_from(options_of(name)), max_size=3)):
        words.append(option if flag else f"{option}={draw(WORD)}")
    return [name, *words]


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
        for module, function in WORK:
            patch.setattr(module, function, work)
        patch.setattr(fewshot.experiment, "glyphs", lambda size: DRAWN())
        tried(f"refmeta {name}", run, Refused)


@fuzzed
@given(WORD)
def test_a_folder_for_results_is_refused_or_made_and_empty(wanted):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = tried("--out", lambda: new_folder(wanted, "runs"), ValueError)
        assert made is None or (made.resolve().is_relative_to(Path(folder).resolve()) and not any(made.iterdir()))
