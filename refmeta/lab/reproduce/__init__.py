"""The papers' numbers beside ours: `refmeta reproduce`."""

from refmeta.lab.reproduce.experiment import options, text

__all__ = ["options", "text"]
