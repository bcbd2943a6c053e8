"""Figures as functions: what they draw is what refmeta computes, where they were told to, and nowhere else."""

import subprocess
import sys

import autograd.numpy as np
import pytest

from refmeta import adapt, trajectory
from refmeta.lab import Checkpoint, adam, evaluate, progress, train, trajectory_by
from refmeta.lab.display import COLOURS, FAINT
from refmeta.lab.geometry.quadratics import METHODS, START, TASKS, fixed_point
from refmeta.lab.plots import (
    named,
    plot_adaptation,
    plot_curves,
    plot_geometry,
    plot_similarity,
    plot_training,
    plot_weights,
)
from refmeta.lab.reuse import between, similarity
from refmeta.lab.training import METHODS as TRAINED
from refmeta.models import MLP, squared_error

pytest.importorskip("matplotlib", reason="figures need the extra lab")
from matplotlib import pyplot
from matplotlib.figure import Figure

NET = MLP((1, 8, 1))
THETA = NET.init(np.random.RandomState(0))
X = np.linspace(-2, 2, 12)[:, None]
BATCH = X, np.sin(X)
TASK = [BATCH] * 4, BATCH
LOSS = squared_error(NET)


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


@pytest.fixture(autouse=True)
def no_figure_is_left():
    before = pyplot.get_fignums()
    yield
    assert pyplot.get_fignums() == before


def by_label(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines if not line.get_label().startswith("_")}


def words(ax):
    return [text.get_text() for text in ax.texts]


# --- Adaptation ---


def test_adaptation_draws_the_network_after_its_steps_and_their_losses(ax):
    assert plot_adaptation(NET, THETA, TASK, 0.1, ax=ax) is ax
    x, phis = np.linspace(-2, 2, 200)[:, None], trajectory(LOSS, THETA, TASK[0], 0.1)
    want = {f"{k}: {LOSS(phis[k], BATCH):#.3g}": np.hstack([x, NET(phis[k], x)]) for k in (0, 1, 4)}
    got = by_label(ax)
    assert list(got) == list(want) and all(np.array_equal(got[key], want[key]) for key in want)
    query, support = (line.get_xydata() for line in ax.lines[:2])
    assert np.array_equal(query, np.hstack(BATCH)) and np.array_equal(support, query)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(want)


def absolute(theta, batch):
    return np.mean(abs(theta[0] * batch[0] + theta[1] - batch[1]))


def test_adaptation_takes_any_net_loss_trajectory_and_style(ax):
    """A line in one number for each x, without a second axis; Adam inside; the caller's colour."""
    net, theta = lambda theta, x: theta[0] * x + theta[1], [np.ones(1), np.zeros(1)]
    x = np.linspace(0, 1, 5)
    task, at = ([(x, 3 * x)] * 3, (x, 3 * x)), np.array([0.0, 2.0])
    how = {"loss": absolute, "trajectory": trajectory_by(adam), "x": at, "color": FAINT, "lw": 5}
    plot_adaptation(net, theta, task, 0.5, [3], ax, **how)
    phi = trajectory_by(adam)(absolute, theta, task[0], 0.5)[-1]
    (line,) = [line for line in ax.lines if line.get_label().startswith("3: ")]
    assert np.array_equal(line.get_xydata(), np.stack([at, net(phi, at)], 1))
    assert line.get_label() == f"3: {absolute(phi, task[1]):#.3g}"
    assert (line.get_color(), line.get_linewidth()) == (FAINT, 5)


def test_adaptation_of_anil_moves_its_head_alone(ax):
    plot_adaptation(NET, THETA, TASK, 0.1, [4], ax, trajectory=TRAINED["anil"].trajectory)
    phi = TRAINED["anil"].trajectory(LOSS, THETA, TASK[0], 0.1)[-1]
    assert (
        list(by_label(ax))
        == [f"4: {LOSS(phi, BATCH):#.3g}"]
        != [f"4: {LOSS(adapt(LOSS, THETA, *TASK[:1], 0.1), BATCH):#.3g}"]
    )


def test_adaptation_without_steps_or_to_where_it_diverges(ax):
    plot_adaptation(NET, THETA, ([], BATCH), 0.1, ax=ax)
    assert len(by_label(ax)) == 1 and len(ax.lines) == 2  # no support
    plot_adaptation(NET, THETA, ([BATCH] * 9, BATCH), 1e300, ax=Figure().subplots())


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"steps": [5]}, ValueError, r"steps: expected numbers from 0 to 4, .* got \[5\]"),
        ({"steps": [-1]}, ValueError, r"steps: .* got \[-1\]"),
        ({"steps": []}, ValueError, r"steps: .* got \[\]"),
        (
            {"net": lambda theta, x: np.hstack([x, x])},
            ValueError,
            r"y has shape \(12, 1\); the prediction has \(12, 2\)",
        ),
        ({"task": ([BATCH], None)}, ValueError, "query: expected a batch"),
        ({"task": [BATCH]}, (ValueError, TypeError), "expected a pair"),
        ({"theta": THETA[0]}, TypeError, "theta"),
        ({"alpha": "0.1"}, TypeError, "alpha: expected one number"),
    ],
)
def test_adaptation_refuses_what_it_cannot_draw(change, error, said, ax):
    with pytest.raises(error, match=said):
        plot_adaptation(**{"net": NET, "theta": THETA, "task": TASK, "alpha": 0.1, "ax": ax, **change})


