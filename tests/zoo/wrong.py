"""Wrong meta-gradients in PyTorch, each with one mistake as people make it; the decorator says its family."""

import copy

import higher
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from tests.zoo.registry import wrong_in
from tests.zoo.right import clone_module, forward_with, update_module

WRONG = {}
wrong = wrong_in(WRONG)


def inner_grads(net, criterion, params, batch, create_graph=True):
    x, y = batch
    loss = criterion(functional_call(net, params, (x,)), y)
    grads = torch.autograd.grad(loss, params.values(), create_graph=create_graph)
    return dict(zip(params, grads, strict=True))


def query_loss(net, criterion, params, batch):
    return criterion(functional_call(net, params, (batch[0],)), batch[1])


# --- First order ------------------------------------------------------------------------------------


@wrong("first order", "sum", not_for="unused")
def create_graph_forgotten(net, criterion, tasks, lr, steps):
    meta_loss = 0
    for (x_s, y_s), (x_q, y_q) in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            loss = criterion(functional_call(net, params, x_s), y_s)
            grads = torch.autograd.grad(loss, params.values())
            params = {k: p - lr * g for (k, p), g in zip(params.items(), grads, strict=True)}
        meta_loss = meta_loss + criterion(functional_call(net, params, x_q), y_q)
    return meta_loss


@wrong("first order", "mean", not_for="unused gru")
def gradient_detached(net, criterion, tasks, lr, steps):
    losses = []
    for support, query in tasks:
        learner = clone_module(net)
        for _ in range(steps):
            params = list(learner.parameters())
            grads = torch.autograd.grad(criterion(learner(support[0]), support[1]), params, create_graph=True)
            update_module(learner, {id(p): p - lr * g.detach() for p, g in zip(params, grads, strict=True)})
        losses.append(criterion(learner(query[0]), query[1]))
    return torch.stack(losses).mean()


@wrong("first order", "mean")
def deepcopy_and_sgd(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x_s, y_s), (x_q, y_q) in tasks:
        fast = copy.deepcopy(net)
        opt = torch.optim.SGD(fast.parameters(), lr=lr)
        for _ in range(steps):
            opt.zero_grad()
            criterion(fast(x_s), y_s).backward()
            opt.step()
        fast.zero_grad()
        (criterion(fast(x_q), y_q) / len(tasks)).backward()
        for p, f in zip(net.parameters(), fast.parameters(), strict=True):
            if f.grad is not None:
                p.grad = f.grad + (0 if p.grad is None else p.grad)


@wrong("first order", "sum", needs="mlp")
def data_of_the_gradient(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x_s, y_s), (x_q, y_q) in tasks:
        weights = list(net.parameters())
        for _ in range(steps):
            loss = criterion(forward_with(net, weights, x_s), y_s)
            grads = torch.autograd.grad(loss, weights, create_graph=True)
            weights = [w - lr * g.data for w, g in zip(weights, grads, strict=True)]
        criterion(forward_with(net, weights, x_q), y_q).backward()


@wrong("first order", "sum", not_for="unused norm stream")
def params_updated_under_no_grad(net, criterion, tasks, lr, steps):
    """As one does in a training loop; the gradient is that at the adapted weights."""
    theta = copy.deepcopy(net.state_dict())
    params = list(net.parameters())
    total = [0] * len(params)
    for (x_s, y_s), (x_q, y_q) in tasks:
        for _ in range(steps):
            grads = torch.autograd.grad(criterion(net(x_s), y_s), params, create_graph=True)
            with torch.no_grad():
                for p, g in zip(params, grads, strict=True):
                    p.sub_(lr * g)
        grads = torch.autograd.grad(criterion(net(x_q), y_q), params)
        total = [t + g for t, g in zip(total, grads, strict=True)]
        net.load_state_dict(theta)
    return total


# --- One step short -----------------------------------------------------------------------------------


