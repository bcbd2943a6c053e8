"""The audit: a meta-gradient on the caller's own network, judged from loss and gradient alone."""

import json
import sys
from functools import partial

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

import refmeta
from refmeta.adjoint import hvp as exact_hvp
from refmeta.conformance import audit
from refmeta.conformance.audit import SMALL, examine
from refmeta.conformance.explain import Explanation, Factor
from refmeta.conformance.losses import Network
from refmeta.conformance.mistakes import MISTAKES
from refmeta.conformance.network import SKETCH, exact, sketch, to_settings, to_tasks
from refmeta.conformance.programs import with_mistakes
from refmeta.conformance.rules import ALGORITHMS as CHOICES
from refmeta.conformance.rules import Derivatives, Setting, gradients, moves, remembered
from refmeta.models import MLP, cross_entropy, squared_error
from refmeta.trees import add

MODULE = sys.modules["refmeta.conformance.audit"]  # its name is that of the function too
ALGORITHMS = ("maml", "fomaml", "anil", "reptile", "joint")
NET = MLP((3, 4, 3), activation="tanh")
LOSS = cross_entropy(NET)
GRAD, hvp, *_ = Network("tanh", labels=True, total=False).derivatives  # by hand: autograd's takes ten times as long
ALPHA = 0.3


def problem(net=NET, dtype="float64", steps=3, tasks=3, shots=5, seed=0, labels=True):
    """θ and tasks with second-order terms that count."""
    rng = np.random.default_rng(seed)

    def batch(n):
        x = rng.normal(size=(n, net.widths[0])).astype(dtype)
        return x, rng.integers(0, net.widths[-1], n) if labels else rng.normal(size=(n, net.widths[-1])).astype(dtype)

    theta = [(leaf + 0.3 * rng.normal(size=leaf.shape)).astype(dtype) for leaf in net.init(rng, "glorot")]
    return theta, [([batch(shots) for _ in range(steps)], batch(shots + 2)) for _ in range(tasks)]


THETA, TASKS = problem()


def right(algorithm, loss=LOSS):
    return lambda theta, tasks, alpha: getattr(refmeta, algorithm)(loss, theta, tasks, alpha)


def wrong(name, algorithm="maml", loss=LOSS, outputs=None):
    """The algorithm with one known mistake."""
    tools = Derivatives(grad(loss), lambda phi, batch, v: exact_hvp(loss, phi, batch, v))

    def meta_gradient(theta, tasks, alpha):
        moving = moves(len(theta), 2 if algorithm == "anil" else None)
        of = CHOICES[algorithm]
        settings = [Setting(theta, s, q, alpha, moving, len(q[0]) - 2, outputs, **of) for s, q in tasks]
        return add(gradients(tools, with_mistakes([name], settings)))

    return meta_gradient


def judged(meta_gradient, algorithm="maml", **options):
    """The verdict on it, on the small network."""
    return audit(LOSS, GRAD, meta_gradient, THETA, TASKS, ALPHA, algorithm, **options).verdicts[0]


def precision(found):
    return float(found.text.split("precise to ")[1].split()[0])


# --- What is right passes ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("given", [None, hvp], ids=["differences", "hvp"])
def test_right_meta_gradients_pass(algorithm, given):
    report = audit(LOSS, GRAD, right(algorithm), THETA, TASKS, ALPHA, algorithm, hvp=given)
    assert report.passed and report.rows[0].digits > 6, str(report)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_right_meta_gradients_pass_in_float32(algorithm):
    theta, tasks = problem(dtype="float32")
    report = audit(LOSS, GRAD, right(algorithm), theta, tasks, ALPHA, algorithm)
    assert report.passed and [row.id for row in report.rows] == [f"your network in {d}" for d in ("float64", "float32")]
    assert report.rows[0].digits > 9 and 5 < report.rows[1].digits < 9, str(report)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_right_meta_gradients_under_squared_error_pass(algorithm):
    net = MLP((2, 4, 1), activation="tanh")
    loss, (theta, tasks) = squared_error(net), problem(net, labels=False)
    report = audit(loss, grad(loss), right(algorithm, loss), theta, tasks, 0.1, algorithm)
    assert report.passed, str(report)


def test_a_small_alpha_passes_in_float32_where_reptile_cancels():
    theta, tasks = problem(dtype="float32")
    report = audit(LOSS, GRAD, right("reptile"), theta, tasks, 1e-3, "reptile")
    assert report.passed, str(report)


def test_tasks_without_steps_pass():
    theta, tasks = problem(steps=0)
    assert audit(LOSS, GRAD, right("maml"), theta, tasks, ALPHA).passed


def test_an_alpha_of_zero_passes():
    assert audit(LOSS, GRAD, right("maml"), THETA, TASKS, 0).passed


def test_reptile_needs_no_queries():
    tasks = [(supports, None) for supports, _ in TASKS]
    assert audit(LOSS, GRAD, right("reptile"), THETA, tasks, ALPHA, "reptile").passed


def test_anil_takes_another_head():
    def whole(theta, tasks, alpha):
        return refmeta.anil(LOSS, theta, tasks, alpha, head=4)

    assert audit(LOSS, GRAD, whole, THETA, TASKS, ALPHA, "anil", head=4).passed
    assert not audit(LOSS, GRAD, whole, THETA, TASKS, ALPHA, "anil").passed


def test_what_the_caller_gives_is_not_changed():
    before = [leaf.copy() for leaf in THETA]
    judged(right("maml"))
    assert all((a == b).all() for a, b in zip(before, THETA, strict=True))


@pytest.mark.parametrize("given, asked", [("float64", {"float64"}), ("float32", {"float64", "float32"})])
def test_all_are_asked_in_float64_and_the_meta_gradient_in_the_dtype_of_theta_too(given, asked):
    theta, tasks = problem(dtype=given)
    seen = {"loss": set(), "grad": set(), "meta_gradient": set()}

    def watched(name, function):
        def called(phi, batches, *more):
            (x, y), *_ = batches[0][0] if more else [batches]
            seen[name].add((*{leaf.dtype.name for leaf in phi}, x.dtype.name, y.dtype.name))
            return function(phi, batches, *more)

        return called

    functions = {"loss": LOSS, "grad": GRAD, "meta_gradient": right("maml")}
    assert audit(*[watched(*named) for named in functions.items()], theta, tasks, ALPHA).passed
    assert seen["loss"] == seen["grad"] == {("float64", "float64", "int64")}
    assert seen["meta_gradient"] == {(dtype, dtype, "int64") for dtype in asked}


# --- Known mistakes come back under their names ---


@pytest.mark.parametrize(
    "name, algorithm",
    [
        ("first_order", "maml"),
        ("last_step_only", "maml"),
        ("hessian_sign", "maml"),
        ("support_as_query", "maml"),
        ("no_adaptation", "maml"),
        ("stale_gradient", "maml"),
        ("inner_ascent", "maml"),
        ("inner_loss_summed", "maml"),
        ("one_step_short", "maml"),
        ("theta_leaks_across_tasks", "maml"),
        ("biases_not_adapted", "maml"),
        ("second_order", "fomaml"),
        ("body_adapted", "anil"),
        ("features_detached", "anil"),
        ("reptile_by_query", "reptile"),
        ("last_displacement", "reptile"),
        ("adapts_first", "joint"),
    ],
)
def test_a_known_mistake_comes_back_under_its_name(name, algorithm):
    found = judged(wrong(name, algorithm), algorithm)
    assert found.kind == "bug" and [e.suspects for e in found.explanations] == [(name,)], found
    assert MISTAKES[name].title in found.text


