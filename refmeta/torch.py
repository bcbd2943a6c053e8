"""Check the meta-gradient of a PyTorch module, and name the mistake in it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils._pytree import tree_map

from refmeta.conformance.audit import examine
from refmeta.conformance.cases import Case
from refmeta.conformance.check import Skip, check
from refmeta.conformance.network import adapting, exact, to_settings, to_tasks
from refmeta.conformance.report import Report
from refmeta.conformance.rules import Derivatives, Setting
from refmeta.trees import Array, Batch, Theta


def audit(
    net: Module,
    criterion: Callable[[Any, Any], torch.Tensor],
    meta_gradient: Callable[[Module, Any], Any],
    tasks: Iterable[Any],
    *,
    lr: float,
    steps: int | None = None,
    algorithm: str = "maml",
    tasks_are: str | None = None,
    head: Module | str | int = 2,
    dtype: str = "float64",
) -> Report:
    """Report whether `meta_gradient(net, tasks)` is the algorithm's for the loss criterion(net(x), y), and if not, why.

    A task is ((x, y), (x, y)), support and query, or (x, y, x, y); each of `steps` inner steps of size `lr` takes its
    support. Or it is ([(x, y), …], (x, y)), with a batch for each step and without `steps`.
    `meta_gradient` gets float64 copies of `net` and the tasks; with dtype="float32" it is asked in float32 too. It
    returns the gradients, in the order of `net.parameters()` or by name, None where there is none; or the meta-loss,
    which is then differentiated; or nothing, and each parameter's `.grad` is read. Parameters that require no gradient
    are constants. tasks_are: "sum" or "mean"; None takes either. head: the part that adapts in ANIL: a module, its
    name, or how many of the last parameters. ValueError, TypeError: other arguments. Your exceptions come through.
    """
    tasks, names = list(tasks), [name for name, p in net.named_parameters() if p.requires_grad]

    def ask(many: int, dtype: str) -> Theta:
        kind = getattr(torch, dtype)
        copy = deepcopy(net).to(kind)
        copy.zero_grad()
        with torch.enable_grad():
            found = meta_gradient(copy, tree_map(partial(_cast, kind), tasks[:many]))
            return _gradients(found, dict(copy.named_parameters()), names)

    theta = [_array(net.get_parameter(name).double()) for name in names]
    settings = to_settings(algorithm, theta, to_tasks(tree_map(_array, tasks), steps), lr, _adapts(net, names, head))
    network = exact(_derivatives(net, criterion, names), settings)
    return examine(network, ask, algorithm, ["float64", dtype], tasks_are, remark=_changing(net, settings[0]))


def check_step(
    meta_gradient: Callable[..., Any],
    *,
    algorithm: str = "maml",
    tasks_are: str = "mean",
    tiers: Sequence[str] | None = None,
    dtype: str = "float64",
    timeout: float = 60,
) -> Report:
    """`refmeta.conformance.check` of `meta_gradient(net, criterion, tasks, lr)`, with the vectors' networks as modules.

    A task is ([(x, y), …], (x, y)): a batch for each inner step of size `lr`, and the query. The function returns what
    `audit` takes; tasks_are says whether that is the sum or the mean over the tasks. For ANIL it also gets `head`, the
    names of the parameters that adapt. It may skip as in `check`. ValueError: an unknown algorithm, tier or dtype.
    """
    if tasks_are not in ("sum", "mean"):
        raise ValueError(f"tasks_are: expected 'sum' or 'mean'; got {tasks_are!r}")

    def answer(case: Case) -> Theta:
        net, criterion = _module(case)
        tensors = tree_map(lambda leaf: None if leaf is None else torch.as_tensor(leaf), case.tasks)
        if algorithm == "anil" and not case.head:
            raise Skip("ANIL without a head: PyTorch takes no gradient of nothing")
        names = [name for name, _ in net.named_parameters()]
        head = {"head": names[len(names) - (case.head or 0) :]} if algorithm == "anil" else {}
        found = meta_gradient(net, criterion, tensors, case.alpha, **head)
        many = len(case.tasks) if tasks_are == "mean" else 1
        rates = {case.factor(supports) for supports, _ in case.tasks}
        if len(rates) > 1:
            raise Skip("tasks that differ in K, each displacement over its own α K")
        scale = many / case.divisor * rates.pop()
        gradients = _gradients(found, dict(net.named_parameters()), names)
        return [scale * (g.T if case.model["kind"] == "mlp" else g) for g in gradients]

    return check(answer, dtype, [algorithm], tiers, timeout, "refmeta.torch.check_step")


class _Quadratic(Module):
    """A module of θ; ½ tᵀAt − bᵀt is a criterion of its output (t, At) and b."""

    def __init__(self, theta: Theta):
        super().__init__()
        self.theta = torch.nn.ParameterList(map(torch.tensor, theta))

    def forward(self, A: torch.Tensor) -> torch.Tensor:
        t = torch.cat([leaf.reshape(-1) for leaf in self.theta])
        return torch.stack([t, A @ t])


def _module(case: Case) -> tuple[Module, Callable[[Any, Any], torch.Tensor]]:
    """The network of a case, whose Linear layers keep the transpose of W, and the loss of its output."""
    if case.model["kind"] == "quadratic":
        return _Quadratic(case.theta), lambda out, b: out[0] @ (out[1] / 2 - b)
    layers: list[Module] = []
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[case.model["activation"]]
    for W, b in zip(case.theta[::2], case.theta[1::2], strict=True):
        layers += [torch.nn.Linear(*W.shape, dtype=torch.as_tensor(W).dtype), activation()]
        layers[-2].load_state_dict({"weight": torch.tensor(W.T), "bias": torch.tensor(b)})
    loss = cross_entropy if case.loss["kind"] == "cross_entropy" else mse_loss
    return torch.nn.Sequential(*layers[:-1]), partial(loss, reduction=case.conventions["examples"])


def _changing(net: Module, s: Setting) -> str:
    """Whether a call of the network changes it, in words."""
    copy, before = deepcopy(net).double().cpu(), deepcopy(net).double().cpu()
    x, _ = s.supports[0] if s.supports else s.query
    with torch.no_grad():
        copy(torch.as_tensor(x))
    pairs = zip(copy.named_buffers(), before.buffers(), strict=True)
    changed = [name for (name, after), b in pairs if not torch.equal(after, b)]
    return f"Also, every call of the network changes its {changed[0]}." if changed else ""


def _derivatives(net: Module, criterion: Any, names: list[str]) -> Derivatives:
    """The loss's gradient and Hessian-vector product in float64, from NumPy to NumPy."""
    net = deepcopy(net).double().cpu()
    criterion = deepcopy(criterion).double().cpu() if isinstance(criterion, Module) else criterion

    def derivative(phi: Theta, batch: Batch, v: Theta | None = None) -> Theta:
        theta = [torch.tensor(leaf, requires_grad=True) for leaf in phi]
        x, y = map(torch.as_tensor, batch)
        buffers = {name: b.clone() for name, b in net.named_buffers()}  # batch norm writes into them
        pull = partial(torch.autograd.grad, inputs=theta, allow_unused=True, materialize_grads=True)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            out = functional_call(net, {**dict(zip(names, theta, strict=True)), **buffers}, (x,))
            found = pull(_scalar(criterion(out, y)), create_graph=v is not None)
            if v is not None:
                slopes = ((g * torch.as_tensor(leaf)).sum() for g, leaf in zip(found, v, strict=True))
                found = pull(sum(slopes, torch.zeros((), requires_grad=True)))  # a graph, if no slope has one
        return [g.detach().numpy() for g in found]

    return Derivatives(derivative, derivative)


