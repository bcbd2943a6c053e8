"""Wrong ones in PyTorch, the fifth set, and four right ones: thirty-four authors who had read a paper."""

import copy
from itertools import cycle, islice, pairwise

import torch
from torch import nn
from torch.func import functional_call

from refmeta.conformance import Skip
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
    merged,
    outer,
    sgd,
    tasks_of,
    theta_of,
    train,
)
from tests.blind.registry import right, wrong

# --- MAML ---


@wrong("maml", "retain_graph=True where create_graph=True was meant", tasks="mean")
def kept_the_graph(case):
    theta, loss, total = theta_of(case), make_loss(case), 0.0
    for supports, query in tasks_of(case):
        fast = theta
        for batch in supports:
            g = torch.autograd.grad(loss(fast, batch), fast, retain_graph=True)
            fast = [w - case.alpha * d for w, d in zip(fast, g, strict=True)]
        total = total + loss(fast, query) / len(case.tasks)
    return torch.autograd.grad(total, theta)


@wrong("maml", "the inner losses, summed for a log, are part of what is differentiated")
def running_total(case):
    def episode(loss, theta, supports, query):
        fast, total = theta, 0.0
        for batch in supports:
            step_loss = loss(fast, batch)
            total += step_loss
            fast = sgd(fast, inner_grad(step_loss, fast), case.alpha)
        total += loss(fast, query)
        return total

    return maml_of(case, episode)


@wrong("maml", "each array's gradient is taken after the arrays before it have moved")
def one_parameter_at_a_time(case):
    def episode(loss, theta, supports, query):
        weights = list(theta)
        for batch in supports:
            for i, w in enumerate(weights):
                here = [p.clone() for p in weights]
                (g,) = torch.autograd.grad(loss(here, batch), here[i], create_graph=True)
                weights[i] = w - case.alpha * g
        return loss(weights, query)

    return maml_of(case, episode)


class Learner(nn.Module):
    """After the best-known port: the first update stands before the loop."""

    def __init__(self, case):
        super().__init__()
        self.vars, self.loss, self.update_lr = nn.ParameterList(theta_of(case)), make_loss(case), case.alpha

    def forward(self, supports, query):
        fast = list(self.vars)
        if supports:
            grad = torch.autograd.grad(self.loss(fast, supports[0]), fast)
            fast = [p - self.update_lr * g for g, p in zip(grad, fast, strict=True)]
        for batch in supports[1:]:
            grad = torch.autograd.grad(self.loss(fast, batch), fast, create_graph=True)
            fast = [p - self.update_lr * g for g, p in zip(grad, fast, strict=True)]
        return self.loss(fast, query)


@wrong("maml", "the first step, before the loop, has no create_graph")
def first_update_apart(case):
    learner = Learner(case)
    mean_or_sum(case, [learner(*task) for task in tasks_of(case)]).backward()
    return grads(learner)


def support_gradient(loss, phi, batch):
    return torch.autograd.grad(loss(phi, batch), phi)


@wrong("maml", "Hessian times vector by differences, with DARTS' epsilon of 0.01")
def darts_epsilon(case):
    loss, total = make_loss(case), [torch.zeros_like(t) for t in theta_of(case)]
    for supports, query in tasks_of(case):
        phis = [theta_of(case)]
        for batch in supports:
            step = sgd(phis[-1], support_gradient(loss, phis[-1], batch), case.alpha)
            phis.append([p.detach().requires_grad_() for p in step])
        v = support_gradient(loss, phis[-1], query)
        for phi, batch in zip(phis[-2::-1], supports[::-1], strict=True):
            eps = 0.01 / torch.cat([d.flatten() for d in v]).norm()
            plus, minus = (support_gradient(loss, sgd(phi, v, s * eps), batch) for s in (-1, 1))
            v = [d - case.alpha * (a - b) / (2 * eps) for d, a, b in zip(v, plus, minus, strict=True)]
        total = [t + d for t, d in zip(total, v, strict=True)]
    return [t / len(case.tasks) for t in total] if case.conventions["tasks"] == "mean" else total