@pytest.mark.parametrize("name", ["first_order", "support_as_query", "inner_ascent"])
def test_a_known_mistake_comes_back_under_its_name_in_float32(name):
    theta, tasks = problem(dtype="float32")
    found = audit(LOSS, GRAD, wrong(name), theta, tasks, ALPHA).verdicts[0]
    assert found.kind == "bug" and (name,) in [e.suspects for e in found.explanations], found


def test_targets_that_broadcast_are_named():
    net = MLP((2, 4, 1), activation="tanh")
    loss, (theta, tasks) = squared_error(net), problem(net, labels=False)
    found = audit(loss, grad(loss), wrong("mean_broadcast", loss=loss, outputs=1), theta, tasks, 0.1).verdicts[0]
    assert [e.suspects for e in found.explanations] == [("mean_broadcast",)]


def mean(theta, tasks, alpha, meta_gradient=None):
    return [leaf / len(tasks) for leaf in (meta_gradient or right("maml"))(theta, tasks, alpha)]


def test_the_mean_over_tasks_passes_with_a_remark():
    found = judged(mean)
    assert found.kind == "pass" and ", the mean over the tasks." in found.text and found.explanations == ()
    assert "multiplied" not in judged(right("maml")).text


def test_once_the_tasks_are_said_to_be_summed_their_mean_fails():
    found = judged(mean, tasks_are="sum")
    assert found.kind == "convention" and [str(e.scale) for e in found.explanations] == ["1/tasks"]
    assert "all else is right, but the result is multiplied by 1/tasks" in found.text
    assert judged(right("maml"), tasks_are="sum").kind == "pass"


def test_once_the_tasks_are_said_to_be_averaged_their_sum_fails():
    assert judged(mean, tasks_are="mean").kind == "pass"
    found = judged(right("maml"), tasks_are="mean")
    assert found.kind == "convention" and "all else is right" in found.text


def test_that_the_tasks_are_averaged_is_no_news_once_it_is_declared():
    assert "multiplied" not in judged(mean, tasks_are="mean").text


@pytest.mark.parametrize("are, scale", [(None, "tasks"), ("sum", "tasks"), ("mean", "9")])
def test_a_sum_multiplied_by_the_number_of_tasks_is_neither_sum_nor_mean(are, scale):
    found = judged(
        lambda theta, tasks, alpha: [len(tasks) * g for g in right("maml")(theta, tasks, alpha)], tasks_are=are
    )
    assert found.kind == "convention" and [str(e.scale) for e in found.explanations] == [scale]


def test_nothing_is_said_of_vectors():
    once = TASKS[:1]
    texts = [
        judged(mean, tasks_are="sum").text,
        judged(lambda *a: [0.7 * g for g in right("maml")(*a)]).text,
        audit(LOSS, GRAD, wrong("stale_restart"), THETA, [([once[0][0][0]] * 2, once[0][1])], ALPHA).verdicts[0].text,
    ]
    assert "cannot tell it from" in texts[2] and not any("ectors" in text for text in texts)


def test_a_mistake_under_the_mean_is_told_with_its_factor_where_the_sum_was_declared():
    first_order, summed = Explanation(("first_order",)), wrong("first_order")
    averaged = partial(mean, meta_gradient=summed)
    for declared in (None, "mean"):
        found = judged(averaged, tasks_are=declared)
        assert found.explanations == (first_order,) and "multiplied" not in found.text
    assert judged(averaged, tasks_are="sum").explanations == (first_order._replace(scale=Factor(1, "1/tasks")),)
    assert judged(summed, tasks_are="sum").explanations == judged(summed).explanations == (first_order,)


@pytest.mark.parametrize("factor, name", [(1 / ALPHA, "1/alpha"), (1 / ALPHA / 3, "1/(alpha steps)")])
def test_the_scales_of_reptile_are_conventions(factor, name):
    found = judged(lambda *a: [factor * leaf for leaf in right("reptile")(*a)], "reptile")
    assert found.kind in ("pass", "convention") and name in found.text


@pytest.mark.parametrize(
    "kept, which", [(slice(-1, None), "last"), (slice(0, 1), "first"), (slice(0, 2), "all but the last, of several")]
)
def test_lost_tasks_are_named(kept, which):
    found = judged(lambda theta, tasks, alpha: right("maml")(theta, tasks[kept], alpha))
    assert found.kind == "bug" and found.explanations[0][:2] == ((), which)


def test_a_mistake_and_lost_tasks_are_named_together():
    found = judged(lambda theta, tasks, alpha: right("fomaml")(theta, tasks[-1:], alpha))
    assert [e[:2] for e in found.explanations] == [(("first_order",), "last")]


def test_a_flipped_sign_is_no_convention():
    found = judged(lambda *a: [-leaf for leaf in right("maml")(*a)])
    assert found.kind == "bug" and found.explanations[0].scale == Factor(-1)


def test_of_one_number_no_factor_is_a_convention():
    """A mistake is a factor there, and any factor fits."""

    def loss(theta, batch):
        return ((theta[0] * batch[0] - batch[1]) ** 2).mean() + (theta[0] ** 4).sum()

    x = np.linspace(-1, 1, 5)
    tasks = [([(x, x + 1), (x, x**2)], (x / 2, x)), ([(2 * x, x), (x, 1 - x)], (x, x**3))]
    first = audit(loss, grad(loss), lambda *a: refmeta.fomaml(loss, *a), [np.array([0.7])], tasks, 0.05)
    assert first.verdicts[0].kind == "bug" and "first_order" in str(first.verdicts[0].explanations)
    mean = audit(loss, grad(loss), lambda *a: [g / 2 for g in refmeta.maml(loss, *a)], [np.array([0.7])], tasks, 0.05)
    assert mean.passed and "the mean over the tasks" in mean.verdicts[0].text


def test_a_gradient_of_zeros_is_named():
    found = judged(lambda theta, *_: [0 * leaf for leaf in theta])
    assert found.kind == "bug" and found.explanations[0].suspects == ("zero",)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_a_matter_of_form(value):
    report = audit(LOSS, GRAD, lambda theta, *_: [leaf * 0 + value for leaf in theta], THETA, TASKS, ALPHA)
    assert report.verdicts[0].kind == "form" and "NaN or infinity" in report.verdicts[0].text
    assert str(report).endswith("your network: not measured") and report.rows[0].digits == 0


def noisy(size, seed=None, meta_gradient=None):
    """The right gradient and noise, the same at every call if it has a seed."""
    stream = np.random.default_rng(2)

    def called(*arguments):
        rng = stream if seed is None else np.random.default_rng(seed)
        return [leaf + size * rng.normal(size=leaf.shape) for leaf in (meta_gradient or right("maml"))(*arguments)]

    return called


@pytest.mark.parametrize(
    "size, kind", [(1e-12, "pass"), (1e-4, "unexplained"), (1e-2, "unexplained"), (9, "unexplained")]
)
def test_what_no_known_mistake_explains_is_not_guessed(size, kind):
    found = judged(noisy(size, seed=1), hvp=hvp)
    assert found.kind == kind and found.explanations == ()


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1])
@pytest.mark.parametrize("meta_gradient", [right("maml"), wrong("first_order")])
def test_a_meta_gradient_that_draws_numbers_is_said_to(size, meta_gradient):
    found = judged(noisy(size, meta_gradient=meta_gradient), hvp=hvp)
    assert found.kind == "unrepeatable" and "asked twice, the meta-gradient gave two answers" in found.text


def test_noise_below_the_precision_passes():
    assert judged(noisy(1e-12), hvp=hvp).kind == "pass"


