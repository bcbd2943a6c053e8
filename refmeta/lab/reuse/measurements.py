"""Does MAML learn rapidly, or reuse its features? The four measurements of Raghu et al. 2020.

A layer is two arrays of θ, its W and its b; the last layer is the head, the others the body. Where a layer gives images
(n, h, w, channels), each pixel's vector of channels is one sample.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np

from refmeta import algorithms
from refmeta.checks import check_alpha, check_head, check_tasks, check_theta
from refmeta.fast import recorded
from refmeta.lab.training import NEVER, Checkpoint, Report, Step, summary, train, trajectory_of_head
from refmeta.models import MLP, ConvNet, cross_entropy, one_hot, softmax
from refmeta.trees import Array, Batch, Loss, Supports, Tasks, Theta, axpy, dot

Net = MLP | ConvNet
Task = tuple[Supports, Batch]
Score = Callable[[Theta, Batch], float]
Row = dict[str, Any]


# --- Two sets of features of the same samples -------------------------------------------------------


def cca(x: Array, y: Array, variance: float = 0.99) -> float:
    """SVCCA: the mean canonical correlation of X and Y, each cut to the directions that hold `variance` of it.

        X − mean = U S Vᵀ, of U the first k columns, the least k with Σ_{i≤k} s_i² ≥ variance · Σ s_i²;  Y likewise
        ρ_1 ≥ ρ_2 ≥ … = the singular values of U_Xᵀ U_Y,        cca = mean ρ                  Raghu et al. 2017, §2

    X (n, p), Y (n, q). variance=1 is CCA itself, which no invertible linear map of X or Y changes.
    ValueError: X and Y are not matrices of finite numbers with the same n; n is not above p and q, where CCA finds
    correlations of 1 in anything; all features are constant; a variance outside (0, 1].
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance: expected a number above 0, at most 1; got {variance}")
    u, v = (_directions(features, variance) for features in _for_cca(x, y))
    return float(np.linalg.svd(u.T @ v, compute_uv=False).clip(max=1).mean())


def pwcca(x: Array, y: Array) -> float:
    """Projection-weighted CCA: the mean canonical correlation, weighted by how much of X lies in each direction.

        pwcca = Σ_i α_i ρ_i / Σ_i α_i,   α_i = Σ_j |⟨h_i, x_j⟩|                          Morcos et al. 2018

    h_i: the canonical variate of X with the correlation ρ_i; x_j: the features of X, centred. No invertible map of Y
    changes it, but X counts by its features: it is not symmetric, and a rotation of X matters.
    Shapes and errors as for `cca`.
    """
    x, y = _for_cca(x, y)
    u, v = _directions(x, 1), _directions(y, 1)
    a, rho, _ = np.linalg.svd(u.T @ v, full_matrices=False)
    weights = abs((u @ a).T @ x).sum(axis=1)
    return float(weights @ rho.clip(max=1) / weights.sum())


def linear_cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment, which no rotation of X or Y and no factor changes.

        cka = ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms, X and Y centred                    Kornblith et al. 2019

    X (n, p), Y (n, q). ValueError: as for `cca`, but any n will do.
    """
    x, y = _centred(x, y)
    norm = np.linalg.norm
    return float(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))


def _centred(*pair: Array) -> list[Array]:
    """X and Y with their features centred and their largest entry 1; float32 stays."""
    x, y = map(np.asarray, pair)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"expected features (n, p) and (n, q) of the same n samples, got {x.shape} and {y.shape}")
    centred = []
    for features in (x, y):
        if not np.isfinite(features).all():
            raise ValueError("features: expected finite numbers, got NaN or inf")
        apart = (features - features.mean(axis=0, dtype=float)).astype(np.result_type(features, np.float32))
        largest = abs(apart).max(initial=0)
        if largest <= 8 * np.finfo(apart.dtype).eps * abs(features).max(initial=0):
            raise ValueError("features: all are constant, so there is nothing to compare")
        centred.append(apart / largest)
    return centred


def _for_cca(x: Array, y: Array) -> list[Array]:
    x, y = _centred(x, y)
    n, most = len(x), max(x.shape[1], y.shape[1])
    if n <= most:
        raise ValueError(f"CCA of {n} samples with {most} features finds correlations of 1 in anything: more samples")
    return [x, y]


def _directions(x: Array, variance: float) -> Array:
    """U of the centred X, cut as `cca` says; directions that are rounding errors are none."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    beyond = np.cumsum((s**2)[::-1])[::-1]  # from direction i on: summed from the small end, which keeps the small
    return u[:, (beyond > (1 - variance) * beyond[0]) & (s > 8 * x.shape[1] * np.finfo(x.dtype).eps * s[0])]


