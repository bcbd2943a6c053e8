"""`refmeta bench`: the same work side by side, and what it costs.

`measure` starts workers and times them, `cases` says what they do, `serving` is what they share, `workers` are
this package's own, `byhand` the limit among them; those of other libraries are in tests/peers/bench.
"""
