"""Wrong implementations in NumPy and autograd."""

import autograd.numpy as np
import numpy
from autograd import elementwise_grad, grad, hessian, jacobian
from autograd.extend import defvjp, primitive
from autograd.tracer import getval

from tests.blind.common import (
    add,
    combine,
    descend,
    dot,
    errors,
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
from tests.blind.registry import wrong

# --- MAML by its adjoint: v ← (I − α∇²L(φ_k; S_k)) v from the last step to the first ---


def backwards(case, factor, order=reversed):
    """`factor` makes v of v: what it thinks a step's Jacobian is."""
    loss, out = make_loss(case), []
    for supports, query in case.tasks:
        phis = path(loss, case.theta, supports, case.alpha)
        v = grad(loss)(phis[-1], query)
        for k in order(range(len(supports))):
            v = factor(loss, phis, supports, query, k, v)
        out.append(v)
    return combine(case, out)


@wrong("maml", "the steps' Jacobians are multiplied in the order of the steps, not backwards")
def adjoint_forwards(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[k], supports[k], v), case.alpha)

    return backwards(case, factor, order=list)


@wrong("maml", "all Hessians are taken at theta instead of along the path")
def hessians_at_theta(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[0], supports[k], v), case.alpha)

    return backwards(case, factor)


@wrong("maml", "all Hessians are taken at the adapted parameters")
def hessians_at_the_end(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[-1], supports[k], v), case.alpha)

    return backwards(case, factor)


@wrong("maml", "a step's Hessian is taken after the step: phi_{k+1} in place of phi_k")
def hessian_after_the_step(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[k + 1], supports[k], v), case.alpha)

    return backwards(case, factor)


@wrong("maml", "the Hessian is that of the query loss")
def hessian_of_the_query(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[k], query, v), case.alpha)

    return backwards(case, factor)


@wrong("maml", "the Hessian is always that of the first support batch")
def hessian_of_the_first_batch(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[k], supports[0], v), case.alpha)

    return backwards(case, factor)


@wrong("maml", "only the diagonal of the Hessian is used")
def diagonal_hessian(case):
    def factor(loss, phis, supports, query, k, v):
        H = hessian(lambda p: loss(unflat(p, case.theta), supports[k]))(flat(phis[k]))
        return unflat(flat(v) * (1 - case.alpha * numpy.diag(H)), case.theta)

    return backwards(case, factor)


@wrong("maml", "the Hessian is replaced by the outer product of the gradient with itself")
def outer_product_of_gradients(case):
    def factor(loss, phis, supports, query, k, v):
        g = flat(grad(loss)(phis[k], supports[k]))
        return unflat(flat(v) - case.alpha * g * (g @ flat(v)), case.theta)

    return backwards(case, factor)


@wrong("maml", "the Gauss-Newton matrix is used for the Hessian")
def gauss_newton(case):
    def factor(loss, phis, supports, query, k, v):
        x, y = supports[k]
        if case.model["kind"] == "quadratic":
            return descend(v, hvp(loss, phis[k], supports[k], v), case.alpha)
        J = jacobian(lambda p: np.ravel(mlp(unflat(p, case.theta), x)))(flat(phis[k]))
        out = mlp(phis[k], x)
        n = 1 if case.conventions["examples"] == "sum" else len(y) * (1 if labelled(case) else out.shape[1])
        H = hessian(lambda z: np.sum(errors(case, np.reshape(z, out.shape), y)) / n)(numpy.ravel(out))
        return unflat(flat(v) - case.alpha * J.T @ (H @ (J @ flat(v))), case.theta)

    return backwards(case, factor)


@wrong("maml", "Hessian-vector products are forward differences with a step of 0.1")
def coarse_differences(case):
    def factor(loss, phis, supports, query, k, v):
        there = grad(loss)(descend(phis[k], v, -0.1), supports[k])
        here = grad(loss)(phis[k], supports[k])
        return [a - case.alpha * (b - c) / 0.1 for a, b, c in zip(v, there, here, strict=True)]

    return backwards(case, factor)


@wrong("maml", "Hessian-vector products are differences with a step far too small, 1e-11")
def too_fine_differences(case):
    def factor(loss, phis, supports, query, k, v):
        up = grad(loss)(descend(phis[k], v, -1e-11), supports[k])
        down = grad(loss)(descend(phis[k], v, 1e-11), supports[k])
        return [a - case.alpha * (b - c) / 2e-11 for a, b, c in zip(v, up, down, strict=True)]

    return backwards(case, factor)


@wrong("maml", "each array sees only its own block of the Hessian")
def own_blocks(case):
    def factor(loss, phis, supports, query, k, v):
        def block(j):
            def inner(leaf):
                return loss([*phis[k][:j], leaf, *phis[k][j + 1 :]], supports[k])

            return grad(lambda leaf: np.sum(grad(inner)(leaf) * v[j]))(phis[k][j])

        return [v[j] - case.alpha * block(j) for j in range(len(v))]

    return backwards(case, factor)


