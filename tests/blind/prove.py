"""python -m tests.blind.prove [SUBSTRING]: the right ones are right and the wrong ones wrong, on fresh cases.

The reference is refmeta.algorithms on the losses of `common`; differences certify it, in four evaluations of the
objective for each number of θ. Of what refmeta.conformance knows about mistakes nothing is asked.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain

import numpy as np

from refmeta import algorithms
from refmeta.conformance import Skip, parameters
from tests.blind.common import combine, flat, make_loss, path, times, unflat, unit
from tests.blind.fresh import cases
from tests.blind.registry import FRAMEWORKS, Entry, load

ALGORITHMS = ("maml", "fomaml", "anil", "reptile", "joint")
SEEDS = range(2)
CLOSE, APART = {"float64": 1e-9, "float32": 1e-4}, 1e-8  # of the gradient's length


def reference(case, tasks=None):
    """The right answer; `tasks`: under another convention than the case's."""
    loss, of = make_loss(case), getattr(algorithms, case.algorithm)
    more = {"head": case.head} if case.algorithm == "anil" else {}
    parts = [of(loss, case.theta, [task], case.alpha, **more) for task in case.tasks]
    if case.algorithm == "reptile":
        parts = [times(1 / unit(case, S), part) for part, (S, _) in zip(parts, case.tasks, strict=True)]
    return combine(replace(case, conventions=case.conventions | ({"tasks": tasks} if tasks else {})), parts)


def by_differences(case):
    """The same from values of the loss alone but for the inner gradients; None of FOMAML and Reptile."""
    loss = make_loss(case)
    cut = len(case.theta) - (case.head if case.algorithm == "anil" else len(case.theta))

    def objective(vector):
        theta, total = unflat(vector, case.theta), 0
        body = theta[:cut]
        for supports, query in case.tasks:
            steps = [] if case.algorithm == "joint" else supports
            head = path(lambda h, batch: loss([*body, *h], batch), theta[cut:], steps, case.alpha)[-1]
            total = total + loss([*body, *head], query)
        return total

    if case.algorithm in ("fomaml", "reptile"):
        return None
    at, h = flat(case.theta), 2.0**-10
    steps = np.eye(len(at)) * h
    return np.array(
        [
            (8 * (objective(at + s) - objective(at - s)) - objective(at + 2 * s) + objective(at - 2 * s)) / (12 * h)
            for s in steps
        ]
    )


def vector(case, answer):
    if isinstance(answer, dict):
        answer = answer.get("gradient", answer)
    if isinstance(answer, dict):
        answer = [answer[name] for name in case.names]
    if hasattr(answer, "shape"):
        answer = [answer]
    leaves = [np.asarray(a.detach() if hasattr(a, "detach") else a, dtype=float) for a in answer]
    if [a.shape for a in leaves] != [np.shape(t) for t in case.theta]:
        raise ValueError(f"{case}: shapes {[a.shape for a in leaves]}")
    return flat(leaves)


def error(entry: Entry, case) -> float:
    right = flat(reference(case, entry.tasks))
    given = case.astype(entry.dtype)
    before = [np.copy(t) for t in given.theta]
    found = vector(case, entry.function(given))
    if entry.mistakes == 0:
        assert all(np.array_equal(a, b) for a, b in zip(before, given.theta, strict=True)), f"{case}: θ was changed"
    return float(np.linalg.norm(found - right) / (np.linalg.norm(right) or 1))


def errors(entry: Entry) -> Iterator[float]:
    """On the fresh cases; of a right one also on the questions of the vectors, which have the odd conventions."""
    worst = 0.0
    fresh = (case for seed in SEEDS for case in cases(entry.algorithm, seed))
    asked = (parameter.values[0] for parameter in parameters(algorithms=[entry.algorithm]))
    for case in chain(fresh, asked):
        if entry.mistakes and case.tier != "fresh" and worst > APART:
            return
        with suppress(Skip):
            yield (found := error(entry, case))
            worst = max(worst, found)


def judged(entry: Entry) -> tuple[bool, str]:
    """Whether an implementation is what it says, and how far off it is."""
    try:
        worst = max(found := list(errors(entry)))
    except Exception as e:  # a stranger's code may raise anything
        return False, f"{type(e).__name__}: {e}"
    fine = worst > APART if entry.mistakes else worst <= CLOSE[entry.dtype]
    note = f"{sum(e > APART for e in found)} of {len(found)} wrong, error up to {worst:.2g}"
    return fine and bool(np.isfinite(found).all()), note


def main(only: str = "") -> int:
    bad = 0
    for algorithm in ALGORITHMS:
        for seed in SEEDS:
            for case in cases(algorithm, seed):
                if (differences := by_differences(case)) is not None:
                    right = flat(reference(case))
                    assert np.linalg.norm(differences - right) < 1e-8 * np.linalg.norm(right), f"{case}: the reference"
    framework = only.partition("/")[0]
    for name, entry in load(framework if framework in FRAMEWORKS else None).items():
        if only not in name:
            continue
        fine, note = judged(entry)
        bad += not fine
        print("  " if fine else "!!", name, note, flush=True)
    print(f"{bad} are not what they say")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
