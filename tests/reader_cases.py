"""Small files in the formats of published datasets: videos, images, Parquet, JSON, tars."""

import io
import json
import tarfile
from functools import cache
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import pyarrow
import pyarrow.parquet
from PIL import Image

from fvlm.__main__ import main
from fvlm.data.readers import READERS, Row, read_rows

LONG = "a caption with words"


@cache
def video_bytes(seconds: int = 2) -> bytes:
    """An MP4 of a moving test picture."""
    picture = ffmpeg.input(f"testsrc2=size=64x48:rate=5:duration={seconds}", f="lavfi")
    stream = picture.output("pipe:", f="mp4", vcodec="libx264", preset="ultrafast", movflags="frag_keyframe+empty_moov")
    content, _ = stream.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), capture_stdout=True, quiet=True)
    return content


def add_video(path: Path, seconds: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(video_bytes(seconds))
    return path


def picture(grey: int, form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(file, form)
    return file.getvalue()


def stored(grey: int, path: str | None = None) -> dict:
    """An image as the `datasets` library stores it."""
    return {"bytes": picture(grey), "path": path}


def write_table(path: Path, records: list | dict, rows_per_group: int = 2) -> Path:
    """Write records as Parquet, JSONL or JSON, by the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table = pyarrow.Table.from_pylist(records)
        pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        path.write_text(json.dumps(records))
    return path


TABLES = {  # a table that the reader's default pattern finds
    "vript": "vript_captions/vript_long_videos_captions/abc_caption.json",
    "llava_video": "0_30_s_academic_v0_1/0_30_s_academic_v0_1_oe_v0_1_qa_processed.json",
    "vista": "temporal_niah_mcq.json",
    "cauldron": "ai2d/train-00000-of-00001-2ce340398c113b79.parquet",
    "smoltalk": "data/all/train-00000-of-00009.parquet",
    "rlaif_v": "RLAIF-V-Dataset_000.parquet",
    "video_mme": "videomme/test-00000-of-00001.parquet",
    "mvbench": "json/action_sequence.json",
    "mlvu": "json/1_plotQA.json",
    "pope": "coco_pope_random.json",
    "scienceqa": "data/test-00000-of-00001.parquet",
}


def rows_of(folder: Path, reader: str, records: list | dict, table: str | None = None) -> list[Row]:
    """The rows that a reader makes of a table with these records."""
    write_table(folder / (table or TABLES.get(reader) or READERS[reader].table), records)
    return read_rows(folder, table, reader=reader)


def tar_of(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    """Members (name, content) as a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_tar(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    """Samples (key, suffix -> content) as a tar."""
    return tar_of(path, [(f"{key}.{suffix}", x) for key, members in samples for suffix, x in members.items()])


def lines_of(ledger: Path) -> list[dict]:
    return [json.loads(line) for line in ledger.read_bytes().splitlines()]


def samples_in(tar: Path) -> dict[str, dict[str, bytes]]:
    """The samples that webdataset itself reads: key -> suffix -> content."""
    import webdataset

    samples = webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False)
    return {s["__key__"]: {name: value for name, value in s.items() if not name.startswith("__")} for s in samples}


def shard(folder: Path, out: Path, *options: str) -> int:
    """Run `fvlm shard`; return its exit status."""
    return main(["shard", str(folder), "--processes", "1", "--out", str(out), *options])


def described(tar: Path) -> list[dict]:
    """The json of each sample, with its number of images."""
    contents = []
    for members in samples_in(tar).values():
        images = sorted(name for name in members if name.endswith(".jpg"))
        assert images == [f"{i:03d}.jpg" for i in range(len(images))]
        assert all(Image.open(io.BytesIO(members[name])).size == (224, 224) for name in images)
        content = json.loads(members["json"])
        assert content["frame_count"] == len(images) == len(content["frame_times"])
        contents.append(content)
    return contents
