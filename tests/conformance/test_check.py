"""The checker, function by function: what it asks, reads, compares, concludes and says."""

import dataclasses
import threading
from math import log10
from unittest import SkipTest

import numpy as np
import pytest

from refmeta.conformance import Skip, assert_case, check, parameters
from refmeta.conformance import checker as c
from refmeta.conformance.attribution import Explanation
from refmeta.conformance.cases import load
from refmeta.conformance.checker import Answer, Report, Row, Verdict
from refmeta.conformance.suspects import Suspect

BY_ID = {vector.case.id: vector for vector in load()}


def vector(id="v", gradient=((3.0, 4.0),), scale=None, float32=0.0, float64=0.0, per_task=(), **case):
    """A small vector of MAML; its arrays are named W, b, …"""
    base = BY_ID["maml-quadratic-k2-t2"]
    case = {"names": ["W", "b", "c"][: len(gradient)], "tier": "tanh"} | case
    return dataclasses.replace(
        base,
        case=dataclasses.replace(base.case, id=id, **case),
        gradient=[np.array(leaf, float) for leaf in gradient],
        per_task=list(per_task),
        tolerance={"float32": float32, "float64": float64},
        scale=scale or [1.0] * len(gradient),
    )


def answer(*gradient, **fields):
    return Answer([np.array(leaf, float) for leaf in gradient], **fields)


def judged(*pairs):
    return [(v, a, c.row_of(v, a)) for v, a in pairs]


def right(case):
    return BY_ID[case.id].gradient


def raising(error):
    def harness(case):
        raise error

    return harness


# --- The report ---


def row(status, id="maml-a", message="", digits=16.0):
    return Row(id, id.split("-")[0], "tanh", status, digits, message)


@pytest.mark.parametrize(
    "statuses, passed",
    [
        (["pass"], True),
        (["pass", "skip"], True),
        ([], False),
        (["skip"], False),
        (["pass", "fail"], False),
        (["pass", "error"], False),
    ],
)
def test_a_report_has_passed_if_something_is_right_and_nothing_wrong(statuses, passed):
    report = Report([row(status) for status in statuses], [])
    assert report.passed is passed
    if passed:
        report.raise_on_failure()
    else:
        with pytest.raises(AssertionError, match=r"\Arefmeta check: FAILED\n\Z"):
            report.raise_on_failure()


def test_a_report_is_what_it_was_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Report([], []).passed = True


def test_the_report_counts_what_is_right_and_lists_the_first_four_wrong():
    rows = [row("fail" if i % 2 else "error", f"maml-{i}", f"message {i}") for i in range(5)]
    rows += [row("pass", "reptile-a"), row("pass", "reptile-b"), row("skip", "reptile-c", "not yet")]
    rows += [row("pass"), *rows[:4]]
    rows += [row("error", f"anil-{i}", f"message {i}") for i in range(4)]
    verdicts = [
        Verdict("maml", "bug", "the title.\nCause: the cause.\n   Seen in: the places."),
        Verdict("reptile", "pass", "pass; all of it"),
        Verdict("anil", "error", "no answer"),
    ]
    assert str(Report(rows, verdicts, "refmeta check mine")) == (
        "refmeta check mine: FAILED\n"
        "\n"
        "maml     1 of 10 right: the title.\n"
        "         Cause: the cause.\n"
        "         Seen in: the places.\n"
        "         maml-0: message 0\n"
        "         maml-1: message 1\n"
        "         maml-2: message 2\n"
        "         maml-3: message 3\n"
        "         … and 5 more\n"
        "reptile  2 of 2 right, 1 skipped: pass; all of it\n"
        "anil     0 of 4 right: no answer\n"
        "         anil-0: message 0\n"
        "         anil-1: message 1\n"
        "         anil-2: message 2\n"
        "         anil-3: message 3"
    )
    assert str(Report([row("pass")], [Verdict("maml", "pass", "pass")])) == (
        "refmeta check: passed\n\nmaml     1 of 1 right: pass"
    )


@pytest.mark.parametrize(
    "text, lines",
    [
        ("x" * 85 + " y z", ["maml     0 of 0 right: " + "x" * 85 + " y", "           z"]),
        ("x" * 86 + " y z", ["maml     0 of 0 right: " + "x" * 86, "           y z"]),
        ("x" * 80 + " first-order", ["maml     0 of 0 right: " + "x" * 80, "           first-order"]),
        ("\n" + "x" * 99 + " y z", ["maml     0 of 0 right:", "         " + "x" * 99 + " y", "           z"]),
    ],
)
def test_lines_are_broken_after_110_characters_between_words(text, lines):
    assert str(Report([], [Verdict("maml", "bug", text)])).splitlines()[2:] == lines


