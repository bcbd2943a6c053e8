import importlib.util

import pytest


@pytest.fixture
def without(monkeypatch):
    """Hide libraries of the extra `lab` from the commands: without("matplotlib")."""
    whole = importlib.util.find_spec

    def hide(*libraries):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in libraries else whole(name))

    return hide


@pytest.fixture
def no_figures(without):
    """For tests that are about something else: drawing takes longer than such runs."""
    without("matplotlib")
