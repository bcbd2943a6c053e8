"""A hundred more, the NumPy half: mistakes written without a look at what anything checks, and right ones."""

from functools import partial

import autograd.numpy as np
import numpy
from autograd import grad, jacobian, make_vjp
from autograd.tracer import getval

from refmeta.models import ACTIVATIONS
from tests.blind.common import (
    add,
    combine,
    descend,
    dot,
    errors,
    flat,
    hvp,
    labelled,
    make_loss,
    merged,
    mlp,
    path,
    through,
    times,
    unflat,
    unit,
)
from tests.blind.registry import right, wrong


def loss_by(case, errors):
    """The network's loss with an own error; a quadratic stays what it is."""
    if case.model["kind"] == "quadratic":
        return make_loss(case)
    net, reduce = partial(mlp, act=ACTIVATIONS[case.model["activation"]]), getattr(np, case.conventions["examples"])
    return lambda theta, batch: reduce(errors(net(theta, batch[0]), batch[1]))


def chunks(case, batch, size=4):
    """A batch in pieces, of which the last may be small."""
    x, y = batch
    return (
        [batch]
        if case.model["kind"] == "quadratic"
        else [(x[i : i + size], y[i : i + size]) for i in range(0, len(y), size)]
    )


def anil_objective(case, adapt):
    """adapt(loss of the body and the head, body, head, supports) gives the adapted body and head."""
    loss, cut = make_loss(case), len(case.theta) - case.head

    def of_task(theta, S, Q):
        return loss(adapt(loss, theta[:cut], theta[cut:], S), Q)

    return through(case, of_task)


def head_steps(loss, body, head, S, alpha):
    for batch in S:
        head = descend(head, grad(lambda h: loss([*body, *h], batch))(head), alpha)
    return head


# ---------------------------------------------------------------- MAML


@wrong("maml", "every inner gradient is taken at θ, the parameters that are updated are never put back into it")
def stale_inner_point(case):
    loss = make_loss(case)

    def of_task(theta, S, Q):
        phi = theta
        for batch in S:
            g = grad(loss)(theta, batch)
            phi = descend(phi, g, case.alpha)
        return loss(phi, Q)

    return through(case, of_task)


@wrong("maml", "the task's first support batch is used in every inner step")
def first_batch_each_step(case):
    loss = make_loss(case)

    def of_task(theta, S, Q):
        batch = S[0] if S else None
        phi = theta
        for _ in range(len(S)):
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
        return loss(phi, Q)

    return through(case, of_task)


@wrong("maml", "one more inner step is made, on the query itself")
def query_as_a_last_step(case):
    loss = make_loss(case)
    return through(case, lambda theta, S, Q: loss(path(loss, theta, [*S, Q], case.alpha)[-1], Q))


@wrong("maml", "the query loss is averaged over φ₁ … φ_K instead of taken at φ_K")
def query_loss_mean_over_steps(case):
    loss = make_loss(case)

    def of_task(theta, S, Q):
        phi, losses = theta, []
        for batch in S:
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
            losses.append(loss(phi, Q))
        return sum(losses) / len(losses) if losses else loss(phi, Q)

    return through(case, of_task)


def adjoint_of(case, back):
    """back(loss, phis, S, Q, v) for each task, from v = ∇L(φ_K; Q)."""
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phis = path(loss, case.theta, S, case.alpha)
        out.append(back(loss, phis, S, Q, grad(loss)(phis[-1], Q)))
    return combine(case, out)


@wrong("maml", "the Hessian of step k is taken at φ_{k+1}, after the step")
def hessian_one_late(case):
    def back(loss, phis, S, Q, v):
        for k in range(len(S) - 1, -1, -1):
            v = descend(v, hvp(loss, phis[k + 1], S[k], v), case.alpha)
        return v

    return adjoint_of(case, back)


@wrong("maml", "the factors I − αH are multiplied in the order of the steps, the first step nearest to the query")
def factors_in_forward_order(case):
    def back(loss, phis, S, Q, v):
        for phi, batch in zip(phis[:-1], S, strict=True):
            v = descend(v, hvp(loss, phi, batch, v), case.alpha)
        return v

    return adjoint_of(case, back)


