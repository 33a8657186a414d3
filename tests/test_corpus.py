"""The demo corpus: the same bytes each time, true sentences, files that can be decoded unless broken on purpose."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fvlm.data.decode.media import MediaError
from fvlm.data.decode.video import decode_image, decode_video
from fvlm.data.demo.corpus import SOURCES, VIDEOS, make_corpus
from fvlm.data.demo.encode import CODECS, RATES, choose_shape
from fvlm.data.demo.scenes import COLOURS, NUMBERS, PLACES, TICKS_PER_S
from fvlm.data.readers import read_rows
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
    assert 2.8 < np.median(lengths) < 3.5
    assert any(shape.variable for shape in shapes)
    assert any(shape.offset_s for shape in shapes)


@pytest.mark.parametrize("source", VIDEOS)
def test_captions_and_answers_are_true(source, tmp_path):
    make_corpus(source, tmp_path / source, samples=60, seed=5, processes=1)
    checked = set()
    for row in read_rows(tmp_path / source, "samples.jsonl"):
        frames = decode_video(tmp_path / source / row.file).frames
        if source == "grid":
            assert all(colours_of(frame) == row.text["caption"].split() for frame in frames)
        elif source == "moves":
            checked |= check_moves(row.text["caption"].split(" then "), frames)
        else:
            checked |= {check_answer(row.text["user"].split(), row.text["assistant"], frames)}
    expected = {"grid": set(), "moves": {"colour", "place", "hidden", "back"}}
    assert checked >= expected.get(source, {"What colour", "Where is", "How many", "When does"})


def test_answers_about_boards_are_true_and_easy_boards_are_among_them(tmp_path):
    make_corpus("boards", tmp_path / "boards", samples=60, seed=5, processes=1)
    rows = read_rows(tmp_path / "boards", "samples.jsonl")
    counts = set()
    for row in rows:
        picture = decode_image(tmp_path / "boards" / row.file).frames[0]
        seen = dict(zip(PLACES, colours_of(picture), strict=True))
        system, question, answer = (message["content"] for message in row.text["messages"])
        assert system == "" and answer == seen[question] != "grey"
        counts.add(sum(colour != "grey" for colour in seen.values()))
    assert counts == {1, 2, 3, 4}
    asked = [(row.file, row.text["messages"][1]["content"]) for row in rows]
    assert len(set(asked)) == len(rows) > len({file for file, _ in asked})  # several questions about one picture


def check_moves(words: list[str], frames: np.ndarray) -> set[str]:
    """Check each event of a caption in its frame, if every second has one; return the kinds of events."""
    if len(words) != len(frames):
        assert words[0] in colours_of(frames[0])
        return set()
    colour, hidden, kinds = words[0], False, set()
    for word, frame in zip(words, frames, strict=True):
        hidden = word == "hidden"
        colour = word if word in COLOURS else colour
        seen = dict(zip(PLACES, colours_of(frame), strict=True))
        assert [name for name in seen.values() if name != "grey"] == ([] if hidden else [colour]), (word, seen)
        if word in PLACES:
            assert seen[word] == colour
        kinds.add("colour" if word in COLOURS else "place" if word in PLACES else word)
    return kinds


def check_answer(question: list[str], answer: str, frames: np.ndarray) -> str:
    """Check the answer to a question in the last frame; return the question's first two words."""
    seen = dict(zip(PLACES, colours_of(frames[-1]), strict=True))
    place = next((place for place in PLACES if place in " ".join(question)), None)
    match question[:2]:
        case ["What", "colour"]:
            assert seen[place] == answer
        case ["Where", "is"]:
            assert [f"at the {place}" for place, colour in seen.items() if colour == question[3]] == [answer]
        case ["How", "many"]:
            assert NUMBERS[sum(colour != "grey" for colour in seen.values())] == answer
        case ["When", "does"]:
            second, spot = int(answer.split()[-1]), list(PLACES).index(place)
            visible = [colours_of(frame)[spot] != "grey" for frame in frames]
            assert visible == [number >= second for number in range(len(frames))]
    return " ".join(question[:2])


def colours_of(frame: np.ndarray) -> list[str]:
    """At each of PLACES."""
    return [colour_at(frame, *spot) for spot in PLACES.values()]


def colour_at(frame: np.ndarray, x: float, y: float) -> str:
    pixel = frame[int(y * 224) - 3 : int(y * 224) + 3, int(x * 224) - 3 : int(x * 224) + 3].mean((0, 1))
    if pixel.max() - pixel.min() < 80:
        return "grey"
    return min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - pixel).sum())


@pytest.mark.parametrize(("source", "decode"), [("moves", decode_video), ("pictures", decode_image)])
def test_broken_files_cannot_be_decoded(source, decode, tmp_path):
    make_corpus(source, tmp_path / "x", samples=6, seed=1, broken=6, processes=1)
    reasons = set()
    for row in read_rows(tmp_path / "x", "samples.jsonl"):
        with pytest.raises(MediaError) as caught:
            decode(tmp_path / "x" / row.file)
        reasons.add(caught.value.reason)
    assert {"empty", "missing", "not_media", "corrupt"} <= reasons


def test_impossible_arguments_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'gird'.* grid"):
        make_corpus("gird", tmp_path / "x", samples=3, seed=1)
    with pytest.raises(UserError, match="4 broken"):
        make_corpus("chat", tmp_path / "x", samples=3, seed=1, broken=4)


def test_conversations_are_right(tmp_path):
    make_corpus("chat", tmp_path / "chat", samples=60, seed=2, processes=1)
    counted = 0
    for line in (tmp_path / "chat" / "samples.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            words = question["content"].rstrip("?.").split()
            if words[0] == "Count":
                assert answer["content"].split() == [str(i) for i in range(int(words[2]), int(words[4]) + 1)]
                counted += 1
    assert counted
