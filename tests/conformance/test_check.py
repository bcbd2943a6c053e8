"""Asking, judging and saying: what a check makes of every kind of answer."""

import bdb
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from bdb import BdbQuit
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from math import log10
from traceback import extract_tb
from types import MappingProxyType
from unittest import SkipTest

import numpy as np
import pytest

from refmeta.conformance import Report, Row, Skip, Verdict, assert_case, check, parameters
from refmeta.conformance.cases import load
from refmeta.conformance.check import Answer, TimeUp, answer_of, judge, read_answer, select
from refmeta.conformance.evidence import Evidence
from refmeta.conformance.explain import ZERO, Explanation, Factor
from refmeta.conformance.harness import meta_gradient
from refmeta.conformance.mistakes import MISTAKES
from refmeta.conformance.report import describe

BY_ID = {vector.case.id: vector for vector in load()}
CASE = BY_ID["maml-canary"].case  # θ is one array of two numbers
TWO = BY_ID["anil-quadratic-k1-t2"].case  # body (2,), head (1,)


def vector(id="v", gradient=((3.0, 4.0),), scale=None, float32=0.0, float64=0.0, per_task=None, suspects=None, **case):
    """A small vector of MAML, its loss linear: no mistake but its suspects changes anything. Its arrays are W, b, …"""
    arrays = [np.array(leaf, float) for leaf in gradient]
    flat = np.concatenate([leaf.ravel() for leaf in arrays])
    linear = np.zeros((flat.size, flat.size)), -flat
    case = {"names": ["W", "b", "c"][: len(arrays)], "tier": "tanh", "theta": arrays, "tasks": [([], linear)]} | case
    base = BY_ID["maml-quadratic-k2-t2"]
    return dataclasses.replace(
        base,
        case=dataclasses.replace(base.case, id=id, **case),
        gradient=arrays,
        per_task=[{"gradient": arrays, **task} for task in per_task or [{}]],
        suspects={name: [[np.array(leaf, float) for leaf in tree]] for name, tree in (suspects or {}).items()},
        tolerance={"float32": float32, "float64": float64},
        scale=scale or [1.0] * len(arrays),
    )


def answer(*gradient, **fields):
    return Answer([np.array(leaf, float) for leaf in gradient], **fields)


def row_of(vector, answer):
    return judge([(vector, answer)]).rows[0]


def verdict_of(*pairs):
    (verdict,) = judge(pairs).verdicts
    return verdict


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
     "scale": "1/tasks",
     "own": {}
    }
   ],
   "evidence": {
    "where": "K ≥ 2",
    "wrong": 1,
    "asked": 2,
    "unless": "",
    "outside": false,
    "arrays": "",
    "multiples": [
     0.5,
     2.0
    ],
    "length": 0,
    "span": "",
    "pieces": {
     "θ": 0.1
    },
    "nearest": [
     "first_order"
    ],
    "missing": [
     "maml-a"
    ],
    "digits": 0,
    "factor": 1
   }
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
    proof = Evidence(
        "K ≥ 2", 1, 2, multiples=(0.5, 2.0), pieces={"θ": 0.1}, nearest=("first_order",), missing=("maml-a",)
    )
    verdict = Verdict("maml", "bug", "φ", (Explanation(("first_order",), "last", Factor(1, "1/tasks")),), proof)
    assert Report([row("fail", message="…", digits=2.5)], [verdict]).json() == JSON


def test_the_report_as_json_has_weights_and_digits_in_words():
    verdict = Verdict("maml", "bug", "", (Explanation((), (0.5, -2.0, 1e-12), Factor(-0.25)),))
    text = Report([], [verdict]).json()
    assert '"tasks": "weighted 0.5, -2, 1e-12"' in text and '"scale": "-0.25"' in text and '"suspects": []' in text


def test_another_step_size_is_said_in_words():
    e = Explanation(("first_order", "alpha=0.0123457"), "last", Factor(1, "1/tasks"))
    first = "the inner step size is 0.0123457, not the one that was asked for"
    assert f"is missing; {first}; only the last task counts" in describe([e]).splitlines()[0]


# --- Asking ---


@pytest.fixture
def waited(monkeypatch):
    """For how long the watchdogs waited."""
    found, wait = [], threading.Event.wait
    monkeypatch.setattr(
        threading.Event, "wait", lambda self, timeout=None: timeout and found.append(timeout) or wait(self, timeout)
    )
    return found


def test_every_vector_that_is_chosen_is_asked_for_in_the_dtype_and_time_given(waited):
    asked = []

    def harness(case):
        asked.append((case.id, case.theta[0].dtype))
        return right(case)

    report = check(harness, "float32", ["reptile", "maml"], ["scalar", "canary"], 2.5, "the title")
    ids = ["maml-canary", "reptile-canary", "maml-scalar", "reptile-scalar"]
    assert asked == [(id, np.float32) for id in ids] and [r.id for r in report.rows] == ids and waited == [2.5] * 4
    assert report.passed and report.title == "the title"
    assert [v.algorithm for v in report.verdicts] == ["maml", "reptile"]
    asked.clear(), waited.clear()
    assert check(harness, tiers=["canary"], algorithms=["joint"]).title == "refmeta check"
    assert asked == [("joint-canary", np.float64)] and waited == [60]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float16"}, "dtype: expected float32 or float64, got 'float16'"),
        (
            {"algorithms": ["meta-sgd", "maml", "cavia"]},
            "algorithm 'cavia': expected one of maml, fomaml, anil, reptile, joint",
        ),
        (
            {"tiers": ["selu", "elu"]},
            "tier 'elu': expected one of canary, quadratic, regression, tanh, softmax, edge, scalar, deep, relu, fine",
        ),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        check(right, **options)
    assert str(error.value) == message


def test_vectors_are_chosen_by_algorithm_and_tier():
    assert list(map(id, select(None, None))) == list(map(id, load()))
    assert [v.case.id for v in select(["joint"], None)] == [id for id in BY_ID if id.startswith("joint")]
    assert [v.case.id for v in select(None, ["scalar"])] == ["maml-scalar", "reptile-scalar"]
    assert select([], None) == select(None, []) == []


