"""Facts about answers that no mistake explains: where they are wrong, what they are made of, what comes close."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from refmeta.conformance.cases import Case
from refmeta.conformance.explain import Answered, Fit, Program, touches, usual
from refmeta.conformance.programs import ARRAYS, EVERY

MOST = 3  # conditions of a rule, and pieces of a combination
EQUATIONS = 8  # numbers in the answers for each coefficient
NEXT = 1e-2  # a factor this near to 1 is at first taken for none
SHARE = 0.75  # share of the answers that a program explains, to be called close


class Evidence(NamedTuple):
    """where: a condition that holds for the wrong vectors only. wrong: how many of those asked.

    unless: a condition that holds for the right ones only. outside: wrong also where the inner loop does nothing.
    arrays: the only wrong arrays. multiples: the smallest and largest factor of the right answer. pieces: the answer as
    a combination of these. nearest, missing: the program that explains most, and the ids that it does not explain.
    digits: how many are correct everywhere, if only precision is lacking. factor: of the right answer.
    """

    where: str = ""
    wrong: int = 0
    asked: int = 0
    unless: str = ""
    outside: bool = False
    arrays: str = ""
    multiples: tuple[float, ...] = ()
    pieces: dict[str, float] = {}  # noqa: RUF012 - nobody writes into it
    nearest: Program = ()
    missing: tuple[str, ...] = ()
    digits: float = 0
    factor: float = 1


# Of the right gradient and what is near it: a program, less another.
PIECES: dict[str, tuple[Program, Program | None]] = {
    "the query gradient at φ_K": (("first_order", "reptile_by_query"), None),
    "the second-order term": ((), ("first_order",)),
    "the displacement θ − φ_K": (("second_order",), None),
    "the query gradient at θ": (("reptile_by_query", "no_adaptation"), None),
    "the support gradient at θ": (("support_gradient_at_theta",), None),
    "the sum of the inner gradients": (("inner_gradients_alone",), None),
    "the support gradient at φ_K": (("reptile_by_query", "first_order", "support_as_query"), None),
    "θ": (("penalty=1",), ()),
}


def combination(answers: Sequence[Answered]) -> dict[str, float]:
    """The fewest pieces whose same combination every answer is, with their coefficients; {} if there are none."""
    pieces: dict[str, list[np.ndarray]] = {}
    for name, (program, less) in PIECES.items():
        rows = [a.under(program).sum(0) - (0 if less is None else a.under(less).sum(0)) for a in answers]
        rows = [row / len(a.settings) for row, a in zip(rows, answers, strict=True)] if name == "θ" else rows
        if name == "the displacement θ − φ_K" and not answers[0].settings[0].displaced:
            continue
        joined = np.concatenate(rows)
        if joined.any() and not any(np.allclose(joined, np.concatenate(p), 1e-9) for p in pieces.values()):
            pieces[name] = rows
    weights, got = np.concatenate([np.full(a.got.size, 1 / a.limit) for a in answers]), [a.got for a in answers]
    for many in range(1, MOST + 1):
        for names in combinations(pieces, many) if len(weights) >= EQUATIONS * many else []:
            columns = np.array([np.concatenate(pieces[name]) for name in names]).T
            found = np.linalg.lstsq(columns * weights[:, None], np.concatenate(got) * weights, rcond=None)[0]
            off = (
                sum(c * pieces[name][i] for c, name in zip(found, names, strict=True)) - g for i, g in enumerate(got)
            )
            if all(np.linalg.norm(rest) <= a.limit for rest, a in zip(off, answers, strict=True)):
                return {name: float(f"{c:.4g}") for name, c in zip(names, found, strict=True)}
    return {}


def nearest(answers: Sequence[Answered]) -> tuple[Program, tuple[int, ...]]:
    """The program of one mistake that explains most answers, if it is enough, and the places of those it does not."""
    allowed = int(len(answers) * (1 - SHARE))
    best: tuple[Program, tuple[int, ...]] = (), ()
    for program in [(name,) for name in (*EVERY, *usual()) if touches(name, answers)]:
        fits: list[set[Fit]] = []
        for a in answers:
            fits.append(a.fits(program))
            if sum(not fit for fit in fits) > allowed:
                break
        else:
            counts = Counter(fit for found in fits for fit in found)
            how, many = counts.most_common(1)[0]
            missing = tuple(i for i, found in enumerate(fits) if how not in found)
            wrong = sum(a.wrong() for i, a in enumerate(answers) if i not in missing)
            if many >= len(answers) - allowed and wrong > len(missing) and (not best[0] or len(missing) < len(best[1])):
                best, allowed = (program, missing), len(missing)
    return best


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
    long = [a for a in answers if a.got.size > 2]
    if not long or any(np.linalg.norm(a.off(())) > a.limit for a in long):
        return ()
    sums = [(a.under(()).sum(0), a.got) for a in long]
    found = sorted(float(g @ got / (g @ g)) for g, got in sums if g.any())
    return (found[0], found[-1]) if found else ()


def wrong_arrays(parts: Sequence[tuple[Answered, Sequence[bool]]]) -> str:
    """The only kind of array that is wrong. parts: the wrong answers, each with which of its arrays are wrong."""
    for name, shares in ARRAYS.values():
        kinds = [(list(shares(a.settings[0])), wrong) for a, wrong in parts if len(wrong) > 1]
        some = [(kind, wrong) for kind, wrong in kinds if not all(kind)]
        if len(some) > 1 and all(all(k or not w for k, w in zip(*pair, strict=True)) for pair in some):
            return name
    return ""
