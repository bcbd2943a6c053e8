"""What the tests are made of: random problems, and comparisons that can fail."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from refmeta import anil, fomaml, joint, maml, reptile
from refmeta.algorithms import trajectory
from refmeta.models import ACTIVATIONS, MLP, affine, cross_entropy, squared_error
from refmeta.trees import holding, split

ALGORITHMS = [maml, fomaml, anil, reptile, joint]
EXACT = [maml, anil]  # the gradients of an objective; the others are defined by their formulas


def tame(tree):
    """Only where no number has grown beyond what finite differences can see."""
    assume(np.abs(flat(tree)).max() < 1e4)


class Problem(NamedTuple):
    loss: Any
    theta: list
    tasks: list
    alpha: float
    net: MLP

    @property
    def arguments(self):
        return self.loss, self.theta, self.tasks, self.alpha


@st.composite
def problems(draw, activations=("tanh", "relu"), dtypes=("float64",), steps=(0, 5), ragged=True):
    """A small net, one to three tasks with any number of inner steps and examples, one of both losses."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32), label="seed"))
    hidden = draw(st.lists(st.integers(1, 4), min_size=0, max_size=2), label="hidden")
    outputs = draw(st.integers(1, 3), label="outputs")
    net = MLP((draw(st.integers(1, 3)), *hidden, outputs), activation=draw(st.sampled_from(activations)))
    classify = draw(st.booleans(), label="classify")
    dtype = draw(st.sampled_from(dtypes), label="dtype")
    theta = [leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in net.init(rng, "glorot")]

    def batch(n):
        x = rng.uniform(-2, 2, (n, net.widths[0])).astype(dtype)
        labels, targets = rng.integers(0, outputs, n), rng.normal(size=(n, outputs)).astype(dtype)
        return (x, labels) if classify else (x, targets)

    sizes = st.tuples(st.integers(*steps), st.integers(1, 4), st.integers(1, 5))
    shapes = draw(st.lists(sizes, min_size=1, max_size=3), label="(steps, shots, query) of each task")
    if not ragged:
        shapes = [shapes[0]] * len(shapes)
    tasks = [([batch(n) for _ in range(k)], batch(m)) for k, n, m in shapes]
    alpha = draw(st.sampled_from([0.01, 0.1, 0.3]), label="alpha")
    loss = (cross_entropy if classify else squared_error)(net)
    return Problem(loss, [leaf.astype(dtype) for leaf in theta], tasks, alpha, net)


def trajectory_of(loss, theta, supports, alpha, head=None):
    """[φ_0 … φ_K] when the last `head` arrays of θ move, or all: the specification's, the loss holding the body."""
    body, h = split(theta, len(theta) if head is None else head)
    return [body + h for h in trajectory(holding(body, loss), h, supports, alpha)]


def objective_of(loss, theta, tasks, alpha, head=None):
    """Σ L(φ_i; Q_i), φ_i the ends of `trajectory_of`: what MAML, or ANIL, is the gradient of."""
    return sum(loss(trajectory_of(loss, theta, supports, alpha, head)[-1], query) for supports, query in tasks)


def away_from_kinks(problem, head=None, margin=5e-3):
    """Only problems where no pre-activation of a relu comes near 0 on the way, and nothing blows up."""
    if problem.net.activation == "relu":
        for supports, query in problem.tasks:
            phis = trajectory_of(problem.loss, problem.theta, supports, problem.alpha, head)
            for phi, (x, _) in zip(phis, [*supports, query], strict=True):
                for layer in range(0, len(phi) - 2, 2):
                    z = affine(x, phi[layer], phi[layer + 1])
                    assume(np.abs(z).min() > margin)
                    x = ACTIVATIONS["relu"](z)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in tree])


def unflat(vector, like):
    ends = np.cumsum([leaf.size for leaf in like])[:-1]
    return [part.reshape(leaf.shape) for part, leaf in zip(np.split(vector, ends), like, strict=True)]


def assert_same(got, expected, digits=11):
    """Equal up to rounding: ‖got − expected‖ ≤ 10^−digits (1 + ‖expected‖), over all arrays together."""
    assert [np.shape(leaf) for leaf in got] == [np.shape(leaf) for leaf in expected]
    difference = np.linalg.norm(flat(got) - flat(expected))
    assert difference <= 10.0**-digits * (1 + np.linalg.norm(flat(expected))), difference


def assert_derivative(function, theta, gradient, directions, h=1e-4):
    """Central differences of fourth order along each direction agree with the gradient to 7 digits."""
    point, g = flat(theta), flat(gradient)
    for d in directions:
        f = {k: float(function(unflat(point + k * h * d, theta))) for k in (-2, -1, 1, 2)}
        slope = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
        scale = 1 + abs(f[1]) + np.linalg.norm(g) * np.linalg.norm(d)
        assert abs(slope - g @ d) <= 1e-7 * scale, (slope, g @ d)


def assert_taylor(function, theta, gradient, direction):
    """|F(θ + hd) − F(θ) − h⟨g, d⟩| falls with h², or with a higher power where F has no curvature."""
    point, g = flat(theta), flat(gradient)
    at = float(function(theta))
    steps = np.array([4e-3, 1e-3])

    def remainder(h):  # the larger of both sides: on one side h² and h³ terms may cancel
        sides = [float(function(unflat(point + k * direction, theta))) - at - k * (g @ direction) for k in (h, -h)]
        return max(abs(side) for side in sides)

    remainders = [remainder(h) for h in steps]
    if remainders[0] > 1e-10 * (1 + abs(at)):  # below that all is rounding: F is a straight line
        slope = np.log(remainders[0] / remainders[1]) / np.log(steps[0] / steps[1])
        assert slope > 1.8, slope
