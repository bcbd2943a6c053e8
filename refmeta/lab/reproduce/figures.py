"""The figure of `refmeta reproduce` (matplotlib, from the extra `lab`)."""

from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refmeta.lab.display import FAINT, INK, plain_axis, plural
from refmeta.lab.files import save_figure
from refmeta.lab.plots import logarithmic
from refmeta.lab.reproduce.experiment import SCORES, number
from refmeta.lab.reproduce.papers import PAPERS
from refmeta.lab.runs import Result, Run


def draw(folder: Path, result: Result, runs: list[Run]) -> None:
    """reproduce.png: for each table a panel, in it for each row and number of steps ours and the paper's number."""
    paper, tables = PAPERS[result["paper"]], result["tables"]
    lines = [_points(paper.steps, table) for table in tables]
    rows = [len(points) + 2 for points in lines]
    figure = Figure(figsize=(8, 0.8 + 0.26 * sum(rows)), layout="constrained")
    axes = figure.subplots(len(tables), squeeze=False, height_ratios=rows)[:, 0]
    for axis, table, points in zip(axes, tables, lines, strict=True):
        _panel(axis, points, table["score"])
        axis.set_title("\n".join(wrap(table["title"], 60)), fontsize=10, color=INK)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    save_figure(folder / "reproduce.png", figure)


Point = tuple[str, Any, tuple[float, float] | None]  # label; ours, a row of the curve; the paper's number and its ±


def _points(steps: tuple[int, ...], table: Result) -> list[Point]:
    return [
        (f"{row['label']}, {plural(each['steps'], 'step')}", each, known and number(known))
        for row in table["rows"]
        for each in row["here"]
        for known in [row["published"].get(each["steps"])]
        if each["steps"] in steps and (each["steps"] or len(row["here"]) == 1)  # unadapted, it is at chance
    ]


def _panel(axis: Any, points: list[Point], score: str) -> None:
    factor = 100 if score == "accuracy" else 1
    places = np.arange(len(points))
    mean, ci95 = ([factor * here[key] for _, here, _ in points] for key in (score, "ci95"))
    axis.errorbar(mean, places, xerr=ci95, fmt="o", color=INK, ms=5, capsize=3, label="here, with its 95 % interval")
    known = np.array([(place, *paper) for place, (*_, paper) in enumerate(points) if paper]).reshape(-1, 3).T
    axis.errorbar(known[1], known[0], None, known[2], "D", color=FAINT, mfc="none", ms=7, capsize=3, label="the paper")
    axis.set_yticks(places, [label for label, *_ in points])
    axis.grid(axis="y", color=FAINT, alpha=0.3)
    axis.set(xlabel=SCORES[score], ylim=(len(points) - 0.5, -0.5))
    if score == "mse":
        logarithmic(axis, "x")
    plain_axis(axis)
