"""What these tests share."""

import sys

import pytest

from refmeta.conformance import evidence
from refmeta.conformance.explain import listed
from refmeta.conformance.mistakes import MISTAKES


def listed_ones():
    """Only the listed mistakes are looked for: where a test is of something else, the whole search takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["refmeta.conformance.explain"], "SEARCHES", (listed,))
        patch.setattr(evidence, "EVERY", list(MISTAKES))
        patch.setattr(evidence, "usual", list)
        yield


listed_alone = pytest.fixture(listed_ones, name="listed_alone")
listed_alone_here = pytest.fixture(listed_ones, scope="module", name="listed_alone_here")  # Hypothesis asks for it