def _scalar(found: Any) -> torch.Tensor:
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"criterion returned {type(found).__name__}: expected a tensor, still attached to its graph")
    if not found.requires_grad:
        raise TypeError("criterion returned a tensor without a graph: expected one that is still attached to its graph")
    if found.numel() != 1:
        raise ValueError(f"criterion returned a tensor of shape {tuple(found.shape)}: expected one number")
    return found.reshape(())


def _gradients(found: Any, parameters: dict[str, torch.nn.Parameter], names: list[str]) -> Theta:
    """The gradients that a meta-gradient returned, or left in `.grad`."""
    if found is None:
        found = {name: parameters[name].grad for name in names}
    if isinstance(found, torch.Tensor) and found.numel() == 1 and found.requires_grad:
        found = torch.autograd.grad(found.reshape(()), [parameters[name] for name in names], allow_unused=True)
    if not isinstance(found, Mapping):
        if not isinstance(found, Iterable) or isinstance(found, torch.Tensor):
            got = f"{tuple(found.shape)} without a graph" if isinstance(found, torch.Tensor) else type(found).__name__
            raise TypeError(f"meta_gradient returned {got}: expected gradients, the meta-loss with its graph, or None")
        found = list(found)
        order = names if len(found) == len(names) else list(parameters)
        if len(found) != len(order):
            raise ValueError(f"meta_gradient returned {len(found)} gradients, not {len(names)}: {', '.join(names)}")
        found = dict(zip(order, found, strict=True))
    if unknown := sorted(set(found) - set(parameters)):
        raise ValueError(f"meta_gradient returned a gradient of {unknown[0]!r}: expected {', '.join(names)}")
    return [_leaf(name, found.get(name), parameters[name]) for name in names]


def _leaf(name: str, found: Any, parameter: torch.nn.Parameter) -> Array:
    found = torch.zeros_like(parameter) if found is None else found
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"meta_gradient returned {type(found).__name__} for {name}: expected a tensor")
    if found.shape != parameter.shape:
        raise ValueError(f"meta_gradient: {name} has shape {tuple(found.shape)}, expected {tuple(parameter.shape)}")
    return _array(found if found.dtype == torch.float64 else found.float())


def _array(tensor: Any) -> Any:
    return tensor.detach().cpu().numpy().copy() if isinstance(tensor, torch.Tensor) else tensor


def _cast(kind: torch.dtype, leaf: Any) -> Any:
    """A copy of a tensor, its floating-point numbers in this dtype."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.detach().clone().to(kind if leaf.is_floating_point() else leaf.dtype)


def _adapts(net: Module, names: list[str], head: Module | str | int) -> int | list[bool]:
    """For each parameter, whether it is part of the head. ValueError: none is."""
    if isinstance(head, Module):
        inside = {id(p) for p in head.parameters()}
        return adapting(names, head, lambda name: id(net.get_parameter(name)) in inside)
    return adapting(names, head, lambda name: f"{name}.".startswith(f"{head}."))
