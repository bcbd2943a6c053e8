"""`refmeta geometry`: each method's direction, descent and fixed point on two quadratic tasks; tables and a figure."""

import argparse
import importlib.util
import sys
from typing import Any

import numpy as np

from refmeta.lab.command import plural, whole
from refmeta.lab.files import new_folder, save_result
from refmeta.lab.geometry.quadratics import (
    METHODS,
    START,
    TASKS,
    descent,
    direction,
    fixed_point,
    halves,
    labels,
    measured,
    quadratic,
)
from refmeta.trees import Array

TOLERANCE = 1e-9
SEEN = 2, 3, 4  # the k of the coefficients
DIGITS = {"direction": 3, "fixed_point": 7, "arrived": 7}


def add_geometry(commands: Any) -> None:
    """Declare the command on argparse's subparsers."""
    parser = commands.add_parser(
        "geometry",
        help="where each method leads on two quadratic tasks, exactly, in one figure",
        description="Two quadratic tasks in the plane: the directions of pre-training, Reptile, first-order MAML and "
        "MAML, where descending them arrives beside the fixed points in closed form, and the leading coefficients of "
        "Nichol et al. 2018, measured beside the formulas.",
    )
    parser.set_defaults(run=geometry)
    parser.add_argument("--alpha", type=float, default=0.25, help="inner rate (default: 0.25)")
    steps = "of MAML and first-order MAML before the last gradient; Reptile takes that one too, as its step K + 1"
    parser.add_argument("--inner-steps", type=whole(1), default=1, metavar="K", help=f"{steps} (default: 1)")
    parser.add_argument("--out", metavar="DIR", help="a new folder (default: runs/geometry)")


def geometry(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 where a closed form or a coefficient is not confirmed."""
    alpha, k = args.alpha, args.inner_steps + 1
    paths = {method: descent(method, TASKS, alpha, k, START) for method in reversed(METHODS)}  # MAML: refused soonest
    folder = new_folder(args.out, "runs/geometry")
    result = run(alpha, k, paths)
    print(text(result))
    save_result(folder / "result.json", result)
    if importlib.util.find_spec("matplotlib") is None:
        print(f"\n{folder}: result.json; for the figure too: pip install 'refmeta[lab]'")
    else:
        from refmeta.lab.geometry import figures

        figures.draw(folder / "geometry.png", alpha, k, paths)
        print(f"\n{folder}: result.json, geometry.png")
    if wrong := unconfirmed(result):
        print(f"refmeta geometry: not confirmed to {TOLERANCE:g}: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def run(alpha: float, k: int, paths: dict[str, Array]) -> dict[str, Any]:
    """What result.json has: each method's direction, fixed point and the end of its path; the leading coefficients."""
    minibatches = [halves(*task) for task in TASKS]
    return {
        "experiment": "geometry",
        "alpha": alpha,
        "inner_steps": k - 1,
        "tasks": [{"A": A.tolist(), "c": c.tolist()} for A, c in TASKS],
        "theta": START.tolist(),
        "methods": [_end(method, alpha, k, paths[method]) for method in METHODS],
        "coefficients": [
            {
                "k": k,
                "method": name,
                **measured(name, quadratic, START, minibatches, k)._asdict(),
                "formula": formula(k),
            }
            for k in SEEN
            for name, (_, _, formula, *_) in METHODS.items()
        ],
    }


def _end(method: str, alpha: float, k: int, path: Array) -> dict[str, Any]:
    point = fixed_point(method, TASKS, alpha, k)
    return {
        "method": method,
        "direction": direction(method, quadratic, START, [[TASKS[0]] * k], alpha).tolist(),
        "fixed_point": point.tolist(),
        "arrived": path[-1].tolist(),
        "apart": float(np.linalg.norm(path[-1] - point)),
        "steps": len(path) - 1,
    }


def unconfirmed(result: dict[str, Any]) -> list[str]:
    """What differs from its closed form by TOLERANCE or more."""
    wrong = [f"{end['method']}'s fixed point" for end in result["methods"] if not end["apart"] < TOLERANCE]
    for row in result["coefficients"]:
        if not np.allclose([row["c1"], row["c2"], row["rest"]], [*row["formula"], 0], 0, TOLERANCE):
            wrong.append(f"{row['method']}'s coefficients for k = {row['k']}")
    return wrong


def text(result: dict[str, Any]) -> str:
    """Both tables."""
    (x, y), alpha, k = result["theta"], result["alpha"], result["inner_steps"] + 1
    lines = [
        f"\ntwo tasks ½ (θ − c)ᵀ A (θ − c) in the plane, θ = ({x:g}, {y:g}), α = {alpha:g}; MAML and first-order MAML",
        f"after {plural(k - 1, 'inner step')}, Reptile after {k}\n",
        f"{'direction':>28}{'on task 1':>23}{'fixed point':>25}{'descent arrives at':>26}{'apart':>9}",
    ]
    for end in result["methods"]:
        points = ("({:.{}f}, {:.{}f})".format(end[key][0], n, end[key][1], n) for key, n in DIGITS.items())
        row = *labels(k)[end["method"]], *points, end["apart"]
        lines.append("{:>17}  {:<15}{:>17}{:>25}{:>26}{:>9.0e}".format(*row))
    lines += [
        "\nleading order, E g = c₁ AvgGrad − c₂ α AvgGradInner + O(α²), over every draw of k minibatches of a task;",
        "the last is the query of MAML and first-order MAML, a step of Reptile. Measured, in brackets the formula\n",
        f"{'':17}" + "".join(f"{f'k = {k}:  c₁':>14}{'c₂':>12}" for k in SEEN) + "    k:  c₁  c₂",
    ]
    for name, method in METHODS.items():
        cells = "".join(_coefficients(**row) for row in result["coefficients"] if row["method"] == name)
        lines.append("{:>17}{}{:>10}  {}".format(labels(2)[name][0], cells, *method.in_words))
    return "\n".join(lines)


def _coefficients(c1: float, c2: float, formula: tuple[float, float], **_: Any) -> str:
    return f"{c1:>10.5f} ({formula[0]:g}){c2:>8.5f} ({formula[1]:g})"
