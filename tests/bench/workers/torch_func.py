"""torch.func: the tasks under vmap; `im2col` behind it for patches and matmul in place of conv2d."""

import sys

import torch
from torch.func import grad, vmap

from tests.bench import serving
from tests.bench.workers import torch_net

im2col = sys.argv[1:2] == ["im2col"]


def patches(x):
    """serving.patches, of tensors."""
    h, w = ((n + 1) // 2 for n in x.shape[1:3])
    x = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    return torch.cat([x[:, i : i + 2 * h : 2, j : j + 2 * w : 2] for i in range(3) for j in range(3)], -1)


def sgd(theta, g, alpha):
    return [p - alpha * d for p, d in zip(theta, g, strict=True)]


def prepare(case, descend=sgd):
    """The functions that `serving` wants."""
    activation, layers = getattr(torch, case.model["activation"]), len(case.theta) // 2
    steps, first = 0 if case.algorithm == "joint" else case.steps, case.algorithm in ("fomaml", "reptile")

    def forward(theta, x, start=0):
        """The layers whose arrays are `theta`, `start` the first's number."""
        for layer, (W, b) in enumerate(zip(theta[::2], theta[1::2], strict=True), start):
            if case.model["kind"] == "mlp" or layer == layers - 1:
                x = torch.addmm(b, x.flatten(1), W)
            elif im2col:
                x = (patches(x) if layer else x) @ W + b
            else:
                x = torch.conv2d(x, W, b, stride=2, padding=1)
            x = activation(x) if layer < layers - 1 else x
        return x

    def loss(theta, x, y):
        out = forward(theta, x, case.cut // 2)
        return (out - y).square().mean() if case.loss == "squared_error" else torch_net.LOSS[case.loss](out, y)

    def adapt(theta, x, y):
        for k in range(steps):
            g = grad(loss)([t.detach() for t in theta] if first else theta, x[k % len(x)], y[k % len(x)])
            theta = descend(theta, g, case.alpha)
        return theta

    def adapted_loss(theta, support_x, support_y, query_x, query_y):
        body, head = theta[: case.cut], theta[case.cut :]
        if body:
            support_x, query_x = [forward(body, x) for x in support_x], forward(body, query_x)
        return loss(adapt(head, support_x, support_y), query_x, query_y)

    def fill(data):
        if case.algorithm == "reptile":
            phis = vmap(adapt, (None, 0, 0))([t.detach() for t in theta], *data[:2])
            torch_net.add_grad(theta, [(t.detach() - p).sum(0) for t, p in zip(theta, phis, strict=True)])
            return torch.tensor(torch.nan)
        total = vmap(adapted_loss, (None, 0, 0, 0, 0))(theta, *data).sum()
        total.backward()
        return total.detach() / case.tasks

    def shaped(case, g):
        return [d.numpy().reshape(t.shape) for d, t in zip(g, case.theta, strict=True)]

    def convert(data):  # the first layer's patches are data
        return [torch.tensor(serving.patches(a) if a.ndim > 4 else a) for a in data]

    if not im2col:
        theta = torch_net.native(case)
        return torch_net.functions(case, theta, fill)
    theta = [torch.tensor(t.reshape(-1, t.shape[-1]) if t.ndim == 4 else t, requires_grad=True) for t in case.theta]
    return torch_net.functions(case, theta, fill, shaped, convert)


if __name__ == "__main__":
    serving.serve("torch.func (im2col)" if im2col else "torch.func", torch.__version__, prepare)
