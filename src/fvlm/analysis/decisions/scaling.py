"""Decisions from the scaling grid: foveated against pooled tokens at equal compute, and the best model size."""

import numpy as np
import pandas as pd

from fvlm.analysis.compare.bootstrap import Estimate
from fvlm.analysis.compare.gap import Budget, budgets_of, corrected, percent
from fvlm.analysis.compare.noise import Noise
from fvlm.analysis.compare.runs import ComparedRuns
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, OPEN, judge, not_run, verdict
from fvlm.analysis.decisions.wording import EXPONENT, PERCENT, answered, basis, number, side, size

MINIMA = "iso-FLOP minima"  # the fit that an exponent is taken from
OVER_BUDGETS = "t over iso-FLOP minima"
COMPUTE, PARAMETERS, GROWTH = "equal compute", "equal parameters", "exponent"
QUESTIONS = {
    COMPUTE: "Is the foveated model better than pooled tokens at equal training compute?",
    PARAMETERS: "Is it better at equal compute and equal parameters?",
    GROWTH: "How does the best model size grow with compute?",
}
NO_GRID = not_run("The study has no pairs of runs in a scaling grid.", "Train the scaling grid.")


def at_equal_compute(budgets: list[Budget], losses: np.ndarray) -> np.ndarray:
    """Losses (terms, ...) in the order of `bases` -> the mean gap (...) over budgets and sizes, percent."""
    return np.mean(
        [percent(one[pair], two[pair]) for b, one, two in _split(budgets, losses) for pair in range(len(b.sizes))], 0
    )


def at_equal_parameters(budgets: list[Budget], losses: np.ndarray) -> np.ndarray:
    """The mean of the parameter-corrected gaps (...) in both directions that extrapolate no curve, percent."""
    gaps = []
    for budget, one, two in _split(budgets, losses):
        for pair in range(len(budget.sizes) if len(budget.sizes) > 1 else 0):
            found = corrected(budget.n[0], one, budget.n[1], two, pair)
            gaps += [found[name] for name in ("at_foveated", "at_baseline") if not found[f"{name}_extrapolates"]]
    return np.mean(gaps, 0) if gaps else np.full(losses.shape[1:], np.nan)


def bases(budgets: list[Budget]) -> list[str]:
    return [base for budget in budgets for side in budget.bases for base in side]


def _split(budgets: list[Budget], losses: np.ndarray):
    """(budget, foveated losses (k, ...), baseline losses (k, ...)) of each budget."""
    start = 0
    for budget in budgets:
        middle, end = start + len(budget.sizes), start + 2 * len(budget.sizes)
        yield budget, losses[start:middle], losses[middle:end]
        start = end


def with_seeds(study: ComparedRuns, budgets: list[Budget]) -> list[Budget]:
    """The budgets whose runs share two seeds or more; all of them where none does."""
    return [budget for budget in budgets if len(study.matched(bases([budget]))) > 1] or budgets


def scaling_rows(study: ComparedRuns, fits: pd.DataFrame, isoflop: pd.DataFrame) -> list[dict]:
    every = budgets_of(study)
    budgets = with_seeds(study, every)
    rows = [
        _gap_row(study, budgets, COMPUTE, at_equal_compute),
        _gap_row(study, budgets, PARAMETERS, at_equal_parameters),
    ]
    if left_out := ", ".join(budget.name for budget in every if budget not in budgets):
        for row in rows:
            row["answer"] += f" Left out, since their runs have one seed: {left_out}."
    exponents = fits[(fits["parameter"] == "N_opt_exponent") & (fits["fit"] == MINIMA)].to_dict("records")
    rows += [_exponent_row(study, fit, isoflop) for fit in exponents]
    return rows if exponents else [*rows, _row(GROWTH, "scaling grid", EXPONENT) | NO_GRID]


def _row(name: str, runs: str, unit: str) -> dict:
    return {"sweep": name, "question": QUESTIONS[name], "runs": runs, "unit": unit, "comparisons": 1}


