"""Run a paper's experiment under its protocol, and print its published numbers beside ours."""

from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from os.path import isfile
from pathlib import Path
from time import perf_counter
from typing import Any

from refmeta.lab import runs
from refmeta.lab.checkpoint import settings_of
from refmeta.lab.display import Row, cell, markdown, plural
from refmeta.lab.fewshot import experiment as characters
from refmeta.lab.files import CHECKPOINT
from refmeta.lab.reproduce import papers
from refmeta.lab.reproduce.papers import PAPERS, Bar, Paper
from refmeta.lab.reproduce.reads import read
from refmeta.lab.reuse.experiment import Lab, of_images, of_waves
from refmeta.lab.runs import Experiment, Options, Plan, Result, Run
from refmeta.lab.training import over_seeds

options: Options = {
    "seeds": {"default": "0", "metavar": "A-B", "help": "as 0-2: the tables have means and intervals (default: 0)"},
    "minutes": {"type": float, "metavar": "M", "help": "at most for each training; the table has its iterations"},
    "quick": runs.QUICK,
}


# --- How long to train ------------------------------------------------------------------------------


def pace(lab: Lab, name: str, config: Any) -> float:
    """Seconds of an iteration, on this machine as busy as it is: the mean over MEASURED seconds."""
    marks: list[tuple[int, float]] = []

    def report(iteration: int, loss: float) -> None:
        marks.append((iteration, perf_counter()))
        if len(marks) > 3 and marks[-1][1] - marks[1][1] > MEASURED:
            raise TimeoutError

    with suppress(TimeoutError):
        lab.run(name, replace(config, iterations=1000, test_tasks=1), 0, report)
    (first, start), (last, end) = marks[1], marks[-1]
    return (end - start) / (last - first)


MEASURED = 3.0  # seconds


def shortened(lab: Lab, name: str, config: Any, minutes: float | None, kept: Path | None) -> Any:
    """The config with as many iterations as fit into the minutes, or as its checkpoint was started with."""
    if kept is not None and isfile(kept):  # Path.is_file raises where a name is too long
        return replace(config, iterations=settings_of(kept)["iterations"])
    if minutes is None:
        return config
    return replace(config, iterations=max(1, min(config.iterations, int(60 * minutes / pace(lab, name, config)))))


# --- The command ------------------------------------------------------------------------------------


def plan(paper: Paper, args: Namespace) -> Plan:
    """Every training of the paper's tables, with every seed. ValueError: minutes that are not above 0; as the Lab."""
    if args.minutes is not None and not 0 < args.minutes < 1e6:
        raise ValueError(f"--minutes {args.minutes}: expected a number above 0")
    seeds, lab = runs.seed_range(args.seeds), of_images(args.root) if paper.images else of_waves(paper.name)
    published = {name: lab.configure(settings["method"], False, settings) for name, settings in paper.trainings.items()}
    configs = dict(published)
    for name, settings in paper.trainings.items():
        if args.quick:
            few = {key: value for key, value in settings.items() if key != "iterations"}  # --quick has its own
            configs[name] = lab.configure(few["method"], True, few)
        kept = Path(args.resume) / runs.place(name, seeds[0]) / CHECKPOINT if args.resume else None
        configs[name] = shortened(lab, name, configs[name], args.minutes, kept)

    def summary(trained: dict[str, list[Run]]) -> Result:
        return {
            "paper": paper.name,
            "seeds": seeds,
            "quick": args.quick,
            "resumed": bool(args.resume),
            "trainings": {name: _told(published[name].iterations, runs) for name, runs in trained.items()},
            "tables": [_table(lab, title, rows, trained) for title, rows in paper.tables.items()],
        }

    how = lab.network, lab.run, summary, runs.drawing("reproduce")
    return Plan(f"runs/{paper.name}-{args.seeds}", configs, seeds, *how)


def _told(published: int, trained: list[Run]) -> dict[str, Any]:
    seconds = sum(run.seconds for run in trained) / len(trained)
    return {"published_iterations": published, "seconds": seconds, "config": asdict(trained[0].config)}


# --- The tables --------------------------------------------------------------------------------------


# What a curve may have, and its name on an axis.
SCORES = {"mse": "mean squared error", "accuracy": "accuracy (%)", "cca": "similarity", "ratio": "ratio"}


def _table(lab: Lab, title: str, rows: list[papers.Row], trained: dict[str, list[Run]]) -> Result:
    """{title, score, rows}: of each row {label, training, …, published, bar, here: a curve over the seeds}."""
    found = {row.label: [read(lab, row, run) for run in trained[row.training]] for row in rows}
    (score,) = SCORES.keys() & found[rows[0].label][0][0].keys()
    here = {label: over_seeds(curves, score) for label, curves in found.items()}
    unit = 100 if score == "accuracy" else 1  # as it is published
    means = {label: {each["steps"]: unit * each[score] for each in curve} for label, curve in here.items()}
    told = [row._asdict() | {"bar": row.bar and _judged(row.bar, row, means), "here": here[row.label]} for row in rows]
    return {"title": title, "score": score, "rows": told}


