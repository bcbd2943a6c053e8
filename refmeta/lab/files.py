"""What a run leaves behind: a folder of JSON, npz, CSV and figures; a sweep's tables alone are ever written again."""

import csv
import io
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import refmeta
from refmeta.lab.display import svg
from refmeta.trees import Array, Theta

CHECKPOINT = "checkpoint"  # its name in the folder of each run
PART = ".*.refmeta.part"  # the names of files that are being written, see `replace`


def new_folder(wanted: str | None, default: str) -> Path:
    """An empty, writable folder: `wanted`, or the first free one of default, default.2, default.3, …

    Half files of killed processes do not count. ValueError: `wanted` holds files, is no folder, or cannot be written.
    """
    folder = Path(default if wanted is None else wanted)
    numbers = count(2)
    while wanted is None and folder.exists():
        folder = Path(f"{default}.{next(numbers)}")
    if {each for each in writable(folder).rglob("*") if not each.is_dir()} - of_runs(folder, PART):
        runs = of_runs(folder, CHECKPOINT)
        other = f"--resume {folder} goes on with its runs" if runs else "name a new or empty folder"
        raise ValueError(f"--out {folder}: holds files already; {other}")
    return folder


def of_runs(folder: Path, names: str) -> set[Path]:
    """The files of a command's runs with such names, in its folder and in the folders of each run there."""
    return {path for place in ("", "*/") for path in folder.glob(place + names) if path.is_file()}


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The folder, for one process at a time, without half files. The lock ends with the process, whatever ends that.

    Where there are no such locks (Windows, some network disks), nothing is locked. ValueError: another process has it.
    """
    with ExitStack() as stack:
        try:
            from fcntl import LOCK_EX, LOCK_NB, flock

            handle = os.open(folder, os.O_RDONLY)  # the folder itself: no lock file is left behind
            stack.callback(os.close, handle)
            flock(handle, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another run is writing into it; name another folder, or wait") from None
        except (ImportError, OSError):
            pass
        for part in of_runs(folder, PART):
            part.unlink()
        yield folder


def writable(folder: Path) -> Path:
    """The folder, made where it was not. ValueError: it cannot be written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder


def regular(path: Path) -> Path:
    """The path. ValueError: it leads to no regular file; a FIFO would keep a reader waiting, a device may never end."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a regular file")
    return path


def save_theta(path: Path, names: list[str], theta: Theta) -> None:
    """θ as an npz archive of named arrays; the same θ gives the same bytes."""
    save_arrays(path, dict(zip(names, theta, strict=True)))


def save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """An npz archive of named arrays."""
    replace(path, lambda file: np.savez(file, **arrays))


def save_result(path: Path, result: dict[str, Any]) -> None:
    """A result as JSON, with the versions that made it; numbers that are not finite become null."""
    text = json.dumps(plain({"versions": versions(), **result}), indent=1, ensure_ascii=False)
    replace(path, lambda file: file.write(f"{text}\n".encode()))


def save_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows of the same keys as CSV; None is an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    replace(path, lambda file: file.write(text.getvalue().encode()))


def save_figure(path: Path, figure: Any) -> None:
    """A figure of matplotlib as PNG, and beside it as SVG."""
    replace(path, lambda file: figure.savefig(file, dpi=130, format="png"))
    replace(path.with_suffix(".svg"), lambda file: file.write(svg(figure).encode()))


def save_animation(path: Path, figures: Sequence[Any]) -> None:
    """Figures of matplotlib as one GIF, a second each, the last four, again and again; of 64 colours."""
    from PIL import Image  # matplotlib needs it

    film = []
    for figure in figures:
        figure.savefig(file := io.BytesIO(), dpi=100, format="png")
        film.append(Image.open(file).convert("RGB").quantize(64))
    times = [1000] * (len(film) - 1) + [4000]
    replace(path, lambda file: film[0].save(file, "GIF", save_all=True, append_images=film[1:], duration=times, loop=0))


@cache
def versions() -> dict[str, str]:
    packages = {"refmeta": refmeta.__version__, "numpy": version("numpy"), "autograd": version("autograd")}
    return {**packages, "python": platform.python_version()}


def replace(path: Path, write: Any) -> None:
    """Write beside the path, then put in place: no reader ever sees half a file. OSError: it names the path."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.refmeta.part")
    try:
        partial.unlink(missing_ok=True)  # of a killed process that had our number, or a link that somebody planted
        with open(partial, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # the name may reach the disk before the bytes, and the power fail between
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """As JSON has it: tuples are lists, and numbers that are not finite None."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)
