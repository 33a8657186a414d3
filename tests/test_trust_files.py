"""Untrusted tables, arrays, weights and tokenizers: nothing in them is executed or fills the memory.

Files with huge claims are read in a process with limited memory.
"""

import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import Dinov2Model

from fvlm.config import schema
from fvlm.data.readers import READERS, count_rows, read_rows
from fvlm.data.shards.arrays import open_arrays, save_arrays
from fvlm.data.shards.index import load_index
from fvlm.data.shards.text import copy_tokenizer
from fvlm.errors import UserError
from fvlm.model.build import ENCODER_FIELDS, encoder_config, load_pretrained, load_weights
from fvlm.train.state import load_checkpoint
from tests.conftest import ROOT
from tests.limited import GIB, within


class Harmful:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# --- tables ---


@pytest.mark.parametrize(
    ("name", "start", "fact"),
    [
        ("a.jsonl", b'{"file": "', r"line 1 .*64 MiB"),
        ("a.csv", b"file,caption\nx,", r"line 2 .*64 MiB"),
        ("a.json", b"", r"3072 MiB.*\.jsonl"),
    ],
)
def test_a_table_of_gigabytes_is_refused_before_it_is_read(tmp_path, name, start, fact):
    with (tmp_path / name).open("wb") as file:
        file.write(start)
        file.truncate(3 * GIB)
    result = within(GIB // 2, read_rows, tmp_path, name, 0, 5)
    assert re.search(f"UserError .*{fact}", result), result


def test_a_parquet_file_with_too_many_rows_in_its_header_is_refused(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(pyarrow.table({"file": ["a"] * 9, "caption": ["x"] * 9}), tmp_path / "a.parquet")
    monkeypatch.setattr("fvlm.data.readers.tables.MOST_ROWS", 8)
    with pytest.raises(UserError, match=r"a\.parquet: 9 rows"):
        count_rows(tmp_path, "a.parquet")


# --- arrays and weights ---


def npz(path: Path, shape: str, kind: str = "<f8", content: bytes = b"\0" * 64, packed: bool = False) -> Path:
    about = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    about = about.ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(about)) + about + content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name in ("shards", "offset", "identity"):
            archive.writestr(f"{name}.npy", member)
    return path


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(4611686018427387904, 8)", "(300000000,)"])
def test_an_index_with_terabytes_in_a_header_is_refused(tmp_path, shape):
    path = npz(tmp_path / "a.npz", shape)
    result = within(GIB // 4, load_index, path)
    assert result.startswith("UserError") and "a.npz: no index" in result and "`fvlm index`" in result


def test_arrays_are_neither_uncompressed_nor_unpickled(tmp_path):
    packed = npz(tmp_path / "a.npz", "(16000000,)", content=bytes(128_000_000), packed=True)
    assert packed.stat().st_size < 4 << 20
    assert "is compressed" in within(GIB // 16, load_index, packed)
    harmful = pickle.dumps(np.array([Harmful(tmp_path / "made")], object))
    for path in (npz(tmp_path / "b.npz", "(1,)", "|O", harmful), tmp_path / "c.npz"):
        if path.name == "c.npz":
            np.savez(path, shards=np.array([Harmful(tmp_path / "made")], object))
        with pytest.raises(ValueError, match="object"), open_arrays(path):
            pass
    (tmp_path / "d.npz").write_bytes(harmful)
    with pytest.raises(ValueError, match=r"no \.npz"), open_arrays(tmp_path / "d.npz"):
        pass
    assert not (tmp_path / "made").exists()
    save_arrays(tmp_path / "e.npz", {"a": np.arange(3), "b": np.array("x"), "c": np.zeros((0, 2), np.uint64)})
    with open_arrays(tmp_path / "e.npz") as stored:
        assert stored["a"].tolist() == [0, 1, 2] and stored["c"].shape == (0, 2)


def test_weights_with_terabytes_in_a_header_are_refused(tmp_path):
    claimed = {"weight": {"dtype": "F32", "shape": [10**13], "data_offsets": [0, 4 * 10**13]}}
    for about in (json.dumps(claimed).encode(), None):
        length = len(about) if about else 1 << 42
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + (about or b"{}"))
        result = within(GIB // 4, load_weights, torch.nn.Linear(2, 2), tmp_path / "a.safetensors")
        assert re.match(r"UserError .*a\.safetensors", result), result
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "nowhere.safetensors")


def test_a_checkpoint_is_neither_unpickled_nor_uncompressed(tmp_path, capsys):
    for name, content in (("1", {"identity": Harmful(tmp_path / "made")}), ("2", torch.zeros(20_000_000))):
        torch.save({"identity": "x", "content": content}, tmp_path / f"step_0000000{name}.pt")
    with zipfile.ZipFile(tmp_path / "step_00000002.pt") as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(tmp_path / "step_00000002.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    assert load_checkpoint(tmp_path, "x") is None and not (tmp_path / "made").exists()
    output = capsys.readouterr().err
    assert "compressed" in output and output.count("unreadable checkpoint") == 2


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as before torch 1.6"])
def test_pretrained_weights_in_a_pickle_are_read_only_if_they_are_tensors(tmp_path, zipped):
    wanted = encoder_config(schema.EncoderSize(name="x", width=16, layers=1, heads=2, mlp_ratio=2, patch=32, image=224))
    model = Dinov2Model(wanted)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = model.state_dict()
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    loaded = load_pretrained(Dinov2Model, str(tmp_path), wanted, "encoder", ENCODER_FIELDS)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in weights.items())
    harmful = {**weights, "more": Harmful(tmp_path / "made")}
    torch.save(harmful, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"pickle.*model.safetensors"):
        load_pretrained(Dinov2Model, str(tmp_path), wanted, "encoder", ENCODER_FIELDS)
    assert not (tmp_path / "made").exists()


def test_a_tokenizer_does_not_bring_code(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "own.Own"}, "model_type": "own"}))
    (tmp_path / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'made')!r})\n")
    with pytest.raises(UserError, match="contains custom code"):
        copy_tokenizer(str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "made").exists()


def test_nothing_in_the_package_reads_a_pickle():
    """Search the source for functions that unpickle, and for torch.load and np.load without their safe argument."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text()
        assert not re.search(r"pickle\.loads?\(|joblib|shelve|read_pickle|read_hdf|h5py|marshal|extractall", text), path
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        for call in re.findall(r"np\.load\(.*", text):
            assert "allow_pickle=False" in call, f"{path}: {call}"
        assert not re.search(r"trust_remote_code=(?!False)|yaml\.(unsafe_)?load\(|shell=True|os\.system", text), path


def test_every_reader_uses_the_functions_with_limits():
    for reader in READERS.values():
        text = (ROOT / f"src/fvlm/data/readers/{reader.module}.py").read_text()
        assert not re.search(r"tarfile\.open|csv\.reader|json\.load\(|read_csv|read_json", text), reader.module
