"""`refmeta bench`."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from refmeta.lab.bench import measure
from refmeta.lab.bench.cases import CASES, FASTER, FOUR, LIMIT, MEASURED, REGRESSION
from refmeta.lab.bench.measure import OWN, Row

HAND, OURS = "by hand", "refmeta, recorded"
MARKS = "<!-- measured: refmeta bench -->", "<!-- end of what was measured -->"


def add_bench(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "bench",
        help="time the meta-gradients, beside a hand-derived gradient and other libraries",
        description="Times the algorithms, recorded, beside the same gradients derived by hand, and beside other "
        "libraries given as --peer. Exit code 1: a ratio to the hand-derived gradient is more than "
        f"{REGRESSION} times what it was when it was last measured.",
    )
    parser.set_defaults(run=bench)
    parser.add_argument("--cases", default=",".join(CASES), metavar="S1,S2,…", help="default: all of %(default)s")
    parser.add_argument("--algorithms", default=",".join(FOUR), metavar="maml,…", help="default: %(default)s")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="COMMAND", help="another library's worker; see tests/peers/bench"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each of them on each case (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of everyone (default: 1)")
    parser.add_argument("--page", metavar="FILE", help="measure memory, imports and growth too; renew this page")


def bench(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if not 0 < args.seconds < 1e4 or not 1 <= args.threads <= 1024:
        raise ValueError(f"--seconds {args.seconds:g} --threads {args.threads}: expected positive numbers")
    names, algorithms = _chosen("--cases", args.cases, CASES), _chosen("--algorithms", args.algorithms, FOUR)
    page = Path(args.page) if args.page else None
    if page and not (page.is_file() and all(mark in page.read_text() for mark in MARKS)):
        raise ValueError(f"--page {page}: expected a file with the lines {' and '.join(MARKS)}")
    peers = [shlex.split(command) for command in args.peer]
    wanted = [(n, CASES[n], a) for n in names for a in algorithms if a in CASES[n].algorithms]
    if not wanted:
        raise ValueError(f"--cases {args.cases} --algorithms {args.algorithms}: none of these cases has them")
    rows = measure.side_by_side([*OWN.values(), *peers], wanted, args.seconds, args.threads, _say)
    _say("")
    print(_text(ratios(rows)))
    found = judged(rows)
    print("\n" + "\n".join(text for text, _ in found))
    if page:
        from refmeta.lab.bench.page import renew

        renew(page, rows, peers, args, _say)
    return int(any(regressed for _, regressed in found))


def _chosen(option: str, text: str, known: Any) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(known):
        raise ValueError(f"{option} {text}: expected some of {', '.join(known)}, with commas between them")
    return names


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def grouped(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """For each case and algorithm the milliseconds of each worker."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        table.setdefault((row["case"], row["algorithm"]), {})[row["name"]] = row["ms"]
    return table


def ratios(rows: list[Row]) -> list[list[str]]:
    """The table: recorded over hand-derived; and how many times a recording's time the others take."""
    others = list(dict.fromkeys(row["name"] for row in rows if row["name"] not in (HAND, OURS)))
    table = [["", "", "recorded / by hand", *(f"{name} / recorded" for name in others), "recorded, ms"]]
    for (case, algorithm), ms in grouped(rows).items():
        ours = ms[OURS]
        cells = [f"{ours / ms[HAND]:.2f}" if HAND in ms else "–"]
        cells += [f"{ms[name] / ours:.3g}" if name in ms else "–" for name in others]
        table.append([case, algorithm, *cells, f"{ours:.3g}"])
    return table


def judged(rows: list[Row]) -> list[tuple[str, bool]]:
    """Every promise with what was measured, and whether it is a regression."""
    found = []
    for (case, algorithm), ms in grouped(rows).items():
        ours = ms[OURS]
        if HAND in ms:
            ratio, before = ours / ms[HAND], MEASURED[case, algorithm]
            worse = ratio > REGRESSION * before
            verdict = "met" if ratio <= LIMIT[case] else "NOT MET: see `--page`, where the time goes"
            text = (
                f"{case} {algorithm}: {ratio:.2f} of the hand-derived gradient's time, at most {LIMIT[case]}: {verdict}"
            )
            found.append((text + (f"; a REGRESSION, it was {before}" if worse else ""), worse))
        for (place, peer), factor in FASTER.items():
            if (place, algorithm) == (case, "maml") and peer in ms:
                verdict = "met" if ms[peer] / ours >= factor else "NOT MET"
                found.append(
                    (
                        f"{case} {algorithm}: {peer} takes {ms[peer] / ours:.3g} times as long, "
                        f"at least {factor:g}: {verdict}",
                        False,
                    )
                )
    return found


def _text(table: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in table)
