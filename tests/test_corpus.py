"""The demo corpus: the same bytes each time, true sentences, files that decode unless broken on purpose."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fvlm.data.corpus import SOURCES, VIDEOS, make_corpus
from fvlm.data.encode import CODECS, RATES, choose_shape
from fvlm.data.media import MediaError
from fvlm.data.readers import read_rows
from fvlm.data.scenes import COLOURS, PLACES, SCENES, TICKS_PER_S
from fvlm.data.video import decode_image, decode_video
from fvlm.errors import UserError


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("source", SOURCES)
def test_two_runs_write_the_same_files(source, tmp_path):
    make_corpus(source, tmp_path / "a", samples=9, seed=3, broken=2, processes=1)
    make_corpus(source, tmp_path / "b", samples=9, seed=3, broken=2, processes=2)
    make_corpus(source, tmp_path / "c", samples=9, seed=4, processes=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")
    rows = read_rows(tmp_path / "a", "samples.jsonl")
    assert len(rows) == 9
    assert sum("broken" in (row.file or "") or row.problem is not None for row in rows) == 2


def test_clips_are_of_many_kinds():
    shapes = [choose_shape(np.random.default_rng([3, 0, item])) for item in range(600)]
    assert {shape.codec for shape in shapes} == set(CODECS)
    assert {shape.container for shape in shapes} == {"mp4", "mov", "mkv", "webm", "avi"}
    assert {shape.rate for shape in shapes} == set(RATES)
    lengths = np.array([shape.ticks for shape in shapes]) / TICKS_PER_S
    assert lengths.min() < 1
    assert lengths.max() > 64
    assert 3 < np.median(lengths) < 4
    assert any(shape.variable for shape in shapes)
    assert any(shape.offset_s for shape in shapes)


@pytest.mark.parametrize("source", VIDEOS)
def test_scenes_look_as_their_captions_say(source, tmp_path):
    make_corpus(source, tmp_path / source, samples=12, seed=5, processes=1)
    for row in read_rows(tmp_path / source, "samples.jsonl"):
        clip = decode_video(tmp_path / source / row.file)
        if source == "grid":
            seen = [colour_at(clip.frames[-1], x, y) for y in (1 / 6, 0.5, 5 / 6) for x in (1 / 6, 0.5, 5 / 6)]
            assert " ".join(seen) == row.text["caption"]
        elif source == "questions" and row.text["user"].startswith("When"):
            second, colour = int(row.text["assistant"].split()[-1]), row.text["user"].split()[3]
            there = [colour in colours_of(frame) for frame in clip.frames]
            assert there[second] != there[second - 1]
            assert len(set(there[:second])) == 1
        elif source == "moves":
            assert row.text["caption"].split()[1] in colours_of(clip.frames[0])


def colours_of(frame: np.ndarray) -> set[str]:
    return {colour_at(frame, *spot) for spot in PLACES.values()} - {"grey"}


def colour_at(frame: np.ndarray, x: float, y: float) -> str:
    pixel = frame[int(y * 224) - 3 : int(y * 224) + 3, int(x * 224) - 3 : int(x * 224) + 3].mean((0, 1))
    if pixel.max() - pixel.min() < 80:
        return "grey"
    return min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - pixel).sum())


def test_captions_are_short():
    for source in ("grid", "moves"):
        for item in range(200):
            scene = SCENES[source](np.random.default_rng(item), 1 + item % 12)
            assert len(scene.rows[0]["caption"].split()) <= 30


@pytest.mark.parametrize(("source", "decode"), [("moves", decode_video), ("pictures", decode_image)])
def test_broken_files_cannot_be_decoded(source, decode, tmp_path):
    make_corpus(source, tmp_path / "x", samples=6, seed=1, broken=6, processes=1)
    reasons = set()
    for row in read_rows(tmp_path / "x", "samples.jsonl"):
        with pytest.raises(MediaError) as caught:
            decode(tmp_path / "x" / row.file)
        reasons.add(caught.value.reason)
    assert {"empty", "missing", "not_media", "corrupt"} <= reasons


def test_impossible_wishes_are_refused(tmp_path):
    with pytest.raises(UserError, match="choose one of grid"):
        make_corpus("gird", tmp_path / "x", samples=3, seed=1)
    with pytest.raises(UserError, match="broken"):
        make_corpus("chat", tmp_path / "x", samples=3, seed=1, broken=4)


def test_conversations_are_right(tmp_path):
    make_corpus("chat", tmp_path / "chat", samples=60, seed=2, processes=1)
    for line in (tmp_path / "chat" / "samples.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        for asked, said in zip(messages[::2], messages[1::2], strict=True):
            words = asked["content"].rstrip("?.").split()
            if "plus" in words:
                assert int(said["content"]) == int(words[2]) + int(words[4])
