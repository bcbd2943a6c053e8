"""python -m tests.blind [--only SUBSTRING] [--framework numpy|torch|jax] [--out FILE]: what `check` says of each.

A SUBSTRING is looked for in right/framework/algorithm/function or wrong/….
"""

import argparse
import json
from collections import Counter
from contextlib import nullcontext
from time import perf_counter

from refmeta.conformance import check
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
            truth = "wrong" if entry.mistakes else "right"
            if arguments.only not in f"{truth}/{name}":
                continue
            start = perf_counter()
            (verdict,) = check(entry.function, dtype=entry.dtype, algorithms=[entry.algorithm]).verdicts
            seconds = round(perf_counter() - start, 1)
            first = verdict.text.partition("\n")[0]
            kinds[truth][verdict.kind] += 1
            print(f"{name}  {verdict.kind}  {first}  {seconds} s", flush=True)
            if out:
                line = {"name": name, "words": entry.words, "mistakes": entry.mistakes, "kind": verdict.kind}
                line |= {"first": first, "text": verdict.text, "seconds": seconds}
                print(json.dumps(line, ensure_ascii=False), file=out, flush=True)
    for truth, counts in kinds.items():
        print(f"{truth}: {counts.total()}:", ", ".join(f"{kind} {n}" for kind, n in counts.most_common()))


if __name__ == "__main__":
    main()
