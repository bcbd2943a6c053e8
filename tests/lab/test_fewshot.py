"""Characters, episodes, and `refmeta fewshot`."""

import io
import itertools
import json
import os
import zipfile

import numpy as np
import pytest
from autograd import grad
from hypothesis import given
from hypothesis import strategies as st

from refmeta import joint, trajectory
from refmeta.__main__ import main
from refmeta.lab import fewshot, images
from refmeta.lab.fewshot import Config, accuracies, baselines, check_images, configure, nearest_neighbour
from refmeta.lab.fewshot import test_episodes as episodes_to_test_on
from refmeta.lab.images import episode, glyphs, minibatches, omniglot
from refmeta.models import MLP, cross_entropy

PARTS = "images_background", "images_evaluation"
SMALL = ["--quick", "--filters", "4", "--iterations", "6", "--tasks", "2"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/refmeta"


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
    with pytest.raises(ValueError, match="ways: 4 of them need as many classes; there are 3"):
        episode(rng, numbered(3, 5), 4, 1, 1, 1)
    with pytest.raises(ValueError, match="has 5 images; shots and queries together take 6"):
        episode(rng, numbered(3, 5), 3, 4, 2, 1)


# --- Glyphs ---


def test_glyphs_are_the_same_every_time_and_other_with_another_seed():
    one, same, other = (glyphs(14, seed, 9) for seed in (0, 0, 1))
    for a, b, c in zip(*(drawn.train + drawn.test for drawn in (one, same, other)), strict=True):
        assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert (len(one.train), len(one.test)) == (6, 3)
    assert {(c.shape, c.dtype.name) for c in one.train + one.test} == {((20, 14, 14, 1), "float32")}
    assert all(c.min() >= 0 and c.max() <= 1 and 0.03 < c.mean() < 0.5 for c in one.train + one.test)


def test_glyphs_can_be_told_apart_and_not_by_pixels_alone():
    classes = glyphs(28, 0, 90).test
    rng = np.random.default_rng(0)
    share = np.mean([nearest_neighbour(episode(rng, classes, 5, 1, 5, 1)) for _ in range(100)])
    assert 0.4 < share < 0.8


def test_glyphs_of_no_size_are_refused():
    for size, classes in ((4, 9), (28, 2)):
        with pytest.raises(ValueError, match="at least 3 classes and 8 pixels"):
            glyphs(size, 0, classes)


# --- Omniglot, on archives of a few drawings made here ---


def png(pixels, mode="1"):
    image = pytest.importorskip("PIL.Image", reason="PNG images need the extra images")
    file = io.BytesIO()
    image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def drawing(seed, side=105):
    return png(np.where(np.random.default_rng(seed).random((side, side)) < 0.1, 0, 255).astype(np.uint8))


def members(part):
    """Two alphabets of two characters, drawn three times."""
    alphabets = {"images_background": ("Greek", "Latin"), "images_evaluation": ("Ge_ez", "Old_(Cyrillic)")}[part]
    names = itertools.product(alphabets, (1, 2), (1, 2, 3))
    return {
        f"{part}/{alphabet}/character{c:02}/{c:04}_{drawer:02}.png": drawing([PARTS.index(part), c, drawer])
        for alphabet, c, drawer in names
    }


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def unpacked(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "omniglot"
    root.mkdir()
    for part in PARTS:
        zipped(root / f"{part}.zip", {f"{part}/": b"", "LICENSE": b"MIT", **members(part)})
    return root


def test_omniglot_is_shrunk_by_area_means_and_rotated_into_new_classes(root):
    read = omniglot(root, 14)
    assert (len(read.train), len(read.test)) == (16, 4)
    assert {(c.shape, c.dtype.name) for c in read.train + read.test} == {((3, 14, 14, 1), "float32")}
    whole = omniglot(root, 105, rotations=False)
    assert len(whole.train) == 4 and set(np.unique(whole.train[0])) == {0, 1}
    assert whole.train[0].mean() == pytest.approx(0.1, abs=0.01)  # ink is 1
    fifth = omniglot(root, 21, rotations=False)  # 5 × 5 pixels in one
    blocks = whole.test[1].reshape(3, 21, 5, 21, 5).mean((2, 4))
    assert np.allclose(fifth.test[1][..., 0], blocks, atol=0.5 / 255 + 1e-6)
    for turn in range(4):
        assert np.array_equal(read.train[4 * turn + 1], np.rot90(read.train[1], turn, (1, 2)))


def test_the_folder_form_and_the_zip_form_are_the_same_images(root, tmp_path):
    for part in PARTS:
        unpacked(tmp_path / "folders", members(part))
    one, other = omniglot(root, 14), omniglot(tmp_path / "folders", 14)
    for a, b in zip(one.train + one.test, other.train + other.test, strict=True):
        assert np.array_equal(a, b)


def test_what_is_decoded_once_is_read_again_as_it_was(root, cache, monkeypatch):
    first = omniglot(root, 14)
    (file,) = cache.iterdir()
    before = file.read_bytes()
    monkeypatch.setattr(images, "_ink", lambda *_: pytest.fail("decoded again"))
    again = omniglot(root, 14)
    assert file.read_bytes() == before
    for a, b in zip(first.train + first.test, again.train + again.test, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "method", "foreign", "shape", "dtype", "pickle", "npy"])
def test_a_damaged_cache_is_made_anew(damage, root, cache):
    first = omniglot(root, 14)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    with np.load(file) as saved:
        arrays = dict(saved)
    if damage == "npy":
        np.save(raw := io.BytesIO(), np.zeros(3))
        file.write_bytes(raw.getvalue())
    elif damage in ("cut", "flip", "empty", "method"):
        at = good.index(b"PK\1\2") + 10 if damage == "method" else len(good) // 2  # a compression nobody has
        flipped = good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :]
        file.write_bytes({"cut": good[:at], "empty": b""}.get(damage, flipped))
    else:
        kind = {
            "foreign": {"a": np.zeros(1)},
            "shape": {**arrays, PARTS[0]: arrays[PARTS[0]][1:]},
            "dtype": {**arrays, PARTS[0]: arrays[PARTS[0]].astype(float)},
            "pickle": {**arrays, PARTS[1]: np.array([{}], object)},
        }
        np.savez(file, **kind[damage])
    again = omniglot(root, 14)
    assert file.read_bytes() == good
    assert all(np.array_equal(a, b) for a, b in zip(first.test, again.test, strict=True))


