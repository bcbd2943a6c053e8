"""What the commands of the lab share: options, folder, lock, checkpoints, progress, results, figures, exit codes.

An experiment is data. Its author writes, in refmeta/lab/NAME/,

    its mathematics     functions of arrays, that know no command and no figure
    experiment.py       Config    a frozen dataclass: everything that determines a run, but for its seed; a field made
                                  by `option` is an option of the command too
                        options   {name of the option: keywords of argparse's add_argument}, in the order of --help
                        run       run(config, seed, report, keep) -> Run: train, from the checkpoint if there is one,
                                  and test; report(iteration, loss) and keep go to `trained`
                        plan      plan(args) -> Plan: the runs that these options ask for (ValueError: impossible ones)
                        text      text(result) -> str: the tables, from the same dict as in result.json
                        NAME      Experiment("name", help, description, options, plan, text, figures)
    figures.py          draw      draw(folder, result, runs) -> None: the figures, with matplotlib, see `drawing`;
                                  saved by `files.save_figure`

and `add(commands, NAME)` makes it `refmeta name`, with --out, --resume, --checkpoint-every, and --seed | --seeds unless
it has an option of that name. The command does every run of the Plan and saves theta.npz and result.json in its place;
then it saves the Plan's summary of all runs, prints it as text and draws the figures, with the runs of the first seed.
`compared` is the plan of an experiment that compares methods; see refmeta/lab/sine for one in full.
"""

import importlib.util
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, field, fields
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from refmeta.checks import check_alpha
from refmeta.fast import recorded, stacked
from refmeta.lab import training
from refmeta.lab.checkpoint import resumable
from refmeta.lab.display import Curve, bar
from refmeta.lab.files import CHECKPOINT, locked, new_folder, of_runs, replace, save_result, save_theta, writable
from refmeta.lab.training import METHODS, NEVER, Diverged, History, Report, Stopped, method_of, optimiser, over_seeds
from refmeta.trees import Loss, Tasks, Theta

Options = dict[str, dict[str, Any]]  # the name of an option, and its keywords of argparse's add_argument
Result = dict[str, Any]  # as result.json has it
Keep = Callable[[Result, Theta, training.Step], training.Checkpoint]  # of a run's settings, first θ and outer optimiser


class Run(NamedTuple):
    """One trained θ, and its curve on unseen tasks."""

    config: Any  # a Config
    seed: int
    theta: Theta
    history: History
    curve: Curve
    seconds: float
    experiment: str

    def result(self) -> Result:
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


class Plan(NamedTuple):
    """What a command is going to do: train every config with every seed."""

    folder: str  # the default of --out
    configs: dict[str, Any]  # by name: for people, the method
    seeds: list[int]
    network: Callable[[Any], Any]  # (config) -> the net, whose arrays have names, and the loss
    run: Callable[..., Run]  # (name, config, seed, report, keep)
    summary: Callable[[dict[str, list[Run]]], Result]  # of the runs of each name, a run for each seed
    draw: Callable[..., Any] | None  # (folder, result, the runs of the first seed); see `drawing`
    record: Callable[[Run], Result | None] = Run.result  # the result.json of a run's place; None: it has none
    more: Sequence[str] = ()  # what it draws beside the experiment's figures
    main: str = ""  # the name whose run, if it has one seed, gets the command's folder itself

    def place(self, name: str, seed: int) -> str:
        """A run's folder within the command's."""
        return "" if name == self.main and len(self.seeds) == 1 else place(name, seed)


def place(name: str, seed: int) -> str:
    return f"{name.replace(' ', '-')}-{seed}"


class Experiment(NamedTuple):
    """A command that trains."""

    name: str
    help: str
    description: str
    options: Options
    plan: Callable[[Namespace], Plan]
    text: Callable[[Result], str]
    figures: Sequence[str]  # the names of the files that Plan.draw makes
    default: str  # of --out, for people
    files: str = "results"  # the other files, for people
    report: str | None = None  # the name of a file that keeps the text


