"""The mistakes that people have made, each as a change of a task's `Setting`.

Ids B1 … are those of the bug ledger (docs/bugs.md); a mistake that nobody made in public may have none. Conventions are
not mistakes: sum or mean over tasks or examples, and the scale of Reptile, are fields of a vector (B3, B37). A lost
task is a weight (B4, B5).
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from refmeta.conformance.rules import Derivatives, Outer, Setting, Term, at_the_end, at_theta, hessian, kept
from refmeta.trees import Array, Batch, Theta, axpy

Change = Callable[[Setting], Setting | None]  # None: this mistake cannot be made here
Fields = dict[str, Any]
Group = Callable[[Setting, Any], dict[str, Fields]]
RECENT = 1 << 8  # settings whose choices are remembered


class Mistake(NamedTuple):
    """A known mistake: its title, its usual cause, where it happened, its ids in the ledger."""

    id: str
    title: str
    cause: str
    seen: str
    ledger: str
    change: Change


class Family(NamedTuple):
    """Mistakes that differ in a number, which the title shows. usual: the numbers that people write."""

    title: str
    cause: str
    fields: Callable[[Setting, float], Fields | None]
    usual: tuple[float, ...]


UNSEEN = "no public case known"
MISTAKES: dict[str, Mistake] = {}  # those that the vectors list
OTHERS: dict[str, Mistake] = {}  # those that they do not list
FAMILIES: dict[str, Family] = {}


def choice(
    over: dict[str, tuple[str, Any]] = {"": ("", None)},  # noqa: B006
    into: dict[str, Mistake] = OTHERS,
) -> Callable[[Group], Group]:
    """Register what a function gives: the changed fields by id, for each of these; or for a number, if ids have some.

    Its docstring is all that reports say about them: paragraphs of "id: title", then "Cause: …" and the like for all.
    """

    def register(group: Group) -> Group:
        group = lru_cache(RECENT)(group)  # it is asked for each of its ids
        for paragraph in (group.__doc__ or "").split("\n\n")[1:]:
            lines = re.split(r"\n(?=    \S+(?: [\d. ]+)?: )", "\n" + paragraph.strip("\n"))[1:]
            said = dict(re.split(r":\s+", " ".join(line.split()), maxsplit=1) for line in lines)
            cause, seen, ledger = (said.pop(key, UNSEEN * (key == "Seen")) for key in ("Cause", "Seen", "Ledger"))
            for (id, title), (name, (phrase, value)) in product(said.items(), over.items()):
                id, *usual = id.split()
                if usual:
                    FAMILIES[id] = Family(title, cause, part(group, id), tuple(map(float, usual)))
                else:
                    change = replaced(part(group, id), value)
                    into[name + id] = Mistake(name + id, title.replace("{}", phrase), cause, seen, ledger, change)
        return group

    return register


def part(group: Group, id: str) -> Callable[[Setting, Any], Fields | None]:
    return lambda s, value: group(s, value).get(id)


def replaced(fields: Callable[[Setting, Any], Fields | None], value: Any) -> Change:
    return lambda s: s._replace(**found) if (found := fields(s, value)) else None


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


def and_supports(outer: Outer, whole: bool = False) -> Outer:
    """The inner losses too; if whole, not divided by the number of tasks."""
    return lambda s: [*outer(s), *((k, batch, s.divisor if whole else 1) for k, batch in enumerate(s.supports))]


def block(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: Setting) -> Theta:
    """P ∇²L P v."""
    return kept(d.hvp(phi, batch, v), s.rates)


# --- The second-order term ---


@choice(into=MISTAKES)
def second_order_term(s: Setting, _: None) -> dict[str, Fields]:
    """The second-order term.

    first_order: first-order: the second-order term is missing
    Cause: the inner gradient is a constant to the outer one. PyTorch: torch.autograd.grad(…, create_graph=True) in the
        inner loop, and no .detach(), .data or .item() on the way; higher: track_higher_grads=True; learn2learn:
        first_order=False. JAX: no stop_gradient around the inner gradient. TensorFlow: the inner tape inside the outer
    Seen: dragen1860/MAML-Pytorch meta.py (#17 #19 #26 #32 #63), kjaved0/mrcl#15, uvm-neurobotics-lab/ANML#3
    Ledger: B1

    second_order: second-order, where first-order was asked for
    Cause: the first-order flag has no effect. PyTorch: create_graph=False, or .detach() the inner gradient. JAX:
        stop_gradient on every array of the inner gradient. TensorFlow: tf.stop_gradient
    Seen: jax PR #892 (stop_gradient did nothing on dicts), tristandeleu/pytorch-maml-rl#19
    Ledger: B15

    last_step_only: only the last inner step is differentiated
    Cause: the adapted parameters are made fresh after each step. PyTorch: a new nn.Parameter, requires_grad_() or
        .detach() between steps cuts the graph. JAX: a stop_gradient on the carry. TensorFlow: assign between steps
    Seen: rlworkgroup/garage#1269 #1283
    Ledger: B2

    first_step_only: only the first inner step is differentiated
    Cause: create_graph=True (PyTorch), or the tape (TensorFlow), in a first step that is written apart from the loop
    Ledger: B2

    product_reversed: the factors (I − αH_k) are multiplied in the reverse order
    Cause: a hand-written backward pass that walks the inner steps from the first to the last

    hessians_at_theta: all Hessians are taken at θ, not at φ_k
    Cause: the trajectory is not kept: a hand-written Hessian-vector product is called with θ at every step

    hessians_one_step_late: each Hessian is taken after its step, at φ_{k+1}
    Cause: parameters are updated in place before the backward pass reads them

    hessian_sign: the sign of the Hessian is flipped: (I + αH)
    Cause: a hand-written backward pass of φ − αg that forgets the minus

    alpha_missing: α is missing from (I − αH)
    Cause: a hand-written backward pass of φ − αg that forgets the factor α

    support_gradients_leak: the support gradients leak into the result
    Cause: PyTorch: loss.backward() in the inner loop adds to .grad of θ, which is not cleared: use torch.autograd.grad
    Seen: AdrienLE/ANIML (notebook, cells 10 and 16)
    Ledger: B11

    every_step_counts: the query losses after every step are added up
    Cause: the query loss is computed inside the inner loop and summed; keep the last
    Seen: confusion in dragen1860/MAML-Pytorch#51 #61 (intended in MAML++)
    Ledger: B17
    """

    def mirrored(s: Setting, k: int) -> int:
        return len(s.supports) - 1 - k

    if not s.adapts or s.displaced:
        return {}
    every: dict[str, Fields] = {"every_step_counts": {"outer": after_every_step}} if len(s.supports) > 1 else {}
    if not s.curvature:
        return every | {"second_order": {"curvature": hessian}}
    return every | {
        "first_order": {"curvature": None},
        "last_step_only": {"through": lambda k, steps: k == steps - 1},
        "first_step_only": {"through": lambda k, steps: k == 0},
        "product_reversed": {"curved_at": mirrored, "curved_on": lambda s, k: s.supports[-1 - k]},
        "hessians_at_theta": {"curved_at": lambda s, k: 0},
        "hessians_one_step_late": {"curved_at": lambda s, k: k + 1},
        "hessian_sign": {"back": -s.back},
        "alpha_missing": {"alpha_back": 1},
        "support_gradients_leak": {"outer": and_supports(s.outer)},
    }


# --- The data, and where the loss is taken ---


@choice(into=MISTAKES)
def data(s: Setting, _: None) -> dict[str, Fields]:
    """The data, and where the loss is taken.

    support_as_query: the outer loss is taken on the support data
    Cause: the same x, y are used inside and outside
    Seen: hereismari/tensorflow-maml#4, greentfrapp/maml-reptile MAML.py
    Ledger: B6

    adapted_on_query: the inner loop adapts to the query data
    Cause: support and query are swapped, or one batch is used for both
    Ledger: B6

    no_adaptation: the adapted parameters are ignored: the gradient is that of the query loss at θ
    Cause: the query forward pass uses the module's own weights. PyTorch: torch.func.functional_call with the adapted
        ones; learn2learn: call the clone; JAX, TensorFlow: pass φ, not θ
    Seen: tristandeleu/pytorch-maml@fb2712d, learn2learn#420 #236; as a reading of FOMAML in deepchem#1481
    Ledger: B7

    support_gradient_at_theta: the gradient is that of the support loss at θ
    Cause: θ.grad is read after the inner loop's backward pass and before the outer one

    adapts_first: tasks adapt first, where joint training was asked for
    Cause: joint training takes the gradient at θ; the supports are unused
    Ledger: B38

    theta_leaks_across_tasks: a task starts from the parameters that the task before it ended with
    Cause: θ is not restored between tasks. PyTorch: clone the module or pass parameters as a dict; learn2learn:
        maml.clone() for each task; TensorFlow: set the weights back
    Seen: learn2learn#98 (maml_toy.py without clone()), dragen1860/MAML-Pytorch#3 #6
    Ledger: B20

    mean_broadcast: (n, 1) − (n,) broadcasts to (n, n), so the loss fits the mean of y
    Cause: give the targets the shape of the predictions
    Seen: AdrienLE/ANIML (notebook, the test loss)
    Ledger: B22
    """
    first = {"displaced": False, "curvature": None, "outer": lambda s: [(0, batch, 1) for batch in s.supports[:1]]}
    found: dict[str, Fields] = {"support_as_query": {"query": s.supports[-1]}} if s.supports and not s.displaced else {}
    found |= {"adapts_first": {"outer": at_the_end}} if s.outer is at_theta else {}
    found |= {"support_gradient_at_theta": first, "theta_leaks_across_tasks": {"leaks": True}} if s.adapts else {}
    found |= {"adapted_on_query": {"supports": [s.query] * len(s.supports)}} if s.adapts and s.query else {}
    found |= {"no_adaptation": {"outer": at_theta, "curvature": None}} if s.adapts and not s.displaced else {}
    if s.outputs == 1:
        query = s.query and (s.query[0], _mean(s.query[1]))
        found |= {"mean_broadcast": {"supports": [(x, _mean(y)) for x, y in s.supports], "query": query}}
    return found


def _mean(y: Array) -> Array:
    return 0 * y + y.sum() / len(y)


# --- The inner loop ---


@choice(into=MISTAKES)
def inner_loop(s: Setting, _: None) -> dict[str, Fields]:
    """The inner loop.

    stale_restart: every inner step starts again from θ
    Cause: the inner loop computes φ from θ, not from the φ of the step before
    Seen: lmzintgraf/cavia (regression) before 7102d53
    Ledger: B8a

    stale_gradient: the inner gradient is computed once, at θ, and applied at every step
    Cause: the gradient is taken outside the inner loop
    Seen: gcucurull/maml_flax main.py (hidden by its default of one step)
    Ledger: B8b

    inner_ascent: the inner loop climbs: φ + αg
    Cause: the sign of the inner update
    Seen: dragen1860/MAML-Pytorch before 54d17ab, eric-mitchell/mend#13
    Ledger: B9

    inner_loss_divided_twice: the inner gradient is divided by the number of examples twice
        Seen: learnables/learn2learn#190 #201
    Ledger: B10a

    inner_loss_summed: the inner loss is summed over the examples, not averaged
    Cause: PyTorch: reduction='sum'. JAX: jnp.sum. TensorFlow: a loss function that returns a vector, which the tape
        sums. Or a rate is n times too large
    Seen: keras-io examples/vision/reptile.py
    Ledger: B10b

    one_step_short: one inner step is missing
    Cause: an off-by-one in the inner loop, or a first step under no_grad; in Reptile B39, sungyubkim/GBML
        gbml/reptile.py
    Seen: dragen1860/MAML-Pytorch#14 #40 (the first step under no_grad: there it crashes)
    Ledger: B16

    one_step_extra: one inner step too many
    Cause: an off-by-one in the inner loop
    Ledger: B16

    biases_not_adapted: the biases are not adapted
    Cause: the inner loop goes over the weights only; or allow_unused=True hides a missing connection
    Ledger: B51
    """
    if not s.adapts:
        return {}
    S, one = s.supports, 1 + 0 * s.alpha  # of α's kind: a Decimal takes no float
    found: dict[str, Fields] = {"inner_ascent": {"alpha": -s.alpha}}
    found |= {"one_step_short": {"supports": S[:-1]}, "one_step_extra": {"supports": [*S, S[-1]]}}
    if len(S) > 1:
        found |= {"stale_restart": {"supports": S[-1:]}}
        found |= {"stale_gradient": {"supports": S[:1], "alpha": len(S) * s.alpha}}
    if s.n:
        found |= {"inner_loss_divided_twice": paced(s, lambda s, k: one / len(s.supports[k][0]))}
        found |= {"inner_loss_summed": paced(s, lambda s, k: len(s.supports[k][0]))}
        found |= {"biases_not_adapted": {"rates": times(s.rates, weights(s))}}
    return found


# --- ANIL: body and head ---


@choice(into=MISTAKES)
def body_and_head(s: Setting, _: None) -> dict[str, Fields]:
    """ANIL: body and head.

    body_adapted: the whole network is adapted, not the head alone
    Cause: the flag that freezes the body in the inner loop has no effect
    Ledger: B29

    features_detached: the support features are detached: the head is right, the body keeps only its direct gradient
    Cause: PyTorch: features under no_grad or .detach() in the inner loop. JAX: stop_gradient on the body. They must
        stay in the graph: the adapted head depends on them
    Ledger: B27

    body_without_gradient: the body gets no outer gradient
    Cause: the outer optimiser holds the head only, or the body is under no_grad in the query pass too
    Seen: confusion in dragen1860/MAML-Pytorch#22
    Ledger: B28
    """
    if not s.adapts or all(s.rates):
        return {}
    found: dict[str, Fields] = {"body_adapted": {"rates": (True,) * len(s.rates)}}
    if s.differentiates:
        found |= {"features_detached": {"curvature": block}}
        found |= {"body_without_gradient": {"each": (*s.each, lambda g, _: kept(g, s.rates))}}
    return found


# --- Reptile ---


@choice(into=MISTAKES)
def displacements(s: Setting, _: None) -> dict[str, Fields]:
    """Reptile.

    reptile_by_query: Reptile that is first-order MAML: the last gradient, on the query
    Cause: Reptile returns the displacement θ − φ_K; the query is unused
    Seen: dragen1860/Reptile-Pytorch#2 #4 #5
    Ledger: B42

    last_displacement: Reptile that counts the last step only: φ_{K−1} − φ_K
    Cause: the displacement is taken from the last φ but one, not from θ
    Seen: openai/supervised-reptile's FOML, where it is meant
    Ledger: B44

    reptile_shrinks: Reptile that shrinks θ: (1−ε)θ + ε(φ − θ)
    Cause: the step is θ + ε(φ − θ): the gradient is θ − φ, not 2θ − φ
    Seen: alok.github.io/2018/03/13/reptile-in-pytorch (the formula, not the code)
    Ledger: B36
    """
    if not s.displaced:
        return {}
    found: dict[str, Fields] = {"reptile_shrinks": {"each": (*s.each, lambda g, theta: axpy(1, theta, g))}}
    found |= {"reptile_by_query": {"displaced": False}} if s.query else {}
    return found | ({"last_displacement": {"origin": -2}} if len(s.supports) > 1 else {})
