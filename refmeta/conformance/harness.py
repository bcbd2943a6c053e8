"""refmeta behind the door: `refmeta check -- python -m refmeta.conformance.harness`. An example to port."""

import json
import sys
from typing import Any, TextIO

import refmeta
from refmeta.conformance.cases import Case, array, number
from refmeta.trees import Theta


def meta_gradient(case: Case) -> Theta:
    """The case's gradient by refmeta, under the conventions that the case declares."""
    options = {"head": case.head} if case.algorithm == "anil" else {}
    algorithm = getattr(refmeta, case.algorithm)
    total = [0 * leaf for leaf in case.theta]
    for task in case.tasks:
        gradient = algorithm(case.loss_fn, case.theta, [task], case.alpha, **options)
        scale = {
            "displacement": 1.0,
            "over_alpha": 1 / (case.alpha or 1),
            "over_alpha_k": 1 / ((case.alpha or 1) * (len(task[0]) or 1)),
        }[case.conventions["reptile"]]
        total = [a + g * scale for a, g in zip(total, gradient, strict=True)]
    return [leaf / len(case.tasks) for leaf in total] if case.conventions["tasks"] == "mean" else total


def case_of(content: dict[str, Any]) -> Case:
    """A Case from the JSON that comes through the door."""

    def batch(b: dict[str, Any]) -> Any:
        labels = content["loss"]["kind"] == "cross_entropy"
        return array(b["x"]), array({**b["y"], "labels": labels})

    return Case(
        id=content["id"],
        algorithm=content["algorithm"],
        theta=[array(leaf) for leaf in content["theta"]],
        tasks=[([batch(b) for b in t["supports"]], t["query"] and batch(t["query"])) for t in content["tasks"]],
        alpha=number(content["alpha"]),
        head=content["head"],
        model=content["model"],
        loss=content["loss"],
        conventions=content["conventions"],
        names=[leaf["name"] for leaf in content["theta"]],
        tier="",
    )


def serve(lines: TextIO, out: TextIO) -> None:
    """Answer until "stop"."""
    for line in lines:
        message = json.loads(line)
        if message["cmd"] == "stop":
            return
        reply: dict[str, Any] = {"version": 1, "name": "refmeta"}
        if message["cmd"] == "run":
            gradient = meta_gradient(case_of(message["case"]))
            reply = {"seq": message["seq"], "gradient": [leaf.tolist() for leaf in gradient]}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
