"""Which explanations an answer has, and which of them is told."""

import dataclasses

import numpy as np
import pytest
from implementations import wrong

from refmeta.conformance import rules
from refmeta.conformance.cases import Case, load
from refmeta.conformance.explain import (
    ZERO,
    Answered,
    Explanation,
    Factor,
    cheapest_first,
    explain,
    factors,
    fitted,
    held,
    listed,
    listed_pairs,
    matches,
    of_vector,
    others,
    pairs,
    simplest,
    slow,
    step_sizes,
)
from refmeta.conformance.mistakes import MISTAKES, OTHERS

# The searches alone; `explain` sees to it that a wrong program may divide by nothing.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
VECTORS = load()
BY_ID = {vector.case.id: vector for vector in VECTORS}
ONE, MEAN, FLIPPED = Factor(), Factor(1, "1/tasks"), Factor(-1)
OWN_MEAN = Factor(1, "", (("tasks", "mean"),))


def of_vectors(answers):
    return cheapest_first([of_vector(*a) for a in answers])


def plain(found):
    """Those under the vectors' conventions."""
    return [e for e in found if not e.scale.own and "of a mean" not in e.scale.name]


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
    for c, name in ((1 / 2, "1/tasks"), (1 / 0.25, "1/alpha"), (1 / (0.25 * 3), "1/(alpha steps)")):
        got = [c * leaf for leaf in vector.gradient]
        assert ("all", Factor(1, name)) in of_vector(vector, got, "float64").fits()


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

    def found(got, factors):
        return {fit for fit in matches(got, PER_TASK, factors, 1e-9) if "of several" not in fit[0]}

    assert found(got, {ONE: 1.0}) == {(tasks, ONE)}
    if isinstance(tasks, str):
        assert found(0.3 * got, {ONE: 1.0}) == {(tasks, Factor(0.3))}
        assert found(0.3 * got, {MEAN: 0.3}) == {(tasks, MEAN), (tasks, Factor(0.3))}


@pytest.mark.parametrize("lost", ["all but the last", "all but the first"])
def test_a_single_task_is_lost_or_kept(lost):
    one, none = np.array([[1.0, 2, 3, 4]]), np.zeros(4)
    assert (f"{lost}, of several", ONE) in matches(one[0], one, {ONE: 1.0}, 1e-9)
    assert (lost, ONE) in matches(none, one, {ONE: 1.0}, 1e-9) and (lost, ONE) not in matches(
        one[0], one, {ONE: 1.0}, 1
    )


def test_an_answer_out_of_the_span_of_the_tasks_is_not_explained():
    assert matches(np.array([1.0, 0, 0, 0, 0]), PER_TASK, {ONE: 1.0}, 1e-9) == set()


def test_weights_need_two_tasks_and_two_numbers_more_than_tasks():
    two = PER_TASK[:2]
    assert matches([2, 3] @ two[:, :4], two[:, :4], {}, 1e-9) == {((2.0, 3.0), ONE)}
    assert matches([2, 3] @ two[:, :3], two[:, :3], {}, 1e-9) == set()
    assert matches(np.zeros(3), PER_TASK[:1, :3], {}, 1e-9) == set()


def test_an_explanation_may_be_off_by_the_limit_and_no_more():
    for task in ([[1.0, 0, 0, 0]], [[1.0, 0, 0, 0], [0, 1, 0, 0]]):
        off = np.sum(task, 0) + [0, 0, 0, 0.0625]
        assert ("all", MEAN) in matches(off, np.array(task), {MEAN: 1.0}, 0.0625)
        assert ("all", Factor(3)) in matches(3 * off, np.array(task), {}, 0.1875)
        assert matches(off, np.array(task), {ONE: 1.0}, 0.062) == matches(3 * off, np.array(task), {}, 0.187) == set()
    assert matches(np.array([2, 3, 0, 0.5]), np.array(task), {}, 0.5) == {((2.0, 3.0), ONE)}


@pytest.mark.parametrize(
    "c, found", [(1.0009, False), (1.0011, True), (0.9991, False), (-1.0009, False), (-1.0011, True)]
)
def test_a_fitted_factor_is_off_1_by_more_than_ten_limits(c, found):
    """Within that any gradient that points the same way is a multiple of the right one."""
    u = np.array([[1.0, 0, 0, 0]])
    assert bool(matches(c * u[0], u, {}, 1e-4)) is found


