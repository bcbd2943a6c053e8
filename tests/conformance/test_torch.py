"""PyTorch modules, audited as their owners would: each implementation here is one that people write."""

import copy
import re
from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not among refmeta's dependencies")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402

from refmeta.conformance import Skip  # noqa: E402
from refmeta.torch import audit, check_step  # noqa: E402

LR, STEPS = 0.2, 2
GIVEN = {"lr": LR, "steps": STEPS}


def network(*layers, seed=0):
    """A small network, or one of these layers; PyTorch's generator stays where it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = [layer() for layer in layers] or [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)]
        return nn.Sequential(*made)


def batches(n, labels=True, shots=6, seed=0, inputs=3, outputs=3):
    rng = np.random.default_rng(seed)

    def y():
        return rng.integers(0, outputs, shots) if labels else rng.normal(size=(shots, outputs)).astype("float32")

    pairs = [(rng.normal(size=(shots, inputs)).astype("float32"), y()) for _ in range(n)]
    return [(torch.tensor(x), torch.tensor(y)) for x, y in pairs]


def tasks_of(n=3, **options):
    given = batches(2 * n, **options)
    return list(zip(given[::2], given[1::2], strict=True))


class MAML(nn.Module):
    """The usual one: an inner loop with functional weights, and the mean of the query losses."""

    def __init__(self, net, criterion=F.cross_entropy, lr=LR, steps=STEPS, first_order=False):
        super().__init__()
        self.net, self.criterion, self.lr, self.steps, self.first_order = net, criterion, lr, steps, first_order

    def adapted(self, x, y, names=None):
        weights = dict(self.net.named_parameters())
        inner = [name for name, p in weights.items() if p.requires_grad and (names is None or name in names)]
        for _ in range(self.steps):
            loss = self.criterion(functional_call(self.net, weights, (x,)), y)
            found = torch.autograd.grad(
                loss, [weights[n] for n in inner], create_graph=not self.first_order, allow_unused=True
            )
            weights |= {n: weights[n] - self.lr * g for n, g in zip(inner, found, strict=True) if g is not None}
        return weights

    def forward(self, tasks, names=None):
        losses = []
        for (x, y), (xq, yq) in tasks:
            losses.append(self.criterion(functional_call(self.net, self.adapted(x, y, names), (xq,)), yq))
        return torch.stack(losses).mean()


def meta_loss(net, tasks, **options):
    return MAML(net, **options)(tasks)


def first_order(net, tasks):
    return meta_loss(net, tasks, first_order=True)


def gradients(net, tasks, **options):
    return torch.autograd.grad(meta_loss(net, tasks, **options), list(net.parameters()))


def by_name(net, tasks):
    return dict(zip(dict(net.named_parameters()), gradients(net, tasks), strict=True))


def judged(meta_gradient=meta_loss, net=None, criterion=F.cross_entropy, tasks=None, **options):
    report = audit(net or network(), criterion, meta_gradient, tasks or tasks_of(), **{**GIVEN, **options})
    assert report.passed == (report.verdicts[0].kind == "pass"), str(report)
    return report.verdicts[0]


def suspects(verdict):
    return [e.suspects for e in verdict.explanations]


def test_the_usual_class_gets_its_verdict_in_five_lines():
    net, tasks, criterion = network(), tasks_of(), F.cross_entropy

    def my_gradient(net, tasks):
        return MAML(net)(tasks)  # the meta-loss

    report = audit(net, criterion, my_gradient, tasks, lr=0.2, steps=2)
    assert report.passed and report.rows[0].digits > 9 and "the mean over the tasks" in report.verdicts[0].text


# --- Every form of answer ---


def left_in_grad(net, tasks):
    meta_loss(net, tasks).backward()


def added_up_in_grad(net, tasks):
    """Task by task, as a memory saver."""
    for task in tasks:
        (meta_loss(net, [task]) / len(tasks)).backward()


def with_torch_func(net, tasks):
    """No module is called twice: all is a function of a dict."""

    def loss(params, x, y):
        return F.cross_entropy(functional_call(net, params, (x,)), y)

    def query_loss(params, task):
        (x, y), query = task
        for _ in range(STEPS):
            found = torch.func.grad(loss)(params, x, y)
            params = {name: p - LR * found[name] for name, p in params.items()}
        return loss(params, *query)

    params = {name: p.detach() for name, p in net.named_parameters()}
    return torch.func.grad(lambda p: sum(query_loss(p, task) for task in tasks))(params)


FORMS = {
    "meta-loss": meta_loss,
    "meta-loss of shape (1,)": lambda *a: meta_loss(*a)[None],
    "tuple": gradients,
    "list": lambda *a: list(gradients(*a)),
    "generator": lambda *a: (g for g in gradients(*a)),
    "dict": by_name,
    "dict in another order": lambda *a: dict(reversed(by_name(*a).items())),
    "dict_values": lambda *a: by_name(*a).values(),
    "state_dict": lambda *a: OrderedDict(by_name(*a)),
    "ParameterList": lambda *a: nn.ParameterList(map(nn.Parameter, gradients(*a))),
    "with graph": lambda net, tasks: torch.autograd.grad(meta_loss(net, tasks), net.parameters(), create_graph=True),
    "grad": left_in_grad,
    "grad by task": added_up_in_grad,
    "torch.func": with_torch_func,
    "not contiguous": lambda *a: [g.t().contiguous().t() for g in gradients(*a)],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_answer_is_taken(form):
    assert judged(FORMS[form]).kind == "pass"


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_answer_is_refused_in_every_form(form):
    """The inner loop takes the step size of the audit, which here is another."""
    verdict = judged(FORMS[form], lr=0.05)
    assert suspects(verdict) == [(f"alpha={LR}",)]


@pytest.mark.parametrize(
    "answer, error, message",
    [
        (lambda *a: [g.t() for g in gradients(*a)], ValueError, r"0.weight has shape \(3, 4\), expected \(4, 3\)"),
        (lambda *a: gradients(*a)[:-1], ValueError, "returned 3 gradients, not 4: 0.weight, 0.bias, 2.weight"),
        (lambda *a: [], ValueError, "returned 0 gradients, not 4: "),
        (lambda *a: {"w": gradients(*a)[0]}, ValueError, "returned a gradient of 'w': expected 0.weight, 0.bias"),
        (lambda *a: {"net.0.weight": gradients(*a)[0]}, ValueError, "returned a gradient of 'net.0.weight'"),
        (
            lambda *a: torch.cat([g.reshape(-1) for g in gradients(*a)]),
            TypeError,
            r"meta_gradient returned \(31,\) without a graph",
        ),
        (lambda *a: [g.numpy() for g in gradients(*a)], TypeError, "returned ndarray for 0.weight: expected a tensor"),
        (lambda *a: [float(g.sum()) for g in gradients(*a)], TypeError, "returned float for 0.weight"),
        (lambda *a: meta_loss(*a).item(), (TypeError, ValueError), "meta_gradient returned"),
        (lambda *a: meta_loss(*a).detach(), (TypeError, ValueError), "meta_gradient returned"),
    ],
)
def test_what_is_no_gradient_is_refused(answer, error, message):
    with pytest.raises(error, match=message):
        judged(answer)


# --- Networks ---


def test_frozen_parameters_are_constants():
    net = network()
    net[0].weight.requires_grad_(False)
    assert judged(net=net).kind == "pass"
    trained = lambda net: [p for p in net.parameters() if p.requires_grad]  # noqa: E731
    assert judged(lambda n, t: torch.autograd.grad(meta_loss(n, t), trained(n)), net).kind == "pass"
    with_none = lambda n, t: [None, *torch.autograd.grad(meta_loss(n, t), trained(n))]  # noqa: E731
    assert judged(with_none, net).kind == "pass" and judged(left_in_grad, net).kind == "pass"
    assert suspects(judged(first_order, net)) == [("first_order",)]


def test_a_network_that_is_frozen_altogether_is_refused():
    net = network().requires_grad_(False)
    with pytest.raises(ValueError, match="empty"):
        judged(net=net)


class Unused(nn.Module):
    """With a layer and a temperature, a number without axes, that the loss does not reach."""

    def __init__(self):
        super().__init__()
        self.aux, self.temperature, self.body = nn.Linear(2, 2), nn.Parameter(torch.ones(())), network()

    def forward(self, x):
        return self.body(x)


def test_parameters_that_are_not_used_may_be_none_zero_or_left_out():
    def of(fill):
        def answer(net, tasks):
            found = torch.autograd.grad(meta_loss(net, tasks), net.parameters(), allow_unused=True)
            return fill(dict(net.named_parameters()), found)

        return answer

    fills = {
        "none": lambda named, found: found,
        "zero": lambda named, found: [
            torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), found, strict=True)
        ],
        "left out": lambda named, found: {n: g for n, g in zip(named, found, strict=True) if g is not None},
    }
    for fill in fills.values():
        assert judged(of(fill), Unused()).kind == "pass"
    assert judged(net=Unused()).kind == judged(left_in_grad, Unused()).kind == "pass"
    ones = of(lambda named, found: [torch.ones_like(p) if g is None else g for p, g in zip(named.values(), found)])  # noqa: B905
    assert judged(ones, Unused()).kind == "unexplained"


def test_a_none_where_there_is_a_gradient_is_a_zero():
    assert judged(lambda *a: [None, *gradients(*a)[1:]]).kind == "unexplained"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.out.weight = self.words.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.words(tokens).mean(1)))


def sentences(n=2, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    made = [torch.tensor(rng.integers(0, 7, (6, 3))) for _ in range(2 * n)]
    given = [(x, x[:, 0] % classes) for x in made]
    return list(zip(given[::2], given[1::2], strict=True))


def test_tied_weights_and_whole_numbers_as_inputs():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Tied()
    assert judged(net=net, tasks=sentences()).kind == "pass"
    assert suspects(judged(first_order, net, tasks=sentences())) == [("first_order",)]


def test_batch_norm_in_train_mode_passes_with_a_remark():
    net = network(lambda: nn.Linear(3, 4), lambda: nn.BatchNorm1d(4), nn.Tanh, lambda: nn.Linear(4, 3))
    found = judged(net=net)
    assert found.kind == "pass" and "every call of the network changes its 1.running_mean" in found.text
    wrong = judged(first_order, net)
    assert suspects(wrong) == [("first_order",)] and "every call of the network changes its" in wrong.text
    assert "changes its" not in judged(net=net.eval()).text and net[1].num_batches_tracked == 0


def test_dropout_that_is_on_is_said_and_off_it_is_no_matter():
    net = network(lambda: nn.Linear(3, 4), nn.Dropout, lambda: nn.Linear(4, 3))
    found = judged(lambda *_: pytest.fail("asked"), net)
    assert found.kind == "unrepeatable" and "switch off dropout (net.eval())" in found.text
    assert judged(net=net.eval()).kind == "pass"
    found = judged(lambda net, tasks: meta_loss(net.train(), tasks), net)
    assert found.kind == "unrepeatable" and "the meta-gradient gave two answers" in found.text


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.qkv, self.head = nn.Embedding(7, 4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, tokens):
        q, k, v = self.qkv(self.words(tokens)).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


def test_scaled_dot_product_attention_is_audited_by_its_plain_form():
    """Its fused kernel has no second derivative, and the caller chooses another too."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Attention()

    def plain(net, tasks):
        with sdpa_kernel(SDPBackend.MATH):
            return gradients(net, tasks)

    assert judged(plain, net, tasks=sentences(classes=3)).kind == "pass"
    assert suspects(judged(first_order, net, tasks=sentences(classes=3))) == [("first_order",)]


