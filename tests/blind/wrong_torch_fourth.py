"""A fourth stranger's implementations in PyTorch, right and wrong, written without a look at the checker."""

from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from refmeta.conformance import Skip
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
    mlp,
    outer,
    sgd,
    tasks_of,
    theta_of,
    train,
)
from tests.blind.registry import right, wrong


def over_tasks(case, gradient):
    """Each task's list, combined."""
    return [mean_or_sum(case, leaves) for leaves in zip(*(gradient(S, Q) for S, Q in tasks_of(case)), strict=True)]


def as_vector(case):
    """θ as a vector t, the loss of (t, batch), and t as a list."""
    theta, loss = theta_of(case), make_loss(case)

    def unpack(t):
        return [part.view_as(p) for part, p in zip(t.split([p.numel() for p in theta]), theta, strict=True)]

    return parameters_to_vector(theta).detach(), lambda t, batch: loss(unpack(t), batch), unpack


# --- MAML ---


@right("maml", "a stack of torch.func.vjp's pullbacks, called last step first")
def pullbacks(case):
    t, loss, unpack = as_vector(case)

    def gradient(S, Q):
        phi, stack = t, []
        for batch in S:
            phi, back = torch.func.vjp(lambda p: p - case.alpha * torch.func.grad(loss)(p, batch), phi)
            stack.append(back)
        v = torch.func.grad(loss)(phi, Q)
        while stack:
            (v,) = stack.pop()(v)
        return unpack(v)

    return over_tasks(case, gradient)


@right("maml", "forward sensitivities: the rows of ∂φ/∂θ are carried along, each times I − αH")
def sensitivities(case):
    t, loss, unpack = as_vector(case)

    def gradient(S, Q):
        phi, rows = t, torch.eye(len(t), dtype=t.dtype)
        for batch in S:
            rows = rows - case.alpha * rows @ torch.autograd.functional.hessian(lambda p: loss(p, batch), phi)
            phi = phi - case.alpha * torch.func.grad(loss)(phi, batch)
        return unpack(rows @ torch.func.grad(loss)(phi, Q))

    return over_tasks(case, gradient)


@right("maml", "an nn.Module under functional_call; the answer is a dict by name")
def functional_module(case):
    net = Model(case)
    names = dict(zip(dict(net.named_parameters()), case.names, strict=True))

    def episode(weights):
        losses = []
        for S, Q in tasks_of(case):
            fast = weights
            for batch in S:
                g = torch.func.grad(lambda w: torch.func.functional_call(net, w, (batch,)))(fast)
                fast = {name: fast[name] - case.alpha * g[name] for name in fast}
            losses.append(torch.func.functional_call(net, fast, (Q,)))
        return mean_or_sum(case, losses)

    return {names[n]: g for n, g in torch.func.grad(episode)(dict(net.named_parameters())).items()}


@wrong("maml", "retain_graph=True in place of create_graph=True: the inner gradient is a constant")
def retained_not_created(case):
    def episode(loss, theta, S, Q):
        fast = theta
        for batch in S:
            g = torch.autograd.grad(loss(fast, batch), fast, retain_graph=True)
            fast = [p - case.alpha * d for p, d in zip(fast, g, strict=True)]
        return loss(fast, Q)

    return maml_of(case, episode)


@wrong("maml", "the list of losses kept for the log is summed for the outer step, support losses and all")
def logged_losses(case):
    theta, loss, history = theta_of(case), make_loss(case), []

    def forward(fast, batch):
        history.append(loss(fast, batch))
        return history[-1]

    for S, Q in tasks_of(case):
        forward(inner_loop(forward, theta, S, case.alpha), Q)
    total = sum(history) / (len(case.tasks) if case.conventions["tasks"] == "mean" else 1)
    return outer(theta, total)


