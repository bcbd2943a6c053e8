"""The vectors are what they say: closed, exact or certified, derived twice, and refused when touched."""

import hashlib
import json
import os
import re
import shutil
import threading
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from autograd import grad
from problems import assert_same

import refmeta
from refmeta import adjoint
from refmeta.algorithms import trajectory
from refmeta.conformance import check, rules
from refmeta.conformance.cases import FOLDER, VectorError, load, number, parse
from refmeta.conformance.programs import EVERY
from refmeta.trees import holding, split
from tests.vectors import make
from tests.vectors.__main__ import main
from tests.vectors.arithmetic import DIGITS, Bounded, Dual, fifty_digits, in_kind
from tests.vectors.derivation import derivatives
from tests.vectors.derivations import ALGORITHMS, DERIVATIONS, by_autograd, digits
from tests.vectors.kill_matrix import matrix, possible, visible
from tests.vectors.recipes import TIERS, first, scalar

VECTORS = load()
BY_ID = {v.case.id: v for v in VECTORS}
FILES = sorted(p for p in FOLDER.glob("*.json") if p.stem not in ("schema", "manifest"))

# autograd, of an empty head: there is nothing to differentiate
pytestmark = pytest.mark.filterwarnings("ignore:Output seems independent")


@pytest.fixture
def folder(tmp_path):
    """A copy of the vectors that may be spoilt."""
    return Path(shutil.copytree(FOLDER, tmp_path / "vectors"))


# --- The files ---


def without_scales(data):
    """A file's content, and its scales: they are BLAS's norms, whose last bit is the processor's; so is a checksum."""
    content, scales = json.loads(data), []
    for vector in content.get("vectors", []):
        scales += map(number, vector.pop("scale"))
    for entry in content.get("files", {}).values():
        del entry["sha256"]
    return content, scales


def test_making_them_again_leaves_no_difference(tmp_path, capsys):
    main([str(tmp_path / "new")])
    made = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    kept = {path.name: path.read_bytes() for path in [*FILES, FOLDER / "manifest.json"]}
    assert set(made) == set(kept)
    for name in kept:
        (new, scales), (old, other_scales) = without_scales(made[name]), without_scales(kept[name])
        assert new == old and scales == pytest.approx(other_scales, rel=1e-15)
    sizes = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert sizes == {name: f"{len(data):,} bytes" for name, data in made.items()}


@pytest.mark.parametrize(
    ("tiers", "digest"),
    [
        (
            "canary quadratic regression tanh softmax edge scalar",
            "de28cedb213be7b7f3c28dc78107a26df74b56f6a5b8e6d51888b7c46f5dc1d7",
        ),
        ("deep relu", "5e912ac722bc2c81c58c4ed724e5acea72b752e6c91f5f80eedfedd34e9ac2db"),
    ],
)
def test_the_files_of_earlier_versions_are_as_they_were(tiers, digest):
    """Whoever kept answers to versions 1.0.0 and 1.1.0 may keep them."""
    data = b"".join((FOLDER / f"{tier}.json").read_bytes() for tier in tiers.split())
    assert hashlib.sha256(data).hexdigest() == digest


def test_every_file_keeps_to_the_schema_and_the_schema_is_closed():
    jsonschema = pytest.importorskip("jsonschema", reason="extra test")
    validator = jsonschema.Draft202012Validator(json.loads((FOLDER / "schema.json").read_text()))
    for path in FILES:
        content = json.loads(path.read_text())
        assert list(validator.iter_errors(content)) == [], path
        vector = content["vectors"][0]
        content["vectors"] = [vector]  # one is enough to spoil
        for place in (content, vector, vector["expected"], vector["loss"]):
            place["extra"] = 1
            assert not validator.is_valid(content), path
            del place["extra"]
        assert validator.is_valid(content)
        del vector["tolerance"]["float32"]
        assert not validator.is_valid(content), path


def test_ids_are_readable_unique_and_those_of_the_manifest():
    ids = [v.case.id for v in VECTORS]
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert len(ids) == len(set(ids)) >= 40
    assert ids == [id for entry in manifest["files"].values() for id in entry["ids"]]
    for vector in VECTORS:
        assert re.fullmatch(r"[a-z0-9-]+", vector.case.id) and vector.case.id.startswith(vector.case.algorithm)


