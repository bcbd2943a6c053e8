"""`refmeta reproduce`: the papers' tables beside ours."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from refmeta.__main__ import main
from refmeta.lab.fewshot import experiment as fewshot
from refmeta.lab.fewshot.images import glyphs
from refmeta.lab.reproduce import experiment, papers
from refmeta.lab.reproduce.experiment import pace, shortened
from refmeta.lab.reproduce.papers import PAPER, PAPERS, Bar, Row
from refmeta.lab.reproduce.reads import reads
from refmeta.lab.reuse.experiment import PAPER as KNOWN
from refmeta.lab.reuse.experiment import of_images, of_waves
from refmeta.lab.runs import Run
from refmeta.lab.sine import experiment as sine


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """Even shorter trainings and tests: what is learned is not the point here."""
    with pytest.MonkeyPatch.context() as patch:
        for lab in (sine, fewshot):
            for name, number in (("iterations", 20), ("test_tasks", 10)):
                patch.setitem(lab.QUICKLY, name, number)
        yield


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run, with figures where there is matplotlib."""
    out = tmp_path_factory.mktemp("reproduce") / "out"
    assert (
        main(["reproduce", "finn2017", "--quick", "--seeds", "0-1", "--checkpoint-every", "10", "--out", str(out)]) == 0
    )
    return out, json.loads((out / "result.json").read_text())


def test_every_row_of_the_paper_has_ours_beside_it(quick):
    out, result = quick
    said = (out / "finn2017.md").read_text()
    rows = {(table["title"], row["label"]): row for table in result["tables"] for row in table["rows"]}
    assert len(rows) == sum(map(len, PAPERS["finn2017"].tables.values())) == 8
    published = rows["Mean squared error with 5 points", "MAML"]["published"]
    assert published == {"1": "0.67", "5": "0.38", "10": "0.35"}  # Finn et al. 2017, appendix C, table 2
    assert rows["Mean squared error with 5 points", "joint training"]["published"] == {
        "1": "2.41",
        "5": "2.23",
        "10": "2.19",
    }
    for row in rows.values():
        curve = {}
        for each in row["here"]:
            lost = f" ({each['diverged']} diverged)" * bool(each["diverged"])
            curve[each["steps"]] = f"{each['mse']:.3f} ± {each['ci95']:.3f}{lost}"
        line = " ".join(f"| {row['label']} | {curve[1]} | {curve[5]} | {curve[10]}".split())
        assert line in " ".join(said.split())
    for words in (
        "0.67",
        "2.19",
        "mean of 2 seeds",
        "| 20 ",
        "| 70,000",
        "https://arxiv.org/abs/1703.03400",
        "too short",
    ):
        assert words in said


def test_ours_are_those_of_the_trained_networks_tested_as_the_row_says(quick):
    out, result = quick
    joint = result["tables"][0]["rows"][2]
    means = []
    for seed in (0, 1):
        with np.load(out / f"joint-{seed}/theta.npz") as archive:
            theta = [archive[name] for name in archive]
        config = sine.configure("joint", True, {"test_shots": 5, "test_alpha": 0.01}, "finn2017")
        means.append([row["mse"] for row in sine.tested(config, theta, seed)])
    assert [each["mse"] for each in joint["here"]] == pytest.approx(np.mean(means, 0))
    assert joint["test"] == {"test_shots": 5, "test_alpha": 0.01}


def test_it_goes_on_where_it_was_stopped(quick, tmp_path, capsys, no_figures):
    out, result = quick
    (out / "oracle-1/checkpoint").unlink()
    assert main(["reproduce", "finn2017", "--quick", "--seeds", "0-1", "--resume", str(out)]) == 0
    again = json.loads((out / "result.json").read_text())
    assert [table["rows"] for table in again["tables"]] == [table["rows"] for table in result["tables"]]
    assert main(["reproduce", "nichol2018", "--quick", "--resume", str(out)]) == 2
    assert "is of another run" in capsys.readouterr().err


