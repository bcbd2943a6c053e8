"""Sixty wrong ones in NumPy, written afterwards by somebody who had not seen the checker."""

from functools import partial

import autograd.numpy as np
from autograd import grad

from tests.blind.common import (
    add,
    combine,
    descend,
    dot,
    flat,
    hvp,
    labelled,
    make_loss,
    merged,
    path,
    times,
    unflat,
    unit,
)
from tests.blind.registry import wrong


def network(case):
    return case.model["kind"] != "quadratic"


def through(case, value, tasks=None):
    """The derivative of value(θ, supports, query), for all tasks."""
    tasks = case.tasks if tasks is None else tasks
    return combine(case, [grad(lambda theta: value(list(theta), S, Q))(case.theta) for S, Q in tasks])


def walk(case, theta, supports, direction):
    """The end of an inner loop whose step k goes along direction(φ, batch, k)."""
    phi = list(theta)
    for k, batch in enumerate(supports):
        phi = descend(phi, direction(phi, batch, k), case.alpha)
    return phi


def walked(case, direction, loss=None):
    """MAML with another direction of the inner steps."""
    loss = loss or make_loss(case)
    return through(case, lambda theta, S, Q: loss(walk(case, theta, S, direction), Q))


def by_hand(case, back):
    """MAML with back(loss, φs, supports, v), which pulls the query's gradient back to θ."""
    loss, parts = make_loss(case), []
    for S, Q in case.tasks:
        phis = path(loss, case.theta, S, case.alpha)
        parts.append(back(loss, phis, S, grad(loss)(phis[-1], Q)))
    return combine(case, parts)


def pulled(case, product, loss, phis, supports, v):
    """Back through the steps with one's own product of Hessian and vector."""
    for phi, batch in reversed(list(zip(phis[:-1], supports, strict=True))):
        v = descend(v, product(loss, phi, batch, v), case.alpha)
    return v


def maml_gradient(case, loss, theta, supports, query):
    return grad(lambda t: loss(path(loss, t, supports, case.alpha)[-1], query))(list(theta))


def norm(tree):
    return np.sqrt(dot(tree, tree) + 1e-12)


# MAML


@wrong("maml", "the inner loop counts from 1: the first support batch is never used")
def first_support_skipped(case):
    loss = make_loss(case)
    return through(case, lambda theta, S, Q: loss(path(loss, theta, S[1:], case.alpha)[-1], Q))


@wrong("maml", "supports and queries come from two loaders, one of which is a task ahead")
def queries_a_task_behind(case):
    loss, queries = make_loss(case), [Q for _, Q in case.tasks]
    tasks = [(S, queries[i - 1]) for i, (S, _) in enumerate(case.tasks)]
    return through(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q), tasks)


@wrong("maml", "the fast weights are not reset to θ: a task starts where the one before ended")
def fast_weights_kept(case):
    loss, start, parts = make_loss(case), case.theta, []
    for S, Q in case.tasks:
        parts.append(maml_gradient(case, loss, start, S, Q))
        start = path(loss, start, S, case.alpha)[-1]
    return combine(case, parts)


@wrong("maml", "the inner update is in place, so that all saved iterates are the last one when the Hessians are taken")
def iterates_aliased(case):
    loss, parts = make_loss(case), []
    for S, Q in case.tasks:
        phi, saved = [np.array(t) for t in case.theta], []
        for batch in S:
            saved.append(phi)
            for p, d in zip(phi, grad(loss)(phi, batch), strict=True):
                p -= case.alpha * d
        v = grad(loss)(phi, Q)
        for at, batch in zip(saved[::-1], S[::-1], strict=True):
            v = descend(v, hvp(loss, at, batch, v), case.alpha)
        parts.append(v)
    return combine(case, parts)


@wrong("maml", "array after array is updated, each with a gradient that sees the new values of those before")
def leaf_after_leaf(case):
    loss = make_loss(case)

    def adapted(theta, supports):
        for batch in supports:
            for i in range(len(theta)):
                theta = [*theta[:i], theta[i] - case.alpha * grad(loss)(theta, batch)[i], *theta[i + 1 :]]
        return theta

    return through(case, lambda theta, S, Q: loss(adapted(theta, S), Q))


@wrong("maml", "the hand-written backward pass visits the inner steps from the first to the last")
def backward_in_forward_order(case):
    def back(loss, phis, supports, v):
        for phi, batch in zip(phis[:-1], supports, strict=True):
            v = descend(v, hvp(loss, phi, batch, v), case.alpha)
        return v

    return by_hand(case, back)


@wrong("maml", "the Hessian product is a one-sided difference of gradients with the step 0.1")
def coarse_hessian_products(case):
    def product(loss, phi, batch, v, h=0.1):
        there, here = grad(loss)(descend(phi, v, -h), batch), grad(loss)(phi, batch)
        return times(1 / h, descend(there, here, 1))

    return by_hand(case, partial(pulled, case, product))


