"""A recording gives the same bits as the function, on any arrays, or is refused."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from typing import NamedTuple

import autograd.builtins as ag
import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian, jacobian, make_jvp, make_vjp, value_and_grad
from autograd.extend import primitive
from autograd.misc import flatten
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
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in tree]


def counted(function):
    def count(*args):
        count.calls += 1
        return function(*args)

    count.calls = 0
    return count


@pytest.mark.parametrize("way", [stacked, lambda algorithm: algorithm], ids=["stacked", "a loop"])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, adjoint.maml, adjoint.anil, reptile_by(adam)])
@settings(max_examples=5)  # test_programs draws what they are made of
@given(problem=problems(dtypes=["float32", "float64"], steps=(0, 5)))
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
    with pytest.raises((ValueError, TypeError), match="recorded: .*(looks at a value|decides by a value)"):
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
    with pytest.raises(ValueError, match=r"the array outside of shape \(3, 2\) comes from outside"):
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


A = np.array
POSITIONS = np.arange(3)


def cross_entropy_of_a_stranger(theta, batch):
    logits = batch[0] @ theta[0]
    logp = logits - anp.log(anp.sum(anp.exp(logits), axis=1, keepdims=True))
    return -anp.mean(logp[np.arange(len(batch[1])), batch[1]])


def test_a_strangers_cross_entropy_with_other_labels():
    rng = np.random.default_rng(0)

    def draw():
        return rng.normal(size=(5, 4)), rng.integers(0, 3, 5)

    fast = recorded(maml)
    for _ in range(3):
        arguments = cross_entropy_of_a_stranger, [rng.normal(size=(4, 3))], [([draw(), draw()], draw())], 0.1
        assert bits(fast(*arguments)) == bits(maml(*arguments))


@pytest.mark.parametrize(
    "function",
    [
        grad(lambda x: (lambda a, b: anp.sum((a + b) ** 4) + a[0])(2 * x, anp.sin(x))),  # autograd adds in place
        lambda x: anp.maximum(x[0], 0.5) * anp.clip(anp.sum(x), 0, 1) * anp.where(x[1] > 0, x, 0.0),
        grad(lambda x: anp.maximum(x[0], 0.5) * anp.clip(anp.sum(x), 0, 1) * anp.sum(anp.where(x[1] > 0, x, 0.0))),
        lambda x: x[anp.argmax(x)] * x[anp.argsort(x)],
        lambda x: [x**0.5, x[0] ** 3, 2**x, 1 / (x * 0.0), x * np.nan],
        lambda x: {"a": x}["a"] * (x > 0),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_records_what_people_write(function, dtype):
    fast = recorded(function)
    with np.errstate(all="ignore"):
        for x in ([1.0, 2.0, 3.0], [-3.0, 0.5, -0.0], [np.nan, np.inf, -1.0]):
            found, expected = fast(A(x, dtype)), function(A(x, dtype))
            both = (found, expected) if isinstance(expected, list) else ([found], [expected])
            assert bits(both[0]) == bits(both[1])


@pytest.mark.parametrize(
    "depends",
    [
        lambda e, m, y: anp.sum(e[m]) / len(e[m]),
        grad(lambda e, m, y: anp.mean(e[m] ** 2)),
        lambda e, m, y: anp.mean(e[y == 1]),
        lambda e, m, y: anp.mean(anp.stack([e, e])[:, m]),
        lambda e, m, y: anp.sum(e) / len(anp.nonzero(m)[0]),
        lambda e, m, y: e * len(anp.unique(y)),
        lambda e, m, y: anp.extract(m, e),
    ],
)
def test_a_shape_that_the_data_decide_is_refused(depends):
    with pytest.raises(TypeError, match="recorded: the data decide the shape"):
        recorded(depends)(A([1.0, 2.0, 3.0]), A([True, False, True]), A([1, 0, 1]))


@primitive
def positive_ones(x):
    return x[x > 0]


@pytest.mark.parametrize(
    "function",
    [lambda x, n: anp.sum(positive_ones(x)), lambda x, n: anp.sum(anp.repeat(x, n)), lambda x, n: anp.tile(x, n)],
)
def test_a_shape_that_the_data_decide_is_refused_in_the_replay_at_the_latest(function):
    fast = recorded(function)
    with pytest.raises(ValueError, match="recorded: the data decide the shape of an array, by "):
        for x, n in ((A([1.0, -2.0, 3.0]), A([2])), (A([1.0, 2.0, 3.0]), A([3]))):
            fast(x, n)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda x: x if x > 0 else 2 * x, [A([0.01])]),
        (lambda x: x if x < 1000 else 2 * x, [A([0.01])]),
        (lambda x: x if x < 1000 else 2 * x, [A(0.01)]),
        (lambda x, training: x if training else 2 * x, [A([0.01]), A([True])]),
        (lambda x, n: x * int(n[0]), [A([0.01]), A([3])]),
        (lambda x, n: sum(x for _ in range(n[0])), [A([0.01]), A([3])]),
        (lambda x: np.asarray(x) * 2, [A([0.01])]),
        (lambda x: x * np.linalg.norm(x), [A([0.01, 1.0])]),
        (lambda x, y: x * np.eye(3)[y], [A([0.01]), A([2])]),
        (lambda x: x * f"{float(x[0])}".count("1"), [A([0.01])]),
        (grad(lambda x: anp.sum(x if x[0] > 0 else 2 * x)), [A([0.01])]),
    ],
)
def test_who_looks_at_a_value_is_refused(function, arguments):
    with pytest.raises(
        TypeError, match="recorded: the function looks at a value of its arrays.* such as where and take"
    ):
        recorded(function)(*arguments)


def test_an_array_that_can_change_is_refused_however_it_is_used():
    w = A([1.0, 2.0, 3.0])

    def loss(theta, batch, default=w):
        return anp.sum(theta[0] * default[0] + batch[0] - batch[1])

    class Holder:
        def method(self, x):
            return x * w.mean()

    frozen = w[:]
    frozen.flags.writeable = False  # its memory can change all the same
    uses = [
        lambda x: x * w[0],
        lambda x: x * (2 * w),
        lambda x: x * w.mean(),
        Holder().method,
        lambda x: x * frozen.sum(),
    ]
    uses += [partial(lambda x, a: x * a[0], a=w), lambda x: x * POSITIONS[1], lambda x: (lambda y: y * POSITIONS[1])(x)]
    uses += [lambda x, table={"w": [w]}: x * table["w"][0][0]]
    for use in uses:
        with pytest.raises(ValueError, match=r"the array \w+ of shape \(3,\) comes from outside and can change"):
            recorded(use)(np.ones(3))
    with pytest.raises(ValueError, match="the array default of shape"):
        recorded(maml)(loss, [np.ones(1)], [([(np.ones(1), np.ones(1))], (np.ones(1), np.ones(1)))], 0.1)


def test_an_attribute_that_can_change_is_refused_where_it_is_used_as_it_is():
    class Layer:
        mask = np.ones(2)

        def __call__(self, x):
            return x * self.mask

    with pytest.raises(ValueError, match=r"an array of shape \(2,\) comes from outside"):
        recorded(Layer().__call__)(np.ones(2))


def test_a_first_call_that_is_not_finite_proves_nothing_and_is_not_kept():
    state = [1.0]
    fast = recorded(counted(lambda x: x * state[0]))
    with np.errstate(all="ignore"):
        for value in (1.0, 2.0, 3.0):
            state[0] = value
            assert np.isnan(fast(A([np.nan]))).all()
    assert fast(A([1.0])) == 3.0


def test_results_share_no_memory_and_are_no_arguments():
    fast = recorded(lambda x, y: [x, x, x.T, x[0], anp.reshape(y, -1), anp.real(y), y + 0, 0 * y, 0 * y])
    for _ in range(2):
        x, y = np.ones((2, 2)), np.ones((2, 2))
        arrays = [x, y, *fast(x, y)]
        assert not any(np.shares_memory(a, b) for a, b in combinations(arrays, 2))


def test_zeros_keep_their_signs_and_constants_too():
    fast = recorded(
        lambda x, c: [x * c, anp.sum(x, axis=0, keepdims=True), grad(lambda t: anp.sum(t[0] * x))([c * x])[0]]
    )
    for c in (0.0, -0.0):
        assert [np.signbit(leaf).tolist() for leaf in fast(A([1.0]), c)] == [[bool(np.signbit(c))], [False], [False]]
    assert np.signbit(grad(lambda t: anp.sum(t[0] * A([-0.0])))([A([1.0])])[0]).tolist() == [False]
    payload = np.frombuffer(b"\x01\x02\x03\x04\x05\x06\xf8\x7f")
    assert bits([recorded(lambda x, c: x + c)(A([1.0]), float(payload[0]))]) == bits([1.0 + payload])


def test_containers_are_the_functions_own():
    class Pair(NamedTuple):
        a: np.ndarray
        b: np.ndarray

    assert [*map(type, recorded(lambda x: ([x], (x, [x])))(np.ones(1)))] == [list, tuple]
    with pytest.raises(TypeError, match="recorded: expected a result of arrays, lists and tuples; it has Pair"):
        recorded(lambda x: Pair(x, x))(np.ones(1))


def test_threads_get_right_results(example):
    loss, theta, tasks, alpha = example
    fast = recorded(maml)

    def once(i):
        arguments = loss, [leaf * (1 + i % 3) for leaf in theta], tasks[: 1 + i % 3], alpha
        return bits(fast(*arguments)), arguments

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(once, range(24))]
    assert all(got == bits(maml(*arguments)) for got, arguments in found)


STRANGERS = {
    "norm": grad(lambda x: anp.linalg.norm(x)),
    "inverse": grad(lambda x: anp.sum(anp.linalg.inv(anp.diag(x)))),
    "log-determinant": grad(lambda x: anp.linalg.slogdet(anp.diag(x * x))[1]),
    "singular values": lambda x: anp.linalg.svd(anp.outer(x, x) + np.eye(3))[1],
    "jacobian": jacobian(lambda x: anp.sin(x) * x[0]),
    "hessian": hessian(lambda x: anp.sum(x**3) * x[0]),
    "value and gradient": value_and_grad(lambda x: anp.sum(x**2)),
    "flatten": lambda x: (lambda flat, back: back(flat * 2)["a"])(*flatten({"a": x, "b": [x[0], x[1]]})),
    "eigenvalues' gradient": grad(lambda x: anp.sum(anp.linalg.eigh(anp.outer(x, x) + anp.diag(x))[0] ** 2)),
    "forward": lambda x: make_jvp(grad(lambda a: anp.sum(a[1:] ** 3) * a[0]))(x)(2 * x)[1],
    "lists of autograd's own": grad(lambda x: anp.sum((ag.list([x, x * x]) + [x])[1] * ag.dict(a=x)["a"])),
    "array of parts": grad(lambda x: anp.sum(anp.array([[x[0], x[1]], [x[2], 1.0]]) ** 2)),
    "cumulative": grad(lambda x: anp.sum(anp.cumsum(x) ** 2) + anp.prod(x)),
    "padded and split": grad(lambda x: anp.sum(anp.pad(x, 1, "constant") ** 2) + anp.sum(anp.split(x, 3)[1] ** 2)),
    "fft": lambda x: anp.real(anp.fft.fft(x)) + anp.abs(x * 1j + x),
    "NumPy's own": lambda x: np.sum(x) * np.sin(x) + np.mean(x) + np.max(x),
    "lengths": lambda x: x / len(x) / x.shape[0] / x.size / x.ndim,
    "unpacked": lambda x: (lambda a, b, c: a * b - c)(*x) + sum(i * row for i, row in enumerate(x)),
    "cast": lambda x: x.astype("float32") * 2,
    "a constant": lambda x: np.ones(3),
}


def leaves(tree):
    return [leaf for branch in tree for leaf in leaves(branch)] if isinstance(tree, list | tuple) else [tree]


@pytest.mark.parametrize("function", STRANGERS.values(), ids=STRANGERS.keys())
def test_it_records_what_autograd_and_numpy_offer(function):
    fast = recorded(function)
    for x in ([0.3, -1.0, 2.0], [1.5, 0.1, -0.2]):
        assert bits(leaves(fast(A(x)))) == bits(leaves(function(A(x))))
