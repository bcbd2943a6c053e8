"""Meta-train a small network on sine waves. Also train a second one jointly, for as many iterations, by its
own outer optimiser. Then show how both adapt to waves that they have not seen.
"""

import argparse
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refmeta.fast import recorded
from refmeta.lab import runs
from refmeta.lab.display import Curve, by_method, by_steps, over, plural
from refmeta.lab.runs import Keep, Plan, Result, Run, option, whole
from refmeta.lab.sine.waves import LAWS, ZERO_MSE, Rng, Task, Wave
from refmeta.lab.training import INNER, METHODS, Report, evaluate, method_of
from refmeta.models import MLP, squared_error
from refmeta.trees import Loss, Tasks, Theta

# A task's mean squared error above this counts as diverged; a wave around 0 has at most about 12.5.
DIVERGED = 20.0


# --- Settings ---------------------------------------------------------------------------------------


OUTER = "outer optimiser, adam:RATE or sgd:RATE; with :linear the rate falls to 0 (default: {}; reptile: sgd:1:linear)"
LAW = "distribution of the waves; oracle: as finn, but the network is told amplitude and phase (default: {})"


@dataclass(frozen=True)
class Config:
    """Everything that determines a run, except its seed."""

    method: str = option("maml", "the algorithm, or all (default: {}, or the preset's)", choices=[*METHODS, "all"])
    law: str = option("finn", LAW, choices=list(LAWS))
    widths: tuple[int, ...] = (1, 40, 40, 1)
    activation: str = "tanh"
    init: str = "glorot"
    shots: int = option(10, "points in a support batch (default: {})", type=whole(1), metavar="N")
    inner_steps: int = option(1, "inner steps in training (default: {}; reptile: 5)", type=whole(0), metavar="N")
    alpha: float = option(0.01, "inner rate α (default: {}; reptile: 0.02)", type=float)
    inner: str = option("sgd", runs.INNER_HELP, choices=list(INNER))
    outer: str = option("adam:0.001", OUTER, metavar="NAME:RATE")
    tasks: int = option(25, "tasks in an outer step (default: {})", type=whole(1), metavar="N")
    iterations: int = option(5000, "iterations, an outer step each (default: {})", type=whole(1), metavar="N")
    test_shots: int | None = option(None, "points in a support batch at test" + runs.SAME, type=whole(1), metavar="N")
    test_alpha: float | None = option(None, "inner rate α at test" + runs.SAME, type=float, metavar="ALPHA")
    test_steps: tuple[int, ...] = option((0, 1, 5, 10), runs.STEPS_HELP, type=runs.steps, metavar="N,N,…")
    test_queries: int = option(100, "query points of a test task (default: {})", type=whole(1), metavar="N")
    test_tasks: int = option(1000, "test tasks, unseen in training (default: {})", type=whole(1), metavar="N")


NICHOLS_TASKS = {"method": "reptile", "law": "nichol", "test_tasks": 300, "test_steps": (0, 1, 8, 16, 32)}
NICHOLS_NETWORK = {"widths": (1, 64, 64, 1), "init": "nichol2018"}
NICHOLS_TRAINING = {"inner_steps": 5, "alpha": 0.02, "tasks": 1, "iterations": 30_000}
PRESETS: dict[str, dict[str, Any]] = {
    # Their command's α; the paper's text says 0.01.
    "finn2017": {"activation": "relu", "init": "finn2017", "alpha": 0.001, "iterations": 70_000},
    "nichol2018": {**NICHOLS_TASKS, **NICHOLS_NETWORK, **NICHOLS_TRAINING},
}
QUICKLY: dict[str, Any] = {"iterations": 200, "test_tasks": 100}

# A method's own settings: one inner step of Reptile would be joint training.
USUAL: dict[str, dict[str, Any]] = {"reptile": {"inner_steps": 5, "alpha": 0.02, "outer": "sgd:1:linear"}}
# Reptile takes 5 steps of 0.02 with ε = 0.1; its control one step of 0.1 with that ε: SGD, rate 0.01.
NICHOLS = {"reptile": {"outer": "sgd:0.1:linear"}, "joint": {"outer": "sgd:0.01:linear"}}
OWN: dict[str | None, dict[str, dict[str, Any]]] = {"nichol2018": NICHOLS}  # by preset; of all others USUAL

ANIMATION = "adaptation.gif"
options: runs.Options = {
    "preset": {"choices": list(PRESETS), "help": "a paper's settings; other options override them"},
    "quick": runs.QUICK,
    "animate": {"action": "store_true", "help": f"leave {ANIMATION} too: the first unseen task, step by step"},
    **runs.options_of(Config),
}


