"""Meta-train a small network to tell N classes of images apart from K examples of each; every episode permutes the
labels. Then test it on classes that it has not seen.
"""

from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from refmeta.fast import recorded
from refmeta.lab import runs, training
from refmeta.lab.display import Curve, Row, by_method, by_steps, over, plural
from refmeta.lab.fewshot.drawings import SOURCE, SPLITS, omniglot
from refmeta.lab.fewshot.images import Images, Task, episode, glyphs, minibatches, nearest_neighbour
from refmeta.lab.fewshot.photographs import LAYOUT, folder
from refmeta.lab.runs import Keep, Plan, Result, Run, option, whole
from refmeta.lab.training import INNER, METHODS, Report, adapted, method_of, over_seeds
from refmeta.models import MLP, NORMS, ConvNet, cross_entropy
from refmeta.trees import Array, Loss, Tasks, Theta

# --- Settings ---------------------------------------------------------------------------------------


def _widths(text: str) -> tuple[int, ...]:
    return tuple(map(whole(1), text.split(",")))


OUTER = "outer optimiser, as in refmeta sine (default: {}; reptile: sgd:1:linear)"
WIDTHS = "filters of each convolution (default: 32,32,32,32)"
NORM = "normalisation of the hidden layers; batch: with the current batch's statistics (default: {})"
DATA = "glyphs: invented characters; omniglot, folder: images in --root (default: {})"
SPLIT = "of omniglot; lake: other alphabets at test; finn: 1,200 characters to train on, 423 to test on (default: {})"


# The folder that --root names, by data.
HOLDS = {
    "omniglot": f"the folder that holds images_background.zip and images_evaluation.zip; they are at {SOURCE}",
    "folder": f"the folder that holds {LAYOUT}",
}


@dataclass(frozen=True)
class Config:
    """Everything that determines a run, except its seed and the images."""

    method: str = option("maml", "the algorithm, or all (default: {})", default="maml", choices=[*METHODS, "all"])
    data: str = option("glyphs", DATA, choices=["glyphs", *HOLDS])
    split: str = option("lake", SPLIT, choices=list(SPLITS))
    ways: int = option(5, "classes in an episode (default: {})", type=whole(2), metavar="N")
    shots: int = option(1, "support images of each class (default: {})", type=whole(1), metavar="N")
    queries: int = option(1, "query images of each class (default: {})", type=whole(1), metavar="N")
    inner_steps: int = option(1, "inner steps in training (default: {}; reptile: 5)", type=whole(0), metavar="N")
    alpha: float = option(1.0, "inner rate α, for the mean cross-entropy (default: {:g}; reptile: 0.2)", type=float)
    inner: str = option("sgd", runs.INNER_HELP, choices=list(INNER))
    outer: str = option("adam:0.002:linear", OUTER, metavar="NAME:RATE")
    tasks: int = option(16, "episodes in an outer step (default: {}; reptile: 8)", type=whole(1), metavar="N")
    iterations: int = option(1000, "iterations, an outer step each (default: {})", type=whole(1), metavar="N")
    network: str = option("conv", "mlp: 256, 128, 64, 64 hidden units (default: {})", choices=["conv", "mlp"])
    filters: tuple[int, ...] = option((32, 32, 32, 32), WIDTHS, type=_widths, metavar="N,N,…")
    norm: str = option("none", NORM, choices=list(NORMS))
    size: int = option(28, "images of N × N pixels (default: {})", type=whole(8), metavar="N")
    channels: int = 1  # of the images: 3 where they are in colour
    batch: int = 2  # of each class at an inner step of Reptile's training
    test_shots: int | None = option(
        None, "support images of each class at test" + runs.SAME, type=whole(1), metavar="N"
    )
    test_alpha: float | None = option(None, "inner rate α at test" + runs.SAME, type=float, metavar="ALPHA")
    test_steps: tuple[int, ...] = option((0, 1, 5, 10), runs.STEPS_HELP, type=runs.steps, metavar="N,N,…")
    test_queries: int = option(5, "query images of each class at test (default: {})", type=whole(1), metavar="N")
    test_tasks: int = option(600, "test episodes, of unseen classes (default: {})", type=whole(1), metavar="N")


QUICKLY: dict[str, Any] = {"iterations": 150, "tasks": 4, "filters": (8, 8), "size": 14, "test_tasks": 60}
# One inner step of Reptile would be joint training, so Reptile has defaults of its own.
OWN = {"reptile": {"inner_steps": 5, "alpha": 0.2, "outer": "sgd:1:linear", "tasks": 8}}
ARCHIVES = "the folder with Omniglot's two archives, zipped or unpacked"
ROOT = {"metavar": "DIR", "help": f"{ARCHIVES}; or with your images, train/CLASS/*.jpg and test/CLASS/*.jpg"}
options: runs.Options = {"root": ROOT, "quick": runs.QUICK, **runs.options_of(Config)}


