"""A function of arrays, traced once and replayed as a straight list of NumPy calls."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import wraps
from typing import Any, NamedTuple

import numpy
from autograd.builtins import SequenceVSpace, container_take, container_untake
from autograd.core import SparseObject, VSpace, sparse_add
from autograd.tracer import Node, isbox, new_box, trace_stack
from autograd.util import subvals

from refmeta.trees import Array


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
    programs: dict[Any, Callable[..., Any]] = {}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        form, arrays = _form((args, *kwargs.values()))
        if not all(type(array) is numpy.ndarray for array in arrays):
            return function(*args, **kwargs)  # someone else's trace goes through the function itself
        key = form, tuple(kwargs), tuple([a.shape for a in arrays]), tuple([a.dtype for a in arrays])
        try:
            known = key in programs
        except TypeError as error:
            raise TypeError(
                f"recorded: expected arrays, lists and tuples of them, or hashable constants: {error}"
            ) from None
        if not known:

            def flat(*arrays: Array) -> Any:
                args, *values = _fill(form, arrays)
                return function(*args, **dict(zip(kwargs, values, strict=True)))

            program = _proved(flat, arrays)
            if len(programs) == 16:
                del programs[next(iter(programs))]
            programs[key] = program
        return programs[key](*arrays)

    return call


class _Form(NamedTuple):
    """Nested arguments without their arrays: the containers and constants, and a number for every array.

    An array that is given twice has one number: what is done to it twice can then be done once.
    """

    tokens: tuple[Any, ...]
    numbers: tuple[int, ...]


def _form(tree: Any) -> tuple[_Form, list[Array]]:
    """What `tree` is without its arrays, and those; no recursion, for a thousand tasks are thousands of nodes."""
    tokens: list[Any] = []
    arrays: list[Array] = []
    waiting = [tree]
    while waiting:
        tree = waiting.pop()
        kind = type(tree)
        if kind is numpy.ndarray or (kind is not tuple and kind is not list and isbox(tree)):
            tokens.append(None)
            arrays.append(tree)
        elif kind is tuple or kind is list:
            tokens.append(kind)
            tokens.append(len(tree))
            waiting += tree
        else:
            tokens.append((kind, tree))
    identities = list(map(id, arrays))
    distinct = dict(zip(identities, arrays, strict=True))
    numbers = {identity: number for number, identity in enumerate(distinct)}
    return _Form(tuple(tokens), tuple([numbers[identity] for identity in identities])), list(distinct.values())


def _fill(form: _Form, arrays: Sequence[Any]) -> Any:
    """The nested arguments again; of every container, `_form` has the last element first."""
    tokens, leaves = iter(form.tokens), iter([arrays[number] for number in form.numbers])

    def build() -> Any:
        head = next(tokens)
        if head is None:
            return next(leaves)
        if isinstance(head, tuple):
            return head[1]
        return head([build() for _ in range(next(tokens))][::-1])

    return build()


def _proved(function: Callable[..., Any], arrays: list[Array]) -> Callable[..., Any]:
    """The replay of a recording on these arrays, after it gave what the function gives on others."""
    replay = _compiled(*_record(function, arrays))
    proved = False
    for probe in _probes(arrays):
        with numpy.errstate(all="ignore"):
            try:
                expected = function(*probe)
            except Exception as error:  # its own checks may refuse this probe
                refusal = error
                continue
            if not _same(replay(*probe), expected):
                raise ValueError(
                    "recorded: on other arrays the replay differs from the function, which decides by a value, "
                    "draws random numbers, or keeps something"
                )
            again = _compiled(*_record(function, probe))
            for root in _captured(replay).keys() & _captured(again).keys():
                raise ValueError(
                    f"recorded: an array of shape {_captured(replay)[root].shape} comes from outside and can change: "
                    "make it an argument, or read-only (array.flags.writeable = False)"
                )
            proved = True
    if not proved:
        raise ValueError(f"recorded: no proof, for the function takes no other arrays than these: {refusal}")
    return replay


def _probes(arrays: list[Array]) -> Iterator[list[Array]]:
    """Other arrays of the same shapes: back to front and larger; of the other sign."""
    for scale, shift in ((1.1, 0.01), (-0.9, 0.02)):
        yield [scale * flip + shift if a.dtype.kind == "f" else flip.copy() for a in arrays for flip in [numpy.flip(a)]]


def _same(a: Any, b: Any) -> bool:
    """The same nested arrays, up to what the alignment of memory can do to a sum."""
    if isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if b is None or _kind(a) != _kind(b):
        return a is b
    a, b = numpy.asarray(a), numpy.asarray(b)
    if b.dtype.kind != "f":
        return numpy.array_equal(a, b)
    tolerance = numpy.finfo(b.dtype).eps ** 0.6
    finite = numpy.isfinite(b)
    scale = numpy.max(numpy.abs(b), initial=0, where=finite)
    return numpy.array_equal(numpy.isfinite(a), finite) and bool((abs(a - b) <= tolerance * scale)[finite].all())


def _captured(replay: Any) -> dict[int, Array]:
    """The constants of a recording that can change: writable arrays, by the identity of whose memory they show."""
    roots = {}
    for value in replay.__globals__.values():
        if isinstance(value, numpy.ndarray):
            while isinstance(value.base, numpy.ndarray):
                value = value.base
            if value.flags.writeable:
                roots[id(value)] = value
    return roots


def _outline(value: Any) -> Any:
    """The shape and dtype of an array, without its memory; a recording would keep that of every value."""
    if isinstance(value, list | tuple):
        return [_outline(item) for item in value]
    if isinstance(value, numpy.ndarray):
        return numpy.broadcast_to(numpy.zeros((), value.dtype), value.shape)
    return None if isinstance(value, SparseObject) else value


class _Call(Node):  # type: ignore[misc]
    """A call on a tape: fun(*args, **kwargs), an argument that varies being the _Call that it comes from."""

    __slots__ = ("args", "fun", "kwargs", "tape", "value")

    def __init__(self, value: Any, fun: Any, args: Any, kwargs: Any, places: Any, parents: Any):
        self.fun, self.kwargs, self.value, self.tape = fun.fun, kwargs, _outline(value), parents[0].tape
        self.args = subvals(args, zip(places, parents, strict=True))
        self.tape.append(self)

    def initialize_root(self, value: Any, tape: Any) -> None:
        self.value, self.tape = value, tape


def _record(function: Callable[..., Any], arrays: Sequence[Array]) -> tuple[list[_Call], list[_Call], Any]:
    """The inputs, the calls that the function made, and its result in terms of them."""
    tape: list[_Call] = []
    inputs = [_Call.new_root(array, tape) for array in arrays]
    with trace_stack.new_trace() as level:
        try:
            result = function(*[new_box(call.value, level, call) for call in inputs])
        except TypeError as error:
            if "Can't differentiate w.r.t. type" not in str(error):
                raise
            raise TypeError(
                f"recorded: the function takes a value out of its arrays, or decides by one: {error}"
            ) from error
    return inputs, *_simplify(tape, result)


# Functions that change an argument in place: calling one once where it was called twice would be another program.
_IN_PLACE = {sparse_add.fun, VSpace.mut_add.fun}


class _Spread(NamedTuple):
    """`x` at `index` of a list that is zero elsewhere: what autograd gives back for an element taken."""

    index: Any
    x: Any


def _simplify(tape: list[_Call], result: Any) -> tuple[list[_Call], Any]:
    """The calls on arrays alone, each made once: what autograd does to lists is done here, on their elements."""
    calls: list[_Call] = []
    meaning: dict[_Call, Any] = {}  # what became of a call on the tape
    known: dict[Any, _Call] = {}
    zeros: dict[int, Array] = {}

    def resolve(value: Any) -> Any:
        if isbox(value):
            value = value._node
        if type(value) in (list, tuple):
            return type(value)(map(resolve, value))
        return meaning.get(value, value) if isinstance(value, _Call) else value

    def make(call: _Call, fun: Any, args: Any, kwargs: Any) -> _Call:
        key = fun, _identity(args), _identity(tuple(kwargs.items()))
        if fun in _IN_PLACE or key not in known:
            known[key] = call
            call.fun, call.args, call.kwargs = fun, args, kwargs
            calls.append(call)
        return known[key]

    def plus(call: _Call, a: Any, b: Any, in_place: bool = True) -> Any:
        if a is None:
            return b
        if isinstance(a, list | tuple):
            parts = [_Call.new_root(value, tape) for value in call.value]
            return type(a)(plus(part, x, y, in_place) for part, x, y in zip(parts, a, b, strict=True))
        fits = _kind(b.value if isinstance(b, _Call) else b) == _kind(call.value)
        if fits and id(a) in zeros:
            return b
        return make(call, numpy.add if fits or not in_place else _added, (a, b), {})

    def mean(call: _Call) -> Any:
        fun, args, kwargs = call.fun, resolve(tuple(call.args)), resolve(tuple(call.kwargs.values()))
        if fun is container_take.fun and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if fun is container_untake.fun and isinstance(args[2], SequenceVSpace):
            return _Spread(args[1], args[0])
        if fun is sparse_add.fun and isinstance(args[2], _Spread):
            space, sum_so_far, (index, x) = args
            if sum_so_far is None:
                sum_so_far = space.zeros()
                zeros.update((id(leaf), leaf) for leaf in sum_so_far)
            items = list(sum_so_far)
            here = range(len(items))[index]
            for i, term in zip(here, x, strict=True) if isinstance(index, slice) else [(here, x)]:
                items[i] = plus(_Call.new_root(call.value[i], tape), items[i], term)
            return space.seq_type(items)
        if fun in (VSpace.add.fun, VSpace.mut_add.fun) and not isinstance(call.value, dict):
            _, a, b = args
            return plus(call, a, b, in_place=fun is VSpace.mut_add.fun)
        kwargs = dict(zip(call.kwargs, kwargs, strict=True))
        if (
            fun is numpy.sum
            and kwargs.keys() == {"axis", "keepdims"}
            and _kind(call.value) == _kind(call.args[0].value)
        ):
            return args[0]  # undoes a broadcast that there was not
        return make(call, fun, args, kwargs)

    def output(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(output, value))
        if isinstance(value, numpy.ndarray):
            return make(_Call.new_root(value, tape), numpy.copy, (value,), {})  # a fresh one every time
        if not isinstance(value, _Call | numpy.generic | float | int | None):
            raise TypeError(f"recorded: the result must be arrays, lists and tuples; it has {type(value).__name__}")
        return value

    for call in tape:
        meaning[call] = mean(call)
    return calls, output(resolve(result))


def _added(a: Any, b: Any) -> Any:
    """a += b on a copy: of the shape and dtype of a, whatever b's."""
    a = copy(a)
    a += b
    return a


