import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: each worker's BLAS would wait for a thread on every core

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from refmeta.models import MLP, squared_error

# A shell that starts us in the background has SIGINT ignored, and so would every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: an example's time says more about the machine than about the code.
settings.register_profile(
    "refmeta",
    deadline=None,
    derandomize="CI" in os.environ,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("refmeta")
# For mutation testing: the same examples each time, and a failure is enough.
settings.register_profile("mutation", derandomize=True, phases=[Phase.generate])


def pytest_collection_finish():
    """What the modules hold stays, and tests make few cycles: the garbage collector need not look again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture
def example():
    """One fixed problem with second-order terms of order one: (loss, theta, tasks, alpha)."""
    rng = np.random.default_rng(0)
    net = MLP((2, 3, 2), activation="tanh")

    def batch(n):
        return rng.normal(size=(n, 2)), rng.normal(size=(n, 2))

    tasks = [([batch(n) for _ in range(3)], batch(m)) for n, m in [(5, 7), (4, 6), (3, 8)]]
    theta = [leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in net.init(rng)]
    return squared_error(net), theta, tasks, 0.3
