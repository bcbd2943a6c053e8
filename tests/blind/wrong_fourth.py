"""Strangers' meta-gradients in NumPy and autograd, a fourth time: right ones in odd styles, then wrong ones."""

from functools import partial, reduce
from itertools import cycle, islice

import autograd.numpy as np
from autograd import elementwise_grad, grad, jacobian
from autograd.tracer import getval

from tests.blind.common import (
    add,
    combine,
    descend,
    dot,
    flat,
    hvp,
    labelled,
    log_softmax,
    make_loss,
    merged,
    mlp,
    path,
    times,
    unflat,
    unit,
)
from tests.blind.registry import right, wrong


def by_task(case, objective):
    """The gradient of objective(θ, supports, query), for each task."""
    return [grad(objective)(list(case.theta), supports, query) for supports, query in case.tasks]


def each_task(case, objective):
    return combine(case, by_task(case, objective))


def on_vectors(case):
    """The loss of a flat θ."""
    loss = make_loss(case)
    return lambda t, batch: loss(unflat(t, case.theta), batch)


def split_at(case):
    """How many arrays are the body."""
    return len(case.theta) - case.head


def displacement(case, supports, phi, theta=None):
    return times(1 / unit(case, supports), [t - p for t, p in zip(theta or case.theta, phi, strict=True)])


# --- Right ---


@right("maml", "one step, folded over the supports")
def folded(case):
    loss = make_loss(case)

    def step(phi, batch):
        return descend(phi, grad(loss)(phi, batch), case.alpha)

    return each_task(case, lambda theta, supports, query: loss(reduce(step, supports, theta), query))


@right("maml", "the Jacobian of every step, multiplied out forwards as matrices")
def chain_of_jacobians(case):
    loss, answers = on_vectors(case), []

    def step(t, batch):
        return t - case.alpha * grad(loss)(t, batch)

    for supports, query in case.tasks:
        t = flat(case.theta)
        J = np.eye(len(t))
        for batch in supports:
            J, t = jacobian(step)(t, batch) @ J, step(t, batch)
        answers.append(unflat(J.T @ grad(loss)(t, query), case.theta))
    return combine(case, answers)


@right("maml", "a tape of pullbacks, popped from its end")
def tape_of_pullbacks(case):
    loss, answers = make_loss(case), []
    for supports, query in case.tasks:
        phi, tape = case.theta, []
        for batch in supports:
            tape.append(lambda v, phi=phi, batch=batch: descend(v, hvp(loss, phi, batch, v), case.alpha))
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
        v = grad(loss)(phi, query)
        while tape:
            v = tape.pop()(v)
        answers.append(v)
    return combine(case, answers)


@right("fomaml", "one more step of size 1, on the query; the gradient is how far it went")
def one_more_step(case):
    loss, answers = make_loss(case), []
    for supports, query in case.tasks:
        phi = path(loss, case.theta, supports, case.alpha)[-1]
        further = path(loss, phi, [query], 1.0)[-1]
        answers.append([p - q for p, q in zip(phi, further, strict=True)])
    return combine(case, answers)


@right("anil", "MAML with a step size for each array: 0 in the body")
def rate_for_each_array(case):
    loss, rates = make_loss(case), [0.0] * split_at(case) + [case.alpha] * case.head

    def objective(theta, supports, query):
        for batch in supports:
            gradient = grad(loss)(theta, batch)
            theta = [t - rate * g for t, rate, g in zip(theta, rates, gradient, strict=True)]
        return loss(theta, query)

    return each_task(case, objective)


@right("anil", "parameters in a dict, by name; the adapted ones override")
def overriding_dict(case):
    loss, adapts = make_loss(case), case.names[split_at(case) :]

    def of_dict(fast, slow, batch):
        return loss([(fast if name in fast else slow)[name] for name in case.names], batch)

    def objective(params):
        total = 0.0
        for supports, query in case.tasks:
            fast = {name: params[name] for name in adapts}
            for batch in supports:
                g = grad(of_dict)(fast, params, batch)
                fast = {name: fast[name] - case.alpha * g[name] for name in adapts}
            total = total + of_dict(fast, params, query)
        return total / (len(case.tasks) if case.conventions["tasks"] == "mean" else 1)

    return grad(objective)(dict(zip(case.names, case.theta, strict=True)))


@right("reptile", "the sum of the inner gradients times α, with the way there")
def sum_of_inner_gradients(case):
    loss, ways, answers = make_loss(case), [], []
    for supports, _ in case.tasks:
        ways.append(path(loss, case.theta, supports, case.alpha))
        inner = [grad(loss)(phi, batch) for phi, batch in zip(ways[-1], supports, strict=False)]
        answers.append(times(case.alpha / unit(case, supports), add(inner)))
    return {"gradient": combine(case, answers), "phi": ways}


