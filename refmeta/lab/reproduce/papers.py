"""What the papers published, the trainings that their tables need, and what differs here: data, and no program.

Numbers are strings, as printed there. A training's settings are those of `refmeta sine`, with the paper's preset, or of
`refmeta fewshot`; its iterations are the paper's.
"""

from typing import Any, NamedTuple

PAPER = "the paper"


class Bar(NamedTuple):
    """How near, how high or how low a row must come: every one of its differences to the rows `of`, or of the PAPER."""

    kind: str  # within, above, below
    limit: float  # of accuracies in per cent
    of: tuple[str, ...] = ()  # labels of other rows of the table, or PAPER; none: the numbers themselves
    steps: tuple[int, ...] = ()  # those that count; none: all that there are


class Row(NamedTuple):
    """A line of a table: a training, tested in one way."""

    label: str
    training: str
    published: dict[int, str] = {}  # by number of steps
    bar: Bar | None = None
    test: dict[str, Any] = {}  # settings other than in training
    read: str = ""  # of characters: what is read from θ, see `reads`


class Paper(NamedTuple):
    """An experiment of a paper."""

    name: str
    help: str
    title: str
    link: str
    images: bool  # Omniglot's; else sine waves
    steps: tuple[int, ...]  # the columns
    trainings: dict[str, dict[str, Any]]
    tables: dict[str, list[Row]]  # by title; the rows of a table have the same score
    differs: list[str]


MAML_PAPER, REPTILE_PAPER = "https://arxiv.org/abs/1703.03400", "https://arxiv.org/abs/1803.02999"

# --- Finn et al. 2017 -------------------------------------------------------------------------------


def _tested_with(points: int, rate: float, *published: dict[int, str]) -> dict[str, list[Row]]:
    """The table of sine waves, tested with so many points; joint training with this rate."""
    test, near = {"test_shots": points}, (PAPER,)
    maml, joint = published or ({}, {})
    bars = (Bar("within", 0.03, near), Bar("within", 0.06, near)) if published else (None, None)
    rows = [
        Row("MAML", "maml", maml, bars[0], test),
        Row("first-order MAML", "fomaml", {}, None, test),
        Row("joint training", "joint", joint, bars[1], {**test, "test_alpha": rate}),
        Row("oracle", "oracle", {}, Bar("below", 0, ("MAML", "joint training")), {**test, "test_alpha": 0.0}),
    ]
    return {f"Mean squared error with {points} points": rows}


FINN2017 = Paper(
    "finn2017",
    "sine waves: MAML, first-order MAML, joint training, the oracle",
    "Finn, Abbeel & Levine 2017, sine waves: mean squared error (table 2, appendix C)",
    MAML_PAPER,
    False,
    (1, 5, 10),
    {name: {"method": name} for name in ("maml", "fomaml", "joint")} | {"oracle": {"method": "joint", "law": "oracle"}},
    {
        **_tested_with(5, 0.01, {1: "0.67", 5: "0.38", 10: "0.35"}, {1: "2.41", 5: "2.23", 10: "2.19"}),
        **_tested_with(10, 0.02),
    },
    [
        "α: the paper's text has 0.01, the authors' published command 0.001, as here in training and at test. Joint "
        "training is tested with the rates that the paper's figure 6 names, .01 with 5 points and .02 with 10.",
        "Test: 1,000 tasks and 100 query points each; the authors' program has 600 and K. The expected error is the "
        "same, the interval narrower.",
        "The paper prints numbers for 5 points only, and none for first-order MAML or the oracle.",
        "The oracle is told amplitude and phase beside x, so it has nothing to find in a step, and takes none (α = 0).",
    ],
)

# --- Nichol et al. 2018 -----------------------------------------------------------------------------

