"""Right and wrong implementations of meta-gradients, as a harness would wrap them."""

from refmeta.conformance import rules
from refmeta.conformance.programs import with_mistakes


def wrong(suspects, algorithm, tasks=lambda i, n: 1.0, scale=lambda case: 1.0):
    """A harness with these mistakes in one algorithm; the other algorithms are right."""

    def harness(case):
        if case.algorithm != algorithm:
            return case.combine(rules.gradients(case.derivatives, case.settings))
        per_task = rules.gradients(case.derivatives, with_mistakes(suspects, case.settings))
        n = len(per_task)
        weighted = [[leaf * tasks(i, n) * scale(case) for leaf in g] for i, g in enumerate(per_task)]
        return case.combine(weighted)

    return harness


def last(i, n):
    return float(i == n - 1)


def first(i, n):
    return float(i == 0)


def mean(case):
    return 1 / len(case.tasks)
