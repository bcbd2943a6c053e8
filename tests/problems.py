"""What the tests are made of: random problems, and comparisons that can fail."""

from typing import Any, NamedTuple

import numpy as np
from autograd import grad
from hypothesis import assume
from hypothesis import strategies as st

from refmeta import anil, fomaml, joint, maml, reptile
from refmeta.models import MLP, ConvNet, cross_entropy, squared_error

ALGORITHMS = [maml, fomaml, anil, reptile, joint]
# Gradients of an objective; FOMAML and Reptile are derivatives only where the displacements φ − θ are frozen.
EXACT = [maml, anil, joint]


def tame(tree):
    """Only where no number has grown beyond what finite differences can see."""
    assume(np.abs(flat(tree)).max() < 1e4)


class Problem(NamedTuple):
    loss: Any
    theta: list
    tasks: list
    alpha: float
    net: Any

    @property
    def arguments(self):
        return self.loss, self.theta, self.tasks, self.alpha


def drawn(rng, net, classify, shapes, alpha, dtype="float64"):
    """A random θ, and a task of random numbers for each of the shapes (steps, shots, query)."""
    # Images have more numbers, and these are smaller: otherwise inner steps diverge.
    inputs, largest = (net.image, 0.7) if isinstance(net, ConvNet) else (net.widths[:1], 2)
    (outputs,) = net.shapes[-1]
    theta = [leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in net.init(rng, "glorot")]

    def batch(n):
        x = rng.uniform(-largest, largest, (n, *inputs)).astype(dtype)
        labels, targets = rng.integers(0, outputs, n), rng.normal(size=(n, outputs)).astype(dtype)
        return (x, labels) if classify else (x, targets)

    tasks = [([batch(n) for _ in range(k)], batch(m)) for k, n, m in shapes]
    loss = (cross_entropy if classify else squared_error)(net)
    return Problem(loss, [leaf.astype(dtype) for leaf in theta], tasks, alpha, net)


@st.composite
def networks(draw, kinds, activations, outputs):
    activation = draw(st.sampled_from(activations))
    if draw(st.sampled_from(kinds)) is ConvNet:
        image = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)), label="image")
        return ConvNet(image, (draw(st.integers(1, 2)),), outputs, activation)
    hidden = draw(st.lists(st.integers(1, 4), min_size=0, max_size=2), label="hidden")
    return MLP((draw(st.integers(1, 3)), *hidden, outputs), activation)


@st.composite
def problems(
    draw,
    kinds=(MLP, ConvNet),
    activations=("tanh", "relu"),
    dtypes=("float64",),
    steps=(1, 5),
    tasks=(1, 3),
    ragged=True,
):
    """A small net, tasks with any number of inner steps and examples, one of both losses: they tell algorithms apart.

    Every task takes a step unless `steps` starts at 0, there are two classes at least, and no network is dead.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32), label="seed"))
    classify = draw(st.booleans(), label="classify")
    net = draw(networks(kinds, activations, draw(st.integers(1 + classify, 3), label="outputs")))
    sizes = st.tuples(st.integers(*steps), st.integers(1, 4), st.integers(1, 5))
    shapes = draw(st.lists(sizes, min_size=tasks[0], max_size=tasks[1]), label="(steps, shots, query) of each task")
    if not ragged:
        shapes = [shapes[0]] * len(shapes)
    alpha = draw(st.sampled_from([0.01, 0.1, 0.3]), label="alpha")
    problem = drawn(rng, net, classify, shapes, alpha, draw(st.sampled_from(dtypes), label="dtype"))
    assume(alive(problem))
    return problem


def alive(problem):
    """Whether every batch gets through every hidden layer: the body of a dead relu net has no gradient."""
    batches = (batch for supports, query in problem.tasks for batch in [*supports, query])
    return all(value.any() for x, _ in batches for value in problem.net.layers(problem.theta, x))


def fixed(net, classify, steps, seed=0):
    """The first problem from this seed that is alive and away from kinks: two tasks of so many steps, α = 0.3."""
    rng = np.random.default_rng(seed)
    draws = (drawn(rng, net, classify, [(steps, 3, 4), (steps, 2, 3)], 0.3) for _ in range(1000))
    return next(p for p in draws if alive(p) and away_from_kinks(p) and away_from_kinks(p, 2))


def descent(loss, points, supports, alpha, head):
    """[φ_0 … φ_K] as a textbook has it, the last `head` arrays moving, of many θ at once: each array's first axis."""
    phis, first = [points], len(points) - head
    for batch in supports:
        g = grad(loss)(phis[-1], [np.broadcast_to(part, (len(points[0]), *part.shape)) for part in batch])
        step = [alpha * leaf * (i >= first) for i, leaf in enumerate(g)]
        phis.append([phi - s for phi, s in zip(phis[-1], step, strict=True)])
    return phis


def values(loss, points, batch):
    """The loss at each of many θ."""
    return np.array([loss([leaf[i] for leaf in points], batch) for i in range(len(points[0]))])