def add(commands: Any, experiment: Experiment) -> None:
    """Add an experiment's command to argparse's subparsers."""
    run = partial(command, experiment)
    parser = add_command(commands, experiment.name, experiment.help, experiment.description, experiment.options, run)
    helps = {"out": f"a new folder (default: {experiment.default})", "resume": RESUME}
    places = {name: {"metavar": "DIR", "help": help} for name, help in helps.items()}
    for group in [SEEDS] * ("seeds" not in experiment.options) + [places]:
        declare(parser.add_mutually_exclusive_group(), group)
    declare(parser, {"checkpoint_every": EVERY})


def add_command(
    commands: Any, name: str, help: str, description: str, options: Options, run: Callable[[Namespace], int]
) -> ArgumentParser:
    """Add a command, its options, and the function that runs it."""
    parser: ArgumentParser = commands.add_parser(name.split()[-1], help=help, description=description)
    parser.set_defaults(run=run, command=name, parser=parser)
    declare(parser, options)
    return parser


def declare(parser: Any, options: Options) -> None:
    """Add the options to a parser, or to a group of one."""
    for name, keywords in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)


# --- The command of an experiment -------------------------------------------------------------------


def command(experiment: Experiment, args: Namespace) -> int:
    """Train; save, print and draw the results. Returns the exit code: 1 where every test diverged. Errors: Stopped."""
    start, plan = perf_counter(), experiment.plan(args)
    every = args.checkpoint_every or RESUMED * bool(args.resume)
    trained: dict[str, list[Run]] = {name: [] for name in plan.configs}
    places = {(name, seed): plan.place(name, seed) for seed in plan.seeds for name in plan.configs}
    with output_folder(args, plan.folder, places.values()) as folder:
        for (name, seed), place in places.items():
            trained[name].append(_trained(plan, name, seed, folder / place, every))
        seconds = {"seconds": perf_counter() - start}
        result = {"experiment": experiment.name.split()[0], **plan.summary(trained), **seconds}
        if all(places.values()):  # else the folder is that of one run, and has its result
            save_result(folder / "result.json", result)
        said = experiment.text(result) + too_short(args)
        print(said)
        if experiment.report:
            replace(folder / experiment.report, lambda file: file.write(f"{said.strip()}\n".encode()))
        first = [runs[0] for runs in trained.values()]
        show(folder, experiment.files, [*experiment.figures, *plan.more], plan.draw, folder, result, first)
    done = chain(*trained.values())
    lost = [row["diverged"] == run.config.test_tasks for run in done for row in run.curve if row["steps"]]
    return failed(experiment.name, lost)


def _trained(plan: Plan, name: str, seed: int, place: Path, every: int) -> Run:
    """One run, with its files in their place. Stopped: early; the last θ is there, as the message says."""
    config = plan.configs[name]
    names, keep = plan.network(config)[0].names, partial(resumable, place / CHECKPOINT, every)
    try:
        with bar(config.iterations, f"{name}, seed {seed}") as move:
            how = seed, lambda i, loss: move(i + 1, f"loss {loss:.3f}"), keep if every else None
            run = plan.run(name, config, *how)
    except Stopped as error:
        save_run(place, names, error.theta, None)
        which = f", seed {seed}" * (len(plan.seeds) > 1)
        last = "the last good θ" if isinstance(error, Diverged) else "θ"
        error.args = (f"{name}{which}: {error}; {last} is in {place}/theta.npz",)
        raise
    save_run(place, names, run.theta, plan.record(run))
    return run


def failed(what: str, diverged: list[bool]) -> int:
    """The exit code: 1, and a sentence, where every test task diverged, after every number of inner steps above 0."""
    if code := int(bool(diverged) and all(diverged)):
        print(f"refmeta {what}: every test task diverged: try a smaller rate or alpha", file=sys.stderr)
    return code


def save_run(place: Path, names: list[str], theta: Theta, record: Result | None) -> None:
    place.mkdir(exist_ok=True)
    save_theta(place / "theta.npz", names, theta)
    if record is not None:
        save_result(place / "result.json", record)


