"""The same seed gives the same θ to the byte: in another process, with another hash seed, with more threads.

Threads: BLAS cuts a large product between them, and sums in another order then (test_determinism has the measurement).
The networks of the commands are below that, but for --network mlp on images of 28 pixels.
"""

import os
import subprocess
import sys

import pytest
from test_checkpoint import BARE

SINE = ["sine", "--quick", "--iterations", "20"]
FEWSHOT = ["fewshot", "--quick", "--iterations", "4", "--tasks", "2", "--filters", "8,8"]


@pytest.mark.parametrize("command", [SINE, [*SINE, "--method", "reptile", "--law", "nichol"], FEWSHOT], ids=" ".join)
def test_a_seeds_theta_has_the_same_bytes_whatever_the_process_its_threads_and_its_hashes(command, tmp_path):
    def theta(seed, threads, hash_seed):
        out = tmp_path / f"{seed}-{threads}-{hash_seed}"
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": hash_seed}
        words = [sys.executable, "-W", "ignore", "-c", BARE, *command, "--seed", seed, "--out", str(out)]
        done = subprocess.run(words, capture_output=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        return (out / "theta.npz").read_bytes()

    one, same, other = theta("0", "1", "0"), theta("0", "2", "1"), theta("1", "1", "0")
    assert one == same != other
