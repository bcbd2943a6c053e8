"""MAML and first-order MAML in PyTorch, with learn2learn."""

import learn2learn
import torch
import torch.nn.functional as F

from refmeta.conformance import Skip


class Model(torch.nn.Module):
    def forward(self, case, batch):
        """The loss on a batch."""
        x, y = map(torch.as_tensor, batch)
        theta = [getattr(self, name) for name in case.names]
        if case.model["kind"] == "quadratic":
            t = torch.cat([leaf.reshape(-1) for leaf in theta])
            return t @ (x @ t) / 2 - y @ t
        for i in range(0, len(theta), 2):
            x = (getattr(torch, case.model["activation"])(x) if i else x) @ theta[i] + theta[i + 1]
        distance = {"squared_error": F.mse_loss, "cross_entropy": F.cross_entropy}[case.loss["kind"]]
        return distance(x, y, reduction=case.conventions["examples"])


def meta_gradient(case):
    """A refmeta Case's meta-gradient."""
    if case.algorithm not in ("maml", "fomaml"):
        raise Skip("learn2learn's MAML class does MAML and first-order MAML")
    model, total = Model(), [0] * len(case.theta)
    for name, leaf in zip(case.names, case.theta, strict=True):
        model.register_parameter(name, torch.nn.Parameter(torch.tensor(leaf)))
    maml = learn2learn.algorithms.MAML(model, lr=case.alpha, first_order=case.algorithm == "fomaml")
    for supports, query in case.tasks:
        learner = maml.clone()
        for support in supports:
            learner.adapt(learner(case, support))
        g = torch.autograd.grad(learner(case, query), list(model.parameters()))
        total = [a + b for a, b in zip(total, g, strict=True)]
    return [leaf / len(case.tasks) for leaf in total] if case.conventions["tasks"] == "mean" else total
