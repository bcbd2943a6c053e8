"""The mistakes that were really made, each as the change it makes to a task's `Setting`.

Ids B1 … are those of the bug ledger (docs/bugs.md); a mistake that nobody made in public may have none. Conventions are
not mistakes: sum or mean over tasks or examples and the scale of Reptile are fields of a vector (B3, B37). A lost task
is a weight (B4, B5).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from refmeta.conformance.rules import Derivatives, Setting, fomaml, joint, kept, maml, path, points, pull_back, reptile
from refmeta.trees import Array, Theta, add, axpy

Change = Callable[[Setting], Setting | None]  # None: this mistake cannot be made here


class Mistake(NamedTuple):
    """A known mistake: what it is, where it happened, and what usually causes it."""

    id: str
    ledger: str
    title: str
    seen: str
    cause: str
    change: Change


MISTAKES: dict[str, Mistake] = {}


def mistake(title: str, cause: str, seen: str = "no public case known", ledger: str = "") -> Callable[[Change], Change]:
    """Register a change of a Setting as a mistake of its name."""

    def register(change: Change) -> Change:
        MISTAKES[change.__name__] = Mistake(change.__name__, ledger, title, seen, cause, change)
        return change

    return register


# --- The second-order term ---


def instead_of_maml(rule: Callable[[Derivatives, Setting], Theta], s: Setting) -> Setting | None:
    return s._replace(rule=rule) if s.rule is maml and s.supports else None


@mistake(
    "first-order: the second-order term is missing",
    "the inner gradient is a constant to the outer one. PyTorch: torch.autograd.grad(…, create_graph=True) in the "
    "inner loop, and no .detach(), .data or .item() on the way; higher: track_higher_grads=True; learn2learn: "
    "first_order=False. JAX: no stop_gradient around the inner gradient. TensorFlow: the inner tape inside the "
    "outer",
    seen="dragen1860/MAML-Pytorch meta.py (#17 #19 #26 #32 #63), kjaved0/mrcl#15, uvm-neurobotics-lab/ANML#3",
    ledger="B1",
)
def first_order(s: Setting) -> Setting | None:
    return instead_of_maml(fomaml, s)


@mistake(
    "second-order, where first-order was asked for",
    "the first-order flag has no effect. PyTorch: create_graph=False, or .detach() the inner gradient. JAX: "
    "stop_gradient on every array of the inner gradient. TensorFlow: tf.stop_gradient",
    seen="jax PR #892 (stop_gradient did nothing on dicts), tristandeleu/pytorch-maml-rl#19",
    ledger="B15",
)
def second_order(s: Setting) -> Setting | None:
    return s._replace(rule=maml) if s.rule is fomaml and s.supports else None


@mistake(
    "only the last inner step is differentiated",
    "the adapted parameters are made fresh after each step. PyTorch: a new nn.Parameter, requires_grad_() or "
    ".detach() between steps cuts the graph. JAX: a stop_gradient on the carry. TensorFlow: assign between steps",
    seen="rlworkgroup/garage#1269 #1283",
    ledger="B2",
)
def last_step_only(s: Setting) -> Setting | None:
    return instead_of_maml(lambda d, s: pull_back(d, s, fomaml(d, s), points(d, s)[-1:]), s)


@mistake(
    "only the first inner step is differentiated",
    "create_graph=True (PyTorch), or the tape (TensorFlow), in a first step that is written apart from the loop",
    ledger="B2",
)
def first_step_only(s: Setting) -> Setting | None:
    return instead_of_maml(lambda d, s: pull_back(d, s, fomaml(d, s), points(d, s)[:1]), s)


@mistake(
    "the factors (I − αH_k) are multiplied in the reverse order",
    "a hand-written backward pass that walks the inner steps from the first to the last",
)
def product_reversed(s: Setting) -> Setting | None:
    return instead_of_maml(lambda d, s: pull_back(d, s, fomaml(d, s), points(d, s)[::-1]), s)


@mistake(
    "all Hessians are taken at θ, not at φ_k",
    "the trajectory is not kept: a hand-written Hessian-vector product is called with θ at every step",
)
def hessians_at_theta(s: Setting) -> Setting | None:
    return instead_of_maml(lambda d, s: pull_back(d, s, fomaml(d, s), [(s.theta, b) for b in s.supports]), s)


@mistake(
    "each Hessian is taken after its step, at φ_{k+1}",
    "parameters are updated in place before the backward pass reads them",
)
def hessians_one_step_late(s: Setting) -> Setting | None:
    def rule(d: Derivatives, s: Setting) -> Theta:
        return pull_back(d, s, fomaml(d, s), list(zip(path(d, s)[1:], s.supports, strict=True)))

    return instead_of_maml(rule, s)


@mistake(
    "the sign of the Hessian is flipped: (I + αH)", "a hand-written backward pass of φ − αg that forgets the minus"
)
def hessian_sign(s: Setting) -> Setting | None:
    return instead_of_maml(lambda d, s: pull_back(d, s._replace(alpha=-s.alpha), fomaml(d, s), points(d, s)), s)


@mistake("α is missing from (I − αH)", "a hand-written backward pass of φ − αg that forgets the factor α")
def alpha_missing(s: Setting) -> Setting | None:
    return instead_of_maml(lambda d, s: pull_back(d, s._replace(alpha=1), fomaml(d, s), points(d, s)), s)


@mistake(
    "the support gradients leak into the result",
    "PyTorch: loss.backward() in the inner loop adds to .grad of θ, which is not cleared: use torch.autograd.grad",
    seen="AdrienLE/ANIML (notebook, cells 10 and 16)",
    ledger="B11",
)
def support_gradients_leak(s: Setting) -> Setting | None:
    def rule(d: Derivatives, s: Setting) -> Theta:
        at = points(d, s)
        return add([maml(d, s), *(pull_back(d, s, d.grad(*point), at[:k]) for k, point in enumerate(at))])

    return instead_of_maml(rule, s)


@mistake(
    "the query losses after every step are added up",
    "the query loss is computed inside the inner loop and summed; keep the last",
    seen="confusion in dragen1860/MAML-Pytorch#51 #61 (intended in MAML++)",
    ledger="B17",
)
def every_step_counts(s: Setting) -> Setting | None:
    if s.rule not in (maml, fomaml) or len(s.supports) < 2:
        return None

    def rule(d: Derivatives, s: Setting, last: Callable[[Derivatives, Setting], Theta] = s.rule) -> Theta:
        return add(last(d, s._replace(supports=s.supports[:k])) for k in range(1, len(s.supports) + 1))

    return s._replace(rule=rule)


# --- The data, and where the loss is taken ---


@mistake(
    "the outer loss is taken on the support data",
    "the same x, y are used inside and outside",
    seen="hereismari/tensorflow-maml#4, greentfrapp/maml-reptile MAML.py",
    ledger="B6",
)
def support_as_query(s: Setting) -> Setting | None:
    return s._replace(query=s.supports[-1]) if s.rule is not reptile and s.supports else None


@mistake(
    "the inner loop adapts to the query data",
    "support and query are swapped, or one batch is used for both",
    ledger="B6",
)
def adapted_on_query(s: Setting) -> Setting | None:
    return s._replace(supports=[s.query] * len(s.supports)) if s.rule is not joint and s.query else None


@mistake(
    "the adapted parameters are ignored: the gradient is that of the query loss at θ",
    "the query forward pass uses the module's own weights. PyTorch: torch.func.functional_call with the adapted "
    "ones; learn2learn: call the clone; JAX, TensorFlow: pass φ, not θ",
    seen="tristandeleu/pytorch-maml@fb2712d, learn2learn#420 #236; as a reading of FOMAML in deepchem#1481",
    ledger="B7",
)
def no_adaptation(s: Setting) -> Setting | None:
    return s._replace(rule=joint) if s.rule in (maml, fomaml) else None


@mistake(
    "the gradient is that of the support loss at θ",
    "θ.grad is read after the inner loop's backward pass and before the outer one",
)
def support_gradient_at_theta(s: Setting) -> Setting | None:
    return s._replace(rule=joint, query=s.supports[0]) if s.rule is not joint and s.supports else None


@mistake(
    "tasks adapt first, where joint training was asked for",
    "joint training takes the gradient at θ; the supports are unused",
    ledger="B38",
)
def adapts_first(s: Setting) -> Setting | None:
    return s._replace(rule=fomaml) if s.rule is joint else None


@mistake(
    "a task starts from the parameters that the task before it ended with",
    "θ is not restored between tasks. PyTorch: clone the module or pass parameters as a dict; learn2learn: "
    "maml.clone() for each task; TensorFlow: set the weights back",
    seen="learn2learn#98 (maml_toy.py without clone()), dragen1860/MAML-Pytorch#3 #6",
    ledger="B20",
)
def theta_leaks_across_tasks(s: Setting) -> Setting | None:
    return s._replace(leaks=True) if s.rule is not joint and s.supports else None


@mistake(
    "(n, 1) − (n,) broadcasts to (n, n), so the loss fits the mean of y",
    "give the targets the shape of the predictions",
    seen="AdrienLE/ANIML (notebook, the test loss)",
    ledger="B22",
)
def mean_broadcast(s: Setting) -> Setting | None:
    if s.outputs != 1:
        return None
    return s._replace(
        supports=[(x, _mean(y)) for x, y in s.supports], query=s.query and (s.query[0], _mean(s.query[1]))
    )


def _mean(y: Array) -> Array:
    return 0 * y + y.sum() / len(y)


# --- The inner loop ---


@mistake(
    "every inner step starts again from θ",
    "the inner loop computes φ from θ, not from the φ of the step before",
    seen="lmzintgraf/cavia (regression) before 7102d53",
    ledger="B8a",
)
def stale_restart(s: Setting) -> Setting | None:
    return s._replace(supports=s.supports[-1:]) if s.rule is not joint and len(s.supports) > 1 else None


@mistake(
    "the inner gradient is computed once, at θ, and applied at every step",
    "the gradient is taken outside the inner loop",
    seen="gcucurull/maml_flax main.py (hidden by its default of one step)",
    ledger="B8b",
)
def stale_gradient(s: Setting) -> Setting | None:
    if s.rule is joint or len(s.supports) < 2:
        return None
    return s._replace(supports=s.supports[:1], alpha=len(s.supports) * s.alpha)


@mistake(
    "the inner loop climbs: φ + αg",
    "the sign of the inner update",
    seen="dragen1860/MAML-Pytorch before 54d17ab, eric-mitchell/mend#13",
    ledger="B9",
)
def inner_ascent(s: Setting) -> Setting | None:
    return s._replace(alpha=-s.alpha) if s.rule is not joint else None


@mistake(
    "the inner gradient is divided by the number of examples twice",
    "a loss that is already a mean is divided by n",
    seen="learnables/learn2learn#190 #201",
    ledger="B10a",
)
def inner_loss_divided_twice(s: Setting) -> Setting | None:
    return s._replace(alpha=s.alpha / s.n) if s.rule is not joint and s.n else None


@mistake(
    "the inner loss is summed over the examples, not averaged",
    "PyTorch: reduction='sum'. JAX: jnp.sum. TensorFlow: a loss function that returns a vector, which the tape sums",
    seen="keras-io examples/vision/reptile.py",
    ledger="B10b",
)
def inner_loss_summed(s: Setting) -> Setting | None:
    return s._replace(alpha=s.alpha * s.n) if s.rule is not joint and s.n else None


@mistake(
    "one inner step is missing",
    "an off-by-one in the inner loop, or a first step under no_grad; in Reptile B39, sungyubkim/GBML gbml/reptile.py",
    seen="dragen1860/MAML-Pytorch#14 #40 (the first step under no_grad: there it crashes)",
    ledger="B16",
)
def one_step_short(s: Setting) -> Setting | None:
    return s._replace(supports=s.supports[:-1]) if s.rule is not joint and s.supports else None


@mistake("one inner step too many", "an off-by-one in the inner loop", ledger="B16")
def one_step_extra(s: Setting) -> Setting | None:
    return s._replace(supports=[*s.supports, s.supports[-1]]) if s.rule is not joint and s.supports else None


@mistake(
    "the biases are not adapted",
    "the inner loop goes over the weights only; or allow_unused=True hides a missing connection",
    ledger="B51",
)
def biases_not_adapted(s: Setting) -> Setting | None:
    if s.rule is joint or s.n is None:
        return None
    return s._replace(moves=tuple(move and np.ndim(leaf) > 1 for move, leaf in zip(s.moves, s.theta, strict=True)))


# --- ANIL: body and head ---


def partly(s: Setting) -> bool:
    return s.rule is not joint and not all(s.moves)


@mistake(
    "the whole network is adapted, not the head alone",
    "the flag that freezes the body in the inner loop has no effect",
    ledger="B29",
)
def body_adapted(s: Setting) -> Setting | None:
    return s._replace(moves=(True,) * len(s.moves)) if partly(s) else None


@mistake(
    "the support features are detached: the head is right, the body keeps only its direct gradient",
    "PyTorch: features under no_grad or .detach() in the inner loop. JAX: stop_gradient on the body. They must "
    "stay in the graph: the adapted head depends on them",
    ledger="B27",
)
def features_detached(s: Setting) -> Setting | None:
    def rule(d: Derivatives, s: Setting) -> Theta:
        pairs = zip(maml(d, s), fomaml(d, s), s.moves, strict=True)
        return [v if move else direct for v, direct, move in pairs]

    return instead_of_maml(rule, s) if partly(s) else None


@mistake(
    "the body gets no outer gradient",
    "the outer optimiser holds the head only, or the body is under no_grad in the query pass too",
    seen="confusion in dragen1860/MAML-Pytorch#22",
    ledger="B28",
)
def body_without_gradient(s: Setting) -> Setting | None:
    return instead_of_maml(lambda d, s: kept(maml(d, s), s.moves), s) if partly(s) else None


# --- Reptile ---


@mistake(
    "Reptile that is first-order MAML: the last gradient, on the query",
    "Reptile returns the displacement θ − φ_K; the query is unused",
    seen="dragen1860/Reptile-Pytorch#2 #4 #5",
    ledger="B42",
)
def reptile_by_query(s: Setting) -> Setting | None:
    return s._replace(rule=fomaml) if s.rule is reptile and s.query else None


@mistake(
    "Reptile that counts the last step only: φ_{K−1} − φ_K",
    "the displacement is taken from the last φ but one, not from θ",
    seen="openai/supervised-reptile's FOML, where it is meant",
    ledger="B44",
)
def last_displacement(s: Setting) -> Setting | None:
    def rule(d: Derivatives, s: Setting) -> Theta:
        *_, before, last = path(d, s)
        return axpy(-1, last, before)

    return s._replace(rule=rule) if s.rule is reptile and len(s.supports) > 1 else None


@mistake(
    "Reptile that shrinks θ: (1−ε)θ + ε(φ − θ)",
    "the step is θ + ε(φ − θ): the gradient is θ − φ, not 2θ − φ",
    seen="alok.github.io/2018/03/13/reptile-in-pytorch (the formula, not the code)",
    ledger="B36",
)
def reptile_shrinks(s: Setting) -> Setting | None:
    return s._replace(rule=lambda d, s: axpy(1, s.theta, reptile(d, s))) if s.rule is reptile else None


def with_mistakes(names: Iterable[str], settings: list[Setting]) -> list[Setting]:
    """The settings with these mistakes made wherever they can be made."""
    for name in names:
        settings = [MISTAKES[name].change(s) or s for s in settings]
    return settings
