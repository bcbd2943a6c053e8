"""The checker passes what is right, names what is wrong, and survives what is broken."""

import dataclasses
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import first, last, mean, wrong

import refmeta
from refmeta import adjoint
from refmeta.conformance import Skip, assert_case, check, parameters, rules
from refmeta.conformance.cases import load
from refmeta.conformance.check import NEARLY, Answer, judge
from refmeta.conformance.explain import Explanation, Factor
from refmeta.conformance.harness import meta_gradient
from refmeta.conformance.mistakes import MISTAKES
from tests.blind.noise import noisy
from tests.vectors.derivations import in_floats

VECTORS = load()
ALGORITHMS = ("maml", "fomaml", "anil", "reptile", "joint")


def right(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd, of an empty head: there is nothing to differentiate
        return meta_gradient(case)


def verdict(harness, algorithm="maml", **options):
    return check(harness, algorithms=[algorithm], **options).verdicts[0]


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
    flat = [s._replace(theta=[rules.flat(s.theta)], rates=(True,)) for s in case.settings]
    per_task = rules.gradients(tools(case.derivatives), flat)
    return case.combine([parts(g[0]) for g in per_task])


@pytest.mark.parametrize("harness", [right, by_adjoint, stacked, reversed_examples, flattened, in_floats])
def test_right_implementations_pass(harness):
    report = check(harness)
    assert report.passed, str(report)
    assert [v.kind for v in report.verdicts] == ["pass"] * 5


@pytest.mark.parametrize("harness", [right, by_adjoint, reversed_examples])
def test_right_implementations_pass_in_float32(harness):
    report = check(harness, dtype="float32")
    assert report.passed, str(report)
    assert min(row.digits for row in report.rows) > 5


@settings(max_examples=190)
@given(st.integers(0, 2**32), st.floats(0, 1), st.sampled_from(["float32", "float64"]))
def test_no_right_gradient_with_rounding_noise_is_accused(seed, size, dtype):
    """10,000 of them, each with noise of up to half the tolerance; the other half is the rounding of adding it."""
    rng = np.random.default_rng(seed)

    report = judge((vector, Answer(noisy(vector, dtype, size / 2, rng), {}, dtype)) for vector in VECTORS)
    assert report.passed and len(report.rows) == len(VECTORS)


@pytest.mark.parametrize("algorithm, size", [*((algorithm, 3) for algorithm in ALGORITHMS), ("maml", 300)])
def test_more_noise_than_rounding_fails_and_still_names_no_mistake(algorithm, size):
    rng = np.random.default_rng(size)

    def noisy(case):
        vector = next(v for v in VECTORS if v.case.id == case.id)
        pairs = zip(vector.gradient, vector.scale, strict=True)
        return [g + rng.normal(size=g.shape) * size * vector.tolerance["float32"] * s for g, s in pairs]

    found = verdict(noisy, algorithm)
    assert found.kind in ("precision", "unexplained", "unrepeatable")  # for it is another noise each time


# --- Known mistakes come back under their own names ---


VISIBLE = sorted({(v.case.algorithm, name) for v in VECTORS for name in v.suspects})


@pytest.mark.parametrize("algorithm, name", VISIBLE)
def test_every_mistake_fed_blind_comes_back_under_its_name(algorithm, name):
    found = verdict(wrong([name], algorithm), algorithm)
    assert found.kind == "bug"
    assert found.explanations == (Explanation((name,)),)
    assert MISTAKES[name].title in found.text and MISTAKES[name].ledger in found.text


@pytest.mark.parametrize(
    "suspects, tasks, scale, expected",
    [
        (["first_order"], last, None, Explanation(("first_order",), "last")),
        (["first_order"], last, mean, Explanation(("first_order",), "last", Factor(1, "1/tasks"))),
        (["support_as_query"], None, mean, Explanation(("support_as_query",), "all", Factor(1, "1/tasks"))),
        ([], last, None, Explanation((), "last")),
        ([], first, mean, Explanation((), "first", Factor(1, "1/tasks"))),
        ([], None, lambda case: -1.0, Explanation((), "all", Factor(-1))),
        (["first_order"], None, lambda case: 0.5, Explanation(("first_order",), "all", Factor(0.5))),
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


def test_the_mean_over_tasks_is_a_convention_and_no_accusation():
    found = verdict(wrong([], "maml", scale=mean))
    assert found.kind == "convention" and "a convention, not a mistake" in found.text
    found = verdict(wrong([], "reptile", scale=lambda case: 1 / case.alpha), "reptile")
    assert found.kind == "convention" and "1/alpha" in found.text


def in_its_own_way(case, algorithm, tasks="sum", reptile="displacement", first_order=False):
    """As somebody does who never looks at case.conventions."""
    if case.algorithm != algorithm:
        raise Skip("another algorithm")
    own = dataclasses.replace(case, conventions={**case.conventions, "tasks": tasks, "reptile": reptile})
    if not first_order:
        return right(own)
    return own.combine([refmeta.fomaml(own.loss_fn, own.theta, [task], own.alpha) for task in own.tasks])


@pytest.mark.parametrize("tasks", ["sum", "mean"])
@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "anil", "joint", "reptile"])
def test_who_always_sums_or_always_takes_the_mean_is_right_and_told_so(algorithm, tasks):
    report = check(lambda case: in_its_own_way(case, algorithm, tasks), algorithms=[algorithm])
    assert report.passed and report.verdicts[0].kind == "pass"
    asked = {v.case.conventions["tasks"] for v in VECTORS if v.case.algorithm == algorithm}
    assert (f"a convention of its own, whatever a vector asks for: the {tasks}" in report.verdicts[0].text) is (
        asked != {tasks} or algorithm == "reptile"
    )


@pytest.mark.parametrize("reptile", ["displacement", "over_alpha"])
def test_who_always_returns_the_same_displacement_is_right(reptile):
    report = check(lambda case: in_its_own_way(case, "reptile", "mean", reptile), algorithms=["reptile"])
    assert report.passed and f"the mean over the tasks, {reptile}" in report.verdicts[0].text


@pytest.mark.parametrize("tasks", ["sum", "mean"])
def test_a_mistake_is_named_under_its_own_convention(tasks):
    report = check(lambda case: in_its_own_way(case, "maml", tasks, first_order=True), algorithms=["maml"])
    assert not report.passed and [e.suspects for e in report.verdicts[0].explanations] == [("first_order",)]
    assert f"the {tasks} over the tasks" in report.verdicts[0].text


def test_one_vector_alone_has_no_convention_of_its_own():
    case = next(v.case for v in VECTORS if v.case.id == "maml-quadratic-k1-t3")
    with pytest.raises(AssertionError, match="one vector, no diagnosis: it is 1/tasks times the answer"):
        assert_case(lambda case: in_its_own_way(case, "maml", "mean"), case)


@pytest.mark.usefixtures("listed_alone")
def test_a_wrong_row_has_its_cosine_its_norm_and_the_digits_of_each_array():
    def unknown(case):
        return [g + 0.1 for g in right(case)]

    row = next(r for r in check(unknown, algorithms=["anil"], tiers=["tanh"]).rows if r.id == "anil-tanh-k3-t3")
    assert re.search(r"cosine .* norm ratio .*, correct digits: W1 .*, b1 .*, W2 .*, b2", row.message)


def test_zero_gradients_went_to_a_copy():
    found = verdict(lambda case: [0 * leaf for leaf in case.theta])
    assert "every gradient is zero" in found.text and "copy_initial_weights" in found.text


def test_a_mistake_in_one_algorithm_leaves_the_others_right():
    report = check(wrong(["features_detached"], "anil"))
    assert {v.algorithm: v.kind for v in report.verdicts} == {**dict.fromkeys(ALGORITHMS, "pass"), "anil": "bug"}
    assert not report.passed


# --- Form, wiring, precision ---


@pytest.mark.parametrize("answer", [lambda leaf: leaf[None], lambda leaf: leaf * np.nan, lambda leaf: 0 * leaf])
def test_a_canary_that_is_no_answer_means_the_harness_is_not_wired_up(answer):
    """Where the others are right."""

    def harness(case):
        return [answer(leaf) if case.tier == "canary" else leaf for leaf in right(case)]

    found = verdict(harness, "joint")  # of which least need be looked for
    assert found.kind == "wiring" and "joint-canary" in found.text and "Nothing else is judged" in found.text


@pytest.mark.usefixtures("listed_alone")
def test_a_canary_that_is_wrong_says_nothing_of_the_wiring():
    assert verdict(lambda case: [np.cos(leaf) for leaf in case.theta]).kind == "unexplained"


def test_float32_where_float64_was_asked_for_is_said():
    def single(case):
        return [leaf.astype("float64") for leaf in right(case.astype("float32"))]

    found = verdict(single)
    assert found.kind == "precision" and "float32" in found.text


def test_results_in_float32_are_held_to_its_tolerance():
    assert check(lambda case: [leaf.astype("float32") for leaf in right(case.astype("float32"))]).passed


def alone(case, task):
    """A case with one of its tasks."""
    return dataclasses.replace(case, tasks=[task])


def mean_times_tasks(case):
    n = len(case.tasks)
    per_task = [right(alone(case, task)) for task in case.tasks]
    return [sum(leaf / n for leaf in leaves) * n / case.divisor for leaves in zip(*per_task, strict=True)]


def theta_minus_mean_phi(case):
    """As OpenAI's Reptile."""
    if case.algorithm != "reptile":
        return right(case)
    n = len(case.tasks)
    phis = [rules.path(case.derivatives, s)[-1] for s in case.settings]
    mean = [sum(leaves) / n for leaves in zip(*phis, strict=True)]
    factor = case.factor(case.tasks[0][0]) * n / case.divisor
    return [(t - phi) * factor for t, phi in zip(case.theta, mean, strict=True)]


def complex_step(case):
    """Hessian-vector products of a quadratic by the imaginary part of a gradient, a tiny imaginary step away."""
    if case.model["kind"] != "quadratic":
        return right(case)

    def hvp(phi, batch, v):
        t = rules.flat(phi) + 1e-30j * rules.flat(v)
        return rules.unflat((batch[0] @ t - batch[1]).imag / 1e-30, phi)

    return case.combine(rules.gradients(rules.Derivatives(case.derivatives.grad, hvp), case.settings))


@pytest.mark.parametrize("harness", [mean_times_tasks, theta_minus_mean_phi, complex_step])
def test_a_roundabout_way_that_is_right_to_the_last_bits_passes_with_a_remark(harness):
    report = check(harness)
    assert report.passed and {v.kind for v in report.verdicts} == {"pass"}
    nearly = [v.text for v in report.verdicts if "not exact where nothing need be rounded" in v.text]
    assert nearly and all("exact on" not in text for text in nearly)
    assert all(row.digits >= 14 for row in report.rows) and any(row.message for row in report.rows)


def test_a_way_that_loses_more_than_the_last_bits_fails():
    found = verdict(lambda case: [leaf * (1 + 1e-12) for leaf in right(case)])
    assert found.kind == "precision" and "some step loses digits" in found.text
    assert verdict(lambda case: [leaf * (1 + 3e-14) for leaf in right(case)]).kind == "pass"


def test_no_known_mistake_is_as_small_as_what_passes():
    for v in VECTORS:
        for suspect in v.suspects.values():
            wrong_by = [
                np.linalg.norm(sum(leaves) / v.case.divisor - g) / max(scale, np.linalg.norm(g))
                for leaves, g, scale in zip(zip(*suspect, strict=True), v.gradient, v.scale, strict=True)
            ]
            assert max(wrong_by) > 100 * max(NEARLY.values()), v.case.id


# --- Intermediate values ---


def inside(case):
    ways, d = case.settings, case.derivatives
    return {
        "gradient": right(case),
        "phi": [rules.path(d, s) for s in ways],
        "inner_gradient": [[d.grad(*p) for p in zip(rules.path(d, s), s.supports, strict=False)] for s in ways],
        **({"adjoint": [rules.adjoints(d, s) for s in ways]} if case.algorithm in ("maml", "anil") else {}),
    }


def test_intermediates_may_be_returned():
    assert check(inside).passed


@pytest.mark.usefixtures("listed_alone")
@pytest.mark.parametrize(
    "key, step, message",
    [
        ("phi", 2, "φ_2 is the first wrong value: look at inner step 2 (task 1 of maml"),
        ("inner_gradient", 1, "φ_1 is right, and the inner gradient there is the first wrong value"),
        ("adjoint", 1, "on the way back ∂L_Q/∂φ_1 is the first wrong value"),
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


@pytest.mark.usefixtures("listed_alone")
def test_theta_returned_is_no_meta_gradient():
    report = check(lambda case: case.theta, algorithms=["maml", "reptile"])
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
    with pytest.raises(AssertionError, match=r"\Amaml: one vector, no diagnosis: cosine 0\.432"):
        assert_case(wrong(["first_order"], "maml"), case)
    with pytest.raises(AssertionError, match=r"\Amaml: one vector, no diagnosis: it is 1/tasks times the answer"):
        assert_case(lambda case: [leaf / 3 for leaf in right(case)], case)


def test_a_case_is_called_by_its_id():
    assert [str(v.case) for v in VECTORS] == [v.case.id for v in VECTORS]


def test_a_case_shows_no_answers():
    seen = []
    check(lambda case: seen.append(case) or right(case), algorithms=["maml"], tiers=["canary"])
    assert {f.name for f in dataclasses.fields(seen[0])} == {
        *("id", "algorithm", "theta", "tasks", "alpha", "head", "model", "loss", "conventions"),
        *("names", "tier", "flags"),
    }
