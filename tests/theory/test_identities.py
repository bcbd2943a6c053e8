"""What is provably so of the algorithms, for any network, loss and tasks."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from autograd import grad
from autograd.tracer import getval
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import (
    a_mean_of_gradients,
    a_mean_over_tasks,
    a_step_too_few,
    divided_by_alpha,
    everything_adapts,
    head_detached,
    off,
    smallest_refused,
    the_last_step_alone,
    the_last_support_for_the_query,
    the_query_at_theta,
)
from problems import ALGORITHMS, assert_same, descent, drawn, fixed, flat, problems

from refmeta import anil, fomaml, joint, maml, reptile, trajectory
from refmeta.adjoint import hvp
from refmeta.lab import sgd, train
from refmeta.models import MLP
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
def test_supports_and_alpha_have_no_influence_on_joint_training(problem):
    loss, theta, tasks, _ = problem.arguments
    direct = add(grad(loss)(theta, query) for _, query in tasks)
    assert_same(joint(*problem.arguments), direct)
    assert_same(joint(loss, theta, [([], query) for _, query in tasks]), direct)


@given(problems())
def test_with_alpha_zero_all_of_maml_is_joint_training(problem):
    problem = problem._replace(alpha=0)
    for algorithm in (maml, fomaml, anil):
        assert_same(algorithm(*problem.arguments), joint(*problem.arguments))
    assert not flat(reptile(*problem.arguments)).any()


@given(problems())
def test_a_linear_loss_makes_first_order_maml_exact(problem):
    """It is the supports' loss that is linear: the query's is the network's, so φ matters."""
    loss, theta, tasks, alpha = problem.arguments

    def linear_on_supports(theta, batch):
        if any(batch is query for _, query in tasks):
            return loss(theta, batch)
        x, _ = batch
        return sum(np.sum(x) * dot([leaf], [np.cos(np.arange(leaf.size)).reshape(leaf.shape)]) for leaf in theta)

    arguments = linear_on_supports, theta, tasks, alpha
    assert_same(fomaml(*arguments), maml(*arguments))
    with pytest.raises(AssertionError):
        assert_same(joint(*arguments), maml(*arguments))


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
    assert_only_the_head_moves(anil, problem, data.draw(st.integers(1, len(problem.theta))))


def assert_only_the_head_moves(anil, problem, head):
    """The losses are taken at φ_0 … φ_K of the head's descent, one after the other, and each step moves the head."""
    loss, theta, tasks, alpha, _ = problem
    points = []

    def spy(phi, batch):
        points.append([getval(leaf) for leaf in phi])
        return loss(phi, batch)

    anil(spy, theta, tasks, alpha, head)
    one = [leaf[None] for leaf in theta]
    expected = [[leaf[0] for leaf in phi] for S, _ in tasks for phi in descent(loss, one, S, alpha, head)]
    assert len(points) == len(expected)
    for phi, right in zip(points, expected, strict=True):
        assert [leaf.tolist() for leaf in phi[:-head]] == [leaf.tolist() for leaf in theta[:-head]]
        assert_same(phi, right)
    for phi, after in pairwise(points[: len(tasks[0][0]) + 1]):
        assert (flat(phi[-head:]) != flat(after[-head:])).any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=20)
@given(problem=problems(tasks=(2, 3)))
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

    assert rest(4e-4) / rest(2e-4) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=10)  # whatever is written to or cast is so in any example
@given(problem=problems(dtypes=["float64", "float32"]))
def test_no_argument_is_touched(algorithm, problem):
    arrays = [*problem.theta, *(a for s, q in problem.tasks for batch in [*s, q] for a in batch)]
    before = [a.tobytes() for a in arrays]
    lengths = len(problem.theta), len(problem.tasks)
    algorithm(*problem.arguments)
    assert [a.tobytes() for a in arrays] == before
    assert (len(problem.theta), len(problem.tasks)) == lengths


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=10)
@given(problem=problems(dtypes=["float32"]))
def test_float32_stays_float32(algorithm, problem):
    assert {leaf.dtype for leaf in algorithm(*problem.arguments)} == {np.dtype("float32")}
    for supports, query in problem.tasks:
        for phi in trajectory(problem.loss, problem.theta, supports, problem.alpha):
            assert {leaf.dtype for leaf in phi} == {np.dtype("float32")}
            assert problem.loss(phi, query).dtype == np.float32


