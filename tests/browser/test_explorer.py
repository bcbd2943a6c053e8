"""The explorer in a browser: it is moved by mouse, finger and keys, and its numbers are those of refmeta."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refmeta import adapt, anil, fomaml, joint, maml, objective, reptile
from refmeta.conformance.mistakes import MISTAKES
from refmeta.conformance.rules import Derivatives, gradient, setting
from refmeta.lab.explore import PAGE
from refmeta.lab.geometry import quadratics
from refmeta.lab.training import METHODS
from refmeta.models import MLP, squared_error
from tests.browser.faults import faults

expect = pytest.importorskip("playwright.sync_api", reason="a browser needs the extra docs").expect

ROOT = Path(__file__).resolve().parents[2]
ALGORITHMS = {"joint": joint, "reptile": reptile, "fomaml": fomaml, "maml": maml}
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
if not (ROOT / "docs/explorer").is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def explorer():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("docs.explorer.__main__")


def at(tab, name):
    tab.goto(f"{PAGE.as_uri()}#{name}")
    return tab.locator(f"main#{name}")


def numbers(page):
    """All that the page says, with all its digits: of each name a number, or several."""
    said = page.evaluate("page => [...page.querySelectorAll('output[name]')].map(o => [o.name, o.dataset.value])")
    found = {name: [float(number) for number in value.split()] for name, value in said if value is not None}
    return {name: value[0] if len(value) == 1 else value for name, value in found.items()}


def slide(page, name, value):
    """Move a slider as keys do: to its lower end, then step by step."""
    slider = page.locator(f"input[type=range][name={name}]")
    low, step = (float(slider.get_attribute(key)) for key in ("min", "step"))
    slider.press("Home")
    for _ in range(round((value - low) / step)):
        slider.press("ArrowRight")
    assert float(slider.input_value()) == pytest.approx(value)


def drag(tab, handle, dx, dy):
    """By so many pixels."""
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + dx, y + dy, steps=4)
    tab.mouse.up()


def same(page, wanted):
    found = numbers(page)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


# --- The file ---------------------------------------------------------------------------------------


@needs_node
def test_the_file_is_made_of_its_parts(explorer):
    assert PAGE.read_text() == explorer.page(), "python -m docs.explorer makes it again"
    assert explorer.packed(explorer.CERTIFIED.read_bytes()) in PAGE.read_text(), "the program that answers the vectors"
    assert PAGE.stat().st_size < 300_000


@needs_node
@pytest.mark.parametrize("id", ["first_order", "stale_gradient"])
def test_its_mistakes_are_those_of_the_ledger(explorer, id, tmp_path):
    command = ["check", "--json", "--algorithm", "maml", "--", "node", str(explorer.program(tmp_path, id))]
    done = subprocess.run([sys.executable, "-m", "refmeta", *command], capture_output=True, text=True)
    (verdict,) = json.loads(done.stdout)["verdicts"]
    assert [e["suspects"] for e in verdict["explanations"]] == [[id]]


def test_every_report_names_its_mistake(explorer):
    text = PAGE.read_text().partition('id="data">')[2].partition("</script>")[0]
    reports = json.loads(text)["reports"]
    assert list(reports) == explorer.mistakes() and len(reports) == 12
    for id, said in reports.items():
        assert said["title"] == MISTAKES[id].title
        assert said["title"] in " ".join(said["report"].split())


@pytest.mark.parametrize("name", ["one", "plane", "sine", "spot"])
def test_no_page_has_a_fault(tab, name):
    assert not faults(tab, PAGE, f"#{name}") and tab.locator(f"main#{name}").is_visible()
    assert tab.locator("main:visible").count() == 1
    assert tab.locator("footer output").inner_text() == "7 of 7", "vectors that this browser answers right"


def test_a_narrower_page_is_no_fault(opened):
    for width in (768, 1024):
        tab = opened(viewport={"width": width, "height": 800})
        for name in ("one", "plane", "sine", "spot"):
            at(tab, name)
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- One dimension ----------------------------------------------------------------------------------


def parabola(theta, batch):
    a, c = batch
    return a / 2 * (theta[0] - c) ** 2


def one_dimension(pairs, alpha, K, theta):
    """What the page should say at θ."""
    pairs, at_theta = [(np.float64(a), np.float64(c)) for a, c in pairs], [np.array(theta)]
    tasks = [([pair] * K, pair) for pair in pairs]
    found = {f"direction-{name}": f(parabola, at_theta, tasks, alpha)[0] for name, f in ALGORITHMS.items()}
    found["direction-reptile"] /= alpha
    found["direction-anil"] = anil(parabola, at_theta, tasks, alpha, head=1)[0]
    found["L"] = sum(parabola(at_theta, pair) for pair in pairs)
    factors = [1 - alpha * a for a, _ in pairs]
    for name, power in {"joint": 0, "fomaml": K, "maml": 2 * K}.items():
        weights = [a * factor**power for (a, _), factor in zip(pairs, factors, strict=True)]
        found[f"rest-{name}"] = np.dot(weights, [c for _, c in pairs]) / sum(weights)
        found[f"F-{name}"] = objective(parabola, [found[f"rest-{name}"]], tasks, alpha)
    return found | {"F": objective(parabola, at_theta, tasks, alpha)}


def test_sliders_and_parabolas_of_one_dimension(opened):
    tab = opened(viewport={"width": 1400, "height": 1000})
    page = at(tab, "one")
    wanted = one_dimension([(1, 0), (4, 1)], 0.2, 1, 0.5)
    same(page, wanted)
    for name, value in {"alpha": 0.35, "K": 3, "theta": -0.21}.items():
        slide(page, name, value)
    page.get_by_label("curvature a of task 2").and_(page.locator("input")).fill("2.5")
    page.get_by_label("minimum c of task 1").and_(page.locator("circle")).press("ArrowLeft")
    page.get_by_label("curvature a of task 1").and_(page.locator("circle")).press("ArrowUp")
    wanted = one_dimension([(1.2, -0.05), (2.5, 1)], 0.35, 3, -0.21)
    same(page, wanted)
    assert not tab.heard


def test_theta_is_dragged(opened):
    tab = opened(viewport={"width": 1400, "height": 1000})
    page = at(tab, "one")
    drag(tab, page.locator("svg.before .handle.start"), 60, 0)
    theta = float(page.locator("svg.before .handle.start").get_attribute("aria-valuenow"))
    assert 0.6 < theta < 1.2
    wanted = one_dimension([(1, 0), (4, 1)], 0.2, 1, theta)
    same(page, wanted)


def test_descent_leads_to_the_fixed_points_and_fomaml_runs_away(opened):
    page = at(opened(), "one")
    assert numbers(page)["end-joint"] == pytest.approx(0.8, abs=1e-9)
    assert numbers(page)["end-maml"] == pytest.approx(0.2, abs=1e-4)
    slide(page, "epsilon", 0.5)
    assert np.isnan(numbers(page)["end-joint"]) and "ε is too large" in page.locator(".results").inner_text()
    page.get_by_role("button", name="FOMAML runs away").click()
    assert np.isnan(numbers(page)["end-fomaml"]) and np.isfinite(numbers(page)["end-maml"])
    assert "runs away" in page.locator(".results").inner_text() and "FOMAML" in page.locator(".look").inner_text()
    assert page.locator(".weights .negative").count() == 1


def test_tasks_come_and_go(opened):
    page = at(opened(), "one")
    page.get_by_role("button", name="one more task").click()
    wanted = one_dimension([(1, 0), (4, 1), (2, 0.5)], 0.2, 1, 0.5)
    same(page, wanted)
    for _ in range(4):
        page.get_by_role("button", name="one task fewer").click()
    wanted = one_dimension([(1, 0)], 0.2, 1, 0.5)
    same(page, wanted)


# --- The plane --------------------------------------------------------------------------------------


def the_plane(tasks, alpha, K, theta):
    found = {}
    for method in quadratics.METHODS:
        draws = [[pair] * (K + 1) for pair in tasks]
        direction = quadratics.direction(method, quadratics.quadratic, np.array(theta), draws, alpha)
        rest = quadratics.fixed_point(method, tasks, alpha, K + 1)
        steps = [adapt(quadratics.quadratic, [rest], [pair] * K, alpha) for pair in tasks]
        found |= {f"direction-{method}": direction, f"rest-{method}": rest}
        found[f"before-{method}"] = sum(quadratics.quadratic([rest], pair) for pair in tasks)
        found[f"after-{method}"] = sum(map(quadratics.quadratic, steps, tasks))
    return found


def test_directions_and_resting_points_of_the_plane(opened):
    tab = opened(viewport={"width": 1400, "height": 1000})
    page = at(tab, "plane")
    wanted = the_plane(quadratics.TASKS, 0.25, 1, quadratics.START)
    same(page, wanted)
    slide(page, "alpha", 0.2)
    slide(page, "K", 3)
    page.get_by_label("start θ").press("ArrowUp")
    page.get_by_label("minimum of task 2").press("ArrowRight")
    page.get_by_label("A12 of task 1").fill("-0.3")
    tasks = [(np.array([[1, -0.3], [-0.3, 3]]), np.zeros(2)), (quadratics.TASKS[1][0], np.array([2.5, -4]))]
    wanted = the_plane(tasks, 0.2, 3, [-2.4, 1.1])
    same(page, wanted)
    assert not tab.heard


def test_a_minimum_is_dragged_and_stays_in_the_picture(opened):
    tab = opened(viewport={"width": 1400, "height": 1000})
    page = at(tab, "plane")
    before = numbers(page)
    drag(tab, page.get_by_label("minimum of task 1"), 50, 30)
    assert numbers(page)["rest-maml"] != before["rest-maml"]
    drag(tab, page.get_by_label("minimum of task 1"), 3000, -3000)
    assert page.get_by_label("minimum of task 1").get_attribute("aria-valuetext") == "6.4, 4.167"


def test_a_matrix_that_is_no_valley_is_refused(opened):
    page = at(opened(), "plane")
    before, field = numbers(page), page.get_by_label("A12 of task 1")
    for nonsense in ("9", "-1e9", ""):
        field.fill(nonsense)
        assert field.get_attribute("aria-invalid") == "true" and numbers(page) == before
    field.press("Tab")  # the number in use comes back
    expect(field).to_have_value("0.4")
    assert field.get_attribute("aria-invalid") == "false"


def test_a_number_that_is_not_used_is_not_shown(opened):
    page = at(opened(), "one")
    field = page.get_by_label("curvature a of task 2").and_(page.locator("input"))
    field.fill("1e9")
    assert field.get_attribute("aria-invalid") == "true" and "between 0.05 and 10" in field.get_attribute("title")
    field.press("Tab")
    expect(field).to_have_value("10")
    slide(page, "K", 2)
    same(page, one_dimension([(1, 0), (10, 1)], 0.2, 2, 0.5))


def test_first_order_maml_runs_away_where_maml_does_not(opened):
    page = at(opened(), "plane")
    page.get_by_role("button", name="FOMAML runs away").click()
    assert np.isnan(numbers(page)["rest-fomaml"])
    same(page, {"rest-maml": quadratics.fixed_point("maml", quadratics.TASKS, 0.4, 2)})


def test_an_address_may_name_what_a_button_does(opened):
    page = at(opened(), "plane")
    page.page.goto(f"{PAGE.as_uri()}#plane/runaway")
    expect(page.locator("input[name=alpha]")).to_have_value("0.4")
    page.page.goto(f"{PAGE.as_uri()}#nonsense/%22'")
    assert page.page.locator("main#one").is_visible() and not page.page.heard


# --- A sine wave ------------------------------------------------------------------------------------

METHOD_NAMES = "maml", "anil", "reptile", "joint"


def errors(points, k, alpha, wave=None):
    """The mean squared error of each method's network after k steps on the points."""
    net, found = MLP((1, 40, 40, 1)), {}
    loss, batch = squared_error(net), tuple(np.array(points).T[..., None])
    saved, grid = np.load(ROOT / "docs/explorer/theta.npz"), np.linspace(-5, 5, 101)[:, None]
    for name in METHOD_NAMES:
        theta = [saved[f].astype(float) for f in saved.files if f.startswith(f"{name}.")]
        phi = METHODS[name].trajectory(loss, theta, [batch] * 10, alpha)[k]
        found[f"fit-{name}"] = loss(phi, batch)
        if wave:
            found[f"error-{name}"] = loss(phi, (grid, wave[0] * np.sin(grid - wave[1])))
    return found


