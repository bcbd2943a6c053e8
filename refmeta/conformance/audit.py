"""Check a meta-gradient on your own network, in your own framework, from its loss and gradient alone.

The caller's `grad` and Hessian-vector products (or else differences of `grad`) give everything: the trajectories, the
right meta-gradient, and what each known mistake would make of it, all in float64 where the caller's functions allow it.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from refmeta.checks import check_alpha, check_tasks, check_theta
from refmeta.conformance.check import correct_digits, read_array
from refmeta.conformance.explain import (
    Answered,
    Explanation,
    Factor,
    explain,
    factors,
    listed,
    others,
    pairs,
    reset,
    step_sizes,
)
from refmeta.conformance.mistakes import with_mistakes
from refmeta.conformance.report import Report, Row, Verdict, describe
from refmeta.conformance.rules import RULES, Derivatives, Setting, flat, gradients, moves, reptile
from refmeta.trees import Batch, Loss, Tasks, Theta, axpy, dot

Gradient = Callable[[Theta, Batch], Theta]
Ask = Callable[[int, str], Theta]  # (many, dtype): the caller's meta-gradient of the first so many tasks
EPS = {"float64": float(np.finfo(float).eps), "float32": float(np.finfo(np.float32).eps)}
FLOOR = {"float64": 1e-10, "float32": 1e-5}  # nothing is known better than this
AGREES = 1e-2  # a gradient that is right meets a difference quotient closer than this at some step, in float32 too
COARSEST = 1e-2  # if the truth itself is known no better than this, nothing passes
SMALL = 20_000  # parameters: pairs of mistakes are tried on networks of up to so many
SKETCH = 4_096  # numbers that stand for a longer gradient
MEMORY = 1 << 28  # bytes of gradients that are kept


def audit(
    loss: Loss,
    grad: Gradient,
    meta_gradient: Callable[[Theta, Tasks, float], Theta],
    theta: Theta,
    tasks: Tasks,
    alpha: float,
    algorithm: str = "maml",
    head: int | None = None,
    hvp: Callable[[Theta, Batch, Theta], Theta] | None = None,
    tasks_are: str | None = None,
) -> Report:
    """Whether `meta_gradient(theta, tasks, alpha)` is the algorithm's; if not, why.

    loss(theta, batch) and grad(theta, batch) take and give NumPy arrays; what happens inside is theirs. First `grad` is
    held against `loss`; then the trajectory, the Hessian-vector products (`hvp(theta, batch, v)`, or else differences
    of `grad`) and every known mistake are rebuilt from `grad`. The report says how precise it is. All are asked in
    float64, where they can, and of a float32 θ `meta_gradient` in float32 too. `head` as in `refmeta.anil` (default
    there: 2). tasks_are: "sum" or "mean"; None takes either. ValueError, TypeError: an unknown algorithm, or arguments
    as in `refmeta.maml`. Exceptions of the caller's functions come through.
    """
    check_words(algorithm, tasks_are)
    theta, alpha = check_theta(theta), check_alpha(alpha)
    tasks = check_tasks(tasks, queries_needed=algorithm != "reptile")
    some = tasks[0][0][0] if tasks[0][0] else tasks[0][1]
    given = "float64" if all(leaf.dtype.itemsize >= 8 for leaf in theta) else "float32"
    arithmetic = _arithmetic(grad, theta, some)
    own = _own("grad", grad, theta, arithmetic)
    doubt = _doubt(_scalar(loss, arithmetic), own, [leaf.astype(float) for leaf in theta], some)
    if isinstance(doubt, Finding):
        return report(algorithm, {given: doubt})

    def ask(many: int, dtype: str) -> Theta:
        some_tasks = [([_cast(b, dtype) for b in s], q and _cast(q, dtype)) for s, q in tasks[:many]]
        return _arrays("meta_gradient", meta_gradient([leaf.astype(dtype) for leaf in theta], some_tasks, alpha), theta)

    fine, coarse = [_own("hvp", hvp, theta, arithmetic)] * 2 if hvp else _differences(own, arithmetic)
    settings = to_settings(algorithm, theta, tasks, alpha, 2 if head is None else head)
    own, fine, coarse = (remembered(function, flat(theta).size) for function in (own, fine, coarse))
    network = Network(Derivatives(own, fine), Derivatives(own, coarse), settings, arithmetic, reason(hvp, arithmetic))
    return examine(network, ask, algorithm, [arithmetic, given], tasks_are, doubt)


def examine_functions(
    derivatives: Derivatives,
    ask: Ask,
    theta: Theta,
    tasks: Sequence[Any],
    lr: float,
    steps: int | None,
    algorithm: str,
    adapts: Sequence[bool],
    tasks_are: str | None,
    dtype: str,
    remark: Callable[[], str] = str,
) -> Report:
    """`audit` for an adapter to a framework, whose derivatives are exact and take and give arrays in float64."""
    check_words(algorithm, tasks_are)
    if dtype not in EPS:
        raise ValueError(f"dtype: expected float64 or float32, got {dtype!r}")
    theta, alpha = check_theta([leaf.astype(float) for leaf in theta]), check_alpha(lr)
    given = [
        (list(map(partial(_cast, dtype="float64"), s)), q and _cast(q, "float64")) for s, q in to_tasks(tasks, steps)
    ]
    given = check_tasks(given, queries_needed=algorithm != "reptile")
    some = given[0][0][0] if given[0][0] else given[0][1]
    if _differs(lambda: flat(derivatives.grad(theta, some))):
        return report(algorithm, {dtype: Finding("unrepeatable", TWO_ANSWERS.format("the loss"))})
    settings = to_settings(algorithm, theta, given, alpha, adapts)
    own = Derivatives(*(remembered(function, flat(theta).size) for function in derivatives))
    network = Network(own, own, settings, "float64", reason(True, "float64"))
    return examine(network, ask, algorithm, ["float64", dtype], tasks_are, remark())


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The lists, tuples and dicts with the function's value in place of every leaf."""
    if isinstance(tree, dict):
        return {key: mapped(function, leaf) for key, leaf in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(function, leaf) for leaf in tree)
    return function(tree)


