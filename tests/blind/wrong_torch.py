"""Wrong implementations in PyTorch."""

import copy
import itertools

import higher
import torch
import torch.nn.functional as F
import torchopt
from torch.func import functional_call, grad, vmap

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
    merged,
    mlp,
    outer,
    sgd,
    tasks_of,
    theta_of,
    train,
)
from tests.blind.registry import wrong

# --- The graph ---


@wrong("maml", "no create_graph in the inner gradient")
def no_create_graph(case):
    theta, loss, losses = theta_of(case), make_loss(case), []
    for supports, query in tasks_of(case):
        fast = theta
        for batch in supports:
            fast = sgd(fast, torch.autograd.grad(loss(fast, batch), fast), case.alpha)
        losses.append(loss(fast, query))
    return outer(theta, mean_or_sum(case, losses))


@wrong("maml", "p - lr * g.data")
def data_of_the_gradient(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast)
            fast = [p - case.alpha * g.data for p, g in zip(fast, gs, strict=True)]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the fast weights are detached and made leaves again after each step; their gradient is returned")
def leaves_again(case):
    total = None
    model = Model(case)
    for supports, query in tasks_of(case):
        fast = [p.detach().clone().requires_grad_() for p in model.parameters()]
        for batch in supports:
            gs = inner_grad(model.loss(fast, batch), fast)
            fast = [p.detach().requires_grad_() for p in sgd(fast, gs, case.alpha)]
        model.loss(fast, query).backward()
        gs = [p.grad for p in fast]
        total = gs if total is None else [a + b for a, b in zip(total, gs, strict=True)]
    return [g / case.divisor for g in total]


@wrong("maml", "the fast weights are detached before the last step, so theta gets nothing but zeros")
def detached_from_theta(case):
    def of_task(loss, theta, supports, query):
        fast = [p.detach().requires_grad_() for p in theta]
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "create_graph only in the last step")
def graph_in_the_last_step(case):
    def of_task(loss, fast, supports, query):
        for k, batch in enumerate(supports):
            fast = sgd(fast, inner_grad(loss(fast, batch), fast, k == len(supports) - 1), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "create_graph only in every second step")
def graph_in_every_second_step(case):
    def of_task(loss, fast, supports, query):
        for k, batch in enumerate(supports):
            fast = sgd(fast, inner_grad(loss(fast, batch), fast, k % 2 == 0), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "first-order for the biases: their inner gradients are detached")
def biases_first_order(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast)
            fast = [p - case.alpha * (g.detach() if p.dim() == 1 else g) for p, g in zip(fast, gs, strict=True)]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "first-order for the first layer: its inner gradients are detached")
