"""A function of arrays, traced once and then replayed as a straight list of NumPy calls.

    record     trace the function: its calls, with their arguments; it must not look at a value
    simplify   drop calls that change nothing, make equal calls once: this removes a third of MAML's calls
    free       find each value's last use, so that large tasks stay in the cache
    compile    write the calls as one Python function, the replay, which takes NumPy's time only
    prove      compare it with the function on other arrays: a trace cannot see randomness, state, changing arrays

`replay_of` is this pipeline; `recorded` keeps its replays.
"""

import dis
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial, wraps
from gc import get_referents
from itertools import count
from math import isfinite
from numbers import Number
from operator import add
from threading import RLock
from types import CodeType, FunctionType, MethodType
from typing import Any

import autograd.numpy as anp
import numpy
from autograd import tracer
from autograd.builtins import container_untake, make_sequence, sequence_extend_left, sequence_extend_right
from autograd.extend import SparseObject, VSpace, defjvp, defvjp, primitive, vspace
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.numpy.numpy_vjps import untake
from autograd.tracer import Node, getval, isbox, trace_stack
from autograd.util import subvals

from refmeta.trees import Array

KEPT = 16  # replays of one function
ONE_AT_A_TIME = RLock()  # autograd counts its traces for all threads together


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, traced once and then replayed: the same bits, without the tracing.

        fast = recorded(stacked(maml))        fast(loss, theta, tasks, alpha), again and again

    Arguments and results are arrays, or lists and tuples of them. Every other argument (a loss, α) is a constant of
    the recording and must be hashable. Other constants, shapes or dtypes make a new recording; the last 16 are kept.
    A recording is a straight list of NumPy calls, each value freed after its last use. Nothing else of the function
    runs again, so its checks have seen the first arguments only. It writes into no argument, and its results share
    no memory. Each recording is compared once with the function, on other arrays; if nothing there is finite, it
    cannot be proved, and the function itself is called.
    A tracer cannot see what Python reads elsewhere: captured numbers and attributes, rebound names, the environment,
    the `_value` of a box. These stay as they were when the function was recorded.
    TypeError: the function looks at a value of its arrays (bool, int, float, a Boolean index), the data decide a
    shape, or an argument or a result is of another kind. ValueError: the function reads an array that is no argument
    and can change, or the replay differs from it.
    """
    replays: dict[Any, Callable[..., Any]] = {}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = args, tuple(kwargs.items())
        form, arrays = flattened(given)
        if not {numpy.ndarray}.issuperset(map(type, arrays)):
            return function(*args, **kwargs)  # another trace must pass through the function itself
        key = form, tuple([a.shape for a in arrays]), tuple([a.dtype for a in arrays])
        try:
            replay = replays.get(key)
        except TypeError as error:
            raise TypeError(f"recorded: expected arrays, lists, tuples, or hashable constants: {error}") from None
        if replay is None:

            def flat(*new: Array) -> Any:
                args, options = refilled(given, arrays, new)
                return function(*args, **dict(options))

            with ONE_AT_A_TIME:
                if not all(numpy.isfinite(a).all() for a in arrays if a.dtype.kind == "f"):
                    return function(*args, **kwargs)
                refuse_captured([function, *[leaf[1] for leaf in form if type(leaf) is tuple]])
                replay = replay_of(flat, arrays)
                if not proved(replay, flat, arrays):
                    return function(*args, **kwargs)
                replays[key] = replay
                if len(replays) > KEPT:
                    del replays[next(iter(replays))]
        return replay(*arrays)

    return call


def flattened(tree: Any) -> tuple[tuple[Any, ...], list[Array]]:
    """Nested arguments as their form, which can be a key, and their distinct arrays.

    The form has the containers and the constants. If an array is given twice, it also has a number for every array,
    the same for the same array, so that equal calls on it are made once. No recursion: a thousand tasks are thousands
    of nodes.
    """
    form: list[Any] = []
    arrays: list[Array] = []
    waiting = [tree]
    while waiting:
        tree = waiting.pop()
        kind = type(tree)
        if kind is tuple or kind is list:
            form += kind, len(tree)
            waiting += tree
        elif kind is numpy.ndarray or isbox(tree):
            arrays.append(tree)
            form.append(kind)
        else:
            form.append((kind, tree, str(tree) if isinstance(tree, Number) else None))  # −0.0 is not 0.0
    ids = list(map(id, arrays))
    distinct = dict(zip(ids, arrays, strict=True))
    if len(distinct) < len(ids):
        form += map(dict(zip(distinct, count(), strict=False)).get, ids)
    return tuple(form), list(distinct.values())


def refilled(tree: Any, arrays: Sequence[Array], new: Sequence[Any]) -> Any:
    """The nested arguments with other arrays in the place of theirs."""
    others = dict(zip(map(id, arrays), new, strict=True))
    return each_leaf(lambda leaf: others.get(id(leaf), leaf), tree)


def replay_of(function: Callable[..., Any], arrays: Sequence[Array]) -> Callable[..., Any]:
    """The replay of a function of arrays, not proved yet. Its docstring is its source."""
    inputs, result = record(function, arrays)
    result = simplify(result)
    return compiled(inputs, with_lifetimes(inputs, result), result)


# --- Record -----------------------------------------------------------------------------------------


def _look(*_: Any) -> Any:
    looks = "the function looks at a value of its arrays, by bool, int, float or NumPy itself, as in np.eye(3)[y]"
    raise TypeError(f"{looks}: use autograd.numpy's functions, such as where and take, or pass the value as a number")


class Traced(ArrayBox):  # type: ignore[misc]
    """An array or number of a recording, which no Python code can look at."""

    __slots__ = []
    __bool__ = __int__ = __float__ = __complex__ = __index__ = __array__ = _look

    def __pow__(self, other: Any) -> Any:  # outside a derivative ** may differ from numpy.power in the last bits
        inside = isbox(self._value) or isbox(getattr(other, "_value", None))
        return super().__pow__(other) if inside else _power(self, other)

    def __rpow__(self, other: Any) -> Any:
        return super().__rpow__(other) if isbox(self._value) else _power(other, self)


_power = primitive(pow)

Traced.register(Traced)  # inside a derivative too


@contextmanager
def recording() -> Iterator[Callable[[Any, "Call"], Any]]:
    """A new trace: it boxes a value of a call. Lists stay lists, and autograd's sums write into nothing."""
    new_box = tracer.new_box

    def boxed(value: Any, trace: int, node: Any) -> Any:
        if not isinstance(node, Call):
            return new_box(value, trace, node)
        if node.fun in ON_LISTS:  # run it again, on boxes: the operations on the elements are recorded
            pairs = zip(node.given, node.args, strict=True)
            return node.fun(*[boxed(v, trace, a) if isinstance(a, Call) else v for v, a in pairs])
        return (Traced if kind_of(value) else new_box)(value, trace, node)

    def plus(space: VSpace, a: Any, b: Any) -> Any:  # numpy.add can change the sign of a number's NaN
        return anp.add(a, b) if kind_of(a)[0] or kind_of(b)[0] else _plus(a, b)

    def added(space: VSpace, a: Any, b: Any) -> Any:
        if not alike(a, b) or not kind_of(a)[0]:
            return _added(a, b)
        if isbox(b) and not isbox(a) and not a.any():  # autograd's own, which nobody changes
            a = boxed(a, level, make(numpy.zeros, kind_of(a), kind_of(a)))
        return anp.add(a, b)

    with trace_stack.new_trace() as level, ExitStack() as end:
        sums = (VSpace, "_add", plus), (VSpace, "_mut_add", added)
        for owner, name, value in (*sums, (tracer, "new_box", boxed), (ArrayBox, "__getitem__", _at)):
            end.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield lambda value, call: boxed(value, level, call)


