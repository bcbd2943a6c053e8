"""The figures of the sine experiment, and what others share with them (matplotlib, from the extra `lab`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refmeta.lab.experiment import Run, inner_loop, network
from refmeta.lab.sine import LAWS, LIMIT, ZERO_MSE
from refmeta.lab.sweep import varying

COLOURS = {
    "maml": "#2460a7",
    "fomaml": "#3a9bb5",
    "anil": "#7a4fa3",
    "reptile": "#2e8b57",
    "joint": "#c8553d",
}
INK, FAINT = "#222222", "#9a9a9a"
TASKS = 3


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
    figure.savefig(path, dpi=130)


def _adapt_one(axis: Any, run: Run, task: int) -> None:
    config, law = run.config, LAWS[run.config.law]
    net, loss = network(config)
    rng = np.random.default_rng([run.seed, 2**34, task])
    wave = law.wave(rng)
    last = max(config.report_steps)
    supports, _ = law.test(rng, wave, config.shots, last)
    x = np.linspace(-LIMIT, LIMIT, 200)[:, None]
    with np.errstate(all="ignore"):
        phis = inner_loop(config)(loss, run.theta, supports, config.alpha)
        predictions = [np.clip(np.nan_to_num(net(phi, x)), -1e3, 1e3) for phi in phis]
    axis.plot(x, wave(x), color=INK, lw=2.2, label="true wave")
    axis.plot(*supports[0], "o", color=INK, ms=4.5, label=f"{config.shots} support points")
    styles = {0: (":", 0.55, 1.4), 1: ("--", 0.8, 1.6), last: ("-", 1.0, 2.0)}
    for steps, (dash, alpha, width) in styles.items():
        label = f"after {steps} step{'s' * (steps != 1)}"
        axis.plot(
            x,
            predictions[steps],
            dash,
            color=COLOURS[config.method],
            alpha=alpha,
            lw=width,
            label=label,
        )
    top = max(1.0, 1.5 * abs(wave(x)).max())
    axis.set_ylim(-top, top)
    plain_axis(axis)


def curves(path: Path, named: Sequence[tuple[str, list[dict[str, Any]]]], law: str) -> None:
    """Loss against steps for every method trained, with 95 % bands and the two exact baselines."""
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    axis = figure.subplots()
    for method, curve in named:
        shown = [row for row in curve if np.isfinite([row["mse"], row["ci95"]]).all()]
        steps, mse, ci95 = (np.array([row[key] for row in shown], float) for key in ("steps", "mse", "ci95"))
        axis.plot(steps, mse, "o-", color=COLOURS[method], ms=4, lw=2, label=method)
        axis.fill_between(steps, np.maximum(mse - ci95, 1e-9), mse + ci95, color=COLOURS[method], alpha=0.15, lw=0)
    _baselines(axis, law)
    axis.set(xlabel="gradient steps on an unseen task", ylabel="mean squared error")
    axis.legend(frameon=False, fontsize=9)
    plain_axis(axis)
    figure.savefig(path, dpi=130)


def sweep(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A sweep's `table`: the error after the last step against the numeric setting with the most values (where there
    is none: against the steps), a line for each method, a panel for each combination of the other settings.

    Values stand side by side, whatever lies between them. Bars are 95 % intervals; a cross at the top: no finite mean.
    """
    numeric = [name for name in varying(rows) if isinstance(rows[0][name], (int, float))]
    along = max(numeric, key=lambda name: len({row[name] for row in rows}), default="steps")
    others = [name for name in varying(rows) if name != along]
    panels: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if along == "steps" or row["steps"] == max(row["report_steps"]):
            panels.setdefault(tuple(f"{name.replace('_', ' ')} {row[name]}" for name in others), []).append(row)
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(7.4, 0.8 + 2.9 * across), 1.6 + 2.9 * down), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    methods = [method for method in COLOURS if any(row["method"] == method for row in rows)]
    values = sorted({row[along] for row in rows})
    for axis, (panel, shown) in zip(axes, panels.items(), strict=False):
        for number, method in enumerate(methods):
            line = sorted((r for r in shown if r["method"] == method), key=lambda r: r[along])
            mse, ci95 = (np.array([r[key] for r in line], float) for key in ("mse", "ci95"))
            x = np.array([values.index(r[along]) for r in line]) + 0.07 * (number - (len(methods) - 1) / 2)
            style = {"color": COLOURS[method], "ms": 4, "lw": 2}
            axis.errorbar(x, mse, np.nan_to_num(ci95), fmt="o-", elinewidth=1.2, label=method, **style)
            if np.isnan(mse).any():
                lost, top = x[np.isnan(mse)], axis.get_xaxis_transform()
                axis.plot(lost, 0 * lost + 0.97 - 0.04 * number, "x", mew=1.5, label="diverged", transform=top, **style)
        _baselines(axis, shown[0]["law"])
        axis.set_title("\n".join(panel), fontsize=10, color=INK)
        plain_axis(axis)
        axis.tick_params(labelbottom=True)
    places = range(0, len(values), -(-len(values) // 12))
    axes[0].set_xticks(places, [f"{values[place]:g}" for place in places])
    known = [row["mse"] for shown in panels.values() for row in shown if row["mse"]]
    axes[0].set_ylim(min([*known, ZERO_MSE]) / 1.6, max([*known, ZERO_MSE]) * 1.6)  # a bar may reach below 0
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    ends = {max(row["report_steps"]) for row in rows}
    after = "" if along == "steps" else f" after {max(ends)} steps" if len(ends) == 1 else " after the last step"
    figure.supxlabel("gradient steps on an unseen task" if along == "steps" else along.replace("_", " "), fontsize=10)
    figure.supylabel(f"mean squared error{after}", fontsize=10)
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = sorted(handles, key=lambda label: label not in methods)
    figure.legend([handles[label] for label in order], order, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)


def _baselines(axis: Any, law: str) -> None:
    """A logarithmic scale of errors, and on it the two that are known exactly."""
    formula, best = LAWS[law].agnostic
    if best < ZERO_MSE:
        axis.axhline(best, color=FAINT, ls="--", lw=1.2, label=f"best without the task: {formula}")
    axis.axhline(ZERO_MSE, color=FAINT, ls=":", lw=1.2, label="always 0")
    axis.set_yscale("log")
    for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        ticks("{x:g}")


def plain_axis(axis: Any) -> None:
    """Two spines and small ticks, as all figures here have."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK, labelsize=9)
