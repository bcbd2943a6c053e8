"""See the algorithms move: a page for the browser, in which everything can be dragged; it needs no connection."""

import argparse
import webbrowser
from pathlib import Path
from typing import Any

from refmeta.lab.runs import add_command

PAGE = Path(__file__).with_name("explorer.html")  # made by python -m docs.explorer
HELP = "open the explorer in the browser: parabolas, the plane, a sine wave, spot the mistake"


def add_explore(commands: Any) -> None:
    """Add `explore` to argparse's subparsers."""
    add_command(commands, "explore", HELP, str(__doc__), {}, run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    print(PAGE)
    if not webbrowser.open(PAGE.as_uri()):
        print("There is no browser here: open this file in one.")
    return 0
