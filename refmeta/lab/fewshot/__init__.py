"""Few-shot classification of characters: images, episodes, and how well each method learns from a few examples."""

from refmeta.lab.fewshot.experiment import FEWSHOT, Config, options, run, text
from refmeta.lab.fewshot.images import episode, glyphs, minibatches, omniglot

__all__ = ["FEWSHOT", "Config", "episode", "glyphs", "minibatches", "omniglot", "options", "run", "text"]
