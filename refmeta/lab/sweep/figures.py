"""The figure of a sweep (matplotlib, from the extra `lab`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refmeta.lab.display import COLOURS, INK, Row, column, plain_axis
from refmeta.lab.sine.figures import baselines
from refmeta.lab.sine.waves import ZERO_MSE
from refmeta.lab.sweep.experiment import varying

Panels = dict[tuple[str, ...], list[Row]]  # by the lines of the title


def draw(path: Path, rows: Sequence[Row]) -> None:
    """A sweep's `table`: the error after the last step against the numeric setting with the most values (where there
    is none: against the steps), a line for each method, a panel for each combination of the other settings.

    Values stand side by side, whatever lies between them. Bars are 95 % intervals; a cross at the top: no finite mean.
    """
    along, panels = arranged(rows)
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(7.4, 0.8 + 2.9 * across), 1.6 + 2.9 * down), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    methods = [method for method in COLOURS if any(row["method"] == method for row in rows)]
    values = sorted({row[along] for row in rows})
    for axis, (title, shown) in zip(axes, panels.items(), strict=False):
        _panel(axis, title, shown, along, values, methods)
    places = range(0, len(values), -(-len(values) // 12))
    axes[0].set_xticks(places, [f"{values[place]:g}" for place in places])
    known = [row["mse"] for shown in panels.values() for row in shown if row["mse"]]
    axes[0].set_ylim(min([*known, ZERO_MSE]) / 1.6, max([*known, ZERO_MSE]) * 1.6)  # a bar may reach below 0
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    _labels(figure, axes, rows, along, methods)
    figure.savefig(path, dpi=130)


def arranged(rows: Sequence[Row]) -> tuple[str, Panels]:
    """The setting, or the steps, along the x axis; and the rows of each panel."""
    numeric = [name for name in varying(rows) if isinstance(rows[0][name], (int, float))]
    along = max(numeric, key=lambda name: len({row[name] for row in rows}), default="steps")
    others = [name for name in varying(rows) if name != along]
    panels: Panels = {}
    for row in rows:
        if along == "steps" or row["steps"] == max(row["report_steps"]):
            panels.setdefault(tuple(f"{name.replace('_', ' ')} {row[name]}" for name in others), []).append(row)
    return along, panels


def _panel(
    axis: Any, title: tuple[str, ...], rows: list[Row], along: str, values: list[Any], methods: list[str]
) -> None:
    for number, method in enumerate(methods):
        line = sorted((row for row in rows if row["method"] == method), key=lambda row: row[along])
        mse, ci95 = column(line, "mse"), column(line, "ci95")
        x = np.array([values.index(row[along]) for row in line]) + 0.07 * (number - (len(methods) - 1) / 2)
        style = {"color": COLOURS[method], "ms": 4, "lw": 2}
        axis.errorbar(x, mse, np.nan_to_num(ci95), fmt="o-", elinewidth=1.2, label=method, **style)
        if np.isnan(mse).any():
            lost, top = x[np.isnan(mse)], axis.get_xaxis_transform()
            axis.plot(lost, 0 * lost + 0.97 - 0.04 * number, "x", mew=1.5, label="diverged", transform=top, **style)
    baselines(axis, rows[0]["law"])
    axis.set_title("\n".join(title), fontsize=10, color=INK)
    plain_axis(axis)
    axis.tick_params(labelbottom=True)


def _labels(figure: Figure, axes: Any, rows: Sequence[Row], along: str, methods: list[str]) -> None:
    ends = {max(row["report_steps"]) for row in rows}
    after = "" if along == "steps" else f" after {max(ends)} steps" if len(ends) == 1 else " after the last step"
    figure.supxlabel("gradient steps on an unseen task" if along == "steps" else along.replace("_", " "), fontsize=10)
    figure.supylabel(f"mean squared error{after}", fontsize=10)
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = sorted(handles, key=lambda label: label not in methods)
    figure.legend([handles[label] for label in order], order, loc="outside upper center", ncols=4, frameon=False)
