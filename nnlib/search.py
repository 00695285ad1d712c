"""What `attend` and `nearest` give, from the few centers that matter: for few features, on a CPU.

Influence cones and nearest centers are as exact as with all distances. Of inverse distances, whose weights never end, a
share may be left out on request: the centers that aren't looked at are counted as if they were as near as the last one
that was. A pyramid isn't searched: its coarser scales drop features, so that far centers may weigh as much as any.
"""

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from nnlib.blocks import finite, working_dtype
from nnlib.kernels import InfluenceCone, InverseDistance, Kernel, KNearest
from nnlib.nearby import mean_of
from nnlib.reach import Cone, Tree
from nnlib.stream import streamed

FEATURES = 3  # up to here few cells of a grid lie within a reach
MANY = 32  # centers can be measured in the time that a tree takes for one of the nearest
ENOUGH = (64, 1 << 18)  # queries, and pairs of queries and centers, from which sorting the centers first pays
TABLE = 1 << 23  # numbers in a sorted copy of the values, at most
ROWS = 1 << 17  # queries at a time
NUMBERS = 1 << 21  # of the values that are gathered at a time
COUNTS = (32, 128, 512)  # nearest centers to try, before all of them


def hindrance(kernel: Kernel, centers, *others: Tensor, tolerance: float = 0.0) -> str | None:
    """Why centers [M, D] can't be searched for a kernel, and what would do; None where they can.

    `others` are checked for gradients, and for NaN and infinity, which a tree can't place.
    """
    by = kernel.by if type(kernel) is KNearest else kernel
    if type(kernel) not in (InfluenceCone, InverseDistance, KNearest) or type(by).metric is not Kernel.metric:
        return f"with {kernel}: give InfluenceCone, InverseDistance, or KNearest by a Euclidean distance"
    if type(kernel) is InverseDistance and tolerance == 0:
        return "with InverseDistance leaves out far centers: give the share that it may, as tolerance=0.01"
    if centers.device.type != "cpu" or centers.shape[1] > FEATURES:
        return f"with {centers.shape[1]} features on {centers.device.type}: give at most {FEATURES} on cpu"
    if torch.is_grad_enabled() and any(part.requires_grad for part in others):
        return "gives no gradients: give tensors without, or use torch.no_grad()"
    if not all(bool(part.isfinite().all()) for part in others):
        return "with NaN or infinity: give finite numbers"
    return None


def pays(queries: int, centers: int, width: int = 1, count: int | None = None) -> bool:
    """Whether to sort the centers, and values of some `width`, is quicker than to measure all distances.

    count: how many nearest centers are wanted, where they are.
    """
    few = count is None or MANY * count <= centers
    return few and queries >= ENOUGH[0] and queries * centers >= ENOUGH[1] and centers * width <= TABLE


def searched(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    values,
    kernel: Kernel,
    exclude: Int64[Tensor, " B"] | None = None,
    tolerance: float = 0.0,
) -> Float[Tensor, "B V"]:
    """The averages that `attend` gives, for a kernel without a `hindrance`."""
    dtype, queries, centers = working_dtype(queries, centers), queries.detach(), centers.detach()
    metric, centers = kernel.metric(queries, centers, dtype), centers.to(dtype)
    if type(kernel) is InfluenceCone:
        source, most = Cone(centers, values, kernel, metric.frame), ROWS
    else:
        count = kernel.count or COUNTS[-1]
        source = (_Nearest if kernel.count else _Shares)(centers, values, kernel, metric, tolerance)
        most = max(1, min(ROWS, NUMBERS // (count * values.shape[1])))
    parts = [slice(start, start + most) for start in range(0, len(queries), most)]
    skips = [None if exclude is None else exclude[part] for part in parts]
    return torch.cat([source.averages(queries[part].to(dtype), skip) for part, skip in zip(parts, skips, strict=True)])


def tree_nearest(queries, centers, count: int, kernel: Kernel, exclude=None) -> tuple[Tensor, Tensor]:
    """What `nearest` gives, for a kernel by Euclidean distance."""
    dtype, queries, centers = working_dtype(queries, centers), queries.detach(), centers.detach()
    frame = kernel.metric(queries, centers, dtype).frame
    distance, index = Tree(centers.to(dtype), frame).nearest(queries.to(dtype), count, exclude)
    return (distance / frame.scale).to(dtype), index


class _Nearest:
    """The plain mean over the nearest centers."""

    def __init__(self, centers, values, kernel: Kernel, metric, tolerance):
        self.centers, self.values, self.kernel, self.metric = centers, values, kernel, metric
        self.tree, self.tolerance = Tree(centers, metric.frame), tolerance

    def averages(self, x, exclude):
        """Means of the values of the nearest centers of each query [B, V]."""
        return mean_of(self.values, self.tree.nearest(x, self.kernel.count, exclude)[1], x.dtype)


class _Shares(_Nearest):
    """Averages over as few of the nearest centers as leave out at most `tolerance` of the weight, or over all."""

    def averages(self, x, exclude):
        """Weighted averages [B, V], by more neighbors for the queries whose fewer leave out too much."""
        result, left = x.new_empty(len(x), self.values.shape[1]), torch.arange(len(x))
        for count in COUNTS:
            if len(left) == 0 or MANY * count > len(self.centers):
                break
            average, share = self._few(x[left], count, None if exclude is None else exclude[left])
            done = share <= self.tolerance
            result[left[done]], left = average[done], left[~done]
            if share.median() * (count / COUNTS[-1]) ** (-self.kernel.exponent / x.shape[1]) > self.tolerance:
                break  # evenly spread centers would not get there with the most that are tried
        if len(left):
            skip = None if exclude is None else exclude[left]
            result[left] = streamed(x[left], self.centers, self.values, self.kernel, self.metric, skip)[0]
        return result

    def _few(self, x, count: int, exclude) -> tuple[Tensor, Tensor]:
        """The averages over some nearest centers, and no less than the share of the weight that the others have."""
        distance, index = self.tree.nearest(x, count, exclude)
        distance = distance.to(x.dtype)
        weights = self.kernel.weigh(distance, finite(distance[:, 0]), self.metric.scale)
        total, others = weights.sum(1, keepdim=True), weights[:, -1] * (len(self.centers) - count)
        picked = self.values[index.flatten()].to(x.dtype).unflatten(0, index.shape)
        return (weights / total)[:, None].matmul(picked)[:, 0], others / (total[:, 0] + others)
