"""Finite differences, where there is nothing better: of a gradient for ∇²L v, of a loss to check its gradient."""

from collections.abc import Callable
from typing import Any

import numpy as np

from refmeta.conformance.network import EPS
from refmeta.conformance.rules import flat
from refmeta.trees import Batch, Loss, Theta, axpy, dot

STEPS = {"float64": (3e-5, 3e-6, 3e-7), "float32": (3e-2, 1e-2, 3e-3)}
REASON = {
    "float64": "differences of `grad` disagree: a unit is on its kink, or the loss bends within 1e-6; give `hvp`",
    "float32": "differences of a `grad` in float32 are too coarse: give `hvp`, or let `grad` take float64",
}
AGREES = 1e-2  # a right gradient meets a difference quotient this closely at some step, in float32 too


def products(grad: Callable[[Theta, Batch], Theta], dtype: str) -> list[Callable[..., Theta]]:
    """∇²L v by central differences of ∇L at two steps: of three, the two that agree best, to avoid kinks."""

    def quotients(phi: Theta, batch: Batch, v: Theta) -> tuple[Theta, Theta]:
        length = float(dot(v, v)) ** 0.5 or 1.0

        def quotient(h: float) -> Theta:
            ahead, behind = (grad(axpy(sign * h / length, v, phi), batch) for sign in (1, -1))
            return [(a.astype(float) - b) * (length / (2 * h)) for a, b in zip(ahead, behind, strict=True)]

        first, second, third = map(quotient, STEPS[dtype])
        gap, other = (float(np.linalg.norm(flat(a) - flat(b))) for a, b in ((first, second), (second, third)))
        return (first, second) if gap <= other else (third, second)

    return [lambda *a: quotients(*a)[0], lambda *a: quotients(*a)[1]]


def beside(theta: Theta) -> Theta:
    """A point near θ where no unit sits on its kink, as all do on black pixels at zero biases."""
    random = np.random.default_rng(0)
    return [x + (1e-2 * (float(np.std(x)) or 1.0) * random.normal(size=x.shape)).astype(x.dtype) for x in theta]


def against(loss: Loss, grad: Callable[[Theta, Batch], Theta], theta: Theta, batch: Batch) -> tuple[int, float | str]:
    """Compare `grad` with `loss`: an array of it that is wrong, and by how much; or why that is not known.

    It is looked at beside θ.
    """
    random, moved = np.random.default_rng(0), beside(theta)
    at = moved if np.isfinite(loss(moved, batch)) else theta
    g, doubt = grad(at, batch), (0, "")
    smallest = max(1e-3 * float(np.linalg.norm(flat(g))), 1e-300)
    for i, leaf in enumerate(g):
        # Along the gradient the slope is largest; a random direction sees what the gradient leaves out.
        for d in (leaf, random.normal(size=leaf.shape)):
            d = d / (np.linalg.norm(d) or 1)

            def along(t: float, i: int = i, d: Any = d) -> float:
                return float(loss([x + t * d if j == i else x for j, x in enumerate(at)], batch))

            said = slope(along, float(np.sum(leaf * d)), smallest)
            if isinstance(said, float):
                return i, said
            doubt = doubt if doubt[1] else (i, said)
    return doubt


@np.errstate(all="ignore")  # 1e100 is infinite in float32
def slope(f: Callable[[float], float], expected: float, smallest: float) -> float | str:
    """By how much f′(0) differs for certain from the slope; or why that is not known; "" where it is right.

    A difference counts where three steps in turn agree far better than that, the finer ones do, and both sides of 0.
    """
    h = 10.0 ** -np.arange(1, 8)
    f0, ahead, behind = f(0.0), *(np.array([f(sign * step) for step in h]) for sign in (1, -1))
    values = np.array([f0, *ahead, *behind])
    if not np.isfinite(f0):
        return np.inf
    up, down = (ahead - f0) / h, (f0 - behind) / h
    middle = (up + down) / 2
    off = np.abs(middle - expected) / np.maximum(np.maximum(np.abs(middle), abs(expected)), smallest)
    if (off <= AGREES).any():
        return ""
    eps = EPS["float32" if (values == values.astype(np.float32)).all() else "float64"]
    noise = 8 * eps * abs(f0) / h
    steady = np.array([np.ptp(middle[j - 2 : j + 1]) + noise[j] for j in range(2, 7)])
    j = 2 + int(np.argmin(np.where(np.isfinite(steady), steady, np.inf)))
    sure, sides = 5 * steady[j - 2], abs(up[j] - down[j])
    rough = (np.abs(middle[j:] - middle[j]) > sure + 5 * noise[j:]).any()
    if abs(middle[j] - expected) > max(sure, 5 * sides) and not rough:
        return float(off[j])
    return "a unit sits on its kink" if sides > sure else "the loss is too coarse for differences"
