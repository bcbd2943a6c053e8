"""Images in a folder for each class: photographs, MiniImageNet's, one's own."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refmeta.lab.fewshot.images import Images
from refmeta.lab.fewshot.stored import Part, check_apart, classes, of_files, opened
from refmeta.trees import Array

PARTS = "train", "test"
SUFFIXES = ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm"
FORMATS = ["PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM"]  # whatever the suffix says: ImageNet has a PNG named .JPEG
LAYOUT = f"train/CLASS/IMAGE and test/CLASS/IMAGE, images as {', '.join(SUFFIXES)}"
JUNK = {"__MACOSX", "Icon\r", "Thumbs.db", "desktop.ini"}  # of macOS and Windows; their other files begin with a dot
# Limits: a file and its pixels, before they are decoded; all images in memory, 600,000 of MiniImageNet's size.
MOST_BYTES, MOST_PIXELS, MOST_MEMORY = 2**26, 2**26, 2**34


def folder(root: str | Path, size: int = 84) -> Images:
    """The images in the folders of their classes, size × size pixels, uint8.

        root/train/CLASS/*.png, .jpg, …        classes to train on
        root/test/CLASS/…                      other classes, to test on; all else in root is ignored

    One channel if all images are grey, else three. An image is squeezed into the square by Lanczos's filter, which
    weighs all pixels that it covers (Ravi & Larochelle 2017 made MiniImageNet so); one of that size stays as it is.
    It is turned as its EXIF data say, and transparent pixels are put on white; of 16 bits the upper 8 are taken.
    The decoded images are kept, see `classes`.
    ValueError: no pillow; another layout; a class in both parts, fewer than two classes, an empty one; a file that is
    no image, is damaged or too large; images that take more than 16 GiB.
    """
    where = Path(root)
    if not where.is_dir():
        raise ValueError(f"{root}: no such folder; expected the one that holds {LAYOUT}")
    try:
        parts = [_part(where / name) for name in PARTS]
    except OSError as error:
        raise ValueError(f"{error.filename}: cannot be read: {error.strerror}") from error
    names = tuple(list(dict.fromkeys(name.split("/")[0] for name in sorted(part.stamps))) for part in parts)
    check_apart(where, *names)
    n = sum(len(part.stamps) for part in parts)
    if (memory := 3 * n * size**2) > MOST_MEMORY:
        raise ValueError(f"{root}: {n} images of {size} × {size} pixels take {memory / 1e9:.0f} GB; ask for fewer")
    decode = partial(opened, FORMATS, partial(_photograph, size), "an image; got: {}")
    train, test = classes("folder", parts, size, 3, decode)
    return Images(train, test, names)


def _part(where: Path) -> Part:
    """The images of train or of test, listed and none of them read."""
    if not where.is_dir():
        raise ValueError(f"{where}: no such folder; expected {LAYOUT}")
    classes = list(_entries(where))
    if len(classes) < 2:
        raise ValueError(f"{where}: expected two classes or more, as {LAYOUT}; got {len(classes)}")
    part = of_files(where, where, [path for each in classes for path in _files(each)])
    for name, (length, _) in part.stamps.items():
        if length > MOST_BYTES:
            raise ValueError(f"{where / name}: {length} bytes; expected an image of at most {MOST_BYTES}")
    return part


def _entries(where: Path) -> Iterator[Path]:
    return (path for path in sorted(where.iterdir()) if not path.name.startswith(".") and path.name not in JUNK)


def _files(where: Path) -> list[Path]:
    """The images of one class."""
    if not where.is_dir():
        raise ValueError(f"{where}: expected the folder of a class: {LAYOUT}")
    files = list(_entries(where))
    if not files:
        raise ValueError(f"{where}: no images; expected {LAYOUT}")
    for path in files:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{path}: expected an image: {LAYOUT}")
    return files


def _photograph(size: int, image: Any) -> Array:
    """One image, (size, size, 1) if it is grey, else (size, size, 3)."""
    from PIL import Image, ImageOps

    if image.width * image.height > MOST_PIXELS:  # before it is decoded
        raise ValueError(f"{image.width} × {image.height} pixels, more than {MOST_PIXELS}")
    image.draft(image.mode, (2 * size, 2 * size))  # a large JPEG is decoded at a half, a fourth or an eighth
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # pillow would cut 16 bits at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    grey = image.mode in ("1", "L", "LA")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grey else "RGB").resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, -1)
