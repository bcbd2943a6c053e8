"""Running all tasks in one trace changes nothing but the rounding."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ALGORITHMS, assert_same, flat, problems

from refmeta import adapt, adjoint, maml, objective, reptile, stacked, trajectory
from refmeta.fast.stacked import copies, stack
from refmeta.lab import adam, reptile_by
from refmeta.models import squared_error
from refmeta.trees import dot


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, adjoint.maml, adjoint.anil, reptile_by(adam)])
@settings(max_examples=20)
@given(problem=problems(steps=(0, 5)))
def test_stacked_is_the_same_function(algorithm, problem):
    assert_same(stacked(algorithm)(*problem.arguments), algorithm(*problem.arguments))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=10)
@given(problem=problems(dtypes=["float32"]))
def test_stacked_float32_stays_float32(algorithm, problem):
    assert {leaf.dtype for leaf in stacked(algorithm)(*problem.arguments)} == {np.dtype("float32")}


@given(problem=problems(steps=(0, 5)))
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


@given(problem=problems(steps=(0, 5), ragged=False))
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

    with pytest.raises(ValueError, match="sum over the tasks; for 2 tasks it returned"):
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


def straight(t, b):
    return b[0] @ t[0] - b[1]


WRONG = {  # ordinary losses of one task, and what happens to them under a task axis
    "divided by len(x)": lambda t, b: anp.sum(straight(t, b) ** 2) / len(b[0]),
    "mean": lambda t, b: anp.mean(straight(t, b) ** 2),
    "mean over the first axis": lambda t, b: anp.mean(straight(t, b) ** 2, axis=0).sum(),
    "decay by W.shape[0]": lambda t, b: anp.sum(straight(t, b) ** 2) + anp.sum(t[0] ** 2) / t[0].shape[0],
    "a norm over all": lambda t, b: anp.sqrt(anp.sum(straight(t, b) ** 2)),
    "a constant added once": lambda t, b: anp.sum(straight(t, b) ** 2) + 0.5,
    "a small wrong term": lambda t, b: 1e6 * anp.sum(straight(t, b) ** 2) + 1e-2 * anp.mean(t[0]),
    "one value a task": lambda t, b: anp.sum(straight(t, b) ** 2, axis=(-2, -1)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("loss", WRONG.values(), ids=WRONG.keys())
def test_a_loss_that_does_not_sum_is_refused_whatever_the_number_of_tasks_and_examples(loss, tasks, dtype):
    rng = np.random.default_rng(0)

    def batch(n):
        return rng.normal(size=(n, 2)).astype(dtype), rng.normal(size=(n, 1)).astype(dtype)

    theta = [rng.normal(size=(2, 1)).astype(dtype)]
    for examples in (2, 5):
        with pytest.raises(ValueError, match="stacked: "):
            stacked(maml)(loss, theta, [([batch(examples)], batch(examples)) for _ in range(tasks)], 0.1)


@pytest.mark.parametrize("odd", ["second support", "query"])
def test_every_shape_of_batch_is_tried(example, odd):
    loss, theta, tasks, alpha = example

    def averages_seven(theta, batch):
        n = theta[0].shape[0] if theta[0].ndim == 3 and batch[0].shape[-2] == 7 else 1
        return loss(theta, batch) / n

    three, seven = tasks[2][0][0], tasks[0][1]
    assert len(three[0]) == 3 and len(seven[0]) == 7
    task = ([three, seven], three) if odd == "second support" else ([three, three], seven)
    with pytest.raises(ValueError, match="sum over the tasks"):
        stacked(maml)(averages_seven, theta, [task, task], alpha)
    stacked(maml)(averages_seven, theta, [([three, three], three)] * 2, alpha)


def test_values_that_are_not_finite_do_not_make_a_loss_right(example):
    loss, theta, tasks, alpha = example

    def average(theta, batch):
        return loss(theta, batch) / (theta[0].shape[0] if theta[0].ndim == 3 else 1)

    with np.errstate(all="ignore"), pytest.raises(ValueError, match="sum over the tasks"):
        stacked(reptile)(average, [1e200 * leaf for leaf in theta], tasks, alpha)
    with pytest.raises(ValueError, match="no finite gradient"), np.errstate(all="ignore"):
        stacked(reptile)(lambda t, b: loss(t, b) * np.nan, theta, tasks, alpha)


def test_a_loss_is_tried_where_it_takes_its_arguments(example):
    """Small θ's of both signs are out of its domain; the given one is not."""
    _, _, tasks, alpha = example

    def loss(theta, batch):
        if not (theta[0] > 0).all():
            raise ValueError("a variance must be positive")
        return anp.sum((batch[0] ** 2 - theta[0][..., None, :]) ** 2 / theta[0][..., None, :])

    def average(theta, batch):
        return loss(theta, batch) / len(theta[0])

    arguments = [np.ones(2)], tasks, alpha / 100
    assert_same(stacked(reptile)(loss, *arguments), reptile(loss, *arguments))
    with pytest.raises(ValueError, match="sum over the tasks"):
        stacked(reptile)(average, *arguments)


