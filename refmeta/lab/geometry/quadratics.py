"""The picture of the survey article, computed: two quadratic tasks in the plane, and where each method leads on them.

    L(θ; (A, c)) = ½ (θ − c)ᵀ A (θ − c)

The methods see the same k gradients, g_j of the j-th batch after j − 1 inner steps. MAML and first-order MAML take
k − 1 inner steps and use the last gradient, Reptile takes k steps, pre-training uses the gradient before any step.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from autograd import grad
from numpy.linalg import eigvalsh, matrix_power, norm, solve

from refmeta.adjoint import hvp
from refmeta.fast import recorded
from refmeta.lab import training
from refmeta.trees import Array, Batch, Loss, Theta

METHODS = {name: training.METHODS[name] for name in ("joint", "reptile", "fomaml", "maml")}
# Each is steep where the other is flat: were their curvatures alike, every method would end midway between the minima.
TASKS = [(np.array([[1, 0.4], [0.4, 3]]), np.array([0.0, 0])), (np.array([[3, -0.5], [-0.5, 1]]), np.array([2.4, -4]))]
START = np.array([-2.4, 1.0])
# An α below which rounding hides Reptile's displacement, a curvature below which it hides a direction.
SMALLEST, FLATTEST = 1e-4, 1e-6
COUNTS = 2, 3, 4  # the k of the coefficients


def quadratic(theta: Theta, batch: Batch) -> Array:
    A, c = batch
    return (theta[0] - c) @ A @ (theta[0] - c) / 2


def direction(method: str, loss: Loss, theta: Array, draws: Sequence[Sequence[Batch]], alpha: float) -> Array:
    """The method's direction, for the mean of the draws: each is the k batches (B_1, …, B_k) of one task.

        joint g_1       fomaml g_k       maml (I − αH_1) ⋯ (I − αH_{k−1}) g_k       reptile g_1 + … + g_k

    theta: one array; so is the direction. Joint training takes g_1 of B_k.      Nichol et al. 2018, §5.1
    """
    algorithm, _, displacement = METHODS[method]
    last, unit = (None, alpha) if displacement else (-1, 1.0)
    tasks = [(list(draw[:last]), draw[-1]) for draw in draws]
    return algorithm(loss, [theta], tasks, alpha)[0] / (len(tasks) * unit)


WEIGHTS = {
    "joint": lambda A, P, k: A,
    "reptile": lambda A, P, k: A @ sum(matrix_power(P, j) for j in range(k)),
    "fomaml": lambda A, P, k: A @ matrix_power(P, k - 1),
    "maml": lambda A, P, k: matrix_power(P, k - 1) @ A @ matrix_power(P, k - 1),
}


def weight(method: str, A: Array, alpha: float, k: int) -> Array:
    """W of the direction W (θ − c) that the method descends on one quadratic, P = I − αA, k gradients."""
    return WEIGHTS[method](A, np.eye(len(A)) - alpha * A, k)


def fixed_point(method: str, pairs: Sequence[Batch], alpha: float, k: int) -> Array:
    """Where the mean direction over the tasks (A, c) is zero: θ* = (Σ W)⁻¹ Σ W c."""
    weights = [weight(method, A, alpha, k) for A, _ in pairs]
    return solve(sum(weights), sum(W @ c for W, (_, c) in zip(weights, pairs, strict=True)))


def curvature(method: str, pairs: Sequence[Batch], alpha: float, k: int) -> tuple[float, float]:
    """The least and the greatest curvature of the mean W over the tasks: below 0, the fixed point is a saddle.

    ValueError: the inner steps do not converge; the mean W has no inverse, or nearly none.
    """
    limit = 2 / max(eigvalsh(A)[-1] for A, _ in pairs)
    if not SMALLEST <= alpha < limit:
        most = f"{limit:.4g}, where the inner steps begin to diverge"
        raise ValueError(f"alpha {alpha:g}: expected at least {SMALLEST:g}, and less than {most}")
    found = eigvalsh(sum(weight(method, A, alpha, k) for A, _ in pairs) / len(pairs))
    if min(abs(found)) < max(FLATTEST, max(abs(found)) / 1000):
        given, why = f"alpha {alpha:g}, inner steps {k - 1}", f"its curvatures are {found[0]:.2g} and {found[-1]:.2g}"
        raise ValueError(
            f"{given}: descending {method} hardly moves, another alpha or fewer steps are expected ({why})"
        )
    return float(found[0]), float(found[-1])


def descent(method: str, pairs: Sequence[Batch], alpha: float, k: int, start: Array) -> Array:
    """The points of gradient descent along the method's mean direction, shape (steps + 1, 2).

    To 13 digits of the end; where the least curvature is negative, until it has run as far away. ValueError: see there.
    """
    low, high = curvature(method, pairs, alpha, k)
    path, draws, replay, most = [start], [[pair] * k for pair in pairs], recorded(direction), 4 * max(high, -low)
    for _ in range(int(13 * np.log(10) * most / abs(low))):  # each leaves at most 1 − low/most of the way
        path.append(path[-1] - replay(method, quadratic, path[-1], draws, alpha) / most)
    return np.array(path)


def formula(method: str, k: int) -> tuple[float, float]:
    """(c₁, c₂) of E g = c₁ AvgGrad − c₂ α AvgGradInner + O(α²) for k minibatches: Nichol et al. 2018, eqs. 39–41."""
    return {"joint": (1, 0), "reptile": (k, k * (k - 1) / 2), "fomaml": (1, k - 1), "maml": (1, 2 * (k - 1))}[method]


def measured(method: str, loss: Loss, theta: Array, tasks: Sequence[Sequence[Batch]], k: int) -> dict[str, float]:
    """{c1, c2, rest} of an actual expectation: over every draw of k of a task's minibatches, with replacement.

    rest: the share of the expansion's two terms that c₁ and c₂ leave unexplained (0 … 1).
    AvgGrad = E ∇L_1      AvgGradInner = E ∇²L_2 ∇L_1      (two minibatches of one task, drawn independently)

    The expansion in α goes through seven small α: for quadratics and k ≤ 4 it is a polynomial and has no more terms.
    """
    draws = [draw for task in tasks for draw in product(task, repeat=k)]
    alphas = 0.002 * np.arange(1, 8)
    values = [direction(method, loss, theta, draws, alpha) for alpha in alphas]
    constant, slope = solve(np.vander(alphas, increasing=True), values)[:2]
    g = [np.mean([grad(loss)([theta], batch)[0] for batch in task], axis=0) for task in tasks]
    Hg = [np.mean([hvp(loss, [theta], b, [v])[0] for b in task], axis=0) for task, v in zip(tasks, g, strict=True)]
    (c1, left1), (c2, left2) = _fitted(constant, np.mean(g, axis=0)), _fitted(-slope, np.mean(Hg, axis=0))
    return {"c1": c1, "c2": c2, "rest": max(left1, left2)}


def _fitted(term: Array, basis: Array) -> tuple[float, float]:
    """The c with which c · basis is nearest to the term, and the share that is left, ‖term − c · basis‖ / ‖basis‖."""
    c = term @ basis / (basis @ basis)
    return float(c), float(norm(term - c * basis) / norm(basis))


def halves(A: Array, c: Array) -> list[Batch]:
    """Two minibatches with curvatures and minima of their own, whose mean is the task (A, c) up to a constant."""
    E, e = np.array([[0.5, 0.2], [0.2, -0.3]]), np.array([1.0, -2.0])
    return [(A + s * E, solve(A + s * E, A @ c + s * e)) for s in (1, -1)]


def computed(alpha: float, k: int) -> dict[str, Any]:
    """Each method's direction, fixed point and the end of its descent; the leading coefficients.

    A descent that runs away arrives nowhere (None); then `apart` is relative, its end from the closed form of that.
    ValueError: see `curvature`.
    """
    minibatches = [halves(*task) for task in TASKS]
    return {
        "experiment": "geometry",
        "alpha": alpha,
        "inner_steps": k - 1,
        "tasks": [{"A": A.tolist(), "c": c.tolist()} for A, c in TASKS],
        "theta": START.tolist(),
        "methods": [_end(method, alpha, k) for method in METHODS],
        "coefficients": [
            {"k": n, "method": m, **measured(m, quadratic, START, minibatches, n), "formula": formula(m, n)}
            for n, m in product(COUNTS, METHODS)
        ],
    }


def _end(method: str, alpha: float, k: int) -> dict[str, Any]:
    path, point = descent(method, TASKS, alpha, k, START), fixed_point(method, TASKS, alpha, k)
    (low, high), end, scale = curvature(method, TASKS, alpha, k), point, 1.0
    if low < 0:  # each of the n steps multiplies θ − θ* by I − W/most
        W, most = sum(weight(method, A, alpha, k) for A, _ in TASKS) / len(TASKS), 4 * max(high, -low)
        end = point + matrix_power(np.eye(2) - W / most, len(path) - 1) @ (START - point)
        scale = float(norm(end))
    return {
        "method": method,
        "direction": direction(method, quadratic, START, [[TASKS[0]] * k], alpha).tolist(),
        "fixed_point": point.tolist(),
        "curvature": low,
        "arrived": path[-1].tolist() if low > 0 else None,
        "apart": float(norm(path[-1] - end)) / scale,
        "steps": len(path) - 1,
    }


def labels(k: int) -> dict[str, tuple[str, str]]:
    """For people: each method's name, and its `direction` on a quadratic."""
    last, exponent = f"g{subscript(k)}", str(k - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) * (k > 2)
    names = "pre-training", "Reptile", "first-order MAML", "MAML"
    directions = "g₁", f"g₁ + {'… + ' * (k > 2)}{last}", last, f"(I − αA){exponent} {last}"
    return dict(zip(METHODS, zip(names, directions, strict=True), strict=True))


def subscript(j: int) -> str:
    return str(j).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