def adapted_loss(problem, head):
    """Σ L(φ_K(θ); Q) as a function of many θ: MAML is its gradient, ANIL with a smaller head, joint training with 0."""
    loss, _, tasks, alpha, _ = problem
    return lambda points: sum(values(loss, descent(loss, points, S, alpha, head)[-1], Q) for S, Q in tasks)


def frozen_loss(problem, terms):
    """Σ c L(θ + δ_k; B) as a function of many θ, the displacements δ_k = φ_k − θ frozen; the `terms` are (c, k, B)."""
    loss, theta, tasks, alpha, _ = problem
    one = [leaf[None] for leaf in theta]
    parts = []
    for supports, query in tasks:
        phis = descent(loss, one, supports, alpha, len(theta))
        parts += [(c, difference(phis[k], one), batch) for c, k, batch in terms(supports, query)]

    def function(points):
        moved = [[p + d for p, d in zip(points, delta, strict=True)] for _, delta, _ in parts]
        terms = [c * values(loss, phi, batch) for phi, (c, _, batch) in zip(moved, parts, strict=True)]
        return sum(terms, np.zeros(len(points[0])))

    return function


def difference(x, y):
    return [a - b for a, b in zip(x, y, strict=True)]


def function_of(algorithm, problem, head=2):
    """The function whose derivative at `problem.theta` the algorithm returns; it takes many θ at once."""
    moving = {maml: len(problem.theta), anil: head, joint: 0}
    if algorithm in moving:
        return adapted_loss(problem, moving[algorithm])
    terms = {
        fomaml: lambda S, Q: [(1, len(S), Q)],
        reptile: lambda S, Q: [(problem.alpha, k, batch) for k, batch in enumerate(S)],
    }
    return frozen_loss(problem, terms[algorithm])


def distance_to_kinks(problem, head=None):
    """The smallest |z| of all z that enter an activation while the last `head` arrays adapt (None: all).

    |z| = relu(z) + relu(−z), and −z is what a layer of the other sign has.
    """
    loss, theta, tasks, alpha, net = problem
    least = np.inf
    for supports, query in tasks:
        path = descent(loss, [leaf[None] for leaf in theta], supports, alpha, len(theta) if head is None else head)
        for phi, (x, _) in zip(path, [*supports, query], strict=True):
            phi = [leaf[0] for leaf in phi]
            for layer in range(len(phi) // 2 - 1):
                other = [-leaf if i // 2 == layer else leaf for i, leaf in enumerate(phi)]
                least = min(least, (net.layers(phi, x)[layer] + net.layers(other, x)[layer]).min())
    return least


def away_from_kinks(problem, head=None, margin=2e-3):
    """Whether no relu's input comes so near to 0 that a difference could reach across its kink."""
    return problem.net.activation != "relu" or distance_to_kinks(problem, head) > margin


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in tree])


def unflat(vectors, like):
    """(…, n) to arrays of the shapes of `like` after the same leading axes."""
    ends = np.cumsum([leaf.size for leaf in like])[:-1]
    parts = np.split(vectors, ends, axis=-1)
    return [part.reshape(*vectors.shape[:-1], *leaf.shape) for part, leaf in zip(parts, like, strict=True)]


def assert_same(got, expected, digits=11):
    """Equal up to rounding: ‖got − expected‖ ≤ 10^−digits (1 + ‖expected‖), over all arrays together."""
    assert [np.shape(leaf) for leaf in got] == [np.shape(leaf) for leaf in expected]
    difference = np.linalg.norm(flat(got) - flat(expected))
    assert difference <= 10.0**-digits * (1 + np.linalg.norm(flat(expected))), difference


def differences(function, theta, h=1e-4):
    """All partial derivatives by central differences of fourth order, and the size of the values."""
    at = flat(theta)
    moves = [k * h * move for k in (-2, -1, 1, 2) for move in np.eye(at.size)]
    values = function(unflat(at + moves, theta))
    f = values.reshape(4, at.size, *values.shape[1:])
    return (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * h), np.abs(values).max()


def assert_derivative(function, theta, gradient, h=1e-4):
    """Every coordinate of the gradient is the function's partial derivative, to rounding of its values and slopes."""
    assert [np.shape(leaf) for leaf in gradient] == [np.shape(leaf) for leaf in theta]
    slopes, size = differences(function, theta, h)
    error = np.abs(slopes - flat(gradient)).max()
    assert error <= 1e-10 * (size + np.linalg.norm(flat(gradient))), error


def assert_taylor(function, theta, gradient, direction):
    """|F(θ + hd) − F(θ) − h⟨g, d⟩| falls with h², or with a higher power where F has no curvature."""
    steps = np.array([4e-5, 1e-5])
    points = np.multiply.outer([0, *steps, *-steps], direction)
    at, *moved = function(unflat(flat(theta) + points, theta))
    sides = np.abs(np.array(moved).reshape(2, 2) - at - np.outer([1, -1], steps) * (flat(gradient) @ direction))
    far, near = sides.max(0)  # of both sides the larger: on one h² and h³ may cancel
    if far > 1e-13 * (1 + abs(at)):  # below that all is rounding: F is a straight line
        slope = np.log(far / near) / np.log(steps[0] / steps[1])
        assert slope > 1.8, slope