def test_together_they_are_smaller_than_1650_kilobytes():
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 1_650_000


def test_every_algorithm_up_to_twelve_steps_and_four_tasks_is_there():
    assert {v.case.algorithm for v in VECTORS} == set(ALGORITHMS)
    assert max(len(s) for v in VECTORS for s, _ in v.case.tasks) == 12
    assert max(len(v.case.tasks) for v in VECTORS) == 4
    for algorithm in ALGORITHMS:
        tiers = {v.case.tier for v in VECTORS if v.case.algorithm == algorithm}
        assert {"canary", "quadratic", "regression", "tanh", "softmax", "deep", "relu"} <= tiers


def test_exact_tiers_hold_plain_numbers_and_certified_ones_hex():
    for path in FILES:
        content = json.loads(path.read_text())
        for vector in content["vectors"]:
            kinds = {type(n) for leaf in vector["expected"]["gradient"] for n in leaf}
            assert kinds <= ({int, float} if TIERS[content["tier"]].exact else {str})
            assert set(vector["flags"]) <= set(content["notes"])


def test_inputs_are_representable_in_float32():
    for case in (v.case for v in VECTORS):
        arrays = [*case.theta, *(a for s, q in case.tasks for b in [*s, q] for a in b), case.alpha]
        assert all(np.array_equal(np.float32(a), a) for a in arrays), case.id


def test_exact_vectors_have_tolerance_zero_and_certified_ones_a_small_one():
    for vector in VECTORS:
        if TIERS[vector.case.tier].exact:
            assert vector.tolerance == {"float32": 0, "float64": 0}
        else:
            assert 2**-53 < vector.tolerance["float64"] < 1e-12
            assert 2**-24 < vector.tolerance["float32"] < 1e-4


def test_what_the_flags_of_the_large_vectors_say_is_so():
    def sees(flag):
        return [v for v in VECTORS if flag in v.case.flags]

    flags = "Deep", "Long", "Steep", "UnequalSteps", "Ragged"
    assert all(len({v.case.tier for v in sees(flag)}) == 2 and sees(flag)[0].case.algorithm == "maml" for flag in flags)
    assert all(len(v.case.theta) >= 6 for v in sees("Deep"))
    assert all(max(len(s) for s, _ in v.case.tasks) == 12 for v in sees("Long"))
    for v in sees("Steep"):
        inner = [rules.flat(g) for task in v.per_task for g in task["inner_gradient"]]
        assert max(map(np.linalg.norm, inner)) > 100 and max(abs(g).max() for g in inner) > 40, v.case.id


def test_no_unit_of_a_relu_network_comes_near_its_kink_on_the_way():
    relu, nearest = [v for v in VECTORS if v.case.model.get("activation") == "relu"], []
    for v in relu:
        for (supports, query), task in zip(v.case.tasks, v.per_task, strict=True):
            at = [] if v.case.algorithm == "joint" else list(zip(task["phi"], supports, strict=False))
            for phi, (x, _) in [*at, (v.case.theta if v.case.algorithm == "joint" else task["phi"][-1], query)]:
                for W, b in zip(phi[:-2:2], phi[1:-2:2], strict=True):
                    nearest.append(abs(z := x @ W + b).min())
                    x = np.maximum(z, 0)
    assert len(relu) == 6 and min(nearest) >= make.MARGIN


# --- The numbers, derived again ---


@pytest.mark.parametrize("name", DERIVATIONS)
def test_derivations_that_share_little_agree(name):
    of = {"adj": ("maml", "anil"), "com": ("maml", "anil"), "dif": ("maml", "anil", "joint")}.get(name[:3], ALGORITHMS)
    for algorithm in ALGORITHMS:
        found = digits(DERIVATIONS[name], algorithm)
        assert found[0] > (9 if "differences" in name else 14.5) if algorithm in of else found is None


def test_a_derivation_of_another_algorithm_has_no_digits():
    report = check(
        lambda case: DERIVATIONS["differences of fourth order"](replace(case, algorithm="maml")), algorithms=["fomaml"]
    )
    worst = min(report.rows, key=lambda row: row.digits)
    assert worst.status == "fail" and worst.digits < 3


