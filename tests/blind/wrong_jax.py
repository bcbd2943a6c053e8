"""Wrong implementations in JAX."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import stop_gradient

from tests.blind.common import one_size, unit
from tests.blind.common_jax import (
    adapt,
    add,
    make_loss,
    maml_of,
    mean_or_sum,
    mlp,
    same_steps,
    sgd,
    stacked,
    tasks_of,
    theta_of,
    tree_map,
)
from tests.blind.registry import wrong

# --- stop_gradient ---


@wrong("maml", "stop_gradient around the inner gradient")
def stopped_gradient(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            phi = sgd(phi, stop_gradient(jax.grad(loss)(phi, batch)), case.alpha)
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong("maml", "stop_gradient around p in p - lr * g: the way over p itself is cut, that over g stays")
def stopped_parameters(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            g = jax.grad(loss)(phi, batch)
            phi = tree_map(lambda p, d: stop_gradient(p) - case.alpha * d, phi, g)
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong("maml", "stop_gradient on the adapted parameters before the query loss: all is zero")
def stopped_before_the_query(case):
    return maml_of(case, lambda loss, t, S, Q: loss(stop_gradient(adapt(loss, t, S, case.alpha)), Q))


@wrong("maml", "stop_gradient inside the inner loss, on the first layer's output: the first layer does not adapt")
def stopped_features(case):
    def net(theta, x):
        if len(theta) == 2:
            return mlp(theta, x)
        return mlp(theta[2:], jnp.tanh(stop_gradient(x @ theta[0] + theta[1])))

    inner = make_loss(case, net)
    return maml_of(case, lambda loss, t, S, Q: loss(adapt(inner, t, S, case.alpha), Q))


@wrong("maml", "stop_gradient around the weights' inner gradients, not the biases'")
def weights_first_order(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            g = [stop_gradient(d) if d.ndim == 2 else d for d in jax.grad(loss)(phi, batch)]
            phi = sgd(phi, g, case.alpha)
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong("maml", "stop_gradient on theta where the first inner gradient is taken: the first step is first-order")
def stopped_at_the_start(case):
    def of_task(loss, theta, supports, query):
        phi = theta
        for k, batch in enumerate(supports):
            phi = sgd(phi, jax.grad(loss)(phi if k else stop_gradient(theta), batch), case.alpha)
        return loss(phi, query)

    return maml_of(case, of_task)


# --- scan and loops ---


def scanned(case, step, last=lambda carry, ys: carry):
    """MAML whose inner loop is lax.scan over the stacked supports; `last` picks φ."""

    def of_task(loss, theta, supports, query):
        if not supports:
            return loss(theta, query)
        carry, ys = lax.scan(partial(step, loss), theta, stacked(supports))
        return loss(last(carry, ys), query)

    return maml_of(case, of_task)


@wrong("maml", "scan puts out the parameters before each step, and the last of them is used")
def scan_outputs_the_old(case):
    def step(loss, phi, batch):
        return sgd(phi, jax.grad(loss)(phi, batch), case.alpha), phi

    return scanned(case, step, lambda carry, ys: tree_map(lambda y: y[-1], ys))


@wrong("maml", "the scan's outputs are averaged: the query sees the mean of phi_1 … phi_K")
def scan_mean(case):
    def step(loss, phi, batch):
        phi = sgd(phi, jax.grad(loss)(phi, batch), case.alpha)
        return phi, phi

    return scanned(case, step, lambda carry, ys: tree_map(lambda y: y.mean(0), ys))


@wrong("maml", "scan over the stacked supports with reverse=True")
def scan_reversed(case):
    def of_task(loss, theta, supports, query):
        if not supports:
            return loss(theta, query)

        def step(phi, batch):
            return sgd(phi, jax.grad(loss)(phi, batch), case.alpha), None

        return loss(lax.scan(step, theta, stacked(supports), reverse=True)[0], query)

    return maml_of(case, of_task)


@wrong("maml", "the carry of the scan is (phi, gradient), and the gradient of the step before is applied")
def scan_stale_gradient(case):
    def of_task(loss, theta, supports, query):
        if not supports:
            return loss(theta, query)

        def step(carry, batch):
            phi, g = carry
            return (sgd(phi, g, case.alpha), jax.grad(loss)(phi, batch)), None

        (phi, _), _ = lax.scan(step, (theta, tree_map(jnp.zeros_like, theta)), stacked(supports))
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong("maml", "fori_loop(1, K): a step too few, the first batch left out")
def fori_from_one(case):
    def of_task(loss, theta, supports, query):
        if len(supports) < 2:
            return loss(theta, query)
        data = stacked(supports)

        def body(k, phi):
            return sgd(phi, jax.grad(loss)(phi, tree_map(lambda a: a[k], data)), case.alpha)

        return loss(lax.fori_loop(1, len(supports), body, theta), query)

    return maml_of(case, of_task)


@wrong("maml", "fori_loop(0, K) whose body takes data[0] instead of data[k]")
def fori_first_batch(case):
    def of_task(loss, theta, supports, query):
        if not supports:
            return loss(theta, query)
        data = stacked(supports)

        def body(k, phi):
            return sgd(phi, jax.grad(loss)(phi, tree_map(lambda a: a[0], data)), case.alpha)

        return loss(lax.fori_loop(0, len(supports), body, theta), query)

    return maml_of(case, of_task)


# --- vmap ---


@wrong("maml", "in_axes: the supports are mapped with None, so all tasks adapt on the first one's")
def vmap_shares_supports(case):
    loss, tasks = make_loss(case), tasks_of(case)
    supports = tasks[0][0]

    def objective(theta):
        of_task = lambda S, Q: loss(adapt(loss, theta, S, case.alpha), Q)  # noqa: E731
        if one_size(case):
            found = jax.vmap(of_task, (None, 0))(supports, stacked([Q for _, Q in tasks]))
        else:
            found = jnp.stack([of_task(supports, Q) for _, Q in tasks])
        return found.mean() if case.conventions["tasks"] == "mean" else found.sum()

    return jax.grad(objective)(theta_of(case))


@wrong("maml", "the mean over the tasks is taken twice, once under vmap", tasks="mean")
def vmap_mean_twice(case):
    loss, tasks = make_loss(case), tasks_of(case)

    def objective(theta):
        if not same_steps(case):
            return sum(loss(adapt(loss, theta, S, case.alpha), Q) for S, Q in tasks) / len(tasks) ** 2
        S, Q = stacked(tasks)
        return jax.vmap(lambda S, Q: loss(adapt(loss, theta, S, case.alpha), Q) / len(tasks))(S, Q).mean()

    return jax.grad(objective)(theta_of(case))


@wrong("maml", "each task has its own copy of theta under vmap, and only the first copy's gradient is read")
def vmap_copies_of_theta(case):
    loss, tasks = make_loss(case), tasks_of(case)

    def objective(copies):
        ones = [tree_map(lambda t, i=i: t[i], copies) for i in range(len(tasks))]
        values = [loss(adapt(loss, one, S, case.alpha), Q) for one, (S, Q) in zip(ones, tasks, strict=True)]
        return mean_or_sum(case, values)

    copies = [jnp.stack([t] * len(tasks)) for t in theta_of(case)]
    return [g[0] for g in jax.grad(objective)(copies)]


@wrong("maml", "the inner gradients are averaged over the tasks in every step, as with pmean in the wrong place")
def gradients_averaged_inside(case):
    loss, tasks = make_loss(case), tasks_of(case)

    def objective(theta):
        phi = theta
        for k in range(max(len(S) for S, _ in tasks)):
            gs = [jax.grad(loss)(phi, S[k]) for S, _ in tasks if k < len(S)]
            phi = sgd(phi, tree_map(lambda d: d / len(gs), add(gs)), case.alpha)
        return mean_or_sum(case, [loss(phi, Q) for _, Q in tasks])

    return jax.grad(objective)(theta_of(case))


# --- jit and what it remembers ---

_steps = {}


@wrong("maml", "the jitted step closes over the learning rate of the first call")
def stale_closure(case):
    key = case.loss["kind"], len(case.theta), case.conventions["examples"]
    if key not in _steps:
        loss, lr = make_loss(case), case.alpha
        _steps[key] = jax.jit(lambda phi, batch: sgd(phi, jax.grad(loss)(phi, batch), lr))

    def of_task(loss, phi, supports, query):
        for batch in supports:
            phi = _steps[key](phi, batch)
        return loss(phi, query)

    return maml_of(case, of_task)


# --- Derivatives ---


@jax.custom_vjp
def straight_tanh(z):
    return jnp.tanh(z)


straight_tanh.defvjp(lambda z: (jnp.tanh(z), None), lambda _, g: (g,))


@wrong("maml", "a custom_vjp for tanh passes the gradient straight through")
def straight_through(case):
    loss = make_loss(case, lambda theta, x: mlp(theta, x, straight_tanh))
    return maml_of(case, lambda _, t, S, Q: loss(adapt(loss, t, S, case.alpha), Q))


@wrong("maml", "jax.vjp of the inner loop at the adapted parameters instead of at theta")
def vjp_at_phi(case):
    loss, out = make_loss(case), []
    for S, Q in tasks_of(case):
        phi = adapt(loss, theta_of(case), S, case.alpha)
        _, pull = jax.vjp(lambda t, S=S: adapt(loss, t, S, case.alpha), phi)
        out.append(pull(jax.grad(loss)(phi, Q))[0])
    return mean_or_sum(case, out)


@wrong("maml", "jvp of the inner loop in place of its vjp, so the steps' factors are multiplied in the other order")
def jvp_for_vjp(case):
    loss, out = make_loss(case), []
    for S, Q in tasks_of(case):
        theta = theta_of(case)
        g = jax.grad(loss)(adapt(loss, theta, S, case.alpha), Q)
        out.append(jax.jvp(lambda t, S=S: adapt(loss, t, S, case.alpha), (theta,), (g,))[1])
    return mean_or_sum(case, out)


@wrong("maml", "implicit MAML: (I + H/lambda)^-1 with lambda = 1/(alpha K), the Hessian at the end of the path")
def implicit(case):
    loss, out = make_loss(case), []
    for S, Q in tasks_of(case):
        phi = adapt(loss, theta_of(case), S, case.alpha)
        g = jax.grad(loss)(phi, Q)

        def matvec(v, phi=phi, S=S):
            if not S:
                return v
            hv = jax.jvp(lambda p: jax.grad(loss)(p, S[-1]), (phi,), (v,))[1]
            return tree_map(lambda a, b: a + case.alpha * len(S) * b, v, hv)

        out.append(jax.scipy.sparse.linalg.cg(matvec, g, maxiter=50)[0])
    return mean_or_sum(case, out)


@wrong("maml", "the first-order gradient is added to the whole one")
def both_gradients(case):
    def of_task(loss, theta, supports, query):
        phi = adapt(loss, theta, supports, case.alpha)
        free = tree_map(lambda t, p: t + stop_gradient(p - t), theta, phi)
        return loss(phi, query) + loss(free, query)

    return maml_of(case, of_task)


@wrong("maml", "the inner gradient is clipped by jnp.clip to ±0.05")
def clipped_inside(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            phi = sgd(phi, tree_map(lambda d: jnp.clip(d, -0.05, 0.05), jax.grad(loss)(phi, batch)), case.alpha)
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong("maml", "dropout with one PRNG key that is never split")
def one_key(case):
    def act(z):
        keep = jax.random.bernoulli(jax.random.PRNGKey(0), 0.8, z.shape)
        return jnp.where(keep, jnp.tanh(z) / 0.8, 0)

    loss = make_loss(case, lambda theta, x: mlp(theta, x, act))
    return maml_of(case, lambda _, t, S, Q: loss(adapt(loss, t, S, case.alpha), Q))


@wrong("maml", "all arrays are float32, JAX's default")
def single_precision(case):
    theta, tasks = tree_map(
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, (theta_of(case), tasks_of(case))
    )
    loss = make_loss(case)
    objective = lambda t: mean_or_sum(case, [loss(adapt(loss, t, S, case.alpha), Q) for S, Q in tasks])  # noqa: E731
    return jax.grad(objective)(theta)


@wrong("maml", "the inner gradients are quantised to bfloat16")
def bfloat_gradients(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            g = tree_map(lambda d: d.astype(jnp.bfloat16).astype(d.dtype), jax.grad(loss)(phi, batch))
            phi = sgd(phi, g, case.alpha)
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong("maml", "the learned rates of Meta-SGD are initialised at half of alpha")
def meta_sgd(case):
    rates = [jnp.full(t.shape, case.alpha / 2) for t in case.theta]

    def of_task(loss, phi, supports, query):
        for batch in supports:
            phi = tree_map(lambda p, r, d: p - r * d, phi, rates, jax.grad(loss)(phi, batch))
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong(
    "maml", "the mean of the squared error is over the wrong axis, then summed: mean over outputs, sum over examples"
)
def mean_over_outputs(case):
    if case.loss["kind"] != "squared_error":
        return maml_of(case, lambda loss, t, S, Q: loss(adapt(loss, t, S, case.alpha), Q))

    def loss(theta, batch):
        e = (mlp(theta, batch[0]) - batch[1]) ** 2
        return e.mean(1).sum() if case.conventions["examples"] == "mean" else e.sum()

    return maml_of(case, lambda _, t, S, Q: loss(adapt(loss, t, S, case.alpha), Q))


@wrong("maml", "the last layer's bias is added twice")
def bias_twice(case):
    loss = make_loss(case, lambda theta, x: mlp(theta, x) + theta[-1])
    return maml_of(case, lambda _, t, S, Q: loss(adapt(loss, t, S, case.alpha), Q))


# --- Other algorithms ---


@wrong("fomaml", "the gradient is taken in theta through one last step that is not stopped")
def last_step_differentiated(case):
    def of_task(loss, theta, supports, query):
        phi = theta
        for k, batch in enumerate(supports):
            g = jax.grad(loss)(phi, batch)
            phi = sgd(phi, g if k == len(supports) - 1 else stop_gradient(g), case.alpha)
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong("fomaml", "the query gradient is at theta: no adaptation is seen")
def gradient_at_theta(case):
    return maml_of(case, lambda loss, t, S, Q: loss(t, Q))


@wrong("fomaml", "it is evaluated at the midpoint between theta and phi")
def at_the_midpoint(case):
    loss, theta = make_loss(case), theta_of(case)

    def of_task(S, Q):
        phi = adapt(loss, theta, S, case.alpha)
        return jax.grad(loss)(tree_map(lambda t, p: (t + p) / 2, theta, phi), Q)

    return mean_or_sum(case, [of_task(*task) for task in tasks_of(case)])


@wrong("anil", "argnums=0 outside: only the head has a gradient, the body's is zero")
def gradient_of_the_head_only(case):
    cut = len(case.theta) - case.head
    g = maml_of(case, anil_task(case))
    return [*(jnp.zeros_like(d) for d in g[:cut]), *g[cut:]]


def anil_task(case, steps=lambda supports: supports):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        inner = lambda head, batch: loss([*theta[:cut], *head], batch)  # noqa: E731
        return loss([*theta[:cut], *adapt(inner, theta[cut:], steps(supports), case.alpha)], query)

    return of_task


@wrong("anil", "the head takes one step only")
def anil_one_step(case):
    return maml_of(case, anil_task(case, lambda supports: supports[:1]))


@wrong("anil", "the head is cut one layer too early: four arrays adapt")
def anil_two_layers(case):
    cut = max(0, len(case.theta) - case.head - 2)

    def of_task(loss, theta, supports, query):
        inner = lambda head, batch: loss([*theta[:cut], *head], batch)  # noqa: E731
        return loss([*theta[:cut], *adapt(inner, theta[cut:], supports, case.alpha)], query)

    return maml_of(case, of_task)


@wrong("reptile", "the displacement is divided by K as well", tasks="mean")
def reptile_over_k(case):
    loss, theta = make_loss(case), theta_of(case)
    parts = []
    for S, _ in tasks_of(case):
        phi = adapt(loss, theta, S, case.alpha)
        parts.append(tree_map(lambda t, p, S=S: (t - p) / unit(case, S) / len(S), theta, phi))
    return tree_map(lambda d: d / len(parts), add(parts))


@wrong("reptile", "scan's outputs are summed: the displacement of all steps from theta, added up")
def reptile_sum_of_path(case):
    loss, theta, parts = make_loss(case), theta_of(case), []
    for S, _ in tasks_of(case):
        phi, total = theta, tree_map(jnp.zeros_like, theta)
        for batch in S:
            phi = sgd(phi, jax.grad(loss)(phi, batch), case.alpha)
            total = tree_map(lambda a, t, p, S=S: a + (t - p) / unit(case, S), total, theta, phi)
        parts.append(total)
    return mean_or_sum(case, parts)


@wrong("joint", "only the first task is trained on, its gradient taken for all of them")
def joint_on_the_first_task(case):
    loss, (_, Q) = make_loss(case), tasks_of(case)[0]
    return tree_map(
        lambda d: d * (1 if case.conventions["tasks"] == "mean" else len(case.tasks)),
        jax.grad(loss)(theta_of(case), Q),
    )


@wrong("maml", "stop_gradient around the inner gradient, and the scan runs backwards", 2)
def stopped_and_reversed(case):
    def of_task(loss, phi, supports, query):
        for batch in supports[::-1]:
            phi = sgd(phi, stop_gradient(jax.grad(loss)(phi, batch)), case.alpha)
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong("maml", "Meta-SGD's halved rates, and the last layer is not adapted", 2)
def half_rate_without_head(case):
    def of_task(loss, phi, supports, query):
        keep = 2 if len(phi) > 2 else 0
        for batch in supports:
            rates = [case.alpha / 2 * (i < len(phi) - keep) for i in range(len(phi))]
            phi = tree_map(lambda p, r, d: p - r * d, phi, rates, jax.grad(loss)(phi, batch))
        return loss(phi, query)

    return maml_of(case, of_task)


@wrong("maml", "sum over the examples inside, stop_gradient, and a step on the query", 3)
def three_in_jax(case):
    inner = make_loss(case, reduction="sum")

    def of_task(loss, phi, supports, query):
        for batch in [*supports, query]:
            phi = sgd(phi, stop_gradient(jax.grad(inner)(phi, batch)), case.alpha)
        return loss(phi, query)

    return maml_of(case, of_task)
