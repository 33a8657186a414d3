"""One function per fault: it disturbs a copy of the study, asserts what must hold, and returns the outcome in words."""

import contextlib
import json
import math
import os
import random
import shutil
import threading
import time
import zipfile
from pathlib import Path

import psutil
import yaml

from tests.faults.fault import BEFORE_TRAINING, NO_FAULT, REFUSED, SAME, fault, log_elsewhere, small_disk
from tests.faults.tiny import EVALUATION, SCORED, SHARDS, Tiny, error_line, log_of

# --- killed ---


@fault("a shard killed at a random point (decoding, writing)")
def killed_shard(world: Tiny, folder: Path, draw: random.Random) -> str:
    tiny = world.copy(folder, "tokenizer")
    name = draw.choice(list(SHARDS))
    kills = tiny.kill_and_repeat(f"shard {name} {draw.randrange(SHARDS[name])}", draw)
    tiny.check_nothing_half_written()
    assert not list(tiny.results.glob("shards/*/.*")), "half-written"
    return SAME if kills else NO_FAULT


@fault("an index killed at a random point")
def killed_index(world: Tiny, folder: Path, draw: random.Random) -> str:
    tiny = world.copy(folder, "tokenizer", "shards")
    kills = tiny.kill_and_repeat("index photos", draw)
    assert (tiny.results / "index/photos.npz").exists()
    tiny.check_nothing_half_written()
    return SAME if kills else NO_FAULT


@fault("a training killed at a random point")
def killed_training(world: Tiny, folder: Path, draw: random.Random) -> str:
    tiny = world.copy(folder, *BEFORE_TRAINING)
    kills = tiny.kill_and_repeat("train", draw)
    tiny.check_same()
    return SAME if kills else NO_FAULT


@fault("an evaluation killed at a random point")
def killed_evaluation(world: Tiny, folder: Path, draw: random.Random) -> str:
    """Scored batches are not scored again."""
    tiny = world.copy(folder, *BEFORE_TRAINING, "runs")
    table, whole = tiny.results / EVALUATION, (world.results / EVALUATION).read_bytes()
    scored, kills = table.with_suffix(".scored.jsonl"), 0
    for last in [*[False] * draw.randint(1, 3), True]:
        before = max(0, scored.read_text().count("\n") - 1) if scored.exists() else 0  # its first line is the identity
        status, output = tiny.run("evaluate", None if last else draw.uniform(0, world.seconds["evaluate"]))
        assert status == 0 or (status == -9 and not last), output
        assert f"batch {before} of" not in output, output
        assert not before or status or f"{before} of {SCORED} batches were scored before" in output, output
        assert not table.exists() or table.read_bytes() == whole
        kills += status == -9
    assert table.read_bytes() == whole and not scored.exists()
    return SAME if kills else NO_FAULT


@fault("a table killed while it is collected")
def killed_collecting(world: Tiny, folder: Path, draw: random.Random) -> str:
    tiny = world.copy(folder, "runs")
    table = tiny.results / "tables/training_curves.csv"
    whole = (world.results / "tables/training_curves.csv").read_bytes()
    kills = 0
    for _ in range(draw.randint(1, 3)):
        status, output = tiny.run("collect", draw.uniform(0, world.seconds["collect"]))
        assert status in (0, -9), output
        kills += status == -9
        assert not table.exists() or table.read_bytes() == whole
    assert tiny.run("collect")[0] == 0 and table.read_bytes() == whole
    return SAME if kills else NO_FAULT


@fault("a decoding process killed")
def killed_worker(world: Tiny, folder: Path, draw: random.Random) -> str:
    tiny = world.copy(folder)
    stop, killed = threading.Event(), threading.Event()
    killer = threading.Thread(target=_kill_a_worker, args=(draw.uniform(0, 0.08), stop, killed))
    killer.start()
    status, output = tiny.run("shard clips 0")
    stop.set()
    killer.join()
    assert status in (0, 2), output
    if status == 2:  # killed before it decoded anything
        assert "decoding process" in error_line(output)
        assert tiny.run("shard clips 0")[0] == 0
    tiny.check_nothing_half_written()
    if not killed.is_set():
        return NO_FAULT
    return "the file is decoded again; same bytes" if status == 0 else f"one error message; {SAME}"


