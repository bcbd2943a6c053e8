"""Every algorithm's answer is the derivative it should be: by differences, Taylor, adjoints, complex steps."""

import warnings
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from autograd import grad
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from implementations import WRONG, off, refuses, smallest_refused
from problems import (
    ALGORITHMS,
    EXACT,
    assert_derivative,
    assert_same,
    assert_taylor,
    away_from_kinks,
    differences,
    distance_to_kinks,
    fixed,
    flat,
    function_of,
    problems,
    tame,
)

from refmeta import adjoint, anil, fomaml, joint, maml, reptile
from refmeta.models import MLP, ConvNet
from tests.vectors import complex_steps

# --- The checks: each refuses a gradient that is not what the algorithm should give for the problem ---


def by_differences(algorithm, problem, g, head=2):
    assert_derivative(function_of(algorithm, problem, head), problem.theta, g)


def by_taylor(algorithm, problem, g, head=2):
    direction = np.random.default_rng(0).choice([-1, 1], flat(g).size)
    assert_taylor(function_of(algorithm, problem, head), problem.theta, g, direction / len(direction) ** 0.5)


def by_adjoint(algorithm, problem, g, head=2):
    second = {maml: adjoint.maml, anil: partial(adjoint.anil, head=head)}
    assert_same(second[algorithm](*problem.arguments), g)


def by_complex_steps(algorithm, problem, g, head=2):
    moving = {maml: None, anil: head, joint: 0}
    assert_same(complex_steps.meta_gradient(problem.theta, problem.tasks, problem.alpha, moving[algorithm]), g)


CHECKS = {by_differences: ALGORITHMS, by_taylor: ALGORITHMS, by_adjoint: [maml, anil], by_complex_steps: EXACT}
CHECKED = [(check, algorithm) for check, algorithms in CHECKS.items() for algorithm in algorithms]


# --- All five algorithms, K = 0 … 5, fixed problems ---

NETWORKS = [
    (MLP((2, 3, 2), "tanh"), False),
    (MLP((2, 3, 2), "relu"), True),
    (ConvNet((3, 3, 1), (2,), 2, "relu"), True),
]


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize(("net", "classify"), NETWORKS, ids=["MLP-tanh", "MLP-relu", "ConvNet-relu"])
def test_every_algorithm_is_the_derivative_of_its_function_in_every_coordinate(net, classify, steps):
    """Of its objective; FOMAML and Reptile of the losses at θ + δ, the displacements δ = φ − θ frozen."""
    problem = fixed(net, classify, steps)
    for algorithm in ALGORITHMS:
        by_differences(algorithm, problem, algorithm(*problem.arguments))


@pytest.mark.parametrize(("net", "classify"), NETWORKS)
def test_fixed_problems_tell_the_algorithms_apart_from_one_step_on(net, classify):
    for steps in range(6):
        problem = fixed(net, classify, steps)
        g = {algorithm: flat(algorithm(*problem.arguments)) for algorithm in ALGORITHMS}
        for a, b in combinations(ALGORITHMS, 2):
            differ = steps > 0 or reptile in (a, b)
            assert (distance(g[a], g[b]) > 1e-3) == differ, (a, b)


def test_a_problem_at_a_kink_is_seen_and_its_differences_refuse_a_right_gradient():
    problem = fixed(MLP((2, 3, 2), "relu"), False, 1)
    assert away_from_kinks(problem) and away_from_kinks(problem, 2)
    W1, b1, *head = problem.theta
    (((x, _),), _), _ = problem.tasks
    b1 = b1 - np.array([(x[0] @ W1 + b1)[0] - 1e-5, 0, 0])
    problem = problem._replace(theta=[W1, b1, *head])
    assert distance_to_kinks(problem) == pytest.approx(1e-5)
    assert not away_from_kinks(problem) and not away_from_kinks(problem, 2)
    assert refuses(by_differences, maml, problem, maml(*problem.arguments))


def distance(a, b):
    return np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b))


@settings(max_examples=20)
@given(problems())
def test_drawn_problems_tell_the_algorithms_apart(problem):
    """But ANIL may be MAML where the supports move nothing in the body that the query sees."""
    g = {algorithm: flat(algorithm(*problem.arguments)) for algorithm in ALGORITHMS}
    for a, b in combinations(ALGORITHMS, 2):
        if {a, b} != {maml, anil} or body_matters(problem):
            assert distance(g[a], g[b]) > 1e-6, (a, b)


