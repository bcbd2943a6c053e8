"""`refmeta sine`: train, evaluate, print a table, leave a folder with results and figures."""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from refmeta.lab import experiment
from refmeta.lab.checkpoint import Keep
from refmeta.lab.experiment import DIVERGED, METHODS, PRESETS, Config, Run, beside, configure
from refmeta.lab.files import CHECKPOINT, PARTS, checkpoints, locked, new_folder, save_result, save_theta, writable
from refmeta.lab.sine import LAWS, ZERO_MSE
from refmeta.lab.training import Diverged, Interrupted, over_seeds


def add_sine(commands: Any) -> None:
    """Declare the command on argparse's subparsers."""
    parser = commands.add_parser(
        "sine",
        help="meta-train on sine waves and show what was learned",
        description="Meta-train a small network on sine waves, beside joint training with the same "
        "budget, and show how both adapt to waves they have not seen.",
    )
    parser.set_defaults(run=sine)
    parser.add_argument("--method", choices=[*METHODS, "all"], help="default: maml, or the preset's")
    parser.add_argument("--preset", choices=list(PRESETS), help="the settings of a paper; other options override it")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parser.add_argument("--law", choices=list(LAWS), help="how waves are drawn (default: finn)")
    parser.add_argument("--iterations", type=whole(1), metavar="N", help=f"outer steps (default: {Config.iterations})")
    parser.add_argument("--shots", type=whole(1), metavar="K", help="points of a support batch (default: 10)")
    parser.add_argument("--inner-steps", type=whole(0), metavar="N", help="in training (default: 1; reptile: 5)")
    parser.add_argument("--alpha", type=float, help="inner rate (default: 0.01; reptile: 0.02)")
    parser.add_argument("--inner", choices=list(experiment.INNER), help="reptile's inner optimiser (default: sgd)")
    parser.add_argument(
        "--outer",
        metavar="NAME:RATE",
        help="adam:RATE or sgd:RATE, with :linear behind to anneal the rate to 0 (default: adam:0.001; reptile: "
        "sgd:1:linear, its ε); the joint run beside a method keeps its own",
    )
    parser.add_argument("--tasks", type=whole(1), metavar="N", help="tasks in an outer step (default: 25)")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: 0")
    seeds.add_argument("--seeds", metavar="A-B", help="several, as 0-4: mean and interval over the seeds")
    add_folder(parser, "runs/sine-METHOD-SEED")


