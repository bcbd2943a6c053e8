"""Right implementations in PyTorch, in odd styles."""

import copy

import higher
import torch
import torchopt
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from refmeta.conformance import Skip
from tests.blind.common import one_size, unit
from tests.blind.common_torch import (
    Model,
    batch_of,
    criterion,
    grads,
    inner_grad,
    inner_loop,
    make_loss,
    maml_of,
    mean_or_sum,
    mlp,
    outer,
    sgd,
    tasks_of,
    theta_of,
    train,
)
from tests.blind.registry import right


def plain(case):
    return [torch.tensor(t) for t in case.theta]


@right("maml")
def textbook(case):
    return maml_of(case, lambda loss, t, S, Q: loss(inner_loop(loss, t, S, case.alpha), Q))


@right("maml", "it takes the sum over the tasks, whatever is asked for", tasks="sum")
def always_the_sum(case):
    theta, loss = theta_of(case), make_loss(case)
    return outer(theta, sum(loss(inner_loop(loss, theta, S, case.alpha), Q) for S, Q in tasks_of(case)))


@right("maml")
def functional_calls(case):
    model = Model(case)
    names, losses = [name for name, _ in model.named_parameters()], []
    for supports, query in tasks_of(case):
        fast = dict(model.named_parameters())
        for batch in supports:
            gs = inner_grad(functional_call(model, fast, (batch,)), list(fast.values()))
            fast = {name: fast[name] - case.alpha * g for name, g in zip(names, gs, strict=True)}
        losses.append(functional_call(model, fast, (query,)))
    mean_or_sum(case, losses).backward()
    return {name: p.grad for name, p in zip(case.names, model.parameters(), strict=True)}


@right("maml")
def nested_func_grad(case):
    loss = make_loss(case)

    def objective(theta):
        values = []
        for supports, query in tasks_of(case):
            phi = theta
            for batch in supports:
                phi = sgd(phi, grad(loss)(phi, batch), case.alpha)
            values.append(loss(phi, query))
        return mean_or_sum(case, values)

    return grad(objective)(plain(case))


@right("maml")
def vmapped_with_padding(case):
    """All tasks under vmap; a task of fewer steps takes the rest at rate zero."""
    if not one_size(case):
        raise Skip("batches of one size only")
    loss, tasks = make_loss(case), tasks_of(case)
    longest = max(len(S) for S, _ in tasks)
    filler = next((S[0] for S, _ in tasks if S), None)
    rates = torch.tensor(
        [[case.alpha * (k < len(S)) for k in range(longest)] for S, _ in tasks], dtype=torch.tensor(case.theta[0]).dtype
    )
    padded = [[*S, *[filler] * (longest - len(S))] for S, _ in tasks]
    supports = [tuple(torch.stack([p[k][i] for p in padded]) for i in range(2)) for k in range(longest)]
    query = tuple(torch.stack([Q[i] for _, Q in tasks]) for i in range(2))

    def of_task(theta, rates, supports, query):
        for k, batch in enumerate(supports):
            theta = sgd(theta, grad(loss)(theta, batch), rates[k])
        return loss(theta, query)

    def objective(theta):
        values = vmap(of_task, (None, 0, 0, 0))(theta, rates, supports, query)
        return values.mean() if case.conventions["tasks"] == "mean" else values.sum()

    return grad(objective)(plain(case))


@right("maml")
def with_higher(case):
    model = Model(case)
    optimiser = torch.optim.SGD(model.parameters(), lr=case.alpha)
    for supports, query in tasks_of(case):
        with higher.innerloop_ctx(model, optimiser, copy_initial_weights=False) as (net, steps):
            for batch in supports:
                steps.step(net(batch))
            (net(query) / case.divisor).backward()
    return grads(model)


@right("maml")
def with_torchopt(case):
    model = Model(case)
    theta = list(model.parameters())
    inner = torchopt.MetaSGD(model, lr=case.alpha)
    start, state = torchopt.extract_state_dict(model, by="reference"), torchopt.extract_state_dict(inner)
    losses = []
    for supports, query in tasks_of(case):
        for batch in supports:
            inner.step(model(batch))
        losses.append(model(query))
        torchopt.recover_state_dict(model, start)
        torchopt.recover_state_dict(inner, state)
    mean_or_sum(case, losses).backward()
    return [p.grad for p in theta]