def to_tasks(tasks: Sequence[Any], steps: int | None) -> Tasks:
    """Tasks as (supports, query); one support batch is taken for each of so many steps. ValueError: they are none."""
    found = []
    for i, task in enumerate(tasks):
        if len(task) not in (2, 4):
            raise ValueError(f"tasks[{i}]: expected ((x, y), (x, y)), support and query; got {len(task)} things")
        support, query = task if len(task) == 2 else (task[:2], task[2:])
        alone = len(support) == 2 and all(hasattr(part, "shape") for part in support)
        if alone == (steps is None):
            expected = (
                "how often its one support batch is taken" if alone else "None, for a task has a batch for each step"
            )
            raise ValueError(f"steps: expected {expected}; got {steps}")
        found.append(([support] * (steps or 0) if alone else list(support), query))
    return found


def check_words(algorithm: str, tasks_are: str | None) -> None:
    """ValueError unless they are among those known."""
    if algorithm not in RULES:
        raise ValueError(f"algorithm: expected one of {', '.join(RULES)}; got {algorithm!r}")
    if tasks_are not in ("sum", "mean", None):
        raise ValueError(f"tasks_are: expected 'sum', 'mean' or None; got {tasks_are!r}")


def to_settings(algorithm: str, theta: Theta, tasks: Tasks, alpha: float, head: int | Sequence[bool]) -> list[Setting]:
    """A Setting for each task, in float64; it knows how many examples a support batch has, and if it has one output.

    head: how many arrays adapt in ANIL, or of each array whether it does.
    """
    theta = [leaf.astype(float) for leaf in theta]
    adapts = moves(len(theta), head) if isinstance(head, int) else tuple(head)
    adapts = adapts if algorithm == "anil" else (True,) * len(theta)
    found = []
    for supports, query in tasks:
        x, y = supports[0] if supports else (np.zeros(0), np.zeros(0))
        outputs = 1 if y.dtype.kind == "f" and y.shape[1:] == (1,) else None
        found.append(Setting(RULES[algorithm], theta, supports, query, alpha, adapts, len(x) or None, outputs))
    return found


# --- What is rebuilt ---


