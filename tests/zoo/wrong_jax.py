"""Wrong meta-gradients in JAX, each with one mistake as people make it; the decorator says its family."""

from functools import partial

import jax
import jax.numpy as jnp

from tests.zoo.registry import wrong_in
from tests.zoo.right_jax import added, sgd, stacked

WRONG = {}
wrong = wrong_in(WRONG)


def summed(task_loss):
    """The gradient of the tasks' summed loss, compiled for one task."""
    task_grad = jax.jit(jax.grad(task_loss))
    return lambda params, tasks: added(task_grad(params, *task) for task in tasks)


def averaged(task_loss):
    """The gradient of the tasks' mean loss, vmapped."""

    @jax.jit
    @jax.grad
    def meta_grad(params, supports, queries):
        return jax.vmap(partial(task_loss, params))(supports, queries).mean()

    return lambda params, tasks: meta_grad(params, *stacked(tasks))


def repeated(step, params, steps):
    return jax.lax.scan(lambda p, k: (step(p, k), None), params, jnp.arange(steps))[0]


# --- First order ------------------------------------------------------------------------------------


@wrong("first order", "sum")
def stop_gradient_on_the_inner_gradient(loss, lr, steps):
    def task_loss(params, support, query):
        for _ in range(steps):
            grads = jax.lax.stop_gradient(jax.grad(loss)(params, support))
            params = sgd(params, grads, lr)
        return loss(params, query)

    return summed(task_loss)


@wrong("first order", "mean")
def gradient_at_the_adapted_weights(loss, lr, steps):
    @jax.jit
    def adapt(params, support):
        return repeated(lambda p, _: sgd(p, jax.grad(loss)(p, support), lr), params, steps)

    query_grad = jax.jit(jax.grad(loss))

    def meta_gradient(params, tasks):
        grads = [query_grad(adapt(params, support), query) for support, query in tasks]
        return jax.tree.map(lambda *g: sum(g) / len(g), *grads)

    return meta_gradient


@wrong("first order", "mean")
def inner_gradient_at_stopped_weights(loss, lr, steps):
    def task_loss(params, support, query):
        def step(p, _):
            return sgd(p, jax.grad(loss)(jax.lax.stop_gradient(p), support), lr)

        return loss(repeated(step, params, steps), query)

    return averaged(task_loss)


# --- One step short -----------------------------------------------------------------------------------


@wrong("one step short", "sum", steps=2)
def range_of_steps_minus_one(loss, lr, steps):
    def task_loss(params, support, query):
        for _ in range(1, steps):
            params = sgd(params, jax.grad(loss)(params, support), lr)
        return loss(params, query)

    return summed(task_loss)


@wrong("one step short", "mean", steps=2)
def scan_that_returns_the_old_weights(loss, lr, steps):
    def task_loss(params, support, query):
        def step(p, _):
            return sgd(p, jax.grad(loss)(p, support), lr), loss(p, query)

        return jax.lax.scan(step, params, None, length=steps)[1][-1]

    return averaged(task_loss)


# --- Another inner rate ---------------------------------------------------------------------------------


@wrong("wrong inner rate", "sum")
def rate_written_into_the_step(loss, lr, steps):
    def task_loss(params, support, query):
        def step(p, _):
            return jax.tree.map(lambda w, g: w - 0.05 * g, p, jax.grad(loss)(p, support))

        return loss(repeated(step, params, steps), query)

    return summed(task_loss)


@wrong("wrong inner rate", "mean")
def rate_over_the_batch_size(loss, lr, steps):
    def task_loss(params, support, query):
        for _ in range(steps):
            params = sgd(params, jax.grad(loss)(params, support), lr / support[0].shape[0])
        return loss(params, query)

    return averaged(task_loss)


@wrong("wrong inner rate", "sum")
def outer_rate_in_the_inner_loop(loss, lr, steps):
    meta_lr = 1e-3

    def task_loss(params, support, query):
        return loss(repeated(lambda p, _: sgd(p, jax.grad(loss)(p, support), meta_lr), params, steps), query)

    return summed(task_loss)


