"""MAML's and ANIL's gradients are derivatives: by differences, by Taylor, by adjoint, by complex steps."""

import warnings
from functools import partial

import numpy as np
import pytest
from autograd import grad
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    assert_derivative,
    assert_same,
    assert_taylor,
    away_from_kinks,
    flat,
    objective_of,
    problems,
    tame,
    trajectory_of,
)

from refmeta import adjoint, anil, maml
from refmeta.trees import add
from tests.vectors import complex_steps


def heads(problem):
    """ANIL's possible heads, and None for MAML."""
    return st.sampled_from([None, *range(1, len(problem.theta) + 1)])


def gradient_and_function(problem, head):
    loss, theta, tasks, alpha = problem.arguments
    with np.errstate(all="ignore"):
        away_from_kinks(problem, head)
        g = maml(*problem.arguments) if head is None else anil(*problem.arguments, head=head)
        tame(g)
    return g, lambda theta: objective_of(loss, theta, tasks, alpha, head)


@given(st.data(), problems())
def test_maml_and_anil_match_finite_differences_in_random_directions(data, problem):
    g, function = gradient_and_function(problem, data.draw(heads(problem)))
    directions = np.random.default_rng(0).normal(size=(3, flat(g).size))
    assert_derivative(function, problem.theta, g, directions)


@given(st.data(), problems(steps=(0, 3)))
def test_maml_and_anil_match_finite_differences_in_every_coordinate(data, problem):
    g, function = gradient_and_function(problem, data.draw(heads(problem)))
    assert_derivative(function, problem.theta, g, np.eye(flat(g).size))


@given(st.data(), problems(activations=["tanh"]))
def test_the_taylor_remainder_of_maml_and_anil_is_of_second_order(data, problem):
    g, function = gradient_and_function(problem, data.draw(heads(problem)))
    direction = np.random.default_rng(1).normal(size=flat(g).size)
    assert_taylor(function, problem.theta, g, direction / np.linalg.norm(direction))


@given(st.data(), problems())
def test_the_adjoint_is_the_same_gradient(data, problem):
    head = data.draw(heads(problem))
    g, _ = gradient_and_function(problem, head)
    second = adjoint.maml if head is None else partial(adjoint.anil, head=head)
    assert_same(second(*problem.arguments), g)


@given(st.data(), problems(activations=["tanh"]))
def test_complex_steps_through_hand_written_gradients_agree(data, problem):
    head = data.draw(heads(problem))
    g, _ = gradient_and_function(problem, head)
    assert_same(complex_steps.meta_gradient(problem.theta, problem.tasks, problem.alpha, head), g)


@given(problems(activations=["tanh"], steps=(1, 1)))
def test_an_empty_head_leaves_the_gradient_of_joint_training_by_the_adjoint_too(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd: there is nothing to differentiate in the inner step
        assert_same(adjoint.anil(*problem.arguments, head=0), anil(*problem.arguments, head=0))


# --- Each kind of check refuses something wrong: first-order where second order is claimed, MAML's and ANIL's. ---


@pytest.fixture(params=[None, 2], ids=["maml", "anil"])
def head(request):
    return request.param


@pytest.fixture
def wrong(example, head):
    """A first-order gradient, the function that it is not the derivative of, and the right derivations."""
    loss, theta, tasks, alpha = example
    ends = [(trajectory_of(loss, theta, supports, alpha, head)[-1], query) for supports, query in tasks]
    return add(grad(loss)(phi, query) for phi, query in ends), lambda theta: objective_of(
        loss, theta, tasks, alpha, head
    )


def test_finite_differences_refuse_a_wrong_gradient(example, wrong):
    g, function = wrong
    with pytest.raises(AssertionError):
        assert_derivative(function, example[1], g, np.eye(flat(g).size))


def test_a_random_direction_refuses_a_wrong_gradient(example, wrong):
    g, function = wrong
    with pytest.raises(AssertionError):
        assert_derivative(function, example[1], g, np.random.default_rng(0).normal(size=(1, flat(g).size)))


def test_the_taylor_remainder_refuses_a_wrong_gradient(example, wrong):
    g, function = wrong
    with pytest.raises(AssertionError):
        assert_taylor(function, example[1], g, np.random.default_rng(0).normal(size=flat(g).size))


def test_the_adjoint_refuses_a_wrong_gradient(example, wrong, head):
    with pytest.raises(AssertionError):
        assert_same(adjoint.maml(*example) if head is None else adjoint.anil(*example), wrong[0])


def test_complex_steps_refuse_a_wrong_gradient(example, wrong, head):
    _, theta, tasks, alpha = example
    with pytest.raises(AssertionError):
        assert_same(complex_steps.meta_gradient(theta, tasks, alpha, head), wrong[0])


def test_the_head_is_the_last_layer_unless_said_otherwise(example):
    assert_same(anil(*example), anil(*example, head=2), digits=15)
    assert_same(adjoint.anil(*example), anil(*example, head=2), digits=13)
    with pytest.raises(AssertionError):
        assert_same(anil(*example), anil(*example, head=1))


def test_the_comparison_refuses_a_transposed_array_and_one_wrong_digit(example):
    g = maml(*example)
    with pytest.raises(AssertionError):
        assert_same([g[0].T, *g[1:]], g)
    with pytest.raises(AssertionError):
        assert_same([g[0] * (1 + 1e-9), *g[1:]], g)
