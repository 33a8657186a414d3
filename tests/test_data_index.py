"""The index of a source: it reads what every reader reads, loses nothing, and goes on where it was stopped."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvlm.__main__ import main
from fvlm.data.corpus import make_corpus
from fvlm.data.index import check_tokenizer, ledger_of, load_index, write_index
from fvlm.data.ledger import add_up, ledger_line
from fvlm.data.media import REASONS
from fvlm.data.perceptual import perceptual_hash
from fvlm.data.readers import read_rows
from fvlm.data.samples import decode_frames, sample_text
from fvlm.data.shards import open_tar
from fvlm.data.tar import read_sample
from fvlm.data.text import encode_chat, load_tokenizer, train_tokenizer
from fvlm.data.video import decode_video
from fvlm.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A results folder with a sharded source of 16 questions, 3 of them about broken files."""
    root = tmp_path_factory.mktemp("results")
    make_corpus("questions", root / "corpus", samples=16, seed=1, broken=3, processes=2)
    command = ["shard", str(root / "corpus"), "--name", "questions", "--samples-per-shard", "10", "--processes", "2"]
    assert main([*command, "--out", str(root / "shards/questions")]) == 0
    rows = read_rows(root / "corpus", "samples.jsonl")
    train_tokenizer([text for row in rows for text in row.text.values()], 300, root / "tokenizer")
    return root


def shard_paths(root: Path, number: int) -> tuple[Path, Path]:
    folder = root / "shards" / "questions"
    return folder / f"{number:05d}.tar", folder / f"{number:05d}.ledger.jsonl"


def make_index(root: Path, out: Path, prompt: str = "?"):
    shards = [shard_paths(root, number)[0] for number in range(2)]
    return write_index(shards, out, "questions", "video", root / "tokenizer", prompt, root)


def write_tar(path: Path, samples: list[dict]) -> Path:
    with path.open("wb") as file, open_tar(file) as writer:
        for sample in samples:
            writer.write({name: json.dumps(v).encode() if name == "json" else v for name, v in sample.items()})
    return path


def lines_of(ledger: Path) -> list[dict]:
    return [json.loads(line) for line in ledger.read_text().splitlines()]


def first_length(root: Path) -> int:
    with tarfile.open(shard_paths(root, 0)[0]) as tar:
        members = tar.getmembers()
    second = next(m for m in members if m.name.split(".")[0] != members[0].name.split(".")[0])
    return second.offset


