"""python -m tests.blind [--only SUBSTRING] [--framework numpy|torch|jax] [--out FILE]: what `check` says of each."""

import argparse
import json
import sys
from collections import Counter
from contextlib import nullcontext
from statistics import median
from time import process_time

from refmeta.conformance import check
from refmeta.conformance.explain import ZERO
from refmeta.conformance.report import APART
from tests.blind.judge import true
from tests.blind.registry import FRAMEWORKS, load


def judged(entry, verdict):
    """The kind of a verdict: of a wrong one whether its name is true, or what is proved without one."""
    if entry.mistakes and verdict.kind in ("bug", "convention") and verdict.explanations[0] != ZERO:
        if len(verdict.explanations) > APART:
            return "several", ""
        good, asked = true(entry.function, verdict.explanations[0], entry.algorithm)
        return "named" if good == asked > 0 else "FALSE", f" [{good} of {asked} fresh cases]"
    p = verdict.evidence
    proofs = p.where, p.unless, p.outside, p.arrays, p.pieces, p.multiples, p.length, p.span
    return verdict.kind + " with evidence" * any(map(bool, proofs)), ""


def asked(entry):
    """The verdict on it, and the seconds of a core that judging took: all but its own."""
    own = 0.0

    def timed(case):
        nonlocal own
        start = process_time()
        try:
            return entry.function(case)
        finally:
            own += process_time() - start

    start = process_time()
    (verdict,) = check(timed, dtype=entry.dtype, algorithms=[entry.algorithm]).verdicts
    return verdict, process_time() - start - own


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.blind")
    parser.add_argument("--only", default="", metavar="SUBSTRING")
    parser.add_argument("--framework", choices=FRAMEWORKS)
    parser.add_argument("--out", metavar="FILE")
    arguments = parser.parse_args()
    kinds: dict[str, Counter[str]] = {}
    times: list[float] = []
    with open(arguments.out, "w") if arguments.out else nullcontext() as out:
        for name, entry in load(arguments.framework).items():
            truth = "wrong" if entry.mistakes else "right"
            if arguments.only not in f"{truth}/{name}":
                continue
            verdict, seconds = asked(entry)
            first = verdict.text.partition("\n")[0]
            kind, fresh = judged(entry, verdict)
            kinds.setdefault(f"{entry.function.__module__}, {truth}", Counter())[kind] += 1
            times.append(seconds)
            if "jax" in sys.modules:
                sys.modules["jax"].clear_caches()  # the code compiled for all of them does not fit into memory
            print(f"{name}  {kind}{fresh}  {first}  ({entry.words})  {seconds:.1f} s", flush=True)
            if out:
                line = {"name": name, "words": entry.words, "mistakes": entry.mistakes, "kind": kind, "fresh": fresh}
                line |= {"first": first, "text": verdict.text, "seconds": round(seconds, 2)}
                print(json.dumps(line, ensure_ascii=False), file=out, flush=True)
    for of, counts in kinds.items():
        print(f"{of}: {counts.total()}:", ", ".join(f"{kind} {n}" for kind, n in counts.most_common()))
    if times:
        long = sum(seconds > 10 for seconds in times)
        print(f"judging: median {median(times):.2f} s, most {max(times):.1f} s, {long} above 10 s")


if __name__ == "__main__":
    main()
