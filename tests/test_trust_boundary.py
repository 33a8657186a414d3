"""Untrusted images, videos and shards: nothing in them is executed, leaves its folder or fills the memory.

Files with huge claims are read in a process with limited memory.
"""

import io
import os
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvlm.data.decode.video import decode_image, decode_video
from fvlm.data.readers import read_rows
from fvlm.data.shards.index import ledger_of, write_index
from fvlm.data.shards.tar import members_of
from fvlm.errors import UserError
from tests.conftest import ROOT
from tests.decode_cases import X264, write
from tests.limited import GIB, within
from tests.reader_cases import lines_of, tar_of

HUGE = 60_000


# --- pictures whose header claims 60,000 x 60,000 pixels ---


def picture(form: str) -> bytes:
    """A small noisy image."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)).save(file, form)
    return file.getvalue()


def swollen(form: str) -> bytes:
    """The same image with 60,000 x 60,000 pixels in its header (WebP: the largest possible size)."""
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
def test_an_image_with_a_gigantic_header_is_refused_without_memory(tmp_path, form):
    (tmp_path / "a.jpg").write_bytes(swollen(form))
    result = within(GIB // 4, decode_image, tmp_path / "a.jpg")
    assert result.startswith("MediaError too_large"), result


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
def test_a_video_with_gigantic_headers_is_refused_without_memory(tmp_path, name, options, mark, change, side):
    path = write(tmp_path / name, "320x240", "25", 1, options)
    content = bytearray(path.read_bytes())
    place = content.find(mark)
    while place >= 0:
        change(content, place, side)
        place = content.find(mark, place + 9)
    path.write_bytes(content)
    result = within(GIB // 4, decode_video, path)
    assert result.startswith("MediaError too_large"), result


def shape_of(path: Path) -> tuple[int, ...]:
    return decode_video(path).frames.shape


def test_a_wrong_size_in_a_container_changes_nothing(tmp_path):
    path = write(tmp_path / "a.mp4", "320x240", "25", 1, X264)
    content = path.read_bytes()
    place = content.index(b"avc1", content.index(b"stsd")) + 28
    path.write_bytes(content[:place] + HUGE.to_bytes(2, "big") * 2 + content[place + 4 :])
    assert within(GIB // 4, shape_of, path) == "(1, 224, 224, 3)"


# --- shards ---


def sample(key: str, image: bytes, text: bytes = b'{"caption": "x"}') -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image), (f"{key}.json", text)]


def keys_of(*arguments, foreign: bool) -> list[str]:
    return write_index(*arguments, foreign=foreign).keys.tolist()


@pytest.mark.parametrize("foreign", [True, False])
def test_gigantic_headers_in_a_shard_are_rejected_one_by_one(tmp_path, tokenizer, foreign):
    forms = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
    members = [part for form in forms for part in sample(form.lower(), swollen(form))]
    shard = tar_of(tmp_path / "a.tar", [*members, *sample("good", picture("JPEG"))])
    out = tmp_path / "index/s.npz"

    arguments = ([shard], out, "s", "image", tokenizer, "?", tmp_path)
    assert within(GIB // 4, keys_of, *arguments, foreign=foreign) == "['good']"
    entries = lines_of(ledger_of(out))
    assert Counter(entry["reason"] for entry in entries) == {"too_large": 5, **({None: 1} if foreign else {})}


def test_members_that_are_too_large_are_rejected(tmp_path, tokenizer):
    """A sparse file with 200 MiB of text, a picture of 600 MiB, and 1.2 GiB of something else."""
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
    entries = lines_of(ledger_of(tmp_path / "i.npz"))
    assert index.keys.tolist() == ["d"] and [entry["reason"] for entry in entries] == ["too_large"] * 3 + [None]


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    content = bytearray(info.tobuf())
    content[124:136], content[156:157] = size.ljust(12, b"\0"), kind
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        header("a.json", b"77777777777") + bytes(4096),
        header("a.json", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7) + bytes(4096),
        header("a.json", b"-1000") + bytes(4096),
        header("x", b"%o" % (4 << 20), b"L") + bytes((4 << 20) + 2048),
    ],
    ids=["8 GiB", "largest size", "negative size", "name of 4 MiB"],
)
def test_a_tar_with_an_impossible_size_is_one_sentence(tmp_path, content):
    with pytest.raises(UserError, match=r"a\.tar.*byte 0"):
        list(members_of(content, "a.tar"))
    (tmp_path / "a.tar").write_bytes(content)
    assert within(GIB // 4, read_rows, tmp_path, "a.tar", reader="video2dataset").startswith("UserError")


def test_a_sparse_member_is_not_expanded(tmp_path):
    """A GNU sparse file of 1 TiB in 512 bytes, which tarfile would expand."""
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
    """Names with other folders are only keys, links and devices are ignored, no file is written elsewhere."""
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
    done = subprocess.run(
        [sys.executable, "-m", "fvlm", "shard", inside, "--reader", "video2dataset", "--out", inside / "out",
         "--max-reject", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = set(tmp_path.rglob("*")) - before
    assert made and all(path.is_relative_to(inside) for path in made), made
