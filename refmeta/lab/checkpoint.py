"""The State of training in one npz file, so that a killed run can go on and end with the same bytes.

Its arrays are `settings` (JSON: everything that the next iteration depends on), `history`, and `0`, `1`, …: the
iteration, θ and the optimiser's state. Every member has its CRC-32, and no pickle is read.
"""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refmeta.fast.recorded import each_leaf, leaves_of
from refmeta.lab.files import plain, regular, save_arrays, versions
from refmeta.lab.training import Checkpoint, State, Step
from refmeta.trees import Array, Theta

FORMAT = 2  # version 1 was a line "refmeta-checkpoint 1 SHA-256", then bytes
LONGEST = 1 << 20  # bytes of the settings and the history, which are a few thousand
HUGE = 1 << 30  # bytes of a checkpoint whose settings are not known yet
ENTRY = np.dtype([("iteration", np.int64), ("loss", np.float64)])  # of the history


def resumable(path: Path, every: int, settings: dict[str, Any], theta: Theta, outer: Step) -> Checkpoint:
    """The Checkpoint for `train`: it starts from the file's state, if there is a file, else from θ.

    every: the number of iterations between two. Errors: see `save` and `load`.
    """
    path.parent.mkdir(exist_ok=True)
    like = State(0, theta, outer(theta, [0 * leaf for leaf in theta])[1], [])
    return Checkpoint(every, partial(save, path, settings), load(path, settings, like) if path.exists() else None)


def save(path: Path, settings: dict[str, Any], state: State) -> None:
    """Replace the saved state by this one. OSError: it could not be written; the old one is kept."""
    arrays = {str(i): leaf for i, leaf in enumerate(_arrays(state))}
    said = np.array(json.dumps(_known(settings)).encode())
    save_arrays(path, {"settings": said, "history": np.array(state.history, ENTRY), **arrays})


def load(path: Path, settings: dict[str, Any], like: State) -> State:
    """The saved state, bit for bit. like: any state of the same θ and optimiser.

    ValueError: no checkpoint; or it is damaged, or of another version of refmeta, other settings or other arrays.
    """
    expected, now = _arrays(like), _known(settings)
    # a file longer than these settings can make is as good as damaged
    was, arrays = _opened(path, sum(leaf.nbytes + 1000 for leaf in expected) + LONGEST)
    history = arrays.pop("history")
    if changed := [name for name in now | was if was.get(name) != now.get(name)]:
        each = (f"{name}: {was.get(name)!r:.99} in the checkpoint, {now.get(name)!r:.99} now" for name in changed)
        raise ValueError(f"{path}: other settings: {'; '.join(each)}")
    saved = [arrays.get(str(i), np.empty(0, object)) for i in range(len(expected))]
    if _forms([history, *saved]) != _forms([np.empty(history.size, ENTRY), *expected]):
        raise ValueError(f"{path}: its arrays do not fit these settings")
    following = iter(saved)

    def filled(was: Any) -> Any:
        return next(following).item() if type(was) in (int, float) else next(following)

    iteration, theta, outer = each_leaf(filled, like[:3])
    return State(iteration, theta, outer, history.tolist())


def settings_of(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint was made with. ValueError: no checkpoint, or a damaged one."""
    return _opened(path, HUGE)[0]


def _opened(path: Path, longest: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """The settings, and the arrays with the history."""
    with open(regular(path), "rb") as file:
        data = file.read(longest)
    if not data.startswith(b"PK"):
        first = f"version 1 of a checkpoint; this refmeta reads {FORMAT}"
        raise ValueError(f"{path}: {first if data.startswith(b'refmeta-checkpoint') else 'not a checkpoint'}")
    try:
        with np.load(io.BytesIO(data)) as archive:
            sizes = sum(member.file_size for member in archive.zip.infolist())
            # NumPy does not read the checksum of an array that claims to be shorter than it is.
            if sizes > len(data) or archive.zip.testzip():
                raise ValueError
            arrays = {name: archive[name] for name in archive}
        return dict(json.loads(arrays.pop("settings").item())), {"history": arrays.pop("history"), **arrays}
    except Exception:  # zipfile and NumPy have a dozen kinds for damage
        raise ValueError(f"{path}: damaged or cut short; remove it, and its run starts again") from None


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that the next iteration depends on, as JSON."""
    made = {name: number for name, number in versions().items() if name != "python"}
    return dict(plain({"checkpoint": FORMAT, **made, **settings}))


def _arrays(state: State) -> list[Array]:
    """The iteration, θ and the optimiser's state. TypeError: a leaf is no number or array."""
    arrays = [np.asarray(leaf) for leaf in leaves_of(state[:3])]
    for array in arrays:
        if array.dtype.hasobject:
            raise TypeError(f"an optimiser's state: expected numbers and arrays, got {array!s:.40}")
    return arrays


def _forms(arrays: list[Array]) -> list[Any]:
    return [(array.dtype, array.shape) for array in arrays]
