"""Ask an implementation for every meta-gradient, compare, and say what is wrong."""

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import log10
from textwrap import wrap
from typing import Any, NamedTuple
from unittest import SkipTest

import numpy as np

from refmeta.conformance.attribution import Explanation, explanations, pairs, scales_of, simplest
from refmeta.conformance.cases import Case, Vector, load
from refmeta.conformance.rules import flat
from refmeta.conformance.suspects import SUSPECTS
from refmeta.trees import Theta

MetaGradient = Callable[[Case], Any]
INSIDE = ("phi", "inner_gradient", "adjoint")


class Row(NamedTuple):
    """One vector's outcome. status: pass, fail (a wrong answer), error (no answer), skip (declined)."""

    id: str
    algorithm: str
    tier: str
    status: str
    digits: float
    message: str


class Verdict(NamedTuple):
    """What is wrong with one algorithm. kind: pass, wiring, form, precision, bug, convention, unexplained, none."""

    algorithm: str
    kind: str
    text: str
    explanations: tuple[Explanation, ...] = ()


@dataclass(frozen=True)
class Report:
    """The outcome of a check: `passed`, `rows`, `verdicts`; str() for people, `json()` for machines."""

    rows: list[Row]
    verdicts: list[Verdict]
    title: str = "refmeta check"
    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        good = any(row.status == "pass" for row in self.rows)
        object.__setattr__(self, "passed", good and all(row.status in ("pass", "skip") for row in self.rows))

    def __str__(self) -> str:
        lines = [f"{self.title}: {'passed' if self.passed else 'FAILED'}", ""]
        for verdict in self.verdicts:
            rows = [row for row in self.rows if row.algorithm == verdict.algorithm]
            right = sum(row.status == "pass" for row in rows)
            skipped = sum(row.status == "skip" for row in rows)
            note = f", {skipped} skipped" if skipped else ""
            text = f"{verdict.algorithm:<8} {right} of {len(rows) - skipped} right{note}: {verdict.text}"
            for i, line in enumerate(text.splitlines()):
                lines += wrap(
                    line.strip(),
                    110,
                    initial_indent=INDENT * (i > 0),
                    subsequent_indent=INDENT + "  ",
                    break_on_hyphens=False,
                )
            bad = [row for row in rows if row.status in ("fail", "error")]
            lines += [f"{INDENT}{row.id}: {row.message}" for row in bad[:LISTED]]
            lines += [f"{INDENT}… and {len(bad) - LISTED} more"] * (len(bad) > LISTED)
        return "\n".join(lines)

    def json(self) -> str:
        """The report as JSON text."""
        return json.dumps(
            {
                "passed": self.passed,
                "verdicts": [
                    {**v._asdict(), "explanations": [e._asdict() for e in v.explanations]} for v in self.verdicts
                ],
                "rows": [r._asdict() for r in self.rows],
            },
            indent=1,
            ensure_ascii=False,
        )

    def raise_on_failure(self) -> None:
        """AssertionError with the whole report unless it passed."""
        if not self.passed:
            raise AssertionError(str(self))


INDENT = " " * 9
LISTED = 4  # wrong vectors listed for each algorithm


class Skip(Exception):
    """Raised by a harness that declines a case; the message says why."""


def check(
    meta_gradient: MetaGradient,
    dtype: str = "float64",
    algorithms: Sequence[str] | None = None,
    tiers: Sequence[str] | None = None,
    timeout: float = 60,
    title: str = "refmeta check",
) -> Report:
    """Ask `meta_gradient(case)` for every vector's meta-gradient and report.

    It gets a `Case` of plain NumPy arrays of `dtype`, and returns a list of arrays shaped like case.theta (anything
    NumPy can read, PyTorch and JAX arrays as they are), or a dict with that as "gradient" and, for a finer report, any
    of "phi", "inner_gradient", "adjoint": a list over tasks of lists over steps. It may raise Skip(reason). A crash, or
    no answer within `timeout` seconds, is a row of the report. Only the `algorithms` and `tiers` named, or all.
    ValueError: an unknown dtype, algorithm or tier, or vectors that cannot be trusted.
    """
    vectors = select(algorithms, tiers)
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}")
    return judge([(v, answer_of(meta_gradient, v.case.astype(dtype), timeout)) for v in vectors], title)


