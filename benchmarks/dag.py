"""Overhead of Snakemake: planning a study with many shards and runs, and each job beyond its own work.

The study has the shape of the full-size one (13 ablations and 24 grid cells with three seeds each, and all that depends
on them), many shards, and no data. It is planned (`snakemake -n`). Then a replacement of `python` that writes empty
files makes the shards, so that the time is that of Snakemake alone. It prints seconds, CPU seconds and memory.

    python benchmarks/dag.py --shards 5000 --jobs 1000 --scheduler greedy ilp
    python benchmarks/dag.py --shards 5000 --profile
"""

import argparse
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "rules", "config", "workflow", "envs")
ABLATIONS = ["baseline", "F1", "LR3", "A1", "A6", "A7", "A8a", "A8b", "A9", "B0", "B1", "B3", "D1"]
SEEDS = [42, 43, 44]
# Writes the outputs of `fvlm shard` without its work: `--shard N ... --out FOLDER`.
STAND_IN = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in --shard) shift; number=$(printf %05d "$1") ;; --out) shift; out="$1" ;; esac
  shift
done
echo x > "$out/$number.tar"; : > "$out/$number.ledger.jsonl"; : > "$out/$number.tar.sha256"
"""


def checkout(folder: Path, rules: Path) -> None:
    """Copy the workflow of the checkout `rules`, and the replacement of python."""
    for part in PARTS:
        copy = shutil.copytree if (rules / part).is_dir() else shutil.copy
        copy(rules / part, folder / part)
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text(STAND_IN)
    (folder / "bin/python").chmod(0o755)


def entry_of(folder: Path, name: str, shards: int, samples: int, reader: str) -> dict:
    """Return a source of raw files: one table, many tables behind a wildcard, or empty tars behind a wildcard."""
    entry = {"reader": "folder", "path": f"raw/{name}", "samples": samples}
    if reader == "table":
        return entry
    here = folder / "raw" / name
    here.mkdir(parents=True)
    if reader == "tables":
        for i in range(200):
            (here / f"{i:05d}.parquet").touch()
        return {**entry, "table": "*.parquet"}
    for i in range(shards):
        (here / f"{i:05d}.tar").touch()
    return {**entry, "reader": "video2dataset", "path": f"raw/{name}/*.tar"}


def study(folder: Path, shards: int, reader: str) -> dict[str, int]:
    """Write config/dag.yaml, the paper's study on sources of raw files, and return the shards of each source."""
    known = yaml.safe_load((folder / "config/sources.yaml").read_text())
    trained = [name for name, entry in known.items() if entry["reader"] == "shards" and name != "rlaif_v"]
    total = sum(known[name]["samples"] for name in trained)
    each = {name: max(1, round(shards * known[name]["samples"] / total)) for name in trained}
    each[max(each, key=each.get)] += shards - sum(each.values())
    per_shard = -(-total // shards)
    sources = {name: entry_of(folder, name, count, count * per_shard, reader) for name, count in each.items()}
    content = {
        "study": "dag", "results": "results/dag", "based_on": "paper.yaml", "sources": sources, "prepare": ["val_10k"],
        "only": {"stages": ["stage1", "stage2", "stage3"], "ablations": ABLATIONS},
        "seeds": {"ablations": SEEDS, "grid": SEEDS}, "shards": {"samples": per_shard},
    }  # fmt: skip
    (folder / "config/dag.yaml").write_text(yaml.safe_dump(content))
    return each


def snakemake(folder: Path, rules: Path, *arguments: str, stand_in: bool = False) -> tuple[float, float, float, str]:
    """Return wall and CPU seconds of all processes, peak memory of Snakemake in GB, and its output."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}" if stand_in else os.environ["PATH"]
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(rules / "src")}
    command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", "config/dag.yaml"]
    command += ["--workflow-profile", "workflow/profiles/default"]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.monotonic() - start
        output.seek(0)
        text = output.read()
    if status:
        raise SystemExit(text[-3000:])
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / (1 << 20), text


def count_of(text: str) -> int:
    return int(text.split("\ntotal ")[1].split()[0])


def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout(folder, arguments.rules)
        each = study(folder, arguments.shards, arguments.reader)
        if arguments.profile:
            command = [sys.executable, "-m", "cProfile", "-o", "profile", "-m", "snakemake", "-n"]
            subprocess.run([*command, "--configfile", "config/dag.yaml"], cwd=folder, capture_output=True, check=True)
            pstats.Stats(str(folder / "profile")).sort_stats(arguments.sort).print_stats(arguments.lines)
            return
        wall, cpu, memory, text = snakemake(folder, arguments.rules, "-n")
        print(f"plan           {count_of(text):6} jobs  {wall:6.1f} s  {cpu:6.1f} s CPU  {memory:.2f} GB", flush=True)
        for scheduler in arguments.scheduler if arguments.jobs else ():
            shutil.rmtree(folder / "results", ignore_errors=True)
            targets = [
                f"results/dag/shards/{source}/{i:05d}.tar" for source, count in each.items() for i in range(count)
            ]
            options = ("--cores", str(arguments.cores), "--scheduler", scheduler, *targets[: arguments.jobs])
            empty = snakemake(folder, arguments.rules, "-n", "--quiet", "all", *options)[0]
            wall, cpu, memory, _ = snakemake(folder, arguments.rules, *options, stand_in=True)
            count = min(arguments.jobs, len(targets))
            print(
                f"run, {scheduler:8} {count:6} jobs  {wall:6.1f} s  {cpu:6.1f} s CPU  {memory:.2f} GB  "
                f"{(wall - empty) / count * 1e3:.1f} ms a job", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=1000, help="shards to make; 0: plan only")
    parser.add_argument("--scheduler", nargs="+", default=["greedy"], choices=("greedy", "ilp"))
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--reader", default="table", choices=("table", "tables", "tars"), help="kind of the sources")
    parser.add_argument("--rules", type=Path, default=ROOT, help="checkout to measure (default: this one)")
    parser.add_argument("--profile", action="store_true", help="print the profile of a plan")
    parser.add_argument("--sort", default="cumulative", help="order of the profile")
    parser.add_argument("--lines", type=int, default=80)
    main(parser.parse_args())