@wrong("maml", "the trajectory is stored by reference, so all Hessians are taken at φ_K")
def trajectory_by_reference(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phi, history = [np.array(t) for t in case.theta], []
        for batch in S:
            history.append((phi, batch))
            for p, g in zip(phi, grad(loss)(phi, batch), strict=True):
                p -= case.alpha * g
        v = grad(loss)(phi, Q)
        for at, batch in reversed(history):
            v = descend(v, hvp(loss, at, batch, v), case.alpha)
        out.append(v)
    return combine(case, out)


@wrong("maml", "the Hessians are those of the query loss, not of the support losses")
def query_batch_in_the_hessians(case):
    def back(loss, phis, S, Q, v):
        for phi in phis[-2::-1]:
            v = descend(v, hvp(loss, phi, Q, v), case.alpha)
        return v

    return adjoint_of(case, back)


@wrong("maml", "each Hessian meets the query's gradient, not what came through the later steps: 1 − αΣH, not a product")
def sum_of_hessian_terms(case):
    def back(loss, phis, S, Q, v):
        g = v
        for phi, batch in zip(phis[:-1], S, strict=True):
            v = descend(v, hvp(loss, phi, batch, g), case.alpha)
        return v

    return adjoint_of(case, back)


@wrong("maml", "Hessian-vector products are central differences of length 0.01, as in DARTS: an error of second order")
def differences_as_in_darts(case):
    def back(loss, phis, S, Q, v):
        for phi, batch in zip(phis[-2::-1], S[::-1], strict=True):
            r = 1e-2 / np.sqrt(dot(v, v) + 1e-12)
            up, down = grad(loss)(descend(phi, v, -r), batch), grad(loss)(descend(phi, v, r), batch)
            v = descend(v, [(a - b) / (2 * r) for a, b in zip(up, down, strict=True)], case.alpha)
        return v

    return adjoint_of(case, back)


@wrong("maml", "the gradient is flattened in the order of the sorted names, and cut in the order of the arrays")
def sorted_by_name(case):
    loss, names = make_loss(case), list(case.names)

    def objective(params):
        total = 0.0
        for S, Q in case.tasks:
            total = total + loss(path(loss, [params[n] for n in names], S, case.alpha)[-1], Q)
        return total / case.divisor

    g = grad(objective)(dict(zip(names, case.theta, strict=True)))
    vector = np.concatenate([g[name].ravel() for name in sorted(names)])
    return unflat(vector, case.theta)


@wrong("maml", "θ is flattened row by row, and its gradient is cut column by column")
def columns_for_rows(case):
    loss = make_loss(case)

    def objective(p):
        theta = unflat(p, case.theta)
        return sum(loss(path(loss, theta, S, case.alpha)[-1], Q) for S, Q in case.tasks) / case.divisor

    g, out, start = grad(objective)(flat(case.theta)), [], 0
    for t in case.theta:
        out.append(g[start : start + t.size].reshape(t.shape, order="F"))
        start += t.size
    return out


@wrong("maml", "targets are squeezed, so with one output (N, 1) − (N,) is a table of all pairs")
def targets_squeezed(case):
    def error(out, y):
        return errors(case, out, y) if labelled(case) else (out - np.squeeze(y)) ** 2

    loss = loss_by(case, error)
    return through(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q))


@wrong("maml", "the softmax is over the examples of the batch, not over the classes")
def softmax_over_examples(case):
    def error(out, y):
        if not labelled(case):
            return (out - y) ** 2
        z = out - np.log(np.sum(np.exp(out), axis=0, keepdims=True))
        return -z[np.arange(len(y)), y]

    loss = loss_by(case, error)
    return through(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q))


@wrong("maml", "the query's forward pass takes the adapted arrays but the last: that bias is still θ's")
def output_bias_of_theta(case):
    loss = make_loss(case)

    def of_task(theta, S, Q):
        *fast, _ = path(loss, theta, S, case.alpha)[-1]
        return loss([*fast, theta[-1]], Q)

    return through(case, of_task)