def relu_at_zero():
    net = network(lambda: nn.Linear(3, 8), nn.ReLU, lambda: nn.Linear(8, 8), nn.ReLU, lambda: nn.Linear(8, 3))
    for p in list(net.parameters())[1::2]:
        nn.init.zeros_(p)
    return net


def test_relu_with_zero_biases_on_black_images():
    tasks = [((x * (torch.arange(6)[:, None] > 2), y), query) for (x, y), query in tasks_of()]
    for dtype in ("float64", "float32"):
        assert judged(net=relu_at_zero(), tasks=tasks, dtype=dtype).kind == "pass"
        assert suspects(judged(first_order, relu_at_zero(), tasks=tasks, dtype=dtype)) == [("first_order",)]


def test_parametrizations_and_recurrent_layers():
    from torch.nn.utils.parametrizations import weight_norm

    normed = network(lambda: weight_norm(nn.Linear(3, 4)), nn.Tanh, lambda: nn.Linear(4, 3))
    assert judged(net=normed).kind == "pass"

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.gru(x[:, None].repeat(1, 2, 1))[0][:, -1])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert judged(net=Recurrent()).kind == "pass"


# --- Criteria ---


def test_a_criterion_may_be_a_module_with_weights():
    weights = torch.tensor([0.2, 1.0, 3.0])
    criterion = nn.CrossEntropyLoss(weight=weights)

    def weighted(net, tasks):
        mine = nn.CrossEntropyLoss(weight=weights.to(next(net.parameters())))
        return meta_loss(net, tasks, criterion=mine)

    assert judged(weighted, criterion=criterion).kind == "pass" and criterion.weight.dtype == torch.float32
    assert judged(weighted, criterion=criterion, dtype="float32").kind == "pass"
    assert judged(weighted).kind != "pass"


