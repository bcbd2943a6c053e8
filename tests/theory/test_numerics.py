"""What floating point can do to the gradients: large and small numbers, edges, long loops, many tasks, odd arrays.

The oracle is `tests.vectors.derivation`, in 60-digit decimals: it shares no line with the gradients.
"""

import tempfile
import tracemalloc
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from itertools import product

import numpy as np
import pytest
from autograd.tracer import Node, getval, new_box, trace_stack
from problems import ALGORITHMS, EXACT, assert_same, flat

from refmeta import adapt, adjoint, anil, fomaml, joint, maml, recorded, reptile, stacked
from refmeta.conformance import rules
from refmeta.conformance.cases import Case
from refmeta.models import MLP, squared_error
from tests.vectors.arithmetic import in_kind
from tests.vectors.derivation import derivatives

SECOND = {maml: adjoint.maml, anil: adjoint.anil}


def case_of(algorithm, widths, scales=(1.0, 1.0, 1.0), loss="squared_error", steps=2, tasks=2, seed=0):
    """A case of random numbers times (inputs, parameters, α); targets are of the size of the parameters."""
    rng, (of_x, of_theta, of_alpha) = np.random.default_rng(seed), scales
    shapes = MLP(widths).shapes

    def batch():
        x, y = of_x * rng.normal(size=(3, widths[0])), of_theta * rng.normal(size=(3, widths[-1]))
        return x, rng.integers(0, widths[-1], 3) if loss == "cross_entropy" else y

    return Case(
        id="",
        algorithm=algorithm.__name__,
        theta=[of_theta * rng.normal(size=shape) for shape in shapes],
        tasks=[([batch() for _ in range(steps)], batch()) for _ in range(tasks)],
        alpha=0.1 * of_alpha,
        head=2 if algorithm is anil else None,
        model={"kind": "mlp", "widths": list(widths), "activation": "tanh"},
        loss={"kind": loss},
        conventions={"tasks": "sum", "examples": "mean", "reptile": "displacement"},
        names=MLP(widths).names,
        tier="",
    )


def exact(case):
    """The gradient to 60 digits, as one list of numbers."""
    with localcontext(Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)):
        trees = rules.gradients(derivatives(case), in_kind(case, Decimal).settings)
        return sum(np.concatenate([np.ravel(leaf) for leaf in tree]) for tree in trees)


def computed(algorithm, case):
    """By the specification, by its second derivation and with all tasks at once."""
    arguments = case.loss_fn, case.theta, case.tasks, case.alpha
    with np.errstate(all="ignore"):
        return [run(*arguments) for run in (algorithm, stacked(algorithm), SECOND.get(algorithm, algorithm))]


def assert_right(got, truth, digits, size=0):
    """‖got − truth‖ ≤ 10^−digits max(‖truth‖, size), the difference taken in decimals."""
    error = max(abs(Decimal(float(g)) - t) for g, t in zip(flat(got), truth, strict=True))
    assert error <= max(*map(abs, truth), Decimal(float(size))) / 10**digits, float(error)


NETWORKS = [((2, 2), "squared_error"), ((2, 3, 2), "squared_error"), ((2, 3, 2), "cross_entropy")]
SMALLEST = 5e-324


def rounding(algorithm, case):
    """What the gradient is rounded to beside its own size: a displacement θ − φ is rounded as θ is."""
    return abs(flat(case.theta)).max() if algorithm is reptile else SMALLEST


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_are_right_from_1e_minus_8_to_1e_plus_8(algorithm):
    """The inputs, the parameters or α is so large, and the rest of size 1."""
    for (widths, loss), what, size in product(NETWORKS, range(3), [1e-8, 1e-4, 1e4, 1e8]):
        case = case_of(algorithm, widths, [size if i == what else 1.0 for i in range(3)], loss)
        truth = exact(case)
        for got in computed(algorithm, case):
            assert_right(got, truth, 13, rounding(algorithm, case))


def test_a_power_of_two_in_the_parameters_and_targets_comes_out_bit_for_bit():
    """A linear network's gradients are linear in (θ, y): no size of them is rounded otherwise than another."""
    for algorithm in ALGORITHMS:
        case = case_of(algorithm, (2, 2))
        for s in (2.0**-27, 2.0**27, 2.0**500):
            tasks = [([(x, s * y) for x, y in b], (q[0], s * q[1])) for b, q in case.tasks]
            plain = algorithm(case.loss_fn, case.theta, case.tasks, 0.1)
            scaled = algorithm(case.loss_fn, [s * leaf for leaf in case.theta], tasks, 0.1)
            assert (s * flat(plain)).tobytes() == flat(scaled).tobytes()


