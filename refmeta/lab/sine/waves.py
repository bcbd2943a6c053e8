"""Sine waves: the two laws that the papers draw their tasks from, and the exact baselines.

    finn      y = A sin(x − φ),  A ~ U(0.1, 5),  φ ~ U(0, π),   x ~ U(−5, 5)         Finn et al. 2017, §5.1
    nichol    y = A sin(x + φ),  A ~ U(0.1, 5),  φ ~ U(0, 2π),  x on a grid of 50    Nichol et al. 2018
    oracle    finn's, whose network is told A and φ beside each x                    Finn et al. 2017, §5.1

The minus sign is that of Finn's published code; the paper gives only the ranges.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import pi, sin
from typing import Any, NamedTuple

import numpy as np

from refmeta.trees import Array, Batch, Supports, Tasks

Rng = np.random.Generator
Task = tuple[Supports, Batch]

AMPLITUDE = 0.1, 5.0
LIMIT = 5.0  # x lies in [−5, 5]
GRID = np.linspace(-LIMIT, LIMIT, 50)[:, None]


class Wave(NamedTuple):
    """y = amplitude · sin(x − phase)."""

    amplitude: float
    phase: float

    def __call__(self, x: Array) -> Array:
        return self.amplitude * np.sin(x - self.phase)


Sight = Callable[[Any, Any, Array], Array]  # (amplitude, phase, x (…, n, 1)) -> the network's input


def alone(amplitude: Any, phase: Any, x: Array) -> Array:
    return x


def told(amplitude: Any, phase: Any, x: Array) -> Array:
    """(…, n, 3)."""
    return np.concatenate(np.broadcast_arrays(x, amplitude, phase), -1)


@dataclass(frozen=True)
class Law:
    """How to draw a wave, the tasks of an outer step, and a test task of a wave."""

    wave: Callable[[Rng], Wave]
    train: Callable[[Rng, int, int, int], Tasks]  # (rng, tasks, shots, steps)
    test: Callable[..., Task]  # (rng, wave, shots, steps, queries=100)
    agnostic: tuple[str, float]  # the best predictor that does not know the task, and its MSE
    sight: Sight = alone


def _finn_wave(rng: Rng) -> Wave:
    return Wave(rng.uniform(*AMPLITUDE), rng.uniform(0, pi))


def _nichol_wave(rng: Rng) -> Wave:
    phase, amplitude = rng.uniform(0, 2 * pi), rng.uniform(*AMPLITUDE)
    return Wave(amplitude, -phase)


def _finn_train(sight: Sight, rng: Rng, tasks: int, shots: int, steps: int) -> Tasks:
    """For each task an amplitude, a phase, the x of the supports and of the query, all in one draw."""
    low = [AMPLITUDE[0], 0, *[-LIMIT] * (2 * shots)]
    high = [AMPLITUDE[1], pi, *[LIMIT] * (2 * shots)]
    drawn = rng.uniform(low, high, (tasks, len(low)))[..., None]
    x = drawn[:, 2:]
    y = drawn[:, :1] * np.sin(x - drawn[:, 1:2])
    x = sight(drawn[:, :1], drawn[:, 1:2], x)
    data = zip(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:], strict=True)
    return [([(sx, sy)] * steps, (qx, qy)) for sx, sy, qx, qy in data]


def _finn_test(sight: Sight, rng: Rng, wave: Wave, shots: int, steps: int, queries: int = 100) -> Task:
    points = [rng.uniform(-LIMIT, LIMIT, (n, 1)) for n in (shots, queries)]
    support, query = ((sight(*wave, x), wave(x)) for x in points)
    return [support] * steps, query


def _nichol_train(rng: Rng, tasks: int, shots: int, steps: int) -> Tasks:
    return [_nichol_minibatches(rng, _nichol_wave(rng), shots, steps) for _ in range(tasks)]


def _nichol_minibatches(rng: Rng, wave: Wave, shots: int, steps: int) -> Task:
    """Minibatches that go through the grid in random order, again and again; the query is the grid."""
    passes = -(-shots * steps // len(GRID))
    order = np.ravel([rng.permutation(len(GRID)) for _ in range(passes)])
    batches = [GRID[order[k * shots : (k + 1) * shots]] for k in range(steps)]
    return [(x, wave(x)) for x in batches], (GRID, wave(GRID))


def _nichol_test(rng: Rng, wave: Wave, shots: int, steps: int, queries: int = 100) -> Task:
    x = rng.choice(GRID, shots)  # with replacement, as in the authors' script
    return [(x, wave(x))] * steps, (GRID, wave(GRID))


MEAN_AMPLITUDE = sum(AMPLITUDE) / 2
MEAN_SQUARED_AMPLITUDE = (AMPLITUDE[1] ** 3 - AMPLITUDE[0] ** 3) / (3 * (AMPLITUDE[1] - AMPLITUDE[0]))
MEAN_SQUARED_COSINE = 1 / 2 + sin(2 * LIMIT) / (4 * LIMIT)  # of cos x, x ~ U(−5, 5)

# E[y²] = E[A²]/2 at every x, over a whole turn of phases and over half a turn: sin² has period π.
ZERO_MSE = MEAN_SQUARED_AMPLITUDE / 2
# E[A sin(x − φ)] over φ ~ U(0, π) is −(2 E[A]/π) cos x; nothing that ignores the task predicts better.
AGNOSTIC = 2 * MEAN_AMPLITUDE / pi
AGNOSTIC_MSE = ZERO_MSE - AGNOSTIC**2 * MEAN_SQUARED_COSINE


def _finn(sight: Sight) -> Law:
    best = f"−{AGNOSTIC:.5f}·cos x", AGNOSTIC_MSE
    return Law(_finn_wave, partial(_finn_train, sight), partial(_finn_test, sight), best, sight)


LAWS = {
    "finn": _finn(alone),
    "oracle": _finn(told),
    "nichol": Law(_nichol_wave, _nichol_train, _nichol_test, ("0", ZERO_MSE)),
}
