"""The notebook: what it stores is clean, and it runs from its first cell to its last."""

import importlib
import json
import re
from pathlib import Path

import pytest

import refmeta

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs/tour.ipynb"
if not NOTEBOOK.exists():
    pytest.skip("the notebook is in the checkout only", allow_module_level=True)

PATH = re.compile(r"(?<![\w/.])/(?:[\w.-]+/)+[\w.-]+|[A-Z]:\\|site-packages|https?://(?:localhost|127\.)")
LINES = {"α is missing from (I − αH)", "first-order: the second-order term is missing", "5 of 5 right: pass"}


def faults(notebook):
    """What a stored notebook must not have."""
    for i, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", ()):
            said = "".join(output.get("text", ()))
            if output["output_type"] == "error":
                yield f"cell {i}: error {output.get('ename')}"
            if set(output.get("data", ())) - {"image/png"} or output["output_type"] not in ("stream", "display_data"):
                yield f"cell {i}: another output than text and PNG"
            if "Traceback" in said or "Warning" in said:
                yield f"cell {i}: a warning or a traceback"
            if PATH.search(said):
                yield f"cell {i}: a path of the machine: {PATH.search(said)[0]}"
        if cell["cell_type"] == "code" and cell["execution_count"] is not None:
            yield f"cell {i}: counted"


def printed(notebook):
    return "".join("".join(out.get("text", ())) for cell in notebook["cells"] for out in cell.get("outputs", ()))


def test_the_stored_notebook_is_small_and_clean_and_shows_what_it_should():
    notebook = json.loads(NOTEBOOK.read_text())
    assert not list(faults(notebook)) and NOTEBOOK.stat().st_size < 400_000
    pictures = [
        out for cell in notebook["cells"] for out in cell.get("outputs", ()) if "image/png" in out.get("data", ())
    ]
    said = printed(notebook)
    assert len(pictures) == 2 and "100%" in said and "loss" in said, "two pictures, and the bar at its end"
    assert all(line in said for line in LINES)


@pytest.mark.parametrize(
    "output, said",
    [
        ({"output_type": "error", "ename": "ValueError"}, "error ValueError"),
        ({"output_type": "stream", "text": ["see /home/me/x.py\n"]}, "a path of the machine: /home/me/x.py"),
        ({"output_type": "stream", "text": ["C:\\Users\n"]}, "a path of the machine"),
        ({"output_type": "stream", "text": ["TqdmWarning: no\n"]}, "a warning"),
        ({"output_type": "display_data", "data": {"text/html": "x"}}, "another output"),
        ({"output_type": "stream", "text": ["100%|██████████| 5/5, loss 1/2 g₁ → (I − αH)\n"]}, None),
    ],
)
def test_a_notebook_that_is_not_clean_is_seen(output, said):
    cells = [{"cell_type": "code", "execution_count": None, "outputs": [output]}]
    found = list(faults({"cells": cells}))
    assert any(said in fault for fault in found) if said else not found


@pytest.fixture(scope="module")
def tour():
    for package in ("nbclient", "ipykernel", "matplotlib", "tqdm"):
        pytest.importorskip(package, reason="the notebook needs the extras lab and notebook")
    if ROOT not in Path(refmeta.__file__).parents:
        pytest.skip("needs the checkout's refmeta")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        patch.setenv("PYTHONPATH", str(ROOT))
        yield importlib.import_module("docs.tour")


@pytest.mark.filterwarnings("ignore")
def test_it_runs_and_finds_the_mistakes(tour):
    text = NOTEBOOK.read_text()
    after = json.loads(tour.cleaned(tour.executed(text)))
    assert not list(faults(after))
    before, said = json.loads(text), printed(after)
    assert [cell["source"] for cell in after["cells"]] == [cell["source"] for cell in before["cells"]]
    torch = "PyTorch is not installed" not in said
    assert {line for line in LINES if line in said} == (LINES if torch else {"α is missing from (I − αH)"})


@pytest.mark.filterwarnings("ignore")
def test_a_cell_that_fails_fails(tour):
    notebook = json.loads(NOTEBOOK.read_text())
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        tour.executed(json.dumps({**notebook, "cells": [{**cell, "source": ["1 / 0"], "outputs": []}]}))
