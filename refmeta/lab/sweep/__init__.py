"""Many runs of the sine experiment: every combination of settings and seeds, on any executor, into one folder.

rows = sweep(grid(seeds=range(5), method=["maml", "joint"], alpha=[0.01, 0.1]), "runs/sweep")
"""

from refmeta.lab.sweep.experiment import Incomplete, grid, sweep

__all__ = ["Incomplete", "grid", "sweep"]
