"""Which known mistake gives exactly this wrong answer?

For each mistake a vector holds the wrong gradient c_i of every task i. A mistake and weights w explain an answer g if
g = Σ_i w_i c_i within rounding; the weights say whether tasks were summed, averaged or lost. An explanation holds for
an algorithm only if it holds for *all* its vectors, those that passed included. So none is a guess.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from refmeta.conformance.cases import Case, Vector
from refmeta.conformance.mistakes import MISTAKES, with_mistakes
from refmeta.conformance.rules import flat, gradients
from refmeta.trees import Theta


class Factor(NamedTuple):
    """What a sum over tasks is multiplied by: a number of four digits, or ±1 times a quantity that has a name."""

    number: float = 1.0
    name: str = ""

    @property
    def named(self) -> bool:
        """Whether it is more than digits; ±1 are names."""
        return bool(self.name) or abs(self.number) == 1

    def __str__(self) -> str:
        return "-" * (self.number < 0) + self.name if self.name else f"{self.number:.4g}"


Pattern = str | tuple[float, ...]  # which tasks count: a key of patterns(), or the weight of each


class Explanation(NamedTuple):
    """The mistakes made in every task, the tasks that count, and the factor of the sum over them."""

    suspects: tuple[str, ...] = ()
    tasks: Pattern = "all"
    scale: Factor = Factor()

    @property
    def mistakes(self) -> int:
        """How many things it says are other than they should be."""
        return len(self.suspects) + (self.tasks != "all") + (self.scale != Factor())

    @property
    def convention(self) -> bool:
        """Whether nothing but a positive factor differs."""
        return not self.suspects and self.tasks == "all" and self.scale.number > 0


Fit = tuple[Pattern, Factor]
Answered = tuple[Vector, Theta, float]  # a vector, the answer to it, and how far from that an explanation may be
ZERO = Explanation(("zero",))  # every gradient is zero


def patterns(n: int) -> dict[str, np.ndarray]:
    """The weights of n tasks under the patterns that have a name."""
    first, last = np.eye(n)[[0, -1]]
    return {
        "all": 0 * last + 1,
        "last": last,
        "first": first,
        "all but the last": 1 - last,
        "all but the first": 1 - first,
    }


def factors(tasks: int, alpha: float, steps: int, algorithm: str) -> dict[Factor, float]:
    """The factors that have a name."""
    named = {"": 1.0, "1/tasks": 1 / tasks, "tasks": float(tasks)}
    if alpha and algorithm == "reptile":
        named |= {"1/alpha": 1 / alpha, "alpha": alpha, "1/(alpha tasks)": 1 / (alpha * tasks)}
        if steps:
            named |= {"1/(alpha steps)": 1 / (alpha * steps), "1/(alpha steps tasks)": 1 / (alpha * steps * tasks)}
    flipped = {Factor(-1, name): -c for name, c in named.items() if name in ("", "1/tasks", "1/alpha")}
    return {Factor(1, name): c for name, c in named.items()} | flipped


def matches(got: np.ndarray, per_task: np.ndarray, known: dict[Factor, float], limit: float) -> set[Fit]:
    """The (tasks, factor) for which c · Σ w_i · per_task_i is `got` to within `limit`, by least squares.

    Free weights count only where no pattern of tasks fits and there are two numbers more than weights. Factors are told
    apart by four digits, weights by three.
    """

    def near(guess: np.ndarray) -> bool:
        return bool(np.linalg.norm(got - guess) <= limit)

    found: set[Fit] = set()
    for name, pattern in patterns(len(per_task)).items():
        u = pattern @ per_task
        found |= {(name, factor) for factor, c in known.items() if near(c * u)}
        c = (got @ u) / (u @ u) if u.any() else 0
        if c and near(c * u):
            found.add((name, Factor(float(f"{c:.4g}"))))
    if not found and len(per_task) > 1 and len(got) > len(per_task) + 1:
        weights = np.linalg.lstsq(per_task.T, got, rcond=None)[0]
        if near(weights @ per_task):
            found.add((tuple(float(f"{w:.3g}") for w in weights), Factor()))
    return found


def fits(case: Case, got: Theta, per_task: Iterable[Theta], limit: float) -> set[Fit]:
    """How the answer to a case is made of these gradients of its tasks."""
    known = factors(len(case.tasks), case.alpha, len(case.tasks[0][0]), case.algorithm)
    return matches(flat(got), np.array([flat(g) for g in per_task]) / case.divisor, known, limit)


def explanations(vector: Vector, got: Theta, limit: float) -> set[Explanation]:
    """All single mistakes that explain one answer. One that the vector does not list is right on it."""
    listed: dict[tuple[str, ...], list[Theta]] = {(): [task["gradient"] for task in vector.per_task]}
    listed |= {(name,): vector.suspects[name] for name in MISTAKES if name in vector.suspects}
    found = {mistakes: fits(vector.case, got, per_task, limit) for mistakes, per_task in listed.items()}
    found |= {(name,): found[()] for name in MISTAKES if name not in vector.suspects}
    return {Explanation(mistakes, *fit) for mistakes, how in found.items() for fit in how}


def pairs(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Two mistakes at once that explain every answer; computed, for the vectors hold single ones."""

    computed: dict[Any, list[Theta]] = {}  # most pairs have a mistake that a case does not show, so they are one alone

    def under(both: tuple[str, ...], case: Case) -> list[Theta]:
        key: tuple[Any, ...] = (id(case),)
        settings = case.settings
        for name in both:
            changed = with_mistakes([name], settings)
            key += () if all(map(is_, changed, settings)) else (name,)
            settings = changed
        if key not in computed:
            computed[key] = case.scaled(gradients(case.derivatives, settings))
        return computed[key]

    for both in permutations(MISTAKES, 2):
        how = intersection(fits(v.case, got, under(both, v.case), limit) for v, got, limit in answers)
        yield from (Explanation(both, *fit) for fit in how)


