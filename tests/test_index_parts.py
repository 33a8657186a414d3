"""The index of a source is made shard by shard: a stopped one resumes, and changed inputs are indexed again."""

import hashlib
import tarfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from fvlm.data.shards.index import check_tokenizer, ledger_of, load_index, write_index
from fvlm.data.shards.ledger import ledger_line
from fvlm.data.shards.text import train_tokenizer
from fvlm.errors import UserError
from tests.index_cases import text_shard, write_tar
from tests.reader_cases import lines_of, picture


@pytest.fixture(scope="module")
def root(tokenizer) -> Path:
    """A results folder with a tokenizer."""
    return tokenizer.parent


def index_texts(root: Path, shards: list[Path], out: Path, **changes):
    options = {"tokenizer_folder": root / "tokenizer", "prompt": "?", "kind": "text", "source": "t", **changes}
    return write_index(shards, out, root=out.parent, **options)


def parts_of(out: Path) -> dict[str, int]:
    """Parts and the inodes of their files, which change when one is written again."""
    return {path.name.split("-")[0]: path.stat().st_ino for path in out.with_suffix("").glob("*.npz")}


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


def test_only_new_shards_are_indexed_and_parts_of_removed_ones_deleted(root, tmp_path):
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


def test_changed_inputs_and_settings_are_indexed_again(root, tmp_path):
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
    jpeg = picture(90, "JPEG", (224, 224))
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
        with pytest.raises(UserError, match=r"b\.tar.* byte 0"):
            write_index(shards, tmp_path / "y.npz", "x", "image", root / "tokenizer", "?", root, processes)
    assert not (tmp_path / "y.npz").exists()


def test_a_tar_is_compared_with_the_checksum_beside_it(root, tmp_path):
    tar, out = text_shard(tmp_path / "a.tar", "a"), tmp_path / "t.npz"
    beside = tmp_path / "a.tar.sha256"
    digest = hashlib.sha256(tar.read_bytes()).hexdigest()
    for line in (f"{digest}  a.tar\n", f"{digest.upper()} *a.tar\n"):
        beside.write_text(line)
        assert len(index_texts(root, [tar], out)) == 1
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"it is", b"it IS"))  # the checksums inside a tar do not cover this
    with pytest.raises(UserError, match=rf"a.tar: .*{digest}"):
        index_texts(root, [tar], out)
    beside.write_text("nothing\n")
    with pytest.raises(UserError, match=r"a.tar.sha256: .*'nothing'.*`sha256sum a.tar`"):
        index_texts(root, [tar], out)
    beside.unlink()
    assert len(index_texts(root, [tar], out)) == 1


def test_an_index_of_another_tokenizer_is_refused(root, tmp_path):
    index = index_texts(root, [text_shard(tmp_path / "a.tar", "a")], tmp_path / "t.npz")
    check_tokenizer(load_index(tmp_path / "t.npz"), root / "tokenizer")
    train_tokenizer(["other texts"] * 9, 262, tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"'t'.*another tokenizer .*`fvlm index t`"):
        check_tokenizer(index, tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer.json.*`fvlm tokenizer`"):
        check_tokenizer(index, tmp_path)


def test_an_index_of_another_version_must_be_made_again(root, tmp_path):
    out, tar = tmp_path / "t.npz", text_shard(tmp_path / "a.tar", "a")
    index_texts(root, [tar], out)
    part = next(out.with_suffix("").glob("*.npz"))
    for path in (out, part):  # an older version without two columns
        with np.load(path) as stored:
            kept = {name: stored[name] for name in stored if name not in ("question_tokens", "rejected_tokens")}
        np.savez(path, **kept | ({"identity": "{}"} if path == part else {}))
    with pytest.raises(UserError, match=r"t.npz: .*version.*_tokens.*`fvlm index`"):
        load_index(out)
    assert same(index_texts(root, [tar], out), load_index(out))


def test_a_source_with_too_many_rejects_has_no_index(root, tmp_path):
    """The shard's ledger rejects three of six rows, the index a fourth one."""
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