def sine(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    explicit = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    seeds = [args.seed] if args.seeds is None else seed_range(args.seeds)
    names = list(METHODS) if args.method == "all" else [args.method]
    configs = [configure(name, args.preset, args.quick, explicit) for name in names]
    if all(config.method != "joint" for config in configs):
        configs.append(beside(configs[0], args.preset))
    main = "all" if args.method == "all" else configs[0].method
    sole = main if len(seeds) == 1 else None
    places = {(s, c): "" if c.method == sole else f"{c.method}-{s}" for s in seeds for c in configs}
    runs: list[Run] = []
    with own_folder(args, f"runs/sine-{main}-{args.seeds or args.seed}", places.values()) as folder:
        for (seed, config), place in places.items():
            keep, names = keeping(args, folder / place), experiment.network(config)[0].names
            try:
                with progress(config.iterations, f"{config.method}, seed {seed}") as move:
                    runs.append(experiment.run(config, seed, lambda i, loss: move(i + 1, f"loss {loss:.3f}"), keep))
            except (Diverged, Interrupted) as error:
                return stopped(f"sine: {config.method}", folder, folder / place, names, error)
            _save(folder / place, runs[-1])
        curves = [(c.method, over_seeds([r.curve for r in runs if r.config == c])) for c in configs]
        if not sole or main == "all":
            save_result(folder / "result.json", _summary(main, configs, seeds, curves, runs))
        print(_table(configs, curves, len(seeds)))
        _draw(folder, [run for run in runs if run.seed == seeds[0]], curves)
    return 0


def stopped(what: str, folder: Path, place: Path, names: list[str], error: Diverged | Interrupted) -> int:
    """A run of the folder's, in its place there, ended early: save what was learned, say where it is and how to go on.

    Returns the exit code.
    """
    place.mkdir(exist_ok=True)
    save_theta(place / "theta.npz", names, error.theta)
    if isinstance(error, Diverged):  # and would diverge again
        last, then, code = "the last good θ", "", 1
    else:
        last, then, code = "θ", to_go_on(folder), 130
    print(f"refmeta {what}: {error}; {last} is in {place}/theta.npz{then}", file=sys.stderr)
    return code


def add_folder(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare where a command writes, and what of it survives."""
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument("--out", metavar="DIR", help=f"a new folder (default: {default})")
    folder.add_argument(
        "--resume",
        metavar="DIR",
        help="in place of --out: go on in the folder of the same command, stopped by whatever; what it had finished is "
        f"only tested again (checkpoints: every {RESUMED} iterations, if not said otherwise)",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=whole(1),
        metavar="N",
        help="keep each run's state in its folder every N iterations, and on Ctrl-C (default: never); it stays there",
    )


RESUMED = 100  # a checkpoint takes as long as an iteration, more or less


def keeping(args: argparse.Namespace, place: Path) -> Keep | None:
    every = args.checkpoint_every or RESUMED * bool(args.resume)
    return Keep(place / CHECKPOINT, every) if every else None


@contextmanager
def own_folder(args: argparse.Namespace, default: str, places: Collection[str]) -> Iterator[Path]:
    """The folder of --resume or --out, or a new one, this process's alone; `places` are those of its runs in there.

    ValueError: see `new_folder` and `locked`; for --resume, there is no checkpoint, or one of a run in another place.
    """
    if args.resume:
        folder = Path(args.resume)
        try:
            found = checkpoints(folder)
        except OSError as error:
            raise ValueError(f"--resume {args.resume:.99}: cannot be read: {error.strerror}") from error
        if not found:
            raise ValueError(f"--resume {folder}: there is no checkpoint; expected the folder of a command with some")
        for other in sorted(found - {folder / place / CHECKPOINT for place in places}):
            raise ValueError(f"--resume {folder}: {other} is not of this command; expected its options")
        writable(folder)
    else:
        folder = new_folder(args.out, default)
    with locked(folder):
        for part in folder.rglob(PARTS):
            if not part.is_dir():
                part.unlink()
        try:
            yield folder
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"interrupted{to_go_on(folder)}") from error


def to_go_on(folder: Path) -> str:
    return f"; to go on, the same command with --resume {folder}" if checkpoints(folder) else ""


_SETTINGS = ("law", "iterations", "shots", "inner_steps", "alpha", "inner", "outer", "tasks")


def _save(folder: Path, run: Run) -> None:
    folder.mkdir(exist_ok=True)
    save_theta(folder / "theta.npz", experiment.network(run.config)[0].names, run.theta)
    save_result(folder / "result.json", run.result())


def _summary(main: str, configs: list[Config], seeds: list[int], curves: list[Any], runs: list[Run]) -> dict[str, Any]:
    return {
        "experiment": "sine",
        "method": main,
        "seeds": seeds,
        "config": {config.method: asdict(config) for config in configs},
        "curve": [{"method": method, **row} for method, curve in curves for row in curve],
        "seconds": sum(run.seconds for run in runs),
    }


def _table(configs: list[Config], curves: list[Any], seeds: int) -> str:
    config, law = configs[0], LAWS[configs[0].law]
    columns = config.report_steps
    formula, best = law.agnostic
    over = f"mean over {seeds} seeds" if seeds > 1 else "mean"
    lines = [
        f"\nmean squared error on {config.test_tasks} unseen tasks ({over} ± 95 % interval), after",
        " " * 26 + "".join(f"{plural(k, 'step'):>16}" for k in columns),
    ]
    notes = []
    for method, curve in curves:
        rows = [curve[k] for k in columns]
        values = [f"{row['mse']:.3f} ± {row['ci95']:.3f}" if row["mse"] < inf else "all diverged" for row in rows]
        cells = "".join(f"{value:>16}" for value in values)
        lines.append(f"{_LABELS.get(method, method):>26}{cells}")
        lost = [f"{row['diverged']} after {row['steps']}" for row in rows if row["diverged"]]
        if lost:
            medians = ", ".join(f"{row['median']:.4g}" for row in rows)
            notes.append(
                f"{method}: tasks that diverged (error above {DIVERGED:g}), left out of the mean: "
                f"{', '.join(lost)} steps; medians over all tasks: {medians}"
            )
    exact = [("best without the task", best, formula), ("always 0", ZERO_MSE, "")]
    for label, value, note in exact:
        lines.append(f"{label:>26}{value:>11.6f}  (exact)  {note}")
    return "\n".join(lines + notes)


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


_LABELS = {"joint": "joint training"}


def _draw(folder: Path, runs: list[Run], curves: list[Any]) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        print(f"\n{folder}: results; for the figures too: pip install 'refmeta[lab]'")
        return
    from refmeta.lab import figures

    figures.adaptation(folder / "adaptation.png", runs)
    figures.curves(folder / "curves.png", curves, runs[0].config.law)
    print(f"\n{folder}: results, adaptation.png, curves.png")


@contextmanager
def progress(total: int, title: str) -> Iterator[Callable[[int, str], None]]:
    """A function of (how many are done, a note) that moves a progress bar; one that does nothing without tqdm."""
    if importlib.util.find_spec("tqdm") is None:
        yield lambda done, note: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=title, file=sys.stderr) as bar:

        def move(done: int, note: str) -> None:
            bar.set_postfix_str(note, refresh=False)
            bar.update(done - bar.n)

        yield move


DIGITS = 18  # of a number that fits an index


def whole(lowest: int) -> Callable[[str], int]:
    """A whole number of at least `lowest`, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > DIGITS or int(text) < lowest:
            needed = f"at least {lowest}" if len(text) <= DIGITS else f"at most {DIGITS} digits"
            raise argparse.ArgumentTypeError(f"expected a whole number of {needed}, got {text!r:.40}")
        return int(text)

    return parse


MOST_SEEDS = 10_000


def seed_range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        low, high = 0, -1
    if not low <= high < low + MOST_SEEDS:
        raise ValueError(f"--seeds {text:.40}: expected a range as 0-4, of at most {MOST_SEEDS} seeds")
    return list(range(low, high + 1))
