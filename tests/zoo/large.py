"""What the audit costs of a wrong MAML on a million parameters: python -m tests.zoo.large [STEPS]."""

import os
import resource
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from refmeta.torch import audit


def with_penalty(lr, steps):
    """MAML, and a cubic penalty on θ that no known mistake is: so every mistake is tried."""

    def meta_loss(net, tasks):
        total = 0
        for (x, y), (x_query, y_query) in tasks:
            fast = dict(net.named_parameters())
            for _ in range(steps):
                loss = F.cross_entropy(functional_call(net, fast, (x,)), y)
                grads = torch.autograd.grad(loss, fast.values(), create_graph=True)
                fast = {name: p - lr * g for (name, p), g in zip(fast.items(), grads, strict=True)}
            total = total + F.cross_entropy(functional_call(net, fast, (x_query,)), y_query)
        return total / len(tasks) + sum((p**3).sum() for p in net.parameters())

    return meta_loss


def main(steps):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 700), nn.ReLU(), nn.Linear(700, 600), nn.ReLU(), nn.Linear(600, 50))
    batch = lambda: (torch.rand(25, 784), torch.randint(0, 50, (25,)))  # noqa: E731
    tasks = [(batch(), batch()) for _ in range(4)]
    start = time.monotonic()
    report = audit(net, F.cross_entropy, with_penalty(0.05, steps), tasks, lr=0.05, steps=steps)
    seconds, memory = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    many = sum(p.numel() for p in net.parameters())
    print(f"{many:,} parameters, {steps} steps: {report.verdicts[0].kind}, {seconds:.0f} s, {memory:.1f} GB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
