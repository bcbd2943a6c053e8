"""Images that are stored in files: which there are, their pixels, and a cache of these."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refmeta.lab.files import regular, save_arrays
from refmeta.trees import Array

CACHE_VERSION = 2


class Part(NamedTuple):
    """The images to train on or to test on: where they are, {name: (size, checksum or time)}, a reader of one."""

    where: Path
    stamps: dict[str, tuple[int, int]]
    read: Callable[[str], bytes]


def of_files(where: Path, root: Path, paths: Iterable[Path]) -> Part:
    """The files, by their names below root. ValueError: one is not a regular file."""
    files = {path.relative_to(root).as_posix(): regular(path).stat() for path in paths}
    stamps = {key: (status.st_size, status.st_mtime_ns) for key, status in files.items()}
    # No more than was listed: a file that grows while it is read may have no end.
    return Part(where, stamps, lambda key: np.fromfile(root / key, np.uint8, stamps[key][0]).tobytes())


def check_apart(root: Path, train: Iterable[str], test: Iterable[str]) -> None:
    """ValueError: a name is in both."""
    if both := {*train} & {*test}:
        raise ValueError(f"{root}: {', '.join(sorted(both))} in both parts; training and test classes must differ")


Decode = Callable[[Part, str], Array]  # the image of a name, uint8 (size, size, 1 or 3)


def classes(name: str, parts: Sequence[Part], size: int, channels: int, decode: Decode) -> list[list[Array]]:
    """The images of each part in their classes, uint8 (n, size, size, channels); one channel if all images are grey.

    They are from the cache, or decoded. A class is what stands before the last / of an image's name. The cache is
    $XDG_CACHE_HOME/refmeta (~/.cache/refmeta), a file for each content of the parts and each size. A damaged file is
    made again; where none can be written, every call decodes.
    """
    key = CACHE_VERSION, size, [sorted(part.stamps.items()) for part in parts]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "refmeta")
    cache = folder / f"{name}-{size}-{sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    pixels = []
    with suppress(Exception):  # none yet, or zipfile's and NumPy's many errors on a damaged one
        with open(regular(cache), "rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = [file[part.where.stem] for part in parts]
        shapes = [(len(part.stamps), size, size, found[0].shape[-1]) for part in parts]
        if [(each.shape, each.dtype) for each in found] == [(shape, np.uint8) for shape in shapes]:
            pixels = found
    if not pixels:
        pixels = _decoded(parts, size, channels, decode)
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            save_arrays(cache, {part.where.stem: each for part, each in zip(parts, pixels, strict=True)})
    return [_by_class(part, each) for part, each in zip(parts, pixels, strict=True)]


def _decoded(parts: Sequence[Part], size: int, channels: int, decode: Decode) -> list[Array]:
    every, most = [np.empty((len(part.stamps), size, size, channels), np.uint8) for part in parts], 1
    for part, pixels in zip(parts, every, strict=True):
        for i, name in enumerate(sorted(part.stamps)):
            pixels[i] = image = decode(part, name)  # a grey one: three times the same
            most = max(most, image.shape[-1])
    return every if channels == most else [pixels[..., :1].copy() for pixels in every]


def opened(formats: list[str], pixels: Callable[[Any], Array], expected: str, part: Part, name: str) -> Array:
    """pixels(pillow's image) of one image. ValueError: no pillow, or no image as `expected` says."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ValueError("images need pillow: pip install '.[images]' in the clone") from None
    try:
        return pixels(Image.open(io.BytesIO(part.read(name)), formats=formats))
    except Exception as error:  # pillow, zipfile and zlib have a dozen kinds for damage
        why = "another kind of file" if isinstance(error, UnidentifiedImageError) else error  # it names an object
        raise ValueError(f"{part.where}: image {name!r}: expected {expected.format(why)}") from error


def _by_class(part: Part, pixels: Array) -> list[Array]:
    names = [name.rpartition("/")[0] for name in sorted(part.stamps)]
    return np.split(pixels, [i for i in range(1, len(names)) if names[i] != names[i - 1]])
