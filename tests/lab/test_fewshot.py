"""Episodes of characters, and `refmeta fewshot`."""

import itertools
import json

import numpy as np
import pytest
from archives import PARTS, members, zipped
from autograd import grad
from hypothesis import given
from hypothesis import strategies as st

from refmeta import joint, trajectory
from refmeta.__main__ import main
from refmeta.lab.fewshot import Config, episode, glyphs, minibatches, run
from refmeta.lab.fewshot.experiment import accuracies, baselines, configure, fitted, initial, network
from refmeta.lab.fewshot.experiment import test_episodes as episodes_to_test_on
from refmeta.lab.fewshot.images import nearest_neighbour
from refmeta.lab.training import trajectory_of_head
from refmeta.models import MLP, cross_entropy

SMALL = ["--quick", "--filters", "4", "--iterations", "6", "--tasks", "2"]


def numbered(classes, examples):
    """Classes whose every pixel tells which image it is: 100·class + example."""
    return [np.full((examples, 2, 2, 1), 100.0 * c) + np.arange(examples)[:, None, None, None] for c in range(classes)]


# --- Episodes ---


@given(
    st.integers(0, 2**32), st.integers(2, 6), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4), st.integers(0, 4)
)
def test_an_episode_has_what_it_was_asked_for(seed, ways, shots, queries, steps, spare):
    classes = numbered(ways + spare, shots + queries + spare)
    supports, (x, labels) = episode(np.random.default_rng(seed), classes, ways, shots, queries, steps)
    assert len(supports) == steps and len({id(batch) for batch in supports}) <= 1
    seen = [batch[0][:, 0, 0, 0] for batch in supports[:1]]
    for batch, n in [(batch, shots) for batch in supports[:1]] + [((x, labels), queries)]:
        assert batch[0].shape == (ways * n, 2, 2, 1) and batch[1].dtype.kind == "i"
        assert np.array_equal(np.bincount(batch[1]), [n] * ways)
        of_class = {(label, image // 100) for label, image in zip(batch[1], batch[0][:, 0, 0, 0], strict=True)}
        assert len(of_class) == ways == len({c for _, c in of_class})  # one class to a label
    drawn = np.concatenate([*seen, x[:, 0, 0, 0]])
    assert len(set(drawn)) == len(drawn)  # no image twice, so none in both
    if seen:
        by_label = [dict(zip(b[1], b[0][:, 0, 0, 0] // 100, strict=True)) for b in (supports[0], (x, labels))]
        assert by_label[0] == by_label[1]  # a label means the same in support and query


def test_episodes_depend_on_the_generator_alone():
    classes = numbered(9, 5)
    one, same, other = (episode(np.random.default_rng(s), classes, 3, 2, 2, 1) for s in (1, 1, 2))
    assert np.array_equal(one[1][0], same[1][0]) and not np.array_equal(one[1][0], other[1][0])


def test_every_class_meets_every_label_equally_often():
    rng, classes = np.random.default_rng(0), numbered(3, 2)
    counts = np.zeros((3, 3))
    for _ in range(600):
        x, labels = episode(rng, classes, 3, 1, 1, 1)[1]
        counts[x[:, 0, 0, 0].astype(int) // 100, labels] += 1
    assert abs(counts - 200).max() < 60  # five deviations


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_minibatches_share_no_image(seed, steps):
    supports, query = minibatches(np.random.default_rng(seed), numbered(4, 9), 3, 2, 1, steps)
    drawn = np.concatenate([x[:, 0, 0, 0] for x, _ in [*supports, query]])
    assert len(supports) == steps and len(set(drawn)) == len(drawn) == 3 * (2 * steps + 1)


def test_impossible_episodes_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="ways: expected at most 3, the number of classes; got 4"):
        episode(rng, numbered(3, 5), 4, 1, 1, 1)
    with pytest.raises(ValueError, match="has 5 images; shots and queries together take 6"):
        episode(rng, numbered(3, 5), 3, 4, 2, 1)


# --- Permuted labels ---


def test_with_permuted_labels_the_first_gradient_tells_nothing_and_the_second_does():
    """Over all relabellings of a batch, with a head of zeros: E g₁ = 0 exactly, E g₂ is not, and moves the body."""
    rng = np.random.default_rng(0)
    net = MLP((4, 6, 3), activation="tanh")
    theta = [*net.init(rng)[:2], np.zeros((6, 3)), np.zeros(3)]
    loss, x = cross_entropy(net), rng.normal(size=(6, 4))
    first, second = [], []
    for order in itertools.permutations(range(3)):
        batch = x, np.repeat(order, 2)
        first.append(joint(loss, theta, [([], batch)]))
        second.append(grad(loss)(trajectory(loss, theta, [batch], 0.5)[-1], batch))
    g1, g2 = ([sum(leaves) / 6 for leaves in zip(*gradients, strict=True)] for gradients in (first, second))
    assert max(abs(leaf).max() for leaf in g1) < 1e-15 < 1e-2 < max(abs(leaf).max() for leaf in first[0])
    assert max(abs(leaf).max() for leaf in g2[:2]) > 1e-3


# --- Runs ---


def quick(method="maml", **explicit):
    small = {"tasks": 2, "iterations": 6, "test_tasks": 20, **explicit}
    return configure(method, True, small if "network" in explicit else {"filters": (4,), **small})


DRAWN = glyphs(14, 0, 24)


def test_a_run_is_determined_by_its_seed_and_stays_float32():
    one, same, other = (run(DRAWN, quick(), seed, lambda *_: None) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one.theta, same.theta, strict=True))
    assert not np.array_equal(one.theta[0], other.theta[0])
    assert {leaf.dtype.name for leaf in one.theta} == {"float32"} and one.curve == same.curve
    assert [row["steps"] for row in one.curve] == [0, 1, 5, 10]
    assert set(one.curve[0]) == {"steps", "accuracy", "median", "ci95", "diverged"}


@pytest.mark.parametrize("method, adapt", [("maml", trajectory), ("anil", trajectory_of_head(2))])
def test_accuracies_are_those_of_one_episode_after_another(method, adapt):
    config = quick(method, test_tasks=23, test_steps=(0, 3))
    net, loss = network(config)
    theta, tasks = initial(config, 0), list(episodes_to_test_on(config, DRAWN, 0))
    shares = []
    for supports, (x, labels) in tasks:
        phis = adapt(loss, theta, supports, config.alpha)
        shares.append([np.mean(net(phi, x).argmax(-1) == labels) for phi in (phis[0], phis[3])])
    assert [row["accuracy"] for row in accuracies(config, theta, tasks)] == pytest.approx(np.mean(shares, 0))


def test_an_episode_whose_logits_are_not_finite_has_diverged():
    config = quick(alpha=1e30, test_tasks=5)
    rows = accuracies(config, initial(config, 0), episodes_to_test_on(config, DRAWN, 0))
    assert rows[0]["diverged"] == 0 and rows[-1]["diverged"] == 5 and rows[-1]["accuracy"] == float("inf")


def test_test_episodes_are_of_test_classes_alone():
    known = {image.tobytes() for c in DRAWN.test for image in c}
    for supports, query in episodes_to_test_on(quick(), DRAWN, 0):
        assert all(image.tobytes() in known for image in [*supports[0][0], *query[0]])


def test_the_mlp_takes_images():
    theta = run(DRAWN, quick(network="mlp"), 0, lambda *_: None).theta
    assert [leaf.shape for leaf in theta[::2]] == [(196, 256), (256, 128), (128, 64), (64, 64), (64, 5)]


def test_nearest_neighbour_takes_the_smallest_angle():
    x = np.array([[1.0, 0], [0, 1]]).reshape(2, 1, 2, 1)
    query = np.array([[9.0, 1], [2, 3], [3, 2]]).reshape(3, 1, 2, 1)
    assert nearest_neighbour(([(x, np.array([1, 0]))], (query, np.array([1, 0, 0])))) == pytest.approx(2 / 3)


def test_baselines_stand_on_the_same_episodes():
    config = quick()
    beside = baselines(config, DRAWN, 0)
    tasks = list(episodes_to_test_on(config, DRAWN, 0))
    assert beside["nearest neighbour"][0]["accuracy"] == pytest.approx(np.mean([nearest_neighbour(t) for t in tasks]))
    assert beside["untrained"] == accuracies(config, initial(config, 0), tasks)


def test_one_way_is_refused():
    with pytest.raises(ValueError, match="ways 1: expected at least two classes"):
        configure("maml", False, {"ways": 1})


def test_too_few_classes_or_images_are_found_before_any_work():
    with pytest.raises(ValueError, match="ways 9: glyphs has 8 test classes; ask for fewer ways"):
        fitted(Config(ways=9), DRAWN)
    with pytest.raises(ValueError, match="maml takes 21 images of a class .* has 20: ask for fewer shots"):
        fitted(Config(shots=20), DRAWN)
    with pytest.raises(ValueError, match="reptile takes 21 images of a class .* fewer shots, queries or inner steps"):
        fitted(Config(method="reptile", inner_steps=10), DRAWN)


# --- The command ---


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    out = tmp_path_factory.mktemp("fewshot") / "out"
    return main(["fewshot", *SMALL, "--out", str(out)]), out


def test_a_quick_run_leaves_a_result_and_figures(quick_run):
    code, out = quick_run
    assert code == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["experiment"], result["method"], result["config"]["data"]) == ("fewshot", "maml", "glyphs")
    assert [row["steps"] for row in result["curve"]] == [0, 1, 5, 10]
    assert set(result["baselines"]) == {"nearest neighbour", "untrained"}
    with np.load(out / "theta.npz") as theta:
        assert list(theta) == ["W1", "b1", "W2", "b2"]
    for name in ("episode.png", "curves.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG") and (out / name).stat().st_size > 10_000


def test_all_methods_go_into_one_table(tmp_path, capsys, few_test_tasks):
    out = tmp_path / "out"
    assert main(["fewshot", "--method", "all", *SMALL, "--out", str(out)]) == 0
    table = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert {row["method"] for row in result["curve"]} == {"maml", "fomaml", "anil", "reptile", "joint"}
    for method in ("maml", "fomaml", "anil", "reptile", "joint training"):
        line = next(line for line in table.splitlines() if line.strip().startswith(method + " "))
        rows = [row for row in result["curve"] if row["method"] == method.split()[0]]
        cells = [f"{100 * row['accuracy']:.1f} ± {100 * row['ci95']:.1f}" for row in rows]
        assert line.split(method)[1].split() == " ".join(cells).split()
    for words in ("5-way 1-shot", "nearest neighbour", "untrained", "chance", "20.0", "0 steps", "10 steps"):
        assert words in table


def test_several_seeds_and_other_options_run(tmp_path, capsys, no_figures):
    out = tmp_path / "out"
    options = ["--seeds", "0-1", "--ways", "3", "--shots", "2", "--queries", "2", "--method", "reptile"]
    assert main(["fewshot", *SMALL, *options, "--out", str(out)]) == 0
    assert "mean over 2 seeds" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    each = [json.loads((out / f"reptile-{seed}/result.json").read_text())["curve"][1]["accuracy"] for seed in (0, 1)]
    assert result["curve"][1]["accuracy"] == pytest.approx(np.mean(each)) and result["seeds"] == [0, 1]


def test_omniglot_goes_the_same_way(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part in PARTS:
        zipped(tmp_path / f"{part}.zip", members(part))
    options = ["--data", "omniglot", "--root", str(tmp_path), "--ways", "3", "--out", str(tmp_path / "out")]
    assert main(["fewshot", *SMALL, *options]) == 2  # the archives made here have 3 drawings of a character
    assert "test class 0 of omniglot has 3" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_divergence_ends_with_1_and_saves_the_last_good_theta(tmp_path, capsys, no_figures):
    out = tmp_path / "out"
    assert main(["fewshot", *SMALL, "--outer", "sgd:1e30", "--out", str(out)]) == 1
    assert "fewshot: maml: training diverged at iteration" in capsys.readouterr().err
    with np.load(out / "theta.npz") as theta:
        assert all(np.isfinite(theta[name]).all() for name in theta)


# --- Batch statistics ---


def test_with_batch_statistics_a_query_is_asked_alone_and_with_the_others():
    config = quick(norm="batch", test_tasks=7, test_steps=(0, 2))
    net, loss = network(config)
    theta, tasks = initial(config, 0), list(episodes_to_test_on(config, DRAWN, 0))
    alone, together = [], []
    for supports, (x, labels) in tasks:
        phis = trajectory(loss, theta, supports, config.alpha)
        for phi in (phis[0], phis[2]):
            single = [net(phi, np.concatenate([supports[0][0], x[i : i + 1]]))[-1].argmax() for i in range(len(x))]
            alone.append(np.mean(single == labels))
            together.append(np.mean(net(phi, x).argmax(-1) == labels))
    rows = accuracies(config, theta, tasks)
    expected = [np.mean(shares[k::2]) for shares in (alone, together) for k in (0, 1)]
    assert [row["accuracy"] for row in rows] == pytest.approx(expected)
    assert [row.get("method") for row in rows] == [None, None, *["maml, queries together"] * 2]
    assert expected[:2] != expected[2:]


def test_both_readings_are_in_the_table(tmp_path, capsys, no_figures):
    out = tmp_path / "out"
    assert main(["fewshot", *SMALL, "--norm", "batch", "--seeds", "0-1", "--out", str(out)]) == 0
    table, result = capsys.readouterr().out, json.loads((out / "result.json").read_text())
    assert {row["method"] for row in result["curve"]} == {"maml", "maml, queries together"}
    assert "maml, queries together" in table and len(result["baselines"]["untrained"]) == 4


def test_the_test_has_shots_a_rate_and_queries_of_its_own():
    config = quick(test_shots=3, test_alpha=0.5, test_queries=2, test_steps=(0, 1), test_tasks=4)
    tasks = list(episodes_to_test_on(config, DRAWN, 0))
    assert {(len(s), len(s[0][1]), len(query[1])) for s, query in tasks} == {(1, 15, 10)}
    net, loss = network(config)
    theta = initial(config, 0)
    shares = [np.mean(net(trajectory(loss, theta, s, 0.5)[-1], x).argmax(-1) == y) for s, (x, y) in tasks]
    assert accuracies(config, theta, tasks)[1]["accuracy"] == pytest.approx(np.mean(shares))


def test_the_labels_of_many_classes_are_letters_and_then_numbers():
    figures = pytest.importorskip("refmeta.lab.fewshot.figures", reason="figures need the extra lab")
    assert [figures._name(label) for label in (0, 25, 26, 99)] == ["A", "Z", "26", "99"]
