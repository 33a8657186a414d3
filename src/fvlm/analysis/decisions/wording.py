"""Sentences of the decisions, made from their numbers."""

import numpy as np

from fvlm.analysis.compare.bootstrap import OVER_SEEDS, OVER_VIDEOS, Estimate
from fvlm.analysis.compare.runs import EVALUATION
from fvlm.analysis.decisions.verdicts import DECIDED, LIKELY, judge

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


def interval_words(estimate: Estimate) -> str:
    """`-0.02 to +0.01, over 3 seeds`."""
    if not np.isfinite(estimate.low):
        return "one seed, no interval" if estimate.n_seeds == 1 else "no interval"
    places = decimals(estimate)
    how = {OVER_SEEDS: f"over {estimate.n_seeds} seeds", OVER_VIDEOS: "over evaluation videos, one seed"}
    words = how.get(estimate.interval, estimate.interval)
    return f"{estimate.low:+.{places}f} to {estimate.high:+.{places}f}, {words}"


def compared(estimate: Estimate, verdict: str, words: str, reference: str) -> str:
    """How far the loss of `words` lies above or below that of `reference`, and how sure that is."""
    if not np.isfinite(estimate.value):
        start = f"{words[:1].upper()}{words[1:]} cannot be compared with {reference}:"
        return f"{start} other held-out samples or scored tokens, or none."
    clear = f"{words} gives a loss {size(estimate)} {side(estimate)} than {reference}"
    return sentence(verdict, clear, f"no significant difference between {words} and {reference}", estimate)


def sentence(verdict: str, clear: str, unclear: str, estimate: Estimate, unit: str = NATS) -> str:
    """`clear` if the interval excludes 0, with a doubt if that does not decide; else `unclear`."""
    if not np.isfinite(estimate.value):
        text = "not known: the runs were not evaluated on the same samples."
    elif verdict == DECIDED:
        text = f"{clear} ({interval_words(estimate)})."
    elif verdict == LIKELY:
        doubt = "; but the runs saw different data, which may be the cause" if estimate.interval == OVER_SEEDS else ""
        text = f"likely: {clear} ({interval_words(estimate)}){doubt}."
    elif np.isfinite(estimate.low):
        text = f"{unclear}: {number(estimate)}{SHORT[unit]} ({interval_words(estimate)})."
    else:
        text = f"no conclusion without an interval: {clear} ({interval_words(estimate)})."
    return text[:1].upper() + text[1:]


def answered(estimate: Estimate, clear: str, unclear: str, confounded: str = "", unit: str = NATS) -> dict:
    """Return the columns of a difference of evaluation losses with its verdict and the answer in words."""
    columns = judge(estimate, confounded=confounded)
    answer = sentence(columns["verdict"], clear, unclear, estimate, unit)
    return columns | {"answer": answer, "measure": EVALUATION}


def data_words(differs: str, confounded: str) -> list[str]:
    """A sentence on what differs in the data that two runs saw; none if nothing does."""
    if not differs:
        return []
    return [f"The runs saw different data: {differs}." if confounded else f"Their data differ on purpose: {differs}."]
