"""Train MAML and ANIL, then measure, as Raghu et al. 2020: the score with the first layers frozen at test; how alike
each layer is before and after adaptation, and between seeds; how far each layer moves; and, of images, the accuracy
without the head (NIL) after five ways of training.
"""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from textwrap import indent
from time import perf_counter
from typing import Any, NamedTuple

from refmeta.lab import fewshot
from refmeta.lab.checkpoint import Keep
from refmeta.lab.display import Row, cell, plural, table
from refmeta.lab.fewshot import experiment as characters
from refmeta.lab.reuse.measurements import Net, Score, between, frozen, moved, multiclass, regimes, similarity
from refmeta.lab.runs import QUICK, Experiment, Job, Options, Plan, Result, Run, given, progress, seed_range, whole
from refmeta.lab.sine import experiment as waves
from refmeta.lab.training import Report, optimiser
from refmeta.models import accuracy
from refmeta.trees import Loss, Tasks, Theta

# 15 queries of a class, as the papers have for MiniImageNet: CCA needs far more samples than channels.
IMAGES: dict[str, Any] = {"test_queries": 15}
ALIKE = 50  # tasks of a seed that a similarity is a mean over: it varies little, and takes its time
REGIMES = "maml", "anil", "multiclass", "multitask", "random features"

# Raghu et al. 2020 on MiniImageNet, 5-way, by shots: tables 1 (final version), 2 and 5, in per cent, without the
# numbers known from memory only. Then table 2, Omniglot 20-way; and table 3, the body's CCA and CKA between seeds.
PAPER: dict[int, dict[str, dict[str, float]]] = {
    1: {
        "frozen": {"none": 46.9, "1": 46.5, "1–2": 46.4, "1–3": 46.3, "body": 46.3},
        "own": {"maml": 46.9, "anil": 46.7},
        "nil": {"maml": 48.4, "anil": 48.0, "multiclass": 39.7, "multitask": 26.5, "random features": 32.9},
    },
    5: {
        "frozen": {"none": 63.1, "body": 61.0},
        "own": {"maml": 63.1, "anil": 61.5},
        "nil": {"maml": 61.5, "anil": 62.2, "multiclass": 54.4, "multitask": 34.2, "random features": 43.2},
    },
}
OMNIGLOT = {1: "MAML 93.7, ANIL 96.2, NIL 96.7", 5: "MAML 96.4, ANIL 98.0, NIL 98.0"}
SEEDS = {"maml–maml": (0.51, 0.83), "anil–anil": (0.51, 0.86), "anil–maml": (0.50, 0.83)}

options: Options = {
    "data": {"choices": ["glyphs", "omniglot", "sine"], "default": "glyphs", "help": "default: glyphs"},
    "root": fewshot.options["root"],
    "seeds": {"default": "0-1", "metavar": "A-B", "help": "two or more (default: 0-1)"},
    "iterations": {"type": whole(1), "metavar": "N", "help": "outer steps of each training"},
    "ways": {"type": whole(2), "metavar": "N", "help": "classes of a task (default: 5)"},
    "shots": {"type": whole(1), "metavar": "K", "help": "examples of a class, or of a wave (default: 1; 10)"},
    "steps": {"type": whole(1), "default": 1, "metavar": "N", "help": "at test (default: 1, as in training)"},
    "quick": QUICK,
}


# --- The trainings -----------------------------------------------------------------------------------


class Study(NamedTuple):
    """The trainings, and all that the measurements need; the score of waves is the loss."""

    configs: dict[str, Any]  # of each regime that is meta-trained
    trainings: Mapping[str, Callable[[int, Report, Keep | None], Run]]  # by regime, of a seed
    net: Net
    loss: Loss
    score: Score
    tasks: Callable[[int], Tasks]  # of a seed, unseen
    nets: dict[str, Net] = {}  # by regime, to ask NIL for labels; waves have none
    untrained: Callable[[int], Theta] = lambda seed: []  # the random features of a seed


def of_waves(args: Namespace) -> Study:
    """MAML and ANIL on sine waves. ValueError: an option that is impossible, or for images only."""
    if args.ways is not None:
        raise ValueError("--ways: waves have no classes; it is for glyphs and omniglot")
    explicit = {**given(args, waves.Config), "report_steps": (0, args.steps)}
    configs = {name: waves.configure(name, None, args.quick, explicit) for name in ("maml", "anil")}
    trainings = {name: partial(waves.run, config) for name, config in configs.items()}
    net, loss = waves.network(configs["maml"])
    return Study(configs, trainings, net, loss, loss, partial(waves.unseen, configs["maml"]))


