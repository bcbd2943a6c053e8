"""Toy experiments: tasks, meta-training, evaluation, figures."""

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

__all__ = [
    "Checkpoint",
    "Diverged",
    "Interrupted",
    "adam",
    "evaluate",
    "linear",
    "reptile_by",
    "sgd",
    "train",
    "trajectory_by",
]
