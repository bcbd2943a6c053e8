"""Tasks, optimisers, meta-training and evaluation."""

import dataclasses
from math import pi

import numpy as np
import pytest
from problems import assert_same

from refmeta import adapt, anil, fomaml, joint, maml, reptile, stacked, trajectory
from refmeta.lab import Diverged, Interrupted, adam, evaluate, experiment, linear, reptile_by, sgd, train, trajectory_by
from refmeta.lab.experiment import configure, optimiser
from refmeta.lab.sine import AGNOSTIC, AGNOSTIC_MSE, GRID, LAWS, ZERO_MSE
from refmeta.lab.training import over_seeds, summary
from refmeta.models import MLP, squared_error

NET = MLP((1, 16, 16, 1), activation="tanh")
LOSS = squared_error(NET)


def start(seed=0):
    return NET.init(np.random.default_rng(seed), "nichol2018")


def sampler(law, shots, steps, tasks):
    law = LAWS[law]
    return lambda rng: [law.train(rng, law.wave(rng), shots, steps) for _ in range(tasks)]


def unseen(law, shots=10, steps=10, n=100):
    rng, law = np.random.default_rng([9, 9]), LAWS[law]
    return [law.test(rng, law.wave(rng), shots, steps) for _ in range(n)]


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
    wave = law.wave(rng)
    supports, (x, y) = law.train(rng, wave, 10, 5)
    assert np.array_equal(x, GRID) and np.array_equal(y, wave(GRID)) and len(x) == 50
    assert np.array_equal(np.sort(np.ravel([xs for xs, _ in supports])), GRID[:, 0])
    assert np.array_equal(supports[0][1], wave(supports[0][0]))


def test_nichols_minibatches_start_a_new_pass_when_the_grid_is_used_up():
    supports, _ = LAWS["nichol"].train(np.random.default_rng(0), np.sin, 30, 4)
    points = np.ravel([xs for xs, _ in supports])
    assert [len(xs) for xs, _ in supports] == [30] * 4
    assert np.array_equal(np.sort(points[:50]), GRID[:, 0])
    assert np.array_equal(np.sort(points[50:100]), GRID[:, 0])
    assert LAWS["nichol"].train(np.random.default_rng(0), np.sin, 10, 0)[0] == []


@pytest.mark.parametrize("law", LAWS)
def test_a_task_has_as_many_batches_as_steps_and_points_in_range(law):
    rng = np.random.default_rng(0)
    for draw in (LAWS[law].train, LAWS[law].test):
        supports, (x, y) = draw(rng, LAWS[law].wave(rng), 7, 3)
        assert [(xs.shape, ys.shape) for xs, ys in supports] == [((7, 1), (7, 1))] * 3
        assert x.shape == y.shape and abs(x).max() <= 5


def test_finns_query_points_are_not_its_support_points():
    supports, (x, _) = LAWS["finn"].train(np.random.default_rng(0), np.sin, 10, 1)
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


# --- Optimisers ---


def test_sgd_and_its_linear_schedule():
    theta, step, state = [np.array([1.0])], sgd(linear(0.5, 2)), None
    for expected in (0.5, 0.25, 0.25):
        theta, state = step(theta, [np.array([1.0])], state)
        assert theta[0] == expected


