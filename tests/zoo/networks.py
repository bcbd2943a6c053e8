"""PyTorch networks and tasks as strangers have them: small, in float32, smooth or with kinks, awkward on purpose."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo import data


class Problem(NamedTuple):
    """What an implementation is asked about; traits say which styles of program cannot hold the network."""

    net: Callable
    tasks: Callable
    criterion: Callable
    lr: float
    steps: tuple = (1, 5)
    head: str | None = None
    traits: frozenset = frozenset()


def mlp(act, *sizes):
    layers = [layer for m, n in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(m, n), act())]
    return nn.Sequential(*layers[:-1])


class Pooled(nn.Module):
    """An MLP whose hidden layer takes the larger of each two units."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(20, 64), nn.Linear(32, 5)

    def forward(self, x):
        return self.last(F.max_pool1d(self.first(x).unsqueeze(1), 2).squeeze(1))


class Conv(nn.Module):
    """Blocks of conv3x3, ReLU and max-pool; with zero biases a black background stays exactly on the kinks."""

    def __init__(self, depth, filters, norm=None):
        super().__init__()
        widths = [1] + depth * [filters]
        self.blocks = nn.Sequential()
        for m, n in zip(widths, widths[1:], strict=False):
            block = [nn.Conv2d(m, n, 3, padding=1), *([norm(n)] if norm else []), nn.ReLU(), nn.MaxPool2d(2)]
            self.blocks.extend(block)
            nn.init.zeros_(block[0].bias)
        self.classifier = nn.LazyLinear(5)
        with torch.no_grad():
            self.eval()(torch.zeros(1, 1, 28 if depth == 4 else 14, 28 if depth == 4 else 14))
            self.train().classifier.bias.zero_()

    def forward(self, x):
        return self.classifier(self.blocks(x).flatten(1))


class Recurrent(nn.Module):
    """A GRU and a linear layer on its last output."""

    def __init__(self):
        super().__init__()
        self.gru, self.readout = nn.GRU(3, 12, batch_first=True), nn.Linear(12, 1)

    def forward(self, x):
        return self.readout(self.gru(x)[0][:, -1])


class Transformer(nn.Module):
    """Token and place embeddings, one pre-norm block with two heads, the mean over places, and a head."""

    def __init__(self, words=12, width=16, length=6):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(0.1 * torch.randn(length, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = mlp(nn.GELU, width, 2 * width, width)
        self.head = nn.Linear(width, 5)

    def attend(self, x):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))

    def forward(self, tokens):
        x = self.words(tokens) + self.places
        x = x + self.attend(self.norm1(x))
        return self.head((x + self.mlp(self.norm2(x))).mean(1))


class Tied(nn.Module):
    """A bag-of-words language model whose output layer is its embedding."""

    def __init__(self, words=12, width=8):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(words, width), nn.Linear(width, width)
        self.output = nn.Linear(width, words)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(torch.tanh(self.hidden(self.embedding(tokens).mean(1))))


class Autoencoder(nn.Module):
    """A decoder that is the encoder's transpose, in one parameter."""

    def __init__(self):
        super().__init__()
        self.weight, self.inner = nn.Parameter(0.3 * torch.randn(6, 20)), nn.Parameter(torch.zeros(6))
        self.outer = nn.Parameter(torch.zeros(20))

    def forward(self, x):
        return F.linear(F.softplus(F.linear(x, self.weight, self.inner)), self.weight.T, self.outer)


class Unused(nn.Module):
    """A network with an auxiliary layer and a temperature that the loss does not reach."""

    def __init__(self):
        super().__init__()
        self.body, self.aux = nn.Linear(1, 20), nn.Linear(20, 3)
        self.temperature, self.head = nn.Parameter(torch.ones(())), nn.Linear(20, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class Residual(nn.Module):
    """Two residual blocks and a learned scale for each, in a ParameterList."""

    def __init__(self):
        super().__init__()
        self.inlet, self.head = nn.Linear(20, 24), nn.Linear(24, 5)
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((1,), 0.5)) for _ in range(2))

    def forward(self, x):
        x = self.inlet(x)
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = x + scale * F.silu(block(x))
        return self.head(x)


def layer_normed():
    return nn.Sequential(nn.Linear(20, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 5))


def dropped():
    return nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Dropout(0.5), nn.Linear(48, 5)).eval()