def test_a_meta_gradient_that_adds_up_from_call_to_call_is_said_to():
    """PyTorch: .grad is not cleared. Its first answer is that of first order."""
    total = [0 * leaf for leaf in THETA]

    def meta_gradient(*arguments):
        total[:] = [t + g for t, g in zip(total, right("fomaml")(*arguments), strict=True)]
        return total

    found = judged(meta_gradient)
    assert found.kind == "unrepeatable" and "keeps state between calls" in found.text


# --- A gradient that is not the loss's ---


def zeroed(i):
    return lambda phi, batch: [0 * leaf if j == i else leaf for j, leaf in enumerate(GRAD(phi, batch))]


def never(*_):
    raise AssertionError("the meta-gradient must not be asked")


@pytest.mark.parametrize("i", range(4))
def test_a_gradient_without_one_array_is_refused_and_the_array_named(i):
    report = audit(LOSS, zeroed(i), never, THETA, TASKS, ALPHA)
    assert not report.passed and report.verdicts[0].kind == "grad"
    assert f"in array {i} " in report.verdicts[0].text


@pytest.mark.parametrize("factor", [-1, 2, 0.5, 1.05, 0])
def test_a_gradient_times_a_factor_is_refused(factor):
    report = audit(LOSS, lambda *a: [factor * leaf for leaf in GRAD(*a)], never, THETA, TASKS, ALPHA)
    assert not report.passed and report.verdicts[0].kind == "grad"


@pytest.mark.parametrize("factor", [-1, 2])
def test_a_gradient_times_a_factor_is_refused_in_float32(factor):
    theta, tasks = problem(dtype="float32")
    report = audit(LOSS, lambda *a: [factor * leaf for leaf in GRAD(*a)], never, theta, tasks, ALPHA)
    assert report.verdicts[0].kind == "grad"


def test_a_gradient_with_nan_is_refused():
    report = audit(LOSS, lambda *a: [np.nan * leaf for leaf in GRAD(*a)], never, THETA, TASKS, ALPHA)
    assert not report.passed and report.verdicts[0].kind == "grad"


def test_a_loss_of_nan_vouches_for_no_gradient():
    twice = Derivatives(lambda *a: [2 * leaf for leaf in GRAD(*a)], lambda *a: [2 * leaf for leaf in hvp(*a)])

    def doubled(theta, tasks, alpha):
        return add(gradients(twice, [Setting(theta, s, q, alpha, (True,) * 4) for s, q in tasks]))

    assert not audit(lambda *_: np.nan, twice.grad, doubled, THETA, TASKS, ALPHA).passed


def test_of_what_bends_faster_than_the_steps_of_its_differences_nothing_is_said_but_with_hvp():
    wave, batch = 1e6, (np.zeros((1, 1)), np.zeros((1, 1)))

    def loss(theta, batch):
        return (theta[0] ** 2 / 2 - np.cos(wave * theta[0]) / wave).sum()

    def gradient(theta, batch):
        return [theta[0] + np.sin(wave * theta[0])]

    def product(theta, batch, v):
        return [v[0] + wave * np.cos(wave * theta[0]) * v[0]]

    problem = [np.array([0.3, 0.7, 0.5])], [([batch], batch)], 1 / wave
    tools = Derivatives(gradient, product)

    def meta_gradient(theta, tasks, alpha):
        return add(gradients(tools, [Setting(theta, s, q, alpha, (True,)) for s, q in tasks]))

    (verdict,) = audit(loss, gradient, meta_gradient, *problem).verdicts
    assert verdict.kind == "imprecise" and "give `hvp`" in verdict.text
    assert audit(loss, gradient, meta_gradient, *problem, hvp=product).passed


def test_the_tasks_are_summed_or_averaged():
    with pytest.raises(ValueError, match="tasks_are: expected 'sum', 'mean' or None; got 'average'"):
        judged(never, tasks_are="average")


# --- Arguments ---


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match="algorithm: expected one of maml, .*; got 'mamml'"):
        audit(LOSS, GRAD, never, THETA, TASKS, ALPHA, "mamml")


@pytest.mark.parametrize(
    "spoil", [lambda g: g[:-1], lambda g: [leaf.T for leaf in g], lambda g: [leaf[None] for leaf in g]]
)
def test_a_meta_gradient_of_other_shapes_is_refused(spoil):
    with pytest.raises(ValueError, match="meta_gradient returned arrays of shapes"):
        audit(LOSS, GRAD, lambda *a: spoil(right("maml")(*a)), THETA, TASKS, ALPHA)


@pytest.mark.parametrize("answer", [None, 0.5])
def test_a_meta_gradient_that_is_no_list_is_refused(answer):
    with pytest.raises((TypeError, ValueError), match="meta_gradient returned"):
        judged(lambda *_: answer)


def test_a_gradient_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match="grad returned arrays of shapes"):
        audit(LOSS, lambda *a: GRAD(*a)[:-1], never, THETA, TASKS, ALPHA)


def test_hessian_vector_products_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="hvp returned arrays of shapes"):
        audit(LOSS, GRAD, right("maml"), THETA, TASKS, ALPHA, hvp=lambda *a: hvp(*a)[:-1])


@pytest.mark.parametrize("options", [{"alpha": -1}, {"alpha": np.nan}, {"tasks": []}, {"theta": []}])
def test_arguments_are_refused_as_by_maml(options):
    arguments = {"theta": THETA, "tasks": TASKS, "alpha": ALPHA, **options}
    with pytest.raises(ValueError) as by_maml:
        refmeta.maml(LOSS, **arguments)
    with pytest.raises(ValueError) as by_audit:
        audit(LOSS, GRAD, never, **arguments)
    assert str(by_audit.value) == str(by_maml.value)


def test_the_callers_exceptions_come_through():
    with pytest.raises(AssertionError, match="must not be asked"):
        judged(never)


# --- Precision, and size ---


def test_given_hessian_vector_products_make_the_verdict_more_precise():
    assert precision(judged(right("maml"), hvp=hvp)) < precision(judged(right("maml")))


def test_every_verdict_says_how_precise_it_is():
    kinds = [judged(m) for m in (right("maml"), wrong("first_order"), lambda t, *_: [leaf + 1 for leaf in t])]
    assert [v.kind for v in kinds] == ["pass", "bug", "unexplained"] and all(precision(v) < 1e-2 for v in kinds)


def test_the_precision_of_differences_is_four_times_what_two_steps_differ_by():
    """Of three steps the smallest two agree best here, and the error of the smaller is a hundredth of the other's."""
    wave, x, alpha, batch = 1e3, 0.3, 0.2, (np.zeros((1, 1)), np.zeros((1, 1)))

    def loss(theta, batch):
        return float(5 * theta[0] - np.cos(wave * theta[0]) / wave**2)

    def gradient(theta, batch=None):
        return [5 + np.sin(wave * theta[0]) / wave]

    def meta_gradient(theta, tasks, alpha, step=0.0):
        curvature = np.cos(wave * theta[0]) * np.sinc(wave * step / np.pi)  # by central differences of the gradient
        (g,) = gradient([theta[0] - alpha * gradient(theta)[0]])
        return [(1 - alpha * curvature) * g]

    def found(step):
        by_differences = partial(meta_gradient, step=step)
        return audit(loss, gradient, by_differences, [np.array(x)], [([batch], batch)], alpha).verdicts[0]

    ((right,), (off,)) = (meta_gradient([x], None, alpha, step) for step in (0, 3e-6))
    assert 3.4 < precision(found(0)) / abs(off / right - 1) < 4.6
    # The error grows as the square of the step: off by 1, 2.8, 5.4, 36 and 100 times that, of which 4 pass and 40 are
    # beyond judging.
    steps, kinds = (0, 3e-6, 5e-6, 7e-6, 1.8e-5, 3e-5), ["pass"] * 3 + ["imprecise"] * 2 + ["bug"]
    assert [found(step).kind for step in steps[:5]] == kinds[:5] and found(3e-5).kind not in ("pass", "imprecise")