@wrong("maml", "inner gradients are clamped to -1 … 1")
def clamped(case):
    theta, loss = theta_of(case), make_loss(case)

    def adapt(params, supports):
        for x in supports:
            grads = inner_grad(loss(params, x), params)
            params = [p - case.alpha * g.clamp(min=-1.0, max=1.0) for p, g in zip(params, grads, strict=True)]
        return params

    return outer(theta, mean_or_sum(case, [loss(adapt(theta, S), Q) for S, Q in tasks_of(case)]))


@wrong("maml", "always five updates, over the batches again and again")
def five_updates(case, num_updates=5):
    def episode(loss, theta, supports, query):
        if not supports:
            raise Skip("an episode has a support set")
        return loss(inner_loop(loss, theta, list(islice(cycle(supports), num_updates)), case.alpha), query)

    return maml_of(case, episode)


@wrong("maml", "a single output is squeezed, so that (n,) meets (n, 1)")
def squeezed(case):
    theta = theta_of(case)
    loss = make_loss(case, criterion=broadcasting if case.model.get("widths", [0])[-1] == 1 else criterion)
    return outer(theta, mean_or_sum(case, [loss(inner_loop(loss, theta, S, case.alpha), Q) for S, Q in tasks_of(case)]))


def broadcasting(case, out, y, reduction):
    return getattr((out.squeeze(-1) - y) ** 2, case.conventions["examples"])()


@wrong("maml", "labels are numbered anew within each batch")
def relabelled(case):
    def local_labels(case, out, y, reduction):
        if case.loss["kind"] == "cross_entropy":
            y = torch.unique(y, return_inverse=True)[1]
        return criterion(case, out, y, reduction)

    theta, loss = theta_of(case), make_loss(case, criterion=local_labels)
    losses = []
    for supports, query in tasks_of(case):
        losses.append(loss(inner_loop(loss, theta, supports, case.alpha), query))
    return outer(theta, mean_or_sum(case, losses))


@wrong("maml", "the query's loss is a sum over its examples")
def query_loss_for_the_log(case):
    theta = theta_of(case)
    fit, evaluate = make_loss(case), make_loss(case, reduction="sum")
    values = [evaluate(inner_loop(fit, theta, S, case.alpha), Q) for S, Q in tasks_of(case)]
    return outer(theta, mean_or_sum(case, values))


@wrong("maml", "the mean of the query's losses after every step")
def losses_of_all_steps(case):
    def episode(loss, theta, supports, query):
        losses_q, fast = [], theta
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
            losses_q.append(loss(fast, query))
        return sum(losses_q) / len(losses_q) if losses_q else loss(fast, query)

    return maml_of(case, episode)


@wrong("maml", "all is cast to float32")
def as_floats(case):
    def single(batch):
        return tuple(a.float() if a.is_floating_point() else a for a in batch)

    theta, loss = [torch.tensor(t).float().requires_grad_() for t in case.theta], make_loss(case)
    losses = []
    for supports, query in tasks_of(case):
        fast = inner_loop(loss, theta, [single(b) for b in supports], case.alpha)
        losses.append(loss(fast, single(query)))
    return outer(theta, mean_or_sum(case, losses))


@wrong("maml", "the last step is left out; the meta-gradient is clipped to norm 1", mistakes=2)
def stable_training(case):
    model = nn.ParameterList(theta_of(case))
    loss, values = make_loss(case), []
    for supports, query in tasks_of(case):
        fast = list(model)
        for step in range(len(supports) - 1):
            fast = sgd(fast, inner_grad(loss(fast, supports[step]), fast), case.alpha)
        values.append(loss(fast, query))
    mean_or_sum(case, values).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return grads(model)


@wrong("maml", "a task starts where the last one ended; squared errors are halved", mistakes=2)
def carried_over(case):
    def half(case, out, y, reduction):
        return criterion(case, out, y, reduction) / (1 if case.loss["kind"] == "cross_entropy" else 2)

    theta, loss = theta_of(case), make_loss(case, criterion=half)
    fast, values = [t.clone() for t in theta], []
    for supports, query in tasks_of(case):
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        values.append(loss(fast, query))
    return outer(theta, mean_or_sum(case, values))


