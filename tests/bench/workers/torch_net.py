"""What the PyTorch peers share: threads, θ in PyTorch's layout, the network as modules, Adam."""

import os
from functools import cache

import numpy as np
import torch
from torch import nn

from tests.bench import serving

torch.set_num_threads(int(os.environ.get("REFMETA_THREADS", 1)))
LOSS = {"squared_error": nn.functional.mse_loss, "cross_entropy": nn.functional.cross_entropy}


def swap(head, a, b):
    """A conv net's head with its a × b rows as b × a."""
    return head.reshape(a, b, head.shape[-1]).swapaxes(0, 1).reshape(head.shape)


def native(case):
    """θ with filters (out, in, 3, 3) and the rows of a conv net's head by channel, then place."""
    theta = [t.transpose(3, 2, 0, 1) if t.ndim == 4 else t for t in case.theta]
    if case.model["kind"] == "conv":
        theta[-2] = swap(theta[-2], -1, len(theta[-3]))
    return [torch.tensor(np.ascontiguousarray(t), requires_grad=True) for t in theta]


def original(case, g):
    """The reverse: a gradient in that layout as arrays in the case's."""
    g = [t.numpy().transpose(2, 3, 1, 0) if t.ndim == 4 else t.numpy() for t in g]
    if case.model["kind"] == "conv":
        g[-2] = swap(g[-2], len(g[-3]), -1)
    return g


def convert(data):
    """NumPy to PyTorch; images (…, h, w, c) to (…, c, h, w)."""
    return [torch.tensor(np.ascontiguousarray(np.moveaxis(a, -1, -3)) if a.ndim > 4 else a) for a in data]


def functions(case, parameters, fill, original=original, convert=convert):
    """What `serving` wants, of a `fill(data)` that adds Σ gradients to .grad and returns the mean loss."""
    adam = cache(lambda: torch.optim.Adam(parameters, lr=1e-3, fused=True))  # a second of imports no gradient needs

    def gradient(data):
        fill(data)
        g = original(case, [p.grad for p in parameters])
        for p in parameters:
            p.grad = None
        return g

    def step(data):
        loss = fill(data)
        for p in parameters:
            p.grad /= case.tasks
        adam().step()
        adam().zero_grad()
        return loss

    return convert, gradient, step


def add_grad(parameters, g):
    """To .grad, a gradient that backward() did not put there."""
    for p, d in zip(parameters, g, strict=True):
        p.grad = d if p.grad is None else p.grad.add_(d)


def split(case):
    """The layers that do not adapt, those that do, and the loss."""
    activation, theta, blocks = {"tanh": nn.Tanh, "relu": nn.ReLU}[case.model["activation"]], native(case), []
    for W, b in zip(theta[::2], theta[1::2], strict=True):
        layer = nn.Conv2d(*W.shape[1::-1], 3, 2, 1) if W.ndim == 4 else nn.Linear(*W.shape)
        layer.weight, layer.bias = nn.Parameter(W if W.ndim == 4 else W.T.contiguous()), nn.Parameter(b)
        blocks.append([layer, activation()])
    blocks[-1].pop()
    if case.model["kind"] == "conv":
        blocks[-2].append(nn.Flatten())
    body, head = (nn.Sequential(*sum(part, [])) for part in (blocks[: case.cut // 2], blocks[case.cut // 2 :]))
    return body, head, LOSS[case.loss]


def one_by_one(case, body, head, of_task):
    """`functions` of a library that takes a task at a time: its of_task(supports, query) is a `fill` of one task."""
    if case.algorithm == "joint":
        raise serving.NotOffered("joint training has no inner loop")

    def fill(data):
        losses = 0
        for support_x, support_y, x, y in zip(*data, strict=True):
            supports = list(zip(map(body, support_x), support_y, strict=True))
            losses += of_task([supports[k % len(supports)] for k in range(case.steps)], (body(x), y)).detach()
        return losses / case.tasks

    def transposed(case, g):
        return original(case, [t.T if t.ndim == 2 else t for t in g])

    return functions(case, [*body.parameters(), *head.parameters()], fill, transposed)
