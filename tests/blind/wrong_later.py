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
    through,
    times,
    unflat,
    unit,
)
from tests.blind.registry import wrong


def network(case):
    return case.model["kind"] != "quadratic"


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
def rows_summed_then_multiplied(case):
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
def one_mean_of_all_ends(case):
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


# First-order MAML


def first_order(case, gradient):
    """gradient(loss, φs, supports, query) for all tasks."""
    loss = make_loss(case)
    return combine(case, [gradient(loss, path(loss, case.theta, S, case.alpha), S, Q) for S, Q in case.tasks])


@wrong("fomaml", "the query gradient is taken before the last inner update is applied")
def before_the_last_update(case):
    return first_order(case, lambda loss, phis, S, Q: grad(loss)(phis[max(len(phis) - 2, 0)], Q))


@wrong("fomaml", "the inner gradients are not zeroed: every step goes along the sum of all so far")
def inner_gradients_pile_up(case):
    loss, parts = make_loss(case), []
    for S, Q in case.tasks:
        phi, buffer = case.theta, times(0, case.theta)
        for batch in S:
            buffer = add([buffer, grad(loss)(phi, batch)])
            phi = descend(phi, buffer, case.alpha)
        parts.append(grad(loss)(phi, Q))
    return combine(case, parts)


@wrong("fomaml", "only the task with the greatest query loss counts")
def hardest_task_alone(case):
    loss = make_loss(case)
    ends = [(path(loss, case.theta, S, case.alpha)[-1], Q) for S, Q in case.tasks]
    return grad(loss)(*max(ends, key=lambda end: loss(*end)))


@wrong("fomaml", "every task's gradient is scaled to length one, so that no task dominates")
def tasks_of_unit_length(case):
    def gradient(loss, phis, S, Q):
        g = grad(loss)(phis[-1], Q)
        return times(1 / norm(g), g)

    return first_order(case, gradient)


@wrong("fomaml", "each adapted model is evaluated on all tasks' queries in one batch")
def queries_of_all_tasks(case):
    everything = merged(case, [Q for _, Q in case.tasks])
    return first_order(case, lambda loss, phis, S, Q: grad(loss)(phis[-1], everything))


@wrong("fomaml", "detached one step too early: the last inner step is still differentiated")
def last_step_attached(case):
    def gradient(loss, phis, S, Q):
        return maml_gradient(case, loss, phis[max(len(phis) - 2, 0)], S[-1:], Q)

    return first_order(case, gradient)


@wrong("fomaml", "the query's gradients are clipped example by example to length 0.5, as for private training")
def examples_clipped(case):
    def gradient(loss, phis, S, Q):
        if not network(case):
            return grad(loss)(phis[-1], Q)
        x, y = Q
        singles = [grad(loss)(phis[-1], (x[i : i + 1], y[i : i + 1])) for i in range(len(x))]
        clipped = add([times(min(1, 0.5 / norm(g)), g) for g in singles])
        return times(1 / len(x) if case.conventions["examples"] == "mean" else 1, clipped)

    return first_order(case, gradient)


@wrong("fomaml", "the inner rate halves with each step, and the inner steps decay the weights by 0.05", 2)
def halving_rate_and_decay(case):
    loss, parts = make_loss(case), []

    def direction(phi, batch, k):
        return times(0.5**k, add([grad(loss)(phi, batch), times(0.05, phi)]))

    for S, Q in case.tasks:
        parts.append(grad(loss)(walk(case, case.theta, S, direction), Q))
    return combine(case, parts)


# ANIL


def heads(case, theta):
    cut = len(theta) - case.head
    return list(theta[:cut]), list(theta[cut:])


def head_path(case, loss, body, head, supports):
    return path(lambda h, batch: loss([*body, *h], batch), head, supports, case.alpha)[-1]


def anil_value(case, loss, theta, S, Q):
    body, head = heads(case, theta)
    return loss([*body, *head_path(case, loss, body, head, S)], Q)


@wrong("anil", "the body's gradient is taken with the head that has not adapted")
def body_with_the_old_head(case):
    loss, parts = make_loss(case), []
    for S, Q in case.tasks:
        body, _ = heads(case, grad(loss)(case.theta, Q))
        _, head = heads(case, grad(lambda theta: anil_value(case, loss, list(theta), S, Q))(case.theta))
        parts.append([*body, *head])
    return combine(case, parts)


