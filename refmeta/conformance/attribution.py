"""Which known mistake gives exactly this wrong answer?

For each suspect s a vector holds the wrong gradient c_i of every task i. An answer g is explained by (s, weights) if
g = Σ_i w_i c_i within rounding; the weights say whether tasks were summed, averaged or lost. An explanation holds for
an algorithm only if it holds for *all* its vectors, those that passed included. So none is a guess.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from autograd import grad

from refmeta.adjoint import hvp
from refmeta.conformance.cases import Case, Vector
from refmeta.conformance.rules import RULES, Setting, Tools, answers, flat
from refmeta.conformance.suspects import SUSPECTS, with_mistakes
from refmeta.trees import Theta

RIGHT: tuple[str, ...] = ()  # no suspect: the gradient of every task is right


class Explanation(NamedTuple):
    """The mistakes made in every task, the tasks that count, and what the sum over them is multiplied by."""

    suspects: tuple[str, ...] = RIGHT
    tasks: str = "all"
    scale: str = "1"

    @property
    def mistakes(self) -> int:
        """How many things it says are other than they should be."""
        return len(self.suspects) + (self.tasks != "all") + (self.scale != "1")


PATTERNS: dict[str, Callable[[int], np.ndarray]] = {
    "all": lambda n: np.ones(n),
    "last": lambda n: np.eye(n)[-1],
    "first": lambda n: np.eye(n)[0],
    "all but the last": lambda n: 1 - np.eye(n)[-1],
    "all but the first": lambda n: 1 - np.eye(n)[0],
}


def matches(got: np.ndarray, per_task: np.ndarray, scales: dict[str, float], limit: float) -> set[tuple[str, str]]:
    """The (tasks, scale) for which c · Σ w_i · per_task_i is `got` to within `limit`, by least squares.

    Free weights count only where no pattern of tasks fits and there are two numbers more than weights.
    """
    found = set()
    for name, pattern in PATTERNS.items():
        u = pattern(len(per_task)) @ per_task
        named = [s for s, c in scales.items() if np.linalg.norm(got - c * u) <= limit]
        found |= {(name, s) for s in named}
        c = (got @ u) / (u @ u) if u.any() else 0
        if c and np.linalg.norm(got - c * u) <= limit:
            found.add((name, f"{c:.4g}"))
    if not found and len(per_task) > 1 and len(got) > len(per_task) + 1:
        weights = np.linalg.lstsq(per_task.T, got, rcond=None)[0]
        if np.linalg.norm(got - weights @ per_task) <= limit:
            found.add((f"weighted {', '.join(f'{w:.3g}' for w in weights)}", "1"))
    return found


def scales(tasks: int, alpha: float, steps: int, algorithm: str) -> dict[str, float]:
    """The factors that have a name."""
    named = {"1": 1.0, "1/tasks": 1 / tasks, "tasks": float(tasks), "-1": -1.0, "-1/tasks": -1 / tasks}
    if alpha and algorithm == "reptile":
        named |= {"1/alpha": 1 / alpha, "-1/alpha": -1 / alpha, "alpha": alpha}
        named |= {"1/(alpha tasks)": 1 / (alpha * tasks)}
        if steps:
            named |= {"1/(alpha steps)": 1 / (alpha * steps)}
            named |= {"1/(alpha steps tasks)": 1 / (alpha * steps * tasks)}
    return named


def scales_of(case: Case) -> dict[str, float]:
    return scales(len(case.tasks), case.alpha, len(case.tasks[0][0]), case.algorithm)


def explanations(vector: Vector, got: Theta, limit: float) -> set[Explanation]:
    """All that explains one answer. A suspect that the vector does not list is right on it."""
    g = flat(got)
    share = 1 / len(vector.per_task) if vector.case.conventions["tasks"] == "mean" else 1.0
    named = scales_of(vector.case)

    def fits(trees: Iterable[Theta]) -> set[tuple[str, str]]:
        return matches(g, share * np.array([flat(tree) for tree in trees]), named, limit)

    right = fits(task["gradient"] for task in vector.per_task)
    found = {Explanation(RIGHT, *fit) for fit in right}
    for name in SUSPECTS:
        trees = vector.suspects.get(name)
        found |= {Explanation((name,), *fit) for fit in (right if trees is None else fits(trees))}
    return found


def tools_of(case: Case) -> Tools:
    """The derivatives of the case's loss."""
    if case.model["kind"] == "quadratic":  # by hand: a thousand pairs are tried on these first
        return Tools(
            lambda phi, batch: _parts(batch[0] @ flat(phi) - batch[1], phi),
            lambda phi, batch, v: _parts(batch[0] @ flat(v), phi),
        )
    loss = case.loss_fn
    return Tools(grad(loss), lambda phi, batch, v: hvp(loss, phi, batch, v))