def test_a_fitted_factor_that_prints_as_1_is_none():
    """That all is right but for a factor of 1 would be no news, and of −1 a flipped sign."""
    for c in (1.00001, -1.00001):
        assert matches(c * PER_TASK.sum(0), PER_TASK[:1] * 0 + PER_TASK.sum(0), {}, 1e-9) == set()
    assert matches(1.001 * PER_TASK.sum(0), PER_TASK, {ONE: 1.0, FLIPPED: -1.0}, 1e-9) == {("all", Factor(1.001))}


def test_fitted_weights_that_print_as_1_are_none():
    assert matches([1.00001, 1, 0.99999] @ PER_TASK, PER_TASK, {ONE: 1.0}, 1e-9) == set()


def test_gradients_that_overflow_explain_nothing():
    assert matches(PER_TASK[0], np.array([PER_TASK[0], [0, 0, np.inf, 0, 0]]), {ONE: 1.0}, 1e9) == set()


def test_factors_are_told_apart_by_four_digits_and_weights_by_three():
    assert matches(0.333333 * PER_TASK.sum(0), PER_TASK, {}, 1e-9) == {("all", Factor(0.3333))}
    assert matches(np.array([1.23456, -2, 1]) @ PER_TASK, PER_TASK, {}, 1e-9) == {((1.23, -2.0, 1.0), ONE)}


@pytest.mark.parametrize(
    "id", ["maml-tanh-k3-t3", "reptile-tanh-k3-t3", "maml-edge-mean-over-tasks", "reptile-edge-over-alpha-k"]
)
def test_the_right_answer_of_a_vector_is_explained_by_no_mistake(id):
    vector = BY_ID[id]
    right = of_vector(vector, vector.gradient, "float64")
    same = {name for name in MISTAKES if ("all", ONE) in right.fits((name,))}
    assert same == set(MISTAKES) - set(vector.suspects)
    assert simplest(list(listed([right]))) == [Explanation()]  # a mistake that no answer shows explains none


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


BOTH = ("adapted_on_query", "theta_leaks_across_tasks")


def of_both(id, tasks="sum", reptile="displacement"):
    """The answer with both mistakes under these conventions."""
    vector = BY_ID[id]
    case = dataclasses.replace(vector.case, conventions={"tasks": tasks, "reptile": reptile, "examples": "mean"})
    return of_vector(dataclasses.replace(vector, case=case), wrong(BOTH, case.algorithm)(case), "float64")


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
def test_a_pair_of_mistakes_is_found_under_every_convention(id, tasks, reptile):
    answer = of_both(id, tasks, reptile)
    assert set(plain(listed_pairs([answer]))) == {Explanation(order) for order in (BOTH, BOTH[::-1])}
    assert Explanation(BOTH) in pairs([answer])
    assert explain([answer]) == [Explanation(BOTH)]


def test_of_all_pairs_the_two_orders_alone_explain_it():
    found = plain(pairs([of_both("reptile-quadratic-k2-t3", "mean", "over_alpha_k")]))
    found = [e for e in found if "descended=0.5" not in e.suspects]  # αK is ½: an outer step of ½ ends in φ too
    assert Explanation(BOTH) in found and set(found) <= {Explanation(BOTH), Explanation(BOTH[::-1])}


def test_a_pair_of_mistakes_that_leaves_one_answer_unexplained_is_no_explanation():
    vector = BY_ID["maml-quadratic-k3-t3"]
    both, other = (
        of_vector(vector, [leaf + off for leaf in wrong(BOTH, "maml")(vector.case)], "float64") for off in (0, 1)
    )
    assert Explanation(BOTH) in listed_pairs([both]) and Explanation(BOTH) not in listed_pairs([both, other])


def test_a_pair_of_which_the_second_undoes_the_first_explains_nothing():
    """Second order where first order was asked for, made where first order was made: nothing is wrong."""
    vector = BY_ID["maml-quadratic-k3-t3"]
    right = of_vector(vector, vector.gradient, "float64")
    assert right.fits(("first_order", "second_order")) == right.fits() and ("all", ONE) in right.fits()
    assert held([right], ("first_order", "second_order")) == list(pairs([right])) == []


