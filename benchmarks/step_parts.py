"""Cost of each part of the training step: one part is removed or added, the rest is unchanged.

    python benchmarks/step_parts.py --sizes demo --turns 5
    python benchmarks/step_parts.py --sizes 135M --precision bfloat16 --only as-it-is anew

Weights and samples are those of train_step.py. Every change runs in a process of its own, by turns with the others; its
first loss must equal that of the unchanged step. The table has medians: CPU and wall seconds of a step, peak memory
without weights and optimizer, and the seconds of the first pass over the batches, which includes compilation.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import markdown, medians_by_turns, start_peak, status
from train_step import SIZES, Side, Way, inputs, scored_tokens

from fvlm.batch import Batch
from fvlm.model import packing
from fvlm.model.encoder import Encoder, FrameStates
from fvlm.model.foveated import VideoLanguageModel

AS_IT_IS = "as-it-is"


class Anew(Encoder):
    """Stores each layer's input; every reading computes keys and values from it again."""

    def encode(self, frames, keys, features):
        x, states = self._embed(frames), FrameStates([], [], None)
        for layer in self.layers:
            states.keys.append(x)
            if len(states.keys) == len(self.layers):
                return states
            normed = layer.norm1(x)
            query, key, value = (self._split(part(normed)) for part in self._parts(layer))
            seen = F.scaled_dot_product_attention(query, key, value)
            x = self._finish(layer, x, seen.transpose(1, 2).flatten(2))
        return states

    def read(self, query_PD, states, visits, weights=False):
        made = FrameStates([], [], None)
        for layer, x in zip(self.layers, states.keys, strict=True):
            _, key, value = self._parts(layer)
            normed = layer.norm1(x)
            made.keys.append(self._split(key(normed)))
            made.values.append(self._split(value(normed)))
        return super().read(query_PD, made, visits, weights)

    def _parts(self, layer):
        return layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj


def keys_anew(side: Side) -> None:
    side.model.dino.__class__ = Anew


def no_packing(side: Side) -> None:
    def own_row(lengths: np.ndarray):
        return np.arange(len(lengths)), np.zeros_like(lengths), len(lengths), int(lengths.max(initial=0))

    packing.first_fit = own_row


def all_logits(side: Side) -> None:
    def score(self, visual_PE, text_SE, batch, plan):
        hidden = self.hidden(visual_PE, text_SE, plan)
        places = plan.rows.cells[len(visual_PE) :][plan.scored] - 1
        targets = batch.token_ids[plan.scored]
        return F.cross_entropy(self.llm.logits(hidden).float()[places], targets, reduction="none"), targets

    VideoLanguageModel._score = score


def repeats_encoded(side: Side) -> None:
    prepare = side.prepare

    def repeated(batch: Batch) -> Batch:
        batch = prepare(batch)
        return replace(batch, frames=batch.frames[batch.frame_index], frame_index=torch.arange(len(batch.frame_index)))

    side.prepare = repeated


def last_layer(side: Side) -> None:
    encode = side.model.dino.encode
    side.model.dino.encode = lambda frames, keys, features: encode(frames, keys, features=True)


def checkpointing(side: Side) -> None:
    for layer in [*side.model.dino.layers, *side.model.llm.llama.layers]:
        layer.mlp.forward = partial(checkpoint, layer.mlp.forward, use_reentrant=False)


def plain_adamw(side: Side) -> None:
    for group in side.optimizer.param_groups:
        group |= {"fused": False, "foreach": False}


def compiled(side: Side) -> None:
    model = side.model
    for part, name in ((model.llm, "_walk"), (model.dino, "encode"), (model.dino, "read")):
        setattr(part, name, torch.compile(getattr(part, name), dynamic=True))


def compiled_mlps(side: Side) -> None:
    for layer in [*side.model.dino.layers, *side.model.llm.llama.layers]:
        layer.mlp.compile(dynamic=True)


def two_threads(side: Side) -> None:
    torch.set_num_threads(2)


