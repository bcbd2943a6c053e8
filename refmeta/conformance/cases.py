"""A case is a question, a vector is a case with its answers. Both are read from JSON that is not trusted."""

import hashlib
import json
import stat
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from math import isfinite
from operator import index
from pathlib import Path
from typing import Any

import autograd.numpy as anp
import numpy as np

from refmeta.conformance import losses
from refmeta.conformance.rules import ALGORITHMS, Derivatives, Setting, flat, setting, unflat
from refmeta.models import ACTIVATIONS, MLP, cross_entropy, squared_error
from refmeta.trees import Array, Batch, Loss, Supports, Tasks, Theta, add

FOLDER = Path(__file__).parent.parent / "vectors"
FORMAT, FORMAT_VERSION = "refmeta-vectors", 1
LONGEST = 1 << 24  # bytes of a file, and of one answer's line
MOST = 1 << 17  # commas and brackets in a file, five times those of the largest; each may take 200 bytes of memory
DTYPES = ("float32", "float64")
PLAIN = ("id", "algorithm", "model", "loss", "alpha", "head", "conventions")  # fields that JSON has as they are
CONVENTIONS = {"tasks": "sum mean", "examples": "mean sum", "reptile": "displacement over_alpha over_alpha_k"}


def plain(a: Array) -> dict[str, Any]:
    """An array as JSON: its shape, and its numbers row by row."""
    return {"shape": list(a.shape), "data": a.ravel().tolist()}


@dataclass(frozen=True)
class Case:
    """One question to an implementation: what is this meta-gradient? A harness sees nothing else.

    model: {"kind": "quadratic"}, without widths or activation: L(θ; (A, b)) = ½ tᵀAt − bᵀt, t all arrays of θ one
           after the other; {"kind": "mlp", "widths": […], "activation": "tanh" | "relu"}: θ = [W1, b1, …], layers
           x @ W + b.
    loss:  {"kind": "quadratic" | "squared_error" | "cross_entropy"}.
    tasks: a task may have any number of support batches, none included; a query may be None for Reptile.
    conventions: tasks "sum" | "mean"; examples, which quadratics ignore, "mean" | "sum" (squared error: over all
           entries, so that a mean divides by np.size(y)); reptile, for Reptile alone, "displacement" (θ − φ) |
           "over_alpha" (divided by α) | "over_alpha_k" (by αK, with K the number of the task's own support batches).
    head: how many of the last arrays adapt, for ANIL; else None. It may be 0: the body is theta[: len(theta) - head].
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
        if self.model["kind"] == "quadratic":
            return quadratic
        labels, widths = self.loss["kind"] == "cross_entropy", self.model["widths"]
        mean = (cross_entropy if labels else squared_error)(MLP(tuple(widths), self.model["activation"]))
        if self.conventions["examples"] == "mean":
            return mean
        return lambda theta, batch: mean(theta, batch) * (anp.shape(batch[0])[-2] * (1 if labels else widths[-1]))

    @property
    def derivatives(self) -> Derivatives:
        """The derivatives of the case's loss."""
        if self.model["kind"] == "quadratic":  # by hand: a thousand pairs of mistakes are tried on these first
            return Derivatives(
                lambda phi, batch: unflat(batch[0] @ flat(phi) - batch[1], phi),
                lambda phi, batch, v: unflat(batch[0] @ flat(v), phi),
                value=quadratic,
            )
        labels, total = self.loss["kind"] == "cross_entropy", self.conventions["examples"] == "sum"
        return losses.Network(self.model["activation"], labels, total).derivatives._replace(value=self.loss_fn)

    @property
    def settings(self) -> list[Setting]:
        """One Setting for each task, in the arithmetic of the case's arrays."""
        summed, of_examples = self.conventions["examples"] == "sum", self.model["kind"] == "mlp"
        outputs = self.model["widths"][-1] if self.loss["kind"] == "squared_error" else None
        same: dict[str, Any] = {"outputs": outputs, "summed": summed, "tasks": self.tasks, "divisor": self.divisor}
        found = [setting(self.algorithm, self.theta, task, self.alpha, self.head) for task in self.tasks]
        sizes = [len(s.supports[0][0]) if of_examples and s.supports and not summed else None for s in found]
        return [
            s._replace(n=n, place=i, scale=self.factor(s.supports), **same)
            for i, (s, n) in enumerate(zip(found, sizes, strict=True))
        ]

    def factor(self, supports: Supports) -> Any:
        """What the declared convention multiplies a task's displacement by; 1 for all but Reptile."""
        if self.algorithm != "reptile" or self.conventions["reptile"] == "displacement":
            return 1
        return 1 / (self.alpha * (len(supports) if self.conventions["reptile"] == "over_alpha_k" else 1))

    def scaled(self, per_task: Sequence[Theta]) -> list[Theta]:
        """The tasks' gradients g_i or displacements θ − φ_i, each under the case's convention for Reptile."""
        factors = [self.factor(supports) for supports, _ in self.tasks]
        return [[leaf * factor for leaf in g] for g, factor in zip(per_task, factors, strict=True)]

    @property
    def divisor(self) -> int:
        """The number of tasks where the case asks for their mean, else 1."""
        return len(self.tasks) if self.conventions["tasks"] == "mean" else 1

    def combine(self, per_task: Sequence[Theta]) -> Theta:
        """The answer to the case from the gradient, or displacement, of each task: Σ_i g_i under its conventions."""
        return [leaf / self.divisor for leaf in add(self.scaled(per_task))]

    def each(self, change: Callable[[Array], Array]) -> "Case":
        """The case with `change` applied to every array in θ and in the tasks."""

        def changed(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(changed, value))
            return None if value is None else change(value)

        return replace(self, theta=changed(self.theta), tasks=changed(self.tasks))

    def astype(self, dtype: str) -> "Case":
        """A copy that shares nothing, its numbers in another float type; float32 represents all of them."""
        return deepcopy(self).each(lambda a: a if a.dtype.kind in "iu" else a.astype(np.dtype(dtype)))

    def to_json(self, write: Callable[[Array], dict[str, Any]] = plain) -> dict[str, Any]:
        """The case as a program in any language gets it, every number exact; `write` makes JSON of an array."""

        def batch(b: Batch | None) -> Any:
            return b and {"x": write(b[0]), "y": write(b[1])}

        return {
            **{name: getattr(self, name) for name in PLAIN},
            "theta": [{"name": name, **write(leaf)} for name, leaf in zip(self.names, self.theta, strict=True)],
            "tasks": [{"supports": [batch(b) for b in s], "query": batch(q)} for s, q in self.tasks],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], tier: str = "") -> "Case":
        """The case that `to_json` wrote. ValueError, TypeError, LookupError, AttributeError: it is none."""

        def batch(b: Any) -> Batch:
            x, y = fields(b, "x", "y")
            return array(x), array(y, labels=content["loss"]["kind"] == "cross_entropy")

        def task(t: Any) -> Any:
            supports, query = fields(t, "supports", "query")
            return [batch(b) for b in supports], None if query is None else batch(query)

        return cls(
            **{name: content[name] for name in PLAIN} | {"alpha": finite([content["alpha"]]).item()},
            theta=[array(leaf) for leaf in content["theta"]],
            tasks=[task(t) for t in content["tasks"]],
            names=[leaf["name"] for leaf in content["theta"]],
            tier=tier,
            flags=content.get("flags", []),
        )