def test_weights_of_single_tasks_are_found():
    vector = BY_ID["maml-tanh-k3-t3"]
    weights = [0.5, 0.25, 2.0]
    trees = vector.suspects["first_order"]
    got = [sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)) for leaves in zip(*trees, strict=True)]
    assert list(listed([of_vector(vector, got, "float64")])) == [Explanation(("first_order",), (0.5, 0.25, 2.0))]


# --- Where rounding is large ---

U = np.array([3.0, 4.0, 0.0, 0.0])  # its length is 5


@pytest.mark.parametrize(
    "off, own, found",
    [
        (0.9e-6, 0.0, True),  # within the limit
        (1.1e-6, 0.0, False),
        (1.1e-6, 1e-3, True),  # within its own rounding
        (1e-4, 0.9e-4, False),
        (0.9 * 5e-3, np.inf, True),  # within a thousandth, and no farther
        (1.1 * 5e-3, np.inf, False),
    ],
)
def test_a_path_that_climbs_is_told_within_its_own_rounding(off, own, found):
    asked = []

    def rounding(program):
        asked.append(program)
        return own

    def under(program):
        return np.array([U if program else U[::-1]])

    answer = Answered(U + [0, 0, off, 0], under, {ONE: 1.0, MEAN: 0.5}, 1e-6, rounding)
    explanations = held([answer], ("inner_ascent",))
    assert (Explanation(("inner_ascent",)) in explanations) is found and all(
        e.scale != MEAN or e.tasks != "all" for e in explanations
    )
    # It is dear, and asked for only where something is near, but beyond the limit.
    assert asked == [("inner_ascent",)] * (1e-6 < off < 5e-3)


@pytest.mark.parametrize("apart, shown", [(9.5, False), (10.5, True)])
def test_what_changes_the_sum_by_less_than_ten_limits_is_no_explanation(apart, shown):
    def under(program):
        return np.array([U, [1, 1, apart * 1e-6 if program else 0, 1]])

    changed = Answered(under(("first_order",)).sum(0), under, {ONE: 1.0}, 1e-6)
    same = Answered(2 * U, lambda _: np.array([U, U]) + [[0, 0, 1, 0], [0, 0, -1, 0]], {ONE: 1.0}, 1e-6)
    for answers in ([changed], [same, changed], [changed, same]):  # in one is enough
        assert held(answers, ("first_order",)) == [Explanation(("first_order",))] * shown
        assert held(answers, ("alpha=0.2",)) == [Explanation(("alpha=0.2",))] * shown
    turned = same._replace(
        under=lambda program: np.array([U, U]) + np.array([[0, 0, 1, 0], [0, 0, -1, 0]]) * (1 + len(program))
    )
    assert (
        held([turned], ()) == [Explanation()] and held([turned], ("first_order",)) == []
    )  # tasks change, their sum not
    assert held([same], ()) == [Explanation()] and held([same], ("first_order",)) == held([same], ("alpha=0.2",)) == []


# --- Another step size ---


def on_path(vector, alpha, factor=1.0):
    """The answer of maml on this quadratic with another α, by Jacobians."""
    return vector, [factor * by_hand(vector.case, alpha)], "float64"


def by_hand(case, alpha=None, start=lambda end: None, data=lambda s, q: (s, q), cut=(), from_theta=False, moves=1.0):
    """Second-order MAML on quadratics, whose gradient is A φ − b: J is the derivative of φ in θ."""
    alpha, theta, total = alpha or case.alpha, np.concatenate([leaf.ravel() for leaf in case.theta]), 0
    begin, P = None, np.diag(moves * np.ones(theta.size))
    for supports, query in case.tasks:
        supports, (A_q, b_q) = data(supports, query)
        phi, J = (theta, np.eye(theta.size)) if begin is None else begin
        for k, (A, b) in enumerate(supports):
            g, H = P @ (A @ phi - b), P @ A @ J * (k not in cut)
            phi, J = (
                (theta - alpha * g, np.eye(theta.size) - alpha * H) if from_theta else (phi - alpha * g, J - alpha * H)
            )
        total, begin = total + J.T @ (A_q @ phi - b_q), start((phi, J))
    return total


K3, K5 = BY_ID["maml-quadratic-k3-t3"], BY_ID["maml-quadratic-k5-t2"]


