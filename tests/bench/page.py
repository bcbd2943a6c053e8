"""The measured part of docs/performance.md, and its figure: `python -m tests.bench.page` draws it from the page."""

import platform
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from math import inf, log
from pathlib import Path
from typing import Any, NamedTuple

from refmeta.lab.display import COLOURS as METHODS
from refmeta.lab.display import INK, plain_axis, svg
from tests.bench import measure
from tests.bench.measure import own
from tests.bench.promises import HAND, RECORDED, Row, grouped, judged, names, ratios
from tests.bench.workers.own import peak_megabytes
from tests.bench.workloads import WORKLOADS, Workload

BRIEF = "<!-- in brief: python -m tests.bench -->", "<!-- end of the brief -->"
MARKS = "<!-- measured: python -m tests.bench -->", "<!-- end of what was measured -->"
BLUE, TEAL, PURPLE, GREEN, RED = METHODS.values()
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
    """Measure the rest, put it between the page's marks, in brief and whole, and draw its figure."""

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
    draw(page)


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
    return _table([head, *([way, *map(_digits, found.values())] for way, found in memory.items())])


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

![Memory, and below it time, against inner steps and against tasks](figures/performance.svg)"""


def _times(what: str, rows: list[Row]) -> str:
    table = grouped(rows)
    cells = [[_digits(ms[n]) if n in ms else "–" for ms in table.values()] for n in names(rows)]
    return _table([[what, *(size for size, _ in table)], *([n, *c] for n, c in zip(names(rows), cells, strict=True))])


REPLAY_HEAD = """### Where the time of a replay goes

S1, MAML: microseconds of a replay by the function called."""


def _replay(sizes: Sizes) -> str:
    spent = measure.alone("profile", sizes.work)[:12]
    return _table([["", "calls", "µs"], *([f"`{name}`", f"{calls}", f"{us:.0f}"] for name, calls, us in spent)])


def _digits(number: float) -> str:
    return f"{float(f'{number:.3g}'):g}"


def _table(table: list[list[str]]) -> str:
    head, *rows = table
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] + ["--:"] * (len(head) - 1), *rows))


GROWING = re.compile(r"^\| (inner steps|tasks) \|(.*\n)\| -.*\n((?:\|.*\n)+)", re.M)
COLOURS = {"recorded": BLUE, "recording": BLUE, "stacked": TEAL, "adjoint": GREEN, "stacked adjoint": GREEN}
COLOURS |= {"loop": PURPLE, "by hand": INK}
DASHED = "recording", "stacked adjoint"
Curves = dict[str, dict[float, float]]  # by the way's name: sizes, and what was measured there


def growing(text: str) -> Iterator[tuple[str, Curves]]:
    """Each table of the page that has inner steps or tasks along its head: this word, and the curves by their names."""
    for what, *table in GROWING.findall(text):
        head, *rows = ([cell.strip() for cell in line.split("|")] for line in "".join(table).splitlines())
        sizes = [float(cell.replace(",", "")) for cell in head[:-1]]
        points = {name.removeprefix("refmeta, "): zip(sizes, row[:-1], strict=True) for _, name, *row in rows}
        yield what, {name: {n: float(cell) for n, cell in found if cell != "–"} for name, found in points.items()}


def draw(page: Path) -> None:
    """figures/performance.svg from the page's tables: memory, and below it time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, (what, curves) in zip(axes.flat, growing(page.read_text()), strict=True):
        _curves(axis, curves)
        axis.set(xlabel=what)
    for axis, title in zip(axes.flat, 2 * ["MB at the peak"] + 2 * ["ms per iteration"], strict=True):
        axis.set_title(title, fontsize=11)
    (page.parent / "figures/performance.svg").write_text(svg(figure))


def _curves(axis: Any, curves: Curves) -> None:
    """Each with its name beside its end, a line of text above the one below."""
    for name, points in curves.items():
        style = {"color": COLOURS.get(name, RED), "ls": "--" if name in DASHED else "-"}
        axis.loglog(list(points), list(points.values()), marker="o", ms=3.5, lw=1.6, **style)
    low, high, at = *map(log, axis.get_ylim()), -inf
    for end, name in sorted((list(points.values())[-1], name) for name, points in curves.items()):
        at = max(at + 0.085, (log(end) - low) / (high - low))
        axis.text(1, at, name, color=COLOURS.get(name, RED), va="center", transform=axis.transAxes)
    plain_axis(axis)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter("")


if __name__ == "__main__":
    draw(Path("docs/performance.md"))
