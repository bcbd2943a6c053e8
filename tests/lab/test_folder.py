"""Any images in the folders of their classes: what is read, refused and kept of them, and a whole run."""

import io
import json
import os

import numpy as np
import pytest

from refmeta.__main__ import main
from refmeta.lab.fewshot import episode, photographs, stored
from refmeta.lab.fewshot.images import Images, as_float, nearest_neighbour
from refmeta.lab.fewshot.photographs import _photograph, folder
from refmeta.lab.reuse.measurements import multiclass
from refmeta.lab.training import sgd
from refmeta.models import ConvNet

Image = pytest.importorskip("PIL.Image", reason="images need the extra images")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/refmeta"


def noise(seed, side=12, channels=3):
    """Pixels of a colour that tells the first of the seeds, with some noise."""
    first = np.random.default_rng(np.ravel(seed)[0]).integers(40, 216, channels)
    pixels = first + np.random.default_rng(seed).normal(0, 20, (side, side, channels))
    return pixels.clip(0, 255).astype(np.uint8)


def draw(root, classes=3, images=3, mode="RGB", suffix=".png", **more):
    """train/0, train/1, … and test/3, test/4, …, with so many images each."""
    for c in range(2 * classes):
        place = root / ("train", "test")[c // classes] / f"{c}"
        place.mkdir(parents=True)
        for i in range(images):
            Image.fromarray(noise([c, i])).convert(mode).save(place / f"{i}{suffix}", **more)
    return root


@pytest.fixture
def root(tmp_path):
    return draw(tmp_path / "photos")


# --- What is read ---


def test_colour_is_read_as_it_is_class_by_class(root):
    read = folder(root, 12)
    assert [len(part) for part in read[:2]] == [3, 3] and read.names == (["0", "1", "2"], ["3", "4", "5"])
    for c, images in enumerate(read.train + read.test):
        assert (images.shape, images.dtype) == ((3, 12, 12, 3), np.uint8)
        assert all(np.array_equal(image, noise([c, i])) for i, image in enumerate(images))


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_has_one_channel_and_one_colour_image_makes_three_of_it(mode, tmp_path):
    root = draw(tmp_path / "grey", mode=mode)
    grey = folder(root, 12)
    assert {images.shape for images in grey.train + grey.test} == {(3, 12, 12, 1)}
    assert np.array_equal(
        grey.test[1][2, ..., 0], np.asarray(Image.fromarray(noise([4, 2])).convert(mode).convert("L"))
    )
    Image.fromarray(noise(9)).save(root / "test/5/2.png")
    colour = folder(root, 12)
    for one, three in zip(grey.train, colour.train, strict=True):
        assert np.array_equal(np.broadcast_to(one, three.shape), three)
    assert np.array_equal(colour.test[2][2], noise(9))


def test_what_is_not_looked_at_changes_nothing(root):
    before = folder(root, 12).fingerprint()
    for place in ("val/9", "train/0", "train", "test/__MACOSX"):
        (root / place).mkdir(parents=True, exist_ok=True)
    for name in ("val/9/1.png", "train.csv", "train/.DS_Store", "train/0/._0.png", "train/0/Thumbs.db", "test/Icon\r"):
        (root / name).write_bytes(b"junk")
    assert folder(root, 12).fingerprint() == before


def test_suffixes_and_formats_are_those_that_people_have(tmp_path):
    """As in ImageNet, where a PNG is named .JPEG."""
    root = draw(tmp_path / "photos")
    for suffix, form in ((".JPEG", "PNG"), (".jpg", "JPEG"), (".bmp", "BMP"), (".gif", "GIF"), (".ppm", "PPM")):
        Image.new("RGB", (30, 20), (255, 0, 0)).save(root / f"test/3/red{suffix}", form)
    names = sorted(path.name for path in (root / "test/3").iterdir())
    read = folder(root, 8).test[0]
    for name, image in zip(names, read, strict=True):
        assert not name.startswith("red") or abs(image.astype(int) - (255, 0, 0)).max() <= 2, name


def read_of(image, size=2, form="PNG", **more):
    """What the reader makes of one saved image."""
    image.save(file := io.BytesIO(), form, **more)
    return _photograph(size, Image.open(file))


RED = Image.new("RGB", (2, 2), (255, 0, 0))
HALF = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]] * 2, np.uint8))  # red, and nothing
SIXTEEN = Image.fromarray(np.array([[0, 256], [32768, 65535]], np.uint16))


