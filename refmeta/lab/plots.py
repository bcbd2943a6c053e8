"""Figures as functions: each draws on an axes of matplotlib (`ax`; None: pyplot's current one) and returns it.

Nothing is saved or shown. Each line has its name at its end, and the axes makes room for the names: set its size, a
logarithmic scale, or limits before the call. The commands draw with these functions too.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from refmeta import algorithms
from refmeta.checks import check_alpha, check_tasks, check_theta
from refmeta.lab.display import COLOURS, CONTOUR, FAINT, INK, LABELS, PAPER, Curve, Row, column, plain_axis, plural
from refmeta.lab.geometry.quadratics import METHODS, arrives, descent, labels, quadratic, weight
from refmeta.lab.training import History, Trajectory
from refmeta.models import squared_error
from refmeta.trees import Array, Batch, Loss, Supports, Theta

SIZE = 9  # of names, in points
ARROW = {"arrowstyle": "-|>", "ls": ":", "lw": 1.4}


def plot_adaptation(
    net: Callable[[Theta, Array], Array],
    theta: Theta,
    task: tuple[Supports, Batch],
    alpha: float,
    steps: Iterable[int] | None = None,
    ax: Any = None,
    loss: Loss | None = None,
    trajectory: Trajectory = algorithms.trajectory,
    x: Array | None = None,
    **style: Any,
) -> Any:
    """A regression task in one dimension: its points, net(φ_k, x) for each k of `steps`, and the query loss of each.

    steps: default 0, 1 and K, the number of support batches. loss: default the squared error. trajectory: how the
    method adapts, as `trajectory_by` makes one. x: where to predict, (m, 1) or (m,); of several columns the first is
    the axis. style: of the lines. ValueError: a step that is not among 0 … K; not one number for each x; bad data.
    """
    theta, alpha, [(supports, query)] = check_theta(theta), check_alpha(alpha), check_tasks([task])
    last, loss = len(supports), loss or squared_error(net)
    steps = sorted({0, min(1, last), last} if steps is None else set(steps))
    if not steps or not 0 <= steps[0] <= steps[-1] <= last:
        raise ValueError(f"steps: expected numbers from 0 to {last}, as the task has support batches; got {steps}")
    seen, y = (np.concatenate([batch[i] for batch in [*supports, query]]) for i in (0, 1))
    x = np.linspace(seen.min(0), seen.max(0), 200).astype(seen.dtype) if x is None else x
    ax, dashes = plain_axis(ax), {0: ":", steps[-1]: "-"}
    for (at, target), mark, colour, size in [(query, ".", FAINT, 3), *((each, "o", INK, 4.5) for each in supports[:1])]:
        ax.plot(np.reshape(at, (len(at), -1))[:, 0], target, mark, color=colour, ms=size)
    with np.errstate(over="ignore", invalid="ignore"):
        phis = trajectory(loss, theta, supports, alpha)
        for k in steps:
            look = {"color": COLOURS["maml"], "lw": 2, "label": f"{k}: {loss(phis[k], query):#.3g}", **style}
            ax.plot(np.reshape(x, (len(x), -1))[:, 0], np.ravel(net(phis[k], x)), dashes.get(k, "--"), **look)
    ax.set(xlabel="x (● support, · query)", ylim=y.min() + (np.ptp(y) or 1) * np.array([-0.3, 1.3]))
    return keyed(ax, (0, 1), "lower left", "steps: loss on the query", len(steps))


def plot_curves(curves: dict[str, Curve], ax: Any = None, score: str = "mean", factor: float = 1) -> Any:
    """A score, times `factor`, against gradient steps, with its 95 % band: for each name the rows of `evaluate`.

    A curve of one row, as of a method without steps, is a dashed level. Rows that are not finite are left out.
    """
    ax, last, lines = plain_axis(ax), max(curve[-1]["steps"] for curve in curves.values()), []
    for i, (name, curve) in enumerate(curves.items()):
        shown = [row for row in curve if np.isfinite([row[score], row["ci95"]]).all()]
        steps, mean, ci95 = (column(shown, key) for key in ("steps", score, "ci95"))
        if len(curve) == 1:
            lines += ax.plot([0, last], factor * mean.repeat(2), "--", lw=1.2, **_look(name, i) | {"color": FAINT})
        elif shown:
            lines += ax.plot(steps, factor * mean, "o-", ms=4, lw=2, **_look(name, i))
            low, high = factor * (mean - ci95), factor * (mean + ci95)
            ax.fill_between(steps, low, high, color=lines[-1].get_color(), alpha=0.15, lw=0)
    ax.set_xlabel("gradient steps on an unseen task")
    return named(ax, lines)


def plot_training(histories: dict[str, History], ax: Any = None) -> Any:
    """The loss after adaptation against the iteration: `train`'s histories by name, and in bold their moving means."""
    ax, lines = plain_axis(ax), []
    for i, (name, history) in enumerate(histories.items()):
        (at, loss), near = np.transpose(history), np.ones(1 + len(history) // 10)
        mean = np.convolve(loss, near, "same") / np.convolve(0 * loss + 1, near, "same")
        lines += ax.plot(at, mean, lw=2, **_look(name, i))
        ax.plot(at, loss, lw=0.8, alpha=0.3, color=lines[-1].get_color())
    ax.set(xlabel="iteration", ylabel="loss after adaptation, in training")
    return named(ax, lines)


def plot_similarity(rows: Sequence[Row], baseline: Sequence[Row] = (), ax: Any = None) -> Any:
    """How alike each layer is before and after adaptation (rows of `similarity`); grey: of two seeds (of `between`)."""
    ax, lines = plain_axis(ax), []
    for found, of, colour in (rows, "after", COLOURS["maml"]), (baseline, "two seeds", FAINT):
        for index, mark in zip(("cca", "pwcca", "cka"), "osD" * bool(found), strict=False):
            mean, ci95 = ([row[index][key] for row in found] for key in ("mean", "ci95"))
            lines.append(ax.errorbar(range(len(found)), mean, ci95, fmt=f"{mark}-", color=colour, ms=5)[0])
            lines[-1].set_label(f"{index.upper()}, {of}")
    ax.set(ylim=(0, 1.1), ylabel="similarity")
    named(ax, lines).set_xticks(range(len(rows)), [*(f"layer {row['layer']}" for row in rows[:-1]), "head"])
    return ax


def plot_geometry(tasks: Sequence[Batch], theta: Array, alpha: float, steps: int = 1, ax: Any = None) -> Any:
    """Two quadratic tasks (A, c) in the plane: descent by each method from θ, and a ring around the end.

    From each ring dotted arrows lead to where `steps` inner steps on either task end. The key has the total loss
    before and after them. Where a fixed point repels, the descent runs away. ValueError: see `descent`.
    """
    ax, k = plain_axis(ax), steps + 1
    paths = {method: descent(method, tasks, alpha, k, theta) for method in METHODS}
    ends = {method: path[-1] for method, path in paths.items() if arrives(path)}
    draw_plane(ax, [theta, *(c for _, c in tasks), *ends.values()], tasks)
    ax.plot(*theta, "o", color=INK, ms=5)
    note(ax, "θ", theta, (-12, -12))
    for number, (_, c) in enumerate(tasks, 1):
        ax.plot(*c, "+", color=FAINT, ms=11, mew=1.8)
        note(ax, f"task {number}", c, (0, 14 if c[1] > tasks[-number][1][1] else -14))  # away from the other's arrows
    for method, path in paths.items():
        style, said = {"color": COLOURS[method]}, "runs away"
        if method in ends:
            ways = [algorithms.trajectory(quadratic, [ends[method]], [task] * steps, alpha) for task in tasks]
            for way in ways:
                ax.annotate("", way[-1][0], ends[method], arrowprops={**ARROW, **style})
            ax.plot(*ends[method], "o", mfc="none", mew=2.4, ms=10, **style)
            before, *_, after = (sum(map(quadratic, points, tasks)) for points in zip(*ways, strict=True))
            said = f"{before:.1f} → {after:.1f}"
        ax.plot(*path[abs(path).max(1) < 1e6].T, lw=2.2, label=f"{labels(k)[method][0]}: {said}", **style)
    return keyed(ax, (0, 0), "upper left", f"sum of the losses at the ring → after {plural(steps, 'step')} on each", 2)


def plot_weights(steps: int = 1, ax: Any = None) -> Any:
    """How much a task of curvature a weighs where each method ends: α times the weight, against αa; K = `steps`.

        pre-training a     Reptile (1 − (1 − αa)^{K+1}) / α     first-order MAML a (1 − αa)^K     MAML a (1 − αa)^{2K}

    Reptile takes K + 1 steps, and so sees the gradients of the others. Beyond αa = 2 the inner steps diverge.
    """
    ax, a, lines = plain_axis(ax), np.linspace(0, 2, 201), []
    ax.plot([0, 2], [0, 0], color=CONTOUR, lw=1)
    for method in METHODS:
        weights = [weight(method, np.array([[each]]), 1.0, steps + 1)[0, 0] for each in a]
        lines += ax.plot(a, weights, lw=2, color=COLOURS[method], label=labels(steps + 1)[method][0])
    ax.set(xlabel="α times the curvature a", ylabel="α times the weight of the task")
    return named(ax, lines)


# --- What they share --------------------------------------------------------------------------------


def draw_plane(ax: Any, points: Sequence[Array], tasks: Sequence[Batch]) -> None:
    """A square of the plane around the points, with the contours of the tasks (A, c): the second's are dashed."""
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    half = 0.68 * max(high - low)
    spans = [np.linspace(middle - half, middle + half, 200) for middle in (low + high) / 2]
    d = np.stack(np.meshgrid(*spans), axis=-1)
    for (A, c), dash in zip(tasks, ("solid", "dashed"), strict=False):
        height = np.sqrt(np.einsum("xyi,ij,xyj->xy", d - c, A, d - c))  # evenly spaced contours
        ax.contour(*spans, height, 9, colors=CONTOUR, linestyles=dash, linewidths=1, zorder=0)
    ax.set(aspect="equal", xticks=[], yticks=[], xlim=spans[0][[0, -1]], ylim=spans[1][[0, -1]])
    ax.spines[:].set(visible=True, color=CONTOUR)


def note(ax: Any, text: str, at: Any, offset: tuple[float, float], **style: Any) -> None:
    """Text so many points from a place, with a halo of the page's colour."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground=PAPER)]
    look = {"fontsize": 10, "color": INK, "ha": "center", "va": "center", "path_effects": halo, **style}
    ax.annotate(text, at, offset, textcoords="offset points", **look)


def logarithmic(ax: Any, which: str = "y") -> None:
    """A logarithmic scale with the numbers 1, 2, 5, 10, …"""
    getattr(ax, f"set_{which}scale")("log", subs=[2, 5])
    for ticks in ("major", "minor"):
        getattr(getattr(ax, f"{which}axis"), f"set_{ticks}_formatter")("{x:g}")


def keyed(ax: Any, corner: tuple[float, float], side: str, title: str, columns: int) -> Any:
    """The axes, with a legend outside, at this corner."""
    style = {"frameon": False, "alignment": "left", "borderaxespad": 0.3, "columnspacing": 1}
    ax.legend(loc=side, bbox_to_anchor=corner, title=title, ncols=columns, fontsize=SIZE, title_fontsize=SIZE, **style)
    return ax


def named(ax: Any, lines: Sequence[Any]) -> Any:
    """The axes, with the label of each line beside its end: apart from each other, and all inside.

    Heights h in order become h′ that lie g apart and are nearest to them, Σ (h′ − h)² the least:
        h′_i = i g + max_{j≤i} min_{m≥i} mean_{j≤n≤m} (h_n − n g)
    """
    ax.figure.draw_without_rendering()  # else its place and scale are not up to date
    ends = np.array([line.get_xydata()[-1] for line in lines])
    heights, (left, _), n = ax.transData.transform(ends)[:, 1] * 72 / ax.figure.dpi, ax.get_xlim(), len(lines)
    order, gaps, last = np.argsort(heights, kind="stable"), 1.25 * SIZE * np.arange(n), ends[:, 0].max()
    free, names = heights[order] - gaps, []
    apart = [max(min(free[j:m].mean() for m in range(i + 1, n + 1)) for j in range(i + 1)) for i in range(n)]
    for i, up in zip(order, apart + gaps - heights[order], strict=True):
        style = {"color": lines[i].get_color(), "fontsize": SIZE, "va": "center", "annotation_clip": False}
        names.append(ax.annotate(lines[i].get_label(), ends[i], (6, up), textcoords="offset points", **style))
    widest = max(name.get_window_extent().width for name in names) + SIZE
    ax.set_xticks([tick for tick in ax.get_xticks() if left <= tick <= last])
    ax.set_xlim(left, left + (last - left) / (1 - min(0.6, widest / ax.bbox.width)))
    return ax


def _look(name: str, i: int) -> dict[str, Any]:
    """Label and colour: a method's own; of what LABELS lists beside methods, grey; else the i-th."""
    colour = COLOURS.get(name) or (FAINT if name in LABELS else [*COLOURS.values()][i % len(COLOURS)])
    return {"label": LABELS.get(name, name), "color": colour}
