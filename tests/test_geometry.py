"""The picture of two quadratic tasks: every number in it by a second way."""

import json
import subprocess
import sys
from itertools import product

import autograd.numpy as np
import pytest

from refmeta.__main__ import main
from refmeta.lab import geometry, geometry_command
from refmeta.lab.geometry import (
    METHODS,
    START,
    TASKS,
    descent,
    direction,
    fixed_point,
    formula,
    halves,
    quadratic,
    weight,
)
from refmeta.lab.geometry import measured as coefficients


@pytest.mark.parametrize("alpha", [0.05, 0.25, 0.37])
def test_the_directions_after_one_inner_step_are_those_of_the_survey(alpha):
    for A, c in TASKS:
        g1 = A @ (START - c)
        g2 = A @ (START - alpha * g1 - c)
        expected = {"joint": g1, "reptile": g1 + g2, "fomaml": g2, "maml": g2 - alpha * A @ g2}
        for method in METHODS:
            got = direction(method, quadratic, START, [[(A, c)] * 2], alpha)
            assert got == pytest.approx(expected[method], abs=1e-13)


@pytest.mark.parametrize("method, alpha, k", list(product(METHODS, [0.01, 0.25], [2, 3, 6])))
def test_descent_arrives_at_the_closed_form(method, alpha, k):
    path, point = descent(method, TASKS, alpha, k, START), fixed_point(method, TASKS, alpha, k)
    assert np.array_equal(path[0], START) and np.linalg.norm(path[-1] - point) < 1e-9
    assert np.linalg.norm(direction(method, quadratic, point, [[task] * k for task in TASKS], alpha)) < 1e-12


def test_the_fixed_points_are_those_of_the_scalar_example():
    """Curvatures 1 and 4, minima at 0 and 1, α = 0.2 (test_closed_forms.py); the figure has four distinct ones."""
    pairs = [(np.array([[1.0]]), np.array([0.0])), (np.array([[4.0]]), np.array([1.0]))]
    points = {method: fixed_point(method, pairs, 0.2, 2)[0] for method in METHODS}
    assert points == pytest.approx({"joint": 4 / 5, "reptile": 8 / 11, "fomaml": 1 / 2, "maml": 1 / 5})
    drawn = [fixed_point(method, TASKS, 0.25, 2) for method in METHODS]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(drawn) for b in drawn[:i]) > 0.3


def test_equal_curvatures_give_one_fixed_point():
    pairs = [(TASKS[0][0], c) for _, c in TASKS]
    for method in METHODS:
        assert fixed_point(method, pairs, 0.25, 3) == pytest.approx((TASKS[0][1] + TASKS[1][1]) / 2)


def curved(theta, batch):
    A, B = batch
    return np.sum((A @ theta[0]) ** 3) / 6 + np.sum((B @ theta[0]) ** 4) / 24


@pytest.fixture(scope="module")
def curved_tasks():
    rng = np.random.RandomState(2)
    return [[(rng.normal(size=(2, 2)), rng.normal(size=(2, 2))) for _ in range(2)] for _ in range(2)]


@pytest.mark.parametrize("method, k", list(product(METHODS, [2, 3])))
def test_the_coefficients_are_the_formulas_for_any_smooth_loss(method, k, curved_tasks):
    got = coefficients(method, curved, np.array([0.4, -0.7]), curved_tasks, k)
    assert got == pytest.approx((*formula(method, k), 0), abs=1e-6)
    got = coefficients(method, quadratic, START, [halves(*task) for task in TASKS], k)
    assert got == pytest.approx((*formula(method, k), 0), abs=1e-9)


def test_the_coefficients_of_nichol_et_al():
    """Equations 33 to 35, and k = 4 of 39 to 41, as numbers."""
    assert [formula(m, 2) for m in ("maml", "fomaml", "reptile")] == [(1, 2), (1, 1), (2, 1)]
    assert [formula(m, 4) for m in ("maml", "fomaml", "reptile")] == [(1, 6), (1, 3), (4, 6)]


