"""Find the program that gives exactly this wrong answer.

A program is the right one with mistakes in it. For each task it gives a gradient c_i; it and weights w explain an
answer g if g = Σ_i w_i c_i within rounding; the weights say whether tasks were summed, averaged or lost. An explanation
of an algorithm must hold for *all* its vectors, those that passed included. So none is a guess.

The searches go from the likely to the far-fetched: one mistake, a number in one, two mistakes, three. Most programs are
refused by the first answer, which is the cheapest to compute.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from itertools import combinations, product
from operator import is_
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import numpy as np

from refmeta.conformance.cases import CONVENTIONS, Case, Vector
from refmeta.conformance.mistakes import FAMILIES, MISTAKES, OTHERS, RECENT
from refmeta.conformance.programs import ALONE, EVERY, EXAMPLES, known, with_mistakes
from refmeta.conformance.rules import Derivatives, Setting, finished, flat, gradients, remembered
from refmeta.trees import Theta

T = TypeVar("T")
Program = tuple[str, ...]  # the ids of its mistakes, in the order in which they are made
HEAVIEST = 1e3  # largest weight of a task, which may also be lost
REMEMBERED = 1_000  # gradients, and products, of a vector's loss
NEAR = 1e-3  # of an answer: an explanation must be nearer
FAR = 20  # times the usual numbers
STEPS, SOON = 12, 5  # of Gauss–Newton, and those after which it must be near
BEAM, FEW = 32, 8  # programs that another mistake is added to, and those where that is dear
COMMON = "first_order", "one_step_short", "support_as_query", "inner_loss_summed", "last_task_alone"  # beside anything
FIRST = 3  # answers by which they are chosen


class Factor(NamedTuple):
    """A factor of the sum over tasks: a number of four digits, or ±1 times a quantity with a name.

    own: conventions kept whatever a vector asks for; the factor comes on top of them.
    """

    number: float = 1.0
    name: str = ""
    own: tuple[tuple[str, str], ...] = ()

    @property
    def named(self) -> bool:
        """Whether it has a name; ±1 have."""
        return bool(self.name) or abs(self.number) == 1

    def __str__(self) -> str:
        return "-" * (self.number < 0) + self.name if self.name else f"{self.number:.4g}"


Pattern = str | tuple[float, ...]  # which tasks count: a key of patterns(), or the weight of each


class Explanation(NamedTuple):
    """The mistakes made in every task, the tasks that count, and the factor of the sum over them."""

    suspects: Program = ()
    tasks: Pattern = "all"
    scale: Factor = Factor()

    @property
    def own(self) -> dict[str, str]:
        """The conventions that it keeps whatever a vector asks for; none, if it keeps those of the vectors."""
        return dict([*self.scale.own, *(("examples", EXAMPLES[name]) for name in self.suspects if name in EXAMPLES)])

    @property
    def mistakes(self) -> int:
        """The number of its mistakes."""
        scaled = self.scale._replace(own=()) != Factor()
        return sum(name not in EXAMPLES for name in self.suspects) + (self.tasks != "all") + scaled

    @property
    def convention(self) -> bool:
        """Whether only a positive factor differs."""
        return not self.suspects and self.tasks == "all" and self.scale.number > 0


Fit = tuple[Pattern, Factor]
ZERO = Explanation(("zero",))  # every gradient is zero


@cache
def patterns(n: int) -> dict[str, np.ndarray]:
    """The weights of n tasks, by the name of their pattern."""
    first, last = np.eye(n)[[0, -1]]
    return {
        "all": 0 * last + 1,
        "last": last,
        "first": first,
        "all but the last": 1 - last,
        "all but the first": 1 - first,
        "all but the last, of several": 1 - last * (n > 1),
        "all but the first, of several": 1 - first * (n > 1),
        "sums of all until then": np.arange(n, 0, -1.0),
        "the first one twice": 0 * last + 1 + first,
        "the last one twice": 0 * last + 1 + last,
        "a running average, by 0.9": 0.1 * 0.9 ** np.arange(n - 1, -1, -1.0),
    }


@cache
def all_patterns(n: int) -> np.ndarray:
    return np.array(list(patterns(n).values()))


def factors(tasks: int, alpha: float, steps: int, algorithm: str) -> dict[Factor, float]:
    """The factors with a name."""
    named = {"": 1.0, "1/tasks": 1 / tasks, "tasks": float(tasks)}
    if alpha and algorithm == "reptile":
        named |= {"1/alpha": 1 / alpha, "alpha": alpha, "1/(alpha tasks)": 1 / (alpha * tasks)}
        if steps:
            named |= {"1/(alpha steps)": 1 / (alpha * steps), "1/(alpha steps tasks)": 1 / (alpha * steps * tasks)}
    flipped = {Factor(-1, name): -c for name, c in named.items() if name in ("", "1/tasks", "1/alpha")}
    return {Factor(1, name): c for name, c in named.items()} | flipped


def of_tasks(tasks: int) -> dict[str, float]:
    return {"1/(tasks - 1)": 1 / max(tasks - 1, 1), "1/(tasks + 1)": 1 / (tasks + 1)}


def of_steps(steps: int) -> dict[str, float]:
    return {"steps": float(steps), "1/steps": 1 / steps, "1/(steps + 1)": 1 / (steps + 1)}


def odd_factors(tasks: int, alpha: float, steps: int) -> dict[Factor, float]:
    """Factors that nobody chooses on purpose."""
    named = of_tasks(tasks) | ({"alpha": alpha, "1/alpha": 1 / alpha} if alpha else {})
    named |= of_steps(steps) | {"1/(steps tasks)": 1 / (steps * tasks)} if steps > 1 else {}
    return {Factor(sign, name): sign * c for name, c in named.items() for sign in (1, -1)}


def conventions(case: Case) -> dict[Factor, float]:
    """The factors of a program that keeps conventions of its own."""
    T, K = len(case.tasks), max(len(case.tasks[0][0]), 1)
    found = {Factor(1, "1/(tasks - 1)"): case.divisor / max(T - 1, 1)}
    found[Factor(1, "tasks/(tasks - 1), of a mean")] = 1.0 if case.divisor == 1 else T / max(T - 1, 1)
    beside = {"": 1.0, "1/tasks": 1 / T} | of_tasks(T) | of_steps(K)
    choices = [("tasks", *CONVENTIONS["tasks"].split())]
    choices += [("reptile", *CONVENTIONS["reptile"].split())] if case.algorithm == "reptile" else []
    for some in product(*([None, *product([what], which)] for what, *which in choices)):  # None: it is the case's
        kept = tuple(filter(None, some))
        own, ratios = replace(case, conventions={**case.conventions, **dict(kept)}), {1.0}
        if case.alpha and kept and kept[-1][0] == "reptile":
            ratios = {own.factor(supports) / case.factor(supports) for supports, _ in case.tasks if supports} or {1.0}
        if kept and len(ratios) == 1:
            ratio = ratios.pop() * case.divisor / own.divisor
            for (name, c), sign in product(beside.items(), (1, -1)):
                found[Factor(sign, name, kept)] = sign * c * ratio
    return found


def every_factor(case: Case) -> dict[Factor, float]:
    """All factors with a name of a case's answer."""
    T, K = len(case.tasks), len(case.tasks[0][0])
    return odd_factors(T, case.alpha, K) | factors(T, case.alpha, K, case.algorithm) | conventions(case)