def configure(method: str, quick: bool, explicit: dict[str, Any]) -> Config:
    """The settings of one method: the defaults, the method's, --quick's, then the caller's.

    ValueError: a setting that is impossible, or does not fit the method.
    """
    config = Config(**{**OWN.get(method, {}), **(QUICKLY if quick else {}), **explicit, "method": method})
    runs.check_config(config)
    if config.ways < 2:
        raise ValueError(f"ways {config.ways}: expected at least two classes to tell apart")
    if config.network == "mlp" and "filters" in explicit:
        raise ValueError("filters: only the network conv has them; the network is mlp")
    network(config)
    return config


def load(root: str | None, data: str, split: str, size: int) -> Images:
    """The images of a config. ValueError: no folder, or one that is not needed; as `omniglot` and `folder`."""
    if data == "glyphs" and root is not None:
        raise ValueError(f"--root {root}: only --data {' and '.join(HOLDS)} need it")
    if data != "omniglot" and split != Config.split:
        raise ValueError(f"split {split}: only --data omniglot has it")
    if data == "glyphs":
        return glyphs(size)
    if root is None:
        raise ValueError(f"--data {data}: give --root, {HOLDS[data]}")
    return folder(root, size) if data == "folder" else omniglot(root, size, split=split)


def fitted(config: Config, images: Images) -> Config:
    """The config with the channels of the images.

    ValueError: more ways than classes, or a class with fewer images than an episode takes.
    """
    displaces = METHODS[config.method].displacement
    shots = config.batch * config.inner_steps if displaces else config.shots
    takes = shots + config.queries, (config.test_shots or config.shots) + config.test_queries
    for part, classes, names, needed in zip(("training", "test"), images[:2], images.names, takes, strict=True):
        if config.ways > len(classes):
            raise ValueError(f"ways {config.ways}: {config.data} has {len(classes)} {part} classes; ask for fewer ways")
        has, c = min((len(drawn), c) for c, drawn in enumerate(classes))
        if needed > has:
            scarce = f"{part} class {names[c] if names else c} of {config.data} has {has}"
            said = f"{config.method} takes {needed} images of a class for support and query"
            raise ValueError(f"{said}; {scarce}: ask for fewer shots, queries or inner steps")
    return replace(config, channels=images.train[0].shape[-1])


# --- One run ----------------------------------------------------------------------------------------


class FlatMLP(MLP):
    """An MLP of images (…, n, h, w, channels), each a row of its pixels."""

    def layers(self, theta: Theta, x: Array) -> list[Array]:
        return super().layers(theta, x.reshape(*x.shape[:-3], -1))


def network(config: Config) -> tuple[Any, Loss]:
    """conv: 3×3 convolutions of stride 2; mlp: Finn et al. 2017's 256, 128, 64, 64."""
    net: Any
    if config.network == "mlp":
        inputs = config.size**2 * config.channels
        net = FlatMLP((inputs, 256, 128, 64, 64, config.ways), activation="relu", norm=config.norm)
    else:
        net = ConvNet((config.size, config.size, config.channels), config.filters, config.ways, norm=config.norm)
    return net, cross_entropy(net)


def initial(config: Config, seed: int) -> Theta:
    """θ before training, in float32: the same for every method of a seed."""
    theta: Theta = network(config)[0].init(np.random.default_rng([seed, 2**32]), dtype=np.float32)
    return theta


def run(images: Images, config: Config, seed: int, report: Report, keep: Keep | None = None) -> Run:
    """Meta-train one method on the training classes, from its checkpoint if there is one, and test it on the others.

    Diverged: see `train`. ValueError: see `checkpoint.load` and `fitted`.
    """
    config = fitted(config, images)
    displaces, (_, loss), start = METHODS[config.method].displacement, network(config), initial(config, seed)
    draw, shots = (minibatches, config.batch) if displaces else (episode, config.shots)
    shape = config.ways, shots, config.queries, config.inner_steps

    def sample(rng: np.random.Generator) -> Tasks:
        return [draw(rng, images.train, *shape) for _ in range(config.tasks)]

    def test(theta: Theta) -> Curve:
        return accuracies(config, theta, test_episodes(config, images, seed))

    seen = {"images": images.fingerprint()} if keep else {}  # a checkpoint made with others is refused
    training = runs.Training(loss, start, sample, test)
    return runs.trained("fewshot", config, seed, training, report, keep, **seen)


def test_episodes(config: Config, images: Images, seed: int) -> Iterator[Task]:
    """The episodes of unseen classes that every method of a seed is tested on.

    They are drawn one by one: 600 of 30 colour images of 84 × 84 pixels would take 1.5 GB.
    """
    streams = (np.random.default_rng([seed, 2**33, i]) for i in range(config.test_tasks))
    steps = max(config.test_steps)
    shape = config.ways, config.test_shots or config.shots, config.test_queries, steps
    return (episode(rng, images.test, *shape) for rng in streams)


TOGETHER = 20  # episodes adapted at once: more take memory, and are no faster