def test_the_precision_of_a_displacement_in_float32_is_four_roundings_of_theta():
    theta, slope, batch = [np.float32([3, 0, 4])], np.float32([1, 2, 2]), (np.zeros((1, 1)), np.zeros((1, 1)))

    def displacement(theta, tasks, alpha):
        return [theta[0] - (theta[0] - np.float32(alpha) * slope)]

    def loss(theta, batch):
        return float(np.dot(theta[0].astype(float), slope))

    report = audit(loss, lambda *_: [slope], displacement, theta, [([batch], batch)], 1e-3, "reptile")
    assert (
        report.passed and precision(report.verdicts[0]) == 8e-4
    )  # ‖θ‖ = 5, ‖θ − φ‖ = 3e-3: 1e-5 + 4 · 2⁻²³ · 5 / 3e-3


@pytest.mark.parametrize(
    "off, kind", [(5e-11, "pass"), (2e-10, "precision"), (9e-10, "precision"), (2e-9, "precision"), (1e-8, "bug")]
)
def test_a_mistake_that_would_hardly_be_seen_is_not_accused(off, kind):
    """All is known to 1e-10 here: within it an answer passes, within ten times it cannot be judged.

    An explanation may be off by 3e-10, and only a mistake that changes ten times that is one. Three query losses added
    up and a mean over three tasks would be as near to the truth as the mistake that was made.
    """
    small = 1e-6
    right, wrong = ([g.ravel() for g in f(LOSS, THETA, TASKS, small)] for f in (refmeta.maml, refmeta.fomaml))
    right, wrong = np.concatenate(right), np.concatenate(wrong)
    alpha = small * off / (np.linalg.norm(right - wrong) / np.linalg.norm(right))  # first-order MAML is off by this
    found = audit(LOSS, GRAD, partial(refmeta.fomaml, LOSS), THETA, TASKS, alpha, hvp=hvp).verdicts[0]
    assert found.kind == kind and [e.suspects for e in found.explanations] == [("first_order",)] * (kind == "bug")


@pytest.mark.parametrize("numbers, kind", [(2, "unexplained"), (3, "convention")])
def test_of_two_numbers_a_factor_without_a_name_says_nothing(numbers, kind):
    """Two numbers that point the same way are soon found; of three it is said by what they are multiplied."""
    theta, batch = [np.arange(1.0, 1 + numbers)], (np.zeros((1, 1)), np.zeros((1, 1)))

    def loss(theta, batch):
        return anp.sum(theta[0] ** 4) / 4 + theta[0][0] * theta[0][1]

    def scaled(theta, tasks, alpha):
        return [0.7 * leaf for leaf in refmeta.maml(loss, theta, tasks, alpha)]

    found = audit(loss, grad(loss), scaled, theta, [([batch], batch)], 1e-3).verdicts[0]
    assert found.kind == kind and [str(e.scale) for e in found.explanations] == ["0.7"] * (numbers > 2)


def test_the_report_is_json_too():
    content = json.loads(audit(LOSS, GRAD, wrong("first_order"), THETA, TASKS, ALPHA).json())
    assert content["passed"] is False and content["verdicts"][0]["explanations"][0]["suspects"] == ["first_order"]


@pytest.fixture(scope="module")
def large():
    net = MLP((100, 250, 250, 50), activation="tanh")
    theta, tasks = problem(net, steps=2, tasks=2)
    theta = [leaf - 0.27 * (leaf - leaf.mean()) for leaf in theta]
    assert sum(leaf.size for leaf in theta) >= 100_000
    return cross_entropy(net), theta, tasks


def test_a_large_network_passes(large):
    loss, theta, tasks = large
    report = audit(loss, grad(loss), right("maml", loss), theta, tasks, 0.1)
    assert report.passed, str(report)


def test_a_large_network_that_is_first_order_is_named(large):
    loss, theta, tasks = large
    found = audit(loss, grad(loss), right("fomaml", loss), theta, tasks, 0.1).verdicts[0]
    assert found.kind == "bug" and found.explanations[0].suspects == ("first_order",), found


# --- As strangers write it: NumPy by hand, ReLU, and units on their kinks ---


class Relu:
    """Two layers under squared error. at_zero: the derivative of max(z, 0) at 0, which frameworks differ in."""

    def __init__(self, at_zero=0.0):
        self.at_zero = at_zero

    def layers(self, theta, x):
        W1, b1, W2, b2 = theta
        z = x @ W1 + b1
        h = np.maximum(z, 0)
        return h, np.where(z == 0, self.at_zero, z > 0).astype(z.dtype), h @ W2 + b2

    def loss(self, theta, batch):
        return ((self.layers(theta, batch[0])[2] - batch[1]) ** 2).mean()

    def grad(self, theta, batch):
        h, on, out = self.layers(theta, batch[0])
        r = 2 * (out - batch[1]) / out.size
        dz = r @ theta[2].T * on
        return [batch[0].T @ dz, dz.sum(0), h.T @ r, r.sum(0)]

    def hvp(self, theta, batch, v):
        x, (h, on, out) = batch[0], self.layers(theta, batch[0])
        r, moved = 2 * (out - batch[1]) / out.size, (x @ v[0] + v[1]) * on
        s = 2 * (moved @ theta[2] + h @ v[2] + v[3]) / out.size
        dz = (s @ theta[2].T + r @ v[2].T) * on
        return [x.T @ dz, dz.sum(0), moved.T @ r + h.T @ s, s.sum(0)]

    def adapted(self, theta, supports, alpha):
        phis = [theta]
        for batch in supports:
            phis.append([p - alpha * g for p, g in zip(phis[-1], self.grad(phis[-1], batch), strict=True)])
        return phis

    def maml(self, theta, tasks, alpha, second_order=True, short=0, sign=1):
        total = [np.zeros_like(leaf) for leaf in theta]
        for supports, query in tasks:
            supports = supports[: len(supports) - short]
            *phis, last = self.adapted(theta, supports, sign * alpha)
            v = self.grad(last, query)
            for phi, batch in reversed(list(zip(phis, supports, strict=True))) if second_order else []:
                v = [a - sign * alpha * b for a, b in zip(v, self.hvp(phi, batch, v), strict=True)]
            total = [t + g for t, g in zip(total, v, strict=True)]
        return total


def on_kinks(dtype="float64", inputs=6, hidden=8, black=0.5):
    """Zero biases, as networks begin, and inputs that are zero: of these all hidden units sit exactly on their kink."""
    rng = np.random.default_rng(0)

    def batch(n):
        x = rng.normal(size=(n, inputs)) * (rng.random((n, 1)) > black)
        return x.astype(dtype), rng.normal(size=(n, 2)).astype(dtype)

    shapes = (inputs, hidden), hidden, (hidden, 2), 2
    theta = [rng.normal(size=shape) / 2 if np.ndim(shape) else np.zeros(shape) for shape in shapes]
    return [leaf.astype(dtype) for leaf in theta], [([batch(6) for _ in range(3)], batch(6)) for _ in range(2)], 0.1


BY_HAND = [
    ({"second_order": False}, [("first_order",)]),
    ({"short": 1}, [("one_step_short",)]),
    ({"sign": -1}, [("inner_ascent",)]),
    ({"second_order": False, "short": 1}, [("first_order", "one_step_short")]),
    ({"sign": -1, "short": 1}, [("inner_ascent", "one_step_short")]),
]