def test_adam_is_algorithm_1_of_kingma_and_ba():
    theta, m, v, step, state = np.array([1.0, -2.0]), 0, 0, adam(0.1), None
    tree = [theta]
    for t, g in enumerate([np.array([3.0, 1e-6]), np.array([-1.0, 2.0]), np.array([0.5, 0.0])], start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        tree, state = step(tree, [g], state)
        assert_same(tree, [theta], digits=14)


def test_the_first_step_of_adam_has_the_size_of_the_rate():
    (theta,), _ = adam(0.1)([np.zeros(3)], [np.array([5.0, -0.2, 1e3])])
    assert np.allclose(theta, [-0.1, 0.1, -0.1], atol=1e-7)


def test_the_black_box_with_sgd_is_the_specification(example):
    loss, theta, tasks, alpha = example
    for mine, spec in zip(
        trajectory_by(sgd)(loss, theta, tasks[0][0], alpha),
        trajectory(loss, theta, tasks[0][0], alpha),
        strict=True,
    ):
        assert_same(mine, spec, digits=15)
    assert_same(reptile_by(sgd)(*example), reptile(*example), digits=14)


def test_inner_adam_starts_afresh_for_every_task(example):
    loss, theta, tasks, alpha = example
    with_adam = reptile_by(adam)
    apart = [with_adam(loss, theta, [task], alpha) for task in tasks]
    assert_same([sum(leaves) for leaves in zip(*apart, strict=True)], with_adam(*example), digits=13)


# --- Meta-training ---


@pytest.mark.parametrize(
    "algorithm, steps, alpha, outer",
    [
        (maml, 1, 0.02, adam(3e-3)),
        (fomaml, 1, 0.02, adam(3e-3)),
        (anil, 1, 0.05, adam(3e-3)),
        (reptile, 5, 0.02, sgd(linear(1, 400))),
        (joint, 0, 0.02, adam(3e-3)),
    ],
)
def test_a_short_run_beats_its_starting_point_on_unseen_tasks(algorithm, steps, alpha, outer):
    theta, history = train(stacked(algorithm), LOSS, start(), sampler("finn", 10, steps, 10), alpha, 400, outer)
    tasks = unseen("finn")
    before, after = (evaluate(LOSS, t, tasks, alpha)[10] for t in (start(), theta))
    assert after["mean"] + after["ci95"] < before["mean"]
    assert history[0][0] == 0 and history[-1][0] == 399


def test_reptile_beats_joint_training_which_is_reptile_with_one_step():
    iterations, tasks = 3000, unseen("nichol", steps=32)
    net = MLP((1, 64, 64, 1), activation="tanh")
    theta, loss = net.init(np.random.default_rng(0), "nichol2018"), squared_error(net)
    run = {"loss": loss, "theta": theta, "iterations": iterations}
    sample = sampler("nichol", 10, 5, 1)
    trained, _ = train(reptile, sample=sample, alpha=0.02, outer=sgd(0.1), **run)

    def whole_grid(rng):
        return [([query], query) for _, query in sample(rng)]

    control, _ = train(reptile, sample=whole_grid, alpha=0.1, outer=sgd(0.1), **run)
    end = {
        name: evaluate(loss, t, tasks, 0.02)[32]["mean"]
        for name, t in (("trained", trained), ("control", control), ("start", theta))
    }
    assert end["trained"] < 1 and end["control"] > end["start"]  # joint training makes it worse than untrained


def test_training_depends_on_the_seed_and_nothing_else():
    run = (stacked(maml), LOSS, start(), sampler("finn", 5, 1, 4), 0.01, 20)
    one, two, other = (train(*run, seed=seed)[0] for seed in (3, 3, 4))
    assert [leaf.tobytes() for leaf in one] == [leaf.tobytes() for leaf in two]
    assert one[0].tobytes() != other[0].tobytes()


def test_the_outer_step_takes_the_mean_over_the_tasks(example):
    loss, theta, tasks, alpha = example
    trained, _ = train(maml, loss, theta, lambda rng: tasks, alpha, 1, sgd(0.1))
    assert_same(trained, [t - 0.1 * g / 3 for t, g in zip(theta, maml(*example), strict=True)], digits=15)


def test_the_report_is_the_mean_loss_after_adaptation(example):
    loss, theta, tasks, alpha = example
    heard = []
    train(maml, loss, theta, lambda rng: tasks, alpha, 1, report=lambda *values: heard.append(values))
    expected = np.mean([loss(adapt(loss, theta, s, alpha), q) for s, q in tasks])
    assert heard == [(0, pytest.approx(expected, rel=1e-14))]


def test_divergence_stops_with_the_iteration_and_the_last_good_theta(example):
    loss, theta, tasks, alpha = example
    with pytest.raises(Diverged, match=r"training diverged at iteration \d+") as caught:
        train(maml, loss, theta, lambda rng: tasks, alpha, 100, sgd(1e200))
    assert 0 < caught.value.iteration < 100
    assert all(np.isfinite(leaf).all() for leaf in caught.value.theta)


def test_nan_in_later_data_is_said_to_be_in_the_data(example):
    loss, theta, tasks, alpha = example
    calls = []

    def sample(rng):
        calls.append(1)
        bad = [([(x, y * np.nan) for x, y in s], q) for s, q in tasks]
        return bad if len(calls) == 3 else tasks

    with pytest.raises(ValueError, match=r"tasks\[0\] supports\[0\] y: expected finite numbers, got NaN"):
        train(maml.__wrapped__, loss, theta, sample, alpha, 5)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"alpha": -1}, ValueError, "alpha: expected a finite number of at least 0"),
        ({"theta": [np.arange(3)]}, TypeError, "expected floating-point numbers"),
        ({"sample": lambda rng: []}, ValueError, "at least one task"),
        ({"algorithm": lambda *a: a[1][:-1]}, ValueError, "theta has 4 arrays, the gradient has 3"),
        ({"algorithm": lambda *a: [g.T for g in a[1]]}, ValueError, r"array 0: theta has shape \(2, 3\)"),
    ],
)
def test_bad_training_is_refused(change, error, message, example):
    loss, theta, tasks, alpha = example
    good = {
        "algorithm": maml,
        "loss": loss,
        "theta": theta,
        "sample": lambda rng: tasks,
        "alpha": alpha,
        "iterations": 1,
    }
    with pytest.raises(error, match=message):
        train(**{**good, **change})


