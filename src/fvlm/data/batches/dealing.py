"""Steps of equal cost, and the micro-batches of each: planned from lengths alone, before anything is read."""

import numpy as np

from fvlm.data.batches.order import Order

BLOCK_STEPS = 64  # samples move at most within so many steps


def balanced(order: Order, cost: np.ndarray, batch_size: int) -> np.ndarray:
    """Places (n,) of an order, rearranged so that all steps of a block cost about the same.

    cost        (n,) of each sample, in any unit

    A place is given to another sample of its own stream, so the mixture of every window stays as it was drawn, and so
    does the set of samples of every block of BLOCK_STEPS steps.
    """
    places = np.arange(len(order))
    for start in range(0, len(order), BLOCK_STEPS * batch_size):
        block = slice(start, start + BLOCK_STEPS * batch_size)
        step = np.arange(len(places[block])) // batch_size
        places[block] = start + _dealt(order.stream[block], step, cost[block])
    return places


def _dealt(stream: np.ndarray, step: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Which sample of a block stands in each of its places, (n,).

    Stream by stream, the dearest samples that are left go to the steps that lack most per place they have left, when
    what later streams will bring is taken at its mean.
    """
    result, size = np.empty(len(step), np.int64), np.bincount(step)
    lack = cost.sum() / len(cost) * size  # what each step may still cost
    means = {}
    for one in _widest_first(stream, cost):
        means[one] = cost[stream == one].mean()
        lack -= means[one] * np.bincount(step[stream == one], minlength=len(size))
    for one, mean in means.items():
        mine = np.flatnonzero(stream == one)
        free = np.bincount(step[mine], minlength=len(size))
        place = np.searchsorted(step[mine], np.arange(len(size)))
        lack += mean * free
        left = mine[np.argsort(-cost[mine], kind="stable")]
        while len(left):
            waiting = np.flatnonzero(free)
            order = np.argsort(-lack[waiting] / free[waiting], kind="stable")
            chosen = waiting[order[: max(1, len(size) // 8)]]  # several at once, which costs little evenness
            given, left = left[: len(chosen)], left[len(chosen) :]
            result[mine[place[chosen]]] = given
            place[chosen] += 1
            free[chosen] -= 1
            lack[chosen] -= cost[given]
    return result


def _widest_first(stream: np.ndarray, cost: np.ndarray) -> list[int]:
    """Streams by the spread of their costs: what varies little fills the gaps that the others leave."""
    streams = np.unique(stream)
    spread = np.array([np.ptp(cost[stream == one]) for one in streams])
    return streams[np.argsort(-spread, kind="stable")].tolist()


def rank_shares(positions: np.ndarray, tokens: np.ndarray, ranks: int) -> list[list[int]]:
    """A step's samples dealt to `ranks` processes: as many for each, to one, and about as costly.

    positions, tokens   (B,) visual positions and text tokens of each sample
    returns             numbers of samples; together they are the step, whatever the number of ranks
    """
    load, shares = np.zeros(ranks), [[] for _ in range(ranks)]
    cost = positions / max(1, positions.sum()) + tokens / max(1, tokens.sum())
    for i in np.argsort(-cost, kind="stable").tolist():
        least = min(len(share) for share in shares)
        rank = min((r for r in range(ranks) if len(shares[r]) == least), key=lambda r: load[r])
        shares[rank].append(i)
        load[rank] += cost[i]
    return [sorted(share) for share in shares]


def micro_batches(positions: np.ndarray, tokens: np.ndarray, most_positions: int, most_tokens: int) -> list[list[int]]:
    """Samples in groups within a budget of visual positions and text tokens: largest first, each where it first fits.

    A sample that exceeds the budget alone forms a group of its own.
    """
    groups: list[list[int]] = []
    room: list[list[int]] = []
    size = np.maximum(positions / most_positions, tokens / most_tokens)
    for i in np.argsort(-size, kind="stable").tolist():
        p, t = int(positions[i]), int(tokens[i])
        place = next((g for g, (rp, rt) in enumerate(room) if p <= rp and t <= rt), None)
        if place is None:
            place = len(groups)
            groups.append([])
            room.append([most_positions, most_tokens])
        groups[place].append(i)
        room[place][0] -= p
        room[place][1] -= t
    return [sorted(group) for group in groups]