def test_regression_under_squared_error():
    tasks = tasks_of(labels=False)
    mse = lambda net, tasks: meta_loss(net, tasks, criterion=F.mse_loss)  # noqa: E731
    assert judged(mse, criterion=nn.MSELoss(), tasks=tasks).kind == "pass"
    summed = judged(mse, criterion=nn.MSELoss(reduction="sum"), tasks=tasks, lr=0.01)
    assert summed.kind != "pass"


@pytest.mark.parametrize(
    "criterion, error, message",
    [
        (nn.CrossEntropyLoss(reduction="none"), ValueError, r"criterion returned a tensor of shape \(6,\)"),
        (
            lambda out, y: F.cross_entropy(out, y).item(),
            TypeError,
            "criterion returned float: expected a tensor, still",
        ),
        (lambda out, y: F.cross_entropy(out, y).detach().numpy(), TypeError, "criterion returned ndarray"),
        (lambda out, y: None, TypeError, "criterion returned NoneType"),
    ],
)
def test_what_is_no_loss_is_refused(criterion, error, message):
    with pytest.raises(error, match=message):
        judged(criterion=criterion)


def test_a_loss_that_is_cut_off_from_its_graph_is_refused():
    with pytest.raises(TypeError, match="criterion returned .*attached to its graph"):
        judged(criterion=lambda out, y: F.cross_entropy(out, y).detach())


