"""Fifty-eight authors' NumPy, written without a look at the checker: fifty are wrong, eight right."""

from functools import partial, reduce
from itertools import count, zip_longest

import autograd.numpy as np
from autograd import grad, jacobian, make_vjp
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
    path,
    quadratic,
    through,
    times,
    unflat,
    unit,
)
from tests.blind.registry import right, wrong


def reducer(case):
    return {"mean": np.mean, "sum": np.sum}[case.conventions["examples"]]


def is_quadratic(case):
    return case.model["kind"] == "quadratic"


# --- Right ---


@right("maml", "the Jacobian of adaptation as a matrix")
def jacobian_matrix(case):
    loss, parts = make_loss(case), []
    for supports, query in case.tasks:

        def end(vector, supports=supports):
            return flat(path(loss, unflat(vector, case.theta), supports, case.alpha)[-1])

        start = flat(case.theta)
        g = grad(lambda p, query=query: loss(unflat(p, case.theta), query))(end(start))
        parts.append(unflat(jacobian(end)(start).T @ g, case.theta))
    return combine(case, parts)


class Learner:
    """Parameters by name, and an inner loop that calls itself."""

    def __init__(self, case):
        self.case, self.loss = case, make_loss(case)

    def of(self, params, batch):
        return self.loss([params[name] for name in self.case.names], batch)

    def adapted(self, params, supports):
        if not supports:
            return params
        g = grad(self.of)(params, supports[0])
        return self.adapted({name: params[name] - self.case.alpha * g[name] for name in params}, supports[1:])

    def total(self, params):
        return sum(self.of(self.adapted(params, supports), query) for supports, query in self.case.tasks)


@right("maml", "a learner with parameters by name, and an inner loop that calls itself")
def learner_by_name(case):
    gradient = grad(Learner(case).total)(dict(zip(case.names, case.theta, strict=True)))
    return times(1 / (len(case.tasks) if case.conventions["tasks"] == "mean" else 1), gradient.values())


@right("maml", "all tasks in lockstep, one gradient of the sum of their losses for every step")
def lockstep(case):
    loss, queries = make_loss(case), [query for _, query in case.tasks]

    def total(phis, batches):
        return sum(loss(phi, batch) for phi, batch in zip(phis, batches, strict=True) if batch is not None)

    def objective(theta):
        phis = [list(theta) for _ in queries]
        for batches in zip_longest(*[supports for supports, _ in case.tasks]):
            gs = grad(total)(phis, batches)
            phis = [descend(phi, g, case.alpha) for phi, g in zip(phis, gs, strict=True)]
        return total(phis, queries) / (len(queries) if case.conventions["tasks"] == "mean" else 1)

    return grad(objective)(list(case.theta))


@right("fomaml", "the gradient in an offset that is added after adaptation")
def offset_at_the_end(case):
    loss, parts = make_loss(case), []
    for supports, query in case.tasks:
        phi = path(loss, case.theta, supports, case.alpha)[-1]
        parts.append(grad(lambda d, phi=phi, query=query: loss(add([phi, d]), query))(times(0, case.theta)))
    return combine(case, parts)


@right("anil", "a mask of zeros and ones over all arrays")
def zeros_and_ones(case):
    loss = make_loss(case)
    mask = [i >= len(case.theta) - case.head for i in range(len(case.theta))]

    def objective(theta, supports, query):
        for batch in supports:
            g = grad(loss)(theta, batch)
            theta = [t - case.alpha * m * d for t, m, d in zip(theta, mask, g, strict=True)]
        return loss(theta, query)

    return through(case, objective)


@right("anil", "the direct part, and the part pulled back through the adapted head")
def pulled_back(case):
    loss, cut, parts = make_loss(case), len(case.theta) - case.head, []
    for supports, query in case.tasks:

        def adapted_head(vector, supports=supports):
            body, head = (lambda t: (t[:cut], t[cut:]))(unflat(vector, case.theta))
            return flat([np.zeros(0), *path(lambda h, b: loss([*body, *h], b), head, supports, case.alpha)[-1]])

        pull, head = make_vjp(adapted_head)(flat(case.theta))
        g = grad(loss)([*case.theta[:cut], *unflat(head, case.theta[cut:])], query)
        through = unflat(pull(flat([np.zeros(0), *g[cut:]])), case.theta)
        parts.append(add([through, [*g[:cut], *times(0, g[cut:])]]))
    return combine(case, parts)


