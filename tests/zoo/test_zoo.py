"""A small part of the zoo: it is what it says, the audit accuses none that is right, and names what is wrong."""

from types import SimpleNamespace

import pytest

from tests.zoo import __main__ as count
from tests.zoo import cases as zoo
from tests.zoo import prove

# Strangers' programs warn: of a graph kept by .backward(create_graph=True), of a scalar with a gradient made a float.
pytestmark = pytest.mark.filterwarnings("ignore")

NEEDS = {"torch": ("torch", "higher", "torchopt"), "jax": ("jax",)}
FRAMEWORKS = pytest.mark.parametrize("framework", NEEDS)

RIGHT = [
    zoo.Case("torch", "right", "sine relu", "functional dict", 5, 0),
    zoo.Case("torch", "right", "convnet 2 of 8", "module maml", 1, 1),
    zoo.Case("torch", "right", "norm train", "higher loop", 5, 0),
    zoo.Case("torch", "right", "gru", "adjoint by double backward", 1, 1),
    zoo.Case("torch", "right", "unused", "first order deepcopy", 5, 0),
    zoo.Case("torch", "right", "blobs relu", "anil on features", 5, 1),
    zoo.Case("torch", "right", "tied embedding", "reptile deepcopy", 5, 0),
    zoo.Case("torch", "right", "transformer", "joint backward", 1, 1),
    zoo.Case("torch", "right", "sine stream", "loader of support batches", 3, 0),
    zoo.Case("jax", "right", "tied embedding", "vmap over tasks", 1, 0),
    zoo.Case("jax", "right", "tied embedding", "scan over steps", 3, 1),
]
WRONG = [
    zoo.Case("torch", "wrong", "sine tanh", "create graph forgotten", 5, 0),
    zoo.Case("torch", "wrong", "blobs relu", "last gradient unused", 5, 0),
    zoo.Case("torch", "wrong", "blobs elu", "rate over the batch size", 5, 1),
    zoo.Case("torch", "wrong", "gru", "plus for minus", 1, 0),
    zoo.Case("torch", "wrong", "norm eval", "exchanged in unpacking", 5, 1),
    zoo.Case("torch", "wrong", "residual", "query used for both", 1, 0),
    zoo.Case("torch", "wrong", "layer norm", "support used for both", 1, 1),
    zoo.Case("torch", "wrong", "max-pool mlp", "only the head adapts", 5, 0),
    zoo.Case("torch", "wrong", "sine softplus", "one gradient detached", 3, 0),
    zoo.Case("jax", "wrong", "tied embedding", "inner gradient at stopped weights", 1, 0),
    zoo.Case("jax", "wrong", "tied embedding", "plus for minus", 1, 1),
]


def needed(framework):
    for package in NEEDS[framework]:
        pytest.importorskip(package, reason=f"the zoo's programs for {framework} use {package}")


def by_name(case):
    return str(case).replace("'", "")


@FRAMEWORKS
def test_the_right_ones_agree_with_each_other_and_with_finite_differences(framework):
    needed(framework)
    network = {"torch": "layer norm", "jax": "tied embedding"}[framework]
    chosen = [c for c in zoo.cases(framework, "right", 1, every=1) if c.network == network and c.steps == 1]
    chosen = chosen if framework == "torch" else chosen[1:4]  # JAX compiles for a second each
    assert len(chosen) >= 3 and not prove.disagreeing(chosen)
    assert prove.finite_difference(framework, network, 1) < 1e-7


@pytest.mark.parametrize("case", [c for c in WRONG if c.framework == "torch"], ids=by_name)
def test_the_wrong_ones_differ_and_would_be_seen_among_the_right(case):
    needed(case.framework)
    assert zoo.is_mistake(case)
    assert prove.disagreeing([case]) == [case]


def test_vmap_of_a_layer_norm_is_wrong_in_the_library():
    """If this fails, PyTorch has mended functorch#534: the style func_grad_and_vmap may hold layer norms again."""
    needed("torch")
    assert zoo.is_mistake(zoo.Case("torch", "wrong", "layer norm", "vmap of a layer norm", 1, 0))


@pytest.mark.parametrize("case", RIGHT, ids=by_name)
def test_no_right_one_is_accused(case):
    needed(case.framework)
    what, line = zoo.outcome(case, "float64")
    assert what == "right", line


@pytest.mark.parametrize("case", WRONG, ids=by_name)
def test_a_wrong_one_is_refused_and_named(case):
    needed(case.framework)
    what, line = zoo.outcome(case, "float64")
    assert what == "refused" and zoo.named(case, line), (what, line)


def test_a_right_one_in_float32_is_not_accused():
    needed("torch")
    assert zoo.outcome(RIGHT[0], "float32")[0] in ("right", "not judged")


def test_gradcheck_sees_two_of_the_eight_mistakes():
    needed("torch")
    from tests.zoo import eight

    assert eight.gradcheck(None)
    assert [m for m in eight.MISTAKES if not eight.gradcheck(m)] == ["first order", "detach"]


# --- The count itself ---------------------------------------------------------------------------------


def answering(kind, text="it climbs"):
    """An audit that says the same of all."""
    verdict = SimpleNamespace(kind=kind, text=f"{text}\nand more", explanations=())
    return lambda case, dtype: SimpleNamespace(passed=kind == "pass", verdicts=[verdict])


def raising(case, dtype):
    raise ValueError("no such net")


@pytest.mark.parametrize(
    "audit, right, wrong",
    [
        (answering("pass"), "right", "passed"),
        (answering("bug"), "accused", "refused"),
        (answering("imprecise"), "not judged", "not judged"),
        (raising, "raised", "raised"),
    ],
    ids=["pass", "bug", "imprecise", "raises"],
)
def test_what_is_counted(audit, right, wrong, monkeypatch):
    monkeypatch.setattr(zoo, "audit", audit)
    assert zoo.outcome(RIGHT[0], "float64")[0] == right
    assert zoo.outcome(WRONG[0], "float64")[0] == wrong


@pytest.mark.parametrize("kind, missed", [("pass", "refused"), ("bug", "accused"), ("imprecise", "right in float64")])
def test_a_missed_bar_is_said_and_is_the_exit_code(kind, missed, monkeypatch, capsys):
    needed("torch")
    monkeypatch.setattr(zoo, "audit", answering(kind))
    command = ["--framework", "torch", "--dtype", "float64", "--seeds", "1", "--only", "'blobs relu'"]
    assert count.main(command) == 1
    assert any(missed in line and "MISSED" in line for line in capsys.readouterr().out.splitlines())


def test_bars_that_are_held_are_the_exit_code_too(monkeypatch, capsys):
    needed("torch")

    def perfect(case, dtype):
        words = zoo.NAMES.get(zoo.style_of(case).family, ("",))
        return answering("pass" if case.kind == "right" else "bug", words[0])(case, dtype)

    monkeypatch.setattr(zoo, "audit", perfect)
    assert count.main(["--framework", "torch", "--seeds", "1", "--only", "'blobs relu'"]) == 0
    assert "MISSED" not in capsys.readouterr().out
