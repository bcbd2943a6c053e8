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
    formula,
    halves,
    labels,
    measured,
    quadratic,
)

TOLERANCE = 1e-9
SEEN = 2, 3, 4  # the k of the coefficients


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
    parser.add_argument(
        "--inner-steps",
        type=whole(1),
        default=1,
        metavar="K",
        help="of MAML and first-order MAML before the last gradient; Reptile takes that one too, as its step K + 1 "
        "(default: 1)",
    )
    parser.add_argument("--out", metavar="DIR", help="a new folder (default: runs/geometry)")


def geometry(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 where a closed form or a coefficient is not confirmed."""
    alpha, k = args.alpha, args.inner_steps + 1
    paths = {method: descent(method, TASKS, alpha, k, START) for method in reversed(METHODS)}  # MAML: refused soonest
    folder = new_folder(args.out, "runs/geometry")
    ends = [_end(method, alpha, k, paths[method]) for method in METHODS]
    minibatches = [halves(*task) for task in TASKS]
    leading = [
        {"k": k, "method": m, **measured(m, quadratic, START, minibatches, k)._asdict(), "formula": formula(m, k)}
        for k in SEEN
        for m in METHODS
    ]
    print(_ends(ends, alpha, k), _coefficients(leading), sep="\n")
    result = {
        "experiment": "geometry",
        "alpha": alpha,
        "inner_steps": k - 1,
        "tasks": [{"A": A.tolist(), "c": c.tolist()} for A, c in TASKS],
        "theta": START.tolist(),
        "methods": ends,
        "coefficients": leading,
    }
    save_result(folder / "result.json", result)
    if importlib.util.find_spec("matplotlib") is None:
        print(f"\n{folder}: result.json; for the figure too: pip install 'refmeta[lab]'")
    else:
        from refmeta.lab.geometry import figures

        figures.draw(folder / "geometry.png", alpha, k, paths)
        print(f"\n{folder}: result.json, geometry.png")
    wrong = [f"{end['method']}'s fixed point" for end in ends if not end["apart"] < TOLERANCE]
    for row in leading:
        if not np.allclose([row["c1"], row["c2"], row["rest"]], [*row["formula"], 0], 0, TOLERANCE):
            wrong.append(f"{row['method']}'s coefficients for k = {row['k']}")
    if wrong:
        print(f"refmeta geometry: not confirmed to {TOLERANCE:g}: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def _end(method: str, alpha: float, k: int, path: Any) -> dict[str, Any]:
    point = fixed_point(method, TASKS, alpha, k)
    return {
        "method": method,
        "direction": direction(method, quadratic, START, [[TASKS[0]] * k], alpha).tolist(),
        "fixed_point": point.tolist(),
        "arrived": path[-1].tolist(),
        "apart": float(np.linalg.norm(path[-1] - point)),
        "steps": len(path) - 1,
    }


def _ends(ends: list[dict[str, Any]], alpha: float, k: int) -> str:
    x, y = START
    lines = [
        f"\ntwo tasks ½ (θ − c)ᵀ A (θ − c) in the plane, θ = ({x:g}, {y:g}), α = {alpha:g}; MAML and first-order MAML",
        f"after {plural(k - 1, 'inner step')}, Reptile after {k}\n",
        f"{'direction':>28}{'on task 1':>23}{'fixed point':>25}{'descent arrives at':>26}{'apart':>9}",
    ]
    for end in ends:
        name, symbol = labels(k)[end["method"]]
        g, point, arrived = ("({:.{}f}, {:.{}f})".format(end[key][0], n, end[key][1], n) for key, n in _DIGITS.items())
        lines.append(f"{name:>17}  {symbol:<15}{g:>17}{point:>25}{arrived:>26}{end['apart']:>9.0e}")
    return "\n".join(lines)


_DIGITS = {"direction": 3, "fixed_point": 7, "arrived": 7}


def _coefficients(leading: list[dict[str, Any]]) -> str:
    lines = [
        "\nleading order, E g = c₁ AvgGrad − c₂ α AvgGradInner + O(α²), over every draw of k minibatches of a task;",
        "the last is the query of MAML and first-order MAML, a step of Reptile. Measured, in brackets the formula\n",
        f"{'':17}" + "".join(f"{f'k = {k}:  c₁':>14}{'c₂':>12}" for k in SEEN) + "    k:  c₁  c₂",
    ]
    for method in METHODS:
        line = f"{labels(2)[method][0]:>17}"
        for row in leading:
            if row["method"] == method:
                c1, c2 = row["formula"]
                line += f"{row['c1']:>10.5f} ({c1:g}){row['c2']:>8.5f} ({c2:g})"
        c1, c2 = _FORMULAS[method]
        lines.append(f"{line}{c1:>10}  {c2}")
    return "\n".join(lines)


_FORMULAS = {"joint": ("1", "0"), "reptile": ("k", "k(k − 1)/2"), "fomaml": ("1", "k − 1"), "maml": ("1", "2(k − 1)")}
