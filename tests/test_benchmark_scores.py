"""Scores of benchmarks: by hand, at the level of guessing for constant answers, and the same after a kill."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fvlm.__main__ import main
from fvlm.analysis.collect import collect_benchmarks
from fvlm.config.resolve import study_from_files
from fvlm.errors import UserError
from fvlm.evaluate.benchmarks.record import answer_questions
from fvlm.evaluate.benchmarks.registry import BENCHMARKS
from fvlm.evaluate.benchmarks.scores import COLUMNS, rows_of
from tests.analysis_cases import COMPARISONS, study_summaries, write_study
from tests.benchmark_cases import Always, demo, pope, questions_of, source_of, video_mme
from tests.decode_cases import endless
from tests.reader_cases import add_video, write_table


def record(chosen: int, answer: int, video: str, options: int = 4, **about) -> dict:
    """A question that was answered in one way only."""
    own = {"mode": "direct", "frames": "own", "way": "letter", "chosen": chosen, "right": chosen == answer}
    categories = about.pop("categories", {})
    return {"video": video, "categories": categories, "answer": answer, "options": ["x"] * options, "answers": [own]}


def scored(name: str, records: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows_of("run", name, BENCHMARKS[name], ["direct"], records), columns=COLUMNS)


def asked(model, name: str, folder: Path, out: Path, **settings) -> pd.DataFrame:
    source = source_of(BENCHMARKS[name].source, folder, **settings)
    answer_questions(model, name, BENCHMARKS[name], questions_of(name, folder), source, out)
    return pd.read_csv(out)


def score_of(table: pd.DataFrame, **where) -> float:
    wanted = {"group": "all", "metric": "accuracy", **where}
    (score,) = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]["score"]
    return score


def test_accuracy_chance_and_counts_by_hand():
    records = [record(0, 0, "a"), record(1, 0, "a"), record(2, 2, "b", options=3), record(None, 1, "c", options=5)]
    problems = [
        {"id": "x", "problem": "gone", "reason": "missing"},
        {"id": "y", "problem": "odd", "reason": "unusable"},
    ]
    (row,) = scored("video_mme", [*records, *problems]).to_dict("records")
    assert row["score"] == 50 and row["main"]
    assert row["chance"] == pytest.approx(100 * (1 / 4 + 1 / 4 + 1 / 3 + 1 / 5) / 4, abs=1e-3)
    counts = {name: row[name] for name in ("questions", "videos", "total", "missing", "unusable")}
    assert counts == {"questions": 4, "videos": 3, "total": 6, "missing": 1, "unusable": 1}
    assert row["low"] < 50 < row["high"]


def test_guessing_is_that_of_the_questions_that_have_the_control():
    records = [record(0, 0, "a", options=2), record(0, 0, "b", options=4)]
    records[1]["answers"].append(records[1]["answers"][0] | {"frames": "shuffled"})
    table = scored("video_mme", records).set_index("frames")
    assert table["chance"].to_dict() == {"own": 37.5, "shuffled": 25} and table["questions"].to_list() == [2, 1]


def test_a_score_over_tasks_is_the_mean_of_the_tasks():
    records = [record(0, 0, f"v{i}", options=4, categories={"task": "one"}) for i in range(3)]
    records += [record(0, 1, "w", options=2, categories={"task": "two"})]
    table = scored("mvbench", records).set_index("category")
    assert table["score"].to_dict() == {"all": 50, "one": 100, "two": 0}
    assert table["chance"].to_dict() == {"all": 37.5, "one": 25, "two": 50}
    assert scored("video_mme", records).set_index("category")["score"]["all"] == 75  # each question alike


def test_questions_of_one_video_make_wider_intervals():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.integers(0, 2, 30), 8)
    one = scored("video_mme", [record(int(r), 1, f"v{i // 8}") for i, r in enumerate(right)]).iloc[0]
    each = scored("video_mme", [record(int(r), 1, f"v{i}") for i, r in enumerate(right)]).iloc[0]
    assert one["score"] == each["score"]
    assert one["high"] - one["low"] > 2 * (each["high"] - each["low"])


def test_pope_by_hand():
    """Split random: TP 1, FN 1, FP 1, TN 1; split popular: all no."""
    answers = {"random": [(0, 0), (1, 0), (0, 1), (1, 1)], "popular": [(1, 0), (1, 1)]}
    records = [
        record(chosen, answer, f"i{i}", options=2, categories={"split": split})
        for split, pairs in answers.items()
        for i, (chosen, answer) in enumerate(pairs)
    ]
    table = scored("pope", records).set_index(["metric", "category"])["score"]
    assert (table["accuracy", "random"], table["f1", "random"], table["yes", "random"]) == (50, 50, 50)
    assert (table["accuracy", "popular"], table["f1", "popular"], table["yes", "popular"]) == (50, 0, 0)
    assert (table["accuracy", "all"], table["f1", "all"], table["yes", "all"]) == (50, 25, 25)


def test_pope_counts_generated_answers_by_the_official_rule(tmp_path):
    folder = pope(tmp_path, {"random": "yyyn"})
    table = asked(Always("yes", "Yes, there is no doubt."), "pope", folder, tmp_path / "pope.csv")
    assert score_of(table, way="generated", frames="own", metric="yes") == 0
    assert (
        score_of(table, way="text", frames="own") == 75
        and score_of(table, way="text", frames="own", metric="yes") == 100
    )
    assert score_of(table, way="text", frames="own", metric="f1") == pytest.approx(100 * 6 / 7, abs=1e-3)
    assert set(table["frames"]) == {"own", "other", "none"}  # one frame has no order, and yes and no have no letters


def test_a_model_that_always_says_a_is_at_chance_over_the_rotations(tmp_path):
    model = Always("A", "A")
    table = asked(model, "video_mme", video_mme(tmp_path / "d", videos=3), tmp_path / "v.csv")
    assert score_of(table, frames="rotated", way="letter") == 25
    assert score_of(table, frames="own", way="letter") == pytest.approx(100 * 2 / 6, abs=1e-3)  # the answers: ABCDAB
    assert score_of(table, frames="own", way="generated") == pytest.approx(100 * 2 / 6, abs=1e-3)
    assert (
        set(table["frames"]) == {"own", "none", "other", "shuffled", "rotated"}
        and (table["chance"].dropna() == 25).all()
    )
    (main_row,) = table[table["main"]].to_dict("records")
    assert (main_row["way"], main_row["frames"], main_row["total"], main_row["missing"]) == ("letter", "own", 6, 0)


def test_a_text_is_scored_whole_and_per_token(tmp_path):
    """The answerer finds 0.5 a letter for `grey` (5 tokens with the end: 2.1) and 2 for others, of 4 to 6 tokens."""
    table = asked(Always("grey"), "demo", demo(tmp_path / "d"), tmp_path / "d.csv")
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()[1:]]
    own = lines[0]["rows"][0]["passes"][0]
    assert own["text"] == pytest.approx([6.1, 10.1, 8.1, 2.1])
    assert own["text_per_token"] == pytest.approx([6.1 / 4, 10.1 / 6, 8.1 / 5, 2.1 / 5])
    assert own["letter"] == [2, 2, 2, 2]  # without the token that ends the answer
    assert score_of(table, frames="own", way="text") == 25
    assert score_of(table, frames="own", way="generated", metric="no_answer") == 100


def test_the_record_holds_what_a_score_is_made_of(tmp_path):
    model = Always("A", "B.")
    asked(model, "video_mme", video_mme(tmp_path / "d"), tmp_path / "v.csv")
    first, *lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert first["step"] == 0 and len(lines) == 6
    row = lines[1]["rows"][0]
    assert (row["id"], row["video"], row["frame_count"], row["times_s"]) == ("001", "data/v0.mp4", 2, [0.0, 1.0])
    assert "\nWhich 1?\nA. red\n" in row["prompt"] and row["generated"] == "B." and row["answer"] == 1
    assert row["other"] == "data/v1.mp4"
    of_letters = [one for one in row["answers"] if one["way"] == "letter" and one["frames"] == "own"]
    assert of_letters == [{"mode": "direct", "frames": "own", "way": "letter", "chosen": 0, "right": False}]
    assert {(), (1, 0)} <= {order for _, order in model.seen}  # in order, and the other order of two frames
    assert {0, 2, 3} == {len(frames.frames) for frames, _ in model.seen}  # none, and those of the next video


class Killed(Always):
    """Is killed by Ctrl-C while it answers its third question."""

    def video(self, frames, order=()):
        if len(self.asked) == 3:
            raise KeyboardInterrupt
        return super().video(frames, order)


@pytest.mark.parametrize("cut", [0, 40])
def test_a_killed_benchmark_goes_on_where_it_was(tmp_path, cut):
    folder, out, model = video_mme(tmp_path / "d", here=2), tmp_path / "v.csv", Always("A")
    expected = asked(Always("A"), "video_mme", folder, tmp_path / "whole.csv")
    with pytest.raises(KeyboardInterrupt):
        asked(Killed("A"), "video_mme", folder, out)
    content = out.with_suffix(".jsonl").read_bytes()
    out.with_suffix(".jsonl").write_bytes(content[: len(content) - cut])  # a kill in the middle of a line
    pd.testing.assert_frame_equal(asked(model, "video_mme", folder, out), expected)
    assert len(model.asked) == (2 if cut == 0 else 3)


def test_only_questions_that_are_new_or_changed_are_asked(tmp_path):
    folder, out = video_mme(tmp_path / "d", here=2), tmp_path / "v.csv"

    def asked_again(**about) -> int:
        model = Always("A", **about)
        table = asked(model, "video_mme", folder, out)
        fresh = asked(Always("A", **about), "video_mme", folder, tmp_path / f"fresh{len(list(tmp_path.iterdir()))}.csv")
        pd.testing.assert_frame_equal(table, fresh)
        return len(model.asked)

    assert [asked_again(), asked_again()] == [4, 0]
    add_video(folder / "data/v2.mp4")  # the video that was missing
    assert [asked_again(), asked_again()] == [2, 0]
    add_video(folder / "data/v0.mp4", seconds=5)  # another file of the same name
    assert asked_again() == 2
    table = pd.read_parquet(folder / "videomme/test-0.parquet")
    table.loc[3, "question"] = "Which one?"
    table.to_parquet(folder / "videomme/test-0.parquet")
    assert asked_again() == 1
    (folder / "data/v1.mp4").unlink()
    assert asked_again() == 0
    assert asked_again(settings=("another device",)) == 4


def test_a_video_that_cannot_be_decoded_is_counted_as_missing(tmp_path):
    folder = video_mme(tmp_path / "d")
    (folder / "data/v1.mp4").write_bytes(b"no video" * 100)
    table = asked(Always("A"), "video_mme", folder, tmp_path / "v.csv")
    assert set(table["missing"]) == {2} and set(table["total"]) == {6}
    (main_row,) = table[table["main"]].to_dict("records")
    assert main_row["questions"] == 4 and main_row["videos"] == 2
    for i in (0, 2):
        (folder / f"data/v{i}.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(UserError, match="no question can be answered"):
        asked(Always("A"), "video_mme", folder, tmp_path / "w.csv")


def test_an_image_that_cannot_be_decoded_in_time_costs_itself_only(tmp_path):
    folder = pope(tmp_path, {"random": "yny"})
    endless(folder / "1.jpg")
    table = asked(Always("yes"), "pope", folder, tmp_path / "p.csv", deadline_s=2)
    assert set(table["missing"]) == {1} and set(table["total"]) == {3}
    rows = [json.loads(line)["rows"][0] for line in (tmp_path / "p.jsonl").read_text().splitlines()[1:]]
    problems = {row["id"]: row["problem"] for row in rows if "problem" in row}
    assert problems == {"random-2": "timeout: 1.jpg: not decoded within 2 s"}


def test_captions_are_scored_by_the_usual_package(tmp_path):
    pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is not installed")
    rows = [{"file": f"{i}.mp4", "caption": f"a {word} dog walks over the grass"} for i, word in enumerate("abc")]
    write_table(tmp_path / "d/samples.jsonl", rows)
    for i in range(3):
        add_video(tmp_path / f"d/{i}.mp4")
    table = asked(Always("", "A a dog walks over the grass."), "captions", tmp_path / "d", tmp_path / "c.csv")
    own = table[table["frames"] == "own"].set_index("metric")
    assert own.loc["rouge_l", "score"] > 85 and own.loc["cider", "score"] > 0
    assert own.loc["cider", "score"] == pytest.approx(own.loc["cider", "chance"], rel=1e-3)  # all captions are equal


def test_published_scores_stand_below_those_of_the_same_benchmarks(tmp_path):
    asked(Always("A", name="run"), "video_mme", video_mme(tmp_path / "d"), tmp_path / "v.csv")
    table = collect_benchmarks([tmp_path / "v.csv"], COMPARISONS.benchmarks.published)
    below = table[table["source"].fillna("") != ""]
    assert set(below["benchmark"]) == {"video_mme"} and below.set_index("run")["score"]["SmolVLM2-2.2B"] == 52.1
    with pytest.raises(UserError, match="run on video_mme"):
        collect_benchmarks([tmp_path / "v.csv"] * 2)


def test_imported_results_are_drawn_beside_published_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    summaries = [one for one in study_summaries() if one["run"] in ("baseline", "A6")]
    write_study(tmp_path / "study", summaries)
    tables = tmp_path / "tables"
    assert main(["import", str(tmp_path / "study"), "--study", "config/config.yaml", "--out-dir", str(tables)]) == 0
    assert main(["figure", "benchmarks", "--tables", str(tables), "--out-dir", str(tmp_path / "figures")]) == 0
    numbers = pd.read_csv(tmp_path / "figures/benchmarks.csv")
    published = numbers[numbers["source"].notna()]
    assert set(numbers["run"]) - set(published["run"]) == {"baseline", "A6"}
    assert published.set_index("run")["score"]["SmolVLM2-256M"] == 32.7 and len(published) == 4
    assert "Hollow: published" in (tmp_path / "figures/benchmarks.rst").read_text()


def test_the_last_stage_answers_and_with_dpo_also_the_stage_before_it():
    def answering(*stages: str) -> list[str]:
        return study_from_files(["config/config.yaml"], {"only": {"stages": [*stages]}}).benchmarked[:2]

    assert answering("stage1", "stage2", "stage3") == ["stage3", "baseline"]
    assert answering("stage1", "stage2", "stage3", "dpo") == ["stage3", "dpo"]


def test_the_figure_names_guessing_and_missing_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    asked(Always("A", name="baseline"), "video_mme", video_mme(tmp_path / "d", here=2), tmp_path / "v.csv")
    tables = tmp_path / "tables"
    assert main(["collect", "benchmarks", str(tmp_path / "v.csv"), "--study", "config/config.yaml", "--out",
                 str(tables / "benchmarks.csv")]) == 0  # fmt: skip
    assert main(["figure", "benchmarks", "--tables", str(tables), "--out-dir", str(tmp_path / "figures")]) == 0
    sentences = (tmp_path / "figures/benchmarks.rst").read_text()
    assert "guessing gives 25 %" in sentences and "4 of 6 questions on 2 videos, 2 lack their video" in sentences
    assert "arXiv:2504.05299" in sentences and sentences.startswith("n = 1 run.")
    with open(tmp_path / "figures/benchmarks.csv") as file:
        runs = [row["run"] for row in csv.DictReader(file)]
    assert runs[0] == "baseline" and runs[-1] == "fVLM-135M as published"
