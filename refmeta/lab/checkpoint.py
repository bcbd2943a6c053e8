"""Training's State in one npz file, so that a run which was killed goes on to the same bytes.

Its arrays are `settings` (JSON: all that the next iteration's bytes depend on), `history`, and `0`, `1`, …: the
iteration, θ and the optimiser's state. Every member carries its CRC-32, and no pickle is read.
"""

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refmeta.lab.files import replace, versions
from refmeta.lab.optimisers import Step
from refmeta.lab.training import NEVER, Checkpoint, State
from refmeta.trees import Array, Theta

FORMAT = 2  # 1 was refmeta's own: a line "refmeta-checkpoint 1 SHA-256", and bytes
LONGEST = 1 << 20  # bytes of the settings and the history; they are some thousand
ENTRY = np.dtype([("iteration", np.int64), ("loss", np.float64)])  # of the history


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
    arrays = {str(i): leaf for i, leaf in enumerate(_leaves(state))}
    history, said = np.array(state.history, ENTRY), np.array(json.dumps(_known(settings)).encode())
    replace(path, lambda file: np.savez(file, settings=said, history=history, **arrays))


def load(path: Path, settings: dict[str, Any], like: State) -> State:
    """The state that was saved, bit for bit; `like` is any other of the same θ and optimiser.

    ValueError: no checkpoint, a damaged one, one of another version of refmeta, of other settings, or of other arrays.
    """
    expected, now = _leaves(like), _known(settings)
    with open(path, "rb") as file:  # a longer one than these settings can make it is as good as damaged
        data = file.read(sum(leaf.nbytes + 1000 for leaf in expected) + LONGEST)
    if data.startswith(b"refmeta-checkpoint"):
        raise ValueError(f"{path}: version 1 of a checkpoint; this refmeta reads {FORMAT}")
    if not data.startswith(b"PK"):
        raise ValueError(f"{path}: not a checkpoint")
    try:
        with np.load(io.BytesIO(data)) as archive:
            sizes = sum(member.file_size for member in archive.zip.infolist())
            # NumPy does not read the checksum of an array that claims to be shorter than it is.
            if sizes > len(data) or archive.zip.testzip():
                raise ValueError
            arrays = {name: archive[name] for name in archive}
        was, history = dict(json.loads(arrays.pop("settings").item())), arrays.pop("history")
    except Exception:  # zipfile and NumPy have a dozen kinds for damage
        raise ValueError(f"{path}: damaged or cut short; remove it, and its run starts anew") from None
    if changed := [name for name in now | was if was.get(name) != now.get(name)]:
        each = (f"{name}: {was.get(name)!r:.99} in the checkpoint, {now.get(name)!r:.99} now" for name in changed)
        raise ValueError(f"{path}: other settings: {'; '.join(each)}")
    saved: list[Any] = [arrays.get(str(i)) for i in range(len(expected))]
    if _forms([history, *saved]) != _forms([np.empty(np.size(history), ENTRY), *expected]):
        raise ValueError(f"{path}: its arrays are not those of these settings")
    leaves = iter(saved)
    iteration, theta, outer = _mapped(lambda leaf: _number_if(leaf, next(leaves)), list(like[:3]))
    return State(iteration, theta, outer, history.tolist())


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """All that the next iteration's bytes depend on, as JSON has it."""
    made = {name: number for name, number in versions().items() if name != "python"}
    known: dict[str, Any] = json.loads(json.dumps({"checkpoint": FORMAT, **made, **settings}))
    return known


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The function of every array and number in nested lists and tuples, in lists and tuples like these."""
    if isinstance(tree, (list, tuple)):
        return type(tree)(_mapped(function, item) for item in tree)
    return function(tree)


def _number_if(like: Any, leaf: Array) -> Any:
    return leaf.item() if type(like) in (int, float) else leaf


def _leaves(state: State) -> list[Array]:
    """The iteration, θ and the optimiser's state. TypeError: something else than numbers and arrays."""
    leaves: list[Any] = []
    _mapped(leaves.append, list(state[:3]))
    for leaf in leaves:
        if np.asarray(leaf).dtype.hasobject:
            raise TypeError(f"an optimiser's state: expected numbers and arrays, got {leaf!r:.40}")
    return [np.asarray(leaf) for leaf in leaves]


def _forms(arrays: list[Any]) -> list[Any]:
    return [(getattr(array, "dtype", None), np.shape(array)) for array in arrays]