def _parts(t: np.ndarray, like: Theta) -> Theta:
    ends = np.cumsum([leaf.size for leaf in like])[:-1]
    return [part.reshape(leaf.shape) for part, leaf in zip(np.split(t, ends), like, strict=True)]


def pairs(vectors: Sequence[tuple[Vector, Theta, float]]) -> Iterator[Explanation]:
    """Two mistakes at once that explain every (vector, answer, limit); computed, for the vectors hold single ones."""
    for both in permutations(SUSPECTS, 2):
        common: set[tuple[str, str]] | None = None
        for vector, got, limit in vectors:
            wrong = answers(tools_of(vector.case), with_mistakes(both, settings_of(vector.case)))
            trees = [
                flat(tree) * float(convention(vector.case, len(supports)))
                for tree, (supports, _) in zip(wrong, vector.case.tasks, strict=True)
            ]
            share = 1 / len(trees) if vector.case.conventions["tasks"] == "mean" else 1.0
            fits = matches(flat(got), share * np.array(trees), scales_of(vector.case), limit)
            common = fits if common is None else common & fits
            if not common:
                break
        yield from (Explanation(both, *fit) for fit in common or ())


def convention(case: Case, steps: int) -> Fraction:
    """What a task's gradient is multiplied by under the case's declared Reptile convention."""
    if case.algorithm != "reptile" or case.conventions["reptile"] == "displacement":
        return Fraction(1)
    k = steps if case.conventions["reptile"] == "over_alpha_k" else 1
    return 1 / (Fraction(case.alpha) * k)


def settings_of(case: Case) -> list[Setting]:
    """One Setting for each task of a case, in the arithmetic of its arrays."""
    return [
        Setting(RULES[case.algorithm], case.theta, supports, query, case.alpha, **shape(case, supports))
        for supports, query in case.tasks
    ]


def shape(case: Case, supports: Any) -> dict[str, Any]:
    """What a Setting says of the model: which arrays move, how many examples, how many outputs."""
    data = case.model["kind"] == "mlp"
    return {
        "moves": moves(len(case.theta), case.head if case.algorithm == "anil" else None),
        "n": len(supports[0][0]) if data and supports and case.conventions["examples"] == "mean" else None,
        "outputs": case.model["widths"][-1] if case.loss["kind"] == "squared_error" else None,
    }


def moves(arrays: int, head: int | None) -> tuple[bool, ...]:
    """Which of θ's arrays adapt: the last `head`, or all."""
    first = 0 if head is None else arrays - head
    return tuple(i >= first for i in range(arrays))


def _is_number(scale: str) -> bool:
    """Whether a factor has no better name than its digits; 1 and −1 are names."""
    return scale not in ("1", "-1") and scale[-1].isdigit()


def simplest(found: Iterable[Explanation]) -> list[Explanation]:
    """Those with the fewest mistakes, of the rest none; the order is the suspects' own."""
    order = {name: i for i, name in enumerate(SUSPECTS)}
    named = {(e.suspects, e.tasks) for e in found if not _is_number(e.scale)}
    found = [e for e in found if not _is_number(e.scale) or (e.suspects, e.tasks) not in named]
    ranked = sorted(found, key=lambda e: (e.mistakes, [order[s] for s in e.suspects], e.tasks, e.scale))
    one_order = {(frozenset(e.suspects), e.tasks, e.scale): e for e in reversed(ranked)}
    return [e for e in reversed(one_order.values()) if e.mistakes == ranked[0].mistakes]