@right("maml")
def jvp_of_grad(case):
    """The adjoint, its Hessian-vector products forward over reverse."""

    def by_hand(case, out, y, reduction):  # forward over reverse fails in mse_loss
        if case.loss["kind"] == "cross_entropy":
            return criterion(case, out, y)
        return getattr((out - y) ** 2, case.conventions["examples"])()

    loss, total = make_loss(case, criterion=by_hand), [torch.zeros_like(p) for p in plain(case)]
    for supports, query in tasks_of(case):
        phis = [plain(case)]
        for batch in supports:
            phis.append(sgd(phis[-1], grad(loss)(phis[-1], batch), case.alpha))
        v = grad(loss)(phis.pop(), query)
        for phi, batch in zip(reversed(phis), reversed(supports), strict=True):
            _, hv = jvp(lambda p, batch=batch: grad(loss)(p, batch), (phi,), (v,))
            v = sgd(v, hv, case.alpha)
        total = [a + d / case.divisor for a, d in zip(total, v, strict=True)]
    return total


@right("maml")
def double_backward_products(case):
    loss, out = make_loss(case), None
    for supports, query in tasks_of(case):
        phis = [theta_of(case)]
        for batch in supports:
            gs = torch.autograd.grad(loss(phis[-1], batch), phis[-1])
            phis.append([p.detach().requires_grad_() for p in sgd(phis[-1], gs, case.alpha)])
        v = torch.autograd.grad(loss(phis[-1], query), phis[-1])
        for phi, batch in reversed(list(zip(phis, supports, strict=False))):
            gs = torch.autograd.grad(loss(phi, batch), phi, create_graph=True)
            hv = torch.autograd.grad(gs, phi, grad_outputs=v)
            v = sgd(v, hv, case.alpha)
        out = list(v) if out is None else [a + b for a, b in zip(out, v, strict=True)]
    return [g / case.divisor for g in out]


@right("maml")
def hessian_matrices(case):
    shapes, loss = [t.shape for t in case.theta], make_loss(case)

    def split(p):
        parts = p.split([int(torch.Size(s).numel()) for s in shapes])
        return [part.reshape(s) for part, s in zip(parts, shapes, strict=True)]

    def of_vector(p, batch):
        return loss(split(p), batch)

    start = torch.cat([t.reshape(-1) for t in plain(case)])
    total = torch.zeros_like(start)
    for supports, query in tasks_of(case):
        p, factors = start, []
        for batch in supports:
            factors.append(torch.eye(len(p), dtype=p.dtype) - case.alpha * hessian(of_vector)(p, batch))
            p = p - case.alpha * grad(of_vector)(p, batch)
        v = grad(of_vector)(p, query)
        for factor in reversed(factors):
            v = factor @ v
        total += v / case.divisor
    return split(total)


@right("maml")
def jacobian_by_autograd_functional(case):
    loss, total = make_loss(case), [0] * len(case.theta)
    for supports, query in tasks_of(case):
        end = lambda *theta: tuple(inner_loop(loss, list(theta), supports, case.alpha))  # noqa: E731
        theta = tuple(theta_of(case))
        J = torch.autograd.functional.jacobian(end, theta)
        phi = [p.detach().requires_grad_() for p in end(*theta)]
        g = torch.autograd.grad(loss(phi, query), phi)
        for j in range(len(theta)):
            for i, d in enumerate(g):
                block = J[i][j].reshape(d.numel(), -1)
                total[j] = total[j] + (d.reshape(-1) @ block).reshape(theta[j].shape) / case.divisor
    return total


@right("maml")
def checkpointed(case):
    """The query pass under activation checkpointing."""
    loss = make_loss(case)

    def of_task(_, theta, supports, query):
        phi = inner_loop(loss, theta, supports, case.alpha)
        return checkpoint(lambda *p: loss(list(p), query), *phi, use_reentrant=False)

    return maml_of(case, of_task)


@right("maml")
def vjp_of_the_loop(case):
    loss, total = make_loss(case), [0] * len(case.theta)
    for supports, query in tasks_of(case):

        def end(theta, supports=supports):
            for batch in supports:
                theta = sgd(theta, grad(loss)(theta, batch), case.alpha)
            return theta

        phi, pull = vjp(end, plain(case))
        (g,) = pull(grad(loss)(phi, query))
        total = [a + d / case.divisor for a, d in zip(total, g, strict=True)]
    return (d for d in total)