def shown_points(page):
    """The clicked points as the first picture shows them, in its units."""
    script = """svg => [...svg.querySelectorAll("circle.point")].map(c => {
        const [x, y] = [c.parentNode.x, c.parentNode.y].map(length => length.baseVal.value);
        return svg.data(x + c.cx.baseVal.value, y + c.cy.baseVal.value);
    })"""
    return page.locator("svg.maml").evaluate(script)


XS = np.array([-4.6, -3.9, -2.7, -1.8, -0.6, 0.3, 1.4, 2.5, 3.3, 4.5])


def test_networks_adapt_to_the_first_wave(opened):
    page = at(opened(viewport={"width": 1400, "height": 1000}), "sine")
    points = np.stack([XS, 3 * np.sin(XS - 1)], 1)
    for k, alpha in (1, 0.01), (10, 0.01), (4, 0.02):
        for name, value in ("alpha", alpha), ("k", k):  # at once: at each stop three networks would adapt
            page.locator(f"input[type=range][name={name}]").fill(str(value))
        same(page, errors(points, k, alpha, (3, 1)))


def test_points_are_given_by_mouse_finger_and_keys(opened):
    tab = opened(viewport={"width": 800, "height": 1000}, has_touch=True)
    page = at(tab, "sine")
    page.get_by_role("button", name="no points").click()
    assert np.isnan(numbers(page)["fit-maml"]) and "–" in page.locator("figcaption").first.inner_text()
    picture = page.locator("svg.joint")
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] / 3, "y": box["height"] / 3})
    picture.tap(position={"x": box["width"] / 2, "y": box["height"] / 2})
    cursor = page.locator("svg.maml .cursor")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Enter"):
        cursor.press(key)
    points = shown_points(page)
    assert len(points) == 3 and points[2] == pytest.approx([0.5, 0.25])
    wanted = errors(points, 1, 0.01)
    np.testing.assert_allclose([numbers(page)[name] for name in wanted], list(wanted.values()), rtol=1e-6)
    cursor.press("Enter")  # there is one already: away with it
    assert len(shown_points(page)) == 2
    picture.click(position={"x": box["width"] / 3, "y": box["height"] / 3})
    assert len(shown_points(page)) == 1


