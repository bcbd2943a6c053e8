"""`refmeta reuse`: MAML and ANIL trained, then asked what Raghu et al. 2020 asked: rapid learning, or feature reuse?"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, cast

from refmeta.lab import experiment
from refmeta.lab.checkpoint import Keep
from refmeta.lab.command import add_folder, keeping, own_folder, plural, progress, seed_range, stopped, whole
from refmeta.lab.files import save_result, save_theta
from refmeta.lab.fewshot import experiment as fewshot
from refmeta.lab.fewshot.images import Images
from refmeta.lab.reuse.measurements import Net, Row, Score, between, frozen, moved, multiclass, regimes, similarity
from refmeta.lab.training import Diverged, Interrupted
from refmeta.models import ConvNet, accuracy
from refmeta.trees import Loss, Tasks, Theta

# 15 queries of a class, as the papers have for MiniImageNet: CCA needs far more samples than channels.
IMAGES: dict[str, Any] = {"test_queries": 15}
ALIKE = 50  # tasks of a seed that a similarity is a mean over: it varies little, and takes its time
REGIMES = "maml", "anil", "multiclass", "multitask", "random features"

# Raghu et al. 2020 on MiniImageNet, 5-way, by shots: tables 1 (final version), 2 and 5, in per cent; what is missing
# here is known from memory only. Then table 2, Omniglot 20-way; and table 3, the body's CCA and CKA between seeds.
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


Trained = dict[str, tuple[Net, Theta]]  # by regime


class Study(NamedTuple):
    """What is trained, and what the measurements need of it; waves have no images, and their score is the loss."""

    configs: dict[str, Any]  # of each regime that is meta-trained
    net: Net
    loss: Loss
    score: Score
    run: Callable[[Any, int, Any, Keep | None], Any]  # (config, seed, report, keep) to a Run
    tasks: Callable[[int], Tasks]  # of a seed, unseen
    images: Images | None = None


def add_reuse(commands: Any) -> None:
    """Declare the command on argparse's subparsers."""
    parser = commands.add_parser(
        "reuse",
        help="ask whether MAML learns rapidly or reuses its features",
        description="Train MAML and ANIL, then measure, as Raghu et al. 2020: the score with the first layers frozen "
        "at test; how alike each layer is before and after adaptation, and between seeds; how far each layer moves; "
        "and, of images, the accuracy without the head (NIL) after five ways of training.",
    )
    parser.set_defaults(run=reuse)
    parser.add_argument("--data", choices=["glyphs", "omniglot", "sine"], default="glyphs", help="default: glyphs")
    parser.add_argument("--root", metavar="DIR", help="the folder with Omniglot's two archives, or both unpacked")
    parser.add_argument("--seeds", default="0-1", metavar="A-B", help="two or more (default: 0-1)")
    parser.add_argument("--iterations", type=whole(1), metavar="N", help="outer steps of each training")
    parser.add_argument("--ways", type=whole(2), metavar="N", help="classes of a task (default: 5)")
    parser.add_argument(
        "--shots", type=whole(1), metavar="K", help="examples of a class, or of a wave (default: 1; 10)"
    )
    parser.add_argument("--steps", type=whole(1), default=1, metavar="N", help="at test (default: 1, as in training)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    add_folder(parser, "runs/reuse-DATA-SEEDS")


def reuse(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    start, seeds = perf_counter(), seed_range(args.seeds)
    if len(seeds) < 2:
        raise ValueError(f"--seeds {args.seeds}: expected two or more, as 0-1: their networks are compared")
    given = {name: getattr(args, name) for name in ("iterations", "ways", "shots") if getattr(args, name) is not None}
    given["report_steps"] = 0, args.steps
    study = _of_waves(args.quick, given) if args.data == "sine" else _of_images(args, given)
    config, names = study.configs["maml"], [*study.configs, *["multiclass"] * bool(study.images)]
    trained: dict[int, Trained] = {seed: {} for seed in seeds}
    measured = []
    places = [f"{name}-{seed}" for seed in seeds for name in names]
    with own_folder(args, f"runs/reuse-{args.data}-{args.seeds}", places) as folder:
        for seed in seeds:
            own = {}
            for name in names:
                place = folder / f"{name}-{seed}"
                keep = keeping(args, place)
                try:
                    with progress(config.iterations, f"{name}, seed {seed}") as move:
                        net, theta, own[name] = _train(
                            study, name, seed, lambda i, loss: move(i + 1, f"loss {loss:.3f}"), keep
                        )
                except (Diverged, Interrupted) as error:
                    return stopped(f"reuse: {name}, seed {seed}", folder, place, study.net.names, error)
                place.mkdir(exist_ok=True)
                save_theta(place / "theta.npz", net.names, theta)
                trained[seed][name] = net, theta
            if study.images:
                trained[seed]["random features"] = study.net, fewshot.initial(config, seed)
            rows = _measure(study, trained[seed], seed)
            measured.append({**rows, "own": {name: own[name] for name in ("maml", "anil")}})
        result = {**_pooled(measured), "between": _between(study, trained)}
        save_result(
            folder / "result.json",
            {
                "experiment": "reuse",
                "data": args.data,
                "seeds": seeds,
                "config": {name: asdict(each) for name, each in study.configs.items()},
                **result,
                "seconds": perf_counter() - start,
            },
        )
        print(_text(result, config, args.data, len(seeds)))
        print(f"\n{folder}: result.json, each θ{_figure(folder, result, config)}")
    return 0


# --- What is trained --------------------------------------------------------------------------------


def _of_waves(quick: bool, given: dict[str, Any]) -> Study:
    if "ways" in given:
        raise ValueError("--ways: waves have no classes; it is for glyphs and omniglot")
    configs = {name: experiment.configure(name, None, quick, given) for name in ("maml", "anil")}
    net, loss = experiment.network(configs["maml"])
    return Study(configs, net, loss, loss, experiment.run, lambda seed: experiment.unseen(configs["maml"], seed))


def _of_images(args: argparse.Namespace, given: dict[str, Any]) -> Study:
    # The paper's multitask training has one head for all tasks, as joint training has.
    methods = {"maml": "maml", "anil": "anil", "multitask": "joint"}
    settings = {**IMAGES, **given, "data": args.data}
    configs = {name: fewshot.configure(method, args.quick, settings) for name, method in methods.items()}
    config = configs["maml"]
    images = fewshot.load(args.data, config.size, args.root)
    fewshot.check_images(config, images)
    net, loss = fewshot.network(config)

    def run(config: fewshot.Config, seed: int, report: Any, keep: Keep | None) -> experiment.Run:
        return fewshot.run(config, images, seed, report, keep)

    def tasks(seed: int) -> Tasks:
        return fewshot.test_episodes(config, images, seed)

    return Study(configs, net, loss, accuracy(net), run, tasks, images)


def _train(study: Study, name: str, seed: int, report: Any, keep: Keep | None) -> tuple[Net, Theta, Row]:
    """A regime's network, its θ, and what its own inner loop makes of the unseen tasks."""
    if name == "multiclass" and study.images:
        config = study.configs["maml"]
        images = config.tasks * config.ways * (config.shots + config.queries)  # as many as the others see
        outer = experiment.optimiser(config.outer, config.iterations)
        survive = fewshot.surviving_on(study.images, keep, name, config, seed)
        net = cast(ConvNet, study.net)
        wide = multiclass(net, study.images.train, images, config.iterations, outer, seed, report, survive)
        return *wide, {}
    run = study.run(study.configs[name], seed, report, keep)
    last = run.curve[-1]
    return study.net, run.theta, {"mean" if key in ("accuracy", "mse") else key: last[key] for key in last}


# --- What is measured -------------------------------------------------------------------------------


def _measure(study: Study, trained: Trained, seed: int) -> dict[str, Any]:
    tasks, theta, alpha = study.tasks(seed), trained["maml"][1], study.configs["maml"].alpha
    with progress(4, f"measuring, seed {seed}") as move:
        rows = {"frozen": frozen(study.loss, theta, tasks, alpha, study.score)}
        move(1, "similarity")
        rows["similarity"] = similarity(study.net, study.loss, theta, tasks[:ALIKE], alpha)
        move(2, "distances")
        rows["moved"] = moved(study.loss, theta, tasks, alpha)
        move(3, "NIL")
        if study.images:
            rows["regimes"] = regimes({name: trained[name] for name in REGIMES}, tasks)
        move(4, "")
    return rows


def _between(study: Study, trained: dict[int, Trained]) -> dict[str, list[Row]]:
    """The similarity of two seeds' networks, the mean over neighbouring seeds."""
    rows = {}
    for names in SEEDS:
        a, b = names.split("–")
        pairs = [(trained[s][a][1], trained[t][b][1], study.tasks(s)[:ALIKE]) for s, t in pairwise(trained)]
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


# --- What is printed --------------------------------------------------------------------------------


def _text(result: dict[str, Any], config: Any, data: str, seeds: int) -> str:
    images, steps = data != "sine", plural(max(config.report_steps), "step")
    paper = PAPER.get(config.shots) if images else None
    alike = plural(min(ALIKE, config.test_tasks), "task")
    score = "accuracy (%)" if images else "mean squared error"
    parts = [f"{data}, {seeds} seeds; ± is the 95 % interval over their {config.test_tasks} unseen tasks each"]
    if paper:
        parts.append(f"paper: Raghu et al. 2020 on MiniImageNet, 5-way {config.shots}-shot, another network")
    parts += [
        f"\n1. {score} of MAML after {steps}, the first layers frozen at test",
        _frozen(result, images, paper),
        f"\n2. similarity of MAML's layers before and after {steps}, and of two seeds' networks ({alike} a seed)",
        _similarity(result, bool(paper)),
        "   between seeds, the mean over the body's layers",
        _between_table(result["between"], bool(paper)),
        f"\n3. how far MAML's layers move in {steps}: ‖φ − θ‖ / ‖θ‖",
        _table(
            [["layer", "moved"]] + [[n, _cell(row)] for n, row in zip(layers(result), result["moved"], strict=True)]
        ),
    ]
    if images:
        parts += ["\n4. accuracy (%) by training, with its own inner loop and by NIL", _regimes(result, paper)]
    else:
        own = ", ".join(f"{name} {_cell(row)}" for name, row in result["own"].items())
        parts.append(f"\n{score} after {steps}, each with its own inner loop: {own}")
    if data == "omniglot" and config.shots in OMNIGLOT:
        parts.append(f"   paper, Omniglot 20-way {config.shots}-shot: {OMNIGLOT[config.shots]}")
    return "\n".join(
        parts + ["Tasks that diverged are left out of the means; result.json counts them."] * _lost(result)
    )


Paper = dict[str, dict[str, float]] | None


def _frozen(result: dict[str, Any], images: bool, paper: Paper) -> str:
    known = paper["frozen"] if paper else {}
    rows = zip(depths(result), result["frozen"], strict=True)
    return _table([["frozen", "here", "paper"]] + [[n, _cell(row, images), str(known.get(n, ""))] for n, row in rows])


def _similarity(result: dict[str, Any], paper: bool) -> str:
    lines = [["layer", "CCA", "PWCCA", "CKA", "CCA, seeds", "CKA, seeds", "paper's CCA"]]
    for name, row, other in zip(layers(result), result["similarity"], result["between"]["maml–maml"], strict=True):
        cells = [row["cca"], row["pwcca"], row["cka"], other["cca"], other["cka"]]
        known = ("< 0.5" if name == "head" else "> 0.9") * paper
        lines.append([name, *map(_cell, cells), known])
    return _table(lines)


def _between_table(between: dict[str, list[Row]], paper: bool) -> str:
    lines = [["", "CCA", "CKA", "paper's CCA", "CKA"]]
    for pair, (*body, _) in between.items():
        means = [sum(row[index]["mean"] for row in body) / len(body) for index in ("cca", "cka")]
        lines.append([pair, *(f"{mean:.2f}" for mean in means), *(f"{known:.2f}" * paper for known in SEEDS[pair])])
    return _table(lines)


def _regimes(result: dict[str, Any], paper: Paper) -> str:
    own, nil = (paper["own"], paper["nil"]) if paper else ({}, {})
    lines = [["training", "own", "paper", "NIL", "paper"]]
    for row in result["regimes"]:
        name = row["regime"]
        loop = _cell(result["own"][name], True) if name in result["own"] else ""
        lines.append([name, loop, str(own.get(name, "")), _cell(row, True), str(nil.get(name, ""))])
    return _table(lines)


def layers(result: dict[str, Any]) -> list[str]:
    return [*(f"layer {row['layer']}" for row in result["moved"][:-1]), "head"]


def depths(result: dict[str, Any]) -> list[str]:
    """What is frozen, in words: none, 1, 1–2, …, body, all."""
    numbers = [str(n) if n == 1 else f"1–{n}" for n in range(1, len(result["frozen"]) - 2)]
    return ["none", *numbers, "body", "all"]


def _table(lines: list[list[str]]) -> str:
    """Lines of cells, to the right; a column without a cell below its head is left out."""
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [[c.rjust(w) for c, w in zip(line, widths, strict=True)] for line in zip(*columns, strict=True)]
    return "\n".join("   " + "   ".join(line).rstrip() for line in lines)


def _cell(row: Row, percent: bool = False) -> str:
    return f"{100 * row['mean']:.1f} ± {100 * row['ci95']:.1f}" if percent else f"{row['mean']:.3f} ± {row['ci95']:.3f}"


def _lost(tree: Any) -> bool:
    if isinstance(tree, list):
        return any(map(_lost, tree))
    return isinstance(tree, dict) and (bool(tree.get("diverged")) or any(map(_lost, tree.values())))


def _figure(folder: Path, result: dict[str, Any], config: Any) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return "; for the figure too: pip install 'refmeta[lab]'"
    from refmeta.lab.reuse import figures

    figures.reuse(folder / "reuse.png", result, config)
    return ", reuse.png"