@pytest.mark.parametrize("vector", [K3, K5], ids=lambda v: v.case.id)
def test_the_answers_by_hand_are_right(vector):
    assert np.allclose(by_hand(vector.case), vector.gradient[0], 1e-12)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 0.137, 0.0123456, 0.2512])
def test_another_step_size_is_named_with_six_digits(alpha):
    found, *others = explained([on_path(K3, alpha)])
    assert found == Explanation((f"alpha={alpha}",)) and not found.convention and found.mistakes == 1
    on_one_vector = {"alpha_times", "vectors_faster", "small_faster"}
    assert {e.suspects[0].split("=")[0] for e in others} <= on_one_vector


@pytest.mark.parametrize("alpha", [0.1, 0.0777])
def test_another_step_size_is_named_beside_the_mean(alpha):
    assert explained([on_path(K3, alpha, 1 / 3)])[0] == Explanation((f"alpha={alpha}",), "all", OWN_MEAN)


def test_another_step_size_must_be_the_same_in_every_answer():
    other = BY_ID["maml-quadratic-k1-t3"]
    assert explained([on_path(K3, 0.137), on_path(other, 0.137)])[0] == Explanation(("alpha=0.137",))
    for apart in (0.25, 0.139):
        answers = of_vectors([on_path(K3, 0.137), on_path(other, apart)])
        assert explain(answers, [listed, others, fitted]) == []


def test_a_step_size_is_not_fitted_to_two_numbers_nor_to_what_is_right_nor_without_one():
    assert list(step_sizes(of_vectors([on_path(K5, 0.137)]))) == []
    assert list(step_sizes(of_vectors([on_path(K3, 0.25)]))) == []
    zero = BY_ID["maml-edge-alpha-zero"]
    assert list(step_sizes([of_vector(zero, [leaf + 1 for leaf in zero.gradient], "float64")])) == []


def test_a_step_size_is_fitted_to_the_first_answer_that_is_wrong():
    """One without steps is right under any."""
    none, wrong = BY_ID["maml-edge-no-steps"], of_vector(*on_path(K3, 0.137))
    assert plain(step_sizes([of_vector(none, none.gradient, "float64"), wrong])) == [Explanation(("alpha=0.137",))]


def test_a_step_size_is_found_under_a_flipped_sign():
    assert explained([on_path(K3, 0.137, -1)])[0] == Explanation(("alpha=0.137",), "all", FLIPPED)


def test_the_step_size_of_reptile_is_told_from_its_scale():
    vector = BY_ID["reptile-quadratic-k2-t3"]
    case = dataclasses.replace(vector.case, alpha=0.03125)
    got = case.combine(rules.gradients(case.derivatives, case.settings))
    assert explained([(vector, got, "float64")])[0] == Explanation(("alpha=0.03125",))


# --- What no vector lists ---

CUT = "every second inner step is not differentiated"


@pytest.mark.parametrize(
    "vector, changed, names",
    [
        (K3, {"data": lambda s, q: ([q] * len(s), s[-1])}, ["swapped"]),
        (K3, {"from_theta": True}, ["restarted"]),
        (K3, {"start": lambda end: end}, ["one_chain"]),
        (K3, {"cut": {1}}, ["odd_steps_cut", "step_cut=2"]),
        (K3, {"cut": {0, 2}}, ["even_steps_cut"]),
        (K3, {"cut": {0}}, ["first_steps_cut=1", "last_steps_alone=2"]),
        (K3, {"cut": {2}}, ["last_step_cut", "first_steps_alone=2", "step_cut=3"]),
        (K5, {"cut": {0, 2, 4}}, ["even_steps_cut"]),
        (K5, {"cut": {1, 3}}, ["odd_steps_cut"]),
        (K5, {"cut": {0, 1}}, ["first_steps_cut=2", "last_steps_alone=3"]),
        (K5, {"cut": {0, 1, 2}}, ["first_steps_cut=3", "last_steps_alone=2"]),
        (K5, {"cut": {3}}, ["step_cut=4"]),
        (K5, {"cut": {4}}, ["last_step_cut", "first_steps_alone=4", "step_cut=5"]),
    ],
)
def test_a_mistake_that_no_vector_lists_is_named(vector, changed, names):
    got = by_hand(vector.case, **changed)
    assert explained([(vector, [got], "float64")]) == [Explanation((name,)) for name in names]
    if vector is K3:
        assert explained([(vector, [got / 3], "float64")]) == [Explanation((name,), "all", OWN_MEAN) for name in names]


