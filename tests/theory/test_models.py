"""Networks and losses: right values, right derivatives, and the numeric traps that are not ours."""

import dataclasses
import warnings
from dataclasses import FrozenInstanceError

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import elementwise_grad, grad
from autograd.core import primitive_vjps
from autograd.test_util import check_grads
from hypothesis import given
from hypothesis import strategies as st
from problems import assert_derivative, assert_same, fixed, function_of

from refmeta import adjoint, maml, recorded, stacked
from refmeta import models as m
from refmeta.models import MLP, ConvNet, accuracy, cross_entropy, squared_error


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def draw(rng):
    """Normal numbers, moved away from 0 by 0.1: no difference reaches across the kink of relu."""

    def draw(*shape):
        z = rng.normal(size=shape)
        return z + np.copysign(0.1, z)

    return draw


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize(
    "primitive, shapes",
    [
        (m.matmul_nt, [(4, 2), (5, 2)]),
        (m.matmul_tn, [(2, 4), (2, 5)]),
        (m.sum_rows, [(4, 2)]),
        (lambda a: m.repeat_row(a, 3), [(2,)]),
        (m.affine, [(4, 2), (2, 5), (5,)]),
        (m.tanh, [(4, 2)]),
        (m.relu, [(4, 2)]),
        (m.patches, [(2, 3, 4, 2)]),
        (lambda p: m.unpatches(p, (*p.shape[:-2], 2, 3, 5, 2)), [(12, 18)]),
        (lambda p: m.unpatches(p, (*p.shape[:-2], 1, 6, 1, 1)), [(3, 9)]),
        (m.centred, [(4, 2)]),
        (m.dot_rows, [(4, 2), (4, 2)]),
        (m.scale_rows, [(4, 2), (2,)]),
        (m.squared_distance, [(4, 2), (4, 2)]),
        (m.softmax, [(4, 3)]),
        (lambda z: m.negative_log_likelihood(z, np.broadcast_to([0, 2, 1, 2], z.shape[:-1])), [(4, 3)]),
    ],
)
def test_every_primitive_has_the_right_first_and_second_derivative(primitive, shapes, lead, draw):
    arguments = tuple(range(len(shapes)))
    check_grads(primitive, arguments, modes=["rev"], order=2)(*(draw(*lead, *shape) for shape in shapes))


def test_what_has_a_derivative_of_its_own_is_one_node_of_the_graph():
    functions = [f for f in vars(m).values() if callable(f) and f in primitive_vjps]
    assert len(functions) > 10 and all(hasattr(f, "fun") for f in functions)


def test_no_images_have_a_derivative_too():
    assert m.unpatches(np.zeros((0, 18)), (0, 3, 5, 2)).shape == (0, 3, 5, 2)


@pytest.mark.parametrize("activation, stock", [("tanh", anp.tanh), ("relu", lambda z: anp.maximum(z, 0))])
def test_a_network_is_what_stock_autograd_makes_of_it(activation, stock, rng, draw):
    net, x, y = MLP((3, 4, 2), activation), draw(5, 3), draw(5, 2)
    theta = net.init(rng)

    def plain(theta, batch):
        W1, b1, W2, b2 = theta
        return anp.mean((stock(batch[0] @ W1 + b1) @ W2 + b2 - batch[1]) ** 2)

    loss, tasks = squared_error(net), [([(x, y)] * 2, (x + 1, y))]
    assert_same([loss(theta, (x, y))], [plain(theta, (x, y))], digits=14)
    assert_same(grad(loss)(theta, (x, y)), grad(plain)(theta, (x, y)), digits=13)
    assert_same(maml(loss, theta, tasks, 0.1), maml(plain, theta, tasks, 0.1), digits=13)


def derivative(function, order):
    for _ in range(order):
        function = elementwise_grad(function)
    return function


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_has_finite_derivatives_where_stock_autograd_has_nan(order, dtype):
    x = np.array([-1e6, -800, -100, 0, 100, 800, 1e6], dtype)
    assert np.isfinite(derivative(m.tanh, order)(x)).all()
    if order > 1:
        with np.errstate(all="ignore"):
            assert np.isnan(derivative(anp.tanh, order)(x)).any()


def test_relu_has_slope_zero_at_its_kink_where_stock_autograd_has_a_half():
    at_the_kink = np.zeros(3)
    assert not elementwise_grad(m.relu)(at_the_kink).any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd: the slope does not depend on z
        assert not derivative(m.relu, 2)(at_the_kink).any()
    assert (elementwise_grad(lambda z: anp.maximum(z, 0))(at_the_kink) == 0.5).all()