def select(algorithms: Sequence[str] | None, tiers: Sequence[str] | None) -> list[Vector]:
    """The vectors of these algorithms and tiers. ValueError: one that does not exist."""
    vectors = load()
    for what, wanted, known in (
        ("algorithm", algorithms, list(dict.fromkeys(v.case.algorithm for v in vectors))),
        ("tier", tiers, list(dict.fromkeys(v.case.tier for v in vectors))),
    ):
        unknown = set(wanted or ()) - set(known)
        if unknown:
            raise ValueError(f"{what} {sorted(unknown)[0]!r}: expected one of {', '.join(known)}")
    return [
        v
        for v in vectors
        if (algorithms is None or v.case.algorithm in algorithms) and (tiers is None or v.case.tier in tiers)
    ]


def assert_case(meta_gradient: MetaGradient, case: Case) -> None:
    """AssertionError, with the diagnosis, unless the answer to one case is right. For tests of one case each."""
    vector = next(v for v in load() if v.case.id == case.id)
    answer = answer_of(meta_gradient, case, 60)
    if answer.skipped:
        raise SkipTest(answer.problem)  # which pytest reports as skipped
    judge([(vector, answer)], f"refmeta check {case.id}").raise_on_failure()


def parameters(xfail: dict[str, str] | None = None, dtype: str = "float64") -> list[Any]:
    """The cases for `pytest.mark.parametrize("case", parameters())`; xfail: {id: reason} are expected to fail.

    ValueError: an id in xfail that does not exist.
    """
    import pytest

    expected = xfail or {}
    unknown = set(expected) - {v.case.id for v in load()}
    if unknown:
        raise ValueError(f"xfail: there is no vector {sorted(unknown)[0]!r}")
    return [
        pytest.param(
            v.case.astype(dtype),
            id=v.case.id,
            marks=[pytest.mark.xfail(reason=expected[v.case.id], strict=True)] if v.case.id in expected else [],
        )
        for v in load()
    ]


# --- Answers ---


class Answer(NamedTuple):
    """What came back for one vector: a gradient and perhaps intermediates, or the reason why there is none."""

    gradient: Theta | None = None
    inside: dict[str, Any] | None = None
    dtype: str = "float64"
    problem: str = ""
    skipped: bool = False


def answer_of(meta_gradient: MetaGradient, case: Case, timeout: float) -> Answer:
    """The answer to one case; whatever goes wrong is said in it and ends nothing."""
    box: list[Answer] = []

    def ask() -> None:
        try:
            box.append(read_answer(meta_gradient(case)))
        except Skip as reason:
            box.append(Answer(problem=str(reason), skipped=True))
        except BaseException as error:
            box.append(Answer(problem=f"raised {type(error).__name__}: {str(error)[:200]}"))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return box.pop() if box else Answer(problem=f"gave no answer within {timeout:g} seconds")


def read_answer(value: Any) -> Answer:
    """An answer from what a harness returned."""
    inside: dict[str, Any] = {}
    if isinstance(value, dict):
        unknown = set(value) - {"gradient", *INSIDE}
        if unknown or "gradient" not in value:
            known = ", ".join(INSIDE)
            return Answer(problem=f"returned a dict with keys {sorted(value)}: expected gradient, and any of {known}")
        inside = {key: value[key] for key in INSIDE if key in value}
        value = value["gradient"]
    if not isinstance(value, (list, tuple)):
        return Answer(problem=f"returned {type(value).__name__}: expected a list of arrays shaped like theta")
    leaves = [read_array(leaf) for leaf in value]
    wrong = [i for i, leaf in enumerate(leaves) if leaf.dtype.kind not in "fiu"]
    if wrong:
        return Answer(problem=f"array {wrong[0]} has dtype {leaves[wrong[0]].dtype}: expected floating-point numbers")
    single = any(leaf.dtype.kind == "f" and leaf.dtype.itemsize < 8 for leaf in leaves)
    gradient = [leaf.astype(float) for leaf in leaves]
    return Answer(gradient, inside, "float32" if single else "float64")


