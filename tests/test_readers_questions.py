"""Benchmarks: the same form of question for all, with the right answer beside it."""

import json

import pytest

from fvlm.data.readers import count_rows, read_rows
from fvlm.data.readers.questions import FRAMES_TASK, LETTER_PROMPT, WORD_PROMPT, choice
from fvlm.data.readers.row import BadRow
from fvlm.errors import UserError
from tests.reader_cases import add_video, picture, rows_of, stored, write_table

OPTIONS = ["red", "green", "blue", "grey"]


def asked(question: str, options: list[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False)]
    return "\n".join([question, *lines, LETTER_PROMPT])


def test_a_choice_has_lettered_options_and_a_letter_as_answer():
    text, extra = choice("Which?", OPTIONS, 2)
    assert text == {"user": asked("Which?", OPTIONS), "assistant": "C"}
    assert extra == {"options": OPTIONS, "correct": 2}
    for options in (["one"], [], None, ["a", ""], ["a", 3]):
        with pytest.raises(BadRow, match="option"):
            choice("Which?", options, 0)
    for correct in (2, -1, "0"):
        with pytest.raises(BadRow, match=repr(correct)):
            choice("Which?", ["a", "b"], correct)


@pytest.mark.parametrize(("suffix", "here"), [(".mp4", True), (".mkv", True), (".mp4", False)])
def test_video_mme(tmp_path, suffix, here):
    if here:
        add_video(tmp_path / f"data/fFjv93ACGo8{suffix}")
    about = {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Law", "url": "https://x"}
    about |= {"videoID": "fFjv93ACGo8", "question_id": "001-1", "task_type": "OCR Problems", "question": "Which?"}
    lettered = [f"{letter}. {option}" for letter, option in zip("ABCD", OPTIONS, strict=True)]
    good, bad = rows_of(tmp_path, "video_mme", [{**about, "options": lettered, "answer": letter} for letter in "BE"])
    assert good.text == {"user": asked("Which?", OPTIONS), "assistant": "B"}
    about = {"id": "001-1", "task": "OCR Problems", "category": "Knowledge", "length": "short"}
    assert good.extra == {"options": OPTIONS, "correct": 1, **about}
    assert good.file == f"data/fFjv93ACGo8{suffix}"
    assert "correct option" in bad.problem and bad.file == good.file


def test_mvbench_uses_the_part_of_the_video_that_the_question_is_about(tmp_path):
    about = {"video": "ZS9XR.mp4", "question": "What next?", "candidates": OPTIONS[:3], "answer": "blue"}
    changes = [{"start": 11.1}, {"start": None}, {"answer": "black", "start": 0}]
    rows = rows_of(tmp_path, "mvbench", [{**about, "end": 19.6, **change} for change in changes])
    assert rows[0].media[0].span_s == (11.1, 19.6)
    assert rows[0].file == "video/star/Charades_v1_480/ZS9XR.mp4"
    assert rows[0].text["assistant"] == "C" and rows[0].extra["correct"] == 2
    assert rows[0].extra["task"] == "action_sequence"
    assert "None and 19.6" in rows[1].problem
    assert "'black'" in rows[2].problem
    whole = rows_of(tmp_path, "mvbench", [about], "json/state_change.json")[0]
    assert (whole.file, whole.media[0].span_s) == ("video/perception/videos/ZS9XR.mp4", None)


def test_mvbench_uses_one_of_three_frames(tmp_path):
    folder = tmp_path / "video/tvqa/frames_fps3_hq/castle_s01"
    folder.mkdir(parents=True)
    for i in range(30):
        (folder / f"{i + 1:05d}.jpg").write_bytes(picture(i, "JPEG"))
    about = {"video": "castle_s01", "question": "Who?", "candidates": OPTIONS, "answer": "red"}
    spans = [(2.0, 5.5), (0, 1000), (50, 60)]
    records = [{**about, "start": start, "end": end} for start, end in spans]
    records.append({**about, "video": "nowhere", "start": 0, "end": 1})
    part, whole, late, missing = rows_of(tmp_path, "mvbench", records, f"json/{FRAMES_TASK}.json")
    assert [media.file[-9:] for media in part.media] == ["00007.jpg", "00010.jpg", "00013.jpg", "00016.jpg"]
    assert all(media.image for media in part.media) and part.extra["frame_times"] == [0, 1, 2, 3]
    assert len(whole.media) == 10
    assert (late.reason, missing.reason) == ("empty_span", "missing")
    assert "castle_s01" in late.problem and "50 s to 60 s" in late.problem
    with pytest.raises(UserError, match=r"'new_task'.*action_sequence"):
        rows_of(tmp_path, "mvbench", records, "json/new_task.json")


def test_mlvu(tmp_path):
    about = {"video": "movie101_66.mp4", "duration": 246, "question": "Which?", "question_type": "plotQA"}
    records = [{**about, "candidates": OPTIONS, "answer": "green"}, {**about, "answer": "Free text."}, {**about}]
    good, free, bad = rows_of(tmp_path, "mlvu", records)
    assert good.text == {"user": asked("Which?", OPTIONS), "assistant": "B"}
    assert good.extra == {"options": OPTIONS, "correct": 1, "task": "plotQA"}
    assert good.file == "video/1_plotQA/movie101_66.mp4"
    assert free.text == {"user": "Which?", "assistant": "Free text."}
    assert bad.problem == "`answer` is missing"
    write_table(tmp_path / "json/2_needle.json", records[:1])
    assert [row.file for row in read_rows(tmp_path, reader="mlvu")][3] == "video/2_needle/movie101_66.mp4"
    assert count_rows(tmp_path, reader="mlvu") == 4


def test_pope_as_lines_that_are_called_json(tmp_path):
    image = "COCO_val2014_000000310196.jpg"
    lines = [
        {"question_id": 1, "image": image, "text": "Is there a snowboard in the image?", "label": "yes"},
        {"question_id": 2, "image": image, "text": "Is there a car in the image?", "label": "no"},
        {"question_id": 3, "image": image, "text": "Is there a cat in the image?", "label": "maybe"},
        {"question_id": 4, "image": None, "text": "Is there a cat in the image?", "label": "no"},
    ]
    (tmp_path / "coco_pope_popular.json").write_text("\n".join(map(json.dumps, lines)))
    rows = read_rows(tmp_path, reader="pope")
    assert rows[0].text == {"user": f"Is there a snowboard in the image?\n{WORD_PROMPT}", "assistant": "yes"}
    assert rows[1].extra == {"options": ["yes", "no"], "correct": 1, "id": 2, "task": "popular"}
    assert (rows[0].file, rows[0].media[0].image) == (f"val2014/{image}", True)
    assert "'maybe'" in rows[2].problem and "`image` is null" in rows[3].problem
    assert count_rows(tmp_path, reader="pope") == 4


def test_pope_as_parquet(tmp_path):
    record = {"id": "0", "question_id": "1", "question": "Is there a dog?", "answer": "yes", "image_source": "COCO_1"}
    (row,) = rows_of(tmp_path, "pope", [{**record, "image": stored(3), "category": "random"}], "data/test-0.parquet")
    assert row.media[0].content == picture(3) and row.text["assistant"] == "yes" and row.extra["task"] == "random"


PROBLEM = {"question": "Which?", "choices": OPTIONS, "answer": 3, "hint": "Look.", "task": "closed choice"}
PROBLEM |= {"subject": "natural science", "topic": "t", "category": "c", "skill": "s", "lecture": "l", "solution": "s"}


def test_scienceqa(tmp_path):
    changes = [{}, {"image": None}, {"answer": 9}]
    good, blind, bad = rows_of(tmp_path, "scienceqa", [{"image": stored(4), **PROBLEM, **change} for change in changes])
    assert good.text == {"user": asked("Look.\nWhich?", OPTIONS), "assistant": "D"}
    assert good.extra == {"options": OPTIONS, "correct": 3, "task": "natural science", "category": "c"}
    assert "`image` is null" in blind.problem and "option is 9" in bad.problem


def test_scienceqa_as_problems(tmp_path):
    images = {"7": {"image": "image.png", "split": "test"}, "8": {"image": None, "split": "val"}}
    problems = {name: {**PROBLEM, **image} for name, image in images.items()}
    rows = rows_of(tmp_path, "scienceqa", problems, "problems.json")
    assert rows[0].file == "images/test/7/image.png"
    assert (rows[0].extra["id"], rows[0].extra["split"]) == ("7", "test")
    assert "`image` is null" in rows[1].problem
    assert count_rows(tmp_path, "problems.json", "scienceqa") == 2