NICHOL2018 = Paper(
    "nichol2018",
    "sine waves: Reptile, serial and batched, SGD and Adam inside, and its control with k = 1",
    "Nichol, Achiam & Schulman 2018, sine waves: mean squared error",
    REPTILE_PAPER,
    False,
    (0, 1, 8, 32),
    {
        "serial": {"method": "reptile"},
        "batched": {"method": "reptile", "tasks": 5, "outer": "sgd:0.5:linear"},
        "adam": {"method": "reptile", "inner": "adam", "alpha": 0.003},
        "control": {"method": "joint"},
    },
    {
        "Mean squared error with 10 points of the grid": [
            Row("Reptile, k = 5", "serial", {}, Bar("below", 0.2, steps=(32,))),
            Row("Reptile, 5 tasks at once", "batched", {}, Bar("below", 0.2, steps=(32,))),
            Row("Reptile, Adam inside", "adam"),
            Row("joint training, k = 1", "control", {}, Bar("above", 3, steps=(32,))),
        ]
    },
    [
        "The paper shows curves and prints no error; the authors' program prints that of one task. The bars are of "
        "this project: Reptile fits a wave, its control does not.",
        "Adam has β₁ = 0, as the paper has it on images, and starts afresh for every task; on waves the authors "
        "use SGD.",
        "5 tasks at once take their mean displacement, with ε = 0.5 in place of 0.1.",
    ],
)

# --- Omniglot ---------------------------------------------------------------------------------------

MAML_ON_IMAGES = {"iterations": 60_000, "test_queries": 1, "test_steps": (0, 1, 3, 10)}
REPTILE_ON_IMAGES = {"iterations": 100_000, "tasks": 5, "norm": "batch", "test_queries": 1, "test_steps": (0, 5, 50)}
ON_IMAGES = {
    "maml": {"method": "maml", **MAML_ON_IMAGES},
    "maml batch": {"method": "maml", "norm": "batch", "alpha": 0.4, **MAML_ON_IMAGES},
    "fomaml": {"method": "fomaml", "norm": "batch", "alpha": 0.4, **MAML_ON_IMAGES},
    "anil": {"method": "anil", **MAML_ON_IMAGES},
    "reptile": {"method": "reptile", **REPTILE_ON_IMAGES},
    "mlp": {"method": "maml", "network": "mlp", "alpha": 0.5, **MAML_ON_IMAGES},
}
ROWS = [
    Row("MAML", "maml", {}, Bar("above", 95, steps=(1,))),
    Row("MAML, batch statistics, one query at a time", "maml batch"),
    Row("MAML, batch statistics, queries together", "maml batch", {3: "98.7 ± 0.4"}, read="together"),
    Row("first-order MAML, one query at a time", "fomaml"),
    Row("first-order MAML, queries together", "fomaml", {3: "98.3 ± 0.5"}, read="together"),
    Row("ANIL", "anil", {}, Bar("within", 1, ("MAML",), (1,))),
    Row("Reptile, one query at a time", "reptile", {50: "95.39 ± 0.09"}, Bar("above", 93, steps=(50,))),
    Row("Reptile, queries together", "reptile", {50: "97.68 ± 0.04"}, read="together"),
    Row("MAML, fully connected", "mlp", {3: "89.7 ± 1.1"}, Bar("above", 88.5, steps=(1,))),
    Row("nearest neighbour, pixels", "maml", read="pixels"),
]
DIFFERS = [
    "The networks have 32 filters, the papers' 64. The papers' have batch statistics everywhere; here Reptile and "
    "first-order MAML have them, ANIL and the fully connected network do not, and MAML is there with and without.",
    "MAML takes 16 tasks in a step, and α = 1 on the mean cross-entropy (0.4 with batch statistics, 0.5 in the fully "
    "connected network); the paper has 32, and 0.4 on a sum over five examples, which is 2 on their mean.",
    "Reptile has SGD inside, of rate 0.2; the paper Adam of rate 0.001 with β₁ = 0, whose second moment goes from task "
    "to task.",
    "One query of a class, as in the papers. A bar counts after as many steps as there were in training (Reptile: 50).",
]


def _on_characters(name: str, split: str, title: str, rows: list[Row]) -> Paper:
    """Omniglot on one of the splits."""
    of = "accuracy in per cent (Finn et al. 2017, table 1; Nichol et al. 2018, table 2)"
    return Paper(
        name,
        f"characters, 5-way 1-shot, {title}",
        f"Omniglot, 5-way 1-shot, {title}: {of}",
        f"{MAML_PAPER}, {REPTILE_PAPER}",
        True,
        (0, 1, 3, 5, 10, 50),
        {training: {**own, "data": "omniglot", "split": split} for training, own in ON_IMAGES.items()},
        {"Accuracy (%) on 600 episodes": rows},
        DIFFERS,
    )