# --- Curves, training, similarity ---


def test_curves_are_the_rows_of_evaluate_with_their_band(ax):
    rows = {name: evaluate(LOSS, THETA, [TASK] * 3, alpha) for name, alpha in (("maml", 0.1), ("mine", 0.2))}
    level = {"known": [{"steps": 0, "mean": 0.5, "ci95": 0.0}]}
    assert plot_curves(rows | level, ax, factor=100) is ax
    got = by_label(ax)
    for name, curve in rows.items():
        assert np.array_equal(got[name], [[row["steps"], 100 * row["mean"]] for row in curve])
    assert got["known"].tolist() == [[0, 50], [4, 50]] and sorted(words(ax)) == ["known", "maml", "mine"]
    assert len(ax.collections) == 2 and ax.lines[0].get_color() == COLOURS["maml"]
    low, high = ax.collections[0].get_paths()[0].vertices[:, 1].take([1, -2]) / 100
    assert {low, high} == {
        rows["maml"][0]["mean"] - rows["maml"][0]["ci95"],
        rows["maml"][0]["mean"] + rows["maml"][0]["ci95"],
    }


def test_curves_leave_out_what_is_not_finite(ax):
    rows = [{"steps": k, "mean": mean, "ci95": 0.1} for k, mean in enumerate([1.0, 2.0, np.inf])]
    lost = [{"steps": k, "mean": np.inf, "ci95": np.inf} for k in range(3)]
    plot_curves({"maml": rows, "joint": lost}, ax)
    assert by_label(ax)["maml"].tolist() == [[0, 1], [1, 2]] and words(ax) == ["maml"]


def test_training_is_the_history_and_its_moving_mean(ax):
    _, history = train(TRAINED["maml"].algorithm, LOSS, THETA, lambda rng: [TASK], 0.1, 30)
    assert plot_training({"maml": history}, ax) is ax
    mean, loss = (line.get_xydata() for line in ax.lines)
    assert np.array_equal(loss, history) and np.array_equal(mean[:, 0], loss[:, 0])
    values = loss[:, 1]  # of 30 every mean is of 4: two before, one behind
    assert mean[5, 1] == pytest.approx(values[3:7].mean()) and mean[0, 1] == pytest.approx(values[:2].mean())
    assert words(ax) == ["maml"]


def test_similarity_is_that_of_each_layer_beside_two_seeds(ax):
    other = NET.init(np.random.RandomState(1))
    rows, seeds = similarity(NET.layers, LOSS, THETA, [TASK], 0.1), between(NET.layers, THETA, other, [TASK])
    assert plot_similarity(rows, seeds, ax) is ax
    got = by_label(ax)
    for found, of in ((rows, "after"), (seeds, "two seeds")):
        for index in ("cca", "pwcca", "cka"):
            assert got[f"{index.upper()}, {of}"][:, 1].tolist() == [row[index]["mean"] for row in found]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["layer 1", "head"] and len(words(ax)) == 6
    assert len(plot_similarity(rows, ax=Figure().subplots()).texts) == 3


# --- Geometry ---


@pytest.mark.parametrize("alpha, steps", [(0.25, 1), (0.3, 3), (0.6, 2)])
def test_geometry_ends_in_the_fixed_points_and_says_the_losses(alpha, steps, ax):
    assert plot_geometry(TASKS, START, alpha, steps, ax) is ax
    keys = {line.get_label().partition(":")[0]: line for line in ax.lines if not line.get_label().startswith("_")}
    rings = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"][1:]  # the first is θ
    for (name, line), method, ring in zip(keys.items(), METHODS, rings, strict=True):
        point = fixed_point(method, TASKS, alpha, steps + 1)
        assert ring == pytest.approx(point) == line.get_xydata()[-1] and line.get_xydata()[0] == pytest.approx(START)
        after = [np.linalg.matrix_power(np.eye(2) - alpha * A, steps) @ (point - c) + c for A, c in TASKS]
        total = [
            sum((at - c) @ A @ (at - c) / 2 for at, (A, c) in zip(ends, TASKS, strict=True))
            for ends in ([point] * 2, after)
        ]
        assert line.get_label() == f"{name}: {total[0]:.1f} → {total[1]:.1f}"
    heads = [text for text in ax.texts if getattr(text, "arrow_patch", None)]
    assert len(heads) == 8


def test_geometry_has_the_numbers_of_the_page(ax):
    plot_geometry(TASKS, START, 0.25, ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "pre-training: 7.8 → 3.6", "Reptile: 8.0 → 3.1", "first-order MAML: 11.1 → 1.9", "MAML: 20.5 → 1.3",
    ]  # fmt: skip


