"""Sources become lists of files and numbers of samples before anything runs."""

import pytest

from fvlm.data.readers import read_rows
from fvlm.data.sources import foreign_tars, sample_count, tars_of, training_count
from fvlm.errors import UserError
from fvlm.schema import Source


def source(**fields) -> Source:
    return Source(**{"name": "x", "kind": "video", "reader": "shards", **fields})


def test_a_range_names_every_tar_without_any_being_there():
    tars = foreign_tars(source(path="data/x/{00008..00011}.tar"))
    assert tars == [f"data/x/{i:05d}.tar" for i in range(8, 12)]


def test_a_wildcard_becomes_the_files_it_finds(tmp_path):
    """A pattern handed on unexpanded once stood for a single file that did not exist."""
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    assert foreign_tars(source(path=f"{tmp_path}/*.tar")) == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    with pytest.raises(UserError, match=r"names no tar; expected one such as"):
        foreign_tars(source(path=f"{tmp_path}/*.tgz"))


def test_rows_of_a_folder_are_counted_unless_declared(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"file": "a.mp4", "caption": "a"}\n' * 7)
    mine = source(reader="folder", path=str(tmp_path))
    assert sample_count(mine, "results") == 7
    assert sample_count(mine.model_copy(update={"samples": 5}), "results") == 5
    assert training_count(mine.model_copy(update={"held_out": 0.5}), "results") == 3.5


def test_what_cannot_be_counted_is_named(tmp_path):
    with pytest.raises(UserError, match=r"'x'.*no folder '.*nowhere'.*correct the path"):
        sample_count(source(reader="folder", path=str(tmp_path / "nowhere")), "results")
    with pytest.raises(UserError, match=r"'x'.*needs `samples:`"):
        sample_count(source(path="data/{0..1}.tar"), "results")
    with pytest.raises(UserError, match=r"'x' has no path"):
        sample_count(source(reader="folder"), "results")


def test_shards_of_a_made_source_follow_from_its_samples(tmp_path):
    from fvlm.config import study_from_files
    from tests.conftest import ROOT

    study = study_from_files([str(ROOT / "config/smoke.yaml")], folder=ROOT / "config")
    grid = study.sources["grid"]
    assert len(tars_of(grid, study)) == -(-grid.samples // study.shards.samples)


def test_a_caption_with_a_bare_comma_is_not_cut_in_silence(tmp_path):
    (tmp_path / "captions.csv").write_text('file,caption\na.mp4,one, two\nb.mp4,"one, two"\n')
    cut, whole = read_rows(tmp_path, "captions.csv")
    assert "quotes" in cut.problem and whole.problem is None and whole.text == {"caption": "one, two"}
