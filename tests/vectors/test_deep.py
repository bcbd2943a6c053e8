"""Mistakes that show only in many layers or steps, or where gradients are large: each is a small MAML of its own."""

from dataclasses import replace

import autograd.numpy as np
import pytest
from autograd import grad
from autograd.tracer import getval

from refmeta.conformance import check
from refmeta.conformance.cases import load

LAYERS = {"tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2), "relu": (lambda z: z * (z > 0), lambda z: 1.0 * (z > 0))}


def gradient(case, phi, batch, slopes):
    """By hand, layer by layer; slopes(those of the hidden layers) are what the way back takes for them."""
    x, y = batch
    if case.model["kind"] == "quadratic":
        g = x @ np.concatenate([np.ravel(leaf) for leaf in phi]) - y
        ends = np.cumsum([0, *(leaf.size for leaf in phi)])
        return [g[a:b].reshape(leaf.shape) for a, b, leaf in zip(ends, ends[1:], phi, strict=False)]
    act, slope = LAYERS[case.model["activation"]]
    values, zs = [x], []
    for W, b in zip(phi[::2], phi[1::2], strict=True):
        zs.append(values[-1] @ W + b)
        values.append(act(zs[-1]))
    out = zs.pop()
    if case.loss["kind"] == "cross_entropy":
        g = np.exp(out) / np.exp(out).sum(1, keepdims=True) - np.eye(out.shape[1])[y]
        g = g / len(y)
    else:
        g = 2 * (out - y) / (1 if case.conventions["examples"] == "sum" else out.size)
    leaves, back = [], slopes([slope(z) for z in zs])
    for layer in range(len(zs), -1, -1):
        leaves = [values[layer].T @ g, g.sum(0), *leaves]
        g = (g @ phi[2 * layer].T) * back[layer - 1] if layer else g
    return leaves


def implementation(clip=lambda g: g, adapts=lambda layer, layers: True, last=99, slopes=lambda hidden: hidden):
    """The five algorithms: right unless told otherwise."""

    def adapt(case, theta, supports):
        phi, first = list(theta), 0 if case.head is None else len(theta) - case.head
        moves = [i >= first and adapts(i // 2, len(phi) // 2) for i in range(len(phi))]
        for k, support in enumerate(supports):
            g = clip(gradient(case, phi, support, slopes))
            g = g if k >= len(supports) - last else list(map(getval, g))  # no derivative goes through these
            phi = [p - case.alpha * move * gi for p, gi, move in zip(phi, g, moves, strict=True)]
        return phi

    def of_task(case, supports, query):
        if case.algorithm == "reptile":
            return [t - p for t, p in zip(case.theta, adapt(case, case.theta, supports), strict=True)]
        if case.algorithm in ("fomaml", "joint"):
            return grad(case.loss_fn)(adapt(case, case.theta, supports if case.algorithm == "fomaml" else []), query)
        return grad(lambda theta: case.loss_fn(adapt(case, theta, supports), query))(case.theta)

    return lambda case: case.combine([of_task(case, *task) for task in case.tasks])


def to_norm(g, most=40):
    length = np.sqrt(sum(np.sum(leaf**2) for leaf in g))
    return [leaf * most / length for leaf in g] if length > most else g


WRONG = {
    "clipped to norm 40": implementation(clip=to_norm),
    "clipped to ±40": implementation(clip=lambda g: [np.clip(leaf, -40, 40) for leaf in g]),
    "the last ten steps differentiated": implementation(last=10),
    "the first and the last layer adapt": implementation(adapts=lambda layer, layers: layer in (0, layers - 1)),
    "the last hidden layer's slope in all": implementation(slopes=lambda hidden: [hidden[-1] for _ in hidden]),
}
DEEP = ("deep", "relu")
pytestmark = pytest.mark.filterwarnings("ignore:Output seems independent")  # of an empty head


def wrong_on(harness):
    """The cases whose answer a harness gets visibly wrong: by more than a hundred float32 tolerances."""

    def off(v):
        pairs = zip(harness(v.case), v.gradient, v.scale, strict=True)
        return max(np.linalg.norm(g - e) / s for g, e, s in pairs) > 100 * max(v.tolerance["float32"], 1e-12)

    return [v.case for v in load() if off(v)]


def test_the_same_without_a_mistake_is_right():
    assert wrong_on(implementation()) == []


@pytest.mark.parametrize("name", WRONG)
def test_each_is_wrong_on_two_vectors_of_two_tiers_and_was_on_none(name):
    wrong = wrong_on(WRONG[name])
    assert len(wrong) >= 4 and {case.tier for case in wrong} == set(DEEP)


def test_who_knows_tanh_alone_is_told_so():
    right = implementation()

    def tanh_alone(case):
        return right(replace(case, model=case.model | ({"activation": "tanh"} if "widths" in case.model else {})))

    report = check(tanh_alone)
    assert {row.id for row in report.rows if row.status == "fail"} == {
        v.case.id for v in load() if v.case.tier == "relu"
    }
    assert all(verdict.explanations[0].suspects == ("tanh",) for verdict in report.verdicts)
