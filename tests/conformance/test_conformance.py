"""The checker passes what is right, names what is wrong, and survives what is broken."""

import dataclasses
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest
from autograd import grad
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import first, last, mean, wrong
from problems import assert_same

import refmeta
from refmeta import adjoint
from refmeta.conformance import Skip, assert_case, check, derivation, parameters, rules
from refmeta.conformance.attribution import (
    PATTERNS,
    Explanation,
    convention,
    explanations,
    matches,
    pairs,
    scales,
    scales_of,
    settings_of,
    shape,
    simplest,
    tools_of,
)
from refmeta.conformance.cases import load
from refmeta.conformance.checker import Answer, row_of
from refmeta.conformance.harness import meta_gradient
from refmeta.conformance.mistakes import MISTAKES

VECTORS = load()
ALGORITHMS = ("maml", "fomaml", "anil", "reptile", "joint")


def right(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd, of an empty head: there is nothing to differentiate
        return meta_gradient(case)


def verdict(harness, algorithm="maml", **options):
    return check(harness, algorithms=[algorithm], **options).verdicts[0]


# --- Attribution, function by function ---


def test_the_factors_that_have_a_name_are_these():
    always = {"1": 1, "1/tasks": 0.25, "tasks": 4, "-1": -1, "-1/tasks": -0.25}
    of_reptile = {"1/alpha": 2, "-1/alpha": -2, "alpha": 0.5, "1/(alpha tasks)": 0.5}
    with_steps = {"1/(alpha steps)": 2 / 3, "1/(alpha steps tasks)": 1 / 6}
    assert scales(4, 0.5, 3, "maml") == scales(4, 0, 3, "reptile") == always
    assert scales(4, 0.5, 0, "reptile") == always | of_reptile
    assert scales(4, 0.5, 3, "reptile") == always | of_reptile | with_steps
    case = next(v.case for v in VECTORS if v.case.id == "reptile-quadratic-k3-t2")
    assert scales_of(case) == scales(2, 0.25, 3, "reptile")


PER_TASK = np.array([[1.0, 2, 0, -1, 3], [0, 1, 1, 2, -2], [2, 0, -3, 1, 1]])


@pytest.mark.parametrize(
    "tasks, weights",
    [
        ("all", [1, 1, 1]),
        ("last", [0, 0, 1]),
        ("first", [1, 0, 0]),
        ("all but the last", [1, 1, 0]),
        ("all but the first", [0, 1, 1]),
        ("weighted 1, -2, 0.5", [1, -2, 0.5]),
    ],
)
def test_the_tasks_that_count_are_found_and_what_their_sum_is_multiplied_by(tasks, weights):
    got = weights @ PER_TASK
    assert matches(got, PER_TASK, {"1": 1.0}, 1e-9) == {(tasks, "1")}
    if tasks in PATTERNS:
        assert matches(0.3 * got, PER_TASK, {"1": 1.0}, 1e-9) == {(tasks, "0.3")}
        assert matches(0.3 * got, PER_TASK, {"a third": 0.3}, 1e-9) == {(tasks, "a third"), (tasks, "0.3")}


def test_an_answer_out_of_the_span_of_the_tasks_is_not_explained():
    assert matches(np.array([1.0, 0, 0, 0, 0]), PER_TASK, {"1": 1.0}, 1e-9) == set()


def test_weights_need_two_tasks_and_two_numbers_more_than_tasks():
    two = PER_TASK[:2]
    assert matches([2, 3] @ two[:, :4], two[:, :4], {}, 1e-9) == {("weighted 2, 3", "1")}
    assert matches([2, 3] @ two[:, :3], two[:, :3], {}, 1e-9) == set()
    assert matches(np.zeros(3), PER_TASK[:1, :3], {}, 1e-9) == set()


def test_an_explanation_may_be_off_by_the_limit_and_no_more():
    for task in ([[1.0, 0, 0, 0]], [[1.0, 0, 0, 0], [0, 1, 0, 0]]):
        off = np.sum(task, 0) + [0, 0, 0, 0.5]
        assert ("all", "one") in matches(off, np.array(task), {"one": 1.0}, 0.5)
        assert ("all", "1") in matches(off, np.array(task), {}, 0.5)
        assert matches(off, np.array(task), {"1": 1.0}, 0.499) == set()
    assert matches(np.array([2, 3, 0, 0.5]), np.array(task), {}, 0.5) == {("weighted 2, 3", "1")}


@pytest.mark.parametrize(
    "id", ["maml-tanh-k3-t3", "reptile-tanh-k3-t3", "maml-edge-mean-over-tasks", "reptile-edge-over-alpha-k"]
)
def test_the_right_answer_of_a_vector_is_explained_by_no_mistake(id):
    vector = next(v for v in VECTORS if v.case.id == id)
    unseen = {Explanation((name,)) for name in MISTAKES if name not in vector.suspects}
    assert explanations(vector, vector.gradient, 1e-9) == {Explanation(), *unseen}


def test_what_is_multiplied_by_a_declared_convention():
    case = next(v.case for v in VECTORS if v.case.algorithm == "reptile")

    def factor(algorithm, name):
        return convention(dataclasses.replace(case, algorithm=algorithm, alpha=0.25, conventions={"reptile": name}), 3)

    assert factor("reptile", "displacement") == factor("maml", "over_alpha") == 1
    assert factor("reptile", "over_alpha") == 4
    assert factor("reptile", "over_alpha_k") == Fraction(4, 3)


def test_what_a_setting_says_of_the_model():
    case = next(v.case for v in VECTORS if v.case.id == "maml-tanh-one-output-k2-t3")
    case = dataclasses.replace(case, algorithm="anil", head=2)
    batch = np.zeros((7, 2)), np.zeros((7, 1))
    said = {"moves": (False, False, True, True), "n": 7, "outputs": 1}
    assert shape(case, [batch]) == said
    assert shape(case, []) == said | {"n": None}
    assert shape(dataclasses.replace(case, algorithm="maml"), [batch]) == said | {"moves": (True,) * 4}
    assert shape(dataclasses.replace(case, loss={"kind": "other"}), [batch]) == said | {"outputs": None}
    summed = dataclasses.replace(case, conventions=case.conventions | {"examples": "sum"})
    assert shape(summed, [batch]) == said | {"n": None}
    assert (
        shape(dataclasses.replace(case, model={"kind": "quadratic"}, loss={"kind": "quadratic"}), [batch])["n"] is None
    )


def test_the_derivatives_of_a_quadratic_loss_by_hand_are_its_derivatives():
    case = next(v.case for v in VECTORS if v.case.tier == "quadratic" and len(v.case.theta) > 1)
    tools, batch, v = case.derivatives, case.tasks[0][1], [leaf + 1 for leaf in case.theta]
    assert_same(tools.grad(case.theta, batch), grad(case.loss_fn)(case.theta, batch))
    assert_same(tools.hvp(case.theta, batch, v), adjoint.hvp(case.loss_fn, case.theta, batch, v))


A, B, C = list(MISTAKES)[:3]


@pytest.mark.parametrize(
    "found, kept",
    [
        ([Explanation((A,), "all", "0.5"), Explanation((A,), "all", "1/tasks")], [1]),
        ([Explanation((A,), "all", "0.5"), Explanation((B,), "all", "1/tasks")], [0, 1]),
        ([Explanation((A,), "all", "-0.5"), Explanation((A,), "all", "-1/tasks")], [1]),
        ([Explanation((A,), "all", "0.5"), Explanation((A,), "last", "-1")], [0]),
        ([Explanation((A,), "all", "0.5"), Explanation((A,), "all", "-1")], [1]),
        ([Explanation((A,), "all", "0.5"), Explanation((A, B), "all", "1")], [0, 1]),
        ([Explanation((A, B)), Explanation((C,))], [1]),
        ([Explanation((A,), "last", "-1"), Explanation((A,), "last")], [1]),
        ([Explanation((B,)), Explanation((A,))], [1, 0]),
        ([Explanation((A,), "last"), Explanation((A,), "first")], [1, 0]),
        ([Explanation((A,), "all", "tasks"), Explanation((A,), "all", "1/tasks")], [1, 0]),
        ([Explanation((B, A)), Explanation((A, B))], [1]),
        ([Explanation((B, A), "last"), Explanation((A, B), "first")], [1, 0]),
    ],
)
def test_the_simplest_explanations_are_kept_in_the_suspects_order(found, kept):
    assert simplest(found) == [found[i] for i in kept]


@pytest.mark.parametrize("tasks", ["sum", "mean"])
@pytest.mark.parametrize(
    "id, reptile",
    [
        ("maml-quadratic-k3-t3", "displacement"),
        ("reptile-quadratic-k2-t3", "displacement"),
        ("reptile-quadratic-k2-t3", "over_alpha"),
        ("reptile-quadratic-k2-t3", "over_alpha_k"),
    ],
)
def test_the_first_pair_of_mistakes_is_found_under_every_convention(id, tasks, reptile):
    vector = next(v for v in VECTORS if v.case.id == id)
    case = dataclasses.replace(vector.case, conventions={"tasks": tasks, "reptile": reptile, "examples": "mean"})
    got = wrong((A, B), case.algorithm)(case)
    assert next(pairs([(dataclasses.replace(vector, case=case), got, 1e-9)] * 2)) == Explanation((A, B))


def test_a_pair_of_mistakes_that_leaves_one_answer_unexplained_is_no_explanation():
    vector = next(v for v in VECTORS if v.case.id == "maml-quadratic-k1-t1")
    got = wrong((A, B), "maml")(vector.case)
    assert Explanation((A, B)) in pairs([(vector, got, 1e-9)])
    assert Explanation((A, B)) not in pairs([(vector, got, 1e-9), (vector, [leaf + 1 for leaf in got], 1e-9)])


def test_a_pair_that_does_not_explain_one_answer_is_not_tried_on_the_next():
    vector = next(v for v in VECTORS if v.case.id == "maml-quadratic-k1-t1")
    unexplained = [leaf + 1 for leaf in vector.gradient]
    assert list(pairs([(vector, unexplained, 1e-9), "never looked at"])) == []


# --- Right implementations ---


def by_adjoint(case):
    if case.algorithm not in ("maml", "anil"):
        return right(case)
    options = {"head": case.head} if case.algorithm == "anil" else {}
    derive = getattr(adjoint, case.algorithm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return case.combine([derive(case.loss_fn, case.theta, [t], case.alpha, **options) for t in case.tasks])


def stacked(case):
    if case.algorithm == "reptile" and case.conventions["reptile"] != "displacement":
        return right(case)
    options = {"head": case.head} if case.algorithm == "anil" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        g = refmeta.stacked(getattr(refmeta, case.algorithm))(
            case.loss_fn, case.theta, case.tasks, case.alpha, **options
        )
    return [leaf / len(case.tasks) for leaf in g] if case.conventions["tasks"] == "mean" else g


def reversed_examples(case):
    def turned(batch):
        return batch and (batch[0][::-1], batch[1][::-1])

    if case.model["kind"] == "quadratic":
        return right(case)
    tasks = [([turned(b) for b in supports], turned(query)) for supports, query in case.tasks[::-1]]
    return right(dataclasses.replace(case, tasks=tasks))


def flattened(case):
    """All parameters in one vector inside, as many libraries have them."""
    ends = np.cumsum([leaf.size for leaf in case.theta])[:-1]

    def parts(t):
        return [p.reshape(leaf.shape) for p, leaf in zip(np.split(t, ends), case.theta, strict=True)]

    def tools(t):
        return rules.Derivatives(
            lambda phi, batch: [rules.flat(t.grad(parts(phi[0]), batch))],
            lambda phi, batch, v: [rules.flat(t.hvp(parts(phi[0]), batch, parts(v[0])))],
        )

    if case.algorithm == "anil":
        return right(case)
    flat = [s._replace(theta=[rules.flat(s.theta)], moves=(True,)) for s in case.settings]
    per_task = rules.gradients(tools(case.derivatives), flat)
    return case.combine([parts(g[0]) for g in per_task])


def forward_over_reverse(case):
    """Hessian-vector products as the dual part of gradients by hand."""
    ways = [
        s._replace(
            theta=[leaf.astype(object) for leaf in s.theta],
            supports=[_objects(b) for b in s.supports],
            query=_objects(s.query),
        )
        for s in case.settings
    ]
    return [np.asarray(leaf, float) for leaf in case.combine(rules.gradients(derivation.derivatives(case), ways))]


def _objects(batch):
    return batch and tuple(derivation.in_arithmetic(float, part) for part in batch)


@pytest.mark.parametrize("harness", [right, by_adjoint, stacked, reversed_examples, flattened, forward_over_reverse])
def test_right_implementations_pass(harness):
    report = check(harness)
    assert report.passed, str(report)
    assert [v.kind for v in report.verdicts] == ["pass"] * 5


@pytest.mark.parametrize("harness", [right, by_adjoint, reversed_examples])
def test_right_implementations_pass_in_float32(harness):
    report = check(harness, dtype="float32")
    assert report.passed, str(report)
    assert min(row.digits for row in report.rows) > 5


@settings(max_examples=10_000)
@given(
    st.integers(0, len(VECTORS) - 1), st.integers(0, 2**32), st.floats(0, 1), st.sampled_from(["float32", "float64"])
)
def test_no_right_gradient_with_rounding_noise_is_accused(index, seed, size, dtype):
    """Noise of any size up to half the tolerance passes; the other half is the rounding of adding it."""
    vector, rng = VECTORS[index], np.random.default_rng(seed)
    noise = [rng.normal(size=g.shape) for g in vector.gradient]
    pairs = zip(noise, vector.scale, vector.gradient, strict=True)
    got = [g + e / (np.linalg.norm(e) or 1) * size / 2 * vector.tolerance[dtype] * s for e, s, g in pairs]
    assert row_of(vector, Answer(got, {}, dtype)).status == "pass"


@pytest.mark.parametrize("size", [3, 30, 300])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_more_noise_than_rounding_fails_and_still_names_no_mistake(algorithm, size):
    rng = np.random.default_rng(size)

    def noisy(case):
        vector = next(v for v in VECTORS if v.case.id == case.id)
        pairs = zip(right(case), vector.scale, strict=True)
        return [g + rng.normal(size=g.shape) * size * vector.tolerance["float32"] * s for g, s in pairs]

    found = verdict(noisy, algorithm)
    assert found.kind in ("precision", "unexplained")


# --- Known mistakes come back under their own names ---


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_mistake_fed_blind_comes_back_under_its_name(name, algorithm):
    visible = [v for v in VECTORS if v.case.algorithm == algorithm and name in v.suspects]
    if not visible:
        pytest.skip(f"{name} cannot be made in {algorithm}, or gives the right answer there")
    found = verdict(wrong([name], algorithm), algorithm)
    assert found.kind == "bug"
    assert found.explanations == (Explanation((name,)),)
    assert MISTAKES[name].title in found.text and MISTAKES[name].ledger in found.text


@pytest.mark.parametrize(
    "suspects, tasks, scale, expected",
    [
        (["first_order"], last, None, Explanation(("first_order",), "last")),
        (["first_order"], last, mean, Explanation(("first_order",), "last", "1/tasks")),
        (["support_as_query"], None, mean, Explanation(("support_as_query",), "all", "1/tasks")),
        ([], last, None, Explanation((), "last")),
        ([], first, mean, Explanation((), "first", "1/tasks")),
        ([], None, lambda case: -1.0, Explanation((), "all", "-1")),
        (["first_order"], None, lambda case: 0.5, Explanation(("first_order",), "all", "0.5")),
    ],
)
def test_lost_tasks_and_scales_are_named_with_the_mistake(suspects, tasks, scale, expected):
    harness = wrong(suspects, "maml", tasks or (lambda i, n: 1.0), scale or (lambda case: 1.0))
    assert verdict(harness).explanations[0] == expected


@pytest.mark.parametrize(
    "both",
    [("first_order", "support_as_query"), ("inner_ascent", "first_order"), ("stale_gradient", "support_as_query")],
)
def test_two_mistakes_at_once_are_named(both):
    (found,) = verdict(wrong(both, "maml")).explanations
    assert set(found.suspects) == set(both)


def test_weights_of_single_tasks_are_found():
    vector = next(v for v in VECTORS if v.case.id == "maml-tanh-k3-t3")
    weights = [0.5, 0.25, 2.0]
    trees = vector.suspects["first_order"]
    got = [sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)) for leaves in zip(*trees, strict=True)]
    assert explanations(vector, got, 1e-5) == {Explanation(("first_order",), "weighted 0.5, 0.25, 2")}


