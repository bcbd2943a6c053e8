"""How many strangers' right programs the audit accuses, and how many wrong ones it passes: python -m tests.zoo."""

import argparse
import os
import re
import sys
import time
import warnings
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.zoo import cases as zoo

RIGHT_ROW = "{:<8}{:<9}{:>7}{:>7}{:>12}{:>9}"
WRONG_ROW = "{:<36}{:>7}{:>9}{:>7}{:>12}{:>8}{:>8}"
WRONG = "refused", "named", "not judged", "passed", "raised"


def told(rows, dtype, case, done, total, start):
    """One line of progress, and the row (case, dtype, what, first line) that the tables count."""
    what, line = zoo.outcome(case, dtype)
    rows.append((case, dtype, what, line))
    sign = "" if what in ("right", "refused") else f"  {what}: {case} {dtype}: {line}"
    print(
        f"\r{done}/{total} {time.monotonic() - start:.0f} s{sign}",
        end="\n" if sign else "",
        file=sys.stderr,
        flush=True,
    )


def asked(kind, args, start):
    """The chosen cases, and how many of the wrong ones are no mistake where they would be asked about."""
    chosen = [c for f in args.framework for c in zoo.cases(f, kind, args.seeds) if args.only in str(c)]
    if kind == "right":
        return chosen, 0
    mistakes = []
    for i, case in enumerate(chosen):
        print(
            f"\r{i + 1}/{len(chosen)} wrong ones differentiated {time.monotonic() - start:.0f} s",
            end="",
            file=sys.stderr,
        )
        mistakes += [case] if zoo.is_mistake(case) else []
    print(file=sys.stderr)
    return mistakes, len(chosen) - len(mistakes)


def count(kind, args, start):
    chosen, none = asked(kind, args, start)
    rows = []
    for i, case in enumerate(chosen):
        for dtype in args.dtype:
            told(rows, dtype, case, i + 1, f"{len(chosen)} {kind}", start)
    print(file=sys.stderr)
    return rows, none


def share(part, whole):
    return part / whole if whole else 1.0


def bar(text, value, least):
    """One bar, and whether it is held."""
    print(f"  {text}: {value:.1%} (bar: {least:.0%}){'' if value >= least else '  MISSED'}")
    return value >= least


def right_table(rows, args):
    print(RIGHT_ROW.format("right", "", "asked", "right", "not judged", "accused"))
    held = True
    for framework in args.framework:
        for dtype in args.dtype:
            n = Counter(what for case, d, what, _ in rows if (case.framework, d) == (framework, dtype))
            print(
                RIGHT_ROW.format(framework, dtype, n.total(), n["right"], n["not judged"], n["accused"] + n["raised"])
            )
    for dtype in args.dtype:
        n = Counter(what for _, d, what, _ in rows if d == dtype)
        held &= bar(f"right in {dtype}", share(n["right"], n.total()), 0.97 if dtype == "float64" else 0.9)
    accused = [row for row in rows if row[2] in ("accused", "raised")]
    print(f"  accused: {len(accused)} (bar: 0){'  MISSED' if accused else ''}")
    for case, dtype, what, line in accused:
        print(f"    {case}, {dtype}: {what}: {line}")
    for reason, n in Counter(
        " ".join(line.split()[:8]) for _, _, what, line in rows if what == "not judged"
    ).most_common():
        print(f"  not judged, {n}: {reason} …")
    return held and not accused


def wrong_line(title, rows):
    n = Counter(what for _, _, what, _ in rows)
    n["named"] = sum(what == "refused" and zoo.named(case, line) for case, _, what, line in rows)
    print(WRONG_ROW.format(title, len(rows), *(n[word] for word in WRONG)))
    return n


def wrong_table(title, rows):
    """A line for each family and one for all; the count of all."""
    print(WRONG_ROW.format(title, "asked", *WRONG))
    for family in dict.fromkeys(zoo.style_of(case).family for case, *_ in rows):
        wrong_line(family, [row for row in rows if zoo.style_of(row[0]).family == family])
    return wrong_line("all", rows)


def unnamed(rows):
    """The refused ones that bear another name: what the verdict says, how often, and one of them."""
    found = {}
    for case, dtype, what, line in rows:
        if what == "refused" and not zoo.named(case, line):
            key = zoo.style_of(case).family, " ".join(re.sub(r"\([^)]*digits\)", "", line).split()[:10])
            found.setdefault(key, []).append(f"{case}, {dtype}")
    for (family, said), examples in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"    {family!r} not named, {len(examples)}: {said} …: as {examples[0]}")


def wrong_tables(rows, none):
    main = [row for row in rows if zoo.style_of(row[0]).family in zoo.MAIN]
    n = wrong_table("wrong: the seven families", main)
    held = [bar("refused", share(n["refused"], len(main)), 0.97), bar("named", share(n["named"], len(main)), 0.9)]
    wrong_table("wrong: further mistakes", [row for row in rows if row not in main])
    print(f"  left out, for there the gradient is right to {zoo.LEAST:g}, or diverges: {none}")
    for case, dtype, what, line in rows:
        if what in ("passed", "raised", "not judged"):
            print(f"    {case}, {dtype}: {what}: {line}")
    unnamed(rows)
    return all(held)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("--framework", choices=["torch", "jax"], help="one of the two alone")
    parser.add_argument("--dtype", choices=["float64", "float32"], help="one of the two alone")
    parser.add_argument("--seeds", type=int, default=2, help="each adds another part of the pairs (default: 2)")
    parser.add_argument("--only", default="", metavar="WORD", help="the cases whose line has this word")
    args = parser.parse_args(argv)
    args.framework = [args.framework] if args.framework else ["torch", "jax"]
    args.dtype = [args.dtype] if args.dtype else ["float64", "float32"]
    warnings.simplefilter("ignore")
    start = time.monotonic()
    right, _ = count("right", args, start)
    wrong, none = count("wrong", args, start)
    held = right_table(right, args)
    print()
    held &= wrong_tables(wrong, none)
    print(f"{time.monotonic() - start:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
