"""Draws figures/weights.svg with `refmeta.lab.plots.plot_weights`: `python -m docs.weights`."""

from pathlib import Path

from matplotlib.figure import Figure

from refmeta.lab import plots
from refmeta.lab.display import svg


def draw():
    figure = Figure(figsize=(9, 4), layout="constrained")
    for K, axis in enumerate(figure.subplots(1, 2), 1):
        plots.plot_weights(K, axis)
        axis.set_title(f"K = {K}", fontsize=11)
    return figure


if __name__ == "__main__":
    (Path(__file__).parent / "figures/weights.svg").write_text(svg(draw()))
