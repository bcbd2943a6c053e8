"""Which explanations an answer has, and which of them is told."""

import dataclasses

import numpy as np
import pytest
from implementations import wrong

from refmeta.conformance.cases import Case, load
from refmeta.conformance.explain import (
    Explanation,
    Factor,
    explain,
    explanations,
    factors,
    fits,
    matches,
    pairs,
    simplest,
)
from refmeta.conformance.mistakes import MISTAKES

VECTORS = load()
BY_ID = {vector.case.id: vector for vector in VECTORS}
ONE, MEAN, FLIPPED = Factor(), Factor(1, "1/tasks"), Factor(-1)


def test_the_factors_that_have_a_name_are_these():
    always = {"1": 1, "1/tasks": 0.25, "tasks": 4, "-1": -1, "-1/tasks": -0.25}
    of_reptile = {"1/alpha": 2, "-1/alpha": -2, "alpha": 0.5, "1/(alpha tasks)": 0.5}
    with_steps = {"1/(alpha steps)": 2 / 3, "1/(alpha steps tasks)": 1 / 6}

    def named(*arguments):
        found = factors(*arguments)
        assert all(factor.named and (factor.number < 0) == (c < 0) for factor, c in found.items())
        return {str(factor): c for factor, c in found.items()}

    assert named(4, 0.5, 3, "maml") == named(4, 0, 3, "reptile") == always
    assert named(4, 0.5, 0, "reptile") == always | of_reptile
    assert named(4, 0.5, 3, "reptile") == always | of_reptile | with_steps


def test_a_factor_without_a_name_is_its_digits():
    assert [str(Factor(c)) for c in (0.3, -0.5, 12350.0, 1.0, -1.0)] == ["0.3", "-0.5", "1.235e+04", "1", "-1"]
    assert [Factor(c).named for c in (0.3, -0.5, 1.0, -1.0)] == [False, False, True, True]


def test_the_factors_of_a_case_are_those_of_its_tasks_alpha_and_steps():
    vector = BY_ID["reptile-quadratic-k3-t2"]
    per_task = [task["gradient"] for task in vector.per_task]
    for c, name in ((1 / 2, "1/tasks"), (1 / 0.25, "1/alpha"), (1 / (0.25 * 3), "1/(alpha steps)")):
        got = [c * leaf for leaf in vector.gradient]
        assert ("all", Factor(1, name)) in fits(vector.case, got, per_task, 1e-9)


PER_TASK = np.array([[1.0, 2, 0, -1, 3], [0, 1, 1, 2, -2], [2, 0, -3, 1, 1]])


@pytest.mark.parametrize(
    "tasks, weights",
    [
        ("all", [1, 1, 1]),
        ("last", [0, 0, 1]),
        ("first", [1, 0, 0]),
        ("all but the last", [1, 1, 0]),
        ("all but the first", [0, 1, 1]),
        ((1, -2, 0.5), [1, -2, 0.5]),
    ],
)
def test_the_tasks_that_count_are_found_and_what_their_sum_is_multiplied_by(tasks, weights):
    got = weights @ PER_TASK
    assert matches(got, PER_TASK, {ONE: 1.0}, 1e-9) == {(tasks, ONE)}
    if isinstance(tasks, str):
        assert matches(0.3 * got, PER_TASK, {ONE: 1.0}, 1e-9) == {(tasks, Factor(0.3))}
        assert matches(0.3 * got, PER_TASK, {MEAN: 0.3}, 1e-9) == {(tasks, MEAN), (tasks, Factor(0.3))}


def test_an_answer_out_of_the_span_of_the_tasks_is_not_explained():
    assert matches(np.array([1.0, 0, 0, 0, 0]), PER_TASK, {ONE: 1.0}, 1e-9) == set()


def test_weights_need_two_tasks_and_two_numbers_more_than_tasks():
    two = PER_TASK[:2]
    assert matches([2, 3] @ two[:, :4], two[:, :4], {}, 1e-9) == {((2.0, 3.0), ONE)}
    assert matches([2, 3] @ two[:, :3], two[:, :3], {}, 1e-9) == set()
    assert matches(np.zeros(3), PER_TASK[:1, :3], {}, 1e-9) == set()


def test_an_explanation_may_be_off_by_the_limit_and_no_more():
    for task in ([[1.0, 0, 0, 0]], [[1.0, 0, 0, 0], [0, 1, 0, 0]]):
        off = np.sum(task, 0) + [0, 0, 0, 0.5]
        assert ("all", MEAN) in matches(off, np.array(task), {MEAN: 1.0}, 0.5)
        assert ("all", ONE) in matches(off, np.array(task), {}, 0.5)
        assert matches(off, np.array(task), {ONE: 1.0}, 0.499) == set()
    assert matches(np.array([2, 3, 0, 0.5]), np.array(task), {}, 0.5) == {((2.0, 3.0), ONE)}


