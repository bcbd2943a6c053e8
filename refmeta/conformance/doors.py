"""The doors besides the Python callable: a subprocess that speaks JSON lines, and a file of results.

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
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np

from refmeta.conformance.cases import Case, Vector, load, number
from refmeta.conformance.checker import INSIDE, Answer, Report, judge, read_answer
from refmeta.trees import Theta

VERSION = 1
LONGEST = 1 << 24  # bytes of one answer's line, and of a results file


class DoorError(ValueError):
    """A command that cannot be started, or a results file that cannot be read."""


# --- Numbers over the wire ---


def case_to_json(case: Case) -> dict[str, Any]:
    """A case as a harness in any language gets it; every number exact."""

    def array(a: Any) -> dict[str, Any]:
        return {"shape": list(a.shape), "data": a.ravel().tolist()}

    def batch(b: Any) -> Any:
        return b and {"x": array(b[0]), "y": array(b[1])}

    return {
        "id": case.id,
        "algorithm": case.algorithm,
        "model": case.model,
        "loss": case.loss,
        "alpha": case.alpha,
        "head": case.head,
        "conventions": case.conventions,
        "theta": [{"name": n, **array(leaf)} for n, leaf in zip(case.names, case.theta, strict=True)],
        "tasks": [{"supports": [batch(b) for b in s], "query": batch(q)} for s, q in case.tasks],
    }


def answer_from_json(vector: Vector, content: Any) -> Answer:
    """An Answer from decoded JSON: a gradient, or an object that has one."""
    theta = vector.case.theta
    fields = content if isinstance(content, dict) else {"gradient": content}
    fields = {key: value for key, value in fields.items() if key not in ("seq", "dtype")}
    dtype = content.get("dtype", "float64") if isinstance(content, dict) else "float64"
    if dtype not in ("float32", "float64"):
        return Answer(problem=f"answered with dtype {dtype!r}: expected float32 or float64")
    try:
        decoded = {
            key: tree(value, theta) if key == "gradient" else [[tree(t, theta) for t in steps] for steps in value]
            for key, value in fields.items()
            if key in ("gradient", *INSIDE)
        }
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        return Answer(problem=f"answered with something that is no list of arrays: {str(error)[:120]}")
    return read_answer({**fields, **decoded})._replace(dtype=dtype)


def tree(value: Any, theta: Theta) -> Theta:
    """A list of arrays from nested or flat lists of numbers; a flat one gets the shape of θ's array if it fits."""
    if not isinstance(value, list):
        raise TypeError(f"expected a list of arrays, got {type(value).__name__}")
    leaves = [_leaf(leaf) for leaf in value]
    if len(leaves) == len(theta):
        pairs = zip(leaves, theta, strict=True)
        leaves = [g.reshape(t.shape) if g.ndim <= 1 and g.size == t.size else g for g, t in pairs]
    return leaves


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
        content = json.loads(data)
    except OSError as error:
        raise DoorError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DoorError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DoorError(f"{path}: expected an object of id: gradient, got {type(content).__name__}")
    unknown = set(content) - {v.case.id for v in load()}
    if unknown:
        raise DoorError(f"{path}: there is no vector {sorted(unknown)[0]!r}")
    missing = Answer(problem="no answer in the file", skipped=True)
    return judge(
        [(v, answer_from_json(v, content[v.case.id]) if v.case.id in content else missing) for v in vectors],
        f"refmeta check {path}",
    )


# --- A subprocess ---


def check_command(command: Sequence[str], vectors: Sequence[Vector], timeout: float = 60) -> Report:
    """Judge a program that answers over stdin and stdout. A crash, a hang or garbage costs one vector, not the run.

    The program is started again after it failed, and whatever it started is killed with it. DoorError: it cannot be
    started, or does not answer "start" as the protocol says.
    """
    with contextlib.ExitStack() as stack:
        harness = Harness(command, timeout)
        stack.callback(harness.kill)
        harness.start()
        answers = [(vector, harness.ask(seq, vector)) for seq, vector in enumerate(vectors)]
        harness.stop()
    return judge(answers, f"refmeta check -- {' '.join(command)}")


