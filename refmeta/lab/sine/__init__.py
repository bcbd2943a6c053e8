"""The sine experiment: regression of sine waves, as in Finn et al. 2017 and Nichol et al. 2018."""

from refmeta.lab.sine.experiment import SINE, Config, options, run, text

__all__ = ["SINE", "Config", "options", "run", "text"]
