"""A sweep: its jobs, running them, the folder with a record and θ of each, the table of all, and the command.

Only the process that calls `sweep` writes: workers need no shared disk.
"""

import argparse
import json
import operator
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, astuple, fields
from functools import partial
from hashlib import sha256
from itertools import groupby, product
from math import inf
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Lock, Thread
from time import perf_counter
from typing import Any, get_args

import numpy as np

from refmeta.lab import display, runs
from refmeta.lab.files import locked, plain, regular, save_csv, save_result, save_theta, versions, writable
from refmeta.lab.runs import DIGITS, Options, Result, Run, add_command, drawing, seed_range, show, whole
from refmeta.lab.sine import experiment as sine
from refmeta.lab.sine.experiment import Config
from refmeta.lab.training import METHODS, Diverged, over_seeds
from refmeta.trees import Theta

Job = tuple[Config, int]  # the settings and the seed
RunJob = Callable[[Config, int, Any], Run]
SETTINGS = [field.name for field in fields(Config)]
CHOICES = {"method": list(METHODS), **{name: sine.options[name]["choices"] for name in ("law", "inner")}}
COLUMNS = "steps", "mse", "median", "ci95", "diverged"  # of a record's curve
RECORD = r"\w+-\d+-[0-9a-f]{12}\.(json|npz)"  # see `name_of`
MADE = "table.csv", "table.json", "sweep.png"
BLAS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
ALONE = Lock()  # autograd keeps its traces in one place: two threads tracing at once get wrong gradients


# --- Jobs -------------------------------------------------------------------------------------------


class Incomplete(RuntimeError):
    """Some jobs did not finish, each with its reason; the folder keeps the others."""


def grid(seeds: Iterable[int], preset: str | None = None, quick: bool = False, **settings: Iterable[Any]) -> list[Job]:
    """The jobs: every combination of the settings' values with every seed.

    `settings` are fields of Config, each with its values: method=["maml", "joint"], alpha=[0.01, 0.1]; `configure`
    has the rest. ValueError: no such setting, a value it cannot have or that does not fit the method, or such a seed.
    """
    whole_seeds = [operator.index(seed) for seed in seeds]  # a NumPy integer is a seed, 0.5 is none
    if strange := [seed for seed in whole_seeds if not 0 <= seed < 10**DIGITS]:
        raise ValueError(f"seeds: expected whole numbers of at most {DIGITS} digits, got {strange[0]!s:.40}")
    values = {name: _values(name, given) for name, given in settings.items()}
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
    configs = [sine.configure(each.pop("method", None), quick, each, preset) for each in combinations]
    jobs = [(config, seed) for seed in whole_seeds for config in configs]  # all of a seed first, should time run out
    return list({name_of(job): job for job in jobs}.values())


def _values(name: str, given: Iterable[Any]) -> list[Any]:
    if name not in SETTINGS:
        raise ValueError(f"{name}: no such setting; expected one of {', '.join(SETTINGS)}")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{name}: expected a list of values, got {given!r}")
    usual = getattr(Config, name)
    kind = type(usual) if usual is not None else get_args(Config.__annotations__[name])[0]
    values = [(kind(was), was) for was in given]  # 1 and np.float64(1) are the alpha 1.0, on disk too
    for value, was in values:
        if value != was == was or value not in CHOICES.get(name, [value]):  # NaN is left to `configure`
            raise ValueError(f"{name}: expected {' or '.join(CHOICES.get(name, [kind.__name__]))}, got {was!r}")
    return [value for value, _ in values]


def name_of(job: Job) -> str:
    """The name of a job's files: METHOD-SEED-HASH, the hash that of its settings."""
    config, seed = job
    return f"{config.method}-{seed}-{sha256(json.dumps(asdict(config)).encode()).hexdigest()[:12]}"


# --- Running them -----------------------------------------------------------------------------------


def sweep(
    jobs: Iterable[Job],
    folder: str | Path,
    executor: Executor | None = None,
    workers: int | None = None,
    report: Callable[[int, int], Any] = lambda finished, total: None,
    run: RunJob = sine.run,
) -> list[display.Row]:
    """Run the jobs that the folder does not have yet; returns the `table` of all that it has then.

    `executor` is any of concurrent.futures' kind, and is not shut down; without one, `workers` processes (default: one
    for each core) take one job after the other. report(finished, total) hears of every job. A job whose training
    diverges is finished too, and says so. Whatever ends a sweep early, the same call goes on from there.
    Errors: ValueError, a folder with files that are damaged or not a sweep's, or that another process is writing into;
    Incomplete: jobs failed, or a worker died, and with it the pool.
    """
    named = {name_of(job): job for job in jobs}
    with locked(writable(Path(folder))) as place:
        kept = named.keys() & read(place).keys()
        todo = [job for name, job in named.items() if name not in kept]
        futures: dict[Future[Any], Job] = {}
        report(len(kept), len(named))
        try:
            with nullcontext(executor) if executor is not None else _pool(workers, len(todo)) as chosen:
                for job in todo:
                    futures[_submitted(chosen, run, job)] = job
                failed = _save(place, futures, lambda finished: report(len(kept) + finished, len(named)))
        finally:
            # Not within the pool: until Python 3.12 a killed one trips over futures that were cancelled before.
            for future in futures:
                future.cancel()
            rows = _save_table(place)
    if failed:
        raise Incomplete(f"{len(failed)} of {len(named)} jobs are missing:{''.join(failed)}")
    return rows