def multiplied(got: np.ndarray, per_task: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of every pattern its weights, the square of the sum, the best multiple of it for `got`, and what is left then."""
    weights = all_patterns(len(per_task))
    sums = weights @ per_task
    squares = np.einsum("ij,ij->i", sums, sums)
    best = (sums @ got) / np.where(squares > 0, squares, 1)
    return weights, squares, best, np.linalg.norm(got - best[:, None] * sums, axis=1)


def matches(got: np.ndarray, per_task: np.ndarray, known: dict[Factor, float], limit: float) -> set[Fit]:
    """The (tasks, factor) for which c · Σ w_i · per_task_i is `got` to within `limit`, by least squares.

    Free weights count only where no pattern of tasks fits and there are two numbers more than weights. Factors are told
    apart by four digits, weights by three.
    """
    found: set[Fit] = set()
    if not np.isfinite(per_task).all():
        return found
    names, (weights, squares, best, rest) = list(patterns(len(per_task))), multiplied(got, per_task)
    close = np.flatnonzero(rest <= limit)
    own = [(f.own, value) for f, value in known.items() if f.own and f[:2] == (1, "")] if close.size else []
    for i in close:  # no other factor is nearer than the best
        c, length = float(best[i]), float(np.sqrt(squares[i]))
        wide = np.sqrt(limit**2 - rest[i] ** 2) / length if length else np.inf  # how far a factor may be from the best
        found |= {(names[i], factor) for factor, value in known.items() if abs(value - c) <= wide}
        fitted, top = Factor(float(f"{c:.4g}")), float(weights[i].max())  # 2, where a single task counts twice
        visible = abs(abs(c) * top - 1) * length > 10 * limit * top  # else any factor near 1 fits
        if c and visible and not fitted.named and f"{abs(c) * top:.4g}" != "1":
            found |= {(names[i], Factor(float(f"{c / value:.4g}"), "", kept)) for kept, value in [((), 1), *own]}
    if not found and len(per_task) > 1 and len(got) > len(per_task) + 1:
        free = np.linalg.lstsq(per_task.T, got, rcond=None)[0]
        rounded = tuple(float(f"{w:.3g}") for w in free)
        near = np.linalg.norm(got - free @ per_task) <= limit
        if near and not {*rounded} <= {0, 1} and np.abs(free).max() < HEAVIEST:
            found.add((rounded, Factor()))
    return found


# --- Questions ---


class Answered(NamedTuple):
    """An answer to one question, and all that an explanation of it needs.

    under(program): the gradient of every task, a row each. factors: those that have a name. limit: how far from the
    answer an explanation may be. rounding(program): how far it may be where its own rounding is larger, as on a path
    that climbs. small: whether a program costs little here. rows(settings): the gradient of every task by these.
    """

    got: np.ndarray
    under: Callable[[Program], np.ndarray]
    factors: dict[Factor, float]
    limit: float
    rounding: Callable[[Program], float] = lambda _: 0.0
    settings: Sequence[Setting] = ()
    small: bool = True
    rows: Callable[[list[Setting]], np.ndarray] = lambda _: np.zeros((0, 0))

    def fits(self, program: Program = ()) -> set[Fit]:
        """The ways in which the answer is made of the gradients with these mistakes."""
        rows, near = self.under(program), NEAR * float(np.linalg.norm(self.got))
        if near > self.limit and not matches(self.got, rows, self.factors, near):
            return set()  # as of most
        found = matches(self.got, rows, self.factors, self.limit)
        return found or matches(self.got, rows, self.factors, min(near, self.rounding(program)))

    def shows(self, program: Program) -> bool:
        """Whether the right gradient is visibly another."""
        return bool(np.linalg.norm((self.under(program) - self.under(())).sum(0)) > 10 * self.limit)

    def tells(self, program: Program, family: str) -> bool:
        """Whether two numbers of a family, added to a program, give visibly different gradients."""
        one, other = (self.under((*program, f"{family}={number!r}")).sum(0) for number in FAMILIES[family].usual[:2])
        return bool(np.linalg.norm(one - other) > 10 * self.limit)

    def off(self, program: Program) -> np.ndarray:
        """The answer less the best multiple of the program's sum."""
        u = np.clip(np.nan_to_num(self.under(program).sum(0), nan=1e150), -1e150, 1e150)
        return np.asarray(self.got - (self.got @ u) / (u @ u or 1) * u)

    def wrong(self) -> bool:
        """Whether the right program does not explain it."""
        return bool(np.linalg.norm(self.got - self.under(()).sum(0)) > self.limit)


def of_vector(vector: Vector, got: Theta, dtype: str) -> Answered:
    """The answer to a vector. A mistake of MISTAKES that the vector does not list is right on it."""
    case, right = vector.case, [task["gradient"] for task in vector.per_task]
    stored: dict[Program, list[Theta]] = {(name,): vector.suspects.get(name, right) for name in MISTAKES}
    stored[()] = right
    d, settings = case.derivatives, case.settings
    derivatives = d._replace(grad=remembered(d.grad, REMEMBERED), hvp=remembered(d.hvp, REMEMBERED))

    @lru_cache(RECENT)
    def made(program: Program) -> list[Setting]:
        return with_mistakes(program[-1:], made(program[:-1])) if program else settings

    @cache
    def under(program: Program) -> np.ndarray:
        if program in stored:
            return divided(case, stored[program])
        # Most pairs have one that a case does not show, so they are the other alone.
        until = [made(program[:i]) for i in range(len(program) + 1)]
        shown = [name for i, name in enumerate(program) if not all(map(is_, until[i], until[i + 1]))]
        if len(shown) < len(program):
            return under(tuple(shown))
        return of_settings(case, derivatives, until[-1])

    small, limit = case.model["kind"] == "quadratic", 10 * rounding(vector, got, dtype)
    of = partial(of_settings, case, derivatives)
    return Answered(flat(got), under, every_factor(case), limit, settings=settings, small=small, rows=of)


def of_settings(case: Case, derivatives: Derivatives, settings: list[Setting]) -> np.ndarray:
    """What each task adds to a case's answer under these settings, a row each."""
    return finished(divided(case, case.scaled(gradients(derivatives, settings))), settings)


def divided(case: Case, per_task: Iterable[Theta]) -> np.ndarray:
    """The tasks' gradients as rows, whose sum is the sum or the mean that the case asks for."""
    return np.array([flat(g) for g in per_task]) / case.divisor


def cheapest_first(answers: Iterable[Answered]) -> list[Answered]:
    """First the cheapest answers that tell programs apart: a few numbers, several steps, several tasks."""

    def cost(a: Answered) -> Any:
        steps = [len(s.supports) for s in a.settings]
        return not a.small, a.got.size < 3 or len(steps) < 2 or max(steps) < 2, sum(steps) + len(steps)

    return sorted(answers, key=cost)


# --- Searches: each yields what explains all answers ---

Search = Callable[[Sequence[Answered]], Iterable[Explanation]]


def held(answers: Sequence[Answered], program: Program) -> list[Explanation]:
    """The explanations by this program that hold for every answer and are visible in one."""
    how = intersection(a.fits(program) for a in answers)
    if not how or (program and not any(a.shows(program) for a in answers)):
        return []
    return [Explanation(program, tasks, scale) for tasks, scale in how]


def trying(answers: Sequence[Answered], programs: Iterable[Program], what: str) -> Iterator[Explanation]:
    for program in slow(list(programs), what):
        yield from held(answers, program)


def listed(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Search: no mistake in any task, or one that the vectors list."""
    return trying(answers, [(), *((name,) for name in MISTAKES)], "mistakes")


def usual(families: Iterable[str] = FAMILIES) -> list[str]:
    """The numbers that people write, by size: the choices of one number are made together."""
    pairs = sorted((value, name) for name in families for value in FAMILIES[name].usual)
    return [f"{name}={value:.6g}" for value, name in pairs]


def others(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Search: a mistake that no vector lists."""
    return trying(answers, [(name,) for name in (*OTHERS, *usual())], "more mistakes")


def beside(
    answers: Sequence[Answered], programs: Iterable[Program], families: Iterable[str] = tuple(FAMILIES)
) -> Iterator[Explanation]:
    """A mistake with a number in it, added to a program."""
    wrong = [a for a in answers if a.got.size > 2 and a.wrong()]
    for program, name in product(programs, families):
        found: Sequence[float | None] = FAMILIES[name].usual
        if not all(map(float.is_integer, FAMILIES[name].usual)):
            tells = next((a for a in wrong if a.tells(program, name)), None)
            found = [fit(tells, program, name) if tells else None]
        for number in filter(None, found):
            yield from held(answers, (*program, f"{name}={number:.6g}"))


fitted: Search = partial(beside, programs=[()])  # a number alone, fitted to one answer and held against all
step_sizes: Search = partial(beside, programs=[()], families=["alpha"])


def fit(a: Answered, program: Program, family: str) -> float | None:
    """The number whose gradient is nearest to the answer: from the best of the usual ones by Gauss–Newton steps.

    None: no number comes near.
    """

    def off(value: float) -> np.ndarray:
        return a.off((*program, f"{family}={value!r}"))

    best = min(FAMILIES[family].usual, key=lambda value: float(np.linalg.norm(off(value))))
    other, best = best, best * (1 + 1e-4)
    for steps in range(STEPS):
        r = off(best)
        if steps > SOON and np.linalg.norm(r) > NEAR * np.linalg.norm(a.got):
            return None
        slope = (r - off(other)) / (best - other)
        other, best = best, max(float(best - (slope @ r) / (slope @ slope or 1)), best / 4)
        if abs(best - other) < 1e-9 * best:
            break
    usual = FAMILIES[family].usual
    if not min(usual) / FAR < best < max(usual) * FAR:
        return None
    return best if np.linalg.norm(off(best)) <= max(10 * a.limit, 1e-5 * float(np.linalg.norm(a.got))) else None


def near(answers: Sequence[Answered], programs: Iterable[Program], most: int) -> list[Program]:
    """The programs that leave least of the first wrong answers: another mistake may explain the rest.

    Of a family one.
    """
    wrong, best = [a for a in answers if a.wrong() and a.got.any()], dict[Program, tuple[float, Program]]()
    first = ([a for a in wrong if a.small] or wrong)[:FIRST]
    for program in programs:
        left = sum(multiplied(a.got, a.under(program))[3].min() / np.linalg.norm(a.got) for a in first)
        family = tuple(name.partition("=")[0] for name in program)
        best[family] = min(best.get(family, (np.inf, program)), (left if np.isfinite(left) else np.inf, program))
    return [program for _, program in sorted(best.values())[:most]]


def pairs(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Search: two mistakes at once, one of which comes near."""
    return trying(answers, likely_pairs(answers), "pairs of mistakes")


def likely_pairs(answers: Sequence[Answered]) -> list[Program]:
    """Two mistakes, one of which comes near; in both orders only where they change the same choice."""
    quick = any(a.small and a.wrong() for a in answers)  # a quadratic refuses a program at little cost
    names = possible(answers, [*EVERY, *(usual() if quick else [])])
    touched, place = {name: touches(name, answers) for name in names}, {name: i for i, name in enumerate(names)}
    close = [name for (name,) in near(answers, [(name,) for name in names], BEAM if quick else FEW)]
    # An optimiser's derivative takes its time: it is tried beside the nearest and the common ones alone.
    plain = [name for name in names if "update" not in touched[name]]
    rest = [name for name in plain if "=" not in name]
    some = [*product([*close[:FIRST], *filter(names.__contains__, COMMON)], names)]
    some += [*product(filter(plain.__contains__, close[:FEW]), plain), *product(filter(rest.__contains__, close), rest)]
    some += product([name for name in names if name in MISTAKES and touched[name]], plain if quick else [])
    both = {(a, b) if place[a] < place[b] else (b, a): None for a, b in some if a != b}
    # Many choices are made from the support batches, but no number in one is.
    reads = {name: touched[name] | ({"supports"} if "=" not in name else set()) for name in names}
    turned = [(b, a) for a, b in both if {a, b} <= {*MISTAKES} or touched[a] & reads[b] or touched[b] & reads[a]]
    return [*both, *turned]


def of_a_part(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Search: a mistake in some arrays, tasks or cases alone, where all else is right."""
    return in_part(answers, ())


def beside_a_part(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Search: a mistake in a part, where a program that comes near gives the rest."""
    for program in near(answers, [(name,) for name in possible(answers, EVERY)], FEW // 2):
        yield from in_part(answers, program, FIRST)


def in_part(answers: Sequence[Answered], program: Program, most: int = len(ALONE)) -> Iterator[Explanation]:
    """A mistake in the smallest parts where more may be wrong than this program says."""
    names = [name for name in (*EVERY, *usual()) if touches(name, answers)]
    some = [(*program, *pair) for pair in product(kinds(answers, program)[:most], names)]
    return trying(unexplained_first(answers, program), some, "mistakes in a part")


def unexplained_first(answers: Sequence[Answered], program: Program) -> list[Answered]:
    """The answers that this program explains come last: there another mistake seldom shows."""
    return sorted(answers, key=lambda a: bool(a.fits(program)))


def kinds(answers: Sequence[Answered], program: Program) -> list[str]:
    """Where alone more may be wrong than this program says, the smallest part first."""
    rest = {kind: [spared(a, kind) for a in answers] for kind in ALONE if touches(kind, answers)}
    off = [a.got - a.under(program).sum(0) for a in answers]
    whole = [bool(a.fits(program)) for a in answers]

    def so(kind: str) -> bool:
        return all(
            w or np.linalg.norm(r[s]) <= a.limit for w, r, s, a in zip(whole, off, rest[kind], answers, strict=True)
        )

    return sorted(filter(so, rest), key=lambda kind: -sum(map(np.sum, rest[kind])))


def spared(a: Answered, kind: str) -> np.ndarray:
    """Of each number of the gradient, whether all tasks' are as they are elsewhere."""
    shares = [(known(kind).change(s) or s).spared for s in a.settings]
    same = [all(share and not share[1][i] for share in shares) for i in range(len(a.settings[0].theta))]
    return np.concatenate([np.full(np.size(t), so) for t, so in zip(a.settings[0].theta, same, strict=True)])


def listed_pairs(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Search: two mistakes that the vectors list."""
    both = combinations(possible(answers, MISTAKES), 2)
    return trying(answers, [order for pair in both for order in (pair, pair[::-1])], "pairs of mistakes")


def with_a_number(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Search: a mistake that comes near, and another with a number in it."""
    return beside(answers, near(answers, [(name,) for name in possible(answers, [*EVERY, *usual()])], FIRST))


def touches(name: str, answers: Iterable[Answered]) -> frozenset[str]:
    """The choices that a mistake changes in any of the answers' settings: the last two tasks show all."""
    return changes(name, *(s for a in answers for s in a.settings[-2:]))


@lru_cache(1 << 10)
def changes(name: str, *before: Setting) -> frozenset[str]:
    """The choices that a mistake changes in any of these."""
    changed = [pair for pair in zip(before, with_mistakes([name], [*before]), strict=True) if pair[0] is not pair[1]]
    return frozenset(f for a, b in changed for f in Setting._fields if getattr(a, f) is not getattr(b, f))


def possible(answers: Sequence[Answered], names: Iterable[str]) -> list[str]:
    """The mistakes that are visible in no right answer; two that cancel there are not searched for.

    A listed mistake that changes nothing alone may change something after another one.
    """
    right = [a for a in answers if not a.wrong()]
    some = [name for name in names if name in MISTAKES or touches(name, answers)]
    return [name for name in some if not any(a.shows((name,)) for a in right)]


def triples(answers: Sequence[Answered]) -> Iterator[Explanation]:
    """Search: two mistakes that explain some answers, or listed ones that come near, and any other."""
    listed = near(answers, combinations(possible(answers, MISTAKES), 2), FEW)
    names = possible(answers, [*EVERY, *usual()])
    for pair in [*partly(answers, likely_pairs(answers)), *listed]:
        yield from trying(unexplained_first(answers, pair), [(*pair, name) for name in names], "triples of mistakes")


def partly(answers: Sequence[Answered], programs: Iterable[Program]) -> list[Program]:
    """The programs that explain most of the first wrong answers, of which more mistakes would explain the others."""
    first = [a for a in answers if a.wrong() and a.got.size > 2][: 2 * FIRST]
    some = [program for program in programs if first and first[0].fits(program)]
    for few, most in ((first[-FIRST:], BEAM), (first, FIRST)):  # networks come last in it
        some = sorted(some, key=lambda program: -sum(bool(a.fits(program)) for a in few))[:most]
    return some


def slow(items: Collection[T], what: str) -> Iterator[T]:
    """The items; once they take two seconds, stderr says how far it is."""
    said = monotonic() + 2
    for i, item in enumerate(items):
        if monotonic() > said:
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"refmeta: not explained yet; tried {i} of {len(items)} {what}", end=end, file=sys.stderr, flush=True)
            said = monotonic() + 2
        yield item


def intersection(sets: Iterable[set[Any]]) -> set[Any]:
    """The elements that all have; later ones are not computed once none is left."""
    rest = iter(sets)
    common = next(rest)
    while common and (more := next(rest, None)) is not None:
        common = common & more
    return common


SEARCHES: tuple[Search, ...] = (listed, others, fitted, listed_pairs, of_a_part, pairs, with_a_number)
SEARCHES += (beside_a_part, triples)


@np.errstate(all="ignore")  # a wrong program may overflow, or divide by the norm of nothing
def explain(answers: Sequence[Answered], searches: Sequence[Search] = SEARCHES) -> list[Explanation]:
    """The simplest explanations of all answers, by the first search that has any."""
    if not np.isfinite([a.limit for a in answers]).all():
        return []  # an infinite limit would explain anything
    if not any(a.got.any() for a in answers):
        return [ZERO]
    most, found = max(a.got.size for a in answers), set[Explanation]()
    for search in searches:
        # A listed mistake with a lost task or a factor may be one mistake that no vector lists.
        if found and (search not in (others, fitted) or min(e.mistakes for e in found) < 2):
            break
        found |= telling(set(search(answers)), most)
    return simplest(found) if found else []


def rounding(vector: Vector, got: Theta, dtype: str) -> float:
    """Rounding of an answer, in absolute terms; mistakes are kept to float32 precision."""
    size = max(float(np.linalg.norm(flat(tree))) for tree in (got, vector.gradient, vector.scale))
    return max(vector.tolerance[dtype], 2.0**-23) * size


def telling(found: set[Explanation], numbers: int) -> set[Explanation]:
    """The explanations that say something: not "right", and no mere factor of one or two numbers, which always fits."""
    return {e for e in found if e != Explanation() and (numbers > 2 or e.scale.named)}


def simplest(found: Collection[Explanation]) -> list[Explanation]:
    """The simplest: the fewest mistakes, listed ones before others, the vectors' conventions before its own.

    Of two orders of a pair, or two names of the same, the first.
    """
    order = {name: i for i, name in enumerate([*EVERY, *FAMILIES])}
    odd, plainest = {factor.name for factor in odd_factors(2, 0, 2)}, dict[Any, int]()

    def oddness(e: Explanation) -> int:
        return 2 if not e.scale.named else int(e.scale.name in odd)

    def cost(e: Explanation) -> tuple[int, ...]:
        odd_tasks = "several" in e.tasks  # of two tasks that is one of them
        return e.mistakes, sum(name not in MISTAKES for name in e.suspects), len(e.own), odd_tasks

    def rank(e: Explanation) -> Any:
        return [order.get(s.partition("=")[0], 0) for s in e.suspects], e.suspects, str(e.tasks), str(e.scale)

    for e in found:
        plainest[e.suspects, e.tasks] = min(oddness(e), plainest.get((e.suspects, e.tasks), 2))
    told = [e for e in found if oddness(e) == plainest[e.suspects, e.tasks]]
    least = min(map(cost, told))
    ranked = sorted([e for e in told if cost(e) == least], key=rank)
    said = {(frozenset(known(s).title for s in e.suspects), e.tasks, e.scale): e for e in reversed(ranked)}
    return list(reversed(said.values()))
