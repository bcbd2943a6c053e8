"""What the benchmark's workers share: the protocol, a workload with its arrays, sine tasks, im2col. NumPy only.

A worker is `prepare(case)`, which returns three functions: convert(data) of NumPy arrays to the worker's own, by task;
gradient(data), the meta-gradient in NumPy and θ's layout; step(data), which descends and returns the loss, as
something that `float` waits for.
"""

import json
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np


class NotOffered(Exception):
    """The worker does not do this, and why."""


def load(path: str) -> Any:
    """The workload, with its arrays as case.theta and case.data."""
    with np.load(path) as file:
        arrays = dict(file)
    case = SimpleNamespace(**json.loads(str(arrays.pop("about"))))
    case.theta = [arrays[f"theta{i}"] for i in range(len(arrays) - 4)]
    case.data = [arrays[name] for name in ("support_x", "support_y", "query_x", "query_y")]
    case.tasks = len(case.data[2])
    case.cut = len(case.theta) - case.head if case.algorithm == "anil" else 0  # the arrays before it do not adapt
    return case


def by_task(case: Any, data: list[Any]) -> list[Any]:
    """The data with the tasks first, (tasks, steps, n, …), and of a repeated support batch only one."""
    return [(a[:1] if case.repeated else a).swapaxes(0, 1) for a in data[:2]] + data[2:]


def sine(rng: np.random.Generator, case: Any) -> list[Any]:
    """Fresh tasks y = A sin(x − phase) in the case's layout, one support batch for every inner step."""
    support, query = case.data[0].shape, case.data[2].shape
    amplitude, phase = rng.uniform(0.1, 5, (case.tasks, 1, 1)), rng.uniform(0, np.pi, (case.tasks, 1, 1))
    x, of_query = rng.uniform(-5, 5, support[1:]), rng.uniform(-5, 5, query)
    pairs = [a.astype(case.dtype) for x in (x, of_query) for a in (x, amplitude * np.sin(x - phase))]
    return [np.broadcast_to(a, (case.steps, *a.shape)) for a in pairs[:2]] + pairs[2:]


def patches(x: Any, numpy: Any = np) -> Any:
    """im2col: (…, h, w, c) to (…, h/2, w/2, 9c), the 3×3 neighbourhoods at stride 2 with a border of zeros."""
    h, w = ((n + 1) // 2 for n in x.shape[-3:-1])
    x = numpy.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    return numpy.concatenate([x[..., i : i + 2 * h : 2, j : j + 2 * w : 2, :] for i in range(3) for j in range(3)], -1)


def train(prepare: Callable[[Any], Any], case: Any, iterations: int) -> float:
    """Train on fresh sine tasks; the mean query loss of the last 100 iterations."""
    rng, losses = np.random.default_rng(0), deque[Any](maxlen=100)
    convert, _, step = prepare(case)
    for _ in range(iterations):
        losses.append(step(convert(by_task(case, sine(rng, case)))))
    return float(np.mean([float(loss) for loss in losses]))


def clock() -> float:
    """Milliseconds."""
    return time.perf_counter() * 1e3


def serve(name: str, version: str, prepare: Callable[[Any], Any], train: Any = train) -> None:
    """Answer the requests on stdin, a line of JSON each: {load, gradient}, after it {repeat}; or {load, train}."""
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints from now on goes to stderr
    run: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "train" in request:
                answer = {"loss": train(prepare, load(request["load"]), request["train"])}
            elif "load" in request:
                run, first_ms = begin(prepare, request["load"], request["gradient"])
                answer = {"name": name, "version": version, "first_ms": first_ms}
            else:
                answer = {"ms": [run() for _ in range(request["repeat"])]}
        except NotOffered as reason:
            answer = {"skip": str(reason)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=protocol, flush=True)


def begin(prepare: Callable[[Any], Any], path: str, target: str) -> tuple[Callable[[], float], float]:
    """A function that takes a step and returns its time, and the first gradient's time; that is left in `target`."""
    start = clock()
    case = load(path)
    convert, gradient, step = prepare(case)
    data = convert(by_task(case, case.data))
    leaves, first_ms = gradient(data), clock() - start
    np.savez(target, *leaves)

    def run() -> float:
        start = clock()
        float(step(data))
        return clock() - start

    return run, first_ms
