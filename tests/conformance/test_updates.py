"""Inner loops with more than a plain step, as people write them: autograd differentiates each, `check` names it."""

import autograd.numpy as np
import pytest
from autograd import grad
from autograd.tracer import getval

from refmeta.conformance import Skip, check
from tests.blind.common import make_loss, path, through

pytestmark = pytest.mark.filterwarnings("ignore:Output seems independent")  # ANIL without a head, one of the vectors


def maml(case, step, first_order=False, query_loss=None, keep=None):
    """A MAML whose inner update is `step(φ, gradient, velocity, k) -> (φ, velocity)`, array by array."""
    if case.algorithm != ("fomaml" if first_order else "maml"):
        raise Skip("another algorithm")
    loss = case.loss_fn
    query_loss = query_loss or (lambda phi, supports, query: loss(phi, query))

    def adapted(theta, supports):
        phi, velocity = list(theta), [0.0] * len(theta)
        for k, batch in enumerate(supports):
            g = grad(loss)(phi, batch)
            moved = [step(p, leaf, v, k) for p, leaf, v in zip(phi, g, velocity, strict=True)]
            phi, velocity = [p for p, _ in moved], [v for _, v in moved]
        return phi

    def task_gradient(supports, query):
        if first_order:
            return grad(query_loss)(adapted(case.theta, supports), supports, query)
        return grad(lambda theta: query_loss(adapted(theta, supports), supports, query))(case.theta)

    found = [task_gradient(*task) for task in case.tasks]
    return case.combine([(keep or list)(g) for g in found])


def with_momentum(mu, alpha):
    def step(p, g, v, k):
        v = mu * v + g
        return p - alpha * v, v

    return step


STEPS = {
    "momentum 0.9": lambda case: with_momentum(0.9, case.alpha),
    "momentum 0.5": lambda case: with_momentum(0.5, case.alpha),
    "sum of all gradients": lambda case: with_momentum(1, case.alpha),
    "weight decay 0.01": lambda case: lambda p, g, v, k: (p - case.alpha * (g + 0.01 * p), v),
    "weight decay 0.1": lambda case: lambda p, g, v, k: (p - case.alpha * (g + 0.1 * p), v),
    "multiplied by 0.9 at every step": lambda case: lambda p, g, v, k: (p - case.alpha * 0.9**k * g, v),
    "multiplied by 0.5 at every step": lambda case: lambda p, g, v, k: (p - case.alpha / 2**k * g, v),
    "clipped to ±0.5": lambda case: lambda p, g, v, k: (p - case.alpha * np.clip(g, -0.5, 0.5), v),
    "clipped to ±0.1": lambda case: lambda p, g, v, k: (p - case.alpha * np.clip(g, -0.1, 0.1), v),
}


SMALL = ["canary", "quadratic", "regression", "tanh", "softmax", "edge", "scalar"]


def said(harness, algorithm="maml", tiers=SMALL):
    """The verdict on its answers to all but the large vectors."""
    return check(harness, algorithms=[algorithm], tiers=tiers).verdicts[0]


@pytest.mark.parametrize("first_order", [False, True], ids=["maml", "first order"])
@pytest.mark.parametrize("words", STEPS)
def test_another_inner_update_is_named(words, first_order):
    found = said(lambda case: maml(case, STEPS[words](case), first_order), "fomaml" if first_order else "maml")
    assert found.kind == "bug" and words in found.text.splitlines()[0], found.text


def test_a_plain_update_passes():
    assert said(lambda case: maml(case, with_momentum(0, case.alpha))).kind == "pass"


@pytest.mark.parametrize("scale", [lambda alpha: 1, lambda alpha: 1 / (alpha or 1)], ids=["mean", "over alpha"])
def test_a_mean_of_gradients_for_the_displacement_is_named(scale):
    """As in ivy's reptile_step."""

    def harness(case):
        if case.algorithm != "reptile":
            raise Skip("another algorithm")
        total = [0 * leaf for leaf in case.theta]
        for supports, _ in case.tasks:
            phi, gradients = list(case.theta), []
            for batch in supports:
                gradients.append(grad(case.loss_fn)(phi, batch))
                phi = [p - case.alpha * g for p, g in zip(phi, gradients[-1], strict=True)]
            if supports:
                gradients.append(grad(case.loss_fn)(phi, supports[-1]))
                mean = [sum(leaves) / len(gradients) for leaves in zip(*gradients, strict=True)]
                total = [t + scale(case.alpha) * g for t, g in zip(total, mean, strict=True)]
        return total

    assert "Reptile that averages K + 1 gradients" in said(harness, "reptile").text.splitlines()[0]


@pytest.mark.parametrize("words, ends", [("is left out where its loss is below 0.5", False), ("ends where", True)])
def test_early_stopping_is_named(words, ends):
    def harness(case):
        def adapted_loss(theta, supports, query):
            phi = theta
            for batch in supports:
                if getval(case.loss_fn(phi, batch)) >= 0.5:
                    phi = [p - case.alpha * g for p, g in zip(phi, grad(case.loss_fn)(phi, batch), strict=True)]
                elif ends:
                    break
            return case.loss_fn(phi, query)

        return through(case, adapted_loss)

    assert words in said(harness).text.splitlines()[0]


def test_batch_normalisation_is_named():
    def harness(case):
        def net(theta, x):
            for W, b in zip(theta[:-2:2], theta[1:-2:2], strict=True):
                z = x @ W + b
                x = np.tanh((z - np.mean(z, 0)) / np.sqrt(np.var(z, 0) + 1e-5))
            return x @ theta[-2] + theta[-1]

        loss = make_loss(case, net)
        return through(case, lambda theta, supports, query: loss(path(loss, theta, supports, case.alpha)[-1], query))

    assert "batch normalisation" in said(harness).text.splitlines()[0]


def test_the_support_loss_in_the_meta_loss_is_named():
    def harness(case):
        def both(phi, supports, query):
            return case.loss_fn(phi, query) + (case.loss_fn(phi, supports[-1]) if supports else 0)

        return maml(case, with_momentum(0, case.alpha), query_loss=both)

    assert "support loss after adaptation is added" in said(harness).text


def test_a_body_without_an_outer_gradient_is_named():
    def harness(case):
        many = 1 + (np.ndim(case.theta[-1]) == 1)
        body = len(case.theta) - many
        keep = lambda g: [leaf * (i >= body) for i, leaf in enumerate(g)]  # noqa: E731
        return maml(case, with_momentum(0, case.alpha), keep=keep)

    assert "the outer gradient is that of the last layer alone" in said(harness).text


def test_a_momentum_that_nobody_writes_is_fitted():
    found = said(lambda case: maml(case, with_momentum(0.77, case.alpha)))
    assert [e.suspects for e in found.explanations] == [("momentum=0.77",)]
    assert "the inner loop has momentum 0.77" in found.text


def test_a_momentum_that_is_none_is_given_no_other_name():
    found = said(lambda case: maml(case, with_momentum(-0.9, case.alpha), first_order=True), "fomaml")
    assert found.kind == "unexplained" and not found.explanations
