"""The ablations ranked: how far each run is from the one it is to be compared with, and how sure that is."""

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import NO_INTERVAL, Cell, Estimate, pooled
from fvlm.analysis.compare.runs import ComparedRuns

BASELINE = "baseline"
MAIN, STATIC, IMAGES = "against the baseline", "static frames", "images only"


def compared(base: str) -> tuple[str, str, str]:
    """(group, run compared with, kind of evaluation samples) of an ablation."""
    if base.startswith("A8"):
        return STATIC, "A8a", "all"  # trained on images: comparable with each other only
    if base == "B2":
        return IMAGES, BASELINE, "image"  # trained on images: compared on the held-out images only
    return MAIN, BASELINE, "all"


NOTES = {
    STATIC: "compares only within its group",
    IMAGES: "trained on images: compared on held-out images only, on other training data",
}


def ablations(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> pd.DataFrame:
    """One row per ablation (seeds pooled), ranked within its group by the mean best validation loss."""
    study = ComparedRuns(runs, evaluation, bootstrap)
    bases = study.of_family("ablation")["base"].drop_duplicates()
    table = pd.DataFrame([_row(study, base) for base in bases], columns=COLUMNS["ablations"])
    order = {MAIN: 0, STATIC: 1, IMAGES: 2}
    table = table.assign(order=table["group"].map(order)).sort_values(
        ["order", "best_val_loss", "run"], ignore_index=True
    )
    return table.drop(columns="order")


def _row(study: ComparedRuns, base: str) -> dict:
    group, reference, kind = compared(base)
    members = list(study.seeds(base).values())
    own = study.runs.loc[members]
    others = list(study.seeds(reference).values())
    row = {
        "group": group,
        "run": base,
        "question": own.iloc[0].get("config.question", ""),
        "compared_with": reference,
        "note": NOTES.get(group, ""),
        "n_seeds": len(members),
        "samples": own["samples"].mean(),
        "best_val_loss": own["best.val_loss"].mean(),
        "final_val_loss": own["final.val_loss"].mean(),
        "evaluation_loss": study.level(base, Cell(kind=kind)).value,
    }
    if not others:
        return row | {"note": f"{reference} is not in this study", "interval": NO_INTERVAL}
    row["data_differs"] = study.data_differs(members[0], others[0])
    if base == reference:
        return row | {"interval": NO_INTERVAL, "measure": "reference"}
    row |= differences(study, base, reference, kind)
    if np.isnan(row["difference"]) and not row["note"]:
        row["note"] = f"other held-out samples or scored tokens than {reference}: not compared"
    return row


def differences(study: ComparedRuns, base: str, reference: str, kind: str) -> dict:
    """Differences to `reference` (negative: better), and the one to quote with its interval: of the evaluation,
    or of the best validation where there is none; over the seeds common to both, see `ComparedRuns.estimate`."""
    evaluated = study.difference(base, reference, Cell(kind=kind))
    best, final = (study.validation_difference(base, reference, which) for which in ("best", "final"))
    quoted, measure = evaluated, "evaluation loss"
    if np.isnan(evaluated.value):
        quoted, measure = best, "best validation loss"
    return {
        "n_seeds": quoted.n_seeds,
        "best_difference": best.value,
        "final_difference": final.value,
        "evaluation_difference": evaluated.value,
        "difference": quoted.value,
        "low": quoted.low,
        "high": quoted.high,
        "interval": quoted.interval,
        "measure": measure,
    }


def paired(losses: dict[float, float], others: dict[float, float]) -> Estimate:
    """How far `losses` lie above `others`, over the seeds that both have; both are seed -> loss.

    Without a common seed the difference of the means, and no interval.
    """
    common = [seed for seed in losses if seed in others]
    if common:
        return pooled(np.array([losses[seed] - others[seed] for seed in common]))
    return Estimate(_mean(losses) - _mean(others))


def _mean(losses: dict[float, float]) -> float:
    return sum(losses.values()) / len(losses)


def tied(losses: dict[str, dict[float, float]]) -> dict[str, int | None]:
    """Run -> its group, 1 the best; the runs in ascending order of their mean loss.

    A run belongs to the group before it if the interval of its difference to the best of that group includes zero,
    else it begins the next. A run whose difference has no interval is in no group (None).

    losses  run -> seed -> loss
    """
    groups: dict[str, int | None] = {}
    leader, group = None, 0
    for run in sorted(losses, key=lambda name: _mean(losses[name])):
        if len(losses[run]) < 2:
            groups[run] = None
            continue
        gap = None if leader is None else paired(losses[run], losses[leader])
        if gap is not None and np.isnan(gap.low):
            groups[run] = None
            continue
        if gap is None or gap.low > 0 or gap.high < 0:
            leader, group = run, group + 1
        groups[run] = group
    return groups
