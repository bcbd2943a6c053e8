"""Right implementations in NumPy, in odd styles."""

from copy import deepcopy
from functools import reduce
from math import fsum

import autograd.numpy as np
import numpy
from autograd import grad, hessian, jacobian, make_vjp, value_and_grad

from refmeta.conformance import Skip
from tests.blind.common import (
    add,
    combine,
    descend,
    errors,
    flat,
    hvp,
    labelled,
    log_softmax,
    make_loss,
    merged,
    mlp,
    path,
    times,
    unflat,
    unit,
)
from tests.blind.registry import right


@right("maml")
def whole_objective(case):
    loss = make_loss(case)

    def objective(theta):
        values = [loss(path(loss, list(theta), S, case.alpha)[-1], Q) for S, Q in case.tasks]
        return sum(values) / case.divisor

    return grad(objective)(case.theta)


@right("maml")
def adjoint(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phis = path(loss, case.theta, S, case.alpha)
        v = grad(loss)(phis[-1], Q)
        for phi, batch in zip(phis[-2::-1], S[::-1], strict=True):
            v = descend(v, hvp(loss, phi, batch, v), case.alpha)
        out.append(v)
    return tuple(combine(case, out))


@right("maml")
def full_hessians(case):
    """The product of I − αH as matrices."""
    n, out = len(flat(case.theta)), []
    loss = make_loss(case)

    def of_vector(p, batch):
        return loss(unflat(p, case.theta), batch)

    for S, Q in case.tasks:
        p, J = flat(case.theta), np.eye(n)
        for batch in S:
            J = (np.eye(n) - case.alpha * hessian(of_vector)(p, batch)) @ J
            p = p - case.alpha * grad(of_vector)(p, batch)
        out.append(unflat(J.T @ grad(of_vector)(p, Q), case.theta))
    return combine(case, out)


@right("maml")
def jacobian_of_adaptation(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:

        def end(p, S=S):
            return flat(path(loss, unflat(p, case.theta), S, case.alpha)[-1])

        at = flat(case.theta)
        g = flat(grad(loss)(unflat(end(at), case.theta), Q))
        out.append(unflat(g @ jacobian(end)(at), case.theta))
    return dict(zip(case.names, combine(case, out), strict=True))


@right("maml")
def vjp_of_adaptation(case):
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        pull, phi = make_vjp(lambda p: flat(path(loss, unflat(p, case.theta), S, case.alpha)[-1]))(flat(case.theta))
        out.append(unflat(pull(flat(grad(loss)(unflat(phi, case.theta), Q))), case.theta))
    return (leaf for leaf in combine(case, out))


def by_hand(case, theta, batch):
    """∇L in plain arithmetic, of whatever has it: floats, complex numbers, or Dual."""
    (x, y), tanh, exp, T = batch, _of("tanh"), _of("exp"), _transposed
    if case.model["kind"] == "quadratic":
        sizes = [int(numpy.prod(numpy.shape(value(t)))) for t in theta]
        ends = numpy.cumsum([0, *sizes])
        rows = [t.reshape(-1) for t in theta]
        return [
            (sum(x[a:b, c:d] @ r for r, c, d in zip(rows, ends, ends[1:], strict=False)) - y[a:b]).reshape(
                numpy.shape(value(t))
            )
            for t, a, b in zip(theta, ends, ends[1:], strict=False)
        ]
    hidden = [x]
    for i in range(0, len(theta), 2):
        z = hidden[-1] @ theta[i] + theta[i + 1]
        hidden.append(tanh(z))
    if labelled(case):
        e = exp(z)
        delta = e / e.sum(1)[:, None] - numpy.eye(case.model["widths"][-1])[y]
    else:
        delta = 2 * (z - y)
    if case.conventions["examples"] == "mean":
        delta = delta * (1 / (len(y) * (1 if labelled(case) else y.shape[1])))
    g = []
    for i in reversed(range(0, len(theta), 2)):
        h = hidden[i // 2]
        g = [T(h) @ delta, delta.sum(0), *g]
        if i:
            delta = (delta @ T(theta[i])) * (1 - h * h)
    return g


class Dual:
    """a + bε, ε² = 0, of arrays."""

    __array_ufunc__ = None

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __add__(self, o):
        return Dual(self.a + value(o), self.b + dotted(o))

    def __sub__(self, o):
        return Dual(self.a - value(o), self.b - dotted(o))

    def __rsub__(self, o):
        return Dual(o - self.a, -self.b)

    def __mul__(self, o):
        return Dual(self.a * value(o), self.a * dotted(o) + self.b * value(o))

    def __matmul__(self, o):
        b = o.b if isinstance(o, Dual) else numpy.zeros(numpy.shape(o))
        return Dual(self.a @ value(o), self.a @ b + self.b @ value(o))

    def __rmatmul__(self, o):
        return Dual(o @ self.a, o @ self.b)

    def __truediv__(self, o):
        return Dual(self.a / o.a, (self.b * o.a - self.a * o.b) / o.a**2)

    def __getitem__(self, key):
        return Dual(self.a[key], self.b[key])

    def sum(self, axis):
        return Dual(self.a.sum(axis), self.b.sum(axis))

    def reshape(self, shape):
        return Dual(self.a.reshape(shape), self.b.reshape(shape))

    def tanh(self):
        t = numpy.tanh(self.a)
        return Dual(t, self.b * (1 - t * t))

    def exp(self):
        e = numpy.exp(self.a)
        return Dual(e, self.b * e)

    __radd__, __rmul__ = __add__, __mul__


def value(x):
    return x.a if isinstance(x, Dual) else x


def dotted(x):
    return x.b if isinstance(x, Dual) else 0


def _of(name):
    return lambda x: getattr(x, name)() if isinstance(x, Dual) else getattr(np, name)(x)


def _transposed(x):
    return Dual(x.a.T, x.b.T) if isinstance(x, Dual) else x.T


def climbing(case, of_basis):
    """∂F/∂θ_j for each j, from Σ ⟨∇L(φ; Q), dφ/dθ_j⟩ where of_basis gives dφ/dθ_j and φ."""
    out = []
    for S, Q in case.tasks:
        slopes = []
        for e in numpy.eye(len(flat(case.theta))):
            phi, moved = of_basis(S, unflat(e, case.theta))
            slopes.append(flat(by_hand(case, phi, Q)) @ flat(moved))
        out.append(unflat(numpy.array(slopes), case.theta))
    return combine(case, out)


@right("maml")
def dual_numbers(case):
    def of_basis(S, e):
        phi = [Dual(t, d) for t, d in zip(case.theta, e, strict=True)]
        for batch in S:
            phi = descend(phi, by_hand(case, phi, batch), case.alpha)
        return [p.a for p in phi], [p.b for p in phi]

    return climbing(case, of_basis)


@right("maml")
def complex_steps(case):
    def of_basis(S, e):
        phi = [t + 1e-150j * d for t, d in zip(case.theta, e, strict=True)]
        for batch in S:
            phi = descend(phi, by_hand(case, phi, batch), case.alpha)
        return [np.real(p) for p in phi], [np.imag(p) / 1e-150 for p in phi]

    return climbing(case, of_basis)


@right("maml")
def complex_hessian_products(case):
    out = []
    for S, Q in case.tasks:
        phis = [case.theta]
        for batch in S:
            phis.append(descend(phis[-1], by_hand(case, phis[-1], batch), case.alpha))
        v = by_hand(case, phis.pop(), Q)
        while phis:
            there = by_hand(case, [p + 1e-150j * d for p, d in zip(phis[-1], v, strict=True)], S[len(phis) - 1])
            v = [d - case.alpha * np.imag(h) / 1e-150 for d, h in zip(v, there, strict=True)]
            phis.pop()
        out.append(v)
    return combine(case, out)


@right("maml")
def inner_gradient_by_hand(case):
    """Backpropagation by hand inside, autograd outside."""
    loss = make_loss(case)

    def of_task(theta, S, Q):
        phi = list(theta)
        for batch in S:
            phi = descend(phi, by_hand(case, phi, batch), case.alpha)
        return loss(phi, Q)

    return combine(case, [grad(of_task)(case.theta, S, Q) for S, Q in case.tasks])


@right("maml")
def example_by_example(case):
    """The loss is summed over single examples, each weighted."""

    def loss(theta, batch):
        x, y = batch
        if case.model["kind"] == "quadratic":
            return make_loss(case)(theta, batch)
        n = len(y) * (1 if labelled(case) else y.shape[1])
        weight = 1 / n if case.conventions["examples"] == "mean" else 1
        total = 0
        for i in range(len(y)):
            total = total + weight * np.sum(errors(case, mlp(theta, x[i : i + 1]), y[i : i + 1]))
        return total

    out = [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    return combine(case, out)


@right("maml")
def one_vector(case):
    loss, shapes = make_loss(case), case.theta

    def of_vector(p, batch):
        return loss(unflat(p, shapes), batch)

    def objective(p):
        total = 0
        for S, Q in case.tasks:
            total = total + of_vector(reduce(lambda q, b: q - case.alpha * grad(of_vector)(q, b), S, p), Q)
        return total / case.divisor

    return {"gradient": unflat(grad(objective)(flat(case.theta)), shapes)}


@right("maml")
def with_its_path(case):
    loss, out, phis = make_loss(case), [], []
    for S, Q in case.tasks:
        phis.append(path(loss, case.theta, S, case.alpha))
        _, g = value_and_grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta)
        out.append(g)
    return {"gradient": combine(case, out), "phi": phis}


@right("maml")
def forward_sensitivities(case):
    """dφ/dθ is carried forward, a column for each number of θ."""
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        phi, columns = case.theta, [unflat(e, case.theta) for e in numpy.eye(len(flat(case.theta)))]
        for batch in S:
            columns = [descend(c, hvp(loss, phi, batch, c), case.alpha) for c in columns]
            phi = descend(phi, grad(loss)(phi, batch), case.alpha)
        g = flat(grad(loss)(phi, Q))
        out.append(unflat(numpy.array([g @ flat(c) for c in columns]), case.theta))
    return combine(case, out)


@right("maml")
def summed_exactly(case):
    """Tasks from the last to the first, each number summed by fsum."""
    loss = make_loss(case)
    parts = [
        flat(grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta)) for S, Q in case.tasks[::-1]
    ]
    return unflat(numpy.array([fsum(column) / case.divisor for column in zip(*parts, strict=True)]), case.theta)


@right("maml")
def logits_shifted(case):
    """Cross-entropy with its logits moved by their maximum, and an activation by exponentials."""

    def net(theta, x):
        for i in range(0, len(theta), 2):
            x = (2 / (1 + np.exp(-2 * x)) - 1 if i else x) @ theta[i] + theta[i + 1]
        return x - np.max(x, axis=1, keepdims=True) if labelled(case) else x

    loss = make_loss(case, net)
    return combine(
        case, [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    )


@right("maml", "it takes the mean over the tasks, whatever is asked for", tasks="mean")
def always_the_mean(case):
    loss = make_loss(case)
    parts = [grad(lambda t: loss(path(loss, list(t), S, case.alpha)[-1], Q))(case.theta) for S, Q in case.tasks]
    return times(1 / len(parts), add(parts))


@right("maml", dtype="float32")
def in_float32(case):
    if case.theta[0].dtype != numpy.float32:
        raise Skip("float32 only")
    return [np.asarray(d, numpy.float32) for d in adjoint(case)]


@right("fomaml")
def difference_of_two_iterates(case):
    """The query as a further step: its gradient is the last displacement, divided by α."""
    loss, out = make_loss(case), []
    for S, Q in case.tasks:
        *_, before, after = path(loss, case.theta, [*S, Q], 1.0 * case.alpha)
        out.append([(b - a) / case.alpha for b, a in zip(before, after, strict=True)])
    return combine(case, out)


@right("fomaml")
@right("reptile")
@right("joint")
def long_doubles(case):
    """Extended precision inside, by hand."""
    wide = case.each(lambda a: a if a.dtype.kind in "iu" else a.astype(numpy.longdouble))
    out = []
    for S, Q in wide.tasks:
        phi = wide.theta
        for batch in S if case.algorithm != "joint" else []:
            phi = descend(phi, by_hand(wide, phi, batch), case.alpha)
        moved = times(1 / unit(case, S), descend(wide.theta, phi, 1)) if case.algorithm == "reptile" else None
        out.append(moved or by_hand(wide, phi, Q))
    return [np.asarray(d, float) for d in combine(case, out)]


@right("fomaml")
def in_place_and_put_back(case):
    loss, theta, out = make_loss(case), [t.copy() for t in case.theta], []
    start = deepcopy(theta)
    for S, Q in case.tasks:
        for batch in S:
            for p, d in zip(theta, grad(loss)(theta, batch), strict=True):
                p -= case.alpha * d
        out.append(grad(loss)(theta, Q))
        for p, s in zip(theta, start, strict=True):
            p[...] = s
    return combine(case, out)


@right("anil")
def body_at_rate_zero(case):
    """MAML with a rate for each array, the body's zero."""
    loss, rates = make_loss(case), [0.0] * (len(case.theta) - case.head) + [case.alpha] * case.head

    def of_task(theta, S, Q):
        phi = list(theta)
        for batch in S:
            phi = [p - r * d for p, r, d in zip(phi, rates, grad(loss)(phi, batch), strict=True)]
        return loss(phi, Q)

    return combine(case, [grad(of_task)(case.theta, S, Q) for S, Q in case.tasks])


@right("anil")
def features_once(case):
    """The features are computed once for each batch; the head is a linear model on them."""
    if case.model["kind"] != "mlp" or case.head != 2:
        raise Skip("a head is a layer here")
    head_loss = make_loss(case, lambda head, features: features @ head[0] + head[1])

    def features(body, x):
        return np.tanh(mlp(body, x)) if body else x

    def of_task(theta, S, Q):
        body, head = list(theta)[:-2], list(theta)[-2:]
        for x, y in S:
            head = descend(head, grad(head_loss)(head, (features(body, x), y)), case.alpha)
        return head_loss(head, (features(body, Q[0]), Q[1]))

    return combine(case, [grad(of_task)(case.theta, S, Q) for S, Q in case.tasks])


@right("anil")
def anil_adjoint(case):
    """v over all arrays, with the Hessian's rows of the head only in the update."""
    loss, cut, out = make_loss(case), len(case.theta) - case.head, []
    for S, Q in case.tasks:
        phis = [list(case.theta)]
        for batch in S:
            moved = descend(phis[-1], grad(loss)(phis[-1], batch), case.alpha)
            phis.append([*case.theta[:cut], *moved[cut:]])
        v = grad(loss)(phis[-1], Q)
        for phi, batch in zip(phis[-2::-1], S[::-1], strict=True):
            masked = [*(0 * d for d in v[:cut]), *v[cut:]]
            v = descend(v, hvp(loss, phi, batch, masked), case.alpha)
        out.append(v)
    return combine(case, out)


@right("reptile")
def sum_of_gradients(case):
    loss, out = make_loss(case), []
    for S, _ in case.tasks:
        phi, total = case.theta, [np.zeros(t.shape) for t in case.theta]
        for batch in S:
            g = grad(loss)(phi, batch)
            total = add([total, times(case.alpha, g)])
            phi = descend(phi, g, case.alpha)
        out.append(times(1 / unit(case, S), total))
    return combine(case, out)


@right("joint")
def weighted_batch(case):
    """All queries in one batch, each example weighted."""
    if case.model["kind"] != "mlp":
        raise Skip("networks only")
    x, y = merged(case, [Q for _, Q in case.tasks])
    mean = case.conventions["examples"] == "mean"
    outputs = 1 if labelled(case) else case.model["widths"][-1]
    weights = np.concatenate([np.ones(len(Q[1])) / (len(Q[1]) * outputs if mean else 1) for _, Q in case.tasks])

    def loss(theta):
        out = mlp(theta, x)
        e = -log_softmax(out)[np.arange(len(y)), y] if labelled(case) else np.sum((out - y) ** 2, axis=1)
        return np.sum(weights * e) / case.divisor

    return grad(loss)(case.theta)
