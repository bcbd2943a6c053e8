"""What else people write: mistakes that no vector lists.

Each is a field of `rules.Setting` with a value in place of the right one. A choice that makes no sense for an
algorithm is not offered to it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from refmeta.conformance import mistakes, rules
from refmeta.conformance.mistakes import Change, Fields, after_every_step, choice, paced, times, weights
from refmeta.conformance.rules import Derivatives, Outer, Setting, Term, at_theta, flat, kept, unflat
from refmeta.trees import Batch, Theta, axpy, dot

Arrays = Callable[[Setting], Sequence[Any]]  # the share of each array
MANY = 64  # examples: of more, every few are no step of their own
DEAREST = 200  # parameters: a Hessian's diagonal takes a product for each


@lru_cache(1 << 14)
def known(id: str) -> mistakes.Mistake:
    """A mistake by its id; that of a family is "family=number"."""
    if "=" not in id:
        return mistakes.MISTAKES.get(id) or mistakes.OTHERS.get(id) or ALONE[id]
    name, value = id.split("=")
    family, number = mistakes.FAMILIES[name], float(value)
    title, change = family.title.format(f"{number:.6g}"), mistakes.replaced(family.fields, number)
    return mistakes.Mistake(id, title, family.cause, mistakes.UNSEEN, "", change)


def with_mistakes(ids: Iterable[str], settings: list[Setting]) -> list[Setting]:
    """The settings with these mistakes, wherever they can be made."""
    for id in ids:
        change: Change = known(id).change
        settings = [change(s) or s for s in settings]
    return settings


# --- Which data, and how many steps ---


def joined(s: Setting, batches: list[Batch]) -> Batch:
    """One batch of all examples; for quadratics the mean."""
    xs, ys = zip(*batches, strict=True)
    return (np.concatenate(xs), np.concatenate(ys)) if network(s) else (sum(xs) / len(xs), sum(ys) / len(ys))


def at_each_step(s: Setting, k: int) -> list[Batch]:
    """The support batches of all tasks for step k."""
    return [supports[k] for supports, _ in s.tasks if k < len(supports)]


def cut(batch: Batch, n: int) -> list[Batch]:
    """Pieces of n examples, of which the last may be smaller."""
    return [(batch[0][i : i + n], batch[1][i : i + n]) for i in range(0, len(batch[0]), n)]


def with_neighbours(s: Setting, batch: Batch) -> list[Batch]:
    return next((at_each_step(s, k) for k, own in enumerate(s.supports) if own is batch), []) or [batch]


@choice()
def supports(s: Setting, _: None) -> dict[str, Fields]:
    """The batches of the inner steps.

    first_batch: every inner step takes the first support batch
    last_batch: every inner step takes the last support batch
    batches_reversed: the inner steps take the support batches in reverse order
    batches_shifted: the inner steps take the second support batch first, and the first last
    Cause: the iterator over the batches is made anew at every step, or a batch is drawn in another place

    first_step_missing: the first inner step is missing
    step_on_query: one more inner step is taken, on the query data
    last_on_query: the last inner step is taken on the query data
    first_twice: the first support batch is taken twice
    first_again: one inner step too many, on the first batch
    steps_twice: all inner steps are taken twice
    adapted_before: all inner steps are taken twice, and only the second time they are differentiated
    Cause: an off-by-one in the inner loop, or a batch that is drawn in another place

    first_x: all support batches have the inputs of the first one
    first_y: all support batches have the labels of the first one
    Cause: something is computed once and kept: by its shape, or its place

    all_together: every inner step takes all support batches together
    query_among_them: the query data are in every support batch
    Cause: batches are joined that should be apart

    first_supports: every task adapts to the first task's support data
    last_supports: every task adapts to the last task's support data
    tasks_together: every inner step descends the mean of all tasks' support losses
    shortest_together: every inner step descends the mean of all tasks' support losses, as often as in the shortest task
    Cause: the tasks' data are indexed by another counter
    """
    S, Q, K, tasks = s.supports, s.query, len(s.supports), s.tasks
    further: dict[str, Fields] = {"step_on_query": {"supports": [*S, Q]}} if Q and s.outer is not at_theta else {}
    if not s.adapts:
        return further
    lists = {"first_step_missing": S[1:], "first_twice": [*S[:1], *S], "first_again": [*S, *S[:1]]}
    lists |= {"steps_twice": S * 2, "all_together": [joined(s, S)] * K}
    lists |= {"adapted_before": S * 2} if s.differentiates else {}
    if K > 1:
        lists |= {"first_batch": S[:1] * K, "last_batch": S[-1:] * K}
        lists |= {"batches_reversed": S[::-1], "batches_shifted": S[1:] + S[:1]}
        lists |= {"first_x": [(next(a for a, _ in S if a.shape == x.shape), y) for x, y in S]}
        lists |= {"first_y": [(x, next(b for _, b in S if b.shape == y.shape)) for x, y in S]}
    if Q:
        lists |= {"last_on_query": [*S[:-1], Q], "query_among_them": [joined(s, [b, Q]) for b in S]}
    if tasks:
        lists |= {"first_supports": tasks[0][0], "last_supports": tasks[-1][0]}
        steps = {"tasks_together": max(len(S) for S, _ in tasks), "shortest_together": min(len(S) for S, _ in tasks)}
        lists |= {id: [at_each_step(s, k)[0] for k in range(many)] for id, many in steps.items()}
    apart: dict[str, Fields] = {"adapted_before": {"through": lambda k, steps: k >= K}}
    apart |= {id: {"pieces": with_neighbours} for id in ("tasks_together", "shortest_together")}
    return further | {id: {"supports": found, **apart.get(id, {})} for id, found in lists.items()}


PARTS: dict[str, tuple[str, Callable[[int], int]]] = {
    "first_example": ("the first example", lambda n: 1),
    "first_half": ("the first half", lambda n: max(n // 2, 1)),
    "pairs": ("an even number of examples", lambda n: n - n % 2 or 1),
    "last_missing": ("what is before the last example", lambda n: n - 1),
}


@choice(PARTS)
def parts(s: Setting, many: Callable[[int], int]) -> dict[str, Fields]:
    """Examples that are left out.

    _inside: of every support batch only {} counts
    _outside: of the query only {} counts
    _only: of every batch only {} counts
    Cause: an index, a slice, drop_last, or a part that is kept apart
    """

    def of(batch: Batch) -> Batch:
        return batch[0][: many(len(batch[0]))], batch[1][: many(len(batch[0]))]

    if not network(s):
        return {}
    inside: Fields = {"supports": list(map(of, s.supports))} if s.adapts else {}
    outside: Fields = {"query": of(s.query)} if s.query and not s.displaced else {}
    return {"_inside": inside, "_outside": outside, "_only": inside | outside if inside and outside else {}}


@choice()
def prepared(s: Setting, p: float | None) -> dict[str, Fields]:
    """The data are prepared in another way than they come in the case.

    x_centred: the inputs are centred, batch by batch
    y_centred: the targets are centred, batch by batch
    x_standard 0.00000001 0.00001 0.001: the inputs are standardised, batch by batch, by σ + {}
    y_standard 0.00000001 0.00001 0.001: the targets are standardised, batch by batch, by σ + {}
    x_standard_sample 0.00000001 0.00001 0.001: the inputs are standardised, batch by batch, by σ + {}, σ with n − 1
    y_standard_sample 0.00000001 0.00001 0.001: the targets are standardised, batch by batch, by σ + {}, σ with n − 1
    labels_anew: the labels are numbered anew, batch by batch
    Cause: data are prepared by the batch that they come in
    """

    def standard(a: np.ndarray, sample: bool = False) -> np.ndarray:
        return np.asarray((a - a.mean(0)) / (a.std(0, ddof=sample) + p if p else 1))

    def sampled(a: np.ndarray) -> np.ndarray:
        return standard(a, sample=True)

    def anew(y: np.ndarray) -> np.ndarray:
        return np.unique(y, return_inverse=True)[1]

    def of(place: int, way: Callable[[np.ndarray], np.ndarray]) -> Fields:
        def change(batch: Batch) -> Batch:
            return (way(batch[0]), batch[1]) if place == 0 else (batch[0], way(batch[1]))

        return {"supports": list(map(change, s.supports)), "query": s.query and change(s.query)}

    ways = {"centred": standard, "standard": standard, "standard_sample": sampled}
    places = [(0, "x"), (1, "y")] if s.outputs else [(0, "x")]  # labels stay labels
    if not network(s) or any(len(x) < 2 for x, _ in [*s.supports, *filter(None, [s.query])]):
        return {}
    found = {} if s.outputs else {"labels_anew": of(1, anew)}
    return found | {f"{name}_{id}": of(place, way) for place, name in places for id, way in ways.items()}


@choice()
def query(s: Setting, _: None) -> dict[str, Fields]:
    """The batch of the outer loss.

    swapped: support and query are swapped
    all_swapped: support and query are swapped, and the outer loss is the mean over the support batches
    Cause: the batches are unpacked in the other order

    next_query: the query is that of the next task
    previous_query: the query is that of the task before
    first_query: the query is that of the first task
    last_query: the query is that of the last task
    every_query: the query is that of all tasks together
    Cause: the tasks' data are indexed by another counter

    support_in_query: the outer loss is taken on the support and the query data together
    last_support_in_query: the outer loss is taken on the last support batch and the query data together
    Cause: batches are joined that should be apart

    tasks_merged: the tasks' queries are one batch, so that a task counts by its size
    Cause: the tasks' data are put into one batch

    first_support_as_query: the outer loss is taken on the first support batch
    supports_as_query: the outer loss is taken on all support data together
    Cause: the same x, y are used inside and outside
    """
    S, Q, tasks, found = s.supports, s.query, s.tasks, dict[str, Any]()
    if s.displaced:
        return {}
    if tasks:
        places = {"next": s.place + 1, "previous": s.place - 1, "first": 0, "last": -1}
        found |= {f"{which}_query": tasks[place % len(tasks)][1] for which, place in places.items()}
        found |= {"every_query": joined(s, [q for _, q in tasks])} if Q else {}
    found |= {"first_support_as_query": S[0]} if S else {}
    if S and Q:
        found |= {"support_in_query": joined(s, [*S, Q]), "last_support_in_query": joined(s, [S[-1], Q])}
        found |= {"supports_as_query": joined(s, S)}
    usable: dict[str, Fields] = {id: {"query": batch} for id, batch in found.items()}
    if tasks and Q:
        share = len(Q[0]) / sum(len(q[0]) for _, q in tasks) if network(s) else 1 / len(tasks)
        usable |= {"tasks_merged": scaled(s, lambda s, batch: 1 if network(s) and s.summed else share, 1)[1]}
    if s.adapts and Q:
        usable |= {"swapped": {"supports": [Q] * len(S), "query": S[-1]}}
        mean = [(-1, batch, 1 / len(S)) for batch in S]
        usable |= {"all_swapped": {"supports": [Q] * len(S), "outer": lambda s: mean}}
    return usable


def averaged(outer: Outer) -> Outer:
    return lambda s: [(k, batch, w / len(outer(s))) for k, batch, w in outer(s)]


def from_theta(s: Setting) -> list[Term]:
    return [(0, s.query, 1), *after_every_step(s)]


def all_at_theta(s: Setting) -> list[Term]:
    return [(0, batch, 1) for batch in (s.query, *s.supports)]


def inner_gradients(s: Setting) -> list[Term]:
    return [(k, batch, 1) for k, batch in enumerate(s.supports)]


@choice()
def outer(s: Setting, _: None) -> dict[str, Fields]:
    """The losses that count.

    from_theta: the query losses at θ and after every step are added up
    before_every_step: the query losses before every step are added up
    every_step_averaged: the query losses after every step are averaged
    from_theta_averaged: the query losses at θ and after every step are averaged
    Cause: the query loss is computed inside the inner loop

    theta_added: the query loss at θ is added
    support_added: the support loss after adaptation is added to the query loss
    first_support_added: the first support batch's loss after adaptation is added to the query loss
    improvement: the query loss at θ is subtracted
    support_at_theta_added: the support loss at θ is added to the query loss
    Cause: the meta-loss has more in it than the query's loss after adaptation

    inner_gradients_added: the inner gradients are added as they are
    last_gradient_added: the last inner gradient is added as it is
    support_gradient_added: the support gradient after adaptation is added as it is
    Cause: backward passes add to the .grad that is returned

    middle_of_tasks: the query losses are taken at the mean of all tasks' φ_K
    Cause: the adapted parameters are averaged before the queries

    best_step: the query loss is taken after the step where it is least
    best_step_or_theta: the query loss is taken at θ or after the step where it is least
    Cause: early stopping, by the data that the gradient is for

    supports_added: the losses of all inner steps are added to the query loss
    last_inner_gradient_added: the loss of the last inner step is added to the query loss
    supports_added_whole: the losses of all inner steps are added, and are not divided by the number of tasks
    Cause: what the inner loop left in .grad is not cleared before the outer loss: zero_grad is missing
    """
    first, last = s.supports[:1], s.supports[-1:]
    if s.displaced or s.outer is at_theta:
        return {}

    def added(k: int, batches: list[Batch], weight: int = 1) -> Outer:
        return lambda s: [*rules.at_the_end(s), *((k, b, weight) for b in batches)]

    outer: dict[str, Outer] = {"theta_added": added(0, [s.query]), "improvement": added(0, [s.query], -1)}
    if not s.supports:
        return {id: {"outer": losses} for id, losses in outer.items()}
    plain: dict[str, Outer] = {"inner_gradients": inner_gradients, "last_gradient": lambda s: [(-2, last[0], 1)]}
    plain |= {"support_gradient": lambda s: [(-1, last[0], 1)]}
    outer |= {"from_theta": from_theta, "every_step_averaged": averaged(after_every_step)}
    outer |= {"from_theta_averaged": averaged(from_theta), "supports_added": mistakes.and_supports(s.outer)}
    outer |= {"supports_added_whole": mistakes.and_supports(s.outer, whole=True)}
    outer |= {"before_every_step": lambda s: [(k, s.query, 1) for k in range(len(s.supports))]}
    outer |= {"support_added": added(-1, last), "first_support_added": added(-1, first)}
    outer |= {"support_at_theta_added": added(0, first), "last_inner_gradient_added": added(-2, last)}
    everywhere = [(-1, query, 1 / len(s.tasks)) for _, query in s.tasks]
    found: dict[str, Fields] = {id: {"outer": losses} for id, losses in outer.items()}
    found |= {f"{id}_added": {"plain": losses} for id, losses in plain.items() if s.differentiates}
    found |= {"best_step": {"best_from": 1}, "best_step_or_theta": {"best_from": 0}}
    return found | ({"middle_of_tasks": {"outer": lambda s: everywhere, "elsewhere": True}} if s.tasks else {})


@choice()
def other_outer(s: Setting, _: None) -> dict[str, Fields]:
    """Another function in place of the query loss at φ_K.

    inner_gradients_alone: the gradient is the sum of the inner gradients
    Cause: what the inner loop's backward passes left in .grad is taken for the result

    all_at_theta: the losses of the supports and of the query are added up
    all_at_theta_averaged: the losses of the supports and of the query are averaged
    supports_at_theta: the losses of the supports are added up, without the query
    Cause: all batches of a task are put together

    towards_the_mean: the mean of φ_1 … φ_K is taken for φ_K
    towards_the_mean_from_theta: the mean of φ_0 … φ_K is taken for φ_K
    Cause: an average of the weights, as in SWA

    mean_of_gradients: Reptile that averages K + 1 gradients
    Cause: Reptile returns θ − φ_K, which is α times the sum of the first K gradients
    Seen: ivy-llc/ivy meta.py
    Ledger: B55
    """
    found: dict[str, Fields] = {}
    if not s.displaced:
        every = {"all_at_theta": all_at_theta, "supports_at_theta": lambda s: all_at_theta(s)[1:]}
        every |= {"all_at_theta_averaged": averaged(all_at_theta)}
        found = {id: {"outer": outer, "curvature": None} for id, outer in every.items()}
    if not s.adapts:
        return found
    plain: Fields = {"displaced": False, "curvature": None}
    more = averaged(lambda s: [*inner_gradients(s), *((-1, b, 1) for b in s.supports[-1:])])
    found |= {"towards_the_mean": {"towards": 1}, "towards_the_mean_from_theta": {"towards": 0}}
    found |= {"inner_gradients_alone": {**plain, "outer": inner_gradients}}
    return found | ({"mean_of_gradients": {**plain, "outer": more}} if s.displaced else {})


@choice()
def weighted(s: Setting, _: None) -> dict[str, Fields]:
    """Another function of the tasks' query losses than their sum or mean.

    hardest_task: only the task with the greatest query loss counts
    softmax_of_tasks: the tasks are weighted by the softmax of their query losses, which is not differentiated
    softmax_differentiated: the tasks are weighted by the softmax of their query losses
    root_of_each: the root of every task's query loss is taken
    Cause: hard tasks are to count more, or the error that is reported is differentiated
    """

    def softmax(L: np.ndarray) -> np.ndarray:
        shares = np.exp(L - L.max())
        return np.asarray(shares / shares.sum())

    weights: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "hardest_task": lambda L: 1.0 * (np.arange(len(L)) == L.argmax()),
        "softmax_of_tasks": softmax,
        "softmax_differentiated": lambda L: softmax(L) * (1 + L - softmax(L) @ L),
        "root_of_each": lambda L: 0.5 * np.sign(L) / np.sqrt(abs(L)),
    }
    return {} if s.displaced or not s.query else {id: {"by_losses": found} for id, found in weights.items()}


# --- The curvature ---


def diagonal(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: Setting) -> Theta:
    """diag(∇²L) v, a column at a time."""
    units = np.eye(sum(map(np.size, v)))
    column = [flat(d.hvp(phi, batch, unflat(unit, v)))[i] for i, unit in enumerate(units)]
    return unflat(np.array(column) * flat(v), v)


def arrays_apart(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: Setting) -> Theta:
    """∇²L v without the blocks between different arrays."""
    return [d.hvp(phi, batch, [leaf * (i == j) for j, leaf in enumerate(v)])[i] for i in range(len(v))]


def gauss_newton(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: Setting) -> Theta:
    return (d.gauss or d.hvp)(phi, batch, v)


def outer_product(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: Setting) -> Theta:
    g = d.grad(phi, batch)
    return [leaf * dot(g, v) for leaf in g]


def hessian_of_ones(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: Setting) -> Theta:
    return [r * leaf for r, leaf in zip(d.hvp(phi, batch, [np.ones(np.shape(t)) for t in v]), v, strict=True)]


def on_support_gradient(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: Setting) -> Theta:
    return d.hvp(phi, batch, kept(d.grad(phi, batch), s.rates))


def differences(apart: float, begin: float, unit: bool) -> Callable[..., Theta]:
    """∇²L v by two gradients; begin: where the first one is, in steps from φ."""

    def product(d: Derivatives, phi: Theta, batch: Batch, v: Theta, s: Setting) -> Theta:
        step = apart / (float(np.sqrt(dot(v, v))) or 1) if unit else apart
        ends = [d.grad(axpy(step * at, v, phi), batch) for at in (begin, begin + 1)]
        return [leaf / step for leaf in axpy(-1, *ends)]

    return product


@choice()
def curvature(s: Setting, _: None) -> dict[str, Fields]:
    """Which Hessian is used, and where it is taken.

    diagonal: only the diagonal of the Hessian is used
    one_hessian: the product of the factors (I − αH_k) is cut after the terms with one Hessian
    outer_product: the outer product of the gradient with itself is used in the place of the Hessian
    on_support_gradient: the Hessian is applied to the support gradient
    arrays_apart: the Hessian between different arrays is left out
    gauss_newton: the Gauss–Newton matrix is used in the place of the Hessian
    query_hessian: the Hessians are those of the query loss
    hessians_at_the_end: all Hessians are taken at φ_K
    first_batch_hessian: all Hessians are those of the first support batch
    last_batch_hessian: all Hessians are those of the last support batch
    Cause: a hand-written backward pass, or an approximation that is meant

    odd_steps_cut: every second inner step is not differentiated
    even_steps_cut: every second inner step is not differentiated, beginning with the first
    last_step_cut: the last inner step is not differentiated
    Cause: PyTorch: .detach(), .data or requires_grad_() inside the inner loop, or create_graph=True not at every
        step. JAX: stop_gradient in the carry

    identity_missing: every inner step is differentiated by its gradient alone: −αH in place of I − αH
    first_cut: nothing comes back through the first inner step
    last_cut: nothing comes back through the last inner step
    odd_cut: nothing comes back through every second inner step
    even_cut: nothing comes back through every second inner step, beginning with the first
    Cause: .detach(), stop_gradient, around the parameters that a step subtracts from

    detached: first-order, but the inner optimiser's decay is differentiated
    Cause: the inner gradient alone is a constant: create_graph=True is missing

    hessian_of_ones: the Hessian times a vector of ones is used in the place of its product
    Cause: elementwise_grad, or jacobians summed over the outputs

    query_features_detached: the query features are detached: the body gets no direct gradient
    Cause: features under no_grad or .detach() in the query pass
    """

    def gone(steps: Callable[[int, int], bool]) -> Fields:
        return {"cut": steps, "through": lambda k, K: not steps(k, K)}

    constant: Fields = {"cut": lambda k, K: True, "curvature": rules.hessian}
    if not s.differentiates:
        return {"identity_missing": constant} if s.adapts and not s.displaced else {}
    found: dict[str, Fields] = {"arrays_apart": {"curvature": arrays_apart}} if len(s.theta) > 1 else {}
    found |= {"diagonal": {"curvature": diagonal}} if sum(map(np.size, s.theta)) < DEAREST else {}
    found |= {f.__name__: {"curvature": f} for f in (hessian_of_ones, outer_product, on_support_gradient)}
    found |= {"gauss_newton": {"curvature": gauss_newton}} if s.summed is not None else {}
    return found | {
        "one_hessian": {"linear": True} if len(s.supports) > 1 else {},
        "hessians_at_the_end": {"curved_at": lambda s, k: len(s.supports)},
        "query_hessian": {"curved_on": lambda s, k: s.query},
        "first_batch_hessian": {"curved_on": lambda s, k: s.supports[0]},
        "last_batch_hessian": {"curved_on": lambda s, k: s.supports[-1]},
        "identity_missing": constant,
        "first_cut": gone(lambda k, K: k == 0),
        "last_cut": gone(lambda k, K: k == K - 1),
        "odd_cut": gone(lambda k, K: k % 2 == 1),
        "even_cut": gone(lambda k, K: k % 2 == 0),
        "odd_steps_cut": {"through": lambda k, steps: k % 2 == 0},
        "even_steps_cut": {"through": lambda k, steps: k % 2 == 1},
        "last_step_cut": {"through": lambda k, steps: k < steps - 1},
        "detached": {"curvature": None, "detached": True},
        "query_features_detached": {"direct": s.rates} if s.split else {},
    }


# --- Which arrays ---


def last_layer(s: Setting) -> tuple[bool, ...]:
    """Weights and biases, or the last array if it is no vector."""
    tail = 1 + (np.ndim(s.theta[-1]) == 1)
    return tuple(i >= len(s.theta) - tail for i in range(len(s.theta)))


def first_layer(s: Setting) -> tuple[bool, ...]:
    return tuple(i < 1 + (np.ndim(s.theta[-1]) == 1) for i in range(len(s.theta)))


def network(s: Setting) -> bool:
    """Whether a batch is examples: all but (A, b) of a quadratic."""
    size = sum(map(np.size, s.theta))
    batches = [*s.supports, *filter(None, [s.query])]
    return all(np.shape(x) != (size, size) or np.shape(y) != (size,) for x, y in batches)


def but(arrays: Arrays) -> Arrays:
    return lambda s: tuple(not share for share in arrays(s))


ARRAYS: dict[str, tuple[str, Arrays]] = {
    "weights": ("the weights", weights),
    "matrices": ("arrays without axes, or with two", lambda s: tuple(np.ndim(leaf) != 1 for leaf in s.theta)),
    "tables": ("arrays with two axes", lambda s: tuple(np.ndim(leaf) > 1 for leaf in s.theta)),
    "head_first": (
        "the head's first array",
        lambda s: tuple(r and not any(s.rates[:i]) for i, r in enumerate(s.rates)),
    ),
    "biases": ("the biases", lambda s: (True,) * len(s.theta) if all(weights(s)) else but(weights)(s)),
    "last_layer": ("the last layer", last_layer),
    "body": ("the body, without the last layer,", but(last_layer)),
    "first_layer": ("the first layer", first_layer),
    "upper": ("the layers after the first", but(first_layer)),
    "ends": ("the first and the last layer", lambda s: tuple(map(max, first_layer(s), last_layer(s)))),
    "last_array": ("the last array", lambda s: tuple(i == len(s.theta) - 1 for i in range(len(s.theta)))),
    "others": ("the arrays before the last", lambda s: tuple(i < len(s.theta) - 1 for i in range(len(s.theta)))),
    "first_array": ("the first array", lambda s: tuple(i == 0 for i in range(len(s.theta)))),
}


def each(s: Setting, change: Callable[[Theta, Theta], Theta]) -> Fields:
    """Something more is made of every task's gradient and θ."""
    return {"each": (*s.each, change)}


