"""The checks of a caller's arguments: the public names of `refmeta` are `checked` functions."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeVar

import numpy as np
from autograd.tracer import getval

from refmeta.trees import Supports, Tasks, Theta

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F, query: bool = True) -> F:
    """The same function, with its arguments checked, each by its name, and α made a Python float.

    Its attribute `check` is the checks alone. query: whether every task needs a query.
    TypeError: an argument of the wrong kind. ValueError: one of the right kind with an impossible value.
    """
    signature = inspect.signature(function)
    tasks = partial(check_tasks, queries_needed=query)
    checks: dict[str, Any] = {"theta": check_theta, "alpha": check_alpha, "supports": _check_supports, "tasks": tasks}

    def check(*args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if not callable(given["loss"]):
            raise TypeError(f"loss: expected a function of (theta, batch), got {_described(given['loss'])}")
        for name in checks:
            if name in given and given[name] is not signature.parameters[name].default:
                given[name] = checks[name](given[name])
        if "head" in given:
            check_head(given["head"], len(given["theta"]))
            if not given["head"]:  # nothing adapts: autograd would warn of a derivative in nothing
                given["tasks"] = [([], query) for _, query in given["tasks"]]
        return given

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = check(*args, **kwargs)
        try:
            return function(**given)
        except TypeError as error:
            if not (why := _of_the_loss(error)):
                raise
        raise TypeError(f"loss: expected one number, computed with autograd.numpy; {why}")

    call.check = check  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def _of_the_loss(error: TypeError) -> str:
    """What autograd could not differentiate, and where; empty if the error is about something else."""
    if "scalar-output" in str(error):
        return "it returns an array"
    ours = str(Path(__file__).parent), str(Path(inspect.getfile(getval)).parent), str(Path(np.__file__).parent)
    places = [place for place in extract_tb(error.__traceback__) if not place.filename.startswith(ours)]
    return f"{error} ({places[-1].filename}:{places[-1].lineno})" if "ArrayBox" in str(error) and places else ""


def check_theta(theta: Any, name: str = "theta") -> Theta:
    """θ as a list, in this machine's byte order. It must be a list or tuple of finite floating-point arrays."""
    leaves = _sequence(theta, name, "a list of arrays")
    if not leaves:
        raise ValueError(f"{name}: expected a list of arrays, got an empty one")
    for i, leaf in enumerate(leaves):
        dtype = _numbers(leaf, f"{name}[{i}]", "f", "floating-point numbers").dtype
        leaves[i] = leaf if dtype.isnative else leaf.astype(dtype.newbyteorder("="))
    return leaves


def check_like(gradient: Theta, theta: Theta) -> None:
    """ValueError unless the gradient has as many arrays as θ, of the same shapes."""
    if len(gradient) != len(theta):
        raise ValueError(f"theta has {len(theta)} arrays, the gradient has {len(gradient)}")
    for i, (g, leaf) in enumerate(zip(gradient, theta, strict=True)):
        if np.shape(g) != np.shape(leaf):
            raise ValueError(f"array {i}: theta has shape {np.shape(leaf)}, the gradient has {np.shape(g)}")


def check_alpha(alpha: Any) -> float:
    """α as a Python float: a NumPy scalar would turn float32 into float64."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.integer, np.floating)):
        raise TypeError(f"alpha: expected one number, got {_described(alpha)}")
    if not 0 <= alpha < 1e308:
        raise ValueError(f"alpha: expected a finite number of at least 0, got {alpha}")
    return float(alpha)


def check_tasks(tasks: Any, queries_needed: bool = True) -> Tasks:
    """Tasks as a list of (supports, query). All their data must be finite arrays."""
    given: Tasks = _sequence(tasks, "tasks", "a list of tasks (supports, query)")
    if not given:
        raise ValueError("tasks: expected at least one task (supports, query), got an empty list")
    for i, task in enumerate(given):
        supports, query = _sequence(task, f"tasks[{i}]", "a pair (supports, query)", 2)
        _check_supports(supports, f"tasks[{i}] supports")
        if query is not None:
            _check_batch(query, f"tasks[{i}] query")
        elif queries_needed:
            raise ValueError(f"tasks[{i}] query: expected a batch (x, y), got None; only reptile needs no query")
    return given


def _check_supports(supports: Any, where: str = "supports") -> Supports:
    given: Supports = _sequence(supports, where, "a list of batches (x, y), one for each inner step")
    for k, batch in enumerate(given):
        if not k or batch is not given[k - 1]:  # the same batch for every step is checked once
            _check_batch(batch, f"{where}[{k}]")
    return given


def _check_batch(batch: Any, where: str) -> None:
    for name, part in zip("xy", _sequence(batch, where, "a pair (x, y)", 2), strict=True):
        _numbers(part, f"{where} {name}")


def check_head(head: Any, arrays: int) -> None:
    """TypeError, ValueError unless `head` counts some of θ's arrays, none or all of them."""
    if isinstance(head, bool) or not isinstance(head, (int, np.integer)):
        raise TypeError(f"head: expected a number of arrays, got {_described(head)}")
    if not 0 <= head <= arrays:
        raise ValueError(f"head: theta has {arrays} arrays, so 0 … {arrays} of them can adapt; got {head}")


def _sequence(value: Any, where: str, expected: str, length: int | None = None) -> list[Any]:
    plain = getval(value)
    if not isinstance(plain, Sequence) or isinstance(plain, str) or length not in (None, len(plain)):
        raise TypeError(f"{where}: expected {expected}, got {_described(value)}")
    return list(value)


def _numbers(value: Any, where: str, kinds: str = "fiub", expected: str = "numbers") -> Any:
    """An array's value, of finite numbers. No subclass: a masked array or matrix silently changes * and @."""
    value = getval(value)
    if type(value) is not np.ndarray and not isinstance(value, np.generic):
        plain = "NumPy array itself, no subclass" if isinstance(value, np.ndarray) else "NumPy array"
        raise TypeError(f"{where}: expected a {plain}, got {_described(value)}")
    if value.dtype.kind not in kinds:
        raise TypeError(f"{where}: expected {expected}, got {value.dtype}")
    if not np.isfinite(value).all():
        raise ValueError(f"{where}: expected finite numbers, got {'NaN' if np.isnan(value).any() else 'inf'}")
    return value


def _described(value: Any) -> str:
    value = getval(value)
    if isinstance(value, np.ndarray):
        return f"{'an array' if type(value) is np.ndarray else f'a {type(value).__name__}'} of shape {value.shape}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r:.40}"