def test_the_figure_has_every_row(quick):
    pytest.importorskip("matplotlib", reason="figures need the extra lab")
    assert (quick[0] / "reproduce.png").read_bytes().startswith(b"\x89PNG")


# --- Bars ---


@pytest.mark.parametrize(
    "bar, worst, met",
    [
        (Bar("within", 0.03, (PAPER,)), 0.02, True),
        (Bar("within", 0.01, (PAPER,)), 0.02, False),
        (Bar("above", 0.3), 0.36, True),
        (Bar("above", 0.5), 0.36, False),
        (Bar("above", 0.5, steps=(1,)), 0.69, True),
        (Bar("below", 0.5), 0.69, False),
        (Bar("below", 0, ("other",)), -0.04, True),
        (Bar("below", 0, ("other", "best")), 0.36, False),
        (Bar("within", 0.1, ("other",), (10,)), 0.04, True),
    ],
)
def test_a_bar_is_met_or_missed_by_the_worst_of_its_numbers(bar, worst, met):
    means = {"mine": {0: 9.0, 1: 0.69, 10: 0.36}, "other": {0: 9.5, 1: 0.8, 10: 0.4}, "best": {0: 9.0, 1: 0.4, 10: 0.0}}
    row = Row("mine", "maml", {1: "0.67", 10: "0.35 ± 0.02"}, bar)
    if bar.of[-1:] != (PAPER,) and not bar.steps:
        means = {label: {k: v for k, v in curve.items() if k} for label, curve in means.items()}
    judged = experiment._judged(bar, row, means)
    assert (judged["worst"], judged["met"]) == (pytest.approx(worst), met)


def test_every_bar_of_a_paper_is_of_rows_and_steps_that_there_are():
    for paper in PAPERS.values():
        for rows in paper.tables.values():
            labels = {row.label for row in rows}
            for row in rows:
                assert row.training in paper.trainings and set(row.published) <= set(paper.steps)
                assert row.bar is None or {*row.bar.of} <= labels | {PAPER} and {*row.bar.steps} <= {*paper.steps}
                assert row.bar is None or row.bar.kind in ("within", "below", "above")


# --- papers.json ---


def test_every_setting_and_reading_in_the_file_is_one_that_there_is(monkeypatch):
    monkeypatch.setattr(fewshot, "omniglot", lambda root, size, split: glyphs(14, 0, 60))
    for paper in PAPERS.values():
        lab = of_images("") if paper.images else of_waves(paper.name)
        configs = {name: lab.configure(each["method"], True, each) for name, each in paper.trainings.items()}
        for row in chain(*paper.tables.values()):
            config = replace(configs[row.training], **row.test)
            run = Run(config, 0, [], [], [], 0.0, row.training)
            assert row.read in ("", "together", "pixels") or row.read in reads(lab, run), row


@pytest.mark.parametrize(
    "right, wrong",
    [
        ('"link"', '"lnik"'),
        ('"published"', '"publshed"'),
        ('"limit"', '"limits"'),
        ('"title"', '"name"'),
        ('"settings": {}', '"setting": {}'),
    ],
)
def test_a_misspelt_field_is_refused(right, wrong):
    text = Path(papers.__file__).with_name("papers.json").read_text(encoding="utf-8")
    assert right in text and papers.read(text) == PAPERS
    with pytest.raises(TypeError, match=wrong.split('"')[1]):
        papers.read(text.replace(right, wrong, 1))


def test_a_number_that_reuse_shows_too_is_the_same_in_both_files():
    twenty, five, *_ = PAPERS["raghu2020"].tables.values()
    known, (own, frozen, nil) = {}, (KNOWN["miniimagenet"]["1"][what] for what in ("own", "frozen", "nil"))
    known |= {"MAML": own["maml"], "ANIL": own["anil"], "MAML, body frozen at test": frozen["body"]}
    known |= {"NIL: MAML without its head": nil["maml"], "NIL: ANIL without its head": nil["anil"]}
    known |= {f"NIL: {name} training": nil[name] for name in ("multiclass", "multitask")}
    known |= {"NIL: random features": nil["random features"]}
    assert {row.label: experiment.number(row.published[1])[0] for row in five} == known
    shown = ", ".join(f"{row.label[:4]} {experiment.number(row.published[1])[0]}" for row in twenty)
    assert shown.replace("NIL:", "NIL") == KNOWN["omniglot"]["1"]


