"""Checks of the models: building, a step, the largest batch, an evaluation, a figure, the largest checkpoint."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from fvlm.analysis.columns import COLUMNS
from fvlm.config.schema import Run, Study
from fvlm.costs.flops import parameters
from fvlm.costs.memory import GB, predicted_bytes, unsplit
from fvlm.device import autocast, device_of, gpu_of, memory_gb
from fvlm.errors import UserError
from fvlm.evaluate.losses import score
from fvlm.model.build import build_model
from fvlm.model.elsewhere import check_weights, read_weights, renamed
from fvlm.records import weights_in, write_csv
from fvlm.study.check import NotChecked
from fvlm.study.check_machine import checkpoint_bytes
from fvlm.study.trial import Trial, batch_of, expected, flops_of, step_of, worst
from fvlm.train.state import load_checkpoint, save_checkpoint

CPU_SECONDS, CPU_FLOPS = 60, 2e10  # time limit of a batch on a CPU, and the assumed FLOP/s


def built_on_paper(study: Study) -> str:
    """Build every distinct model without memory, and compare its parameters with those that the plan counts."""
    distinct = {json.dumps(r.model.model_dump(mode="json"), sort_keys=True): r for r in study.runs.values()}
    for run in distinct.values():
        with torch.device("meta"):
            model = build_model(run.model, run.train.seed, pretrained=False)
        built, counted = sum(p.numel() for p in model.parameters()), parameters(run.model)["total"]
        if built != counted:
            raise UserError(f"run {run.name!r}: its model has {built:,} parameters, but the plan counts {counted:,}")
    return f"{len(study.runs)} runs, {len(distinct)} models, with the parameters that the plan counts"


def built_really(run: Run) -> str:
    """Build the run's model, with pretrained weights if it has some."""
    model = build_model(run.model, run.train.seed)
    named = [part.weights for part in (run.model.encoder, run.model.language) if part.weights]
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{run.name}: {count:,} parameters, " + (f"weights {', '.join(named)}" if named else "random weights")


def smallest(study: Study) -> Run:
    return min(study.runs.values(), key=lambda run: parameters(run.model)["total"])


def parents(study: Study) -> str:
    """Read the weights from elsewhere that runs start from, and compare them with the runs' models."""
    runs = [run for run in study.runs.values() if run.parent_path]
    for run in runs:
        path = weights_in(run.parent_path)
        check_weights(renamed(read_weights(path)[0]), run.model, f"run {run.name!r}: parent {path}")
    return f"{', '.join(run.name for run in runs)}: the weights fit"


