"""JAX networks and tasks as strangers have them: dicts of dicts of float32 arrays, and functions of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo import data


class Problem(NamedTuple):
    """What an implementation is asked about: loss(params, (x, y)), and what makes params and tasks of a seed."""

    loss: Callable
    params: Callable
    tasks: Callable
    lr: float
    steps: tuple = (1, 5)
    head: str | None = None
    traits: frozenset = frozenset()


def linear(rng, m, n, scale=None):
    return {"w": rng.normal(0, scale or np.sqrt(1 / m), (m, n)), "b": np.zeros(n)}


def apply(layer, x):
    return x @ layer["w"] + layer["b"]


def mean_squared_error(output, y):
    return jnp.mean((output - y) ** 2)


def cross_entropy(logits, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1))


def normalised(x, axis=-1):
    return (x - x.mean(axis, keepdims=True)) / jnp.sqrt(x.var(axis, keepdims=True) + 1e-5)


def mlp(*sizes):
    """The maker of an MLP's params; hidden biases are drawn too, as PyTorch draws them."""

    def params(rng):
        layers = {f"layer{i}": linear(rng, m, n) for i, (m, n) in enumerate(zip(sizes, sizes[1:], strict=False))}
        for layer in layers.values():
            layer["b"] = rng.uniform(-0.5, 0.5, layer["b"].shape)
        return layers

    return params


def mlp_forward(act):
    def forward(params, x):
        *hidden, last = [params[key] for key in sorted(params)]
        for layer in hidden:
            x = act(apply(layer, x))
        return apply(last, x)

    return forward


def relu_by_maximum(x):
    """Its derivative at 0 is ½."""
    return jnp.maximum(x, 0)


def pooled(params, x):
    x = apply(params["layer0"], x)
    return apply(params["layer1"], x.reshape(len(x), -1, 2).max(-1))


def pooled_params(rng):
    return {"layer0": linear(rng, 20, 64), "layer1": linear(rng, 32, 5)}


def conv_params(rng, filters=4):
    widths = [1, filters, filters]
    convs = {
        f"conv{i}": {"w": rng.normal(0, np.sqrt(2 / 9 / m), (3, 3, m, n)), "b": np.zeros(n)}
        for i, (m, n) in enumerate(zip(widths, widths[1:], strict=False))
    }
    return convs | {"head": linear(rng, filters * 4, 5)}


