"""The four measurements of Raghu et al. 2020: does MAML learn rapidly, or reuse its features?

A layer is two arrays of θ, its W and its b; the last layer is the head, the others the body. Where a layer gives images
(n, h, w, channels), each pixel's vector of channels is one sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np

from refmeta import algorithms
from refmeta.checks import check_alpha, check_head, check_tasks, check_theta
from refmeta.fast import recorded
from refmeta.lab.fewshot.images import as_float
from refmeta.lab.training import Step, summary, train, trajectory_of_head
from refmeta.models import MLP, ConvNet, cross_entropy, one_hot, softmax
from refmeta.trees import Array, Batch, Loss, Supports, Tasks, Theta, axpy, dot

Net = MLP | ConvNet
Task = tuple[Supports, Batch]
Score = Callable[[Theta, Batch], float]
Layers = Callable[[Theta, Array], list[Array]]  # (θ, x) to each layer's activations, (…, units), the head's last
Row = dict[str, Any]


# --- Two sets of features of the same samples -------------------------------------------------------


def cca(x: Array, y: Array, variance: float = 0.99) -> float:
    """SVCCA: the mean canonical correlation of X and Y, each cut to the directions with this share of its variance.

        X − mean = U S Vᵀ, of U the first k columns, the least k with Σ_{i≤k} s_i² ≥ variance · Σ s_i²;  Y likewise
        ρ_1 ≥ ρ_2 ≥ … = the singular values of U_Xᵀ U_Y,        cca = mean ρ                  Raghu et al. 2017, §2

    X (n, p), Y (n, q). variance=1 is CCA itself, which no invertible linear map of X or Y changes.
    ValueError: X and Y are not matrices of finite numbers with the same n; n is not above p and q (then every
    correlation is 1); all features are constant; a variance outside (0, 1].
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance: expected a number above 0, at most 1; got {variance}")
    u, v = (_directions(features, variance) for features in _normalised(x, y))
    return float(np.linalg.svd(u.T @ v, compute_uv=False).clip(max=1).mean())


def pwcca(x: Array, y: Array) -> float:
    """Projection-weighted CCA: the mean canonical correlation, weighted by how much of X lies in each direction.

        pwcca = Σ_i α_i ρ_i / Σ_i α_i,   α_i = Σ_j |⟨h_i, x_j⟩|                          Morcos et al. 2018

    h_i: the canonical variate of X with the correlation ρ_i; x_j: the features of X, centred. No invertible map of Y
    changes it, but X counts by its features: it is not symmetric, and a rotation of X matters.
    Shapes and errors as for `cca`.
    """
    x, y = _normalised(x, y)
    u, v = _directions(x, 1), _directions(y, 1)
    a, rho, _ = np.linalg.svd(u.T @ v, full_matrices=False)
    weights = abs((u @ a).T @ x).sum(axis=1)
    return float(weights @ rho.clip(max=1) / weights.sum())


