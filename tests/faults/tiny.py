"""A tiny study from raw files to tables, and its commands in processes that can be killed."""

import ctypes
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import load_file

from fvlm.__main__ import main
from fvlm.evaluate import losses
from tests.conftest import ROOT
from tests.train_cases import TIMING

PER_SHARD = 16
PICTURES, CLIPS, BROKEN = 40, 5, (3, 21)
SHARDS = {"photos": 3, "clips": 1}
STUDY = {
    "study": "tiny", "based_on": "smoke.yaml", "only": {"stages": ["stage1"], "ablations": []}, "prepare": ["clips"],
    "seeds": {"baseline": None, "A6": None, "B1": None}, "shards": {"samples": PER_SHARD},
    "scaling": {"budgets": dict.fromkeys(("C1", "C2", "C3", "C4"))}, "tokenizer": {"vocabulary": 280},
    "baseline": {"optim.batch_size": 2, "train.evaluations": 3, "train.validation_samples": 2,
                 "operation.checkpoint_steps": 2, "operation.attention_videos": 0},
    "stages": {"stage1": {"data.sources": ["photos"], "data.share": {"image": 1.0}, "train.samples": 24}},
}  # fmt: skip
ARTEFACTS = (
    "shards/*/*.tar", "shards/*/*.jsonl", "shards/*/*.sha256", "tokenizer/*", "index/*.npz", "index/*.jsonl",
    "ledger.jsonl", "tables/data.csv",
)  # fmt: skip
EVALUATION, SCORED = "evaluation/stage1.csv", 8  # samples, each in a batch of its own
STEPS = ("shard photos 0", "shard photos 1", "shard photos 2", "shard clips 0", "tokenizer", "index photos",
         "index clips", "ledger", "train", "evaluate", "collect")  # fmt: skip

# Forked from a process that has imported the package and computed nothing, so that a command starts at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "fvlm.train.training",
        "fvlm.evaluate.losses",
        "fvlm.data.shards.index",
        "fvlm.data.shards.write",
        "tests.faults.tiny",
    ]
)


