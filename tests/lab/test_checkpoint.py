"""Runs that survive: whatever stops a training, and whenever, it goes on to the same bytes."""

import errno
import fcntl
import io
import itertools
import json
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from refmeta import anil, maml, recorded, reptile, stacked
from refmeta.__main__ import main
from refmeta.lab import Diverged, Interrupted, adam, files, linear, sgd, train, training
from refmeta.lab.checkpoint import load, save
from refmeta.lab.fewshot import experiment as fewshot
from refmeta.lab.files import CHECKPOINT, locked, of_runs
from refmeta.lab.sine.waves import LAWS
from refmeta.lab.training import METHODS, Checkpoint, State
from refmeta.models import MLP, squared_error

checkpoints = partial(of_runs, names=CHECKPOINT)
SETTINGS = {"method": "maml", "alpha": 0.01, "widths": (1, 8, 1)}
OUTER = {"adam": adam(3e-3), "sgd": sgd(linear(0.5, 8))}


def bits(tree):
    """All there is to know of nested lists, tuples, numbers and arrays."""
    if isinstance(tree, (list, tuple)):
        return type(tree).__name__, [bits(item) for item in tree]
    if isinstance(tree, np.ndarray):
        return tree.dtype.str, tree.shape, tree.tobytes(), tree.flags.writeable
    return type(tree).__name__, struct.pack("d", tree)


# --- The file ---


def state_of(theta, outer, iteration=3, history=((0, 1.5),)):
    return State(iteration, theta, OUTER[outer](theta, theta)[1], list(history))


def of(dtype):
    """Arrays of any bits."""
    wide = st.integers(0, 2**64 - 1).map(lambda n: np.uint64(n).view("f8"))
    narrow = st.integers(0, 2**32 - 1).map(lambda n: np.uint32(n).view("f4"))
    return lambda shape: arrays(dtype, shape, elements=wide if dtype == "f8" else narrow, fill=st.nothing())


@st.composite
def states(draw):
    """Any state of an optimiser, and another of the same arrays."""
    dtype = draw(st.sampled_from(["f4", "f8"]))
    shapes = draw(st.lists(array_shapes(max_dims=3, min_side=0, max_side=3) | st.just(()), min_size=1, max_size=3))
    leaves = st.tuples(*map(of(dtype), shapes)).map(list)
    history = draw(st.lists(st.tuples(st.integers(0, 2**62), st.floats() | st.just(float("inf"))), max_size=5))
    t = draw(st.integers(1, 2**62))
    outer = draw(st.sampled_from([t, (t, draw(leaves), draw(leaves))]))
    zeros = [np.zeros(shape, dtype) for shape in shapes]
    like = State(0, zeros, 0 if isinstance(outer, int) else (0, zeros, zeros), [])
    return State(draw(st.integers(0, 2**62)), draw(leaves), outer, history), like


@given(states())
def test_any_state_comes_back_bit_for_bit(tmp_path_factory, pair):
    state, like = pair
    path = tmp_path_factory.mktemp("kept") / "checkpoint"
    save(path, SETTINGS, state)
    assert bits(load(path, SETTINGS, like)) == bits(state)


@pytest.fixture
def kept(tmp_path):
    """A checkpoint, and what `load` needs to know of it."""
    theta = [np.arange(6.0).reshape(2, 3), np.ones(3)]
    save(tmp_path / "checkpoint", SETTINGS, state_of(theta, "adam", history=[(0, 2.5), (1, float("inf"))]))
    return tmp_path / "checkpoint", SETTINGS, state_of(theta, "adam")


def put(path, data):
    """In a new file: a disk waits for the bytes of one that is written over."""
    path.unlink()
    path.write_bytes(data)


def refused(kept, data):
    path = kept[0]
    put(path, data)
    with pytest.raises(ValueError, match="^" + str(path)) as caught:
        load(*kept)
    return str(caught.value)