@wrong("maml", "the gradient is differentiated as if it were elementwise: the Hessian's row sums times v")
def hessian_row_sums(case):
    def product(loss, phi, batch, v):
        rows = hvp(loss, phi, batch, [np.ones_like(leaf) for leaf in v])
        return [r * leaf for r, leaf in zip(rows, v, strict=True)]

    return by_hand(case, partial(pulled, case, product))


@wrong("maml", "each array is differentiated by itself: the Hessian lacks the blocks between arrays")
def own_blocks_only(case):
    def product(loss, phi, batch, v):
        def block(i):
            def along(leaf):
                return np.sum(grad(loss)([*phi[:i], leaf, *phi[i + 1 :]], batch)[i] * v[i])

            return grad(along)(phi[i])

        return [block(i) for i in range(len(phi))]

    return by_hand(case, partial(pulled, case, product))


@wrong("maml", "the product of the steps' derivatives is expanded to first order in α")
def first_order_in_alpha(case):
    def back(loss, phis, supports, v):
        products = [hvp(loss, phi, batch, v) for phi, batch in zip(phis[:-1], supports, strict=True)]
        return descend(v, add(products), case.alpha) if products else v

    return by_hand(case, back)


@wrong("maml", "the Hessian is computed once per task, at θ on the first support, and used for every step")
def one_hessian_for_all_steps(case):
    def back(loss, phis, supports, v):
        for _ in supports:
            v = descend(v, hvp(loss, phis[0], supports[0], v), case.alpha)
        return v

    return by_hand(case, back)


@wrong("maml", "the inner gradients are clipped elementwise, to ±0.2")
def inner_gradients_clipped(case):
    loss = make_loss(case)
    return walked(case, lambda phi, batch, k: [np.clip(d, -0.2, 0.2) for d in grad(loss)(phi, batch)])


@wrong("maml", "implicit MAML's formula: one linear solve at the end of the inner loop instead of the unrolled steps")
def implicit_solve(case):
    def back(loss, phis, supports, v):
        if not supports:
            return v

        def hessian_times(e):
            products = [hvp(loss, phis[-1], batch, unflat(e, v)) for batch in supports]
            return flat(add(products))

        size = len(flat(v))
        hessian = np.array([hessian_times(e) for e in np.eye(size)])
        return unflat(np.linalg.solve(np.eye(size) + case.alpha * hessian, flat(v)), v)

    return by_hand(case, back)


@wrong("maml", "the inner optimiser has a momentum of 0.9")
def inner_momentum(case):
    loss = make_loss(case)

    def adapted(theta, supports):
        phi, velocity = theta, times(0, theta)
        for batch in supports:
            velocity = add([times(0.9, velocity), grad(loss)(phi, batch)])
            phi = descend(phi, velocity, case.alpha)
        return phi

    return through(case, lambda theta, S, Q: loss(adapted(theta, S), Q))


@wrong("maml", "MAML++'s multi-step loss: the query loss is averaged over all inner steps")
def multi_step_loss(case):
    loss = make_loss(case)

    def value(theta, S, Q):
        phis = path(loss, theta, S, case.alpha)
        after = phis[1:] or phis
        return sum(loss(phi, Q) for phi in after) / len(after)

    return through(case, value)


@wrong("maml", "the outer objective is the improvement: the query loss before adaptation is subtracted")
def improvement_over_the_start(case):
    loss = make_loss(case)
    return through(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q) - loss(theta, Q))


@wrong("maml", "the inner loss is reduced the other way over the examples than the outer loss")
def inner_loss_otherwise_reduced(case):
    inner = make_loss(case, reduction={"mean": "sum", "sum": "mean"}[case.conventions["examples"]])
    return walked(case, lambda phi, batch, k: grad(inner)(phi, batch))


@wrong("maml", "the biases are left out of the inner update")
def biases_do_not_adapt(case):
    loss = make_loss(case)

    def direction(phi, batch, k):
        return [d * (not (network(case) and i % 2)) for i, d in enumerate(grad(loss)(phi, batch))]

    return walked(case, direction)


@wrong("maml", "Hessian products are flattened column by column and read back row by row")
def column_major(case):
    def product(loss, phi, batch, v):
        columns = np.concatenate([np.ravel(leaf, order="F") for leaf in hvp(loss, phi, batch, v)])
        return unflat(columns, v)

    return by_hand(case, partial(pulled, case, product))


@wrong("maml", "adapted parameters are cached under the shapes of the supports: later tasks get the first one's")
def cached_by_shape(case):
    loss = make_loss(case)

    def objective(theta):
        cache, values = {}, []
        for S, Q in case.tasks:
            key = tuple(np.shape(batch[0]) for batch in S)
            if key not in cache:
                cache[key] = path(loss, list(theta), S, case.alpha)[-1]
            values.append(loss(cache[key], Q))
        return sum(values) / (len(values) if case.conventions["tasks"] == "mean" else 1)

    return list(grad(objective)(case.theta))