class Network(NamedTuple):
    """The caller's derivatives and tasks.

    coarse: the derivatives once more, their differences taken at another step. arithmetic: the dtype that both compute
    in. reason: why they may be imprecise.
    """

    derivatives: Derivatives
    coarse: Derivatives
    settings: list[Setting]
    arithmetic: str
    reason: str

    def factors(self, many: int) -> dict[Factor, float]:
        """The factors of a sum over so many tasks that have a name."""
        first, *_ = self.settings
        return factors(many, first.alpha, len(first.supports), "reptile" if first.rule is reptile else "maml")

    def under(self, many: int, mistakes: tuple[str, ...] = (), alpha: float | None = None) -> np.ndarray:
        """The gradient of each of the first so many tasks, a row each, with these mistakes in it."""
        return self.rows(self.derivatives, with_mistakes(mistakes, reset(self.settings[:many], alpha)))

    def rows(self, derivatives: Derivatives, settings: list[Setting]) -> np.ndarray:
        return np.array([sketch(flat(g)) for g in gradients(derivatives, settings)])

    def rounding(self, dtype: str, many: int, mistakes: tuple[str, ...] = (), alpha: float | None = None) -> float:
        """How far the sum over tasks may be off in this dtype: ten times as it moves with θ, by a few roundings."""
        settings, random = with_mistakes(mistakes, reset(self.settings[:many], alpha)), np.random.default_rng(0)
        eps = max(EPS[dtype], EPS[self.arithmetic])
        off = []
        for _ in range(2):
            theta = [leaf * (1 + 8 * eps * random.normal(size=leaf.shape)) for leaf in settings[0].theta]
            moved = self.rows(self.derivatives, [s._replace(theta=theta) for s in settings])
            off.append(10 * _norm(moved - self.rows(self.derivatives, settings)))
        if self.coarse != self.derivatives:
            off.append(4 * _norm(self.rows(self.coarse, settings) - self.rows(self.derivatives, settings)))
        # A displacement θ − φ keeps the rounding of θ, however short it is.
        off.append(4 * eps * (self.settings[0].rule is reptile) * float(np.linalg.norm(flat(self.settings[0].theta))))
        return max(off)

    def precision(self, dtype: str) -> float:
        """How far an answer computed in this dtype may be off the truth, relative to the size of the gradients."""
        many = len(self.settings)
        found = max(FLOOR[dtype], FLOOR[self.arithmetic], self.rounding(dtype, many) / sizes(self.under(many)))
        return found if np.isfinite(found) else np.inf


def sketch(g: np.ndarray) -> np.ndarray:
    """The numbers; of a long gradient SKETCH sums of them under random signs, which keep lengths to about 2 %."""
    if g.size <= SKETCH:
        return g
    places, signs = _hashed(g.size)
    return np.bincount(places, signs * g, SKETCH)


