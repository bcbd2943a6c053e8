"""A sweep's folder: every finished job's record, METHOD-SEED-HASH.json, and θ, .npz; and a table of them all."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, astuple, fields
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from refmeta.lab.display import Row
from refmeta.lab.files import plain, save_csv, save_result
from refmeta.lab.sine.experiment import Config
from refmeta.lab.training import over_seeds

Job = tuple[Config, int]  # the settings and the seed
Record = dict[str, Any]
SETTINGS = [field.name for field in fields(Config)]
COLUMNS = "steps", "mse", "median", "ci95", "diverged"
MADE = "table.csv", "table.json", "sweep.png"


def name_of(job: Job) -> str:
    """The name of a job's files: METHOD-SEED-HASH, the hash that of its settings."""
    config, seed = job
    return f"{config.method}-{seed}-{sha256(json.dumps(asdict(config)).encode()).hexdigest()[:12]}"


def read(folder: Path) -> dict[str, Record]:
    """The records of a sweep's folder, by name. ValueError: it holds anything else, or a damaged record."""
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    own = [file for file in files if re.fullmatch(r".+-\d+-[0-9a-f]{12}\.(json|npz)", file)]
    for file in files:
        if file not in own and not (own and file in MADE):
            raise ValueError(f"{folder}: holds {file}, which is not a sweep's; name an empty folder, or a sweep's")
    return {file[:-5]: read_one(folder / file) for file in own if file.endswith(".json")}


def read_one(path: Path) -> Record:
    """One record. ValueError: it is damaged, or another job's."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
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


def table(records: Iterable[Record]) -> list[Row]:
    """A row for every combination of settings and number of steps: the settings; steps; and over the seeds

    seeds, how many; diverged_seeds, how many of them diverged in training; mse, median, the mean and the median over
    the others; ci95, half the mean's 95 % interval, by Student's t (of a single seed: over its test tasks);
    diverged_tasks, the test tasks that diverged, of all seeds. What is not finite is None.
    """
    groups: dict[Config, list[Record]] = {}
    for record in records:
        groups.setdefault(record["config"], []).append(record)
    return [row for config in sorted(groups, key=astuple) for row in _rows(config, groups[config])]


def _rows(config: Config, records: list[Record]) -> list[Row]:
    curves = [record["curve"] for record in records if "diverged" not in record]
    count = {"seeds": len(records), "diverged_seeds": len(records) - len(curves)}
    blank = {"mse": inf, "median": inf, "ci95": inf, "diverged": 0}
    with np.errstate(invalid="ignore"):  # the spread of infinite means
        curve = over_seeds(curves or [[{"steps": k, **blank} for k in range(max(config.report_steps) + 1)]])
    known = asdict(config)
    return [
        plain({**known, "steps": row["steps"], **count, **{key: row[key] for key in ("mse", "median", "ci95")}})
        | {"diverged_tasks": row["diverged"]}
        for row in curve
    ]


def save_table(folder: Path) -> list[Row]:
    """table.csv and table.json of all records in the folder; returns their rows."""
    rows = table(read(folder).values())
    if rows:
        save_csv(folder / "table.csv", rows)
        save_result(folder / "table.json", {"experiment": "sine", "rows": rows})
    return rows


def varying(rows: Iterable[Row]) -> list[str]:
    """The settings that take several values within a method: that reptile has its own defaults does not count."""
    seen = {name: {(row["method"], str(row[name])) for row in rows} for name in SETTINGS}
    return [name for name in SETTINGS if len(seen[name]) > len(seen["method"])]
