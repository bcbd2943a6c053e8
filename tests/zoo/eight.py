"""Eight mistakes in the usual class MAML: what torch.autograd.gradcheck says of each, and what the audit says."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from tests.zoo import data
from tests.zoo.networks import mlp, seeded, tensors

MISTAKES = (
    "first order",
    "detach",
    "ascent",
    "one step short",
    "no adaptation",
    "sum for mean",
    "swapped data",
    "momentum",
)


class MAML(nn.Module):
    """The usual class; each mistake is one line of its source."""

    def __init__(self, net, criterion, lr, steps, mistake=None):
        super().__init__()
        self.net, self.criterion, self.lr, self.mistake = net, criterion, lr, mistake
        self.steps = steps - 1 if mistake == "one step short" else steps

    def loss(self, params, x, y):
        return self.criterion(functional_call(self.net, params, (x,)), y)

    def inner_loss(self, params, x, y):
        return self.loss(params, x, y) * (len(y) if self.mistake == "sum for mean" else 1)

    def adapt(self, params, x, y):
        lr = -self.lr if self.mistake == "ascent" else self.lr
        velocity = dict.fromkeys(params, 0)
        for _ in range(self.steps):
            loss = self.inner_loss(params, x, y)
            grads = torch.autograd.grad(loss, params.values(), create_graph=self.mistake != "first order")
            if self.mistake == "detach":
                grads = [g.detach() for g in grads]
            decay = 0.9 if self.mistake == "momentum" else 0
            velocity = {k: decay * v + g for (k, v), g in zip(velocity.items(), grads, strict=True)}
            params = {k: p - lr * velocity[k] for k, p in params.items()}
        return params

    def forward(self, params, tasks):
        total = 0
        for support, query in tasks:
            if self.mistake == "swapped data":
                support, query = query, support
            fast = params if self.mistake == "no adaptation" else self.adapt(params, *support)
            total = total + self.loss(fast, *query)
        return total


def problem():
    """A smooth network of fifty parameters, and two waves, in float64."""
    tasks = tensors(data.sines)(1)[:2]
    to_double = torch.utils._pytree.tree_map(torch.Tensor.double, tasks)
    return seeded(lambda: mlp(nn.Tanh, 1, 5, 5, 1))(0).double(), to_double, 0.05, 3


def gradcheck(mistake):
    """Whether the class's own gradient is that of its own meta-loss, by finite differences."""
    net, tasks, lr, steps = problem()
    maml = MAML(net, F.mse_loss, lr, steps, mistake)
    names, theta = zip(*net.named_parameters(), strict=True)
    return torch.autograd.gradcheck(
        lambda *leaves: maml(dict(zip(names, leaves, strict=True)), tasks), theta, raise_exception=False
    )


def report(mistake):
    """What the audit says of the same class."""
    from refmeta.torch import audit

    net, tasks, lr, steps = problem()

    def meta_gradient(net, tasks):
        return MAML(net, F.mse_loss, lr, steps, mistake)(dict(net.named_parameters()), tasks)

    return audit(net.float(), F.mse_loss, meta_gradient, tasks, lr=lr, steps=steps)


def table():
    rows = ["| mistake | gradcheck | audit |", "|---|---|---|"]
    for mistake in (None, *MISTAKES):
        said = report(mistake)
        line = "passed" if said.passed else str(said.verdicts[0].text).splitlines()[0]
        rows.append(f"| {mistake or 'none'} | {'agrees' if gradcheck(mistake) else 'disagrees'} | {line} |")
    return "\n".join(rows)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(table())