JSON = """{
 "passed": false,
 "verdicts": [
  {
   "algorithm": "maml",
   "kind": "bug",
   "text": "φ",
   "explanations": [
    {
     "suspects": [
      "first_order"
     ],
     "tasks": "last",
     "scale": "1/tasks"
    }
   ]
  }
 ],
 "rows": [
  {
   "id": "maml-a",
   "algorithm": "maml",
   "tier": "tanh",
   "status": "fail",
   "digits": 2.5,
   "message": "…"
  }
 ]
}"""


def test_the_report_as_json_has_all_of_it():
    verdict = Verdict("maml", "bug", "φ", (Explanation(("first_order",), "last", "1/tasks"),))
    assert Report([row("fail", message="…", digits=2.5)], [verdict]).json() == JSON


# --- Asking ---


def test_every_vector_that_is_chosen_is_asked_for_in_the_dtype_and_time_given(monkeypatch):
    asked = []

    def answer_of(harness, case, timeout):
        asked.append((harness, case.id, case.theta[0].dtype, timeout))
        return Answer(right(case), dtype="float32")

    monkeypatch.setattr(c, "answer_of", answer_of)
    report = check("mine", "float32", ["reptile", "maml"], ["scalar", "canary"], 2.5, "the title")
    ids = ["maml-canary", "reptile-canary", "maml-scalar", "reptile-scalar"]
    assert asked == [("mine", id, np.float32, 2.5) for id in ids] and [r.id for r in report.rows] == ids
    assert report.passed and report.title == "the title"
    assert [v.algorithm for v in report.verdicts] == ["maml", "reptile"]
    asked.clear()
    assert check("mine", tiers=["canary"], algorithms=["joint"]).title == "refmeta check"
    assert asked == [("mine", "joint-canary", np.float64, 60)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float16"}, "dtype: expected float32 or float64, got 'float16'"),
        (
            {"algorithms": ["meta-sgd", "maml", "cavia"]},
            "algorithm 'cavia': expected one of maml, fomaml, anil, reptile, joint",
        ),
        (
            {"tiers": ["relu", "elu"]},
            "tier 'elu': expected one of canary, quadratic, regression, tanh, softmax, edge, scalar",
        ),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        check(right, **options)
    assert str(error.value) == message


def test_vectors_are_chosen_by_algorithm_and_tier():
    assert c.select(None, None) == list(load())
    assert [v.case.id for v in c.select(["joint"], None)] == [id for id in BY_ID if id.startswith("joint")]
    assert [v.case.id for v in c.select(None, ["scalar"])] == ["maml-scalar", "reptile-scalar"]
    assert c.select([], None) == c.select(None, []) == []


def test_one_case_is_asserted_skipped_or_fails_with_its_report(monkeypatch):
    case = BY_ID["maml-scalar"].case
    with pytest.raises(SkipTest, match=r"\Anot yet\Z"):  # first: one that escapes would skip this test
        assert_case(raising(Skip("not yet")), case)
    assert_case(right, case)
    with pytest.raises(AssertionError, match=r"\Arefmeta check maml-scalar: FAILED\n\nmaml     0 of 1 right: the form"):
        assert_case(lambda case: [], case)
    given = []
    monkeypatch.setattr(c, "answer_of", lambda *arguments: given.append(arguments) or Answer(right(case)))
    assert_case("mine", case)
    assert given == [("mine", case, 60)]


def test_the_cases_are_parameters_and_failures_may_be_expected():
    plain = parameters()
    assert [p.id for p in plain] == [p.values[0].id for p in plain] == list(BY_ID)
    assert all(p.values[0].theta[0].dtype == np.float64 and not p.marks for p in plain)
    single = parameters({"maml-scalar": "not yet"}, "float32")
    assert all(p.values[0].theta[0].dtype == np.float32 for p in single)
    ((id, (mark,)),) = [(p.id, p.marks) for p in single if p.marks]
    assert (id, mark.name, mark.kwargs) == ("maml-scalar", "xfail", {"reason": "not yet", "strict": True})
    with pytest.raises(ValueError, match=r"\Axfail: there is no vector 'absurd'\Z"):
        parameters({"nonsense": "", "maml-scalar": "", "absurd": ""})


@pytest.mark.parametrize(
    "harness, expected",
    [
        (raising(RuntimeError("double backward")), Answer(problem="raised RuntimeError: double backward")),
        (raising(KeyError("a" * 300)), Answer(problem="raised KeyError: '" + "a" * 199)),
        (raising(KeyboardInterrupt()), Answer(problem="raised KeyboardInterrupt: ")),
        (raising(SystemExit(2)), Answer(problem="raised SystemExit: 2")),
        (raising(Skip("not yet")), Answer(problem="not yet", skipped=True)),
        (lambda case: None, Answer(problem="returned NoneType: expected a list of arrays shaped like theta")),
        (lambda case: SystemExit(), Answer(problem="returned SystemExit: expected a list of arrays shaped like theta")),
    ],
)
def test_whatever_a_harness_does_is_an_answer(harness, expected):
    assert c.answer_of(harness, None, 60) == expected


def test_what_numpy_cannot_read_is_an_answer_too():
    assert c.answer_of(lambda case: [[1, [2]]], None, 60).problem.startswith("raised ValueError: setting an array")


def test_a_harness_gets_the_case_in_a_thread_that_keeps_nothing_alive():
    seen = []
    assert c.answer_of(lambda case: seen.append((case, threading.current_thread().daemon)) or [], "case", 60) == Answer(
        [], {}
    )
    assert seen == [("case", True)]


def test_a_harness_that_never_answers_is_left_behind():
    end = threading.Event()
    assert c.answer_of(lambda case: end.wait(), None, 0.01) == Answer(problem="gave no answer within 0.01 seconds")
    end.set()


# --- Reading an answer ---


@pytest.mark.parametrize(
    "dtypes, expected",
    [
        (["float64", "float64"], "float64"),
        (["float32", "float32"], "float32"),
        (["float64", "float32"], "float32"),
        (["float16", "float64"], "float32"),
        (["longdouble", "float64"], "float64"),
        (["int32", "uint8"], "float64"),
        (["int64", "float32"], "float32"),
    ],
)
def test_an_answer_is_as_precise_as_its_least_precise_array(dtypes, expected):
    got = c.read_answer([np.array([1, 2], dtype) for dtype in dtypes])
    assert got.dtype == expected and not got.problem and got.inside == {}
    assert [(leaf.dtype, leaf.tolist()) for leaf in got.gradient] == [(float, [1, 2])] * 2


def test_an_answer_is_a_list_or_tuple_alone_or_with_intermediates():
    inside = {"phi": [1], "inner_gradient": [2], "adjoint": [3]}
    assert c.read_answer(([],)).gradient[0].shape == (0,)
    assert c.read_answer([1, 2.5]) == ([1, 2.5], {}, "float64", "", False)
    assert c.read_answer({"gradient": [1.5]}) == ([1.5], {}, "float64", "", False)
    assert c.read_answer({"gradient": (1.5,), **inside}) == ([1.5], inside, "float64", "", False)


@pytest.mark.parametrize(
    "value, problem",
    [
        (
            {"gradient": [1.0], "loss": 1, "acc": 0},
            "returned a dict with keys ['acc', 'gradient', 'loss']: expected gradient, and any of phi, inner_gradient, "
            "adjoint",
        ),
        (
            {"phi": []},
            "returned a dict with keys ['phi']: expected gradient, and any of phi, inner_gradient, adjoint",
        ),
        ("gradient", "returned str: expected a list of arrays shaped like theta"),
        ({"gradient": np.ones(2)}, "returned ndarray: expected a list of arrays shaped like theta"),
        ([1.0, True, "a"], "array 1 has dtype bool: expected floating-point numbers"),
        ([1j, "a"], "array 0 has dtype complex128: expected floating-point numbers"),
        ([None], "array 0 has dtype object: expected floating-point numbers"),
        (["a"], "array 0 has dtype <U1: expected floating-point numbers"),
    ],
)
def test_what_is_no_list_of_arrays_is_a_problem(value, problem):
    assert c.read_answer(value) == Answer(problem=problem)


def test_a_tensor_is_detached_and_brought_to_the_cpu():
    class Tensor:
        def __init__(self, value):
            self.value = value

        def detach(self):
            return Detached(self.value)

    class Detached(Tensor):
        def cpu(self):
            return self.value

    assert c.read_answer([Tensor(1.5)]) == ([1.5], {}, "float64", "", False)


# --- One row ---


@pytest.mark.parametrize(
    "error, digits",
    [(0, 16), (1e-17, 16), (1e-16, 16), (1e-3, 3), (0.5, -log10(0.5)), (1, 0), (100, 0), (float("inf"), 0)],
)
def test_digits_are_those_of_the_relative_error(error, digits):
    assert c._digits(error) == digits


def test_every_array_has_an_error_in_its_own_scale():
    v = vector(gradient=[[3, 4], [[1, 1]], 7], scale=[2.0, 0.5, 10.0])
    assert c._errors(v, answer([6, 8], [[1, 1]], -1).gradient) == [2.5, 0, 0.8]
    with pytest.raises(ValueError):
        c._errors(dataclasses.replace(v, scale=[2.0, 0.5]), v.gradient)


@pytest.mark.parametrize(
    "given, expected",
    [
        (Answer(problem="not yet", skipped=True), ("skip", 0, "not yet")),
        (Answer(problem="raised"), ("error", 0, "raised")),
        (answer([3, 4], [0], [0]), ("fail", 0, "3 arrays, expected 2: W, b")),
        (answer([3, np.nan], [0]), ("error", 0, "W has NaN or infinity")),
        (answer([3, 4], [0]), ("pass", 16, "")),
        (answer([3, 4 + 2**-39], [0]), ("pass", 40 * log10(2), "")),
        (answer([3, 4 + 2**-38], [0]), ("fail", 39 * log10(2), "right to 11.7 digits only")),
        (answer([3, 4 + 2**-38], [0], dtype="float32"), ("pass", 39 * log10(2), "")),
        (answer([3, 4 + 2**-16], [0], dtype="float32"), ("pass", 17 * log10(2), "")),
        (answer([3, 4], [2**-17], dtype="float32"), ("pass", 17 * log10(2), "")),
        (answer([3, 4], [2**-17]), ("fail", 17 * log10(2), "right to 5.1 digits only")),
        (
            answer([3, 4], [2**-16]),
            ("fail", 16 * log10(2), "cosine 1.000, 1 times as long, correct digits: W 16.0, b 4.8"),
        ),
        (
            answer([4, 2], [0.5]),
            ("fail", 0, "cosine 0.889, 0.9 times as long, correct digits: W 0.0, b 0.3"),
        ),
        (answer([0, 0], [0]), ("fail", 0, "0 times as long, correct digits: W 0.0, b 16.0")),
    ],
)
def test_a_row_says_how_right_an_answer_is(given, expected):
    v = vector(gradient=[[3, 4], [0]], scale=[2.0, 1.0], float32=2**-17, float64=2**-40)
    status, digits, message = expected
    assert c.row_of(v, given) == ("v", "maml", "tanh", status, digits and pytest.approx(digits, rel=1e-9), message)


def test_the_tolerance_of_float32_is_one_in_a_million_at_least():
    v = vector(gradient=[[0, 0]])
    assert c.row_of(v, answer([0, 1e-6])).message == "right to 6.0 digits only"
    assert c.row_of(v, answer([0, 1.1e-6])).message == "correct digits: W 6.0"
    assert c.row_of(v, answer([0, 1e-7])).message == "right to 7.0 digits only"
    assert c.row_of(v, answer([0, 0])).status == "pass"


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([(2, 3), (3,)], ""),
        ([(3, 2), (3,)], "every array is transposed: W has shape (in, out), layer = x @ W + b"),
        ([(3,), (2, 3)], "the arrays are in another order: expected W, b"),
        ([(9,)], "one flat array: expected 2 arrays, W, b"),
        ([(9, 1)], "one flat array: expected 2 arrays, W, b"),
        ([(8,)], "1 arrays, expected 2: W, b; missing b"),
        ([(9,), (0,)], "W has shape (9,), expected (2, 3)"),
        ([(9,), (0,), ()], "3 arrays, expected 2: W, b"),
        ([], "0 arrays, expected 2: W, b; missing W, b"),
        ([(2, 3), (4,)], "b has shape (4,), expected (3,)"),
        ([(2, 2), (4,)], "W has shape (2, 2), expected (2, 3)"),
    ],
)
def test_a_wrong_form_is_said(shapes, message):
    assert c._form(vector(gradient=[np.ones((2, 3)), np.ones(3)]), [np.ones(shape) for shape in shapes]) == message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_array_with_a_value_that_is_no_number_is_named(value):
    assert c._form(vector(gradient=[[1, 2], [3]]), answer([1, 2], [value]).gradient) == "b has NaN or infinity"


