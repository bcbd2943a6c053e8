"""The derivatives of the vectors' losses by hand, in arithmetic as exact as one likes.

Written for NumPy arrays of Python objects: rationals (`Fraction`) in the exact tiers, 50-digit `Decimal`s in the
certified ones, floats of either size to measure rounding. Gradients are written out layer by layer; a Hessian times a
vector is the dual part of the gradient at φ + εv, ε² = 0. No line is shared with `refmeta.algorithms` or autograd.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, getcontext
from typing import Any

import numpy as np

from refmeta.conformance.cases import Case
from refmeta.conformance.rules import Derivatives
from refmeta.trees import Batch, Theta

DIGITS = 50


@dataclass(frozen=True, eq=False)
class Dual:
    """a + bε with ε² = 0: arithmetic on the first derivative."""

    a: Any
    b: Any

    def __add__(self, other: Any) -> "Dual":
        other = _dual(other)
        return Dual(self.a + other.a, self.b + other.b)

    def __mul__(self, other: Any) -> "Dual":
        other = _dual(other)
        return Dual(self.a * other.a, self.a * other.b + self.b * other.a)

    def __truediv__(self, other: Any) -> "Dual":
        other = _dual(other)
        quotient = self.a / other.a
        return Dual(quotient, (self.b - quotient * other.b) / other.a)

    def __neg__(self) -> "Dual":
        return Dual(-self.a, -self.b)

    def __sub__(self, other: Any) -> "Dual":
        return self + -_dual(other)

    def __rsub__(self, other: Any) -> "Dual":
        return _dual(other) + -self

    __radd__, __rmul__ = __add__, __mul__


def _dual(value: Any) -> Dual:
    return value if isinstance(value, Dual) else Dual(value, 0 * value)


def exp(v: Any) -> Any:
    if isinstance(v, Dual):
        e = exp(v.a)
        return Dual(e, e * v.b)
    return v.exp() if isinstance(v, Decimal) else type(v)(math.exp(v))


def tanh(v: Any) -> Any:
    if isinstance(v, Dual):
        t = tanh(v.a)
        return Dual(t, (1 - t * t) * v.b)
    if isinstance(v, Decimal):
        e = (-2 * abs(v)).exp()
        return ((1 - e) / (1 + e)).copy_sign(v)
    return type(v)(math.tanh(v))


_tanh, _exp = np.frompyfunc(tanh, 1, 1), np.frompyfunc(exp, 1, 1)


def gradient(case: Case, phi: Theta, batch: Batch) -> Theta:
    """∇L(φ; B) of a vector's loss, in the arithmetic of the arrays given."""
    if case.model["kind"] == "quadratic":
        A, b = batch
        t = np.concatenate([np.ravel(np.asarray(leaf, object)) for leaf in phi])
        ends = np.cumsum([np.size(leaf) for leaf in phi])[:-1]
        parts = np.split(A @ t - b, ends)
        return [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, phi, strict=True)]
    x, y = batch
    values = [x]
    for layer in range(0, len(phi), 2):
        z = values[-1] @ phi[layer] + phi[layer + 1]
        values.append(z if layer == len(phi) - 2 else _tanh(z))
    out = values.pop()
    g = _output_gradient(case, out, y)
    leaves: Theta = []
    for layer, value in reversed(list(enumerate(values))):
        leaves = [value.T @ g, g.sum(0), *leaves]
        g = (g @ phi[2 * layer].T) * (1 - value * value)
    return leaves


def _output_gradient(case: Case, out: Any, y: Any) -> Any:
    n, m = out.shape
    if case.loss["kind"] == "squared_error":
        g, entries = 2 * (out - y), n * m
    else:
        e = _exp(out)
        g, entries = e / e.sum(1, keepdims=True), n
        for row, label in enumerate(y):
            g[row, label] = g[row, label] - 1
    return g if case.conventions["examples"] == "sum" else g / entries


def derivatives(case: Case) -> Derivatives:
    """The derivatives of the case's loss, for arrays of objects."""

    def grad(phi: Theta, batch: Batch) -> Theta:
        return gradient(case, phi, batch)

    def hvp(phi: Theta, batch: Batch, v: Theta) -> Theta:
        ahead = [_duals(p, w) for p, w in zip(phi, v, strict=True)]
        return [_dual_part(leaf) for leaf in gradient(case, ahead, batch)]

    return Derivatives(grad, hvp)


_duals = np.frompyfunc(Dual, 2, 1)
_dual_part = np.frompyfunc(lambda value: _dual(value).b, 1, 1)


def in_arithmetic(kind: Callable[[Any], Any], array: Any) -> Any:
    """The same numbers as objects of one kind; labels stay integers."""
    array = np.asarray(array)
    if array.dtype.kind in "iu":
        return array
    return np.frompyfunc(lambda value: kind(float(value)), 1, 1)(array.astype(object))


def fifty_digits() -> None:
    """Set this thread's decimal precision."""
    getcontext().prec = DIGITS + 10  # ten guard digits
