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


class Update(NamedTuple):
    """How an inner step is made of a gradient: plainly, unless a mistake says otherwise.

    m ← momentum m + clip(∇L + decay φ, ±clamp), φ ← φ − α coolᵏ m
    """

    momentum: float = 0
    decay: float = 0
    cool: float = 1
    clamp: float = float("inf")


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
    update: Update = Update()
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
    phis, m = [s.theta], list[Any]()
    for k, support in enumerate(s.supports):
        g = d.grad(phis[-1], support)
        if s.update != Update():
            g = [np.clip(leaf, -s.update.clamp, s.update.clamp) for leaf in axpy(s.update.decay, phis[-1], g)]
        m = axpy(s.update.momentum, m, g) if m and s.update.momentum else g
        phis.append(axpy(-s.alpha * s.update.cool**k, kept(m, s.moves), phis[-1]))
    return phis


def pull_back(d: Derivatives, s: Setting, v: Theta, points: Sequence[tuple[Theta, Batch]]) -> Theta:
    """v ← (I − α ∇²L(φ; S) P) v for every point (φ, S), the last first."""
    if s.update != Update():
        return pull_back_update(d, s, v, points)
    for phi, support in reversed(points):
        v = axpy(-s.alpha, d.hvp(phi, support, kept(v, s.moves)), v)
    return v


def pull_back_update(d: Derivatives, s: Setting, v: Theta, points: Sequence[tuple[Theta, Batch]]) -> Theta:
    """The same for other updates: w ← momentum w − α coolᵏ P v is the derivative in m, v ← v + (∇²L + decay) w."""
    w = [0 * leaf for leaf in v]
    for k, (phi, support) in reversed(list(enumerate(points))):
        w = axpy(s.update.momentum, w, [-s.alpha * s.update.cool**k * leaf for leaf in kept(v, s.moves)])
        g = axpy(s.update.decay, phi, d.grad(phi, support))
        free = [leaf * (abs(gi) < s.update.clamp) for leaf, gi in zip(w, g, strict=True)]
        v = axpy(s.update.decay, free, axpy(1, d.hvp(phi, support, free), v))
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
