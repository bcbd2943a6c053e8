"""A hundred more, the PyTorch half: mistakes written without a look at what anything checks, and right ones."""

import copy
import math

import higher
import torch
import torch.nn.functional as F
from torch.func import functional_call, jacrev
from torch.func import grad as func_grad
from torch.nn.utils import clip_grad_norm_, parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset

from tests.blind.common import unit
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


def zeros(case):
    return [torch.zeros_like(p) for p in theta_of(case)]


def leaves(theta):
    return [p.detach().clone().requires_grad_() for p in theta]


def anil_of(case, adapt):
    """adapt(loss, body, head, supports) gives the parameters that the query is evaluated with."""
    cut = len(case.theta) - case.head
    return maml_of(case, lambda loss, t, S, Q: loss(adapt(loss, t[:cut], t[cut:], S), Q))


# ---------------------------------------------------------------- MAML


@wrong("maml", "create_graph is forgotten in autograd.grad, so the inner gradients are constants")
def grad_without_create_graph(case):
    def of_task(loss, theta, supports, query):
        fast_weights = theta
        for batch in supports:
            gs = torch.autograd.grad(loss(fast_weights, batch), fast_weights)
            fast_weights = [p[1] - case.alpha * p[0] for p in zip(gs, fast_weights, strict=True)]
        return loss(fast_weights, query)

    return maml_of(case, of_task)