@wrong("maml", "the sign of the second-order term is wrong: I + alpha H")
def plus_hessian(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[k], supports[k], v), -case.alpha)

    return backwards(case, factor)


@wrong("maml", "the learning rate is forgotten before the Hessian: I - H")
def no_alpha_before_the_hessian(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[k], supports[k], v), 1)

    return backwards(case, factor)


@wrong("maml", "the second-order term is half of what it should be")
def half_a_hessian(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[k], supports[k], v), case.alpha / 2)

    return backwards(case, factor)


@wrong("maml", "only the last step is differentiated through")
def last_step_only(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[k], supports[k], v), case.alpha) if k == len(supports) - 1 else v

    return backwards(case, factor)


@wrong("maml", "only the first step is differentiated through")
def first_step_only(case):
    def factor(loss, phis, supports, query, k, v):
        return v if k else descend(v, hvp(loss, phis[k], supports[k], v), case.alpha)

    return backwards(case, factor)


@wrong("maml", "the product of I - alpha H is cut after its terms linear in alpha: the steps' Hessians are only added")
def linearised_product(case):
    loss, out = make_loss(case), []
    for supports, query in case.tasks:
        phis = path(loss, case.theta, supports, case.alpha)
        g = grad(loss)(phis[-1], query)
        terms = [hvp(loss, phi, batch, g) for phi, batch in zip(phis, supports, strict=False)]
        out.append(descend(g, add(terms), case.alpha) if terms else g)
    return combine(case, out)


@wrong("maml", "the Hessian is applied to the support gradient instead of the query's")
def hessian_times_support_gradient(case):
    def factor(loss, phis, supports, query, k, v):
        return descend(v, hvp(loss, phis[k], supports[k], grad(loss)(phis[k], supports[k])), case.alpha)

    return backwards(case, factor)


# --- MAML by autograd of an objective that is not MAML's ---


def differentiate(case, of_task):
    """The gradient of Σ of_task(loss, θ, supports, query)."""
    loss = make_loss(case)
    return combine(case, [grad(lambda t: of_task(loss, list(t), S, Q))(case.theta) for S, Q in case.tasks])  # noqa: E731


@wrong("maml", "range(1, K): one inner step too few")
def a_step_too_few(case):
    def of_task(loss, phi, supports, query):
        for k in range(1, len(supports)):
            phi = descend(phi, grad(loss)(phi, supports[k - 1]), case.alpha)
        return loss(phi, query)

    return differentiate(case, of_task)


@wrong("maml", "one inner step too many: the last batch is used twice")
def a_step_too_many(case):
    return differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, [*S, *S[-1:]], case.alpha)[-1], Q))


@wrong("maml", "always one inner step")
def always_one_step(case):
    return differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S[:1], case.alpha)[-1], Q))


@wrong("maml", "always five inner steps, the batches taken in turn")
def always_five_steps(case):
    def of_task(loss, phi, supports, query):
        for k in range(5 if supports else 0):
            phi = descend(phi, grad(loss)(phi, supports[k % len(supports)]), case.alpha)
        return loss(phi, query)

    return differentiate(case, of_task)


@wrong("maml", "every step sees the first support batch")
def first_batch_always(case):
    return differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, [S[0] for _ in S], case.alpha)[-1], Q))


@wrong("maml", "the support batches are popped from the end: last first")
def batches_popped(case):
    def of_task(loss, phi, supports, query):
        left = list(supports)
        while left:
            phi = descend(phi, grad(loss)(phi, left.pop()), case.alpha)
        return loss(phi, query)

    return differentiate(case, of_task)


@wrong("maml", "every step sees all support batches together")
def all_batches_every_step(case):
    def of_task(loss, t, supports, query):
        whole = merged(case, supports) if supports else None
        return loss(path(loss, t, [whole] * len(supports), case.alpha)[-1], query)

    return differentiate(case, of_task)


@wrong("maml", "the query's examples are in every support batch")
def query_leaks(case):
    return differentiate(
        case, lambda loss, t, S, Q: loss(path(loss, t, [merged(case, [b, Q]) for b in S], case.alpha)[-1], Q)
    )


@wrong("maml", "the query loss is taken at the mean of the tasks' adapted parameters")
def adapted_parameters_averaged(case):
    loss = make_loss(case)

    def objective(theta):
        ends = [path(loss, list(theta), S, case.alpha)[-1] for S, _ in case.tasks]
        phi = times(1 / len(ends), add(ends))
        return sum(loss(phi, Q) for _, Q in case.tasks)

    g = grad(objective)(case.theta)
    return times(1 / case.divisor, g)


@wrong("maml", "the query losses of all steps are summed, theta's own not")
def every_steps_query_loss(case):
    def of_task(loss, t, S, Q):
        return sum(loss(phi, Q) for phi in path(loss, t, S, case.alpha)[1:]) if S else loss(t, Q)

    return differentiate(case, of_task)


@wrong("maml", "the last support's loss is added to the query's")
def support_loss_added(case):
    def of_task(loss, t, S, Q):
        phi = path(loss, t, S, case.alpha)[-1]
        return loss(phi, Q) + (loss(phi, S[-1]) if S else 0)

    return differentiate(case, of_task)


