"""Condensing: only samples that the model gets wrong become centers, batch by batch.

The published rule, without its waiting: the centers so far are compared with many batches in one
product, and those that a batch adds join the sums of the samples still to come.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from nnlib._common.runtime import full_precision, single_thread
from nnlib.attention import InfluenceCone, is_worthwhile, unsupported_reason
from nnlib.neighbors.condensing.centers import GrowingCenters
from nnlib.neighbors.condensing.votes import (
    BLOCK_ROWS,
    AdditiveVotes,
    CachedDistanceVotes,
    CondensingRule,
    GridVotes,
    RecomputedVotes,
    UniformKNNVotes,
    VoteCache,
)

SEARCH_ROWS = 4096  # a block's size with a grid: worth sorting the centers for, yet adding few
BLOCK_BYTES = 64 << 20  # for a block's cached distances

Batch = tuple[Float[Tensor, "S D"], Shaped[Tensor, "S *V"], Int64[Tensor, " S"] | None]
Callback = Callable[[int, int], None]  # takes the numbers of samples in a batch, and of centers


def condense(
    passes: Iterable[Iterable[Batch]],
    centers: GrowingCenters,
    rule: CondensingRule,
    callback: Callback,
) -> None:
    """Learn blocks of (x, y, row numbers) in their order: wrong samples join the centers.

    The first batch of all becomes centers whole. A later one is predicted and its wrong samples
    added, until it is good enough, nothing is wrong, or its rounds are over; a sample still wrong
    in the next round is added again. Learning ends after a pass that adds no new sample, or once
    the centers outnumber the rule's `max_neighbors`. `callback` is called after every batch.
    """
    before = centers.distinct
    with torch.no_grad(), full_precision():
        for blocks in passes:
            for block in blocks:
                _condense_block(*block, centers, rule, callback)
                if len(centers) > rule.max_neighbors:
                    return
            distinct = centers.distinct
            if distinct == before:
                return
            before = distinct


def _condense_block(x, y, numbers, centers: GrowingCenters, rule, callback: Callback) -> None:
    cache_class = _cache_class(len(x), centers, rule)
    # A grid's steps are too small for threads, which would only wait for each other.
    with single_thread() if cache_class is GridVotes else nullcontext():
        votes = cache_class(x, rule.values(y), centers, rule)
        for start in range(0, len(x), rule.batch_size):
            if len(centers) > rule.max_neighbors:
                return
            rows = slice(start, min(start + rule.batch_size, len(x)))
            for chosen in _wrong_rounds(votes, y, rows, centers, rule):
                chosen_numbers = None if numbers is None else numbers[chosen]
                centers.append(x[chosen], y[chosen], chosen_numbers)
                votes.add(chosen, start)
            callback(rows.stop - start, len(centers))


def _wrong_rounds(
    votes: VoteCache, y: Tensor, rows: slice, centers: GrowingCenters, rule: CondensingRule
) -> Iterator[Int64[Tensor, " K"]]:
    """Yield what a batch adds, round by round; each round sees what earlier rounds added."""
    if len(centers) == 0:
        yield torch.arange(rows.start, rows.stop, device=y.device)
        return
    rounds = 0
    before = None
    wrong, _ = rule.evaluate(votes.average(rows), y[rows])
    while rounds != rule.rounds and len(centers) <= rule.max_neighbors:
        chosen = wrong.nonzero()[:, 0]
        repeated = before is not None and torch.equal(chosen, before)
        if len(chosen) == 0 or (rule.rounds is None and repeated):
            return  # without a limit, samples that contradict each other would be added forever
        before = chosen
        yield chosen + rows.start
        rounds += 1
        wrong, quality = rule.evaluate(votes.average(rows), y[rows])
        if quality >= rule.target:
            return


def _cache_class(rows: int, centers: GrowingCenters, rule: CondensingRule) -> type:
    if rows <= SEARCH_ROWS and _is_searchable(rows, centers, rule):
        return GridVotes
    caches = rule.kernel.depends_on_others
    cached_bytes = 4 * rows * len(centers) if caches else 0
    if rows > BLOCK_ROWS or cached_bytes > BLOCK_BYTES:
        return RecomputedVotes  # a single batch is too large
    if rule.kernel.k is not None:
        return UniformKNNVotes
    return CachedDistanceVotes if caches else AdditiveVotes


def _is_searchable(rows: int, centers: GrowingCenters, rule: CondensingRule) -> bool:
    width = rule.values(centers.y[:1]).shape[1] + 1
    return (
        isinstance(rule.kernel, InfluenceCone)
        and is_worthwhile(rows, len(centers), width)
        and not unsupported_reason(rule.kernel, centers.x)
    )


def block_rows(centers: GrowingCenters, rule: CondensingRule) -> int:
    """How many samples to compare at once: whole batches, fewer where distances are cached."""
    rows = BLOCK_ROWS
    if rule.kernel.depends_on_others:
        rows = min(BLOCK_ROWS, BLOCK_BYTES // (4 * max(1, len(centers))))
    search_rows = min(SEARCH_ROWS, 8 * len(centers))
    if _is_searchable(search_rows, centers, rule):
        rows = search_rows
    return max(1, rows // rule.batch_size) * rule.batch_size