def show(folder: Path, files: str, figures: Sequence[str], draw: Callable[..., Any] | None, *made: Any) -> None:
    """Draw the figures, or say what to install for them; then say what is in the folder."""
    if draw is None:
        more = f"; for the figure{'s' * (len(figures) > 1)} too: pip install '.[lab]' in the clone"
    else:
        draw(*made)
        more = "".join(f", {name}" for name in figures)
    print(f"\n{folder}: {files}{more}")


def too_short(args: Namespace) -> str:
    """The remark of --quick on its tables."""
    said = "--quick: it works. These trainings are too short to learn, so their numbers say nothing about the methods."
    return f"\n\n{said}" if args.quick else ""


# --- An experiment that compares methods ------------------------------------------------------------


def option(value: Any, help: str, **keywords: Any) -> Any:
    """A field of Config that is an option too; `help` has {} where it says the default."""
    return field(default=value, metadata={"help": help.format(value), **keywords})


def options_of(config: Any) -> Options:
    """The options among the fields of Config; one that was not given is None."""
    return {field.name: dict(field.metadata) for field in fields(config) if field.metadata}


def given(args: Namespace, config: Any) -> dict[str, Any]:
    """The options that were given and are fields of Config."""
    values = {field.name: getattr(args, field.name, None) for field in fields(config)}
    return {name: value for name, value in values.items() if value is not None}


def asked(args: Namespace) -> list[Any]:
    """The names of --method; None where it was not given."""
    return list(METHODS) if args.method == "all" else [args.method]


def check_config(config: Any) -> None:
    """ValueError: a setting that is impossible, or does not fit the method."""
    check_alpha(config.alpha)
    optimiser(config.outer, config.iterations)
    check_alpha(test_alpha(config))
    if METHODS[config.method].displacement and not config.inner_steps:
        raise ValueError(f"inner-steps 0: {config.method} needs at least one inner step")
    if config.inner != "sgd" and not METHODS[config.method].displacement:
        raise ValueError(f"inner {config.inner}: only reptile takes another inner optimiser than sgd")


def test_alpha(config: Any) -> float:
    """The inner rate at test."""
    return float(config.alpha if config.test_alpha is None else config.test_alpha)


class Training(NamedTuple):
    """The loss, the first θ, how to draw the tasks of an iteration, and how to test the last θ."""

    loss: Loss
    start: Theta
    sample: Callable[[np.random.Generator], Tasks]
    test: Callable[[Theta], Curve]


def trained(name: str, config: Any, seed: int, what: Training, report: Report, keep: Keep | None, **more: Any) -> Run:
    """Meta-train θ as the config says, from its checkpoint if there is one, and test it.

    more: further settings that determine the training, for the checkpoint. Errors: see `train` and `load`.
    """
    began, outer, method = perf_counter(), optimiser(config.outer, config.iterations), method_of(config)
    kept = keep({"experiment": name, "seed": seed, **asdict(config), **more}, what.start, outer) if keep else NEVER
    how = config.alpha, config.iterations, outer, seed, report, recorded(method.trajectory), kept
    theta, history = training.train(recorded(stacked(method.algorithm)), what.loss, what.start, what.sample, *how)
    return Run(config, seed, theta, history, what.test(theta), perf_counter() - began, name)


def compared(experiment: str, score: str, args: Namespace, configs: list[Any], network: Any, run: Any) -> Plan:
    """Every config with every seed, by run(config, seed, report, keep); the first is the method that was asked for."""
    seeds = [args.seed] if args.seeds is None else seed_range(args.seeds)
    main = "all" if args.method == "all" else configs[0].method
    by_name = {config.method: config for config in configs}

    def summary(trained: dict[str, list[Run]]) -> Result:
        curves = {method: over_seeds([run.curve for run in runs], score) for method, runs in trained.items()}
        return {
            "method": main,
            "seeds": seeds,
            "config": {name: asdict(config) for name, config in by_name.items()},
            "curve": [{"method": method, **row} for method, curve in curves.items() for row in curve],
        }

    folder = f"runs/{experiment}-{main}-{args.seeds or args.seed}"
    how = network, lambda name, *given: run(*given), summary, drawing(experiment)
    return Plan(folder, by_name, seeds, *how, main=main)


