"""What the answers prove where no mistake explains them: on which vectors they are wrong."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from refmeta.conformance.cases import Case

MOST = 3  # conditions of a rule


def conditions(case: Case) -> dict[str, bool]:
    """What a mistake may depend on, in words, and whether it is so of the case; then the contraries."""
    steps, widths = [len(supports) for supports, _ in case.tasks], case.model.get("widths", [])
    examples = {len(x) for supports, _ in case.tasks for x, _ in supports}
    both = {
        **{(f"K ≥ {k}", f"K < {k}"): max(steps, default=0) >= k for k in (1, 2, 3, 5)},
        **{(f"{n} tasks or more", f"fewer than {n} tasks"): len(case.tasks) >= n for n in (2, 3)},
        ("α > 0", "α = 0"): case.alpha > 0,
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
    """The fewest conditions that hold for all that is wrong, and together for nothing that is right; "" if none do."""
    if min(len(wrong), len(right)) < 2:  # of one, anything is a rule
        return ""
    of_wrong, of_right = ([conditions(case) for case in cases] for cases in (wrong, right))
    shared = [name for name in of_wrong[0] if all(so[name] for so in of_wrong)]
    for many in range(1, MOST + 1):
        for names in combinations(shared, many):
            if not any(all(so[name] for name in names) for so in of_right):
                return " and ".join(names)
    return ""
