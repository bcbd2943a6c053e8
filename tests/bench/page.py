"""The measured part of docs/performance.md, and its figure."""

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench import measure
from tests.bench.measure import own
from tests.bench.promises import HAND, RECORDED, Row, grouped, judged, names, ratios
from tests.bench.workers.own import peak_megabytes
from tests.bench.workloads import WORKLOADS, Workload

BRIEF = "<!-- in brief: python -m tests.bench -->", "<!-- end of the brief -->"
MARKS = "<!-- measured: python -m tests.bench -->", "<!-- end of what was measured -->"
MEMORY = ("by hand", "recorded", "recording", "stacked", "stacked adjoint", "adjoint")


class Sizes(NamedTuple):
    """How much is measured beside the table of ratios."""

    work: Workload = WORKLOADS["S1"]
    adapting: tuple[str, ...] = ("S1", "S2", "C1")
    iterations: int = 2000
    rounds: int = 7
    steps: tuple[int, ...] = (1, 5, 20, 100)
    tasks: tuple[int, ...] = (1, 10, 100, 1000)


ALL = Sizes()


def renew(
    page: Path,
    rows: list[Row],
    peers: list[list[str]],
    seconds: float,
    threads: int,
    say: Callable[[str], Any],
    sizes: Sizes = ALL,
) -> None:
    """Measure the rest, and put it between the page's marks, in brief and whole; draw figures/performance.png."""

    def growth(key: str, values: tuple[int, ...], *more: str) -> list[Row]:
        everyone = [own("recorded"), own("by hand"), own("stacked"), *peers[:1], *map(own, more)]
        wanted = [(str(value), sizes.work._replace(**{key: value}), "maml") for value in values]
        return measure.side_by_side(everyone, wanted, seconds, threads, say)

    say("whole processes, imports, memory")
    times = {"inner steps": growth("steps", sizes.steps[:3]), "tasks": growth("tasks", sizes.tasks, "loop")}
    memory = {"inner steps": _memory("steps", sizes.steps, sizes.work)}
    memory["tasks"] = _memory("tasks", sizes.tasks, sizes.work)
    parts = [_conditions(rows, seconds, threads, bool(peers)), _table(ratios(rows))]
    parts += ["\n".join(f"* {text}" for text, _ in judged(rows)), *_processes(rows, peers, threads, sizes)]
    parts += [MEMORY_HEAD, *(_sizes(what, found) for what, found in memory.items())]
    parts += [ECONOMY_HEAD, _economy(rows, sizes)]
    parts += [GROWTH_HEAD, *(_times(what, found) for what, found in times.items()), REPLAY_HEAD, _replay(sizes)]
    page.write_text(put(put(page.read_text(), BRIEF, [_table(brief(ratios(rows)))]), MARKS, parts))
    draw(page.parent / "figures" / "performance.png", times, memory["inner steps"])


def put(text: str, marks: tuple[str, str], parts: list[str]) -> str:
    """The text with these parts between the marks."""
    before, rest = text.split(marks[0])
    return before + "\n\n".join([marks[0], *parts, marks[1]]) + rest.split(marks[1])[1]


def brief(table: list[list[str]]) -> list[list[str]]:
    """MAML's rows of the table of ratios, transposed: a line for each program, a column for each workload."""
    maml = [table[0], *(row for row in table if row[1] == "maml")]
    works, _, *lines = [list(column) for column in zip(*maml, strict=True)]
    own = ["refmeta, ms", *lines.pop()[1:]]
    return [works, own, *([line[0].replace("recorded", "refmeta").replace("/", "÷"), *line[1:]] for line in lines)]


def _conditions(rows: list[Row], seconds: float, threads: int, peers: bool) -> str:
    who = dict.fromkeys(f"{r['name']} {r['version']}" for r in rows if not r["name"].startswith(("refmeta", HAND)))
    return (
        f"Made by `python -m tests.bench --seconds {seconds:g} --threads {threads} --page docs/performance.md`"
        f"{' with a `--peer` for each of the others' if peers else ''}; {threads} thread{'s' * (threads != 1)},\n"
        f"{platform.machine()}, Python {platform.python_version()}, NumPy {version('numpy')}, autograd "
        f"{version('autograd')}; {', '.join(who)}."
    )


