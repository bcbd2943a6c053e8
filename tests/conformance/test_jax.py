"""JAX functions, audited as their owners would: each implementation here is one that people write."""

from typing import NamedTuple

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not among refmeta's dependencies")

import jax.numpy as jnp  # noqa: E402
from jax import Array  # noqa: E402

from refmeta.jax import audit  # noqa: E402

LR, STEPS = 0.2, 2
GIVEN = {"lr": LR, "steps": STEPS}


def params_of(seed=0, hidden=4, scale=0.7):
    rng = np.random.default_rng(seed)

    def layer(m, n):
        drawn = {"w": scale * rng.normal(size=(m, n)), "b": 0.1 * rng.normal(size=n)}
        return {key: jnp.asarray(a, jnp.float32) for key, a in drawn.items()}

    return {"dense_1": layer(3, hidden), "dense_2": layer(hidden, 3)}


def forward(params, x, act=jnp.tanh):
    x = act(x @ params["dense_1"]["w"] + params["dense_1"]["b"])
    return x @ params["dense_2"]["w"] + params["dense_2"]["b"]


def cross_entropy(params, batch):
    x, y = batch
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(forward(params, x)), y[:, None], -1))


def batches(n, shots=6, seed=0):
    rng = np.random.default_rng(seed)
    return [(jnp.asarray(rng.normal(size=(shots, 3)), jnp.float32), rng.integers(0, 3, shots)) for _ in range(n)]


def tasks_of(n=2, **options):
    given = batches(2 * n, **options)
    return list(zip(given[::2], given[1::2], strict=True))


def sgd(params, grads, lr):
    return jax.tree.map(lambda p, g: p - lr * g, params, grads)


def maml(loss=cross_entropy, lr=LR, steps=STEPS, stop=lambda grads: grads, reduce=sum):
    """The function (params, tasks) that the audit takes."""

    def adapted_loss(params, support, query):
        for _ in range(steps):
            params = sgd(params, stop(jax.grad(loss)(params, support)), lr)
        return loss(params, query)

    return jax.grad(lambda params, tasks: reduce(adapted_loss(params, *task) for task in tasks))


def mean(losses):
    return jnp.mean(jnp.stack(list(losses)))


first_order = maml(stop=jax.lax.stop_gradient)


def judged(meta_gradient=None, loss=cross_entropy, params=None, tasks=None, **options):
    given = {**GIVEN, **options}
    report = audit(loss, meta_gradient or maml(), params or params_of(), tasks or tasks_of(), **given)
    assert report.passed == (report.verdicts[0].kind == "pass"), str(report)
    return report.verdicts[0]


