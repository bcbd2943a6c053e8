"""Many runs of the sine experiment: every combination of settings and seeds, on any executor, into one folder.

rows = sweep(grid(seeds=range(5), method=["maml", "joint"], alpha=[0.01, 0.1]), "runs/sweep")
"""

from refmeta.lab.sweep.experiment import Incomplete, add_sweep, grid, name_of, read, sweep, table

__all__ = ["Incomplete", "add_sweep", "grid", "name_of", "read", "sweep", "table"]