def test_the_network_by_hand_is_right():
    theta, ((supports, query), *_), _ = on_kinks(black=0)
    relu, rng = Relu(), np.random.default_rng(1)
    v = [rng.normal(size=leaf.shape) for leaf in theta]

    def ahead(t):
        return [a + t * b for a, b in zip(theta, v, strict=True)]

    slope = (relu.loss(ahead(1e-6), query) - relu.loss(ahead(-1e-6), query)) / 2e-6
    assert np.isclose(slope, sum(np.sum(a * b) for a, b in zip(relu.grad(theta, query), v, strict=True)), 1e-7)
    for a, b, c in zip(
        relu.grad(ahead(1e-6), query), relu.grad(ahead(-1e-6), query), relu.hvp(theta, query, v), strict=True
    ):
        assert np.allclose((a - b) / 2e-6, c, 1e-6, 1e-8)


@pytest.mark.parametrize("at_zero", [0, 0.5, 1])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("black", [0, 0.5, 1])
def test_on_kinks_what_is_right_passes_with_hvp(at_zero, dtype, black):
    relu = Relu(at_zero)
    report = audit(relu.loss, relu.grad, relu.maml, *on_kinks(dtype, black=black), hvp=relu.hvp)
    assert report.passed, str(report)


@pytest.mark.parametrize("at_zero", [0, 0.5, 1])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("black", [0, 0.5, 1])
def test_on_kinks_what_is_right_is_never_accused_without_hvp(at_zero, dtype, black):
    relu = Relu(at_zero)
    report = audit(relu.loss, relu.grad, relu.maml, *on_kinks(dtype, black=black))
    (found,) = report.verdicts
    assert report.passed or (found.kind == "imprecise" and "kink" in found.text and "give `hvp`" in found.text), str(
        report
    )


@pytest.mark.parametrize("black", [0, 0.5])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("changed, names", BY_HAND)
def test_on_kinks_what_is_wrong_is_named_with_hvp(changed, names, dtype, black):
    relu = Relu()
    found = audit(
        relu.loss, relu.grad, partial(relu.maml, **changed), *on_kinks(dtype, black=black), hvp=relu.hvp
    ).verdicts[0]
    assert found.kind == "bug" and [e.suspects for e in found.explanations] == names, found


@pytest.mark.parametrize("at_zero", [0, 0.5, 1])
@pytest.mark.parametrize("changed, names", BY_HAND)
def test_on_kinks_what_is_wrong_never_passes_without_hvp(changed, names, at_zero):
    relu = Relu(at_zero)
    found = audit(relu.loss, relu.grad, partial(relu.maml, **changed), *on_kinks()).verdicts[0]
    assert found.kind in ("bug", "unexplained", "imprecise"), found
    assert found.kind != "bug" or [e.suspects for e in found.explanations] == names


def spoiled(relu, i, change):
    return lambda *a: [change(leaf) if j == i else leaf for j, leaf in enumerate(relu.grad(*a))]


@pytest.mark.parametrize("at_zero", [0, 0.5, 1])
@pytest.mark.parametrize(
    "change", [np.zeros_like, np.negative, lambda g: 2 * g, lambda g: g[..., ::-1], lambda g: g + 1]
)
@pytest.mark.parametrize("i", range(4))
def test_on_kinks_a_wrong_gradient_is_refused_and_the_array_named(i, change, at_zero):
    relu, (theta, tasks, alpha) = Relu(at_zero), on_kinks()
    found = audit(relu.loss, spoiled(relu, i, change), never, theta, tasks, alpha, hvp=relu.hvp).verdicts[0]
    assert found.kind == "grad" and f"in array {i} by " in found.text


def test_a_gradient_without_its_relu_is_refused_on_kinks():
    relu, (theta, tasks, alpha) = Relu(), on_kinks()

    def linear(theta, batch):
        h, _, out = relu.layers(theta, batch[0])
        r = 2 * (out - batch[1]) / out.size
        return [batch[0].T @ (r @ theta[2].T), (r @ theta[2].T).sum(0), h.T @ r, r.sum(0)]

    assert audit(relu.loss, linear, never, theta, tasks, alpha).verdicts[0].kind == "grad"


def test_the_kinks_of_an_absolute_error_are_no_mistake():
    """The residuals of the first task begin at zero exactly, so their signs are those of rounding."""
    rng = np.random.default_rng(0)

    def loss(theta, batch):
        return np.abs(batch[0] @ theta[0] - batch[1]).mean()

    def gradient(theta, batch):
        return [batch[0].T @ np.sign(batch[0] @ theta[0] - batch[1]) / len(batch[1])]

    def meta_gradient(theta, tasks, alpha):
        found = 0
        for supports, query in tasks:
            phi = theta
            for batch in supports:
                phi = [phi[0] - alpha * gradient(phi, batch)[0]]
            found = found + gradient(phi, query)[0]
        return [found]

    theta = [rng.normal(size=5)]
    batches = [(x, x @ theta[0]) for x in rng.normal(size=(4, 7, 5))]
    apart = [(x, rng.normal(size=7)) for x, _ in batches]
    tasks = [(batches[:2], batches[2]), (apart[:2], apart[2])]
    given = {"theta": theta, "alpha": 0.1, "hvp": lambda theta, batch, v: [0 * v[0]]}
    assert audit(loss, gradient, meta_gradient, tasks=tasks[1:], **given).passed
    found = audit(loss, gradient, meta_gradient, tasks=tasks, **given).verdicts[0]
    assert found.kind == "imprecise" and "a unit sits on its kink" in found.text
    twice = audit(loss, lambda *a: [2 * gradient(*a)[0]], never, theta, tasks[1:], 0.1).verdicts[0]
    assert twice.kind == "grad"


@pytest.mark.parametrize("slope, kind", [(1, "pass"), (-1, "pass"), (30, "grad")])
def test_a_gradient_that_is_looked_at_on_a_kink_is_refused_only_if_it_is_no_slope_of_either_side(slope, kind):
    """`grad` is looked at beside θ; here the loss bends exactly there, as it does somewhere by accident."""
    theta, batch, seen = [np.array([0.3, -0.7, 0.5])], (np.zeros((1, 1)), np.zeros((1, 1))), []

    def watching(phi, batch):
        seen.append(phi[0])
        return [0 * phi[0]]

    audit(lambda *_: 0.0, watching, lambda phi, *_: [0 * phi[0]], theta, [([], batch)], 0.1)
    beside = next(phi for phi in seen if (phi != theta[0]).any())

    def loss(phi, batch):
        return np.abs(phi[0] - beside).sum()

    def gradient(phi, batch):
        return [np.where(phi[0] == beside, float(slope), np.sign(phi[0] - beside))]

    def meta_gradient(phi, tasks, alpha):
        return gradient(phi, None)

    found = audit(loss, gradient, meta_gradient, theta, [([], batch)], 0.1).verdicts[0]
    assert found.kind == kind
    assert ("could not be compared with `loss` in array 0: a unit sits on its kink" in found.text) is (kind == "pass")


# --- Losses and gradients of other kinds ---


def of_relu(dtype="float64", **changed):
    relu, (theta, tasks, alpha) = Relu(), on_kinks(dtype, black=0)
    given = {"loss": relu.loss, "grad": relu.grad, "meta_gradient": relu.maml, "hvp": relu.hvp, **changed}
    return audit(**given, theta=theta, tasks=tasks, alpha=alpha)


