"""A function of arrays, traced once and then replayed as a straight list of NumPy calls.

    record     trace the function: the calls that it makes, with their arguments
    simplify   run autograd's functions of lists now, drop calls that change nothing, make equal calls once:
               a third of MAML's calls is gone
    free       find each value's last use: what large tasks need stays in the cache
    compile    write the calls as one Python function, the replay: NumPy's time is all that is left
    prove      run it beside the function on other arrays: a trace sees no branch, and no array that changes outside

`replay_of` is that pipeline, `recorded` a function that keeps what it returns.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import wraps
from itertools import count
from math import inf, nan
from operator import iadd
from typing import Any

import numpy
from autograd.builtins import container_take, container_untake
from autograd.core import SparseObject, VSpace, sparse_add
from autograd.tracer import Node, getval, isbox, new_box, trace_stack
from autograd.util import subvals

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
        given = args, tuple(kwargs.items())
        form, arrays = flattened(given)
        if not {numpy.ndarray}.issuperset(map(type, arrays)):
            return function(*args, **kwargs)  # someone else's trace goes through the function itself
        key = form, tuple([a.shape for a in arrays]), tuple([a.dtype for a in arrays])
        try:
            replay = replays.get(key)
        except TypeError as error:
            raise TypeError(f"recorded: expected arrays, lists, tuples, or hashable constants: {error}") from None
        if replay is None:

            def flat(*new: Array) -> Any:
                args, options = refilled(given, arrays, new)
                return function(*args, **dict(options))

            replay = proved(replay_of(flat, arrays), flat, arrays)
            if len(replays) == KEPT:
                replays.pop(next(iter(replays)), None)
            replays[key] = replay
        return replay(*arrays)

    return call


def flattened(tree: Any) -> tuple[tuple[Any, ...], list[Array]]:
    """Nested arguments as their form, which can be a key, and their distinct arrays.

    The form has the containers, the constants, and a number for every array: one that is given twice has one number,
    so what is done to it twice can be done once. No recursion: a thousand tasks are thousands of nodes.
    """
    form: list[Any] = []
    numbered: dict[int, tuple[int, Array]] = {}
    waiting = [tree]
    while waiting:
        tree = waiting.pop()
        kind = type(tree)
        if kind is tuple or kind is list:
            form += kind, len(tree)
            waiting += tree
        elif kind is numpy.ndarray or isbox(tree):
            form.append(numbered.setdefault(id(tree), (len(numbered), tree))[0])
        else:
            form.append((kind, tree))
    return tuple(form), [array for _, array in numbered.values()]


def refilled(tree: Any, arrays: Sequence[Array], new: Sequence[Any]) -> Any:
    """The nested arguments with other arrays in the place of theirs."""
    others = dict(zip(map(id, arrays), new, strict=True))
    return _each(lambda leaf: others.get(id(leaf), leaf), tree)


def replay_of(function: Callable[..., Any], arrays: Sequence[Array]) -> Callable[..., Any]:
    """A function of arrays as its replay, not proved yet; its docstring is its source."""
    inputs, result = record(function, arrays)
    result = simplify(result)
    return compiled(inputs, with_lifetimes(inputs, result), result)


# --- Record -----------------------------------------------------------------------------------------


class Call(Node):  # type: ignore[misc]
    """fun(*args, **kwargs), an argument that varies being the Call that it comes from; an input has no fun.

    Where autograd's functions of lists run on Calls, what they do to an element becomes another Call.
    """

    made = count()

    def __init__(self, value: Any, fun: Any, args: Any, kwargs: Any, places: Any, parents: Any):
        self.initialize_root(fun.fun, subvals(args, zip(places, parents, strict=True)), kind_of(value), kwargs)

    def initialize_root(self, fun: Any, args: Any, kind: Any = None, kwargs: Any = None) -> None:
        self.fun, self.args, self.kind, self.kwargs, self.number = fun, args, kind, kwargs or {}, next(Call.made)

    def __getitem__(self, index: Any) -> "Call":
        return make(container_take.fun, (self, index))

    def __add__(self, b: Any) -> "Call":
        return make(numpy.add, (self, b), self.kind if alike(self, b) else None)

    def __iadd__(self, b: Any) -> "Call":
        return self + b if alike(self, b) else make(_added, (self, b), self.kind)

    def mut_add(self, a: "Call") -> "Call":  # where this is one of autograd's sparse objects
        return make(_added, (a, self), a.kind)


make: Callable[..., Call] = Call.new_root


def _added(a: Any, b: Any) -> Any:
    """a += b on a copy, because no call of a recording may change an argument; b can be a sparse object."""
    return b.mut_add(copy(a)) if isinstance(b, SparseObject) else iadd(copy(a), b)  # type: ignore[no-untyped-call]


def kind_of(value: Any) -> Any:
    """The shape and dtype of an array or number, or of the one that a Call gives; None for anything else."""
    value = getval(value)
    if isinstance(value, Call):
        return value.kind
    numeric = isinstance(value, numpy.ndarray | numpy.generic | float | int)
    return (numpy.shape(value), numpy.asarray(value).dtype) if numeric else None


def alike(a: Any, b: Any) -> bool:
    return kind_of(a) is not None and kind_of(a) == kind_of(b)


def record(function: Callable[..., Any], arrays: Sequence[Array]) -> tuple[list[Call], Any]:
    """The inputs, and the function's result in terms of the calls that it made."""
    inputs = [make(None, (), kind_of(array)) for array in arrays]
    with trace_stack.new_trace() as level:
        try:
            return inputs, function(*[new_box(a, level, call) for a, call in zip(arrays, inputs, strict=True)])
        except TypeError as error:
            if "Can't differentiate w.r.t. type" in str(error):
                raise TypeError(f"recorded: it takes a value out of its arrays, or decides by one: {error}") from error
            raise


