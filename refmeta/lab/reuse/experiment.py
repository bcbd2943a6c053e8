"""Train MAML and ANIL, then measure what Raghu et al. 2020 did: the score with the first layers frozen at test; how
similar each layer is before and after adaptation, and between seeds; how far each layer moves; and on images the
accuracy without the head (NIL), after five ways of training.
"""

import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from textwrap import indent
from time import perf_counter
from typing import Any, NamedTuple

from refmeta.lab import fewshot, runs
from refmeta.lab.display import Row, bar, cell, plural, table
from refmeta.lab.fewshot import experiment as characters
from refmeta.lab.fewshot.images import Images
from refmeta.lab.reuse import measurements as measure
from refmeta.lab.runs import Experiment, Keep, Options, Plan, Result, Run, whole
from refmeta.lab.sine import experiment as waves
from refmeta.lab.training import NEVER, Report, optimiser
from refmeta.models import accuracy, squared_error
from refmeta.trees import Loss, Tasks

# 15 queries of a class, as the papers have for MiniImageNet: CCA needs far more samples than channels.
IMAGES: dict[str, Any] = {"test_queries": 15}
ALIKE = 50  # tasks of a seed for a mean similarity: it varies little, and is slow to compute
REGIMES = "maml", "anil", "multiclass", "multitask", "random features"
BOTH = {"maml": "maml", "anil": "anil"}
METHODS = {**BOTH, "multitask": "joint"}  # the paper's multitask training has one head for all tasks, as joint's
PAIRS = "maml–maml", "anil–anil", "anil–maml"
PAPER: dict[str, Any] = json.loads(Path(__file__).with_name("raghu2020.json").read_text(encoding="utf-8"))

DATA = "sine: waves; glyphs: invented characters; omniglot, folder: images in --root (default: glyphs)"
options: Options = {
    "data": {"choices": ["glyphs", "omniglot", "folder", "sine"], "default": "glyphs", "help": DATA},
    "root": fewshot.options["root"],
    "seeds": {"default": "0-1", "metavar": "A-B", "help": "two seeds or more (default: 0-1)"},
    "iterations": {"type": whole(1), "metavar": "N", "help": "of each training"},
    "ways": {"type": whole(2), "metavar": "N", "help": "classes in an episode of images (default: 5)"},
    "shots": {"type": whole(1), "metavar": "N", "help": "images of each class (default: 1) or points of a wave (10)"},
    "alpha": {"type": float, "help": "inner rate α, in training and at test (default: images 1, waves 0.01)"},
    "steps": {"type": whole(1), "default": 1, "metavar": "N", "help": "inner steps at test (default: 1)"},
    "quick": runs.QUICK,
}


# --- The trainings -----------------------------------------------------------------------------------


class Lab(NamedTuple):
    """The experiment on waves, or on images, as trainings and measurements use it."""

    Config: Any
    configure: Callable[..., Any]  # (method, quick, settings) -> Config
    network: Callable[[Any], tuple[Any, Loss]]  # of a Config
    run: Callable[..., Run]  # (the training's name, Config, seed, report, keep)
    tasks: Callable[[Any, int], Tasks]  # of a Config and a seed, unseen
    layers: Callable[[Any], measure.Layers]  # of a net, as `similarity` compares them
    score: Callable[[Any], measure.Score]  # of a net
    images: Any = None  # (Config) -> Images; waves have none, and no NIL


def of_waves(preset: str | None = None) -> Lab:
    """Sine waves. Their score is the loss."""
    configure, run = partial(waves.configure, preset=preset), lambda name, *given: waves.run(*given)
    return Lab(waves.Config, configure, waves.network, run, waves.unseen, attrgetter("layers"), squared_error)


def of_images(root: str | None) -> Lab:
    """Images of `root`, each data set read once. Of the logits, the mean over the classes is taken away."""
    load = cache(partial(characters.load, root))

    def images(config: Any) -> Images:
        return load(config.data, config.split, config.size)

    def configure(*given: Any) -> Any:
        config = characters.configure(*given)
        return characters.fitted(config, images(config))

    def run(name: str, config: Any, *given: Any) -> Run:
        train = classified if name == "multiclass" else characters.run
        return train(images(config), config, *given)

    def tasks(config: Any, seed: int) -> Tasks:
        return list(characters.test_episodes(config, images(config), seed))

    return Lab(characters.Config, configure, characters.network, run, tasks, measure.centred, accuracy, images)


def classified(images: Images, config: Any, seed: int, report: Report, keep: Keep | None = None) -> Run:
    """The training of an ordinary classifier, on as many images as the config's tasks have."""
    (net, _), seen = characters.network(config), config.tasks * config.ways * (config.shots + config.queries)
    outer, (_, start) = optimiser(config.outer, config.iterations), measure.for_all(net, images.train, seed)
    began, known = perf_counter(), {"experiment": "multiclass", "seed": seed, **asdict(config)}
    kept = keep({**known, "images": images.fingerprint()}, start, outer) if keep else NEVER
    more = {"report": report, "checkpoint": kept}
    _, theta = measure.multiclass(net, images.train, seen, config.iterations, outer, seed, **more)
    return Run(config, seed, theta, [], [], perf_counter() - began, "multiclass")