@lru_cache(1)
def _hashed(size: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(size)
    return random.integers(0, SKETCH, size), random.choice([-1.0, 1.0], size)


def _norm(per_task: np.ndarray) -> float:
    """The length of the sum over the tasks."""
    return float(np.linalg.norm(per_task.sum(0)))


def sizes(per_task: np.ndarray) -> float:
    """The largest of the tasks' gradients and their sum."""
    return max(_norm(per_task), float(np.linalg.norm(per_task, axis=1).max()), 1e-300)


# --- The verdict ---


class Finding(NamedTuple):
    """A verdict on the caller's network, and the number of correct digits."""

    kind: str
    text: str
    digits: float = 0
    found: Sequence[Explanation] = ()


def examine(
    network: Network, ask: Ask, algorithm: str, asked: Sequence[str], tasks_are: str | None, remark: str = ""
) -> Report:
    """The report on a meta-gradient. It is asked in these dtypes; what is right in the first is never accused."""
    mean = {None: (True, False), "sum": (False,), "mean": (True,)}[tasks_are]
    known = network.factors(len(network.settings))
    right = {f: c for f, c in known.items() if c > 0 and f.name.endswith(("/tasks", " tasks)")) in mean}
    findings: dict[str, Finding] = {}
    for dtype in dict.fromkeys(asked):
        with np.errstate(all="ignore"):  # an inner loop that climbs may overflow
            finding = _judge(network, ask, right, dtype)
        if findings and finding.kind not in ("pass", "form"):
            finding = Finding("imprecise", FLOAT32_ALONE.format(digits=finding.digits), finding.digits)
        findings[dtype] = finding._replace(text=f"{finding.text} {remark}".strip())
        if finding.kind != "pass":
            break
    return report(algorithm, findings)


PAIRS_UNTRIED = f" Pairs of mistakes are not tried on more than {SMALL} parameters."
FLOAT32_ALONE = (
    "right in float64. In float32 it has {digits:.1f} correct digits, fewer than its rounding explains, and cannot be "
    "judged: a unit may sit near its kink, or the inner loop be unstable."
)


def report(algorithm: str, findings: dict[str, Finding]) -> Report:
    """One row for each dtype; the verdict is the last, for it is the first that is not right."""
    rows = [
        Row(
            "your network" if len(findings) == 1 else f"your network in {dtype}",
            algorithm,
            "audit",
            "pass" if f.kind == "pass" else "fail",
            f.digits,
            f"{f.digits:.1f} correct digits",
        )
        for dtype, f in findings.items()
    ]
    *_, last = findings.values()
    return Report(rows, [Verdict(algorithm, last.kind, last.text, tuple(last.found))], "refmeta audit")


def _judge(network: Network, ask: Ask, right: dict[Factor, float], dtype: str) -> Finding:
    """The finding on the meta-gradient in one dtype. right: the factors of the sum over tasks that are no mistake."""
    many = len(network.settings)
    leaves = ask(many, dtype)
    if any(leaf.dtype.itemsize < 8 for leaf in leaves):
        dtype = "float32"
    got, truth, precision = sketch(flat(leaves)), network.under(many), network.precision(dtype)
    if not np.isfinite(got).all():
        return Finding("form", "the meta-gradient has NaN or infinity.")
    error, factor = min(
        (float(np.linalg.norm(got / c - truth.sum(0))) / sizes(truth), str(f)) for f, c in right.items()
    )
    digits, precise = correct_digits(error), f"This verdict is precise to {precision:.0e} of the gradient's size."
    if error <= precision <= COARSEST:
        convention = f"; multiplied by {factor}" if factor != "1" else ""
        return Finding("pass", f"pass; {digits:.1f} digits{convention}. {precise}", digits)
    if error <= 10 * precision:
        return Finding("imprecise", f"cannot be judged: {network.reason}. {precise}", digits)
    if not float(np.linalg.norm(sketch(flat(ask(many, dtype))) - got)) <= precision * np.linalg.norm(got):
        text = (
            "asked twice, the meta-gradient gave two answers: it draws numbers, or keeps something from call to call."
        )
        return Finding("unrepeatable", text)
    found = _explanations(network, ask, got, precision, dtype)
    if not found:
        untried = PAIRS_UNTRIED * (flat(network.settings[0].theta).size > SMALL)
        text = f"wrong ({digits:.1f} digits), and no known mistake explains it; no guess is made.{untried} {precise}"
        return Finding("unexplained", text, digits)
    found = [e._replace(scale=Factor()) if e.scale in right and not e.convention else e for e in found]
    return Finding("convention" if found[0].convention else "bug", f"{describe(found)}\n{precise}", digits, found)


def _explanations(network: Network, ask: Ask, got: np.ndarray, precision: float, dtype: str) -> list[Explanation]:
    """The simplest mistakes that give this answer, and that to the first task alone where it can be had."""
    start, many = network.settings[0], len(network.settings)

    def answered(got: np.ndarray, many: int) -> Answered:
        unit = float(np.abs(got).max()) or 1.0  # of an answer of 1e200 the square is infinite
        under = cache(lambda *how: network.under(many, *how) / unit)
        limit = 3 * precision * max(sizes(under()), float(np.linalg.norm(got / unit)))

        def rounding(*how: Any) -> float:
            return network.rounding(dtype, many, *how) / unit

        return Answered(got / unit, under, start.alpha, network.factors(many), limit, rounding)

    every, small = answered(got, many), flat(start.theta).size <= SMALL
    searches = (listed, others, step_sizes, *[pairs] * small)
    try:
        alone = answered(sketch(flat(ask(1, dtype))), 1)  # where every mistake costs less
    except Exception:  # it takes no other number of tasks
        return explain([every], searches)
    return explain([alone, every], searches) or (explain([every], searches[:2]) if small else [])


# --- Functions of NumPy arrays ---


def _cast(batch: Batch, dtype: str) -> Batch:
    """The batch with its floating-point numbers in another dtype."""
    x, y = (np.array(a, dtype if a.dtype.kind == "f" else a.dtype) for a in batch)
    return x, y


def _arithmetic(grad: Gradient, theta: Theta, batch: Batch) -> str:
    """The finest dtype in which `grad` computes."""
    for dtype in ("float64", "float32"):
        try:
            leaves = grad([leaf.astype(dtype) for leaf in theta], _cast(batch, dtype))
        except Exception:  # a float32 module takes no float64
            if dtype == "float32" or theta[0].dtype.itemsize >= 8:
                raise
        else:
            if all(read_array(leaf).dtype.itemsize >= 8 for leaf in leaves):
                return "float64"
    return "float32"


def _own(what: str, function: Callable[..., Theta], theta: Theta, dtype: str) -> Callable[..., Theta]:
    """A function of the caller's that gets copies in this dtype."""

    def called(phi: Theta, batch: Batch, *v: Theta) -> Theta:
        given = [[np.array(leaf, dtype) for leaf in tree] for tree in (phi, *v)]
        return _arrays(what, function(given[0], _cast(batch, dtype), *given[1:]), theta)

    return called


def _arrays(what: str, tree: Any, theta: Theta) -> Theta:
    """The arrays that a function of the caller's returned. ValueError: they are not shaped like θ."""
    leaves = [read_array(leaf) for leaf in tree]
    got, expected = [leaf.shape for leaf in leaves], [leaf.shape for leaf in theta]
    if got != expected:
        raise ValueError(f"{what} returned arrays of shapes {got}; theta has {expected}")
    return leaves


def remembered(function: Callable[..., Theta], size: int) -> Callable[..., Theta]:
    """The same function; the first it computed, those of the right gradients, it does not compute again."""
    known: dict[Any, Theta] = {}

    def first_time(phi: Theta, batch: Batch, *v: Theta) -> Theta:
        key = (hash(b"".join(leaf.tobytes() for tree in (phi, *v) for leaf in tree)), id(batch[0]), id(batch[1]))
        if key in known:
            return known[key]
        found = function(phi, batch, *v)
        if len(known) * size * 8 < MEMORY:
            known[key] = found
        return found

    return first_time


def _differences(grad: Gradient, dtype: str) -> list[Callable[..., Theta]]:
    """∇²L v by central differences of ∇L at two steps: of three, the two that agree best. So kinks are stepped over."""
    steps = (3e-5, 3e-6, 3e-7) if dtype == "float64" else (3e-2, 1e-2, 3e-3)

    def quotients(phi: Theta, batch: Batch, v: Theta) -> tuple[Theta, Theta]:
        length = float(dot(v, v)) ** 0.5 or 1.0

        def quotient(h: float) -> Theta:
            ahead, behind = (grad(axpy(sign * h / length, v, phi), batch) for sign in (1, -1))
            return [(a.astype(float) - b) * (length / (2 * h)) for a, b in zip(ahead, behind, strict=True)]

        first, second, third = map(quotient, steps)
        gap, other = (float(np.linalg.norm(flat(a) - flat(b))) for a, b in ((first, second), (second, third)))
        return (first, second) if gap <= other else (third, second)

    return [lambda *a: quotients(*a)[0], lambda *a: quotients(*a)[1]]


def reason(hvp: Any, dtype: str) -> str:
    """Why derivatives are imprecise."""
    if hvp:
        return (
            "the gradient changes as θ moves by a few roundings: a unit sits on its kink, or the inner loop is unstable"
        )
    if dtype == "float64":
        return "differences of `grad` do not settle: a unit sits on its kink, or the loss bends within 1e-6; give `hvp`"
    return "differences of a `grad` in float32 are too coarse: give `hvp`, or let `grad` take float64"


# --- grad held against loss ---


def _scalar(loss: Loss, dtype: str) -> Loss:
    """The loss as a float. ValueError: it returned no single number."""

    def called(phi: Theta, batch: Batch) -> float:
        value = read_array(loss([np.array(leaf, dtype) for leaf in phi], _cast(batch, dtype)))
        if value.size != 1:
            raise ValueError(f"loss returned an array of shape {value.shape}: expected one number")
        return float(value.reshape(()))

    return called


TWO_ANSWERS = (
    "asked twice, {} gave two answers, so nothing can be judged: switch dropout and other noise off (net.eval())."
)


def _differs(function: Callable[[], np.ndarray]) -> bool:
    """Whether a function gives another value the second time, far beyond rounding."""
    a, b = function(), function()
    return bool(np.linalg.norm(a - b) > 1e-4 * np.linalg.norm(a))


def _doubt(loss: Loss, grad: Gradient, theta: Theta, batch: Batch) -> Finding | str:
    """What speaks against `grad` as the gradient of `loss`: a finding, or a remark that may be empty.

    It is looked at beside θ, where no unit sits on its kink as they do at zero biases.
    """
    for what, values in (
        ("loss", [loss(theta, batch) for _ in "ab"]),
        ("grad", [flat(grad(theta, batch)) for _ in "ab"]),
    ):
        a, b = map(np.asarray, values)
        if np.linalg.norm(a - b) > 1e-4 * np.linalg.norm(a):
            return Finding("unrepeatable", f"asked twice, {what} gave two answers: switch off dropout and other noise.")
    random = np.random.default_rng(0)
    beside = [leaf + 1e-2 * (float(np.std(leaf)) or 1.0) * random.normal(size=leaf.shape) for leaf in theta]
    at = beside if np.isfinite(loss(beside, batch)) else theta
    g = grad(at, batch)
    smallest = max(1e-3 * float(np.linalg.norm(flat(g))), 1e-300)
    remark = ""
    for i, leaf in enumerate(g):
        # Along the gradient the signal is largest; a random direction sees what the gradient left out.
        for d in (leaf, random.normal(size=leaf.shape)):
            d = d / (np.linalg.norm(d) or 1)

            def along(t: float, i: int = i, d: Any = d) -> float:
                return loss([x + t * d if j == i else x for j, x in enumerate(at)], batch)

            said = _slope(along, float(np.sum(leaf * d)), smallest)
            if isinstance(said, float):
                differ = f"they differ in array {i} by {said:.0%}; the meta-gradient is not judged."
                return Finding("grad", f"grad is not the gradient of loss: {differ}")
            remark = remark or said.format(i=i)
    return remark


def _slope(f: Callable[[float], float], slope: float, smallest: float) -> float | str:
    """By how much f′(0) certainly is another slope; or a remark, empty where they agree at some step.

    A difference counts where three steps in turn agree far better than that, and both sides have the same slope.
    """
    h = 10.0 ** -np.arange(1, 8)
    f0, ahead, behind = f(0.0), *(np.array([f(sign * step) for step in h]) for sign in (1, -1))
    values = np.array([f0, *ahead, *behind])
    if not np.isfinite(f0):
        return np.inf
    eps = EPS["float32" if (values == values.astype(np.float32)).all() else "float64"]
    up, down = (ahead - f0) / h, (f0 - behind) / h
    middle = (up + down) / 2
    off = np.abs(middle - slope) / np.maximum(np.maximum(np.abs(middle), abs(slope)), smallest)
    if np.nanmin(np.where(np.isfinite(off), off, np.inf)) <= AGREES:
        return ""
    steady = np.array([np.ptp(middle[j : j + 3]) for j in range(5)]) + 8 * eps * abs(f0) / h[2:]
    j = int(np.argmin(np.where(np.isfinite(steady), steady, np.inf)))
    apart, sides = abs(middle[j + 2] - slope), abs(up[j + 2] - down[j + 2])
    if apart > 5 * steady[j] and apart > 5 * sides:
        return float(off[j + 2])
    kink = sides > 5 * steady[j]
    why = "a unit sits on its kink" if kink else "the loss is too coarse for differences"
    return f"`grad` itself could not be held against `loss` in array {{i}}: {why}."
