"""This package's own workers: `python -m refmeta.lab.bench.workers recorded | stacked | loop | byhand`."""

import json
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

import refmeta
from refmeta import adjoint, fast
from refmeta.fast import keep_freed_memory
from refmeta.fast.stacked import copies, stack
from refmeta.lab import adam, train
from refmeta.lab.bench import byhand, serving
from refmeta.lab.bench.cases import CASES, write
from refmeta.lab.training import trajectory_of_head
from refmeta.models import MLP, ConvNet, cross_entropy, squared_error
from refmeta.trees import Array, Batch, Loss, Supports, Tasks, Theta


def loss_of(case: Any) -> Loss:
    model = case.model
    if model["kind"] == "mlp":
        return squared_error(MLP(tuple(model["widths"]), model["activation"]))
    return cross_entropy(ConvNet(tuple(model["image"]), tuple(model["filters"]), model["ways"], model["activation"]))


def theta_of(case: Any) -> Theta:
    """θ as ConvNet has it: a convolution's W is (9·in, out)."""
    return [leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim == 4 else leaf for leaf in case.theta]


def tasks_of(case: Any, data: list[Array]) -> Tasks:
    """A list of tasks, as people have it; of a repeated support the same arrays."""

    def supports(x: Array, y: Array) -> Supports:
        return [(x[0], y[0])] * case.steps if case.repeated else list(zip(x, y, strict=True))

    return [(supports(sx, sy), (qx, qy)) for sx, sy, qx, qy in zip(*data, strict=True)]


def ours(way: Callable[..., Any]) -> Callable[..., Any]:
    """prepare(case) for `serving`, the algorithm run in some way."""

    def prepare(case: Any) -> Any:
        algorithm, loss = way(getattr(refmeta, case.algorithm)), loss_of(case)

        def gradient(theta: Theta, tasks: Tasks) -> Theta:
            return algorithm(loss, theta, tasks, case.alpha)  # type: ignore[no-any-return]

        return lambda data: tasks_of(case, data), *descending(case, theta_of(case), gradient)

    return prepare


def by_hand(case: Any) -> Any:
    """prepare(case) of the hand-derived gradient; its data are stacked before the clock starts."""
    if case.model["kind"] != "mlp":
        raise serving.Skip("derived by hand for fully connected networks")
    algorithm = getattr(byhand, case.algorithm)

    def gradient(theta: Theta, data: tuple[Supports, Batch]) -> Theta:
        return algorithm(copies(theta, case.tasks), *data, case.alpha)  # type: ignore[no-any-return]

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


def training(prepare: Any, case: Any, iterations: int) -> float:
    """The lab's own training, its tasks drawn and reports made on the way; the last loss reported."""

    def sample(rng: np.random.Generator) -> Tasks:
        return tasks_of(case, serving.by_task(case, serving.sine(rng, case)))

    algorithm = refmeta.recorded(refmeta.stacked(getattr(refmeta, case.algorithm)))
    _, history = train(algorithm, loss_of(case), theta_of(case), sample, case.alpha, iterations)
    return float(np.mean([loss for _, loss in history[-10:]]))


def memory(way: str, steps: int, tasks: int) -> float:
    """The peak of what one meta-gradient of S1's network allocates, in megabytes."""
    case = CASES["S1"]._replace(steps=steps, tasks=tasks)
    with TemporaryDirectory() as folder:
        loaded = serving.load(str(write(case, "maml", Path(folder))))
    algorithm = {"adjoint": adjoint.maml, "stacked adjoint": refmeta.stacked(adjoint.maml)}.get(way)
    prepare = (
        ours(lambda _: algorithm) if algorithm else WAYS[{"recording": "recorded", "by hand": "byhand"}.get(way, way)]
    )
    convert, gradient, _ = prepare(loaded)
    data = convert(serving.by_task(loaded, loaded.data))
    if way == "recorded":
        gradient(data)  # what a replay takes; a recording is made once
    tracemalloc.start()
    gradient(data)
    return tracemalloc.get_traced_memory()[1] / 1e6


def adaptation(case: Any, rounds: int = 100) -> dict[str, float]:
    """Milliseconds to adapt θ to all the case's supports, the whole of it and the head alone; medians, in turns."""
    loss, theta = loss_of(case), copies(theta_of(case), case.tasks)
    supports, _ = stack(tasks_of(case, serving.by_task(case, case.data)))
    supports = supports[:1] * case.steps if case.repeated else supports
    heads, times = {"maml": len(theta), "anil": case.head}, {"maml": [0.0], "anil": [0.0]}
    loops = {name: refmeta.recorded(trajectory_of_head(head)) for name, head in heads.items()}
    for _ in range(rounds):
        for name, adapt in loops.items():
            start = perf_counter()
            adapt(loss, theta, supports, case.alpha)
            times[name].append((perf_counter() - start) * 1e3)
    return {name: median(ms[2:]) for name, ms in times.items()}  # the first of each was the recording


def profile(case: Any, rounds: int = 200) -> list[tuple[str, int, float]]:
    """Where a replay spends its time: (function, calls, microseconds per replay), the most expensive first."""
    loss, algorithm = loss_of(case), refmeta.stacked(getattr(refmeta, case.algorithm))
    arguments = theta_of(case), tasks_of(case, serving.by_task(case, case.data))
    form, arrays = fast._form(arguments)
    replay = fast._compiled(*fast._record(lambda *a: algorithm(loss, *fast._fill(form, a), case.alpha), arrays))
    head, *lines, last = str(replay.__doc__).splitlines()
    timed = [f"    start = clock()\n{line}\n    spent[{i}] += clock() - start" for i, line in enumerate(lines)]
    scope = {**replay.__globals__, "spent": [0.0] * len(lines), "clock": perf_counter}
    exec("\n".join([head, *timed, last]), scope)
    for _ in range(rounds):
        scope["replay"](*arrays)
    total: dict[str, tuple[int, float]] = {}
    for line, spent in zip(lines, scope["spent"], strict=True):
        called = re.search(r"= (c\d+)\(", line)
        name = getattr(scope[called[1]], "__name__", "?") if called else "(freeing)"
        calls, sum_so_far = total.get(name, (0, 0.0))
        total[name] = calls + 1, sum_so_far + spent / rounds * 1e6
    return sorted(((name, *row) for name, row in total.items()), key=lambda row: -row[2])


WAYS = {
    "recorded": ours(lambda algorithm: refmeta.recorded(refmeta.stacked(algorithm))),
    "stacked": ours(refmeta.stacked),
    "loop": ours(lambda algorithm: algorithm),
    "byhand": by_hand,
}

if __name__ == "__main__":
    keep_freed_memory()
    way = sys.argv[1]
    if way == "memory":
        print(memory(sys.argv[2], *map(int, sys.argv[3:])))
    elif way == "profile":
        print(json.dumps(profile(serving.load(sys.argv[2]))))
    elif way == "adaptation":
        print(json.dumps(adaptation(serving.load(sys.argv[2]))))
    else:
        serving.serve(f"refmeta, {way}" if way != "byhand" else "by hand", refmeta.__version__, WAYS[way], training)
