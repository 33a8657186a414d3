"""Shards that were downloaded, moved, linked or changed: an entry of the ledger or one sentence, never a crash."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fvlm.data.shards.index import ledger_of, write_index
from fvlm.data.shards.ledger import add_up, ledger_line
from fvlm.data.shards.samples import sample_text
from fvlm.data.shards.tar import read_sample
from fvlm.data.shards.text import encode_chat, load_tokenizer
from fvlm.errors import UserError
from tests.index_cases import write_tar
from tests.reader_cases import lines_of, picture, tar_of

TEXT = b'{"caption": "x"}'


def index_of(shards: list[Path], root: Path, tokenizer: Path, **options):
    return write_index(shards, root / "index/t.npz", "t", "text", tokenizer, "?", root, **options)


def entries(root: Path) -> list[dict]:
    return lines_of(ledger_of(root / "index/t.npz"))


def test_files_outside_of_samples_are_ignored(tokenizer, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    jpeg = picture(90, "JPEG", (224, 224))
    members = [("README", b"x"), ("._a.jpg", b"x"), ("a.jpg", jpeg), ("._000.json", b"x"), ("a.json", TEXT)]
    members += [("._b.jpg", b"x"), ("b.jpg", jpeg), (".DS_Store", b"x"), ("b.json", TEXT)]
    path = tar_of(tmp_path / "mac.tar", members)
    index = index_of([path], tmp_path, tokenizer, foreign=True)
    expected = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    assert index.keys.tolist() == [sample["__key__"] for sample in expected] == ["a", "b"]
    assert index.rejected == 0
    for i, sample in enumerate(expected):
        members = index.read(i, tmp_path)
        assert members == {name: sample[name] for name in ("jpg", "json")}


def test_downloaded_tars_may_have_the_same_keys(tokenizer, tmp_path):
    tars = []
    for tar in ("x", "y"):
        samples = [{"__key__": f"{i:03d}", "json": {"caption": f"{tar} {i}"}} for i in range(3)]
        tars.append(write_tar(tmp_path / f"{tar}.tar", samples))
    index = index_of(tars, tmp_path, tokenizer, foreign=True)
    assert index.keys.tolist() == ["x/000", "x/001", "x/002", "y/000", "y/001", "y/002"]
    assert len(set(index.group.tolist())) == 6
    shifted = replace(index, keys=np.roll(index.keys, 1))
    for i in range(6):
        assert index.read(i, tmp_path)
        with pytest.raises(UserError, match="make its index again"):
            shifted.read(i, tmp_path)
    with pytest.raises(UserError, match="more than once"):
        index_of(tars, tmp_path, tokenizer)


def test_an_unusable_record_is_rejected_alone(tokenizer, tmp_path):
    texts = {
        "count": b'{"caption": "x", "frame_count": "\\ud800"}',
        "file": b'{"caption": "x", "video": "v", "file": "\\ud800"}',
        "deep": b"[" * 100_000,
        "mute": b'{"user": "?", "assistant": ""}',
        "good": TEXT,
    }
    tar = write_tar(tmp_path / "x.tar", [{"__key__": key, "json": text} for key, text in texts.items()])
    index = index_of([tar], tmp_path, tokenizer, foreign=True)
    assert index.keys.tolist() == ["good"]
    assert [entry["reason"] for entry in entries(tmp_path)] == ["bad_sample"] * 4 + [None]


def test_own_shards_on_another_disk_are_listed_once(tokenizer, tmp_path):
    """The shards folder may be a link to another disk, and downloaded shards may be inside the results folder."""
    disk, root = tmp_path / "disk", tmp_path / "results"
    write_tar(disk / "t/00000.tar", [{"__key__": "t-0000000", "json": TEXT}])
    about = {"source": "t", "kind": "text", "row": 0, "file": None, "key": "t-0000000", "shard": "00000.tar"}
    (disk / "t/00000.ledger.jsonl").write_text(ledger_line(**about))
    root.mkdir()
    (root / "shards").symlink_to(disk)
    shard = root / "shards/t/00000.tar"
    index = index_of([shard], root, tokenizer)
    assert index.shards.tolist() == ["shards/t/00000.tar"] and entries(root) == []
    ledgers = [shard.with_suffix(".ledger.jsonl"), ledger_of(root / "index/t.npz")]
    assert [row["count"] for row in add_up(ledgers, root / "all.jsonl", root / "data.csv")] == [1]
    index_of([shard], root, tokenizer, foreign=True)
    assert [(entry["key"], entry["shard"]) for entry in entries(root)] == [("t-0000000", "shards/t/00000.tar")]


def test_a_source_without_a_shard_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="'t': no shard"):
        index_of([], tmp_path, tokenizer)


def test_a_shard_that_changed_after_its_index_is_named(tokenizer, tmp_path):
    samples = [{"__key__": key, "json": TEXT} for key in ("a", "b")]
    tar = write_tar(tmp_path / "x.tar", samples)
    index = index_of([tar], tmp_path, tokenizer)
    place = int(index.offset[1]), int(index.length[1])
    assert read_sample(tar, *place, "b") == {"json": TEXT}
    write_tar(tar, samples[::-1])
    with pytest.raises(UserError, match=rf"x.tar: 'a' at byte {place[0]}.* 'b'.*make its index again"):
        read_sample(tar, *place, "b")
    write_tar(tar, [{"__key__": "a", "json": TEXT + b" " * 600}, *samples[1:]])
    with pytest.raises(UserError, match=rf"x.tar: no sample at byte {place[0]}"):
        read_sample(tar, *place, "b")
    tar.unlink()
    with pytest.raises(UserError, match=r"x.tar: No such file or directory; put it back"):
        read_sample(tar, *place, "b")


def picture_and_text(number: int) -> list[tuple[str, bytes]]:
    """The members of a sample, all with the same name."""
    return [("image.jpg", picture(40 * number, "JPEG")), ("image.json", b'{"caption": "number %d"}' % number)]


@pytest.mark.parametrize(
    ("members", "rejected"),
    [
        ([*picture_and_text(1), *picture_and_text(2), *picture_and_text(3)], 3),
        ([*picture_and_text(1), ("image.jpg", picture(5, "JPEG"))], 2),
        ([("a/image.jpg", picture(9, "JPEG")), ("a/image.json", TEXT), *picture_and_text(1)], 0),
    ],
    ids=["all of one name", "one without its text", "in folders"],
)
def test_samples_of_one_name_are_listed_and_never_mixed(tokenizer, tmp_path, members, rejected):
    tar = tar_of(tmp_path / "x.tar", members)
    index = index_of([tar], tmp_path, tokenizer, foreign=True, max_reject=1)
    assert (len(index), index.rejected) == (0 if rejected else 2, rejected)
    messages = [entry["message"] for entry in entries(tmp_path) if entry["reason"]]
    assert len(messages) == rejected and all("'image'" in text and "'jpg'" in text for text in messages)


def shard_of(path: Path, prefix: str) -> bytes:
    return write_tar(path, [{"__key__": f"{prefix}{i}", "json": TEXT} for i in range(3)]).read_bytes()


def test_joined_tars_are_read_to_their_end(tokenizer, tmp_path):
    parts = [shard_of(tmp_path / f"{prefix}.tar", prefix) for prefix in "abc"]
    (tmp_path / "joined.tar").write_bytes(b"".join([parts[0], bytes(3 << 20), *parts[1:]]))
    index = index_of([tmp_path / "joined.tar"], tmp_path, tokenizer, foreign=True)
    assert index.keys.tolist() == [f"{prefix}{i}" for prefix in "abc" for i in range(3)]
    assert index.read(8, tmp_path) == {"json": TEXT}


@pytest.mark.parametrize("behind", [b"# made by a tool\n" * 40, b"\x89PNG" + bytes(2000)])
def test_content_behind_a_tar_that_is_no_tar_is_refused_with_its_byte(tokenizer, tmp_path, behind):
    content = shard_of(tmp_path / "a.tar", "a")
    (tmp_path / "b.tar").write_bytes(content + behind)
    with pytest.raises(UserError, match=rf"b\.tar: .*byte {len(content)}"):
        index_of([tmp_path / "b.tar"], tmp_path, tokenizer, foreign=True)


def test_a_hole_of_zeros_is_refused_with_its_byte(tokenizer, tmp_path):
    contents = {"jpg": picture(9, "JPEG"), "json": TEXT}
    members = [(f"{i}.{suffix}", content) for i in range(3) for suffix, content in contents.items()]
    content = bytearray(tar_of(tmp_path / "a.tar", members).read_bytes())
    second = content.index(b"1.jpg")
    content[second : second + 512] = bytes(512)
    (tmp_path / "hole.tar").write_bytes(content)
    with pytest.raises(UserError, match=rf"hole\.tar: (no|damaged) tar header at byte {second + 512}"):
        index_of([tmp_path / "hole.tar"], tmp_path, tokenizer, foreign=True)


@pytest.mark.parametrize(("module", "name"), [("gzip", "gzip"), ("bz2", "bzip2"), ("lzma", "xz")])
def test_a_compressed_tar_says_what_it_is(tokenizer, tmp_path, module, name):
    packed = importlib.import_module(module).compress(shard_of(tmp_path / "a.tar", "a"))
    (tmp_path / "b.tar").write_bytes(packed)
    with pytest.raises(UserError, match=f"compressed with {name}.*unpack"):
        index_of([tmp_path / "b.tar"], tmp_path, tokenizer, foreign=True)


PARTS = [{"type": "text", "text": "a cat"}, {"type": "text", "text": "on a mat"}]


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ({"caption": ["a cat", "a dog"]}, "`caption` is list"),
        ({"user": "?", "assistant": ["yes"]}, "`assistant` is list"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": ["a", "b"]}]}, "type str"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "x"}]},
            "image",
        ),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": PARTS}]}, None),
    ],
)
def test_a_list_where_one_text_is_expected(tokenizer, tmp_path, content, fact):
    tar = write_tar(tmp_path / "x.tar", [{"__key__": "a", "json": content}])
    index = index_of([tar], tmp_path, tokenizer, foreign=True, max_reject=1)
    if fact:
        assert len(index) == 0 and fact in entries(tmp_path)[0]["message"]
        return
    ids, answer = encode_chat(load_tokenizer(tokenizer), sample_text(index.read(0, tmp_path), "?"))
    assert load_tokenizer(tokenizer).decode(ids[answer].tolist()).strip() == "a cat\non a mat"


def test_ids_may_have_holes(tokenizer, tmp_path):
    """The largest id, not the number of entries, bounds the ids of a sample."""
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 900
    (tmp_path / "holed").mkdir()
    (tmp_path / "holed/tokenizer.json").write_text(json.dumps(content))
    samples = {"in": [1, 900], "out": [1, 901]}
    shard = write_tar(tmp_path / "x.tar", [{"__key__": k, "json": {"token_ids": ids}} for k, ids in samples.items()])
    index = index_of([shard], tmp_path, tmp_path / "holed", foreign=True, max_reject=1)
    assert index.keys.tolist() == ["in"] and "900" in entries(tmp_path)[1]["message"]
