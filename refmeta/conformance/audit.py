"""Check a meta-gradient on your own network, in your own framework, from its loss and gradient alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refmeta.checks import check_alpha, check_tasks, check_theta
from refmeta.conformance.check import correct_digits, read_array
from refmeta.conformance.explain import ZERO, Explanation, Factor, factors, matches, simplest, telling
from refmeta.conformance.mistakes import MISTAKES, with_mistakes
from refmeta.conformance.report import Report, Row, Verdict, describe
from refmeta.conformance.rules import RULES, Derivatives, Setting, flat, gradients, reptile, setting
from refmeta.trees import Batch, Loss, Tasks, Theta, axpy, dot

AGREES = 1e-2  # a gradient that is right meets a difference quotient closer than this at some step, in float32 too
STEPS = 10.0 ** -np.arange(1, 8)
COARSEST = 1e-2  # if the truth itself is known no better than this, there is no verdict


def audit(
    loss: Loss,
    grad: Callable[[Theta, Batch], Theta],
    meta_gradient: Callable[[Theta, Tasks, float], Theta],
    theta: Theta,
    tasks: Tasks,
    alpha: float,
    algorithm: str = "maml",
    head: int | None = None,
    hvp: Callable[[Theta, Batch, Theta], Theta] | None = None,
) -> Report:
    """Whether `meta_gradient(theta, tasks, alpha)` is the algorithm's, summed over the tasks; if not, why.

    loss(theta, batch) and grad(theta, batch) take and give NumPy arrays; what happens inside is theirs. First `grad` is
    held against `loss`; then the trajectory, the Hessian-vector products (`hvp(theta, batch, v)`, or else central
    differences of `grad`) and every known mistake are rebuilt from `grad`. The report says how precise it is.
    `head` as in `refmeta.anil` (default there: 2). ValueError, TypeError: an unknown algorithm, or arguments as in
    `refmeta.maml`. Exceptions of the caller's functions come through.
    """
    if algorithm not in RULES:
        raise ValueError(f"algorithm: expected one of {', '.join(RULES)}; got {algorithm!r}")
    theta, alpha = check_theta(theta), check_alpha(alpha)
    tasks = check_tasks(tasks, queries_needed=algorithm != "reptile")
    some = tasks[0][0][0] if tasks[0][0] else tasks[0][1]
    single = any(read_array(leaf).dtype.itemsize < 8 for leaf in grad(theta, some))
    own = _remember(_own("grad", grad, theta))
    products = [_own("hvp", hvp, theta)] * 2 if hvp else [_differences(own, h, single) for h in (1, 2)]
    start = [leaf.astype(float) for leaf in theta]
    head = 2 if head is None else head
    settings = [_sized(setting(algorithm, start, task, alpha, head)) for task in tasks]
    known = factors(len(tasks), alpha, len(tasks[0][0]), algorithm)
    network = Network([Derivatives(own, product) for product in products], settings, known, single)
    kind, text, digits, found = _against_loss(loss, own, theta, some) or _judge(
        network, flat(_arrays("meta_gradient", meta_gradient(theta, tasks, alpha), theta))
    )
    status, message = "pass" if kind == "pass" else "fail", f"{digits:.1f} correct digits"
    row = Row("your network", algorithm, "audit", status, digits, message)
    return Report([row], [Verdict(algorithm, kind, text, tuple(found))], "refmeta audit")


class Finding(NamedTuple):
    """A verdict on the caller's network, and the number of correct digits."""

    kind: str
    text: str
    digits: float = 0
    found: list[Explanation] = []


class Network(NamedTuple):
    """What is rebuilt of the caller's network: its derivatives, by differences of two step sizes, and its tasks."""

    derivatives: list[Derivatives]
    settings: list[Setting]
    factors: dict[Factor, float]
    single: bool

    def per_task(self, *mistakes: str) -> tuple[np.ndarray, float]:
        """The gradient of every task with these mistakes in it, and how far their sum may be off."""
        settings = with_mistakes(mistakes, self.settings)
        fine, coarse = (np.array([flat(g) for g in gradients(d, settings)]) for d in self.derivatives)
        return fine, 4 * float(np.linalg.norm((fine - coarse).sum(0)))

    def rounding(self, size: float) -> float:
        """What a gradient of this size may be off by in its own arithmetic, relative to the size."""
        found, eps = (1e-5, np.finfo(np.float32).eps) if self.single else (1e-10, np.finfo(float).eps)
        start, *_ = self.settings
        # A displacement θ − φ keeps the rounding of θ, however short it is.
        return found + 4 * float(eps) * (start.rule is reptile) * float(np.linalg.norm(flat(start.theta))) / size


def _judge(network: Network, got: np.ndarray) -> Finding:
    """The verdict on a meta-gradient."""
    truth, off = network.per_task()
    size = max(_size(truth, truth.sum(0)), 1e-300)
    precision = max(network.rounding(size), off / size)
    known = f"This verdict is precise to {precision:.0e} of the gradient's size."
    if precision > COARSEST:
        return Finding("imprecise", f"no verdict: {known} Give `hvp`, or compute in float64.")
    if not np.isfinite(got).all():
        return Finding("form", "the meta-gradient has NaN or infinity.")
    error = float(np.linalg.norm(got - truth.sum(0))) / size
    digits = correct_digits(error)
    if error <= precision:
        return Finding("pass", f"pass; {digits:.1f} digits. {known}", digits)
    found = _explain(network, got, truth, precision)
    if found:
        return Finding("convention" if found[0].convention else "bug", f"{describe(found)}\n{known}", digits, found)
    text = f"wrong ({digits:.1f} digits), and no known mistake explains it; no guess is made. {known}"
    return Finding("unexplained", text, digits)


