"""The picture of two quadratic tasks: every number in it by a second way."""

import json
from itertools import product

import autograd.numpy as np
import pytest

from refmeta.__main__ import main
from refmeta.lab.geometry import quadratics
from refmeta.lab.geometry.quadratics import (
    METHODS,
    START,
    TASKS,
    WEIGHTS,
    descent,
    direction,
    fixed_point,
    formula,
    halves,
    measured,
    quadratic,
)


@pytest.mark.parametrize("alpha", [0.05, 0.25, 0.37])
def test_the_directions_after_one_inner_step_are_those_of_the_survey(alpha):
    for A, c in TASKS:
        g1 = A @ (START - c)
        g2 = A @ (START - alpha * g1 - c)
        expected = {"joint": g1, "reptile": g1 + g2, "fomaml": g2, "maml": g2 - alpha * A @ g2}
        for method in METHODS:
            got = direction(method, quadratic, START, [[(A, c)] * 2], alpha)
            assert got == pytest.approx(expected[method], abs=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_descent_arrives_at_the_closed_form(method):
    for alpha, k in product([0.01, 0.25], [2, 3, 6]):
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
    """No polynomial: test_closed_forms.py has one."""
    A, b = batch
    return np.sum(np.log(np.cosh(A @ theta[0] + b)))


@pytest.mark.parametrize("method", METHODS)
def test_the_coefficients_are_the_formulas_for_any_smooth_loss(method):
    rng = np.random.RandomState(2)
    tasks = [[(rng.normal(size=(2, 2)), rng.normal(size=2)) for _ in range(2)] for _ in range(2)]
    for k in (2, 3):
        c1, c2 = formula(method, k)
        got = measured(method, curved, np.array([0.4, -0.7]), tasks, k)
        assert got == pytest.approx({"c1": c1, "c2": c2, "rest": 0}, abs=1e-6)
        got = measured(method, quadratic, START, [halves(*task) for task in TASKS], k)
        assert got == pytest.approx({"c1": c1, "c2": c2, "rest": 0}, abs=1e-9)


def test_the_coefficients_of_nichol_et_al():
    """Equations 33 to 35, and k = 4 of 39 to 41, as numbers."""
    assert [formula(m, 2) for m in ("maml", "fomaml", "reptile")] == [(1, 2), (1, 1), (2, 1)]
    assert [formula(m, 4) for m in ("maml", "fomaml", "reptile")] == [(1, 6), (1, 3), (4, 6)]


def test_two_batches_that_are_always_the_same_break_the_expansion(monkeypatch):
    """AvgGradInner needs independent minibatches: with one batch repeated, the α-term points elsewhere."""
    monkeypatch.setattr(quadratics, "product", lambda task, repeat: [[batch] * repeat for batch in task])
    got = measured("fomaml", quadratic, START, [halves(*task) for task in TASKS], 2)
    assert got["c1"] == pytest.approx(1) and got["rest"] > 0.01


def test_the_halves_of_a_task_are_the_task():
    for A, c in TASKS:
        (A1, c1), (A2, c2) = halves(A, c)
        assert pytest.approx(A) == (A1 + A2) / 2 and (A1 @ c1 + A2 @ c2) / 2 == pytest.approx(A @ c)
        assert min(*np.linalg.eigvalsh(A1), *np.linalg.eigvalsh(A2)) > 0


def test_the_command_prints_both_tables_and_leaves_its_result_and_figure(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="the figure needs the extra lab")
    monkeypatch.chdir(tmp_path)
    assert main(["geometry", "--inner-steps", "2"]) == 0
    out, err = capsys.readouterr()
    words = ("pre-training", "first-order MAML", "(I − αA)² g₃", "g₁ + … + g₃", "Reptile after 3", "4.00000 (4)")
    assert not err and all(word in out for word in words)
    assert max(len(line) for line in out.splitlines()) <= 120
    folder = tmp_path / "runs/geometry"
    result = json.loads((folder / "result.json").read_text())
    assert (result["experiment"], result["alpha"], result["inner_steps"]) == ("geometry", 0.25, 2)
    assert [end["method"] for end in result["methods"]] == list(METHODS)
    for end in result["methods"]:
        assert end["apart"] < 1e-9 and end["fixed_point"] == pytest.approx(end["arrived"], abs=1e-9)
    assert {(row["k"], row["method"]) for row in result["coefficients"]} == set(product((2, 3, 4), METHODS))
    for name in ("geometry.png", "weights.png"):
        image = (folder / name).read_bytes()
        assert image.startswith(b"\x89PNG") and len(image) > 10_000


@pytest.mark.parametrize("alpha", ["0.38", "0.4", "0.6"])  # at 0.38 a saddle, then a maximum
def test_where_first_order_maml_runs_away_the_command_says_so_and_confirms_it(alpha, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quadratics, "COUNTS", [2])
    assert main(["geometry", "--alpha", alpha, "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert not err and "runs away: first-order MAML, because its weights add up to a negative curvature" in out
    assert max(len(line) for line in out.splitlines()) <= 120
    ends = {end["method"]: end for end in json.loads((tmp_path / "out/result.json").read_text())["methods"]}
    assert [method for method, end in ends.items() if not end["arrived"]] == ["fomaml"]
    assert all(end["apart"] < 1e-9 for end in ends.values())


def test_a_run_away_that_is_not_the_closed_form_s_is_not_confirmed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quadratics, "COUNTS", [2])
    monkeypatch.setattr(quadratics, "WEIGHTS", {**WEIGHTS, "fomaml": lambda A, P, k: A @ P @ P})
    assert main(["geometry", "--alpha", "0.4", "--out", str(tmp_path / "out")]) == 1
    assert "not confirmed to 1e-09: fomaml's fixed point" in capsys.readouterr().err


def reptile_with_a_step_less(A, P, k):
    return WEIGHTS["reptile"](A, P, k - 1)


@pytest.mark.parametrize(
    "name, wrong, complaint",
    [
        ("WEIGHTS", {**WEIGHTS, "reptile": reptile_with_a_step_less}, "reptile's fixed point"),
        ("formula", lambda m, k: (formula(m, k)[0], k - 1), "maml's coefficients for k = 2"),
        ("METHODS", {**METHODS, "maml": METHODS["fomaml"]}, "maml's fixed point, maml's coefficients for k"),
    ],
)
def test_the_command_says_what_it_could_not_confirm(name, wrong, complaint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quadratics, "COUNTS", [2])
    monkeypatch.setattr(quadratics, name, wrong)
    assert main(["geometry", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "not confirmed to 1e-09" in said and complaint in said and "joint's fixed point" not in said