@wrong("maml", "weight decay of 0.01 in the inner steps")
def weight_decay_inside(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            phi = [p - case.alpha * (d + 0.01 * p) for p, d in zip(phi, grad(loss)(phi, batch), strict=True)]
        return loss(phi, query)

    return differentiate(case, of_task)


@wrong("maml", "an L2 penalty of 0.001 on theta is in the outer loss")
def penalty_outside(case):
    return differentiate(
        case, lambda loss, t, S, Q: loss(path(loss, t, S, case.alpha)[-1], Q) + 1e-3 * sum(np.sum(p**2) for p in t)
    )


@wrong("maml", "momentum of 0.9 in the inner steps")
def heavy_ball(case):
    def of_task(loss, phi, supports, query):
        velocity = [0 * p for p in phi]
        for batch in supports:
            velocity = [0.9 * u + d for u, d in zip(velocity, grad(loss)(phi, batch), strict=True)]
            phi = descend(phi, velocity, case.alpha)
        return loss(phi, query)

    return differentiate(case, of_task)


@wrong("maml", "the inner gradient is scaled to length one")
def unit_steps(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            g = grad(loss)(phi, batch)
            phi = descend(phi, g, case.alpha / np.sqrt(dot(g, g)))
        return loss(phi, query)

    return differentiate(case, of_task)


@wrong("maml", "the inner gradient is clipped to a norm of 0.3, and the norm is a constant to the outer derivative")
def clipped_inside_by_a_constant_norm(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            g = grad(loss)(phi, batch)
            norm = np.sqrt(dot(g, g))
            while hasattr(norm, "_value"):
                norm = getval(norm)
            phi = descend(phi, g, case.alpha * min(1, 0.3 / norm))
        return loss(phi, query)

    return differentiate(case, of_task)


@wrong("maml", "softmax is applied before a cross-entropy that applies it again")
def softmax_twice(case):
    net = (lambda theta, x: np.exp(log_softmax(mlp(theta, x)))) if labelled(case) else mlp
    loss = make_loss(case, net)
    return combine(
        case, [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    )


@wrong("maml", "labels are taken to count from one, so every label is shifted")
def labels_from_one(case):
    plain = make_loss(case)

    def loss(theta, batch):
        return plain(theta, (batch[0], batch[1] - 1) if labelled(case) else batch)

    return combine(
        case, [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    )


@wrong("maml", "the inner loss is half the squared error, the outer is not")
def half_inside(case):
    def of_task(loss, t, S, Q):
        half = (lambda p, b: loss(p, b) / 2) if case.loss["kind"] == "squared_error" else loss
        return loss(path(half, t, S, case.alpha)[-1], Q)

    return differentiate(case, of_task)


@wrong("maml", "the squared error is summed over the outputs and averaged over the examples only, inside and outside")
def outputs_summed(case):
    def of_task(loss, t, S, Q):
        m = case.model["widths"][-1] if case.loss["kind"] == "squared_error" else 1
        m = m if case.conventions["examples"] == "mean" else 1
        return m * loss(path(lambda p, b: m * loss(p, b), t, S, case.alpha)[-1], Q)

    return differentiate(case, of_task)


@wrong("maml", "float32 inside")
def single_precision(case):
    def cast(a):
        return a if a.dtype.kind in "iu" else a.astype(numpy.float32)

    return differentiate(case.each(cast), lambda loss, t, S, Q: loss(path(loss, t, S, case.alpha)[-1], Q))


@wrong("maml", "the learning rate is rounded to two digits after the point")
def rounded_rate(case):
    return differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S, round(case.alpha, 2))[-1], Q))


@wrong("maml", "the learning rate is split over the steps: alpha / K")
def rate_over_k(case):
    return differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S, case.alpha / max(1, len(S)))[-1], Q))


@wrong("maml", "the gradient is forward differences of the objective with a step of 1e-3")
def numeric_gradient(case):
    loss = make_loss(case)

    def objective(vector):
        theta = unflat(vector, case.theta)
        return sum(loss(path(loss, theta, S, case.alpha)[-1], Q) for S, Q in case.tasks)

    at = flat(case.theta)
    slopes = numpy.array([(objective(at + e) - objective(at)) / 1e-3 for e in 1e-3 * numpy.eye(len(at))])
    return unflat(slopes / case.divisor, case.theta)


@wrong("maml", "it returns the parameters after an outer step, not the gradient")
def returns_the_new_theta(case):
    g = differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S, case.alpha)[-1], Q))
    return descend(case.theta, g, 0.001)


@wrong("maml", "the first task is counted twice: the total begins with it and the loop passes it again")
def first_task_twice(case):
    def of_task(loss, t, S, Q):
        return loss(path(loss, t, S, case.alpha)[-1], Q)

    loss = make_loss(case)
    parts = [grad(lambda t: of_task(loss, list(t), S, Q))(case.theta) for S, Q in case.tasks]
    total = parts[0]
    for part in parts:
        total = descend(total, part, -1)
    return times(1 / case.divisor, total)


