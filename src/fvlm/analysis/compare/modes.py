"""What the visual tokens are worth: losses by evaluation mode, and loss against tokens per frame."""

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import OVERALL, VIDEO_FIRST, Cell, Estimate
from fvlm.analysis.compare.gap import percent
from fvlm.analysis.compare.runs import ComparedRuns, difference, scores_tokens, trained_mode
from fvlm.config.comparisons import Comparisons


def modes(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> pd.DataFrame:
    """One row per stage or ablation (seeds pooled), mode and frames, over all sources, the video first;
    gap_percent is relative to the run's own frames in the mode it was trained in (for the default model:
    coarse_fine). The scaling grid's many runs are left out, and those on preferences, whose answers are others.
    """
    study = ComparedRuns(runs, evaluation, bootstrap)
    shown = study.runs[(study.runs["family"] != "grid") & scores_tokens(study.runs)]
    whole = evaluation[(evaluation["source"] == "all") & (evaluation["kind"] == "all")]
    whole = whole[whole["order"] == VIDEO_FIRST]
    rows = []
    for base, own in shown.groupby("base", sort=False):
        trained = trained_mode(own.iloc[0])
        looks = whole[whole["run"].isin(own["run"])].drop_duplicates(["mode", "frames"])
        for mode, frames, samples in looks[["mode", "frames", "samples"]].itertuples(index=False, name=None):
            loss = study.level(base, Cell(mode, frames))
            row = {
                "run": base, "family": own["family"].iloc[0], "mode": mode, "frames": frames, "trained_mode": trained,
                "loss": loss.value, "low": loss.low, "high": loss.high, "n_seeds": loss.n_seeds, "samples": samples,
            }  # fmt: skip
            if (mode, frames) != (trained, "own"):
                terms = [(base, Cell(mode, frames)), (base, OVERALL)]
                gap = study.estimate(terms, lambda losses: percent(losses[0], losses[1]))
                row |= {
                    "gap_percent": gap.value,
                    "gap_low": gap.low,
                    "gap_high": gap.high,
                    "gap_interval": gap.interval,
                }
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS["modes"])


def token_efficiency(
    runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame, comparisons: Comparisons
) -> pd.DataFrame:
    """Ablations that differ in how a frame is read (seeds pooled), by visual tokens per frame.

    The loss is the evaluation's where every one of them was evaluated, else the best validation's; the interval
    is that of its difference to the reference. A run that holds out other samples than the reference, such as one
    trained on images alone, is left out. Tokens 0 is a run trained blind; without one, the reference evaluated without
    its frames. FLOPs are training FLOPs per sample.
    """
    names, base = comparisons.figures.token_efficiency, comparisons.reference
    study = ComparedRuns(runs, evaluation, bootstrap)
    own = study.of_family("ablation")
    chosen = own[own["base"].isin(names) | (own["architecture"] != "foveated")]
    evaluated = all(np.isfinite(study.loss(run)) for run in chosen["run"])
    reference = next(iter(study.seeds(base).values()), None)
    rows = [_efficiency_row(study, run, evaluated, comparisons) for run in chosen["base"].drop_duplicates()]
    if reference and evaluated and not (chosen["architecture"] == "blind").any():
        rows += _withheld_row(study, base)
    if reference:
        rows = [row for row in rows if row["run"] == base or np.isfinite(row["difference"])]
    table = pd.DataFrame(rows, columns=COLUMNS["token_efficiency"])
    first = table["run"] != base
    order = table.assign(first=first).sort_values(["tokens_per_frame", "first", "run"]).index
    return table.loc[order].reset_index(drop=True)


def _efficiency_row(study: ComparedRuns, base: str, evaluated: bool, comparisons: Comparisons) -> dict:
    members, reference = study.runs[study.runs["base"] == base], comparisons.reference
    first = members.iloc[0]
    if base == reference:
        gap = Estimate()
    else:
        gap = (study.difference if evaluated else study.validation_difference)(base, reference)
    compared_with = next(iter(study.seeds(reference).values()), None)
    return {
        "run": base,
        "label": _label(first, comparisons),
        "architecture": first["architecture"],
        "tokens_per_frame": first["visual_tokens"],
        "loss": study.level(base).value if evaluated else members["best.val_loss"].mean(),
        **_above(gap),
        "n_seeds": gap.n_seeds or len(members),  # that the interval is over
        "measure": "evaluation loss" if evaluated else "best validation loss",
        "flops_per_sample": (members["flops"] / members["samples"]).mean(),
        "samples": members["samples"].mean(),
        "data_differs": study.data_differs(first["run"], compared_with) if compared_with else "",
    }


def _above(gap: Estimate) -> dict:
    return {"difference": gap.value, "low": gap.low, "high": gap.high, "interval": gap.interval}


def _label(run: pd.Series, comparisons: Comparisons) -> str:
    kinds = {"blind": "trained without frames", "multi_token": "pooled", "pixel_shuffle": "pixel shuffle"}
    kind = comparisons.figures.token_efficiency.get(run["base"]) or kinds.get(run["architecture"], "foveated")
    count = f"{run['visual_tokens']:.0f} " if run["architecture"] in ("multi_token", "pixel_shuffle") else ""
    return f"{count}{kind} ({run['base']})"


def _withheld_row(study: ComparedRuns, base: str) -> list[dict]:
    """The reference evaluated without its frames. It was trained with them, so it has no training cost here."""
    blind = Cell("blind", "none")
    loss = study.level(base, blind)
    if not np.isfinite(loss.value):
        return []
    return [
        {
            "run": base,
            "label": "foveated, frames withheld",
            "architecture": "blind",
            "tokens_per_frame": 0,
            "loss": loss.value,
            **_above(study.estimate([(base, blind), (base, OVERALL)], difference)),
            "n_seeds": loss.n_seeds,
            "measure": "evaluation loss",
        }
    ]
