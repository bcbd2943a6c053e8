"""Ask an implementation for every meta-gradient, compare them, and conclude which mistake it has."""

import ctypes
import os
import signal
import sys
import threading
from bdb import BdbQuit
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from math import log10
from traceback import extract_tb, walk_stack
from typing import Any, NamedTuple
from unittest import SkipTest

import numpy as np

from refmeta.conformance import explain as search
from refmeta.conformance import report as words
from refmeta.conformance.cases import DTYPES, Case, Vector, load, one_line
from refmeta.conformance.evidence import Evidence, factor, facts
from refmeta.conformance.report import Report, Row, Verdict
from refmeta.conformance.rules import flat, gradients
from refmeta.trees import Theta

MetaGradient = Callable[[Case], Any]
Names = Sequence[str] | None
Ask = Callable[[Vector], "Answer"]


class Skip(Exception):
    """Raised by a harness that declines a case; the message says why."""


def check(
    meta_gradient: MetaGradient,
    dtype: str = "float64",
    algorithms: Names = None,
    tiers: Names = None,
    timeout: float = 60,
    title: str = "refmeta check",
) -> Report:
    """Ask `meta_gradient(case)` for every vector's meta-gradient and report.

    The function gets a `Case` of plain NumPy arrays of `dtype`. It returns a list of arrays shaped like case.theta
    (anything NumPy can read, PyTorch and JAX arrays as they are), or a dict of them by name; or a dict with either as
    "gradient" and, for a finer report, any of "phi", "inner_gradient", "adjoint": a list over tasks of lists over
    steps. It may raise Skip(reason), or skip as in pytest. A crash, or no answer within `timeout` seconds, becomes a
    row of the report. It runs in the caller's thread; under a debugger it has no deadline. algorithms, tiers: ask these
    only. ValueError: an unknown dtype, algorithm or tier, or vector files that were changed.
    """
    vectors = select(algorithms, tiers)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}")

    def ask(vector: Vector) -> Answer:
        return answer_of(meta_gradient, vector.case.astype(dtype), timeout)

    return judge([(v, ask(v)) for v in vectors], title, ask)


def select(algorithms: Names, tiers: Names) -> list[Vector]:
    """The vectors of these algorithms and tiers. ValueError: one that does not exist."""
    vectors = list(load())
    for what, wanted in (("algorithm", algorithms), ("tier", tiers)):
        known = list(dict.fromkeys(getattr(v.case, what) for v in load()))
        unknown = sorted(set(wanted or ()) - set(known))
        if unknown:
            raise ValueError(f"{what} {unknown[0]!r}: expected one of {', '.join(known)}")
        vectors = [v for v in vectors if wanted is None or getattr(v.case, what) in wanted]
    return vectors


def assert_case(meta_gradient: MetaGradient, case: Case, timeout: float = 60) -> None:
    """AssertionError, which says what is wrong, unless the answer to this case is right."""
    __tracebackhide__ = True  # pytest shows the caller's lines alone
    vector = next(v for v in load() if v.case.id == case.id)
    answer = answer_of(meta_gradient, case, timeout)
    if answer.skipped:
        raise SkipTest(answer.problem) from answer.error  # which pytest reports as skipped
    judge([(vector, answer)], f"refmeta check {case.id}").raise_on_failure(answer.error)


def parameters(
    xfail: dict[str, str] | None = None, dtype: str = "float64", algorithms: Names = None, tiers: Names = None
) -> list[Any]:
    """The cases for `pytest.mark.parametrize("case", parameters())`. xfail, {id: reason}, are expected to fail.

    algorithms, tiers: these only. ValueError: one of these, or an id in xfail, does not exist.
    """
    import pytest

    marks = {id: [pytest.mark.xfail(reason=reason, strict=True)] for id, reason in (xfail or {}).items()}
    unknown = sorted(set(marks) - {v.case.id for v in load()})
    if unknown:
        raise ValueError(f"xfail: there is no vector {unknown[0]!r}")
    cases = [v.case.astype(dtype) for v in select(algorithms, tiers)]
    return [pytest.param(case, id=case.id, marks=marks.get(case.id, [])) for case in cases]


# --- Answers ---


