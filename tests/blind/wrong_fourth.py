"""Strangers' meta-gradients in NumPy and autograd, a fourth time: right ones in odd styles, then wrong ones."""

from functools import partial, reduce
from itertools import cycle, islice

import autograd.numpy as np
from autograd import elementwise_grad, grad, jacobian
from autograd.tracer import getval

from refmeta.models import ACTIVATIONS
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
    through,
    times,
    unflat,
    unit,
)
from tests.blind.registry import right, wrong


def by_task(case, objective):
    """The gradient of objective(θ, supports, query), for each task."""
    return [grad(objective)(list(case.theta), supports, query) for supports, query in case.tasks]


def on_vectors(case):
    """The loss of a flat θ."""
    loss = make_loss(case)
    return lambda t, batch: loss(unflat(t, case.theta), batch)


def split_at(case):
    """How many arrays are the body."""
    return len(case.theta) - case.head


def activation(case):
    return ACTIVATIONS[case.model.get("activation", "tanh")]


def displacement(case, supports, phi, theta=None):
    return times(1 / unit(case, supports), [t - p for t, p in zip(theta or case.theta, phi, strict=True)])


# --- Right ---


@right("maml", "one step, folded over the supports")
def folded(case):
    loss = make_loss(case)

    def step(phi, batch):
        return descend(phi, grad(loss)(phi, batch), case.alpha)

    return through(case, lambda theta, supports, query: loss(reduce(step, supports, theta), query))


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

    return through(case, objective)


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
    return through(case, lambda theta, supports, query: loss(path(loss, theta, [], case.alpha)[-1], query))


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

    return through(case, objective)