@wrong("maml", "the inner gradients are added up from step to step and never set to zero")
def inner_gradients_add_up(case):
    def of_task(loss, fast, supports, query):
        total = [0] * len(fast)
        for batch in supports:
            total = [a + g for a, g in zip(total, inner_grad(loss(fast, batch), fast), strict=True)]
            fast = sgd(fast, total, case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the inner backward also fills θ's .grad, which is not emptied before the query's")
def support_gradients_in_the_meta_gradient(case):
    theta, loss = theta_of(case), make_loss(case)
    for supports, query in tasks_of(case):
        fast = [p.clone() for p in theta]
        for batch in supports:
            for p in fast:
                p.retain_grad()
            loss(fast, batch).backward(create_graph=True)
            fast = [p - case.alpha * p.grad for p in fast]
        (loss(fast, query) / case.divisor).backward()
    return [p.grad.detach() for p in theta]


@wrong("maml", "create_graph is off in the last inner step, which is believed not to need it")
def last_step_without_graph(case):
    def of_task(loss, fast, supports, query):
        for k, batch in enumerate(supports):
            gs = inner_grad(loss(fast, batch), fast, create_graph=k < len(supports) - 1)
            fast = sgd(fast, gs, case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "backpropagation is truncated: the gradient is that in φ_{K−1}, through the last step alone")
def truncated_to_one_step(case):
    loss, total = make_loss(case), zeros(case)
    for supports, query in tasks_of(case):
        start = fast = theta_of(case)
        for batch in supports:
            start = leaves(fast)
            fast = sgd(start, inner_grad(loss(start, batch), start), case.alpha)
        for a, g in zip(total, torch.autograd.grad(loss(fast, query), start), strict=True):
            a += g / case.divisor
    return total


@wrong("maml", "higher copies the initial weights, its default, so the model's own .grad stays empty")
def higher_by_default(case):
    model = Model(case)
    inner = torch.optim.SGD(model.parameters(), lr=case.alpha)
    for supports, query in tasks_of(case):
        with higher.innerloop_ctx(model, inner) as (fmodel, diffopt):
            for batch in supports:
                diffopt.step(fmodel(batch))
            (fmodel(query) / case.divisor).backward()
    return grads(model)


@wrong("maml", "the inner optimiser is Adam in place of SGD")
def adam_inside(case):
    model = Model(case)
    inner = torch.optim.Adam(model.parameters(), lr=case.alpha)
    for supports, query in tasks_of(case):
        with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
            for batch in supports:
                diffopt.step(fmodel(batch))
            (fmodel(query) / case.divisor).backward()
    return grads(model)


@wrong("maml", "the meta-gradient is clipped to the norm 1")
def meta_gradient_clipped(case):
    model = Model(case)
    for supports, query in tasks_of(case):
        fast = inner_loop(model.loss, [p.clone() for p in model.parameters()], supports, case.alpha)
        (model.loss(fast, query) / case.divisor).backward()
    clip_grad_norm_(model.parameters(), 1.0)
    return grads(model)


@wrong("maml", "labels are smoothed by 0.1 while adapting")
def smoothed_supports(case):
    def smooth(case, out, y, reduction=None):
        if case.loss["kind"] != "cross_entropy":
            return criterion(case, out, y, reduction)
        return F.cross_entropy(out, y, reduction=case.conventions["examples"], label_smoothing=0.1)

    support_loss = make_loss(case, criterion=smooth)
    return maml_of(case, lambda loss, t, S, Q: loss(inner_loop(support_loss, t, S, case.alpha), Q))


@wrong("maml", "the query is loaded in batches of four and the last, smaller one is dropped")
def small_batch_dropped(case):
    def loader(batch):
        if case.model["kind"] == "quadratic":
            return [batch]
        return DataLoader(TensorDataset(*batch), batch_size=min(4, len(batch[0])), drop_last=True)

    def of_task(loss, theta, supports, query):
        fast = inner_loop(loss, theta, supports, case.alpha)
        losses = torch.stack([loss(fast, batch) for batch in loader(query)])
        return getattr(losses, case.conventions["examples"])()

    return maml_of(case, of_task)


@wrong("maml", "support batches are popped from the end of their list: the last is used first")
def popped_from_the_end(case):
    loss, tasks = make_loss(case), tasks_of(case)

    def adapted_loss(theta, supports, query):
        queue = list(supports)
        while queue:
            theta = sgd(theta, func_grad(loss)(theta, queue.pop()), case.alpha)
        return loss(theta, query)

    def meta_loss(theta):
        return mean_or_sum(case, [adapted_loss(theta, S, Q) for S, Q in tasks])

    return func_grad(meta_loss)([p.detach() for p in theta_of(case)])


@wrong("maml", "each inner step descends all of the task's supports, joined in one batch")
def full_batch_each_step(case):
    def of_task(loss, fast, supports, query):
        whole = merged(case, supports) if supports else None
        for _ in supports:
            fast = sgd(fast, inner_grad(loss(fast, whole), fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the query losses before, between and after the steps are all summed")
def all_query_losses_summed(case):
    def of_task(loss, fast, supports, query):
        losses_q = [loss(fast, query)]
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
            losses_q.append(loss(fast, query))
        return torch.stack(losses_q).sum()

    return maml_of(case, of_task)


@wrong("maml", "the query loss is divided by the number of its examples, over which it was reduced already")
def divided_by_the_examples_again(case):
    return maml_of(case, lambda loss, t, S, Q: loss(inner_loop(loss, t, S, case.alpha), Q) / len(Q[0]))


@wrong("maml", "the inner loss has iMAML's proximal term, 0.1 ‖φ − θ‖²/2")
def proximal_inner_loss(case):
    def of_task(loss, theta, supports, query):
        fast = [p.clone() for p in theta]
        for batch in supports:
            reg = sum(((p - t) ** 2).sum() for p, t in zip(fast, theta, strict=True))
            fast = sgd(fast, inner_grad(loss(fast, batch) + 0.05 * reg, fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "of the steps that with the least query loss counts, as in early stopping, not the last")
def best_step_by_query(case):
    model = Model(case)
    for supports, query in tasks_of(case):
        params = dict(model.named_parameters())
        best = functional_call(model, params, (query,))
        for batch in supports:
            gs = inner_grad(functional_call(model, params, (batch,)), list(params.values()))
            params = {name: p - case.alpha * g for (name, p), g in zip(params.items(), gs, strict=True)}
            value = functional_call(model, params, (query,))
            if value.item() < best.item():
                best = value
        (best / case.divisor).backward()
    return grads(model)


@wrong("maml", "biases are moved by their gradient's .data, so second order is lost in them")
def bias_gradients_as_data(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast)
            fast = [
                p - case.alpha * g if p.dim() > 1 else p - case.alpha * g.data for p, g in zip(fast, gs, strict=True)
            ]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the query pass is in float32 for speed")
def query_in_single(case):
    def single(tensors):
        return [t.float() if t.is_floating_point() else t for t in tensors]

    def of_task(loss, theta, supports, query):
        fast = inner_loop(loss, theta, supports, case.alpha)
        return loss(single(fast), single(query)).double()

    return [g.to(p.dtype) for g, p in zip(maml_of(case, of_task), theta_of(case), strict=True)]


@wrong("maml", "the number of steps is the constant 5, and the supports are gone through again if they are fewer")
def five_steps(case, num_steps=5):
    def of_task(loss, fast, supports, query):
        for step in range(num_steps if supports else 0):
            batch = supports[step % len(supports)]
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "inner gradients are scaled to length one, and they are detached", mistakes=2)
def unit_steps_of_first_order(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = torch.autograd.grad(loss(fast, batch), fast)
            norm = torch.sqrt(sum((g**2).sum() for g in gs)) + 1e-8
            fast = [p - case.alpha * g / norm for p, g in zip(fast, gs, strict=True)]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the outer loss is on supports and query together, and the loop ends a step early", mistakes=2)
def outer_loss_on_everything(case):
    def of_task(loss, fast, supports, query):
        for k in range(1, len(supports)):
            fast = sgd(fast, inner_grad(loss(fast, supports[k - 1]), fast), case.alpha)
        return loss(fast, merged(case, [*supports, query]))

    return maml_of(case, of_task)


@wrong("maml", "supports and query are swapped, and the inner steps have Nesterov's momentum", mistakes=2)
def swapped_with_nesterov(case, mu=0.9):
    def of_task(loss, fast, supports, query):
        buffer = [torch.zeros_like(p) for p in fast]
        for _ in supports:
            gs = inner_grad(loss(fast, query), fast)
            buffer = [mu * m + g for m, g in zip(buffer, gs, strict=True)]
            fast = [p - case.alpha * (g + mu * m) for p, g, m in zip(fast, gs, buffer, strict=True)]
        return sum(loss(fast, batch) for batch in supports) / len(supports) if supports else loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "MAML++: the first half of the steps is first-order, and step losses are weighted", mistakes=2)
def annealed_and_weighted(case):
    def of_task(loss, fast, supports, query):
        losses, weights = [], []
        for k, batch in enumerate(supports):
            gs = inner_grad(loss(fast, batch), fast, create_graph=2 * k >= len(supports))
            fast = sgd(fast, gs, case.alpha)
            losses.append(loss(fast, query))
            weights.append(0.7 if k == len(supports) - 1 else 0.3 / (len(supports) - 1))
        return sum(w * v for w, v in zip(weights, losses, strict=True)) if losses else loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "θ.grad is not emptied between tasks but added to the total, and create_graph is False", mistakes=2)
def running_sums_of_first_order(case):
    theta, loss, total = theta_of(case), make_loss(case), zeros(case)
    for supports, query in tasks_of(case):
        fast = theta
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast, create_graph=False), case.alpha)
        (loss(fast, query) / case.divisor).backward()
        for a, p in zip(total, theta, strict=True):
            a += p.grad
    return total


