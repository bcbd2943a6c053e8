"""The same seed gives the same θ to the byte: in another process, with another hash seed, with more threads.

Threads: BLAS cuts a large product between them, and sums in another order then (test_determinism has the measurement).
The networks of the commands are below that, but for --network mlp on images of 28 pixels.
"""

import os
import subprocess
import sys

import pytest
from test_checkpoint import BARE

from refmeta.__main__ import main

SINE = ["sine", "--quick", "--iterations", "20"]
FEWSHOT = ["fewshot", "--quick", "--iterations", "4", "--tasks", "2", "--filters", "8,8"]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("command", [SINE, [*SINE, "--method", "reptile", "--law", "nichol"], FEWSHOT], ids=" ".join)
def test_a_seeds_theta_has_the_same_bytes_whatever_the_process_its_threads_and_its_hashes(command, tmp_path):
    def theta(threads, hash_seed):
        out = tmp_path / threads
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": hash_seed}
        words = [sys.executable, "-W", "ignore", "-c", BARE, *command, "--out", str(out)]
        done = subprocess.run(words, capture_output=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        return (out / "theta.npz").read_bytes()

    assert main([*command, "--seed", "1", "--out", str(tmp_path / "other")]) == 0
    assert theta("1", "0") == theta("2", "1") != (tmp_path / "other/theta.npz").read_bytes()
