"""A study with the real weights, and its data: short clips of the demo's scenes."""

import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from fvlm.config import schema
from fvlm.config.resolve import study_from_files
from fvlm.data.batches.loader import pack
from fvlm.data.decode.video import decode_video
from fvlm.data.demo.corpus import make_corpus
from fvlm.data.readers import read_rows
from fvlm.data.shards.index import write_index
from fvlm.data.shards.text import copy_tokenizer, encode_chat
from fvlm.data.shards.write import make_shard
from tests.conftest import ROOT
from tests.weights.make import ENCODER, LANGUAGE

SAMPLES = {"grid": 16, "grid_held_out": 4}
STUDY = {
    "study": "real", "based_on": "smoke.yaml", "prepare": [],
    "sources": {name: {"samples": count} for name, count in SAMPLES.items()},
    "only": {"stages": [], "ablations": ["baseline"], "grid": []}, "seeds": {"baseline": None},
    "evaluation": {"samples": 4, "attention_videos": 2},
    "baseline": {
        "model.encoder": "dinov2-small", "model.language": "SmolLM2-135M", "model.query_dim": 384,
        "model.query_init_std": 1.0, "model.visual_scale": 0.14, "data.sources": ["grid"], "data.share": {"video": 1.0},
        "data.max_frames": 3, "data.max_text_tokens": 64, "optim.batch_size": 2, "optim.warmup": 0.0,
        "optim.lr": {"connector": 1e-4, "dino": 1e-5, "llm": 1e-5}, "train.samples": 6, "train.evaluations": 1,
        "train.validation_samples": 2, "train.precision": "bfloat16", "operation.checkpoint_steps": 100,
    },
}  # fmt: skip


def study_file(folder: Path, weights: Path) -> Path:
    """Write a study on the real weights; its results are beside the file."""
    config = folder / "config"
    shutil.copytree(ROOT / "config", config)
    models = yaml.safe_load((config / "models.yaml").read_text())
    models["encoders"]["dinov2-small"]["weights"] = str(weights / ENCODER)
    models["languages"]["SmolLM2-135M"]["weights"] = str(weights / LANGUAGE)
    (config / "models.yaml").write_text(json.dumps(models))
    content = {**STUDY, "tokenizer": {"weights": str(weights / LANGUAGE)}, "results": str(config / "results")}
    (config / "study.yaml").write_text(json.dumps(content))
    return config / "study.yaml"


def prepare(study: Path) -> None:
    """Make clips, shards, indices and the tokenizer of the study."""
    resolved = study_from_files([str(study)], {})
    results = Path(resolved.results)
    copy_tokenizer(resolved.tokenizer.weights, results / "tokenizer")
    for name, count in SAMPLES.items():
        source, corpus = resolved.sources[name], results / "corpus" / name
        make_corpus("grid", corpus, samples=count, seed=source.demo_seed, broken=0, processes=1)
        rows = read_rows(corpus, "samples.jsonl")
        tar = results / "shards" / name / "00000.tar"
        make_shard(rows, corpus, name, source.kind, source.prompt, tar, tar.with_suffix(".jsonl"))
        index = results / "index" / f"{name}.npz"
        write_index([tar], index, name, source.kind, results / "tokenizer", source.prompt, results)


def changed(model: schema.Model, **changes) -> schema.Model:
    return model.model_copy(update=changes)


def clips(study: Path) -> list[np.ndarray]:
    """Return the frames of the training clips."""
    results = study.parent / "results"
    files = [row["file"] for row in map(json.loads, (results / "corpus/grid/samples.jsonl").read_text().splitlines())]
    return [decode_video(results / "corpus/grid" / file).frames for file in files]


def batch_of(frames: list[np.ndarray], tokenizer, user: str, assistant: str):
    """Return one sample per clip, each with this text."""
    ids, mask = encode_chat(tokenizer, {"user": user, "assistant": assistant})
    return pack([
        {"frames": clip, "positions": len(clip), "key": str(i), "source": "clips", "ids": ids, "mask": mask,
         "question": 0}
        for i, clip in enumerate(frames)
    ])  # fmt: skip
