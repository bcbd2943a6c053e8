"""Does MAML learn rapidly, or reuse its features? The measurements of Raghu et al. 2020, and `refmeta reuse`."""

from refmeta.lab.reuse.experiment import REUSE, text
from refmeta.lab.reuse.measurements import between, centred, frozen, moved, multiclass, nil, regimes, similarity

__all__ = ["REUSE", "between", "centred", "frozen", "moved", "multiclass", "nil", "regimes", "similarity", "text"]