def in_order(result: Any) -> list[Call]:
    """The calls that the result needs, in the order in which they were made; inputs are none."""
    # That order is fast: with 1,000 tasks another one (autograd's toposort) takes 14 % longer.
    found: set[Call] = set()
    waiting = _calls(result)
    while waiting:
        if (call := waiting.pop()) not in found:
            found.add(call)
            waiting += _calls((call.args, call.kwargs))
    return sorted((call for call in found if call.fun), key=lambda call: call.number)


def _calls(tree: Any) -> list[Call]:
    leaves: list[Any] = []
    _each(leaves.append, tree)
    return [leaf for leaf in leaves if isinstance(leaf, Call)]


def _each(function: Callable[[Any], Any], tree: Any) -> Any:
    """Nested containers with the function of every leaf in its place; a box is the Call that it stands for."""
    if type(tree) is dict:
        return {key: _each(function, item) for key, item in tree.items()}
    if type(tree) is slice:
        return slice(*_each(function, (tree.start, tree.stop, tree.step)))
    if type(tree) in (list, tuple):
        return type(tree)([_each(function, item) for item in tree])
    return function(tree._node if isbox(tree) else tree)


# --- Simplify ---------------------------------------------------------------------------------------


def simplify(result: Any) -> Any:
    """The same result by fewer calls."""
    for rule in (on_elements, without_idle, each_once()):
        result = _rewritten(rule, result)
    return _returned(result)


def on_elements(call: Call) -> Any:
    """Run autograd's functions of lists, on lists of Calls: calls on their elements remain."""
    if call.fun in (container_take.fun, container_untake.fun):
        return call.fun(*call.args)
    if call.fun not in (VSpace.add.fun, VSpace.mut_add.fun, sparse_add.fun):
        return call
    space, a, b = call.args
    return call.fun(space, _each(_zero, space.zeros()) if a is None else _each(_constant, a), b)


def _zero(array: Array) -> Call:
    return make(numpy.zeros, kind_of(array), kind_of(array))


def _constant(value: Any) -> Call:
    return value if isinstance(value, Call) else make(copy, (value,), kind_of(value))


def without_idle(call: Call) -> Any:
    """0 + b is b, and a sum that undoes a broadcast is its argument where nothing was broadcast."""
    fun, args = call.fun, call.args
    if fun is numpy.add and not call.kwargs and getattr(args[0], "fun", None) is numpy.zeros and alike(*args):
        return args[1]
    if fun is numpy.sum and call.kwargs.keys() == {"axis", "keepdims"} and alike(call, args[0]):
        return args[0]
    return call


def each_once() -> Callable[[Call], Call]:
    """A rule that gives the first of the calls of the same function on the same arguments."""
    first: dict[str, Call] = {}
    return lambda call: first.setdefault(_source((call.fun, call.args, call.kwargs), lambda leaf: f"v{id(leaf)}"), call)