@wrong("maml", "the tasks' gradients go into a running average from zero, 0.9 old and 0.1 new")
def running_average(case):
    loss, total = make_loss(case), None
    for S, Q in case.tasks:
        g = grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta)
        total = times(0.1, g) if total is None else [0.9 * a + 0.1 * b for a, b in zip(total, g, strict=True)]
    return total


@wrong("maml", "a break that was put there for debugging: only the first task counts")
def break_in_the_loop(case):
    loss, total = make_loss(case), [0 * t for t in case.theta]
    for S, Q in case.tasks:
        total = descend(total, grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta), -1)
        break
    return total


@wrong("maml", "biases do not adapt in the inner loop")
def biases_stay(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            g = grad(loss)(phi, batch)
            phi = [p - case.alpha * d * (np.ndim(p) != 1 or len(phi) == 1) for p, d in zip(phi, g, strict=True)]
        return loss(phi, query)

    return differentiate(case, of_task)


_adapted = {}


@wrong("maml", "a task's adapted parameters are cached by the task's number and the shapes, and kept between calls")
def stale_cache(case):
    loss, out = make_loss(case), []
    for i, (S, Q) in enumerate(case.tasks):
        key = i, len(S), tuple(t.shape for t in case.theta), case.loss["kind"]
        if key not in _adapted:
            _adapted[key] = path(loss, case.theta, S, case.alpha)
        phis = _adapted[key]
        v = grad(loss)(phis[-1], Q)
        for phi, batch in zip(phis[-2::-1], S[::-1], strict=True):
            v = descend(v, hvp(loss, phi, batch, v), case.alpha)
        out.append(v)
    return combine(case, out)


@wrong("maml", "the gradient is clipped to a norm of 0.5 before it is returned")
def outer_norm_clipped(case):
    g = differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S, case.alpha)[-1], Q))
    return times(min(1, 0.5 / np.sqrt(dot(g, g))), g)


@wrong("maml", "the derivative of tanh is 1 - z**2 of its argument, in the inner gradients only")
def tanh_derivative_of_the_argument(case):
    loss = make_loss(case)

    def by_hand(theta, batch):
        """Backpropagation, as in the first week of a course."""
        if case.model["kind"] == "quadratic":
            return grad(loss)(theta, batch)
        x, y = batch
        inputs, before = [x], []
        for i in range(0, len(theta), 2):
            before.append(inputs[-1] @ theta[i] + theta[i + 1])
            inputs.append(np.tanh(before[-1]))
        out = before[-1]
        delta = np.exp(log_softmax(out)) - np.eye(out.shape[1])[y] if labelled(case) else 2 * (out - y)
        if case.conventions["examples"] == "mean":
            delta = delta / (len(y) * (1 if labelled(case) else out.shape[1]))
        g = []
        for layer in reversed(range(len(theta) // 2)):
            g = [inputs[layer].T @ delta, np.sum(delta, axis=0), *g]
            if layer:
                delta = (delta @ theta[2 * layer].T) * (1 - before[layer - 1] ** 2)
        return g

    def objective(theta, S, Q):
        phi = list(theta)
        for batch in S:
            phi = descend(phi, by_hand(phi, batch), case.alpha)
        return loss(phi, Q)

    return combine(case, [grad(objective)(case.theta, S, Q) for S, Q in case.tasks])


@primitive
def bad_tanh(z):
    return numpy.tanh(z)


defvjp(bad_tanh, lambda y, z: lambda g: g * (1 - y))


@wrong("maml", "an own tanh has the derivative 1 - tanh instead of 1 - tanh**2")
def own_tanh(case):
    def net(theta, x):
        for i in range(0, len(theta), 2):
            x = (bad_tanh(x) if i else x) @ theta[i] + theta[i + 1]
        return x

    loss = make_loss(case, net)
    return combine(
        case, [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    )


@wrong("maml", "the inner gradient is taken of one example at a time, each followed by a step")
def online_steps(case):
    def of_task(loss, phi, supports, query):
        for x, y in supports:
            if case.model["kind"] == "quadratic":
                phi = descend(phi, grad(loss)(phi, (x, y)), case.alpha)
                continue
            for i in range(len(y)):
                phi = descend(phi, grad(loss)(phi, (x[i : i + 1], y[i : i + 1])), case.alpha)
        return loss(phi, query)

    return differentiate(case, of_task)


# --- First-order MAML ---


def first_order(case, of_task):
    loss = make_loss(case)
    return combine(case, [of_task(loss, S, Q) for S, Q in case.tasks])


@wrong("fomaml", "it is MAML: it differentiates through the inner steps")
def second_order_after_all(case):
    return differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S, case.alpha)[-1], Q))


@wrong("fomaml", "-= on the arrays of a shallow copy changes theta itself: each task starts where the last one ended")
def in_place(case):
    theta, loss, out = [t.copy() for t in case.theta], make_loss(case), []
    for S, Q in case.tasks:
        phi = list(theta)
        for batch in S:
            for p, d in zip(phi, grad(loss)(phi, batch), strict=True):
                p -= case.alpha * d
        out.append(grad(loss)(phi, Q))
    return combine(case, out)