OMNIGLOT = _on_characters("omniglot", "finn", "1,200 of all characters to train on, as the papers have it", ROWS)
UNJUDGED = [row._replace(bar=None) for row in ROWS]  # the bars are for the papers' own split
LAKE = _on_characters("omniglot-lake", "lake", "Lake's split, other alphabets at test", UNJUDGED)

# --- Raghu et al. 2020 ------------------------------------------------------------------------------

FEATURES = {"data": "omniglot", "split": "finn", "iterations": 30_000, "test_queries": 15, "test_steps": (0, 1)}
REGIMES = {"maml": "maml", "anil": "anil", "multitask": "joint", "multiclass": "maml"}
WIDE = {**FEATURES, "ways": 20, "tasks": 4, "test_queries": 5}

RAGHU2020 = Paper(
    "raghu2020",
    "rapid learning or feature reuse: freezing, similarity, NIL, ways of training, ANIL's economy",
    "Raghu et al. 2020, rapid learning or feature reuse, on Omniglot",
    "https://arxiv.org/abs/1909.09157",
    True,
    (1,),
    {
        **{name: {"method": method, **FEATURES} for name, method in REGIMES.items()},
        **{f"{method} 20-way": {"method": method, **WIDE} for method in ("maml", "anil")},
    },
    {
        "20-way 1-shot, accuracy (%, table 2)": [
            Row("MAML", "maml 20-way", {1: "93.7 ± 0.7"}),
            Row("ANIL", "anil 20-way", {1: "96.2 ± 0.5"}),
            Row("NIL: ANIL without its head", "anil 20-way", {1: "96.7 ± 0.3"}, read="nil"),
        ],
        "5-way 1-shot, accuracy (%; the paper's on MiniImageNet, tables 1, 2 and 5)": [
            Row("MAML", "maml", {1: "46.9 ± 0.2"}),
            Row("MAML, body frozen at test", "maml", {1: "46.3 ± 0.4"}, Bar("within", 1, ("MAML",)), read="frozen"),
            Row("ANIL", "anil", {1: "46.7 ± 0.4"}, Bar("within", 1, ("MAML",))),
            Row("NIL: MAML without its head", "maml", {1: "48.4 ± 0.3"}, read="nil"),
            Row("NIL: ANIL without its head", "anil", {1: "48.0 ± 0.7"}, read="nil"),
            Row("NIL: multiclass training", "multiclass", {1: "39.7 ± 0.3"}, read="nil"),
            Row("NIL: multitask training", "multitask", {1: "26.5 ± 1.1"}, read="nil"),
            Row("NIL: random features", "maml", {1: "32.9 ± 0.6"}, read="random features"),
        ],
        "5-way 1-shot: similarity (CCA) of MAML's layers before and after adaptation; the paper's is a figure": [
            Row("the body's least similar layer", "maml", {1: "above 0.9"}, Bar("above", 0.9), read="body"),
            Row("the head", "maml", {1: "below 0.5"}, Bar("below", 0.5), read="head"),
        ],
        "MAML's time over ANIL's": [
            Row("of a training iteration", "maml", {1: "1.7"}, read="economy"),
            Row("of an adaptation at test", "maml", {1: "4.1"}, read="economy at test"),
        ],
    },
    [
        "The paper's 5-way numbers are on MiniImageNet, ours on characters: only how the rows of a column differ from "
        "each other can be compared. The 20-way numbers are on Omniglot; ours are on Finn et al.'s split.",
        "One inner step of α = 1 in training and at test; 32 filters, no normalisation; 20-way has 4 tasks in a step. "
        "ANIL saves less with one step than with several.",
        "The head's logits are compared without their mean over the classes, which softmax ignores.",
        "The paper's iterations are those of its figure 3.",
    ],
)

PAPERS = {paper.name: paper for paper in (FINN2017, NICHOL2018, RAGHU2020, OMNIGLOT, LAKE)}