def suspects(verdict):
    return [e.suspects for e in verdict.explanations]


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    """Every audit compiles its functions anew; what is equal to something compiled before is read from a file."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(autouse=True)
def x64_is_off_before_and_after():
    assert not jax.config.jax_enable_x64
    yield
    assert not jax.config.jax_enable_x64 and jnp.ones(1).dtype == jnp.float32


@pytest.fixture
def no_pairs(monkeypatch):
    """Where no mistake is found anyway, pairs are not tried: they take seconds."""
    monkeypatch.setattr("refmeta.conformance.explain.listed_pairs", lambda answers: [])


# --- What is right, and what is wrong ---


def test_a_usual_maml_gets_its_verdict_in_five_lines():
    report = audit(cross_entropy, maml(), params_of(), tasks_of(), lr=0.2, steps=2)
    assert report.passed and report.rows[0].digits > 9 and [row.id for row in report.rows] == ["your network"]


def test_all_are_asked_in_float64_and_in_float32_on_request():
    seen = {"loss": set(), "meta_gradient": set()}

    def loss(params, batch):
        seen["loss"].add((*{leaf.dtype.name for leaf in jax.tree.leaves(params)}, batch[0].dtype.name))
        assert batch[1].dtype.kind == "i"
        return cross_entropy(params, batch)

    def meta_gradient(params, tasks):
        (x, y), _ = tasks[0]
        seen["meta_gradient"].add((*{leaf.dtype.name for leaf in jax.tree.leaves(params)}, x.dtype.name))
        assert jnp.ones(1).dtype == x.dtype and all(isinstance(a, Array) for a in (x, y))
        return maml()(params, tasks)

    report = audit(loss, meta_gradient, params_of(), tasks_of(), dtype="float32", **GIVEN)
    assert report.passed and [row.id for row in report.rows] == [f"your network in float{n}" for n in (64, 32)]
    assert report.rows[0].digits > 9 and 5 < report.rows[1].digits < 9
    assert seen["loss"] == {("float64",) * 2} and seen["meta_gradient"] == {(d, d) for d in ("float64", "float32")}


@pytest.mark.parametrize("on", [True, False])
def test_x64_is_as_before_whatever_happens(on):
    with jax.enable_x64(on):
        assert judged().kind == "pass" and jax.config.jax_enable_x64 == on
        for broken in (lambda *_: 1 / 0, lambda params, tasks: None):
            with pytest.raises((ZeroDivisionError, ValueError)):
                judged(broken)
            assert jax.config.jax_enable_x64 == on


def vmapped(params, tasks):
    """One program for all tasks, compiled."""
    supports, queries = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *part) for part in zip(*tasks, strict=True))

    def adapted_loss(params, support, query):
        def step(fast, _):
            return sgd(fast, jax.grad(cross_entropy)(fast, support), LR), None

        return cross_entropy(jax.lax.scan(step, params, None, length=STEPS)[0], query)

    def meta_loss(params):
        return jax.vmap(adapted_loss, (None, 0, 0))(params, supports, queries).mean()

    return jax.jit(jax.grad(meta_loss))(params)


STYLES = {
    "sum": maml(),
    "mean": maml(reduce=mean),
    "jit": jax.jit(maml()),
    "vmap and scan": vmapped,
    "numpy": lambda *a: jax.tree.map(np.asarray, maml()(*a)),
}


@pytest.mark.parametrize("style", STYLES)
def test_every_style_passes(style):
    assert judged(STYLES[style]).kind == "pass"


def test_another_step_size_is_named_in_compiled_code():
    assert [e.suspects for e in judged(vmapped, lr=0.05, tasks=tasks_of(1)).explanations] == [(f"alpha={LR}",)]


def test_user_functions_that_are_compiled_are_asked_in_both_dtypes():
    assert judged(jax.jit(maml()), loss=jax.jit(cross_entropy), dtype="float32").kind == "pass"


def fomaml(params, tasks):
    return first_order(params, tasks)


def reptile(params, tasks):
    total = jax.tree.map(jnp.zeros_like, params)
    for support, _ in tasks:
        fast = params
        for _ in range(STEPS):
            fast = sgd(fast, jax.grad(cross_entropy)(fast, support), LR)
        total = jax.tree.map(lambda t, p, q: t + p - q, total, params, fast)
    return total


def joint(params, tasks):
    return jax.grad(lambda p: sum(cross_entropy(p, query) for _, query in tasks))(params)


@pytest.mark.parametrize("algorithm, answer", [("fomaml", fomaml), ("reptile", reptile), ("joint", joint)])
def test_the_other_algorithms(algorithm, answer):
    assert judged(answer, algorithm=algorithm, tasks_are="sum").kind == "pass"
    assert judged(algorithm=algorithm).kind == "bug"


def test_reptile_needs_no_queries():
    tasks = [(support, None) for support, _ in tasks_of()]
    assert judged(reptile, tasks=tasks, algorithm="reptile").kind == "pass"


@pytest.mark.parametrize(
    "answer, found",
    [
        (first_order, (("first_order",), "all")),
        (maml(lr=-LR), (("inner_ascent",), "all")),
        (maml(steps=STEPS + 1), (("one_step_extra",), "all")),
        (lambda params, tasks: maml()(params, [(q, s) for s, q in tasks]), (("swapped",), "all")),
        (lambda params, tasks: maml()(params, tasks[-1:]), ((), "last")),
        (joint, (("no_adaptation",), "all")),
    ],
)
def test_what_is_wrong_is_named(answer, found):
    same = (("all_swapped",), "all")  # as "swapped" where there is one support batch
    assert [e[:2] for e in judged(answer).explanations if e[:2] != same] == [found]


def test_the_tasks_are_summed_or_averaged():
    assert judged(maml(reduce=mean), tasks_are="mean").kind == "pass"
    found = judged(maml(reduce=mean), tasks_are="sum")
    assert found.kind == "convention" and [str(e.scale) for e in found.explanations] == ["1/tasks"]


# --- Pytrees ---


class Layer(NamedTuple):
    w: Array
    b: Array


FLAT = params_of()
TREES = {
    "dict": (lambda d: d, lambda p: p),
    "list": (
        lambda d: [d["dense_1"]["w"], d["dense_1"]["b"], d["dense_2"]["w"], d["dense_2"]["b"]],
        lambda p: {"dense_1": {"w": p[0], "b": p[1]}, "dense_2": {"w": p[2], "b": p[3]}},
    ),
    "tuples": (
        lambda d: tuple((layer["w"], layer["b"]) for layer in d.values()),
        lambda p: {f"dense_{i + 1}": {"w": w, "b": b} for i, (w, b) in enumerate(p)},
    ),
    "NamedTuple": (
        lambda d: [Layer(**layer) for layer in d.values()],
        lambda p: {f"dense_{i + 1}": layer._asdict() for i, layer in enumerate(p)},
    ),
    "with None": (lambda d: {"net": d, "extra": None}, lambda p: p["net"]),
}


@pytest.mark.parametrize("tree", TREES)
def test_params_are_any_pytree(tree):
    made, back = TREES[tree]

    def loss(params, batch):
        return cross_entropy(back(params), batch)

    assert judged(maml(loss), loss, made(FLAT)).kind == "pass"
    assert suspects(judged(maml(loss, stop=jax.lax.stop_gradient), loss, made(FLAT))) == [("first_order",)]


def test_params_of_numpy_and_numbers_without_axes():
    params = {"scale": np.float32(1.5), "net": jax.tree.map(np.asarray, FLAT)}

    def loss(params, batch):
        x, y = batch
        return params["scale"] * cross_entropy(params["net"], batch)

    assert judged(maml(loss), loss, params).kind == "pass"


def test_params_that_are_not_used_have_a_gradient_of_zero(no_pairs):
    params = {**FLAT, "aux": jnp.ones(3)}
    assert judged(params=params).kind == "pass"
    ones = lambda p, t: {**maml()(p, t), "aux": jnp.ones(3)}  # noqa: E731
    assert judged(ones, params=params).kind == "unexplained"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: jax.tree.leaves(g),
        lambda g: g["dense_1"],
        lambda g: {**g, "more": jnp.ones(1)},
        lambda g: {**g, "dense_2": None},
        lambda g: None,
        lambda g: 0.5,
        lambda g: (g, g),
    ],
)
def test_a_gradient_of_another_structure_is_refused(spoil):
    with pytest.raises(ValueError, match=r"meta_gradient returned PyTreeDef.*: expected PyTreeDef"):
        judged(lambda *a: spoil(maml()(*a)))


def test_a_gradient_of_other_shapes_is_refused(no_pairs):
    with pytest.raises(ValueError, match="shape"):
        judged(lambda *a: jax.tree.map(jnp.transpose, maml()(*a)))
    with pytest.raises(ValueError, match="shape"):
        judged(lambda *a: jax.tree.map(lambda g: g[None], maml()(*a)))


# --- The head ---


def anil(params, tasks):
    def adapted_loss(params, support, query):
        body, head = params["dense_1"], params["dense_2"]
        for _ in range(STEPS):
            g = jax.grad(lambda h: cross_entropy({"dense_1": body, "dense_2": h}, support))(head)
            head = sgd(head, g, LR)
        return cross_entropy({"dense_1": body, "dense_2": head}, query)

    return jax.grad(lambda p: sum(adapted_loss(p, *task) for task in tasks))(params)


@pytest.mark.parametrize("given", [{"head": 2}, {"head": "dense_2"}, {}])
def test_the_head_is_a_key_or_a_number_of_arrays(given):
    assert judged(anil, algorithm="anil", **given).kind == "pass"


def test_another_head_is_another_algorithm(no_pairs):
    assert suspects(judged(algorithm="anil", head="dense_2")) == [("body_adapted",)]
    assert suspects(judged(anil, algorithm="anil", head="dense_1")) == [("head_in_front",), ("body_for_head",)]


def test_the_head_is_a_path(no_pairs):
    params = {"net": {"layers": [*FLAT.values()]}}
    back = lambda p: dict(zip(FLAT, p["net"]["layers"], strict=True))  # noqa: E731
    loss = lambda p, batch: cross_entropy(back(p), batch)  # noqa: E731

    def nested(params, tasks):
        return {"net": {"layers": [*anil(back(params), tasks).values()]}}

    assert judged(nested, loss, params, algorithm="anil", head="net/layers/1").kind == "pass"
    assert judged(nested, loss, params, algorithm="anil", head="net/layers/0").kind != "pass"
    assert suspects(judged(maml(loss), loss, params, algorithm="anil", head="net/layers/1")) == [("body_adapted",)]


@pytest.mark.parametrize("head", ["dense", "dense_2/kernel", "head", "/"])
def test_a_head_without_arrays_is_refused(head):
    with pytest.raises(ValueError, match=f"head: '{head}' has none of the parameters dense_1/b, dense_1/w, dense_2/b"):
        judged(algorithm="anil", head=head)


# --- Tasks ---


def test_tasks_come_in_every_form():
    pairs = tasks_of()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[(*s, *q) for s, q in pairs])
    forms = {
        "pairs": (pairs, {}),
        "four": ([(*support, *query) for support, query in pairs], {}),
        "lists": ([[list(support), list(query)] for support, query in pairs], {}),
        "zip": (zip([s for s, _ in pairs], [q for _, q in pairs], strict=True), {}),
        "four zipped": (zip(*stacked, strict=True), {}),
        "numpy": (jax.tree.map(np.asarray, pairs), {}),
        "a batch for each step": ([([support] * STEPS, query) for support, query in pairs], {"steps": None}),
    }

    def answer(params, tasks):
        tasks = [task if len(task) == 2 else (task[:2], task[2:]) for task in tasks]
        tasks = [(s[0] if isinstance(s[0], (list, tuple)) else s, q) for s, q in tasks]
        return maml()(params, tasks)

    for tasks, more in forms.values():
        assert audit(cross_entropy, answer, FLAT, tasks, **{**GIVEN, **more}).passed


def test_a_number_of_steps_is_given_where_it_is_needed():
    with pytest.raises(ValueError, match="steps: expected the number of inner steps; got None"):
        judged(steps=None)
    with pytest.raises(ValueError, match="steps: expected None, because each task has a batch for each step; got 2"):
        judged(tasks=[([s] * 2, q) for s, q in tasks_of()])
    with pytest.raises(TypeError, match=r"tasks\[0\]: expected .*got 3 things"):
        judged(tasks=[(*s, q) for s, q in tasks_of()])
    assert suspects(judged(steps=STEPS + 1)) == [("one_step_short",)]


def test_whole_numbers_as_inputs():
    rng = np.random.default_rng(0)
    params = {"words": jnp.asarray(rng.normal(size=(7, 4)), jnp.float32), "out": jnp.ones((4, 3)) * 0.3}

    def loss(params, batch):
        x, y = batch
        logits = jnp.tanh(params["words"][x].mean(1)) @ params["out"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], -1))

    made = [(x, x[:, 0] % 3) for x in rng.integers(0, 7, (4, 6, 3))]
    tasks = list(zip(made[::2], made[1::2], strict=True))
    assert judged(maml(loss), loss, params, tasks).kind == "pass"


# --- The caller's functions ---


def test_relu_with_zero_biases_on_black_images():
    def loss(params, batch):
        x, y = batch
        logits = forward(params, x, jax.nn.relu)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], -1))

    params = {name: {**layer, "b": 0 * layer["b"]} for name, layer in params_of(hidden=8).items()}
    tasks = [((x * (np.arange(6)[:, None] > 2), y), query) for (x, y), query in tasks_of()]
    assert judged(maml(loss), loss, params, tasks, dtype="float32").kind == "pass"
    wrong = maml(loss, stop=jax.lax.stop_gradient)
    assert suspects(judged(wrong, loss, params, tasks)) == [("first_order",)]


def test_dropout_in_the_meta_gradient_is_said():
    """In the loss it has a key, which is the same at each call, or NumPy's draws, which jit keeps."""
    rng = np.random.default_rng(0)

    def dropped(params, batch):
        x, y = batch
        return cross_entropy(params, (2 * x * rng.integers(0, 2, x.shape), y))

    found = judged(maml(dropped))
    assert found.kind == "unrepeatable" and "the meta-gradient gave two answers" in found.text