@wrong("maml", "the queries are one task behind the supports: each task is judged on its neighbour's query")
def queries_of_the_neighbour(case):
    loss = make_loss(case)
    supports = [S for S, _ in case.tasks]
    queries = [case.tasks[i - 1][1] for i in range(len(case.tasks))]

    def objective(theta):
        total = 0
        for S, Q in zip(supports, queries, strict=True):
            total = total + loss(path(loss, list(theta), S, case.alpha)[-1], Q)
        return total / case.divisor

    return grad(objective)(case.theta)


@wrong("maml", "one adaptation for all: every inner step descends the mean of the tasks' support gradients")
def one_adaptation_for_all(case):
    loss = make_loss(case)

    def objective(theta):
        phi = list(theta)
        for k in range(max(len(S) for S, _ in case.tasks)):
            gs = [grad(loss)(phi, S[k]) for S, _ in case.tasks if k < len(S)]
            phi = descend(phi, times(1 / len(gs), add(gs)), case.alpha)
        return sum(loss(phi, Q) for _, Q in case.tasks) / case.divisor

    return grad(objective)(case.theta)


@wrong("maml", "θ is overwritten by the adapted parameters before the meta-gradient is taken there, adapting again")
def gradient_where_it_arrived(case):
    loss, out = make_loss(case), []

    def adapted_loss(theta, S, Q):
        return loss(path(loss, list(theta), S, case.alpha)[-1], Q)

    for S, Q in case.tasks:
        theta = path(loss, case.theta, S, case.alpha)[-1]
        out.append(grad(adapted_loss)(theta, S, Q))
    return combine(case, out)


@wrong("maml", "the inner steps have momentum 0.9, and its velocity goes on from task to task", mistakes=2)
def velocity_from_task_to_task(case):
    loss = make_loss(case)

    def objective(theta):
        velocity, total = [0.0 * t for t in theta], 0
        for S, Q in case.tasks:
            phi = list(theta)
            for batch in S:
                velocity = add([times(0.9, velocity), grad(loss)(phi, batch)])
                phi = descend(phi, velocity, case.alpha)
            total = total + loss(phi, Q)
        return total / case.divisor

    return grad(objective)(case.theta)


@wrong("maml", "weights decay by 0.01 inside, and the last support loss is added to the query's", mistakes=2)
def decay_and_support_loss(case):
    loss = make_loss(case)

    def of_task(theta, S, Q):
        phi = theta
        for batch in S:
            g = [d + 0.01 * p for d, p in zip(grad(loss)(phi, batch), phi, strict=True)]
            phi = descend(phi, g, case.alpha)
        return loss(phi, Q) + (loss(phi, S[-1]) if S else 0)

    return through(case, of_task)


@wrong("maml", "α is read from the run's name, which has two decimals, and steps are divided by, not tasks", mistakes=2)
def rate_of_the_name_over_steps(case):
    loss, alpha = make_loss(case), float(f"{case.alpha:.2f}")

    def of_task(theta, S, Q):
        return loss(path(loss, theta, S, alpha)[-1], Q) / max(len(S), 1)

    return add([grad(lambda t: of_task(list(t), S, Q))(case.theta) for S, Q in case.tasks])


@wrong("maml", "all Hessians are those at θ, and their term is added instead of subtracted", mistakes=2)
def hessians_at_theta_added(case):
    def back(loss, phis, S, Q, v):
        for batch in S[::-1]:
            v = add([v, times(case.alpha, hvp(loss, phis[0], batch, v))])
        return v

    return adjoint_of(case, back)


@wrong("maml", "the fast weights are made once, before the loop over tasks, and the loss is overwritten", mistakes=2)
def last_of_a_chain(case):
    loss = make_loss(case)

    def objective(theta):
        phi = list(theta)
        for S, Q in case.tasks:
            for batch in S:
                phi = descend(phi, grad(loss)(phi, batch), case.alpha)
            total = loss(phi, Q)
        return total / case.divisor

    return grad(objective)(case.theta)