def test_index_reads_what_webdataset_reads(root, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    index = make_index(root, tmp_path / "questions.npz")
    assert (len(index), index.kind, index.source, index.rejected) == (13, "video", "questions", 0)
    stored = load_index(tmp_path / "questions.npz")
    tokenizer = load_tokenizer(root / "tokenizer")
    urls = [str(shard_paths(root, number)[0]) for number in range(2)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == stored.keys.tolist()
    for i, sample in enumerate(samples):
        shard = root / str(stored.shards[stored.shard[i]])
        members = read_sample(shard, int(stored.offset[i]), int(stored.length[i]))
        assert members == {name: value for name, value in sample.items() if not name.startswith("__")}
        text = sample_text(members, "?")
        ids, answer = encode_chat(tokenizer, text)
        assert (stored.text_tokens[i], stored.answer_tokens[i]) == (len(ids), answer.sum())
        frames = decode_frames(members)
        assert frames.shape == (stored.frames[i], 224, 224, 3)
        original = decode_video(root / "corpus" / text["file"])
        assert text["frame_times"] == original.times_s.tolist()
        assert np.abs(frames.astype(int) - original.frames).mean() < 6  # JPEG
    same_file = [read_rows(root / "corpus", "samples.jsonl")[int(key[-7:])].file for key in stored.keys]
    assert len(set(stored.group.tolist())) == len(set(same_file))


def test_finished_shards_in_older_forms(root, tmp_path):
    members = read_sample(shard_paths(root, 0)[0], 0, first_length(root))
    jpeg = members["000.jpg"]
    tar = write_tar(
        tmp_path / "foreign.tar",
        [
            {"__key__": "a/single", "jpg": jpeg, "json": {"caption": "a red square"}},
            {"__key__": "b", "000.jpg": jpeg, "001.jpg": jpeg, "json": {"user": "?", "assistant": "red"}},
            {"__key__": "c", "000.jpg": jpeg, "json": {"token_ids": [1, 2, 3], "loss_mask": [0, 1, 1]}},
            {"__key__": "d", "jpg": jpeg, "txt": b"a caption", "json": {"width": 3}},
            {"__key__": "e" * 120, "jpg": jpeg, "json": {"user": "?", "chosen": "red", "rejected": "blue"}},
            {"__key__": "wrong", "000.jpg": jpeg, "json": {"caption": "x", "frame_count": 2}},
            {"__key__": "silent", "000.jpg": jpeg, "json": {"width": 3}},
            {"__key__": "blind", "json": {"caption": "x", "frame_count": 0}},
        ],
    )
    index = write_index([tar], tmp_path / "f.npz", "f", "image", root / "tokenizer", "Say.", root, foreign=True)
    assert index.keys.tolist() == ["a/single", "b", "c", "d", "e" * 120]
    assert index.frames.tolist() == [1, 2, 1, 1, 1]
    assert index.rejected == 3
    assert index.shards.tolist() == [str(tar.resolve())]
    assert (index.text_tokens[2], index.answer_tokens[2]) == (3, 2)
    texts = [sample_text(read_sample(tar, index.offset[i], index.length[i]), "Say.") for i in (0, 3, 4)]
    assert [text["assistant"] for text in texts] == ["a red square", "a caption", "red"]
    assert texts[0]["user"] == "Say."


def test_a_foreign_source_has_a_ledger_of_its_own(root, tmp_path):
    jpeg = read_sample(shard_paths(root, 0)[0], 0, first_length(root))["000.jpg"]
    text, png = {"caption": "a red square", "file": "one.mp4"}, io.BytesIO()
    Image.new("RGB", (300, 240)).save(png, "PNG")
    png = png.getvalue()
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
    index = write_index(tars, tmp_path / "f.npz", "f", "image", root / "tokenizer", "Say.", root, foreign=True)
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
    assert messages["cut"] == f"001.jpg: cut before its end, at {len(jpeg) - 100} bytes"
    assert messages["long"] == "65 images, more than 64 frames"
    assert [entry["frames"] for entry in entries if entry["status"] == "kept"] == [1, 1]
    assert entries[1].keys() == lines_of(shard_paths(root, 0)[1])[0].keys()
    table = add_up([tmp_path / "f.ledger.jsonl"], tmp_path / "all.jsonl", tmp_path / "data.csv")
    assert sum(row["count"] for row in table) == 12
    assert not list(tmp_path.glob("*.part"))


def test_a_sample_rejected_by_its_index_counts_once(root, tmp_path):
    home = tmp_path / "results"
    tar, ledger = home / "shards/t/00000.tar", home / "shards/t/00000.ledger.jsonl"
    chats = [[{"role": "assistant", "content": text}] for text in ("red", "blue", "", "\ud800")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    command = ["shard", str(tmp_path), "--table", "t.jsonl", "--name", "t", "--kind", "text", "--processes", "1"]
    assert main([*command, "--out", str(tar.parent)]) == 0
    described = [{"messages": chats[0]}, {"width": 3}]
    write_tar(tar, [{"__key__": f"t-{i:07d}", "json": json_} for i, json_ in enumerate(described)])
    tar.with_name("00000.tar.sha256").unlink(missing_ok=True)
    index = write_index([tar], home / "index/t.npz", "t", "text", root / "tokenizer", "?", home)
    ledgers = [ledger, home / "index/t.ledger.jsonl"]
    assert [(entry["key"], entry["reason"]) for entry in lines_of(ledgers[1])] == [("t-0000001", "bad_sample")]
    for order in (ledgers, ledgers[::-1]):
        rows = add_up(order, tmp_path / "all.jsonl", tmp_path / "data.csv")
        assert {row["reason"]: row["count"] for row in rows} == {"": 1, "bad_sample": 1, "bad_row": 2}
        assert [entry["row"] for entry in lines_of(tmp_path / "all.jsonl")] == [0, 1, 2, 3]
    assert len(index) == 1


def test_frames_stand_in_the_order_of_their_numbers(root, tmp_path):
    def picture(grey: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (224, 224), (grey,) * 3).save(file, "JPEG")
        return file.getvalue()

    images = {f"{i}.jpg": picture(10 * i) for i in range(12)}
    assert [round(frame.mean() / 10) for frame in decode_frames(images)] == list(range(12))
    with pytest.raises(ValueError, match=r"3\.jpg"):
        decode_frames(images | {"3.jpg": images["3.jpg"][:-100]})
    with pytest.raises(ValueError, match=r"3\.jpg"):
        decode_frames(images | {"3.jpg": b"noise"})
    samples = [
        {"__key__": "a", "10.jpg": picture(0), "2.jpg": picture(90), "json": {"caption": "x"}},
        {"__key__": "b", "jpg": picture(90), "json": {"caption": "y"}},
        {"__key__": "c", "jpg": picture(0), "json": {"caption": "z"}},
    ]
    tar = write_tar(tmp_path / "x.tar", samples)
    index = write_index([tar], tmp_path / "x.npz", "x", "image", root / "tokenizer", "?", root)
    assert index.group[0] == index.group[1] != index.group[2]  # the first image is what tells videos apart


def test_long_names_of_gnu_and_pax_tars(root, tmp_path):
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as tar:
            for i in range(2):
                content = json.dumps({"user": "?", "assistant": "ja"}).encode()
                info = tarfile.TarInfo(f"{'long' * 50}/{i}-{'é' * 30}.json")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        index = write_index([path], tmp_path / "i.npz", "t", "text", root / "tokenizer", "?", root)
        assert index.keys.tolist() == [f"{'long' * 50}/{i}-{'é' * 30}" for i in range(2)]
        assert [list(read_sample(path, index.offset[i], index.length[i])) for i in (0, 1)] == [["json"]] * 2


def test_damaged_tars_are_named_with_the_place(root, tmp_path):
    whole = shard_paths(root, 0)[0].read_bytes()
    cases = {"cut": whole[:5000], "boundary": whole[: first_length(root)], "zero": b"", "noise": b"x" * 2048}
    for name, content in cases.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.tar: .*byte"):
            write_index([path], tmp_path / "i.npz", "x", "video", root / "tokenizer", "?", root)
    with tarfile.open(tmp_path / "mixed.tar", "w") as tar:
        for name in ("a.json", "b.json", "a.txt"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match="'a' comes back at byte 1024"):
        write_index([tmp_path / "mixed.tar"], tmp_path / "i.npz", "x", "text", root / "tokenizer", "?", root)


def test_images_are_found_under_all_their_names(root, tmp_path):
    def picture(grey: int, form: str = "JPEG") -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (224, 224), (grey,) * 3).save(file, form)
        return file.getvalue()

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
        kinds = {"png": "PNG", "webp": "WEBP"}
        images = {name: picture(grey, kinds.get(name.split(".")[1], "JPEG")) for name, grey in named.items()}
        samples.append({"__key__": key, **images, "thumbnail.gif": b"x", "json": {"caption": "x", "frame_count": 2}})
    tar = write_tar(tmp_path / "x.tar", samples)
    index = write_index([tar], tmp_path / "x.npz", "x", "image", root / "tokenizer", "?", root)
    assert index.keys.tolist() == list(forms) and index.rejected == 0
    for i in range(len(index)):
        frames = decode_frames(read_sample(tar, int(index.offset[i]), int(index.length[i])))
        assert [round(frame.mean() / 10) for frame in frames] == [1, 2], index.keys[i]


def test_a_sample_that_training_could_not_use_says_why(root, tmp_path):
    jpeg = read_sample(shard_paths(root, 0)[0], 0, first_length(root))["000.jpg"]
    middle = jpeg[: len(jpeg) // 2] + bytes(len(jpeg) - len(jpeg) // 2 - 2) + jpeg[-2:]
    samples = [
        {"__key__": "raw", "mp4": b"\0\0\0\x18ftyp", "txt": b"a caption", "json": {"width": 3}},
        {"__key__": "both", "mp4": b"\0\0\0\x18ftyp", "jpg": jpeg, "txt": b"a caption"},
        {"__key__": "unknown", "jpg": jpeg, "json": {"token_ids": [1, 300], "loss_mask": [0, 1]}},
        {"__key__": "negative", "jpg": jpeg, "json": {"token_ids": [-1, 3], "loss_mask": [0, 1]}},
        {"__key__": "damaged", "0.jpg": jpeg, "1.jpg": middle, "2.jpg": jpeg, "json": {"caption": "x"}},
    ]
    tar = write_tar(tmp_path / "x.tar", samples)
    index = write_index([tar], tmp_path / "x.npz", "x", "image", root / "tokenizer", "?", root)
    assert index.keys.tolist() == ["both"]
    told = {entry["key"]: (entry["reason"], entry["message"]) for entry in lines_of(tmp_path / "x.ledger.jsonl")}
    assert told["raw"][0] == "bad_sample" and "reader: video2dataset" in told["raw"][1]
    assert told["unknown"] == ("bad_sample", "token ids 1 to 300, but the tokenizer has 300 entries")
    assert told["negative"][0] == "bad_sample"
    assert told["damaged"][0] == "corrupt" and told["damaged"][1].startswith("1.jpg: ")


def test_hashes_are_those_of_the_first_and_the_middle_image(root, tmp_path):
    index = make_index(root, tmp_path / "questions.npz")
    assert index.hashes.shape == (len(index), 2) and index.hashes.dtype == np.uint64
    for i in range(len(index)):
        members = read_sample(root / str(index.shards[index.shard[i]]), int(index.offset[i]), int(index.length[i]))
        middle = f"{index.frames[i] // 2:03d}.jpg"
        assert index.hashes[i].tolist() == [perceptual_hash(members["000.jpg"]), perceptual_hash(members[middle])]
    assert (index.hashes != 0).any()
    words = text_shard(tmp_path / "t.tar", "a", "b")
    index = write_index([words], tmp_path / "t.npz", "t", "text", root / "tokenizer", "?", root)
    assert index.hashes.tolist() == [[0, 0], [0, 0]]


# --- one part per shard ---


def text_shard(path: Path, *keys: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tar(path, [{"__key__": key, "json": {"user": "?", "assistant": f"it is {key}"}} for key in keys])


def index_texts(root: Path, shards: list[Path], out: Path, **changes):
    options = {"tokenizer_folder": root / "tokenizer", "prompt": "?", "kind": "text", "source": "t", **changes}
    return write_index(shards, out, root=out.parent, **options)


def parts_of(out: Path) -> dict[str, int]:
    """Parts and the inodes of their files, which change when one is written again."""
    return {path.name.split("-")[0]: path.stat().st_ino for path in out.with_suffix("").glob("*.npz")}


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


def test_a_new_shard_is_indexed_alone_and_one_that_is_gone_is_forgotten(root, tmp_path):
    out = tmp_path / "t.npz"
    shards = [text_shard(tmp_path / f"{name}.tar", f"{name}1", f"{name}2") for name in "abcd"]
    index_texts(root, shards[1:3], out)
    before = parts_of(out)
    index = index_texts(root, shards, out)
    after = parts_of(out)
    assert {name: after[name] for name in before} == before and set(after) == set("abcd")
    assert same(index, index_texts(root, shards, tmp_path / "fresh.npz")) and same(index, load_index(out))
    assert index.shard.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    index_texts(root, shards[:1], out)
    assert set(parts_of(out)) == {"a"}


def test_what_a_part_was_made_with_makes_it_anew(root, tmp_path):
    out = tmp_path / "t.npz"
    shards = [text_shard(tmp_path / f"{name}.tar", name) for name in "ab"]
    first, before = index_texts(root, shards, out), parts_of(out)
    index_texts(root, shards, out)
    assert parts_of(out) == before
    train_tokenizer(["it is something else"] * 9, 262, tmp_path / "tokenizer")
    for changes in ({"tokenizer_folder": tmp_path / "tokenizer"}, {"prompt": "Say."}, {"kind": "preference"}):
        changed = index_texts(root, shards, out, **changes)
        after = parts_of(out)
        assert all(after[name] != before[name] for name in "ab"), changes
        assert same(changed, index_texts(root, shards, tmp_path / "fresh.npz", **changes))
        before = after
    index_texts(root, shards, out)
    before = parts_of(out)
    text_shard(shards[1], "c")
    changed, after = index_texts(root, shards, out), parts_of(out)
    assert after["a"] == before["a"] and after["b"] != before["b"]
    assert (first.keys.tolist(), changed.keys.tolist()) == (["a", "b"], ["a", "c"])
    next(out.with_suffix("").glob("a-*.npz")).write_bytes(b"torn")
    assert same(index_texts(root, shards, out), changed)


def test_shards_of_the_same_name_are_kept_apart(root, tmp_path):
    shards = [text_shard(tmp_path / folder / "0.tar", folder) for folder in ("one", "two")]
    for _ in range(2):
        assert index_texts(root, shards, tmp_path / "t.npz").keys.tolist() == ["one", "two"]


def test_the_number_of_processes_changes_nothing(root, tmp_path):
    jpeg = read_sample(shard_paths(root, 0)[0], 0, first_length(root))["000.jpg"]
    shards = []
    for name in "abcde":
        good = {"__key__": name, "jpg": jpeg, "json": {"caption": name}}
        shards.append(write_tar(tmp_path / f"{name}.tar", [good, {"__key__": f"{name}-bad", "jpg": jpeg}]))
    made = []
    for processes in (1, 3):
        out = tmp_path / str(processes) / "x.npz"
        write_index(shards, out, "x", "image", root / "tokenizer", "?", root, processes, foreign=True)
        made.append((out.read_bytes(), ledger_of(out).read_bytes()))
    assert made[0] == made[1]
    assert [entry["row"] for entry in lines_of(ledger_of(out))] == list(range(10))
    for damaged in (3, 1):
        shards[damaged].write_bytes(shards[damaged].read_bytes()[:700])
    for processes in (1, 3):
        with pytest.raises(UserError, match=r"b\.tar: cut within the member at byte 0"):
            write_index(shards, tmp_path / "y.npz", "x", "image", root / "tokenizer", "?", root, processes)
    assert not (tmp_path / "y.npz").exists()


def test_a_killed_index_goes_on_with_what_is_left(root, tmp_path):
    out = tmp_path / "t.npz"
    shards = [text_shard(tmp_path / f"{i:03d}.tar", *(f"{i}-{j}" for j in range(300))) for i in range(30)]
    code = (
        "import sys; from pathlib import Path; from fvlm.data.index import write_index\n"
        "out, tokenizer, *shards = map(Path, sys.argv[1:])\n"
        "write_index(shards, out, 't', 'text', tokenizer, '?', out.parent, 2)"
    )
    command = [sys.executable, "-c", code, str(out), str(root / "tokenizer"), *map(str, shards)]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(parts_of(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = parts_of(out)
    assert 3 <= len(done) < 30 and not out.exists()
    index = index_texts(root, shards, out)
    after = parts_of(out)
    assert {name: after[name] for name in done} == done and len(index) == 9000
    assert same(index, index_texts(root, shards, tmp_path / "fresh.npz"))


def test_a_tar_is_compared_with_the_checksum_beside_it(root, tmp_path):
    tar, out = text_shard(tmp_path / "a.tar", "a"), tmp_path / "t.npz"
    beside = tmp_path / "a.tar.sha256"
    digest = hashlib.sha256(tar.read_bytes()).hexdigest()
    for line in (f"{digest}  a.tar\n", f"{digest.upper()} *a.tar\n"):
        beside.write_text(line)
        assert len(index_texts(root, [tar], out)) == 1
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"it is", b"it IS"))  # a change that a tar's own sums do not see
    with pytest.raises(UserError, match=rf"a.tar: found SHA-256 \w+, expected {digest} .*make or copy"):
        index_texts(root, [tar], out)
    beside.write_text("nothing\n")
    with pytest.raises(UserError, match=r"a.tar.sha256: found 'nothing', expected a line of `sha256sum a.tar`"):
        index_texts(root, [tar], out)
    beside.unlink()
    assert len(index_texts(root, [tar], out)) == 1


def test_an_index_knows_its_tokenizer(root, tmp_path):
    index = index_texts(root, [text_shard(tmp_path / "a.tar", "a")], tmp_path / "t.npz")
    check_tokenizer(load_index(tmp_path / "t.npz"), root / "tokenizer")
    train_tokenizer(["other texts"] * 9, 262, tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"another tokenizer .*make it again with `fvlm index t`"):
        check_tokenizer(index, tmp_path / "tokenizer")
    with pytest.raises(UserError, match="no tokenizer"):
        check_tokenizer(index, tmp_path)


def test_a_source_with_too_many_rejects_has_no_index(root, tmp_path):
    """Three rows that its shard's ledger rejects and one that the index rejects are four of six."""
    tar, out = text_shard(tmp_path / "shards/t/0.tar", "a", "b"), tmp_path / "t.npz"
    with tarfile.open(tar, "a") as more:
        more.addfile(tarfile.TarInfo("c.txt"))
    about = {"source": "t", "kind": "text", "file": None}
    lines = [ledger_line(**about, row=row, reason="bad_row", message="x") for row in range(3)]
    lines += [ledger_line(**about, row=3 + i, key=key, shard="0.tar") for i, key in enumerate("abc")]
    tar.with_suffix(".ledger.jsonl").write_text("".join(lines))
    with pytest.raises(UserError, match="4 of 6"):
        index_texts(root, [tar], out, max_reject=0.6)
    assert not out.exists()
    assert [entry["key"] for entry in lines_of(tmp_path / "t.ledger.jsonl.rejected")] == ["c"]
    assert len(index_texts(root, [tar], out, max_reject=0.7)) == 2
    assert not (tmp_path / "t.ledger.jsonl.rejected").exists()
