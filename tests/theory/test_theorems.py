"""The theorems of docs/theorems.md that no other file checks. Each test is also given something wrong, and sees it."""

import itertools

import autograd.numpy as np
import pytest
from autograd import grad, hessian
from hypothesis import given
from problems import ALGORITHMS, assert_derivative, assert_same, flat, problems, unflat

from refmeta import adapt, anil, fomaml, joint, maml, objective, reptile, trajectory
from refmeta.adjoint import hvp
from refmeta.algorithms import objective as unchecked_objective
from refmeta.models import MLP, cross_entropy
from refmeta.trees import axpy, holding

RNG = np.random.RandomState


def refuses(comparison, *arguments):
    with pytest.raises(AssertionError):
        comparison(*arguments)


# --- The representation: Collins et al. 2022 ---

ALPHA, RATE = 0.5, 0.4  # η = .2, the largest of the theorem
B_STAR, B = (np.linalg.qr(RNG(1).normal(size=(2, 6, 3)))[0][i] for i in range(2))
PAIRS = 3**0.5 * np.concatenate([np.eye(3), -np.eye(3)])


def product_error(theta, batch):
    return np.sum((theta[0] @ theta[1] - batch[0] @ batch[1]) ** 2) / 2


def descend(algorithm, heads, steps, w=0.0):
    """[(B, w) at each outer step], from αBᵀB = .81 I."""
    tasks, path = [([(B_STAR, h)], (B_STAR, h)) for h in heads], [[0.9 / ALPHA**0.5 * B, np.full(3, w)]]
    for _ in range(steps):
        gradient = algorithm(product_error, path[-1], tasks, ALPHA, *[1] * (algorithm is anil))
        path.append(axpy(-RATE / len(heads), gradient, path[-1]))
    return path


def sine(B):
    U = np.linalg.qr(B)[0]
    return np.linalg.norm(U - B_STAR @ B_STAR.T @ U, 2)


def sine_by_two_numbers(algorithm, steps):
    """The proof's recursion of c and d, the parts of each direction inside the space and outside of it."""
    c = 0.9 * np.linalg.svd(B_STAR.T @ B)[1]
    d = (0.81 - c**2) ** 0.5
    for _ in range(steps):
        growth = 1 - c**2 if algorithm is fomaml else 2 - 2 * c**2 - d**2
        c, d = c * (1 + ALPHA * RATE * growth), d * (1 - ALPHA * RATE * c**2)
    return (d / np.hypot(c, d)).max()


@pytest.mark.parametrize("algorithm", [fomaml, maml, anil])
def test_the_inner_step_finds_the_representation_geometrically(algorithm):
    path = descend(algorithm, PAIRS, 60)
    for t in (0, 1, 10, 60):
        assert sine(path[t][0]) == pytest.approx(sine_by_two_numbers(algorithm, t), abs=1e-12)
    assert sine(path[60][0]) < 1e-3 < 0.9 < sine(path[0][0]) and abs(path[60][1]).max() < 1e-14
    alike = 3**0.5 * np.array([[1.0, 0, 0], [-1, 0, 0]])  # heads that are not diverse
    assert sine(descend(algorithm, alike, 60)[60][0]) > 0.9


def test_joint_training_never_finds_the_representation_wherever_it_starts():
    assert sine(descend(joint, PAIRS, 60)[60][0]) == pytest.approx(sine(B), abs=1e-14)
    rng, w = RNG(0), np.array([0.3, -1.0, 0.5])
    tasks, others = ([([], (space, h)) for h in PAIRS] for space in (B_STAR, np.linalg.qr(rng.normal(size=(6, 3)))[0]))
    losses = [objective(product_error, [B, w], which, ALPHA) for which in (tasks, others)]
    assert losses[0] == pytest.approx(len(PAIRS) / 2 * (np.sum((B @ w) ** 2) + 3)) == losses[1]
    one_sided = [objective(product_error, [B, w], which[:3], ALPHA) for which in (tasks, others)]
    assert abs(one_sided[0] - one_sided[1]) > 0.1  # heads whose sum is not 0 do tell


def test_heads_whose_sum_is_zero_but_not_in_pairs_move_the_head_of_maml_alone():
    """Its gradient in w is of third order in the heads."""
    three = 3**0.5 * np.array([[1.0, 0, 0], [-0.5, 0.75**0.5, 0], [-0.5, -(0.75**0.5), 0]])
    for algorithm in (fomaml, anil, joint):
        assert abs(descend(algorithm, three, 20)[20][1]).max() < 1e-14
    assert abs(descend(maml, three, 20)[20][1]).max() > 0.01


# --- Classification ---