@wrong("maml", "the inner rate follows a cosine, and the inner optimiser has a weight decay of 0.005", mistakes=2)
def cosine_and_decay(case):
    def of_task(loss, fast, supports, query):
        for k, batch in enumerate(supports):
            lr = case.alpha * (1 + math.cos(math.pi * k / len(supports))) / 2
            gs = inner_grad(loss(fast, batch), fast)
            fast = [(1 - lr * 5e-3) * p - lr * g for p, g in zip(fast, gs, strict=True)]
        return loss(fast, query)

    return maml_of(case, of_task)


# ---------------------------------------------------------------- first-order MAML


@wrong("fomaml", "zero_grad is missing before the query's backward, so the last support gradient is in the answer")
def support_gradient_left_over(case):
    model, total = Model(case), zeros(case)
    for supports, query in tasks_of(case):
        net = copy.deepcopy(model)
        train(net, torch.optim.SGD(net.parameters(), lr=case.alpha), supports)
        net(query).backward()
        for a, g in zip(total, grads(net), strict=True):
            a += g / case.divisor
    return total


@wrong("fomaml", "the optimiser has the original's parameters: the copy never moves, nor are its gradients emptied")
def optimiser_of_the_original(case):
    model, total = Model(case), zeros(case)
    optimiser = torch.optim.SGD(model.parameters(), lr=case.alpha)
    for supports, query in tasks_of(case):
        net = copy.deepcopy(model)
        train(net, optimiser, supports)
        optimiser.zero_grad()
        net(query).backward()
        for a, g in zip(total, grads(net), strict=True):
            a += g / case.divisor
    return total