def plan(args: Namespace) -> Plan:
    """Every training of every seed; the measurements come after all of them."""
    seeds, waving = runs.seed_range(args.seeds), args.data == "sine"
    if len(seeds) < 2:
        raise ValueError(f"--seeds {args.seeds}: expected two or more, as 0-1, because their networks are compared")
    if waving and args.ways is not None:
        raise ValueError("--ways: only images have classes; --data sine has none")
    lab, methods, usual = (of_waves(), BOTH, {}) if waving else (of_images(args.root), METHODS, IMAGES)
    explicit = {**usual, **runs.given(args, lab.Config), "test_steps": (0, args.steps)}
    configs = {name: lab.configure(method, args.quick, explicit) for name, method in methods.items()}
    config = configs["maml"]
    trainings = configs if waving else {**configs, "multiclass": config}

    def summary(runs: dict[str, list[Run]]) -> Result:
        trained = {seed: {name: runs[name][i] for name in runs} for i, seed in enumerate(seeds)}
        return {
            "data": args.data,
            "seeds": seeds,
            "config": {name: asdict(each) for name, each in configs.items()},
            **_pooled([_measure(lab, config, seed, own) for seed, own in trained.items()]),
            "between": _between(lab, config, trained),
        }

    folder, how = f"runs/reuse-{args.data}-{args.seeds}", (lab.network, lab.run, summary, runs.drawing("reuse"))
    return Plan(folder, trainings, seeds, *how, record=lambda run: None)


# --- The measurements -------------------------------------------------------------------------------


def _measure(lab: Lab, config: Any, seed: int, trained: dict[str, Run]) -> dict[str, Any]:
    (net, loss), tasks, theta = lab.network(config), lab.tasks(config, seed), trained["maml"].theta
    few = loss, theta, tasks[:ALIKE], config.alpha
    with bar(4, f"measuring, seed {seed}") as move:
        rows: dict[str, Any] = {"frozen": measure.frozen(loss, theta, tasks, config.alpha, lab.score(net))}
        move(1, "similarity")
        rows["similarity"] = measure.similarity(lab.layers(net), *few)
        move(2, "distances")
        rows["moved"] = measure.moved(loss, theta, tasks, config.alpha)
        move(3, "NIL")
        if lab.images:
            rows["raw_logits"] = measure.similarity(lambda *at: net.layers(*at)[-1:], *few)
            thetas = {name: run.theta for name, run in trained.items()}
            thetas["random features"] = characters.initial(config, seed)
            nets = {name: (replace(net, classes=theta[-1].size), theta) for name, theta in thetas.items()}  # heads fit
            rows["regimes"] = measure.regimes({name: nets[name] for name in REGIMES}, tasks)
        move(4, "")
    return {**rows, "own": {name: _own(trained[name].curve[-1]) for name in BOTH}}


def _own(row: Row) -> Row:
    return {"mean" if key in ("accuracy", "mse") else key: value for key, value in row.items()}


def _between(lab: Lab, config: Any, trained: dict[int, dict[str, Run]]) -> dict[str, list[Row]]:
    """The similarity of two seeds' networks, the mean over neighbouring seeds."""
    layers = lab.layers(lab.network(config)[0])

    def alike(names: str, s: int, t: int) -> list[Row]:
        a, b = names.split("–")
        return measure.between(layers, trained[s][a].theta, trained[t][b].theta, lab.tasks(config, s)[:ALIKE])

    return {names: _pooled([alike(names, *seeds) for seeds in pairwise(trained)]) for names in PAIRS}


def _pooled(trees: list[Any]) -> Any:
    """The same measurements of several seeds as one: each mean the mean of theirs, its interval that over all tasks."""
    first = trees[0]
    if isinstance(first, list):
        return [_pooled(list(same)) for same in zip(*trees, strict=True)]
    if not isinstance(first, dict):
        return first
    if "mean" not in first:
        return {key: _pooled([tree[key] for tree in trees]) for key in first}
    mean, ci95, diverged = ([tree[key] for tree in trees] for key in ("mean", "ci95", "diverged"))
    pooled = {"mean": sum(mean) / len(trees), "ci95": sum(c**2 for c in ci95) ** 0.5 / len(trees)}
    return {**first, **pooled, "diverged": sum(diverged)}


# --- The text ---------------------------------------------------------------------------------------


