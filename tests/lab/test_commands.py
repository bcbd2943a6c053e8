"""The command line, as a user meets it: all commands of the lab, and the sine command in full."""

import contextlib
import dataclasses
import errno
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from math import isfinite
from types import SimpleNamespace

import numpy as np
import pytest
from test_checkpoint import BARE

from refmeta.__main__ import main
from refmeta.lab import evaluate, runs
from refmeta.lab.fewshot import experiment as fewshot
from refmeta.lab.fewshot import images
from refmeta.lab.sine import experiment as sine
from refmeta.lab.sine.waves import LAWS
from refmeta.lab.training import METHODS

FAST = ["--iterations", "12", "--tasks", "3"]


# --- Every command ---

TINY = ["--quick", "--iterations", "3"]
SMALLEST = {
    "sine": [*TINY, "--tasks", "2"],
    "fewshot": [*TINY, "--tasks", "2", "--filters", "4"],
    "reuse": [*TINY, "--data", "sine"],
    "geometry": [],
    "sweep": [*TINY, "--tasks", "2", "--workers", "1"],
    "reproduce finn2017": ["--quick"],
}


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.usefixtures("few_test_tasks")
def test_without_matplotlib_and_tqdm_it_prints_its_tables_and_says_how_to_get_figures(name, tmp_path, capsys, without):
    without("matplotlib", "tqdm")
    assert main([*name.split(), *SMALLEST[name], "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    figures = "figures" if name in ("sine", "fewshot", "geometry") else "figure"
    said = f"\n{tmp_path}/out: [^;\n]*; for the {figures} too: pip install '.\\[lab\\]' in the clone\n$"
    assert re.search(said, printed.out) and printed.err == ""
    assert {"sine": "joint training", "fewshot": "chance", "geometry": "c₁"}.get(name, "maml") in printed.out
    assert ("--quick: it works. These trainings are too short to learn" in printed.out) == (name != "geometry")
    made = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    more = {"geometry": set(), "sweep": {".npz", ".csv"}, "reproduce finn2017": {".npz", ".md"}}
    assert made == {".json"} | more.get(name, {".npz"})


NUMBER = "expected a whole number of at least"
KEPT = [  # what every command that trains has
    (["--checkpoint-every", "0"], f"{NUMBER} 1, got '0'"),
    (["--checkpoint-every", "often"], f"{NUMBER} 1, got 'often'"),
    (["--resume", "nowhere"], "--resume nowhere: there is no checkpoint"),
    (["--resume", "empty"], "--resume empty: there is no checkpoint"),
    (["--resume", "x" * 5000], "--resume xxx"),
    (["--resume", "empty", "--out", "other"], "not allowed with argument"),
    (["--iterations", "9" * 19], "expected a whole number of at most 18 digits, got '9999"),
    (["--iterations", "0"], f"{NUMBER} 1, got '0'"),
    (["--shots", "few"], f"{NUMBER} 1, got 'few'"),
    (["--seeds", "4-0"], "--seeds 4-0: expected a range as 0-4"),
    (["--seeds", "a-b"], "--seeds a-b: expected a range as 0-4"),
    (["--seeds", ""], "--seeds : expected a range as 0-4"),
    (
        ["--seeds", "1" * 260],
        f"--seeds {'1' * 40}: expected a range as 0-4, of at most 10000 seeds of at most 18 digits",
    ),
    (["--frobnicate"], "unrecognized arguments"),
    (["--out", "file/below"], "file/below: cannot be written"),
    (["--out", "full"], "--out full: holds files already; name a new or empty folder"),
]
COMPARED = [  # what sine and fewshot have
    (["--alpha", "nan"], "alpha: expected a finite number of at least 0, got nan"),
    (["--alpha", "-0.1"], "alpha: expected a finite number of at least 0, got -0.1"),
    (["--outer", "lion:1"], "outer 'lion:1': expected adam:RATE, sgd:RATE"),
    (["--outer", "lion"], "outer 'lion': expected adam:RATE, sgd:RATE"),
    (["--outer", "sgd:0"], "expected adam:RATE, sgd:RATE"),
    (["--outer", "adam"], "expected adam:RATE, sgd:RATE"),
    (["--method", "reptile", "--inner-steps", "0"], "reptile needs at least one inner step"),
    (["--method", "mamml"], "invalid choice: 'mamml'"),
    (["--seed", "-1"], f"{NUMBER} 0"),
    (["--test-steps", "0"], f"{NUMBER} 1, got '0'"),
    (["--test-steps", "0,,5"], f"{NUMBER} 0, got ''"),
    (["--test-shots", "0"], f"{NUMBER} 1, got '0'"),
    (["--test-alpha", "nan"], "alpha: expected a finite number of at least 0, got nan"),
    (["--test-queries", "0"], f"{NUMBER} 1, got '0'"),
    (["--inner", "adam"], "only reptile takes another inner optimiser"),
]
BAD = {
    "sine": [*KEPT, *COMPARED, (["--law", "nichol", "--test-queries", "9"], "tests on all 50 points of its grid")],
    "fewshot": [
        *KEPT,
        *COMPARED,
        (["--data", "omniglot"], "give --root, the folder that holds images_background.zip"),
        (["--data", "omniglot", "--root", "nowhere"], "nowhere: no such folder"),
        (["--data", "folder"], "give --root, the folder that holds train/CLASS/IMAGE and test/CLASS/IMAGE"),
        (["--data", "folder", "--root", "nowhere"], "nowhere: no such folder"),
        (["--data", "folder", "--root", "empty"], "empty/train: no such folder; expected train/CLASS/IMAGE"),
        (["--root", "nowhere"], "--root nowhere: only --data omniglot and folder need it"),
        (["--data", "mnist"], "invalid choice: 'mnist'"),
        (["--ways", "1"], f"{NUMBER} 2"),
        (["--ways", "500"], "ask for fewer ways"),
        (["--shots", "18"], "ask for fewer shots"),
        (["--filters", "8,zero"], f"{NUMBER} 1, got 'zero'"),
        (["--filters", "8,0"], f"{NUMBER} 1, got '0'"),
        (["--filters", "8", "--network", "mlp"], "filters: only the network conv has them; the network is mlp"),
        (["--size", "7"], f"{NUMBER} 8, got '7'"),
        (["--norm", "group"], "invalid choice: 'group'"),
        (["--split", "finn"], "split finn: only --data omniglot has it"),
    ],
    "reuse": [
        *KEPT,
        (["--seeds", "0"], "--seeds 0: expected two or more, as 0-1"),
        (["--seeds", "1-x"], "expected a range as 0-4"),
        (["--data", "sine", "--ways", "5"], "--ways: only images have classes"),
        (["--data", "omniglot"], "give --root, the folder"),
        (["--data", "omniglot", "--root", "nowhere"], "nowhere: no such folder"),
        (["--data", "folder", "--root", "empty"], "empty/train: no such folder; expected train/CLASS/IMAGE"),
        (["--data", "mnist"], "invalid choice: 'mnist'"),
        (["--ways", "1000"], "ways 1000: glyphs has"),
        (["--ways", "1"], f"{NUMBER} 2, got '1'"),
        (["--shots", "6"], "ask for fewer shots"),
        (["--steps", "0"], f"{NUMBER} 1, got '0'"),
        (["--out", "file"], "file: cannot be written"),
    ],
    "reproduce finn2017": [
        *(each for each in KEPT if each[0][0] not in ("--iterations", "--shots")),
        (["--minutes", "0"], "--minutes 0.0: expected a number above 0"),
        (["--minutes", "nan"], "--minutes nan: expected a number above 0"),
        (["--root", "nowhere"], "unrecognized arguments"),
    ],
    "reproduce omniglot": [
        ([], "the following arguments are required: --root"),
        (["--root", "nowhere"], "nowhere: no such folder"),
    ],
    "reproduce": [(["finn1917"], "invalid choice: 'finn1917'"), ([], "the following arguments are required: paper")],
    "geometry": [
        (["--alpha", "-0.1"], "alpha -0.1: expected at least 0.0001, and less than 0.6414"),
        (["--alpha", "0"], "alpha 0: expected at least 0.0001"),
        (["--alpha", "nan"], "alpha nan: expected"),
        (["--inner-steps", "112980896"], "inner steps 112980896: expected at most 999"),
        (["--alpha", "0.7"], "where the inner steps begin to diverge"),
        (["--alpha", "0.37928"], "alpha 0.37928, inner steps 1: descent along fomaml hardly moves"),
        (["--inner-steps", "100"], "; expected another alpha or fewer inner steps"),
        *((["--inner-steps", steps], f"{NUMBER} 1, got '{steps}'") for steps in ("0", "-1", "1.5")),
        (["--out", "full"], "--out full: holds files already; name a new or empty folder"),
    ],
    "sweep": [
        (["--iterations", "5,0"], f"{NUMBER} 1, got '0'"),
        (["--alpha", "0.1,fast"], "expected numbers separated by commas, got '0.1,fast'"),
        (["--alpha", "0.1,"], "expected numbers separated by commas, got '0.1,'"),
        (["--alpha", "0.1,nan"], "alpha: expected a finite number of at least 0, got nan"),
        (["--outer", "adam:0.1,lion:1"], "outer 'lion:1': expected adam:RATE"),
        (["--method", "maml,mamml"], "method: expected maml or fomaml"),
        (["--method", "maml,reptile", "--inner", "adam"], "only reptile takes another inner optimiser"),
        (["--method", "reptile", "--inner-steps", "0,1"], "reptile needs at least one inner step"),
        (["--seeds", "4-0"], "--seeds 4-0: expected a range as 0-4"),
        (["--seeds", "0,,1"], "--seeds : expected a range as 0-4"),
        (["--seeds", "0," + "1" * 19], "expected a range as 0-4, of at most 10000 seeds of at most 18 digits"),
        (["--workers", "0"], f"{NUMBER} 1, got '0'"),
        (["--out", "file/below"], "file/below: cannot be written"),
        (["--out", "full"], "full: holds precious.txt, which is not of a sweep"),
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_end_with_2_say_what_was_expected_and_leave_nothing(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "full/precious.txt").write_text("do not touch")
    before = set(tmp_path.rglob("*"))
    for options, message in BAD[name]:
        try:
            code = main([*name.split(), *["--quick"] * (name not in ("geometry", "reproduce")), *options])
        except SystemExit as exit:
            code = exit.code
        said = capsys.readouterr().err
        assert (code, message in said) == (2, True), (options, said)
        assert said.splitlines()[-1].startswith(f"refmeta {name}: ")
        assert said.startswith(f"usage: refmeta {name} ") or "usage" not in said, "not the usage of another command"
        assert set(tmp_path.rglob("*")) == before, options
    assert (tmp_path / "full/precious.txt").read_text() == "do not touch"


def test_two_dashes_are_no_value(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sine", "--seeds=--"])
    assert stop.value.code == 2 and "argument --seeds: expected a value, got '--'" in capsys.readouterr().err


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0 and capsys.readouterr().out.strip() == "0.1.0"


# --- Where it runs ---


def printed_to(encoding, monkeypatch, *arguments):
    """The exit code of a command, and what it wrote to a stdout of this encoding."""
    with monkeypatch.context() as patch:
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        patch.setattr(sys, "stdout", stream)
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = exit.code
        stream.flush()
    return code, stream.buffer.getvalue().decode(encoding)


@pytest.mark.usefixtures("no_figures")
def test_a_terminal_without_the_letters_still_gets_its_table(tmp_path, monkeypatch):
    code, said = printed_to("ascii", monkeypatch, "geometry", "--out", str(tmp_path / "out"))
    assert code == 0 and "pre-training" in said and "c?" in said


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_the_letters_still_gets_its_help(encoding, monkeypatch):
    for name in [*SMALLEST, "check", "vectors"]:
        code, said = printed_to(encoding, monkeypatch, *name.split(), "--help")
        assert code == 0 and f"usage: refmeta {name}" in said
        assert name != "sine" or "inner rate ? (default: 0.01" in " ".join(said.split())


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
def test_streams_that_are_closed_lose_words_and_nothing_else(tmp_path):
    quoted = shlex.join([sys.executable, "-c", BARE, "sine", *SMALLEST["sine"], "--out", str(tmp_path / "out")])
    command = f"{quoted} <&- >&- 2>&- && {shlex.join([sys.executable, '-c', BARE, 'sine', '--seeds', 'x'])} 2>&-"
    assert subprocess.run(["sh", "-c", command], timeout=300).returncode == 2
    assert (tmp_path / "out/result.json").exists() and (tmp_path / "out/joint-0/theta.npz").exists()


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_message_that_nobody_can_read_leaves_the_exit_code(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    assert main(["sine", "--outer", "lion:1"]) == 2


def test_a_matplotlib_that_refuses_its_settings_is_found_before_any_training(tmp_path, monkeypatch, capsys):
    """As with MPLBACKEND=junk, at which the import of matplotlib raises a ValueError."""
    whole = importlib.import_module

    def refuse(name):
        if name.endswith(".figures"):
            raise ValueError("Key backend: 'junk' is not a valid value for backend")
        return whole(name)

    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    monkeypatch.setattr(runs, "import_module", refuse)
    for name, options in SMALLEST.items():
        assert main([*name.split(), *options, "--out", str(tmp_path / name)]) == 2
        said = f"refmeta {name}: matplotlib (MPLBACKEND, matplotlibrc): Key backend: 'junk' is not a valid value"
        assert said in capsys.readouterr().err and not (tmp_path / name).exists()


# What Windows does not have of what Linux has, as far as a process can take it from itself.
WINDOWS = """
import ctypes, os, signal, sys
import concurrent.futures.process, numpy, subprocess, tempfile
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for module, missing in {
    os: "confstr confstr_names fork geteuid getpgid getuid killpg mkfifo setsid sysconf",
    signal: "SIGALRM SIGHUP SIGKILL SIGPIPE alarm pthread_sigmask setitimer",
}.items():
    for name in missing.split():
        delattr(module, name)

def cdll(name):
    raise TypeError("argument of type 'NoneType' is not iterable")

ctypes.CDLL = cdll
"""


def test_nothing_needs_what_windows_lacks(tmp_path):
    """And its output is encoded as a Western Windows has it."""
    command = [sys.executable, "-c", WINDOWS + BARE, "sine", *SMALLEST["sine"], "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, capture_output=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert (tmp_path / "out/theta.npz").exists()


# --- A quick run of sine ---


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Its exit code, what it printed, and its folder."""
    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    folder, out, err = tmp_path_factory.mktemp("quick") / "out", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["sine", "--quick", "--out", str(folder)])
    return SimpleNamespace(code=code, stdout=out.getvalue(), stderr=err.getvalue()), folder


def test_a_quick_run_prints_a_table_beside_the_baselines(quick):
    done, folder = quick
    assert done.code == 0, done.stderr
    for words in ("0 steps", "1 step ", "10 steps", "maml", "joint training", "3.005669", "4.251667"):
        assert words in done.stdout
    assert done.stdout.endswith(f"\n{folder}: results, adaptation.png, curves.png\n")
    assert "loss" in done.stderr  # the progress bar


def test_a_quick_run_leaves_its_result(quick):
    _, folder = quick
    result = json.loads((folder / "result.json").read_text())
    assert (result["experiment"], result["method"], result["config"]["iterations"]) == ("sine", "maml", 200)
    assert [row["steps"] for row in result["curve"]] == list(range(11))
    assert set(result["curve"][0]) == {"steps", "mse", "median", "ci95", "diverged"}
    assert all(isfinite(row["mse"]) for row in result["curve"]) and result["seconds"] > 0
    assert set(result["versions"]) == {"refmeta", "numpy", "autograd", "python"}
    with np.load(folder / "theta.npz") as theta:
        assert list(theta) == ["W1", "b1", "W2", "b2", "W3", "b3"] and theta["W2"].shape == (40, 40)


def test_a_quick_run_leaves_figures(quick):
    _, folder = quick
    for name in ("adaptation.png", "curves.png"):
        image = (folder / name).read_bytes()
        assert image.startswith(b"\x89PNG") and len(image) > 10_000


def test_the_animation_has_a_picture_for_each_step(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image", reason="figures need the extra lab")
    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    command = ["sine", *SMALLEST["sine"], "--test-steps", "0,1,3", "--animate", "--out", str(tmp_path)]
    assert main(command) == 0
    assert "results, adaptation.png, curves.png, adaptation.gif\n" in capsys.readouterr().out
    with image.open(tmp_path / "adaptation.gif") as film:
        assert film.n_frames == 4 and film.info["loop"] == 0
        pictures = [film.seek(k) or np.asarray(film.convert("RGB")) for k in range(4)]
    assert all((a != b).any() for a, b in zip(pictures, pictures[1:], strict=False))
    assert (tmp_path / "adaptation.gif").stat().st_size < 400_000


def test_without_being_asked_nothing_moves(quick):
    assert not (quick[1] / "adaptation.gif").exists()


def test_the_table_shows_the_numbers_of_the_result(quick):
    done, folder = quick
    curve = json.loads((folder / "result.json").read_text())["curve"]
    joint = json.loads((folder / "joint-0/result.json").read_text())["curve"]
    for label, rows in (("maml", curve), ("joint training", joint)):
        line = next(line for line in done.stdout.splitlines() if line.strip().startswith(label))
        shown = " ".join(f"{rows[k]['mse']:.3f} ± {rows[k]['ci95']:.3f}" for k in (0, 1, 5, 10))
        assert line.split(label)[1].split() == shown.split()


# --- What sine can be asked for ---


@pytest.mark.usefixtures("no_figures")
def test_all_methods_go_into_one_comparison(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sine", "--quick", "--method", "all", *FAST]) == 0
    folder = tmp_path / "runs/sine-all-0"
    table = capsys.readouterr().out
    for method in ("maml", "fomaml", "anil", "reptile", "joint"):
        assert method in table
        assert json.loads((folder / f"{method}-0/result.json").read_text())["method"] == method
    result = json.loads((folder / "result.json").read_text())
    assert {row["method"] for row in result["curve"]} == {"maml", "fomaml", "anil", "reptile", "joint"}


@pytest.mark.usefixtures("no_figures")
def test_several_seeds_give_a_mean_and_an_interval(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sine", "--quick", "--seeds", "0-2", "--out", str(out), *FAST]) == 0
    assert "mean over 3 seeds" in capsys.readouterr().out
    summary = json.loads((out / "result.json").read_text())
    means = [json.loads((out / f"maml-{s}/result.json").read_text())["curve"][0]["mse"] for s in range(3)]
    assert summary["curve"][0]["mse"] == pytest.approx(np.mean(means)) and summary["seeds"] == [0, 1, 2]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("options", [["--preset", "nichol2018"], ["--preset", "finn2017"], ["--law", "nichol"]])
def test_presets_and_laws_run(options, tmp_path, capsys):
    assert main(["sine", "--quick", *options, "--out", str(tmp_path / "out"), *FAST]) == 0
    assert "joint training" in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_a_second_run_takes_the_next_free_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["sine", *SMALLEST["sine"]]) == 0
    assert (tmp_path / "runs/sine-maml-0.2/result.json").exists()


# --- What can happen to it ---


@pytest.mark.usefixtures("no_figures")
def test_tasks_that_diverge_are_named_below_the_table(tmp_path, capsys):
    assert main(["sine", "--quick", "--alpha", "5", "--out", str(tmp_path / "out"), *FAST]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "out/result.json").read_text())["curve"]
    assert rows[10]["diverged"] > 0
    assert f"{rows[10]['diverged']} after 10 steps" in printed and "left out of the mean" in printed


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("name, alpha", [("sine", "1000"), ("fewshot", "1e39"), ("sweep", "1000")])
def test_a_run_whose_test_tasks_all_diverged_has_failed_and_keeps_its_table(name, alpha, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([name, *SMALLEST[name], "--test-alpha", alpha, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(f"refmeta {name}: every test task diverged: try a smaller ")
    assert "diverged" in printed.out and "inf" not in printed.out
    assert (out / ("table.json" if name == "sweep" else "result.json")).exists()


def test_a_run_fails_only_if_every_task_diverged_after_every_number_of_steps(capsys):
    assert [runs.failed("x", lost) for lost in ([], [True, False], [False], [True, True])] == [0, 0, 0, 1]
    assert capsys.readouterr().err.count("refmeta x: every test task diverged") == 1


def test_a_score_at_the_limit_has_not_diverged(example):
    loss, theta, tasks, alpha = example
    for score, lost in ((20.0, 0), (np.nextafter(20.0, 21.0), len(tasks))):
        rows = evaluate(loss, theta, tasks, alpha, lambda phi, query, score=score: score, limit=20.0)
        assert {row["diverged"] for row in rows} == {lost}


@pytest.mark.parametrize("experiment", [sine, fewshot])
def test_initial_theta_training_and_test_draw_from_streams_that_are_no_two_the_same(experiment, monkeypatch):
    """NumPy pads seeds with zeros, so that [seed, 2**32] and [seed, 2**32, 0] are one stream."""
    born, whole = [], np.random.default_rng

    def default_rng(seed):
        rng = whole(seed)
        born.append(rng.bit_generator.state["state"]["state"])
        return rng

    config = experiment.Config(iterations=3, tasks=2, test_tasks=3, test_steps=(0, 1))
    drawn = [images.glyphs(28, 0, 18)] * (experiment is fewshot)
    monkeypatch.setattr(np.random, "default_rng", default_rng)
    experiment.run(*drawn, config, 5, lambda iteration, loss: None)
    assert len(born) >= 7 and len(set(born)) == len(born)


@pytest.mark.parametrize("name, outer, seeds", [("sine", "sgd:1e200", "0"), ("fewshot", "sgd:1e30", "4-5")])
def test_divergence_ends_with_1_and_saves_the_last_good_theta(name, outer, seeds, tmp_path, capsys):
    """A single run is called by its method; one of several by its seed too."""
    out = tmp_path / "out"
    assert (
        main([name, *SMALLEST[name], "--iterations", "6", "--outer", outer, "--seeds", seeds, "--out", str(out)]) == 1
    )
    said, place = ("maml", out) if seeds == "0" else ("maml, seed 4", out / "maml-4")
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"refmeta {name}: {said}: training diverged at iteration ")
    assert message.endswith(f"; the last good θ is in {place}/theta.npz")
    with np.load(place / "theta.npz") as theta:
        assert all(np.isfinite(theta[name]).all() for name in theta)


def broken(monkeypatch, name, gradient):
    """Put another algorithm in the place of a method's."""

    def algorithm(loss, theta, tasks, alpha):
        return gradient(theta)

    monkeypatch.setitem(METHODS, name, METHODS[name]._replace(algorithm=algorithm))


def test_divergence_of_the_joint_run_leaves_the_finished_method_alone(tmp_path, monkeypatch, capsys):
    broken(monkeypatch, "joint", lambda theta: [leaf + np.inf for leaf in theta])
    out = tmp_path / "out"
    assert main(["sine", *SMALLEST["sine"], "--out", str(out)]) == 1
    assert "refmeta sine: joint: training diverged at iteration 0" in capsys.readouterr().err
    assert json.loads((out / "result.json").read_text())["method"] == "maml"
    with np.load(out / "theta.npz") as maml, np.load(out / "joint-0/theta.npz") as joint:
        assert maml["W1"].shape == joint["W1"].shape == (1, 40) and (maml["W1"] != joint["W1"]).any()
        assert all(np.isfinite(joint[name]).all() for name in joint)


def test_memory_that_does_not_suffice_is_said(tmp_path, monkeypatch, capsys):
    def gradient(theta):
        raise MemoryError

    broken(monkeypatch, "maml", gradient)
    assert main(["sine", *SMALLEST["sine"], "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.endswith("refmeta sine: out of memory\n")


def test_an_interrupt_saves_what_was_learned(tmp_path, monkeypatch, capsys):
    law, calls = LAWS["finn"], []

    def draw(*given):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return law.train(*given)

    monkeypatch.setitem(LAWS, "finn", dataclasses.replace(law, train=draw))
    assert main(["sine", "--quick", "--out", str(tmp_path / "out"), *FAST]) == 130
    assert "interrupted at iteration 6" in capsys.readouterr().err
    assert (tmp_path / "out/theta.npz").exists()
