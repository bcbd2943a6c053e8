"""A case knows how its tasks' gradients are combined, its settings and its derivatives."""

import dataclasses

import numpy as np
import pytest
from autograd import grad
from problems import assert_same

from refmeta import adjoint
from refmeta.conformance.cases import load

VECTORS = load()
BY_ID = {vector.case.id: vector for vector in VECTORS}


def test_what_is_multiplied_by_a_declared_convention():
    case = next(v.case for v in VECTORS if v.case.algorithm == "reptile")

    def factor(algorithm, name):
        return dataclasses.replace(case, algorithm=algorithm, alpha=0.25, conventions={"reptile": name}).factor(
            [None] * 3
        )

    assert factor("reptile", "displacement") == factor("maml", "over_alpha") == 1
    assert factor("reptile", "over_alpha") == 4
    assert factor("reptile", "over_alpha_k") == 4 / 3


def test_an_answer_is_combined_under_every_convention():
    case = dataclasses.replace(BY_ID["reptile-quadratic-k2-t3"].case, alpha=0.25)
    per_task = [[np.array([1.0, 2])], [np.array([3.0, 5])], [np.array([2.0, 2])]]

    def combined(tasks, reptile, algorithm="reptile"):
        conventions = {"tasks": tasks, "reptile": reptile, "examples": "mean"}
        given = dataclasses.replace(case, conventions=conventions, algorithm=algorithm)
        (leaf,) = given.combine(per_task)
        return leaf.tolist()

    assert combined("sum", "displacement") == combined("sum", "over_alpha", "maml") == [6, 9]
    assert combined("mean", "displacement") == [2, 3]
    assert combined("sum", "over_alpha") == [24, 36] and combined("mean", "over_alpha_k") == [4, 6]
    assert [leaf.dtype for leaf in case.combine([[g[0].astype("float32")] for g in per_task])] == [np.float32]
    with pytest.raises(ValueError):
        case.combine(per_task[:2])


def test_what_a_setting_says_of_the_model():
    case = next(v.case for v in VECTORS if v.case.id == "maml-tanh-one-output-k2-t3")
    case = dataclasses.replace(case, algorithm="anil", head=2)
    batch = np.zeros((7, 2)), np.zeros((7, 1))
    said = {"rates": (False, False, True, True), "n": 7, "outputs": 1, "summed": False}

    def shape(case, supports):
        (setting,) = dataclasses.replace(case, tasks=[(supports, batch)]).settings
        assert setting[:4] == (case.theta, supports, batch, case.alpha) and setting.tasks == [(supports, batch)]
        return {name: getattr(setting, name) for name in said}

    assert shape(case, [batch]) == said
    assert shape(case, []) == said | {"n": None}
    assert shape(dataclasses.replace(case, algorithm="maml"), [batch]) == said | {"rates": (True,) * 4}
    assert shape(dataclasses.replace(case, loss={"kind": "other"}), [batch]) == said | {"outputs": None}
    summed = dataclasses.replace(case, conventions=case.conventions | {"examples": "sum"})
    assert shape(summed, [batch]) == said | {"n": None, "summed": True}
    assert (
        shape(dataclasses.replace(case, model={"kind": "quadratic"}, loss={"kind": "quadratic"}), [batch])["n"] is None
    )


def test_the_derivatives_of_a_quadratic_loss_by_hand_are_its_derivatives():
    case = next(v.case for v in VECTORS if v.case.tier == "quadratic" and len(v.case.theta) > 1)
    d, batch, v = case.derivatives, case.tasks[0][1], [leaf + 1 for leaf in case.theta]
    assert_same(d.grad(case.theta, batch), grad(case.loss_fn)(case.theta, batch))
    assert_same(d.hvp(case.theta, batch, v), adjoint.hvp(case.loss_fn, case.theta, batch, v))
