"""One task's gradient by explicit rules, from a loss's derivatives alone.

The rules never call the specification: they are a further derivation of the same gradients, on any arrays that add
and multiply (floats, rationals, 50-digit decimals), and the ground on which `mistakes` makes its changes.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from refmeta.trees import Batch, Supports, Theta, axpy


class Derivatives(NamedTuple):
    """Of a loss L: grad(φ, B) = ∇L(φ; B) and hvp(φ, B, v) = ∇²L(φ; B) v."""

    grad: Callable[[Theta, Batch], Theta]
    hvp: Callable[[Theta, Batch, Theta], Theta]


class Setting(NamedTuple):
    """All that determines one task's gradient. A mistake is a change of one thing in it."""

    rule: Callable[[Derivatives, "Setting"], Theta]
    theta: Theta
    supports: Supports
    query: Batch
    alpha: Any
    moves: tuple[bool, ...]  # which arrays of θ the inner loop adapts
    n: int | None = None  # examples of a support batch; None where a batch has no examples
    outputs: int | None = None  # of a network under squared error
    leaks: bool = False  # the next task starts where this one ended
    together: bool = False  # the next task takes its steps after this one's, and all are differentiated


def gradients(d: Derivatives, settings: Iterable[Setting]) -> list[Theta]:
    """The gradient of every task by its own rule."""
    found, start, before = [], None, list[Batch]()
    for s in settings:
        if s.leaks and start is not None:
            s = s._replace(theta=start)
        if s.together:
            s = s._replace(supports=before + s.supports)
        found.append(s.rule(d, s))
        start, before = path(d, s)[-1] if s.leaks else None, s.supports
    return found


def path(d: Derivatives, s: Setting) -> list[Theta]:
    """φ_0 … φ_K: φ ← φ − α P ∇L(φ; S), P zero on the arrays that do not move."""
    phis = [s.theta]
    for support in s.supports:
        phis.append(axpy(-s.alpha, kept(d.grad(phis[-1], support), s.moves), phis[-1]))
    return phis


def pull_back(d: Derivatives, s: Setting, v: Theta, points: Sequence[tuple[Theta, Batch]]) -> Theta:
    """v ← (I − α ∇²L(φ; S) P) v for every point (φ, S), the last first."""
    for phi, support in reversed(points):
        v = axpy(-s.alpha, d.hvp(phi, support, kept(v, s.moves)), v)
    return v


def kept(v: Theta, moves: Sequence[bool]) -> Theta:
    """P v: zero where nothing moves."""
    return [leaf if move else 0 * leaf for leaf, move in zip(v, moves, strict=True)]


def moves(arrays: int, head: int | None) -> tuple[bool, ...]:
    """Which of θ's arrays adapt: the last `head`, or all."""
    return tuple(head is None or i >= arrays - head for i in range(arrays))


def setting(algorithm: str, theta: Theta, task: tuple[Supports, Batch], alpha: Any, head: int | None) -> Setting:
    """One task of an algorithm without mistakes; the head counts for ANIL alone."""
    return Setting(RULES[algorithm], theta, *task, alpha, moves(len(theta), head if algorithm == "anil" else None))


def points(d: Derivatives, s: Setting) -> list[tuple[Theta, Batch]]:
    """(φ_0, S_0) … (φ_{K−1}, S_{K−1}): where the inner gradients are taken."""
    return list(zip(path(d, s), s.supports, strict=False))


def maml(d: Derivatives, s: Setting) -> Theta:
    phis = path(d, s)
    return pull_back(d, s, d.grad(phis[-1], s.query), list(zip(phis, s.supports, strict=False)))


def fomaml(d: Derivatives, s: Setting) -> Theta:
    return d.grad(path(d, s)[-1], s.query)


def reptile(d: Derivatives, s: Setting) -> Theta:
    return axpy(-1, path(d, s)[-1], s.theta)


def joint(d: Derivatives, s: Setting) -> Theta:
    return d.grad(s.theta, s.query)


RULES = {"maml": maml, "fomaml": fomaml, "anil": maml, "reptile": reptile, "joint": joint}


def adjoints(d: Derivatives, s: Setting) -> list[Theta]:
    """v_0 … v_K: the gradient of the query loss with respect to φ_0 … φ_K."""
    vs = [fomaml(d, s)]
    for point in reversed(points(d, s)):
        vs.insert(0, pull_back(d, s, vs[0], [point]))
    return vs


def flat(theta: Theta) -> np.ndarray:
    """All arrays as one float64 vector."""
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in theta])


def unflat(t: np.ndarray, like: Theta) -> Theta:
    """The vector's numbers as arrays of these shapes."""
    ends = accumulate(leaf.size for leaf in like)
    return [t[end - leaf.size : end].reshape(leaf.shape) for end, leaf in zip(ends, like, strict=True)]
