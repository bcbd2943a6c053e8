"""The command line, as a user meets it."""

import json
import os
import subprocess
import sys
from math import isfinite

import numpy as np
import pytest

from refmeta.__main__ import main
from refmeta.lab import command

FAST = ["--iterations", "12", "--tasks", "3"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "refmeta", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    folder = tmp_path_factory.mktemp("quick") / "out"
    return run("sine", "--quick", "--out", folder), folder


def test_a_quick_run_prints_a_table_beside_the_baselines(quick):
    done, _ = quick
    assert done.returncode == 0, done.stderr
    for words in ("0 steps", "1 step ", "10 steps", "maml", "joint training", "3.005669", "4.251667"):
        assert words in done.stdout
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


def test_the_same_seed_gives_the_same_bytes_in_another_process(quick, tmp_path):
    _, folder = quick
    again, other = tmp_path / "again", tmp_path / "other"
    assert run("sine", "--quick", "--out", again).returncode == 0
    assert run("sine", "--quick", "--seed", 1, "--out", other).returncode == 0
    assert (again / "theta.npz").read_bytes() == (folder / "theta.npz").read_bytes()
    assert (other / "theta.npz").read_bytes() != (folder / "theta.npz").read_bytes()


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


def test_several_seeds_give_a_mean_and_an_interval(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sine", "--quick", "--seeds", "0-2", "--out", str(out), *FAST]) == 0
    assert "mean over 3 seeds" in capsys.readouterr().out
    summary = json.loads((out / "result.json").read_text())
    means = [json.loads((out / f"maml-{s}/result.json").read_text())["curve"][0]["mse"] for s in range(3)]
    assert summary["curve"][0]["mse"] == pytest.approx(np.mean(means)) and summary["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("options", [["--preset", "nichol2018"], ["--preset", "finn2017"], ["--law", "nichol"]])
def test_presets_and_laws_run(options, tmp_path, capsys):
    assert main(["sine", "--quick", *options, "--out", str(tmp_path / "out"), *FAST]) == 0
    assert "joint training" in capsys.readouterr().out


def test_a_second_run_takes_the_next_free_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["sine", "--quick", *FAST]) == 0
    assert (tmp_path / "runs/sine-maml-0.2/result.json").exists()


def test_without_matplotlib_and_tqdm_it_trains_prints_and_says_how_to_get_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert main(["sine", "--quick", "--out", str(tmp_path / "out"), *FAST]) == 0
    printed = capsys.readouterr()
    assert "joint training" in printed.out and "pip install 'refmeta[lab]'" in printed.out
    assert printed.err == "" and not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--iterations", "0"], "expected a whole number of at least 1, got '0'"),
        (["--shots", "few"], "expected a whole number of at least 1, got 'few'"),
        (["--alpha", "nan"], "alpha: expected a finite number of at least 0, got nan"),
        (["--alpha", "-0.1"], "alpha: expected a finite number of at least 0, got -0.1"),
        (["--outer", "lion:1"], "outer 'lion:1': expected adam:RATE, sgd:RATE"),
        (["--seeds", "4-0"], "--seeds 4-0: expected a range as 0-4"),
        (["--seeds", "a-b"], "--seeds a-b: expected a range as 0-4"),
        (["--seeds", ""], "--seeds : expected a range as 0-4"),
        (["--method", "reptile", "--inner-steps", "0"], "reptile needs at least one inner step"),
        (["--outer", "sgd:0"], "expected adam:RATE, sgd:RATE"),
        (["--outer", "adam"], "expected adam:RATE, sgd:RATE"),
        (["--inner", "adam"], "only reptile takes another inner optimiser"),
        (["--method", "mamml"], "invalid choice: 'mamml'"),
        (["--seed", "-1"], "expected a whole number of at least 0"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_bad_options_end_with_2_and_say_what_was_expected(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    try:
        code = main(["sine", "--quick", "--out", str(out), *arguments])
    except SystemExit as exit:
        code = exit.code
    assert code == 2 and message in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_with_files_is_never_written_into(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("do not touch")
    assert main(["sine", "--quick", "--out", str(tmp_path)]) == 2
    assert "holds files already" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["precious.txt"]


def test_an_out_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["sine", "--quick", "--out", str(tmp_path / "file/below")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_divergence_ends_with_1_and_saves_the_last_good_theta(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sine", "--quick", "--outer", "sgd:1e200", "--out", str(out), *FAST]) == 1
    assert "training diverged at iteration" in capsys.readouterr().err
    with np.load(out / "theta.npz") as theta:
        assert all(np.isfinite(theta[name]).all() for name in theta)


def test_divergence_of_the_joint_run_leaves_the_finished_method_alone(tmp_path, monkeypatch):
    from refmeta.lab import experiment
    from refmeta.lab.training import Diverged

    honest = experiment.run

    def run(config, seed, report, keep):
        if config.method == "joint":
            raise Diverged(3, [np.full((1, 1), 7.0)] * 6)
        return honest(config, seed, report, keep)

    monkeypatch.setattr(experiment, "run", run)
    out = tmp_path / "out"
    assert main(["sine", "--quick", "--out", str(out), *FAST]) == 1
    with np.load(out / "theta.npz") as maml, np.load(out / "joint-0/theta.npz") as joint:
        assert maml["W1"].shape == (1, 40) and joint["W1"][0, 0] == 7


def test_two_dashes_are_no_value(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sine", "--seeds=--"])
    assert stop.value.code == 2 and "argument --seeds: expected a value, got '--'" in capsys.readouterr().err


def test_memory_that_does_not_suffice_is_said(tmp_path, monkeypatch, capsys):
    from refmeta.lab import experiment

    def run(*_):
        raise MemoryError

    monkeypatch.setattr(experiment, "run", run)
    assert main(["sine", "--quick", "--out", str(tmp_path / "out"), *FAST]) == 1
    assert capsys.readouterr().err.endswith("refmeta sine: out of memory\n")


def test_an_interrupt_saves_what_was_learned(tmp_path, monkeypatch, capsys):
    from refmeta.lab import experiment, sine

    law, calls = sine.LAWS["finn"], []

    def wave(rng):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return law.wave(rng)

    monkeypatch.setitem(experiment.LAWS, "finn", type(law)(wave, law.train, law.test, law.agnostic))
    assert main(["sine", "--quick", "--out", str(tmp_path / "out"), *FAST]) == 130
    assert "interrupted at iteration 6" in capsys.readouterr().err
    assert (tmp_path / "out/theta.npz").exists()


def test_the_table_shows_the_numbers_of_the_result(quick):
    done, folder = quick
    curve = json.loads((folder / "result.json").read_text())["curve"]
    joint = json.loads((folder / "joint-0/result.json").read_text())["curve"]
    for label, rows in (("maml", curve), ("joint training", joint)):
        line = next(line for line in done.stdout.splitlines() if line.strip().startswith(label))
        assert (
            line.split(label)[1].split()
            == " ".join(f"{rows[k]['mse']:.3f} ± {rows[k]['ci95']:.3f}" for k in (0, 1, 5, 10)).split()
        )


def test_tasks_that_diverge_are_named_below_the_table(tmp_path, capsys):
    assert main(["sine", "--quick", "--alpha", "3", "--out", str(tmp_path / "out"), *FAST]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "out/result.json").read_text())["curve"]
    assert rows[10]["diverged"] > 0
    assert f"{rows[10]['diverged']} after 10 steps" in printed and "left out of the mean" in printed


def test_a_terminal_without_the_letters_still_gets_its_table(tmp_path):
    command = [sys.executable, "-m", "refmeta", "sine", "--quick", "--out", str(tmp_path / "out"), *FAST]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0 and "joint training" in done.stdout


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0 and capsys.readouterr().out.strip() == "0.1.0"


@pytest.mark.parametrize("what", [["list"], ["show", "maml-quadratic-k3-t3"]])
def test_output_that_nobody_reads_to_its_end_is_no_success(what):
    process = subprocess.Popen(
        [sys.executable, "-m", "refmeta", "vectors", *what], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.communicate()[1], process.returncode) == (b"", 141)
