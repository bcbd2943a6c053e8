"""The measurements of feature reuse: invariances, second formulas, what each refuses, and the command."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from refmeta import adapt, anil
from refmeta.__main__ import main
from refmeta.lab import adam, evaluate
from refmeta.lab.fewshot import episode, glyphs
from refmeta.lab.reuse import between, centred, figures, frozen, moved, multiclass, nil, regimes, similarity
from refmeta.lab.reuse.experiment import IMAGES, PAIRS, PAPER, REGIMES, depths, of_images, of_waves
from refmeta.lab.reuse.measurements import cca, linear_cka, pwcca
from refmeta.lab.sine.experiment import QUICKLY
from refmeta.lab.training import METHODS, trajectory_of_head
from refmeta.models import MLP, ConvNet, accuracy, cross_entropy, squared_error

INDICES = [cca, lambda x, y: cca(x, y, variance=1), pwcca, linear_cka]
seeds = st.integers(0, 10**6)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def head_adapted(loss, theta, supports, alpha):
    return trajectory_of_head(2)(loss, theta, supports, alpha)[-1]


def orthogonal(seed, n):
    return np.linalg.qr(draw(seed, n, n))[0]


# --- CCA and CKA ---


@given(seeds, st.integers(1, 6), st.floats(1e-3, 1e3), st.sampled_from(INDICES))
def test_rotations_factors_and_shifts_change_no_index(seed, p, factor, index):
    x, y = draw(seed, 60, p) * np.geomspace(1, 9, p), draw(seed + 1, 60, 4)
    y[:, 0] += x[:, 0]
    turn = np.eye(p) if index is pwcca else orthogonal(seed, p)  # which weighs X by its features, as they are
    assert_allclose(index(factor * x @ turn + 7, y), index(x, y), rtol=1e-9)
    assert_allclose(index(x, factor * y @ orthogonal(seed, 4) + 7), index(x, y), rtol=1e-9)


@given(seeds, st.integers(1, 6))
def test_no_invertible_map_changes_cca_but_one_changes_cka_and_svcca(seed, p):
    x, y, linear = draw(seed, 60, p), draw(seed + 1, 60, 4), draw(seed + 2, p, p)
    linear += p * np.eye(p)  # far from singular
    y[:, 0] += x[:, 0]
    assert_allclose(cca(x @ linear, y, 1), cca(x, y, 1), rtol=1e-7)
    assert_allclose(pwcca(y, x @ linear), pwcca(y, x), rtol=1e-7)
    stretched = x * [100, *[1] * (p - 1)]
    assert p == 1 or (linear_cka(stretched, y) != pytest.approx(linear_cka(x, y), rel=1e-3))


@given(seeds, st.sampled_from(INDICES))
def test_equal_is_1_and_independent_noise_is_low(seed, index):
    x, y = draw(seed, 4000, 5), draw(seed + 1, 4000, 4)
    assert index(x, x) == pytest.approx(1, abs=1e-9) and index(x, 2 - x) == pytest.approx(1, abs=1e-9)
    assert 0 <= index(x, y) < 0.08


@given(seeds)
def test_cca_and_cka_equal_other_formulas(seed):
    """CCA by the eigenvalues of Σxx⁻¹ Σxy Σyy⁻¹ Σyx; CKA by the centred Gram matrices (HSIC)."""
    x, y = draw(seed, 50, 3), draw(seed + 1, 50, 5)
    y[:, :2] += x[:, :2]
    cov = np.cov(x.T, y.T)
    xx, xy, yy = cov[:3, :3], cov[:3, 3:], cov[3:, 3:]
    squares, vectors = np.linalg.eig(np.linalg.solve(xx, xy) @ np.linalg.solve(yy, xy.T))
    assert_allclose(cca(x, y, 1), np.sqrt(squares).mean(), rtol=1e-9)
    centred = x - x.mean(0)
    variates = centred @ vectors / np.linalg.norm(centred @ vectors, axis=0)
    assert_allclose(pwcca(x, y), np.average(np.sqrt(squares), weights=abs(variates.T @ centred).sum(1)), rtol=1e-9)
    centre = np.eye(50) - 1 / 50
    k, m = (centre @ (a @ a.T) @ centre for a in (x, y))
    assert_allclose(linear_cka(x, y), (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()), rtol=1e-9)


def test_svcca_cuts_what_is_below_a_hundredth_of_the_variance():
    """One strong direction in common, two weak ones that are noise: the noise counts in CCA only."""
    x, y = draw(0, 500, 3) * [10, 0.5, 0.5], draw(1, 500, 3) * [10, 0.5, 0.5]
    y[:, 0] = x[:, 0]
    assert cca(x, y) > 0.99 and cca(x, y, 1) < 0.5 and pwcca(x, y) > 0.8
    assert cca(x, y, 0.9999) == pytest.approx(cca(x, y, 1))
    u = np.linalg.qr(draw(2, 50, 4) - draw(2, 50, 4).mean(0))[0]
    for share, mean in ((0.985, 0.5), (0.991, 1)):  # the second direction, different in X and Y, is above it or below
        sizes = np.sqrt([share, 1 - share])
        assert cca(u[:, [0, 1]] * sizes, u[:, [0, 2]] * sizes) == pytest.approx(mean)


def test_features_that_are_dead_or_repeated_count_for_nothing():
    x, y = draw(0, 50, 3), draw(1, 50, 4)
    for more in (np.zeros((50, 2)), np.full((50, 2), 0.1), x[:, :2]):
        padded = np.hstack([x, more])
        assert_allclose(cca(padded, y, 1), cca(x, y, 1))
        assert_allclose(cca(padded.astype(np.float32), y, 1), cca(x, y, 1), rtol=1e-4)
    assert cca(x, x[:, :2], 1) == pytest.approx(1)  # the mean is over min(p, q) correlations


@pytest.mark.parametrize(
    "x, y, message",
    [
        (draw(0, 9, 2), draw(0, 8, 2), r"the same n samples, got \(9, 2\) and \(8, 2\)"),
        (draw(0, 9), draw(0, 9), r"expected features \(n, p\)"),
        (draw(0, 9, 2, 2), draw(0, 9, 2), r"expected features \(n, p\)"),
        (draw(0, 9, 2), np.full((9, 2), np.nan), "expected finite numbers"),
        (np.full((9, 2), 0.1), draw(0, 9, 2), "all are constant"),
        (draw(0, 9, 2), np.full((9, 2), 0.1, np.float32), "all are constant"),
    ],
)
def test_features_fed_wrong_are_refused(x, y, message):
    for index in (cca, pwcca, linear_cka):
        with pytest.raises(ValueError, match=message):
            index(x, y)


def test_cca_refuses_what_would_be_1_whatever_it_is_fed():
    for index in (cca, pwcca):
        with pytest.raises(ValueError, match="CCA of 10 samples with 10 features always gives 1"):
            index(draw(0, 10, 10), draw(1, 10, 3))
    assert linear_cka(draw(0, 10, 10), draw(1, 10, 3)) < 1


def test_cca_refuses_an_impossible_variance():
    for variance in (0, -1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="variance: expected"):
            cca(draw(0, 9, 2), draw(1, 9, 2), variance)


# --- On a network and its tasks ---

NET = MLP((2, 6, 5, 3), activation="tanh")
LOSS, ALPHA = cross_entropy(NET), 0.4
HALF = np.stack([np.zeros((8, 8, 1)), np.full((8, 8, 1), np.nan)])


@pytest.fixture(scope="module")
def tasks():
    rng = np.random.default_rng(3)

    def batch(n):
        return rng.normal(size=(n, 2)), rng.integers(3, size=n)

    return [([support] * 3, batch(20)) for support in [batch(9) for _ in range(6)]]


@pytest.fixture(scope="module")
def theta():
    return [leaf + 0.1 * draw(5, *leaf.shape) for leaf in NET.init(np.random.default_rng(4))]


def test_with_nothing_frozen_it_is_evaluation_and_with_the_body_frozen_the_head_adapts_alone(theta, tasks):
    for score in (LOSS, accuracy(NET)):
        rows = frozen(LOSS, theta, tasks, ALPHA, score)
        curve = evaluate(LOSS, theta, tasks, ALPHA, score)
        head = [score(head_adapted(LOSS, theta, s, ALPHA), q) for s, q in tasks]
        assert [row["frozen"] for row in rows] == [0, 1, 2, 3]
        assert all(rows[0][key] == pytest.approx(curve[-1][key]) for key in ("mean", "ci95", "diverged"))
        assert rows[2]["mean"] == pytest.approx(np.mean(head), rel=1e-12)
        assert rows[3]["mean"] == pytest.approx(curve[0]["mean"])
    assert len({row["mean"] for row in frozen(LOSS, theta, tasks, ALPHA, LOSS)}) == 4


def test_moved_is_the_distance_over_the_norm_and_0_for_what_is_frozen(theta, tasks):
    rows = moved(LOSS, theta, tasks, ALPHA)
    phis = [adapt(LOSS, theta, supports, ALPHA) for supports, _ in tasks]
    for layer, row in enumerate(rows):
        start, *ends = [np.concatenate([leaf.ravel() for leaf in t[2 * layer : 2 * layer + 2]]) for t in [theta, *phis]]
        expected = [np.linalg.norm(end - start) / np.linalg.norm(start) for end in ends]
        assert row["layer"] == layer + 1 and row["mean"] == pytest.approx(np.mean(expected), rel=1e-12)
        assert row["ci95"] == pytest.approx(1.96 * np.std(expected, ddof=1) / len(tasks) ** 0.5)
    *body, head = moved(LOSS, theta, tasks, ALPHA, head=2)
    assert [row["mean"] for row in body] == [0, 0] and head["mean"] > 0.01


def test_similarity_is_1_where_nothing_moved_and_falls_towards_the_head(theta, tasks):
    assert all(
        row[name]["mean"] == pytest.approx(1)
        for row in similarity(NET.layers, LOSS, theta, tasks, 0.0)
        for name in ("cca", "pwcca", "cka")
    )
    rows = similarity(NET.layers, LOSS, theta, tasks, ALPHA)
    before_after = [(NET.layers(theta, x), NET.layers(adapt(LOSS, theta, s, ALPHA), x)) for s, (x, _) in tasks]
    for layer, row in enumerate(rows):
        for name, index in (("cca", cca), ("pwcca", pwcca), ("cka", linear_cka)):
            assert row[name]["mean"] == pytest.approx(np.mean([index(a[layer], b[layer]) for a, b in before_after]))
    assert rows[0]["cka"]["mean"] > rows[-1]["cka"]["mean"]


def test_two_seeds_are_less_alike_than_before_and_after(theta, tasks):
    other = NET.init(np.random.default_rng(8))
    rows = between(NET.layers, theta, other, tasks)
    assert rows[0]["cka"]["mean"] < similarity(NET.layers, LOSS, theta, tasks, ALPHA)[0]["cka"]["mean"]
    assert all(row["cka"]["mean"] == pytest.approx(1) for row in between(NET.layers, theta, theta, tasks))


def test_of_images_each_pixel_is_a_sample():
    """With fewer images than channels CCA would have too few samples, were an image one."""
    net = ConvNet((8, 8, 1), (6,), 2)
    theta, other = (net.init(np.random.default_rng(seed)) for seed in (0, 1))
    x = draw(0, 4, 8, 8, 1)
    row = between(net.layers, theta, other, [([], (x, np.zeros(4, int)))])[0]
    pixels = [net.layers(t, x)[0].reshape(4 * 4 * 4, 6) for t in (theta, other)]
    assert row["cka"]["mean"] == pytest.approx(linear_cka(*pixels)) and row["cca"]["mean"] == pytest.approx(
        cca(*pixels)
    )


def test_the_body_of_anil_is_as_alike_as_can_be(theta, tasks):
    """Frozen layers give the same activations, whatever index."""
    head_alone = [(theta, head_adapted(LOSS, theta, s, ALPHA), x) for s, (x, _) in tasks]
    for phi, psi, x in head_alone:
        *body, head = zip(NET.layers(phi, x), NET.layers(psi, x), strict=True)
        assert all(index(a, b) == pytest.approx(1) for a, b in body for index in INDICES)
        assert linear_cka(*head) < 1 - 1e-5


# --- What softmax ignores ---


def with_more_in_common(theta, factor=30.0):
    """θ whose logits are higher by one number for each example, a linear function of its features."""
    *body, W, b = theta
    return [*body, W + factor * draw(9, len(W), 1), b + factor]


def over_examples(theta, x):
    *body, z = NET.layers(theta, x)
    return [*body, z - z.mean(0)]


def test_what_all_classes_share_does_not_count_once_the_logits_are_centred(theta, tasks):
    other = with_more_in_common(theta)
    assert all(LOSS(other, query) == pytest.approx(LOSS(theta, query)) for _, query in tasks)
    *body, head = between(centred(NET), theta, other, tasks)
    assert all(head[name]["mean"] == pytest.approx(1, abs=1e-9) for name in ("cca", "pwcca", "cka"))
    for wrong in (NET.layers, over_examples):  # which every index does anyway
        *same, raw = between(wrong, theta, other, tasks)
        assert same == body and all(raw[name]["mean"] < 0.995 for name in ("cca", "pwcca", "cka"))


def test_adaptation_neither_uses_nor_changes_what_all_classes_share(theta, tasks):
    def heads(layers):
        both = (similarity(layers, LOSS, start, tasks, ALPHA)[-1] for start in (theta, with_more_in_common(theta)))
        return [[row[name]["mean"] for name in ("cca", "pwcca", "cka")] for row in both]

    assert_allclose(*heads(centred(NET)), rtol=1e-9)
    for wrong in (NET.layers, over_examples):
        plain, more = np.array(heads(wrong))
        assert (abs(more - plain) > 1e-3).all()


@pytest.mark.parametrize("dtype, factor", [(float, 1e6), (np.float32, 1e2)])
def test_centred_logits_have_one_direction_less_than_classes(dtype, factor, theta, tasks):
    """As in two coordinates of the plane of sum 0; a third direction would be rounding errors, which count in CCA."""
    plane = np.array([[1, 1], [-1, 1], [0, -2]]) / np.sqrt([2, 6])
    common = [leaf.astype(dtype) for leaf in with_more_in_common(theta, factor)]
    a, b = (centred(NET)(common, x.astype(dtype))[-1] for _, (x, _) in tasks[:2])
    assert a.dtype == dtype and cca(a, b, 1) < 0.9
    assert_allclose(cca(a, b, 1), cca(a @ plane, b @ plane, 1), rtol=np.finfo(dtype).eps ** 0.5)


def test_the_command_centres_the_logits_of_images_and_leaves_waves_alone():
    (net, layers, x), (mlp, same, points) = (prepared(lab) for lab in (of_images(None), of_waves()))
    theta = net.init(np.random.default_rng(0), dtype=np.float32)
    centred, raw = (each(theta, x)[-1] for each in (layers, net.layers))
    assert abs(centred.sum(-1)).max() < 1e-5 < 1e-3 < abs(raw.sum(-1)).max()
    theta = mlp.init(np.random.default_rng(0))
    assert_allclose(same(theta, points)[-1], mlp(theta, points))


def prepared(lab):
    """A network, what of it is compared, and the x of a query."""
    config = lab.configure("maml", True, {})
    net, _ = lab.network(config)
    return net, lab.layers(net), lab.tasks(config, 0)[0][1][0]


# --- What diverges, what is refused ---


def test_tasks_that_diverge_are_counted_and_left_out(theta, tasks):
    far = ([(np.full((9, 2), 1e200), np.zeros((9, 3)))] * 2, (draw(0, 20, 2), draw(1, 20, 3)))
    net = MLP(NET.widths, activation="relu")
    good = [(s[:2], (x, draw(1, 20, 3))) for s, (x, _) in tasks]
    good = [([(x, draw(2, 9, 3)) for x, _ in s], q) for s, q in good]
    for rows in (
        frozen(squared_error(net), theta, [*good, far], 0.01, squared_error(net))[:3],
        [row["cka"] for row in similarity(net.layers, squared_error(net), theta, [*good, far], 0.01)],
        moved(squared_error(net), theta, [*good, far], 0.01),
    ):
        assert all(row["diverged"] == 1 and np.isfinite([row["mean"], row["ci95"]]).all() for row in rows)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t, q: frozen(LOSS, t[:-1], q, ALPHA, LOSS), "two arrays for each layer, got 5"),
        (lambda t, q: frozen(LOSS, t, [], ALPHA, LOSS), "expected at least one task"),
        (lambda t, q: frozen(LOSS, t, q, -1.0, LOSS), "alpha: expected"),
        (lambda t, q: moved(LOSS, t[:1], q, ALPHA), "two arrays for each layer, got 1"),
        (lambda t, q: moved(LOSS, [*t[:2], 0 * t[2], 0 * t[3], *t[4:]], q, ALPHA), "layer 2 is 0"),
        (lambda t, q: moved(LOSS, [*t[:5], t[5] * np.nan], q, ALPHA), "finite"),
        (lambda t, q: moved(LOSS, t, q, ALPHA, head=7), "theta has 6 arrays, so 0 … 6 of them can adapt; got 7"),
        (lambda t, q: similarity(NET.layers, LOSS, t, [], ALPHA), "expected at least one task"),
        (
            lambda t, q: similarity(NET.layers, LOSS, t, [(s, (x[:6], y[:6])) for s, (x, y) in q], ALPHA),
            "CCA of 6 samples with 6",
        ),
        (lambda t, q: similarity(NET.layers, LOSS, t, q, float("nan")), "alpha: expected"),
        (lambda t, q: between(NET.layers, t, t[:-1], q), "theta has 5 arrays"),
        (lambda t, q: between(NET.layers, t, [leaf * np.inf for leaf in t], q), r"other\[0\]: expected finite"),
        (lambda t, q: nil(NET, t, ([], q[0][1])), "expected a support batch, got none"),
        (lambda t, q: nil(NET, t, ([(x, -y) for x, y in q[0][0]], q[0][1])), "labels must be 0, 1, …; got -2"),
        (lambda t, q: nil(MLP((2, 3)), t[:1] + [np.zeros(3)], q[0]), "W1 of theta has shape"),
        (lambda t, q: nil(MLP((2, 3)), [np.zeros((2, 3)), np.zeros(3)], q[0]), "nothing below its head"),
        (lambda t, q: regimes({"maml": (NET, t)}, []), "expected at least one task"),
        (lambda t, q: multiclass(ConvNet((8, 8, 1), (2,), 2), [], 4, 1, adam(0.01)), "at least one array of images"),
        (
            lambda t, q: multiclass(ConvNet((8, 8, 1), (2,), 2), [np.zeros((3, 9, 9, 1))], 4, 1, adam(0.01)),
            "x has shape",
        ),
        # The second of two images is NaN: twenty draws find it.
        (lambda t, q: multiclass(ConvNet((8, 8, 1), (2,), 2), [HALF], 20, 1, adam(0.01)), "finite numbers, got NaN"),
    ],
)
def test_measurements_fed_wrong_are_refused(call, message, theta, tasks):
    with pytest.raises(ValueError, match=message):
        call(theta, tasks)


def test_nil_refuses_what_has_no_classes(theta, tasks):
    with pytest.raises(TypeError, match="expected integer labels"):
        nil(NET, theta, ([(draw(0, 4, 2), draw(0, 4, 3))], (draw(0, 4, 2), draw(0, 4, 3))))


# --- NIL, by hand ---

IDENTITY = MLP((2, 2, 1), activation="relu")
PLAIN = [np.eye(2), np.zeros(2), np.zeros((2, 1)), np.zeros(1)]


def test_nil_weighs_labels_by_the_softmax_of_the_cosines():
    """Features are the inputs. Support at 0°, 90°, 90°, labels 1, 0, 0: the query at 40° has cosines .766 and .643.

    The nearest says 1; e^.766 = 2.15 against 2 e^.643 = 3.80 say 0. At 0°: e > 2. Lengths do not matter.
    """
    support = np.array([[9.0, 0.0], [0.0, 1.0], [0.0, 0.1]]), np.array([1, 0, 0])
    angles = np.radians([40, 0, 90])
    query = 7 * np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([0, 1, 0])
    assert nil(IDENTITY, PLAIN, ([support] * 5, query)) == 1
    assert nil(IDENTITY, PLAIN, ([support], (query[0], 1 - query[1]))) == 0
    assert nil(IDENTITY, PLAIN, ([support], (query[0], np.array([1, 1, 0])))) == pytest.approx(2 / 3)
    mini = [tuple(part[i : i + 1] for part in support) for i in range(3)]
    assert nil(IDENTITY, PLAIN, (mini, query)) == 1  # the steps' own batches together are the support


def test_nil_looks_at_the_layer_below_the_head():
    """The second layer maps (x, y) to (x − 2y, y): (2.6, 1), at 21° nearer to (1, 0) than to (1, 1), is then at 59°."""
    net = MLP((2, 2, 2, 1), activation="relu")
    theta = [np.eye(2), np.zeros(2), np.array([[1.0, 0.0], [-2.0, 1.0]]), np.zeros(2), *PLAIN[2:]]
    support, x = (np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([0, 1])), np.array([[2.6, 1.0]])
    assert nil(IDENTITY, PLAIN, ([support], (x, np.array([0])))) == 1
    assert nil(net, theta, ([support], (x, np.array([1])))) == 1


def test_the_head_and_dead_features_do_not_matter_to_nil():
    support, query = (np.eye(2), np.arange(2)), (np.array([[2.0, 1.0], [-1.0, -1.0]]), np.array([0, 0]))
    for head in (0.0, 1e9):
        assert (
            nil(IDENTITY, [*PLAIN[:2], PLAIN[2] + head, PLAIN[3] - head], ([support], query)) == 1
        )  # a tie is class 0


def test_multiclass_training_helps_nil_and_regimes_says_so():
    images, net = glyphs(size=10, classes=30), ConvNet((10, 10, 1), (8,), 5)
    wide, theta = multiclass(net, images.train, 60, 60, adam(0.01), seed=1)
    assert wide.classes == len(images.train) and theta[0].dtype == np.float32
    again = multiclass(net, images.train, 60, 60, adam(0.01), seed=1)[1]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(theta, again, strict=True))
    rng = np.random.default_rng(0)
    tasks = [episode(rng, images.test, 5, 1, 5, 1) for _ in range(30)]
    random = net.init(np.random.default_rng(0), dtype=np.float32)
    untrained, trained = regimes({"random": (net, random), "multiclass": (wide, theta)}, tasks)
    assert untrained["regime"] == "random" and trained["mean"] > untrained["mean"] > 0.25
    assert trained["mean"] == pytest.approx(np.mean([nil(wide, theta, task) for task in tasks]))


# --- The command ---

FEW = ["--quick", "--iterations", "10"]


@pytest.fixture(autouse=True)
def few_tasks(monkeypatch):
    for settings in (IMAGES, QUICKLY):
        monkeypatch.setitem(settings, "test_tasks", 12)


def numbers(text, title):
    """The first number of every line of the table below a title, by the line's name."""
    lines = text[text.index(title) :].split("\n\n")[0].splitlines()[2:]
    return {
        line[: line.index(" ± ")].rsplit(None, 1)[0].strip(): float(line.split(" ± ")[0].split()[-1])
        for line in lines
        if " ± " in line
    }