@wrong("fomaml", "the query gradient is taken before the last inner step")
def gradient_before_the_last_step(case):
    def of_task(loss, S, Q):
        phi, g = case.theta, grad(loss)(case.theta, Q)
        for batch in S:
            g = grad(loss)(phi, Q)
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
        return g

    return first_order(case, of_task)


@wrong("fomaml", "the query gradients of all steps are averaged")
def mean_along_the_path(case):
    def of_task(loss, S, Q):
        gs = [grad(loss)(phi, Q) for phi in path(loss, case.theta, S, case.alpha)]
        return times(1 / len(gs), add(gs))

    return first_order(case, of_task)


@wrong("fomaml", "the support gradients of the inner steps are added to the query's")
def support_gradients_added(case):
    def of_task(loss, S, Q):
        phis = path(loss, case.theta, S, case.alpha)
        return add([grad(loss)(phis[-1], Q), *(grad(loss)(phi, b) for phi, b in zip(phis, S, strict=False))])

    return first_order(case, of_task)


@wrong("fomaml", "gradients are rounded to float16 on the way between workers")
def half_precision_messages(case):
    def of_task(loss, S, Q):
        return [
            np.asarray(d).astype(numpy.float16).astype(float)
            for d in grad(loss)(path(loss, case.theta, S, case.alpha)[-1], Q)
        ]

    return first_order(case, of_task)


# --- ANIL ---


def anil_by(case, adapt, cut):
    loss = make_loss(case)

    def of_task(theta, S, Q):
        body, head = list(theta)[:cut], list(theta)[cut:]
        return loss([*body, *adapt(loss, body, head, S)], Q)

    return combine(case, [grad(of_task)(case.theta, S, Q) for S, Q in case.tasks])


def adapt_head(case):
    def adapt(loss, body, head, S):
        return path(lambda h, b: loss([*body, *h], b), head, S, case.alpha)[-1]

    return adapt


@wrong("anil", "it adapts all arrays: it is MAML")
def adapts_everything(case):
    return anil_by(case, adapt_head(case), 0)


@wrong("anil", "only the last array, the last layer's bias, adapts")
def adapts_the_last_bias(case):
    return anil_by(case, adapt_head(case), len(case.theta) - min(1, case.head))


@wrong("anil", "the body adapts and the head stays")
def adapts_the_body(case):
    cut, loss = len(case.theta) - case.head, make_loss(case)

    def of_task(theta, S, Q):
        body, head = list(theta)[:cut], list(theta)[cut:]
        return loss([*path(lambda b, batch: loss([*b, *head], batch), body, S, case.alpha)[-1], *head], Q)

    return combine(case, [grad(of_task)(case.theta, S, Q) for S, Q in case.tasks])


@wrong("anil", "the head starts from zeros in every task")
def head_from_zeros(case):
    def adapt(loss, body, head, S):
        return adapt_head(case)(loss, body, [0 * h for h in head], S)

    return anil_by(case, adapt, len(case.theta) - case.head)


@wrong("anil", "the body's gradient is taken at the adapted head alone: how the head depends on the body is left out")
def body_first_order(case):
    loss, cut, out = make_loss(case), len(case.theta) - case.head, []
    for S, Q in case.tasks:
        body, head = case.theta[:cut], case.theta[cut:]
        adapted = adapt_head(case)(loss, body, head, S)
        by_head = grad(lambda h: loss([*body, *adapt_head(case)(loss, body, list(h), S)], Q))(head) if head else []
        out.append([*grad(loss)([*body, *adapted], Q)[:cut], *by_head])
    return combine(case, out)


# --- Reptile ---


def moved(case, end):
    loss = make_loss(case)
    return combine(case, [times(1 / unit(case, S), descend(case.theta, end(loss, S, Q), 1)) for S, Q in case.tasks])


@wrong("reptile", "phi - theta: the sign of the displacement")
def displacement_reversed(case):
    return times(-1, moved(case, lambda loss, S, Q: path(loss, case.theta, S, case.alpha)[-1]))


@wrong("reptile", "only the last step's displacement is returned")
def last_displacement(case):
    def of_task(loss, S):
        *_, before, after = path(loss, case.theta, S, case.alpha)
        return times(1 / unit(case, S), descend(before, after, 1))

    loss = make_loss(case)
    return combine(case, [of_task(loss, S) for S, _ in case.tasks])


@wrong("reptile", "the displacement is towards the mean of the path, not to its end")
def towards_the_mean_of_the_path(case):
    def end(loss, S, Q):
        phis = path(loss, case.theta, S, case.alpha)[1:]
        return times(1 / len(phis), add(phis))

    return moved(case, end)


@wrong("reptile", "the tasks are done one after another from where the last one ended")
def one_long_path(case):
    loss, phi, out = make_loss(case), case.theta, []
    for S, _ in case.tasks:
        phi = path(loss, phi, S, case.alpha)[-1]
        out.append(times(1 / unit(case, S), descend(case.theta, phi, 1)))
    return combine(case, out)