def test_factors_are_told_apart_by_four_digits_and_weights_by_three():
    assert matches(0.333333 * PER_TASK.sum(0), PER_TASK, {}, 1e-9) == {("all", Factor(0.3333))}
    assert matches(np.array([1.23456, -2, 1]) @ PER_TASK, PER_TASK, {}, 1e-9) == {((1.23, -2.0, 1.0), ONE)}


@pytest.mark.parametrize(
    "id", ["maml-tanh-k3-t3", "reptile-tanh-k3-t3", "maml-edge-mean-over-tasks", "reptile-edge-over-alpha-k"]
)
def test_the_right_answer_of_a_vector_is_explained_by_no_mistake(id):
    vector = BY_ID[id]
    unseen = {Explanation((name,)) for name in MISTAKES if name not in vector.suspects}
    assert explanations(vector, vector.gradient, 1e-9) == {Explanation(), *unseen}


A, B, C = list(MISTAKES)[:3]


@pytest.mark.parametrize(
    "found, kept",
    [
        ([Explanation((A,), "all", Factor(0.5)), Explanation((A,), "all", Factor(1, "1/tasks"))], [1]),
        ([Explanation((A,), "all", Factor(0.5)), Explanation((B,), "all", Factor(1, "1/tasks"))], [0, 1]),
        ([Explanation((A,), "all", Factor(-0.5)), Explanation((A,), "all", Factor(-1, "1/tasks"))], [1]),
        ([Explanation((A,), "all", Factor(0.5)), Explanation((A,), "last", Factor(-1))], [0]),
        ([Explanation((A,), "all", Factor(0.5)), Explanation((A,), "all", Factor(-1))], [1]),
        ([Explanation((A,), "all", Factor(0.5)), Explanation((A, B), "all", Factor(1))], [0, 1]),
        ([Explanation((A, B)), Explanation((C,))], [1]),
        ([Explanation((A,), "last", Factor(-1)), Explanation((A,), "last")], [1]),
        ([Explanation((B,)), Explanation((A,))], [1, 0]),
        ([Explanation((A,), "last"), Explanation((A,), "first")], [1, 0]),
        ([Explanation((A,), "all", Factor(1, "tasks")), Explanation((A,), "all", Factor(1, "1/tasks"))], [1, 0]),
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
    vector = BY_ID[id]
    case = dataclasses.replace(vector.case, conventions={"tasks": tasks, "reptile": reptile, "examples": "mean"})
    got = wrong((A, B), case.algorithm)(case)
    assert next(pairs([(dataclasses.replace(vector, case=case), got, 1e-9)] * 2)) == Explanation((A, B))


def test_a_pair_of_mistakes_that_leaves_one_answer_unexplained_is_no_explanation():
    vector = BY_ID["maml-quadratic-k1-t1"]
    got = wrong((A, B), "maml")(vector.case)
    assert Explanation((A, B)) in pairs([(vector, got, 1e-9)])
    assert Explanation((A, B)) not in pairs([(vector, got, 1e-9), (vector, [leaf + 1 for leaf in got], 1e-9)])


def test_a_pair_that_does_not_explain_one_answer_is_not_tried_on_the_next():
    vector = BY_ID["maml-quadratic-k1-t1"]
    unexplained = [leaf + 1 for leaf in vector.gradient]
    assert list(pairs([(vector, unexplained, 1e-9), "never looked at"])) == []


def test_weights_of_single_tasks_are_found():
    vector = BY_ID["maml-tanh-k3-t3"]
    weights = [0.5, 0.25, 2.0]
    trees = vector.suspects["first_order"]
    got = [sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)) for leaves in zip(*trees, strict=True)]
    assert explanations(vector, got, 1e-5) == {Explanation(("first_order",), (0.5, 0.25, 2.0))}


# --- From all answers to the simplest explanations ---


def of_mistake(name, id, tasks=slice(None)):
    return BY_ID[id], [sum(leaves) for leaves in zip(*BY_ID[id].suspects[name][tasks], strict=True)], "float64"


def test_what_explains_all_answers_is_found():
    answers = [of_mistake("first_order", f"maml-quadratic-{name}") for name in ("k1-t1", "k1-t3", "k2-t2", "k3-t3")]
    assert explain(answers) == [Explanation(("first_order",))]
    lost = [of_mistake("first_order", f"maml-quadratic-{name}", slice(-1, None)) for name in ("k1-t3", "k2-t2")]
    assert explain(lost) == [Explanation(("first_order",), "last")]