def _explain(network: Network, got: np.ndarray, truth: np.ndarray, precision: float) -> list[Explanation]:
    """The simplest mistakes that give this answer, and would be seen: one near the truth explains nothing."""
    if not got.any():
        return [ZERO]
    found: set[Explanation] = set()
    away = float(np.linalg.norm(got - truth.sum(0)))
    for mistakes in ((), *((name,) for name in MISTAKES)):
        trees, off = network.per_task(*mistakes)
        limit = 3 * max(precision * _size(trees, got), off)
        if not mistakes or min(away, float(np.linalg.norm((trees - truth).sum(0)))) > 10 * limit:
            found |= {Explanation(mistakes, *fit) for fit in matches(got, trees, network.factors, limit)}
    return simplest(telling(found, got.size))


def _size(per_task: np.ndarray, total: np.ndarray) -> float:
    """The largest of the tasks' gradients and a sum of them."""
    return float(max(np.linalg.norm(total), np.linalg.norm(per_task, axis=1).max()))


def _sized(s: Setting) -> Setting:
    """A Setting that knows how many examples a support batch has, and whether its targets are one column of reals."""
    x, y = s.supports[0] if s.supports else (np.zeros(0), np.zeros(0))
    return s._replace(n=len(x) or None, outputs=1 if y.dtype.kind == "f" and y.shape[1:] == (1,) else None)


def _own(what: str, function: Callable[..., Theta], theta: Theta) -> Callable[..., Theta]:
    """A function of the caller's, called with φ and v in the dtypes that θ was given in."""

    def called(phi: Theta, batch: Batch, *v: Theta) -> Theta:
        phi, *rest = ([leaf.astype(t.dtype) for leaf, t in zip(tree, theta, strict=True)] for tree in (phi, *v))
        return _arrays(what, function(phi, batch, *rest), theta)

    return called


def _arrays(what: str, tree: Any, theta: Theta) -> Theta:
    """The arrays that a function of the caller's returned. ValueError: they are not shaped like θ."""
    leaves = [read_array(leaf) for leaf in tree]
    got, expected = [leaf.shape for leaf in leaves], [leaf.shape for leaf in theta]
    if got != expected:
        raise ValueError(f"{what} returned arrays of shapes {got}; theta has {expected}")
    return [leaf.astype(float) for leaf in leaves]


def _remember(grad: Callable[..., Theta]) -> Callable[..., Theta]:
    """The same function; what it was asked before it does not compute again, for mistakes share most of their path."""
    known: dict[Any, Theta] = {}

    def remembered(phi: Theta, batch: Batch) -> Theta:
        key = (hash(b"".join(leaf.tobytes() for leaf in phi)), id(batch[0]), id(batch[1]))
        if key not in known:
            known[key] = grad(phi, batch)
        return known[key]

    return remembered


def _differences(grad: Callable[..., Theta], steps: float, single: bool) -> Callable[..., Theta]:
    """∇²L v by central differences of ∇L, so many steps along v."""
    h = steps * (3e-2 if single else 3e-5)

    def hvp(phi: Theta, batch: Batch, v: Theta) -> Theta:
        length = float(dot(v, v)) ** 0.5
        if not length:
            return [0 * leaf for leaf in v]
        ahead, behind = (grad(axpy(sign * h / length, v, phi), batch) for sign in (1, -1))
        return [(a - b) * (length / (2 * h)) for a, b in zip(ahead, behind, strict=True)]

    return hvp


def _against_loss(loss: Loss, grad: Callable[[Theta, Batch], Theta], theta: Theta, batch: Batch) -> Finding | None:
    """The finding that `grad` disagrees with difference quotients of `loss` at every step, in which array most."""
    random, g = np.random.default_rng(0), grad(theta, batch)
    smallest = max(1e-3 * float(dot(g, g)) ** 0.5, 1e-300)

    def error(i: int, d: Any, slope: float, h: float) -> float:
        ahead, behind = (float(loss(_moved(theta, i, sign * h * d), batch)) for sign in (1, -1))
        quotient = (ahead - behind) / (2 * h)
        found = abs(quotient - slope) / max(abs(quotient), abs(slope), smallest)
        return found if np.isfinite(found) else np.inf  # NaN would pass through min and max

    worst, where = 0.0, 0
    for i, leaf in enumerate(g):
        # Along the gradient the signal is largest; a random direction sees what the gradient left out.
        for d in (leaf, random.normal(size=leaf.shape)):
            d = d / (np.linalg.norm(d) or 1)
            slope = float(np.sum(leaf * d))
            worst, where = max((worst, where), (min(error(i, d, slope, h) for h in STEPS), i))
    differ = f"they differ in array {where} by {worst:.0%} at every step size tried; the meta-gradient is not judged."
    return Finding("grad", f"grad is not the gradient of loss: {differ}") if worst > AGREES else None


def _moved(theta: Theta, i: int, by: Any) -> Theta:
    return [(leaf + by).astype(leaf.dtype) if j == i else leaf for j, leaf in enumerate(theta)]
