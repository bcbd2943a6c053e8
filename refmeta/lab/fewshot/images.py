"""Images of characters in classes, and few-shot episodes drawn from them.

glyphs      characters of a few strokes, drawn by this file: no download
omniglot    the published archives (Lake, Salakhutdinov & Tenenbaum 2015)
"""

import io
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refmeta.lab.files import regular, save_arrays
from refmeta.trees import Array, Batch, Supports

Rng = np.random.Generator
Task = tuple[Supports, Batch]


class Images(NamedTuple):
    """Classes to train on and others to test on: each an array (examples, h, w, 1), float32 in [0, 1], ink = 1."""

    train: list[Array]
    test: list[Array]

    def fingerprint(self) -> str:
        """SHA-256 of all pixels, and of which class they are in."""
        pixels = [[(each.shape, each.dtype.str, sha256(each.tobytes()).digest()) for each in part] for part in self]
        return sha256(repr(pixels).encode()).hexdigest()


# --- Episodes ---------------------------------------------------------------------------------------


def episode(rng: Rng, classes: Sequence[Array], ways: int, shots: int, queries: int, steps: int) -> Task:
    """An N-way K-shot task: N classes drawn and labelled 0 … N−1 afresh, K images of each to adapt to, others to ask.

        ([support] · steps, query)       x (N·K, h, w, 1), labels (N·K,); the query likewise, with `queries` of each

    Every step has the same support (the same arrays). Vinyals et al. 2016, as Finn et al. 2017 and others draw it.
    ValueError: more ways than classes, a class with too few images.
    """
    support, query = _batches(rng, classes, ways, [shots, queries])
    return [support] * steps, query


def minibatches(rng: Rng, classes: Sequence[Array], ways: int, shots: int, queries: int, steps: int) -> Task:
    """An `episode` that has other images at every inner step, K of each class. Reptile trains on these.

    Nichol et al. 2018 draw 10 of the 50 images of a 5-way 10-shot task, 5 times; here every draw has 2 of each class.
    """
    *supports, query = _batches(rng, classes, ways, [shots] * steps + [queries])
    return supports, query


def _batches(rng: Rng, classes: Sequence[Array], ways: int, sizes: list[int]) -> list[Batch]:
    """Batches without a common image: of each of `ways` classes, sizes[i] images are in batch i."""
    if ways > len(classes):
        raise ValueError(f"ways: {ways} of them need as many classes; there are {len(classes)}")
    drawn, ends = [], np.cumsum(sizes)
    for c in rng.choice(len(classes), ways, replace=False):  # in random order: a class's label tells nothing
        if len(classes[c]) < ends[-1]:
            raise ValueError(f"class {c}: has {len(classes[c])} images; shots and queries together take {ends[-1]}")
        drawn.append(np.split(classes[c][rng.permutation(len(classes[c]))[: ends[-1]]], ends[:-1]))
    labels = np.arange(ways)
    return [
        (np.concatenate(x), np.repeat(labels, size)) for x, size in zip(zip(*drawn, strict=True), sizes, strict=True)
    ]


def nearest_neighbour(task: Task) -> float:
    """The accuracy on the query of the label of the support image at the smallest angle, pixel by pixel."""
    (x, labels), (queries, truth) = task[0][0], task[1]
    a, b = (images.reshape(len(images), -1) for images in (queries, x))
    cosines = a @ b.T / np.linalg.norm(b, axis=1)  # the query's own length changes no order
    return float(np.mean(labels[cosines.argmax(1)] == truth))


# --- Glyphs -----------------------------------------------------------------------------------------

EXAMPLES = 20  # of a class, as Omniglot has
POINTS = 40  # of a stroke


