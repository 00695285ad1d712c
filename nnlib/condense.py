"""Condensing: keep as centers only the samples that the model gets wrong, batch by batch.

The published rule, without its waiting: the centers found so far are compared with many batches in one product, and
what those batches add meanwhile joins the sums of those that are still to come.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from nnlib.blocks import exact_products
from nnlib.device import one_thread
from nnlib.frames import take
from nnlib.kernels import InfluenceCone, Kernel
from nnlib.nearby import average_nearest
from nnlib.reach import Cone
from nnlib.rows import Chosen, Copied
from nnlib.search import hindrance, pays
from nnlib.stream import RunningAverage, accumulate, add_products, average_of, streamed

BLOCK_ROWS = 2048  # samples compared with all centers at once
AHEAD = 256  # samples that meet a new center as soon as it is one
SEARCH_ROWS = 4096  # where centers are searched: enough to sort them for, few enough to add few meanwhile
BLOCK_BYTES = 64 << 20  # for their distances, where a kernel needs them kept

Batch = tuple[Float[Tensor, "S D"], Shaped[Tensor, "S *V"], Int64[Tensor, " S"] | None]


class Rule(NamedTuple):
    """What a center votes for, which samples of a batch are wrong, and when the batch is good enough."""

    values: Callable[[Tensor], Float[Tensor, "N V"]]
    judge: Callable[[Float[Tensor, "N V"], Tensor], tuple[Tensor, Tensor]]  # which are wrong, and how good it is
    target: float
    rounds: int | None
    batch_size: int
    max_neighbors: int


def condense(
    blocks: Iterable[Batch],
    centers: Chosen | Copied,
    kernel: Kernel,
    rule: Rule,
    watch: Callable[[int, int], None] = lambda samples, neighbors: None,
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
    return RankedVotes if kernel.ranks else SummedVotes


class SummedVotes:
    """The running averages of a block's samples, where every center's weight stands by itself."""

    def __init__(self, x, values, centers, kernel, rule):
        self.values, self.metric = values, kernel.metric(x, x, x.dtype)
        self.rows = self.metric.rows(x)
        self.state = RunningAverage(kernel, len(x), values.shape[1], x, self.metric.scale)
        accumulate(self.state, self.rows, centers.x, _Encoded(centers.y, rule.values), self.metric)
        self.step, self.until = max(1, AHEAD // rule.batch_size) * rule.batch_size, 0
        self.picked = torch.empty(0, dtype=torch.int64, device=x.device)

    def add(self, picked: Int64[Tensor, " K"], start: int) -> None:
        """Make samples of the block centers, for those from `start` on."""
        self.picked = torch.cat([self.picked, picked])
        each = torch.arange(len(picked), device=picked.device)
        self._count(picked, slice(start, self.until), (picked - start, each))

    def average(self, rows: slice) -> Float[Tensor, "N V"]:
        """What the centers so far say of some samples of the block, which are asked for in their order."""
        if rows.stop > self.until:  # those picked meanwhile meet the next samples all at once
            self.until = rows.start + self.step
            self._count(self.picked, slice(rows.start, self.until))
        return self.state.value(rows)

    def _count(self, picked, rows: slice, same=None) -> None:
        if len(picked) and rows.start < rows.stop:
            distance, _ = self.metric.measure(take(self.rows, rows), take(self.rows, picked), same=same)
            self.state.add(distance, self.values[picked], rows)


class RankedVotes:
    """The same where a weight depends on the other centers: the distances are kept and weighed anew."""

    def __init__(self, x, values, centers, kernel, rule):
        self.kernel, self.metric, self.own = kernel, kernel.metric(x, x, x.dtype), values
        rows = self.metric.rows(x)
        each = torch.arange(len(x), device=x.device)
        self.among = self.metric.measure(rows, rows, same=(each, each))[0].clone()
        self.distance, self.values = self.among[:, :0], values[:0]
        if len(centers):
            self.values = rule.values(centers.y[:])
            self.distance = x.new_empty(len(x), len(centers))
            for start in range(0, len(centers), BLOCK_ROWS):
                cols = slice(start, min(start + BLOCK_ROWS, len(centers)))
                self.distance[:, cols], _ = self.metric.measure(rows, self.metric.rows(centers.x[cols].to(x.dtype)))
        self.picked = torch.empty(0, dtype=torch.int64, device=x.device)

    def add(self, picked, start):
        self.picked = torch.cat([self.picked, picked])

    def average(self, rows):
        """The average of all centers, those picked of the block among them, weighed anew."""
        distance = torch.cat([self.distance[rows], self.among[rows][:, self.picked]], 1)
        values = torch.cat([self.values, self.own[self.picked]])
        if self.kernel.count is not None:
            index = distance.topk(min(self.kernel.count, distance.shape[1]), largest=False).indices
            return values[index].mean(1)
        state = RunningAverage(self.kernel, len(distance), values.shape[1], distance, self.metric.scale)
        state.near = distance.amin(1)
        state.add(distance, values)
        return state.value()


class SearchedVotes:
    """The same where only near centers weigh: those before the block are sorted, those of the block all measured."""

    def __init__(self, x, values, centers, kernel, rule):
        self.values, self.kernel, self.metric = values, kernel, kernel.metric(x, x, x.dtype)
        self.x, self.rows, self.picked = x, self.metric.rows(x), torch.empty(0, dtype=torch.int64)
        encoded = _Encoded(centers.y, rule.values)
        self.cone = Cone(centers.x[:].to(x.dtype), encoded, kernel, self.metric.frame)
        self.near = self.cone.nearest(x)
        self.sums = self.cone.sums(x, self.near)

    def add(self, picked, start):
        self.picked = torch.cat([self.picked, picked])

    def average(self, rows):
        """The sums kept, made again where a picked center is nearest, with the picked ones' weights added."""
        x, near, sums = self.x[rows], self.near[rows], self.sums[rows]
        if len(self.picked):
            own, _ = self.metric.measure(take(self.rows, rows), take(self.rows, self.picked))
            nearer = (own.amin(1) < near).nonzero()[:, 0]
            near[nearer] = own[nearer].amin(1)
            sums[nearer] = self.cone.sums(x[nearer], near[nearer])
            sums = sums.clone()
            scale = self.metric.scale  # the cone's sums are of weights that are not taken beside the nearest one's
            weights = self.kernel.weigh(own, near, scale).mul_(self.kernel.reach(near, scale)[:, None])
            add_products(sums, weights, self.values[self.picked])
        return average_of(sums)