@right("maml")
def grad_outputs(case):
    """The first-order gradient is sent back through φ(θ)."""
    loss, theta = make_loss(case), theta_of(case)
    for supports, query in tasks_of(case):
        phi = inner_loop(loss, theta, supports, case.alpha)
        leaves = [p.detach().requires_grad_() for p in phi]
        g = torch.autograd.grad(loss(leaves, query), leaves)
        torch.autograd.backward(phi, [d / case.divisor for d in g])
    return [p.grad for p in theta]


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        y = z.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


@right("maml")
def own_tanh(case):
    loss = make_loss(case, net=lambda theta, x: mlp(theta, x, Tanh.apply))
    return maml_of(case, lambda _, t, S, Q: loss(inner_loop(loss, t, S, case.alpha), Q))


class Quadratic(nn.Module):
    def __init__(self, case):
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.tensor(t)) for t in case.theta])

    def forward(self, x):
        t = torch.cat([p.reshape(-1) for p in self.parts])
        return x @ t, t


@right("maml")
@right("anil")
def linear_layers(case):
    """nn.Sequential of nn.Linear: weights are transposed there."""
    if case.model["kind"] == "quadratic":
        net = Quadratic(case)
        loss = lambda out, y: out[0] @ out[1] / 2 - y @ out[1]  # noqa: E731
    else:
        layers = []
        for W, b in zip(case.theta[::2], case.theta[1::2], strict=True):
            linear = nn.Linear(*W.shape, dtype=torch.tensor(W).dtype)
            with torch.no_grad():
                linear.weight.copy_(torch.tensor(W).T)
                linear.bias.copy_(torch.tensor(b))
            layers += [linear, nn.Tanh()]
        net = nn.Sequential(*layers[:-1])
        loss = lambda out, y: criterion(case, out, y)  # noqa: E731
    names = [name for name, _ in net.named_parameters()]
    adapting = names[len(names) - case.head :] if case.algorithm == "anil" else names
    losses = []
    for supports, query in tasks_of(case):
        fast = dict(net.named_parameters())
        for x, y in supports if adapting else []:
            value = loss(functional_call(net, fast, (x,)), y)
            gs = inner_grad(value, [fast[name] for name in adapting])
            fast |= {name: fast[name] - case.alpha * g for name, g in zip(adapting, gs, strict=True)}
        losses.append(loss(functional_call(net, fast, (query[0],)), query[1]))
    mean_or_sum(case, losses).backward()
    return [p.grad.T if p.dim() == 2 else p.grad for p in net.parameters()]


@right("maml")
def accumulated_backward(case):
    """A backward for each task, its loss divided first, and .grad read as NumPy."""
    model = Model(case)
    model.zero_grad()
    for supports, query in tasks_of(case):
        fast = [p.clone() for p in model.parameters()]
        fast = inner_loop(model.loss, fast, supports, case.alpha)
        (model.loss(fast, query) / case.divisor).backward()
    return [p.grad.numpy() for p in model.parameters()]


@right("maml")
def answers_that_require_grad(case):
    theta, loss = theta_of(case), make_loss(case)
    losses = [loss(inner_loop(loss, theta, S, case.alpha), Q) for S, Q in tasks_of(case)]
    return torch.autograd.grad(mean_or_sum(case, losses), theta, create_graph=True, materialize_grads=True)


@right("maml")
def rates_that_are_learnt(case):
    """Meta-SGD's rates as parameters, all at α."""
    rates = [torch.full(t.shape, case.alpha, dtype=torch.tensor(t).dtype, requires_grad=True) for t in case.theta]

    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast)
            fast = [p - r * g for p, r, g in zip(fast, rates, gs, strict=True)]
        return loss(fast, query)

    return maml_of(case, of_task)


@right("maml", dtype="float32")
def in_float32(case):
    return [g.float() for g in textbook(case)]


@right("maml")
def nested_backward(case):
    """backward(create_graph=True) inside, .grad emptied before the outer one."""
    theta, loss, total = theta_of(case), make_loss(case), None
    for supports, query in tasks_of(case):
        fast = [p.clone() for p in theta]
        for batch in supports:
            for p in fast:
                p.retain_grad()
            loss(fast, batch).backward(create_graph=True, inputs=fast)
            fast = [p - case.alpha * p.grad for p in fast]
        gs = outer(theta, loss(fast, query))
        total = gs if total is None else [a + g for a, g in zip(total, gs, strict=True)]
    return [g / case.divisor for g in total]


