"""Files and numbers of samples of sources, before anything runs."""

import re
from types import SimpleNamespace

import pytest
import yaml

from fvlm.config.resolve import load_study
from fvlm.config.schema import Source
from fvlm.config.study_file import read_yaml
from fvlm.data.readers import READERS
from fvlm.data.sources import input_tars, ledgers_of, sample_count, shard_count, shard_inputs, tars_of, training_count
from fvlm.errors import UserError
from fvlm.snakemake.study import StudyOfRules
from tests.conftest import ROOT
from tests.reader_cases import write_table, write_tar


def source(**fields) -> Source:
    return Source(**{"name": "x", "kind": "video", "reader": "shards", **fields})


def test_a_path_names_the_tars_of_a_range_or_wildcard(tmp_path):
    tars = input_tars(source(path="data/x/{00008..00011}.tar"))
    assert tars == [f"data/x/{i:05d}.tar" for i in range(8, 12)]
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    assert input_tars(source(path=f"{tmp_path}/*.tar")) == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    with pytest.raises(UserError, match=r"'x'.*\*.tgz.*expected"):
        input_tars(source(path=f"{tmp_path}/*.tgz"))


def test_rows_of_a_folder_are_counted_unless_declared(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"file": "a.mp4", "caption": "a"}\n' * 7)
    mine = source(reader="folder", path=str(tmp_path))
    assert sample_count(mine, "results") == 7
    assert sample_count(mine.model_copy(update={"samples": 5}), "results") == 5
    assert training_count(mine.model_copy(update={"held_out": 0.5}), "results") == 3.5


def test_a_source_that_cannot_be_counted_is_named(tmp_path):
    with pytest.raises(UserError, match=r"'x'.*nowhere.*`samples:`"):
        sample_count(source(reader="folder", path=str(tmp_path / "nowhere")), "results")
    with pytest.raises(UserError, match=r"'x'.*needs `samples:`"):
        sample_count(source(path="data/{0..1}.tar"), "results")
    with pytest.raises(UserError, match=r"'x'.*`path`"):
        sample_count(source(reader="folder"), "results")


