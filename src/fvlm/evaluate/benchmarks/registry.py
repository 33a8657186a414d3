"""All benchmarks: which rows are questions, with which prompt they are asked, and what the score is.

To add one, write how a row of its reader becomes a question and an entry of BENCHMARKS, and add its name to
`schema.Benchmark`. docs/benchmarks.md says where the prompts are from, and where they differ from the official ones.
"""

import re
from dataclasses import replace
from pathlib import Path

from fvlm.data.readers.questions import LETTER_PROMPT, LETTERS, WORD_PROMPT
from fvlm.data.readers.row import Row
from fvlm.evaluate.benchmarks.question import GENERATED, TEXT, Benchmark, Question, accuracy

# --- rows as questions ---


def choice(row: Row, **categories: object) -> Question | None:
    """Return the question of a row, with these categories; a category without a value is left out. None: no options."""
    if "options" not in row.extra:
        return None
    text = row.text["user"]  # the reader's own prompt is cut off
    name = row.extra.get("id", "")
    return Question(
        id=str(row.number if name == "" else name),
        video=video_of(row),
        media=row.media,
        text=text.rpartition(f"\n{LETTERS[0]}. ")[0] or text.removesuffix(f"\n{WORD_PROMPT}"),
        options=tuple(row.extra["options"]),
        answer=row.extra["correct"],
        categories={kind: str(name) for kind, name in categories.items() if name},
    )


def video_of(row: Row) -> str:
    """Return the name of a row's video; frames in a folder are one video."""
    first = row.media[0].file
    return first if len(row.media) == 1 else str(Path(first).parent)


def by_task(row: Row, folder: Path) -> Question | None:
    return choice(row, task=row.extra.get("task"))


def video_mme(row: Row, folder: Path) -> Question | None:
    about = row.extra
    return choice(row, length=about.get("length"), domain=about.get("category"), task=about.get("task"))


def video_mme_with_subtitles(row: Row, folder: Path) -> Question | None:
    file = folder / "subtitle" / f"{Path(row.media[0].file).stem}.srt"
    return replace(video_mme(row, folder), subtitles=file if file.is_file() else None)


def pope(row: Row, folder: Path) -> Question | None:
    split = row.extra["task"]
    question = choice(row, split=split)
    return replace(question, id=f"{split}-{question.id}")  # each split numbers its questions from 1


def scienceqa(row: Row, folder: Path) -> Question | None:
    if row.extra.get("split", "test") != "test":  # problems.json has all splits
        return None
    return choice(row, subject=row.extra.get("task"), grade=row.extra.get("grade"), options=len(row.extra["options"]))


def captions(row: Row, folder: Path) -> Question | None:
    reference = row.text.get("caption") or row.text.get("assistant")
    if not reference:
        return None
    name, prompt = video_of(row), row.prompt or "Describe the video."
    return Question(id=name, video=name, media=row.media, text=prompt, references=(reference,))


# --- POPE: metrics of its own ---

YES, NO = 0, 1  # positions of the options, as the reader gives them


def f1(chosen: int | None, answer: int) -> tuple[float, float]:
    """2 TP / (2 TP + FP + FN); the denominator counts the yes of the model and of the truth."""
    return 2.0 * (chosen == answer == YES), float(chosen == YES) + (answer == YES)


def share_of_yes(chosen: int | None, answer: int) -> tuple[float, float]:
    return float(chosen == YES), 1.0


def yes_or_no(answer: str, options: tuple[str, ...]) -> int | None:
    """The official rule: no if `no` or `not` is in the first sentence, else yes. An empty answer names none."""
    words = re.findall(r"\w+", answer.partition(".")[0].casefold())
    if not words:
        return None
    return NO if {"no", "not"} & set(words) else YES


# --- all benchmarks ---

LETTERED = f"{{question}}\n{{options}}\n{LETTER_PROMPT}"
BEST_OPTION = "Question: {question}\nOptions:\n{options}\nOnly give the best option."
BEST_ANSWER = (
    "Select the best answer to the following multiple-choice question based on the video{}. Respond with only the "
    "letter (A, B, C, or D) of the correct option.\n{{question}}\n{{options}}\nThe best answer is:"
)

BENCHMARKS = {
    # https://huggingface.co/datasets/lmms-lab/Video-MME
    "video_mme": Benchmark("Video-MME", "video_mme", video_mme, BEST_ANSWER.format("")),
    "video_mme_subtitles": Benchmark(
        "Video-MME with subtitles",
        "video_mme",
        video_mme_with_subtitles,
        BEST_ANSWER.format(""),
        subtitled="This video's subtitles are listed below:\n{subtitles}\n" + BEST_ANSWER.format(" and the subtitles"),
    ),
    # https://huggingface.co/datasets/OpenGVLab/MVBench
    "mvbench": Benchmark(
        "MVBench", "mvbench", by_task, BEST_OPTION, mark="(A)", start="Best option:(", mean_over="task"
    ),
    # https://github.com/JUNJIE99/MLVU; its two tasks that ask for texts have no options and are left out
    "mlvu": Benchmark("MLVU", "mlvu", by_task, BEST_OPTION, mark="(A)", start="Best Option: (", mean_over="task"),
    # https://github.com/RUCAIBox/POPE; the share of yes shows a model that always gives one answer
    "pope": Benchmark(
        "POPE",
        "pope",
        pope,
        "{question}",
        main=TEXT,
        metrics={"accuracy": accuracy, "f1": f1, "yes": share_of_yes},
        mean_over="split",
        parse=yes_or_no,
    ),
    # https://huggingface.co/datasets/lmms-lab/ScienceQA
    "scienceqa": Benchmark(
        "ScienceQA-IMG",
        "scienceqa",
        scienceqa,
        "{question}\n{options}\nAnswer with the option's letter from the given choices directly.",
    ),
    # a table with a row per caption; rows of the same file are references of one caption
    "captions": Benchmark("Captions", "captions", captions, "{question}", main=GENERATED, metrics={}, tokens=60),
    # its models were trained to answer with words; they never saw letters, whose losses show how such a model scores
    "demo": Benchmark("Demo", "demo", by_task, "{question}", letter_prompt=LETTERED, main=TEXT, tokens=8),
}
