"""One task's gradient as a program of independent choices, from a loss's derivatives alone.

The rules never call the specification: they derive the same gradients once more, on any arrays that add and multiply
(floats, rationals, 50-digit decimals). Every field of a `Setting` is a choice. An algorithm makes some of them, and a
mistake (`mistakes`) changes one, so any two mistakes can be combined.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from refmeta.trees import Batch, Supports, Tasks, Theta, add, axpy, dot


class Derivatives(NamedTuple):
    """The derivatives of a loss L: grad(φ, B) = ∇L(φ; B) and hvp(φ, B, v) = ∇²L(φ; B) v.

    Where the network is known: gauss, its Gauss–Newton product; of(name), the derivatives of another loss. value: L.
    """

    grad: Callable[[Theta, Batch], Theta]
    hvp: Callable[[Theta, Batch, Theta], Theta]
    gauss: Callable[[Theta, Batch, Theta], Theta] | None = None
    of: Callable[[str], "Derivatives"] | None = None
    value: Callable[[Theta, Batch], Any] | None = None


def remembered(function: Callable[..., Theta], most: int) -> Callable[..., Theta]:
    """The same function; it keeps its first results, those of the right gradients."""
    known: dict[Any, tuple[Theta, Batch]] = {}  # a batch that is kept has an id that no other gets

    def first_time(phi: Theta, batch: Batch, *v: Theta) -> Theta:
        key = (hash(b"".join(leaf.tobytes() for tree in (phi, *v) for leaf in tree)), id(batch[0]), id(batch[1]))
        if key in known:
            return known[key][0]
        found = function(phi, batch, *v)
        if len(known) < most:
            known[key] = found, batch
        return found

    return first_time


class Update(NamedTuple):
    """How a gradient becomes an inner step: plain SGD, unless a mistake changes it. The names are PyTorch's."""

    kind: str = "sgd"  # or nesterov, average, mean, sign, or one of ADAPTIVE
    momentum: float = 0
    decay: float = 0
    clamp: float = float("inf")
    tie: float = 0  # the share of what lies on a bound, of clamp or norm, that is differentiated otherwise
    norm: float = float("inf")
    unit: bool = False  # a shorter gradient gets that norm too
    apart: bool = False  # of every array, not of all
    constant: bool = False  # a norm is not differentiated
    inside: float = 0  # added under the root
    pull: float = 0  # of a proximal term, towards θ


# The shares that two averages keep. Adam's hat: ε is added to the root before its bias is corrected.
ADAPTIVE = {"adam": (0.9, 0.999), "adam_hat": (0.9, 0.999), "adam_raw": (0, 0.999), "rmsprop": (0, 0.99)}
ADAPTIVE |= {"adagrad": (0, 1)}
Term = tuple[int, Batch, Any]  # (k, batch, weight): weight L(φ_k; batch); −1 is K, −2 is K − 1
Outer = Callable[["Setting"], list[Term]]


def at_the_end(s: "Setting") -> list[Term]:
    return [(-1, s.query, 1)]


def at_theta(s: "Setting") -> list[Term]:
    return [(0, s.query, 1)]


def hessian(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: "Setting") -> Theta:
    return d.hvp(phi, batch, v)


