"""The ablations ranked: how far each run is from the one it is to be compared with, and how sure that is."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import NO_INTERVAL, Cell, Estimate, pooled
from fvlm.analysis.compare.runs import ComparedRuns, question_of
from fvlm.config.comparisons import Comparisons


class Place(NamedTuple):
    """Where an ablation stands in the ranking, and what it is compared with."""

    group: str
    reference: str
    kind: str  # of the held-out samples
    note: str = ""


def place_of(base: str, comparisons: Comparisons) -> Place:
    name, sweep = comparisons.sweep_of(base) or ("", None)
    if sweep and sweep.reference != comparisons.reference:
        group = f"{name}, compared with {sweep.reference}"
        return Place(group, sweep.reference, sweep.samples, f"compared with {sweep.reference} only")
    if sweep and sweep.samples != "all":
        kind = sweep.samples
        group = f"{kind}s only, compared with {sweep.reference}"
        return Place(group, sweep.reference, kind, f"compared on held-out {kind}s only")
    return Place(f"compared with {comparisons.reference}", comparisons.reference, "all")


def ablations(
    runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame, comparisons: Comparisons
) -> pd.DataFrame:
    """One row per ablation (seeds pooled), ranked within its group by the mean best validation loss."""
    study = ComparedRuns(runs, evaluation, bootstrap)
    places = {base: place_of(base, comparisons) for base in study.of_family("ablation")["base"].drop_duplicates()}
    groups = [place_of(base, comparisons).group for base in (comparisons.reference, *comparisons.named)]
    rows = [_row(study, base, place, comparisons) for base, place in places.items()]
    table = pd.DataFrame(rows, columns=COLUMNS["ablations"])
    table = table.assign(order=table["group"].map(groups.index))
    return table.sort_values(["order", "best_val_loss", "run"], ignore_index=True).drop(columns="order")


def _row(study: ComparedRuns, base: str, place: Place, comparisons: Comparisons) -> dict:
    reference, kind = place.reference, place.kind
    members = list(study.seeds(base).values())
    own = study.runs.loc[members]
    others = list(study.seeds(reference).values())
    row = {
        "group": place.group,
        "run": base,
        "question": question_of(own.iloc[0], comparisons),
        "compared_with": reference,
        "note": place.note,
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