@wrong("anil", "parameters are counted from the wrong end: the first arrays adapt")
def first_arrays_adapt(case):
    loss, n = make_loss(case), case.head

    def value(theta, S, Q):
        front = path(lambda f, batch: loss([*f, *theta[n:]], batch), theta[:n], S, case.alpha)[-1]
        return loss([*front, *theta[n:]], Q)

    return through(case, value)


@wrong("anil", "the head is one array too short: its weights do not adapt, only its bias")
def head_one_array_short(case):
    loss, cut = make_loss(case), len(case.theta) - max(case.head - 1, 1)

    def value(theta, S, Q):
        body = theta[:cut]
        return loss([*body, *head_path(case, loss, body, theta[cut:], S)], Q)

    return through(case, value)


@wrong("anil", "body and head are exchanged in the inner loop: the body adapts, the head is fixed")
def body_adapts(case):
    loss = make_loss(case)

    def value(theta, S, Q):
        body, head = heads(case, theta)
        body = path(lambda b, batch: loss([*b, *head], batch), body, S, case.alpha)[-1]
        return loss([*body, *head], Q)

    return through(case, value)


@wrong("anil", "every task starts from a head of zeros instead of the one that is learned")
def head_of_zeros(case):
    loss = make_loss(case)

    def value(theta, S, Q):
        body, head = heads(case, theta)
        return anil_value(case, loss, [*body, *times(0, head)], S, Q)

    return through(case, value)


@wrong("anil", "the head's own part is first-order, while the body's goes through the inner loop")
def head_to_first_order(case):
    loss, parts = make_loss(case), []
    for S, Q in case.tasks:
        body, head = heads(case, case.theta)
        end = head_path(case, loss, body, head, S)
        full, _ = heads(case, grad(lambda theta: anil_value(case, loss, list(theta), S, Q))(case.theta))
        parts.append([*full, *grad(lambda h: loss([*body, *h], Q))(end)])
    return combine(case, parts)


@wrong("anil", "one head module serves all tasks and is not reset: it goes on from the task before")
def one_head_for_all(case):
    loss = make_loss(case)

    def objective(theta):
        body, head = heads(case, list(theta))
        values = []
        for S, Q in case.tasks:
            head = head_path(case, loss, body, head, S)
            values.append(loss([*body, *head], Q))
        return sum(values) / (len(values) if case.conventions["tasks"] == "mean" else 1)

    return list(grad(objective)(case.theta))


@wrong("anil", "the head adapts to the query as well, and the body's gradient is divided by the number of steps", 2)
def query_seen_and_body_slowed(case):
    loss, parts = make_loss(case), []
    for S, Q in case.tasks:
        seen = [*S[:-1], merged(case, [S[-1], Q])] if S else S
        body, head = heads(case, grad(lambda theta: anil_value(case, loss, list(theta), seen, Q))(case.theta))
        parts.append([*times(1 / max(len(S), 1), body), *head])
    return combine(case, parts)


# Reptile


def displaced(case, end):
    """θ − end(loss, supports, query), in the case's unit."""
    loss, parts = make_loss(case), []
    for S, Q in case.tasks:
        way = descend(case.theta, end(loss, S, Q), 1) if S else times(0, case.theta)
        parts.append(times(1 / unit(case, S or [None]), way))
    return combine(case, parts)


@wrong("reptile", "the model's weights are not restored between the tasks, each of which is measured from θ")
def weights_not_restored(case):
    now = case.theta

    def end(loss, S, Q):
        nonlocal now
        now = path(loss, now, S, case.alpha)[-1]
        return now

    return displaced(case, end)


@wrong("reptile", "the old weights are saved inside the inner loop: only the last step's displacement is left")
def saved_in_the_inner_loop(case):
    loss, parts = make_loss(case), []
    for S, _ in case.tasks:
        phis = path(loss, case.theta, S, case.alpha)
        before = phis[max(len(phis) - 2, 0)]
        parts.append(times(1 / unit(case, S or [None]), descend(before, phis[-1], 1)))
    return combine(case, parts)


@wrong("reptile", "the query is one more batch of the inner loop")
def query_as_another_batch(case):
    return displaced(case, lambda loss, S, Q: path(loss, case.theta, [*S, Q] if Q else S, case.alpha)[-1])


