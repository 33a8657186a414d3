"""A synthetic study in the artefact formats.

The grid follows L(N, D) = E + A N^-a + B D^-b with known constants; the ablations have known offsets.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.__main__ import main
from fvlm.analysis.catalog import TABLES
from tests.config_cases import CONFIG, load

COMPARISONS = load(CONFIG).comparisons

LAW = {"E": 0.9, "A": 400.0, "a": 0.35, "B": 30.0, "b": 0.38}
PENALTY = {"F": 1.02, "B": 1.0}  # the foveated loss is 2 % worse at equal N and D
SIZES = {"135M": (1.57e8, 1.70e8), "360M": (3.8e8, 4.1e8), "1.7B": (1.75e9, 1.85e9)}  # N foveated, baseline
BUDGETS = {"C1": 1.6e16, "C2": 5.6e16, "C3": 1.6e17, "C4": 3.1e17}
OFFSETS = {
    "baseline": 0.0, "F1": 0.64, "F2": 0.58, "LR2": -0.028, "LR3": -0.009, "LR4": -0.006, "A1": -0.011, "A6": 0.008,
    "A7": 0.013, "A8a": 1.5, "A8b": 1.52, "B1": -0.03, "B2": 0.2, "D1": -0.05, "A9": -0.004, "B0": 0.25, "B3": 0.02,
    "B4": -0.012, "Q1": 0.001,
}  # fmt: skip
TOKENS = {"B0": 0, "B1": 16, "B2": 49, "B3": 1, "B4": 4}
FLOPS = {"B0": 1e16, "B1": 6e16, "B2": 9e16, "B3": 3.4e16, "B4": 4e16, "A6": 3.5e16, "A9": 6.4e16}
KINDS = {"B0": "blind", "B1": "multi_token", "B2": "pixel_shuffle", "B3": "multi_token", "B4": "multi_token"}
QUESTION_FIRST = {"coarse_only": -0.005, "coarse_fine": -0.03, "autoregressive": -0.028}  # nats, of a run asked first
STATIC_FRAMES = {"A8a": 1, "A8b": 16, "B2": 1}
CONNECTOR = {"LR2": 1e-3, "LR3": 3e-5, "LR4": 1e-5}
FROZEN = {"F1": ["llm", "dino"], "F2": ["llm"]}
IMAGES, MORE_IMAGES = {"image": 0.86, "text": 0.14}, {"video": 0.55, "image": 0.3, "text": 0.15}
SHARES = {"A8a": IMAGES, "A8b": IMAGES, "B2": IMAGES, "D1": MORE_IMAGES}
ANSWERED = ("dpo", "baseline", "A6", "B1", "B0")  # runs with a benchmark
SOURCES = {"webvid": "video", "vript_long": "video", "cauldron": "image", "smoltalk": "text"}


def law(n, d, letter="B"):
    return PENALTY[letter] * (LAW["E"] + LAW["A"] * n ** -LAW["a"] + LAW["B"] * d ** -LAW["b"])


def summary(
    run, family, loss, *, samples=300_000.0, flops=5e16, architecture="foveated", deep=True, fine=True, n=1.57e8,
    tokens=1, seed=42, size="", budget="", letter="", share=None, question="", scored="all", question_first=0.0,
):  # fmt: skip
    base = run.split("-")[0]
    best = {
        "step": 9000, "samples": samples * 0.9, "flops": flops * 0.9, "val_loss": loss, "train_loss": loss - 0.1
    }  # fmt: skip
    model = {
        "architecture": architecture, "deep_query": deep, "fine_pass": fine, "fine_passes": 2 if base == "A9" else 1
    }  # fmt: skip
    return {
        "run": run, "family": family, "digest": "0" * 16, "seed": seed, "parent": None, **model,
        "question_first": question_first, "visual_tokens": tokens, "encoder": "dinov2-small",
        "language": f"SmolLM2-{size or '135M'}", "size": size, "budget": budget, "letter": letter, "frozen": [],
        "params_total": n, "samples": samples, "steps": 9370, "flops": flops, "flops_budget": BUDGETS.get(budget),
        "text_tokens": samples * 90, "frames": samples * 8,
        "final": best | {"step": 9370, "val_loss": loss + 0.004}, "best": best,
        "wall_s": 6000.0, "versions": {"torch": "2.13"},
        "config": {
            "question": question,
            "model": model | {
                "tokens_per_frame": tokens if architecture in ("multi_token", "pixel_shuffle") else 16,
                "encoder": {"image": 224, "patch": 14},
            },
            "data": {
                "sources": list(SOURCES), "share": share or {"video": 0.6, "image": 0.26, "text": 0.14},
                "static_frames": STATIC_FRAMES.get(base, 8), "question_first": question_first, "loss": scored,
            },
            "optim": {
                "schedule": "cosine", "lr": {"connector": CONNECTOR.get(base, 1e-4), "dino": 1e-5, "llm": 1e-5},
                "freeze": FROZEN.get(base, []),
            },
        },
    }  # fmt: skip


def grid_summary(size, budget, letter, loss, **more):
    kind = {"architecture": "foveated", "tokens": 1} if letter == "F" else {"architecture": "multi_token", "tokens": 16}
    name = f"{size}-{budget}-{letter}"
    return summary(name, "grid", loss, size=size, budget=budget, letter=letter, **kind, **more)


def ablation(name, loss, seed=42, share=None, **more):
    """The summary of an ablation, with what its name stands for; further seeds have a suffix."""
    return summary(
        name if seed == 42 else f"{name}-s{seed}", "ablation", loss, seed=seed,
        architecture=KINDS.get(name, "foveated"), deep=name not in ("A1", "A7"), fine=name not in ("A6", "A7"),
        tokens=TOKENS.get(name, 1), share=share, **more,
    )  # fmt: skip


def study_summaries(seeds=(42,), noise=0.0005, seeded=tuple(OFFSETS)):
    """Stages, DPO, ablations (those in `seeded` with all seeds, the others with the first) and grid."""
    rng = np.random.default_rng(1)
    found = [
        summary(f"stage{i}", "stage", loss, samples=1e6 / i, flops=2e17 / i)
        for i, loss in ((1, 1.35), (2, 0.9), (3, 0.8))
    ]
    found.append(summary("dpo", "stage", 0.55, samples=8e4, flops=1e16, scored="preference"))
    for name, offset in OFFSETS.items():
        more = {"flops": FLOPS.get(name, 5e16), "question_first": 0.5 * (name == "Q1"), "share": SHARES.get(name)}
        for seed in seeds if name in seeded else seeds[:1]:
            loss = 1.36 + offset + 0.003 * rng.normal() * (len(seeds) > 1)
            found.append(ablation(name, loss, seed, **more))
    for size, counts in SIZES.items():
        for budget, flops in BUDGETS.items():
            for letter, n in zip("FB", counts, strict=True):
                d = flops / (n * (1500 if letter == "F" else 2200))
                loss = law(n, d, letter) * float(np.exp(noise * rng.normal()))
                found.append(grid_summary(size, budget, letter, loss - 0.004, samples=d, flops=flops, n=n))
    return found


def curve(found, rng):
    """validation.csv and metrics.csv of one run."""
    share = np.linspace(0, 1, 21)
    final, fine = found["final"]["val_loss"], found["architecture"] == "foveated" and found["fine_pass"]
    loss = final + 1.2 * np.exp(-6 * share) - 1.2 * np.exp(-6) + 0.004 * rng.normal(size=21) * (share < 1)
    loss[0] = 7.0
    x = np.linspace(0.001, 1, 900)
    train = final - 0.1 + 1.2 * np.exp(-6 * x) + 0.1 * rng.normal(size=900)
    table, metrics = (
        pd.DataFrame({
            "step": (at * found["steps"]).astype(int), "samples": at * found["samples"], "flops": at * found["flops"],
            name: losses, "loss_fine": losses if fine else np.nan, "loss_coarse": losses * ratio if fine else np.nan,
        })
        for name, at, losses, ratio in (("val_loss", share, loss, 1 + 0.01 * share), ("train_loss", x, train, 1.01))
    )  # fmt: skip
    table["attention_entropy"] = 4.6 - 1.2 * share if fine else np.nan
    metrics["fine_coarse_ratio"] = 0.99 if fine else np.nan
    table = table.assign(**{f"loss:{source}": loss for source in SOURCES})
    if found["config"]["data"]["loss"] == "preference":
        _prefer(table, share), _prefer(metrics, x)
    return table, metrics


def _prefer(table, share):
    """Rewards of a run that learns to prefer, in place of the passes' losses."""
    table[["loss_fine", "loss_coarse", *({"attention_entropy"} & set(table))]] = np.nan
    column = "val_loss" if "val_loss" in table else "train_loss"
    table["reward_chosen"], table["reward_rejected"] = 0.2 * share, -0.5 * share
    table["reward_margin"] = 0.7 * share
    table["reward_accuracy"] = 0.5 + 0.25 * share
    table[column] = np.log1p(np.exp(-table["reward_margin"]))