def first_layer_first_order(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast)
            gs = [g.detach() if i < 2 else g for i, g in enumerate(gs)]
            fast = sgd(fast, gs, case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong(
    "maml",
    "the fast weights are detached in the support's forward pass only, so the Hessian is lost, with create_graph on",
)
def detached_forward(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            leaves = [p.detach().requires_grad_() for p in fast]
            fast = sgd(fast, inner_grad(loss(leaves, batch), leaves), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "truncated backpropagation: only the last two steps are differentiated through")
def truncated(case):
    def of_task(loss, fast, supports, query):
        for k, batch in enumerate(supports):
            gs = inner_grad(loss(fast, batch), fast)
            gs = [g.detach() for g in gs] if k < len(supports) - 2 else gs
            fast = sgd(fast, gs, case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "under torch.no_grad the weights are changed in place and restored: the gradient is first-order")
def no_grad_update(case):
    model = Model(case)
    before = copy.deepcopy(model.state_dict())
    total = [torch.zeros_like(p) for p in model.parameters()]
    for supports, query in tasks_of(case):
        model.load_state_dict(before)
        for batch in supports:
            gs = torch.autograd.grad(model(batch), list(model.parameters()), create_graph=True)
            with torch.no_grad():
                for p, g in zip(model.parameters(), gs, strict=True):
                    p -= case.alpha * g
        model.zero_grad()
        model(query).backward()
        total = [a + p.grad for a, p in zip(total, model.parameters(), strict=True)]
    return [g / case.divisor for g in total]


@wrong("maml", "a deepcopy of the model is trained with SGD, and its gradients are copied back: first-order")
def deepcopy_and_copy_back(case):
    model = Model(case)
    for supports, query in tasks_of(case):
        clone = copy.deepcopy(model)
        optimiser = torch.optim.SGD(clone.parameters(), lr=case.alpha)
        train(clone, optimiser, supports)
        optimiser.zero_grad()
        clone(query).backward()
        for p, q in zip(model.parameters(), clone.parameters(), strict=True):
            p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad
    return [g / case.divisor for g in grads(model)]


@wrong("maml", "higher without copy_initial_weights=False: theta gets no gradient")
def higher_copies(case):
    model = Model(case)
    optimiser = torch.optim.SGD(model.parameters(), lr=case.alpha)
    for supports, query in tasks_of(case):
        with higher.innerloop_ctx(model, optimiser) as (net, steps):
            for batch in supports:
                steps.step(net(batch))
            (net(query) + 0 * sum(p.sum() for p in model.parameters())).backward()
    return grads(model)


@wrong("maml", "higher with track_higher_grads=False: its fast weights' gradients are returned")
def higher_untracked(case):
    model = Model(case)
    optimiser = torch.optim.SGD(model.parameters(), lr=case.alpha)
    total = [0] * len(case.theta)
    for supports, query in tasks_of(case):
        with higher.innerloop_ctx(model, optimiser, track_higher_grads=False) as (net, steps):
            for batch in supports:
                steps.step(net(batch))
            gs = torch.autograd.grad(net(query), list(net.parameters()))
            total = [a + g for a, g in zip(total, gs, strict=True)]
    return [g / case.divisor for g in total]


@wrong("maml", "higher's optimiser has a momentum of 0.9")
def higher_momentum(case):
    model = Model(case)
    optimiser = torch.optim.SGD(model.parameters(), lr=case.alpha or 1e-30, momentum=0.9)
    for supports, query in tasks_of(case):
        with higher.innerloop_ctx(model, optimiser, copy_initial_weights=False) as (net, steps):
            for batch in supports:
                steps.step(net(batch))
            net(query).backward()
    return [g / case.divisor for g in grads(model)]


@wrong("maml", "torchopt.MetaAdam inside, as its example has it")
def torchopt_adam(case):
    model = Model(case)
    inner = torchopt.MetaAdam(model, lr=case.alpha)
    theta, losses = list(model.parameters()), []
    start, state = torchopt.extract_state_dict(model, by="reference"), torchopt.extract_state_dict(inner)
    for supports, query in tasks_of(case):
        for batch in supports:
            inner.step(model(batch))
        losses.append(model(query))
        torchopt.recover_state_dict(model, start)
        torchopt.recover_state_dict(inner, state)
    return outer(theta, mean_or_sum(case, losses))


@wrong("maml", "torchopt: the network is not recovered between the tasks")
def torchopt_not_recovered(case):
    model = Model(case)
    inner = torchopt.MetaSGD(model, lr=case.alpha)
    theta, losses = list(model.parameters()), []
    for supports, query in tasks_of(case):
        for batch in supports:
            inner.step(model(batch))
        losses.append(model(query))
    return outer(theta, mean_or_sum(case, losses))


@wrong("maml", "torchopt.stop_gradient(model) after the inner loop: the gradient with respect to phi is returned")
def torchopt_stop_gradient(case):
    model, total = Model(case), [0] * len(case.theta)
    start = torchopt.extract_state_dict(model, by="copy")
    inner = torchopt.MetaSGD(model, lr=case.alpha)
    for supports, query in tasks_of(case):
        for batch in supports:
            inner.step(model(batch))
        torchopt.stop_gradient(model)
        gs = torch.autograd.grad(model(query), list(model.parameters()))
        total = [a + g for a, g in zip(total, gs, strict=True)]
        torchopt.recover_state_dict(model, start)
    return [g / case.divisor for g in total]


# --- zero_grad and what is left in .grad ---


@wrong(
    "maml", "the inner backward(create_graph=True) leaves gradients in theta.grad, and the outer backward adds to them"
)
def inner_gradients_left(case):
    theta, loss = theta_of(case), make_loss(case)
    for supports, query in tasks_of(case):
        fast = theta
        for batch in supports:
            value = loss(fast, batch)
            if fast is theta:
                value.backward(create_graph=True, inputs=theta)
                fast = [p - case.alpha * p.grad.clone() for p in theta]
            else:
                fast = sgd(fast, inner_grad(value, fast), case.alpha)
        for p in theta:
            p.grad = None if p.grad is None else p.grad.detach()
        loss(fast, query).backward()
    return [p.grad / case.divisor for p in theta]


@wrong("fomaml", "no zero_grad in the inner loop: the inner gradients pile up from step to step")
def no_zero_grad_inside(case):
    model = Model(case)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for supports, query in tasks_of(case):
        clone = copy.deepcopy(model)
        optimiser = torch.optim.SGD(clone.parameters(), lr=case.alpha)
        for batch in supports:
            clone(batch).backward()
            optimiser.step()
        optimiser.zero_grad()
        clone(query).backward()
        total = [a + p.grad for a, p in zip(total, clone.parameters(), strict=True)]
    return [g / case.divisor for g in total]


@wrong("fomaml", "no zero_grad before the query's backward: the last support gradient is added")
def no_zero_grad_before_the_query(case):
    model = Model(case)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for supports, query in tasks_of(case):
        clone = copy.deepcopy(model)
        optimiser = torch.optim.SGD(clone.parameters(), lr=case.alpha)
        train(clone, optimiser, supports)
        clone(query).backward()
        total = [a + p.grad for a, p in zip(total, clone.parameters(), strict=True)]
    return [g / case.divisor for g in total]


@wrong("fomaml", "gradients of all tasks pile up in one network's .grad and are added to the total after each task")
def no_zero_grad_between_tasks(case):
    model = Model(case)
    before = copy.deepcopy(model.state_dict())
    total = [torch.zeros_like(p) for p in model.parameters()]
    for supports, query in tasks_of(case):
        for batch in supports:
            gs = torch.autograd.grad(model(batch), list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gs, strict=True):
                    p.sub_(case.alpha * g)
        model(query).backward()
        for a, p in zip(total, model.parameters(), strict=True):
            a += p.grad
        model.load_state_dict(before)
    return [g / case.divisor for g in total]


@wrong(
    "maml",
    "retain_graph and a cumulative loss: total.backward() after each task counts the early tasks again and again",
)
def cumulative_loss(case):
    theta, loss = theta_of(case), make_loss(case)
    total = 0
    for supports, query in tasks_of(case):
        fast = theta
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        total = total + loss(fast, query)
        total.backward(retain_graph=True)
    return [p.grad / case.divisor for p in theta]


@wrong("maml", "zero_grad inside the loop over the tasks: only the last task's gradient is left")
def zero_grad_in_the_loop(case):
    model = Model(case)
    optimiser = torch.optim.Adam(model.parameters())
    for supports, query in tasks_of(case):
        fast = list(model.parameters())
        for batch in supports:
            fast = sgd(fast, inner_grad(model.loss(fast, batch), fast), case.alpha)
        optimiser.zero_grad()
        model.loss(fast, query).backward()
    return grads(model)


@wrong("maml", "the outer optimiser steps after each task, so later tasks see another theta")
def outer_step_in_the_loop(case):
    model = Model(case)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for supports, query in tasks_of(case):
        fast = list(model.parameters())
        for batch in supports:
            fast = sgd(fast, inner_grad(model.loss(fast, batch), fast), case.alpha)
        optimiser.zero_grad()
        model.loss(fast, query).backward()
        total = [a + p.grad for a, p in zip(total, model.parameters(), strict=True)]
        optimiser.step()
    return [g / case.divisor for g in total]


# --- theta is not put back ---


@wrong("fomaml", "state_dict() is kept without a copy, so load_state_dict restores nothing")
def state_dict_without_copy(case):
    model = Model(case)
    initial = model.state_dict()
    total = [torch.zeros_like(p) for p in model.parameters()]
    for supports, query in tasks_of(case):
        model.load_state_dict(initial)
        optimiser = torch.optim.SGD(model.parameters(), lr=case.alpha)
        train(model, optimiser, supports)
        optimiser.zero_grad()
        model(query).backward()
        total = [a + p.grad for a, p in zip(total, model.parameters(), strict=True)]
    return [g / case.divisor for g in total]


@wrong("fomaml", "SGD with momentum 0.5 inside, and one optimiser for all tasks, so its buffers outlive the task", 2)
def momentum_outlives_the_task(case):
    model = Model(case)
    initial = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.SGD(model.parameters(), lr=case.alpha, momentum=0.5)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for supports, query in tasks_of(case):
        model.load_state_dict(initial)
        train(model, optimiser, supports)
        gs = torch.autograd.grad(model(query), list(model.parameters()))
        total = [a + g for a, g in zip(total, gs, strict=True)]
    return [g / case.divisor for g in total]


# --- The inner gradient is another one ---


@wrong("maml", "the inner gradient is taken in theta, not in the fast weights, so it is a total derivative")
def total_derivative(case):
    def of_task(loss, theta, supports, query):
        fast = theta
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), theta), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the support loss is always that of the network itself: every gradient is at theta")
def gradients_at_theta(case):
    model, losses = Model(case), []
    for supports, query in tasks_of(case):
        fast = dict(model.named_parameters())
        for batch in supports:
            gs = inner_grad(model(batch), list(model.parameters()))
            fast = {name: p - case.alpha * g for (name, p), g in zip(fast.items(), gs, strict=True)}
        losses.append(functional_call(model, fast, (query,)))
    return outer(list(model.parameters()), mean_or_sum(case, losses))


