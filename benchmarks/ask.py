"""Answering a question about a video: one foveated token per frame against 16 pooled tokens per frame.

    python benchmarks/ask.py --json ask.json
    python benchmarks/ask.py --size demo --frames 8 64

Both sides have the same encoder, language model and question, and random weights. The encoder's phase 1 is the same
work for both, so a few frames are encoded, timed apart, and shown again and again. The ways take turns, each in its
own process, and the medians count. Time is user + system time of all threads.

read     the visual tokens, and the language model's cache of them: foveated frame after frame, since each frame's query
         depends on the frames before; pooled in one pass
first    from the question to the first token of the answer
token    one further token
cache    keys and values of the visual tokens
"""

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import markdown, medians_by_turns

from fvlm.config import schema
from fvlm.config.resolve import study_from_files
from fvlm.device import hardware
from fvlm.model.build import build_model
from fvlm.model.generate import Reading

CONFIG = Path(__file__).resolve().parents[1] / "config"
SIZES = {"135M": ("paper.yaml", "SmolLM2-135M"), "demo": ("config.yaml", "demo-M"), "smoke": ("smoke.yaml", "smoke-M")}
WAYS = {"foveated": ("foveated", "autoregressive"), "16 pooled": ("multi_token", "direct")}
ENCODED = 4  # distinct frames
QUESTION, ANSWER = 24, 17  # tokens; the first token of the answer is timed apart


def model_of(size: str, architecture: str) -> schema.Model:
    """The study's baseline in an architecture, without weights, and with positions for 512 frames of 16 tokens."""
    study, language = SIZES[size]
    changes = {"baseline": {"model.language": language, "model.architecture": architecture}}
    model = study_from_files([str(CONFIG / study)], changes).runs["baseline"].model
    parts = {
        "encoder": model.encoder.model_copy(update={"weights": None}),
        "language": model.language.model_copy(update={"weights": None, "max_positions": 16_384}),
    }
    return model.model_copy(update={"tokens_per_frame": 16, **parts})


@torch.no_grad()
def turn(size: str, way: str, frames: int) -> dict[str, float]:
    """Return CPU seconds of each part, and the size of the cache."""
    architecture, mode = WAYS[way]
    config = model_of(size, architecture)
    model = build_model(config, seed=0).eval()
    draw = torch.Generator().manual_seed(0)
    side = config.encoder.image
    pixels = torch.randint(0, 256, (ENCODED, side, side, 3), dtype=torch.uint8, generator=draw)
    question = torch.randint(0, config.language.vocabulary, (QUESTION,), generator=draw).tolist()
    model.encode(pixels[:1])  # kernels and memory are ready
    clock = Clock()
    states = model.encode(pixels)
    result = {"encode": clock.lap() / ENCODED}
    reading = Reading(model, mode)
    if mode == "direct":
        reading.read_frames(states.select(torch.arange(frames) % ENCODED))
    else:
        kept = [states.select(slice(number, number + 1)) for number in range(ENCODED)]
        for number in range(frames):
            reading.read_frames(kept[number % ENCODED])
    result |= {"read": clock.lap(), "entries": reading.length, "bytes": reading.length * reading.cache.bytes_per_token}
    if reading.length != frames * config.visual_tokens:
        raise RuntimeError(f"{reading.length} entries in the cache; expected {config.visual_tokens} for each frame")
    reading.read_text(question)
    reading.next_token()
    result["first"] = clock.lap()
    for _ in range(ANSWER - 1):
        reading.next_token()
    result["token"] = clock.lap() / (ANSWER - 1)
    return result


class Clock:
    def __init__(self):
        self.start = time.process_time()

    def lap(self) -> float:
        """CPU seconds since the last lap."""
        before, self.start = self.start, time.process_time()
        return self.start - before


def measure(args: argparse.Namespace, frames: int) -> dict[str, dict[str, float]]:
    """Return the medians over the turns of each way."""

    def command(way: str) -> list[str]:
        return [__file__, "--size", args.size, "--one", way, "--frames", str(frames), "--threads", str(args.threads)]

    return medians_by_turns(list(WAYS), args.turns, command, f"{frames} frames")


def table(results: list[dict]) -> str:
    """Return a Markdown table; seconds are CPU seconds."""
    rows = []
    for result in results:
        for way, one in result["ways"].items():
            cache = (f"{one['entries']:,.0f}", f"{one['bytes'] / 2**20:.1f}")
            times = (f"{one['read']:.2f}", f"{one['first']:.2f}", f"{1 / one['token']:.1f}", f"{one['encode']:.3f}")
            rows.append([way, result["frames"], *cache, *times])
    cache = ["cache entries", "cache, MiB"]
    return markdown(["", "frames", *cache, "read, s", "first token, s", "tokens / s", "encode a frame, s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="135M")
    parser.add_argument("--frames", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--turns", type=int, default=3, help="times that each way runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tiny model and one turn, for tests")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)  # in the process of a turn
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.size, args.turns, args.frames = "smoke", 1, [2, 9]
    if args.one:
        print(json.dumps(turn(args.size, args.one, args.frames[0])))
        return
    results = [{"frames": frames, "ways": measure(args, frames)} for frames in args.frames]
    about = {"date": str(date.today()), "torch": torch.__version__, "threads": args.threads, **hardware()}
    print(f"{about}\n\n{table(results)}")
    if args.json:
        args.json.write_text(json.dumps({"about": about, "size": args.size, "results": results}, indent=1))


if __name__ == "__main__":
    main()