@dataclass(frozen=True)
class Change:
    make: Callable[[Side], None]
    what: str


CHANGES = {
    AS_IT_IS: Change(lambda side: None, "nothing"),
    "anew": Change(keys_anew, "keys and values computed again by each reading"),
    "padded": Change(no_packing, "each sample in a row of its own"),
    "all-logits": Change(all_logits, "logits at every position"),
    "repeats": Change(repeats_encoded, "a static image encoded once per position"),
    "last-layer": Change(last_layer, "the encoder's last layer computed completely"),
    "adamw": Change(plain_adamw, "AdamW parameter by parameter, not fused"),
    "checkpointing": Change(checkpointing, "MLPs computed again in the backward pass"),
    "compiled": Change(compiled, "torch.compile of both walks, dynamic shapes"),
    "compiled-mlps": Change(compiled_mlps, "torch.compile of the MLPs alone, dynamic shapes"),
    "two-threads": Change(two_threads, "two threads"),
}  # fmt: skip


def turn(size: str, precision: str, name: str) -> dict[str, float]:
    """Return seconds and MB of a step with one change, after a first pass over all batches."""
    run, batches, _ = inputs(SIZES[size])
    side = Side(Way(True, precision), run, torch.device("cpu"))
    CHANGES[name].make(side)
    prepared = [(side.prepare(batch), scored_tokens(batch)) for batch in batches]
    start, losses = time.perf_counter(), []
    for batch, scored in prepared:
        losses.append(float(side.step(batch, scored)))
    first = time.perf_counter() - start
    gc.collect()
    start_peak()
    before, cpu, wall = status("VmRSS"), time.process_time(), time.perf_counter()
    for batch, scored in prepared:
        side.step(batch, scored)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = (status("VmHWM") - before) / 1024
    return {
        "cpu_s": cpu / len(batches),
        "wall_s": wall / len(batches),
        "peak_mb": peak,
        "first_s": first,
        "loss": losses[0],
    }


def measure(size: str, names: list[str], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the medians over the turns.

    raises   RuntimeError if a change alters the first loss by more than rounding
    """

    def command(name: str) -> list[str]:
        return [__file__, "--precision", args.precision, "--sizes", size, "--one", "--only", name]

    medians = medians_by_turns(names, args.turns, command, size)
    tolerance = 1e-5 if args.precision == "float32" else 5e-3
    for name, one in medians.items():
        if abs(one["loss"] / medians[AS_IT_IS]["loss"] - 1) > tolerance:
            raise RuntimeError(f"{name} has loss {one['loss']}, the unchanged step {medians[AS_IT_IS]['loss']}")
    return medians


def table(size: str, medians: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table: each change against the unchanged step."""
    base, rows = medians[AS_IT_IS], []
    for name, one in medians.items():
        cells = [CHANGES[name].what]
        for key, digits in (("cpu_s", 3), ("wall_s", 3), ("peak_mb", 0)):
            change = "" if name == AS_IT_IS else f"{100 * (one[key] / base[key] - 1):+.0f} %"
            cells += [f"{one[key]:.{digits}f}", change]
        rows.append([*cells, f"{one['first_s']:.0f}"])
    header = [f"{size}: changed", "CPU s / step", "", "wall s / step", "", "peak MB", "", "first pass, s"]
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["demo"], choices=list(SIZES))
    parser.add_argument("--only", nargs="*", default=list(CHANGES), choices=list(CHANGES), metavar="CHANGE")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--turns", type=int, default=3, help="times that each change runs")
    parser.add_argument("--quick", action="store_true", help="a tiny model and one turn without compilation, for tests")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in the process of a turn
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(turn(args.sizes[0], args.precision, args.only[0])))
        return
    names = [AS_IT_IS, *(name for name in args.only if name != AS_IT_IS)]
    if args.quick:
        args.turns, args.sizes = 1, ["smoke"]
        names = [name for name in names if not name.startswith("compiled")]
    for size in args.sizes:
        print(table(size, measure(size, names, args)), flush=True)


if __name__ == "__main__":
    main()
