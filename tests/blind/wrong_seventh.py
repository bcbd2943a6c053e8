"""A seventh set in NumPy: 50 wrong implementations and 8 right ones, each by another imagined author."""

from functools import reduce

import autograd.numpy as np
from autograd import grad, hessian
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


def step(loss, params, batch, lr):
    return descend(params, grad(loss)(params, batch), lr)


def detached(tree):
    return [getval(t) for t in tree]


def halves(case, theta):
    cut = len(theta) - case.head
    return list(theta[:cut]), list(theta[cut:])


# --- MAML, one mistake ---


@wrong("maml", "the query losses after every step are averaged, as MAML++ does, not the last one taken")
def losses_after_each_step(case):
    loss = make_loss(case)

    def task_loss(theta, supports, query):
        fast, losses = theta, []
        for batch in supports:
            fast = step(loss, fast, batch, case.alpha)
            losses.append(loss(fast, query))
        return sum(losses) / len(losses) if losses else loss(theta, query)

    return through(case, task_loss)


@wrong("maml", "only the last inner step keeps its graph; those before it are constants")
def graph_of_the_last_step(case):
    loss = make_loss(case)

    def task_loss(theta, supports, query):
        fast = theta
        for i, batch in enumerate(supports):
            grads = grad(loss)(fast, batch)
            create_graph = i == len(supports) - 1  # saves memory
            fast = descend(fast, grads if create_graph else detached(grads), case.alpha)
        return loss(fast, query)

    return through(case, task_loss)


@wrong("maml", "every inner step takes the first support batch")
def first_batch_every_step(case):
    loss = make_loss(case)

    def adapted_loss(theta, supports, query):
        params = theta
        for _ in range(len(supports)):
            params = step(loss, params, supports[0], case.alpha)
        return loss(params, query)

    return through(case, adapted_loss)


@wrong("maml", "the outer loss is on the query and the last support batch together")
def all_data_outside(case):
    loss = make_loss(case)

    def outer(theta, supports, query):
        fast = path(loss, theta, supports, case.alpha)[-1]
        return loss(fast, merged(case, [*supports[-1:], query]))

    return through(case, outer)


@wrong("maml", "the fast weights are not reset between the tasks", tasks="sum")
def fast_weights_leak(case):
    loss = make_loss(case)

    def meta_loss(theta):
        params, total = list(theta), 0.0
        for supports, query in case.tasks:
            for batch in supports:
                params = step(loss, params, batch, case.alpha)
            total = total + loss(params, query)
        return total

    return grad(meta_loss)(case.theta)


@wrong("maml", "every inner gradient is taken at the initial weights")
def inner_gradient_at_start(case):
    loss = make_loss(case)

    def meta_loss(theta, supports, query):
        updated = theta
        for batch in supports:
            updated = [u - case.alpha * g for u, g in zip(updated, grad(loss)(theta, batch), strict=True)]
        return loss(updated, query)

    return through(case, meta_loss)


@wrong("maml", "the meta-gradient is clipped to the global norm 1 before it is returned")
def clip_grad_norm(case):
    loss = make_loss(case)
    total = through(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q))
    norm = np.sqrt(dot(total, total))
    return times(min(1.0, 1.0 / (norm + 1e-6)), total)


@wrong("maml", "the inner rate decays by 0.9 at each step")
def decaying_inner_rate(case):
    loss = make_loss(case)

    def run(theta, supports, query):
        lr = case.alpha
        for batch in supports:
            theta = step(loss, theta, batch, lr)
            lr *= 0.9
        return loss(theta, query)

    return through(case, run)


@wrong("maml", "the inner loop updates the matrices only; biases stay")
def kernels_only(case):
    loss = make_loss(case)

    def inner_update(params, batch):
        grads = grad(loss)(params, batch)
        return [p - case.alpha * g if np.ndim(p) > 1 else p for p, g in zip(params, grads, strict=True)]

    return through(case, lambda theta, S, Q: loss(reduce(inner_update, S, theta), Q))