def small(gradient, suspects=None, id="v", float32=0.0, float64=0.0, scale=None, **case):
    """A vector with one task and no steps, whose loss is linear: its gradient is this, and so is every pair's."""
    g = np.array(gradient, float)
    batch = np.zeros((g.size, g.size)), -g
    fields = {"theta": [g], "names": ["W"], "tasks": [([], batch)], "id": id} | case
    answers = {name: [[np.array(wrong, float)]] for name, wrong in (suspects or {}).items()}
    return dataclasses.replace(
        BY_ID["maml-quadratic-k2-t2"],
        case=dataclasses.replace(BY_ID["maml-quadratic-k2-t2"].case, **fields),
        gradient=[g],
        per_task=[{"gradient": [g]}],
        suspects=answers,
        tolerance={"float32": float32, "float64": float64},
        scale=scale or [1.0],
    )


def test_an_answer_that_is_right_and_one_that_is_wrong_are_not_explained_by_a_mistake_seen_on_both():
    v, got, dtype = of_mistake("first_order", "maml-quadratic-k1-t3")
    assert explain([(v, got, dtype), (v, v.gradient, dtype)]) == []


def test_zero_everywhere_went_to_a_copy_and_zero_somewhere_did_not():
    v, other = small([3, 4, 5], {"first_order": [0, 0, 0]}), small([3, 4, 5], {"first_order": [0, 1, 2]})
    zero, wrong = [np.zeros(3)], [np.array([0.0, 1, 2])]
    assert explain([(v, zero, "float64")] * 2) == [Explanation(("zero",))]
    assert explain([(v, zero, "float64"), (other, wrong, "float64")])[0].suspects != ("zero",)


@pytest.mark.parametrize(
    "answer, tolerances, scale, limit",
    [
        ([0, 1, 0], {"float64": 2**-20}, 1.0, 50 * 2**-20),
        ([0, 1, 0], {"float32": 2**-10}, 1.0, 50 * 2**-23),
        ([0, 9, 0], {"float64": 2**-20}, 1.0, 90 * 2**-20),
        ([0, 9, 0], {"float64": 2**-20}, 13.0, 130 * 2**-20),
        ([0, 9, 0], {"float64": 2**-30}, 13.0, 130 * 2**-23),
    ],
)
def test_an_answer_is_explained_within_ten_times_its_rounding(answer, tolerances, scale, limit):
    """Relative to the largest of answer, truth (here of length 5) and scale; to float32 precision at least."""
    got = np.array(answer, float)
    for off, found in ((0.999 * limit, True), (1.001 * limit, False)):
        v = small([3, 4, 0], {"first_order": got + [0, 0, off]}, scale=[scale], **tolerances)
        assert (Explanation(("first_order",)) in explain([(v, [got], "float64")])) is found


def test_the_tolerance_is_that_of_the_answers_own_dtype():
    got, near = np.array([0.0, 1, 0]), np.array([0.0, 1, 2**-8])
    v = small([3, 4, 0], {"first_order": near}, float32=2**-10)
    assert explain([(v, [got], "float32")]) == [Explanation(("first_order",))]
    assert explain([(v, [got], "float64")]) == []


def test_one_or_two_numbers_take_no_factor_that_has_no_name():
    def found(*sizes):
        answers = []
        for n in sizes:
            wrong = np.arange(1.0, n + 1)
            v = small(3 + wrong**2, {"first_order": -wrong, "last_step_only": wrong / 0.3})
            answers.append((v, [wrong], "float64"))
        return [(e.suspects, str(e.scale)) for e in explain(answers)]

    assert found(2) == found(1, 2) == found(2, 2) == [(("first_order",), "-1"), (("first_order",), "-1/tasks")]
    assert found(3) == found(2, 3) == found(2) + [(("last_step_only",), "0.3")]


def test_nothing_is_explained_within_a_limit_that_is_infinite():
    with np.errstate(over="ignore"):
        assert explain([(small([3, 4, 5]), [np.array([1e160, -1e160, 1e200])], "float64")]) == []


def test_pairs_are_tried_on_quadratics_and_the_smallest_first():
    tried = []

    class Watched(Case):
        @property
        def settings(self):
            tried.append(self.id)
            return super().settings

    def watched(v):
        return dataclasses.replace(v, case=Watched(**vars(v.case)))

    three, four = (small(np.arange(1.0, n), id=f"quadratic of {n - 1}") for n in (4, 5))
    vectors = [watched(v) for v in (BY_ID["maml-tanh-k1-t3"], four, three)]
    rng = np.random.default_rng(0)
    assert explain([(v, [rng.normal(size=g.shape) for g in v.gradient], "float64") for v in vectors]) == []
    assert set(tried) == {"quadratic of 3"}
    tried.clear()
    right = [vectors[0].gradient, [rng.normal(size=4)], vectors[2].gradient]
    assert explain([(v, got, "float64") for v, got in zip(vectors, right, strict=True)]) == []
    assert set(tried) == {"quadratic of 3", "quadratic of 4"}