@wrong("maml", "fast = theta - lr * g: each step starts from theta again")
def starts_again(case):
    def of_task(loss, theta, supports, query):
        fast = theta
        for batch in supports:
            fast = sgd(theta, inner_grad(loss(fast, batch), fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the query loss is computed with the network's own weights, not the adapted ones")
def query_at_theta(case):
    model, losses = Model(case), []
    for supports, query in tasks_of(case):
        fast = list(model.parameters())
        for batch in supports:
            fast = sgd(fast, inner_grad(model.loss(fast, batch), fast), case.alpha)
        losses.append(model(query))
    return outer(list(model.parameters()), mean_or_sum(case, losses))


@wrong("maml", "the query loss before adaptation is added")
def query_at_theta_added(case):
    def of_task(loss, theta, supports, query):
        fast = theta
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        return loss(fast, query) + loss(theta, query)

    return maml_of(case, of_task)


@wrong("maml", "gradient ascent in the inner loop: torch.add with alpha=lr")
def ascent_inside(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast)
            fast = [torch.add(p, g, alpha=case.alpha) for p, g in zip(fast, gs, strict=True)]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "(-loss).backward(): the gradient of the negative objective")
def negative_objective(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        return -loss(fast, query)

    return maml_of(case, of_task)


# --- Inner optimisers ---


def with_update(case, make):
    """MAML whose step number k is update(k, p, g, state)."""

    def of_task(loss, fast, supports, query):
        update, state = make, [{} for _ in fast]
        for k, batch in enumerate(supports):
            gs = inner_grad(loss(fast, batch), fast)
            fast = [update(k, p, g, s) for p, g, s in zip(fast, gs, state, strict=True)]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "Nesterov momentum of 0.9 in the inner loop")
def nesterov(case):
    def update(k, p, g, state):
        state["v"] = 0.9 * state["v"] + g if k else g
        return p - case.alpha * (g + 0.9 * state["v"])

    return with_update(case, update)


@wrong("maml", "momentum of 0.9 with dampening 0.1 from the first step on")
def dampened_momentum(case):
    def update(k, p, g, state):
        state["v"] = 0.9 * state["v"] + 0.1 * g if k else 0.1 * g
        return p - case.alpha * state["v"]

    return with_update(case, update)


@wrong("maml", "RMSprop in the inner loop")
def rmsprop(case):
    def update(k, p, g, state):
        state["s"] = 0.99 * state.get("s", 0) + 0.01 * g**2
        return p - case.alpha * g / (state["s"] + 1e-10).sqrt()

    return with_update(case, update)


@wrong("maml", "Adagrad in the inner loop")
def adagrad(case):
    def update(k, p, g, state):
        state["s"] = state.get("s", 0) + g**2
        return p - case.alpha * g / (state["s"] + 1e-10).sqrt()

    return with_update(case, update)


@wrong("maml", "sign descent in the inner loop")
def sign_descent(case):
    return with_update(case, lambda k, p, g, state: p - case.alpha * g.sign())


@wrong("maml", "the inner rate decays by 0.9 at each step")
def exponential_schedule(case):
    return with_update(case, lambda k, p, g, state: p - case.alpha * 0.9**k * g)


@wrong("maml", "the inner rate is alpha / (k + 1) at step k")
def harmonic_schedule(case):
    return with_update(case, lambda k, p, g, state: p - case.alpha / (k + 1) * g)


@wrong("maml", "the first step has ten times the rate")
def large_first_step(case):
    return with_update(case, lambda k, p, g, state: p - case.alpha * (1 if k else 10) * g)


@wrong("maml", "the inner rate is 0.01, whatever is asked for")
def hard_coded_rate(case):
    return with_update(case, lambda k, p, g, state: p - 0.01 * g)


@wrong("maml", "biases have twice the rate, as in Caffe")
def fast_biases(case):
    return with_update(case, lambda k, p, g, state: p - case.alpha * (2 if p.dim() == 1 else 1) * g)


@wrong("maml", "the inner rate is divided by the number of tasks")
def rate_over_tasks(case):
    return with_update(case, lambda k, p, g, state: p - case.alpha / len(case.tasks) * g)


@wrong("maml", "gradients are clamped to ±0.1 in the inner loop")
def clamped_inside(case):
    return with_update(case, lambda k, p, g, state: p - case.alpha * g.clamp(-0.1, 0.1))


@wrong("maml", "AdamW's decoupled decay in the inner loop: p * (1 - 0.1 lr) - lr * g")
def decoupled_decay(case):
    return with_update(case, lambda k, p, g, state: p * (1 - 0.1 * case.alpha) - case.alpha * g)


@wrong("maml", "each array's inner gradient is divided by its own norm")
def normalised_per_array(case):
    return with_update(case, lambda k, p, g, state: p - case.alpha * g / (g.norm() + 1e-8))


@wrong("maml", "each layer has another rate: alpha / (1 + layer)")
def rate_per_layer(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast)
            fast = [p - case.alpha / (1 + i // 2) * g for i, (p, g) in enumerate(zip(fast, gs, strict=True))]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "a proximal term (p - theta) with weight 0.5 in the inner loss")
def proximal_inside(case):
    def of_task(loss, theta, supports, query):
        fast = theta
        for batch in supports:
            value = loss(fast, batch) + 0.25 * sum(((p - t) ** 2).sum() for p, t in zip(fast, theta, strict=True))
            fast = sgd(fast, inner_grad(value, fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


# --- After the outer backward ---


@wrong("maml", "clip_grad_value_(0.1) before the gradient is read")
def clip_value_outside(case):
    model = Model(case)
    for p, g in zip(model.parameters(), maml_of(case, plain(case)), strict=True):
        p.grad = g
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
    return grads(model)


def plain(case):
    return lambda loss, theta, supports, query: loss(inner_loop(loss, theta, supports, case.alpha), query)


@wrong("maml", "clip_grad_norm_(1.0) before the gradient is read")
def clip_norm_outside(case):
    model = Model(case)
    for p, g in zip(model.parameters(), maml_of(case, plain(case)), strict=True):
        p.grad = g
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return grads(model)


@wrong("maml", "sign of the meta-gradient")
def sign_outside(case):
    return [g.sign() for g in maml_of(case, plain(case))]


@wrong("maml", "the sum over the tasks is divided by their number and by K", tasks="mean")
def divided_by_steps_too(case):
    return [g / len(case.tasks) / max(1, len(case.tasks[0][0])) for g in maml_of(case, sum_plain(case))]


def sum_plain(case):
    factor = len(case.tasks) if case.conventions["tasks"] == "mean" else 1
    return lambda *arguments: factor * plain(case)(*arguments)


@wrong("maml", "the outer gradient has weight decay of 0.0005 in it")
def decay_outside(case):
    theta = theta_of(case)
    return [g + 5e-4 * p for g, p in zip(maml_of(case, plain(case)), theta, strict=True)]


@wrong("maml", "an L1 penalty of 0.01 in the outer loss")
def l1_outside(case):
    def of_task(loss, theta, supports, query):
        return plain(case)(loss, theta, supports, query) + 0.01 * sum(p.abs().sum() for p in theta)

    return maml_of(case, of_task)


@wrong("maml", "phi is returned in place of the gradient")
def returns_phi(case):
    loss, total = make_loss(case), None
    for supports, _ in tasks_of(case):
        fast = theta_of(case)
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        total = fast if total is None else [a + b for a, b in zip(total, fast, strict=True)]
    return [p.detach() / case.divisor for p in total]


@wrong(
    "maml", "a hook clamps the second-order contributions: each gradient that flows to a fast weight is clamped to ±0.2"
)
def hooks_clamp(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
            for p in fast:
                p.register_hook(lambda g: g.clamp(-0.2, 0.2))
        return loss(fast, query)

    return maml_of(case, of_task)


# --- Losses, networks, data ---


def with_losses(case, inner, query_loss=None):
    def of_task(_, fast, supports, query):
        for batch in supports:
            fast = sgd(fast, inner_grad(inner(fast, batch), fast), case.alpha)
        return (query_loss or inner)(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "reduction='sum' in the inner loss only")
def sum_inside(case):
    return with_losses(case, make_loss(case, reduction="sum"), make_loss(case))


@wrong("maml", "reduction='sum' in the query loss only")
def sum_outside(case):
    return with_losses(case, make_loss(case), make_loss(case, reduction="sum"))


@wrong("maml", "the inner loss is divided by the batch size a second time")
def divided_twice(case):
    loss = make_loss(case)
    return with_losses(case, lambda t, b: loss(t, b) / len(b[1]) if case.model["kind"] == "mlp" else loss(t, b), loss)


@wrong("maml", "half the squared error, inside and outside")
def half_squared_error(case):
    loss = make_loss(case)
    half = 0.5 if case.loss["kind"] == "squared_error" else 1
    return with_losses(case, lambda t, b: half * loss(t, b))


@wrong("maml", "the Huber loss (smooth_l1_loss) in place of the squared error, inside")
def l1_loss_inside(case):
    def absolute(case, out, y, reduction):
        if case.loss["kind"] == "cross_entropy":
            return criterion(case, out, y)
        return F.smooth_l1_loss(out, y, reduction=case.conventions["examples"])

    return with_losses(case, make_loss(case, criterion=absolute), make_loss(case))


@wrong("maml", "label smoothing of 0.1 inside and outside")
def label_smoothing(case):
    def smooth(case, out, y, reduction):
        if case.loss["kind"] == "squared_error":
            return criterion(case, out, y)
        return F.cross_entropy(out, y, label_smoothing=0.1, reduction=case.conventions["examples"])

    return with_losses(case, make_loss(case, criterion=smooth))


@wrong("maml", "log_softmax over the examples, dim=0")
def softmax_over_examples(case):
    def over_examples(case, out, y, reduction):
        if case.loss["kind"] == "squared_error":
            return criterion(case, out, y)
        return F.nll_loss(F.log_softmax(out, dim=0), y, reduction=case.conventions["examples"])

    return with_losses(case, make_loss(case, criterion=over_examples))


@wrong("maml", "the squared error against one-hot labels where cross-entropy is asked for")
def squared_error_on_labels(case):
    def squared(case, out, y, reduction):
        if case.loss["kind"] == "squared_error":
            return criterion(case, out, y)
        return F.mse_loss(out, F.one_hot(y, out.shape[1]).to(out.dtype))

    return with_losses(case, make_loss(case, criterion=squared))


@wrong("maml", "ReLU in place of tanh")
def relu(case):
    return with_losses(case, make_loss(case, net=lambda theta, x: mlp(theta, x, torch.relu)))


@wrong("maml", "tanh on the output as well")
def tanh_on_the_output(case):
    return with_losses(case, make_loss(case, net=lambda theta, x: torch.tanh(mlp(theta, x))))


@wrong("maml", "F.dropout(0.5) on the hidden layer, never switched off")
def dropout(case):
    return with_losses(case, make_loss(case, net=lambda t, x: mlp(t, x, lambda z: F.dropout(torch.tanh(z), 0.5))))


_mean = {}


@wrong("maml", "inputs are centred by a running mean that is kept between the calls")
def running_mean(case):
    def net(theta, x):
        key = x.shape[1]
        _mean[key] = 0.9 * _mean.get(key, 0) + 0.1 * x.mean(0)
        return mlp(theta, x - _mean[key])

    return with_losses(case, make_loss(case, net=net))


@wrong("maml", "batch normalisation of the hidden layer by the batch's own statistics")
def batch_norm(case):
    def act(z):
        return torch.tanh((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt())

    return with_losses(case, make_loss(case, net=lambda t, x: mlp(t, x, act)))


@wrong("maml", "x is shuffled in a support batch and y is not")
def x_shuffled(case):
    loss = make_loss(case)

    def mixed(theta, batch):
        return loss(theta, (batch[0].flip(0), batch[1]) if case.model["kind"] == "mlp" else batch)

    return with_losses(case, mixed, loss)


@wrong("maml", "only the first example of each support batch is used")
def first_example(case):
    loss = make_loss(case)

    def one(theta, batch):
        return loss(theta, (batch[0][:1], batch[1][:1]) if case.model["kind"] == "mlp" else batch)

    return with_losses(case, one, loss)


@wrong("maml", "the last example of every support batch is dropped")
def drop_last(case):
    loss = make_loss(case)

    def shorter(theta, batch):
        return loss(theta, (batch[0][:-1], batch[1][:-1]) if case.model["kind"] == "mlp" else batch)

    return with_losses(case, shorter, loss)


@wrong("maml", "support and query are swapped")
def swapped(case):
    def of_task(loss, fast, supports, query):
        for _ in supports:
            fast = sgd(fast, inner_grad(loss(fast, query), fast), case.alpha)
        return loss(fast, supports[-1] if supports else query)

    return maml_of(case, of_task)


@wrong("maml", "it adapts on the query itself")
def adapts_on_the_query(case):
    def of_task(loss, fast, supports, query):
        for _ in supports:
            fast = sgd(fast, inner_grad(loss(fast, query), fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the outer loss is that of the last support batch")
def support_is_the_query(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        return loss(fast, supports[-1] if supports else query)

    return maml_of(case, of_task)


@wrong("maml", "the step's batches are drawn cyclically from the second on")
def batches_shifted(case):
    def of_task(loss, fast, supports, query):
        for k in range(len(supports)):
            fast = sgd(fast, inner_grad(loss(fast, supports[(k + 1) % len(supports)]), fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "a further step on the query before the query loss")
def step_on_the_query(case):
    def of_task(loss, fast, supports, query):
        for batch in [*supports, query]:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the outer loss is over support and query together")
def outer_on_all(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        return loss(fast, merged(case, [*supports[-1:], query]))

    return maml_of(case, of_task)


@wrong("maml", "MAML++'s multi-step loss: the query losses after all steps are averaged")
def multi_step_loss(case):
    def of_task(loss, fast, supports, query):
        values = []
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
            values.append(loss(fast, query))
        return sum(values) / len(values) if values else loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "lambdas in the loop close over the last task: all tasks use its supports")
def late_binding(case):
    theta, loss = theta_of(case), make_loss(case)
    adapters, queries = [], []
    for supports, query in tasks_of(case):
        adapters.append(lambda fast: inner_loop(loss, fast, supports, case.alpha))
        queries.append(query)
    losses = [loss(adapt(theta), query) for adapt, query in zip(adapters, queries, strict=True)]
    return outer(theta, mean_or_sum(case, losses))


@wrong("maml", "tasks[1:]: the first task is left out, but for a single one")
def first_task_left_out(case):
    theta, loss = theta_of(case), make_loss(case)
    tasks = tasks_of(case)
    losses = [loss(inner_loop(loss, theta, S, case.alpha), Q) for S, Q in tasks[1:] or tasks]
    return outer(theta, mean_or_sum(case, losses))


@wrong("maml", "the tasks' losses are weighted by their softmax")
def hard_tasks_count_more(case):
    theta, loss = theta_of(case), make_loss(case)
    losses = torch.stack([loss(inner_loop(loss, theta, S, case.alpha), Q) for S, Q in tasks_of(case)])
    weights = losses.detach().softmax(0) * (1 if case.conventions["tasks"] == "mean" else len(losses))
    return outer(theta, (weights * losses).sum())


# --- Precision ---


@wrong("maml", ".float() on the model and the data")
def float_inside(case):
    theta, loss = theta_of(case), make_loss(case)
    losses = []
    for supports, query in tasks_of(case):
        single = [tuple(a.float() if a.is_floating_point() else a for a in b) for b in [*supports, query]]
        fast = inner_loop(loss, [p.float() for p in theta], single[:-1], case.alpha)
        losses.append(loss(fast, single[-1]))
    return outer(theta, mean_or_sum(case, losses))


@wrong("maml", "bfloat16 in the forward pass, as under autocast")
def bfloat(case):
    def net(theta, x):
        return mlp([p.bfloat16() for p in theta], x.bfloat16()).to(x.dtype)

    return with_losses(case, make_loss(case, net=net))


@wrong("maml", "the adapted parameters are stored as float16 between the steps, straight through")
def half_storage(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
            fast = [p.half().to(p.dtype) for p in fast]
        return loss(fast, query)

    return maml_of(case, of_task)


# --- Layers that are left out, layouts ---


@wrong("maml", "the first layer's weights and biases do not adapt")
def first_layer_frozen(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast)
            keep = 2 if len(fast) > 2 else 0
            fast = [*fast[:keep], *sgd(fast[keep:], gs[keep:], case.alpha)]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "requires_grad is off for the last layer: it does not adapt, and its meta-gradient is zero")
def last_layer_without_gradient(case):
    model = Model(case)
    if len(case.theta) > 2:
        for p in list(model.parameters())[-2:]:
            p.requires_grad_(False)
    live = [p for p in model.parameters() if p.requires_grad]
    losses = []
    for supports, query in tasks_of(case):
        fast = list(model.parameters())
        for batch in supports:
            gs = iter(inner_grad(model.loss(fast, batch), fast[: len(live)]))
            fast = [p - case.alpha * next(gs) if i < len(live) else p for i, p in enumerate(fast)]
        losses.append(model.loss(fast, query))
    mean_or_sum(case, losses).backward()
    return grads(model)


@wrong("maml", "only the last layer adapts: it is ANIL")
def only_the_head(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            head = fast[-2:]
            fast = [*fast[:-2], *sgd(head, inner_grad(loss(fast, batch), head), case.alpha)]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "nn.Linear holds the transposed weights, and its gradients are reshaped instead of transposed")
def reshaped_for_transposed(case):
    weights = [torch.tensor(t.T.copy() if t.ndim == 2 else t, requires_grad=True) for t in case.theta]
    loss, losses = make_loss(case), []
    for supports, query in tasks_of(case):
        fast = [w.T if w.dim() == 2 else w for w in weights]
        losses.append(loss(inner_loop(loss, fast, supports, case.alpha), query))
    return [g.reshape(t.shape) for g, t in zip(outer(weights, mean_or_sum(case, losses)), case.theta, strict=True)]


# --- Other algorithms ---


@wrong("anil", "the features are detached: the body gets no gradient")
def features_detached(case):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        body, head = [p.detach() for p in theta[:cut]], theta[cut:]
        for batch in supports if head else []:
            head = sgd(head, inner_grad(loss([*body, *head], batch), head), case.alpha)
        return loss([*body, *head], query)

    return maml_of(case, of_task)


@wrong("anil", "the body is detached in the support pass only, so the head's way back to the body is cut")
def support_features_detached(case):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        body, head = theta[:cut], theta[cut:]
        for batch in supports if head else []:
            value = loss([*(p.detach() for p in body), *head], batch)
            head = sgd(head, inner_grad(value, head), case.alpha)
        return loss([*body, *head], query)

    return maml_of(case, of_task)


@wrong("anil", "no create_graph in the head's steps")
def anil_first_order(case):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        head = theta[cut:]
        for batch in supports if head else []:
            head = sgd(head, inner_grad(loss([*theta[:cut], *head], batch), head, False), case.alpha)
        return loss([*theta[:cut], *head], query)

    return maml_of(case, of_task)


@wrong("anil", "the head adapts at ten times the rate")
def anil_fast_head(case):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        head = theta[cut:]
        for batch in supports if head else []:
            head = sgd(head, inner_grad(loss([*theta[:cut], *head], batch), head), 10 * case.alpha)
        return loss([*theta[:cut], *head], query)

    return maml_of(case, of_task)


@wrong("anil", "the body takes the steps too; the query sees the moved body, the supports the body of theta")
def anil_body_steps_too(case):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        body, head, moved = theta[:cut], theta[cut:], theta[:cut]
        for batch in supports:
            gs = inner_grad(loss([*body, *head], batch), [*body, *head])
            moved, head = sgd(moved, gs[:cut], case.alpha), sgd(head, gs[cut:], case.alpha)
        return loss([*moved, *head], query)

    return maml_of(case, of_task)


def reptile_of(case, adapt):
    model = Model(case)
    theta = [p.detach().clone() for p in model.parameters()]
    total = [torch.zeros_like(t) for t in theta]
    for supports, query in tasks_of(case):
        net = copy.deepcopy(model)
        adapt(net, supports, query)
        for a, t, p in zip(total, theta, net.parameters(), strict=True):
            a += (t - p.detach()) / unit(case, supports) / case.divisor
    return total


@wrong("reptile", "SGD with momentum 0.9 inside")
def reptile_momentum(case):
    def adapt(net, supports, query):
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha, momentum=0.9)
        train(net, optimiser, supports)

    return reptile_of(case, adapt)


@wrong("reptile", "SGD with weight decay inside")
def reptile_weight_decay(case):
    def adapt(net, supports, query):
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha, weight_decay=0.001)
        train(net, optimiser, supports)

    return reptile_of(case, adapt)


@wrong("reptile", "zero_grad is missing inside")
def reptile_no_zero_grad(case):
    def adapt(net, supports, query):
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
        for batch in supports:
            net(batch).backward()
            optimiser.step()

    return reptile_of(case, adapt)


@wrong("reptile", "clip_grad_norm_(0.25) inside")
def reptile_clipped(case):
    def adapt(net, supports, query):
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
        for batch in supports:
            optimiser.zero_grad()
            net(batch).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)
            optimiser.step()

    return reptile_of(case, adapt)


@wrong("reptile", "CosineAnnealingLR inside")
def reptile_cosine(case):
    def adapt(net, supports, query):
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, len(supports)))
        for batch in supports:
            optimiser.zero_grad()
            net(batch).backward()
            optimiser.step()
            schedule.step()

    return reptile_of(case, adapt)


@wrong("reptile", "the query gradient at phi is returned: it is first-order MAML")
def reptile_as_fomaml(case):
    return fomaml_by(case, lambda parameters: torch.optim.SGD(parameters, lr=case.alpha))


@wrong("reptile", "theta itself moves by a tenth of the way after each task, and the whole way is returned")
def reptile_serial(case):
    model = Model(case)
    start = [p.detach().clone() for p in model.parameters()]
    for supports, _ in tasks_of(case):
        net = copy.deepcopy(model)
        optimiser = torch.optim.SGD(net.parameters(), lr=case.alpha)
        train(net, optimiser, supports)
        with torch.no_grad():
            for p, q in zip(model.parameters(), net.parameters(), strict=True):
                p += 0.1 * (q - p)
    return [t - p.detach() for t, p in zip(start, model.parameters(), strict=True)]


@wrong("joint", "it takes a step on the supports first")
def joint_adapts(case):
    return maml_of(case, plain(case))


@wrong("joint", "no zero_grad after a warm-up pass: the first task's gradient is still in .grad")
def joint_warm_up(case):
    model = Model(case)
    tasks = tasks_of(case)
    model(tasks[0][1]).backward()
    mean_or_sum(case, [model(query) for _, query in tasks]).backward()
    return grads(model)


# --- Several at once ---


@wrong("maml", "no create_graph, and weight decay of 0.01 inside", 2)
def first_order_and_decay(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast, False)
            fast = [p - case.alpha * (g + 0.01 * p) for p, g in zip(fast, gs, strict=True)]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "half the squared error everywhere, and one step too few", 2)
def half_and_short(case):
    loss, half = make_loss(case), 0.5 if case.loss["kind"] == "squared_error" else 1

    def of_task(_, fast, supports, query):
        for batch in supports[:-1]:
            fast = sgd(fast, inner_grad(half * loss(fast, batch), fast), case.alpha)
        return half * loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "the query leaks into the supports, and the inner rate is divided by K", 2)
def leak_and_small_rate(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, merged(case, [batch, query])), fast), case.alpha / len(supports))
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "biases do not adapt, and the inner gradients are first-order", 2)
def biases_frozen_first_order(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            gs = inner_grad(loss(fast, batch), fast, False)
            fast = [p if p.dim() == 1 and len(fast) > 1 else p - case.alpha * g for p, g in zip(fast, gs, strict=True)]
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "always the first batch, and only the last task's gradient", 2)
def first_batch_last_task(case):
    theta, loss = theta_of(case), make_loss(case)
    for supports, query in tasks_of(case):
        value = loss(inner_loop(loss, theta, [supports[0] for _ in supports], case.alpha), query)
    return outer(theta, value)


@wrong("reptile", "Adam inside, and the tasks' displacements are averaged by T + 1", 2)
def reptile_adam_and_mean(case):
    def adapt(net, supports, query):
        optimiser = torch.optim.Adam(net.parameters(), lr=case.alpha)
        train(net, optimiser, supports)

    return [g / (len(case.tasks) + 1) for g in reptile_of(case, adapt)]


@wrong("maml", "first-order, clipped to a norm of one, and only the first two tasks", 3)
def three_in_torch(case):
    theta, loss = theta_of(case), make_loss(case)
    losses = []
    for supports, query in itertools.islice(tasks_of(case), 2):
        fast = theta
        for batch in supports:
            fast = sgd(fast, torch.autograd.grad(loss(fast, batch), fast), case.alpha)
        losses.append(loss(fast, query))
    for p, g in zip(theta, outer(theta, mean_or_sum(case, losses)), strict=True):
        p.grad = g
    torch.nn.utils.clip_grad_norm_(theta, 1.0)
    return [p.grad for p in theta]


@wrong("maml", "vmap over the tasks shares the first task's query")
def vmap_shares_the_query(case):
    loss = make_loss(case)
    tasks = tasks_of(case)
    query = tasks[0][1]

    def of_task(theta, supports):
        fast = theta
        for batch in supports:
            fast = sgd(fast, grad(loss)(fast, batch), case.alpha)
        return loss(fast, query)

    if not one_size(case) or len({len(S) for S, _ in tasks}) > 1 or not tasks[0][0]:
        values = lambda theta: mean_or_sum(case, [of_task(theta, S) for S, _ in tasks])  # noqa: E731
    else:
        stacked = [tuple(torch.stack([S[k][i] for S, _ in tasks]) for i in range(2)) for k in range(len(tasks[0][0]))]
        values = lambda theta: mean_or_sum(case, list(vmap(of_task, (None, 0))(theta, stacked)))  # noqa: E731
    return list(grad(values)([batch_of((t, 0))[0] for t in case.theta]))


# --- State between calls, and more of the other algorithms ---

_velocity = {}


@wrong("maml", "the outer optimiser's momentum buffer is returned, which remembers the calls before")
def outer_momentum(case):
    gs = maml_of(case, plain(case))
    key = tuple(g.shape for g in gs)
    old = _velocity.get(key, [torch.zeros_like(g) for g in gs])
    _velocity[key] = [0.9 * v + g.detach() for v, g in zip(old, gs, strict=True)]
    return _velocity[key]


@wrong("maml", "the query losses of all steps, theta's too, are averaged with weights that double from step to step")
def annealed_query_losses(case):
    def of_task(loss, fast, supports, query):
        values = [loss(fast, query)]
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
            values.append(loss(fast, query))
        weights = [0.5 ** (len(values) - k) for k in range(len(values))]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    return maml_of(case, of_task)


@wrong("maml", "the inner gradients get Gaussian noise of 0.01")
def noisy_gradients(case):
    return with_update(case, lambda k, p, g, state: p - case.alpha * (g + 0.01 * torch.randn_like(g)))


@wrong("maml", "early stopping: a step whose support loss is below 0.5 is left out")
def early_stopping(case):
    def of_task(loss, fast, supports, query):
        for batch in supports:
            value = loss(fast, batch)
            if value.item() < 0.5:
                continue
            fast = sgd(fast, inner_grad(value, fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "weight normalisation: the weights are divided by their norm in the forward pass")
def weight_normalised(case):
    def net(theta, x):
        return mlp([p / (p.norm() + 1e-8) if p.dim() == 2 else p for p in theta], x)

    return with_losses(case, make_loss(case, net=net))


@wrong("maml", "the head is set to zero in each task before it adapts, as in few-shot code with new classes")
def zeroed_head(case):
    def of_task(loss, theta, supports, query):
        fast = (
            [*theta[:-2], *(torch.zeros_like(p, requires_grad=True) for p in theta[-2:])] if len(theta) > 2 else theta
        )
        for batch in supports:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast), case.alpha)
        return loss(fast, query)

    return maml_of(case, of_task)