def dropout(seed=0):
    """A ReLU network half of whose hidden units are dropped at random, anew at each call."""
    rng, relu = np.random.default_rng(seed), Relu()
    plain = relu.layers

    def layers(theta, x):
        h, on, _ = plain(theta, x)
        mask = 2.0 * (rng.random(h.shape) > 0.5)
        return h * mask, on * mask, (h * mask) @ theta[2] + theta[3]

    relu.layers = layers
    return relu


@pytest.mark.parametrize("what", ["loss", "grad"])
def test_dropout_in_the_loss_or_its_gradient_is_said(what):
    found = of_relu(**{what: getattr(dropout(), what)}, meta_gradient=never).verdicts[0]
    assert found.kind == "unrepeatable"
    assert f"asked twice, {what} gave two answers" in found.text and "dropout" in found.text


def test_dropout_in_the_meta_gradient_alone_is_said():
    found = of_relu(meta_gradient=dropout().maml).verdicts[0]
    assert (
        found.kind == "unrepeatable"
        and "meta-gradient gave two answers" in found.text
        and not of_relu(meta_gradient=dropout().maml).passed
    )


@pytest.mark.parametrize(
    "form", [float, np.float32, np.atleast_1d, lambda v: np.full((1, 1), v), np.asarray, lambda v: [v]]
)
def test_one_number_is_a_loss_in_any_form(form):
    assert of_relu(loss=lambda *a: form(Relu().loss(*a))).passed


@pytest.mark.parametrize("shape", [(6,), (2,), (0,)])
def test_a_loss_for_each_example_is_refused(shape):
    with pytest.raises(ValueError, match=rf"loss returned an array of shape \({shape[0]},\): expected one number"):
        of_relu(loss=lambda theta, batch: np.ones(shape), meta_gradient=never)


def narrow(function):
    """As a float32 module."""

    def called(theta, batch, *more):
        if any(leaf.dtype != np.float32 for leaf in theta):
            raise TypeError("expected scalar type Float but found Double")
        return function(theta, batch, *more)

    return called


@pytest.mark.parametrize("hvp", [narrow(Relu().hvp), None])
def test_functions_that_take_float32_alone_are_asked_in_it(hvp):
    relu = Relu()
    functions = {"loss": narrow(relu.loss), "grad": narrow(relu.grad), "hvp": hvp}
    report = of_relu("float32", **functions, meta_gradient=narrow(relu.maml))
    assert report.passed and [row.id for row in report.rows] == ["your network"]
    assert precision(report.verdicts[0]) >= 1e-5
    wrong = of_relu("float32", **functions, meta_gradient=narrow(partial(relu.maml, sign=-1)))
    assert [e.suspects for e in wrong.verdicts[0].explanations] == [("inner_ascent",)]
    with pytest.raises(TypeError, match="found Double"):
        of_relu("float64", **functions, meta_gradient=never)


def test_differences_of_float32_on_kinks_cannot_be_judged_and_what_would_help_is_said():
    relu = Relu()

    def judged(**changed):
        meta_gradient = narrow(partial(relu.maml, **changed))
        return audit(narrow(relu.loss), narrow(relu.grad), meta_gradient, *on_kinks("float32")).verdicts[0]

    assert judged().kind == "imprecise" and "give `hvp`, or let `grad` take float64" in judged().text
    far = judged(sign=-1)  # far outside even this precision, within which no mistake has a name
    assert far.kind == "unexplained" and not far.explanations and precision(far) > 1e-2


def test_functions_that_answer_float64_in_float32_are_judged_as_float32():
    relu = Relu()

    def coarse(function):
        return lambda *a: [leaf.astype(np.float32) for leaf in function(*a)]

    functions = {name: coarse(getattr(relu, name)) for name in ("grad", "hvp")}
    report = of_relu(**functions, meta_gradient=coarse(relu.maml))
    assert report.passed and precision(report.verdicts[0]) >= 1e-5
    wrong = of_relu(**functions, meta_gradient=coarse(partial(relu.maml, second_order=False))).verdicts[0]
    assert [e.suspects for e in wrong.explanations] == [("first_order",)]


def test_an_answer_in_float32_to_a_float64_question_is_judged_as_float32():
    report = of_relu(meta_gradient=lambda *a: [leaf.astype(np.float32) for leaf in Relu().maml(*a)])
    assert report.passed and 1e-5 <= precision(report.verdicts[0]) <= 1e-4


def test_a_loss_in_float32_inside_vouches_for_a_right_gradient_and_refuses_a_wrong_one():
    def coarse(theta, batch):
        return float(Relu().loss([leaf.astype(np.float32) for leaf in theta], [a.astype(np.float32) for a in batch]))

    assert of_relu(loss=coarse).passed
    for factor in (-1, 0, 2, 1.1):
        found = of_relu(loss=coarse, grad=lambda *a, c=factor: [c * g for g in Relu().grad(*a)], meta_gradient=never)
        assert found.verdicts[0].kind == "grad"


def test_a_loss_too_coarse_for_differences_refuses_no_gradient_and_that_is_said():
    """In float32, 1e9 and the loss is 1e9."""
    found = of_relu(loss=lambda *a: float(np.float32(1e9 + Relu().loss(*a)))).verdicts[0]
    assert found.kind == "pass"
    assert "`grad` itself could not be compared with `loss` in array 0: the loss is too coarse" in found.text


def test_what_is_right_in_float64_is_not_accused_of_its_float32():
    def coarse(theta, tasks, alpha):
        found = Relu().maml(theta, tasks, alpha)
        return found if theta[0].dtype == np.float64 else [g + np.float32(1e-2) for g in found]

    report = of_relu("float32", meta_gradient=coarse)
    assert [row.status for row in report.rows] == ["pass", "fail"]
    assert report.verdicts[0].kind == "imprecise" and report.verdicts[0].text.startswith("right in float64. With ")


def test_what_is_wrong_in_float64_is_not_asked_in_float32():
    def first_order(theta, tasks, alpha):
        assert theta[0].dtype == np.float64
        return Relu().maml(theta, tasks, alpha, second_order=False)

    report = of_relu("float32", meta_gradient=first_order)
    assert [row.id for row in report.rows] == ["your network"] and report.verdicts[0].kind == "bug"


def test_functions_that_change_what_they_are_given_do_no_harm():
    """As a network that normalises its batch in place, or sorts the labels."""
    relu, (theta, tasks, alpha) = Relu(), on_kinks(black=0)
    kept = [leaf.copy() for leaf in theta], [[a.copy() for a in batch] for s, q in tasks for batch in (*s, q)]

    def careless(function):
        def called(theta, batch, *more):
            found = function(theta, batch, *more)
            for leaf in (*theta, *(a for b in (more and [x for s, q in batch for x in (*s, q)] or [batch]) for a in b)):
                leaf[...] = 7
            return found

        return called

    def meta_gradient(theta, tasks, alpha):
        found = relu.maml(theta, tasks, alpha)
        for supports, query in tasks:
            for x, y in (*supports, query):
                x[...], y[...] = 7, 7
        for leaf in theta:
            leaf[...] = 7
        return found

    assert audit(careless(relu.loss), careless(relu.grad), meta_gradient, theta, tasks, alpha).passed
    assert all((a == b).all() for a, b in zip(theta, kept[0], strict=True))
    now = [batch for s, q in tasks for batch in (*s, q)]
    assert all((a == b).all() for one, two in zip(now, kept[1], strict=True) for a, b in zip(one, two, strict=True))


def test_a_meta_gradient_that_takes_no_other_number_of_tasks_is_named_too():
    def stubborn(theta, tasks, alpha):
        if len(tasks) != 2:
            raise ValueError("the meta-batch has two tasks")
        return Relu().maml(theta, tasks, alpha, second_order=False)

    assert [e.suspects for e in of_relu(meta_gradient=stubborn).verdicts[0].explanations] == [("first_order",)]