def read_array(leaf: Any) -> Any:
    """A NumPy array; a PyTorch tensor is detached first."""
    return np.asarray(leaf.detach().cpu() if hasattr(leaf, "detach") else leaf)


# --- Judging ---


def judge(answers: Iterable[tuple[Vector, Answer]], title: str = "refmeta check") -> Report:
    """Rows and verdicts for answers that were computed anywhere."""
    with np.errstate(over="ignore", invalid="ignore"):  # an answer of 1e308 is wrong, and its square too large
        judged = [(vector, answer, row_of(vector, answer)) for vector, answer in answers]
        names = dict.fromkeys(vector.case.algorithm for vector, _, _ in judged)
        verdicts = [_verdict(name, [j for j in judged if j[0].case.algorithm == name]) for name in names]
    return Report([row for _, _, row in judged], verdicts, title)


def row_of(vector: Vector, answer: Answer) -> Row:
    case = vector.case

    def row(status: str, digits: float, message: str) -> Row:
        return Row(case.id, case.algorithm, case.tier, status, digits, message)

    if answer.skipped:
        return row("skip", 0, answer.problem)
    if answer.gradient is None:
        return row("error", 0, answer.problem)
    if form := _form(vector, answer.gradient):
        return row("error" if "NaN" in form else "fail", 0, form)
    errors = _errors(vector, answer.gradient)
    digits = min(_digits(error) for error in errors)
    if max(errors) <= vector.tolerance[answer.dtype]:
        return row("pass", digits, "")
    if max(errors) <= max(vector.tolerance["float32"], 1e-6):
        return row("fail", digits, f"right to {digits:.1f} digits only")
    parts = [f"{name} {_digits(error):.1f}" for name, error in zip(case.names, errors, strict=True)]
    g, expected = flat(answer.gradient), flat(vector.gradient)
    size, norm = np.linalg.norm(g), np.linalg.norm(expected)
    cosine = f"cosine {g @ expected / (size * norm):.3f}, " if size and norm else ""
    ratio = f"{size / norm:.3g} times as long, " if norm else ""
    return row("fail", digits, f"{cosine}{ratio}correct digits: {', '.join(parts)}")


def _digits(error: float) -> float:
    """The number of correct digits, at most those of float64."""
    return 16.0 if error == 0 else max(0.0, min(16.0, -log10(error)))


def _errors(vector: Vector, gradient: Theta) -> list[float]:
    """Of every array ‖got − expected‖ / scale."""
    triples = zip(gradient, vector.gradient, vector.scale, strict=True)
    return [float(np.linalg.norm(got - expected)) / scale for got, expected, scale in triples]


def _form(vector: Vector, gradient: Theta) -> str:
    """What is wrong with the form of a gradient; empty if nothing is."""
    names, expected = vector.case.names, vector.gradient
    shapes, wanted = [g.shape for g in gradient], [e.shape for e in expected]
    if shapes != wanted:
        if shapes == [e.T.shape for e in expected]:
            return "every array is transposed: W has shape (in, out), layer = x @ W + b"
        if sorted(shapes) == sorted(wanted):
            return f"the arrays are in another order: expected {', '.join(names)}"
        if [g.size for g in gradient] == [sum(e.size for e in expected)]:
            return f"one flat array: expected {len(expected)} arrays, {', '.join(names)}"
        if len(gradient) != len(expected):
            missing = names[len(gradient) :]
            note = f"; missing {', '.join(missing)}" if missing else ""
            return f"{len(gradient)} arrays, expected {len(expected)}: {', '.join(names)}{note}"
        i = next(i for i, (a, b) in enumerate(zip(shapes, wanted, strict=True)) if a != b)
        return f"{names[i]} has shape {shapes[i]}, expected {wanted[i]}"
    for name, leaf in zip(names, gradient, strict=True):
        if not np.isfinite(leaf).all():
            return f"{name} has NaN or infinity"
    return ""


