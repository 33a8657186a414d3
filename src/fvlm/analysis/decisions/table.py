"""For every sweep: the question, the answer that the data give at 95 %, and the setting that it leads to.

A difference is always an alternative minus the reference; negative: the alternative is better. A default is changed by
a decision alone. Where a sweep tries k alternatives, each interval is at 1 - 0.05 / k (Bonferroni), so that
the chance of one false decision in the sweep stays at 5 %.
"""

from functools import partial

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS
from fvlm.analysis.compare.bootstrap import LEVEL, QUESTION_FIRST, VIDEO_FIRST, VISUAL, Cell, Estimate
from fvlm.analysis.compare.factorial import CELLS, EFFECTS, contrast
from fvlm.analysis.compare.ranking import compared
from fvlm.analysis.compare.runs import ComparedRuns, difference, trained_mode
from fvlm.analysis.decisions.scaling import scaling_rows
from fvlm.analysis.decisions.settings import changed, lines, value
from fvlm.analysis.decisions.sweeps import BASELINE, FACTORIAL, NAMED, QUESTION, SIGHT, SWEEPS, Sweep
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, NOT_RUN, OPEN, Verdict, judge
from fvlm.analysis.decisions.wording import NATS, data_words, found_words, interval_words, number, sentence, unit_words

EVALUATION, VALIDATION = "evaluation loss", "best validation loss"


def decisions(
    runs: pd.DataFrame,
    evaluation: pd.DataFrame,
    bootstrap: pd.DataFrame,
    scaling_fits: pd.DataFrame,
    isoflop: pd.DataFrame,
) -> pd.DataFrame:
    """One row per sweep, those not run included, and per ablation of the study's own; then the scaling grid's."""
    study = ComparedRuns(runs, evaluation, bootstrap)
    rows = [_sight_row(study)]
    for sweep in (*SWEEPS, *_own_sweeps(study)):
        rows.append(_sweep_row(study, sweep))
        if sweep.name == "fine pass":
            rows.append(_factorial_row(study))
    rows.append(_question_row(study))
    table = pd.DataFrame([*rows, *scaling_rows(study, scaling_fits, isoflop)], columns=COLUMNS["decisions"])
    return table.assign(changes_default=table["changes_default"].eq(True))


def _own_sweeps(study: ComparedRuns) -> list[Sweep]:
    """One sweep for each ablation that none of SWEEPS names, against the run that it is to be compared with."""
    own = study.of_family("ablation")
    found = []
    for base in own["base"].drop_duplicates():
        if base in NAMED:
            continue
        _, reference, kind = compared(base)
        run = own[own["base"] == base].iloc[0]
        other = _first(study, reference)
        keys = tuple(changed(run, other)) if len(other) else ()
        data_alone = bool(keys) and all(key.startswith("data.") for key in keys)
        varies = tuple(study.data_differs(run["run"], other["run"]).split(", ")) if data_alone else ()
        question = run.get("config.question")
        question = question if isinstance(question, str) else ""
        question = question[:1].upper() + question[1:] or f"What does {base} change?"
        words = f"{base} ({lines(run, list(keys))})" if keys else base
        found.append(Sweep(base, question, {base: words}, keys, reference, reference, varies, kind))
    return found


def _sweep_row(study: ComparedRuns, sweep: Sweep) -> dict:
    there = [base for base in sweep.words if study.seeds(base)]
    row = {
        "sweep": sweep.name, "question": sweep.question, "runs": ", ".join(base for base in sweep.bases),
        "unit": NATS, "comparisons": len(there),
    }  # fmt: skip
    if not there or not study.seeds(sweep.reference):
        return row | _not_run([base for base in sweep.bases if not study.seeds(base)])
    row["runs"] = ", ".join((sweep.reference, *there))
    level = 1 - (1 - LEVEL) / len(there)
    members = {base: _first(study, base) for base in (sweep.reference, *there)}
    differs = {base: study.data_differs(members[base]["run"], members[sweep.reference]["run"]) for base in there}
    doubts = {base: _confounded(differs[base], sweep) for base in there}
    found = {base: _difference(study, base, sweep, level) for base in there}
    judged = {base: judge(found[base][0], level, doubts[base]) for base in there}
    quoted, winner = _chosen(found, judged, sweep.reference)
    (estimate, measure), verdict = found[quoted], judged[quoted]
    words = (
        _named(sweep.words[quoted], members[quoted], sweep),
        _named(sweep.reference_words, members[sweep.reference], sweep),
    )
    said = [sentence(estimate, verdict, *words), *data_words(differs[quoted], doubts[quoted])]
    default = members.get(BASELINE, _first(study, BASELINE))
    setting = lines(members[winner] if verdict.word == DECIDED else default, list(sweep.keys))
    if verdict.word == DECIDED and BASELINE not in members and len(default):
        said.append("The default was not among the runs compared.")
    return row | {
        **_columns(estimate, level, verdict),
        "answer": " ".join([*said, *_remarks(study, sweep, found, level, quoted, winner, members)]),
        "setting": setting,
        "changes_default": verdict.word == DECIDED and setting != lines(default, list(sweep.keys)),
        "data_differs": differs[quoted],
        "measure": measure,
    }