def test_whose_meta_gradient_was_never_written_is_told_that_it_is_zero():
    assert suspects(judged(lambda *_: None)) == [("zero",)]


def test_targets_that_broadcast_are_named():
    """(n, 1) − (n,) is (n, n); PyTorch warns of it."""
    net = network(lambda: nn.Linear(3, 4), nn.Tanh, lambda: nn.Linear(4, 1))

    def broadcast(net, tasks):
        return meta_loss(
            net,
            [((x, y[:, 0]), (xq, yq[:, 0])) for (x, y), (xq, yq) in tasks],
            criterion=lambda out, y: ((out - y) ** 2).mean(),
        )

    tasks = tasks_of(labels=False, outputs=1)
    assert suspects(judged(broadcast, net, F.mse_loss, tasks)) == [("mean_broadcast",)]


def test_a_loss_of_shape_1_is_a_number():
    assert judged(criterion=lambda out, y: F.cross_entropy(out, y)[None]).kind == "pass"


# --- Tasks ---


def test_tasks_come_in_every_form():
    pairs = tasks_of()
    forms = {
        "pairs": (pairs, {}),
        "four": ([(*support, *query) for support, query in pairs], {}),
        "lists": ([[list(support), list(query)] for support, query in pairs], {}),
        "zip": (zip([s for s, _ in pairs], [q for _, q in pairs], strict=True), {}),
        "generator": ((task for task in pairs), {}),
        "four zipped": (zip(*(map(torch.stack, zip(*[(*s, *q) for s, q in pairs], strict=True))), strict=True), {}),
        "a batch for each step": ([([support] * STEPS, query) for support, query in pairs], {"steps": None}),
    }

    def answer(net, tasks):
        assert all(isinstance(part, torch.Tensor) for task in tasks for part in flat(task))
        tasks = [task if len(task) == 2 else (task[:2], task[2:]) for task in tasks]
        tasks = [(s[0] if not isinstance(s[0], torch.Tensor) else s, q) for s, q in tasks]
        return meta_loss(net, tasks)

    for tasks, more in forms.values():
        assert audit(network(), F.cross_entropy, answer, tasks, **{**GIVEN, **more}).passed


