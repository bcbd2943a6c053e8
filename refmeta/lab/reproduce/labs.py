"""Run the papers' trainings, and compute each row of their tables from a trained θ."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from refmeta import algorithms
from refmeta.fast import recorded, stacked
from refmeta.lab.display import Curve
from refmeta.lab.fewshot import experiment as characters
from refmeta.lab.fewshot.images import Images, episode
from refmeta.lab.reproduce.papers import Row
from refmeta.lab.reuse import experiment as reuse
from refmeta.lab.reuse import measurements as measure
from refmeta.lab.runs import Run, test_alpha
from refmeta.lab.sine import experiment as waves
from refmeta.lab.training import trajectory_of_head
from refmeta.models import accuracy
from refmeta.trees import Tasks


class Lab(NamedTuple):
    """An experiment, as all of its trainings use it."""

    configure: Callable[[bool, dict[str, Any]], Any]  # (quick, a training's settings) -> Config
    network: Callable[[Any], Any]
    run: Callable[..., Run]  # (the training's name, config, seed, report, keep)
    read: Callable[[Row, Run], Curve]  # what a row of the table says of a run


def of_waves(args: Namespace) -> Lab:
    def configure(quick: bool, settings: dict[str, Any]) -> waves.Config:
        return waves.configure(settings["method"], args.paper, quick, settings)

    def read(row: Row, run: Run) -> Curve:
        return waves.tested(replace(run.config, **row.test), run.theta, run.seed) if row.test else run.curve

    return Lab(configure, waves.network, lambda name, *given: waves.run(*given), read)


def of_characters(args: Namespace) -> Lab:
    @cache
    def of_split(split: str, size: int) -> Images:
        return characters.load(characters.Config(data="omniglot", split=split, size=size), args.root)

    def of(config: Any) -> Images:
        return of_split(config.split, config.size)

    def configure(quick: bool, settings: dict[str, Any]) -> characters.Config:
        config = characters.configure(settings["method"], quick, {"data": "omniglot", **settings})
        return characters.fitted(config, of(config))

    def run(name: str, config: Any, *given: Any) -> Run:
        train = reuse.classified if name == "multiclass" else characters.run
        return train(of(config), config, *given)

    def read(row: Row, run: Run) -> Curve:
        if row.read in ("", "together"):  # all queries in one batch, see `fewshot.accuracies`
            return [each for each in run.curve if ("method" in each) == bool(row.read)]
        return READS[row.read](of(run.config), run)

    return Lab(configure, characters.network, run, read)


LABS = {"sine": of_waves, "omniglot": of_characters}


# --- What can be read from a θ trained on characters -------------------------------------------------


def _episodes(images: Images, run: Run) -> Tasks:
    return list(characters.test_episodes(run.config, images, run.seed))


def _row(run: Run, row: dict[str, Any], score: str = "accuracy") -> Curve:
    kept = {score if key == "mean" else key: row[key] for key in ("mean", "ci95", "diverged")}
    return [{"steps": max(run.config.test_steps), **kept}]


def pixels(images: Images, run: Run) -> Curve:
    """The nearest neighbour's accuracy, without a network."""
    return characters.by_pixels(_episodes(images, run))


def frozen(images: Images, run: Run) -> Curve:
    """The accuracy with the body frozen at test."""
    net, loss = characters.network(run.config)
    tasks, alpha = _episodes(images, run), test_alpha(run.config)
    return _row(run, measure.frozen(loss, run.theta, tasks, alpha, accuracy(net))[-2])


def nil(images: Images, run: Run) -> Curve:
    """The accuracy without a head. After multiclass training the head is wider: one output for each class."""
    net, classes = characters.network(run.config)[0], run.theta[-1].size
    return _row(run, measure.regimes({"": (replace(net, classes=classes), run.theta)}, _episodes(images, run))[0])


def random_features(images: Images, run: Run) -> Curve:
    """`nil` of θ before training."""
    return nil(images, run._replace(theta=characters.initial(run.config, run.seed)))


def _alike(images: Images, run: Run, part: slice) -> Curve:
    """The lowest CCA before and after adaptation among these layers."""
    net, loss = characters.network(run.config)
    layers, tasks = measure.centred(net), _episodes(images, run)[: reuse.ALIKE]
    found = measure.similarity(lambda *at: layers(*at)[part], loss, run.theta, tasks, test_alpha(run.config))
    return _row(run, min((row["cca"] for row in found), key=lambda row: row["mean"]), "cca")


def body(images: Images, run: Run) -> Curve:
    """The lowest CCA before and after adaptation among the body's layers."""
    return _alike(images, run, slice(-1))


def head(images: Images, run: Run) -> Curve:
    """The CCA of the head's logits before and after adaptation."""
    return _alike(images, run, slice(-1, None))


def economy(images: Images, run: Run) -> Curve:
    """MAML's time over ANIL's for the gradient of an outer step."""
    config, rng = run.config, np.random.default_rng(0)
    shape = config.ways, config.shots, config.queries, config.inner_steps
    tasks = [episode(rng, images.train, *shape) for _ in range(config.tasks)]
    return _ratio(run, stacked(algorithms.maml), stacked(algorithms.anil), tasks)


def economy_at_test(images: Images, run: Run) -> Curve:
    """MAML's time over ANIL's for adapting to one episode."""
    supports, _ = _episodes(images, run)[0]
    return _ratio(run, algorithms.trajectory, trajectory_of_head(2), supports)


def _ratio(run: Run, one: Callable[..., Any], other: Callable[..., Any], data: Any) -> Curve:
    """The median ratio of the times of two functions of the same tasks or supports, recorded and called in turn."""
    (_, loss), pair = characters.network(run.config), (recorded(one), recorded(other))

    def seconds(function: Callable[..., Any]) -> float:
        start = perf_counter()
        function(loss, run.theta, data, run.config.alpha)
        return perf_counter() - start

    times = [[seconds(function) for function in pair] for _ in range(PAIRS)]
    ratios = [a / b for a, b in times[PAIRS // 4 :]]  # without the first, which record
    return _row(run, {"mean": median(ratios), "ci95": 0.0, "diverged": 0}, "ratio")


PAIRS = 40
EVERY = pixels, frozen, nil, random_features, body, head, economy, economy_at_test
READS: dict[str, Callable[[Images, Run], Curve]] = {each.__name__.replace("_", " "): each for each in EVERY}
