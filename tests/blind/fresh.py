"""Cases that are in no vector file: small random problems, every number of them representable in float32."""

from zlib import crc32

import numpy as np

from refmeta.conformance import Case
from refmeta.models import MLP

MLPS = [  # widths, loss
    ((2, 3, 1), "squared_error"),
    ((2, 4, 3), "squared_error"),
    ((3, 4, 3), "cross_entropy"),
    ((2, 3, 3, 2), "squared_error"),
    ((2, 3, 4, 3), "cross_entropy"),
]


def single(a):
    return np.asarray(a).astype(np.float32).astype(float)


def cases(algorithm: str, seed: int = 0) -> list[Case]:
    """A quadratic and five MLPs; between them 1 to 5 steps and 1 to 4 tasks, in an order that the seed draws."""
    rng = np.random.default_rng([seed, crc32(algorithm.encode())])
    steps, counts = rng.permutation([1, 2, 3, 4, 5, 3]), rng.permutation([1, 2, 3, 4, 3, 2])
    made = []
    for i, (K, T) in enumerate(zip(steps.tolist(), counts.tolist(), strict=True)):
        widths, kind = MLPS[i - 1] if i else (None, "quadratic")

        def quadratic(n):
            q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
            A = single(q * rng.uniform(0.3, 2, 3) @ q.T)
            return (A + A.T) / 2, single(rng.normal(size=3))

        def examples(n, widths=widths, kind=kind):
            x = single(rng.normal(size=(n, widths[0])))
            return x, rng.integers(0, widths[-1], n) if kind == "cross_entropy" else single(
                rng.normal(size=(n, widths[-1]))
            )

        draw = examples if i else quadratic
        net = MLP(widths) if i else None
        shapes = net.shapes if net else [(2,), (1,)] if algorithm == "anil" else [(3,)]
        made.append(
            Case(
                id=f"{algorithm}-fresh{seed}-{i}",
                algorithm=algorithm,
                theta=[single(rng.normal(scale=0.7, size=shape)) for shape in shapes],
                tasks=[([draw(5) for _ in range(K)], draw(7)) for _ in range(T)],
                alpha=float(single(rng.uniform(0.04, 0.16))),
                head=(2 if i else 1) if algorithm == "anil" else None,
                model={"kind": "mlp", "widths": list(widths), "activation": "tanh"} if i else {"kind": "quadratic"},
                loss={"kind": kind},
                conventions={"tasks": "sum", "examples": "mean", "reptile": "displacement"},
                names=net.names if net else ["t", "u"][: len(shapes)],
                tier="fresh",
            )
        )
    return made