@wrong(
    "maml", "every inner gradient is taken in the initial weights, through the steps before it, not in the fast ones"
)
def grad_of_the_initial_weights(case):
    if max(len(S) for S, _ in case.tasks) > 5:
        raise Skip("the graph triples at each step")

    def episode(loss, theta, S, Q):
        fast = theta
        for x, y in S:
            fast = sgd(fast, torch.autograd.grad(loss(fast, (x, y)), theta, create_graph=True), case.alpha)
        return loss(fast, Q)

    return maml_of(case, episode)


@wrong("maml", "every step is subtracted from the initial weights, so that only the last one counts", tasks="mean")
def map_over_net_parameters(case):
    theta, loss = theta_of(case), make_loss(case)
    losses_q = []
    for S, Q in tasks_of(case):
        fast_weights = theta
        for batch in S:
            grad = inner_grad(loss(fast_weights, batch), fast_weights)
            fast_weights = [p[1] - case.alpha * p[0] for p in zip(grad, theta, strict=True)]
        losses_q.append(loss(fast_weights, Q))
    return outer(theta, torch.stack(losses_q).mean())


@wrong("maml", "to save memory the graph is made at the last inner step only")
def second_order_at_the_end(case):
    def episode(loss, theta, S, Q):
        fast = theta
        for k, batch in enumerate(S, 1):
            fast = sgd(fast, inner_grad(loss(fast, batch), fast, create_graph=k == len(S)), case.alpha)
        return loss(fast, Q)

    return maml_of(case, episode)


@wrong("maml", "the first inner step stands before the loop, and lacks create_graph")
def step_before_the_loop(case):
    def episode(loss, theta, S, Q):
        if not S:
            return loss(theta, Q)
        grad = torch.autograd.grad(loss(theta, S[0]), theta)
        fast = sgd(theta, grad, case.alpha)
        for k in range(1, len(S)):
            grad = torch.autograd.grad(loss(fast, S[k]), fast, create_graph=True)
            fast = sgd(fast, grad, case.alpha)
        return loss(fast, Q)

    return maml_of(case, episode)


@wrong("maml", "p.data − α g: the step's graph holds the gradient, and not the weights it is subtracted from")
def minus_from_data(case):
    def episode(loss, theta, S, Q):
        fast = theta
        for batch in S:
            g = inner_grad(loss(fast, batch), fast)
            fast = [p.data - case.alpha * d for p, d in zip(fast, g, strict=True)]
        return loss(fast, Q)

    return maml_of(case, episode)


class FastWeights:
    """Weights with a grad of their own, as an nn.Module's; nobody zeroes it."""

    def __init__(self, weights):
        self.weights, self.grad = weights, [torch.zeros_like(w) for w in weights]

    def backward(self, loss):
        g = inner_grad(loss, self.weights)
        self.grad = [old + new for old, new in zip(self.grad, g, strict=True)]

    def step(self, lr):
        self.weights = sgd(self.weights, self.grad, lr)


@wrong("maml", "no zero_grad in the inner loop: every step takes all gradients since the first")
def fast_grads_pile_up(case):
    def episode(loss, theta, S, Q):
        fast = FastWeights(theta)
        for batch in S:
            fast.backward(loss(fast.weights, batch))
            fast.step(case.alpha)
        return loss(fast.weights, Q)

    return maml_of(case, episode)


@wrong("maml", "lambdas bind late: all tasks are judged on the last task's query")
def late_lambdas(case):
    theta, loss = theta_of(case), make_loss(case)
    evaluate = []
    for supports, query in case.tasks:
        fast = inner_loop(loss, theta, [batch_of(b) for b in supports], case.alpha)
        evaluate.append(lambda fast=fast: loss(fast, batch_of(query)))
    return outer(theta, mean_or_sum(case, [e() for e in evaluate]))


@wrong(
    "maml",
    "backward of the running total inside the task loop: the first task counts T times, the last once",
    tasks="sum",
)
def running_total_backward(case):
    theta, loss = theta_of(case), make_loss(case)
    meta_loss = 0
    for S, Q in tasks_of(case):
        meta_loss = meta_loss + loss(inner_loop(loss, theta, S, case.alpha), Q)
        meta_loss.backward(retain_graph=True)
    return [p.grad for p in theta]