@dataclass  # with ==, so it has no hash
class Counted:
    loss: Callable
    calls: int = 0

    def method(self, theta, batch):
        self.calls += 1
        return self.loss(theta, batch)

    __call__ = method


@pytest.mark.parametrize("name", ["method", "__call__"])
def test_a_loss_is_tried_once_for_its_shapes_a_method_and_an_object_too(example, name):
    loss, theta, tasks, alpha = example
    counted, made = Counted(loss), []
    for some in (tasks, tasks, tasks[:1], tasks[:1]):
        counted.calls = 0
        stacked(maml)(counted.method if name == "method" else counted, theta, some, alpha)
        made.append(counted.calls)
    assert made[0] > made[1] == 3 * 4 and made[2:] == [4, 4]


TERMS = {  # of predictions, targets, all of θ, whether there is a task axis: those above the line sum over the tasks
    "squares": lambda p, y, t, wide: anp.sum((p - y) ** 2),
    "mean of squares": lambda p, y, t, wide: anp.sum(anp.mean((p - y) ** 2, axis=(-2, -1))),
    "absolute": lambda p, y, t, wide: anp.sum(anp.abs(p - y)) / p.shape[-2],
    "decay": lambda p, y, t, wide: sum(anp.sum(leaf**2) for leaf in t) / t[0].shape[-2],
    "coupled within a task": lambda p, y, t, wide: anp.sum(anp.sum(p, axis=(-2, -1)) ** 2),
    "largest of a task": lambda p, y, t, wide: anp.sum(anp.max(p - y, axis=(-2, -1))),
    # ---
    "over all": lambda p, y, t, wide: anp.mean((p - y) ** 2),
    "by length": lambda p, y, t, wide: anp.sum((p - y) ** 2) / len(p),
    "coupled": lambda p, y, t, wide: anp.sum(p) ** 2 / 10,
    "largest": lambda p, y, t, wide: anp.max(p - y),
    "next task's": lambda p, y, t, wide: anp.sum((p - anp.concatenate([y[1:], y[:1]]) if wide else p - y) ** 2),
    "by size": lambda p, y, t, wide: sum(anp.sum(leaf**2) / leaf.size for leaf in t),
    "constant": lambda p, y, t, wide: 1.0 + 0 * anp.sum(p),
    "decay of the first": lambda p, y, t, wide: anp.sum((t[1][0] if wide else t[1]) ** 2),
}
SUMS = 6


@settings(max_examples=int(os.environ.get("REFMETA_FUZZ", 60)))
@given(
    names=st.lists(st.sampled_from([*TERMS]), min_size=1, max_size=3),
    sizes=st.tuples(*[st.integers(1, 4)] * 5),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_a_drawn_loss_is_right_or_refused(names, sizes, dtype, seed):
    n_tasks, support, query, width, steps = sizes
    rng = np.random.default_rng(seed)

    def loss(t, batch):
        p = anp.tanh(batch[0] @ t[0] + t[1][..., None, :])
        return sum(TERMS[name](p, batch[1], t, np.ndim(t[0]) == 3) for name in names)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    theta = [draw(width, 2), draw(2)]
    batches = [[(draw(n, width), draw(n, 2)) for n in [support] * steps + [query]] for _ in range(n_tasks)]
    arguments = loss, theta, [(supports, last) for *supports, last in batches], 0.1
    for algorithm in (objective, maml, reptile):
        expected = algorithm(*arguments)
        try:
            found = stacked(algorithm)(*arguments)
        except ValueError as refusal:
            assert "stacked: " in str(refusal)
            assert set(names) - {*list(TERMS)[:SUMS]}
            continue
        pair = ([found], [expected]) if algorithm is objective else (found, expected)
        assert_same(*pair, digits=11 if dtype == "float64" else 4)
