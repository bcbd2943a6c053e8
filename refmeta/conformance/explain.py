"""Which known mistake gives exactly this wrong answer?

For each mistake a vector holds the wrong gradient c_i of every task i. A mistake and weights w explain an answer g if
g = Σ_i w_i c_i within rounding; the weights say whether tasks were summed, averaged or lost. An explanation holds for
an algorithm only if it holds for *all* its vectors, those that passed included. So none is a guess.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from itertools import permutations
from operator import is_
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import numpy as np

from refmeta.conformance.cases import Vector
from refmeta.conformance.mistakes import EVERY, MISTAKES, OTHERS, with_mistakes
from refmeta.conformance.rules import Setting, flat, gradients
from refmeta.trees import Theta

T = TypeVar("T")
USUAL = (1e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)  # step sizes
USUAL_FACTORS = (0.1, 0.2, 1 / 3, 0.5, 0.9, 0.95, 0.99, 1.5, 2, 3, 5, 10)  # of the step size
HEAVIEST = 1e3  # weight of a task: it counts a few times, or not at all
NEAR = 1e-3  # of an answer: nothing farther off explains it
STEPS = 12  # of Gauss–Newton


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
    alpha: float | None = None  # that of the inner loop, where it is not the one that was asked for

    @property
    def mistakes(self) -> int:
        """How many things it says are other than they should be."""
        return len(self.suspects) + (self.tasks != "all") + (self.scale != Factor()) + (self.alpha is not None)

    @property
    def convention(self) -> bool:
        """Whether nothing but a positive factor differs."""
        return not self.suspects and self.tasks == "all" and self.scale.number > 0 and self.alpha is None


Fit = tuple[Pattern, Factor]
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
    if not np.isfinite(per_task).all():
        return found
    for name, pattern in patterns(len(per_task)).items():
        u = pattern @ per_task
        found |= {(name, factor) for factor, c in known.items() if near(c * u)}
        c = (got @ u) / (u @ u) if u.any() else 0
        fitted = Factor(float(f"{c:.4g}"))
        visible = abs(abs(c) - 1) * float(np.linalg.norm(u)) > 10 * limit  # within that any factor near 1 fits
        if c and visible and not fitted.named and near(c * u):
            found.add((name, fitted))
    if not found and len(per_task) > 1 and len(got) > len(per_task) + 1:
        weights = np.linalg.lstsq(per_task.T, got, rcond=None)[0]
        rounded = tuple(float(f"{w:.3g}") for w in weights)
        if near(weights @ per_task) and not {*rounded} <= {0, 1} and np.abs(weights).max() < HEAVIEST:
            found.add((rounded, Factor()))
    return found


# --- Questions ---


class Answered(NamedTuple):
    """An answer to one question, and what an explanation of it is held against.

    under(mistakes, alpha): the gradient of every task, a row each, with these mistakes and perhaps another α.
    alpha: the one asked for. factors: those that have a name. limit: how far from the answer an explanation may be.
    rounding(mistakes, alpha): how far it may be where its own rounding is larger, as on a path that climbs.
    """

    got: np.ndarray
    under: Callable[..., np.ndarray]
    alpha: float
    factors: dict[Factor, float]
    limit: float
    rounding: Callable[..., float] = lambda *_: 0.0

    def fits(self, mistakes: tuple[str, ...] = (), alpha: float | None = None) -> set[Fit]:
        """How the answer is made of the gradients with these mistakes."""
        rows, near = self.under(mistakes, alpha), NEAR * float(np.linalg.norm(self.got))
        found = matches(self.got, rows, self.factors, self.limit)
        if not found and matches(self.got, rows, self.factors, near):
            found = matches(self.got, rows, self.factors, min(near, self.rounding(mistakes, alpha)))
        return found

    def shows(self, mistakes: tuple[str, ...], alpha: float | None) -> bool:
        """Whether the right gradient is visibly another."""
        return bool(np.linalg.norm((self.under(mistakes, alpha) - self.under(())).sum(0)) > 10 * self.limit)


def of_vector(vector: Vector, got: Theta, dtype: str) -> Answered:
    """The answer to a vector. A mistake of MISTAKES that the vector does not list is right on it."""
    case, right = vector.case, [task["gradient"] for task in vector.per_task]
    stored: dict[tuple[str, ...], list[Theta]] = {(name,): vector.suspects.get(name, right) for name in MISTAKES}
    stored[()] = right

    def rows(per_task: Iterable[Theta]) -> np.ndarray:
        return np.array([flat(g) for g in per_task]) / case.divisor

    @cache
    def under(mistakes: tuple[str, ...] = (), alpha: float | None = None) -> np.ndarray:
        if alpha is None and mistakes in stored:
            return rows(stored[mistakes])
        settings, shown = reset(case.settings, alpha), list[str]()
        for name in mistakes:  # most pairs have one that a case does not show, so they are the other alone
            changed = with_mistakes([name], settings)
            shown += [] if all(map(is_, changed, settings)) else [name]
            settings = changed
        if len(shown) < len(mistakes):
            return under(tuple(shown), alpha)
        return rows(case.scaled(gradients(case.derivatives, settings)))

    known = factors(len(case.tasks), case.alpha, len(case.tasks[0][0]), case.algorithm)
    return Answered(flat(got), under, case.alpha, known, 10 * rounding(vector, got, dtype))


def of_vectors(answers: Iterable[tuple[Vector, Theta, str]]) -> list[Answered]:
    """Answers to vectors, the cheapest first; three numbers are the fewest that a factor alone does not fit."""
    cheap_first = sorted(answers, key=lambda a: (a[0].case.model["kind"] != "quadratic", abs(len(flat(a[1])) - 3)))
    return [of_vector(*a) for a in cheap_first]


def reset(settings: list[Setting], alpha: float | None) -> list[Setting]:
    """The settings with another α, if it is given."""
    return settings if alpha is None else [s._replace(alpha=alpha) for s in settings]


# --- Searches: each yields what explains all answers ---

Search = Callable[[Sequence[Answered]], Iterable[Explanation]]


def held(answers: Sequence[Answered], mistakes: tuple[str, ...], alpha: float | None = None) -> list[Explanation]:
    """The explanations by these mistakes, and perhaps another α, that hold for every answer and show in one."""
    how = intersection(a.fits(mistakes, alpha) for a in answers)
    if not how or ((mistakes or alpha is not None) and not any(a.shows(mistakes, alpha) for a in answers)):
        return []
    return [Explanation(mistakes, tasks, scale, alpha) for tasks, scale in how]


def listed(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """No mistake in any task, or one that the vectors list."""
    for mistakes in slow([(), *((name,) for name in MISTAKES)], "mistakes"):
        yield from held(answers, mistakes)


def others(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """A mistake that no vector lists."""
    for name in slow(list(OTHERS), "more mistakes"):
        yield from held(answers, (name,))


def step_sizes(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Another α in the inner loop: fitted to one answer, under a factor that has a name, and held against all."""
    wrong = [a for a in answers if a.got.size > 2 and a.alpha and np.linalg.norm(a.got - a.under(()).sum(0)) > a.limit]
    for c in sorted({c for a in wrong[:1] for c in a.factors.values() if c > 0}):
        yield from held(answers, (), float(f"{fitted_alpha(wrong[0], c):.6g}"))


