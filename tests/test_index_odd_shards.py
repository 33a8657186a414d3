"""Shards that were downloaded, moved, linked or changed: an entry of the ledger or one sentence, never a crash."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fvlm.data.shards.index import ledger_of, write_index
from fvlm.data.shards.ledger import add_up, ledger_line
from fvlm.data.shards.tar import read_sample
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