def split_in_three(vector):
    return dataclasses.replace(
        vector, case=dataclasses.replace(vector.case, theta=np.split(vector.case.theta[0], 3), names=["W", "V", "c"])
    )


def test_a_last_layer_that_adapts_alone_is_named():
    vector = split_in_three(K3)  # its last array has one axis: a bias, whose matrix is before it
    got = by_hand(vector.case, moves=np.array([0.0, 1, 1]))
    assert explained([(vector, [got], "float64")]) == [Explanation(("last_layer_adapt",))]
    matrix = dataclasses.replace(vector.case, theta=[*vector.case.theta[:2], vector.case.theta[2][None]])
    got = by_hand(vector.case, moves=np.array([0.0, 0, 1]))
    vector = dataclasses.replace(vector, case=matrix)
    assert Explanation(("last_layer_adapt",)) in explained([(vector, [got], "float64")])  # or its only matrix


@pytest.mark.parametrize(
    "cut, name", [({0, 1}, "last_step_only"), ({1, 2}, "first_step_only"), ({0, 1, 2}, "first_order")]
)
def test_a_mistake_that_is_listed_comes_before_those_that_are_not(cut, name):
    answers = [(K3, [by_hand(K3.case, cut=cut)], "float64")]
    assert explained(answers) == [Explanation((name,))]
    assert len(list(others(of_vectors(answers)))) >= (name != "first_step_only")  # and they say the same


def test_what_no_vector_lists_is_looked_for_before_step_sizes_and_pairs():
    (answer,) = of_vectors([(K3, [by_hand(K3.case, from_theta=True)], "float64")])
    asked = []

    def search(name, found):
        def searched(answers):
            asked.append(name)
            return found

        return searched

    assert explain([answer], [search("a", []), search("b", [Explanation()]), others, search("c", [])]) == [
        Explanation(("restarted",))
    ]
    assert asked == ["a", "b"]  # what says nothing does not end the search; what is found does


def test_every_step_that_subtracts_from_theta_is_named_in_first_order_too():
    vector = BY_ID["fomaml-quadratic-k3-t2"]
    got = by_hand(vector.case, from_theta=True, cut={0, 1, 2})
    assert np.allclose(by_hand(vector.case, cut={0, 1, 2}), vector.gradient[0])
    assert explained([(vector, [got], "float64")]) == [Explanation(("restarted",))]


@pytest.mark.parametrize(
    "name, ids",
    {
        "swapped": ["reptile-quadratic-k2-t3", "joint-canary", "maml-edge-no-steps"],
        "one_chain": ["fomaml-quadratic-k3-t2", "reptile-quadratic-k2-t3", "joint-canary", "maml-edge-no-steps"],
        "restarted": ["maml-quadratic-k1-t3", "fomaml-canary", "maml-edge-no-steps"],
        "odd_steps_cut": ["maml-quadratic-k1-t3", "fomaml-quadratic-k3-t2", "reptile-quadratic-k2-t3"],
        "first_steps_cut=3": ["fomaml-quadratic-k3-t2", "maml-edge-no-steps"],
        "step_cut=4": ["maml-quadratic-k3-t3"],
    }.items(),
)
def test_where_a_mistake_cannot_be_made_it_is_not(name, ids):
    answers = {id: of_vector(BY_ID[id], BY_ID[id].gradient, "float64") for id in [*ids, K5.case.id]}
    assert {id for id, answer in answers.items() if answer.shows((name,))} == {K5.case.id}


def test_every_mistake_that_no_vector_lists_has_words_of_its_own():
    assert all(m.title and m.cause and m.id == name and name not in MISTAKES for name, m in OTHERS.items())
    assert len({m.title for m in OTHERS.values()}) == len(OTHERS) and OTHERS["odd_steps_cut"].title == CUT


# --- Progress ---


