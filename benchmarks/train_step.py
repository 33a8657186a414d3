"""One training step (forward, backward, clip, AdamW): this package against the exported model.

    python benchmarks/train_step.py --json step.json
    python benchmarks/train_step.py --sizes demo --turns 9
    python benchmarks/train_step.py --device cuda

The exported model (obvious.py) is the obvious implementation in transformers' style. Both sides have the same random
weights and see the same samples; first their losses and gradients are compared. On a CPU, the measure is user + system
time of all threads. The ways take turns, each in its own process, so that all meet the same busy machine, and the
medians count. Memory is the peak of a step without weights and optimizer. On a GPU samples per second and model FLOPs
utilisation are measured over batches of realistic lengths.
"""

import argparse
import gc
import json
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import markdown, medians_by_turns, start_peak, status
from obvious import exported, named_as_ours, outputs_of, padded

from fvlm.batch import Batch
from fvlm.config import schema
from fvlm.config.resolve import study_from_files
from fvlm.costs.flops import training_flops
from fvlm.device import hardware, peak_flops
from fvlm.model.build import build_model
from fvlm.train.optim import make_optimizer, rates_at, set_rates

CONFIG = Path(__file__).resolve().parents[1] / "config"


@dataclass(frozen=True)
class Way:
    """A side of the comparison, and the precision it computes in."""

    ours: bool
    precision: str  # float32 | bfloat16, by autocast
    matmul: str = "highest"  # torch.set_float32_matmul_precision

    def context(self, device: torch.device):
        return torch.autocast(device.type, dtype=torch.bfloat16) if self.precision == "bfloat16" else nullcontext()


COMMON = "obvious, float32"
WAYS = {
    COMMON: Way(False, "float32"),
    "obvious, float32 medium": Way(False, "float32", "medium"),
    "obvious, bfloat16": Way(False, "bfloat16"),
    "fvlm, float32": Way(True, "float32"),
    "fvlm, float32 medium": Way(True, "float32", "medium"),
    "fvlm, bfloat16": Way(True, "bfloat16"),
}


@dataclass(frozen=True)
class Size:
    """A model, and the batches of samples (frames, distinct frames, text tokens, scored tokens) it is measured on."""

    study: str
    language: str | None
    batches: tuple[tuple[tuple[int, int, int, int], ...], ...]


def drawn(seed: int, batches: int, size: int, kinds: tuple, text: tuple[int, int], answers: float) -> tuple:
    """Batches of samples whose lengths are drawn.

    kinds     (share, fewest, most, distinct) frames; distinct None: as many as frames
    text      fewest and most text tokens, drawn evenly in the logarithm
    answers   share of the text tokens that is scored
    """
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(batches * size):
        _, fewest, most, distinct = kinds[draw.choice(len(kinds), p=[kind[0] for kind in kinds])]
        frames = int(draw.integers(fewest, most + 1))
        tokens = int(np.exp(draw.uniform(*np.log(text))))
        made.append((frames, frames if distinct is None else distinct, tokens, max(1, round(answers * tokens))))
    return tuple(tuple(made[i : i + size]) for i in range(0, len(made), size))


# shares and lengths of the demo's samples
DEMO_KINDS = ((0.60, 4, 5, None), (0.26, 4, 4, 1), (0.14, 0, 0, 0))
# of a full-size run: videos of 6 to 12 frames on average, a few of 64; images repeated to 8 frames; text
REAL_KINDS = ((0.52, 3, 20, None), (0.08, 64, 64, None), (0.26, 8, 8, 1), (0.14, 0, 0, 0))
FOUR_VIDEOS = ((3, 3, 200, 200), (8, 8, 20, 20), (12, 12, 60, 60), (20, 20, 120, 120))
SIZES = {
    "135M": Size("paper.yaml", "SmolLM2-135M", (FOUR_VIDEOS,)),
    "demo": Size("config.yaml", None, drawn(0, 24, 8, DEMO_KINDS, (30, 60), 0.5)),
    "smoke": Size("smoke.yaml", None, drawn(0, 1, 3, ((1.0, 2, 5, None),), (10, 30), 0.5)),
}  # fmt: skip
ON_GPU = {
    "135M": Size("paper.yaml", "SmolLM2-135M", drawn(0, 24, 8, REAL_KINDS, (20, 400), 1.0)),
    "360M": Size("paper.yaml", "SmolLM2-360M", drawn(0, 24, 8, REAL_KINDS, (20, 400), 1.0)),
    "smoke": Size("smoke.yaml", None, drawn(0, 3, 3, ((0.8, 2, 5, None), (0.2, 0, 0, 0)), (10, 30), 1.0)),
}


def run_of(size: Size) -> schema.Run:
    """The study's baseline, with random weights."""
    changes = {"baseline": {"model.language": size.language}} if size.language else {}
    run = study_from_files([str(CONFIG / size.study)], changes).runs["baseline"]
    encoder, language = (part.model_copy(update={"weights": None}) for part in (run.model.encoder, run.model.language))
    return run.model_copy(update={"model": run.model.model_copy(update={"encoder": encoder, "language": language})})