@wrong("maml", "every inner step starts from θ again")
def steps_from_the_start(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        fast = theta
        for batch in supports:
            fast = [w - case.alpha * g for w, g in zip(theta, grad(loss)(fast, batch), strict=True)]
        return loss(fast, query)

    return through(case, objective)


@wrong("maml", "the query loss is the mean over all steps, not that after the last")
def loss_at_every_step(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        losses = [loss(phi, query) for phi in path(loss, theta, supports, case.alpha)]
        losses = losses[1:] or losses
        return sum(losses) / len(losses)

    return through(case, objective)


@wrong("maml", "the objective is how much adaptation improves the query loss")
def gain_of_adapting(case):
    loss = make_loss(case)

    def gain(theta, supports, query):
        before, after = loss(theta, query), loss(path(loss, theta, supports, case.alpha)[-1], query)
        return after - before

    return through(case, gain)


LAMBDA = 0.5


@wrong("maml", "the inner loss has a proximal term, λ/2 ‖φ − θ‖² with λ = 0.5")
def proximal(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        def near(phi, batch):
            return loss(phi, batch) + LAMBDA / 2 * sum(np.sum((p - t) ** 2) for p, t in zip(phi, theta, strict=True))

        return loss(path(near, theta, supports, case.alpha)[-1], query)

    return through(case, objective)


@wrong("maml", "biases learn at twice the rate, as in Caffe's examples")
def lr_mult(case):
    loss, rates = make_loss(case), [case.alpha * (1 + i % 2) for i in range(len(case.theta))]

    def objective(w, supports, query):
        for batch in supports:
            w = [p - r * g for p, r, g in zip(w, rates, grad(loss)(w, batch), strict=True)]
        return loss(w, query)

    return through(case, objective)


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


@wrong("maml", "the loop over the hidden layers ends one too early: the last of them has no activation")
def one_activation_short(case):
    act = activation(case)

    def net(theta, x):
        for i in range(0, len(theta), 2):
            x = x @ theta[i] + theta[i + 1]
            if i < len(theta) - 4:
                x = act(x)
        return x

    loss = make_loss(case, net)
    return through(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q))


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

    return through(case, objective)


N_INNER = 5


@wrong("maml", "five inner steps always, the batches over and over", tasks="mean")
def five_steps(case):
    loss = make_loss(case)
    grads = by_task(case, lambda w, S, Q: loss(path(loss, w, list(islice(cycle(S), N_INNER)), case.alpha)[-1], Q))
    return times(1 / len(grads), add(grads))


@wrong("maml", "the targets are standardised, each batch by its own mean and deviation")
def standardised_targets(case):
    plain = make_loss(case)

    def loss(theta, batch):
        x, y = batch
        if case.loss["kind"] == "squared_error":
            y = (y - y.mean(axis=0)) / (y.std(axis=0) + 1e-8)
        return plain(theta, (x, y))

    return through(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q))


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


# --- First-order MAML, wrong ---


@wrong("fomaml", "steps are taken in place on a shallow copy: a task starts where the one before it ended")
def weights_in_place(case):
    loss, weights, answers = make_loss(case), [np.copy(t) for t in case.theta], []
    for supports, query in case.tasks:
        fast_weights = weights[:]
        for batch in supports:
            for w, g in zip(fast_weights, grad(loss)(fast_weights, batch), strict=True):
                w -= case.alpha * g
        answers.append(grad(loss)(fast_weights, query))
    return combine(case, answers)


@wrong("fomaml", "the φ of the lowest query loss is kept, as a best checkpoint, not the last")
def best_checkpoint(case):
    loss, answers = make_loss(case), []
    for supports, query in case.tasks:
        best, lowest = case.theta, np.inf
        for phi in path(loss, case.theta, supports, case.alpha):
            if (now := loss(phi, query)) < lowest:
                best, lowest = phi, now
        answers.append(grad(loss)(best, query))
    return combine(case, answers)


@wrong("fomaml", "the query gradients are taken at the mean of the tasks' φ, as in federated averaging")
def fed_avg(case):
    loss = make_loss(case)
    clients = [path(loss, case.theta, supports, case.alpha)[-1] for supports, _ in case.tasks]
    server = times(1 / len(clients), add(clients))
    return combine(case, [grad(loss)(server, query) for _, query in case.tasks])


@wrong("fomaml", "cross-entropy is the mean over all entries of one-hot times log-probability, not over the examples")
def mean_of_one_hot(case):
    plain = make_loss(case)
    classes = case.model["widths"][-1] if labelled(case) else 1

    def loss(theta, batch):
        if not labelled(case):
            return plain(theta, batch)
        x, y = batch
        return -np.mean(np.eye(classes)[y] * log_softmax(mlp(theta, x, activation(case))))

    return combine(case, [grad(loss)(path(loss, case.theta, S, case.alpha)[-1], Q) for S, Q in case.tasks])


@wrong("fomaml", "weight decay is in the meta-gradient: 0.0005 θ is added")
def decayed_meta_gradient(case):
    loss = make_loss(case)
    grads = [grad(loss)(path(loss, case.theta, S, case.alpha)[-1], Q) for S, Q in case.tasks]
    return [g + 5e-4 * t for g, t in zip(combine(case, grads), case.theta, strict=True)]


# --- ANIL, wrong ---


def with_heads(case, loss, body, head, supports, alpha=None):
    """Body and adapted head, as one list."""

    def of_head(h, batch):
        return loss([*body, *h], batch)

    return [*body, *path(of_head, head, supports, case.alpha if alpha is None else alpha)[-1]]


@wrong("anil", "every task begins with a head of zeros")
def fresh_head(case):
    loss, cut = make_loss(case), split_at(case)

    def objective(theta, supports, query):
        return loss(with_heads(case, loss, theta[:cut], [0 * h for h in theta[cut:]], supports), query)

    return through(case, objective)


@wrong("anil", "the body's gradient takes the adapted head as a constant")
def head_is_constant_to_the_body(case):
    loss, cut, answers = make_loss(case), split_at(case), []
    body, head = case.theta[:cut], case.theta[cut:]
    for supports, query in case.tasks:
        phi = with_heads(case, loss, body, head, supports)
        through = grad(lambda h, S=supports, Q=query: loss(with_heads(case, loss, body, h, S), Q))(head)
        answers.append([*grad(loss)(phi, query)[:cut], *through])
    return combine(case, answers)


@wrong("anil", "`head` is taken for a number of layers: twice as many arrays adapt")
def head_in_layers(case):
    loss, cut = make_loss(case), max(len(case.theta) - 2 * case.head, 0)
    return through(case, lambda theta, S, Q: loss(with_heads(case, loss, theta[:cut], theta[cut:], S), Q))


@wrong("anil", "the body adapts along with the head, and is put back before the query")
def body_put_back(case):
    loss, cut = make_loss(case), split_at(case)

    def objective(theta, supports, query):
        phi = path(loss, theta, supports, case.alpha)[-1]
        return loss([*theta[:cut], *phi[cut:]], query)

    return through(case, objective)


@wrong("anil", "the wrong side of the slice adapts: the body, and the head stays")
def wrong_side_of_the_slice(case):
    loss, cut = make_loss(case), split_at(case)

    def objective(theta, supports, query):
        for batch in supports:
            g = grad(loss)(theta, batch)
            theta = [*descend(theta[:cut], g[:cut], case.alpha), *theta[cut:]]
        return loss(theta, query)

    return through(case, objective)


@wrong("anil", "only the body is meta-trained: the head's gradient is 0", tasks="mean")
def body_only(case):
    loss, cut = make_loss(case), split_at(case)
    head = case.theta[cut:]
    grads = [
        grad(lambda body, S=S, Q=Q: loss(with_heads(case, loss, body, head, S), Q))(case.theta[:cut])
        for S, Q in case.tasks
    ]
    return [*times(1 / len(grads), add(grads)), *[np.zeros_like(h) for h in head]]


# --- Reptile, wrong ---


@wrong("reptile", "the query is one more batch to step on: Reptile needs no split")
def no_split(case):
    loss = make_loss(case)
    ends = [path(loss, case.theta, [*supports, query], case.alpha)[-1] for supports, query in case.tasks]
    return combine(case, [displacement(case, S, phi) for (S, _), phi in zip(case.tasks, ends, strict=True)])


@wrong("reptile", "the batches are popped from the end of the list, the last one first")
def popped_batches(case):
    loss, answers = make_loss(case), []
    for supports, _ in case.tasks:
        phi, todo = case.theta, list(supports)
        while todo:
            phi = descend(phi, grad(loss)(phi, todo.pop()), case.alpha)
        answers.append(displacement(case, supports, phi))
    return combine(case, answers)


@wrong("reptile", "φ is the average over all steps, as in stochastic weight averaging")
def averaged_weights(case):
    loss, answers = make_loss(case), []
    for supports, _ in case.tasks:
        iterates = path(loss, case.theta, supports, case.alpha)[1:]
        answers.append(displacement(case, supports, times(1 / len(iterates), add(iterates))))
    return combine(case, answers)


@wrong("reptile", "the inner optimiser is Adam with β1 = 0, as in the paper's code")
def adam_without_first_moment(case, beta2=0.999, eps=1e-8):
    loss, answers = make_loss(case), []
    for supports, _ in case.tasks:
        phi, second = case.theta, [0.0 * t for t in case.theta]
        for t, batch in enumerate(supports, 1):
            grads = grad(loss)(phi, batch)
            second = [beta2 * s + (1 - beta2) * g**2 for s, g in zip(second, grads, strict=True)]
            scaled = [g / (np.sqrt(s / (1 - beta2**t)) + eps) for g, s in zip(grads, second, strict=True)]
            phi = descend(phi, scaled, case.alpha)
        answers.append(displacement(case, supports, phi))
    return combine(case, answers)


@wrong("reptile", "θ moves on after every task, a share of 1/n of the way: the serial version, asked for a batch")
def serial(case):
    loss, theta, answers = make_loss(case), case.theta, []
    for supports, _ in case.tasks:
        phi = path(loss, theta, supports, case.alpha)[-1]
        answers.append(displacement(case, supports, phi, theta))
        theta = [t + (p - t) / len(case.tasks) for t, p in zip(theta, phi, strict=True)]
    return combine(case, answers)


# --- Joint training, wrong ---


@wrong("joint", "memory is saved: all floats of the data are stored as float16")
def reduce_mem_usage(case):
    loss = make_loss(case)

    def small(a):
        return a.astype(np.float16).astype(float) if a.dtype.kind == "f" else a

    return combine(case, [grad(loss)(case.theta, tuple(map(small, query))) for _, query in case.tasks])


@wrong("joint", "the bias of a hidden layer is added after its activation, not before")
def bias_after_activation(case):
    act = activation(case)

    def net(theta, x):
        *hidden, (W_out, b_out) = zip(theta[::2], theta[1::2], strict=True)
        for W, b in hidden:
            x = act(x @ W) + b
        return x @ W_out + b_out

    loss = make_loss(case, net)
    return combine(case, [grad(loss)(case.theta, query) for _, query in case.tasks])


# --- Two mistakes ---


@wrong("maml", "the last support batch is held out; the query loss is a sum over the examples", mistakes=2)
def held_out(case):
    train, total = make_loss(case), make_loss(case, reduction="sum")

    def objective(w, supports, query):
        for batch in supports[:-1]:
            w = descend(w, grad(train)(w, batch), case.alpha)
        return total(w, query)

    return through(case, objective)


@wrong("maml", "the inner gradient is a constant, and is clipped to a norm of 1", mistakes=2)
def stable_maml(case):
    loss = make_loss(case)

    def inner_step(phi, batch):
        g = grad(loss)([getval(p) for p in phi], batch)
        norm = np.sqrt(dot(g, g))
        return descend(phi, times(min(1.0, 1.0 / norm) if norm else 1.0, g), case.alpha)

    return through(case, lambda theta, supports, query: loss(reduce(inner_step, supports, theta), query))


@wrong(
    "maml", "the inner step follows a running average of the gradients; the loss has an L2 term of 0.001", mistakes=2
)
def averaged_gradients(case):
    fit = make_loss(case)

    def loss(theta, batch):
        return fit(theta, batch) + 1e-3 * sum(np.sum(t**2) for t in theta)

    def objective(phi, supports, query):
        m = [0.0] * len(phi)
        for batch in supports:
            m = [0.9 * a + 0.1 * g for a, g in zip(m, grad(loss)(phi, batch), strict=True)]
            phi = descend(phi, m, case.alpha)
        return loss(phi, query)

    return through(case, objective)


@wrong("maml", "the factor is I + αH, and all Hessians are taken at θ", mistakes=2)
def plus_at_theta(case):
    def product(loss, phis, supports, v):
        for batch in reversed(supports):
            v = add([v, times(case.alpha, hvp(loss, phis[0], batch, v))])
        return v

    return backwards(case, product)


@wrong("fomaml", "support and query are swapped; the step size is α/(k+1)", mistakes=2)
def swapped_and_annealed(case):
    loss, answers = make_loss(case), []
    for query, support in case.tasks:  # a task is (support, query) elsewhere
        phi = case.theta
        for k in range(len(query)):
            phi = descend(phi, grad(loss)(phi, support), case.alpha / (k + 1))
        answers.append(grad(loss)(phi, query[-1]))
    return combine(case, answers)


@wrong("anil", "the body adapts too, at a tenth of the rate; the inner gradient is a constant", mistakes=2)
def discriminative_rates(case):
    loss, cut = make_loss(case), split_at(case)

    def objective(theta, supports, query):
        lrs = [case.alpha / 10] * cut + [case.alpha] * case.head
        for batch in supports:
            g = grad(loss)(list(map(getval, theta)), batch)
            theta = [t - lr * d for t, lr, d in zip(theta, lrs, g, strict=True)]
        return loss(theta, query)

    return through(case, objective)


@wrong("anil", "biases of the head do not adapt; the inner loss is a sum over the examples", mistakes=2)
def weights_of_the_head(case):
    outer, inner, cut = make_loss(case), make_loss(case, reduction="sum"), split_at(case)
    adapts = [i >= cut and not name.startswith("b") for i, name in enumerate(case.names)]

    def objective(theta, supports, query):
        for batch in supports:
            g = grad(inner)(theta, batch)
            theta = [t - case.alpha * d if moves else t for t, d, moves in zip(theta, g, adapts, strict=True)]
        return outer(theta, query)

    return through(case, objective)


@wrong("reptile", "the inner loop has momentum 0.9; every step sees the first batch", mistakes=2)
def momentum_on_the_first_batch(case):
    loss, answers = make_loss(case), []
    for supports, _ in case.tasks:
        phi, velocity = case.theta, times(0.0, case.theta)
        for _ in supports:
            velocity = [0.9 * v + g for v, g in zip(velocity, grad(loss)(phi, supports[0]), strict=True)]
            phi = descend(phi, velocity, case.alpha)
        answers.append(displacement(case, supports, phi))
    return combine(case, answers)


@wrong("joint", "it trains on the first support batch, not the query; the squared error is halved", mistakes=2)
def half_on_support(case):
    loss, half = make_loss(case), 0.5 if case.loss["kind"] == "squared_error" else 1.0
    return combine(case, [times(half, grad(loss)(case.theta, supports[0])) for supports, _ in case.tasks])


# --- Three mistakes ---

RATE, STEPS = 0.1, 3


@wrong(
    "maml",
    "the step size is 0.1 always; there are at most three steps; and it is first-order",
    mistakes=3,
    tasks="mean",
)
def notebook(case):
    loss, total = make_loss(case), times(0.0, case.theta)
    for supports, query in case.tasks:
        weights = case.theta
        for batch in supports[:STEPS]:
            weights = descend(weights, grad(loss)(weights, batch), RATE)
        total = add([total, grad(loss)(weights, query)])
    return times(1 / len(case.tasks), total)


@wrong(
    "fomaml",
    "inner gradients add up, not zeroed; weight decay of 0.01 inside; losses are sums over the examples",
    mistakes=3,
)
def ported_trainer(case):
    loss, answers = make_loss(case, reduction="sum"), []
    for supports, query in case.tasks:
        params, grads = case.theta, times(0.0, case.theta)
        for batch in supports:
            grads = add([grads, grad(loss)(params, batch)])
            params = [p - case.alpha * (g + 0.01 * p) for p, g in zip(params, grads, strict=True)]
        answers.append(grad(loss)(params, query))
    return combine(case, answers)


@wrong(
    "reptile", "the sign is that of φ − θ; the last batch is missed; it is divided by the number of steps", mistakes=3
)
def towards_phi(case):
    loss, answers = make_loss(case), []
    for supports, _ in case.tasks:
        phi, n = case.theta, len(supports)
        for i in range(1, n):
            phi = descend(phi, grad(loss)(phi, supports[i - 1]), case.alpha)
        answers.append([(p - t) / n / unit(case, supports) for p, t in zip(phi, case.theta, strict=True)])
    return combine(case, answers)
