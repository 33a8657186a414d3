"""Finished shards are kept when Snakemake deletes the outputs of a cancelled group."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fvlm.__main__ import main
from fvlm.data.shards.kept import FOLDER, bring_back, keep
from tests.train_cases import content_in


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(noise.integers(0, 255, (64, 80, 3), np.uint8)).save(folder / f"{name}.jpg")
    rows = [{"file": f"{name}.jpg", "caption": name} for name in "abc"]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make(photos: Path, *more: str) -> dict[str, tuple[int, int]]:
    """Make the first shard like the workflow; return its files with inode and time."""
    out = photos.parent / "shards"
    arguments = ["--kind", "image", "--shard", "0", "--processes", "1", "--out", str(out)]
    assert main(["shard", str(photos), *arguments, *(more or ("--keep",))]) == 0
    files = {path.name: path.stat() for path in out.iterdir() if path.is_file()}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in files.items()}


def delete(photos: Path) -> None:
    """Delete the files of the shard like Snakemake."""
    for path in (photos.parent / "shards").iterdir():
        if path.is_file():
            path.unlink()


def test_a_deleted_shard_is_restored_each_time(photos):
    made = make(photos)
    assert set(made) == {"00000.tar", "00000.ledger.jsonl", "00000.tar.sha256"}
    for _ in range(2):
        delete(photos)
        assert make(photos) == made


@pytest.mark.parametrize("change", ["table", "picture", "settings", "half kept", "damaged note"])
def test_a_shard_is_not_restored_if_its_inputs_have_changed(photos, change):
    made, more = make(photos), ()
    kept = photos.parent / "shards" / FOLDER
    if change == "table":
        table = photos / "samples.jsonl"
        table.write_text(table.read_text().replace('"b"', '"B"'))
    elif change == "picture":
        shutil.copyfile(photos / "a.jpg", photos / "b.jpg")
    elif change == "settings":
        more = ("--keep", "--squash")
    elif change == "half kept":
        (kept / "00000.ledger.jsonl").unlink()
    else:
        (kept / "00000.tar.json").write_text("{")
    delete(photos)
    again = make(photos, *more)
    assert set(again) == set(made) and not set(again.values()) & set(made.values())
    delete(photos)
    assert make(photos, *more) == again


def test_a_shard_is_made_even_if_it_cannot_be_kept(photos):
    """For example on a disk without hard links; here the hidden folder is a file."""
    (photos.parent / "shards").mkdir()
    (photos.parent / "shards" / FOLDER).write_text("")
    made = make(photos)
    delete(photos)
    (photos.parent / "shards" / FOLDER).write_text("")
    assert not set(make(photos).values()) & set(made.values())


def test_a_shard_is_kept_only_with_keep(photos):
    make(photos, "--samples-per-shard", "10")
    assert not (photos.parent / "shards" / FOLDER).exists()


def test_an_index_removes_the_kept_files(prepared, tmp_path):
    """All shard jobs have succeeded then, and a shard that is forced must really be made."""
    results = tmp_path / "results"
    shutil.copytree(prepared / "shards/grid", results / "shards/grid")
    shutil.copytree(prepared / "tokenizer", results / "tokenizer")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content_in(results)))
    tar, listed = results / "shards/grid/00000.tar", results / "shards/grid/00000.jsonl"
    keep((tar, listed), "its inputs")
    assert bring_back((tar, listed), "its inputs")
    assert main(["index", "grid", "--study", str(tmp_path / "study.yaml")]) == 0
    assert not bring_back((tar, listed), "its inputs") and tar.is_file()
    assert not (tar.parent / FOLDER).exists()
