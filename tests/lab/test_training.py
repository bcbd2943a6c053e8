"""Optimisers, meta-training and evaluation."""

import numpy as np
import pytest
from problems import assert_same

from refmeta import adapt, anil, fomaml, joint, maml, recorded, reptile, stacked, trajectory
from refmeta.lab import Diverged, Interrupted, adam, evaluate, linear, reptile_by, sgd, train, trajectory_by
from refmeta.lab.sine.waves import LAWS
from refmeta.lab.training import adapted, optimiser, over_seeds, summary
from refmeta.models import MLP, squared_error

NET = MLP((1, 16, 16, 1), activation="tanh")
LOSS = squared_error(NET)


def start(seed=0):
    return NET.init(np.random.default_rng(seed), "nichol2018")


def sampler(law, shots, steps, tasks):
    return lambda rng: LAWS[law].train(rng, tasks, shots, steps)


def unseen(law, shots=10, steps=10, n=100):
    rng, law = np.random.default_rng([9, 9]), LAWS[law]
    return [law.test(rng, law.wave(rng), shots, steps) for _ in range(n)]


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


@pytest.mark.parametrize("text", ["rmsprop:0.1", "sgd:fast", "sgd:0.1:cosine", "sgd:-1", "sgd:nan", ""])
def test_an_unknown_outer_optimiser_is_refused(text):
    with pytest.raises(ValueError, match=r"outer '.*': expected adam:RATE, sgd:RATE"):
        optimiser(text, 10)


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
    theta, history = train(
        recorded(stacked(algorithm)), LOSS, start(), sampler("finn", 10, steps, 10), alpha, 400, outer
    )
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
    trained, _ = train(recorded(reptile), sample=sample, alpha=0.02, outer=sgd(0.1), **run)

    def whole_grid(rng):
        return [([query], query) for _, query in sample(rng)]

    control, _ = train(recorded(reptile), sample=whole_grid, alpha=0.1, outer=sgd(0.1), **run)
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


# --- Evaluation ---


@pytest.mark.parametrize("n", [5, 101, 202])  # at once; in parts, the last of them a single task, or two
def test_evaluation_scores_every_task_after_every_step(n):
    tasks = unseen("finn", steps=3, n=n)
    rows = evaluate(LOSS, start(), tasks, 0.02)
    phis = [trajectory(LOSS, start(), supports, 0.02) for supports, _ in tasks]
    for k, row in enumerate(rows):
        losses = [LOSS(phi[k], query) for phi, (_, query) in zip(phis, tasks, strict=True)]
        assert row["steps"] == k and row["diverged"] == 0
        assert row["mean"] == pytest.approx(np.mean(losses), rel=1e-12)
        assert row["median"] == pytest.approx(np.median(losses), rel=1e-12)
        assert row["ci95"] == pytest.approx(1.96 * np.std(losses, ddof=1) / n**0.5, rel=1e-12)


def test_evaluation_of_ragged_tasks_and_of_losses_without_a_task_axis_is_the_same():
    tasks = unseen("finn", 5, 2, 3) + unseen("finn", 10, 2, 3)

    def own(theta, batch):
        if theta[0].ndim > 2:
            raise ValueError("no task axis here")
        return LOSS(theta, batch)

    plain, other = (evaluate(loss, start(), tasks, 0.02) for loss in (LOSS, own))
    assert [row["mean"] for row in plain] == pytest.approx([row["mean"] for row in other], rel=1e-12)


@pytest.mark.parametrize("most, sizes", [(None, [5, 2, 1]), (3, [3, 2, 1, 1, 1]), (1, [1] * 8)])
def test_tasks_are_adapted_together_as_one_by_one_in_groups_of_equal_shapes(most, sizes):
    tasks = unseen("finn", 5, 2, 3) + unseen("finn", 10, 2, 2) + unseen("finn", 5, 2, 2) + unseen("finn", 5, 3, 1)
    seen = []
    for part, phis, supports, (x, _) in adapted(LOSS, start(), tasks, 0.02, trajectory, most):
        seen.append(len(part))
        assert len(supports) == len(phis) - 1 and np.ndim(x) == 2 + (len(part) > 1)
        for i, (own, _) in enumerate(part):
            for phi, expected in zip(phis, trajectory(LOSS, start(), own, 0.02), strict=True):
                assert_same([leaf[i] for leaf in phi] if len(part) > 1 else phi, expected, digits=13)
    assert seen == sizes


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