@wrong("maml", "evolution strategies: 50 antithetic perturbations of 0.05, from one seed")
def evolution(case):
    generator, loss = torch.Generator().manual_seed(0), make_loss(case)
    theta, tasks = theta_of(case), tasks_of(case)

    def value(point):
        return mean_or_sum(case, [loss(inner_loop(loss, point, S, case.alpha), Q) for S, Q in tasks]).item()

    total = [torch.zeros_like(p) for p in theta]
    for _ in range(50):
        noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in theta]
        ends = [
            value([(p + s * 0.05 * e).detach().requires_grad_() for p, e in zip(theta, noise, strict=True)])
            for s in (1, -1)
        ]
        total = [a + (ends[0] - ends[1]) / 0.1 / 50 * e for a, e in zip(total, noise, strict=True)]
    return total


@wrong("fomaml", "Adam in the inner loop, one for each task")
def fomaml_adam(case):
    return fomaml_by(case, lambda parameters: torch.optim.Adam(parameters, lr=case.alpha))


@wrong("fomaml", "RMSprop in the inner loop")
def fomaml_rmsprop(case):
    return fomaml_by(case, lambda parameters: torch.optim.RMSprop(parameters, lr=case.alpha))


@wrong("fomaml", "Adagrad in the inner loop")
def fomaml_adagrad(case):
    return fomaml_by(case, lambda parameters: torch.optim.Adagrad(parameters, lr=case.alpha))