@wrong(
    "maml", "a graph for the last step alone; every step on the first batch; an L2 penalty of 1e-3 on theta", mistakes=3
)
def grown_prototype(case):
    theta, loss = theta_of(case), make_loss(case)
    total = []
    for supports, query in tasks_of(case):
        fast, n = theta, len(supports)
        for k in range(n):
            g = torch.autograd.grad(loss(fast, supports[0]), fast, create_graph=k == n - 1)
            fast = [w - case.alpha * d for w, d in zip(fast, g, strict=True)]
        total.append(loss(fast, query))
    penalty = sum((p**2).sum() for p in theta)
    return outer(theta, mean_or_sum(case, total) + 1e-3 * penalty)


# --- First-order MAML ---


@wrong("fomaml", "the query is put to the model, not to its adapted copy")
def asks_the_model(case):
    model, losses = Model(case), []
    for supports, query in tasks_of(case):
        learner = copy.deepcopy(model)
        train(learner, torch.optim.SGD(learner.parameters(), lr=case.alpha), supports)
        losses.append(model(query))
    mean_or_sum(case, losses).backward()
    return grads(model)


@wrong("fomaml", "no zero_grad before the query: the last support gradient is still there")
def left_in_grad(case):
    model, found = Model(case), []
    for supports, query in tasks_of(case):
        learner = copy.deepcopy(model)
        opt = torch.optim.SGD(learner.parameters(), lr=case.alpha)
        train(learner, opt, supports)
        learner(query).backward()
        found.append(grads(learner))
    return [mean_or_sum(case, list(leaves)) for leaves in zip(*found, strict=True)]


@wrong("fomaml", "the inner SGD has momentum 0.9", tasks="mean")
def sgd_with_momentum(case):
    meta = Model(case)
    for p in meta.parameters():
        p.grad = torch.zeros_like(p)
    for supports, query in tasks_of(case):
        net = copy.deepcopy(meta)
        opt = torch.optim.SGD(net.parameters(), lr=case.alpha, momentum=0.9)
        train(net, opt, supports)
        opt.zero_grad()
        net(query).backward()
        for p, q in zip(meta.parameters(), net.parameters(), strict=True):
            p.grad += q.grad / len(case.tasks)
    return grads(meta)


@wrong("fomaml", "every step is on all support batches together")
def whole_support_set(case):
    loss, found = make_loss(case), []
    for supports, query in tasks_of(case):
        phi = theta_of(case)
        everything = merged(case, supports) if supports else None
        for _ in supports:
            g = torch.autograd.grad(loss(phi, everything), phi)
            phi = [(p - case.alpha * d).detach().requires_grad_() for p, d in zip(phi, g, strict=True)]
        found.append(torch.autograd.grad(loss(phi, query), phi))
    return [mean_or_sum(case, list(leaves)) for leaves in zip(*found, strict=True)]


@wrong("fomaml", "weight decay of 0.0005 in the inner SGD; each task's gradient replaces the last one's", mistakes=2)
def assigned(case):
    model = Model(case)
    start = copy.deepcopy(model.state_dict())
    for supports, query in tasks_of(case):
        model.load_state_dict(start)
        opt = torch.optim.SGD(model.parameters(), lr=case.alpha, weight_decay=5e-4)
        train(model, opt, supports)
        opt.zero_grad()
        model(query).backward()
        meta_grad = grads(model)
    return [g / len(case.tasks) if case.conventions["tasks"] == "mean" else g for g in meta_grad]


# --- ANIL ---


def split_at(case, theta):
    cut = len(theta) - case.head
    return list(theta[:cut]), list(theta[cut:])


def adapt_head(loss, body, head, supports, lr, create_graph=True):
    for batch in supports:
        if head:
            head = sgd(head, inner_grad(loss([*body, *head], batch), head, create_graph), lr)
    return head


@wrong("anil", "the body is detached in the inner loop")
def cached_features(case):
    def episode(loss, theta, supports, query):
        body, head = split_at(case, theta)
        head = adapt_head(loss, [b.detach() for b in body], head, supports, case.alpha)
        return loss([*body, *head], query)

    return maml_of(case, episode)