def evaluated(found, difficulty):
    """evaluation/{run}.csv; the `difficulty` of a sample is common to all runs."""
    if found["architecture"] != "foveated":
        modes = {("direct", "own"): 1.0}
    else:
        modes = {("coarse_only", "own"): 1.012, ("coarse_fine", "own"): 1.0, ("autoregressive", "own"): 1.004}
    trained = "direct" if len(modes) == 1 else "coarse_fine" if found["fine_pass"] else "coarse_only"
    blind = found["architecture"] == "blind"  # whatever it is shown
    modes |= {(trained, "other"): 1.0 if blind else 1.25, ("blind", "none"): 1.0 if blind else 1.18}
    looks = [(mode, frames, "video_first", factor, 0.0) for (mode, frames), factor in modes.items()]
    if found["question_first"]:
        looks += [(mode, "own", "question_first", modes[mode, "own"], gain) for mode, gain in QUESTION_FIRST.items()]
    pairs = found["config"]["data"]["loss"] == "preference"
    chosen = difficulty[(difficulty["kind"] == "preference") == pairs]
    if "video" not in found["config"]["data"]["share"]:  # held out are samples of the kinds that are trained on
        chosen = chosen[chosen["kind"] != "video"]
    rng = np.random.default_rng(zlib.crc32(found["run"].encode()))
    parts = []
    for mode, frames, order, factor, gain in looks:
        own = chosen[chosen["kind"] != "text"] if order == "question_first" else chosen
        seen = own["kind"] != "text"
        level = (found["best"]["val_loss"] + own["shift"]) * np.where(seen, factor, 1.0) + gain
        per_token = level + 0.02 * rng.normal(size=len(own))
        place = {"run": found["run"], "mode": mode, "frames": frames, "order": order}
        entropy = 3.4 if mode != "blind" and trained != "direct" else np.nan
        parts.append(own.assign(**place, loss_sum=per_token * own["tokens"], entropy=entropy))
    columns = ["run", "mode", "frames", "order", "source", "kind", "key", "group", "loss_sum", "tokens", "entropy"]
    return pd.concat(parts)[columns]