def _kill_a_worker(seconds: float, stop: threading.Event, killed: threading.Event) -> None:
    """Send SIGKILL to the first decoding process, some seconds after it has loaded its decoders."""
    while not stop.is_set():
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                decodes = "spawn_main" in " ".join(process.cmdline())
                if decodes and "libavcodec" in Path(f"/proc/{process.pid}/maps").read_text():
                    time.sleep(seconds)
                    if not stop.is_set():
                        process.kill()
                        killed.set()
                    return
        time.sleep(0.005)


# --- damaged files ---


def _cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


@fault("a shard truncated before it is indexed")
def truncated_tar(world: Tiny, folder: Path, draw: random.Random) -> str:
    tiny = world.copy(folder, "tokenizer", "shards")
    tar = tiny.results / f"shards/photos/{draw.randrange(3):05d}.tar"
    _cut(tar, draw)
    if draw.random() < 0.5:  # as one from elsewhere may come without
        tar.with_name(f"{tar.name}.sha256").unlink()
    status, output = tiny.run("index photos")
    assert status == 2 and str(tar) in error_line(output), output
    assert not (tiny.results / "index/photos.npz").exists()
    _put_back(world, tiny, tar)
    assert tiny.run("index photos")[0] == 0
    tiny.check_nothing_half_written()
    return REFUSED


def _put_back(world: Tiny, tiny: Tiny, path: Path) -> None:
    for whole in (world.results / path.relative_to(tiny.results)).parent.glob(f"{path.name}*"):
        shutil.copy2(whole, path.with_name(whole.name))


