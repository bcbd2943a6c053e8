"""Compute each row of the papers' tables from a trained θ."""

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from refmeta import algorithms
from refmeta.fast import recorded, stacked
from refmeta.lab.display import Curve
from refmeta.lab.fewshot import experiment as characters
from refmeta.lab.fewshot.images import episode
from refmeta.lab.reproduce.papers import Row
from refmeta.lab.reuse import experiment as reuse
from refmeta.lab.reuse import measurements as measure
from refmeta.lab.runs import Run, test_alpha
from refmeta.lab.sine import experiment as waves
from refmeta.lab.training import trajectory_of_head
from refmeta.models import accuracy
from refmeta.trees import Theta


def read(lab: reuse.Lab, row: Row, run: Run) -> Curve:
    """What a row of the table says of a run."""
    if row.test:
        return waves.tested(replace(run.config, **row.test), run.theta, run.seed)
    if row.read in ("", "together"):  # all queries in one batch, see `fewshot.accuracies`
        return [each for each in run.curve if ("method" in each) == bool(row.read)]
    if row.read == "pixels":  # the nearest neighbour's accuracy, without a network
        return characters.by_pixels(lab.tasks(run.config, run.seed))
    score, measured = reads(lab, run)[row.read]
    found = measured()
    kept = {score if key == "mean" else key: found[key] for key in ("mean", "ci95", "diverged")}
    return [{"steps": max(run.config.test_steps), **kept}]


def reads(lab: reuse.Lab, run: Run) -> dict[str, tuple[str, Callable[[], measure.Row]]]:
    """Whatever else can be read from a θ trained on characters, by name: the score and its measurement."""
    config, theta, alpha = run.config, run.theta, test_alpha(run.config)
    (net, loss), tasks = lab.network(config), lab.tasks(config, run.seed)

    def nil(theta: Theta) -> measure.Row:
        """After multiclass training the head is wider: one output for each class."""
        return measure.regimes({"": (replace(net, classes=theta[-1].size), theta)}, tasks)[0]

    def alike(part: slice) -> measure.Row:
        """The lowest CCA before and after adaptation among these layers."""
        layers, few = lab.layers(net), tasks[: reuse.ALIKE]
        found = measure.similarity(lambda *at: layers(*at)[part], loss, theta, few, alpha)
        return min((row["cca"] for row in found), key=lambda row: row["mean"])

    def ratio(maml: Any, anil: Any, data: Any) -> measure.Row:
        return {"mean": times(maml, anil, loss, theta, data, config.alpha), "ci95": 0.0, "diverged": 0}

    outer = stacked(algorithms.maml), stacked(algorithms.anil)
    inner = algorithms.trajectory, trajectory_of_head(2)
    return {
        "frozen": ("accuracy", lambda: measure.frozen(loss, theta, tasks, alpha, accuracy(net))[-2]),  # the body
        "nil": ("accuracy", lambda: nil(theta)),
        "random features": ("accuracy", lambda: nil(characters.initial(config, run.seed))),
        "body": ("cca", lambda: alike(slice(-1))),
        "head": ("cca", lambda: alike(slice(-1, None))),
        "economy": ("ratio", lambda: ratio(*outer, drawn(lab, config))),
        "economy at test": ("ratio", lambda: ratio(*inner, tasks[0][0])),
    }


def drawn(lab: reuse.Lab, config: Any) -> Any:
    """The tasks of an outer step."""
    rng, classes = np.random.default_rng(0), lab.images(config).train
    shape = config.ways, config.shots, config.queries, config.inner_steps
    return [episode(rng, classes, *shape) for _ in range(config.tasks)]


def times(one: Callable[..., Any], other: Callable[..., Any], *given: Any) -> float:
    """The median ratio of the times of two functions, recorded and called in turn."""

    def seconds(function: Callable[..., Any]) -> float:
        start = perf_counter()
        function(*given)
        return perf_counter() - start

    pair = recorded(one), recorded(other)
    ratios = [seconds(pair[0]) / seconds(pair[1]) for _ in range(PAIRS)]
    return median(ratios[PAIRS // 4 :])  # without the first, which record


PAIRS = 40
