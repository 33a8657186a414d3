"""Samples per second from shards to batches, against the usual webdataset pipeline; and memory over many samples.

    python benchmarks/loading.py                     both sides, three kinds of shards, a table
    python benchmarks/loading.py --quick             the same with few samples, for tests
    python benchmarks/loading.py --workers           with and without threads that read ahead
    python benchmarks/loading.py --leak 20000        memory over so many samples

The shards are made first. Both sides read the same samples of the same tars, decode the same frames to the same uint8
pixels and tokenize with the same code; this is checked before the measurement. The usual side is
`wds.WebDataset(urls).decode("pil")`, a map to arrays and ids, and a DataLoader that pads frames and ids to the longest
of the batch. Rates are samples per second of CPU time, in one process with one thread, so per core. The sides take
turns; ratios are medians over the rounds.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from torch.utils.data import DataLoader

from fvlm.batch import Batch
from fvlm.config.resolve import load_study
from fvlm.config.study_file import merged, read_yaml
from fvlm.data.batches.loader import Corpus, Steps, load_steps
from fvlm.data.batches.order import in_file_order
from fvlm.data.shards.index import Index, write_index
from fvlm.data.shards.text import encode_chat, load_tokenizer, train_tokenizer
from fvlm.data.shards.write import open_tar

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import cpu_seconds

ROOT = Path(__file__).resolve().parents[1]
SIDE, BATCH, MAX_TOKENS = 224, 8, 512
GPU_RATES = (20, 60)  # samples per second that one GPU trains on
MEAN, SPREAD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's, which DINOv2 uses
SYLLABLES = ("ba", "cor", "den", "fil", "gra", "hu", "jo", "kel", "lim", "mo", "nar", "pol", "ri", "sta", "tur", "wen")


@dataclass(frozen=True)
class Material:
    """A tokenizer, and one tar of samples with its index."""

    root: Path
    tar: Path
    index: Index

    def steps(self, count: int | None = None, batch_size: int = BATCH, seed: int = 0) -> Steps:
        """Return steps over `count` samples (default: all, once) in random order, as training reads them."""
        content = merged(read_yaml(ROOT / "config/smoke.yaml"), {"results": str(self.root)})
        study = load_study(content, ROOT / "config")
        run = study.runs["baseline"]
        run = run.model_copy(
            update={
                "data": run.data.model_copy(update={"max_text_tokens": MAX_TOKENS}),
                "operation": run.operation.model_copy(update={"micro_frames": 10**6, "micro_tokens": 10**6}),
            }
        )
        count = count or len(self.index)
        rng = np.random.default_rng(seed)
        rounds = [rng.permutation(len(self.index)) for _ in range(-(-count // len(self.index)))]
        rows = np.concatenate(rounds)[:count]
        order = in_file_order([self.index], [rows], 1, MAX_TOKENS)
        return Steps(Corpus(["made"], [self.index], [rows], ["?"]), order, run, study, "all", batch_size)


def make_material(root: Path, frames: list[int], seed: int = 0) -> Material:
    """Make samples with these numbers of frames, of about 15 KB each, and texts of about 100 tokens."""
    rng = np.random.default_rng(seed)
    world = natural(rng, 640)
    if not (root / "tokenizer").exists():
        train_tokenizer((text_of(rng) for _ in range(300)), 2000, root / "tokenizer")
    tar = root / "made.tar"
    with tar.open("wb") as file, open_tar(file) as writer:
        for number, count in enumerate(frames):
            jpegs = {f"{i:03d}.jpg": jpeg for i, jpeg in enumerate(clip(rng, world, count))}
            described = {"user": "Describe the video.", "assistant": text_of(rng), "source": "made"}
            described |= {
                "frame_count": count,
                "frame_times": [float(i) for i in range(count)],
                "file": f"{number}.mp4",
            }
            writer.write({"__key__": f"made-{number:07d}", **jpegs, "json": json.dumps(described).encode()})
    # Kind text, so that one tar may hold samples without, with one and with many frames.
    index = write_index([tar], root / "made.npz", "made", "text", root / "tokenizer", "?", root)
    if index.rejected:
        raise RuntimeError(f"{index.rejected} samples were rejected")
    return Material(root, tar, index)


def natural(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a random image with the spectrum of photographs, so that its JPEGs are as large as theirs."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    grey = rng.standard_normal((1, side, side)) + 0.4 * rng.standard_normal((3, side, side))
    waves = np.fft.irfft2(np.fft.rfft2(grey) / np.maximum(frequency, 1 / side) ** 1.5, (side, side))
    waves = 128 + 50 * (waves - waves.mean()) / waves.std()
    return np.ascontiguousarray(waves.transpose(1, 2, 0).clip(0, 255).astype(np.uint8))


def clip(rng: np.random.Generator, world: np.ndarray, count: int) -> Iterator[bytes]:
    """Return the JPEGs of a window that moves over a large image."""
    start, end = rng.integers(0, world.shape[0] - SIDE, (2, 2))
    for i in range(count):
        y, x = (start + (end - start) * i // max(count, 2)).tolist()
        yield simplejpeg.encode_jpeg(np.ascontiguousarray(world[y : y + SIDE, x : x + SIDE]), 90, "RGB", "420")


def text_of(rng: np.random.Generator) -> str:
    words = ["".join(rng.choice(SYLLABLES, length)) for length in rng.integers(1, 4, 60)]
    return " ".join(words) + "."


def mixture(count: int, seed: int = 0) -> list[int]:
    """Return the frames of each sample: 14 % text, 42 % images, 44 % video; 8 frames on average."""
    rng = np.random.default_rng(seed)
    video = np.clip(np.round(np.exp(rng.normal(np.log(14), 0.65, count))), 2, 64).astype(int)
    kind = rng.permutation(np.arange(count) / count)
    return np.where(kind < 0.14, 0, np.where(kind < 0.56, 1, video)).tolist()


# --- the usual pipeline ---


def usual(material: Material, normalised: bool, workers: int = 0) -> DataLoader:
    tokenizer = load_tokenizer(material.root / "tokenizer")

    def arrays(sample: dict) -> dict:
        frames = [torch.from_numpy(np.array(sample[name])) for name in sorted(sample) if name.endswith(".jpg")]
        if normalised:  # what torchvision's ToTensor and Normalize do
            mean, spread = torch.tensor(MEAN, dtype=torch.float32), torch.tensor(SPREAD, dtype=torch.float32)
            frames = [frame.float().div_(255).sub_(mean).div_(spread) for frame in frames]
        ids, _ = encode_chat(tokenizer, sample["json"], MAX_TOKENS)
        kind = torch.float32 if normalised else torch.uint8
        stacked = torch.stack(frames) if frames else torch.zeros((0, SIDE, SIDE, 3), dtype=kind)
        return {"key": sample["__key__"], "frames": stacked, "ids": torch.from_numpy(ids.astype(np.int64))}

    dataset = webdataset.WebDataset([str(material.tar)], shardshuffle=False, empty_check=False)
    return DataLoader(dataset.decode("pil").map(arrays), batch_size=BATCH, collate_fn=padded, num_workers=workers)


def padded(samples: list[dict]) -> dict:
    frame_counts, token_counts = ([len(sample[name]) for sample in samples] for name in ("frames", "ids"))
    frames = torch.zeros((len(samples), max(frame_counts), SIDE, SIDE, 3), dtype=samples[0]["frames"].dtype)
    ids = torch.zeros((len(samples), max(token_counts)), dtype=torch.int64)
    for i, sample in enumerate(samples):
        frames[i, : frame_counts[i]] = sample["frames"]
        ids[i, : token_counts[i]] = sample["ids"]
    masks = [torch.arange(max(counts))[None] < torch.tensor(counts)[:, None] for counts in (frame_counts, token_counts)]
    return {
        "keys": [sample["key"] for sample in samples],
        "frames": frames, "frames_mask": masks[0], "ids": ids, "ids_mask": masks[1],
    }  # fmt: skip


# --- both ---


def samples_of_batch(batch: Batch) -> Iterator[tuple[str, np.ndarray, list[int]]]:
    ids = batch.token_ids.split(batch.token_counts.tolist())
    index = batch.frame_index.split(batch.frame_counts.tolist())
    for i, key in enumerate(batch.keys):
        yield key, batch.frames[index[i]].numpy(), ids[i].tolist()


def check_equal(material: Material) -> int:
    """Check that both sides give the same samples, pixels and ids, and return the largest difference of a pixel."""
    ours = {key: (frames, ids) for batches in load_steps(material.steps()) for batch in batches
            for key, frames, ids in samples_of_batch(batch)}  # fmt: skip
    worst = seen = 0
    for batch in usual(material, normalised=False):
        for i, key in enumerate(batch["keys"]):
            frames, ids = ours[key]
            theirs = batch["frames"][i][batch["frames_mask"][i]].numpy()
            if theirs.shape != frames.shape or batch["ids"][i][batch["ids_mask"][i]].tolist() != ids:
                raise RuntimeError(f"{key}: the two sides differ: frames {frames.shape} and {theirs.shape}")
            worst = max(worst, int(np.abs(theirs.astype(int) - frames).max(initial=0)))
            seen += 1
    if seen != len(ours) or seen != len(material.index):
        raise RuntimeError(f"{seen} samples on one side, {len(ours)} on the other; the index has {len(material.index)}")
    if worst > 3:
        raise RuntimeError(f"pixels differ by up to {worst} levels")
    return worst


def per_cpu_second(run: Callable[[], int]) -> float:
    start = time.process_time()
    return run() / (time.process_time() - start)


def compare(material: Material, rounds: int) -> dict[str, list[float]]:
    """Return the samples per CPU second of each side and round."""
    steps = material.steps()
    sides = {
        "fvlm": lambda: sum(len(batch) for i in range(len(steps)) for batch in steps[i]),
        "webdataset, uint8": lambda: sum(len(batch["keys"]) for batch in usual(material, False)),
        "webdataset, float32": lambda: sum(len(batch["keys"]) for batch in usual(material, True)),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()  # warm-up
    for number in range(rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            rates[name].append(per_cpu_second(sides[name]))
    return rates


def time_workers(material: Material, rounds: int, workers: int = 2) -> dict[str, float]:
    """Return CPU milliseconds per sample without threads, and with threads that read ahead."""
    steps, measured = material.steps(5 * len(material.index)), {0: [], workers: []}
    for _ in range(rounds):
        for count in measured:
            before = cpu_seconds()
            done = sum(len(batch) for batches in load_steps(steps, workers=count) for batch in batches)
            measured[count].append((cpu_seconds() - before) / done * 1e3)
    return {str(count): statistics.median(times) for count, times in measured.items()}


def resident_mb() -> float:
    """Return the resident memory of this process and its children, MB (2^20 bytes)."""
    own = os.getpid()
    children = [
        int(pid) for task in Path(f"/proc/{own}/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (own, *children))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_over(steps: Steps, workers: int, points: int = 20) -> list[float]:
    """Return the resident MB at `points` evenly spaced steps."""
    measured, every = [], max(1, len(steps) // points)
    for number, batches in enumerate(load_steps(steps, workers=workers), 1):
        del batches
        if number % every == 0:
            measured.append(resident_mb())
    return measured


def growth(memory: list[float]) -> float:
    """Return the growth of memory from the second fifth to the last (medians); the first fifth is the warm-up."""
    fifth = max(1, len(memory) // 5)
    return statistics.median(memory[-fifth:]) / statistics.median(memory[fifth : 2 * fifth]) - 1


def print_leak(root: Path, count: int) -> bool:
    material, flat = make_material(root, mixture(400)), True
    print(
        "| workers | samples | RSS after warm-up, MB | at the end, MB | growth |\n| ---: | ---: | ---: | ---: | ---: |"
    )
    for workers in (0, 2):
        found = memory_over(material.steps(count), workers)
        fifth = len(found) // 5
        flat &= growth(found) < 0.05
        print(f"| {workers} | {count} | {found[fifth]:.0f} | {found[-1]:.0f} | {growth(found):+.1%} |", flush=True)
    return flat


def print_comparison(root: Path, rounds: int, quick: bool) -> dict:
    shards = {
        "8 frames": [8] * (16 if quick else 240),
        "64 frames": [64] * (8 if quick else 40),
        "mixture, 8 on average": mixture(24 if quick else 240),
    }
    print("| samples | side | samples / CPU s | fvlm is faster by | cores for 20 / 60 samples/s |")
    print("| --- | --- | ---: | ---: | ---: |")
    result = {}
    for number, (name, frames) in enumerate(shards.items()):
        folder = root / str(number)
        folder.mkdir()
        material = make_material(folder, frames)
        difference = check_equal(material)
        rates = compare(material, rounds)
        result[name] = {
            "samples": len(frames),
            "frame_kb": frame_kb(material),
            "pixel_difference": difference,
            "sides": {},
        }
        for side, found in rates.items():
            ratio = statistics.median(a / b for a, b in zip(rates["fvlm"], found, strict=True))
            rate = statistics.median(found)
            result[name]["sides"][side] = {"samples_per_cpu_s": found, "median": rate, "ratio": ratio}
            cores = " / ".join(f"{wanted / rate:.2f}" for wanted in GPU_RATES)
            print(f"| {name} | {side} | {rate:.0f} | {ratio:.2f} | {cores} |", flush=True)
    return result


def frame_kb(material: Material) -> float:
    return float(material.index.length.sum() / max(1, material.index.frames.sum()) / 1000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="few samples and one round")
    parser.add_argument("--workers", action="store_true", help="measure threads that read ahead instead")
    parser.add_argument(
        "--leak", type=int, metavar="N", help="measure memory over N samples instead; 1 if it grows by 5 %%"
    )
    parser.add_argument("--json", type=Path, help="write the numbers of the comparison to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        if args.leak:
            return 0 if print_leak(Path(folder), args.leak) else 1
        if args.workers:
            found = time_workers(make_material(Path(folder), mixture(240)), args.rounds)
            print(*(f"{count} workers: {ms:.2f} ms of CPU per sample" for count, ms in found.items()), sep="\n")
            return 0
        result = print_comparison(Path(folder), 1 if args.quick else args.rounds, args.quick)
    if args.json:
        about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "when": time.time()}
        args.json.write_text(json.dumps(about | {"shards": result}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