def _verdict(algorithm: str, judged: list[tuple[Vector, Answer, Row]]) -> Verdict:
    """The first that applies: right, wiring, form, precision, a known mistake, a compound of two, else no guess."""
    asked = [j for j in judged if j[2].status != "skip"]
    wrong = [j for j in asked if j[2].status != "pass"]
    if not asked:
        return Verdict(algorithm, "none", f"not checked: {judged[0][2].message}")
    if not wrong:
        digits = min(row.digits for _, _, row in asked)
        exact = sum(vector.tolerance["float64"] == 0 for vector, _, _ in asked)
        text = f"pass; exact on {exact}, at least {digits:.1f} digits on the rest"
        return Verdict(algorithm, "pass", text)
    silent = [j for j in wrong if j[2].status == "error"]
    formal = [j for j in wrong if j[1].gradient is not None and _form(j[0], j[1].gradient)]
    answered = [j for j in asked if j not in silent and j not in formal]
    answers = [(v, a.gradient or [], a.dtype) for v, a, _ in answered]
    found = _explain(answers) if any(row.status == "fail" for _, _, row in answered) else []
    canary = next((row for vector, _, row in wrong if vector.case.tier == "canary"), None)
    if canary and not found:
        return Verdict(
            algorithm,
            "wiring",
            f"the harness is not wired up: its simplest case, {canary.id}, fails ({canary.message}). It passes "
            "whatever the inner loop does, so look at how the case is read and the gradient returned; nothing else "
            "is judged.",
        )
    if formal:
        return Verdict(algorithm, "form", f"the form is wrong: {formal[0][2].message}.")
    if len(silent) == len(wrong):
        return Verdict(algorithm, "error", f"no answer where it is missing: {silent[0][2].message}.")
    failed = [row for _, _, row in wrong if row.status == "fail"]
    if all("digits only" in row.message for row in failed):
        return Verdict(algorithm, "precision", _precision(min(row.digits for row in failed)))
    inside = _first_wrong_inside(wrong)
    if found:
        return Verdict(algorithm, _kind(found[0]), inside + describe(found), tuple(found))
    return Verdict(
        algorithm,
        "unexplained",
        f"{inside}wrong, and no known mistake or pair of mistakes explains all of it; no guess is made.",
    )


def _precision(digits: float) -> str:
    if digits < 10:
        return "right in float32, but float64 was asked for: something on the way is float32."
    return (
        "right but for the last bits, on vectors where no step need be rounded: something is computed in a roundabout "
        "way, such as a mean that is multiplied up to a sum."
    )


def _kind(found: Explanation) -> str:
    return "bug" if found.suspects or found.tasks != "all" or found.scale.startswith("-") else "convention"


def _explain(answers: list[tuple[Vector, Theta, str]]) -> list[Explanation]:
    """The simplest explanations of all these answers."""
    limited = [(v, g, 10 * _limit(v, g, dtype)) for v, g, dtype in answers]
    if not np.isfinite([limit for *_, limit in limited]).all():
        return []  # within an infinite limit anything is explained
    if not any(flat(g).any() for _, g, _ in answers):
        return [Explanation(RIGHT_BUT_ZERO)]
    common = set.intersection(*(explanations(v, g, limit) for v, g, limit in limited)) - {Explanation()}
    if all(len(flat(g)) < 3 for _, g, _ in answers):  # one or two numbers fit any factor
        common = {e for e in common if e.scale in scales_of(answers[0][0].case)}
    if not common:
        cheap_first = sorted(limited, key=lambda item: (item[0].case.model["kind"] != "quadratic", len(flat(item[1]))))
        common = set(pairs(cheap_first))
    return simplest(common)


