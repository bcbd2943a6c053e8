"""Draws figures/reuse.svg from the folders of two commands of reuse.md: `python -m docs.reuse SINE OMNIGLOT`."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from refmeta.lab.display import svg
from refmeta.lab.reuse.figures import panels

HERE = Path(__file__).resolve().parent


def beside(*folders: str) -> Figure:
    """A row for the result in each folder, of the panels that waves and characters both have."""
    figure = Figure(figsize=(13.5, 4 * len(folders)), layout="constrained")
    for axes, folder in zip(figure.subplots(len(folders), 3, squeeze=False), folders, strict=True):
        panels(axes, json.loads((Path(folder) / "result.json").read_text()))
    return figure


if __name__ == "__main__":
    (HERE / "figures/reuse.svg").write_text(svg(beside(*sys.argv[1:])))
