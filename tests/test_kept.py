"""A finished shard outlives the job that made it: Snakemake deletes the outputs of a group that was cancelled."""

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
    """Make the first shard as the workflow does; which files it consists of, by inode and time."""
    out = photos.parent / "shards"
    arguments = ["--kind", "image", "--shard", "0", "--processes", "1", "--out", str(out)]
    assert main(["shard", str(photos), *arguments, *(more or ("--keep",))]) == 0
    files = {path.name: path.stat() for path in out.iterdir() if path.is_file()}
    return {name: (about.st_ino, about.st_mtime_ns) for name, about in files.items()}


def delete(photos: Path) -> None:
    """As Snakemake deletes outputs."""
    for path in (photos.parent / "shards").iterdir():
        if path.is_file():
            path.unlink()


def test_a_deleted_shard_is_brought_back(photos, capsys):
    made = make(photos)
    assert set(made) == {"00000.tar", "00000.ledger.jsonl", "00000.tar.sha256"}
    delete(photos)
    assert make(photos) == made and "brought back" in capsys.readouterr().err
    delete(photos)
    assert make(photos) == made, "as often as it is deleted"


@pytest.mark.parametrize("change", ["table", "picture", "settings", "half kept", "damaged note"])
def test_but_not_if_anything_it_depends_on_has_changed(photos, change):
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
    assert make(photos, *more) == again, "what was made then is kept in its place"


def test_where_nothing_can_be_kept_a_shard_is_made_all_the_same(photos):
    """A full disk, or one without hard links: here the hidden folder is a file."""
    (photos.parent / "shards").mkdir()
    (photos.parent / "shards" / FOLDER).write_text("")
    made = make(photos)
    delete(photos)
    (photos.parent / "shards" / FOLDER).write_text("")
    assert not set(make(photos).values()) & set(made.values())


def test_without_being_told_nothing_is_kept(photos):
    make(photos, "--samples-per-shard", "10")
    assert not (photos.parent / "shards" / FOLDER).exists()


def test_an_index_needs_them_no_longer(prepared, tmp_path):
    """All jobs have ended well then, and what is made again on purpose must really be made."""
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
