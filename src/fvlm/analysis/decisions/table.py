"""The table of decisions: for every comparison the question, the answer at 95 %, and the setting that follows.

A difference is an alternative minus its reference; negative: the alternative is better. Only a decision changes a
default. If a sweep has k alternatives, each interval is at 1 - 0.05 / k (Bonferroni), so that the chance of one false
decision in the sweep stays at 5 %.
"""

from functools import partial

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import LEVEL, QUESTION_FIRST, VIDEO_FIRST, VISUAL, Cell
from fvlm.analysis.compare.factorial import EFFECTS, contrast
from fvlm.analysis.compare.runs import ComparedRuns, Quoted, difference, trained_mode
from fvlm.analysis.decisions.scaling import scaling_rows
from fvlm.analysis.decisions.settings import lines
from fvlm.analysis.decisions.sweeps import Compared, compared_sweeps
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, OPEN, judge, not_run
from fvlm.analysis.decisions.wording import NATS, answered, basis, compared, data_words, number, side, size
from fvlm.config.comparisons import BothOrders, Comparisons, Factorial


def decisions(
    runs: pd.DataFrame,
    evaluation: pd.DataFrame,
    bootstrap: pd.DataFrame,
    scaling_fits: pd.DataFrame,
    isoflop: pd.DataFrame,
    comparisons: Comparisons,
    validation_curves: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per comparison, those not run included, per ablation that no sweep names, and for the scaling grid."""
    study, default = ComparedRuns(runs, evaluation, bootstrap, validation_curves), comparisons.reference
    rows = [_sight_row(study, comparisons)]
    rows += [_sweep_row(study, one, default) for one in compared_sweeps(study, comparisons)]
    rows += [_factorial_row(study, comparisons.factorial)] if comparisons.factorial else []
    rows += [_orders_row(study, comparisons.question_first, default)] if comparisons.question_first else []
    table = pd.DataFrame([*rows, *scaling_rows(study, scaling_fits, isoflop)], columns=COLUMNS["decisions"])
    return table.assign(changes_default=table["changes_default"].eq(True))


def _row(name: str, question: str, runs, comparisons: int = 1) -> dict:
    return {"sweep": name, "question": question, "runs": ", ".join(runs), "unit": NATS, "comparisons": comparisons}


def _without(missing: list[str]) -> dict:
    names = ", ".join(missing)
    return not_run(f"The study has no run {names}.", f"Train {names}.")


def _sweep_row(study: ComparedRuns, one: Compared, default: str) -> dict:
    sweep, missing = one.sweep, [base for base in one.bases if not study.seeds(base)]
    tried = [base for base in sweep.runs if base not in missing]
    row = _row(one.name, sweep.question, (sweep.reference, *(tried or sweep.runs)), len(tried))
    if not tried or sweep.reference in missing:
        return row | {"runs": ", ".join(one.bases)} | _without(missing)
    level = 1 - (1 - LEVEL) / len(tried)
    members = {base: study.first(base) for base in (sweep.reference, *tried)}
    differs = {base: study.data_differs(members[base]["run"], members[sweep.reference]["run"]) for base in tried}
    doubts = {base: ", ".join(w for w in differs[base].split(", ") if w and w not in one.varies) for base in tried}
    cell = Cell(kind=sweep.samples)
    found = {base: study.quoted([base, sweep.reference], difference, cell, level=level) for base in tried}
    judged = {base: judge(found[base].estimate, level, doubts[base], found[base].noise) for base in tried}
    quoted, winner = _chosen(found, judged, sweep.reference)
    (estimate, measure, noise), decided = found[quoted], judged[quoted]["verdict"] == DECIDED
    words = one.words(members[quoted]), one.against(members[sweep.reference], default)
    answer = [compared(estimate, noise, judged[quoted], *words), *data_words(differs[quoted], doubts[quoted])]
    standard = members.get(default, study.first(default))
    setting = lines(members[winner] if decided else standard, list(sweep.settings))
    if decided and default not in members and len(standard):
        answer.append("The default was not one of the runs compared.")
    answer += _other_differences(study, one, found, level, quoted, winner)
    answer += _cost(members[quoted], members[sweep.reference])
    return row | judged[quoted] | {
        "answer": " ".join(answer),
        "setting": setting,
        "changes_default": decided and setting != lines(standard, list(sweep.settings)),
        "data_differs": differs[quoted],
        "measure": measure,
    }  # fmt: skip


def _chosen(found: dict[str, Quoted], judged: dict[str, dict], reference: str) -> tuple[str, str]:
    """(alternative whose difference is quoted, run that looks best).

    The lowest alternative, if its loss is below the reference's. Else the reference looks best, and its least sure
    lead is quoted: the reference is decided only if all leads are.
    """
    values = {base: one.estimate.value for base, one in found.items() if np.isfinite(one.estimate.value)}
    if not values:
        return next(iter(found)), reference
    lowest = min(values, key=values.get)
    if values[lowest] < 0:
        return lowest, lowest
    sure = {OPEN: 0, LIKELY: 1, DECIDED: 2}
    return min(values, key=lambda base: (sure[judged[base]["verdict"]], values[base])), reference


def _other_differences(
    study: ComparedRuns, one: Compared, found: dict[str, Quoted], level: float, quoted: str, winner: str
) -> list[str]:
    """The sweep's other differences, and which alternatives do not differ significantly from the winner."""
    remarks, others = [], [base for base in found if base != quoted]
    if others:
        shown = (f"{base} {_brief(found[base])}" for base in others)
        remarks.append(f"The other differences: {'; '.join(shown)}.")
    if winner != one.sweep.reference:
        cell = Cell(kind=one.sweep.samples)
        gaps = {base: study.quoted([base, winner], difference, cell, level=level) for base in others}
        near = [base for base, gap in gaps.items() if judge(gap.estimate, level, "", gap.noise)["verdict"] == OPEN]
        remarks += [f"Not significantly different from {winner}: {', '.join(near)}."] if near else []
    bad = [base for base in found if not np.isfinite(found[base].estimate.value)]
    return [*remarks, f"Not compared (other held-out samples or scored tokens): {', '.join(bad)}."] if bad else remarks


def _brief(one: Quoted) -> str:
    return f"{number(one.estimate)} ({basis(one.estimate, one.noise)})"


def _cost(run: pd.Series, reference: pd.Series) -> list[str]:
    ratio = (run["flops"] / run["samples"]) / (reference["flops"] / reference["samples"])
    if not np.isfinite(ratio) or abs(ratio - 1) <= 0.02:
        return []
    return [f"{run['base']} takes {ratio:.2f} times the training FLOPs per sample of {reference['base']}."]


def _sight_row(study: ComparedRuns, comparisons: Comparisons) -> dict:
    """What another sample's frames cost the reference, over the samples with frames."""
    base = comparisons.reference
    row = _row("sight", comparisons.sight, [base])
    if not study.seeds(base):
        return row | _without([base])
    mode = trained_mode(study.first(base))
    looks = [Cell(mode, "other", kind=VISUAL), Cell(mode, kind=VISUAL)]
    estimate = study.estimate([(base, look) for look in looks], difference)
    if not np.isfinite(estimate.value):
        return row | not_run(f"{base} was not evaluated with the frames of another sample.", f"Evaluate {base}.")
    uses = "the model uses its frames: " if estimate.value > 0 else ""
    return row | answered(
        estimate,
        f"{uses}with another sample's frames the loss is {size(estimate)} {side(estimate)}",
        "no evidence that the model uses its frames. Change of the loss with another sample's frames",
    )


def _factorial_row(study: ComparedRuns, factorial: Factorial) -> dict:
    """The interaction: how much more a deep query gives with the fine pass than without it."""
    bases = list(factorial.runs.values())
    row = _row("query depth x fine pass", factorial.question, bases)
    if missing := [base for base in bases if not study.seeds(base)]:
        return row | _without(missing)
    effects = [study.quoted(bases, partial(contrast, weights=weights)) for weights in EFFECTS.values()]
    depth, fine, (interaction, measure, noise) = effects
    first = study.matched(bases)[0]
    differs = ", ".join(dict.fromkeys(filter(None, (study.data_differs(run, first[0]) for run in first[1:]))))
    more = side(interaction, "less", "more")
    row |= answered(
        interaction,
        f"the fine pass gains {size(interaction)} {more} with a deep query than with a shallow one",
        "no significant interaction of query depth and fine pass",
        differs,
        noise=noise,
    )
    main = f"Main effects: deep - shallow query {_brief(depth)}, with - without the fine pass {_brief(fine)}."
    answer = " ".join([row["answer"], *data_words(differs, differs), main])
    setting = lines(study.runs.loc[first[0]], list(factorial.settings))
    return row | {"answer": answer, "setting": setting, "data_differs": differs, "measure": measure}


def _orders_row(study: ComparedRuns, orders: BothOrders, default: str) -> dict:
    """(fine - coarse with the question first) - (the same with the video first), of the run trained in both orders."""
    row = _row("question first", orders.question, [orders.run])
    if not study.seeds(orders.run):
        return row | _without([orders.run])
    terms = [
        (orders.run, Cell(mode, order=order, kind=VISUAL))
        for order in (QUESTION_FIRST, VIDEO_FIRST)
        for mode in ("coarse_fine", "coarse_only")
    ]
    estimate = study.estimate(terms, partial(contrast, weights=(1.0, -1.0, -1.0, 1.0)))
    more = side(estimate, "less", "more")
    row |= answered(
        estimate,
        f"knowing the question helps the fine pass {size(estimate)} {more} than the coarse pass",
        "no significant difference between what the question gives the fine pass and the coarse pass",
    )
    helps = row["verdict"] == DECIDED and estimate.value < 0
    chosen = orders.run if helps or not study.seeds(default) else default
    return row | {"setting": lines(study.first(chosen), list(orders.settings)), "changes_default": helps}
