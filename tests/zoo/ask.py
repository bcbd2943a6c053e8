"""An implementation asked for its gradient of one problem, by us or by the audit, in the audit's terms."""

import copy
from inspect import signature

import torch


def bound(problem, style, steps):
    """The function (net, tasks) that the audit takes."""
    more = {"head": problem.head} if "head" in signature(style.run).parameters else {}
    return lambda net, tasks: style.run(net, problem.criterion, tasks, problem.lr, steps, **more)


def leaves(net, answer):
    """The answer as a list, whichever of the four forms it has."""
    if isinstance(answer, torch.Tensor):
        answer = torch.autograd.grad(answer, list(net.parameters()), allow_unused=True)
    if answer is None:
        answer = [p.grad for p in net.parameters()]
    if isinstance(answer, dict):
        answer = [answer[name] for name, _ in net.named_parameters()]
    return [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(net.parameters(), answer, strict=True)]


def double(problem, seed):
    """The network and its tasks in float64."""
    as_double = lambda x: x.double() if x.is_floating_point() else x  # noqa: E731
    return problem.net(seed).double(), torch.utils._pytree.tree_map(as_double, problem.tasks(seed))


def gradient(problem, meta_gradient, seed):
    """The meta-gradient in float64, as one vector."""
    net, tasks = double(problem, seed)
    net = copy.deepcopy(net)
    return torch.cat([g.reshape(-1) for g in leaves(net, meta_gradient(net, tasks))])
