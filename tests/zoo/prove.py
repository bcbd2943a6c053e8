"""The zoo proves itself, without the audit: python -m tests.zoo.prove [torch|jax] [EVERY].

The right ones agree to 1e-9 in float64, and with finite differences where the network is smooth; the wrong ones differ.
"""

import sys
import warnings

import numpy as np

from tests.zoo import cases as zoo

AGREE = 1e-9


def disagreeing(chosen):
    """The cases, right ones by what they say, whose gradient is not the right one."""
    return [case for case in chosen if not zoo.difference(case) < AGREE]  # a NaN is none either


def torch_line(problem, steps, direction):
    """The meta-loss on the line θ + t·direction, adapted by hand and with no graph but of the inner loss."""
    import torch
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    from tests.zoo.ask import double

    net, tasks = double(problem, 0)
    theta = parameters_to_vector(net.parameters()).detach()

    def value(t):
        total = 0.0
        for (x_s, y_s), (x_q, y_q) in tasks:
            phi = theta + t * torch.as_tensor(direction)
            for _ in range(steps):
                vector_to_parameters(phi, net.parameters())
                loss = problem.criterion(net(x_s), y_s)
                grads = torch.autograd.grad(loss, list(net.parameters()))
                phi = phi - problem.lr * parameters_to_vector(grads)
            vector_to_parameters(phi, net.parameters())
            total += float(problem.criterion(net(x_q), y_q).detach())
        return total

    return value


def jax_line(problem, steps, direction):
    """The same in JAX."""
    import jax
    from jax.flatten_util import ravel_pytree

    from tests.zoo.ask_jax import double

    grad, loss = jax.jit(jax.grad(problem.loss)), jax.jit(problem.loss)

    def value(t):
        with jax.enable_x64(True):
            params, tasks = double(problem, 0)
            theta, unravel = ravel_pytree(params)
            total = 0.0
            for support, query in tasks:
                phi = unravel(theta + t * direction)
                for _ in range(steps):
                    phi = jax.tree.map(lambda p, g: p - problem.lr * g, phi, grad(phi, support))
                total += float(loss(phi, query))
            return total

    return value


def finite_difference(framework, network, steps, h=1e-5):
    """The relative error of the right gradient along one direction, by central differences of order four."""
    problem = zoo.land(framework).problems[network]
    gradient = zoo.right_gradient(framework, network, "maml", steps, 0)
    direction = np.random.default_rng(0).normal(size=gradient.size)
    direction /= np.linalg.norm(direction)
    value = (torch_line if framework == "torch" else jax_line)(problem, steps, direction)
    slope = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    return abs(gradient @ direction - slope) / np.linalg.norm(gradient)


def smooth(framework):
    """The networks that finite differences can judge."""
    found = zoo.land(framework).problems.items()
    return [name for name, p in found if "smooth" in p.traits and not {"unused", "stream", "tied"} & p.traits]


def main(framework="torch", every="1"):
    warnings.simplefilter("ignore")
    right, wrong = (zoo.cases(framework, kind, 1, int(every)) for kind in ("right", "wrong"))
    bad = disagreeing(right)
    print(f"{framework}: right: {len(right)} asked, {len(bad)} disagree", *bad, sep="\n  ", flush=True)
    errors = {name: finite_difference(framework, name, 1) for name in smooth(framework)}
    print(f"finite differences: {', '.join(f'{name} {error:.0e}' for name, error in errors.items())}", flush=True)
    none = [case for case in wrong if not zoo.is_mistake(case)]
    print(
        f"wrong: {len(wrong)} asked, {len(none)} change the gradient by less than {zoo.LEAST:g}, or diverge",
        *none,
        sep="\n  ",
    )
    return 1 if bad or max(errors.values()) > 1e-7 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
