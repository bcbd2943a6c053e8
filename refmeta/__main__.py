"""The command `refmeta`, also `python -m refmeta`."""

import argparse
import os
import sys
from collections.abc import Sequence

import refmeta
from refmeta.conformance.command import add_check, add_vectors
from refmeta.fast import keep_freed_memory
from refmeta.lab.fewshot import FEWSHOT
from refmeta.lab.geometry import add_geometry
from refmeta.lab.reuse import REUSE
from refmeta.lab.runs import add
from refmeta.lab.sine import SINE
from refmeta.lab.sweep import add_sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0: done; 1: it ran and failed; 2: bad input, with what was expected."""
    keep_freed_memory()
    args = _parsed(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # no table is lost to a terminal that lacks a letter of it
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has seen enough
        return 141  # as of a program that SIGPIPE ends: a check that was not read to its end has not passed
    except (ValueError, TypeError) as error:
        return _failed(args.command, str(error), 2)
    except (OSError, MemoryError) as error:
        return _failed(args.command, str(error) or "out of memory", 1)
    except KeyboardInterrupt as error:
        return _failed(args.command, str(error) or "interrupted", 130)


def _failed(command: str, why: str, code: int) -> int:
    print(f"refmeta {command}: {why}", file=sys.stderr)
    return code


def _parsed(given: list[str]) -> argparse.Namespace:
    """The options; and in `command_line` what follows --, the command to check, which argparse has no word for."""
    parser = argparse.ArgumentParser(prog="refmeta", description="Gradient-based meta-learning, as a specification.")
    parser.add_argument("--version", action="version", version=refmeta.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    add(commands, SINE)
    add(commands, FEWSHOT)
    add_geometry(commands)
    add(commands, REUSE)
    for declare in (add_sweep, add_check, add_vectors):
        declare(commands)
    cut = given.index("--") if "--" in given else len(given)
    for word in given[:cut]:
        if word.startswith("-") and word.endswith("=--"):  # of which argparse may make an empty list
            parser.error(f"argument {word[:-3]}: expected a value, got '--'")
    return parser.parse_args(given[:cut], argparse.Namespace(command_line=given[cut + 1 :]))


if __name__ == "__main__":
    sys.exit(main())