def test_the_mean_over_tasks_is_a_convention_and_no_accusation():
    found = verdict(wrong([], "maml", scale=mean))
    assert found.kind == "convention" and "a convention, not a mistake" in found.text
    found = verdict(wrong([], "reptile", scale=lambda case: 1 / case.alpha), "reptile")
    assert found.kind == "convention" and "1/alpha" in found.text


def test_an_unknown_mistake_gets_no_name():
    def harness(case):
        return [leaf + 0.1 * np.sin(np.arange(leaf.size)).reshape(leaf.shape) + 0.1 for leaf in right(case)]

    def unknown(case):
        return right(case) if case.tier == "canary" else harness(case)

    found = verdict(unknown)
    assert found.kind == "unexplained" and "no guess" in found.text
    row = next(r for r in check(unknown, algorithms=["anil"]).rows if r.id == "anil-tanh-k3-t3")
    assert re.search(r"cosine .* times as long, correct digits: W1 .*, b1 .*, W2 .*, b2", row.message)


def test_zero_gradients_went_to_a_copy():
    found = verdict(lambda case: [0 * leaf for leaf in case.theta])
    assert "every gradient is zero" in found.text and "copy_initial_weights" in found.text


def test_a_mistake_in_one_algorithm_leaves_the_others_right():
    report = check(wrong(["features_detached"], "anil"))
    assert {v.algorithm: v.kind for v in report.verdicts} == {**dict.fromkeys(ALGORITHMS, "pass"), "anil": "bug"}
    assert not report.passed