def flat(tree):
    return [part for child in tree for part in flat(child)] if isinstance(tree, (list, tuple)) else [tree]


def test_a_batch_for_each_step_is_taken_in_its_turn():
    first, second, third, query = batches(4)

    def answer(net, tasks, order=(0, 1, 2)):
        weights = dict(net.named_parameters())
        for x, y in [tasks[0][0][i] for i in order]:
            loss = F.cross_entropy(functional_call(net, weights, (x,)), y)
            found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {n: w - LR * g for (n, w), g in zip(weights.items(), found, strict=True)}
        return F.cross_entropy(functional_call(net, weights, (tasks[0][1][0],)), tasks[0][1][1])

    tasks = [([first, second, third], query)]
    assert judged(answer, tasks=tasks, steps=None).kind == "pass"
    assert suspects(judged(lambda *a: answer(*a, (2, 1, 0)), tasks=tasks, steps=None)) == [("batches_reversed",)]
    assert suspects(judged(lambda *a: answer(*a, (0, 1)), tasks=tasks, steps=None)) == [("one_step_short",)]


def test_a_number_of_steps_is_given_where_it_is_needed():
    with pytest.raises(ValueError, match="steps: expected the number of inner steps; got None"):
        judged(steps=None)
    with pytest.raises(ValueError, match="steps: expected None, because each task has a batch for each step; got 2"):
        judged(tasks=[([s] * 2, q) for s, q in tasks_of()])
    with pytest.raises(TypeError, match=r"tasks\[0\]: expected .*got 3 things"):
        judged(tasks=[(*s, q) for s, q in tasks_of()])
    assert suspects(judged(steps=STEPS + 1)) == [("one_step_short",)]
    assert suspects(judged(steps=STEPS - 1)) == [("one_step_extra",)]


def test_arrays_of_numpy_are_handed_on_as_they_are():
    tasks = [tuple((x.double().numpy(), y.numpy()) for x, y in task) for task in tasks_of()]

    def answer(net, tasks):
        return meta_loss(net, [tuple(tuple(map(torch.as_tensor, b)) for b in task) for task in tasks])

    assert judged(answer, tasks=tasks).kind == "pass"


@pytest.mark.parametrize("head", [2, "2", "module"])
def test_the_head_is_a_module_its_name_or_a_number_of_parameters(head):
    net = network()
    head = net[2] if head == "module" else head

    def anil(net, tasks):
        return MAML(net)(tasks, names={"2.weight", "2.bias"})

    assert judged(anil, net, algorithm="anil", head=head).kind == "pass"
    assert suspects(judged(net=net, algorithm="anil", head=head)) == [("body_adapted",)]
    assert judged(anil, net, algorithm="anil").kind == "pass"  # two, if nothing is said
    assert judged(anil, net, algorithm="anil", head=net[0]).kind != "pass"


