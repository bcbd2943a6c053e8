import importlib.util

import pytest

from refmeta.lab.fewshot import experiment as fewshot
from refmeta.lab.sine import experiment as sine


@pytest.fixture
def without(monkeypatch):
    """Hide libraries of the extra `lab` from the commands: without("matplotlib")."""
    whole = importlib.util.find_spec

    def hide(*libraries):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in libraries else whole(name))

    return hide


@pytest.fixture
def few_test_tasks(monkeypatch):
    """For tests that are about something else: a hundred test tasks take longer than such runs."""
    for settings in (sine.QUICKLY, fewshot.QUICKLY):
        monkeypatch.setitem(settings, "test_tasks", 10)


@pytest.fixture
def no_figures(without, few_test_tasks):
    """For tests that are about something else: drawing takes longer than such runs."""
    without("matplotlib")