def test_one_case_is_asserted_skipped_or_fails_with_its_report(waited):
    case = BY_ID["maml-scalar"].case
    with pytest.raises(SkipTest, match=r"\Anot yet\Z"):  # first: one that escapes would skip this test
        assert_case(raising(Skip("not yet")), case)
    assert_case(right, case)
    with pytest.raises(
        AssertionError, match=r"\Amaml: the form is wrong: 0 .*\n\nrefmeta check maml-scalar: FAILED\n\n"
    ):
        assert_case(lambda case: [], case)
    assert waited == [60] * 3
    with pytest.raises(AssertionError, match=r"\Amaml: no answer where it is missing: gave no answer within 0.05 s"):
        assert_case(asleep, case, timeout=0.05)


def test_the_exception_behind_a_failure_or_a_skip_is_its_cause():
    error, skip = RuntimeError("double backward"), Skip("not yet")
    with pytest.raises(AssertionError, match="double backward") as raised:
        assert_case(raising(error), CASE)
    assert raised.value.__cause__ is error
    assert [entry.name for entry in extract_tb(error.__traceback__)][-1] == "harness"
    with pytest.raises(SkipTest) as raised:
        assert_case(raising(skip), CASE)
    assert raised.value.__cause__ is skip


def test_the_cases_are_parameters_and_failures_may_be_expected():
    plain = parameters()
    assert [p.id for p in plain] == [p.values[0].id for p in plain] == list(BY_ID)
    assert all(p.values[0].theta[0].dtype == np.float64 and not p.marks for p in plain)
    few = parameters({"maml-scalar": "not yet"}, algorithms=["maml", "joint"], tiers=["scalar", "canary"])
    assert [(p.id, len(p.marks)) for p in few] == [("maml-canary", 0), ("joint-canary", 0), ("maml-scalar", 1)]
    with pytest.raises(ValueError, match=r"\Atier 'absurd': expected one of canary, "):
        parameters(tiers=["absurd"])
    single = parameters({"maml-scalar": "not yet"}, "float32")
    assert all(p.values[0].theta[0].dtype == np.float32 for p in single)
    ((id, (mark,)),) = [(p.id, p.marks) for p in single if p.marks]
    assert (id, mark.name, mark.kwargs) == ("maml-scalar", "xfail", {"reason": "not yet", "strict": True})
    with pytest.raises(ValueError, match=r"\Axfail: there is no vector 'absurd'\Z"):
        parameters({"nonsense": "", "maml-scalar": "", "absurd": ""})


def asked(harness, timeout=60):
    """The answer, but for the exception behind it."""
    answer = answer_of(harness, CASE, timeout)
    return answer._replace(error=None, gradient=answer.gradient and [leaf.tolist() for leaf in answer.gradient])


RIGHT = Answer([leaf.tolist() for leaf in right(CASE)], {})


HERE = "test_check.py:" + str(raising.__code__.co_firstlineno + 2)


@pytest.mark.parametrize(
    "harness, expected",
    [
        (raising(RuntimeError("double backward")), Answer(problem=f"raised RuntimeError: double backward ({HERE})")),
        (raising(KeyError("a" * 300)), Answer(problem="raised KeyError: '" + "a" * 199 + f" ({HERE})")),
        (raising(SystemExit(2)), Answer(problem=f"raised SystemExit: 2 ({HERE})")),
        (raising(Skip("not yet")), Answer(problem="not yet", skipped=True)),
        (raising(SkipTest("not yet")), Answer(problem="not yet", skipped=True)),
        (lambda case: pytest.skip("not yet"), Answer(problem="not yet", skipped=True)),
        (
            lambda case: pytest.importorskip("no_such_thing", reason="not here"),
            Answer(problem="not here", skipped=True),
        ),
        (lambda case: None, Answer(problem="returned NoneType: expected a list of arrays shaped like theta")),
        (lambda case: SystemExit(), Answer(problem="returned SystemExit: expected a list of arrays shaped like theta")),
    ],
)
def test_whatever_a_harness_does_is_an_answer(harness, expected):
    assert asked(harness) == expected


def test_what_numpy_cannot_read_is_an_answer_too():
    assert asked(lambda case: [[1, [2]]]).problem.startswith("raised ValueError: setting an array")


def in_the_library(case):
    json.loads("{")


def in_a_package(case):
    np.linalg.inv(np.zeros((2, 2)))


def in_another_function(case):
    in_a_package(case)


@pytest.mark.parametrize(
    "harness, raises",
    [(in_the_library, in_the_library), (in_a_package, in_a_package), (in_another_function, in_a_package)],
)
def test_the_place_of_a_crash_is_the_innermost_line_of_the_callers_own_code(harness, raises):
    assert asked(harness).problem.endswith(f" (test_check.py:{raises.__code__.co_firstlineno + 1})")


def test_a_crash_that_came_through_no_file_of_the_callers_has_no_place():
    assert asked(eval("lambda case: 1 / 0")).problem == "raised ZeroDivisionError: division by zero"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BdbQuit(), pytest.exit.Exception("the debugger was left")])
def test_who_ends_the_run_ends_it(error):
    with pytest.raises(type(error)) as raised:
        check(raising(error), tiers=["canary"])
    assert raised.value is error


