"""`refmeta sweep`: many runs of the sine experiment, several at a time; a table and a figure of them all."""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from refmeta.lab.display import plural
from refmeta.lab.runs import progress, seed_range, whole
from refmeta.lab.sine.experiment import PRESETS
from refmeta.lab.sweep import SETTINGS, Incomplete, grid, name_of, read, sweep, table, varying
from refmeta.lab.training import METHODS

OPTIONS: dict[str, Callable[[str], Any]] = {
    "method": str,
    "law": str,
    "iterations": whole(1),
    "shots": whole(1),
    "inner_steps": whole(0),
    "alpha": float,
    "inner": str,
    "outer": str,
    "tasks": whole(1),
}


def add_sweep(commands: Any) -> None:
    """Declare the command on argparse's subparsers."""
    parser = commands.add_parser(
        "sweep",
        help="meta-train with every combination of methods, settings and seeds",
        description="Run the sine experiment for every combination of the values given (--method all: with every "
        "method). What they mean, and their defaults, refmeta sine --help says. The folder keeps each finished run: "
        "the same command goes on where it was stopped, and one with other values adds theirs.",
    )
    parser.set_defaults(run=run_sweep)
    for name, parse in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=_several(parse), metavar="A,B,…", help="one or several")
    parser.add_argument("--seeds", default="0", metavar="A-B,…", help="as 0-4, or 0,3,7 (default: 0)")
    parser.add_argument("--preset", choices=list(PRESETS), help="the settings of a paper; other options override it")
    parser.add_argument("--quick", action="store_true", help="smoke runs of seconds")
    parser.add_argument("--workers", type=whole(1), metavar="N", help="runs at a time (default: one for each core)")
    parser.add_argument("--out", default="runs/sweep", metavar="DIR", help="new, or a sweep's (default: runs/sweep)")


def run_sweep(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if given.get("method") == ["all"]:
        given["method"] = list(METHODS)
    seeds = [seed for part in args.seeds.split(",") for seed in seed_range(part)]
    jobs, folder, code = grid(seeds, args.preset, args.quick, **given), Path(args.out), 0
    try:
        with progress(len(jobs), "runs") as move:
            rows = sweep(jobs, folder, workers=args.workers, report=lambda finished, total: move(finished, ""))
    except KeyboardInterrupt:
        kept = sum((folder / f"{name_of(job)}.json").exists() for job in jobs)
        said = f"interrupted; {folder} keeps {kept} of {len(jobs)} runs, and the same command goes on from there"
        print(f"refmeta sweep: {said}", file=sys.stderr)
        return 130
    except Incomplete as error:
        print(f"refmeta sweep: {error}\n{folder} keeps the others, and the same command tries again", file=sys.stderr)
        rows, code = table(read(folder).values()), 1
    if rows:
        print(_text(rows))
        print(f"\n{folder}: the runs, table.csv, table.json{_figure(folder, rows)}")
    return code


def _text(rows: list[dict[str, Any]]) -> str:
    settings, columns = ["method", *varying(rows)], sorted({k for row in rows for k in row["report_steps"]})
    lines = [[*(name.replace("_", " ") for name in settings), "seeds", *(plural(k, "step") for k in columns)]]
    for _, group in groupby(rows, lambda row: [row[name] for name in SETTINGS]):
        curve = list(group)
        good = curve[0]["seeds"] - curve[0]["diverged_seeds"]
        seeds = f"{good} of {curve[0]['seeds']}" if curve[0]["diverged_seeds"] else str(good)
        means = [_mean(curve[k]) if k < len(curve) else "" for k in columns]
        lines.append([*(str(curve[0][name]) for name in settings), seeds, *means])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    if any(row["diverged_seeds"] or row["diverged_tasks"] for row in rows):
        text.append("Runs and test tasks that diverged are left out of the means; table.csv counts them.")
    title = (
        "\nmean squared error on unseen tasks (mean ± 95 % interval over the seeds; of one seed, over its tasks), after"
    )
    return "\n".join([title, *text])


def _mean(row: dict[str, Any]) -> str:
    if row["mse"] is None:
        return "diverged"
    return f"{row['mse']:.3f}" + (f" ± {row['ci95']:.3f}" if row["ci95"] is not None else "")


def _figure(folder: Path, rows: list[dict[str, Any]]) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return "; for the figure too: pip install 'refmeta[lab]'"
    from refmeta.lab import figures

    figures.sweep(folder / "sweep.png", rows)
    return ", sweep.png"


def _several(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values with commas between them, for argparse."""

    def values(text: str) -> list[Any]:
        try:
            return [parse(each) for each in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from None

    return values