LISTS = make_sequence, sequence_extend_left, sequence_extend_right, container_untake
ON_LISTS = [f.fun for f in (*LISTS, VSpace.add, VSpace.mut_add)]

_plus = primitive(add)


@primitive  # type: ignore[untyped-decorator]
def _added(a: Any, b: Any) -> Any:
    """a += b on a copy, because no call of a recording may change an argument."""
    a = copy(a)
    a += b
    return a


def _at(a: Any, index: Any) -> Any:
    """a[index]; autograd does not see a box within a tuple."""
    return _take(a, *(index if type(index) is tuple else (index,)))


@primitive  # type: ignore[untyped-decorator]
def _take(a: Array, *index: Any) -> Array:
    return a[index]


@primitive  # type: ignore[untyped-decorator]
def _untake(g: Array, space: VSpace, *index: Any) -> SparseObject:
    sparse = untake.fun(g, index, space)
    return SparseObject(space, lambda a: sparse.mut_add(numpy.array(a)))


defvjp(_plus, lambda y, a, b: lambda g: g, lambda y, a, b: lambda g: g)
defvjp(_added, lambda y, a, b: lambda g: g, lambda y, a, b: lambda g: g)
defvjp(_take, lambda y, a, *index: lambda g: _untake(g, vspace(a), *index), argnums=(0,))
defvjp(_untake, lambda y, g, space, *index: lambda h: _take(h, *index), argnums=(0,))
defjvp(_take, "same", argnums=(0,))
defjvp(_untake, "same", argnums=(0,))

