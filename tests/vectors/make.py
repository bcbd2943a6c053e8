"""A vector from a case: its answers derived, its tolerances measured, its mistakes told apart, all written as JSON.

Every number is derived at least twice by code that shares nothing: by `derivation` and `rules` in rationals or 50-digit
decimals, which is what is written, and by `refmeta.algorithms` through autograd in floating point, which must agree.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from operator import is_
from random import Random
from typing import Any, NamedTuple

import numpy as np

import refmeta
from refmeta import adjoint, stacked
from refmeta.conformance import Case, rules
from refmeta.conformance.mistakes import MISTAKES
from refmeta.conformance.programs import with_mistakes
from refmeta.conformance.rules import Setting
from refmeta.trees import Theta, add
from tests.vectors.arithmetic import DIGITS, Bounded, Kink, fifty_digits, in_kind
from tests.vectors.derivation import derivatives

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
SEPARATION = 100  # a mistake is listed only if it is further off than this many float32 tolerances
MARGIN = 2.0**-6  # from every unit of a relu network to its kink, on the right way
FARTHEST = 1e12  # of a mistake: what diverges is not the same in float32
EXACT_SEPARATION = 1e-3  # the same in the exact tiers, where the tolerance is 0


class Answers(NamedTuple):
    """What is derived of a case, and how well floats can know it."""

    gradient: Theta
    per_task: list[Theta]
    inside: list[dict[str, list[Theta]]]
    scale: list[float]  # of each array the size of what is summed
    tolerance: dict[str, float]  # relative to the scale


def vector(case: Case, exact: bool, difficulty: str) -> dict[str, Any] | None:
    """The vector as JSON has it; None where a case is not exact, near a kink, or tells too little."""
    if (exact and not is_exact(case)) or not is_clear(case):
        return None
    fifty_digits()
    same = in_kind(case, Fraction if exact else Decimal)
    try:
        answers = derived(same, exact)
        if answers is None:
            return None
        assert_agreement(case, answers)
        told = mistakes_told(same, answers)
    except ArithmeticError:  # a unit next to its kink, or a mistake that diverges
        return None
    return None if told is None else written(case, answers, told, exact, difficulty)


def is_exact(case: Case) -> bool:
    """Whether every value on the way to the gradient is exact in float32, in any order of summation."""
    try:
        same, d = in_kind(case, Bounded), derivatives(case)
        same.combine(rules.gradients(d, same.settings))
        for s in same.settings:
            inside(d, s)
    except OverflowError:
        return False
    return True


def is_clear(case: Case) -> bool:
    """Whether no unit comes near a kink on the way to the gradient, in floats."""
    try:
        same = in_kind(case, float)
        rules.gradients(derivatives(same, MARGIN), same.settings)
    except Kink:
        return False
    return True


# --- Derive ---


def derived(same: Case, exact: bool) -> Answers | None:
    """The answers to a case whose numbers are rationals or decimals; None where an array's gradient is next to 0."""
    d, settings = derivatives(same), same.settings
    gradients = rules.gradients(d, settings)
    gradient, scale = same.combine(gradients), [1.0] * len(same.theta)
    tolerance = dict.fromkeys(UNIT, 0.0)
    if not exact:
        scale = sizes(same)
        if min(scale) < 1e-3:
            return None
        tolerance = {dtype: rounding(same, gradient, scale, dtype) for dtype in UNIT}
    return Answers(gradient, same.scaled(gradients), [inside(d, s) for s in settings], scale, tolerance)


def inside(d: rules.Derivatives, s: Setting) -> dict[str, list[Theta]]:
    """The intermediate values: φ_0 … φ_K, ∇L(φ_k; S_k), and for MAML and ANIL v_0 … v_K."""
    phis = rules.path(d, s)
    found = {"phi": phis, "inner_gradient": [d.grad(phi, b) for phi, b in zip(phis, s.supports, strict=False)]}
    return {**found, "adjoint": rules.adjoints(d, s)} if s.curvature else found


def sizes(same: Case) -> list[float]:
    """Of each array the size of what is summed, so that cancellation does not make a tolerance too small."""
    d, sums = derivatives(same), np.zeros(len(same.theta))
    for s in same.settings:
        terms = [rules.gradient(d, s)] + ([rules.gradient(d, s._replace(curvature=None))] if s.curvature else [])
        sums += float(same.factor(s.supports)) * np.max([[norm(leaf) for leaf in tree] for tree in terms], axis=0)
    return list(sums / same.divisor)


def rounding(same: Case, gradient: Theta, scale: list[float], dtype: str) -> float:
    """8 times the largest error of 32 honest evaluations, up to the next power of two; relative to the scale."""
    random, worst = Random(same.id), UNIT[dtype]
    rounded = in_kind(same, np.float32 if dtype == "float32" else float)
    for _ in range(32):
        settings, back = shuffled(rounded, random)
        per_task = rounded.scaled([back(g) for g in rules.gradients(derivatives(same), settings)])
        random.shuffle(per_task)
        worst = max(worst, distance([leaf / same.divisor for leaf in add(per_task)], gradient, scale))
    return float(2.0 ** np.ceil(np.log2(8 * worst)))


def shuffled(same: Case, random: Random) -> tuple[list[Setting], Callable[[Theta], Theta]]:
    """The tasks with their examples, or a quadratic's coordinates, in another order; and how a gradient is put back."""
    if same.model["kind"] == "mlp":
        return [_reordered(s, random) for s in same.settings], lambda g: g
    (t,) = same.theta
    order = random.sample(range(len(t)), len(t))
    changed = same.each(lambda a: a[np.ix_(*[order] * a.ndim)])
    return changed.settings, lambda g: [leaf[np.argsort(order)] for leaf in g]


