"""The benchmark measures the same work everywhere, and says so when it does not. No time is asserted."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ALGORITHMS, assert_same

import refmeta
from refmeta.fast.stacked import copies, stack
from refmeta.models import MLP, squared_error
from tests.bench import loop, measure, page, pearlmutter, promises, serving
from tests.bench.__main__ import main
from tests.bench.measure import own, side_by_side
from tests.bench.workers.own import peak_megabytes, training
from tests.bench.workloads import FOUR, WORKLOADS, write

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/performance.md"
TINY = WORKLOADS["S1"]._replace(net=MLP((1, 3, 1)), tasks=2, shots=3)

# A worker with the gradient of `recorded`, times FACTOR.
FAKE = """
from tests.bench import serving
from tests.bench.workers.own import WAYS
def prepare(case):
    convert, gradient, step = WAYS["stacked"](case)
    return convert, lambda data: [FACTOR * g for g in gradient(data)], step
serving.serve("fake", "1", prepare)
"""


def fake(factor=1):
    return [sys.executable, "-c", FAKE.replace("FACTOR", str(factor))]


@pytest.mark.parametrize("algorithm", FOUR)
def test_the_gradients_by_hand_are_right(algorithm):
    for widths in ((1, 5, 4, 1), (2, 3, 2)):
        for repeated in (True, False):
            rng = np.random.default_rng(0)
            net = MLP(widths)
            theta = [leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in net.init(rng)]

            def batch(rng=rng, widths=widths):
                return rng.normal(size=(6, widths[0])), rng.normal(size=(6, widths[-1]))

            tasks = [([batch()] * 3 if repeated else [batch() for _ in range(3)], batch()) for _ in range(4)]
            supports, query = stack(tasks)
            supports = [supports[0]] * 3 if repeated else supports
            got = getattr(pearlmutter, algorithm)(copies(theta, 4), supports, query, 0.3)
            assert_same(got, getattr(refmeta, algorithm)(squared_error(net), theta, tasks, 0.3), digits=13)


def test_every_case_is_the_same_work_for_its_workers():
    commands = [own(way) for way in ("recorded", "by hand", "stacked", "loop")]
    small = {name: work._replace(tasks=2, steps=min(work.steps, 2), shots=5) for name, work in WORKLOADS.items()}
    wanted = [(name, work, a) for name, work in small.items() if name in ("S2", "S4", "C1") for a in work.algorithms]
    rows = side_by_side(commands, wanted, 0.01, 1)
    assert len(rows) == 4 * 4 + 4 + 2 * 3  # by hand there are no convolutions
    assert all(row["ms"] > 0 and row["first_ms"] > 0 for row in rows)
    assert all(row["difference"] < (1e-5 if row["work"] == "C1" else 1e-13) for row in rows)


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_worker_with_another_gradient_is_refused(factor):
    with pytest.raises(ValueError, match="fake, tiny maml: another gradient"):
        side_by_side([own("recorded"), fake(f"float('{factor}')")], [("tiny", TINY, "maml")], 0.01, 1)


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
        side_by_side([worker], [("tiny", TINY, "maml")], 0.01, 1)


def test_the_command_prints_ratios_and_verdicts(capsys):
    code = main(["--cases", "S3", "--algorithms", "reptile", "--seconds", "0.05"])
    out = capsys.readouterr().out
    assert re.search(r"S3 +reptile +\d+\.\d\d +\d", out) and "of the hand-derived gradient's time, at most 1.25" in out
    assert code == ("REGRESSION" in out)


def rows(ours, hand, **peers):
    times = {"refmeta, recorded": ours, "by hand": hand, **peers}
    return [
        {"work": "S1", "algorithm": "maml", "name": n, "version": "1", "ms": ms, "first_ms": 5}
        for n, ms in times.items()
    ]


@pytest.mark.parametrize("factor, regressed", [(0.8, False), (1.49, False), (1.51, True)])
def test_a_regression_is_one_and_a_half_times_what_was_measured(factor, regressed):
    ((text, found),) = promises.judged(rows(factor * promises.MEASURED["S1", "maml"], 1))
    assert found == ("REGRESSION" in text) == regressed


def test_a_regression_fails(monkeypatch, capsys):
    monkeypatch.setitem(promises.MEASURED, ("S3", "reptile"), 1e-3)
    assert main(["--cases", "S3", "--algorithms", "reptile", "--seconds", "0.01"]) == 1
    assert "a REGRESSION, it was 0.001" in capsys.readouterr().out


def test_a_promise_that_is_not_kept_is_said():
    found = promises.judged(rows(1.6, 1, **{"learn2learn": 40, "torch.func": 4.7, "JAX jit": 0.9}))
    assert [text.split()[2] for text, _ in found] == ["1.60", "learn2learn", "torch.func", "JAX"]
    assert ["NOT MET" in text for text, _ in found] == [True, False, True, False]


def test_every_case_by_hand_has_a_ratio_it_must_not_fall_behind():
    by_hand = {(name, a) for name, work in WORKLOADS.items() if name != "C1" for a in work.algorithms}
    assert by_hand == promises.MEASURED.keys()


@pytest.mark.parametrize(
    "options",
    [
        ["--cases", "S9"],
        ["--algorithms", "sgd"],
        ["--cases", "S5", "--algorithms", "anil"],
        ["--seconds", "0"],
        ["--threads", "0"],
        ["--page", "/no/such/page.md"],
        ["--page", str(ROOT / "docs/checking.md")],
        ["--cases", "S3", "--peer", "/no/such/program"],
    ],
)
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert "python -m tests.bench: error: " in capsys.readouterr().err


OPTION = st.sampled_from(["--cases", "--algorithms", "--seconds", "--threads", "--page"])
VALUE = st.sampled_from(["S3", "maml", "S3,S4", "S3,", "1", "-1", "0.1", "nan", "inf", "1e999", "9" * 5000, "\0", "."])


@settings(max_examples=15)
@given(st.lists(st.tuples(OPTION, VALUE | st.text(max_size=9)), max_size=3))
def test_any_options_are_refused_or_reach_the_workers(pairs):
    words = [f"{option}={value}" for option, value in pairs]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--peer", "/no/such/program"])


def test_the_loop_says_what_is_beyond_the_gradient(capsys):
    loop.main(20)
    printed = capsys.readouterr().out
    assert {"the gradient", "the outer step", "drawing tasks", "training", "evaluation"} <= {
        line[:16].strip() for line in printed.splitlines()
    }
    assert printed.count(", at most ") == 2


def test_training_in_a_worker_learns(tmp_path):
    case = serving.load(str(write(WORKLOADS["S1"], "maml", tmp_path / "work.npz")))
    short, long = (training(None, case, n) for n in (20, 600))
    assert long < short


def test_a_worker_that_fails_to_train_is_named():
    with pytest.raises(ValueError, match=r"worker .*expected a line of JSON"):
        measure.whole_process([sys.executable, "-c", "pass"], 1, 1, 1)


def test_a_replay_has_its_functions_and_memory_grows_with_the_steps():
    spent = {name: calls for name, calls, us in measure.alone("profile", TINY) if us > 0}
    assert {"matmul_nt", "affine"} < spent.keys() and min(spent.values()) >= 1
    assert 0 < peak_megabytes("stacked", TINY) < peak_megabytes("stacked", TINY._replace(steps=20))


def test_the_page_is_renewed_between_its_marks_only(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "figures").mkdir()
    path = tmp_path / "page.md"
    (one, two), (three, four) = page.BRIEF, page.MARKS
    path.write_text(f"before\n{one}\nold\n{two}\nbetween\n{three}\nold\n{four}\nafter\n")
    measured = [{**row, "algorithm": a} for a in ("maml", "anil") for row in rows(2.0, 2.0, fake=4.0)]
    sizes = page.Sizes(TINY, adapting=("S1",), iterations=1, rounds=1, steps=(1, 2), tasks=(1, 2))
    page.renew(path, measured, [fake()], 0.01, 1, lambda text: None, sizes)
    renewed = path.read_text()
    assert renewed.startswith("before\n") and renewed.endswith("\nafter\n") and "old" not in renewed
    assert f"{two}\nbetween\n{three}\n" in renewed and "| fake ÷ refmeta | 2 |" in renewed
    assert "| S1 | maml | 1.00 | 2 | 2 |" in renewed and "* S1 maml: 1.00 of the hand-derived" in renewed
    for line in (
        r"1 thread,\n.*; fake 1\.",
        r"\| fake \| [\d.]+ \| [\d.]+ \|",  # a whole process
        r"\| fake \| 5 \|",  # the first gradient
        r"\| `import refmeta`, s \| 0\.\d{3} \|",
        r"on the disk, MB \| \d\d+ \|",
        r"\| inner steps \| 1 \| 2 \|\n.*\n\| by hand \| 0\.0\d+ \| 0\.0\d+ \|",
        r"\| S1 \| 1\.00 \| [\d.]+ \|",  # ANIL's economy
        r"\| tasks \| 1 \| 2 \|\n.*\n(\| .* \| [\d.]+ \| [\d.]+ \|\n){4}\| refmeta, loop \|",
        r"\| `affine` \| \d \| \d+ \|",
    ):
        assert re.search(line, renewed), line
    drawn = (tmp_path / "figures/performance.svg").read_text()
    assert all(
        drawn.count(f"<!-- {said} -->") == n for said, n in {"tasks": 2, "recorded": 4, "stacked adjoint": 2}.items()
    )


def first_table(text, mark):
    """The first table after a mark, as rows of cells."""
    lines = text[text.index(mark) :].partition("\n|")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def brief_and_expected(text):
    return first_table(text, page.BRIEF[0]), page.brief(first_table(text, page.MARKS[0]))


def test_the_page_begins_with_the_measured_numbers_in_brief():
    brief, expected = brief_and_expected(PAGE.read_text())
    assert brief == expected and len(brief) > 5 and len(brief[0]) > 4


def test_a_brief_table_with_other_numbers_is_seen():
    brief, expected = brief_and_expected(PAGE.read_text().replace(" 1.14 ", " 1.15 ", 1))
    assert brief != expected


def test_the_program_on_the_page_runs():
    program = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1]
    scope = {}
    exec(program, scope)
    assert all(np.isfinite(leaf).all() for leaf in scope["theta"])


def test_the_page_names_what_there_is():
    text = PAGE.read_text()
    named = re.findall(r"`((?:tests|refmeta)/[\w/]+(?:\.py)?)", text)
    named += [f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (tests\.bench\.[\w.]+)", text)]
    assert len(named) > 5 and all((ROOT / path).exists() for path in named), named
    assert all(mark in text for mark in page.BRIEF + page.MARKS)
    assert callable(refmeta.fast.keep_freed_memory) and set(FOUR) < {a.__name__ for a in ALGORITHMS}
