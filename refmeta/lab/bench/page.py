"""The measured part of docs/performance.md, and its figure."""

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refmeta.lab.bench import measure
from refmeta.lab.bench.cases import CASES
from refmeta.lab.bench.command import HAND, MARKS, OURS, grouped, judged, ratios
from refmeta.lab.bench.measure import OWN, SLOWER, Row
from refmeta.lab.files import versions

ITERATIONS = 2000
STEPS, TASKS = (1, 5, 20, 100), (1, 10, 100, 1000)


def renew(
    page: Path, rows: list[Row], peers: list[list[str]], args: argparse.Namespace, say: Callable[[str], Any]
) -> None:
    """Measure the rest, and put all of it between the page's marks; the figure goes to figures/performance.png."""
    parts = [_conditions(rows, args), _table(ratios(rows)), "\n".join(f"* {text}" for text, _ in judged(rows))]
    say("whole processes")
    commands = [OWN["refmeta recorded"], *peers]
    names = [OURS, *dict.fromkeys(row["name"] for row in rows if row["name"] not in (HAND, OURS))]
    seconds = measure.whole_process(commands, ITERATIONS, 3, args.threads)
    first = {row["name"]: row["first_ms"] for row in rows if (row["case"], row["algorithm"]) == ("S1", "maml")}
    parts += [
        "### A whole process\n\n"
        f"Import, recording or compiling, and {ITERATIONS:,} iterations of MAML on fresh sines (S1).",
        _table(
            [["", "whole process, s", "times as long"]]
            + [[n, f"{s:.2f}", f"{s / seconds[0]:.2f}"] for n, s in zip(names, seconds, strict=True)]
        ),
        _table([["the first gradient in a running process, ms", ""]] + [[n, f"{ms:.0f}"] for n, ms in first.items()]),
    ]
    say("imports and sizes")
    parts += [
        "### Import and size",
        _table(
            [
                ["", ""],
                ["`import refmeta`, s", f"{measure.import_seconds('refmeta'):.3f}"],
                ["`import autograd`, which has NumPy's, s", f"{measure.import_seconds('autograd'):.3f}"],
                ["NumPy, autograd and refmeta on the disk, MB", f"{measure.megabytes('refmeta'):.0f}"],
            ]
        ),
    ]
    say("memory")
    ways = ["by hand", "recorded", "recording", "stacked", "stacked adjoint", "adjoint"]
    memory = {way: [measure.peak_megabytes(way, steps, 25) for steps in STEPS] for way in ways}
    wider = {way: [measure.peak_megabytes(way, 1, tasks) for tasks in TASKS] for way in ways}
    parts += [
        "### Memory\n\n"
        "Megabytes that a meta-gradient of MAML allocates at its peak (S1's network, 25 tasks; then 1 inner step).\n"
        "`recorded` is a replay. `adjoint` keeps the parameters of every inner step and nothing else that grows.",
        _table([["inner steps", *map(str, STEPS)]] + [[w, *(f"{m:.1f}" for m in memory[w])] for w in ways]),
        _table([["tasks", *(f"{t:,}" for t in TASKS)]] + [[w, *(f"{m:.1f}" for m in wider[w])] for w in ways]),
    ]
    say("ANIL")
    parts += [
        "### ANIL's economy\n\n"
        "Times of MAML over those of ANIL: an iteration of training (the table above), and adapting alone.\n"
        "Raghu et al. 2020 measured 1.7 in training and 4.1 at inference, on other networks and a GPU.",
        _table([["", "training", "adapting"], *([name, *_economy(name, rows)] for name in ("S1", "S2", "C1"))]),
    ]
    say("growth")
    base = CASES["S1"]
    steps = [(str(k), base._replace(steps=k), "maml") for k in STEPS[:3]]
    tasks = [(str(t), base._replace(tasks=t), "maml") for t in TASKS]
    everyone = [*OWN.values(), SLOWER["refmeta stacked"], *peers[:1]]
    by_steps = measure.side_by_side(everyone, steps, args.seconds, args.threads, say)
    by_tasks = measure.side_by_side([*everyone, SLOWER["refmeta loop"]], tasks, args.seconds, args.threads, say)
    parts += [
        "### Growth\n\nMilliseconds of an iteration of MAML: S1 with more inner steps, and with more tasks.\n\n"
        "![Time against inner steps and against tasks; memory against inner steps](figures/performance.png)",
        _growth("inner steps", by_steps),
        _growth("tasks", by_tasks),
        "### Where the time of a replay goes\n\nS1, MAML: microseconds of a replay by the function called.",
        _table(
            [["", "calls", "µs"]]
            + [[f"`{n}`", str(c), f"{us:.0f}"] for n, c, us in measure.in_a_process("profile", base)[:12]]
        ),
    ]
    before, rest = page.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(before + "\n\n".join([MARKS[0], *parts, MARKS[1]]) + after)
    _draw(page.parent / "figures" / "performance.png", by_steps, by_tasks, memory)


