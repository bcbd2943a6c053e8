"""The mistakes that were really made, each as the change it makes to a task's `Setting`.

Ids B1 … are those of the bug ledger (docs/bugs.md); a mistake that nobody made in public may have none. Conventions are
not mistakes: sum or mean over tasks or examples and the scale of Reptile are fields of a vector (B3, B37). A lost task
is a weight (B4, B5).
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from refmeta.conformance.rules import (
    Derivatives,
    Setting,
    fomaml,
    joint,
    kept,
    maml,
    moves,
    path,
    points,
    pull_back,
    reptile,
)
from refmeta.trees import Array, Theta, add, axpy

Change = Callable[[Setting], Setting | None]  # None: this mistake cannot be made here


class Mistake(NamedTuple):
    """A known mistake: what it is, what usually causes it, where it happened, its ids in the ledger."""

    id: str
    title: str
    cause: str
    seen: str
    ledger: str
    change: Change


UNSEEN = "no public case known"
MISTAKES: dict[str, Mistake] = {}  # those that the vectors list
OTHERS: dict[str, Mistake] = {}  # those that are computed where they are asked for


def mistake(change: Change) -> Change:
    """Register a change of a Setting; its docstring is all that is ever said of it."""
    name = change.__name__
    title, *said = re.split(" (Cause|Seen in|Ledger): ", " ".join((change.__doc__ or name).split()))
    notes = dict(zip(said[::2], said[1::2], strict=True))
    seen, ledger = notes.get("Seen in", UNSEEN), notes.get("Ledger", "")
    MISTAKES[name] = Mistake(name, title, notes.get("Cause", "unknown"), seen, ledger, change)
    return change


def other(id: str, title: str, cause: str, change: Change, seen: str = UNSEEN, ledger: str = "") -> None:
    """Register a mistake that no vector lists."""
    OTHERS[id] = Mistake(id, title, cause, seen, ledger, change)


# --- The second-order term ---


def instead_of_maml(rule: Callable[[Derivatives, Setting], Theta], s: Setting) -> Setting | None:
    return s._replace(rule=rule) if s.rule is maml and s.supports else None


@mistake
def first_order(s: Setting) -> Setting | None:
    """first-order: the second-order term is missing

    Cause: the inner gradient is a constant to the outer one. PyTorch: torch.autograd.grad(…, create_graph=True) in
    the inner loop, and no .detach(), .data or .item() on the way; higher: track_higher_grads=True; learn2learn:
    first_order=False. JAX: no stop_gradient around the inner gradient. TensorFlow: the inner tape inside the outer
    Seen in: dragen1860/MAML-Pytorch meta.py (#17 #19 #26 #32 #63), kjaved0/mrcl#15, uvm-neurobotics-lab/ANML#3
    Ledger: B1
    """
    return instead_of_maml(fomaml, s)


@mistake
def second_order(s: Setting) -> Setting | None:
    """second-order, where first-order was asked for

    Cause: the first-order flag has no effect. PyTorch: create_graph=False, or .detach() the inner gradient. JAX:
    stop_gradient on every array of the inner gradient. TensorFlow: tf.stop_gradient
    Seen in: jax PR #892 (stop_gradient did nothing on dicts), tristandeleu/pytorch-maml-rl#19
    Ledger: B15
    """
    return s._replace(rule=maml) if s.rule is fomaml and s.supports else None


@mistake
def last_step_only(s: Setting) -> Setting | None:
    """only the last inner step is differentiated

    Cause: the adapted parameters are made fresh after each step. PyTorch: a new nn.Parameter, requires_grad_() or
    .detach() between steps cuts the graph. JAX: a stop_gradient on the carry. TensorFlow: assign between steps
    Seen in: rlworkgroup/garage#1269 #1283
    Ledger: B2
    """
    return instead_of_maml(lambda d, s: pull_back(d, s, fomaml(d, s), points(d, s)[-1:]), s)


@mistake
def first_step_only(s: Setting) -> Setting | None:
    """only the first inner step is differentiated

    Cause: create_graph=True (PyTorch), or the tape (TensorFlow), in a first step that is written apart from the
    loop
    Ledger: B2
    """
    return instead_of_maml(lambda d, s: pull_back(d, s, fomaml(d, s), points(d, s)[:1]), s)


@mistake
def product_reversed(s: Setting) -> Setting | None:
    """the factors (I − αH_k) are multiplied in the reverse order

    Cause: a hand-written backward pass that walks the inner steps from the first to the last
    """
    return instead_of_maml(lambda d, s: pull_back(d, s, fomaml(d, s), points(d, s)[::-1]), s)


@mistake
def hessians_at_theta(s: Setting) -> Setting | None:
    """all Hessians are taken at θ, not at φ_k

    Cause: the trajectory is not kept: a hand-written Hessian-vector product is called with θ at every step
    """
    return instead_of_maml(lambda d, s: pull_back(d, s, fomaml(d, s), [(s.theta, b) for b in s.supports]), s)


@mistake
def hessians_one_step_late(s: Setting) -> Setting | None:
    """each Hessian is taken after its step, at φ_{k+1}

    Cause: parameters are updated in place before the backward pass reads them
    """

    def rule(d: Derivatives, s: Setting) -> Theta:
        return pull_back(d, s, fomaml(d, s), list(zip(path(d, s)[1:], s.supports, strict=True)))

    return instead_of_maml(rule, s)


@mistake
def hessian_sign(s: Setting) -> Setting | None:
    """the sign of the Hessian is flipped: (I + αH)

    Cause: a hand-written backward pass of φ − αg that forgets the minus
    """
    return instead_of_maml(lambda d, s: pull_back(d, s._replace(alpha=-s.alpha), fomaml(d, s), points(d, s)), s)


@mistake
def alpha_missing(s: Setting) -> Setting | None:
    """α is missing from (I − αH)

    Cause: a hand-written backward pass of φ − αg that forgets the factor α
    """
    return instead_of_maml(lambda d, s: pull_back(d, s._replace(alpha=1), fomaml(d, s), points(d, s)), s)


@mistake
def support_gradients_leak(s: Setting) -> Setting | None:
    """the support gradients leak into the result

    Cause: PyTorch: loss.backward() in the inner loop adds to .grad of θ, which is not cleared: use
    torch.autograd.grad
    Seen in: AdrienLE/ANIML (notebook, cells 10 and 16)
    Ledger: B11
    """

    def rule(d: Derivatives, s: Setting) -> Theta:
        at = points(d, s)
        return add([maml(d, s), *(pull_back(d, s, d.grad(*point), at[:k]) for k, point in enumerate(at))])

    return instead_of_maml(rule, s)


@mistake
def every_step_counts(s: Setting) -> Setting | None:
    """the query losses after every step are added up

    Cause: the query loss is computed inside the inner loop and summed; keep the last
    Seen in: confusion in dragen1860/MAML-Pytorch#51 #61 (intended in MAML++)
    Ledger: B17
    """
    if s.rule not in (maml, fomaml) or len(s.supports) < 2:
        return None

    def rule(d: Derivatives, s: Setting, last: Callable[[Derivatives, Setting], Theta] = s.rule) -> Theta:
        return add(last(d, s._replace(supports=s.supports[:k])) for k in range(1, len(s.supports) + 1))

    return s._replace(rule=rule)


# --- The data, and where the loss is taken ---


@mistake
def support_as_query(s: Setting) -> Setting | None:
    """the outer loss is taken on the support data

    Cause: the same x, y are used inside and outside
    Seen in: hereismari/tensorflow-maml#4, greentfrapp/maml-reptile MAML.py
    Ledger: B6
    """
    return s._replace(query=s.supports[-1]) if s.rule is not reptile and s.supports else None


@mistake
def adapted_on_query(s: Setting) -> Setting | None:
    """the inner loop adapts to the query data

    Cause: support and query are swapped, or one batch is used for both
    Ledger: B6
    """
    return s._replace(supports=[s.query] * len(s.supports)) if s.rule is not joint and s.query else None


@mistake
def no_adaptation(s: Setting) -> Setting | None:
    """the adapted parameters are ignored: the gradient is that of the query loss at θ

    Cause: the query forward pass uses the module's own weights. PyTorch: torch.func.functional_call with the
    adapted ones; learn2learn: call the clone; JAX, TensorFlow: pass φ, not θ
    Seen in: tristandeleu/pytorch-maml@fb2712d, learn2learn#420 #236; as a reading of FOMAML in deepchem#1481
    Ledger: B7
    """
    return s._replace(rule=joint) if s.rule in (maml, fomaml) else None


@mistake
def support_gradient_at_theta(s: Setting) -> Setting | None:
    """the gradient is that of the support loss at θ

    Cause: θ.grad is read after the inner loop's backward pass and before the outer one
    """
    return s._replace(rule=joint, query=s.supports[0]) if s.rule is not joint and s.supports else None


@mistake
def adapts_first(s: Setting) -> Setting | None:
    """tasks adapt first, where joint training was asked for

    Cause: joint training takes the gradient at θ; the supports are unused
    Ledger: B38
    """
    return s._replace(rule=fomaml) if s.rule is joint else None


@mistake
def theta_leaks_across_tasks(s: Setting) -> Setting | None:
    """a task starts from the parameters that the task before it ended with

    Cause: θ is not restored between tasks. PyTorch: clone the module or pass parameters as a dict; learn2learn:
    maml.clone() for each task; TensorFlow: set the weights back
    Seen in: learn2learn#98 (maml_toy.py without clone()), dragen1860/MAML-Pytorch#3 #6
    Ledger: B20
    """
    return s._replace(leaks=True) if s.rule is not joint and s.supports else None


@mistake
def mean_broadcast(s: Setting) -> Setting | None:
    """(n, 1) − (n,) broadcasts to (n, n), so the loss fits the mean of y

    Cause: give the targets the shape of the predictions
    Seen in: AdrienLE/ANIML (notebook, the test loss)
    Ledger: B22
    """
    if s.outputs != 1:
        return None
    return s._replace(
        supports=[(x, _mean(y)) for x, y in s.supports], query=s.query and (s.query[0], _mean(s.query[1]))
    )


def _mean(y: Array) -> Array:
    return 0 * y + y.sum() / len(y)


# --- The inner loop ---


@mistake
def stale_restart(s: Setting) -> Setting | None:
    """every inner step starts again from θ

    Cause: the inner loop computes φ from θ, not from the φ of the step before
    Seen in: lmzintgraf/cavia (regression) before 7102d53
    Ledger: B8a
    """
    return s._replace(supports=s.supports[-1:]) if s.rule is not joint and len(s.supports) > 1 else None


@mistake
def stale_gradient(s: Setting) -> Setting | None:
    """the inner gradient is computed once, at θ, and applied at every step

    Cause: the gradient is taken outside the inner loop
    Seen in: gcucurull/maml_flax main.py (hidden by its default of one step)
    Ledger: B8b
    """
    if s.rule is joint or len(s.supports) < 2:
        return None
    return s._replace(supports=s.supports[:1], alpha=len(s.supports) * s.alpha)


@mistake
def inner_ascent(s: Setting) -> Setting | None:
    """the inner loop climbs: φ + αg

    Cause: the sign of the inner update
    Seen in: dragen1860/MAML-Pytorch before 54d17ab, eric-mitchell/mend#13
    Ledger: B9
    """
    return s._replace(alpha=-s.alpha) if s.rule is not joint else None


@mistake
def inner_loss_divided_twice(s: Setting) -> Setting | None:
    """the inner gradient is divided by the number of examples twice

    Cause: a loss that is already a mean is divided by n
    Seen in: learnables/learn2learn#190 #201
    Ledger: B10a
    """
    return s._replace(alpha=s.alpha / s.n) if s.rule is not joint and s.n else None


@mistake
def inner_loss_summed(s: Setting) -> Setting | None:
    """the inner loss is summed over the examples, not averaged

    Cause: PyTorch: reduction='sum'. JAX: jnp.sum. TensorFlow: a loss function that returns a vector, which the tape
    sums
    Seen in: keras-io examples/vision/reptile.py
    Ledger: B10b
    """
    return s._replace(alpha=s.alpha * s.n) if s.rule is not joint and s.n else None


@mistake
def one_step_short(s: Setting) -> Setting | None:
    """one inner step is missing

    Cause: an off-by-one in the inner loop, or a first step under no_grad; in Reptile B39, sungyubkim/GBML
    gbml/reptile.py
    Seen in: dragen1860/MAML-Pytorch#14 #40 (the first step under no_grad: there it crashes)
    Ledger: B16
    """
    return s._replace(supports=s.supports[:-1]) if s.rule is not joint and s.supports else None


@mistake
def one_step_extra(s: Setting) -> Setting | None:
    """one inner step too many

    Cause: an off-by-one in the inner loop
    Ledger: B16
    """
    return s._replace(supports=[*s.supports, s.supports[-1]]) if s.rule is not joint and s.supports else None


@mistake
def biases_not_adapted(s: Setting) -> Setting | None:
    """the biases are not adapted

    Cause: the inner loop goes over the weights only; or allow_unused=True hides a missing connection
    Ledger: B51
    """
    if s.rule is joint or s.n is None:
        return None
    return s._replace(moves=tuple(move and np.ndim(leaf) > 1 for move, leaf in zip(s.moves, s.theta, strict=True)))


# --- ANIL: body and head ---


def partly(s: Setting) -> bool:
    return s.rule is not joint and not all(s.moves)


@mistake
def body_adapted(s: Setting) -> Setting | None:
    """the whole network is adapted, not the head alone

    Cause: the flag that freezes the body in the inner loop has no effect
    Ledger: B29
    """
    return s._replace(moves=(True,) * len(s.moves)) if partly(s) else None


@mistake
def features_detached(s: Setting) -> Setting | None:
    """the support features are detached: the head is right, the body keeps only its direct gradient

    Cause: PyTorch: features under no_grad or .detach() in the inner loop. JAX: stop_gradient on the body. They must
    stay in the graph: the adapted head depends on them
    Ledger: B27
    """

    def rule(d: Derivatives, s: Setting) -> Theta:
        pairs = zip(maml(d, s), fomaml(d, s), s.moves, strict=True)
        return [v if move else direct for v, direct, move in pairs]

    return instead_of_maml(rule, s) if partly(s) else None


@mistake
def body_without_gradient(s: Setting) -> Setting | None:
    """the body gets no outer gradient

    Cause: the outer optimiser holds the head only, or the body is under no_grad in the query pass too
    Seen in: confusion in dragen1860/MAML-Pytorch#22
    Ledger: B28
    """
    return instead_of_maml(lambda d, s: kept(maml(d, s), s.moves), s) if partly(s) else None


# --- Reptile ---


@mistake
def reptile_by_query(s: Setting) -> Setting | None:
    """Reptile that is first-order MAML: the last gradient, on the query

    Cause: Reptile returns the displacement θ − φ_K; the query is unused
    Seen in: dragen1860/Reptile-Pytorch#2 #4 #5
    Ledger: B42
    """
    return s._replace(rule=fomaml) if s.rule is reptile and s.query else None


@mistake
def last_displacement(s: Setting) -> Setting | None:
    """Reptile that counts the last step only: φ_{K−1} − φ_K

    Cause: the displacement is taken from the last φ but one, not from θ
    Seen in: openai/supervised-reptile's FOML, where it is meant
    Ledger: B44
    """

    def rule(d: Derivatives, s: Setting) -> Theta:
        *_, before, last = path(d, s)
        return axpy(-1, last, before)

    return s._replace(rule=rule) if s.rule is reptile and len(s.supports) > 1 else None


@mistake
def reptile_shrinks(s: Setting) -> Setting | None:
    """Reptile that shrinks θ: (1−ε)θ + ε(φ − θ)

    Cause: the step is θ + ε(φ − θ): the gradient is θ − φ, not 2θ − φ
    Seen in: alok.github.io/2018/03/13/reptile-in-pytorch (the formula, not the code)
    Ledger: B36
    """
    return s._replace(rule=lambda d, s: axpy(1, s.theta, reptile(d, s))) if s.rule is reptile else None


# --- Others: no vector lists them ---


def swapped(s: Setting) -> Setting | None:
    if s.rule in (joint, reptile) or not s.supports or not s.query:
        return None
    return s._replace(supports=[s.query] * len(s.supports), query=s.supports[-1])


def last_layer_alone(s: Setting) -> Setting | None:
    if s.rule is joint or not all(s.moves):
        return None
    return s._replace(moves=last_layer(s))


def last_layer(s: Setting) -> tuple[bool, ...]:
    """Weights and biases, or the last array if it is no vector."""
    return moves(len(s.theta), 1 + (np.ndim(s.theta[-1]) == 1))


def first_batch(s: Setting) -> Setting | None:
    if s.rule is joint or len(s.supports) < 2:
        return None
    return s._replace(supports=s.supports[:1] * len(s.supports))


def one_chain(s: Setting) -> Setting | None:
    return s._replace(together=True) if s.rule is maml and s.supports else None


def restarted(s: Setting) -> Setting | None:
    """φ_{k+1} = θ − α P ∇L(φ_k; S_k), and its derivative in θ."""
    second = s.rule is maml

    def rule(d: Derivatives, s: Setting) -> Theta:
        phis = [s.theta]
        for support in s.supports:
            phis.append(axpy(-s.alpha, kept(d.grad(phis[-1], support), s.moves), s.theta))
        parts = [d.grad(phis[-1], s.query)]
        for phi, support in reversed(list(zip(phis, s.supports, strict=False)) if second else []):
            parts.append([-s.alpha * leaf for leaf in d.hvp(phi, support, kept(parts[-1], s.moves))])
        return add(parts)

    return s._replace(rule=rule) if s.rule in (maml, fomaml) and len(s.supports) > 1 else None


def updated(**changed: float) -> Change:
    """Another update in the inner loop."""
    return lambda s: s._replace(update=s.update._replace(**changed)) if s.rule is not joint and s.supports else None


def support_added(s: Setting) -> Setting | None:
    def rule(d: Derivatives, s: Setting, of: Callable[[Derivatives, Setting], Theta] = s.rule) -> Theta:
        return add([of(d, s), of(d, s._replace(query=s.supports[-1]))])

    return s._replace(rule=rule) if s.rule in (maml, fomaml) and s.supports else None


def body_frozen(s: Setting) -> Setting | None:
    def rule(d: Derivatives, s: Setting, of: Callable[[Derivatives, Setting], Theta] = s.rule) -> Theta:
        return kept(of(d, s), last_layer(s))

    return s._replace(rule=rule)


def mean_of_gradients(s: Setting) -> Setting | None:
    def rule(d: Derivatives, s: Setting) -> Theta:
        points = zip(path(d, s), [*s.supports, s.supports[-1]], strict=True)
        return [leaf / (len(s.supports) + 1) for leaf in add(d.grad(*point) for point in points)]

    return s._replace(rule=rule) if s.rule is reptile and s.supports else None


def differentiated(steps: Callable[[int], bool]) -> Change:
    """MAML through these inner steps alone."""

    def rule(d: Derivatives, s: Setting) -> Theta:
        return pull_back(d, s, fomaml(d, s), [at for k, at in enumerate(points(d, s)) if steps(k)])

    return lambda s: instead_of_maml(rule, s) if len({*map(steps, range(len(s.supports)))}) > 1 else None


CUT = (
    "PyTorch: .detach(), .data or requires_grad_() inside the inner loop, or create_graph=True not at every step. "
    "JAX: stop_gradient in the carry"
)
TOLD = 10  # inner steps that are told apart
other("swapped", "support and query are swapped", "the batches are unpacked in the other order", swapped)
other(
    "last_layer_alone", "only the last layer adapts", "the inner loop has the head's parameters alone", last_layer_alone
)
chain = "θ is not restored between tasks, and the graph of those before is kept: give each task its own copy of θ"
other("one_chain", "a task starts from the parameters that the task before it ended with", chain, one_chain)
stale = "the update subtracts from θ, not from the φ of the step before, in `θ - lr * g`"
other(
    "restarted", "every inner step subtracts its gradient from θ, not from the φ of the step before", stale, restarted
)
again = "the iterator over the batches is made anew at every step"
other("first_batch", "every inner step takes the first support batch", again, first_batch)
added = "the meta-loss has the support's loss at the adapted parameters too"
other("support_added", "the support loss after adaptation is added to the query loss", added, support_added)
outer = "the outer gradient is taken, or kept, of the last layer alone"
other("body_frozen", "only the last layer gets an outer gradient", outer, body_frozen)
averaged, ivy = "Reptile returns θ − φ_K, which is α times the sum of the first K gradients", "ivy-llc/ivy meta.py"
other("mean_of_gradients", "Reptile that averages K + 1 gradients", averaged, mean_of_gradients, ivy, "B55")
for mu in (0.9, 0.5, 0.99):
    cause = "the inner optimiser has a momentum"
    other(f"momentum_{mu}", f"the inner loop has momentum {mu}", cause, updated(momentum=mu))
kept_on = "the inner gradients are not cleared between steps: zero_grad is missing"
other("added_up", "each inner step takes the sum of all gradients until then", kept_on, updated(momentum=1))
for decay in (1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.1):
    cause = "the inner optimiser has a weight decay"
    other(f"decay_{decay}", f"the inner loop has weight decay {decay:g}", cause, updated(decay=decay))
for cool in (0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.1):
    cause = "a scheduler lowers the inner rate"
    other(f"cool_{cool}", f"the inner step size is multiplied by {cool} at every step", cause, updated(cool=cool))
for clamp in (0.1, 0.5, 1, 5, 10, 40):
    cause = "a clip meant for the outer gradients, or for reinforcement learning"
    other(f"clamp_{clamp}", f"the inner gradients are clipped to ±{clamp}", cause, updated(clamp=clamp))
other("odd_steps_cut", "every second inner step is not differentiated", CUT, differentiated(lambda k: k % 2 == 0))
other("even_steps_cut", "every second inner step is not differentiated", CUT, differentiated(lambda k: k % 2 == 1))
for n in range(1, TOLD + 1):
    title = f"the first {n} inner steps are not differentiated"
    other(f"first_{n}_steps_cut", title, CUT, differentiated(n.__le__))
for n in range(1, TOLD + 1):
    title = f"inner step {n} is not differentiated"
    other(f"step_{n}_cut", title, CUT, differentiated((n - 1).__ne__))

EVERY = {**MISTAKES, **OTHERS}


def with_mistakes(names: Iterable[str], settings: list[Setting]) -> list[Setting]:
    """The settings with these mistakes made wherever they can be made."""
    for name in names:
        settings = [EVERY[name].change(s) or s for s in settings]
    return settings
