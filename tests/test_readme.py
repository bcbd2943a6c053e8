"""The README says what is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_algorithms_shown_are_the_packages_own_lines():
    source = {line.strip() for line in (ROOT / "refmeta/spec/algorithms.py").read_text().splitlines()}
    shown = [line for line in BLOCKS[0].splitlines() if line and not line.startswith("#")]
    assert len(shown) >= 7 and set(shown) <= source


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_the_examples_run_and_print_what_they_say(block, capsys):
    exec(block, {})
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r"# (\[.*\])$", block, re.M)
    assert printed[: len(said)] == said and printed


def test_the_example_of_own_tasks_learns(capsys):
    exec(BLOCKS[2], {})
    assert float(capsys.readouterr().out) < 0.3  # slopes have variance 1
    code = [line for line in BLOCKS[2].splitlines() if line and not line.startswith(("import", "from"))]
    assert len(code) < 10


def test_every_link_and_figure_is_there():
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if not t.startswith("http")]
    assert targets and all((ROOT / target).exists() for target in targets)