def window_pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def reshape_pool(x):
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def conv_forward(act, pool):
    def forward(params, x):
        x = jnp.transpose(x, (0, 2, 3, 1))
        for key in sorted(key for key in params if key.startswith("conv")):
            x = jax.lax.conv_general_dilated(
                x, params[key]["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = pool(act(x + params[key]["b"]))
        return apply(params["head"], x.reshape(len(x), -1))

    return forward


def gru_params(rng, width=8):
    gates = {f"{gate}{part}": rng.normal(0, 0.4, (m, width)) for gate in "rzn" for part, m in (("x", 3), ("h", width))}
    return {"cell": gates | {"b": np.zeros(width)}, "readout": linear(rng, width, 1)}


def gru_forward(params, x):
    cell = params["cell"]

    def step(h, x_t):
        r = jax.nn.sigmoid(x_t @ cell["rx"] + h @ cell["rh"])
        z = jax.nn.sigmoid(x_t @ cell["zx"] + h @ cell["zh"])
        n = jnp.tanh(x_t @ cell["nx"] + r * (h @ cell["nh"]) + cell["b"])
        return (1 - z) * n + z * h, None

    h, _ = jax.lax.scan(step, jnp.zeros((len(x), cell["b"].size), x.dtype), jnp.swapaxes(x, 0, 1))
    return apply(params["readout"], h)


def transformer_params(rng, words=12, width=8, length=6):
    block = {"qkv": linear(rng, width, 3 * width), "out": linear(rng, width, width)}
    block |= {"up": linear(rng, width, 2 * width), "down": linear(rng, 2 * width, width)}
    embed = {"words": rng.normal(size=(words, width)), "places": 0.1 * rng.normal(size=(length, width))}
    return {"embed": embed, "blocks": [block], "head": linear(rng, width, 5)}


def transformer_forward(params, tokens):
    x = params["embed"]["words"][tokens] + params["embed"]["places"]
    for block in params["blocks"]:
        q, k, v = jnp.split(apply(block["qkv"], normalised(x)), 3, -1)
        weights = jax.nn.softmax(jnp.einsum("nid,njd->nij", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype))
        x = x + apply(block["out"], weights @ v)
        x = x + apply(block["down"], jax.nn.gelu(apply(block["up"], normalised(x))))
    return apply(params["head"], x.mean(1))


def tied_params(rng):
    return {"embed": {"table": rng.normal(size=(12, 8))}, "hidden": linear(rng, 8, 8)}


def tied_forward(params, tokens):
    table = params["embed"]["table"]
    return jnp.tanh(apply(params["hidden"], table[tokens].mean(1))) @ table.T


def batch_normed(params, x):
    return apply(params["layer1"], jax.nn.elu(normalised(apply(params["layer0"], x), axis=0)))


def layer_normed(params, x):
    return apply(params["layer1"], jnp.tanh(normalised(apply(params["layer0"], x))))


def with_unused(make):
    return lambda rng: make(rng) | {"unused": linear(rng, 2, 2)}


def unused_forward(params, x):
    return mlp_forward(jnp.tanh)({key: params[key] for key in params if key != "unused"}, x)


def problem(forward, criterion, params, tasks, lr, steps=(1, 5), head=None, traits=""):
    """Params and tasks become JAX arrays of float32 and of integers."""

    def arrays(make):
        def cast(a):
            return jnp.asarray(a, jnp.float32 if np.issubdtype(np.asarray(a).dtype, np.floating) else jnp.int32)

        return lambda seed: jax.tree.map(cast, make(np.random.default_rng(seed)))

    def two_or_three(rng):  # each further task is compiled anew
        made = tasks(rng)
        return made[: 2 + len(made) % 2]

    def loss(params, batch):
        return criterion(forward(params, batch[0]), batch[1])

    return Problem(loss, arrays(params), arrays(two_or_three), lr, steps, head, frozenset(traits.split()))


def regression(act, lr, steps=(1, 3), traits="", tasks=data.sines):
    return problem(mlp_forward(act), mean_squared_error, mlp(1, 40, 40, 1), tasks, lr, steps, "layer2", traits)


def classification(act, lr, steps=(1, 3), traits=""):
    return problem(mlp_forward(act), cross_entropy, mlp(20, 64, 64, 5), data.blobs, lr, steps, "layer2", traits)


def blobs(forward, params, lr, traits=""):
    return problem(forward, cross_entropy, params, data.blobs, lr, (1, 3), "layer1", traits)


def images(act, pool, lr, steps):
    return problem(conv_forward(act, pool), cross_entropy, conv_params, data.strokes(8), lr, steps, "head")


PROBLEMS = {
    "sine relu": regression(jax.nn.relu, 0.01, (1, 5)),
    "sine tanh": regression(jnp.tanh, 0.02, traits="smooth"),
    "sine softplus": regression(jax.nn.softplus, 0.01, traits="smooth"),
    "blobs gelu": classification(jax.nn.gelu, 0.4, traits="smooth"),
    "blobs elu": classification(jax.nn.elu, 0.1, (1, 10)),
    "blobs leaky relu": classification(jax.nn.leaky_relu, 0.1),
    "max-pool mlp": blobs(pooled, pooled_params, 0.1),
    "convnet relu": images(jax.nn.relu, reshape_pool, 0.1, (1, 3)),
    "convnet maximum": images(relu_by_maximum, reshape_pool, 0.1, (1, 3)),
    "convnet window": images(jax.nn.relu, window_pool, 0.1, (1, 2)),
    "gru": problem(gru_forward, mean_squared_error, gru_params, data.waves, 0.1, (1, 3), "readout", "smooth"),
    "transformer": problem(
        transformer_forward, cross_entropy, transformer_params, data.sentences(5), 0.1, (1, 3), "head", "smooth"
    ),
    "tied embedding": problem(
        tied_forward, cross_entropy, tied_params, data.sentences(12), 0.1, (1, 3), None, "smooth"
    ),
    "batch norm": blobs(batch_normed, mlp(20, 32, 5), 0.1),
    "layer norm": blobs(layer_normed, mlp(20, 32, 5), 0.1, "smooth"),
    "unused": problem(
        unused_forward, mean_squared_error, with_unused(mlp(1, 20, 1)), data.sines, 0.02, (1, 3), "layer1", "smooth"
    ),
    "sine stream": regression(jnp.tanh, 0.02, (3,), "smooth stream", data.streams(data.sines)),
}
