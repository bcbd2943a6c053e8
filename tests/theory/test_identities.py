"""What is provably so of the algorithms, for any network, loss and tasks."""

import warnings

import numpy as np
import pytest
from autograd import grad
from autograd.tracer import getval
from hypothesis import given
from hypothesis import strategies as st
from problems import ALGORITHMS, EXACT, assert_same, flat, problems

from refmeta import anil, fomaml, joint, maml, reptile, trajectory
from refmeta.adjoint import hvp
from refmeta.lab import sgd, train
from refmeta.trees import add, axpy, dot


def scaled(a, tree):
    return [a * leaf for leaf in tree]


def on_one_batch(problem, k):
    """The same problem with k inner steps on the query batch itself."""
    return problem._replace(tasks=[([query] * k, query) for _, query in problem.tasks])


@given(problems())
def test_reptile_with_one_step_is_alpha_times_joint_training(problem):
    problem = on_one_batch(problem, 1)
    assert_same(reptile(*problem.arguments), scaled(problem.alpha, joint(*problem.arguments)))


@given(problems())
def test_reptile_sums_the_inner_gradients(problem):
    loss, theta, tasks, alpha = problem.arguments
    zero = [0 * leaf for leaf in theta]
    gradients = [
        grad(loss)(phi, support)
        for supports, _ in tasks
        for phi, support in zip(trajectory(loss, theta, supports, alpha), supports, strict=False)
    ]
    assert_same(reptile(*problem.arguments), scaled(alpha, add([zero, *gradients])))


@given(st.integers(1, 4), problems())
def test_reptile_is_alpha_times_the_sum_of_first_order_mamls_when_all_batches_are_the_same(k, problem):
    fomamls = [fomaml(*on_one_batch(problem, j).arguments) for j in range(k)]
    assert_same(reptile(*on_one_batch(problem, k).arguments), scaled(problem.alpha, add(fomamls)))


@given(problems(steps=(0, 0)))
def test_without_inner_steps_all_of_maml_is_joint_training(problem):
    for algorithm in (maml, fomaml, anil):
        assert_same(algorithm(*problem.arguments), joint(*problem.arguments))
    assert not flat(reptile(*problem.arguments)).any()


@given(problems())
def test_with_alpha_zero_all_of_maml_is_joint_training(problem):
    problem = problem._replace(alpha=0)
    for algorithm in (maml, fomaml, anil):
        assert_same(algorithm(*problem.arguments), joint(*problem.arguments))
    assert not flat(reptile(*problem.arguments)).any()


@given(problems())
def test_a_linear_loss_makes_first_order_maml_exact(problem):
    def linear(theta, batch):
        x, _ = batch
        return sum(np.sum(x) * dot([leaf], [np.cos(np.arange(leaf.size)).reshape(leaf.shape)]) for leaf in theta)

    problem = problem._replace(loss=linear)
    assert_same(fomaml(*problem.arguments), maml(*problem.arguments))


@given(problems())
def test_anil_with_everything_in_the_head_is_maml(problem):
    assert_same(anil(*problem.arguments, head=len(problem.theta)), maml(*problem.arguments))


@given(problems())
def test_anil_with_nothing_in_the_head_is_joint_training(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd: there is nothing to differentiate in the inner step
        assert_same(anil(*problem.arguments, head=0), joint(*problem.arguments))


@given(st.data(), problems(steps=(1, 3)))
def test_only_the_head_moves(data, problem):
    head = data.draw(st.integers(1, len(problem.theta)))
    loss, theta, tasks, alpha = problem.arguments
    points = []

    def spy(phi, batch):
        points.append([getval(leaf) for leaf in phi])
        return loss(phi, batch)

    anil(spy, theta, tasks, alpha, head)
    assert len(points) == sum(len(supports) + 1 for supports, _ in tasks)
    for phi in points:
        assert flat(phi[:-head] + [0]).tolist() == flat(theta[:-head] + [0]).tolist()
    assert_same(points[1][-head:], axpy(-alpha, grad(loss)(theta, tasks[0][0][0]), theta)[-head:])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(problem=problems())
def test_tasks_add_and_commute(algorithm, problem):
    loss, theta, tasks, alpha = problem.arguments
    whole = algorithm(*problem.arguments)
    assert_same(add(algorithm(loss, theta, [task], alpha) for task in tasks), whole)
    assert_same(algorithm(loss, theta, tasks[::-1], alpha), whole)


@given(problems(activations=["tanh"], steps=(1, 4)))
def test_maml_minus_fomaml_is_second_order_in_alpha(problem):
    """MAML − FOMAML = −α Σ_k H_k ∇L_Q + O(α²), so the sum of both sides falls fourfold as α halves."""
    loss, theta, tasks, _ = problem.arguments
    curvature = add(add([hvp(loss, theta, s, grad(loss)(theta, query)) for s in supports]) for supports, query in tasks)

    def rest(alpha):
        both = axpy(-1, fomaml(loss, theta, tasks, alpha), maml(loss, theta, tasks, alpha))
        return np.linalg.norm(flat(axpy(alpha, curvature, both)))

    if rest(4e-4) > 1e-10:  # with one affine layer and one step there may be nothing left
        assert rest(4e-4) / rest(2e-4) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(problem=problems(dtypes=["float64", "float32"]))
def test_no_argument_is_touched(algorithm, problem):
    arrays = [*problem.theta, *(a for s, q in problem.tasks for batch in [*s, q] for a in batch)]
    before = [a.tobytes() for a in arrays]
    lengths = len(problem.theta), len(problem.tasks)
    algorithm(*problem.arguments)
    assert [a.tobytes() for a in arrays] == before
    assert (len(problem.theta), len(problem.tasks)) == lengths


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(problem=problems(dtypes=["float32"]))
def test_float32_stays_float32(algorithm, problem):
    assert {leaf.dtype for leaf in algorithm(*problem.arguments)} == {np.dtype("float32")}
    for supports, query in problem.tasks:
        for phi in trajectory(problem.loss, problem.theta, supports, problem.alpha):
            assert {leaf.dtype for leaf in phi} == {np.dtype("float32")}
            assert problem.loss(phi, query).dtype == np.float32


@pytest.mark.parametrize("algorithm", EXACT)
def test_results_are_plain_arrays(algorithm, example):
    assert {type(leaf) for leaf in algorithm(*example)} == {np.ndarray}


def test_reptile_with_one_step_trains_as_joint_training_does(example):
    """A whole run, step by step: θ ← θ − ε(θ − φ) and θ ← θ − εα∇L, to the last digits."""
    loss, theta, tasks, alpha = example
    batches = [query for _, query in tasks]

    def sample(rng):
        batch = batches[rng.integers(len(batches))]
        return [([batch], batch)] * 2

    run = {"loss": loss, "theta": theta, "sample": sample, "alpha": alpha, "iterations": 200}
    by_reptile, _ = train(reptile, outer=sgd(0.5), **run)
    by_joint, _ = train(joint, outer=sgd(0.5 * alpha), **run)
    assert_same(by_reptile, by_joint, digits=13)
    assert np.linalg.norm(flat(by_joint) - flat(theta)) > 0.1
