"""The result of a check, in words."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from refmeta.conformance.evidence import Evidence
from refmeta.conformance.explain import ZERO, Explanation, Factor, Pattern
from refmeta.conformance.programs import EXAMPLES, known
from refmeta.trees import Array

INDENT = " " * 9
LOST = "first", "last", "all but the first", "all but the last"  # tasks; ", of several" may follow
APART, FEW = 3, 6  # explanations that the answers cannot tell apart: of more none is named, and none is listed
LISTED = 4  # wrong vectors listed for each algorithm


class Row(NamedTuple):
    """One vector's outcome. status: pass, fail (a wrong answer), error (no answer), skip (declined)."""

    id: str
    algorithm: str
    tier: str
    status: str
    digits: float
    message: str


class Verdict(NamedTuple):
    """The verdict on one algorithm.

    kind, of a check: none, pass, wiring, form, error, precision, convention, bug, unexplained; of an audit also grad,
    imprecise.
    """

    algorithm: str
    kind: str
    text: str
    explanations: tuple[Explanation, ...] = ()
    evidence: Evidence = Evidence()  # where no mistake explains it


@dataclass(frozen=True)
class Report:
    """The outcome of a check: `passed`, `rows`, `verdicts`; str() for people, `json()` for machines."""

    rows: list[Row]
    verdicts: list[Verdict]
    title: str = "refmeta check"

    @property
    def passed(self) -> bool:
        statuses = {row.status for row in self.rows}
        return "pass" in statuses and statuses <= {"pass", "skip"}

    def __str__(self) -> str:
        lines = [f"{self.title}: {'passed' if self.passed else 'FAILED'}", ""]
        for verdict in self.verdicts:
            lines += _lines(verdict, [row for row in self.rows if row.algorithm == verdict.algorithm])
        return "\n".join(lines)

    def json(self) -> str:
        """The report as JSON text."""
        verdicts = [
            {**v._asdict(), "explanations": [_json(e) for e in v.explanations], "evidence": v.evidence._asdict()}
            for v in self.verdicts
        ]
        content = {"passed": self.passed, "verdicts": verdicts, "rows": [row._asdict() for row in self.rows]}
        return json.dumps(content, indent=1, ensure_ascii=False)

    def raise_on_failure(self, cause: BaseException | None = None) -> None:
        """AssertionError unless it passed: its first line says what is wrong, the whole report follows."""
        __tracebackhide__ = True  # in pytest
        if not self.passed:
            wrong = sorted(self.verdicts, key=lambda v: (v.kind == "pass", v.kind == "none"))
            first = [f"{v.algorithm}: {v.text}".splitlines()[0] for v in wrong[:1]]
            raise AssertionError("\n\n".join([*first, str(self)])) from cause


def _lines(verdict: Verdict, rows: list[Row]) -> list[str]:
    """A verdict, then the first wrong rows."""
    right, skipped = (sum(row.status == status for row in rows) for status in ("pass", "skip"))
    note = f", {skipped} skipped" if skipped else ""
    text = f"{verdict.algorithm:<8} {right} of {len(rows) - skipped} right{note}: {verdict.text}"
    first, *more = text.splitlines()
    wrap = textwrap.TextWrapper(110, subsequent_indent=INDENT + "  ", break_on_hyphens=False).wrap
    lines = [part for line in (first, *(INDENT + line.strip() for line in more)) for part in wrap(line)]
    bad = [row for row in rows if row.status in ("fail", "error")]
    lines += [f"{INDENT}{row.id}: {row.message}" for row in bad[:LISTED]]
    return lines + [f"{INDENT}… and {len(bad) - LISTED} more"] * (len(bad) > LISTED)


def _json(e: Explanation) -> dict[str, Any]:
    return {"suspects": list(e.suspects), "tasks": pattern(e.tasks), "scale": str(e.scale), "own": e.own}


# --- One row ---


def no_gradient(value: Any, names: Sequence[str]) -> str:
    """Why an answer is no gradient."""
    if not hasattr(value, "keys"):
        return f"returned {type(value).__name__}: expected a list of arrays shaped like theta"
    keys, inside = str(sorted(map(str, value)))[:200], ", ".join(INSIDE)
    return f"returned a dict with keys {keys}: expected gradient, and any of {inside}; or {', '.join(names)}"