def checkpoint(run: Run, folder: Path) -> str:
    """Save and load tensors as large as the run's checkpoint, or less if memory or disk is short."""
    full = checkpoint_bytes(run)
    size = min(full, psutil.virtual_memory().available // 4, shutil.disk_usage(folder).free // 4)
    content = {"identity": "preflight", "step": 1}
    content["model"] = {str(i): torch.randn(min(2**26, size // 4 - at)) for i, at in
                        enumerate(range(0, size // 4, 2**26))}  # fmt: skip
    started = time.monotonic()
    size_on_disk = save_checkpoint(folder, 1, content, keep=1)
    saved = time.monotonic()
    loaded = load_checkpoint(folder, "preflight")
    ended = time.monotonic()
    equal = loaded is not None and all(torch.equal(a, loaded["model"][key]) for key, a in content["model"].items())
    if not equal:
        raise UserError(f"a checkpoint in {folder.parent} reads back differently; check the disk for errors")
    part = "the size of" if size == full else f"a part of the {full / GB:.1f} GB of"
    times = f"written in {saved - started:.1f} s and read in {ended - saved:.1f} s"
    return f"{size_on_disk / GB:.2f} GB {times}, {part} {run.name}'s"


def worst_batch(study: Study) -> str:
    """Train on the largest micro-batch of the run that needs the most memory: forward, backward and update."""
    run, remark = run_to_try(study)
    device = device_of(run)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch.set_num_threads(run.operation.threads)
    trial = Trial(run, device)
    longest = worst(run, study)
    if device.type == "cpu" and _cpu_seconds(run, study) > CPU_SECONDS:
        longest = longest[:1]
    for _ in range(2):  # the moments exist from the second one on
        seconds, loss = trial.step([batch_of(longest, run)])
    if not loss == loss or loss in (float("inf"), float("-inf")):
        raise UserError(f"run {run.name!r}: the loss of a made-up batch is {loss}")
    used = f"{memory_gb(device):.1f} GB on {device.type}"
    if device.type == "cuda":
        used += f", {predicted_bytes(run) / GB:.1f} predicted"
    frames, tokens = sum(sample.frames for sample in longest), sum(sample.tokens for sample in longest)
    return f"{run.name}{remark}: {frames} frames and {tokens:,} text tokens in {seconds:.1f} s, {used}"


def _cpu_seconds(run: Run, study: Study) -> float:
    """Return the expected time of two of the largest micro-batches on a CPU."""
    return 2 * flops_of(worst(run, study), run) / CPU_FLOPS


def run_to_try(study: Study) -> tuple[Run, str]:
    """Return the run that needs the most memory, and a remark if a larger one is left out.

    Left out are runs that one process cannot hold, and on a CPU those whose largest batch takes over a minute.
    """
    runs = sorted(map(unsplit, study.runs.values()), key=predicted_bytes)
    device = device_of(runs[-1])
    if device.type == "cuda":
        return on_one_gpu(runs, study, gpu_of(device)[1])
    quick = [run for run in runs if _cpu_seconds(run, study) <= CPU_SECONDS]
    quick = [run for run in quick if predicted_bytes(run) < psutil.virtual_memory().available // 2]
    if quick and quick[-1] is runs[-1]:
        return runs[-1], ""
    if quick:
        return quick[-1], f" (the largest that a CPU trains in a minute; {runs[-1].name} was not tried)"
    return runs[0], f" (the smallest, on a CPU; {runs[-1].name} was not tried)"


def on_one_gpu(runs: list[Run], study: Study, has: float) -> tuple[Run, str]:
    """Return the last run that one GPU of `has` GB can hold, and a remark if that is not the last of all.

    Only runs that split their weights may be too large: any other must fit, and its failure is reported.
    """
    split = {name for name, run in study.runs.items() if run.operation.splits_weights}
    held = [run for run in runs if run.name not in split or predicted_bytes(run) <= has * GB]
    if not held:
        raise NotChecked("every run splits its weights over several GPUs, and none fits a single one")
    if held[-1] is runs[-1]:
        return runs[-1], ""
    return held[-1], f" (the largest on one GPU; {runs[-1].name}, whose weights are split, was not tried)"


def evaluation(study: Study, folder: Path) -> str:
    """Score random samples in every mode, as `fvlm evaluate` does, with untrained weights."""
    run, _ = run_to_try(study)
    device = device_of(run)
    model = build_model(run.model, run.train.seed, pretrained=False).to(device).eval()
    batch = batch_of(expected(run, study, 4), run)
    with torch.no_grad(), autocast(run, device):
        rows = score(run, model, batch.to(device), study, list(range(len(batch))), end=0)  # of random tokens, any id
    write_csv(folder / "evaluation.csv", rows)
    modes = sorted({row["mode"] for row in rows})
    return f"{run.name}: {len(batch)} samples, {len(rows)} rows, {', '.join(modes)}"


def figure(study: Study, folder: Path) -> str:
    """Draw the training curves of a run of three points with `fvlm figure`."""
    if find_spec("matplotlib") is None or find_spec("pandas") is None:
        raise NotChecked("this environment has no matplotlib; Snakemake draws figures in envs/analysis.yaml")
    run, _ = run_to_try(study)
    _write_tables(run, folder / "tables")
    command = [sys.executable, "-m", "fvlm", "figure", "training_curves", "--tables", str(folder / "tables")]
    done = subprocess.run([*command, "--out-dir", str(folder)], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise UserError(f"a figure cannot be drawn: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return f"training_curves.png of {(folder / 'training_curves.png').stat().st_size:,} bytes"


def _write_tables(run: Run, folder: Path) -> None:
    """Write one run with three points, in the columns that the figure reads."""
    points = [{"run": run.name, "step": i, "samples": i * run.optim.batch_size, "flops": 1e9 * i,
               "val_loss": 3 - 0.1 * i, "train_loss": 3 - 0.1 * i} for i in (1, 2, 3)]  # fmt: skip
    summary = {"run": run.name, "family": run.family, "seed": run.train.seed, "architecture": run.model.architecture,
               "deep_query": run.model.deep_query, "fine_pass": run.model.fine_pass,
               "fine_passes": run.model.fine_passes, "visual_tokens": run.model.visual_tokens,
               "question_first": run.data.question_first, "params_total": parameters(run.model)["total"],
               "samples": points[-1]["samples"], "flops": points[-1]["flops"], "final.val_loss": 2.7,
               "best.val_loss": 2.7, "best.samples": points[-1]["samples"]}  # fmt: skip
    rows = {"runs": [summary], "validation_curves": points, "training_curves": points}
    for name, table in rows.items():
        write_csv(folder / f"{name}.csv", table, COLUMNS[name])


def step(study: Study) -> str:
    """Train one step on samples of the expected lengths, in micro-batches."""
    run, _ = run_to_try(study)
    if run.operation.gpus and device_of(run).type == "cpu":
        raise NotChecked("no GPU here, and a step would take minutes on a CPU; the worst batch is checked instead")
    trial = Trial(run, device_of(run))
    samples = -(-run.optim.batch_size // run.operation.total_ranks)
    batches = step_of(expected(run, study, samples), run)
    seconds, loss = trial.step(batches)
    return f"{run.name}: {samples} samples in {len(batches)} micro-batches, {seconds:.1f} s, loss {loss:.2f}"
