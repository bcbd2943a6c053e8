"""Meta-train a small network to tell N characters apart from K examples of each, their labels permuted in every
episode, and test it on characters it has not seen.
"""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from refmeta.checks import check_alpha
from refmeta.fast import recorded, stacked
from refmeta.lab import display
from refmeta.lab.checkpoint import Keep, resumable
from refmeta.lab.display import Curve, by_method, cell, plural, table
from refmeta.lab.fewshot.episodes import episode, minibatches, nearest_neighbour
from refmeta.lab.fewshot.images import SOURCE, Images, fingerprint, glyphs, omniglot
from refmeta.lab.optimisers import Step, optimiser
from refmeta.lab.runs import METHOD, QUICK, Experiment, Options, Plan, Result, Run, asked, given, jobs, whole
from refmeta.lab.runs import summary as pooled
from refmeta.lab.training import METHODS, Checkpoint, Report, adapted, over_seeds, summary, train
from refmeta.models import MLP, ConvNet, cross_entropy
from refmeta.trees import Array, Loss, Tasks, Theta

# --- Settings ---------------------------------------------------------------------------------------


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


QUICKLY: dict[str, Any] = {"iterations": 150, "tasks": 4, "filters": (8, 8), "size": 14, "test_tasks": 60}
# One inner step of Reptile would be joint training, so Reptile has defaults of its own.
OWN = {"reptile": {"inner_steps": 5, "alpha": 0.2, "outer": "sgd:1:linear", "tasks": 8}}


