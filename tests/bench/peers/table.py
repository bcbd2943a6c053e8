"""Print docs/implementations.md: what each implementation gets right, by algorithm and tier."""

import importlib
import os
import sys
import warnings
from importlib.metadata import version

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.simplefilter("ignore")

from refmeta.conformance import check  # noqa: E402

HEAD = """# Implementations

Made by `python -m tests.bench.peers.table > docs/implementations.md`, in float64.

A number is the correct digits of the worst vector, at most 16; exact: no bit differs. Skipped: the
peer does not do it. The last table is a MAML with a mistake, to see it caught. The sources are in
`tests/bench/peers`.

learn2learn 0.2.0 stands apart: it forces NumPy 1.26, does not build from PyPI on Python 3.11, and
needs torchvision. Built with Cython 3, and with torchvision's data sets stubbed out,
`learn2learn_maml.py` gave all 20 MAML and 6 first-order vectors of version 1.0.0 right, the exact
ones exactly, the others to 15.3 digits and more."""

PEERS = {
    "refmeta.conformance.harness": "numpy",
    "tests.bench.peers.torch_func": "torch",
    "tests.bench.peers.jax_grad": "jax",
    "tests.bench.peers.higher_maml": "higher",
    "tests.bench.peers.torch_first_order": "torch",
}


def cell(rows):
    """What to say of one algorithm's vectors of one tier."""
    asked = [row for row in rows if row.status != "skip"]
    wrong = sum(row.status != "pass" for row in asked)
    if not asked:
        return "skipped" if rows else ""
    if wrong:
        return f"**{wrong} of {len(asked)} wrong**"
    digits = min(row.digits for row in asked)
    return "exact" if digits == 16 else f"{digits:.1f}"


def main():
    print(HEAD)
    for module, package in PEERS.items():
        report = check(importlib.import_module(module).meta_gradient)
        tiers = list(dict.fromkeys(row.tier for row in report.rows))
        print(f"\n## `{module.removeprefix('tests.bench.peers.')}`: {package} {version(package)}\n")
        print("| algorithm | " + " | ".join(tiers) + " |\n|" + "---|" * (1 + len(tiers)))
        for verdict in report.verdicts:
            of = [row for row in report.rows if row.algorithm == verdict.algorithm]
            cells = [cell([row for row in of if row.tier == tier]) for tier in tiers]
            print(f"| {verdict.algorithm} | " + " | ".join(cells) + " |")
        print(f"{module}: {'passed' if report.passed else 'failed'}", file=sys.stderr)


if __name__ == "__main__":
    main()
