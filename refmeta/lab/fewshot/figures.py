"""The figures of few-shot classification (matplotlib, from the extra `lab`)."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refmeta.lab.display import COLOURS, DARK, INK, PAPER, by_method, plural
from refmeta.lab.fewshot.experiment import network, test_episodes
from refmeta.lab.fewshot.images import Images, Task
from refmeta.lab.files import save_figure
from refmeta.lab.plots import plot_curves, plot_training
from refmeta.lab.runs import Result, Run, test_alpha
from refmeta.lab.training import method_of
from refmeta.trees import Array, Supports

WAYS, SHOTS = 10, 5  # of an episode are shown at most
TILE = 0.68  # inches
ON_TILES = DARK[PAPER], DARK[INK]  # ink and paper of a letter on a tile, which is light on a dark page too


def draw(folder: Path, result: Result, runs: list[Run], images: Images) -> None:
    """episode.png, of these runs; curves.png, the training of these and the test of all."""
    episode(folder / "episode.png", runs, images)
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_training({run.config.method: run.history for run in runs}, left)
    chance = {"chance": [{"steps": 0, "accuracy": 1 / runs[0].config.ways, "ci95": 0}]}
    right.set(ylim=(0, 100), ylabel="accuracy (%)")
    plot_curves(by_method(result["curve"]) | result["baselines"] | chance, right, "accuracy", 100)
    save_figure(folder / "curves.png", figure)


def episode(path: Path, runs: Sequence[Run], images: Images) -> None:
    """The episode of the first run's median accuracy, a row for each class: its support, and its queries with the
    network's guesses, before adapting (the first run) and after as many steps as in training (every run)."""
    config = runs[0].config
    (support, *_), (x, labels) = median(runs[0], images)
    most = SHOTS if len(runs) < 3 else 3
    ways, shots, queries = min(config.ways, WAYS), min(config.shots, SHOTS), min(config.test_queries, most)
    shown = (a if config.data == "folder" else 0.95 * (1 - a) for a in (support[0], x))  # ink is black on a grey tile
    pictures, asked = (a.reshape(config.ways, -1, *a.shape[1:]) for a in shown)
    wide = TILE * (shots + queries * (1 + len(runs))) + 0.25 * (1 + len(runs)) + 0.4
    figure = Figure(figsize=(wide, TILE * ways + 0.9), layout="constrained")
    axes = figure.subplots(1, 2 + len(runs), width_ratios=[shots] + [queries] * (1 + len(runs)))
    _tiles(axes[0], pictures[:ways, :shots])
    axes[0].set_title("support", fontsize=9, color=INK)
    axes[0].set_yticks(range(ways), [_name(c) for c in range(ways)], fontsize=11, weight="bold")
    panels = [(runs[0], 0), *((run, max(1, run.config.inner_steps)) for run in runs)]
    for axis, (run, steps) in zip(axes[1:], panels, strict=True):
        guesses = _guesses(run, [support] * steps, x)
        _tiles(axis, asked[:ways, :queries])
        _verdicts(axis, guesses.reshape(config.ways, -1)[:ways, :queries])
        title = f"{run.config.method}, {plural(steps, 'step')}: {100 * np.mean(guesses == labels):.0f} %"
        axis.set_title(title, fontsize=9, color=COLOURS[run.config.method])
        axis.set_yticks([])
    title = f"the episode of {config.method}'s median accuracy, of 33: what each query is taken for, dark if wrong"
    figure.suptitle(title, fontsize=10, color=INK)
    save_figure(path, figure)


def median(run: Run, images: Images) -> Task:
    """The test episode, of the first 33, of the run's median accuracy after as many steps as in training."""
    steps = max(1, run.config.inner_steps)
    few = islice(test_episodes(run.config, images, run.seed), 33)
    good = sorted(few, key=lambda task: np.mean(_guesses(run, task[0][:1] * steps, task[1][0]) == task[1][1]))
    return good[len(good) // 2]


def _guesses(run: Run, supports: Supports, x: Array) -> Array:
    """The classes that the run's network, adapted to the supports, takes the images for."""
    net, loss = network(run.config)
    with np.errstate(all="ignore"):
        phi = method_of(run.config).trajectory(loss, run.theta, supports, test_alpha(run.config))[-1]
        return np.argmax(net(phi, x), -1)


def _tiles(axis: Any, pictures: Array) -> None:
    for r, c in np.ndindex(pictures.shape[:2]):
        box = (c - 0.47, c + 0.47, r + 0.47, r - 0.47)
        axis.imshow(pictures[r, c], cmap="gray", vmin=0, vmax=1, extent=box)
    axis.set(xlim=(-0.5, pictures.shape[1] - 0.5), ylim=(len(pictures) - 0.5, -0.5), xticks=[])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _name(label: int) -> str:
    """A, B, …, Z, then numbers."""
    return chr(65 + label) if label < 26 else str(label)


def _verdicts(axis: Any, guesses: Array) -> None:
    for (c, q), guess in np.ndenumerate(guesses):
        ink, paper = ON_TILES if guess == c else ON_TILES[::-1]
        place = {"ha": "right", "va": "bottom", "bbox": {"boxstyle": "round,pad=.15", "lw": 0, "fc": paper}}
        axis.text(q + 0.42, c + 0.42, _name(guess), color=ink, fontsize=7, weight="bold", **place)