@right("joint", "MAML whose tasks have lost their supports")
def maml_without_supports(case):
    loss = make_loss(case)
    return each_task(case, lambda theta, supports, query: loss(path(loss, theta, [], case.alpha)[-1], query))


# --- MAML by autograd, wrong ---


@wrong("maml", "each task's loss is a closure over the loop's variable: all tasks have the last one's query")
def closures_in_a_loop(case):
    loss, terms = make_loss(case), []
    for supports, query in case.tasks:
        adapt = partial(path, loss, supports=supports, alpha=case.alpha)
        terms.append(lambda theta, adapt=adapt: loss(adapt(theta)[-1], query))
    return combine(case, [grad(term)(case.theta) for term in terms])


@wrong("maml", "the gradient of every inner step is taken at θ")
def gradients_where_it_began(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        fast = theta
        for batch in supports:
            grads = grad(loss)(theta, batch)
            fast = [w - case.alpha * g for w, g in zip(fast, grads, strict=True)]
        return loss(fast, query)

    return each_task(case, objective)


@wrong("maml", "every inner step starts from θ again")
def steps_from_the_start(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        fast = theta
        for batch in supports:
            fast = [w - case.alpha * g for w, g in zip(theta, grad(loss)(fast, batch), strict=True)]
        return loss(fast, query)

    return each_task(case, objective)


@wrong("maml", "the query loss is the mean over all steps, not that after the last")
def loss_at_every_step(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        losses = [loss(phi, query) for phi in path(loss, theta, supports, case.alpha)]
        losses = losses[1:] or losses
        return sum(losses) / len(losses)

    return each_task(case, objective)


@wrong("maml", "the objective is how much adaptation improves the query loss")
def gain_of_adapting(case):
    loss = make_loss(case)

    def gain(theta, supports, query):
        before, after = loss(theta, query), loss(path(loss, theta, supports, case.alpha)[-1], query)
        return after - before

    return each_task(case, gain)


LAMBDA = 0.5


@wrong("maml", "the inner loss has a proximal term, λ/2 ‖φ − θ‖²")
def proximal(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        def near(phi, batch):
            return loss(phi, batch) + LAMBDA / 2 * sum(np.sum((p - t) ** 2) for p, t in zip(phi, theta, strict=True))

        return loss(path(near, theta, supports, case.alpha)[-1], query)

    return each_task(case, objective)


@wrong("maml", "biases learn at twice the rate, as in Caffe's examples")
def lr_mult(case):
    loss, rates = make_loss(case), [case.alpha * (1 + i % 2) for i in range(len(case.theta))]

    def objective(w, supports, query):
        for batch in supports:
            w = [p - r * g for p, r, g in zip(w, rates, grad(loss)(w, batch), strict=True)]
        return loss(w, query)

    return each_task(case, objective)


@wrong("maml", "the gradient of the first step is computed beforehand, and so is a constant")
def first_gradient_cached(case):
    loss, answers = make_loss(case), []
    for supports, query in case.tasks:
        cached = [grad(loss)(case.theta, batch) for batch in supports[:1]]

        def objective(theta, supports=supports, query=query, cached=cached):
            phi = theta
            for k, batch in enumerate(supports):
                phi = descend(phi, cached[k] if k < len(cached) else grad(loss)(phi, batch), case.alpha)
            return loss(phi, query)

        answers.append(grad(objective)(case.theta))
    return combine(case, answers)


@wrong("maml", "the gradient's vector is cut into arrays column by column, as in MATLAB")
def cut_as_in_matlab(case):
    loss = on_vectors(case)

    def objective(t):
        total = 0.0
        for supports, query in case.tasks:
            phi = t
            for batch in supports:
                phi = phi - case.alpha * grad(loss)(phi, batch)
            total = total + loss(phi, query)
        return total / (len(case.tasks) if case.conventions["tasks"] == "mean" else 1)

    ends = np.cumsum([np.size(t) for t in case.theta])[:-1]
    pieces = np.split(grad(objective)(flat(case.theta)), ends)
    return [np.reshape(piece, np.shape(t), order="F") for piece, t in zip(pieces, case.theta, strict=True)]


@wrong("maml", "the loss is the root of the mean squared error, the competition's metric", tasks="mean")
def rmse(case):
    mse = make_loss(case)

    def loss(theta, batch):
        return np.sqrt(mse(theta, batch)) if case.loss["kind"] == "squared_error" else mse(theta, batch)

    per_task = by_task(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q))
    return [sum(leaves) / len(per_task) for leaves in zip(*per_task, strict=True)]


@wrong("maml", "the support batches are one, and every step sees all of it")
def whole_support_set(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        whole = [merged(case, supports)] * len(supports) if supports else []
        return loss(path(loss, theta, whole, case.alpha)[-1], query)

    return each_task(case, objective)


N_INNER = 5


@wrong("maml", "five inner steps always, the batches over and over", tasks="mean")
def five_steps(case):
    loss = make_loss(case)
    grads = by_task(
        case, lambda w, S, Q: loss(path(loss, w, list(islice(cycle(S), N_INNER)), case.alpha)[-1], Q)
    )
    return times(1 / len(grads), add(grads))


@wrong("maml", "the targets are standardised, each batch by its own mean and deviation")
def standardised_targets(case):
    plain = make_loss(case)

    def loss(theta, batch):
        x, y = batch
        if case.loss["kind"] == "squared_error":
            y = (y - y.mean(axis=0)) / (y.std(axis=0) + 1e-8)
        return plain(theta, (x, y))

    return each_task(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q))


# --- MAML by hand, wrong ---


def backwards(case, product):
    """MAML's adjoint: product(loss, φs, supports, v) takes the query's gradient at φ_K back to θ."""
    loss, answers = make_loss(case), []
    for supports, query in case.tasks:
        phis = path(loss, case.theta, supports, case.alpha)
        answers.append(product(loss, phis, supports, grad(loss)(phis[-1], query)))
    return combine(case, answers)


@wrong("maml", "only the last step's Hessian: backpropagation is cut off after it")
def last_hessian_only(case):
    def product(loss, phis, supports, v):
        return descend(v, hvp(loss, phis[-2], supports[-1], v), case.alpha) if supports else v

    return backwards(case, product)


@wrong("maml", "the factors I − αH are applied in the order of the steps, not backwards")
def factors_in_order(case):
    def product(loss, phis, supports, v):
        for phi, batch in zip(phis, supports, strict=False):
            v = descend(v, hvp(loss, phi, batch, v), case.alpha)
        return v

    return backwards(case, product)


@wrong("maml", "the list of the φ holds one list many times: all Hessians are taken at the last φ")
def one_list_many_times(case):
    loss, answers = make_loss(case), []
    for supports, query in case.tasks:
        phi, history = list(case.theta), []
        for batch in supports:
            history.append((phi, batch))
            for i, g in enumerate(grad(loss)(phi, batch)):
                phi[i] = phi[i] - case.alpha * g
        v = grad(loss)(phi, query)
        for old, batch in reversed(history):
            v = descend(v, hvp(loss, old, batch, v), case.alpha)
        answers.append(v)
    return combine(case, answers)


@wrong("maml", "g − α Σ H g: the product of the factors without their higher terms")
def sum_of_hessians(case):
    def product(loss, phis, supports, g):
        v = g
        for phi, batch in zip(phis, supports, strict=False):
            v = descend(v, hvp(loss, phi, batch, g), case.alpha)
        return v

    return backwards(case, product)


@wrong("maml", "elementwise_grad twice is taken for the Hessian's diagonal, and that for the Hessian")
def curvature_elementwise(case):
    loss, answers = on_vectors(case), []
    curvature = elementwise_grad(elementwise_grad(loss))
    for supports, query in case.tasks:
        phi, slope = flat(case.theta), 1.0
        for batch in supports:
            slope = slope * (1 - case.alpha * curvature(phi, batch))
            phi = phi - case.alpha * grad(loss)(phi, batch)
        answers.append(unflat(slope * grad(loss)(phi, query), case.theta))
    return combine(case, answers)


@wrong("maml", "no φ is stored: a step is undone by ascent from where it ended")
def undone_by_ascent(case):
    loss, answers = make_loss(case), []
    for supports, query in case.tasks:
        phi = path(loss, case.theta, supports, case.alpha)[-1]
        v = grad(loss)(phi, query)
        for batch in reversed(supports):
            phi = descend(phi, grad(loss)(phi, batch), -case.alpha)
            v = descend(v, hvp(loss, phi, batch, v), case.alpha)
        answers.append(v)
    return combine(case, answers)


EPS = 1e-3


@wrong("maml", "Hessian-vector products are one-sided differences with a step of 0.001")
def forward_differences_of_gradients(case):
    def product(loss, phis, supports, v):
        for phi, batch in zip(phis[-2::-1], reversed(supports), strict=True):
            there, here = grad(loss)(descend(phi, v, -EPS), batch), grad(loss)(phi, batch)
            v = [u - case.alpha * (a - b) / EPS for u, a, b in zip(v, there, here, strict=True)]
        return v

    return backwards(case, product)
