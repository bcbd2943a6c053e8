"""Cases whose answer is known: quadratics, linear regression, published coefficients, numbers by pencil."""

from inspect import signature
from itertools import product

import autograd.numpy as np
import pytest
from autograd import grad, hessian
from implementations import (
    WRONG,
    a_step_too_few,
    detached,
    everything_adapts,
    head_detached,
    off,
    smallest_refused,
    the_body_stands_still,
    the_last_step_alone,
    the_last_support_for_the_query,
    the_query_at_theta,
    towards_theta,
)
from problems import assert_same

from refmeta import adapt, anil, fomaml, joint, maml, reptile, trajectory


def quadratic(theta, batch):
    """½ (t − c)ᵀ A (t − c), t being all arrays of θ one after the other."""
    A, c = batch
    d = np.concatenate(theta) - c
    return d @ A @ d / 2


def tasks_of(pairs, k):
    return [([pair] * k, pair) for pair in pairs]


def power(P, k):
    return np.linalg.matrix_power(P, k)


@pytest.fixture(params=[1, 2, 3])
def k(request):
    return request.param


@pytest.fixture
def pairs():
    rng = np.random.RandomState(0)
    roots = rng.normal(size=(4, 3, 3))
    return [(r @ r.T + np.eye(3), rng.normal(size=3)) for r in roots]


# W such that the gradient is Σ W (t − c), for a task with matrix A; P = I − αA.
ALPHA = 0.05
WEIGHTS = {
    joint: lambda A, P, k: A,
    maml: lambda A, P, k: power(P, k) @ A @ power(P, k),
    fomaml: lambda A, P, k: A @ power(P, k),
    reptile: lambda A, P, k: np.eye(len(A)) - power(P, k),
}


@pytest.mark.parametrize("algorithm", WEIGHTS)
def test_on_quadratics_every_gradient_is_its_closed_form(algorithm, pairs, k):
    t = np.array([1.0, -2.0, 0.5])
    expected = sum(WEIGHTS[algorithm](A, np.eye(3) - ALPHA * A, k) @ (t - c) for A, c in pairs)
    assert_same(algorithm(quadratic, [t], tasks_of(pairs, k), ALPHA), [expected], digits=13)


def test_on_quadratics_anil_is_its_closed_form(pairs, k):
    theta = [np.array([1.0, -2.0]), np.array([0.5])]
    t, S = np.concatenate(theta), np.diag([0.0, 0.0, 1.0])
    steps = [power(np.eye(3) - ALPHA * S @ A, k) for A, _ in pairs]
    expected = sum(Q.T @ A @ Q @ (t - c) for Q, (A, c) in zip(steps, pairs, strict=True))
    got = anil(quadratic, theta, tasks_of(pairs, k), ALPHA, head=1)
    assert_same([np.concatenate(got)], [expected], digits=13)


def test_on_quadratics_first_order_maml_with_2k_steps_is_maml_with_k(pairs, k):
    theta = [np.array([1.0, -2.0, 0.5])]
    first = fomaml(quadratic, theta, tasks_of(pairs, 2 * k), ALPHA)
    assert_same(first, maml(quadratic, theta, tasks_of(pairs, k), ALPHA), digits=13)


SCALAR = [(np.array([[1.0]]), np.array([0.0])), (np.array([[4.0]]), np.array([1.0]))]


@pytest.mark.parametrize(
    "algorithm, k, point",
    [
        (joint, 0, 4 / 5),
        (reptile, 1, 4 / 5),
        (reptile, 2, 8 / 11),
        (reptile, 3, 124 / 185),
        (reptile, 200, 1 / 2),
        (fomaml, 1, 1 / 2),
        (fomaml, 2, 1 / 5),
        (maml, 1, 1 / 5),
        (maml, 2, 1 / 65),
    ],
)
def test_the_fixed_points_of_two_scalar_tasks(algorithm, k, point):
    """Curvatures 1 and 4, minima at 0 and 1, α = 0.2."""

    def g(t):
        return algorithm(quadratic, [np.array([t])], tasks_of(SCALAR, k), 0.2)[0][0]

    assert g(point) == pytest.approx(0, abs=1e-14)
    assert g(point + 0.1) > 1e-4 and g(point - 0.1) < -1e-4


