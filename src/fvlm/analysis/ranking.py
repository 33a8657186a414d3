"""The ablations ranked: how far each run is from the one it is to be compared with, and how sure that is."""

import numpy as np
import pandas as pd

from fvlm.analysis.bootstrap import NO_INTERVAL, OVER_SEEDS, OVER_VIDEOS, interval, t_interval
from fvlm.analysis.catalog import COLUMNS
from fvlm.analysis.study import Study

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
    study = Study(runs, evaluation, bootstrap)
    bases = study.of_family("ablation")["base"].drop_duplicates()
    table = pd.DataFrame([_row(study, base) for base in bases], columns=COLUMNS["ablations"])
    order = {MAIN: 0, STATIC: 1, IMAGES: 2}
    table = table.assign(order=table["group"].map(order)).sort_values(
        ["order", "best_val_loss", "run"], ignore_index=True
    )
    return table.drop(columns="order")


def _row(study: Study, base: str) -> dict:
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
        "evaluation_loss": np.mean([study.loss(run, kind) for run in members]),
    }
    if not others:
        return row | {"note": f"{reference} is not in this study", "interval": NO_INTERVAL}
    row["data_differs"] = study.data_differs(members[0], others[0])
    if base == reference:
        return row | {"interval": NO_INTERVAL, "measure": "reference"}
    return row | differences(study, base, reference, kind, same_validation=group != IMAGES)


def differences(study: Study, base: str, reference: str, kind: str = "all", same_validation: bool = True) -> dict:
    """Differences to `reference` (negative: better), and the one to quote with its interval.

    With two or more common seeds: best validation loss, t interval over the per-seed differences.
    Otherwise the loss of the evaluation with its paired bootstrap, which knows the noise of the evaluation
    videos and nothing of the seed's.
    """
    one, two = study.seeds(base), study.seeds(reference)
    common = sorted(one.keys() & two.keys())
    pairs = [(one[seed], two[seed]) for seed in common] or [(next(iter(one.values())), next(iter(two.values())))]
    result: dict = {"n_seeds": max(len(common), 1)}
    columns = {
        name: np.array(
            [study.runs.loc[a, f"{name}.val_loss"] - study.runs.loc[b, f"{name}.val_loss"] for a, b in pairs],
            float,
        )
        for name in ("best", "final")
    }
    evaluated = np.array([study.loss(a, kind) - study.loss(b, kind) for a, b in pairs])
    result["evaluation_difference"] = evaluated.mean()
    if same_validation:
        result |= {f"{name}_difference": values.mean() for name, values in columns.items()}
    if len(common) > 1:
        values, measure = (
            (columns["best"], "best validation loss") if same_validation else (evaluated, "evaluation loss")
        )
        low, high = t_interval(values)
        return result | {
            "difference": values.mean(),
            "low": low,
            "high": high,
            "interval": OVER_SEEDS,
            "measure": measure,
        }
    draws = [study.draws(run, kind) for run in pairs[0]]
    if draws[0] is not None and draws[1] is not None:
        low, high = interval(draws[0] - draws[1])
        return result | {
            "difference": evaluated.mean(),
            "low": low,
            "high": high,
            "interval": OVER_VIDEOS,
            "measure": "evaluation loss",
        }
    return result | {
        "difference": result.get("best_difference", np.nan),
        "interval": NO_INTERVAL,
        "measure": "best validation loss",
    }
