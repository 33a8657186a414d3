"""`fvlm caption` of a run that asks before it looks."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_model

from fvlm.config.resolve import load_study, read_yaml
from fvlm.data.shards.text import encode_chat, load_tokenizer, question_length, train_tokenizer
from fvlm.evaluate import caption
from fvlm.model.build import build_model

CONFIG = Path(__file__).resolve().parents[1] / "config"
QUESTION = "What is this?"


def finished(folder: Path, question_first: float) -> Path:
    """A run that has learnt nothing, with all that a caption needs."""
    smoke = {**read_yaml(CONFIG / "smoke.yaml"), "baseline": {"data.question_first": question_first}}
    smoke["baseline"] |= read_yaml(CONFIG / "smoke.yaml")["baseline"]
    run = load_study(smoke, CONFIG).runs["stage1"]
    train_tokenizer(["What is this? A thing."], 300, folder / "tokenizer")
    weights = folder / "runs" / "stage1" / "model"
    weights.mkdir(parents=True)
    (weights / "run.json").write_text(run.model_dump_json())
    save_model(build_model(run.model, 0), str(weights / "best.safetensors"))
    return folder / "runs" / "stage1"


@pytest.fixture
def picture(tmp_path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_question_stands_where_most_of_the_training_had_it(tmp_path, picture, capsys, monkeypatch, share):
    seen, generate = [], caption.generate

    def watched(model, batch, *rest):
        seen.append(batch)
        return generate(model, batch, *rest)

    monkeypatch.setattr(caption, "generate", watched)
    folder = finished(tmp_path, share)
    assert caption.main(Namespace(run=folder, question=QUESTION, tokens=3, mode=None, files=[picture])) == 0
    assert capsys.readouterr().out.startswith(f"{picture}: ")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    ids, mask = encode_chat(tokenizer, {"user": QUESTION, "assistant": "A thing."})
    asked = question_length(tokenizer, ids, mask)  # as in training
    assert asked > 0 and seen[0].question_counts.tolist() == [asked if share > 0.5 else 0]
    prompt = seen[0].token_ids.tolist()
    assert prompt == ids[: len(prompt)].tolist() and mask[len(prompt)]
