"""The sine experiment: its settings, the published presets, one run of one method, and the table of all."""

import argparse
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from refmeta.checks import check_alpha
from refmeta.fast import recorded, stacked
from refmeta.lab.checkpoint import Keep, resumable
from refmeta.lab.display import LABELS, Row, by_method, cell, plural, table
from refmeta.lab.optimisers import INNER, optimiser
from refmeta.lab.runs import METHOD, QUICK, Experiment, Options, Plan, Result, Run, asked, given, jobs, summary, whole
from refmeta.lab.sine.waves import LAWS, ZERO_MSE
from refmeta.lab.training import METHODS, Method, Report, evaluate, train
from refmeta.models import MLP, squared_error
from refmeta.trees import Loss, Tasks

# A task's mean squared error above this counts as diverged; a wave around 0 has at most about 12.5.
DIVERGED = 20.0


# --- Settings ---------------------------------------------------------------------------------------


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


# Their command's α; the paper's text says 0.01.
FINN2017: dict[str, Any] = {"activation": "relu", "init": "finn2017", "alpha": 0.001, "iterations": 70_000}
NICHOLS_TASKS = {"method": "reptile", "law": "nichol", "test_tasks": 300, "report_steps": (0, 1, 8, 16, 32)}
NICHOLS_NETWORK = {"widths": (1, 64, 64, 1), "init": "nichol2018"}
NICHOLS_TRAINING = {"inner_steps": 5, "alpha": 0.02, "tasks": 1, "iterations": 30_000}
NICHOL2018: dict[str, Any] = {**NICHOLS_TASKS, **NICHOLS_NETWORK, **NICHOLS_TRAINING}
PRESETS = {"finn2017": FINN2017, "nichol2018": NICHOL2018}
QUICKLY: dict[str, Any] = {"iterations": 200, "test_tasks": 100}

# What a method has of its own, over a preset, by the preset's name. One inner step of Reptile would be joint training.
REPTILE = {"reptile": {"inner_steps": 5, "alpha": 0.02, "outer": "sgd:1:linear"}}
OWN: dict[str | None, dict[str, dict[str, Any]]] = {
    None: REPTILE,
    "finn2017": REPTILE,
    # Reptile takes 5 steps of 0.02 with ε = 0.1; its control one step of 0.1 with that ε: SGD, rate 0.01.
    "nichol2018": {"reptile": {"outer": "sgd:0.1:linear"}, "joint": {"outer": "sgd:0.01:linear"}},
}

options: Options = {
    "method": {**METHOD, "help": "default: maml, or the preset's"},
    "preset": {"choices": list(PRESETS), "help": "the settings of a paper; other options override it"},
    "quick": QUICK,
    "law": {"choices": list(LAWS), "help": "how waves are drawn (default: finn)"},
    "iterations": {"type": whole(1), "metavar": "N", "help": f"outer steps (default: {Config.iterations})"},
    "shots": {"type": whole(1), "metavar": "K", "help": "points of a support batch (default: 10)"},
    "inner_steps": {"type": whole(0), "metavar": "N", "help": "in training (default: 1; reptile: 5)"},
    "alpha": {"type": float, "help": "inner rate (default: 0.01; reptile: 0.02)"},
    "inner": {"choices": list(INNER), "help": "reptile's inner optimiser (default: sgd)"},
    "outer": {
        "metavar": "NAME:RATE",
        "help": "adam:RATE or sgd:RATE, with :linear behind to anneal the rate to 0 (default: adam:0.001; reptile: "
        "sgd:1:linear, its ε); the joint run beside a method keeps its own",
    },
    "tasks": {"type": whole(1), "metavar": "N", "help": "tasks in an outer step (default: 25)"},
}


def configure(method: str | None, preset: str | None, quick: bool, explicit: dict[str, Any]) -> Config:
    """The settings of one method: the defaults, the preset's, the method's, --quick's, then the caller's.

    ValueError: a setting that is impossible, or does not fit the method.
    """
    published = PRESETS[preset] if preset else {}
    method = method or published.get("method", "maml")
    own = OWN[preset].get(method, {})
    config = Config(**{**published, **own, **(QUICKLY if quick else {}), **explicit, "method": method})
    check_alpha(config.alpha)
    optimiser(config.outer, config.iterations)
    displaces = METHODS[method].displacement
    if displaces and not config.inner_steps:
        raise ValueError(f"inner-steps 0: {method} needs at least one inner step")
    if config.inner != Config.inner and not displaces:
        raise ValueError(f"inner {config.inner}: only reptile takes another inner optimiser than sgd, not {method}")
    return config


def beside(config: Config, preset: str | None) -> Config:
    """Joint training with the same budget, to stand beside a method."""
    own = {"outer": Config.outer, **OWN[preset].get("joint", {})}
    return replace(config, method="joint", inner=Config.inner, **own)