@given(st.integers(0, 2**32), st.floats(0, 6))
def test_cross_entropy_is_minus_the_log_of_the_softmax(seed, magnitude):
    rng = np.random.default_rng(seed)
    z, labels = 10**magnitude * rng.normal(size=(4, 3)), rng.integers(0, 3, 4)
    loss = cross_entropy(lambda theta, x: theta[0])
    with np.errstate(all="ignore"):
        naive = -np.log(np.exp(z) / np.exp(z).sum(1, keepdims=True))[np.arange(4), labels].mean()
    value, g = loss([z], (None, labels)), grad(loss)([z], (None, labels))[0]
    assert np.isfinite(value) and np.isfinite(g).all()
    if magnitude < 1:
        assert value == pytest.approx(naive, rel=1e-12)
    assert g.sum() == pytest.approx(0, abs=1e-12)


def test_large_logits_do_not_overflow_where_the_naive_formula_does():
    z, labels = np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0])
    loss = cross_entropy(lambda theta, x: theta[0])
    assert loss([z], (None, labels)) == 5e3
    assert grad(loss)([z], (None, labels))[0].tolist() == [[0, 0], [-0.5, 0.5]]
    with np.errstate(all="ignore"):
        assert np.isnan(-np.log(np.exp(z) / np.exp(z).sum(1, keepdims=True))).any()


def test_accuracy_counts_examples_and_keeps_a_task_axis():
    logits = np.array([[[3.0, 1, 0], [0, 2, 0]], [[5, 1, 0], [0, 1, 2]]])
    labels = np.array([[0, 0], [0, 2]])
    share = accuracy(lambda theta, x: theta[0])
    assert share([logits[0]], (None, labels[0])) == 0.5
    assert share([logits], (None, labels)).tolist() == [0.5, 1]


@pytest.mark.parametrize("loss, kind", [(squared_error, "targets"), (cross_entropy, "labels")])
def test_with_a_task_axis_a_loss_is_the_sum_over_the_tasks(loss, kind):
    rng, net = np.random.default_rng(0), MLP((2, 5, 4, 3))
    x, y = (
        rng.normal(size=(2, 4, 2)),
        {"targets": rng.normal(size=(2, 4, 3)), "labels": rng.integers(0, 3, (2, 4))}[kind],
    )
    thetas = [net.init(rng) for _ in x]
    together = loss(net)([np.stack(leaves) for leaves in zip(*thetas, strict=True)], (x, y))
    assert_same([together], [sum(map(loss(net), thetas, zip(x, y, strict=True)))], digits=14)


@pytest.mark.parametrize("scheme", m.INITIALISATIONS)
def test_initialisations_have_the_spread_they_name(scheme):
    n, out = 300, 200
    W, b = MLP((n, out)).init(np.random.default_rng(0), scheme)
    deviation = {
        "he": (2 / n) ** 0.5,
        "glorot": (2 / (n + out)) ** 0.5,
        "finn2017": 0.01 * 0.8796,  # of a normal cut at two deviations
        "nichol2018": (1 / (3 * n)) ** 0.5,
    }[scheme]
    assert W.std() == pytest.approx(deviation, rel=0.02) and abs(W.mean()) < deviation / 100
    assert b.any() == (scheme == "nichol2018")
    limit = {"glorot": (6 / (n + out)) ** 0.5, "finn2017": 0.02, "nichol2018": n**-0.5}.get(scheme, np.inf)
    assert abs(W).max() <= limit
    if scheme == "nichol2018":
        assert -limit <= b.min() < -0.9 * limit and 0.9 * limit < b.max() <= limit


def test_only_what_is_beyond_two_deviations_is_drawn_again():
    W, _ = MLP((300, 200)).init(np.random.default_rng(0), "finn2017")
    once = np.random.default_rng(0).normal(0, 0.01, W.shape)
    again = abs(once) > 0.02
    assert (W[~again] == once[~again]).all()
    assert W[again].std() == pytest.approx(0.01 * 0.8796, rel=0.05)