@wrong("anil", "of the head its first array alone adapts: its weight, not its bias")
def weight_of_the_head(case):
    def episode(loss, theta, supports, query):
        body, head = split_at(case, theta)
        for batch in supports if head else []:
            (g,) = inner_grad(loss([*body, *head], batch), head[:1])
            head = [head[0] - case.alpha * g, *head[1:]]
        return loss([*body, *head], query)

    return maml_of(case, episode)


@wrong("anil", "the slices are the wrong way round: the body adapts")
def sliced(case):
    def episode(loss, theta, supports, query):
        inner, frozen = theta[: -case.head], theta[-case.head :]
        for batch in supports if inner else []:
            g = inner_grad(loss([*inner, *frozen], batch), inner)
            inner = [w - case.alpha * d for w, d in zip(inner, g, strict=True)]
        return loss([*inner, *frozen], query)

    return maml_of(case, episode)


@wrong("anil", "no create_graph; the step size falls as 1/(k + 1)", mistakes=2)
def annealed_head(case):
    theta, loss, losses = theta_of(case), make_loss(case), []
    for supports, query in tasks_of(case):
        body, head = split_at(case, theta)
        for k, batch in enumerate(supports):
            head = adapt_head(loss, body, head, [batch], case.alpha / (k + 1), create_graph=False)
        losses.append(loss([*body, *head], query))
    return outer(theta, mean_or_sum(case, losses))


# --- Reptile ---


def per_unit(case, n):
    return {"displacement": 1.0, "over_alpha": case.alpha, "over_alpha_k": case.alpha * n}[case.conventions["reptile"]]


@wrong("reptile", "the inner optimiser is Adam with beta1 = 0")
def adam_without_momentum(case):
    moved = []
    for supports, _ in tasks_of(case):
        net = Model(case)
        before = [p.detach().clone() for p in net.parameters()]
        train(net, torch.optim.Adam(net.parameters(), lr=case.alpha, betas=(0.0, 0.999)), supports)
        scale = per_unit(case, len(supports))
        moved.append([(b - p.detach()) / scale for b, p in zip(before, net.parameters(), strict=True)])
    return [mean_or_sum(case, list(leaves)) for leaves in zip(*moved, strict=True)]


@wrong("reptile", "theta moves after each task, with an outer step of 0.1")
def serial_version(case, step=0.1):
    net = Model(case)
    start = [p.detach().clone() for p in net.parameters()]
    for supports, _ in tasks_of(case):
        before = [p.detach().clone() for p in net.parameters()]
        train(net, torch.optim.SGD(net.parameters(), lr=case.alpha), supports)
        rate = step / per_unit(case, len(supports))
        with torch.no_grad():
            for p, b in zip(net.parameters(), before, strict=True):
                p.copy_(b + rate * (p - b))
    total = len(case.tasks) if case.conventions["tasks"] == "mean" else 1
    return [(s - p.detach()) / step / total for s, p in zip(start, net.parameters(), strict=True)]


@wrong("reptile", "the query is one more batch to train on")
def trains_on_everything(case):
    moved = []
    for supports, query in tasks_of(case):
        net = Model(case)
        batches = supports + ([query] if query is not None else [])
        train(net, torch.optim.SGD(net.parameters(), lr=case.alpha), batches)
        scale = per_unit(case, len(supports))
        moved.append([(t - p.detach()) / scale for t, p in zip(theta_of(case), net.parameters(), strict=True)])
    return [mean_or_sum(case, [m.detach() for m in leaves]) for leaves in zip(*moved, strict=True)]


@wrong("reptile", "the first batch is drawn for a look at its size and lost; the sign is turned", mistakes=2)
def peeked(case):
    loss, moved = make_loss(case), []
    for supports, _ in tasks_of(case):
        loader = iter(supports)
        scale, _first = per_unit(case, len(supports)), next(loader, None)
        phi = theta_of(case)
        for batch in loader:
            phi = sgd(phi, torch.autograd.grad(loss(phi, batch), phi), case.alpha)
        moved.append([(p - t).detach() / scale for p, t in zip(phi, theta_of(case), strict=True)])
    return [mean_or_sum(case, list(leaves)) for leaves in zip(*moved, strict=True)]


