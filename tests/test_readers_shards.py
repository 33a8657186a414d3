"""From published files to finished shards, with the command that users run."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from fvlm.data.readers import count_rows, read_rows
from fvlm.data.shards.index import write_index
from fvlm.data.shards.text import train_tokenizer
from fvlm.data.shards.write import checksum_of
from fvlm.errors import UserError
from tests.reader_cases import (
    LONG,
    TABLES,
    add_video,
    described,
    lines_of,
    picture,
    samples_in,
    shard,
    stored,
    video_bytes,
    write_table,
    write_tar,
)


def test_clips_of_one_video_share_a_group(tmp_path):
    """The group decides which samples are held out together."""
    folder = tmp_path / "in"
    for name in ("a1.jpg", "a2.jpg", "b.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture(ord(name[0]) + ord(name[1])))
    rows = [("a1.jpg", "film a"), ("a2.jpg", "film a"), ("b.jpg", "")]
    lines = [json.dumps({"file": file, "video": video, "caption": LONG}) for file, video in rows]
    (folder / "samples.jsonl").write_text("\n".join(lines))
    assert shard(folder, tmp_path / "out", "--kind", "image") == 0
    train_tokenizer([LONG], 260, tmp_path / "tokenizer")
    index = write_index([tmp_path / "out/00000.tar"], tmp_path / "i.npz", "in", "image", tmp_path / "tokenizer",
                        "?", tmp_path)  # fmt: skip
    first, second, other = index.group.tolist()
    assert first == second != other


def test_cauldron_to_a_shard(tmp_path):
    turns = [{"user": f"Question {i}?", "assistant": f"Answer {i}.", "source": "AI2D"} for i in range(2)]
    records = [
        {"images": [stored(50), stored(150)], "texts": turns},
        {"images": [stored(50), {"bytes": b"no image", "path": None}], "texts": turns},
        {"images": [stored(200)], "texts": turns[:1]},
    ]
    write_table(tmp_path / "in" / TABLES["cauldron"], records)
    assert shard(tmp_path / "in", tmp_path / "out", "--reader", "cauldron", "--kind", "image") == 0
    two, one = described(tmp_path / "out/00000.tar")
    assert (two["frame_count"], len(two["files"]), two["file"]) == (2, 2, two["files"][0])
    assert [m["content"] for m in two["messages"]] == ["Question 0?", "Answer 0.", "Question 1?", "Answer 1."]
    assert (one["frame_count"], one["user"], one["assistant"]) == (1, "Question 0?", "Answer 0.")
    shades = [
        Image.open(io.BytesIO(members[name])).getpixel((9, 9))[0]
        for members in samples_in(tmp_path / "out/00000.tar").values()
        for name in sorted(members)
        if name.endswith("jpg")
    ]
    assert [round(shade / 50) for shade in shades] == [1, 3, 4]
    entries = lines_of(tmp_path / "out/ledger.jsonl")
    assert [entry["reason"] for entry in entries] == [None, "not_media", None]
    assert entries[1]["file"] == two["file"]


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PAIR = {"chosen": "A cat.", "rejected": "A dog."}
CHOICE = {"image": stored(9), "question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": ""}


@pytest.mark.parametrize(
    ("reader", "kind", "record", "expected"),
    [
        ("rlaif_v", "preference", {"image": stored(9), "question": "What?", **PAIR, "idx": "1"},
         {"user": "What?", "assistant": "A cat.", **PAIR}),
        ("smoltalk", "text", {"messages": CHAT * 2, "source": "x"},
         {"messages": CHAT * 2, "frame_count": 0, "file": None}),
        ("scienceqa", "image", CHOICE, {"options": ["a", "b"], "correct": 1, "assistant": "B"}),
    ],
)  # fmt: skip
def test_a_row_of_a_table_to_a_shard(tmp_path, reader, kind, record, expected):
    write_table(tmp_path / "in" / TABLES[reader], [record])
    assert shard(tmp_path / "in", tmp_path / "out", "--reader", reader, "--kind", kind) == 0
    (sample,) = described(tmp_path / "out/00000.tar")
    assert {name: sample[name] for name in expected} == expected


def test_a_part_of_a_video_and_a_folder_of_frames_to_a_shard(tmp_path):
    add_video(tmp_path / "in/video/star/Charades_v1_480/a.mp4", seconds=6)
    frames = tmp_path / "in/video/tvqa/frames_fps3_hq/b"
    frames.mkdir(parents=True)
    for i in range(12):
        (frames / f"{i + 1:05d}.jpg").write_bytes(picture(20 * i, "JPEG"))
    about = {"question": "What?", "candidates": ["x", "y"], "answer": "y"}
    write_table(tmp_path / "in/json/action_sequence.json", [{**about, "video": "a.mp4", "start": 1.5, "end": 4.5}])
    write_table(tmp_path / "in/json/episodic_reasoning.json", [{**about, "video": "b", "start": 0, "end": 3}])
    assert shard(tmp_path / "in", tmp_path / "out", "--reader", "mvbench") == 0
    part, images = described(tmp_path / "out/00000.tar")
    assert (part["span_s"], part["frame_times"]) == ([1.5, 4.5], [0.0, 1.0, 2.0])
    assert (images["frame_times"], len(images["files"]), images["kind"]) == ([0.0, 1.0, 2.0], 3, "video")


FAILED = {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}


def video2dataset(folder: Path) -> Path:
    """Two tars as video2dataset writes them: a clip, one that failed, one that only the .parquet knows."""
    good = {"url": "https://x/1", "status": "success", "error_message": None}
    members = {"mp4": video_bytes(), "txt": LONG.encode()}
    clips = [
        ("00000_0", {**members, "json": json.dumps(good).encode()}),
        ("00000_1", {"txt": b"lost", "json": json.dumps(FAILED).encode()}),
        ("00000_2", {"mp4": video_bytes(), "txt": b"", "json": b"{}"}),
    ]
    write_tar(folder / "00000.tar", clips)
    keys = ["00000_0", "00000_1", "00000_2", "00000_3"]
    records = [{"url": "u", "caption": "c", "key": key, **(good if key == "00000_0" else FAILED)} for key in keys]
    write_table(folder / "00000.parquet", records)
    write_tar(folder / "00001.tar", [("00001_0", {"txt": b"by its json", "webm": b"noise"}), ("00001_1", members)])
    return folder


@pytest.mark.parametrize("table", ["*.tar", "{00000..00001}.tar"])
def test_video2dataset_gives_one_shard_per_tar(tmp_path, table):
    folder = video2dataset(tmp_path / "in")
    options = ("--reader", "video2dataset", "--table", table, "--max-reject", "0.8", "--name", "v")
    assert shard(folder, tmp_path / "out", *options) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["00000.tar", "00001.tar"]
    entries = lines_of(tmp_path / "out/ledger.jsonl")
    assert [entry["row"] for entry in entries] == [0, 1, 2, 3, 100_000, 100_001]
    assert [entry["reason"] for entry in entries] == [None, "missing", "bad_row", "missing", "not_media", None]
    assert entries[1]["message"] == entries[3]["message"] == "failed_to_download: HTTP Error 404: Not Found"
    assert entries[0]["file"] == "00000.tar/00000_0.mp4"
    (sample,) = described(tmp_path / "out/00000.tar")
    assert (sample["assistant"], sample["frame_count"], sample["id"]) == (LONG, 2, "00000_0")
    assert count_rows(folder, table, "video2dataset") == 6
    assert [row.number for row in read_rows(folder, table, 100_000, 100_001, "video2dataset")] == [100_000]


def test_missing_cut_and_too_large_tars(tmp_path, monkeypatch):
    write_tar(tmp_path / "00000.tar", [])
    with pytest.raises(UserError, match=r"'00001.tar'.*`path`"):
        read_rows(tmp_path, "{00000..00001}.tar", reader="video2dataset")
    content = write_tar(tmp_path / "00000.tar", [("a", {"mp4": b"x" * 2000})]).read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[:1000])
    with pytest.raises(UserError, match=r"00000.tar.*byte 0"):
        read_rows(tmp_path, reader="video2dataset")
    write_tar(tmp_path / "00000.tar", [(str(i), {"txt": b"c"}) for i in range(4)])
    monkeypatch.setattr("fvlm.data.readers.video2dataset.ROWS_PER_TAR", 3)
    with pytest.raises(UserError, match=r"00000.tar: more than 3 samples"):
        read_rows(tmp_path, reader="video2dataset")


def test_the_workflow_makes_shards_of_every_kind_of_input(workflow):
    """Tars of videos, a table of a dataset, a bare folder: one shard of each by the rule `shard`."""
    folder = workflow.folder
    video2dataset(folder / "data/tars")
    write_table(folder / "data/talk/data/all/train-0.parquet", [{"messages": CHAT}] * 33)
    add_video(folder / "data/bare/a b.mp4")
    entries = [
        'tars: {kind: video, reader: video2dataset, path: "data/tars/{00000..00001}.tar", samples: 6, crop: false}',
        "talk: {kind: text, reader: smoltalk, path: data/talk}",
        'bare: {kind: video, reader: files, path: data/bare, prompt: "What\'s in it?"}',
    ]
    with (folder / "config/sources.yaml").open("a") as file:
        file.write("\n".join(["", *entries, ""]))
    (folder / "config/mine.yaml").write_text(
        "study: mine\nbased_on: smoke.yaml\nprepare: [tars, talk, bare]\nresults: r\n"
    )
    tars = [f"r/shards/{name}.tar" for name in ("tars/00001", "talk/00001", "bare/00000")]
    workflow.run(*tars, "--configfile", "config/mine.yaml")
    assert described(folder / tars[1])[0]["assistant"] == "a" and len(described(folder / tars[1])) == 1
    assert described(folder / tars[2])[0]["user"] == "What's in it?"
    assert [entry["row"] for entry in lines_of(folder / "r/shards/tars/00001.ledger.jsonl")] == [100_000, 100_001]
    assert all(checksum_of(folder / tar).is_file() for tar in tars)
    assert workflow.planned(*tars, "--configfile", "config/mine.yaml") == {}
