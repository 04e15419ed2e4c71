"""The ranks of relevant items without a full sort. Needs no torch.

The ranking is by score, then by gallery position. Of each relevant item it is enough to know how many irrelevant items
stand before it, which sorting the irrelevant items' scores alone gives.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Ranks = NDArray[np.int64]
Mask = NDArray[np.bool_]

BUCKETS = 1 << 15


@dataclass(frozen=True)
class BoundedRanks:
    """Ranks of R relevant items, from 1, ascending: (R,) each.

    Attributes:
        ranks: where equal scores stand in the order of the gallery.
        best: where of equal scores all relevant items stand first.
        worst: where they stand last.
    """

    ranks: Ranks
    best: Ranks
    worst: Ranks


def rank_relevant(scores: Scores, start: int, end: int, positions: Ranks) -> Ranks:
    """Returns the ranks of the relevant items, from 1, in ascending order; see `rank_with_bounds`."""
    return rank_with_bounds(scores, start, end, positions).ranks


def rank_with_bounds(scores: Scores, start: int, end: int, positions: Ranks) -> BoundedRanks:
    """Returns the ranks of the relevant items, and the best and worst that another order of equal scores would give.

    Args:
        scores: (N,) of the gallery, in any order in which the relevant items stand side by side; higher is better.
        start: where the relevant items begin.
        end: where they end.
        positions: (N,) the gallery position of each, by which equal scores are ranked.
    """
    relevant = np.sort(scores[start:end])
    before, contested = _count_reaching(scores, start, end, relevant)
    values = np.sort(scores[contested])
    places = np.searchsorted(relevant, values, side="right")
    before += len(values) - np.cumsum(np.bincount(places, minlength=len(relevant) + 1))[:-1]
    found_before = np.arange(1, len(relevant) + 1)  # of the relevant items, with itself
    worst = before[::-1] + found_before
    ties = values[relevant[places - 1] == values]
    best = worst
    if len(ties):
        shared, equal = np.unique(ties, return_counts=True)
        first, last = (np.searchsorted(relevant, shared, side=side) for side in ("left", "right"))
        tied = np.concatenate([np.arange(*span) for span in zip(first, last, strict=True)])
        higher = before.copy()
        higher[tied] -= np.repeat(equal, last - first)
        best = higher[::-1] + found_before
        found = np.concatenate((np.arange(start, end), contested))
        irrelevant = np.arange(len(found)) >= len(relevant)
        before[tied] = _resolve_ties(shared, higher[first], scores[found], irrelevant, positions[found])[::-1]
    return BoundedRanks(before[::-1] + found_before, best, worst)


def _count_reaching(scores: Scores, start: int, end: int, relevant: Scores) -> tuple[Ranks, Ranks]:
    """Returns how many irrelevant scores are certain to exceed each relevant one, and where the contested ones stand in
    `scores`: the irrelevant scores that are so near to a relevant one that they have to be compared with it.

    The range of the relevant scores is cut into equal buckets. Most irrelevant scores fall into one without a relevant
    score, and counting each bucket tells how many they exceed; the few others are contested. (Sorting all of them takes
    three to seven times longer on AMD's Zen 4 with NumPy 2.4, and as long as this on others.)

    Args:
        scores: (N,) of the gallery.
        start: where the relevant items begin.
        end: where they end.
        relevant: their scores, ascending.
    """
    lowest, highest = relevant[0], relevant[-1]
    with np.errstate(over="ignore", divide="ignore"):
        scale = np.float32(BUCKETS - 3) / np.float32(highest - lowest)
    if not 0 < scale < np.inf:  # one score, or a range beyond the numbers' own
        reaching = scores >= lowest
        reaching[start:end] = False
        return np.zeros(len(relevant), np.int64), np.flatnonzero(reaching)
    # Bucket 0 is below all relevant scores, the last one above; what rounding puts elsewhere is contested at worst.
    buckets = np.clip((scores - lowest) * scale + 1, 0, BUCKETS - 1).astype(np.int64)
    occupied = ((relevant - lowest) * scale + 1).astype(np.int64)
    buckets[start:end] = 0
    is_occupied = np.zeros(BUCKETS, dtype=bool)
    is_occupied[occupied] = True
    contested = np.flatnonzero(is_occupied[buckets])
    counts = np.bincount(buckets, minlength=BUCKETS)
    counts[occupied] = 0
    up_to = np.cumsum(counts)
    return up_to[-1] - up_to[occupied], contested


def _resolve_ties(values: Scores, higher: Ranks, scores: Scores, irrelevant: Mask, positions: Ranks) -> Ranks:
    """Returns how many irrelevant items stand before each tied relevant item, in the order of the ranking.

    Args:
        values: the scores that relevant and irrelevant items have in common, ascending.
        higher: number of irrelevant items with a higher score than each of them.
        scores: of items among which all tied ones are.
        irrelevant: whether each of these is irrelevant.
        positions: their gallery positions.
    """
    place = np.minimum(np.searchsorted(values, scores), len(values) - 1)
    equal = np.flatnonzero(values[place] == scores)
    place = place[equal]
    ranking = np.lexsort((positions[equal], -place))
    place, irrelevant = place[ranking], irrelevant[equal[ranking]]
    count = np.cumsum(irrelevant)  # irrelevant items up to here, over all groups of equal scores
    group_start = np.searchsorted(-place, -place, side="left")
    within: Ranks = count - np.concatenate(([0], count))[group_start]
    result: Ranks = (higher[place] + within)[~irrelevant]
    return result
