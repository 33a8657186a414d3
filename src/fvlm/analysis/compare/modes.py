"""Held-out losses by evaluation mode, by visual tokens per frame, and by the order of question and video."""

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import OVERALL, QUESTION_FIRST, VIDEO_FIRST, VISUAL, Cell, Estimate
from fvlm.analysis.compare.gap import percent
from fvlm.analysis.compare.runs import EVALUATION, VALIDATION, ComparedRuns, difference, scores_tokens, trained_mode
from fvlm.config.architectures import ARCHITECTURES
from fvlm.config.comparisons import Comparisons

PASSES = ("direct", "coarse_only", "coarse_fine", "autoregressive")  # direct: the only one of pooled tokens
GAIN = "coarse_fine - coarse_only"  # of looking twice; its difference is the interaction of pass and order


def modes(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> pd.DataFrame:
    """Return one row per stage or ablation (seeds pooled), mode and frames, over all sources, the video first.

    gap_percent is relative to the run's own frames in the mode it was trained in (for the default model: coarse_fine).
    The runs of the scaling grid are left out, and those on preferences, which score other answers.
    """
    study = ComparedRuns(runs, evaluation, bootstrap)
    shown = study.runs[(study.runs["family"] != "grid") & scores_tokens(study.runs)]
    overall = evaluation[(evaluation["source"] == "all") & (evaluation["kind"] == "all")]
    overall = overall[overall["order"] == VIDEO_FIRST]
    rows = []
    for base, own in shown.groupby("base", sort=False):
        trained = trained_mode(own.iloc[0])
        looks = overall[overall["run"].isin(own["run"])].drop_duplicates(["mode", "frames"])
        for mode, frames, samples in looks[["mode", "frames", "samples"]].itertuples(index=False, name=None):
            loss = study.level(base, Cell(mode, frames))
            row = {"run": base, "family": own["family"].iloc[0], "mode": mode, "frames": frames, "samples": samples}
            row |= {"trained_mode": trained} | loss.columns("loss")
            if (mode, frames) != (trained, "own"):
                terms = [(base, Cell(mode, frames)), (base, OVERALL)]
                gap = study.estimate(terms, lambda losses: percent(losses[0], losses[1]))
                row |= {"gap_interval": gap.interval, **gap.columns("gap_percent", "gap_"), "n_seeds": loss.n_seeds}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS["modes"])


def token_efficiency(
    runs: pd.DataFrame,
    evaluation: pd.DataFrame,
    bootstrap: pd.DataFrame,
    comparisons: Comparisons,
) -> pd.DataFrame:
    """Return the ablations that differ in how a frame is read (seeds pooled), by visual tokens per frame.

    The loss is the evaluation's where all of them were evaluated, else the best validation's; the interval is that of
    its difference to the baseline. A run with other held-out samples than the baseline, such as one on images alone,
    is left out. Tokens 0 is a run trained blind; without one, the baseline evaluated without its frames. FLOPs are
    training FLOPs per sample.
    """
    baseline, names = comparisons.reference, comparisons.figures.token_efficiency
    study = ComparedRuns(runs, evaluation, bootstrap)
    own = study.of_family("ablation")
    chosen = own[own["base"].isin(names) | ~own["architecture"].isin(("foveated", ""))]
    evaluated = all(np.isfinite(study.loss(run)) for run in chosen["run"])
    reference = next(iter(study.seeds(baseline).values()), None)
    rows = [_efficiency_row(study, base, comparisons, evaluated) for base in chosen["base"].drop_duplicates()]
    if reference and evaluated and not (chosen["architecture"] == "blind").any():
        rows += _withheld_row(study, baseline)
    if reference:
        rows = [row for row in rows if row["run"] == baseline or np.isfinite(row["difference"])]
    table = pd.DataFrame(rows, columns=COLUMNS["token_efficiency"])
    first = table["run"] != baseline
    order = table.assign(first=first).sort_values(["tokens_per_frame", "first", "run"]).index
    return table.loc[order].reset_index(drop=True)


