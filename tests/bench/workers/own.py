"""This package's own workers: `python -m tests.bench.workers.own WAY`, one of WAYS."""

import json
import re
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

import refmeta
from refmeta import adjoint, algorithms
from refmeta.fast import keep_freed_memory
from refmeta.fast.stacked import copies, stack
from refmeta.lab import adam, train
from refmeta.models import MLP, ConvNet, cross_entropy, squared_error
from refmeta.trees import Array, Batch, Loss, Supports, Tasks, Theta, holding, split
from tests.bench import pearlmutter, serving
from tests.bench.workloads import Workload, write


def loss_of(case: Any) -> Loss:
    model = {key: tuple(value) if isinstance(value, list) else value for key, value in case.model.items()}
    return squared_error(MLP(**model)) if model.pop("kind") == "mlp" else cross_entropy(ConvNet(**model))


def theta_of(case: Any) -> Theta:
    """θ as ConvNet has it: a convolution's W is (9·in, out)."""
    return [leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim == 4 else leaf for leaf in case.theta]


def tasks_of(case: Any, data: list[Array]) -> Tasks:
    """A list of tasks, as people have it; of a repeated support the same arrays."""

    def supports(x: Array, y: Array) -> Supports:
        return [(x[0], y[0])] * case.steps if case.repeated else list(zip(x, y, strict=True))

    return [(supports(sx, sy), (qx, qy)) for sx, sy, qx, qy in zip(*data, strict=True)]


def running(way: Callable[..., Any], module: Any = refmeta) -> Callable[[Any], Any]:
    """prepare(case) for `serving`, the module's algorithm run in some way."""

    def prepare(case: Any) -> Any:
        algorithm, loss = way(getattr(module, case.algorithm)), loss_of(case)

        def gradient(theta: Theta, tasks: Tasks) -> Theta:
            return algorithm(loss, theta, tasks, case.alpha)

        return lambda data: tasks_of(case, data), *descending(case, theta_of(case), gradient)

    return prepare


def by_hand(case: Any) -> Any:
    """prepare(case) of the hand-derived gradient; its data are stacked before the clock starts."""
    if case.model["kind"] != "mlp":
        raise serving.NotOffered("derived by hand for fully connected networks")
    algorithm = getattr(pearlmutter, case.algorithm)

    def gradient(theta: Theta, data: tuple[Supports, Batch]) -> Theta:
        return algorithm(copies(theta, case.tasks), *data, case.alpha)

    def convert(data: list[Array]) -> tuple[Supports, Batch]:
        sx, sy, qx, qy = data
        batches = [(sx[:, k], sy[:, k]) for k in range(sx.shape[1])]
        return batches * case.steps if case.repeated else batches, (qx, qy)

    return convert, *descending(case, case.theta, gradient)


def descending(case: Any, theta: Theta, algorithm: Callable[[Theta, Any], Theta]) -> Any:
    """gradient(data) at the first θ, in the case's layout; step(data), an outer step from the last θ."""
    outer, state = adam(1e-3), None

    def gradient(data: Any) -> list[Array]:
        return [g.reshape(t.shape) for g, t in zip(algorithm(theta, data), case.theta, strict=True)]

    def step(data: Any) -> float:
        nonlocal theta, state
        theta, state = outer(theta, [g / case.tasks for g in algorithm(theta, data)], state)
        return 0.0

    return gradient, step


def fast(algorithm: Callable[..., Theta]) -> Callable[..., Theta]:
    return refmeta.recorded(refmeta.stacked(algorithm))


WAYS = {
    "by hand": by_hand,
    "recorded": running(fast),
    "stacked": running(refmeta.stacked),
    "loop": running(lambda algorithm: algorithm),
    "stacked adjoint": running(refmeta.stacked, adjoint),
    "adjoint": running(lambda algorithm: algorithm, adjoint),
}


def training(prepare: Any, case: Any, iterations: int) -> float:
    """The lab's own training, its tasks drawn and reports made on the way; the last loss reported."""

    def sample(rng: np.random.Generator) -> Tasks:
        return tasks_of(case, serving.by_task(case, serving.sine(rng, case)))

    algorithm = fast(getattr(refmeta, case.algorithm))
    _, history = train(algorithm, loss_of(case), theta_of(case), sample, case.alpha, iterations)
    return float(np.mean([loss for _, loss in history[-10:]]))


def peak_megabytes(way: str, work: Workload) -> float:
    """The peak of what one meta-gradient of MAML allocates, in megabytes; "recording" is the first of `recorded`."""
    with TemporaryDirectory() as folder:
        case = serving.load(str(write(work, "maml", Path(folder, "work.npz"))))
    convert, gradient, _ = WAYS.get(way, WAYS["recorded"])(case)
    data = convert(serving.by_task(case, case.data))
    if way == "recorded":
        gradient(data)  # what a replay takes; a recording is made once
    tracemalloc.start()
    gradient(data)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


def adaptation(case: Any, rounds: int = 100) -> dict[str, float]:
    """Milliseconds to adapt θ to all the case's supports, the whole of it and the head alone; medians, in turns."""
    loss, theta = loss_of(case), copies(theta_of(case), case.tasks)
    supports, _ = stack(tasks_of(case, serving.by_task(case, case.data)))
    supports = supports[:1] * case.steps if case.repeated else supports

    def adapt(theta: Theta, supports: Supports, head: int) -> Theta:
        body, h = split(theta, head)
        return algorithms.adapt(holding(body, loss), h, supports, case.alpha)

    heads, times, run = {"maml": len(theta), "anil": case.head}, {"maml": [0.0], "anil": [0.0]}, refmeta.recorded(adapt)
    for _ in range(rounds):
        for name, head in heads.items():
            start = perf_counter()
            run(theta, supports, head)
            times[name].append((perf_counter() - start) * 1e3)
    return {name: median(ms[2:]) for name, ms in times.items()}  # the first of each was the recording


def profile(case: Any, rounds: int = 200) -> list[tuple[str, int, float]]:
    """Where a replay spends its time: (function, calls, microseconds per replay), the most expensive first.

    A replay is a Python function with a call on each line and its source for a docstring; a tracer times the lines.
    """
    convert, gradient, _ = WAYS["recorded"](case)
    data = convert(serving.by_task(case, case.data))
    gradient(data)
    stamps: list[tuple[dict[str, Any], int, float]] = []

    def tracer(frame: Any, *_: Any) -> Any:
        if frame.f_code.co_name != "replay":
            return None
        stamps.append((frame.f_globals, frame.f_lineno, perf_counter()))
        return tracer

    sys.settrace(tracer)
    for _ in range(rounds):
        gradient(data)
    sys.settrace(None)
    calls, spent = Counter[str](), Counter[str]()
    for (scope, line, start), (_, _, end) in pairwise(stamps):
        if call := re.match(r"    (?:\w+ = (\w+)\(|del )", scope["replay"].__doc__.splitlines()[line - 1]):
            name = getattr(scope[call[1]], "__name__", "?") if call[1] else "(freeing)"
            calls[name] += 1
            spent[name] += (end - start) / rounds * 1e6
    return [(name, calls[name] // rounds, us) for name, us in spent.most_common()]


if __name__ == "__main__":
    keep_freed_memory()
    what, *path = sys.argv[1:]
    if path:
        print(json.dumps({"profile": profile, "adaptation": adaptation}[what](serving.load(*path))))
    else:
        serving.serve(what if what == "by hand" else f"refmeta, {what}", refmeta.__version__, WAYS[what], training)
