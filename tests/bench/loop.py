"""The loop around the gradient, of `refmeta sine` with its defaults: `python -m tests.bench.loop [ITERATIONS]`.

Prints what share of training is neither the gradient's nor the outer step's, and how long the evaluation takes.
"""

import sys
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from refmeta.fast import keep_freed_memory, recorded, stacked
from refmeta.lab.sine.experiment import DIVERGED, Config, network, unseen
from refmeta.lab.sine.waves import LAWS
from refmeta.lab.training import METHODS, evaluate, optimiser, train

BEYOND, EVALUATION = 0.15, 0.5  # at most: of training's time; seconds for 1,000 tasks at 11 points


def main(iterations: int) -> None:
    keep_freed_memory()
    config, spent = Config(iterations=iterations), Counter[str]()
    (net, loss), method, law = network(config), METHODS[config.method], LAWS[config.law]

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = perf_counter()
            result = function(*args)
            spent[name] += perf_counter() - began
            return result

        return call

    def sample(rng: np.random.Generator) -> Any:
        return law.train(rng, config.tasks, config.shots, config.inner_steps)

    gradient = timed("the gradient", recorded(stacked(method.algorithm)))
    outer, start = timed("the outer step", optimiser(config.outer, iterations)), net.init(np.random.default_rng(0))
    training = timed("training", train)
    arguments = loss, start, timed("drawing tasks", sample), config.alpha, iterations, outer, 0, lambda *_: None
    theta, _ = training(gradient, *arguments, recorded(method.trajectory))
    tasks = unseen(config, 0)
    timed("evaluation", evaluate)(loss, theta, tasks, config.alpha, recorded(loss), method.trajectory, DIVERGED)
    for name, seconds in spent.items():
        print(f"{name:16} {seconds:7.2f} s")
    beyond = 1 - (spent["the gradient"] + spent["the outer step"]) / spent["training"]
    for what, value, limit in (("beyond them", beyond, BEYOND), ("evaluation, s", spent["evaluation"], EVALUATION)):
        print(f"{what}: {value:.3f}, at most {limit}: {'met' if value <= limit else 'NOT MET'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else Config.iterations)