@pytest.fixture
def classes():
    """(loss, features, body, head of zeros, balanced support, query) of three classes."""
    rng = RNG(0)
    body, head = [rng.normal(size=(4, 6)), rng.normal(size=6)], [np.zeros((6, 3)), np.zeros(3)]
    support, query = ((rng.normal(size=(n, 4)), np.arange(n) % 3) for n in (6, 9))

    def features(body, x):
        return np.tanh(x @ body[0] + body[1])

    return cross_entropy(MLP((4, 6, 3))), features, body, head, support, query


def test_a_head_of_zeros_makes_anil_contrastive(classes):
    loss, features, body, head, (x, y), (xq, yq) = classes
    alpha = 0.5

    def logits(body):
        weights = (np.arange(3) == y[:, None]) - 1 / 3
        return alpha / 6 * (features(body, xq) @ features(body, x).T) @ weights

    def contrast(body):
        return np.mean(np.log(np.sum(np.exp(logits(body)), 1)) - logits(body)[np.arange(9), yq])

    W, b = adapt(holding(body, loss), head, [(x, y)], alpha)
    f = features(body, x)
    means = np.array([f[y == c].mean(0) for c in range(3)])
    assert_same([features(body, xq) @ W + b], [logits(body)], digits=15)
    assert_same([logits(body)], [alpha / 3 * features(body, xq) @ (means - f.mean(0)).T], digits=15)
    task = [([(x, y)], (xq, yq))]
    assert_same(anil(loss, body + head, task, alpha)[:2], grad(contrast)(body), digits=15)
    other_head = [head[0] + 0.1 * np.eye(6, 3), head[1]]
    refuses(assert_same, anil(loss, body + other_head, task, alpha)[:2], grad(contrast)(body), 2)


def test_one_answer_to_permuted_labels_costs_at_least_the_log_of_their_number(classes):
    loss, _, body, head, (x, _), _ = classes

    def cost(theta, orders):
        batches = [(x, np.repeat(order, 2)) for order in orders]
        return float(np.mean([loss(theta, batch) for batch in batches]))

    orders = list(itertools.permutations(range(3)))
    assert cost(body + head, orders) == pytest.approx(np.log(3), abs=1e-15)
    rng = RNG(1)
    answers = [[*body, s * rng.normal(size=(6, 3)), rng.normal(size=3)] for s in (0.1, 1, 10)]
    assert all(cost(theta, orders) > np.log(3) for theta in answers)
    own = adapt(loss, body + head, [(x, np.repeat(range(3), 2))] * 50, 0.5)
    assert cost(own, orders) > np.log(3) > 0.5 > cost(own, orders[:1])  # labels that are never permuted


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_gradient_has_a_part_that_all_classes_share(algorithm, classes):
    loss, _, body, head, support, query = classes
    theta, tasks = [*body, RNG(2).normal(size=(6, 3)), RNG(3).normal(size=3)], [([support] * 2, query)]
    W, b = algorithm(loss, theta, tasks, 0.5)[2:]
    assert abs(W).max() > 0.05 and abs(W.sum(1)).max() < 1e-15 > abs(b.sum())
    shifted = [*body, theta[2] + RNG(4).normal(size=(6, 1)), theta[3] + 7]
    assert_same(algorithm(loss, shifted, tasks, 0.5), algorithm(loss, theta, tasks, 0.5), digits=13)

    def squares(theta, batch):
        return np.mean((np.tanh(batch[0] @ theta[0] + theta[1]) @ theta[2] + theta[3] - np.eye(3)[batch[1]]) ** 2)

    assert abs(algorithm(squares, theta, tasks, 0.5)[2].sum(1)).max() > 0.05


# --- Quadratics ---


def regression(theta, batch):
    return np.sum((batch[0] @ theta[0] - batch[1]) ** 2) / (2 * len(batch[1]))


@pytest.mark.parametrize("K", [1, 2, 5])
def test_k_steps_of_least_squares_are_a_gaussian_prior(K):
    rng = RNG(0)
    X, y, theta, alpha = rng.normal(size=(8, 3)), rng.normal(size=8), rng.normal(size=3), 0.2
    H, c = X.T @ X / 8, X.T @ y / 8

    def posterior(K):
        P = np.linalg.matrix_power(np.eye(3) - alpha * H, K)
        precision = H @ P @ np.linalg.inv(np.eye(3) - P)
        return [np.linalg.solve(H + precision, c + precision @ theta)]

    assert_same(adapt(regression, [theta], [(X, y)] * K, alpha), posterior(K), digits=14)
    refuses(assert_same, adapt(regression, [theta], [(X, y)] * K, alpha), posterior(K + 1), 2)


