"""python -m tests.blind.noise [N]: right answers with noise in them, asked for N times. None may be accused."""

import sys
from collections import Counter

import numpy as np

from refmeta.conformance.cases import load
from refmeta.conformance.check import Answer, judge

FEW = 40  # one in so many has more noise than rounding makes: it must fail, and gets no name either
ACCUSATIONS = ("bug", "convention")


def noisy(vector, dtype, size, random):
    """The right answer, each array off by this many times what its dtype tolerates."""
    limits = [size * vector.tolerance[dtype] * s for s in vector.scale]
    noise = [random.normal(size=g.shape) for g in vector.gradient]
    return [g + e / (np.linalg.norm(e) or 1) * most for g, e, most in zip(vector.gradient, noise, limits, strict=True)]


def asked(many, seed=0):
    """How many verdicts of each kind there were: within rounding, and beyond it."""
    random, within, beyond = np.random.default_rng(seed), Counter(), Counter()
    algorithms = list(dict.fromkeys(v.case.algorithm for v in load()))
    for i in range(many):
        algorithm, far = algorithms[i % len(algorithms)], i % FEW == 0
        dtype = "float32" if far or random.random() < 0.5 else "float64"
        size = 10 ** random.uniform(0.5, 4) if far else random.uniform(0, 0.9)
        own = [v for v in load() if v.case.algorithm == algorithm]
        report = judge((v, Answer(noisy(v, dtype, size, random), {}, dtype)) for v in own)
        (beyond if far else within)[report.verdicts[0].kind] += 1
    return within, beyond


def main() -> None:
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    within, beyond = asked(many)
    print(f"within rounding, {within.total()}:", dict(within))
    print(f"beyond rounding, {beyond.total()}:", dict(beyond))
    accused = sum((within + beyond)[kind] for kind in ACCUSATIONS)
    print(f"accused: {accused}")
    sys.exit(accused > 0 or set(within) != {"pass"})


if __name__ == "__main__":
    main()