SHAPED_BY_DATA = {"nonzero", "flatnonzero", "argwhere", "unique", "compress", "extract", "trim_zeros", "bincount"}


class Call(Node):  # type: ignore[misc]
    """fun(*args, **kwargs), an argument that varies being the Call that it comes from; an input has no fun."""

    made = count()

    def __init__(self, value: Any, fun: Any, args: Any, kwargs: Any, places: Any, parents: Any):
        self.given = args if fun.fun in ON_LISTS else ()
        self.initialize_root(fun.fun, subvals(args, zip(places, parents, strict=True)), kind_of(value), kwargs)
        masked = fun is _take and any(call.kind and call.kind[1] == "?" for call in _calls(self.args[1:]))
        name = "a Boolean index" if masked else getattr(fun.fun, "__name__", "")
        if masked or name in SHAPED_BY_DATA or (name == "where" and len(args) == 1):
            raise TypeError(f"the data decide the shape of an array, by {name}: use autograd.numpy.where(mask, a, 0)")

    def initialize_root(self, fun: Any, args: Any, kind: Any = None, kwargs: Any = None) -> None:
        self.fun, self.args, self.kind, self.kwargs, self.number = fun, args, kind, kwargs or {}, next(Call.made)


make: Callable[..., Call] = Call.new_root


def kind_of(value: Any) -> Any:
    """The shape and dtype of an array or number, or of the one that a Call gives; None for anything else."""
    value = getval(value)
    if isinstance(value, Call):
        return value.kind
    numeric = isinstance(value, numpy.ndarray | numpy.generic | float | int | complex)
    return (numpy.shape(value), numpy.asarray(value).dtype) if numeric else None


def alike(a: Any, b: Any) -> bool:
    return kind_of(a) is not None and kind_of(a) == kind_of(b)


def record(function: Callable[..., Any], arrays: Sequence[Array]) -> tuple[list[Call], Any]:
    """The inputs, and the function's result as the calls that made it."""
    inputs = [make(None, (i,), kind_of(array)) for i, array in enumerate(arrays)]
    try:
        with recording() as box:
            return inputs, function(*map(box, map(copy, arrays), inputs))
    except Exception as error:
        function(*arrays)  # the function's own error, if it has one
        raise TypeError(f"recorded: {error}") from error


def in_order(result: Any) -> list[Call]:
    """The calls that the result needs, in the order in which they were made; inputs are none."""
    # This order is fast: with 1,000 tasks that of autograd's toposort takes 14 % longer.
    found: set[Call] = set()
    waiting = _calls(result)
    while waiting:
        if (call := waiting.pop()) not in found:
            found.add(call)
            waiting += _calls((call.args, call.kwargs))
    return sorted((call for call in found if call.fun), key=lambda call: call.number)


