"""Benchmarks: from published tables to questions, and from answers to the option that they name."""

from typing import get_args

import pytest

from fvlm.config.schema import Benchmark
from fvlm.data.readers.questions import LETTER_PROMPT
from fvlm.errors import UserError
from fvlm.evaluate.benchmarks.parse import chosen_option
from fvlm.evaluate.benchmarks.question import Question, subtitles_at
from fvlm.evaluate.benchmarks.questions import read_questions
from fvlm.evaluate.benchmarks.registry import BENCHMARKS, yes_or_no
from tests.benchmark_cases import OPTIONS, demo, pope, questions_of, source_of, video_mme
from tests.reader_cases import add_video, picture, stored, write_table

DOGS = ("a dog", "a man walks", "a red square", "red")


def test_a_study_may_name_each_benchmark_and_no_other():
    assert set(get_args(Benchmark)) == set(BENCHMARKS)


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("b.", 1), ("**B**", 1), (" B\n", 1), ("Answer: B", 1), ("Answer: (b)", 1),
        ("The answer is (b)", 1), ("The answer is B.", 1), ("The correct option is b", 1), ("Option B", 1),
        ("Best option: (B)", 1), ("B. a man walks", 1), ("B) a man walks down the street", 1), ("(b) a man walks", 1),
        ("The answer is B because he walks", 1), ("B because he walks", 1), ("I think it is (C).", 2),
        ("a dog", 0), ("A dog.", 0), ("It is a dog", 0), ("The answer is a dog", 0), ("A man walks", 1),
        ("a man walks.", 1), ("A man walks to the left", 1), ("a red square", 2), ("Red", 3), ("D: red", 3),
        ("The answer is: A", 0), ("A", 0), ("A.", 0), ("A. a dog", 0), ("Answer: D\nThe square is red", 3),
        ("", None), ("   ", None), ("...", None), ("I cannot tell.", None), ("Sorry, I can't answer that.", None),
        ("A and B", None), ("B or C", None), ("(A) or (B)", None), ("A, B", None), ("a cat", None), ("E", None),
        ("A cat sleeps", None), ("a dog, a man walks", None), ("B. a dog", None), ("As an AI, I have no opinion", None),
        ("A woman in a dress", None), ("**Answer:** A", 0), ("**Answer:** B", 1), ("A is correct", 0), ("\u0130", None),
        ("Option A is correct.", 0), ("A because it barks", 0), ("\u212a", None), ("The answer is a dog", 0),
    ],
)  # fmt: skip
def test_the_option_that_an_answer_names(answer, place):
    assert chosen_option(answer, DOGS) == place


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("The answer is not B", None), ("Not B.", None), ("B is wrong", None), ("It isn't (B)", None),
        ("It isn\u2019t a dog", None), ("neither A nor B", None), ("(B) is not right", None), ("B can't be", None),
        ("It is not B, it is C.", 2), ("B is incorrect; C is correct", 2), ("Not B but C", 2), ("A, not B", 0),
        ("A and not B", 0), ("B rather than A", 1), ("a dog, not a man walks", 0), ("I'm not sure, but B.", 1),
        ("B because it is not red", 1), ("(B) He is not running", 1), ("I do not know", None),
        ("Best option:(A) a dog", 0), ("Best Option: (B", 1),
    ],
)  # fmt: skip
def test_an_option_that_an_answer_denies_is_not_chosen(answer, place):
    assert chosen_option(answer, DOGS) == place


@pytest.mark.parametrize(
    ("answer", "place"),
    [("He does not walk.", 1), ("I think he does not walk", 1), ("B. He does not walk", 1), ("C: none of the above", 2),
     ("No, he does not", 3), ("D. No, he does not.", 3), ("It is not the case that he walks", None)],
)  # fmt: skip
def test_an_option_may_deny_something_itself(answer, place):
    assert chosen_option(answer, ("He walks", "He does not walk", "None of the above", "No, he does not")) == place