# --- The verdict on an algorithm ---


def test_every_algorithm_has_its_verdict_in_the_order_of_the_answers():
    pairs = [
        (vector("a", algorithm="reptile"), answer([3, 4])),
        (vector("b"), Answer(problem="no")),
        (vector("c", algorithm="reptile"), answer([3, 4])),
    ]
    report = c.judge(iter(pairs), "the title")
    assert (report.title, [r.id for r in report.rows]) == ("the title", ["a", "b", "c"])
    assert [(v.algorithm, v.kind) for v in report.verdicts] == [("reptile", "pass"), ("maml", "error")]
    assert c.judge([]).title == "refmeta check"


SKIPPED = Answer(problem="declined", skipped=True)
FAR, CLOSE, NEAR = answer([3, 5]), answer([3, 4 + 2**-20]), answer([3, 4 + 2**-40])
WIRING = (
    "the harness is not wired up: its simplest case, b, fails ({}). It passes whatever the inner loop does, so look at "
    "how the case is read and the gradient returned; nothing else is judged."
)
FLOAT32 = "right in float32, but float64 was asked for: something on the way is float32."
ROUNDABOUT = (
    "right but for the last bits, on vectors where no step need be rounded: something is computed in a roundabout way, "
    "such as a mean that is multiplied up to a sum."
)
NO_GUESS = "wrong, and no known mistake or pair of mistakes explains all of it; no guess is made."