Shapes = Sequence[tuple[int, ...]]


def form(names: Sequence[str], got: Shapes, expected: Shapes) -> str:
    """How the shapes of a gradient differ from those expected."""
    if got == [shape[::-1] for shape in expected]:
        return "every array is transposed: W has shape (in, out), layer = x @ W + b"
    if sorted(got) == sorted(expected):
        return f"the arrays are in another order: expected {', '.join(names)}"
    if [prod(shape) for shape in got] == [sum(map(prod, expected))]:
        return f"one flat array: expected {len(expected)} arrays, {', '.join(names)}"
    if len(got) != len(expected):
        missing = "; missing " * bool(names[len(got) :]) + ", ".join(names[len(got) :])
        return f"{len(got)} arrays, expected {len(expected)}: {', '.join(names)}{missing}"
    i = [a == b for a, b in zip(got, expected, strict=True)].index(False)
    return f"{names[i]} has shape {got[i]}, expected {expected[i]}"


def comparison(names: Sequence[str], digits: Sequence[float], got: Array, expected: Array) -> str:
    """How a wrong gradient differs from the right one: their angle and lengths, and the digits of each array."""
    parts = ", ".join(f"{name} {many:.1f}" for name, many in zip(names, digits, strict=True))
    size, norm = np.linalg.norm(got), np.linalg.norm(expected)
    angle = f"cosine {got @ expected / (size * norm):.3f}, " if size and norm else ""
    return angle + (f"norm ratio {size / norm:.3g}, " if norm else "") + f"correct digits: {parts}"


# --- One verdict ---

WIRING = (
    "the harness is not wired up: even the simplest case, {row.id}, fails ({row.message}). It does not depend on the "
    "inner loop: look at how the case is read and how the gradient is returned. Nothing else is judged."
)
SINGLE = "right in float32, but float64 was asked for: some step is in float32."
ROUNDABOUT = "right to fewer digits than float64 has: some step loses digits, or is computed by differences."
NEARLY = "pass; {:.1f} digits at least, but not exact where nothing need be rounded: is a sum computed from a mean?"
AUDIT = {
    "twice": "asked twice, {} gave two answers; nothing can be judged: switch off dropout (net.eval()) and the like.",
    "kept": "asked twice, the meta-gradient gave two answers: it draws random numbers or keeps state between calls.",
    "grad": "grad is not the gradient of loss: they differ in array {} by {:.0%}; the meta-gradient is not judged.",
    "beside": "It was asked near θ: at θ differences of `grad` say too little (a unit on its kink?); give `hvp`.",
    "unheld": "`grad` itself could not be compared with `loss` in array {}: {}.",
    "rounded": "right to {:.1f} digits only: some step is in float32, or is computed by differences.",
    "pairs": " Pairs of mistakes are not tried on more than {} parameters.",
    "float32": "right in float64. With {:.1f} digits in float32 it cannot be judged: a kink near, or an unstable loop?",
}
TWICE = "asked twice, {} got two answers: it draws random numbers or keeps state between calls."
ASK = '\nReturn {"gradient": …, "phi": …}, with φ_0 … φ_K of every task, and the report names the first wrong step.'
FORMATS = {"float32": 5.5, "TF32 or float16": 2.3, "bfloat16": 0}  # and the digits that are left of a gradient
ALPHA = "α is rounded: all is right for its first six digits. The vectors' α are float32, as 0.30000001192092896."
ALONE = "one vector, no diagnosis: {}"
ZEROS = (
    "every gradient is zero: it went to a copy (B13, B14). PyTorch: deepcopy, load_state_dict and .data cut θ off; "
    "higher: copy_initial_weights=False. JAX, TensorFlow: the gradient is taken in other variables than θ."
)
INSIDE = {
    "phi": "φ_{k} is the first wrong value: look at inner step {k}",
    "inner_gradient": "φ_{k} is right, and the inner gradient there is the first wrong value",
    "adjoint": "all φ are right; on the way back ∂L_Q/∂φ_{k} is the first wrong value",
}


