"""What a caller can get wrong, each with what was expected instead."""

import numpy as np
import pytest
from autograd import grad
from problems import ALGORITHMS, assert_same

from refmeta import adapt, anil, joint, maml, objective, reptile, trajectory
from refmeta.trees import add, axpy, dot


def changed(example, **changes):
    names = ("loss", "theta", "tasks", "alpha")
    return {**dict(zip(names, example, strict=True)), **changes}


def with_data(example, x=None, y=None, support=True):
    """The example with another x or y in the first support batch, or in the first query."""
    _, _, ((supports, query), *rest), _ = example
    old = supports[0] if support else query
    batch = (old[0] if x is None else x, old[1] if y is None else y)
    first = ([batch, *supports[1:]], query) if support else (supports, batch)
    return changed(example, tasks=[first, *rest])


BAD = np.array([[1.0, np.nan]])


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda e: changed(e, loss=None), TypeError, r"loss: expected a function of \(theta, batch\)"),
        (lambda e: changed(e, theta=[]), ValueError, "theta: expected a list of arrays, got an empty one"),
        (lambda e: changed(e, theta=e[1][0]), TypeError, r"theta: expected a list of arrays, got an array"),
        (lambda e: changed(e, theta=[1.0]), TypeError, r"theta\[0\]: expected a NumPy array, got float 1.0"),
        (
            lambda e: changed(e, theta=[np.arange(3)]),
            TypeError,
            r"theta\[0\]: expected floating-point numbers",
        ),
        (lambda e: changed(e, theta=[BAD]), ValueError, r"theta\[0\]: expected finite numbers, got NaN"),
        (lambda e: changed(e, theta=[1 / np.full(1, 1e-310)]), ValueError, "finite numbers, got inf"),
        (lambda e: changed(e, theta=[*e[1], e[1][0]]), ValueError, "theta has 5 arrays; an MLP .* has 4"),
        (lambda e: changed(e, tasks=[]), ValueError, "tasks: expected at least one task"),
        (lambda e: changed(e, tasks=iter(e[2])), TypeError, "tasks: expected a list of tasks"),
        (lambda e: changed(e, tasks=[e[2][0][0]]), TypeError, r"tasks\[0\]: expected a pair"),
        (lambda e: changed(e, tasks=[(1, 2)]), TypeError, r"tasks\[0\] supports: expected a list of batches"),
        (lambda e: changed(e, tasks=[([BAD], BAD)]), TypeError, r"supports\[0\]: expected a pair \(x, y\)"),
        (lambda e: with_data(e, x=BAD), ValueError, r"tasks\[0\] supports\[0\] x: expected finite .*NaN"),
        (lambda e: with_data(e, y=BAD, support=False), ValueError, r"tasks\[0\] query y: .*NaN"),
        (lambda e: with_data(e, x=[1, 2]), TypeError, r"x: expected a NumPy array, got a list of 2"),
        (lambda e: with_data(e, x=np.array(["a"])), TypeError, "x: expected numbers, got <U1"),
    ],
)
def test_bad_arguments_are_refused(change, error, message, example):
    for algorithm in ALGORITHMS:
        with np.errstate(over="ignore"), pytest.raises(error, match=message):
            algorithm(**change(example))


@pytest.mark.parametrize(
    "alpha, error, message",
    [
        (float("nan"), ValueError, "alpha: expected a finite number of at least 0, got nan"),
        (float("inf"), ValueError, "got inf"),
        (-0.1, ValueError, "got -0.1"),
        (np.array([0.1, 0.1]), TypeError, r"alpha: expected one number, got an array of shape \(2,\)"),
        (np.array(0.1), TypeError, "alpha: expected one number"),
        ("0.1", TypeError, "alpha: expected one number, got str '0.1'"),
        (None, TypeError, "alpha: expected one number"),
        (True, TypeError, "alpha: expected one number, got bool True"),
    ],
)
def test_an_impossible_alpha_is_refused(alpha, error, message, example):
    arguments = changed(example, alpha=alpha)
    of_one_task = {**arguments, "supports": arguments["tasks"][0][0]}
    del of_one_task["tasks"]
    for algorithm in [a for a in ALGORITHMS if a is not joint] + [objective, adapt, trajectory]:
        with pytest.raises(error, match=message):
            algorithm(**(of_one_task if algorithm in (adapt, trajectory) else arguments))


def test_a_missing_query_is_refused_by_all_but_reptile(example):
    loss, theta, tasks, alpha = example
    for algorithm in [a for a in ALGORITHMS if a is not reptile] + [objective]:
        with pytest.raises(ValueError, match=r"tasks\[2\] query: expected a batch \(x, y\), got None"):
            algorithm(loss, theta, [*tasks[:2], (tasks[2][0], None)], alpha)
    reptile(loss, theta, [*tasks[:2], (tasks[2][0], None)], alpha)