def make_batch(samples: tuple, model: schema.Model, seed: int) -> Batch:
    """Random pixels and tokens in these lengths; the last tokens of a text are the scored ones."""
    draw = torch.Generator().manual_seed(seed)
    frames, distinct, texts, scored = (torch.tensor(column) for column in zip(*samples, strict=True))
    starts = distinct.cumsum(0) - distinct
    spread = [torch.arange(f).clamp(max=max(d - 1, 0)) + s for f, d, s in zip(frames, distinct, starts, strict=True)]
    image, total = model.encoder.image, int(texts.sum())
    places = torch.cat([torch.arange(count) for count in texts])
    return Batch(
        frames=torch.randint(0, 256, (int(distinct.sum()), image, image, 3), dtype=torch.uint8, generator=draw),
        frame_index=torch.cat(spread),
        frame_counts=frames,
        token_ids=torch.randint(0, model.language.vocabulary, (total,), generator=draw),
        token_counts=texts,
        loss_mask=places >= (texts - scored).repeat_interleave(texts),
        keys=[str(i) for i in range(len(samples))],
        sources=["random"] * len(samples),
    )


class Side:
    """A model with its optimizer, one of the two; computes as its `way` says, which may be changed."""

    def __init__(self, way: Way, run: schema.Run, device: torch.device):
        self.way, self.run, self.device = way, run, device
        model = build_model(run.model, seed=0)
        self.model = (model if way.ours else exported(model)).to(device)
        if way.ours:
            self.optimizer = make_optimizer(self.model.parameter_groups(), run.optim)
        else:
            rate, decay = run.optim.lr.llm, run.optim.weight_decay
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=decay)

    def prepare(self, batch: Batch) -> Batch | dict[str, torch.Tensor]:
        """Return the batch as a data loader gives it; not timed."""
        return batch if self.way.ours else padded(batch, self.model)

    def loss_sum(self, batch: Batch | dict[str, torch.Tensor]) -> torch.Tensor:
        with self.way.context(self.device):
            if self.way.ours:
                return self.model(batch.to(self.device), "coarse_fine").objective_B.sum()
            inputs = {name: values.to(self.device, non_blocking=True) for name, values in batch.items()}
            return outputs_of(self.model, inputs, "coarse_fine").loss * (batch["labels"] != -100).sum()

    def backward(self, batch: Batch | dict[str, torch.Tensor], scored: int) -> torch.Tensor:
        """Return the mean loss, and set the gradients of the parameters."""
        torch.set_float32_matmul_precision(self.way.matmul)
        loss = self.loss_sum(batch) / scored
        loss.backward()
        return loss.detach()

    def step(self, batch: Batch | dict[str, torch.Tensor], scored: int) -> torch.Tensor:
        if self.way.ours:
            set_rates(self.optimizer, rates_at(self.run.optim, 500, 1000))
        loss = self.backward(batch, scored)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, self.run.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def gradients(self) -> dict[str, torch.Tensor]:
        named = dict(self.model.named_parameters()) if self.way.ours else named_as_ours(self.model)
        return {name: p.grad for name, p in named.items() if p.grad is not None}


def scored_tokens(batch: Batch) -> int:
    """Return the divisor of the loss on both sides."""
    return max(1, int(batch.loss_mask.sum()))


def compare(run: schema.Run, batch: Batch, device: torch.device) -> dict[str, float]:
    """Return both losses in float32, and the largest difference of a gradient relative to its norm."""
    sides = []
    for way in (COMMON, "fvlm, float32"):  # one model in memory at a time
        side = Side(WAYS[way], run, device)
        loss = float(side.backward(side.prepare(batch), scored_tokens(batch)))
        sides.append((loss, side.gradients()))
    losses, (theirs, ours) = zip(*sides, strict=True)
    if theirs.keys() != ours.keys():
        raise RuntimeError(f"gradients of one side only: {sorted(theirs.keys() ^ ours.keys())}")
    total = torch.stack([gradient.norm() for gradient in ours.values()]).norm()
    # The gradient of a key's bias is zero except for rounding: such ones are compared with a thousandth of the total.
    differences = {
        name: float((theirs[name] - g).norm() / torch.maximum(g.norm(), 1e-3 * total)) for name, g in ours.items()
    }
    return {"obvious": losses[0], "fvlm": losses[1], "gradients": max(differences.values())}


def check(run: schema.Run, batches: list[Batch], one: Batch, device: torch.device) -> dict[str, dict[str, float]]:
    """Compare the sides on one sample, which has no padding, and on a batch, which needs the masks.

    raises   RuntimeError if the sides differ by more than the rounding of float32
    """
    cases = {"one sample": compare(run, one, device), "a batch": compare(run, batches[0], device)}
    for name, case in cases.items():
        if abs(case["obvious"] / case["fvlm"] - 1) > 1e-5 or case["gradients"] > 1e-4:
            raise RuntimeError(f"{name}: the sides do not compute the same: {case}")
    return cases


