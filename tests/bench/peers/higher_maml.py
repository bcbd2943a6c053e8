"""MAML, first-order MAML and ANIL in PyTorch, with higher."""

import higher
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
    if case.algorithm not in ("maml", "fomaml", "anil") or case.head == 0:
        raise Skip("higher differentiates an inner loop; here is none")
    model, first = Model(), case.algorithm == "fomaml"
    for name, leaf in zip(case.names, case.theta, strict=True):
        model.register_parameter(name, torch.nn.Parameter(torch.tensor(leaf)))
    inner, total = torch.optim.SGD(list(model.parameters())[-(case.head or 0) :], lr=case.alpha), 0
    for supports, query in case.tasks:
        with higher.innerloop_ctx(model, inner, copy_initial_weights=False, track_higher_grads=not first) as (f, step):
            for support in supports:
                step.step(f(case, support))
            g = torch.autograd.grad(f(case, query), list((f if first else model).parameters()))
            total = [a + b for a, b in zip(total or [0] * len(g), g, strict=True)]
    return [leaf / len(case.tasks) for leaf in total] if case.conventions["tasks"] == "mean" else total