def test_first_order_maml_diverges_where_maml_and_reptile_are_stable():
    def descend(algorithm):
        t = [np.array([0.3])]
        for _ in range(30):
            t = [t[0] - 0.1 * algorithm(quadratic, t, tasks_of(SCALAR, 1), 0.4)[0] / 2]
        return t[0][0]

    assert descend(fomaml) < -10
    assert 0 < descend(maml) < 1
    assert 0 < descend(reptile) < 1


def regression(theta, batch):
    x, y = batch
    return np.sum((x @ theta[0] - y) ** 2) / (2 * len(y))


def test_linear_regression_with_a_separate_query_has_closed_forms(k):
    rng, alpha = np.random.RandomState(1), 0.1
    data = [[(rng.normal(size=(n, 3)), rng.normal(size=n)) for n in (5, 7)] for _ in range(3)]
    tasks, t = [([s] * k, q) for s, q in data], rng.normal(size=3)
    expected = {maml: 0, fomaml: 0, reptile: 0}
    for (xs, ys), (xq, yq) in data:
        Hs, bs, Hq, bq = xs.T @ xs / 5, xs.T @ ys / 5, xq.T @ xq / 7, xq.T @ yq / 7
        P = np.eye(3) - alpha * Hs
        t_k = power(P, k) @ t + alpha * sum(power(P, j) @ bs for j in range(k))
        expected[maml] += power(P, k) @ (Hq @ t_k - bq)
        expected[fomaml] += Hq @ t_k - bq
        expected[reptile] += t - t_k
    for algorithm, gradient in expected.items():
        assert_same(algorithm(regression, [t], tasks, alpha), [gradient], digits=13)


# --- Nichol et al. 2018, eqs. 36-41: E[g] = c₁ AvgGrad − c₂ α AvgGradInner + O(α²), k minibatches ---


def curved(theta, batch):
    A, B = batch
    return np.sum((A @ theta[0]) ** 3) / 6 + np.sum((B @ theta[0]) ** 4) / 24


@pytest.fixture(scope="module")
def minibatches():
    rng = np.random.RandomState(2)
    return [[(rng.normal(size=(2, 2)), rng.normal(size=(2, 2))) for _ in range(3)] for _ in range(3)]


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize(
    "algorithm, c1, c2",
    [
        (maml, lambda k: 1, lambda k: 2 * (k - 1)),
        (fomaml, lambda k: 1, lambda k: k - 1),
        (reptile, lambda k: k, lambda k: k * (k - 1) / 2),
    ],
)
def test_the_leading_coefficients_of_nichol_et_al(algorithm, c1, c2, k, minibatches):
    """Exact expectations over all tuples of k minibatches drawn with replacement within a task."""
    t = np.array([0.4, -0.7])
    g = [[grad(curved)([t], b)[0] for b in task] for task in minibatches]
    H = [[hessian(lambda v, b=b: curved([v], b))(t) for b in task] for task in minibatches]
    avg_grad = np.mean(g, axis=(0, 1))
    pairs = [Ha @ gb for Hs, gs in zip(H, g, strict=True) for Ha, gb in product(Hs, gs)]
    avg_grad_inner = np.mean(pairs, axis=0)

    def slope(alpha):
        total = 0
        for batches in (b for task in minibatches for b in product(task, repeat=k)):
            if algorithm is reptile:  # all k minibatches are inner steps, and (θ − φ)/α is the gradient
                total = total + reptile(curved, [t], [(list(batches), None)], alpha)[0] / alpha
            else:  # k − 1 inner steps, and the k-th minibatch is the query
                total = total + algorithm(curved, [t], [(list(batches[:-1]), batches[-1])], alpha)[0]
        return (total / (3 * 3**k) - c1(k) * avg_grad) / alpha

    h = 2e-5
    assert_same([2 * slope(h / 2) - slope(h)], [-c2(k) * avg_grad_inner], digits=6)


