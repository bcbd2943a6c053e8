"""The derivatives of the vectors' losses by hand, in arithmetic as exact as one likes.

Written for NumPy arrays of Python objects (`arithmetic`): rationals in the exact tiers, 60-digit decimals in the
certified ones, floats of either size to measure rounding; also for arrays of complex numbers. Gradients are written out
layer by layer; a Hessian times a vector is the dual part of the gradient at φ + εv, ε² = 0. No line is shared with
`refmeta.algorithms` or autograd, which must agree: so this may be the one gradient by hand of whoever tests.
`tests.bench.pearlmutter` has another, for it is measured, and written for speed.
"""

from functools import partial
from typing import Any

import numpy as np

from refmeta.conformance import Case
from refmeta.conformance.rules import Derivatives
from refmeta.trees import Batch, Theta
from tests.vectors.arithmetic import NEXT, Dual, exp, positive, relu, tanh

_exp, _tanh, _positive = (np.frompyfunc(f, 1, 1) for f in (exp, tanh, positive))
_ahead, _dual_part = (
    np.frompyfunc(Dual, 2, 1),
    np.frompyfunc(lambda value: value.b if isinstance(value, Dual) else 0 * value, 1, 1),
)


def derivatives(case: Case, margin: float = NEXT) -> Derivatives:
    """The derivatives of the case's loss, for arrays of objects. Kink: a unit is nearer than `margin` to one."""
    named = {"examples": case.conventions["examples"], "activation": case.model.get("activation"), "margin": margin}
    grad = quadratic if case.model["kind"] == "quadratic" else partial(network, **named)

    def hvp(phi: Theta, batch: Batch, v: Theta) -> Theta:
        return [_dual_part(leaf) for leaf in grad([_ahead(p, w) for p, w in zip(phi, v, strict=True)], batch)]

    return Derivatives(grad, hvp)


def quadratic(phi: Theta, batch: Batch) -> Theta:
    """∇ of ½ tᵀAt − bᵀt, t all arrays of φ one after the other."""
    A, b = batch
    t = np.concatenate([np.ravel(np.asarray(leaf, object)) for leaf in phi])
    parts = np.split(A @ t - b, np.cumsum([np.size(leaf) for leaf in phi])[:-1])
    return [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, phi, strict=True)]


def network(phi: Theta, batch: Batch, examples: str = "mean", activation: str = "tanh", margin: float = NEXT) -> Theta:
    """∇L(φ; B) of a network: cross-entropy if y are labels, else squared error."""
    x, y = batch
    *values, out = forward(phi, x, activation, margin)
    g = _softmax_minus(out, y) if y.dtype.kind in "iu" else 2 * (out - y)
    if examples == "mean":
        g = g / (len(y) if y.dtype.kind in "iu" else out.size)
    leaves: Theta = []
    for layer, value in reversed(list(enumerate(values))):
        leaves = [value.T @ g, g.sum(0), *leaves]
        if layer:
            g = (g @ phi[2 * layer].T) * SLOPES[activation](value)
    return leaves


def forward(phi: Theta, x: Any, activation: str = "tanh", margin: float = NEXT) -> list[Any]:
    """The values of all layers: x, tanh(…), …, the output."""
    values, active = [x], ACTIVATIONS[activation](margin)
    for layer in range(0, len(phi), 2):
        z = values[-1] @ phi[layer] + phi[layer + 1]
        values.append(z if layer == len(phi) - 2 else _of(*active, z))
    return values


def _softmax_minus(out: Any, y: Any) -> Any:
    """softmax(out) − one_hot(y)."""
    e = _of(_exp, np.exp, out)
    g = e / e.sum(1, keepdims=True)
    for row, label in enumerate(y):
        g[row, label] = g[row, label] - 1
    return g


ACTIVATIONS: dict[str, Any] = {
    "tanh": lambda margin: (_tanh, np.tanh),
    "relu": lambda margin: (np.frompyfunc(partial(relu, margin=margin), 1, 1), lambda z: z * (z.real > 0)),
}
SLOPES = {
    "tanh": lambda value: 1 - value * value,
    "relu": lambda value: _of(_positive, lambda value: value.real > 0, value),
}


def _of(objects: Any, numbers: Any, z: Any) -> Any:
    return (objects if z.dtype == object else numbers)(z)