def test_a_checkpoint_cut_short_anywhere_is_refused(kept):
    data = kept[0].read_bytes()
    assert bits(load(*kept))  # whole, it is not
    for length in range(len(data)):
        message = refused(kept, data[:length])
        assert message.endswith(("damaged or cut short; remove it, and its run starts again", "not a checkpoint"))
        assert ("cut short" in message) == (length >= 2)


def same_or_refused(kept, data, state):
    """Whether it is refused; where it is not, nothing of the state has changed."""
    put(kept[0], data)
    try:
        read = load(*kept)
    except ValueError as error:
        assert str(error).startswith(str(kept[0]))
        return True
    assert bits(read) == bits(state)
    return False


def test_a_checkpoint_with_a_wrong_bit_anywhere_is_refused_or_the_same(tmp_path):
    state = state_of([np.array([1.5])], "sgd")
    kept = tmp_path / "checkpoint", {}, state
    save(*kept)
    whole, lost = kept[0].read_bytes(), 0
    for i, byte in enumerate(whole):
        for bit in range(8):
            lost += same_or_refused(kept, whole[:i] + bytes([byte ^ 1 << bit]) + whole[i + 1 :], state)
    assert lost > 0.7 * 8 * len(whole)  # the others are flags, dates and the like, that nobody reads


@given(st.data())
def test_a_checkpoint_with_a_wrong_byte_or_more_bytes_is_refused_or_the_same(tmp_path_factory, data):
    state = state_of([np.ones((2, 2))], "adam")
    kept = tmp_path_factory.mktemp("kept") / "checkpoint", SETTINGS, state
    save(*kept)
    whole = bytearray(kept[0].read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    same_or_refused(kept, bytes(whole) + data.draw(st.binary(max_size=5)), state)


def parts(kept):
    """The settings and the arrays of a checkpoint."""
    with np.load(kept[0]) as archive:
        found = dict(archive)
    return json.loads(found.pop("settings").item()), found


def forged(settings, found, write=np.savez):
    """With the right checksums."""
    file = io.BytesIO()
    said = settings if isinstance(settings, (bytes, str, np.ndarray)) else json.dumps(settings)
    write(file, settings=said, **found)
    return file.getvalue()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
)


@given(lie=ANY, name=st.sampled_from(["", "method", "alpha", "widths", "numpy", "checkpoint"]))
def test_hostile_settings_are_refused_whatever_they_say(tmp_path_factory, lie, name):
    kept = tmp_path_factory.mktemp("kept") / "checkpoint", SETTINGS, state_of([np.ones((2, 2))], "adam")
    save(*kept)
    settings, found = parts(kept)
    wrong = {**settings, name: lie} if name else lie
    if json.dumps(wrong) != json.dumps(settings):
        refused(kept, forged(wrong, found))


DAMAGED, OTHERS = "damaged or cut short", "its arrays do not fit these settings"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda settings, found: ("[" * 100_000, found), DAMAGED),
        (lambda settings, found: (b"\xff\xfe", found), DAMAGED),
        (lambda settings, found: ("3", found), DAMAGED),
        (lambda settings, found: (np.array([{}], object), found), DAMAGED),  # a pickle
        (lambda settings, found: (settings, {**found, "0": np.array(None)}), DAMAGED),
        (lambda settings, found: ({}, found), "method: None in the checkpoint, 'maml' now"),
        (lambda settings, found: ({**settings, "more": 1}, found), "more: 1 in the checkpoint, None now"),
        (lambda settings, found: (settings, {k: v for k, v in found.items() if k != "history"}), DAMAGED),
        (lambda settings, found: (settings, {k: v for k, v in found.items() if k != "3"}), OTHERS),
        (lambda settings, found: (settings, {**found, "1": found["1"].T}), OTHERS),
        (lambda settings, found: (settings, {**found, "1": found["1"].astype("f4")}), OTHERS),
        (lambda settings, found: (settings, {**found, "0": np.array(3.0)}), OTHERS),
        (lambda settings, found: (settings, {**found, "history": found["history"][0]}), OTHERS),
        (lambda settings, found: (settings, {**found, "history": found["history"][None]}), OTHERS),
        (lambda settings, found: (settings, {**found, "history": found["history"]["loss"]}), OTHERS),
    ],
)
def test_a_forged_checkpoint_is_refused(change, message, kept):
    assert message in refused(kept, forged(*change(*parts(kept))))


