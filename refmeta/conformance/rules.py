"""One task's gradient as a program of independent choices, from a loss's derivatives alone.

The rules never call the specification: they derive the same gradients once more, on any arrays that add and multiply
(floats, rationals, 50-digit decimals). Every field of a `Setting` is a choice. An algorithm makes some of them, and a
mistake (`mistakes`) changes one, so any two mistakes can be combined.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import autograd.numpy as anp
import numpy as np
from autograd import make_vjp
from autograd.tracer import getval

from refmeta.trees import Batch, Supports, Tasks, Theta, add, axpy


class Derivatives(NamedTuple):
    """The derivatives of a loss L: grad(φ, B) = ∇L(φ; B) and hvp(φ, B, v) = ∇²L(φ; B) v.

    Where the network is known: gauss, its Gauss–Newton product; of(name), the derivatives of another loss.
    """

    grad: Callable[[Theta, Batch], Theta]
    hvp: Callable[[Theta, Batch, Theta], Theta]
    gauss: Callable[[Theta, Batch, Theta], Theta] | None = None
    of: Callable[[str], "Derivatives"] | None = None


class Update(NamedTuple):
    """How a gradient becomes an inner step: plain SGD, unless a mistake changes it. The names are PyTorch's."""

    kind: str = "sgd"  # a key of KINDS
    momentum: float = 0
    decay: float = 0
    clamp: float = float("inf")
    norm: float = float("inf")
    constant: bool = False  # a norm is not differentiated
    inside: float = 0  # added under the root
    pull: float = 0  # of a proximal term, towards θ


Term = tuple[int, Batch, Any]  # (k, batch, weight): weight L(φ_k; batch)
Outer = Callable[["Setting"], list[Term]]


def at_the_end(s: "Setting") -> list[Term]:
    return [(len(s.supports), s.query, 1)]


def at_theta(s: "Setting") -> list[Term]:
    return [(0, s.query, 1)]


def hessian(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: "Setting") -> Theta:
    return d.hvp(phi, batch, v)


class Setting(NamedTuple):
    """Everything that determines one task's gradient.

    outer: the losses that count, (k, batch, weight) for weight L(φ_k; batch). curved: where the curvature of step k is
    taken, (j, batch) for φ_j. A displacement is φ_origin − φ_K.
    """

    theta: Theta
    supports: Supports
    query: Batch
    alpha: Any
    rates: tuple[Any, ...]  # of each array, times α: 0 where the inner loop does not move it
    n: int | None = None  # examples of a support batch; None where a batch has no examples
    outputs: int | None = None  # of a network under squared error
    summed: bool | None = None  # whether the loss is a sum over the examples; None: unknown
    tasks: Tasks = []  # noqa: RUF012 - the settings of a task's neighbours; nobody writes into it
    place: int = 0
    split: bool = False  # into a body and a head, even where one is empty
    loss: str = ""  # another one, of the query
    loss_inside: str = ""
    start: Theta | None = None  # φ_0, where it is not θ
    update: Update = Update()
    pace: Callable[["Setting", int], Any] | None = None  # of step k, times α
    restarts: bool = False  # a step subtracts from θ, not from φ_k
    lag: int = 0  # a step's gradient is taken at φ_{k − lag}
    displaced: bool = False
    origin: int = 0
    towards: int | None = None  # the mean of φ_towards … φ_K stands for φ_K at the end
    outer: Outer = at_the_end
    direct: tuple[Any, ...] | None = None  # of each array, the share of the outer loss's own gradient
    curvature: Callable[..., Theta] | None = hessian
    curved: Callable[["Setting", int], tuple[int, Batch]] = lambda s, k: (max(k - s.lag, 0), s.supports[k])
    through: Callable[[int, int], bool] = lambda k, steps: True
    back: Any = 1  # times α in (I − αH)
    alpha_back: Any = None  # in the place of α in (I − αH)
    linear: bool = False  # every step's curvature meets v_K, not v_{k+1}
    each: tuple[Callable[[Theta, Theta], Theta], ...] = ()  # (gradient of one task, θ) -> gradient
    leaks: bool = False  # the next task starts where this one ended
    together: bool = False  # the next task takes its steps after this one's, and all are differentiated
    after: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = ()  # (result, θ) -> result, flat

    @property
    def adapts(self) -> bool:
        """Whether there is an inner loop: in all but joint training."""
        return bool(self.supports) and (self.displaced or self.outer is not at_theta)

    @property
    def differentiates(self) -> bool:
        """Whether the inner loop is differentiated."""
        return self.adapts and not self.displaced and self.curvature is not None