def attention_file(path, videos=3, frames=8):
    rng = np.random.default_rng(0)
    arrays = {
        "keys": np.array([f"webvid-{k:07d}" for k in range(videos)]),
        "sources": np.array(["webvid"] * videos),
        "captions": np.array(["A red square moves over a grey field while a blue circle stays where it is."] * videos),
    }
    rows, columns = np.mgrid[:16, :16]
    for k in range(videos):
        picture = rng.integers(0, 255, size=(frames, 14, 14, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
        fine = np.array([np.exp(-((rows - 2 * t) ** 2 + (columns - 8) ** 2) / 20) for t in range(frames)]) + 0.05
        coarse = np.broadcast_to(np.exp(-((rows - 8) ** 2 + (columns - 8) ** 2) / 60) + 0.05, fine.shape)
        arrays |= {
            f"frames_{k}": picture,
            f"entropy_fine_{k}": np.full(frames, 3.4, np.float32),
            f"fine_{k}": (fine / fine.sum((1, 2), keepdims=True)).astype(np.float32),
            f"coarse_{k}": (coarse / coarse.sum((1, 2), keepdims=True)).astype(np.float32),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def answered(run: str, rng) -> pd.DataFrame:
    """The scores of a run on a benchmark: with its own frames in two ways, and the controls."""
    rows = [
        {"run": run, "benchmark": "mvbench", "title": "MVBench", "main": frames == "own" and way == "letter",
         "mode": "autoregressive", "frames": frames, "way": way, "metric": "accuracy", "group": "all",
         "category": "all", "score": score, "low": score - 2, "high": score + 2, "chance": 27.3, "questions": 3800,
         "videos": 3600, "total": 4000, "missing": 200, "unusable": 0, "source": ""}
        for way in ("letter", "generated")
        for frames in (("own", "other", "none", "shuffled", "rotated") if way == "letter" else ("own",))
        for score in [round(27 + 5 * rng.random() + 6 * (frames == "own"), 2)]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def write_study(root: Path, found: list[dict], per_source: int = 40) -> None:
    """All artefacts of the given runs, below root."""
    rng = np.random.default_rng(2)
    rows = [
        (source, kind, f"{source}-{i:07d}", i // 2, 0.5 * rng.normal(), int(rng.integers(20, 120)))
        for source, kind in {**SOURCES, "rlaif_v": "preference"}.items()
        for i in range(per_source)
    ]
    difficulty = pd.DataFrame(rows, columns=["source", "kind", "key", "group", "shift", "tokens"])
    (root / "evaluation").mkdir(parents=True)
    for one in found:
        folder = root / "runs" / one["run"]
        folder.mkdir(parents=True)
        (folder / "run_summary.json").write_text(json.dumps(one))
        for table, name in zip(curve(one, rng), ("validation", "metrics"), strict=True):
            table.to_csv(folder / f"{name}.csv", index=False)
        evaluated(one, difficulty).to_csv(root / "evaluation" / f"{one['run']}.csv", index=False)
        if one["run"] in ANSWERED:
            (root / "benchmarks" / one["run"]).mkdir(parents=True)
            answered(one["run"], rng).to_csv(root / "benchmarks" / one["run"] / "mvbench.csv", index=False)
    attention_file(root / "attention" / "stage3.npz")


def collect(root: Path, found: list[dict]) -> None:
    """The collecting commands, as the rules call them."""
    tables, names = str(root / "tables"), [one["run"] for one in found]
    runs = [str(root / "runs" / name) for name in names]
    evaluated = [str(root / "evaluation" / f"{name}.csv") for name in names]
    draws = ["--replicates", "200", "--bootstrap", f"{tables}/bootstrap.csv"]
    for what, table, files, options in (
        ("runs", "runs", [f"{run}/run_summary.json" for run in runs], []),
        ("curves", "validation_curves", [f"{run}/validation.csv" for run in runs], []),
        ("curves", "training_curves", [f"{run}/metrics.csv" for run in runs], ["--points", "400"]),
        ("evaluation", "evaluation", evaluated, draws),
        ("benchmarks", "benchmarks", map(str, sorted((root / "benchmarks").glob("*/*.csv"))), []),
    ):
        assert main(["collect", what, *files, *options, "--out", f"{tables}/{table}.csv"]) == 0


def derive(root: Path) -> None:
    tables = root / "tables"
    for name in TABLES:
        assert main(["table", name, "--tables", str(tables), "--out", str(tables / f"{name}.csv")]) == 0
