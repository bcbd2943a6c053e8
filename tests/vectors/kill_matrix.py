"""Writes the kill matrix: `python -m tests.vectors.kill_matrix > docs/kill_matrix.md`."""

from collections.abc import Iterable
from functools import cache
from operator import is_

import numpy as np

from refmeta.conformance.cases import Case, load
from refmeta.conformance.explain import of_vector, usual
from refmeta.conformance.mistakes import FAMILIES, MISTAKES, OTHERS
from refmeta.conformance.programs import EVERY, with_mistakes
from tests.vectors.derivations import ALGORITHMS

TIERS = tuple(dict.fromkeys(v.case.tier for v in load()))
HEAD = """# Which vector catches which mistake

Made by `python -m tests.vectors.kill_matrix > docs/kill_matrix.md`; the tests compare it. A number
counts the vectors on which the mistake gives another answer than the right one, by more than a
hundred float32 tolerances: of every tier, of all, and of every algorithm. 0: the mistake can be
made there, and shows on no vector. The tiers are the kinds of cases: canary, so simple that only
wrong wiring should fail it; quadratic, regression, tanh and softmax losses; edge, such as no steps
or an empty head; scalar; deep: several hidden layers, twelve steps, inner gradients longer than
100, or batches of unequal sizes; relu: the same, away from the kinks.

The vectors hold the answers of the mistakes of the first table. Given such answers without their
name, `refmeta check` names each ([`test_conformance.py`](../tests/conformance/test_conformance.py)).

"""
MORE = """## What else is looked for

No vector lists these: the checker computes their answers. A test asserts that each shows on two vectors of two tiers,
or that a table says why it does not (`INVISIBLE` in `tests/vectors/test_vectors.py`).

"""
NUMBERS = """## The same with a number in it

The counts are those of the number that shows least and of the one that shows most. The tiers are those where every
number shows. The checker tries these numbers; a number that counts nothing it also fits to the answer.

"""


@cache
def visible() -> dict[str, list[Case]]:
    """The cases on which a mistake shows, by its id: of every choice of the grammar, and every usual number."""
    found: dict[str, list[Case]] = {name: [] for name in (*EVERY, *usual())}
    with np.errstate(all="ignore"):  # a wrong program may overflow
        for v in load():
            answered = of_vector(v, v.gradient, "float32")
            for name, cases in found.items():
                shows = name in v.suspects if name in MISTAKES else answered.shows((name,))
                cases += [v.case] if shows else []
    return found


@cache
def possible() -> dict[str, set[str]]:
    """The algorithms in which a mistake can be made, by its id."""
    found: dict[str, set[str]] = {name: set() for name in visible()}
    for v in load():
        before = v.case.settings
        for name, algorithms in found.items():
            if v.case.algorithm not in algorithms and not all(map(is_, with_mistakes([name], before), before)):
                algorithms.add(v.case.algorithm)
    return found


def among(found: set[str]) -> str:
    """The tiers in few words."""
    some = [tier for tier in TIERS if tier in found]
    rest = [tier for tier in TIERS if tier not in some]
    if not rest or len(some) <= len(rest):
        return " ".join(some) if rest else "all"
    return f"all but {' '.join(rest)}"


def per_algorithm(names: list[str]) -> list[str]:
    """The fewest and the most vectors of every algorithm on which one of these shows."""
    cells = []
    for algorithm in ALGORITHMS:
        counts = [sum(case.algorithm == algorithm for case in visible()[name]) for name in names]
        span = [str(n) for n in sorted({min(counts), max(counts)})]
        cells.append("–".join(span) if any(algorithm in possible()[name] for name in names) else "")
    return cells


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def listed() -> list[str]:
    lines = [row(["mistake", *TIERS, "all", *ALGORITHMS]), "|---" + "|--:" * (len(TIERS) + 1 + len(ALGORITHMS)) + "|"]
    for name in MISTAKES:
        caught = [case.tier for case in visible()[name]]
        counts = [str(caught.count(tier) or "") for tier in TIERS]
        lines.append(row([f"[{name}](#{name})", *counts, str(len(caught)), *per_algorithm([name])]))
    return lines


def others() -> list[str]:
    lines = [row(["mistake", *ALGORITHMS, "tiers", "what it is"]), "|---" + "|--:" * len(ALGORITHMS) + "|---|---|"]
    for name, m in OTHERS.items():
        tiers = among({case.tier for case in visible()[name]})
        lines.append(row([name, *per_algorithm([name]), tiers, m.title]))
    return lines


def families() -> list[str]:
    lines = [row(["mistake", *ALGORITHMS, "tiers", "what it is", "numbers"])]
    lines.append("|---" + "|--:" * len(ALGORITHMS) + "|---|---|---|")
    for name, family in FAMILIES.items():
        ids = usual([name])
        everywhere = set.intersection(*({case.tier for case in visible()[id]} for id in ids))
        numbers = " ".join(id.partition("=")[2] for id in ids)
        lines.append(row([name, *per_algorithm(ids), among(everywhere), family.title.format("…"), numbers]))
    return lines


def matrix() -> str:
    """The page."""
    lines = [*listed(), "", *MORE.splitlines(), *others(), "", *NUMBERS.splitlines(), *families()]
    lines += ["", "## The mistakes", ""]
    for m in MISTAKES.values():
        title = f"{m.ledger}: {m.title}." if m.ledger else f"{m.title[0].upper()}{m.title[1:]}."
        lines += [f"### {m.id}", "", title, "", f"Seen in: {m.seen}.", "", f"Cause: {m.cause}.", ""]
    return HEAD + "\n".join(lines)


if __name__ == "__main__":
    print(matrix(), end="")
