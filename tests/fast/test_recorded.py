"""A recording gives the same bits as the function, on any arrays, or is refused."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, make_vjp
from hypothesis import given, settings
from problems import ALGORITHMS, flat, problems

from refmeta import adapt, adjoint, maml, recorded, reptile, stacked, trajectory
from refmeta.lab import adam, reptile_by
from refmeta.models import ConvNet, cross_entropy


def other(tree, rng):
    """The same nested arrays with other numbers in them; labels stay labels."""
    if isinstance(tree, list | tuple):
        return type(tree)(other(branch, rng) for branch in tree)
    if getattr(tree, "dtype", None) is None:
        return tree
    if tree.dtype.kind == "f":
        return (tree + 0.3 * rng.normal(size=tree.shape)).astype(tree.dtype)
    return rng.permutation(tree.ravel()).reshape(tree.shape)


def bits(tree):
    return [(leaf.dtype, leaf.shape, np.asarray(leaf + 0.0).tobytes()) for leaf in tree]


def counted(function):
    def count(*args):
        count.calls += 1
        return function(*args)

    count.calls = 0
    return count


@pytest.mark.parametrize("way", [stacked, lambda algorithm: algorithm], ids=["stacked", "a loop"])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, adjoint.maml, adjoint.anil, reptile_by(adam)])
@settings(max_examples=10)
@given(problem=problems(dtypes=["float32", "float64"]))
def test_a_replay_has_the_same_bits(algorithm, way, problem):
    function, rng = way(algorithm), np.random.default_rng(0)
    fast = recorded(function)
    for arguments in (problem.arguments, other(problem.arguments, rng), other(problem.arguments, rng)):
        with np.errstate(all="ignore"):  # some of them diverge, both ways alike
            assert bits(fast(*arguments)) == bits(function(*arguments))


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, adjoint.maml])
def test_convolutions_too(algorithm):
    rng = np.random.default_rng(0)
    net = ConvNet((5, 6, 2), (3, 2), 4)
    tasks = [([(rng.normal(size=(4, 5, 6, 2)), np.arange(4))] * 2, (rng.normal(size=(3, 5, 6, 2)), np.arange(3)))] * 3
    arguments = cross_entropy(net), net.init(rng), tasks, 0.1
    fast = recorded(stacked(algorithm))
    for some in (arguments, other(arguments, rng)):
        assert bits(fast(*some)) == bits(stacked(algorithm)(*some))


def test_thirty_replays_run_the_function_no_more(example):
    rng, function = np.random.default_rng(0), counted(stacked(maml))
    fast = recorded(function)
    fast(*example)
    first = function.calls
    for _ in range(30):
        arguments = other(example, rng)
        assert bits(fast(*arguments)) == bits(stacked(maml)(*arguments))
    assert function.calls == first


def test_another_shape_dtype_or_constant_is_recorded_anew(example):
    loss, theta, tasks, alpha = example
    single = [leaf.astype("float32") for leaf in theta]
    double = [leaf.astype("float64") for leaf in single]
    function = counted(maml)
    fast = recorded(function)
    for arguments in (example, (loss, theta, tasks[:2], alpha), (loss, theta, tasks, 0.2), (loss, single, tasks, 0.1)):
        calls = function.calls
        assert bits(fast(*arguments)) == bits(maml(*arguments))
        assert function.calls > calls
    assert flat(fast(loss, double, tasks, 0.1)).tobytes() != flat(fast(loss, single, tasks, 0.1)).tobytes()


def test_constants_that_are_equal_but_not_the_same_are_told_apart():
    fast = recorded(lambda x, c: [x * c])
    assert fast(np.ones(2, int), True)[0].dtype == fast(np.ones(2, int), 1)[0].dtype == int
    assert fast(np.ones(2, int), 1.0)[0].dtype == float
    assert np.signbit(recorded(lambda x: [x * 0.0, x * -0.0])(np.ones(1))).ravel().tolist() == [False, True]


def test_arguments_by_name(example):
    loss, theta, tasks, alpha = example
    fast = recorded(stacked(maml))
    assert bits(fast(loss, tasks=tasks, theta=theta, alpha=alpha)) == bits(stacked(maml)(*example))
    assert bits(fast(loss, theta, alpha=alpha, tasks=tasks)) == bits(stacked(maml)(*example))


def test_one_array_given_twice_and_two_arrays_are_told_apart(example):
    loss, theta, [([a, b, _], query), *_], alpha = example
    fast = recorded(adapt)
    for supports in ([a, a], [a, b], [b, b], [b, a]):
        assert bits(fast(loss, theta, supports, alpha)) == bits(adapt(loss, theta, supports, alpha))


def test_the_shape_of_the_result_is_kept(example):
    loss, theta, tasks, alpha = example
    phis = recorded(trajectory)(loss, theta, tasks[0][0], alpha)
    expected = trajectory(loss, theta, tasks[0][0], alpha)
    assert len(phis) == 4 and [bits(phi) for phi in phis] == [bits(phi) for phi in expected]
    assert recorded(lambda x: (x, [x + 1], 3, None))(np.ones(1)) == (1, [2], 3, None)


def test_reptile_without_queries(example):
    loss, theta, tasks, alpha = example
    without = [(supports, None) for supports, _ in tasks]
    assert bits(recorded(stacked(reptile))(loss, theta, without, alpha)) == bits(stacked(reptile)(*example))


def test_arguments_stay_as_they_are_and_a_constant_result_is_fresh(example):
    before = bits(example[1]), bits(example[2][0][0][0])
    fast = recorded(stacked(maml))
    fast(*example)
    fast(*example)
    assert before == (bits(example[1]), bits(example[2][0][0][0]))
    constant = recorded(lambda x: [np.zeros(2) + 1.0, x])
    constant(np.ones(1))[0][:] = 7
    assert constant(np.ones(1))[0].tolist() == [1, 1]


def test_equal_results_are_arrays_of_their_own():
    for function in (lambda x: [0 * x, 0 * x], lambda x: grad(lambda t: anp.sum(t[0]))([x, 1 * x, 2 * x])[1:]):
        m, v = recorded(function)(np.ones(2))
        m += 1
        assert v.tolist() == [0, 0]


def test_no_call_writes_into_an_argument():
    """autograd adds the gradient of a[0] in place, to an array that may be the caller's."""
    pulled = recorded(lambda x, g: make_vjp(lambda a: a + a[0])(x)[0](g))
    x, g = np.array([1.0, 2.0, 3.0]), np.ones(3)
    for _ in range(3):
        assert pulled(x, g).tolist() == [4, 1, 1] and g.tolist() == [1, 1, 1]


