"""The vectors' gradients in ways that share little, and what digits agree: `python -m tests.vectors.derivations`."""

import warnings

import numpy as np
from autograd import grad

import refmeta
from refmeta import adjoint, recorded, stacked
from refmeta.algorithms import objective
from refmeta.conformance import Skip, check, rules
from refmeta.conformance.rules import flat, unflat
from refmeta.trees import holding, split
from tests.vectors import complex_steps
from tests.vectors.arithmetic import in_kind
from tests.vectors.derivation import derivatives
from tests.vectors.make import algorithm_of


def by(one_task):
    """A harness from one_task(case, task): its gradient."""
    return lambda case: case.combine([one_task(case, task) for task in case.tasks])


def of(module, how=lambda algorithm: algorithm):
    def one_task(case, task):
        algorithm = algorithm_of(case, module)
        if not algorithm:
            raise Skip("gradients of an objective alone")
        return how(algorithm)(case.loss_fn, case.theta, [task], case.alpha)

    return by(one_task)


def together(case):
    """All tasks of a case in one call, their number of steps the same."""
    if len({len(supports) for supports, _ in case.tasks}) > 1:
        raise Skip("tasks with as many steps")
    total = stacked(algorithm_of(case))(case.loss_fn, case.theta, case.tasks, case.alpha)
    zeros = [[0 * leaf for leaf in total]] * (len(case.tasks) - 1)
    return case.combine([total, *zeros])


def complex_steps_of(case, task):
    if case.algorithm not in ("maml", "anil") or case.model["kind"] != "mlp" or case.conventions["examples"] == "sum":
        raise Skip("the objective of a network, a mean over examples")
    return complex_steps.meta_gradient(case.theta, [task], case.alpha, case.head, case.model["activation"])


def differences(case, task, h=1e-3):
    """Of fourth order: (8 (F(h) − F(−h)) − F(2h) + F(−2h)) / 12h."""
    if case.algorithm not in ("maml", "anil", "joint"):
        raise Skip("gradients of an objective alone")
    task = ([], task[1]) if case.algorithm == "joint" else task

    def F(vector):
        body, head = split(unflat(vector, case.theta), len(case.theta) if case.head is None else case.head)
        return objective(holding(body, case.loss_fn), head, [task], case.alpha)

    theta = flat(case.theta)
    steps = h * np.eye(theta.size)
    twelve = [8 * (F(theta + e) - F(theta - e)) - F(theta + 2 * e) + F(theta - 2 * e) for e in steps]
    return unflat(np.array(twelve) / (12 * h), case.theta)


def by_autograd(case):
    return rules.Derivatives(grad(case.loss_fn), lambda phi, batch, v: adjoint.hvp(case.loss_fn, phi, batch, v))


def in_floats(case):
    same = in_kind(case, float)
    return [np.asarray(leaf, float) for leaf in same.combine(rules.gradients(derivatives(case), same.settings))]


DERIVATIONS = {
    "autograd, through the inner loop": of(refmeta),
    "the same, all tasks stacked": together,
    "the same, recorded and replayed": of(refmeta, recorded),
    "adjoints: a Hessian times a vector each step": of(adjoint),
    "the rules, with autograd's derivatives of a loss": lambda case: case.combine(
        rules.gradients(by_autograd(case), case.settings)
    ),
    "the rules, with derivatives by hand and dual numbers, in floats": in_floats,
    "complex steps of an objective by hand": by(complex_steps_of),
    "differences of fourth order": by(differences),
}
ALGORITHMS = "maml", "fomaml", "anil", "reptile", "joint"


def digits(harness, algorithm):
    """The fewest correct digits on an algorithm's vectors, as the checker counts them; and of how many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd, of an empty head: there is nothing to differentiate
        asked = [row for row in check(harness, algorithms=[algorithm]).rows if row.status != "skip"]
    return (min(row.digits for row in asked), len(asked)) if asked else None


def table():
    lines = [f"| derivation | {' | '.join(ALGORITHMS)} |", "| --- |" + " --: |" * len(ALGORITHMS)]
    for name, harness in DERIVATIONS.items():
        found = [digits(harness, algorithm) for algorithm in ALGORITHMS]
        lines.append(f"| {name} | {' | '.join(f'{f[0]:.1f} on {f[1]}' if f else '' for f in found)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