def _submitted(executor: Executor, run: RunJob, job: Job) -> Future[Any]:
    try:
        return executor.submit(_job, run, *job)
    except RuntimeError as error:  # the executor has broken already
        refused: Future[Any] = Future()
        refused.set_exception(error)
        return refused


def _job(run: RunJob, config: Config, seed: int) -> tuple[Result, Theta]:
    """A job's record and θ. One that diverged is finished too, and its record is made where it ran."""
    start, diverged = perf_counter(), {}
    try:
        with ALONE:
            done = run(config, seed, lambda iteration, loss: None)
    except Diverged as error:
        done = Run(config, seed, error.theta, [], [], perf_counter() - start, "sine")
        diverged = {"diverged": error.iteration}
    return {**done.result(), **diverged, "versions": versions()}, done.theta


def _save(place: Path, futures: dict[Future[Any], Job], report: Callable[[int], Any]) -> list[str]:
    """Save each job as it finishes; returns, for people, those that failed, each with the reason."""
    failed: list[str] = []
    for count, future in enumerate(as_completed(futures), 1):
        config, seed = job = futures[future]
        try:
            record, theta = future.result()
        except Exception as error:
            changed = [f"{key} {value}" for key, value in asdict(config).items() if value != getattr(Config, key)]
            failed.append("\n  " + ", ".join([config.method, *changed, f"seed {seed}: {error!r}"]))
        else:
            save_theta(place / f"{name_of(job)}.npz", sine.network(config)[0].names, theta)
            # last: where it is, the job is finished
            save_result(place / f"{name_of(job)}.json", {**record, "sha256": _checksum(record)})
            report(count - len(failed))
    return failed


@contextmanager
def _pool(workers: int | None, jobs: int) -> Iterator[Executor]:
    """Processes with one thread each. Spawned, because a fork copies locks but not the threads that hold them; and with
    the number of threads in the environment, because NumPy's libraries read it as they load, before any initializer."""
    one = {name: "1" for name in BLAS if name not in os.environ}
    os.environ.update(one)
    most = min(jobs, 61) if os.name == "nt" else jobs  # Windows waits for no more processes at once
    pool = ProcessPoolExecutor(min(workers or os.cpu_count() or 1, most or 1), get_context("spawn"), initializer=_begin)
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
    Thread(target=_follow, args=[parent_process()], daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


# --- The folder -------------------------------------------------------------------------------------


def read(folder: Path) -> dict[str, Result]:
    """The records of a sweep's folder, by name. ValueError: it holds anything else, or a damaged record."""
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    own = [file for file in files if re.fullmatch(RECORD, file)]
    for file in files:
        if file not in own and not (own and file in MADE):
            raise ValueError(f"{folder}: holds {file}, which is not of a sweep; name an empty folder or a sweep's")
    return {file[:-5]: _read_one(folder / file) for file in own if file.endswith(".json")}


def _read_one(path: Path) -> Result:
    try:
        record: Result = json.loads(regular(path).read_text(encoding="utf-8"))
        curve = [{key: inf if row[key] is None else row[key] for key in COLUMNS} for row in record["curve"]]
        settings: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in record["config"].items()}
        config = Config(**settings)
        rows = 0 if "diverged" in record else max(config.test_steps) + 1
        counted = len(curve) == rows and all(row["steps"] == k for k, row in enumerate(curve))
        if not counted or name_of((config, record["seed"])) != path.stem or record.pop("sha256") != _checksum(record):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, or another job's; remove it, and the job runs again") from error
    return {**record, "config": config, "curve": curve}


def _checksum(record: Result) -> str:
    """SHA-256 of all that the record says, in whatever order."""
    return sha256(json.dumps(plain(record), sort_keys=True).encode()).hexdigest()


def table(records: Iterable[Result]) -> list[display.Row]:
    """A row for every combination of settings and number of steps: the settings; steps; and over the seeds

    seeds, how many; diverged_seeds, how many of them diverged in training; mse, median, the mean and the median over
    the others; ci95, half the mean's 95 % interval, by Student's t (of a single seed: over its test tasks);
    diverged_tasks, the test tasks that diverged, of all seeds. What is not finite is None.
    """
    ordered = sorted(records, key=lambda record: astuple(record["config"]))
    groups = groupby(ordered, lambda record: record["config"])
    return [row for config, group in groups for row in _rows(config, list(group))]