@wrong("wrong inner rate", "mean", steps=2)
def rate_that_a_schedule_lowers(loss, lr, steps):
    def task_loss(params, support, query):
        def step(p, k):
            return jax.tree.map(lambda w, g: w - (lr * 0.9**k).astype(w.dtype) * g, p, jax.grad(loss)(p, support))

        return loss(repeated(step, params, steps), query)

    return averaged(task_loss)


# --- Ascent -----------------------------------------------------------------------------------------------


@wrong("ascent", "sum")
def plus_for_minus(loss, lr, steps):
    def task_loss(params, support, query):
        for _ in range(steps):
            params = jax.tree.map(lambda p, g: p + lr * g, params, jax.grad(loss)(params, support))
        return loss(params, query)

    return summed(task_loss)


@wrong("ascent", "mean")
def loss_negated_inside(loss, lr, steps):
    def task_loss(params, support, query):
        inner = jax.grad(lambda p: -loss(p, support))
        return loss(repeated(lambda p, _: sgd(p, inner(p), lr), params, steps), query)

    return averaged(task_loss)


# --- Support and query mixed up -----------------------------------------------------------------------------


def adapted_loss(loss, lr, steps):
    def task_loss(params, support, query):
        return loss(repeated(lambda p, _: sgd(p, jax.grad(loss)(p, support), lr), params, steps), query)

    return task_loss


@wrong("swapped data", "mean")
def support_and_query_exchanged(loss, lr, steps):
    return averaged(lambda params, support, query: adapted_loss(loss, lr, steps)(params, query, support))


@wrong("swapped data", "sum")
def exchanged_in_unpacking(loss, lr, steps):
    def task_loss(params, query, support):
        for _ in range(steps):
            params = sgd(params, jax.grad(loss)(params, support), lr)
        return loss(params, query)

    return summed(task_loss)


@wrong("query used for both", "sum")
def query_used_for_both(loss, lr, steps):
    return summed(lambda params, support, query: adapted_loss(loss, lr, steps)(params, query, query))


@wrong("support used for both", "mean")
def support_used_for_both(loss, lr, steps):
    return averaged(lambda params, support, query: adapted_loss(loss, lr, steps)(params, support, support))


# --- The last layer alone adapts ------------------------------------------------------------------------------


@wrong("head only", "sum")
def update_of_the_head_in_a_dict(loss, lr, steps, head):
    def task_loss(params, support, query):
        for _ in range(steps):
            grads = jax.grad(loss)(params, support)
            params = {**params, head: sgd(params[head], grads[head], lr)}
        return loss(params, query)

    return summed(task_loss)


@wrong("head only", "mean")
def inner_gradient_of_the_head(loss, lr, steps, head):
    def task_loss(params, support, query):
        inner = jax.grad(lambda h: loss({**params, head: h}, support))
        adapted = repeated(lambda h, _: sgd(h, inner(h), lr), params[head], steps)
        return loss({**params, head: adapted}, query)

    return averaged(task_loss)


# --- Cut in the middle ----------------------------------------------------------------------------------------


@wrong("cut in the middle", "sum", steps=3)
def gradient_stopped_at_every_other_step(loss, lr, steps):
    def task_loss(params, support, query):
        for k in range(steps):
            grads = jax.grad(loss)(params, support)
            if k % 2:
                grads = jax.lax.stop_gradient(grads)
            params = sgd(params, grads, lr)
        return loss(params, query)

    return summed(task_loss)


