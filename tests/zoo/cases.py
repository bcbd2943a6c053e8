"""Which implementation is asked about which network, and what the audit said."""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import NamedTuple

import numpy as np

# The seven families of the bars (that of the data has three forms), and what the first line of a verdict on each says.
MAIN = {
    "first order": ("first-order",),
    "one step short": ("one inner step is missing",),
    "wrong inner rate": ("the inner step size is", "divided by the number of examples"),  # at every step, too
    "ascent": ("the inner loop climbs",),
    "swapped data": ("support and query are swapped",),
    "query used for both": ("adapts to the query",),
    "support used for both": ("outer loss is taken on the support",),
    "head only": ("in the inner loop only the last layer can move",),
    "cut in the middle": ("not differentiated", "only the last inner step is differentiated"),
}
FURTHER = {  # a family that is in neither is refused, but has no name
    "momentum inside": ("the inner loop has momentum",),
    "weight decay inside": ("the inner loop has weight decay",),
    "gradients clipped": ("the inner gradients are clipped",),
    "support loss added": ("the support loss after adaptation is added",),
    "body frozen": ("the outer gradient is that of the last layer alone",),
    "first-order: .grad not zeroed": ("the sum of all gradients until then",),
    "first batch at every step": ("takes the first support batch",),
    "no adaptation": ("the adapted parameters are ignored",),
    "restart from theta": ("from θ, not from the φ",),
    "gradient computed once": ("computed once",),
    "sum inside": ("summed over the examples",),
    "biases not adapted": ("biases are not adapted",),
    "not restored between tasks": ("the task before it ended",),
    "only the last task": ("only the last task counts",),
    "query loss at every step": ("query losses after every step",),
    "anil: everything adapts": ("whole network is adapted",),
    "anil: features detached": ("features are detached",),
    "first-order: at theta": ("the adapted parameters are ignored",),
    "reptile: sign": ("multiplied by -1",),
    "reptile: one step short": ("one inner step is missing",),
    "joint: on the supports": ("taken on the support",),
}
NAMES = MAIN | FURTHER
LEAST = 1e-4  # a mistake that changes the gradient by less, relatively, is none there
ALGORITHMS = "maml", "fomaml", "anil", "reptile", "joint"
# One in so many of all (network, style) is asked about at each seed: a compilation of JAX takes seconds.
ONE_IN = {
    "torch": {"right": 5, "wrong": 7, "further": 22},
    "jax": {"right": 14, "wrong": 18, "further": 36},
}


class Case(NamedTuple):
    framework: str
    kind: str
    network: str
    style: str
    steps: int
    seed: int

    def __str__(self):
        return f"{self.framework}: {self.style!r} on {self.network!r}, {self.steps} steps, seed {self.seed}"


class Land(NamedTuple):
    """A framework's networks and implementations."""

    problems: dict
    right: dict
    wrong: dict
    bound: Callable
    gradient: Callable


@lru_cache
def land(framework):
    end = "" if framework == "torch" else "_jax"
    networks, right, wrong, ask = (
        import_module(f"tests.zoo.{name}{end}") for name in ("networks", "right", "wrong", "ask")
    )
    return Land(networks.PROBLEMS, right.RIGHT, wrong.WRONG, ask.bound, ask.gradient)


def group(style):
    """right, wrong (of the seven families), or further."""
    return "right" if style.family is None else "wrong" if style.family in MAIN else "further"


def cases(framework, kind, seeds, every=None):
    """The zoo's cases: at each seed another part of all pairs, and other numbers of steps."""
    here, out = land(framework), []
    for seed in range(seeds):
        for i, (network, problem) in enumerate(here.problems.items()):
            rank = Counter()  # of a style in its group
            for name, style in getattr(here, kind).items():
                one_in, j = every or ONE_IN[framework][group(style)], rank[group(style)]
                rank[group(style)] += 1
                steps = [k for k in problem.steps if style.holds(problem, k)]
                if steps and (3 * i + j + seed) % one_in == 0:
                    out.append(Case(framework, kind, network, name, steps[(i + j // one_in + seed) % len(steps)], seed))
    return out


def problem_of(case):
    return land(case.framework).problems[case.network]


def style_of(case):
    return getattr(land(case.framework), case.kind)[case.style]


@lru_cache(maxsize=512)
def meta_gradient(case):
    """The implementation as the audit takes it; what JAX has compiled for one question serves the next."""
    return land(case.framework).bound(problem_of(case), style_of(case), case.steps)


@lru_cache(maxsize=64)
def right_gradient(framework, network, algorithm, steps, seed):
    """The right gradient in float64, summed over tasks, by the first style that holds the network."""
    here = land(framework)
    problem = here.problems[network]
    style = next(s for s in here.right.values() if s.algorithm == algorithm and s.holds(problem, steps))
    tasks = len(problem.tasks(seed))
    return np.asarray(here.gradient(problem, here.bound(problem, style, steps), seed)) * (
        tasks if style.tasks == "mean" else 1
    )


def difference(case):
    """How far the case's gradient is from the right one, relatively; a wrong one may be a sum or a mean over tasks."""
    problem, style = problem_of(case), style_of(case)
    right = right_gradient(case.framework, case.network, style.algorithm, case.steps, case.seed)
    mine = np.asarray(land(case.framework).gradient(problem, meta_gradient(case), case.seed))
    tasks = len(problem.tasks(case.seed))
    scales = (1, tasks) if case.kind == "wrong" else (tasks if style.tasks == "mean" else 1,)
    return min(np.linalg.norm(scale * mine - right) for scale in scales) / np.linalg.norm(right)


def is_mistake(case):
    """Whether a wrong one is wrong there, and by a number."""
    return LEAST < difference(case) < np.inf


def audit(case, dtype):
    """What the audit reports; at odd seeds it is told whether tasks are summed or averaged."""
    problem, style = problem_of(case), style_of(case)
    ask = import_module(f"refmeta.{case.framework}").audit
    more = {"steps": None if "stream" in problem.traits else case.steps, "algorithm": style.algorithm, "dtype": dtype}
    more |= {"tasks_are": style.tasks if case.seed % 2 else None, "lr": problem.lr}
    more |= {"head": problem.head} if style.algorithm == "anil" else {}
    tasks = problem.tasks(case.seed)
    if case.framework == "jax":
        return ask(problem.loss, meta_gradient(case), problem.params(case.seed), tasks, **more)
    return ask(problem.net(case.seed), problem.criterion, meta_gradient(case), tasks, **more)


def outcome(case, dtype):
    """("right" | "accused" | "passed" | "refused" | "not judged" | "raised", the first line of the verdict)."""
    right = case.kind == "right"
    try:
        report = audit(case, dtype)
    except Exception as error:  # the count goes on; a right one that makes the audit raise counts as accused
        return "raised", f"{type(error).__name__}: {error}".splitlines()[0]
    verdict = report.verdicts[0]
    first_line = (str(verdict.text).splitlines() or [""])[0]
    if report.passed:
        return ("right" if right else "passed"), first_line
    if verdict.kind == "imprecise":
        return "not judged", first_line
    return ("accused" if right else "refused"), first_line


def named(case, first_line):
    words = NAMES.get(style_of(case).family, ())
    return any(word.lower() in first_line.lower() for word in words)