def body_matters(problem):
    """Whether a support's and its query's gradients in the body overlap: relu may let other units through."""
    loss, theta, tasks, _ = problem.arguments
    body = slice(0, sum(leaf.size for leaf in theta[:-2]))
    pairs = ((support, query) for supports, query in tasks for support in supports)
    return any((flat(grad(loss)(theta, s)) * flat(grad(loss)(theta, q)))[body].any() for s, q in pairs)


def asymmetry(algorithm, problem):
    """‖J − Jᵀ‖ / ‖J‖, J being the derivative of the algorithm's answer in θ."""

    def answers(points):
        thetas = zip(*points, strict=True)
        return np.array([flat(algorithm(problem.loss, list(t), problem.tasks, problem.alpha)) for t in thetas])

    jacobian, _ = differences(answers, problem.theta)
    return np.linalg.norm(jacobian - jacobian.T) / np.linalg.norm(jacobian)


def test_maml_anil_and_joint_have_a_symmetric_jacobian_and_fomaml_and_reptile_have_none():
    """So these two are no gradients in general: FOMAML without steps, and Reptile with one, are joint training."""
    problem_of = {steps: fixed(MLP((1, 2, 1)), False, steps) for steps in range(3)}
    for algorithm, steps in [(maml, 2), (anil, 2), (joint, 2), (fomaml, 0), (reptile, 1)]:
        assert asymmetry(algorithm, problem_of[steps]) < 1e-9
    for algorithm, steps in [(fomaml, 1), (fomaml, 2), (reptile, 2)]:
        assert asymmetry(algorithm, problem_of[steps]) > 1e-2


# --- MAML and ANIL, any head and any small network ---


def heads(problem):
    """ANIL's possible heads, and None for MAML."""
    return st.sampled_from([None, *range(1, len(problem.theta) + 1)])


def assert_right(check, problem, head):
    with np.errstate(all="ignore"):
        assume(away_from_kinks(problem, head))
        g = maml(*problem.arguments) if head is None else anil(*problem.arguments, head=head)
        tame(g)
    check(maml if head is None else anil, problem, g, head)


@given(st.data(), problems(steps=(0, 5)))
def test_maml_and_anil_match_finite_differences_in_every_coordinate(data, problem):
    assert_right(by_differences, problem, data.draw(heads(problem)))


@given(st.data(), problems(activations=["tanh"]))
def test_the_taylor_remainder_of_maml_and_anil_is_of_second_order(data, problem):
    assert_right(by_taylor, problem, data.draw(heads(problem)))


@given(st.data(), problems(steps=(0, 5)))
def test_the_adjoint_is_the_same_gradient(data, problem):
    assert_right(by_adjoint, problem, data.draw(heads(problem)))


@given(st.data(), problems([MLP], ["tanh"], steps=(0, 5)))
def test_complex_steps_through_hand_written_gradients_agree(data, problem):
    assert_right(by_complex_steps, problem, data.draw(heads(problem)))


@settings(max_examples=10)
@given(problems(activations=["tanh"], steps=(1, 1)))
def test_an_empty_head_leaves_the_gradient_of_joint_training_by_the_adjoint_too(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd: there is nothing to differentiate in the inner step
        assert_same(adjoint.anil(*problem.arguments, head=0), joint(*problem.arguments))


# --- Each check refuses what is wrong, and this much of it ---


@pytest.mark.parametrize(("check", "algorithm"), CHECKED)
def test_each_check_takes_the_right_gradient_and_refuses_wrong_ones(check, algorithm):
    problem = fixed(MLP((2, 3, 2)), False, 3)
    check(algorithm, problem, algorithm(*problem.arguments))
    for wrong in WRONG[algorithm]:
        assert refuses(check, algorithm, problem, wrong(*problem.arguments)), wrong


SEEN = {by_differences: 2e-6, by_taylor: 2e-3, by_adjoint: 2e-8, by_complex_steps: 2e-8}


@pytest.mark.parametrize(("check", "algorithm"), CHECKED)
def test_the_smallest_error_in_one_coordinate_that_is_refused(check, algorithm):
    """`pytest -s -k smallest_error` prints what docs/trials.md has: of the largest coordinate, and of the smallest."""
    problem = fixed(MLP((2, 3, 2)), False, 3)
    g = algorithm(*problem.arguments)
    seen = [
        smallest_refused(lambda e, j=j: check(algorithm, problem, off(g, j, e)))
        for j in np.abs(flat(g)).argsort()[[-1, 0]]
    ]
    print(check.__name__, algorithm.__name__, *(f"{e:.0e}" for e in seen))
    assert max(seen) <= SEEN[check]


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
