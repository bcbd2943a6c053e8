"""On two quadratic tasks in the plane, compute the directions of pre-training, Reptile, first-order MAML and MAML.
Compare the end of each descent with the fixed point in closed form, and the leading coefficients of Nichol et al.
2018, measured, with their formulas.
"""

import argparse
import sys
from typing import Any

import numpy as np

from refmeta.lab.display import plural
from refmeta.lab.files import locked, new_folder, save_result
from refmeta.lab.geometry.quadratics import computed, labels
from refmeta.lab.runs import Options, Result, add_command, drawing, show, whole

TOLERANCE = 1e-9
POINTS = {"direction": "({:.3f}, {:.3f})", "fixed_point": "({:.7f}, {:.7f})", "arrived": "({:.7f}, {:.7f})"}
ROW = "{:>17}  {:<15}{:>16} {:>25}{:>26}{:>9}"
CELL = "{c1:>10.5f} ({formula[0]:g}){c2:>8.5f} ({formula[1]:g})"
IN_WORDS = {"joint": ("1", "0"), "reptile": ("k", "k(k − 1)/2"), "fomaml": ("1", "k − 1"), "maml": ("1", "2(k − 1)")}
FIGURES = ["geometry.png", "weights.png"]
HELP = "compute where each method leads on two quadratic tasks"
STEPS = "inner steps of MAML and first-order MAML; Reptile takes one more, on their query"

options: Options = {
    "alpha": {"type": float, "default": 0.25, "help": "inner rate α (default: 0.25)"},
    "inner_steps": {"type": whole(1), "default": 1, "metavar": "K", "help": f"{STEPS} (default: 1)"},
    "out": {"metavar": "DIR", "help": "a new folder (default: runs/geometry)"},
}


def add_geometry(commands: Any) -> None:
    """Add `geometry` to argparse's subparsers."""
    add_command(commands, "geometry", HELP, str(__doc__), options, run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 where a closed form or a coefficient is not confirmed."""
    result = computed(args.alpha, args.inner_steps + 1)
    draw = drawing("geometry")
    with locked(new_folder(args.out, "runs/geometry")) as folder:
        print(text(result))
        save_result(folder / "result.json", result)
        show(folder, "result.json", FIGURES, draw, folder, result)
    if wrong := unconfirmed(result):
        print(f"refmeta geometry: not confirmed to {TOLERANCE:g}: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def unconfirmed(result: Result) -> list[str]:
    """The results that differ from their closed form by TOLERANCE or more."""
    ends = [f"{end['method']}'s fixed point" for end in result["methods"] if not end["apart"] < TOLERANCE]
    return ends + [
        f"{row['method']}'s coefficients for k = {row['k']}"
        for row in result["coefficients"]
        if not np.allclose([row["c1"], row["c2"], row["rest"]], [*row["formula"], 0], 0, TOLERANCE)
    ]


def text(result: Result) -> str:
    """Both tables."""
    (x, y), k, rows = result["theta"], result["inner_steps"] + 1, result["coefficients"]
    lines = [
        f"\ntwo tasks ½ (θ − c)ᵀ A (θ − c) in the plane, θ = ({x:g}, {y:g}), α = {result['alpha']:g}; MAML and "
        f"first-order MAML\nafter {plural(k - 1, 'inner step')}, Reptile after {k}\n",
        ROW.format("", "direction", "on task 1", "fixed point", "descent arrives at", "apart"),
    ]
    for end in result["methods"]:
        points = (form.format(*end[key]) if end[key] else "runs away" for key, form in POINTS.items())
        lines.append(ROW.format(*labels(k)[end["method"]], *points, f"{end['apart']:.0e}"))
    away = ", ".join(labels(k)[end["method"]][0] for end in result["methods"] if not end["arrived"])
    lines += [f"\nruns away: {away}, because its weights add up to a negative curvature"] * bool(away)
    heads = [f"    k = {k}:  c₁          c₂" for k in dict.fromkeys(row["k"] for row in rows)]
    lines += [
        "\nleading order, E g = c₁ AvgGrad − c₂ α AvgGradInner + O(α²), over every draw of k minibatches of a task;",
        "the last is the query of MAML and first-order MAML, a step of Reptile. Measured, in brackets the formula\n",
        "".join([" " * 17, *heads, "    k:  c₁  c₂"]),
    ]
    for method, (c1, c2) in IN_WORDS.items():
        cells = "".join(CELL.format(**row) for row in rows if row["method"] == method)
        lines.append(f"{labels(2)[method][0]:>17}{cells}{c1:>10}  {c2}")
    return "\n".join(lines)