def _named(words: str, run: pd.Series, sweep: Sweep) -> str:
    return words.replace("{setting}", (sweep.keys and value(run, sweep.keys[0])) or "another value")


def _first(study: ComparedRuns, base: str) -> pd.Series:
    """A run of `base`; empty if the study has none."""
    return next((study.runs.loc[run] for run in study.seeds(base).values()), pd.Series(dtype=object))


def _not_run(missing: list[str]) -> dict:
    names = ", ".join(missing)
    return {
        "verdict": NOT_RUN,
        "answer": f"The study has no run {names}.",
        "needs": f"runs of {names}",
        "n_seeds": 0,
    }


def _columns(estimate: Estimate, level: float, verdict: Verdict) -> dict:
    return {
        "estimate": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "interval": estimate.interval,
        "confidence": level,
        "n_seeds": estimate.n_seeds,
        "verdict": verdict.word,
        "more_seeds": verdict.more_seeds,
        "needs": verdict.needs,
    }


def _difference(study: ComparedRuns, base: str, sweep: Sweep, level: float) -> tuple[Estimate, str]:
    """Of the evaluation, or of the best validation where there is none."""
    cell = Cell(kind=sweep.kind)
    evaluated = study.estimate([(base, cell), (sweep.reference, cell)], difference, level)
    if np.isfinite(evaluated.value):
        return evaluated, EVALUATION
    return study.validation_estimate([base, sweep.reference], difference, level=level), VALIDATION


def _confounded(differs: str, sweep: Sweep) -> str:
    return ", ".join(word for word in differs.split(", ") if word and word not in sweep.varies)


def _chosen(found: dict, judged: dict[str, Verdict], reference: str) -> tuple[str, str]:
    """(alternative whose difference is quoted, run that looks best).

    If an alternative has a lower loss than the reference, the lowest. Else the reference looks best, and its least sure
    lead is quoted: all must be decided for it to be.
    """
    values = {base: estimate.value for base, (estimate, _) in found.items() if np.isfinite(estimate.value)}
    if not values:
        return next(iter(found)), reference
    lowest = min(values, key=values.get)
    if values[lowest] < 0:
        return lowest, lowest
    sure = {OPEN: 0, LIKELY: 1, DECIDED: 2}
    return min(values, key=lambda base: (sure[judged[base].word], values[base])), reference


def _remarks(
    study: ComparedRuns, sweep: Sweep, found: dict, level: float, quoted: str, winner: str,
    members: dict[str, pd.Series],
) -> list[str]:  # fmt: skip
    """The sweep's other differences, which of them cannot be told from the winner's, and what the winner costs."""
    remarks = []
    others = [base for base in found if base != quoted]
    if others:
        shown = (f"{base} {number(found[base][0])} ({interval_words(found[base][0])})" for base in others)
        remarks.append(f"Against the same: {'; '.join(shown)}.")
    if winner != sweep.reference:
        near = [base for base in others if _alike(study, base, winner, sweep, level)]
        remarks += [f"Not told apart from {winner}: {', '.join(near)}."] if near else []
    if any(not np.isfinite(estimate.value) for estimate, _ in found.values()):
        bad = [base for base, (estimate, _) in found.items() if not np.isfinite(estimate.value)]
        remarks.append(f"Not compared, for want of the same held-out samples or scored tokens: {', '.join(bad)}.")
    cost = {base: members[base]["flops"] / members[base]["samples"] for base in (quoted, sweep.reference)}
    ratio = cost[quoted] / cost[sweep.reference]
    if np.isfinite(ratio) and abs(ratio - 1) > 0.02:
        remarks.append(f"{quoted} spends {ratio:.2f} times the training FLOPs per sample of {sweep.reference}.")
    return remarks


def _alike(study: ComparedRuns, base: str, winner: str, sweep: Sweep, level: float) -> bool:
    cell = Cell(kind=sweep.kind)
    return judge(study.estimate([(base, cell), (winner, cell)], difference, level), level).word == OPEN