# --- The four measurements --------------------------------------------------------------------------


def frozen(loss: Loss, theta: Theta, tasks: Tasks, alpha: float, score: Score) -> list[Row]:
    """The score on the query when the first n layers keep θ at test: n = 0 (all adapt), 1, … all of them (none does).

        mean over tasks of score(φ_K; Q), φ_K: θ with the arrays behind layer n adapted       Raghu et al. 2020, table 1

    score(φ, query) is a number: `refmeta.models.accuracy(net)`, or the loss. Rows {frozen, mean, ci95, diverged}: the
    95 % interval is over the tasks; those whose φ_K or score is not finite are counted and left out.
    ValueError and TypeError: all that `refmeta.adapt` refuses, a loss that `refmeta.recorded` refuses, no tasks.
    """
    theta, tasks, alpha = check_theta(theta), check_tasks(tasks), check_alpha(alpha)
    rows = []
    for n in range(_layers(theta) + 1):
        phis = _adapted(loss, theta, tasks, alpha, len(theta) - 2 * n)
        scores = [nan if phi is None else float(score(phi, query)) for phi, (_, query) in zip(phis, tasks, strict=True)]
        rows.append({"frozen": n, **_mean(scores)})
    return rows


def similarity(net: Net, loss: Loss, theta: Theta, tasks: Tasks, alpha: float) -> list[Row]:
    """How alike each layer's activations on the query are before and after adaptation, by the three indices.

        mean over tasks of index(layer(θ; Q), layer(φ_K; Q))                                   Raghu et al. 2020, fig. 2

    Rows {layer, cca, pwcca, cka}, each index {mean, ci95, diverged} as in `frozen`; the last layer is the head.
    Errors: as `frozen`; as `cca`, of which n is too small where the query has too few examples.
    """
    theta, tasks, alpha = check_theta(theta), check_tasks(tasks), check_alpha(alpha)
    phis = _adapted(loss, theta, tasks, alpha)
    return _alike(net, ((theta, phi, x) for phi, (_, (x, _)) in zip(phis, tasks, strict=True)))


def between(net: Net, theta: Theta, other: Theta, tasks: Tasks) -> list[Row]:
    """The baseline of `similarity`: two θ of different seeds on the same queries, neither adapted.

    Rows and errors as there. Raghu et al. 2020, table 3.
    """
    theta, other, tasks = check_theta(theta), check_theta(other, "other"), check_tasks(tasks)
    return _alike(net, ((theta, other, x) for _, (x, _) in tasks))


def moved(loss: Loss, theta: Theta, tasks: Tasks, alpha: float, head: int | None = None) -> list[Row]:
    """How far adaptation moves each layer, relative to its norm.

        mean over tasks of ‖φ_K − θ‖ / ‖θ‖, the Euclidean norm over a layer's W and b        Raghu et al. 2020, app. B

    `head` counts the arrays that adapt, from the end (default: all). Rows {layer, mean, ci95, diverged}, as `frozen`.
    Errors: as `frozen`. ValueError: a layer of norm 0.
    """
    theta, tasks, alpha = check_theta(theta), check_tasks(tasks), check_alpha(alpha)
    check_head(len(theta) if head is None else head, len(theta))
    slices = [slice(2 * i, 2 * i + 2) for i in range(_layers(theta))]
    norms = [dot(theta[layer], theta[layer]) ** 0.5 for layer in slices]
    if 0 in norms:
        raise ValueError(f"theta: layer {norms.index(0) + 1} is 0, so no distance is relative to it")
    shares = []
    for phi in _adapted(loss, theta, tasks, alpha, head):
        step = [leaf * nan for leaf in theta] if phi is None else axpy(-1, theta, phi)
        shares.append([dot(step[k], step[k]) ** 0.5 / norm for k, norm in zip(slices, norms, strict=True)])
    return [{"layer": i + 1, **_mean(column)} for i, column in enumerate(zip(*shares, strict=True))]


def nil(net: Net, theta: Theta, task: Task) -> float:
    """The accuracy on the query of a network without its head, in which nothing adapts (NIL: no inner loop).

        ŷ(x) = argmax Σ_j a_j · onehot(y_j),   a = softmax_j cos(f(x), f(x_j))                 Raghu et al. 2020, §5.1

    f: the activations below the head, flattened; (x_j, y_j): the distinct support batches' examples.
    TypeError: labels that are not integers. ValueError: negative ones, no support, nothing below the head.
    """
    supports, (x, labels) = task
    batches = list({id(batch): batch for batch in supports}.values())  # full-batch adaptation repeats one
    if not batches:
        raise ValueError("nil: expected a support batch, got none")
    examples, given = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    if any(np.asarray(each).dtype.kind not in "iu" for each in (given, labels)):
        raise TypeError("nil: labels must be integers: only classes can be voted for")
    if given.min() < 0:
        raise ValueError(f"nil: labels must be 0, 1, …; got {given.min()}")
    cosines = _unit_features(net, theta, x) @ _unit_features(net, theta, examples).T
    votes = softmax(cosines) @ one_hot(given, int(given.max()) + 1)
    return float(np.mean(votes.argmax(axis=1) == labels))


