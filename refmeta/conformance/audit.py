"""Check a meta-gradient on your own network, in your own framework, from its loss and gradient alone."""

from collections.abc import Callable
from math import log10
from typing import Any

import numpy as np

from refmeta.checks import check_alpha, check_tasks, check_theta
from refmeta.conformance.attribution import Explanation, matches, moves, scales, simplest
from refmeta.conformance.checker import Report, Row, Verdict, describe, read_array
from refmeta.conformance.rules import RULES, Setting, Tools, answers, flat
from refmeta.conformance.suspects import SUSPECTS, with_mistakes
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
    head = (2 if head is None else head) if algorithm == "anil" else None

    def arrays(tree: Any, what: str) -> Theta:
        leaves = [read_array(leaf) for leaf in tree]
        if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in theta]:
            got, expected = [leaf.shape for leaf in leaves], [leaf.shape for leaf in theta]
            raise ValueError(f"{what} returned arrays of shapes {got}; theta has {expected}")
        return [leaf.astype(float) for leaf in leaves]

    def report(kind: str, text: str, passed: bool, digits: float, found: Any = ()) -> Report:
        row = Row(
            "your network", algorithm, "audit", "pass" if passed else "fail", digits, f"{digits:.1f} correct digits"
        )
        return Report([row], [Verdict(algorithm, kind, text, tuple(found))], "refmeta audit")

    single = any(np.asarray(g).dtype.itemsize < 8 for g in grad(theta, _some_batch(tasks)))
    remembered = _remember(lambda phi, batch: arrays(grad(_like(phi, theta), batch), "grad"))
    worst, where = _against_loss(loss, remembered, theta, _some_batch(tasks))
    if worst > AGREES:
        return report(
            "grad",
            f"grad is not the gradient of loss: they differ in array {where} by {worst:.0%} at every step size tried; "
            "the meta-gradient is not judged.",
            False,
            0,
        )

    def setting(supports: Any, query: Any) -> Setting:
        x, y = supports[0] if supports else (np.zeros(0), np.zeros(0))
        outputs = 1 if y.dtype.kind == "f" and y.shape[1:] == (1,) else None
        start = [leaf.astype(float) for leaf in theta]
        return Setting(
            RULES[algorithm], start, supports, query, alpha, moves(len(theta), head), len(x) or None, outputs
        )

    settings = [setting(*task) for task in tasks]
    given = hvp and (lambda phi, batch, v: arrays(hvp(_like(phi, theta), batch, _like(v, theta)), "hvp"))
    step = 3e-2 if single else 3e-5
    fine, coarse = (Tools(remembered, given or _differences(remembered, h)) for h in (step, 2 * step))
    truth = np.array([flat(g) for g in answers(fine, settings)])
    check = truth if hvp else np.array([flat(g) for g in answers(coarse, settings)])
    got = flat(arrays(meta_gradient(theta, tasks, alpha), "meta_gradient"))
    size = max(float(np.linalg.norm(truth.sum(0))), float(np.linalg.norm(truth, axis=1).max()), 1e-300)
    rounding, start = 1e-5 if single else 1e-10, float(np.linalg.norm(flat(theta)))
    # A displacement θ − φ keeps the rounding of θ, however short it is.
    rounding += 4 * float(np.finfo(np.float32 if single else float).eps) * (algorithm == "reptile") * start / size
    precision = max(rounding, 4 * float(np.linalg.norm((truth - check).sum(0))) / size)
    known = f"This verdict is precise to {precision:.0e} of the gradient's size."
    if precision > COARSEST:
        return report("imprecise", f"no verdict: {known} Give `hvp`, or compute in float64.", False, 0)
    if not np.isfinite(got).all():
        return report("form", "the meta-gradient has NaN or infinity.", False, 0)
    error = float(np.linalg.norm(got - truth.sum(0))) / size
    digits = max(0.0, min(16.0, -log10(max(error, 1e-16))))
    if error <= precision:
        return report("pass", f"pass; {digits:.1f} digits. {known}", True, digits)
    found = _explain(
        got, truth, (fine, coarse), settings, precision, scales(len(tasks), alpha, len(tasks[0][0]), algorithm)
    )
    if not found:
        text = f"wrong ({digits:.1f} digits), and no known mistake explains it; no guess is made. {known}"
        return report("unexplained", text, False, digits)
    convention = not found[0].suspects and found[0].tasks == "all" and not found[0].scale.startswith("-")
    kind = "convention" if convention else "bug"
    return report(kind, f"{describe(found)}\n{known}", False, digits, found)


