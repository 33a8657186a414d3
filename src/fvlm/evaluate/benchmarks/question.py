"""A question of a benchmark, and what a benchmark declares about its questions.

Rows come from the dataset's reader (fvlm.data.readers), in the form in which the dataset is published.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fvlm.data.decode.media import Media
from fvlm.data.readers.questions import LETTER_PROMPT, LETTERS
from fvlm.data.readers.row import Row
from fvlm.evaluate.benchmarks.parse import chosen_option

# How an option is chosen: by the loss of its letter, of its text, of its text per token; or from a generated answer.
LETTER, TEXT, PER_TOKEN, GENERATED = "letter", "text", "text_per_token", "generated"
WAYS = (LETTER, TEXT, PER_TOKEN, GENERATED)


@dataclass(frozen=True)
class Question:
    """One question.

    id          unique in the benchmark
    video       name of the video or image; questions of one video are not independent
    media       a video, an image, or images in order
    text        the question alone
    options     answers to choose from; empty for captions
    answer      position of the right option
    categories  kind of category -> category, for example {"task": "Action Count"}
    references  captions that people wrote; empty for questions
    subtitles   file of subtitles, whose lines at the shown frames are put before the question
    """

    id: str
    video: str
    media: tuple[Media, ...]
    text: str
    options: tuple[str, ...] = ()
    answer: int = -1
    categories: dict[str, str] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    subtitles: Path | None = None

    def lettered(self, rotation: int = 0) -> str:
        """Return the question with its options as lines "A. ...", each `rotation` places further down."""
        places = sorted(range(len(self.options)), key=lambda option: self.place(option, rotation))
        lines = [f"{letter}. {self.options[option]}" for letter, option in zip(LETTERS, places, strict=False)]
        return "\n".join([self.text, *lines, LETTER_PROMPT])

    def place(self, option: int, rotation: int) -> int:
        """Return the position of an option in `lettered`."""
        return (option + rotation) % len(self.options)


# A metric: (chosen option or None, right option) -> numerator and denominator; its score is the ratio of their sums.
Metric = Callable[[int | None, int], tuple[float, float]]


def accuracy(chosen: int | None, answer: int) -> tuple[float, float]:
    return float(chosen == answer), 1.0


@dataclass(frozen=True)
class Benchmark:
    """What a file of this package declares.

    title       name in figures
    source      entry of config/sources.yaml with its files
    question    row -> question; None if the row belongs to no question of the benchmark
    main        the way whose score is the benchmark's score, one of WAYS
    lettered    the prompt lists the options with letters; False: the question alone, as in training on plain answers
    letters     the options' letters are scored too
    metrics     name -> metric; the first is the main one
    mean_over   kind of category whose scores are averaged; empty: all questions count alike
    parse       (generated answer, options) -> position of the option that it names, or None
    tokens      longest generated answer
    """

    title: str
    source: str
    question: Callable[[Row, Path], Question | None]
    main: str = LETTER
    lettered: bool = True
    letters: bool = True
    metrics: dict[str, Metric] = field(default_factory=lambda: {"accuracy": accuracy})
    mean_over: str = ""
    parse: Callable[[str, tuple[str, ...]], int | None] = chosen_option
    tokens: int = 16

    @property
    def captions(self) -> bool:
        """Whether it asks for captions, which have no options."""
        return not self.metrics


def choice(row: Row, **categories: object) -> Question | None:
    """Return the question of a row, with these categories; a category without a value is left out. None: no options."""
    if "options" not in row.extra:
        return None
    options = tuple(row.extra["options"])
    return Question(
        id=str(row.extra.get("id") or row.number),
        video=video_of(row),
        media=row.media,
        text=row.text["user"].rpartition(f"\n{LETTERS[0]}. ")[0] or row.text["user"],
        options=options,
        answer=row.extra["correct"],
        categories={kind: str(name) for kind, name in categories.items() if name},
    )


def by_task(row: Row, folder: Path) -> Question | None:
    return choice(row, task=row.extra.get("task"))


def video_of(row: Row) -> str:
    """Return the name of a row's video; frames in a folder are one video."""
    first = row.media[0].file
    return first if len(row.media) == 1 else str(Path(first).parent)


CLOCK = r"(\d+):(\d\d):(\d\d)[,.](\d{3})"
CUE = re.compile(rf"{CLOCK} --> {CLOCK}[^\n]*\n((?:[^\n]*\S[^\n]*(?:\n|\Z))*)")  # up to an empty line
MARKUP = re.compile(r"<[^>]*>")


def subtitles_at(path: Path, times_s: list[float]) -> str:
    """Return the lines of an .srt file that are shown at these times, each once, in order."""
    text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")
    lines: list[str] = []
    for *clock, line in CUE.findall(text):
        start, end = (_seconds(*clock[i : i + 4]) for i in (0, 4))
        line = " ".join(MARKUP.sub("", line).split())
        if line and line not in lines[-1:] and any(start <= time < end for time in times_s):
            lines.append(line)
    return "\n".join(lines)


def _seconds(hours: str, minutes: str, seconds: str, thousandths: str) -> float:
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds) + int(thousandths) / 1000
