"""The mistake that is copied most: a MAML whose inner torch.autograd.grad lacks create_graph=True."""

import torch
import torch.nn.functional as F

from refmeta.conformance import Skip


def meta_gradient(case):
    """What such a MAML takes for the meta-gradient of a refmeta Case."""
    if case.algorithm != "maml":
        raise Skip("this function computes MAML only")
    theta = [torch.tensor(leaf, requires_grad=True) for leaf in case.theta]

    def loss(theta, batch):
        x, y = map(torch.as_tensor, batch)
        if case.model["kind"] == "quadratic":
            t = torch.cat([leaf.reshape(-1) for leaf in theta])
            return t @ (x @ t) / 2 - y @ t
        for i in range(0, len(theta), 2):
            x = (getattr(torch, case.model["activation"])(x) if i else x) @ theta[i] + theta[i + 1]
        return (
            F.mse_loss(x, y, reduction=case.conventions["examples"]) if y.is_floating_point() else F.cross_entropy(x, y)
        )

    total = torch.zeros(())
    for supports, query in case.tasks:
        phi = theta
        for support in supports:
            g = torch.autograd.grad(loss(phi, support), phi)  # create_graph=True is missing
            phi = [p - case.alpha * d for p, d in zip(phi, g, strict=True)]
        total = total + loss(phi, query)
    return torch.autograd.grad(total / len(case.tasks) if case.conventions["tasks"] == "mean" else total, theta)