def in_a_thread(function):
    """What a function returns in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_who_ends_the_run_in_another_thread_ends_it_too():
    with pytest.raises(KeyboardInterrupt):
        in_a_thread(lambda: check(raising(KeyboardInterrupt()), tiers=["canary"]))


def test_ctrl_c_ends_a_check_that_hangs_and_nothing_of_the_watchdog_is_left():
    before = signal.getsignal(signal.SIGURG), threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        check(lambda case: os.kill(os.getpid(), signal.SIGINT) or time.sleep(60), tiers=["canary"])
    assert (signal.getsignal(signal.SIGURG), threading.active_count()) == before


def test_without_pytest_there_is_nothing_of_it_to_catch(monkeypatch):
    monkeypatch.delitem(sys.modules, "pytest")
    assert asked(raising(Skip("not yet"))).skipped and asked(raising(RuntimeError())).problem


def test_a_harness_gets_the_case_in_the_callers_thread_and_context():
    seen, variable, local = [], ContextVar("variable"), threading.local()

    def harness(case):
        seen.append((threading.current_thread(), variable.get(), local.value, np.geterr()["under"]))
        variable.set("changed")
        return list(case.theta)

    def check_it():
        variable.set("mine"), setattr(local, "value", 7)
        with np.errstate(under="raise"):
            check(harness, algorithms=["joint"], tiers=["canary"])
        assert variable.get() == "changed"
        return threading.current_thread()

    for ask in (check_it, lambda: in_a_thread(check_it)):
        thread = ask()
        assert seen.pop() == (thread, "mine", 7, "raise") and not seen


def write_everywhere(case):
    """As a harness that prepares its data in place, and its words too."""
    for supports, query in case.tasks:
        for batch in [*supports, query]:
            for part in batch:
                part[...] = 1
    for leaf in case.theta:
        leaf[...] = 7
    for words in (case.conventions, case.model, case.loss):
        words.update(dict.fromkeys(words, "mine"))
    case.names[:], case.flags[:] = ["mine"], []


def test_labels_permuted_in_place_spoil_no_later_check():
    """As few-shot code does, which gives every task its own classes."""
    chosen = {"algorithms": ["maml", "fomaml"], "tiers": ["softmax"]}

    def permute(case):
        for supports, query in case.tasks:
            for _, labels in [*supports, query]:
                labels[...] = labels.max() - labels
        return case

    for case in [p.values[0] for p in parameters(**chosen)]:
        assert_case(lambda case: (meta_gradient(case), permute(case))[0], case)
        assert permute(case).tasks[0][1][1].tolist() != BY_ID[case.id].case.tasks[0][1][1].tolist()
        permute(BY_ID[case.id].case.astype("float64"))
    assert not check(lambda case: meta_gradient(permute(case)), **chosen).passed
    assert check(meta_gradient, **chosen).passed
    for case in [p.values[0] for p in parameters(**chosen)]:
        assert_case(meta_gradient, case)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_harness_that_writes_in_place_spoils_no_later_check(dtype):
    """Labels, conventions and names are no floats, and were shared by all that ever asked for the case."""

    def spoiling(case):
        answer = meta_gradient(case)
        write_everywhere(case)
        return answer

    chosen = {"algorithms": ["maml"], "tiers": ["softmax", "scalar"]}
    before = check(meta_gradient, dtype, **chosen)
    assert before.passed and check(spoiling, dtype, **chosen) == check(meta_gradient, dtype, **chosen) == before
    for case in [p.values[0] for p in parameters(dtype=dtype) if p.id.startswith("maml-s")]:
        assert_case(spoiling, case)
        assert_case(spoiling, case)
        write_everywhere(case)
    assert check(meta_gradient, dtype, **chosen) == before


def test_what_a_harness_says_is_one_line_and_nothing_in_it_is_obeyed_by_a_terminal():
    said = "\x1b[2J\x1b]0;title\x07no\r\n\nmaml     53 of 53 right: pass\x9b31m\u202e\ud800\x7f α→β"
    shown = r"\x1b[2J\x1b]0;title\x07no maml 53 of 53 right: pass\x9b31m\u202e\ud800\x7f α→β"
    report = check(raising(RuntimeError(said)), algorithms=["maml"], tiers=["scalar"])
    assert report.rows[0].message == f"raised RuntimeError: {shown} ({HERE})"
    lines = str(report).splitlines()
    assert all(line.isprintable() for line in lines) and shown in lines[-1] and len(lines) == 5
    assert all(line.strip().isprintable() for line in report.json().splitlines())
    skipped = check(raising(Skip(said)), algorithms=["maml"], tiers=["scalar"])
    assert skipped.verdicts[0].text == f"not checked: {shown}"

    class Foreign:
        def __array__(self, *_, **__):
            raise RuntimeError(said)

    def inside(case):
        return {"gradient": [leaf + 1 for leaf in case.theta], "phi": [[[Foreign()]]] * len(case.tasks)}

    (verdict,) = check(inside, algorithms=["maml"], tiers=["scalar"]).verdicts
    assert f"phi of task 1 in maml-scalar cannot be read: {shown}. " in verdict.text


# --- Time ---


def busy(case):
    while True:
        pass


def asleep(case):
    time.sleep(60)


def stubborn(case):
    try:
        time.sleep(60)
    except Exception:
        return case.theta


def locked(case):
    threading.Event().wait()


@pytest.mark.parametrize("harness, line", [(busy, 2), (asleep, 1), (stubborn, 2), (locked, 1)])
def test_a_harness_that_hangs_is_interrupted_where_it_hangs(harness, line, capfd):
    before, start = signal.getsignal(signal.SIGURG), time.monotonic()
    answer = answer_of(harness, CASE, 0.05)
    lines = [harness.__code__.co_firstlineno + line - less for less in (0, 1)]
    assert answer.problem in [f"gave no answer within 0.05 seconds (test_check.py:{line})" for line in lines]
    assert isinstance(answer.error, TimeUp) and time.monotonic() - start < 5
    assert signal.getsignal(signal.SIGURG) == before and capfd.readouterr().err == ""


def test_a_harness_that_hangs_in_another_thread_is_interrupted_there():
    answer = in_a_thread(lambda: answer_of(busy, CASE, 0.05))
    assert answer.problem.startswith("gave no answer within 0.05 seconds (test_check.py:")
    assert in_a_thread(lambda: asked(right)) == RIGHT


def test_what_cannot_be_interrupted_is_said_while_it_lasts(capfd):
    """A sleep in another thread waits in C; TimeUp comes after it, and it answers no more."""

    def harness(case):
        time.sleep(2)
        return right(case)

    assert in_a_thread(lambda: asked(harness, 0.05)).problem.startswith("gave no answer within 0.05 seconds")
    assert capfd.readouterr().err == (
        "refmeta: maml-canary gave no answer within 0.05 seconds, and cannot be interrupted\n"
    )


def test_the_time_of_one_answer_is_not_that_of_the_next():
    """None is interrupted when it has been answered, however near the end of its time that was."""
    for i in range(100):
        start = time.monotonic()
        answer = answer_of(lambda case: time.sleep(0.002 + i * 1e-5) or right(case), CASE, 0.0025)
        assert answer.gradient is not None or answer.problem.startswith("gave no answer")
        assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "module, stopped", [("bdb", False), ("_pydevd_bundle.pydevd_frame", False), ("mine", True), ("my_bdb", True)]
)
def test_there_is_no_deadline_below_a_debugger(module, stopped):
    """As while it waits for a command."""
    names = {"__name__": module, "sleep": time.sleep, "right": right}
    exec("def harness(case):\n    sleep(0.2)\n    return right(case)", names)
    assert (asked(names["harness"], 0.05) != RIGHT) is stopped


class Debugger(bdb.Bdb):
    def user_line(self, frame):
        self.set_continue()


def test_there_is_no_deadline_in_a_debugger():
    def harness(case):
        time.sleep(0.2)
        return right(case)

    assert asked(harness, 0.05).problem.startswith("gave no answer")
    assert Debugger().runcall(asked, harness, 0.05) == RIGHT


def test_there_is_no_deadline_for_a_function_that_a_debugger_steps_through():
    def harness(case):
        sys._getframe().f_trace = Debugger().trace_dispatch  # as pdb's set_trace leaves it
        time.sleep(0.2)
        return right(case)

    assert asked(harness, 0.05) == RIGHT


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
    got = read_answer([np.array([1, 2], dtype) for dtype in dtypes], CASE)
    assert got.dtype == expected and not got.problem and got.inside == {}
    assert [(leaf.dtype, leaf.tolist()) for leaf in got.gradient] == [(float, [1, 2])] * 2


def test_an_answer_is_a_list_or_tuple_alone_or_with_intermediates():
    inside = {"phi": [1], "inner_gradient": [2], "adjoint": [3]}
    assert read_answer(([],), CASE).gradient[0].shape == (0,)
    assert read_answer([1, 2.5], CASE) == ([1, 2.5], {}, "float64", "", False, None)
    assert read_answer({"gradient": [1.5]}, CASE) == ([1.5], {}, "float64", "", False, None)
    assert read_answer({"gradient": (1.5,), **inside}, CASE) == ([1.5], inside, "float64", "", False, None)


@pytest.mark.parametrize(
    "value, problem",
    [
        (
            {"gradient": [1.0], "loss": 1, "acc": 0},
            "returned a dict with keys ['acc', 'gradient', 'loss']: expected gradient, and any of phi, inner_gradient, "
            "adjoint; or body, head",
        ),
        (
            {"phi": []},
            "returned a dict with keys ['phi']: expected gradient, and any of phi, inner_gradient, adjoint; or body, "
            "head",
        ),
        (
            {1: 2.0, "body": 1.0, "tail": 3.0},
            "returned a dict with keys ['1', 'body', 'tail']: expected gradient, and any of phi, inner_gradient, "
            "adjoint; or body, head",
        ),
        ("gradient", "returned str: expected a list of arrays shaped like theta"),
        ({"gradient": np.ones(2)}, "returned ndarray: expected a list of arrays shaped like theta"),
        (
            {"gradients": [[1.0, 2.0]], "head": [1.0]},
            "returned a dict with keys ['gradients', 'head']: expected gradient, and any of phi, inner_gradient, "
            "adjoint; or body, head",
        ),
        (
            {"0.weight": np.ones(2), "0.bias": np.ones(1), "1.weight": np.ones(1)},
            "returned a dict with keys ['0.bias', '0.weight', '1.weight']: expected gradient, and any of phi, "
            "inner_gradient, adjoint; or body, head",
        ),
        (
            {"gradient": np.ones(2), "acc": np.ones(1)},
            "returned a dict with keys ['acc', 'gradient']: expected gradient, and any of phi, inner_gradient, "
            "adjoint; or body, head",
        ),
        (2.5, "returned float: expected a list of arrays shaped like theta"),
        ([1.0, True, "a"], "array 1 has dtype bool: expected floating-point numbers"),
        ([1j, "a"], "array 0 has dtype complex128: expected floating-point numbers"),
        ([None], "array 0 has dtype object: expected floating-point numbers"),
        (["a"], "array 0 has dtype <U1: expected floating-point numbers"),
    ],
)
def test_what_is_no_list_of_arrays_is_a_problem(value, problem):
    assert read_answer(value, TWO) == Answer(problem=problem)


def given(value, case):
    """An answer's arrays as lists."""
    return [leaf.tolist() for leaf in read_answer(value, case).gradient]