def raw_files(folder: Path) -> None:
    """Pictures, some broken, and clips (one is text), each with a table."""
    from tests.decode_cases import X264, write

    noise = np.random.default_rng(0)
    for name, count in (("photos", PICTURES), ("clips", CLIPS)):
        (folder / name).mkdir(parents=True)
        rows = []
        for i in range(count):
            file = f"{i:02d}.jpg" if name == "photos" else f"{i:02d}.mp4"
            if i in BROKEN:
                (folder / name / file).write_text("nothing to see here")
            elif name == "photos":
                Image.fromarray(noise.integers(0, 255, (64, 80, 3), np.uint8)).save(folder / name / file)
            else:
                write(folder / name / file, "160x120", "25", 2, X264)
            rows.append({"file": file, "caption": f"{name} number {i}"})
        (folder / name / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass
class Tiny:
    """A study in `folder` with results of its own; `world` is the undisturbed study, which has the raw files.

    seconds     duration of each step
    """

    folder: Path
    world: "Tiny | None" = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def raw(self) -> Path:
        return (self.world or self).folder / "raw"

    def write_study(self, **changes) -> None:
        sources = {
            "photos": {"kind": "image", "reader": "folder", "path": str(self.raw / "photos"), "held_out": 0.25},
            "clips": {"kind": "video", "reader": "folder", "path": str(self.raw / "clips"), "held_out": 0.25},
        }
        content = STUDY | {"results": str(self.results), "sources": sources} | changes
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "study.yaml").write_text(yaml.safe_dump(content))

    def command(self, step: str) -> list[str]:
        """Arguments of `fvlm` for a step."""
        study, results = ["--study", str(self.folder / "study.yaml")], self.results
        what, *about = step.split()
        if what == "shard":
            name, number = about
            kind = "image" if name == "photos" else "video"
            return [
                "shard", str(self.raw / name), "--reader", "folder", "--name", name, "--kind", kind, "--shard", number,
                "--samples-per-shard", str(PER_SHARD), "--processes", "1", "--out", str(results / "shards" / name),
            ]  # fmt: skip
        run, tables = results / "runs/stage1", results / "tables"
        return {
            "tokenizer": ["tokenizer", str(self.raw / "photos/samples.jsonl"), "--vocabulary", "280",
                          "--out", str(results / "tokenizer")],
            "index": ["index", *about, *study],
            "ledger": ["ledger", "--of-study", "--out", str(results / "ledger.jsonl"),
                       "--table", str(tables / "data.csv"), *study],
            "train": ["train", "stage1", *study],
            "evaluate": ["evaluate", "stage1", "--out", str(results / EVALUATION), *study],
            "collect": ["collect", "curves", str(run / "metrics.csv"), "--points", "400",
                        "--out", str(tables / "training_curves.csv")],
        }[what]  # fmt: skip

    def run(self, step: str, kill_after: float | None = None) -> tuple[int, str]:
        """Run a step; returns its exit status (negative: the signal that ended it) and its output."""
        log = self.folder / log_of(step)
        process = SERVER.Process(target=_command, args=(self.command(step), str(log)))
        begin = time.monotonic()
        process.start()
        process.join(kill_after)
        if process.is_alive() and kill_after is not None:
            process.kill()
            process.join()
        self.seconds[step] = time.monotonic() - begin
        return process.exitcode, log.read_text(errors="replace") if log.exists() else ""

    def finish(self) -> None:
        """Run all steps."""
        for step in STEPS:
            status, output = self.run(step)
            assert status == 0, f"{step}: {status}\n{output[-2000:]}"

    def artefacts(self) -> dict[str, object]:
        """Return the content of all finished files, without times and speeds."""
        found: dict[str, object] = {}
        for pattern in ARTEFACTS:
            for path in sorted(self.results.glob(pattern)):
                found[str(path.relative_to(self.results))] = path.read_bytes()
        run = self.results / "runs/stage1"
        for name in ("metrics", "validation"):
            lines = (run / f"state/{name}.jsonl").read_text().splitlines()
            found[name] = [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]
        for name in ("best", "final"):
            weights = load_file(run / f"model/{name}.safetensors")
            found[name] = {key: value.tobytes() for key, value in weights.items()}
        return found

    def copy(self, folder: Path, *parts: str) -> "Tiny":
        """Return a study on the same raw files, with copies of some of these results."""
        other = Tiny(folder, self)
        other.write_study()
        other.results.mkdir()
        for part in parts:
            source = self.results / part
            target = other.results / part
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
        return other

    def kill_and_repeat(self, step: str, draw: random.Random) -> int:
        """Kill a step one to three times at random points, then let it finish; returns how often it was killed."""
        kills = 0
        for _ in range(draw.randint(1, 3)):
            status, output = self.run(step, draw.uniform(0, self.world.seconds[step]))
            assert status in (0, -9), output
            kills += status == -9
            self.check_nothing_half_written()
        status, output = self.run(step)
        assert status == 0, output[-2000:]
        return kills

    def check_nothing_half_written(self) -> None:
        """Assert that each file with a final name has the bytes of the undisturbed study."""
        for pattern in ARTEFACTS:
            for path in self.results.glob(pattern):
                whole = self.world.results / path.relative_to(self.results)
                assert path.read_bytes() == whole.read_bytes(), path

    def check_same(self, undisturbed: "Tiny | None" = None) -> None:
        """Assert that the results are those of the undisturbed study, and that no unfinished file is left."""
        mine, theirs = self.artefacts(), (undisturbed or self.world).artefacts()
        assert mine.keys() == theirs.keys(), set(mine) ^ set(theirs)
        assert not [name for name in mine if mine[name] != theirs[name]]
        steps = [row["step"] for row in mine["metrics"]]
        assert steps == list(range(1, len(steps) + 1)), "each step once"
        entries = [json.loads(line) for line in mine["ledger.jsonl"].splitlines()]
        assert len(entries) == PICTURES + CLIPS and sum(e["status"] == "rejected" for e in entries) == len(BROKEN) + 1
        assert not [path for path in self.results.rglob(".*.part") if "state" in path.parts], "half-written"


def log_of(step: str) -> str:
    return f"log-{step.replace(' ', '-')}"


def _command(arguments: list[str], log: str) -> None:
    losses.BATCH = 1  # with the default there would be one batch
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: an interrupted test leaves no process
    sys.modules["__main__"] = types.ModuleType("__main__")  # or each decoding process would import the tests
    os.chdir(ROOT)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    raise SystemExit(main(arguments))


def error_line(output: str) -> str:
    """Return the one line of error of a command; fails if there is a traceback."""
    assert "Traceback" not in output, output[-2000:]
    lines = [line for line in output.splitlines() if line.startswith("fvlm ")]
    assert len(lines) == 1, output[-2000:]
    return lines[0]


def undisturbed(folder: Path) -> Tiny:
    tiny = Tiny(folder)
    raw_files(tiny.raw)
    tiny.write_study()
    tiny.finish()
    return tiny
