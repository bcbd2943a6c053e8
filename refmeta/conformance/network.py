"""The caller's network as the audit sees it: derivatives, tasks, and the effect of rounding on both."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refmeta.checks import check_alpha, check_head, check_tasks, check_theta
from refmeta.conformance.explain import Factor, Program, factors, slow
from refmeta.conformance.programs import with_mistakes
from refmeta.conformance.rules import ALGORITHMS, Derivatives, Setting, finished, flat, gradients, moves, remembered
from refmeta.trees import Supports, Tasks, Theta

EPS = {"float64": float(np.finfo(float).eps), "float32": float(np.finfo(np.float32).eps)}
FLOOR = {"float64": 1e-10, "float32": 1e-5}  # nothing is known better than this
SKETCH = 4_096  # numbers that stand for a longer gradient
MEMORY = 1 << 28  # bytes of gradients that are kept
UNSTABLE = "the gradient changes as θ moves by a few roundings: a unit sits on its kink, or the inner loop is unstable"


def to_settings(algorithm: str, theta: Theta, tasks: Tasks, alpha: float, head: int | Sequence[bool]) -> list[Setting]:
    """A Setting for each task, in float64, with the number of examples in a support batch and of outputs, if it is one.

    head: how many of the last arrays adapt in ANIL, or for each array whether it does. ValueError, TypeError: as
    `refmeta.maml`, or an unknown algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: expected one of {', '.join(ALGORITHMS)}; got {algorithm!r}")
    theta, alpha = cast(check_theta(theta), "float64"), check_alpha(alpha)
    head = head if algorithm == "anil" else len(theta)
    if not isinstance(head, Sequence):
        check_head(head, len(theta))
        head = moves(len(theta), head)
    tasks = cast([(list(S), Q) for S, Q in check_tasks(tasks, queries_needed=algorithm != "reptile")], "float64")
    found = (Setting(theta, *task, alpha, tuple(head), tasks=tasks, **ALGORITHMS[algorithm]) for task in tasks)
    return [s._replace(place=place, **_sizes(s.supports)) for place, s in enumerate(found)]


def _sizes(supports: Supports) -> dict[str, Any]:
    x, y = supports[0] if supports else (np.zeros(0), np.zeros(0))
    return {"n": len(x) or None, "outputs": 1 if y.dtype.kind == "f" and y.shape[1:] == (1,) else None}


def cast(tree: Any, dtype: str) -> Any:
    """A copy of nested lists and tuples of arrays, their floating-point numbers in another dtype; None stays."""
    if isinstance(tree, Sequence):
        found = [cast(part, dtype) for part in tree]
        return tuple(found) if isinstance(tree, tuple) else found
    return tree if tree is None else np.array(tree, dtype if tree.dtype.kind == "f" else tree.dtype)