@wrong("maml", "next(iter(loader)) at each step: always the first support batch")
def next_iter_loader(case):
    def episode(loss, theta, loader, Q):
        fast = theta
        for _ in range(len(loader)):
            x, y = next(iter(loader))
            fast = sgd(fast, inner_grad(loss(fast, (x, y)), fast), case.alpha)
        return loss(fast, Q)

    return maml_of(case, episode)


@wrong("maml", "list.pop() takes the support batches from the end, so the steps come in reverse")
def pop_from_the_end(case):
    def episode(loss, theta, queue, Q):
        fast = theta
        while queue:
            fast = sgd(fast, inner_grad(loss(fast, queue.pop()), fast), case.alpha)
        return loss(fast, Q)

    return maml_of(case, episode)


@wrong("maml", "the Jacobian of the adaptation times the query's gradient, where its transpose is needed")
def jacobian_not_transposed(case):
    t, loss, unpack = as_vector(case)

    def gradient(S, Q):
        def adapt(p):
            for batch in S:
                p = p - case.alpha * torch.func.grad(loss)(p, batch)
            return p

        J = torch.func.jacrev(adapt)(t)
        return unpack(J @ torch.func.grad(loss)(adapt(t), Q))

    return over_tasks(case, gradient)


@wrong("maml", "the gradient of the gradient's sum is taken for the Hessian's diagonal, and multiplied entry by entry")
def gradient_of_the_sum(case):
    t, loss, unpack = as_vector(case)
    grad = torch.func.grad(loss)

    def gradient(S, Q):
        phi, factor = t, torch.ones_like(t)
        for batch in S:
            second = torch.func.grad(lambda p: grad(p, batch).sum())(phi)
            factor = factor * (1 - case.alpha * second)
            phi = phi - case.alpha * grad(phi, batch)
        return unpack(factor * grad(phi, Q))

    return over_tasks(case, gradient)


@wrong("maml", "the product of the I − αH is expanded to first order: I − α ΣH")
def product_as_a_sum(case):
    t, loss, unpack = as_vector(case)
    grad = torch.func.grad(loss)

    def gradient(S, Q):
        phis = [t]
        for batch in S:
            phis.append(phis[-1] - case.alpha * grad(phis[-1], batch))
        v = grad(phis[-1], Q)
        curvature = [torch.func.vjp(lambda p: grad(p, b), phi)[1](v)[0] for phi, b in zip(phis, S, strict=False)]
        return unpack(v - case.alpha * sum(curvature))

    return over_tasks(case, gradient)


@wrong("maml", "every Hessian is that of θ, not that of the weights where its step was taken")
def hessians_at_theta(case):
    t, loss, unpack = as_vector(case)

    def gradient(S, Q):
        phi, J = t, torch.eye(len(t), dtype=t.dtype)
        for batch in S:
            J = (torch.eye(len(t), dtype=t.dtype) - case.alpha * torch.func.jacrev(torch.func.grad(loss))(t, batch)) @ J
            phi = phi - case.alpha * torch.func.grad(loss)(phi, batch)
        return unpack(J.T @ torch.func.grad(loss)(phi, Q))

    return over_tasks(case, gradient)


@wrong("maml", "from federated averaging: the tasks' adapted weights are averaged, and all queries judge the average")
def federated(case):
    theta, loss, tasks = theta_of(case), make_loss(case), tasks_of(case)
    clients = [inner_loop(loss, theta, S, case.alpha) for S, _ in tasks]
    server = [torch.stack(weights).mean(0) for weights in zip(*clients, strict=True)]
    return outer(theta, mean_or_sum(case, [loss(server, Q) for _, Q in tasks]))


@wrong("maml", "y is squeezed and the output is not: with one output (n, 1) − (n,) is broadcast to (n, n)")
def squeezed_targets(case):
    def mse(case, out, y, reduction):
        if case.loss["kind"] == "cross_entropy":
            return criterion(case, out, y)
        return getattr((out - y.squeeze()) ** 2, case.conventions["examples"])()

    theta, loss = theta_of(case), make_loss(case, criterion=mse)
    return outer(theta, mean_or_sum(case, [loss(inner_loop(loss, theta, S, case.alpha), Q) for S, Q in tasks_of(case)]))


