"""Files whose content was made up to break whoever reads them: one sentence or a line of the ledger, never a traceback.

What claims too much is read in a process whose memory is limited.
"""

import io
import json
import re
import struct
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fvlm.data.decode.media import MediaError
from fvlm.data.decode.video import decode_image, decode_video
from fvlm.data.readers import read_rows
from fvlm.data.shards.index import ledger_of, write_index
from fvlm.data.shards.samples import check_image, decode_frames
from fvlm.data.shards.tar import members_of, read_sample
from fvlm.data.shards.text import train_tokenizer
from fvlm.errors import UserError
from tests.decode_cases import write
from tests.limited import GIB, within
from tests.test_trust_boundary import _vp8, header, picture, sample, tar_of

CLIP = {"video": "a.mp4", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made_up") / "tokenizer"
    train_tokenizer(["a red square"] * 3, 262, folder)
    return folder


def indexed(shard: Path, tokenizer: Path, kind: str = "image") -> tuple[list[str], list[str | None]]:
    """Keys of an index, and the reason of every entry of its ledger."""
    out = shard.with_suffix(".npz")
    index = write_index([shard], out, "s", kind, tokenizer, "?", shard.parent, foreign=True)
    return index.keys.tolist(), [json.loads(line)["reason"] for line in ledger_of(out).read_text().splitlines()]


# --- tables ---


@pytest.mark.parametrize(
    ("reader", "table", "record", "said"),
    [
        (
            "llava_video",
            "x_processed.json",
            CLIP | {"conversations": [{"from": [], "value": "x"}]},
            r"role \[\] is none",
        ),
        ("smoltalk", "train-1.jsonl", {"messages": [{"role": {}, "content": "x"}]}, r"role \{\} is none"),
        (
            "mvbench",
            "json/action_sequence.json",
            {"video": "a.mp4", "start": 0, "end": 10**400, "question": "q", "candidates": ["a", "b"], "answer": "a"},
            "too large for seconds",
        ),
    ],
)
def test_a_value_of_another_kind_is_a_bad_row(tmp_path, reader, table, record, said):
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text(json.dumps(record))
    (row,) = read_rows(tmp_path, table, reader=reader)
    assert re.search(said, row.problem), row


def test_an_absolute_name_in_a_table_stays_one(tmp_path):
    (tmp_path / "x_processed.json").write_text(json.dumps(CLIP | {"video": "/nowhere/a.mp4"}))
    (row,) = read_rows(tmp_path, "x_processed.json", reader="llava_video")
    assert row.file == "/nowhere/a.mp4" and row.problem is None


def test_nesting_up_to_where_json_gives_up_goes_through_or_is_one_sentence(tmp_path):
    """Near the limit a text can be parsed that can no longer be written."""
    for depth in (*range(930, 1000), 100_000):
        more = f'"role": "assistant", "content": "x", "more": {"[" * depth}{"]" * depth}'
        (tmp_path / "samples.jsonl").write_text(f'{{"file": "a.jpg", "messages": [{{{more}}}]}}')
        try:
            (row,) = read_rows(tmp_path)
        except UserError as error:
            assert "is no JSON" in str(error)
        else:
            assert row.text == {"messages": [{"role": "assistant", "content": "x"}]}


def test_a_caption_of_gigabytes_beside_a_file_is_a_bad_row(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(3 * GIB)
    assert "is over 64 MiB" in within(GIB // 4, read_rows, tmp_path, ".", reader="files")


def test_a_few_bytes_of_parquet_do_not_unfold(tmp_path):
    """A list of 30 million nulls in 1 KB, and 64 rows that all name one text of 40 MB in 2 KB."""
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
    from fvlm.data.readers import tables

    return sum(1 for _ in tables.records([path]))


def test_parquet_that_no_python_value_can_hold_is_one_sentence(tmp_path):
    text = pyarrow.array([b"\xff\xfe"])
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, text.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"file": ["a"], "caption": text}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="damaged"):
        read_rows(tmp_path, "a.parquet")


# --- tars and their samples ---


def test_names_that_no_file_system_takes_are_refused(tmp_path, tokenizer):
    digits = tar_of(tmp_path / "a.tar", sample("k." + "1" * 5000, picture("JPEG")))  # int() gives up at 4,300 digits
    with pytest.raises(UserError, match="a name of"):
        write_index([digits], tmp_path / "a.npz", "s", "image", tokenizer, "?", tmp_path, foreign=True)
    # An index gives each key the room of the longest: 1,000 samples and one such key would have taken 4 MB each.
    members = [("k" * 3000 + ".json", b'{"caption": "x"}')] + [(f"t{i}.json", b'{"caption": "x"}') for i in range(9)]
    keys, reasons = indexed(tar_of(tmp_path / "b.tar", members), tokenizer, "text")
    assert keys == [f"t{i}" for i in range(9)] and reasons == ["too_large"] + [None] * 9


def test_a_pax_header_that_claims_another_size_changes_nothing():
    for record in (b"30 size=99999999999999999999\n", b"14 size=-5000\n"):
        content = header("p", b"%o" % len(record), b"x") + record.ljust(512, b"\0")
        content += header("a.json", b"2") + b"{}".ljust(512, b"\0") + bytes(1024)
        assert [(name, size) for name, _, _, size in members_of(content, "a.tar")] == [("a.json", 2)]


def test_a_folder_or_a_gigantic_file_in_place_of_a_checksum(tmp_path, tokenizer):
    shard, beside = tar_of(tmp_path / "a.tar", sample("k", picture("JPEG"))), tmp_path / "a.tar.sha256"
    beside.mkdir()
    with pytest.raises(UserError, match="expected a line of `sha256sum"):
        indexed(shard, tokenizer)
    beside.rmdir()
    with beside.open("wb") as file:
        file.truncate(3 * GIB)
    arguments = ([shard], tmp_path / "a.npz", "s", "image", tokenizer, "?", tmp_path)
    assert "expected a line of `sha256sum a.tar`" in within(GIB // 4, write_index, *arguments, foreign=True)


def test_a_folder_in_place_of_a_shard_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="make its index again"):
        read_sample(tmp_path, 0, 512)
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    for offset, length in ((0, 10**15), (-512, 512), (10**15, 512), (0, 0)):
        with pytest.raises(UserError, match="make its index again"):
            read_sample(tmp_path / "a.tar", offset, length)


def test_a_text_too_long_for_a_tokenizer_is_counted(tmp_path, tokenizer):
    """One word of 40 MB would take 5 GB."""
    members = sample("a", picture("JPEG"), json.dumps({"caption": "x" * (40 << 20)}).encode())
    shard = tar_of(tmp_path / "a.tar", [*members, *sample("b", picture("PNG"))])
    assert within(GIB, indexed, shard, tokenizer) == "(['b'], ['bad_sample', None])"


# --- pictures and videos ---


def test_a_picture_of_endless_scans_is_refused():
    """31 bytes are a scan of all pixels: a million of them would keep a decoder for hours."""
    file = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    check_image("jpg", whole)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(MediaError, match=r"8000 x 8000 pixels in \d+ scans") as found:
        check_image("jpg", whole[:-2] + scan * 200 + b"\xff\xd9")
    assert found.value.reason == "too_large"


def test_exif_that_pillow_cannot_write_again_is_a_broken_picture(tmp_path, tokenizer):
    """To turn a picture upright Pillow writes its EXIF anew, and fails with errors of three other kinds."""
    exif = Image.Exif()
    exif[274], exif[271], exif[34665] = 6, "a" * 30, {33434: (1, 10)}
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG", exif=exif)
    place = file.getvalue().index(b"Exif\0\0") + 6 + 11  # the first tag's number
    for value in (0, 26, 84):
        broken = bytearray(file.getvalue())
        broken[place] = value
        with pytest.raises(MediaError) as found:
            decode_image(io.BytesIO(broken), name="x")
        assert found.value.reason == "corrupt"
        with pytest.raises(ValueError, match=r"^jpg: "):
            decode_frames({"jpg": bytes(broken)})
        shard = tar_of(tmp_path / f"{value}.tar", [*sample("a", bytes(broken)), *sample("b", picture("PNG"))])
        assert indexed(shard, tokenizer) == (["b"], ["corrupt", None])


def test_a_video_that_grows_in_its_middle_is_no_more_than_its_small_pictures(tmp_path):
    path = write(tmp_path / "a.ivf", "320x240", "5", 3, {"vcodec": "libvpx", "g": 5})
    content, mark = bytearray(path.read_bytes()), b"\x9d\x01\x2a"
    first = content.index(mark)
    place = content.index(mark, first + 9)
    _vp8(content, place, 16_000)
    path.write_bytes(bytes(content))
    said = within(GIB // 2, _frames_of, path)
    assert said in ("1", "2", "3") or said.startswith("MediaError too_large"), said


def _frames_of(path: Path) -> int:
    return len(decode_video(path).frames)


def test_text_in_a_png_does_not_unfold(tmp_path):
    """A compressed text and a colour profile of 200 MB each."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    plain, packed = picture("PNG"), zlib.compress(bytes(200 << 20))
    for more in (chunk(b"zTXt", b"a\0\0" + packed), chunk(b"iCCP", b"a\0\0" + packed)):
        (tmp_path / "a.png").write_bytes(plain[:33] + more + plain[33:])
        said = within(GIB // 8, _shape_of, tmp_path / "a.png")
        assert said == "(1, 224, 224, 3)" or said.startswith("MediaError corrupt"), said


def _shape_of(path: Path) -> tuple[int, ...]:
    return decode_image(path).frames.shape


def test_a_run_of_a_bitmap_that_jumps_far_takes_no_memory(tmp_path):
    """A delta of 255 rows in a picture of 10^8 columns."""
    body = b"\0\2\xff\xff" * 8 + b"\0\1"
    about = struct.pack("<IiiHHIIiiII", 40, 100_000_000, 1, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + len(about) + 1024
    head = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start)
    (tmp_path / "a.bmp").write_bytes(head + about + bytes(1024) + body)
    said = within(GIB, _shape_of, tmp_path / "a.bmp")
    assert said == "(1, 224, 224, 3)" or said.startswith("MediaError"), said
