"""Few-shot classification of characters: images, episodes, and how well each method learns from a few examples."""

from refmeta.lab.fewshot.episodes import episode, minibatches, nearest_neighbour
from refmeta.lab.fewshot.images import Images, glyphs, omniglot

__all__ = ["Images", "episode", "glyphs", "minibatches", "nearest_neighbour", "omniglot"]
