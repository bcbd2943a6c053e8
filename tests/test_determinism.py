"""The same seed gives the same bytes: in another process, with another hash seed, with more threads.

Threads: BLAS cuts a large product between them, and sums in another order then. Measured with OpenBLAS 0.3.31 and two
threads: only products of at least 640,000 multiplications that sum over 400 numbers or more change. The networks of the
commands are below that, but for --network mlp on images of 28 pixels, whose first layer sums over 784.
"""

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from problems import ALGORITHMS, assert_same

ENVIRONMENTS = [("1", "0"), ("2", "1")]  # threads, hash seed


def python(*arguments, threads="1", hash_seed="0", **more):
    """The standard output of a new interpreter."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": hash_seed, **more}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)], capture_output=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


# The algorithms in every way of running them, in hexadecimal: python -c GRADIENTS seed width ways algorithm …
GRADIENTS = """
import sys
import numpy as np
import refmeta
from refmeta import recorded, stacked
from refmeta.models import MLP, squared_error

seed, width, ways = map(int, sys.argv[1:4])
rng, net = np.random.default_rng(seed), MLP((width, 40, 1))
theta, n = net.init(rng), max(20, width // 4)
batch = lambda: (rng.normal(size=(n, width)), rng.normal(size=(n, 1)))
tasks = [([batch()] * 2, batch()) for _ in range(2)]
for algorithm in [getattr(refmeta, name) for name in sys.argv[4:]]:
    for run in (algorithm, stacked(algorithm), recorded(algorithm), recorded(stacked(algorithm)))[:ways]:
        for _ in range(2):
            gradient = run(squared_error(net), theta, tasks, 0.001)
        print("".join(leaf.tobytes().hex() for leaf in gradient))
"""


ALL = [algorithm.__name__ for algorithm in ALGORITHMS]


def test_stacked_and_recorded_gradients_have_the_same_bytes_in_every_process():
    outputs = {python("-c", GRADIENTS, 0, 2, 4, *ALL, threads=t, hash_seed=h) for t, h in ENVIRONMENTS}
    assert len(outputs) == 1
    assert python("-c", GRADIENTS, 1, 2, 4, *ALL) not in outputs


def test_gradients_of_large_matrices_have_the_bytes_of_their_number_of_threads_and_differ_by_rounding_alone():
    one, two, again = (python("-c", GRADIENTS, 0, 512, 1, "maml", threads=t) for t in "122")
    assert two == again
    for line, other in zip(one.split(), two.split(), strict=True):
        assert_same(*([np.frombuffer(bytes.fromhex(text.decode()))] for text in (line, other)), digits=12)


BLAS = np.show_config("dicts")["Build Dependencies"]["blas"].get("openblas configuration", "")
KERNELS = "Prescott", "Nehalem"  # of 2004 and 2008: every processor that NumPy runs on has their instructions


@pytest.mark.skipif(
    "DYNAMIC_ARCH" not in BLAS or platform.machine() != "x86_64", reason="OpenBLAS with kernels to choose"
)
def test_the_vectors_tolerances_hold_with_the_kernels_of_other_machines_which_round_otherwise():
    check = "-m", "refmeta", "check", "refmeta.conformance.harness:meta_gradient", "--json"
    one, other = (json.loads(python(*check, OPENBLAS_CORETYPE=kernel)) for kernel in KERNELS)
    assert one["passed"] and other["passed"] and one["rows"] != other["rows"]
