"""Training's State in one npz file, so that a run which was killed goes on to the same bytes.

Its arrays are `settings` (JSON: all that the next iteration's bytes depend on), `0`, `1`, … (the iteration, θ and the
optimiser's state), and the history's `iterations` and `losses`. Every member carries a CRC-32, and no pickle is read.
"""

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refmeta.lab.files import replace, versions
from refmeta.lab.optimisers import Step
from refmeta.lab.training import NEVER, Checkpoint, State
from refmeta.trees import Array, Theta

FORMAT = 2  # 1 was refmeta's own: a line "refmeta-checkpoint 1 SHA-256", and bytes
LONGEST = 1 << 20  # bytes of all but θ and the optimiser's state; they are some thousand


class Keep(NamedTuple):
    """Where a run's checkpoint is, and after how many iterations each it is written."""

    path: Path
    every: int


def resumable(keep: Keep | None, settings: dict[str, Any], theta: Theta, outer: Step) -> Checkpoint:
    """`train`'s checkpoint, of a training that begins with θ, or where the file is, with its state.

    Errors: see `save` and `load`.
    """
    if keep is None:
        return NEVER
    keep.path.parent.mkdir(exist_ok=True)
    like = State(0, theta, outer(theta, [0 * leaf for leaf in theta])[1], [])
    start = load(keep.path, settings, like) if keep.path.exists() else None
    return Checkpoint(keep.every, partial(save, keep.path, settings), start)


def save(path: Path, settings: dict[str, Any], state: State) -> None:
    """Put the state in the place of the last one. OSError: it could not be written, and the last one is still there."""
    leaves = {str(i): leaf for i, leaf in enumerate(_leaves(list(state[:3])))}
    iterations = np.array([iteration for iteration, _ in state.history], np.int64)
    losses = np.array([loss for _, loss in state.history], np.float64)
    said = np.array(json.dumps(_known(settings)))
    replace(path, lambda file: np.savez(file, settings=said, iterations=iterations, losses=losses, **leaves))


def load(path: Path, settings: dict[str, Any], like: State) -> State:
    """The state that was saved, bit for bit; `like` is any other of the same θ and optimiser.

    ValueError: no checkpoint, a damaged one, one of another version of refmeta, of other settings, or of other arrays.
    """
    leaves = list(_leaves(list(like[:3])))
    names = ["iterations", "losses", *map(str, range(len(leaves)))]
    with open(path, "rb") as file:  # a longer one than these settings can make it is as good as damaged
        data = file.read(sum(leaf.nbytes + 1000 for leaf in leaves) + LONGEST)
    if not data.startswith(b"PK"):
        old = data.startswith(b"refmeta-checkpoint")
        why = f"version 1 of a checkpoint; this refmeta reads {FORMAT}" if old else "not a checkpoint"
        raise ValueError(f"{path}: {why}")
    try:
        with np.load(io.BytesIO(data)) as archive:
            if archive.zip.testzip():  # an array that is shorter than its member would be read without the checksum
                raise ValueError
            was = dict(json.loads(str(archive["settings"])))
            iterations, losses, *saved = (archive[name] if name in archive else np.array(None) for name in names)
    except Exception:  # zipfile and NumPy have a dozen kinds for damage
        raise ValueError(f"{path}: damaged or cut short; remove it, and its run starts anew") from None
    if changed := _changed(was, _known(settings)):
        raise ValueError(f"{path}: other settings: {changed}")
    fits = [(iterations, np.zeros(losses.shape, np.int64)), (losses, np.zeros(iterations.shape))]
    if losses.ndim != 1 or not all(_alike(*pair) for pair in [*fits, *zip(saved, leaves, strict=True)]):
        raise ValueError(f"{path}: its arrays are not those of these settings")
    iteration, theta, outer = _rebuilt(list(like[:3]), iter(saved))
    return State(iteration, theta, outer, list(zip(iterations.tolist(), losses.tolist(), strict=True)))


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """All that the next iteration's bytes depend on, as JSON has it."""
    made = {name: number for name, number in versions().items() if name != "python"}
    known: dict[str, Any] = json.loads(json.dumps({"checkpoint": FORMAT, **made, **settings}))
    return known


def _changed(was: dict[str, Any], now: dict[str, Any]) -> str:
    return "; ".join(
        f"{name}: {was.get(name)!r:.99} in the checkpoint, {now.get(name)!r:.99} now"
        for name in now | was
        if was.get(name) != now.get(name)
    )


def _alike(a: Array, b: Array) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape)


def _leaves(tree: Any) -> Iterator[Array]:
    """The arrays and numbers in nested lists and tuples, as arrays. TypeError: anything else."""
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _leaves(item)
    elif np.asarray(tree).dtype.hasobject:
        raise TypeError(f"an optimiser's state: expected numbers and arrays, got {tree!r:.40}")
    else:
        yield np.asarray(tree)


def _rebuilt(like: Any, leaves: Iterator[Array]) -> Any:
    """The leaves in the lists and tuples of `like`, and numbers where it has numbers."""
    if isinstance(like, (list, tuple)):
        return type(like)(_rebuilt(item, leaves) for item in like)
    leaf = next(leaves)
    return leaf.item() if type(like) in (int, float) else leaf
