"""Draws figures/start.svg from the first example of start.md, and figures/graph.svg: `python -m docs.start`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from docs.build import definitions
from refmeta.lab.display import COLOURS, FAINT, INK, plain_axis, svg

HERE = Path(__file__).parent
BLUE, TEAL, PURPLE, RED = (COLOURS[name] for name in ("maml", "fomaml", "anil", "joint"))
HALO = withStroke(linewidth=3, foreground="white")
NOTE = {"textcoords": "offset points", "fontsize": 11}


# --- Two parabolas, before and after a step ---


def problem(L, F, tasks, alpha):
    """L and F, each with the two tasks that it sums and with the minima of both; at 1/2 the slopes of F and FOMAML."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    beside = [{4 / 5: (0, 10, "center"), 1 / 5: (11, 2, "left")}, {4 / 5: (-11, 2, "right"), 1 / 5: (0, 10, "center")}]
    for K, (axis, total) in enumerate(zip(axes, (L, F), strict=True)):
        curves(axis, total, tasks, [1 - alpha * a if K else 1 for a, _ in tasks])
        for start, name, colour in (4 / 5, "joint training", RED), (1 / 5, "MAML", BLUE):
            *offset, side = beside[K][start]
            axis.plot(start, total(start), "o", color=colour, ms=9)
            axis.annotate(f"{name}\n{total(start):.3f}", (start, total(start)), offset, ha=side, color=colour, **NOTE)
    slopes(axes[1], F, tasks, alpha)
    axes[0].set(title="L, before the step: least at 4/5", ylim=(-0.25, 2.6))
    axes[1].set(title="F, after the step: least at 1/5 (another scale)", ylim=(-0.035, 0.36))
    return figure


def curves(axis, total, tasks, shrinks):
    theta = np.linspace(-0.3, 1.3, 200)
    for (a, c), shrink, name in zip(tasks, shrinks, ("flat task", "steep task"), strict=True):
        axis.plot(theta, a / 2 * (shrink * (theta - c)) ** 2, color=FAINT, lw=1.4)
        text = f"{name}, a = {a * shrink**2:.2g}"  # the curvature
        axis.annotate(text, (c, 0), (0, -16), ha="center", color=FAINT, **NOTE)
    axis.plot(theta, total(theta), color=INK, lw=2.4)
    axis.set(xlabel="start θ", xlim=(-0.3, 1.3))
    plain_axis(axis)


def slopes(axis, F, tasks, alpha, at=1 / 2, half=0.16):
    """The tangent of F at a point, and through the same point the line with FOMAML's slope."""
    for power, colour, name in (2, BLUE, "slope of F"), (1, TEAL, "FOMAML's"):
        slope = sum(a * (1 - alpha * a) ** power * (at - c) for a, c in tasks)
        ends = np.array([at - half, at + half])
        axis.plot(ends, F(at) + slope * (ends - at), color=colour, lw=2.4)
        axis.annotate(f"{name}: {slope:.2f}", (at + half, F(at) + slope * half), (12, -6), color=colour, **NOTE)
    axis.plot(at, F(at), "o", color=INK, ms=5)


# --- The inner loop as a graph ---


def graph():
    """On the left MAML with two steps and where FOMAML cuts, on the right ANIL; forward in ink, backward in blue."""
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, title in (left, "MAML: forward φ, backward v"), (right, "ANIL: a body b and a head h"):
        axis.set(xlim=(-0.45, 4.75), ylim=(-0.75, 3.65), title=title)
        axis.axis("off")
    maml(left)
    anil(right)
    return figure