@wrong("maml", "inner gradients are clipped to the norm 0.5 array by array, and biases do not adapt", mistakes=2)
def clipped_weights_only(case):
    loss = make_loss(case)

    def clip(g):
        norm = np.sqrt(np.sum(g**2) + 1e-12)
        return g * (0.5 / norm) if getval(norm) > 0.5 else g

    def of_task(theta, S, Q):
        phi = theta
        for batch in S:
            gs = grad(loss)(phi, batch)
            phi = [p - case.alpha * clip(g) if i % 2 == 0 else p for i, (p, g) in enumerate(zip(phi, gs, strict=True))]
        return loss(phi, Q)

    return through(case, of_task)


@wrong("maml", "α is multiplied twice, in the gradient and in the update, and the last batch is left out", mistakes=2)
def rate_twice_without_the_last(case):
    loss = make_loss(case)

    def step(phi, batch):
        return times(case.alpha, grad(loss)(phi, batch))

    def of_task(theta, S, Q):
        phi = theta
        for k in range(len(S) - 1):
            phi = descend(phi, step(phi, S[k]), case.alpha)
        return loss(phi, Q)

    return through(case, of_task)


# ---------------------------------------------------------------- first-order MAML


@wrong("fomaml", "the query's gradient is taken before the last update, at φ_{K−1}")
def query_before_the_last_update(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phi, g = case.theta, grad(loss)(case.theta, Q)
        for batch in S:
            g = grad(loss)(phi, Q)
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
        out.append(g)
    return combine(case, out)


@wrong("fomaml", "the query's gradients at φ₁ … φ_K are averaged")
def query_gradient_mean_over_steps(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phis = path(loss, case.theta, S, case.alpha)
        gs = [grad(loss)(phi, Q) for phi in phis[1:] or phis]
        out.append(times(1 / len(gs), add(gs)))
    return combine(case, out)


@wrong("fomaml", "list(theta) copies no arrays, so the in-place steps of one task are where the next one starts")
def shallow_copy(case):
    loss, theta, out = make_loss(case), [np.array(t) for t in case.theta], []
    for S, Q in case.tasks:
        fast = list(theta)
        for batch in S:
            for p, g in zip(fast, grad(loss)(fast, batch), strict=True):
                p -= case.alpha * g
        out.append(grad(loss)(fast, Q))
    return combine(case, out)


@wrong("fomaml", "the query runs in pieces of four, and the pieces' gradients are averaged whatever their sizes")
def mean_of_the_pieces(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phi = path(loss, case.theta, S, case.alpha)[-1]
        pieces = [grad(loss)(phi, piece) for piece in chunks(case, Q)]
        out.append(times(1 / len(pieces), add(pieces)))
    return combine(case, out)


@wrong("fomaml", "the adapted parameters are averaged over the tasks, and every query's gradient is taken there")
def at_the_mean_of_the_tasks(case):
    loss = make_loss(case)
    phis = [path(loss, case.theta, S, case.alpha)[-1] for S, _ in case.tasks]
    mean = times(1 / len(phis), add(phis))
    return combine(case, [grad(loss)(mean, Q) for _, Q in case.tasks])


@wrong(
    "fomaml", "the support loss has a factor ½ that the query's has not, and half the query is kept apart", mistakes=2
)
def half_inside_and_half_a_query(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phi = case.theta
        for batch in S:
            phi = descend(phi, grad(lambda p, b: 0.5 * loss(p, b))(phi, batch), case.alpha)
        validation = chunks(case, Q, max(len(Q[1]) // 2, 1))[0]
        out.append(grad(loss)(phi, validation))
    return combine(case, out)


# ---------------------------------------------------------------- ANIL


@wrong("anil", "the head is the last array, so of the last layer only the bias adapts")
def last_array_for_last_layer(case):
    loss = make_loss(case)

    def of_task(theta, S, Q):
        body, head = theta[:-1], theta[-1:]
        return loss([*body, *head_steps(loss, body, head, S, case.alpha)], Q)

    return through(case, of_task)


@wrong("anil", "arrays are counted from the front: the first layer adapts in place of the last")
def first_layer_adapts(case):
    loss = make_loss(case)

    def of_task(theta, S, Q):
        head, body = theta[: case.head], theta[case.head :]
        for batch in S:
            head = descend(head, grad(lambda h: loss([*h, *body], batch))(head), case.alpha)
        return loss([*head, *body], Q)

    return through(case, of_task)


@wrong("anil", "the body's gradient is exact, but the head's is that at the adapted head, without its second order")
def head_gradient_at_the_adapted_head(case):
    loss, cut, out = make_loss(case), len(case.theta) - case.head, []

    for S, Q in case.tasks:
        head = head_steps(loss, case.theta[:cut], case.theta[cut:], S, case.alpha)
        of_body = grad(lambda b: loss([*b, *head_steps(loss, b, case.theta[cut:], S, case.alpha)], Q))
        of_head = grad(lambda h: loss([*case.theta[:cut], *h], Q))
        out.append([*(of_body(case.theta[:cut]) if cut else []), *of_head(head)])
    return combine(case, out)


@wrong("anil", "the query's features are detached: the body learns only through the adapted heads")
def query_features_detached(case):
    loss, cut = make_loss(case), len(case.theta) - case.head

    def of_task(theta, S, Q):
        body, head = theta[:cut], theta[cut:]
        return loss([*(getval(b) for b in body), *head_steps(loss, body, head, S, case.alpha)], Q)

    return through(case, of_task)


@wrong("anil", "features are cached by the shape of x, so all support batches have those of the first")
def features_cached_by_shape(case):
    def adapt(loss, body, head, S):
        cache = {}
        for x, y in S:
            x = cache.setdefault(x.shape, x)
            head = descend(head, grad(lambda h: loss([*body, *h], (x, y)))(head), case.alpha)
        return [*body, *head]

    return anil_objective(case, adapt)


@wrong("anil", "a task's head starts from the adapted head of the task before")
def head_kept_for_the_next_task(case):
    loss, cut = make_loss(case), len(case.theta) - case.head

    def objective(theta):
        body, head, total = list(theta)[:cut], list(theta)[cut:], 0
        for S, Q in case.tasks:
            head = head_steps(loss, body, head, S, case.alpha)
            total = total + loss([*body, *head], Q)
        return total / case.divisor

    return grad(objective)(case.theta)


@wrong("anil", "every task's head starts from zeros, and the head's gradient is that at the adapted one", mistakes=2)
def zero_head(case):
    loss, cut, out = make_loss(case), len(case.theta) - case.head, []
    zeros = [np.zeros(t.shape) for t in case.theta[cut:]]
    for S, Q in case.tasks:
        body = case.theta[:cut]
        head = head_steps(loss, body, zeros, S, case.alpha)
        g_body = grad(lambda b: loss([*b, *head_steps(loss, b, zeros, S, case.alpha)], Q))(body) if cut else []
        out.append([*g_body, *grad(lambda h: loss([*body, *h], Q))(head)])
    return combine(case, out)


@wrong("anil", "the body adapts as well, and the gradient is first-order", mistakes=2)
def first_order_and_all_of_it(case):
    loss = make_loss(case)
    return combine(case, [grad(loss)(path(loss, case.theta, S, case.alpha)[-1], Q) for S, Q in case.tasks])


# ---------------------------------------------------------------- Reptile


@wrong("reptile", "the weights to compare with are saved after the first step")
def saved_after_the_first_step(case):
    loss, out = make_loss(case), []
    for S, _ in case.tasks:
        phi, before = case.theta, case.theta
        for k, batch in enumerate(S):
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
            if k == 0:
                before = phi
        out.append(times(1 / unit(case, S), descend(before, phi, 1)))
    return combine(case, out)


@wrong("reptile", "the new weights θ + 0.1 (mean φ − θ) are returned, not the direction")
def new_weights_returned(case):
    loss = make_loss(case)
    phis = [path(loss, case.theta, S, case.alpha)[-1] for S, _ in case.tasks]
    mean = times(1 / len(phis), add(phis))
    return [t + 0.1 * (m - t) for t, m in zip(case.theta, mean, strict=True)]


@wrong("reptile", "θ moves half-way to each φ at once, and the next task starts from there")
def moved_between_the_tasks(case):
    loss, theta, out = make_loss(case), case.theta, []
    for S, _ in case.tasks:
        phi = path(loss, theta, S, case.alpha)[-1]
        out.append(times(1 / unit(case, S), descend(theta, phi, 1)))
        theta = [t + 0.5 * (p - t) for t, p in zip(theta, phi, strict=True)]
    return combine(case, out)


@wrong("reptile", "only the last step's displacement is returned, φ_{K−1} − φ_K")
def last_steps_displacement(case):
    loss, out = make_loss(case), []
    for S, _ in case.tasks:
        *_, before, after = [case.theta, *path(loss, case.theta, S, case.alpha)]
        out.append(times(1 / unit(case, S), descend(before, after, 1)))
    return combine(case, out)


@wrong("reptile", "all K steps descend one batch, in which all the task's supports are joined")
def one_joined_batch(case):
    loss, out = make_loss(case), []
    for S, _ in case.tasks:
        everything = [merged(case, S)] * len(S) if S else []
        phi = path(loss, case.theta, everything, case.alpha)[-1]
        out.append(times(1 / unit(case, S), descend(case.theta, phi, 1)))
    return combine(case, out)


@wrong("reptile", "the query is a further batch to train on, and the sign is that of φ − θ", mistakes=2)
def query_trained_on_and_forwards(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phi = path(loss, case.theta, [*S, Q] if Q is not None else S, case.alpha)[-1]
        out.append(times(1 / unit(case, S), descend(phi, case.theta, 1)))
    return combine(case, out)


@wrong("reptile", "inner gradients are clipped to ±0.1, and the displacements' sum is divided by the tasks", mistakes=2)
def clipped_values_and_mean(case):
    loss, out = make_loss(case), []
    for S, _ in case.tasks:
        phi = case.theta
        for batch in S:
            phi = descend(phi, [np.clip(g, -0.1, 0.1) for g in grad(loss)(phi, batch)], case.alpha)
        out.append(times(1 / unit(case, S), descend(case.theta, phi, 1)))
    return times(1 / len(out), combine(case, out))


# ---------------------------------------------------------------- joint training


@wrong("joint", "each task's gradient is taken after a step of α on the tasks before it")
def sgd_over_the_tasks(case):
    loss, theta, out = make_loss(case), case.theta, []
    for _, Q in case.tasks:
        g = grad(loss)(theta, Q)
        theta = descend(theta, g, case.alpha)
        out.append(g)
    return combine(case, out)


@wrong("joint", "the supports are trained on as well as the query")
def all_the_data(case):
    loss = make_loss(case)
    return combine(case, [add([grad(loss)(case.theta, b) for b in [*S, Q]]) for S, Q in case.tasks])


@wrong("joint", "the root of the loss is differentiated, as the report's RMSE is")
def rmse_differentiated(case):
    loss = make_loss(case)
    return combine(case, [grad(lambda t: np.sqrt(np.abs(loss(list(t), Q))))(case.theta) for _, Q in case.tasks])


@wrong("joint", "the supports are trained on in place of the query, and the loop ends before the last task", mistakes=2)
def supports_of_all_but_one(case):
    loss, g = make_loss(case), [0 * t for t in case.theta]
    for i in range(len(case.tasks) - 1):
        S, Q = case.tasks[i]
        g = add([g, grad(loss)(case.theta, merged(case, S) if S else Q)])
    return times(1 / case.divisor, g)


# ---------------------------------------------------------------- right ones


@right("maml")
def recursion_over_the_steps(case):
    """The gradient of the remaining steps, pulled back through this one; no list of iterates."""
    loss = make_loss(case)

    def rest(phi, S, Q):
        if not S:
            return grad(loss)(phi, Q)
        v = rest(descend(phi, grad(loss)(phi, S[0]), case.alpha), S[1:], Q)
        return descend(v, hvp(loss, phi, S[0], v), case.alpha)

    return combine(case, [rest(case.theta, S, Q) for S, Q in case.tasks])


@right("maml")
def one_linear_system(case):
    """All adjoint variables of a task at once: (I − shifted blocks)ᵀ λ = (0, …, 0, g)."""
    loss, n, out = make_loss(case), len(flat(case.theta)), []

    def slope(p, batch):
        return flat(grad(loss)(unflat(p, case.theta), batch))

    for S, Q in case.tasks:
        phis = [flat(p) for p in path(loss, case.theta, S, case.alpha)]
        M, rhs = numpy.eye(n * len(phis)), numpy.zeros(n * len(phis))
        for k, batch in enumerate(S):
            here, after = slice(k * n, k * n + n), slice(k * n + n, k * n + 2 * n)
            M[after, here] -= numpy.eye(n) - case.alpha * jacobian(slope)(phis[k], batch)
        rhs[-n:] = slope(phis[-1], Q)
        out.append(unflat(numpy.linalg.solve(M.T, rhs)[:n], case.theta))
    return combine(case, out)


@right("maml")
def parameters_by_name(case):
    """Dictionaries all the way, of which autograd takes the gradient."""
    loss, names = make_loss(case), case.names

    def named(params, batch):
        return loss([params[n] for n in names], batch)

    def objective(params):
        total = 0
        for S, Q in case.tasks:
            fast = {n: params[n] for n in names}
            for batch in S:
                g = grad(named)(fast, batch)
                fast = {n: fast[n] - case.alpha * g[n] for n in names}
            total = total + named(fast, Q) / case.divisor
        return total

    return grad(objective)(dict(zip(names, case.theta, strict=True)))


@right("maml")
def forward_mode_from_two_reverse(case):
    """⟨∇F, e⟩ for each unit vector e, by differentiating a pullback."""
    loss, at = make_loss(case), flat(case.theta)

    def objective(p):
        theta = unflat(p, case.theta)
        return sum(loss(path(loss, theta, S, case.alpha)[-1], Q) for S, Q in case.tasks) / case.divisor

    pull, _ = make_vjp(lambda u: make_vjp(objective)(at)[0](u))(np.array(1.0))
    return unflat(np.array([pull(e) for e in numpy.eye(len(at))]), case.theta)


@right("fomaml")
def derivative_of_a_shift(case):
    """In δ at δ = 0, of Σ L(φ + δ; Q)."""
    loss = make_loss(case)
    phis = [path(loss, case.theta, S, case.alpha)[-1] for S, _ in case.tasks]

    def shifted(delta):
        pairs = zip(phis, case.tasks, strict=True)
        return sum(loss([p + d for p, d in zip(phi, delta, strict=True)], Q) for phi, (_, Q) in pairs)

    return [d / case.divisor for d in grad(shifted)([np.zeros(t.shape) for t in case.theta])]


@right("reptile")
def gradient_of_half_a_square(case):
    """∇ ½ Σ ‖θ − φ‖² with every φ held fixed."""
    loss = make_loss(case)
    ends = [(path(loss, case.theta, S, case.alpha)[-1], unit(case, S)) for S, _ in case.tasks]

    def energy(theta):
        return sum(sum(np.sum((t - p) ** 2) for t, p in zip(theta, phi, strict=True)) / (2 * u) for phi, u in ends)

    return [g / case.divisor for g in grad(energy)(case.theta)]


@right("anil")
def jacobian_of_the_head(case):
    """The head's end as a function of all of θ, its Jacobian a matrix, and the two parts of the chain rule added."""
    loss, cut, at, out = make_loss(case), len(case.theta) - case.head, flat(case.theta), []
    size = sum(int(t.size) for t in case.theta[:cut])

    def end(p, S):
        theta = unflat(p, case.theta)
        head = head_steps(loss, theta[:cut], theta[cut:], S, case.alpha)
        return np.concatenate([np.zeros(0), *(np.reshape(h, (-1,)) for h in head)])

    for S, Q in case.tasks:
        phi = np.concatenate([at[:size], end(at, S)])
        g = flat(grad(loss)(unflat(phi, case.theta), Q))
        through_heads = g[size:] @ jacobian(end)(at, S) if case.head else 0
        out.append(unflat(np.concatenate([g[:size], np.zeros(len(at) - size)]) + through_heads, case.theta))
    return combine(case, out)


@right("joint")
def rows_of_a_jacobian(case):
    """The tasks' losses as a vector, the sum of its Jacobian's rows."""
    loss = make_loss(case)

    def losses(p):
        return np.array([loss(unflat(p, case.theta), Q) for _, Q in case.tasks])

    return unflat(np.ones(len(case.tasks)) @ jacobian(losses)(flat(case.theta)) / case.divisor, case.theta)