def test_reuse_prints_four_tables_beside_the_papers_and_leaves_all_that_was_measured(tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["reuse", *FEW, "--out", str(folder)]) == 0
    text = capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    assert [row["frozen"] for row in result["frozen"]] == [0, 1, 2, 3]
    for name, row in zip(("none", "1", "body", "all"), result["frozen"], strict=True):
        assert numbers(text, "\n1.")[name] == pytest.approx(100 * row["mean"], abs=0.051)
    assert {row["layer"] for row in result["similarity"]} == {1, 2, 3} == {row["layer"] for row in result["moved"]}
    assert [row["regime"] for row in result["regimes"]] == list(REGIMES)
    assert numbers(text, "\n3.").keys() == {"layer 1", "layer 2", "head"}
    assert result["own"]["maml"]["mean"] == pytest.approx(result["frozen"][0]["mean"], abs=1e-6)
    assert "46.9" in text and "> 0.9" in text and "0.51   0.83" in text and "26.5" in text  # the paper's
    raw, head = result["raw_logits"][0]["cca"]["mean"], result["similarity"][-1]["cca"]["mean"]
    assert numbers(text, "\n2.")["head"] == pytest.approx(head, abs=5.1e-4)
    assert f"\n   head, raw logits: CCA {raw:.3f} ± " in text and abs(raw - head) > 0.01
    thetas = {path.parent.name for path in folder.glob("*/theta.npz")}
    assert thetas == {f"{name}-{seed}" for name in REGIMES[:4] for seed in (0, 1)}
    assert (folder / "reuse.png").read_bytes().startswith(b"\x89PNG")