def test_gradients_in_nested_lists_tuples_and_dicts(example):
    def of(tree):
        (a, b), c, d = tree
        return anp.sum(a * b) + anp.sum(c["w"] * a) + anp.sum(d * d * b)

    def gradient(a, b, c, d):
        (ga, gb), gc, gd = grad(of)([(a, b), {"w": c}, d])
        return [ga, gb, gc["w"], gd]

    rng, fast = np.random.default_rng(0), recorded(gradient)
    for _ in range(3):
        arrays = rng.normal(size=(4, 3))
        assert bits(fast(*arrays)) == bits(gradient(*arrays))


def test_stock_autograd_too():
    """Losses that are not made of this package's primitives: indexing, containers, sums in place."""

    def loss(theta, batch):
        x, y = batch
        scale, (W, b), head = theta[0], theta[1:3], {"w": theta[3]}
        h = anp.maximum(anp.einsum("ni,io->no", x, W) + b, 0.1)
        h = anp.concatenate([h[:, :1] * scale[0], h[:, 1:] * scale[1] + h[:, :1]], 1)
        h = anp.where(h > 0.2, h, anp.tanh(h))
        parts = [anp.sum(h[:, i] * head["w"][i]) for i in range(3)]
        return anp.mean((sum(parts) - y) ** 2) + 0.1 * anp.sum(anp.abs(W)) + anp.std(h) + theta[0][0] * theta[0][0]

    rng = np.random.default_rng(0)

    def draw():
        return rng.normal(size=(4, 2)), rng.normal(size=4)

    theta = [0.5 * rng.normal(size=shape) for shape in [(2,), (2, 3), (3,), (3,)]]
    arguments = loss, theta, [([draw(), draw()], draw()), ([draw(), draw()], draw())], 0.01
    for algorithm in ALGORITHMS:
        fast = recorded(algorithm)
        for some in (arguments, other(arguments, rng)):
            assert bits(fast(*some)) == bits(algorithm(*some))