@pytest.mark.parametrize("head", ["classifier", "2.weigh", "0.", nn.Linear(4, 3), ""])
def test_a_head_without_parameters_is_refused(head):
    with pytest.raises(ValueError, match="head: .* has none of the parameters 0.weight, 0.bias, 2.weight, 2.bias"):
        judged(algorithm="anil", head=head)


def test_a_head_of_more_parameters_than_there_are_is_refused():
    with pytest.raises(ValueError, match="head: "):
        judged(algorithm="anil", head=9)


def test_a_name_is_no_part_of_a_longer_one():
    layers = [lambda: nn.Linear(3, 3), *[nn.Tanh] * 9, lambda: nn.Linear(3, 3)]
    net = network(*layers[:1], *layers)  # parameters 0, 1 and 11

    def anil(net, tasks):
        return MAML(net)(tasks, names={"1.weight", "1.bias"})

    assert judged(anil, net, algorithm="anil", head="1").kind == "pass"


# --- The caller's things ---


@pytest.mark.parametrize("meta_gradient", [meta_loss, left_in_grad, first_order])
def test_the_network_its_gradients_and_the_tasks_are_as_before(meta_gradient):
    net, tasks = network(), tasks_of()
    for p in net.parameters():
        p.grad = torch.full_like(p, 3.0)
    before = copy.deepcopy((net.state_dict(), [p.grad for p in net.parameters()], tasks))

    def careless(net, tasks):
        assert all(p.grad is None for p in net.parameters())  # the copy begins without
        found = meta_gradient(net, tasks)
        if found is not None:
            found = torch.autograd.grad(found, list(net.parameters()))
        with torch.no_grad():
            for p in net.parameters():
                p.add_(1)
            for part in flat(tasks):
                part.zero_()
        net.eval()
        return found

    verdict = judged(careless, net, tasks=tasks, dtype="float32")
    assert (verdict.kind == "pass") == (meta_gradient is not first_order)
    assert net.training and all(p.dtype == torch.float32 for p in net.parameters())
    after = (net.state_dict(), [p.grad for p in net.parameters()], tasks)
    for a, b in zip(flat([*before[0].values(), *before[1:]]), flat([*after[0].values(), *after[1:]]), strict=True):
        assert torch.equal(a, b)


def test_labels_that_are_permuted_in_place_do_no_harm():
    def shuffled(net, tasks):
        found = gradients(net, tasks)
        for _, (_, y) in tasks:
            y[:] = y.flip(0)
        return found

    assert judged(shuffled).kind == "pass"


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_the_context_of_the_call_is_no_matter(context):
    with context():
        assert judged().kind == "pass" and suspects(judged(first_order)) == [("first_order",)]
        assert torch.is_grad_enabled() == (context is torch.enable_grad)


def test_the_callers_errors_come_through():
    class Mine(Exception):
        pass

    def raising(*_):
        raise Mine

    with pytest.raises(Mine):
        judged(raising)
    with pytest.raises(Mine):
        judged(criterion=raising)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        judged(tasks=tasks_of(inputs=5))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": -0.1}, "got -0.1"),
        ({"lr": float("nan")}, "got nan"),
        ({"algorithm": "mamll"}, "algorithm: expected one of maml, fomaml, anil, reptile, joint; got 'mamll'"),
        ({"tasks_are": "average"}, "tasks_are: expected 'sum', 'mean' or None; got 'average'"),
        ({"dtype": "float16"}, "dtype: expected float64 or float32, got 'float16'"),
    ],
)
def test_arguments_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        judged(lambda *_: pytest.fail("asked"), **options)


def test_no_tasks_are_refused():
    with pytest.raises(ValueError, match="at least one task"):
        audit(network(), F.cross_entropy, meta_loss, [], **GIVEN)


