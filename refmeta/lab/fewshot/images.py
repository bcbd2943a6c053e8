"""Images in classes, and few-shot episodes drawn from them.

glyphs      characters of a few strokes, drawn by this file
omniglot    the published archives (Lake, Salakhutdinov & Tenenbaum 2015): drawings.py
folder      one's own images, and MiniImageNet's: photographs.py
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from refmeta.trees import Array, Batch, Supports

Rng = np.random.Generator
Task = tuple[Supports, Batch]


class Images(NamedTuple):
    """Classes to train on and others to test on: each an array (examples, h, w, channels).

    float32 in [0, 1], of characters with ink = 1; or uint8, a fourth of the memory, which `as_float` converts.
    """

    train: list[Array]
    test: list[Array]
    names: tuple[list[str], ...] = ([], [])  # of the classes, where they are folders

    def fingerprint(self) -> str:
        """SHA-256 of all pixels and their classes."""
        pixels = [[(each.shape, each.dtype.str, sha256(each.tobytes()).digest()) for each in part] for part in self[:2]]
        return sha256(repr(pixels).encode()).hexdigest()


def as_float(images: Array) -> Array:
    """The images in float32: 0 … 255 of uint8 become [0, 1]."""
    return images / np.float32(255) if images.dtype == np.uint8 else images


# --- Episodes ---------------------------------------------------------------------------------------


def episode(rng: Rng, classes: Sequence[Array], ways: int, shots: int, queries: int, steps: int) -> Task:
    """An N-way K-shot task: N classes drawn and labelled 0 … N−1 afresh, K images of each as support, others as query.

        ([support] · steps, query)       x (N·K, h, w, channels), labels (N·K,); the query with `queries` of each

    Every step has the same support (the same arrays). Vinyals et al. 2016, as Finn et al. 2017 and others draw it.
    ValueError: more ways than classes, a class with too few images.
    """
    support, query = _batches(rng, classes, ways, [shots, queries])
    return [support] * steps, query


def minibatches(rng: Rng, classes: Sequence[Array], ways: int, shots: int, queries: int, steps: int) -> Task:
    """An `episode` with other images at every inner step, K of each class. Reptile trains on these.

    Nichol et al. 2018 draw 10 of the 50 images of a 5-way 10-shot task, 5 times; here every draw has 2 of each class.
    """
    *supports, query = _batches(rng, classes, ways, [shots] * steps + [queries])
    return supports, query


def _batches(rng: Rng, classes: Sequence[Array], ways: int, sizes: list[int]) -> list[Batch]:
    """Batches that share no image: batch i has sizes[i] images of each of `ways` classes."""
    if ways > len(classes):
        raise ValueError(f"ways: expected at most {len(classes)}, the number of classes; got {ways}")
    drawn, ends = [], np.cumsum(sizes)
    for c in rng.choice(len(classes), ways, replace=False):  # in random order: a class's label tells nothing
        if len(classes[c]) < ends[-1]:
            raise ValueError(f"class {c}: has {len(classes[c])} images; shots and queries together take {ends[-1]}")
        drawn.append(np.split(as_float(classes[c][rng.permutation(len(classes[c]))[: ends[-1]]]), ends[:-1]))
    labels = np.arange(ways)
    return [(np.concatenate(x), np.repeat(labels, n)) for x, n in zip(zip(*drawn, strict=True), sizes, strict=True)]


def nearest_neighbour(task: Task) -> float:
    """The accuracy on the query, labelled like the support image at the smallest angle between pixels."""
    (x, labels), (queries, truth) = task[0][0], task[1]
    a, b = (images.reshape(len(images), -1) for images in (queries, x))
    # The query's own length changes no order; an image all black is at no angle.
    cosines = a @ b.T / np.linalg.norm(b, axis=1).clip(np.finfo(b.dtype).tiny)
    return float(np.mean(labels[cosines.argmax(1)] == truth))


# --- Glyphs -----------------------------------------------------------------------------------------

EXAMPLES = 20  # of each class, as in Omniglot
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
