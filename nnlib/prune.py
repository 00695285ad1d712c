"""Pruning: dropping the centers that no longer matter to what the model says of some labelled samples.

Round by round, one pass over the samples tells how many predictions each center's going would turn wrong, or right, and
how near to it the others are; the least needed go together, and come back where together they do harm.
"""

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

from nnlib.blocks import exact_products, finite
from nnlib.checks import require_count, require_number
from nnlib.inputs import features_of
from nnlib.kernels import Kernel
from nnlib.stream import Labels, products
from nnlib.votes import distances

BLOCK_BYTES = 1 << 24  # for the distances of some samples to all centers
COLUMNS = 1024  # centers whose labels are spread out at a time
FRACTION = 24  # one center in so many is tried at once, and twice as many where all of them may go


class Pruned:
    """Pruning for a fitted classifier over the buffers `centers_` and `values_`."""

    def prune(self, X, y, tolerance: float = 0.0, rounds: int = 30):
        """Drop centers as long as no more of X [N, D] is predicted wrong than was, and `tolerance` * N: returns self.

        y [N]: the labels. Accuracy on X, y is at least what it was, less `tolerance`; samples that weren't learned from
        say more of what a center is worth than those that were. rounds: passes over X, at most. At least one center
        stays; `growth_` stays what fit left. Weights may depend on the nearest center, as an influence cone's.
        Raises ValueError for labels outside the classes, a tolerance outside [0, 1), and KNearest of count 2 or more.
        """
        self._require_fitted()
        rounds, kernel = require_count("rounds", rounds), self._kernel()
        require_number("tolerance", tolerance, "[0, 1)", "a share in [0, 1)")
        if (kernel.count or 1) > 1:
            raise ValueError(f"kernel={kernel} can't be pruned: give count=1, or a kernel by which all centers vote")
        x, y = features_of(self, X, reset=False), self._encoded(y, more=True).to(self.centers_.device)
        check_consistent_length(x, y)
        all_centers, labels, numbers = self.centers_, self.values_, getattr(self, "indices_", None)
        most = int(tolerance * len(x))
        labelled, allowed = Labels(labels, len(self.classes_)), self._wrong(x, y) + most
        for kept in reversed(stages(x, y, all_centers, labelled, kernel, most, rounds)):
            self.centers_, self.values_ = all_centers[kept], labels[kept]
            self.indices_ = None if numbers is None else numbers[kept.to(numbers.device)]
            if self._wrong(x, y) <= allowed:  # by rounding, a last digit may have decided otherwise before
                break
        self._grown = None
        return self

    def _wrong(self, x: Shaped[Tensor, "N D"], y: Int64[Tensor, " N"]) -> int:
        return int((self._averages(x, self._shares).argmax(1) != y).sum())