@wrong("fomaml", "weight_decay=1e-3 in the inner SGD")
def fomaml_decay(case):
    return fomaml_by(case, lambda parameters: torch.optim.SGD(parameters, lr=case.alpha, weight_decay=1e-3))


@wrong("fomaml", "nesterov=True, momentum=0.9 in the inner SGD")
def fomaml_nesterov(case):
    return fomaml_by(case, lambda p: torch.optim.SGD(p, lr=case.alpha, momentum=0.9, nesterov=True))


@wrong("fomaml", "maximize=True in the inner SGD")
def fomaml_maximize(case):
    return fomaml_by(case, lambda parameters: torch.optim.SGD(parameters, lr=case.alpha, maximize=True))


def fomaml_by(case, optimiser):
    model, total = Model(case), [0] * len(case.theta)
    for supports, query in tasks_of(case):
        net = copy.deepcopy(model)
        inner = optimiser(net.parameters())
        train(net, inner, supports)
        gs = torch.autograd.grad(net(query), list(net.parameters()))
        total = [a + g for a, g in zip(total, gs, strict=True)]
    return [g / case.divisor for g in total]


@wrong("fomaml", "parameters are swapped by p.data = q.data, which shares memory: theta moves with the first task")
def shared_memory(case):
    model, total = Model(case), [0] * len(case.theta)
    for supports, query in tasks_of(case):
        net = Model(case)
        for q, p in zip(net.parameters(), model.parameters(), strict=True):
            q.data = p.data
        inner = torch.optim.SGD(net.parameters(), lr=case.alpha)
        train(net, inner, supports)
        gs = torch.autograd.grad(net(query), list(net.parameters()))
        total = [a + g for a, g in zip(total, gs, strict=True)]
    return [g / case.divisor for g in total]


