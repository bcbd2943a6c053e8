"""learn2learn: clone() and adapt(), a task at a time; for ANIL the MAML is around the head alone."""

import learn2learn
import torch

from tests.bench import serving
from tests.bench.workers import torch_net


def prepare(case):
    """The functions that `serving` wants."""
    body, head, loss = torch_net.split(case)
    first = case.algorithm in ("fomaml", "reptile")
    maml = learn2learn.algorithms.MAML(head, lr=case.alpha, first_order=first)

    def of_task(supports, query):
        learner = maml.clone()
        for x, y in supports:
            learner.adapt(loss(learner(x), y))
        if case.algorithm == "reptile":
            pairs = zip(head.parameters(), learner.parameters(), strict=True)
            torch_net.add_grad(head.parameters(), [(p - q).detach() for p, q in pairs])
            return torch.tensor(torch.nan)
        value = loss(learner(query[0]), query[1])
        value.backward()
        return value

    return torch_net.one_by_one(case, body, head, of_task)


serving.serve("learn2learn", learn2learn.__version__, prepare)
