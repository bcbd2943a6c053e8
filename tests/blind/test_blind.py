"""A few of the blind implementations are what they say, and one that is not is refused."""

import pytest

from tests.blind import prove
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
