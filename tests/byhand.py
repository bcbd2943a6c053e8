"""The gradient of a tanh network by hand, without autograd; it takes complex θ, so steps can be complex.

The complex step ∂F/∂θ_j = Im F(θ + i h e_j) / h has no cancellation: with h = 1e−30 it is exact to rounding.
"""

import numpy as np
from problems import flat, unflat


def forward(theta, x):
    """The values of all layers: x, tanh(…), …, the output."""
    values = [x]
    for layer in range(0, len(theta), 2):
        z = values[-1] @ theta[layer] + theta[layer + 1]
        values.append(z if layer == len(theta) - 2 else np.tanh(z))
    return values


def log_softmax(z):
    z = z - z.real.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def loss(theta, batch):
    x, y = batch
    out = forward(theta, x)[-1]
    if np.issubdtype(y.dtype, np.integer):
        return -log_softmax(out)[np.arange(len(y)), y].mean()
    return ((out - y) ** 2).mean()


def gradient(theta, batch):
    """∇L(θ; batch), by the chain rule from the last layer to the first."""
    x, y = batch
    *values, out = forward(theta, x)
    if np.issubdtype(y.dtype, np.integer):
        g = (np.exp(log_softmax(out)) - np.eye(out.shape[1])[y]) / len(y)
    else:
        g = 2 * (out - y) / out.size
    leaves = []
    for layer, value in reversed(list(enumerate(values))):
        leaves = [value.T @ g, g.sum(0), *leaves]
        g = (g @ theta[2 * layer].T) * (1 - value**2)
    return leaves


def objective(theta, tasks, alpha, head=None):
    """Σ_i L(φ_i(θ); Q_i), φ_i by plain gradient steps on the last `head` arrays."""
    total, first = 0, 0 if head is None else len(theta) - head
    for supports, query in tasks:
        phi = list(theta)
        for support in supports:
            g = gradient(phi, support)
            phi = [p - alpha * gp * (i >= first) for i, (p, gp) in enumerate(zip(phi, g, strict=True))]
        total = total + loss(phi, query)
    return total


def meta_gradient(theta, tasks, alpha, head=None, h=1e-30):
    """∇_θ of the objective by complex steps, one coordinate at a time."""
    point = flat(theta)
    steps = point + 1j * h * np.eye(len(point))
    return unflat(np.array([objective(unflat(p, theta), tasks, alpha, head).imag / h for p in steps]), theta)
