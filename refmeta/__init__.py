"""refmeta: the executable specification of gradient-based meta-learning.

    θ is a list of arrays. A batch is a pair (x, y). A task is (supports, query): one support
    batch per inner step, one query batch. A loss is a scalar function of (θ, batch).

`refmeta.algorithms` is the page to read. The names here are its functions with their arguments
checked; `stacked` runs any of them on all tasks at once, `recorded` without tracing them again.
"""

from refmeta import algorithms
from refmeta.checks import checked
from refmeta.fast import recorded, stacked

__version__ = "0.1.0"
__all__ = ["adapt", "anil", "fomaml", "joint", "maml", "objective", "recorded", "reptile", "stacked", "trajectory"]

trajectory = checked(algorithms.trajectory)
adapt = checked(algorithms.adapt)
objective = checked(algorithms.objective)
joint = checked(algorithms.joint)
maml = checked(algorithms.maml)
fomaml = checked(algorithms.fomaml)
anil = checked(algorithms.anil)
reptile = checked(algorithms.reptile, query=False)