def configure(method: str | None, quick: bool, explicit: dict[str, Any], preset: str | None = None) -> Config:
    """The settings of one method: the defaults, the preset's, the method's, --quick's, then the caller's.

    ValueError: a setting that is impossible, or does not fit the method.
    """
    published = PRESETS[preset] if preset else {}
    method = method or published.get("method", "maml")
    own = OWN.get(preset, USUAL).get(method, {})
    config = Config(**{**published, **own, **(QUICKLY if quick else {}), **explicit, "method": method})
    runs.check_config(config)
    if config.law == "nichol" and "test_queries" in explicit:
        raise ValueError("test-queries: the law nichol tests on all 50 points of its grid")
    return config


def beside(config: Config, preset: str | None) -> Config:
    """Joint training for as many iterations, to stand beside a method."""
    own = {"outer": Config.outer, **OWN.get(preset, USUAL).get("joint", {})}
    return replace(config, method="joint", inner=Config.inner, **own)


# --- One run ----------------------------------------------------------------------------------------


def network(config: Config) -> tuple[MLP, Loss]:
    _, *widths = config.widths
    inputs = LAWS[config.law].sight(0, 0, np.zeros((1, 1))).shape[-1]
    net = MLP((inputs, *widths), activation=config.activation)
    return net, squared_error(net)


def run(config: Config, seed: int, report: Report, keep: Keep | None = None) -> Run:
    """Meta-train one method, from its checkpoint if there is one, and evaluate it on tasks it has not seen.

    Diverged: see `train`. ValueError: see `checkpoint.load`.
    """
    (net, loss), law = network(config), LAWS[config.law]
    start = net.init(np.random.default_rng([seed, 2**32]), config.init)

    def sample(rng: Rng) -> Tasks:
        return law.train(rng, config.tasks, config.shots, config.inner_steps)

    training = runs.Training(loss, start, sample, lambda theta: tested(config, theta, seed))
    return runs.trained("sine", config, seed, training, report, keep)


def tested(config: Config, theta: Theta, seed: int) -> Curve:
    """The errors on unseen tasks, after 0, 1, … steps."""
    tasks, (_, loss), trajectory = unseen(config, seed), network(config), method_of(config).trajectory
    rows = evaluate(loss, theta, tasks, runs.test_alpha(config), recorded(loss), trajectory, DIVERGED)
    return [{("mse" if key == "mean" else key): value for key, value in row.items()} for row in rows]


def unseen(config: Config, seed: int) -> Tasks:
    """The test tasks: the same for every method of a seed."""
    law, streams = LAWS[config.law], (np.random.default_rng([seed, 2**33, i]) for i in range(config.test_tasks))
    return [test_task(config, law.wave(rng), rng) for rng in streams]


def test_task(config: Config, wave: Wave, rng: Rng) -> Task:
    """A task of this wave."""
    sizes = config.test_shots or config.shots, max(config.test_steps), config.test_queries
    return LAWS[config.law].test(rng, wave, *sizes)


# --- The command ------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> Plan:
    """The runs of a command: every method asked for, and joint training beside it."""
    configs = [configure(name, args.quick, runs.given(args, Config), args.preset) for name in runs.asked(args)]
    if all(config.method != "joint" for config in configs):
        configs.append(beside(configs[0], args.preset))
    compared = runs.compared("sine", "mse", args, configs, network, run)
    return compared._replace(draw=runs.drawing("sine", True), more=[ANIMATION]) if args.animate else compared


def text(result: Result) -> str:
    """The table of the mean squared errors, beside the two errors that are known exactly."""
    config = next(iter(result["config"].values()))
    steps, (formula, best) = config["test_steps"], LAWS[config["law"]].agnostic
    curves = {method: [curve[k] for k in steps] for method, curve in by_method(result["curve"]).items()}
    known = ("best without the task", best, formula), ("always 0", ZERO_MSE, "")
    points = f" of {plural(config['test_shots'], 'point')}" * bool(config["test_shots"])
    title = f"\nmean squared error on {config['test_tasks']} unseen tasks{points} ({over(result)}), after"
    exact = [f"{label:>26}{value:>11.6f}  (exact)  {note}" for label, value, note in known]
    lost = [_diverged(method, rows) for method, rows in curves.items() if any(row["diverged"] for row in rows)]
    return "\n".join([title, by_steps(curves, steps, 16, "mse"), *exact, *lost])


def _diverged(method: str, rows: Curve) -> str:
    lost = ", ".join(f"{row['diverged']} after {row['steps']}" for row in rows if row["diverged"])
    medians = ", ".join(f"{row['median']:.4g}" for row in rows)
    note = f"{method}: tasks that diverged (error above {DIVERGED:g}), left out of the mean: {lost} steps"
    return f"{note}; medians over all tasks: {medians}"


HELP = "meta-train on sine waves, and adapt to unseen ones"
FIGURES, FOLDER = ["adaptation.png", "curves.png"], "runs/sine-METHOD-SEED"
SINE = runs.Experiment("sine", HELP, str(__doc__), options, plan, text, FIGURES, FOLDER)