def test_omniglot_on_lakes_split_is_the_same_without_bars():
    one, other = PAPERS["omniglot"], PAPERS["omniglot-lake"]
    assert other.differs == one.differs and other.trainings["mlp"] == {**one.trainings["mlp"], "split": "lake"}
    ((judged,), (rows,)) = one.tables.values(), other.tables.values()
    assert any(row.bar for row in judged) and rows == [row._replace(bar=None) for row in judged]


# --- Minutes ---


def test_minutes_shorten_a_training_that_would_take_longer_and_no_other(monkeypatch):
    lab, config = of_waves(), sine.configure("maml", False, {}, "finn2017")
    assert shortened(lab, "maml", config, None, None) == config
    monkeypatch.setattr(experiment, "pace", lambda lab, name, config: 0.01)
    assert shortened(lab, "maml", config, 1, None).iterations == 6000
    assert shortened(lab, "maml", config, 1e5, None).iterations == config.iterations
    monkeypatch.setattr(experiment, "pace", lambda lab, name, config: 1e4)
    assert shortened(lab, "maml", config, 0.1, None).iterations == 1


def test_the_pace_is_measured(monkeypatch):
    monkeypatch.setattr(experiment, "MEASURED", 0.1)
    seconds = pace(of_waves(), "maml", sine.configure("maml", True, {}))
    assert 1e-5 < seconds < 1


def test_a_run_that_goes_on_keeps_its_iterations_whatever_the_pace(tmp_path, capsys, no_figures, monkeypatch):
    monkeypatch.setattr(experiment, "pace", lambda lab, name, config: 1.0)
    out = tmp_path / "out"
    command = ["reproduce", "finn2017", "--quick", "--minutes", "0.1"]
    assert main([*command, "--checkpoint-every", "5", "--out", str(out)]) == 0
    assert "| 6 " in capsys.readouterr().out
    monkeypatch.setattr(experiment, "pace", lambda lab, name, config: 0.5)
    assert main([*command, "--resume", str(out)]) == 0
    assert json.loads((out / "result.json").read_text())["trainings"]["maml"]["config"]["iterations"] == 6


# --- Characters ---


def test_characters_go_the_same_way(tmp_path, capsys, no_figures, monkeypatch):
    drawn = glyphs(14, 0, 24)
    monkeypatch.setattr(fewshot, "omniglot", lambda root, size, split: drawn)
    out = tmp_path / "out"
    assert main(["reproduce", "omniglot", "--quick", "--root", str(tmp_path), "--out", str(out)]) == 0
    said, result = capsys.readouterr().out, json.loads((out / "result.json").read_text())
    rows = {row["label"]: row for row in result["tables"][0]["rows"]}
    # Finn et al. 2017, table 1; Nichol et al. 2018, table 2
    assert rows["MAML, batch statistics, queries together"]["published"] == {"3": "98.7 ± 0.4"}
    assert rows["Reptile, one query at a time"]["published"] == {"50": "95.39 ± 0.09"}
    alone, together = (rows[f"Reptile, {how}"]["here"] for how in ("one query at a time", "queries together"))
    assert [each["steps"] for each in alone] == [each["steps"] for each in together] == [0, 5, 50] and alone != together
    (pixels,) = rows["nearest neighbour, pixels"]["here"]
    config = fewshot.configure("maml", True, {"test_queries": 1})
    assert pixels["accuracy"] == fewshot.baselines(config, drawn, 0)["nearest neighbour"][0]["accuracy"]
    assert "98.7 ± 0.4" in said and f"{100 * pixels['accuracy']:.1f} ± " in said