def intersection(sets: Iterable[set[Any]]) -> set[Any]:
    """What all have in common. The first that leaves nothing is the last to be computed."""
    rest = iter(sets)
    common = next(rest)
    while common and (more := next(rest, None)) is not None:
        common = common & more
    return common


def explain(answers: Sequence[tuple[Vector, Theta, str]]) -> list[Explanation]:
    """The simplest explanations of all answers (vector, gradient, dtype): of single mistakes, else of pairs."""
    limited = [(v, got, 10 * rounding(v, got, dtype)) for v, got, dtype in answers]
    if not np.isfinite([limit for *_, limit in limited]).all():
        return []  # within an infinite limit anything is explained
    if not any(flat(got).any() for _, got, _ in answers):
        return [ZERO]
    most = max(len(flat(got)) for _, got, _ in answers)
    found = telling(intersection(explanations(*answered) for answered in limited), most)
    # Three numbers are the fewest that a factor alone does not fit.
    cheap_first = sorted(limited, key=lambda a: (a[0].case.model["kind"] != "quadratic", abs(len(flat(a[1])) - 3)))
    return simplest(found or set(pairs(cheap_first)))


def rounding(vector: Vector, got: Theta, dtype: str) -> float:
    """Rounding of an answer, in absolute terms; mistakes are kept to float32 precision."""
    size = max(float(np.linalg.norm(flat(tree))) for tree in (got, vector.gradient, vector.scale))
    return max(vector.tolerance[dtype], 2.0**-23) * size


def telling(found: set[Explanation], numbers: int) -> set[Explanation]:
    """Those that say something: not that all is right, nor of one or two numbers, which fit any factor, a factor."""
    return {e for e in found if e != Explanation() and (numbers > 2 or e.scale.named)}


def simplest(found: Iterable[Explanation]) -> list[Explanation]:
    """Those with the fewest mistakes, of two orders of a pair the first; the order is that of MISTAKES."""
    order = list(MISTAKES)
    named = {(e.suspects, e.tasks) for e in found if e.scale.named}
    found = [e for e in found if e.scale.named or (e.suspects, e.tasks) not in named]
    ranked = sorted(found, key=lambda e: (e.mistakes, [order.index(s) for s in e.suspects], str(e.tasks), str(e.scale)))
    one_order = {(frozenset(e.suspects), e.tasks, e.scale): e for e in reversed(ranked)}
    return [e for e in reversed(one_order.values()) if e.mistakes == ranked[0].mistakes]
