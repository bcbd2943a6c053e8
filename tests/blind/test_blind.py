"""A few of the blind implementations are what they say, and one that is not is refused."""

import pytest

from refmeta.conformance import check
from refmeta.conformance.explain import Explanation
from tests.blind import prove
from tests.blind.__main__ import judged
from tests.blind.judge import true
from tests.blind.registry import load

pytestmark = pytest.mark.filterwarnings("ignore:Output seems independent")  # ANIL without a head, one of the vectors
NUMPY = load("numpy")
RIGHT = [
    "numpy/maml/adjoint",
    "numpy/fomaml/in_place_and_put_back",
    "numpy/anil/anil_adjoint",
    "numpy/joint/weighted_batch",
]
WRONG = ["numpy/maml/hessians_at_theta", "numpy/anil/adapts_the_body", "numpy/joint/joint_on_supports"]


@pytest.mark.parametrize("name", [*RIGHT, *WRONG])
def test_one_is_what_it_says_and_not_the_contrary(name):
    entry = NUMPY[name]
    assert bool(entry.mistakes) is (name in WRONG)
    fine, note = prove.judged(entry)
    assert fine, note
    assert not prove.judged(entry._replace(mistakes=1 - entry.mistakes))[0]


def test_an_answer_of_another_form_or_none_is_refused():
    right = NUMPY[RIGHT[0]]
    for function in (lambda case: case.theta[:0], lambda case: 1 / 0):
        assert not prove.judged(right._replace(function=function))[0]


NAMED = [
    "numpy/maml/hessian_of_the_query",
    "numpy/maml/always_one_step",
    "numpy/maml/rate_over_k",
    "numpy/fomaml/tasks_of_unit_length",
    "numpy/anil/head_from_zeros",
    "numpy/reptile/adam_inside",
    "numpy/reptile/query_as_another_batch",
    "numpy/joint/joint_on_supports",
    "numpy/maml/velocity_from_task_to_task",
    "numpy/maml/output_bias_of_theta",
    "numpy/fomaml/mean_of_the_pieces",
    "numpy/maml/best_iterate",
    "numpy/maml/standardised_targets",
    "numpy/maml/one_activation_short",
    "numpy/maml/coarse_differences",
    "numpy/fomaml/hardest_task_alone",
    "numpy/fomaml/queries_of_all_tasks",
    "numpy/anil/body_put_back",
    "numpy/reptile/serial",
    "numpy/joint/root_of_the_loss",
    "numpy/maml/half_summed_over_outputs",
    "numpy/maml/double_rate_for_biases",
    "numpy/reptile/never_set_back",
    "numpy/joint/overwritten_and_clipped",
]


@pytest.mark.parametrize("name", NAMED)
def test_a_wrong_one_is_named_and_the_name_is_true(name):
    entry = NUMPY[name]
    (verdict,) = check(entry.function, algorithms=[entry.algorithm]).verdicts
    assert judged(entry, verdict)[0] == "named", verdict.text


def test_a_name_that_is_false_is_told():
    entry = NUMPY[NAMED[0]]
    (verdict,) = check(entry.function, algorithms=["maml"]).verdicts
    false = verdict._replace(explanations=(Explanation(("hessians_at_theta",)),))
    assert judged(entry, false)[0] == "FALSE"
    good, asked = true(entry.function, verdict.explanations[0], "maml")
    assert good == asked >= 10


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_passes(name):
    assert check(NUMPY[name].function, algorithms=[NUMPY[name].algorithm]).passed
