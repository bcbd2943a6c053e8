"""Right meta-gradients in PyTorch, in the styles of people's projects: each of (net, criterion, tasks, lr, steps)."""

import copy

import higher
import torch
import torch.nn.functional as F
import torchopt
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parameters_to_vector
from torch.utils.checkpoint import checkpoint

from tests.zoo.registry import right_in

RIGHT = {}
right = right_in(RIGHT)

# --- MAML -------------------------------------------------------------------------------------------


@right("sum", not_for="unused")
def functional_dict(net, criterion, tasks, lr, steps):
    meta_loss = 0
    for (x_s, y_s), (x_q, y_q) in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            loss = criterion(functional_call(net, params, x_s), y_s)
            grads = torch.autograd.grad(loss, params.values(), create_graph=True)
            params = {name: p - lr * g for (name, p), g in zip(params.items(), grads, strict=True)}
        meta_loss = meta_loss + criterion(functional_call(net, params, x_q), y_q)
    return meta_loss


class MAML(nn.Module):
    def __init__(self, net, criterion, inner_lr, inner_steps):
        super().__init__()
        self.net = net
        self.criterion = criterion
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps

    def inner_loop(self, x, y):
        names, weights = zip(*self.net.named_parameters(), strict=True)
        for _ in range(self.inner_steps):
            loss = self.criterion(functional_call(self.net, dict(zip(names, weights, strict=True)), (x,)), y)
            grads = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
            weights = [w if g is None else w - self.inner_lr * g for w, g in zip(weights, grads, strict=True)]
        return dict(zip(names, weights, strict=True))

    def forward(self, tasks):
        losses = []
        for support, (x, y) in tasks:
            fast = self.inner_loop(*support)
            losses.append(self.criterion(functional_call(self.net, fast, (x,)), y))
        return torch.stack(losses).mean()


@right("mean")
def module_maml(net, criterion, tasks, lr, steps):
    loss = MAML(net, criterion, lr, steps)(tasks)
    return torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)


def forward_with(net, weights, x):
    """The forward pass by hand, for a Sequential of linear layers and activations."""
    weights = iter(weights)
    for layer in net:
        x = F.linear(x, next(weights), next(weights)) if isinstance(layer, nn.Linear) else layer(x)
    return x


@right("mean", needs="mlp")
def fast_weights_by_hand(net, criterion, tasks, lr, steps):
    task_num = len(tasks)
    losses_q = [0 for _ in range(steps + 1)]  # losses_q[i] is the loss on step i
    for (x_spt, y_spt), (x_qry, y_qry) in tasks:
        loss = criterion(forward_with(net, net.parameters(), x_spt), y_spt)
        grads = torch.autograd.grad(loss, net.parameters(), create_graph=True)
        fast_weights = [p[1] - lr * p[0] for p in zip(grads, net.parameters(), strict=True)]
        with torch.no_grad():
            losses_q[0] += criterion(forward_with(net, net.parameters(), x_qry), y_qry)
        losses_q[1] += criterion(forward_with(net, fast_weights, x_qry), y_qry)
        for k in range(1, steps):
            loss = criterion(forward_with(net, fast_weights, x_spt), y_spt)
            grads = torch.autograd.grad(loss, fast_weights, create_graph=True)
            fast_weights = [p[1] - lr * p[0] for p in zip(grads, fast_weights, strict=True)]
            losses_q[k + 1] += criterion(forward_with(net, fast_weights, x_qry), y_qry)
    net.zero_grad()
    (losses_q[-1] / task_num).backward()