def test_a_broadcast_that_would_fit_the_mean_is_refused(example):
    loss, theta, tasks, alpha = example
    x, y = tasks[0][1]
    with pytest.raises(ValueError, match=r"y has shape \(7,\); the prediction has \(7, 2\)"):
        joint(loss, theta, [([], (x, y[:, 0]))])


@pytest.mark.parametrize(
    "head, error, message",
    [
        (5, ValueError, r"head: theta has 4 arrays, so 0 … 4 of them can adapt; got 5"),
        (-1, ValueError, "got -1"),
        (1.0, TypeError, "head: expected a number of arrays, got float 1.0"),
        (True, TypeError, "head: expected a number of arrays"),
        (None, TypeError, "head: expected a number of arrays, got NoneType"),
    ],
)
def test_an_impossible_head_is_refused(head, error, message, example):
    with pytest.raises(error, match=message):
        anil(*example, head=head)


def test_the_default_head_is_checked_too(example):
    with pytest.raises(ValueError, match="theta has 1 arrays, so 0 … 1 of them can adapt; got 2"):
        anil(example[0], example[1][:1], example[2], 0.1)


@pytest.mark.parametrize("function", [lambda x, y: axpy(1, x, y), lambda *trees: add(trees), dot])
def test_lists_of_different_lengths_are_not_cut_to_the_shorter(function, example):
    theta = example[1]
    with pytest.raises(ValueError, match="shorter"):
        function(theta, theta[:-1])


def test_an_empty_batch_is_refused(example):
    loss, theta, tasks, alpha = example
    empty = tasks[0][0][0][0][:0], tasks[0][0][0][1][:0]
    with pytest.raises(ValueError, match="x has no examples"):
        joint(loss, theta, [([], empty)])


def test_an_unknown_or_missing_argument_is_a_type_error(example):
    with pytest.raises(TypeError):
        maml(*example, first_order=True)
    with pytest.raises(TypeError):
        maml(*example[:3])


def test_arrays_of_another_kind_are_refused_for_what_they_are(example):
    masked, text = np.ma.ones((2, 3)), np.array(["a"])
    for thing, error, message in [
        (masked, TypeError, r"theta\[0\]: expected a NumPy array itself, no subclass, got a MaskedArray of shape"),
        (text, TypeError, r"theta\[0\]: expected floating-point numbers, got <U1"),
        (np.ones(2, complex), TypeError, r"theta\[0\]: expected floating-point numbers, got complex128"),
    ]:
        with pytest.raises(error, match=message):
            maml(**changed(example, theta=[thing]))


def test_what_is_merely_unusual_is_taken(example):
    loss, theta, tasks, alpha = example
    plain = maml(*example)
    assert_same(maml(loss, tuple(theta), tuple(tasks), np.float64(alpha)), plain, digits=15)
    assert_same(maml(loss, theta, [(tuple(s), list(q)) for s, q in tasks], alpha), plain, digits=15)
    read_only = [leaf.copy() for leaf in theta]
    for leaf in read_only:
        leaf.flags.writeable = False
    assert_same(maml(loss, read_only, tasks, alpha), plain, digits=15)


def test_a_numpy_alpha_does_not_turn_float32_into_float64(example):
    loss, theta, tasks, alpha = example
    single = [leaf.astype("float32") for leaf in theta]
    batches = [([(x.astype("float32"), y.astype("float32")) for x, y in s], s[0]) for s, _ in tasks]
    phi = adapt(loss, single, batches[0][0], np.float64(alpha))
    assert {leaf.dtype for leaf in phi} == {np.dtype("float32")}


def test_the_public_functions_can_be_differentiated(example):
    """The checks look through autograd's boxes: ∂/∂θ of the adapted loss, taken by the caller, is MAML."""
    loss, theta, tasks, alpha = example
    supports, query = tasks[0]
    g = grad(lambda theta: loss(adapt(loss, theta, supports, alpha), query))(theta)
    assert_same(g, maml(loss, theta, tasks[:1], alpha), digits=14)


def unreduced(theta, batch):
    return (theta[0] - batch[0]) ** 2


def through_float(theta, batch):
    return float(np.sum(unreduced(theta, batch)))


def with_a_bug(theta, batch):
    return np.sum(unreduced(theta, batch)) + None


@pytest.mark.parametrize(
    "loss, message",
    [
        (unreduced, "loss: expected one number, computed with autograd.numpy; it returns an array"),
        (through_float, rf"loss: expected one number, .* not 'ArrayBox' \({__file__}:\d+\)"),
        (with_a_bug, "unsupported operand"),
    ],
)
def test_a_loss_that_autograd_cannot_differentiate_is_refused_in_few_lines(loss, message):
    batch = np.ones(3), np.ones(3)
    for algorithm in ALGORITHMS:
        with pytest.raises(TypeError, match=message) as raised:
            algorithm(loss, [np.ones(3)] * 2, [([batch], batch)], 0.1)
        assert (len(raised.traceback) < 4) == (loss is not with_a_bug), "a bug of one's own keeps its traceback"
        assert raised.value.__context__ is None
