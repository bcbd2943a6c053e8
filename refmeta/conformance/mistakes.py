"""The mistakes that people have made, each as a change of a task's `Setting`.

Ids B1 … are those of the bug ledger (docs/bugs.md); a mistake that nobody made in public may have none. Conventions are
not mistakes: sum or mean over tasks or examples, and the scale of Reptile, are fields of a vector (B3, B37). A lost
task is a weight (B4, B5).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from refmeta.conformance.rules import Derivatives, Outer, Setting, Term, at_the_end, at_theta, hessian, kept
from refmeta.trees import Array, Batch, Theta, axpy

Change = Callable[[Setting], Setting | None]  # None: this mistake cannot be made here


class Mistake(NamedTuple):
    """A known mistake: its title, its usual cause, where it happened, its ids in the ledger."""

    id: str
    title: str
    cause: str
    seen: str
    ledger: str
    change: Change


UNSEEN = "no public case known"
MISTAKES: dict[str, Mistake] = {}  # those that the vectors list


def mistake(change: Change) -> Change:
    """Register a change of a Setting; its docstring is all that reports say about it."""
    name = change.__name__
    title, *said = re.split(" (Cause|Seen in|Ledger): ", " ".join((change.__doc__ or name).split()))
    notes = dict(zip(said[::2], said[1::2], strict=True))
    seen, ledger = notes.get("Seen in", UNSEEN), notes.get("Ledger", "")
    MISTAKES[name] = Mistake(name, title, notes.get("Cause", "unknown"), seen, ledger, change)
    return change


# --- What changes are made of ---


def times(shares: Sequence[Any], more: Sequence[Any]) -> tuple[Any, ...]:
    """The products of the shares of each array."""
    return tuple(a if b is True else b * a for a, b in zip(shares, more, strict=True))


def weights(s: Setting) -> tuple[bool, ...]:
    """Of each array whether it is no bias; where none has two axes, none is."""
    axes = list(map(np.ndim, s.theta))
    return tuple(many > 1 or max(axes) < 2 for many in axes)


def paced(s: Setting, more: Callable[[Setting, int], Any]) -> dict[str, Any]:
    """The rate of every step times another number."""
    before = s.pace
    return {"pace": (lambda s, k: before(s, k) * more(s, k)) if before else more}


def after_every_step(s: Setting) -> list[Term]:
    return [(k, s.query, 1) for k in range(1, len(s.supports) + 1)]


def and_supports(outer: Outer) -> Outer:
    return lambda s: [*outer(s), *((k, batch, 1) for k, batch in enumerate(s.supports))]


def block(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: Setting) -> Theta:
    """P ∇²L P v."""
    return kept(d.hvp(phi, batch, v), s.rates)


def partly(s: Setting) -> bool:
    return s.adapts and not all(s.rates)


# --- The second-order term ---


@mistake
def first_order(s: Setting) -> Setting | None:
    """first-order: the second-order term is missing

    Cause: the inner gradient is a constant to the outer one. PyTorch: torch.autograd.grad(…, create_graph=True) in
    the inner loop, and no .detach(), .data or .item() on the way; higher: track_higher_grads=True; learn2learn:
    first_order=False. JAX: no stop_gradient around the inner gradient. TensorFlow: the inner tape inside the outer
    Seen in: dragen1860/MAML-Pytorch meta.py (#17 #19 #26 #32 #63), kjaved0/mrcl#15, uvm-neurobotics-lab/ANML#3
    Ledger: B1
    """
    return s._replace(curvature=None) if s.differentiates else None


@mistake
def second_order(s: Setting) -> Setting | None:
    """second-order, where first-order was asked for

    Cause: the first-order flag has no effect. PyTorch: create_graph=False, or .detach() the inner gradient. JAX:
    stop_gradient on every array of the inner gradient. TensorFlow: tf.stop_gradient
    Seen in: jax PR #892 (stop_gradient did nothing on dicts), tristandeleu/pytorch-maml-rl#19
    Ledger: B15
    """
    return s._replace(curvature=hessian) if s.adapts and not s.displaced and not s.curvature else None


@mistake
def last_step_only(s: Setting) -> Setting | None:
    """only the last inner step is differentiated

    Cause: the adapted parameters are made fresh after each step. PyTorch: a new nn.Parameter, requires_grad_() or
    .detach() between steps cuts the graph. JAX: a stop_gradient on the carry. TensorFlow: assign between steps
    Seen in: rlworkgroup/garage#1269 #1283
    Ledger: B2
    """
    return s._replace(through=lambda k, steps: k == steps - 1) if s.differentiates else None


@mistake
def first_step_only(s: Setting) -> Setting | None:
    """only the first inner step is differentiated

    Cause: create_graph=True (PyTorch), or the tape (TensorFlow), in a first step that is written apart from the
    loop
    Ledger: B2
    """
    return s._replace(through=lambda k, steps: k == 0) if s.differentiates else None


@mistake
def product_reversed(s: Setting) -> Setting | None:
    """the factors (I − αH_k) are multiplied in the reverse order

    Cause: a hand-written backward pass that walks the inner steps from the first to the last
    """

    def mirrored(s: Setting, k: int) -> tuple[int, Batch]:
        return len(s.supports) - 1 - k, s.supports[-1 - k]

    return s._replace(curved=mirrored) if s.differentiates else None


@mistake
def hessians_at_theta(s: Setting) -> Setting | None:
    """all Hessians are taken at θ, not at φ_k

    Cause: the trajectory is not kept: a hand-written Hessian-vector product is called with θ at every step
    """
    return s._replace(curved=lambda s, k: (0, s.supports[k])) if s.differentiates else None


@mistake
def hessians_one_step_late(s: Setting) -> Setting | None:
    """each Hessian is taken after its step, at φ_{k+1}

    Cause: parameters are updated in place before the backward pass reads them
    """
    return s._replace(curved=lambda s, k: (k + 1, s.supports[k])) if s.differentiates else None


@mistake
def hessian_sign(s: Setting) -> Setting | None:
    """the sign of the Hessian is flipped: (I + αH)

    Cause: a hand-written backward pass of φ − αg that forgets the minus
    """
    return s._replace(back=-s.back) if s.differentiates else None


@mistake
def alpha_missing(s: Setting) -> Setting | None:
    """α is missing from (I − αH)

    Cause: a hand-written backward pass of φ − αg that forgets the factor α
    """
    return s._replace(alpha_back=1) if s.differentiates else None


@mistake
def support_gradients_leak(s: Setting) -> Setting | None:
    """the support gradients leak into the result

    Cause: PyTorch: loss.backward() in the inner loop adds to .grad of θ, which is not cleared: use
    torch.autograd.grad
    Seen in: AdrienLE/ANIML (notebook, cells 10 and 16)
    Ledger: B11
    """
    return s._replace(outer=and_supports(s.outer)) if s.differentiates else None


@mistake
def every_step_counts(s: Setting) -> Setting | None:
    """the query losses after every step are added up

    Cause: the query loss is computed inside the inner loop and summed; keep the last
    Seen in: confusion in dragen1860/MAML-Pytorch#51 #61 (intended in MAML++)
    Ledger: B17
    """
    return s._replace(outer=after_every_step) if s.adapts and not s.displaced and len(s.supports) > 1 else None


# --- The data, and where the loss is taken ---


@mistake
def support_as_query(s: Setting) -> Setting | None:
    """the outer loss is taken on the support data

    Cause: the same x, y are used inside and outside
    Seen in: hereismari/tensorflow-maml#4, greentfrapp/maml-reptile MAML.py
    Ledger: B6
    """
    return s._replace(query=s.supports[-1]) if s.supports and not s.displaced else None


@mistake
def adapted_on_query(s: Setting) -> Setting | None:
    """the inner loop adapts to the query data

    Cause: support and query are swapped, or one batch is used for both
    Ledger: B6
    """
    return s._replace(supports=[s.query] * len(s.supports)) if s.adapts and s.query else None


@mistake
def no_adaptation(s: Setting) -> Setting | None:
    """the adapted parameters are ignored: the gradient is that of the query loss at θ

    Cause: the query forward pass uses the module's own weights. PyTorch: torch.func.functional_call with the
    adapted ones; learn2learn: call the clone; JAX, TensorFlow: pass φ, not θ
    Seen in: tristandeleu/pytorch-maml@fb2712d, learn2learn#420 #236; as a reading of FOMAML in deepchem#1481
    Ledger: B7
    """
    return s._replace(outer=at_theta, curvature=None) if s.adapts and not s.displaced else None


@mistake
def support_gradient_at_theta(s: Setting) -> Setting | None:
    """the gradient is that of the support loss at θ

    Cause: θ.grad is read after the inner loop's backward pass and before the outer one
    """

    def first(s: Setting) -> list[Term]:
        return [(0, batch, 1) for batch in s.supports[:1]]

    return s._replace(displaced=False, curvature=None, outer=first) if s.adapts else None


@mistake
def adapts_first(s: Setting) -> Setting | None:
    """tasks adapt first, where joint training was asked for

    Cause: joint training takes the gradient at θ; the supports are unused
    Ledger: B38
    """
    return s._replace(outer=at_the_end) if s.outer is at_theta else None


@mistake
def theta_leaks_across_tasks(s: Setting) -> Setting | None:
    """a task starts from the parameters that the task before it ended with

    Cause: θ is not restored between tasks. PyTorch: clone the module or pass parameters as a dict; learn2learn:
    maml.clone() for each task; TensorFlow: set the weights back
    Seen in: learn2learn#98 (maml_toy.py without clone()), dragen1860/MAML-Pytorch#3 #6
    Ledger: B20
    """
    return s._replace(leaks=True) if s.adapts else None


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
    return s._replace(supports=s.supports[-1:]) if s.adapts and len(s.supports) > 1 else None


@mistake
def stale_gradient(s: Setting) -> Setting | None:
    """the inner gradient is computed once, at θ, and applied at every step

    Cause: the gradient is taken outside the inner loop
    Seen in: gcucurull/maml_flax main.py (hidden by its default of one step)
    Ledger: B8b
    """
    if not s.adapts or len(s.supports) < 2:
        return None
    return s._replace(supports=s.supports[:1], alpha=len(s.supports) * s.alpha)


@mistake
def inner_ascent(s: Setting) -> Setting | None:
    """the inner loop climbs: φ + αg

    Cause: the sign of the inner update
    Seen in: dragen1860/MAML-Pytorch before 54d17ab, eric-mitchell/mend#13
    Ledger: B9
    """
    return s._replace(alpha=-s.alpha) if s.adapts else None


@mistake
def inner_loss_divided_twice(s: Setting) -> Setting | None:
    """the inner gradient is divided by the number of examples twice

    Cause: a loss that is already a mean is divided by n, or a rate is n times too small
    Seen in: learnables/learn2learn#190 #201
    Ledger: B10a
    """
    one = 1 + 0 * s.alpha  # of α's type: a Decimal takes no float
    return s._replace(**paced(s, lambda s, k: one / len(s.supports[k][0]))) if s.adapts and s.n else None


@mistake
def inner_loss_summed(s: Setting) -> Setting | None:
    """the inner loss is summed over the examples, not averaged

    Cause: PyTorch: reduction='sum'. JAX: jnp.sum. TensorFlow: a loss function that returns a vector, which the tape
    sums. Or a rate is n times too large
    Seen in: keras-io examples/vision/reptile.py
    Ledger: B10b
    """
    return s._replace(**paced(s, lambda s, k: len(s.supports[k][0]))) if s.adapts and s.n else None


@mistake
def one_step_short(s: Setting) -> Setting | None:
    """one inner step is missing

    Cause: an off-by-one in the inner loop, or a first step under no_grad; in Reptile B39, sungyubkim/GBML
    gbml/reptile.py
    Seen in: dragen1860/MAML-Pytorch#14 #40 (the first step under no_grad: there it crashes)
    Ledger: B16
    """
    return s._replace(supports=s.supports[:-1]) if s.adapts else None


@mistake
def one_step_extra(s: Setting) -> Setting | None:
    """one inner step too many

    Cause: an off-by-one in the inner loop
    Ledger: B16
    """
    return s._replace(supports=[*s.supports, s.supports[-1]]) if s.adapts else None


@mistake
def biases_not_adapted(s: Setting) -> Setting | None:
    """the biases are not adapted

    Cause: the inner loop goes over the weights only; or allow_unused=True hides a missing connection
    Ledger: B51
    """
    return s._replace(rates=times(s.rates, weights(s))) if s.adapts and s.n else None


# --- ANIL: body and head ---


@mistake
def body_adapted(s: Setting) -> Setting | None:
    """the whole network is adapted, not the head alone

    Cause: the flag that freezes the body in the inner loop has no effect
    Ledger: B29
    """
    return s._replace(rates=(True,) * len(s.rates)) if partly(s) else None


@mistake
def features_detached(s: Setting) -> Setting | None:
    """the support features are detached: the head is right, the body keeps only its direct gradient

    Cause: PyTorch: features under no_grad or .detach() in the inner loop. JAX: stop_gradient on the body. They must
    stay in the graph: the adapted head depends on them
    Ledger: B27
    """
    return s._replace(curvature=block) if s.differentiates and partly(s) else None


@mistake
def body_without_gradient(s: Setting) -> Setting | None:
    """the body gets no outer gradient

    Cause: the outer optimiser holds the head only, or the body is under no_grad in the query pass too
    Seen in: confusion in dragen1860/MAML-Pytorch#22
    Ledger: B28
    """
    return s._replace(each=(*s.each, lambda g, _: kept(g, s.rates))) if s.differentiates and partly(s) else None


# --- Reptile ---


@mistake
def reptile_by_query(s: Setting) -> Setting | None:
    """Reptile that is first-order MAML: the last gradient, on the query

    Cause: Reptile returns the displacement θ − φ_K; the query is unused
    Seen in: dragen1860/Reptile-Pytorch#2 #4 #5
    Ledger: B42
    """
    return s._replace(displaced=False) if s.displaced and s.query else None


@mistake
def last_displacement(s: Setting) -> Setting | None:
    """Reptile that counts the last step only: φ_{K−1} − φ_K

    Cause: the displacement is taken from the last φ but one, not from θ
    Seen in: openai/supervised-reptile's FOML, where it is meant
    Ledger: B44
    """
    return s._replace(origin=-2) if s.displaced and len(s.supports) > 1 else None


@mistake
def reptile_shrinks(s: Setting) -> Setting | None:
    """Reptile that shrinks θ: (1−ε)θ + ε(φ − θ)

    Cause: the step is θ + ε(φ − θ): the gradient is θ − φ, not 2θ − φ
    Seen in: alok.github.io/2018/03/13/reptile-in-pytorch (the formula, not the code)
    Ledger: B36
    """
    return s._replace(each=(*s.each, lambda g, theta: axpy(1, theta, g))) if s.displaced else None
