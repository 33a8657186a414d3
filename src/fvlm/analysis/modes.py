"""What the visual tokens are worth: losses by evaluation mode, and loss against tokens per frame."""

import numpy as np
import pandas as pd

from fvlm.analysis.bootstrap import NO_INTERVAL, OVER_VIDEOS, Replicates, interval
from fvlm.analysis.catalog import COLUMNS
from fvlm.analysis.gap import percent
from fvlm.analysis.study import Study, base_name, trained_mode


def modes(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> pd.DataFrame:
    """One row per run, mode and frames, over all sources; gap_percent is relative to the run's own frames
    in the mode it was trained in (for the default model: coarse_fine), with a paired bootstrap over
    evaluation videos. The scaling grid's many runs are left out."""
    replicates = Replicates(bootstrap)
    runs = runs[runs["family"] != "grid"]
    families = runs.set_index("run")
    rows = evaluation[
        (evaluation["source"] == "all") & (evaluation["kind"] == "all") & evaluation["run"].isin(families.index)
    ]
    table = []
    for run, own in rows.groupby("run", sort=False):
        trained = trained_mode(families.loc[run])
        reference = own[(own["mode"] == trained) & (own["frames"] == "own")]["loss"]
        for row in own.to_dict("records"):
            gap = {} if reference.empty else _gap(replicates, row, trained, float(reference.iloc[0]))
            table.append(row | gap | {"family": families.loc[run, "family"], "trained_mode": trained})
    return _in_run_order(pd.DataFrame(table, columns=COLUMNS["modes"]), runs)


def _gap(replicates: Replicates, row: dict, trained: str, reference: float) -> dict:
    if row["mode"] == trained and row["frames"] == "own":
        return {}
    one = replicates.loss(row["run"], row["mode"], row["frames"])
    two = replicates.loss(row["run"], trained)
    low, high = interval(None if one is None or two is None else percent(one, two))
    return {"gap_percent": percent(row["loss"], reference), "gap_low": low, "gap_high": high}


def _in_run_order(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    order = {run: position for position, run in enumerate(runs["run"])}
    return (
        table.assign(order=table["run"].map(order))
        .sort_values("order", kind="stable", ignore_index=True)
        .drop(columns="order")
    )


def token_efficiency(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> pd.DataFrame:
    """Ablations that differ in how a frame is read, by visual tokens per frame.

    The loss is the evaluation's where every one of them was evaluated, else the best validation's. Tokens 0
    is the baseline evaluated without its frames, unless a run was trained blind. FLOPs are training FLOPs per
    sample.
    """
    study = Study(runs, evaluation, bootstrap)
    own = study.of_family("ablation")
    chosen = own[
        own["base"].isin(("baseline", "A6")) | (own["architecture"] != "foveated") | (own["visual_tokens"] == 0)
    ]
    evaluated = all(np.isfinite(study.loss(run)) for run in chosen["run"])
    reference = next(iter(study.seeds("baseline").values()), None)
    rows = [_efficiency_row(study, run, evaluated, reference) for _, run in chosen.iterrows()]
    if reference and evaluated and not (chosen["visual_tokens"] == 0).any():
        rows += _blind_row(study, reference)
    table = pd.DataFrame(rows, columns=COLUMNS["token_efficiency"])
    return table.sort_values(["tokens_per_frame", "run"], ignore_index=True)


def _efficiency_row(study: Study, run: pd.Series, evaluated: bool, reference: str | None) -> dict:
    low, high = interval(study.draws(run["run"])) if evaluated else (np.nan, np.nan)
    return {
        "run": run["run"],
        "label": _label(run),
        "architecture": run["architecture"],
        "tokens_per_frame": run["visual_tokens"],
        "loss": study.loss(run["run"]) if evaluated else run["best.val_loss"],
        "low": low,
        "high": high,
        "interval": NO_INTERVAL if np.isnan(low) else OVER_VIDEOS.removeprefix("paired "),
        "measure": "evaluation loss" if evaluated else "best validation loss",
        "flops_per_sample": run["flops"] / run["samples"],
        "samples": run["samples"],
        "data_differs": study.data_differs(run["run"], reference) if reference else "",
    }


def _label(run: pd.Series) -> str:
    if run["architecture"] == "foveated":
        return "foveated" if run["fine_pass"] else f"static query ({base_name(run['run'])})"
    kind = "pooled" if run["architecture"] == "multi_token" else "pixel shuffle"
    return f"{run['visual_tokens']:.0f} {kind} ({base_name(run['run'])})"


def _blind_row(study: Study, reference: str) -> list[dict]:
    """The baseline asked without its frames. It was trained with them, so it has no training cost here."""
    draws = study.replicates.loss(reference, "blind", "none")
    loss = study.loss_of(reference, "blind", "none")
    if not np.isfinite(loss):
        return []
    low, high = interval(draws)
    return [
        {
            "run": reference,
            "label": "foveated, frames withheld",
            "architecture": "blind",
            "tokens_per_frame": 0,
            "loss": loss,
            "low": low,
            "high": high,
            "interval": NO_INTERVAL if np.isnan(low) else OVER_VIDEOS.removeprefix("paired "),
            "measure": "evaluation loss",
        }
    ]
