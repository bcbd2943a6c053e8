"""The figure of `refmeta reuse` (matplotlib, from the extra `lab`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refmeta.lab.display import COLOURS, FAINT, INK, Row, column, plain_axis, plural
from refmeta.lab.files import save_figure
from refmeta.lab.reuse.experiment import depths, layers
from refmeta.lab.reuse.measurements import INDICES
from refmeta.lab.runs import Result, Run

MAML = COLOURS["maml"]
LINE: dict[str, Any] = {"ls": "--", "color": INK, "lw": 1.4}


def draw(folder: Path, result: Result, runs: list[Run]) -> None:
    """A panel for each table: the score against the frozen layers, how far each moves, its similarity, NIL."""
    images = "regimes" in result
    figure = Figure(figsize=(11, 7.6) if images else (13.5, 4), layout="constrained")
    _panels(figure.subplots(2 if images else 1, 2 if images else 3).ravel(), result)
    save_figure(folder / "reuse.png", figure)


def beside(path: str, *folders: str) -> None:
    """A row for the result in each folder, of the panels that waves and characters both have."""
    figure = Figure(figsize=(13.5, 4 * len(folders)), layout="constrained")
    for axes, folder in zip(figure.subplots(len(folders), 3, squeeze=False), folders, strict=True):
        _panels(axes, json.loads((Path(folder) / "result.json").read_text()))
    save_figure(Path(path), figure)


def _panels(axes: Any, result: Result) -> None:
    """The first panels of a result, as many as there are axes."""
    images, steps = "regimes" in result, plural(max(result["config"]["maml"]["test_steps"]), "step")
    panels = [
        (_frozen, f"{result['data']}: MAML, {steps} on an unseen task", ("mean squared error", "accuracy (%)")[images]),
        (_moved, f"how far MAML's layers move in {steps}", "‖φ − θ‖ / ‖θ‖"),
        (_similarity, "MAML's layers, activations on the query", "similarity"),
        (_regimes, "without head or inner loop (NIL), by training", "accuracy (%)"),
    ]
    for (panel, title, score), axis in zip(panels, axes, strict=False):
        panel(axis, result, steps)
        axis.set_ylabel(score)
        axis.set_title(title, fontsize=10, color=INK)
        plain_axis(axis)


def _bars(axis: Any, x: Any, rows: list[Row], colours: Any, factor: float = 1, form: str = "") -> None:
    """A bar for each row, with its interval, and its mean in this form above it."""
    mean, ci95 = factor * column(rows, "mean"), factor * column(rows, "ci95")
    axis.bar(x, mean, 0.62, yerr=ci95, color=colours, ecolor=INK, capsize=3)
    axis.margins(y=0.1)
    for i, value in enumerate(mean if form else []):
        axis.text(i, value + ci95[i], f" {value:{form}}\n", ha="center", va="center")


def _frozen(axis: Any, result: Result, steps: str) -> None:
    *some, every = depths(result)
    factor, form = (100, ".1f") if "regimes" in result else (1, ".2f")
    _bars(axis, [*some, every], result["frozen"], [*[MAML] * len(some), FAINT], factor, form)
    axis.set_xlabel("layers frozen at test")


def _similarity(axis: Any, result: Result, steps: str) -> None:
    before_after = result["similarity"], MAML, "-", f"before and after {steps}"
    seeds = result["between"]["maml–maml"], FAINT, "--", "of two seeds"
    for rows, colour, dash, of in (before_after, seeds):
        for index, marker in zip(INDICES, "osD", strict=True):
            mean, ci95 = ([row[index][key] for row in rows] for key in ("mean", "ci95"))
            style = {"fmt": marker + dash, "color": colour, "ms": 5, "lw": 1.4}
            axis.errorbar(layers(result), mean, ci95, label=f"{index.upper()}, {of}", **style)
    axis.set_ylim(0, 1.04)
    axis.legend(frameon=False, fontsize=8, loc="lower left")


def _moved(axis: Any, result: Result, steps: str) -> None:
    _bars(axis, layers(result), result["moved"], MAML, 1, ".3f")


def _regimes(axis: Any, result: Result, steps: str) -> None:
    names = [row["regime"] for row in result["regimes"]]
    place = np.arange(len(names))
    _bars(axis, place, result["regimes"], [COLOURS.get(name, FAINT) for name in names], 100, ".1f")
    for name, row in result["own"].items():
        axis.plot(names.index(name) + np.array([-0.4, 0.4]), [100 * row["mean"]] * 2, **LINE)
    axis.plot([], [], label="with its head and inner loop", **LINE)
    axis.set_xticks(place, [name.replace(" ", "\n") for name in names])
    axis.legend(frameon=False, fontsize=8.5)
    axis.margins(y=0.22)
