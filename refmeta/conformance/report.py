"""What a check found, and all the words for it."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np

from refmeta.conformance.evidence import Evidence
from refmeta.conformance.explain import ZERO, Explanation, Factor, Pattern
from refmeta.conformance.programs import EXAMPLES, known
from refmeta.trees import Array

INDENT = " " * 9
LOST = "first", "last", "all but the first", "all but the last"  # of the tasks; "of several" may follow
APART = 3  # explanations that the answers cannot tell apart; of more, none is named
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
    """What is wrong with one algorithm.

    kind, of a check: none, pass, wiring, form, error, precision, convention, bug, unexplained; of an audit also grad,
    imprecise.
    """

    algorithm: str
    kind: str
    text: str
    explanations: tuple[Explanation, ...] = ()
    evidence: Evidence = Evidence()  # where no program explains it


@dataclass(frozen=True)
class Report:
    """The outcome of a check: `passed`, `rows`, `verdicts`; str() for people, `json()` for machines."""

    rows: list[Row]
    verdicts: list[Verdict]
    title: str = "refmeta check"
    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        statuses = {row.status for row in self.rows}
        object.__setattr__(self, "passed", "pass" in statuses and statuses <= {"pass", "skip"})

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
        """AssertionError unless it passed: in its first line what is wrong first, then the whole report."""
        __tracebackhide__ = True  # in pytest
        if not self.passed:
            wrong = sorted(self.verdicts, key=lambda v: (v.kind == "pass", v.kind == "none"))
            first = [f"{v.algorithm}: {v.text}".splitlines()[0] for v in wrong[:1]]
            raise AssertionError("\n\n".join([*first, str(self)])) from cause


def _lines(verdict: Verdict, rows: list[Row]) -> list[str]:
    """A verdict, then the first of the rows that are wrong."""
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
    """What is wrong with an answer that is no gradient."""
    if not hasattr(value, "keys"):
        return f"returned {type(value).__name__}: expected a list of arrays shaped like theta"
    keys, inside = str(sorted(map(str, value)))[:200], ", ".join(INSIDE)
    return f"returned a dict with keys {keys}: expected gradient, and any of {inside}; or {', '.join(names)}"


Shapes = Sequence[tuple[int, ...]]


def form(names: Sequence[str], got: Shapes, expected: Shapes) -> str:
    """What is wrong with the shapes of a gradient, which are not those expected."""
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
    return angle + (f"{size / norm:.3g} times as long, " if norm else "") + f"correct digits: {parts}"


# --- One verdict ---

WIRING = (
    "the harness is not wired up: its simplest case, {row.id}, fails ({row.message}). It passes whatever the inner "
    "loop does, so look at how the case is read and the gradient returned; nothing else is judged."
)
SINGLE = "right in float32, but float64 was asked for: something on the way is float32."
ROUNDABOUT = "right to fewer digits than float64 has: something is computed in a roundabout way, or by differences."
NEARLY = (
    "pass; right to the last bits, {:.1f} digits at least, but not exact where no step need be rounded: something is "
    "computed in a roundabout way, such as a mean that is multiplied up to a sum"
)
AUDIT = {
    "twice": "asked twice, {} gave two answers; nothing can be judged: switch off dropout (net.eval()) and the like.",
    "kept": "asked twice, the meta-gradient gave two answers: it draws numbers, or keeps something from call to call.",
    "grad": "grad is not the gradient of loss: they differ in array {} by {:.0%}; the meta-gradient is not judged.",
    "beside": "It was asked beside θ, for at θ differences of `grad` say too little (a unit on its kink?): give `hvp`.",
    "unheld": "`grad` itself could not be held against `loss` in array {}: {}.",
    "rounded": "right to {:.1f} digits only: something on the way is in float32, or is computed by differences.",
    "pairs": " Pairs of mistakes are not tried on more than {} parameters.",
    "float32": "right in float64. In float32 it has {:.1f} correct digits, fewer than rounding explains, and cannot be "
    "judged: a unit may sit near its kink, or the inner loop be unstable.",
}
UNEXPLAINED = "wrong, and no known mistake or pair of mistakes explains all of it; no guess is made."
WHERE = "\nIt is wrong exactly on the vectors with {}: on {} of {}."
UNLESS = "\nIt is right exactly on the vectors with {}: on {} of {}."
OUTSIDE = "\nIt is wrong on all vectors, also where α = 0: look outside of the inner loop."
ARRAYS = "\nOf several arrays only these are wrong: {}."
MULTIPLES = "\nIt is always a multiple of the right answer, but not the same: from {:.4g} to {:.4g}."
SPAN = "\nOn every vector it is a sum of multiples of {}, but not everywhere the same multiples."
TWICE = "asked twice, {} got two answers: something is drawn at random, or kept from call to call."
PIECES = "\nOn every vector it is {}."
NEAREST = "\nNear is: {}. That explains {} of {}, not {}."
ASK = (
    '\nReturn {"gradient": …, "phi": …}, with φ_0 … φ_K of every task, and the report says which step is the first '
    "wrong one."
)
LOW = (
    "right to about {:.1f} digits everywhere, and no known mistake explains the rest: low precision ({}), or "
    "differences with a coarse step."
)
FORMATS = {"float32": 5.5, "TF32 or float16": 2.3, "bfloat16": 1.5}  # and the digits that are left of a gradient
TIMES = "right to {:.0f} digits: it is the right answer times {:.8g}, on every vector."
ALPHA = "α is rounded: all is right for the first six digits of it. The vectors' α are float32, as 0.30000001192092896."
OWN = "\nThis is under a convention of its own, whatever a vector asks for: {}."
MANY = "wrong in one of {} ways that the answers do not tell apart, so none is named."
ALONE = "one vector, no diagnosis: {}"
ZEROS = (
    "every gradient is zero: it went to a copy (B13, B14). PyTorch: deepcopy, load_state_dict and .data cut θ off; "
    "higher: copy_initial_weights=False. JAX, TensorFlow: the gradient is taken in other variables than θ."
)
OVERWRITTEN = "Cause: a loss or gradient is overwritten, or cleared, inside the loop over tasks."
CONVENTION = "all else is right, but {}: a convention, not a mistake, but not the one that was asked for"
INSIDE = {
    "phi": "φ_{k} is the first wrong value: look at inner step {k}",
    "inner_gradient": "φ_{k} is right and the inner gradient at it is the first wrong value",
    "adjoint": "all φ are right; of ∂L_Q/∂φ_k the last, φ_{k}, is the first wrong value of the way back",
}


def describe(found: Sequence[Explanation]) -> str:
    """The first explanation in words: what, where it is lost, what to change, where it happened before."""
    e = found[0]
    if e == ZERO:
        return ZEROS
    if len(found) > APART:
        return MANY.format(len(found))
    mistakes = [known(name) for name in e.suspects if name not in EXAMPLES]
    parts = [mistake.title for mistake in mistakes]
    if e.tasks != "all":
        which, several, _ = str(e.tasks).partition(", of several")
        lost = f"only the {which} task counts" if which in ("first", "last") else f"{which} task count"
        lost = lost + ", if there are several" * bool(several)
        lost = lost if which in LOST else f"the tasks do not count the same: {which}"
        parts.append(f"{lost} (B4, B5)" if isinstance(e.tasks, str) else f"the tasks are {pattern(e.tasks)}")
    if e.scale._replace(own=()) != Factor():
        factor = f"the result is multiplied by {e.scale}"
        parts.append(CONVENTION.format(factor) if e.convention else factor)
    lines = ["; ".join(parts or ["right"]) + "."] + [OVERWRITTEN] * (not mistakes and e.tasks != "all")
    for m in mistakes:
        lines += [f"Cause: {m.cause}.", f"Seen in: {m.seen}." + f" Ledger: {m.ledger}." * bool(m.ledger)]
    others = [" and ".join(known(name).title for name in o.suspects) or pattern(o.tasks) for o in found[1:3]]
    if others:
        lines.append(f"The answers cannot tell it from: {'; or '.join(dict.fromkeys(others))}.")
    return "\n".join(lines)


def own(conventions: dict[str, str], algorithm: str) -> str:
    """The conventions that an implementation keeps to, whatever a vector asks for."""
    said = [f"the {conventions[what]} over the {what}" for what in ("tasks", "examples") if what in conventions]
    said += [conventions["reptile"]] if algorithm == "reptile" and "reptile" in conventions else []
    return OWN.format(", ".join(said))


def evidence(proof: Evidence) -> str:
    """What the answers prove, in words."""
    if proof.factor != 1:
        return TIMES.format(proof.digits, proof.factor)
    if proof.digits:
        formats = [name for name, digits in FORMATS.items() if proof.digits >= digits]
        return LOW.format(proof.digits, formats[0] if formats else "float16")
    pieces = " and ".join(f"{c:.4g} times {name}" if c != 1 else name for name, c in proof.pieces.items())
    near = "; ".join(known(name).title for name in proof.nearest)
    many = proof.asked - len(proof.missing)
    lines = [UNEXPLAINED, WHERE.format(proof.where, proof.wrong, proof.asked) * bool(proof.where)]
    lines += [UNLESS.format(proof.unless, proof.asked - proof.wrong, proof.asked) * bool(proof.unless)]
    lines += [OUTSIDE] if proof.outside else []
    lines += [ARRAYS.format(proof.arrays) * bool(proof.arrays), PIECES.format(pieces) * bool(pieces)]
    lines += [MULTIPLES.format(*proof.multiples)] if proof.multiples else []
    lines += [SPAN.format(proof.span)] if proof.span else []
    return "".join([*lines, NEAREST.format(near, many, proof.asked, ", ".join(proof.missing)) * bool(near)])


def pattern(tasks: Pattern) -> str:
    """The tasks that count, in a word or by their weights."""
    return tasks if isinstance(tasks, str) else f"weighted {', '.join(f'{w:.3g}' for w in tasks)}"
