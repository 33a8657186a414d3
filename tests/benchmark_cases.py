"""Benchmarks in their published forms, with real small videos, and answerers that are known to the letter."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from fvlm.config.schema import Source
from fvlm.data.readers.questions import LETTERS
from fvlm.evaluate.benchmarks.questions import Questions, read_questions
from fvlm.evaluate.benchmarks.registry import BENCHMARKS
from fvlm.evaluate.frames import Frames
from tests.reader_cases import add_video, picture, write_table

OPTIONS = ["red", "green", "blue", "grey"]


def source_of(name: str, folder: Path, **settings) -> Source:
    """The source of a benchmark, with the reader and table of config/sources.yaml."""
    tables = {
        "video_mme": "videomme/test-*.parquet", "mvbench": "json/*.json", "mlvu": "json/*.json",
        "pope": "coco_pope_*.json", "scienceqa": "ScienceQA-IMG/test-*.parquet", "folder": "samples.jsonl",
    }  # fmt: skip
    reader = name if name in tables else "folder"
    about = {"kind": "video", "reader": reader, "path": str(folder), "table": tables[reader]}
    return Source(name=name, **about | settings)


def questions_of(name: str, folder: Path) -> Questions:
    return read_questions(name, BENCHMARKS[name], source_of(BENCHMARKS[name].source, folder), "")


def video_mme(folder: Path, videos: int = 3, here: int = 3) -> Path:
    """Two questions per video of 2 s; the first `here` videos exist; the answers are A, B, C, D, A, B, ..."""
    rows = []
    for i in range(2 * videos):
        about = {"videoID": f"v{i // 2}", "duration": ("short", "medium", "long")[i // 2 % 3], "domain": "Knowledge"}
        about |= {
            "question_id": f"{i:03d}",
            "task_type": "Counting",
            "question": f"Which {i}?",
            "answer": LETTERS[i % 4],
        }
        rows.append(about | {"options": [f"{mark}. {word}" for mark, word in zip("ABCD", OPTIONS, strict=True)]})
    write_table(folder / "videomme/test-0.parquet", rows)
    for i in range(here):
        add_video(folder / f"data/v{i}.mp4", seconds=2 + i % 2)
    return folder


def demo(folder: Path, videos: int = 2) -> Path:
    """Two plain questions per video, as those of the demo."""
    rows = [
        {"file": f"v{i // 2}.mp4", "question": f"What colour is {i}?", "answer": OPTIONS[i % 4], "options": OPTIONS,
         "task": ("what", "where")[i % 2]}
        for i in range(2 * videos)
    ]  # fmt: skip
    write_table(folder / "samples.jsonl", rows)
    for i in range(videos):
        add_video(folder / f"v{i}.mp4", seconds=3)
    return folder


def pope(folder: Path, splits: dict[str, str]) -> Path:
    """Splits with one question per letter of a word: y for the answer yes, n for no."""
    for split, answers in splits.items():
        rows = [
            {
                "question_id": i + 1,
                "image": f"{i}.jpg",
                "text": "Is there a dog?",
                "label": {"y": "yes", "n": "no"}[one],
            }
            for i, one in enumerate(answers)
        ]
        (folder / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, rows)))
        for i in range(len(answers)):
            (folder / f"{i}.jpg").write_bytes(picture(9 * i, "JPEG"))
    return folder


@dataclass
class Always:
    """A model that finds one answer likely, whatever it sees, and writes another one."""

    likely: str
    written: str = ""
    name: str = "always"
    modes: tuple[str, ...] = ("direct",)
    sees: bool = True
    both_orders: bool = False
    max_frames: int = 64
    static_frames: int = 1
    settings: tuple = ()
    weights: tuple = ()
    seen: list[tuple[Frames, tuple]] = field(default_factory=list)  # frames of each pass, and their order
    asked: list[str] = field(default_factory=list)  # prompts of generated answers

    def crop(self, kind: str, default: bool) -> bool:
        return default

    def video(self, frames: Frames, order: tuple = ()) -> "AlwaysVideo":
        return AlwaysVideo(self, frames, order)


@dataclass
class AlwaysVideo:
    model: Always
    frames: Frames
    order: tuple

    def seen_in(self, mode: str, order: list[int] | None = None) -> "AlwaysVideo":
        return self.model.video(self.frames, tuple(order or ()))

    def losses(self, question: str, answers: list[str], start: str = "") -> list[list[float]]:
        self.model.seen.append((self.frames, self.order))
        return [[0.5 if answer == self.model.likely else 2.0] * len(answer) + [0.1] for answer in answers]

    def ask(self, question: str, start: str = "") -> str:
        self.model.asked.append(question)
        return self.model.written