class FreshVotes:
    """The same for batches too large to keep anything of: every round measures all centers anew."""

    def __init__(self, x, values, centers, kernel, rule):
        self.x, self.centers, self.kernel, self.rule = x, centers, kernel, rule

    def add(self, picked, start):
        """Nothing: the centers themselves are looked at."""

    def average(self, rows):
        """The average over all centers, or over the nearest, from the start: nothing is kept between calls."""
        x, values = self.x[rows], _Encoded(self.centers.y, self.rule.values)
        metric = self.kernel.metric(x, x, x.dtype)
        if self.kernel.count is not None:
            return average_nearest(x, self.centers.x, values, self.kernel, metric)
        return streamed(x, self.centers.x, values, self.kernel, metric)[0]


class _Encoded:
    """Targets that are turned into the values to vote with a slice at a time."""

    def __init__(self, targets, encode: Callable[[Tensor], Tensor]):
        self.targets, self.encode = targets, encode
        self.shape = (targets.shape[0], encode(targets[:1]).shape[1])

    def __getitem__(self, cols) -> Tensor:
        return self.encode(self.targets[cols])


def _searched(rows: int, centers: Chosen | Copied, kernel: Kernel, rule: Rule) -> bool:
    width = rule.values(centers.y[:1]).shape[1] + 1
    return isinstance(kernel, InfluenceCone) and pays(rows, len(centers), width) and not hindrance(kernel, centers.x)


def block_rows(kernel: Kernel, centers: Chosen | Copied, rule: Rule) -> int:
    """How many samples to compare at once: whole batches, and fewer of them where a kernel's distances are kept."""
    rows = min(BLOCK_ROWS, BLOCK_BYTES // (4 * max(1, len(centers)))) if kernel.ranks else BLOCK_ROWS
    if _searched(more := min(SEARCH_ROWS, 8 * len(centers)), centers, kernel, rule):
        rows = more
    return max(1, rows // rule.batch_size) * rule.batch_size