@wrong("maml", "the Hessian products are applied first step first")
def backwards_forwards(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        phis = path(loss, case.theta, supports, case.alpha)
        v = grad(loss)(phis[-1], query)
        for phi, batch in zip(phis, supports):  # noqa: B905
            v = descend(v, hvp(loss, phi, batch, v), case.alpha)
        per_task.append(v)
    return combine(case, per_task)


@wrong("maml", "each Hessian is taken after its step, not before it")
def popped_too_early(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        phis = path(loss, case.theta, supports, case.alpha)
        v = grad(loss)(phis[-1], query)
        while len(phis) > 1:
            phi = phis.pop()
            v = descend(v, hvp(loss, phi, supports[len(phis) - 1], v), case.alpha)
        per_task.append(v)
    return combine(case, per_task)


@wrong("maml", "each step's correction is of the query's gradient, not of what came back so far")
def corrections_added_up(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        *phis, last = path(loss, case.theta, supports, case.alpha)
        outer = grad(loss)(last, query)
        corrections = [hvp(loss, phi, batch, outer) for phi, batch in zip(phis, supports, strict=True)]
        per_task.append(descend(outer, add(corrections), case.alpha) if corrections else outer)
    return combine(case, per_task)


@wrong("maml", "Hessian products by differences over 0.01, as DARTS takes them")
def hessian_product_as_in_darts(case):
    loss, per_task = make_loss(case), []

    def product(w, batch, vector):
        r = 1e-2 / (np.sqrt(dot(vector, vector)) or 1.0)
        plus, minus = (grad(loss)(descend(w, vector, sign * r), batch) for sign in (-1, 1))
        return [(p - m) / (2 * r) for p, m in zip(plus, minus, strict=True)]

    for supports, query in case.tasks:
        ws = path(loss, case.theta, supports, case.alpha)
        vector = grad(loss)(ws.pop(), query)
        for w, batch in zip(ws[::-1], supports[::-1], strict=True):
            vector = descend(vector, product(w, batch, vector), case.alpha)
        per_task.append(vector)
    return combine(case, per_task)


@wrong("maml", "the step with the lowest query loss is taken, not the last one")
def best_checkpoint(case):
    loss = make_loss(case)

    def val_loss(theta, supports, query):
        best = loss(theta, query)
        for batch in supports:
            theta = step(loss, theta, batch, case.alpha)
            current = loss(theta, query)
            if current < best:
                best = current
        return best

    return through(case, val_loss)


@wrong("maml", "iMAML's proximal term is left in the inner loss")
def proximal_term(case, lam=0.1):
    base = make_loss(case)

    def task_loss(theta, supports, query):
        def regularised(phi, batch):
            gap = [p - t for p, t in zip(phi, theta, strict=True)]
            return base(phi, batch) + lam / 2 * dot(gap, gap)

        return base(path(regularised, theta, supports, case.alpha)[-1], query)

    return through(case, task_loss)


@wrong("maml", "biases learn at twice the rate in the inner loop, as in Caffe")
def double_rate_for_biases(case):
    loss = make_loss(case)

    def sgd(params, batch):
        lr_mult = [2 if np.ndim(p) <= 1 else 1 for p in params]
        grads = grad(loss)(params, batch)
        return [p - m * case.alpha * g for p, m, g in zip(params, lr_mult, grads, strict=True)]

    def task_loss(theta, supports, query):
        for batch in supports:
            theta = sgd(theta, batch)
        return loss(theta, query)

    return through(case, task_loss)


@wrong("maml", "the network leaves out the bias of its last layer", tasks="mean")
def output_without_bias(case):
    act = ACTIVATIONS[case.model.get("activation", "tanh")]

    def net(theta, x):
        *hidden, w, _ = theta
        for i in range(0, len(hidden), 2):
            x = act(np.dot(x, hidden[i]) + hidden[i + 1])
        return np.dot(x, w)

    loss = make_loss(case, net=net)

    def meta_loss(theta):
        losses = [loss(path(loss, theta, S, case.alpha)[-1], Q) for S, Q in case.tasks]
        return sum(losses) / len(losses)

    return grad(meta_loss)(case.theta)


@wrong("maml", "cross-entropy has 1e-7 added to the probabilities")
def epsilon_in_the_log(case):
    loss = make_loss(case)
    if labelled(case):
        act, total = ACTIVATIONS[case.model["activation"]], case.conventions["examples"] == "sum"

        def loss(theta, batch):
            x, y = batch
            probs = np.exp(log_softmax(mlp(theta, x, act)))
            nll = -np.log(probs[np.arange(len(y)), y] + 1e-7)
            return np.sum(nll) if total else np.mean(nll)

    return through(case, lambda theta, S, Q: loss(path(loss, theta, S, case.alpha)[-1], Q))


def backprop(case, theta, batch):
    """The gradient by hand."""
    x, y = batch
    if case.model["kind"] == "quadratic":
        return unflat(x @ flat(theta) - y, theta)
    name, hs = case.model["activation"], [x]
    for w, b in zip(theta[0:-2:2], theta[1:-2:2], strict=True):
        hs.append(ACTIVATIONS[name](hs[-1] @ w + b))
    out = hs[-1] @ theta[-2] + theta[-1]
    delta = np.exp(log_softmax(out)) - np.eye(out.shape[1])[y] if labelled(case) else out - y
    if case.conventions["examples"] == "mean":
        delta = delta / (len(y) if labelled(case) else np.size(y))
    grads = []
    for i in range(len(hs) - 1, -1, -1):
        grads = [hs[i].T @ delta, np.sum(delta, axis=0), *grads]
        if i:
            delta = (delta @ theta[2 * i].T) * (1 - hs[i] ** 2 if name == "tanh" else 1.0 * (hs[i] > 0))
    return grads


@wrong("maml", "the inner gradient, written by hand, is that of half the squared error")
def backprop_without_the_two(case):
    loss = make_loss(case)

    def task_loss(theta, supports, query):
        for batch in supports:
            theta = descend(theta, backprop(case, theta, batch), case.alpha)
        return loss(theta, query)

    return through(case, task_loss)


# --- MAML, two mistakes and three ---


@wrong("maml", "I + αH for I − αH; and the Hessian is the query's", mistakes=2)
def chain_rule_from_memory(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        phis = path(loss, case.theta, supports, case.alpha)
        g = grad(loss)(phis[-1], query)
        for phi in phis[-2::-1]:
            g = descend(g, hvp(loss, phi, query, g), -case.alpha)
        per_task.append(g)
    return combine(case, per_task)


@wrong("maml", "momentum 0.9 in the inner loop; and the meta-loss is divided by the number of steps", mistakes=2)
def prototype_with_momentum(case):
    loss = make_loss(case)

    def task_loss(theta, supports, query):
        velocity = [0 * t for t in theta]
        for batch in supports:
            velocity = [0.9 * v + g for v, g in zip(velocity, grad(loss)(theta, batch), strict=True)]
            theta = descend(theta, velocity, case.alpha)
        return loss(theta, query) / max(len(supports), 1)

    return through(case, task_loss)


@wrong("maml", "the inner gradients are constants; and the inner optimiser has weight decay 0.01", mistakes=2)
def sgd_with_weight_decay(case):
    loss = make_loss(case)

    def task_loss(theta, supports, query):
        fast = theta
        for batch in supports:
            grads = detached(grad(loss)(fast, batch))
            fast = [p - case.alpha * (g + 0.01 * p) for p, g in zip(fast, grads, strict=True)]
        return loss(fast, query)

    return through(case, task_loss)


@wrong("maml", "the last layer is activated too; and the last inner step is left out", mistakes=2)
def homework_sequential(case):
    act = ACTIVATIONS[case.model.get("activation", "tanh")]

    def forward(theta, x):
        for layer in range(len(theta) // 2):
            x = act(x @ theta[2 * layer] + theta[2 * layer + 1])
        return x

    loss = make_loss(case, net=forward)

    def task_loss(theta, supports, query):
        for k in range(len(supports) - 1):
            theta = step(loss, theta, supports[k], case.alpha)
        return loss(theta, query)

    return through(case, task_loss)


@wrong(
    "maml",
    "the first step has no graph; the query loss is a sum over the examples; divided by the number of tasks once more",
    mistakes=3,
    tasks="mean",
)
def kaggle_notebook(case):
    inner, outer = make_loss(case), make_loss(case, reduction="sum")
    losses = []
    n = len(case.tasks)
    for supports, query in case.tasks:

        def query_loss(theta, supports=supports, query=query):
            fast = list(theta)
            if supports:
                fast = descend(fast, detached(grad(inner)(fast, supports[0])), case.alpha)
            for batch in supports[1:]:
                fast = step(inner, fast, batch, case.alpha)
            return outer(fast, query) / n

        losses.append(grad(query_loss)(case.theta))
    return times(1 / n, add(losses))


@wrong(
    "maml",
    "the support batches are popped from the end; inner gradients have length 1; an odd query loses its last example",
    mistakes=3,
)
def popped_batches(case):
    loss = make_loss(case)

    def task_loss(theta, supports, query):
        queue = list(supports)
        while queue:
            g = grad(loss)(theta, queue.pop())
            theta = descend(theta, g, case.alpha / np.sqrt(dot(g, g) + 1e-12))
        if case.model["kind"] == "mlp":
            n = len(query[0]) // 2 * 2 or len(query[0])
            query = query[0][:n], query[1][:n]
        return loss(theta, query)

    return through(case, task_loss)


# --- First-order MAML ---


@wrong("fomaml", "the inner gradients add up from step to step: they are not zeroed", tasks="mean")
def no_zero_grad_inside(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        fast, buffer = case.theta, [0.0 * t for t in case.theta]
        for batch in supports:
            buffer = add([buffer, grad(loss)(fast, batch)])
            fast = descend(fast, buffer, case.alpha)
        per_task.append(grad(loss)(fast, query))
    return times(1 / len(per_task), add(per_task))


class Learner:
    """A network with its gradients, as in PyTorch."""

    def __init__(self, theta, loss):
        self.params, self.loss = [np.array(t) for t in theta], loss
        self.zero_grad()

    def zero_grad(self):
        self.grads = [0.0 * p for p in self.params]

    def backward(self, batch):
        self.grads = add([self.grads, grad(self.loss)(self.params, batch)])

    def step(self, lr):
        self.params = descend(self.params, self.grads, lr)


@wrong("fomaml", "the gradient of the last support batch is still in the buffer when the query's is added")
def no_zero_grad_before_the_query(case):
    found = []
    for supports, query in case.tasks:
        learner = Learner(case.theta, make_loss(case))
        for batch in supports:
            learner.zero_grad()
            learner.backward(batch)
            learner.step(case.alpha)
        learner.backward(query)
        found.append(learner.grads)
    return combine(case, found)


@wrong("fomaml", "the losses close over the loop's variable, so that all tasks are asked the last one's query")
def late_binding(case):
    loss, adapted, query_losses = make_loss(case), [], []
    for supports, query in case.tasks:
        adapted.append(path(loss, case.theta, supports, case.alpha)[-1])
        query_losses.append(lambda params: loss(params, query))
    return combine(case, [grad(f)(phi) for f, phi in zip(query_losses, adapted, strict=True)])


@wrong("fomaml", "the fast weights are stored in single precision")
def float32_fast_weights(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        fast = case.theta
        for batch in supports:
            fast = [p.astype(np.float32) for p in map(np.asarray, step(loss, fast, batch, case.alpha))]
        per_task.append(grad(loss)([p.astype(float) for p in fast], query))
    return combine(case, per_task)


@wrong("fomaml", "the weights are updated after every task, so that the next one starts elsewhere")
def outer_step_per_task(case):
    loss, theta, per_task = make_loss(case), list(case.theta), []
    meta_lr = 0.01
    for supports, query in case.tasks:
        g = grad(loss)(path(loss, theta, supports, case.alpha)[-1], query)
        theta = descend(theta, g, meta_lr)
        per_task.append(g)
    return combine(case, per_task)


@wrong("fomaml", "the last displacement is returned, α times the gradient")
def as_a_step_on_the_query(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        *_, before, after = path(loss, case.theta, [*supports, query], case.alpha)
        per_task.append([b - a for a, b in zip(after, before, strict=True)])
    return combine(case, per_task)


@wrong("fomaml", "the first support batch is skipped; and the inner rate is divided by the number of tasks", mistakes=2)
def gradient_accumulation(case):
    loss, n = make_loss(case), len(case.tasks)
    total = [np.zeros_like(t) for t in case.theta]
    for supports, query in case.tasks:
        fast = case.theta
        for k in range(1, len(supports)):
            fast = step(lambda p, batch: loss(p, batch) / n, fast, supports[k], case.alpha)
        weight = 1 / n if case.conventions["tasks"] == "mean" else 1
        total = descend(total, grad(loss)(fast, query), -weight)
    return total


@wrong("fomaml", "the last support batch is taken for the query; and inner gradients are clipped to norm 1", mistakes=2)
def nichols_last_gradient(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        phi = case.theta
        for batch in supports:
            g = grad(loss)(phi, batch)
            phi = descend(phi, g, case.alpha / max(1.0, float(np.sqrt(dot(g, g)))))
        per_task.append(grad(loss)(phi, supports[-1] if supports else query))
    return combine(case, per_task)


# --- ANIL ---


@wrong("anil", "the body adapts and the head stays")
def inverted_mask(case):
    loss = make_loss(case)
    mask = [i >= len(case.theta) - case.head for i in range(len(case.theta))]

    def task_loss(theta, supports, query):
        for batch in supports:
            grads = grad(loss)(theta, batch)
            theta = [p if m else p - case.alpha * g for p, g, m in zip(theta, grads, mask, strict=True)]
        return loss(theta, query)

    return through(case, task_loss)


@wrong("anil", "the features of the supports are constants: the body has no gradient through the adapted head")
def features_without_graph(case):
    loss = make_loss(case)

    def task_loss(theta, supports, query):
        body, head = halves(case, theta)
        frozen = detached(body)
        for batch in supports:
            head = step(lambda h, b: loss([*frozen, *h], b), head, batch, case.alpha) if head else head
        return loss([*body, *head], query)

    return through(case, task_loss)


@wrong("anil", "the head's gradient is taken in the adapted head, not in the initial one")
def gradient_of_the_fast_head(case):
    loss = make_loss(case)

    def fast_head(body, head, supports):
        for batch in supports:
            head = step(lambda h, b: loss([*body, *h], b), head, batch, case.alpha) if head else head
        return head

    per_task = []
    for supports, query in case.tasks:
        body, head = halves(case, case.theta)
        g_body = grad(lambda b: loss([*b, *fast_head(b, head, supports)], query))(body) if body else []
        fast = fast_head(body, head, supports)
        g_head = grad(lambda h: loss([*body, *h], query))(fast) if fast else []
        per_task.append([*g_body, *g_head])
    return combine(case, per_task)


@wrong("anil", "the size of the head is read as a number of layers: twice as many arrays adapt")
def head_counts_layers(case):
    loss, n = make_loss(case), len(case.theta)
    first = max(n - 2 * case.head, 0)

    def task_loss(theta, supports, query):
        for batch in supports:
            grads = grad(loss)(theta, batch)
            theta = [theta[i] - case.alpha * grads[i] if i >= first else theta[i] for i in range(n)]
        return loss(theta, query)

    return through(case, task_loss)


@wrong("anil", "of the head only its first array adapts; the bias stays")
def classifier_weight_only(case):
    loss = make_loss(case)

    def task_loss(theta, supports, query):
        body, head = halves(case, theta)
        for batch in supports:
            if head:
                weight, *bias = head
                g = grad(lambda w: loss([*body, w, *bias], batch))(weight)
                head = [weight - case.alpha * g, *bias]
        return loss([*body, *head], query)

    return through(case, task_loss)


@wrong("anil", "the body's gradient is times 0.1; and the last support batch is taken for one step more", mistakes=2)
def slow_body_and_one_step_more(case):
    loss = make_loss(case)

    def task_loss(theta, supports, query):
        body, head = halves(case, theta)
        for k in range(len(supports) + 1):
            if supports and head:
                batch = supports[min(k, len(supports) - 1)]
                head = step(lambda h, b: loss([*body, *h], b), head, batch, case.alpha)
        return loss([*body, *head], query)

    body, head = halves(case, through(case, task_loss))
    return [*times(0.1, body), *head]


@wrong(
    "anil",
    "no second order; the inner loss is a sum over the examples; the body's gradient is at the unadapted head",
    mistakes=3,
)
def two_optimisers(case):
    outer, inner = make_loss(case), make_loss(case, reduction="sum")
    per_task = []
    for supports, query in case.tasks:
        body, head = halves(case, case.theta)
        body_grads = grad(outer)([*body, *head], query)[: len(body)]
        for batch in supports:
            grads = grad(inner)([*body, *head], batch)[len(body) :]
            head = descend(head, grads, case.alpha)
        head_grads = grad(outer)([*body, *head], query)[len(body) :]
        per_task.append([*body_grads, *head_grads])
    return combine(case, per_task)


# --- Reptile ---


@wrong("reptile", "the network is not set back between the tasks", tasks="mean")
def never_set_back(case):
    learner, old, moved = Learner(case.theta, make_loss(case)), list(case.theta), []
    for supports, _ in case.tasks:
        for batch in supports:
            learner.zero_grad()
            learner.backward(batch)
            learner.step(case.alpha)
        moved.append(times(1 / unit(case, supports), descend(old, learner.params, 1)))
    return times(1 / len(moved), add(moved))


@wrong("reptile", "the inner optimiser is Adam with β₁ = 0, as in OpenAI's code")
def port_of_openais_adam(case, beta2=0.999):
    loss, per_task = make_loss(case), []
    for supports, _ in case.tasks:
        theta, v = case.theta, [0.0 * t for t in case.theta]
        for t, batch in enumerate(supports, 1):
            g = grad(loss)(theta, batch)
            v = [beta2 * a + (1 - beta2) * b**2 for a, b in zip(v, g, strict=True)]
            scaled = [b / (np.sqrt(a / (1 - beta2**t)) + 1e-8) for a, b in zip(v, g, strict=True)]
            theta = descend(theta, scaled, case.alpha)
        per_task.append(times(1 / unit(case, supports), descend(case.theta, theta, 1)))
    return combine(case, per_task)


@wrong("reptile", "the query is trained on as well, as a last batch")
def trained_on_everything(case):
    loss, moves = make_loss(case), []
    for supports, query in case.tasks:
        batches = [b for b in (*supports, query) if b is not None]
        end = path(loss, case.theta, batches, case.alpha)[-1]
        moves.append([(t - e) / (unit(case, batches) or 1) for t, e in zip(case.theta, end, strict=True)])
    return combine(case, moves)


@wrong("reptile", "the old weights are saved after the first step, not before it")
def saved_too_late(case):
    loss, per_task = make_loss(case), []
    for supports, _ in case.tasks:
        weights, old = case.theta, None
        for batch in supports:
            weights = step(loss, weights, batch, case.alpha)
            if old is None:
                old = [np.copy(w) for w in weights]
        diff = descend(old or weights, weights, 1)
        per_task.append([d / unit(case, supports) for d in diff])
    return combine(case, per_task)


@wrong("reptile", "the outer step size 0.1 is part of the answer")
def interpolated(case, epsilon=0.1):
    loss, per_task = make_loss(case), []
    for supports, _ in case.tasks:
        after = path(loss, case.theta, supports, case.alpha)[-1]
        new = [t + epsilon * (a - t) for t, a in zip(case.theta, after, strict=True)]
        per_task.append(times(1 / unit(case, supports), descend(case.theta, new, 1)))
    return combine(case, per_task)


@wrong("reptile", "φ − θ for θ − φ; and every step takes all the batches in one", mistakes=2)
def full_batch_the_other_way(case):
    loss, directions = make_loss(case), []
    for supports, _ in case.tasks:
        phi = case.theta
        for _ in supports:
            phi = step(loss, phi, merged(case, supports), case.alpha)
        directions.append(times(1 / unit(case, supports), descend(phi, case.theta, 1)))
    return combine(case, directions)


# --- Joint training ---


@wrong("joint", "the gradient is that of the first support batch, not of the query")
def train_split(case):
    loss = make_loss(case)
    train = [supports[0] if supports else query for supports, query in case.tasks]
    return combine(case, [grad(loss)(case.theta, batch) for batch in train])


@wrong("joint", "the squared error is summed over the outputs")
def summed_over_outputs(case):
    loss = make_loss(case)
    if case.loss["kind"] == "squared_error" and case.conventions["examples"] == "mean":
        act = ACTIVATIONS[case.model["activation"]]

        def loss(theta, batch):
            return np.mean(np.sum(errors(case, mlp(theta, batch[0], act), batch[1]), axis=1))

    return through(case, lambda theta, _, query: loss(theta, query))


@wrong("joint", "an L2 penalty of 0.001 on the matrices is part of the loss", tasks="sum")
def kernel_regulariser(case):
    loss = make_loss(case)

    def penalised(theta, batch):
        kernels = [w for w in theta if np.ndim(w) == 2]
        return loss(theta, batch) + 1e-3 * sum(np.sum(w**2) for w in kernels)

    return add(grad(penalised)(case.theta, query) for _, query in case.tasks)


@wrong("joint", "the last task's loss replaces the others; and the gradient is clipped at ±0.5", mistakes=2)
def overwritten_and_clipped(case):
    loss, weight = make_loss(case), 1 / len(case.tasks) if case.conventions["tasks"] == "mean" else 1

    def objective(theta):
        for _, query in case.tasks:
            total = weight * loss(theta, query)
        return total

    return [np.clip(g, -0.5, 0.5) for g in grad(objective)(case.theta)]


# --- Right ones ---


@right("maml", "the whole Jacobian of the inner loop, from whole Hessians")
def whole_jacobian(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        phi, jacobian = flat(case.theta), np.eye(len(flat(case.theta)))
        for batch in supports:

            def value(vector, batch=batch):
                return loss(unflat(vector, case.theta), batch)

            jacobian = jacobian - case.alpha * hessian(value)(phi) @ jacobian
            phi = phi - case.alpha * grad(value)(phi)
        outer = flat(grad(loss)(unflat(phi, case.theta), query))
        per_task.append(unflat(jacobian.T @ outer, case.theta))
    return combine(case, per_task)


@right("maml", "by recursion: MAML with a step less, pulled back through the first one")
def recursive(case):
    loss = make_loss(case)

    def pull(theta, supports, query):
        if not supports:
            return grad(loss)(theta, query)
        first, *rest = supports
        v = pull(step(loss, theta, first, case.alpha), rest, query)
        return descend(v, hvp(loss, theta, first, v), case.alpha)

    return combine(case, [pull(case.theta, S, Q) for S, Q in case.tasks])


@right("maml", "the multipliers of the inner steps, all at once, from one linear system")
def lagrange_multipliers(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        *phis, last = path(loss, case.theta, supports, case.alpha)
        d, K = len(flat(case.theta)), len(phis)
        system, known = np.eye((K + 1) * d), np.zeros((K + 1) * d)
        known[K * d :] = flat(grad(loss)(last, query))
        for k, (phi, batch) in enumerate(zip(phis, supports, strict=True)):
            H = hessian(lambda t, batch=batch: loss(unflat(t, case.theta), batch))(flat(phi))
            system[k * d : (k + 1) * d, (k + 1) * d : (k + 2) * d] = case.alpha * H - np.eye(d)
        per_task.append(unflat(np.linalg.solve(system, known)[:d], case.theta))
    return combine(case, per_task)


@right("fomaml", "as in PyTorch: a learner with buffers, zeroed before every backward")
def learner_with_buffers(case):
    found = []
    for supports, query in case.tasks:
        learner = Learner(case.theta, make_loss(case))
        for batch in supports:
            learner.zero_grad()
            learner.backward(batch)
            learner.step(case.alpha)
        learner.zero_grad()
        learner.backward(query)
        found.append(learner.grads)
    return combine(case, found)


@right("anil", "on one long vector, with a mask of ones where the head is")
def masked_vector(case):
    loss, size = make_loss(case), sum(np.size(t) for t in case.theta)
    mask = np.arange(size) >= size - sum(np.size(t) for t in halves(case, case.theta)[1])

    def value(vector, batch):
        return loss(unflat(vector, case.theta), batch)

    def task_loss(theta, supports, query):
        w = flat(theta)
        for batch in supports:
            w = w - case.alpha * mask * grad(value)(w, batch)
        return value(w, query)

    return through(case, task_loss)


@right("anil", "by hand on vectors: back through each step go the head's whole rows of the Hessian")
def rows_of_the_hessian(case):
    loss, per_task = make_loss(case), []
    for supports, query in case.tasks:
        head = sum(np.size(t) for t in halves(case, case.theta)[1])
        points = [flat(case.theta)]
        for batch in supports:
            g = flat(grad(loss)(unflat(points[-1], case.theta), batch))
            g[: len(g) - head] = 0
            points.append(points[-1] - case.alpha * g)
        v = flat(grad(loss)(unflat(points[-1], case.theta), query))
        for w, batch in zip(points[-2::-1], supports[::-1], strict=True):
            H = hessian(lambda t, batch=batch: loss(unflat(t, case.theta), batch))(w)
            v = v - case.alpha * v[len(v) - head :] @ H[len(v) - head :]
        per_task.append(unflat(v, case.theta))
    return combine(case, per_task)


@right("reptile", "the inner gradients added up, by name")
def gradients_by_name(case):
    loss, answers = make_loss(case), []
    for supports, _ in case.tasks:
        net, moved = dict(zip(case.names, case.theta, strict=True)), dict.fromkeys(case.names, 0.0)
        for batch in supports:
            for name, g in zip(case.names, grad(loss)(list(net.values()), batch), strict=True):
                net[name] = net[name] - case.alpha * g
                moved[name] = moved[name] + case.alpha * g
        factor = 1 / unit(case, supports)
        answers.append([factor * (moved[name] + 0 * t) for name, t in zip(case.names, case.theta, strict=True)])
    return dict(zip(case.names, combine(case, answers), strict=True))


@right("joint", "one gradient of the sum, tasks from the last to the first", tasks="sum")
def one_gradient_in_reverse(case):
    loss, queries = make_loss(case), [query for _, query in reversed(case.tasks)]
    return grad(lambda theta: reduce(lambda total, q: total + loss(theta, q), queries, 0.0))(case.theta)