def test_an_initialisation_is_the_seed_and_nothing_else(rng):
    net = MLP((2, 3, 1))
    one, two, other = (net.init(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert (one[0] != other[0]).any()
    assert {leaf.dtype for leaf in net.init(rng, dtype=np.float32)} == {np.dtype("float32")}


NET = MLP((2, 3, 1))
THETA = NET.init(np.random.default_rng(0))
X, Y = np.ones((4, 2)), np.ones((4, 1))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MLP((2, 3), activation="gelu"), "activation: expected one of tanh, relu; got 'gelu'"),
        (lambda: MLP((2,)), "widths: expected two or more"),
        (lambda: MLP((2, 0, 1)), "widths: expected two or more"),
        (lambda: NET.init(None, "zeros"), "scheme: expected one of he, glorot"),
        (lambda: NET(THETA[:-1], X), "theta has 3 arrays; an MLP of widths .* has 4"),
        (lambda: NET([THETA[0].T, *THETA[1:]], X), r"W1 of theta has shape \(3, 2\)"),
        (lambda: NET(THETA, np.ones((4, 3))), r"x has shape \(4, 3\); expected \(n, 2\)"),
        (lambda: NET(THETA, np.ones(2)), r"x has shape \(2,\)"),
        (lambda: NET(THETA, np.ones((5, 4, 2))), r"x has shape \(5, 4, 2\)"),
        (lambda: NET([np.stack([t] * 5) for t in THETA], X), r"x has shape .*expected \(5, n, 2\)"),
        (lambda: squared_error(NET)(THETA, (X, Y[:, 0])), r"y has shape \(4,\); the prediction has \(4, 1\)"),
        (lambda: squared_error(NET)(THETA, (X, Y[:3])), r"y has shape \(3, 1\)"),
        (
            lambda: cross_entropy(NET)(THETA, (X, np.zeros(3, int))),
            r"labels have shape \(3,\); the logits \(4, 1\) need \(4,\)",
        ),
        (
            lambda: cross_entropy(lambda z, _: z)(np.zeros((2, 4, 3)), (X, np.zeros((2, 3), int))),
            r"labels have shape \(2, 3\); the logits \(2, 4, 3\) need \(2, 4\)",
        ),
        (lambda: cross_entropy(NET)(THETA, (X, np.full(4, 1))), r"labels must lie in 0 … 0; got 1 … 1"),
        (lambda: accuracy(NET)(THETA, (X, np.full(4, -1))), "labels must lie in"),
        (
            lambda: cross_entropy(lambda z, _: z)(np.zeros((2, 4, 3)), (X, np.full((2, 4), 3))),
            "lie in 0 … 2; got 3 … 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_each_layer_halves_the_image():
    assert [shape for shape in ConvNet((8, 7, 1), (2, 2), 3).shapes if len(shape) == 2] == [
        (9, 2),
        (18, 2),
        (2 * 2 * 2, 3),
    ]


@pytest.mark.parametrize("net", [MLP((2, 3, 1)), ConvNet((4, 4, 1), (2,), 3)], ids=["MLP", "ConvNet"])
def test_a_network_cannot_be_changed(net):
    with pytest.raises(FrozenInstanceError):
        net.activation = "relu"


def test_labels_that_are_not_integers_are_refused():
    with pytest.raises(TypeError, match="labels must be an array of integers, got float64"):
        cross_entropy(NET)(THETA, (X, np.zeros(4)))


def naive(net, theta, x):
    """The network by loops over every pixel and tap."""
    for W, b in zip(theta[:-2:2], theta[1:-2:2], strict=True):
        n, h, w, c = x.shape
        filters, half = W.shape[1], [-(-size // 2) for size in (h, w)]
        out = np.zeros((n, *half, filters))
        for row, column in np.ndindex(*half):
            for i, j in np.ndindex(3, 3):
                r, s = 2 * row + i - 1, 2 * column + j - 1
                if 0 <= r < h and 0 <= s < w:
                    out[:, row, column] += x[:, r, s] @ W.reshape(3, 3, c, filters)[i, j]
        x = np.maximum(out + b, 0)
    return x.reshape(len(x), -1) @ theta[-2] + theta[-1]


@pytest.mark.parametrize("image", [(4, 4, 1), (5, 4, 2), (7, 6, 3), (8, 9, 1)])
def test_a_convolutional_network_is_what_loops_make_of_it(image, rng, draw):
    net = ConvNet(image, (3, 2), 4)
    theta = [leaf + 0.1 * draw(*leaf.shape) for leaf in net.init(rng)]
    x = draw(5, *image)
    assert_same([net(theta, x)], [naive(net, theta, x)], digits=13)
    with pytest.raises(AssertionError):
        assert_same([net(theta, x)], [naive(net, theta, x[:, ::-1])])
    assert [value.shape[0] for value in net.layers(theta, x)] == [5, 5, 5]
    assert (net.layers(theta, x)[-1] == net(theta, x)).all()
    assert [leaf.shape for leaf in theta] == net.shapes and len(net.names) == len(theta) == 6


def normalised(z, axes):
    """As it is written in textbooks."""
    return (z - z.mean(axes, keepdims=True)) / np.sqrt(z.var(axes, keepdims=True) + 1e-3)


@pytest.mark.parametrize("norm, axis", [("batch", 0), ("layer", 1)])
def test_a_normalised_network_is_what_the_textbook_makes_of_it(norm, axis, draw):
    theta, x = [draw(3, 4), draw(4), draw(4, 2), draw(2)], draw(5, 3)
    expected = np.tanh(normalised(x @ theta[0], axis) + theta[1]) @ theta[2] + theta[3]
    assert_same([MLP((3, 4, 2), norm=norm)(theta, x)], [expected], digits=13)
    wrong = np.tanh(normalised(x @ theta[0], 1 - axis) + theta[1]) @ theta[2] + theta[3]
    with pytest.raises(AssertionError):
        assert_same([MLP((3, 4, 2), norm=norm)(theta, x)], [wrong])


@pytest.mark.parametrize("norm, axes", [("batch", (0, 1, 2)), ("layer", (1, 2, 3))])
def test_a_normalised_convolution_has_statistics_over_the_pixels_too(norm, axes, rng, draw):
    net, x = ConvNet((4, 6, 2), (3,), 2, norm=norm), draw(5, 4, 6, 2)
    theta = [leaf + 0.1 * draw(*leaf.shape) for leaf in net.init(rng)]
    convolved = (m.patches(x) @ theta[0]).reshape(5, 2, 3, 3)
    expected = np.maximum(normalised(convolved, axes) + theta[1], 0)
    assert_same([net.layers(theta, x)[0]], [expected], digits=13)


def test_with_batch_statistics_a_prediction_depends_on_the_others_and_with_a_layers_it_does_not(rng, draw):
    for norm, depends in (("none", False), ("layer", False), ("batch", True)):
        net, x = ConvNet((4, 4, 1), (3, 2), 3, "tanh", norm), draw(5, 4, 4, 1)
        theta = net.init(rng)
        assert (abs(net(theta, x)[0] - net(theta, x[:2])[0]).max() > 1e-3) == depends


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("net", [MLP((2, 3, 3, 2)), ConvNet((3, 4, 1), (2, 2), 2, "tanh")], ids=["MLP", "ConvNet"])
def test_the_meta_gradient_of_a_normalised_network_is_right(net, norm):
    """In all its coordinates; and another normalisation's is refused."""
    h = 1e-5  # differences err by h⁴ times a fifth derivative, which is large where a unit's variance is small
    problem, other = (fixed(dataclasses.replace(net, norm=kind), True, 2) for kind in (norm, "none"))
    got = maml(*problem.arguments)
    assert_derivative(function_of(maml, problem), problem.theta, got, h)
    with pytest.raises(AssertionError):
        assert_derivative(function_of(maml, problem), problem.theta, maml(other.loss, *problem.arguments[1:]), h)
    assert_same(adjoint.maml(*problem.arguments), got)
    assert_same(stacked(maml)(*problem.arguments), got)
    assert_same(recorded(stacked(maml))(*problem.arguments), got)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ConvNet((4, 4), (2,), 3), "expected image"),
        (lambda: ConvNet((4, 4, 1), (), 3), "expected image"),
        (lambda: ConvNet((4, 4, 1), (2.0,), 3), "expected image"),
        (lambda: ConvNet((4, 4, 1), (2,), 0), "expected image"),
        (lambda: ConvNet((4, 4, 1), (2,), 3, "sigmoid"), "activation: expected one of"),
        (lambda: ConvNet((4, 4, 1), (2,), 3, norm="instance"), "norm: expected one of none, batch, layer"),
        (lambda: MLP((4, 1), norm="weight"), "norm: expected one of none, batch, layer"),
        (lambda: CONV(CONV_THETA, np.ones((5, 4, 4))), r"x has shape \(5, 4, 4\); expected \(n, 4, 4, 1\)"),
        (lambda: CONV(CONV_THETA[:3], np.ones((5, 4, 4, 1))), "theta has 3 arrays"),
        (lambda: CONV(CONV_THETA[2:] * 2, np.ones((5, 4, 4, 1))), "W1 of theta has shape"),
    ],
)
def test_a_convolutional_network_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


CONV = ConvNet((4, 4, 1), (2,), 3)
CONV_THETA = CONV.init(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("listed", "x"), [(MLP([2, 3, 1]), np.ones((5, 2))), (ConvNet([4, 4, 1], [2], 3), np.ones((5, 4, 4, 1)))]
)
def test_sizes_may_be_lists(listed, x):
    theta = listed.init(np.random.default_rng(0))
    assert len(listed(theta, x)) == 5