class Answer(NamedTuple):
    """The answer for one vector: a gradient, perhaps with intermediates, or the reason why there is none."""

    gradient: Theta | None = None
    inside: dict[str, Any] | None = None
    dtype: str = "float64"
    problem: str = ""
    skipped: bool = False
    error: BaseException | None = None


class TimeUp(BaseException):
    """Raised wherever a harness is, once it has taken too long."""


def answer_of(meta_gradient: MetaGradient, case: Case, timeout: float) -> Answer:
    """The answer to one case, or why there is none: no error ends the check. The function gets a copy of the case.

    An interrupt comes through, and so does the end of a debugger: whoever does these wants the check to end.
    """
    __tracebackhide__ = True
    over, caller = threading.Event(), threading.current_thread()
    signals = caller is threading.main_thread() and hasattr(signal, "SIGURG")  # Windows lacks it
    before = signal.signal(signal.SIGURG, lambda *_: None) if signals else None
    watchdog = threading.Thread(target=watch, args=(caller, signals, over, timeout, case.id), daemon=True)
    try:
        try:
            watchdog.start()
            return read_answer(meta_gradient(deepcopy(case)), case)
        finally:
            over.set()
            watchdog.join()  # TimeUp comes here at the latest
    except BaseException as error:
        pytest = sys.modules.get("pytest")  # if it is in use
        if isinstance(error, (KeyboardInterrupt, BdbQuit, pytest.exit.Exception if pytest else BdbQuit)):
            raise
        if isinstance(error, (Skip, SkipTest, pytest.skip.Exception if pytest else Skip)):
            return Answer(problem=str(error), skipped=True, error=error)
        raised = f"raised {type(error).__name__}: {str(error)[:200]}"
        late = f"gave no answer within {timeout:g} seconds" if isinstance(error, TimeUp) else ""
        return Answer(problem=(late or raised) + place(error), error=error)
    finally:
        over.set()
        if signals:
            signal.signal(signal.SIGURG, before or signal.SIG_DFL)


def watch(caller: threading.Thread, signals: bool, over: threading.Event, seconds: float, what: str) -> None:
    """Raise TimeUp in the caller's thread if it is late and not in a debugger. If that does not end it, say so.

    Python raises it before the next line; a signal ends a sleep or a wait of the main thread. The signal is SIGURG, as
    in Go: nobody else uses it, and it does nothing if it comes too late.
    """
    if over.wait(min(seconds, threading.TIMEOUT_MAX)) or debugged(caller):
        return
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(caller.ident or 0), ctypes.py_object(TimeUp))
    if signals:
        signal.pthread_kill(caller.ident or 0, signal.SIGURG)
    if not over.wait(1):
        print(f"refmeta: {what} gave no answer within {seconds:g} seconds, and cannot be interrupted", file=sys.stderr)


def debugged(thread: threading.Thread) -> bool:
    """Whether a debugger runs a thread, or traces a function in it."""
    frames = [frame for frame, _ in walk_stack(sys._current_frames().get(thread.ident or 0))]
    names = [f"{frame.f_globals.get('__name__')} {getattr(frame.f_trace, '__module__', '')}" for frame in frames]
    return any("bdb" in name.split() or "pydevd" in name for name in names)


def place(error: BaseException) -> str:
    """The innermost line of the caller's own code that an exception came through, as " (my_maml.py:31)"."""
    others = os.path.dirname(os.__file__), os.path.dirname(words.__file__), "<"
    lines = [line for line in extract_tb(error.__traceback__) if not line.filename.startswith(others)]
    own = [f" ({os.path.basename(line.filename)}:{line.lineno})" for line in lines if "-packages" not in line.filename]
    return own[-1] if own else ""


def read_answer(value: Any, case: Case) -> Answer:
    """An answer from what a harness returned."""
    known = {"gradient", *words.INSIDE}
    inside = dict(value) if hasattr(value, "keys") and known & set(value) else {"gradient": value}
    formal = "gradient" in inside and set(inside) <= known
    gradient = inside.pop("gradient") if formal else inside
    leaves = listed(gradient, case) if formal else None
    if leaves is None:
        return Answer(problem=words.no_gradient(gradient, case.names))
    for i, leaf in enumerate(leaves):
        if leaf.dtype.kind not in "fiu":
            return Answer(problem=f"array {i} has dtype {leaf.dtype}: expected floating-point numbers")
    single = any(leaf.dtype.kind == "f" and leaf.dtype.itemsize < 8 for leaf in leaves)
    return Answer([leaf.astype(float) for leaf in leaves], inside, "float32" if single else "float64")


