"""Check a meta-gradient on your own network, in your own framework, from its loss and gradient alone.

The caller's `grad` and Hessian-vector products (or else differences of `grad`) give the trajectories, the right
meta-gradient, and that of each known mistake, all in float64 where the caller's functions allow it.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from refmeta.conformance import differences, explain
from refmeta.conformance.check import correct_digits, read_array
from refmeta.conformance.explain import Answered, Explanation, Factor, Program
from refmeta.conformance.network import EPS, FLOOR, UNSTABLE, Network, cast, size, sketch, to_settings
from refmeta.conformance.report import AUDIT, Report, Row, Verdict, describe
from refmeta.conformance.rules import Derivatives, flat
from refmeta.trees import Batch, Loss, Tasks, Theta

Ask = Callable[[int, str], Theta]  # (many, dtype): the caller's meta-gradient of the first `many` tasks
Rows = Callable[[int, Program], np.ndarray]  # `Network.under`
MEAN = Factor(1, "1/tasks")
COARSEST = 1e-2  # where the right answer is known no better, nothing passes and no mistake is named
ROUNDED = 1e-5  # a smaller error is put down to float32 or differences, if no mistake explains it
SMALL = 20_000  # parameters: on larger networks no pairs of mistakes are tried


def audit(
    loss: Loss,
    grad: Callable[[Theta, Batch], Theta],
    meta_gradient: Callable[[Theta, Tasks, float], Theta],
    theta: Theta,
    tasks: Tasks,
    alpha: float,
    algorithm: str = "maml",
    head: int = 2,
    hvp: Callable[[Theta, Batch, Theta], Theta] | None = None,
    tasks_are: str | None = None,
) -> Report:
    """Report whether `meta_gradient(theta, tasks, alpha)` is the algorithm's, and if not, why.

    loss(theta, batch) and grad(theta, batch) take and return NumPy arrays; inside they may use anything. First `grad`
    is compared with `loss`. Then the trajectory, the right meta-gradient and that of every known mistake are computed
    from `grad` and hvp(theta, batch, v) = ∇²L v (without hvp: differences of `grad`). The report says how precise it
    is. The functions are asked in float64 where they allow it; where θ is float32, `meta_gradient` in float32 too.
    head: as in `refmeta.anil`. tasks_are: "sum" or "mean"; None takes either. ValueError, TypeError: an unknown
    algorithm, or arguments that `refmeta.maml` refuses. Exceptions of the caller's functions come through.
    """

    def at(theta: Theta, remark: str = "") -> Report:
        settings = to_settings(algorithm, theta, tasks, alpha, head)
        first, *_ = settings
        some = first.supports[0] if first.supports else first.query
        dtype = finest(grad, list(theta), some)

        def ask(many: int, dtype: str) -> Theta:
            found = meta_gradient(cast(first.theta, dtype), cast(first.tasks[:many], dtype), first.alpha)
            return like(theta, "meta_gradient", found)

        own = _own("grad", grad, theta, dtype)
        fine, coarse = [_own("hvp", hvp, theta, dtype)] * 2 if hvp else differences.products(own, dtype)
        reason = UNSTABLE if hvp else differences.REASON[dtype]
        network = Network(Derivatives(own, fine), Derivatives(own, coarse), settings, dtype, reason)
        asked = ["float64"] * (dtype == "float64") + ["float32"] * any(leaf.dtype.itemsize < 8 for leaf in theta)
        return examine(network, ask, algorithm, asked or ["float64"], tasks_are, _scalar(loss, dtype), remark)

    found = at(theta)
    other = found if hvp or not imprecise(found) else at(differences.beside(theta), AUDIT["beside"])
    return found if imprecise(other) else other


def imprecise(found: Report) -> bool:
    return found.verdicts[0].kind == "imprecise"


def finest(grad: Callable[[Theta, Batch], Theta], theta: Theta, batch: Batch) -> str:
    """The finest dtype in which `grad` computes."""
    try:
        leaves = grad(*cast([theta, batch], "float64"))
        return "float64" if all(read_array(leaf).dtype.itemsize >= 8 for leaf in leaves) else "float32"
    except Exception:  # a float32 module takes no float64
        if all(leaf.dtype.itemsize >= 8 for leaf in theta):
            raise
        return "float32"


def _own(what: str, function: Callable[..., Theta], theta: Theta, dtype: str) -> Callable[..., Theta]:
    """The caller's function on copies in this dtype, its result checked."""

    return lambda *given: like(theta, what, function(*cast(given, dtype)))