def test_an_option_that_is_a_letter_or_a_number():
    assert chosen_option("2", ("1", "2", "3")) == 1
    assert chosen_option("There are 3.", ("1", "2", "3")) == 2
    assert chosen_option("-1", ("1", "-1")) == 1
    assert chosen_option("B", ("yes", "no")) == 1
    assert chosen_option("Yes, there is a dog.", ("yes", "no")) == 0


@pytest.mark.parametrize(
    ("answer", "place"),
    [("yes", 0), ("No", 1), ("No, there is no dog.", 1), ("There is not a dog", 1), ("There is a dog. No cat.", 0),
     ("I see it", 0), ("nothing", 0), ("", None), ("  ", None)],
)  # fmt: skip
def test_yes_or_no_by_the_official_rule(answer, place):
    assert yes_or_no(answer, ("yes", "no")) == place


OPTION_LINES = {"A.": "A. red\nB. green\nC. blue\nD. grey", "(A)": "(A) red\n(B) green\n(C) blue\n(D) grey"}


@pytest.mark.parametrize(
    ("name", "prompt", "start"),
    [
        ("video_mme", f"Select the best answer to the following multiple-choice question based on the video. Respond "
         f"with only the letter (A, B, C, or D) of the correct option.\nWhich {{0}}?\n{OPTION_LINES['A.']}\nThe best "
         "answer is:", ""),
        ("mvbench", f"Question: Which {{0}}?\nOptions:\n{OPTION_LINES['(A)']}\nOnly give the best option.",
         "Best option:("),
        ("mlvu", f"Question: Which {{0}}?\nOptions:\n{OPTION_LINES['(A)']}\nOnly give the best option.",
         "Best Option: ("),
        ("pope", "Which {0}?", ""),
        ("scienceqa", f"Which {{0}}?\n{OPTION_LINES['A.']}\nAnswer with the option's letter from the given choices "
         "directly.", ""),
        ("demo", "Which {0}?", ""),
    ],
)  # fmt: skip
def test_the_prompt_of_each_benchmark(name, prompt, start):
    question = Question("1", "v", (), "Which {0}?", tuple(OPTIONS), 0)
    assert (BENCHMARKS[name].prompt_of(question), BENCHMARKS[name].start) == (prompt, start)


def test_letters_are_scored_where_a_prompt_lists_the_options():
    scored = {name for name, benchmark in BENCHMARKS.items() if benchmark.letters}
    assert scored == set(BENCHMARKS) - {"pope", "captions"}
    question = Question("1", "v", (), "Which?", tuple(OPTIONS), 0)
    letters = BENCHMARKS["demo"].prompt_of(question, letters=True)
    assert letters == f"Which?\n{OPTION_LINES['A.']}\n{LETTER_PROMPT}"


def test_video_mme(tmp_path):
    found = questions_of("video_mme", video_mme(tmp_path, here=2))
    first = found.usable[0]
    assert (first.id, first.video, first.text, first.options) == ("000", "data/v0.mp4", "Which 0?", tuple(OPTIONS))
    assert first.categories == {"length": "short", "domain": "Knowledge", "task": "Counting"}
    turned = BENCHMARKS["video_mme"].prompt_of(first, letters=True, rotation=1).splitlines()[2:6]
    assert turned == ["A. grey", "B. red", "C. green", "D. blue"] and first.place(3, 1) == 0
    assert [question.id for question in found.usable] == ["000", "001", "002", "003"]
    assert [(one["id"], one["reason"]) for one in found.problems] == [("004", "missing"), ("005", "missing")]
    assert "data/v2.mp4" in found.problems[0]["problem"]


SRT = """1
00:00:00,000 --> 00:00:01,500
<font color="white" size=".72c">Hello</font>

2
00:00:01,500 --> 00:00:01,900
never shown

3
00:00:01,900 --> 00:00:01,950

4
00:00:02,000 --> 00:01:02,000
to all
of you

"""


