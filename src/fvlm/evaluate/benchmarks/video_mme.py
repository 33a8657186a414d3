"""Video-MME: 2,700 questions on 900 videos, 4 options; short, medium and long videos; without and with subtitles.

https://huggingface.co/datasets/lmms-lab/Video-MME. With subtitles, the lines that are shown at the frames which the
model reads stand before the question; 744 of the videos have a file, subtitle/{videoID}.srt.
"""

from dataclasses import replace
from pathlib import Path

from fvlm.data.readers.row import Row
from fvlm.evaluate.benchmarks.question import Benchmark, Question, choice


def question(row: Row, folder: Path) -> Question:
    about = row.extra
    return choice(row, length=about.get("length"), domain=about.get("category"), task=about.get("task"))


def question_with_subtitles(row: Row, folder: Path) -> Question:
    file = folder / "subtitle" / f"{Path(row.media[0].file).stem}.srt"
    return replace(question(row, folder), subtitles=file if file.is_file() else None)


BENCHMARK = Benchmark("Video-MME", "video_mme", question)
WITH_SUBTITLES = Benchmark("Video-MME with subtitles", "video_mme", question_with_subtitles)
