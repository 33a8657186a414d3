"""CPU time from a video file to JPEG frames at 1 FPS: this project's decoder against the usual ways.

    python benchmarks/decode.py --clips results/clips --json decode.json
    python benchmarks/decode.py --videos my_videos --quick

Each way opens the file, takes one frame a second (64 evenly spaced of a longer video), makes them 224 x 224 and
compresses them with quality 90. Counted is user + system time of this process with all its threads and of its
children. The ways take turns, so that all meet the same busy machine; the medians of the turns are printed.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import simplejpeg

sys.path.insert(0, str(Path(__file__).resolve().parent))

from clips import CLIPS, TINY, make_clip
from measure import cpu_seconds, markdown

from fvlm.data.decode import packets as packets_module
from fvlm.data.decode import pyav
from fvlm.data.decode.media import MAX_FRAMES, SIDE, MediaError, schedule
from fvlm.data.decode.video import decode_video

COMMON = "decord as usual"
DEFAULT = "fvlm"
FLOOR = "needed packets"
FLOOR_SCALED = "needed + scale + JPEG"


def jpegs(frames) -> list[bytes]:
    pack = simplejpeg.encode_jpeg
    return [pack(np.ascontiguousarray(frame), quality=90, colorsubsampling="420") for frame in frames]


def by_fvlm(path: Path) -> int:
    """`fvlm.data.decode.video.decode_video` with its defaults."""
    return len(jpegs(decode_video(path).frames))


def by_decord(path: Path) -> int:
    """VideoReader(width=224, height=224), every int(fps)-th frame, with decord's threads; changes the aspect ratio."""
    import decord

    try:
        reader = decord.VideoReader(str(path), width=SIDE, height=SIDE)
        wanted = np.arange(0, len(reader), max(1, int(reader.get_avg_fps())))
        if len(wanted) > MAX_FRAMES:
            wanted = wanted[np.linspace(0, len(wanted) - 1, MAX_FRAMES).astype(int)]
        return len(jpegs(reader.get_batch(wanted).asnumpy()))
    except decord.DECORDError as error:
        raise RuntimeError(str(error)) from error


def by_decord_one_thread(path: Path) -> int:
    """By time, in one thread, as the backend `decord` of this project."""
    from fvlm.data.decode.fallback import decode_with_decord

    return len(jpegs(decode_with_decord(path).frames))


def by_ffmpeg(path: Path) -> int:
    """The ffmpeg program: filter fps=1, scaled and cropped, raw frames through a pipe."""
    rate = "1"
    with av.open(str(path)) as container:
        seconds = (container.duration or 0) / 1e6
    if seconds > MAX_FRAMES:
        rate = f"{MAX_FRAMES}/{seconds}"
    size = f"{SIDE}:{SIDE}"
    filters = f"setpts=PTS-STARTPTS,fps={rate}:round=up:start_time=0,scale={size}:force_original_aspect_ratio=increase"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-vf", f"{filters}:flags=area,crop={size}"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return len(jpegs(np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE, 3)))


def by_pyav_all(path: Path) -> int:
    """PyAV decodes every frame and converts the chosen ones."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        step_s = max(1.0, float((stream.duration or 0) * (stream.time_base or 0)) / MAX_FRAMES)
        kept: list = []
        for frame in container.decode(stream):
            if frame.time is not None and frame.time >= len(kept) * step_s and len(kept) < MAX_FRAMES:
                kept.append(pyav.to_square(frame))
    return len(jpegs(kept))


def by_opencv(path: Path) -> int:
    """VideoCapture reads every frame; the chosen ones are scaled (INTER_AREA; changes the aspect ratio)."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS) or 25
    step, kept, number = max(rate, count / MAX_FRAMES), [], 0
    while True:
        ok, image = capture.read()
        if not ok:
            break
        if number >= len(kept) * step and len(kept) < MAX_FRAMES:
            small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            kept.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
        number += 1
    capture.release()
    return len(jpegs(kept))


class Needed:
    """Lower bound: a one-thread decoder decodes the packets that the chosen frames need.

    Opening the file, reading packets and choosing are not measured. If there is no plan, all packets are decoded.
    """

    def __init__(self, path: Path, finish: bool) -> None:
        self.finish = finish
        container, stream = packets_module.open_video(path)
        self.container, self.context = container, stream.codec_context
        self.packets = packets_module.read_packets(path, container, stream)
        self.path = path
        order, shown_s, duration_s = self.packets.timeline()
        self.wanted = set(order[schedule(shown_s, duration_s)[1]].tolist())

    def __call__(self) -> int:
        times = {int(self.packets.pts[i]) for i in self.wanted}
        if self.packets.plannable:
            source = pyav._decode_runs(self.path, self.context, self.packets, self.wanted)
        else:
            source = (frame for packet in [*self.packets.held, None] for frame in self.context.decode(packet))
        kept = 0
        for frame in source:
            if (frame.dts if self.packets.format == "avi" else frame.pts) in times:
                kept += 1
                if self.finish:
                    jpegs([pyav.to_square(frame)])
        return kept