def test_subtitles_at_the_shown_frames(tmp_path):
    (tmp_path / "subtitle").mkdir()
    file = tmp_path / "subtitle/v1.srt"
    file.write_text(SRT)
    assert subtitles_at(file, [0, 1, 2, 3]) == "Hello\nto all of you"
    assert subtitles_at(file, [62, 63]) == ""
    asked = questions_of("video_mme_subtitles", video_mme(tmp_path)).usable
    assert [question.subtitles for question in asked] == [None, None, file, file, None, None]
    keys = [question.key for question in asked]
    assert keys == [question.key for question in questions_of("video_mme_subtitles", tmp_path).usable]
    file.write_text(SRT + "more")
    again = [question.key for question in questions_of("video_mme_subtitles", tmp_path).usable]
    assert [before == key for before, key in zip(keys, again, strict=True)] == [True, True, False, False, True, True]


def test_mvbench_has_parts_of_videos_and_folders_of_frames(tmp_path):
    about = {"question": "What next?", "candidates": OPTIONS[:3], "answer": "blue"}
    add_video(tmp_path / "video/star/Charades_v1_480/a.mp4")
    add_video(tmp_path / "video/perception/videos/b.mp4")
    bounded = [{**about, "video": "a.mp4", "start": 0.5, "end": 2.0}, {**about, "video": "a.mp4", "answer": "no"}]
    write_table(tmp_path / "json/action_sequence.json", bounded)
    write_table(tmp_path / "json/state_change.json", [{**about, "video": "b.mp4"}])
    frames = tmp_path / "video/tvqa/frames_fps3_hq/castle"
    frames.mkdir(parents=True)
    for i in range(9):
        (frames / f"{i + 1:05d}.jpg").write_bytes(picture(i, "JPEG"))
    write_table(tmp_path / "json/episodic_reasoning.json", [{**about, "video": "castle", "start": 0, "end": 3}])
    found = questions_of("mvbench", tmp_path)
    spans = {question.categories["task"]: question.media[0].span_s for question in found.usable}
    assert spans == {"action_sequence": (0.5, 2.0), "episodic_reasoning": None, "state_change": None}
    episode = next(one for one in found.usable if one.categories["task"] == "episodic_reasoning")
    assert episode.video.endswith("castle") and len(episode.media) == 3
    assert [one["reason"] for one in found.problems] == ["unusable"]
    assert len({question.id for question in found.usable}) == 3


def test_mlvu_leaves_texts_out_and_counts_answers_that_are_no_option(tmp_path):
    about = {"video": "a.mp4", "question": "Which?", "question_type": "plotQA"}
    rows = [{**about, "candidates": OPTIONS, "answer": answer} for answer in ("green", "black")]
    write_table(tmp_path / "json/1_plotQA.json", [*rows, {**about, "answer": "A long summary."}])
    add_video(tmp_path / "video/1_plotQA/a.mp4")
    found = questions_of("mlvu", tmp_path)
    assert len(found.usable) == 1 and found.usable[0].answer == 1
    assert [one["reason"] for one in found.problems] == ["unusable"] and "'black'" in found.problems[0]["problem"]


def test_too_few_or_too_many_options_are_counted_and_named(tmp_path, capsys):
    about = {"video": "a.mp4", "question": "Which?", "question_type": "plotQA", "answer": "0"}
    rows = [{**about, "candidates": [str(i) for i in range(count)]} for count in (1, 26, 27)]
    write_table(tmp_path / "json/1_plotQA.json", rows)
    add_video(tmp_path / "video/1_plotQA/a.mp4")
    found = read_questions("mlvu", BENCHMARKS["mlvu"], source_of("mlvu", tmp_path), "")
    assert "2 rows cannot be used and are not scored: expected a list of 2 to 26 options;" in capsys.readouterr().err
    assert [len(question.options) for question in found.usable] == [26]
    assert [one["reason"] for one in found.problems] == ["unusable", "unusable"]


def test_pope_has_splits_that_number_their_questions_alike(tmp_path):
    found = questions_of("pope", pope(tmp_path, {"random": "yn", "popular": "yn"}))
    assert [question.id for question in found.usable] == ["popular-1", "popular-2", "random-1", "random-2"]
    assert found.usable[0].text == "Is there a dog?"
    assert [question.answer for question in found.usable] == [0, 1, 0, 1]


