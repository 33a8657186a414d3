"""Steps of equal cost and their micro-batches, planned from lengths before any sample is read."""

import numpy as np

from fvlm.data.batches.order import Order

BLOCK_STEPS = 64  # samples move only within blocks of this many steps


def balanced(order: Order, cost: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the places (n,) of an order, rearranged so that all steps of a block cost about the same.

    A sample only changes places with samples of its stream and block, so the mixture of every window does not change.

    cost        (n,) cost of each sample, in any unit
    """
    places = np.arange(len(order))
    for start in range(0, len(order), BLOCK_STEPS * batch_size):
        block = slice(start, start + BLOCK_STEPS * batch_size)
        step = np.arange(len(places[block])) // batch_size
        places[block] = start + _dealt(order.stream[block], step, cost[block])
    return places


def _dealt(stream: np.ndarray, step: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Return which sample of a block comes to each of its places, (n,).

    Stream by stream, the most expensive remaining samples go to the steps with the largest remaining budget per free
    place. Later streams count with their mean cost.
    """
    result, size = np.empty(len(step), np.int64), np.bincount(step)
    budget = cost.sum() / len(cost) * size  # remaining cost of each step
    means = {}
    for name in _widest_first(stream, cost):
        means[name] = cost[stream == name].mean()
        budget -= means[name] * np.bincount(step[stream == name], minlength=len(size))
    for name, mean in means.items():
        places = np.flatnonzero(stream == name)
        free = np.bincount(step[places], minlength=len(size))
        next_place = np.searchsorted(step[places], np.arange(len(size)))
        budget += mean * free
        remaining = places[np.argsort(-cost[places], kind="stable")]
        while len(remaining):
            steps = np.flatnonzero(free)
            order = np.argsort(-budget[steps] / free[steps], kind="stable")
            chosen = steps[order[: max(1, len(size) // 8)]]  # several steps at once, which is faster and nearly as even
            samples, remaining = remaining[: len(chosen)], remaining[len(chosen) :]
            result[places[next_place[chosen]]] = samples
            next_place[chosen] += 1
            free[chosen] -= 1
            budget[chosen] -= cost[samples]
    return result


def _widest_first(stream: np.ndarray, cost: np.ndarray) -> list[int]:
    """Streams by the spread of their costs, since similar costs fill the gaps that the others leave."""
    streams = np.unique(stream)
    spread = np.array([np.ptp(cost[stream == name]) for name in streams])
    return streams[np.argsort(-spread, kind="stable")].tolist()


def rank_shares(positions: np.ndarray, tokens: np.ndarray, ranks: int) -> list[list[int]]:
    """Deal a step's samples to `ranks` processes: equal numbers, up to one sample, and about equal costs.

    positions, tokens   (B,) visual positions and text tokens of each sample
    returns             numbers of the samples of each rank
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
    """Group samples within a budget of visual positions and text tokens; the largest sample is placed first.

    Each sample goes to the first group with room. A sample above the budget is a group of its own.
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
