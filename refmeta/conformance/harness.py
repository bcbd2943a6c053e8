"""refmeta as a foreign program: `refmeta check -- python -m refmeta.conformance.harness`. An example to port."""

import json
import sys
from typing import Any, TextIO

import refmeta
from refmeta.conformance.cases import Case
from refmeta.trees import Theta


def meta_gradient(case: Case) -> Theta:
    """The case's gradient by refmeta, under the conventions that the case declares."""
    algorithm, options = getattr(refmeta, case.algorithm), {"head": case.head} if case.algorithm == "anil" else {}
    return case.combine([algorithm(case.loss_fn, case.theta, [task], case.alpha, **options) for task in case.tasks])


def serve(lines: TextIO, out: TextIO) -> None:
    """Answer until "stop"."""
    for message in map(json.loads, lines):
        if message["cmd"] == "stop":
            return
        reply: dict[str, Any] = {"version": 1, "name": "refmeta"}
        if message["cmd"] == "run":
            gradient = meta_gradient(Case.from_json(message["case"]))
            reply = {"seq": message["seq"], "gradient": [leaf.tolist() for leaf in gradient]}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