# --- One run ----------------------------------------------------------------------------------------


def network(config: Config) -> tuple[MLP, Loss]:
    net = MLP(config.widths, activation=config.activation)
    return net, squared_error(net)


def method_of(config: Config) -> Method:
    method = METHODS[config.method]
    return method if config.inner == Config.inner else method.by(INNER[config.inner])


def run(config: Config, seed: int, report: Report, keep: Keep | None = None) -> Run:
    """Meta-train one method, from its checkpoint if there is one, and evaluate it on tasks it has not seen.

    Diverged: see `train`. ValueError: see `checkpoint.load`.
    """
    began = perf_counter()
    (net, loss), method, law = network(config), method_of(config), LAWS[config.law]
    start, outer = (
        net.init(np.random.default_rng([seed, 2**32]), config.init),
        optimiser(config.outer, config.iterations),
    )

    def sample(rng: np.random.Generator) -> Tasks:
        return [law.train(rng, law.wave(rng), config.shots, config.inner_steps) for _ in range(config.tasks)]

    algorithm, adapt = recorded(stacked(method.algorithm)), recorded(method.trajectory)
    kept = resumable(keep, {"experiment": "sine", "seed": seed, **asdict(config)}, start, outer)
    trained = train(algorithm, loss, start, sample, config.alpha, config.iterations, outer, seed, report, adapt, kept)
    theta, history = trained
    tasks = unseen(config, seed)
    rows = evaluate(loss, theta, tasks, config.alpha, trajectory=method.trajectory, limit=DIVERGED)
    curve = [{("mse" if key == "mean" else key): value for key, value in row.items()} for row in rows]
    return Run(config, seed, theta, history, curve, perf_counter() - began, "sine")


def unseen(config: Config, seed: int) -> Tasks:
    """The test tasks: the same for every method of a seed."""
    law, steps = LAWS[config.law], max(config.report_steps)
    streams = (np.random.default_rng([seed, 2**33, i]) for i in range(config.test_tasks))
    return [law.test(rng, law.wave(rng), config.shots, steps) for rng in streams]


# --- The command ------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> Plan:
    """The runs of a command: every method asked for, and joint training beside it."""
    configs = [configure(name, args.preset, args.quick, given(args, Config)) for name in asked(args)]
    if all(config.method != "joint" for config in configs):
        configs.append(beside(configs[0], args.preset))
    main = "all" if args.method == "all" else configs[0].method
    folder, todo = jobs("sine", main, args, configs, lambda config: network(config)[0].names, run)
    return Plan(folder, todo, partial(summary, "sine", main, "mse"), draw)


def text(result: Result) -> str:
    """The table of the mean squared errors, beside the two errors that are known exactly."""
    configs, many = list(result["config"].values()), len(result["seeds"])
    columns, (formula, best) = configs[0]["report_steps"], LAWS[configs[0]["law"]].agnostic
    over = f"mean over {many} seeds" if many > 1 else "mean"
    lines, notes = [["", *(plural(k, "step") for k in columns)]], []
    for method, curve in by_method(result["curve"]).items():
        rows = [curve[k] for k in columns]
        means = [cell(row["mse"], row["ci95"]) if row["mse"] < inf else "all diverged" for row in rows]
        lines.append([LABELS.get(method, method), *means])
        notes += _diverged(method, rows)
    exact = [("best without the task", best, formula), ("always 0", ZERO_MSE, "")]
    return "\n".join(
        [
            f"\nmean squared error on {configs[0]['test_tasks']} unseen tasks ({over} ± 95 % interval), after",
            table(lines, 26, 16),
            *(f"{label:>26}{value:>11.6f}  (exact)  {note}" for label, value, note in exact),
            *notes,
        ]
    )


def _diverged(method: str, rows: list[Row]) -> list[str]:
    lost = [f"{row['diverged']} after {row['steps']}" for row in rows if row["diverged"]]
    medians = ", ".join(f"{row['median']:.4g}" for row in rows)
    note = f"{method}: tasks that diverged (error above {DIVERGED:g}), left out of the mean: {', '.join(lost)} steps; "
    return [f"{note}medians over all tasks: {medians}"] if lost else []


def draw(folder: Path, result: Result, runs: list[Run]) -> None:
    from refmeta.lab.sine import figures

    figures.draw(folder, result, runs)


SINE = Experiment(
    "sine",
    "meta-train on sine waves and show what was learned",
    "Meta-train a small network on sine waves, beside joint training with the same budget, and show how both adapt to "
    "waves they have not seen.",
    options,
    plan,
    text,
    ("adaptation.png", "curves.png"),
    "runs/sine-METHOD-SEED",
)