def fitted_alpha(a: Answered, factor: float) -> float:
    """The α whose gradient is nearest to the answer: the best of those that people write, then Gauss–Newton steps."""

    def off(alpha: float) -> np.ndarray:
        found = factor * a.under((), alpha).sum(0) - a.got
        return np.asarray(np.nan_to_num(found, nan=1e150, posinf=1e150, neginf=-1e150))

    def far(alpha: float) -> float:
        return float(np.linalg.norm(off(alpha)))

    best = min(
        [*USUAL, *(a.alpha * c for c in USUAL_FACTORS), *(a.alpha * c for c in a.factors.values() if c > 0)], key=far
    )
    other, best = best, best * (1 + 1e-4)
    for _ in range(STEPS):
        r = off(best)
        slope = (r - off(other)) / (best - other)
        other, best = best, max(best - (slope @ r) / (slope @ slope or 1), best / 4)
        if abs(best - other) < 1e-9 * best:
            break
    return best


def pairs(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Two mistakes at once."""
    for both in slow(list(permutations(MISTAKES, 2)), "pairs of mistakes"):
        yield from held(answers, both)


def slow(items: Collection[T], what: str) -> Iterator[T]:
    """The items; once they take two seconds, stderr says how far it is."""
    said = monotonic() + 2
    for i, item in enumerate(items):
        if monotonic() > said:
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"refmeta: {i} of {len(items)} {what}", end=end, file=sys.stderr, flush=True)
            said = monotonic() + 2
        yield item


def intersection(sets: Iterable[set[Any]]) -> set[Any]:
    """What all have in common. The first that leaves nothing is the last to be computed."""
    rest = iter(sets)
    common = next(rest)
    while common and (more := next(rest, None)) is not None:
        common = common & more
    return common


SEARCHES: tuple[Search, ...] = (listed, others, step_sizes, pairs)


def explain(answers: Sequence[Answered], searches: Sequence[Search] = SEARCHES) -> list[Explanation]:
    """The simplest explanations of all answers, by the first search that has any; those with few numbers are cheap."""
    if not np.isfinite([a.limit for a in answers]).all():
        return []  # within an infinite limit anything is explained
    if not any(a.got.any() for a in answers):
        return [ZERO]
    most = max(a.got.size for a in answers)
    return next((simplest(found) for search in searches if (found := telling(set(search(answers)), most))), [])


def rounding(vector: Vector, got: Theta, dtype: str) -> float:
    """Rounding of an answer, in absolute terms; mistakes are kept to float32 precision."""
    size = max(float(np.linalg.norm(flat(tree))) for tree in (got, vector.gradient, vector.scale))
    return max(vector.tolerance[dtype], 2.0**-23) * size


def telling(found: set[Explanation], numbers: int) -> set[Explanation]:
    """Those that say something: not that all is right, nor of one or two numbers, which fit any factor, a factor."""
    return {e for e in found if e != Explanation() and (numbers > 2 or e.scale.named)}


def simplest(found: Iterable[Explanation]) -> list[Explanation]:
    """Those with the fewest mistakes, of two orders of a pair the first; the order is that of MISTAKES."""
    order = list(EVERY)
    named = {(e.suspects, e.tasks) for e in found if e.scale.named}
    found = [e for e in found if e.scale.named or (e.suspects, e.tasks) not in named]
    ranked = sorted(found, key=lambda e: (e.mistakes, [order.index(s) for s in e.suspects], str(e.tasks), str(e.scale)))
    one_order = {(frozenset(e.suspects), *e[1:]): e for e in reversed(ranked)}
    return [e for e in reversed(one_order.values()) if e.mistakes == ranked[0].mistakes]