def test_a_gradient_whose_square_overflows_is_divergence_and_not_a_standstill():
    def steep(theta, batch):
        return 1e160 * (theta[0] ** 2).sum()

    batch = np.ones(1), np.ones(1)
    with pytest.raises(Diverged, match="iteration 0"):
        train(joint, steep, [np.ones(2)], lambda rng: [([], batch)], 0.1, 5)


def test_an_interrupt_carries_what_was_learned(example):
    loss, theta, tasks, alpha = example
    calls = []

    def sample(rng):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return tasks

    with pytest.raises(Interrupted, match="interrupted at iteration 3") as caught:
        train(maml, loss, theta, sample, alpha, 9)
    expected, _ = train(maml, loss, theta, lambda rng: tasks, alpha, 3)
    assert_same(caught.value.theta, expected, digits=15)


# --- What the experiment hands on ---


@pytest.fixture
def handed(monkeypatch):
    """What `run` gives to `train` and `evaluate`, for settings unlike the defaults."""
    seen = {}

    def fake_train(algorithm, loss, theta, sample, alpha, iterations, outer, seed, report, trajectory):
        seen.update(train=locals())
        return theta, []

    def fake_evaluate(loss, theta, tasks, alpha, trajectory, limit):
        seen.update(evaluate=locals())
        return [{"steps": 0, "mean": 1.0, "median": 1.0, "ci95": 0.0, "diverged": 0}]

    monkeypatch.setattr(experiment, "train", fake_train)
    monkeypatch.setattr(experiment, "evaluate", fake_evaluate)

    def run(method, seed=3, **changes):
        settings = {"shots": 7, "inner_steps": 3, "alpha": 0.03, "tasks": 4, "iterations": 77, **changes}
        experiment.run(configure(method, None, True, settings), seed, None)
        return seen["train"], seen["evaluate"]

    return run


def test_the_experiment_trains_and_tests_as_configured(handed):
    training, testing = handed("maml")
    assert (training["alpha"], training["iterations"], training["seed"]) == (0.03, 77, 3)
    assert (testing["alpha"], testing["limit"]) == (0.03, 20)
    tasks = training["sample"](np.random.default_rng(0))
    assert len(tasks) == 4 and [len(s) for s, _ in tasks] == [3] * 4 and len(tasks[0][0][0][0]) == 7
    assert len(testing["tasks"]) == 100 and len(testing["tasks"][0][0]) == 10
    assert len(testing["tasks"][0][0][0][0]) == 7 and len(testing["tasks"][0][1][0]) == 100


def test_test_tasks_and_start_depend_on_the_seed_and_test_tasks_are_not_those_of_training(handed):
    (one, tests), (other, others) = handed("maml", seed=1), handed("maml", seed=2)
    assert (one["theta"][0] != other["theta"][0]).any()
    assert (tests["tasks"][0][1][0] != others["tasks"][0][1][0]).any()
    trained = [one["sample"](np.random.default_rng([1, i]))[0][0][0][0][0, 0] for i in range(20)]
    assert not set(trained) & {s[0][0][0, 0] for s, _ in tests["tasks"]}


def test_anil_adapts_its_head_alone_in_training_and_in_testing(handed):
    for stage in handed("anil"):
        loss, theta = stage["loss"], NET40.init(np.random.default_rng(0))
        phis = stage["trajectory"](loss, theta, unseen("finn", steps=2, n=1)[0][0], 0.1)
        assert all(a is b for a, b in zip(phis[-1][:4], theta[:4], strict=True))
        assert (phis[-1][4] != theta[4]).any()


def test_reptiles_inner_adam_is_used_in_training_and_in_testing(handed, example):
    for stage in handed("reptile", inner="adam"):
        supports = unseen("finn", steps=2, n=1)[0][0]
        theta = NET40.init(np.random.default_rng(0))
        phi = stage["trajectory"](stage["loss"], theta, supports, 0.1)[1]
        moved = np.abs(phi[2] - theta[2])
        assert np.allclose(moved, 0.1, rtol=1e-3)  # the first step of Adam has the size of the rate
        if "algorithm" in stage:
            g = stage["algorithm"](stage["loss"], theta, [(supports[:1], None)], 0.1)
            assert np.allclose(np.abs(g[2]), 0.1, rtol=1e-3)


NET40 = MLP((1, 40, 40, 1))


def test_joint_training_beside_a_method_has_the_same_budget():
    for preset, outer in ((None, "adam:0.001"), ("finn2017", "adam:0.001"), ("nichol2018", "sgd:0.01:linear")):
        config = configure(None, preset, False, {})
        joint_config = experiment.beside(config, preset)
        assert joint_config == dataclasses.replace(config, method="joint", outer=outer, inner="sgd")