def _rewritten(rule: Callable[[Call], Any], result: Any) -> Any:
    """The result with rule(call) in the place of every call, whose arguments are rewritten before."""
    new: dict[Any, Any] = {}

    def renewed(tree: Any) -> Any:
        return _each(lambda leaf: new.get(leaf, leaf) if isinstance(leaf, Call) else leaf, tree)

    for call in in_order(result):
        new[call] = rule(make(call.fun, renewed(call.args), call.kind, renewed(call.kwargs)))
    return renewed(result)


def _returned(result: Any) -> Any:
    """The result, its arrays fresh every time: a constant is copied, and what is in it already."""
    seen: set[Call] = set()

    def fresh(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(fresh, value))
        if isinstance(value, numpy.ndarray) or (isinstance(value, Call) and value in seen):
            return make(copy, (value,))
        if not isinstance(value, Call | numpy.generic | float | int | None):
            raise TypeError(f"recorded: the result must be arrays, lists and tuples; it has {type(value).__name__}")
        seen.update(_calls(value))
        return value

    return fresh(result)


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
    """The steps as a Python function of the inputs, a line for each call; its source is its docstring."""
    names = {call: f"x{i}" for i, call in enumerate(inputs)} | {call: f"v{i}" for i, (call, _) in enumerate(steps)}
    scope: dict[str, Any] = {"inf": inf, "nan": nan}

    def name(leaf: Any) -> str:
        if isinstance(leaf, Call):
            return names[leaf]
        scope[f"c{id(leaf)}"] = leaf
        return f"c{id(leaf)}"

    lines = [f"def replay({', '.join(map(name, inputs))}):"]
    for call, dead in steps:
        options = "".join(f"{key}={_source(value, name)}, " for key, value in call.kwargs.items())
        arguments = "".join(f"{_source(value, name)}, " for value in call.args)
        lines.append(f"    {names[call]} = {name(call.fun)}({arguments}{options})")
        lines += [f"    del {', '.join(map(name, dead))}"] if dead else []
    lines.append(f"    return {_source(result, name)}")
    exec("\n".join(lines), scope)
    scope["replay"].__doc__ = "\n".join(lines)
    return scope["replay"]  # type: ignore[no-any-return]


class Name(str):
    """A string that stands in source as it is."""

    __repr__ = str.__str__


def _source(value: Any, name: Callable[[Any], str]) -> str:
    """The value as Python; what has no literal is named."""
    literal = (int, float, bool, str, type(None))
    return repr(_each(lambda leaf: leaf if type(leaf) in literal else Name(name(leaf)), value))


# --- Prove ------------------------------------------------------------------------------------------


def proved(replay: Callable[..., Any], function: Callable[..., Any], arrays: Sequence[Array]) -> Callable[..., Any]:
    """The replay, once it gave what the function gives on others than these arrays."""
    with numpy.errstate(all="ignore"):
        refusals = [_tried(replay, function, probe) for probe in _probes(arrays)]
    if all(refusals):
        raise ValueError(f"recorded: no proof, because the function takes no other arrays than these: {refusals[-1]}")
    return replay


def _tried(replay: Callable[..., Any], function: Callable[..., Any], probe: list[Array]) -> Exception | None:
    """Why the function itself refuses the probe, as its checks may. ValueError: replay and function differ on it."""
    try:
        expected = function(*probe)
    except Exception as refusal:
        return refusal
    if not _same(replay(*probe), expected):
        why = "which decides by a value, draws random numbers, or keeps something"
        raise ValueError(f"recorded: on other arrays the replay differs from the function, {why}")
    # A second recording makes its own constants anew; an array from outside is the same one in both.
    captured, again = _changeable(replay), _changeable(replay_of(function, probe))
    for root in captured.keys() & again.keys():
        what = f"an array of shape {captured[root].shape} comes from outside and can change"
        raise ValueError(f"recorded: {what}: make it an argument, or read-only (array.flags.writeable = False)")
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
    dtype = numpy.asarray(b).dtype
    tolerance = numpy.finfo(dtype).eps ** 0.6 if dtype.kind == "f" else 0
    a, b = (numpy.where(numpy.isfinite(x), x, numpy.nan) for x in (a, b))
    scale = numpy.max(numpy.abs(b), initial=0, where=numpy.isfinite(b))
    return numpy.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)


def _changeable(replay: Any) -> dict[int, Array]:
    """The constants of a replay that can change: writable arrays, by the identity of whose memory they show."""
    roots = {}
    for value in replay.__globals__.values():
        while isinstance(getattr(value, "base", None), numpy.ndarray):
            value = value.base
        if isinstance(value, numpy.ndarray) and value.flags.writeable:
            roots[id(value)] = value
    return roots