def test_float32_is_asked_beside_float64():
    seen = []

    def watching(net, tasks):
        seen.append({p.dtype for p in net.parameters()} | {x.dtype for x, _ in flat_batches(tasks)})
        assert all(y.dtype == torch.int64 for _, y in flat_batches(tasks))
        return meta_loss(net, tasks)

    report = audit(network(), F.cross_entropy, watching, tasks_of(), dtype="float32", **GIVEN)
    assert report.passed and [row.id for row in report.rows] == [f"your network in float{n}" for n in (64, 32)]
    assert seen == [{torch.float64}, {torch.float32}]
    assert report.rows[0].digits > 9 and 5 < report.rows[1].digits < 9


def flat_batches(tasks):
    return [batch for task in tasks for batch in task]


# --- Other algorithms, and what is wrong ---


def adapted(net, x, y):
    """deepcopy and SGD."""
    fast = copy.deepcopy(net)
    optimiser = torch.optim.SGD(fast.parameters(), LR)
    for _ in range(STEPS):
        optimiser.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        optimiser.step()
    return fast


def fomaml(net, tasks):
    """The gradients of the copies are added up."""
    for (x, y), (xq, yq) in tasks:
        fast = adapted(net, x, y)
        found = torch.autograd.grad(F.cross_entropy(fast(xq), yq), list(fast.parameters()))
        for p, g in zip(net.parameters(), found, strict=True):
            p.grad = g if p.grad is None else p.grad + g


def reptile(net, tasks):
    total = [torch.zeros_like(p) for p in net.parameters()]
    for (x, y), _ in tasks:
        fast = adapted(net, x, y)
        total = [t + (p - q) for t, p, q in zip(total, net.parameters(), fast.parameters(), strict=True)]
    return total


def joint(net, tasks):
    return sum(F.cross_entropy(net(x), y) for _, (x, y) in tasks)


@pytest.mark.parametrize("algorithm, answer", [("fomaml", fomaml), ("reptile", reptile), ("joint", joint)])
def test_the_other_algorithms(algorithm, answer):
    assert judged(answer, algorithm=algorithm, tasks_are="sum").kind == "pass"
    assert judged(meta_loss, algorithm=algorithm).kind == "bug"
    assert judged(lambda net, tasks: answer(net, tasks[:-1]), algorithm=algorithm).kind == "bug"


def test_reptile_needs_no_queries():
    tasks = [(support, None) for support, _ in tasks_of()]
    assert judged(reptile, tasks=tasks, algorithm="reptile").kind == "pass"


def short(net, tasks):
    return meta_loss(net, tasks, steps=STEPS - 1)


def ascent(net, tasks):
    return meta_loss(net, tasks, lr=-LR)


def swapped(net, tasks):
    return meta_loss(net, [(query, support) for support, query in tasks])


def lost(net, tasks):
    return meta_loss(net, tasks[-1:])


@pytest.mark.parametrize(
    "answer, found",
    [
        (first_order, (("first_order",), "all")),
        (fomaml, (("first_order",), "all")),
        (ascent, (("inner_ascent",), "all")),
        (swapped, (("swapped",), "all")),
        (lost, ((), "last")),
        (joint, (("no_adaptation",), "all")),
    ],
)
def test_what_is_wrong_is_named(answer, found):
    same = (("all_swapped",), "all")  # as "swapped" where there is one support batch
    assert [e[:2] for e in judged(answer).explanations if e[:2] != same] == [found]


def test_of_two_steps_on_one_batch_a_restart_is_a_step_too_few():
    assert suspects(judged(short)) == [("stale_restart",), ("one_step_short",)]


# --- check_step: the vectors, on modules ---


def step(net, criterion, tasks, lr, head=None, first_order=False, reduce="mean"):
    """MAML; ANIL with a head."""
    losses = []
    for supports, (xq, yq) in tasks:
        weights = dict(net.named_parameters())
        moving = [name for name in weights if head is None or name in head]
        for x, y in supports if moving else []:
            loss = criterion(functional_call(net, weights, (x,)), y)
            found = torch.autograd.grad(loss, [weights[n] for n in moving], create_graph=not first_order)
            weights = weights | {n: weights[n] - lr * g for n, g in zip(moving, found, strict=True)}
        losses.append(criterion(functional_call(net, weights, (xq,)), yq))
    return getattr(torch.stack(losses), reduce)()


