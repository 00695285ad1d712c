"""Condensing: keep as centers only the samples that the model gets wrong, batch by batch.

The published rule, without its waiting: the centers found so far are compared with many batches in one product, and
what those batches add meanwhile joins the sums of those that are still to come.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from nnlib.blocks import exact_products
from nnlib.device import one_thread
from nnlib.kernels import InfluenceCone, Kernel
from nnlib.rows import Chosen, Copied
from nnlib.search import hindrance, pays
from nnlib.votes import BLOCK_ROWS, CountedVotes, FreshVotes, KeptVotes, Rule, SearchedVotes, SummedVotes

SEARCH_ROWS = 4096  # where centers are searched: enough to sort them for, few enough to add few meanwhile
BLOCK_BYTES = 64 << 20  # for their distances, where a kernel needs them kept

Batch = tuple[Float[Tensor, "S D"], Shaped[Tensor, "S *V"], Int64[Tensor, " S"] | None]
Watch = Callable[[int, int], None]  # told how many samples more were seen, and how many centers there are


def condense_in_passes(
    passes: Iterable[Iterable[Batch]],
    centers: Chosen | Copied,
    kernel: Kernel,
    rule: Rule,
    watch: Watch = lambda samples, neighbors: None,
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
    centers: Chosen | Copied,
    kernel: Kernel,
    rule: Rule,
    watch: Watch = lambda samples, neighbors: None,
) -> None:
    """Learn (x, y, numbers) blocks in their order, a batch at a time: what the model gets wrong joins `centers`.

    The first batch of all becomes centers whole. A later one is predicted and its wrong samples added, until it is good
    enough, nothing is wrong, or its rounds are over; a sample still wrong in the next round is added again. The pass
    ends once the centers outnumber `rule.max_neighbors`. `watch(samples, neighbors)` is called after every batch.
    """
    with torch.no_grad(), exact_products():
        for x, y, numbers in blocks:
            kind = _votes_for(x, centers, kernel, rule)
            with one_thread() if kind is SearchedVotes else nullcontext():
                votes = kind(x, rule.values(y), centers, kernel, rule)
                for start in range(0, len(x), rule.batch_size):
                    if len(centers) > rule.max_neighbors:
                        return
                    rows = slice(start, min(start + rule.batch_size, len(x)))
                    for picked in _mistakes(votes, y, rows, centers, rule):
                        centers.append(x[picked], y[picked], None if numbers is None else numbers[picked])
                        votes.add(picked, start)
                    watch(rows.stop - start, len(centers))


def _mistakes(votes, y, rows: slice, centers, rule: Rule) -> Iterator[Int64[Tensor, " K"]]:
    """What a batch adds, round by round; each round sees what the rounds before have added."""
    if len(centers) == 0:
        yield torch.arange(rows.start, rows.stop, device=y.device)
        return
    rounds, before = 0, None
    wrong, _ = rule.judge(votes.average(rows), y[rows])
    while rounds != rule.rounds and len(centers) <= rule.max_neighbors:
        picked = wrong.nonzero()[:, 0]
        if len(picked) == 0 or (rule.rounds is None and before is not None and torch.equal(picked, before)):
            return  # without a limit of rounds, samples that contradict each other would be added forever
        before = picked
        yield picked + rows.start
        rounds += 1
        wrong, quality = rule.judge(votes.average(rows), y[rows])
        if quality >= rule.target:
            return


def _votes_for(x: Tensor, centers: Chosen | Copied, kernel: Kernel, rule: Rule) -> type:
    if len(x) <= SEARCH_ROWS and _searched(len(x), centers, kernel, rule):
        return SearchedVotes
    kept = 4 * len(x) * len(centers) if kernel.ranks else 0
    if len(x) > BLOCK_ROWS or kept > BLOCK_BYTES:  # a single batch is too much already
        return FreshVotes
    if kernel.count is not None:
        return CountedVotes
    return KeptVotes if kernel.ranks else SummedVotes


def _searched(rows: int, centers: Chosen | Copied, kernel: Kernel, rule: Rule) -> bool:
    width = rule.values(centers.y[:1]).shape[1] + 1
    return isinstance(kernel, InfluenceCone) and pays(rows, len(centers), width) and not hindrance(kernel, centers.x)


def block_rows(kernel: Kernel, centers: Chosen | Copied, rule: Rule) -> int:
    """How many samples to compare at once: whole batches, and fewer of them where a kernel's distances are kept."""
    rows = min(BLOCK_ROWS, BLOCK_BYTES // (4 * max(1, len(centers)))) if kernel.ranks else BLOCK_ROWS
    if _searched(more := min(SEARCH_ROWS, 8 * len(centers)), centers, kernel, rule):
        rows = more
    return max(1, rows // rule.batch_size) * rule.batch_size