def test_other_archives_other_sizes_and_other_versions_are_decoded_anew(root, cache, monkeypatch):
    one = omniglot(root, 14)
    omniglot(root, 28)
    first = next(iter(members(PARTS[1])))
    zipped(root / f"{PARTS[1]}.zip", {**members(PARTS[1]), first: drawing(99)})
    assert not np.array_equal(omniglot(root, 14).test[0], one.test[0])
    monkeypatch.setattr(images, "CACHE_VERSION", 0)
    omniglot(root, 14)
    assert len(list(cache.iterdir())) == 4


def test_without_a_cache_it_decodes_every_time(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(omniglot(root, 14).test) == 4


# What is wrong with the archives, and a part of what is then said.


def cut(root):
    file = root / "images_evaluation.zip"
    file.write_bytes(file.read_bytes()[:-100])


def not_a_zip(root):
    (root / "images_background.zip").write_text("<html>404</html>")


def missing(root):
    (root / "images_evaluation.zip").unlink()


def folder_for_zip(root):
    missing(root)
    (root / "images_evaluation.zip").mkdir()


def swapped(root):
    os.replace(root / "images_evaluation.zip", root / "images_background.zip")
    zipped(root / "images_evaluation.zip", members("images_evaluation"))


def no_images(root):
    zipped(root / "images_background.zip", {"README": b""})


def in_both(root):
    files = {name.replace("Ge_ez", "Latin"): data for name, data in members("images_evaluation").items()}
    zipped(root / "images_evaluation.zip", files)


def with_member(name, data):
    return lambda root: zipped(root / "images_evaluation.zip", {**members("images_evaluation"), name: data})


def flipped(root):
    """One byte inside the data of the first member."""
    file = root / "images_background.zip"
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(".png"))
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 255
    file.write_bytes(data)


