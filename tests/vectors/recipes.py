"""The cases: a recipe makes one from random numbers, and a tier is a list of recipes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, NamedTuple

import numpy as np

from refmeta.conformance import Case
from refmeta.models import MLP
from refmeta.trees import Array
from tests.vectors.make import vector

Values = dict[str, Any]  # of a Case
Recipe = Callable[[Random], Values]

NOTES = {
    "Basic": "Any harness that is wired up passes: the loss is linear and one batch is used for everything.",
    "SecondOrder": "The second-order term is of the size of the gradient.",
    "NonCommuting": "The inner Hessians do not commute, so the order of the factors is visible.",
    "UnequalTasks": "The tasks differ, so a task that is lost or counted twice is visible.",
    "UnequalSizes": "Support and query have sizes without a common factor, so a wrong normalisation is visible.",
    "BodyAndHead": "Only the head adapts; the body's gradient runs through the adapted head.",
    "EdgeCase": "An ordinary implementation need not think of it, and a correct one gets it right.",
    "Convention": "Differs from the other vectors in a declared convention.",
    "Deep": "Several hidden layers, so a mistake in the middle ones is visible.",
    "Long": "Ten inner steps and more, so what keeps the last ones only is visible.",
    "Steep": "An inner gradient is longer than 100, and a number in it larger than 40: one that is clipped is visible.",
    "UnequalSteps": "The steps of a task have batches of unequal sizes.",
    "Ragged": "The tasks differ in their number of steps.",
    "Fine": "Numbers have more digits than half precision keeps, so a type that is too short is visible.",
}
DEFAULT = {"tasks": "sum", "examples": "mean", "reptile": "displacement"}
Layout = Sequence[tuple[tuple[int, ...], int]]  # the examples at each step of a task, and in its query
SIZES = ((5, 7), (4, 9), (3, 8), (2, 5))  # the examples of each task's supports and of its query


def draw(random: Random, shape: tuple[int, ...], low: int, high: int, unit: int = 1) -> Array:
    """Whole numbers from low to high, over unit."""
    size = int(np.prod(shape, dtype=int))
    return np.array([low + int(random.random() * (high - low + 1)) for _ in range(size)]).reshape(shape) / unit


def quadratic(random: Random, steps: int, tasks: int, head: int | None = None, size: int = 0) -> Values:
    """With a head θ has a body of two numbers and a head of one; else one array."""
    sizes = [size or (2 if steps > 3 else 3)] if head is None else [2, 1]
    d, most = sum(sizes), 1 if steps > 3 else 2

    def batch() -> Any:
        A = draw(random, (d, d), -most, most)
        return np.triu(A) + np.triu(A, 1).T, draw(random, (d,), -2, 2)

    return {
        "theta": [draw(random, (size,), -2, 2) for size in sizes],
        "names": ["t"] if head is None else ["body", "head"],
        "tasks": [([batch() for _ in range(steps)], batch()) for _ in range(tasks)],
        "alpha": 0.5 if steps > 3 else 0.25,
        "head": head,
        "model": {"kind": "quadratic"},
        "loss": {"kind": "quadratic"},
    }


def canary(random: Random, head: int | None) -> Values:
    """A linear loss and one batch: the gradient is the same wherever and on whatever it is taken."""
    made = quadratic(random, 1, 1, head, size=2)
    b = np.arange(1.0, 1 + sum(leaf.size for leaf in made["theta"]))
    batch = (np.zeros((len(b), len(b))), b)
    return {**made, "tasks": [([batch], batch)]}


def scalar(random: Random) -> Values:
    """θ is one number, an array without axes."""
    made = quadratic(random, 2, 2, size=1)
    return {**made, "theta": [made["theta"][0].reshape(())]}


def network(
    random: Random, steps: int, tasks: int, sizes: tuple[tuple[int, int], ...] = SIZES, **options: Any
) -> Values:
    return laid_out(random, [((n,) * steps, m) for n, m in sizes[:tasks]], **options)


def laid_out(
    random: Random,
    layout: Layout,
    head: int | None = None,
    widths: tuple[int, ...] = (2, 3, 2),
    loss: str = "squared_error",
    unit: int = 16,
    alpha: float = float(np.float32(0.3)),
    conventions: dict[str, str] = {},  # noqa: B006
    activation: str = "tanh",
    reach: int = 1,
) -> Values:
    """reach: how many times as large the targets of a regression are."""
    net = MLP(widths)

    def batch(n: int) -> Any:
        x = draw(random, (n, widths[0]), -2 * unit, 2 * unit, unit)
        if loss == "cross_entropy":
            return x, draw(random, (n,), 0, widths[-1] - 1).astype(np.int64)
        return x, reach * draw(random, (n, widths[-1]), -2 * unit, 2 * unit, unit)

    return {
        "theta": [draw(random, shape, -unit, unit, unit) for shape in net.shapes],
        "names": net.names,
        "tasks": [([batch(n) for n in steps], batch(m)) for steps, m in layout],
        "alpha": alpha,
        "head": head,
        "model": {"kind": "mlp", "widths": list(widths), "activation": activation},
        "loss": {"kind": loss},
        "conventions": DEFAULT | conventions,
    }


regression = partial(network, widths=(2, 1), unit=1, sizes=((4, 2), (2, 4)), alpha=0.5)
softmax = partial(network, widths=(2, 3, 3), loss="cross_entropy", alpha=0.5)


def ragged(random: Random) -> Values:
    """One, two and three inner steps, with batches of every size."""
    parts = [network(random, k, 1, sizes=((n, m),)) for k, n, m in ((1, 5, 2), (3, 2, 3), (2, 3, 7))]
    return {**parts[0], "tasks": [part["tasks"][0] for part in parts]}


def repeated_batch(random: Random) -> Values:
    made = network(random, 1, 2)
    return {**made, "tasks": [(supports * 3, query) for supports, query in made["tasks"]]}


def valley(random: Random, steps: int, tasks: int, size: int = 3) -> Values:
    """Quadratics that are convex, so that many inner steps stay tame."""
    made = quadratic(random, steps, tasks, size=size)

    def convex(batch: Any) -> Any:
        A, b = batch
        return A + np.diag(draw(random, (size,), 3, 6)), b

    of_tasks = [([convex(b) for b in supports], convex(query)) for supports, query in made["tasks"]]
    return {**made, "tasks": of_tasks, "alpha": 2.0**-5}


UNEQUAL = ((3, 2, 4), 5), ((2, 4, 3), 7)
RAGGED = ((2, 2, 2), 5), ((3,), 2), ((2,), 3)
UNEVEN = ((2, 3, 2), 5), ((3,), 2), ((2,), 3)
SHORT = ((2, 2), 3), ((3, 3), 4)
LONG = ((2,) * 12, 3), ((3,), 2)
deep = partial(laid_out, widths=(2, 2, 2, 2, 2))
deep_softmax = partial(deep, layout=RAGGED, widths=(2, 2, 2, 2, 3), loss="cross_entropy", alpha=0.5)
long = partial(laid_out, layout=LONG, widths=(2, 2, 2, 1), alpha=0.125)
relu = partial(laid_out, widths=(2, 3, 3, 1), alpha=0.0625, activation="relu")
POOL = ((2,), 5), ((3,), 6)  # eleven queries
fine = partial(laid_out, layout=POOL, widths=(2, 1), alpha=0.25, unit=65536, conventions={"tasks": "mean"})
STEEP = {"reach": 64, "alpha": 2.0**-11}


class Tier(NamedTuple):
    """Cases of a kind: recipes by id, which begins with the algorithm."""

    exact: bool
    difficulty: str
    recipes: dict[str, Recipe]


def sized(prefix: str, recipe: Callable[..., Values], *sizes: tuple[int, int], **options: Any) -> dict[str, Recipe]:
    """A recipe for each (steps, tasks)."""
    return {f"{prefix}-k{k}-t{t}": partial(recipe, steps=k, tasks=t, **options) for k, t in sizes}


TIERS = {
    "canary": Tier(
        True,
        "basic",
        {
            f"{a}-canary": partial(canary, head=1 if a == "anil" else None)
            for a in ("maml", "fomaml", "anil", "reptile", "joint")
        },
    ),
    "quadratic": Tier(
        True,
        "average",
        sized("maml-quadratic", quadratic, (1, 1), (1, 3), (2, 2), (3, 3), (5, 2))
        | sized("fomaml-quadratic", quadratic, (2, 3), (3, 2))
        | sized("anil-quadratic", quadratic, (1, 2), (2, 3), (3, 2), head=1)
        | sized("reptile-quadratic", quadratic, (2, 3), (3, 2), (5, 4))
        | sized("joint-quadratic", quadratic, (1, 3)),
    ),
    "regression": Tier(
        True,
        "average",
        sized("maml-regression", regression, (1, 2), (2, 2))
        | sized("fomaml-regression", regression, (2, 2))
        | sized("anil-regression", regression, (1, 2), head=1)
        | sized("reptile-regression", regression, (2, 2))
        | sized("joint-regression", regression, (1, 2)),
    ),
    "tanh": Tier(
        False,
        "higher",
        sized("maml-tanh", network, (1, 3), (3, 3), (5, 2))
        | sized("fomaml-tanh", network, (3, 3))
        | sized("anil-tanh", network, (1, 3), (3, 3), head=2)
        | sized("reptile-tanh", network, (3, 3), (5, 4))
        | sized("joint-tanh", network, (1, 3))
        | sized("maml-tanh-one-output", network, (2, 3), widths=(2, 3, 1))
        | sized("reptile-tanh-one-output", network, (3, 3), widths=(2, 3, 1)),
    ),
    "softmax": Tier(
        False,
        "higher",
        sized("maml-softmax", softmax, (2, 3))
        | sized("fomaml-softmax", softmax, (2, 2))
        | sized("anil-softmax", softmax, (3, 2), head=2)
        | sized("reptile-softmax", softmax, (3, 2))
        | sized("joint-softmax", softmax, (1, 2)),
    ),
    "edge": Tier(
        False,
        "average",
        {
            "maml-edge-no-steps": partial(network, steps=0, tasks=2),
            "maml-edge-alpha-zero": partial(network, steps=2, tasks=2, alpha=0.0),
            "maml-edge-ragged": ragged,
            "maml-edge-repeated-batch": repeated_batch,
            "maml-edge-mean-over-tasks": partial(network, steps=2, tasks=3, conventions={"tasks": "mean"}),
            "maml-edge-sum-over-examples": partial(
                network, steps=2, tasks=2, alpha=0.03125, conventions={"examples": "sum"}
            ),
            "anil-edge-empty-head": partial(network, steps=2, tasks=2, head=0),
            "anil-edge-all-head": partial(network, steps=2, tasks=2, head=4),
            "reptile-edge-over-alpha": partial(network, steps=3, tasks=2, conventions={"reptile": "over_alpha"}),
            "reptile-edge-over-alpha-k": partial(network, steps=3, tasks=2, conventions={"reptile": "over_alpha_k"}),
        },
    ),
    "scalar": Tier(True, "average", {"maml-scalar": scalar, "reptile-scalar": scalar}),
    "deep": Tier(
        False,
        "higher",
        {
            "maml-deep-unequal-k3-t2": partial(deep, layout=UNEQUAL),
            "maml-deep-k12-t2": long,
            "maml-deep-quadratic-k12-t2": partial(valley, steps=12, tasks=2),
            "maml-deep-steep-k2-t2": partial(deep, layout=SHORT, **STEEP),
            "maml-deep-softmax-ragged": deep_softmax,
            "fomaml-deep-softmax-ragged": deep_softmax,
            "anil-deep-k12-t2": partial(long, widths=(2, 2, 2, 2), head=2),
            "reptile-deep-ragged": partial(deep, layout=RAGGED),
            "joint-deep-sum-over-examples": partial(deep, layout=SHORT, alpha=0.03125, conventions={"examples": "sum"}),
        },
    ),
    "relu": Tier(
        False,
        "higher",
        {
            "maml-relu-steep-ragged": partial(relu, layout=UNEVEN, widths=(2, 3, 3, 3, 1), **STEEP),
            "maml-relu-k12-t1": partial(long, layout=LONG[:1], activation="relu"),
            "fomaml-relu-steep-k12-t1": partial(relu, layout=LONG[:1], **STEEP),
            "anil-relu-steep-k2-t2": partial(relu, layout=SHORT, head=2, **STEEP),
            "reptile-relu-steep-k12-t1": partial(relu, layout=LONG[:1], **STEEP),
            "joint-relu-k2-t2": partial(relu, layout=SHORT, widths=(2, 3, 3, 3, 1)),
        },
    ),
    "fine": Tier(
        False,
        "average",
        {
            "maml-fine-k1-t2": partial(fine, conventions={}),
            "fomaml-fine-k1-t2": fine,
            "anil-fine-k1-t2": partial(fine, head=1),
            "reptile-fine-k1-t2": fine,
            "joint-fine-k1-t2": fine,
        },
    ),
}


def first(id: str, tier: str, recipe: Recipe) -> dict[str, Any]:
    """The first of a fixed sequence of cases that makes a vector. RuntimeError: none does."""
    for seed in range(400):
        values = {"conventions": DEFAULT, **recipe(Random(f"{id} {seed}"))}
        case = Case(id=id, algorithm=id.partition("-")[0], tier=tier, **values)
        made = vector(replace(case, flags=flags(case)), TIERS[tier].exact, TIERS[tier].difficulty)
        if made is not None:
            return made
    raise RuntimeError(f"{id}: no case found")


def flags(case: Case) -> list[str]:
    """What the case shows, in the words of NOTES."""
    if case.tier == "canary":
        return ["Basic"]
    steps, (inputs, targets) = max(len(supports) for supports, _ in case.tasks), case.tasks[0][1]
    holds = {
        "SecondOrder": case.algorithm in ("maml", "anil") and steps > 0 and case.alpha > 0,
        "NonCommuting": case.algorithm in ("maml", "anil") and steps > 1 and case.alpha > 0,
        "UnequalTasks": len(case.tasks) > 1,
        "UnequalSizes": case.model["kind"] == "mlp" and case.tier in ("tanh", "softmax", "deep", "relu", "fine"),
        "BodyAndHead": case.algorithm == "anil",
        "EdgeCase": case.tier in ("edge", "scalar"),
        "Convention": case.conventions != DEFAULT,
        "Deep": len(case.model.get("widths", [])) > 3,
        "Long": steps >= 10,
        "Steep": targets.dtype.kind == "f" and abs(targets).max() > 40,
        "UnequalSteps": any(len({len(x) for x, _ in supports}) > 1 for supports, _ in case.tasks),
        "Fine": bool(np.any(inputs != np.float16(inputs))),
        "Ragged": case.tier != "edge" and len({len(supports) for supports, _ in case.tasks}) > 1,
    }
    return [flag for flag, true in holds.items() if true]