def _widths(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ArgumentTypeError(f"expected positive whole numbers as 32,32, got {text!r}")
    return tuple(map(int, parts))


OUTER = "as in refmeta sine (default: adam:0.002:linear; reptile: sgd:1:linear)"
options: Options = {
    "method": {**METHOD, "default": "maml", "help": "default: maml"},
    "data": {"choices": ["glyphs", "omniglot"], "help": "default: glyphs, invented here"},
    "root": {"metavar": "DIR", "help": "the folder with Omniglot's two archives, or both unpacked"},
    "quick": QUICK,
    "ways": {"type": whole(2), "metavar": "N", "help": "classes of an episode (default: 5)"},
    "shots": {"type": whole(1), "metavar": "K", "help": "images of each to adapt to (default: 1)"},
    "queries": {"type": whole(1), "metavar": "N", "help": "images of each to learn from (default: 1)"},
    "inner_steps": {"type": whole(0), "metavar": "N", "help": "in training (default: 1; reptile: 5)"},
    "alpha": {"type": float, "help": "inner rate on the mean cross-entropy (default: 1; reptile: 0.2)"},
    "outer": {"metavar": "NAME:RATE", "help": OUTER},
    "tasks": {"type": whole(1), "metavar": "N", "help": "episodes in an outer step (default: 16; reptile: 8)"},
    "iterations": {"type": whole(1), "metavar": "N", "help": f"outer steps (default: {Config.iterations})"},
    "network": {"choices": ["conv", "mlp"], "help": "default: conv; mlp: hidden layers 256, 128, 64, 64"},
    "filters": {"type": _widths, "metavar": "N,N,…", "help": "of the convolutions (default: 32,32,32,32)"},
    "size": {"type": int, "choices": [14, 28], "help": "pixels of an image's side (default: 28)"},
}


def configure(method: str, quick: bool, explicit: dict[str, Any]) -> Config:
    """The settings of one method: the defaults, the method's, --quick's, then the caller's.

    ValueError: a setting that is impossible, or does not fit the method.
    """
    config = Config(**{**OWN.get(method, {}), **(QUICKLY if quick else {}), **explicit, "method": method})
    check_alpha(config.alpha)
    optimiser(config.outer, config.iterations)
    if config.ways < 2:
        raise ValueError(f"ways {config.ways}: expected at least two classes to tell apart")
    if config.network == "mlp" and "filters" in explicit:
        raise ValueError("filters: only the network conv has them, not mlp")
    if METHODS[method].displacement and not config.inner_steps:
        raise ValueError(f"inner-steps 0: {method} needs at least one inner step")
    network(config)
    return config


def load(data: str, size: int, root: str | None) -> Images:
    """The images of `data`. ValueError: omniglot without its folder, or an error of `omniglot`."""
    if data == "glyphs" and root is not None:
        raise ValueError(f"--root {root}: only --data omniglot reads it")
    if data == "omniglot" and root is None:
        archives = "the folder that holds images_background.zip and images_evaluation.zip"
        raise ValueError(f"--data omniglot: name with --root {archives}; they are at {SOURCE}")
    return glyphs(size) if root is None else omniglot(root, size)


def check_images(config: Config, images: Images) -> None:
    """ValueError: more ways than classes, or a class with fewer images than an episode takes."""
    displaces = METHODS[config.method].displacement
    shots = config.batch * config.inner_steps if displaces else config.shots
    takes = shots + config.queries, config.shots + config.test_queries
    for part, classes, needed in zip(("training", "test"), images, takes, strict=True):
        if config.ways > len(classes):
            raise ValueError(f"ways {config.ways}: {config.data} has {len(classes)} {part} classes; ask for fewer ways")
        has, fewest = min((len(drawn), c) for c, drawn in enumerate(classes))
        if needed > has:
            raise ValueError(
                f"{config.method} takes {needed} images of a class for support and query; {part} class {fewest} of "
                f"{config.data} has {has}: ask for fewer shots, queries or inner steps"
            )


# --- One run ----------------------------------------------------------------------------------------


class FlatMLP(MLP):
    """An MLP of images (…, n, h, w, 1), each a row of its pixels."""

    def layers(self, theta: Theta, x: Array) -> list[Array]:
        return super().layers(theta, x.reshape(*x.shape[:-3], -1))


def network(config: Config) -> tuple[Any, Loss]:
    """conv: 3×3 convolutions of stride 2; mlp: Finn et al. 2017's 256, 128, 64, 64; without batch normalisation."""
    net: Any
    if config.network == "mlp":
        net = FlatMLP((config.size**2, 256, 128, 64, 64, config.ways), activation="relu")
    else:
        net = ConvNet((config.size, config.size, 1), config.filters, config.ways)
    return net, cross_entropy(net)


def initial(config: Config, seed: int) -> Theta:
    """θ before training, in float32: the same for every method of a seed."""
    theta: Theta = network(config)[0].init(np.random.default_rng([seed, 2**32]), dtype=np.float32)
    return theta


def run(images: Images, config: Config, seed: int, report: Report, keep: Keep | None = None) -> Run:
    """Meta-train one method on the training classes, from its checkpoint if there is one, and test on the test classes.

    Diverged: see `train`. ValueError: see `checkpoint.load` and `check_images`.
    """
    began = perf_counter()
    check_images(config, images)
    method, (_, loss) = METHODS[config.method], network(config)
    start, outer = initial(config, seed), optimiser(config.outer, config.iterations)
    draw, shots = (minibatches, config.batch) if method.displacement else (episode, config.shots)
    shape = config.ways, shots, config.queries, config.inner_steps

    def sample(rng: np.random.Generator) -> Tasks:
        return [draw(rng, images.train, *shape) for _ in range(config.tasks)]

    algorithm, adapt = recorded(stacked(method.algorithm)), recorded(method.trajectory)
    kept = resumable_on(images, keep, "fewshot", config, seed)(start, outer)
    trained = train(algorithm, loss, start, sample, config.alpha, config.iterations, outer, seed, report, adapt, kept)
    theta, history = trained
    curve = accuracies(config, theta, test_episodes(config, images, seed))
    return Run(config, seed, theta, history, curve, perf_counter() - began, "fewshot")


def resumable_on(
    images: Images, keep: Keep | None, experiment: str, config: Config, seed: int
) -> Callable[[Theta, Step], Checkpoint]:
    """`resumable` for a training on these images: a checkpoint made with others is refused."""
    settings = {"experiment": experiment, "seed": seed, **asdict(config)}
    return partial(resumable, keep, {**settings, "images": fingerprint(images)} if keep else settings)


def test_episodes(config: Config, images: Images, seed: int) -> Tasks:
    """The episodes of unseen classes that every method of a seed is tested on."""
    streams = (np.random.default_rng([seed, 2**33, i]) for i in range(config.test_tasks))
    steps = max(config.report_steps)
    return [episode(rng, images.test, config.ways, config.shots, config.test_queries, steps) for rng in streams]


TOGETHER = 20  # episodes adapted at once: more take memory, and are no faster


def accuracies(config: Config, theta: Theta, tasks: Tasks) -> Curve:
    """Adapt θ to each episode: a row {steps, accuracy, median, ci95, diverged} for each of `report_steps`.

    An episode whose logits are not finite has diverged, and is left out of the mean, as in `summary`.
    """
    (net, loss), trajectory = network(config), recorded(METHODS[config.method].trajectory)
    scores = []
    with np.errstate(over="ignore", invalid="ignore"):
        for part, phis, _, (x, labels) in adapted(loss, theta, tasks, config.alpha, trajectory, TOGETHER):
            logits = np.stack([net(phis[k], x) for k in config.report_steps])  # (reports, [tasks,] n, ways)
            hits = np.where(np.isfinite(logits).all((-2, -1)), (logits.argmax(-1) == labels).mean(-1), np.nan)
            scores.append(hits.reshape(-1, len(part)))
    return [_row(k, column) for k, column in zip(config.report_steps, np.hstack(scores), strict=True)]


def _row(steps: int, scores: Sequence[float]) -> dict[str, Any]:
    return {"steps": steps, **{("accuracy" if key == "mean" else key): n for key, n in summary(scores).items()}}


def baselines(config: Config, images: Images, seed: int) -> dict[str, Curve]:
    """Curves on the same episodes: cosine nearest neighbour on pixels, and θ before training, adapted with this α."""
    tasks = test_episodes(config, images, seed)
    return {
        "nearest neighbour": [_row(0, [nearest_neighbour(task) for task in tasks])],
        "untrained": accuracies(config, initial(config, seed), tasks),
    }


# --- The command ------------------------------------------------------------------------------------


def plan(args: Namespace) -> Plan:
    """The runs of a command: every method asked for, all beside the baselines of the first."""
    configs = [configure(name, args.quick, given(args, Config)) for name in asked(args)]
    images = load(configs[0].data, configs[0].size, args.root)
    for config in configs:
        check_images(config, images)
    beside = cache(partial(baselines, configs[0], images))
    folder, todo = jobs(
        "fewshot", args.method, args, configs, lambda config: network(config)[0].names, partial(run, images)
    )

    def record(run: Run) -> Result:
        return {**run.result(), "baselines": beside(run.seed)}

    def record_of_all(runs: list[Run]) -> Result:
        result = pooled("fewshot", args.method, "accuracy", runs)
        curves, seconds = [beside(seed) for seed in result["seeds"]], result.pop("seconds")
        known = {name: over_seeds([each[name] for each in curves], "accuracy") for name in curves[0]}
        return {**result, "baselines": known, "seconds": seconds}

    return Plan(folder, todo, record_of_all, partial(draw, images), record)


LABELS = {**display.LABELS, "untrained": "untrained, adapted alike", "nearest neighbour": "nearest neighbour, pixels"}


def text(result: Result) -> str:
    """The table of the accuracies, beside the baselines and chance."""
    config, many = next(iter(result["config"].values())), len(result["seeds"])
    over = f"mean over {many} seeds" if many > 1 else "mean"
    lines, notes = [["", *(plural(k, "step") for k in config["report_steps"])]], []
    for name, curve in (by_method(result["curve"]) | result["baselines"]).items():
        cells = [cell(row["accuracy"], row["ci95"], percent=True) for row in curve]
        lines.append([LABELS.get(name, name), *cells, *[""] * (len(lines[0]) - 1 - len(cells))])
        lost = [f"{row['diverged']} after {plural(row['steps'], 'step')}" for row in curve if row["diverged"]]
        notes += [f"{name}: episodes that diverged, left out of the mean: {', '.join(lost)}"] * bool(lost)
    return "\n".join(
        [
            f"\naccuracy (%) on unseen classes, {config['ways']}-way {config['shots']}-shot, {config['test_tasks']} "
            f"episodes ({over} ± 95 % interval), after",
            table(lines, 26, 14),
            f"{'chance':>26}{100 / config['ways']:>14.1f}  (exact)",
            *notes,
        ]
    )


def draw(images: Images, folder: Path, result: Result, runs: list[Run]) -> None:
    from refmeta.lab.fewshot import figures

    figures.draw(images, folder, result, runs)


HELP = "meta-train on characters and classify unseen ones from a few examples"
FIGURES, FOLDER = ["episode.png", "curves.png"], "runs/fewshot-METHOD-SEED"
FEWSHOT = Experiment("fewshot", HELP, str(__doc__), options, plan, text, FIGURES, FOLDER)
