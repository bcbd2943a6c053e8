"""Toy experiments: tasks, meta-training, evaluation, figures."""

from refmeta.lab.display import progress
from refmeta.lab.training import (
    Checkpoint,
    Diverged,
    Interrupted,
    adam,
    evaluate,
    linear,
    reptile_by,
    sgd,
    train,
    trajectory_by,
)

__all__ = ["Checkpoint", "Diverged", "Interrupted", "adam", "evaluate", "linear", "progress"]
__all__ += ["reptile_by", "sgd", "train", "trajectory_by"]
