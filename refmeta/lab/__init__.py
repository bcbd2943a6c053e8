"""Toy experiments: tasks, meta-training, evaluation, figures."""

from refmeta.lab.optimisers import adam, linear, sgd
from refmeta.lab.training import Checkpoint, Diverged, Interrupted, evaluate, reptile_by, train, trajectory_by

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
