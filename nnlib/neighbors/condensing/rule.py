"""Condensing: only samples that the model gets wrong become centers, batch by batch.

The published rule, without its waiting: blocks of samples to come are compared with the centers
so far by other threads, and meet those that came since once it is their turn. Each thread computes
alone, as small steps gain nothing from several, and lose much beside other processes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from nnlib._common.runtime import single_thread, torch_defaults
from nnlib.attention import InfluenceCone, is_worthwhile, unsupported_reason
from nnlib.neighbors.condensing.centers import GrowingCenters
from nnlib.neighbors.condensing.votes import (
    AdditiveVotes,
    CachedDistanceVotes,
    CondensingRule,
    GridVotes,
    RecomputedVotes,
    UniformKNNVotes,
)

BLOCK_ROWS = 1024  # samples compared with the centers by one thread
AHEAD_ROWS = 4096  # samples compared before it is their turn, and the largest batch
SEARCH_ROWS = 4096  # a block's size with a grid: worth sorting the centers for, yet adding few
CACHED_BYTES = 64 << 20  # for the distances that are kept of samples ahead

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
    fresh = len(centers) == 0
    before = centers.distinct
    with torch.no_grad(), torch_defaults(), _threads(centers.x.device) as start:
        for blocks in passes:
            for block, votes in _compared(blocks, centers, rule, start):
                _condense_block(*block, votes(), centers, rule, callback)
                if len(centers) > rule.max_neighbors:
                    break
            if centers.distinct == before or len(centers) > rule.max_neighbors:
                break
            before = centers.distinct
    if fresh:  # what partial_fit has grown is to grow on
        centers.trim()


@contextmanager
def _threads(device: torch.device) -> Iterator[Callable]:
    """Give what starts a function in another thread, and returns what waits for its result."""
    threads = torch.get_num_threads()
    no_gradients = {"initializer": torch.set_grad_enabled, "initargs": (False,)}
    with single_thread(), ThreadPoolExecutor(threads, **no_gradients) as pool:
        several = threads > 1 and device.type == "cpu"
        yield (lambda *work: pool.submit(*work).result) if several else partial


def _compared(
    blocks: Iterable[Batch], centers: GrowingCenters, rule: CondensingRule, start: Callable
) -> Iterator[tuple[Batch, Callable]]:
    """Yield blocks, and what gives their votes, which are counted for later blocks meanwhile."""
    waiting: deque[tuple[Batch, Callable]] = deque()
    for block in blocks:
        rows = len(block[0])
        make_votes = _votes_class(rows, centers, rule, start)
        waiting.append((block, start(make_votes, block[0], centers, len(centers), rule)))
        while waiting and len(waiting) * rows >= _rows_ahead(centers, rule):
            yield waiting.popleft()
    yield from waiting


def _condense_block(x, y, numbers, votes, centers: GrowingCenters, rule, callback) -> None:
    for start in range(0, len(x), rule.batch_size):
        if len(centers) > rule.max_neighbors:
            return
        rows = slice(start, min(start + rule.batch_size, len(x)))
        votes.update(start)
        for chosen in _wrong_rounds(votes, y, rows, centers, rule):
            centers.append(x[chosen], y[chosen], None if numbers is None else numbers[chosen])
            votes.update(start, chosen)
        callback(rows.stop - start, len(centers))


def _wrong_rounds(
    votes, y: Tensor, rows: slice, centers: GrowingCenters, rule: CondensingRule
) -> Iterator[Int64[Tensor, " K"]]:
    """Yield what a batch adds, round by round; each round sees what earlier rounds added."""
    if len(centers) == 0:
        yield torch.arange(rows.start, rows.stop, device=y.device)
        return
    before = None
    for rounds in count(1):
        wrong, quality = rule.evaluate(votes.average(rows), y[rows])
        chosen = wrong.nonzero()[:, 0]
        good = len(chosen) == 0 or (before is not None and quality >= rule.target)
        # Without a limit, samples that contradict each other would be added forever.
        endless = rule.rounds is None and before is not None and torch.equal(chosen, before)
        if good or endless:
            return
        before = chosen
        yield chosen + rows.start
        if rounds == rule.rounds or len(centers) > rule.max_neighbors:
            return


def _votes_class(rows: int, centers, rule: CondensingRule, start: Callable) -> Callable:
    if rows <= SEARCH_ROWS and _is_searchable(rows, centers, rule):
        return GridVotes
    if rows > _rows_ahead(centers, rule):
        return partial(RecomputedVotes, start)  # a single batch is too large
    if rule.kernel.k is not None:
        return UniformKNNVotes
    return CachedDistanceVotes if rule.kernel.needs_nearest else AdditiveVotes


def _is_searchable(rows: int, centers: GrowingCenters, rule: CondensingRule) -> bool:
    width = rule.values(centers.y[:1]).shape[1] + 1
    return (
        isinstance(rule.kernel, InfluenceCone)
        and is_worthwhile(rows, len(centers), width)
        and not unsupported_reason(rule.kernel, centers.x)
    )


def _rows_ahead(centers: GrowingCenters, rule: CondensingRule) -> int:
    if not rule.kernel.needs_nearest:
        return AHEAD_ROWS
    return min(AHEAD_ROWS, CACHED_BYTES // (4 * max(1, len(centers))))


def block_rows(centers: GrowingCenters, rule: CondensingRule) -> int:
    """How many samples to compare at once: whole batches, fewer where distances are cached."""
    rows = min(BLOCK_ROWS, _rows_ahead(centers, rule) // 2)
    search_rows = min(SEARCH_ROWS, 8 * len(centers))
    if _is_searchable(search_rows, centers, rule):
        rows = search_rows
    return max(1, rows // rule.batch_size) * rule.batch_size
