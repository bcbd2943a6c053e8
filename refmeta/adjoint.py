"""MAML and ANIL a second time: no gradient step is differentiated.

An inner step φ_{k+1} = φ_k − α P ∇L(φ_k; S_k) has the Jacobian I − α P H_k, H_k = ∇²L(φ_k; S_k), where P
keeps what adapts (MAML: everything; ANIL: the head). So the query's gradient is pulled back to θ, latest
step first, by Hessian-vector products:

    v_K = ∇L(φ_K; Q)        v_k = (I − α H_k P) v_{k+1}        v_0 = the task's meta-gradient

Only φ_0 … φ_K are kept: beside them memory does not grow with the number of inner steps.
"""

from autograd import grad

from refmeta.algorithms import trajectory
from refmeta.trees import Batch, Loss, Supports, Tasks, Theta, add, axpy, dot, holding, split


def maml(loss: Loss, theta: Theta, tasks: Tasks, alpha: float) -> Theta:
    """Σ_i (I − αH_{i,0}) ⋯ (I − αH_{i,K−1}) ∇L(φ_{i,K}; Q_i): `refmeta.maml`, derived by hand."""
    return anil(loss, theta, tasks, alpha, len(theta))


def anil(loss: Loss, theta: Theta, tasks: Tasks, alpha: float, head: int = 2) -> Theta:
    """The same product with H_{i,k} P for H_{i,k}: `refmeta.anil`, derived by hand."""
    return add(task_gradient(loss, theta, *task, alpha, head) for task in tasks)


def task_gradient(loss: Loss, theta: Theta, S: Supports, Q: Batch, alpha: float, head: int) -> Theta:
    """v_0 of one task, by the recursion above."""
    body, h = split(theta, head)
    *phis, last = [body + h for h in trajectory(holding(body, loss), h, S, alpha)]
    v = list(grad(loss)(last, Q))
    for phi, support in zip(reversed(phis), reversed(S), strict=True):
        still, moving = split(v, head)
        v = axpy(-alpha, hvp(loss, phi, support, [0 * leaf for leaf in still] + moving), v)
    return v


def hvp(loss: Loss, phi: Theta, batch: Batch, v: Theta) -> Theta:
    """The Hessian-vector product ∇²L(φ; B) v = ∇_φ ⟨∇L(φ; B), v⟩."""
    return list(grad(lambda phi: dot(grad(loss)(phi, batch), v))(phi))