def leaves_of(tree: Any) -> list[Any]:
    leaves: list[Any] = []
    each_leaf(leaves.append, tree)
    return leaves


def _calls(tree: Any) -> list[Call]:
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, Call)]


def each_leaf(function: Callable[[Any], Any], tree: Any) -> Any:
    """Nested containers with the function applied to every leaf; a box counts as its Call."""
    if type(tree) is dict:
        return {key: each_leaf(function, item) for key, item in tree.items()}
    if type(tree) is slice:
        return slice(*each_leaf(function, (tree.start, tree.stop, tree.step)))
    if type(tree) in (list, tuple):
        return type(tree)([each_leaf(function, item) for item in tree])
    return function(tree._node if isbox(tree) else tree)


# --- Simplify ---------------------------------------------------------------------------------------


def simplify(result: Any) -> Any:
    """The same result by fewer calls: none that changes nothing, and equal calls once."""
    new: dict[Any, Any] = {}
    first: dict[str, Call] = {}
    signed = with_signs(result)

    def renewed(tree: Any) -> Any:
        return each_leaf(lambda leaf: new.get(leaf, leaf) if isinstance(leaf, Call) else leaf, tree)

    for call in in_order(result):
        now = without_idle(make(call.fun, renewed(call.args), call.kind, renewed(call.kwargs)), call in signed)
        same = _source((now.fun, now.args, now.kwargs), lambda leaf: f"v{id(leaf)}")
        new[call] = first.setdefault(same, now)
    return _returned(renewed(result))


def with_signs(result: Any) -> set[Call]:
    """The calls in whose values the sign of a zero has an effect.

    A sum 0 + b is never −0, so the signs of b's zeros have no effect, nor do those of values that reach b by BLIND
    calls alone.
    """
    seen = set(_calls(result))
    for call in reversed(in_order(result)):
        if not _adds_zero(call) and (call in seen or not _blind(call.fun)):
            seen.update(_calls((call.args, call.kwargs)))
    return seen


def without_idle(call: Call, signed: bool) -> Call:
    """The call, or its argument if it can only change the sign of a zero, where that has no effect."""
    if _adds_zero(call):
        kept = signed and call.kind[1].kind == "f"
        return make(numpy.add, (call.args[1], 0.0), call.kind) if kept else call.args[1]
    idle = call.fun is numpy.sum and call.kwargs.keys() == {"axis", "keepdims"} and alike(call, call.args[0])
    return call.args[0] if idle and not signed else call


BLIND = numpy.add, numpy.subtract, numpy.multiply, numpy.negative, numpy.matmul, numpy.square, numpy.tanh, numpy.sum


def _blind(fun: Any) -> bool:
    """Whether −0 in place of a 0 can only change the sign of a 0 in the value."""
    return fun in BLIND or (getattr(fun, "__module__", "").startswith("refmeta.") and fun is not _added.fun)


def _adds_zero(call: Call) -> bool:
    zero = call.fun is numpy.add and not call.kwargs and getattr(call.args[0], "fun", None) is numpy.zeros
    return zero and alike(*call.args)


