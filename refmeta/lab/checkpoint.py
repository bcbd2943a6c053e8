"""Training's State in one file, so that a run which was killed goes on to the same bytes. Line by line it is

    refmeta-checkpoint 1 SHA-256 of what follows
    {"settings": {name: value, …}, "arrays": [[dtype, shape], …]}
    the arrays' bytes, one after the other, little-endian, in C order

The arrays are those of iteration, θ and the optimiser's state, then the iterations and the losses of the history. Their
number, types and shapes follow from the settings; only the history's length is the file's to say, by its size.
"""

import json
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refmeta.lab.files import replace, versions
from refmeta.lab.optimisers import Step
from refmeta.lab.training import State
from refmeta.trees import Array, Theta

MAGIC, VERSION = b"refmeta-checkpoint", b"1"
LONGEST = 1 << 20  # bytes of settings and history, which are some thousand


class Keep(NamedTuple):
    """Where a run's checkpoint is, and after how many iterations each it is written."""

    path: Path
    every: int


def surviving(keep: Keep | None, settings: dict[str, Any], theta: Theta, outer: Step) -> dict[str, Any]:
    """`train`'s start, every and keep, of a training that begins with θ, or with the checkpoint if there is one.

    Errors: see `save` and `load`.
    """
    if keep is None:
        return {}
    keep.path.parent.mkdir(exist_ok=True)
    like = State(0, theta, outer(theta, [0 * leaf for leaf in theta])[1], [])
    start = load(keep.path, settings, like) if keep.path.exists() else None
    return {"start": start, "every": keep.every, "keep": partial(save, keep.path, settings)}


def save(path: Path, settings: dict[str, Any], state: State) -> None:
    """Put the state in the place of the last one. OSError: it could not be written, and the last one is still there."""
    leaves = list(_leaves([*state[:3], *_columns(state.history)]))
    head = json.dumps({"settings": _known(settings), "arrays": [_form(leaf) for leaf in leaves]}).encode()
    rest = b"\n".join([head, b"".join(leaf.tobytes() for leaf in leaves)])
    replace(path, lambda file: file.write(b" ".join([MAGIC, VERSION, _sum(rest)]) + b"\n" + rest))


def load(path: Path, settings: dict[str, Any], like: State) -> State:
    """The state that was saved, bit for bit; `like` is any other of the same θ and optimiser.

    ValueError: no checkpoint, a damaged one, one of another version of refmeta, of other settings, or of other arrays.
    """
    fixed = list(_leaves(list(like[:3])))
    size = sum(leaf.nbytes for leaf in fixed)
    with open(path, "rb") as file:  # what is longer than any of these settings is as good as damaged
        first, _, rest = file.read(size + LONGEST).partition(b"\n")
    magic, _, more = first.partition(b" ")
    version, _, checksum = more.partition(b" ")
    if magic != MAGIC:
        raise ValueError(f"{path}: not a checkpoint")
    if version != VERSION:
        raise ValueError(f"{path}: version {version!r:.9} of a checkpoint; this refmeta reads {VERSION!r}")
    if checksum != _sum(rest):
        raise ValueError(f"{path}: damaged or cut short; remove it, and its run starts anew")
    head, _, raw = rest.partition(b"\n")
    now = _known(settings)
    try:
        said = json.loads(head)
        was, forms = dict(said["settings"]), said["arrays"]
        changed = [
            f"{name}: {was.get(name)!r:.99} in the checkpoint, {now.get(name)!r:.99} now"
            for name in now | was
            if was.get(name) != now.get(name)
        ]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{path}: its second line is not that of a checkpoint") from None
    if changed:
        raise ValueError(f"{path}: other settings: {'; '.join(changed)}")
    reports, over = divmod(len(raw) - size, 16)
    expected = [*map(_form, fixed), ["<i8", [reports]], ["<f8", [reports]]]
    if over or reports < 0 or forms != expected:
        raise ValueError(f"{path}: its arrays are not those of these settings")
    *leaves, iterations, losses = _arrays(raw, expected)
    iteration, theta, outer = _rebuilt(list(like[:3]), iter(leaves))
    return State(iteration, theta, outer, list(zip(iterations.tolist(), losses.tolist(), strict=True)))


def _sum(data: bytes) -> bytes:
    return sha256(data).hexdigest().encode()


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """What the next iteration's bytes depend on, as JSON has it."""
    made = {name: number for name, number in versions().items() if name != "python"}
    known: dict[str, Any] = json.loads(json.dumps(made | settings))
    return known


def _columns(history: list[tuple[int, float]]) -> list[Array]:
    return [np.array([i for i, _ in history], np.int64), np.array([loss for _, loss in history], np.float64)]


def _leaves(tree: Any) -> Iterator[Array]:
    """The arrays and numbers in nested lists and tuples, as little-endian arrays. TypeError: anything else."""
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _leaves(item)
    else:
        leaf = np.asarray(tree)
        if leaf.dtype.hasobject:
            raise TypeError(f"an optimiser's state: expected numbers and arrays, got {tree!r:.40}")
        yield leaf.astype(leaf.dtype.newbyteorder("<"), copy=False)


def _form(leaf: Array) -> list[Any]:
    return [leaf.dtype.str, list(leaf.shape)]


def _arrays(raw: bytes, forms: list[Any]) -> Iterator[Array]:
    """Copies, in this machine's byte order."""
    at = 0
    for kind, shape in forms:
        leaf = np.ndarray(shape, kind, raw, at)
        at += leaf.nbytes
        yield leaf.astype(leaf.dtype.newbyteorder("="))


def _rebuilt(like: Any, leaves: Iterator[Array]) -> Any:
    """The leaves in the lists and tuples of `like`, and numbers where it has numbers."""
    if isinstance(like, (list, tuple)):
        return type(like)(_rebuilt(item, leaves) for item in like)
    leaf = next(leaves)
    return leaf.item() if type(like) in (int, float) else leaf
