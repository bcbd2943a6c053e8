"""Many runs: every combination of settings and seeds, on any executor, into one folder that can be added to.

    rows = sweep(grid(seeds=range(5), method=["maml", "joint"], alpha=[0.01, 0.1]), "runs/sweep")

For every finished job the folder has METHOD-SEED-HASH.json, its record, and .npz, its θ; for all of them together
table.csv and table.json. Only the process that calls `sweep` writes there: workers need no shared disk.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, astuple, fields
from hashlib import sha256
from itertools import product
from math import inf
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Lock, Thread
from time import perf_counter
from typing import Any

import numpy as np

from refmeta.lab.files import locked, plain, save_csv, save_result, save_theta, versions, writable
from refmeta.lab.optimisers import INNER
from refmeta.lab.runs import Run
from refmeta.lab.sine import experiment
from refmeta.lab.sine.experiment import Config, configure
from refmeta.lab.sine.waves import LAWS
from refmeta.lab.training import METHODS, Diverged, over_seeds
from refmeta.trees import Theta

Job = tuple[Config, int]  # the settings and the seed
RunJob = Callable[[Config, int, Any], Run]
SETTINGS = [field.name for field in fields(Config)]
BLAS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
COLUMNS = "steps", "mse", "median", "ci95", "diverged"
MADE = "table.csv", "table.json", "sweep.png"
ALONE = Lock()  # autograd keeps its traces in one place: two threads tracing at once get wrong gradients
PATIENCE = 5  # pools in a row that die without finishing a job


class Incomplete(RuntimeError):
    """Jobs that did not finish, each with the reason; all the others are in the folder."""


def grid(seeds: Iterable[int], preset: str | None = None, quick: bool = False, **settings: Iterable[Any]) -> list[Job]:
    """The jobs: every combination of the settings' values with every seed.

    `settings` are fields of Config, each with its values: method=["maml", "joint"], alpha=[0.01, 0.1]; `configure`
    has the rest. ValueError: no such setting, or a value it cannot have or that does not fit the method.
    """
    known: dict[str, Iterable[str]] = {"method": METHODS, "law": LAWS, "inner": INNER}
    for name, values in settings.items():
        if name not in SETTINGS:
            raise ValueError(f"{name}: no such setting; expected one of {', '.join(SETTINGS)}")
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ValueError(f"{name}: expected a list of values, got {values!r}")
        kind, given = type(getattr(Config, name)), list(values)
        settings[name] = [kind(value) for value in given]  # 1 and np.float64(1) are the alpha 1.0, on disk too
        for value, was in zip(settings[name], given, strict=True):
            if value != was == was or value not in known.get(name, [value]):  # NaN is left to `configure`
                raise ValueError(f"{name}: expected {' or '.join(known.get(name, [kind.__name__]))}, got {was!r}")
    combinations = [dict(zip(settings, values, strict=True)) for values in product(*settings.values())]
    configs = [configure(each.pop("method", None), preset, quick, each) for each in combinations]
    jobs = [(config, int(seed)) for seed in seeds for config in configs]  # all of a seed first, should time run out
    return list({name_of(job): job for job in jobs}.values())


def name_of(job: Job) -> str:
    """What the files of a job are called: METHOD-SEED-HASH, the hash that of its settings."""
    config, seed = job
    return f"{config.method}-{seed}-{sha256(json.dumps(asdict(config)).encode()).hexdigest()[:12]}"


def sweep(
    jobs: Iterable[Job],
    folder: str | Path,
    executor: Executor | None = None,
    workers: int | None = None,
    report: Callable[[int, int], Any] = lambda finished, total: None,
    run: RunJob = experiment.run,
) -> list[dict[str, Any]]:
    """Run the jobs that the folder does not have yet; returns the `table` of all that it has then.

    `executor` is any of concurrent.futures' kind, and is not shut down; without one, `workers` processes (default: one
    for each core) take one job after the other. report(finished, total) hears of every job. A job whose training
    diverges is finished too, and says so. Whatever ends a sweep early, the same call goes on from there.
    Errors: ValueError, a folder with files that are damaged or not a sweep's, or that another process is writing into;
    Incomplete.
    """
    named = {name_of(job): job for job in jobs}
    with locked(writable(Path(folder))) as place:
        records = read(place)
        todo = {name: job for name, job in named.items() if name not in records}

        def keep(name: str, record: dict[str, Any], theta: Theta) -> None:
            save_theta(place / f"{name}.npz", experiment.network(named[name][0])[0].names, theta)
            save_result(place / f"{name}.json", record)  # the record last: where it is, the job is finished
            records[name] = _record(place / f"{name}.json")
            report(len(named.keys() & records), len(named))

        report(len(named) - len(todo), len(named))
        try:
            failed = _through(executor, todo, run, keep) if executor is not None else _pooled(workers, todo, run, keep)
        finally:
            rows = table(read(place).values())  # the folder's: Ctrl-C may have come between a file and its entry here
            if rows:
                save_csv(place / "table.csv", rows)
                save_result(place / "table.json", {"experiment": "sine", "rows": rows})
        lost = [f"\n  {_said(todo[name])}: {error!r}" for name, error in failed.items() if name not in records]
        if lost:
            raise Incomplete(f"{len(lost)} of {len(named)} jobs are missing:{''.join(lost)}")
        return rows


def _said(job: Job) -> str:
    config, seed = job
    changed = [f"{key} {getattr(config, key)}" for key in SETTINGS[1:] if getattr(config, key) != getattr(Config, key)]
    return ", ".join([config.method, *changed, f"seed {seed}"])


def _job(run: RunJob, config: Config, seed: int) -> tuple[dict[str, Any], Theta]:
    """A job's record and θ. One that diverged is finished too, and its record is made where it ran."""
    start = perf_counter()
    try:
        with ALONE:
            done, diverged = run(config, seed, lambda iteration, loss: None), {}
    except Diverged as error:
        done, diverged = (
            Run(config, seed, error.theta, [], [], perf_counter() - start, "sine"),
            {"diverged": error.iteration},
        )
    return {**done.result(), **diverged, "versions": versions()}, done.theta