def test_after_two_seconds_stderr_says_how_many_are_left(monkeypatch, capsys):
    now = iter([0.0, 1.9, 2.1, 3.0, 4.2, 4.3])
    monkeypatch.setattr("refmeta.conformance.explain.monotonic", lambda: next(now))
    assert list(slow(["a", "b", "c"], "mistakes")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "refmeta: not explained yet; tried 1 of 3 mistakes\n")


def test_on_a_terminal_the_line_is_written_over(monkeypatch, capsys):
    monkeypatch.setattr("refmeta.conformance.explain.monotonic", iter(range(0, 99, 3)).__next__)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(slow(["a", "b"], "pairs of mistakes")) == ["a", "b"]
    found = capsys.readouterr().err
    assert found == "".join(f"refmeta: not explained yet; tried {i} of 2 pairs of mistakes\r" for i in range(2))


# --- From all answers to the simplest explanations ---


def explained(answers):
    return explain(of_vectors(answers))


def of_mistake(name, id, tasks=slice(None)):
    return BY_ID[id], [sum(leaves) for leaves in zip(*BY_ID[id].suspects[name][tasks], strict=True)], "float64"


def test_what_explains_all_answers_is_found():
    answers = [of_mistake("first_order", f"maml-quadratic-{name}") for name in ("k1-t1", "k1-t3", "k2-t2", "k3-t3")]
    assert explained(answers) == [Explanation(("first_order",))]
    lost = [of_mistake("first_order", f"maml-quadratic-{name}", slice(-1, None)) for name in ("k1-t3", "k2-t2")]
    assert explained(lost) == [Explanation(("first_order",), "last")]


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
    assert explained([(v, got, dtype), (v, v.gradient, dtype)]) == []


def test_zero_everywhere_went_to_a_copy_and_zero_somewhere_did_not():
    v, other = small([3, 4, 5], {"first_order": [0, 0, 0]}), small([3, 4, 5], {"first_order": [0, 1, 2]})
    zero, wrong = [np.zeros(3)], [np.array([0.0, 1, 2])]
    assert explained([(v, zero, "float64")] * 2) == [ZERO] == [Explanation(("zero",))]
    assert explained([(v, zero, "float64"), (other, wrong, "float64")])[0].suspects != ("zero",)


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
        assert (Explanation(("first_order",)) in explained([(v, [got], "float64")])) is found


def test_the_tolerance_is_that_of_the_answers_own_dtype():
    got, near = np.array([0.0, 1, 0]), np.array([0.0, 1, 2**-8])
    v = small([3, 4, 0], {"first_order": near}, float32=2**-10)
    assert explained([(v, [got], "float32")]) == [Explanation(("first_order",))]
    assert explained([(v, [got], "float64")]) == []


def test_one_or_two_numbers_take_no_factor_that_has_no_name():
    def found(*sizes):
        answers = []
        for n in sizes:
            wrong = np.arange(1.0, n + 1)
            v = small(3 + wrong**2, {"first_order": -wrong, "last_step_only": wrong / 0.3})
            answers.append((v, [wrong], "float64"))
        return [(e.suspects, str(e.scale)) for e in explained(answers)]

    assert found(2) == found(1, 2) == found(2, 2) == [(("first_order",), "-1"), (("first_order",), "-1/tasks")]
    assert found(3) == found(2, 3) == found(2) + [(("last_step_only",), "0.3")]


def test_nothing_is_explained_within_a_limit_that_is_infinite():
    with np.errstate(over="ignore"):
        assert explained([(small([3, 4, 5]), [np.array([1e160, -1e160, 1e200])], "float64")]) == []


def test_pairs_are_tried_on_quadratics_and_the_smallest_first():
    tried = []

    class Watched(Case):
        def scaled(self, per_task):
            tried.append(self.id)
            return super().scaled(per_task)

    def watched(v):
        return dataclasses.replace(v, case=Watched(**vars(v.case)))

    three, four = (small(np.arange(1.0, n), id=f"quadratic of {n - 1}") for n in (4, 5))
    vectors = [watched(v) for v in (BY_ID["maml-tanh-k1-t3"], four, three)]
    rng = np.random.default_rng(0)
    answers = of_vectors((v, [rng.normal(size=g.shape) for g in v.gradient], "float64") for v in vectors)
    assert list(pairs(answers)) == []
    assert "maml-tanh-k1-t3" not in tried and answers[2].got.size > 4
