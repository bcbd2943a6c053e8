"""Runs tour.ipynb and stores what its cells print and draw: `python -m docs.tour`, with the extra `notebook`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent / "tour.ipynb"
# Text in place of widgets, which only a running kernel can show; no warning, which would name a path.
BEFORE = "import sys, warnings\nsys.modules['ipywidgets'] = None\nwarnings.simplefilter('ignore')"


def executed(text: str) -> Any:
    """The notebook after its cells have run, in a new kernel and an empty folder. CellExecutionError: one failed."""
    notebook = nbformat.reads(text, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BEFORE))
    with TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    del notebook.cells[0]
    return notebook


def cleaned(notebook: Any) -> str:
    """Its JSON: of a bar that was drawn again and again the last state, and nothing about this machine."""
    notebook.metadata = {"language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.update(id=f"cell-{number}", metadata={})
        if cell.cell_type == "code":
            cell.execution_count, kept = None, []
            for output in cell.outputs:
                if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
                    kept[-1].text += output.text
                elif output.output_type == "stream" or "image/png" in output.data:
                    kept.append(output)
            for output in kept:
                if output.output_type == "stream":
                    output.text = "\n".join(line.rpartition("\r")[2] for line in output.text.strip("\r\n").split("\n"))
                else:
                    output.update(metadata={}, data={"image/png": output.data["image/png"]})
            cell.outputs = kept
    return nbformat.writes(notebook, indent=1) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(cleaned(executed(NOTEBOOK.read_text())))
