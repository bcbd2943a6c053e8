"""Times the meta-gradients, beside a hand-derived gradient and other libraries: `python -m tests.bench`.

Exit code 1: a ratio to the hand-derived gradient has become a regression; 2: bad options, or a worker that fails.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from tests.bench.measure import own, side_by_side
from tests.bench.page import BRIEF, MARKS, renew
from tests.bench.promises import REGRESSION, judged, ratios
from tests.bench.workloads import FOUR, WORKLOADS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = options()
    args = parser.parse_args(argv)
    try:
        return bench(args)
    except ValueError as error:
        parser.error(str(error))


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Times the algorithms, recorded, beside the same gradients derived by hand, and beside other "
        "libraries given as --peer. Exit code 1: a ratio to the hand-derived gradient is more than "
        f"{REGRESSION} times what it was when it was last measured.",
    )
    add = parser.add_argument
    add("--cases", default=",".join(WORKLOADS), metavar="S1,S2,…", help="default: all of %(default)s")
    add("--algorithms", default=",".join(FOUR), metavar="maml,…", help="default: %(default)s")
    add("--peer", action="append", default=[], metavar="COMMAND", help="another library's worker: tests/bench/workers")
    add("--seconds", type=float, default=1.0, help="for each of them on each case (default: 1)")
    add("--threads", type=int, default=1, help="of everyone (default: 1)")
    add("--page", metavar="FILE", help="measure memory, imports and growth too; renew this page")
    return parser


def bench(args: argparse.Namespace) -> int:
    if not 0 < args.seconds < 1e4 or not 1 <= args.threads <= 1024:
        raise ValueError(f"--seconds {args.seconds:g} --threads {args.threads}: expected positive numbers")
    cases, algorithms = chosen("--cases", args.cases, WORKLOADS), chosen("--algorithms", args.algorithms, FOUR)
    page = Path(args.page) if args.page else None
    if page and not (isfile(page) and all(mark in page.read_text() for mark in BRIEF + MARKS)):
        raise ValueError(f"--page {page}: expected a file with the lines {', '.join(BRIEF + MARKS)}")
    peers = [shlex.split(command) for command in args.peer]
    wanted = [(c, WORKLOADS[c], a) for c in cases for a in algorithms if a in WORKLOADS[c].algorithms]
    if not wanted:
        raise ValueError(f"--cases {args.cases} --algorithms {args.algorithms}: none of these cases has them")
    rows = side_by_side([own("recorded"), own("by hand"), *peers], wanted, args.seconds, args.threads, say)
    say("")
    print(aligned(ratios(rows)))
    verdicts = judged(rows)
    print("\n" + "\n".join(text for text, _ in verdicts))
    if page:
        renew(page, rows, peers, args.seconds, args.threads, say)
    return int(any(regressed for _, regressed in verdicts))


def chosen(option: str, text: str, known: Any) -> list[str]:
    """The words between the commas. ValueError: one is not known."""
    words = text.split(",")
    if not set(words) <= set(known):
        raise ValueError(f"{option} {text}: expected some of {', '.join(known)}, with commas between them")
    return words


def say(text: str) -> None:
    """On a terminal, in place of what was said before."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def aligned(table: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in table)


if __name__ == "__main__":
    sys.exit(main())
