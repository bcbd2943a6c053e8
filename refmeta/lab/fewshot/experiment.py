"""Few-shot classification of characters: the settings, one run of one method, and what it is measured against."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

import autograd.numpy as np
import numpy

from refmeta import algorithms
from refmeta.checks import check_alpha
from refmeta.fast import recorded, stacked
from refmeta.fast.stacked import copies, stack
from refmeta.lab.checkpoint import Keep, surviving
from refmeta.lab.experiment import METHODS, Run, optimiser
from refmeta.lab.fewshot import images as sources
from refmeta.lab.fewshot.episodes import Task, episode, minibatches, nearest_neighbour
from refmeta.lab.fewshot.images import Images
from refmeta.lab.optimisers import Step
from refmeta.lab.training import Trajectory, summary, train, trajectory_of_head
from refmeta.models import MLP, ConvNet, cross_entropy
from refmeta.trees import Array, Loss, Tasks, Theta


@dataclass(frozen=True)
class Config:
    """Everything that determines a run, but for its seed and the images."""

    method: str = "maml"
    data: str = "glyphs"
    ways: int = 5
    shots: int = 1
    queries: int = 1  # of each class in training
    inner_steps: int = 1
    alpha: float = 1.0
    outer: str = "adam:0.002:linear"
    tasks: int = 16
    iterations: int = 1000
    network: str = "conv"
    filters: tuple[int, ...] = (32, 32, 32, 32)
    size: int = 28
    batch: int = 2  # of each class at an inner step of Reptile's training
    test_queries: int = 5
    test_tasks: int = 600
    report_steps: tuple[int, ...] = (0, 1, 5, 10)


QUICK: dict[str, Any] = {"iterations": 150, "tasks": 4, "filters": (8, 8), "size": 14, "test_tasks": 60}
# One inner step of Reptile would be joint training, so Reptile has defaults of its own.
REPTILE: dict[str, Any] = {"inner_steps": 5, "alpha": 0.2, "outer": "sgd:1:linear", "tasks": 8}


def configure(method: str, quick: bool, explicit: dict[str, Any]) -> Config:
    """The settings of one method: the defaults, the method's, --quick's, then the caller's.

    ValueError: a setting that is impossible, or does not fit the method.
    """
    settings = {**(REPTILE if method == "reptile" else {}), **(QUICK if quick else {}), **explicit, "method": method}
    config = Config(**settings)
    check_alpha(config.alpha)
    optimiser(config.outer, config.iterations)
    if config.ways < 2:
        raise ValueError(f"ways {config.ways}: expected at least two classes to tell apart")
    if config.network == "mlp" and "filters" in explicit:
        raise ValueError("filters: only the network conv has them, not mlp")
    if method == "reptile" and not config.inner_steps:
        raise ValueError("inner-steps 0: reptile needs at least one inner step")
    network(config)
    return config


def load(data: str, size: int, root: str | None) -> Images:
    """The images of `data`. ValueError: omniglot without its folder, or what `omniglot` says."""
    if data == "glyphs":
        if root is not None:
            raise ValueError(f"--root {root}: only --data omniglot reads it")
        return sources.glyphs(size)
    if root is None:
        raise ValueError(
            "--data omniglot: name with --root the folder that holds images_background.zip and images_evaluation.zip; "
            f"they are at {sources.SOURCE}"
        )
    return sources.omniglot(root, size)


def check_images(config: Config, images: Images) -> None:
    """ValueError: more ways than classes, or a class with fewer images than an episode takes."""
    steps = config.inner_steps if config.method == "reptile" else 1
    shots = config.batch * steps if config.method == "reptile" else config.shots
    for part, classes, needed in (
        ("training", images.train, shots + config.queries),
        ("test", images.test, config.shots + config.test_queries),
    ):
        if config.ways > len(classes):
            raise ValueError(f"ways {config.ways}: {config.data} has {len(classes)} {part} classes; ask for fewer ways")
        fewest = min(range(len(classes)), key=lambda c: len(classes[c]))
        if needed > len(classes[fewest]):
            raise ValueError(
                f"{config.method} takes {needed} images of a class for support and query; {part} class {fewest} of "
                f"{config.data} has {len(classes[fewest])}: ask for fewer shots, queries or inner steps"
            )


class FlatMLP(MLP):
    """An MLP of images (…, n, h, w, 1), each a row of its pixels."""

    def layers(self, theta: Theta, x: Array) -> list[Array]:
        return super().layers(theta, np.reshape(x, (*np.shape(x)[:-3], -1)))


def network(config: Config) -> tuple[ConvNet | FlatMLP, Loss]:
    """conv: 3×3 convolutions of stride 2; mlp: Finn et al. 2017's 256, 128, 64, 64; without batch normalisation."""
    net: ConvNet | FlatMLP
    if config.network == "mlp":
        net = FlatMLP((config.size**2, 256, 128, 64, 64, config.ways), activation="relu")
    else:
        net = ConvNet((config.size, config.size, 1), config.filters, config.ways)
    return net, cross_entropy(net)