@pytest.mark.parametrize(
    "image, expected",
    [
        (RED.convert("P"), [[(255, 0, 0)] * 2] * 2),
        (HALF, [[(255, 0, 0), (255, 255, 255)]] * 2),
        (HALF.convert("LA"), [[(76,), (255,)]] * 2),
        (HALF.quantize(2), [[(255, 0, 0), (255, 255, 255)]] * 2),
        (SIXTEEN, [[(0,), (1,)], [(128,), (255,)]]),
        (Image.new("1", (2, 2), 1), [[(255,)] * 2] * 2),
    ],
    ids=["palette", "alpha", "grey-alpha", "palette-alpha", "16-bit", "1-bit"],
)
def test_every_mode_is_read_as_it_looks_on_white(image, expected):
    assert np.array_equal(read_of(image), expected)


def test_cmyk_and_exif_are_read_as_they_look():
    red = read_of(RED.convert("CMYK"), form="JPEG", quality=100).astype(int)
    assert abs(red - (255, 0, 0)).max() <= 3
    pixels = noise(1)
    turned = Image.fromarray(np.rot90(pixels, 1))  # the camera lay on its side: to be shown turned by 90° clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(read_of(turned, 12, exif=exif), pixels)
    assert not np.array_equal(read_of(turned, 12), pixels)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_large_image_is_squeezed_by_means_and_not_by_samples(form):
    """A chequerboard of single pixels is grey from afar; of every nth pixel it would be black or white."""
    board = np.indices((320, 480)).sum(0) % 2 * 255
    read = read_of(Image.fromarray(board.astype(np.uint8)), 10, form)
    assert read.shape == (10, 10, 1) and abs(read.astype(int) - 127).max() <= 3
    sides = np.zeros((40, 80), np.uint8)
    sides[:, 40:] = 255
    halves = read_of(Image.fromarray(sides), 20, form)[..., 0]
    assert halves[:, :8].max() < 20 and halves[:, 12:].min() > 235  # the whole width is in it


# --- What is kept ---


def test_what_is_decoded_once_is_read_again_as_it_was(root, cache, monkeypatch):
    first = folder(root, 12)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("decoded again"))
        assert folder(root, 12).fingerprint() == first.fingerprint()
    Image.fromarray(noise(99)).save(root / "train/0/0.png")
    assert np.array_equal(folder(root, 12).train[0][0], noise(99))
    monkeypatch.setattr(stored, "CACHE_VERSION", 0)
    folder(root, 12)
    assert len(list(cache.iterdir())) == 3


def test_a_damaged_cache_is_made_anew(root, cache):
    first = folder(root, 12)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    with np.load(file) as saved:
        arrays = dict(saved)
    grey = {**arrays, "test": arrays["test"][..., :1]}
    for bad in (grey, {**arrays, "train": arrays["train"][1:]}, {"train": arrays["train"]}, {"train": 1, "test": 1}):
        np.savez(file, **bad)
        assert folder(root, 12).fingerprint() == first.fingerprint() and file.read_bytes() == good
    file.write_bytes(good[:-50])
    assert folder(root, 12).fingerprint() == first.fingerprint()


# --- What is refused ---


