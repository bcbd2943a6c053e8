"""Two other ways to answer: a program that reads and writes JSON lines, and a file of results.

Protocol, one JSON object a line, answered by one line each; the process ends at "stop" or at the end of its input:

    → {"cmd": "start", "version": 1}            ← {"version": 1, "name": "my library"}
    → {"cmd": "run", "seq": 7, "case": {…}}     ← {"seq": 7, "gradient": [[…], …]}
                                                | {"seq": 7, "skipped": "why"} | {"seq": 7, "errored": "why"}
    → {"cmd": "stop"}

A case is a vector without its answers. A gradient is a list of arrays as nested lists, or flat in row order; numbers
are JSON numbers or C99 hex floats in strings. It may be joined by phi, inner_gradient and adjoint.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refmeta.conformance.cases import DTYPES, LONGEST, Vector, decoded, load, number, one_line
from refmeta.conformance.check import Answer, judge, read_answer
from refmeta.conformance.report import INSIDE, Report
from refmeta.trees import Theta

VERSION = 1
MOST = 1 << 13  # commas and brackets in one answer: five times those of the largest with all intermediates
CHUNK = 1 << 20  # bytes of one read; no pipe holds more


class DoorError(ValueError):
    """A program that cannot be started or does not answer, or a results file that cannot be read."""


# --- Answers in JSON ---


def answer_from_json(vector: Vector, content: Any) -> Answer:
    """An Answer from decoded JSON: a gradient, or an object with one."""
    given = dict(content) if isinstance(content, dict) else {"gradient": content}
    dtype, _ = given.pop("dtype", "float64"), given.pop("seq", None)
    if dtype not in DTYPES:
        return Answer(problem=f"answered with dtype {dtype!r:.60}: expected float32 or float64")
    theta, names = vector.case.theta, vector.case.names
    if set(given) == set(names):
        given = {"gradient": [given[name] for name in names]}
    try:
        for key in {"gradient", *INSIDE} & set(given):
            value = given[key]
            given[key] = tree(value, theta) if key == "gradient" else [[tree(t, theta) for t in ts] for ts in value]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        return Answer(problem=f"answered with something other than a list of arrays: {str(error)[:120]}")
    return read_answer(given, vector.case)._replace(dtype=dtype)


def tree(value: Any, theta: Theta) -> Theta:
    """A list of arrays from nested or flat lists of numbers; a flat one takes the shape of θ's array if it fits."""
    if not isinstance(value, list):
        raise TypeError(f"expected a list of arrays, got {type(value).__name__}")
    leaves = [_leaf(leaf) for leaf in value]
    if len(leaves) != len(theta):
        return leaves
    pairs = zip(leaves, theta, strict=True)
    return [g.reshape(t.shape) if g.ndim <= 1 and g.size == t.size else g for g, t in pairs]


def _leaf(value: Any) -> Any:
    if isinstance(value, dict):
        return np.array([number(v) for v in value["data"]], float).reshape(value["shape"])
    return np.array(_numbers(value), dtype=float)


def _numbers(value: Any) -> Any:
    return [_numbers(v) for v in value] if isinstance(value, list) else number(value)


# --- A file of results ---


def check_results(path: str, vectors: Sequence[Vector]) -> Report:
    """Judge answers computed elsewhere: a JSON object {id: gradient, …}. A vector without an answer is skipped.

    DoorError: the file cannot be read, is no JSON object, or has an id that does not exist.
    """
    try:
        with open(path, "rb") as file:  # perhaps a pipe, whose size cannot be asked for
            data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise ValueError(f"more than {LONGEST} bytes")
        content = decoded(data)
    except OSError as error:
        raise DoorError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DoorError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DoorError(f"{path}: expected an object of id: gradient, got {type(content).__name__}")
    unknown = sorted(set(content) - {v.case.id for v in load()})
    if unknown:
        raise DoorError(f"{path}: there is no vector {unknown[0]!r:.60}")
    missing = Answer(problem="no answer in the file", skipped=True)
    answers = [answer_from_json(v, content[v.case.id]) if v.case.id in content else missing for v in vectors]
    return judge(zip(vectors, answers, strict=True), f"refmeta check {path}")


# --- A program ---


def check_command(command: Sequence[str], vectors: Sequence[Vector], timeout: float = 60) -> Report:
    """Judge a program that answers over stdin and stdout. A crash, a hang or garbage loses one vector, not the run.

    The program is started again after it failed, and whatever it started is killed with it. DoorError: it cannot be
    started, or does not answer "start" as the protocol says; or this is Windows, where pipes cannot be waited for.
    """
    if not hasattr(os, "killpg"):
        raise DoorError("-- COMMAND: expected Linux or macOS; elsewhere give MODULE:FUNCTION or --results FILE.json")
    answers = zip(vectors, answers_of(command, vectors, timeout), strict=True)
    return judge(list(answers), f"refmeta check -- {' '.join(command)}")


