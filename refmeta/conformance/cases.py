"""Reading the vectors: from JSON to cases, with nothing taken on trust."""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from math import isfinite
from operator import index
from pathlib import Path
from typing import Any

import autograd.numpy as anp
import numpy as np

from refmeta.models import MLP, cross_entropy, squared_error
from refmeta.trees import Array, Batch, Loss, Tasks, Theta

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
    try:
        digests = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise VectorError(f"{folder / 'manifest.json'}: expected files, each with its sha256: {error!r}") from error
    for name, digest in digests.items():
        path = folder / name
        if Path(name).name != name:
            raise VectorError(f"{folder / 'manifest.json'}: names {path}, which is not beside it")
        data = _read(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise VectorError(f"{path}: has changed since the manifest was made (SHA-256 differs)")
        vectors += parse(path, data)
    return tuple(vectors)


def parse(path: Path, data: bytes) -> list[Vector]:
    """The vectors of one file. VectorError as in `load`."""
    content = _json(path, data)
    _check_format(path, content)
    try:
        _keep_to(_schema(), content, path.name)
        return [_vector(v, content["tier"]) for v in content["vectors"]]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise VectorError(f"{path}: not as schema.json says: {error!r}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        raise VectorError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error


def _json(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VectorError(f"{path}: is not JSON, or is cut off: {error}") from error


def _check_format(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise VectorError(f"{path}: is no file of {FORMAT}")
    if content.get("format_version") != FORMAT_VERSION:
        raise VectorError(
            f"{path}: has format version {content.get('format_version')!r}; this refmeta reads {FORMAT_VERSION}"
        )


_TYPES = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "null": (type(None),),
}


@cache
def _schema() -> Any:
    """schema.json with its references followed, and for each "type" the classes of what json reads."""
    schema = json.loads((FOLDER / "schema.json").read_bytes())

    def followed(node: Any) -> Any:
        if isinstance(node, list):
            return [followed(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return followed(schema["$defs"][node["$ref"].rpartition("/")[2]])
        rule = {key: followed(each) for key, each in node.items() if key != "$defs"}
        if "type" in rule:
            names = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
            rule["type"] = [each for name in names for each in _TYPES[name]]
        return rule

    return followed(schema)


def _has_type(value: Any, rule: dict[str, Any]) -> bool:
    return "type" not in rule or type(value) in rule["type"]  # type: a bool is an int, but no integer of JSON


def _keep_to(rule: dict[str, Any], value: Any, at: str) -> None:
    """ValueError, with the place, unless a value keeps to its rule of schema.json."""
    if "oneOf" in rule:
        *others, rule = [each for each in rule["oneOf"] if _has_type(value, each)] or rule["oneOf"]
        for each in others:
            with suppress(ValueError):
                _keep_to(each, value, at)
                return
    if (
        not _has_type(value, rule)
        or ("const" in rule and (type(value), value) != (type(rule["const"]), rule["const"]))
        or ("enum" in rule and value not in rule["enum"])
        or ("pattern" in rule and not re.search(rule["pattern"], value))
        or ("minimum" in rule and value is not None and value < rule["minimum"])
    ):
        raise ValueError(f"{at}: {value!r:.60}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            _keep_to(rule["items"], item, f"{at}[{i}]")
    elif isinstance(value, dict):
        known, others = rule.get("properties", {}), rule["additionalProperties"]
        unknown, missing = set() if others else set(value) - set(known), set(rule.get("required", ())) - set(value)
        if unknown or missing:
            raise ValueError(f"{at}: unknown fields {sorted(unknown)}, missing {sorted(missing)}")
        for key, item in value.items():
            _keep_to(known.get(key, others), item, f"{at}.{key}")


def _vector(v: dict[str, Any], tier: str) -> Vector:
    theta = [array(leaf) for leaf in v["theta"]]
    case = Case(
        id=v["id"],
        algorithm=v["algorithm"],
        theta=theta,
        tasks=[_task(task) for task in v["tasks"]],
        alpha=float(finite([v["alpha"]])[0]),
        head=v["head"],
        model=v["model"],
        loss=v["loss"],
        conventions=v["conventions"],
        names=[leaf["name"] for leaf in v["theta"]],
        tier=tier,
        flags=v["flags"],
    )
    scale = finite(v["scale"])
    if len(scale) != len(theta) or not (scale > 0).all():
        raise ValueError(f"{v['id']}: expected a scale above 0 for each array of theta")
    per_task = [{key: _trees(value, theta) for key, value in task.items()} for task in v["expected"]["tasks"]]
    return Vector(
        case=case,
        gradient=_tree(v["expected"]["gradient"], theta),
        per_task=per_task,
        suspects={s["id"]: [_tree(t, theta) for t in s["tasks"]] for s in v["suspects"]},
        tolerance=dict(zip(v["tolerance"], finite(list(v["tolerance"].values())).tolist(), strict=True)),
        scale=scale.tolist(),
        difficulty=v["difficulty"],
        provenance=v["provenance"],
    )


def number(value: Any) -> float:
    """A number of a vector: a C99 hex float in a string, or a plain JSON number."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError(f"expected a number, got {value!r:.60}")
    found = float.fromhex(value) if isinstance(value, str) else float(value)
    if isinstance(value, str) and isfinite(found) and "x" not in value.lower():
        raise ValueError(f"expected a hex float as '0x1.8p+0', got {value!r:.60}")  # fromhex takes 0.5 for 5/16
    return found


def finite(values: Sequence[Any]) -> Array:
    """Numbers of a vector, none of them infinite or NaN."""
    found = np.array([number(v) for v in values], dtype=float)
    if not np.isfinite(found).all():
        raise ValueError(f"expected finite numbers, got {values!r:.60}")
    return found


def array(a: dict[str, Any]) -> Array:
    """An array of a vector: {"shape", "data"} row by row; integers where all data are labels."""
    if a.get("labels"):
        return np.array([index(v) for v in a["data"]], dtype=np.int64).reshape(a["shape"])
    return finite(a["data"]).reshape(a["shape"])


def _task(task: dict[str, Any]) -> Any:
    return [_batch(b) for b in task["supports"]], task["query"] and _batch(task["query"])


def _batch(b: dict[str, Any]) -> Batch:
    return array(b["x"]), array(b["y"])


def _tree(leaves: Sequence[Sequence[Any]], theta: Theta) -> Theta:
    """Answers hold the data of each array only: the shapes are those of θ."""
    pairs = zip(leaves, theta, strict=True)
    return [finite(data).reshape(leaf.shape) for data, leaf in pairs]


def _trees(value: Any, theta: Theta) -> Any:
    """A gradient, or a list of them: phi, inner_gradient, adjoint."""
    if value and value[0] and isinstance(value[0][0], list):
        return [_tree(tree, theta) for tree in value]
    return _tree(value, theta) if value else []
