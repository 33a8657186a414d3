"""A question of a benchmark, and what a benchmark declares about its questions and their scores."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fvlm.data.decode.media import Media
from fvlm.data.readers.questions import LETTERS
from fvlm.data.readers.row import Row
from fvlm.evaluate.benchmarks.parse import chosen_option

# How an option is chosen: by the loss of its letter, of its text, of its text per token; or from a generated answer.
LETTER, TEXT, PER_TOKEN, GENERATED = "letter", "text", "text_per_token", "generated"


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
    subtitles   file of subtitles; the prompt has its lines at the shown frames
    key         hash of all of the above, with the sizes of the files: equal keys have equal answers
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
    key: str = ""

    def place(self, option: int, rotation: int) -> int:
        """Return the place of an option in a list that shows each one `rotation` places further down."""
        return (option + rotation) % len(self.options)


# A metric: (chosen option or None, right option) -> numerator and denominator; its score is the ratio of their sums.
Metric = Callable[[int | None, int], tuple[float, float]]


def accuracy(chosen: int | None, answer: int) -> tuple[float, float]:
    return float(chosen == answer), 1.0


@dataclass(frozen=True)
class Benchmark:
    """What `registry` declares of each benchmark.

    title           name in figures
    source          entry of config/sources.yaml with its files
    question        (row, folder of the files) -> question; None if the row belongs to no question of the benchmark
    prompt          the user's text, with {question}, and {options} as lines
    letter_prompt   the prompt for the losses of letters; empty: as `prompt`, or no such losses if that lists no options
    subtitled       the same with {subtitles}, for questions that have some
    mark            how the first option is marked
    start           beginning of the answer, given to the model before a letter or a generated answer
    main            the way whose score is the benchmark's score
    metrics         name -> metric; the first is the main one; none for captions
    mean_over       kind of category whose scores are averaged; empty: all questions count alike
    parse           (generated answer, options) -> position of the option that it names, or None
    tokens          longest generated answer
    """

    title: str
    source: str
    question: Callable[[Row, Path], Question | None]
    prompt: str
    letter_prompt: str = ""
    subtitled: str = ""
    mark: str = "A."
    start: str = ""
    main: str = LETTER
    metrics: dict[str, Metric] = field(default_factory=lambda: {"accuracy": accuracy})
    mean_over: str = ""
    parse: Callable[[str, tuple[str, ...]], int | None] = chosen_option
    tokens: int = 16

    @property
    def captions(self) -> bool:
        """Whether it asks for captions, which have no options."""
        return not self.metrics

    @property
    def asks(self) -> tuple:
        """What the answers depend on, beside the questions."""
        return self.prompt, self.letter_prompt, self.subtitled, self.mark, self.start, self.main, self.tokens

    @property
    def letters(self) -> bool:
        """Whether the losses of letters are scored."""
        return "{options}" in (self.letter_prompt or self.prompt)

    def prompt_of(self, question: Question, subtitles: str = "", letters: bool = False, rotation: int = 0) -> str:
        """Return the prompt of a question.

        subtitles   lines; empty: there are none
        letters     the prompt for the losses of letters
        rotation    places that each option stands further down
        """
        template = self.subtitled if subtitles else self.prompt
        template = (letters and self.letter_prompt) or template
        order = sorted(range(len(question.options)), key=lambda option: question.place(option, rotation))
        marks = (self.mark.replace("A", letter) for letter in LETTERS)
        options = "\n".join(f"{mark} {question.options[i]}" for mark, i in zip(marks, order, strict=False))
        return template.format(question=question.text, options=options, subtitles=subtitles)


CLOCK = r"(\d+):(\d\d):(\d\d)[,.](\d{3})"
CUE = re.compile(rf"{CLOCK} --> {CLOCK}[^\n]*\n((?:[^\n]*\S[^\n]*(?:\n|\Z))*)")  # up to an empty line
MARKUP = re.compile(r"<[^>]*>")


def subtitles_at(path: Path, times_s) -> str:
    """Return the lines of an .srt file that are shown at these times, in order, without immediate repeats."""
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