def _processes(rows: list[Row], peers: list[list[str]], threads: int, sizes: Sizes) -> list[str]:
    commands = dict(zip([RECORDED, *names(rows, HAND, RECORDED)], [own("recorded"), *peers], strict=True))
    took = {
        name: measure.whole_process(c, sizes.iterations, min(3, sizes.rounds), threads) for name, c in commands.items()
    }
    first = {row["name"]: row["first_ms"] for row in rows if (row["work"], row["algorithm"]) == ("S1", "maml")}
    cells = [[name, f"{s:.2f}", f"{s / took[RECORDED]:.2f}"] for name, s in took.items()]
    return [
        "### A whole process\n\n"
        f"Import, recording or compiling, and {sizes.iterations:,} iterations of MAML on fresh sines (S1).",
        _table([["", "whole process, s", "times as long"], *cells]),
        _table([["the first gradient in a running process, ms", ""]] + [[n, f"{ms:.0f}"] for n, ms in first.items()]),
        "### Import and size",
        _table(
            [
                ["", ""],
                ["`import refmeta`, s", f"{measure.import_seconds('refmeta', sizes.rounds):.3f}"],
                ["`import autograd`, which has NumPy's, s", f"{measure.import_seconds('autograd', sizes.rounds):.3f}"],
                ["NumPy, autograd and refmeta on the disk, MB", f"{measure.megabytes('refmeta'):.0f}"],
            ]
        ),
    ]


MEMORY_HEAD = """### Memory

Megabytes that a meta-gradient of MAML allocates at its peak (S1's network, 25 tasks; then 1 inner step).
`recorded` is a replay. `adjoint` keeps the parameters of every inner step and nothing else that grows."""


def _memory(key: str, values: tuple[int, ...], work: Workload) -> dict[str, dict[int, float]]:
    return {way: {n: peak_megabytes(way, work._replace(**{key: n})) for n in values} for way in MEMORY}


def _sizes(what: str, memory: dict[str, dict[int, float]]) -> str:
    head = [what, *(f"{n:,}" for n in memory[MEMORY[0]])]
    return _table([head, *([way, *(f"{mb:.1f}" for mb in found.values())] for way, found in memory.items())])


ECONOMY_HEAD = """### ANIL's economy

Times of MAML over those of ANIL: an iteration of training (the table above), and adapting alone.
Raghu et al. 2020 measured 1.7 in training and 4.1 at inference, on other networks and a GPU."""


def _economy(rows: list[Row], sizes: Sizes) -> str:
    training = {(work, algorithm): ms[RECORDED] for (work, algorithm), ms in grouped(rows).items()}
    table = [["", "training", "adapting"]]
    for work in sizes.adapting:
        adapting, both = measure.alone("adaptation", WORKLOADS[work]), {(work, "maml"), (work, "anil")}
        economy = f"{training[work, 'maml'] / training[work, 'anil']:.2f}" if both <= training.keys() else "–"
        table.append([work, economy, f"{adapting['maml'] / adapting['anil']:.2f}"])
    return _table(table)


GROWTH_HEAD = """### Growth

Milliseconds of an iteration of MAML: S1 with more inner steps, and with more tasks.

![Time against inner steps and against tasks; memory against inner steps](figures/performance.png)"""


def _times(what: str, rows: list[Row]) -> str:
    table = grouped(rows)
    cells = [[f"{float(f'{ms[n]:.3g}'):g}" if n in ms else "–" for ms in table.values()] for n in names(rows)]
    return _table([[what, *(size for size, _ in table)], *([n, *c] for n, c in zip(names(rows), cells, strict=True))])


REPLAY_HEAD = """### Where the time of a replay goes

S1, MAML: microseconds of a replay by the function called."""


def _replay(sizes: Sizes) -> str:
    spent = measure.alone("profile", sizes.work)[:12]
    return _table([["", "calls", "µs"], *([f"`{name}`", f"{calls}", f"{us:.0f}"] for name, calls, us in spent)])


def _table(table: list[list[str]]) -> str:
    head, *rows = table
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] + ["--:"] * (len(head) - 1), *rows))


COLOURS = {"recorded": "#2460a7", "by hand": "#222222", "stacked": "#3a9bb5", "loop": "#7a4fa3"}
COLOURS |= {"recording": "#9db8d9", "adjoint": "#2e8b57"}


def draw(path: Path, times: dict[str, list[Row]], memory: dict[str, dict[int, float]]) -> None:
    """Time against inner steps and against tasks, memory against inner steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    *axes, last = figure.subplots(1, 3)
    for axis, (what, rows) in zip(axes, times.items(), strict=True):
        curves = {n: {float(row["work"]): row["ms"] for row in rows if row["name"] == n} for n in names(rows)}
        _curves(axis, curves, what, "ms per iteration")
    _curves(last, memory, "inner steps", "MB at the peak")
    for axis in (axes[1], last):
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _curves(axis: Any, curves: dict[str, dict[Any, float]], xlabel: str, ylabel: str) -> None:
    for name, points in curves.items():
        colour = COLOURS.get(name.removeprefix("refmeta, "), "#c8553d")
        axis.loglog(list(points), list(points.values()), "o-", ms=3.5, lw=1.6, color=colour, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.spines[["top", "right"]].set_visible(False)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter("")