def _rows(config: Config, records: list[Result]) -> list[display.Row]:
    curves = [record["curve"] for record in records if "diverged" not in record]
    count = {"seeds": len(records), "diverged_seeds": len(records) - len(curves)}
    none = [dict.fromkeys(COLUMNS, inf) | {"steps": k, "diverged": 0} for k in range(max(config.test_steps) + 1)]
    with np.errstate(invalid="ignore"):  # the spread of infinite means
        curve = over_seeds(curves or [none])
    rows = [{**asdict(config), "steps": row["steps"], **count, **row} for row in curve]
    # a training diverges too: `diverged_seeds`
    return [plain({("diverged_tasks" if key == "diverged" else key): row[key] for key in row}) for row in rows]


def _save_table(folder: Path) -> list[display.Row]:
    """table.csv and table.json of all records in the folder, also of those that Ctrl-C left unreported."""
    rows = table(read(folder).values())
    if rows:
        save_csv(folder / "table.csv", rows)
        save_result(folder / "table.json", {"experiment": "sine", "rows": rows})
    return rows


def varying(rows: Iterable[display.Row]) -> list[str]:
    """The settings that have several values within one method; reptile's own defaults do not count."""
    seen = {name: {(row["method"], str(row[name])) for row in rows} for name in SETTINGS}
    return [name for name in SETTINGS if len(seen[name]) > len(seen["method"])]


# --- The command ------------------------------------------------------------------------------------


def _several(parse: Callable[[str], Any], text: str) -> list[Any]:
    try:
        return [parse(each) for each in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from None


ALONG: Options = {
    name: {"type": partial(_several, option.get("type", str)), "metavar": "A,B,…", "help": option["help"]}
    for name, option in sine.options.items()
    if name in SETTINGS and not isinstance(getattr(Config, name), tuple)
}
options: Options = {
    **ALONG,
    "seeds": {"default": "0", "metavar": "A-B,…", "help": "seeds, as 0-4 or 0,3,7 (default: 0)"},
    "preset": sine.options["preset"],
    "quick": runs.QUICK,
    "workers": {"type": whole(1), "metavar": "N", "help": "runs at the same time (default: one for each core)"},
    "out": {"default": "runs/sweep", "metavar": "DIR", "help": "new, or of a sweep to add to (default: runs/sweep)"},
}


def add_sweep(commands: Any) -> None:
    """Add `sweep` to argparse's subparsers."""
    title = "run the sine experiment for every combination of settings and seeds"
    add_command(commands, "sweep", title, str(run.__doc__), options, run)


def run(args: argparse.Namespace) -> int:
    """Run the sine experiment for every combination of the given values and seeds. The options are those of refmeta
    sine, each with one value or several. The folder keeps every finished run: the same command goes on where it was
    stopped, and a command with other values adds its runs."""
    given = runs.given(args, Config)
    if given.get("method") == ["all"]:
        given["method"] = list(METHODS)
    seeds = [seed for part in args.seeds.split(",") for seed in seed_range(part)]
    jobs, folder, code = grid(seeds, args.preset, args.quick, **given), Path(args.out), 0
    try:
        draw = drawing("sweep")
        with display.bar(len(jobs), "runs") as move:
            rows = sweep(jobs, folder, workers=args.workers, report=lambda finished, total: move(finished, ""))
    except KeyboardInterrupt as error:
        kept = f"{folder} keeps {sum((folder / f'{name_of(job)}.json').exists() for job in jobs)} of {len(jobs)} runs"
        raise KeyboardInterrupt(f"interrupted; {kept}; to go on, repeat the command") from error
    except Incomplete as error:
        print(f"refmeta sweep: {error}\n{folder} keeps the others; to try again, repeat the command", file=sys.stderr)
        rows, code = table(read(folder).values()), 1
    if rows:
        print(text(rows) + runs.too_short(args))
        show(folder, "the runs, table.csv, table.json", ["sweep.png"], draw, folder / "sweep.png", rows)
    return code or runs.failed("sweep", [row["mse"] is None for row in rows if row["steps"]])


def text(rows: list[display.Row]) -> str:
    """The table: a line for each combination of settings, a column for each reported number of steps."""
    settings, steps = ["method", *varying(rows)], sorted({k for row in rows for k in row["test_steps"]})
    lines = [[*(name.replace("_", " ") for name in settings), "seeds", *(display.plural(k, "step") for k in steps)]]
    for _, group in groupby(rows, lambda row: [row[name] for name in SETTINGS]):
        curve = list(group)
        every, lost = curve[0]["seeds"], curve[0]["diverged_seeds"]
        seeds = f"{every - lost} of {every}" if lost else str(every)
        means = [_mean(curve[k]) if k < len(curve) else "" for k in steps]
        lines.append([*(str(curve[0][name]) for name in settings), seeds, *means])
    top = "mean squared error on unseen tasks (± 95 % interval over the seeds; of one seed, over its tasks), after"
    note = "The means leave out the runs and test tasks that diverged; table.csv counts them."
    lost = any(row["diverged_seeds"] or row["diverged_tasks"] for row in rows)
    return "\n".join(["", top, display.table(lines, gap="  "), *[note] * lost])


def _mean(row: display.Row) -> str:
    if row["mse"] is None:
        return "diverged"
    return f"{row['mse']:.3f}" if row["ci95"] is None else display.cell(row["mse"], row["ci95"])