def put(name, content=b"no image"):
    def plant(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return plant


def saved(image, form="PNG"):
    image.save(file := io.BytesIO(), form)
    return file.getvalue()


def link(name, target):
    return lambda root: (root / name).symlink_to(target)


def remove(name):
    def plant(root):
        for path in sorted((root / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (root / name).rmdir()

    return plant


def empty(root):
    (root / "train/0 empty").mkdir()


def one_class(root):
    remove("test/4")(root)
    remove("test/5")(root)


def unreadable(root):
    (root / "test/5").chmod(0)


def header(width, height):
    from archives import header

    return header(width, height)


BAD = [
    (remove("test"), "/test: no such folder; expected train/CLASS/IMAGE and test/CLASS/IMAGE, images as .png"),
    (remove("train"), "/train: no such folder"),
    (one_class, "/test: expected two classes or more, as train/CLASS/IMAGE"),
    (empty, "/train/0 empty: no images; expected train/CLASS/IMAGE"),
    (put("train/1.png"), "/train/1.png: expected the folder of a class: train/CLASS/IMAGE"),
    (put("train/1/labels.csv"), "/train/1/labels.csv: expected an image: train/CLASS/IMAGE"),
    (put("train/1/photo.heic"), "/train/1/photo.heic: expected an image"),
    (put("train/1/images/1.png"), "/train/1/images: expected an image: train/CLASS/IMAGE"),
    (put("test/1/1.png", saved(RED)), "photos: 1 in both parts; training and test classes must differ"),
    (put("train/1/text.png"), r"/train: image '1/text.png': expected an image; got: another kind of file"),
    (put("train/1/empty.jpg", b""), "/train: image '1/empty.jpg': expected an image"),
    (put("train/1/\x1b[2J.jpg"), r"/train: image '1/\x1b[2J.jpg': expected an image"),
    (put("train/1/half.png", saved(Image.fromarray(noise(1, 99)))[:-999]), "image '1/half.png': expected an image"),
    (put("train/1/half.jpg", saved(Image.fromarray(noise(1, 99)), "JPEG")[:-999]), "image '1/half.jpg': expected"),
    (
        put("train/1/tiff.png", saved(RED, "TIFF")),
        "/train: image '1/tiff.png': expected an image; got: another kind of file",
    ),
    (put("train/1/bomb.png", header(9000, 9000)), "'1/bomb.png': expected an image; got: 9000 × 9000 pixels, more"),
    (put("train/1/bomb.png", header(50_000, 50_000)), "'1/bomb.png': expected an image; got: Image size (25000"),
    (put("train/1/large.png", bytes(3000)), "/train/1/large.png: 3000 bytes; expected an image of at most 2000"),
    (link("train/1/loop.png", "loop.png"), "/train/1/loop.png: expected a regular file"),
    (link("train/1/zero.png", "/dev/zero"), "/train/1/zero.png: expected a regular file"),
    (link("train/loop", "loop"), "/train/loop: expected the folder of a class"),
    (link("train/1/up", ".."), "/train/1/up: expected an image: train/CLASS/IMAGE"),
    (lambda root: os.mkfifo(root / "train/1/fifo.png"), "/train/1/fifo.png: expected a regular file"),
    (unreadable, "/test/5: cannot be read: Permission denied"),
]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs, links and modes")
@pytest.mark.parametrize("plant, message", BAD, ids=[message[:40] for _, message in BAD])
def test_what_is_no_folder_of_images_ends_with_2_and_names_it(
    plant, message, root, cache, tmp_path, monkeypatch, capsys
):
    if plant is unreadable and os.geteuid() == 0:
        pytest.skip("root may read everything")
    if "2000" in message:
        monkeypatch.setattr(photographs, "MOST_BYTES", 2000)
    plant(root)
    command = ["fewshot", "--quick", "--data", "folder", "--root", str(root), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith(f"refmeta fewshot: {root}"), said
    assert not cache.exists() and not (tmp_path / "out").exists()


def test_more_than_memory_is_meant_for_is_refused_before_it_is_decoded(root):
    with pytest.raises(ValueError, match=r"photos: 18 images of 10{6} × 10{6} pixels take 54000 GB; ask for fewer"):
        folder(root, 10**6)


def test_without_pillow_it_says_how_to_get_it(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[images\]' in the clone"):
        folder(root, 12)


# --- What is done with them ---


def test_uint8_becomes_float32_where_it_is_drawn():
    images = np.arange(4 * 2 * 5 * 5 * 3).reshape(4, 2, 5, 5, 3).astype(np.uint8)
    one, other = (
        episode(np.random.default_rng(0), classes, 3, 1, 1, 1) for classes in (images, images / np.float32(255))
    )
    for (x, labels), (y, same) in zip([*one[0], one[1]], [*other[0], other[1]], strict=True):
        assert x.dtype == np.float32 and np.array_equal(x, y) and np.array_equal(labels, same)
    assert np.array_equal(as_float(np.array([0, 255], np.uint8)), [0, 1])


def test_ordinary_classification_takes_uint8_as_the_floats_that_it_stands_for():
    net, classes = ConvNet((8, 8, 3), (4,), 5), [noise([c, 0], 8)[None] for c in range(4)]
    _, theta = multiclass(net, classes, 6, 3, sgd(0.1))
    _, same = multiclass(net, [as_float(images) for images in classes], 6, 3, sgd(0.1))
    assert {leaf.dtype.name for leaf in theta} == {"float32"}
    assert all(np.array_equal(a, b) for a, b in zip(theta, same, strict=True))


def test_an_image_all_black_is_nearest_to_none():
    x = np.array([[0.0, 0], [0, 1]], np.float32).reshape(2, 1, 2, 1)
    query = np.array([[1.0, 9]], np.float32).reshape(1, 1, 2, 1)
    assert nearest_neighbour(([(x, np.array([0, 1]))], (query, np.array([1])))) == 1


SMALL = ["--quick", "--filters", "4", "--iterations", "6", "--tasks", "2", "--size", "12", "--ways", "3"]


@pytest.mark.parametrize("network, mode, channels", [("conv", "RGB", 3), ("conv", "L", 1), ("mlp", "RGB", 3)])
@pytest.mark.usefixtures("few_test_tasks")
def test_a_quick_run_goes_from_the_folder_to_its_figures(network, mode, channels, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    root = draw(tmp_path / "photos", 3, 6, mode, ".jpg")
    options = [word for word in SMALL if network == "conv" or word not in ("--filters", "4")]
    out = tmp_path / "out"
    command = ["fewshot", *options, "--network", network, "--data", "folder", "--root", str(root), "--out", str(out)]
    assert main(command) == 0, capsys.readouterr().err
    config = json.loads((out / "result.json").read_text())["config"]
    assert (config["data"], config["channels"]) == ("folder", channels)
    with np.load(out / "theta.npz") as theta:
        assert theta["W1"].shape == ((9 * channels, 4) if network == "conv" else (144 * channels, 256))
        assert theta["W1"].dtype == np.float32
    picture = np.asarray(Image.open(out / "episode.png").convert("RGB")).astype(int)
    tiles = picture[60:-60, 30 : picture.shape[1] // 10]  # a part of the support: no letters, no verdicts
    assert (np.ptp(tiles, axis=-1).max() > 20) == (channels == 3)


def test_the_figure_shows_white_as_white_and_characters_as_ink_on_grey(monkeypatch):
    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    from refmeta.lab.fewshot import figures
    from refmeta.lab.fewshot.experiment import configure, fitted, initial
    from refmeta.lab.runs import Run

    shown = []
    monkeypatch.setattr(figures, "_tiles", lambda axis, pictures: shown.append(pictures))
    monkeypatch.setattr(figures, "save_figure", lambda path, figure: None)
    white = [np.full((9, 12, 12, 1), 255, np.uint8)] * 5
    for data in ("folder", "glyphs"):
        config = configure("maml", True, {"data": data, "size": 12, "filters": (4,)})
        config = fitted(config, images := Images(white, white))
        figures.episode("none", [Run(config, 0, initial(config, 0), [], [], 0.0, "fewshot")], images)
    assert [float(pictures.mean()) for pictures in shown] == [1, 1, 1, 0, 0, 0]


def test_too_few_images_of_a_class_are_found_before_any_work(root, tmp_path, capsys):
    command = ["fewshot", *SMALL, "--data", "folder", "--root", str(root), "--out", str(tmp_path / "out")]
    assert main(command) == 2  # three of each
    assert "test class 3 of folder has 3: ask for fewer shots" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_of_these_images(tmp_path, capsys, no_figures):
    root, out = draw(tmp_path / "photos", 3, 6), tmp_path / "out"
    command = ["fewshot", *SMALL, "--data", "folder", "--root", str(root)]
    assert main([*command, "--checkpoint-every", "3", "--out", str(out)]) == 0
    assert main([*command, "--resume", str(out)]) == 0
    Image.fromarray(noise(99)).save(root / "train/0/0.png")
    capsys.readouterr()
    assert main([*command, "--resume", str(out)]) == 2 and "images" in capsys.readouterr().err


def test_reuse_takes_the_folder_too(tmp_path, capsys, no_figures):
    root, out = draw(tmp_path / "photos", 3, 16), tmp_path / "out"
    command = ["reuse", "--quick", "--iterations", "3", "--ways", "3", "--data", "folder", "--root", str(root)]
    assert main([*command, "--out", str(out)]) == 0, capsys.readouterr().err
    assert "folder, 2 seeds" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert {config["channels"] for config in result["config"].values()} == {3}
    assert [row["regime"] for row in result["regimes"]][2] == "multiclass"
