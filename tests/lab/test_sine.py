"""The sine experiment: the laws of its waves, its settings, and that a run trains and tests as configured."""

import dataclasses
from functools import partial
from math import pi

import numpy as np
import pytest
from problems import assert_same

from refmeta import anil, maml, trajectory
from refmeta.lab import adam, evaluate, reptile_by, train, trajectory_by
from refmeta.lab.sine import experiment
from refmeta.lab.sine.experiment import configure, network, unseen
from refmeta.lab.sine.waves import AGNOSTIC, AGNOSTIC_MSE, GRID, LAWS, ZERO_MSE
from refmeta.lab.training import method_of, optimiser, trajectory_of_head

# --- The laws of sine waves ---


def test_finns_waves_are_a_sin_of_x_minus_phi_over_half_a_turn():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 2 * pi, 400, endpoint=False)
    phases, amplitudes = [], []
    for _ in range(2000):
        y = LAWS["finn"].wave(rng)(x)
        coefficient = 2 * np.mean(y * np.exp(-1j * x))  # A sin(x − φ) has −iA exp(−iφ)
        amplitudes.append(abs(coefficient))
        phases.append(-np.angle(1j * coefficient))
    assert min(phases) > -1e-9 and max(phases) < pi + 1e-9
    assert np.mean(phases) == pytest.approx(pi / 2, abs=0.1)
    assert 0.1 <= min(amplitudes) < 0.2 and 4.9 < max(amplitudes) <= 5


def test_nichols_waves_go_through_the_whole_turn_on_a_grid_of_50():
    rng, law = np.random.default_rng(0), LAWS["nichol"]
    signs = [np.sign(law.wave(rng)(np.zeros(1)))[0] for _ in range(400)]
    assert abs(np.mean(signs)) < 0.2  # sin φ over a whole turn, not over half of one
    wave = law.wave(np.random.default_rng(1))
    ((supports, (x, y)),) = law.train(np.random.default_rng(1), 1, 10, 5)
    assert np.array_equal(x, GRID) and np.array_equal(y, wave(GRID)) and len(x) == 50
    assert np.array_equal(np.sort(np.ravel([xs for xs, _ in supports])), GRID[:, 0])
    assert np.array_equal(supports[0][1], wave(supports[0][0]))


def test_nichols_minibatches_start_a_new_pass_when_the_grid_is_used_up():
    ((supports, _),) = LAWS["nichol"].train(np.random.default_rng(0), 1, 30, 4)
    points = np.ravel([xs for xs, _ in supports])
    assert [len(xs) for xs, _ in supports] == [30] * 4
    assert np.array_equal(np.sort(points[:50]), GRID[:, 0])
    assert np.array_equal(np.sort(points[50:100]), GRID[:, 0])
    assert LAWS["nichol"].train(np.random.default_rng(0), 1, 10, 0)[0][0] == []


def test_finns_tasks_are_drawn_one_after_the_other_as_numbers_are():
    """The same bytes as from one call of NumPy for every number and array: what a seed gave before, it gives."""
    drawn, rng = LAWS["finn"].train(np.random.default_rng(5), 3, 7, 2), np.random.default_rng(5)
    for supports, query in drawn:
        wave = LAWS["finn"].wave(rng)
        assert len(supports) == 2 and supports[0] is supports[1]
        for x, y in (supports[0], query):
            expected = rng.uniform(-5, 5, (7, 1))
            assert x.tobytes() == expected.tobytes() and y.tobytes() == wave(expected).tobytes()
            assert x.shape == y.shape == (7, 1)


@pytest.mark.parametrize("law", LAWS)
def test_a_task_has_as_many_batches_as_steps_and_points_in_range(law):
    rng = np.random.default_rng(0)
    for supports, (x, y) in [*LAWS[law].train(rng, 2, 7, 3), LAWS[law].test(rng, LAWS[law].wave(rng), 7, 3)]:
        inputs = 3 if law == "oracle" else 1
        assert [(xs.shape, ys.shape) for xs, ys in supports] == [((7, inputs), (7, 1))] * 3
        assert x.shape == (*y.shape[:1], inputs) and abs(x).max() <= 5


