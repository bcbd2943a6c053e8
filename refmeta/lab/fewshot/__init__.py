"""Few-shot classification of images: characters or any others, episodes, and how well each method learns from few."""

from refmeta.lab.fewshot.drawings import omniglot
from refmeta.lab.fewshot.experiment import FEWSHOT, Config, options, run, text
from refmeta.lab.fewshot.images import episode, glyphs, minibatches
from refmeta.lab.fewshot.photographs import folder

__all__ = ["FEWSHOT", "Config", "episode", "folder", "glyphs", "minibatches", "omniglot", "options", "run", "text"]
