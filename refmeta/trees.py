"""Lists of arrays as vectors, and the modelling sentence as types."""

from collections.abc import Callable, Iterable
from typing import Any

import autograd.numpy as np  # NumPy, made differentiable

Array = Any  # np.ndarray, or the box that autograd puts around one while it differentiates
Theta = list[Array]
Batch = tuple[Array, Array]  # (x, y)
Supports = list[Batch]  # one batch per inner step
Tasks = list[tuple[Supports, Batch]]  # each (supports, query)
Loss = Callable[[Theta, Batch], Any]  # L(θ; B), a scalar


def axpy(a: float, x: Theta, y: Theta) -> Theta:
    """a·x + y."""
    return [a * xi + yi for xi, yi in zip(x, y, strict=True)]


def add(trees: Iterable[Theta]) -> Theta:
    """Σ trees, leaf by leaf."""
    return [sum(rest, first) for first, *rest in zip(*trees, strict=True)]


def dot(x: Theta, y: Theta) -> Any:
    """⟨x, y⟩."""
    return sum(np.sum(xi * yi) for xi, yi in zip(x, y, strict=True))


def split(theta: Theta, head: int) -> tuple[Theta, Theta]:
    """θ = body + head: all but the last `head` arrays, and those."""
    return list(theta)[: len(theta) - head], list(theta)[len(theta) - head :]


def holding(body: Theta, loss: Loss) -> Loss:
    """The loss of the head alone: (h, B) ↦ L(body + h; B)."""
    # list(h): autograd loses the outer derivative when a plain list meets a traced one.
    return lambda h, batch: loss(body + list(h), batch)
