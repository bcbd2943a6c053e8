"""The jobs of a sweep, and running them. Only the process that calls `sweep` writes: workers need no shared disk."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from itertools import product
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Lock, Thread
from time import perf_counter
from typing import Any

from refmeta.lab.display import Row
from refmeta.lab.files import locked, save_result, save_theta, versions, writable
from refmeta.lab.runs import Run
from refmeta.lab.sine import experiment
from refmeta.lab.sine.experiment import Config, configure
from refmeta.lab.sine.waves import LAWS
from refmeta.lab.sweep.records import SETTINGS, Job, Record, name_of, read, read_one, save_table
from refmeta.lab.training import INNER, METHODS, Diverged
from refmeta.trees import Theta

RunJob = Callable[[Config, int, Any], Run]
BLAS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
CHOICES: dict[str, Iterable[str]] = {"method": METHODS, "law": LAWS, "inner": INNER}
ALONE = Lock()  # autograd keeps its traces in one place: two threads tracing at once get wrong gradients


class Incomplete(RuntimeError):
    """Jobs that did not finish, each with the reason; all the others are in the folder."""


def grid(seeds: Iterable[int], preset: str | None = None, quick: bool = False, **settings: Iterable[Any]) -> list[Job]:
    """The jobs: every combination of the settings' values with every seed.

    `settings` are fields of Config, each with its values: method=["maml", "joint"], alpha=[0.01, 0.1]; `configure`
    has the rest. ValueError: no such setting, or a value it cannot have or that does not fit the method.
    """
    values = {name: _values(name, given) for name, given in settings.items()}
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
    configs = [configure(each.pop("method", None), preset, quick, each) for each in combinations]
    jobs = [(config, int(seed)) for seed in seeds for config in configs]  # all of a seed first, should time run out
    return list({name_of(job): job for job in jobs}.values())


def _values(name: str, given: Iterable[Any]) -> list[Any]:
    if name not in SETTINGS:
        raise ValueError(f"{name}: no such setting; expected one of {', '.join(SETTINGS)}")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{name}: expected a list of values, got {given!r}")
    kind, values = type(getattr(Config, name)), []
    for was in given:
        value = kind(was)  # 1 and np.float64(1) are the alpha 1.0, on disk too
        if value != was == was or value not in CHOICES.get(name, [value]):  # NaN is left to `configure`
            raise ValueError(f"{name}: expected {' or '.join(CHOICES.get(name, [kind.__name__]))}, got {was!r}")
        values.append(value)
    return values


def sweep(
    jobs: Iterable[Job],
    folder: str | Path,
    executor: Executor | None = None,
    workers: int | None = None,
    report: Callable[[int, int], Any] = lambda finished, total: None,
    run: RunJob = experiment.run,
) -> list[Row]:
    """Run the jobs that the folder does not have yet; returns the `table` of all that it has then.

    `executor` is any of concurrent.futures' kind, and is not shut down; without one, `workers` processes (default: one
    for each core) take one job after the other. report(finished, total) hears of every job. A job whose training
    diverges is finished too, and says so. Whatever ends a sweep early, the same call goes on from there.
    Errors: ValueError, a folder with files that are damaged or not a sweep's, or that another process is writing into;
    Incomplete: jobs failed, or a worker died, and with it the pool.
    """
    named = {name_of(job): job for job in jobs}
    with locked(writable(Path(folder))) as place:
        records = read(place)
        todo = {name: job for name, job in named.items() if name not in records}

        def keep(name: str, record: Record, theta: Theta) -> None:
            save_theta(place / f"{name}.npz", experiment.network(named[name][0])[0].names, theta)
            save_result(place / f"{name}.json", record)  # the record last: where it is, the job is finished
            records[name] = read_one(place / f"{name}.json")
            report(len(named.keys() & records), len(named))

        report(len(named) - len(todo), len(named))
        try:
            with nullcontext(executor) if executor is not None else _pool(workers, len(todo)) as chosen:
                failed = _through(chosen, todo, run, keep, cancel=executor is not None)
        finally:
            rows = save_table(place)  # the folder's: Ctrl-C may have come between a file and its entry here
        lost = [f"\n  {_said(todo[name])}: {error!r}" for name, error in failed.items() if name not in records]
        if lost:
            raise Incomplete(f"{len(lost)} of {len(named)} jobs are missing:{''.join(lost)}")
        return rows


def _said(job: Job) -> str:
    config, seed = job
    changed = [f"{key} {getattr(config, key)}" for key in SETTINGS[1:] if getattr(config, key) != getattr(Config, key)]
    return ", ".join([config.method, *changed, f"seed {seed}"])


def _job(run: RunJob, config: Config, seed: int) -> tuple[Record, Theta]:
    """A job's record and θ. One that diverged is finished too, and its record is made where it ran."""
    start = perf_counter()
    try:
        with ALONE:
            done, diverged = run(config, seed, lambda iteration, loss: None), {}
    except Diverged as error:
        done = Run(config, seed, error.theta, [], [], perf_counter() - start, "sine")
        diverged = {"diverged": error.iteration}
    return {**done.result(), **diverged, "versions": versions()}, done.theta


def _through(executor: Any, todo: dict[str, Job], run: RunJob, keep: Any, cancel: bool) -> dict[str, Exception]:
    """Run the jobs, and keep each as it comes; returns the errors of those that failed.

    Where this ends early, `cancel` takes back the jobs that no worker has begun.
    """
    futures: dict[Future[Any], str] = {}
    failed: dict[str, Exception] = {}
    try:
        for name, job in todo.items():
            try:
                futures[executor.submit(_job, run, *job)] = name
            except RuntimeError as error:  # the executor has broken already
                failed[name] = error
        for future in as_completed(futures):
            try:
                done = future.result()
            except Exception as error:
                failed[futures[future]] = error
            else:
                keep(futures[future], *done)
    finally:
        for future in futures if cancel else ():
            future.cancel()
    return failed


@contextmanager
def _pool(workers: int | None, jobs: int) -> Iterator[Executor]:
    """Processes with a thread each. Spawned, because a fork copies the locks of threads that it does not copy; and with
    the number of threads in the environment, because NumPy's libraries read it as they load, before any initializer."""
    one = {name: "1" for name in BLAS if name not in os.environ}
    os.environ.update(one)
    most = max(1, min(workers or os.cpu_count() or 1, jobs))
    pool = ProcessPoolExecutor(most, get_context("spawn"), initializer=_begin)
    try:
        yield pool
    except BaseException:  # nobody will keep what is being computed
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        # Those futures were not cancelled before: until Python 3.12 a killed pool trips over futures that were.
        pool.shutdown(cancel_futures=True)
        for name in one:
            del os.environ[name]


def _begin() -> None:
    """In each process of the pool: Ctrl-C is the parent's to answer, and no worker outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def follow() -> None:
        if parent:
            parent.join()
            os._exit(1)

    Thread(target=follow, daemon=True).start()
