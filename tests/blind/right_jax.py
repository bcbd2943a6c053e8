"""Right implementations in JAX, in odd styles."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient

from refmeta.conformance import Skip
from tests.blind.common import one_size, unit
from tests.blind.common_jax import (
    adapt,
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
from tests.blind.registry import right


@right("maml")
def textbook(case):
    return maml_of(case, lambda loss, t, S, Q: loss(adapt(loss, t, S, case.alpha), Q))


@right("maml")
def jitted(case):
    loss = make_loss(case)

    @jax.jit
    def gradient(theta, tasks, lr):
        return jax.grad(lambda t: mean_or_sum(case, [loss(adapt(loss, t, S, lr), Q) for S, Q in tasks]))(theta)

    return tuple(gradient(theta_of(case), tasks_of(case), case.alpha))


@right("maml")
def scanned(case):
    def of_task(loss, theta, supports, query):
        if not supports:
            return loss(theta, query)

        def step(phi, batch):
            return sgd(phi, jax.grad(loss)(phi, batch), case.alpha), None

        return loss(lax.scan(step, theta, stacked(supports))[0], query)

    return maml_of(case, of_task)


@right("maml")
def vmapped_with_padding(case):
    """All tasks under vmap; a task of fewer steps takes the rest at rate zero."""
    if not one_size(case):
        raise Skip("batches of one size only")
    loss, tasks = make_loss(case), tasks_of(case)
    longest = max(len(S) for S, _ in tasks)
    filler = next((S[0] for S, _ in tasks if S), None)
    rates = jnp.array([[case.alpha * (k < len(S)) for k in range(longest)] for S, _ in tasks])
    supports = stacked([[*S, *[filler] * (longest - len(S))] for S, _ in tasks])

    def of_task(theta, rates, supports, query):
        for k, batch in enumerate(supports):
            theta = sgd(theta, jax.grad(loss)(theta, batch), rates[k])
        return loss(theta, query)

    @jax.jit
    @jax.grad
    def gradient(theta):
        values = jax.vmap(of_task, (None, 0, 0, 0))(theta, rates, supports, stacked([Q for _, Q in tasks]))
        return values.sum() / case.divisor

    return gradient(theta_of(case))


@right("maml")
def checkpointed(case):
    def of_task(loss, phi, supports, query):
        step = jax.checkpoint(lambda p, batch: sgd(p, jax.grad(loss)(p, batch), case.alpha))
        for batch in supports:
            phi = step(phi, batch)
        return loss(phi, query)

    return maml_of(case, of_task)


@right("maml")
def jvp_of_grad(case):
    loss = make_loss(case)

    @jax.jit
    def gradient(theta, tasks):
        out = []
        for S, Q in tasks:
            phis = [theta]
            for batch in S:
                phis.append(sgd(phis[-1], jax.grad(loss)(phis[-1], batch), case.alpha))
            v = jax.grad(loss)(phis[-1], Q)
            for phi, batch in zip(phis[-2::-1], S[::-1], strict=True):
                hv = jax.jvp(lambda p, batch=batch: jax.grad(loss)(p, batch), (phi,), (v,))[1]
                v = sgd(v, hv, case.alpha)
            out.append(v)
        return mean_or_sum(case, out)

    return dict(zip(case.names, gradient(theta_of(case), tasks_of(case)), strict=True))


@right("maml")
def forward_mode(case):
    """jacfwd of the whole objective."""
    loss, (flat, back) = make_loss(case), ravel_pytree(theta_of(case))

    @jax.jit
    def gradient(flat, tasks):
        def objective(p):
            return mean_or_sum(case, [loss(adapt(loss, back(p), S, case.alpha), Q) for S, Q in tasks])

        return jax.jacfwd(objective)(flat)

    return back(gradient(flat, tasks_of(case)))


@right("maml")
def linearised_and_transposed(case):
    loss, out = make_loss(case), []
    for S, Q in tasks_of(case):
        theta = theta_of(case)
        phi, push = jax.linearize(lambda t, S=S: adapt(loss, t, S, case.alpha), theta)
        out.append(jax.linear_transpose(push, theta)(jax.grad(loss)(phi, Q))[0])
    return mean_or_sum(case, out)


@right("maml")
def hessian_matrices(case):
    loss, (flat, back) = make_loss(case), ravel_pytree(theta_of(case))

    @jax.jit
    def of_task(p, S, Q):
        of_vector = lambda p, batch: loss(back(p), batch)  # noqa: E731
        J = jnp.eye(p.size)
        for batch in S:
            J = J - case.alpha * jax.hessian(of_vector)(p, batch) @ J
            p = p - case.alpha * jax.grad(of_vector)(p, batch)
        return J.T @ jax.grad(of_vector)(p, Q)

    return back(mean_or_sum(case, [of_task(flat, S, Q) for S, Q in tasks_of(case)]))


@jax.custom_vjp
def own_tanh(z):
    return jnp.tanh(z)


def _own_tanh_forward(z):
    y = own_tanh(z)
    return y, y


own_tanh.defvjp(_own_tanh_forward, lambda y, g: (g * (1 - y * y),))


@right("maml")
def custom_derivative(case):
    loss = make_loss(case, lambda theta, x: mlp(theta, x, own_tanh))
    return maml_of(case, lambda _, t, S, Q: loss(adapt(loss, t, S, case.alpha), Q))


@right("maml", dtype="float32")
def in_float32(case):
    return [g.astype(jnp.float32) for g in jitted(case)]


@right("fomaml")
def stopped(case):
    def of_task(loss, phi, supports, query):
        for batch in supports:
            phi = sgd(phi, stop_gradient(jax.grad(loss)(phi, batch)), case.alpha)
        return loss(phi, query)

    return maml_of(case, of_task)


@right("fomaml")
def gradient_at_phi(case):
    loss, theta = make_loss(case), theta_of(case)
    return mean_or_sum(case, [jax.grad(loss)(adapt(loss, theta, S, case.alpha), Q) for S, Q in tasks_of(case)])


@right("anil")
def closure_over_the_body(case):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        inner = lambda head, batch: loss([*theta[:cut], *head], batch)  # noqa: E731
        return loss([*theta[:cut], *adapt(inner, theta[cut:], supports, case.alpha)], query)

    return maml_of(case, of_task)


@right("anil")
def two_gradients(case):
    """argnums: body and head apart, put together again."""
    loss, cut = make_loss(case), len(case.theta) - case.head

    def objective(body, head):
        inner = lambda h, batch: loss([*body, *h], batch)  # noqa: E731
        return mean_or_sum(case, [loss([*body, *adapt(inner, head, S, case.alpha)], Q) for S, Q in tasks_of(case)])

    theta = theta_of(case)
    by_body, by_head = jax.jit(jax.grad(objective, argnums=(0, 1)))(theta[:cut], theta[cut:])
    return [*by_body, *by_head]


@right("reptile")
def fori(case):
    loss, theta, parts = make_loss(case), theta_of(case), []
    for S, _ in tasks_of(case):
        data = stacked(S)

        def body(k, phi, data=data):
            return sgd(phi, jax.grad(loss)(phi, tree_map(lambda a: a[k], data)), case.alpha)

        phi = lax.fori_loop(0, len(S), body, theta)
        parts.append(tree_map(lambda t, p, S=S: (t - p) / unit(case, S), theta, phi))
    return mean_or_sum(case, parts)


@right("reptile")
def mapped(case):
    """lax.map over tasks of one size, a loop over others."""
    loss, theta, tasks = make_loss(case), theta_of(case), tasks_of(case)

    def move(S):
        return tree_map(lambda t, p: (t - p) / unit(case, S), theta, adapt(loss, theta, S, case.alpha))

    if not same_steps(case):
        return mean_or_sum(case, [move(S) for S, _ in tasks])
    moved = lax.map(move, stacked([S for S, _ in tasks]))
    return [d.sum(0) / case.divisor for d in moved]


@right("joint")
def weighted_examples(case):
    loss = make_loss(case)
    return jax.jit(jax.grad(lambda t: mean_or_sum(case, [loss(t, Q) for _, Q in tasks_of(case)])))(theta_of(case))
