"""How results look, the same for all experiments: text tables, and the colours, axes and curves of figures.

Nothing here imports matplotlib: the functions get its axes from the figures.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import StringIO
from math import inf
from typing import Any

import numpy as np

from refmeta.trees import Array

Row = dict[str, Any]
Curve = list[Row]  # a row for each number of steps

COLOURS = {"maml": "#2460a7", "fomaml": "#1f8099", "anil": "#7a4fa3", "reptile": "#2e8b57", "joint": "#c8553d"}
INK, FAINT, PAPER, CONTOUR = "#222222", "#767676", "#ffffff", "#d9d6ce"
# What each of them becomes on a dark page, in a figure's SVG.
DARK = {
    INK: "#e4e4e4",
    "#000000": "#e4e4e4",
    PAPER: "#131416",
    CONTOUR: "#3c3d42",
    **dict(zip(COLOURS.values(), ("#6ea8f0", "#58bfd8", "#b48be0", "#57bd84", "#ee8168"), strict=True)),
}
LABELS = {
    "joint": "joint training",
    "untrained": "untrained, adapted alike",
    "nearest neighbour": "nearest neighbour, pixels",
}
LOST = "all diverged"


# --- Text -------------------------------------------------------------------------------------------


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def cell(mean: float, ci95: float, percent: bool = False) -> str:
    """A mean and the half-width of its interval, as "0.123 ± 0.045"; of a share, in per cent: "12.3 ± 4.5"."""
    return f"{100 * mean:.1f} ± {100 * ci95:.1f}" if percent else f"{mean:.3f} ± {ci95:.3f}"


def table(lines: Sequence[Sequence[str]], gap: str = "") -> str:
    """Lines of cells as text, each column to the right; a column without a cell below its head is left out."""
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    return "\n".join(gap.join(line).rstrip() for line in zip(*padded, strict=True))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table, the first its head; its columns line up."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    head, *rest = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["-" * width for width in widths], *rest])


def over(result: Row) -> str:
    """How a result's numbers come from its seeds."""
    many = len(result["seeds"])
    return f"mean over {many} seeds ± 95 % interval" if many > 1 else "mean ± 95 % interval"


def by_steps(curves: dict[str, Curve], steps: Sequence[int], width: int, score: str) -> str:
    """A line for each curve, a column for each number of steps, the score in it; a curve may end early."""
    lines = [[" " * 26, *(plural(k, "step").rjust(width) for k in steps)]]
    for name, curve in curves.items():
        means = [cell(row[score], row["ci95"], score == "accuracy") if row[score] < inf else LOST for row in curve]
        lines.append([LABELS.get(name, name), *means, *[""] * (len(steps) - len(curve))])
    return table(lines)


# --- Progress ---------------------------------------------------------------------------------------


@contextmanager
def bar(total: int | None, title: str = "") -> Iterator[Callable[[int, str], None]]:
    """A function of (how many are done, a note) that moves a progress bar; one that does nothing without tqdm."""
    if importlib.util.find_spec("tqdm") is None:
        yield lambda done, note: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=title) as shown:

        def move(done: int, note: str) -> None:
            shown.set_postfix_str(note, refresh=False)
            shown.update(done - shown.n)

        yield move


def progress(iterations: int | None = None, title: str = "") -> Callable[[int, float], None]:
    """train(…, report=progress()): a bar with the live loss, in a terminal or a notebook; without tqdm, nothing.

    With the number of iterations it shows how many are left, and it ends with the last.
    """
    stack = ExitStack()
    move = stack.enter_context(bar(iterations, title))

    def report(iteration: int, loss: float) -> None:
        move(iteration + 1, f"loss {loss:.3f}")
        if iteration + 1 == iterations:
            stack.close()

    return report


# --- Curves and figures -----------------------------------------------------------------------------


def by_method(rows: Sequence[Row]) -> dict[str, Curve]:
    """The rows of several methods' curves, by method."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return {method: [row for row in rows if row["method"] == method] for method in methods}


def column(rows: Curve, key: str) -> Array:
    return np.array([row[key] for row in rows], float)


def svg(figure: Any) -> str:
    """A figure of matplotlib as SVG: transparent, and `DARK` where the page is dark.

    The same figure gives the same bytes, but for the ids of clip paths.
    """
    from matplotlib import rc_context

    text = StringIO()
    with rc_context({"svg.hashsalt": "refmeta"}):  # else its ids are drawn anew
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    rule = '[style*="{0}: {1}"]{{{0}:{2}!important}}'
    rules = [rule.format(what, *colours) for colours in DARK.items() for what in ("fill", "stroke")]
    rules.append(f"svg{{fill:{DARK[INK]}}}")  # what is black says nothing
    style = f"<style>@media (prefers-color-scheme:dark){{{''.join(rules)}}}</style>\n <defs>"
    return text.getvalue().replace("<defs>", style, 1)


def plain_axis(axis: Any = None) -> Any:
    """The axis (None: pyplot's current one) with two spines and small ticks, as all figures here have."""
    axis = axis or importlib.import_module("matplotlib.pyplot").gca()
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", colors=INK, labelsize=9, length=3)
    return axis
