"""Writes the kill matrix: `python -m tests.vectors.kill_matrix > docs/kill_matrix.md`."""

from refmeta.conformance.cases import load
from refmeta.conformance.mistakes import MISTAKES

HEAD = """# Which vector catches which mistake

Made by `python -m tests.vectors.kill_matrix > docs/kill_matrix.md`; the tests compare it. A number counts the vectors
of a tier on which the mistake gives another answer than the right one, by more than a hundred float32 tolerances. The
tiers are the kinds of cases: canary, so simple that only wrong wiring should fail it; quadratic, regression, tanh and
softmax losses; edge, such as no steps or an empty head; scalar; deep: several hidden layers, twelve steps, inner
gradients longer than 100, or batches of unequal sizes; relu: the same, away from the kinks. Fed blind to
`refmeta check`, every mistake comes back under its own name (`tests/conformance/test_conformance.py`).

"""


def matrix() -> str:
    """The page."""
    tiers = list(dict.fromkeys(v.case.tier for v in load()))
    lines = [f"| mistake | {' | '.join(tiers)} | all |", "|---" + "|--:" * (len(tiers) + 1) + "|"]
    for name in MISTAKES:
        caught = [v.case.tier for v in load() if name in v.suspects]
        counts = [str(caught.count(tier) or "") for tier in tiers]
        lines.append(f"| [{name}](#{name}) | {' | '.join(counts)} | {len(caught)} |")
    lines += ["", "## The mistakes", ""]
    for m in MISTAKES.values():
        title = f"{m.ledger}: {m.title}." if m.ledger else f"{m.title[0].upper()}{m.title[1:]}."
        lines += [f"### {m.id}", "", title, "", f"Seen in: {m.seen}.", "", f"Cause: {m.cause}.", ""]
    return HEAD + "\n".join(lines)


if __name__ == "__main__":
    print(matrix(), end="")
