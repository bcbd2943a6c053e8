"""What a caller can get wrong, checked in one place: the public names are `checked` functions."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
from autograd.tracer import getval

from refmeta.trees import Array, Supports, Tasks, Theta

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F, query: bool = True) -> F:
    """The same function; its arguments are checked by their names, and α is made a Python float.

    The checks alone are its attribute `check`. With `query`, every task needs one.
    TypeError: an argument of the wrong kind. ValueError: one of the right kind with an impossible value.
    """
    signature = inspect.signature(function)
    optional = {name for name, p in signature.parameters.items() if p.default is None}

    def check(*args: Any, **kwargs: Any) -> inspect.BoundArguments:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if not callable(given["loss"]):
            raise TypeError(f"loss: expected a function of (theta, batch), got {_kind(given['loss'])}")
        given["theta"] = check_theta(given["theta"])
        if given["alpha"] is not None or "alpha" not in optional:
            given["alpha"] = check_alpha(given["alpha"])
        if "tasks" in given:
            given["tasks"] = check_tasks(given["tasks"], query)
        if "supports" in given:
            given["supports"] = _check_supports(given["supports"], "supports")
        if "head" in given:
            check_head(given["head"], len(given["theta"]))
        return bound

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(**check(*args, **kwargs).arguments)

    call.check = check  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def check_theta(theta: Any, name: str = "theta") -> Theta:
    """θ as a list, in this machine's byte order; refused unless a list or tuple of finite floating-point arrays."""
    leaves = _sequence(theta, name, "a list of arrays")
    if not leaves:
        raise ValueError(f"{name}: expected a list of arrays, got an empty one")
    for i, leaf in enumerate(leaves):
        value = _array(leaf, f"{name}[{i}]")
        if not np.issubdtype(value.dtype, np.floating):
            raise TypeError(f"{name}[{i}]: expected floating-point numbers, got {value.dtype}")
        _check_finite(value, f"{name}[{i}]")
        if not value.dtype.isnative:
            leaves[i] = leaf.astype(value.dtype.newbyteorder("="))
    return leaves


def check_like(gradient: Theta, theta: Theta) -> None:
    """ValueError unless the gradient has θ's arrays: as many, of the same shapes."""
    if len(gradient) != len(theta):
        raise ValueError(f"theta has {len(theta)} arrays, the gradient has {len(gradient)}")
    for i, (g, leaf) in enumerate(zip(gradient, theta, strict=True)):
        if np.shape(g) != np.shape(leaf):
            raise ValueError(f"array {i}: theta has shape {np.shape(leaf)}, the gradient has {np.shape(g)}")


def check_alpha(alpha: Any) -> float:
    """α as a Python float: a NumPy scalar would turn float32 into float64."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.integer, np.floating)):
        raise TypeError(f"alpha: expected one number, got {_kind(alpha)}")
    if not 0 <= alpha < 1e308:
        raise ValueError(f"alpha: expected a finite number of at least 0, got {alpha}")
    return float(alpha)


def check_tasks(tasks: Any, queries_needed: bool = True) -> Tasks:
    """Tasks as a list of (supports, query); refused unless all their data are finite arrays."""
    given: Tasks = _sequence(tasks, "tasks", "a list of tasks (supports, query)")
    if not given:
        raise ValueError("tasks: expected at least one task (supports, query), got an empty list")
    for i, task in enumerate(given):
        _check_task(task, f"tasks[{i}]", queries_needed)
    return given


def _check_task(task: Any, where: str, query_needed: bool) -> None:
    supports, query = _pair(task, where, "(supports, query)")
    _check_supports(supports, f"{where} supports")
    if query is not None:
        _check_batch(query, f"{where} query")
    elif query_needed:
        raise ValueError(f"{where} query: expected a batch (x, y), got None; only reptile needs no query")


def _check_supports(supports: Any, where: str) -> Supports:
    given: Supports = _sequence(supports, where, "a list of batches (x, y), one for each inner step")
    for k, batch in enumerate(given):
        _check_batch(batch, f"{where}[{k}]")
    return given


def _check_batch(batch: Any, where: str) -> None:
    for name, part in zip("xy", _pair(batch, where, "(x, y)"), strict=True):
        _check_finite(_array(part, f"{where} {name}"), f"{where} {name}")


def check_head(head: Any, arrays: int) -> None:
    """TypeError, ValueError unless `head` counts some of θ's arrays, none or all of them."""
    if isinstance(head, bool) or not isinstance(head, (int, np.integer)):
        raise TypeError(f"head: expected a number of arrays, got {_kind(head)}")
    if not 0 <= head <= arrays:
        raise ValueError(f"head: theta has {arrays} arrays, so 0 … {arrays} of them can adapt; got {head}")


def _sequence(value: Any, where: str, expected: str) -> list[Any]:
    if isinstance(getval(value), (str, np.ndarray)) or not isinstance(getval(value), Sequence):
        raise TypeError(f"{where}: expected {expected}, got {_kind(value)}")
    return list(value)


def _pair(value: Any, where: str, expected: str) -> Any:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{where}: expected a pair {expected}, got {_kind(value)}")
    return value


def _array(value: Array, where: str) -> Any:
    """The array's value. No subclass: a mask or a matrix gives * and @ other meanings, and may do so in silence."""
    value = getval(value)
    if type(value) is not np.ndarray and not isinstance(value, np.generic):
        plain = "NumPy array itself, no subclass" if isinstance(value, np.ndarray) else "NumPy array"
        raise TypeError(f"{where}: expected a {plain}, got {_kind(value)}")
    return value


def _check_finite(value: Any, where: str) -> None:
    if value.dtype.kind not in "fiub":
        raise TypeError(f"{where}: expected numbers, got {value.dtype}")
    if not np.isfinite(value).all():
        raise ValueError(f"{where}: expected finite numbers, got {'NaN' if np.isnan(value).any() else 'inf'}")


def _kind(value: Any) -> str:
    value = getval(value)
    if isinstance(value, np.ndarray):
        return f"{'an array' if type(value) is np.ndarray else f'a {type(value).__name__}'} of shape {value.shape}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r:.40}"
