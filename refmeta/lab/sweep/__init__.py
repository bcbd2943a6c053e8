"""Many runs of the sine experiment: every combination of settings and seeds, on any executor, into one folder.

rows = sweep(grid(seeds=range(5), method=["maml", "joint"], alpha=[0.01, 0.1]), "runs/sweep")
"""

from refmeta.lab.sweep.jobs import Incomplete, grid, sweep
from refmeta.lab.sweep.records import name_of, read, table

__all__ = ["Incomplete", "grid", "name_of", "read", "sweep", "table"]