class Network(NamedTuple):
    """The caller's derivatives and tasks.

    coarse: the same derivatives, with differences at another step. arithmetic: their dtype. reason: why they may be
    imprecise.
    """

    derivatives: Derivatives
    coarse: Derivatives
    settings: list[Setting]
    arithmetic: str
    reason: str

    def remembering(self) -> "Network":
        """The same, its derivatives cached."""
        most = MEMORY // (8 * flat(self.settings[0].theta).size)
        grad, fine, coarse = (remembered(f, most) for f in (*self.derivatives[:2], self.coarse.hvp))
        same = self.coarse == self.derivatives
        return self._replace(derivatives=Derivatives(grad, fine), coarse=Derivatives(grad, fine if same else coarse))

    def factors(self, many: int) -> dict[Factor, float]:
        """The factors with a name of a sum over so many tasks."""
        first, *_ = self.settings
        return factors(many, first.alpha, len(first.supports), "reptile" if first.displaced else "maml")

    def under(self, many: int, program: Program = ()) -> np.ndarray:
        """The gradient of each of the first so many tasks, a row each, with these mistakes in it."""
        return rows(self.derivatives, self.changed(many, program))

    def changed(self, many: int, program: Program) -> list[Setting]:
        """The settings of the first so many tasks with these mistakes in them."""
        return with_mistakes(program, [s._replace(tasks=s.tasks[:many]) for s in self.settings[:many]])

    def rounding(self, dtype: str, at: np.ndarray, settings: list[Setting]) -> float:
        """How far the sum over the tasks, whose gradients are `at`, may be off in this dtype.

        That is ten times the change of the sum when θ changes by a few roundings.
        """
        random, theta, eps = np.random.default_rng(0), settings[0].theta, max(EPS[dtype], EPS[self.arithmetic])
        # A displacement θ − φ, however short, has the rounding error of θ.
        off = [4 * eps * self.settings[0].displaced * float(np.linalg.norm(flat(theta)))]
        for _ in range(2):
            moved = [leaf * (1 + 8 * eps * random.normal(size=leaf.shape)) for leaf in theta]
            off.append(10 * total(rows(self.derivatives, [s._replace(theta=moved) for s in settings]) - at))
        if self.coarse != self.derivatives:
            off.append(4 * total(rows(self.coarse, settings) - at))
        return max(off)

    def precision(self, dtype: str, truth: np.ndarray) -> float:
        """How far an answer computed in this dtype may be off the truth, relative to the size of the gradients."""
        rounding = self.rounding(dtype, truth, self.settings) / size(truth)
        found = max(FLOOR[dtype], FLOOR[self.arithmetic], rounding)
        return found if np.isfinite(found) else np.inf


def exact(derivatives: Derivatives, settings: list[Setting]) -> Network:
    """A network whose derivatives are a framework's own, in float64."""
    return Network(derivatives, derivatives, settings, "float64", UNSTABLE)


def adapting(names: list[str], head: Any, chosen: Callable[[str], bool]) -> int | list[bool]:
    """The head as a number, or for each parameter whether it adapts. ValueError: none does."""
    if isinstance(head, int):
        return head
    found = list(map(chosen, names))
    if not any(found):
        raise ValueError(f"head: {head!r:.60} has none of the parameters {', '.join(names)}")
    return found


def to_tasks(tasks: Sequence[Any], steps: int | None) -> Tasks:
    """Tasks as (supports, query), a single support repeated for each step. TypeError, ValueError: they are no tasks."""
    found: list[Any] = []
    for i, task in enumerate(tasks):
        if not isinstance(task, Sequence) or len(task) not in (2, 4):
            got = f"{len(task)} things" if isinstance(task, Sequence) else type(task).__name__
            raise TypeError(f"tasks[{i}]: expected ((x, y), (x, y)), support and query; got {got}")
        support, query = task if len(task) == 2 else (task[:2], task[2:])
        alone = len(support) == 2 and all(hasattr(part, "shape") for part in support)
        if alone == (steps is None) or (alone and not (type(steps) is int and steps >= 0)):
            expected = "the number of inner steps" if alone else "None, because each task has a batch for each step"
            raise ValueError(f"steps: expected {expected}; got {steps!r}")
        found.append(([support] * (steps or 0) if alone else list(support), query))
    return found


# --- Gradients as rows ---


def rows(derivatives: Derivatives, settings: list[Setting]) -> np.ndarray:
    """The sketch of every task's gradient."""
    found = [sketch(flat(g)) for g in gradients(derivatives, slow(settings, "tasks"))]
    return finished(np.array(found), settings)


def sketch(g: np.ndarray) -> np.ndarray:
    """The numbers of a gradient; of a long one SKETCH sums with random signs, which keep lengths to about 2 %."""
    if g.size <= SKETCH:
        return g
    places, signs = _hashed(g.size)
    return np.bincount(places, signs * g, SKETCH)


@lru_cache(1)
def _hashed(size: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(size)
    return random.integers(0, SKETCH, size), random.choice([-1.0, 1.0], size)


def total(per_task: np.ndarray) -> float:
    """The length of the sum over the tasks."""
    return float(np.linalg.norm(per_task.sum(0)))


def size(per_task: np.ndarray) -> float:
    """The largest of the tasks' gradients and their sum."""
    return max(total(per_task), float(np.linalg.norm(per_task, axis=1).max()), 1e-300)
