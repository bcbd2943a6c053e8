"""The figure of a sweep (matplotlib, from the extra `lab`)."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refmeta.lab.display import COLOURS, FAINT, INK, Row, column, plain_axis
from refmeta.lab.files import save_figure
from refmeta.lab.plots import logarithmic
from refmeta.lab.sine.figures import baselines
from refmeta.lab.sine.waves import ZERO_MSE
from refmeta.lab.sweep.experiment import varying
from refmeta.trees import Array


def draw(path: Path, rows: list[Row]) -> None:
    """A sweep's `table`: the error after the last step against the numeric setting with the most values (where there
    is none: against the steps), a line for each method, a panel for each combination of the other settings.

    Values stand side by side, whatever lies between them. Bars are 95 % intervals; a cross at the top: no finite mean.
    """
    along, panels = _arranged(rows)
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(7.4, 0.8 + 2.9 * across), 1.6 + 2.9 * down), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    values = sorted({row[along] for row in rows})
    methods = [method for method in COLOURS if any(row["method"] == method for row in rows)]
    for axis, (title, shown) in zip(axes, panels.items(), strict=False):
        axis.set_title(title, fontsize=10, color=INK)
        for number, method in enumerate(methods):
            line = sorted((row for row in shown if row["method"] == method), key=lambda row: row[along])
            places = np.array([values.index(row[along]) for row in line]) + 0.07 * (number - (len(methods) - 1) / 2)
            _line(axis, places, line, method, 0.97 - 0.04 * number)
        logarithmic(axis)
        for (name, mse), dash in zip(baselines(shown[0]["law"]).items(), ("--", ":"), strict=False):
            axis.axhline(mse, color=FAINT, ls=dash, lw=1.2, label=name)
        plain_axis(axis)
        axis.tick_params(labelbottom=True)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    ticks = range(0, len(values), -(-len(values) // 12))
    axes[0].set_xticks(ticks, [f"{values[tick]:g}" for tick in ticks])
    known = [ZERO_MSE, *(row["mse"] for shown in panels.values() for row in shown if row["mse"])]
    axes[0].set_ylim(min(known) / 1.6, max(known) * 1.6)  # a bar may reach below 0
    _labels(figure, axes, rows, along)
    save_figure(path, figure)


def _arranged(rows: list[Row]) -> tuple[str, dict[str, list[Row]]]:
    """The setting, or the steps, along the x axis; and the rows of each panel, by its title."""
    several = varying(rows)
    numeric = [name for name in several if isinstance(rows[0][name], (int, float))]
    along = max(numeric, key=lambda name: len({row[name] for row in rows}), default="steps")
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if along == "steps" or row["steps"] == max(row["test_steps"]):
            title = "\n".join(f"{name.replace('_', ' ')} {row[name]}" for name in several if name != along)
            panels.setdefault(title, []).append(row)
    return along, panels


def _line(axis: Any, x: Array, rows: list[Row], method: str, height: float) -> None:
    mse, style = column(rows, "mse"), {"color": COLOURS[method], "ms": 4, "lw": 2}
    axis.errorbar(x, mse, np.nan_to_num(column(rows, "ci95")), fmt="o-", elinewidth=1.2, label=method, **style)
    if (lost := x[np.isnan(mse)]).size:
        top = axis.get_xaxis_transform()
        axis.plot(lost, 0 * lost + height, "x", mew=1.5, label="diverged", transform=top, **style)


def _labels(figure: Figure, axes: Any, rows: list[Row], along: str) -> None:
    ends = {max(row["test_steps"]) for row in rows}
    after = f" after {max(ends)} steps" if len(ends) == 1 else " after the last step"
    across, after = ("gradient steps on an unseen task", "") if along == "steps" else (along.replace("_", " "), after)
    figure.supxlabel(across, fontsize=10)
    figure.supylabel(f"mean squared error{after}", fontsize=10)
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = sorted(handles, key=lambda label: label not in COLOURS)  # the methods first
    figure.legend([handles[label] for label in order], order, loc="outside upper center", ncols=4, frameon=False)