def _judged(bar: Bar, row: papers.Row, means: dict[str, dict[int, float]]) -> Result:
    """{said: the bar in words, worst: the number that decides, met}."""
    here, published = means[row.label], {k: number(text)[0] for k, text in row.published.items()}
    steps = bar.steps or [k for k in here if k in published or papers.PAPER not in bar.of]
    against = [published if of == papers.PAPER else means[of] for of in bar.of] or [dict.fromkeys(steps, 0.0)]
    apart = [here[k] - each[k] for k in steps for each in against]
    worst = {"within": max(map(abs, apart)), "below": max(apart), "above": min(apart)}[bar.kind]
    met = worst >= bar.limit if bar.kind == "above" else worst <= bar.limit
    limit = [f"{bar.limit:g}"] * (bar.kind != "below" or bool(bar.limit))
    of = [f"of {' and '.join(bar.of)}" if limit else " and ".join(bar.of)] * bool(bar.of)
    after = [f"after {plural(k, 'step')}" for k in bar.steps]
    return {"said": " ".join([bar.kind, *limit, *of, *after]), "worst": worst, "met": met}


def number(text: str) -> tuple[float, float]:
    """The number and the half-width of its interval, of "98.7 ± 0.4", "0.67" or "above 0.9"."""
    mean, _, ci95 = text.removeprefix("above ").removeprefix("below ").partition(" ± ")
    return float(mean), float(ci95 or 0)


def text(result: Result) -> str:
    """The tables as Markdown: for each row ours, and below it the paper's; then the trainings, and what differs."""
    paper = PAPERS[result["paper"]]
    many = len(result["seeds"])
    here = f"the mean of {many} seeds ± its 95 % interval" if many > 1 else "one seed, ± the 95 % interval of its tasks"
    parts = [f"\n{paper.title}: {paper.link}", f"Here: {here}."]
    for table in result["tables"]:
        parts += [f"{table['title']}, after", markdown(_lines(paper, table, result["quick"]))]
    parts += ["Trainings:", markdown(_trainings(result))]
    return "\n\n".join([*parts, "What differs:\n\n" + "\n".join(f"- {each}" for each in paper.differs)])


def _lines(paper: Paper, table: Result, quick: bool) -> list[list[str]]:
    lines = [["", *(plural(k, "step") for k in paper.steps), "bar"]]
    for row in table["rows"]:
        here = {each["steps"]: _cell(each, table["score"]) for each in row["here"]}
        bar = row["bar"]
        met = f"{bar['said']}: {'met' if bar['met'] else 'missed'} ({bar['worst']:.3g})" if bar and not quick else ""
        lines.append([row["label"], *(here.get(k, "") for k in paper.steps), met])
        if row["published"]:
            lines.append(["– published", *(row["published"].get(k, "") for k in paper.steps), ""])
    return lines


def _cell(row: Row, score: str) -> str:
    lost = f" ({row['diverged']} diverged)" * bool(row["diverged"])
    return (f"{row[score]:.2f}" if score == "ratio" else cell(row[score], row["ci95"], score == "accuracy")) + lost


SHOWN = "method", "network", "norm", "ways", "inner_steps", "shots", "alpha", "inner", "outer", "tasks"


def _trainings(result: Result) -> list[list[str]]:
    names = [name for name in SHOWN if all(name in told["config"] for told in result["trainings"].values())]
    took = ["minutes"] * (not result["resumed"])  # of one that went on only the last part is known
    lines = [["", "iterations", "the paper's", *(name.replace("_", " ") for name in names), *took]]
    for name, told in result["trainings"].items():
        config, iterations = told["config"], f"{told['published_iterations']:,}"
        shown = (str(config[each]) for each in names)
        minutes = [f"{told['seconds'] / 60:.1f}" for _ in took]
        lines.append([name, f"{config['iterations']:,}", iterations, *shown, *minutes])
    return lines


def add_reproduce(commands: Any) -> None:
    """Add `reproduce PAPER` to argparse's subparsers."""
    parser = commands.add_parser("reproduce", help="repeat a paper's experiment", description=str(__doc__))
    names = parser.add_subparsers(dest="paper", required=True)
    root: Options = {"root": {"required": True, "metavar": "DIR", "help": characters.ARCHIVES}}
    for name, paper in PAPERS.items():
        about = paper.help, f"{paper.title}. {paper.link}", {**(root if paper.images else {}), **options}
        made: Any = ["reproduce.png"], f"runs/{name}-SEEDS", f"results, each θ, {name}.md", f"{name}.md"
        runs.add(names, Experiment(f"reproduce {name}", *about, partial(plan, paper), text, *made))
