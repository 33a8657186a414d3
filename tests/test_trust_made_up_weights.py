"""Made-up arrays, tokenizers, weights and checkpoints are refused without running code or exhausting memory."""

import json
import os
import re
import struct
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Model

from fvlm.config import schema
from fvlm.data.shards.index import Index, load_index
from fvlm.data.shards.text import copy_tokenizer, encode_chat, load_tokenizer
from fvlm.errors import UserError
from fvlm.model.build import ENCODER_FIELDS, encoder_config, load_pretrained
from fvlm.train.state import load_checkpoint, save_checkpoint
from tests.limited import GIB, within

# --- arrays ---


def npz(path: Path, about: str, content: bytes = b"", version: bytes = b"\1\0") -> Path:
    line = about.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        for field in fields(Index):
            archive.writestr(
                f"{field.name}.npy", b"\x93NUMPY" + version + struct.pack("<H", len(line)) + line + content
            )
    return path


@pytest.mark.parametrize(
    "about",
    [
        "{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1" + "0" * 40 + ")}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -5)}",
        "(" * 9000,
        "{'descr': " + "-" * 9000 + "1}",
    ],
    ids=["no bytes", "no rows", "negative", "brackets", "signs"],
)
def test_an_array_with_an_impossible_header_is_refused(tmp_path, about):
    answer = within(GIB // 4, load_index, npz(tmp_path / "a.npz", about, bytes(40 if "-1, -5" in about else 0)))
    assert answer.startswith("UserError") and "no index" in answer, answer


def test_encrypted_or_mixed_archives_and_wrong_arrays_are_no_index(tmp_path):
    whole = npz(tmp_path / "a.npz", "{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(8))
    content = bytearray(whole.read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # flag: encrypted
        content[content.index(mark) + flags] |= 1
    (tmp_path / "b.npz").write_bytes(content)
    number = b"\x93NUMPY\1\0" + struct.pack("<H", 118) + b"{'descr': '<f8', 'fortran_order': False, 'shape': (10**9,)}"
    (tmp_path / "c.npz").write_bytes(number + whole.read_bytes())  # an array file with a zip appended
    np.savez(tmp_path / "d.npz", **{field.name: np.zeros(3) for field in fields(Index)})
    for name in ("a", "b", "c", "d"):
        with pytest.raises(UserError, match="no index"):
            load_index(tmp_path / f"{name}.npz")


# --- tokenizers ---


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, tokenizer):
    for content in (b"garbage", b"{}", b"[" * 1_000_000, b""):
        (tmp_path / "tokenizer.json").write_bytes(content)
        for load in (load_tokenizer, lambda folder: copy_tokenizer(folder, tmp_path / "out")):
            with pytest.raises(UserError, match="tokenizer"):
                load(str(tmp_path))
    os.truncate(tmp_path / "tokenizer.json", 3 * GIB)
    assert "tokenizer.json" in within(GIB // 4, load_tokenizer, tmp_path)


def test_a_tokenizer_whose_pattern_never_ends_is_refused(tmp_path, tokenizer, capfd):
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": "(x+)+$"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="another tokenizer"):
        encode_chat(load_tokenizer(tmp_path), {"user": "x" * 200 + "y", "assistant": "z"})


# --- weights and checkpoints ---


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a small encoder, and the configuration that it should have."""
    wanted = encoder_config(schema.EncoderSize(name="x", width=16, layers=1, heads=2, mlp_ratio=2, patch=32, image=224))
    folder = tmp_path_factory.mktemp("encoder")
    Dinov2Model(wanted).save_pretrained(folder)
    return folder, wanted


def loaded(folder: Path, wanted) -> str:
    return type(load_pretrained(Dinov2Model, str(folder), wanted, "encoder", ENCODER_FIELDS)).__name__


@pytest.mark.parametrize(
    "more",
    [
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"quantization_config": 5},
        {"transformers_weights": "../../elsewhere.safetensors"},
        {"num_labels": 10**12},
        {"id2label": 5},
    ],
    ids=lambda more: next(iter(more)),
)
def test_only_the_architecture_of_a_model_config_is_read(tmp_path, encoder, more):
    """`attn_implementation` can name code on a hub, which transformers would fetch and run."""
    folder, wanted = encoder
    content = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | more))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert within(GIB // 4, loaded, tmp_path, wanted) == "'Dinov2Model'"


@pytest.mark.parametrize(
    "broken",
    [
        {"config.json": b"[]"},
        {"config.json": b"5"},
        {"config.json": b"[" * 100_000},
        {"config.json": b'{"hidden_size": "16", "num_hidden_layers": [1]}'},
        {"config.json": b'{"num_hidden_layers": 1000000000}'},
        {"config.json": b'{"hidden_act": {}}'},
        {"model.safetensors": None, "pytorch_model.bin": b""},
        {"model.safetensors": None, "model.safetensors.index.json": b"[]"},
        {
            "model.safetensors": None,
            "model.safetensors.index.json": b'{"weight_map": {"a": "../../../x"}, "metadata": {}}',
        },
    ],
    ids=lambda broken: str(list(broken.values())[-1][:30]),
)
def test_a_damaged_model_folder_is_refused(tmp_path, encoder, broken):
    folder, wanted = encoder
    for name in ("config.json", "model.safetensors"):
        if name not in broken:
            (tmp_path / name).symlink_to(folder / name)
    for name, content in broken.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    answer = within(GIB // 4, loaded, tmp_path, wanted)
    assert answer.startswith("UserError") and "model.encoder" in answer, answer


def test_a_file_that_is_no_checkpoint_is_skipped(tmp_path, capsys):
    """torch can build many types without running code; only those of a checkpoint are allowed."""
    save_checkpoint(tmp_path, 1, {"identity": "x", "step": 1, "model": {"a": torch.ones(2)}}, keep=9)
    for step, content in enumerate(([1, 2], None, {"step": 1}, torch.zeros(3), {"identity": "x"}), 2):
        torch.save(content, tmp_path / f"step_{step:08d}.pt")
    bytes_ = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R."  # 64 GiB
    for step, pickled in enumerate((bytes_, b".", b"\x80\x02h\5.", b"\x80\x02}]K\1s."), 20):
        with zipfile.ZipFile(tmp_path / "step_00000001.pt") as good:
            members = {name: good.read(name) for name in good.namelist()}
        with zipfile.ZipFile(tmp_path / f"step_{step:08d}.pt", "w") as made:
            for name, content in members.items():
                made.writestr(name, pickled if name.endswith("data.pkl") else content)
    (tmp_path / "step_00000099.pt").mkdir()
    assert load_checkpoint(tmp_path, "x")["step"] == 1
    answer = capsys.readouterr().err
    assert len(re.findall(r"step_000000\d\d\.pt", answer)) >= 9 and "__builtin__ bytearray" in answer