def test_settings_too_deep_for_python_are_refused(kept):
    settings, found = parts(kept)
    nested = json.dumps(settings).replace("0.01", "%s%s")
    for depth in range(50, 1100, 10):
        refused(kept, forged(nested % ("[" * depth, "]" * depth), found))


def most_memory_of_refusing(kept):
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged or cut short"):
        load(*kept)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_a_checkpoint_longer_than_its_settings_can_make_it_is_not_read_to_the_end(kept):
    with open(kept[0], "ab") as file:
        file.truncate(2**36)
    assert most_memory_of_refusing(kept) < 2**23


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_not_unpacked(kept):
    settings, found = parts(kept)
    kept[0].write_bytes(forged(settings, {**found, "1": np.zeros(2**25)}, np.savez_compressed))
    assert kept[0].stat().st_size < 2**20 and most_memory_of_refusing(kept) < 2**23


def test_only_a_file_is_a_checkpoint(tmp_path):
    (tmp_path / "maml-0").mkdir()
    os.mkfifo(tmp_path / "maml-0/checkpoint")
    (tmp_path / "checkpoint").mkdir()
    assert checkpoints(tmp_path) == set()


def test_other_files_and_other_versions_are_refused_by_name(kept):
    settings, found = parts(kept)
    assert refused(kept, b"").endswith("not a checkpoint")
    assert refused(kept, b"\x93NUMPY" + kept[0].read_bytes()).endswith("not a checkpoint")
    old = b'refmeta-checkpoint 1 5bf8\n{"settings": {}, "arrays": []}\n'
    assert refused(kept, old).endswith("version 1 of a checkpoint; this refmeta reads 2")
    newer = refused(kept, forged({**settings, "checkpoint": 3}, found))
    assert newer.endswith("other settings: checkpoint: 3 in the checkpoint, 2 now")


def test_each_setting_that_differs_is_named_and_every_version_but_pythons_is_a_setting(kept):
    path, _, like = kept
    settings, found = parts(kept)
    made = {name: number for name, number in files.versions().items() if name != "python"}
    assert settings == {"checkpoint": 2, **made, **SETTINGS, "widths": [1, 8, 1]}
    other = {**SETTINGS, "alpha": 0.02, "widths": (1, 9, 1)}
    with pytest.raises(ValueError) as caught:
        load(path, other, like)
    assert str(caught.value) == (
        f"{path}: other settings: alpha: 0.01 in the checkpoint, 0.02 now; "
        "widths: [1, 8, 1] in the checkpoint, [1, 9, 1] now"
    )
    message = refused(kept, forged({**settings, "numpy": "0.9"}, found))
    assert message.endswith(f"other settings: numpy: '0.9' in the checkpoint, '{np.__version__}' now")


@pytest.mark.parametrize("theta, outer", [([np.ones((3, 2)), np.ones(3)], "adam"), ([np.ones((2, 3))], "sgd")])
def test_other_arrays_than_the_networks_and_the_optimisers_are_refused(theta, outer, kept):
    path = kept[0]
    save(path, SETTINGS, state_of(theta, outer))
    with pytest.raises(ValueError, match=f"{path}: its arrays do not fit these settings"):
        load(*kept)


def test_what_is_no_number_is_not_kept(tmp_path):
    with pytest.raises(TypeError, match="an optimiser's state: expected numbers and arrays, got None"):
        save(tmp_path / "checkpoint", SETTINGS, State(1, [np.ones(2)], None, []))
    assert not list(tmp_path.iterdir())