def test_reptile_keeps_its_own_settings_under_finns_preset():
    config = configure("reptile", "finn2017", False, {})
    assert (config.inner_steps, config.alpha, config.outer) == (5, 0.02, "sgd:1:linear")


# --- Evaluation ---


def test_evaluation_scores_every_task_after_every_step():
    tasks = unseen("finn", steps=3, n=5)
    rows = evaluate(LOSS, start(), tasks, 0.02)
    for k, row in enumerate(rows):
        losses = [LOSS(trajectory(LOSS, start(), s, 0.02)[k], q) for s, q in tasks]
        assert row["steps"] == k and row["diverged"] == 0
        assert row["mean"] == pytest.approx(np.mean(losses), rel=1e-12)
        assert row["median"] == pytest.approx(np.median(losses), rel=1e-12)
        assert row["ci95"] == pytest.approx(1.96 * np.std(losses, ddof=1) / 5**0.5, rel=1e-12)


def test_evaluation_of_ragged_tasks_and_of_losses_without_a_task_axis_is_the_same():
    tasks = unseen("finn", 5, 2, 3) + unseen("finn", 10, 2, 3)

    def own(theta, batch):
        if theta[0].ndim > 2:
            raise ValueError("no task axis here")
        return LOSS(theta, batch)

    plain, other = (evaluate(loss, start(), tasks, 0.02) for loss in (LOSS, own))
    assert [row["mean"] for row in plain] == pytest.approx([row["mean"] for row in other], rel=1e-12)


def test_diverged_tasks_are_counted_and_never_averaged():
    assert summary([1.0, 3.0, np.inf, np.nan, 50.0], limit=20) == {
        "mean": 2.0,
        "median": 50.0,
        "ci95": pytest.approx(1.96),
        "diverged": 3,
    }
    assert summary([np.nan, np.inf])["diverged"] == 2 and summary([np.nan, np.inf])["mean"] == np.inf


def test_a_diverging_inner_loop_is_counted():
    tasks = unseen("finn", steps=10, n=20)
    rows = evaluate(LOSS, start(), tasks, 1e6, limit=20)
    assert rows[0]["diverged"] == 0 and rows[10]["diverged"] == 20


def test_tasks_with_different_numbers_of_steps_cannot_be_evaluated_together():
    with pytest.raises(ValueError, match="same number of inner steps"):
        evaluate(LOSS, start(), unseen("finn", steps=2, n=1) + unseen("finn", steps=3, n=1), 0.1)


def test_over_seeds_the_interval_is_students():
    curves = [[{"steps": 0, "mse": m, "median": 0, "ci95": 0, "diverged": 1}] for m in (1.0, 2.0, 3.0)]
    (row,) = over_seeds(curves)
    assert row["mse"] == 2 and row["median"] == 2 and row["diverged"] == 3
    assert row["ci95"] == pytest.approx(4.303 / 3**0.5)
    assert over_seeds(curves[:1]) is curves[0]


# --- Settings ---


def test_the_presets_are_the_published_settings():
    finn, nichol = (configure(None, name, False, {}) for name in ("finn2017", "nichol2018"))
    assert (finn.method, finn.law, finn.widths, finn.activation) == ("maml", "finn", (1, 40, 40, 1), "relu")
    assert (finn.alpha, finn.inner_steps, finn.shots, finn.tasks) == (0.001, 1, 10, 25)
    assert (finn.outer, finn.iterations, finn.init) == ("adam:0.001", 70_000, "finn2017")
    assert (nichol.method, nichol.law, nichol.widths) == ("reptile", "nichol", (1, 64, 64, 1))
    assert (nichol.alpha, nichol.inner_steps, nichol.shots, nichol.tasks) == (0.02, 5, 10, 1)
    assert (nichol.outer, nichol.iterations, nichol.activation) == ("sgd:0.1:linear", 30_000, "tanh")


def test_explicit_settings_win_over_quick_and_quick_over_the_preset():
    config = configure("fomaml", "finn2017", True, {"alpha": 0.5})
    assert (config.method, config.alpha, config.iterations) == ("fomaml", 0.5, 200)


@pytest.mark.parametrize("text", ["rmsprop:0.1", "sgd:fast", "sgd:0.1:cosine", "sgd:-1", "sgd:nan", ""])
def test_an_unknown_outer_optimiser_is_refused(text):
    with pytest.raises(ValueError, match=r"outer '.*': expected adam:RATE, sgd:RATE"):
        optimiser(text, 10)


def test_only_reptile_takes_another_inner_optimiser():
    assert configure("reptile", None, False, {"inner": "adam"}).inner == "adam"
    with pytest.raises(ValueError, match="only reptile takes another inner optimiser"):
        configure("maml", None, False, {"inner": "adam"})