def fomaml_step(*a):
    return step(*a, first_order=True)


def reptile_step(net, criterion, tasks, lr):
    """θ − φ, the mean over tasks."""
    total = dict.fromkeys(dict(net.named_parameters()), 0)
    for supports, _ in tasks:
        fast = copy.deepcopy(net)
        for x, y in supports:
            found = torch.autograd.grad(criterion(fast(x), y), list(fast.parameters()))
            with torch.no_grad():
                for p, g in zip(fast.parameters(), found, strict=True):
                    p -= lr * g
        for (name, p), q in zip(net.named_parameters(), fast.parameters(), strict=True):
            total[name] = total[name] + (p - q).detach() / len(tasks)
    return total


def joint_step(net, criterion, tasks, lr):
    return torch.stack([criterion(net(x), y) for _, (x, y) in tasks]).mean()


STEPS_OF = {"maml": step, "fomaml": fomaml_step, "anil": step, "reptile": reptile_step, "joint": joint_step}


@pytest.mark.parametrize("algorithm", STEPS_OF)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_right_steps_pass_the_vectors(algorithm, dtype):
    report = check_step(STEPS_OF[algorithm], algorithm=algorithm, dtype=dtype)
    assert report.passed and report.title == "refmeta.torch.check_step", str(report)
    assert {row.algorithm for row in report.rows} == {algorithm} and len(report.rows) >= 5
    statuses = [row.status for row in report.rows]
    assert statuses.count("skip") <= (algorithm in ("anil", "reptile")), str(report)


def test_a_sum_over_tasks_is_declared():
    assert check_step(lambda *a: step(*a, reduce="sum"), tasks_are="sum").passed
    found = check_step(step, tasks_are="sum").verdicts[0]
    assert found.kind == "convention" and [str(e.scale) for e in found.explanations] == ["1/tasks"]


@pytest.mark.parametrize(
    "algorithm, answer, name",
    [
        ("maml", fomaml_step, "first_order"),
        ("fomaml", step, "second_order"),
        ("anil", lambda *a, head: step(*a), "body_adapted"),
        ("maml", joint_step, "no_adaptation"),
        ("maml", lambda n, c, tasks, lr: step(n, c, [(s[:-1], q) for s, q in tasks], lr), "one_step_short"),
        ("maml", lambda n, c, tasks, lr: step(n, c, tasks, -lr), "inner_ascent"),
    ],
)
def test_wrong_steps_are_named(algorithm, answer, name):
    report = check_step(answer, algorithm=algorithm)
    assert not report.passed and suspects(report.verdicts[0]) == [(name,)], str(report)


def test_a_step_may_skip_and_some_tiers_be_chosen():
    def skipping(*_):
        raise Skip("no time")

    report = check_step(skipping, tiers=["canary"])
    assert [row.status for row in report.rows] == ["skip"] and not report.passed
    assert {row.tier for row in check_step(step, tiers=["canary", "quadratic"]).rows} == {"canary", "quadratic"}


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda *a: [], "returned 0 gradients"),
        (lambda *a: [torch.zeros(9, 9)] * 9, "9 gradients, not |has shape"),
        (lambda *a: 0.5, "returned"),
        (lambda *a: {"nothing": torch.zeros(1)}, "returned a gradient of 'nothing'"),
    ],
)
def test_forms_that_are_wrong_are_said_on_every_vector(answer, message):
    report = check_step(answer, tiers=["quadratic"])
    assert not report.passed and {row.status for row in report.rows} == {"error"}
    assert all(re.search(message, row.message) for row in report.rows), str(report)


@pytest.mark.parametrize(
    "options", [{"algorithm": "mamll"}, {"tiers": ["none"]}, {"dtype": "float16"}, {"tasks_are": "mode"}]
)
def test_arguments_of_check_step_are_checked(options):
    with pytest.raises(ValueError, match=f"'{np.ravel(*options.values())[0]}'"):
        check_step(step, **options)