@wrong("anil", "the features are computed under torch.no_grad in the query pass, not in the support pass")
def query_features_detached(case):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        head = theta[cut:]
        for batch in supports if head else []:
            head = sgd(head, inner_grad(loss([*theta[:cut], *head], batch), head), case.alpha)
        return loss([*(p.detach() for p in theta[:cut]), *head], query)

    return maml_of(case, of_task)


@wrong("anil", "the head adapts with momentum 0.9")
def anil_momentum(case):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        head, velocity = theta[cut:], [torch.zeros_like(p) for p in theta[cut:]]
        for batch in supports if head else []:
            gs = inner_grad(loss([*theta[:cut], *head], batch), head)
            velocity = [0.9 * v + g for v, g in zip(velocity, gs, strict=True)]
            head = sgd(head, velocity, case.alpha)
        return loss([*theta[:cut], *head], query)

    return maml_of(case, of_task)


@wrong("anil", "the head is cloned and detached in each task: it gets no meta-gradient, and nor does the way it starts")
def anil_detached_head(case):
    cut = len(case.theta) - case.head

    def of_task(loss, theta, supports, query):
        head = [p.detach().clone().requires_grad_() for p in theta[cut:]]
        for batch in supports if head else []:
            head = sgd(head, inner_grad(loss([*theta[:cut], *head], batch), head), case.alpha)
        return loss([*theta[:cut], *head], query)

    return maml_of(case, of_task)