def like(theta: Theta, what: str, tree: Any) -> Theta:
    """The arrays that a function of the caller's returned. TypeError, ValueError: they are not shaped like θ."""
    if not isinstance(tree, Iterable):
        raise TypeError(f"{what} returned {type(tree).__name__}: expected a list of arrays shaped like theta")
    leaves = [read_array(leaf) for leaf in tree]
    got, expected = [leaf.shape for leaf in leaves], [leaf.shape for leaf in theta]
    if got != expected:
        raise ValueError(f"{what} returned arrays of shapes {got}; theta has {expected}")
    return leaves


def _scalar(loss: Loss, dtype: str) -> Loss:
    """The loss as a float. ValueError: it returned no single number."""

    def called(phi: Theta, batch: Batch) -> float:
        value = read_array(loss(*cast([phi, batch], dtype)))
        if value.size != 1:
            raise ValueError(f"loss returned an array of shape {value.shape}: expected one number")
        return float(value.reshape(()))

    return called


# --- The verdict ---


class Finding(NamedTuple):
    """A verdict on the caller's network, and its correct digits."""

    kind: str
    text: str
    digits: float | None = None  # None: not measured
    found: Sequence[Explanation] = ()


def examine(
    network: Network,
    ask: Ask,
    algorithm: str,
    asked: Sequence[str],
    tasks_are: str | None,
    loss: Loss | None = None,
    remark: str = "",
) -> Report:
    """The report on a meta-gradient, asked in these dtypes. If it is right in one, the next does not accuse it.

    With `loss`, `grad` is compared with it. ValueError: an unknown word in `tasks_are`.
    """
    if tasks_are not in ("sum", "mean", None):
        raise ValueError(f"tasks_are: expected 'sum', 'mean' or None; got {tasks_are!r}")
    if unknown := sorted(set(asked) - set(EPS)):
        raise ValueError(f"dtype: expected float64 or float32, got {unknown[0]!r}")
    known = network.factors(len(network.settings))
    right = {f: c for f, c in known.items() if c > 0 and f.name != "tasks" and not (tasks_are and "tasks" in f.name)}
    doubt = _doubt(network, loss)
    if isinstance(doubt, Finding):
        return report(algorithm, {asked[-1]: doubt})
    ask = averaged(ask) if tasks_are == "mean" else ask
    findings = in_turn(network.remembering(), ask, right, asked)
    remarks = " ".join(filter(None, (doubt, remark)))
    return report(algorithm, {d: f._replace(text=f"{f.text} {remarks}".strip()) for d, f in findings.items()})


def in_turn(network: Network, ask: Ask, right: dict[Factor, float], asked: Sequence[str]) -> dict[str, Finding]:
    """The findings in each dtype, up to the first that is not right. After a right one, none accuses."""
    findings: dict[str, Finding] = {}
    for dtype in dict.fromkeys(asked):
        try:
            finding = _judge(network, ask, right, dtype)
        except Exception:
            if dtype == asked[-1]:
                raise
            continue  # a float32 module that takes no float64
        if findings and finding.kind not in ("pass", "form"):
            finding = Finding("imprecise", AUDIT["float32"].format(finding.digits), finding.digits)
        findings[dtype] = finding
        if finding.kind != "pass":
            break
    return findings


def averaged(ask: Ask) -> Ask:
    """The sum over the tasks, from a function that returns their mean."""
    return lambda many, dtype: [many * leaf for leaf in ask(many, dtype)]


def _doubt(network: Network, loss: Loss | None) -> Finding | str:
    """A finding against the caller's loss or gradient, or a remark on them, mostly empty."""
    start, grad = network.settings[0], network.derivatives.grad
    at = start.theta, start.supports[0] if start.supports else start.query
    asked: dict[str, Callable[[], Any]] = {"grad" if loss else "the loss": lambda: flat(grad(*at))}
    for what, call in (asked | ({"loss": lambda: loss(*at)} if loss else {})).items():
        one, other = np.asarray(call()), np.asarray(call())
        if np.linalg.norm(one - other) > 1e-4 * np.linalg.norm(one):
            return Finding("unrepeatable", AUDIT["twice"].format(what))
    i, said = differences.against(loss, grad, *at) if loss else (0, "")
    if isinstance(said, float):
        return Finding("grad", AUDIT["grad"].format(i, said))
    return said and AUDIT["unheld"].format(i, said)


