"""Check a meta-gradient written in JAX, and name the mistake in it."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_leaves, tree_map, tree_structure, tree_unflatten

from refmeta.conformance.audit import examine, like
from refmeta.conformance.network import adapting, exact, to_settings, to_tasks
from refmeta.conformance.report import Report
from refmeta.conformance.rules import Derivatives
from refmeta.trees import Theta


def audit(
    loss: Callable[[Any, Any], Any],
    meta_gradient: Callable[[Any, Any], Any],
    params: Any,
    tasks: Iterable[Any],
    *,
    lr: float,
    steps: int | None = None,
    algorithm: str = "maml",
    tasks_are: str | None = None,
    head: str | int = 2,
    dtype: str = "float64",
) -> Report:
    """Report whether `meta_gradient(params, tasks)` is the algorithm's for loss(params, (x, y)), and if not, why.

    `params` is any pytree of floating-point arrays, and the gradient has the same structure. Both functions get params
    and tasks in float64; with dtype="float32" `meta_gradient` is asked in float32 too. head: a key of `params`, as
    "dense_2" or "layers/2", or how many of the last arrays. The other arguments are those of `refmeta.torch.audit`.
    """
    tasks, (paths, tree) = list(tasks), tree_flatten_with_path(params)
    names, theta = [keystr(p, simple=True, separator="/") for p, _ in paths], [np.asarray(leaf) for _, leaf in paths]
    adapts = adapting(names, head, lambda name: f"{name}/".startswith(f"{head}/"))

    def value(phi: Theta, batch: Any) -> Any:
        return loss(tree_unflatten(tree, phi), batch)

    def slope(phi: Theta, batch: Any, v: Theta) -> Any:
        return sum(jax.numpy.vdot(g, leaf) for g, leaf in zip(jax.grad(value)(phi, batch), v, strict=True))

    def ask(many: int, dtype: str) -> Theta:
        with jax.enable_x64(dtype == "float64"):
            found = meta_gradient(_cast(params, dtype), _cast(tasks[:many], dtype))
        if tree_structure(found) != tree:
            raise ValueError(f"meta_gradient returned {tree_structure(found)}: expected {tree}")
        return like(theta, "meta_gradient", tree_leaves(found))

    settings = to_settings(algorithm, theta, to_tasks(tree_map(np.asarray, tasks), steps), lr, adapts)
    with jax.enable_x64(True):
        network = exact(Derivatives(_numpy(jax.grad(value)), _numpy(jax.grad(slope))), settings)
        return examine(network, ask, algorithm, ["float64", dtype], tasks_are)


def _numpy(function: Callable[..., Any]) -> Callable[..., Theta]:
    """A function of arrays, compiled, whose list of arrays is NumPy's."""
    compiled = jax.jit(function)
    return lambda *arguments: [np.asarray(leaf) for leaf in compiled(*arguments)]


def _cast(tree: Any, dtype: str) -> Any:
    """The tree with its floating-point numbers in this dtype."""

    def cast(leaf: Any) -> Any:
        array = np.asarray(leaf)
        return jax.numpy.asarray(array.astype(dtype) if array.dtype.kind == "f" else array)

    return tree_map(cast, tree)
