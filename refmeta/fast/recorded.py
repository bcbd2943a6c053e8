"""A function of arrays, traced once and then replayed as a straight list of NumPy calls.

    record     run the function on autograd's boxes: every call that it makes, and on what
    simplify   autograd's functions of lists resolved; what changes nothing dropped; duplicates shared
    free       after each call, the values that no later one needs
    compile    those lines as one Python function: the replay
    prove      the replay gives what the function gives, on other arrays

`recorded` keeps one replay for each form of its arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import wraps
from typing import Any, NamedTuple

import numpy
from autograd.builtins import container_take, container_untake
from autograd.core import VSpace, sparse_add
from autograd.tracer import Node, getval, isbox, new_box, trace_stack
from autograd.util import subvals, toposort

from refmeta.trees import Array

KEPT = 16  # replays of one function


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, its graph traced once and then replayed: the same bits, without the tracing.

        fast = recorded(stacked(maml))        fast(loss, theta, tasks, alpha), again and again

    Arguments and results are arrays, or lists and tuples of them. What else is in the arguments (a loss, α) is a
    constant of the recording and must be hashable. Other constants, shapes or dtypes get a recording of their
    own; the last 16 are kept. A recording is a straight list of NumPy calls, each value freed after its last use:
    nothing else of the function runs again, so its checks have seen the first arguments only. Each recording is
    proved once, on other arrays, against the function itself.
    ValueError: the replay differs, as where Python branches on a value; or it would use an array that is no argument
    and can change. TypeError: an argument or a result of another kind, a number taken out of an array.
    """
    replays: dict[Any, Callable[..., Any]] = {}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = (args, *kwargs.values())
        form, arrays = flattened(given)
        if not {numpy.ndarray}.issuperset(map(type, arrays)):
            return function(*args, **kwargs)  # someone else's trace goes through the function itself
        key = form, tuple(kwargs), tuple([a.shape for a in arrays]), tuple([a.dtype for a in arrays])
        if (replay := _found(replays, key)) is None:

            def flat(*new: Array) -> Any:
                args, *values = refilled(given, arrays, new)
                return function(*args, **dict(zip(kwargs, values, strict=True)))

            replay = proved(replay_of(flat, arrays), flat, arrays)
            if len(replays) == KEPT:
                del replays[next(iter(replays))]
            replays[key] = replay
        return replay(*arrays)

    return call


def _found(replays: dict[Any, Callable[..., Any]], key: Any) -> Callable[..., Any] | None:
    try:
        return replays.get(key)
    except TypeError as error:
        raise TypeError(f"recorded: expected arrays, lists and tuples of them, or hashable constants: {error}") from None


def flattened(tree: Any) -> tuple[tuple[Any, ...], list[Array]]:
    """Nested arguments as their form, which can be a key, and their distinct arrays.

    The form has the containers, the constants, and a number for every array: one that is given twice has one number,
    so what is done to it twice can be done once. No recursion: a thousand tasks are thousands of nodes.
    """
    form: list[Any] = []
    arrays: dict[int, Array] = {}
    numbers: dict[int, int] = {}
    waiting = [tree]
    while waiting:
        tree = waiting.pop()
        kind = type(tree)
        if kind is tuple or kind is list:
            form += kind, len(tree)
            waiting += tree
        elif kind is numpy.ndarray or isbox(tree):
            form.append(numbers.setdefault(id(tree), len(numbers)))
            arrays[id(tree)] = tree
        else:
            form.append((kind, tree))
    return tuple(form), list(arrays.values())


def refilled(tree: Any, arrays: Sequence[Array], new: Sequence[Any]) -> Any:
    """The nested arguments with other arrays in the place of theirs."""
    others = dict(zip(map(id, arrays), new, strict=True))

    def fill(tree: Any) -> Any:
        return type(tree)(map(fill, tree)) if type(tree) in (list, tuple) else others.get(id(tree), tree)

    return fill(tree)


