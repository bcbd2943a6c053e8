"""Optimisers as pure functions: step(theta, gradient, state) -> (theta, state), with state None at first.

The same functions serve outside, on meta-gradients, and inside, as Reptile's black box.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from refmeta.checks import check_alpha
from refmeta.trees import Theta, axpy

Rate = float | Callable[[int], float]  # constant, or a function of the number of steps done
Step = Callable[..., tuple[Theta, Any]]


def linear(start: float, steps: int) -> Callable[[int], float]:
    """The rate start·(1 − t/steps): from start to 0, as Nichol et al. 2018 anneal Reptile's ε."""
    return lambda t: start * max(0.0, 1 - t / steps)


def sgd(rate: Rate) -> Step:
    """θ ← θ − rate·g."""

    def step(theta: Theta, gradient: Theta, state: Any = None) -> tuple[Theta, Any]:
        t = state or 0
        return axpy(-_at(rate, t), gradient, theta), t + 1

    return step


def adam(rate: Rate, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Step:
    """m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  θ ← θ − rate·m̂/(√v̂ + ε).        Kingma & Ba 2015, alg. 1

    m̂ = m/(1−β₁ᵗ) and v̂ = v/(1−β₂ᵗ) undo the start at zero.
    """

    def step(theta: Theta, gradient: Theta, state: Any = None) -> tuple[Theta, Any]:
        t, m, v = state or (0, [0 * g for g in gradient], [0 * g for g in gradient])
        m = [beta1 * mi + (1 - beta1) * g for mi, g in zip(m, gradient, strict=True)]
        v = [beta2 * vi + (1 - beta2) * g * g for vi, g in zip(v, gradient, strict=True)]
        a, b = _at(rate, t) / (1 - beta1 ** (t + 1)), 1 / (1 - beta2 ** (t + 1))
        moved = [leaf - a * mi / (np.sqrt(b * vi) + eps) for leaf, mi, vi in zip(theta, m, v, strict=True)]
        return moved, (t + 1, m, v)

    return step


def _at(rate: Rate, t: int) -> float:
    return rate(t) if callable(rate) else rate


INNER = {"sgd": sgd, "adam": adam}


def optimiser(text: str, iterations: int) -> Step:
    """adam:RATE, sgd:RATE, or either with :linear, the rate then falling to 0 over the iterations.

    ValueError: anything else.
    """
    name, _, rest = text.partition(":")
    rate, _, schedule = rest.partition(":")
    try:
        number = check_alpha(float(rate))
        if name not in INNER or schedule not in ("", "linear") or not number:
            raise ValueError
    except ValueError:
        raise ValueError(f"outer {text!r}: expected adam:RATE, sgd:RATE, or either with :linear behind") from None
    return INNER[name](linear(number, iterations) if schedule else number)
