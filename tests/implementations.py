"""Wrong meta-gradients: as a harness would wrap them, and as people write them."""

import numpy as np
from autograd import grad
from problems import flat, unflat

from refmeta import anil, fomaml, joint, maml, reptile
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


# --- As people write them, each for (loss, theta, tasks, alpha); θ has a head of two arrays ---


def moved(phi, g, alpha):
    return [p - alpha * leaf for p, leaf in zip(phi, g, strict=True)]


def adapted(loss, theta, supports, alpha):
    phi = list(theta)
    for batch in supports:
        phi = moved(phi, grad(loss)(phi, batch), alpha)
    return phi


def total(trees):
    return [sum(leaves) for leaves in zip(*trees, strict=True)]


def detached(loss, theta, tasks, alpha):
    return total(grad(loss)(adapted(loss, theta, S, alpha), Q) for S, Q in tasks)


def a_step_too_few(loss, theta, tasks, alpha):
    return list(grad(lambda t: sum(loss(adapted(loss, t, S[:-1], alpha), Q) for S, Q in tasks))(theta))


def inner_gradients_all_at_theta(loss, theta, tasks, alpha):
    def outer(theta):
        value = 0
        for supports, query in tasks:
            phi = theta
            for batch in supports:
                phi = moved(phi, grad(loss)(theta, batch), alpha)
            value = value + loss(phi, query)
        return value

    return list(grad(outer)(theta))


def a_mean_over_tasks(loss, theta, tasks, alpha):
    return list(grad(lambda t: sum(loss(adapted(loss, t, S, alpha), Q) for S, Q in tasks) / len(tasks))(theta))


def the_query_at_theta(loss, theta, tasks, alpha):
    return total(grad(loss)(theta, Q) for _, Q in tasks)


def the_last_support_for_the_query(loss, theta, tasks, alpha):
    return total(grad(loss)(adapted(loss, theta, S, alpha), S[-1]) for S, _ in tasks)


def everything_adapts(loss, theta, tasks, alpha):
    return list(grad(lambda t: sum(loss(adapted(loss, t, S, alpha), Q) for S, Q in tasks))(theta))


def head_adapted(loss, theta, supports, alpha, head):
    body, phi = list(theta[:-head]), list(theta[-head:])
    for batch in supports:
        phi = moved(phi, grad(lambda h, batch=batch: loss([*body, *h], batch))(phi), alpha)
    return [*body, *phi]


def head_detached(loss, theta, tasks, alpha, head=2):
    return total(grad(loss)(head_adapted(loss, theta, S, alpha, head), Q) for S, Q in tasks)


def the_body_stands_still(loss, theta, tasks, alpha, head=2):
    body = list(theta[:-head])

    def outer(h):
        return sum(loss(head_adapted(loss, [*body, *h], S, alpha, head), Q) for S, Q in tasks)

    return [0 * leaf for leaf in body] + list(grad(outer)(list(theta[-head:])))


def towards_theta(loss, theta, tasks, alpha):
    return total(moved(adapted(loss, theta, S, alpha), theta, 1) for S, _ in tasks)


def divided_by_alpha(loss, theta, tasks, alpha):
    return [leaf / alpha for leaf in total(moved(theta, adapted(loss, theta, S, alpha), 1) for S, _ in tasks)]


def the_last_step_alone(loss, theta, tasks, alpha):
    return [alpha * g for g in total(grad(loss)(adapted(loss, theta, S[:-1], alpha), S[-1]) for S, _ in tasks)]


def the_supports(loss, theta, tasks, alpha):
    return total(grad(loss)(theta, batch) for S, _ in tasks for batch in S)


def a_mean_of_gradients(loss, theta, tasks, alpha):
    return [leaf / len(tasks) for leaf in total(grad(loss)(theta, Q) for _, Q in tasks)]


WRONG = {
    maml: [detached, a_step_too_few, inner_gradients_all_at_theta, a_mean_over_tasks],
    fomaml: [the_query_at_theta, the_last_support_for_the_query, everything_adapts],
    anil: [everything_adapts, head_detached, the_body_stands_still],
    reptile: [towards_theta, divided_by_alpha, the_last_step_alone],
    joint: [the_supports, a_mean_of_gradients, detached],
}


def off(gradient, coordinate, epsilon):
    """The gradient with one of its numbers, counted over all arrays, times 1 + ε."""
    vector = flat(gradient)
    vector[coordinate] *= 1 + epsilon
    return unflat(vector, gradient)


EPSILONS = 10.0 ** np.arange(-12, 1)


def smallest_refused(check):
    """The smallest power of ten that `check(ε)` refuses, from 1e-12 on."""
    return next(epsilon for epsilon in EPSILONS if refuses(check, epsilon))


def refuses(check, *arguments):
    try:
        check(*arguments)
    except AssertionError:
        return True
    return False