def replay_of(function: Callable[..., Any], arrays: Sequence[Array]) -> Callable[..., Any]:
    """The replay of the function of these arrays, unproved; its source is its docstring."""
    inputs, result = record(function, arrays)
    result = simplify(result)
    return compiled(inputs, with_lifetimes(inputs, result), result)


# --- Record -----------------------------------------------------------------------------------------


class Kind(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any


class Call(Node):  # type: ignore[misc]
    """fun(*args, **kwargs), an argument that varies being the Call that it comes from; an input has no fun.

    A Call stands for its value in autograd's functions of lists: an element can be taken, and sums make Calls.
    """

    __slots__ = ("args", "fun", "kind", "kwargs")

    def __init__(self, value: Any, fun: Any, args: Any, kwargs: Any, places: Any, parents: Any):
        self.initialize_root(fun.fun, subvals(args, zip(places, parents, strict=True)), kwargs, kind_of(value))

    def initialize_root(self, fun: Any, args: Any = (), kwargs: Any = None, kind: Kind | None = None) -> None:
        self.fun, self.args, self.kwargs, self.kind = fun, args, kwargs or {}, kind

    def __getitem__(self, index: Any) -> "Call":
        return _call(container_take.fun, (self, index))

    def __add__(self, other: Any) -> "Call":
        return _call(numpy.add, (self, other), {}, self.kind if alike(self, other) else None)

    def __radd__(self, other: Any) -> "Call":
        return _call(numpy.add, (other, self), {}, self.kind if alike(self, other) else None)

    def __iadd__(self, other: Any) -> "Call":
        return self + other if alike(self, other) else _call(_added, (self, other), {}, self.kind)

    def __array_ufunc__(self, ufunc: Any, method: str, a: Array, b: "Call", out: Any = ()) -> "Call":
        return b.__radd__(a) if alike(a, b) or not out else _call(_added, (a, b), {}, kind_of(a))

    def mut_add(self, a: Any) -> "Call":
        """What autograd's sparse object does to a gradient: to a copy of it."""
        return _call(_scattered, (a, self), {}, kind_of(a))


_call = Call.new_root


def _added(a: Any, b: Any) -> Any:
    """a += b on a copy: of the shape and dtype of a, whatever b's."""
    a = copy(a)
    a += b
    return a


def _scattered(a: Any, sparse: Any) -> Any:
    return sparse.mut_add(copy(a))


def kind_of(value: Any) -> Kind | None:
    """Shape and dtype of an array, a number, or what a Call stands for; None where it is something else."""
    value = getval(value)
    if isinstance(value, Call):
        return value.kind
    if isinstance(value, numpy.ndarray | numpy.generic | float | int):
        return Kind(numpy.shape(value), numpy.asarray(value).dtype)
    return None


def alike(a: Any, b: Any) -> bool:
    return kind_of(a) is not None and kind_of(a) == kind_of(b)


def record(function: Callable[..., Any], arrays: Sequence[Array]) -> tuple[list[Call], Any]:
    """The inputs, and the function's result in terms of the calls that it made."""
    inputs = [_call(None, kind=kind_of(array)) for array in arrays]
    with trace_stack.new_trace() as level:
        try:
            return inputs, function(*[new_box(a, level, call) for a, call in zip(arrays, inputs, strict=True)])
        except TypeError as error:
            if "Can't differentiate w.r.t. type" not in str(error):
                raise
            raise TypeError(
                f"recorded: the function takes a value out of its arrays, or decides by one: {error}"
            ) from error


# --- Simplify ---------------------------------------------------------------------------------------


def simplify(result: Any) -> Any:
    """The same result by fewer calls."""
    for rule in (on_elements, without_idle_calls, each_once()):
        result = _rewritten(rule, result)
    return _returned(result)


def on_elements(call: Call) -> Any:
    """autograd's functions of lists run here, on Calls as on arrays: what remains are calls on their elements."""
    if call.fun in (sparse_add.fun, VSpace.mut_add.fun) and call.args[1] is None:
        space, _, x = call.args
        return call.fun(space, _map(lambda zero: _call(numpy.zeros, kind_of(zero), {}, kind_of(zero)), space.zeros()), x)
    if call.fun in (container_take.fun, container_untake.fun, sparse_add.fun, VSpace.mut_add.fun, VSpace.add.fun):
        return call.fun(*call.args)
    return call


def without_idle_calls(call: Call) -> Any:
    """0 + b is b; a sum that undoes a broadcast is its argument if nothing was broadcast."""
    if call.fun is numpy.add and isinstance(call.args[0], Call) and call.args[0].fun is numpy.zeros and alike(*call.args):
        return call.args[1]
    if call.fun is numpy.sum and call.kwargs.keys() == {"axis", "keepdims"} and alike(call, call.args[0]):
        return call.args[0]
    return call


def each_once() -> Callable[[Call], Call]:
    """A rule that gives the first of the calls that are the same. None of them changes its arguments."""
    known: dict[Any, Call] = {}
    return lambda call: known.setdefault((call.fun, _identity(call.args), _identity(call.kwargs)), call)


def _identity(value: Any) -> Any:
    """Equal for two arguments that cannot be told apart; −0.0 is not 0.0, nor 1 1.0."""
    if isinstance(value, list | tuple):
        return type(value), *map(_identity, value)
    if isinstance(value, dict):
        return _identity([*value.items()])
    if isinstance(value, int | float | str | slice | None):
        return type(value), repr(value)
    return id(value)


def _rewritten(rule: Callable[[Call], Any], result: Any) -> Any:
    """The result with `rule(call)` in the place of every call; the rule sees its arguments rewritten."""
    new: dict[Call, Any] = {}

    def renewed(value: Any) -> Any:
        value = value._node if isbox(value) else value
        return new.get(value, value) if isinstance(value, Call) else _map(renewed, value)

    for call in in_order(result):
        new[call] = rule(_call(call.fun, renewed(call.args), renewed(call.kwargs), call.kind))
    return renewed(result)


def _returned(value: Any) -> Any:
    """The result; a constant in it is copied, a fresh one every time."""
    if isinstance(value, list | tuple):
        return _map(_returned, value)
    if isinstance(value, numpy.ndarray):
        return _call(numpy.copy, (value,))
    if not isinstance(value, Call | numpy.generic | float | int | None):
        raise TypeError(f"recorded: the result must be arrays, lists and tuples; it has {type(value).__name__}")
    return value


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """The function of every element of a container, or of what is none."""
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return getattr(value, "_make", type(value))(map(function, value))
    return value


def _calls(value: Any) -> Iterator[Call]:
    """The calls in nested containers."""
    value = value._node if isbox(value) else value
    if isinstance(value, Call):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _calls(item)


def in_order(result: Any) -> list[Call]:
    """The calls that the result needs, each after those that it needs itself; inputs are none."""
    end = _call(None, (result,))
    calls = list(toposort(end, lambda call: [*_calls((call.args, call.kwargs))]))
    return [call for call in reversed(calls) if call.fun]


# --- Free, compile ----------------------------------------------------------------------------------


def with_lifetimes(inputs: list[Call], result: Any) -> list[tuple[Call, list[Call]]]:
    """Every call that the result needs, with the values that nothing needs after it."""
    steps, alive = [], {*inputs, *_calls(result)}
    for call in reversed(in_order(result)):
        used = dict.fromkeys(_calls((call.args, call.kwargs)))
        steps.append((call, [value for value in used if value not in alive]))
        alive.update(used)
    return steps[::-1]


def compiled(inputs: list[Call], steps: list[tuple[Call, list[Call]]], result: Any) -> Callable[..., Any]:
    """The steps as a Python function of the inputs, a line for each call."""
    names = {call: f"x{i}" for i, call in enumerate(inputs)} | {call: f"v{i}" for i, (call, _) in enumerate(steps)}
    scope: dict[str, Any] = {}

    def text(value: Any) -> str:
        if isinstance(value, Call):
            return names[value]
        if isinstance(value, dict):
            return f"dict({text(list(value.items()))})"
        if isinstance(value, list | tuple):
            inside = "".join(f"{text(item)}, " for item in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        scope[f"c{id(value)}"] = value
        return f"c{id(value)}"

    source = [f"def replay({', '.join(names[call] for call in inputs)}):"]
    for call, dead in steps:
        arguments = [text(a) for a in call.args] + [f"{key}={text(value)}" for key, value in call.kwargs.items()]
        source.append(f"    {names[call]} = {text(call.fun)}({', '.join(arguments)})")
        source += [f"    del {', '.join(map(text, dead))}"] if dead else []
    source.append(f"    return {text(result)}")
    exec("\n".join(source), scope)
    replay: Callable[..., Any] = scope["replay"]
    replay.__doc__ = "\n".join(source)
    return replay


# --- Prove ------------------------------------------------------------------------------------------


def proved(replay: Callable[..., Any], function: Callable[..., Any], arrays: Sequence[Array]) -> Callable[..., Any]:
    """The replay, once it gave what the function gives on others than these arrays."""
    with numpy.errstate(all="ignore"):
        refusals = [_tried(replay, function, probe) for probe in _probes(arrays)]
    if all(refusals):
        raise ValueError(f"recorded: no proof, for the function takes no other arrays than these: {refusals[-1]}")
    return replay


def _tried(replay: Callable[..., Any], function: Callable[..., Any], probe: list[Array]) -> Exception | None:
    """Why the function itself refuses the probe, as its checks may. ValueError: replay and function differ on it."""
    try:
        expected = function(*probe)
    except Exception as refusal:
        return refusal
    if not _same(replay(*probe), expected):
        raise ValueError(
            "recorded: on other arrays the replay differs from the function, which decides by a value, "
            "draws random numbers, or keeps something"
        )
    # A second recording makes its own constants anew; an array from outside is the same one in both.
    captured, again = _changeable(replay), _changeable(replay_of(function, probe))
    for root in captured.keys() & again.keys():
        raise ValueError(
            f"recorded: an array of shape {captured[root].shape} comes from outside and can change: "
            "make it an argument, or read-only (array.flags.writeable = False)"
        )
    return None


def _probes(arrays: Sequence[Array]) -> Iterator[list[Array]]:
    """Other arrays of the same shapes: back to front and larger; of the other sign."""
    for scale, shift in ((1.1, 0.01), (-0.9, 0.02)):
        yield [scale * flip + shift if a.dtype.kind == "f" else flip.copy() for a in arrays for flip in [numpy.flip(a)]]


def _same(a: Any, b: Any) -> bool:
    """The same nested arrays, up to what the alignment of memory can do to a sum."""
    if isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if not alike(a, b):
        return a is b
    a, b = numpy.asarray(a), numpy.asarray(b)
    if b.dtype.kind != "f":
        return numpy.array_equal(a, b)
    tolerance = numpy.finfo(b.dtype).eps ** 0.6
    finite = numpy.isfinite(b)
    scale = numpy.max(numpy.abs(b), initial=0, where=finite)
    return numpy.array_equal(numpy.isfinite(a), finite) and bool((abs(a - b) <= tolerance * scale)[finite].all())


def _changeable(replay: Any) -> dict[int, Array]:
    """The constants of a replay that can change: writable arrays, by the identity of whose memory they show."""
    roots = {}
    for value in replay.__globals__.values():
        if isinstance(value, numpy.ndarray):
            while isinstance(value.base, numpy.ndarray):
                value = value.base
            if value.flags.writeable:
                roots[id(value)] = value
    return roots