def test_every_number_of_the_paper_has_a_row_to_stand_in():
    """depths: of the paper's network, four layers and the head, the first to the third and the body frozen."""
    rows = {"frozen": depths({"frozen": range(6)}), "own": REGIMES, "nil": REGIMES}
    for numbers in PAPER["miniimagenet"].values():
        assert numbers.keys() == rows.keys()
        for what, known in numbers.items():
            assert known and known.keys() <= set(rows[what])
    assert all(known.keys() == set(PAIRS) for known in PAPER["seeds"].values())


def test_reuse_of_waves_has_three_tables_and_none_of_the_papers_numbers(tmp_path, capsys):
    options = ["--seeds", "3-4", "--shots", "5", "--steps", "3", "--alpha", "0.02"]
    assert main(["reuse", *FEW, "--data", "sine", *options, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "of MAML after 3 steps" in text
    assert "mean squared error" in text and all(word not in text for word in ("paper", "NIL", "raw logits"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert (
        "regimes" not in result
        and result["seeds"] == [3, 4]
        and all((config["shots"], config["alpha"]) == (5, 0.02) for config in result["config"].values())
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        *("maml-3", "maml-4", "anil-3", "anil-4", "result.json", "reuse.png", "reuse.svg")
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Of characters and of waves: the result that the command leaves, and its figure."""
    found, folder = {}, tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        for settings in (IMAGES, QUICKLY):
            patch.setitem(settings, "test_tasks", 12)
        for data in ("glyphs", "sine"):
            patch.setattr(figures, "save_figure", lambda path, figure, data=data: found.update({data: figure}))
            assert main(["reuse", *FEW, "--data", data, "--out", str(folder / data)]) == 0
    return {data: (json.loads((folder / data / "result.json").read_text()), figure) for data, figure in found.items()}


def test_a_figure_has_a_row_for_each_result_and_names_its_data(drawn):
    for data in ("sine", "glyphs"):  # as docs/reuse.py draws them, in rows of three
        figures.panels(figures.Figure().subplots(1, 3), drawn[data][0])
    titles = [[axis.get_title() for axis in drawn[data][1].axes] for data in ("glyphs", "sine")]
    assert [len(names) for names in titles] == [4, 3]
    assert "glyphs" in titles[0][0] and "sine" in titles[1][0]


def test_the_figure_has_the_numbers_of_the_result(drawn):
    result, figure = drawn["sine"]
    frozen, moved, _ = figure.axes
    *some, nothing = [row["mean"] for row in result["frozen"]]
    dots = [line.get_ydata().tolist() for line in frozen.lines if line.get_marker() == "o"]
    assert dots == [some, [result["own"]["anil"]["mean"]]]
    assert [line.get_ydata()[0] for line in frozen.lines if line.get_linestyle() == "--"] == [nothing]
    (layers,) = [line for line in moved.lines if line.get_marker() == "o"]
    assert layers.get_ydata().tolist() == [row["mean"] for row in result["moved"]] and moved.get_yscale() == "log"


def test_when_a_training_diverges_reuse_keeps_what_there_is(tmp_path, capsys, monkeypatch):
    def exploding(loss, theta, tasks, alpha):
        return [1e200 * leaf for leaf in anil(loss, theta, tasks, alpha)]

    monkeypatch.setitem(METHODS, "anil", METHODS["anil"]._replace(algorithm=exploding))
    assert main(["reuse", *FEW, "--data", "sine", "--out", str(tmp_path)]) == 1
    assert "reuse: anil, seed 0: training diverged" in capsys.readouterr().err
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("**/*.*")} == {
        "maml-0/theta.npz",
        "anil-0/theta.npz",  # the last that was finite
    }