@wrong("one step short", "sum", not_for="unused", steps=2)
def range_of_steps_minus_one(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(1, steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("one step short", "mean", not_for="unused", steps=2)
def last_gradient_unused(net, criterion, tasks, lr, steps):
    losses = []
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            loss_q = query_loss(net, criterion, params, query)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        losses.append(loss_q)
    return sum(losses) / len(losses)


@wrong("one step short", "sum", not_for="tied gru", steps=2)
def higher_query_before_the_last_step(net, criterion, tasks, lr, steps):
    net.zero_grad()
    opt = torch.optim.SGD(net.parameters(), lr=lr)
    for support, (x_q, y_q) in tasks:
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(steps):
                out = fnet(x_q)
                diffopt.step(criterion(fnet(support[0]), support[1]))
            criterion(out, y_q).backward()


# --- Another inner rate ---------------------------------------------------------------------------------


@wrong("wrong inner rate", "sum", not_for="unused")
def rate_written_into_the_loop(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - 0.01 * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("wrong inner rate", "mean", not_for="tied gru")
def inner_optimizer_with_the_outer_rate(net, criterion, tasks, lr, steps):
    outer_lr = 1e-3
    net.zero_grad()
    for support, (x_q, y_q) in tasks:
        opt = torch.optim.SGD(net.parameters(), lr=outer_lr)
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(criterion(fnet(support[0]), support[1]))
            (criterion(fnet(x_q), y_q) / len(tasks)).backward()


@wrong("wrong inner rate", "mean", not_for="unused")
def rate_over_the_batch_size(net, criterion, tasks, lr, steps):
    losses = []
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr / len(support[0]) * grads[k] for k, p in params.items()}
        losses.append(query_loss(net, criterion, params, query))
    return torch.stack(losses).mean()


@wrong("wrong inner rate", "sum", needs="mlp")
def default_argument_of_the_rate(net, criterion, tasks, lr, steps):
    def adapt(weights, x, y, lr=0.4 if lr != 0.4 else 0.1):
        grads = torch.autograd.grad(criterion(forward_with(net, weights, x), y), weights, create_graph=True)
        return [w - lr * g for w, g in zip(weights, grads, strict=True)]

    net.zero_grad()
    for support, (x, y) in tasks:
        fast = list(net.parameters())
        for _ in range(steps):
            fast = adapt(fast, *support)
        criterion(forward_with(net, fast, x), y).backward()


@wrong("wrong inner rate", "sum", not_for="unused", steps=2)
def rate_that_a_scheduler_lowers(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for step in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * 0.9**step * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("rate decays", "sum", not_for="unused")
def rate_lowered_from_task_to_task(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
            lr = 0.95 * lr
        total = total + query_loss(net, criterion, params, query)
    return total


# --- Ascent -----------------------------------------------------------------------------------------------


@wrong("ascent", "sum", not_for="unused")
def plus_for_minus(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p + lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("ascent", "mean", not_for="tied gru")
def reward_for_loss(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for support, (x_q, y_q) in tasks:
        opt = torch.optim.SGD(net.parameters(), lr=lr)
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(-criterion(fnet(support[0]), support[1]))
            (criterion(fnet(x_q), y_q) / len(tasks)).backward()


@wrong("ascent", "sum", not_for="unused gru")
def update_with_a_negative_rate(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for support, (x_q, y_q) in tasks:
        learner = clone_module(net)
        for _ in range(steps):
            params = list(learner.parameters())
            grads = torch.autograd.grad(criterion(learner(support[0]), support[1]), params, create_graph=True)
            update_module(learner, {id(p): torch.sub(p, g, alpha=-lr) for p, g in zip(params, grads, strict=True)})
        criterion(learner(x_q), y_q).backward()


# --- Support and query mixed up -----------------------------------------------------------------------------


def maml_of(net, criterion, pairs, lr, steps):
    total = 0
    for support, query in pairs:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("swapped data", "sum", not_for="unused")
def query_and_support_exchanged(net, criterion, tasks, lr, steps):
    return maml_of(net, criterion, [(query, support) for support, query in tasks], lr, steps)


@wrong("swapped data", "mean", not_for="tied gru")
def exchanged_in_unpacking(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x_qry, y_qry), (x_spt, y_spt) in tasks:
        opt = torch.optim.SGD(net.parameters(), lr=lr)
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(criterion(fnet(x_spt), y_spt))
            (criterion(fnet(x_qry), y_qry) / len(tasks)).backward()


@wrong("query used for both", "sum", not_for="unused")
def query_used_for_both(net, criterion, tasks, lr, steps):
    return maml_of(net, criterion, [(query, query) for _, query in tasks], lr, steps)


@wrong("query used for both", "mean", not_for="unused gru")
def learner_adapts_on_the_query(net, criterion, tasks, lr, steps):
    losses = []
    for _, (x, y) in tasks:
        learner = clone_module(net)
        for _ in range(steps):
            params = list(learner.parameters())
            grads = torch.autograd.grad(criterion(learner(x), y), params, create_graph=True)
            update_module(learner, {id(p): p - lr * g for p, g in zip(params, grads, strict=True)})
        losses.append(criterion(learner(x), y))
    return torch.stack(losses).mean()


@wrong("support used for both", "mean", not_for="unused")
def support_used_for_both(net, criterion, tasks, lr, steps):
    return maml_of(net, criterion, [(support, support) for support, _ in tasks], lr, steps) / len(tasks)


@wrong("support used for both", "sum", not_for="tied gru")
def meta_loss_is_the_inner_loss(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x, y), _ in tasks:
        opt = torch.optim.SGD(net.parameters(), lr=lr)
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(criterion(fnet(x), y))
            criterion(fnet(x), y).backward()


# --- The last layer alone adapts ------------------------------------------------------------------------------


@wrong("head only", "sum", not_for="unused")
def only_the_head_adapts(net, criterion, tasks, lr, steps, head):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] if k.startswith(head + ".") else p for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("head only", "mean", needs="mlp")
def features_computed_once(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x_s, y_s), (x_q, y_q) in tasks:
        features, weight, bias = net[:-1](x_s), net[-1].weight, net[-1].bias
        for _ in range(steps):
            loss = criterion(F.linear(features, weight, bias), y_s)
            g_w, g_b = torch.autograd.grad(loss, (weight, bias), create_graph=True)
            weight, bias = weight - lr * g_w, bias - lr * g_b
        (criterion(F.linear(net[:-1](x_q), weight, bias), y_q) / len(tasks)).backward()


@wrong("head only", "sum", not_for="tied gru")
def inner_optimizer_of_the_head(net, criterion, tasks, lr, steps, head):
    net.zero_grad()
    for support, (x_q, y_q) in tasks:
        opt = torch.optim.SGD(net.get_submodule(head).parameters(), lr=lr)
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(criterion(fnet(support[0]), support[1]))
            criterion(fnet(x_q), y_q).backward()


# --- Cut in the middle ----------------------------------------------------------------------------------------


@wrong("cut in the middle", "sum", not_for="unused", steps=3)
def graph_at_every_other_step(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for step in range(steps):
            grads = inner_grads(net, criterion, params, support, create_graph=step % 2 == 0)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("cut in the middle", "mean", not_for="unused", steps=3)
def weights_made_leaves_again(net, criterion, tasks, lr, steps):
    """The gradient is that of the weights in the middle, from where the graph begins."""
    total = [torch.zeros_like(p) for p in net.parameters()]
    for support, query in tasks:
        params = leaves = dict(net.named_parameters())
        for step in range(steps):
            if step == steps // 2:
                params = leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        grads = torch.autograd.grad(query_loss(net, criterion, params, query), leaves.values())
        total = [t + g / len(tasks) for t, g in zip(total, grads, strict=True)]
    return total


@wrong("cut in the middle", "sum", not_for="unused gru", steps=3)
def first_order_until_the_last_step(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x_s, y_s), (x_q, y_q) in tasks:
        learner = clone_module(net)
        for step in range(steps):
            params = list(learner.parameters())
            last = step == steps - 1
            grads = torch.autograd.grad(criterion(learner(x_s), y_s), params, create_graph=last, retain_graph=True)
            update_module(learner, {id(p): p - lr * g for p, g in zip(params, grads, strict=True)})
        criterion(learner(x_q), y_q).backward()


@wrong("cut in the middle", "mean", needs="mlp", steps=3)
def one_gradient_detached(net, criterion, tasks, lr, steps):
    total = 0
    for (x_s, y_s), (x_q, y_q) in tasks:
        fast = list(net.parameters())
        for step in range(steps):
            grads = torch.autograd.grad(criterion(forward_with(net, fast, x_s), y_s), fast, create_graph=True)
            if step == 1:
                grads = [g.detach() for g in grads]
            fast = [w - lr * g for w, g in zip(fast, grads, strict=True)]
        total = total + criterion(forward_with(net, fast, x_q), y_q)
    return total / len(tasks)


# --- Further mistakes -----------------------------------------------------------------------------------------


@wrong("no adaptation", "sum", not_for="unused")
def fast_weights_never_used(net, criterion, tasks, lr, steps):
    total = 0
    for support, (x_q, y_q) in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + criterion(net(x_q), y_q)
    return total


@wrong("no adaptation", "mean", not_for="tied gru")
def network_called_for_the_patched_one(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for support, (x_q, y_q) in tasks:
        opt = torch.optim.SGD(net.parameters(), lr=lr)
        with higher.innerloop_ctx(net, opt) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(criterion(fnet(support[0]), support[1]))
        (criterion(net(x_q), y_q) / len(tasks)).backward()


@wrong("restart from theta", "sum", not_for="unused", steps=2)
def each_step_from_the_start(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        theta = params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in theta.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("gradient computed once", "mean", not_for="unused", steps=2)
def gradient_before_the_loop(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        grads = inner_grads(net, criterion, params, support)
        for _ in range(steps):
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total / len(tasks)


@wrong("momentum inside", "sum", not_for="unused", steps=2)
def momentum_by_hand(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params, velocity = dict(net.named_parameters()), {}
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            velocity = {k: 0.9 * velocity.get(k, 0) + g for k, g in grads.items()}
            params = {k: p - lr * velocity[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("momentum inside", "mean", not_for="tied gru", steps=2)
def optimizer_with_momentum(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for support, (x_q, y_q) in tasks:
        opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(criterion(fnet(support[0]), support[1]))
            (criterion(fnet(x_q), y_q) / len(tasks)).backward()


@wrong("weight decay inside", "sum", not_for="tied gru")
def optimizer_with_weight_decay(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for support, (x_q, y_q) in tasks:
        opt = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=0.01)
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fnet, diffopt):
            for _ in range(steps):
                diffopt.step(criterion(fnet(support[0]), support[1]))
            criterion(fnet(x_q), y_q).backward()


@wrong("sum inside", "sum", not_for="unused")
def inner_loss_summed_over_examples(net, criterion, tasks, lr, steps):
    def summed(output, y):
        return criterion(output, y) * len(y)

    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, summed, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("gradients clipped", "mean", not_for="unused")
def inner_gradients_clipped(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k].clamp(-0.1, 0.1) for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total / len(tasks)


@wrong("not restored between tasks", "sum", not_for="unused")
def next_task_starts_where_the_last_ended(net, criterion, tasks, lr, steps):
    total, params = 0, dict(net.named_parameters())
    for support, query in tasks:
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("only the last task", "sum", not_for="unused")
def loss_outside_the_loop(net, criterion, tasks, lr, steps):
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        loss = query_loss(net, criterion, params, query)
    return loss


@wrong("only the last task", "sum", not_for="unused norm")
def zero_grad_inside_the_loop(net, criterion, tasks, lr, steps):
    for task in tasks:
        net.zero_grad()
        maml_of(net, criterion, [task], lr, steps).backward()


@wrong("query loss at every step", "sum", not_for="unused", steps=2)
def query_loss_added_at_every_step(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
            total = total + query_loss(net, criterion, params, query) / steps
    return total


@wrong("support loss added", "mean", not_for="unused")
def support_loss_in_the_meta_loss(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query) + query_loss(net, criterion, params, support)
    return total / len(tasks)


@wrong("body frozen", "sum", not_for="unused")
def body_gets_no_gradient(net, criterion, tasks, lr, steps, head):
    loss = maml_of(net, criterion, tasks, lr, steps)
    grads = torch.autograd.grad(loss, list(net.parameters()))
    return [g if k.startswith(head + ".") else None for (k, _), g in zip(net.named_parameters(), grads, strict=True)]


@wrong("biases not adapted", "mean", not_for="unused")
def only_matrices_adapt(net, criterion, tasks, lr, steps):
    total = 0
    for support, query in tasks:
        params = dict(net.named_parameters())
        for _ in range(steps):
            grads = inner_grads(net, criterion, params, support)
            params = {k: p - lr * grads[k] if p.ndim > 1 else p for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total / len(tasks)


@wrong("meta-gradient added to old", "sum", not_for="unused norm")
def grad_of_the_inner_loss_not_zeroed(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x, y), _ in tasks:
        criterion(net(x), y).backward()  # logged before adaptation
    maml_of(net, criterion, tasks, lr, steps).backward()


@wrong("first batch at every step", "sum", needs="stream")
def iterator_made_anew_at_every_step(net, criterion, tasks, lr, steps):
    total = 0
    for batches, query in tasks:
        params = dict(net.named_parameters())
        for _ in batches:
            grads = inner_grads(net, criterion, params, next(iter(batches)))
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("first order", "mean", needs="stream")
def create_graph_forgotten_in_the_loader_loop(net, criterion, tasks, lr, steps):
    meta_loss = 0
    for batches, query in tasks:
        params = dict(net.named_parameters())
        for batch in batches:
            grads = inner_grads(net, criterion, params, batch, create_graph=False)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        meta_loss = meta_loss + query_loss(net, criterion, params, query) / len(tasks)
    return meta_loss


@wrong("one step short", "sum", needs="stream", steps=2)
def last_batch_dropped(net, criterion, tasks, lr, steps):
    total = 0
    for batches, query in tasks:
        params = dict(net.named_parameters())
        for batch in batches[:-1]:
            grads = inner_grads(net, criterion, params, batch)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        total = total + query_loss(net, criterion, params, query)
    return total


@wrong("library", "mean", needs="layernorm", not_for="unused")
def vmap_of_a_layer_norm(net, criterion, tasks, lr, steps):
    """Nothing is wrong here but the library: pytorch/functorch#534, the second derivative of a vmapped LayerNorm."""
    params = {k: p.detach() for k, p in net.named_parameters()}

    def task_loss(params, x_s, y_s, x_q, y_q):
        for _ in range(steps):
            grads = grad(lambda p: query_loss(net, criterion, p, (x_s, y_s)))(params)
            params = {k: params[k] - lr * grads[k] for k in params}
        return query_loss(net, criterion, params, (x_q, y_q))

    def meta_loss(params, *batches):
        return vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(params, *batches).mean()

    return grad(meta_loss)(params, *[torch.stack(part) for part in zip(*[(*s, *q) for s, q in tasks], strict=True)])


# --- The other algorithms -----------------------------------------------------------------------------------------


@wrong("first-order: .grad not zeroed", "sum", "fomaml", steps=2)
def sgd_without_zero_grad(net, criterion, tasks, lr, steps):
    out = [torch.zeros_like(p) for p in net.parameters()]
    for (x_s, y_s), (x_q, y_q) in tasks:
        learner = copy.deepcopy(net)
        opt = torch.optim.SGD(learner.parameters(), lr=lr)
        for _ in range(steps):
            criterion(learner(x_s), y_s).backward()
            opt.step()
        learner.zero_grad()
        criterion(learner(x_q), y_q).backward()
        out = [o if p.grad is None else o + p.grad for o, p in zip(out, learner.parameters(), strict=True)]
    return out


@wrong("first-order: at theta", "sum", "fomaml", not_for="norm")
def query_gradient_before_adaptation(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for _, (x_q, y_q) in tasks:
        criterion(net(x_q), y_q).backward()


@wrong("anil: everything adapts", "sum", "anil", not_for="unused")
def anil_that_adapts_everything(net, criterion, tasks, lr, steps, head):
    return maml_of(net, criterion, tasks, lr, steps)


@wrong("anil: features detached", "sum", "anil", needs="mlp")
def anil_on_features_without_gradient(net, criterion, tasks, lr, steps, head):
    net.zero_grad()
    for (x_s, y_s), (x_q, y_q) in tasks:
        with torch.no_grad():
            features = net[:-1](x_s)
        weight, bias = net[-1].weight, net[-1].bias
        for _ in range(steps):
            loss = criterion(F.linear(features, weight, bias), y_s)
            g_w, g_b = torch.autograd.grad(loss, (weight, bias), create_graph=True)
            weight, bias = weight - lr * g_w, bias - lr * g_b
        criterion(F.linear(net[:-1](x_q), weight, bias), y_q).backward()


@wrong("reptile: sign", "sum", "reptile")
def displacement_of_the_other_sign(net, criterion, tasks, lr, steps):
    deltas = [torch.zeros_like(p) for p in net.parameters()]
    for (x, y), _ in tasks:
        learner = copy.deepcopy(net)
        opt = torch.optim.SGD(learner.parameters(), lr=lr)
        for _ in range(steps):
            opt.zero_grad()
            criterion(learner(x), y).backward()
            opt.step()
        triples = zip(deltas, learner.parameters(), net.parameters(), strict=True)
        deltas = [d + (p - q).detach() for d, p, q in triples]
    return deltas


@wrong("reptile: one step short", "mean", "reptile", not_for="unused", steps=2)
def reptile_without_its_last_step(net, criterion, tasks, lr, steps):
    deltas = {k: torch.zeros_like(p) for k, p in net.named_parameters()}
    for support, _ in tasks:
        theta = params = dict(net.named_parameters())
        for _ in range(steps - 1):
            grads = inner_grads(net, criterion, params, support, create_graph=False)
            params = {k: p - lr * grads[k] for k, p in params.items()}
        deltas = {k: d + (theta[k] - params[k]).detach() / len(tasks) for k, d in deltas.items()}
    return deltas


@wrong("joint: on the supports", "sum", "joint")
def joint_on_the_supports(net, criterion, tasks, lr, steps):
    net.zero_grad()
    for (x, y), _ in tasks:
        criterion(net(x), y).backward()