class Harness:
    """One program behind the door; started when first needed, and again after it was killed."""

    def __init__(self, command: Sequence[str], timeout: float):
        self.command, self.timeout = list(command), timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: queue.Queue[bytes | None] = queue.Queue()

    def start(self) -> None:
        """Start the program and greet it."""
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # so that it can be killed with all that it starts
            )
        except OSError as error:
            raise DoorError(f"{self.command[0]}: cannot be started: {error.strerror}") from error
        self.lines = queue.Queue(maxsize=4)
        _aside(_read_lines, self.process.stdout, self.lines)
        self.errors = bytearray()
        self.listener = _aside(_keep_last, self.process.stderr, self.errors)
        reply, problem = self.say({"cmd": "start", "version": VERSION})
        if problem or not isinstance(reply, dict) or reply.get("version") != VERSION:
            said = problem or f"answered {str(reply)[:80]!r}"
            self.kill()
            raise DoorError(
                f'{self.command[0]}: {said}; expected {{"version": {VERSION}, …}} to "start"{self.stderr()}'
            )

    def ask(self, seq: int, vector: Vector) -> Answer:
        """The answer to one vector, or what went wrong."""
        if self.process is None:
            try:
                self.start()
            except DoorError as error:
                return Answer(problem=f"could not be started again: {error}")
        reply, problem = self.say({"cmd": "run", "seq": seq, "case": case_to_json(vector.case)})
        if not problem and (not isinstance(reply, dict) or reply.get("seq") != seq):
            got = reply.get("seq") if isinstance(reply, dict) else reply
            problem = f"answered out of turn: expected seq {seq}, got {str(got)[:40]!r}"
        if problem:
            self.kill()
            return Answer(problem=problem + self.stderr())
        if "skipped" in reply:
            return Answer(problem=str(reply["skipped"])[:200], skipped=True)
        if "errored" in reply:
            return Answer(problem=f"says it failed: {str(reply['errored'])[:200]}")
        return answer_from_json(vector, reply)

    def say(self, message: dict[str, Any]) -> tuple[Any, str]:
        """One line out, one line back: (what it says, "") or (None, what went wrong)."""
        assert self.process and self.process.stdin
        _aside(_write, self.process.stdin, json.dumps(message).encode() + b"\n")
        try:
            line = self.lines.get(timeout=self.timeout)
        except queue.Empty:
            return None, f"gave no answer within {self.timeout:g} seconds"
        if line is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            return None, f"ended with exit code {self.process.poll()} before it answered"
        if not line.endswith(b"\n"):
            return None, "answered with a line that is cut off, or is longer than 16 MiB"
        try:
            return json.loads(line), ""
        except (ValueError, RecursionError):
            return None, f"answered with a line that is no JSON: {line[:60]!r}"

    def stop(self) -> None:
        """Ask it to end; a second later it is killed all the same."""
        if self.process and self.process.stdin:
            _aside(_write, self.process.stdin, b'{"cmd": "stop"}\n')
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)

    def kill(self) -> None:
        """End the program and everything that it started."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.listener.join(1)
        # stdout and stderr are their readers' to close: a child that got away may hold them open while it lives.
        assert self.process.stdin
        _aside(self.process.stdin.close)
        self.process = None

    def stderr(self) -> str:
        """The last line it wrote to its standard error."""
        lines = self.errors.decode(errors="replace").strip().splitlines()
        return f" (stderr: {lines[-1][:160]})" if lines else ""


def _aside(work: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Begin what a program that neither reads nor ends could block for ever."""

    def quietly() -> None:
        with contextlib.suppress(OSError, ValueError):  # the pipe is broken, or closed already
            work(*arguments)

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    return thread


def _keep_last(pipe: IO[bytes], last: bytearray) -> None:
    """Read to the end, for a full pipe would block the program, and keep the last 2,000 bytes."""
    with pipe:
        while more := os.read(pipe.fileno(), 1 << 16):
            last += more
            del last[:-2000]


def _read_lines(pipe: IO[bytes], lines: "queue.Queue[bytes | None]") -> None:
    """Whole lines; one that is cut off or too long is the last, as is one more than a queue of unread ones takes."""
    with contextlib.suppress(OSError, ValueError, queue.Full), pipe:
        while line := pipe.readline(LONGEST):
            lines.put_nowait(line)
            if not line.endswith(b"\n"):
                break
    with contextlib.suppress(queue.Full):
        lines.put_nowait(None)


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(data)
    pipe.flush()