@torch.no_grad()
def stages(
    x: Shaped[Tensor, "N D"],
    y: Int64[Tensor, " N"],
    centers: Shaped[Tensor, "M D"],
    labels: Labels,
    kernel: Kernel,
    more: int,
    rounds: int,
) -> list[Int64[Tensor, " K"]]:
    """Fewer and fewer centers, by number, by which at most `more` samples more are wrong than by all of them."""
    kept = torch.arange(len(centers), device=centers.device)
    found, allowed, right, dropped, size = [kept], None, None, kept[:0], -1
    for _ in range(rounds):
        with exact_products():
            worth = _Worth(centers[kept], Labels(labels.labels[kept], labels.shape[1]), kernel, x, dropped)
            now = worth.meet(x, y, right)
        wrong = len(y) - int(now.sum())
        allowed = wrong + more if allowed is None else allowed
        if wrong <= allowed:
            kept, right = kept[worth.left], now
            found.append(kept)
            size = 2 * size if len(dropped) == size else max(1, len(kept) // FRACTION)
            dropped = worth.least(allowed - wrong)[:size]
        else:
            dropped = dropped[~_to_return(worth.blame[dropped], 2 + 1.1 * (wrong - allowed))]  # so few rounds do
        if len(dropped) == 0:
            break
    return found


def _to_return(blame: Float[Tensor, " K"], wrong: float) -> Bool[Tensor, " K"]:
    """Which of the dropped centers come back: those that most samples miss, until so many miss none; one stays away."""
    order = blame.sort(descending=True).indices
    missed = blame[order].cumsum(0)
    back = torch.zeros_like(blame, dtype=torch.bool)
    back[order] = (missed - blame[order] < wrong) & (blame[order] > 0)
    back[0] = False
    back[len(back) // 2 :] |= not back.any()  # no other is missed: the more needed half comes back, or the only one
    return back


class _Worth:
    """What labelled samples say of each center: how many would be wrong without it, or how many miss it already."""

    def __init__(self, centers, labels: Labels, kernel: Kernel, x, dropped: Int64[Tensor, " K"]):
        self.centers, self.labels, self.classes, self.kernel = centers, labels.labels, labels.shape[1], kernel
        self.metric = kernel.metric(x, centers, torch.float32)
        self.left = torch.ones(len(centers), dtype=torch.bool, device=centers.device)
        self.left[dropped] = False
        self.harm, self.pressure, self.blame = torch.zeros(3, len(centers), device=centers.device)

    def meet(self, x: Shaped[Tensor, "N D"], y: Int64[Tensor, " N"], before: Bool[Tensor, " N"] | None):
        """Look at all samples; which are right [N]. before: which were, with the dropped centers."""
        size, right = max(1, BLOCK_BYTES // (4 * len(self.centers))), []
        for rows, target in zip(x.split(size), y.split(size), strict=True):
            rows = rows.to(self.centers.device, torch.float32)
            distance = distances(self.metric.rows(rows), self.centers, self.metric, rows)
            right.append(self._count(distance.masked_fill(~self.left, torch.inf), target))
            if before is not None:
                lost = (before[: len(rows)] & ~right[-1]).nonzero()[:, 0]
                before = before[len(rows) :]
                self._blame(distance[lost], target[lost])
        return torch.cat(right)

    def least(self, room: int) -> Int64[Tensor, " K"]:
        """Those of the centers left, by number, that may go, least needed first: at most `room` wrong, one by one."""
        harm, pressure = self.harm[self.left], self.pressure[self.left]
        order = pressure.sort().indices
        order = order[harm[order].sort(stable=True).indices]
        fits = harm[order].clamp(min=0).cumsum(0) <= room
        return order[fits][: len(harm) - 1]

    def _blame(self, distance: Float[Tensor, "K M"], target: Int64[Tensor, " K"]) -> None:
        """Count what each sample misses most: the nearest dropped center of its class."""
        near, first = distance.masked_fill_(self.left | (self.labels != target[:, None]), torch.inf).min(1)
        self.blame.index_add_(0, first, near.isfinite().to(self.blame.dtype))

    def _count(self, distance: Float[Tensor, "B M"], target: Int64[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Add to `harm` and `pressure`; which samples are right. Overwrites the distances."""
        first, scale = distance.argmin(1, keepdim=True), self.metric.scale
        others = _weights(distance.scatter(1, first, torch.inf), self.kernel, scale)
        weights = _weights(distance, self.kernel, scale)
        votes = _votes(weights, self.labels, self.classes)
        guess = votes.argmax(1, keepdim=True)
        second = votes.scatter(1, guess, -torch.inf).amax(1, keepdim=True)
        right = guess[:, 0] == target
        mendable = ~right & (votes.gather(1, target[:, None]) == second)[:, 0]
        changes = torch.where(right | mendable, guess[:, 0], -1)[:, None] == self.labels
        margin = (votes.gather(1, guess) - second).clamp(min=torch.finfo(votes.dtype).tiny)
        share = weights.mul_(changes).div_(margin)
        self.pressure += right.to(share.dtype) @ share.clamp(max=1)
        sign = right.to(share.dtype) - mendable.to(share.dtype)
        self.harm += sign @ (share >= 1).scatter_(1, first, False).to(share.dtype)
        # the nearest may outweigh all others: taking it off the sums would leave none of their digits
        after = _votes(others, self.labels, self.classes).argmax(1) == target
        self.harm.index_add_(0, first[:, 0], right.to(share.dtype) - after.to(share.dtype))
        return right


def _weights(distance: Float[Tensor, "B M"], kernel: Kernel, scale: float) -> Float[Tensor, "B M"]:
    """Each center's weight beside the nearest one's. Overwrites the distances."""
    near, first = distance.min(1)
    if kernel.count == 1:
        return distance.zero_().scatter_(1, first[:, None], 1)
    return kernel.weigh(distance, finite(near), scale)


def _votes(weights: Float[Tensor, "B M"], labels: Int64[Tensor, " M"], classes: int) -> Float[Tensor, "B C"]:
    """The summed weights of each class."""
    votes = weights.new_zeros(len(weights), classes)
    for some, of in zip(weights.split(COLUMNS, 1), labels.split(COLUMNS), strict=True):
        votes += products(some, torch.nn.functional.one_hot(of, classes).to(votes.dtype))
    return votes