# --- Form, wiring, precision ---


def test_a_failing_canary_means_the_harness_is_not_wired_up():
    found = verdict(lambda case: [np.cos(leaf) for leaf in case.theta])
    assert found.kind == "wiring" and "maml-canary" in found.text and "nothing else is judged" in found.text


def test_float32_where_float64_was_asked_for_is_said():
    def single(case):
        return [leaf.astype("float64") for leaf in right(case.astype("float32"))]

    found = verdict(single)
    assert found.kind == "precision" and "float32" in found.text


def test_results_in_float32_are_held_to_its_tolerance():
    assert check(lambda case: [leaf.astype("float32") for leaf in right(case.astype("float32"))]).passed


def test_a_roundabout_way_is_told_from_a_mistake():
    found = verdict(lambda case: [leaf / 3 * 3 + leaf * 2**-52 for leaf in right(case)])
    assert found.kind == "precision" and "last bits" in found.text


# --- Intermediate values ---


def inside(case):
    ways = case.settings
    tools = case.derivatives
    return {
        "gradient": right(case),
        "phi": [rules.path(tools, s) for s in ways],
        "inner_gradient": [[tools.grad(*p) for p in rules.points(tools, s)] for s in ways],
        **({"adjoint": [rules.adjoints(tools, s) for s in ways]} if case.algorithm in ("maml", "anil") else {}),
    }


