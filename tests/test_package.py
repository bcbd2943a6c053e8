"""What is handed out: the wheel and the source archive are whole, and an installed copy works by itself."""

import email
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import refmeta

ROOT = Path(refmeta.__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"


def run(*command, folder):
    return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the source archive, by the kind that build_meta calls them."""
    setuptools = pytest.importorskip("setuptools", reason="archives are built with the extra test")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"archives need setuptools 77, here is {setuptools.__version__}")
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("archives are built from the checkout only")
    folder = tmp_path_factory.mktemp("archives")
    shutil.copytree(  # with what a data set and an older copy would lie in: setuptools must leave them out itself
        ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "runs", "__pycache__")
    )
    (folder / "source/data").mkdir()
    (folder / "source/data/images_background.zip").write_bytes(b"")
    for stray in ("refmeta_old", "refmetadata"):
        shutil.copytree(folder / "source/refmeta/conformance", folder / "source" / stray)
    for kind in ("sdist", "wheel"):
        done = run(sys.executable, "-c", BUILD, kind, folder, folder=folder / "source")
        assert done.returncode == 0, done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def contents(archive):
    """The files in it, by name: a source archive has them below one folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            return {name: file.read(name) for name in file.namelist()}
    with tarfile.open(archive) as file:
        members = [m for m in file.getmembers() if m.isfile()]
        return {m.name.partition("/")[2]: file.extractfile(m).read() for m in members}


FOLDERS = {"wheel": ["refmeta"], "sdist": ["refmeta", "docs", "tests"]}


@pytest.mark.parametrize("kind", FOLDERS)
def test_it_holds_the_whole_package_and_nothing_else(kind, archives):
    held = contents(archives[kind])
    for path in sorted(path for folder in FOLDERS[kind] for path in ROOT.glob(f"{folder}/**/*")):
        if path.is_file() and path.suffix != ".pyc":
            assert held.pop(path.relative_to(ROOT).as_posix()) == path.read_bytes(), path
    assert [data for name, data in held.items() if PurePosixPath(name).name == "LICENSE"] == [
        (ROOT / "LICENSE").read_bytes()
    ]
    places = {PurePosixPath(name).parts[0] for name in held}
    files = {"CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    files.add("refmeta.egg-info")
    assert places == (files if kind == "sdist" else {f"refmeta-{refmeta.__version__}.dist-info"})


@pytest.fixture(scope="module")
def metadata(archives):
    """What an index gets to know, in the wheel."""
    (text,) = (data for name, data in contents(archives["wheel"]).items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(text)


def test_what_an_index_shows_says_what_it_is_and_links_to_nothing_beside_it(metadata):
    """There a relative link leads nowhere."""
    text = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown" and "second-order gradient" in text
    assert relative_links(text) == [] and len(text.split()) > 50
    assert "docs/specification.md" in relative_links((ROOT / "README.md").read_text())
    assert relative_links("[a](https://x.y/z) ![b](c.png) <img src='d.png'>\n\n[e]: f.md") == ["c.png", "d.png", "f.md"]


def relative_links(text):
    found = re.findall(r"\]\(([^)\s]+)|(?:src|href)=[\"']?([^\"'\s>]+)|^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
    return [link for links in found for link in links if link and not re.match(r"https://|#", link)]


def test_no_release_of_python_or_numpy_is_refused_that_nothing_is_known_against(metadata):
    """A resolver would take an older refmeta instead, or fail. Of autograd, internals are used."""
    needed = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert metadata["Requires-Python"] == ">=3.10"
    assert sorted(needed) == ["autograd<1.10,>=1.9", "numpy>=2.1"]


def test_the_vectors_their_schema_and_the_mark_of_types_are_part_of_the_package():
    names = {path.name for path in (ROOT / "refmeta/vectors").iterdir()}
    assert {"manifest.json", "schema.json", "canary.json", "tanh.json"} <= names
    assert (ROOT / "refmeta/py.typed").exists()


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """The interpreter of an environment that has the wheel, and from here what it depends on."""
    folder = tmp_path_factory.mktemp("elsewhere")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=folder).returncode == 0
    (packages,) = folder.glob("venv/lib/*/site-packages")
    with zipfile.ZipFile(archives["wheel"]) as file:
        file.extractall(packages)
    (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "venv/bin/python"
    done = run(python, "-c", "import refmeta; print(refmeta.__file__)", folder=folder)
    assert done.stdout.strip() == str(packages / "refmeta/__init__.py"), done.stderr
    return python


def test_an_installed_copy_loads_its_vectors(installed, tmp_path):
    program = "from refmeta.conformance.cases import FOLDER, load; print(len(load()), FOLDER)"
    done = run(installed, "-c", program, folder=tmp_path)
    assert done.stdout.split()[0] == "73" and str(ROOT) not in done.stdout, done.stderr


def test_an_installed_copy_passes_its_own_check(installed, tmp_path):
    harness = "refmeta.conformance.harness:meta_gradient"
    done = run(installed, "-W", "ignore", "-m", "refmeta", "check", harness, folder=tmp_path)
    assert done.returncode == 0 and f"refmeta check {harness}: passed" in done.stdout, done.stderr


PROGRAM = """
import numpy as np
import numpy.typing
from refmeta import anil, maml, recorded, stacked
from refmeta.models import MLP, squared_error

net = MLP((1, 8, 1))
theta = net.init(np.random.default_rng(0))
batch = np.zeros((2, 1)), np.ones((2, 1))
leaves: list[np.typing.NDArray[np.float64]] = maml(squared_error(net), theta, [([batch], batch)], ALPHA)
fast = recorded(stacked(anil))(squared_error(net), theta, [([batch], batch)], 0.1, head=2)
"""


def test_a_program_of_ones_own_is_type_checked_and_a_wrong_one_refused(installed, tmp_path):
    pytest.importorskip("mypy", reason="types need the extra lint")
    for name, alpha in (("right", "0.1"), ("wrong", "'a tenth'")):
        (tmp_path / f"{name}.py").write_text(PROGRAM.replace("ALPHA", alpha))
    options = ["--strict", "--python-executable", installed, "--cache-dir", tmp_path / "cache"]
    done = run(sys.executable, "-m", "mypy", *options, "right.py", "wrong.py", folder=tmp_path)
    (error, _) = done.stdout.splitlines()
    assert error.startswith("wrong.py:10: error") and 'incompatible type "str"; expected "float"' in error