NET = BY_ID["maml-softmax-k2-t3"].case  # W1 (2, 3), b1 (3,), W2 (3, 3), b2 (3,)
GRADIENT = [leaf.tolist() for leaf in BY_ID[NET.id].gradient]
W1, B1, W2, B2 = BY_ID[NET.id].gradient


class Parameters:
    """As PyTorch's ParameterDict, which is no Mapping."""

    def __init__(self, **arrays):
        self.keys, self.items = arrays.keys, arrays.items

    def __iter__(self):
        return iter(self.keys())


@pytest.mark.parametrize(
    "value",
    [
        {"b2": B2, "W1": W1, "b1": B1, "W2": W2},
        {"gradient": {"b2": B2, "W1": W1, "b1": B1, "W2": W2}, "phi": []},
        MappingProxyType({"params": {"b1": B1, "b2": B2, "W1": W1, "W2": W2}}),
        {"0.weight": W1, "0.bias": B1, "2.weight": W2, "2.bias": B2},
        {"params": {"Dense_0": {"bias": B1, "kernel": W1}, "Dense_1": {"bias": B2, "kernel": W2}}},
        Parameters(b2=B2, W1=W1, b1=B1, W2=W2),
        deque([W1, B1, W2, B2]),
        (leaf for leaf in (W1, B1, W2, B2)),
        {1: W1, 2: B1, 3: W2, 4: B2}.values(),
    ],
)
def test_an_answer_may_be_a_dict_or_any_iterable(value):
    assert given(value, NET) == GRADIENT


def test_a_dict_by_name_with_another_form_is_judged_as_a_list_is():
    transposed = {"b1": B1, "b2": B2, "W2": W2, "W1": W1.T}
    assert given(transposed, NET) == [W1.T.tolist(), B1.tolist(), W2.tolist(), B2.tolist()]
    swapped = {"b1": B2, "b2": B1, "W1": W1, "W2": W2}
    assert row_of(BY_ID[NET.id], read_answer(swapped, NET)).status == "fail"