def test_intermediates_may_be_returned():
    assert check(inside).passed


@pytest.mark.parametrize(
    "key, step, message",
    [
        ("phi", 2, "φ_2 is the first wrong value: look at inner step 2 (task 1 of maml"),
        ("inner_gradient", 1, "φ_1 is right and the inner gradient at it is the first wrong value"),
        ("adjoint", 1, "of ∂L_Q/∂φ_k the last, φ_1, is the first wrong value of the way back"),
    ],
)
def test_the_first_wrong_intermediate_is_said(key, step, message):
    def harness(case):
        answer = inside(case)
        if case.tier != "canary":
            answer["gradient"] = [leaf + 0.3 for leaf in answer["gradient"]]
            for task in answer[key]:
                if len(task) > step:
                    task[step] = [leaf + 0.1 for leaf in task[step]]
        return answer

    assert message in verdict(harness, tiers=["canary", "quadratic", "tanh"]).text.replace("\n", " ")


# --- Broken harnesses: a row each, and never the end of the run ---


def crash(case):
    raise RuntimeError("double backward not implemented")


def test_theta_returned_is_no_meta_gradient():
    report = check(lambda case: case.theta)
    assert not report.passed and all(v.kind != "pass" for v in report.verdicts)


def test_one_crash_costs_one_row():
    def sometimes(case):
        return crash(case) if case.id == "maml-tanh-k3-t3" else right(case)

    report = check(sometimes)
    assert [row.id for row in report.rows if row.status != "pass"] == ["maml-tanh-k3-t3"]
    assert "no answer" in next(v.text for v in report.verdicts if v.algorithm == "maml")


