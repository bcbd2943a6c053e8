"""Meta-training and evaluation, for any algorithm, loss and source of tasks."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
from autograd import grad

from refmeta import algorithms
from refmeta.checks import check_alpha, check_like, check_tasks, check_theta
from refmeta.fast.stacked import by_shape, copies, stack, why_not_stackable
from refmeta.lab.optimisers import Step, adam
from refmeta.trees import Batch, Loss, Supports, Tasks, Theta, add, axpy, dot, holding, split

Algorithm = Callable[[Loss, Theta, Tasks, float], Theta]
Trajectory = Callable[[Loss, Theta, Supports, float], list[Theta]]


class State(NamedTuple):
    """Where meta-training is after so many iterations: with its arguments, all that the rest of it depends on."""

    iteration: int  # how many are done
    theta: Theta
    outer: Any  # the outer optimiser's state
    history: list[tuple[int, float]]


class Diverged(ArithmeticError):
    """Meta-training met a θ that is not finite: `iteration` says when, `theta` is the last good one."""

    def __init__(self, iteration: int, theta: Theta):
        super().__init__(f"training diverged at iteration {iteration}: try a smaller rate or alpha")
        self.iteration, self.theta = iteration, theta

    def __reduce__(self) -> Any:
        return type(self), (self.iteration, self.theta)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of training: `iteration` says when, `theta` is what had been learned."""

    def __init__(self, iteration: int, theta: Theta):
        super().__init__(f"interrupted at iteration {iteration}")
        self.iteration, self.theta = iteration, theta

    def __reduce__(self) -> Any:
        return type(self), (self.iteration, self.theta)


