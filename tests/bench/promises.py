"""What is promised of a recording's speed, and whether measured rows keep it."""

from typing import Any

from tests.bench.workloads import FOUR

Row = dict[str, Any]
HAND, RECORDED = "by hand", "refmeta, recorded"

# The time of a recording over that of the gradient derived by hand: what is promised, and what was measured
# (docs/performance.md). More than 1.5 times what was measured is a regression, and the command fails.
LIMIT = 1.25
MEASURED = {
    **{("S1", a): r for a, r in zip(FOUR, (1.1, 1.2, 1.15, 1.25), strict=True)},
    **{("S2", a): r for a, r in zip(FOUR, (1.05, 1.15, 1.05, 1.2), strict=True)},
    **{("S3", a): r for a, r in zip(FOUR, (1.05, 1.15, 1.0, 1.15), strict=True)},
    ("S4", "reptile"): 1.1,
    ("S5", "maml"): 1.0,
}
REGRESSION = 1.5

# MAML by these takes at least so many times as long as a recording, on S1 and on S2.
FASTER = {"learn2learn": 20, "higher": 20, "torch.func": 3, "JAX jit": 0.5}


def grouped(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """For each workload and algorithm the milliseconds of each worker."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        table.setdefault((row["work"], row["algorithm"]), {})[row["name"]] = row["ms"]
    return table


def names(rows: list[Row], *but: str) -> list[str]:
    """The workers, in order, but for these."""
    return [name for name in dict.fromkeys(row["name"] for row in rows) if name not in but]


def ratios(rows: list[Row]) -> list[list[str]]:
    """The table: recorded over hand-derived; and how many times a recording's time the others take."""
    others = names(rows, HAND, RECORDED)
    table = [["", "", "recorded / by hand", *(f"{name} / recorded" for name in others), "recorded, ms"]]
    for (work, algorithm), ms in grouped(rows).items():
        ours = ms[RECORDED]
        cells = [f"{ours / ms[HAND]:.2f}" if HAND in ms else "–"]
        cells += [f"{ms[name] / ours:.3g}" if name in ms else "–" for name in others]
        table.append([work, algorithm, *cells, f"{ours:.3g}"])
    return table


def judged(rows: list[Row]) -> list[tuple[str, bool]]:
    """Every promise with what was measured, and whether it is a regression."""
    found = []
    for (work, algorithm), ms in grouped(rows).items():
        if HAND in ms:
            found.append(_against_hand(work, algorithm, ms[RECORDED] / ms[HAND]))
        if algorithm == "maml" and work in ("S1", "S2"):
            found += [(_against(work, peer, ms[peer] / ms[RECORDED]), False) for peer in FASTER if peer in ms]
    return found


def _against_hand(work: str, algorithm: str, ratio: float) -> tuple[str, bool]:
    before = MEASURED[work, algorithm]
    regressed = ratio > REGRESSION * before
    verdict = "met" if ratio <= LIMIT else "NOT MET: see `--page`, where the time goes"
    verdict += f"; a REGRESSION, it was {before}" if regressed else ""
    text = f"{work} {algorithm}: {ratio:.2f} of the hand-derived gradient's time, at most {LIMIT}: {verdict}"
    return text, regressed


def _against(work: str, peer: str, ratio: float) -> str:
    verdict = "met" if ratio >= FASTER[peer] else "NOT MET"
    return f"{work} maml: {peer} takes {ratio:.3g} times as long, at least {FASTER[peer]:g}: {verdict}"
