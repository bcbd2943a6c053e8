"""Networks and losses as pure functions, and the few primitives that they are made of.

Every loss here is a scalar function of (θ, batch), and accepts a leading task axis on θ and on the batch:
it then returns the sum over the tasks of each task's loss, which is what `refmeta.stacked` needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import autograd.numpy as np
import numpy
from autograd.extend import defvjp, primitive
from autograd.tracer import getval

from refmeta.trees import Array, Batch, Loss, Theta

# --- Primitives, each with its derivative beside it -------------------------------------------------
#
# Their rules use only them and functions that autograd can derive, so derivatives of any order exist. Two correct
# stock autograd: it derives tanh through cosh², which overflows to NaN, and gives maximum(x, 0) the slope ½ at 0,
# where PyTorch, JAX and TensorFlow have 0. One node in place of several also makes gradients 1.5 to 2 times
# faster. In a rule, g is the derivative of the end result in the value.


@primitive
def matmul_nt(a: Array, b: Array) -> Array:
    """a bᵀ, over any leading axes."""
    return a @ b.mT


@primitive
def matmul_tn(a: Array, b: Array) -> Array:
    """aᵀ b."""
    return a.mT @ b


defvjp(matmul_nt, lambda y, a, b: lambda g: np.matmul(g, b), lambda y, a, b: lambda g: matmul_tn(g, a))
defvjp(matmul_tn, lambda y, a, b: lambda g: matmul_nt(b, g), lambda y, a, b: lambda g: np.matmul(a, g))


@primitive
def sum_rows(a: Array) -> Array:
    """(…, n, m) to (…, m)."""
    return numpy.ones(a.shape[-2], a.dtype) @ a  # BLAS: up to ten times faster than a.sum(-2)


@primitive
def repeat_row(a: Array, n: int) -> Array:
    """(…, m) to (…, n, m)."""
    return numpy.repeat(a[..., None, :], n, -2)


defvjp(sum_rows, lambda y, a: lambda g: repeat_row(g, a.shape[-2]))
defvjp(repeat_row, lambda y, a, n: lambda g: sum_rows(g))


@primitive
def affine(x: Array, W: Array, b: Array) -> Array:
    """x W + b: a layer before its activation."""
    return x @ W + b[..., None, :]


defvjp(
    affine,
    lambda y, x, W, b: lambda g: matmul_nt(g, W),
    lambda y, x, W, b: lambda g: matmul_tn(x, g),
    lambda y, x, W, b: lambda g: sum_rows(g),
)


@primitive
def tanh(x: Array) -> Array:
    return numpy.tanh(x)


defvjp(tanh, lambda y, x: lambda g: g * (1 - y * y))


@primitive
def relu(x: Array) -> Array:
    return numpy.maximum(x, 0)


defvjp(relu, lambda y, x: lambda g: g * (x > 0))


@primitive
def patches(x: Array) -> Array:
    """The 3×3 patches around every second pixel, 0 beyond the border: (…, n, h, w, c) to (…, n·⌈h/2⌉·⌈w/2⌉, 9·c)."""
    *lead, n, h, w, c = x.shape
    padded = numpy.zeros((*lead, n, h + 2, w + 2, c), x.dtype)
    padded[..., 1 : h + 1, 1 : w + 1, :] = x
    windows = numpy.lib.stride_tricks.sliding_window_view(padded, (3, 3, c), axis=(-3, -2, -1))
    return windows[..., ::2, ::2, 0, :, :, :].reshape(*lead, -1, 9 * c)


@primitive
def unpatches(p: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint of `patches`: an image of this shape, each patch added where it came from."""
    *lead, h, w, c = shape
    parts = p.reshape(*lead, (h + 1) // 2, (w + 1) // 2, 3, 3, c)
    padded = numpy.zeros((*lead, h + 2, w + 2, c), p.dtype)
    for i, j in product((1, 2, 0), repeat=2):
        part, place = parts[..., i, j, :], padded[..., i : i + h : 2, j : j + w : 2, :]
        if i and j:
            place[...] = part  # the first patch there
        else:
            place += part
    return padded[..., 1 : h + 1, 1 : w + 1, :]


defvjp(patches, lambda y, x: lambda g: unpatches(g, x.shape))
defvjp(unpatches, lambda y, p, shape: lambda g: patches(g))


@primitive
def centred(a: Array) -> Array:
    """a minus the mean of its rows, over any leading axes: a projection, so its own derivative."""
    return a - a.mean(-2, keepdims=True)


@primitive
def dot_rows(a: Array, b: Array) -> Array:
    """Σ_n a·b, of (…, n, m) and (…, n, m): (…, m)."""
    return numpy.einsum("...nm,...nm->...m", a, b)


@primitive
def scale_rows(a: Array, r: Array) -> Array:
    """Every row of a (…, n, m) times r (…, m)."""
    return a * r[..., None, :]


defvjp(centred, lambda y, a: lambda g: centred(g))
defvjp(dot_rows, lambda y, a, b: lambda g: scale_rows(b, g), lambda y, a, b: lambda g: scale_rows(a, g))
defvjp(scale_rows, lambda y, a, r: lambda g: scale_rows(g, r), lambda y, a, r: lambda g: dot_rows(g, a))


@primitive
def squared_distance(a: Array, b: Array) -> Array:
    """Σ (a − b)²."""
    d = (a - b).ravel()
    return d @ d


defvjp(squared_distance, lambda y, a, b: lambda g: 2 * g * (a - b), lambda y, a, b: lambda g: 2 * g * (b - a))


@primitive
def softmax(z: Array) -> Array:
    """e^z / Σ e^z over the last axis; the shift by max z keeps e^z from overflowing."""
    e = numpy.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def one_hot(labels: Array, classes: int) -> Array:
    return labels[..., None] == numpy.arange(classes)


@primitive
def negative_log_likelihood(z: Array, labels: Array) -> Array:
    """Σ −log softmax(z)[label], over all examples."""
    z = z - z.max(-1, keepdims=True)
    return (numpy.log(numpy.exp(z).sum(-1)) - numpy.take_along_axis(z, labels[..., None], -1)[..., 0]).sum()


defvjp(softmax, lambda y, z: lambda g: y * (g - np.sum(g * y, axis=-1, keepdims=True)))
defvjp(negative_log_likelihood, lambda y, z, labels: lambda g: g * (softmax(z) - one_hot(labels, z.shape[-1])))


# --- Networks ---------------------------------------------------------------------------------------


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": tanh, "relu": relu}
EPSILON = 1e-3  # beside a variance, as in TensorFlow 1's batch_norm, which Finn et al. 2017 and Nichol et al. 2018 use


def standardised(z: Array) -> Array:
    """Each column of z (…, n, m) with mean 0 and variance 1 over its n rows: (z − mean) / √(variance + ε)."""
    c = centred(z)
    return scale_rows(c, (dot_rows(c, c) * (1 / z.shape[-2]) + EPSILON) ** -0.5)


def batch_norm(z: Array, n: int) -> Array:
    """Every unit standardised over the batch and the pixels. An example's output depends on the others."""
    return standardised(z)


def layer_norm(z: Array, n: int) -> Array:
    """Each of the n examples standardised over its units and pixels, independently of the others."""
    units = np.swapaxes(np.reshape(z, (*z.shape[:-2], n, -1)), -1, -2)
    return np.reshape(np.swapaxes(standardised(units), -1, -2), z.shape)


NORMS: dict[str, Callable[[Array, int], Array] | None] = {"none": None, "batch": batch_norm, "layer": layer_norm}


def _he(rng: numpy.random.Generator, n: int, m: int) -> tuple[Array, Array]:
    return rng.normal(0, (2 / n) ** 0.5, (n, m)), numpy.zeros(m)


def _glorot(rng: numpy.random.Generator, n: int, m: int) -> tuple[Array, Array]:
    limit = (6 / (n + m)) ** 0.5
    return rng.uniform(-limit, limit, (n, m)), numpy.zeros(m)


def _finn2017(rng: numpy.random.Generator, n: int, m: int) -> tuple[Array, Array]:
    W = rng.normal(0, 0.01, (n, m))
    while (far := abs(W) > 0.02).any():  # a normal truncated at two deviations: draw again
        W[far] = rng.normal(0, 0.01, far.sum())
    return W, numpy.zeros(m)


def _nichol2018(rng: numpy.random.Generator, n: int, m: int) -> tuple[Array, Array]:
    limit = n**-0.5
    return rng.uniform(-limit, limit, (n, m)), rng.uniform(-limit, limit, m)


INITIALISATIONS = {"he": _he, "glorot": _glorot, "finn2017": _finn2017, "nichol2018": _nichol2018}


class _Network:
    """The common part of MLP and ConvNet: layers of two arrays, W and b, of these `shapes`."""

    activation: str
    norm: str

    def _hidden(self, x: Array, W: Array, b: Array, n: int) -> Array:
        """activation(norm(x W) + b), for n examples."""
        norm = NORMS[self.norm]
        z = affine(x, W, b) if norm is None else norm(np.matmul(x, W), n) + repeat_row(b, x.shape[-2])
        return ACTIVATIONS[self.activation](z)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each array of θ."""
        raise NotImplementedError

    def layers(self, theta: Theta, x: Array) -> list[Array]:
        """The output of each layer, after its activation; the last is the network's."""
        raise NotImplementedError

    @property
    def names(self) -> list[str]:
        """The names of θ's arrays: W1, b1, W2, b2, …"""
        return [f"{kind}{layer + 1}" for layer in range(len(self.shapes) // 2) for kind in "Wb"]

    def init(self, rng: numpy.random.Generator, scheme: str | None = None, dtype: Any = numpy.float64) -> Theta:
        """A fresh θ. Schemes (default: he for relu, glorot for tanh), for a layer of n inputs, m outputs:

        he          W ~ N(0, 2/n)                            b = 0       He et al. 2015
        glorot      W ~ U(±√(6/(n+m)))                       b = 0       Glorot & Bengio 2010
        finn2017    W ~ N(0, 0.01²) cut at ±0.02             b = 0       github.com/cbfinn/maml
        nichol2018  W ~ U(±1/√n)                             b as W      PyTorch's nn.Linear
        """
        scheme = scheme or {"relu": "he", "tanh": "glorot"}[self.activation]
        draw = _choose("scheme", scheme, INITIALISATIONS)
        return [array.astype(dtype) for n, m in self.shapes[::2] for array in draw(rng, n, m)]

    def __call__(self, theta: Theta, x: Array) -> Array:
        return self.layers(theta, x)[-1]

    def _check_shapes(self, what: str, theta: Theta, x: Array, example: tuple[int, ...]) -> None:
        """ValueError unless θ has the network's shapes and x is (n, *example), after the same task axes."""
        if len(theta) != len(self.shapes):
            raise ValueError(f"theta has {len(theta)} arrays; {what} has {len(self.shapes)}: {self.names}")
        lead = np.shape(theta[0])[:-2]
        for name, leaf, shape in zip(self.names, theta, self.shapes, strict=True):
            if np.shape(leaf) != lead + shape:
                raise ValueError(f"{name} of theta has shape {np.shape(leaf)}; {what} needs {lead + shape}")
        given = np.shape(x)
        if given[: len(lead)] != lead or given[len(lead) + 1 :] != tuple(example):
            needed = ", ".join(map(str, (*lead, "n", *example)))
            raise ValueError(f"x has shape {given}; expected ({needed})")


@dataclass(frozen=True)
class MLP(_Network):
    """A fully connected network: x ↦ affine, activation, affine, …, affine.

        net = MLP((1, 40, 40, 1), activation="tanh")
        theta = net.init(rng)        [W1, b1, W2, b2, …],  W (in, out),  b (out,)
        net(theta, x)                x (n, in) to (n, out); or (tasks, n, in) with a task axis on all of θ

    norm="batch" or "layer" makes a hidden layer activation(norm(x W) + b), see `batch_norm` and `layer_norm`. They are
    functions of θ and the batch alone: running averages would be state that no gradient step sees.
    ValueError: unknown activation or norm, widths that are not two or more positive integers, arrays of θ or an x
    that do not fit the widths.
    """

    widths: tuple[int, ...]
    activation: str = "tanh"
    norm: str = "none"

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or not all(isinstance(w, int) and w > 0 for w in self.widths):
            raise ValueError(f"widths: expected two or more positive integers, got {self.widths!r}")
        _choose("activation", self.activation, ACTIVATIONS)
        _choose("norm", self.norm, NORMS)

    def layers(self, theta: Theta, x: Array) -> list[Array]:
        self._check_shapes(f"an MLP of widths {self.widths}", theta, x, self.widths[:1])
        values: list[Array] = []
        for layer in range(0, len(theta) - 2, 2):
            x = self._hidden(x, theta[layer], theta[layer + 1], x.shape[-2])
            values.append(x)
        return [*values, affine(x, theta[-2], theta[-1])]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [shape for n, m in pairwise(self.widths) for shape in ((n, m), (m,))]


@dataclass(frozen=True)
class ConvNet(_Network):
    """A convolutional network: x ↦ 3×3 convolution, activation, …, affine; each convolution halves the image.

        net = ConvNet((28, 28, 1), filters=(16, 16), classes=5)
        theta = net.init(rng)        [W1, b1, …],  W (9·c, filters), b (filters,); the head last, as an MLP's
        net(theta, x)                x (n, h, w, c) to (n, classes); or (tasks, n, h, w, c) with a task axis on all of θ

    A convolution is an affine map of the 3×3 patches around every second pixel (stride 2): ⌈h/2⌉ × ⌈w/2⌉ are left.
    Beyond the border all is 0; row (i, j, channel) of W belongs to the pixel i, j of a patch. `norm` as an MLP's.
    ValueError: unknown activation or norm, sizes that are not positive integers, arrays of θ or an x that do not fit.
    """

    image: tuple[int, int, int]
    filters: tuple[int, ...]
    classes: int
    activation: str = "relu"
    norm: str = "none"

    def __post_init__(self) -> None:
        sizes = (*self.image, *self.filters, self.classes)
        if len(self.image) != 3 or not self.filters or not all(isinstance(s, int) and s > 0 for s in sizes):
            expected = "image (h, w, channels), filters (f, …) and classes, all positive integers"
            raise ValueError(f"ConvNet: expected {expected}; got {self}")
        _choose("activation", self.activation, ACTIVATIONS)
        _choose("norm", self.norm, NORMS)

    def layers(self, theta: Theta, x: Array) -> list[Array]:
        """The output of each layer, after its activation: images (…, n, h, w, filters), then the network's."""
        self._check_shapes(str(self), theta, x, self.image)
        values: list[Array] = []
        for layer in range(0, len(theta) - 2, 2):
            *lead, h, w, _ = x.shape
            rows = self._hidden(patches(x), theta[layer], theta[layer + 1], lead[-1])
            x = np.reshape(rows, (*lead, (h + 1) // 2, (w + 1) // 2, rows.shape[-1]))
            values.append(x)
        return [*values, affine(np.reshape(x, (*x.shape[:-3], -1)), theta[-2], theta[-1])]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        *sides, c = self.image
        h, w = (-(-side // 2 ** len(self.filters)) for side in sides)
        inputs = [*(9 * n for n in (c, *self.filters[:-1])), h * w * self.filters[-1]]
        return [shape for n, m in zip(inputs, (*self.filters, self.classes), strict=True) for shape in ((n, m), (m,))]


def _choose(what: str, name: str, options: dict[str, Any]) -> Any:
    if name not in options:
        raise ValueError(f"{what}: expected one of {', '.join(options)}; got {name!r}")
    return options[name]


# --- Losses -----------------------------------------------------------------------------------------


def squared_error(net: Callable[[Theta, Array], Array]) -> Loss:
    """The loss L(θ; (x, y)) = mean over all n·m entries of (net(θ, x) − y)², with y (n, m).

    ValueError: y has another shape than the prediction. In particular (n,) against (n, 1), which NumPy
    would broadcast to (n, n) and so fit the mean of y.
    """

    def loss(theta: Theta, batch: Batch) -> Array:
        x, y = batch
        prediction = net(theta, x)
        if np.shape(prediction) != np.shape(y):
            raise ValueError(f"y has shape {np.shape(y)}; the prediction has {np.shape(prediction)}")
        n, m = _some(prediction.shape)
        return squared_distance(prediction, y) * (1 / (n * m))

    return loss


def cross_entropy(net: Callable[[Theta, Array], Array]) -> Loss:
    """The loss L(θ; (x, y)) = mean over the n examples of −log softmax(net(θ, x))[y].

    y: integer labels 0 … m−1, shape (n,). Stable for logits of any size whose differences are finite.
    TypeError: labels that are not integers. ValueError: labels of another shape, or outside 0 … m−1.
    """

    def loss(theta: Theta, batch: Batch) -> Array:
        logits, labels = _classified(net, theta, batch)
        return negative_log_likelihood(logits, labels) * (1 / _some(logits.shape)[0])

    return loss


def accuracy(net: Callable[[Theta, Array], Array]) -> Callable[[Theta, Batch], Array]:
    """(θ, (x, y)) ↦ the share of the n examples whose largest logit is at the label; a task axis is kept.

    Errors as in `cross_entropy`.
    """

    def share(theta: Theta, batch: Batch) -> Array:
        logits, labels = _classified(net, theta, batch)
        return np.mean(np.argmax(logits, axis=-1) == labels, axis=-1)

    return share


def _some(shape: tuple[int, ...]) -> tuple[int, int]:
    """(n, m) of (…, n, m), n above 0."""
    if not shape[-2]:
        raise ValueError("x has no examples: expected at least one, because a loss is a mean")
    return shape[-2], shape[-1]


def _classified(net: Callable[[Theta, Array], Array], theta: Theta, batch: Batch) -> tuple[Array, Array]:
    """The logits, and the labels, checked against them."""
    x, labels = batch
    logits, values = net(theta, x), getval(labels)
    dtype, shape = getattr(values, "dtype", None), logits.shape
    if dtype is None or dtype.kind not in "iu":
        raise TypeError(f"labels must be an array of integers, got {dtype or type(values).__name__}")
    if values.shape != shape[:-1]:
        raise ValueError(f"labels have shape {values.shape}; the logits {shape} need {shape[:-1]}")
    if values.size and not (values.min() >= 0 and values.max() < shape[-1]):
        raise ValueError(f"labels must lie in 0 … {shape[-1] - 1}; got {values.min()} … {values.max()}")
    return logits, labels
