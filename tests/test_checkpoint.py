"""Runs that survive: whatever stops a training, and whenever, it goes on to the same bytes."""

import errno
import json
import os
import pickle
import struct
import sys
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from refmeta import anil, maml, recorded, reptile, stacked
from refmeta.lab import Diverged, Interrupted, adam, checkpoint, files, linear, sgd, sine, train
from refmeta.lab.checkpoint import load, save
from refmeta.lab.training import State
from refmeta.models import MLP, squared_error

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


def refused(kept, data):
    path = kept[0]
    path.write_bytes(data)
    with pytest.raises(ValueError, match="^" + str(path)) as caught:
        load(*kept)
    return str(caught.value)


def test_a_checkpoint_cut_short_anywhere_is_refused(kept):
    data = kept[0].read_bytes()
    assert bits(load(*kept))  # whole, it is not
    for length in range(len(data)):
        message = refused(kept, data[:length])
        assert ("cut short" in message) == (length >= len(b"refmeta-checkpoint 1"))
    assert "damaged" in refused(kept, data + b"\0")


@given(st.data())
def test_a_checkpoint_with_a_wrong_byte_anywhere_is_refused(tmp_path_factory, data):
    theta = [np.ones((2, 2))]
    kept = tmp_path_factory.mktemp("kept") / "checkpoint", SETTINGS, state_of(theta, "adam")
    save(kept[0], SETTINGS, kept[2])
    whole = bytearray(kept[0].read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    refused(kept, bytes(whole))


def forged(head, raw):
    """With the right checksum."""
    rest = (head if isinstance(head, bytes) else json.dumps(head).encode()) + b"\n" + raw
    return b"refmeta-checkpoint 1 " + sha256(rest).hexdigest().encode() + b"\n" + rest


def parts(kept):
    _, head, raw = kept[0].read_bytes().split(b"\n", 2)
    return json.loads(head), raw


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
)


@given(data=st.data())
def test_a_hostile_header_is_refused_whatever_it_says(tmp_path_factory, data):
    theta = [np.ones((2, 2))]
    kept = tmp_path_factory.mktemp("kept") / "checkpoint", SETTINGS, state_of(theta, "adam")
    save(kept[0], SETTINGS, kept[2])
    head, raw = parts(kept)
    where = data.draw(st.sampled_from(["all", "settings", "arrays", "form", "dtype", "side", "alpha"]))
    lie = data.draw(ANY)
    target, key = {
        "all": ([head], 0),
        "settings": (head, "settings"),
        "arrays": (head, "arrays"),
        "form": (head["arrays"], 1),
        "dtype": (head["arrays"][1], 0),
        "side": (head["arrays"][1][1], 0),
        "alpha": (head["settings"], "alpha"),
    }[where]
    if target[key] != lie:
        target[key] = lie
        refused(kept, forged(lie if where == "all" else head, raw))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda head, raw: (b"[" * 100_000, raw), "second line"),
        (lambda head, raw: (b"\xff\xfe", raw), "second line"),
        (lambda head, raw: ({**head, "settings": {}}, raw), "method: None in the checkpoint, 'maml' now"),
        (lambda head, raw: (head, raw + bytes(16)), "its arrays are not those"),
        (lambda head, raw: (head, raw + bytes(5)), "its arrays are not those"),
        (lambda head, raw: (head, raw[:-1]), "its arrays are not those"),
        (
            lambda head, raw: ({**head, "arrays": [*head["arrays"][:-2], ["<i8", [-1]], ["<f8", [-1]]]}, raw[:-48]),
            "its arrays are not those",
        ),
        (lambda head, raw: (head, b""), "its arrays are not those"),
        (lambda head, raw: ({**head, "arrays": [["|O", [2, 3]], *head["arrays"][1:]]}, raw), "its arrays are not"),
        (lambda head, raw: ({**head, "arrays": [*head["arrays"][:-1], ["<f8", [10**15]]]}, raw), "its arrays are not"),
    ],
)
def test_a_forged_checkpoint_is_refused(change, message, kept):
    assert message in refused(kept, forged(*change(*parts(kept))))


def test_a_header_too_deep_for_python_is_refused(kept):
    head, raw = parts(kept)
    nested = json.dumps(head).replace("0.01", "%s%s")
    for depth in range(50, 1100, 10):
        refused(kept, forged((nested % ("[" * depth, "]" * depth)).encode(), raw))


def test_other_files_and_newer_versions_are_refused_by_name(kept):
    data = kept[0].read_bytes()
    assert "not a checkpoint" in refused(kept, b"PK\x03\x04" + data)
    assert "not a checkpoint" in refused(kept, b"")
    assert "version b'2' of a checkpoint; this refmeta reads b'1'" in refused(
        kept, data.replace(b"point 1 ", b"point 2 ", 1)
    )