def test_the_derivatives_that_mistakes_are_tried_with_are_those_of_the_loss():
    """They are by hand and by imaginary steps, and may lose the last bits."""
    for case, per_task in ((v.case, v.per_task) for v in VECTORS):
        (supports, query), phis = case.tasks[0], per_task[0]["phi"]
        for phi, batch in [*list(zip(phis, supports, strict=False))[-1:], *((p, query) for p in phis[:1] if query)]:
            v = [np.cos(leaf + 1) for leaf in phi]
            ours, theirs = case.derivatives, by_autograd(case)
            assert_same(ours.grad(phi, batch), theirs.grad(phi, batch), digits=13)
            assert_same(ours.hvp(phi, batch, v), theirs.hvp(phi, batch, v), digits=12)


def test_the_rules_give_the_intermediate_values_too():
    for vector in VECTORS:
        d = vector.case.derivatives
        for setting, task in zip(vector.case.settings, vector.per_task, strict=True):
            for got, expected in zip(rules.path(d, setting), task["phi"], strict=True):
                assert_same(got, expected, digits=12)
            if "adjoint" in task:
                for got, expected in zip(rules.adjoints(d, setting), task["adjoint"], strict=True):
                    assert_same(got, expected, digits=11)


def test_the_intermediate_values_are_those_of_the_specification():
    for case, per_task in ((v.case, v.per_task) for v in VECTORS):
        body, h = split(case.theta, case.head if case.algorithm == "anil" else len(case.theta))
        for (supports, query), task in zip(case.tasks, per_task, strict=True):
            phis = [body + phi for phi in trajectory(holding(body, case.loss_fn), h, supports, case.alpha)]
            for got, expected in zip(phis, task["phi"], strict=True):
                assert_same(got, expected, digits=12)
            for phi, support, expected in zip(phis, supports, task["inner_gradient"], strict=False):
                assert_same(grad(case.loss_fn)(phi, support), expected, digits=11)
            assert len(task["inner_gradient"]) == len(supports)
            for k, expected in enumerate(task.get("adjoint", [])):  # v_k: the gradient where only the rest adapts
                rest = {"head": case.head} if case.algorithm == "anil" else {}
                got = getattr(adjoint, case.algorithm)(
                    case.loss_fn, phis[k], [(supports[k:], query)], case.alpha, **rest
                )
                assert_same(got, expected, digits=11)


def test_quadratic_answers_are_small_dyadic_numbers():
    for vector in (v for v in VECTORS if v.case.tier == "quadratic"):
        for value in np.concatenate([g.ravel() for g in vector.gradient]):
            assert Fraction(value).denominator <= 2**24 and abs(value) < 2**24


# --- Their maker ---


def test_a_case_that_is_rounded_is_not_exact():
    case = BY_ID["maml-quadratic-k2-t2"].case
    assert make.is_exact(case) and make.vector(case, True, "basic")
    for rounded in (replace(case, alpha=0.1), replace(case, theta=[2.0**20 * leaf for leaf in case.theta])):
        assert not make.is_exact(rounded) and make.vector(rounded, True, "basic") is None
    with pytest.raises(OverflowError, match="not a power of two"):
        Bounded(1) / 3


def test_a_case_that_tells_too_little_is_no_vector():
    case = BY_ID["maml-tanh-k1-t3"].case
    assert make.vector(case, False, "basic")
    alike = replace(case, alpha=2.0**-20)  # first and second order differ, by less than can be told
    assert make.vector(alike, False, "basic") is None
    flat = replace(case, theta=[0 * leaf for leaf in case.theta])  # no gradient but the last bias's
    assert make.vector(flat, False, "basic") is None


def test_what_the_specification_does_not_agree_with_is_no_vector():
    case, gradient = VECTORS[0].case, VECTORS[0].gradient
    scale = [leaf.size**0.5 for leaf in gradient]
    exact = make.Answers(gradient, [], [], scale, {"float32": 0, "float64": 0})
    make.assert_agreement(case, exact)
    with pytest.raises(AssertionError, match=r"maml-canary: .* in float32 is off by 0\.5"):
        make.assert_agreement(case, exact._replace(gradient=[leaf + 0.5 for leaf in gradient]))