def test_the_comparison_refuses_the_fourteenth_digit_and_a_first_order_gradient():
    case = case_of(maml, (2, 3, 2))
    truth, (got, *_) = exact(case), computed(maml, case)
    assert_right(got, truth, 13)
    with pytest.raises(AssertionError):
        assert_right([leaf * (1 + 4e-13) for leaf in got], truth, 13)
    with pytest.raises(AssertionError):
        assert_right(computed(fomaml, case)[0], truth, 13)


# --- Edges ---


def test_through_a_saturated_tanh_the_body_gets_exactly_nothing_and_the_head_its_gradient():
    case = case_of(maml, (2, 3, 2), (1e8, 1.0, 1.0))
    for W1, b1, *head in computed(maml, case):
        assert not W1.any() and not b1.any() and flat(head).all()


@pytest.mark.parametrize("algorithm", [maml, fomaml, anil, joint])
def test_huge_logits_leave_the_labels_that_are_missed_at_full_weight(algorithm):
    """Logits 1e8 apart: softmax is 0 or 1 to the last bit, its curvature 0, the gradient x (p − 1[label])."""
    case = case_of(algorithm, (2, 2), (1.0, 1e8, 1.0), "cross_entropy", steps=1, tasks=1)
    ((_, (x, labels)),) = case.tasks
    won = (x @ case.theta[0] + case.theta[1]).argmax(1)
    error = (np.eye(2)[won] - np.eye(2)[labels]) / len(x)
    assert error.any()
    for got in computed(algorithm, case):
        assert_same(got, [x.T @ error, error.sum(0)], digits=15)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_relu_at_exactly_0_is_as_if_it_were_not_there(algorithm):
    """Its unit gets no gradient and the others those of the network without it; frameworks agree on slope 0 at 0."""
    rng = np.random.default_rng(0)
    (W1, b1, W2, b2), x = MLP((2, 3, 2)).init(rng), rng.normal(size=(4, 2))
    W1[:, 1] = 0
    tasks = [([(x, rng.normal(size=(4, 2)))] * 2, (x, rng.normal(size=(4, 2))))]
    rest = [0, 2]
    whole = algorithm(squared_error(MLP((2, 3, 2), "relu")), [W1, b1, W2, b2], tasks, 0.1)
    without = [W1[:, rest], b1[rest], W2[rest], b2]
    part = algorithm(squared_error(MLP((2, 2, 2), "relu")), without, tasks, 0.1)
    assert not whole[0][:, 1].any() and not whole[1][1] and not whole[2][1].any()
    assert_same([whole[0][:, rest], whole[1][rest], whole[2][rest], whole[3]], part, digits=15)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_task_with_one_example_is_right(algorithm):
    case = case_of(algorithm, (2, 3, 2), tasks=1)
    ((supports, (x, y)),) = case.tasks
    case.tasks[0] = [(s[:1], t[:1]) for s, t in supports], (x[:1], y[:1])
    truth = exact(case)
    for got in computed(algorithm, case):
        assert_right(got, truth, 13, rounding(algorithm, case))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_thousand_tasks_are_the_exact_sum(algorithm):
    """A hundred different ones, ten times."""
    case = case_of(algorithm, (2, 2), steps=1, tasks=100)
    truth = 10 * exact(case)
    case.tasks.extend(9 * case.tasks)
    for got in computed(algorithm, case):
        assert_right(got, truth, 13, 1000 * rounding(algorithm, case))


# --- A hundred inner steps ---


@pytest.mark.parametrize("algorithm", EXACT)
def test_a_hundred_inner_steps_are_right(algorithm):
    for widths in ((2, 2), (2, 3, 2)):
        case = case_of(algorithm, widths, steps=100, tasks=1)
        truth = exact(case)
        for got in computed(algorithm, case):
            assert_right(got, truth, 12)


def peak(function, *arguments):
    """The most memory that a call had at a time, in bytes, beside what there was."""
    tracemalloc.start()
    function(*arguments)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_the_adjoints_memory_stays_flat_as_the_inner_loop_grows():
    """At K = 25 twice that at K = 1 and the φ that are kept; MAML itself, and its recording, keep every step."""
    rng, net = np.random.default_rng(0), MLP((4, 32, 32, 1))
    theta, batch = net.init(rng), (rng.normal(size=(100, 4)), rng.normal(size=(100, 1)))
    replay = recorded(maml)
    most = {}
    for k in (1, 25):
        arguments = squared_error(net), theta, [([batch] * k, batch)], 1e-3
        replay(*arguments)  # the first call is recorded, and proved
        for way, run in (("adjoint", adjoint.maml), ("maml", maml), ("recorded", replay)):
            most[way, k] = peak(run, *arguments)
    kept = 25 * sum(leaf.nbytes for leaf in theta)
    assert most["adjoint", 25] < 2 * most["adjoint", 1] + kept
    assert most["maml", 25] > 10 * most["maml", 1] + kept
    assert most["recorded", 25] > 10 * most["recorded", 1] + kept


