"""The figure of `refmeta geometry` (matplotlib, from the extra `lab`)."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from refmeta import trajectory
from refmeta.lab.display import COLOURS, FAINT, INK
from refmeta.lab.files import save_figure
from refmeta.lab.geometry.quadratics import START, TASKS, labels, quadratic, subscript
from refmeta.trees import Array, Batch

CONTOUR = "#d9d6ce"
RING = {"mfc": "none", "mew": 2.4, "ms": 10}
ARROW = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 16}
TEXT: dict[str, Any] = {"fontsize": 11, "color": INK}
NOTE = {**TEXT, "textcoords": "offset points", "path_effects": [withStroke(linewidth=3, foreground="white")]}


def draw(folder: Path, result: dict[str, Any], paths: dict[str, Array]) -> None:
    """On the left the step of each method from θ on one task, beside the inner steps; on the right the way that
    descending it takes (`paths`, of `descent`) on two tasks, and a ring around its fixed point's closed form."""
    alpha, k, ends = result["alpha"], result["inner_steps"] + 1, result["methods"]
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    inner = np.array([phi[0] for phi in trajectory(quadratic, [START], [TASKS[0]] * k, alpha)])
    tips = [START - alpha * np.array(end["direction"]) for end in ends]
    _plane(left, [*inner, *tips], TASKS[:1])
    _plane(right, [START, *(c for _, c in TASKS), *(way[-1] for way in paths.values())], TASKS)
    left.plot(*inner.T, "o:", color=INK, ms=5, lw=1.6, label="inner steps")
    for end, tip in zip(ends, tips, strict=True):
        method, style = end["method"], {"color": COLOURS[end["method"]], "lw": 2.4}
        left.annotate("", tip, START, arrowprops={**ARROW, **style})
        right.plot(*paths[method].T, label="  ".join(labels(k)[method]), **style)
        right.plot(*end["fixed_point"], "o", color=COLOURS[method], **RING)
    right.plot(*START, "o", color=INK, ms=5)
    for axis, j in [(right, 0), *((left, j) for j in sorted({0, 1, 2, k}))]:  # after two steps they would crowd
        axis.annotate(f"φ{subscript(j)}" if j else "φ₀ = θ", inner[j], (-6, -6), ha="right", va="top", **NOTE)
    for number, (_, c) in enumerate(TASKS, 1):
        right.plot(*c, "+", color=FAINT, ms=11, mew=1.8)
        right.annotate(f"task {number}", c, (0, 9), ha="center", **NOTE)
    left.set_title(f"one task: the step of each, α × its direction (α = {alpha:g})", **TEXT)
    right.set_title("two tasks: gradient descent along the mean direction of each", **TEXT)
    left.plot([], "o", color=INK, label="fixed point, closed form", **RING)
    handles = [*right.get_legend_handles_labels()[0], *left.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=4, frameon=False, fontsize=10.5)
    save_figure(folder / "geometry.png", figure)


def _plane(axis: Any, points: list[Array], tasks: list[Batch]) -> None:
    """A square of the plane around the points, with the contours of the tasks (A, c): the second's are dashed."""
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    half = 0.68 * max(high - low)
    spans = [np.linspace(middle - half, middle + half, 200) for middle in (low + high) / 2]
    d = np.stack(np.meshgrid(*spans), axis=-1)
    for (A, c), dash in zip(tasks, ("solid", "dashed"), strict=False):
        height = np.sqrt(np.einsum("xyi,ij,xyj->xy", d - c, A, d - c))  # evenly spaced contours
        axis.contour(*spans, height, 9, colors=CONTOUR, linestyles=dash, linewidths=1, zorder=0)
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_color(CONTOUR)