WAYS: dict[str, Callable[[Path], int]] = {
    COMMON: by_decord,
    DEFAULT: by_fvlm,
    "decord, 1 thread": by_decord_one_thread,
    "PyAV, all frames": by_pyav_all,
    "OpenCV": by_opencv,
    "ffmpeg program": by_ffmpeg,
}
FLOORS = {FLOOR: False, FLOOR_SCALED: True}


@dataclass
class Result:
    """CPU seconds and frames of each way, and the errors of those that failed."""

    clip: str
    about: str
    seconds: dict[str, float]
    frames: dict[str, int]
    problems: dict[str, str]

    def ratio(self, way: str, to: str = COMMON) -> float | None:
        """Return how many times less CPU time `way` takes than `to`."""
        if way not in self.seconds or to not in self.seconds:
            return None
        return self.seconds[to] / self.seconds[way]


def measure(path: Path, about: str, turns: int, ways: list[str]) -> Result:
    """Measure every way on one clip, by turns."""
    measured: dict[str, list[float]] = {way: [] for way in [*ways, *FLOORS]}
    result = Result(path.name, about, {}, {}, {})
    for _ in range(turns):
        for way in measured:
            if way in result.problems:
                continue
            try:
                work = Needed(path, FLOORS[way]) if way in FLOORS else lambda way=way: WAYS[way](path)
                gc.collect()
                start = cpu_seconds()
                result.frames[way] = work()
                measured[way].append(cpu_seconds() - start)
                if not result.frames[way]:
                    raise IndexError("no frame")
            except (MediaError, RuntimeError, av.error.FFmpegError, subprocess.CalledProcessError, IndexError) as error:
                measured[way].clear()
                result.problems[way] = str(error).strip().splitlines()[0][:120]
            if way in FLOORS and way not in result.problems:
                work.container.close()
    result.seconds = {way: statistics.median(seconds) for way, seconds in measured.items() if seconds}
    return result


def table(results: list[Result], ways: list[str]) -> str:
    """Return a Markdown table: CPU milliseconds of the usual way, the ratio of each other way to it, frames."""
    columns = [way for way in ways if way != COMMON] + [FLOOR]
    rows = []
    for result in results:
        base = result.seconds.get(COMMON)
        cells = [result.about, "fails" if base is None else f"{1000 * base:.0f}"]
        for way in columns:
            if way in result.problems:
                cells.append("fails")
            elif base is None:
                cells.append(f"{1000 * result.seconds[way]:.0f} ms")
            else:
                ratio = f"{result.ratio(way):.2f}"
                cells.append(f"**{ratio}**" if way == DEFAULT else ratio)
        over = result.ratio(FLOOR_SCALED, DEFAULT)
        cells.append("" if over is None else f"{over:.2f}")
        rows.append([*cells, f"{result.frames.get(DEFAULT, 0)} / {result.frames.get(COMMON, 0)}"])
    return markdown(["clip", f"{COMMON}, ms", *columns, f"{DEFAULT} / ({FLOOR_SCALED})", "frames"], rows)


def machine() -> str:
    """Return date, processor, cores and versions in one line."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    python = platform.python_version()
    return f"{date.today()}, {model}, {os.cpu_count()} cores, Python {python}, PyAV {av.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, default=Path("results/clips"), help="folder for the clips made here")
    parser.add_argument("--videos", type=Path, default=os.environ.get("FVLM_TEST_VIDEOS"), help="a folder of videos")
    parser.add_argument("--turns", type=int, default=5, help="times that each way runs")
    parser.add_argument("--only", nargs="*", default=[], help="names of clips (default: all)")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--quick", action="store_true", help="one tiny clip and one turn, for tests")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    if "OpenCV" in args.ways:
        try:
            import cv2  # noqa: F401
        except ImportError:
            print("OpenCV is not installed and not measured; pip install opencv-python-headless", file=sys.stderr)
            args.ways.remove("OpenCV")
    if args.quick:
        work = [(make_clip(TINY, args.clips), TINY.about)]
    else:
        work = [(make_clip(clip, args.clips), clip.description) for clip in CLIPS if chosen(clip.file, args.only)]
        found = sorted(path for path in Path(args.videos).rglob("*") if path.is_file()) if args.videos else []
        work += [(path, path.name) for path in found if path.suffix in VIDEO_SUFFIXES and chosen(path.name, args.only)]
    av.logging.set_level(av.logging.PANIC)
    by_fvlm(work[0][0])  # late imports are not measured
    results = []
    for path, about in work:
        results.append(measure(path, about, 1 if args.quick else args.turns, args.ways))
        print(f"{about}: " + ", ".join(f"{w} {1000 * s:.0f} ms" for w, s in results[-1].seconds.items()), flush=True)
    print(f"\n{machine()}\n\n{table(results, args.ways)}")
    ratios = [ratio for result in results if (ratio := result.ratio(DEFAULT))]
    if ratios:
        print(f"\nmedian ratio of {DEFAULT} over {len(ratios)} clips: {statistics.median(ratios):.2f}")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "results": [asdict(r) for r in results]}, indent=1))


VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts", ".mts", ".wmv", ".gif", ".mpg", ".flv")


def chosen(name: str, only: list[str]) -> bool:
    return not only or name in only


if __name__ == "__main__":
    main()
