"""Toy experiments: tasks, meta-training, evaluation, figures."""

from refmeta.lab.training import Diverged, Interrupted, adam, evaluate, linear, reptile_by, sgd, train, trajectory_by

__all__ = ["Diverged", "Interrupted", "adam", "evaluate", "linear", "reptile_by", "sgd", "train", "trajectory_by"]