def test_every_example_in_the_docs_is_a_source(folder):
    """Each entry is in config/sources.yaml as well, and a study that prepares it names its shards."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/datasets.md").read_text(), re.DOTALL)
    entries = {name: entry for block in blocks for name, entry in yaml.safe_load(block).items()}
    assert {entry["reader"] for entry in entries.values()} == set(READERS) - {"folder", "files"}
    stored = read_yaml(ROOT / "config/sources.yaml")
    assert entries == {name: stored[name] for name in entries}
    content = {**read_yaml(ROOT / "config/paper.yaml"), "prepare": list(entries)}
    content["sources"] = {name: {"samples": 2500} for name in entries}
    study = load_study(content, folder)
    for name, entry in entries.items():
        made = study.sources[name]
        assert made.kind == entry["kind"] and made.crop
        tars = 19 if entry["reader"] == "video2dataset" else 3
        assert tars_of(made, study) == [f"results/paper/shards/{name}/{i:05d}.tar" for i in range(tars)]
    assert f"results/paper/shards/{name}/00002.ledger.jsonl" in ledgers_of(study)


def test_each_source_has_its_own_prompt():
    sources = read_yaml(ROOT / "config/sources.yaml")
    finished = ["webvid", "openvid", "vript_long", "vript_short", "sharegpt4video"]
    prompts = [sources[name]["prompt"] for name in finished]
    assert len(set(prompts)) == len(finished)
    assert prompts == [sources[f"{name}_raw"]["prompt"] for name in finished]
    assert sources["webvid_downloaded"]["prompt"] == sources["webvid"]["prompt"]


@pytest.mark.parametrize("entry", ["reader: webvd", "crop: 3", "table: [a]", "squash: true"])
def test_a_mistaken_entry_is_refused(folder, entry):
    with (folder / "sources.yaml").open("a") as file:
        file.write(f"\nx: {{kind: video, path: x, {entry if 'reader' in entry else 'reader: folder, ' + entry}}}\n")
    with pytest.raises(UserError, match=r"sources.yaml: source 'x'"):
        load_study(read_yaml(ROOT / "config/smoke.yaml"), folder)


def test_samples_of_small_tables_need_not_be_declared(tmp_path, monkeypatch):
    chats = [{"messages": [{"role": "user", "content": "q"}], "source": "x"}] * 5
    for name in ("a", "b"):
        write_table(tmp_path / f"data/{name}.parquet", chats)
    parquet = source(reader="smoltalk", kind="text", path=str(tmp_path), table="data/*.parquet")
    assert sample_count(parquet, "results") == 10
    lines = source(reader="smoltalk", kind="text", path=str(tmp_path), table="t.jsonl", name="lines")
    write_table(tmp_path / "t.jsonl", chats)
    monkeypatch.setattr("fvlm.data.sources.COUNTED_BYTES", 1000)
    assert sample_count(lines, "results") == 5
    monkeypatch.setattr("fvlm.data.sources.COUNTED_BYTES", 100)
    with pytest.raises(UserError, match=r"'lines'.*`samples:`.* 0 MiB"):
        sample_count(lines, "results")
    assert sample_count(parquet, "results") == 10


def test_tars_of_videos_are_one_shard_each(tmp_path):
    for name in ("00000", "00001"):
        write_tar(tmp_path / f"{name}.tar", [(name, {"txt": b"c"})])
    tars = source(reader="video2dataset", path=f"{tmp_path}/*.tar")
    study = load_study(read_yaml(ROOT / "config/smoke.yaml"), ROOT / "config")
    assert shard_count(tars, study) == 2
    assert shard_inputs(tars, "results")(1) == [f"{tmp_path}/00001.tar"]
    with pytest.raises(UserError, match=r"`samples:`.*00000.tar has no .parquet"):
        sample_count(tars, "results")
    write_table(tmp_path / "00000.parquet", [{"key": "00000"}, {"key": "lost"}])
    write_table(tmp_path / "00001.parquet", [{"key": "00001"}])
    assert sample_count(tars, "results") == 3
    assert shard_inputs(tars, "results")(1) == [f"{tmp_path}/00001.tar", f"{tmp_path}/00001.parquet"]
    ranged = source(reader="video2dataset", path="data/x/{00007..00009}.tar", samples=9)
    assert shard_count(ranged, study) == 3 and shard_inputs(ranged, "results")(1) == ["data/x/00008.tar"]


def test_inputs_of_a_shard(tmp_path):
    mine = source(reader="folder", path="my", table="captions.csv")
    assert shard_inputs(mine, "results")(3) == ["my/captions.csv"]
    assert shard_inputs(source(reader="demo"), "results")(0) == ["results/corpus/x/samples.jsonl"]
    assert shard_inputs(source(reader="files", path="my"), "results")(0) == ["my"]
    for name in ("a/1.parquet", "a/2.parquet", "b/1.parquet"):
        write_table(tmp_path / name, [{"images": None}])
    many = source(reader="cauldron", path=str(tmp_path))
    assert shard_inputs(many, "results")(0) == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert shard_inputs(source(reader="cauldron", path="nowhere", samples=5), "results")(0) == []


def test_one_setting_moves_all_datasets(tmp_path):
    """The shards lie in the folders of the published study, under any names."""
    study = load_study(read_yaml(ROOT / "config/paper.yaml"), ROOT / "config")
    paths = [source.path for source in study.sources.values() if source.path]
    assert paths and all(path.startswith("data/") for path in paths)
    for name in ("text_retention/stage1/00000.tar", "text_retention/stage1/000001.tar", "eval/val_10k/a.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    moved = load_study(read_yaml(ROOT / "config/paper.yaml") | {"data_root": f"{tmp_path}/"}, ROOT / "config")
    assert [run.digest for run in moved.runs.values()] == [run.digest for run in study.runs.values()]
    found = tars_of(moved.sources["smoltalk_s1"], moved)
    assert found == [f"{tmp_path}/text_retention/stage1/{name}.tar" for name in ("00000", "000001")]
    rules = StudyOfRules(moved, None)
    assert rules.index_tars(SimpleNamespace(source="smoltalk_s1")) == found
    assert rules.index_tars(SimpleNamespace(source="cauldron")) == []  # a plan needs no data ...
    with pytest.raises(UserError, match=r"'cauldron': path .*cauldron_full/\*\.tar' names no tar"):
        tars_of(moved.sources["cauldron"], moved)  # ... an index does