def test_sums_that_look_like_undone_broadcasts_are_kept():
    x = np.array([[1.0], [2.0]])
    fast = recorded(
        lambda x: [
            anp.sum(x, 1, None, None, True, 5.0),
            anp.sum(x, axis=1, keepdims=True),
            anp.sum(x > 1, axis=1, keepdims=True),
        ]
    )
    for some in (x, -x):
        assert bits(fast(some)) == bits(
            [np.sum(some, 1, keepdims=True, initial=5), some, np.sum(some > 1, 1, keepdims=True)]
        )
    assert recorded(lambda x: [x > 1])(x)[0].tolist() == [[False], [True]]


def test_it_can_be_differentiated_and_recorded_again(example):
    loss, theta, tasks, alpha = example
    inner = recorded(adapt)

    def outer(theta, supports, query):
        return loss(inner(loss, theta, supports, alpha), query)

    expected = maml(loss, theta, tasks[:1], alpha)
    for function in (grad(outer), grad(outer), recorded(grad(outer))):
        assert bits(function(theta, *tasks[0])) == bits(expected)


def test_the_oldest_recording_makes_room():
    function = counted(lambda x: 2 * x)
    fast = recorded(function)
    for n in range(1, 18):
        fast(np.ones(n))
    calls = function.calls
    fast(np.ones(17))
    assert function.calls == calls
    fast(np.ones(1))
    assert function.calls > calls


@pytest.mark.parametrize(
    "decide",
    [
        lambda x: x if x[0] > 0 else 2 * x,
        lambda x: x if (x > 0).all() else 2 * x,
        lambda x: x * float(x[0]),
        lambda x: x * int(np.argmax(x._value if hasattr(x, "_value") else x)),
        lambda x: max(x[0], x[1]) * x,
    ],
)
def test_a_branch_on_a_value_is_refused(decide):
    with pytest.raises((ValueError, TypeError), match="recorded: .*(decides|float)|float"):
        recorded(decide)(np.array([1.0, 2.0, -1.0]))


def test_random_numbers_are_refused():
    with pytest.raises(ValueError, match="draws random numbers"):
        recorded(lambda x: x + np.random.default_rng().normal())(np.ones(2))


def test_what_the_function_keeps_is_refused():
    seen = []
    with pytest.raises(ValueError, match="differs from the function"):
        recorded(lambda x: (seen.append(1), x * len(seen))[1])(np.ones(2))


def test_an_array_from_outside_is_refused_unless_it_cannot_change():
    outside = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"an array of shape \(3, 2\) comes from outside"):
        recorded(lambda x: x * outside[1:])(np.ones(2))
    outside.flags.writeable = False
    assert recorded(lambda x: x * outside)(np.full(2, 3.0)).tolist() == [[3, 3]] * 3
    inside = recorded(lambda x: x * np.ones((3, 2)))
    assert inside(np.full(2, 3.0)).tolist() == [[3, 3]] * 3


@pytest.mark.parametrize("thing", [{"W": np.ones(2)}, {1}, np.ma.ones(2), np.ones((2, 2)).view(np.matrix)])
def test_arguments_of_another_kind_are_refused(thing):
    with pytest.raises(TypeError, match="recorded: expected arrays"):
        recorded(lambda x: x)(thing)


@pytest.mark.parametrize("result", [lambda x: {"x": x}, lambda x: "text", lambda x: x > 0 if x.ndim else print])
def test_results_of_another_kind_are_refused(result):
    with pytest.raises(TypeError, match="recorded"):
        recorded(result)(np.array(1.0))


def test_a_function_that_takes_no_other_arrays_cannot_be_proved():
    def picky(x):
        if getattr(x, "_value", x).tolist() != [1, 1]:
            raise RuntimeError("not mine")
        return 2 * x

    with pytest.raises(ValueError, match="no proof, .* not mine"):
        recorded(picky)(np.ones(2))


def test_the_functions_own_errors_come_through(example):
    loss, theta, _, alpha = example
    with pytest.raises(ValueError, match="at least one task"):
        recorded(maml)(loss, theta, [], alpha)


def test_it_is_found_under_its_own_name():
    assert recorded(maml).__name__ == "maml" and "eq. 1" in recorded(maml).__doc__