def after(s: Setting, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Fields:
    """Something more is made of the result and θ."""
    return {"after": (*s.after, change)}


def only(s: Setting, shares: Sequence[Any]) -> Fields:
    return each(s, lambda g, theta: kept(g, shares))


def times_each(s: Setting, c: float) -> Fields:
    return each(s, lambda g, theta: [c * leaf for leaf in g])


def shortened(g: Theta, norm: float) -> Theta:
    """The gradient clipped to a norm; to 1, if that is infinite."""
    size = float(np.sqrt(dot(g, g))) or 1
    return [leaf * (1 / size if norm == np.inf else min(1, norm / size)) for leaf in g]


@choice(ARRAYS)
def arrays(s: Setting, arrays: Arrays) -> dict[str, Fields]:
    """Which arrays take part.

    _adapt: in the inner loop only {} can move
    Cause: the inner loop goes over these parameters only; or allow_unused=True hides a missing connection

    _head: the head is taken to be {}
    Cause: the head and the body are told apart in another way

    _fresh: of the adapted parameters the query pass takes those of {} alone, and θ for the others
    Cause: some modules are called with their own parameters

    _kept: the outer gradient is that of {} alone
    Cause: the outer gradient is taken, or kept, of these alone

    _differentiated: of the inner gradient only that of {} is differentiated
    Cause: PyTorch: .detach(), JAX: stop_gradient, on the others
    """
    shares = arrays(s)
    found: dict[str, Fields] = {"_kept": only(s, shares)}
    found |= {"_adapt": {"rates": times(s.rates, shares)}} if s.adapts else {}
    found |= {"_head": {"rates": shares}} if s.adapts and s.split and any(shares) else {}
    found |= {"_fresh": {"mixed": shares}} if s.adapts and not s.displaced and not all(shares) else {}
    differentiated = {"curvature": lambda d, phi, batch, v, s: d.hvp(phi, batch, kept(v, shares))}
    return found | ({"_differentiated": differentiated} if s.differentiates else {})


def alone(arrays: Arrays) -> Change:
    """All further mistakes are made in some arrays alone."""
    return lambda s: None if all(shares := arrays(s)) else s._replace(spared=(s, tuple(shares)))


MOVING = {"moving": ("the arrays that adapt", lambda s: s.rates), "still": ("the body", but(lambda s: s.rates))}
WHEN: dict[str, tuple[str, Callable[[Setting], bool]]] = {
    "in_later": ("the tasks after the first", lambda s: s.place > 0),
    "if_deep": ("networks with a hidden layer", lambda s: len(s.theta) > 2),
    "if_network": ("networks", network),
    "if_arrays": ("models of several arrays", lambda s: len(s.theta) > 1),
    "if_head": ("networks whose head has arrays", lambda s: any(s.rates)),
    "if_errors": ("regression", lambda s: bool(s.outputs)),
}
WHENS = {id: (name, lambda s, when=when: (when(s),) * len(s.theta)) for id, (name, when) in WHEN.items()}
ALONE = {
    id: mistakes.Mistake(id, f"in {name} alone", "something else is done here", mistakes.UNSEEN, "", alone(arrays))
    for id, (name, arrays) in (ARRAYS | MOVING | WHENS).items()
}


# --- The inner update ---


def scaled(s: Setting, count: Callable[[Setting, Batch], Any], power: int) -> tuple[Fields, Fields]:
    """The inner losses, and those that count, times a number to this power."""
    before = s.outer
    outer = {"outer": lambda s: [(k, batch, w * count(s, batch) ** power) for k, batch, w in before(s)]}
    inner = paced(s, lambda s, k: count(s, s.supports[k]) ** power) if s.adapts else {}
    return inner, {} if s.displaced else outer


@choice()
def update(s: Setting, _: None) -> dict[str, Fields]:
    """How a step is made.

    one_chain: a task starts from the parameters that the task before it ended with, and all steps are differentiated
    Cause: θ is not restored between tasks, and the graph of those before is kept: give each task its own copy of θ

    serial: a task starts from θ after 1/n of the way to where the task before ended
    Cause: θ is moved within the loop over tasks

    restarted: every inner step subtracts its gradient from θ, not from the φ of the step before
    Cause: the update subtracts from θ, not from the φ of the step before, in `θ - lr * g`

    gradients_at_theta: all inner gradients are taken at θ
    gradients_late: every inner gradient is taken at the φ of the step before
    arrays_in_turn: the gradient of an array is taken after the arrays before it have moved
    Cause: the inner gradient is not taken at the φ that it is subtracted from

    after_outer_steps: a task starts after an outer step of α on the tasks before it
    Cause: the outer optimiser steps within the loop over tasks

    added_up: each inner step takes the sum of all gradients until then
    averaged_up: each inner step takes the mean of all gradients until then
    never_cleared: each inner step takes the sum of all gradients until then, those of earlier tasks too
    Cause: the inner gradients are not cleared between steps: zero_grad is missing

    sign: the inner loop takes the sign of the gradient
    unit: the inner gradient is divided by its norm
    unit_arrays: every array of the inner gradient is divided by its norm
    adam: the inner loop is Adam's
    rmsprop: the inner loop is RMSprop's
    adagrad: the inner loop is Adagrad's
    adam_on: the inner loop is Adam's, whose memory goes on from task to task
    adam_hat: the inner loop is Adam's, with ε beside the uncorrected root, as in TensorFlow and higher
    adam_raw: the inner loop is Adam's without its first moment
    adam_inside: the inner loop is Adam's, with a number under the root
    rmsprop_inside: the inner loop is RMSprop's, with a number under the root
    adagrad_inside: the inner loop is Adagrad's, with a number under the root
    Cause: the inner optimiser is another than plain gradient descent
    """
    outside: dict[str, Fields] = {"after_outer_steps": {"descends": s.alpha}}
    outside |= {"serial": {"leaks": 1 / len(s.tasks)}} if s.tasks and s.adapts else {}
    if not s.adapts:
        return outside
    kinds: dict[str, Fields] = {kind: {"kind": kind} for kind in ("sign", *rules.ADAPTIVE)}
    kinds |= {f"{kind}_inside": {"kind": kind, "inside": 1e-10} for kind in ("adam", "rmsprop", "adagrad")}
    kinds |= {"unit": {"norm": 1, "unit": True}, "unit_arrays": {"norm": 1, "unit": True, "apart": True}}
    kinds |= {"added_up": {"momentum": 1}, "averaged_up": {"kind": "mean", "momentum": 1}}
    found = outside | {id: {"update": s.update._replace(**fields)} for id, fields in kinds.items()}
    found |= {
        "never_cleared": {**found["added_up"], "remembers": True},
        "adam_on": {**found["adam"], "remembers": True},
    }
    if len(s.supports) > 1:
        found |= {"restarted": {"restarts": True}, "gradients_at_theta": {"lag": len(s.supports)}}
        found |= {"gradients_late": {"lag": 1}}
    if len(s.theta) > 1:
        found |= {"arrays_in_turn": {"supports": [batch for batch in s.supports for _ in s.theta], "in_turn": True}}
    return found | ({"one_chain": {"together": True}} if s.differentiates else {})


@choice()
def heads(s: Setting, _: None) -> dict[str, Fields]:
    """ANIL: another head.

    head_in_front: the head is taken at the other end of θ
    body_for_head: the body adapts, and the head stays
    head_without_gradient: the head gets no outer gradient
    one_layer_more: one layer more adapts than the head
    one_array_more: one array more adapts than the head
    one_array_less: one array less adapts than the head
    head_in_layers: twice as many arrays adapt as the head has
    body_put_back: the body adapts too, and is put back before the query
    Cause: the head and the body are told apart in another way

    head_of_zeros: the head starts from zeros
    head_of_zeros_constant: the head starts from zeros and gets no gradient
    Cause: the head is made anew for each task

    body_gradients_left: the support gradients of the body are added to its gradient
    Cause: the inner optimiser's zero_grad clears the head's .grad alone
    """
    body = tuple(not rate for rate in s.rates) if s.split else but(last_layer)(s)
    if not s.adapts or not (s.split or len(s.theta) > 2):
        return {}
    zeros: Fields = {"start": kept(s.theta, body)}
    found: dict[str, Fields] = {"head_of_zeros": zeros, "head_of_zeros_constant": zeros | only(s, body)}
    if not s.split:
        return found
    some = {"head_in_front": s.rates[::-1], "body_for_head": body, "one_array_more": (*s.rates[1:], True)}
    some |= {"one_layer_more": tuple(map(max, s.rates, (*s.rates[2:], True, True)))}
    some |= {"one_array_less": (False, *s.rates[:-1]) if sum(s.rates) > 1 else s.rates}
    some |= {"head_in_layers": rules.moves(len(s.theta), 2 * sum(s.rates))}
    found |= {id: {"rates": rates} for id, rates in some.items()}
    put_back: Fields = {"rates": (True,) * len(s.theta), "mixed": s.rates}
    found |= {"body_gradients_left": {"spared": (s, body), "plain": inner_gradients}} if any(s.rates) else {}
    return found | {"body_put_back": put_back, "head_without_gradient": only(s, body)}


@choice()
def rates(s: Setting, _: None) -> dict[str, Fields]:
    """Another step size at each step, or of each layer.

    over_steps: the inner step size is divided by the number of steps
    times_steps: the inner step size is multiplied by the number of steps
    over_tasks: the inner step size is divided by the number of tasks
    times_tasks: the inner step size is multiplied by the number of tasks
    over_step: the inner step size is divided by the number of the step
    falling: the inner step size falls to zero, by the same amount at every step
    cosine: the inner step size falls to zero as a cosine
    over_layer: the inner step size of a layer is divided by its number
    over_fan_in: the inner step size of a matrix is divided by its number of inputs
    squared: the inner step size is multiplied by itself
    Cause: a loss is summed or averaged over steps or tasks before the inner gradient is taken, or a schedule
    """
    if not s.adapts:
        return {}
    K, T, layers = len(s.supports), len(s.tasks) or 1, tuple(1 / (1 + i // 2) for i in range(len(s.theta)))
    constant = {"over_steps": 1 / K, "times_steps": K, "over_tasks": 1 / T, "times_tasks": T, "squared": s.alpha}
    more: dict[str, Any] = {id: lambda s, k, c=c: c for id, c in constant.items()}
    more |= {"over_step": lambda s, k: 1 / (k + 1), "falling": lambda s, k: 1 - k / K}
    more |= {"cosine": lambda s, k: (1 + np.cos(np.pi * k / K)) / 2}
    found = {id: paced(s, rate) for id, rate in more.items()}
    if network(s):
        found |= {"over_layer": {"rates": times(s.rates, layers)}}
        found |= {"over_fan_in": {"rates": times(s.rates, [1 / len(t) if np.ndim(t) > 1 else True for t in s.theta])}}
    return found


def largest(s: Setting) -> int:
    """Examples of the largest batch."""
    return max(len(x) for supports, query in s.tasks for x, _ in [*supports, *filter(None, [query])])


COUNTS: dict[str, tuple[str, Callable[[Setting, Batch], Any]]] = {
    "n": ("examples", lambda s, batch: len(batch[0])),
    "entries": ("examples and of outputs", lambda s, batch: len(batch[0]) * (s.outputs or 1)),
    "outputs": ("outputs", lambda s, batch: s.outputs or 1),
    "everything": ("examples, or of numbers", lambda s, batch: len(batch[0])),  # for a quadratic too
    "padded": ("examples, as a share of the largest batch", lambda s, batch: len(batch[0]) / largest(s)),
    "classes": ("classes", lambda s, batch: 1 if s.outputs or s.summed is None else len(s.theta[-1])),
    "squared": ("examples under squared errors", lambda s, batch: len(batch[0]) if s.outputs else 1),
}


@choice(COUNTS)
def counts(s: Setting, count: Callable[[Setting, Batch], Any]) -> dict[str, Fields]:
    """A loss times a number.

    _times_inner: the inner loss is multiplied by the number of {}
    _times_outer: the query loss is multiplied by the number of {}
    _times: the inner and the query loss are multiplied by the number of {}
    Cause: PyTorch: reduction='sum'. JAX: jnp.sum

    _over_inner: the inner loss is divided by the number of {}
    _over_outer: the query loss is divided by the number of {}
    _over: the inner and the query loss are divided by the number of {}
    Cause: a loss that is already a mean is divided by their number
    """
    if not network(s) and count is not COUNTS["everything"][1]:
        return {}
    found: dict[str, Fields] = {}
    for verb, power in (("_times", 1), ("_over", -1)):
        inner, outer = scaled(s, count, power) if power < 0 or not s.summed else ({}, {})  # it sums already
        found |= {f"{verb}_inner": inner, f"{verb}_outer": outer, verb: inner | outer}
    return found


# --- Another loss, where the network is known ---


def other_loss(s: Setting, ids: str | None, where: Sequence[str] = ("loss", "loss_inside")) -> dict[str, Fields]:
    """The loss of each id of a docstring, in these places."""
    known = network(s) and s.summed is not None and (len(where) > 1 or s.adapts)
    return {name: dict.fromkeys(where, name) for name in re.findall(r"^    ([a-z]\w*): ", ids or "", re.M) if known}


@choice()
def layers(s: Setting, _: None) -> dict[str, Fields]:
    """The network in the loss.

    relu: the activation is relu
    tanh: the activation is tanh
    sigmoid: the activation is the logistic function
    linear: the activation is missing
    one_activation_short: the last hidden layer has no activation
    no_biases: the biases are not used in the forward pass
    no_last_bias: the last bias is not used
    bias_twice: the last bias is added twice
    tanh_at_the_end: the last layer has an activation too
    normalised: the hidden layers have batch normalisation
    Cause: the network is another than the vector's

    softmax_twice: the softmax is taken twice
    squashed: the last layer has an activation too, softmax before a cross-entropy
    Cause: cross_entropy is given probabilities, not logits
    """
    return other_loss(s, layers.__doc__)


WHERE: dict[str, tuple[str, tuple[str, ...]]] = {"": ("", ("loss", "loss_inside"))}
WHERE |= {"inside_": (", in the inner loop", ("loss_inside",)), "outside_": (", for the query", ("loss",))}


@choice(WHERE)
def loss(s: Setting, where: tuple[str, ...]) -> dict[str, Fields]:
    """The loss on the network's outputs.

    softmax_over_examples: the softmax is taken over the examples{}
    Cause: dim=0, axis=0

    squared_labels: the squared error to the labels as vectors is taken for the cross-entropy{}
    huber: the Huber loss is taken for the squared error{}
    absolute: the absolute error is taken for the squared error{}
    root: the root of the loss is taken{}
    Cause: another loss than the one that was asked for

    smoothed: the labels are smoothed by 0.1{}
    Cause: label_smoothing=0.1

    labels_shifted: the labels are taken to count from one{}
    Cause: data whose labels are 1 … n

    first_output_alone: only the first output counts{}
    Cause: the loss takes column 0 of the predictions
    """
    return other_loss(s, loss.__doc__, where)


@choice()
def reductions(s: Setting, _: None) -> dict[str, Fields]:
    """A loss that is halved, summed or averaged.

    half_squared_error: the squared error has a factor ½
    half_inside: the inner squared error has a factor ½
    half_outside: the squared error of the query has a factor ½
    half_norm: the squared error is ½ ‖f − y‖², summed over the outputs
    Cause: ½ (f − y)² is another loss than the one that was asked for

    other_inside: the inner loss is a mean over the examples where a sum was asked for, and a sum where a mean was
    other_outside: the query loss is a mean over the examples where a sum was asked for, and a sum where a mean was
    Cause: only one of the two losses is reduced as it was asked for

    examples_mean: the loss is the mean over the examples, also where the sum was asked for
    examples_sum: the loss is the sum over the examples, also where the mean was asked for
    Cause: a convention of its own
    """
    if not network(s) or s.summed is None:
        return {}
    entries = COUNTS["entries"][1]
    (over, under), (times, above) = scaled(s, entries, -1), scaled(s, entries, 1)
    half, less = scaled(s, lambda s, batch: 0.5, 1)
    norm = scaled(s, lambda s, batch: 0.5 * (1 if s.summed else s.outputs or 1), 1)
    found = {"examples_mean": over | under} if s.summed else {"examples_sum": times | above}
    found |= {"other_inside": over if s.summed else times, "other_outside": under if s.summed else above}
    halves = {"half_squared_error": half | less, "half_inside": half, "half_outside": less}
    return found | (halves | {"half_norm": norm[0] | norm[1]} if s.outputs else {})


@choice()
def result(s: Setting, _: None) -> dict[str, Fields]:
    """What is returned.

    new_theta: θ less α times the gradient is returned
    theta_once: θ is added
    Cause: an outer step is taken, and its end is returned

    sign_returned: the sign of the gradient is returned
    unit_returned: the gradient is divided by its norm
    Cause: what an outer optimiser does is done before the gradient is returned

    over_own_steps: the gradient of every task is divided by its number of steps
    Cause: an average over the steps

    unit_tasks: the gradient of every task is divided by its norm
    Cause: gradients are scaled so that no task counts more than another

    over_steps_taken: the displacement is divided by the number of the steps that were taken
    Cause: the number of steps is that of another list

    last_task_alone: of the tasks only the last one counts
    Cause: a sum over the tasks is overwritten

    columns: the result is cut column by column
    rows: the result is flattened column by column
    weights_first: the result is flattened with the weights in front
    arrays_reversed: the result is flattened with the last array in front
    Cause: parameters are flattened in one order, and cut in another

    from_first_step: the displacement is taken from φ_1, not from θ
    Cause: the parameters are saved after the first inner step

    displacement: the displacement θ − φ_K is returned
    phi_returned: φ_K is returned
    path_added: the displacements θ − φ_1 … θ − φ_K are added up
    Cause: Reptile's outer step takes the displacement, the others take the gradient of the query loss
    """
    K = len(s.supports) or 1
    away: Fields = {"displaced": True, "curvature": None} if s.adapts and not s.displaced else {}

    def order(of: Callable[[Theta], Theta]) -> Fields:
        return after(s, lambda g, theta: flat(of(unflat(g, s.theta))))

    orders: dict[str, Any] = {"arrays_reversed": lambda t: t[::-1], "rows": lambda t: [leaf.ravel("F") for leaf in t]}
    orders |= {"columns": lambda t: [leaf.ravel().reshape(leaf.shape, order="F") for leaf in t]}
    orders |= {"weights_first": lambda t: sorted(t, key=lambda leaf: leaf.ndim == 1)}
    total: dict[str, Any] = {"new_theta": lambda g, t: t - s.alpha * g, "theta_once": lambda g, t: g + t}
    total |= {"sign_returned": lambda g, t: np.sign(g), "unit_returned": lambda g, t: g / np.linalg.norm(g)}
    found = {id: order(of) for id, of in orders.items()} | {id: after(s, change) for id, change in total.items()}
    found |= {"unit_tasks": each(s, lambda g, t: shortened(g, np.inf)), "over_own_steps": times_each(s, 1 / K)}
    found |= {"phi_returned": {"curvature": None, "displaced": True} | each(s, lambda g, t: axpy(-1, g, t))}
    if s.displaced:
        asked = len(s.tasks[s.place][0]) if s.tasks else K
        mean = s.scale != 1 and np.isclose(s.scale * s.alpha * asked, 1)  # of the steps: over_alpha_k
        found |= {"over_steps_taken": times_each(s, asked / K)} if mean else {}
        found |= {"from_first_step": {"origin": min(1, K)}, "path_added": {"towards": 1} | times_each(s, K)}
    found |= {"last_task_alone": times_each(s, 1 * (s.place == len(s.tasks) - 1))} if s.tasks else {}
    return found | {"displacement": away}


# --- Numbers ---


@choice()
def inner(s: Setting, p: float) -> dict[str, Fields]:
    """Numbers in the inner loop.

    alpha 0.0001 0.001 0.002 0.003 0.005 0.01 0.02 0.03 0.04 0.05 0.1 0.2 0.3 0.4 0.5 1: the inner step size is {}, not
        the one that was asked for
    alpha_times 2 0.5 0.1 0.2 0.33333333333333333 0.9 0.95 0.99 1.5 3 5 10: the inner step size is multiplied by {}
    Cause: a step size, or a factor of it, is written by hand

    momentum 0.9 0.5 0.99: the inner loop has momentum {}
    momentum_on 0.9 0.5 0.99: the inner loop has momentum {}, whose memory goes on from task to task
    nesterov 0.9 0.5 0.99: the inner loop has Nesterov's momentum, {}
    average 0.9 0.5 0.99: the inner loop takes a running average of the gradients, by {}
    pull 0.5 0.1 0.01 1: the inner loss has a proximal term, {} / 2 ‖φ − θ‖²
    decay 0.0001 0.0005 0.001 0.005 0.01 0.1: the inner loop has weight decay {}
    Cause: the inner optimiser is another than plain gradient descent

    cool 0.99 0.95 0.9 0.8 0.7 0.5 0.1: the inner step size is multiplied by {} at every step
    first_faster_step 10 2 0.5 0.1: the step size of the first inner step is multiplied by {}
    Cause: a scheduler lowers the inner rate

    clamp 0.1 0.5 1 5 10 40: the inner gradients are clipped to ±{}
    clamp_whole 0.5 1 5 10: the inner gradients are clipped to ±{}, those on the bounds are differentiated
    clamp_half 0.5 1 5 10: the inner gradients are clipped to ±{}, those on the bounds are differentiated by half
    norm 0.1 0.25 0.5 1 2 5 10 40: the inner gradient is clipped to norm {}
    norm_whole 0.5 1 5 10: the inner gradient is clipped to norm {}, also where it has it
    norm_half 0.5 1 5 10: the inner gradient is clipped to norm {}, by half where it has it
    norm_arrays 0.1 0.25 0.5 1 2 5 10 40: every array of the inner gradient is clipped to norm {}
    norm_constant 0.1 0.25 0.5 1 2 5 10 40: the inner gradient is clipped to norm {}, which is not differentiated
    Cause: a clip meant for the outer gradients, or for reinforcement learning

    biases_faster 2 0.1 0.5 10: the inner step size of the biases is multiplied by {}
    vectors_faster 2 0.1 0.5 10: the inner step size of arrays with one axis is multiplied by {}
    small_faster 2 0.1 0.5 10: the inner step size of arrays with at most one axis is multiplied by {}
    last_faster 10 2 0.1 0.5: the inner step size of the last layer is multiplied by {}
    body_slowly 0.1 0.5 0.01: the body adapts too, with the inner step size times {}
    first_faster 0.1 0.5 2 10: the inner step size of the first layer is multiplied by {}
    Cause: parameter groups with rates of their own

    batches_of 1 2 4: an inner step is taken on every {} examples of a batch
    Cause: the inner loop goes over small batches

    rounded 1 2 3: the inner step size is rounded to {} digits after the point
    Cause: it went through a text, or a table

    always 1 2 3 5 10: the number of inner steps is always {}
    always_last 2 3 5 10: the number of inner steps is always {}, on the last batch from then on
    at_most 2 3 4 5 10: at most {} inner steps are taken
    Cause: the number of steps is written by hand

    below_left_out 0.5 1 0.1 0.01: an inner step is left out where its loss is below {}
    until_below 0.5 1 0.1 0.01: the inner loop ends where its loss is below {}
    Cause: early stopping

    part_way 0.1 0.5: a task starts from θ after {} of the way to where the task before ended
    Cause: θ is moved within the loop over tasks
    """
    if not s.adapts:
        return {}
    S, u, n = s.supports, s.update, max(min(int(p), 99), 1)

    def faster(shares: Sequence[Any]) -> Fields:
        return {"rates": times(s.rates, [p if share else True for share in shares])} if network(s) else {}

    updates: dict[str, Fields] = {name: {name: p} for name in ("momentum", "pull", "decay", "clamp", "norm")}
    updates["norm_arrays"] = {"norm": p, "apart": True}
    updates |= {"nesterov": {"kind": "nesterov", "momentum": p}, "average": {"kind": "average", "momentum": p}}
    for name, tie in (("half", 0.5), ("whole", 1)) if s.differentiates else ():  # else they are as without it
        updates |= {f"clamp_{name}": {"clamp": p, "tie": tie}, f"norm_{name}": {"norm": p, "tie": tie}}
        updates |= {"norm_constant": {"norm": p, "constant": True}}
    lists = {"always": (S * n)[:n], "always_last": (S + S[-1:] * n)[:n], "at_most": S[:n]}
    found: dict[str, Fields] = {name: {"update": u._replace(**fields)} for name, fields in updates.items()}
    found |= {id: {"supports": batches} for id, batches in lists.items()}
    found |= {"alpha": {"alpha": p}, "alpha_times": {"alpha": p * s.alpha}, "part_way": {"leaks": p}}
    found |= {"below_left_out": {"least": p}, "until_below": {"least": p, "ends": True}}
    found |= {"rounded": {"alpha": round(float(s.alpha), n)}, "momentum_on": {**found["momentum"], "remembers": True}}
    if network(s) and all(len(x) <= MANY for x, _ in S):
        found |= {"batches_of": {"supports": [part for batch in S for part in cut(batch, n)]}}
    found |= {"cool": paced(s, lambda s, k: p**k), "first_faster_step": paced(s, lambda s, k: 1 if k else p)}
    found |= {"last_faster": faster(last_layer(s)), "first_faster": faster(first_layer(s))}
    found |= {"body_slowly": {"rates": tuple(rate or p for rate in s.rates)}} if s.split else {}
    for id, few in (("vectors_faster", (1,)), ("small_faster", (0, 1))):
        found |= {id: {"rates": times(s.rates, [p if np.ndim(leaf) in few else True for leaf in s.theta])}}
    return found | {"biases_faster": faster(but(weights)(s))}


@choice()
def back(s: Setting, p: float) -> dict[str, Fields]:
    """Numbers in the way back.

    penalty 0.0001 0.0005 0.001 0.01 0.1: {} θ is added to the gradient of every task
    penalty_once 0.0001 0.0005 0.001 0.01 0.1: {} θ is added to the result
    lasso 0.0001 0.001 0.01 0.1: {} times the sign of θ is added to the result
    lasso_tasks 0.0001 0.001 0.01 0.1: {} times the sign of θ is added to the gradient of every task
    Cause: a weight decay, or a penalty, outside

    l2 0.001 0.002 0.0005 0.0001 0.01 0.02 0.1: every loss has {} / 2 ‖φ‖² in it
    l2_outside 0.001 0.002 0.0005 0.0001 0.01 0.02 0.1: the query loss has {} / 2 ‖φ‖² in it
    l2_weights 0.001 0.002 0.0005 0.0001 0.01 0.02 0.1: every loss has {} / 2 ‖φ‖² of the weights in it
    l2_weights_outside 0.001 0.002 0.0005 0.0001 0.01 0.02 0.1: the query loss has {} / 2 ‖φ‖² of the weights in it
    Cause: a weight decay, or a penalty, in the loss

    in_pieces 2 4: the query loss is the mean over pieces of {}, whatever their sizes
    whole_pieces 2 4: of the query only whole pieces of {} count
    Cause: the query is evaluated in small batches

    descended 0.1 0.01 0.001 0.5 1: a task starts after an outer step of {} on the tasks before it
    Cause: the outer optimiser steps within the loop over tasks

    clip_value 0.1 0.5 1 5 10: the result is clipped to ±{}
    clip_norm 0.1 0.5 1 2 5 10: the result is clipped to norm {}
    clip_tasks 0.1 0.5 1 2 5 10: the gradient of every task is clipped to norm {}
    stepped 0.1 0.01 0.001 0.5 1: θ less {} times the gradient is returned
    Cause: what an outer optimiser does is done before the gradient is returned

    body_less 0.1 0.01 0.5: the gradient of the body is multiplied by {}
    Cause: the outer optimiser has parameter groups with rates of their own

    bend 2 0.5 0.1: the second-order term is multiplied by {}
    Cause: a hand-written backward pass

    differences 0.1 0.01 0.001: the Hessian's products are one-sided differences of gradients, {} v apart
    central_differences 0.2 0.5 1: the Hessian's products are central differences of gradients, {} v apart
    unit_differences 0.1 0.2 1: the Hessian's products are central differences of gradients, {} v / ‖v‖ apart
    Cause: products with the Hessian by finite differences, as in DARTS, with a step that is too large

    first_steps_cut 1 2 3 4 5 6 7 8 9 10: the first {} inner steps are not differentiated
    last_steps_alone 2 3 4 5 6 7 8 9 10: only the last {} inner steps are differentiated
    first_steps_alone 2 3 4 5 6 7 8 9 10: only the first {} inner steps are differentiated
    step_cut 2 3 4 5 6 7 8 9 10: inner step {} is not differentiated
    Cause: PyTorch: .detach(), .data or requires_grad_() inside the inner loop. JAX: stop_gradient in the carry
    """
    n = max(int(p), 1)
    found: dict[str, Fields] = {}
    if network(s) and not s.displaced and s.query and float(p).is_integer():
        whole = len(s.query[0]) // n * n or n
        found |= {"in_pieces": {"pieces_outside": lambda s, batch: cut(batch, n)}}
        found |= {"whole_pieces": {"query": (s.query[0][:whole], s.query[1][:whole])}}
    tasks: dict[str, Any] = {"penalty": lambda g, t: axpy(p, t, g), "clip_tasks": lambda g, t: shortened(g, p)}
    tasks |= {"lasso_tasks": lambda g, t: axpy(p, list(map(np.sign, t)), g)}
    total: dict[str, Any] = {"stepped": lambda g, t: t - p * g, "clip_norm": lambda g, t: shortened([g], p)[0]}
    total |= {"clip_value": lambda g, t: np.clip(g, -p, p), "penalty_once": lambda g, t: g + p * t}
    total |= {"lasso": lambda g, t: g + p * np.sign(t)}
    found |= {id: each(s, change) for id, change in tasks.items()}
    found |= {id: after(s, change) for id, change in total.items()}
    through: dict[str, Any] = {"step_cut": lambda k, steps: k != p - 1, "first_steps_cut": lambda k, steps: k >= p}
    through |= {"last_steps_alone": lambda k, steps: k >= steps - p, "first_steps_alone": lambda k, steps: k < p}
    found |= {"body_less": only(s, [rate or p for rate in s.rates])} if s.split else {}
    every, some = [p] * len(s.theta), [p * share for share in weights(s)]
    found |= {"l2": {"ridge": (every, every)}, "l2_weights": {"ridge": (some, some)}}
    found |= {"l2_outside": {"ridge": (None, every)}, "l2_weights_outside": {"ridge": (None, some)}} if s.adapts else {}
    found |= {"descended": {"descends": p}}
    back = {id: {"through": steps} for id, steps in through.items()} | {"bend": {"back": p * s.back}}
    ways = {"differences": (0, False), "central_differences": (-0.5, False), "unit_differences": (-0.5, True)}
    back |= {id: {"curvature": differences(p, *way)} for id, way in ways.items()}
    return found | (back if s.differentiates else {})


EXAMPLES = {"examples_mean": "mean", "examples_sum": "sum"}  # own conventions that also change the inner loop
EVERY = [*mistakes.MISTAKES, *mistakes.OTHERS]
