"""Makes the vectors: `python -m refmeta.conformance.generate [FOLDER]`. Running it again leaves no difference.

Every number is derived at least twice by code that shares nothing: by `derivation` and `rules` in rationals or 50-digit
decimals, which is what is written, and by `refmeta.spec` through autograd in floating point, which must agree.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from refmeta import adjoint, algorithms
from refmeta.conformance import derivation, rules
from refmeta.conformance.cases import FOLDER, FORMAT, FORMAT_VERSION, Case
from refmeta.conformance.rules import Setting
from refmeta.conformance.mistakes import MISTAKES, with_mistakes
from refmeta.fast import stacked
from refmeta.models import MLP
from refmeta.trees import Theta, add

VERSION = "1.0.0"
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
SEPARATION = 100  # a suspect is listed only if it is further off than this many float32 tolerances
EXACT_SEPARATION = 1e-3  # the same in the exact tiers, where the tolerance is 0

NOTES = {
    "Basic": "Any harness that is wired up passes: the loss is linear and one batch is used for everything.",
    "SecondOrder": "The second-order term is of the size of the gradient.",
    "NonCommuting": "The inner Hessians do not commute, so the order of the factors is visible.",
    "UnequalTasks": "The tasks differ, so a task that is lost or counted twice is visible.",
    "UnequalSizes": "Support and query have sizes without a common factor, so a wrong normalisation is visible.",
    "BodyAndHead": "Only the head adapts; the body's gradient runs through the adapted head.",
    "EdgeCase": "An ordinary implementation need not think of it, and a correct one gets it right.",
    "Convention": "Differs from the other vectors in a declared convention.",
}


# --- The settings of a case, in any arithmetic ---


def in_kind(case: Case, kind: Callable[[Any], Any]) -> Case:
    """The case with its numbers of one kind."""
    return replace(case.each(lambda a: derivation.in_arithmetic(kind, a)), alpha=kind(case.alpha))


def settings(case: Case, kind: Callable[[Any], Any]) -> list[Setting]:
    """One Setting for each task, its numbers of one kind."""
    return in_kind(case, kind).settings


# --- Arithmetic that proves that nothing is ever rounded ---


class Bounded:
    """A multiple of 2^−q that is a sum of terms of at most m in all, so exact in float32 in any order of summation."""

    def __init__(self, value: Any, q: int | None = None, m: Any = None):
        self.value = Fraction(value)
        self.q = _exponent(self.value) if q is None else q
        self.m = abs(self.value) if m is None else m
        if self.m * Fraction(2) ** self.q >= 2**24:
            raise OverflowError("not exact in float32")

    def __add__(self, other: Any) -> "Bounded":
        if not isinstance(other, (Bounded, int, float)):
            return NotImplemented
        other = _bounded(other)
        return Bounded(self.value + other.value, max(self.q, other.q), self.m + other.m)

    def __mul__(self, other: Any) -> "Bounded":
        if not isinstance(other, (Bounded, int, float)):
            return NotImplemented  # arrays multiply element by element, dual numbers part by part
        other = _bounded(other)
        return Bounded(self.value * other.value, self.q + other.q, self.m * other.m)

    def __truediv__(self, other: int) -> "Bounded":
        if other & (other - 1):
            raise OverflowError("not a power of two")
        return Bounded(self.value / other, self.q + other.bit_length() - 1, self.m / other)

    def __neg__(self) -> "Bounded":
        return Bounded(-self.value, self.q, self.m)

    def __sub__(self, other: Any) -> "Bounded":
        return self.__add__(-other)

    def __rsub__(self, other: Any) -> "Bounded":
        return (-self).__add__(other)

    __radd__, __rmul__ = __add__, __mul__


def _exponent(value: Fraction) -> int:
    """The smallest q with value a multiple of 2^−q; below zero for even numbers."""
    if value.denominator > 1:
        return value.denominator.bit_length() - 1
    number = abs(value.numerator)
    return -((number & -number).bit_length() - 1) if number else -99


def _bounded(value: Any) -> Bounded:
    return value if isinstance(value, Bounded) else Bounded(value)


def is_exact(case: Case) -> bool:
    """Whether every value on the way to the gradient is exact in float32, in any order of summation."""
    try:
        per_task = rules.gradients(derivation.derivatives(case), settings(case, Bounded))
        in_kind(case, Bounded).combine(per_task)
        for s in settings(case, Bounded):
            rules.adjoints(derivation.derivatives(case), s) if case.algorithm in ("maml", "anil") else None
    except OverflowError:
        return False
    return True


# --- A vector from a case ---


def vector(case: Case, exact: bool, difficulty: str) -> dict[str, Any] | None:
    """The vector as JSON has it; None where the case is not exact, or not tell-tale enough, as it should be."""
    if exact and not is_exact(case):
        return None
    kind: Any = Fraction if exact else Decimal
    derivation.fifty_digits()
    tools, same = derivation.derivatives(case), in_kind(case, kind)
    ways = same.settings
    gradients = rules.gradients(tools, ways)
    per_task, gradient = same.scaled(gradients), same.combine(gradients)
    tolerance, scale = ({"float32": 0.0, "float64": 0.0}, [1.0] * len(gradient))
    if not exact:
        scale = _scale(case, tools, ways)
        if min(scale) < 1e-3:
            return None
        tolerance = {dtype: _tolerance(case, gradient, scale, dtype) for dtype in UNIT}
    _agree(case, gradient, tolerance["float64"], scale)
    limit = EXACT_SEPARATION if exact else SEPARATION * tolerance["float32"]
    suspects, mute = [], False
    for name in MISTAKES:
        changed = rules.gradients(tools, with_mistakes([name], ways))
        distance = _distance(same.combine(changed), gradient, scale)
        if distance > limit:
            wrong = same.scaled(changed)
            suspects.append({"id": name, "tasks": [[_float32(leaf) for leaf in tree] for tree in wrong]})
        elif distance > max(tolerance["float32"], 1e-12):
            mute = True  # neither the same nor clearly different
    if mute:
        return None
    write = _plain if exact else _hex
    return {
        "id": case.id,
        "algorithm": case.algorithm,
        "flags": case.flags,
        "difficulty": difficulty,
        **case.to_json(lambda a: _array(a, write)),
        "alpha": _number(case.alpha, exact),
        "expected": {
            "gradient": [write(leaf) for leaf in gradient],
            "tasks": [
                {
                    "gradient": [write(leaf) for leaf in g],
                    **{key: [[write(leaf) for leaf in t] for t in ts] for key, ts in _inside(tools, s).items()},
                }
                for g, s in zip(per_task, ways, strict=True)
            ],
        },
        "suspects": suspects,
        "tolerance": {dtype: _number(t, exact) for dtype, t in tolerance.items()},
        "scale": [_number(s, exact) for s in scale],
        "provenance": {
            "arithmetic": "exact rationals" if exact else f"{derivation.DIGITS}-digit decimals, rounded once",
            "derivations": ["by hand and by dual numbers", "autograd through the inner loop"]
            + ["autograd, adjoint recursion"] * (case.algorithm in ("maml", "anil")),
        },
    }


def _inside(tools: Any, s: Setting) -> dict[str, list[Any]]:
    """The intermediate values: φ_0 … φ_K, ∇L(φ_k; S_k), and for MAML and ANIL v_0 … v_K."""
    phis = rules.path(tools, s)
    inside = {"phi": phis, "inner_gradient": [tools.grad(*point) for point in rules.points(tools, s)]}
    return {**inside, "adjoint": rules.adjoints(tools, s)} if s.rule is rules.maml else inside


def _scale(case: Case, tools: Any, ways: list[Setting]) -> list[float]:
    """Of each array the size of what is summed, so that cancellation does not make a tolerance too small."""
    sums = np.zeros(len(case.theta))
    for s in ways:
        c = float(case.factor(s.supports))
        terms = [s.rule(tools, s)] + ([rules.fomaml(tools, s)] if s.rule is rules.maml else [])
        sums += c * np.max([[_norm(leaf) for leaf in tree] for tree in terms], axis=0)
    return list(sums / case.divisor)


def _tolerance(case: Case, gradient: Theta, scale: list[float], dtype: str) -> float:
    """8 times the largest error of 32 honest evaluations, up to the next power of two; relative to the scale."""
    kind: Any = np.float32 if dtype == "float32" else float
    random, worst = Random(case.id), UNIT[dtype]
    for _ in range(32):
        ways = [_shuffled(s, random) for s in settings(case, kind)]
        per_task = in_kind(case, kind).scaled(rules.gradients(derivation.derivatives(case), ways))
        random.shuffle(per_task)
        worst = max(worst, _distance([leaf / case.divisor for leaf in add(per_task)], gradient, scale))
    return float(2.0 ** np.ceil(np.log2(8 * worst)))


def _shuffled(s: Setting, random: Random) -> Setting:
    """The same task with its examples in another order."""

    def batch(b: Any) -> Any:
        order = random.sample(range(len(b[0])), len(b[0]))
        return b[0][order], b[1][order]

    return s._replace(supports=[batch(b) for b in s.supports], query=batch(s.query))


def _agree(case: Case, gradient: Theta, tolerance: float, scale: list[float]) -> None:
    """The specification, stacked or not, and its adjoint give the same, to the bit where the tier is exact."""
    derivations = [getattr(algorithms, case.algorithm)]
    if case.algorithm in ("maml", "anil"):
        derivations.append(getattr(adjoint, case.algorithm))
    options = {"head": case.head} if case.algorithm == "anil" else {}
    for dtype in UNIT if tolerance == 0 else ("float64",):
        cast = case.astype(dtype)
        for function in (f for d in derivations for f in (d, stacked(d))):
            per_task = [function(cast.loss_fn, cast.theta, [task], case.alpha, **options) for task in cast.tasks]
            distance = _distance(cast.combine(per_task), gradient, scale)
            if distance > tolerance:
                raise AssertionError(f"{case.id}: {function} in {dtype} is off by {distance}")


def _distance(got: Theta, expected: Theta, scale: list[float]) -> float:
    """The largest over the arrays of ‖got − expected‖ / scale, the difference taken exactly."""
    pairs = zip(got, expected, scale, strict=True)
    return max(_norm(_rational(g) - _rational(e)) / s for g, e, s in pairs)


_rational = np.frompyfunc(lambda v: Fraction(v if isinstance(v, (Fraction, Decimal)) else float(v)), 1, 1)


def _norm(leaf: Any) -> float:
    return float(np.linalg.norm(np.asarray(leaf, dtype=object).astype(float)))


def _plain(leaf: Any) -> list[Any]:
    """Numbers as JSON has them: a dyadic number of few digits is exact in decimal."""
    return [_number(float(v), True) for v in np.ravel(np.asarray(leaf, dtype=object))]


def _hex(leaf: Any) -> list[str]:
    return [float(v).hex() for v in np.ravel(np.asarray(leaf, dtype=object))]


def _float32(leaf: Any) -> list[str]:
    return [_short(float(np.float32(float(v)))) for v in np.ravel(np.asarray(leaf, dtype=object))]


def _short(value: float) -> str:
    """float.hex without the zeros at its end."""
    mantissa, exponent = value.hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}"


def _number(value: float, exact: bool) -> Any:
    if not exact:
        return _short(float(value))
    return int(value) if value == int(value) else value


def _array(a: Any, write: Callable[[Any], list[Any]]) -> dict[str, Any]:
    if a.dtype.kind in "iu":
        return {"shape": list(a.shape), "labels": True, "data": [int(v) for v in a.ravel()]}
    return {"shape": list(a.shape), "data": write(a)}


# --- The cases ---

DEFAULT = {"tasks": "sum", "examples": "mean", "reptile": "displacement"}


def draw(random: Random, shape: tuple[int, ...], low: int, high: int, unit: int = 1) -> Any:
    """Whole numbers from low to high, over unit."""
    size = int(np.prod(shape, dtype=int))
    return np.array([low + int(random.random() * (high - low + 1)) for _ in range(size)]).reshape(shape) / unit


def quadratic(random: Random, algorithm: str, steps: int, tasks: int, size: int = 0) -> dict[str, Any]:
    """ANIL has a body of two numbers and a head of one; the others one array."""
    sizes = [2, 1] if algorithm == "anil" else [size or (2 if steps > 3 else 3)]
    d = sum(sizes)

    def batch() -> Any:
        A = draw(random, (d, d), -1 if steps > 3 else -2, 1 if steps > 3 else 2)
        return np.triu(A) + np.triu(A, 1).T, draw(random, (d,), -2, 2)

    return {
        "theta": [draw(random, (size,), -2, 2) for size in sizes],
        "names": ["body", "head"] if algorithm == "anil" else ["t"],
        "tasks": [([batch() for _ in range(steps)], batch()) for _ in range(tasks)],
        "alpha": 0.5 if steps > 3 else 0.25,
        "head": 1 if algorithm == "anil" else None,
        "model": {"kind": "quadratic"},
        "loss": {"kind": "quadratic"},
    }


def canary(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    """A linear loss and one batch: the gradient is the same wherever and on whatever it is taken."""
    made = quadratic(random, algorithm, 1, 1, size=2)
    b = np.arange(1.0, 1 + sum(leaf.size for leaf in made["theta"]))
    batch = (np.zeros((len(b), len(b))), b)
    return {**made, "tasks": [([batch], batch)]}


def network(
    random: Random,
    algorithm: str,
    steps: int,
    tasks: int,
    widths: tuple[int, ...] = (2, 3, 2),
    loss: str = "squared_error",
    unit: int = 16,
    sizes: tuple[tuple[int, int], ...] = ((5, 7), (4, 9), (3, 8), (2, 5)),
    **options: Any,
) -> dict[str, Any]:
    net = MLP(widths)

    def batch(n: int) -> Any:
        x = draw(random, (n, widths[0]), -2 * unit, 2 * unit, unit)
        if loss == "cross_entropy":
            return x, draw(random, (n,), 0, widths[-1] - 1).astype(np.int64)
        return x, draw(random, (n, widths[-1]), -2 * unit, 2 * unit, unit)

    return {
        "theta": [draw(random, shape, -unit, unit, unit) for shape in net.shapes],
        "names": net.names,
        "tasks": [([batch(n) for _ in range(steps)], batch(m)) for n, m in sizes[:tasks]],
        "alpha": float(np.float32(0.3)),
        "head": 2 if algorithm == "anil" else None,
        "model": {"kind": "mlp", "widths": list(widths), "activation": "tanh"},
        "loss": {"kind": loss},
        **options,
    }


def regression(random: Random, algorithm: str, steps: int, tasks: int) -> dict[str, Any]:
    made = network(random, algorithm, steps, tasks, widths=(2, 1), unit=1, sizes=((4, 2), (2, 4)), alpha=0.5)
    return {**made, "head": 1 if algorithm == "anil" else None}


def softmax(random: Random, algorithm: str, steps: int, tasks: int) -> dict[str, Any]:
    return network(random, algorithm, steps, tasks, widths=(2, 3, 3), loss="cross_entropy", alpha=0.5)


def no_steps(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    return network(random, algorithm, 0, 2)


def alpha_zero(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    return network(random, algorithm, 2, 2, alpha=0.0)


def empty_head(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    return network(random, algorithm, 2, 2, head=0)


def all_head(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    return network(random, algorithm, 2, 2, head=4)


def ragged(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    """One, two and three inner steps, with batches of every size."""
    parts = [network(random, algorithm, k, 1, sizes=((n, m),)) for k, n, m in ((1, 5, 2), (3, 2, 3), (2, 3, 7))]
    return {**parts[0], "tasks": [part["tasks"][0] for part in parts]}


def repeated_batch(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    made = network(random, algorithm, 1, 2)
    return {**made, "tasks": [(supports * 3, query) for supports, query in made["tasks"]]}


def scalar(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    """θ is one number, an array without axes."""
    made = quadratic(random, algorithm, 2, 2, size=1)
    return {**made, "theta": [made["theta"][0].reshape(())]}


def mean_over_tasks(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    return network(random, algorithm, 2, 3, conventions={**DEFAULT, "tasks": "mean"})


def sum_over_examples(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    return network(random, algorithm, 2, 2, alpha=0.03125, conventions={**DEFAULT, "examples": "sum"})


def over_alpha(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    return network(random, algorithm, 3, 2, conventions={**DEFAULT, "reptile": "over_alpha"})


def over_alpha_k(random: Random, algorithm: str, *_: Any) -> dict[str, Any]:
    return network(random, algorithm, 3, 2, conventions={**DEFAULT, "reptile": "over_alpha_k"})


def one_output(random: Random, algorithm: str, steps: int, tasks: int) -> dict[str, Any]:
    return network(random, algorithm, steps, tasks, widths=(2, 3, 1))


Recipe = tuple[str, Callable[..., dict[str, Any]], int, int]
FIVE = ("maml", "fomaml", "anil", "reptile", "joint")

TIERS: dict[str, tuple[bool, str, list[Recipe]]] = {
    "canary": (True, "basic", [(a, canary, 1, 1) for a in FIVE]),
    "quadratic": (
        True,
        "average",
        [("maml", quadratic, k, t) for k, t in ((1, 1), (1, 3), (2, 2), (3, 3), (5, 2))]
        + [("fomaml", quadratic, k, t) for k, t in ((2, 3), (3, 2))]
        + [("anil", quadratic, k, t) for k, t in ((1, 2), (2, 3), (3, 2))]
        + [("reptile", quadratic, k, t) for k, t in ((2, 3), (3, 2), (5, 4))]
        + [("joint", quadratic, 1, 3)],
    ),
    "regression": (
        True,
        "average",
        [("maml", regression, 1, 2), ("maml", regression, 2, 2), ("fomaml", regression, 2, 2)]
        + [("anil", regression, 1, 2), ("reptile", regression, 2, 2), ("joint", regression, 1, 2)],
    ),
    "tanh": (
        False,
        "higher",
        [("maml", network, k, t) for k, t in ((1, 3), (3, 3), (5, 2))]
        + [("fomaml", network, 3, 3), ("anil", network, 1, 3), ("anil", network, 3, 3)]
        + [("reptile", network, 3, 3), ("reptile", network, 5, 4), ("joint", network, 1, 3)]
        + [("maml", one_output, 2, 3), ("reptile", one_output, 3, 3)],
    ),
    "softmax": (
        False,
        "higher",
        [("maml", softmax, 2, 3), ("fomaml", softmax, 2, 2), ("anil", softmax, 3, 2)]
        + [("reptile", softmax, 3, 2), ("joint", softmax, 1, 2)],
    ),
    "edge": (
        False,
        "average",
        [("maml", f, 0, 0) for f in (no_steps, alpha_zero, ragged, repeated_batch, mean_over_tasks, sum_over_examples)]
        + [("anil", empty_head, 0, 0), ("anil", all_head, 0, 0)]
        + [("reptile", over_alpha, 0, 0), ("reptile", over_alpha_k, 0, 0)],
    ),
    "scalar": (True, "average", [("maml", scalar, 0, 0), ("reptile", scalar, 0, 0)]),
}


def make(recipe: Recipe, tier: str, exact: bool, difficulty: str) -> dict[str, Any]:
    """The first case of a fixed sequence that is exact, and on which every suspect is the truth or far from it."""
    algorithm, function, steps, tasks = recipe
    name = f"{algorithm}-{tier}"
    if function.__name__ not in (tier, "network"):
        name += f"-{function.__name__.replace('_', '-')}"
    if steps and tier != "canary":
        name += f"-k{steps}-t{tasks}"
    for seed in range(400):
        made = function(Random(f"{name} {seed}"), algorithm, steps, tasks)
        values = {"conventions": DEFAULT, **made}
        case = Case(id=name, algorithm=algorithm, tier=tier, flags=_flags(tier, algorithm, function, values), **values)
        written = vector(case, exact, difficulty)
        if written is not None:
            return written
    raise RuntimeError(f"{name}: no case found")


def _flags(tier: str, algorithm: str, function: Any, values: dict[str, Any]) -> list[str]:
    if tier == "canary":
        return ["Basic"]
    steps = max(len(supports) for supports, _ in values["tasks"])
    return [
        flag
        for flag, holds in {
            "SecondOrder": algorithm in ("maml", "anil") and steps > 0 and values["alpha"] > 0,
            "NonCommuting": algorithm in ("maml", "anil") and steps > 1 and values["alpha"] > 0,
            "UnequalTasks": len(values["tasks"]) > 1,
            "UnequalSizes": values["model"]["kind"] == "mlp" and tier in ("tanh", "softmax"),
            "BodyAndHead": algorithm == "anil",
            "EdgeCase": tier in ("edge", "scalar"),
            "Convention": values["conventions"] != DEFAULT,
        }.items()
        if holds
    ]


def files() -> Iterator[tuple[str, bytes]]:
    """Every file of the folder: the tiers, then the manifest."""
    entries = {}
    for tier, (exact, difficulty, recipes) in TIERS.items():
        vectors = [make(recipe, tier, exact, difficulty) for recipe in recipes]
        flags = {flag for v in vectors for flag in v["flags"]}
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "tier": tier}
        notes = {flag: note for flag, note in NOTES.items() if flag in flags}
        data = _text({**head, "notes": notes, "vectors": vectors})
        ids = [v["id"] for v in vectors]
        entries[f"{tier}.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "ids": ids}
        yield f"{tier}.json", data
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "vectors_version": VERSION,
        "files": entries,
    }
    yield "manifest.json", _text(manifest)


def _text(content: dict[str, Any]) -> bytes:
    """JSON with one line for each array of numbers."""
    text = json.dumps(_lines(content), indent=1, ensure_ascii=False, allow_nan=False)
    return (text.replace('"\\u0001', "").replace('\\u0001"', "").replace('\\"', '"') + "\n").encode()


def _lines(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lines(item) for key, item in value.items()}
    if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        return f"\x01{json.dumps(value, separators=(',', ':'))}\x01"
    return [_lines(item) for item in value] if isinstance(value, list) else value


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files():
        (folder / name).write_bytes(data)
        print(f"{name}: {len(data):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