def _gap_row(study: ComparedRuns, budgets: list[Budget], name: str, combine) -> dict:
    pairs = sum(len(budget.sizes) for budget in budgets)
    row = _row(name, f"{pairs} pairs of the grid at {', '.join(b.name for b in budgets)}", PERCENT)
    if not budgets:
        return row | {"runs": "scaling grid"} | NO_GRID

    def gap(losses: np.ndarray) -> np.ndarray:
        return combine(budgets, losses)

    estimate, measure, noise = study.quoted(bases(budgets), gap, which="final")
    row |= _gap_answer(estimate, noise, name, pairs)
    better = "multi_token" if row["verdict"] == DECIDED and estimate.value > 0 else "foveated"
    row |= {"setting": f"model.architecture: {better}", "changes_default": better == "multi_token"}
    return row | {"measure": measure}


def _gap_answer(estimate: Estimate, noise: Noise, name: str, pairs: int) -> dict:
    if not np.isfinite(estimate.value) and name == COMPUTE:
        answer = "The runs of the grid were evaluated on different held-out samples or scored tokens, or not at all."
        return judge(estimate) | {"answer": answer}
    if not np.isfinite(estimate.value):
        needs = "Train sizes that are close enough to read off a curve without extrapolation."
        answer = "No loss can be read off at the other's parameters without extrapolation."
        return judge(estimate) | verdict(OPEN, needs) | {"answer": answer}
    at = "at equal compute" + (" and parameters" if name == PARAMETERS else "")
    mean = f"averaged over {pairs} pairs of the grid"
    mean += " where no curve is extrapolated" if name == PARAMETERS else ""
    return answered(
        estimate,
        f"{at}, the foveated model's loss is {size(estimate, PERCENT)} {side(estimate)} than that of pooled tokens, "
        f"{mean}",
        f"no significant difference between the foveated model and pooled tokens {at}, {mean}",
        unit=PERCENT,
        noise=noise,
    )


def _exponent_row(study: ComparedRuns, fit: dict, isoflop: pd.DataFrame) -> dict:
    """At most likely: its interval is over the minima of the budgets, not over seeds."""
    architecture = fit["architecture"]
    row = _row(GROWTH, f"scaling grid, {architecture}", EXPONENT)
    words = {"foveated": "foveated model", "multi_token": "model with pooled tokens"}
    model = words.get(architecture, architecture)
    row |= {"sweep": f"{GROWTH}, {architecture}", "question": f"{row['question'][:-1]}, {model}?"}
    seeds = int(study.of_family("grid").groupby("base")["run"].size().min())
    row["measure"] = "final validation loss"
    if not fit["identified"]:
        needs = "Train sizes around the best one at three budgets or more."
        row["answer"] = f"The best size does not follow from the grid: {fit['reason']}."
        return row | judge(Estimate(n_seeds=seeds)) | verdict(OPEN, needs)
    estimate = Estimate(fit["value"], fit["low"], fit["high"], OVER_BUDGETS, seeds)
    clear = estimate.low > 0 or estimate.high < 0
    needs = "Train more seeds of the grid: the interval does not separate the noise of the seed."
    start = "The best number of parameters grows as" if clear else "Not known whether the best size grows with compute:"
    answer = f"{start} C to the power {number(estimate)} ({basis(estimate)})."
    if fit["data_starved"]:
        answer += f" The runs saw at most {fit['tokens_per_parameter']:.2g} tokens per parameter: do not extrapolate."
    setting, about = _best_size(study, architecture, isoflop)
    row |= judge(estimate) | verdict(LIKELY if clear else OPEN, needs)
    return row | {"answer": answer + about, "setting": setting if clear else ""}


def _best_size(study: ComparedRuns, architecture: str, isoflop: pd.DataFrame) -> tuple[str, str]:
    """The language model of the size tried that is nearest to the best one at the largest budget with a minimum."""
    used = isoflop[(isoflop["architecture"] == architecture) & isoflop["used"]]
    grid = study.of_family("grid")
    own = grid[grid["architecture"] == architecture]
    if used.empty or own.empty:
        return "", ""
    last = used.loc[used["flops"].idxmax()]
    nearest = own.loc[(np.log(own["params_total"].astype(float)) - np.log(last["n_opt"])).abs().idxmin()]
    about = f" At {last['budget']} the best of the sizes tried is {nearest['size']}"
    name = nearest.get("language", "")
    setting = f"model.language: {name}" if isinstance(name, str) and name else ""
    return setting, f"{about} (minimum at {last['n_opt']:.3g} parameters)."