@wrong("reptile", "Adam in the inner loop")
def adam_inside(case):
    def end(loss, S, Q):
        phi, m, v = case.theta, [0 * t for t in case.theta], [0 * t for t in case.theta]
        for k, batch in enumerate(S, 1):
            g = grad(loss)(phi, batch)
            m = [0.9 * a + 0.1 * d for a, d in zip(m, g, strict=True)]
            v = [0.999 * a + 0.001 * d**2 for a, d in zip(v, g, strict=True)]
            steps = [a / (1 - 0.9**k) / (np.sqrt(b / (1 - 0.999**k)) + 1e-8) for a, b in zip(m, v, strict=True)]
            phi = descend(phi, steps, case.alpha)
        return phi

    return moved(case, end)


@wrong("reptile", "theta is added: theta + (theta - phi)")
def theta_added(case):
    return add([case.theta, moved(case, lambda loss, S, Q: path(loss, case.theta, S, case.alpha)[-1])])


# --- Joint training ---


@wrong("joint", "it trains on the supports, all of them, and not on the query")
def joint_on_supports(case):
    loss = make_loss(case)
    return combine(case, [add(grad(loss)(case.theta, b) for b in S) for S, _ in case.tasks])


@wrong("joint", "it trains on supports and query together")
def joint_on_everything(case):
    loss = make_loss(case)
    return combine(case, [grad(loss)(case.theta, merged(case, [*S, Q])) for S, Q in case.tasks])


@wrong("joint", "the tasks' data are merged to one batch, so a task counts by its size and the sum becomes a mean")
def joint_merged(case):
    return grad(make_loss(case))(case.theta, merged(case, [Q for _, Q in case.tasks]))


# --- Two mistakes, and three ---


@wrong("maml", "first-order, and one inner step too few", 2)
def first_order_and_short(case):
    return first_order(case, lambda loss, S, Q: grad(loss)(path(loss, case.theta, S[:-1], case.alpha)[-1], Q))


@wrong("maml", "the inner loss is a sum over the examples, and the outer sum over the tasks a mean of T - 1", 2)
def sum_inside_and_wrong_mean(case):
    inner = make_loss(case, reduction="sum")
    g = differentiate(case, lambda loss, t, S, Q: loss(path(inner, t, S, case.alpha)[-1], Q))
    return times(case.divisor / max(1, len(case.tasks) - 1), g)


@wrong("maml", "the Hessians are the query's, and the gradient is negated", 2)
def query_hessian_and_ascent(case):
    return times(-1, hessian_of_the_query(case))


@wrong("fomaml", "the tasks share one phi that is never reset, and the first batch is used in every step", 2)
def no_reset_and_first_batch(case):
    loss, phi, out = make_loss(case), case.theta, []
    for S, Q in case.tasks:
        phi = path(loss, phi, [S[0]] * len(S), case.alpha)[-1]
        out.append(grad(loss)(phi, Q))
    return combine(case, out)


@wrong("maml", "first-order, momentum of 0.9 inside, and a mean over the tasks twice", 3)
def three_from_a_notebook(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phi, velocity = case.theta, [0 * t for t in case.theta]
        for batch in S:
            velocity = [0.9 * u + d for u, d in zip(velocity, grad(loss)(phi, batch), strict=True)]
            phi = descend(phi, velocity, case.alpha)
        out.append(times(1 / len(case.tasks), grad(loss)(phi, Q)))
    return combine(case, out)


@wrong("reptile", "the query is a further step, the sign is wrong, and the sum over the tasks is divided by K", 3)
def three_in_reptile(case):
    def end(loss, S, Q):
        return path(loss, case.theta, [*S, *([] if Q is None else [Q])], case.alpha)[-1]

    return times(-1 / max(1, len(case.tasks[0][0])), moved(case, end))


@wrong(
    "maml", "elementwise: each number of theta gets only its own second derivative, estimated with a vector of ones", 1
)
def hessian_row_sums(case):
    def factor(loss, phis, supports, query, k, v):
        rows = hvp(loss, phis[k], supports[k], [np.ones(np.shape(t)) for t in v])
        return [a * (1 - case.alpha * r) for a, r in zip(v, rows, strict=True)]

    return backwards(case, factor)


@wrong("maml", "elementwise_grad of the update, as if every number of theta moved by itself", 1)
def elementwise_jacobian(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:

        def last(t, S=S):
            return flat(path(loss, unflat(t, case.theta), S, case.alpha)[-1])

        phi = path(loss, case.theta, S, case.alpha)[-1]
        out.append(unflat(elementwise_grad(last)(flat(case.theta)) * flat(grad(loss)(phi, Q)), case.theta))
    return combine(case, out)


# --- State, scales and conventions ---

_calls = 0


@wrong("maml", "the learning rate decays with a counter of all calls ever made")
def global_counter(case):
    global _calls
    _calls += 1
    rate = case.alpha * 0.999**_calls
    return differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S, rate)[-1], Q))


