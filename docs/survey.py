"""Draws figures/survey.svg from two examples of survey.md, and figures/features.svg: `python -m docs.survey`."""

from pathlib import Path

import autograd.numpy as np
from matplotlib.figure import Figure

from docs.build import definitions
from refmeta import maml, objective, trajectory
from refmeta.lab.display import COLOURS, FAINT, INK, plain_axis, svg
from refmeta.trees import axpy, holding

HERE = Path(__file__).parent
NAMES = {"joint": "pre-training", "fomaml": "first-order MAML", "maml": "MAML", "reptile": "Reptile"}
ARROW = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 15, "lw": 2.2}
CONTOUR = {"levels": 10, "colors": FAINT, "alpha": 0.4, "linewidths": 0.8, "zorder": 0}
NOTE = {"textcoords": "offset points", "fontsize": 11}


def arrow(axis, start, end, colour):
    axis.annotate("", end, start, arrowprops={**ARROW, "color": colour})


# --- The article's schematics, and its comparison of three ---


def schematic(axis, name, shown):
    """Two losses of one parameter; on each, the inner step from where the algorithm ends."""
    loss, alpha, theta = shown["loss"], shown["alpha"], [np.array(shown["ends"][name])]
    now, after = (objective(loss, theta, tasks, alpha) for tasks in (shown["now"], shown["trained"]))
    line = np.linspace(-0.3, 1.4, 200)
    for number, task in enumerate(shown["batches"], 1):
        axis.plot(line, loss([line], task), color=FAINT, lw=1.4)
        axis.annotate(f"task {number}", (line[-1], loss([line[-1]], task)), (4, -4), color=FAINT, **NOTE)
        points = [(phi[0], loss(phi, task)) for phi in trajectory(loss, theta, [task], alpha)]
        axis.plot(*points[0], "o", color=INK, ms=5)
        arrow(axis, *points, INK)
    axis.axvline(theta[0], color=COLOURS[name], lw=2.4, zorder=0)
    axis.annotate(f"θ of {NAMES[name]}", (theta[0], 1.68), (6, 0), color=COLOURS[name], **NOTE)
    axis.set(xlim=(-0.3, 1.7), ylim=(-0.06, 1.8), xlabel="θ", ylabel="loss")
    axis.set_title(f"the losses sum to {now:.3f},\nafter one step to {after:.3f}", fontsize=11)
    plain_axis(axis)


def in_turn(axis, names, shown):
    """The outer steps on task 1 and then on task 2, and dotted the inner steps that they come from."""
    plane = np.meshgrid(np.linspace(-0.35, 3.05, 200), np.linspace(-1.75, 1.75, 200))
    d = np.stack(plane, axis=-1)
    for number, (A, c), dash, beside in zip((1, 2), shown["tasks"], ("solid", "dashed"), (8, -19), strict=True):
        axis.contour(*plane, np.sqrt(np.einsum("xyi,ij,xyj->xy", d - c, A, d - c)), linestyles=dash, **CONTOUR)
        axis.plot(*c, "+", color=FAINT, ms=11, mew=1.8)
        axis.annotate(f"task {number}", c, (0, beside), color=FAINT, ha="center", **NOTE)
    for line, name in enumerate(names):
        path, steps = shown["paths"][name], 1 if name == "joint" else 2
        for start, end, task in zip(path[:-1], path[1:], shown["tasks"], strict=True):
            inner = trajectory(shown["loss"], [start], [task] * steps, shown["alpha"])
            axis.plot(*np.transpose([phi[0] for phi in inner]), "o:", color=INK, ms=3.5, lw=1.3)
            arrow(axis, start, end, COLOURS[name])
        axis.text(-0.25, 1.48 - 0.28 * line, NAMES[name], color=COLOURS[name], fontsize=11)
    axis.set(aspect="equal", xticks=[], yticks=[])


def comparison():
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.1, 1])
    alone, turns = (definitions("survey.md", f"{name}[") for name in ("ends", "paths"))
    for axis, name in zip(above.subplots(1, 2), ("joint", "maml"), strict=True):
        schematic(axis, name, alone)
    for axis, names in zip(below.subplots(1, 3), (["joint"], ["fomaml", "maml"], ["reptile"]), strict=True):
        in_turn(axis, names, turns)
    return figure


# --- Rapid learning, and feature reuse ---


def loss(theta, task):
    """Half the squared distance of two vectors, each with a direction and a length: θ = (body, head), and the task."""
    (b, h), (direction, length) = theta, task
    return np.sum(h**2 + length**2 - 2 * h * length * np.cos(b - direction)) / 2


def learning(axis, what, wanted, beside, alpha=0.4, K=2):
    """MAML's way to θ, and from there the inner steps on each task; beside: where the tasks' names stand."""
    tasks = [([batch] * K, batch) for batch in (tuple(map(np.array, task)) for task in wanted)]
    path = [[np.array([1.4]), np.array([1.8])]]
    for _ in range(400):
        path.append(axpy(-0.1, maml(loss, path[-1], tasks, alpha), path[-1]))
    (body, head), way = path[-1], np.squeeze(path)
    axis.plot(*way.T, color=COLOURS["maml"], lw=2.4)
    axis.annotate("outer loop", way[0], (0, 17), color=COLOURS["maml"], ha="right", **NOTE)
    for number, (supports, query) in enumerate(tasks, 1):
        axis.plot(*query, "+", color=FAINT, ms=11, mew=1.8)
        axis.annotate(f"task {number}", query, beside, color=FAINT, ha="center", **NOTE)
        axis.plot(*np.squeeze(trajectory(loss, path[-1], supports, alpha)).T, "o-", color=INK, ms=4.5, lw=2)
    axis.plot(*way[-1], "o", color=COLOURS["maml"], ms=9)
    axis.annotate("θ", way[-1], (-14, 6), color=COLOURS["maml"], **NOTE)
    whole, frozen = objective(loss, path[-1], tasks, alpha), objective(holding([body], loss), [head], tasks, alpha)
    axis.set_title(f"{what}: loss after {K} steps {whole:.3f},\nwith the body frozen {frozen:.3f}", fontsize=11)
    axis.set(xlim=(-1.4, 1.6), ylim=(0, 2.2), xlabel="body: the direction of its feature", ylabel="head: the length")
    plain_axis(axis)


def features():
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    learning(left, "rapid learning", [(-1, 1), (0, 1), (1, 1)], (0, -19))
    learning(right, "feature reuse", [(0, 0.4), (0, 1), (0, 1.6)], (-30, -4))
    return figure


if __name__ == "__main__":
    (HERE / "figures/survey.svg").write_text(svg(comparison()))
    (HERE / "figures/features.svg").write_text(svg(features()))