def listed(value: Any, case: Case) -> list[Any] | None:
    """The arrays of a gradient: an iterable, a dict, or θ's only array, where (1,) passes for (). None: it is none.

    From a dict, perhaps nested, arrays are taken by the case's names, and else by shape, the first one first.
    """
    shapes, names = [leaf.shape for leaf in case.theta], case.names
    if hasattr(value, "keys"):
        pairs = sorted(named(value), key=lambda pair: names.index(pair[0]) if pair[0] in names else 0)
        known = all(name in names or hasattr(leaf, "shape") for name, leaf in pairs)
        if not known or len(pairs) != len(shapes):
            return None
        leaves = [read_array(leaf) for _, leaf in pairs]
        if sorted(leaf.shape for leaf in leaves) == sorted(shapes):
            leaves = [leaves.pop([leaf.shape for leaf in leaves].index(shape)) for shape in shapes]
    else:
        one = hasattr(value, "shape") or isinstance(value, (int, float))
        if isinstance(value, str) or not (len(shapes) == 1 if one else isinstance(value, Iterable)):
            return None
        leaves = list(map(read_array, [value] if one else value))
    return [leaf.reshape(()) if shapes == [()] and leaf.shape == (1,) else leaf for leaf in leaves]


def named(tree: Any) -> Iterator[tuple[Any, Any]]:
    """The arrays of a nested dict, each with its name."""
    for name, value in tree.items():
        yield from named(value) if hasattr(value, "keys") else [(name, value)]


def read_array(leaf: Any) -> Any:
    """A NumPy array; a PyTorch tensor is detached first."""
    return np.asarray(leaf.detach().cpu() if hasattr(leaf, "detach") else leaf)


# --- One answer ---

# All other causes: fail.
STATUS = {"skipped": "skip", "none": "error", "not finite": "error", "right": "pass", "nearly": "pass"}
# Relative errors that a detour in the arithmetic can make; every known mistake is larger.
NEARLY = {"float64": 1e-13, "float32": 1e-6}


LOW = 1.4  # digits: an answer with so many everywhere may be imprecise, not wrong
NEAR = 3  # searches are made then: two mistakes would hardly leave so much right


class Judged(NamedTuple):
    """An answer, its cause (a key of STATUS, or form, rounded, wrong), and its row."""

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
    sizes = [max(s, float(np.linalg.norm(e))) for e, s in zip(vector.gradient, vector.scale, strict=True)]
    errors = [float(np.linalg.norm(g - e)) / s for g, e, s in zip(gradient, vector.gradient, sizes, strict=True)]
    digits, worst = [correct_digits(error) for error in errors], max(errors)
    if worst <= vector.tolerance[answer.dtype]:
        return "right", min(digits), ""
    # A displacement that is divided by α has θ's rounding, divided by α.
    unit = float(np.finfo(answer.dtype).eps) / 2 / (vector.case.alpha or np.inf)
    lost = (unit * float(np.linalg.norm(t)) / s for t, s in zip(vector.case.theta, sizes, strict=True))
    if all(error <= max(NEARLY[answer.dtype], least) for error, least in zip(errors, lost, strict=True)):
        return "nearly", min(digits), f"right to {min(digits):.1f} digits, not to the last bit"
    if worst <= max(vector.tolerance["float32"], 1e-6):
        return "rounded", min(digits), f"right to {min(digits):.1f} digits only"
    return "wrong", min(digits), words.comparison(names, digits, flat(gradient), flat(vector.gradient))


def correct_digits(error: float) -> float:
    """The number of correct digits, at most those of float64."""
    return 16.0 if error == 0 else max(0.0, min(16.0, -log10(error)))


# --- One algorithm ---


def judge(answers: Iterable[tuple[Vector, Answer]], title: str = "refmeta check", ask: Ask | None = None) -> Report:
    """Rows and verdicts for answers, wherever computed. If nothing explains them, `ask` is asked for one again."""
    with np.errstate(all="ignore"):  # the square of 1e308, a wrong answer, is infinite
        every = [judged(*pair) for pair in answers]
        names = dict.fromkeys(j.row.algorithm for j in every)
        found = [concluded(name, [j for j in every if j.row.algorithm == name], ask) for name in names]
    rows = {j.row.id: j.row for own, _ in found for j in own}
    return Report([rows[j.row.id] for j in every], [verdict for _, verdict in found], title)


