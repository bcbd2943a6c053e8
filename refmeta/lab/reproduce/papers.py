"""Read papers.json: what the papers published, the trainings that their tables need, and what differs here.

Numbers are strings, as printed there. A training's settings are those of `refmeta sine`, with the paper's preset, or of
`refmeta fewshot`; its iterations are the paper's. In the file a paper has the `settings` of all its trainings. It may
be `like` another, and then says only what is other. The rows of one that is not `judged` have no bar.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

PAPER = "the paper"


class Bar(NamedTuple):
    """How near, how high or how low a row must come: every one of its differences to the rows `of`, or of the PAPER."""

    kind: str  # within, above, below
    limit: float  # of accuracies in per cent
    of: tuple[str, ...] = ()  # labels of other rows of the table, or PAPER; none: the numbers themselves
    steps: tuple[int, ...] = ()  # those that count; none: all that there are


class Row(NamedTuple):
    """A line of a table: a training, tested in one way."""

    label: str
    training: str
    published: dict[int, str] = {}  # by number of steps
    bar: Bar | None = None
    test: dict[str, Any] = {}  # settings other than in training
    read: str = ""  # of characters: what is read from θ, see `reads`


class Paper(NamedTuple):
    """An experiment of a paper."""

    name: str
    help: str
    title: str
    link: str
    images: bool  # Omniglot's; else sine waves
    steps: tuple[int, ...]  # the columns
    trainings: dict[str, dict[str, Any]]
    tables: dict[str, list[Row]]  # by title; the rows of a table have the same score
    differs: tuple[str, ...]


def read(text: str) -> dict[str, Paper]:
    """The papers of such a file, by name. TypeError: a field that is missing, or one too many."""
    told = json.loads(text, object_hook=_typed)
    return {name: _paper(name, **{**told[own.get("like", name)], **own}) for name, own in told.items()}


def _typed(told: dict[str, Any]) -> dict[str | int, Any]:
    """What JSON does not have: whole numbers as keys, and tuples."""
    return {int(k) if k.isdigit() else k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}


def _paper(
    name: str, settings: Any, trainings: Any, tables: Any, judged: bool = True, like: str = "", **more: Any
) -> Paper:
    trained = {training: {**settings, **own} for training, own in trainings.items()}
    shown = {title: [_row(judged, **row) for row in rows] for title, rows in tables.items()}
    return Paper(name, trainings=trained, tables=shown, **more)


def _row(judged: bool, bar: Any = None, **more: Any) -> Row:
    return Row(bar=Bar(**bar) if bar and judged else None, **more)


PAPERS = read(Path(__file__).with_name("papers.json").read_text(encoding="utf-8"))