def of_images(args: Namespace) -> Study:
    """The four ways of training on characters. ValueError: an option that is impossible."""
    explicit = {**IMAGES, **given(args, characters.Config), "report_steps": (0, args.steps)}
    # The paper's multitask training has one head for all tasks, as joint training has.
    methods = {"maml": "maml", "anil": "anil", "multitask": "joint"}
    configs = {name: characters.configure(method, args.quick, explicit) for name, method in methods.items()}
    config = configs["maml"]
    images = characters.load(args.data, config.size, args.root)
    characters.check_images(config, images)
    (net, loss), seen = characters.network(config), config.tasks * config.ways * (config.shots + config.queries)

    def classifier(seed: int, report: Report, keep: Keep | None) -> Run:
        """Trained on as many images as the others see."""
        outer = optimiser(config.outer, config.iterations)
        kept = characters.resumable_on(images, keep, "multiclass", config, seed)
        _, theta = multiclass(net, images.train, seen, config.iterations, outer, seed, report, kept)
        return Run(config, seed, theta, [], [], 0.0, "multiclass")

    trained = {name: partial(characters.run, images, each) for name, each in configs.items()}
    tasks, untrained = partial(characters.test_episodes, config, images), partial(characters.initial, config)
    nets = {**dict.fromkeys(REGIMES, net), "multiclass": replace(net, classes=len(images.train))}
    return Study(configs, {**trained, "multiclass": classifier}, net, loss, accuracy(net), tasks, nets, untrained)


def plan(args: Namespace) -> Plan:
    """Every training of every seed; the measurements come after all of them."""
    start, seeds = perf_counter(), seed_range(args.seeds)
    if len(seeds) < 2:
        raise ValueError(f"--seeds {args.seeds}: expected two or more, as 0-1: their networks are compared")
    study = of_waves(args) if args.data == "sine" else of_images(args)
    jobs = [
        Job(name, seed, f"{name}-{seed}", study.configs["maml"].iterations, study.net.names, partial(train, seed))
        for seed in seeds
        for name, train in study.trainings.items()
    ]

    def summary(runs: list[Run]) -> Result:
        every = iter(runs)
        trained = {seed: {name: next(every) for name in study.trainings} for seed in seeds}  # in the jobs' order
        return {
            "experiment": "reuse",
            "data": args.data,
            "seeds": seeds,
            "config": {name: asdict(each) for name, each in study.configs.items()},
            **_pooled([_measure(study, seed, runs) for seed, runs in trained.items()]),
            "between": _between(study, trained),
            "seconds": perf_counter() - start,
        }

    return Plan(f"runs/reuse-{args.data}-{args.seeds}", jobs, summary, draw, lambda run: None)


# --- The measurements -------------------------------------------------------------------------------


def _measure(study: Study, seed: int, trained: dict[str, Run]) -> dict[str, Any]:
    tasks, theta, alpha = study.tasks(seed), trained["maml"].theta, study.configs["maml"].alpha
    with progress(4, f"measuring, seed {seed}") as move:
        rows: dict[str, Any] = {"frozen": frozen(study.loss, theta, tasks, alpha, study.score)}
        move(1, "similarity")
        rows["similarity"] = similarity(study.net, study.loss, theta, tasks[:ALIKE], alpha)
        move(2, "distances")
        rows["moved"] = moved(study.loss, theta, tasks, alpha)
        move(3, "NIL")
        if study.nets:
            thetas = {**{name: run.theta for name, run in trained.items()}, "random features": study.untrained(seed)}
            rows["regimes"] = regimes({name: (net, thetas[name]) for name, net in study.nets.items()}, tasks)
        move(4, "")
    return {**rows, "own": {name: _own(trained[name].curve[-1]) for name in ("maml", "anil")}}


def _own(row: Row) -> Row:
    return {"mean" if key in ("accuracy", "mse") else key: value for key, value in row.items()}


def _between(study: Study, trained: dict[int, dict[str, Run]]) -> dict[str, list[Row]]:
    """The similarity of two seeds' networks, the mean over neighbouring seeds."""
    rows = {}
    for names in SEEDS:
        a, b = names.split("–")
        pairs = [(trained[s][a].theta, trained[t][b].theta, study.tasks(s)[:ALIKE]) for s, t in pairwise(trained)]
        rows[names] = _pooled([between(study.net, *pair) for pair in pairs])
    return rows


def _pooled(trees: list[Any]) -> Any:
    """The same measurements of several seeds as one: each mean the mean of theirs, its interval that over all tasks."""
    first = trees[0]
    if isinstance(first, list):
        return [_pooled(list(same)) for same in zip(*trees, strict=True)]
    if not isinstance(first, dict):
        return first
    if "mean" not in first:
        return {key: _pooled([tree[key] for tree in trees]) for key in first}
    n = len(trees)
    mean, ci95 = sum(tree["mean"] for tree in trees) / n, sum(tree["ci95"] ** 2 for tree in trees) ** 0.5 / n
    return {**first, "mean": mean, "ci95": ci95, "diverged": sum(tree["diverged"] for tree in trees)}


# --- The text ---------------------------------------------------------------------------------------


