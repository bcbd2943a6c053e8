"""Mistakes that no list has: `check` says on which vectors they are, as the wrong implementations show it."""

import autograd.numpy as np
import pytest
from autograd import grad
from autograd.tracer import getval

from refmeta.conformance import Skip, check
from refmeta.conformance.cases import load
from refmeta.conformance.evidence import conditions, rule

pytestmark = pytest.mark.usefixtures("listed_alone")  # none of these has a name
TIERS = ["canary", "quadratic", "regression", "tanh", "softmax", "edge", "scalar"]  # the others are large


def maml(case, inner=None, outer=None, cut=lambda k, K: False):
    """MAML with other losses inside and outside, whose parameters become constants after some steps."""
    if case.algorithm != "maml":
        raise Skip("this function computes MAML only")
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
        (lambda case: maml(case, inner=shaken(case)), "an inner loop that matters and a hidden layer"),
    ],
)
def test_where_it_is_wrong_is_said_and_is_data(harness, where):
    found = next(v for v in check(harness, tiers=TIERS).verdicts if v.algorithm == "maml")
    assert found.kind == "unexplained" and found.evidence.where == where
    assert f"It is wrong exactly on the vectors with {where}: on " in found.text


def test_what_is_kept_by_its_shapes_is_said():
    kept = {}

    def cached(case):
        return kept.setdefault(str([leaf.shape for leaf in case.theta] + [len(case.tasks[0][0])]), maml(case))

    (found,) = check(cached, algorithms=["maml"], tiers=TIERS).verdicts
    assert found.evidence.where == "shapes and K that came before"


def on_maml(change):
    """What is said of the right answers of MAML after a change of each."""
    answers = {v.case.id: v.gradient for v in load()}
    (found,) = check(lambda case: change(case, answers[case.id]), algorithms=["maml"], tiers=TIERS).verdicts
    return found


def test_a_factor_next_to_1_is_said_with_all_its_digits():
    found = on_maml(lambda case, g: [1.00001 * leaf for leaf in g])
    assert found.kind == "precision" and found.evidence.factor == pytest.approx(1.00001, abs=1e-12)
    assert found.text == "right to 5 digits: it is the right answer times 1.00001, on every vector."


@pytest.mark.parametrize("dtype, named", [("float16", "TF32 or float16"), ("float32", "float32")])
def test_low_precision_is_told_by_its_digits(dtype, named):
    found = on_maml(lambda case, g: [leaf.astype(dtype).astype(float) * (1 + 1e-9 * len(case.id)) for leaf in g])
    assert found.kind == "precision" and (dtype == "float32" or found.evidence.digits > 2)
    assert named in found.text


def test_a_length_that_answers_to_one_task_share_is_said():
    found = on_maml(lambda case, g: [leaf / np.sqrt(sum(np.sum(part**2) for part in g)) for leaf in g])
    assert found.evidence.length == 1 and "On every vector of one task it has the length 1." in found.text
    assert not on_maml(lambda case, g: [leaf / len(case.id) for leaf in g]).evidence.length


def test_multiples_of_the_right_answer_that_differ_are_said():
    found = on_maml(lambda case, g: [leaf / len(case.id) for leaf in g])
    ids = [
        len(v.case.id)
        for v in load()
        if v.case.algorithm == "maml" and v.case.tier in TIERS and sum(map(np.size, v.gradient)) > 2
    ]
    assert found.kind == "unexplained" and found.evidence.multiples == pytest.approx((1 / max(ids), 1 / min(ids)))
    assert "It is always a multiple of the right answer, but not always the same one" in found.text


def test_the_pieces_of_the_answers_are_found():
    def sums(case, g):
        at_theta = case.combine([grad(case.loss_fn)(case.theta, query) for _, query in case.tasks])
        return [
            leaf + 0.3 * first + 2 * other
            for leaf, first, other in zip(g, maml(case, cut=always), at_theta, strict=True)
        ]

    found = on_maml(sums)
    expected = {"the second-order term": 1.0, "the query gradient at φ_K": 1.3, "the query gradient at θ": 2.0}
    assert found.kind == "unexplained" and found.evidence.pieces == pytest.approx(expected)
    assert (
        "On every vector it is the second-order term and 1.3 times the query gradient at φ_K and 2 times" in found.text
    )


