"""What a small NumPy repository shares: networks and losses in autograd's NumPy, and lists of arrays as vectors."""

from functools import partial

import autograd.numpy as np
from autograd import grad

from refmeta.models import ACTIVATIONS, tanh  # autograd's own overflows to NaN where an inner loop runs away


def flat(theta):
    return np.concatenate([np.reshape(t, (-1,)) for t in theta])


def unflat(vector, theta):
    parts, start = [], 0
    for t in theta:
        size = int(np.prod(np.shape(t)))
        parts.append(np.reshape(vector[start : start + size], np.shape(t)))
        start += size
    return parts


def mlp(theta, x, act=tanh):
    for i in range(0, len(theta), 2):
        x = (act(x) if i else x) @ theta[i] + theta[i + 1]
    return x


def log_softmax(z):
    return z - np.log(np.sum(np.exp(z), axis=1, keepdims=True))


def labelled(case):
    return case.loss["kind"] == "cross_entropy"


def errors(case, out, y):
    """An error for each entry, or each example."""
    return -log_softmax(out)[np.arange(len(y)), y] if labelled(case) else (out - y) ** 2


def quadratic(theta, batch):
    t, (A, b) = flat(theta), batch
    return t @ A @ t / 2 - b @ t


def make_loss(case, net=None, reduction=None):
    if case.model["kind"] == "quadratic":
        return quadratic
    net = net or partial(mlp, act=ACTIVATIONS[case.model["activation"]])
    reduce = {"mean": np.mean, "sum": np.sum}[reduction or case.conventions["examples"]]
    return lambda theta, batch: reduce(errors(case, net(theta, batch[0]), batch[1]))


def merged(case, batches):
    """Several batches as one; of quadratics the mean."""
    xs, ys = zip(*batches, strict=True)
    if case.model["kind"] == "quadratic":
        return sum(xs) / len(xs), sum(ys) / len(ys)
    return np.concatenate(xs), np.concatenate(ys)


def descend(theta, g, lr):
    return [t - lr * d for t, d in zip(theta, g, strict=True)]


def path(loss, theta, supports, alpha):
    """φ₀ … φ_K."""
    phis = [list(theta)]
    for batch in supports:
        phis.append(descend(phis[-1], grad(loss)(phis[-1], batch), alpha))
    return phis


def dot(a, b):
    return sum(np.sum(x * y) for x, y in zip(a, b, strict=True))


def hvp(loss, phi, batch, v):
    return grad(lambda p: dot(grad(loss)(list(p), batch), v))(list(phi))


def add(trees):
    return [sum(leaves) for leaves in zip(*trees, strict=True)]


def times(factor, tree):
    return [factor * leaf for leaf in tree]


def combine(case, per_task):
    """The sum over the tasks, or their mean where that is asked for."""
    return times(1 / len(per_task) if case.conventions["tasks"] == "mean" else 1, add(per_task))


def through(case, value, tasks=None):
    """∇ of value(θ, supports, query), combined over the tasks."""
    tasks = case.tasks if tasks is None else tasks
    return combine(case, [grad(lambda theta: value(list(theta), *task))(case.theta) for task in tasks])


def unit(case, supports):
    """What Reptile's displacement is divided by."""
    alpha, k = case.alpha, len(supports)
    return {"displacement": 1, "over_alpha": alpha, "over_alpha_k": alpha * k}[case.conventions["reptile"]]


def one_size(case):
    """Whether all tasks' supports, and their queries, could be stacked."""
    supports, queries = [b[0].shape for S, _ in case.tasks for b in S], [Q[0].shape for _, Q in case.tasks if Q]
    return len(set(supports)) <= 1 and len(set(queries)) <= 1