@wrong("maml", "only the first task is differentiated to second order, the others' graphs are not kept")
def second_order_once(case):
    loss, parts = make_loss(case), []
    for i, (S, Q) in enumerate(case.tasks):
        end = path(loss, case.theta, S, case.alpha)[-1]
        parts.append(grad(loss)(end, Q) if i else maml_gradient(case, loss, case.theta, S, Q))
    return combine(case, parts)


@wrong("maml", "the inner rate of a weight matrix is divided by its number of inputs")
def rate_over_fan_in(case):
    loss = make_loss(case)
    fans = [np.shape(t)[0] if network(case) and np.ndim(t) > 1 else 1 for t in case.theta]
    return walked(case, lambda phi, batch, k: [d / n for d, n in zip(grad(loss)(phi, batch), fans, strict=True)])


@wrong("maml", "the adapted parameters are averaged over the tasks before the query losses are taken")
def adapted_parameters_averaged(case):
    loss = make_loss(case)

    def objective(theta):
        ends = [path(loss, list(theta), S, case.alpha)[-1] for S, _ in case.tasks]
        middle = times(1 / len(ends), add(ends))
        values = [loss(middle, Q) for _, Q in case.tasks]
        return sum(values) / (len(values) if case.conventions["tasks"] == "mean" else 1)

    return list(grad(objective)(case.theta))


@wrong("maml", "labels are smoothed by 0.1 in the query loss")
def labels_smoothed(case):
    loss = make_loss(case)

    def outer(phi, query):
        if not labelled(case):
            return loss(phi, query)
        x, y = query
        classes = len(case.theta[-1])
        others = sum(loss(phi, (x, np.full_like(y, c))) for c in range(classes)) / classes
        return 0.9 * loss(phi, query) + 0.1 * others

    return through(case, lambda theta, S, Q: outer(path(loss, theta, S, case.alpha)[-1], Q))


@wrong("maml", "early stopping on the query: the iterate with the least query loss is taken")
def best_iterate(case):
    loss = make_loss(case)

    def value(theta, S, Q):
        losses = [loss(phi, Q) for phi in path(loss, theta, S, case.alpha)]
        return min(losses)

    return through(case, value)


@wrong("maml", "the gradient buffer is not zeroed between tasks, and is added to the total after each")
def buffer_never_zeroed(case):
    loss, parts = make_loss(case), []
    buffer = times(0, case.theta)
    for S, Q in case.tasks:
        buffer = add([buffer, maml_gradient(case, loss, case.theta, S, Q)])
        parts.append(buffer)
    return combine(case, parts)


@wrong("maml", "the inner parameters are stored in half precision")
def half_precision_iterates(case):
    loss, parts = make_loss(case), []
    for S, Q in case.tasks:
        phis = [list(case.theta)]
        for batch in S:
            ahead = descend(phis[-1], grad(loss)(phis[-1], batch), case.alpha)
            phis.append([np.asarray(t).astype(np.float16).astype(float) for t in ahead])
        parts.append(pulled(case, hvp, loss, phis, S, grad(loss)(phis[-1], Q)))
    return combine(case, parts)


@wrong("maml", "inner momentum, and the velocity is carried from a task to the next", 2)
def velocity_across_tasks(case):
    loss, parts, velocity = make_loss(case), [], times(0, case.theta)

    def adapted(theta, supports, velocity):
        for batch in supports:
            velocity = add([times(0.5, velocity), grad(loss)(theta, batch)])
            theta = descend(theta, velocity, case.alpha)
        return theta, velocity

    for S, Q in case.tasks:
        parts.append(grad(lambda theta: loss(adapted(list(theta), S, velocity)[0], Q))(case.theta))
        velocity = adapted(case.theta, S, velocity)[1]
    return combine(case, parts)


@wrong("maml", "the backward pass takes the Hessians one iterate too late, and on the query", 2)
def late_hessians_of_the_query(case):
    loss, parts = make_loss(case), []
    for S, Q in case.tasks:
        phis = path(loss, case.theta, S, case.alpha)
        v = grad(loss)(phis[-1], Q)
        for phi in reversed(phis[1:]):
            v = descend(v, hvp(loss, phi, Q, v), case.alpha)
        parts.append(v)
    return combine(case, parts)


@wrong("maml", "all supports are one batch for every step, and the query loses its last example", 2)
def pooled_supports_and_a_short_query(case):
    loss = make_loss(case)

    def value(theta, S, Q):
        pool = [merged(case, S)] * len(S) if S else S
        query = tuple(part[:-1] for part in Q) if network(case) and len(Q[0]) > 1 else Q
        return loss(path(loss, theta, pool, case.alpha)[-1], query)

    return through(case, value)
