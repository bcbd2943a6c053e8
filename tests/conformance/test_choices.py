"""The grammar of mistakes: an optimiser's step is differentiated rightly, and any choices can be made at once."""

import dataclasses

import numpy as np
import pytest

from refmeta.conformance import check, rules
from refmeta.conformance.cases import load
from refmeta.conformance.explain import of_vector, usual
from refmeta.conformance.programs import ALONE, EVERY, with_mistakes

BY_ID = {vector.case.id: vector for vector in load()}
K3, HEAD = BY_ID["maml-quadratic-k3-t3"], BY_ID["anil-tanh-k3-t3"]
UPDATES = [
    *(
        "momentum=0.9",
        "nesterov=0.9",
        "average=0.5",
        "decay=0.1",
        "pull=0.5",
        "clamp=1.5",
        "norm=1.5",
        "norm_arrays=1.5",
    ),
    *("unit", "unit_arrays", "adam_inside", "rmsprop_inside", "adagrad_inside", "added_up", "averaged_up"),
    *("momentum_on=0.9", "adam_on", "never_cleared"),
]


def differences(case, names):
    """The derivative of the query losses after the inner loops, in every coordinate of θ."""
    d, size = case.derivatives, 1e-6

    def total(theta):
        moved = dataclasses.replace(case, theta=[theta])
        settings, before, found = with_mistakes(names, moved.settings), [], 0
        for s in settings:
            starts = (0, len(before)) if s.remembers else ()
            phi = rules.path(d, s._replace(supports=before + s.supports, starts=starts))[-1][0]
            before = before + s.supports if s.remembers else []
            A, b = s.query
            found += phi @ A @ phi / 2 - b @ phi
        return found

    unit = size * np.eye(case.theta[0].size)
    return np.array([(total(case.theta[0] + e) - total(case.theta[0] - e)) / (2 * size) for e in unit])


@pytest.mark.parametrize(
    "names", [(name,) for name in UPDATES] + [("momentum=0.9", "norm=1.5"), ("adam_inside", "decay=0.1")]
)
def test_an_inner_step_of_an_optimiser_is_differentiated(names):
    theta = K3.case.theta[0] + [0.1, 0.2, 0.3]  # no inner gradient is zero, or just where it is clipped
    case = dataclasses.replace(K3.case, theta=[theta], tasks=K3.case.tasks[:2])
    got = sum(g[0] for g in rules.gradients(case.derivatives, with_mistakes(names, case.settings)))
    expected = differences(case, names)
    assert np.allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert not np.allclose(got, differences(case, ()), rtol=1e-3)


@pytest.mark.parametrize("id", [K3.case.id, HEAD.case.id, "fomaml-quadratic-k3-t2", "reptile-quadratic-k2-t3"])
def test_any_choices_can_be_made_at_once(id):
    random, names = np.random.default_rng(0), [*EVERY, *usual()]
    answer = of_vector(BY_ID[id], BY_ID[id].gradient, "float64")
    with np.errstate(all="ignore"):  # a wrong program may overflow
        for _ in range(300):
            a, b = random.choice(names, 2)
            for program in ((a, b), (a, random.choice(list(ALONE)), b)):
                rows = answer.under(tuple(map(str, program)))
                assert rows.shape == (len(answer.settings), answer.got.size)


def said(algorithm, program):
    """The verdict on a program's answers."""

    def answer(case):
        return case.combine(rules.gradients(case.derivatives, with_mistakes(program, case.settings)))

    small = ["canary", "quadratic", "regression", "tanh", "softmax", "edge", "scalar"]
    (verdict,) = check(answer, algorithms=[algorithm], tiers=small).verdicts
    return verdict


@pytest.mark.parametrize(
    "algorithm, program",
    [
        ("anil", ("moving", "first_order")),
        ("maml", ("in_later", "first_order")),
        ("maml", ("l2=0.001",)),
        ("maml", ("inner_gradients_added",)),
        ("fomaml", ("first_half_outside", "alpha_times=0.5")),
        ("reptile", ("momentum_on=0.9",)),
        ("reptile", ("part_way=0.5",)),
        ("joint", ("after_outer_steps",)),
    ],
)
def test_choices_and_numbers_are_found_together_and_in_a_part(algorithm, program):
    assert said(algorithm, program).explanations[0].suspects == program


def test_first_order_in_the_head_alone_differs_from_either():
    case = HEAD.case
    settings = with_mistakes(("moving", "first_order"), case.settings)
    mixed, right, first = (
        case.combine(rules.gradients(case.derivatives, s))
        for s in (settings, case.settings, with_mistakes(("first_order",), case.settings))
    )
    for i, (got, exact, other) in enumerate(zip(mixed, right, first, strict=True)):
        head = i >= len(mixed) - case.head
        assert np.allclose(got, other if head else exact) and not np.allclose(got, exact if head else other)
