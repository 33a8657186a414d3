"""How full and how even the planned steps of a run are."""

from itertools import chain

import numpy as np

from fvlm.data.loader import Steps
from fvlm.model.packing import first_fit

MOST_STEPS = 1000  # looked at, evenly spaced


def fill_of(steps: Steps, flops: np.ndarray) -> dict[str, float]:
    """Shares between 0 and 1, from lengths alone.

    flops       (n,) training FLOPs of each sample of the order
    returns     frames, tokens: what micro-batches use of the budgets `micro_frames` and `micro_tokens`
                rows: cells of the language model's packed rows that hold a token; the others are computed for nothing
                spread: standard deviation of the steps' FLOPs over their mean, the last and shorter step left out
                micro_batches: mean number per step, of all ranks
    """
    chosen = np.unique(np.linspace(0, len(steps) - 1, MOST_STEPS).round().astype(int))
    visual, order = steps.visual_tokens, steps.order
    used, cells, count = np.zeros(2), np.zeros(2), 0
    for step in chosen.tolist():
        for group in chain.from_iterable(steps.groups_by_rank(step)):
            positions, tokens = order.at(group).sequences()
            _, _, rows, width = first_fit(positions * visual + tokens)
            used += (positions.sum(), tokens.sum())
            cells += ((positions * visual + tokens).sum(), rows * width)
            count += 1
    full = len(order) // steps.batch_size
    of_step = flops[: full * steps.batch_size].reshape(full, -1).sum(1)
    return {
        "frames": used[0] / (count * steps.most_positions),
        "tokens": used[1] / (count * steps.most_tokens),
        "rows": cells[0] / cells[1],
        "spread": float(of_step.std() / of_step.mean()) if full else 0.0,
        "micro_batches": count / len(chosen),
    }


def said_of(fill: dict[str, float]) -> str:
    return (
        f"{fill['micro_batches']:.1f} micro-batches a step, {fill['frames']:.0%} of micro_frames and "
        f"{fill['tokens']:.0%} of micro_tokens used; {fill['rows']:.0%} of the packed rows are tokens; "
        f"steps' FLOPs differ by {fill['spread']:.1%}"
    )