class Setting(NamedTuple):
    """Everything that determines one task's gradient.

    outer: the losses that count, (k, batch, weight) for weight L(φ_k; batch). curved_at, curved_on: the j and the
    batch of ∇²L(φ_j; batch) on the way back through step k. A displacement is φ_origin − φ_K.
    """

    theta: Theta
    supports: Supports
    query: Batch
    alpha: Any
    rates: tuple[Any, ...]  # of each array, times α: 0 where the inner loop does not move it
    n: int | None = None  # examples of a support batch; None where a batch has no examples
    outputs: int | None = None  # of a network under squared error
    divisor: Any = 1  # the tasks' sum is divided by it
    summed: bool | None = None  # whether the loss is a sum over the examples; None: unknown
    tasks: Tasks = []  # noqa: RUF012 - the settings of a task's neighbours; nobody writes into it
    place: int = 0
    split: bool = False  # into a body and a head, even where one is empty
    loss: str = ""  # another one, of the query
    loss_inside: str = ""
    ridge: tuple[Any, Any] = (None, None)  # the inner and the outer loss have so much ½‖·‖² of each array in them
    least: Any = 0  # a step whose support loss is below it is left out
    ends: bool = False  # and all after it
    start: Theta | None = None  # φ_0, where it is not θ
    update: Update = Update()
    pace: Callable[["Setting", int], Any] | None = None  # of step k, times α
    restarts: bool = False  # a step subtracts from θ, not from φ_k
    starts: tuple[int, ...] = ()  # steps that begin at θ: those of a task after another whose memory goes on
    in_turn: bool = False  # a step moves one array: of the first, the second, … step the first, the second, …
    scale: Any = 1  # of a displacement, by the case's convention
    lag: int = 0  # a step's gradient is taken at φ_{k − lag}
    displaced: bool = False
    origin: int = 0
    towards: int | None = None  # the mean of φ_towards … φ_K stands for φ_K at the end
    outer: Outer = at_the_end
    best_from: int | None = None  # of φ_best_from … φ_K the outer loss is taken where it is least
    direct: tuple[Any, ...] | None = None  # of each array, the share of the outer loss's own gradient
    curvature: Callable[..., Theta] | None = hessian
    curved_at: Callable[["Setting", int], int] = lambda s, k: s.at(k)
    curved_on: Callable[["Setting", int], Batch] = lambda s, k: s.supports[k]
    detached: bool = False  # without a curvature the rest of a step, as a decay, is differentiated all the same
    through: Callable[[int, int], bool] = lambda k, steps: True
    cut: Callable[[int, int], bool] = lambda k, steps: False  # φ is a constant there, but perhaps not its gradient
    back: Any = 1  # times α in (I − αH)
    alpha_back: Any = None  # in the place of α in (I − αH)
    linear: bool = False  # every step's curvature meets v_K, not v_{k+1}
    each: tuple[Callable[[Theta, Theta], Theta], ...] = ()  # (gradient of one task, θ) -> gradient
    plain: Outer | None = None  # losses whose gradients at φ_k are added as they are
    pieces: Callable[["Setting", Batch], list[Batch]] | None = None  # a loss is the mean of theirs, inside
    pieces_outside: Callable[["Setting", Batch], list[Batch]] | None = None
    mixed: tuple[Any, ...] | None = None  # the arrays of φ_k that the outer loss is taken at; the others are θ's
    elsewhere: Any = False  # the outer loss is taken at the mean of all tasks' φ_K
    spared: tuple["Setting", tuple[Any, ...]] | None = None  # all else is so in these arrays alone
    leaks: Any = False  # the next task starts where this one ended, or this share of the way
    descends: Any = 0  # the next task starts after an outer step of this size
    together: bool = False  # the next task takes its steps after this one's, and all are differentiated
    remembers: bool = False  # the next task goes on with the optimiser's memory
    after: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = ()  # (result, θ) -> result, flat
    by_losses: Callable[[np.ndarray], np.ndarray] | None = None  # what the tasks' query losses weight them by

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def base(self, k: int) -> int:
        """Of which φ step k subtracts."""
        return 0 if self.restarts or k in self.starts else k

    def at(self, k: int) -> int:
        """At which φ step k takes its gradient."""
        return 0 if k in self.starts else max(k - self.lag, 0)

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
    found, start, before, starts, settings = list[Theta](), None, list[Batch](), tuple[int, ...](), list(settings)
    middle = mean([path(d, s)[-1] for s in settings]) if any(s.elsewhere for s in settings) else False
    if d.value and any(s.by_losses for s in settings):
        losses = np.array([d.value(path(d, s)[0 if s.outer is at_theta else -1], s.query) for s in settings], float)
        settings = [weighted(s, s.by_losses(losses)[i]) if s.by_losses else s for i, s in enumerate(settings)]
    for s in settings:
        s = s._replace(elsewhere=s.elsewhere and middle, theta=start or s.theta)
        if s.together or s.remembers:
            starts = (*starts, len(before)) if s.remembers else ()
            s = s._replace(supports=before + s.supports, starts=starts)
        s = early(d, s) if s.least and d.value else s
        found.append(gradient(d, s))
        if s.leaks or s.descends:
            end = path(d, s)[-1] if s.leaks else axpy(-s.descends * s.scale, found[-1], s.theta)
            start = end if s.leaks in (0, 1) else axpy(s.leaks, axpy(-1, s.theta, end), s.theta)
        before = s.supports
    return found


def early(d: Derivatives, s: Setting) -> Setting:
    """A task without the steps whose support loss is too small."""
    taken = list[Batch]()
    for batch in s.supports:
        small = d.value and d.value(path(d, s._replace(supports=taken))[-1], batch) < s.least
        if small and s.ends:
            break
        taken += [] if small else [batch]
    return s._replace(supports=taken)


