"""Omniglot: the published archives of drawings (Lake, Salakhutdinov & Tenenbaum 2015)."""

import re
import zipfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refmeta.lab.fewshot.images import Images, as_float
from refmeta.lab.fewshot.stored import Part, check_apart, classes, of_files, opened
from refmeta.trees import Array

PARTS = "images_background", "images_evaluation"
SOURCE = "https://github.com/brendenlake/omniglot (folder python)"
SIDE = 105
# The published archives have 19,280 and 13,180 images of at most 400 bytes. One of 8 bits, not compressed, has 12,000.
MOST_MEMBERS, MOST_BYTES, LARGEST_ARCHIVE = 100_000, 2**14, 2**28
SPLITS = "lake", "finn"


def omniglot(root: str | Path, size: int = 28, rotations: bool = True, split: str = "lake") -> Images:
    """Omniglot from the folder `root`, which holds the published archives or their unpacked folders.

        images_background.zip or images_background/<Alphabet>/character<NN>/<id>_<drawer>.png     964 classes: train
        images_evaluation.zip or images_evaluation/…                                              659 classes: test

    Images are shrunk to size × size by area means. rotations: every training class, turned by 90, 180 and 270 degrees,
    makes three more classes, as in Santoro et al. 2016 and since; test classes are not turned.
    split="finn": all 1,623 characters are shuffled, 1,200 are for training and 423 for testing. Both then share
    alphabets, and test classes are turned too, as in Finn et al. 2017.
    The decoded images are cached, see `classes`. Archives are never unpacked to disk, and the size of their members is
    limited before decoding.
    ValueError: no pillow; a missing, damaged or foreign archive or member; alphabets that are in both; an unknown
    split, or too few characters for it.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected {' or '.join(SPLITS)}, got {split!r}")
    if not 1 <= size <= SIDE:
        raise ValueError(f"size: expected 1 … {SIDE} pixels, got {size}")
    if not Path(root).is_dir():
        raise ValueError(f"{root}: no such folder; expected the one that holds {' and '.join(PARTS)}, .zip or unpacked")
    with ExitStack() as stack:
        parts = [_part(Path(root), name, stack) for name in PARTS]
        check_apart(Path(root), *({name.split("/")[1] for name in part.stamps} for part in parts))
        decode = partial(opened, ["PNG"], partial(_drawing, _overlap(size)), EXPECTED)
        train, test = (list(map(as_float, part)) for part in classes("omniglot", parts, size, 1, decode))
    turns = range(4 if rotations else 1)
    if split == "finn":
        every = [*train, *test]
        if len(every) <= FINNS:
            raise ValueError(f"{root}: {len(every)} characters; the split finn trains on {FINNS}, tests on the others")
        order = np.random.default_rng(1).permutation(len(every))
        train, test = ([every[c] for c in part] for part in np.split(order, [FINNS]))
        test = _turned(test, turns)
    return Images(_turned(train, turns), test)


FINNS = 1200  # characters to train on


def _turned(classes: list[Array], turns: range) -> list[Array]:
    return [np.rot90(images, turn, (1, 2)) for turn in turns for images in classes]


def _part(root: Path, name: str, stack: ExitStack) -> Part:
    """The zip archive, or else the folder: its listing is checked, no image is read."""
    archive, folder = root / f"{name}.zip", root / name
    if archive.is_file():
        file = stack.enter_context(_zip(archive))
        listed = {member.filename: (member.file_size, member.CRC) for member in file.infolist()}
        part = Part(archive, listed, partial(_member, file))
    elif folder.is_dir():
        part = of_files(folder, root, folder.glob("*/*/*.png"))
    else:
        kind = f"; if the folder {archive.name} is the unpacked archive, rename it {name}" if archive.is_dir() else ""
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
        raise zipfile.BadZipFile("not compressed as published")
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


EXPECTED = f"a PNG of {SIDE} × {SIDE} pixels, 1 bit or grey; got: {{}}. Omniglot is at {SOURCE}"


def _overlap(size: int) -> Array:
    """(size, 105): the share of each small pixel that each large one covers."""
    edges, pixel = np.arange(size + 1)[:, None] * SIDE / size, np.arange(SIDE)
    return (np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)).clip(0) * size / SIDE


def _drawing(overlap: Array, image: Any) -> Array:
    """One drawing by area means, ink = 255."""
    if (image.size, image.mode) not in [((SIDE, SIDE), "1"), ((SIDE, SIDE), "L")]:  # before it is decoded
        raise ValueError(f"{image.size[0]} × {image.size[1]} pixels of mode {image.mode}")
    ink = 255 - np.asarray(image.convert("L"), float)
    return np.rint(overlap @ ink @ overlap.T)[..., None]
