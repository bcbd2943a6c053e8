"""The derivatives of an MLP's loss by hand, and those of other losses that people use by mistake.

They are fast, because thousands of programs are tried on them. A derivative in the direction v is the imaginary part at
φ + iεv, which subtracts nothing and so rounds nothing away (Squire & Trapp, 1998, https://doi.org/10.1137/S003614459631241X).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refmeta.conformance.rules import Derivatives
from refmeta.trees import Array, Batch, Theta

TINY = 1e-30
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {  # f, and f′ by the value of f
    "tanh": (np.tanh, lambda y: 1 - y * y),
    "relu": (lambda x: x * (x.real > 0), lambda y: y.real > 0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda y: y * (1 - y)),
    "linear": (lambda x: x, lambda y: 1 + 0 * y),
}


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.real.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def standard(x: Array) -> tuple[Array, Array]:
    """Batch normalisation, and σ."""
    off = x - x.mean(0)
    spread = np.sqrt((off * off).mean(0) + 1e-5)
    return off / spread, spread


def along(function: Callable[..., Any], at: Any, v: Any) -> Any:
    """The derivative of an analytic function in a direction."""
    if isinstance(at, list):
        found = function([leaf + 1j * TINY * w for leaf, w in zip(at, v, strict=True)])
        return [leaf.imag / TINY for leaf in found] if isinstance(found, list) else found.imag / TINY
    return function(at + 1j * TINY * v).imag / TINY


class Network(NamedTuple):
    """An MLP and its loss: mean or sum of squared errors or cross-entropies. name: the mistake in it, if any."""

    activation: str
    labels: bool
    total: bool
    name: str = ""

    def bends(self, left: int) -> bool:
        """Whether a layer has an activation after which so many layers are left."""
        if self.name == "one_activation_short":
            return left > 1
        return left > 0 or self.name == "tanh_at_the_end" or (self.name == "squashed" and not self.labels)

    def biases(self, last: bool) -> int:
        """How many times a bias is added."""
        if self.name == "no_biases" or (last and self.name == "no_last_bias"):
            return 0
        return 2 if last and self.name == "bias_twice" else 1

    def forward(self, theta: Theta, x: Array) -> list[Array]:
        values, (bend, _) = [x], ACTIVATIONS.get(self.name, ACTIVATIONS[self.activation])
        for layer in range(0, len(theta), 2):
            left = len(theta) // 2 - 1 - layer // 2
            x = x @ theta[layer] + self.biases(not left) * theta[layer + 1]
            x = standard(x)[0] if left and self.name == "normalised" else x
            x = bend(x) if self.bends(left) else x
            values.append(x)
        return values

    def backward(self, theta: Theta, values: list[Array], g: Array) -> Theta:
        leaves, (_, slope) = list[Array](), ACTIVATIONS.get(self.name, ACTIVATIONS[self.activation])
        for i in reversed(range(len(values) - 1)):
            left = len(values) - 2 - i
            g = g * slope(values[i + 1]) if self.bends(left) else g
            if left and self.name == "normalised":
                y, spread = standard(values[i] @ theta[2 * i])
                g = (g - g.mean(0) - y * (g * y).mean(0)) / spread
            leaves = [values[i].T @ g, g.sum(0) * self.biases(not left), *leaves]
            g = g @ theta[2 * i].T
        return leaves

    def pull(self, out: Array, y: Array) -> Array:
        """The derivative of the loss in the network's output."""
        if self.labels and self.name == "squared_labels":
            return self._replace(labels=False).pull(out, np.eye(out.shape[1])[y])
        if not self.labels:
            shown = np.arange(out.shape[1]) < (1 if self.name == "first_output_alone" else out.shape[1])
            off = out - y
            bound = {"huber": np.where(abs(off.real) < 1, off, np.sign(off.real)), "absolute": np.sign(off.real)}
            return bound.get(self.name, 2 * off) * shown / (1 if self.total else len(out) * shown.sum())
        chosen, p = np.eye(out.shape[1])[y - (self.name == "labels_shifted")], softmax(out)
        if self.name == "softmax_over_examples":
            return (softmax(out.T).T * chosen.sum(0) - chosen) / (1 if self.total else len(y))
        twice = self.name in ("softmax_twice", "squashed")
        chosen = 0.9 * chosen + 0.1 / out.shape[1] if self.name == "smoothed" else chosen
        g = (softmax(p) if twice else p) - chosen
        g = p * (g - (g * p).sum(-1, keepdims=True)) if twice else g
        return g / (1 if self.total else len(y))

    def grad(self, theta: Theta, batch: Batch) -> Theta:
        values = self.forward(theta, batch[0])
        return self.backward(theta, values, self.pull(values[-1], batch[1]))

    def hvp(self, theta: Theta, batch: Batch, v: Theta) -> Theta:
        return list(along(lambda theta: self.grad(theta, batch), theta, v))

    def gauss(self, theta: Theta, batch: Batch, v: Theta) -> Theta:
        x, y = batch
        values, moved = self.forward(theta, x), along(lambda theta: self.forward(theta, x)[-1], theta, v)
        return self.backward(theta, values, along(lambda out: self.pull(out, y), values[-1], moved))

    @property
    def derivatives(self) -> Derivatives:
        return Derivatives(self.grad, self.hvp, self.gauss, lambda name: self._replace(name=name).derivatives)
