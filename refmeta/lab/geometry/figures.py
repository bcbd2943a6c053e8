"""The figures of `refmeta geometry` (matplotlib, from the extra `lab`)."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refmeta import trajectory
from refmeta.lab.display import COLOURS, INK, plural
from refmeta.lab.files import save_figure
from refmeta.lab.geometry.quadratics import START, TASKS, labels, quadratic, subscript
from refmeta.lab.plots import draw_plane, keyed, note, plot_geometry, plot_weights


def draw(folder: Path, result: dict[str, Any]) -> None:
    """geometry.png: the step of each method from θ on one task, and where descent on two leads; weights.png."""
    figure, k = Figure(figsize=(10.5, 6.1), layout="constrained"), result["inner_steps"] + 1
    left, right = figure.subplots(1, 2)
    directions(left, result)
    plot_geometry(TASKS, START, result["alpha"], k - 1, right)
    left.set_title("one task: inner steps, and the step of each method", fontsize=11, color=INK)
    right.set_title("two tasks: descent, its end, and from there a step on each", fontsize=11, color=INK)
    save_figure(folder / "geometry.png", figure)
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    plot_weights(k - 1, figure.subplots()).set_title(f"after {plural(k - 1, 'inner step')}", fontsize=11, color=INK)
    save_figure(folder / "weights.png", figure)


def directions(axis: Any, result: dict[str, Any]) -> None:
    """An arrow for the step of each method from θ on the first task, beside the inner steps."""
    alpha, k = result["alpha"], result["inner_steps"] + 1
    inner = np.array([phi[0] for phi in trajectory(quadratic, [START], [TASKS[0]] * k, alpha)])
    tips = {end["method"]: START - alpha * np.array(end["direction"]) for end in result["methods"]}
    draw_plane(axis, [*inner, *tips.values()], TASKS[:1])
    axis.plot(*inner.T, "o:", color=INK, ms=5, lw=1.6)
    for j in sorted({0, 1, 2, k}):  # after two steps they would crowd
        note(axis, f"φ{subscript(j)}" if j else "φ₀ = θ", inner[j], (12, 8) if j else (-24, -12))
    for method, tip in tips.items():
        arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 16, "lw": 2.4}
        axis.annotate("", tip, START, arrowprops={**arrow, "color": COLOURS[method]})
        axis.plot([], lw=2.4, color=COLOURS[method], label=": ".join(labels(k)[method]))
    keyed(axis, (0, 0), "upper left", f"each arrow is α = {alpha:g} times", 2)
