"""Benchmarks with given answers: Video-MME, MVBench, MLVU, POPE, ScienceQA.

The sample's json keeps `options` (texts) and `correct` (position of the right option), so that an evaluation need not
parse the question.
"""

import os
import re
from pathlib import Path

import numpy as np

from fvlm.data.decode.media import Media, MediaError, schedule
from fvlm.data.readers.conversations import embedded
from fvlm.data.readers.row import BadRow, Place, Sample, identity, known, string
from fvlm.errors import UserError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_PROMPT = "Answer with the letter of the correct option."
WORD_PROMPT = "Answer yes or no."

# MVBench: task -> folder of its videos below video/, and whether its questions are about a part of the video.
MVBENCH = {
    "action_sequence": ("star/Charades_v1_480", True),
    "action_prediction": ("star/Charades_v1_480", True),
    "action_antonym": ("ssv2_video", False),
    "fine_grained_action": ("Moments_in_Time_Raw/videos", False),
    "unexpected_action": ("FunQA_test/test", False),
    "object_existence": ("clevrer/video_validation", False),
    "object_interaction": ("star/Charades_v1_480", True),
    "object_shuffle": ("perception/videos", False),
    "moving_direction": ("clevrer/video_validation", False),
    "action_localization": ("sta/sta_video", True),
    "scene_transition": ("scene_qa/video", False),
    "action_count": ("perception/videos", False),
    "moving_count": ("clevrer/video_validation", False),
    "moving_attribute": ("clevrer/video_validation", False),
    "state_change": ("perception/videos", False),
    "fine_grained_pose": ("nturgbd", False),
    "character_order": ("perception/videos", False),
    "egocentric_navigation": ("vlnqa", False),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", True),
    "counterfactual_inference": ("clevrer/video_validation", False),
}
FRAMES_TASK, FRAMES_PER_S = "episodic_reasoning", 3  # folders of frames 00001.jpg, 00002.jpg, ...


def choice(question: str, options: object, correct: int) -> tuple[dict, dict]:
    """Return a multiple-choice question as text (options as lines "A. ...", the answer a letter) and as `extra`.

    correct     position of the right option
    raises      BadRow
    """
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise BadRow(f"expected a list of 2 to {len(LETTERS)} options")
    if not all(isinstance(option, str) and option.strip() for option in options):
        raise BadRow("an option is empty or no text")
    if not isinstance(correct, int) or not 0 <= correct < len(options):
        raise BadRow(f"the correct option is {correct!r}, but there are {len(options)}")
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    text = {"user": "\n".join([question, *lines, LETTER_PROMPT]), "assistant": LETTERS[correct]}
    return text, {"options": options, "correct": correct}


def position(answer: str, options: object) -> int:
    """Return the position of the answer among the options; raises BadRow."""
    if not isinstance(options, list) or answer not in options:
        raise BadRow(f"the answer {answer!r} is none of the options")
    return options.index(answer)


def video_mme(record: dict, place: Place) -> Sample:
    """Video-MME: Parquet of videoID, question_id, question, options ["A. ...", ...], answer (a letter), task_type, ...

    Videos in data/, as the zips unpack.
    https://huggingface.co/datasets/lmms-lab/Video-MME (README.md),
    https://github.com/EvolvingLMMs-Lab/lmms-eval (lmms_eval/tasks/videomme/utils.py)
    """
    name = string(record, "videoID")
    place.media = (Media(place.find(*(f"data/{name}{suffix}" for suffix in (".mp4", ".MP4", ".mkv")))),)
    question, answer = string(record, "question"), string(record, "answer").strip()
    correct = LETTERS.find(answer) if len(answer) == 1 else -1
    text, extra = choice(question, _without_letters(record.get("options")), correct)
    task, length = record.get("task_type"), record.get("duration")
    extra |= known(id=record.get("question_id"), task=task, category=record.get("domain"), length=length)
    return Sample(text, extra)


def _without_letters(options: object) -> object:
    """Options without their "A. ", "B. ", ..., if all have them."""
    if not isinstance(options, list) or len(options) > len(LETTERS) or not all(isinstance(o, str) for o in options):
        return options  # `choice` refuses them
    marks = [re.match(rf"\(?{letter}[.):]\s*", option) for letter, option in zip(LETTERS, options, strict=False)]
    return [option[mark.end() :] for mark, option in zip(marks, options, strict=True)] if all(marks) else options


def mvbench(record: dict, place: Place) -> Sample:
    """MVBench: JSON per task of {video, question, candidates, answer (a text), and start, end in seconds for some}.

    One task has folders of frames at 3 per second instead of videos: one frame per second is used.
    https://huggingface.co/datasets/OpenGVLab/MVBench, https://github.com/JUNJIE99/MLVU (video_chat/choice_bench.py)
    """
    task = place.table.stem
    if task not in MVBENCH:
        raise UserError(f"{place.table}: MVBench has no task {task!r}; it has {', '.join(MVBENCH)}")
    folder, bounded = MVBENCH[task]
    name = f"video/{folder}/{string(record, 'video')}"
    extra: dict = {"task": task}
    place.media = (Media(name),)
    span = _span(record) if bounded else None
    if task == FRAMES_TASK:
        place.media, extra["frame_times"] = _frames(place.folder / name, name, span)
    else:
        place.media = (Media(name, span_s=span),)
    options = record.get("candidates")
    text, answer = choice(string(record, "question"), options, position(string(record, "answer"), options))
    return Sample(text, extra | answer)