def _through(
    executor: Executor, todo: dict[str, Job], run: RunJob, keep: Any, cancel: bool = True
) -> dict[str, Exception]:
    """Run the jobs, and keep each as it comes; returns what befell those that did not."""
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


def _pooled(workers: int | None, todo: dict[str, Job], run: RunJob, keep: Any) -> dict[str, Exception]:
    """`_through` a pool of processes. A worker that dies breaks its pool, and the rest goes to a new one.

    Workers take jobs in order, so the first of the unfinished may have killed it: those come last, one at a time.
    """
    failed: dict[str, Exception] = {}
    names, barren = list(todo), 0
    for size in (min(workers or os.cpu_count() or 1, len(todo)), 1):
        suspects: list[str] = []
        while names and barren < PATIENCE:
            with _pool(size) as pool:
                # Not cancelled but killed: before Python 3.12 a pool trips over futures that were both.
                lost = _through(pool, {name: todo[name] for name in names}, run, keep, cancel=False)
            broken = [name for name in names if isinstance(lost.get(name), BrokenExecutor)]
            barren = barren + 1 if len(broken) == len(names) else 0
            failed, suspects, names = {**failed, **lost}, suspects + broken[:size], broken[size:]
        names = suspects
    return failed


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    """Processes with a thread each. Spawned, for a fork copies the locks of threads that it does not copy; and with
    the number of threads in the environment, for NumPy's libraries read it as they load, before any initializer."""
    one = {name: "1" for name in BLAS if name not in os.environ}
    os.environ.update(one)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin)
    try:
        yield pool
    except BaseException:  # nobody will keep what is being computed
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
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


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a sweep's folder, by name. ValueError: it holds anything else, or a damaged record."""
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    own = [file for file in files if re.fullmatch(r".+-\d+-[0-9a-f]{12}\.(json|npz)", file)]
    for file in files:
        if file not in own and not (own and file in MADE):
            raise ValueError(f"{folder}: holds {file}, which is not a sweep's; name an empty folder, or a sweep's")
    return {file[:-5]: _record(folder / file) for file in own if file.endswith(".json")}


def _record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        curve = [{key: inf if row[key] is None else row[key] for key in COLUMNS} for row in record["curve"]]
        settings: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in record["config"].items()}
        config = Config(**settings)
        rows = 0 if "diverged" in record else max(config.report_steps) + 1
        counted = len(curve) == rows and [row["steps"] for row in curve] == list(range(len(curve)))
        if not counted or name_of((config, record["seed"])) != path.stem:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, or not this job's; move it away, and the job runs again") from error
    return {**record, "config": config, "curve": curve}


def table(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every combination of settings and number of steps: the settings; steps; and over the seeds

    seeds, how many; diverged_seeds, how many of them diverged in training; mse, median, the mean and the median over
    the others; ci95, half the mean's 95 % interval, by Student's t (of a single seed: over its test tasks);
    diverged_tasks, the test tasks that diverged, of all seeds. What is not finite is None.
    """
    groups: dict[Config, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["config"], []).append(record)
    rows = []
    for config, same in sorted(groups.items(), key=lambda item: astuple(item[0])):
        curves = [record["curve"] for record in same if "diverged" not in record]
        count = {"seeds": len(same), "diverged_seeds": len(same) - len(curves)}
        blank = {"mse": inf, "median": inf, "ci95": inf, "diverged": 0}
        with np.errstate(invalid="ignore"):  # the spread of infinite means
            curve = over_seeds(curves or [[{"steps": k, **blank} for k in range(max(config.report_steps) + 1)]])
        for row in curve:
            means = {key: row[key] for key in ("mse", "median", "ci95")}
            rows.append({**asdict(config), "steps": row["steps"], **count, **means, "diverged_tasks": row["diverged"]})
    return [plain(row) for row in rows]


def varying(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The settings that take several values within a method: that reptile has its own defaults does not count."""
    seen = {name: {(row["method"], str(row[name])) for row in rows} for name in SETTINGS}
    return [name for name in SETTINGS if len(seen[name]) > len(seen["method"])]