@pytest.mark.parametrize(
    "answers, kind, text",
    [
        ([SKIPPED, SKIPPED._replace(problem="later")], "none", "not checked: declined"),
        ([answer([3, 4]), SKIPPED], "pass", "pass; exact on 1, at least 16.0 digits on the rest"),
        ([answer([3, 4]), answer([3, 4])], "pass", "pass; exact on 1, at least 16.0 digits on the rest"),
        ([answer([3, 4]), answer([3, 4 + 2**-50])], "pass", "pass; exact on 1, at least 15.1 digits on the rest"),
        ([FAR, answer([0, 0])], "wiring", WIRING.format("0 times as long, correct digits: W 0.0")),
        ([FAR, Answer(problem="no")], "wiring", WIRING.format("no")),
        ([answer([3], [4]), answer([3, 4])], "form", "the form is wrong: 2 arrays, expected 1: W."),
        (
            [answer([3]), answer([3, 4]), answer([[3, 4]])],
            "form",
            "the form is wrong: W has shape (1,), expected (2,).",
        ),
        ([answer([3, np.nan])], "form", "the form is wrong: W has NaN or infinity."),
        ([Answer(problem="first"), SKIPPED, Answer(problem="last")], "error", "no answer where it is missing: first."),
        ([answer([3, 4]), SKIPPED, Answer(problem="last")], "error", "no answer where it is missing: last."),
        ([CLOSE, answer([3, 4]), NEAR], "precision", FLOAT32),
        ([NEAR, answer([3, 4])], "precision", ROUNDABOUT),
        ([NEAR, answer([3, 4]), Answer(problem="no")], "precision", ROUNDABOUT),
        ([FAR, SKIPPED, NEAR], "unexplained", NO_GUESS),
        ([FAR], "unexplained", NO_GUESS),
        ([FAR, answer([3, 4]), Answer(problem="no")], "unexplained", NO_GUESS),
    ],
)
def test_without_a_known_mistake_the_verdict_is_one_of_these(monkeypatch, answers, kind, text):
    monkeypatch.setattr(c, "_explain", lambda answers: [])
    vectors = vector("a"), vector("b", float64=2**-48, tier="canary"), vector("c")
    assert c._verdict("maml", judged(*zip(vectors, answers, strict=False))) == Verdict("maml", kind, text)


