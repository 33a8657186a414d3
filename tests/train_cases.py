"""Real shards of a small corpus, and trainings on them, that several tests share."""

import json
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file

from fvlm.config.resolve import load_study
from fvlm.config.schema import Study
from fvlm.config.study_file import merged, read_yaml
from fvlm.data.demo.corpus import main as make_corpus
from fvlm.data.readers import read_rows
from fvlm.data.shards.index import write_index
from fvlm.data.shards.text import texts_of, train_tokenizer
from fvlm.data.shards.write import make_shard
from fvlm.train.training import train
from tests.conftest import ROOT, parse

SAMPLES = {
    "grid": 24,
    "pictures": 24,
    "moves": 6,
    "chat": 16,
    "preferences": 16,
    "grid_held_out": 6,
    "moves_held_out": 2,
    "pictures_held_out": 6,
    "chat_held_out": 6,
    "preferences_held_out": 6,
}
CHANGES = {
    "stages": {
        "stage1": {"data.sources": ["grid", "pictures", "chat"], "train.samples": 24},
        "dpo": {"parent": "stage1", "data.sources": ["preferences"], "train.samples": 16, "data.loss": "preference",
                "data.share": {"preference": 1.0}, "optim.lr": {"connector": 1e-3, "dino": 1e-3, "llm": 1e-3}},
    },
    "baseline": {
        "data.sources": ["grid", "pictures", "chat"],
        "train.samples": 16,
        "operation.checkpoint_steps": 2,
    },
    "only": {"stages": ["stage1", "dpo"], "ablations": ["baseline", "F1"]},
    "sources": {name: {"samples": count} for name, count in SAMPLES.items()},
    "prepare": [],
    "seeds": {"baseline": None},
}  # fmt: skip
TIMING = ("samples_per_s", "mfu", "tflops", "memory_gb", "data_wait_s")


def prepare(results: Path) -> None:
    """Corpus, tokenizer, shards and indices of small sources, in the folder `results`."""
    study = study_in(results)
    for name in SAMPLES:
        source = study.sources[name]
        arguments = [source.demo_family or name, "--out", str(results / "corpus" / name)]
        arguments += ["--samples", str(source.samples), "--seed", str(source.demo_seed)]
        make_corpus(parse("fvlm.data.demo.corpus", arguments))
    rows = {name: read_rows(results / "corpus" / name, "samples.jsonl") for name in SAMPLES}
    texts = [text for table in rows.values() for row in table for text in texts_of(row, "")]
    train_tokenizer(texts, 512, results / "tokenizer")
    for name, table in rows.items():
        tar, source = results / "shards" / name / "00000.tar", study.sources[name]
        folder = results / "corpus" / name
        make_shard(table, folder, name, source.kind, source.prompt, tar, tar.with_suffix(".jsonl"))
        index = results / "index" / f"{name}.npz"
        write_index([tar], index, name, source.kind, results / "tokenizer", source.prompt, results)


def content_in(results: Path, **changes) -> dict:
    """The content of a study file; `changes` is merged over CHANGES."""
    return merged(read_yaml(ROOT / "config/smoke.yaml"), merged(CHANGES, {"results": str(results), **changes}))


def study_in(results: Path, **changes) -> Study:
    return load_study(content_in(results, **changes), ROOT / "config")


def records(path: Path) -> list[dict]:
    """The lines of a metrics log without what depends on the clock."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def trained(prepared: Path, tmp_path: Path, name: str = "baseline", **changes):
    """Train one run into a folder of its own; returns (metrics without what depends on the clock, final weights,
    summary)."""
    study = study_in(prepared, **changes)
    folder = tmp_path / name
    (folder / "state").mkdir(parents=True, exist_ok=True)
    train(study.runs[name], study, folder)
    return (
        records(folder / "state/metrics.jsonl"),
        load_file(folder / "model/final.safetensors"),
        json.loads((folder / "run_summary.json").read_text()),
    )


def same(a: dict, b: dict) -> bool:
    """Equal weights, bit for bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def study_file(prepared: Path, folder: Path, run: str, settings: dict) -> Path:
    """A study on the shards of `prepared`, with runs of its own, one of them with some settings."""
    results = folder / "results"
    (results / "runs").mkdir(parents=True)
    for name in ("tokenizer", "index", "shards"):
        (results / name).symlink_to(prepared / name)
    if (prepared / "runs/stage1").exists():
        (results / "runs/stage1").symlink_to(prepared / "runs/stage1")
    return change(folder / "study.yaml", run, settings)


def change(path: Path, run: str, settings: dict) -> Path:
    """Write the study file anew, with other settings of the run."""
    changes = {"ablations" if run in ("baseline", "F1") else "stages": {run: settings}}
    path.write_text(yaml.safe_dump(content_in(path.parent / "results", **changes)))
    return path