def adapt_weights(loss, weights, batches, lr=0.01):
    for batch in batches:
        weights = sgd(weights, inner_grad(loss(weights, batch), weights), lr)
    return weights


@wrong("maml", "the default inner rate 0.01 is used, not α; the support loss is summed over the examples", mistakes=2)
def default_rate_summed_supports(case):
    theta, train_loss, test_loss = theta_of(case), make_loss(case, reduction="sum"), make_loss(case)
    fast = [adapt_weights(train_loss, theta, S) for S, _ in tasks_of(case)]
    return outer(theta, mean_or_sum(case, [test_loss(f, Q) for f, (_, Q) in zip(fast, tasks_of(case), strict=True)]))


@wrong(
    "maml",
    "iMAML's proximal term with λ = 2 stayed in the inner loss; inner gradients are clipped to norm 1",
    mistakes=2,
)
def proximal_and_clipped(case):
    def episode(loss, theta, S, Q, lam=2.0, max_norm=1.0):
        fast = theta
        for batch in S:
            prox = sum(((f - p) ** 2).sum() for f, p in zip(fast, theta, strict=True))
            g = inner_grad(loss(fast, batch) + lam / 2 * prox, fast)
            norm = torch.sqrt(sum((d.detach() ** 2).sum() for d in g))
            coef = (max_norm / (norm + 1e-6)).clamp(max=1.0)
            fast = sgd(fast, [coef * d for d in g], case.alpha)
        return loss(fast, Q)

    return maml_of(case, episode)


@wrong("maml", "the last support batch is not trained on, and its loss is added to the query's", mistakes=2)
def last_support_as_validation(case):
    def episode(loss, theta, S, Q):
        fast = inner_loop(loss, theta, S[:-1], case.alpha)
        return sum(loss(fast, batch) for batch in [*S[-1:], Q])

    return maml_of(case, episode)


@wrong(
    "maml", "MAML++ with its multi-step loss left on (the mean over steps 1 … K), and second order left off", mistakes=2
)
def plus_plus(case, second_order=False, multi_step=True):
    def episode(loss, theta, S, Q):
        fast, losses = theta, []
        for batch in S:
            fast = sgd(fast, inner_grad(loss(fast, batch), fast, create_graph=second_order), case.alpha)
            losses.append(loss(fast, Q))
        if not multi_step or not losses:
            return loss(fast, Q)
        return sum(losses) / len(losses)

    return maml_of(case, episode)


@wrong(
    "maml",
    "the last hidden layer lacks its activation; squared errors are halved; each task starts where the last one ended",
    mistakes=3,
)
def homework(case):
    def net(theta, x):
        act = getattr(torch, case.model["activation"])
        for i in range(0, len(theta), 2):
            x = x @ theta[i] + theta[i + 1]
            x = act(x) if i < len(theta) - 4 else x
        return x

    def half_mse(case, out, y, reduction):
        return criterion(case, out, y) / (2 if case.loss["kind"] == "squared_error" else 1)

    theta, loss, losses = theta_of(case), make_loss(case, net, half_mse), []
    fast = theta
    for S, Q in tasks_of(case):
        fast = inner_loop(loss, fast, S, case.alpha)
        losses.append(loss(fast, Q))
    return outer(theta, mean_or_sum(case, losses))


@wrong(
    "maml",
    "always three steps; each on all support batches as one; the rate is halved after each step",
    mistakes=3,
    tasks="mean",
)
def notebook(case, num_steps=3):
    theta, loss = theta_of(case), make_loss(case)
    meta_loss = 0
    for S, Q in tasks_of(case):
        params, lr = theta, case.alpha
        for _ in range(num_steps if S else 0):
            params = sgd(params, inner_grad(loss(params, merged(case, S)), params), lr)
            lr /= 2
        meta_loss = meta_loss + loss(params, Q)
    return outer(theta, meta_loss / len(case.tasks))