def concluded(algorithm: str, every: list[Judged], ask: Ask | None) -> tuple[list[Judged], Verdict]:
    """The rows and verdict of one algorithm, under the conventions of the cases or those that the program keeps."""
    found = verdict(algorithm, every, ask)
    own = found.explanations[0].own if found.explanations else {}
    if not own:
        return every, found
    again = [judged(under(j.vector, own), j.answer) for j in every]
    if all(STATUS.get(j.cause) in ("pass", "skip") for j in again):
        found = Verdict(algorithm, *passed([j for j in again if j.cause != "skipped"]), found.explanations)
    return again, found._replace(text=found.text + words.own(own, algorithm))


def under(vector: Vector, own: dict[str, str]) -> Vector:
    """The vector with the answer that these conventions give."""
    case = replace(vector.case, conventions={**vector.case.conventions, **own})
    if case.conventions == vector.case.conventions or (case.algorithm == "reptile" and not case.alpha):
        return vector
    gradient = case.combine(gradients(case.derivatives, case.settings))
    sizes = zip(gradient, vector.gradient, vector.scale, strict=True)
    scale = [s * float(np.linalg.norm(g) / np.linalg.norm(b) if g.any() and b.any() else 1) for g, b, s in sizes]
    return replace(vector, case=case, gradient=gradient, scale=scale)


def verdict(algorithm: str, every: list[Judged], ask: Ask | None = None) -> Verdict:
    """The verdict on one algorithm from all answers for it: the first that applies."""

    def of(*causes: str) -> list[Judged]:
        return [j for j in every if j.cause in causes]

    asked = [j for j in every if j.cause != "skipped"]
    wrong = [j for j in asked if STATUS.get(j.cause) != "pass"]
    simple = all(j.row.tier == "canary" for j in wrong)
    canaries = [j for j in wrong if j.row.tier == "canary" and unwired(j, simple)]
    if not wrong:
        return Verdict(algorithm, *(passed(asked) if asked else ("none", f"not checked: {every[0].row.message}")))
    came = of("right", "nearly", "rounded", "wrong")
    answers = [search.of_vector(j.vector, j.answer.gradient or [], j.answer.dtype) for j in came if of("wrong")]
    found = named_mistakes(came, answers) if of("wrong") else []
    if canaries and not found:
        return Verdict(algorithm, "wiring", words.WIRING.format(row=canaries[0].row))
    if formal := of("form", "not finite"):
        return Verdict(algorithm, "form", f"the form is wrong: {formal[0].row.message}.")
    if len(of("none")) == len(wrong):
        return Verdict(algorithm, "error", f"no answer where it is missing: {wrong[0].row.message}.")
    if not of("wrong"):
        single = min(j.row.digits for j in of("rounded")) < 10
        alpha = single and rounded_alpha(came)
        return Verdict(algorithm, "precision", words.ALPHA if alpha else words.SINGLE if single else words.ROUNDABOUT)
    first = next((text for j in wrong for text in wrong_inside(j)), "")
    if found or len(came) == 1:
        kind = "unexplained" if not found else "convention" if found[0].convention else "bug"
        return Verdict(algorithm, kind, first + (words.describe(found) if found else alone(*of("wrong"))), tuple(found))
    return unnamed(algorithm, came, answers, first, ask)


def named_mistakes(came: list[Judged], answers: list[search.Answered]) -> list[search.Explanation]:
    """The explanations of all these answers; a single answer has none, unless it is zero."""
    if len(came) == 1:
        return [] if answers[0].got.any() else [search.ZERO]
    searches = search.SEARCHES[:NEAR] if min(j.row.digits for j in came) >= LOW else search.SEARCHES
    return search.explain(search.cheapest_first(answers), searches)


