"""What a small PyTorch repository shares."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)


def theta_of(case):
    return [torch.tensor(t, requires_grad=True) for t in case.theta]


def batch_of(batch):
    return None if batch is None else tuple(torch.tensor(np.asarray(a)) for a in batch)


def tasks_of(case):
    return [([batch_of(b) for b in supports], batch_of(query)) for supports, query in case.tasks]


def mlp(theta, x, act=torch.tanh):
    for i in range(0, len(theta), 2):
        x = (act(x) if i else x) @ theta[i] + theta[i + 1]
    return x


def criterion(case, out, y, reduction=None):
    """Mean or sum, as the case asks: over all entries, or the examples."""
    loss = F.cross_entropy if case.loss["kind"] == "cross_entropy" else F.mse_loss
    return loss(out, y, reduction=reduction or case.conventions["examples"])


def quadratic(theta, batch):
    t = torch.cat([p.reshape(-1) for p in theta])
    return t @ batch[0] @ t / 2 - batch[1] @ t


def make_loss(case, net=None, criterion=criterion, reduction=None):
    if case.model["kind"] == "quadratic":
        return quadratic
    net = net or partial(mlp, act=getattr(torch, case.model["activation"]))
    return lambda theta, batch: criterion(case, net(theta, batch[0]), batch[1], reduction)


class Model(nn.Module):
    """A case's loss as a module: model(batch)."""

    def __init__(self, case, **options):
        super().__init__()
        self.theta = nn.ParameterList([nn.Parameter(torch.tensor(t)) for t in case.theta])
        self.loss = make_loss(case, **options)

    def forward(self, batch):
        return self.loss(list(self.theta), batch)


def merged(case, batches):
    """Several batches as one; of quadratics the mean."""
    xs, ys = zip(*batches, strict=True)
    if case.model["kind"] == "quadratic":
        return sum(xs) / len(xs), sum(ys) / len(ys)
    return torch.cat(xs), torch.cat(ys)


def mean_or_sum(case, losses):
    return sum(losses) / (len(losses) if case.conventions["tasks"] == "mean" else 1)


def sgd(theta, grads, lr):
    return [p - lr * g for p, g in zip(theta, grads, strict=True)]


def inner_grad(loss, fast, create_graph=True):
    return torch.autograd.grad(loss, fast, create_graph=create_graph)


def inner_loop(loss, fast, supports, lr):
    for batch in supports:
        fast = sgd(fast, inner_grad(loss(fast, batch), fast), lr)
    return fast


def train(net, optimiser, supports):
    for batch in supports:
        optimiser.zero_grad()
        net(batch).backward()
        optimiser.step()


def outer(theta, value):
    """∇ value, zeros where a parameter has no part."""
    if not (torch.is_tensor(value) and value.requires_grad):
        return [torch.zeros_like(p) for p in theta]
    gs = torch.autograd.grad(value, theta, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gs, theta, strict=True)]


def grads(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def maml_of(case, of_task):
    """∇ Σ of_task(loss, θ, supports, query)."""
    theta, loss = theta_of(case), make_loss(case)
    return outer(theta, mean_or_sum(case, [of_task(loss, theta, S, Q) for S, Q in tasks_of(case)]))