def accuracies(config: Config, theta: Theta, tasks: Iterable[Task]) -> Curve:
    """Adapt θ to each episode: a row {steps, accuracy, median, ci95, diverged} for each of `test_steps`.

    An episode whose logits are not finite has diverged, and is left out of the mean, as in `summary`. With batch
    normalisation a query is asked with the support images and no other query in its batch; and then all queries
    together, as the papers do, in further rows, whose "method" says so (see `TRANSDUCTIVE`).
    """
    (net, loss), trajectory = network(config), recorded(method_of(config).trajectory)
    scores, alpha = [], runs.test_alpha(config)  # scores: (ways, steps, tasks)
    with np.errstate(over="ignore", invalid="ignore"):
        for part, phis, supports, (x, labels) in adapted(loss, theta, tasks, alpha, trajectory, TOGETHER):
            asked = [[net(phis[k], x) for k in config.test_steps]]
            if config.norm == "batch":
                asked.insert(0, [_one_by_one(net, phis[k], supports[-1][0], x) for k in config.test_steps])
            logits = np.array(asked)  # (ways, steps, [tasks,] n, classes)
            hits = np.where(np.isfinite(logits).all((-2, -1)), (logits.argmax(-1) == labels).mean(-1), np.nan)
            scores.append(hits.reshape(*hits.shape[:2], len(part)))
    alone, *together = np.concatenate(scores, -1)
    read = [({}, alone), *(({"method": f"{config.method}{TRANSDUCTIVE}"}, each) for each in together)]
    return [_row(k, column, **name) for name, rows in read for k, column in zip(config.test_steps, rows, strict=True)]


TRANSDUCTIVE = ", queries together"


def _one_by_one(net: MLP | ConvNet, phi: Theta, support: Array, x: Array) -> Array:
    """The logits of each query in a batch of its own, with the support images (Nichol et al. 2018, §6.1)."""
    batches = (np.concatenate([support, x[..., i : i + 1, :, :, :]], -4) for i in range(x.shape[-4]))
    return np.concatenate([net(phi, batch)[..., -1:, :] for batch in batches], -2)


def _row(steps: int, scores: Sequence[float], **more: Any) -> Row:
    row = {("accuracy" if key == "mean" else key): n for key, n in training.summary(scores).items()}
    return {**more, "steps": steps, **row}


def by_pixels(tasks: Iterable[Task]) -> Curve:
    """The curve of the nearest neighbour, which takes no step."""
    return [_row(0, [nearest_neighbour(task) for task in tasks])]


def baselines(config: Config, images: Images, seed: int) -> dict[str, Curve]:
    """Curves on the same episodes: nearest neighbour by the angle of pixels; the untrained θ, adapted with this α."""
    untrained = accuracies(config, initial(config, seed), test_episodes(config, images, seed))[: len(config.test_steps)]
    return {"nearest neighbour": by_pixels(test_episodes(config, images, seed)), "untrained": untrained}


# --- The command ------------------------------------------------------------------------------------


def plan(args: Namespace) -> Plan:
    """The runs of a command: every method asked for, all beside the baselines of the first."""
    configs = [configure(name, args.quick, runs.given(args, Config)) for name in runs.asked(args)]
    images = load(args.root, configs[0].data, configs[0].split, configs[0].size)
    configs = [fitted(config, images) for config in configs]
    beside = cache(partial(baselines, configs[0], images))
    compared = runs.compared("fewshot", "accuracy", args, configs, network, partial(run, images))

    def summary(trained: dict[str, list[Run]]) -> Result:
        result = compared.summary(trained)
        curves = [beside(seed) for seed in result["seeds"]]
        known = {name: over_seeds([each[name] for each in curves], "accuracy") for name in curves[0]}
        return {**result, "baselines": known}

    def record(run: Run) -> Result:
        return {**run.result(), "baselines": beside(run.seed)}

    return compared._replace(summary=summary, draw=runs.drawing("fewshot", images), record=record)


def text(result: Result) -> str:
    """The table of the accuracies, beside the baselines and chance."""
    config, curves = next(iter(result["config"].values())), by_method(result["curve"]) | result["baselines"]
    ways, shots = config["ways"], config["test_shots"] or config["shots"]
    notes = []
    for name, curve in curves.items():
        lost = [f"{row['diverged']} after {plural(row['steps'], 'step')}" for row in curve if row["diverged"]]
        notes += [f"{name}: episodes that diverged, left out of the mean: {', '.join(lost)}"] * bool(lost)
    tested = f"{config['test_tasks']} episodes ({over(result)})"
    title = f"\naccuracy (%) on unseen classes, {ways}-way {shots}-shot, {tested}, after"
    chance = f"{'chance':>26}{100 / ways:>14.1f}  (exact)"
    return "\n".join([title, by_steps(curves, config["test_steps"], 14, "accuracy"), chance, *notes])


HELP = "meta-train on images, and classify unseen classes from a few examples"
FIGURES, FOLDER = ["episode.png", "curves.png"], "runs/fewshot-METHOD-SEED"
FEWSHOT = runs.Experiment("fewshot", HELP, str(__doc__), options, plan, text, FIGURES, FOLDER)