def test_a_verdict_is_sought_for_the_answers_that_came_if_one_of_them_is_wrong(monkeypatch):
    asked = []
    monkeypatch.setattr(c, "_explain", lambda answers: asked.append(answers) or [])
    bad_form, none, fine = answer([3]), Answer(problem="no"), answer([3, 4], dtype="float32")
    pairs = list(zip(map(vector, "abcdef"), [fine, bad_form, none, SKIPPED, answer([3, np.nan]), FAR], strict=True))
    c._verdict("maml", judged(*pairs))
    c._verdict("maml", judged(*pairs[:5]))
    ((first, last),) = asked
    assert (first[0].case.id, first[1], first[2]) == ("a", fine.gradient, "float32")
    assert (last[0].case.id, last[1], last[2]) == ("f", FAR.gradient, "float64")


@pytest.mark.parametrize("tier", ["canary", "tanh"])
def test_an_explanation_is_the_verdict_even_if_the_canary_fails(monkeypatch, tier):
    found = [Explanation(("first_order",)), Explanation((), "all", "tasks"), Explanation((), "all", "1/tasks")]
    monkeypatch.setattr(c, "_explain", lambda answers: found)
    wrong = judged((vector(tier=tier), FAR))
    assert c._verdict("maml", wrong) == Verdict("maml", "bug", c.describe(found), tuple(found))
    found.reverse()
    assert c._verdict("maml", wrong).kind == "convention"