def test_the_oracle_is_told_amplitude_and_phase_of_finns_waves():
    finn, oracle = (LAWS[name].train(np.random.default_rng(3), 2, 7, 1) for name in ("finn", "oracle"))
    tests = [[LAWS[name].test(rng, LAWS[name].wave(rng), 7, 1, 9)] for name in ("finn", "oracle") for rng in [_rng()]]
    for (supports, query), (told_supports, told_query) in [*zip(finn, oracle, strict=True), *zip(*tests, strict=True)]:
        for (x, y), (told, same) in ((supports[0], told_supports[0]), (query, told_query)):
            amplitude, phase = told[:, 1:2], told[:, 2:3]
            assert np.array_equal(told[:, :1], x) and np.array_equal(y, same)
            assert (
                np.allclose(amplitude * np.sin(x - phase), y, atol=1e-13) and len(np.unique(told[:, 1:], axis=0)) == 1
            )


def _rng():
    return np.random.default_rng(4)


def test_finns_query_points_are_not_its_support_points():
    ((supports, (x, _)),) = LAWS["finn"].train(np.random.default_rng(0), 1, 10, 1)
    assert not set(x[:, 0]) & set(supports[0][0][:, 0])


def test_the_baselines_are_those_published_and_those_drawn():
    assert pytest.approx(4.251667, abs=5e-7) == ZERO_MSE
    assert pytest.approx(3.005669, abs=5e-7) == AGNOSTIC_MSE
    assert pytest.approx(1.623380, abs=5e-7) == AGNOSTIC
    rng, x = np.random.default_rng(0), np.random.default_rng(1).uniform(-5, 5, 100)
    for law, best in (("finn", -AGNOSTIC * np.cos(x)), ("nichol", 0 * x)):
        y = np.array([LAWS[law].wave(rng)(x) for _ in range(20_000)])
        assert np.mean(y**2) == pytest.approx(ZERO_MSE, rel=0.02)
        assert np.allclose(y.mean(0), best, atol=0.08)  # the mean is the best constant prediction at each x


# --- A run ---

ADAM = partial(adam, beta1=0.0)  # as Nichol et al. 2018 have it inside
UNLIKE_THE_DEFAULTS = {"shots": 7, "inner_steps": 3, "alpha": 0.03, "tasks": 4, "iterations": 5}


@pytest.mark.parametrize(
    "method, more, algorithm, adapts",
    [
        ("maml", {}, maml, trajectory),
        ("maml", {"alpha": 3.0, "outer": "sgd:1e-9"}, maml, trajectory),  # where test tasks diverge
        ("anil", {}, anil, trajectory_of_head(2)),
        ("reptile", {"inner": "adam", "outer": "adam:0.001"}, reptile_by(ADAM), trajectory_by(ADAM)),
    ],
)
def test_a_run_trains_and_tests_as_configured(method, more, algorithm, adapts):
    """Against the same by hand: the algorithm and how it adapts, the rates, the tasks, the seed, the limit of 20."""
    config, seed, law = configure(method, True, {**UNLIKE_THE_DEFAULTS, **more}), 3, LAWS["finn"]
    (net, loss), heard = network(config), []
    run = experiment.run(config, seed, lambda *said: heard.append(said))

    def sample(rng):
        return law.train(rng, 4, 7, 3)

    start = net.init(np.random.default_rng([seed, 2**32]), "glorot")
    outer = optimiser(config.outer, 5)
    theta, history = train(algorithm, loss, start, sample, config.alpha, 5, outer, seed, trajectory=adapts)
    tests = unseen(config, seed)
    rows = evaluate(loss, theta, tests, config.alpha, trajectory=adapts, limit=20)
    assert_same(run.theta, theta, digits=9)
    assert heard == run.history == [(i, pytest.approx(value, rel=1e-8)) for i, value in history]
    assert [row["diverged"] for row in run.curve] == [row["diverged"] for row in rows]
    assert [row["mse"] for row in run.curve] == pytest.approx([row["mean"] for row in rows], rel=1e-6)
    assert run.curve[10]["diverged"] > 0 or "alpha" not in more
    assert len(tests) == 100 and {len(supports) for supports, _ in tests} == {10}
    assert {(len(supports[0][0]), len(query[0])) for supports, query in tests} == {(7, 100)}


def test_the_test_has_points_a_rate_steps_and_queries_of_its_own():
    more = {"test_shots": 5, "test_alpha": 0.2, "test_steps": (0, 2), "test_queries": 31}
    config = configure("maml", True, {**UNLIKE_THE_DEFAULTS, **more})
    trained, plain = (
        experiment.run(c, 3, lambda *_: None) for c in (config, configure("maml", True, UNLIKE_THE_DEFAULTS))
    )
    assert_same(trained.theta, plain.theta)  # training knows nothing of the test
    tests = unseen(config, 3)
    assert {(len(s), len(s[0][0]), len(query[0])) for s, query in tests} == {(2, 5, 31)}
    rows = evaluate(network(config)[1], trained.theta, tests, 0.2, limit=20)
    assert [row["mse"] for row in trained.curve] == pytest.approx([row["mean"] for row in rows], rel=1e-6)
    assert len(rows) == 3 and rows[1]["mean"] != pytest.approx(plain.curve[1]["mse"], rel=1e-3)


