"""Workers started, interleaved and timed; whole processes, imports and sizes."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

import refmeta
from refmeta.trees import Theta, axpy, dot
from tests.bench.promises import Row
from tests.bench.serving import clock
from tests.bench.workloads import WORKLOADS, Workload, write

ROOT = Path(__file__).parents[2]


def own(*words: str) -> list[str]:
    """The command of a worker of this package."""
    return [sys.executable, "-m", "tests.bench.workers.own", *words]


def environment(threads: int) -> dict[str, str]:
    """One number of threads for everyone, and glibc's memory kept by everyone."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "REFMETA_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(names, str(threads)),
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={threads > 1} intra_op_parallelism_threads={threads}".lower(),
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    }


class Worker(NamedTuple):
    """A process that answers requests."""

    command: list[str]
    process: "subprocess.Popen[str]"

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. ValueError: it is an error, or none."""
        assert self.process.stdin and self.process.stdout
        line = ""
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
            answer = json.loads(line)
            if not isinstance(answer, dict) or "error" in answer:
                raise ValueError
        except (OSError, ValueError):
            self.process.kill()
            words = shlex.join(self.command)
            raise ValueError(f"worker {words}: expected a line of JSON, got {line!r:.200}") from None
        return answer


@contextmanager
def working(commands: Sequence[list[str]], threads: int) -> Iterator[list[Worker]]:
    """The workers, started; gone afterwards. ValueError: one that does not start."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    options: Any = {**pipes, "text": True, "env": environment(threads), "cwd": ROOT}
    workers: list[Worker] = []
    try:
        for command in commands:
            try:
                workers.append(Worker(command, subprocess.Popen(command, **options)))
            except OSError as error:
                raise ValueError(f"worker {shlex.join(command)}: cannot be started: {error.strerror}") from None
        yield workers
    finally:
        for _, process in workers:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=1)  # it ends with its input
            process.kill()
            process.communicate()


def side_by_side(
    commands: Sequence[list[str]],
    wanted: Sequence[tuple[str, Workload, str]],
    seconds: float,
    threads: int,
    report: Callable[[str], Any] = lambda text: None,
) -> list[Row]:
    """One row for each workload, algorithm and worker: {work, algorithm, name, version, ms, first_ms, difference}.

    ms is the median over all iterations of 5 rounds, in which the workers take turns; `difference` is the norm of
    the gradient's difference from the first worker's, relative to that one's. ValueError: it is not rounding.
    """
    rows: list[Row] = []
    with working(commands, threads) as workers:
        for name, work, algorithm in wanted:
            report(f"{name} {algorithm}")
            begun = _begun(workers, name, work, algorithm)
            bursts = [max(1, int(seconds * 200 / median(worker.ask(repeat=3)["ms"]))) for worker, _ in begun]
            rounds = [[w.ask(repeat=n)["ms"] for (w, _), n in zip(begun, bursts, strict=True)] for _ in range(5)]
            rows += [
                {**row, "ms": float(np.median(np.concatenate(ms)))}
                for (_, row), ms in zip(begun, zip(*rounds, strict=True), strict=True)
            ]
    return rows


def _begun(workers: list[Worker], name: str, work: Workload, algorithm: str) -> list[tuple[Worker, Row]]:
    """The workers that do this work, and their rows but for the time; all gradients are the same."""
    begun: list[tuple[Worker, Row]] = []
    reference: Theta = []
    with TemporaryDirectory() as folder:
        path, target = write(work, algorithm, Path(folder, "work.npz")), f"{folder}/gradient.npz"
        for worker in workers:
            answer = worker.ask(load=str(path), gradient=target)
            if "skip" not in answer:
                with np.load(target) as file:
                    gradient = list(file.values())
                reference = reference or gradient
                row = {"work": name, "algorithm": algorithm, **answer, "difference": _difference(gradient, reference)}
                if not row["difference"] < (1e-3 if work.dtype == "float32" else 1e-9):
                    far = f"{answer['name']}, {name} {algorithm}: another gradient: {row['difference']:.1e} away"
                    raise ValueError(far)
                begun.append((worker, row))
    return begun


def _difference(gradient: Theta, reference: Theta) -> float:
    apart = axpy(-1, reference, gradient)
    return float((dot(apart, apart) / dot(reference, reference)) ** 0.5)


def whole_process(command: list[str], iterations: int, rounds: int, threads: int) -> float:
    """The seconds of a process that imports, compiles and trains on sines (S1); median."""
    seconds: list[float] = []
    with TemporaryDirectory() as folder:
        path = str(write(WORKLOADS["S1"], "maml", Path(folder, "work.npz")))
        while len(seconds) < rounds and max(seconds, default=0) < 20:  # once is enough of what takes longer
            start = clock()
            with working([command], threads) as [worker]:
                worker.ask(load=path, train=iterations)
            seconds.append((clock() - start) / 1e3)
    return median(seconds)


def alone(what: str, work: Workload) -> Any:
    """`profile` or `adaptation` of tests.bench.workers.own, in a process of its own."""
    with TemporaryDirectory() as folder:
        return json.loads(_printed(own(what, str(write(work, "maml", Path(folder, "work.npz"))))))


def import_seconds(module: str, rounds: int) -> float:
    """The time of an import in a fresh process, the interpreter's own start not counted; median."""
    program = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return median(float(_printed([sys.executable, "-c", program])) for _ in range(rounds))


def _printed(command: list[str]) -> str:
    return subprocess.run(command, env=environment(1), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def megabytes(distribution: str) -> float:
    """What a distribution and all that it requires take on the disk here."""
    found, waiting = set(), [distribution]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            required = [r for r in metadata.requires(name) or [] if "extra ==" not in r]
            waiting += [re.split(r"[^\w.-]", r)[0] for r in required]
    files = {path.locate() for name in found for path in metadata.files(name) or []}
    files |= set(Path(refmeta.__file__).parent.rglob("*.*"))  # where it is installed in place
    return sum(os.path.getsize(path) for path in files if os.path.exists(path)) / 1e6