@pytest.mark.parametrize("step", [0.03, 0.0271])
def test_another_step_size_is_named(step):
    found = of_relu(meta_gradient=lambda theta, tasks, alpha: Relu().maml(theta, tasks, step)).verdicts[0]
    assert found.kind == "bug" and list(found.explanations) == [Explanation((f"alpha={step}",))]
    assert f"the inner step size is {step}, not the one that was asked for" in found.text


@pytest.mark.parametrize("size", [1e-30, 1e30, 1e120])
def test_an_answer_of_another_size_is_told_by_its_factor(size):
    found = of_relu(meta_gradient=lambda *a: [size * g for g in Relu().maml(*a)]).verdicts[0]
    assert found.kind == "convention" and [str(e.scale) for e in found.explanations] == [f"{size:.4g}"]


def test_answers_of_1e200_do_not_overflow():
    found = of_relu(meta_gradient=lambda theta, *_: [1e200 + 0 * leaf for leaf in theta]).verdicts[0]
    assert found.kind == "unexplained"


def test_the_right_gradient_times_1e200_is_not_said_to_weigh_its_tasks():
    found = of_relu(meta_gradient=lambda *a: [1e200 * g for g in Relu().maml(*a)]).verdicts[0]
    assert found.kind in ("convention", "unexplained")


def times(c, **changed):
    """The verdict on a network whose loss is multiplied by c, its α divided."""
    relu, (theta, tasks, alpha) = Relu(), on_kinks(black=0)
    loss = lambda *a: c * relu.loss(*a)  # noqa: E731
    grad, hvp, maml = (
        lambda *a, f=f: [c * g for g in f(*a)] for f in (relu.grad, relu.hvp, partial(relu.maml, **changed))
    )

    def meta_gradient(theta, tasks, alpha):
        return maml(theta, tasks, c * alpha)

    return audit(loss, grad, meta_gradient, theta, tasks, alpha / c, hvp=hvp).verdicts[0]


@pytest.mark.parametrize("c", [1e-30, 1e-8, 1e8, 1e30])
def test_losses_of_any_size_are_judged(c):
    assert times(c).kind == "pass"
    assert ("first_order",) in [e.suspects for e in times(c, second_order=False).explanations]


def test_a_loss_of_1e100_is_judged():
    assert times(1e100).kind == "pass"


@pytest.mark.parametrize("hvp", [Relu().hvp, None])
@pytest.mark.parametrize("changed", [{}, {"sign": -1}, {"second_order": False}, {"short": 1}])
def test_no_advice_is_given_that_does_not_apply(hvp, changed):
    for dtype in ("float64", "float32"):
        for black in (0, 0.5):
            args = on_kinks(dtype, black=black)
            text = str(audit(Relu().loss, Relu().grad, partial(Relu().maml, **changed), *args, hvp=hvp))
            assert "let `grad` take float64" not in text  # it does
            assert not hvp or "`hvp`" not in text  # it is given
            assert "net.eval()" not in text


# --- Progress ---


def test_after_two_seconds_stderr_says_what_is_tried(monkeypatch, capsys):
    clock = iter(np.arange(0, 1e6, 0.7))
    monkeypatch.setattr("refmeta.conformance.explain.monotonic", lambda: next(clock))
    of_relu(meta_gradient=lambda theta, *_: [1 + 0 * leaf for leaf in theta])
    said, lines = capsys.readouterr(), []
    assert said.out == ""
    lines = said.err.splitlines()
    assert all(line.startswith("refmeta: ") and " of " in line for line in lines)
    for what in (" mistakes", " more mistakes", " pairs of mistakes"):
        assert any(line.endswith(what) for line in lines)


def test_what_takes_less_is_silent(monkeypatch, capsys):
    monkeypatch.setattr("refmeta.conformance.explain.monotonic", lambda: 0.0)
    of_relu(meta_gradient=lambda theta, *_: [1 + 0 * leaf for leaf in theta])
    assert capsys.readouterr() == ("", "")


# --- Large networks ---


def test_a_sketch_keeps_lengths_to_two_percent_and_adds_up():
    rng, n = np.random.default_rng(0), 100_000
    vectors = [
        rng.normal(size=n),
        rng.standard_cauchy(size=n),
        np.ones(n),
        np.eye(1, n, 77)[0],
        rng.normal(size=n) * (rng.random(n) < 0.001),
        np.sin(np.arange(n)),
        1.0 * (np.arange(n) < 5000),
    ]
    lengths = [np.linalg.norm(sketch(v)) / np.linalg.norm(v) for v in vectors]
    assert np.abs(np.array(lengths) - 1).max() < 0.05 and np.std(lengths) < 0.02
    a, b, *_ = vectors
    assert sketch(a).shape == (SKETCH,) and np.allclose(sketch(2 * a - b), 2 * sketch(a) - sketch(b))
    assert (sketch(a) == sketch(a.copy())).all()


def test_of_few_numbers_none_is_lost():
    rng = np.random.default_rng(0)
    few, more = rng.normal(size=SKETCH), rng.normal(size=SKETCH + 1)
    assert (sketch(few) == few).all() and sketch(more).size == SKETCH


def separable(n, steps=2):
    """½ Σ a θ² − b θ, of any size: all is elementwise. A batch is (a, b)."""
    rng = np.random.default_rng(0)

    def batch():
        return rng.uniform(0.1, 1, n), rng.normal(size=n)

    def meta_gradient(theta, tasks, alpha, second_order=True):
        found = 0
        for supports, (a, b) in tasks:
            phi, J = theta[0], 1
            for s, t in supports:
                phi, J = phi - alpha * (s * phi - t), J * (1 - alpha * s)
            found = found + (J if second_order else 1) * (a * phi - b)
        return [found]

    functions = {
        "loss": lambda theta, batch: float(theta[0] @ (batch[0] * theta[0] / 2 - batch[1])),
        "grad": lambda theta, batch: [batch[0] * theta[0] - batch[1]],
        "hvp": lambda theta, batch, v: [batch[0] * v[0]],
        "theta": [rng.normal(size=n)],
        "tasks": [([batch() for _ in range(steps)], batch()) for _ in range(2)],
        "alpha": 0.3,
    }
    return functions, meta_gradient


def test_of_a_million_parameters_one_is_seen_and_a_mistake_named(monkeypatch):
    functions, meta_gradient = separable(10**6, steps=1)
    assert audit(**functions, meta_gradient=meta_gradient).passed
    found = audit(**functions, meta_gradient=partial(meta_gradient, second_order=False)).verdicts[0]
    assert [e.suspects for e in found.explanations] == [("first_order",)]
    monkeypatch.setattr(MODULE.explain, "explain", lambda *_: [])  # nothing would be found, but after 20 s

    def but_one(*arguments):
        (g,) = meta_gradient(*arguments)
        g[123456] += 1e-3 * np.linalg.norm(g)
        return [g]

    report = audit(**functions, meta_gradient=but_one)
    assert report.verdicts[0].kind == "unexplained" and 2.8 < report.rows[0].digits < 3.2


@pytest.mark.parametrize("n, untried", [(SMALL, False), (SMALL + 1, True)])
def test_pairs_are_not_tried_on_large_networks_and_that_is_said(n, untried, monkeypatch):
    functions, meta_gradient = separable(n)
    monkeypatch.setattr(MODULE.explain, "listed_pairs", lambda answers: tried.append(answers) or [])
    tried = []
    rng = np.random.default_rng(3)
    noise = rng.normal(size=n)
    found = audit(**functions, meta_gradient=lambda *a: [meta_gradient(*a)[0] + noise]).verdicts[0]
    assert found.kind == "unexplained" and bool(tried) is not untried
    assert ("Pairs of mistakes are not tried on more than 20000 parameters." in found.text) is untried


