"""Jobs for test_sweep.py, in a module that workers import quickly. Each leaves a file that says that it started."""

import os
import signal
import time
from functools import partial
from pathlib import Path

from refmeta.lab.sine import experiment


def start(marks, config, seed):
    """How many times this job has started before."""
    before = len(list(Path(marks).glob(f"{config.method}-{seed}.*")))
    (Path(marks) / f"{config.method}-{seed}.{before}.{os.getpid()}").touch()
    return before


def counted(marks, config, seed, report):
    start(marks, config, seed)
    return experiment.run(config, seed, report)


def threads(marks, config, seed, report):
    status = Path("/proc/self/status").read_text()
    (Path(marks) / f"threads.{os.getpid()}").write_text(status.split("Threads:")[1].split()[0])
    return experiment.run(config, seed, report)


def signals_its_worker(number, marks, times, config, seed, report):
    """Seed 1 does, so many times."""
    if start(marks, config, seed) < times and seed == 1:
        os.kill(os.getpid(), number)
    return experiment.run(config, seed, report)


kills_its_worker = partial(signals_its_worker, signal.SIGKILL)
interrupts_its_worker = partial(signals_its_worker, signal.SIGINT)


def endless(config, seed, report):
    """All but seed 0 are."""
    time.sleep(60 * bool(seed))
    return experiment.run(config, seed, report)


def fails(config, seed, report):
    if seed == 1:
        raise MemoryError("no room for seed 1")
    return experiment.run(config, seed, report)


def slow(marks, config, seed, report):
    start(marks, config, seed)
    time.sleep(0.3)
    (Path(marks) / f"ended.{os.getpid()}.{seed}").touch()
    return experiment.run(config, seed, report)
