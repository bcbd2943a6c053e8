"""JAX, everything in one jit; `im2col` behind it for patches and matmul in place of lax.conv."""

import sys

import jax
import jax.numpy as jnp

from tests.bench import serving

jax.config.update("jax_enable_x64", True)
im2col = sys.argv[1:2] == ["im2col"]
NHWC = ("NHWC", "HWIO", "NHWC")


def prepare(case):
    """The functions that `serving` wants."""
    activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[case.model["activation"]]
    steps, first = 0 if case.algorithm == "joint" else case.steps, case.algorithm == "fomaml"
    layers = len(case.theta) // 2
    # Tasks are vmapped in groups that fit the cache: for 1,000 tasks twice as fast as one vmap, for a conv net too.
    limit = 25 if case.model["kind"] == "mlp" else 1
    group = next(n for n in range(min(case.tasks, limit), 0, -1) if case.tasks % n == 0)

    def forward(theta, x, start=0):
        """The layers whose arrays are `theta`, `start` the first's number."""
        for layer, (W, b) in enumerate(zip(theta[::2], theta[1::2], strict=True), start):
            if W.ndim == 2:
                x = x.reshape(len(x), -1) @ W + b
            elif im2col:
                x = (serving.patches(x, jnp) if layer else x) @ W.reshape(-1, len(b)) + b
            else:
                x = jax.lax.conv_general_dilated(x, W, (2, 2), [(1, 1)] * 2, dimension_numbers=NHWC) + b
            x = activation(x) if layer < layers - 1 else x
        return x

    def loss(theta, x, y):
        out = forward(theta, x, case.cut // 2)
        if case.loss == "squared_error":
            return jnp.mean((out - y) ** 2)
        return -jnp.mean(jax.nn.log_softmax(out)[jnp.arange(len(y)), y])

    def adapt(theta, x, y):
        def step(theta, k):
            g = jax.grad(loss)(jax.lax.stop_gradient(theta) if first else theta, x[k % len(x)], y[k % len(x)])
            return [p - case.alpha * d for p, d in zip(theta, g, strict=True)], None

        if steps > 8:  # unrolled it is no faster, and compiles for long
            return jax.lax.scan(step, theta, jnp.arange(steps))[0]
        for k in range(steps):
            theta, _ = step(theta, k)
        return theta

    def adapted_loss(theta, support_x, support_y, query_x, query_y):
        body, head = theta[: case.cut], theta[case.cut :]
        if body:
            support_x, query_x = jax.vmap(lambda x: forward(body, x))(support_x), forward(body, query_x)
        return loss(adapt(head, support_x, support_y), query_x, query_y)

    def of_group(theta, data):
        """The sums over a group's tasks of loss and gradient."""
        if case.algorithm == "reptile":
            phis = jax.vmap(adapt, (None, 0, 0))(theta, *data[:2])
            return jnp.nan, [(t - p).sum(0) for t, p in zip(theta, phis, strict=True)]
        losses = jax.vmap(adapted_loss, (None, 0, 0, 0, 0))
        return jax.value_and_grad(lambda theta: losses(theta, *data).sum())(theta)

    def of_all(theta, data):
        if group == case.tasks:
            return of_group(theta, data)
        groups = [a.reshape(-1, group, *a.shape[1:]) for a in data]
        return jax.tree.map(lambda a: a.sum(0), jax.lax.map(lambda data: of_group(theta, data), groups))

    @jax.jit
    def iterate(state, data):
        """The state after an Adam step, the mean loss, the meta-gradient."""
        theta, m, v, t = state
        loss, total = of_all(theta, data)
        g, t = [leaf / case.tasks for leaf in total], t + 1
        m = [0.9 * m + 0.1 * g for m, g in zip(m, g, strict=True)]
        v = [0.999 * v + 0.001 * g**2 for v, g in zip(v, g, strict=True)]
        rate, scale = 1e-3 / (1 - 0.9**t), 1 / (1 - 0.999**t)
        theta = [p - rate * m / (jnp.sqrt(v * scale) + 1e-8) for p, m, v in zip(theta, m, v, strict=True)]
        return (theta, m, v, t), loss / case.tasks, total

    def convert(data):  # the first layer's patches are data
        return [jnp.asarray(serving.patches(a) if im2col and a.ndim > 4 else a) for a in data]

    def step(data):
        nonlocal state
        state, loss, _ = iterate(state, data)
        return loss

    theta = [jnp.asarray(leaf) for leaf in case.theta]
    zeros = [jnp.zeros_like(leaf) for leaf in theta]
    state = theta, zeros, zeros, jnp.zeros((), case.dtype)
    return convert, lambda data: jax.device_get(iterate(state, data)[2]), step


serving.serve("JAX jit (im2col)" if im2col else "JAX jit", jax.__version__, prepare)