@right("reptile", "the inner gradients, summed on the way")
def summed_on_the_way(case):
    loss = make_loss(case)

    def walk(state, batch):
        phi, total = state
        g = grad(loss)(phi, batch)
        return descend(phi, g, case.alpha), add([total, g])

    ends = [reduce(walk, supports, (case.theta, times(0, case.theta)))[1] for supports, _ in case.tasks]
    units = [case.alpha / unit(case, supports) for supports, _ in case.tasks]
    return combine(case, [times(u, end) for u, end in zip(units, ends, strict=True)])


@right("joint", "one example after the other")
def one_example_at_a_time(case):
    if is_quadratic(case):
        return combine(case, [unflat(A @ flat(case.theta) - b, case.theta) for _, (A, b) in case.tasks])
    loss, parts = make_loss(case), []
    for _, (x, y) in case.tasks:
        rows = [grad(loss)(list(case.theta), (x[i : i + 1], y[i : i + 1])) for i in range(len(x))]
        parts.append(times(1 / len(x) if case.conventions["examples"] == "mean" else 1, add(rows)))
    return combine(case, parts)


# --- MAML: one mistake ---


@wrong("maml", "every inner gradient is taken at θ, not at the fast weights")
def stale_weights(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        fast = list(theta)
        for batch in supports:
            fast = descend(fast, grad(loss)(theta, batch), case.alpha)
        return loss(fast, query)

    return through(case, objective)


@wrong("maml", "the supports are popped from the end of the list: the last comes first")
def popped(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        queue, phi = list(supports), list(theta)
        while queue:
            phi = descend(phi, grad(loss)(phi, queue.pop()), case.alpha)
        return loss(phi, query)

    return through(case, objective)


@wrong("maml", "the query loss is the mean of those after every step, as in MAML++")
def mean_of_all_steps(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        phis = path(loss, theta, supports, case.alpha)
        losses = [loss(phi, query) for phi in phis[1:] or phis]
        return sum(losses) / len(losses)

    return through(case, objective)


@wrong("maml", "the support losses on the way are added to the meta-loss")
def losses_on_the_way(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        running, phi = 0.0, list(theta)
        for batch in supports:
            running = running + loss(phi, batch)
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
        return running + loss(phi, query)

    return through(case, objective)


@wrong("maml", "each task starts where the one before it ended")
def never_reset(case):
    loss = make_loss(case)

    def meta_loss(params):
        total = 0.0
        for supports, query in case.tasks:
            for batch in supports:
                params = descend(params, grad(loss)(params, batch), case.alpha)
            total = total + loss(params, query)
        return total / (len(case.tasks) if case.conventions["tasks"] == "mean" else 1)

    return grad(meta_loss)(list(case.theta))


def backward(case, step):
    """v at φ_K, then v ← step(v, φ_k, φ_{k+1}, S_k, query) from the last step to the first."""
    loss, parts = make_loss(case), []
    for supports, query in case.tasks:
        phis = path(loss, case.theta, supports, case.alpha)
        v = grad(loss)(phis[-1], query)
        for k in reversed(range(len(supports))):
            v = step(loss, v, phis[k], phis[k + 1], supports[k], query)
        parts.append(v)
    return combine(case, parts)


@wrong("maml", "the Hessian is the query loss's")
def curvature_from_the_query(case):
    def step(loss, v, phi, _, batch, query):
        return descend(v, hvp(loss, phi, query, v), case.alpha)

    return backward(case, step)


@wrong("maml", "the product of the I − αH is expanded to first order in α")
def expanded_product(case):
    loss, parts = make_loss(case), []
    for supports, query in case.tasks:
        *phis, last = path(loss, case.theta, supports, case.alpha)
        g = grad(loss)(last, query)
        second = [hvp(loss, phi, batch, g) for phi, batch in zip(phis, supports, strict=True)]
        parts.append(descend(g, add(second), case.alpha) if second else g)
    return combine(case, parts)


@wrong("maml", "the Hessian is replaced by the outer product of the inner gradient with itself")
def empirical_fisher(case):
    def step(loss, v, phi, _, batch, query):
        g = grad(loss)(phi, batch)
        return descend(v, times(dot(g, v), g), case.alpha)

    return backward(case, step)


@wrong("maml", "Hessian-vector products by differences, with the step of DARTS, 0.01/‖v‖")
def darts_differences(case):
    def step(loss, v, phi, _, batch, query):
        eps = 0.01 / np.sqrt(dot(v, v))
        plus, minus = (grad(loss)(descend(phi, v, -sign * eps), batch) for sign in (1, -1))
        return descend(v, times(1 / (2 * eps), descend(plus, minus, 1)), case.alpha)

    return backward(case, step)


@wrong("maml", "the inner loop is pulled back to θ, as in iMAML")
def proximal_again(case, lam=0.5):
    loss = make_loss(case)

    def inner(phi, theta, batch):
        return loss(phi, batch) + lam / 2 * sum(np.sum((p - t) ** 2) for p, t in zip(phi, theta, strict=True))

    def objective(theta, supports, query):
        phi = list(theta)
        for batch in supports:
            phi = descend(phi, grad(inner)(phi, theta, batch), case.alpha)
        return loss(phi, query)

    return through(case, objective)


@wrong("maml", "biases learn at twice the rate in the inner loop, as in Caffe")
def caffe_rates(case):
    loss = make_loss(case)
    rates = [case.alpha * (2 if i % 2 else 1) for i in range(len(case.theta))]

    def objective(theta, supports, query):
        phi = list(theta)
        for batch in supports:
            phi = [p - r * g for p, r, g in zip(phi, rates, grad(loss)(phi, batch), strict=True)]
        return loss(phi, query)

    return through(case, objective)


def plain_maml(case, loss):
    return through(case, lambda theta, S, query: loss(path(loss, theta, S, case.alpha)[-1], query))


@wrong("maml", "the loss has an L2 penalty on the weight matrices")
def ridge_on_matrices(case):
    data = make_loss(case)
    return plain_maml(
        case, lambda theta, batch: data(theta, batch) + 5e-4 * sum(np.sum(t**2) for t in theta if np.ndim(t) > 1)
    )


@wrong("maml", "the labels are smoothed by 0.1")
def smooth_labels(case):
    if not labelled(case):
        return plain_maml(case, make_loss(case))
    act, reduce_ = ACTIVATIONS[case.model["activation"]], reducer(case)

    def loss(theta, batch, eps=0.1):
        h, y = batch
        for i in range(0, len(theta), 2):
            h = (act(h) if i else h) @ theta[i] + theta[i + 1]
        target = (1 - eps) * np.eye(h.shape[1])[y] + eps / h.shape[1]
        return reduce_(-np.sum(target * log_softmax(h), axis=1))

    return plain_maml(case, loss)


@wrong("maml", "batches are padded to one length, and the mean counts the padding")
def padding_counted(case):
    if is_quadratic(case):
        return plain_maml(case, quadratic)
    longest = max(len(x) for S, Q in case.tasks for x, _ in [*S, Q])
    total = make_loss(case, reduction="sum")

    def loss(theta, batch):
        entries = longest * (1 if labelled(case) else case.model["widths"][-1])
        return total(theta, batch) / (entries if case.conventions["examples"] == "mean" else 1)

    return plain_maml(case, loss)


@wrong("maml", "dropout of 0.2 in the hidden layers, with a fixed seed")
def seeded_dropout(case, rate=0.2):
    act = None if is_quadratic(case) else ACTIVATIONS[case.model["activation"]]

    def net(theta, x):
        rng = np.random.RandomState(42)
        for i in range(0, len(theta) - 2, 2):
            x = act(x @ theta[i] + theta[i + 1])
            x = x * (rng.uniform(size=x.shape) >= rate) / (1 - rate)
        return x @ theta[-2] + theta[-1]

    return plain_maml(case, make_loss(case, net))


@wrong("maml", "the objectives are closures over a loop's variables: all see the last task")
def late_closures(case):
    loss, objectives = make_loss(case), []
    for supports, query in case.tasks:
        objectives.append(lambda theta: loss(path(loss, theta, supports, case.alpha)[-1], query))
    return combine(case, [grad(objective)(list(case.theta)) for objective in objectives])


@wrong("maml", "only the last inner step is differentiated")
def truncated_to_one(case):
    loss, parts = make_loss(case), []
    for supports, query in case.tasks:
        warm = path(loss, case.theta, supports[:-1], case.alpha)[-1]
        last = partial(path, loss, supports=supports[-1:], alpha=case.alpha)
        parts.append(grad(lambda p, last=last, query=query: loss(last(p)[-1], query))(warm))
    return combine(case, parts)


@wrong("maml", "the meta-loss is the best query loss of all steps, not the last")
def best_so_far(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        best, phi = loss(theta, query), list(theta)
        for batch in supports:
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
            best = min(best, loss(phi, query))
        return best

    return through(case, objective)


@wrong("maml", "the inner gradient is clipped to ±1, entry by entry")
def entries_clipped(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        phi = list(theta)
        for batch in supports:
            clipped = [np.clip(g, -1.0, 1.0) for g in grad(loss)(phi, batch)]
            phi = descend(phi, clipped, case.alpha)
        return loss(phi, query)

    return through(case, objective)


# --- First-order MAML: one mistake ---


@wrong("fomaml", "the query gradient is divided by the number of the support's examples")
def count_of_the_support(case):
    total, mean = make_loss(case, reduction="sum"), not is_quadratic(case) and case.conventions["examples"] == "mean"
    parts = []
    for supports, query in case.tasks:
        phi, n = list(case.theta), 1
        for batch in supports:
            n = np.size(batch[1]) if mean else 1
            phi = descend(phi, times(1 / n, grad(total)(phi, batch)), case.alpha)
        parts.append(times(1 / n, grad(total)(phi, query)))
    return combine(case, parts)


@wrong("fomaml", "a second loop uses the query that the first loop left: the last task's")
def left_over_query(case):
    loss, fast = make_loss(case), []
    for supports, query in case.tasks:  # noqa: B007
        fast.append(path(loss, case.theta, supports, case.alpha)[-1])
    return combine(case, [grad(loss)(phi, query) for phi in fast])


@wrong("fomaml", "the query gradient is taken before the last update")
def before_the_update(case):
    loss, parts = make_loss(case), []
    for supports, query in case.tasks:
        phi = list(case.theta)
        for batch in supports:
            outer = grad(loss)(phi, query)
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
        parts.append(outer)
    return combine(case, parts)


@wrong("fomaml", "inner gradients are flattened column by column and restored row by row")
def column_major(case):
    loss, parts = make_loss(case), []

    def vec(arrays):
        return np.concatenate([np.ravel(a, order="F") for a in arrays])

    for supports, query in case.tasks:
        phi = list(case.theta)
        for batch in supports:
            phi = unflat(flat(phi) - case.alpha * vec(grad(loss)(phi, batch)), case.theta)
        parts.append(grad(loss)(phi, query))
    return combine(case, parts)


@wrong("fomaml", "the optimiser's weight decay, 5e-4 θ, is in the meta-gradient")
def decay_outside(case, weight_decay=5e-4):
    loss = make_loss(case)
    ends = [(path(loss, case.theta, supports, case.alpha)[-1], query) for supports, query in case.tasks]
    meta = combine(case, [grad(loss)(phi, query) for phi, query in ends])
    return [g + weight_decay * t for g, t in zip(meta, case.theta, strict=True)]


@wrong("fomaml", "the buffer is added once per task but never cleared: the first task counts T times, the last once")
def never_cleared(case):
    loss, buffer, per_task = make_loss(case), times(0, case.theta), []
    for supports, query in case.tasks:
        phi = path(loss, case.theta, supports, case.alpha)[-1]
        buffer = add([buffer, grad(loss)(phi, query)])
        per_task.append(buffer)
    return combine(case, per_task)


# --- ANIL: one mistake ---


@wrong("anil", "the first arrays adapt, not the last")
def wrong_end(case):
    loss = make_loss(case)

    def objective(theta, supports, query):
        adapting, rest = theta[: case.head], theta[case.head :]
        for batch in supports:
            g = grad(lambda a, batch=batch: loss([*a, *rest], batch))(list(adapting))
            adapting = descend(adapting, g, case.alpha)
        return loss([*adapting, *rest], query)

    return through(case, objective)


def split_objective(case, loss, adapt):
    """The query loss of θ's body with adapt(body, head, supports)."""
    cut = len(case.theta) - case.head

    def objective(theta, supports, query):
        body, head = list(theta[:cut]), list(theta[cut:])
        return loss([*body, *adapt(body, head, supports)], query)

    return objective


@wrong("anil", "the head is set to zero at the start of every task")
def head_from_zero(case):
    loss = make_loss(case)

    def adapt(body, head, supports):
        fresh = [np.zeros(np.shape(h)) for h in head]
        return path(lambda h, batch: loss([*body, *h], batch), fresh, supports, case.alpha)[-1]

    return through(case, split_objective(case, loss, adapt))


@wrong("anil", "the inner rate is the function's default, 0.1")
def default_rate(case):
    loss = make_loss(case)

    def adapt(body, head, supports, lr=0.1):
        for batch in supports:
            head = descend(head, grad(lambda h, batch=batch: loss([*body, *h], batch))(head), lr)
        return head

    return through(case, split_objective(case, loss, adapt))


@wrong("anil", "the features of the supports are constants to the outer gradient")
def features_detached(case):
    loss = make_loss(case)

    def adapt(body, head, supports):
        frozen = [getval(b) for b in body]
        return path(lambda h, batch: loss([*frozen, *h], batch), head, supports, case.alpha)[-1]

    return through(case, split_objective(case, loss, adapt))


@wrong("anil", "the body's gradient is taken with the head that has not adapted")
def two_passes(case):
    loss, cut, parts = make_loss(case), len(case.theta) - case.head, []
    body, head = list(case.theta[:cut]), list(case.theta[cut:])
    for supports, query in case.tasks:

        def of_head(h, batch):
            return loss([*body, *h], batch)

        def head_objective(h, supports=supports, query=query):
            return of_head(path(of_head, h, supports, case.alpha)[-1], query)

        parts.append([*grad(loss)([*body, *head], query)[:cut], *grad(head_objective)(head)])
    return combine(case, parts)


# --- Reptile: one mistake ---


def displacements(case, ends):
    """θ − φ of each task, under the case's convention."""
    parts = [descend(case.theta, end, 1) for end in ends]
    return combine(case, [times(1 / unit(case, S), p) for p, (S, _) in zip(parts, case.tasks, strict=True)])


@wrong("reptile", "the inner optimiser is Adam with β₁ = 0, as in OpenAI's repository")
def inner_adam(case, beta2=0.999, eps=1e-8):
    loss, ends = make_loss(case), []
    for supports, _ in case.tasks:
        phi, second = list(case.theta), times(0, case.theta)
        for t, batch in enumerate(supports, 1):
            g = grad(loss)(phi, batch)
            second = [beta2 * s + (1 - beta2) * d**2 for s, d in zip(second, g, strict=True)]
            roots = [np.sqrt(s / (1 - beta2**t)) + eps for s in second]
            phi = [p - case.alpha * d / r for p, d, r in zip(phi, g, roots, strict=True)]
        ends.append(phi)
    return displacements(case, ends)


def sgd_by_hand(case, theta, batch):
    """One step of SGD with backpropagation by hand."""
    (x, y), phi, inputs = batch, [np.array(t) for t in theta], []
    if is_quadratic(case):
        return unflat(flat(phi) - case.alpha * (x @ flat(phi) - y), theta)
    for i in range(0, len(phi), 2):
        inputs.append(ACTIVATIONS[case.model["activation"]](x) if i else x)
        x = inputs[-1] @ phi[i] + phi[i + 1]
    delta = np.exp(log_softmax(x)) - np.eye(x.shape[1])[y] if labelled(case) else 2 * (x - y)
    delta = delta / (np.size(y) if case.conventions["examples"] == "mean" else 1)
    for i in reversed(range(0, len(phi), 2)):
        h = inputs[i // 2]
        phi[i] = phi[i] - case.alpha * h.T @ delta
        phi[i + 1] = phi[i + 1] - case.alpha * delta.sum(0)
        slope = 1 - h**2 if case.model["activation"] == "tanh" else h > 0
        delta = (delta @ phi[i].T) * slope
    return phi


@wrong("reptile", "backpropagation by hand goes through weights that were updated already")
def updated_on_the_way_down(case):
    ends = [reduce(partial(sgd_by_hand, case), supports, case.theta) for supports, _ in case.tasks]
    return displacements(case, ends)


@wrong("reptile", "the inner loop never zeroes its gradients")
def no_zero_grad(case):
    loss, ends = make_loss(case), []
    for supports, _ in case.tasks:
        phi, held = list(case.theta), times(0, case.theta)
        for batch in supports:
            held = add([held, grad(loss)(phi, batch)])
            phi = descend(phi, held, case.alpha)
        ends.append(phi)
    return displacements(case, ends)


@wrong("reptile", "the query is one more training batch")
def trains_on_all(case):
    loss = make_loss(case)
    batches = [[*supports, *([query] if query is not None else [])] for supports, query in case.tasks]
    return displacements(case, [path(loss, case.theta, all_, case.alpha)[-1] for all_ in batches])


@wrong("reptile", "the end point is the average of the weights after every step")
def averaged_weights_again(case):
    loss, ends = make_loss(case), []
    for supports, _ in case.tasks:
        phis = path(loss, case.theta, supports, case.alpha)[1:]
        ends.append(times(1 / len(phis), add(phis)))
    return displacements(case, ends)


# --- Joint training: one mistake ---


@wrong("joint", "every example is scaled to length one")
def unit_inputs(case):
    loss = make_loss(case)

    def prepare(x, y):
        return (x, y) if is_quadratic(case) else (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), y)

    return combine(case, [grad(loss)(list(case.theta), prepare(*query)) for _, query in case.tasks])


@wrong("joint", "the loss is the root of the mean squared error")
def root_of_the_mean(case):
    loss = make_loss(case)
    used = (lambda theta, batch: np.sqrt(loss(theta, batch))) if case.loss["kind"] == "squared_error" else loss
    return combine(case, [grad(used)(list(case.theta), query) for _, query in case.tasks])


@wrong("joint", "it trains on the supports too")
def everything_pooled(case):
    pooled = [merged(case, [*supports, query]) for supports, query in case.tasks]
    return combine(case, [grad(make_loss(case))(list(case.theta), batch) for batch in pooled])


# --- Two mistakes ---


@wrong("maml", "momentum of 0.9 in the inner loop, whose buffer lasts from task to task", mistakes=2)
def momentum_for_all(case, mu=0.9):
    loss = make_loss(case)

    def meta_loss(theta):
        velocity, total = times(0, theta), 0.0
        for supports, query in case.tasks:
            phi = list(theta)
            for batch in supports:
                velocity = add([times(mu, velocity), grad(loss)(phi, batch)])
                phi = descend(phi, velocity, case.alpha)
            total = total + loss(phi, query)
        return total / (len(case.tasks) if case.conventions["tasks"] == "mean" else 1)

    return grad(meta_loss)(list(case.theta))


@wrong("maml", "the squared error has a factor of ½, and is summed over the outputs", mistakes=2)
def half_summed_over_outputs(case):
    data = make_loss(case)
    if case.loss["kind"] != "squared_error":
        return plain_maml(case, data)
    outputs = case.model["widths"][-1] if case.conventions["examples"] == "mean" else 1
    return plain_maml(case, lambda theta, batch: 0.5 * outputs * data(theta, batch))


@wrong("maml", "the Hessian is added, not subtracted, and taken one step late", mistakes=2)
def late_and_added(case):
    return backward(case, lambda loss, v, _, later, batch, query: descend(v, hvp(loss, later, batch, v), -case.alpha))


@wrong("maml", "the hidden layers have batch normalisation, and the last support gets a step more", mistakes=2)
def normalised_and_one_more(case):
    def net(theta, x):
        for i in range(0, len(theta) - 2, 2):
            z = x @ theta[i] + theta[i + 1]
            z = (z - np.mean(z, axis=0)) / np.sqrt(np.mean((z - np.mean(z, axis=0)) ** 2, axis=0) + 1e-5)
            x = ACTIVATIONS[case.model["activation"]](z)
        return x @ theta[-2] + theta[-1]

    loss = make_loss(case, net)
    return through(case, lambda theta, S, Q: loss(path(loss, theta, [*S, *S[-1:]], case.alpha)[-1], Q))


@wrong("maml", "the loss is PyTorch's smooth L1, and every step takes the first support", mistakes=2)
def smooth_l1_on_the_first(case):
    def huber(theta, batch):
        x, y = batch
        for i in range(0, len(theta), 2):
            x = (ACTIVATIONS[case.model["activation"]](x) if i else x) @ theta[i] + theta[i + 1]
        e = np.abs(x - y)
        return reducer(case)(np.where(e < 1, e**2 / 2, e - 0.5))

    loss = huber if case.loss["kind"] == "squared_error" else make_loss(case)
    return through(case, lambda theta, S, Q: loss(path(loss, theta, [S[0] for _ in S], case.alpha)[-1], Q))


@wrong("fomaml", "the inner rate halves at every step, and the meta-gradient's norm is clipped to 1", mistakes=2)
def halved_and_clipped(case):
    loss, parts = make_loss(case), []
    for supports, query in case.tasks:
        phi = list(case.theta)
        for k, batch in zip(count(), supports):  # noqa: B905
            phi = descend(phi, grad(loss)(phi, batch), case.alpha * 0.5**k)
        parts.append(grad(loss)(phi, query))
    meta = combine(case, parts)
    return times(min(1.0, 1.0 / (np.sqrt(dot(meta, meta)) + 1e-6)), meta)


@wrong("reptile", "φ − θ, and the last support is left out", mistakes=2)
def away_and_short(case):
    loss = make_loss(case)
    ends = []
    for supports, _ in case.tasks:
        phi = list(case.theta)
        for k in range(len(supports) - 1):
            phi = descend(phi, grad(loss)(phi, supports[k]), case.alpha)
        ends.append(phi)
    return times(-1, displacements(case, ends))


@wrong("reptile", "each step takes all batches at once, and the displacement is divided by their number", mistakes=2)
def all_at_once(case):
    loss, ends = make_loss(case), []
    for supports, _ in case.tasks:
        K = len(supports)
        end = path(loss, case.theta, [merged(case, supports)] * K, case.alpha)[-1]
        ends.append([t + (p - t) / K for t, p in zip(case.theta, end, strict=True)])
    return displacements(case, ends)


@wrong("anil", "only the last bias adapts, and to first order", mistakes=2)
def last_bias_first_order(case):
    loss, parts = make_loss(case), []
    for supports, query in case.tasks:
        *rest, bias = case.theta
        for batch in supports:
            bias = bias - case.alpha * grad(loss)([*rest, bias], batch)[-1]
        parts.append(grad(loss)([*rest, bias], query))
    return combine(case, parts)


# --- Three ---


@wrong("maml", "every step starts at θ, has weight decay, and the query is joined with the last support", mistakes=3)
def prototype_that_grew(case, decay=0.01):
    loss = make_loss(case)

    def objective(theta, supports, query):
        fast = list(theta)
        for batch in supports:
            g = [d + decay * p for d, p in zip(grad(loss)(fast, batch), fast, strict=True)]
            fast = descend(theta, g, case.alpha)
        return loss(fast, merged(case, [*supports[-1:], query]))

    return through(case, objective)


@wrong("maml", "skip connections, inner gradients that are constants, and the loss before is subtracted", mistakes=3)
def gain_over_the_start(case):
    def net(theta, x):
        for i in range(0, len(theta) - 2, 2):
            h = ACTIVATIONS[case.model["activation"]](x @ theta[i] + theta[i + 1])
            x = x + h if h.shape == x.shape else h
        return x @ theta[-2] + theta[-1]

    loss = make_loss(case, net)

    def objective(theta, supports, query):
        phi = list(theta)
        for batch in supports:
            phi = descend(phi, grad(loss)([getval(p) for p in phi], batch), case.alpha)
        return loss(phi, query) - loss(theta, query)

    return through(case, objective)


@wrong("fomaml", "the rate falls to zero over the steps, biases stay, each task's gradient has length 1", mistakes=3)
def scheduled_and_scaled(case):
    loss, parts = make_loss(case), []
    for supports, query in case.tasks:
        phi = list(case.theta)
        for k, batch in enumerate(supports):
            lr = case.alpha * (1 - k / len(supports))
            g = grad(loss)(phi, batch)
            phi = [p if n.startswith("b") else p - lr * d for n, p, d in zip(case.names, phi, g, strict=True)]
        g = grad(loss)(phi, query)
        parts.append(times(1 / (np.sqrt(dot(g, g)) + 1e-8), g))
    return combine(case, parts)