def test_play_shows_every_step_and_moves_nothing_for_who_wants_no_motion(opened):
    page = at(opened(reduced_motion="reduce"), "sine")
    page.get_by_role("button", name="play").click()
    assert page.locator("input[name=k]").input_value() == "10"
    page = at(opened(reduced_motion="no-preference"), "sine")
    page.get_by_role("button", name="play").click()
    assert page.locator("input[name=k]").input_value() == "0"
    expect(page.locator("input[name=k]")).to_have_value("2")
    page.get_by_role("button", name="play").click()  # stop
    at_stop = page.locator("input[name=k]").input_value()
    page.page.wait_for_timeout(700)
    assert page.locator("input[name=k]").input_value() == at_stop


# --- Spot the mistake -------------------------------------------------------------------------------

SUPPORT = np.array([[1.6, 0.5], [0.5, 0.8]]), np.array([2.5, -1])
QUERY = np.array([[0.8, -0.3], [-0.3, 1.8]]), np.array([3.5, -3.5])
PLAIN = Derivatives(
    lambda phi, batch: [batch[0] @ (phi[0] - batch[1])],
    lambda phi, batch, v: [batch[0] @ v[0]],
)


def answers(id, theta, alpha, K):
    """The right gradient, and that of the mistake by the checker's own rules."""
    right = setting("maml", [np.array(theta)], ([SUPPORT] * K, QUERY), alpha, None)
    ours, theirs = (gradient(PLAIN, s)[0] for s in (right, MISTAKES[id].change(right)))
    return {"ours": ours, "theirs": theirs}