def encrypted(root):
    """Every member's listing says that it is."""
    file = root / "images_background.zip"
    data = bytearray(file.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(mark, at + 4)
    file.write_bytes(data)


def bzip2(root):
    with zipfile.ZipFile(root / "images_background.zip", "w", zipfile.ZIP_BZIP2) as archive:
        for name, data in members("images_background").items():
            archive.writestr(name, data)


def lying(root):
    """A bomb: a member that inflates to a thousand times what its listing says."""
    file = root / "images_background.zip"
    name = next(iter(members("images_background")))
    zipped(file, {**members("images_background"), name: b"\0" * 2_000_000})
    data = bytearray(file.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2000).to_bytes(4, "little")
    file.write_bytes(data)


GOOD_NAME = "images_evaluation/Ge_ez/character01/0001_09.png"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (cut, "images_evaluation.zip: no zip archive, or truncated .*: download it again from https"),
        (not_a_zip, "images_background.zip: no zip archive, or truncated"),
        (missing, "holds neither images_evaluation.zip nor the folder images_evaluation: download it from https"),
        (folder_for_zip, "images_evaluation.zip is a folder, name it images_evaluation"),
        (swapped, "images_background.zip: member 'images_evaluation/.*': expected images_background/<Alphabet>"),
        (no_images, "images_background.zip: 0 images; expected 1 … 100000"),
        (in_both, "Latin in both parts: training and test classes must differ"),
        (with_member("../../evil.png", b""), "member '../../evil.png': expected images_evaluation/<Alphabet>"),
        (with_member("/evil.png", b""), "member '/evil.png': expected"),
        (with_member("images_evaluation/../character01/1_1.png", b""), "member .*: expected images_evaluation"),
        (with_member(GOOD_NAME, b"\0" * 20_000), "0001_09.png': 20000 bytes, too many"),
        (with_member(GOOD_NAME, b"GIF89a"), "0001_09.png': expected a PNG of 105 × 105 pixels, 1 bit or grey"),
        (with_member(GOOD_NAME, b""), "0001_09.png': expected a PNG of 105 × 105"),
        (flipped, "0001_01.png': expected a PNG .* Damaged, or another data set"),
        (encrypted, "0001_01.png': expected a PNG .* encrypted"),
        (bzip2, "0001_01.png': expected a PNG .* compressed otherwise"),
        (lying, "0001_01.png': expected a PNG"),
    ],
)
def test_what_is_no_omniglot_is_refused_and_leaves_no_cache(spoil, message, root, cache):
    spoil(root)
    with pytest.raises(ValueError, match=message):
        omniglot(root, 14)
    assert not cache.exists()