@wrong("cut in the middle", "mean", steps=3)
def gradient_from_the_middle(loss, lr, steps):
    step = jax.jit(lambda p, batch: sgd(p, jax.grad(loss)(p, batch), lr))
    second_half = jax.jit(jax.grad(adapted_loss(loss, lr, steps - steps // 2)))

    def meta_gradient(params, tasks):
        grads = []
        for support, query in tasks:
            fast = params
            for _ in range(steps // 2):
                fast = step(fast, support)
            grads.append(second_half(fast, support, query))
        return jax.tree.map(lambda *g: sum(g) / len(g), *grads)

    return meta_gradient


# --- Further mistakes -----------------------------------------------------------------------------------------


@wrong("no adaptation", "sum")
def adapted_weights_never_used(loss, lr, steps):
    def task_loss(params, support, query):
        fast = params
        for _ in range(steps):
            fast = sgd(fast, jax.grad(loss)(fast, support), lr)
        return loss(params, query)

    return summed(task_loss)


@wrong("restart from theta", "mean", steps=2)
def each_step_from_the_start(loss, lr, steps):
    def task_loss(params, support, query):
        adapted = repeated(lambda p, _: sgd(params, jax.grad(loss)(p, support), lr), params, steps)
        return loss(adapted, query)

    return averaged(task_loss)


@wrong("gradient computed once", "sum", steps=2)
def closure_over_the_first_weights(loss, lr, steps):
    def task_loss(params, support, query):
        grads = jax.grad(loss)(params, support)
        return loss(repeated(lambda p, _: sgd(p, grads, lr), params, steps), query)

    return summed(task_loss)


@wrong("momentum inside", "mean", steps=2)
def momentum_in_the_carry(loss, lr, steps):
    def task_loss(params, support, query):
        velocity = jax.tree.map(jnp.zeros_like, params)
        for _ in range(steps):
            velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, jax.grad(loss)(params, support))
            params = sgd(params, velocity, lr)
        return loss(params, query)

    return averaged(task_loss)


@wrong("sum inside", "sum")
def inner_loss_summed_over_examples(loss, lr, steps):
    def task_loss(params, support, query):
        inner = jax.grad(lambda p: support[0].shape[0] * loss(p, support))
        return loss(repeated(lambda p, _: sgd(p, inner(p), lr), params, steps), query)

    return summed(task_loss)


@wrong("not restored between tasks", "sum")
def weights_carried_from_task_to_task(loss, lr, steps):
    def meta_loss(params, tasks):
        total = 0
        for support, query in tasks:
            params = repeated(lambda p, _: sgd(p, jax.grad(loss)(p, support), lr), params, steps)  # noqa: B023
            total += loss(params, query)
        return total

    return jax.jit(jax.grad(meta_loss))


@wrong("only the last task", "sum")
def total_overwritten(loss, lr, steps):
    task_grad = jax.jit(jax.grad(adapted_loss(loss, lr, steps)))

    def meta_gradient(params, tasks):
        for task in tasks:
            grads = task_grad(params, *task)
        return grads

    return meta_gradient


@wrong("query loss at every step", "mean", steps=2)
def query_losses_averaged_over_steps(loss, lr, steps):
    def task_loss(params, support, query):
        def step(p, _):
            p = sgd(p, jax.grad(loss)(p, support), lr)
            return p, loss(p, query)

        return jax.lax.scan(step, params, None, length=steps)[1].mean()

    return averaged(task_loss)


@wrong("biases not adapted", "sum")
def only_matrices_adapt(loss, lr, steps):
    def step(p, support):
        return jax.tree.map(lambda w, g: w - lr * g if w.ndim > 1 else w, p, jax.grad(loss)(p, support))

    def task_loss(params, support, query):
        return loss(repeated(lambda p, _: step(p, support), params, steps), query)

    return summed(task_loss)


@wrong("body frozen", "mean")
def gradient_of_the_head_alone(loss, lr, steps, head):
    full = averaged(adapted_loss(loss, lr, steps))

    def meta_gradient(params, tasks):
        grads = full(params, tasks)
        return {k: v if k == head else jax.tree.map(jnp.zeros_like, v) for k, v in grads.items()}

    return meta_gradient


# --- The other algorithms -----------------------------------------------------------------------------------------


@wrong("first-order: at theta", "sum", "fomaml")
def query_gradient_before_adaptation(loss, lr, steps):
    return summed(lambda params, _, query: loss(params, query))


@wrong("anil: everything adapts", "mean", "anil")
def anil_that_adapts_everything(loss, lr, steps, head):
    return averaged(adapted_loss(loss, lr, steps))


@wrong("reptile: sign", "sum", "reptile")
def displacement_of_the_other_sign(loss, lr, steps):
    @jax.jit
    def one(params, support):
        phi = repeated(lambda p, _: sgd(p, jax.grad(loss)(p, support), lr), params, steps)
        return jax.tree.map(jnp.subtract, phi, params)

    return lambda params, tasks: added(one(params, support) for support, _ in tasks)


@wrong("joint: on the supports", "sum", "joint")
def joint_on_the_supports(loss, lr, steps):
    return summed(lambda params, support, _: loss(params, support))
