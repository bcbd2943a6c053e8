"""Wrong ones in JAX, the fifth set, and four right ones: thirty-four authors who had read a paper."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from refmeta.conformance import Skip
from tests.blind.common_jax import (
    adapt,
    add,
    errors,
    make_loss,
    maml_of,
    mean_or_sum,
    same_steps,
    sgd,
    stacked,
    tasks_of,
    theta_of,
    tree_map,
)
from tests.blind.registry import right, wrong


def activation(case):
    return {"tanh": jnp.tanh, "relu": jax.nn.relu}[case.model.get("activation", "tanh")]


def loss_of(case, errors_of):
    """The case's loss with the author's own errors."""
    if case.model["kind"] == "quadratic":
        return make_loss(case)

    def net(theta, x):
        for i in range(0, len(theta), 2):
            x = (activation(case)(x) if i else x) @ theta[i] + theta[i + 1]
        return x

    return lambda theta, batch: errors_of(net(theta, batch[0]), batch[1])


def objective(case, loss, theta):
    return mean_or_sum(case, [loss(adapt(loss, theta, S, case.alpha), Q) for S, Q in tasks_of(case)])


# --- MAML: the backward pass by hand ---


def hvp(loss, phi, batch, v):
    return jax.jvp(lambda p: jax.grad(loss)(p, batch), (phi,), (v,))[1]


def forward(loss, theta, supports, lr):
    phis = [theta]
    for batch in supports:
        phis.append(sgd(phis[-1], jax.grad(loss)(phis[-1], batch), lr))
    return phis


@wrong("maml", "all Hessians are taken at theta")
def hessians_at_the_start(case):
    loss, theta, parts = make_loss(case), theta_of(case), []
    for supports, query in tasks_of(case):
        phi = adapt(loss, theta, supports, case.alpha)
        v = jax.grad(loss)(phi, query)
        for batch in reversed(supports):
            v = sgd(v, hvp(loss, theta, batch, v), case.alpha)
        parts.append(v)
    return mean_or_sum(case, parts)


@wrong("maml", "the factors of the chain rule are applied first step first")
def chain_in_forward_order(case):
    loss, theta, parts = make_loss(case), theta_of(case), []
    for supports, query in tasks_of(case):
        *phis, last = forward(loss, theta, supports, case.alpha)
        v = jax.grad(loss)(last, query)
        for phi, batch in zip(phis, supports, strict=True):
            v = sgd(v, hvp(loss, phi, batch, v), case.alpha)
        parts.append(v)
    return mean_or_sum(case, parts)


@wrong("maml", "the Hessians' products with the query gradient are summed: no products of two Hessians")
def corrections_summed(case):
    def task_gradient(loss, theta, supports, query):
        *phis, last = forward(loss, theta, supports, case.alpha)
        q = jax.grad(loss)(last, query)
        terms = [hvp(loss, phi, batch, q) for phi, batch in zip(phis, supports, strict=True)]
        return sgd(q, add(terms), case.alpha) if terms else q

    theta = theta_of(case)
    return mean_or_sum(case, [task_gradient(make_loss(case), theta, *task) for task in tasks_of(case)])


@wrong("maml", "the Hessian is the query's", tasks="mean")
def hessian_of_the_query(case):
    loss, theta, total = make_loss(case), theta_of(case), None
    for supports, query in tasks_of(case):
        *phis, last = forward(loss, theta, supports, case.alpha)
        v = jax.grad(loss)(last, query)
        for phi in reversed(phis):
            v = sgd(v, hvp(loss, phi, query, v), case.alpha)
        total = v if total is None else add([total, v])
    return [leaf / len(case.tasks) for leaf in total]


@wrong("maml", "Hv is added; the query is the last support batch", mistakes=2)
def sign_of_the_correction(case):
    loss, theta, parts = make_loss(case), theta_of(case), []
    for supports, query in tasks_of(case):
        *phis, last = forward(loss, theta, supports, case.alpha)
        v = jax.grad(loss)(last, [query, *supports][-1])
        for phi, batch in zip(phis[::-1], supports[::-1], strict=True):
            v = tree_map(lambda a, h: a + case.alpha * h, v, hvp(loss, phi, batch, v))
        parts.append(v)
    return mean_or_sum(case, parts)


# --- MAML: jax.grad of an objective ---


@wrong("maml", "batches are padded to one size, and the mean counts the padding")
def padded(case):
    if case.model["kind"] == "quadratic":
        loss = make_loss(case)
        return jax.grad(partial(objective, case, loss))(theta_of(case))
    n = max(len(b[0]) for S, Q in case.tasks for b in [*S, Q])

    def masked(out, y):
        here = errors(case, out, y).reshape(len(y), -1)
        here = jnp.pad(here, ((0, n - len(y)), (0, 0)))
        return getattr(jnp, case.conventions["examples"])(here)

    return jax.grad(partial(objective, case, loss_of(case, masked)))(theta_of(case))


@wrong("maml", "the inner gradient is the mean over the tasks, which adapt as one")
def adapts_as_one(case):
    loss, tasks = make_loss(case), tasks_of(case)

    def meta_loss(theta):
        for batches in zip(*[S for S, _ in tasks], strict=False):
            g = jax.grad(lambda p, bs=batches: sum(loss(p, b) for b in bs) / len(bs))(theta)
            theta = sgd(theta, g, case.alpha)
        return mean_or_sum(case, [loss(theta, Q) for _, Q in tasks])

    return jax.grad(meta_loss)(theta_of(case))


@wrong("maml", "a skip connection wherever the widths allow one")
def skip_connections(case):
    def net(theta, x):
        for i in range(0, len(theta), 2):
            h = (activation(case)(x) if i else x) @ theta[i] + theta[i + 1]
            x = x + h if i and h.shape == x.shape else h
        return x

    return jax.grad(partial(objective, case, make_loss(case, net)))(theta_of(case))


@wrong("maml", "the activation is relu, whatever the case says")
def relu_network(case):
    def net(theta, x):
        *hidden, (w, b) = zip(theta[::2], theta[1::2], strict=True)
        for v, c in hidden:
            x = jax.nn.relu(x @ v + c)
        return x @ w + b

    loss = make_loss(case, net)
    return maml_of(case, lambda _, theta, S, Q: loss(adapt(loss, theta, S, case.alpha), Q))


@wrong("maml", "supports and queries come from two draws: each task has the next one's query")
def two_draws(case):
    loss = make_loss(case)
    supports, queries = map(list, zip(*tasks_of(case), strict=True))
    queries = queries[1:] + queries[:1]

    def meta_loss(theta):
        adapted = [adapt(loss, theta, S, case.alpha) for S in supports]
        return mean_or_sum(case, list(map(loss, adapted, queries)))

    return jax.grad(meta_loss)(theta_of(case))


@wrong("maml", "inner gradients are clipped to a norm of 1")
def clipped_by_norm(case):
    def step(loss, phi, batch):
        g = jax.grad(loss)(phi, batch)
        norm = jnp.sqrt(jnp.maximum(sum(jnp.vdot(leaf, leaf) for leaf in g), 1.0))  # of 0 it would give NaN
        return tree_map(lambda p, d: p - case.alpha * d / norm, phi, g)

    def episode(loss, theta, supports, query):
        for batch in supports:
            theta = step(loss, theta, batch)
        return loss(theta, query)

    return maml_of(case, episode)


@wrong("maml", "the outer loss is that of the query and of the last support batch")
def train_and_validation(case):
    def episode(loss, theta, supports, query):
        phi = adapt(loss, theta, supports, case.alpha)
        train_loss = loss(phi, supports[-1]) if supports else 0.0
        return train_loss + loss(phi, query)

    return maml_of(case, episode)


@wrong("maml", "phi is cut off from theta at every second step; a loss scale of 128 stays in", mistakes=2)
def truncated_and_scaled(case, every=2, scale=128.0):
    def episode(loss, theta, supports, query):
        for k, batch in enumerate(supports):
            if k and k % every == 0:
                theta = lax.stop_gradient(theta)
            theta = sgd(theta, jax.grad(loss)(theta, batch), case.alpha)
        return scale * loss(theta, query)

    return maml_of(case, episode)


@wrong("maml", "the inner loss has a proximal term; the mean over the tasks is taken twice", mistakes=2, tasks="mean")
def proximal(case, lam=0.1):
    loss, tasks = make_loss(case), tasks_of(case)

    def regularised(phi, batch, theta):
        return loss(phi, batch) + lam / 2 * sum(jnp.sum((p - t) ** 2) for p, t in zip(phi, theta, strict=True))

    def task_loss(theta, supports, query):
        phi = theta
        for batch in supports:
            phi = sgd(phi, jax.grad(regularised)(phi, batch, theta), case.alpha)
        return loss(phi, query) / len(tasks)

    total = add([jax.grad(task_loss)(theta_of(case), *task) for task in tasks])
    return tree_map(lambda g: g / len(tasks), total)


@wrong(
    "maml",
    "at most three steps; the inner step is a running mean of gradients; the result is clamped to ±1",
    mistakes=3,
)
def settings_left_over(case, max_steps=3, decay=0.9):
    def episode(loss, theta, supports, query):
        m = tree_map(jnp.zeros_like, theta)
        for batch in supports[:max_steps]:
            m = tree_map(lambda a, g: decay * a + (1 - decay) * g, m, jax.grad(loss)(theta, batch))
            theta = sgd(theta, m, case.alpha)
        return loss(theta, query)

    return [jnp.clip(g, -1.0, 1.0) for g in maml_of(case, episode)]


# --- First-order MAML ---


@wrong("fomaml", "stop_gradient stands around the parameters and not around their gradient")
def stopped_the_other(case):
    def episode(loss, theta, supports, query):
        for batch in supports:
            theta = sgd(lax.stop_gradient(theta), jax.grad(loss)(theta, batch), case.alpha)
        return loss(theta, query)

    return maml_of(case, episode)


@wrong("fomaml", "no stop_gradient: this is MAML", tasks="mean")
def with_second_order(case):
    loss, tasks = make_loss(case), tasks_of(case)

    @jax.value_and_grad
    def meta(theta):
        return sum(loss(adapt(loss, theta, S, case.alpha), Q) for S, Q in tasks) / len(tasks)

    return meta(theta_of(case))[1]


@wrong("fomaml", "adapts to the query too, after the supports")
def leaked_query(case):
    loss, parts = make_loss(case), []
    for supports, query in tasks_of(case):
        phi = adapt(loss, theta_of(case), [*supports, query], case.alpha)
        parts.append(jax.grad(loss)(phi, query))
    return mean_or_sum(case, parts)


@wrong("fomaml", "batches from the end, α over the number of tasks, each task's gradient at length 1", mistakes=3)
def balanced_tasks(case):
    loss, parts = make_loss(case), []
    for supports, query in tasks_of(case):
        phi, queue = theta_of(case), list(supports)
        while queue:
            phi = sgd(phi, jax.grad(loss)(phi, queue.pop()), case.alpha / len(case.tasks))
        g, restore = ravel_pytree(jax.grad(loss)(phi, query))
        parts.append(restore(g / (jnp.linalg.norm(g) + 1e-12)))
    return mean_or_sum(case, parts)


# --- ANIL ---


def parted(case, theta):
    cut = len(theta) - case.head
    return theta[:cut], theta[cut:]


def adapted_head(case, loss, body, head, supports):
    for batch in supports:
        head = sgd(head, jax.grad(lambda h, b=batch: loss([*body, *h], b))(head), case.alpha)
    return head


@wrong("anil", "differentiates in the head alone: zeros for the body")
def gradient_of_the_head(case):
    loss, parts = make_loss(case), []
    body, head = parted(case, theta_of(case))
    for supports, query in tasks_of(case):
        g = jax.grad(lambda h, S=supports, Q=query: loss([*body, *adapted_head(case, loss, body, h, S)], Q))(head)
        parts.append([*map(jnp.zeros_like, body), *g])
    return mean_or_sum(case, parts)


@wrong("anil", "the mask of what adapts is all ones: its two terms are the wrong way round")
def mask_of_ones(case):
    def episode(loss, theta, supports, query):
        mask = [float(i >= case.head - len(theta)) for i in range(len(theta))]
        for batch in supports:
            g = jax.grad(loss)(theta, batch)
            theta = [p - case.alpha * m * d for p, m, d in zip(theta, mask, g, strict=True)]
        return loss(theta, query)

    return maml_of(case, episode)


@wrong("anil", "each task begins with a head of zeros")
def fresh_head(case):
    def episode(loss, theta, supports, query):
        body, head = parted(case, theta)
        head = adapted_head(case, loss, body, [jnp.zeros_like(h) for h in head], supports)
        return loss([*body, *head], query)

    return maml_of(case, episode)


@wrong("anil", "cross-entropy is -log(softmax + 1e-6)")
def log_of_softmax(case):
    def safe(out, y):
        if case.loss["kind"] != "cross_entropy":
            return getattr(jnp, case.conventions["examples"])(errors(case, out, y))
        p = jax.nn.softmax(out)[jnp.arange(len(y)), y]
        return getattr(jnp, case.conventions["examples"])(-jnp.log(p + 1e-6))

    loss = loss_of(case, safe)

    def meta(theta):
        body, head = parted(case, theta)
        return mean_or_sum(
            case, [loss([*body, *adapted_head(case, loss, body, head, S)], Q) for S, Q in tasks_of(case)]
        )

    return jax.grad(meta)(theta_of(case))


@wrong("anil", "one step too many, on the last batch; the body's gradient is multiplied by 0.1", mistakes=2)
def discriminative_rates(case):
    def episode(loss, theta, supports, query):
        body, head = parted(case, theta)
        head = adapted_head(case, loss, body, head, supports)
        head = adapted_head(case, loss, body, head, supports[-1:])
        return loss([*body, *head], query)

    body, head = parted(case, maml_of(case, episode))
    return [0.1 * g for g in body] + head


# --- Reptile ---


def divided(case, supports, delta):
    by = {"displacement": 1, "over_alpha": case.alpha, "over_alpha_k": case.alpha * len(supports)}
    return tree_map(lambda d: d / by[case.conventions["reptile"]], delta)


def minus(a, b):
    return tree_map(jnp.subtract, a, b)


@wrong("reptile", "the displacement is divided by the number of steps")
def per_step(case):
    loss, theta = make_loss(case), theta_of(case)
    moved = []
    for supports, _ in tasks_of(case):
        delta = minus(theta, adapt(loss, theta, supports, case.alpha))
        moved.append(divided(case, supports, tree_map(lambda d: d / len(supports), delta)))
    return mean_or_sum(case, moved)


@wrong("reptile", "the loop keeps the last update alone")
def last_update(case):
    loss, moved = make_loss(case), []
    for supports, _ in tasks_of(case):
        phi = theta_of(case)
        for batch in supports:
            update = tree_map(lambda g: case.alpha * g, jax.grad(loss)(phi, batch))
            phi = minus(phi, update)
        moved.append(divided(case, supports, update))
    return mean_or_sum(case, moved)


@wrong("reptile", "of an odd number of examples the last is dropped, for two devices")
def sharded(case, devices=2):
    def even(batch):
        n = len(batch[0]) // devices * devices
        return tuple(a[:n] for a in batch) if case.model["kind"] == "mlp" else batch

    loss, theta = make_loss(case), theta_of(case)
    moved = []
    for supports, _ in tasks_of(case):
        phi = adapt(loss, theta, map(even, supports), case.alpha)
        moved.append(divided(case, supports, minus(theta, phi)))
    return mean_or_sum(case, moved)


@wrong("reptile", "the target is the mean of phi over the steps; the output layer has no bias", mistakes=2)
def averaged_weights(case):
    def net(theta, x):
        for i in range(0, len(theta) - 2, 2):
            x = activation(case)(x @ theta[i] + theta[i + 1])
        return x @ theta[-2]

    loss, theta, moved = make_loss(case, net), theta_of(case), []
    for supports, _ in tasks_of(case):
        _, *phis = forward(loss, theta, supports, case.alpha)
        swa = tree_map(lambda *leaves: sum(leaves) / len(leaves), *phis)
        moved.append(divided(case, supports, minus(theta, swa)))
    return mean_or_sum(case, moved)


# --- Joint training ---


@wrong("joint", "a step of α after each task: the next one's gradient is taken where it leads")
def an_epoch(case):
    loss, theta, total = make_loss(case), theta_of(case), []
    for _, query in tasks_of(case):
        g = jax.grad(loss)(theta, query)
        theta = sgd(theta, g, case.alpha)
        total.append(g)
    return mean_or_sum(case, total)


@wrong("joint", "labels are smoothed by 0.1")
def smoothed_labels(case, smoothing=0.1):
    def smoothed(out, y):
        reduce = getattr(jnp, case.conventions["examples"])
        if case.loss["kind"] != "cross_entropy":
            return reduce(errors(case, out, y))
        targets = jax.nn.one_hot(y, out.shape[-1]) * (1 - smoothing) + smoothing / out.shape[-1]
        return reduce(-jnp.sum(targets * jax.nn.log_softmax(out), axis=-1))

    loss = loss_of(case, smoothed)
    return mean_or_sum(case, [jax.grad(loss)(theta_of(case), Q) for _, Q in tasks_of(case)])


# --- Right ---


@right("maml", "each step's vjp kept, and pulled back")
def pulled_back(case):
    loss, parts = make_loss(case), []
    for supports, query in tasks_of(case):
        phi, pulls = theta_of(case), []
        for batch in supports:
            phi, pull = jax.vjp(lambda p, b=batch: sgd(p, jax.grad(loss)(p, b), case.alpha), phi)
            pulls.append(pull)
        g = jax.grad(loss)(phi, query)
        while pulls:
            (g,) = pulls.pop()(g)
        parts.append(g)
    return mean_or_sum(case, parts)


@right("fomaml", "θ as one vector, and a vector added to φ that is differentiated at zero")
def shifted(case):
    flat, restore = ravel_pytree(theta_of(case))
    tree_loss = make_loss(case)

    def loss(vector, batch):
        return tree_loss(restore(vector), batch)

    def at(shift):
        values = []
        for supports, query in tasks_of(case):
            phi = flat
            for batch in supports:
                phi = phi - case.alpha * jax.grad(loss)(phi, batch)
            values.append(loss(phi + shift, query))
        return mean_or_sum(case, values)

    return restore(jax.grad(at)(jnp.zeros_like(flat)))


@right("anil", "a mask over all gradients, and scan over stacked batches")
def masked_scan(case):
    if not same_steps(case):
        raise Skip("stacks its tasks")
    loss, theta = make_loss(case), theta_of(case)
    mask = [float(i >= len(theta) - case.head) for i in range(len(theta))]

    def one(theta, batches, query):
        def step(phi, batch):
            g = jax.grad(loss)(phi, batch)
            return [p - case.alpha * m * d for p, m, d in zip(phi, mask, g, strict=True)], None

        return loss(lax.scan(step, theta, batches)[0], query)

    tasks = [(stacked(S), Q) for S, Q in tasks_of(case)]
    batches, queries = stacked(tasks)
    found = jax.vmap(jax.grad(one), (None, 0, 0))(theta, batches, queries)
    n = len(tasks) if case.conventions["tasks"] == "mean" else 1
    return [g.sum(0) / n for g in found]


@right("joint", "forward mode: the Jacobian of the vector of the tasks' losses")
def jacobian(case):
    loss, queries = make_loss(case), [Q for _, Q in tasks_of(case)]
    rows = jax.jacfwd(lambda theta: jnp.stack([loss(theta, Q) for Q in queries]))(theta_of(case))
    return [getattr(jnp, case.conventions["tasks"])(leaf, axis=0) for leaf in rows]