def weighted(s: Setting, weight: Any) -> Setting:
    """The gradient of this task counts so much."""
    return s._replace(each=(lambda g, theta: [weight * leaf for leaf in g], *s.each))


def finished(per_task: np.ndarray, settings: Sequence[Setting]) -> np.ndarray:
    """The tasks' gradients, a row each; if a mistake changes their sum, the result of that in the first row."""
    total, theta = per_task.sum(0), flat(settings[0].theta)
    for change in settings[0].after if len(theta) == len(total) else ():  # and of no sketch
        total = change(total, theta)
        per_task = np.concatenate([total[None], 0 * per_task[1:]])
    return per_task


def gradient(d: Derivatives, s: Setting) -> Theta:
    """Of one task: v_0 of the way back, or the displacement."""
    if s.spared:
        right, shares = s.spared
        right = right._replace(theta=s.theta, elsewhere=right.elsewhere and s.elsewhere)
        rest, s = gradient(d, right), s._replace(spared=None)
        mine = gradient(d, s) if any(shares) else rest
        return [a if share else b for a, b, share in zip(mine, rest, shares, strict=True)]
    if s.displaced:
        phis = path(d, s)
        end = mean(phis[s.towards :] or phis) if s.towards is not None else phis[-1]
        found = axpy(-1, end, phis[s.origin % len(phis)])
    else:
        found = adjoints(d, s)[0]
    for k, batch, weight in s.plain(s) if s.plain else []:
        found = axpy(weight, d.grad(path(d, s)[k % (len(s.supports) + 1)], batch), found)
    for change in s.each:
        found = change(found, s.theta)
    return found


def path(d: Derivatives, s: Setting) -> list[Theta]:
    """φ_0 … φ_K: φ ← φ − α P ∇L(φ; S), P zero on the arrays that do not move."""
    return walk(d, s, len(s.supports))[0]


def walk(d: Derivatives, s: Setting, steps: int) -> tuple[list[Theta], list[Any]]:
    """φ_0, φ_1, …, and the parts of each step: φ, the gradient, and the optimiser's memory."""
    d = with_loss(d, s, outside=False)
    phis, made = [s.start or s.theta], list[Any]()
    memory = np.array([0, 0, 1])[:, None] * flat(phis[0]) if s.update != Update() else None
    for k, support in enumerate(s.supports[:steps]):
        base, g = phis[s.base(k)], d.grad(phis[s.at(k)], support)
        made.append((base, g, memory))
        if s.update == Update():
            phis.append(axpy(-rate(s, k), kept(g, moving(s, k)), base))
        else:
            phi, memory = step(s, k, flat(base), flat(g), memory)
            phis.append(unflat(phi, base))
    return phis, made


def rate(s: Setting, k: int) -> Any:
    """α at step k."""
    return s.alpha * s.pace(s, k) if s.pace else s.alpha


def moving(s: Setting, k: int) -> Sequence[Any]:
    """How fast each array moves at step k, times α."""
    return [rate * (k % len(s.rates) == i) for i, rate in enumerate(s.rates)] if s.in_turn else s.rates


def adjoints(d: Derivatives, s: Setting) -> list[Theta]:
    """v_0 … v_K: of the losses that count the gradient with respect to φ_0 … φ_K.

    v_k = v_{k+1} − α ∇²L(φ_k; S_k) P v_{k+1} + Σ ∇L(φ_k; B)
    """
    outer = counted(d, s)
    last = max((k for k, *_ in outer), default=0)
    phis, made = walk(d, s, last)
    vs, d = outer_gradients(with_loss(d, s, outside=True), s, outer, phis), with_loss(d, s, outside=False)
    memory = np.zeros((3, sum(map(np.size, s.theta))))
    for k in reversed(range(last)):
        v, base, at = vs[k + 1] or [0 * leaf for leaf in s.theta], s.base(k), s.at(k)
        factor = -(rate(s, k) if s.alpha_back is None else s.alpha_back) * s.back
        through = s.through(k, len(s.supports))
        if s.update == Update() or not through or not (s.curvature or s.detached):  # φ_K is taken for θ
            w = kept(vs[last] if s.linear else v, moving(s, k))
        else:
            v, w, memory = step_back(s, k, made[k], v, memory)
            factor = s.back
        vs[base] = plus(vs[base], 1, v) if not s.cut(k, len(s.supports)) else vs[base]
        if through and s.curvature:
            j = min(s.curved_at(s, k), last)
            vs[at] = plus(vs[at], factor, s.curvature(d, phis[j], s.curved_on(s, k), w, s))
    vs[0] = plus(vs[0], 1, unflat(memory[2], s.theta)) if s.update.pull else vs[0]
    return [v or [0 * leaf for leaf in s.theta] for v in vs]


