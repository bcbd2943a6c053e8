"""The sine experiment: its settings, the published presets, and one run of one method."""

from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from refmeta import algorithms
from refmeta.checks import check_alpha
from refmeta.fast import recorded, stacked
from refmeta.lab.checkpoint import Keep, surviving
from refmeta.lab.optimisers import Step, adam, linear, sgd
from refmeta.lab.sine import LAWS
from refmeta.lab.training import Algorithm, Trajectory, evaluate, reptile_by, train, trajectory_by, trajectory_of_head
from refmeta.models import MLP, squared_error
from refmeta.trees import Loss, Tasks, Theta

METHODS: dict[str, Algorithm] = {
    name: getattr(algorithms, name) for name in ("maml", "fomaml", "anil", "reptile", "joint")
}
INNER = {"sgd": sgd, "adam": adam}
# A task's mean squared error above this counts as diverged; a wave around 0 has at most about 12.5.
DIVERGED = 20.0


@dataclass(frozen=True)
class Config:
    """Everything that determines a run, but for its seed."""

    method: str = "maml"
    law: str = "finn"
    widths: tuple[int, ...] = (1, 40, 40, 1)
    activation: str = "tanh"
    init: str = "glorot"
    shots: int = 10
    inner_steps: int = 1
    alpha: float = 0.01
    inner: str = "sgd"
    outer: str = "adam:0.001"
    tasks: int = 25
    iterations: int = 5000
    test_tasks: int = 1000
    report_steps: tuple[int, ...] = (0, 1, 5, 10)


FINN2017: dict[str, Any] = {
    "activation": "relu",
    "init": "finn2017",
    "alpha": 0.001,  # what the authors' command uses; the paper's text says 0.01
    "iterations": 70_000,
}
NICHOL2018: dict[str, Any] = {
    "method": "reptile",
    "law": "nichol",
    "widths": (1, 64, 64, 1),
    "init": "nichol2018",
    "inner_steps": 5,
    "alpha": 0.02,
    "tasks": 1,
    "iterations": 30_000,
    "test_tasks": 300,
    "report_steps": (0, 1, 8, 16, 32),
}
PRESETS = {"finn2017": FINN2017, "nichol2018": NICHOL2018}
QUICK: dict[str, Any] = {"iterations": 200, "test_tasks": 100}

# One inner step of Reptile would be joint training, so Reptile has defaults of its own.
REPTILE: dict[str, Any] = {"inner_steps": 5, "alpha": 0.02, "outer": "sgd:1:linear"}
# Reptile takes 5 steps of 0.02 with ε = 0.1; its control one step of 0.1 with that ε: SGD, rate 0.01.
NICHOL2018_OUTER = {"reptile": "sgd:0.1:linear", "joint": "sgd:0.01:linear"}


def configure(method: str | None, preset: str | None, quick: bool, explicit: dict[str, Any]) -> Config:
    """The settings of one method: the defaults, the preset's, the method's, --quick's, then the caller's.

    ValueError: a setting that is impossible, or does not fit the method.
    """
    given = PRESETS[preset] if preset else {}
    method = method or given.get("method", "maml")
    settings = {
        **given,
        **(REPTILE if method == "reptile" and preset != "nichol2018" else {}),
        **({"outer": NICHOL2018_OUTER[method]} if preset == "nichol2018" and method in NICHOL2018_OUTER else {}),
        **(QUICK if quick else {}),
        **explicit,
        "method": method,
    }
    config = Config(**settings)
    check_alpha(config.alpha)
    optimiser(config.outer, config.iterations)
    if method == "reptile" and not config.inner_steps:
        raise ValueError("inner-steps 0: reptile needs at least one inner step")
    if config.inner != "sgd" and method != "reptile":
        raise ValueError(f"inner {config.inner}: only reptile takes another inner optimiser than sgd, not {method}")
    return config


def beside(config: Config, preset: str | None) -> Config:
    """Joint training with the same budget, to stand beside a method."""
    outer = NICHOL2018_OUTER["joint"] if preset == "nichol2018" else Config.outer
    return replace(config, method="joint", outer=outer, inner="sgd")


def optimiser(text: str, iterations: int) -> Step:
    """adam:RATE, sgd:RATE, or either with :linear, the rate then falling to 0 over the iterations.

    ValueError: anything else.
    """
    name, _, rest = text.partition(":")
    rate, _, schedule = rest.partition(":")
    try:
        number = check_alpha(float(rate))
        if name not in INNER or schedule not in ("", "linear") or not number:
            raise ValueError
    except ValueError:
        raise ValueError(f"outer {text!r}: expected adam:RATE, sgd:RATE, or either with :linear behind") from None
    return INNER[name](linear(number, iterations) if schedule else number)


class Run(NamedTuple):
    """One trained θ and what became of it, of waves or of images."""

    config: Any  # this module's Config, or fewshot's
    seed: int
    theta: Theta
    history: list[tuple[int, float]]
    curve: list[dict[str, Any]]
    seconds: float
    experiment: str = "sine"

    def result(self) -> dict[str, Any]:
        """The run as result.json has it."""
        return {
            "experiment": self.experiment,
            "method": self.config.method,
            "seed": self.seed,
            "config": asdict(self.config),
            "curve": self.curve,
            "history": [{"iteration": i, "loss": value} for i, value in self.history],
            "seconds": self.seconds,
        }


def network(config: Config) -> tuple[MLP, Loss]:
    net = MLP(config.widths, activation=config.activation)
    return net, squared_error(net)


def run(config: Config, seed: int, report: Any, keep: Keep | None = None) -> Run:
    """Meta-train one method, from its checkpoint if there is one, and evaluate it on tasks it has not seen.

    Diverged: see `train`. ValueError: see `checkpoint.load`.
    """
    began = perf_counter()
    net, loss = network(config)
    start = net.init(np.random.default_rng([seed, 2**32]), config.init)
    outer = optimiser(config.outer, config.iterations)
    law = LAWS[config.law]

    def sample(rng: np.random.Generator) -> Tasks:
        return [law.train(rng, law.wave(rng), config.shots, config.inner_steps) for _ in range(config.tasks)]

    algorithm = METHODS[config.method]
    if config.inner != "sgd":
        algorithm = reptile_by(INNER[config.inner])
    theta, history = train(
        recorded(stacked(algorithm)),
        loss,
        start,
        sample,
        config.alpha,
        config.iterations,
        outer,
        seed,
        report,
        recorded(inner_loop(config)),
        **surviving(keep, {"experiment": "sine", "seed": seed, **asdict(config)}, start, outer),
    )
    rows = evaluate(
        loss,
        theta,
        unseen(config, seed),
        config.alpha,
        trajectory=inner_loop(config),
        limit=DIVERGED,
    )
    curve = [{("mse" if key == "mean" else key): value for key, value in row.items()} for row in rows]
    return Run(config, seed, theta, history, curve, perf_counter() - began)


def inner_loop(config: Config) -> Trajectory:
    """How a method adapts, in training and in testing: ANIL moves the head alone, Reptile by any optimiser."""
    if config.inner != "sgd":
        return trajectory_by(INNER[config.inner])
    return trajectory_of_head(2) if config.method == "anil" else algorithms.trajectory


def unseen(config: Config, seed: int) -> Tasks:
    """The test tasks: the same for every method of a seed."""
    law, steps = LAWS[config.law], max(config.report_steps)
    streams = (np.random.default_rng([seed, 2**33, i]) for i in range(config.test_tasks))
    return [law.test(rng, law.wave(rng), config.shots, steps) for rng in streams]
