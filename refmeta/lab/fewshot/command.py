"""`refmeta fewshot`: meta-train on characters, test on unseen ones, print a table, leave a folder."""

import argparse
import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refmeta.lab.command import add_folder, keeping, own_folder, plural, progress, seed_range, stopped, whole
from refmeta.lab.experiment import METHODS, Run
from refmeta.lab.fewshot import experiment as fewshot
from refmeta.lab.fewshot.experiment import Config, baselines, check_images, configure, load, network
from refmeta.lab.files import save_result, save_theta
from refmeta.lab.fewshot.images import Images
from refmeta.lab.training import Diverged, Interrupted, over_seeds


def add_fewshot(commands: Any) -> None:
    """Declare the command on argparse's subparsers."""
    parser = commands.add_parser(
        "fewshot",
        help="meta-train on characters and classify unseen ones from a few examples",
        description="Meta-train a small network to tell N characters apart from K examples of each, their labels "
        "permuted in every episode, and test it on characters it has not seen.",
    )
    parser.set_defaults(run=fewshot_command)
    parser.add_argument("--method", choices=[*METHODS, "all"], default="maml", help="default: maml")
    parser.add_argument("--data", choices=["glyphs", "omniglot"], help="default: glyphs, invented here")
    parser.add_argument("--root", metavar="DIR", help="the folder with Omniglot's two archives, or both unpacked")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parser.add_argument("--ways", type=whole(2), metavar="N", help="classes of an episode (default: 5)")
    parser.add_argument("--shots", type=whole(1), metavar="K", help="images of each to adapt to (default: 1)")
    parser.add_argument("--queries", type=whole(1), metavar="N", help="images of each to learn from (default: 1)")
    parser.add_argument("--inner-steps", type=whole(0), metavar="N", help="in training (default: 1; reptile: 5)")
    parser.add_argument("--alpha", type=float, help="inner rate on the mean cross-entropy (default: 1; reptile: 0.2)")
    parser.add_argument(
        "--outer", metavar="NAME:RATE", help="as in refmeta sine (default: adam:0.002:linear; reptile: sgd:1:linear)"
    )
    parser.add_argument(
        "--tasks", type=whole(1), metavar="N", help="episodes in an outer step (default: 16; reptile: 8)"
    )
    parser.add_argument("--iterations", type=whole(1), metavar="N", help=f"outer steps (default: {Config.iterations})")
    parser.add_argument("--network", choices=["conv", "mlp"], help="default: conv; mlp: hidden layers 256, 128, 64, 64")
    parser.add_argument("--filters", type=_widths, metavar="N,N,…", help="of the convolutions (default: 32,32,32,32)")
    parser.add_argument("--size", type=int, choices=[14, 28], help="pixels of an image's side (default: 28)")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: 0")
    seeds.add_argument("--seeds", metavar="A-B", help="several, as 0-4: mean and interval over the seeds")
    add_folder(parser, "runs/fewshot-METHOD-SEED")


_SETTINGS = (
    *("data", "ways", "shots", "queries", "inner_steps", "alpha", "outer", "tasks", "iterations"),
    *("network", "filters", "size"),
)


def _widths(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected positive whole numbers as 32,32, got {text!r}")
    return tuple(map(int, parts))


def fewshot_command(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    explicit = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    seeds = [args.seed] if args.seeds is None else seed_range(args.seeds)
    names = list(METHODS) if args.method == "all" else [args.method]
    configs = [configure(name, args.quick, explicit) for name in names]
    images = load(configs[0].data, configs[0].size, args.root)
    for config in configs:
        check_images(config, images)
    sole = len(seeds) == len(configs) == 1
    places = {(s, c): "" if sole else f"{c.method}-{s}" for s in seeds for c in configs}
    runs: list[Run] = []
    beside: dict[int, Any] = {}
    with own_folder(args, f"runs/fewshot-{args.method}-{args.seeds or args.seed}", places.values()) as folder:
        for (seed, config), name in places.items():
            place, names = folder / name, network(config)[0].names
            keep = keeping(args, place)
            try:
                with progress(config.iterations, f"{config.method}, seed {seed}") as move:
                    runs.append(
                        fewshot.run(config, images, seed, lambda i, loss: move(i + 1, f"loss {loss:.3f}"), keep)
                    )
            except (Diverged, Interrupted) as error:
                return stopped(f"fewshot: {config.method}", folder, place, names, error)
            if seed not in beside:
                beside[seed] = baselines(configs[0], images, seed)
            place.mkdir(exist_ok=True)
            save_theta(place / "theta.npz", names, runs[-1].theta)
            save_result(place / "result.json", {**runs[-1].result(), "baselines": beside[seed]})
        curves = {c.method: over_seeds([r.curve for r in runs if r.config == c], "accuracy") for c in configs}
        known = {name: over_seeds([each[name] for each in beside.values()], "accuracy") for name in beside[seeds[0]]}
        if not sole:
            save_result(folder / "result.json", _summary(args.method, configs, seeds, curves, known, runs))
        print(_table(configs[0], curves | known, len(seeds)))
        _draw(folder, [run for run in runs if run.seed == seeds[0]], curves | known, images)
    return 0


Curves = dict[str, list[dict[str, Any]]]


def _summary(
    main: str, configs: list[Config], seeds: list[int], curves: Curves, known: Curves, runs: list[Run]
) -> dict[str, Any]:
    return {
        "experiment": "fewshot",
        "method": main,
        "seeds": seeds,
        "config": {config.method: asdict(config) for config in configs},
        "curve": [{"method": method, **row} for method, curve in curves.items() for row in curve],
        "baselines": known,
        "seconds": sum(run.seconds for run in runs),
    }


LABELS = {
    "joint": "joint training",
    "untrained": "untrained, adapted alike",
    "nearest neighbour": "nearest neighbour, pixels",
}


def _table(config: Config, curves: Curves, seeds: int) -> str:
    over = f"mean over {seeds} seeds" if seeds > 1 else "mean"
    lines = [
        f"\naccuracy (%) on unseen classes, {config.ways}-way {config.shots}-shot, {config.test_tasks} episodes "
        f"({over} ± 95 % interval), after",
        " " * 26 + "".join(f"{plural(k, 'step'):>14}" for k in config.report_steps),
    ]
    notes = []
    for name, curve in curves.items():
        cells = (f"{100 * row['accuracy']:.1f} ± {100 * row['ci95']:.1f}" for row in curve)
        lines.append(f"{LABELS.get(name, name):>26}" + "".join(f"{cell:>14}" for cell in cells))
        lost = [f"{row['diverged']} after {plural(row['steps'], 'step')}" for row in curve if row["diverged"]]
        notes += [f"{name}: episodes that diverged, left out of the mean: {', '.join(lost)}"] * bool(lost)
    lines.append(f"{'chance':>26}{100 / config.ways:>14.1f}  (exact)")
    return "\n".join(lines + notes)


def _draw(folder: Path, runs: list[Run], curves: Curves, images: Images) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        print(f"\n{folder}: results; for the figures too: pip install 'refmeta[lab]'")
        return
    from refmeta.lab.fewshot import figures

    figures.episode(folder / "episode.png", runs, images)
    figures.curves(folder / "curves.png", runs[0].config, curves)
    print(f"\n{folder}: results, episode.png, curves.png")