def _efficiency_row(study: ComparedRuns, base: str, comparisons: Comparisons, evaluated: bool) -> dict:
    members, baseline = study.runs[study.runs["base"] == base], comparisons.reference
    first = members.iloc[0]
    reference = next(iter(study.seeds(baseline).values()), None)
    gap = Estimate()
    if base != baseline:
        gap = (study.difference if evaluated else study.validation_difference)(base, baseline)
    return {
        "run": base,
        "label": _label(first, comparisons),
        "architecture": first["architecture"],
        "tokens_per_frame": first["visual_tokens"],
        "loss": study.level(base).value if evaluated else members["best.val_loss"].mean(),
        **gap.columns("difference"),
        "n_seeds": gap.n_seeds or len(members),  # that the interval is over
        "measure": EVALUATION if evaluated else f"best {VALIDATION}",
        "flops_per_sample": (members["flops"] / members["samples"]).mean(),
        "samples": members["samples"].mean(),
        "data_differs": study.data_differs(first["run"], reference) if reference else "",
    }


def _label(run: pd.Series, comparisons: Comparisons) -> str:
    architecture = ARCHITECTURES.get(run["architecture"])
    kinds = {"": "architecture not known", "blind": "trained without frames", "multi_token": "pooled"}
    kind = comparisons.figures.token_efficiency.get(run["base"]) or kinds.get(run["architecture"]) or architecture.title
    count = f"{run['visual_tokens']:.0f} " if architecture and architecture.pooled else ""
    return f"{count}{kind} ({run['base']})"


def _withheld_row(study: ComparedRuns, baseline: str) -> list[dict]:
    """The baseline evaluated without its frames. It was trained with them, so it has no training cost here."""
    blind = Cell("blind", "none")
    loss = study.level(baseline, blind)
    if not np.isfinite(loss.value):
        return []
    return [
        {
            "run": baseline,
            "label": "foveated, frames withheld",
            "architecture": "blind",
            "tokens_per_frame": 0,
            "loss": loss.value,
            **study.estimate([(baseline, blind), (baseline, OVERALL)], difference).columns("difference"),
            "n_seeds": loss.n_seeds,
            "measure": EVALUATION,
        }
    ]


def question_order(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> pd.DataFrame:
    """Return one row per pass and one for the fine pass's gain, for runs that were evaluated in both orders (seeds
    pooled), over the sources with frames.

    A query can only look for what was read before, so a question in front may help. `difference` is question first -
    video first; negative: it helps. Its interval is over seeds where there are several, else a paired bootstrap over
    evaluation videos. The row GAIN has the interaction; negative: the fine pass gains more than the coarse.
    """
    study = ComparedRuns(runs, evaluation, bootstrap)
    evaluated = set(evaluation.loc[evaluation["order"] == QUESTION_FIRST, "run"])
    bases = study.runs.loc[study.runs["run"].isin(evaluated), "base"].drop_duplicates()
    rows = [_order_row(study, base, mode) for base in bases for mode in (*PASSES, GAIN)]
    return pd.DataFrame(rows, columns=COLUMNS["question_order"]).dropna(subset="difference").reset_index(drop=True)


def _order_row(study: ComparedRuns, base: str, name: str) -> dict:
    modes = ("coarse_fine", "coarse_only") if name == GAIN else (name,)
    signs = np.array([1.0, -1.0])[: len(modes)]

    def terms(order: str) -> list:
        return [(base, Cell(mode, order=order, kind=VISUAL)) for mode in modes]

    def change(losses: np.ndarray) -> np.ndarray:  # (2 modes, ...), question first in front
        return np.tensordot(np.concatenate([signs, -signs]), losses, axes=1)

    gap = study.estimate(terms(QUESTION_FIRST) + terms(VIDEO_FIRST), change)
    level = {
        order: study.estimate(terms(order), lambda losses: np.tensordot(signs, losses, axes=1)).value
        for order in (VIDEO_FIRST, QUESTION_FIRST)
    }
    return {"run": base, "mode": name, **level, **gap.columns("difference")}
