"""Shards, tables and weights come from elsewhere: nothing in them is executed, leaves its folder or fills the memory.

What claims too much is read in a process whose memory is limited.
"""

import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import Dinov2Model

from fvlm import schema
from fvlm.data.arrays import open_arrays, save_arrays
from fvlm.data.index import ledger_of, load_index, write_index
from fvlm.data.media import MediaError
from fvlm.data.readers import READERS, count_rows, read_rows
from fvlm.data.tar import members_of
from fvlm.data.text import copy_tokenizer, train_tokenizer
from fvlm.data.video import decode_image, decode_video
from fvlm.errors import UserError
from fvlm.model.build import ENCODER_FIELDS, encoder_config, load_pretrained, load_weights
from fvlm.train.state import load_checkpoint
from tests.conftest import ROOT
from tests.decode_cases import X264, write

GIB = 1 << 30
HUGE = 60_000


class Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def within(memory: int, work: Callable, *arguments: object, **options: object) -> str:
    """What `work` returned or raised in a process that may take so many bytes more than it has.

    It is no fork of this one, whose threads may hold locks that nobody would ever open there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_trust_boundary"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(there, memory, work, arguments, options))
    process.start()
    there.close()
    try:
        assert here.poll(120), "no answer after two minutes"
        said = here.recv()
    except EOFError:
        said = ""
    finally:
        process.kill()
        process.join()
    assert said, f"ended with status {process.exitcode}"
    return said


def _limited(answer: Connection, memory: int, work: Callable, arguments: tuple, options: dict) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    try:
        said = repr(work(*arguments, **options))
    except (MediaError, UserError, MemoryError, OSError, ValueError) as error:
        said = f"{type(error).__name__} {getattr(error, 'reason', '')} {error}"
    answer.send(said[:4000])


# --- pictures whose header claims 60,000 x 60,000 pixels ---


def picture(form: str) -> bytes:
    """A small noisy image."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)).save(file, form)
    return file.getvalue()