def _returned(result: Any) -> Any:
    """The result, its arrays all new: one that no ufunc made may be an argument, a constant, or a view."""
    seen: set[Call] = set()

    def fresh(value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(map(fresh, value))
        if isinstance(value, Call) and kind_of(value) and isinstance(value.fun, numpy.ufunc) and value not in seen:
            seen.add(value)
            return value
        if isinstance(value, Call | numpy.ndarray) and kind_of(value):
            return make(numpy.array if kind_of(value)[0] else copy, (value,), kind_of(value))
        if not isinstance(value, numpy.generic | float | int | None):
            raise TypeError(f"recorded: expected a result of arrays, lists and tuples; it has {type(value).__name__}")
        return value

    return fresh(each_leaf(lambda leaf: leaf, result))


# --- Free, compile ----------------------------------------------------------------------------------


def with_lifetimes(inputs: list[Call], result: Any) -> list[tuple[Call, list[Call]]]:
    """Every call that the result needs, with the values that no later call needs."""
    steps, alive = [], {*inputs, *_calls(result)}
    for call in reversed(in_order(result)):
        used = dict.fromkeys(_calls((call.args, call.kwargs)))
        steps.append((call, [value for value in used if value not in alive]))
        alive.update(used)
    return steps[::-1]


def compiled(inputs: list[Call], steps: list[tuple[Call, list[Call]]], result: Any) -> Callable[..., Any]:
    """The steps as a Python function of the inputs, a line for each call. Its docstring is its source."""
    names = {call: f"x{i}" for i, call in enumerate(inputs)} | {call: f"v{i}" for i, (call, _) in enumerate(steps)}
    scope: dict[str, Any] = {"check_kind": check_kind}

    def name(leaf: Any) -> str:
        if isinstance(leaf, Call):
            return names[leaf]
        scope[f"c{id(leaf)}"] = leaf
        return f"c{id(leaf)}"

    viewed = {value for call, _ in steps if not _owns(call) for value in _calls((call.args, call.kwargs))}
    lines = [f"def replay({', '.join(map(name, inputs))}):"]
    for call, dead in steps:
        spare = [value for value in dead if _owns(value) and value not in viewed and _fits(call, value)]
        options = "".join(f"{key}={_source(value, name)}, " for key, value in call.kwargs.items())
        options += f"out={name(spare[0])}, " if spare else ""
        arguments = "".join(f"{_source(value, name)}, " for value in call.args)
        lines.append(f"    {names[call]} = {name(call.fun)}({arguments}{options})")
        lines += [f"    check_kind({names[call]}, {name(call.kind)}, {name(call.fun)})"] if _may_vary(call) else []
        lines += [f"    del {', '.join(map(name, dead))}"] if dead else []
    lines.append(f"    return {_source(result, name)}")
    exec("\n".join(lines), scope)
    scope["replay"].__doc__ = "\n".join(lines)
    return scope["replay"]  # type: ignore[no-any-return]


def _owns(call: Call) -> bool:
    """Whether its result has memory of its own and shares none with an argument."""
    return isinstance(call.fun, numpy.ufunc) and not call.kwargs


def _fits(call: Call, value: Call) -> bool:
    """Whether an elementwise call can overwrite this argument."""
    return _owns(call) and not call.fun.signature and alike(call, value) and value.kind[0] != ()


class Name(str):
    """A string that is written into source as it is."""

    __repr__ = str.__str__


def _source(value: Any, name: Callable[[Any], str]) -> str:
    """The value as Python source; a value without a literal gets a name."""

    def written(leaf: Any) -> Any:
        literal = type(leaf) in (int, bool, str, type(None)) or (type(leaf) is float and isfinite(leaf))
        return leaf if literal else Name(name(leaf))

    return repr(each_leaf(written, value))


def _may_vary(call: Call) -> bool:
    """Whether the values may decide the shape: if it is not NumPy's, or takes integers such as a length."""
    if isinstance(call.fun, numpy.ufunc) or not call.kind or call.fun in (_take.fun, _untake.fun):
        return False
    known = str(getattr(call.fun, "__module__", "")).split(".")[0] in KNOWN
    return not known or any(c.kind and c.kind[1].kind in "iu" for c in _calls(call.args[1:]))


KNOWN = "numpy", "autograd", "refmeta", "copy", "_operator"


def check_kind(value: Any, kind: Any, fun: Any) -> None:
    """ValueError unless the value has the shape and dtype that it had when the function was recorded."""
    if kind_of(value) != kind:
        raise ValueError(f"recorded: the data decide the shape of an array, by {getattr(fun, '__name__', fun)}")


# --- Prove ------------------------------------------------------------------------------------------


def proved(replay: Callable[..., Any], function: Callable[..., Any], arrays: Sequence[Array]) -> bool:
    """Whether the replay equals the function on arrays other than these. False: nothing there was finite."""
    with numpy.errstate(all="ignore"):
        tried = [_tried(replay, function, probe) for probe in _probes(arrays)]
        if all(isinstance(found, Exception) for found in tried):
            raise ValueError(f"recorded: no proof, because the function takes no arrays other than these: {tried[-1]}")
        # A second recording makes its own constants again; an array from outside is the same in both.
        again = _changeable(replay_of(function, arrays))
    for root in _changeable(replay).keys() & again.keys():
        _refuse(f"an array of shape {again[root].shape}")
    return True in tried


def _refuse(what: str) -> None:
    why = "comes from outside and can change: make it an argument, or read-only (array.flags.writeable = False)"
    raise ValueError(f"recorded: {what} {why}")


def _tried(replay: Callable[..., Any], function: Callable[..., Any], probe: list[Array]) -> Exception | bool:
    """Whether all results are finite; or the function's error on the probe. ValueError: the replay differs."""
    try:
        expected = function(*map(copy, probe))
    except Exception as refusal:
        return refusal
    if not _same(replay(*probe), expected):
        why = "which decides by a value, draws random numbers, or keeps state"
        raise ValueError(f"recorded: on other arrays the replay differs from the function, {why}")
    return all(numpy.isfinite(leaf).all() for leaf in leaves_of(expected) if leaf is not None)


def _probes(arrays: Sequence[Array]) -> Iterator[list[Array]]:
    """Other arrays of the same shapes: reversed and larger; with the other sign."""
    for scale, shift in ((1.1, 0.01), (-0.9, 0.02)):
        yield [scale * flip + shift if a.dtype.kind == "f" else flip.copy() for a in arrays for flip in [numpy.flip(a)]]


def _same(a: Any, b: Any) -> bool:
    """Whether nested arrays are equal, up to the effect of memory's alignment on a sum."""
    if isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if type(a) is not type(b) or not alike(a, b):
        return a is b
    dtype = numpy.asarray(b).dtype
    tolerance = numpy.finfo(dtype).eps ** 0.6 if dtype.kind == "f" else 0
    a, b = (numpy.where(numpy.isfinite(x), x, numpy.nan) for x in (a, b))
    scale = numpy.max(numpy.abs(b), initial=0, where=numpy.isfinite(b))
    return numpy.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)


