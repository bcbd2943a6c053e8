"""All tasks of an algorithm in one trace: each array gets a leading task axis."""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import numpy as np
from autograd import value_and_grad
from autograd.extend import defvjp, primitive
from autograd.tracer import getval

from refmeta.trees import Array, Batch, Loss, Supports, Tasks, Theta, add


def stacked(algorithm: Callable[..., Any]) -> Callable[..., Any]:
    """The same algorithm, its tasks in one trace: equal up to rounding, and many times faster.

        Σ over the task axis of algorithm(loss, copies of θ, [the stacked tasks], …)

    θ is copied once for each task, and the tasks are stacked along a new leading axis. Tasks do not interact, so the
    gradient with respect to the copies holds each task's own gradient. A number, as of `refmeta.objective`, is the sum
    over the tasks already. Tasks of different shapes are run in groups of equal shapes.
    When θ and the batch have a task axis, `loss` must return the *sum* of the tasks' losses, as the losses of
    `refmeta.models` do. This is tested once for each loss and set of shapes, on values and gradients.
    ValueError: it does not return the sum, or no test could tell. TypeError: not an algorithm.
    """
    if not callable(algorithm) or "tasks" not in inspect.signature(algorithm).parameters:
        raise TypeError(f"stacked: expected an algorithm of (loss, theta, tasks, alpha), got {algorithm!r:.60}")

    bind = inspect.signature(algorithm).bind
    check = getattr(algorithm, "check", lambda *args, **kwargs: bind(*args, **kwargs).arguments)
    raw = inspect.unwrap(algorithm)  # arguments are checked once, before the tasks are stacked

    @wraps(algorithm)
    def all_at_once(*args: Any, **kwargs: Any) -> Any:
        given = check(*args, **kwargs)
        loss, theta, tasks = (given.pop(name) for name in ("loss", "theta", "tasks"))

        def together(group: Tasks) -> Any:
            if reason := why_not_stackable(loss, theta, group):
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


# For θ's copies and the tasks' data; with all that is computed from them they then fit in a core's cache.
# 1,000 tasks of a small network are 1.3 times faster in such parts than at once (docs/performance.md).
CACHE = 2**19  # bytes


def in_cache(theta: Theta, tasks: Tasks) -> list[Tasks]:
    """The groups of `by_shape`, large ones cut into equal parts that fit in CACHE."""
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
    """numpy.stack, faster. For data: it has no derivative, and is one call of a recording."""
    return np.array(arrays)


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
    """Empty if the loss sums over a task axis of this many tasks, and of one more; else the reason why not.

    The tasks have equal shapes. Every shape of a batch is tried once, on values and gradients. The reason may be that
    no finite gradient was found to test with.
    """
    theta = [getval(leaf) for leaf in theta]
    by_shape: dict[Any, list[Batch]] = {}
    few = [[*supports, query] for supports, query in (group[0], group[len(group) // 2], group[-1])]
    for batches in zip(*few, strict=True):
        if batches[0] is not None:
            some = [tuple(map(getval, batch)) for batch in batches]  # values: no part of a recording
            by_shape.setdefault(_form(some[0]), some)
    owner = getattr(loss, "__self__", loss), getattr(loss, "__func__", loss)  # a bound method is a new object each time
    for form, some in by_shape.items():
        key = *map(id, owner), len(group), form, _form(theta)
        reason, _ = TRIED.get(key) or (_tried(loss, theta, some, len(group)), owner)
        TRIED[key] = reason, owner  # the owner is kept, so that its id stays its own
        while len(TRIED) > 256:
            TRIED.pop(next(iter(TRIED)), None)
        if reason:
            return reason
    return ""


TRIED: dict[Any, tuple[str, Any]] = {}  # by loss, number of tasks and shapes


def _form(arrays: Any) -> Any:
    return tuple([(np.shape(a), getattr(a, "dtype", None)) for a in arrays])


def _tried(loss: Loss, theta: Theta, batches: list[Batch], n: int) -> str:
    """Why the loss does not sum over n tasks, or n + 1: copies of three batches, each with its own θ."""
    loss(theta, batches[0])  # raises the loss's own error
    value_and_gradient, told = value_and_grad(loss), False
    for dtype in {theta[0].dtype, np.dtype(float)}:
        for thetas, data in _points(theta, batches, dtype):
            try:
                apart = [value_and_gradient(phi, batch) for phi, batch in zip(thetas, data, strict=True)]
            except Exception:
                continue  # outside the loss's domain
            if not all(np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in g) for value, g in apart):
                continue
            for again in ([i % 3 for i in range(n)], [i % 3 for i in range(n + 1)]):
                try:
                    start = [np.stack(leaves) for leaves in zip(*[thetas[i] for i in again], strict=True)]
                    value, gradient = value_and_gradient(start, _stack([data[i] for i in again]))
                except Exception as error:
                    return f"this loss takes no leading task axis: {error}"
                values, gradients = zip(*[apart[i] for i in again], strict=True)
                expected = [np.stack(leaves) for leaves in zip(*gradients, strict=True)]
                if not _agree(value, gradient, values, expected, 1e-11 if dtype.itemsize == 8 else 1e-4):
                    must = "with a leading task axis the loss must return the sum over the tasks"
                    said = f"for {len(again)} tasks it returned {value}, their sum is {sum(values)}"
                    return f"{must}; {said} (if these agree, the gradients differ)"
            told = True
    return "" if told else "no finite gradient was found that shows whether the loss sums over a leading task axis"


def _points(theta: Theta, batches: list[Batch], dtype: Any) -> Iterator[tuple[list[Theta], list[Batch]]]:
    """Three θ's and batches near the given ones; then three small ones, finite even where the given ones are not."""

    def wave(leaf: Array, i: int) -> Array:
        return np.sin((i + 1) * np.arange(1.0, leaf.size + 1)).reshape(leaf.shape)

    def finite(a: Array, squash: Callable[[Array], Array]) -> Array:
        return squash(np.where(np.isfinite(a), a, 0.5)).astype(dtype) if np.asarray(a).dtype.kind == "f" else a

    for near, squash in ((1, np.positive), (0, np.tanh)):
        start, step = [near * leaf for leaf in theta], 0.5 / 32**near
        thetas = [[leaf + (leaf / 10 + step) * wave(leaf, i) for leaf in start] for i in range(3)]
        data = [(finite(x, squash), finite(y, squash)) for x, y in batches]
        yield [[leaf.astype(dtype) for leaf in t] for t in thetas], data


def _agree(value: Any, gradient: Theta, values: Any, gradients: Theta, tolerance: float) -> bool:
    """Whether, up to rounding, the value is the tasks' sum, and the gradient has the tasks' gradients."""
    largest = [np.max(np.abs(leaf), initial=0) for leaf in gradients]
    limits = [tolerance * (own + max(largest) / 1000) for own in largest]
    same = [np.max(np.abs(a - b), initial=0) <= t for a, b, t in zip(gradient, gradients, limits, strict=True)]
    return np.shape(value) == () and abs(value - sum(values)) <= tolerance * sum(map(abs, values)) and all(same)