def swollen(form: str) -> bytes:
    """The same, with the size in its header changed to 60,000 x 60,000 (WebP: to the most that it can say)."""
    content, size = bytearray(picture(form)), HUGE.to_bytes(2, "big") * 2
    if form == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = size
    elif form == "PNG":
        header = b"IHDR" + HUGE.to_bytes(4, "big") * 2 + bytes(content[24:29])
        content[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    elif form == "WEBP":
        place = content.index(b"\x9d\x01\x2a") + 3
        content[place : place + 4] = (16_383).to_bytes(2, "little") * 2
    elif form == "GIF":
        content[6:10] = HUGE.to_bytes(2, "little") * 2
        place = content.index(b",", 13 + 768) + 5
        content[place : place + 4] = HUGE.to_bytes(2, "little") * 2
    elif form == "BMP":
        content[18:26] = HUGE.to_bytes(4, "little") * 2
    return bytes(content)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_an_image_that_claims_to_be_gigantic_is_refused_before_memory_is_taken(tmp_path, form):
    (tmp_path / "a.jpg").write_bytes(swollen(form))
    said = within(GIB // 4, decode_image, tmp_path / "a.jpg")
    assert said.startswith("MediaError too_large"), said


def codec_frames(clip: bytes, mark: bytes, change) -> bytes:
    """A clip in which the header of every frame is changed."""
    content, place = bytearray(clip), clip.find(mark)
    while place >= 0:
        change(content, place)
        place = content.find(mark, place + 9)
    return bytes(content)


def _png(content: bytearray, place: int, side: int) -> None:
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + bytes(content[place + 12 : place + 17])
    content[place : place + 21] = header + zlib.crc32(header).to_bytes(4, "big")


def _vp8(content: bytearray, place: int, side: int) -> None:
    content[place + 3 : place + 7] = side.to_bytes(2, "little") * 2


def _mjpeg(content: bytearray, place: int, side: int) -> None:
    content[place + 5 : place + 9] = side.to_bytes(2, "big") * 2


@pytest.mark.parametrize(
    ("name", "options", "mark", "change", "side"),
    [
        ("a.mov", {"vcodec": "png"}, b"IHDR", _png, HUGE),
        ("a.mov", {"vcodec": "png"}, b"IHDR", _png, 15_000),
        ("a.ivf", {"vcodec": "libvpx"}, b"\x9d\x01\x2a", _vp8, 15_000),
        ("a.avi", {"vcodec": "mjpeg", "pix_fmt": "yuvj420p"}, b"\xff\xc0", _mjpeg, HUGE),
    ],
    ids=["PNG, 60,000", "PNG, 15,000", "VP8, 15,000", "Motion JPEG, 60,000"],
)
def test_a_video_that_claims_to_be_gigantic_is_refused_before_memory_is_taken(
    tmp_path, name, options, mark, change, side
):
    path = write(tmp_path / name, "320x240", "25", 1, options)
    path.write_bytes(codec_frames(path.read_bytes(), mark, lambda content, place: change(content, place, side)))
    said = within(GIB // 4, decode_video, path)
    assert said.startswith("MediaError too_large"), said


def shape_of(path: Path) -> tuple[int, ...]:
    return decode_video(path).frames.shape


def test_a_container_that_lies_about_the_size_changes_nothing(tmp_path):
    path = write(tmp_path / "a.mp4", "320x240", "25", 1, X264)
    content = path.read_bytes()
    place = content.index(b"avc1", content.index(b"stsd")) + 28
    path.write_bytes(content[:place] + HUGE.to_bytes(2, "big") * 2 + content[place + 4 :])
    said = within(GIB // 4, shape_of, path)
    assert said == "(1, 224, 224, 3)"


# --- shards ---


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trust") / "tokenizer"
    train_tokenizer(["a red square"] * 3, 262, folder)
    return folder


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, image: bytes, text: bytes = b'{"caption": "x"}') -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image), (f"{key}.json", text)]


def keys_of(*arguments, foreign: bool) -> list[str]:
    return write_index(*arguments, foreign=foreign).keys.tolist()


@pytest.mark.parametrize("foreign", [True, False])
def test_gigantic_headers_in_a_shard_are_counted_and_cost_nothing_else(tmp_path, tokenizer, foreign):
    forms = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
    members = [part for form in forms for part in sample(form.lower(), swollen(form))]
    shard = tar_of(tmp_path / "a.tar", [*members, *sample("good", picture("JPEG"))])
    out = tmp_path / "index/s.npz"

    arguments = ([shard], out, "s", "image", tokenizer, "?", tmp_path)
    assert within(GIB // 4, keys_of, *arguments, foreign=foreign) == "['good']"
    entries = [json.loads(line) for line in ledger_of(out).read_text().splitlines()]
    assert Counter(entry["reason"] for entry in entries) == {"too_large": 5, **({None: 1} if foreign else {})}


def test_members_too_large_for_a_sample_are_counted(tmp_path, tokenizer):
    """Sparse files: 200 MiB of text, 600 MiB of picture, 1.2 GiB of something else."""
    shard = tmp_path / "a.tar"
    with shard.open("wb") as file:
        for name, size in (("a.json", 200 << 20), ("b.jpg", 600 << 20), ("b.json", 0), ("c.npy", 1200 << 20)):
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf())
            file.seek(size, os.SEEK_CUR)
        for name, content in sample("d", picture("JPEG")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.write(info.tobuf() + content + bytes(-len(content) % 512))
        file.write(bytes(1024))
    index = write_index([shard], tmp_path / "i.npz", "s", "image", tokenizer, "?", tmp_path, foreign=True)
    entries = [json.loads(line) for line in ledger_of(tmp_path / "i.npz").read_text().splitlines()]
    assert index.keys.tolist() == ["d"] and [entry["reason"] for entry in entries] == ["too_large"] * 3 + [None]


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    content = bytearray(info.tobuf())
    content[124:136], content[156:157] = size.ljust(12, b"\0"), kind
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content)
    return bytes(content)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (b"77777777777", "cut within the member"),
        (b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, "cut within the member"),
        (b"-1000", "no tar header"),
    ],
    ids=["8 GiB", "beyond all", "backwards"],
)
def test_a_size_that_a_tar_cannot_hold_ends_in_one_sentence(tmp_path, size, said):
    content = header("a.json", size) + bytes(4096)
    with pytest.raises(UserError, match=said):
        list(members_of(content, "a.tar"))
    (tmp_path / "a.tar").write_bytes(content)
    assert within(GIB // 4, read_rows, tmp_path, "a.tar", reader="video2dataset").startswith("UserError")


def test_a_name_of_megabytes_is_no_name():
    with pytest.raises(UserError, match="a name of"):
        list(members_of(header("x", b"%o" % (4 << 20), b"L") + bytes((4 << 20) + 2048), "a.tar"))


def test_a_sparse_member_does_not_unfold(tmp_path):
    """A GNU sparse file of 1 TiB in 512 bytes, which tarfile would read as that."""
    whole = bytearray(header("a.json", b"0", b"S"))
    whole[386:410] = b"%011o\0%011o\0" % (0, 0)
    whole[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole)
    (tmp_path / "a.tar").write_bytes(bytes(whole) + bytes(1024))
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.next().size == 1 << 40
    assert within(GIB // 4, read_rows, tmp_path, "a.tar", reader="video2dataset") == "[]"


def test_members_of_an_archive_stay_in_it(tmp_path, tokenizer):
    """Names that lead elsewhere are keys; links and devices are nothing; the folders hold what they held before."""
    inside = tmp_path / "deep/inside"
    inside.mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(picture("JPEG"))
    with tarfile.open(inside / "a.tar", "w") as tar:
        for name in ("../../escaped", str(tmp_path / "absolute"), "..\\..\\windows"):
            for suffix, content in (("jpg", picture("JPEG")), ("mp4", b"x"), ("json", b'{"caption": "x"}')):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            info.type, info.linkname, info.devmajor, info.devminor = kind, "../../secret.jpg", 1, 3
            tar.addfile(info)
    before = set(tmp_path.rglob("*"))
    index = write_index([inside / "a.tar"], inside / "i.npz", "s", "image", tokenizer, "?", inside, foreign=True)
    assert len(index) == 2 and not [key for key in index.keys if "link" in key]
    said = subprocess.run(
        [sys.executable, "-m", "fvlm", "shard", inside, "--reader", "video2dataset", "--out", inside / "out",
         "--max-reject", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    made = set(tmp_path.rglob("*")) - before
    assert made and all(path.is_relative_to(inside) for path in made), made


# --- tables ---


def test_a_line_of_gigabytes_is_refused_before_it_is_read(tmp_path):
    for name in ("a.jsonl", "a.csv"):
        with (tmp_path / name).open("wb") as file:
            file.write(b'{"file": "' if name == "a.jsonl" else b"file,caption\nx,")
            file.truncate(3 * GIB)
        said = within(GIB // 2, read_rows, tmp_path, name, 0, 5)
        assert re.search(r"UserError .*line \d is longer than 64 MiB", said), said


def test_a_json_file_of_gigabytes_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "json").open("wb") as file:
        file.truncate(3 * GIB)
    (tmp_path / "json").rename(tmp_path / "a.json")
    assert "convert it to .jsonl" in within(GIB // 2, read_rows, tmp_path, "a.json")


def test_a_parquet_file_that_claims_too_many_rows_plans_nothing(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(pyarrow.table({"file": ["a"] * 9, "caption": ["x"] * 9}), tmp_path / "a.parquet")
    monkeypatch.setattr("fvlm.data.readers.tables.MOST_ROWS", 8)
    with pytest.raises(UserError, match="its header says 9 rows, at most 8"):
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
def test_an_index_that_claims_terabytes_is_no_index(tmp_path, shape):
    path = npz(tmp_path / "a.npz", shape)
    said = within(GIB // 4, load_index, path)
    assert said.startswith("UserError") and "no index" in said and "make it with `fvlm index`" in said


def test_arrays_are_neither_unpacked_nor_unpickled(tmp_path):
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


def test_weights_that_claim_terabytes_are_one_sentence(tmp_path):
    claimed = {"weight": {"dtype": "F32", "shape": [10**13], "data_offsets": [0, 4 * 10**13]}}
    for about in (json.dumps(claimed).encode(), None):
        length = len(about) if about else 1 << 42
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + (about or b"{}"))
        said = within(GIB // 4, load_weights, torch.nn.Linear(2, 2), tmp_path / "a.safetensors")
        assert re.match(r"UserError .*a.safetensors cannot be loaded \(.*\); put it back", said), said
    with pytest.raises(UserError, match="cannot be loaded"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "nowhere.safetensors")


def test_a_checkpoint_is_neither_unpickled_nor_unpacked(tmp_path, capsys):
    for name, content in (("1", {"identity": Harmful(tmp_path / "made")}), ("2", torch.zeros(20_000_000))):
        torch.save({"identity": "x", "content": content}, tmp_path / f"step_0000000{name}.pt")
    with zipfile.ZipFile(tmp_path / "step_00000002.pt") as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(tmp_path / "step_00000002.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    assert load_checkpoint(tmp_path, "x") is None and not (tmp_path / "made").exists()
    said = capsys.readouterr().err
    assert "compressed" in said and said.count("unreadable checkpoint") == 2


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
    with pytest.raises(UserError, match=r"holds a pickle with more in it than tensors.*model.safetensors"):
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
    """One word of these would do: torch.load and np.load stand nowhere without the argument that forbids it."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text()
        assert not re.search(r"pickle\.loads?\(|joblib|shelve|read_pickle|read_hdf|h5py|marshal|extractall", text), path
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        for call in re.findall(r"np\.load\(.*", text):
            assert "allow_pickle=False" in call, f"{path}: {call}"
        assert not re.search(r"trust_remote_code=(?!False)|yaml\.(unsafe_)?load\(|shell=True|os\.system", text), path


def test_every_reader_takes_its_tables_from_the_checked_functions():
    for reader in READERS.values():
        text = (ROOT / f"src/fvlm/data/readers/{reader.module}.py").read_text()
        assert not re.search(r"tarfile\.open|csv\.reader|json\.load\(|read_csv|read_json", text), reader.module
