"""Held-out samples that look like a training sample, of the same source or of another one."""

import numpy as np
import pandas as pd

from fvlm.data.shards.perceptual import near_duplicates
from fvlm.data_report.collect import Facts
from fvlm.data_report.tables import ALL

DISTANCE = 6  # bits of 63 in which the hashes of similar images may differ
PAIR = ["held_out_source", "held_out_row", "training_source", "training_row", "distance_bits"]


def closest_pairs(facts: list[Facts]) -> pd.DataFrame:
    """Return each affected held-out sample with the most similar sample of each training source, closest pairs first.

    A row is a position in the index of its source; `distance_bits` is the larger of the distances of the first and of
    the middle images.
    """
    held, training = _gather(facts, "held_out"), _distinct(*_gather(facts, "train"))
    i, j = near_duplicates(held[2], training[2], DISTANCE).T
    bits = np.bitwise_count(held[2][i] ^ training[2][j]).max(axis=1, initial=0)
    best = np.lexsort((j, bits, training[0][j], i))
    i, j, bits = i[best], j[best], bits[best]
    first = np.ones(len(i), bool)
    first[1:] = (i[1:] != i[:-1]) | (training[0][j[1:]] != training[0][j[:-1]])
    i, j, bits = i[first], j[first], bits[first]
    names = np.array([one.source.name for one in facts], object)
    columns = (names[held[0][i]], held[1][i], names[training[0][j]], training[1][j], bits.astype(int))
    found = pd.DataFrame(dict(zip(PAIR, columns, strict=True)), columns=PAIR)
    return found.sort_values("distance_bits", kind="stable", ignore_index=True)


def _gather(facts: list[Facts], part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return place of the source, row and hashes of all training samples ("train"), or of all held-out ones."""
    rows = [getattr(one.split, part) for one in facts]
    source = np.concatenate([np.full(len(own), place, np.int16) for place, own in enumerate(rows)])
    hashes = [one.hashes[own] for one, own in zip(facts, rows, strict=True)]
    return source, np.concatenate(rows), np.concatenate(hashes)


def _distinct(source: np.ndarray, rows: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the first of all samples of a source with the same hashes: one test card may be there ten thousand times."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0], source))
    ordered = np.column_stack([source[order].astype(np.uint64), hashes[order]])
    first = np.ones(len(order), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    kept = np.sort(order[first])
    return source[kept], rows[kept], hashes[kept]


def counts(facts: list[Facts], pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the number of affected samples by held-out source and training source; `all` counts a sample once.

    compared    held-out samples with an image that is not of one colour; texts have no image
    """
    compared = {one.source.name: int(one.hashes[one.split.held_out].any(axis=1).sum()) for one in facts}
    compared = {one.source.name: compared[one.source.name] for one in facts if len(one.split.held_out)}
    rows = []
    for name, total in {**compared, ALL: sum(compared.values())}.items():
        own = pairs if name == ALL else pairs[pairs["held_out_source"] == name]
        by_source = {ALL: own, **dict(list(own.groupby("training_source", sort=False)))}
        for training, chosen in by_source.items():
            affected = len(chosen[["held_out_source", "held_out_row"]].drop_duplicates())
            rows.append({
                "held_out_source": name, "training_source": training, "compared": total, "affected": affected,
                "share": affected / total if total else 0.0,
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["held_out_source", "training_source", "compared", "affected", "share"])


def chosen_to_show(pairs: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the closest pairs, at first at most two of the same two sources."""
    turn = pairs.groupby(["held_out_source", "training_source"], sort=False).cumcount()
    order = np.lexsort((np.arange(len(pairs)), pairs["distance_bits"], turn >= 2))
    return pairs.iloc[order[:most]].sort_values("distance_bits", kind="stable")