def _conditions(rows: list[Row], args: argparse.Namespace) -> str:
    who = dict.fromkeys(f"{row['name']} {row['version']}" for row in rows if not row["name"].startswith("refmeta"))
    plural = "s" * (args.threads != 1)
    return (
        f"Made by `refmeta bench --seconds {args.seconds:g} --threads {args.threads} --page docs/performance.md`"
        f"{' with a `--peer` for each of the others' if args.peer else ''}; {args.threads} thread{plural},\n"
        f"{platform.machine()}, Python {platform.python_version()}, NumPy {versions()['numpy']}, autograd "
        f"{versions()['autograd']}; {', '.join(w for w in who if not w.startswith(HAND))}."
    )


def _table(table: list[list[str]]) -> str:
    head, *rows = table
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _growth(what: str, rows: list[Row]) -> str:
    table = grouped(rows)
    names = list(dict.fromkeys(row["name"] for row in rows))
    cells = [
        [name, *(f"{float(f'{ms[name]:.3g}'):g}" if name in ms else "–" for ms in table.values())] for name in names
    ]
    return _table([[what, *(case for case, _ in table)], *cells])


def _economy(name: str, rows: list[Row]) -> list[str]:
    training = {a: ms[OURS] for (case, a), ms in grouped(rows).items() if case == name}
    adapting = measure.in_a_process("adaptation", CASES[name])
    return [f"{t['maml'] / t['anil']:.2f}" if t.keys() >= {"maml", "anil"} else "–" for t in (training, adapting)]


def _draw(path: Path, by_steps: list[Row], by_tasks: list[Row], memory: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    colours = {OURS: "#2460a7", HAND: "#222222", "refmeta, stacked": "#3a9bb5", "refmeta, loop": "#7a4fa3"}
    colours |= {"by hand": "#222222", "recorded": "#2460a7", "recording": "#9db8d9", "stacked": "#3a9bb5"}
    colours |= {"adjoint": "#2e8b57"}
    for axis, rows, what in ((left, by_steps, "inner steps"), (middle, by_tasks, "tasks")):
        for name in dict.fromkeys(row["name"] for row in rows):
            points = [(float(row["case"]), row["ms"]) for row in rows if row["name"] == name]
            axis.loglog(
                *zip(*points, strict=True), "o-", ms=3.5, lw=1.6, color=colours.get(name, "#c8553d"), label=name
            )
        axis.set(xlabel=what, ylabel="ms per iteration")
    for way, values in memory.items():
        right.loglog(STEPS, values, "o-", ms=3.5, lw=1.6, color=colours.get(way, "#c8553d"), label=way)
    right.set(xlabel="inner steps", ylabel="MB at the peak")
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter("{x:g}")
            scale.set_minor_formatter("")
    middle.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