def _sight_row(study: ComparedRuns) -> dict:
    """What another sample's frames cost the baseline, over the samples with frames."""
    name, question = SIGHT
    row = {"sweep": name, "question": question, "runs": BASELINE, "unit": NATS, "comparisons": 1}
    if not study.seeds(BASELINE):
        return row | _not_run([BASELINE])
    mode = trained_mode(_first(study, BASELINE))
    looks = [Cell(mode, "other", kind=VISUAL), Cell(mode, kind=VISUAL)]
    estimate = study.estimate([(BASELINE, look) for look in looks], difference)
    if not np.isfinite(estimate.value):
        unknown = "The baseline was not evaluated with the frames of another sample."
        return row | {"verdict": NOT_RUN, "answer": unknown, "needs": "its evaluation", "n_seeds": 0}
    verdict = judge(estimate)
    side = "higher" if estimate.value > 0 else "lower"
    answer = found_words(
        verdict,
        f"another sample's frames give a loss {unit_words(estimate)} {side} than its own",
        "the data do not tell a sample's own frames from another's",
        estimate,
    )
    return row | _columns(estimate, LEVEL, verdict) | {"answer": answer, "measure": EVALUATION}


def _factorial_row(study: ComparedRuns) -> dict:
    """The interaction: how much more a deep query gives with the fine pass than without it."""
    name, question = FACTORIAL
    bases = list(CELLS.values())
    row = {"sweep": name, "question": question, "runs": ", ".join(bases), "unit": NATS, "comparisons": 1}
    missing = [base for base in bases if not study.seeds(base)]
    if missing:
        return row | _not_run(missing)
    terms = [(base, Cell()) for base in bases]
    effects, measure = {}, EVALUATION
    for effect, weights in EFFECTS.items():
        effects[effect] = study.estimate(terms, partial(contrast, weights=weights))
        if not np.isfinite(effects[effect].value):
            measure = VALIDATION
            effects[effect] = study.validation_estimate(bases, partial(contrast, weights=weights))
    depth, fine, interaction = effects.values()
    first = study.matched(bases)[0]
    differs = ", ".join(dict.fromkeys(filter(None, (study.data_differs(run, first[0]) for run in first[1:]))))
    verdict = judge(interaction, confounded=differs)
    gain = "more" if interaction.value < 0 else "less"
    answer = found_words(
        verdict,
        f"the fine pass gains {gain} with a deep query than with a shallow one, by {unit_words(interaction)}",
        "the data do not say whether the fine pass gains more with a deep query or with a shallow one",
        interaction,
    )
    answer = " ".join([answer, *data_words(differs, differs)])
    answer += f" Main effects: deep - shallow {number(depth)} ({interval_words(depth)}), with - without the fine pass"
    answer += f" {number(fine)} ({interval_words(fine)})."
    setting = lines(study.runs.loc[first[0]], ["model.deep_query", "model.fine_pass"])
    shown = {"answer": answer, "setting": setting, "data_differs": differs, "measure": measure}
    return row | _columns(interaction, LEVEL, verdict) | shown


def _question_row(study: ComparedRuns) -> dict:
    """(fine - coarse with the question first) - (the same with the video first), of the run trained in both orders."""
    name, question, base = QUESTION
    row = {"sweep": name, "question": question, "runs": base, "unit": NATS, "comparisons": 1}
    if not study.seeds(base):
        return row | _not_run([base])
    terms = [
        (base, Cell(mode, order=order, kind=VISUAL))
        for order in (QUESTION_FIRST, VIDEO_FIRST)
        for mode in ("coarse_fine", "coarse_only")
    ]
    estimate = study.estimate(terms, partial(contrast, weights=(1.0, -1.0, -1.0, 1.0)))
    verdict = judge(estimate)
    gain = "more" if estimate.value < 0 else "less"
    answer = found_words(
        verdict,
        f"knowing the question helps the fine pass {gain} than the coarse one, by {unit_words(estimate)}",
        "the data do not say whether the question helps the fine pass more than the coarse one",
        estimate,
    )
    helps = verdict.word == DECIDED and estimate.value < 0
    chosen = base if helps or not study.seeds(BASELINE) else BASELINE
    setting = lines(_first(study, chosen), ["data.question_first"])
    return row | _columns(estimate, LEVEL, verdict) | {
        "answer": answer, "setting": setting, "changes_default": helps, "measure": EVALUATION,
    }  # fmt: skip
