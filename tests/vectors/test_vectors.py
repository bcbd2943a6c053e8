"""The vectors are what they say: closed, exact or certified, derived twice, and refused when touched."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from autograd import grad
from derivations import ALGORITHMS, DERIVATIONS, algorithm_of, digits
from implementations import combined
from kill_matrix import matrix
from problems import assert_same

import refmeta
from refmeta import adjoint, stacked
from refmeta.conformance import check, generate, rules
from refmeta.conformance.attribution import settings_of, tools_of
from refmeta.conformance.cases import FOLDER, VectorError, load, parse
from refmeta.conformance.suspects import SUSPECTS

VECTORS = load()
EXACT = {tier for tier, (exact, *_) in generate.TIERS.items() if exact}
FILES = sorted(p for p in FOLDER.glob("*.json") if p.stem not in ("schema", "manifest"))
each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.case.id)


@pytest.fixture
def folder(tmp_path):
    """A copy of the vectors that may be spoilt."""
    return Path(shutil.copytree(FOLDER, tmp_path / "vectors"))


def without_warnings(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd, of an empty head: there is nothing to differentiate
        return function(*arguments)


# --- The files ---


def test_generating_them_again_leaves_no_difference():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = dict(generate.files())
    assert set(made) == {p.name for p in FILES} | {"manifest.json"}
    for name, data in made.items():
        assert (FOLDER / name).read_bytes() == data, name


def test_the_command_writes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generate, "files", lambda: [("a.json", b"12345"), ("b.json", b"")])
    generate.main([str(tmp_path / "new")])
    assert {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()} == {"a.json": b"12345", "b.json": b""}
    assert capsys.readouterr().out == "a.json: 5 bytes\nb.json: 0 bytes\n"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_file_keeps_to_the_schema_and_the_schema_is_closed(path):
    jsonschema = pytest.importorskip("jsonschema", reason="extra test")
    validator = jsonschema.Draft202012Validator(json.loads((FOLDER / "schema.json").read_text()))
    content = json.loads(path.read_text())
    assert list(validator.iter_errors(content)) == []
    for place in (content, content["vectors"][0], content["vectors"][0]["expected"], content["vectors"][0]["loss"]):
        place["extra"] = 1
        assert list(validator.iter_errors(content))
        del place["extra"]
    del content["vectors"][0]["tolerance"]["float32"]
    assert list(validator.iter_errors(content))


def test_ids_are_readable_unique_and_those_of_the_manifest():
    ids = [v.case.id for v in VECTORS]
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert len(ids) == len(set(ids)) >= 40
    assert ids == [id for entry in manifest["files"].values() for id in entry["ids"]]
    assert all(
        re.fullmatch(r"[a-z0-9-]+", id) and id.startswith(v.case.algorithm) for id, v in zip(ids, VECTORS, strict=True)
    )


def test_together_they_are_smaller_than_a_mebibyte():
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 2**20


def test_every_algorithm_up_to_five_steps_and_four_tasks_is_there():
    assert {v.case.algorithm for v in VECTORS} == {"maml", "fomaml", "anil", "reptile", "joint"}
    assert max(len(s) for v in VECTORS for s, _ in v.case.tasks) == 5
    assert max(len(v.case.tasks) for v in VECTORS) == 4
    for algorithm in ("maml", "fomaml", "anil", "reptile", "joint"):
        tiers = {v.case.tier for v in VECTORS if v.case.algorithm == algorithm}
        assert {"canary", "quadratic", "regression", "tanh", "softmax"} <= tiers


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_exact_tiers_hold_plain_numbers_and_certified_ones_hex(path):
    content = json.loads(path.read_text())
    for vector in content["vectors"]:
        kinds = {type(n) for leaf in vector["expected"]["gradient"] for n in leaf}
        assert kinds <= ({int, float} if content["tier"] in EXACT else {str})
        assert set(vector["flags"]) <= set(content["notes"])


@each_vector
def test_inputs_are_representable_in_float32(vector):
    arrays = [*vector.case.theta, *(a for s, q in vector.case.tasks for b in [*s, q] for a in b), vector.case.alpha]
    assert all(np.array_equal(np.float32(a), a) for a in arrays)


@each_vector
def test_exact_vectors_have_tolerance_zero_and_certified_ones_a_small_one(vector):
    if vector.case.tier in EXACT:
        assert vector.tolerance == {"float32": 0, "float64": 0}
    else:
        assert 2**-53 < vector.tolerance["float64"] < 1e-12
        assert 2**-24 < vector.tolerance["float32"] < 1e-4


# --- The numbers, derived again ---


def within(vector, got):
    for g, expected, scale in zip(got, vector.gradient, vector.scale, strict=True):
        assert np.linalg.norm(g - expected) <= vector.tolerance["float64"] * scale


def derivations(case):
    yield algorithm_of(case)
    yield stacked(algorithm_of(case))
    if case.algorithm in ("maml", "anil"):
        yield algorithm_of(case, adjoint)


@each_vector
def test_the_specification_stacked_or_not_and_its_adjoint_give_the_expected_gradient(vector):
    case = vector.case
    for derive in derivations(case):
        per_task = [without_warnings(derive, case.loss_fn, case.theta, [task], case.alpha) for task in case.tasks]
        within(vector, combined(case, per_task))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", DERIVATIONS)
def test_derivations_that_share_little_agree(name, algorithm):
    of = {"adj": ("maml", "anil"), "com": ("maml", "anil"), "dif": ("maml", "anil", "joint")}.get(name[:3], ALGORITHMS)
    found = digits(DERIVATIONS[name], algorithm)
    assert found[0] > (9 if "differences" in name else 14.5) if algorithm in of else found is None


def test_a_derivation_of_another_algorithm_has_no_digits():
    report = check(
        lambda case: DERIVATIONS["differences of fourth order"](replace(case, algorithm="maml")), algorithms=["fomaml"]
    )
    worst = min(report.rows, key=lambda row: row.digits)
    assert worst.status == "fail" and worst.digits < 3


@each_vector
def test_the_rules_from_a_losss_derivatives_give_the_expected_gradient(vector):
    within(vector, combined(vector.case, rules.answers(tools_of(vector.case), settings_of(vector.case))))


@each_vector
def test_the_rules_give_the_intermediate_values_too(vector):
    tools = tools_of(vector.case)
    for setting, task in zip(settings_of(vector.case), vector.per_task, strict=True):
        for got, expected in zip(rules.path(tools, setting), task["phi"], strict=True):
            assert_same(got, expected, digits=12)
        if "adjoint" in task:
            for got, expected in zip(rules.adjoints(tools, setting), task["adjoint"], strict=True):
                assert_same(got, expected, digits=11)


@each_vector
def test_the_intermediate_values_are_those_of_the_specification(vector):
    case = vector.case
    head = case.head if case.algorithm == "anil" else None
    for (supports, query), task in zip(case.tasks, vector.per_task, strict=True):
        phis = without_warnings(refmeta.trajectory, case.loss_fn, case.theta, supports, case.alpha, head)
        for got, expected in zip(phis, task["phi"], strict=True):
            assert_same(got, expected, digits=12)
        for phi, support, expected in zip(phis, supports, task["inner_gradient"], strict=False):
            assert_same(grad(case.loss_fn)(phi, support), expected, digits=11)
        assert len(task["inner_gradient"]) == len(supports)
        if "adjoint" in task:
            for k, expected in enumerate(task["adjoint"]):
                rest = (case.loss_fn, phis[k], supports[k:], query, case.alpha, head)
                assert_same(without_warnings(adjoint.task_gradient, *rest), expected, digits=11)


@pytest.mark.parametrize("vector", [v for v in VECTORS if v.case.tier == "quadratic"], ids=lambda v: v.case.id)
def test_quadratic_answers_are_small_dyadic_numbers(vector):
    for value in np.concatenate([g.ravel() for g in vector.gradient]):
        assert Fraction(value).denominator <= 2**24 and abs(value) < 2**24


def test_a_case_that_is_rounded_is_not_exact():
    case = next(v.case for v in VECTORS if v.case.id == "maml-quadratic-k2-t2")
    assert generate.is_exact(case) and generate.vector(case, True, "basic")
    for rounded in (replace(case, alpha=0.1), replace(case, theta=[2.0**20 * leaf for leaf in case.theta])):
        assert not generate.is_exact(rounded) and generate.vector(rounded, True, "basic") is None
    with pytest.raises(OverflowError, match="not a power of two"):
        generate.Bounded(1) / 3


def test_a_case_that_tells_too_little_is_no_vector():
    case = next(v.case for v in VECTORS if v.case.id == "maml-tanh-k1-t3")
    assert generate.vector(case, False, "basic")
    alike = replace(case, alpha=2.0**-20)  # first and second order differ, by less than can be told
    assert generate.vector(alike, False, "basic") is None
    flat = replace(case, theta=[0 * leaf for leaf in case.theta])  # no gradient but the last bias's
    assert generate.vector(flat, False, "basic") is None


def test_what_the_specification_does_not_agree_with_is_no_vector():
    vector = VECTORS[0]
    generate._agree(vector.case, vector.gradient, 0, vector.scale)
    with pytest.raises(AssertionError, match=r"maml-canary: .* in float32 is off by 0\.5"):
        generate._agree(
            vector.case, [leaf + 0.5 for leaf in vector.gradient], 0, [leaf.size**0.5 for leaf in vector.gradient]
        )


def test_it_is_said_where_no_seed_gives_a_case(monkeypatch):
    monkeypatch.setattr(generate, "vector", lambda *_: None)
    with pytest.raises(RuntimeError, match="maml-scalar: no case found"):
        generate.make(("maml", generate.scalar, 0, 0), "scalar", True, "basic")


def test_a_wrong_number_in_a_vector_would_be_seen():
    vector = next(v for v in VECTORS if v.case.id == "maml-tanh-k3-t3")
    with pytest.raises(AssertionError):
        within(vector, [g * (1 + 1e-10) for g in vector.gradient])


# --- Suspects ---


@each_vector
def test_every_suspect_of_a_vector_is_far_from_the_truth(vector):
    for trees in vector.suspects.values():
        total = [sum(leaves) for leaves in zip(*trees, strict=True)]
        total = [leaf / len(trees) for leaf in total] if vector.case.conventions["tasks"] == "mean" else total
        distances = [np.linalg.norm(t - e) / s for t, e, s in zip(total, vector.gradient, vector.scale, strict=True)]
        assert max(distances) > 100 * vector.tolerance["float32"]


@pytest.mark.parametrize("name", SUSPECTS)
def test_every_suspect_is_caught_by_two_vectors_of_two_tiers(name):
    caught = [v for v in VECTORS if name in v.suspects]
    assert len(caught) >= 2 and len({v.case.tier for v in caught}) >= 2


# --- What is not to be trusted ---


def test_a_changed_byte_is_refused(folder):
    path = folder / "tanh.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(VectorError, match=r"tanh.json: has changed since the manifest was made"):
        load(folder)


def test_a_missing_file_is_refused(folder):
    (folder / "edge.json").unlink()
    with pytest.raises(VectorError, match="edge.json: cannot be read: No such file"):
        load(folder)


@pytest.mark.parametrize(
    "files, message",
    [
        (["canary.json"], "manifest.json: expected files, each with its sha256"),
        ({"canary.json": {}}, "manifest.json: expected files, each with its sha256: KeyError"),
        ({"../vectors/canary.json": {"sha256": ""}}, "which is not beside it"),
        ({"\0": {"sha256": ""}}, "cannot be read: embedded null byte"),
        ({"canary.json": {"sha256": 7}}, "has changed since the manifest was made"),
    ],
)
def test_a_manifest_that_names_no_files_beside_it_is_refused(folder, files, message):
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    with pytest.raises(VectorError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["manifest.json", "canary.json"])
def test_a_truncated_file_is_refused(folder, name):
    data = (folder / name).read_bytes()
    with pytest.raises(VectorError, match="is not JSON, or is cut off"):
        parse(folder / name, data[: len(data) // 2])


def test_a_format_of_the_future_is_refused(folder):
    content = json.loads((folder / "canary.json").read_bytes())
    content["format_version"] = 2
    with pytest.raises(VectorError, match="has format version 2; this refmeta reads 1"):
        parse(folder / "canary.json", json.dumps(content).encode())
    with pytest.raises(VectorError, match="is no file of refmeta-vectors"):
        parse(folder / "canary.json", b'{"format": "something else"}')


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v.update(extra=1),
        lambda v: v.pop("alpha"),
        lambda v: v["theta"][0].update(colour="red"),
        lambda v: v["tasks"][0].pop("query"),
        lambda v: v["expected"]["gradient"].pop(),
        lambda v: v["expected"]["gradient"][0].append(1),
        lambda v: v["theta"][0].update(shape=[7]),
        lambda v: v.update(alpha="a quarter"),
        lambda v: v.update(alpha=None),
        lambda v: v.update(tasks=3),
        lambda v: v.update(alpha=float("nan")),
        lambda v: v.update(alpha="0.5"),
        lambda v: v.update(head=True),
        lambda v: v.update(scale=[0.0]),
        lambda v: v.update(scale=[]),
        lambda v: v.update(scale=[10**400]),
        lambda v: v.update(id="mamI-canary"),
        lambda v: v.update(model={"kind": "mlp", "widths": [0, 1], "activation": "tanh"}),
        lambda v: v["conventions"].update(tasks="product"),
        lambda v: v["theta"][0]["shape"].append(-1),
    ],
)
def test_what_does_not_keep_to_the_schema_is_refused(folder, spoil):
    content = json.loads((folder / "canary.json").read_bytes())
    spoil(content["vectors"][0])
    with pytest.raises(VectorError, match="canary.json: not as schema.json says"):
        parse(folder / "canary.json", json.dumps(content).encode())


def test_nothing_is_ever_unpickled():
    sources = [p.read_text() for p in Path(refmeta.__file__).parent.rglob("*.py")]
    assert not any("import pickle" in s or "allow_pickle=True" in s for s in sources)


def test_the_kill_matrix_in_the_docs_is_up_to_date():
    page = Path(refmeta.__file__).parent.parent / "docs/kill_matrix.md"
    if not page.exists():
        pytest.skip("the docs are in the checkout only")
    assert page.read_text() == matrix()
