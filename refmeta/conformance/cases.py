"""Reading the vectors: from JSON to cases, with nothing taken on trust."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import autograd.numpy as anp
import numpy as np

from refmeta.models import MLP, cross_entropy, squared_error
from refmeta.spec.trees import Array, Batch, Loss, Tasks, Theta

FOLDER = Path(__file__).parent.parent / "vectors"
FORMAT, FORMAT_VERSION = "refmeta-vectors", 1


@dataclass(frozen=True)
class Case:
    """One question: which meta-gradient? All that a harness sees.

    model: {"kind": "quadratic"}: L(θ; (A, b)) = ½ tᵀAt − bᵀt, t all arrays of θ one after the other;
           {"kind": "mlp", "widths": […], "activation": "tanh"}: θ = [W1, b1, …], layers x @ W + b.
    loss:  {"kind": "quadratic" | "squared_error" | "cross_entropy"}.
    conventions: tasks "sum" | "mean"; examples "mean" | "sum" (squared error: over all entries); reptile
           "displacement" (θ − φ) | "over_alpha" | "over_alpha_k".
    head: how many of the last arrays adapt, for ANIL; else None.
    """

    id: str
    algorithm: str
    theta: Theta
    tasks: Tasks
    alpha: float
    head: int | None
    model: dict[str, Any]
    loss: dict[str, str]
    conventions: dict[str, str]
    names: list[str]
    tier: str
    flags: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.id

    @property
    def loss_fn(self) -> Loss:
        """The case's loss as a refmeta callable of (θ, batch)."""
        return loss_of(self.model["kind"], tuple(self.model.get("widths", ())), *_reduction(self))

    def astype(self, dtype: str) -> "Case":
        """The case with its numbers in another float type; they are representable in float32."""
        kind = np.dtype(dtype)

        def cast(a: Array) -> Array:
            return a if a.dtype.kind in "iu" else a.astype(kind)

        def batch(b: Batch | None) -> Any:
            return None if b is None else (cast(b[0]), cast(b[1]))

        tasks = [([batch(b) for b in supports], batch(query)) for supports, query in self.tasks]
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Case(**{**values, "theta": [cast(leaf) for leaf in self.theta], "tasks": tasks})


def _reduction(case: Case) -> tuple[str, str]:
    return case.loss["kind"], case.conventions["examples"]


@cache
def loss_of(model: str, widths: tuple[int, ...], loss: str, examples: str) -> Loss:
    """The loss that a vector describes in words."""
    if model == "quadratic":
        return quadratic
    net = MLP(widths, activation="tanh")
    mean = (cross_entropy if loss == "cross_entropy" else squared_error)(net)

    def total(theta: Theta, batch: Batch) -> Array:
        n = anp.shape(batch[0])[-2]
        return mean(theta, batch) * (n if loss == "cross_entropy" else n * widths[-1])

    return total if examples == "sum" else mean


def quadratic(theta: Theta, batch: Batch) -> Array:
    """½ tᵀAt − bᵀt, t all arrays of θ one after the other; summed over a task axis on θ and the batch."""
    A, b = batch
    t = anp.concatenate([anp.reshape(leaf, (*anp.shape(b)[:-1], -1)) for leaf in theta], axis=-1)
    return anp.sum(t * ((A @ t[..., None])[..., 0] / 2 - b))


@dataclass(frozen=True)
class Vector:
    """A case with its answers.

    expected: the gradient; and of every task the gradient, φ_0 … φ_K ("phi"), ∇L(φ_k; S_k) ("inner_gradient") and
    v_0 … v_K ("adjoint", for MAML and ANIL). suspects: of every known mistake the gradient of every task.
    """

    case: Case
    gradient: Theta
    per_task: list[dict[str, Any]]
    suspects: dict[str, list[Theta]]
    tolerance: dict[str, float]
    scale: list[float]
    difficulty: str
    provenance: dict[str, Any]


class VectorError(ValueError):
    """A vector file that cannot be trusted: it says which file and why."""


@cache
def load(folder: Path = FOLDER) -> tuple[Vector, ...]:
    """All vectors of a folder, in order.

    VectorError: a file that is missing, changed since it was made (SHA-256), no JSON, of a format of the future, or
    with fields missing or unknown.
    """
    manifest = _json(folder / "manifest.json", _read(folder / "manifest.json"))
    _check_format(folder / "manifest.json", manifest)
    vectors = []
    for name, entry in manifest["files"].items():
        path = folder / name
        data = _read(path)
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise VectorError(f"{path}: has changed since the manifest was made (SHA-256 differs)")
        vectors += parse(path, data)
    return tuple(vectors)