def test_first_order_maml_runs_away_where_maml_does_not(ax):
    plot_geometry(TASKS, START, 0.4, ax=ax)
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [words.endswith("runs away") for words in said] == [False, False, True, False]
    (low, high), (away,) = ax.get_xlim(), [line for line in ax.lines if line.get_label().endswith("runs away")]
    assert not low < away.get_xdata()[-1] < high and high - low < 20


def test_geometry_refuses_inner_steps_that_diverge(ax):
    with pytest.raises(ValueError, match="alpha 0.7: expected .* less than 0.64"):
        plot_geometry(TASKS, START, 0.7, ax=ax)


@pytest.mark.parametrize("tasks, theta", [([(np.eye(3), np.ones(3))] * 2, np.ones(3)), (TASKS, np.ones(3))])
def test_geometry_refuses_what_is_not_in_the_plane(tasks, theta, ax):
    with pytest.raises(
        ValueError, match=r"tasks: expected pairs \(A, c\) of the shapes \(2, 2\) and \(2,\), and theta"
    ):
        plot_geometry(tasks, theta, 0.1, ax=ax)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_weights_are_the_formulas_and_first_order_mamls_turns_negative(steps, ax):
    assert plot_weights(steps, ax) is ax
    got, a = by_label(ax), np.linspace(0, 2, 201)
    r = 1 - a
    want = {
        "pre-training": a,
        "Reptile": 1 - r ** (steps + 1),
        "first-order MAML": a * r**steps,
        "MAML": a * r ** (2 * steps),
    }
    assert list(got) == list(want) and all(got[name] == pytest.approx(np.stack([a, want[name]], 1)) for name in want)
    assert (got["first-order MAML"].min() < -0.1) == (steps % 2 == 1) and got["MAML"].min() >= 0


# --- What they share ---

DRAWN = [
    lambda **to: plot_adaptation(NET, THETA, TASK, 0.1, **to),
    lambda **to: plot_curves({"maml": evaluate(LOSS, THETA, [TASK] * 2, 0.1)}, **to),
    lambda **to: plot_training({"maml": [(0, 2.0), (1, 1.0)]}, **to),
    lambda **to: plot_similarity(similarity(NET.layers, LOSS, THETA, [TASK], 0.1), **to),
    lambda **to: plot_geometry(TASKS, START, 0.25, **to),
    lambda **to: plot_weights(**to),
]


@pytest.mark.parametrize("plot", DRAWN)
def test_without_an_axes_it_is_pyplots_current_one(plot, monkeypatch):
    mine = Figure().subplots()
    monkeypatch.setattr(pyplot, "gca", lambda: mine)
    assert plot() is mine and mine.lines
    assert plot(ax=Figure().subplots()) is not mine


def boxes(ax):
    ax.figure.draw_without_rendering()
    return [text.get_window_extent() for text in ax.texts]


def overprinted(ax):
    found = boxes(ax)
    return [(i, j) for i, a in enumerate(found) for j in range(i) if a.overlaps(found[j])]


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("layout", ["constrained", "none"])
def test_names_lie_apart_and_inside(scale, layout):
    ax = Figure(layout=layout).subplots()
    ax.set_yscale(scale)
    heights = [1, 1, 1.01, 0.5, 0.5, 7]
    lines = [ax.plot([0, 1], [1, y], label=f"the name of number {i}")[0] for i, y in enumerate(heights)]
    naive = Figure().subplots()
    for y in heights:
        naive.annotate("the name", (0, y / 10))
    assert overprinted(naive), "the test sees what is overprinted"
    named(ax, lines)
    assert not overprinted(ax) and all(box.x1 <= ax.bbox.x1 for box in boxes(ax))
    upwards = sorted(zip((box.y0 for box in boxes(ax)), words(ax), strict=True))
    assert [heights[int(name[-1])] for _, name in upwards] == sorted(heights)


# --- Progress ---


def silent(**more):
    return train(TRAINED["maml"].algorithm, LOSS, THETA, lambda rng: [TASK], 0.1, 20, **more)


@pytest.mark.parametrize("total, shown", [((20, "mine"), "mine: 100%"), ((20,), "20/20"), ((), "20it")])
def test_progress_shows_how_far_training_is_and_the_loss(total, shown, capsys):
    pytest.importorskip("tqdm", reason="it draws the bar")
    theta, history = silent(report=progress(*total))
    said = capsys.readouterr().err.split("\r")[-1]
    assert shown in said and f"loss {history[-1][1]:.3f}" in said and said.endswith("\n")
    assert all(np.array_equal(a, b) for a, b in zip(theta, silent()[0], strict=True)), "it only looks on"


def test_progress_of_a_training_that_goes_on_begins_where_it_was(capsys):
    pytest.importorskip("tqdm", reason="it draws the bar")
    states = []
    silent(checkpoint=Checkpoint(10, states.append))
    silent(checkpoint=Checkpoint(start=states[0]), report=progress(20))
    assert "20/20" in capsys.readouterr().err


def test_progress_without_tqdm_is_silent(capsys, without):
    without("tqdm")
    silent(report=progress(20))
    assert capsys.readouterr() == ("", "")


def test_the_lab_is_imported_without_drawing_anything():
    code = "import sys, refmeta.lab, refmeta.lab.plots; print({'matplotlib', 'tqdm', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
