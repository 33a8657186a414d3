"""Results from elsewhere, as files, and what the workflow's commands draw of them."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from fvlm.__main__ import main
from fvlm.analysis import finished, imported
from fvlm.analysis.catalog import FIGURES, TABLES
from tests.analysis_cases import BUDGETS, COMPARISONS, SIZES, law
from tests.figure_cases import write_tables
from tests.test_analysis_fits import REFERENCE

read_results, check_finished, place_of, short_names = (
    partial(function, known=COMPARISONS.ablations)
    for function in (imported.read_results, finished.check_finished, finished.place_of, finished.short_names)
)
reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data (FVLM_TEST_REFERENCE)")


def evaluations(run, final=1.3, n=12, samples=32 * 9200, **columns):
    """Evaluation points of one run as a foreign study writes them; the best is the last but one."""
    place = np.arange(1, n + 1)
    loss = final + 0.5 * np.exp(-place / 3.0)
    loss[-2], loss[-1] = final - 0.01, final
    frame = pd.DataFrame({"run_id": run, "step": place * 9200 // n, "samples_seen": place * samples / n})
    return frame.assign(val_loss=loss, train_loss=loss - 0.1, attention_entropy=3.4, lr=1e-4, **columns)


ABLATIONS = {"baseline": 1.36, "A1_deep_query_off": 1.35, "A6_coarse_only": 1.37, "A7_shallow": 1.375, "F1_freeze": 1.9}


def save(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames, ignore_index=True).to_csv(path, index=False)
    return path


def grid():
    """Points of a scaling grid that say N and FLOPs."""
    frames = []
    for size, pair in SIZES.items():
        for budget, flops in BUDGETS.items():
            for letter, n in zip("FB", pair, strict=True):
                d = flops / (n * 1500)
                frame = evaluations(f"{size}-{budget}-{letter}", law(n, d, letter), samples=d)
                frames.append(frame.assign(total_params=n, total_flops=flops * frame["samples_seen"] / d))
    return frames


def drawn(tables, folder, figures=tuple(name for name in FIGURES if not FIGURES[name].attention)):
    """Figure -> its numbers, or the words that say why it is not drawn; all by the commands of the workflow."""
    write_tables(folder / "tables", tables)
    where = ["--tables", str(folder / "tables")]
    for name in TABLES:
        assert main(["table", name, *where, "--out", str(folder / "tables" / f"{name}.csv")]) == 0
    missing, out = folder / "missing.csv", folder / "figures"
    assert (
        main(["figure", *figures, *where, "--out-dir", str(out), "--empty", "skip", "--not-drawn", str(missing)]) == 0
    )
    found = pd.read_csv(missing).set_index("figure")["reason"].to_dict()
    for name in found:
        assert not list(out.glob(f"{name}.*"))
    return found | {name: pd.read_csv(out / f"{name}.csv") for name in figures if name not in found}


def long_runs(schedule="constant", **changed):
    """A run of 135M that falls by a power law with a floor, a flat one of 360M, and two decaying grid runs."""
    rng, frames = np.random.default_rng(0), []
    for run, size, n, (a, b, floor), rate in (
        ("135M-scaling", "135M", 60, (30, 0.4, 1.0), schedule),
        ("360M-scaling", "360M", 60, (0.0, 1.0, 1.4), schedule),
        ("135M-C1-F_20260216_080531", "135M", 6, (30, 0.4, 1.1), "cosine"),
        ("135M-C2-F", "135M", 20, (30, 0.4, 1.05), "cosine"),
    ):
        samples = 8000.0 * np.arange(1, n + 1)
        loss = (floor + a * samples**-b) * np.exp(0.004 * rng.normal(size=n))
        lr = np.linspace(1e-3, 9e-4 if run == changed.get("unfinished") else 1e-4, n)
        frame = pd.DataFrame({"run_id": run, "step": samples / 32, "samples_seen": samples, "val_loss": loss, "lr": lr})
        frames.append(
            frame.assign(lr_schedule=rate, model_size=size, total_params={"135M": 157.6e6, "360M": 382.6e6}[size])
        )
    return frames


def result(model_type="foveated", step=100, loss=4.4, **more):
    one = {"config": "64-frame", "model_type": model_type, "step": step, "loss_mean": loss, "num_frames": 64}
    return one | {"visual_tokens": 64, "total_flops": 1e12 * 16 * step, "flops_per_sample": 1e12} | more


POINTS = evaluations("baseline")


RUNS = ("powerlaw", "--by", "run", "--x", "D", "--loss", "squares", "--keep", "lr_schedule=constant")
POOLED = ("powerlaw", "--by", "size", "--x", "D", "--loss", "squares", "--keep")
POOLED = (*POOLED, "run=135M-C1-F,135M-C2-F,135M-C3-F,135M-C4-F")
JOINT = ("fit", "--keep", "lr_schedule=constant", "--bootstrap", "1000")
CHECK = ("check-curves", "--columns", "val_loss=L,samples=D")


def pairs(**columns):
    """A table with one row per run: two architectures in two sizes, at 8 and at 64 frames."""
    rows = []
    for frames, above in (("8", 0.1), ("64", 0.2)):
        for arch, more in (("fov", above), ("bas", 0.0)):
            for config, n, loss in (("small", 159.0, 4.0), ("large", 386.0, 3.7)):
                rows.append({"run": f"{config}_{frames}f_{arch}", "config": config, "frames": frames, "arch": arch})
                rows[-1] |= {"params_M": n * (1 + 0.07 * (arch == "bas")), "val_loss": loss + more, "samples": 4480}
    return pd.DataFrame(rows).assign(**columns)


def spoken(words, folder, table="curves") -> dict:
    """The JSON that a command writes of a folder's table."""
    path, out = folder / "tables" / f"{table}.csv", folder / "out.json"
    assert main(["table", table, "--tables", str(path.parent), "--out", str(path)]) == 0
    assert main([words[0], str(path), *words[1:], "--out", str(out)]) == 0
    return json.loads(out.read_text())
