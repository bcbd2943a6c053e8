"""Meta-training and evaluation, for any algorithm, loss and source of tasks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
from autograd import grad

from refmeta import algorithms
from refmeta.checks import check_alpha, check_like, check_tasks, check_theta
from refmeta.fast.stacked import by_shape, copies, stack, why_not_stackable
from refmeta.trees import Batch, Loss, Supports, Tasks, Theta, add, axpy, holding, split

Algorithm = Callable[[Loss, Theta, Tasks, float], Theta]
Rate = float | Callable[[int], float]  # constant, or a function of the number of steps done
Step = Callable[..., tuple[Theta, Any]]
Trajectory = Callable[[Loss, Theta, Supports, float], list[Theta]]
Report = Callable[[int, float], Any]  # hears (iteration, loss)
History = list[tuple[int, float]]  # of (iteration, loss)


# --- Optimisers --------------------------------------------------------------------------------------
#
# Pure functions: step(theta, gradient, state) -> (theta, state), with state None at first. The same functions serve
# outside, on meta-gradients, and inside, in Reptile's inner loop.


def linear(start: float, steps: int) -> Callable[[int], float]:
    """The rate start·(1 − t/steps): from start to 0, as Nichol et al. 2018 anneal Reptile's ε."""
    return lambda t: start * max(0.0, 1 - t / steps)


def sgd(rate: Rate) -> Step:
    """θ ← θ − rate·g."""

    def step(theta: Theta, gradient: Theta, state: Any = None) -> tuple[Theta, Any]:
        t = state or 0
        return axpy(-_at(rate, t), gradient, theta), t + 1

    return step