class Full:
    """A file on a disk that is full after ten bytes."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(kept, monkeypatch):
    path, _, like = kept
    before = path.read_bytes()
    monkeypatch.setattr(files, "open", lambda *args: Full(open(*args)), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        save(path, SETTINGS, like)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_the_bytes_are_on_the_disk_before_the_name(kept, monkeypatch):
    path, _, like = kept
    order = []
    for name in ("fsync", "replace"):
        whole = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, whole=whole: (order.append(name), whole(*args)))
    save(path, SETTINGS, like)
    assert order == ["fsync", "replace"]


# --- Training ---

NET = MLP((1, 8, 1), activation="tanh")
LOSS = squared_error(NET)
THETA = NET.init(np.random.default_rng(0))
LAW = LAWS["finn"]


def waves(rng):
    return LAW.train(rng, 2, 5, 3)


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("algorithm", [maml, reptile, anil])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(algorithm, outer, tmp_path):
    def trained(start=None):
        seen = []
        run = recorded(stacked(algorithm)), LOSS, THETA, waves, 0.02, 8, OUTER[outer]
        return train(*run, checkpoint=Checkpoint(1, seen.append, start)), seen

    done, states = trained()
    assert [state.iteration for state in states] == list(range(1, 9))
    for k, state in enumerate(states, start=1):
        save(tmp_path / "checkpoint", SETTINGS, state)
        again, rest = trained(load(tmp_path / "checkpoint", SETTINGS, state_of(THETA, outer)))
        assert bits(again) == bits(done) and bits(rest) == bits(states[k:])


def test_a_state_is_kept_every_so_often_and_at_the_end(example):
    loss, theta, tasks, alpha = example
    seen = []
    train(maml, loss, theta, lambda rng: tasks, alpha, 7, checkpoint=Checkpoint(3, seen.append))
    assert [state.iteration for state in seen] == [3, 6, 7]
    train(
        maml,
        loss,
        theta,
        lambda rng: tasks,
        alpha,
        7,
        checkpoint=Checkpoint(0, lambda state: pytest.fail("not asked for")),
    )


def test_ctrl_c_between_any_two_lines_keeps_a_state_to_go_on_from():
    """A KeyboardInterrupt at every line of refmeta.lab.training that `train` runs, one after the other."""

    def loss(theta, batch):
        return ((theta[0] - batch[0]) ** 2).sum()

    def sample(rng):
        return [([], (rng.normal(size=2), np.zeros(2)))]

    def joint(loss, theta, tasks, alpha):
        return [2 * (theta[0] - x) for _, (x, _) in tasks]

    def trained(*checkpoint):
        return train(joint, loss, [np.ones(2)], sample, 0.1, 3, OUTER["adam"], checkpoint=Checkpoint(*checkpoint))

    def interrupted(at):
        """What was kept when Ctrl-C came `at` so many lines; None if it came too late."""
        seen, lines = [], 0

        def trace(frame, event, argument):
            nonlocal lines
            if frame.f_code.co_filename != training.__file__:
                return None
            lines += event == "line"
            if event == "line" and lines == at:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            trained(9, seen.append)
        except KeyboardInterrupt:
            return seen
        finally:
            sys.settrace(before)

    done, at = trained(), 0
    counts = set()
    while (seen := interrupted(at := at + 1)) is not None:
        counts.add(seen[-1].iteration if seen else 0)
        assert bits(trained(0, None, seen[-1] if seen else None)) == bits(done)
    assert counts == {0, 1, 2, 3} and at > 40


def test_a_start_beyond_the_end_is_refused(example):
    loss, theta, tasks, alpha = example
    with pytest.raises(ValueError, match="iterations: expected at least 6, which are done already; got 5"):
        train(maml, loss, theta, lambda rng: tasks, alpha, 5, checkpoint=Checkpoint(start=State(6, theta, None, [])))


@pytest.mark.parametrize("kind", [Diverged, Interrupted])
def test_what_ends_a_training_early_comes_through_a_pickle(kind):
    error = pickle.loads(pickle.dumps(kind(3, [np.ones(2)])))
    assert str(error) == str(kind(3, [])) and error.iteration == 3 and error.theta[0].tolist() == [1, 1]


# --- Commands that are killed ---

SMALL = ["sine", "--quick", "--iterations", "120", "--tasks", "3"]
KILLS = 10  # of each of two chains
# The command without figures and with few test tasks, as the fixture no_figures has it.
BARE = """
import importlib.util, sys
whole = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "matplotlib" else whole(name)
from refmeta.__main__ import main
from refmeta.lab.fewshot import experiment as fewshot
from refmeta.lab.sine import experiment as sine
fewshot.QUICKLY["test_tasks"] = sine.QUICKLY["test_tasks"] = 10
sys.exit(main())
"""


def command(*arguments, **how):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", BARE, *map(str, arguments)], **{**quiet, **how})


def left(folder):
    """What a command leaves, but for how long it took and its checkpoints."""
    found = {}
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            result = json.loads(path.read_text())
            del result["seconds"]
            found[str(path.relative_to(folder))] = result
        elif path.is_file() and path.name != "checkpoint":
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same, never stopped, and nothing kept."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert command(*SMALL, "--out", folder).wait() == 0
    return left(folder)


@pytest.mark.parametrize("every, seed", [(1, 1), (7, 2)])
def test_killed_again_and_again_it_ends_with_the_same_bytes(every, seed, whole, tmp_path):
    folders = (tmp_path / str(i) for i in itertools.count())
    out, rng, kills = next(folders), random.Random(seed), 0

    def written():
        return {path: path.stat().st_mtime_ns for path in checkpoints(out)}

    while kills < KILLS or out.exists():
        before = written()
        process = command(*SMALL, "--checkpoint-every", every, "--resume" if before else "--out", out)
        if kills < KILLS:
            if kills % 5:  # else anywhere, from the first import on
                while written() == before and process.poll() is None:
                    time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1 if kills % 5 else 1))
            process.kill()
        if process.wait() == 0:
            assert left(out) == whole
            out = next(folders)
        else:
            assert process.returncode == -signal.SIGKILL
            kills += 1


def test_ctrl_c_says_how_to_go_on_to_the_same_bytes(whole, tmp_path):
    pytest.importorskip("tqdm", reason="its bar says when training has begun")
    out, seen = tmp_path / "out", b""
    process = command(*SMALL, "--checkpoint-every", 10**6, "--out", out, stderr=subprocess.PIPE)
    while seen.count(b"loss") < 2:  # the bar is first drawn before there is anything to keep
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    rest = process.communicate()[1].decode()
    assert process.returncode == 130
    assert "interrupted" in rest and f"to go on, the same command with --resume {out}\n" in rest
    assert command(*SMALL, "--resume", out).wait() == 0
    assert left(out) == whole


def test_of_two_commands_into_one_folder_the_second_is_refused(tmp_path):
    pair = [command(*SMALL, "--out", tmp_path / "out", stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in pair]
    assert sorted(process.returncode for process in pair) == [0, 2]
    assert f"{tmp_path}/out: " in "".join(said)


@pytest.mark.usefixtures("no_figures")
def test_a_disk_that_takes_no_more_ends_it_and_leaves_the_last_checkpoint(tmp_path):
    out = tmp_path / "out"
    assert main([*SMALL, "--checkpoint-every", "50", "--out", str(out)]) == 0
    before = left(out), (out / "checkpoint").read_bytes()

    def refused(*where):
        limited = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (20_000, 20_000)){BARE}"
        done = subprocess.run([sys.executable, "-c", limited, *map(str, [*SMALL, *where])], capture_output=True)
        return done.returncode, done.stderr.decode()

    fresh = tmp_path / "fresh"
    code, said = refused("--checkpoint-every", 50, "--out", fresh)
    assert code == 1 and f"File too large: '{fresh}/checkpoint'" in said and not list(fresh.iterdir())
    (out / "joint-0/checkpoint").unlink()
    code, said = refused("--resume", out)
    assert code == 1 and f"File too large: '{out}/joint-0/checkpoint'" in said
    assert (left(out), (out / "checkpoint").read_bytes()) == before


# --- Commands, in this process ---

FAST = ["sine", "--quick", "--iterations", "12", "--tasks", "3"]


@pytest.fixture
def interrupt(monkeypatch):
    """Ctrl-C in place of the nth file that is put in its place: a checkpoint, a θ, or a result."""
    whole, calls = os.replace, itertools.count(1)

    def set_up(nth):
        def replace(*paths):
            if next(calls) == nth:
                raise KeyboardInterrupt
            whole(*paths)

        monkeypatch.setattr(os, "replace", replace)

    return set_up


@pytest.mark.usefixtures("no_figures")
def test_several_runs_go_on_where_they_were_and_the_missing_ones_start(tmp_path, interrupt, capsys):
    several = [*FAST, "--seeds", "0-1"]
    assert main([*several, "--out", str(tmp_path / "whole")]) == 0
    table, out = capsys.readouterr().out, tmp_path / "out"
    interrupt(14)  # five files for each run: maml and joint of seed 0 are done, maml of seed 1 is trained
    assert main([*several, "--checkpoint-every", "5", "--out", str(out)]) == 130
    assert capsys.readouterr().err.endswith(
        f"refmeta sine: interrupted; to go on, the same command with --resume {out}\n"
    )
    assert {path.parent.name for path in checkpoints(out)} == {"maml-0", "joint-0", "maml-1"}
    assert not (out / "maml-1/theta.npz").exists()
    (out / "maml-1/.checkpoint.99.refmeta.part").write_bytes(b"half a file of a process that was killed")
    assert main([*several, "--resume", str(out)]) == 0
    assert left(out) == left(tmp_path / "whole")
    assert capsys.readouterr().out == table.replace(str(tmp_path / "whole"), str(out))


@pytest.mark.usefixtures("no_figures")
def test_a_finished_command_resumed_only_tests_again(tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    assert main([*FAST, "--checkpoint-every", "5", "--out", out]) == 0
    before = left(tmp_path)

    def untrained(loss, theta, tasks, alpha):
        pytest.fail("it was trained again")

    for name in ("maml", "joint"):
        monkeypatch.setitem(METHODS, name, METHODS[name]._replace(algorithm=untrained))
    assert main([*FAST, "--resume", out]) == 0
    assert left(tmp_path) == before


@pytest.mark.usefixtures("no_figures")
def test_few_shot_runs_survive_too_and_other_images_are_other_settings(tmp_path, interrupt, capsys):
    small, out = ["fewshot", "--quick", "--filters", "4", "--iterations", "6", "--tasks", "2"], tmp_path / "out"
    assert main([*small, "--out", str(tmp_path / "whole")]) == 0
    interrupt(2)
    assert main([*small, "--checkpoint-every", "2", "--out", str(out)]) == 130
    assert re.search("interrupted at iteration [34]; ", capsys.readouterr().err)
    assert main([*small, "--seed", "1", "--resume", str(out)]) == 2
    assert "seed: 0 in the checkpoint, 1 now" in capsys.readouterr().err
    kept, whole = out / "checkpoint", (out / "checkpoint").read_bytes()
    settings, found = parts([kept])
    kept.write_bytes(forged({**settings, "images": "another folder's"}, found))
    assert main([*small, "--resume", str(out)]) == 2
    assert "images: \"another folder's\" in the checkpoint, '" in capsys.readouterr().err
    kept.write_bytes(whole)
    assert main([*small, "--resume", str(out)]) == 0
    assert left(out) == left(tmp_path / "whole")


@pytest.mark.parametrize(
    "data, nth",  # six files for each training, of which five are checkpoints
    [
        ("sine", 25),  # all are trained and measured
        ("sine", 14),  # seed 1's MAML is under way
        ("glyphs", 20),  # seed 0's classifier of all classes is
    ],
)
@pytest.mark.usefixtures("no_figures")
def test_the_trainings_of_a_study_survive_too(data, nth, tmp_path, interrupt, capsys, monkeypatch):
    monkeypatch.setitem(fewshot.QUICKLY, "filters", (4,))
    small = ["reuse", "--quick", "--data", data, "--iterations", "9"]
    assert main([*small, "--out", str(tmp_path / "whole")]) == 0
    interrupt(nth)
    assert main([*small, "--checkpoint-every", "2", "--out", str(tmp_path / "out")]) == 130
    assert f"with --resume {tmp_path / 'out'}" in capsys.readouterr().err
    kept = {path.parent.name for path in checkpoints(tmp_path / "out")}
    every = {f"{method}-{seed}" for method in ("maml", "anil", "multitask", "multiclass") for seed in (0, 1)}
    assert len(kept) == -(-(nth - 1) // 6) and kept < every
    assert main([*small, "--resume", str(tmp_path / "out")]) == 0
    assert left(tmp_path / "out") == left(tmp_path / "whole")


@pytest.mark.usefixtures("no_figures")
def test_a_resumed_run_shows_how_far_it_had_come(tmp_path, capsys):
    pytest.importorskip("tqdm", reason="it draws the bar")
    assert main([*FAST, "--checkpoint-every", "5", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main([*FAST, "--resume", str(tmp_path)]) == 0
    assert "12/12" in capsys.readouterr().err


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a finished run, with its checkpoints."""
    out = tmp_path_factory.mktemp("stopped")
    assert command(*FAST, "--checkpoint-every", "5", "--out", out).wait() == 0
    return out