def _explain(
    got: np.ndarray,
    truth: Any,
    tools: tuple[Tools, Tools],
    settings: list[Setting],
    precision: float,
    named: dict[str, float],
) -> list[Explanation]:
    """The simplest mistakes that give this answer, and would be seen: a suspect near the truth explains nothing."""
    if not got.any():
        return [Explanation(("zero",))]
    (fine, coarse), found = tools, set[Explanation]()
    for name in (None, *SUSPECTS):
        ways = settings if name is None else with_mistakes([name], settings)
        trees, again = (np.array([flat(g) for g in answers(t, ways)]) for t in (fine, coarse))
        size = float(max(np.linalg.norm(got), np.linalg.norm(trees, axis=1).max()))
        limit = 3 * max(precision * size, 4 * float(np.linalg.norm((trees - again).sum(0))))
        if name is None or np.linalg.norm((trees - truth).sum(0)) > 10 * limit:
            found |= {Explanation((name,) if name else (), *fit) for fit in matches(got, trees, named, limit)}
    if got.size < 3:  # one or two numbers fit any factor
        found = {e for e in found if e.scale in named}
    return simplest(found - {Explanation()}) if found else []


def _some_batch(tasks: Tasks) -> Batch:
    supports, query = tasks[0]
    return supports[0] if supports else query


def _like(phi: Theta, theta: Theta) -> Theta:
    """φ in the dtypes that the caller gave θ in."""
    return [p.astype(t.dtype) for p, t in zip(phi, theta, strict=True)]


def _remember(grad: Callable[[Theta, Batch], Theta]) -> Callable[[Theta, Batch], Theta]:
    """The same function; what it was asked before it does not compute again, for suspects share most of their path."""
    known: dict[Any, Theta] = {}

    def remembered(phi: Theta, batch: Batch) -> Theta:
        key = (hash(b"".join(leaf.tobytes() for leaf in phi)), id(batch[0]), id(batch[1]))
        if key not in known:
            known[key] = grad(phi, batch)
        return known[key]

    return remembered


def _differences(grad: Callable[[Theta, Batch], Theta], h: float) -> Callable[[Theta, Batch, Theta], Theta]:
    """∇²L v by central differences of ∇L, a step of length h along v."""

    def hvp(phi: Theta, batch: Batch, v: Theta) -> Theta:
        length = float(dot(v, v)) ** 0.5
        if not length:
            return [0 * leaf for leaf in v]
        ahead, behind = (grad(axpy(sign * h / length, v, phi), batch) for sign in (1, -1))
        return [(a - b) * (length / (2 * h)) for a, b in zip(ahead, behind, strict=True)]

    return hvp


def _against_loss(loss: Loss, grad: Callable[[Theta, Batch], Theta], theta: Theta, batch: Batch) -> tuple[float, int]:
    """The worst array's disagreement of `grad` with difference quotients of `loss`, at the best step, and its index."""
    random, g = np.random.default_rng(0), grad(theta, batch)
    size = float(dot(g, g)) ** 0.5
    worst = (0.0, 0)
    for i, leaf in enumerate(g):
        # Along the gradient the signal is largest; a random direction sees what the gradient left out.
        for d in (leaf / (np.linalg.norm(leaf) or 1), _unit(random.normal(size=leaf.shape))):
            slope = float(np.sum(leaf * d))
            errors = []
            for h in STEPS:
                ahead, behind = (float(loss(_moved(theta, i, sign * h * d), batch)) for sign in (1, -1))
                quotient = (ahead - behind) / (2 * h)
                error = abs(quotient - slope) / max(abs(quotient), abs(slope), 1e-3 * size, 1e-300)
                errors.append(error if np.isfinite(error) else np.inf)  # NaN would pass through min and max
            worst = max(worst, (min(errors), i))
    return worst


def _unit(d: Any) -> Any:
    return d / (np.linalg.norm(d) or 1)


def _moved(theta: Theta, i: int, by: Any) -> Theta:
    return [(leaf + by).astype(leaf.dtype) if j == i else leaf for j, leaf in enumerate(theta)]
