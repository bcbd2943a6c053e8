"""Numbers for NumPy arrays of Python objects: dual ones, and ones that prove that nothing is ever rounded.

The others are Python's own: `Fraction` where all is rational, 60-digit `Decimal`s, floats to measure rounding.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, getcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from refmeta.conformance import Case

DIGITS = 50
NEXT = 2.0**-14  # to a kink: rounding to float32 moves no unit as far


def fifty_digits() -> None:
    """Set this thread's decimal precision."""
    getcontext().prec = DIGITS + 10  # ten guard digits


class Number:
    """What follows from +, − of one number, and ×."""

    __slots__ = ()

    def __radd__(self, other: Any) -> Any:
        return self + other

    def __rmul__(self, other: Any) -> Any:
        return self * other

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __rsub__(self, other: Any) -> Any:
        return -self + other


class Dual(Number):
    """a + bε with ε² = 0: arithmetic on the first derivative. No frozen dataclass: millions are made."""

    __slots__ = ("a", "b")
    __array_ufunc__ = None  # np.float32 leaves a product to us at once

    def __init__(self, a: Any, b: Any):
        self.a, self.b = a, b

    def __add__(self, other: Any) -> "Dual":
        if isinstance(other, Dual):
            return Dual(self.a + other.a, self.b + other.b)
        return Dual(self.a + other, self.b)

    def __mul__(self, other: Any) -> "Dual":
        if isinstance(other, Dual):
            return Dual(self.a * other.a, self.a * other.b + self.b * other.a)
        return Dual(self.a * other, self.b * other)

    __radd__, __rmul__ = __add__, __mul__  # what Number has, with one call less

    def __truediv__(self, other: Any) -> "Dual":
        if isinstance(other, Dual):
            quotient = self.a / other.a
            return Dual(quotient, (self.b - quotient * other.b) / other.a)
        return Dual(self.a / other, self.b / other)

    def __neg__(self) -> "Dual":
        return Dual(-self.a, -self.b)


class Bounded(Number):
    """A multiple of 2^−q that is a sum of terms of at most m in all, so exact in float32 in any order of summation."""

    def __init__(self, value: Any, q: int | None = None, m: Any = None):
        self.value = Fraction(value)
        self.q = _exponent(self.value) if q is None else q
        self.m = abs(self.value) if m is None else m
        if self.m * Fraction(2) ** self.q >= 2**24:
            raise OverflowError("not exact in float32")

    def __add__(self, other: Any) -> "Bounded":
        if not isinstance(other, (Bounded, int, float)):
            return NotImplemented  # arrays add element by element, dual numbers part by part
        other = _bounded(other)
        return Bounded(self.value + other.value, max(self.q, other.q), self.m + other.m)

    def __mul__(self, other: Any) -> "Bounded":
        if not isinstance(other, (Bounded, int, float)):
            return NotImplemented
        other = _bounded(other)
        return Bounded(self.value * other.value, self.q + other.q, self.m * other.m)

    def __truediv__(self, other: int) -> "Bounded":
        if other & (other - 1):
            raise OverflowError("not a power of two")
        return Bounded(self.value / other, self.q + other.bit_length() - 1, self.m / other)

    def __neg__(self) -> "Bounded":
        return Bounded(-self.value, self.q, self.m)


def _exponent(value: Fraction) -> int:
    """The smallest q with value a multiple of 2^−q; below zero for even numbers."""
    if value.denominator > 1:
        return value.denominator.bit_length() - 1
    number = abs(value.numerator)
    return -((number & -number).bit_length() - 1) if number else -99


def _bounded(value: Any) -> Bounded:
    return value if isinstance(value, Bounded) else Bounded(value)


def exp(v: Any) -> Any:
    """Of a number of any kind."""
    if isinstance(v, Dual):
        e = exp(v.a)
        return Dual(e, e * v.b)
    return _decimal_exp(v, getcontext().prec) if isinstance(v, Decimal) else type(v)(math.exp(v))


def tanh(v: Any) -> Any:
    """Of a number of any kind."""
    if isinstance(v, Dual):
        t = tanh(v.a)
        return Dual(t, (1 - t * t) * v.b)
    return _decimal_tanh(v, getcontext().prec) if isinstance(v, Decimal) else type(v)(math.tanh(v))


@lru_cache(2**14)  # most mistakes follow the right path for a while
def _decimal_exp(v: Decimal, digits: int) -> Decimal:
    return v.exp()


@lru_cache(2**14)
def _decimal_tanh(v: Decimal, digits: int) -> Decimal:
    e = (-2 * abs(v)).exp()
    return ((1 - e) / (1 + e)).copy_sign(v)


class Kink(ArithmeticError):
    """A unit is so near to its kink that rounding may take it to the other side."""


def relu(v: Any, margin: float = NEXT) -> Any:
    """Of a number of any kind. Kink: of one that is nearer than this to 0."""
    if abs(v.a if isinstance(v, Dual) else v) < margin:
        raise Kink
    return v * positive(v)


def positive(v: Any) -> int:
    """The slope of relu at v, or where its value is v."""
    return int((v.a if isinstance(v, Dual) else v) > 0)


def in_kind(case: Case, kind: Callable[[Any], Any]) -> Case:
    """The case with its numbers of one kind; labels stay integers."""
    convert = np.frompyfunc(lambda value: kind(float(value)), 1, 1)

    def array(a: Any) -> Any:
        return a if a.dtype.kind in "iu" else convert(a.astype(object))

    return replace(case.each(array), alpha=kind(float(case.alpha)))