def text(result: Result) -> str:
    """A table for each measurement, beside the paper's numbers where its tasks are of this kind."""
    config, images, rows = result["config"]["maml"], "regimes" in result, depths(result)
    steps, alike = plural(max(config["test_steps"]), "step"), plural(min(ALIKE, config["test_tasks"]), "task")
    shots, score = str(config["shots"]), "accuracy (%)" if images else "mean squared error"
    paper = PAPER["miniimagenet"].get(shots, {}) if images else {}
    omniglot = PAPER["omniglot"].get(shots) if result["data"] == "omniglot" else None
    parts = [
        f"{result['data']}, {len(result['seeds'])} seeds; ± is the 95 % interval over their {config['test_tasks']} "
        "unseen tasks each",
        *[f"paper: Raghu et al. 2020 on MiniImageNet, 5-way {shots}-shot, another network"] * bool(paper),
        f"\n1. {score} of MAML after {steps}, the first layers frozen at test",
        _table("frozen|here|paper", rows, _cells(result["frozen"], images), _known(paper, "frozen", rows)),
        f"\n2. similarity of MAML's layers before and after {steps}, and of two seeds' networks ({alike} a seed)",
        *_similarity(result, bool(paper)),
        f"\n3. how far MAML's layers move in {steps}: ‖φ − θ‖ / ‖θ‖",
        _table("layer|moved", layers(result), _cells(result["moved"])),
        *_trainings(result, paper, f"{score} after {steps}"),
        *[f"   paper, Omniglot 20-way {shots}-shot: {omniglot}"] * bool(omniglot),
        *["The means leave out the tasks that diverged; result.json counts them."] * _lost(result),
    ]
    return "\n".join(parts)


def _similarity(result: Result, paper: bool) -> list[str]:
    names, alike, pairs = layers(result), result["similarity"], result["between"]
    raw, seeds = result.get("raw_logits", []), PAPER["seeds"]  # waves have no logits
    indices = [(alike, key) for key in measure.INDICES] + [(pairs["maml–maml"], key) for key in seeds]
    found = [_cells([row[key] for row in rows]) for rows, key in indices]
    means = [[f"{fmean(row[key]['mean'] for row in body):.2f}" for *body, _ in pairs.values()] for key in seeds]
    known = [["> 0.9" * paper] * (len(names) - 1) + ["< 0.5" * paper]]
    theirs = [[index[pair] * paper for pair in PAIRS] for index in seeds.values()]
    return [
        _table("layer|CCA|PWCCA|CKA|CCA, seeds|CKA, seeds|paper's CCA", names, *found, *known),
        *[f"   head, raw logits: {_indices(row)}; softmax ignores what all classes share" for row in raw],
        "   between seeds, the mean over the body's layers",
        _table("|CCA|CKA|paper's CCA|CKA", PAIRS, *means, *theirs),
    ]


def _indices(row: Row) -> str:
    return ", ".join(f"{key.upper()} {cell(row[key]['mean'], row[key]['ci95'])}" for key in measure.INDICES)


def _trainings(result: Result, paper: Result, score: str) -> list[str]:
    own = dict(zip(result["own"], _cells(result["own"].values(), "regimes" in result), strict=True))
    if "regimes" not in result:
        return [f"\n{score}, each with its own inner loop: {', '.join(map(' '.join, own.items()))}"]
    rows = [row["regime"] for row in result["regimes"]]
    loops = [own.get(name, "") for name in rows], _known(paper, "own", rows)
    nil = _cells(result["regimes"], True), _known(paper, "nil", rows)
    title = "\n4. accuracy (%) by training, with its own inner loop and by NIL"
    return [title, _table("training|own|paper|NIL|paper", rows, *loops, *nil)]


def layers(result: Result) -> list[str]:
    return [*(f"layer {row['layer']}" for row in result["moved"][:-1]), "head"]


def depths(result: Result) -> list[str]:
    """The frozen layers, in words: none, 1, 1–2, …, body, all."""
    numbers = [str(n) if n == 1 else f"1–{n}" for n in range(1, len(result["frozen"]) - 2)]
    return ["none", *numbers, "body", "all"]


def _table(heads: str, *columns: Sequence[str]) -> str:
    return indent(table([heads.split("|"), *zip(*columns, strict=True)], gap="   "), "   ")


def _cells(rows: Iterable[Row], percent: bool = False) -> list[str]:
    return [cell(row["mean"], row["ci95"], percent) for row in rows]


def _known(paper: Result, what: str, names: list[str]) -> list[str]:
    return [str(paper.get(what, {}).get(name, "")) for name in names]


def _lost(tree: Any) -> bool:
    """Whether any task diverged in any measurement."""
    if isinstance(tree, dict):
        return bool(tree.get("diverged")) or _lost(list(tree.values()))
    return isinstance(tree, list) and any(map(_lost, tree))


HELP = "measure whether MAML learns rapidly or reuses its features"
FIGURES, FOLDER, FILES = ["reuse.png"], "runs/reuse-DATA-SEEDS", "result.json, each θ"
REUSE = Experiment("reuse", HELP, str(__doc__), options, plan, text, FIGURES, FOLDER, FILES)