@pytest.mark.parametrize("found", [[Explanation(("first_order",))], []])
def test_the_first_wrong_intermediate_is_said_before_the_verdict(monkeypatch, found):
    monkeypatch.setattr(c, "_explain", lambda answers: found)
    v = vector(per_task=[{"phi": [[np.ones(2)], [np.zeros(2)]]}])
    place = "φ_1 is the first wrong value: look at inner step 1 (task 1 of v): "
    verdict = c._verdict("maml", judged((v, FAR._replace(inside={"phi": [[[np.ones(2)], [np.ones(2)]]]}))))
    assert verdict.text == place + (c.describe(found) if found else NO_GUESS)


def test_float32_has_less_than_ten_digits():
    assert c._precision(9.9) == c._precision(0) == FLOAT32
    assert c._precision(10) == c._precision(16) == ROUNDABOUT


@pytest.mark.parametrize(
    "found, kind",
    [
        (Explanation(("first_order",)), "bug"),
        (Explanation((), "last"), "bug"),
        (Explanation((), "all", "-1/tasks"), "bug"),
        (Explanation((), "all", "1/tasks"), "convention"),
    ],
)
def test_a_factor_alone_is_a_convention_unless_it_is_negative(found, kind):
    assert c._kind(found) == kind


# --- Looking for an explanation ---


def of_suspect(name, id, tasks=slice(None)):
    return BY_ID[id], [sum(leaves) for leaves in zip(*BY_ID[id].suspects[name][tasks], strict=True)], "float64"


def test_what_explains_all_answers_is_found():
    answers = [of_suspect("first_order", f"maml-quadratic-{name}") for name in ("k1-t1", "k1-t3", "k2-t2", "k3-t3")]
    assert c._explain(answers) == [Explanation(("first_order",))]
    lost = [of_suspect("first_order", f"maml-quadratic-{name}", slice(-1, None)) for name in ("k1-t3", "k2-t2")]
    assert c._explain(lost) == [Explanation(("first_order",), "last")]


def test_no_explanation_and_no_pair_is_no_finding(monkeypatch):
    monkeypatch.setattr(c, "pairs", lambda answers: iter(()))
    v, got, dtype = of_suspect("first_order", "maml-quadratic-k1-t3")
    assert c._explain([(v, got, dtype), (v, v.gradient, dtype)]) == []


def test_nothing_explains_answers_whose_squares_overflow():
    rng = np.random.default_rng(0)

    def harness(case):
        return [1e160 * rng.normal(size=leaf.shape) for leaf in case.theta]

    assert {v.kind for v in check(harness).verdicts} == {"wiring"}
    assert {v.kind for v in check(harness, tiers=["tanh"]).verdicts} == {"unexplained"}


def test_zero_everywhere_went_to_a_copy_and_zero_somewhere_did_not(monkeypatch):
    v = vector()
    monkeypatch.setattr(c, "explanations", lambda *_: {Explanation(("first_order",))})
    zero, other = answer([0, 0]).gradient, answer([0, 1]).gradient
    assert c._explain([(v, zero, "float64")] * 2) == [Explanation(("zero",))]
    assert c._explain([(v, zero, "float64"), (v, other, "float64")]) == [Explanation(("first_order",))]


def test_answers_are_explained_within_ten_times_their_rounding(monkeypatch):
    asked = []

    def explained(v, got, limit):
        asked.append((v.case.id, got, limit))
        return {Explanation(), Explanation(("first_order",))}

    monkeypatch.setattr(c, "explanations", explained)
    a, b = vector("a", float64=2**-20), vector("b", float32=2**-10)
    got = answer([0, 1]).gradient
    assert c._explain([(a, got, "float64"), (b, got, "float32")]) == [Explanation(("first_order",))]
    assert asked == [("a", got, 50 * 2**-20), ("b", got, 50 * 2**-10)]