def linear_cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment. No rotation and no factor of X or Y changes it.

        cka = ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms, X and Y centred                    Kornblith et al. 2019

    X (n, p), Y (n, q), any n. ValueError: as for `cca`.
    """
    x, y = _normalised(x, y)
    norm = np.linalg.norm
    return float(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))


INDICES = {"cca": cca, "pwcca": pwcca, "cka": linear_cka}


def _normalised(x: Array, y: Array) -> list[Array]:
    """X and Y with their features centred and their largest entry 1; float32 stays."""
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"expected features (n, p) and (n, q) of the same n samples, got {x.shape} and {y.shape}")
    centred = []
    for features in (x, y):
        if not np.isfinite(features).all():
            raise ValueError("features: expected finite numbers, got NaN or inf")
        apart = (features - features.mean(axis=0, dtype=float)).astype(np.result_type(features, np.float32))
        largest = abs(apart).max(initial=0)
        if largest <= 8 * np.finfo(apart.dtype).eps * abs(features).max(initial=0):
            raise ValueError("features: all are constant, so they cannot be compared")
        centred.append(apart / largest)
    return centred


def _directions(x: Array, variance: float) -> Array:
    """U of the centred X, cut as `cca` says; directions that are rounding errors are none."""
    n, p = x.shape
    if n <= p:
        raise ValueError(f"CCA of {n} samples with {p} features always gives 1: expected more samples than features")
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    beyond = np.cumsum((s**2)[::-1])[::-1]  # from direction i on, summed from the small end to keep small ones
    return u[:, (beyond > (1 - variance) * beyond[0]) & (s > 8 * p * np.finfo(x.dtype).eps * s[0])]


# --- The four measurements --------------------------------------------------------------------------


def frozen(loss: Loss, theta: Theta, tasks: Tasks, alpha: float, score: Score) -> list[Row]:
    """The score on the query when the first n layers keep θ at test, for n = 0 (all adapt), 1, …, all (none does).

        mean over tasks of score(φ_K; Q), φ_K: θ with the arrays behind layer n adapted       Raghu et al. 2020, table 1

    score(φ, query) is a number: `refmeta.models.accuracy(net)`, or the loss. Rows {frozen, mean, ci95, diverged}: the
    95 % interval is over the tasks; tasks whose φ_K or score is not finite are counted, and left out.
    ValueError, TypeError: no tasks, arguments that `refmeta.adapt` refuses, a loss that `refmeta.recorded` refuses.
    """
    theta, tasks, alpha = _checked(theta, tasks, alpha)
    heads = range(len(theta), -1, -2)
    return [{"frozen": n, **_mean(_after(score, loss, theta, tasks, alpha, head))} for n, head in enumerate(heads)]


def centred(net: Net) -> Layers:
    """The layers of a classifier, each example's logits less their mean over the classes.

        z − mean_c z_c 1,   because softmax(z + a 1) = softmax(z) for any number a of an example

    Cross-entropy neither uses nor trains the mean over the classes; CCA of raw logits compares mostly that.
    """

    def layers(theta: Theta, x: Array) -> list[Array]:
        *body, z = net.layers(theta, x)
        for _ in range(2):  # subtracted once, a large mean leaves a rounding error that would count as a direction
            z = z - z.mean(-1, keepdims=True)
        return [*body, z]

    return layers


def similarity(layers: Layers, loss: Loss, theta: Theta, tasks: Tasks, alpha: float) -> list[Row]:
    """How alike each layer's activations on the query are before and after adaptation, by the three indices.

        mean over tasks of index(layer(θ; Q), layer(φ_K; Q))                                   Raghu et al. 2020, fig. 2

    layers: `centred(net)` if the loss is a cross-entropy, else `net.layers`.
    Rows {layer, cca, pwcca, cka}, each index {mean, ci95, diverged} as in `frozen`; the last layer is the head.
    Errors: as `frozen` and `cca`, whose n is the number of the query's examples.
    """
    theta, tasks, alpha = _checked(theta, tasks, alpha)
    found = _after(lambda phi, query: _alike(layers, theta, phi, query[0]), loss, theta, tasks, alpha, len(theta))
    return _by_layer(found)


def between(layers: Layers, theta: Theta, other: Theta, tasks: Tasks) -> list[Row]:
    """The baseline of `similarity`: two θ of different seeds on the same queries, neither adapted.

    Layers, rows and errors as there. Raghu et al. 2020, table 3.
    """
    theta, other, tasks = check_theta(theta), check_theta(other, "other"), check_tasks(tasks)
    return _by_layer([_alike(layers, theta, other, x) for _, (x, _) in tasks])


def moved(loss: Loss, theta: Theta, tasks: Tasks, alpha: float, head: int | None = None) -> list[Row]:
    """How far adaptation moves each layer, relative to its norm.

        mean over tasks of ‖φ_K − θ‖ / ‖θ‖, the Euclidean norm over a layer's W and b        Raghu et al. 2020, app. B

    `head` counts the arrays that adapt, from the end (default: all). Rows {layer, mean, ci95, diverged}, as `frozen`.
    Errors: as `frozen`. ValueError: a layer of norm 0.
    """
    theta, tasks, alpha = _checked(theta, tasks, alpha)
    head = len(theta) if head is None else head
    check_head(head, len(theta))
    norms = _norms(theta)
    if 0 in norms:
        raise ValueError(f"theta: layer {norms.index(0) + 1} is 0, so no distance relative to it exists")
    found = _after(lambda phi, _: np.divide(_norms(axpy(-1, theta, phi)), norms), loss, theta, tasks, alpha, head)
    return [{"layer": i, **_mean(values)} for i, values in enumerate(np.transpose(found), 1)]


def nil(net: Net, theta: Theta, task: Task) -> float:
    """The accuracy on the query of a network without its head, in which nothing adapts (NIL: no inner loop).

        ŷ(x) = argmax Σ_j a_j · onehot(y_j),   a = softmax_j cos(f(x), f(x_j))                 Raghu et al. 2020, §5.1

    f: the activations below the head, flattened; (x_j, y_j): the distinct support batches' examples.
    TypeError: labels that are not integers. ValueError: negative ones, no support, nothing below the head.
    """
    supports, (x, labels) = task
    batches = list({id(batch): batch for batch in supports}.values())  # full-batch adaptation repeats one batch
    if not batches:
        raise ValueError("nil: expected a support batch, got none")
    examples, given = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    if any(np.asarray(each).dtype.kind not in "iu" for each in (given, labels)):
        raise TypeError("nil: expected integer labels, because the examples vote for classes")
    if given.min() < 0:
        raise ValueError(f"nil: labels must be 0, 1, …; got {given.min()}")
    cosines = _unit_features(net, theta, x) @ _unit_features(net, theta, examples).T
    votes = softmax(cosines) @ one_hot(given, int(given.max()) + 1)
    return float(np.mean(votes.argmax(axis=1) == labels))


def regimes(trained: Mapping[str, tuple[Net, Theta]], tasks: Tasks) -> list[Row]:
    """The `nil` accuracy of every (net, θ) on the same tasks: how useful the body of each training is.

    Rows {regime, mean, ci95, diverged}. Raghu et al. 2020, table 5. Errors: as `nil`.
    """
    tasks = check_tasks(tasks)
    return [{"regime": name, **_mean([nil(*pair, task) for task in tasks])} for name, pair in trained.items()]


def multiclass(
    net: ConvNet, classes: Sequence[Array], examples: int, iterations: int, outer: Step, seed: int = 0, **more: Any
) -> tuple[ConvNet, Theta]:
    """The network with a head for all classes, trained to tell them apart: ordinary classification, no tasks.

        θ ← outer(θ, ∇ cross-entropy of `examples` images, each of any class)             Raghu et al. 2020, table 5

    classes: arrays (examples, h, w, channels), as `refmeta.lab.fewshot` has them: float, or uint8, see `as_float`.
    more: `train`'s report and checkpoint; it starts at the θ of `for_all`. ValueError: no classes; as `train`.
    """
    wide, theta = for_all(net, classes, seed)

    def sample(rng: np.random.Generator) -> Tasks:
        labels = rng.integers(len(classes), size=examples)
        return [([], (as_float(np.stack([classes[c][rng.integers(len(classes[c]))] for c in labels])), labels))]

    joint, loss = recorded(algorithms.joint), cross_entropy(wide)
    return wide, train(joint, loss, theta, sample, 0.0, iterations, outer, seed, **more)[0]


def for_all(net: ConvNet, classes: Sequence[Array], seed: int) -> tuple[ConvNet, Theta]:
    """The network with a head for all classes, and θ before its training. ValueError: no classes."""
    if not classes:
        raise ValueError("classes: expected at least one array of images, got none")
    wide = replace(net, classes=len(classes))
    return wide, wide.init(np.random.default_rng([seed, 2**32]), dtype=as_float(classes[0][:1]).dtype)


# --- What they share --------------------------------------------------------------------------------


def _checked(theta: Theta, tasks: Tasks, alpha: float) -> tuple[Theta, Tasks, float]:
    theta = check_theta(theta)
    if len(theta) % 2:
        raise ValueError(f"theta: expected two arrays for each layer, got {len(theta)}")
    return theta, check_tasks(tasks), check_alpha(alpha)


def _after(
    measure: Callable[[Theta, Batch], Any], loss: Loss, theta: Theta, tasks: Tasks, alpha: float, head: int
) -> list[Array]:
    """measure(φ_K, query) of every task, NaN where φ_K is not finite."""
    adapt, found = recorded(trajectory_of_head(head)), []
    for supports, query in tasks:
        with np.errstate(over="ignore", invalid="ignore"):
            phi = adapt(loss, theta, supports, alpha)[-1] if supports and head else theta
        finite = all(np.isfinite(leaf).all() for leaf in phi)
        found.append(np.multiply(measure(phi if finite else theta, query), 1.0 if finite else nan))
    return found


def _mean(values: Sequence[float]) -> Row:
    return {key: value for key, value in summary(values).items() if key != "median"}


def _alike(layers: Layers, theta: Theta, other: Theta, x: Array) -> list[list[float]]:
    """For each layer, the indices between θ and another θ on x."""
    both = ([a.reshape(-1, a.shape[-1]) for a in layers(each, x)] for each in (theta, other))
    return [[index(*pair) for index in INDICES.values()] for pair in zip(*both, strict=True)]


def _by_layer(found: Sequence[Any]) -> list[Row]:
    """The rows of what `_alike` found in each task."""
    layers = enumerate(np.transpose(found, (1, 2, 0)), 1)
    return [{"layer": i, **dict(zip(INDICES, map(_mean, layer), strict=True))} for i, layer in layers]


def _norms(theta: Theta) -> list[float]:
    """Of each layer, the Euclidean norm over its W and b."""
    layers = [theta[i : i + 2] for i in range(0, len(theta), 2)]
    return [dot(layer, layer) ** 0.5 for layer in layers]


def _unit_features(net: Net, theta: Theta, x: Array) -> Array:
    *body, _ = net.layers(theta, x)
    if not body:
        raise ValueError("nil: the network has nothing below its head")
    features = body[-1].reshape(len(x), -1)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(features.dtype).tiny)