def report(algorithm: str, findings: dict[str, Finding]) -> Report:
    """A row for each dtype; the last finding is the verdict."""

    def row(dtype: str, f: Finding) -> Row:
        name = "your network" + f" in {dtype}" * (len(findings) > 1)
        status = "pass" if f.kind == "pass" else "fail"
        said = "not measured" if f.digits is None else f"{f.digits:.1f} correct digits"
        return Row(name, algorithm, "audit", status, f.digits or 0.0, said)

    *_, last = findings.values()
    verdict = Verdict(algorithm, last.kind, last.text, tuple(last.found))
    return Report([row(*pair) for pair in findings.items()], [verdict], "refmeta audit")


@np.errstate(all="ignore")  # an inner loop that climbs may overflow
def _judge(network: Network, ask: Ask, right: dict[Factor, float], dtype: str) -> Finding:
    """The finding on the meta-gradient in one dtype. right: the factors of the sum over tasks that are no mistake."""
    many = len(network.settings)
    leaves = ask(many, dtype)
    if any(leaf.dtype.itemsize < 8 for leaf in leaves):
        dtype = "float32"
    under = cache(network.under)
    got, truth = sketch(flat(leaves)), under(many, ())
    precision = network.precision(dtype, truth)
    if not np.isfinite(truth).all():
        return Finding("imprecise", "cannot be judged: the right meta-gradient has NaN or infinity here.")
    if not np.isfinite(got).all():
        return Finding("form", "the meta-gradient has NaN or infinity.")
    off = {str(f): float(np.linalg.norm(got / c - truth.sum(0))) / size(truth) for f, c in right.items()}
    error, factor = min((error, name) for name, error in off.items())
    digits, precise = correct_digits(error), f"This verdict is precise to {precision:.0e} of the gradient's size."
    rounded = Finding("precision", f"{AUDIT['rounded'].format(digits)} {precise}", digits)
    if error <= precision <= COARSEST:
        taken = {"1": "the sum over the tasks", str(MEAN): "the mean over the tasks"}.get(factor, f"times {factor}")
        text = f"pass; {digits:.1f} digits" + f", {taken}" * (MEAN in right and many > 1)
        return Finding("pass", f"{text}. {precise}", digits)
    if error <= 10 * precision:
        unclear = Finding("imprecise", f"cannot be judged: {network.reason}. {precise}", digits)
        return unclear if precision > 10 * FLOOR[dtype] else rounded
    if not np.linalg.norm(sketch(flat(ask(many, dtype))) - got) <= precision * np.linalg.norm(got):
        return Finding("unrepeatable", AUDIT["kept"])
    found = _name(network, under, ask, got, precision, dtype) if precision <= COARSEST else []
    if not found:
        return rounded if error <= ROUNDED else _unexplained(network, digits, precise)
    found = [e._replace(scale=Factor()) if e.scale in right and not e.convention else e for e in found]
    return Finding("convention" if found[0].convention else "bug", f"{describe(found)}\n{precise}", digits, found)


def _unexplained(network: Network, digits: float, precise: str) -> Finding:
    untried = AUDIT["pairs"].format(SMALL) * (flat(network.settings[0].theta).size > SMALL)
    text = f"wrong ({digits:.1f} digits), and no known mistake explains it; no guess is made.{untried} {precise}"
    return Finding("unexplained", text, digits)


def _name(network: Network, under: Rows, ask: Ask, got: np.ndarray, precision: float, dtype: str) -> list[Explanation]:
    """The simplest mistakes that explain this answer, and the one for the first task alone where there is one.

    under: `Network.under`, cached.
    """
    start, many = network.settings[0], len(network.settings)

    def answered(got: np.ndarray, many: int) -> Answered:
        unit = float(np.abs(got).max()) or 1.0  # the square of 1e200 is infinite

        def scaled(program: Program) -> np.ndarray:
            try:
                return under(many, program) / unit
            except Exception:  # as a batch norm on a single example: no explanation
                if not program:
                    raise
                return np.full((many, len(got)), np.nan)

        def rounding(program: Program) -> float:
            return network.rounding(dtype, under(many, program), network.changed(many, program)) / unit

        limit = 3 * precision * max(size(scaled(())), float(np.linalg.norm(got / unit)))
        return Answered(got / unit, scaled, network.factors(many), limit, rounding, network.settings[:many], small)

    small = flat(start.theta).size <= SMALL
    known = explain.listed, explain.others, explain.step_sizes, explain.listed_pairs
    searches = known[: 4 if small else 3]
    every = answered(got, many)
    try:
        alone = answered(sketch(flat(ask(1, dtype))), 1)  # cheaper for every mistake
    except Exception:  # it takes no other number of tasks
        return explain.explain([every], searches)
    return explain.explain([alone, every], searches) or (explain.explain([every], [explain.listed]) if small else [])
