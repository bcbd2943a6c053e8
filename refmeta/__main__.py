"""Check an implementation of MAML, first-order MAML, ANIL or Reptile, or run the experiments of their papers."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import refmeta
from refmeta.conformance.command import add_check, add_vectors
from refmeta.fast import keep_freed_memory
from refmeta.lab import Diverged, fewshot, geometry, reuse, runs, sine
from refmeta.lab.explore import add_explore
from refmeta.lab.reproduce.experiment import add_reproduce
from refmeta.lab.sweep.experiment import add_sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0: done; 1: it ran and failed; 2: bad input, with what was expected."""
    keep_freed_memory()
    _open_streams()
    args = _parsed(list(sys.argv[1:] if argv is None else argv))
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads on
        return 141  # that of a program ended by SIGPIPE: a check that was not read to its end has not passed
    except (ValueError, TypeError) as error:
        code, said = 2, str(error)
    except (OSError, MemoryError, Diverged) as error:
        code, said = 1, str(error) or "out of memory"
    except KeyboardInterrupt as error:
        code, said = 130, str(error) or "interrupted"
    with suppress(OSError):  # stderr is closed: the exit code says it too
        print(f"refmeta {args.command}: {said}", file=sys.stderr)
    return code


def _open_streams() -> None:
    """Open on the null device what streams our caller has closed; print ? for a letter that a stream cannot encode."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # in this order, so that no file of ours gets the number of a stream
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")


def _parsed(given: list[str]) -> argparse.Namespace:
    """The options; `command_line` is what follows --, the command to check."""
    parser = argparse.ArgumentParser(prog="refmeta", description=__doc__)
    parser.add_argument("--version", action="version", version=refmeta.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for experiment in (sine.SINE, fewshot.FEWSHOT, reuse.REUSE):
        runs.add(commands, experiment)
    for declare in (add_explore, add_reproduce, geometry.add_geometry, add_sweep, add_check, add_vectors):
        declare(commands)
    cut = given.index("--") if "--" in given else len(given)
    if empty := [word[:-3] for word in given[:cut] if word.startswith("-") and word.endswith("=--")]:
        parser.error(f"argument {empty[0]}: expected a value, got '--'")  # argparse may make an empty list of it
    args, unknown = parser.parse_known_args(given[:cut], argparse.Namespace(command_line=given[cut + 1 :]))
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
