"""Condensing that looks at all samples at once, and so doesn't depend on their order: fast condensed nearest neighbors.

Each class starts with the sample that is nearest to its mean. Then, round by round, every center is joined by one more:
of the samples that it is the nearest center of and that the model gets wrong, the nearest to it. So by the nearest
center's class, as published; where all centers vote, only those that most samples are wrong about are joined at once.
"""

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from nnlib.attend import Labels, attend
from nnlib.blocks import column_blocks, exact_products, row_blocks
from nnlib.condense import Watch
from nnlib.frames import wide
from nnlib.kernels import Kernel
from nnlib.nearby import take_nearer
from nnlib.rows import Chosen, Copied
from nnlib.seeds import generator_of
from nnlib.stream import RunningAverage

KEPT_NUMBERS = 1 << 26  # of all samples' votes; where they are more, every round counts them anew
ROWS = 8192  # samples judged at a time
STEP = 128  # where all centers vote, a round adds one in so many: more at once outvote each other, and more are needed


def fcnn(
    x: Shaped[Tensor, "N D"],
    y: Int64[Tensor, " N"],
    centers: Chosen | Copied,
    kernel: Kernel,
    classes: int,
    max_neighbors: int,
    watch: Watch = lambda samples, neighbors: None,
) -> None:
    """Make samples centers, round by round, until nothing else is wrong or there are `max_neighbors`.

    x [N, D], y [N] in 0 ... classes - 1. Without centers, each class's first is added, even if these are more than
    `max_neighbors`. No sample is added twice, nor, where the nearest center alone decides, one that lies on a center.
    The same centers come in the same order for any order of the samples; of equally near ones a number made of the
    row decides, so that only what rounds otherwise could differ. `watch` is told of samples that became right.
    Source: F. Angiulli, Fast condensed nearest neighbor rule (ICML 2005), FCNN1; there by the nearest neighbor's class.
    """
    with torch.no_grad(), exact_products():
        keys = _keys(x)
        first = torch.arange(0 if len(centers) else len(x), device=x.device)
        if len(first):
            first = _first_of_each(first, y, _from_means(x, y, kernel, classes), keys)
            centers.append(x[first], y[first], first)
        state, right = _Standing(x, y, centers, kernel, classes, first), 0
        while True:
            wrong = state.wrong()
            before, right = right, len(x) - int(wrong.sum())
            watch(right - before, len(centers))
            picked = state.pick(wrong, max_neighbors - len(centers), keys)
            if len(picked) == 0:
                return
            state.add(picked)


class _Standing:
    """Where each sample stands: which center is nearest, how near, and what all of them vote."""

    def __init__(self, x, y, centers: Chosen | Copied, kernel: Kernel, classes: int, first):
        self.x, self.y, self.centers, self.kernel, self.classes = x, y, centers, kernel, classes
        self.metric = kernel.metric(x, centers.x[:], torch.float32)  # by the first centers: in any order the same
        self.near = torch.full((len(x), 1), torch.inf, device=x.device)
        self.owner = torch.zeros_like(self.near, dtype=torch.int64)
        self.taken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.taken[first] = True
        adds_up = not kernel.ranks and len(x) * (classes + 1) <= KEPT_NUMBERS
        self.votes = RunningAverage(kernel, len(x), classes, self.near, self.metric.scale) if adds_up else None
        self._meet(0)

    def add(self, picked: Int64[Tensor, " K"]) -> None:
        """Make samples centers."""
        before, self.taken[picked] = len(self.centers), True
        self.centers.append(self.x[picked], self.y[picked], picked)
        self._meet(before)

    def _meet(self, before: int) -> None:
        """Measure what came after so many centers against all samples."""
        c, labels = self.centers.x[before:], self.centers.y[before:]
        for rows in row_blocks(self.x):
            x = self.metric.rows(self.x[rows].to(torch.float32))
            for cols in column_blocks(c):
                distance, _ = self.metric.measure(x, self.metric.rows(c[cols].to(torch.float32)))
                take_nearer(self.near[rows], self.owner[rows], distance, before + cols.start)
                if self.votes is not None:
                    votes = torch.nn.functional.one_hot(labels[cols], self.classes)
                    self.votes.add(distance, votes.to(torch.float32), rows)

    def wrong(self) -> Bool[Tensor, " N"]:
        """Which samples the model gets wrong."""
        parts = (slice(start, start + ROWS) for start in range(0, len(self.x), ROWS))
        return torch.cat([self._guess(rows) != self.y[rows] for rows in parts])

    def _guess(self, rows: slice) -> Int64[Tensor, " B"]:
        if self.kernel.count == 1:
            return self.centers.y[self.owner[rows, 0]]
        if self.votes is not None:
            return self.votes.value(rows).argmax(1)
        x, labels = self.x[rows].to(torch.float32), Labels(self.centers.y[:], self.classes)
        return attend(x, self.centers.x[:], labels, self.kernel).argmax(1)

    def pick(self, wrong: Bool[Tensor, " N"], room: int, keys: Tensor) -> Int64[Tensor, " K"]:
        """The wrong samples to be centers next, at most `room`: those of the centers that most are wrong about."""
        wrong = wrong & ~self.taken
        if self.kernel.count == 1:
            wrong &= self.near[:, 0] != 0  # what lies on a center would not become nearer to one
        else:
            room = min(room, 1 + len(self.centers) // STEP)
        number, owner = wrong.nonzero()[:, 0], self.owner[:, 0]
        size = owner[number].bincount(minlength=len(self.centers))
        return _first_of_each(number, owner, self.near[:, 0], self.y, keys)[_largest(size[size > 0], room)]


def _from_means(x, y, kernel: Kernel, classes: int) -> Float[Tensor, " N"]:
    """How far each sample is from the mean of its class."""
    count = y.bincount(minlength=classes).clamp(min=1)
    like = x.new_empty(0, dtype=torch.float32)
    means = torch.zeros(classes, x.shape[1], dtype=wide(like), device=x.device)
    for rows in row_blocks(x):
        means.index_add_(0, y[rows], x[rows].to(means.dtype))
    means = (means / count[:, None]).to(torch.float32)
    metric = kernel.metric(x, means, torch.float32)
    prepared, far = metric.rows(means), []
    for rows in row_blocks(x):
        distance, _ = metric.measure(metric.rows(x[rows].to(torch.float32)), prepared)
        far.append(distance.gather(1, y[rows, None])[:, 0])
    return torch.cat(far)


def _keys(x: Shaped[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """A number for each row, made of nothing but the row: what equally near ones are sorted by, wherever they stand."""
    along = torch.randn(x.shape[1], generator=generator_of(0)).to(x.device)
    return torch.cat([(x[rows] * along).sum(1) for rows in row_blocks(x)])


def _largest(size: Int64[Tensor, " M"], most: int) -> Int64[Tensor, " K"]:
    """Which of the groups of these sizes are the `most` largest, in their order."""
    return size.sort(descending=True, stable=True).indices[: max(0, most)].sort().values


def _first_of_each(number: Int64[Tensor, " K"], group, *keys: Tensor) -> Int64[Tensor, " G"]:
    """Of the samples of these numbers, the first of each group by the keys, groups in their order."""
    for key in (*reversed(keys), group):
        number = number[key[number].sort(stable=True).indices]
    ranked = group[number]
    first = torch.ones_like(ranked, dtype=torch.bool)
    first[1:] = ranked[1:] != ranked[:-1]
    return number[first]