def _span(record: dict) -> tuple[float, float]:
    start, end = record.get("start"), record.get("end")
    if not all(isinstance(value, int | float) for value in (start, end)):
        raise BadRow(f"`start` and `end` are {start!r} and {end!r}, expected seconds")
    try:
        return float(start), float(end)
    except OverflowError as error:
        raise BadRow("`start` or `end` is a number too large for seconds") from error


def _frames(folder: Path, name: str, span_s: tuple[float, float]) -> tuple[tuple[Media, ...], list[float]]:
    """Images of a folder of frames, one per second of the span, and their times in seconds from its start."""
    try:
        files = sorted(file for file in os.listdir(folder) if file.endswith(".jpg"))
    except OSError as error:
        raise BadRow(f"{name}: no folder of frames ({error.strerror})", reason="missing") from error
    if not files:
        raise BadRow(f"{name}: no frames", reason="empty")
    shown_s = np.arange(len(files)) / FRAMES_PER_S
    try:
        times_s, wanted, _ = schedule(shown_s, len(files) / FRAMES_PER_S, span_s)
    except MediaError as error:
        raise BadRow(f"{name}: {error}", error.reason) from error
    return tuple(Media(f"{name}/{files[i]}", image=True) for i in wanted), times_s.round(6).tolist()


def mlvu(record: dict, place: Place) -> Sample:
    """MLVU: JSON per task of {video, duration, question, candidates, answer (a text), question_type}.

    Tasks without candidates, such as summaries, are plain questions. Videos are in video/{name of the table}/.
    https://github.com/JUNJIE99/MLVU (video_chat/choice_bench.py),
    https://github.com/TIGER-AI-Lab/VISTA (eval/utils_mlvu.py)
    """
    place.media = (Media(f"video/{place.table.stem}/{string(record, 'video')}"),)
    question, answer, options = string(record, "question"), string(record, "answer"), record.get("candidates")
    text, extra = {"user": question, "assistant": answer}, {}
    if options is not None:
        text, extra = choice(question, options, position(answer, options))
    extra |= known(task=record.get("question_type"), id=record.get("question_id"))
    return Sample(text, extra)


def pope(record: dict, place: Place) -> Sample:
    """POPE: JSONL of {question_id, image, text, label (yes or no)}; or Parquet of image, question, answer, category.

    The images of the JSONL are COCO's val2014, in a folder of that name or beside the table.
    https://github.com/RUCAIBox/POPE (output/coco), https://huggingface.co/datasets/lmms-lab/POPE,
    https://github.com/EvolvingLMMs-Lab/lmms-eval (lmms_eval/tasks/pope/utils.py: columns of the Parquet)
    """
    if isinstance(record.get("image"), str):
        name = record["image"]
        place.media = (Media(place.find(f"val2014/{name}", name, place.beside(name)), image=True),)
    else:
        place.media = (embedded(record.get("image"), "image"),)
    question = string(record, "text" if "text" in record else "question").strip()
    answer = string(record, "label" if "label" in record else "answer").strip().lower()
    options = ["yes", "no"]
    extra = {"options": options, "correct": position(answer, options)}
    task = record.get("category") or place.table.stem.rsplit("_", 1)[-1]
    extra |= known(id=record.get("question_id"), task=task)
    return Sample({"user": f"{question}\n{WORD_PROMPT}", "assistant": answer}, extra)


def scienceqa(record: dict, place: Place) -> Sample:
    """ScienceQA: Parquet of image (or null), question, choices, answer (a position), hint, subject, ...

    Also the original problems.json, {id: problem}, with images/{split}/{id}/image.png. About half of the questions
    have no image: of an image source they are rejected, so take ScienceQA-IMG, or raise `max_reject`.
    https://huggingface.co/datasets/lmms-lab/ScienceQA (README.md),
    https://github.com/lupantech/ScienceQA (tools/generate_caption.py)
    """
    image = record.get("image")
    if isinstance(image, str) and image:
        name = f"{identity(record, 'split')}/{identity(record, 'id')}/{image}"
        place.media = (Media(place.find(f"images/{name}", name), image=True),)
    else:
        place.media = (embedded(image or None, "image"),)
    hint, question = record.get("hint"), string(record, "question")
    question = f"{hint.strip()}\n{question}" if isinstance(hint, str) and hint.strip() else question
    text, extra = choice(question, record.get("choices"), record.get("answer"))
    extra |= known(task=record.get("subject"), category=record.get("category"), split=record.get("split"))
    extra |= known(grade=record.get("grade"))
    return Sample(text, extra | known(id=record.get("id")))


def expand_scienceqa(record: dict) -> list[dict]:
    """All problems of problems.json, which is one object."""
    if "question" in record or not all(isinstance(problem, dict) for problem in record.values()):
        return [record]
    return [{"id": name, **problem} for name, problem in record.items()]