@pytest.mark.parametrize("sizes, kept", [((1, 2), 1), ((2, 2), 1), ((2,), 1), ((2, 3), 2), ((3,), 2)])
def test_one_or_two_numbers_take_no_factor_that_has_no_name(monkeypatch, sizes, kept):
    found = [Explanation(("first_order",), "all", "1/tasks"), Explanation(("last_step_only",), "all", "0.3")]
    monkeypatch.setattr(c, "explanations", lambda *_: set(found))
    assert c._explain([(vector(), answer(np.ones(n)).gradient, "float64") for n in sizes]) == found[:kept]


def test_pairs_are_tried_on_quadratics_and_the_smallest_first(monkeypatch):
    asked = []
    pair = Explanation(("first_order", "inner_ascent"))
    monkeypatch.setattr(c, "explanations", lambda *_: {Explanation()})
    monkeypatch.setattr(c, "pairs", lambda answers: asked.append(answers) or iter([pair]))
    mlp = {"kind": "mlp"}
    vectors = vector("a", model=mlp), vector("b", [[1, 2, 2]]), vector("c"), vector("d", [2], model=mlp)
    assert c._explain([(v, v.gradient, "float64") for v in vectors]) == [pair]
    assert [(v.case.id, got, limit) for v, got, limit in asked[0]] == [
        (v.case.id, v.gradient, 10 * c._limit(v, v.gradient, "float64"))
        for v in (vectors[2], vectors[1], vectors[3], vectors[0])
    ]


def test_the_limit_is_relative_to_the_largest_of_answer_truth_and_scale():
    v = vector(gradient=[[3], [4]], scale=[0.5, 0.5], float64=2**-20, float32=2**-30)
    assert c._limit(v, answer([0], [0]).gradient, "float64") == 5 * 2**-20
    assert c._limit(v, answer([6], [8]).gradient, "float64") == 10 * 2**-20
    assert c._limit(v, answer([6], [8]).gradient, "float32") == 10 * 2**-23
    assert c._limit(dataclasses.replace(v, scale=[5.0, 12.0]), v.gradient, "float32") == 13 * 2**-23


# --- Saying it ---

CONVENTION = ": a convention, not a mistake; the vectors state theirs in case.conventions."
A = "title a.\nCause: cause a.\nSeen in: seen a. Ledger: B1."


@pytest.mark.parametrize(
    "found, text",
    [
        (
            [(("zero",),)],
            "every gradient is zero: it went to a copy (B13, B14). PyTorch: deepcopy, load_state_dict and .data cut θ "
            "off; higher: copy_initial_weights=False. JAX, TensorFlow: the gradient is taken in other variables than "
            "θ.",
        ),
        ([(("a",),)], A),
        (
            [(("a", "b"),)],
            "title a; title b.\nCause: cause a.\nSeen in: seen a. Ledger: B1.\nCause: cause b.\nSeen in: seen b.",
        ),
        ([(("b",), "last")], "title b; only the last task counts (B4, B5).\nCause: cause b.\nSeen in: seen b."),
        (
            [(("b",), "all", "1/tasks")],
            "title b; the result is multiplied by 1/tasks.\nCause: cause b.\nSeen in: seen b.",
        ),
        ([((), "all", "1/tasks")], f"all else is right, but the result is multiplied by 1/tasks{CONVENTION}"),
        ([((), "all", "-1")], "the result is multiplied by -1."),
        (
            [((), "all but the last", "-1")],
            "all but the last task count (B4, B5); the result is multiplied by -1.\n"
            "Cause: a loss or gradient is overwritten, or cleared, inside the loop over tasks.",
        ),
        (
            [((), "first", "1/tasks")],
            "only the first task counts (B4, B5); the result is multiplied by 1/tasks.\n"
            "Cause: a loss or gradient is overwritten, or cleared, inside the loop over tasks.",
        ),
        (
            [((), "weighted 1, 2")],
            "the tasks are weighted 1, 2.\n"
            "Cause: a loss or gradient is overwritten, or cleared, inside the loop over tasks.",
        ),
        ([(("a",),), (("b",),)], A + "\nThe vectors that were answered cannot tell it from: title b."),
        (
            [(("a",),), (("b", "a"),), ((), "last"), (("b",),)],
            A + "\nThe vectors that were answered cannot tell it from: title b and title a; or last.",
        ),
        (
            [(("a",),), (("b",), "last"), (("b",), "first")],
            A + "\nThe vectors that were answered cannot tell it from: title b.",
        ),
    ],
)
def test_an_explanation_in_words(monkeypatch, found, text):
    suspects = {
        "a": Suspect("a", "B1", "title a", "seen a", "cause a", None),
        "b": Suspect("b", "", "title b", "seen b", "cause b", None),
    }
    monkeypatch.setattr(c, "SUSPECTS", suspects)
    assert c.describe([Explanation(*e) for e in found]) == text


