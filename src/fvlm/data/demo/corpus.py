"""Make one source of the demo corpus: media files and the table `samples.jsonl`.

Item i depends only on (seed, i), so any number of processes writes the same bytes.
"""

import argparse
import io
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from fvlm.data.demo import chat
from fvlm.data.demo.encode import SIZES, Shape, choose_shape, encode, encode_audio
from fvlm.data.demo.options import benchmark_scene
from fvlm.data.demo.scenes import SCENES, background, draw
from fvlm.data.progress import Progress
from fvlm.errors import UserError

VIDEOS = ("grid", "moves", "questions")
BENCHMARK = "benchmark"
SOURCES = (*VIDEOS, "pictures", "chat", "preferences", BENCHMARK, "boards")
ROWS_PER_FILE = {"questions": 3, BENCHMARK: 2, "boards": 4}  # most questions about the same file; others have one row
BROKEN = {
    "video": ("empty", "noise", "truncated", "text", "audio", "missing"),
    "image": ("cut", "empty", "noise", "missing", "text"),
    "text": ("silent",),
}
PLAIN = Shape("h264", "mp4", 240, 240, "25", ticks=18, variable=False, offset_s=0.0)  # 4 frames at 1 FPS
BROKEN_SUFFIX = {"audio": ".mp4", "truncated": ".mp4", "cut": ".png"}


def make_item(item: int, source: str, seed: int, folder: Path) -> list[dict]:
    """Write the file of one item; return its rows of the table."""
    rng = np.random.default_rng([seed, SOURCES.index(source), item])
    if source == "chat":
        return [{"messages": chat.conversation(rng)}]
    if source in (*VIDEOS, BENCHMARK):
        shape = PLAIN if source == BENCHMARK else choose_shape(rng)
        scene = benchmark_scene(rng, item) if source == BENCHMARK else SCENES[source](rng, shape.seconds)
        # The background changes with the scene, since equal frames would give equal queries.
        drawn = [draw(background(rng, shape.width, shape.height), things) for things in scene.seconds]
        path = folder / "media" / f"{item:06d}.{shape.container}"
        encode([drawn[second] for second in scene.second_of(shape.ticks)], shape, path)
    else:
        scene = SCENES[source](rng, 1)
        width, height = SIZES[int(rng.integers(len(SIZES)))]
        image = Image.fromarray(draw(background(rng, width, height), scene.seconds[0]))
        jpeg = rng.random() < 0.7
        path = folder / "media" / f"{item:06d}.{'jpg' if jpeg else 'png'}"
        image.save(path, quality=92) if jpeg else image.save(path, compress_level=3)
    name = str(path.relative_to(folder))
    return [{"file": name, **row} for row in scene.rows[: ROWS_PER_FILE.get(source, 1)]]


def break_row(row: dict, how: str, number: int, folder: Path) -> dict:
    """Return the row with a file that cannot be decoded; a conversation without its messages."""
    if how == "silent":
        return {"messages": []}
    name = f"media/broken-{number:03d}-{how}{BROKEN_SUFFIX.get(how, Path(row['file']).suffix)}"
    path = folder / name
    rng = np.random.default_rng([number])
    if how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(rng.bytes(4096))
    elif how == "text":
        path.write_text("This is a text, whatever its name says.\n" * 20)
    elif how == "audio":
        encode_audio(path)
    elif how == "truncated":  # an MP4 has its table of contents at the end
        plain = Shape("h264", "mp4", 240, 240, "25", ticks=5, variable=False, offset_s=0.0)
        encode([background(rng, 240, 240)] * plain.ticks, plain, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "cut":
        buffer = io.BytesIO()
        Image.fromarray(background(rng, 240, 240)).save(buffer, "png")
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 3])
    return {**row, "file": name}  # "missing": no file is written


def make_corpus(source: str, out: Path, samples: int, seed: int, broken: int = 0, processes: int = 1) -> None:
    """Write `out/media/*` and `out/samples.jsonl` with `samples` rows, `broken` of them broken on purpose.

    raises      UserError for an unknown source or impossible numbers
    """
    if source not in SOURCES:
        raise UserError(f"corpus source {source!r} is unknown; choose one of {', '.join(SOURCES)}")
    if not 0 <= broken <= samples or samples < 1:
        raise UserError(f"{samples} samples, {broken} broken: expected 1 sample or more, and at most that many broken")
    making = out.with_name(out.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    (making / "media").mkdir(parents=True)
    most = ROWS_PER_FILE.get(source, 1)
    make = partial(make_item, source=source, seed=seed, folder=making)
    rows: list[dict] = []
    made = 0
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:  # a forked process may inherit locks
        while len(rows) < samples:  # again where files have fewer rows than most
            items = -(-(samples - len(rows)) // most)
            progress = Progress(f"corpus {source}", items, "items")
            for item_rows in pool.map(make, range(made, made + items), chunksize=4):
                rows += item_rows
                progress.step()
            made += items
    rows = rows[:samples]
    ways = BROKEN["video" if source in (*VIDEOS, BENCHMARK) else "text" if source == "chat" else "image"]
    for number in range(broken):
        position = (2 * number + 1) * samples // (2 * broken)  # spread evenly
        rows[position] = break_row(rows[position], ways[number % len(ways)], number, making)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (making / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", choices=SOURCES, help="source of the demo to make")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; replaced if it exists")
    parser.add_argument("--samples", type=int, required=True, help="rows of the table")
    parser.add_argument("--seed", type=int, required=True, help="random seed; use another one for held-out data")
    parser.add_argument("--broken", type=int, default=0, help="rows with a file broken on purpose (default: 0)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="number of processes (default: all cores)"
    )


def main(args: argparse.Namespace) -> None:
    make_corpus(args.source, args.out, args.samples, args.seed, args.broken, args.processes)