ALGORITHMS: dict[str, dict[str, Any]] = {
    "maml": {},
    "fomaml": {"curvature": None},
    "anil": {"split": True},
    "reptile": {"curvature": None, "displaced": True},
    "joint": {"curvature": None, "outer": at_theta},
}


def setting(algorithm: str, theta: Theta, task: tuple[Supports, Batch], alpha: Any, head: int | None) -> Setting:
    """One task of an algorithm without mistakes; the head counts for ANIL alone."""
    rates = moves(len(theta), head if algorithm == "anil" else None)
    return Setting(theta, *task, alpha, rates, **ALGORITHMS[algorithm])


def moves(arrays: int, head: int | None) -> tuple[bool, ...]:
    """Which of θ's arrays adapt: the last `head`, or all."""
    return tuple(head is None or i >= arrays - head for i in range(arrays))


def gradients(d: Derivatives, settings: Iterable[Setting]) -> list[Theta]:
    """The gradient of every task by its own choices."""
    found, start, before = [], None, list[Batch]()
    for s in settings:
        if s.leaks and start is not None:
            s = s._replace(theta=start)
        if s.together:
            s = s._replace(supports=before + s.supports)
        found.append(gradient(d, s))
        start, before = path(d, s)[-1] if s.leaks else None, s.supports
    return found


def finished(per_task: np.ndarray, settings: Sequence[Setting]) -> np.ndarray:
    """The tasks' gradients, a row each; if a mistake changes their sum, the result of that in the first row."""
    total, theta = per_task.sum(0), flat(settings[0].theta)
    for change in settings[0].after if len(theta) == len(total) else ():  # and of no sketch
        total = change(total, theta)
        per_task = np.concatenate([total[None], 0 * per_task[1:]])
    return per_task


def gradient(d: Derivatives, s: Setting) -> Theta:
    """Of one task: v_0 of the way back, or the displacement."""
    if s.displaced:
        phis = path(d, s)
        found = axpy(-1, mean(phis[s.towards :] or phis) if s.towards is not None else phis[-1], phis[s.origin])
    else:
        found = adjoints(d, s)[0]
    for change in s.each:
        found = change(found, s.theta)
    return found


def path(d: Derivatives, s: Setting) -> list[Theta]:
    """φ_0 … φ_K: φ ← φ − α P ∇L(φ; S), P zero on the arrays that do not move."""
    return walk(d, s, len(s.supports))[0]


def walk(d: Derivatives, s: Setting, steps: int) -> tuple[list[Theta], list[Any]]:
    """φ_0, φ_1, …, and the parts of each step: φ, the gradient, and the optimiser's memory."""
    d = with_loss(d, s.loss_inside)
    phis, made = [s.start or s.theta], list[Any]()
    memory = np.array([0, 0, 1])[:, None] * flat(phis[0]) if s.update != Update() else None
    for k, support in enumerate(s.supports[:steps]):
        base, g = phis[0 if s.restarts else k], d.grad(phis[max(k - s.lag, 0)], support)
        made.append((base, g, memory))
        if s.update == Update():
            phis.append(axpy(-rate(s, k), kept(g, s.rates), base))
        else:
            phi, memory = step(s, k, flat(base), flat(g), memory)
            phis.append(unflat(phi, base))
    return phis, made


def rate(s: Setting, k: int) -> Any:
    """α at step k."""
    return s.alpha * s.pace(s, k) if s.pace else s.alpha


def adjoints(d: Derivatives, s: Setting) -> list[Theta]:
    """v_0 … v_K: of the losses that count the gradient with respect to φ_0 … φ_K.

    v_k = v_{k+1} − α ∇²L(φ_k; S_k) P v_{k+1} + Σ ∇L(φ_k; B)
    """
    outer = s.outer(s)
    last = max((k for k, *_ in outer), default=0)
    phis, made = walk(d, s, last)
    d, of_query = with_loss(d, s.loss_inside), with_loss(d, s.loss)
    vs: list[Any] = [None] * (last + 1)
    for k, batch, weight in outer:
        places = [k] if s.towards is None else range(min(s.towards, k), k + 1)
        g = of_query.grad(mean([phis[j] for j in places]), batch)
        for j in places:
            vs[j] = plus(vs[j], weight / len(places), kept(g, s.direct) if s.direct else g)
    memory = np.zeros((3, sum(map(np.size, s.theta))))
    for k in reversed(range(last)):
        v, base, at = vs[k + 1] or [0 * leaf for leaf in s.theta], 0 if s.restarts else k, max(k - s.lag, 0)
        factor = -(rate(s, k) if s.alpha_back is None else s.alpha_back) * s.back
        through = s.through(k, len(s.supports))
        if s.update == Update() or not (through and s.curvature):  # first order: φ_K is taken for θ
            w = kept(vs[last] if s.linear else v, s.rates)
        else:
            v, w, memory = step_back(s, k, made[k], v, memory)
            factor = s.back
        vs[base] = plus(vs[base], 1, v)
        if through and s.curvature:
            j, batch = s.curved(s, k)
            vs[at] = plus(vs[at], factor, s.curvature(d, phis[min(j, last)], batch, w, s))
    vs[0] = plus(vs[0], 1, unflat(memory[2], s.theta)) if s.update.pull else vs[0]
    return [v or [0 * leaf for leaf in s.theta] for v in vs]