def drawing(experiment: str, *more: Any) -> Callable[..., Any] | None:
    """The `draw` of refmeta.lab.EXPERIMENT.figures; None where there is no matplotlib.

    It is imported here, before any training. ValueError: matplotlib refuses its own settings.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    try:
        draw = import_module(f"refmeta.lab.{experiment}.figures").draw
    except ValueError as error:
        raise ValueError(f"matplotlib (MPLBACKEND, matplotlibrc): {error}") from error
    return lambda *made: draw(*made, *more)


# --- The folder -------------------------------------------------------------------------------------

RESUMED = 100  # iterations: a checkpoint takes about as long as one


@contextmanager
def output_folder(args: Namespace, default: str, places: Collection[str]) -> Iterator[Path]:
    """The folder to write into, of --resume or --out, or a new one, locked; `places`: its runs' subfolders.

    ValueError: see `new_folder` and `locked`; for --resume, no checkpoint, or one of a run in another place.
    """
    folder = _resumed(args.resume, places) if args.resume else new_folder(args.out, default)
    with locked(folder):
        try:
            yield folder
        except KeyboardInterrupt as error:
            more = f"; to go on, the same command with --resume {folder}" if of_runs(folder, CHECKPOINT) else ""
            raise KeyboardInterrupt(f"{str(error) or 'interrupted'}{more}") from error


def _resumed(wanted: str, places: Collection[str]) -> Path:
    folder = Path(wanted)
    try:
        found = of_runs(folder, CHECKPOINT)
    except OSError as error:
        raise ValueError(f"--resume {wanted:.99}: cannot be read: {error.strerror}") from error
    if not found:
        raise ValueError(f"--resume {folder}: there is no checkpoint; expected the folder of a run that saved one")
    for other in sorted(found - {folder / place / CHECKPOINT for place in places}):
        raise ValueError(f"--resume {folder}: {other} is of another run; repeat the options that it had")
    return writable(folder)


# --- Options ----------------------------------------------------------------------------------------

DIGITS = 18  # of a number that fits an index
MOST_SEEDS = 10_000


def whole(lowest: int) -> Callable[[str], int]:
    """A whole number of at least `lowest`, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > DIGITS or int(text) < lowest:
            needed = f"at least {lowest}" if len(text) <= DIGITS else f"at most {DIGITS} digits"
            raise ArgumentTypeError(f"expected a whole number of {needed}, got {text!r:.40}")
        return int(text)

    return parse


def steps(text: str) -> tuple[int, ...]:
    """Numbers of inner steps, as 0,1,5, each once and in order, not 0 alone, for argparse."""
    numbers = sorted({whole(0)(part) for part in text.split(",")})
    return (*numbers[:-1], whole(1)(str(numbers[-1])))


def seed_range(text: str) -> list[int]:
    """The seeds of "A-B" or "A". ValueError: anything else, or too many."""
    found = re.fullmatch(rf"(\d{{1,{DIGITS}}})(?:-(\d{{1,{DIGITS}}}))?", text)
    seeds = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
    if not 0 < len(seeds) <= MOST_SEEDS:
        most = f"of at most {MOST_SEEDS} seeds of at most {DIGITS} digits"
        raise ValueError(f"--seeds {text:.40}: expected a range as 0-4, {most}")
    return list(seeds)


INNER_HELP = "Reptile's inner optimiser; adam has β₁ = 0 and starts afresh for every task (default: {})"
STEPS_HELP = "test after these numbers of inner steps (default: 0,1,5,10)"
QUICK = {"action": "store_true", "help": "show in seconds that it works; too short to compare anything"}
SEEDS: Options = {
    "seed": {"type": whole(0), "default": 0, "metavar": "N", "help": "seed of all random numbers (default: 0)"},
    "seeds": {"metavar": "A-B", "help": "several seeds, as 0-4: the table has their mean and its interval"},
}
RESUME = (
    f"go on with the stopped run in this folder; repeat its other options (checkpoints: every {RESUMED} iterations)"
)
SAME = " (default: as in training)"
EVERY_HELP = "save a checkpoint every N iterations and on Ctrl-C, for --resume (default: never)"
EVERY = {"type": whole(1), "metavar": "N", "help": EVERY_HELP}