def test_a_head_that_converges_leaves_the_body_the_schur_complement():
    rng = RNG(0)
    root, c, theta = rng.normal(size=(3, 3)), rng.normal(size=3), [rng.normal(size=2), rng.normal(size=1)]
    A = root @ root.T + np.eye(3)

    def loss(theta, batch):
        d = np.concatenate(theta) - c
        return d @ A @ d / 2

    def gradient(K):
        return anil(loss, theta, [([(c, c)] * K, (c, c))], 0.1, head=1)

    schur = A[:2, :2] - A[:2, 2:] @ A[2:, :2] / A[2, 2]
    assert_same(gradient(200), [schur @ (theta[0] - c[:2]), np.zeros(1)], digits=13)
    refuses(assert_same, gradient(1), [schur @ (theta[0] - c[:2]), np.zeros(1)], 2)


def test_serial_reptile_that_converges_on_every_task_follows_the_leader():
    rng, start = RNG(0), [np.array([5.0, -7.0])]
    roots, optima = rng.normal(size=(10, 2, 2)), rng.normal(size=(10, 2))

    def loss(theta, batch):
        return (theta[0] - batch[1]) @ batch[0] @ (theta[0] - batch[1]) / 2

    def run(rate):
        theta = start
        for t, (root, c) in enumerate(zip(roots, optima, strict=True), 1):
            task = ([(root @ root.T / 4 + np.eye(2) / 2, c)] * 200, None)
            theta = axpy(-rate(t), reptile(loss, theta, [task], 0.3), theta)
        return theta

    assert_same(run(lambda t: 1 / t), [optima.mean(0)], digits=14)
    refuses(assert_same, run(lambda t: 0.5), [optima.mean(0)], 2)


def test_depth_is_a_learned_step_size():
    h, alpha = 1.5, 0.2

    def loss(theta, batch):
        return h / 2 * ((theta[0] if len(theta) == 1 else theta[0] * theta[1]) - batch[1]) ** 2

    def after_a_step(*theta):
        batches = [(np.ones(()), np.array(y)) for y in (1.0, -1.0)]
        return objective(loss, [np.array(w) for w in theta], [([b], b) for b in batches], alpha) / 2

    least = h / 2 * (1 - alpha * h) ** 2
    assert min(after_a_step(w) for w in np.linspace(-3, 3, 61)) == pytest.approx(least) == after_a_step(0.0)
    assert after_a_step(0.0, (alpha * h) ** -0.5) < 1e-30
    assert after_a_step(0.0, (alpha * h) ** -0.5 + 0.1) > 1e-3


# --- What is a gradient, and of what ---


def jacobian(algorithm, task, alpha=0.5):
    def loss(theta, batch):
        return theta[0] @ batch[0] @ theta[0] / 2

    return np.array([algorithm(loss, [e], [task], alpha)[0] for e in np.eye(2)]).T.tolist()


def test_first_order_maml_and_reptile_are_no_gradients():
    first, second = (np.diag([1.0, 0.0]), np.zeros(2)), (np.ones((2, 2)), np.zeros(2))
    assert jacobian(fomaml, ([first], second)) == [[0.5, 1], [0.5, 1]]
    assert jacobian(reptile, ([first, second], None)) == [[0.75, 0.5], [0.25, 0.5]]
    for J in (jacobian(maml, ([first], second)), jacobian(reptile, ([second], None)), jacobian(joint, ([], second))):
        assert J[0][1] == J[1][0] != 0


def of_each(function):
    """The function as `assert_derivative` asks it: of many θ at once."""
    return lambda points: np.array([function(list(theta)) for theta in zip(*points, strict=True)])


def log_cosh(phi, batch):
    return np.sum(np.log(np.cosh(batch[0] @ phi[0] - batch[1])))


def held_to(theta, lam):
    """φ ↦ L(φ) + ½ λ ‖φ − θ‖²."""
    return lambda phi, batch: log_cosh(phi, batch) + lam / 2 * np.sum((phi[0] - theta) ** 2)


@pytest.fixture
def data():
    rng = RNG(0)
    return rng.normal(size=3), *((rng.normal(size=(6, 3)), rng.normal(size=6)) for _ in range(2))


def test_reptile_on_the_proximal_problem_is_the_gradient_of_its_value(data):
    (theta, support, _), lam = data, 20.0
    solve = [([support] * 100, support)]

    def envelope(theta):
        return objective(held_to(theta[0], lam), theta, solve, 0.03)

    got = reptile(held_to(theta, lam), [theta], solve, 0.03)
    assert_derivative(of_each(envelope), [theta], [lam * got[0]])
    plain = reptile(log_cosh, [theta], [([support] * 5, None)], 1 / lam)
    refuses(assert_derivative, of_each(envelope), [theta], [lam * plain[0]])


