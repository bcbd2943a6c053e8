"""Omniglot in small: archives of a few drawings made here."""

import io
import itertools
import struct
import zipfile
import zlib
from functools import cache

import numpy as np
import pytest

PARTS = "images_background", "images_evaluation"


def png(pixels, mode="1"):
    image = pytest.importorskip("PIL.Image", reason="PNG images need the extra images")
    file = io.BytesIO()
    image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def drawing(seed, side=105):
    return png(np.where(np.random.default_rng(seed).random((side, side)) < 0.1, 0, 255).astype(np.uint8))


def header(width, height):
    """A PNG that says how large it is, and has hardly any pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@cache
def members(part):
    """Two alphabets of two characters, drawn three times."""
    alphabets = {"images_background": ("Greek", "Latin"), "images_evaluation": ("Ge_ez", "Old_(Cyrillic)")}[part]
    names = itertools.product(alphabets, (1, 2), (1, 2, 3))
    return {
        f"{part}/{alphabet}/character{c:02}/{c:04}_{drawer:02}.png": drawing([PARTS.index(part), c, drawer])
        for alphabet, c, drawer in names
    }


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def unpacked(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