def train(
    algorithm: Algorithm,
    loss: Loss,
    theta: Theta,
    sample: Callable[[np.random.Generator], Tasks],
    alpha: float,
    iterations: int,
    outer: Step | None = None,
    seed: int = 0,
    report: Callable[[int, float], Any] = lambda iteration, loss: None,
    trajectory: Trajectory = algorithms.trajectory,
    start: State | None = None,
    every: int = 0,
    keep: Callable[[State], Any] = lambda state: None,
) -> tuple[Theta, list[tuple[int, float]]]:
    """Meta-train θ: at every iteration draw tasks, take the algorithm's gradient and one outer step.

        θ ← outer(θ, algorithm(loss, θ, tasks, α) / len(tasks))

    sample(rng) gives an iteration's tasks; its rng depends only on `seed` and the iteration. `outer` is one
    of refmeta.lab.optimisers (default: Adam, 1e-3). About 200 times, report(iteration, value) hears the mean
    loss after adaptation, by `trajectory`, on the current tasks. Returns θ and those (iteration, value).
    With `every`, keep(state) hears the State after so many iterations each, at the end and on Ctrl-C. The same call
    with one of these for `start` goes on from there, to the same bytes; report hears its last value once more.
    Errors: Diverged, Interrupted; ValueError and TypeError for tasks, θ, α or gradients that are not as they should be.
    """
    theta, alpha, outer = check_theta(theta), check_alpha(alpha), outer or adam(1e-3)
    state = start or State(0, theta, None, [])
    first = state.iteration
    if not 0 <= first <= iterations:
        raise ValueError(f"start: expected a state after 0 … {iterations} iterations, got one after {first}")
    if state.history:
        report(*state.history[-1])
    try:
        for iteration in range(first, iterations):
            tasks = sample(np.random.default_rng([seed, iteration]))
            if iteration == first:
                check_tasks(tasks, queries_needed=False)
            with np.errstate(over="ignore", invalid="ignore"):
                total = algorithm(loss, state.theta, tasks, alpha)
                check_like(total, theta)
                moved, outers = outer(state.theta, [g / len(tasks) for g in total], state.outer)
                # The square too: where it overflows, Adam's second moment does, and θ would silently stand still.
                if not np.isfinite([dot(total, total), *(leaf.sum() for leaf in moved)]).all():
                    check_tasks(tasks, queries_needed=False)  # NaN in the data is not divergence
                    raise Diverged(iteration, state.theta)
                history = state.history
                if iteration % max(1, iterations // 200) == 0 or iteration == iterations - 1:
                    history = [*history, (iteration, adapted_loss(loss, state.theta, tasks, alpha, trajectory))]
                    report(*history[-1])
            state = State(iteration + 1, moved, outers, history)  # all at once: Ctrl-C may come between any two lines
            if every and (state.iteration % every == 0 or state.iteration == iterations):
                keep(state)
    except KeyboardInterrupt:
        if every and state.iteration:
            keep(state)
        raise Interrupted(state.iteration, state.theta) from None
    return state.theta, state.history


def trajectory_of_head(head: int) -> Trajectory:
    """`refmeta.trajectory` in which the last `head` arrays of θ move and the others stay: how ANIL adapts."""

    def trajectory(loss: Loss, theta: Theta, supports: Supports, alpha: float) -> list[Theta]:
        body, h = split(theta, head)
        return [body + h for h in algorithms.trajectory(holding(body, loss), h, supports, alpha)]

    return trajectory


def adapted_loss(loss: Loss, theta: Theta, tasks: Tasks, alpha: float, trajectory: Trajectory) -> float:
    """The mean over tasks of L(φ_K; Q); a task without a query counts with its last support."""
    total, counted = 0.0, 0
    for group in by_shape([task for task in tasks if any(task)]):
        if len(group) > 1 and not why_not_stackable(loss, theta, group):
            parts = [(len(group), copies(theta, len(group)), *stack(group))]
        else:
            parts = [(1, theta, *task) for task in group]
        for n, start, supports, query in parts:
            phi = trajectory(loss, start, supports, alpha)[-1]
            total, counted = total + float(loss(phi, query or supports[-1])), counted + n
    return total / max(1, counted)


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
        raise ValueError("tasks: expected the same number of inner steps in all of them")
    with np.errstate(over="ignore", invalid="ignore"):
        scores = np.array(_scores(loss, theta, tasks, alpha, score or loss, trajectory))
    return [{"steps": k, **summary(column, limit)} for k, column in enumerate(scores.T)]


def _scores(
    loss: Loss, theta: Theta, tasks: Tasks, alpha: float, score: Any, trajectory: Trajectory
) -> list[list[float]]:
    """One row for each task, one column for each number of steps."""
    rows = []
    for group in by_shape(tasks):
        if len(group) > 1 and not why_not_stackable(loss, theta, group):
            phis = trajectory(loss, copies(theta, len(group)), stack(group)[0], alpha)
            paths = [[[leaf[i] for leaf in phi] for phi in phis] for i in range(len(group))]
        else:
            paths = [trajectory(loss, theta, supports, alpha) for supports, _ in group]
        rows += [[float(score(phi, query)) for phi in path] for path, (_, query) in zip(paths, group, strict=True)]
    return rows


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

    `diverged` is the sum. One curve comes back as it is, its intervals those over its tasks.
    """
    if len(curves) == 1:
        return curves[0]
    t = (
        T95[len(curves) - 2]
        if len(curves) <= len(T95) + 1
        else 1.96 + 2.37 / (len(curves) - 1) + 2.82 / (len(curves) - 1) ** 2
    )
    rows = []
    for same in zip(*curves, strict=True):
        means = np.array([row[score] for row in same])
        rows.append(
            {
                "steps": same[0]["steps"],
                score: float(means.mean()),
                "median": float(np.median(means)),
                "ci95": float(t * means.std(ddof=1) / len(means) ** 0.5),
                "diverged": sum(row["diverged"] for row in same),
            }
        )
    return rows


def trajectory_by(optimiser: Callable[[float], Step]) -> Trajectory:
    """`refmeta.trajectory` with any optimiser inside, as a black box with a fresh state for every task."""

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
