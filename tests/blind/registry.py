"""Implementations by name: framework/algorithm/function. `right` and `wrong` register, `load` imports the modules."""

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, NamedTuple

from refmeta.conformance import Case, Skip

FRAMEWORKS = {
    "numpy": ("right", "wrong", "wrong_later", "wrong_third", "wrong_fourth", "wrong_sixth", "wrong_seventh"),
    "torch": ("right_torch", "wrong_torch", "wrong_torch_third", "wrong_torch_fourth", "wrong_torch_fifth"),
    "jax": ("right_jax", "wrong_jax", "wrong_jax_fifth"),
}
ENTRIES: dict[str, "Entry"] = {}
# They write out a network, and knew of tanh alone. All others take theirs from `make_loss`, which asks the case.
TANH_ALONE = {
    "numpy": "complex_hessian_products complex_steps dual_numbers example_by_example features_once gauss_newton "
    "inner_gradient_by_hand logits_shifted long_doubles own_tanh softmax_twice standardised_inputs "
    "tanh_derivative_of_the_argument weighted_batch",
    "torch": "batch_norm bfloat dropout features_and_a_linear_head joint_dropout joint_squashed linear_layers own_tanh "
    "running_mean tanh_on_the_output weight_normalised",
    "jax": "bias_twice custom_derivative mean_over_outputs one_key stopped_features straight_through",
}
FEW = 5  # steps: what differentiates through all of them at each takes the memory for twelve
DEAR = "total_derivative"


class Entry(NamedTuple):
    """tasks: what it takes over the tasks, whatever a case asks for; None: it obeys. mistakes: 0 is a right one."""

    function: Callable[[Case], Any]
    algorithm: str
    words: str
    mistakes: int = 0
    tasks: str | None = None
    dtype: str = "float64"


def _register(algorithm: str, words: str, mistakes: int, **more: Any) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        @wraps(function)
        def answer(case: Case) -> Any:
            if case.algorithm != algorithm:
                raise Skip(f"this is a {algorithm}")
            if alone and case.model.get("activation", "tanh") != "tanh":
                raise Skip("this network is tanh's")
            if function.__name__ == DEAR and max(len(supports) for supports, _ in case.tasks) > FEW:
                raise Skip(f"at most {FEW} steps")
            return function(case)

        module = function.__module__.rpartition(".")[2]
        framework = next(name for name, modules in FRAMEWORKS.items() if module in modules)
        alone = function.__name__ in TANH_ALONE[framework].split()
        name = f"{framework}/{algorithm}/{function.__name__}"
        if name in ENTRIES:
            raise ValueError(f"{name} is there already")
        ENTRIES[name] = Entry(answer, algorithm, words or function.__doc__ or "", mistakes, **more)
        return function

    return decorate


def right(algorithm: str, words: str = "", **more: Any) -> Callable[[Any], Any]:
    """Register a right one. Decorators stack: a function may answer for several algorithms."""
    return _register(algorithm, words, 0, **more)


def wrong(algorithm: str, words: str, mistakes: int = 1, **more: Any) -> Callable[[Any], Any]:
    """Register a wrong one; `words` says what is wrong, and `mistakes` how many things are."""
    return _register(algorithm, words, mistakes, **more)


def load(framework: str | None = None) -> dict[str, Entry]:
    """The implementations of one framework, or all."""
    for modules in [FRAMEWORKS[framework]] if framework else FRAMEWORKS.values():
        for module in modules:
            import_module(f"tests.blind.{module}")
    return {name: entry for name, entry in ENTRIES.items() if framework in (None, name.partition("/")[0])}