def quadratic(theta: Theta, batch: Batch) -> Array:
    """½ tᵀAt − bᵀt, t all arrays of θ one after the other; summed over a task axis on θ and the batch."""
    A, b = batch
    t = anp.concatenate([anp.reshape(leaf, (*anp.shape(b)[:-1], -1)) for leaf in theta], axis=-1)
    return anp.sum(t * ((A @ t[..., None])[..., 0] / 2 - b))


# --- Vectors, and their files ---


@dataclass(frozen=True)
class Vector:
    """A case with its answers.

    gradient: the right one. per_task: each task's gradient, φ_0 … φ_K ("phi"), ∇L(φ_k; S_k) ("inner_gradient") and
    v_0 … v_K ("adjoint", for MAML and ANIL). suspects: for every known mistake, each task's gradient with it.
    """

    case: Case
    gradient: Theta
    per_task: list[dict[str, Any]]
    suspects: dict[str, list[Theta]]
    tolerance: dict[str, float]
    scale: list[float]

    @classmethod
    def from_json(cls, v: Any, tier: str) -> "Vector":
        """A vector from its JSON. The exceptions of `Case.from_json`, and OverflowError: it is none."""
        asked = (*PLAIN, "theta", "tasks", "flags", "difficulty", "provenance")
        *_, expected, suspects, tolerance, scale = fields(v, *asked, "expected", "suspects", "tolerance", "scale")
        gradient, tasks = fields(expected, "gradient", "tasks")
        case = Case.from_json(v, tier)
        check_words(case)

        def tree(leaves: Any) -> Theta:
            """Answers hold the data of each array only: the shapes are those of θ."""
            return [finite(data).reshape(leaf.shape) for data, leaf in zip(leaves, case.theta, strict=True)]

        def task(t: Any) -> dict[str, Any]:
            fields(t, "gradient", "phi", "inner_gradient", optional=["adjoint"])
            return {key: tree(value) if key == "gradient" else list(map(tree, value)) for key, value in t.items()}

        if len(scale) != len(case.theta) or min(finite(scale)) <= 0:
            raise ValueError(f"{case.id}: expected a scale above 0 for each array of theta")
        wrong = {mistake["id"]: list(map(tree, mistake["tasks"])) for mistake in suspects}
        tolerances = dict(zip(DTYPES, finite(fields(tolerance, *DTYPES)).tolist(), strict=True))
        return cls(case, tree(gradient), list(map(task, tasks)), wrong, tolerances, finite(scale).tolist())


class VectorError(ValueError):
    """A vector file cannot be trusted; the message says which and why."""