def test_params_and_tasks_are_as_before():
    params, tasks = jax.tree.map(np.array, FLAT), jax.tree.map(np.array, tasks_of())
    before = [leaf.copy() for leaf in jax.tree.leaves((params, tasks))]
    assert judged(params=params, tasks=tasks, dtype="float32").kind == "pass"
    for a, b in zip(before, jax.tree.leaves((params, tasks)), strict=True):
        assert a.dtype == b.dtype and (a == b).all()


def test_the_callers_errors_come_through():
    class Mine(Exception):
        pass

    def raising(*_):
        raise Mine

    with pytest.raises(Mine):
        judged(raising)
    with pytest.raises(Mine):
        judged(loss=raising)


def test_a_loss_for_each_example_is_refused_by_jax():
    with pytest.raises(TypeError, match="scalar-output functions"):
        judged(loss=lambda params, batch: forward(params, batch[0]).sum(-1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": -0.1}, "got -0.1"),
        ({"algorithm": "mamll"}, "algorithm: expected one of maml, fomaml, anil, reptile, joint; got 'mamll'"),
        ({"tasks_are": "average"}, "tasks_are: expected 'sum', 'mean' or None; got 'average'"),
        ({"dtype": "float16"}, "dtype: expected float64 or float32, got 'float16'"),
    ],
)
def test_arguments_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        judged(lambda *_: pytest.fail("asked"), **options)


def test_no_tasks_and_no_params_are_refused():
    with pytest.raises(ValueError, match="at least one task"):
        audit(cross_entropy, maml(), FLAT, [], **GIVEN)
    with pytest.raises(ValueError, match="empty"):
        audit(cross_entropy, maml(), {}, tasks_of(), **GIVEN)
