"""Mistakes that no list has: `check` says on which vectors they are, as the wrong implementations show it."""

import autograd.numpy as np
import pytest
from autograd import grad
from autograd.tracer import getval

from refmeta.conformance import Skip, check
from refmeta.conformance.cases import load
from refmeta.conformance.evidence import conditions, rule


def maml(case, inner=None, outer=None, cut=lambda k, K: False):
    """MAML with other losses inside and outside, whose parameters become constants after some steps."""
    if case.algorithm != "maml":
        raise Skip("a MAML and nothing else")
    inner, outer = inner or case.loss_fn, outer or case.loss_fn

    def adapted_loss(theta, supports, query):
        phi = list(theta)
        for k, batch in enumerate(supports):
            g = grad(inner)(phi, batch)
            g = [getval(leaf) if cut(k, len(supports)) else leaf for leaf in g]
            phi = [p - case.alpha * leaf for p, leaf in zip(phi, g, strict=True)]
        return outer(phi, query)

    return case.combine([grad(adapted_loss)(case.theta, *task) for task in case.tasks])


def shaken(case):
    """The loss, and noise that is the same at every call, on what has a hidden layer."""
    random = np.random.RandomState(0)
    noise = [random.normal(size=leaf.shape) for leaf in case.theta]
    hidden = len(case.model.get("widths", [])) > 2
    return lambda theta, b: (
        case.loss_fn(theta, b) + hidden * sum(np.sum(n * t) for n, t in zip(noise, theta, strict=True))
    )


@pytest.mark.parametrize(
    "harness, where",
    [
        (lambda case: maml(case, cut=lambda k, K: K >= 3 and k in (0, K - 1)), "K ≥ 3"),
        (lambda case: maml(case, outer=shaken(case)), "a hidden layer"),
        (lambda case: maml(case, inner=shaken(case)), "K ≥ 1 and α > 0 and a hidden layer"),
    ],
)
def test_where_it_is_wrong_is_said_and_is_data(harness, where):
    found = next(v for v in check(harness).verdicts if v.algorithm == "maml")
    assert found.kind == "unexplained" and found.evidence.where == where
    assert f"It is wrong exactly on the vectors with {where}: on " in found.text


def test_what_is_wrong_everywhere_or_without_a_rule_says_nothing_of_where():
    def everywhere(case):
        return [np.cos(leaf) for leaf in case.theta]

    def here_and_there(case):
        return maml(case, outer=shaken(case) if case.id in ("maml-tanh-k1-t3", "maml-tanh-k5-t2") else None)

    for harness in (everywhere, here_and_there):
        found = next(v for v in check(harness, algorithms=["maml"]).verdicts)
        assert found.kind == "unexplained" and found.evidence.where == "" and "exactly" not in found.text


def test_a_rule_holds_for_all_that_is_wrong_and_nothing_that_is_right():
    cases = [v.case for v in load() if v.case.algorithm == "maml"]
    for name in conditions(cases[0]):
        wrong = [case for case in cases if conditions(case)[name]]
        right = [case for case in cases if not conditions(case)[name]]
        found = rule(wrong, right)
        assert bool(found) is (min(len(wrong), len(right)) >= 2)
        names = found.split(" and ") if found else []
        assert len(names) == bool(found) and all(all(conditions(case)[n] for n in names) for case in wrong)


def test_every_condition_has_a_contrary_and_tells_some_vectors_apart():
    for name in conditions(load()[0].case):
        assert {conditions(v.case)[name] for v in load()} == {True, False}, name
    assert all(sum(conditions(v.case).values()) == len(conditions(v.case)) / 2 for v in load())