def test_what_was_computed_is_not_computed_again_as_long_as_memory_lasts():
    calls = []

    def function(phi, batch, *v):
        calls.append(phi)
        return [2 * leaf for leaf in phi]

    one, two, batch = [np.array([1.0])], [np.array([2.0])], (np.zeros(1), np.zeros(1))
    found = remembered(function, 1)
    assert [found(phi, batch)[0][0] for phi in (one, [np.array([1.0])], two, two)] == [2, 2, 4, 4]
    assert len(calls) == 3  # the second gradient is one too many
    found(one, (np.zeros(1), np.zeros(1))), found(one, batch, one)
    assert len(calls) == 5  # another batch, another vector


# --- For an adapter to a framework ---


def adapted(ask=None, theta=None, tasks=None, lr=0.1, steps=None, algorithm="maml", adapts=(True,) * 4, **options):
    relu, (given, its_tasks, _) = Relu(), on_kinks(black=0)
    options = {"tasks_are": None, "dtype": "float64", **options}
    tasks = its_tasks if tasks is None else tasks
    ask = ask or (lambda many, dtype: relu.maml(given, its_tasks[:many], lr))
    derivatives = options.pop("derivatives", Derivatives(relu.grad, relu.hvp))
    settings = to_settings(algorithm, theta or given, to_tasks(tasks, steps), lr, adapts)
    asked = ["float64", options.pop("dtype")]
    return examine(exact(derivatives, settings), ask, algorithm, asked, **options)


def once(tasks):
    return [(supports[0], query) for supports, query in tasks]


def test_an_adapter_asks_for_some_tasks_in_a_dtype():
    relu, (theta, tasks, alpha) = Relu(), on_kinks(black=0)
    asked = []

    def ask(many, dtype):
        asked.append((many, dtype))
        return relu.maml([leaf.astype(dtype) for leaf in theta], tasks[:many], alpha)

    report = adapted(ask, dtype="float32")
    assert report.passed and asked == [(2, "float64"), (2, "float32")] and len(report.rows) == 2
    assert adapted(ask).passed and asked[2:] == [(2, "float64")]


@pytest.mark.parametrize("alone, found", [(0.03, [0.03]), (0.1, [])])
def test_what_explains_all_tasks_must_explain_the_first_alone(alone, found):
    relu, (theta, tasks, _) = Relu(), on_kinks(black=0)
    verdict = adapted(lambda many, _: relu.maml(theta, tasks[:many], alone if many == 1 else 0.03)).verdicts[0]
    assert [e.suspects for e in verdict.explanations] == [(f"alpha={a}",) for a in found]


def test_a_support_is_taken_for_each_step_in_every_form():
    relu, (theta, tasks, alpha) = Relu(), on_kinks(black=0)
    repeated = [([supports[0]] * 4, query) for supports, query in tasks]

    def ask(many, dtype):
        return relu.maml(theta, repeated[:many], alpha)

    pairs = once(tasks)
    four = [(*support, *query) for support, query in pairs]
    lists = [[list(support), list(query)] for support, query in pairs]
    for given in (pairs, four, lists):
        assert adapted(ask, tasks=given, steps=4).passed and not adapted(ask, tasks=given, steps=3).passed
    assert adapted(ask, tasks=repeated).passed
    assert adapted(ask, tasks=list(zip([s for s, _ in repeated], [q for _, q in repeated], strict=True))).passed


def test_a_number_of_steps_is_given_where_and_only_where_it_is_needed():
    _, tasks, _ = on_kinks(black=0)
    with pytest.raises(ValueError, match="steps: expected the number of inner steps; got None"):
        adapted(never, tasks=once(tasks))
    with pytest.raises(ValueError, match="steps: expected None, because each task has a batch for each step; got 3"):
        adapted(never, tasks=tasks, steps=3)
    with pytest.raises(
        TypeError, match=r"tasks\[1\]: expected \(\(x, y\), \(x, y\)\), support and query; got 3 things"
    ):
        adapted(never, tasks=[once(tasks)[0], (1, 2, 3)], steps=1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float16"}, "dtype: expected float64 or float32, got 'float16'"),
        ({"algorithm": "mamll"}, "algorithm: expected one of maml, .*; got 'mamll'"),
        ({"tasks_are": "means"}, "tasks_are: expected 'sum', 'mean' or None; got 'means'"),
        ({"lr": -0.1}, "alpha: expected a finite number of at least 0, got -0.1"),
        ({"tasks": []}, "tasks: expected at least one task"),
    ],
)
def test_an_adapter_passes_on_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adapted(never, **options)


@pytest.mark.parametrize("where", ["everywhere", "after a step"])
def test_where_the_right_gradient_is_nan_no_answer_is_judged(where):
    relu, (theta, _, _) = Relu(), on_kinks(black=0)

    def gradient(phi, batch):
        away = any((a != b).any() for a, b in zip(phi, theta, strict=True))
        return [(np.nan if away or where == "everywhere" else 1) * g for g in relu.grad(phi, batch)]

    found = adapted(derivatives=Derivatives(gradient, relu.hvp)).verdicts[0]
    assert found.kind in ("imprecise", "grad", "unrepeatable", "form") and "16.0" not in found.text


@pytest.mark.parametrize("steps", [-1, 2.0, "2"])
def test_steps_that_are_no_number_of_steps_are_refused(steps):
    with pytest.raises((TypeError, ValueError), match="steps: expected"):
        adapted(never, tasks=once(on_kinks(black=0)[1]), steps=steps)


def test_an_adapter_s_loss_that_is_not_repeatable_is_said():
    relu = dropout()
    report = adapted(never, derivatives=Derivatives(relu.grad, relu.hvp), dtype="float32")
    assert report.verdicts[0].kind == "unrepeatable" and "net.eval()" in report.verdicts[0].text
    assert [row.status for row in report.rows] == ["fail"]


def test_an_adapter_s_remark_is_made_on_every_verdict():
    relu, (theta, tasks, alpha) = Relu(), on_kinks(black=0)
    for changed in ({}, {"second_order": False}):
        report = adapted(lambda many, _, c=changed: relu.maml(theta, tasks[:many], alpha, **c), remark="A remark.")
        assert report.verdicts[0].text.endswith(" A remark.") and report.passed is not bool(changed)


def test_what_adapts_counts_for_anil_alone():
    head = (False, False, True, True)
    found = adapted(algorithm="anil", adapts=head).verdicts[0]
    assert [e.suspects for e in found.explanations] == [("body_adapted",)]
    assert adapted(adapts=head).passed


@pytest.mark.parametrize(
    "off, kind", [(1e-9, "precision"), (1e-6, "precision"), (9e-6, "precision"), (2e-5, "unexplained")]
)
def test_few_digits_that_nothing_else_explains_are_a_matter_of_rounding(off, kind):
    """As of Hessian-vector products by differences."""
    noise = [np.random.default_rng(i).normal(size=leaf.shape) for i, leaf in enumerate(THETA)]
    truth = right("maml")(THETA, TASKS, ALPHA)
    scale = off * np.sqrt(sum((g**2).sum() for g in truth) / sum((n**2).sum() for n in noise))
    found = judged(lambda *_: [g + scale * n for g, n in zip(truth, noise, strict=True)], hvp=hvp)
    assert found.kind == kind and ("computed by differences" in found.text) is (kind == "precision")
