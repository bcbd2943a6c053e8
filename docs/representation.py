"""Draws figures/representation.png from the first example of theorems.md: `python -m docs.representation`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from docs.build import definitions
from refmeta.lab.display import COLOURS, FAINT, INK
from refmeta.lab.files import save_figure

HERE = Path(__file__).parent
NAMES = {"joint": "joint training", "fomaml": "first-order MAML", "maml": "MAML", "anil": "ANIL"}
DASHES = {"anil": (0, (3, 3))}  # it lies on MAML


def parts(B_star, alpha, path):
    """[c, d] at each outer step: how much of B's directions lies inside the space, and how much outside."""
    directions = np.linalg.svd(B_star.T @ path[0][0])[2].T
    V = alpha**0.5 * np.array([B @ directions for B, _ in path])
    inside = B_star @ (B_star.T @ V)
    return np.linalg.norm(inside, axis=1), np.linalg.norm(V - inside, axis=1)


def draw(B_star, alpha, paths):
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    quarter = np.linspace(0, np.pi / 2)
    left.plot(np.cos(quarter), np.sin(quarter), color=FAINT, lw=0.8)
    left.annotate("c² + d² = 1", (0.5, 0.87), (6, 6), textcoords="offset points", fontsize=10, color=FAINT)
    for name, path in paths.items():
        c, d = parts(B_star, alpha, path)
        style = {"color": COLOURS[name], "lw": 2.4, "ls": DASHES.get(name, "-")}
        left.plot(c, d, **style)
        right.semilogy((d / np.hypot(c, d)).max(1), label=NAMES[name], **style)
    left.plot(c[0], d[0], "o", color=COLOURS["joint"], ms=8)
    note = {"textcoords": "offset points", "fontsize": 11}
    left.annotate(
        "joint training stays\nwhere it starts", (c[0, 1], d[0, 1]), (-50, -52), color=COLOURS["joint"], **note
    )
    left.annotate("the others arrive\nin the space", (1, 0), (-120, 10), color=INK, **note)
    left.set(xlabel="c, inside the space of B*", ylabel="d, outside", title="the two directions of B")
    left.set(xlim=(0, 1.15), ylim=(-0.03, 1.12), aspect="equal")
    right.set(xlabel="outer steps", title="sine of the largest angle between the spaces of B and B*")
    right.legend(frameon=False, loc="lower left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    shown = definitions("theorems.md")
    save_figure(HERE / "figures/representation.png", draw(shown["B_star"], shown["alpha"], shown["paths"]))