# --- First-order MAML ---


def plain_sgd(net, case, **options):
    return torch.optim.SGD(net.parameters(), lr=case.alpha, **options)


@right("fomaml", "the derivative in a δ that is added to the adapted weights")
def added_delta(case):
    theta, loss = theta_of(case), make_loss(case)
    delta = [torch.zeros_like(p, requires_grad=True) for p in theta]
    losses = []
    for S, Q in tasks_of(case):
        fast = theta
        for batch in S:
            fast = [
                p.detach().requires_grad_() for p in sgd(fast, inner_grad(loss(fast, batch), fast, False), case.alpha)
            ]
        losses.append(loss([f.detach() + d for f, d in zip(fast, delta, strict=True)], Q))
    return outer(delta, mean_or_sum(case, losses))


@right("fomaml", "a deep copy of the module and an SGD for each task; p.grad is filled by hand")
def module_copies(case):
    meta = Model(case)
    for p in meta.parameters():
        p.grad = torch.zeros_like(p)
    for S, Q in tasks_of(case):
        learner = deepcopy(meta)
        train(learner, plain_sgd(learner, case), S)
        learner.zero_grad()
        (learner(Q) / (len(case.tasks) if case.conventions["tasks"] == "mean" else 1)).backward()
        for p, q in zip(meta.parameters(), learner.parameters(), strict=True):
            p.grad += q.grad
    return grads(meta)


@wrong("fomaml", "the initial weights are loaded back before the query's backward: the gradient is that at θ")
def restored_before_the_query(case):
    net = Model(case)
    start = deepcopy(net.state_dict())

    def gradient(S, Q):
        train(net, plain_sgd(net, case), S)
        net.load_state_dict(start)
        net.zero_grad()
        net(Q).backward()
        return [g.clone() for g in grads(net)]

    return over_tasks(case, gradient)


@wrong("fomaml", "no zero_grad before the query's backward: the last support gradient is still in .grad")
def no_zero_before_the_query(case):
    def gradient(S, Q):
        learner = Model(case)
        optimiser = plain_sgd(learner, case)
        for batch in S:
            optimiser.zero_grad()
            learner(batch).backward()
            optimiser.step()
        learner(Q).backward()
        return grads(learner)

    return over_tasks(case, gradient)


@wrong("fomaml", "optimizer.step() stands after the loop: one step on the sum of the gradients at θ")
def step_after_the_loop(case):
    def gradient(S, Q):
        learner = Model(case)
        optimiser = plain_sgd(learner, case)
        optimiser.zero_grad()
        for batch in S:
            learner(batch).backward()
        optimiser.step()
        optimiser.zero_grad()
        learner(Q).backward()
        return grads(learner)

    return over_tasks(case, gradient)


@wrong("fomaml", "first_order=True reaches nobody: the answer is MAML's")
def flag_reaches_nobody(case, first_order=True):
    t, loss, unpack = as_vector(case)

    def adapt(p, S, **options):
        for batch in S:
            p = p - case.alpha * torch.func.grad(loss)(p, batch)
        return p

    def episode(p, S, Q):
        return loss(adapt(p, S, first_order=first_order), Q)

    return over_tasks(case, lambda S, Q: unpack(torch.func.grad(episode)(t, S, Q)))


@wrong("fomaml", "a habit from Caffe: biases learn at twice the inner rate")
def caffe_biases(case):
    def gradient(S, Q):
        net = Model(case)
        named = list(zip(case.names, net.parameters(), strict=True))
        groups = [
            {"params": [p for name, p in named if name[0] != "b"]},
            {"params": [p for name, p in named if name[0] == "b"], "lr": 2 * case.alpha},
        ]
        train(net, torch.optim.SGD(groups, lr=case.alpha), S)
        return torch.autograd.grad(net(Q), list(net.parameters()))

    return over_tasks(case, gradient)


