"""The five algorithms in PyTorch, with torch.func."""

import torch
import torch.nn.functional as F
from torch.func import grad


def meta_gradient(case):
    """A refmeta Case's meta-gradient."""
    theta = [torch.as_tensor(leaf) for leaf in case.theta]
    cut = 0 if case.head is None else len(theta) - case.head

    def loss(theta, batch):
        x, y = map(torch.as_tensor, batch)
        if case.model["kind"] == "quadratic":
            t = torch.cat([leaf.reshape(-1) for leaf in theta])
            return t @ (x @ t) / 2 - y @ t
        for i in range(0, len(theta), 2):
            x = (getattr(torch, case.model["activation"])(x) if i else x) @ theta[i] + theta[i + 1]
        distance = {"squared_error": F.mse_loss, "cross_entropy": F.cross_entropy}[case.loss["kind"]]
        return distance(x, y, reduction=case.conventions["examples"])

    def adapt(theta, supports):
        for support in supports if theta[cut:] else []:
            g = grad(lambda head, body, batch: loss(body + head, batch))(theta[cut:], theta[:cut], support)
            theta = theta[:cut] + [p - case.alpha * d for p, d in zip(theta[cut:], g, strict=True)]
        return theta

    def of_task(supports, query):
        if case.algorithm == "reptile":
            parts = {"displacement": 1, "over_alpha": case.alpha, "over_alpha_k": case.alpha * len(supports)}
            step = parts[case.conventions["reptile"]]
            return [(t - p) / step for t, p in zip(theta, adapt(theta, supports), strict=True)]
        if case.algorithm in ("fomaml", "joint"):
            return grad(loss)(adapt(theta, supports) if case.algorithm == "fomaml" else theta, query)
        return grad(lambda theta: loss(adapt(theta, supports), query))(theta)  # maml, anil

    total = [sum(leaves) for leaves in zip(*(of_task(*task) for task in case.tasks), strict=True)]
    return [leaf / len(case.tasks) for leaf in total] if case.conventions["tasks"] == "mean" else total