def answers_of(command: Sequence[str], vectors: Sequence[Vector], timeout: float) -> list[Answer]:
    """The program's answer to each vector, or how it failed; after a failure a new process goes on."""
    answers: list[Answer] = []
    while len(answers) < len(vectors) or not answers:
        program = None
        try:
            with started(command, timeout) as program:
                while len(answers) < len(vectors):
                    answers.append(program.ask(len(answers), vectors[len(answers)]))
                program.stop()
                break
        except DoorError as error:
            if not program and not answers:
                raise
            answers.append(Answer(problem=f"{'' if program else 'could not be started again: '}{error}"))
    return answers


@contextlib.contextmanager
def started(command: Sequence[str], timeout: float) -> Iterator["Program"]:
    """A program that has answered "start". At the end it is killed, with all that it started.

    DoorError: it cannot be started, or does not answer; or one from inside, with the program's last complaint.
    """
    try:
        program = Program(command, timeout)
    except OSError as error:
        raise DoorError(f"{command[0]}: cannot be started: {error.strerror}") from error
    with contextlib.ExitStack() as end:
        end.enter_context(program.process)  # closes its pipes
        end.callback(program.kill)
        try:
            program.greet()
            yield program
        except DoorError as error:
            end.close()
            raise DoorError(f"{error}{program.complaint}") from None


class Program:
    """A process that speaks the protocol. One thread writes and reads, and never waits longer than `timeout`."""

    def __init__(self, command: Sequence[str], timeout: float):
        pipe, self.name, self.timeout = subprocess.PIPE, command[0], timeout
        self.process: Any = subprocess.Popen(  # in a session of its own, to be killed with all that it starts
            list(command), bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        os.set_blocking(self.process.stdin.fileno(), False)  # type: ignore[union-attr]
        self.reading: list[Any] = [self.process.stdout, self.process.stderr]
        self.unsent, self.unread, self.errors = bytearray(), bytearray(), bytearray()

    def greet(self) -> None:
        """DoorError unless it answers "start" as the protocol says."""
        try:
            reply = self.say({"cmd": "start", "version": VERSION})
            if not isinstance(reply, dict) or reply.get("version") != VERSION:
                raise DoorError(f"answered {str(reply)[:80]!r}")
        except DoorError as error:
            expected = f'expected {{"version": {VERSION}, …}} to "start"'
            raise DoorError(f"{self.name}: {error}; {expected}") from error

    def ask(self, seq: int, vector: Vector) -> Answer:
        """The answer to one vector. DoorError: none came."""
        reply = self.say({"cmd": "run", "seq": seq, "case": vector.case.to_json()})
        got = reply.get("seq") if isinstance(reply, dict) else reply
        if not isinstance(reply, dict) or got != seq:
            raise DoorError(f"answered out of turn: expected seq {seq}, got {str(got)[:40]!r}")
        if "skipped" in reply:
            return Answer(problem=str(reply["skipped"])[:200], skipped=True)
        if "errored" in reply:
            return Answer(problem=f"says it failed: {str(reply['errored'])[:200]}")
        return answer_from_json(vector, reply)

    def say(self, message: dict[str, Any]) -> Any:
        """Send one line, return the line that comes back, decoded. DoorError: none came, or no JSON."""
        self.unsent += json.dumps(message).encode() + b"\n"
        line = self.line()
        try:
            return decoded(line, MOST)
        except (ValueError, RecursionError) as error:
            raise DoorError(f"answered with a line that is no JSON: {line[:60]!r}: {error}") from None

    def line(self) -> bytes:
        """The next line. DoorError: it came too late, not at all, or without an end."""
        deadline = time.monotonic() + self.timeout
        while b"\n" not in self.unread:
            ended = self.process.stdout not in self.reading
            if len(self.unread) > LONGEST or (ended and self.unread):
                raise DoorError("answered with a line that is cut off, or is longer than 16 MiB")
            if ended:
                self.wait()
                raise DoorError(f"ended with exit code {self.process.poll()} before it answered")
            left = deadline - time.monotonic()
            if left <= 0 or not self.exchange(left):
                raise DoorError(f"gave no answer within {self.timeout:g} seconds")
        line, end_of_line, self.unread = self.unread.partition(b"\n")
        return bytes(line + end_of_line)

    def exchange(self, seconds: float) -> bool:
        """Write and read once, as soon as possible. False: neither was possible for so many seconds."""
        writing = [self.process.stdin] if self.unsent else []
        readable, writable, _ = select.select(self.reading, writing, [], seconds)
        for pipe in readable:
            if data := os.read(pipe.fileno(), CHUNK):
                said = self.unread if pipe is self.process.stdout else self.errors
                said += data
            else:
                self.reading.remove(pipe)
        del self.errors[:-2000]
        if writable:
            try:
                del self.unsent[: os.write(self.process.stdin.fileno(), self.unsent)]
            except OSError:  # it reads no more, but may still write
                self.unsent.clear()
        return bool(readable or writable)

    def wait(self) -> None:
        """Give it a second to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self.unsent += b'{"cmd": "stop"}\n'
        self.exchange(0)
        self.wait()

    def kill(self) -> None:
        """End the program and everything that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.unsent.clear()
        self.exchange(0)  # to read its last complaints; a child that escaped may keep the pipes open

    @property
    def complaint(self) -> str:
        """The last line of its standard error."""
        lines = self.errors.decode(errors="replace").strip().splitlines()
        return f" (stderr: {one_line(lines[-1])[:160]})" if lines else ""