def test_every_mistake_is_the_checkers(opened):
    page = at(opened(), "spot")
    slide(page, "K", 3)
    slide(page, "alpha", 0.15)
    page.get_by_label("start θ").press("ArrowRight")
    seen = set()
    for _ in range(12):
        id = page.get_attribute("data-mistake")
        wanted = answers(id, [-2.9, 2], 0.15, 3)
        same(page, wanted)
        assert np.abs(wanted["ours"] - wanted["theirs"]).max() > 1e-3, "nothing to be seen"
        seen.add(id)
        page.get_by_role("button", name="another program").click()
    assert len(seen) == 12


def test_a_guess_is_judged_and_the_report_shown(opened):
    page = at(opened(), "spot")
    verdict, id = page.locator(".verdict"), page.get_attribute("data-mistake")
    assert not verdict.is_visible()
    wrong = next(other for other in MISTAKES if other != id and page.locator(f"button[value={other}]").count())
    page.locator(f"button[value={wrong}]").click()
    assert verdict.is_visible() and verdict.inner_text().startswith("No, ") and "0 of 1" in verdict.inner_text()
    assert MISTAKES[id].title in " ".join(verdict.locator("pre").inner_text().split())
    assert page.locator(".choices button:enabled").count() == 0
    page.get_by_role("button", name="another program").click()
    assert not verdict.is_visible()
    page.locator(f"button[value={page.get_attribute('data-mistake')}]").press("Enter")
    assert verdict.inner_text().startswith("Right: ") and "1 of 2" in verdict.inner_text()


def test_the_command_opens_the_page(monkeypatch, capsys):
    from refmeta.__main__ import main

    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert main(["explore"]) == 0 and opened == [PAGE.as_uri()]
    assert capsys.readouterr().out == f"{PAGE}\n"
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert main(["explore"]) == 0
    assert "no browser" in capsys.readouterr().out
