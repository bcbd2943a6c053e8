"""Running all tasks in one trace changes nothing but the rounding."""

import numpy as np
import pytest
from autograd import grad
from hypothesis import given
from problems import ALGORITHMS, assert_same, flat, problems

from refmeta import adapt, adjoint, maml, objective, reptile, stacked, trajectory
from refmeta.fast.stacked import copies, stack
from refmeta.lab import adam, reptile_by
from refmeta.models import squared_error
from refmeta.trees import dot


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, adjoint.maml, adjoint.anil, reptile_by(adam)])
@given(problem=problems())
def test_stacked_is_the_same_function(algorithm, problem):
    assert_same(stacked(algorithm)(*problem.arguments), algorithm(*problem.arguments))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(problem=problems(dtypes=["float32"]))
def test_stacked_float32_stays_float32(algorithm, problem):
    assert {leaf.dtype for leaf in stacked(algorithm)(*problem.arguments)} == {np.dtype("float32")}


@given(problem=problems())
def test_the_stacked_objective_is_the_same_number_and_has_mamls_gradient(problem):
    loss, theta, tasks, alpha = problem.arguments
    value = stacked(objective)(*problem.arguments)
    assert np.shape(value) == ()
    assert_same([value], [objective(*problem.arguments)])
    assert_same(grad(stacked(objective), 1)(*problem.arguments), maml(*problem.arguments))


def test_a_stacked_algorithm_can_be_differentiated(example):
    loss, theta, tasks, alpha = example
    curvature = [
        grad(lambda theta: dot(g := algorithm(loss, theta, tasks, alpha), g))(theta)
        for algorithm in (maml, stacked(maml))
    ]
    assert_same(*curvature)


def test_a_wrong_gradient_is_not_the_same(example):
    loss, theta, tasks, alpha = example
    with pytest.raises(AssertionError):
        assert_same(stacked(maml)(loss, theta, tasks[:-1], alpha), maml(*example))


@given(problem=problems(ragged=False))
def test_a_tasks_result_does_not_depend_on_the_other_tasks(problem):
    loss, theta, tasks, alpha = problem.arguments
    for i, (supports, _) in enumerate(tasks):
        together = trajectory(loss, copies(theta, len(tasks)), stack(tasks)[0], alpha)[-1]
        assert_same([leaf[i] for leaf in together], trajectory(loss, theta, supports, alpha)[-1], digits=13)


def test_other_tasks_do_not_change_a_single_bit(example):
    loss, theta, tasks, alpha = example
    (first, _), (second, query) = [([(s[0][0][:3], s[0][1][:3])], q) for s, q in tasks[:2]]
    pairs = [[(first, None), (second, None)], [(first, None), ([(1e3 * x, y) for x, y in second], None)]]
    ends = [trajectory(loss, copies(theta, 2), stack(pair)[0], alpha)[-1] for pair in pairs]
    assert [leaf[0].tobytes() for leaf in ends[0]] == [leaf[0].tobytes() for leaf in ends[1]]
    assert flat(ends[0]).tobytes() != flat(ends[1]).tobytes()


def test_reptile_needs_no_query_when_stacked(example):
    loss, theta, tasks, alpha = example
    without = [(supports, None) for supports, _ in tasks]
    assert_same(stacked(reptile)(loss, theta, without, alpha), reptile(*example))


def test_tasks_without_any_batch_do_not_move(example):
    loss, theta, _, alpha = example
    assert not flat(stacked(reptile)(loss, theta, [([], None)] * 2, alpha)).any()


def test_a_loss_that_averages_over_the_tasks_is_refused(example):
    loss, theta, tasks, alpha = example

    def average(theta, batch):
        return loss(theta, batch) / (theta[0].shape[0] if theta[0].ndim == 3 else 1)

    with pytest.raises(ValueError, match="sum over the tasks; on two tasks it returned"):
        stacked(maml)(average, theta, [tasks[0], tasks[0]], alpha)


def test_a_loss_without_a_task_axis_is_refused(example):
    _, theta, tasks, alpha = example
    loss = squared_error(lambda theta, x: np.einsum("ni,io->no", x, theta[0][:, :2]))
    with pytest.raises(ValueError, match="takes no leading task axis"):
        stacked(reptile)(loss, theta, [tasks[0], tasks[0]], alpha)


def test_an_empty_list_of_tasks_is_refused_as_without_stacking(example):
    loss, theta, _, alpha = example
    with pytest.raises(ValueError, match="at least one task"):
        stacked(maml)(loss, theta, [], alpha)


def test_what_is_wrong_is_said_of_the_right_task(example):
    loss, theta, tasks, alpha = example
    with pytest.raises(ValueError, match=r"tasks\[2\] query: expected a batch"):
        stacked(maml)(loss, theta, [*tasks[:2], (tasks[2][0], None)], alpha)


@pytest.mark.parametrize("thing", [3, adapt, trajectory])
def test_only_algorithms_can_be_stacked(thing):
    with pytest.raises(TypeError, match="stacked: expected an algorithm of"):
        stacked(thing)


def test_a_loss_that_averages_is_refused_where_it_is_zero_too(example):
    _, _, tasks, alpha = example

    def average(theta, batch):
        return np.mean((batch[0] * theta[0][..., None] - batch[1]) ** 2)

    zero = ([(np.ones((3, 1)), np.ones((3, 1)))], (np.ones((3, 1)), np.ones((3, 1))))
    with pytest.raises(ValueError, match="sum over the tasks"):
        stacked(maml)(average, [np.ones(1)], [zero, zero], alpha)


def test_it_is_found_under_its_own_name():
    assert stacked(maml).__name__ == "maml" and "eq. 1" in stacked(maml).__doc__