def with_loss(d: Derivatives, name: str) -> Derivatives:
    return d.of(name) if name and d.of else d


def mean(thetas: list[Theta]) -> Theta:
    return thetas[0] if len(thetas) == 1 else [leaf / len(thetas) for leaf in add(thetas)]


def plus(y: Theta | None, a: Any, x: Theta) -> Theta:
    """y + a x, where y may be nothing yet."""
    return axpy(a, x, y) if y is not None else x if a == 1 else [a * leaf for leaf in x]


def points(d: Derivatives, s: Setting) -> list[tuple[Theta, Batch]]:
    """(φ_0, S_0) … (φ_{K−1}, S_{K−1}): where the inner gradients are taken."""
    return list(zip(path(d, s), s.supports, strict=False))


def kept(v: Theta, shares: Sequence[Any]) -> Theta:
    """P v: each array times its share; zero where nothing moves."""
    return [leaf if share is True or share == 1 else share * leaf for leaf, share in zip(v, shares, strict=True)]


# --- Other updates, on flat arrays ---


def step(s: Setting, k: int, phi: Any, g: Any, memory: Any) -> tuple[Any, Any]:
    """φ and the memory after step k, as in torch.optim. The memory: of gradients, of their squares, and φ_0."""
    u, (m, squares, start) = s.update, memory
    g = g + u.decay * phi + u.pull * (phi - start)
    g = anp.clip(g, -u.clamp, u.clamp) if u.clamp < np.inf else g
    size = length(getval(g) if u.constant else g)
    g = g * (u.norm / size) if u.norm < size else g
    if u.kind in ("adam", "rmsprop", "adagrad"):
        first, second = {"adam": (0.9, 0.999), "rmsprop": (0, 0.99), "adagrad": (0, 1)}[u.kind]
        m, squares = first * m + (1 - first) * g, second * squares + ((1 - second) or 1) * g * g
        unbiased = [(1 - b ** (k + 1)) if u.kind == "adam" else 1 for b in (first, second)]
        outside = 0 if u.inside else 1e-10 if u.kind == "adagrad" else 1e-8
        moved = m / unbiased[0] / (anp.sqrt(squares / unbiased[1] + u.inside) + outside)
    else:
        m = u.momentum * m + (1 - u.momentum if u.kind == "average" else 1) * g
        ways: dict[str, Callable[[], Any]] = {
            "nesterov": lambda: g + u.momentum * m,
            "mean": lambda: m / (k + 1),
            "sign": lambda: anp.sign(g),
            "unit": lambda: g / size,
            "unit_arrays": lambda: anp.concatenate([anp.ravel(part) / length(part) for part in unflat(g, s.theta)]),
        }
        moved = ways.get(u.kind, lambda: m)()
    rates = np.concatenate([np.full(leaf.size, share, float) for leaf, share in zip(s.theta, s.rates, strict=True)])
    return phi - rate(s, k) * rates * moved, anp.stack([m + 0 * phi, squares + 0 * phi, start + 0 * phi])


def length(g: Any) -> Any:
    return anp.sqrt(anp.sum(g**2))


def step_back(s: Setting, k: int, made: Any, v: Theta, memory: Any) -> tuple[Theta, Theta, Any]:
    """The adjoints of φ, of the gradient and of the memory before step k, from those after it."""
    base, g, before = made

    def packed(t: Any) -> Any:
        phi, after = step(s, k, t[0], t[1], t[2:])
        return anp.concatenate([phi[None], after])

    vjp, _ = make_vjp(packed)(np.stack([flat(base), flat(g), *before]))
    back = vjp(np.stack([flat(v), *memory]))
    return unflat(back[0], base), unflat(back[1], base), back[2:]


def flat(theta: Theta) -> np.ndarray:
    """All arrays as one float64 vector."""
    if len(theta) == 1:
        return np.asarray(theta[0], float).reshape(-1)
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in theta])


def unflat(t: np.ndarray, like: Theta) -> Theta:
    """The vector's numbers as arrays of these shapes."""
    ends = accumulate(leaf.size for leaf in like)
    return [t[end - leaf.size : end].reshape(leaf.shape) for end, leaf in zip(ends, like, strict=True)]
