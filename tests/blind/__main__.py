"""python -m tests.blind [--only SUBSTRING] [--framework numpy|torch|jax] [--out FILE]: what `check` says of each."""

import argparse
import json
from collections import Counter
from contextlib import nullcontext
from time import perf_counter

from refmeta.conformance import check
from tests.blind.judge import true
from tests.blind.registry import FRAMEWORKS, load


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.blind")
    parser.add_argument("--only", default="", metavar="SUBSTRING")
    parser.add_argument("--framework", choices=FRAMEWORKS)
    parser.add_argument("--out", metavar="FILE")
    arguments = parser.parse_args()
    kinds: dict[str, Counter[str]] = {"right": Counter(), "wrong": Counter()}
    with open(arguments.out, "w") if arguments.out else nullcontext() as out:
        for name, entry in load(arguments.framework).items():
            if arguments.only not in name:
                continue
            start = perf_counter()
            (verdict,) = check(entry.function, dtype=entry.dtype, algorithms=[entry.algorithm]).verdicts
            seconds = round(perf_counter() - start, 1)
            first = verdict.text.partition("\n")[0]
            kind, told = verdict.kind, ""
            if entry.mistakes and verdict.explanations and kind in ("bug", "convention"):
                good, asked = true(entry.function, verdict.explanations[0], entry.algorithm)
                kind = "named" if len(verdict.explanations) <= 3 else "several"
                kind = "FALSE" if kind == "named" and good < asked else kind
                told = f"[{good} of {asked} fresh cases] "
            elif kind == "unexplained":
                evidence = verdict.evidence
                kind += " with where or what" * bool(evidence.where or evidence.pieces)
            kinds["wrong" if entry.mistakes else "right"][kind] += 1
            print(f"{name}  {kind}  {told}{first}  {seconds} s  ({entry.words})", flush=True)
            if out:
                line = {"name": name, "words": entry.words, "mistakes": entry.mistakes, "kind": verdict.kind}
                line |= {"first": first, "text": verdict.text, "seconds": seconds}
                print(json.dumps(line, ensure_ascii=False), file=out, flush=True)
    for truth, counts in kinds.items():
        print(f"{truth}: {counts.total()}:", ", ".join(f"{kind} {n}" for kind, n in counts.most_common()))


if __name__ == "__main__":
    main()