@wrong("fomaml", "the meta-model's zero_grad is inside the task loop: only the last task's gradient is left")
def zeroed_for_each_task(case):
    meta = Model(case)
    for S, Q in tasks_of(case):
        meta.zero_grad()
        learner = deepcopy(meta)
        train(learner, plain_sgd(learner, case), S)
        weight = len(case.tasks) if case.conventions["tasks"] == "mean" else 1
        g = torch.autograd.grad(learner(Q) / weight, list(learner.parameters()))
        for p, d in zip(meta.parameters(), g, strict=True):
            p.grad = d if p.grad is None else p.grad + d
    return grads(meta)


@wrong("fomaml", "the inner SGD is that of a CIFAR recipe: Nesterov momentum 0.9, and weight decay 0.0005", mistakes=2)
def cifar_recipe(case):
    def gradient(S, Q):
        net = Model(case)
        train(net, plain_sgd(net, case, momentum=0.9, nesterov=True, weight_decay=5e-4), S)
        net.zero_grad()
        net(Q).backward()
        return grads(net)

    return over_tasks(case, gradient)


@wrong("fomaml", "the network always has relu; inner gradients are clipped by value to ±0.5", mistakes=2, tasks="mean")
def always_relu_and_clamped(case):
    total = []
    for S, Q in tasks_of(case):
        net = Model(case, net=partial(mlp, act=F.relu))
        opt = plain_sgd(net, case)
        for batch in S:
            opt.zero_grad()
            net(batch).backward()
            torch.nn.utils.clip_grad_value_(net.parameters(), 0.5)
            opt.step()
        total.append(torch.autograd.grad(net(Q), list(net.parameters())))
    return [torch.stack(leaves).mean(0) for leaves in zip(*total, strict=True)]


# --- ANIL ---


def split(case, theta):
    """Body and head. Skip: these programs take for granted that there is a head."""
    if not case.head:
        raise Skip("there is no head")
    return theta[: -case.head], theta[-case.head :]


def anil_of(case, adapt):
    """∇ Σ loss(adapt(loss, body, head, supports), query)."""

    def episode(loss, theta, S, Q):
        return loss(adapt(loss, *split(case, theta), S), Q)

    return maml_of(case, episode)


@right("anil", "all gradients are taken, and multiplied by 1 for the head and 0 for the body")
def masked_steps(case):
    def episode(loss, theta, S, Q):
        mask = [float(i >= len(theta) - case.head) for i in range(len(theta))]
        fast = theta
        for batch in S:
            g = inner_grad(loss(fast, batch), fast)
            fast = [p - case.alpha * m * d for p, m, d in zip(fast, mask, g, strict=True)]
        return loss(fast, Q)

    return maml_of(case, episode)


@wrong("anil", "the support features are computed under no_grad: the body has no gradient through the adapted heads")
def frozen_support_features(case):
    def adapt(loss, body, head, S):
        frozen = [p.detach() for p in body]
        return [*body, *inner_loop(lambda h, batch: loss([*frozen, *h], batch), head, S, case.alpha)]

    return anil_of(case, adapt)


@wrong("anil", "the outer gradient is taken in the body and the adapted head: the head's is first-order")
def grad_in_the_fast_head(case):
    body, head = split(case, theta_of(case))
    loss = make_loss(case)

    def gradient(S, Q):
        fast = inner_loop(lambda h, batch: loss([*body, *h], batch), head, S, case.alpha)
        return torch.autograd.grad(loss([*body, *fast], Q), [*body, *fast])

    return over_tasks(case, gradient)


@wrong("anil", "the classifier's weights adapt, and its bias was forgotten")
def classifier_without_its_bias(case):
    weights = [i for i, name in enumerate(case.names[-(case.head or 0) :]) if not name.startswith("b")]
    if not weights:
        raise Skip("the head is a bias alone")

    def adapt(loss, body, head, S):
        fast = list(head)
        for batch in S:
            grad = inner_grad(loss([*body, *fast], batch), [fast[i] for i in weights])
            for i, g in zip(weights, grad, strict=True):
                fast[i] = fast[i] - case.alpha * g
        return [*body, *fast]

    return anil_of(case, adapt)