def test_questions_may_be_numbered_from_zero(tmp_path):
    for name in ("random", "popular"):
        table = pope(tmp_path, {name: "ynyn"}) / f"coco_pope_{name}.json"
        for i in range(4):
            table.write_text(table.read_text().replace(f'"question_id": {i + 1}', f'"question_id": {i}'))
    ids = [question.id for question in questions_of("pope", tmp_path).usable]
    assert ids == [f"{split}-{i}" for split in ("popular", "random") for i in range(4)]


def test_a_missing_image_loses_no_other_question_of_the_same_name(tmp_path):
    table = pope(tmp_path, {"random": "yn"}) / "coco_pope_random.json"
    table.write_text(table.read_text().replace('"question_id": 2', '"question_id": 1'))
    (tmp_path / "0.jpg").unlink()
    found = questions_of("pope", tmp_path)
    assert len(found.usable) == 1 and len(found.problems) == 1


def test_an_image_in_a_table_is_held_once(tmp_path):
    record = {"question": "Is there a dog?", "answer": "yes", "category": "random"}
    rows = [{**record, "question_id": str(i), "image": stored(3 + i // 2)} for i in range(4)]
    write_table(tmp_path / "data/test-0.parquet", rows)
    source = source_of("pope", tmp_path, table="data/test-*.parquet")
    found = read_questions("pope", BENCHMARKS["pope"], source, "")
    assert [question.id for question in found.usable] == [f"random-{i}" for i in range(4)]
    images = [question.media[0] for question in found.usable]
    assert images[0] is images[1] and images[2] is images[3] and images[0].content != images[2].content
    assert b"PNG" in images[0].content and len({question.key for question in found.usable}) == 4


def test_scienceqa(tmp_path):
    about = {"question": "Which?", "choices": OPTIONS[:2], "answer": 1, "hint": "Look.", "subject": "natural science"}
    rows = [{**about, "image": stored(4), "grade": "grade2", "category": "c"}]
    write_table(tmp_path / "ScienceQA-IMG/test-0.parquet", rows)
    (question,) = questions_of("scienceqa", tmp_path).usable
    assert question.text == "Look.\nWhich?" and question.answer == 1
    assert question.categories == {"subject": "natural science", "grade": "grade2", "options": "2"}


def test_the_demo_asks_in_the_words_of_its_training(tmp_path):
    found = questions_of("demo", demo(tmp_path))
    assert [question.text for question in found.usable[:2]] == ["What colour is 0?", "What colour is 1?"]
    assert found.usable[1].options == tuple(OPTIONS) and found.usable[1].answer == 1


def test_captions_of_one_video_are_its_references(tmp_path):
    rows = [{"file": name, "caption": text} for name, text in (("a.mp4", "a dog"), ("b.mp4", "x"), ("a.mp4", "a cat"))]
    write_table(tmp_path / "samples.jsonl", rows)
    for name in "ab":
        add_video(tmp_path / f"{name}.mp4")
    found = questions_of("captions", tmp_path)
    assert {one.video: one.references for one in found.usable} == {"a.mp4": ("a dog", "a cat"), "b.mp4": ("x",)}


def test_a_benchmark_without_its_videos_is_refused_in_a_sentence(tmp_path, capsys):
    source = source_of("video_mme", video_mme(tmp_path, here=0))
    with pytest.raises(UserError, match=r"no question has its video \(data/v0.mp4: no such file\)"):
        read_questions("video_mme", BENCHMARKS["video_mme"], source, "")
    add_video(tmp_path / "data/v1.mp4")
    assert len(read_questions("video_mme", BENCHMARKS["video_mme"], source, "").usable) == 2
    assert "4 questions lack their video and are not scored: data/v0.mp4: no such file;" in capsys.readouterr().err
    with pytest.raises(UserError, match="no folder"):
        read_questions("video_mme", BENCHMARKS["video_mme"], source_of("video_mme", tmp_path / "x"), "")
