"""The figures of the sine experiment (matplotlib, from the extra `lab`)."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refmeta.lab.display import COLOURS, by_method
from refmeta.lab.files import save_animation, save_figure
from refmeta.lab.plots import logarithmic, plot_adaptation, plot_curves, plot_training
from refmeta.lab.runs import Result, Run, test_alpha
from refmeta.lab.sine.experiment import ANIMATION, network, test_task
from refmeta.lab.sine.waves import LAWS, LIMIT, ZERO_MSE
from refmeta.lab.training import method_of


def draw(folder: Path, result: Result, runs: list[Run], animate: bool = False) -> None:
    """adaptation.png (and .gif), of these runs; curves.png, the training of these and the test of all."""
    last = max(runs[0].config.test_steps)
    save_figure(folder / "adaptation.png", adaptation(runs, tasks=3, steps={0, 1, last}))
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_training({run.config.method: run.history for run in runs}, left)
    logarithmic(right)
    levels = {name: [{"steps": 0, "mse": mse, "ci95": 0}] for name, mse in baselines(runs[0].config.law).items()}
    plot_curves(by_method(result["curve"]) | levels, right, "mse").set_ylabel("mean squared error")
    save_figure(folder / "curves.png", figure)
    if animate:
        save_animation(folder / ANIMATION, [adaptation(runs, 1, {0, k}) for k in range(last + 1)])


def adaptation(runs: Sequence[Run], tasks: int, steps: Collection[int]) -> Figure:
    """For each unseen task a row, for each run a column: the wave, the support points, and the prediction after these
    steps, with its error."""
    figure = Figure(figsize=(4.1 * len(runs), 2.9 * tasks), layout="constrained")
    for task, row in enumerate(figure.subplots(tasks, len(runs), squeeze=False)):
        for axis, run in zip(row, runs, strict=True):
            adapt_one(axis, run, task, steps)
    return figure


def adapt_one(axis: Any, run: Run, task: int, steps: Collection[int]) -> None:
    """The run's prediction of an unseen wave after these steps; the query is 50 points of the wave."""
    config, law, rng = run.config, LAWS[run.config.law], np.random.default_rng([run.seed, 2**34, task])
    (net, loss), wave, x = network(config), law.wave(rng), np.linspace(-LIMIT, LIMIT, 200)[:, None]
    supports, _ = test_task(config, wave, rng)
    (seen, y), colour = (law.sight(*wave, x), wave(x)), COLOURS[config.method]
    known = supports, (seen[::4], y[::4])
    how = loss, method_of(config).trajectory, seen
    plot_adaptation(net, run.theta, known, test_alpha(config), steps, axis, *how, color=colour)
    axis.set_ylabel(config.method, fontsize=12, weight="bold", color=colour)


def baselines(law: str) -> dict[str, float]:
    """The errors that are known exactly, by name."""
    _, best = LAWS[law].agnostic
    return {"best without the task": best, "always 0": ZERO_MSE} if best < ZERO_MSE else {"always 0": ZERO_MSE}