def adam(rate: Rate, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Step:
    """m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  θ ← θ − rate·m̂/(√v̂ + ε).        Kingma & Ba 2015, alg. 1

    m̂ = m/(1−β₁ᵗ) and v̂ = v/(1−β₂ᵗ) undo the start at zero.
    """

    def step(theta: Theta, gradient: Theta, state: Any = None) -> tuple[Theta, Any]:
        t, m, v = state or (0, [0 * g for g in gradient], [0 * g for g in gradient])
        m = [beta1 * mi + (1 - beta1) * g for mi, g in zip(m, gradient, strict=True)]
        v = [beta2 * vi + (1 - beta2) * g * g for vi, g in zip(v, gradient, strict=True)]
        a, b = _at(rate, t) / (1 - beta1 ** (t + 1)), 1 / (1 - beta2 ** (t + 1))
        moved = [leaf - a * mi / (np.sqrt(b * vi) + eps) for leaf, mi, vi in zip(theta, m, v, strict=True)]
        return moved, (t + 1, m, v)

    return step


def _at(rate: Rate, t: int) -> float:
    return rate(t) if callable(rate) else rate


OUTER: dict[str, Callable[..., Step]] = {"sgd": sgd, "adam": adam}
# Nichol et al. 2018 have β₁ = 0 in Reptile's Adam: the inner loop then keeps no direction from the steps before.
INNER: dict[str, Callable[[float], Step]] = {"sgd": sgd, "adam": partial(adam, beta1=0.0)}


def optimiser(text: str, iterations: int) -> Step:
    """adam:RATE, sgd:RATE, or either with :linear, the rate then falling to 0 over the iterations.

    ValueError: anything else.
    """
    name, _, rest = text.partition(":")
    rate, _, schedule = rest.partition(":")
    try:
        number = check_alpha(float(rate))
        if name not in OUTER or schedule not in ("", "linear") or not number:
            raise ValueError
    except ValueError:
        raise ValueError(f"outer {text!r}: expected adam:RATE, sgd:RATE, or either followed by :linear") from None
    return OUTER[name](linear(number, iterations) if schedule else number)


# --- The methods ------------------------------------------------------------------------------------


def trajectory_of_head(head: int) -> Trajectory:
    """`refmeta.trajectory` in which only the last `head` arrays of θ move, as ANIL adapts."""

    def trajectory(loss: Loss, theta: Theta, supports: Supports, alpha: float) -> list[Theta]:
        body, h = split(theta, head)
        return [body + h for h in algorithms.trajectory(holding(body, loss), h, supports, alpha)]

    return trajectory


def trajectory_by(optimiser: Callable[[float], Step]) -> Trajectory:
    """`refmeta.trajectory` with any optimiser inside; its state starts afresh in every task."""

    def trajectory(loss: Loss, theta: Theta, supports: Supports, alpha: float) -> list[Theta]:
        step, phis, state = optimiser(alpha), [theta], None
        for support in supports:
            phi, state = step(phis[-1], grad(loss)(phis[-1], support), state)
            phis.append(phi)
        return phis

    return trajectory


def reptile_by(optimiser: Callable[[float], Step]) -> Algorithm:
    """`refmeta.reptile` with any optimiser inside: Σ_i (θ − φ_i), φ_i the end of its `trajectory_by`."""
    trajectory = trajectory_by(optimiser)

    def reptile(loss: Loss, theta: Theta, tasks: Tasks, alpha: float) -> Theta:
        return add(axpy(-1, trajectory(loss, theta, supports, alpha)[-1], theta) for supports, _ in tasks)

    return reptile


class Method(NamedTuple):
    """An algorithm, and how it adapts."""

    algorithm: Algorithm
    trajectory: Trajectory = algorithms.trajectory  # how it adapts, in training and at test
    # Σ_i (θ − φ_i): it needs an inner step, learns from inner steps alone (it uses no query), takes any optimiser
    # inside, and what it descends is α times a gradient.
    displacement: bool = False


METHODS = {
    "maml": Method(algorithms.maml),
    "fomaml": Method(algorithms.fomaml),
    "anil": Method(algorithms.anil, trajectory_of_head(2)),
    "reptile": Method(algorithms.reptile, displacement=True),
    "joint": Method(algorithms.joint),
}


def method_of(config: Any) -> Method:
    """The method of a Config, with its inner optimiser."""
    inner = INNER[config.inner]
    return METHODS[config.method] if inner is sgd else Method(reptile_by(inner), trajectory_by(inner), True)


# --- Meta-training ----------------------------------------------------------------------------------


class State(NamedTuple):
    """Meta-training after so many iterations: with its arguments, this determines the rest."""

    iteration: int  # how many are done
    theta: Theta
    outer: Any  # the outer optimiser's state
    history: History


class Checkpoint(NamedTuple):
    """keep(state) gets the State every `every` iterations, at the end and on Ctrl-C (0: never).

    With such a State as `start`, the same call of `train` goes on from there and ends with the same bytes.
    """

    every: int = 0
    keep: Callable[[State], Any] = lambda state: None
    start: State | None = None

    def hear(self, state: State, last: int) -> None:
        """Keep the state if it is due; `last` is the number of the last iteration."""
        if self.every and state.iteration and (state.iteration % self.every == 0 or state.iteration == last):
            self.keep(state)


NEVER = Checkpoint()


class Stopped(BaseException):
    """Training ended early: `iteration` says when, `theta` is the last good θ."""

    said = ""

    def __init__(self, iteration: int, theta: Theta):
        super().__init__(self.said.format(iteration))
        self.iteration, self.theta = iteration, theta

    def __reduce__(self) -> Any:
        return type(self), (self.iteration, self.theta)


class Diverged(Stopped, ArithmeticError):
    """Meta-training reached a θ that is not finite."""

    said = "training diverged at iteration {}: try a smaller rate or alpha"


class Interrupted(Stopped, KeyboardInterrupt):
    """Ctrl-C in the middle of training."""

    said = "interrupted at iteration {}"


def train(
    algorithm: Algorithm,
    loss: Loss,
    theta: Theta,
    sample: Callable[[np.random.Generator], Tasks],
    alpha: float,
    iterations: int,
    outer: Step | None = None,
    seed: int = 0,
    report: Report = lambda iteration, loss: None,
    trajectory: Trajectory = algorithms.trajectory,
    checkpoint: Checkpoint = NEVER,
) -> tuple[Theta, History]:
    """Meta-train θ: at every iteration draw tasks, take the algorithm's gradient and one outer step.

        θ ← outer(θ, algorithm(loss, θ, tasks, α) / len(tasks))

    sample(rng) gives an iteration's tasks; its rng depends only on `seed` and the iteration. `outer` is an
    optimiser, as `adam` and `sgd` make them (default: Adam, 1e-3). About 200 times, report(iteration, value) gets the
    mean loss after adaptation, by `trajectory`, on the current tasks. Returns θ and these (iteration, value).
    From a checkpoint on, report first gets the last value again.
    Errors: Diverged, Interrupted; ValueError and TypeError for tasks, θ, α or gradients that are not as they should be.
    """
    theta, alpha, outer = check_theta(theta), check_alpha(alpha), outer or adam(1e-3)
    state = _start(checkpoint.start or State(0, theta, None, []), iterations, report)
    try:
        for iteration in range(state.iteration, iterations):
            tasks = sample(np.random.default_rng([seed, iteration]))
            after = _outer_step(algorithm, loss, state, tasks, alpha, outer)
            if iteration % max(1, iterations // 200) == 0 or iteration == iterations - 1:
                value = adapted_loss(loss, state.theta, tasks, alpha, trajectory)
                after = after._replace(history=[*state.history, (iteration, value)])
                report(iteration, value)
            state = after  # in one assignment: Ctrl-C may come between any two lines
            checkpoint.hear(state, iterations)
    except KeyboardInterrupt:
        checkpoint.hear(state, state.iteration)
        raise Interrupted(state.iteration, state.theta) from None
    return state.theta, state.history


def _start(state: State, iterations: int, report: Report) -> State:
    if not 0 <= state.iteration <= iterations:
        raise ValueError(f"iterations: expected at least {state.iteration}, which are done already; got {iterations}")
    if state.history:
        report(*state.history[-1])
    return state


def _outer_step(algorithm: Algorithm, loss: Loss, state: State, tasks: Tasks, alpha: float, outer: Step) -> State:
    """The state after one more iteration, without its entry in the history. Diverged: it is not finite."""
    if not state.iteration:  # the first: the same function draws all others
        check_tasks(tasks, queries_needed=False)
    with np.errstate(over="ignore", invalid="ignore"):
        total = algorithm(loss, state.theta, tasks, alpha)
        check_like(total, state.theta)
        moved, outers = outer(state.theta, [g / len(tasks) for g in total], state.outer)
        # Its square too: if that overflows, so does Adam's second moment, and θ would silently stop moving.
        if not all(map(isfinite, [*map(np.vdot, total, total), *(leaf.sum() for leaf in moved)])):
            check_tasks(tasks, queries_needed=False)  # NaN in the data is not divergence
            raise Diverged(state.iteration, state.theta)
    return State(state.iteration + 1, moved, outers, state.history)


# --- Adaptation and evaluation ----------------------------------------------------------------------


def adapted(
    loss: Loss, theta: Theta, tasks: Iterable[Any], alpha: float, trajectory: Trajectory, most: int | None = None
) -> Iterator[tuple[Tasks, list[Theta], Supports, Batch]]:
    """Adapt θ to the tasks, `most` at a time; those of equal shapes together, if the loss allows it.

    Yields (part, [φ_0 … φ_K], supports, query): part is the tasks adapted together. If there are several, all arrays
    of the other three have a leading task axis; those of a single task have none.
    """
    left = iter(tasks)
    for part in chain.from_iterable(map(by_shape, iter(lambda: list(islice(left, most)), []))):
        if len(part) > 1 and not why_not_stackable(loss, theta, part):
            supports, query = stack(part)
            yield part, trajectory(loss, copies(theta, len(part)), supports, alpha), supports, query
        else:
            yield from (([task], trajectory(loss, theta, task[0], alpha), *task) for task in part)


def adapted_loss(loss: Loss, theta: Theta, tasks: Tasks, alpha: float, trajectory: Trajectory) -> float:
    """The mean over tasks of L(φ_K; Q); a task without a query counts with its last support."""
    seen, total = [task for task in tasks if any(task)], 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for _, phis, supports, query in adapted(loss, theta, seen, alpha, trajectory):
            total += float(loss(phis[-1], query or supports[-1]))
    return total / max(1, len(seen))


TOGETHER = 100  # tasks that `evaluate` adapts at once: more take memory and save no time


def evaluate(
    loss: Loss,
    theta: Theta,
    tasks: Tasks,
    alpha: float,
    score: Callable[[Theta, Batch], float] | None = None,
    trajectory: Trajectory = algorithms.trajectory,
    limit: float = inf,
) -> list[dict[str, float]]:
    """Adapt θ to each task and score it on the query after 0, 1, …, K steps; K is the same for all tasks.

    Returns one row for each number of steps: {steps, mean, median, ci95, diverged}. A task whose score
    (default: the loss) is not finite, or above `limit`, is counted in `diverged` and kept out of the mean;
    the median is over all tasks, the diverged ones last. ci95 is the half-width 1.96·s/√n of the mean's
    95 % interval.
    """
    theta, alpha, tasks = check_theta(theta), check_alpha(alpha), check_tasks(tasks)
    if len({len(supports) for supports, _ in tasks}) > 1:
        raise ValueError("tasks: expected the same number of inner steps in all tasks")
    scores = []  # a row for each task, a column for each number of steps
    with np.errstate(over="ignore", invalid="ignore"):
        for part, phis, *_ in adapted(loss, theta, tasks, alpha, trajectory, TOGETHER):
            for i, (_, query) in enumerate(part):
                own = phis if len(part) == 1 else [[leaf[i] for leaf in phi] for phi in phis]
                scores.append([float((score or loss)(phi, query)) for phi in own])
    return [{"steps": k, **summary(column, limit)} for k, column in enumerate(np.transpose(scores))]


def summary(values: Sequence[float], limit: float = inf) -> dict[str, float]:
    """{mean, median, ci95, diverged} of one score over many tasks, as `evaluate` says."""
    every = np.asarray(values, float)
    good = every[np.isfinite(every) & (every <= limit)]
    spread = good.std(ddof=1) if len(good) > 1 else inf
    return {
        "mean": float(good.mean()) if len(good) else inf,
        "median": float(np.median(np.where(np.isfinite(every), every, inf))),
        "ci95": float(1.96 * spread / max(1, len(good)) ** 0.5),
        "diverged": len(every) - len(good),
    }


# Student's t at 97.5 % for 1 … 10 degrees of freedom; beyond, the normal quantile and two terms of its expansion.
T95 = 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228


def over_seeds(curves: Sequence[list[dict[str, Any]]], score: str = "mse") -> list[dict[str, Any]]:
    """One curve from those of several seeds: mean, median and 95 % interval over the seeds' means of `score`.

    `diverged` is the sum; other columns are as in the first curve. One curve comes back as it is, its intervals those
    over its tasks.
    """
    freedom = len(curves) - 1
    if not freedom:
        return curves[0]
    t = T95[freedom - 1] if freedom <= len(T95) else 1.96 + 2.37 / freedom + 2.82 / freedom**2
    rows = []
    for same in zip(*curves, strict=True):
        means = np.array([row[score] for row in same])
        ci95 = float(t * means.std(ddof=1) / len(means) ** 0.5)
        middle = {score: float(means.mean()), "median": float(np.median(means)), "ci95": ci95}
        rows.append({**same[0], **middle, "diverged": sum(row["diverged"] for row in same)})
    return rows