def test_a_harness_may_decline():
    def only_maml(case):
        if case.algorithm != "maml":
            raise Skip("only MAML is implemented")
        return right(case)

    report = check(only_maml)
    assert report.passed and "not checked: only MAML is implemented" in str(report)
    assert not check(lambda case: only_maml(dataclasses.replace(case, algorithm="anil"))).passed


# --- Ways in and out ---


@pytest.mark.parametrize("case", parameters())
def test_one_parametrised_test_for_each_vector(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_case(right, case)


def test_a_parametrised_test_fails_with_the_diagnosis():
    case = next(v.case for v in VECTORS if v.case.id == "maml-tanh-k3-t3")
    with pytest.raises(AssertionError, match="first-order: the second-order term is missing"):
        assert_case(wrong(["first_order"], "maml"), case)


def test_a_case_is_called_by_its_id():
    assert [str(v.case) for v in VECTORS] == [v.case.id for v in VECTORS]


def test_a_case_shows_no_answers():
    seen = []
    check(lambda case: seen.append(case) or right(case), algorithms=["maml"], tiers=["canary"])
    assert {f.name for f in dataclasses.fields(seen[0])} == {
        *("id", "algorithm", "theta", "tasks", "alpha", "head", "model", "loss", "conventions"),
        *("names", "tier", "flags"),
    }