def counted(d: Derivatives, s: Setting) -> list[Term]:
    """The losses that count, at φ_0 … φ_K."""
    if s.best_from is not None and d.value and len(s.supports) >= s.best_from:
        values = [d.value(phi, s.query) for phi in path(d, s)[s.best_from :]]
        return [(s.best_from + int(np.argmin(values)), s.query, 1)]
    return [(k % (len(s.supports) + 1), batch, weight) for k, batch, weight in s.outer(s)]


def outer_gradients(d: Derivatives, s: Setting, outer: list[Term], phis: list[Theta]) -> list[Any]:
    """Their own gradients with respect to each φ; None where no loss is taken."""
    vs: list[Any] = [None] * len(phis)
    for k, batch, weight in outer:
        places = [k] if s.towards is None else range(min(s.towards, k), k + 1)
        at = s.elsewhere or mean([phis[j] for j in places])
        here, apart = s.mixed or (True,) * len(at), [not share for share in s.mixed or ()]
        g = d.grad(add([kept(at, here), kept(phis[0], apart)]) if s.mixed else at, batch)
        vs[0] = plus(vs[0], weight, kept(g, apart)) if s.mixed else vs[0]
        for j in places:
            vs[j] = plus(vs[j], weight / len(places), kept(kept(g, here), s.direct or here))
    return vs


def with_loss(d: Derivatives, s: Setting, outside: bool) -> Derivatives:
    """The derivatives of the loss that is taken, inside or outside, for the right one."""
    name, pieces = (s.loss, s.pieces_outside) if outside else (s.loss_inside, s.pieces)
    d = root(d) if name == "root" and d.value else d.of(name) if name and d.of else d
    d = ridged(d, ridge) if (ridge := s.ridge[outside]) else d

    def of(function: Any, pieces: Any = pieces) -> Any:
        return lambda phi, batch, *v: mean([function(phi, piece, *v) for piece in pieces(s, batch)])

    return d._replace(grad=of(d.grad), hvp=of(d.hvp), gauss=d.gauss and of(d.gauss)) if pieces else d


def ridged(d: Derivatives, c: Sequence[Any]) -> Derivatives:
    """The derivatives of L + Σ c_i/2 ‖φ_i‖² over the arrays."""
    return d._replace(
        grad=lambda phi, b: add([kept(phi, c), d.grad(phi, b)]),
        hvp=lambda phi, b, v: add([kept(v, c), d.hvp(phi, b, v)]),
    )


def root(d: Derivatives) -> Derivatives:
    """The derivatives of √|L|."""

    def parts(phi: Theta, batch: Batch) -> tuple[Theta, Any, Any]:
        value = d.value(phi, batch) if d.value else 0
        return d.grad(phi, batch), value, 0.5 * np.sign(value) / np.sqrt(abs(value))

    def grad(phi: Theta, batch: Batch) -> Theta:
        g, _, slope = parts(phi, batch)
        return [slope * leaf for leaf in g]

    def hvp(phi: Theta, batch: Batch, v: Theta) -> Theta:
        g, value, slope = parts(phi, batch)
        return [slope * leaf for leaf in axpy(-dot(g, v) / (2 * value), g, d.hvp(phi, batch, v))]

    return d._replace(grad=grad, hvp=hvp, gauss=None)


def mean(thetas: list[Theta]) -> Theta:
    return thetas[0] if len(thetas) == 1 else [leaf / len(thetas) for leaf in add(thetas)]


def plus(y: Theta | None, a: Any, x: Theta) -> Theta:
    """y + a x, where y may be nothing yet."""
    return axpy(a, x, y) if y is not None else x if a == 1 else [a * leaf for leaf in x]


def kept(v: Theta, shares: Sequence[Any]) -> Theta:
    """P v: each array times its share; zero where nothing moves."""
    return [leaf if share is True or share == 1 else share * leaf for leaf, share in zip(v, shares, strict=True)]


# --- Other updates, on flat arrays ---


