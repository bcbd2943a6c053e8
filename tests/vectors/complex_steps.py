"""The gradient of a network's adapted loss by complex steps, without autograd, dual numbers or adjoints.

The complex step ∂F/∂θ_j = Im F(θ + i h e_j) / h has no cancellation: with h = 1e−30 it is exact to rounding.
"""

import numpy as np

from refmeta.conformance.rules import flat, unflat
from tests.vectors.derivation import forward, network


def loss(theta, batch, activation):
    """The mean over the examples: cross-entropy if y are labels, else squared error."""
    x, y = batch
    out = forward(theta, x, activation)[-1]
    if y.dtype.kind in "iu":
        return np.mean(np.log(np.exp(out).sum(-1)) - out[np.arange(len(y)), y])
    return ((out - y) ** 2).mean()


def objective(theta, tasks, alpha, head=None, activation="tanh"):
    """Σ_i L(φ_i(θ); Q_i), φ_i by plain gradient steps on the last `head` arrays."""
    total, first = 0, 0 if head is None else len(theta) - head
    for supports, query in tasks:
        phi = list(theta)
        for support in supports:
            g = network(phi, support, activation=activation)
            phi = [p - alpha * gp * (i >= first) for i, (p, gp) in enumerate(zip(phi, g, strict=True))]
        total = total + loss(phi, query, activation)
    return total


def meta_gradient(theta, tasks, alpha, head=None, activation="tanh", h=1e-30):
    """∇_θ of the objective by complex steps, one coordinate at a time."""
    point = flat(theta)
    steps = point + 1j * h * np.eye(len(point))
    return unflat(
        np.array([objective(unflat(p, theta), tasks, alpha, head, activation).imag / h for p in steps]), theta
    )
