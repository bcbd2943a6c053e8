"""Right meta-gradients in JAX; each maker takes (loss, lr, steps) and returns meta_gradient(params, tasks)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from tests.zoo.registry import right_in

RIGHT = {}
right = right_in(RIGHT)


def sgd(params, grads, lr):
    return jax.tree.map(lambda p, g: p - lr * g, params, grads)


def stacked(tasks):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)


def added(trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


# --- MAML -------------------------------------------------------------------------------------------


@right("sum")
def grad_of_the_meta_loss(loss, lr, steps):
    def meta_loss(params, tasks):
        total = 0.0
        for support, query in tasks:
            fast = params
            for _ in range(steps):
                grads = jax.grad(loss)(fast, support)
                fast = jax.tree.map(lambda p, g: p - lr * g, fast, grads)
            total += loss(fast, query)
        return total

    return jax.jit(jax.grad(meta_loss))


@right("mean")
def vmap_over_tasks(loss, lr, steps):
    def maml_loss(params, support, query):
        for _ in range(steps):
            params = sgd(params, jax.grad(loss)(params, support), lr)
        return loss(params, query)

    @jax.jit
    def batch_loss(params, supports, queries):
        return jnp.mean(jax.vmap(partial(maml_loss, params))(supports, queries))

    return lambda params, tasks: jax.grad(batch_loss)(params, *stacked(tasks))


@right("sum")
def scan_over_steps(loss, lr, steps):
    @jax.jit
    def task_grad(params, support, query):
        def adapted_loss(params):
            def step(fast, _):
                value, grads = jax.value_and_grad(loss)(fast, support)
                return sgd(fast, grads, lr), value

            fast, _ = jax.lax.scan(step, params, None, length=steps)
            return loss(fast, query)

        return jax.grad(adapted_loss)(params)

    return lambda params, tasks: added([task_grad(params, *task) for task in tasks])


@right("mean")
def fori_loop_of_steps(loss, lr, steps):
    def adapt(params, support):
        return jax.lax.fori_loop(0, steps, lambda _, p: sgd(p, jax.grad(loss)(p, support), lr), params)

    @jax.jit
    def meta_gradient(params, tasks):
        return jax.grad(lambda p: sum(loss(adapt(p, s), q) for s, q in tasks) / len(tasks))(params)

    return meta_gradient


@right("sum")
def checkpointed_steps(loss, lr, steps):
    @jax.checkpoint
    def step(params, support):
        return sgd(params, jax.grad(loss)(params, support), lr)

    def objective(params, tasks):
        total = 0
        for support, query in tasks:
            fast = params
            for _ in range(steps):
                fast = step(fast, support)
            total = total + loss(fast, query)
        return total

    return jax.jit(jax.grad(objective))


@right("sum")
def adjoint_by_jvp(loss, lr, steps):
    grad = jax.grad(loss)

    @jax.jit
    def task_gradient(theta, support, query):
        path = [theta]
        for _ in range(steps):
            path.append(sgd(path[-1], grad(path[-1], support), lr))
        v = grad(path.pop(), query)
        for phi in reversed(path):
            _, hv = jax.jvp(lambda p: grad(p, support), (phi,), (v,))
            v = sgd(v, hv, lr)
        return v

    return lambda params, tasks: added([task_gradient(params, *task) for task in tasks])


@right("mean")
def adjoint_by_grad_of_dot(loss, lr, steps):
    def hvp(params, batch, v):
        def dot(p):
            return sum(
                jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (jax.grad(loss)(p, batch), v)), strict=True)
            )

        return jax.grad(dot)(params)

    @jax.jit
    def task_gradient(theta, support, query):
        path = [theta]
        for _ in range(steps):
            path.append(sgd(path[-1], jax.grad(loss)(path[-1], support), lr))
        v = jax.grad(loss)(path[-1], query)
        for phi in path[-2::-1]:
            v = sgd(v, hvp(phi, support, v), lr)
        return v

    def meta_gradient(params, tasks):
        total = added([task_gradient(params, *task) for task in tasks])
        return jax.tree.map(lambda g: g / len(tasks), total)

    return meta_gradient


@right("sum")
def pullback_of_adaptation(loss, lr, steps):
    def adapt(params, support):
        for _ in range(steps):
            params = sgd(params, jax.grad(loss)(params, support), lr)
        return params

    @jax.jit
    def one(params, support, query):
        phi, pull = jax.vjp(lambda p: adapt(p, support), params)
        return pull(jax.grad(loss)(phi, query))[0]

    return lambda params, tasks: added(one(params, s, q) for s, q in tasks)


@right("mean")
def one_flat_vector(loss, lr, steps):
    def meta_gradient(params, tasks):
        flat, unravel = ravel_pytree(params)
        flat_grad = jax.grad(lambda w, batch: loss(unravel(w), batch))

        def meta_loss(w):
            total = 0
            for support, query in tasks:
                v = w
                for _ in range(steps):
                    v = v - lr * flat_grad(v, support)
                total += loss(unravel(v), query)
            return total / len(tasks)

        return unravel(jax.grad(meta_loss)(flat))

    return jax.jit(meta_gradient)


@right("sum")
def no_jit_and_recursion(loss, lr, steps):
    def adapt(params, support, k):
        return params if k == 0 else adapt(sgd(params, jax.grad(loss)(params, support), lr), support, k - 1)

    def meta_gradient(params, tasks):
        total = jax.tree.map(jnp.zeros_like, params)
        for support, query in tasks:
            g = jax.grad(lambda p: loss(adapt(p, support, steps), query))(params)  # noqa: B023
            total = jax.tree.map(jnp.add, total, g)
        return total

    return meta_gradient


@right("mean")
def lax_map_over_tasks(loss, lr, steps):
    def task_loss(params, task):
        support, query = task
        fast, _ = jax.lax.scan(lambda p, _: (sgd(p, jax.grad(loss)(p, support), lr), None), params, None, steps)
        return loss(fast, query)

    @jax.jit
    @jax.grad
    def meta_gradient(params, tasks):
        return jax.lax.map(partial(task_loss, params), tasks).mean()

    return lambda params, tasks: meta_gradient(params, stacked(tasks))


@right("mean", needs="stream")
def scan_over_support_batches(loss, lr, steps):
    def task_loss(params, task):
        supports, query = task
        fast, _ = jax.lax.scan(lambda p, b: (sgd(p, jax.grad(loss)(p, b), lr), None), params, stacked(supports))
        return loss(fast, query)

    return jax.jit(jax.grad(lambda params, tasks: sum(task_loss(params, t) for t in tasks) / len(tasks)))


@right("sum", needs="stream")
def loop_over_support_batches(loss, lr, steps):
    def meta_loss(params, tasks):
        total = 0
        for batches, query in tasks:
            fast = params
            for batch in batches:
                fast = sgd(fast, jax.grad(loss)(fast, batch), lr)
            total += loss(fast, query)
        return total

    return jax.jit(jax.grad(meta_loss))


# --- The other algorithms ---------------------------------------------------------------------------


@right("sum", "fomaml")
def first_order_by_stop_gradient(loss, lr, steps):
    def meta_loss(params, tasks):
        total = 0
        for support, query in tasks:
            fast = params
            for _ in range(steps):
                fast = sgd(fast, jax.lax.stop_gradient(jax.grad(loss)(fast, support)), lr)
            total += loss(fast, query)
        return total

    return jax.jit(jax.grad(meta_loss))


@right("mean", "fomaml")
def first_order_at_the_adapted(loss, lr, steps):
    @jax.jit
    def one(params, support, query):
        for _ in range(steps):
            params = sgd(params, jax.grad(loss)(params, support), lr)
        return jax.grad(loss)(params, query)

    def meta_gradient(params, tasks):
        grads = jax.vmap(partial(one, params))(*stacked(tasks))
        return jax.tree.map(lambda g: g.mean(0), grads)

    return meta_gradient


@right("mean", "anil")
def anil_by_a_split_dict(loss, lr, steps, head):
    def meta_loss(params, tasks):
        body = {k: v for k, v in params.items() if k != head}
        total = 0
        for support, query in tasks:
            fast = params[head]
            for _ in range(steps):
                fast = sgd(fast, jax.grad(lambda h: loss({**body, head: h}, support))(fast), lr)  # noqa: B023
            total += loss({**body, head: fast}, query)
        return total / len(tasks)

    return jax.jit(jax.grad(meta_loss))


@right("sum", "anil")
def anil_by_a_mask(loss, lr, steps, head):
    def meta_loss(params, tasks):
        mask = {k: jax.tree.map(lambda _, k=k: float(k == head), v) for k, v in params.items()}
        total = 0
        for support, query in tasks:
            fast = params
            for _ in range(steps):
                grads = jax.grad(loss)(fast, support)
                fast = jax.tree.map(lambda p, g, m: p - lr * m * g, fast, grads, mask)
            total += loss(fast, query)
        return total

    return jax.jit(jax.grad(meta_loss))


@right("mean", "reptile")
def reptile_by_scan(loss, lr, steps):
    @jax.jit
    def displacement(params, support):
        phi, _ = jax.lax.scan(lambda p, _: (sgd(p, jax.grad(loss)(p, support), lr), None), params, None, steps)
        return jax.tree.map(jnp.subtract, params, phi)

    def meta_gradient(params, tasks):
        return jax.tree.map(lambda *d: sum(d) / len(d), *[displacement(params, support) for support, _ in tasks])

    return meta_gradient


@right("sum", "reptile")
def reptile_in_a_loop(loss, lr, steps):
    step = jax.jit(lambda p, batch: sgd(p, jax.grad(loss)(p, batch), lr))

    def meta_gradient(params, tasks):
        deltas = []
        for support, _ in tasks:
            fast = params
            for _ in range(steps):
                fast = step(fast, support)
            deltas.append(jax.tree.map(lambda a, b: a - b, params, fast))
        return added(deltas)

    return meta_gradient


@right("sum", "joint")
def joint_summed(loss, lr, steps):
    return jax.jit(jax.grad(lambda params, tasks: sum(loss(params, query) for _, query in tasks)))


@right("mean", "joint")
def joint_vmapped(loss, lr, steps):
    batch_loss = jax.vmap(loss, in_axes=(None, 0))
    return lambda params, tasks: jax.grad(lambda p: batch_loss(p, stacked([q for _, q in tasks])).mean())(params)