@pytest.mark.parametrize(
    "change, message",
    [
        (["--alpha", "0.02"], "alpha: 0.01 in the checkpoint, 0.02 now"),
        (["--seed", "1"], "joint-0/checkpoint is of another run; repeat the options that it had"),
        (["--seeds", "0-1"], "checkpoint is of another run"),
        (["--method", "joint"], "joint-0/checkpoint is of another run"),
        (["--iterations", "13", "--outer", "sgd:0.1"], "outer: 'adam:0.001' in the checkpoint, 'sgd:0.1' now; iter"),
    ],
)
def test_another_command_is_refused_and_changes_nothing(change, message, stopped, capsys):
    before = left(stopped)
    assert main([*FAST, *change, "--resume", str(stopped)]) == 2
    assert message in capsys.readouterr().err and left(stopped) == before


@pytest.mark.usefixtures("no_figures")
def test_another_seed_in_the_same_place_is_another_run(tmp_path, capsys):
    assert main([*FAST, "--method", "joint", "--checkpoint-every", "5", "--out", str(tmp_path)]) == 0
    assert main([*FAST, "--method", "joint", "--seed", "1", "--resume", str(tmp_path)]) == 2
    assert "seed: 0 in the checkpoint, 1 now" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_a_damaged_checkpoint_is_refused_by_the_command(tmp_path, capsys):
    assert main([*FAST, "--checkpoint-every", "5", "--out", str(tmp_path)]) == 0
    path = tmp_path / "checkpoint"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert main([*FAST, "--resume", str(tmp_path)]) == 2
    assert f"{path}: damaged or cut short; remove it, and its run starts again" in capsys.readouterr().err
    if hasattr(os, "mkfifo"):
        other = tmp_path / "joint-0/checkpoint"
        path.write_bytes(whole)
        other.unlink()
        os.mkfifo(other)
        assert main([*FAST, "--resume", str(tmp_path)]) == 2
        assert f"{other}: expected a regular file" in capsys.readouterr().err


