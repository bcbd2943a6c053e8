"""What docs/survey.md says of the article's statements and no other test checks."""

import tracemalloc

import numpy as np
import pytest
from autograd import grad
from hypothesis import given
from problems import assert_same, flat, problems

from refmeta import adjoint, fomaml, joint, maml, objective, reptile, trajectory
from refmeta.trees import add, axpy

# --- §2: potential against present performance --------------------------------------------------------


def square(theta, batch):
    a, c = batch
    return a / 2 * (theta[0] - c) ** 2


BATCHES = [(np.array(1.0), np.array(0.0)), (np.array(4.0), np.array(1.0))]
POINTS = np.linspace(-1, 2, 301)


@pytest.mark.parametrize("algorithm, steps, best, least", [(joint, 0, 0.8, 0.4), (maml, 1, 0.2, 0.064)])
def test_pre_training_is_best_as_it_is_and_maml_after_a_step(algorithm, steps, best, least):
    tasks, others = ([([batch] * K, batch) for batch in BATCHES] for K in (steps, 1 - steps))
    values = [objective(square, [np.array(t)], tasks, 0.2) for t in POINTS]
    assert POINTS[np.argmin(values)] == pytest.approx(best) and min(values) == pytest.approx(least)
    assert algorithm(square, [np.array(best)], tasks, 0.2)[0] == pytest.approx(0, abs=1e-14)
    assert POINTS[np.argmin([objective(square, [np.array(t)], others, 0.2) for t in POINTS])] == pytest.approx(1 - best)


# --- §5: what Reptile saves ---------------------------------------------------------------------------


def black_box(loss, theta, tasks, alpha):
    """Reptile of one task that keeps no φ but the last."""
    ((supports, _),) = tasks
    phi = theta
    for support in supports:
        phi = axpy(-alpha, grad(loss)(phi, support), phi)
    return axpy(-1, phi, theta)


@given(problems(steps=(1, 4)))
def test_a_black_box_that_keeps_one_phi_is_reptile(problem):
    for task in problem.tasks:
        arguments = problem.loss, problem.theta, [task], problem.alpha
        assert_same(black_box(*arguments), reptile(*arguments))


COSTS = [(joint, lambda K: 1), (reptile, lambda K: K), (fomaml, lambda K: K + 1), (adjoint.maml, lambda K: 2 * K + 1)]


@pytest.mark.parametrize("algorithm, cost", COSTS)
@pytest.mark.parametrize("K", [1, 4])
def test_reptile_takes_k_gradients_and_maml_as_many_products_and_a_gradient_more(algorithm, cost, K):
    calls = []

    def spy(theta, batch):
        calls.append(batch)
        return square(theta, batch)

    algorithm(spy, [np.array(0.5)], [([BATCHES[1]] * K, BATCHES[0])], 0.1)
    assert len(calls) == cost(K)


def growth(algorithm):
    """How many copies of θ more are allocated at the peak for one more inner step."""

    def peak(K):
        theta, batch = [np.ones(10_000)], (np.array(1.0), np.zeros(10_000))
        tracemalloc.start()
        algorithm(lambda theta, batch: square(theta, batch).sum(), theta, [([batch] * K, batch)], 0.1)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / theta[0].nbytes

    return (peak(21) - peak(11)) / 10


def test_reptile_can_keep_one_phi_and_the_adjoint_of_maml_keeps_all():
    assert growth(black_box) == pytest.approx(0, abs=0.1)
    assert growth(adjoint.maml) == pytest.approx(1, abs=0.1)
    assert growth(reptile) == pytest.approx(1, abs=0.1)  # written for reading: `trajectory` returns every φ
    assert growth(maml) > 2  # the trace keeps more than the φ


# --- MAML++ -------------------------------------------------------------------------------------------


def weights(epoch, K, epochs=10):
    """Antoniou et al.'s code, few_shot_learning_system.py: all alike at first, at last nearly all for the last step."""
    others = [max((1 - epoch / epochs) / K, 0.03 / K)] * (K - 1)
    return [*others, min((1 + epoch * (K - 1) / epochs) / K, 1 - (K - 1) * 0.03 / K)]


def multi_step(loss, theta, tasks, alpha, w):
    return sum(w[k] * loss(phi, Q) for S, Q in tasks for k, phi in enumerate(trajectory(loss, theta, S, alpha)[1:]))


@given(problems(steps=(3, 3)))
def test_the_gradient_of_the_multi_step_loss_is_a_weighted_sum_of_mamls(problem):
    loss, theta, tasks, alpha = problem.arguments
    got = grad(multi_step, 1)(loss, theta, tasks, alpha, [0.5, 0.2, 0.3])
    mamls = [adjoint.maml(loss, theta, [(S[:k], Q) for S, Q in tasks], alpha) for k in (1, 2, 3)]
    assert_same(got, add([w * leaf for leaf in g] for w, g in zip([0.5, 0.2, 0.3], mamls, strict=True)))
    assert_same(grad(multi_step, 1)(loss, theta, tasks, alpha, [0, 0, 1]), mamls[-1])


def test_the_multi_step_loss_is_not_mamls(example):
    loss, theta, tasks, alpha = example
    tasks = [(S[:1] * 3, Q) for S, Q in tasks]
    got = flat(grad(multi_step, 1)(loss, theta, tasks, alpha, weights(0, 3)))
    assert np.linalg.norm(got - flat(maml(loss, theta, tasks, alpha))) > 1e-3 * np.linalg.norm(got)


def test_the_weights_of_maml_plus_plus_sum_to_1_and_move_to_the_last_step():
    assert weights(0, 5) == pytest.approx([0.2] * 5)
    assert weights(5, 5) == pytest.approx([0.1] * 4 + [0.6])
    assert weights(10, 5) == pytest.approx([0.006] * 4 + [0.976])
    for epoch in range(12):
        assert sum(weights(epoch, 5)) == pytest.approx(1)
