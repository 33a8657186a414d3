"""The sweeps of a study: which runs answer which question, and what each run is in words."""

from dataclasses import dataclass

BASELINE = "baseline"
COMPUTE, PARAMETERS, EXPONENT = "equal compute", "equal parameters", "exponent"  # questions to the scaling grid


@dataclass(frozen=True)
class Sweep:
    """Runs that differ from `reference` in one thing.

    words       of each alternative, for a sentence; {setting}: the value of the first of `keys`
    keys        fields of the configuration that the answer sets
    varies      what differs in their data on purpose: words of study.DATA_FIELDS
    kind        of the held-out samples on which they are compared
    """

    name: str
    question: str
    words: dict[str, str]
    keys: tuple[str, ...] = ()
    reference: str = BASELINE
    reference_words: str = "the baseline"
    varies: tuple[str, ...] = ()
    kind: str = "all"

    @property
    def bases(self) -> tuple[str, ...]:
        return (self.reference, *self.words)


ARCHITECTURE = ("model.architecture", "model.tokens_per_frame")
SWEEPS = (
    Sweep(
        "freezing",
        "Which parts must be trained?",
        {"F1": "training the connector alone (F1)", "F2": "freezing the language model (F2)"},
        ("optim.freeze",),
        reference_words="training all parts (F3, the baseline)",
    ),
    Sweep(
        "learning rate",
        "How much faster should the connector learn than the rest?",
        {name: f"a connector rate of {{setting}} ({name})" for name in ("LR2", "LR3", "LR4")},
        ("optim.lr.connector",),
        reference_words="{setting} (LR1, the baseline)",
    ),
    Sweep(
        "query depth",
        "Must the query pass every layer of the encoder?",
        {"A1": "a shallow query (A1)"},
        ("model.deep_query",),
        reference_words="a deep one (the baseline)",
    ),
    Sweep(
        "fine pass",
        "Does looking twice pay?",
        {"A6": "the static query alone (A6)"},
        ("model.fine_pass",),
        reference_words="looking twice (the baseline)",
    ),
    Sweep(
        "third look",
        "Does a third look pay?",
        {"A9": "a third look (A9)"},
        ("model.fine_passes",),
        reference_words="two looks (the baseline)",
    ),
    Sweep(
        "static frames",
        "As how many equal frames should an image be shown?",
        {"A8b": "showing an image as {setting} frames (A8b)"},
        ("data.static_frames",),
        "A8a",
        "as {setting} (A8a)",
        ("static frames",),
    ),
    Sweep(
        "sixteen pooled tokens",
        "Is one foveated token as good as sixteen pooled ones?",
        {"B1": "sixteen pooled tokens per frame (B1)"},
        ARCHITECTURE,
        reference_words="one foveated token (the baseline)",
    ),
    Sweep(
        "one pooled token",
        "Does choosing where to look beat averaging, at one token per frame?",
        {"B3": "one pooled token per frame (B3)"},
        ARCHITECTURE,
        reference_words="one foveated token (the baseline)",
    ),
    Sweep(
        "four pooled tokens",
        "Is one foveated token as good as four pooled ones?",
        {"B4": "four pooled tokens per frame (B4)"},
        ARCHITECTURE,
        reference_words="one foveated token (the baseline)",
    ),
    Sweep(
        "pixel shuffle",
        "Is one foveated token as good as pixel shuffle, on images?",
        {"B2": "pixel shuffle (B2)"},
        ARCHITECTURE,
        reference_words="one foveated token (the baseline)",
        kind="image",
    ),
    Sweep(
        "blind",
        "Does the model use what it sees?",
        {"B0": "training blind (B0)"},
        ("model.architecture",),
        reference_words="seeing (the baseline)",
    ),
    Sweep(
        "mixture",
        "Which mixture of video, image and text?",
        {"D1": "a mixture of {setting} (D1)"},
        ("data.share",),
        reference_words="{setting} (the baseline)",
        varies=("mixture",),
    ),
    Sweep(
        "both orders",
        "What does training with the question first in some samples cost, with the video first?",
        {"Q1": "training in both orders (Q1)"},
        ("data.question_first",),
        reference_words="the video first alone (the baseline)",
    ),
)
SIGHT = ("sight", "Does the model use what its own frames show?")
FACTORIAL = ("query depth x fine pass", "Does the fine pass gain from a deep query?")
QUESTION = ("question first", "Does the fine pass gain more than the coarse one from knowing the question?", "Q1")
SCALING = {
    COMPUTE: "Is the foveated model better than sixteen pooled tokens at equal training compute?",
    PARAMETERS: "Is it better at equal compute and equal parameters?",
    EXPONENT: "How does the best model size grow with compute?",
}
NAMED = {base for sweep in SWEEPS for base in sweep.bases} | {"A7"}  # all others are a study's own ablations