def test_the_implicit_gradient_is_a_derivative_and_near_one_step_of_maml(data):
    theta, support, query = data

    def solution(theta, lam):
        return adapt(held_to(theta, lam), [theta], [support] * 200, 1 / (lam + 5))

    def adapted(theta):
        return log_cosh(solution(theta[0], 20), query)

    def implicit(lam):
        (phi,) = solution(theta, lam)
        H = hessian(lambda phi: log_cosh([phi], support))(phi)
        return [np.linalg.solve(np.eye(3) + H / lam, grad(log_cosh)([phi], query)[0])]

    one_step = {lam: maml(log_cosh, [theta], [([support], query)], 1 / lam) for lam in (20, 400, 800)}
    assert_derivative(of_each(adapted), [theta], implicit(20))
    refuses(assert_derivative, of_each(adapted), [theta], one_step[20])
    apart = [np.linalg.norm(implicit(lam)[0] - one_step[lam][0]) for lam in (400, 800)]
    assert apart[0] / apart[1] == pytest.approx(4, rel=0.1)


# --- The rate, Hessians by differences, smoothness ---


@given(problems(activations=["tanh"], steps=(1, 4)))
def test_the_adjoint_has_the_gradient_of_the_rate(problem):
    """Of α, and at equal rates of one for each array."""
    loss, theta, tasks, alpha = problem.arguments

    def with_rates(rates):
        total = 0
        for supports, query in tasks:
            phi = theta
            for support in supports:
                phi = [p - rate * g for p, rate, g in zip(phi, rates, grad(loss)(phi, support), strict=True)]
            total = total + loss(phi, query)
        return total

    slopes = rate_slopes(*problem.arguments, maml)
    assert_same([np.array(slopes)], [np.array(grad(with_rates)([alpha] * len(theta)))])
    assert_same([sum(slopes)], [grad(unchecked_objective, 3)(*problem.arguments)])


def rate_slopes(loss, theta, tasks, alpha, algorithm):
    """−Σ ⟨v_{k+1}, ∇L(φ_k; S_k)⟩, leaf by leaf; v is pulled back, or with first-order MAML left as it is."""
    slopes = [0.0 for _ in theta]
    for supports, query in tasks:
        *phis, last = trajectory(loss, theta, supports, alpha)
        v = list(grad(loss)(last, query))
        for phi, support in zip(phis[::-1], supports[::-1], strict=True):
            slopes = [s - np.sum(a * b) for s, a, b in zip(slopes, v, grad(loss)(phi, support), strict=True)]
            v = axpy(-alpha, hvp(loss, phi, support, v), v) if algorithm is maml else v
    return slopes


def test_the_gradient_of_the_rate_needs_the_second_order(example):
    expected = [grad(unchecked_objective, 3)(*example)]
    assert_same([sum(rate_slopes(*example, maml))], expected)
    refuses(assert_same, [sum(rate_slopes(*example, fomaml))], expected, 2)


def test_a_hessian_vector_product_by_central_differences_errs_by_the_square_of_their_width(example):
    loss, theta, ((supports, query), *_), _ = example
    v = unflat(RNG(0).normal(size=flat(theta).size), theta)

    def error(width, sides):
        up, down = (grad(loss)(axpy(side * width, v, theta), query) for side in sides)
        quotient = [(a - b) / ((sides[0] - sides[1]) * width) for a, b in zip(up, down, strict=True)]
        return np.linalg.norm(flat(axpy(-1, hvp(loss, theta, query, v), quotient)))

    assert error(2e-3, (1, -1)) / error(1e-3, (1, -1)) == pytest.approx(4, rel=0.01)
    assert error(2e-3, (1, 0)) / error(1e-3, (1, 0)) == pytest.approx(2, rel=0.1)  # from one side: O(δ)


def test_the_objective_of_maml_is_as_smooth_as_its_gradients_are_long():
    """f_i(w) = b_i w + log cosh(w − c_i): L = 1, ρ = 4/√27, whatever b_i."""
    rho, rng = 4 / 27**0.5, RNG(0)
    batches = [(np.array(b), np.array(c)) for b, c in [(30.0, 0.0), (10.0, 0.5), (0.0, -1.0)]]

    def loss(theta, batch):
        return batch[0] * theta[0] + np.log(np.cosh(theta[0] - batch[1]))

    def slope_and_constant(w, alpha):
        length = np.mean([abs(grad(loss)([w], batch)[0]) for batch in batches])
        return maml(loss, [w], [([b], b) for b in batches], alpha)[0] / 3, 4 + 2 * rho * alpha * length

    of_the_bound, of_4L = [], []
    for _ in range(200):
        alpha, (w, u) = rng.uniform(0, 1), rng.normal(size=2)
        (gw, Lw), (gu, Lu) = slope_and_constant(w, alpha), slope_and_constant(u, alpha)
        of_the_bound.append(abs(gw - gu) / (min(Lw, Lu) * abs(w - u)))
        of_4L.append(abs(gw - gu) / (4 * abs(w - u)))
    assert max(of_the_bound) < 1 < max(of_4L)