def glyphs(size: int = 28, seed: int = 0, classes: int = 300) -> Images:
    """Invented characters of two to four curved strokes, each drawn by 20 unsteady hands; a third is for testing.

        image = min(1, Σ_p exp(−|pixel − p|² / 2w²))        p: 40 points of each stroke, a quadratic Bézier curve

    A character is its curves' control points. A hand moves each of them a little, slants, stretches and shifts the
    whole, and has its own width w. The same arguments give the same images.
    ValueError: fewer than three classes, an image of less than 8 pixels.
    """
    if classes < 3 or size < 8:
        raise ValueError(f"glyphs: expected at least 3 classes and 8 pixels, got {classes} and {size}")
    drawn = [_glyph(np.random.default_rng([seed, c]), size) for c in range(classes)]
    return Images(drawn[: -(classes // 3)], drawn[-(classes // 3) :])


def _glyph(rng: Rng, size: int) -> Array:
    character = rng.uniform(-0.8, 0.8, (rng.integers(2, 5), 3, 2))  # strokes, control points, (x, y)
    hands = character + rng.normal(0, 0.1, (EXAMPLES, *character.shape))
    hands = hands @ (np.eye(2) + rng.normal(0, 0.15, (EXAMPLES, 1, 2, 2))) + rng.normal(0, 0.1, (EXAMPLES, 1, 1, 2))
    width = 0.04 * np.exp(rng.normal(0, 0.1, (EXAMPLES, 1, 1)))
    t = np.linspace(0, 1, POINTS)[:, None]
    points = (np.hstack([(1 - t) ** 2, 2 * t * (1 - t), t**2]) @ hands).reshape(EXAMPLES, -1, 2)
    pixels = (2 * np.arange(size) + 1) / size - 1
    # exp(−(dx² + dy²)) is a product, so the sum over the points is a product of matrices.
    across, down = (np.exp(-(((pixels - points[..., i : i + 1]) / width) ** 2) / 2) for i in (0, 1))
    return (down.mT @ across).clip(0, 1).astype(np.float32)[..., None]


# --- Omniglot ---------------------------------------------------------------------------------------

PARTS = "images_background", "images_evaluation"
SOURCE = "https://github.com/brendenlake/omniglot (folder python)"
SIDE = 105
# The published archives have 19,280 and 13,180 images of at most 400 bytes. One of 8 bits, not compressed, has 12,000.
MOST_MEMBERS, MOST_BYTES, LARGEST_ARCHIVE = 100_000, 2**14, 2**28
CACHE_VERSION = 1


SPLITS = "lake", "finn"


def omniglot(root: str | Path, size: int = 28, rotations: bool = True, split: str = "lake") -> Images:
    """Omniglot from the folder `root`, that holds the published archives or their unpacked folders.

        images_background.zip or images_background/<Alphabet>/character<NN>/<id>_<drawer>.png     964 classes: train
        images_evaluation.zip or images_evaluation/…                                              659 classes: test

    Images are shrunk to size × size by area means. `rotations`: every training class turned by 90, 180 and 270
    degrees is three more, as Santoro et al. 2016 and all since have them; test classes stand as they are drawn.
    split="finn": of all 1,623 characters, shuffled, 1,200 are for training and 423 for testing, so that both have
    characters of the same alphabets, and test classes are turned too, as Finn et al. 2017 have it.
    The decoded images are kept in $XDG_CACHE_HOME/refmeta (~/.cache/refmeta), for each content of the archives and
    each size; a damaged file there is made anew, and where none can be written, every call decodes. Archives are
    never unpacked to disk, and all that is in them is limited before it is decoded.
    ValueError: no pillow; a missing, damaged or foreign archive, or member of it; alphabets that are in both; an
    unknown split, or too few characters for it.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected {' or '.join(SPLITS)}, got {split!r}")
    if not 1 <= size <= SIDE:
        raise ValueError(f"size: expected 1 … {SIDE} pixels, got {size}")
    if not Path(root).is_dir():
        raise ValueError(f"{root}: no such folder; expected the one that holds {' and '.join(PARTS)}, .zip or unpacked")
    with ExitStack() as stack:
        parts = [_part(Path(root), name, stack) for name in PARTS]
        if both := set.intersection(*({name.split("/")[1] for name in part.stamps} for part in parts)):
            raise ValueError(f"{root}: {', '.join(sorted(both))} in both parts: training and test classes must differ")
        train, test = map(_by_class, parts, _pixels(parts, size))
    turns = range(4 if rotations else 1)
    if split == "lake":
        return Images(_turned(train, turns), test)
    every = [*train, *test]
    if len(every) <= FINNS:
        raise ValueError(f"{root}: {len(every)} characters; the split finn trains on {FINNS} and tests on the others")
    train, test = (
        [every[c] for c in part] for part in np.split(np.random.default_rng(1).permutation(len(every)), [FINNS])
    )
    return Images(_turned(train, turns), _turned(test, turns))


FINNS = 1200  # characters to train on


def _turned(classes: list[Array], turns: range) -> list[Array]:
    return [np.rot90(images, turn, (1, 2)) for turn in turns for images in classes]


class _Part(NamedTuple):
    """One of the two archives, zip or folder: its path, {image's name: (size, checksum or time)}, the reader of one."""

    where: Path
    stamps: dict[str, tuple[int, int]]
    read: Callable[[str], bytes]


def _part(root: Path, name: str, stack: ExitStack) -> _Part:
    """The zip archive or else the folder, its listing checked and none of its images read."""
    archive, folder = root / f"{name}.zip", root / name
    if archive.is_file():
        file = stack.enter_context(_zip(archive))
        listed = {member.filename: (member.file_size, member.CRC) for member in file.infolist()}
        part = _Part(archive, listed, partial(_member, file))
    elif folder.is_dir():
        files = {path.relative_to(root).as_posix(): regular(path).stat() for path in folder.glob("*/*/*.png")}
        stamps = {key: (status.st_size, status.st_mtime_ns) for key, status in files.items()}
        # No more than was listed: what grows as it is read may have no end.
        part = _Part(folder, stamps, lambda key: np.fromfile(root / key, np.uint8, stamps[key][0]).tobytes())
    else:
        kind = f"; {archive.name} is a folder, name it {name} if it is the unpacked one" if archive.is_dir() else ""
        raise ValueError(f"{root}: holds neither {name}.zip nor the folder {name}: download it from {SOURCE}{kind}")
    # no folders, no licence, no files that macOS adds
    images = {k: stamp for k, stamp in part.stamps.items() if k.endswith(".png") and not k.startswith("__MACOSX/")}
    _check_listing(part.where, name, images)
    return part._replace(stamps=images)


def _zip(archive: Path) -> zipfile.ZipFile:
    try:
        if archive.stat().st_size > LARGEST_ARCHIVE:
            raise zipfile.BadZipFile(f"more than {LARGEST_ARCHIVE} bytes")
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        why = f"no zip archive, or truncated ({error})"
        raise ValueError(f"{archive}: {why}: download it again from {SOURCE}") from None


def _member(file: zipfile.ZipFile, name: str) -> bytes:
    if file.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile("compressed otherwise than published")
    with file.open(name) as member:
        return member.read(MOST_BYTES + 1)  # bounds the inflation: the listing may lie


def _check_listing(where: Path, part: str, stamps: dict[str, tuple[int, int]]) -> None:
    layout = f"{part}/<Alphabet>/character<NN>/<id>_<drawer>.png"
    if not 0 < len(stamps) <= MOST_MEMBERS:
        raise ValueError(f"{where}: {len(stamps)} images; expected 1 … {MOST_MEMBERS}, as {layout}: from {SOURCE}")
    for name, (length, _) in stamps.items():
        if not re.fullmatch(rf"{part}/(?!\.)[^/\\\0-\x1f\x7f]+/character\d+/\d+_\d+\.png", name):
            raise ValueError(f"{where}: member {name!r}: expected {layout}; another data set? Omniglot is at {SOURCE}")
        if length > MOST_BYTES:
            raise ValueError(f"{where}: member {name!r}: {length} bytes, too many for a drawing of Omniglot ({SOURCE})")


def _pixels(parts: list[_Part], size: int) -> list[Array]:
    """The images of each part in the order of their names, ink = 255, (n, size, size): from the cache, or decoded."""
    key = CACHE_VERSION, size, [sorted(part.stamps.items()) for part in parts]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "refmeta")
    cache = folder / f"omniglot-{size}-{sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    with suppress(Exception):  # none yet, or zipfile's and NumPy's many errors on a damaged one
        with open(regular(cache), "rb") as raw, np.load(raw, allow_pickle=False) as file:
            pixels = [file[name] for name in PARTS]
        if [(p.shape, p.dtype) for p in pixels] == [((len(part.stamps), size, size), np.uint8) for part in parts]:
            return pixels
    pixels = [_decoded(part, size) for part in parts]
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        save_arrays(cache, dict(zip(PARTS, pixels, strict=True)))
    return pixels


def _decoded(part: _Part, size: int) -> Array:
    edges, pixel = np.arange(size + 1)[:, None] * SIDE / size, np.arange(SIDE)
    overlap = (np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)).clip(0) * size / SIDE
    pixels = np.empty((len(part.stamps), size, size), np.uint8)
    for image, name in zip(pixels, sorted(part.stamps), strict=True):
        image[...] = np.rint(overlap @ _ink(part, name) @ overlap.T)
    return pixels


def _ink(part: _Part, name: str) -> Array:
    """One drawing, (105, 105), ink = 255."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("omniglot: PNG images need pillow: pip install 'refmeta[images]'") from None
    try:
        image: Any = Image.open(io.BytesIO(part.read(name)), formats=["PNG"])
        if (image.size, image.mode) not in [((SIDE, SIDE), "1"), ((SIDE, SIDE), "L")]:  # before it is decoded
            raise ValueError(f"{image.size[0]} × {image.size[1]} pixels of mode {image.mode}")
        return 255 - np.asarray(image.convert("L"), float)
    except Exception as error:  # pillow, zipfile and zlib have a dozen kinds for damage
        raise ValueError(
            f"{part.where}: member {name!r}: expected a PNG of {SIDE} × {SIDE} pixels, 1 bit or grey; got: {error}. "
            f"Damaged, or another data set: Omniglot is at {SOURCE}"
        ) from error


def _by_class(part: _Part, pixels: Array) -> list[Array]:
    """float32 in [0, 1], (examples, h, w, 1) for every character."""
    names = [name.rpartition("/")[0] for name in sorted(part.stamps)]
    starts = [i for i in range(1, len(names)) if names[i] != names[i - 1]]
    return np.split((pixels / np.float32(255))[..., None], starts)
