"""Untrusted tables, arrays, weights and tokenizers: nothing in them is executed or fills the memory.

Files with huge claims are read in a process with limited memory.
"""

import json
import os
import pickle
import re
import struct
import zipfile
from dataclasses import fields
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
from fvlm.data.shards.index import Index, load_index
from fvlm.data.shards.text import copy_tokenizer, encode_chat, load_tokenizer
from fvlm.errors import UserError
from fvlm.model.build import load_weights
from fvlm.model.pretrained import ENCODER_FIELDS, encoder_config, load_pretrained
from fvlm.train.state import load_checkpoint, save_checkpoint
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


def npz(path: Path, header: str, content: bytes = bytes(64), packed: bool = False) -> Path:
    """An index whose arrays all have this header and content."""
    line = header.encode().ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line + content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for field in fields(Index):
            archive.writestr(f"{field.name}.npy", member)
    return path


def described(shape: str, kind: str = "<f8") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("header", "content"),
    [
        (described("(1000000000000,)"), bytes(64)),
        (described("(4611686018427387904, 8)"), bytes(64)),
        (described("(300000000,)"), bytes(64)),
        (described("(1000000000000,)", "|S0"), b""),
        (described("(0, 1" + "0" * 40 + ")"), b""),
        (described("(-1, -5)"), bytes(40)),
        ("(" * 9000, b""),
        ("{'descr': " + "-" * 9000 + "1}", b""),
    ],
    ids=["10^12 numbers", "2^62 rows", "2.4 GB", "no bytes", "no rows", "negative", "brackets", "signs"],
)
def test_an_index_with_an_impossible_header_is_refused(tmp_path, header, content):
    result = within(GIB // 4, load_index, npz(tmp_path / "a.npz", header, content))
    assert result.startswith("UserError") and "a.npz: no index" in result and "`fvlm index`" in result, result


def test_encrypted_or_mixed_archives_and_wrong_arrays_are_no_index(tmp_path):
    whole = npz(tmp_path / "a.npz", described("(1,)"), bytes(8))
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


def test_arrays_are_neither_uncompressed_nor_unpickled(tmp_path):
    packed = npz(tmp_path / "a.npz", described("(2000000,)"), bytes(16_000_000), packed=True)
    assert packed.stat().st_size < 4 << 20
    assert "is compressed" in within(GIB // 64, load_index, packed)
    harmful = pickle.dumps(np.array([Harmful(tmp_path / "made")], object))
    for path in (npz(tmp_path / "b.npz", described("(1,)", "|O"), harmful), tmp_path / "c.npz"):
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


def repacked(source: Path, path: Path, pickled: bytes | None = None, packed: bool = False) -> None:
    """A checkpoint again, with another pickle in it, or compressed."""
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(path, "w", 8 if packed else 0) as made:
        for name in good.namelist():
            made.writestr(name, pickled if pickled and name.endswith("data.pkl") else good.read(name))


def test_a_file_that_is_no_checkpoint_is_skipped(tmp_path, capsys):
    """Nothing is unpickled or uncompressed. torch can build many types without running code; few are allowed."""
    good = tmp_path / "step_00000001.pt"
    save_checkpoint(tmp_path, 1, {"identity": "x", "step": 1, "model": {"a": torch.ones(2)}}, keep=9)
    contents = ([1, 2], None, {"step": 1}, torch.zeros(3), {"identity": "x"}, {"identity": Harmful(tmp_path / "made")})
    for step, content in enumerate(contents, 2):
        torch.save(content, tmp_path / f"step_{step:08d}.pt")
    bytes_ = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R."  # 64 GiB
    for step, pickled in enumerate((bytes_, b".", b"\x80\x02h\5.", b"\x80\x02}]K\1s."), 20):
        repacked(good, tmp_path / f"step_{step:08d}.pt", pickled)
    repacked(good, tmp_path / "step_00000030.pt", packed=True)
    (tmp_path / "step_00000031.pt").write_bytes(good.read_bytes()[:300])
    (tmp_path / "step_00000099.pt").mkdir()
    assert load_checkpoint(tmp_path, "x")["step"] == 1 and not (tmp_path / "made").exists()
    answer = capsys.readouterr().err
    assert answer.count("unreadable checkpoint") == 12 and "__builtin__ bytearray" in answer and "compressed" in answer
    assert load_checkpoint(tmp_path, "y") is None


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a small encoder, and the configuration that it should have."""
    wanted = encoder_config(schema.EncoderSize(name="x", width=16, layers=1, heads=2, mlp_ratio=2, patch=32, image=224))
    folder = tmp_path_factory.mktemp("encoder")
    Dinov2Model(wanted).save_pretrained(folder)
    return folder, wanted


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as before torch 1.6"])
def test_pretrained_weights_in_a_pickle_are_read_only_if_they_are_tensors(tmp_path, encoder, zipped):
    folder, wanted = encoder
    weights = Dinov2Model.from_pretrained(folder).state_dict()
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    loaded = load_pretrained(Dinov2Model, str(tmp_path), wanted, "encoder", ENCODER_FIELDS)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in weights.items())
    harmful = {**weights, "more": Harmful(tmp_path / "made")}
    torch.save(harmful, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"pickle.*model.safetensors"):
        load_pretrained(Dinov2Model, str(tmp_path), wanted, "encoder", ENCODER_FIELDS)
    assert not (tmp_path / "made").exists()


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
        assert not re.search(r"pickle\.loads?\(|joblib|shelve|read_pickle|read_hdf|h5py|marshal", text), path
        for call in re.findall(r"extractall\(.*", text):
            assert 'filter="data"' in call, f"{path}: {call}"
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        for call in re.findall(r"np\.load\(.*", text):
            assert "allow_pickle=False" in call, f"{path}: {call}"
        if path.name in ("card.py", "lmms.py"):  # what a card's reader runs, and lmms-eval: a user's own export
            text = text.replace("trust_remote_code=True", "")
        assert not re.search(r"trust_remote_code=(?!False)|yaml\.(unsafe_)?load\(|shell=True|os\.system", text), path


def test_every_reader_uses_the_functions_with_limits():
    for reader in READERS.values():
        text = (ROOT / f"src/fvlm/data/readers/{reader.module}.py").read_text()
        assert not re.search(r"tarfile\.open|csv\.reader|json\.load\(|read_csv|read_json", text), reader.module
