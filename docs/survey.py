"""Draws figures/survey.png from two examples of survey.md: `python -m docs.survey`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from docs.build import definitions
from refmeta import objective, trajectory
from refmeta.lab.display import COLOURS, FAINT, INK, plain_axis
from refmeta.lab.files import save_figure

HERE = Path(__file__).parent
NAMES = {"joint": "pre-training", "fomaml": "first-order MAML", "maml": "MAML", "reptile": "Reptile"}
LINES = INK, "#b08d00"  # the colours of the two losses
ARROW = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 15, "lw": 2.2}
CONTOUR = {"levels": 10, "colors": "#e3e0d9", "linewidths": 0.8, "zorder": 0}
NOTE = {"textcoords": "offset points", "fontsize": 10.5}


def arrow(axis, start, end, colour):
    axis.annotate("", end, start, arrowprops={**ARROW, "color": colour})


def schematic(axis, name, shown):
    """Two losses of one parameter; on each, the inner step from where the algorithm ends."""
    loss, alpha, theta = shown["loss"], shown["alpha"], [np.array(shown["ends"][name])]
    now, after = (objective(loss, theta, tasks, alpha) for tasks in (shown["now"], shown["trained"]))
    line = np.linspace(-0.3, 1.4, 200)
    for number, (task, colour) in enumerate(zip(shown["batches"], LINES, strict=True), 1):
        axis.plot(line, loss([line], task), color=colour, lw=1.2, label=f"loss of task {number}")
        points = [(phi[0], loss(phi, task)) for phi in trajectory(loss, theta, [task], alpha)]
        axis.plot(*points[0], "o", color=colour, ms=5)
        arrow(axis, *points, colour)
    axis.axvline(theta[0], color=COLOURS[name], lw=2.4, zorder=0)
    axis.annotate("θ", (theta[0], 1.62), (6, 0), color=COLOURS[name], **NOTE)
    axis.set(ylim=(-0.06, 1.8), title=f"{NAMES[name]}: losses sum to {now:.3f}, after one step to {after:.3f}")
    axis.legend(frameon=False, loc="upper right")
    plain_axis(axis)


def in_turn(axis, names, shown):
    """The outer steps on task 1 and then on task 2, and dotted the inner steps that they come from."""
    plane = np.meshgrid(np.linspace(-0.35, 3.05, 200), np.linspace(-1.75, 1.75, 200))
    d = np.stack(plane, axis=-1)
    for number, ((A, c), dash) in enumerate(zip(shown["tasks"], ("solid", "dashed"), strict=True), 1):
        axis.contour(*plane, np.sqrt(np.einsum("xyi,ij,xyj->xy", d - c, A, d - c)), linestyles=dash, **CONTOUR)
        axis.plot(*c, "+", color=FAINT, ms=11, mew=1.8)
        axis.annotate(f"task {number}", c, (0, 8), color=FAINT, ha="center", **NOTE)
    for name in names:
        path, steps = shown["paths"][name], 1 if name == "joint" else 2
        for start, end, task in zip(path[:-1], path[1:], shown["tasks"], strict=True):
            inner = trajectory(shown["loss"], [start], [task] * steps, shown["alpha"])
            axis.plot(*np.transpose([phi[0] for phi in inner]), "o:", color=INK, ms=3.5, lw=1.3)
            arrow(axis, start, end, COLOURS[name])
        axis.plot([], color=COLOURS[name], lw=2.2, label=NAMES[name])
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.legend(frameon=False, loc="upper left")


def draw():
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplot_mosaic("aaabbb;ccddee", height_ratios=[1, 1.25])
    alone, turns = (definitions("survey.md", f"{name}[") for name in ("ends", "paths"))
    for axis, name in zip("ab", ("joint", "maml"), strict=True):
        schematic(axes[axis], name, alone)
    for axis, names in zip("cde", (["joint"], ["fomaml", "maml"], ["reptile"]), strict=True):
        in_turn(axes[axis], names, turns)
    return figure


if __name__ == "__main__":
    save_figure(HERE / "figures/survey.png", draw())