@wrong("fomaml", "the inner SGD has momentum and is made once, so its buffers outlive the tasks", mistakes=2)
def one_optimiser_with_momentum(case):
    net, total = Model(case), zeros(case)
    initial = copy.deepcopy(net.state_dict())
    optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha, momentum=0.9)
    for supports, query in tasks_of(case):
        net.load_state_dict(initial)
        train(net, optimiser, supports)
        optimiser.zero_grad()
        net(query).backward()
        for a, g in zip(total, grads(net), strict=True):
            a += g / case.divisor
    return total


@wrong("fomaml", "the copy's gradients are assigned to the model's .grad, not added: the last task remains")
def gradient_assigned(case):
    model = Model(case)
    for supports, query in tasks_of(case):
        net = copy.deepcopy(model)
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
        train(net, optimiser, supports)
        optimiser.zero_grad()
        (net(query) / case.divisor).backward()
        for p, q in zip(model.parameters(), net.parameters(), strict=True):
            p.grad = q.grad
    return grads(model)


@wrong("fomaml", "the graph is kept in the last step, which is therefore of second order")
def graph_kept_in_the_last_step(case):
    def of_task(loss, fast, supports, query):
        for k, batch in enumerate(supports):
            last = k == len(supports) - 1
            fast = sgd(fast, inner_grad(loss(fast, batch), fast, create_graph=last), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("fomaml", "the meta-optimiser steps after each task, and it has momentum 0.9", mistakes=2)
def meta_step_after_each_task(case, lr=0.1):
    model = Model(case)
    start = [p.detach().clone() for p in model.parameters()]
    meta = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for supports, query in tasks_of(case):
        net = copy.deepcopy(model)
        train(net, torch.optim.SGD(net.parameters(), lr=case.alpha), supports)
        gs = torch.autograd.grad(net(query), list(net.parameters()))
        for p, g in zip(model.parameters(), gs, strict=True):
            p.grad = g / case.divisor
        meta.step()
    return [(s - p.detach()) / lr for s, p in zip(start, model.parameters(), strict=True)]


# ---------------------------------------------------------------- ANIL


@wrong("anil", "the features of the supports are under no_grad: heads adapt as if they did not depend on the body")
def supports_under_no_grad(case):
    def adapt(loss, body, head, supports):
        frozen = [b.detach() for b in body]
        head = inner_loop(lambda h, batch: loss([*frozen, *h], batch), head, supports if head else [], case.alpha)
        return [*body, *head]

    return anil_of(case, adapt)


@wrong("anil", "requires_grad of the body is off for the inner loop and never on again: its gradient is zero")
def body_stays_frozen(case):
    theta, loss = theta_of(case), make_loss(case)
    body, head = theta[: len(theta) - case.head], theta[len(theta) - case.head :]
    for p in body:
        p.requires_grad_(False)
    losses = []
    for supports, query in tasks_of(case):
        fast = inner_loop(lambda h, batch: loss([*body, *h], batch), head, supports if head else [], case.alpha)
        losses.append(loss([*body, *fast], query))
    gs = outer(head, mean_or_sum(case, losses)) if head else []
    return [*(torch.zeros_like(b) for b in body), *gs]


@wrong("anil", "the head's inner gradients are taken of a .data copy of the head, so they are constants")
def first_order_head(case):
    model, cut = Model(case), len(case.theta) - case.head
    for supports, query in tasks_of(case):
        params = dict(model.named_parameters())
        names = list(params)[cut:]
        for batch in supports if names else []:
            head = {name: params[name].data.clone().requires_grad_() for name in names}
            gs = inner_grad(functional_call(model, params | head, (batch,)), list(head.values()))
            params = params | {name: params[name] - case.alpha * g.data for name, g in zip(names, gs, strict=True)}
        (functional_call(model, params, (query,)) / case.divisor).backward()
    return grads(model)


@wrong("anil", "clone() of the whole model adapts in the inner loop, body and head")
def whole_clone_adapts(case):
    return anil_of(case, lambda loss, body, head, S: inner_loop(loss, [*body, *head], S, case.alpha))


@wrong("anil", "of the head only its first array, the weight, adapts; the bias is passed on as it is")
def weight_of_the_head_alone(case):
    def adapt(loss, body, head, supports):
        weight, bias = list(head[:1]), list(head[1:])
        for batch in supports if weight else []:
            weight = sgd(weight, inner_grad(loss([*body, *weight, *bias], batch), weight), case.alpha)
        return [*body, *weight, *bias]

    return anil_of(case, adapt)


@wrong("anil", "body and head are mixed up: the body adapts and the head is shared, as in BOIL")
def body_adapts_head_shared(case):
    def adapt(loss, body, head, supports):
        for batch in supports if body else []:
            body = sgd(body, inner_grad(loss([*body, *head], batch), body), case.alpha)
        return [*body, *head]

    return anil_of(case, adapt)


@wrong("anil", "torch.optim trains the head, so the graph is cut, and the body's .grad keeps the supports'", mistakes=2)
def head_by_torch_optim(case):
    model, cut = Model(case), len(case.theta) - case.head
    for supports, query in tasks_of(case):
        net = copy.deepcopy(model)
        net.zero_grad()
        head = list(net.parameters())[cut:]
        optimiser = torch.optim.SGD(head, lr=case.alpha) if head else None
        if head:
            train(net, optimiser, supports)
            optimiser.zero_grad()
        net(query).backward()
        for p, g in zip(model.parameters(), grads(net), strict=True):
            p.grad = (0 if p.grad is None else p.grad) + g / case.divisor
    return grads(model)


@wrong("anil", "the body adapts too, at a tenth of the rate, and the last support batch is left out", mistakes=2)
def slow_body_without_the_last(case):
    def adapt(loss, body, head, supports):
        rates = [case.alpha / 10] * len(body) + [case.alpha] * len(head)
        fast = [*body, *head]
        for batch in supports[:-1]:
            gs = inner_grad(loss(fast, batch), fast)
            fast = [p - lr * g for p, lr, g in zip(fast, rates, gs, strict=True)]
        return fast

    return anil_of(case, adapt)


# ---------------------------------------------------------------- Reptile


def reptile_of(case, run):
    """run(net, supports) trains a copy; the displacements, combined."""
    model, total = Model(case), zeros(case)
    for supports, _ in tasks_of(case):
        net = copy.deepcopy(model)
        run(net, supports)
        for a, p, q in zip(total, model.parameters(), net.parameters(), strict=True):
            a += (p - q).detach() / unit(case, supports) / case.divisor
    return total


@wrong("reptile", "state_dict() is not copied, so the weights before are the weights after: all zeros")
def state_dict_not_copied(case):
    net, total = Model(case), zeros(case)
    for supports, _ in tasks_of(case):
        weights_before = net.state_dict()
        train(net, torch.optim.SGD(net.parameters(), lr=case.alpha), supports)
        weights_after = net.state_dict()
        for a, name in zip(total, weights_before, strict=True):
            a += (weights_before[name] - weights_after[name]) / unit(case, supports) / case.divisor
        net.load_state_dict(weights_before)
    return total


@wrong("reptile", "the inner optimiser is Adam with β₁ = 0, as in the authors' code, in place of SGD")
def adam_without_its_first_moment(case):
    def run(net, supports):
        train(net, torch.optim.Adam(net.parameters(), lr=case.alpha, betas=(0.0, 0.999)), supports)

    return reptile_of(case, run)


@wrong("reptile", "the weights are averaged over the steps, as in SWA, and the average is compared with θ")
def stochastic_weight_average(case):
    def run(net, supports):
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
        averaged = torch.optim.swa_utils.AveragedModel(net)
        for batch in supports:
            train(net, optimiser, [batch])
            averaged.update_parameters(net)
        net.load_state_dict(averaged.module.state_dict())

    return reptile_of(case, run)


@wrong("reptile", "only weights are moved to the average; biases, one-dimensional, are left out")
def weights_without_biases(case):
    found = reptile_of(case, lambda net, S: train(net, torch.optim.SGD(net.parameters(), lr=case.alpha), S))
    return [g if g.dim() > 1 else torch.zeros_like(g) for g in found]


@wrong("reptile", "the net is not set back to θ, so a task goes on where the one before it ended")
def never_set_back(case):
    net, total = Model(case), zeros(case)
    theta = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
    for supports, _ in tasks_of(case):
        train(net, optimiser, supports)
        for a, t, p in zip(total, theta, net.parameters(), strict=True):
            a += (t - p.detach()) / unit(case, supports) / case.divisor
    return total


@wrong("reptile", "zero_grad is missing in the inner loop, so gradients add up")
def no_zero_grad_inside(case):
    def run(net, supports):
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
        for batch in supports:
            net(batch).backward()
            optimiser.step()

    return reptile_of(case, run)


@wrong("reptile", "the meta step size 0.1 is in the answer, and all steps are on the first support batch", mistakes=2)
def meta_step_size_and_one_batch(case, epsilon=0.1):
    def run(net, supports):
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
        train(net, optimiser, supports[:1] * len(supports))

    return [epsilon * g for g in reptile_of(case, run)]


# ---------------------------------------------------------------- joint training


@wrong("joint", ".grad is added to a total after each task but not emptied, so early tasks count again and again")
def running_sums(case):
    model, total = Model(case), zeros(case)
    for _, query in tasks_of(case):
        (model(query) / case.divisor).backward()
        for a, p in zip(total, model.parameters(), strict=True):
            a += p.grad
    return total


@wrong("joint", "the model has been fine-tuned for a step on the task's first support batch")
def after_one_step(case):
    model, total = Model(case), zeros(case)
    for supports, query in tasks_of(case):
        net = copy.deepcopy(model)
        train(net, torch.optim.SGD(net.parameters(), lr=case.alpha), supports[:1])
        for a, g in zip(total, torch.autograd.grad(net(query), list(net.parameters())), strict=True):
            a += g / case.divisor
    return total


@wrong("joint", "the queries are pooled and cut in batches of eight, the last smaller one weighing as much as any")
def pooled_minibatches(case, size=8):
    queries = [Q for _, Q in tasks_of(case)]
    x, y = merged(case, queries)
    pieces = [(x, y)]
    if case.model["kind"] != "quadratic":
        pieces = list(zip(x.split(size), y.split(size), strict=True))
    theta, loss = theta_of(case), make_loss(case)
    return outer(theta, sum(loss(theta, b) for b in pieces) / len(pieces) * len(queries) / case.divisor)


@wrong("joint", "the gradient is read from a step of SGD that has weight decay")
def weight_decay_in_the_step(case):
    model = Model(case)
    start = [p.detach().clone() for p in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=1e-3)
    for _, query in tasks_of(case):
        (model(query) / case.divisor).backward()
    optimiser.step()
    return [s - p.detach() for s, p in zip(start, model.parameters(), strict=True)]


# ---------------------------------------------------------------- right ones


@right("maml")
def parameters_as_one_vector(case):
    loss, shapes = make_loss(case), [p.shape for p in theta_of(case)]
    vector = parameters_to_vector(theta_of(case)).detach().requires_grad_()

    def split(v):
        return [p.reshape(s) for p, s in zip(v.split([s.numel() for s in shapes]), shapes, strict=True)]

    for supports, query in tasks_of(case):
        fast = vector
        for batch in supports:
            (g,) = torch.autograd.grad(loss(split(fast), batch), fast, create_graph=True)
            fast = fast - case.alpha * g
        (loss(split(fast), query) / case.divisor).backward()
    return split(vector.grad)


class Adaptation(torch.autograd.Function):
    """φ_K of θ, with a backward that keeps nothing but the iterates."""

    @staticmethod
    def forward(ctx, loss, supports, alpha, *theta):
        ctx.loss, ctx.supports, ctx.alpha, ctx.phis = loss, supports, alpha, []
        phi = leaves(theta)
        for batch in supports:
            ctx.phis.append(phi)
            with torch.enable_grad():
                gs = torch.autograd.grad(loss(phi, batch), phi)
            phi = leaves(sgd(phi, gs, alpha))
        return tuple(p.detach() for p in phi)

    @staticmethod
    def backward(ctx, *v):
        for phi, batch in zip(reversed(ctx.phis), reversed(ctx.supports), strict=True):
            with torch.enable_grad():
                gs = torch.autograd.grad(ctx.loss(phi, batch), phi, create_graph=True)
                v = sgd(v, torch.autograd.grad(gs, phi, grad_outputs=v), ctx.alpha)
        return (None, None, None, *v)


@right("maml")
def adaptation_with_its_own_backward(case):
    return maml_of(case, lambda loss, t, S, Q: loss(list(Adaptation.apply(loss, S, case.alpha, *t)), Q))


@right("maml")
def a_row_of_fast_weights_for_each_task(case):
    """All tasks adapt at once: the gradient of the sum of their losses in a table of parameters."""
    loss, tasks, theta = make_loss(case), tasks_of(case), theta_of(case)
    fast = [p.expand(len(tasks), *p.shape) for p in theta]
    for k in range(max(len(S) for S, _ in tasks)):
        total = sum(loss([f[i] for f in fast], S[k]) for i, (S, _) in enumerate(tasks) if k < len(S))
        fast = sgd(fast, inner_grad(total, fast), case.alpha)
    return outer(theta, mean_or_sum(case, [loss([f[i] for f in fast], Q) for i, (_, Q) in enumerate(tasks)]))


@right("maml")
def vector_hessian_products(case):
    loss, total = make_loss(case), zeros(case)
    for supports, query in tasks_of(case):
        phis = [theta_of(case)]
        for batch in supports:
            phis.append(leaves(sgd(phis[-1], torch.autograd.grad(loss(phis[-1], batch), phis[-1]), case.alpha)))
        v = torch.autograd.grad(loss(phis[-1], query), phis[-1])
        for k in reversed(range(len(supports))):
            of_step = lambda *p, batch=supports[k]: loss(list(p), batch)  # noqa: E731
            _, products = torch.autograd.functional.vhp(of_step, tuple(phis[k]), tuple(v))
            v = sgd(v, products, case.alpha)
        total = [a + d / case.divisor for a, d in zip(total, v, strict=True)]
    return total


@right("fomaml")
def caught_by_hooks(case):
    """Gradients are added up by hooks on the fast parameters, while backward runs."""
    loss, total = make_loss(case), zeros(case)
    for supports, query in tasks_of(case):
        fast = theta_of(case)
        for batch in supports:
            fast = leaves(sgd(fast, torch.autograd.grad(loss(fast, batch), fast), case.alpha))
        for p, a in zip(fast, total, strict=True):
            p.register_hook(lambda g, a=a: a.add_(g))
        (loss(fast, query) / case.divisor).backward()
    return total


@right("anil")
def two_groups_of_higher(case):
    """MAML by higher, the body in a group of rate zero."""
    model, cut = Model(case), len(case.theta) - case.head
    params = list(model.parameters())
    groups = [{"params": params[:cut], "lr": 0.0}, {"params": params[cut:], "lr": case.alpha}]
    optimiser = torch.optim.SGD([g for g in groups if g["params"]], lr=case.alpha)
    for supports, query in tasks_of(case):
        with higher.innerloop_ctx(model, optimiser, copy_initial_weights=False) as (fmodel, diffopt):
            for batch in supports:
                diffopt.step(fmodel(batch))
            (fmodel(query) / case.divisor).backward()
    return grads(model)


@right("reptile")
def displacements_by_foreach(case):
    model = Model(case)
    theta, total = [p.detach() for p in model.parameters()], zeros(case)
    for supports, _ in tasks_of(case):
        phi = [p.clone() for p in theta]
        for batch in supports:
            at = leaves(phi)
            torch._foreach_add_(phi, torch.autograd.grad(model.loss(at, batch), at), alpha=-case.alpha)
        torch._foreach_add_(total, torch._foreach_sub(theta, phi), alpha=1 / (unit(case, supports) * case.divisor))
    return total


@right("joint")
def jacobian_of_the_losses(case):
    loss, queries = make_loss(case), [batch_of(Q) for _, Q in case.tasks]
    rows = jacrev(lambda theta: torch.stack([loss(theta, Q) for Q in queries]))([p.detach() for p in theta_of(case)])
    return [r.sum(0) / case.divisor for r in rows]
