"""Right and wrong implementations of meta-gradients, as a harness would wrap them."""

from refmeta.conformance import rules
from refmeta.conformance.attribution import settings_of, tools_of
from refmeta.conformance.suspects import with_mistakes
from refmeta.trees import add


def combined(case, per_task):
    """Sum or mean over the tasks, and Reptile's scale, as the case declares."""
    scaled = []
    for gradient, (supports, _) in zip(per_task, case.tasks, strict=True):
        c = 1.0
        if case.conventions["reptile"] != "displacement":
            c = 1 / (case.alpha * (len(supports) if case.conventions["reptile"] == "over_alpha_k" else 1))
        scaled.append([leaf * c for leaf in gradient])
    total = add(scaled)
    return [leaf / len(per_task) for leaf in total] if case.conventions["tasks"] == "mean" else total


def wrong(suspects, algorithm, tasks=lambda i, n: 1.0, scale=lambda case: 1.0):
    """A harness with these mistakes in one algorithm; the other algorithms are right."""

    def harness(case):
        if case.algorithm != algorithm:
            return combined(case, rules.answers(tools_of(case), settings_of(case)))
        per_task = rules.answers(tools_of(case), with_mistakes(suspects, settings_of(case)))
        n = len(per_task)
        weighted = [[leaf * tasks(i, n) * scale(case) for leaf in g] for i, g in enumerate(per_task)]
        return combined(case, weighted)

    return harness


def last(i, n):
    return float(i == n - 1)


def first(i, n):
    return float(i == 0)


def mean(case):
    return 1 / len(case.tasks)