def text(result: Result) -> str:
    """A table for each measurement, beside the paper's numbers where its tasks are of this kind."""
    config, images = result["config"]["maml"], "regimes" in result
    steps, alike = plural(max(config["report_steps"]), "step"), plural(min(ALIKE, config["test_tasks"]), "task")
    paper = PAPER.get(config["shots"], {}) if images else {}
    score = "accuracy (%)" if images else "mean squared error"
    parts = [
        f"{result['data']}, {len(result['seeds'])} seeds; ± is the 95 % interval over their {config['test_tasks']} "
        "unseen tasks each",
        *[f"paper: Raghu et al. 2020 on MiniImageNet, 5-way {config['shots']}-shot, another network"] * bool(paper),
        f"\n1. {score} of MAML after {steps}, the first layers frozen at test",
        _table(_frozen(result, images, paper)),
        f"\n2. similarity of MAML's layers before and after {steps}, and of two seeds' networks ({alike} a seed)",
        _table(_similarity(result, bool(paper))),
        "   between seeds, the mean over the body's layers",
        _table(_seeds(result["between"], bool(paper))),
        f"\n3. how far MAML's layers move in {steps}: ‖φ − θ‖ / ‖θ‖",
        _table([["layer", "moved"], *zip(layers(result), map(_cell, result["moved"]), strict=True)]),
    ]
    if images:
        parts += ["\n4. accuracy (%) by training, with its own inner loop and by NIL", _table(_regimes(result, paper))]
    else:
        own = ", ".join(f"{name} {_cell(row)}" for name, row in result["own"].items())
        parts.append(f"\n{score} after {steps}, each with its own inner loop: {own}")
    if result["data"] == "omniglot" and config["shots"] in OMNIGLOT:
        parts.append(f"   paper, Omniglot 20-way {config['shots']}-shot: {OMNIGLOT[config['shots']]}")
    return "\n".join(
        parts + ["Tasks that diverged are left out of the means; result.json counts them."] * _lost(result)
    )


Lines = list[Sequence[str]]
Paper = dict[str, dict[str, float]]


def _frozen(result: Result, images: bool, paper: Paper) -> Lines:
    known = paper.get("frozen", {})
    rows = zip(depths(result), result["frozen"], strict=True)
    return [["frozen", "here", "paper"], *([n, _cell(row, images), str(known.get(n, ""))] for n, row in rows)]


def _similarity(result: Result, paper: bool) -> Lines:
    lines: Lines = [["layer", "CCA", "PWCCA", "CKA", "CCA, seeds", "CKA, seeds", "paper's CCA"]]
    for name, row, other in zip(layers(result), result["similarity"], result["between"]["maml–maml"], strict=True):
        cells = [row["cca"], row["pwcca"], row["cka"], other["cca"], other["cka"]]
        lines.append([name, *map(_cell, cells), ("< 0.5" if name == HEAD else "> 0.9") * paper])
    return lines


def _seeds(between: dict[str, list[Row]], paper: bool) -> Lines:
    lines: Lines = [["", "CCA", "CKA", "paper's CCA", "CKA"]]
    for pair, (*body, _) in between.items():
        means = [sum(row[index]["mean"] for row in body) / len(body) for index in ("cca", "cka")]
        lines.append([pair, *(f"{mean:.2f}" for mean in means), *(f"{known:.2f}" * paper for known in SEEDS[pair])])
    return lines


def _regimes(result: Result, paper: Paper) -> Lines:
    own, nil = paper.get("own", {}), paper.get("nil", {})
    lines: Lines = [["training", "own", "paper", "NIL", "paper"]]
    for row in result["regimes"]:
        name = row["regime"]
        loop = _cell(result["own"][name], True) if name in result["own"] else ""
        lines.append([name, loop, str(own.get(name, "")), _cell(row, True), str(nil.get(name, ""))])
    return lines


HEAD = "head"


def layers(result: Result) -> list[str]:
    return [*(f"layer {row['layer']}" for row in result["moved"][:-1]), HEAD]


def depths(result: Result) -> list[str]:
    """The frozen layers, in words: none, 1, 1–2, …, body, all."""
    numbers = [str(n) if n == 1 else f"1–{n}" for n in range(1, len(result["frozen"]) - 2)]
    return ["none", *numbers, "body", "all"]


def _table(lines: Lines) -> str:
    return indent(table(lines, gap="   "), "   ")


def _cell(row: Row, percent: bool = False) -> str:
    return cell(row["mean"], row["ci95"], percent)


def _lost(tree: Any) -> bool:
    """Whether a task diverged in any of the measurements."""
    if isinstance(tree, list):
        return any(map(_lost, tree))
    return isinstance(tree, dict) and (bool(tree.get("diverged")) or any(map(_lost, tree.values())))


def draw(folder: Path, result: Result, runs: list[Run]) -> None:
    from refmeta.lab.reuse import figures

    figures.draw(folder, result, runs)


HELP = "ask whether MAML learns rapidly or reuses its features"
FIGURES, FOLDER, FILES = ["reuse.png"], "runs/reuse-DATA-SEEDS", "result.json, each θ"
REUSE = Experiment("reuse", HELP, str(__doc__), options, plan, text, FIGURES, FOLDER, FILES)
