"""`refmeta sweep`: many runs of the sine experiment, several at a time; a table and a figure of them all."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from refmeta.lab.display import Row, cell, plural
from refmeta.lab.display import table as columns
from refmeta.lab.runs import Options, add_command, progress, seed_range, show, whole
from refmeta.lab.sine import experiment as sine
from refmeta.lab.sweep.jobs import Incomplete, grid, sweep
from refmeta.lab.sweep.records import SETTINGS, name_of, read, table, varying
from refmeta.lab.training import METHODS


def _several(parse: Callable[[str], Any], text: str) -> list[Any]:
    """Values with commas between them, for argparse."""
    try:
        return [parse(each) for each in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from None


ALONG = [name for name in sine.options if name in SETTINGS]  # the settings that take several values
options: Options = {
    **{
        name: {
            "type": partial(_several, sine.options[name].get("type", str)),
            "metavar": "A,B,…",
            "help": "one or several",
        }
        for name in ALONG
    },
    "seeds": {"default": "0", "metavar": "A-B,…", "help": "as 0-4, or 0,3,7 (default: 0)"},
    "preset": sine.options["preset"],
    "quick": {"action": "store_true", "help": "smoke runs of seconds"},
    "workers": {"type": whole(1), "metavar": "N", "help": "runs at a time (default: one for each core)"},
    "out": {"default": "runs/sweep", "metavar": "DIR", "help": "new, or a sweep's (default: runs/sweep)"},
}


def add_sweep(commands: Any) -> None:
    """Declare the command on argparse's subparsers."""
    add_command(
        commands,
        "sweep",
        "meta-train with every combination of methods, settings and seeds",
        "Run the sine experiment for every combination of the values given (--method all: with every "
        "method). What they mean, and their defaults, refmeta sine --help says. The folder keeps each finished run: "
        "the same command goes on where it was stopped, and one with other values adds theirs.",
        options,
        run,
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    given = {name: getattr(args, name) for name in ALONG if getattr(args, name) is not None}
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
        print(text(rows))
        show(folder, "the runs, table.csv, table.json", ["sweep.png"], lambda: _draw(folder / "sweep.png", rows))
    return code


def text(rows: list[Row]) -> str:
    """The table: a line for each combination of settings, a column for each reported number of steps."""
    settings, steps = ["method", *varying(rows)], sorted({k for row in rows for k in row["report_steps"]})
    lines = [[*(name.replace("_", " ") for name in settings), "seeds", *(plural(k, "step") for k in steps)]]
    for _, group in groupby(rows, lambda row: [row[name] for name in SETTINGS]):
        curve = list(group)
        good = curve[0]["seeds"] - curve[0]["diverged_seeds"]
        seeds = f"{good} of {curve[0]['seeds']}" if curve[0]["diverged_seeds"] else str(good)
        means = [_mean(curve[k]) if k < len(curve) else "" for k in steps]
        lines.append([*(str(curve[0][name]) for name in settings), seeds, *means])
    lost = any(row["diverged_seeds"] or row["diverged_tasks"] for row in rows)
    title = (
        "\nmean squared error on unseen tasks (mean ± 95 % interval over the seeds; of one seed, over its tasks), after"
    )
    note = ["Runs and test tasks that diverged are left out of the means; table.csv counts them."]
    return "\n".join([title, columns(lines, gap="  "), *note * lost])


def _mean(row: Row) -> str:
    if row["mse"] is None:
        return "diverged"
    return f"{row['mse']:.3f}" if row["ci95"] is None else cell(row["mse"], row["ci95"])


def _draw(path: Path, rows: list[Row]) -> None:
    from refmeta.lab.sweep import figures

    figures.draw(path, rows)