def step(s: Setting, k: int, phi: Any, g: Any, memory: Any) -> tuple[Any, Any]:
    """φ and the memory after step k, as torch.optim makes them. The memory: of gradients, of their squares, and φ_0."""
    g = regular(s.update, phi, g, memory[2])
    way, m, squares = moved(s, k, g * shares(s, g), *memory[:2])
    return phi + way, np.stack([m, squares, memory[2]])


def regular(u: Update, phi: Any, g: Any, start: Any) -> Any:
    """The gradient with what pulls φ to 0 or to φ_0, and its numbers clipped."""
    g = g + u.decay * phi + u.pull * (phi - start)
    if u.clamp == np.inf:
        return g
    bound = u.clamp * np.sign(g.real)
    return np.where(abs(g.real) < u.clamp, g, bound + (abs(g.real) == u.clamp) * u.tie * (g - g.real))


def sums(s: Setting, a: Any) -> Any:
    """The sum of a flat array, or of each of its parts, in the place of every number."""
    return np.concatenate([np.full(part.size, part.sum()) for part in (unflat(a, s.theta) if s.update.apart else [a])])


def shares(s: Setting, g: Any) -> Any:
    """What a clip of the norm multiplies a gradient by."""
    found = s.update.norm / np.maximum(np.sqrt(sums(s, g * g)), 1e-300) if s.update.norm < np.inf else 1.0
    return found if s.update.unit else np.minimum(found, 1)


def moved(s: Setting, k: int, g: Any, m: Any, squares: Any) -> tuple[Any, ...]:
    """The way φ goes in a step along g, and the memory after it, number by number."""
    u = s.update
    if u.kind in ADAPTIVE:
        first, second = ADAPTIVE[u.kind]
        m, squares = first * m + (1 - first) * g, second * squares + ((1 - second) or 1) * g * g
        unbiased = [(1 - b ** (k + 1)) if "adam" in u.kind else 1 for b in (first, second)]
        outside = 0 if u.inside else 1e-10 if u.kind == "adagrad" else 1e-8
        outside /= unbiased[1] ** 0.5 if u.kind == "adam_hat" else 1
        way = m / unbiased[0] / (np.sqrt(squares / unbiased[1] + u.inside) + outside)
    else:
        m = u.momentum * m + (1 - u.momentum if u.kind == "average" else 1) * g
        ways = {"nesterov": g + u.momentum * m, "mean": m / (k + 1), "sign": np.sign(g.real)}
        way = ways.get(u.kind, m)
    rates = np.concatenate(
        [np.full(leaf.size, share, float) for leaf, share in zip(s.theta, moving(s, k), strict=True)]
    )
    return -rate(s, k) * rates * way, m, squares


def pulled(function: Callable[..., Any], at: Sequence[Any], v: Any) -> Any:
    """v pulled back through a function that works number by number, by a complex step in each argument."""
    rows = np.stack(at) + 1e-30j * np.eye(len(at))[:, :, None]
    return (v[:, None] * np.stack(np.broadcast_arrays(*function(*rows.swapaxes(0, 1)))).imag / 1e-30).sum(0)


def step_back(s: Setting, k: int, made: Any, v: Theta, memory: Any) -> tuple[Theta, Theta, Any]:
    """The adjoints of φ, of the gradient and of the memory before step k, from those after it."""
    base, g, (*before, start) = made
    first = flat(base), flat(g), start
    g = regular(s.update, *first)
    share = shares(s, g)
    w, *before = pulled(lambda *t: moved(s, k, *t), [g * share, *before], np.stack([flat(v), *memory[:2]]))
    if s.update.norm < np.inf and not s.update.constant:
        size = sums(s, g * g)
        much = np.where(share != 1, 1, s.update.tie * (size == s.update.norm**2)) if not s.update.unit else 1
        w = w - much * g * sums(s, g * w) / np.maximum(size, 1e-300)
    more, w, start = pulled(lambda *t: [regular(s.update, *t)], first, (share * w)[None])
    return unflat(flat(v) + more, base), unflat(w, base), np.stack([*before, memory[2] + start])


def flat(theta: Theta) -> np.ndarray:
    """All arrays as one float64 vector."""
    if len(theta) == 1:
        return np.asarray(theta[0], float).reshape(-1)
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in theta])


def unflat(t: np.ndarray, like: Theta) -> Theta:
    """The vector's numbers as arrays of these shapes."""
    if len(like) == 1:
        return [t.reshape(np.shape(like[0]))]
    ends = accumulate(leaf.size for leaf in like)
    return [t[end - leaf.size : end].reshape(leaf.shape) for end, leaf in zip(ends, like, strict=True)]