@wrong("anil", "params[:head] for params[-head:]: the first arrays adapt, not the last")
def slice_from_the_front(case):
    def episode(loss, params, S, Q):
        split(case, params)
        fast, rest = params[: case.head], params[case.head :]
        for batch in S:
            fast = sgd(fast, inner_grad(loss([*fast, *rest], batch), fast), case.alpha)
        return loss([*fast, *rest], Q)

    return maml_of(case, episode)


@wrong("anil", "every task gets a new head, which starts from zeros: the head is not meta-learned")
def fresh_zero_head(case):
    def adapt(loss, body, head, S):
        new = [torch.zeros_like(p, requires_grad=True) for p in head]
        return [*body, *inner_loop(lambda h, batch: loss([*body, *h], batch), new, S, case.alpha)]

    return anil_of(case, adapt)


@wrong("anil", "the wrapper is around the whole model: all arrays adapt; and it is first-order", mistakes=2)
def wrapped_whole_model(case):
    def gradient(S, Q):
        learner = Model(case)
        train(learner, plain_sgd(learner, case), S)
        learner.zero_grad()
        learner(Q).backward()
        return grads(learner)

    return over_tasks(case, gradient)


@wrong(
    "anil",
    "softmax before the cross-entropy; the head learns at ten times α; one step only, on the first batch",
    mistakes=3,
)
def linear_probe(case, head_lr=10):
    def softmaxed(case, out, y, reduction):
        return criterion(case, out.softmax(1) if case.loss["kind"] == "cross_entropy" else out, y)

    theta, loss = theta_of(case), make_loss(case, criterion=softmaxed)
    body, head = split(case, theta)
    losses = []
    for S, Q in tasks_of(case):
        probe = inner_loop(lambda h, batch: loss([*body, *h], batch), head, S[:1], head_lr * case.alpha)
        losses.append(loss([*body, *probe], Q))
    return outer(theta, mean_or_sum(case, losses))


# --- Reptile ---


def away(case, before, after, steps):
    """(θ − φ) in the unit the case asks for."""
    return [(b - a.detach()) / unit(case, steps) for b, a in zip(before, after, strict=True)]


@right("reptile", "α times the sum of the inner gradients, in one vector")
def sum_of_inner_gradients(case):
    t, loss, unpack = as_vector(case)

    def gradient(S, _):
        phi, total = t, torch.zeros_like(t)
        for batch in S:
            g = torch.func.grad(loss)(phi, batch)
            phi, total = phi - case.alpha * g, total + g
        return unpack(total * (case.alpha / unit(case, S)))

    return over_tasks(case, gradient)


@wrong("reptile", "p.grad is φ − θ: the optimiser that descends it moves away")
def adapted_minus_initial(case):
    def gradient(S, _):
        net = Model(case)
        train(net, plain_sgd(net, case), S)
        return [-d for d in away(case, theta_of(case), net.parameters(), S)]

    return [d.detach() for d in over_tasks(case, gradient)]


@wrong("reptile", "state_dict() without a deepcopy is an alias: the old weights are the new ones, the difference is 0")
def aliased_snapshot(case):
    net = Model(case)

    def gradient(S, _):
        before = net.state_dict()
        train(net, plain_sgd(net, case), S)
        step = away(case, before.values(), net.parameters(), S)
        net.load_state_dict(before)
        return step

    return over_tasks(case, gradient)


@wrong("reptile", "serial Reptile: the weights move a tenth of the way after each task, and the next task starts there")
def serial(case, epsilon=0.1):
    net = Model(case)

    def gradient(S, _):
        before = deepcopy(net.state_dict())
        train(net, plain_sgd(net, case), S)
        after = net.state_dict()
        step = away(case, before.values(), net.parameters(), S)
        net.load_state_dict({name: w + epsilon * (after[name] - w) for name, w in before.items()})
        return step

    return over_tasks(case, gradient)