def test_each_setting_that_differs_is_named(kept, monkeypatch):
    path, _, like = kept
    other = {**SETTINGS, "alpha": 0.02, "widths": (1, 9, 1)}
    with pytest.raises(ValueError) as caught:
        load(path, other, like)
    assert str(caught.value) == (
        f"{path}: other settings: alpha: 0.01 in the checkpoint, 0.02 now; "
        "widths: [1, 8, 1] in the checkpoint, [1, 9, 1] now"
    )
    monkeypatch.setattr(checkpoint, "versions", lambda: {**files.versions(), "python": "9.9"})
    assert load(*kept)  # of which nothing depends
    monkeypatch.setattr(checkpoint, "versions", lambda: {**files.versions(), "numpy": "9.9"})
    with pytest.raises(ValueError, match=f"numpy: '{np.__version__}' in the checkpoint, '9.9' now"):
        load(*kept)


@pytest.mark.parametrize("theta, outer", [([np.ones((3, 2)), np.ones(3)], "adam"), ([np.ones((2, 3))], "sgd")])
def test_other_arrays_than_the_networks_and_the_optimisers_are_refused(theta, outer, kept):
    path = kept[0]
    save(path, SETTINGS, state_of(theta, outer))
    with pytest.raises(ValueError, match=f"{path}: its arrays are not those of these settings"):
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
LAW = sine.LAWS["finn"]


def waves(rng):
    return [LAW.train(rng, LAW.wave(rng), 5, 3) for _ in range(2)]


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("algorithm", [maml, reptile, anil])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(algorithm, outer, tmp_path):
    def trained(**how):
        seen = []
        run = recorded(stacked(algorithm)), LOSS, THETA, waves, 0.02, 8, OUTER[outer]
        return train(*run, every=1, keep=seen.append, **how), seen

    done, states = trained()
    assert [state.iteration for state in states] == list(range(1, 9))
    for k, state in enumerate(states, start=1):
        save(tmp_path / "checkpoint", SETTINGS, state)
        again, rest = trained(start=load(tmp_path / "checkpoint", SETTINGS, state_of(THETA, outer)))
        assert bits(again) == bits(done) and bits(rest) == bits(states[k:])


def test_a_state_is_kept_every_so_often_and_at_the_end(example):
    loss, theta, tasks, alpha = example
    seen = []
    train(maml, loss, theta, lambda rng: tasks, alpha, 7, every=3, keep=seen.append)
    assert [state.iteration for state in seen] == [3, 6, 7]
    train(maml, loss, theta, lambda rng: tasks, alpha, 7, keep=lambda state: pytest.fail("not asked for"))


def test_ctrl_c_between_any_two_lines_keeps_a_state_to_go_on_from():
    """A KeyboardInterrupt at every line that `train` runs, one after the other."""

    def loss(theta, batch):
        return ((theta[0] - batch[0]) ** 2).sum()

    def sample(rng):
        return [([], (rng.normal(size=2), np.zeros(2)))]

    def joint(loss, theta, tasks, alpha):
        return [2 * (theta[0] - x) for _, (x, _) in tasks]

    def trained(**how):
        return train(joint, loss, [np.ones(2)], sample, 0.1, 3, OUTER["adam"], **how)

    def interrupted(at):
        """What was kept when Ctrl-C came `at` so many lines; None if it came too late."""
        seen, lines = [], 0

        def trace(frame, event, argument):
            nonlocal lines
            if frame.f_code is not train.__code__:
                return None
            lines += event == "line"
            if event == "line" and lines == at:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            trained(every=9, keep=seen.append)
        except KeyboardInterrupt:
            return seen
        finally:
            sys.settrace(before)

    done, at = trained(), 0
    counts = set()
    while (seen := interrupted(at := at + 1)) is not None:
        counts.add(seen[-1].iteration if seen else 0)
        assert bits(trained(start=seen[-1] if seen else None)) == bits(done)
    assert counts == {0, 1, 2, 3} and at > 40


def test_a_start_beyond_the_end_is_refused(example):
    loss, theta, tasks, alpha = example
    with pytest.raises(ValueError, match="start: expected a state after 0 … 5 iterations, got one after 6"):
        train(maml, loss, theta, lambda rng: tasks, alpha, 5, start=State(6, theta, None, []))


@pytest.mark.parametrize("kind", [Diverged, Interrupted])
def test_what_ends_a_training_early_comes_through_a_pickle(kind):
    error = pickle.loads(pickle.dumps(kind(3, [np.ones(2)])))
    assert str(error) == str(kind(3, [])) and error.iteration == 3 and error.theta[0].tolist() == [1, 1]
