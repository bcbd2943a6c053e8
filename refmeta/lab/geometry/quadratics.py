"""The survey article's picture, computed: two quadratic tasks in the plane, and where each method leads on them.

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
# Each is steep where the other is flat: with equal curvatures every method would end midway between the minima.
TASKS = [(np.array([[1, 0.4], [0.4, 3]]), np.array([0.0, 0])), (np.array([[3, -0.5], [-0.5, 1]]), np.array([2.4, -4]))]
START = np.array([-2.4, 1.0])
# An α below which rounding hides Reptile's displacement, a curvature below which it hides a direction.
SMALLEST, FLATTEST = 1e-4, 1e-6
MOST = 1000  # gradients, which are all kept in memory
COUNTS = 2, 3, 4  # the k of the coefficients


def quadratic(theta: Theta, batch: Batch) -> Array:
    A, c = batch
    return (theta[0] - c) @ A @ (theta[0] - c) / 2


def direction(method: str, loss: Loss, theta: Array, draws: Sequence[Sequence[Batch]], alpha: float) -> Array:
    """The method's mean direction over the draws. A draw is the k batches (B_1, …, B_k) of one task.

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


def mean_weight(method: str, pairs: Sequence[Batch], alpha: float, k: int) -> Array:
    return sum(weight(method, A, alpha, k) for A, _ in pairs) / len(pairs)


def fixed_point(method: str, pairs: Sequence[Batch], alpha: float, k: int) -> Array:
    """Where the mean direction over the tasks (A, c) is zero: θ* = (Σ W)⁻¹ Σ W c."""
    total = sum(weight(method, A, alpha, k) @ c for A, c in pairs)
    return solve(mean_weight(method, pairs, alpha, k), total / len(pairs))


def descent(method: str, pairs: Sequence[Batch], alpha: float, k: int, start: Array) -> Array:
    """The points of gradient descent along the method's mean direction W̄ (θ − θ*), shape (steps + 1, 2).

    Its rate is 1/(4 c), c the greatest curvature of W̄. To 13 digits of the end; or, where W̄ has a negative curvature
    and so the fixed point repels, as many times as far away. ValueError: bad tasks; the inner steps do not converge;
    W̄ has no inverse, or nearly none.
    """
    if {(np.shape(A), np.shape(c), np.shape(start)) for A, c in pairs} != {((2, 2), (2,), (2,))}:
        raise ValueError("tasks: expected pairs (A, c) of the shapes (2, 2) and (2,), and theta of the shape (2,)")
    if k > MOST:
        raise ValueError(f"inner steps {k - 1}: expected at most {MOST - 1}")
    limit, given = 2 / max(eigvalsh(A)[-1] for A, _ in pairs), f"alpha {alpha:g}"
    if not SMALLEST <= alpha < limit:
        most = f"{limit:.4g}, where the inner steps begin to diverge"
        raise ValueError(f"{given}: expected at least {SMALLEST:g}, and less than {most}")
    low, high = sorted(abs(eigvalsh(mean_weight(method, pairs, alpha, k))))
    if low < max(FLATTEST, high / 1000):
        why = f"hardly moves (curvature {low:.2g}); expected another alpha or fewer inner steps"
        raise ValueError(f"{given}, inner steps {k - 1}: descent along {method} {why}")
    path, draws, replay = [start], [[pair] * k for pair in pairs], recorded(direction)
    for _ in range(int(13 * np.log(10) * 4 * high / low)):  # each leaves at most 1 − low/(4 high) of the way
        path.append(path[-1] - replay(method, quadratic, path[-1], draws, alpha) / (4 * high))
    return np.array(path)


def formula(method: str, k: int) -> tuple[float, float]:
    """(c₁, c₂) of E g = c₁ AvgGrad − c₂ α AvgGradInner + O(α²) for k minibatches: Nichol et al. 2018, eqs. 39–41."""
    return {"joint": (1, 0), "reptile": (k, k * (k - 1) / 2), "fomaml": (1, k - 1), "maml": (1, 2 * (k - 1))}[method]


def measured(method: str, loss: Loss, theta: Array, tasks: Sequence[Sequence[Batch]], k: int) -> dict[str, float]:
    """{c1, c2, rest} of an exact expectation, over every draw of k of a task's minibatches, with replacement.

    rest: the share of the expansion's two terms that c₁ and c₂ do not explain (0 … 1).
    AvgGrad = E ∇L_1      AvgGradInner = E ∇²L_2 ∇L_1      (two minibatches of one task, drawn independently)

    The expansion in α is fitted at seven small α. That is exact: for quadratics and k ≤ 4 it has at most seven terms.
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
    """The c for which c · basis is nearest to the term, and what is left, ‖term − c · basis‖ / ‖basis‖."""
    c = term @ basis / (basis @ basis)
    return float(c), float(norm(term - c * basis) / norm(basis))


def halves(A: Array, c: Array) -> list[Batch]:
    """Two minibatches with different curvatures and minima. Their mean is the task (A, c), up to a constant."""
    E, e = np.array([[0.5, 0.2], [0.2, -0.3]]), np.array([1.0, -2.0])
    return [(A + s * E, solve(A + s * E, A @ c + s * e)) for s in (1, -1)]


def computed(alpha: float, k: int) -> dict[str, Any]:
    """Each method's direction, fixed point and end of descent, with the leading coefficients.

    A descent that runs away arrives nowhere: None. ValueError: see `descent`.
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
    """`apart`: from where the closed form has the descent's last point, each step a factor I − W̄/(4 c) of θ − θ*."""
    path, point = descent(method, TASKS, alpha, k, START), fixed_point(method, TASKS, alpha, k)
    W = mean_weight(method, TASKS, alpha, k)
    factor = np.eye(2) - W / (4 * max(abs(eigvalsh(W))))
    end = point + matrix_power(factor, len(path) - 1) @ (START - point)
    return {
        "method": method,
        "direction": direction(method, quadratic, START, [[TASKS[0]] * k], alpha).tolist(),
        "fixed_point": point.tolist(),
        "arrived": path[-1].tolist() if arrives(path) else None,
        "apart": float(norm(path[-1] - end)) / max(1.0, float(norm(end))),
        "steps": len(path) - 1,
    }


def arrives(path: Array) -> bool:
    """Whether a descent ends in its fixed point, or runs away."""
    return bool(norm(path[-1] - path[-2]) < 1)


def labels(k: int) -> dict[str, tuple[str, str]]:
    """Each method's name in words, and its `direction` on a quadratic."""
    last, exponent = f"g{subscript(k)}", str(k - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) * (k > 2)
    names = "pre-training", "Reptile", "first-order MAML", "MAML"
    directions = "g₁", f"g₁ + {'… + ' * (k > 2)}{last}", last, f"(I − αA){exponent} {last}"
    return dict(zip(METHODS, zip(names, directions, strict=True), strict=True))


def subscript(j: int) -> str:
    return str(j).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
