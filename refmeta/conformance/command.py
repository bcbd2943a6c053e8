"""`refmeta check` and `refmeta vectors`."""

import argparse
import importlib
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from refmeta.conformance.cases import FOLDER, load, one_line
from refmeta.conformance.check import check, select
from refmeta.conformance.doors import check_command, check_results

DAY = 86_400
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows lacks one


def add_check(commands: Any) -> None:
    """Add `check` to argparse's subparsers."""
    parser = commands.add_parser(
        "check",
        help="check an implementation's meta-gradients, and name the bug",
        description=run_check.__doc__,
        usage="refmeta check [options] (MODULE:FUNCTION | --results FILE.json | -- COMMAND …)",
        epilog="Exit code 0: all is right; 1: something is wrong, or nothing was answered; 2: it could not be checked.",
    )
    parser.set_defaults(run=run_check, parser=parser)
    parser.add_argument("function", nargs="?", metavar="MODULE:FUNCTION", help="takes a case, returns a meta-gradient")
    parser.add_argument("--results", metavar="FILE.json", help="answers computed elsewhere: {id: gradient, …}")
    for option in ("--algorithm", "--tier"):
        parser.add_argument(option, action="append", metavar="NAME", help=f"only this {option[2:]} (may be repeated)")
    parser.add_argument("--dtype", default="float64", help="dtype of the function's arrays (default: float64)")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="limit per answer (default: 60)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run_check(args: argparse.Namespace) -> int:
    """Check an implementation's meta-gradients against the test vectors, and name the bug. The implementation is a
    Python function, a file of its results, or a command that reads and writes JSON lines."""
    if sum(map(bool, (args.function, args.results, args.command_line))) != 1:
        raise ValueError("expected one of MODULE:FUNCTION, --results FILE.json, or -- COMMAND …")
    if not 0 < args.timeout <= DAY:
        raise ValueError(f"--timeout {args.timeout}: expected a number of seconds above 0, at most {DAY}")
    vectors = select(args.algorithm, args.tier)
    if args.results:
        report = check_results(args.results, vectors)
    elif args.command_line:
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup makes it
                signal.signal(number, _end)
        report = check_command(args.command_line, vectors, args.timeout)
    else:
        function, title = _function(args.function), f"refmeta check {args.function}"
        report = check(function, args.dtype, args.algorithm, args.tier, args.timeout, title)
    print(report.json() if args.json else report)
    return 0 if report.passed else 1


def _end(number: int, frame: Any) -> None:
    """End, and so end what was started. A second signal, as a closing terminal sends, must not interrupt this."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    sys.exit(128 + number)


def _function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # the caller's folder, as for `python -m`
    try:
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, type) or not callable(found):
            raise TypeError(f"expected a function of a case, got {type(found).__name__}")
        return found
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: expected MODULE:FUNCTION that can be imported: {one_line(said)}") from error


def add_vectors(commands: Any) -> None:
    """Add `vectors` to argparse's subparsers."""
    parser = commands.add_parser("vectors", help="list, show or export the test vectors")
    actions = parser.add_subparsers(dest="action", required=True)
    for run, argument in ((list_vectors, ""), (show_vectors, "ID"), (export_vectors, "DIR")):
        action = actions.add_parser(run.__name__.removesuffix("_vectors"), help=run.__doc__, description=run.__doc__)
        action.set_defaults(run=run, parser=action)
        if argument:
            action.add_argument("what", metavar=argument)


def list_vectors(args: argparse.Namespace) -> int:
    """print one line for each vector"""
    for v in load():
        steps = max((len(supports) for supports, _ in v.case.tasks), default=0)
        print(f"{v.case.id:<40} {v.case.tier:<11} K={steps} T={len(v.case.tasks)}  {', '.join(v.case.flags)}")
    return 0


def show_vectors(args: argparse.Namespace) -> int:
    """print one case as JSON, without its answers"""
    found = [v for v in load() if v.case.id == args.what]
    if not found:
        raise ValueError(f"there is no vector {args.what!r}; `refmeta vectors list` lists them all")
    print(json.dumps(found[0].case.to_json(), indent=1))
    return 0


def export_vectors(args: argparse.Namespace) -> int:
    """copy the vector files into a new folder"""
    folder = Path(args.what)
    load()  # refuses files that have changed
    try:
        shutil.copytree(FOLDER, folder, ignore=lambda _, names: [name for name in names if not name.endswith(".json")])
    except FileExistsError:
        raise ValueError(f"{folder}: exists already; name a new folder") from None
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written: {error.strerror}") from error
    print(f"{folder}: {len(list(folder.iterdir()))} files")
    return 0
