"""Tasks as NumPy arrays: a task is ((x_support, y_support), (x_query, y_query)); each maker takes a generator."""

import numpy as np


def several(rng):
    return range(rng.integers(2, 5))


def f32(a):
    return np.asarray(a, np.float32)


def sines(rng, n=10):
    """Waves of random amplitude and phase (Finn et al. 2017, §5.1)."""

    def batch(amplitude, phase):
        x = rng.uniform(-5, 5, (n, 1))
        return f32(x), f32(amplitude * np.sin(x + phase))

    waves = [(rng.uniform(0.1, 5), rng.uniform(0, np.pi)) for _ in several(rng)]
    return [(batch(*wave), batch(*wave)) for wave in waves]


def blobs(rng, ways=5, shots=4, width=20):
    """Five clusters of points, drawn anew for each task."""

    def batch(centres):
        y = np.repeat(np.arange(ways), shots)
        return f32(centres[y] + 0.7 * rng.normal(size=(ways * shots, width))), y

    centres = [rng.normal(size=(ways, width)) for _ in several(rng)]
    return [(batch(c), batch(c)) for c in centres]


def strokes(size, ways=5):
    """Characters: a class is two strokes on black, an image is its class with the ends moved by a pixel or so."""

    def draw(ends):
        image = np.zeros((size, size))
        for a, b in ends:
            for t in np.linspace(0, 1, 2 * size):
                row, column = np.clip(np.rint(a + t * (b - a)), 0, size - 1).astype(int)
                image[row, column] = 1
        return image

    def batch(rng, classes, shots):
        y = np.repeat(np.arange(ways), shots)
        return f32([[draw(classes[i] + rng.normal(0, 0.7, (2, 2, 2)))] for i in y]), y

    def tasks(rng):
        drawn = [rng.uniform(2, size - 3, (ways, 2, 2, 2)) for _ in several(rng)]
        return [(batch(rng, c, 1), batch(rng, c, 2)) for c in drawn]

    return tasks


def waves(rng, n=8, length=7):
    """Sequences of three channels, and a weighted sum of their ends."""

    def batch(weights):
        x = rng.normal(size=(n, length, 3))
        return f32(x), f32(np.sin(x[:, -2:].sum(1) @ weights)[:, None])

    drawn = [rng.normal(size=3) for _ in several(rng)]
    return [(batch(w), batch(w)) for w in drawn]


def sentences(classes, n=12, words=12, length=6):
    """Sentences whose class a task's own dictionary gives to the last word."""

    def batch(rng, dictionary):
        x = rng.integers(words, size=(n, length))
        return x, dictionary[x[:, -1]]

    def tasks(rng):
        drawn = [rng.integers(classes, size=words) for _ in several(rng)]
        return [(batch(rng, d), batch(rng, d)) for d in drawn]

    return tasks


def copies(rng, n=10, width=20):
    """Points of a task's own plane, to be copied."""

    def batch(plane):
        x = f32(rng.normal(size=(n, 3)) @ plane)
        return x, x

    planes = [rng.normal(size=(3, width)) for _ in several(rng)]
    return [(batch(p), batch(p)) for p in planes]


def streams(make, steps=3):
    """Tasks with a support batch of its own for each step: here the batches of other tasks of the same kind."""

    def tasks(rng):
        draws = [make(rng) for _ in range(steps + 1)]
        n = min(map(len, draws))
        return [([d[i][0] for d in draws[:-1]], draws[-1][i][1]) for i in range(n)]

    return tasks
