"""Ask an implementation for every meta-gradient, compare, and conclude what is wrong."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from math import log10
from typing import Any, NamedTuple
from unittest import SkipTest

import numpy as np

from refmeta.conformance import report as words
from refmeta.conformance.cases import DTYPES, Case, Vector, load, one_line
from refmeta.conformance.explain import explain, of_vectors
from refmeta.conformance.report import Report, Row, Verdict
from refmeta.conformance.rules import flat
from refmeta.trees import Theta

MetaGradient = Callable[[Case], Any]


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
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}")
    return judge([(v, answer_of(meta_gradient, v.case.astype(dtype), timeout)) for v in vectors], title)


def select(algorithms: Sequence[str] | None, tiers: Sequence[str] | None) -> list[Vector]:
    """The vectors of these algorithms and tiers. ValueError: one that does not exist."""
    vectors = list(load())
    for what, wanted in (("algorithm", algorithms), ("tier", tiers)):
        known = list(dict.fromkeys(getattr(v.case, what) for v in load()))
        unknown = sorted(set(wanted or ()) - set(known))
        if unknown:
            raise ValueError(f"{what} {unknown[0]!r}: expected one of {', '.join(known)}")
        vectors = [v for v in vectors if wanted is None or getattr(v.case, what) in wanted]
    return vectors


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

    marks = {id: [pytest.mark.xfail(reason=reason, strict=True)] for id, reason in (xfail or {}).items()}
    unknown = sorted(set(marks) - {v.case.id for v in load()})
    if unknown:
        raise ValueError(f"xfail: there is no vector {unknown[0]!r}")
    return [pytest.param(v.case.astype(dtype), id=v.case.id, marks=marks.get(v.case.id, [])) for v in load()]


# --- Answers ---


class Answer(NamedTuple):
    """What came back for one vector: a gradient and perhaps intermediates, or the reason why there is none."""

    gradient: Theta | None = None
    inside: dict[str, Any] | None = None
    dtype: str = "float64"
    problem: str = ""
    skipped: bool = False


def answer_of(meta_gradient: MetaGradient, case: Case, timeout: float) -> Answer:
    """The answer to one case, of which it gets a copy; whatever goes wrong is said in the answer and ends nothing."""
    box: list[Answer] = []

    def ask() -> None:
        try:
            box.append(read_answer(meta_gradient(deepcopy(case))))
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
    inside = dict(value) if isinstance(value, dict) else {"gradient": value}
    if "gradient" not in inside or set(inside) - {"gradient", *words.INSIDE}:
        keys, known = str(sorted(inside))[:200], ", ".join(words.INSIDE)
        return Answer(problem=f"returned a dict with keys {keys}: expected gradient, and any of {known}")
    gradient = inside.pop("gradient")
    if not isinstance(gradient, (list, tuple)):
        return Answer(problem=f"returned {type(gradient).__name__}: expected a list of arrays shaped like theta")
    leaves = [read_array(leaf) for leaf in gradient]
    for i, leaf in enumerate(leaves):
        if leaf.dtype.kind not in "fiu":
            return Answer(problem=f"array {i} has dtype {leaf.dtype}: expected floating-point numbers")
    single = any(leaf.dtype.kind == "f" and leaf.dtype.itemsize < 8 for leaf in leaves)
    return Answer([leaf.astype(float) for leaf in leaves], inside, "float32" if single else "float64")


def read_array(leaf: Any) -> Any:
    """A NumPy array; a PyTorch tensor is detached first."""
    return np.asarray(leaf.detach().cpu() if hasattr(leaf, "detach") else leaf)


# --- One answer ---

STATUS = {"skipped": "skip", "none": "error", "not finite": "error", "right": "pass"}  # of other causes: fail


class Judged(NamedTuple):
    """An answer, what became of it (skipped, none, form, not finite, right, rounded, wrong), and its row."""

    vector: Vector
    answer: Answer
    cause: str
    row: Row


def judged(vector: Vector, answer: Answer) -> Judged:
    (cause, digits, message), case = outcome(vector, answer), vector.case
    row = Row(case.id, case.algorithm, case.tier, STATUS.get(cause, "fail"), digits, one_line(message))
    return Judged(vector, answer, cause, row)


def outcome(vector: Vector, answer: Answer) -> tuple[str, float, str]:
    """(cause, correct digits, message) of an answer."""
    gradient, names = answer.gradient, vector.case.names
    if gradient is None:
        return "skipped" if answer.skipped else "none", 0, answer.problem
    got, expected = [g.shape for g in gradient], [e.shape for e in vector.gradient]
    if got != expected:
        return "form", 0, words.form(names, got, expected)
    for name, leaf in zip(names, gradient, strict=True):
        if not np.isfinite(leaf).all():
            return "not finite", 0, f"{name} has NaN or infinity"
    errors = [float(np.linalg.norm(g - e)) / s for g, e, s in zip(gradient, vector.gradient, vector.scale, strict=True)]
    digits, worst = [correct_digits(error) for error in errors], max(errors)
    if worst <= vector.tolerance[answer.dtype]:
        return "right", min(digits), ""
    if worst <= max(vector.tolerance["float32"], 1e-6):
        return "rounded", min(digits), f"right to {min(digits):.1f} digits only"
    return "wrong", min(digits), words.comparison(names, digits, flat(gradient), flat(vector.gradient))


def correct_digits(error: float) -> float:
    """The number of correct digits, at most those of float64."""
    return 16.0 if error == 0 else max(0.0, min(16.0, -log10(error)))


# --- One algorithm ---


def judge(answers: Iterable[tuple[Vector, Answer]], title: str = "refmeta check") -> Report:
    """Rows and verdicts for answers that were computed anywhere."""
    with np.errstate(over="ignore", invalid="ignore"):  # an answer of 1e308 is wrong, and its square too large
        every = [judged(*pair) for pair in answers]
        names = dict.fromkeys(j.row.algorithm for j in every)
        verdicts = [verdict(name, [j for j in every if j.row.algorithm == name]) for name in names]
    return Report([j.row for j in every], verdicts, title)


def verdict(algorithm: str, every: list[Judged]) -> Verdict:
    """What is wrong with one algorithm, from all answers for it: the first that applies."""

    def of(*causes: str) -> list[Judged]:
        return [j for j in every if j.cause in causes]

    asked = [j for j in every if j.cause != "skipped"]
    wrong = [j for j in asked if j.cause != "right"]
    canaries = [j for j in wrong if j.row.tier == "canary" and j.cause != "rounded"]
    if not wrong:
        return Verdict(algorithm, *(passed(asked) if asked else ("none", f"not checked: {every[0].row.message}")))
    came = [(j.vector, j.answer.gradient or [], j.answer.dtype) for j in of("right", "rounded", "wrong")]
    found = explain(of_vectors(came)) if of("wrong") else []
    if canaries and not found:
        return Verdict(algorithm, "wiring", words.WIRING.format(row=canaries[0].row))
    if formal := of("form", "not finite"):
        return Verdict(algorithm, "form", f"the form is wrong: {formal[0].row.message}.")
    if len(of("none")) == len(wrong):
        return Verdict(algorithm, "error", f"no answer where it is missing: {wrong[0].row.message}.")
    if not of("wrong"):
        single = min(j.row.digits for j in of("rounded")) < 10
        return Verdict(algorithm, "precision", words.SINGLE if single else words.ROUNDABOUT)
    kind = "unexplained" if not found else "convention" if found[0].convention else "bug"
    place = next((text for j in wrong for text in wrong_inside(j)), "")
    return Verdict(algorithm, kind, place + (words.describe(found) if found else words.UNEXPLAINED), tuple(found))


def passed(asked: list[Judged]) -> tuple[str, str]:
    exact = sum(j.vector.tolerance["float64"] == 0 for j in asked)
    return "pass", f"pass; exact on {exact}, at least {min(j.row.digits for j in asked):.1f} digits on the rest"


# --- Intermediate values ---


def wrong_inside(j: Judged) -> Iterator[str]:
    """The intermediate values of one answer that are wrong, in words."""
    inside = j.answer.inside or {}
    for i, task in enumerate(j.vector.per_task):
        for key in [key for key in words.INSIDE if key in inside and key in task]:
            try:
                steps = inside[key][i]
                bad = [k for k, tree in enumerate(task[key]) if not close(steps[k], tree, j)]
            except Exception as error:  # they may be arrays of any library
                yield f"{key} of task {i + 1} in {j.row.id} cannot be read: {one_line(str(error)[:200])}. "
                return
            if bad:
                k = bad[-1] if key == "adjoint" else bad[0]
                yield f"{words.INSIDE[key].format(k=k)} (task {i + 1} of {j.row.id}): "


def close(got: Any, expected: Theta, j: Judged) -> bool:
    """Whether an intermediate value is right within a hundred times the rounding of the gradient."""
    leaves = [read_array(leaf).astype(float) for leaf in got]
    limit = max(100 * j.vector.tolerance[j.answer.dtype], 1e-5 if j.answer.dtype == "float32" else 1e-11)
    return bool(np.linalg.norm(flat(leaves) - flat(expected)) <= limit * (1 + np.linalg.norm(flat(expected))))