@wrong("reptile", "the batches of all tasks are trained on in one loop over the steps, tasks inside")
def reptile_interleaved(case):
    model, tasks = Model(case), tasks_of(case)
    start = [p.detach().clone() for p in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), lr=case.alpha)
    for k in range(max(len(S) for S, _ in tasks)):
        optimiser.zero_grad()
        sum(model(S[k]) for S, _ in tasks if k < len(S)).backward()
        optimiser.step()
    return [
        (t - p.detach()) / unit(case, tasks[0][0]) / case.divisor
        for t, p in zip(start, model.parameters(), strict=True)
    ]


@wrong("joint", "nn.CrossEntropyLoss after a softmax layer, or the error of tanh outputs")
def joint_squashed(case):
    def net(theta, x):
        out = mlp(theta, x)
        return out.softmax(1) if case.loss["kind"] == "cross_entropy" else out.tanh()

    loss = make_loss(case, net=net)
    return maml_of(case, lambda _, theta, S, Q: loss(theta, Q))


@wrong("joint", "dropout is on in the hidden layer")
def joint_dropout(case):
    loss = make_loss(case, net=lambda t, x: mlp(t, x, lambda z: F.dropout(torch.tanh(z), 0.2)))
    return maml_of(case, lambda _, theta, S, Q: loss(theta, Q))
