"""Evaluation: every look is taken over the same samples, and 'another sample's frames' are another video's."""

import csv
from collections import defaultdict

import pytest


@pytest.mark.workflow
def test_every_look_scores_the_same_samples(smoke):
    for name, modes in (("stage3", 3), ("B1", 1)):
        path = smoke.folder / f"results/smoke/evaluation/{name}.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        keys = defaultdict(set)
        for row in rows:
            keys[row["mode"], row["frames"]].add((row["key"], row["tokens"]))
        assert len(keys) == modes + 2
        assert len({frozenset(found) for found in keys.values()}) == 1
        assert {row["source"] for row in rows} >= {"questions", "pictures", "chat"}


@pytest.mark.workflow
def test_frames_change_what_is_said_of_them_and_nothing_else(smoke):
    rows = list(csv.DictReader((smoke.folder / "results/smoke/evaluation/stage3.csv").read_text().splitlines()))
    loss = {(row["key"], row["mode"], row["frames"]): float(row["loss_sum"]) for row in rows}
    for row in rows:
        own = loss[row["key"], "coarse_fine", "own"]
        other, blind = loss[row["key"], "coarse_fine", "other"], loss[row["key"], "blind", "none"]
        if row["kind"] == "text":
            assert own == pytest.approx(other, rel=1e-2) and own == pytest.approx(blind, rel=1e-2)
        else:
            assert own != blind


@pytest.mark.workflow
def test_a_finished_run_answers_about_a_video(smoke):
    video = next((smoke.folder / "results/smoke/corpus/moves_held_out/media").iterdir())
    said = smoke.fvlm("caption", str(video), "--run", "results/smoke/runs/stage3")
    assert said.returncode == 0 and said.stdout.startswith(str(video))
    missing = smoke.fvlm("caption", "nowhere.mp4", "--run", "results/smoke/runs/stage3")
    assert missing.returncode == 2 and "nowhere.mp4" in missing.stderr and "Traceback" not in missing.stderr
