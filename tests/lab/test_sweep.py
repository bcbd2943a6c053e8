"""Sweeps: on any executor, resumable, and nothing lost whatever dies."""

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import sweep_jobs

from refmeta.__main__ import main
from refmeta.lab import files
from refmeta.lab.sine import experiment
from refmeta.lab.sweep import Incomplete, grid, sweep
from refmeta.lab.sweep.experiment import name_of, read, table
from refmeta.lab.training import METHODS

TINY = {"iterations": [5], "tasks": [2], "test_tasks": [10], "test_steps": [(0, 1, 2)]}
FAST = ["--quick", "--iterations", "5", "--tasks", "2"]
DIVERGES = "sgd:1e200"


class Serial:
    """The least that an executor is."""

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def names(folder, pattern="*-*.json"):
    return {path.stem for path in folder.glob(pattern)}


def same_theta(folder, job):
    expected = experiment.run(*job, lambda iteration, loss: None).theta
    with np.load(folder / f"{name_of(job)}.npz") as theta:
        return [leaf.tobytes() for leaf in theta.values()] == [leaf.tobytes() for leaf in expected]


# --- Jobs ---


def test_a_grid_has_every_combination_once_all_of_a_seed_first():
    jobs = grid(range(2), method=["maml", "reptile"], alpha=[0.01, 0.1, 0.1], iterations=[7])
    assert [(c.method, c.alpha, seed) for c, seed in jobs] == [
        (method, alpha, seed) for seed in (0, 1) for method in ("maml", "reptile") for alpha in (0.01, 0.1)
    ]
    assert {c.iterations for c, _ in jobs} == {7} and {c.inner_steps for c, _ in jobs} == {1, 5}
    assert len({name_of(job) for job in jobs}) == len(jobs) == 8


