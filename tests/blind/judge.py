"""Is a name true? Its program must give the implementation's answers to cases that nobody has seen."""

import numpy as np

from refmeta.conformance import Skip
from refmeta.conformance.check import read_answer
from refmeta.conformance.explain import every_factor, of_settings, patterns
from refmeta.conformance.programs import with_mistakes
from refmeta.conformance.rules import flat
from tests.blind.fresh import cases

SEEDS = 2
NEAR = 2e-3  # factors are told to four digits, and numbers to six


def predicted(explanation, case):
    """The answer of the program; None where it says nothing, as of weights of another number of tasks."""
    names = patterns(len(case.tasks))
    if not isinstance(explanation.tasks, str) and len(explanation.tasks) != len(case.tasks):
        return None
    weights = names[explanation.tasks] if isinstance(explanation.tasks, str) else np.array(explanation.tasks)
    scale = every_factor(case).get(explanation.scale, explanation.scale.number)
    settings = with_mistakes(explanation.suspects, case.settings)
    return scale * (weights @ of_settings(case, case.derivatives, settings))


@np.errstate(all="ignore")
def true(function, explanation, algorithm):
    """On how many fresh cases the program gives the answer, of how many."""
    right = asked = 0
    for case in (case for seed in range(SEEDS) for case in cases(algorithm, seed)):
        expected = predicted(explanation, case)
        try:
            answer = read_answer(function(case), case).gradient
        except Skip:
            continue
        except Exception:
            answer = None
        if expected is None or answer is None:
            continue
        got = flat(answer)
        asked += 1
        right += bool(np.linalg.norm(got - expected) <= NEAR * np.linalg.norm(got))
    return right, asked