def test_two_batches_that_are_always_the_same_break_the_expansion(monkeypatch):
    """AvgGradInner needs independent minibatches: with one batch repeated, the α-term points elsewhere."""
    monkeypatch.setattr(geometry, "product", lambda task, repeat: [[batch] * repeat for batch in task])
    got = coefficients("fomaml", quadratic, START, [halves(*task) for task in TASKS], 2)
    assert got.c1 == pytest.approx(1) and got.rest > 0.01


def test_the_halves_of_a_task_are_the_task():
    for A, c in TASKS:
        (A1, c1), (A2, c2) = halves(A, c)
        assert pytest.approx(A) == (A1 + A2) / 2 and (A1 @ c1 + A2 @ c2) / 2 == pytest.approx(A @ c)
        assert min(*np.linalg.eigvalsh(A1), *np.linalg.eigvalsh(A2)) > 0


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="the figure needs the extra lab")
    folder = tmp_path_factory.mktemp("geometry") / "out"
    command = [sys.executable, "-m", "refmeta", "geometry", "--inner-steps", "2", "--out", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300), folder


def test_the_command_prints_both_tables(done):
    run, _ = done
    assert run.returncode == 0 and not run.stderr
    words = ("pre-training", "first-order MAML", "(I − αA)² g₃", "g₁ + … + g₃", "Reptile after 3", "4.00000 (4)")
    assert all(word in run.stdout for word in words)
    assert max(len(line) for line in run.stdout.splitlines()) <= 120


def test_the_command_leaves_its_result_and_figure(done):
    _, folder = done
    result = json.loads((folder / "result.json").read_text())
    assert (result["experiment"], result["alpha"], result["inner_steps"]) == ("geometry", 0.25, 2)
    assert [end["method"] for end in result["methods"]] == list(METHODS)
    for end in result["methods"]:
        assert end["apart"] < 1e-9 and end["fixed_point"] == pytest.approx(end["arrived"], abs=1e-9)
    assert {(row["k"], row["method"]) for row in result["coefficients"]} == set(product((2, 3, 4), METHODS))
    image = (folder / "geometry.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 10_000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--alpha", "-0.1"], "alpha -0.1: expected at least 0.0001, and less than 0.6414"),
        (["--alpha", "0"], "alpha 0: expected at least 0.0001"),
        (["--alpha", "nan"], "alpha nan: expected"),
        (["--alpha", "0.7"], "where the inner steps begin to diverge"),
        (["--alpha", "0.4"], "alpha 0.4, inner steps 1: descending fomaml runs away: a smaller alpha is expected"),
        (["--inner-steps", "100"], "descending maml hardly moves: another alpha or fewer inner steps are expected"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused(arguments, message, tmp_path, capsys):
    assert main(["geometry", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_bad_words_are_refused(tmp_path, capsys):
    for steps in ("0", "-1", "1.5"):
        with pytest.raises(SystemExit, match="2"):
            main(["geometry", "--inner-steps", steps])
        assert "expected a whole number of at least 1" in capsys.readouterr().err
    (tmp_path / "there").touch()
    assert main(["geometry", "--out", str(tmp_path)]) == 2
    assert "holds files already" in capsys.readouterr().err


def off_by_one(method, A, alpha, k):
    return weight(method, A, alpha, k - (method == "reptile"))


@pytest.mark.parametrize(
    "where, name, wrong, complaint",
    [
        (geometry, "weight", off_by_one, "reptile's fixed point"),
        (
            geometry_command,
            "formula",
            lambda m, k: (formula(m, k)[0], k - 1),
            "maml's coefficients for k = 2",
        ),
        (geometry, "METHODS", {**METHODS, "maml": METHODS["fomaml"]}, "maml's fixed point, maml's coefficients for k"),
    ],
)
def test_the_command_says_what_it_could_not_confirm(where, name, wrong, complaint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(geometry_command, "SEEN", [2])
    monkeypatch.setattr(where, name, wrong)
    assert main(["geometry", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "not confirmed to 1e-09" in said and complaint in said and "joint's fixed point" not in said


def test_without_matplotlib_the_tables_remain(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(geometry_command, "SEEN", [2])
    monkeypatch.setattr(geometry_command.importlib.util, "find_spec", lambda name: None)
    assert main(["geometry", "--out", str(tmp_path / "out")]) == 0
    assert "pip install 'refmeta[lab]'" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]