def test_support_gradients_that_are_added_by_half_are_found_as_a_piece():
    def sums(case, g):
        plain = []
        for supports, _ in case.tasks:
            phi, total = case.theta, [0 * leaf for leaf in case.theta]
            for batch in supports:
                slope = grad(case.loss_fn)(phi, batch)
                total = [t + s for t, s in zip(total, slope, strict=True)]
                phi = [p - case.alpha * s for p, s in zip(phi, slope, strict=True)]
            plain.append(total)
        return [a + 0.5 * b for a, b in zip(g, case.combine(plain), strict=True)]

    pieces = {"the query gradient at φ_K": 1.0, "the second-order term": 1.0, "the sum of the inner gradients": 0.5}
    assert on_maml(sums).evidence.pieces == pytest.approx(pieces)


def test_what_the_answers_are_sums_of_is_said():
    def weighted(case, g):
        per_task = [grad(lambda t: adapted(case, t, *task))(case.theta) for task in case.tasks]
        return [
            sum((2 + i + len(case.id)) * leaf for i, leaf in enumerate(leaves))
            for leaves in zip(*per_task, strict=True)
        ]

    def stepped(case, g):
        return [leaf - 0.1 / len(case.id) * slope for leaf, slope in zip(case.theta, g, strict=True)]

    found = on_maml(weighted)
    assert found.evidence.span == "the tasks' right gradients" and "a sum of multiples of the tasks'" in found.text
    assert on_maml(stepped).evidence.span == "the right answer and θ"


def adapted(case, theta, supports, query):
    phi = list(theta)
    for batch in supports:
        phi = [p - case.alpha * s for p, s in zip(phi, grad(case.loss_fn)(phi, batch), strict=True)]
    return case.loss_fn(phi, query)


def always(k, K):
    return True


def test_the_arrays_that_alone_are_wrong_are_named():
    def biases(case, g):
        return [leaf + (np.ndim(leaf) == 1 and len(g) > 1) * np.cos(leaf + len(case.id)) for leaf in g]

    assert on_maml(biases).evidence.arrays == "the biases"


def test_the_mistake_that_explains_all_but_one_vector_comes_near():
    def all_but_one(case, g):
        return [leaf + np.cos(leaf) * (case.id == "maml-tanh-k3-t3") for leaf in maml(case, cut=always)]

    found = on_maml(all_but_one)
    assert found.evidence.nearest == ("first_order",) and found.evidence.missing == ("maml-tanh-k3-t3",)
    assert found.kind == "unexplained" and "Closest: first-order" in found.text


def test_what_is_drawn_at_random_is_told_by_asking_twice():
    random = np.random.RandomState(0)
    found = on_maml(lambda case, g: [leaf + random.normal(size=leaf.shape) for leaf in g])
    assert found.kind == "unrepeatable" and "got two answers" in found.text


def test_what_is_wrong_everywhere_or_without_a_rule_says_nothing_of_where():
    def everywhere(case):
        return [np.cos(leaf) for leaf in case.theta]

    def here_and_there(case):
        return maml(case, outer=shaken(case) if case.id in ("maml-tanh-k1-t3", "maml-tanh-k5-t2") else None)

    for harness in (everywhere, here_and_there):
        found = next(v for v in check(harness, algorithms=["maml"], tiers=TIERS).verdicts)
        assert found.kind == "unexplained" and found.evidence.where == "" and "exactly" not in found.text


def test_a_rule_holds_for_all_that_is_wrong_and_nothing_that_is_right():
    cases = [v.case for v in load() if v.case.algorithm == "maml"]
    for name in conditions(cases[0]):
        wrong = [case for case in cases if conditions(case)[name]]
        right = [case for case in cases if not conditions(case)[name]]
        found = rule(wrong, right)
        assert bool(found) is bool(wrong and right)
        names = found.split(" and ") if found else []
        assert len(names) == bool(found) and all(all(conditions(case)[n] for n in names) for case in wrong)


def test_every_condition_has_a_contrary_and_tells_some_vectors_apart():
    for name in conditions(load()[0].case):
        assert {conditions(v.case)[name] for v in load()} == {True, False}, name
    assert all(sum(conditions(v.case).values()) == len(conditions(v.case)) / 2 for v in load())