def _changeable(replay: Any) -> dict[int, Array]:
    """The constants of a replay that can change, by the id of their memory."""
    roots = map(_root, replay.__globals__.values())
    return {id(root): root for root in roots if root is not None}


def _root(value: Any) -> Array | None:
    """The array that owns the value's memory, if it is writable."""
    while isinstance(getattr(value, "base", None), numpy.ndarray):
        value = value.base
    return value if isinstance(value, numpy.ndarray) and value.flags.writeable else None


def refuse_captured(constants: list[Any]) -> None:
    """ValueError if a function among the constants reads an array that can change, under any name."""
    seen: set[int] = set()
    waiting = [("", value) for value in constants]
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _root(value) is not None:
            _refuse(f"the array {name} of shape {value.shape}")
        waiting += [(within or name, inner) for within, inner in _captured(value)]


def _captured(value: Any) -> list[tuple[str, Any]]:
    """The values that a function, method, partial or container holds, with their names in a function."""
    if isinstance(value, MethodType):
        return [("", value.__func__)]
    if isinstance(value, partial) or type(value) in (list, tuple):
        return [("", held) for held in get_referents(value)]
    if type(value) is dict:
        return [(str(key), item) for key, item in value.items()]
    if not isinstance(value, FunctionType) or value.__module__.split(".")[0] in ("numpy", "autograd"):
        return []
    code, defaults = value.__code__, (value.__defaults__ or ())[::-1]
    cells = zip(code.co_freevars, value.__closure__ or (), strict=True)
    named = [(name, held) for name, cell in cells for held in get_referents(cell)]
    named += [(name, value.__globals__[name]) for name in _globals(code) if name in value.__globals__]
    named += zip(code.co_varnames[: code.co_argcount][::-1], defaults, strict=False)
    return [*named, ("", value.__kwdefaults__), ("", value.__dict__)]


def _globals(code: CodeType) -> set[str]:
    """The global names that the code reads, its inner functions included."""
    inner = [_globals(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}.union(*inner)
