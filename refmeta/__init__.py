"""refmeta: the executable specification of gradient-based meta-learning.

    θ is a list of arrays. A batch is a pair (x, y). A task is (supports, query): one support
    batch per inner step, one query batch. A loss is a scalar function of (θ, batch).

`refmeta.spec.algorithms` is the page to read. The names here are its functions with their arguments
checked; `stacked` runs any of them on all tasks at once, `recorded` without tracing them again.
"""

from refmeta.checks import checked
from refmeta.execution import recorded, stacked
from refmeta.spec import algorithms

__version__ = "0.1.0"
__all__ = ["adapt", "anil", "fomaml", "joint", "maml", "recorded", "reptile", "stacked", "trajectory"]

trajectory = checked(algorithms.trajectory)
adapt = checked(algorithms.adapt)
joint = checked(algorithms.joint)
maml = checked(algorithms.maml)
fomaml = checked(algorithms.fomaml)
anil = checked(algorithms.anil)
reptile = checked(algorithms.reptile, query=False)