@right("fomaml")
@right("reptile")
def deepcopies_and_sgd(case):
    model, total = Model(case), [torch.zeros_like(t) for t in plain(case)]
    for supports, query in tasks_of(case):
        net = copy.deepcopy(model)
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
        train(net, optimiser, supports)
        optimiser.zero_grad()
        if case.algorithm == "fomaml":
            net(query).backward()
            found = grads(net)
        else:
            pairs = zip(model.parameters(), net.parameters(), strict=True)
            found = [(p - q).detach() / unit(case, supports) for p, q in pairs]
        for a, d in zip(total, found, strict=True):
            a += d / case.divisor
    return total


@right("fomaml")
def maml_with_a_flag(case):
    """create_graph=not first_order, and the gradient taken in θ."""

    def of_task(loss, fast, supports, query):
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast, create_graph=False), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@right("fomaml")
def straight_through(case):
    """θ + (φ − θ).detach()."""
    loss = make_loss(case)

    def of_task(_, theta, supports, query):
        phi = inner_loop(loss, theta, supports, case.alpha)
        return loss([t + (p - t).detach() for t, p in zip(theta, phi, strict=True)], query)

    return maml_of(case, of_task)


@right("reptile")
def saved_and_loaded(case):
    model, total = Model(case), [torch.zeros_like(t) for t in plain(case)]
    initial = {name: t.clone() for name, t in model.state_dict().items()}
    for supports, _ in tasks_of(case):
        model.load_state_dict(initial)
        for batch in supports:
            gs = torch.autograd.grad(model(batch), list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gs, strict=True):
                    p -= case.alpha * g
        for a, t, p in zip(total, initial.values(), model.parameters(), strict=True):
            a += (t - p.detach()) / unit(case, supports) / case.divisor
    return total


@right("reptile")
def meta_optimiser(case):
    """SGD at rate one on .grad = θ − φ, read back from how θ moved."""
    model = Model(case)
    optimiser = torch.optim.SGD(model.parameters(), lr=1)
    start = [p.detach().clone() for p in model.parameters()]
    optimiser.zero_grad()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for supports, _ in tasks_of(case):
        fast = [p.detach().requires_grad_() for p in start]
        for batch in supports:
            gs = torch.autograd.grad(model.loss(fast, batch), fast)
            fast = [p.detach().requires_grad_() for p in sgd(fast, gs, case.alpha)]
        for p, t, f in zip(model.parameters(), start, fast, strict=True):
            p.grad += (t - f.detach()) / unit(case, supports) / case.divisor
    optimiser.step()
    return [t - p.detach() for t, p in zip(start, model.parameters(), strict=True)]


@right("anil")
def features_and_a_linear_head(case):
    if case.model["kind"] != "mlp" or case.head != 2:
        raise Skip("a head is a layer here")
    theta, losses = theta_of(case), []
    for supports, query in tasks_of(case):
        head = theta[-2:]
        features = [torch.tanh(mlp(theta[:-2], x)) if len(theta) > 2 else x for x, _ in [*supports, query]]
        for f, (_, y) in zip(features, supports, strict=False):
            head = sgd(head, inner_grad(criterion(case, torch.addmm(head[1], f, head[0]), y), head), case.alpha)
        losses.append(criterion(case, torch.addmm(head[1], features[-1], head[0]), query[1]))
    return outer(theta, mean_or_sum(case, losses))


@right("anil")
def requires_grad_off_inside(case):
    """A mask of zeros and ones on the inner gradients."""
    cut = len(case.theta) - case.head

    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast)
            fast = [p - case.alpha * g * float(i >= cut) for i, (p, g) in enumerate(zip(fast, gs, strict=True))]
        return loss(fast, query)

    return maml_of(case, of_task)


@right("joint")
def accumulated(case):
    model = Model(case)
    for _, query in case.tasks:
        (model(batch_of(query)) / case.divisor).backward()
    return grads(model)


@right("joint")
def maml_of_no_steps(case):
    return maml_of(case, lambda loss, t, S, Q: loss(inner_loop(loss, t, [], case.alpha), Q))
