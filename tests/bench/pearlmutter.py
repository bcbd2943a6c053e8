"""The limit: meta-gradients of a tanh network with squared error, derived by hand for speed, without autograd.

Backpropagation and Pearlmutter's products, all tasks at once, in place where that is possible. It is what
someone would write who needed nothing else: neither to be read nor to be trusted, only to be measured against.
"""

import numpy as np

from refmeta.trees import Array, Batch, Supports, Theta, axpy


def _forward(theta: Theta, x: Array) -> list[Array]:
    """The values of all layers: x, tanh(…), …, the output."""
    values = [x]
    for layer in range(0, len(theta), 2):
        z = values[-1] @ theta[layer]
        z += theta[layer + 1][..., None, :]
        values.append(z if layer == len(theta) - 2 else np.tanh(z, out=z))
    return values


def _slopes(values: list[Array]) -> list[Array]:
    """1 − v² of the hidden layers, at their places; nothing at the ends."""
    slopes = []
    for v in values[1:-1]:
        slope = v * v
        slopes.append(np.subtract(1, slope, out=slope))
    return [None, *slopes]


def _backward(theta: Theta, values: list[Array], slopes: list[Array], d: Array) -> tuple[Theta, list[Array]]:
    """The gradient, and the derivatives in each layer's pre-activation, given the last one."""
    g, ds = [], []
    for layer in range(len(theta) // 2 - 1, -1, -1):
        g += [_rows(d), values[layer].mT @ d]
        ds.append(d)
        if layer:
            d = d @ theta[2 * layer].mT
            d *= slopes[layer]
    return g[::-1], ds[::-1]


def _rows(d: Array) -> Array:
    return np.ones(d.shape[-2], d.dtype) @ d


def _error(out: Array, y: Array) -> Array:
    d = out - y
    d *= 2 / (d.shape[-2] * d.shape[-1])
    return d


def gradient(theta: Theta, batch: Batch) -> Theta:
    """∇L(θ; B)."""
    values = _forward(theta, batch[0])
    return _backward(theta, values, _slopes(values), _error(values[-1], batch[1]))[0]


def _product(theta: Theta, kept: tuple[list[Array], list[Array], list[Array]], v: Theta) -> Theta:
    """∇²L(θ; B) v from what the gradient kept. Pearlmutter 1994."""
    values, slopes, ds = kept
    r: list[Array] = [None]
    for layer in range(len(theta) // 2):
        z = values[layer] @ v[2 * layer]
        z += v[2 * layer + 1][..., None, :]
        if layer:
            z += r[layer] @ theta[2 * layer]
        if layer < len(theta) // 2 - 1:
            z *= slopes[layer + 1]
        r.append(z)
    d = r[-1] * (2 / (r[-1].shape[-2] * r[-1].shape[-1]))
    h = []
    for layer in range(len(theta) // 2 - 1, -1, -1):
        W = values[layer].mT @ d
        if layer:
            W += r[layer].mT @ ds[layer]
        h += [_rows(d), W]
        if layer:
            bend = ds[layer] @ theta[2 * layer].mT
            bend *= values[layer]
            bend *= r[layer]
            bend *= 2
            d = d @ theta[2 * layer].mT
            d += ds[layer] @ v[2 * layer].mT
            d *= slopes[layer]
            d -= bend
    return h[::-1]


def _adapt(theta: Theta, supports: Supports, alpha: float) -> Theta:
    for support in supports:
        theta = _descend(theta, alpha, gradient(theta, support))
    return theta


def _descend(phi: Theta, alpha: float, g: Theta) -> Theta:
    """φ − α g, in g's memory."""
    for p, leaf in zip(phi, g, strict=True):
        leaf *= -alpha
        leaf += p
    return g


def _total(leaves: Theta) -> Theta:
    return [leaf.sum(0) for leaf in leaves]


def fomaml(theta: Theta, supports: Supports, query: Batch, alpha: float) -> Theta:
    return _total(gradient(_adapt(theta, supports, alpha), query))


def reptile(theta: Theta, supports: Supports, query: Batch, alpha: float) -> Theta:
    return _total([t - p for t, p in zip(theta, _adapt(theta, supports, alpha), strict=True)])


def maml(theta: Theta, supports: Supports, query: Batch, alpha: float) -> Theta:
    phi, steps = theta, []
    for x, y in supports:
        values = _forward(phi, x)
        slopes = _slopes(values)
        g, ds = _backward(phi, values, slopes, _error(values[-1], y))
        steps.append((phi, (values, slopes, ds)))
        phi = _descend(phi, alpha, g)
    v = gradient(phi, query)
    for phi, kept in reversed(steps):
        v = _descend(v, alpha, _product(phi, kept, v))
    return _total(v)


def anil(theta: Theta, supports: Supports, query: Batch, alpha: float) -> Theta:
    """The head alone adapts: the body runs once on each batch, forward and back."""
    body, (W, b) = theta[:-2], theta[-2:]
    features = {id(batch): _forward([*body, W, b], batch[0])[:-1] for batch in supports}
    into = {key: np.zeros_like(values[-1]) for key, values in features.items()}
    steps = []
    for support in supports:
        f = features[id(support)][-1]
        d = _error(f @ W + b[..., None, :], support[1])
        steps.append((support, W, d))
        W, b = W - alpha * (f.mT @ d), b - alpha * _rows(d)
    values = _forward([*body, W, b], query[0])
    d = _error(values[-1], query[1])
    g, _ = _backward([*body, W, b], values, _slopes(values), d)
    *g, W_bar, b_bar = g
    for support, W, d in reversed(steps):
        f = features[id(support)][-1]
        r = f @ W_bar  # the change of the head's output along (W̄, b̄)
        r += b_bar[..., None, :]
        r *= 2 / (r.shape[-2] * r.shape[-1])
        into[id(support)] -= alpha * (r @ W.mT + d @ W_bar.mT)
        W_bar, b_bar = W_bar - alpha * (f.mT @ r), b_bar - alpha * _rows(r)
    for key, hidden in features.items():
        slopes = _slopes([*hidden, None])
        into[key] *= slopes[-1]
        g = axpy(1, _backward(body, hidden, slopes, into[key])[0], g)
    return _total([*g, W_bar, b_bar])
