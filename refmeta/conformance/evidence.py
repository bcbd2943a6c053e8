"""Facts about answers that no mistake explains: where they are wrong, what they are made of, what comes close."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np

from refmeta.conformance.cases import Case
from refmeta.conformance.explain import Answered, Fit, Program, cheapest_first, touches, usual
from refmeta.conformance.mistakes import after_every_step
from refmeta.conformance.programs import ARRAYS, EVERY, inner_gradients
from refmeta.conformance.rules import Outer, at_the_end, at_theta, flat

MOST = 3  # conditions of a rule, pieces of a combination, and first answers that a near program misses
EQUATIONS = 8  # numbers in the answers for each coefficient
NEXT = 1e-2  # a factor this near to 1 is at first taken for none
SHARE = 0.75  # share of the answers that a program explains, to be called close


class Evidence(NamedTuple):
    """where: a condition that holds for the wrong vectors only. wrong: how many of those asked.

    unless: a condition that holds for the right ones only. outside: wrong also where the inner loop does nothing.
    arrays: the only wrong arrays. multiples: the smallest and largest factor of the right answer. length: that of every
    answer to a single task. span: of what every answer is a sum of multiples. pieces: the answer as a combination of
    these. nearest, missing: the program that explains most, and the ids that it does not explain. digits: how many are
    correct everywhere, if only precision is lacking. factor: of the right answer.
    """

    where: str = ""
    wrong: int = 0
    asked: int = 0
    unless: str = ""
    outside: bool = False
    arrays: str = ""
    multiples: tuple[float, ...] = ()
    length: float = 0
    span: str = ""
    pieces: dict[str, float] = {}  # noqa: RUF012 - nobody writes into it
    nearest: Program = ()
    missing: tuple[str, ...] = ()
    digits: float = 0
    factor: float = 1


# Of the right gradient and what is near it: losses whose gradients at φ_k are added up.
END = "the query gradient at φ_K"
PIECES: dict[str, Outer] = {
    END: at_the_end,
    "the query gradient at θ": at_theta,
    "the support gradient at θ": lambda s: [(0, b, 1) for b in s.supports[:1]],
    "the support gradient at φ_K": lambda s: [(-1, b, 1) for b in s.supports[-1:]],
    "the last inner gradient": lambda s: [(-2, b, 1) for b in s.supports[-1:]],
    "the sum of the inner gradients": inner_gradients,
    "the sum of the support gradients at θ": lambda s: [(0, b, 1) for b in s.supports],
    "the sum of the support gradients at φ_K": lambda s: [(-1, b, 1) for b in s.supports],
    "the sum of the query gradients at φ_1 … φ_K": after_every_step,
}


def pieces(a: Answered) -> dict[str, np.ndarray]:
    """What one answer may be made of."""
    first = a.settings[0]
    plain: dict[str, Any] = {"displaced": False, "curvature": None}
    found = {
        name: a.rows([s._replace(**plain, outer=outer) for s in a.settings]).sum(0)
        for name, outer in PIECES.items()
        if first.query or "query" not in name
    }
    if first.query and not first.displaced:
        found = {"the second-order term": a.under(()).sum(0) - found[END]} | found
    found |= {"the displacement θ − φ_K": a.under(()).sum(0)} if first.displaced else {}
    return found | {"θ": flat(first.theta)}


def combination(answers: Sequence[Answered], parts: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    """The fewest of these pieces of which every answer is the same combination, with their coefficients; {} if none."""
    weights = np.concatenate([np.full(a.got.size, 1 / a.limit) for a in answers])
    got, columns = np.concatenate([a.got for a in answers]), dict[str, np.ndarray]()
    for name in parts[0]:
        column = np.concatenate([part[name] for part in parts])
        if column.any() and not any(np.allclose(column, other, 1e-9) for other in columns.values()):
            columns[name] = column
    for many in range(1, MOST + 1):
        for names in combinations(columns, many) if len(weights) >= EQUATIONS * many else []:
            rows = np.array([columns[name] for name in names])
            found = np.linalg.lstsq((rows * weights).T, got * weights, rcond=None)[0]
            off = np.split(found @ rows - got, np.cumsum([a.got.size for a in answers])[:-1])
            if all(np.linalg.norm(rest) <= a.limit for rest, a in zip(off, answers, strict=True)):
                return {name: float(f"{c:.4g}") for name, c in zip(names, found, strict=True)}
    return {}


def nearest(answers: Sequence[Answered]) -> tuple[Program, tuple[int, ...]]:
    """The program of one mistake that explains most answers, if it is enough, and the places of those it does not."""
    place, wrong = {id(a): i for i, a in enumerate(answers)}, [a for a in answers if a.wrong()]
    most, best = min(int(len(answers) * (1 - SHARE)), (len(wrong) - 1) // 2), dict[int, tuple[Program, Any]]()
    order = [*cheapest_first(wrong), *cheapest_first(a for a in answers if not a.wrong())]
    for program in [(name,) for name in (*EVERY, *usual()) if touches(name, answers)]:
        fits, off = dict[int, set[Fit]](), 0
        for a in order:
            fits[place[id(a)]] = a.fits(program)
            off += not fits[place[id(a)]]
            if off > most or off == len(fits) == MOST:
                break
        else:
            how, _ = Counter(fit for found in fits.values() for fit in found).most_common(1)[0]
            missing = tuple(i for i in range(len(answers)) if how not in fits[i])
            best.setdefault(len(missing), (program, missing))
    return best[min(best)] if best and min(best) <= most else ((), ())


def shapes(case: Case) -> Any:
    """What a step that is compiled, or a result that is cached, is usually kept by."""
    return [leaf.shape for leaf in case.theta], len(case.tasks[0][0])


def conditions(case: Case) -> dict[str, bool]:
    """Conditions that a mistake may depend on, each with whether it holds for the case; then their opposites."""
    steps, widths = [len(supports) for supports, _ in case.tasks], case.model.get("widths", [])
    examples = {len(x) for supports, _ in case.tasks for x, _ in supports}
    most = max(steps, default=0)
    matters = most > 0 and case.alpha > 0 and case.head != 0 and case.tier != "canary" and case.algorithm != "joint"
    both = {
        **{(f"K ≥ {k}", f"K < {k}"): most >= k for k in (1, 2, 3, 5)},
        **{(f"{n} tasks or more", f"fewer than {n} tasks"): len(case.tasks) >= n for n in (2, 3)},
        ("α > 0", "α = 0"): case.alpha > 0,
        ("an inner loop that matters", "an inner loop that does not matter"): matters,
        ("several steps or tasks", "one step of one task"): most * len(case.tasks) > 1,
        ("several parameters", "one parameter"): sum(map(np.size, case.theta)) > 1,
        ("a body", "no body"): case.head is not None and case.head < len(case.theta),
        ("a network", "a quadratic"): case.model["kind"] == "mlp",
        ("a hidden layer", "no hidden layer"): len(widths) > 2,
        ("cross-entropy", "no cross-entropy"): case.loss["kind"] == "cross_entropy",
        ("several outputs", "one output"): widths[-1:] > [1],
        ("layers of the same width", "no layers of the same width"): any(a == b for a, b in pairwise(widths)),
        ("another batch at each step", "one batch for all steps"): not all(
            np.array_equal(x, supports[0][0]) for supports, _ in case.tasks for x, _ in supports
        ),
        ("tasks of different K", "tasks of the same K"): len({*steps}) > 1,
        ("batches of different sizes", "batches of one size"): bool(widths) and len(examples) > 1,
        ("a mean over the tasks", "a sum over the tasks"): case.conventions["tasks"] == "mean",
        ("a sum over the examples", "a mean over the examples"): case.conventions["examples"] == "sum",
    }
    return {name: so for (name, _), so in both.items()} | {name: not so for (_, name), so in both.items()}


def rule(wrong: Sequence[Case], right: Sequence[Case]) -> str:
    """The fewest conditions that hold for all that is wrong, and together for nothing that is right; "" if none do.

    Any two conditions single out one case, so there one must do.
    """
    few = min(len(wrong), len(right))
    if not few:
        return ""
    of_wrong, of_right = ([conditions(case) for case in cases] for cases in (wrong, right))
    shared = [name for name in of_wrong[0] if all(so[name] for so in of_wrong)]
    for many in range(1, MOST + 1 if few > 1 else 2):
        for names in combinations(shared, many):
            if not any(all(so[name] for name in names) for so in of_right):
                return " and ".join(names)
    return ""


def factor(answers: Sequence[Answered]) -> float:
    """The number near 1, to ten digits, by which every right answer is multiplied; 1 if there is none."""
    right = [a.under(()).sum(0) for a in answers]
    found = [float(g @ a.got / (g @ g)) for g, a in zip(right, answers, strict=True) if np.any(g)]
    off = max(np.linalg.norm(a.got - found[0] * g) / np.linalg.norm(a.got) for g, a in zip(right, answers, strict=True))
    return found[0] if off < 1e-10 and abs(found[0] - 1) < NEXT else 1.0


def multiples(answers: Sequence[Answered]) -> tuple[float, ...]:
    """The smallest and largest factor of the right answer, if every answer of three numbers or more is a multiple."""
    sums = [(a.under(()).sum(0), a.got) for a in answers if a.got.size > 2]
    found = sorted(float(g @ got / (g @ g)) for g, got in sums if g.any())
    return (found[0], found[-1]) if spanned(answers, lambda a: a.under(()).sum(0)[None]) else ()


def length(answers: Sequence[Answered]) -> float:
    """The length that all answers to a single task have, where the right ones have several; else 0."""
    sizes = [[float(np.linalg.norm(g)) for g in (a.got, a.under(()))] for a in answers if len(a.settings) == 1]
    same = [np.allclose(of, of[0], 1e-6, 0) for of in zip(*sizes, strict=True)]
    return float(f"{sizes[0][0]:.6g}") if same == [True, False] else 0.0


def spanned(answers: Sequence[Answered], parts: Callable[[Answered], np.ndarray]) -> bool:
    """Whether every answer is a sum of multiples of some rows, where it has two numbers more than these."""
    long = [(a, parts(a)) for a in answers if a.got.size > len(parts(a)) + 1]
    off = (np.linalg.norm(a.got - np.linalg.lstsq(r.T, a.got, rcond=None)[0] @ r) > a.limit for a, r in long)
    return not any(off) and any(a.wrong() for a, _ in long)


def span(answers: Sequence[Answered], parts: Sequence[dict[str, np.ndarray]]) -> str:
    """Of what all answers are sums of multiples, which differ from one to the next; "" if of nothing."""
    if spanned(answers, lambda a: a.under(())):
        return "the tasks' right gradients"
    of = {id(a): {"the right answer": a.under(()).sum(0)} | found for a, found in zip(answers, parts, strict=True)}
    names = [name for name in ("the right answer", *PIECES, "θ") if all(name in found for found in of.values())]
    for pair in combinations(names, 2):
        if spanned(answers, lambda a: np.stack([of[id(a)][name] for name in pair])):
            return " and ".join(pair)
    return ""


def wrong_arrays(parts: Sequence[tuple[Answered, Sequence[bool]]]) -> str:
    """The only kind of array that is wrong. parts: the wrong answers, each with which of its arrays are wrong."""
    for name, shares in ARRAYS.values():
        kinds = [(list(shares(a.settings[0])), wrong) for a, wrong in parts if len(wrong) > 1]
        some = [(kind, wrong) for kind, wrong in kinds if not all(kind)]
        if len(some) > 1 and all(all(k or not w for k, w in zip(*pair, strict=True)) for pair in some):
            return name
    return ""


def facts(
    answers: Sequence[Answered], cases: Sequence[Case], wrong: Sequence[bool], parts: Sequence[tuple[Answered, Any]]
) -> Evidence:
    """All evidence in the answers to these cases; parts: of the wrong ones, as `wrong_arrays` takes them."""
    off, right = ([case for case, so in zip(cases, wrong, strict=True) if so is which] for which in (True, False))
    found, again = (
        [pieces(a) for a in answers],
        [shapes(case) in map(shapes, cases[:i]) for i, case in enumerate(cases)],
    )
    where = "shapes and K that came before" if again == list(wrong) and sum(again) > 1 else rule(off, right)
    program, missing = nearest(answers)
    times, made = multiples(answers), combination(answers, found)
    outside, ids = not right and any(not case.alpha for case in off), tuple(cases[i].id for i in missing)
    of = "" if times or made else span(answers, found)
    unless, arrays = "" if where else rule(right, off), wrong_arrays(parts)
    return Evidence(
        where, len(off), len(cases), unless, outside, arrays, times, length(answers), of, made, program, ids
    )
