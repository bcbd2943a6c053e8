"""Does MAML learn rapidly, or reuse its features? The measurements of Raghu et al. 2020."""

from refmeta.lab.reuse.measurements import (
    between,
    cca,
    frozen,
    linear_cka,
    moved,
    multiclass,
    nil,
    pwcca,
    regimes,
    similarity,
)

__all__ = [
    *("between", "cca", "frozen", "linear_cka", "moved", "multiclass", "nil", "pwcca", "regimes", "similarity"),
]
