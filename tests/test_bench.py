"""The benchmark measures the same work everywhere, and says so when it does not. No time is asserted."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from problems import ALGORITHMS, assert_same

import refmeta
from refmeta.__main__ import main
from refmeta.fast.stacked import copies, stack
from refmeta.lab.bench import byhand, command, measure, workers
from refmeta.lab.bench.cases import CASES, FOUR, MEASURED
from refmeta.models import MLP, squared_error

PAGE = Path(__file__).parent.parent / "docs/performance.md"
TINY = CASES["S1"]._replace(net=MLP((1, 3, 1)), tasks=2, shots=3)

# A worker with the gradient of `recorded`, times FACTOR, that says it takes 1 ms; MS where that is not so.
FAKE = """
import json, sys, numpy as np
from refmeta.lab.bench import serving, workers
if "train" in sys.argv: sys.exit(FAILS)
def prepare(case):
    convert, gradient, step = workers.WAYS["stacked"](case)
    return convert, lambda data: [FACTOR * g for g in gradient(data)], step
serving.serve("fake", "1", prepare)
"""


def fake(factor=1, fails=0):
    return [sys.executable, "-c", FAKE.replace("FACTOR", str(factor)).replace("FAILS", str(fails))]


@pytest.mark.parametrize("repeated", [True, False])
@pytest.mark.parametrize("widths", [(1, 5, 4, 1), (2, 3, 2)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_gradients_by_hand_are_right(algorithm, widths, repeated):
    rng = np.random.default_rng(0)
    net = MLP(widths)
    theta = [leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in net.init(rng)]

    def batch():
        return rng.normal(size=(6, widths[0])), rng.normal(size=(6, widths[-1]))

    tasks = [([batch()] * 3 if repeated else [batch() for _ in range(3)], batch()) for _ in range(4)]
    supports, query = stack(tasks)
    supports = [supports[0]] * 3 if repeated else supports
    got = getattr(byhand, algorithm.__name__)(copies(theta, 4), supports, query, 0.3)
    assert_same(got, algorithm(squared_error(net), theta, tasks, 0.3), digits=13)


def test_every_case_is_the_same_work_for_its_workers():
    commands = [*measure.OWN.values(), *measure.SLOWER.values()]
    small = {name: case._replace(tasks=2, steps=min(case.steps, 2), shots=5) for name, case in CASES.items()}
    wanted = [(name, case, a) for name, case in small.items() if name in ("S2", "S4", "C1") for a in case.algorithms]
    rows = measure.side_by_side(commands, wanted, 0.01, 1)
    assert len(rows) == 4 * 4 + 4 + 2 * 3  # by hand there are no convolutions
    assert all(row["ms"] > 0 and row["first_ms"] > 0 for row in rows)
    assert all(row["difference"] < (1e-5 if row["case"] == "C1" else 1e-13) for row in rows)


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_worker_with_another_gradient_is_refused(factor):
    with pytest.raises(ValueError, match="fake, tiny maml: another gradient"):
        measure.side_by_side(
            [measure.OWN["refmeta recorded"], fake(f"float('{factor}')")], [("tiny", TINY, "maml")], 0.01, 1
        )


@pytest.mark.parametrize(
    "worker, message",
    [
        (["/no/such/program"], "cannot be started"),
        ([sys.executable, "-c", "print('hello')"], "expected a line of JSON, got 'hello"),
        ([sys.executable, "-c", "pass"], "expected a line of JSON, got ''"),
        (fake("1/0"), "ZeroDivisionError"),
    ],
)
def test_a_broken_worker_is_named(worker, message):
    with pytest.raises(ValueError, match=f"(?s)worker .*{message}"):
        measure.side_by_side([worker], [("tiny", TINY, "maml")], 0.01, 1)


def test_the_command_prints_ratios_and_verdicts(capsys):
    assert main(["bench", "--cases", "S3", "--algorithms", "reptile", "--seconds", "0.05"]) in (0, 1)
    out = capsys.readouterr().out
    assert re.search(r"S3 +reptile +\d+\.\d\d +\d", out) and "of the hand-derived gradient's time, at most 2.5" in out


def rows(ours, hand, **peers):
    times = {"refmeta, recorded": ours, "by hand": hand, **peers}
    return [
        {"case": "S1", "algorithm": "maml", "name": n, "version": "1", "ms": ms, "first_ms": 5}
        for n, ms in times.items()
    ]


@pytest.mark.parametrize(
    "ratio, code", [(1.0, 0), (MEASURED["S1", "maml"] * 1.49, 0), (MEASURED["S1", "maml"] * 1.51, 1)]
)
def test_a_regression_fails(monkeypatch, capsys, ratio, code):
    monkeypatch.setattr(measure, "side_by_side", lambda *args: rows(ratio, 1))
    assert main(["bench"]) == code
    assert ("REGRESSION" in capsys.readouterr().out) == bool(code)


def test_a_promise_that_is_not_kept_is_said():
    texts = [text for text, _ in command.judged(rows(1.6, 1, **{"learn2learn": 40, "torch.func": 4.7, "JAX jit": 0.9}))]
    assert ["NOT MET" in text for text in texts] == [True, False, True, False]


def test_every_case_by_hand_has_a_ratio_it_must_not_fall_behind():
    assert MEASURED.keys() == {(name, a) for name, case in CASES.items() if name != "C1" for a in case.algorithms}


@pytest.mark.parametrize(
    "options",
    [
        ["--cases", "S9"],
        ["--algorithms", "sgd"],
        ["--cases", "S5", "--algorithms", "anil"],
        ["--seconds", "0"],
        ["--threads", "0"],
        ["--page", "/no/such/page.md"],
        ["--page", str(PAGE.parent / "checking.md")],
        ["--cases", "S3", "--peer", "/no/such/program"],
    ],
)
def test_bad_options_are_refused(options, capsys):
    assert main(["bench", *options]) == 2
    assert "refmeta bench: " in capsys.readouterr().err


def test_what_else_is_measured():
    assert measure.import_seconds("json", 1) > 0
    assert measure.peak_megabytes("adjoint", 1, 1) >= 0
    assert measure.megabytes("numpy") > 10
    assert {"matmul_nt", "affine"} < {name for name, _, _ in measure.in_a_process("profile", TINY)}
    assert measure.in_a_process("adaptation", TINY).keys() == {"maml", "anil"}
    assert measure.whole_process([fake()], 1, 2, 1)[0] > 0
    with pytest.raises(ValueError, match="failed"):
        measure.whole_process([fake(fails=3)], 1, 1, 1)


def test_training_in_a_worker_learns(tmp_path):
    from refmeta.lab.bench import serving
    from refmeta.lab.bench.cases import write

    case = serving.load(str(write(CASES["S1"], "maml", tmp_path)))
    short, long = (workers.training(None, case, n) for n in (20, 600))
    assert long < short


FAKED = {"profile": [["affine", 6, 12.0]], "adaptation": {"maml": 3.0, "anil": 2.0}}


def test_the_page_is_renewed_between_its_marks_only(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "figures").mkdir()
    text = f"before\n{command.MARKS[0]}\nold\n{command.MARKS[1]}\nafter\n"
    (tmp_path / "page.md").write_text(text)
    own = ["refmeta, recorded", "by hand"]

    def side_by_side(commands, wanted, *rest):
        return [
            {"case": n, "algorithm": a, "name": w, "version": "1", "ms": 2.0, "first_ms": 3.0}
            for n, _, a in wanted
            for w in own
        ]

    monkeypatch.setattr(measure, "side_by_side", side_by_side)
    monkeypatch.setattr(measure, "whole_process", lambda commands, *rest: [1.0] * len(commands))
    monkeypatch.setattr(measure, "peak_megabytes", lambda *args: 4.5)
    monkeypatch.setattr(measure, "in_a_process", lambda what, case: FAKED[what])
    monkeypatch.setattr(measure, "import_seconds", lambda *args: 0.1)
    assert main(["bench", "--cases", "S1", "--page", str(tmp_path / "page.md")]) == 0
    renewed = (tmp_path / "page.md").read_text()
    assert renewed.startswith("before\n") and renewed.endswith("\nafter\n") and "old" not in renewed
    assert "| S1 | maml | 1.00 | 2 |" in renewed and "| `affine` | 6 | 12 |" in renewed
    assert "| S1 | 1.00 | 1.50 |" in renewed
    assert (tmp_path / "figures/performance.png").stat().st_size > 1000


def test_the_program_on_the_page_runs():
    program = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1]
    scope = {}
    exec(program, scope)
    assert all(np.isfinite(leaf).all() for leaf in scope["theta"])


def test_the_page_names_what_there_is():
    text = PAGE.read_text()
    for path in re.findall(r"`(tests/[\w/]+|refmeta/[\w/]+\.py)", text) + re.findall(r"python (tests/\S+\.py)", text):
        assert (PAGE.parent.parent / path).exists(), path
    assert callable(refmeta.fast.keep_freed_memory) and set(FOUR) < set(dir(refmeta))
