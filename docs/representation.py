"""Draws figures/representation.svg from the first example of theorems.md: `python -m docs.representation`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from docs.build import definitions
from refmeta.lab.display import COLOURS, FAINT, INK, plain_axis, svg

HERE = Path(__file__).parent
DASHES = {"anil": (0, (3, 3))}  # it lies on MAML
NOTE = {"textcoords": "offset points", "fontsize": 11}
# Of each line on the right: its name, where that stands, how far off and to which side.
BESIDE = {
    "joint": ("joint training", 40, (0, -16), "center"),
    "fomaml": ("first-order MAML", 40, (8, 2), "left"),
    "maml": ("MAML", 40, (-8, -10), "right"),
    "anil": ("ANIL, on MAML", 55, (-8, -10), "right"),
}


def parts(B_star, alpha, path):
    """[c, d] at each outer step: how much of B's directions lies inside the space, and how much outside."""
    directions = np.linalg.svd(B_star.T @ path[0][0])[2].T
    V = alpha**0.5 * np.array([B @ directions for B, _ in path])
    inside = B_star @ (B_star.T @ V)
    return np.linalg.norm(inside, axis=1), np.linalg.norm(V - inside, axis=1)


def draw(B_star, alpha, paths):
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    quarter = np.linspace(0, np.pi / 2)
    left.plot(np.cos(quarter), np.sin(quarter), color=FAINT, lw=0.8)
    left.annotate("c² + d² = 1", (0.5, 0.87), (6, 6), color=FAINT, **NOTE)
    for name, path in paths.items():
        c, d = parts(B_star, alpha, path)
        sine = (d / np.hypot(c, d)).max(1)
        for axis, line in (left, (c, d)), (right, (sine,)):
            axis.plot(*line, color=COLOURS[name], lw=2.4, ls=DASHES.get(name, "-"))
        label, step, offset, side = BESIDE[name]
        right.annotate(label, (step, sine[step]), offset, color=COLOURS[name], ha=side, **NOTE)
    left.plot(c[0], d[0], "o", color=COLOURS["joint"], ms=8)
    left.annotate(
        "joint training stays\nwhere it starts", (c[0, 1], d[0, 1]), (-40, -56), color=COLOURS["joint"], **NOTE
    )
    left.annotate("the others arrive\nin the space", (1, 0), (-120, 10), color=INK, **NOTE)
    left.set(xlabel="c, inside the space of B*", ylabel="d, outside", title="the two directions of B")
    left.set(xlim=(0, 1.15), ylim=(-0.03, 1.12), aspect="equal")
    right.set(xlabel="outer steps", yscale="log", title="sine of the largest angle to B*")
    for axis in (left, right):
        plain_axis(axis)
    return figure


if __name__ == "__main__":
    shown = definitions("theorems.md")
    figure = draw(shown["B_star"], shown["alpha"], shown["paths"])
    (HERE / "figures/representation.svg").write_text(svg(figure))
