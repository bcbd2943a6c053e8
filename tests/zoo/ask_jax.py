"""A JAX implementation asked for its gradient of one problem, in the audit's terms."""

from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np


def bound(problem, style, steps):
    """The function (params, tasks) that the audit takes."""
    more = {"head": problem.head} if "head" in signature(style.run).parameters else {}
    return style.run(problem.loss, problem.lr, steps, **more)


def double(problem, seed):
    def cast(a):
        return a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(cast, (problem.params(seed), problem.tasks(seed)))


def gradient(problem, meta_gradient, seed):
    """The meta-gradient in float64, as one vector."""
    with jax.enable_x64(True):
        answer = meta_gradient(*double(problem, seed))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(answer)])