@wrong("reptile", "the inner optimiser is Adam with β1 = 0, as in OpenAI's code, at the rate α")
def adam_as_openai(case):
    def gradient(S, _):
        net = Model(case)
        train(net, torch.optim.Adam(net.parameters(), lr=case.alpha, betas=(0.0, 0.999)), S)
        return away(case, [torch.tensor(t) for t in case.theta], net.parameters(), S)

    return over_tasks(case, gradient)


@wrong("reptile", "the arrays are updated one after the other, each gradient at the arrays that moved already")
def one_array_after_the_other(case):
    def gradient(S, _):
        net = Model(case)
        for batch in S:
            for p in net.parameters():
                p.data -= case.alpha * torch.autograd.grad(net(batch), p)[0]
        return away(case, theta_of(case), net.parameters(), S)

    return [d.detach() for d in over_tasks(case, gradient)]


@wrong("reptile", "the query batch is trained on too, as one more inner step")
def trained_on_the_query(case):
    def gradient(S, Q):
        batches = S if Q is None else [*S, Q]
        net = Model(case)
        before = [p.detach().clone() for p in net.parameters()]
        train(net, plain_sgd(net, case), batches)
        return away(case, before, net.parameters(), batches)

    return over_tasks(case, gradient)


@wrong("reptile", "the inner SGD has momentum 0.9; it is made once, so its buffers go from task to task", mistakes=2)
def one_sgd_for_all_tasks(case):
    net = Model(case)
    start = deepcopy(net.state_dict())
    optimiser = plain_sgd(net, case, momentum=0.9)

    def gradient(S, _):
        net.load_state_dict(start)
        train(net, optimiser, S)
        return away(case, start.values(), net.parameters(), S)

    return over_tasks(case, gradient)


@wrong(
    "reptile", "the inner rate falls along a cosine; the displacement is multiplied by the outer step, 0.1", mistakes=2
)
def cosine_and_outer_step(case, outer_step=0.1):
    def gradient(S, _):
        net = Model(case)
        before = parameters_to_vector(net.parameters()).detach()
        optimiser = plain_sgd(net, case)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(1, len(S)))
        for batch in S:
            train(net, optimiser, [batch])
            schedule.step()
        step = outer_step * (before - parameters_to_vector(net.parameters()).detach()) / unit(case, S)
        vector_to_parameters(step, net.parameters())
        return [p.detach() for p in net.parameters()]

    return over_tasks(case, gradient)


# --- Joint training ---


@right("joint", "backward task by task, the losses in a stack that is given its weights")
def weighted_backward(case):
    net = Model(case)
    losses = torch.stack([net(Q) for _, Q in tasks_of(case)])
    losses.backward(torch.full_like(losses, 1 / len(losses) if case.conventions["tasks"] == "mean" else 1))
    return grads(net)


@wrong("joint", "trained on all of a task's data as one batch, supports and query")
def all_data_pooled(case):
    net = Model(case)
    mean_or_sum(case, [net(merged(case, [*S, Q])) for S, Q in tasks_of(case)]).backward()
    return grads(net)


@wrong("joint", "optimizer.step() after each task: the gradients that are summed are taken at weights that move")
def moving_while_summing(case):
    net = Model(case)
    optimiser = plain_sgd(net, case)

    def gradient(_, Q):
        optimiser.zero_grad()
        net(Q).backward()
        g = [p.grad.clone() for p in net.parameters()]
        optimiser.step()
        return g

    return over_tasks(case, gradient)


@wrong("joint", "label smoothing of 0.1 from the training recipe")
def smoothed_labels(case):
    def smooth(case, out, y, reduction):
        if case.loss["kind"] != "cross_entropy":
            return criterion(case, out, y)
        return F.cross_entropy(out, y, reduction=case.conventions["examples"], label_smoothing=0.1)

    net = Model(case, criterion=smooth)
    mean_or_sum(case, [net(Q) for _, Q in tasks_of(case)]).backward()
    return grads(net)