@wrong("reptile", "the inner iterates are averaged and θ moves towards their mean")
def towards_the_mean_iterate(case):
    def end(loss, S, Q):
        after = path(loss, case.theta, S, case.alpha)[1:]
        return times(1 / len(after), add(after))

    return displaced(case, end)


@wrong("reptile", "the inner optimiser is Adam with β₁ = 0, as in the published code, instead of plain descent")
def adam_without_momentum(case):
    def end(loss, S, Q):
        phi, second = case.theta, times(0, case.theta)
        for k, batch in enumerate(S, 1):
            g = grad(loss)(phi, batch)
            second = [0.999 * s + 0.001 * d**2 for s, d in zip(second, g, strict=True)]
            scales = [np.sqrt(s / (1 - 0.999**k)) + 1e-8 for s in second]
            phi = descend(phi, [d / s for d, s in zip(g, scales, strict=True)], case.alpha)
        return phi

    return displaced(case, end)


@wrong("reptile", "the outer rate's linear schedule counts tasks: the i-th of n has the weight 1 − i/n")
def annealed_over_tasks(case):
    done = -1

    def end(loss, S, Q):
        nonlocal done
        done += 1
        weight = 1 - done / len(case.tasks)
        return descend(case.theta, descend(case.theta, path(loss, case.theta, S, case.alpha)[-1], 1), weight)

    return displaced(case, end)


@wrong("reptile", "the mean along axis 0 runs over a matrix's rows and is broadcast back")
def mean_over_rows(case):
    loss, parts = make_loss(case), []
    for S, _ in case.tasks:
        way = descend(case.theta, path(loss, case.theta, S, case.alpha)[-1], 1)
        rows = [np.mean(d, axis=0, keepdims=True) + 0 * d if np.ndim(d) > 1 else d for d in way]
        parts.append(times(1 / unit(case, S or [None]), rows))
    return combine(case, parts)


@wrong("reptile", "the batches are popped from the end of their list, and the last one left is not used", 2)
def popped_from_the_end(case):
    def end(loss, S, Q):
        phi, stack = case.theta, list(S)
        while len(stack) > 1:
            phi = descend(phi, grad(loss)(phi, stack.pop()), case.alpha)
        return phi

    return displaced(case, end)


# Joint training


@wrong("joint", "plain training uses the first support batches and leaves the queries for a test")
def trained_on_supports(case):
    loss = make_loss(case)
    return combine(case, [grad(loss)(case.theta, S[0] if S else Q) for S, Q in case.tasks])


@wrong("joint", "an epoch of descent, task after task, whose steps are added up as if all were taken at θ")
def epoch_of_descent(case):
    loss, now, parts = make_loss(case), case.theta, []
    for _, Q in case.tasks:
        parts.append(grad(loss)(now, Q))
        now = descend(now, parts[-1], case.alpha or 0.1)
    return combine(case, parts)


@wrong("joint", "elements on whose sign the tasks do not agree are set to zero")
def disagreeing_elements_masked(case):
    loss = make_loss(case)
    gradients = [grad(loss)(case.theta, Q) for _, Q in case.tasks]
    signs = add([[np.sign(d) for d in g] for g in gradients])
    agreed = [np.abs(s) == len(gradients) for s in signs]
    return [d * mask for d, mask in zip(combine(case, gradients), agreed, strict=True)]


@wrong("joint", "tasks are processed in pairs and the loader drops a pair that is not full")
def odd_task_dropped(case):
    loss, n = make_loss(case), len(case.tasks)
    kept = case.tasks[: n - n % 2] if n > 1 else case.tasks
    return combine(case, [grad(loss)(case.theta, Q) for _, Q in kept])


@wrong("joint", "the gradient is that of the square root of the loss, for that is the error reported")
def root_of_the_loss(case):
    loss = make_loss(case)

    def value(theta, S, Q):
        squared = network(case) and not labelled(case)
        return np.sqrt(loss(theta, Q) + 1e-12) if squared else loss(theta, Q)

    return through(case, value)


@wrong("joint", "targets are centred batch by batch, and a ridge of 0.01 on the weights is in the loss", 2)
def centred_targets_and_ridge(case):
    loss = make_loss(case)

    def value(theta, S, Q):
        if network(case) and not labelled(case):
            Q = (Q[0], Q[1] - np.mean(Q[1], axis=0))
        return loss(theta, Q) + 0.01 * sum(np.sum(t**2) for t in theta if np.ndim(t) > 1 or not network(case))

    return through(case, value)