@fault("a picture in a shard damaged")
def corrupt_picture(world: Tiny, folder: Path, draw: random.Random) -> str:
    """Its first bytes are zeroed. With a checksum the shard is refused, without one the sample is listed as corrupt."""
    tiny = world.copy(folder, "tokenizer", "shards")
    tar = tiny.results / f"shards/photos/{draw.randrange(3):05d}.tar"
    content = bytearray(tar.read_bytes())
    pictures = [i for i in range(0, len(content), 512) if content[i : i + 3] == b"\xff\xd8\xff"]
    place = draw.choice(pictures)
    content[place : place + 64] = bytes(64)
    tar.write_bytes(content)
    status, output = tiny.run("index photos")
    assert status == 2 and f"{tar}: found SHA-256" in error_line(output), output
    tar.with_name(f"{tar.name}.sha256").unlink()
    status, output = tiny.run("index photos")
    assert status == 0, output
    lines = (tiny.results / "index/photos.ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["corrupt"]
    _put_back(world, tiny, tar)
    assert tiny.run("index photos")[0] == 0
    tiny.check_nothing_half_written()
    return "with a checksum: " + REFUSED + "; without one: that sample is listed as corrupt, all others are kept"


@fault("a shard deleted after it was indexed")
def deleted_shard(world: Tiny, folder: Path, draw: random.Random) -> str:
    tiny = world.copy(folder, *BEFORE_TRAINING)
    number = draw.randrange(3)
    tar = tiny.results / f"shards/photos/{number:05d}.tar"
    tar.unlink()
    status, output = tiny.run("train")
    assert status == 2 and f"{tar}: No such file" in error_line(output), output
    assert tiny.run(f"shard photos {number}")[0] == 0
    assert tiny.run("train")[0] == 0
    tiny.check_same()
    return REFUSED


@fault("an index older than its shards")
def stale_index(world: Tiny, folder: Path, draw: random.Random) -> str:
    """A shard is replaced by another shard."""
    tiny = world.copy(folder, *BEFORE_TRAINING)
    one, other = draw.sample(range(3), 2)
    tar = tiny.results / f"shards/photos/{one:05d}.tar"
    shutil.copy(world.results / f"shards/photos/{other:05d}.tar", tar)
    status, output = tiny.run("train")
    assert status == 2 and str(tar) in error_line(output) and "index" in error_line(output), output
    _put_back(world, tiny, tar)
    assert tiny.run("index photos")[0] == 0 and tiny.run("train")[0] == 0
    tiny.check_same()
    return REFUSED


def _flip_in_a_tensor(path: Path, draw: random.Random) -> None:
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    names = content[member.header_offset + 26 : member.header_offset + 30]  # lengths of the name and of what follows it
    start = member.header_offset + 30 + int.from_bytes(names[:2], "little") + int.from_bytes(names[2:], "little")
    content[start + draw.randrange(member.file_size)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


@fault("a checkpoint truncated, or a bit of it flipped")
def damaged_checkpoint(world: Tiny, folder: Path, draw: random.Random) -> str:
    tiny = world.copy(folder, *BEFORE_TRAINING)
    run = tiny.results / "runs/stage1"
    state = run / "state"
    while len(list(state.glob("step_*.pt"))) < 2:
        shutil.rmtree(run, ignore_errors=True)
        status, output = tiny.run("train", draw.uniform(0.5, 1) * world.seconds["train"])
        assert status in (0, -9), output
    newest = max(state.glob("step_*.pt"))
    kind = draw.choice(["cut", "index", "bit"])
    if kind == "cut":
        _cut(newest, draw)
    elif kind == "index":
        with newest.open("r+b") as file:
            file.seek(-draw.randrange(64, 600), os.SEEK_END)  # the zip's own
            file.write(b"\0" * 64)
    else:
        _flip_in_a_tensor(newest, draw)
    status, output = tiny.run("train")
    assert status == 0 and newest.name in output, output
    tiny.check_same()
    return "the previous checkpoint is used; " + SAME


# --- the machine ---


@fault("the disk full")
def full_disk(world: Tiny, folder: Path, draw: random.Random) -> str:
    """The disk is full between the first shard and the last checkpoint; then there is room again."""
    step = draw.choice(["shard photos 0", "index photos", "train", "ledger"])
    parts = {"shard photos 0": ("tokenizer",), "ledger": ("tokenizer", "shards", "index")}
    parts = parts.get(step, BEFORE_TRAINING)
    with small_disk(folder, 200_000) as mount:
        tiny = world.copy(folder / "study", *parts)
        if step == "index photos":
            shutil.rmtree(tiny.results / "index")
        log_elsewhere(tiny, log_of(step))
        used = shutil.disk_usage(folder).used >> 10
        most = {"shard photos 0": 340, "index photos": 20, "train": 3000, "ledger": 8}[step]
        mount(f"size={used + draw.randrange(most)}k")
        met, output = tiny.run(step)
        assert met in (0, 2), output
        if met:
            error_line(output)
        tiny.check_nothing_half_written()
        mount("size=200000k")
        for needed in (step, "index clips") if step == "index photos" else (step,):
            status, output = tiny.run(needed)
            assert status == 0, output
        if step == "train":
            tiny.check_same()
        tiny.check_nothing_half_written()
    return "one error message; once there is room, it " + SAME if met else NO_FAULT


@fault("the results folder read-only")
def read_only(world: Tiny, folder: Path, draw: random.Random) -> str:
    step = draw.choice(["shard photos 1", "index photos", "train", "ledger", "collect"])
    with small_disk(folder, 200_000) as mount:
        tiny = world.copy(folder / "study", *BEFORE_TRAINING)
        if step == "collect":
            shutil.copytree(world.results / "runs", tiny.results / "runs")
        if step.startswith(("shard", "index")):
            shutil.rmtree(
                tiny.results / step.split()[0].replace("shard", "shards") / ("photos" if "shard" in step else "")
            )
        log_elsewhere(tiny, log_of(step))
        mount("ro")
        status, output = tiny.run(step)
        assert status == 2, (step, output)
        error_line(output)
        mount("rw")
        status, again = tiny.run(step)
        assert status == 0, again
        tiny.check_nothing_half_written()
    return "one error message; once writable, the same bytes"


@fault("a loss that is not finite")
def not_a_number(world: Tiny, folder: Path, draw: random.Random) -> str:
    tiny = world.copy(folder, "tokenizer", "shards", "index")
    rate = 10.0 ** draw.uniform(28, 36)
    stage = {**yaml.safe_load((folder / "study.yaml").read_text())["stages"]["stage1"]}
    stage |= {"optim.lr": dict.fromkeys(("connector", "dino", "llm"), rate), "optim.warmup": 0.0}
    tiny.write_study(stages={"stage1": stage})
    status, output = tiny.run("train")
    assert status == 2 and "step" in error_line(output), output
    state = tiny.results / "runs/stage1/state"
    lines = [json.loads(line) for path in state.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert all(math.isfinite(v) for line in lines for v in line.values() if isinstance(v, float))
    assert not (tiny.results / "runs/stage1/run_summary.json").exists()
    return "one error message with the step and its samples; neither logged nor saved"
