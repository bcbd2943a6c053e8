"""Puts the explorer into one file, refmeta/lab/explorer.html: `python -m docs.explorer`. It needs Node."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from refmeta.conformance.cases import number
from refmeta.conformance.mistakes import MISTAKES
from refmeta.lab.display import COLOURS, DARK
from refmeta.lab.explore import PAGE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CERTIFIED = ROOT / "tests/javascript/refmeta.mjs"
MODULES = {path.stem: path for path in sorted(HERE.glob("*.mjs"))} | {"refmeta": CERTIFIED}
METHODS = "maml", "anil", "reptile", "joint"
WRONG = "#d01c48"  # the answer of a wrong program: no algorithm's colour


def page() -> str:
    """The file: page.html with its style, its modules and its data in it."""
    vectors = [vector for tier in ("canary", "scalar") for vector in certified(tier)]
    data = {"thetas": thetas(), "vectors": vectors, "reports": {id: report(id) for id in mistakes()}}
    parts = {
        "style": colours() + (HERE / "style.css").read_text(),
        "importmap": json.dumps({"imports": {name: packed(path.read_bytes()) for name, path in MODULES.items()}}),
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/"),
    }
    text = (HERE / "page.html").read_text()
    for name, part in parts.items():
        text = text.replace(f"{{{{{name}}}}}", part)
    return text


def packed(script: bytes) -> str:
    return "data:text/javascript;base64," + base64.b64encode(script).decode()


def colours() -> str:
    """The algorithms' colours, as in all figures, on a light page and on a dark one."""
    light = {**COLOURS, "wrong": WRONG}
    dark = {name: DARK.get(colour, "#ff6b86") for name, colour in light.items()}
    rules = [
        ":root {" + "".join(f" --{name}: {colour};" for name, colour in each.items()) + " }" for each in (light, dark)
    ]
    return f"{rules[0]}\n@media (prefers-color-scheme: dark) {{ {rules[1]} }}\n"


def thetas() -> dict[str, str]:
    """For each method the numbers of θ, array after array, as little-endian float32 in base64."""
    saved = np.load(HERE / "theta.npz")
    leaves = {m: [saved[name].ravel() for name in saved.files if name.startswith(f"{m}.")] for m in METHODS}
    return {m: base64.b64encode(np.concatenate(each).astype("<f4").tobytes()).decode() for m, each in leaves.items()}


def certified(tier: str) -> list[dict]:
    """The vectors of a tier, and of what is expected the gradient alone, as plain numbers."""
    content = json.loads((ROOT / f"refmeta/vectors/{tier}.json").read_text())
    wanted = "algorithm", "model", "loss", "alpha", "head", "conventions", "theta", "tasks"
    return [
        {name: vector[name] for name in wanted}
        | {"expected": {"gradient": [[number(x) for x in leaf] for leaf in vector["expected"]["gradient"]]}}
        for vector in content["vectors"]
    ]


# --- The reports ---


def mistakes() -> list[str]:
    """The names of mistakes.mjs."""
    text = (HERE / "mistakes.mjs").read_text().partition("export const mistakes = {")[2].partition("\n};")[0]
    return [line.partition(":")[0].strip() for line in text.splitlines() if line[2:3].isalpha()]


def report(id: str) -> dict[str, str]:
    """What `refmeta check` says of the mistake in JavaScript."""
    with TemporaryDirectory() as folder:
        command = ["check", "--algorithm", "maml", "--", "node", str(program(Path(folder), id))]
        done = subprocess.run([sys.executable, "-m", "refmeta", *command], capture_output=True, text=True)
    if done.returncode != 1:
        raise SystemExit(f"{id}: expected a report of something wrong, got {done.stdout}{done.stderr}")
    lines = re.sub(r"\n {11} *", " ", done.stdout.partition("\n\n")[2]).splitlines()  # the browser wraps them
    said = [line.strip() for line in lines if not re.match(" +(maml-|…)", line)]  # not case by case
    return {"title": MISTAKES[id].title, "report": "\n".join(said).strip()}


def program(folder: Path, id: str) -> Path:
    """A program for `refmeta check` that answers with this mistake."""
    shutil.copy(CERTIFIED, folder)
    (folder / "mistakes.mjs").write_text((HERE / "mistakes.mjs").read_text().replace('"refmeta"', '"./refmeta.mjs"'))
    right = 'import { metaGradient } from "./refmeta.mjs";'
    wrong = f'import {{ wrongGradient }} from "./mistakes.mjs";\nconst metaGradient = (v) => wrongGradient("{id}", v);'
    text = CERTIFIED.with_name("harness.mjs").read_text()
    if right not in text:
        raise SystemExit(f"harness.mjs: expected the line {right}")
    (folder / "wrong.mjs").write_text(text.replace(right, wrong))
    return folder / "wrong.mjs"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.stat().st_size / 1000:.0f} kB")
