"""MAML, first-order MAML, ANIL, Reptile, and the joint training they are measured against.

    θ is a list of arrays. A batch is a pair (x, y). A task is (supports, query): one support
    batch per inner step, one query batch. A loss is a scalar function of (θ, batch).

    θ theta   the meta-parameters, where every task starts     S_k supports[k]   K len(supports)
    φ phi     a task's own parameters while it adapts          Q   query         α alpha
    L loss    L(φ; S_k), L(φ; Q): the loss on a batch          i   the task

Every algorithm returns what an optimiser descends, a list shaped like θ, summed over the tasks.
Arguments are as the types say; `refmeta` exports the same functions with their arguments checked.
"""

from autograd import grad

from refmeta.trees import Array, Loss, Supports, Tasks, Theta, add, axpy, holding, split


def trajectory(loss: Loss, theta: Theta, supports: Supports, alpha: float) -> list[Theta]:
    """The parameters before, between and after the inner steps: [φ_0, …, φ_K].

    φ_0     = θ
    φ_{k+1} = φ_k − α ∇L(φ_k; S_k)               Finn et al. 2017, §2.2
    """
    phis = [list(theta)]
    for support in supports:
        phis.append(axpy(-alpha, grad(loss)(phis[-1], support), phis[-1]))
    return phis


def adapt(loss: Loss, theta: Theta, supports: Supports, alpha: float) -> Theta:
    """The parameters after all inner steps: φ_K, the last of the `trajectory`."""
    return trajectory(loss, theta, supports, alpha)[-1]


def objective(loss: Loss, theta: Theta, tasks: Tasks, alpha: float) -> Array:
    """F(θ) = Σ_i L(φ_i(θ); Q_i): the query loss once each task has adapted to its supports."""
    return sum(loss(adapt(loss, theta, S, alpha), Q) for S, Q in tasks)


def joint(loss: Loss, theta: Theta, tasks: Tasks, alpha: float | None = None) -> Theta:
    """The gradient of plain training on all tasks at once (pre-training); no task adapts.

        Σ_i ∇L(θ; Q_i)                               Nichol et al. 2018, eqs. 6–7

    The supports and α are unused. It is MAML with no inner steps, and 1/α times Reptile with
    one step on Q.
    """
    return add(grad(loss)(theta, Q) for _, Q in tasks)


def maml(loss: Loss, theta: Theta, tasks: Tasks, alpha: float) -> Theta:
    """The gradient of the adapted loss, through every inner step and so through ∇²L.

        ∇_θ Σ_i L(φ_i(θ); Q_i)                       Finn et al. 2017, eq. 1

    Each inner step is a factor I − α∇²L of the derivative: `refmeta.adjoint` multiplies them out.
    """
    return list(grad(objective, 1)(loss, theta, tasks, alpha))


def fomaml(loss: Loss, theta: Theta, tasks: Tasks, alpha: float) -> Theta:
    """First-order MAML: ∂φ_i/∂θ replaced by the identity.

        Σ_i ∇L(φ_i; Q_i)                             Finn et al. 2017, §5.2

    In general it is the gradient of no function of θ. It is the derivative of
    Σ_i L(φ_i + δ; Q_i) at δ = 0, φ_i fixed.
    """
    return add(grad(loss)(adapt(loss, theta, S, alpha), Q) for S, Q in tasks)


def anil(loss: Loss, theta: Theta, tasks: Tasks, alpha: float, head: int = 2) -> Theta:
    """MAML's gradient when only the last `head` arrays adapt ("almost no inner loop").

        ∇_θ Σ_i L((b, h_i(θ)); Q_i),  θ = (b, h)     Raghu et al. 2020, §4

    The body b keeps a gradient through the adapted heads, because h_i depends on b.
    """

    def adapted(theta: Theta) -> Array:
        b, h = split(theta, head)
        return objective(holding(b, loss), h, tasks, alpha)

    return list(grad(adapted)(theta))


def reptile(loss: Loss, theta: Theta, tasks: Tasks, alpha: float) -> Theta:
    """Minus the displacement of adaptation: descending it moves θ towards every φ_i.

        Σ_i (θ − φ_i)                                Nichol et al. 2018, eq. 5

    The paper's step is θ ← θ − (ε/n) Σ_i (θ − φ_i). The queries are unused and may be None.
    """
    return add(axpy(-1, adapt(loss, theta, S, alpha), theta) for S, _ in tasks)