def test_a_folder_with_checkpoints_is_no_new_one(stopped, capsys):
    assert main([*FAST, "--out", str(stopped)]) == 2
    assert f"holds files already; --resume {stopped} goes on with its runs" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_killed_before_its_first_checkpoint_a_command_can_be_given_again(tmp_path):
    (tmp_path / "maml-0").mkdir()
    (tmp_path / "maml-0/.checkpoint.99.refmeta.part").write_bytes(b"half")
    assert main([*FAST, "--seeds", "0-1", "--out", str(tmp_path)]) == 0
    assert not list(tmp_path.rglob("*.part"))


def test_the_half_of_any_file_that_a_command_writes_is_known(tmp_path, monkeypatch):
    """Of every file that a process is killed over, even where it cannot clean up."""
    halves = set()

    def killed(source, target):
        halves.add(source.name)
        (tmp_path / source.name).write_bytes(source.read_bytes())
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", killed)
    assert main([*FAST, "--seeds", "0-1", "--checkpoint-every", "5", "--out", str(tmp_path / "out")]) == 0
    made = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name[1:].rsplit(".", 3)[0] for name in halves} == made
    assert {path.name for path in tmp_path.glob(".*")} == halves
    with locked(tmp_path):
        assert not list(tmp_path.glob(".*"))