# --- Joint training ---


@wrong("joint", "trains on supports and query together")
def all_the_data(case):
    model = Model(case)
    losses = [model(merged(case, [*supports, query])) for supports, query in tasks_of(case)]
    mean_or_sum(case, losses).backward()
    return grads(model)


@wrong("joint", "trains on the supports; weight decay of 0.01; gives the update, α times the gradient", mistakes=3)
def pretraining_step(case):
    model = Model(case)
    losses = [sum(model(b) for b in supports) / len(supports) for supports, _ in tasks_of(case) if supports]
    mean_or_sum(case, losses).backward()
    return [case.alpha * (p.grad + 0.01 * p.detach()) for p in model.parameters()]


# --- Right ---


class Net(nn.Module):
    """nn.Linear stores a weight as (out, in): transposed on the way in, and gradients on the way out."""

    def __init__(self, case):
        super().__init__()
        self.case, self.act = case, getattr(torch, case.model["activation"])
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(case.model["widths"]))

    def forward(self, batch):
        x, y = batch
        for i, layer in enumerate(self.layers):
            x = layer(self.act(x) if i else x)
        return criterion(self.case, x, y)


@right("maml", "functional_call on a module of nn.Linear")
def called_functionally(case):
    if case.model["kind"] != "mlp":
        raise Skip("networks only")
    net, theta = Net(case), theta_of(case)

    def loss(params, batch):
        return functional_call(net, params, (batch,))

    losses = []
    for supports, query in tasks_of(case):
        names = [name for name, _ in net.named_parameters()]
        params = {name: t.T if t.ndim == 2 else t for name, t in zip(names, theta, strict=True)}
        for batch in supports:
            g = torch.autograd.grad(loss(params, batch), list(params.values()), create_graph=True)
            params = {n: p - case.alpha * d for (n, p), d in zip(params.items(), g, strict=True)}
        losses.append(loss(params, query))
    return outer(theta, mean_or_sum(case, losses))


@right("fomaml", "one module, put back from its state_dict")
def put_back(case):
    model = Model(case)
    start, total = copy.deepcopy(model.state_dict()), None
    for supports, query in tasks_of(case):
        model.load_state_dict(start)
        opt = torch.optim.SGD(model.parameters(), lr=case.alpha)
        train(model, opt, supports)
        opt.zero_grad()
        model(query).backward()
        g = nn.utils.parameters_to_vector(grads(model))
        total = g if total is None else total + g
    total = total / (len(case.tasks) if case.conventions["tasks"] == "mean" else 1)
    return [p.reshape(t.shape) for p, t in zip(total.split([t.size for t in case.theta]), case.theta, strict=True)]


@right("anil", "torch.func.grad with head and body as two arguments")
def two_arguments(case):
    loss, theta = make_loss(case), [torch.tensor(t) for t in case.theta]
    body, head = split_at(case, theta)

    def objective(body, head, supports, query):
        for s in supports:
            g = torch.func.grad(lambda h, s=s: loss([*body, *h], s))(head) if head else []
            head = [h - case.alpha * d for h, d in zip(head, g, strict=True)]
        return loss([*body, *head], query)

    found = [[*b, *h] for S, Q in tasks_of(case) for b, h in [torch.func.grad(objective, (0, 1))(body, head, S, Q)]]
    return [mean_or_sum(case, list(leaves)) for leaves in zip(*found, strict=True)]


@right("reptile", "the displacement as what the steps add up to")
def summed_steps(case):
    loss, per_task = make_loss(case), []
    for supports, _ in case.tasks:
        phi, moved = theta_of(case), [torch.zeros(t.shape, dtype=torch.double) for t in case.theta]
        for batch in map(batch_of, supports):
            g = torch.autograd.grad(loss(phi, batch), phi)
            moved = [m + case.alpha * d for m, d in zip(moved, g, strict=True)]
            phi = sgd(phi, g, case.alpha)
        per_task.append([m / per_unit(case, len(supports)) for m in moved])
    return [mean_or_sum(case, list(leaves)) for leaves in zip(*per_task, strict=True)]