def test_test_tasks_and_start_depend_on_the_seed_and_test_tasks_are_not_those_of_training(monkeypatch):
    law, seen = LAWS["finn"], []

    def training(*given):
        seen.extend(tasks := law.train(*given))
        return tasks

    monkeypatch.setitem(LAWS, "finn", dataclasses.replace(law, train=training))
    config = configure("maml", True, {**UNLIKE_THE_DEFAULTS, "outer": "sgd:1e-300"})  # θ stays where it starts
    one, other = (experiment.run(config, seed, lambda *_: None) for seed in (1, 2))
    assert (one.theta[0] != other.theta[0]).any()
    tests, others = (unseen(config, seed) for seed in (1, 2))
    assert (tests[0][1][0] != others[0][1][0]).any()
    assert len(seen) == 2 * 5 * 4
    assert not {s[0][0][0, 0] for s, _ in seen} & {s[0][0][0, 0] for s, _ in tests}


def test_anil_adapts_its_head_alone():
    config = configure("anil", True, UNLIKE_THE_DEFAULTS)
    net, loss = network(config)
    theta = net.init(np.random.default_rng(0))
    phis = method_of(config).trajectory(loss, theta, unseen(config, 0)[0][0], 0.1)
    assert all(a is b for a, b in zip(phis[-1][:4], theta[:4], strict=True))
    assert (phis[-1][4] != theta[4]).any()


def test_reptiles_inner_adam_is_used_in_training_and_in_testing():
    config = configure("reptile", True, {**UNLIKE_THE_DEFAULTS, "inner": "adam"})
    (net, loss), method = network(config), method_of(config)
    supports, theta = unseen(config, 0)[0][0], net.init(np.random.default_rng(0))
    phi = method.trajectory(loss, theta, supports, 0.1)[1]
    assert np.allclose(np.abs(phi[2] - theta[2]), 0.1, rtol=1e-3)  # the first step of Adam has the size of the rate
    g = method.algorithm(loss, theta, [(supports[:1], None)], 0.1)
    assert np.allclose(np.abs(g[2]), 0.1, rtol=1e-3)


# --- Settings ---


def test_the_presets_are_the_published_settings():
    finn, nichol = (configure(None, False, {}, name) for name in ("finn2017", "nichol2018"))
    assert (finn.method, finn.law, finn.widths, finn.activation) == ("maml", "finn", (1, 40, 40, 1), "relu")
    assert (finn.alpha, finn.inner_steps, finn.shots, finn.tasks) == (0.001, 1, 10, 25)
    assert (finn.outer, finn.iterations, finn.init) == ("adam:0.001", 70_000, "finn2017")
    assert (nichol.method, nichol.law, nichol.widths) == ("reptile", "nichol", (1, 64, 64, 1))
    assert (nichol.alpha, nichol.inner_steps, nichol.shots, nichol.tasks) == (0.02, 5, 10, 1)
    assert (nichol.outer, nichol.iterations, nichol.activation) == ("sgd:0.1:linear", 30_000, "tanh")


def test_explicit_settings_win_over_quick_and_quick_over_the_preset():
    config = configure("fomaml", True, {"alpha": 0.5}, "finn2017")
    assert (config.method, config.alpha, config.iterations) == ("fomaml", 0.5, 200)


def test_only_reptile_takes_another_inner_optimiser():
    assert configure("reptile", False, {"inner": "adam"}).inner == "adam"
    with pytest.raises(ValueError, match="only reptile takes another inner optimiser"):
        configure("maml", False, {"inner": "adam"})


def test_joint_training_beside_a_method_has_the_same_budget():
    for preset, outer in ((None, "adam:0.001"), ("finn2017", "adam:0.001"), ("nichol2018", "sgd:0.01:linear")):
        config = configure(None, False, {}, preset)
        joint_config = experiment.beside(config, preset)
        assert joint_config == dataclasses.replace(config, method="joint", outer=outer, inner="sgd")


def test_reptile_keeps_its_own_settings_under_finns_preset():
    config = configure("reptile", False, {}, "finn2017")
    assert (config.inner_steps, config.alpha, config.outer) == (5, 0.02, "sgd:1:linear")