def _reordered(s: Setting, random: Random) -> Setting:
    """The same task with its examples in another order."""

    def batch(b: Any) -> Any:
        order = random.sample(range(len(b[0])), len(b[0]))
        return b[0][order], b[1][order]

    return s._replace(supports=[batch(b) for b in s.supports], query=batch(s.query))


def distance(got: Theta, expected: Theta, scale: list[float]) -> float:
    """The largest over the arrays of ‖got − expected‖ / scale, the difference taken exactly."""
    pairs = zip(got, expected, scale, strict=True)
    return max(norm(_rational(g) - _rational(e)) / s for g, e, s in pairs)


_rational = np.frompyfunc(lambda v: Fraction(v if isinstance(v, (Fraction, Decimal)) else float(v)), 1, 1)


def norm(leaf: Any) -> float:
    return float(np.linalg.norm(np.asarray(leaf, dtype=object).astype(float)))


# --- Admit ---


def algorithm_of(case: Case, module: Any = refmeta) -> Callable[..., Theta] | None:
    """The module's function that the case is about, with its head; None: it has none."""
    algorithm = getattr(module, case.algorithm, None)
    return partial(algorithm, head=case.head) if algorithm and case.algorithm == "anil" else algorithm


def by_specification(case: Case) -> Iterator[Callable[..., Theta]]:
    """The specification and its adjoint, stacked or not."""
    for algorithm in filter(None, (algorithm_of(case), algorithm_of(case, adjoint))):
        yield from (algorithm, stacked(algorithm))


def assert_agreement(case: Case, answers: Answers) -> None:
    """AssertionError unless the specification gives the same, to the bit where the tier is exact."""
    for dtype in UNIT if answers.tolerance["float64"] == 0 else ("float64",):
        cast = case.astype(dtype)
        for function in by_specification(case):
            per_task = [function(cast.loss_fn, cast.theta, [task], case.alpha) for task in cast.tasks]
            off = distance(cast.combine(per_task), answers.gradient, answers.scale)
            if off > answers.tolerance["float64"]:
                raise AssertionError(f"{case.id}: {function} in {dtype} is off by {off}")


def mistakes_told(same: Case, answers: Answers) -> dict[str, list[Theta]] | None:
    """Of every mistake that is far from the truth each task's gradient; None if one is neither, or diverges."""
    told, tolerance, settings = {}, answers.tolerance["float32"], same.settings
    for name in MISTAKES:
        changed = with_mistakes([name], settings)
        if all(map(is_, changed, settings)):
            continue  # it cannot be made here
        wrong = rules.gradients(derivatives(same), changed)
        off = distance(same.combine(wrong), answers.gradient, answers.scale)
        if off > FARTHEST:
            return None
        if off > (SEPARATION * tolerance or EXACT_SEPARATION):
            told[name] = same.scaled(wrong)
        elif off > max(tolerance, 1e-12):
            return None
    return told


# --- Write ---


def written(case: Case, answers: Answers, told: dict[str, list[Theta]], exact: bool, difficulty: str) -> dict[str, Any]:
    """The vector as JSON has it: plain numbers in the exact tiers, hex floats in the others."""
    write, number = (plain, _number) if exact else (hexed, _short)

    def array(a: Any) -> dict[str, Any]:
        labels = {"labels": True} if a.dtype.kind in "iu" else {}
        return {"shape": list(a.shape), **labels, "data": [int(v) for v in a.ravel()] if labels else write(a)}

    def tree(leaves: Theta, write: Callable[[Any], list[Any]] = write) -> list[Any]:
        return [write(leaf) for leaf in leaves]

    tasks = [
        {"gradient": tree(g), **{key: [tree(t) for t in trees] for key, trees in inside.items()}}
        for g, inside in zip(answers.per_task, answers.inside, strict=True)
    ]
    return {
        "id": case.id,
        "algorithm": case.algorithm,
        "flags": case.flags,
        "difficulty": difficulty,
        **case.to_json(array),
        "alpha": number(case.alpha),
        "expected": {"gradient": tree(answers.gradient), "tasks": tasks},
        "suspects": [{"id": name, "tasks": [tree(t, short) for t in trees]} for name, trees in told.items()],
        "tolerance": {dtype: number(t) for dtype, t in answers.tolerance.items()},
        "scale": [number(s) for s in answers.scale],
        "provenance": {
            "arithmetic": "exact rationals" if exact else f"{DIGITS}-digit decimals, rounded once",
            "derivations": ["by hand and by dual numbers", "autograd through the inner loop"]
            + ["autograd, adjoint recursion"] * hasattr(adjoint, case.algorithm),
        },
    }


def floats(leaf: Any) -> list[float]:
    return [float(v) for v in np.ravel(np.asarray(leaf, dtype=object))]


def plain(leaf: Any) -> list[Any]:
    """Numbers as JSON has them: a dyadic number of few digits is exact in decimal."""
    return [_number(v) for v in floats(leaf)]


def hexed(leaf: Any) -> list[str]:
    return [v.hex() for v in floats(leaf)]


def short(leaf: Any) -> list[str]:
    """In float32: a mistake's gradient need not be known to more digits."""
    return [_short(float(np.float32(v))) for v in floats(leaf)]


def _short(value: float) -> str:
    """float.hex without the zeros at its end."""
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}"


def _number(value: float) -> Any:
    return int(value) if value == int(value) else value