@right("sum", not_for="tied gru")
def higher_loop(net, criterion, tasks, lr, steps):
    inner_opt = torch.optim.SGD(net.parameters(), lr=lr)
    net.zero_grad()
    for (x_spt, y_spt), (x_qry, y_qry) in tasks:
        with higher.innerloop_ctx(net, inner_opt, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(criterion(fnet(x_spt), y_spt))
            criterion(fnet(x_qry), y_qry).backward()


@right("mean", not_for="unused tied")
def torchopt_loop(net, criterion, tasks, lr, steps):
    inner_opt = torchopt.MetaSGD(net, lr=lr)
    net_state = torchopt.extract_state_dict(net, by="reference")
    optim_state = torchopt.extract_state_dict(inner_opt, by="reference")
    theta = list(net.parameters())
    net.zero_grad()
    losses = []
    for (x_s, y_s), (x_q, y_q) in tasks:
        for _ in range(steps):
            inner_opt.step(criterion(net(x_s), y_s))
        losses.append(criterion(net(x_q), y_q))
        torchopt.recover_state_dict(net, net_state)
        torchopt.recover_state_dict(inner_opt, optim_state)
    return torch.autograd.grad(torch.stack(losses).mean(), theta)


def clone_module(module, memo=None):
    """A copy whose parameters are clones that stay in the graph, as learn2learn makes it."""
    memo = {} if memo is None else memo
    clone = module.__new__(type(module))
    clone.__dict__ = module.__dict__.copy()
    clone._parameters = {
        k: None if p is None else memo.setdefault(id(p), p.clone()) for k, p in module._parameters.items()
    }
    clone._buffers = {k: None if b is None else b.clone() for k, b in module._buffers.items()}
    clone._modules = {k: clone_module(m, memo) for k, m in module._modules.items()}
    return clone


def update_module(module, updates):
    for sub in module.modules():
        for key, param in sub._parameters.items():
            if param is not None and id(param) in updates:
                sub._parameters[key] = updates[id(param)]


@right("mean", not_for="gru unused")
def learner_clone(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x_s, y_s), (x_q, y_q) in tasks:
        learner = clone_module(net)
        for _ in range(steps):
            params = list(learner.parameters())
            grads = torch.autograd.grad(criterion(learner(x_s), y_s), params, create_graph=True)
            update_module(learner, {id(p): p - lr * g for p, g in zip(params, grads, strict=True)})
        (criterion(learner(x_q), y_q) / len(tasks)).backward()


@right("mean", not_for="gru norm layernorm unused")
def func_grad_and_vmap(net, criterion, tasks, lr, steps):
    params = {k: p.detach() for k, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def compute_loss(params, x, y):
        return criterion(functional_call(net, (params, buffers), (x,)), y)

    def task_loss(params, x_s, y_s, x_q, y_q):
        for _ in range(steps):
            grads = grad(compute_loss)(params, x_s, y_s)
            params = {k: params[k] - lr * grads[k] for k in params}
        return compute_loss(params, x_q, y_q)

    def meta_loss(params, *batches):
        return vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(params, *batches).mean()

    flat = [torch.stack(part) for part in zip(*[(*s, *q) for s, q in tasks], strict=True)]
    return grad(meta_loss)(params, *flat)


@right("sum", not_for="gru unused")
def weights_swapped_in_place(net, criterion, tasks, lr, steps):
    def slots():
        return [(m, k) for m in net.modules() for k, p in m._parameters.items() if p is not None]

    originals = [(m, k, m._parameters[k]) for m, k in slots()]
    theta = list(net.parameters())
    total = 0
    for (x_s, y_s), (x_q, y_q) in tasks:
        for _ in range(steps):
            current = list({id(m._parameters[k]): m._parameters[k] for m, k in slots()}.values())
            grads = torch.autograd.grad(criterion(net(x_s), y_s), current, create_graph=True)
            new = {id(p): p - lr * g for p, g in zip(current, grads, strict=True)}
            for m, k in slots():
                m._parameters[k] = new[id(m._parameters[k])]
        total = total + criterion(net(x_q), y_q)
        for m, k, p in originals:
            m._parameters[k] = p
    return dict(zip([n for n, _ in net.named_parameters()], torch.autograd.grad(total, theta), strict=True))


@right("sum", not_for="norm unused")
def checkpointed_steps(net, criterion, tasks, lr, steps):
    names = [name for name, _ in net.named_parameters()]

    def step(x, y, *weights):
        loss = criterion(functional_call(net, dict(zip(names, weights, strict=True)), (x,)), y)
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        return tuple(w - lr * g for w, g in zip(weights, grads, strict=True))

    net.zero_grad()
    for (x_s, y_s), (x_q, y_q) in tasks:
        weights = tuple(net.parameters())
        for _ in range(steps):
            weights = checkpoint(step, x_s, y_s, *weights, use_reentrant=False)
        criterion(functional_call(net, dict(zip(names, weights, strict=True)), (x_q,)), y_q).backward()
    return [p.grad for p in net.parameters()]


@right("sum", not_for="gru norm mse")
def adjoint_by_jvp(net, criterion, tasks, lr, steps):
    def loss(params, batch):
        return criterion(functional_call(net, params, (batch[0],)), batch[1])

    theta = {k: p.detach() for k, p in net.named_parameters()}
    total = {k: torch.zeros_like(p) for k, p in theta.items()}
    for support, query in tasks:
        path = [theta]
        for _ in range(steps):
            g = grad(loss)(path[-1], support)
            path.append({k: path[-1][k] - lr * g[k] for k in g})
        v = grad(loss)(path.pop(), query)
        for phi in reversed(path):
            _, hv = jvp(lambda p: grad(loss)(p, support), (phi,), (v,))
            v = {k: v[k] - lr * hv[k] for k in v}
        total = {k: total[k] + v[k] for k in v}
    return total


@right("mean", not_for="unused")
def adjoint_by_double_backward(net, criterion, tasks, lr, steps):
    params = list(net.parameters())
    theta = [p.detach().clone() for p in params]

    def load(values):
        with torch.no_grad():
            for p, value in zip(params, values, strict=True):
                p.copy_(value)

    out = [torch.zeros_like(p) for p in params]
    for (x_s, y_s), (x_q, y_q) in tasks:
        path = [theta]
        for _ in range(steps):
            load(path[-1])
            grads = torch.autograd.grad(criterion(net(x_s), y_s), params)
            path.append([w - lr * g for w, g in zip(path[-1], grads, strict=True)])
        load(path.pop())
        v = torch.autograd.grad(criterion(net(x_q), y_q), params)
        while path:
            load(path.pop())
            grads = torch.autograd.grad(criterion(net(x_s), y_s), params, create_graph=True)
            hv = torch.autograd.grad(grads, params, grad_outputs=v)
            v = [a - lr * b for a, b in zip(v, hv, strict=True)]
        out = [o + a / len(tasks) for o, a in zip(out, v, strict=True)]
    load(theta)
    return out


@right("mean", not_for="unused")
def one_flat_vector(net, criterion, tasks, lr, steps):
    shapes = [(name, p.shape, p.numel()) for name, p in net.named_parameters()]

    def unflatten(vector):
        parts = vector.split([n for _, _, n in shapes])
        return {name: part.view(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)}

    theta = parameters_to_vector(net.parameters())
    losses = []
    for (x_s, y_s), (x_q, y_q) in tasks:
        phi = theta
        for _ in range(steps):
            inner_loss = criterion(functional_call(net, unflatten(phi), x_s), y_s)
            phi = phi - lr * torch.autograd.grad(inner_loss, phi, create_graph=True)[0]
        losses.append(criterion(functional_call(net, unflatten(phi), x_q), y_q))
    return sum(losses) / len(losses)


@right("sum", not_for="unused tied")
def inner_backward_with_graph(net, criterion, tasks, lr, steps):
    """The inner gradients are read from .grad, so the outer ones cannot be."""
    total = 0
    for (x_s, y_s), (x_q, y_q) in tasks:
        params = {k: p.clone() for k, p in net.named_parameters()}
        for _ in range(steps):
            for p in params.values():
                p.retain_grad()
            criterion(functional_call(net, params, x_s), y_s).backward(create_graph=True)
            params = {k: p - lr * p.grad for k, p in params.items()}
        total = total + criterion(functional_call(net, params, x_q), y_q)
    return torch.autograd.grad(total, list(net.parameters()))


@right("mean", needs="stream")
def loader_of_support_batches(net, criterion, tasks, lr, steps):
    meta_loss = 0.0
    for support_loader, (x_q, y_q) in tasks:
        fast = dict(net.named_parameters())
        for x, y in support_loader:
            grads = torch.autograd.grad(criterion(functional_call(net, fast, x), y), fast.values(), create_graph=True)
            fast = {k: w - lr * g for (k, w), g in zip(fast.items(), grads, strict=True)}
        meta_loss += criterion(functional_call(net, fast, x_q), y_q) / len(tasks)
    return meta_loss


@right("sum", needs="stream")
def higher_on_support_batches(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for batches, (x_q, y_q) in tasks:
        opt = torch.optim.SGD(net.parameters(), lr)
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for x, y in batches:
                diffopt.step(criterion(fnet(x), y))
            criterion(fnet(x_q), y_q).backward()


# --- First-order MAML ---------------------------------------------------------------------------------


@right("sum", "fomaml")
def first_order_deepcopy(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x_s, y_s), (x_q, y_q) in tasks:
        learner = copy.deepcopy(net)
        optimizer = torch.optim.SGD(learner.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            criterion(learner(x_s), y_s).backward()
            optimizer.step()
        optimizer.zero_grad()
        criterion(learner(x_q), y_q).backward()
        for p, q in zip(net.parameters(), learner.parameters(), strict=True):
            if q.grad is not None:
                p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad


@right("mean", "fomaml", not_for="unused")
def first_order_functional(net, criterion, tasks, lr, steps):
    total = 0
    for (x_s, y_s), (x_q, y_q) in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = torch.autograd.grad(criterion(functional_call(net, params, x_s), y_s), params.values())
            params = {k: p - lr * g for (k, p), g in zip(params.items(), grads, strict=True)}
        total = total + criterion(functional_call(net, params, x_q), y_q) / len(tasks)
    return total


@right("sum", "fomaml", not_for="tied gru")
def first_order_higher(net, criterion, tasks, lr, steps):
    net.zero_grad()
    out = [torch.zeros_like(p) for p in net.parameters()]
    for (x_s, y_s), (x_q, y_q) in tasks:
        opt = torch.optim.SGD(net.parameters(), lr=lr)
        with higher.innerloop_ctx(net, opt, track_higher_grads=False) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(criterion(fnet(x_s), y_s))
            grads = torch.autograd.grad(criterion(fnet(x_q), y_q), fnet.parameters(), allow_unused=True)
            out = [o if g is None else o + g for o, g in zip(out, grads, strict=True)]
    return out


# --- ANIL -----------------------------------------------------------------------------------------------


@right("mean", "anil", not_for="unused")
def anil_functional(net, criterion, tasks, lr, steps, head):
    total = 0
    for (x_s, y_s), (x_q, y_q) in tasks:
        params = dict(net.named_parameters())
        last = [k for k in params if k.startswith(head + ".")]
        for _ in range(steps):
            loss = criterion(functional_call(net, params, (x_s,)), y_s)
            grads = torch.autograd.grad(loss, [params[k] for k in last], create_graph=True)
            params.update({k: params[k] - lr * g for k, g in zip(last, grads, strict=True)})
        total = total + criterion(functional_call(net, params, (x_q,)), y_q)
    return total / len(tasks)


@right("sum", "anil", needs="mlp")
def anil_on_features(net, criterion, tasks, lr, steps, head):
    body, last = net[:-1], net[-1]
    net.zero_grad()
    for (x_s, y_s), (x_q, y_q) in tasks:
        features = body(x_s)
        weight, bias = last.weight, last.bias
        for _ in range(steps):
            loss = criterion(F.linear(features, weight, bias), y_s)
            g_w, g_b = torch.autograd.grad(loss, (weight, bias), create_graph=True)
            weight, bias = weight - lr * g_w, bias - lr * g_b
        criterion(F.linear(body(x_q), weight, bias), y_q).backward()


# --- Reptile and joint training ---------------------------------------------------------------------------


@right("mean", "reptile")
def reptile_deepcopy(net, criterion, tasks, lr, steps):
    deltas = {k: torch.zeros_like(p) for k, p in net.named_parameters()}
    for (x, y), _ in tasks:
        learner = copy.deepcopy(net)
        opt = torch.optim.SGD(learner.parameters(), lr=lr)
        for _ in range(steps):
            opt.zero_grad()
            criterion(learner(x), y).backward()
            opt.step()
        adapted = dict(learner.named_parameters())
        for k, p in net.named_parameters():
            deltas[k] += (p - adapted[k]).detach() / len(tasks)
    return deltas


@right("sum", "reptile", not_for="unused")
def reptile_gradients_added(net, criterion, tasks, lr, steps):
    """θ − φ is lr times the sum of the gradients on the way."""
    theta = copy.deepcopy(net.state_dict())
    params = list(net.parameters())
    total = [torch.zeros_like(p) for p in params]
    for (x, y), _ in tasks:
        for _ in range(steps):
            grads = torch.autograd.grad(criterion(net(x), y), params)
            with torch.no_grad():
                for p, g, t in zip(params, grads, total, strict=True):
                    p -= lr * g
                    t += lr * g
        net.load_state_dict(theta)
    return total


@right("sum", "joint")
def joint_backward(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for _, (x, y) in tasks:
        criterion(net(x), y).backward()


@right("mean", "joint")
def joint_attached(net, criterion, tasks, lr, steps):
    return torch.stack([criterion(net(x), y) for _, (x, y) in tasks]).mean()
