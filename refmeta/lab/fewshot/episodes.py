"""Few-shot episodes drawn from classes of images."""

from collections.abc import Sequence

import numpy as np

from refmeta.trees import Array, Batch, Supports

Rng = np.random.Generator
Task = tuple[Supports, Batch]


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