def test_an_answer_may_be_an_array_alone_where_theta_is_one():
    scalar = BY_ID["maml-scalar"].case
    assert given(np.array([1.0, 2.0]), CASE) == given({"gradient": np.array([1.0, 2.0])}, CASE) == [[1.0, 2.0]]
    assert given(2.5, scalar) == given(np.float64(2.5), scalar) == given([2.5], scalar) == [2.5]
    assert given(np.array([2.5]), scalar) == given([np.array([2.5])], scalar) == given({"t": [2.5]}, scalar) == [2.5]
    assert given([np.array([[2.5]])], scalar) == [[[2.5]]] and given([1.0, [2.0]], scalar) == [1.0, 2.0]
    assert given({"t": [1.0, 2.0]}, CASE) == [[1.0, 2.0]] and read_answer({"t": [1.0, 2.0]}, CASE).inside == {}
    assert read_answer({"phi": np.ones(2)}, CASE).problem.startswith("returned a dict with keys ['phi']")
    assert read_answer(np.ones((2, 3)), NET).problem.startswith("returned ndarray")


def test_a_tensor_is_detached_and_brought_to_the_cpu():
    class Tensor:
        def __init__(self, value):
            self.value = value

        def detach(self):
            return Detached(self.value)

    class Detached(Tensor):
        def cpu(self):
            return self.value

    assert read_answer([Tensor(1.5)], CASE) == ([1.5], {}, "float64", "", False, None)


# --- One row ---


@pytest.mark.parametrize(
    "error, digits",
    [(0, 16), (1e-17, 16), (1e-16, 16), (1e-3, 3), (0.5, -log10(0.5)), (1, 0), (100, 0), (1e308, 0)],
)
def test_digits_are_those_of_the_relative_error(error, digits):
    assert row_of(vector(gradient=[[0.0]], scale=[1.0]), answer([error])).digits == digits
    assert row_of(vector(gradient=[[0.0]], scale=[0.5]), answer([error / 2])).digits == digits


def test_an_array_that_is_longer_than_its_scale_has_an_error_in_its_length():
    """Exact vectors have the scale 1, whatever their size."""
    assert row_of(vector(gradient=[[300, 400]]), answer([300, 405])).digits == pytest.approx(2)
    assert row_of(vector(gradient=[[300, 400]], scale=[5000.0]), answer([300, 405])).digits == pytest.approx(3)


def test_every_array_has_an_error_in_its_own_scale():
    v = vector(gradient=[[3, 4], [[1, 1]], 7], scale=[100.0, 0.5, 10.0])
    assert row_of(v, answer([6, 8], [[1, 1]], -1)).message.endswith("correct digits: W 1.3, b 16.0, c 0.1")
    with pytest.raises(ValueError):
        row_of(dataclasses.replace(v, scale=[2.0, 0.5]), answer(*v.gradient))


@pytest.mark.parametrize(
    "given, expected",
    [
        (Answer(problem="not yet", skipped=True), ("skip", 0, "not yet")),
        (Answer(problem="raised"), ("error", 0, "raised")),
        (answer([3, 4], [0], [0]), ("fail", 0, "3 arrays, expected 2: W, b")),
        (answer([3, np.nan], [0]), ("error", 0, "W has NaN or infinity")),
        (answer([3, 4], [0]), ("pass", 16, "")),
        (answer([3, 4 + 2**-37], [0]), ("pass", 40 * log10(2), "")),
        (answer([3, 4 + 2**-36], [0]), ("fail", 39 * log10(2), "right to 11.7 digits only")),
        (answer([3, 4 + 2**-36], [0], dtype="float32"), ("pass", 39 * log10(2), "")),
        (answer([3, 4 + 2**-14], [0], dtype="float32"), ("pass", 17 * log10(2), "")),
        (answer([3, 4], [2**-17], dtype="float32"), ("pass", 17 * log10(2), "")),
        (answer([3, 4], [2**-17]), ("fail", 17 * log10(2), "right to 5.1 digits only")),
        (
            answer([3, 4], [2**-16]),
            ("fail", 16 * log10(2), "cosine 1.000, norm ratio 1, correct digits: W 16.0, b 4.8"),
        ),
        (
            answer([4, 2], [0.5]),
            ("fail", log10(2), "cosine 0.889, norm ratio 0.9, correct digits: W 0.6, b 0.3"),
        ),
        (answer([0, 0], [0]), ("fail", log10(8 / 5), "norm ratio 0, correct digits: W 0.2, b 16.0")),
    ],
)
def test_a_row_says_how_right_an_answer_is(given, expected):
    v = vector(gradient=[[3, 4], [0]], scale=[8.0, 1.0], float32=2**-17, float64=2**-40)
    status, digits, message = expected
    assert row_of(v, given) == ("v", "maml", "tanh", status, digits and pytest.approx(digits, rel=1e-9), message)


