"""Files made to break their reader: one sentence or an entry of the ledger, never a traceback.

Files with huge claims are read in a process with limited memory.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fvlm.data.decode.media import MediaError
from fvlm.data.decode.video import decode_image, decode_video
from fvlm.data.readers import read_rows, tables
from fvlm.data.shards.index import ledger_of, write_index
from fvlm.data.shards.samples import check_image, decode_frames
from fvlm.data.shards.tar import members_of, read_sample
from fvlm.errors import UserError
from tests.decode_cases import write
from tests.limited import GIB, within
from tests.reader_cases import lines_of, tar_of
from tests.test_trust_boundary import _vp8, header, picture, sample

CHOICE = {"video": "a.mp4", "start": 0, "question": "q", "candidates": ["a", "b"], "answer": "a"}
CLIP = {"video": "a.mp4", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}


def indexed(shard: Path, tokenizer: Path, kind: str = "image") -> tuple[list[str], list[str | None]]:
    """Keys of an index, and the reason of every entry of its ledger."""
    out = shard.with_suffix(".npz")
    index = write_index([shard], out, "s", kind, tokenizer, "?", shard.parent, foreign=True)
    return index.keys.tolist(), [entry["reason"] for entry in lines_of(ledger_of(out))]


# --- tables ---


@pytest.mark.parametrize(
    ("reader", "table", "record", "fact"),
    [
        ("llava_video", "x_processed.json", CLIP | {"conversations": [{"from": [], "value": "x"}]}, "role []"),
        ("smoltalk", "train-1.jsonl", {"messages": [{"role": {}, "content": "x"}]}, "role {}"),
        ("mvbench", "json/action_sequence.json", CHOICE | {"end": 10**400}, "`end` is a number too large"),
    ],
)
def test_a_value_of_a_wrong_type_is_a_bad_row(tmp_path, reader, table, record, fact):
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text(json.dumps(record))
    (row,) = read_rows(tmp_path, table, reader=reader)
    assert fact in row.problem, row


def test_an_absolute_name_in_a_table_does_not_change(tmp_path):
    (tmp_path / "x_processed.json").write_text(json.dumps(CLIP | {"video": "/nowhere/a.mp4"}))
    (row,) = read_rows(tmp_path, "x_processed.json", reader="llava_video")
    assert row.file == "/nowhere/a.mp4" and row.problem is None


def test_deeply_nested_json_is_a_row_or_one_sentence(tmp_path):
    """Near the limit JSON can be parsed but not written again."""
    for depth in (*range(930, 1000), 100_000):
        more = f'"role": "assistant", "content": "x", "more": {"[" * depth}{"]" * depth}'
        (tmp_path / "samples.jsonl").write_text(f'{{"file": "a.jpg", "messages": [{{{more}}}]}}')
        try:
            (row,) = read_rows(tmp_path)
        except UserError as error:
            assert "samples.jsonl: line 1" in str(error)
        else:
            assert row.text == {"messages": [{"role": "assistant", "content": "x"}]}


def test_a_caption_of_gigabytes_beside_a_file_is_a_bad_row(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(3 * GIB)
    result = within(GIB // 4, read_rows, tmp_path, ".", reader="files")
    assert "a.txt" in result and "64 MiB" in result


def test_a_small_parquet_file_does_not_fill_the_memory(tmp_path):
    """A list of 30 million nulls in 1 KB, and 64 rows that share one text of 40 MB in 2 KB."""
    many = pyarrow.ListArray.from_arrays(pyarrow.array([0, 30_000_000], pyarrow.int32()), pyarrow.nulls(30_000_000))
    nested = pyarrow.table({"file": ["a.jpg"], "messages": many.cast(pyarrow.list_(pyarrow.string()))})
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 64, pyarrow.int32()), ["x" * (40 << 20)])
    pyarrow.parquet.write_table(nested, tmp_path / "nested.parquet", compression="zstd")
    pyarrow.parquet.write_table(
        pyarrow.table({"a": ["x"] * 64, "b": text}), tmp_path / "same.parquet", compression="zstd"
    )
    assert max(path.stat().st_size for path in tmp_path.glob("*")) < 1 << 20
    assert "30,000,000 values of messages" in within(GIB // 4, read_rows, tmp_path, "nested.parquet")
    assert within(3 * GIB, _count, tmp_path / "same.parquet") == "64"


def _count(path: Path) -> int:
    return sum(1 for _ in tables.records([path]))


def test_parquet_with_invalid_text_is_one_sentence(tmp_path):
    text = pyarrow.array([b"\xff\xfe"])
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, text.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"file": ["a"], "caption": text}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet"):
        read_rows(tmp_path, "a.parquet")


# --- tars and their samples ---


def test_names_that_are_too_long_are_refused(tmp_path, tokenizer):
    digits = tar_of(tmp_path / "a.tar", sample("k." + "1" * 5000, picture("JPEG")))  # int() fails at 4,300 digits
    with pytest.raises(UserError, match=r"a\.tar: a name of"):
        write_index([digits], tmp_path / "a.npz", "s", "image", tokenizer, "?", tmp_path, foreign=True)
    # An index stores all keys with the length of the longest one.
    members = [("k" * 3000 + ".json", b'{"caption": "x"}')] + [(f"t{i}.json", b'{"caption": "x"}') for i in range(9)]
    keys, reasons = indexed(tar_of(tmp_path / "b.tar", members), tokenizer, "text")
    assert keys == [f"t{i}" for i in range(9)] and reasons == ["too_large"] + [None] * 9


def test_a_pax_header_with_another_size_changes_nothing():
    for record in (b"30 size=99999999999999999999\n", b"14 size=-5000\n"):
        content = header("p", b"%o" % len(record), b"x") + record.ljust(512, b"\0")
        content += header("a.json", b"2") + b"{}".ljust(512, b"\0") + bytes(1024)
        assert [(name, size) for name, _, _, size in members_of(content, "a.tar")] == [("a.json", 2)]


def test_a_folder_or_a_gigantic_file_in_place_of_a_checksum(tmp_path, tokenizer):
    shard, beside = tar_of(tmp_path / "a.tar", sample("k", picture("JPEG"))), tmp_path / "a.tar.sha256"
    beside.mkdir()
    with pytest.raises(UserError, match=r"a\.tar\.sha256.*`sha256sum a\.tar`"):
        indexed(shard, tokenizer)
    beside.rmdir()
    with beside.open("wb") as file:
        file.truncate(3 * GIB)
    arguments = ([shard], tmp_path / "a.npz", "s", "image", tokenizer, "?", tmp_path)
    assert "`sha256sum a.tar`" in within(GIB // 4, write_index, *arguments, foreign=True)


def test_a_folder_in_place_of_a_shard_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="make its index again"):
        read_sample(tmp_path, 0, 512)
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    for offset, length in ((0, 10**15), (-512, 512), (10**15, 512), (0, 0)):
        with pytest.raises(UserError, match="make its index again"):
            read_sample(tmp_path / "a.tar", offset, length)


def test_a_text_too_long_for_a_tokenizer_is_rejected(tmp_path, tokenizer):
    """One word of 40 MB would need 5 GB."""
    members = sample("a", picture("JPEG"), json.dumps({"caption": "x" * (40 << 20)}).encode())
    shard = tar_of(tmp_path / "a.tar", [*members, *sample("b", picture("PNG"))])
    assert within(GIB, indexed, shard, tokenizer) == "(['b'], ['bad_sample', None])"


# --- pictures and videos ---


def test_a_picture_of_endless_scans_is_refused():
    """A scan of 31 bytes covers all pixels; a decoder would need hours for a million of them."""
    file = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    check_image("jpg", whole)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(MediaError, match=r"8000 x 8000 pixels in \d+ scans") as caught:
        check_image("jpg", whole[:-2] + scan * 200 + b"\xff\xd9")
    assert caught.value.reason == "too_large"


def test_exif_that_pillow_cannot_write_again_is_a_broken_picture(tmp_path, tokenizer):
    """Pillow writes the EXIF again when it turns a picture upright, and fails with three further exceptions."""
    exif = Image.Exif()
    exif[274], exif[271], exif[34665] = 6, "a" * 30, {33434: (1, 10)}
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG", exif=exif)
    place = file.getvalue().index(b"Exif\0\0") + 6 + 11  # the first tag's number
    for value in (0, 26, 84):
        broken = bytearray(file.getvalue())
        broken[place] = value
        with pytest.raises(MediaError) as caught:
            decode_image(io.BytesIO(broken), name="x")
        assert caught.value.reason == "corrupt"
        with pytest.raises(ValueError, match=r"^jpg: "):
            decode_frames({"jpg": bytes(broken)})
        shard = tar_of(tmp_path / f"{value}.tar", [*sample("a", bytes(broken)), *sample("b", picture("PNG"))])
        assert indexed(shard, tokenizer) == (["b"], ["corrupt", None])


def test_a_video_with_a_gigantic_picture_in_its_middle_keeps_the_others(tmp_path):
    path = write(tmp_path / "a.ivf", "320x240", "5", 3, {"vcodec": "libvpx", "g": 5})
    content, mark = bytearray(path.read_bytes()), b"\x9d\x01\x2a"
    first = content.index(mark)
    place = content.index(mark, first + 9)
    _vp8(content, place, 16_000)
    path.write_bytes(bytes(content))
    result = within(GIB // 2, _frames_of, path)
    assert result in ("1", "2", "3") or result.startswith("MediaError too_large"), result


def _frames_of(path: Path) -> int:
    return len(decode_video(path).frames)


def test_compressed_text_in_a_png_is_not_uncompressed(tmp_path):
    """A text and a colour profile of 200 MB each."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    plain, packed = picture("PNG"), zlib.compress(bytes(200 << 20))
    for more in (chunk(b"zTXt", b"a\0\0" + packed), chunk(b"iCCP", b"a\0\0" + packed)):
        (tmp_path / "a.png").write_bytes(plain[:33] + more + plain[33:])
        result = within(GIB // 8, _shape_of, tmp_path / "a.png")
        assert result == "(1, 224, 224, 3)" or result.startswith("MediaError corrupt"), result


def _shape_of(path: Path) -> tuple[int, ...]:
    return decode_image(path).frames.shape


def test_a_bitmap_with_a_long_jump_needs_no_memory(tmp_path):
    """A delta of 255 rows in a picture of 10^8 columns."""
    body = b"\0\2\xff\xff" * 8 + b"\0\1"
    about = struct.pack("<IiiHHIIiiII", 40, 100_000_000, 1, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + len(about) + 1024
    head = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start)
    (tmp_path / "a.bmp").write_bytes(head + about + bytes(1024) + body)
    result = within(GIB, _shape_of, tmp_path / "a.bmp")
    assert result == "(1, 224, 224, 3)" or result.startswith("MediaError"), result