def maml(axis):
    nodes(axis, {(0, 1.5): "φ₀ = θ", (1.4, 1.5): "φ₁", (2.8, 1.5): "φ₂", (4.2, 1.5): "L(φ₂; Q)"})
    nodes(axis, {(0.7, 0): "∇L(φ₀; S₀)", (2.1, 0): "∇L(φ₁; S₁)"})
    for x in (0, 1.4):
        arrow(axis, (x, 1.5), (x + 1.4, 1.5))
        arrow(axis, (x, 1.5), (x + 0.7, 0))
        arrow(axis, (x + 0.7, 0), (x + 1.4, 1.5))
        axis.text(x + 1.17, 0.7, "−α", fontsize=11)
        scissors(axis, (x + 0.35, 0.75), TEAL)
    arrow(axis, (2.8, 1.5), (4.05, 1.5))
    backward(axis, {"": 2.7}, "∇L(φ₂; Q)")
    for x, factor in (0.7, "I − αH₀"), (2.1, "I − αH₁"):
        axis.text(x, 2.85, factor, color=BLUE, fontsize=11, ha="center")
    axis.text(0, -0.7, "on the way back FOMAML cuts here:\nthen v₀ = v₁ = v₂", color=TEAL, fontsize=11)


def anil(axis):
    nodes(axis, {(x, 1.7): "b" for x in (0, 1.4, 2.8)} | {(0, 0): "h₀", (1.4, 0): "h₁", (2.8, 0): "h₂"})
    nodes(axis, {(0.7, 0.85): "∇L(b, h₀; S₀)", (2.1, 0.85): "∇L(b, h₁; S₁)", (4.2, 0.85): "L(b, h₂; Q)"})
    for x in (0, 1.4):
        for y in (0, 1.7):
            arrow(axis, (x, y), (x + 1.4, y))
            arrow(axis, (x, y), (x + 0.7, 0.85))
            arrow(axis, (x + 0.7, 0.85), (x + 1.4, y), PURPLE if y else INK)
        axis.text(x + 1.17, 0.35, "−α", fontsize=11)
        scissors(axis, (x + 1.05, 1.27), PURPLE)
    for y in (0, 1.7):
        arrow(axis, (2.8, y), (4.2, 0.85))
    backward(axis, {"ᵇ": 3.4, "ʰ": 2.5}, "∇L(b, h₂; Q)")
    for x, k in (0.7, "₀"), (2.1, "₁"):
        arrow(axis, (x + 0.7, 2.5), (x - 0.7, 3.4), BLUE)
        axis.text(x + 0.1, 3, f"−αH{k}ᵇʰ", color=BLUE, fontsize=12)
        axis.text(x, 2.2, f"I − αH{k}ʰʰ", color=BLUE, fontsize=12, ha="center")
    note = "ANIL cuts here: no step moves the body,\nso on the way back vᵇ passes no Hessian"
    axis.text(0, -0.7, note, color=PURPLE, fontsize=11)


def backward(axis, rows, last):
    """A row of v for each part of θ, all from the gradient at the end."""
    y_last = sum(rows.values()) / len(rows)
    axis.text(4.2, y_last, last, color=BLUE, fontsize=11, ha="center", va="center")
    for part, y in rows.items():
        for k, x in zip("₀₁₂", (0, 1.4, 2.8), strict=True):
            axis.text(x, y, f"v{k}{part}", color=BLUE, fontsize=13, ha="center", va="center")
            arrow(axis, (3.9, y_last) if x > 2 else (x + 1.4, y), (x, y), BLUE)


def nodes(axis, names):
    for at, name in names.items():
        box = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": FAINT}
        axis.text(*at, name, fontsize=11, ha="center", va="center", bbox=box)


def arrow(axis, start, end, colour=INK):
    """Between two nodes: along a row it stops beside them, else above or below them."""
    shrink = 24 if start[1] == end[1] else 17
    style = {"arrowstyle": "-|>", "shrinkA": shrink, "shrinkB": shrink, "color": colour, "lw": 1.6}
    axis.annotate("", end, start, arrowprops=style, zorder=0)


def scissors(axis, at, colour):
    axis.text(*at, "✂", color=colour, fontsize=26, ha="center", va="center", path_effects=[HALO])


if __name__ == "__main__":
    shown = definitions("start.md")
    (HERE / "figures/start.svg").write_text(svg(problem(*(shown[name] for name in ("L", "F", "tasks", "alpha")))))
    (HERE / "figures/graph.svg").write_text(svg(graph()))
