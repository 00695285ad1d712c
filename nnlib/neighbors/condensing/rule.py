"""Condensing: keep as centers only the samples that the model gets wrong, batch by batch.

The published rule, without its waiting: the centers found so far are compared with many batches in one product, and
what those batches add meanwhile joins the sums of those that are still to come.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from nnlib._common.runtime import single_thread
from nnlib.attention import InfluenceCone, Kernel, exact_products, is_worthwhile, unsupported_reason
from nnlib.neighbors.condensing.centers import CopiedCenters, IndexedCenters
from nnlib.neighbors.condensing.votes import (
    BLOCK_ROWS,
    AdditiveVotes,
    CachedDistanceVotes,
    CondensingRule,
    GridVotes,
    RecomputedVotes,
    UniformKNNVotes,
)

SEARCH_ROWS = (
    4096  # where centers are searched: enough to sort them for, few enough to add few meanwhile
)
BLOCK_BYTES = 64 << 20  # for their distances, where a kernel needs them kept

Batch = tuple[Float[Tensor, "S D"], Shaped[Tensor, "S *V"], Int64[Tensor, " S"] | None]
Callback = Callable[
    [int, int], None
]  # told how many samples more were seen, and how many centers there are


def condense_in_passes(
    passes: Iterable[Iterable[Batch]],
    centers: IndexedCenters | CopiedCenters,
    kernel: Kernel,
    rule: CondensingRule,
    watch: Callback = lambda samples, neighbors: None,
) -> None:
    """Condense pass after pass, each the blocks of a set, until one adds nothing new or the centers are too many."""
    before = centers.distinct
    for blocks in passes:
        condense(blocks, centers, kernel, rule, watch)
        now = centers.distinct
        if now == before or len(centers) > rule.max_neighbors:
            return
        before = now


def condense(
    blocks: Iterable[Batch],
    centers: IndexedCenters | CopiedCenters,
    kernel: Kernel,
    rule: CondensingRule,
    watch: Callback = lambda samples, neighbors: None,
) -> None:
    """Learn (x, y, numbers) blocks in their order, a batch at a time: what the model gets wrong joins `centers`.

    The first batch of all becomes centers whole. A later one is predicted and its wrong samples added, until it is good
    enough, nothing is wrong, or its rounds are over; a sample still wrong in the next round is added again. The pass
    ends once the centers outnumber `rule.max_neighbors`. `watch(samples, neighbors)` is called after every batch.
    """
    with torch.no_grad(), exact_products():
        for x, y, numbers in blocks:
            kind = _votes_for(x, centers, kernel, rule)
            with single_thread() if kind is GridVotes else nullcontext():
                votes = kind(x, rule.values(y), centers, kernel, rule)
                for start in range(0, len(x), rule.batch_size):
                    if len(centers) > rule.max_neighbors:
                        return
                    rows = slice(start, min(start + rule.batch_size, len(x)))
                    for picked in _wrong_rounds(votes, y, rows, centers, rule):
                        centers.append(
                            x[picked], y[picked], None if numbers is None else numbers[picked]
                        )
                        votes.add(picked, start)
                    watch(rows.stop - start, len(centers))


def _wrong_rounds(
    votes, y, rows: slice, centers, rule: CondensingRule
) -> Iterator[Int64[Tensor, " K"]]:
    """What a batch adds, round by round; each round sees what the rounds before have added."""
    if len(centers) == 0:
        yield torch.arange(rows.start, rows.stop, device=y.device)
        return
    rounds, before = 0, None
    wrong, _ = rule.evaluate(votes.average(rows), y[rows])
    while rounds != rule.rounds and len(centers) <= rule.max_neighbors:
        picked = wrong.nonzero()[:, 0]
        if len(picked) == 0 or (
            rule.rounds is None and before is not None and torch.equal(picked, before)
        ):
            return  # without a limit of rounds, samples that contradict each other would be added forever
        before = picked
        yield picked + rows.start
        rounds += 1
        wrong, quality = rule.evaluate(votes.average(rows), y[rows])
        if quality >= rule.target:
            return


def _votes_for(
    x: Tensor, centers: IndexedCenters | CopiedCenters, kernel: Kernel, rule: CondensingRule
) -> type:
    if len(x) <= SEARCH_ROWS and _searched(len(x), centers, kernel, rule):
        return GridVotes
    kept = 4 * len(x) * len(centers) if kernel.depends_on_others else 0
    if len(x) > BLOCK_ROWS or kept > BLOCK_BYTES:  # a single batch is too much already
        return RecomputedVotes
    if kernel.k is not None:
        return UniformKNNVotes
    return CachedDistanceVotes if kernel.depends_on_others else AdditiveVotes


def _searched(
    rows: int, centers: IndexedCenters | CopiedCenters, kernel: Kernel, rule: CondensingRule
) -> bool:
    width = rule.values(centers.y[:1]).shape[1] + 1
    return (
        isinstance(kernel, InfluenceCone)
        and is_worthwhile(rows, len(centers), width)
        and not unsupported_reason(kernel, centers.x)
    )


def block_rows(
    kernel: Kernel, centers: IndexedCenters | CopiedCenters, rule: CondensingRule
) -> int:
    """How many samples to compare at once: whole batches, and fewer of them where a kernel's distances are kept."""
    rows = (
        min(BLOCK_ROWS, BLOCK_BYTES // (4 * max(1, len(centers))))
        if kernel.depends_on_others
        else BLOCK_ROWS
    )
    if _searched(more := min(SEARCH_ROWS, 8 * len(centers)), centers, kernel, rule):
        rows = more
    return max(1, rows // rule.batch_size) * rule.batch_size