@pytest.mark.parametrize("algorithm", ALGORITHMS)
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
    by_another, _ = train(everything_adapts, outer=sgd(0.5 * alpha), **run)
    with pytest.raises(AssertionError):
        assert_same(by_reptile, by_another, digits=13)


# --- Each of them refuses a wrong gradient ---


def writing_into_theta(loss, theta, tasks, alpha):
    theta[0] += 1
    return joint(loss, theta, tasks)


def in_float64(loss, theta, tasks, alpha):
    return [leaf.astype(float) for leaf in joint(loss, theta, tasks)]


NET = MLP((2, 3, 2))
WITHOUT_STEPS = {"problem": fixed(NET, False, 0)}
SINGLE = {"problem": drawn(np.random.default_rng(0), NET, False, [(1, 2, 2)], 0.1, "float32")}
REFUSED = [  # the test, whose place the wrong one takes, the wrong one, and more arguments of the test
    (test_reptile_with_one_step_is_alpha_times_joint_training, "reptile", divided_by_alpha, {}),
    (test_reptile_with_one_step_is_alpha_times_joint_training, "joint", a_mean_of_gradients, {}),
    (test_reptile_sums_the_inner_gradients, "reptile", the_last_step_alone, {}),
    (
        test_reptile_is_alpha_times_the_sum_of_first_order_mamls_when_all_batches_are_the_same,
        "fomaml",
        everything_adapts,
        {"k": 3},
    ),
    (test_without_inner_steps_all_of_maml_is_joint_training, "maml", a_mean_over_tasks, WITHOUT_STEPS),
    (test_without_inner_steps_all_of_maml_is_joint_training, "fomaml", a_mean_over_tasks, WITHOUT_STEPS),
    (test_without_inner_steps_all_of_maml_is_joint_training, "anil", a_mean_over_tasks, WITHOUT_STEPS),
    (test_supports_and_alpha_have_no_influence_on_joint_training, "joint", everything_adapts, {}),
    (test_with_alpha_zero_all_of_maml_is_joint_training, "fomaml", the_last_support_for_the_query, {}),
    (test_a_linear_loss_makes_first_order_maml_exact, "fomaml", the_query_at_theta, {}),
    (test_anil_with_everything_in_the_head_is_maml, "anil", head_detached, {}),
    (test_anil_with_nothing_in_the_head_is_joint_training, "anil", head_detached, {}),
    (test_tasks_add_and_commute, "algorithm", a_mean_over_tasks, {}),
    (test_maml_minus_fomaml_is_second_order_in_alpha, "maml", a_step_too_few, {}),
    (test_no_argument_is_touched, "algorithm", writing_into_theta, {}),
    (test_float32_stays_float32, "algorithm", in_float64, SINGLE),
]


def fed(monkeypatch, test, name, function, more):
    """The body of the test, with another function in the place of one."""
    given = {"problem": fixed(NET, False, 3), **more}
    if name == "algorithm":
        given[name] = function
    else:
        monkeypatch.setitem(globals(), name, function)
    test.hypothesis.inner_test(**given)
    monkeypatch.undo()


@pytest.mark.parametrize(("test", "name", "wrong", "more"), REFUSED)
def test_each_identity_refuses_a_wrong_gradient(test, name, wrong, more, monkeypatch):
    with pytest.raises(AssertionError):
        fed(monkeypatch, test, name, wrong, more)


@pytest.mark.parametrize(("test", "name", "more"), [(t, n, m) for t, n, _, m in REFUSED if n != "algorithm"])
def test_the_smallest_error_in_one_coordinate_that_an_identity_refuses(test, name, more, monkeypatch):
    """`pytest -s -k smallest_error` prints what docs/trials.md has."""
    algorithm = globals()[name]

    def nearly(epsilon):
        return lambda *arguments, **head: off(algorithm(*arguments, **head), 0, epsilon)

    seen = smallest_refused(lambda e: fed(monkeypatch, test, name, nearly(e), more))
    print(test.__name__, name, f"{seen:.0e}")
    assert seen <= (2e-4 if test is test_maml_minus_fomaml_is_second_order_in_alpha else 1e-7)


def test_only_the_head_moves_refuses_what_moves_all_and_what_moves_nothing():
    problem = fixed(NET, False, 3)
    for head in (len(problem.theta), 0):
        with pytest.raises(AssertionError):
            assert_only_the_head_moves(lambda *arguments: anil(*arguments[:-1], head=head), problem, 2)
