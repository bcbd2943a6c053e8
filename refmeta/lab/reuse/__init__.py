"""Does MAML learn rapidly, or reuse its features? The measurements of Raghu et al. 2020, and `refmeta reuse`."""

from refmeta.lab.reuse.experiment import REUSE, options, text
from refmeta.lab.reuse.measurements import between, frozen, moved, multiclass, nil, regimes, similarity

__all__ = ["REUSE", "between", "frozen", "moved", "multiclass", "nil", "options", "regimes", "similarity", "text"]