def test_the_tolerance_of_float32_is_one_in_a_million_at_least():
    v = vector(gradient=[[0, 0]])
    assert row_of(v, answer([0, 1e-6])).message == "right to 6.0 digits only"
    assert row_of(v, answer([0, 1.1e-6])).message == "correct digits: W 6.0"
    assert row_of(v, answer([0, 1e-7])).message == "right to 7.0 digits only"
    assert row_of(v, answer([0, 0])).status == "pass"


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
    row = row_of(vector(gradient=[np.ones((2, 3)), np.ones(3)]), answer(*map(np.ones, shapes)))
    assert (row.status, row.message) == ("fail" if message else "pass", message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_array_with_a_value_that_is_no_number_is_named(value):
    row = row_of(vector(gradient=[[1, 2], [3]]), answer([1, 2], [value]))
    assert (row.status, row.message) == ("error", "b has NaN or infinity")


# --- The verdict on an algorithm ---


def test_every_algorithm_has_its_verdict_in_the_order_of_the_answers():
    pairs = [
        (vector("a", algorithm="reptile"), answer([3, 4])),
        (vector("b"), Answer(problem="no")),
        (vector("c", algorithm="reptile"), answer([3, 4])),
    ]
    report = judge(iter(pairs), "the title")
    assert (report.title, [r.id for r in report.rows]) == ("the title", ["a", "b", "c"])
    assert [(v.algorithm, v.kind) for v in report.verdicts] == [("reptile", "pass"), ("maml", "error")]
    assert judge([]).title == "refmeta check"


SKIPPED = Answer(problem="declined", skipped=True)
FAR, CLOSE, NEAR = answer([3, 5]), answer([3, 4 + 2**-20]), answer([3, 4 + 2**-40])
WIRING = (
    "the harness is not wired up: even the simplest case, b, fails ({}). It does not depend on the inner loop: look at "
    "how the case is read and how the gradient is returned. Nothing else is judged."
)
FLOAT32 = "right in float32, but float64 was asked for: some step is in float32."
ROUNDABOUT = "right to fewer digits than float64 has: some step loses digits, or is computed by differences."
NEARLY = "pass; 13.9 digits at least, but not exact where nothing need be rounded: is a sum computed from a mean?"
ALONE = "one vector, no diagnosis: cosine 0.995, norm ratio 1.17, correct digits: W 0.7"
NO_GUESS = "wrong, and no known mistake or pair of mistakes explains all of it; no guess is made."
ASK = '\nReturn {"gradient": …, "phi": …}, with φ_0 … φ_K of every task, and the report names the first wrong step.'


@pytest.mark.parametrize(
    "answers, kind, text",
    [
        ([SKIPPED, SKIPPED._replace(problem="later")], "none", "not checked: declined"),
        ([answer([3, 4]), SKIPPED], "pass", "pass; exact on 1, at least 16.0 digits on the rest"),
        ([answer([3, 4]), answer([3, 4])], "pass", "pass; exact on 1, at least 16.0 digits on the rest"),
        ([answer([3, 4 + 2**-44]), answer([3, 4])], "pass", NEARLY),
        ([answer([3, 4]), answer([3, 4 + 2**-44]), SKIPPED], "pass", NEARLY),
        ([answer([3, 4 + 2**-44]), NEAR, answer([3, 4])], "precision", ROUNDABOUT),
        ([FAR, answer([3, 4 + 2**-44])], "unexplained", NO_GUESS),
        ([answer([3, 4 + 2**-44], dtype="float32")], "pass", NEARLY),
        ([answer([3, 4]), answer([3, 4 + 2**-50])], "pass", "pass; exact on 1, at least 15.8 digits on the rest"),
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
        ([FAR], "unexplained", ALONE),
        ([FAR, SKIPPED, Answer(problem="no")], "unexplained", ALONE),
        ([FAR, answer([3, 4]), Answer(problem="no")], "unexplained", NO_GUESS),
    ],
)
def test_without_a_known_mistake_the_verdict_is_one_of_these(answers, kind, text):
    vectors = vector("a"), vector("b", float64=2**-48, tier="canary"), vector("c")
    found = verdict_of(*zip(vectors, answers, strict=False))
    assert found[:2] == ("maml", kind) and found.text == text + ASK * (text == NO_GUESS) and not found.explanations


WRONG = {"first_order": [[5, 3]]}
FIRST_ORDER = Explanation(("first_order",))


@pytest.mark.parametrize(
    "answers, kind",
    [
        ([answer([5, 3]), answer([5, 3])], "bug"),
        ([answer([5, 3]), Answer(problem="no")], "wiring"),
        ([answer([5, 3]), SKIPPED], "unexplained"),
        ([answer([5, 3]), answer([5, 3]), Answer(problem="no")], "bug"),
        ([answer([5, 3]), answer([5, 3]), answer([3])], "form"),
        ([answer([5, 3]), answer([5, 3]), answer([5, np.nan])], "form"),
        ([answer([5, 3]), answer([3, 4])], "unexplained"),
        ([answer([5, 3]), FAR], "unexplained"),
        ([answer([3, 4]), answer([3])], "wiring"),
        ([answer([3, 4]), Answer(problem="no")], "wiring"),
        ([answer([5, 3], dtype="float32"), answer([5 + 2**-20, 3], dtype="float32")], "bug"),
    ],
)
def test_an_explanation_is_sought_of_all_gradients_that_came_if_one_of_them_is_wrong(answers, kind):
    """With one, a canary that fails is no sign of bad wiring; the second vector is a canary."""
    vectors = [vector(id, suspects=WRONG, tier=tier) for id, tier in (("a", "tanh"), ("b", "canary"), ("c", "tanh"))]
    verdict = verdict_of(*zip(vectors, answers, strict=False))
    assert verdict.kind == kind
    assert verdict.explanations == ((FIRST_ORDER,) if kind == "bug" else ())
    assert (verdict.text == describe([FIRST_ORDER])) is (kind == "bug")


QUADRATICS = [BY_ID["maml-quadratic-k2-t2"], BY_ID["maml-quadratic-k3-t3"]]


def times(factor, vectors=QUADRATICS):
    """The verdict on the right answers times a factor of the number of tasks."""
    return verdict_of(*((v, answer(*(factor(len(v.per_task)) * leaf for leaf in v.gradient))) for v in vectors))


@pytest.mark.parametrize(
    "factor, kind, name",
    [(lambda n: n, "convention", "tasks"), (lambda n: -1 / n, "bug", "1/tasks"), (lambda n: -1, "bug", "")],
)
def test_a_factor_alone_is_a_convention_unless_it_is_negative(factor, kind, name):
    verdict = times(factor)
    assert (verdict.kind, verdict.explanations[0]) == (kind, Explanation((), "all", Factor(np.sign(factor(2)), name)))


def test_the_first_line_of_a_failure_is_the_first_thing_wrong():
    verdicts = [
        Verdict("maml", "pass", "pass; all"),
        Verdict("fomaml", "none", "not checked: no"),
        Verdict("anil", "bug", "the title.\nCause: this."),
        Verdict("joint", "bug", "another."),
    ]
    report, cause = Report([row("fail")], verdicts), RuntimeError()
    with pytest.raises(AssertionError) as raised:
        report.raise_on_failure(cause)
    assert str(raised.value) == f"anil: the title.\n\n{report}" and raised.value.__cause__ is cause
    with pytest.raises(AssertionError, match=r"\Afomaml: not checked: no\n\nrefmeta check: FAILED\n\n"):
        Report([row("skip")], verdicts[1:2]).raise_on_failure()


def test_a_negative_factor_of_digits_is_no_convention_either():
    verdict = times(lambda n: -0.3)
    assert verdict.kind == "bug" and verdict.explanations == (Explanation((), "all", Factor(-0.3)),)


@pytest.mark.parametrize(
    "factor, said",
    [
        (lambda n: 1 / n, "it is 1/tasks times the answer"),
        (lambda n: n, "it is tasks times the answer"),
        (lambda n: -1, "it is -1 times the answer"),
        (lambda n: 0.3, "cosine 1.000, norm ratio 0.3, correct digits: t 0.2"),
        (lambda n: 1 / n + 1e-4, "cosine 1.000, norm ratio 0.5, correct digits: t 0.3"),
    ],
)
def test_of_one_vector_a_factor_with_a_name_is_said_and_no_diagnosis_made(factor, said):
    verdict = times(factor, QUADRATICS[:1])
    assert verdict == Verdict("maml", "unexplained", f"one vector, no diagnosis: {said}")


def test_of_one_vector_all_factors_with_the_right_size_are_said():
    v = dataclasses.replace(BY_ID["reptile-quadratic-k2-t3"], gradient=[np.array([1.0, 2.0, 4.0])])
    v = dataclasses.replace(
        v, case=dataclasses.replace(v.case, alpha=1 / 3), per_task=[{"gradient": [v.gradient[0] / 3]}] * 3
    )
    verdict = verdict_of((v, answer([1 / 3, 2 / 3, 4 / 3])))
    assert verdict.text == "one vector, no diagnosis: it is 1/tasks or alpha times the answer"


@pytest.mark.parametrize("id", list(BY_ID))
def test_one_vector_names_no_mistake(id):
    """Each known mistake on each vector alone; of zeros what is certain is said."""
    v = BY_ID[id]
    for suspect in v.suspects.values():
        got = [sum(leaves) / v.case.divisor for leaves in zip(*suspect, strict=True)]
        verdict = verdict_of((v, answer(*got)))
        assert verdict.explanations == (() if any(map(np.any, got)) else (ZERO,)) and verdict.kind != "pass"


def test_zeros_are_said_of_one_vector_too():
    v = BY_ID["maml-quadratic-k2-t2"]
    verdict = verdict_of((v, answer(0 * v.gradient[0])))
    assert (verdict.kind, verdict.explanations, verdict.text) == ("bug", (ZERO,), describe([ZERO]))


def test_the_first_of_two_failing_canaries_is_named():
    pairs = [(vector(name, tier="canary"), Answer(problem=f"{name} is missing")) for name in ("a", "b")]
    assert "even the simplest case, a, fails (a is missing)" in verdict_of(*pairs).text


def test_what_may_be_a_convention_is_no_bug():
    v = QUADRATICS[0]
    parts = [[0.3 * leaf for leaf in task["gradient"]] for task in v.per_task]
    pair = dataclasses.replace(v, suspects={"first_order": parts}), answer(*(0.3 * leaf for leaf in v.gradient))
    verdict = verdict_of(pair, pair)
    assert verdict.kind == "convention" and verdict.explanations[1:] == (FIRST_ORDER,)


def test_a_lost_task_is_a_bug():
    verdict = verdict_of(*((v, answer(*v.per_task[-1]["gradient"])) for v in QUADRATICS))
    assert (verdict.kind, verdict.explanations[0]) == ("bug", Explanation((), "last"))


@pytest.mark.parametrize("got, said", [([5, 3], describe([FIRST_ORDER])), ([3, 5], NO_GUESS)])
def test_the_first_wrong_intermediate_is_said_before_the_verdict(got, said):
    v = vector(per_task=[{"phi": [[np.ones(2)], [np.zeros(2)]]}], suspects=WRONG)
    place = "φ_1 is the first wrong value: look at inner step 1 (task 1 of v): "
    pair = v, answer(got, inside={"phi": [[[np.ones(2)], [np.ones(2)]]]})
    assert verdict_of(pair, pair).text == place + said


@pytest.mark.parametrize("digits, text", [(5, FLOAT32), (9.99, FLOAT32), (10.01, ROUNDABOUT), (12.9, ROUNDABOUT)])
def test_float32_has_less_than_ten_digits(digits, text):
    off = vector(float32=1e-4), answer([3, 4 + 5 * 10**-digits])
    assert verdict_of(off, (vector(float32=1e-4), answer([3, 4 + 1e-15]))).text == text


def test_ten_digits_are_more_than_those_of_float32():
    assert verdict_of((vector(gradient=[[0.0]]), answer([1e-10]))).text == ROUNDABOUT


def test_nothing_explains_answers_whose_squares_overflow():
    rng = np.random.default_rng(0)

    def harness(case):
        return [1e160 * rng.normal(size=leaf.shape) for leaf in case.theta]

    assert check(harness, algorithms=["joint"]).verdicts[0].kind == "unexplained"


# --- Saying it ---

CONVENTION = ": a convention, not a mistake, but not the one that was asked for."
OVERWRITTEN = "\nCause: a loss or gradient is overwritten, or cleared, inside the loop over tasks."
MEAN = Factor(1, "1/tasks")
A, B = MISTAKES["first_order"], MISTAKES["product_reversed"]
OF_A, OF_B = f"Cause: {A.cause}.\nSeen in: {A.seen}. Ledger: B1.", f"Cause: {B.cause}.\nSeen in: no public case known."
ONLY_A = f"{A.title}.\n{OF_A}"
FIRST, LAST = (f"only the {which} task counts (B4, B5)" for which in ("first", "last"))
MANY_A = "wrong in one of {} ways that the answers do not tell apart, so none is named."
WEIGHTED = "; or ".join(f"{A.title} and the tasks are weighted 1, {w}" for w in range(6))


@pytest.mark.parametrize(
    "found, text",
    [
        (
            [(("zero",),)],
            "every gradient is zero: it went to a copy (B13, B14). PyTorch: deepcopy, load_state_dict and .data cut θ "
            "off; higher: copy_initial_weights=False. JAX, TensorFlow: the gradient is taken in other variables than "
            "θ.",
        ),
        ([((A.id,),)], ONLY_A),
        ([((A.id, B.id),)], f"{A.title}; {B.title}.\n{OF_A}\n{OF_B}"),
        ([((B.id,), "last")], f"{B.title}; only the last task counts (B4, B5).\n{OF_B}"),
        ([((B.id,), "all", MEAN)], f"{B.title}; the result is multiplied by 1/tasks.\n{OF_B}"),
        ([((), "all", MEAN)], f"all else is right, but the result is multiplied by 1/tasks{CONVENTION}"),
        ([((), "all", Factor(-1))], "the result is multiplied by -1."),
        ([((), "all", Factor(-1, "1/tasks"))], "the result is multiplied by -1/tasks."),
        ([((), "all", Factor(-0.25))], "the result is multiplied by -0.25."),
        (
            [((), "all but the last", Factor(-1))],
            f"all but the last task count (B4, B5); the result is multiplied by -1.{OVERWRITTEN}",
        ),
        ([((), "all but the first")], f"all but the first task count (B4, B5).{OVERWRITTEN}"),
        (
            [((), "first", MEAN)],
            f"only the first task counts (B4, B5); the result is multiplied by 1/tasks.{OVERWRITTEN}",
        ),
        ([((), (1.0, 2.0))], f"the tasks are weighted 1, 2.{OVERWRITTEN}"),
        ([((A.id,),), ((B.id,),)], f"{ONLY_A}\nThe answers cannot tell it from: {B.title}."),
        (
            [((A.id,),), ((B.id, A.id),), ((), "last")],
            f"{ONLY_A}\nThe answers cannot tell it from: {B.title} and {A.title}; or {LAST}.",
        ),
        (
            [((A.id,),), ((B.id, A.id),), ((), "last"), ((B.id,),)],
            "wrong in one of 4 ways that the answers do not tell apart, so none is named.\n"
            f"The ways: {A.title}; or {B.title} and {A.title}; or {LAST}; or {B.title}.",
        ),
        ([((A.id,), (1.0, float(w))) for w in range(6)], f"{MANY_A.format(6)}\nThe ways: {WEIGHTED}."),
        ([((A.id,), (1.0, float(w))) for w in range(7)], MANY_A.format(7)),
        (
            [((A.id,),), ((B.id,), "last"), ((B.id,), "first")],
            f"{ONLY_A}\nThe answers cannot tell it from: {B.title} and {LAST}; or {B.title} and {FIRST}.",
        ),
    ],
)
def test_an_explanation_in_words(found, text):
    assert describe([Explanation(*e) for e in found]) == text


# --- Intermediate values ---

INSIDE = "phi", "inner_gradient", "adjoint"
STEPS = {key: [[np.array([3.0, 4.0])] for _ in range(5)] for key in INSIDE}
TWO_TASKS = [STEPS, STEPS]


def but(at, *steps):
    """Two tasks' steps, these of task `at` wrong."""
    return [[[[0, 0]] if (i, k) in [(at, s) for s in steps] else [[3, 4]] for k in range(5)] for i in range(2)]


def place_of(*pairs):
    """What the verdict says before it makes no guess."""
    text = verdict_of(*pairs, (vector("right"), answer([3, 4]))).text
    assert text.endswith((NO_GUESS, NO_GUESS + ASK))
    return text.removesuffix(ASK).removesuffix(NO_GUESS)


PHI_2 = "φ_2 is the first wrong value: look at inner step 2"


@pytest.mark.parametrize(
    "inside, place",
    [
        (None, ""),
        ({}, ""),
        ({key: but(0) for key in INSIDE}, ""),
        ({"phi": but(0, 2, 3, 4)}, f"{PHI_2} (task 1 of v): "),
        ({"phi": but(1, 2, 3)}, f"{PHI_2} (task 2 of v): "),
        ({"phi": but(1, 2), "inner_gradient": but(1, 1), "adjoint": but(1, 3)}, f"{PHI_2} (task 2 of v): "),
        (
            {"inner_gradient": but(0, 1, 3, 4)},
            "φ_1 is right, and the inner gradient there is the first wrong value (task 1 of v): ",
        ),
        (
            {"phi": but(0), "adjoint": but(0, 0, 1, 3)},
            "all φ are right; on the way back ∂L_Q/∂φ_3 is the first wrong value (task 1 of v): ",
        ),
        ({"phi": but(0)[:1]}, "phi of task 2 in v cannot be read: list index out of range. "),
        ({"phi": {1: []}}, "phi of task 1 in v cannot be read: 0. "),
        ({"adjoint": 1}, "adjoint of task 1 in v cannot be read: 'int' object is not subscriptable. "),
    ],
)
def test_the_first_wrong_intermediate_is_found(inside, place):
    assert place_of((vector(per_task=TWO_TASKS), answer([0, 1], inside=inside))) == place


class Broken:
    def __array__(self, *_, **__):
        raise RuntimeError("lost on the device")


@pytest.mark.parametrize("steps", [[[]], [[[1, 2, 3]]], [[Broken()]]], ids=["none", "three", "broken"])
def test_an_intermediate_that_is_no_list_of_such_arrays_is_said(steps):
    pair = vector(per_task=TWO_TASKS), answer([0, 1], inside={"phi": [steps] * 2})
    assert place_of(pair).startswith("phi of task 1 in v cannot be read: ")


def test_an_intermediate_that_the_vector_has_not_is_not_looked_at():
    v = vector(per_task=[{"phi": STEPS["phi"]}])
    assert place_of((v, answer([0, 1], inside={"adjoint": but(0, 1)}))) == ""


def test_the_first_vector_with_a_wrong_intermediate_is_named():
    insides = {"a": but(0), "b": but(0, 2), "c": but(0, 1)}
    pairs = [(vector(id, per_task=TWO_TASKS), answer([0, 1], inside={"phi": phi})) for id, phi in insides.items()]
    assert place_of(*pairs) == f"{PHI_2} (task 1 of b): "


def is_close(off, expected=(0.0, 0.0), dtype="float64", **tolerance):
    """Whether an intermediate value that is off by so much counts as right."""
    v = vector(per_task=[{"phi": [[np.array([number]) for number in expected]]}], **tolerance)
    got = [[expected[0] + off], [expected[1]]]
    return place_of((v, answer([0, 1], dtype=dtype, inside={"phi": [[got]]}))) == ""


@pytest.mark.parametrize("expected, size", [([0.0, 0.0], 1), ([3.0, 4.0], 6)])
def test_intermediates_are_close_within_a_hundred_times_the_tolerance(expected, size):
    limit = 100 * 2**-30 * size
    assert is_close(limit, expected, float64=2**-30) and not is_close(1.001 * limit, expected, float64=2**-30)


@pytest.mark.parametrize("dtype, limit", [("float32", 1e-5), ("float64", 1e-11)])
def test_intermediates_are_close_within_the_rounding_of_their_dtype(dtype, limit):
    assert is_close(0.99 * limit, dtype=dtype) and not is_close(1.01 * limit, dtype=dtype)