RIGHT_BUT_ZERO = ("zero",)


def _limit(vector: Vector, got: Theta, dtype: str) -> float:
    """Rounding of an answer, in absolute terms; suspects are kept to float32 precision."""
    size = float(max(np.linalg.norm(flat(got)), np.linalg.norm(flat(vector.gradient)), np.linalg.norm(vector.scale)))
    return max(vector.tolerance[dtype], 2.0**-23) * size


def describe(found: Sequence[Explanation]) -> str:
    """The explanation in words: what, where it is lost, what to change, where it happened before."""
    e = found[0]
    if e.suspects == RIGHT_BUT_ZERO:
        return (
            "every gradient is zero: it went to a copy (B13, B14). PyTorch: deepcopy, load_state_dict and .data cut θ "
            "off; higher: copy_initial_weights=False. JAX, TensorFlow: the gradient is taken in other variables than θ."
        )
    parts = [SUSPECTS[name].title for name in e.suspects]
    if e.tasks != "all":
        parts.append(_lost(e.tasks))
    if e.scale != "1":
        convention = "" if e.suspects or e.tasks != "all" or e.scale.startswith("-") else CONVENTION
        parts.append(f"{'all else is right, but ' * bool(convention)}the result is multiplied by {e.scale}{convention}")
    lines = ["; ".join(parts) + "."]
    if not e.suspects and e.tasks != "all":
        lines.append("Cause: a loss or gradient is overwritten, or cleared, inside the loop over tasks.")
    for name in e.suspects:
        s = SUSPECTS[name]
        lines += [f"Cause: {s.cause}.", f"Seen in: {s.seen}." + f" Ledger: {s.ledger}." * bool(s.ledger)]
    others = [" and ".join(SUSPECTS[n].title for n in other.suspects) or other.tasks for other in found[1:3]]
    if others:
        lines.append(f"The vectors that were answered cannot tell it from: {'; or '.join(dict.fromkeys(others))}.")
    return "\n".join(lines)


def _lost(tasks: str) -> str:
    if tasks.startswith("weighted"):
        return f"the tasks are {tasks}"
    return f"only the {tasks} task counts (B4, B5)" if " " not in tasks else f"{tasks} task count (B4, B5)"


CONVENTION = ": a convention, not a mistake; the vectors state theirs in case.conventions"


def _first_wrong_inside(wrong: list[tuple[Vector, Answer, Row]]) -> str:
    """Where the first intermediate value goes wrong, if intermediates were returned."""
    for vector, answer, _ in wrong:
        for i, task in enumerate(vector.per_task):
            for key in INSIDE:
                if not answer.inside or key not in answer.inside or key not in task:
                    continue
                try:
                    steps = answer.inside[key][i]
                    bad = [k for k, tree in enumerate(task[key]) if not _close(steps[k], tree, vector, answer.dtype)]
                except Exception as error:  # they may be arrays of any library
                    return f"{key} of task {i + 1} in {vector.case.id} cannot be read: {error}. "
                if bad:
                    k = bad[-1] if key == "adjoint" else bad[0]
                    return f"{_PLACES[key].format(k=k)} (task {i + 1} of {vector.case.id}): "
    return ""


_PLACES = {
    "phi": "φ_{k} is the first wrong value: look at inner step {k}",
    "inner_gradient": "φ_{k} is right and the inner gradient at it is the first wrong value",
    "adjoint": "all φ are right; of ∂L_Q/∂φ_k the last, φ_{k}, is the first wrong value of the way back",
}


def _close(got: Any, expected: Theta, vector: Vector, dtype: str) -> bool:
    leaves = [read_array(leaf).astype(float) for leaf in got]
    limit = max(100 * vector.tolerance[dtype], 1e-5 if dtype == "float32" else 1e-11)
    return bool(np.linalg.norm(flat(leaves) - flat(expected)) <= limit * (1 + np.linalg.norm(flat(expected))))