# --- Arrays of other kinds ---


class Value(Node):
    """A node of autograd's graph that notes the dtype of its value."""

    def __init__(self, value, fun, args, kwargs, places, parents):
        self.initialize_root(parents[0].seen)
        self.seen.append(getattr(getval(value), "dtype", np.dtype(int)))

    def initialize_root(self, seen):
        self.seen = seen


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, adjoint.maml, adjoint.anil, adapt])
def test_float32_has_no_float64_on_the_way(algorithm, loss):
    case = case_of(maml, (2, 3, 2), loss=loss).astype("float32")
    tasks = case.tasks[0][0] if algorithm is adapt else case.tasks

    def dtypes(theta):
        seen = []
        with trace_stack.new_trace() as level:
            algorithm(case.loss_fn, [new_box(leaf, level, Value.new_root(seen)) for leaf in theta], tasks, 0.1)
        return [dtype.name for dtype in seen if dtype.kind == "f"]

    assert set(dtypes(case.theta)) == {"float32"} and len(dtypes(case.theta)) > 5
    assert "float64" in dtypes([leaf.astype(float) for leaf in case.theta])


def spread(array):
    """The same numbers, every second of a larger array, and the last of them first in memory."""
    larger = np.zeros([2 * n for n in array.shape], array.dtype)
    view = larger[tuple(slice(None, None, -2) for _ in array.shape)]
    view[...] = array
    assert not view.flags.contiguous
    return view


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def of_the_other_byte_order(array):
    other = array.astype(array.dtype.newbyteorder())
    assert not other.dtype.isnative
    return other


def everywhere(change, case, theta=True):
    """The case with another kind of array in θ or in the data."""
    data = [([tuple(map(change, b)) for b in s], tuple(map(change, q))) for s, q in case.tasks]
    return (list(map(change, case.theta)), case.tasks) if theta else (case.theta, data)


@pytest.mark.parametrize("change", [spread, frozen, np.asfortranarray, of_the_other_byte_order])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_where_and_how_numbers_lie_in_memory_does_not_matter(algorithm, change):
    for loss in ("squared_error", "cross_entropy"):
        case = case_of(algorithm, (2, 3, 2), loss=loss)
        theta, _ = everywhere(change, case)
        _, tasks = everywhere(change, case, theta=False)
        expected = algorithm(case.loss_fn, case.theta, case.tasks, 0.1)
        for run in (algorithm, stacked(algorithm), recorded(algorithm), recorded(stacked(algorithm))):
            got = run(case.loss_fn, theta, tasks, 0.1)
            assert {leaf.dtype.str for leaf in got} == {np.dtype(float).str}
            assert_same(got, expected, digits=14)


def mapped(array):
    with tempfile.TemporaryFile() as file:
        copy = np.memmap(file, array.dtype, "w+", shape=array.shape)
    copy[...] = array
    return copy


SUBCLASSES = {
    "MaskedArray": lambda a: np.ma.array(a, mask=np.arange(a.size).reshape(a.shape) == 0),
    "matrix": np.matrix,
    "recarray": lambda a: a.view(np.recarray),
    "memmap": mapped,
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("name", SUBCLASSES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_subclasses_of_arrays_are_refused(algorithm, name):
    case = case_of(algorithm, (2, 3, 2), loss="cross_entropy")
    for in_theta, where in ((True, r"theta\[0\]"), (False, r"tasks\[0\] supports\[0\] x")):
        theta, tasks = everywhere(SUBCLASSES[name], case, in_theta)
        for run in (algorithm, stacked(algorithm)):
            with pytest.raises(
                TypeError, match=f"{where}: expected a NumPy array itself, no subclass, got a {name} of"
            ):
                run(case.loss_fn, theta, tasks, 0.1)


def test_a_mask_over_labels_is_refused_where_it_would_be_overlooked():
    """The loss takes the labels behind the mask for given, and nothing else would have told."""
    case = case_of(maml, (2, 3, 2), loss="cross_entropy", tasks=1)
    ((supports, (x, labels)),) = case.tasks
    masked = np.ma.array(labels, mask=[True, False, False])
    assert case.loss_fn(case.theta, (x, masked)) == case.loss_fn(case.theta, (x, labels))
    with pytest.raises(TypeError, match=r"tasks\[0\] query y: .* got a MaskedArray of shape \(3,\)"):
        maml(case.loss_fn, case.theta, [(supports, (x, masked))], 0.1)