# --- Numbers by pencil, exact in binary ---


def half_square(theta, batch):
    return (theta[0] @ batch[0]) ** 2 / 2


W = np.array([2.0, 3.0, 5.0])
A, B = (np.array([1.0, 2.0, 3.0]), np.zeros(())), (np.array([4.0, 5.0, 6.0]), np.zeros(()))


def test_torchmetas_literal_for_maml():
    assert adapt(half_square, [W], [A], 0.5)[0].tolist() == [-9.5, -20, -29.5]
    assert maml(half_square, [W], [([A], B)], 0.5)[0].tolist() == [3780, 8505, 13230]


def test_torchmetas_literal_for_first_order_maml():
    assert adapt(half_square, [W], [B], 0.5)[0].tolist() == [-104, -129.5, -154]
    assert fomaml(half_square, [W], [([B], A)], 0.5)[0].tolist() == [-825, -1650, -2475]


def test_torchmetas_literal_for_three_steps():
    def linear_on_the_query(theta, batch):
        return theta[0] @ batch[0] if batch is B else half_square(theta, batch)

    phis = trajectory(half_square, [W], [A] * 3, 1)
    assert [phi[0].tolist() for phi in phis[1:]] == [
        [-21, -43, -64],
        [278, 555, 833],
        [-3609, -7219, -10828],
    ]
    assert maml(linear_on_the_query, [W], [([A] * 3, B)], 1)[0].tolist() == [-5020, -10043, -15066]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_pencil_example_of_the_readme(dtype):
    def loss(theta, batch):
        A, b = batch
        return theta[0] @ A @ theta[0] / 2 - b @ theta[0]

    def array(*rows):
        return np.array(rows, dtype)

    b = array(1, 2)
    first, second = (array([2, 1], [1, 0]), b), (array([0, 1], [1, -1]), b)
    theta, tasks = [array(1, -1)], [([first, second], first)]
    phis = trajectory(loss, theta, tasks[0][0], 0.25)
    assert [phi[0].tolist() for phi in phis] == [[1, -1], [1, -0.75], [1.4375, -0.6875]]
    assert fomaml(loss, theta, tasks, 0.25)[0].tolist() == [1.1875, -0.5625]
    assert maml(loss, theta, tasks, 0.25)[0].tolist() == [0.9140625, -1.33203125]


def test_anil_keeps_the_second_order_through_the_head():
    """f = θ₂θ₁x, θ = 1, x = 1, y = 0, α = 0.1: F(θ₁) = ½(θ₁ − 0.1 θ₁³)², F′ = 0.9 · 0.7 and not 0.9 · 0.9."""

    def loss(theta, batch):
        return (theta[1] * theta[0]) ** 2 / 2

    one, batch = np.array(1.0), (np.zeros(1), np.zeros(1))
    body, head = anil(loss, [one, one], [([batch], batch)], 0.1, head=1)
    assert body == pytest.approx(0.9 * 0.7) and head == pytest.approx(0.9 * 0.9)


# --- Each of them refuses a wrong gradient ---


@pytest.fixture
def fed(monkeypatch, request):
    """Runs a test with another algorithm in the place of one: as its argument, in WEIGHTS, and under its name."""

    def run(test, name, algorithm, more):
        monkeypatch.setitem(WEIGHTS, algorithm, WEIGHTS.get(globals()[name]))
        monkeypatch.setitem(globals(), name, algorithm)
        given = {"algorithm": algorithm, **more}
        needed = signature(test).parameters
        test(**{n: given[n] if n in given else request.getfixturevalue(n) for n in needed})
        monkeypatch.undo()

    return run


def coefficients(c1, c2):
    """Of Nichol et al., for two minibatches."""
    return {"k": 2, "c1": lambda k: c1, "c2": lambda k: c2}


