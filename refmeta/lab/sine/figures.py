"""The figures of the sine experiment (matplotlib, from the extra `lab`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refmeta.lab.display import COLOURS, FAINT, INK, Curve, by_method, draw_curve, plain_axis, plural
from refmeta.lab.files import save_figure
from refmeta.lab.runs import Result, Run, test_alpha
from refmeta.lab.sine.experiment import network, test_task
from refmeta.lab.sine.waves import LAWS, LIMIT, ZERO_MSE
from refmeta.lab.training import method_of

TASKS = 3


def draw(folder: Path, result: Result, runs: list[Run]) -> None:
    """adaptation.png, of these runs, and curves.png, of all."""
    adaptation(folder / "adaptation.png", runs)
    curves(folder / "curves.png", by_method(result["curve"]), runs[0].config.law)


def adaptation(path: Path, runs: Sequence[Run]) -> None:
    """For each run a row, for each of three unseen tasks a column: the true wave, the support points,
    and the prediction after 0, 1 and all steps."""
    figure = Figure(figsize=(10.5, 0.7 + 2.4 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), TASKS, sharex=True, sharey="col", squeeze=False)
    for row, run in zip(axes, runs, strict=True):
        for column, axis in enumerate(row):
            _adapt_one(axis, run, column)
        row[0].set_ylabel(run.config.method, fontsize=12, color=COLOURS[run.config.method], weight="bold")
    for column, axis in enumerate(axes[0]):
        axis.set_title(f"unseen task {column + 1}", fontsize=10, color=INK)
    for axis in axes[-1]:
        axis.set_xlabel("x")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    save_figure(path, figure)


def _adapt_one(axis: Any, run: Run, task: int) -> None:
    config, law, last = run.config, LAWS[run.config.law], max(run.config.test_steps)
    net, loss = network(config)
    rng = np.random.default_rng([run.seed, 2**34, task])
    wave = law.wave(rng)
    supports, _ = test_task(config, wave, rng)
    x = np.linspace(-LIMIT, LIMIT, 200)[:, None]
    with np.errstate(all="ignore"):
        phis = method_of(config).trajectory(loss, run.theta, supports, test_alpha(config))
        seen = law.sight(*wave, x)
        predictions = [np.clip(np.nan_to_num(net(phi, seen)), -1e3, 1e3) for phi in phis]
    axis.plot(x, wave(x), color=INK, lw=2.2, label="true wave")
    at, y = supports[0]
    axis.plot(at[:, 0], y[:, 0], "o", color=INK, ms=4.5, label=f"{plural(len(at), 'support point')}")
    for steps, (dash, alpha, width) in {0: (":", 0.55, 1.4), 1: ("--", 0.8, 1.6), last: ("-", 1.0, 2.0)}.items():
        style = {"color": COLOURS[config.method], "alpha": alpha, "lw": width}
        axis.plot(x, predictions[steps], dash, label=f"after {plural(steps, 'step')}", **style)
    top = max(1.0, 1.5 * abs(wave(x)).max())
    axis.set_ylim(-top, top)
    plain_axis(axis)


def curves(path: Path, named: dict[str, Curve], law: str) -> None:
    """Loss against steps for every method trained, with 95 % bands and the two exact baselines."""
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    axis = figure.subplots()
    for method, curve in named.items():
        draw_curve(axis, curve, "mse", method, COLOURS[method], least=1e-9)
    baselines(axis, law)
    axis.set(xlabel="gradient steps on an unseen task", ylabel="mean squared error")
    axis.legend(frameon=False, fontsize=9)
    plain_axis(axis)
    save_figure(path, figure)


def baselines(axis: Any, law: str) -> None:
    """A logarithmic scale of errors, and on it the two that are known exactly."""
    formula, best = LAWS[law].agnostic
    if best < ZERO_MSE:
        axis.axhline(best, color=FAINT, ls="--", lw=1.2, label=f"best without the task: {formula}")
    axis.axhline(ZERO_MSE, color=FAINT, ls=":", lw=1.2, label="always 0")
    axis.set_yscale("log")
    for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        ticks("{x:g}")