def unnamed(algorithm: str, came: list[Judged], answers: list[search.Answered], first: str, ask: Ask | None) -> Verdict:
    """The verdict on answers that no mistake explains: whether one comes again, and what they prove."""
    wrong = [j for j in came if j.cause == "wrong"]
    if ask and (changed := next((j for j in wrong if not repeated(j, ask(j.vector))), None)):
        return Verdict(algorithm, "unrepeatable", words.TWICE.format(changed.row.id))
    proof = proven(came, answers)
    kind = "precision" if proof.digits else "unexplained"
    more = "" if proof.digits or any(j.answer.inside for j in came) else words.ASK
    return Verdict(algorithm, kind, first + words.evidence(proof) + more, evidence=proof)


def repeated(j: Judged, again: Answer) -> bool:
    """Whether a second answer is the first, up to a few roundings."""
    one, two = (flat(answer.gradient or []) for answer in (j.answer, again))
    return one.shape == two.shape and bool(np.linalg.norm(one - two) <= 1e-5 * np.linalg.norm(one))


def proven(came: list[Judged], answers: list[search.Answered]) -> Evidence:
    """The evidence in answers that no mistake explains."""
    wrong = [j for j in came if j.cause in ("wrong", "rounded")]
    worst = min(j.row.digits for j in wrong)
    if worst >= LOW:
        return Evidence(wrong=len(wrong), asked=len(came), digits=worst, factor=factor(answers))
    parts = [(a, wrong_parts(j)) for a, j in zip(answers, came, strict=True) if j in wrong]
    return facts(answers, [j.vector.case for j in came], [j in wrong for j in came], parts)


def wrong_parts(j: Judged) -> list[bool]:
    """For each array, whether it is wrong."""
    sizes = [max(s, float(np.linalg.norm(e))) for e, s in zip(j.vector.gradient, j.vector.scale, strict=True)]
    triples = zip(j.answer.gradient or [], j.vector.gradient, sizes, strict=True)
    limit = max(j.vector.tolerance[j.answer.dtype], NEARLY[j.answer.dtype])
    return [float(np.linalg.norm(g - e)) > limit * s for g, e, s in triples]


def rounded_alpha(came: list[Judged]) -> bool:
    """Whether all answers are right for the α that has the case's first six digits."""
    cases = [replace(j.vector.case, alpha=float(f"{j.vector.case.alpha:.6g}")) for j in came]
    right = [case.combine(gradients(case.derivatives, case.settings)) for case in cases]
    again = (judged(replace(j.vector, gradient=g), j.answer) for j, g in zip(came, right, strict=True))
    return all(STATUS.get(j.cause) == "pass" for j in again)


def unwired(j: Judged, simple: bool) -> bool:
    """Whether no algorithm gives such an answer, not even a wrong one: an error, a wrong form, NaN, zeros.

    simple: nothing but canaries is wrong. Else zeros may be the difference of two gradients.
    """
    return j.cause in ("none", "form", "not finite") or (simple and not flat(j.answer.gradient or []).any())


def alone(j: Judged) -> str:
    """The facts about one wrong answer; one vector cannot tell mistakes apart."""
    case, found = j.vector.case, search.of_vector(j.vector, j.answer.gradient or [], j.answer.dtype).fits()
    meant = search.factors(len(case.tasks), case.alpha, len(case.tasks[0][0]), case.algorithm)
    said = sorted(str(factor) for tasks, factor in found if tasks == "all" and (factor in meant))
    return words.ALONE.format(f"it is {' or '.join(said)} times the answer" if said else j.row.message)


def passed(asked: list[Judged]) -> tuple[str, str]:
    exact, digits = sum(j.vector.tolerance["float64"] == 0 for j in asked), min(j.row.digits for j in asked)
    if any(j.cause == "nearly" for j in asked):
        return "pass", words.NEARLY.format(digits)
    single = ", in float32" * any(j.answer.dtype == "float32" for j in asked)
    return "pass", f"pass{single}; exact on {exact}, at least {digits:.1f} digits on the rest"


# --- Intermediate values ---


def wrong_inside(j: Judged) -> Iterator[str]:
    """The intermediate values of one answer that are wrong, in words."""
    inside = j.answer.inside or {}
    for i, task in enumerate(j.vector.per_task):
        for key in [key for key in words.INSIDE if key in inside and key in task]:
            try:
                steps = inside[key][i]
                bad = [k for k, tree in enumerate(task[key]) if not close(steps[k], tree, j)]
            except Exception as error:  # it may be an array of any library
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
