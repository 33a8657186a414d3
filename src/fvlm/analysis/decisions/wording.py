"""Sentences of the decisions, made from their numbers."""

import numpy as np

from fvlm.analysis.compare.bootstrap import LEVEL, NO_INTERVAL, OVER_SEEDS, OVER_VIDEOS, Estimate
from fvlm.analysis.compare.noise import Noise, excludes_zero, rounded
from fvlm.analysis.compare.runs import EVALUATION
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, OPEN, judge

NATS, PERCENT, EXPONENT = "nats per token", "percent", "exponent"
SHORT = {PERCENT: " %", NATS: " nats per token", EXPONENT: ""}


def decimals(estimate: Estimate) -> int:
    """Two significant digits of the interval's half width, at most six decimals; without an interval, three digits."""
    half = (estimate.high - estimate.low) / 2
    digit, of = (1, half) if half > 0 else (2, abs(estimate.value))
    return int(np.clip(digit - np.floor(np.log10(of)), 1, 6)) if of > 0 else 4


def number(estimate: Estimate) -> str:
    """The value with its sign, or "not known"."""
    return f"{estimate.value:+.{decimals(estimate)}f}" if np.isfinite(estimate.value) else "not known"


def size(estimate: Estimate, unit: str = NATS) -> str:
    """The value without its sign, with its unit."""
    return f"{abs(estimate.value):.{decimals(estimate)}f}{SHORT[unit]}"


def side(estimate: Estimate, above: str = "higher", below: str = "lower") -> str:
    return above if estimate.value > 0 else below


def basis(estimate: Estimate, noise: Noise | None = None) -> str:
    """What a difference rests on: `-0.02 to +0.01, over 3 seeds`, or `one seed; about 42 times the spread of the last
    evaluations`. `noise`: as of `judge`."""
    if not np.isfinite(estimate.low):
        words = "one seed, no interval" if estimate.n_seeds == 1 else "no interval"
        if noise and np.isfinite(estimate.value):
            words = f"{'one seed' if noise.known else words}; {noise.words(estimate.value)}"
        return words
    places = decimals(estimate)
    how = {OVER_SEEDS: f"over {estimate.n_seeds} seeds", OVER_VIDEOS: "over evaluation videos, one seed"}
    words = how.get(estimate.interval, estimate.interval)
    about = f"; {noise.words(estimate.value)}" if noise and estimate.interval == OVER_VIDEOS else ""
    return f"{estimate.low:+.{places}f} to {estimate.high:+.{places}f}, {words}{about}"


def compared(estimate: Estimate, noise: Noise, columns: dict, words: str, reference: str) -> str:
    """How far the loss of `words` lies above or below that of `reference`, and how sure that is; `columns` of
    `judge`."""
    if not np.isfinite(estimate.value):
        start = f"{words[:1].upper()}{words[1:]} cannot be compared with {reference}:"
        return f"{start} other held-out samples or scored tokens, or none."
    clear = f"{words} gives a loss {size(estimate)} {side(estimate)} than {reference}"
    unclear = f"no significant difference between {words} and {reference}"
    return sentence(estimate, columns, clear, unclear, noise=noise)


def sentence(
    estimate: Estimate, columns: dict, clear: str, unclear: str, unit: str = NATS, noise: Noise | None = None
) -> str:
    """`clear` if the difference is decided, or likely; else `unclear`, or that one seed does not show it."""
    rests_on, verdict = basis(estimate, noise), columns["verdict"]
    if verdict == OPEN and noise and noise.known and estimate.interval != OVER_SEEDS:
        rests_on += f"; likely from {rounded(noise.times(columns['confidence']))} times"
    if not np.isfinite(estimate.value):
        text = "not known: the runs were not evaluated on the same samples."
    elif verdict == DECIDED:
        text = f"{clear} ({rests_on})."
    elif verdict == LIKELY:
        doubt = "; but the runs saw different data, which may be the cause" if estimate.interval == OVER_SEEDS else ""
        text = f"likely: {clear} ({rests_on}){doubt}."
    elif _within_noise(estimate, noise):
        text = f"{unclear}: {number(estimate)}{SHORT[unit]} ({rests_on})."
    else:
        text = f"no conclusion: {clear} ({rests_on})."
    return text[:1].upper() + text[1:]


def _within_noise(estimate: Estimate, noise: Noise | None) -> bool:
    """Whether an open difference is within its interval, or within what runs with several seeds show."""
    inside = estimate.interval != NO_INTERVAL and not excludes_zero(estimate)
    return inside or bool(noise and noise.runs)


def answered(
    estimate: Estimate, clear: str, unclear: str, confounded: str = "", unit: str = NATS, noise: Noise | None = None
) -> dict:
    """Return the columns of a difference of evaluation losses with its verdict and the answer in words."""
    columns = judge(estimate, LEVEL, confounded, noise)
    answer = sentence(estimate, columns, clear, unclear, unit, noise)
    return columns | {"answer": answer, "measure": EVALUATION}


def data_words(differs: str, confounded: str) -> list[str]:
    """A sentence on what differs in the data that two runs saw; none if nothing does."""
    if not differs:
        return []
    return [f"The runs saw different data: {differs}." if confounded else f"Their data differ on purpose: {differs}."]