def regimes(trained: Mapping[str, tuple[Net, Theta]], tasks: Tasks) -> list[Row]:
    """How useful a body each way of training leaves: the `nil` accuracy of every (net, θ) on the same tasks.

    Rows {regime, mean, ci95, diverged}. Raghu et al. 2020, table 5. Errors: as `nil`.
    """
    tasks = check_tasks(tasks)
    return [{"regime": name, **_mean([nil(*pair, task) for task in tasks])} for name, pair in trained.items()]


def multiclass(
    net: ConvNet,
    classes: Sequence[Array],
    examples: int,
    iterations: int,
    outer: Step,
    seed: int = 0,
    report: Report = lambda iteration, loss: None,
    resumable: Callable[[Theta, Step], Checkpoint] = lambda theta, outer: NEVER,
) -> tuple[ConvNet, Theta]:
    """The network with a head for all classes, trained to tell them apart: ordinary classification, no tasks.

        θ ← outer(θ, ∇ cross-entropy of `examples` images, each of any class)             Raghu et al. 2020, table 5

    classes: arrays (examples, h, w, channels), as `refmeta.lab.fewshot` has them. resumable(θ, outer): `train`'s
    checkpoint. ValueError: no classes; as `train`.
    """
    if not classes:
        raise ValueError("classes: expected at least one array of images, got none")
    wide = replace(net, classes=len(classes))
    theta = wide.init(np.random.default_rng([seed, 2**32]), dtype=classes[0].dtype)

    def sample(rng: np.random.Generator) -> Tasks:
        labels = rng.integers(len(classes), size=examples)
        return [([], (np.stack([classes[c][rng.integers(len(classes[c]))] for c in labels]), labels))]

    joint, loss, kept = recorded(algorithms.joint), cross_entropy(wide), resumable(theta, outer)
    return wide, train(joint, loss, theta, sample, 0.0, iterations, outer, seed, report, checkpoint=kept)[0]


def _layers(theta: Theta) -> int:
    if len(theta) < 2 or len(theta) % 2:
        raise ValueError(f"theta: expected two arrays for each layer, got {len(theta)}")
    return len(theta) // 2


def _adapted(loss: Loss, theta: Theta, tasks: Tasks, alpha: float, head: int | None = None) -> Iterator[Theta | None]:
    """φ_K of every task; None where it is not finite."""
    adapt = recorded(trajectory_of_head(len(theta) if head is None else head))
    for supports, _ in tasks:
        with np.errstate(over="ignore", invalid="ignore"):
            phi = adapt(loss, theta, supports, alpha)[-1] if supports and head != 0 else theta
        yield phi if all(np.isfinite(leaf).all() for leaf in phi) else None


def _alike(net: Net, pairs: Iterable[tuple[Theta, Theta | None, Array]]) -> list[Row]:
    """For each layer the indices between θ and φ on x, over all (θ, φ, x)."""
    indices = {"cca": cca, "pwcca": pwcca, "cka": linear_cka}
    found = []
    for theta, phi, x in pairs:
        both = zip(net.layers(theta, x), net.layers(theta if phi is None else phi, x), strict=True)
        values = [[index(_samples(a), _samples(b)) for index in indices.values()] for a, b in both]
        found.append(np.full_like(values, nan) if phi is None else values)  # nan: counted as diverged
    by_layer = np.array(found).transpose(1, 2, 0)
    return [
        {"layer": i + 1, **{name: _mean(values) for name, values in zip(indices, layer, strict=True)}}
        for i, layer in enumerate(by_layer)
    ]


def _samples(activations: Array) -> Array:
    return activations.reshape(-1, activations.shape[-1])


def _unit_features(net: Net, theta: Theta, x: Array) -> Array:
    *body, _ = net.layers(theta, x)
    if not body:
        raise ValueError("nil: the network has nothing below its head")
    features = body[-1].reshape(len(x), -1)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(features.dtype).tiny)


def _mean(values: Sequence[float]) -> Row:
    row = summary(values)
    return {key: row[key] for key in ("mean", "ci95", "diverged")}
