"""The index of a source: the same samples as webdataset reads, each kept or in the ledger."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fvlm.__main__ import main
from fvlm.data.decode.media import REASONS
from fvlm.data.decode.video import decode_video
from fvlm.data.readers import read_rows
from fvlm.data.shards.index import load_index, write_index
from fvlm.data.shards.ledger import add_up
from fvlm.data.shards.perceptual import perceptual_hash
from fvlm.data.shards.samples import decode_frames, sample_text
from fvlm.data.shards.tar import read_sample
from fvlm.data.shards.text import encode_chat, load_tokenizer
from fvlm.data.shards.write import shard_paths
from fvlm.errors import UserError
from tests.index_cases import text_shard, write_tar
from tests.reader_cases import lines_of, picture, tar_of


def make_index(questions: Path, out: Path, prompt: str = "?"):
    shards = [shard_paths(questions / "shards/questions", number)[0] for number in range(2)]
    return write_index(shards, out, "questions", "video", questions / "tokenizer", prompt, questions)


def first_length(questions: Path) -> int:
    with tarfile.open(shard_paths(questions / "shards/questions", 0)[0]) as tar:
        members = tar.getmembers()
    second = next(m for m in members if m.name.split(".")[0] != members[0].name.split(".")[0])
    return second.offset


def test_index_reads_what_webdataset_reads(questions, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    index = make_index(questions, tmp_path / "questions.npz")
    assert (len(index), index.kind, index.source, index.rejected) == (13, "video", "questions", 0)
    stored = load_index(tmp_path / "questions.npz")
    tokenizer = load_tokenizer(questions / "tokenizer")
    urls = [str(shard_paths(questions / "shards/questions", number)[0]) for number in range(2)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == stored.keys.tolist()
    for i, sample in enumerate(samples):
        members = stored.read(i, questions)
        assert members == {name: value for name, value in sample.items() if not name.startswith("__")}
        text = sample_text(members, "?")
        ids, answer = encode_chat(tokenizer, text)
        assert (stored.text_tokens[i], stored.answer_tokens[i]) == (len(ids), answer.sum())
        frames = decode_frames(members)
        assert frames.shape == (stored.frames[i], 224, 224, 3)
        original = decode_video(questions / "corpus" / text["file"])
        assert text["frame_times"] == original.times_s.tolist()
        assert np.abs(frames.astype(int) - original.frames).mean() < 6  # JPEG
    files = {read_rows(questions / "corpus", "samples.jsonl")[int(key[-7:])].file for key in stored.keys}
    assert len(set(stored.group.tolist())) == len(files)


def test_downloaded_shards_in_older_forms(questions, tmp_path):
    jpeg = picture(90, "JPEG", (224, 224))
    samples = [
        {"__key__": "a/single", "jpg": jpeg, "json": {"caption": "a red square"}},
        {"__key__": "b", "000.jpg": jpeg, "001.jpg": jpeg, "json": {"user": "?", "assistant": "red"}},
        {"__key__": "c", "000.jpg": jpeg, "json": {"token_ids": [1, 2, 3], "loss_mask": [0, 1, 1]}},
        {"__key__": "d", "jpg": jpeg, "txt": b"a caption", "json": {"width": 3}},
        {"__key__": "e" * 120, "jpg": jpeg, "json": {"user": "?", "chosen": "red", "rejected": "blue"}},
        {"__key__": "wrong", "000.jpg": jpeg, "json": {"caption": "x", "frame_count": 2}},
        {"__key__": "silent", "000.jpg": jpeg, "json": {"width": 3}},
        {"__key__": "blind", "json": {"caption": "x", "frame_count": 0}},
    ]
    tar = write_tar(tmp_path / "foreign.tar", samples)
    index = write_index(
        [tar], tmp_path / "f.npz", "f", "image", questions / "tokenizer", "Say.", questions, foreign=True
    )
    assert index.keys.tolist() == ["a/single", "b", "c", "d", "e" * 120]
    assert index.frames.tolist() == [1, 2, 1, 1, 1]
    assert index.rejected == 3
    assert index.shards.tolist() == [str(tar.resolve())]
    assert (index.text_tokens[2], index.answer_tokens[2]) == (3, 2)
    assert index.rejected_tokens[:4].tolist() == [0] * 4 and index.rejected_tokens[4] > 0
    assert index.question_tokens[2] == 0 < index.question_tokens[[0, 1, 3, 4]].min()
    texts = [sample_text(index.read(i, questions), "Say.") for i in (0, 3, 4)]
    assert [text["assistant"] for text in texts] == ["a red square", "a caption", "red"]
    assert texts[0]["user"] == "Say."


def test_a_source_of_downloaded_shards_has_a_ledger_of_its_own(questions, tmp_path):
    jpeg, png = picture(90, "JPEG", (224, 224)), picture(90, "PNG", (300, 240))
    text = {"caption": "a red square", "file": "one.mp4"}
    samples = [
        {"__key__": "whole", "jpg": jpeg + b"\n", "json": text},
        {"__key__": "cut", "000.jpg": jpeg, "001.jpg": jpeg[:-100], "json": text},
        {"__key__": "cut_header", "jpg": jpeg[:100], "json": text},
        {"__key__": "empty", "jpg": b"", "json": text},
        {"__key__": "picture", "png": png, "json": text},
        {"__key__": "cut_picture", "png": png[:-20], "json": text},
        {"__key__": "noise", "webp": b"x" * 300, "json": text},
        {"__key__": "long", **{f"{i}.jpg": jpeg for i in range(65)}, "json": text},
        {"__key__": "unequal", "jpg": jpeg, "json": {"token_ids": [1, 2, 3], "loss_mask": [1]}},
        {"__key__": "huge_id", "jpg": jpeg, "json": {"token_ids": [1 << 40]}},
        {"__key__": "mute", "jpg": jpeg, "json": {"token_ids": [1, 2], "loss_mask": [0, 0]}},
        {"__key__": "no_name", "jpg": jpeg, "json": {"caption": "x", "file": "\ud800.mp4"}},
    ]
    tars = [write_tar(tmp_path / "0.tar", samples[:3]), write_tar(tmp_path / "1.tar", samples[3:])]
    index = write_index(
        tars, tmp_path / "f.npz", "f", "image", questions / "tokenizer", "Say.", questions, foreign=True
    )
    assert (index.keys.tolist(), index.rejected) == (["whole", "picture"], 10)
    entries = lines_of(tmp_path / "f.ledger.jsonl")
    assert [entry["key"] for entry in entries] == [sample["__key__"] for sample in samples]
    assert [entry["row"] for entry in entries] == list(range(12))
    assert {entry["shard"] for entry in entries} == {str(tar.resolve()) for tar in tars}
    reasons = {entry["key"]: entry["reason"] for entry in entries}
    assert {key for key, reason in reasons.items() if reason is None} == {"whole", "picture"}
    assert {key for key, reason in reasons.items() if reason == "corrupt"} == {"cut", "cut_header", "cut_picture"}
    assert (reasons["empty"], reasons["noise"]) == ("empty", "not_media")
    assert set(reasons.values()) - {None} <= set(REASONS)
    messages = {entry["key"]: entry["message"] for entry in entries}
    assert "001.jpg" in messages["cut"] and f"{len(jpeg) - 100} bytes" in messages["cut"]
    assert "65 images" in messages["long"]
    assert [entry["frames"] for entry in entries if entry["status"] == "kept"] == [1, 1]
    assert entries[1].keys() == lines_of(shard_paths(questions / "shards/questions", 0)[1])[0].keys()
    table = add_up([tmp_path / "f.ledger.jsonl"], tmp_path / "all.jsonl", tmp_path / "data.csv")
    assert sum(row["count"] for row in table) == 12
    assert not list(tmp_path.glob("*.part"))


def test_a_sample_rejected_by_its_index_counts_once(questions, tmp_path):
    home = tmp_path / "results"
    tar, ledger = home / "shards/t/00000.tar", home / "shards/t/00000.ledger.jsonl"
    chats = [[{"role": "assistant", "content": text}] for text in ("red", "blue", "", "\ud800")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    command = ["shard", str(tmp_path), "--table", "t.jsonl", "--name", "t", "--kind", "text", "--processes", "1"]
    assert main([*command, "--out", str(tar.parent)]) == 0
    contents = [{"messages": chats[0]}, {"width": 3}]
    write_tar(tar, [{"__key__": f"t-{i:07d}", "json": content} for i, content in enumerate(contents)])
    tar.with_name("00000.tar.sha256").unlink(missing_ok=True)
    index = write_index([tar], home / "index/t.npz", "t", "text", questions / "tokenizer", "?", home)
    ledgers = [ledger, home / "index/t.ledger.jsonl"]
    assert [(entry["key"], entry["reason"]) for entry in lines_of(ledgers[1])] == [("t-0000001", "bad_sample")]
    for order in (ledgers, ledgers[::-1]):
        rows = add_up(order, tmp_path / "all.jsonl", tmp_path / "data.csv")
        assert {row["reason"]: row["count"] for row in rows} == {"": 1, "bad_sample": 1, "bad_row": 2}
        assert [entry["row"] for entry in lines_of(tmp_path / "all.jsonl")] == [0, 1, 2, 3]
    assert len(index) == 1


def test_frames_are_in_the_order_of_their_numbers(questions, tmp_path):
    def frame(grey: int) -> bytes:
        return picture(grey, "JPEG", (224, 224))

    images = {f"{i}.jpg": frame(10 * i) for i in range(12)}
    assert [round(frame.mean() / 10) for frame in decode_frames(images)] == list(range(12))
    with pytest.raises(ValueError, match=r"3\.jpg"):
        decode_frames(images | {"3.jpg": images["3.jpg"][:-100]})
    with pytest.raises(ValueError, match=r"3\.jpg"):
        decode_frames(images | {"3.jpg": b"noise"})
    samples = [
        {"__key__": "a", "10.jpg": frame(0), "2.jpg": frame(90), "json": {"caption": "x"}},
        {"__key__": "b", "jpg": frame(90), "json": {"caption": "y"}},
        {"__key__": "c", "jpg": frame(0), "json": {"caption": "z"}},
    ]
    tar = write_tar(tmp_path / "x.tar", samples)
    index = write_index([tar], tmp_path / "x.npz", "x", "image", questions / "tokenizer", "?", questions)
    assert index.group[0] == index.group[1] != index.group[2]  # equal first images: the same video


def test_long_names_of_gnu_and_pax_tars(questions, tmp_path):
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        keys = [f"{'long' * 50}/{i}-{'é' * 30}" for i in range(2)]
        path = tar_of(
            tmp_path / f"{form}.tar", [(f"{key}.json", b'{"user": "?", "assistant": "ja"}') for key in keys], form
        )
        index = write_index([path], tmp_path / "i.npz", "t", "text", questions / "tokenizer", "?", questions)
        assert index.keys.tolist() == keys
        assert [list(index.read(i, questions)) for i in (0, 1)] == [["json"]] * 2


def test_damaged_tars_are_named_with_the_place(questions, tmp_path):
    content = shard_paths(questions / "shards/questions", 0)[0].read_bytes()
    cases = {"cut": content[:5000], "boundary": content[: first_length(questions)], "zero": b"", "noise": b"x" * 2048}
    for name, content in cases.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.tar: .*byte"):
            write_index([path], tmp_path / "i.npz", "x", "video", questions / "tokenizer", "?", questions)
    with tarfile.open(tmp_path / "mixed.tar", "w") as tar:
        for name in ("a.json", "b.json", "a.txt"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match=r"mixed\.tar: key 'a' .*byte 1024"):
        write_index([tmp_path / "mixed.tar"], tmp_path / "i.npz", "x", "text", questions / "tokenizer", "?", questions)


def test_images_are_found_under_all_their_names(questions, tmp_path):
    forms = {
        "plain": {"0.jpg": 10, "1.jpg": 20},
        "padded": {"000.jpg": 10, "001.jpg": 20},
        "frames": {"frame_0009.jpg": 10, "frame_0010.jpg": 20},
        "images": {"image2.jpeg": 10, "image10.jpeg": 20},
        "numbered": {"img-1.png": 10, "img-2.png": 20},
        "webp": {"0.webp": 10, "1.webp": 20},
        "capitals": {"1.JPG": 10, "2.JPG": 20},
    }
    samples = []
    for key, named in forms.items():
        form = {"numbered": "PNG", "webp": "WEBP"}.get(key, "JPEG")
        images = {name: picture(grey, form, (224, 224)) for name, grey in named.items()}
        samples.append({"__key__": key, **images, "thumbnail.gif": b"x", "json": {"caption": "x", "frame_count": 2}})
    tar = write_tar(tmp_path / "x.tar", samples)
    index = write_index([tar], tmp_path / "x.npz", "x", "image", questions / "tokenizer", "?", questions)
    assert index.keys.tolist() == list(forms) and index.rejected == 0
    for i in range(len(index)):
        frames = decode_frames(index.read(i, questions))
        assert [round(frame.mean() / 10) for frame in frames] == [1, 2], index.keys[i]


def test_an_unusable_sample_is_in_the_ledger_with_its_reason(questions, tmp_path):
    jpeg = read_sample(shard_paths(questions / "shards/questions", 0)[0], 0, first_length(questions))["000.jpg"]
    middle = jpeg[: len(jpeg) // 2] + bytes(len(jpeg) - len(jpeg) // 2 - 2) + jpeg[-2:]
    samples = [
        {"__key__": "raw", "mp4": b"\0\0\0\x18ftyp", "txt": b"a caption", "json": {"width": 3}},
        {"__key__": "both", "mp4": b"\0\0\0\x18ftyp", "jpg": jpeg, "txt": b"a caption"},
        {"__key__": "unknown", "jpg": jpeg, "json": {"token_ids": [1, 300], "loss_mask": [0, 1]}},
        {"__key__": "negative", "jpg": jpeg, "json": {"token_ids": [-1, 3], "loss_mask": [0, 1]}},
        {"__key__": "damaged", "0.jpg": jpeg, "1.jpg": middle, "2.jpg": jpeg, "json": {"caption": "x"}},
    ]
    tar = write_tar(tmp_path / "x.tar", samples)
    index = write_index([tar], tmp_path / "x.npz", "x", "image", questions / "tokenizer", "?", questions)
    assert index.keys.tolist() == ["both"]
    entries = {entry["key"]: entry for entry in lines_of(tmp_path / "x.ledger.jsonl")}
    for key, reason, fact in (
        ("raw", "bad_sample", "reader: video2dataset"),
        ("unknown", "bad_sample", "1 to 300"),
        ("negative", "bad_sample", "-1 to 3"),
        ("damaged", "corrupt", "1.jpg: "),
    ):
        assert entries[key]["reason"] == reason and fact in entries[key]["message"]


def test_hashes_are_those_of_the_first_and_the_middle_image(questions, tmp_path):
    index = make_index(questions, tmp_path / "questions.npz")
    assert index.hashes.shape == (len(index), 2) and index.hashes.dtype == np.uint64
    for i in range(len(index)):
        members = index.read(i, questions)
        middle = f"{index.frames[i] // 2:03d}.jpg"
        assert index.hashes[i].tolist() == [perceptual_hash(members["000.jpg"]), perceptual_hash(members[middle])]
    assert (index.hashes != 0).any()
    words = text_shard(tmp_path / "t.tar", "a", "b")
    index = write_index([words], tmp_path / "t.npz", "t", "text", questions / "tokenizer", "?", questions)
    assert index.hashes.tolist() == [[0, 0], [0, 0]]