REFUSED = [  # the test, the algorithm, a wrong one, and more arguments of the test
    *(
        (test_on_quadratics_every_gradient_is_its_closed_form, algorithm.__name__, wrong, {"k": 3})
        for algorithm in WEIGHTS
        for wrong in WRONG[algorithm]
        if wrong is not the_last_support_for_the_query  # the query is one of the supports
    ),
    (test_on_quadratics_anil_is_its_closed_form, "anil", head_detached, {"k": 2}),
    (test_on_quadratics_anil_is_its_closed_form, "anil", the_body_stands_still, {"k": 2}),
    (test_on_quadratics_first_order_maml_with_2k_steps_is_maml_with_k, "fomaml", everything_adapts, {"k": 2}),
    (test_the_fixed_points_of_two_scalar_tasks, "maml", detached, {"k": 1, "point": 1 / 5}),
    (test_the_fixed_points_of_two_scalar_tasks, "fomaml", everything_adapts, {"k": 2, "point": 1 / 5}),
    (test_the_fixed_points_of_two_scalar_tasks, "reptile", the_last_step_alone, {"k": 2, "point": 8 / 11}),
    (test_first_order_maml_diverges_where_maml_and_reptile_are_stable, "maml", detached, {}),
    (test_first_order_maml_diverges_where_maml_and_reptile_are_stable, "fomaml", everything_adapts, {}),
    (test_first_order_maml_diverges_where_maml_and_reptile_are_stable, "reptile", towards_theta, {}),
    (test_linear_regression_with_a_separate_query_has_closed_forms, "maml", detached, {"k": 2}),
    (test_linear_regression_with_a_separate_query_has_closed_forms, "fomaml", the_query_at_theta, {"k": 2}),
    (test_linear_regression_with_a_separate_query_has_closed_forms, "reptile", the_last_step_alone, {"k": 2}),
    (test_the_leading_coefficients_of_nichol_et_al, "maml", detached, coefficients(1, 2)),
    (test_the_leading_coefficients_of_nichol_et_al, "fomaml", everything_adapts, coefficients(1, 1)),
    (test_the_leading_coefficients_of_nichol_et_al, "reptile", the_last_step_alone, coefficients(2, 1)),
    (test_torchmetas_literal_for_maml, "maml", detached, {}),
    (test_torchmetas_literal_for_first_order_maml, "fomaml", everything_adapts, {}),
    (test_torchmetas_literal_for_three_steps, "maml", a_step_too_few, {}),
    (test_the_pencil_example_of_the_readme, "maml", detached, {"dtype": "float64"}),
    (test_the_pencil_example_of_the_readme, "fomaml", everything_adapts, {"dtype": "float32"}),
    (test_anil_keeps_the_second_order_through_the_head, "anil", head_detached, {}),
    (test_anil_keeps_the_second_order_through_the_head, "anil", the_body_stands_still, {}),
]


@pytest.mark.parametrize(("test", "name", "wrong", "more"), REFUSED)
def test_each_closed_form_refuses_a_wrong_gradient(test, name, wrong, more, fed):
    with pytest.raises(AssertionError):
        fed(test, name, wrong, more)


CLOSE = {
    test_on_quadratics_every_gradient_is_its_closed_form: 2e-10,
    test_on_quadratics_anil_is_its_closed_form: 2e-10,
    test_linear_regression_with_a_separate_query_has_closed_forms: 2e-10,
    test_the_leading_coefficients_of_nichol_et_al: 2e-10,
}


@pytest.mark.parametrize(("about", "more"), {(t, name): more for t, name, _, more in REFUSED if t in CLOSE}.items())
def test_the_smallest_error_in_one_coordinate_that_a_closed_form_refuses(about, more, fed):
    """`pytest -s -k smallest_error` prints what docs/trials.md has."""
    test, name = about
    algorithm = globals()[name]

    def nearly(epsilon):
        return lambda *arguments, **head: off(algorithm(*arguments, **head), 0, epsilon)

    seen = smallest_refused(lambda e: fed(test, name, nearly(e), more))
    print(test.__name__, name, f"{seen:.0e}")
    assert seen <= CLOSE[test]