# --- Intermediate values ---

STEPS = {key: [[np.array([3.0, 4.0])] for _ in range(5)] for key in c.INSIDE}
TWO_TASKS = [STEPS, STEPS]


def but(at, *steps):
    """Two tasks' steps, these of task `at` wrong."""
    return [[[[0, 0]] if (i, k) in [(at, s) for s in steps] else [[3, 4]] for k in range(5)] for i in range(2)]


PHI_2 = "φ_2 is the first wrong value: look at inner step 2"


@pytest.mark.parametrize(
    "inside, place",
    [
        (None, ""),
        ({}, ""),
        ({key: but(0) for key in c.INSIDE}, ""),
        ({"phi": but(0, 2, 3, 4)}, f"{PHI_2} (task 1 of v): "),
        ({"phi": but(1, 2, 3)}, f"{PHI_2} (task 2 of v): "),
        ({"phi": but(1, 2), "inner_gradient": but(1, 1), "adjoint": but(1, 3)}, f"{PHI_2} (task 2 of v): "),
        (
            {"inner_gradient": but(0, 1, 3, 4)},
            "φ_1 is right and the inner gradient at it is the first wrong value (task 1 of v): ",
        ),
        (
            {"phi": but(0), "adjoint": but(0, 0, 1, 3)},
            "all φ are right; of ∂L_Q/∂φ_k the last, φ_3, is the first wrong value of the way back (task 1 of v): ",
        ),
        ({"phi": but(0)[:1]}, "phi of task 2 in v cannot be read: list index out of range. "),
        ({"phi": {1: []}}, "phi of task 1 in v cannot be read: 0. "),
        ({"adjoint": 1}, "adjoint of task 1 in v cannot be read: 'int' object is not subscriptable. "),
    ],
)
def test_the_first_wrong_intermediate_is_found(inside, place):
    wrong = judged((vector(per_task=TWO_TASKS), answer([0, 0], inside=inside)))
    assert c._first_wrong_inside(wrong) == place


class Broken:
    def __array__(self, *_, **__):
        raise RuntimeError("lost on the device")


@pytest.mark.parametrize("steps", [[[]], [[[1, 2, 3]]], [[Broken()]]], ids=["none", "three", "broken"])
def test_an_intermediate_that_is_no_list_of_such_arrays_is_said(steps):
    wrong = judged((vector(per_task=TWO_TASKS), answer([0, 0], inside={"phi": [steps] * 2})))
    assert c._first_wrong_inside(wrong).startswith("phi of task 1 in v cannot be read: ")


def test_an_intermediate_that_the_vector_has_not_is_not_looked_at():
    v = vector(per_task=[{"phi": STEPS["phi"]}])
    assert c._first_wrong_inside(judged((v, answer([0, 0], inside={"adjoint": but(0, 1)})))) == ""


def test_the_first_vector_with_a_wrong_intermediate_is_named():
    insides = {"a": but(0), "b": but(0, 2), "c": but(0, 1)}
    pairs = [(vector(id, per_task=TWO_TASKS), answer([0, 0], inside={"phi": phi})) for id, phi in insides.items()]
    assert c._first_wrong_inside(judged(*pairs)) == f"{PHI_2} (task 1 of b): "


@pytest.mark.parametrize("expected, size", [([0.0, 0.0], 1), ([3.0, 4.0], 6)])
def test_intermediates_are_close_within_a_hundred_times_the_tolerance(expected, size):
    limit, v = 100 * 2**-30 * size, vector(float64=2**-30)
    assert c._close([[expected[0] + limit], [expected[1]]], [np.array(expected)], v, "float64") is True
    assert c._close([[expected[0] + 1.001 * limit, expected[1]]], [np.array(expected)], v, "float64") is False


@pytest.mark.parametrize("dtype, limit", [("float32", 1e-5), ("float64", 1e-11)])
def test_intermediates_are_close_within_the_rounding_of_their_dtype(dtype, limit):
    assert c._close([0.99 * limit], [np.zeros(1)], vector(), dtype)
    assert not c._close([1.01 * limit], [np.zeros(1)], vector(), dtype)
