"""The lists that right and wrong implementations enter themselves in."""

from collections.abc import Callable
from inspect import signature
from typing import NamedTuple


class Style(NamedTuple):
    """An implementation, what it claims to be, and the traits of the networks that it needs or cannot hold."""

    run: Callable
    algorithm: str
    tasks: str
    family: str | None
    needs: frozenset
    not_for: frozenset
    fewest_steps: int

    def holds(self, problem, steps):
        headed = problem.head is not None or "head" not in signature(self.run).parameters
        stream = ("stream" in self.needs) == ("stream" in problem.traits)
        traits = self.needs <= problem.traits and not self.not_for & problem.traits
        return headed and stream and traits and steps >= self.fewest_steps


def enter(styles, family, tasks, algorithm, needs, not_for, fewest_steps):
    def register(run):
        name = run.__name__.replace("_", " ")
        assert name not in styles, name
        styles[name] = Style(
            run, algorithm, tasks, family, frozenset(needs.split()), frozenset(not_for.split()), fewest_steps
        )
        return run

    return register


def right_in(styles):
    """The decorator of right implementations: the sum or the mean over tasks, of which algorithm."""
    return lambda tasks, algorithm="maml", needs="", not_for="": enter(
        styles, None, tasks, algorithm, needs, not_for, 1
    )


def wrong_in(styles):
    """The decorator of wrong implementations: the family of the mistake, and the fewest steps at which it is one."""
    return lambda family, tasks="sum", algorithm="maml", needs="", not_for="", steps=1: enter(
        styles, family, tasks, algorithm, needs, not_for, steps
    )