def parse(path: Path, data: bytes) -> list[Vector]:
    """The vectors of one file. VectorError as in `load`."""
    content = _json(path, data)
    _check_format(path, content)
    try:
        _only(content, {"format", "format_version", "tier", "notes", "vectors"})
        return [_vector(v, content["tier"]) for v in content["vectors"]]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise VectorError(f"{path}: not as schema.json says: {error!r}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VectorError(f"{path}: cannot be read: {error.strerror}") from error


def _json(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise VectorError(f"{path}: is not JSON, or is cut off: {error}") from error


def _check_format(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise VectorError(f"{path}: is no file of {FORMAT}")
    if content.get("format_version") != FORMAT_VERSION:
        raise VectorError(
            f"{path}: has format version {content.get('format_version')!r}; this refmeta reads {FORMAT_VERSION}"
        )


def _only(given: dict[str, Any], known: set[str]) -> None:
    if set(given) != known:
        raise ValueError(f"unknown fields {sorted(set(given) - known)}, missing {sorted(known - set(given))}")


_FIELDS = {"id", "algorithm", "flags", "difficulty", "model", "loss", "alpha", "head", "conventions", "theta"}
_FIELDS |= {"tasks", "expected", "suspects", "tolerance", "scale", "provenance"}


def _vector(v: dict[str, Any], tier: str) -> Vector:
    _only(v, _FIELDS)
    for leaf in v["theta"]:
        _only(leaf, {"name", "shape", "data"})
    _only(v["expected"], {"gradient", "tasks"})
    _only(v["tolerance"], {"float32", "float64"})
    theta = [array(leaf) for leaf in v["theta"]]
    case = Case(
        id=v["id"],
        algorithm=v["algorithm"],
        theta=theta,
        tasks=[_task(task) for task in v["tasks"]],
        alpha=number(v["alpha"]),
        head=v["head"],
        model=v["model"],
        loss=v["loss"],
        conventions=v["conventions"],
        names=[leaf["name"] for leaf in v["theta"]],
        tier=tier,
        flags=v["flags"],
    )
    per_task = [{key: _trees(value, theta) for key, value in task.items()} for task in v["expected"]["tasks"]]
    return Vector(
        case=case,
        gradient=_tree(v["expected"]["gradient"], theta),
        per_task=per_task,
        suspects={s["id"]: [_tree(t, theta) for t in s["tasks"]] for s in v["suspects"]},
        tolerance={dtype: number(t) for dtype, t in v["tolerance"].items()},
        scale=[number(s) for s in v["scale"]],
        difficulty=v["difficulty"],
        provenance=v["provenance"],
    )


def number(value: Any) -> float:
    """A number of a vector: a C99 hex float in a string, or a plain JSON number."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError(f"expected a number, got {value!r}")
    return float.fromhex(value) if isinstance(value, str) else float(value)


def array(a: dict[str, Any]) -> Array:
    """An array of a vector: {"shape", "data"} row by row; integers where all data are labels."""
    if a.get("labels"):
        return np.array(a["data"], dtype=np.int64).reshape(a["shape"])
    return np.array([number(v) for v in a["data"]], dtype=float).reshape(a["shape"])


def _task(task: dict[str, Any]) -> Any:
    _only(task, {"supports", "query"})
    return [_batch(b) for b in task["supports"]], task["query"] and _batch(task["query"])


def _batch(b: dict[str, Any]) -> Batch:
    _only(b, {"x", "y"})
    return array(b["x"]), array(b["y"])


def _tree(leaves: Sequence[Sequence[Any]], theta: Theta) -> Theta:
    """Answers hold the data of each array only: the shapes are those of θ."""
    pairs = zip(leaves, theta, strict=True)
    return [np.array([number(v) for v in data], dtype=float).reshape(leaf.shape) for data, leaf in pairs]


def _trees(value: Any, theta: Theta) -> Any:
    """A gradient, or a list of them: phi, inner_gradient, adjoint."""
    if value and value[0] and isinstance(value[0][0], list):
        return [_tree(tree, theta) for tree in value]
    return _tree(value, theta) if value else []
