"""Decisions from the scaling grid: foveated against pooled tokens at equal compute, and the best model size."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fvlm.analysis.compare.bootstrap import OVERALL, Estimate
from fvlm.analysis.compare.gap import corrected, grid_base, percent
from fvlm.analysis.compare.runs import ComparedRuns
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, OPEN, Verdict, judge, not_run, outcome
from fvlm.analysis.decisions.wording import EXPONENT, PERCENT, interval_words, number, sentence, side, size
from fvlm.analysis.fits.grid import grid_points

SIDES = ("foveated", "multi_token")
MINIMA = "iso-FLOP minima"  # the fit that an exponent is taken from
OVER_BUDGETS = "t over iso-FLOP minima"
COMPUTE, PARAMETERS, GROWTH = "equal compute", "equal parameters", "exponent"
QUESTIONS = {
    COMPUTE: "Is the foveated model better than pooled tokens at equal training compute?",
    PARAMETERS: "Is it better at equal compute and equal parameters?",
    GROWTH: "How does the best model size grow with compute?",
}
NO_GRID = not_run("The study has no pairs of runs in a scaling grid.", "Train the scaling grid.")


@dataclass(frozen=True)
class Budget:
    """The sizes that both architectures have at one budget: parameters (k,) and base names, ascending in N."""

    name: str
    n: tuple[np.ndarray, np.ndarray]
    bases: tuple[list[str], list[str]]

    @property
    def pairs(self) -> int:
        return len(self.n[0])


def budgets_of(study: ComparedRuns) -> list[Budget]:
    found = []
    points = grid_points(study.runs.reset_index(drop=True)).sort_values("C", kind="stable")
    for name, own in points.groupby("budget", sort=False):
        by_side = [own[own["architecture"] == side].set_index("size").sort_values("N") for side in SIDES]
        common = [size for size in by_side[0].index if size in by_side[1].index]
        if common:
            n = tuple(side.loc[common, "N"].to_numpy(float) for side in by_side)
            bases = tuple([grid_base(study, side, size, name) for size in common] for side in SIDES)
            found.append(Budget(name, n, bases))
    return found


def at_equal_compute(budgets: list[Budget], losses: np.ndarray) -> np.ndarray:
    """Losses (terms, ...) in the order of `bases` -> the mean gap (...) over budgets and sizes, percent."""
    return np.mean(
        [percent(one[pair], two[pair]) for b, one, two in _split(budgets, losses) for pair in range(b.pairs)], 0
    )


def at_equal_parameters(budgets: list[Budget], losses: np.ndarray) -> np.ndarray:
    """The mean of the parameter-corrected gaps (...) in both directions that extrapolate no curve, percent."""
    gaps = []
    for budget, one, two in _split(budgets, losses):
        for pair in range(budget.pairs if budget.pairs > 1 else 0):
            found = corrected(budget.n[0], one, budget.n[1], two, pair)
            gaps += [found[name] for name in ("at_foveated", "at_baseline") if not found[f"{name}_extrapolates"]]
    return np.mean(gaps, 0) if gaps else np.full(losses.shape[1:], np.nan)


def bases(budgets: list[Budget]) -> list[str]:
    return [base for budget in budgets for side in budget.bases for base in side]


def _split(budgets: list[Budget], losses: np.ndarray):
    """(budget, foveated losses (k, ...), baseline losses (k, ...)) of each budget."""
    start = 0
    for budget in budgets:
        middle, end = start + budget.pairs, start + 2 * budget.pairs
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
    pairs = sum(budget.pairs for budget in budgets)
    row = _row(name, f"{pairs} pairs of the grid at {', '.join(b.name for b in budgets)}", PERCENT)
    if not budgets:
        return row | {"runs": "scaling grid"} | NO_GRID

    def gap(losses: np.ndarray) -> np.ndarray:
        return combine(budgets, losses)

    measure = "evaluation loss"
    estimate = study.estimate([(base, OVERALL) for base in bases(budgets)], gap)
    if not np.isfinite(estimate.value):
        measure = "final validation loss"
        estimate = study.validation_estimate(bases(budgets), gap, "final")
    verdict, answer = _gap_verdict(estimate, name, pairs)
    better = "multi_token" if verdict.word == DECIDED and estimate.value > 0 else "foveated"
    return row | outcome(estimate, verdict) | {
        "answer": answer, "setting": f"model.architecture: {better}", "changes_default": better != SIDES[0],
        "measure": measure,
    }  # fmt: skip


def _gap_verdict(estimate: Estimate, name: str, pairs: int) -> tuple[Verdict, str]:
    if not np.isfinite(estimate.value) and name == COMPUTE:
        return judge(estimate), (
            "The runs of the grid were evaluated on different held-out samples or scored tokens, or not at all."
        )
    if not np.isfinite(estimate.value):
        needs = "Train sizes that are close enough to read off a curve without extrapolation."
        return Verdict(OPEN, needs=needs), "No loss can be read off at the other's parameters without extrapolation."
    at = "at equal compute" + (" and parameters" if name == PARAMETERS else "")
    mean = f"averaged over {pairs} pairs of the grid"
    mean += " where no curve is extrapolated" if name == PARAMETERS else ""
    verdict = judge(estimate)
    return verdict, sentence(
        verdict,
        f"{at}, the foveated model's loss is {size(estimate, PERCENT)} {side(estimate)} than that of pooled tokens, "
        f"{mean}",
        f"no significant difference between the foveated model and pooled tokens {at}, {mean}",
        estimate,
        PERCENT,
    )


def _exponent_row(study: ComparedRuns, fit: dict, isoflop: pd.DataFrame) -> dict:
    """At most likely: its interval is over the minima of the budgets, not over seeds."""
    architecture = fit["architecture"]
    row = _row(GROWTH, f"scaling grid, {architecture}", EXPONENT)
    words = {"foveated": "foveated model", "multi_token": "model with pooled tokens"}
    model = words.get(architecture, architecture)
    row |= {"sweep": f"{GROWTH}, {architecture}", "question": f"{row['question'][:-1]}, {model}?"}
    seeds = int(study.of_family("grid").groupby("base")["run"].size().min())
    if not fit["identified"]:
        verdict = Verdict(OPEN, needs="Train sizes around the best one at three budgets or more.")
        answer = f"The best size does not follow from the grid: {fit['reason']}."
        return row | outcome(Estimate(n_seeds=seeds), verdict) | {
            "answer": answer, "measure": "final validation loss",
        }  # fmt: skip
    estimate = Estimate(fit["value"], fit["low"], fit["high"], OVER_BUDGETS, seeds)
    clear = estimate.low > 0 or estimate.high < 0
    needs = "Train more seeds of the grid: the interval does not separate the noise of the seed."
    verdict = Verdict(LIKELY if clear else OPEN, needs=needs)
    start = "The best number of parameters grows as" if clear else "Not known whether the best size grows with compute:"
    answer = f"{start} C to the power {number(estimate)} ({interval_words(estimate)})."
    if fit["data_starved"]:
        answer += f" The runs saw at most {fit['tokens_per_parameter']:.2g} tokens per parameter: do not extrapolate."
    setting, about = _best_size(study, architecture, isoflop)
    return row | outcome(estimate, verdict) | {
        "answer": answer + about, "setting": setting if clear else "", "measure": "final validation loss",
    }  # fmt: skip


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
