"""What a small JAX repository shares."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import tree_util

from refmeta.conformance import Skip
from tests.blind.common import one_size

jax.config.update("jax_enable_x64", True)

tree_map = tree_util.tree_map


def theta_of(case):
    return [jnp.asarray(t) for t in case.theta]


def tasks_of(case):
    """Batches of arrays; a missing query stays None."""
    return tree_map(jnp.asarray, [([tuple(b) for b in S], None if Q is None else tuple(Q)) for S, Q in case.tasks])


def mlp(theta, x, act=jnp.tanh):
    for i in range(0, len(theta), 2):
        x = (act(x) if i else x) @ theta[i] + theta[i + 1]
    return x


def quadratic(theta, batch):
    t = jnp.concatenate([p.reshape(-1) for p in theta])
    return t @ batch[0] @ t / 2 - batch[1] @ t


def errors(case, out, y):
    if case.loss["kind"] == "cross_entropy":
        return -jax.nn.log_softmax(out)[jnp.arange(len(y)), y]
    return (out - y) ** 2


def make_loss(case, net=None, reduction=None):
    if case.model["kind"] == "quadratic":
        return quadratic
    net = net or partial(mlp, act={"tanh": jnp.tanh, "relu": jax.nn.relu}[case.model["activation"]])
    reduce = getattr(jnp, reduction or case.conventions["examples"])
    return lambda theta, batch: reduce(errors(case, net(theta, batch[0]), batch[1]))


def sgd(theta, g, lr):
    return tree_map(lambda p, d: p - lr * d, theta, g)


def adapt(loss, theta, supports, lr):
    for batch in supports:
        theta = sgd(theta, jax.grad(loss)(theta, batch), lr)
    return theta


def add(trees):
    return tree_map(lambda *leaves: sum(leaves), *trees)


def mean_or_sum(case, parts):
    n = len(parts) if case.conventions["tasks"] == "mean" else 1
    return tree_map(lambda *leaves: sum(leaves) / n, *parts)


def maml_of(case, of_task):
    loss = make_loss(case)
    return jax.grad(lambda theta: mean_or_sum(case, [of_task(loss, theta, S, Q) for S, Q in tasks_of(case)]))(
        theta_of(case)
    )


def stacked(trees):
    if len({str(tree_map(jnp.shape, tree)) for tree in trees}) > 1:
        raise Skip("batches of one size only")
    return tree_map(lambda *leaves: jnp.stack(leaves), *trees)


def same_steps(case):
    """Whether whole tasks could be stacked, with one step at least."""
    return one_size(case) and len({len(S) for S, _ in case.tasks}) == 1 and len(case.tasks[0][0]) > 0