def describe(found: Sequence[Explanation]) -> str:
    """The first explanation in words: the mistake, its usual cause, where it happened before."""
    e = found[0]
    if e == ZERO:
        return ZEROS
    if len(found) > APART:
        many = f"wrong in one of {len(found)} ways that the answers do not tell apart, so none is named."
        return many + f"\nThe ways: {_each(found)}." * (len(found) <= FEW)
    mistakes, parts = _mistakes(e), _parts(e)
    lines = ["; ".join(parts or ["right"]) + "."]
    if not mistakes and e.tasks != "all":
        lines.append("Cause: a loss or gradient is overwritten, or cleared, inside the loop over tasks.")
    for m in mistakes:
        lines += [f"Cause: {m.cause}.", f"Seen in: {m.seen}." + f" Ledger: {m.ledger}." * bool(m.ledger)]
    return "\n".join(lines + [f"The answers cannot tell it from: {_each(found[1:])}."] * (len(found) > 1))


def _each(found: Sequence[Explanation]) -> str:
    """These explanations in a few words."""
    return "; or ".join(dict.fromkeys(" and ".join(_parts(e)) for e in found))


def _mistakes(e: Explanation) -> list[Any]:
    return [known(name) for name in e.suspects if name not in EXAMPLES]


def _parts(e: Explanation) -> list[str]:
    """All that an explanation says is wrong: mistakes, tasks that are lost, a factor."""
    parts = [mistake.title for mistake in _mistakes(e)]
    if e.tasks != "all":
        which, several, _ = str(e.tasks).partition(", of several")
        lost = f"only the {which} task counts" if which in ("first", "last") else f"{which} task count"
        lost = lost + ", if there are several" * bool(several)
        lost = lost if which in LOST else f"the tasks do not count the same: {which}"
        parts.append(f"{lost} (B4, B5)" if isinstance(e.tasks, str) else f"the tasks are {pattern(e.tasks)}")
    if e.scale._replace(own=()) != Factor():
        factor = f"the result is multiplied by {e.scale}"
        whole = f"all else is right, but {factor}: a convention, not a mistake, but not the one that was asked for"
        parts.append(whole if e.convention else factor)
    return parts


def own(conventions: dict[str, str], algorithm: str) -> str:
    """The conventions that an implementation keeps, whatever a vector asks for."""
    said = [f"the {conventions[what]} over the {what}" for what in ("tasks", "examples") if what in conventions]
    said += [conventions["reptile"]] if algorithm == "reptile" and "reptile" in conventions else []
    return f"\nIt keeps a convention of its own, whatever a vector asks for: {', '.join(said)}."


def evidence(p: Evidence) -> str:
    """The evidence in words."""
    if p.factor != 1:
        return f"right to {p.digits:.0f} digits: it is the right answer times {p.factor:.8g}, on every vector."
    if p.digits:
        name = next(name for name, digits in FORMATS.items() if p.digits >= digits)
        why = f"by no known mistake: low precision ({name}), or differences too coarse."
        return f"right to about {p.digits:.1f} digits everywhere, {why}"
    pieces = " and ".join(f"{c:.4g} times {name}" if c != 1 else name for name, c in p.pieces.items())
    near, missing = "; ".join(known(name).title for name in p.nearest), ", ".join(p.missing)
    between = " to ".join(f"{factor:.4g}" for factor in p.multiples)
    said = {
        "wrong, and no known mistake or pair of mistakes explains all of it; no guess is made.": True,
        f"It is wrong exactly on the vectors with {p.where}: on {p.wrong} of {p.asked}.": p.where,
        f"It is right exactly on the vectors with {p.unless}: on {p.asked - p.wrong} of {p.asked}.": p.unless,
        "It is wrong on all vectors, also where α = 0: look outside the inner loop.": p.outside,
        f"Of several arrays only these are wrong: {p.arrays}.": p.arrays,
        f"On every vector it is {pieces}.": pieces,
        f"On every vector of one task it has the length {p.length:.6g}.": p.length,
        f"It is always a multiple of the right answer, but not always the same one: from {between}.": between,
        f"On every vector it is a sum of multiples of {p.span}, but not everywhere the same multiples.": p.span,
        f"Closest: {near}. That explains {p.asked - len(p.missing)} of {p.asked}, but not {missing}.": near,
    }
    return "\n".join(sentence for sentence, holds in said.items() if holds)


def pattern(tasks: Pattern) -> str:
    """The tasks that count, in a word or by their weights."""
    return tasks if isinstance(tasks, str) else f"weighted {', '.join(f'{w:.3g}' for w in tasks)}"
