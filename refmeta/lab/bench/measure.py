"""Workers started, interleaved and timed; whole processes, imports, memory and sizes."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import refmeta
from refmeta.lab.bench.cases import CASES, Case, write
from refmeta.trees import Theta

Row = dict[str, Any]
OWN = {f"refmeta {way}": [sys.executable, "-m", "refmeta.lab.bench.workers", way] for way in ("recorded", "byhand")}
SLOWER = {f"refmeta {way}": [sys.executable, "-m", "refmeta.lab.bench.workers", way] for way in ("stacked", "loop")}


def environment(threads: int) -> dict[str, str]:
    """One number of threads for everyone, glibc's memory kept by everyone, and `serving` to import."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "REFMETA_THREADS")
    xla = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'} intra_op_parallelism_threads={threads}"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **dict.fromkeys(names, str(threads)),
        "XLA_FLAGS": xla,
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


class Worker(NamedTuple):
    """A process that answers requests; `ask` sends one and waits."""

    name: str
    version: str
    command: list[str]
    process: "subprocess.Popen[str]"

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return _answer(self.process, self.command)


def _answer(process: "subprocess.Popen[str]", command: list[str]) -> dict[str, Any]:
    assert process.stdout
    line = process.stdout.readline()
    try:
        answer = json.loads(line)
        if not isinstance(answer, dict) or "error" in answer:
            raise ValueError
    except ValueError:
        process.kill()
        raise ValueError(f"worker {shlex.join(command)}: expected a line of JSON, got {line!r:.200}") from None
    return answer


@contextmanager
def working(commands: Sequence[list[str]], threads: int) -> Iterator[list[Worker]]:
    """The workers, started; gone afterwards. ValueError: one that does not start or answer."""
    workers: list[Worker] = []
    try:
        for command in commands:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment(threads),
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                raise ValueError(f"worker {shlex.join(command)}: cannot be started: {error.strerror}") from None
            workers.append(Worker("", "", command, process))
            hello = _answer(process, command)
            workers[-1] = Worker(hello["name"], hello["version"], command, process)
        yield workers
    finally:
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.communicate(timeout=1)  # it ends with its input
            worker.process.kill()
            worker.process.communicate()


def side_by_side(
    commands: Sequence[list[str]],
    wanted: Sequence[tuple[str, Case, str]],
    seconds: float,
    threads: int,
    report: Callable[[str], Any] = lambda text: None,
) -> list[Row]:
    """One row for each case, algorithm and worker: {case, algorithm, name, version, ms, first_ms, difference}.

    ms is the median over all iterations of 5 rounds, in which the workers take turns; `difference` is the norm of
    the gradient's difference from the first worker's, relative to that one's. ValueError: it is not rounding.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, working(commands, threads) as workers:
        for name, case, algorithm in wanted:
            report(f"{name} {algorithm}")
            path = write(case, algorithm, Path(folder))
            times: dict[str, list[float]] = {}
            reference: Theta = []
            for worker in workers:
                target = f"{folder}/gradient.npz"
                answer = worker.ask(load=str(path), gradient=target)
                if "skip" in answer:
                    continue
                with np.load(target) as file:
                    gradient = [file[f"g{i}"] for i in range(len(file.files))]
                reference = reference or gradient
                row: Row = {"case": name, "algorithm": algorithm, "name": worker.name, "version": worker.version}
                row |= {"first_ms": answer["first_ms"], "difference": _difference(gradient, reference)}
                if not row["difference"] < (1e-3 if case.dtype == "float32" else 1e-9):
                    raise ValueError(
                        f"{worker.name}, {name} {algorithm}: another gradient: {row['difference']:.1e} away"
                    )
                rows.append(row)
                times[worker.name] = worker.ask(repeat=3)["ms"]
            bursts = {key: max(1, int(seconds / 5 * 1e3 / median(ms))) for key, ms in times.items()}
            for _ in range(5):
                for worker in workers:
                    if worker.name in bursts:
                        times[worker.name] += worker.ask(repeat=bursts[worker.name])["ms"]
            for row in rows[-len(times) :]:
                row["ms"] = median(times[row["name"]][3:])
    return rows


def _difference(gradient: Theta, reference: Theta) -> float:
    apart = sum(float(np.sum((a - b) ** 2)) for a, b in zip(gradient, reference, strict=True))
    return float((apart / sum(float(np.sum(b * b)) for b in reference)) ** 0.5)


def whole_process(commands: Sequence[list[str]], iterations: int, rounds: int, threads: int) -> list[float]:
    """For each worker the seconds of a process that imports, compiles and trains on sines (S1); median."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(write(CASES["S1"], "maml", Path(folder)))
        runs = [[*command, "train", path, str(iterations)] for command in commands]
        seconds: list[list[float]] = [[] for _ in runs]
        for _ in range(rounds):
            for run, mine in zip(runs, seconds, strict=True):
                if mine and mine[0] > 20:
                    continue  # once is enough of what takes that long
                start = time.perf_counter()
                done = subprocess.run(run, env=environment(threads), capture_output=True, text=True)
                if done.returncode:
                    raise ValueError(f"worker {shlex.join(run)}: failed: {done.stderr[-200:]}")
                mine.append(time.perf_counter() - start)
        return [median(mine) for mine in seconds]


def import_seconds(module: str, rounds: int = 7) -> float:
    """The time of an import in a fresh process, the interpreter's own start not counted; median."""
    program = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(rounds)]
    return median(float(run.stdout) for run in runs)


def peak_megabytes(way: str, steps: int, tasks: int) -> float:
    """The peak of what one meta-gradient of S1's network allocates, in a process of its own (tracemalloc)."""
    command = [sys.executable, "-m", "refmeta.lab.bench.workers", "memory", way, str(steps), str(tasks)]
    return float(subprocess.run(command, env=environment(1), capture_output=True, text=True, check=True).stdout)


def in_a_process(what: str, case: Case, algorithm: str = "maml") -> Any:
    """`profile` or `adaptation` of refmeta.lab.bench.workers, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "refmeta.lab.bench.workers",
            what,
            str(write(case, algorithm, Path(folder))),
        ]
        done = subprocess.run(command, env=environment(1), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def megabytes(distribution: str) -> float:
    """What a distribution and all that it requires take on the disk here."""
    found, waiting = set(), [distribution]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        required = [r for r in metadata.requires(name) or [] if "extra ==" not in r]
        waiting += [re.split(r"[^\w.-]", r)[0] for r in required]
    files = {path.locate() for name in found for path in metadata.files(name) or []}
    files |= set(Path(refmeta.__file__).parent.rglob("*.*"))  # where it is installed in place
    return sum(os.path.getsize(path) for path in files if os.path.exists(path)) / 1e6
