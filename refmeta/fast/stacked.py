"""All tasks of an algorithm in one trace: each array gets a leading task axis."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from autograd.extend import defvjp, primitive
from autograd.tracer import getval

from refmeta.trees import Array, Batch, Loss, Supports, Tasks, Theta, add


def stacked(algorithm: Callable[..., Any]) -> Callable[..., Any]:
    """The same algorithm, its tasks in one trace: equal up to rounding, and many times faster.

        Σ over the task axis of algorithm(loss, copies of θ, [the stacked tasks], …)

    θ is copied once for each task and the tasks are stacked along a new leading axis. Tasks do not interact,
    so the gradient in the copies holds each task's own gradient; a number, `refmeta.objective`'s, is the sum over
    the tasks already. Ragged tasks go in groups of equal shapes.
    `loss` must return the *sum* of the tasks' losses when θ and the batch have a task axis, as the losses of
    `refmeta.models` do. ValueError: it does not, as tried on two of the tasks. TypeError: not an algorithm.
    """
    if not callable(algorithm) or "tasks" not in inspect.signature(algorithm).parameters:
        raise TypeError(f"stacked: expected an algorithm of (loss, theta, tasks, alpha), got {algorithm!r:.60}")

    bind = inspect.signature(algorithm).bind
    check = getattr(algorithm, "check", lambda *args, **kwargs: bind(*args, **kwargs).arguments)
    raw = inspect.unwrap(algorithm)  # a public name is checked once, before its tasks are stacked

    @wraps(algorithm)
    def all_at_once(*args: Any, **kwargs: Any) -> Any:
        given = check(*args, **kwargs)
        loss, theta, tasks = (given.pop(name) for name in ("loss", "theta", "tasks"))

        def together(group: Tasks) -> Any:
            if len(group) > 1 and (reason := why_not_stackable(loss, theta, group)):
                raise ValueError(f"stacked: {reason}")
            result = raw(loss, copies(theta, len(group)), [stack(group)], **given)
            return result if getattr(result, "shape", None) == () else [_total(leaf) for leaf in result]

        parts = [together(group) for group in in_cache(theta, tasks)]
        return add(parts) if isinstance(parts[0], list) else sum(parts)

    return all_at_once


def copies(theta: Theta, n: int) -> Theta:
    """θ with a leading task axis: n times the same."""
    return [_copied(leaf, n) for leaf in theta]


def stack(tasks: Tasks) -> tuple[Supports, Batch]:
    """Tasks of equal shapes as one task whose arrays have a leading task axis."""
    supports, queries = zip(*tasks, strict=True)
    query = None if queries[0] is None else _stack(queries)
    return [_stack(batches) for batches in zip(*supports, strict=True)], query  # type: ignore[return-value]


def by_shape(tasks: Tasks) -> list[Tasks]:
    """The tasks in groups of equal shapes, in order of first appearance."""
    groups: dict[Any, Tasks] = {}
    for supports, query in tasks:
        shapes = [None if b is None else tuple(map(np.shape, b)) for b in [*supports, query]]
        groups.setdefault(tuple(shapes), []).append((supports, query))
    return list(groups.values())


# Of θ's copies and the tasks' data together. With what is computed from them that fits in a core's cache:
# 1,000 tasks of a small network are 1.3 times faster in parts than at once (docs/performance.md).
CACHE = 2**19  # bytes


def in_cache(theta: Theta, tasks: Tasks) -> list[Tasks]:
    """The groups of `by_shape`, the large ones in equal parts that fit in CACHE."""
    own = sum(getval(leaf).nbytes for leaf in theta)
    parts = []
    for group in by_shape(tasks):
        supports, query = group[0]
        data = {id(array): getval(array).nbytes for batch in [*supports, query] if batch for array in batch}
        n = -(-len(group) * (own + sum(data.values())) // CACHE)
        size = -(-len(group) // n)
        parts += [group[i : i + size] for i in range(0, len(group), size)]
    return parts


def _stack(batches: Any) -> Batch:
    x, y = zip(*batches, strict=True)
    return _joined(*x), _joined(*y)


@primitive
def _joined(*arrays: Array) -> Array:
    """numpy.stack, faster. Data: not differentiated, but one call of a recording."""
    return np.concatenate(arrays, axis=None).reshape(len(arrays), *arrays[0].shape)


@primitive
def _copied(a: Array, n: int) -> Array:
    return np.broadcast_to(a, (n, *a.shape))


@primitive
def _total(a: Array) -> Array:
    """The sum over the task axis."""
    return np.add.reduce(a)


defvjp(_copied, lambda y, a, n: lambda g: _total(g))
defvjp(_total, lambda y, a: lambda g: _copied(g, len(a)))


def why_not_stackable(loss: Loss, theta: Theta, group: Tasks) -> str:
    """Empty if the loss sums over a task axis, as tried on the first and the last task; else the reason."""
    batches = [(supports or [query])[0] for supports, query in (group[0], group[-1])]
    if batches[0] is None:
        return ""  # neither supports nor queries: the loss is never called
    batches = [tuple(map(getval, batch)) for batch in batches]  # values: this is no part of a recording
    thetas = [[scale * getval(leaf) + shift for leaf in theta] for scale, shift in ((1, 0), (1.1, 0.01))]
    apart = sum(loss(phi, batch) for phi, batch in zip(thetas, batches, strict=True))
    try:
        at_once = loss([np.stack(leaves) for leaves in zip(*thetas, strict=True)], _stack(batches))
    except Exception as error:
        return f"this loss takes no leading task axis: {error}"
    if not np.isfinite(apart):
        return ""  # where the loss has overflowed, nothing can be told, and nothing is lost
    tolerance = 1e-4 if thetas[0][0].dtype.itemsize < 8 else 1e-9
    if np.shape(at_once) != () or not abs(at_once - apart) <= tolerance * abs(apart):
        said = f"on two tasks it returned {at_once}, and they sum to {apart}"
        return f"with a leading task axis the loss must return the sum over the tasks; {said}"
    return ""