@cache
def load(folder: Path = FOLDER) -> tuple[Vector, ...]:
    """All vectors of a folder, in order.

    VectorError: a file is missing, not a regular file, changed since it was made (SHA-256), not JSON, or of another
    format version; or a field is missing, unknown or of another type.
    """
    manifest = folder / "manifest.json"
    content = _content(manifest, _read(manifest))
    try:
        digests = {name: entry["sha256"] for name, entry in content["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise VectorError(f"{manifest}: expected files, each with its sha256: {error!r}") from error
    vectors: list[Vector] = []
    for name, digest in digests.items():
        path = folder / name
        if Path(name).name != name:
            raise VectorError(f"{manifest}: names {one_line(str(path))}, which is not beside it")
        data = _read(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise VectorError(f"{path}: has changed since the manifest was made (SHA-256 differs)")
        vectors += parse(path, data)
    return tuple(vectors)


def parse(path: Path, data: bytes) -> list[Vector]:
    """The vectors of one file. VectorError as in `load`."""
    content = _content(path, data)
    try:
        _, _, tier, _, vectors = fields(content, "format", "format_version", "tier", "notes", "vectors")
        return [Vector.from_json(v, tier) for v in vectors]
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise VectorError(f"{path}: not as schema.json says: {error!r}") from error


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LONGEST:  # a pipe would be waited for without end
            raise ValueError(f"expected a regular file of at most {LONGEST} bytes")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        raise VectorError(f"{one_line(str(path))}: cannot be read: {getattr(error, 'strerror', error)}") from error


def _content(path: Path, data: bytes) -> Any:
    """A file's JSON. VectorError: it is none, or of another format."""
    try:
        content = decoded(data)
    except (ValueError, RecursionError) as error:
        raise VectorError(f"{path}: is not JSON, or is cut off: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise VectorError(f"{path}: is no file of {FORMAT}")
    if (version := content.get("format_version")) != FORMAT_VERSION:
        raise VectorError(f"{path}: has format version {version!r}; this refmeta reads {FORMAT_VERSION}")
    return content


def decoded(data: bytes, most: int = MOST) -> Any:
    """Foreign JSON. ValueError, RecursionError: it is none, or has so many values that it would fill the memory."""
    if sum(map(data.count, (b",", b"[", b"{"))) > most:  # one of these stands before every value but the first
        raise ValueError(f"expected at most {most} commas and brackets")
    return json.loads(data)


def one_line(text: str) -> str:
    """Foreign text in one line; characters that a terminal would obey or not show become escapes as \\x1b."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def fields(content: Any, *names: str, optional: Sequence[str] = ()) -> list[Any]:
    """The values of an object's fields. ValueError unless it has these, perhaps the optional ones, and no others."""
    if not isinstance(content, dict) or not set(names) <= set(content) <= {*names, *optional}:
        raise ValueError(f"expected an object of {', '.join(names)}; got {content!r:.60}")
    return [content[name] for name in names]


def check_words(case: Case) -> None:
    """ValueError unless a case uses only the words that `Case` lists."""
    fields(case.conventions, *CONVENTIONS)
    widths = case.model.get("widths", [1])
    networks = [{"kind": "mlp", "widths": widths, "activation": name} for name in ACTIVATIONS]
    rules: list[tuple[str, Any, list[Any]]] = [
        ("algorithm", case.algorithm, list(ALGORITHMS)),
        ("id", case.id.partition("-")[0], [case.algorithm]),
        ("model", case.model, [{"kind": "quadratic"}, *networks]),
        ("widths", min(widths) > 0, [True]),
        ("loss", case.loss, [{"kind": kind} for kind in ("quadratic", "squared_error", "cross_entropy")]),
        ("head", type(case.head), [int, type(None)]),
        *((name, case.conventions[name], words.split()) for name, words in CONVENTIONS.items()),
        *(("name or flag", type(word), [str]) for word in (*case.names, *case.flags, case.tier)),
    ]
    for what, word, words in rules:
        if word not in words:
            raise ValueError(f"{case.id}: {what}: expected one of {words!r:.99}, got {word!r:.60}")


def number(value: Any) -> float:
    """A vector's number: a C99 hex float in a string, or a plain JSON number."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError(f"expected a number, got {value!r:.60}")
    found = float.fromhex(value) if isinstance(value, str) else float(value)
    if isinstance(value, str) and isfinite(found) and "x" not in value.lower():
        raise ValueError(f"expected a hex float as '0x1.8p+0', got {value!r:.60}")  # fromhex would read 0.5 as 5/16
    return found


def finite(values: Any) -> Array:
    """The numbers of a list. ValueError: one is infinite or NaN."""
    found = np.array([number(v) for v in values], dtype=float)
    if not isinstance(values, list) or not np.isfinite(found).all():
        raise ValueError(f"expected a list of finite numbers, got {values!r:.60}")
    return found


def array(a: Any, labels: bool = False) -> Array:
    """An array of a vector: {"shape", "data"} row by row; integers where the data are labels."""
    shape, data = fields(a, "shape", "data", optional=["labels", "name"])
    found = (np.array([index(v) for v in data], np.int64) if labels else finite(data)).reshape(shape)
    if list(found.shape) != shape:  # NumPy would replace a length of −1
        raise ValueError(f"expected the lengths of an array's axes, got {shape!r:.60}")
    return found