def test_it_is_said_where_no_seed_gives_a_case():
    with pytest.raises(RuntimeError, match="maml-scalar: no case found"):
        first("maml-scalar", "scalar", lambda random: {**scalar(random), "alpha": 0.1})


@pytest.mark.parametrize("id", ["maml-tanh-k3-t3", "maml-softmax-k2-t3"])
def test_of_the_decimals_fifty_digits_are_right(id):
    """The same derivation with twice as many digits: "50-digit decimals" stands in every certified vector."""
    case = in_kind(BY_ID[id].case, Decimal)
    with localcontext():
        fifty_digits()
        gradient = case.combine(rules.gradients(derivatives(case), case.settings))
    with localcontext() as more:
        more.prec = 120
        exact = case.combine(rules.gradients(derivatives(case), case.settings))
        off = max(abs(g - e) / abs(e) for g, e in zip(*map(numbers, (gradient, exact)), strict=True))
    assert Decimal(10) ** -80 < off < Decimal(10) ** -DIGITS


def numbers(tree):
    return [number for leaf in tree for number in leaf.ravel()]


def test_dual_numbers_are_derivatives():
    x = Dual(Fraction(3), Fraction(1))
    for got, value, slope in (
        (x * x - 1, 8, 6),
        (1 - 2 * x, -5, -2),
        (x / (x + 1), Fraction(3, 4), Fraction(1, 16)),
    ):
        assert (got.a, got.b) == (value, slope)


# --- Mistakes ---


def test_every_mistake_of_a_vector_is_far_from_the_truth():
    for vector in VECTORS:
        for trees in vector.suspects.values():
            total = [sum(leaves) / vector.case.divisor for leaves in zip(*trees, strict=True)]
            apart = [np.linalg.norm(t - e) / s for t, e, s in zip(total, vector.gradient, vector.scale, strict=True)]
            assert max(apart) > 100 * vector.tolerance["float32"], vector.case.id


# What does not show on two vectors of two tiers, and why it need not.
INVISIBLE = {"tanh": "one tier alone asks for another activation"}
INVISIBLE["over_steps_taken"] = "alone it changes nothing: it goes with another number of steps"


def test_every_choice_of_the_grammar_shows_on_two_vectors_of_two_tiers_or_it_is_said_why_not():
    shown = {name: {case.tier for case in cases} for name, cases in visible().items()}
    assert {name for name in {*EVERY, *shown} if len(shown.get(name, ())) < 2} == set(INVISIBLE)


def test_a_mistake_that_is_none_shows_nowhere():
    """So the matrix is no list of everything: a step size that is the vector's own is right."""
    alphas = {case.alpha for case in visible()["alpha=0.5"]}
    assert alphas and 0.5 not in alphas and possible()["adapts_first"] == {"joint"}


def test_the_kill_matrix_in_the_docs_is_up_to_date():
    page = Path(refmeta.__file__).parent.parent / "docs/kill_matrix.md"
    if not page.exists():
        pytest.skip("the docs are in the checkout only")
    assert page.read_text() == matrix()


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


def refusal_of(function, *arguments):
    """What it raises, if it does so in time."""
    box = []

    def run():
        with pytest.raises(VectorError) as caught:
            function(*arguments)
        box.append(str(caught.value))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert box, "it waits"
    return box[0]


@pytest.mark.parametrize("name", ["manifest.json", "tanh.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless device", "larger than any"])
def test_what_is_no_file_of_a_size_to_be_read_is_refused_and_not_waited_for(folder, name, kind):
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)  # takes no room on the disk
    assert refusal_of(load, folder) == f"{path}: cannot be read: expected a regular file of at most 16777216 bytes"


def test_files_that_would_fill_the_memory_are_refused(folder):
    with pytest.raises(VectorError, match="canary.json: is not JSON, .*: expected at most 131072 commas and brackets"):
        parse(folder / "canary.json", b"[" + b"[]," * 5_000_000 + b"[]]")


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;title\x07.json", "../\x9b31m.json", "\u202e\n.json"])
def test_nothing_in_a_files_name_is_obeyed_by_a_terminal(folder, name):
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": {name: {"sha256": ""}}}))
    with pytest.raises(VectorError, match=r"cannot be read: No such file|which is not beside it") as caught:
        load(folder)
    assert str(caught.value).isprintable() and "\\" in str(caught.value)


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
