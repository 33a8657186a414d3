"""From a table to shards, ledger and index: nothing is lost, and every reader sees the same."""

import io
import json
import os
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvlm.__main__ import main
from fvlm.data.corpus import make_corpus
from fvlm.data.decode_pool import Decoded, DecodePool
from fvlm.data.index import decode_frames, load_index, read_sample, sample_text, write_index
from fvlm.data.ledger import add_up
from fvlm.data.media import REASONS, MediaError
from fvlm.data.readers import count_rows, read_rows
from fvlm.data.shards import make_shard, open_tar
from fvlm.data.text import encode_chat, load_tokenizer, train_tokenizer
from fvlm.data.video import decode_video
from fvlm.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A results folder with a sharded source of 16 questions, 3 of them about broken files."""
    root = tmp_path_factory.mktemp("results")
    make_corpus("questions", root / "corpus", samples=16, seed=1, broken=3, processes=2)
    rows = read_rows(root / "corpus", "samples.jsonl")
    for number, start in enumerate((0, 10)):
        tar, ledger = shard_paths(root, number)
        make_shard(rows[start : start + 10], root / "corpus", "questions", "video", "?", tar, ledger, processes=2)
    train_tokenizer([text for row in rows for text in row.text.values()], 300, root / "tokenizer")
    return root


def shard_paths(root: Path, number: int) -> tuple[Path, Path]:
    folder = root / "shards" / "questions"
    return folder / f"{number:05d}.tar", folder / f"{number:05d}.ledger.jsonl"


def make_index(root: Path, out: Path, prompt: str = "?"):
    shards = [shard_paths(root, number)[0] for number in range(2)]
    return write_index(shards, out, "questions", "video", root / "tokenizer", prompt, root)


def test_every_row_is_in_the_ledger_once(root, tmp_path):
    rows = add_up([shard_paths(root, n)[1] for n in range(2)], tmp_path / "all.jsonl", tmp_path / "data.csv")
    entries = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert sorted(entry["row"] for entry in entries) == list(range(16))
    assert sum(row["count"] for row in rows) == 16
    assert {row["reason"]: row["count"] for row in rows} == {"": 13, "empty": 1, "not_media": 1, "corrupt": 1}
    assert len((tmp_path / "data.csv").read_text().splitlines()) == 1 + len(rows)
    for entry in entries:
        assert (entry["key"] is None) == (entry["status"] == "rejected") == (entry["message"] is not None)
    with pytest.raises(UserError, match="twice"):
        add_up([shard_paths(root, 0)[1]] * 2, tmp_path / "all.jsonl", tmp_path / "data.csv")


def test_shards_are_identical_for_any_number_of_processes(root, tmp_path):
    rows = read_rows(root / "corpus", "samples.jsonl")
    tar, ledger = tmp_path / "00000.tar", tmp_path / "00000.ledger.jsonl"
    make_shard(rows[:10], root / "corpus", "questions", "video", "?", tar, ledger, processes=1)
    for mine, theirs in zip((tar, ledger), shard_paths(root, 0), strict=True):
        assert mine.read_bytes() == theirs.read_bytes()
    assert not list(tmp_path.glob("*.part"))


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


def write_tar(path: Path, samples: list[dict]) -> Path:
    with path.open("wb") as file, open_tar(file) as writer:
        for sample in samples:
            writer.write({name: json.dumps(v).encode() if name == "json" else v for name, v in sample.items()})
    return path


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
    index = write_index([tar], tmp_path / "f.npz", "f", "image", root / "tokenizer", "Say.", root)
    assert index.keys.tolist() == ["a/single", "b", "c", "d", "e" * 120]
    assert index.frames.tolist() == [1, 2, 1, 1, 1]
    assert index.rejected == 3
    assert index.shards.tolist() == [str(tar.resolve())]
    assert (index.text_tokens[2], index.answer_tokens[2]) == (3, 2)
    texts = [sample_text(read_sample(tar, index.offset[i], index.length[i]), "Say.") for i in (0, 3, 4)]
    assert [text["assistant"] for text in texts] == ["a red square", "a caption", "red"]
    assert texts[0]["user"] == "Say."


def lines_of(ledger: Path) -> list[dict]:
    return [json.loads(line) for line in ledger.read_text().splitlines()]


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
    index = write_index(tars, tmp_path / "f.npz", "f", "image", root / "tokenizer", "Say.", root)
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
    make_shard(read_rows(tmp_path, "t.jsonl"), tmp_path, "t", "text", "?", tar, ledger)
    described = [{"messages": chats[0]}, {"width": 3}]
    write_tar(tar, [{"__key__": f"t-{i:07d}", "json": json_} for i, json_ in enumerate(described)])
    index = write_index([tar], home / "index/t.npz", "t", "text", root / "tokenizer", "?", home)
    ledgers = [ledger, home / "index/t.ledger.jsonl"]
    assert [(entry["key"], entry["reason"]) for entry in lines_of(ledgers[1])] == [("t-0000001", "bad_sample")]
    for order in (ledgers, ledgers[::-1]):
        rows = add_up(order, tmp_path / "all.jsonl", tmp_path / "data.csv")
        assert {row["reason"]: row["count"] for row in rows} == {"": 1, "bad_sample": 1, "bad_row": 2}
        assert [entry["row"] for entry in lines_of(tmp_path / "all.jsonl")] == [0, 1, 2, 3]
    assert len(index) == 1


def test_no_ledgers_give_an_empty_table(tmp_path):
    assert main(["ledger", "--out", str(tmp_path / "all.jsonl"), "--table", str(tmp_path / "data.csv")]) == 0
    assert (tmp_path / "all.jsonl").read_text() == ""
    assert (tmp_path / "data.csv").read_text() == "source,kind,status,reason,count,frames,hours\n"


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


def first_length(root: Path) -> int:
    with tarfile.open(shard_paths(root, 0)[0]) as tar:
        members = tar.getmembers()
    second = next(m for m in members if m.name.split(".")[0] != members[0].name.split(".")[0])
    return second.offset


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


def test_too_many_rejects_fail_the_shard(tmp_path):
    make_corpus("pictures", tmp_path / "corpus", samples=6, seed=1, broken=4, processes=1)
    rows = read_rows(tmp_path / "corpus", "samples.jsonl")
    tar, ledger = tmp_path / "0.tar", tmp_path / "0.ledger.jsonl"
    with pytest.raises(UserError, match="4 of 6 rows rejected"):
        make_shard(rows, tmp_path / "corpus", "pictures", "image", "Say.", tar, ledger)
    assert not tar.exists()
    assert not ledger.exists()
    assert len((tmp_path / "0.ledger.jsonl.rejected").read_text().splitlines()) == 6
    counts = make_shard(rows, tmp_path / "corpus", "pictures", "image", "Say.", tar, ledger, max_reject=0.9)
    assert counts["kept"] == 2


def behave(path: Path) -> Decoded:
    """A decoder that hangs or crashes when the name of the file says so."""
    if path.name == "hang":
        time.sleep(600)
    elif path.name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif path.name == "exit":
        os._exit(3)
    return Decoded([path.name.encode()], [0.0], 1.0, "x")


def test_a_hang_or_a_crash_costs_one_file():
    names = ["a", "hang", "b", "crash", "c", "exit", "d"]
    with DecodePool(behave, processes=2, deadline_s=0.5) as pool:
        futures = [pool.submit(Path(name)) for name in names]
        outcome = []
        for future in futures:
            try:
                outcome.append(future.result().jpegs[0].decode())
            except MediaError as error:
                outcome.append(error.reason)
    assert outcome == ["a", "timeout", "b", "crashed", "c", "crashed", "d"]


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("t.csv", "file,text\na.mp4,hello\n", r"t.csv: columns are file, text; expected `caption`"),
        ("t.csv", "path,caption\na.mp4,hello\n", r"no column `file` in path, caption"),
        ("t.jsonl", '{"file": "a", "caption": "b"}\n\n{oops\n', r"t.jsonl: line 3 is no JSON"),
        ("t.jsonl", "[1]\n", r"line 1 is no JSON object"),
        ("t.tsv", "file\tcaption\n", r"ends in .csv or .jsonl"),
    ],
)
def test_a_bad_table_is_explained(tmp_path, table, content, message):
    (tmp_path / table).write_text(content)
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path, table)


def test_missing_folder_and_table_are_explained(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read_rows(tmp_path / "nowhere", "t.csv")
    with pytest.raises(UserError, match=r"no table 't.csv'; write it"):
        read_rows(tmp_path, "t.csv")


def test_rows_of_a_table(tmp_path):
    (tmp_path / "t.csv").write_text('\ufefffile,caption,prompt\na.mp4,"two\nlines",Say.\nb.mp4,,\nc.mp4\n')
    rows = read_rows(tmp_path, "t.csv")
    assert [row.problem is None for row in rows] == [True, False, False]
    assert (rows[0].file, rows[0].text, rows[0].prompt) == ("a.mp4", {"caption": "two\nlines"}, "Say.")
    assert count_rows(tmp_path, "t.csv") == 3
    assert read_rows(tmp_path, "t.csv", 1, 3) == rows[1:]
    forms = [
        {"file": "a", "question": "q", "answer": "x"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]},
        {"file": "a", "question": "q", "chosen": "x", "rejected": "y"},
        {"file": "a", "caption": " "},
        {"messages": [{"role": "robot", "content": "q"}]},
        {"file": 3, "caption": "c"},
        {"file": "a", "caption": "half a character: \ud83d"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(form) for form in forms))
    rows = read_rows(tmp_path, "t.jsonl")
    assert rows[0].text == {"user": "q", "assistant": "x"}
    assert rows[2].text == {"user": "q", "chosen": "x", "rejected": "y"}
    assert [row.number for row in rows if row.problem] == [3, 4, 5, 6]
    assert count_rows(tmp_path, "t.jsonl") == 7
    assert read_rows(tmp_path, "t.jsonl", 2, 4) == rows[2:4]
    assert read_rows(tmp_path, "t.jsonl", 7, 9) == []


@pytest.mark.parametrize(("table", "content"), [("t.csv", "file,text\n"), ("t.jsonl", '{"file": "a"}\n')])
def test_counting_and_windows_check_the_columns_too(tmp_path, table, content):
    (tmp_path / table).write_text(content)
    for read in (count_rows, read_rows, lambda folder, name: read_rows(folder, name, 5, 9)):
        with pytest.raises(UserError, match="expected `caption`"):
            read(tmp_path, table)
        with pytest.raises(UserError, match="no table"):
            read(tmp_path, f"other_{table}")
        with pytest.raises(UserError, match="no folder"):
            read(tmp_path / "nowhere", table)


def test_one_shard_of_a_table_is_that_of_the_whole_table(tmp_path, capsys):
    lines = [json.dumps({"question": "q", "answer": f"{i}"}) for i in range(5)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    command = ["shard", str(tmp_path), "--table", "t.jsonl", "--name", "t", "--kind", "text"]
    command += ["--samples-per-shard", "2", "--processes", "1", "--out"]
    assert main([*command, str(tmp_path / "all")]) == 0
    assert main([*command, str(tmp_path / "one"), "--shard", "1"]) == 0
    assert len(list((tmp_path / "all").glob("*.tar"))) == 3
    for name in ("00001.tar", "00001.ledger.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    assert [entry["row"] for entry in lines_of(tmp_path / "one/00001.ledger.jsonl")] == [2, 3]
    for shard in ("3", "-1"):
        assert main([*command, str(tmp_path / "one"), "--shard", shard]) == 2
        assert "the table has 5 rows; if `samples:` in config/sources.yaml says more than 5" in capsys.readouterr().err
