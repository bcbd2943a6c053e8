"""The figure of `refmeta reuse` (matplotlib, from the extra `lab`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from refmeta.lab.display import COLOURS, FAINT, INK, Row, column, plain_axis, plural
from refmeta.lab.files import save_figure
from refmeta.lab.plots import logarithmic, note, plot_similarity
from refmeta.lab.reuse.experiment import depths, layers
from refmeta.lab.runs import Result, Run

MAML = COLOURS["maml"]


def draw(folder: Path, result: Result, runs: list[Run]) -> None:
    """A panel for each table: the score against the frozen layers, how far each moves, its similarity, NIL."""
    images = "regimes" in result
    figure = Figure(figsize=(11, 7.6) if images else (13.5, 4), layout="constrained")
    panels(figure.subplots(2 if images else 1, 2 if images else 3).ravel(), result)
    save_figure(folder / "reuse.png", figure)


def panels(axes: Any, result: Result) -> None:
    """The first panels of a result, as many as there are axes."""
    images, steps = "regimes" in result, plural(max(result["config"]["maml"]["test_steps"]), "step")
    shown = [
        (_frozen, f"{result['data']}: MAML, {steps} on an unseen task", ("mean squared error", "accuracy (%)")[images]),
        (_moved, f"how far MAML's layers move in {steps}", "‖φ − θ‖ / ‖θ‖"),
        (_alike, "MAML's layers, activations on the query", "similarity"),
        (_regimes, "by training: NIL (dots), own head and inner loop (rings)", "accuracy (%)"),
    ]
    for (panel, title, score), axis in zip(shown, axes, strict=False):
        panel(axis, result, steps)
        axis.set_ylabel(score)
        plain_axis(axis).set_title(title, fontsize=10, color=INK)


def _dots(axis: Any, x: Sequence[float], rows: list[Row], colour: str, factor: float, form: str, **style: Any) -> None:
    """A dot for each row, with its interval, and its mean in this form below it."""
    mean, ci95 = factor * column(rows, "mean"), factor * column(rows, "ci95")
    axis.errorbar(x, mean, ci95, fmt="o", color=colour, capsize=3, ms=6, **style)
    for at, value, half in zip(x, mean, ci95, strict=True):
        note(axis, f"{value:{form}}", (at, value - half), (0, -11))


def _frozen(axis: Any, result: Result, steps: str) -> None:
    """The dashed level is the score without adaptation: a dot there has gained nothing by it."""
    factor, form = (100, ".1f") if "regimes" in result else (1, ".2f")
    (*some, nothing), last = result["frozen"], len(result["frozen"]) - 1
    _dots(axis, range(last), some, MAML, factor, form)
    _dots(axis, [last], [result["own"]["anil"]], COLOURS["anil"], factor, form)
    at = factor * nothing["mean"]
    axis.axhline(at, color=FAINT, ls="--")
    note(axis, f"nothing adapts: {at:{form}}", (-0.4, at), (0, 8), ha="left", color=FAINT)
    axis.set_xticks(range(last + 1), [*depths(result)[:-1], "body, ANIL"])
    axis.set(xlim=(-0.5, last + 0.5), xlabel="layers frozen at test; ANIL's body in training too")
    axis.margins(y=0.15)


def _moved(axis: Any, result: Result, steps: str) -> None:
    logarithmic(axis)
    _dots(axis, range(len(result["moved"])), result["moved"], MAML, 1, ".3f")
    axis.set_xticks(range(len(result["moved"])), layers(result))
    axis.margins(x=0.15, y=0.15)


def _alike(axis: Any, result: Result, steps: str) -> None:
    plot_similarity(result["similarity"], result["between"]["maml–maml"], axis)


def _regimes(axis: Any, result: Result, steps: str) -> None:
    """Filled: NIL; a ring: the method with its own head and inner loop."""
    for i, row in enumerate(result["regimes"]):
        name = row["regime"]
        _dots(axis, [i], [row], COLOURS.get(name, FAINT), 100, ".1f")
        if name in result["own"]:
            _dots(axis, [i + 0.3], [result["own"][name]], COLOURS[name], 100, ".1f", mfc="none")
    axis.set_xticks(range(len(result["regimes"])), [row["regime"].replace(" ", "\n") for row in result["regimes"]])
    axis.margins(y=0.15)
