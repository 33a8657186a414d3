"""What the question in front of the frames is worth, to each pass: a query can only ask for what was read before."""

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import QUESTION_FIRST, VIDEO_FIRST, VISUAL, Cell
from fvlm.analysis.compare.runs import ComparedRuns

PASSES = ("direct", "coarse_only", "coarse_fine", "autoregressive")  # direct: the only one of pooled tokens
GAIN = "coarse_fine - coarse_only"  # of looking twice; its difference is the interaction of pass and order


def question_order(runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame) -> pd.DataFrame:
    """Runs that were evaluated in both orders (seeds pooled), one row per pass and one for the fine pass's gain.

    Over the sources with frames; a text has no order. `difference` is question first - video first; negative:
    the question in front helps. Its interval is over seeds where there are several, else a paired bootstrap over
    evaluation videos. That of the row GAIN is the interaction; negative: the fine pass gains more than the coarse.
    """
    study = ComparedRuns(runs, evaluation, bootstrap)
    asked = set(evaluation.loc[evaluation["order"] == QUESTION_FIRST, "run"])
    bases = study.runs.loc[study.runs["run"].isin(asked), "base"].drop_duplicates()
    rows = [_row(study, base, mode) for base in bases for mode in (*PASSES, GAIN)]
    return pd.DataFrame(rows, columns=COLUMNS["question_order"]).dropna(subset="difference").reset_index(drop=True)


def _row(study: ComparedRuns, base: str, name: str) -> dict:
    modes = ("coarse_fine", "coarse_only") if name == GAIN else (name,)
    signs = np.array([1.0, -1.0])[: len(modes)]

    def terms(order: str) -> list:
        return [(base, Cell(mode, order=order, kind=VISUAL)) for mode in modes]

    def change(losses: np.ndarray) -> np.ndarray:  # (2 modes, ...), question first in front
        return np.tensordot(np.concatenate([signs, -signs]), losses, axes=1)

    difference = study.estimate(terms(QUESTION_FIRST) + terms(VIDEO_FIRST), change)
    level = {
        order: study.estimate(terms(order), lambda losses: np.tensordot(signs, losses, axes=1)).value
        for order in (VIDEO_FIRST, QUESTION_FIRST)
    }
    return {
        "run": base,
        "mode": name,
        **level,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "interval": difference.interval,
        "n_seeds": difference.n_seeds,
    }
