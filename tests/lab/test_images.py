"""Images of characters: glyphs, and what is read, refused and kept of Omniglot's archives."""

import io
import os
import zipfile

import numpy as np
import pytest
from archives import PARTS, drawing, header, members, png, unpacked, zipped

from refmeta.lab.fewshot import drawings, stored
from refmeta.lab.fewshot.drawings import omniglot
from refmeta.lab.fewshot.images import episode, glyphs, nearest_neighbour


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/refmeta"


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


# --- Omniglot ---


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
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("decoded again"))
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
    monkeypatch.setattr(stored, "CACHE_VERSION", 0)
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
        (folder_for_zip, "the folder images_evaluation.zip is the unpacked archive, rename it images_evaluation"),
        (swapped, "images_background.zip: member 'images_evaluation/.*': expected images_background/<Alphabet>"),
        (no_images, "images_background.zip: 0 images; expected 1 … 100000"),
        (in_both, "Latin in both parts; training and test classes must differ"),
        (with_member("../../evil.png", b""), "member '../../evil.png': expected images_evaluation/<Alphabet>"),
        (with_member("/evil.png", b""), "member '/evil.png': expected"),
        (with_member("images_evaluation/../character01/1_1.png", b""), "member .*: expected images_evaluation"),
        (
            with_member("images_evaluation/Ge\x1b[2Jez/character01/1_1.png", b""),
            r"Ge\\x1b\[2Jez.*: expected images_eval",
        ),
        (with_member(GOOD_NAME, b"\0" * 20_000), "0001_09.png': 20000 bytes, too many"),
        (with_member(GOOD_NAME, b"GIF89a"), "0001_09.png': expected a PNG of 105 × 105 pixels, 1 bit or grey"),
        (with_member(GOOD_NAME, b""), "0001_09.png': expected a PNG of 105 × 105"),
        (flipped, "0001_01.png': expected a PNG .*; got: .* Omniglot is at https"),
        (encrypted, "0001_01.png': expected a PNG .* encrypted"),
        (bzip2, "0001_01.png': expected a PNG .* not compressed as published"),
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
        (lambda: header(13_000, 13_000), "169000000 pixels"),  # pillow warns, and all warnings are errors here
        (lambda: header(50_000, 50_000), "2500000000 pixels"),
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


def fifo(path):
    os.mkfifo(path)


def link(target):
    return lambda path: path.symlink_to(target)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs and devices")
@pytest.mark.parametrize("plant", [fifo, link("/dev/zero"), link("nowhere"), link("0001_09.png"), os.mkdir])
def test_of_a_folder_only_regular_files_are_opened(plant, root, cache):
    """A FIFO keeps its reader waiting, a device never ends."""
    missing(root)
    unpacked(root, members(PARTS[1]))
    plant(root / GOOD_NAME)
    with pytest.raises(ValueError, match=f"{root / GOOD_NAME}: expected a regular file"):
        omniglot(root, 14)
    assert not cache.exists()


def test_no_more_is_read_than_was_listed(root, monkeypatch):
    """What grows meanwhile may have no end: here from nothing to a whole drawing."""
    missing(root)
    unpacked(root, {**members(PARTS[1]), GOOD_NAME: b""})
    checked = drawings._check_listing

    def grow(where, part, stamps):
        if part == PARTS[1]:
            unpacked(root, {GOOD_NAME: drawing(0)})
        checked(where, part, stamps)

    monkeypatch.setattr(drawings, "_check_listing", grow)
    with pytest.raises(ValueError, match=r"0001_09.png': expected a PNG .*; got: another kind of file"):
        omniglot(root, 14)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_in_the_place_of_an_archive_is_none(root):
    missing(root)
    os.mkfifo(root / "images_evaluation.zip")
    with pytest.raises(ValueError, match=r"nor the folder images_evaluation: download it from \S+ \(folder python\)$"):
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
    monkeypatch.setattr(drawings, "MOST_MEMBERS", 11)
    with pytest.raises(ValueError, match="12 images; expected 1 … 11"):
        omniglot(root, 14)


def test_an_archive_far_too_large_is_refused_unopened(root, monkeypatch):
    monkeypatch.setattr(drawings, "LARGEST_ARCHIVE", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        omniglot(root, 14)


def test_without_pillow_it_says_how_to_get_it(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[images\]' in the clone"):
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