@pytest.mark.parametrize(
    "image, got",
    [
        (lambda: drawing(0, 104), "104 × 104 pixels of mode 1"),
        (lambda: png(np.zeros((105, 105, 3), np.uint8), "RGB"), "105 × 105 pixels of mode RGB"),
        (lambda: drawing(0)[:80], "got: "),
        (lambda: png(np.zeros((9000, 9000), bool)), "9000 × 9000 pixels of mode 1"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "folder"])
def test_a_drawing_of_another_kind_is_refused_by_its_name(image, got, form, root):
    if form == "zip":
        with_member(GOOD_NAME, image())(root)
    else:
        missing(root)
        unpacked(root, {**members(PARTS[1]), GOOD_NAME: image()})
    with pytest.raises(ValueError, match=f"(?s)images_evaluation.*0001_09.png': expected a PNG.*{got}"):
        omniglot(root, 14)


def test_grey_drawings_are_read_as_those_of_one_bit(root):
    pixels = np.where(np.arange(105 * 105).reshape(105, 105) % 7, 255, 0).astype(np.uint8)
    name = next(iter(members(PARTS[1])))
    read = []
    for mode in ("1", "L"):
        with_member(name, png(pixels, mode))(root)
        read.append(omniglot(root, 28).test[0][0])
    assert np.array_equal(*read)


def test_a_number_for_a_size_and_a_file_for_a_folder_are_refused(root):
    for size in (0, 106):
        with pytest.raises(ValueError, match="size: expected 1 … 105 pixels"):
            omniglot(root, size)
    with pytest.raises(ValueError, match="no such folder; expected the one that holds"):
        omniglot(root / "images_background.zip")


def test_too_many_members_are_refused(root, monkeypatch):
    monkeypatch.setattr(images, "MOST_MEMBERS", 11)
    with pytest.raises(ValueError, match="12 images; expected 1 … 11"):
        omniglot(root, 14)


def test_an_archive_far_too_large_is_refused_unopened(root, monkeypatch):
    monkeypatch.setattr(images, "LARGEST_ARCHIVE", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        omniglot(root, 14)


def test_without_pillow_it_says_how_to_get_it(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ValueError, match=r"pip install 'refmeta\[images\]'"):
        omniglot(root, 14)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if "REFMETA_OMNIGLOT" not in os.environ:
        pytest.skip("REFMETA_OMNIGLOT does not name the folder with Omniglot's archives")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return omniglot(os.environ["REFMETA_OMNIGLOT"])


def test_the_real_omniglot_has_its_classes(real):
    assert (len(real.train), len(real.test)) == (4 * 964, 659)
    assert {c.shape for c in real.train + real.test} == {(20, 28, 28, 1)}


def test_nearest_neighbour_on_the_real_omniglot(real):
    rng = np.random.default_rng(0)
    share = np.mean([nearest_neighbour(episode(rng, real.test, 5, 1, 5, 1)) for _ in range(300)])
    assert 0.4 < share < 0.6


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
    one, same, other = (fewshot.run(quick(), DRAWN, seed, lambda *_: None) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one.theta, same.theta, strict=True))
    assert not np.array_equal(one.theta[0], other.theta[0])
    assert {leaf.dtype.name for leaf in one.theta} == {"float32"} and one.curve == same.curve
    assert [row["steps"] for row in one.curve] == [0, 1, 5, 10]
    assert set(one.curve[0]) == {"steps", "accuracy", "median", "ci95", "diverged"}


@pytest.mark.parametrize("method", ["maml", "anil"])
def test_accuracies_are_those_of_one_episode_after_another(method):
    config = quick(method, test_tasks=23, report_steps=(0, 3))
    net, loss = fewshot.network(config)
    theta, tasks = fewshot.initial(config, 0), episodes_to_test_on(config, DRAWN, 0)
    shares = []
    for supports, (x, labels) in tasks:
        phis = trajectory(loss, theta, supports, config.alpha, head=2 if method == "anil" else None)
        shares.append([np.mean(net(phi, x).argmax(-1) == labels) for phi in (phis[0], phis[3])])
    assert [row["accuracy"] for row in accuracies(config, theta, tasks)] == pytest.approx(np.mean(shares, 0))


def test_an_episode_whose_logits_are_not_finite_has_diverged():
    config = quick(alpha=1e30, test_tasks=5)
    rows = accuracies(config, fewshot.initial(config, 0), episodes_to_test_on(config, DRAWN, 0))
    assert rows[0]["diverged"] == 0 and rows[-1]["diverged"] == 5 and rows[-1]["accuracy"] == float("inf")


def test_test_episodes_are_of_test_classes_alone():
    known = {image.tobytes() for c in DRAWN.test for image in c}
    for supports, query in episodes_to_test_on(quick(), DRAWN, 0):
        assert all(image.tobytes() in known for image in [*supports[0][0], *query[0]])


def test_the_mlp_takes_images():
    run = fewshot.run(quick(network="mlp"), DRAWN, 0, lambda *_: None)
    assert [leaf.shape for leaf in run.theta[::2]] == [(196, 256), (256, 128), (128, 64), (64, 64), (64, 5)]


def test_nearest_neighbour_takes_the_smallest_angle():
    x = np.array([[1.0, 0], [0, 1]]).reshape(2, 1, 2, 1)
    query = np.array([[9.0, 1], [2, 3], [3, 2]]).reshape(3, 1, 2, 1)
    assert nearest_neighbour(([(x, np.array([1, 0]))], (query, np.array([1, 0, 0])))) == pytest.approx(2 / 3)


def test_baselines_stand_on_the_same_episodes():
    config = quick()
    beside = baselines(config, DRAWN, 0)
    tasks = episodes_to_test_on(config, DRAWN, 0)
    assert beside["nearest neighbour"][0]["accuracy"] == pytest.approx(np.mean([nearest_neighbour(t) for t in tasks]))
    assert beside["untrained"] == accuracies(config, fewshot.initial(config, 0), tasks)


def test_one_way_is_refused():
    with pytest.raises(ValueError, match="ways 1: expected at least two classes"):
        configure("maml", False, {"ways": 1})


def test_too_few_classes_or_images_are_found_before_any_work():
    with pytest.raises(ValueError, match="ways 9: glyphs has 8 test classes; ask for fewer ways"):
        check_images(Config(ways=9), DRAWN)
    with pytest.raises(ValueError, match="maml takes 21 images of a class .* has 20: ask for fewer shots"):
        check_images(Config(shots=20), DRAWN)
    with pytest.raises(ValueError, match="reptile takes 21 images of a class .* fewer shots, queries or inner steps"):
        check_images(Config(method="reptile", inner_steps=10), DRAWN)


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


def test_all_methods_go_into_one_table(tmp_path, capsys):
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


def test_several_seeds_and_other_options_run(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--seeds", "0-1", "--ways", "3", "--shots", "2", "--queries", "2", "--method", "reptile"]
    assert main(["fewshot", *SMALL, *options, "--out", str(out)]) == 0
    assert "mean over 2 seeds" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    each = [json.loads((out / f"reptile-{seed}/result.json").read_text())["curve"][1]["accuracy"] for seed in (0, 1)]
    assert result["curve"][1]["accuracy"] == pytest.approx(np.mean(each)) and result["seeds"] == [0, 1]


def test_omniglot_goes_the_same_way(root, tmp_path, capsys):
    options = ["--data", "omniglot", "--root", str(root), "--ways", "3", "--out", str(tmp_path / "out")]
    assert main(["fewshot", *SMALL, *options]) == 2  # the archives made here have 3 drawings of a character
    assert "test class 0 of omniglot has 3" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_matplotlib_and_tqdm_it_says_how_to_get_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["fewshot", *SMALL, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "pip install 'refmeta[lab]'" in printed.out and printed.err == ""


def test_divergence_ends_with_1_and_saves_the_last_good_theta(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["fewshot", *SMALL, "--outer", "sgd:1e30", "--out", str(out)]) == 1
    assert "fewshot: maml: training diverged at iteration" in capsys.readouterr().err
    with np.load(out / "theta.npz") as theta:
        assert all(np.isfinite(theta[name]).all() for name in theta)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "omniglot"], "name with --root the folder that holds images_background.zip"),
        (["--data", "omniglot", "--root", "nowhere"], "nowhere: no such folder"),
        (["--root", "nowhere"], "--root nowhere: only --data omniglot reads it"),
        (["--data", "mnist"], "invalid choice: 'mnist'"),
        (["--ways", "1"], "expected a whole number of at least 2"),
        (["--ways", "500"], "ask for fewer ways"),
        (["--shots", "18"], "ask for fewer shots"),
        (["--alpha", "nan"], "alpha: expected a finite number"),
        (["--outer", "lion"], "outer 'lion': expected adam:RATE"),
        (["--filters", "8,zero"], "expected positive whole numbers as 32,32, got '8,zero'"),
        (["--filters", "8,0"], "expected positive whole numbers as 32,32, got '8,0'"),
        (["--filters", "8", "--network", "mlp"], "filters: only the network conv has them, not mlp"),
        (["--size", "20"], "invalid choice: 20"),
        (["--method", "reptile", "--inner-steps", "0"], "reptile needs at least one inner step"),
        (["--seeds", "4-0"], "expected a range as 0-4"),
    ],
)
def test_bad_options_end_with_2_and_say_what_was_expected(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    try:
        code = main(["fewshot", *SMALL[:1], "--iterations", "2", "--out", str(out), *arguments])
    except SystemExit as exit:
        code = exit.code
    assert code == 2 and message in capsys.readouterr().err
    assert not out.exists()
