"""JSON and bytes spoilt at random, and how readers take them; `REFMETA_FUZZ=1000` tries as many of each."""

import functools
import json
import os
import tracemalloc
from collections import Counter
from copy import deepcopy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MOST = int(os.environ.get("REFMETA_FUZZ", 15))
fuzzed = settings(max_examples=MOST, suppress_health_check=list(HealthCheck))
CASES: Counter[str] = Counter()
MEMORY = 2**26  # bytes: no case is larger than 2**17


def tried(reader, read, *errors):
    """What `read()` returns, or None where it raised one of these; it is counted, and its memory limited."""
    tracemalloc.start()
    try:
        found = read()
        CASES[f"{reader}: accepted"] += 1
    except errors as error:
        assert str(error)
        found = None
        CASES[f"{reader}: refused"] += 1
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < MEMORY, f"{most} bytes"
    return found


# --- What is spoilt ---

NESTED = "[" * 20_000 + "]" * 20_000
HOSTILE = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1, 2**63, -(2**200), 10**400, 1e308, -0.0, float("nan"), float("inf"), "", "0x1p+1"]
        + ["0x1p+99999", "nan", "1e5", "\0", "\ud800", "../x", "/dev/zero", "x" * 5000, [], {}, [[]], [{}], "NESTED"]
        + [{"shape": [10**18], "data": []}, {"shape": [-1], "data": [1]}, {"data": [1], "shape": [2**70]}]
    ),
    st.text(max_size=9),
    st.integers(),
    st.floats(),
    st.recursive(st.none() | st.booleans() | st.floats(), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)


def places(content, path=()):
    """The path of every value in a tree of JSON."""
    yield path
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*path, key))


@st.composite
def spoilt(draw, data):
    """JSON with up to three of its values replaced, removed or joined by others; or with bytes changed."""
    if draw(st.booleans()):
        return draw(damaged(data))
    content = [json.loads(data)]
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([path for path in places(content) if path]))
        inside = functools.reduce(lambda tree, key: tree[key], path, content)
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "remove" and inside is not content:
            del inside[last]
        elif what == "add" and isinstance(inside, dict):
            inside[draw(st.text(max_size=5))] = deepcopy(draw(HOSTILE))
        else:
            inside[last] = deepcopy(draw(HOSTILE))
    return json.dumps(content[0]).replace('"NESTED"', NESTED).encode()


@st.composite
def damaged(draw, data):
    """Bytes that are cut off, changed, or have others among them."""
    at = draw(
        st.integers(0, len(data)) | st.integers(max(0, len(data) - 1000), len(data))
    )  # an archive lists itself last
    what = draw(st.sampled_from(["cut", "change", "insert", "drop"]))
    other = draw(st.binary(min_size=1, max_size=8))
    if what == "cut":
        return data[:at]
    return data[:at] + other * (what != "drop") + data[at + len(other) * (what != "insert") :]
