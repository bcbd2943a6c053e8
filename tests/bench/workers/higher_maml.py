"""higher: innerloop_ctx, a task at a time; for ANIL around the head alone."""

from importlib.metadata import version

import higher
import torch

from tests.bench import serving
from tests.bench.workers import torch_net


def prepare(case):
    """The functions that `serving` wants."""
    body, head, loss = torch_net.split(case)
    inner, second = torch.optim.SGD(head.parameters(), lr=case.alpha), case.algorithm in ("maml", "anil")

    def of_task(supports, query):
        with higher.innerloop_ctx(head, inner, copy_initial_weights=False, track_higher_grads=second) as (net, sgd):
            for x, y in supports:
                sgd.step(loss(net(x), y))
            if case.algorithm == "reptile":
                pairs = zip(head.parameters(), net.parameters(), strict=True)
                torch_net.add_grad(head.parameters(), [(p - q).detach() for p, q in pairs])
                return torch.tensor(torch.nan)
            value = loss(net(query[0]), query[1])
            if second:
                value.backward()
            else:
                torch_net.add_grad(head.parameters(), torch.autograd.grad(value, list(net.parameters())))
            return value

    return torch_net.one_by_one(case, body, head, of_task)


serving.serve("higher", version("higher"), prepare)