@wrong("maml", "the support batches are shuffled by NumPy's global generator")
def shuffled_batches(case):
    def of_task(loss, t, S, Q):
        S = [S[i] for i in numpy.random.permutation(len(S))]
        return loss(path(loss, t, S, case.alpha)[-1], Q)

    return differentiate(case, of_task)


@wrong("maml", "the support batches are drawn with replacement, from one seed")
def resampled_batches(case):
    rng = numpy.random.default_rng(0)

    def of_task(loss, t, S, Q):
        return loss(path(loss, t, [S[i] for i in rng.integers(0, len(S), len(S))] if S else [], case.alpha)[-1], Q)

    return differentiate(case, of_task)


@wrong("maml", "the loss was scaled by 1024 for half precision, and the gradient is not unscaled")
def never_unscaled(case):
    return differentiate(case, lambda loss, t, S, Q: 1024 * loss(path(loss, t, S, case.alpha)[-1], Q))


@wrong("maml", "the outer step, 0.001 times the gradient, is returned")
def step_returned(case):
    return times(1e-3, differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S, case.alpha)[-1], Q)))


@wrong("maml", "the learning rate went through float16")
def rate_in_half_precision(case):
    rate = float(numpy.float16(case.alpha))
    return differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S, rate)[-1], Q))


