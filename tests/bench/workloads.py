"""The benchmark's workloads: networks, batches of tasks and inner loops, and how a worker gets one."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refmeta.models import MLP, ConvNet
from refmeta.trees import Array, Batch, Theta


class Workload(NamedTuple):
    """A network, a batch of tasks and an inner loop."""

    net: MLP | ConvNet
    tasks: int
    shots: int  # examples in a support batch and in a query
    steps: int
    alpha: float
    algorithms: tuple[str, ...]
    repeated: bool = True  # every inner step has the same support batch
    dtype: str = "float64"


FOUR = ("maml", "fomaml", "anil", "reptile")
SINE = MLP((1, 40, 40, 1))
WORKLOADS = {
    "S1": Workload(SINE, 25, 10, 1, 0.01, FOUR),
    "S2": Workload(SINE, 25, 10, 5, 0.01, FOUR),
    "S3": Workload(SINE, 4, 5, 1, 0.01, FOUR),
    "S4": Workload(MLP((1, 64, 64, 1)), 1, 10, 32, 0.02, ("reptile",), repeated=False),
    "S5": Workload(SINE, 1000, 10, 1, 0.01, ("maml",)),
    "C1": Workload(ConvNet((28, 28, 1), (16, 16), 5), 16, 5, 5, 0.4, ("maml", "anil"), dtype="float32"),
}


def write(work: Workload, algorithm: str, path: Path) -> Path:
    """The work as an npz archive in the form that `serving.load` reads: arrays, and "about" in JSON."""
    rng, lead = np.random.default_rng(0), (work.tasks,)
    theta = _with_kernels(work.net, work.net.init(rng, dtype=work.dtype))
    support = _batches(work, rng, (1 if work.repeated else work.steps, *lead))
    data = [np.broadcast_to(a, (work.steps, *a.shape[1:])) for a in support] + [*_batches(work, rng, lead)]
    floats = [a.astype(work.dtype) if a.dtype.kind == "f" else a for a in data]
    arrays = {f"theta{i}": leaf for i, leaf in enumerate(theta)}
    arrays |= dict(zip(("support_x", "support_y", "query_x", "query_y"), floats, strict=True))
    np.savez(path, about=json.dumps(_about(work, algorithm)), **arrays)
    return path


def _about(work: Workload, algorithm: str) -> dict[str, Any]:
    kind, loss = ("mlp", "squared_error") if isinstance(work.net, MLP) else ("conv", "cross_entropy")
    about = {"algorithm": algorithm, "alpha": work.alpha, "head": 2, "steps": work.steps, "dtype": work.dtype}
    return {**about, "repeated": work.repeated, "model": {"kind": kind, **asdict(work.net)}, "loss": loss}


def _batches(work: Workload, rng: np.random.Generator, lead: tuple[int, ...]) -> Batch:
    """x and y with these axes before their examples: sine waves for an MLP, noise with labels for images."""
    if isinstance(work.net, MLP):
        x: Array = rng.uniform(-5, 5, (*lead, work.shots, 1))
        return x, rng.uniform(0.1, 5, (work.tasks, 1, 1)) * np.sin(x)
    x = rng.uniform(0, 1, (*lead, work.shots, *work.net.image))
    return x, np.broadcast_to(np.arange(work.shots) % work.net.classes, (*lead, work.shots))


def _with_kernels(net: MLP | ConvNet, theta: Theta) -> Theta:
    """θ as other libraries know it: a convolution's W is (3, 3, in, out)."""
    convolutions = 2 * len(net.filters) if isinstance(net, ConvNet) else 0
    return [
        leaf.reshape(3, 3, -1, leaf.shape[-1]) if i < convolutions and leaf.ndim == 2 else leaf
        for i, leaf in enumerate(theta)
    ]
