"""TorchOpt: MetaSGD, a task at a time; `functional` behind it for its functional SGD under vmap."""

import sys

import torchopt

from tests.bench import serving
from tests.bench.workers import torch_func, torch_net


def functional(case):
    """torch_func's functions with TorchOpt's inner steps."""
    sgd = torchopt.sgd(lr=case.alpha)

    def descend(theta, g, alpha):
        updates, _ = sgd.update(g, sgd.init(theta), inplace=False)
        return torchopt.apply_updates(theta, updates, inplace=False)

    return torch_func.prepare(case, descend)


def prepare(case):
    """The functions that `serving` wants."""
    if case.algorithm not in ("maml", "anil"):
        raise serving.NotOffered("MetaSGD is second-order; the functional variant does the rest")
    body, head, loss = torch_net.split(case)
    sgd = torchopt.MetaSGD(head, lr=case.alpha)
    start = [torchopt.extract_state_dict(o, by="reference") for o in (head, sgd)]

    def of_task(supports, query):
        for x, y in supports:
            sgd.step(loss(head(x), y))
        value = loss(head(query[0]), query[1])
        value.backward()
        for o, state in zip((head, sgd), start, strict=True):
            torchopt.recover_state_dict(o, state)
        return value

    return torch_net.one_by_one(case, body, head, of_task)


if sys.argv[1:2] == ["functional"]:
    serving.serve("TorchOpt (functional)", torchopt.__version__, functional)
else:
    serving.serve("TorchOpt", torchopt.__version__, prepare)