FOREIGN = ".film.part", "deep/er/.film.part", ".film.99.part", "film.9.refmeta.part", "deep/er/.film.9.refmeta.part"


def test_the_parts_of_other_programs_are_files_like_any(tmp_path, capsys):
    for number, name in enumerate(FOREIGN):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_text("do not touch")
        out = tmp_path / str(number)
        assert main([*FAST, "--out", str(out)]) == 2
        assert f"--out {out}: holds files already" in capsys.readouterr().err
        assert path.read_text() == "do not touch"


class Figure:
    """What is asked of matplotlib's."""

    def savefig(self, file, format, **options):
        file.write(b"png" if format == "png" else "<defs>")


@pytest.mark.usefixtures("no_figures")
def test_no_planted_link_is_written_through(tmp_path):
    """The numbers of processes can be guessed, and so can the names of their files."""
    victim, out = tmp_path / "victim", tmp_path / "out"
    out.mkdir()
    victim.write_text("do not touch")

    def plant(name):
        (out / f".{name}.{os.getpid()}.refmeta.part").symlink_to(victim)

    for name in ("result.json", "theta.npz", "checkpoint"):
        plant(name)
    assert main([*FAST, "--checkpoint-every", "5", "--out", str(out)]) == 0
    for name in ("curves.png", "curves.svg", "theta.npz", "result.json"):  # while it runs
        plant(name)
    files.save_figure(out / "curves.png", Figure())
    files.save_theta(out / "theta.npz", ["W1"], THETA[:1])
    files.save_result(out / "result.json", {})
    assert victim.read_text() == "do not touch" and not [path for path in out.iterdir() if path.is_symlink()]
    assert (out / "curves.png").read_text() == "png"


def test_a_link_planted_in_the_last_moment_is_refused(tmp_path, monkeypatch):
    partial, victim = tmp_path / f".theta.npz.{os.getpid()}.refmeta.part", tmp_path / "victim"
    victim.write_text("do not touch")
    monkeypatch.setattr(type(tmp_path), "unlink", lambda path, missing_ok: None)
    partial.symlink_to(victim)
    with pytest.raises(OSError, match=f"exists: '{tmp_path}/theta.npz'"):
        files.save_theta(tmp_path / "theta.npz", ["W1"], THETA[:1])
    assert victim.read_text() == "do not touch"


# --- The lock ---


@pytest.mark.usefixtures("no_figures")
def test_a_locked_folder_is_refused_until_it_is_free(stopped, capsys):
    before = left(stopped)
    with locked(stopped):
        assert main([*FAST, "--resume", str(stopped)]) == 2
    assert f"{stopped}: another run is writing into it" in capsys.readouterr().err and left(stopped) == before
    assert main([*FAST, "--resume", str(stopped)]) == 0


def test_where_there_are_no_locks_it_runs_without(tmp_path, monkeypatch):
    def flock(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path), locked(tmp_path):
        pass
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        pass