def test_the_same_job_has_the_same_name_whatever_its_numbers_are_made_of():
    (mine,), (numpys,) = grid([0], alpha=[1], shots=[5]), grid(np.arange(1), alpha=np.ones(1), shots=np.full(1, 5))
    assert name_of(mine) == name_of(numpys) and re.fullmatch(r"maml-0-[0-9a-f]{12}", name_of(mine))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"alhpa": [0.1]}, "alhpa: no such setting; expected one of method, law"),
        ({"outer": "adam:0.1"}, "outer: expected a list of values, got 'adam:0.1'"),
        ({"alpha": 0.1}, "alpha: expected a list of values, got 0.1"),
        ({"shots": [2.5]}, "shots: expected int, got 2.5"),
        ({"method": ["mamml"]}, "method: expected maml or fomaml or anil or reptile or joint, got 'mamml'"),
        ({"law": ["cosine"]}, "law: expected finn or oracle or nichol, got 'cosine'"),
        ({"alpha": [0.1, -1]}, "alpha: expected a finite number of at least 0"),
        ({"method": ["maml", "reptile"], "inner": ["adam"]}, "only reptile takes another inner optimiser"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        grid([0], **settings)


def test_bad_seeds_are_refused_before_anything_runs():
    for seed in (int("1" * 260), 10**18, -1):
        with pytest.raises(ValueError, match=f"seeds: expected whole numbers of at most 18 digits, got {seed!s:.40}"):
            grid([0, seed])
    with pytest.raises(TypeError, match="integer"):
        grid([0.5])


# --- Running them ---


def test_a_sweep_is_the_same_runs(tmp_path):
    jobs, heard = grid([0, 3], method=["maml", "joint"], **TINY), []
    sweep(jobs, tmp_path, Serial(), report=lambda *counts: heard.append(counts))
    for job in jobs:
        record = json.loads((tmp_path / f"{name_of(job)}.json").read_text())
        run = files.plain(experiment.run(*job, lambda iteration, loss: None).result())
        assert same_theta(tmp_path, job) and record.pop("versions") == files.versions()
        assert re.fullmatch("[0-9a-f]{64}", record.pop("sha256"))
        assert {**record, "seconds": 0} == {**run, "seconds": 0}
    assert heard == [(n, 4) for n in range(5)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts threads as Linux does")
def test_the_pool_gives_the_same_with_one_thread_of_numpy_for_each_worker(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    (tmp_path / "marks").mkdir()
    jobs = grid(range(4), **TINY)
    sweep(jobs, tmp_path / "out", workers=2, run=partial(sweep_jobs.threads, tmp_path / "marks"))
    counts = [int(path.read_text()) for path in (tmp_path / "marks").iterdir()]
    assert counts and max(counts) <= 2  # its own, and the one that waits for its parent to die
    assert all(same_theta(tmp_path / "out", job) for job in jobs)
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_there_are_no_more_workers_than_jobs(tmp_path):
    out = tmp_path / "out"
    assert main(["sweep", *FAST, "--method", "all", "--workers", "9" * 18, "--out", str(out)]) == 0
    assert {name.partition("-")[0] for name in names(out)} == set(METHODS)


def test_threads_take_turns_for_autograd_is_not_made_for_two(tmp_path):
    inside = []

    def run(config, seed, report):
        inside.append(threading.get_ident())
        time.sleep(0.02)
        assert len(inside) == 1
        inside.pop()
        return experiment.run(config, seed, report)

    with ThreadPoolExecutor(3) as executor:
        assert len(sweep(grid(range(4), **TINY), tmp_path, executor, run=run)) == 3


def test_a_second_sweep_runs_only_what_is_missing_and_another_grid_adds(tmp_path):
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    run = partial(sweep_jobs.counted, marks)
    sweep(grid(range(2), **TINY), out, Serial(), run=run)
    before = {path: path.read_bytes() for path in out.glob("maml-*")}
    heard = []
    sweep(grid(range(3), **TINY), out, Serial(), report=lambda *counts: heard.append(counts), run=run)
    assert heard == [(2, 3), (3, 3)] and len(list(marks.iterdir())) == 3
    rows = sweep(grid([1], method=["joint"], **TINY), out, Serial(), run=run)
    assert [(row["method"], row["seeds"]) for row in rows] == [("joint", 1)] * 3 + [("maml", 3)] * 3
    assert len(list(marks.iterdir())) == 4
    assert all(path.read_bytes() == content for path, content in before.items())


def test_of_two_sweeps_into_one_folder_the_second_is_refused_and_changes_nothing(tmp_path, capsys):
    with files.locked(tmp_path):
        with pytest.raises(ValueError, match="another run is writing into it"):
            sweep(grid([0], quick=True), tmp_path)
        assert main(["sweep", "--quick", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: another run is writing into it" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_run_that_diverges_is_recorded_and_stands_in_the_table(tmp_path):
    jobs = grid([0], outer=["adam:0.001", DIVERGES], **TINY)
    rows = sweep(jobs, tmp_path, workers=1)
    good, bad = rows[:3], rows[3:]
    assert [row["outer"] for row in bad] == [DIVERGES] * 3
    assert {(row["seeds"], row["diverged_seeds"], row["mse"], row["ci95"]) for row in bad} == {(1, 1, None, None)}
    assert all(row["diverged_seeds"] == 0 and row["mse"] > 0 for row in good)
    record = json.loads((tmp_path / f"{name_of(jobs[1])}.json").read_text())
    assert 0 <= record["diverged"] < 5 and record["curve"] == []
    with np.load(tmp_path / f"{name_of(jobs[1])}.npz") as theta:
        assert all(np.isfinite(leaf).all() for leaf in theta.values())
    assert sweep(jobs, tmp_path, workers=1, run=None) == rows  # finished: nothing is run again


def test_a_job_that_fails_is_named_and_the_others_are_kept(tmp_path):
    jobs = grid(range(3), alpha=[0.5], **TINY)
    with pytest.raises(Incomplete, match=r"1 of 3 jobs are missing:\n  " + SAID + r", seed 1: MemoryError\('no"):
        sweep(jobs, tmp_path, Serial(), run=sweep_jobs.fails)
    assert names(tmp_path) == {name_of(jobs[0]), name_of(jobs[2])}
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 3
    assert sweep(jobs, tmp_path, Serial())[0]["seeds"] == 3


SAID = r"maml, alpha 0.5, tasks 2, iterations 5, test_steps \(0, 1, 2\), test_tasks 10"


def test_an_executor_that_is_shut_down_is_said(tmp_path):
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(Incomplete, match="after shutdown"):
        sweep(grid([0], **TINY), tmp_path, executor)


def test_a_report_that_fails_stops_the_sweep_and_loses_nothing(tmp_path):
    def report(finished, total):
        if finished:
            raise ZeroDivisionError("my own mistake")

    environment, began = dict(os.environ), time.monotonic()
    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        sweep(grid(range(4), **TINY), tmp_path, workers=1, report=report, run=sweep_jobs.endless)
    assert time.monotonic() - began < 30  # it does not wait for what nobody will save
    assert len(names(tmp_path)) == 1 and (tmp_path / "table.csv").exists()
    assert dict(os.environ) == environment


def test_a_sweep_that_stops_takes_its_jobs_back_and_leaves_the_executor_open(tmp_path):
    (tmp_path / "marks").mkdir()
    run, failing = partial(sweep_jobs.counted, tmp_path / "marks"), lambda finished, total: 1 / (finished == 0)
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ZeroDivisionError):
            sweep(grid(range(20), **TINY), tmp_path / "out", executor, report=failing, run=run)
        assert executor.submit(int).result() == 0
    assert len(list((tmp_path / "marks").iterdir())) < 20


# --- Whatever dies ---


def test_a_killed_worker_ends_the_sweep_which_keeps_what_was_finished_and_goes_on(tmp_path):
    (tmp_path / "marks").mkdir()
    jobs, run = grid(range(4), **TINY), partial(sweep_jobs.kills_its_worker, tmp_path / "marks", 1)
    with pytest.raises(Incomplete, match=r"of 4 jobs are missing:\n(.*\n)*.*seed 1: BrokenProcessPool"):
        sweep(jobs, tmp_path / "out", workers=1, run=run)
    assert names(tmp_path / "out") == {name_of(jobs[0])} and (tmp_path / "out/table.csv").exists()
    assert sweep(jobs, tmp_path / "out", workers=2, run=run)[0]["seeds"] == 4
    assert names(tmp_path / "out") == {name_of(job) for job in jobs}
    assert len(list((tmp_path / "marks").glob("maml-1.*"))) == 2 and len(list((tmp_path / "marks").iterdir())) == 5


def test_a_pool_that_only_dies_is_given_up_at_once(tmp_path):
    (tmp_path / "marks").mkdir()
    jobs = grid([1], shots=range(1, 7), **TINY)
    with pytest.raises(Incomplete, match="6 of 6 jobs are missing"):
        sweep(jobs, tmp_path / "out", workers=1, run=partial(sweep_jobs.kills_its_worker, tmp_path / "marks", 99))
    assert len(list((tmp_path / "marks").iterdir())) == 1


def test_ctrl_c_is_the_parents_to_answer(tmp_path):
    (tmp_path / "marks").mkdir()
    sweep(
        grid(range(3), **TINY),
        tmp_path / "out",
        None,
        2,
        run=partial(sweep_jobs.interrupts_its_worker, tmp_path / "marks", 9),
    )
    assert len(names(tmp_path / "out")) == len(list((tmp_path / "marks").iterdir())) == 3


# Dask's own warnings, of ports in use and of worker processes that were killed, are not ours.
@pytest.mark.filterwarnings("ignore")
def test_dask_with_a_worker_killed_in_the_middle_of_a_job_loses_nothing(tmp_path):
    distributed = pytest.importorskip("distributed", reason="a cluster needs the extra dask")
    marks = tmp_path / "marks"
    marks.mkdir()
    killed = []

    def report(finished, total):
        if finished and not killed:
            started = {path.name.split(".")[2] for path in marks.glob("maml-*")}
            ended = sorted(path.name.split(".")[1] for path in marks.glob("ended.*"))
            busy = [pid for pid in started if len(list(marks.glob(f"maml-*.{pid}"))) > ended.count(pid)]
            killed.append(int(busy[0]))
            os.kill(killed[0], signal.SIGKILL)

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    jobs = grid(range(6), **TINY)
    with (
        distributed.LocalCluster(**options, silence_logs=50, local_directory=str(tmp_path)) as cluster,
        distributed.Client(cluster) as client,
    ):
        sweep(jobs, tmp_path / "out", client.get_executor(), report=report, run=partial(sweep_jobs.slow, marks))
    assert killed and len(list(marks.glob("maml-*"))) > 6  # a job was in the middle, and started again elsewhere
    assert names(tmp_path / "out") == {name_of(job) for job in jobs}
    assert all(same_theta(tmp_path / "out", job) for job in jobs)


def started(out, *options):
    """A sweep of the command line in a session of its own, once it has finished a job or two."""
    arguments = [sys.executable, "-m", "refmeta", "sweep", *options, "--workers", "2", "--out", str(out)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    limit = time.monotonic() + 60
    while not list(out.glob("*-*.json")) and time.monotonic() < limit:
        time.sleep(0.02)
    return process


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path):
    options = ["--quick", "--tasks", "2", "--iterations", "50", "--seeds", "0-199"]
    process = started(tmp_path, *options)
    # As a terminal does: the workers hear it too. And again, as people do: Python may lose one in a callback.
    while process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    said = process.communicate()[1]
    kept = names(tmp_path)
    assert process.returncode == 130 and 0 < len(kept) < 200
    assert f"interrupted; {tmp_path} keeps {len(kept)} of 200 runs; to go on, repeat the command" in said
    assert "Traceback" not in said
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 11
    before = {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in kept}
    assert main(["sweep", *options, "--seeds", "0-3", "--workers", "2", "--out", str(tmp_path)]) == 0
    assert {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in kept} == before
    assert len(names(tmp_path) - kept) == 4 - len([name for name in kept if int(name.split("-")[1]) < 4])


def test_no_worker_outlives_a_sweep_that_is_killed(tmp_path):
    process = started(tmp_path, "--quick", "--tasks", "2", "--iterations", "50", "--seeds", "0-39")
    process.kill()
    process.wait()
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("workers were still there after 20 seconds")
    process.stderr.close()
    assert read(tmp_path)  # and whole


# --- The folder ---


def sealed(text):
    """A record with the checksum of what it says now, as a forger would write it."""
    try:
        record = json.loads(text)
        said = {key: value for key, value in record.items() if key != "sha256"}
        return json.dumps({**said, "sha256": sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()})
    except (ValueError, AttributeError, RecursionError):
        return text


def test_a_record_with_the_checksum_of_what_it_says_is_read(finished):
    finished.write_text(sealed(finished.read_text().replace('"seconds"', '"note": "mine", "seconds"')))
    assert read(finished.parent)[finished.stem]["note"] == "mine"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    sweep(grid([0], **TINY), out := tmp_path_factory.mktemp("swept"), Serial())
    return out


@pytest.fixture
def finished(swept, tmp_path):
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    return tmp_path / f"{name_of(grid([0], **TINY)[0])}.json"


def test_a_record_of_more_steps_than_there_are_numbers_is_refused_before_they_are_counted(tmp_path):
    for most in (10**12, 10**20):
        settings = {**TINY, "test_steps": [(0, most)]}
        sweep(grid([0], **TINY), tmp_path / "good", Serial())
        (record,) = (tmp_path / "good").glob("*-*.json")
        said = json.loads(record.read_text())
        said["config"]["test_steps"] = [0, most]
        (tmp_path / str(most)).mkdir()
        (tmp_path / str(most) / f"{name_of(grid([0], **settings)[0])}.json").write_text(sealed(json.dumps(said)))
        with pytest.raises(ValueError, match="damaged, or another job's"):
            read(tmp_path / str(most))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: sealed(text.replace('"seed": 0', '"seed": 1')),
        lambda text: sealed(text.replace('"alpha": 0.01', '"alpha": 0.02')),
        lambda text: sealed(text.replace('"alpha"', '"alhpa"')),
        lambda text: sealed(text.replace('"mse"', '"mean"')),
        lambda text: sealed(text.replace('"steps": 2', '"steps": 7')),
        lambda text: text.replace('"seed": 0', '"seed": ' + "[" * 9999 + "]" * 9999),
        lambda text: sealed(text.replace('"curve": [', '"curve": [], "was": [')),
        lambda text: re.sub(r'("mse": \d+\.\d)\d', r"\g<1>7", text, count=1),  # a number that could be right
        lambda text: text.replace('"diverged": 0', '"diverged": 1', 1),
        lambda text: re.sub(r'"seconds": [^,]*', '"seconds": 0', text),
        lambda text: re.sub(r',\s*"sha256": "[^"]*"', "", text),
        lambda text: text.replace('"sha256": "', '"sha256": "0'),
    ],
)
def test_a_damaged_record_is_refused_and_left_as_it_is(finished, damage):
    text = finished.read_text()
    assert damage(text) != text
    finished.write_text(damage(text))
    with pytest.raises(ValueError, match=f"{finished}: damaged, or another job's; remove it"):
        sweep(grid([0], **TINY), finished.parent, Serial())
    assert finished.read_text() == damage(text)
    finished.rename(finished.with_name(".away"))
    assert sweep(grid([0], **TINY), finished.parent, Serial())[0]["seeds"] == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_record_that_is_a_fifo_is_refused(finished):
    finished.unlink()
    os.mkfifo(finished)
    with pytest.raises(ValueError, match=f"{finished}: damaged, or another job's"):
        read(finished.parent)


def test_what_a_killed_sweep_had_not_finished_writing_goes_and_hidden_files_of_others_stay(tmp_path):
    for name in (".maml-0-0123456789ab.json.99.refmeta.part", ".table.csv.7.refmeta.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".film.part").write_text("do not touch")
    sweep(grid([0], **TINY), tmp_path, Serial())
    assert [path.name for path in tmp_path.glob(".*")] == [".film.part"]


@pytest.mark.parametrize("file", ["precious.txt", "table.csv", "result.json", "sweep.png"])
def test_a_folder_with_other_files_is_refused(file, tmp_path):
    (tmp_path / file).write_text("do not touch")
    with pytest.raises(ValueError, match=f"holds {file}, which is not of a sweep"):
        sweep(grid([0], **TINY), tmp_path, Serial())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(file, "do not touch")]


def test_a_strange_file_beside_a_sweeps_is_refused_too(finished):
    (finished.parent / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds notes.txt, which is not of a sweep"):
        read(finished.parent)


def test_a_full_disk_is_said_with_the_file_and_leaves_no_half_of_one(tmp_path, monkeypatch, capsys):
    whole = os.replace

    def replace(source, target):
        if len(names(tmp_path)) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert main(["sweep", *FAST, "--seeds", "0-2", "--workers", "1", "--out", str(tmp_path)]) == 1
    assert f"No space left on device: '{tmp_path}/" in capsys.readouterr().err
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".npz"} and len(read(tmp_path)) == 1


# --- The table and the figure ---


def record(seed, mses, lost=0, **changes):
    curve = [{"steps": k, "mse": m, "median": 0.0, "ci95": 9.0, "diverged": lost} for k, m in enumerate(mses)]
    config = experiment.Config(test_steps=(0, 1), **changes)
    return {"config": config, "seed": seed, "curve": curve}


def test_means_and_intervals_are_those_by_hand():
    records = [record(0, [1.0, 4.0]), record(1, [2.0, 4.0]), record(2, [6.0, 7.0], 3), record(0, [5.0, 5.0], alpha=0.1)]
    records.append({**record(3, []), "diverged": 17})
    first, second, alone, _ = table(records)
    deviation = sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2)  # 7 / 2 … of the means 1, 2 and 6
    assert first["mse"] == 3 and first["median"] == 2
    assert first["ci95"] == pytest.approx(4.303 * deviation / sqrt(3)) == pytest.approx(6.5730, abs=1e-4)
    assert second["mse"] == 5 and second["ci95"] == pytest.approx(4.303 * sqrt(3) / sqrt(3))
    assert (first["seeds"], first["diverged_seeds"], first["diverged_tasks"], first["steps"]) == (4, 1, 3, 0)
    assert (alone["alpha"], alone["mse"], alone["ci95"], alone["seeds"]) == (0.1, 5, 9, 1)


def test_a_mean_that_is_not_finite_is_none():
    assert [row["mse"] for row in table([record(0, [1.0, np.inf]), record(1, [1.0, 2.0])])] == [1, None]


def test_csv_and_json_have_the_same_rows(tmp_path):
    rows = sweep(grid(range(2), outer=["adam:0.001", DIVERGES], **TINY), tmp_path, Serial())
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == rows and len(rows) == 6
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert [list(row) for row in cells] == [list(row) for row in rows]
    assert cells == [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
    assert [float(row["mse"]) for row in cells[:3]] == [row["mse"] for row in rows[:3]]
    assert list(rows[0])[-7:] == ["steps", "seeds", "diverged_seeds", "mse", "median", "ci95", "diverged_tasks"]


# --- The command ---


def test_the_command_prints_the_table_and_draws_it(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    options = ["--method", "maml", "--alpha", "0.01,3", "--outer", f"adam:0.001,{DIVERGES}", "--seeds", "0-1,7"]
    assert main(["sweep", *FAST, *options, "--workers", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    (first,) = [row for row in rows if (row["method"], row["alpha"], row["outer"], row["steps"]) == MAML]
    value = f"{first['mse']:.3f} ± {first['ci95']:.3f}"
    assert ["maml", "0.01", "adam:0.001", "3", *value.split()] in [line[:7] for line in lines]
    assert ["maml", "3.0", DIVERGES, "0", "of", "3", *["diverged"] * 4] in lines
    assert "The means leave out the runs and test tasks that diverged" in printed.out and "runs: 100%" in printed.err
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert len(rows) == 2 * 2 * 11 and len(names(tmp_path)) == 12


MAML = ("maml", 0.01, "adam:0.001", 0)


def test_a_figure_of_any_table(tmp_path):
    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    from refmeta.lab.sweep import figures

    grids = [{}, {"law": "nichol"}, {"shots": 5}, {"alpha": 0.1}, {"widths": (1, 8, 1)}, {"method": "anil"}]
    for number in range(1, len(grids) + 1):
        records = [record(seed, [1.0, 0.5 + seed], **each) for each in grids[:number] for seed in range(2)]
        figures.draw(tmp_path / f"{number}.png", table(records))
    figures.draw(tmp_path / "lost.png", table([{**record(0, []), "diverged": 1}]))
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())


def test_missing_jobs_end_with_1_and_the_table_of_the_others(tmp_path, capsys, without, monkeypatch):
    """A worker that dies breaks its pool: here at the start of seed 2, whose wave no law can draw."""
    without("matplotlib", "tqdm")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(DIES_AT_SEED_2)
    assert main(["sweep", *FAST, "--seeds", "0-2", "--workers", "1", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "1 of 3 jobs are missing" in printed.err and "seed 2: BrokenProcessPool" in printed.err
    assert f"{tmp_path}/out keeps the others; to try again, repeat the command" in printed.err
    assert "maml      2" in printed.out


# What a worker imports before anything else.
DIES_AT_SEED_2 = """
import os, numpy
whole = numpy.random.default_rng
numpy.random.default_rng = lambda seed: os._exit(1) if seed[0] == 2 else whole(seed)
"""


# --- The page ---

PAGE = (Path(__file__).parents[2] / "docs/sweeps.md").read_text()
POOL, DASK, MPI = re.findall(r"```python\n(.*?)```", PAGE.replace("quick=True", "iterations=[5], test_tasks=[9]"), re.S)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", [POOL, DASK], ids=["pool", "dask"])
def test_the_pages_examples_run(block, tmp_path, monkeypatch):
    if block is DASK:
        pytest.importorskip("distributed", reason="a cluster needs the extra dask")
    monkeypatch.chdir(tmp_path)
    exec(block, {"__name__": "__main__"})
    assert len(read(tmp_path / "runs/sweep")) == 8 and (tmp_path / "runs/sweep/table.csv").exists()


def test_the_example_for_mpi_compiles_and_is_the_others_with_another_executor(monkeypatch, tmp_path):
    module = type(sys)("mpi4py.futures")
    module.MPIPoolExecutor = partial(ThreadPoolExecutor, 1)
    monkeypatch.setitem(sys.modules, "mpi4py", type(sys)("mpi4py"))
    monkeypatch.setitem(sys.modules, "mpi4py.futures", module)
    monkeypatch.chdir(tmp_path)
    exec(MPI, {"__name__": "__main__"})
    assert len(read(tmp_path / "runs/sweep")) == 8