def _kind(value: Any) -> tuple[tuple[int, ...], Any]:
    return numpy.shape(value), numpy.asarray(value).dtype


def _calls(value: Any) -> Iterator[_Call]:
    """The calls in a nested list or tuple."""
    if isinstance(value, _Call):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _calls(item)


def _identity(value: Any) -> Any:
    """Equal for two arguments that cannot be told apart; −0.0 is not 0.0, nor 1 1.0."""
    if isinstance(value, list | tuple):
        return type(value), *map(_identity, value)
    if isinstance(value, int | float | str | slice | None):
        return type(value), repr(value)
    return id(value)


def _compiled(inputs: list[_Call], calls: list[_Call], result: Any) -> Callable[..., Any]:
    """The calls that the result needs, as a Python function of the inputs that frees what is no longer needed."""
    names = {call: f"x{i}" for i, call in enumerate(inputs)}
    constants: dict[str, Any] = {}
    source = [f"def replay({', '.join(names.values())}):"]

    def name(value: Any) -> str:
        if isinstance(value, _Call):
            return names[value]
        if type(value) in (list, tuple):
            inside = "".join(f"{name(item)}, " for item in value)
            return f"[{inside}]" if type(value) is list else f"({inside})"
        constant = f"c{id(value)}"
        constants[constant] = value
        return constant

    alive, steps = set(_calls(result)), []
    for call in reversed(calls):
        if call in alive:
            used = set(_calls((call.args, list(call.kwargs.values()))))
            steps.append((call, used - alive - set(inputs)))
            alive |= used
    for call, dead in reversed(steps):
        arguments = [name(a) for a in call.args] + [f"{key}={name(value)}" for key, value in call.kwargs.items()]
        names[call] = f"v{len(names)}"
        source.append(f"    {names[call]} = {name(call.fun)}({', '.join(arguments)})")
        if dead:
            source.append(f"    del {', '.join(map(name, dead))}")
    source.append(f"    return {name(result)}")
    exec("\n".join(source), constants)
    replay: Callable[..., Any] = constants["replay"]
    replay.__doc__ = "\n".join(source)
    return replay