def turn(run: schema.Run, batches: list[Batch], short: Batch, way: str) -> dict[str, float]:
    """Return the CPU seconds of a step, all threads, and the peak memory above that before the steps, MB (2^20 bytes).

    short   a batch for the warm-up, after which weights, moments and kernels are in memory
    """
    side = Side(WAYS[way], run, torch.device("cpu"))
    side.step(side.prepare(short), scored_tokens(short))
    prepared = [(side.prepare(batch), scored_tokens(batch)) for batch in batches]
    gc.collect()
    start_peak()
    before, start = status("VmRSS"), time.process_time()
    for batch, scored in prepared:
        side.step(batch, scored)
    seconds = (time.process_time() - start) / len(batches)
    return {"seconds": seconds, "peak_mb": (status("VmHWM") - before) / 1024}


def turns_of(size: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the medians over the turns of each way."""

    def command(way: str) -> list[str]:
        return [__file__, "--sizes", size, "--ways", way, "--threads", str(args.threads), "--one"]

    return medians_by_turns(args.ways, args.turns, command, size)


def throughput(run: schema.Run, size: Size, batches: list[Batch], way: str, device: torch.device) -> dict:
    """Samples per second over all batches, model TFLOP/s, utilisation and memory."""
    side = Side(WAYS[way], run, device)
    prepared = [(side.prepare(batch), scored_tokens(batch)) for batch in batches]
    for batch, scored in prepared:  # every shape once
        side.step(batch, scored)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for batch, scored in prepared:
        side.step(batch, scored)
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    columns = np.array([sample for batch in size.batches for sample in batch]).T
    frames, distinct, text, scored = columns
    flops = training_flops(run.model, (), frames, text, scored, distinct).sum() / seconds
    peak = peak_flops(device, None, side.way.precision)
    return {
        "samples_per_s": len(frames) / seconds, "tflops": flops / 1e12, "mfu": flops / peak if peak else None,
        "memory_gb": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None,
    }  # fmt: skip


def inputs(size: Size) -> tuple[schema.Run, list[Batch], Batch]:
    """The run, its batches, and one short sample with frames."""
    run = run_of(size)
    batches = [make_batch(samples, run.model, i) for i, samples in enumerate(size.batches)]
    shortest = min(sample for batch in size.batches for sample in batch if sample[0])
    return run, batches, make_batch((shortest,), run.model, len(batches))


def measure(name: str, args: argparse.Namespace) -> dict:
    """Return all measurements of one size."""
    device = torch.device(args.device)
    size = (ON_GPU if args.throughput else SIZES)[name]
    run, batches, one = inputs(size)
    result = {"size": name, "equal": check(run, batches, one, device)}
    print(f"{name}: {result['equal']}", file=sys.stderr, flush=True)
    if args.throughput:
        return result | {"throughput": {way: throughput(run, size, batches, way, device) for way in args.ways}}
    gc.collect()  # the modules of transformers refer to each other, and the turns need the memory
    return result | {"ways": turns_of(name, args)}


def table(results: list[dict], throughput: bool) -> str:
    """Return a Markdown table: per size and way the cost, and how many times lower it is than the obvious way's."""
    rows = []
    if throughput:
        for result in results:
            for way, one in result["throughput"].items():
                rest = (f"{one[key]:.3g}" if one[key] is not None else "" for key in ("tflops", "mfu", "memory_gb"))
                rows.append([result["size"], way, f"{one['samples_per_s']:.1f}", *rest])
        return markdown(["size", "", "samples / s", "TFLOP/s", "utilisation", "memory, GB"], rows, words=2)
    for result in results:
        base = result["ways"].get(COMMON)
        for way, one in result["ways"].items():
            cells = [f"{one['seconds']:.3f}", "", f"{one['peak_mb']:.0f}", ""]
            if base:
                cells[1], cells[3] = (f"{base[key] / one[key]:.2f}" for key in ("seconds", "peak_mb"))
            rows.append([result["size"], way, *cells])
    return markdown(["size", "", "CPU s / step", "times less", "peak MB", "times less"], rows, words=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", help="135M, demo; on a GPU 135M, 360M")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), metavar="WAY", help="(default: all)")
    parser.add_argument("--turns", type=int, default=5, help="times that each way runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--throughput", action="store_true", help="measure samples per second instead of CPU time (always on a GPU)"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model and one turn, for tests")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in the process of a turn
    args = parser.parse_args()
    args.throughput |= args.device == "cuda"
    # On a GPU nobody trains in float32 without TF32.
    args.ways = args.ways or [w for w in WAYS if args.device == "cpu" or not w.endswith("float32")]
    sizes = ON_GPU if args.throughput else SIZES
    args.sizes = args.sizes or (["smoke"] if args.quick else [name for name in sizes if name != "smoke"])
    args.turns = 1 if args.quick else args.turns
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(turn(*inputs(SIZES[args.sizes[0]]), args.ways[0])))
        return
    results = [measure(name, args) for name in args.sizes]
    about = {"date": str(date.today()), "torch": torch.__version__, "threads": args.threads, **hardware()}
    print(f"{about}\n\n{table(results, args.throughput)}")
    if args.json:
        args.json.write_text(json.dumps({"about": about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