def normed():
    return nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ELU(), nn.Linear(32, 5))


def normed_eval():
    net = normed()
    with torch.no_grad():
        for _ in range(30):
            net(torch.randn(32, 20))
    return net.eval()


def seeded(make):
    """The factory seed -> network, which leaves the global generator as it was."""

    def net(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make()

    return net


def tensors(make):
    """The factory seed -> tasks of tensors."""
    return lambda seed: torch.utils._pytree.tree_map(torch.as_tensor, make(np.random.default_rng(seed)))


def problem(make, tasks, criterion, lr, steps=(1, 5), head=None, traits=""):
    return Problem(seeded(make), tensors(tasks), criterion, lr, steps, head, frozenset(traits.split()))


def squared(output, y):
    return ((output - y) ** 2).mean()


def regression(act, lr, traits="", steps=(1, 5), criterion=F.mse_loss, tasks=data.sines):
    traits += " mse" if criterion is F.mse_loss else ""
    return problem(lambda: mlp(act, 1, 40, 40, 1), tasks, criterion, lr, steps, "4", "mlp " + traits)


def classification(act, lr, traits="", steps=(1, 5)):
    return problem(lambda: mlp(act, 20, 64, 64, 5), data.blobs, F.cross_entropy, lr, steps, "4", "mlp " + traits)


def images(depth, filters, lr, steps, traits="", norm=None):
    tasks = data.strokes(28 if depth == 4 else 14)
    return problem(lambda: Conv(depth, filters, norm), tasks, F.cross_entropy, lr, steps, "classifier", traits)


PROBLEMS = {
    "sine relu": regression(nn.ReLU, 0.01, steps=(1, 5, 10)),
    "sine leaky relu": regression(nn.LeakyReLU, 0.02),
    "sine tanh": regression(nn.Tanh, 0.05, "smooth", steps=(1, 5, 10)),
    "sine gelu": regression(nn.GELU, 0.05, "smooth", criterion=squared),
    "sine softplus": regression(nn.Softplus, 0.02, "smooth", (1, 3), squared),
    "blobs relu": classification(nn.ReLU, 0.4),
    "blobs elu": classification(nn.ELU, 0.1, steps=(1, 5, 10)),
    "blobs gelu": classification(nn.GELU, 0.4, "smooth"),
    "blobs leaky relu": classification(nn.LeakyReLU, 0.1),
    "max-pool mlp": problem(Pooled, data.blobs, F.cross_entropy, 0.1, (1, 5), "last"),
    "convnet 4 of 8": images(4, 8, 0.4, (1, 5)),
    "convnet 4 of 16": images(4, 16, 0.1, (1, 3)),
    "convnet 2 of 8": images(2, 8, 0.1, (1, 5, 10)),
    "convnet norm train": images(2, 8, 0.1, (1, 3), "norm", nn.BatchNorm2d),
    "gru": problem(Recurrent, data.waves, squared, 0.1, (1, 5), "readout", "smooth gru"),
    "transformer": problem(Transformer, data.sentences(5), F.cross_entropy, 0.1, (1, 5), "head", "smooth layernorm"),
    "tied embedding": problem(Tied, data.sentences(12), F.cross_entropy, 0.4, (1, 5), None, "smooth tied"),
    "tied autoencoder": problem(Autoencoder, data.copies, squared, 0.1, (1, 5), None, "smooth"),
    "dropout off": problem(dropped, data.blobs, F.cross_entropy, 0.1, (1, 5), "3"),
    "norm eval": problem(normed_eval, data.blobs, F.cross_entropy, 0.1, (1, 5), "3"),
    "norm train": problem(normed, data.blobs, F.cross_entropy, 0.1, (1, 5), "3", "norm"),
    "layer norm": problem(layer_normed, data.blobs, F.cross_entropy, 0.1, (1, 5), "3", "smooth layernorm"),
    "sine stream": regression(nn.Tanh, 0.05, "smooth stream", (3,), squared, data.streams(data.sines)),
    "blobs stream": problem(layer_normed, data.streams(data.blobs), F.cross_entropy, 0.1, (3,), "3", "smooth stream"),
    "unused": problem(Unused, data.sines, F.mse_loss, 0.05, (1, 5), "head", "smooth unused mse"),
    "residual": problem(Residual, data.blobs, F.cross_entropy, 0.1, (1, 5), "head", "smooth"),
}
