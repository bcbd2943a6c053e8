"""The built documents, in a real browser: what a reader would stumble over is found by it."""

import importlib
import re
from pathlib import Path

import pytest

import refmeta
from tests.browser.faults import faults

ROOT = Path(__file__).resolve().parents[2]
for package in ("sphinx", "furo", "myst_parser", "latex2mathml"):
    pytest.importorskip(package, reason="the site needs the extra docs")
if ROOT not in Path(refmeta.__file__).parents:
    pytest.skip("needs the checkout's refmeta", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def build():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("docs.build")


@pytest.fixture(scope="module")
def site(build, tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    build.site(out)
    return out


def pages(site):
    return [p for p in sorted(site.glob("*.html")) if p.name not in ("search.html", "genindex.html")]


def test_no_page_has_a_fault(tab, site):
    listings = [site / f"source/{name}.py.html" for name in ("refmeta/algorithms", "tests/theory/test_identities")]
    found = {path.name: wrong for path in [*pages(site), *listings] if (wrong := faults(tab, path))}
    assert not found


@pytest.mark.parametrize(
    "body, fault",
    [
        ("<script>undefined.gone</script>", "script: "),
        ("<script>console.error('oh')</script>", "console: oh"),
        ("<img src='gone.png'>", "missing image: "),
        ("<script src='https://refmeta.invalid/x.js'></script>", "network: https://refmeta.invalid"),
        ("<p style='width: 3000px'>wide</p>", "scrolls sideways: "),
        ("<details><p style='width: 3000px'>wide</p></details>", "scrolls sideways: "),
        (r"<math><mi>\frac</mi></math>", "not an equation: "),
        ("<math style='display: none'><mi>x</mi></math>", "invisible equation: x"),
        (r"<article><p>where $\phi_0$ is</p></article>", "bare TeX: where"),
        ("<a href='gone.html'>x</a>", "dead link: "),
        ("<a href='#gone'>x</a>", "dead link: "),
        ("<style>h1 { display: none }</style>", None),
    ],
)
def test_a_page_with_a_fault_is_refused(tab, tmp_path, body, fault):
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset='utf-8'><title>t</title><h1>t</h1>{body}")
    found = faults(tab, page)
    assert any(line.startswith(fault) for line in found) if fault else not found


def code_is_no_equation(block):
    return "EQUATION" if block[0].startswith("```math") else ""


def test_every_equation_of_a_page_is_in_it(browser, site, build):
    tab = browser.new_page()
    for page in build.pages():
        text = re.sub(r"^```\w*\n.*?^```$", code_is_no_equation, page.read_text(), flags=re.S | re.M)
        written = len(re.findall(r"EQUATION|\$[^$\n]+\$", re.sub(r"`[^`\n]*`", "", text)))
        tab.goto((site / ("index.html" if page == build.HOME else f"{page.stem}.html")).as_uri())
        assert tab.locator("article math").count() == written, page.name
    tab.goto((site / "specification.html").as_uri())
    assert tab.locator("math").count() > 40
    tab.close()


def test_equation_and_code_stand_side_by_side_if_there_is_room(browser, site):
    for width, beside in [(1400, True), (390, False)]:
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.goto((site / "specification.html").as_uri())
        pairs = tab.locator(".pair").all()
        assert len(pairs) >= 7
        for pair in pairs:
            equation = pair.locator("math").first.bounding_box()
            code = pair.locator("div.highlight").bounding_box()
            right = equation["x"] + equation["width"] <= code["x"]
            below = equation["y"] + equation["height"] <= code["y"]
            assert right if beside else below and not right
        blocks = tab.locator(".pair pre, .pair div.math")
        cut = blocks.evaluate_all("blocks => blocks.filter(block => block.scrollWidth > block.clientWidth).length")
        assert bool(cut) is not beside, "none is cut where there is room; a phone shows them by scrolling"
        tab.close()


def test_dark_is_dark_and_light_is_light(tab, site):
    tab.goto((site / "index.html").as_uri())
    colour = tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert (brightness < 60) == tab.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches")


def test_search_finds_a_word_without_a_network(tab, site):
    tab.heard.clear()
    tab.goto((site / "search.html").as_uri() + "?q=reptile")
    tab.wait_for_selector("ul.search a[href^='specification.html']")
    assert not tab.heard


def test_public_names_lead_to_their_page(browser, site):
    tab = browser.new_page()
    tab.goto((site / "specification.html").as_uri())
    tab.locator("article a[href='api.html#refmeta.stacked']").first.click()
    tab.wait_for_url("**/api.html#refmeta.stacked")
    for name in ("refmeta.maml", "refmeta.adjoint.hvp", "refmeta.conformance.check", "refmeta.models.MLP.init"):
        assert tab.locator(f"[id='{name}']").count() == 1
    source = tab.locator("dt[id='refmeta.maml'] a:has-text('source')").get_attribute("href")
    assert source == "source/refmeta/algorithms.py.html#maml"
    tab.close()