def inner_loop(config: Config) -> Trajectory:
    """How a method adapts, in training and in testing: ANIL moves the head alone."""
    return trajectory_of_head(2) if config.method == "anil" else algorithms.trajectory


def initial(config: Config, seed: int) -> Theta:
    """θ before training, in float32: the same for every method of a seed."""
    return network(config)[0].init(numpy.random.default_rng([seed, 2**32]), dtype=numpy.float32)


def run(config: Config, images: Images, seed: int, report: Any, keep: Keep | None = None) -> Run:
    """Meta-train one method on the training classes and evaluate it on the test classes, as `experiment.run`."""
    began = perf_counter()
    check_images(config, images)
    _, loss = network(config)
    start, outer = initial(config, seed), optimiser(config.outer, config.iterations)

    def sample(rng: numpy.random.Generator) -> Tasks:
        return [_training_episode(rng, config, images) for _ in range(config.tasks)]

    theta, history = train(
        recorded(stacked(METHODS[config.method])),
        loss,
        start,
        sample,
        config.alpha,
        config.iterations,
        outer,
        seed,
        report,
        recorded(inner_loop(config)),
        **surviving_on(images, keep, "fewshot", config, seed)(start, outer),
    )
    curve = accuracies(config, theta, test_episodes(config, images, seed))
    return Run(config, seed, theta, history, curve, perf_counter() - began, "fewshot")


def surviving_on(
    images: Images, keep: Keep | None, experiment: str, config: Config, seed: int
) -> Callable[[Theta, Step], dict[str, Any]]:
    """`surviving` for θ and the outer step of a training on these images: another folder's are other settings."""
    settings = {"experiment": experiment, "seed": seed, **asdict(config)}
    return partial(surviving, keep, {**settings, "images": sources.fingerprint(images)} if keep else settings)


def _training_episode(rng: numpy.random.Generator, config: Config, images: Images) -> Task:
    """Reptile sees no query, so it learns to generalise from inner steps on different images."""
    if config.method == "reptile":
        return minibatches(rng, images.train, config.ways, config.batch, config.queries, config.inner_steps)
    return episode(rng, images.train, config.ways, config.shots, config.queries, config.inner_steps)


def test_episodes(config: Config, images: Images, seed: int) -> Tasks:
    """The episodes of unseen classes that every method of a seed is tested on."""
    streams = (numpy.random.default_rng([seed, 2**33, i]) for i in range(config.test_tasks))
    steps = max(config.report_steps)
    return [episode(rng, images.test, config.ways, config.shots, config.test_queries, steps) for rng in streams]


TOGETHER = 20  # episodes adapted at once: more take memory, and are no faster


def accuracies(config: Config, theta: Theta, tasks: Tasks) -> list[dict[str, Any]]:
    """Adapt θ to each episode: a row {steps, accuracy, median, ci95, diverged} for each of `report_steps`.

    An episode whose logits are not finite has diverged, and is left out of the mean, as in `summary`.
    """
    net, loss = network(config)
    loop = recorded(inner_loop(config))
    scores = []
    for i in range(0, len(tasks), TOGETHER):
        part = tasks[i : i + TOGETHER]
        supports, (x, labels) = stack(part)
        with numpy.errstate(over="ignore", invalid="ignore"):
            phis = loop(loss, copies(theta, len(part)), supports, config.alpha)
            logits = numpy.stack([net(phis[k], x) for k in config.report_steps])  # (reports, tasks, n, ways)
        hit = (logits.argmax(-1) == labels).mean(-1)
        scores.append(numpy.where(numpy.isfinite(logits).all((-2, -1)), hit, numpy.nan))
    columns = zip(config.report_steps, numpy.hstack(scores), strict=True)
    return [{"steps": steps, **_row(column)} for steps, column in columns]


def _row(scores: Sequence[float]) -> dict[str, Any]:
    return {("accuracy" if key == "mean" else key): value for key, value in summary(scores).items()}


def baselines(config: Config, images: Images, seed: int) -> dict[str, Any]:
    """Curves on the same episodes: cosine nearest neighbour on pixels, and θ before training, adapted with this α."""
    tasks = test_episodes(config, images, seed)
    neighbour = _row([nearest_neighbour(task) for task in tasks])
    return {
        "nearest neighbour": [{"steps": 0, **neighbour}],
        "untrained": accuracies(config, initial(config, seed), tasks),
    }