@wrong("maml", "the examples are always averaged over, also where their sum is asked for")
def always_mean_over_examples(case):
    loss = make_loss(case, reduction="mean")
    return combine(
        case, [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    )


@wrong("maml", "the examples are always summed, inside and outside")
def always_sum_over_examples(case):
    loss = make_loss(case, reduction="sum")
    return combine(
        case, [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    )


@wrong("maml", "the inner rate is divided by the number of examples in the support batch")
def rate_over_examples(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            phi = descend(phi, grad(loss)(phi, batch), case.alpha / len(batch[1]))
        return loss(phi, query)

    return differentiate(case, of_task)


@wrong("maml", "inputs are standardised by the support batch, the query's by its own")
def standardised_inputs(case):
    def net(theta, x):
        return mlp(theta, (x - x.mean(0)) / (x.std(0) + 1e-8))

    loss = make_loss(case, net)
    return combine(
        case, [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    )


@wrong("maml", "the mean over the tasks is by T - 1, and by one for a single task", tasks="mean")
def mean_by_t_minus_one(case):
    loss = make_loss(case)
    parts = [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    return times(1 / max(1, len(parts) - 1), add(parts))


@wrong("maml", "the tasks' meta-gradients are scaled to length one before they are added")
def unit_meta_gradients(case):
    loss = make_loss(case)
    parts = [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    return combine(case, [times(1 / (np.sqrt(dot(g, g)) + 1e-8), g) for g in parts])


@wrong("maml", "the improvement is differentiated: the query loss after minus before")
def improvement(case):
    return differentiate(case, lambda loss, t, S, Q: loss(path(loss, t, S, case.alpha)[-1], Q) - loss(t, Q))


@wrong("maml", "Nesterov's look-ahead: each gradient is taken a step of alpha ahead")
def extragradient(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            ahead = descend(phi, grad(loss)(phi, batch), case.alpha)
            phi = descend(phi, grad(loss)(ahead, batch), case.alpha)
        return loss(phi, query)

    return differentiate(case, of_task)


# --- More of the other algorithms ---


@wrong("fomaml", "the adapted parameters are averaged over the tasks before the query gradients")
def fomaml_averaged(case):
    loss = make_loss(case)
    ends = [path(loss, case.theta, S, case.alpha)[-1] for S, _ in case.tasks]
    phi = times(1 / len(ends), add(ends))
    return combine(case, [grad(loss)(phi, Q) for _, Q in case.tasks])


@wrong("fomaml", "all query gradients are taken at the last task's adapted parameters")
def fomaml_last_phi(case):
    loss = make_loss(case)
    for S, _ in case.tasks:
        phi = path(loss, case.theta, S, case.alpha)[-1]
    return combine(case, [grad(loss)(phi, Q) for _, Q in case.tasks])


@wrong("fomaml", "the query gradient is divided by alpha, as Reptile's displacement is")
def fomaml_over_alpha(case):
    return times(
        1 / case.alpha, first_order(case, lambda loss, S, Q: grad(loss)(path(loss, case.theta, S, case.alpha)[-1], Q))
    )


@wrong("fomaml", "the gradient of the last support batch is taken at phi")
def fomaml_on_support(case):
    return first_order(case, lambda loss, S, Q: grad(loss)(path(loss, case.theta, S, case.alpha)[-1], S[-1]))


@wrong("fomaml", "the diagonal of I - alpha H of the last step is kept")
def fomaml_with_a_diagonal(case):
    def of_task(loss, S, Q):
        *_, before, after = path(loss, case.theta, S, case.alpha)
        H = hessian(lambda p: loss(unflat(p, case.theta), S[-1]))(flat(before))
        return unflat(flat(grad(loss)(after, Q)) * (1 - case.alpha * numpy.diag(H)), case.theta)

    return first_order(case, of_task)


@wrong("anil", "the head is carried over from task to task")
def anil_head_carried_over(case):
    loss, cut = make_loss(case), len(case.theta) - case.head

    def objective(theta):
        body, head, total = list(theta)[:cut], list(theta)[cut:], 0
        for S, Q in case.tasks:
            head = path(lambda h, b: loss([*body, *h], b), head, S, case.alpha)[-1]
            total = total + loss([*body, *head], Q)
        return total / case.divisor

    return grad(objective)(case.theta)


@wrong("anil", "the head is taken from the front: the first arrays adapt")
def anil_head_in_front(case):
    loss, n = make_loss(case), case.head

    def of_task(theta, S, Q):
        head, body = list(theta)[:n], list(theta)[n:]
        return loss([*path(lambda h, b: loss([*h, *body], b), head, S, case.alpha)[-1], *body], Q)

    return combine(case, [grad(of_task)(case.theta, S, Q) for S, Q in case.tasks])


@wrong("anil", "one inner step too many: the last batch is used twice")
def anil_a_step_too_many(case):
    def adapt(loss, body, head, S):
        return adapt_head(case)(loss, body, head, [*S, *S[-1:]])

    return anil_by(case, adapt, len(case.theta) - case.head)


@wrong("anil", "the head's meta-gradient is dropped, as it adapts anyway: zeros")
def anil_head_without_gradient(case):
    cut = len(case.theta) - case.head
    g = anil_by(case, adapt_head(case), cut)
    return [*g[:cut], *(0 * d for d in g[cut:])]


@wrong("anil", "the body's gradient is taken before the head adapts")
def anil_body_before_adaptation(case):
    cut, loss = len(case.theta) - case.head, make_loss(case)
    g = anil_by(case, adapt_head(case), cut)
    before = combine(case, [grad(loss)(case.theta, Q) for _, Q in case.tasks])
    return [*before[:cut], *g[cut:]]


@wrong("reptile", "the query batch is one more step")
def reptile_query_as_a_step(case):
    return moved(case, lambda loss, S, Q: path(loss, case.theta, [*S, *([] if Q is None else [Q])], case.alpha)[-1])


@wrong("reptile", "the displacement is always divided by alpha")
def reptile_over_alpha(case):
    loss = make_loss(case)
    ends = [path(loss, case.theta, S, case.alpha)[-1] for S, _ in case.tasks]
    return combine(case, [times(1 / case.alpha, descend(case.theta, phi, 1)) for phi in ends])


@wrong("reptile", "phi is theta itself, changed in place, so the displacement is zero")
def reptile_aliased(case):
    loss, out = make_loss(case), []
    for S, _ in case.tasks:
        theta = [t.copy() for t in case.theta]
        phi = list(theta)
        for batch in S:
            for p, d in zip(phi, grad(loss)(phi, batch), strict=True):
                p -= case.alpha * d
        out.append(times(1 / unit(case, S), descend(theta, phi, 1)))
    return combine(case, out)


@wrong("reptile", "only the last task's displacement is returned")
def reptile_last_task(case):
    loss, (S, _) = make_loss(case), case.tasks[-1]
    return times(1 / unit(case, S), descend(case.theta, path(loss, case.theta, S, case.alpha)[-1], 1))


@wrong("reptile", "every step uses the task's first batch")
def reptile_first_batch(case):
    return moved(case, lambda loss, S, Q: path(loss, case.theta, [S[0]] * len(S), case.alpha)[-1])


@wrong("reptile", "the new theta is returned: theta + 0.1 (phi - theta)")
def reptile_new_theta(case):
    g = moved(case, lambda loss, S, Q: path(loss, case.theta, S, case.alpha)[-1])
    return descend(case.theta, g, 0.1)


@wrong("reptile", "the inner rate decays linearly to zero over the steps")
def reptile_linear_decay(case):
    def end(loss, S, Q):
        phi = case.theta
        for k, batch in enumerate(S):
            phi = descend(phi, grad(loss)(phi, batch), case.alpha * (1 - k / len(S)))
        return phi

    return moved(case, end)


@wrong("joint", "theta moves after each task by alpha, as in an epoch of SGD")
def joint_sgd_epoch(case):
    loss, theta, out = make_loss(case), case.theta, []
    for _, Q in case.tasks:
        out.append(grad(loss)(theta, Q))
        theta = descend(theta, out[-1], case.alpha)
    return combine(case, out)


@wrong("joint", "the gradient is multiplied by the inner learning rate")
def joint_times_alpha(case):
    loss = make_loss(case)
    return times(case.alpha, combine(case, [grad(loss)(case.theta, Q) for _, Q in case.tasks]))


@wrong("joint", "the support losses are added to the query losses")
def joint_all_losses(case):
    loss = make_loss(case)
    return combine(case, [add(grad(loss)(case.theta, b) for b in [*S, Q]) for S, Q in case.tasks])


@wrong("joint", "the last task is left out")
def joint_without_the_last(case):
    loss = make_loss(case)
    return combine(case, [grad(loss)(case.theta, Q) for _, Q in case.tasks[: max(1, len(case.tasks) - 1)]])
