"""What chapter 5 states: fits beside the published loop, averages, losses and neighbors beside other libraries."""

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from claims.table import NotMeasured, claim
from nnbook.benchmarks import reference_loop, speed
from nnlib.attention.dispatch import attend
from nnlib.attention.kernels import CosineSoftmax, InverseDistance
from nnlib.datasets import load
from nnlib.neighbors.classifier import DynamicClassifier

ROUNDS = {
    "cosine": 5,
    "euclidean": 1,
    "euclidian_pyramid": 1,
    "influence_cone": 1,
}  # the loop takes up to 20 minutes


class Race(NamedTuple):
    """Seconds of each round, and whether the plain loop chose the same centers, in the same order."""

    ours: list[float]
    plain: list[float]
    products: list[float]
    same: bool


@cache
def race(kernel: str) -> Race:
    """Our fit of MNIST, the published loop written out, and the products that the fit needs, in turn."""
    data = load("mnist")
    x, y = data.train_images.flatten(1).float() / 255, data.train_labels
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    model = DynamicClassifier(kernel, progress=False).fit(x, y)
    found = Race([], [], [], True)
    for _ in range(ROUNDS[kernel]):
        start = time.perf_counter()
        model = DynamicClassifier(kernel, seed=0, progress=False).fit(x, y)
        found.ours.append(time.perf_counter() - start)
        found.products.append(speed.seconds(lambda model=model: speed.products_of(model, x)))
        start = time.perf_counter()
        centers, labels, chosen = reference_loop.fit(x, y, order, kernel)
        found.plain.append(time.perf_counter() - start)
        same = torch.equal(chosen, model.indices_) and torch.equal(centers, model.centers_)
        found = found._replace(same=found.same and same and torch.equal(labels, model.values_))
    return found


def _faster(kernel: str, bar: float) -> tuple[str, bool]:
    found = race(kernel)
    ratio = _median_ratio(found.plain, found.ours)
    told = f"{statistics.median(found.ours):.2f} s against {statistics.median(found.plain):.1f} s"
    return f"{ratio:.1f} times faster: {told} (medians of {len(found.ours)})", ratio >= bar


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


@claim(
    "MNIST fit, cosine, against the plain published loop in one run",
    "at least 3.5 times faster",
    "slow",
)
def cosine_speed():
    return _faster("cosine", 3.5)


@claim("MNIST fit, Euclidean, the same", "at least 100 times faster", "slow")
def euclidean_speed():
    return _faster("euclidean", 100)


@claim("MNIST fit, pyramid, the same", "at least 100 times faster", "slow")
def pyramid_speed():
    return _faster("euclidian_pyramid", 100)


@claim("MNIST fit, cone, the same", "at least 100 times faster", "slow")
def cone_speed():
    return _faster("influence_cone", 100)


@claim("MNIST: the plain loop's centers, in its order, four kernels", "the same", "slow")
def same_centers():
    same = [kernel for kernel in ROUNDS if race(kernel).same]
    return f"the same with {', '.join(same)}", len(same) == len(ROUNDS)


@claim("MNIST fit: time over that of its bare products, four kernels", "at most 1.4", "slow")
def fit_floor():
    data = load("mnist")
    x, ratios = data.train_images.flatten(1).float() / 255, {}
    for kernel in ROUNDS:
        model, ours, bare = DynamicClassifier(kernel, progress=False), [], []
        for _ in range(5):
            ours.append(speed.seconds(lambda model=model: model.fit(x, data.train_labels)))
            bare.append(speed.seconds(lambda model=model: speed.products_of(model, x)))
        ratios[kernel] = _median_ratio(ours, bare)
    told = ", ".join(f"{kernel} {ratio:.2f}" for kernel, ratio in ratios.items())
    return f"{told} (medians of 5)", max(ratios.values()) <= 1.4


def _against_peers(rows: Callable, sizes: dict[int, int]) -> tuple[str, bool]:
    """The time of the best peer over ours at each number of features, `sizes` giving how many queries are asked."""
    told, ratios, extra = [], [], []
    for features, queries in sizes.items():
        found = {row["peer"]: row for row in rows(queries, 100_000, features, 5)}
        there = {
            name: row
            for name, row in found.items()
            if "over_nnlib" in row and name not in ("nnlib", "bare product")
        }
        best = min(there, key=lambda name: there[name]["over_nnlib"])
        told.append(f"D={features} {there[best]['over_nnlib']:.2f} ({best})")
        ratios.append(there[best]["over_nnlib"])
        extra.append(found["nnlib"]["extra_mb"])
    return f"{', '.join(told)}; {max(extra):.0f} MB", min(ratios) >= 1 and max(extra) <= 256


@claim(
    "attend, 10,000 x 100,000: the best peer's time over ours",
    "1.0 at least; at most 256 MB",
    "slow",
)
def forward():
    return _against_peers(speed.forward, dict.fromkeys((2, 10, 128, 784), 10_000))


@claim(
    "the same with gradients, 2,000 queries", "1.0 at least; 256 MB beside the gradients", "slow"
)
def backward():
    return _against_peers(speed.backward, dict.fromkeys((2, 10, 128, 784), 2_000))


@claim("the nearest 10 of 100,000: time of a product with topk over ours", "1.0 at least", "slow")
def nearest():
    found = {d: speed.nearest(2000, 100_000, d) for d in (10, 128, 784)}
    ratios = {
        d: next(row["over_nnlib"] for row in rows if row["peer"] == "product + topk")
        for d, rows in found.items()
    }
    return ", ".join(f"D={d} {ratio:.2f}" for d, ratio in ratios.items()), min(ratios.values()) >= 1


@claim(
    "NCA loss and gradient over 1,281,167 x 128, B = 256: the published way's time over ours",
    "3 at least",
    "slow",
)
def published_loss():
    found = {row["peer"]: row for row in speed.loss()}
    ratio = found["as published"]["over_nnlib"]
    return f"{ratio:.1f}", ratio >= 3


@claim(
    "attend as centers grow from 10,000 to 1,000,000: time a pair, extra memory",
    "within 20 %, flat",
    "slow",
)
def growth():
    told, good = [], True
    for features in (3, 128):
        rows = [speed.growth(1000, centers, features)[0] for centers in (10**4, 10**5, 10**6)]
        pairs = [row["least"] / row["queries"] / row["centers"] for row in rows]
        extra = max(row["extra_mb"] for row in rows)
        told.append(f"D={features} {max(pairs) / min(pairs) - 1:.0%}, {extra:.0f} MB")
        good &= max(pairs) <= 1.2 * min(pairs) and extra <= 256
    return "; ".join(told), good


def _need_gpu() -> None:
    if not torch.cuda.is_available():
        raise NotMeasured("no GPU here")


@claim(
    "MNIST fit on a GPU, cosine: time; against the plain loop there",
    "at most 0.3 s; 50 times faster",
    "gpu",
)
def gpu_fit():
    _need_gpu()
    data = load("mnist")
    x, y = data.train_images.flatten(1).cuda().float() / 255, data.train_labels.cuda()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).cuda()
    fit = [speed.seconds(lambda: DynamicClassifier(progress=False).fit(x, y)) for _ in range(6)][1:]
    plain = speed.seconds(lambda: reference_loop.fit(x, y, order, "cosine"))
    ours = statistics.median(fit)
    return f"{ours:.2f} s; {plain / ours:.0f} times", ours <= 0.3 and plain / ours >= 50


@claim(
    "attend on a GPU, cos/T, D = 128, 100,000 x 100,000: share of the bf16 product's rate",
    "at least 60 %",
    "gpu",
)
def gpu_softmax():
    _need_gpu()
    x, c, v = (part.cuda() for part in speed.drawn(100_000, 100_000, 128))
    low = [part.bfloat16() for part in (x, c)]
    bare = [
        speed.seconds(lambda: [part @ low[1].T for part in low[0].split(10_000)]) for _ in range(6)
    ][1:]
    ours = [
        speed.seconds(lambda: attend(x, c, v, CosineSoftmax(), matmul_dtype="bfloat16"))
        for _ in range(6)
    ][1:]
    share = statistics.median(bare) / statistics.median(ours)
    return f"{share:.0%}", share >= 0.6


@claim("attend on a GPU, D = 3, 100,000 x 1,000,000: KeOps's time over ours", "1.0 at least", "gpu")
def gpu_low():
    _need_gpu()
    rows = {row["peer"]: row for row in speed.forward(100_000, 1_000_000, 3)}
    if "over_nnlib" not in rows["KeOps"]:
        raise NotMeasured("KeOps isn't installed")
    return f"{rows['KeOps']['over_nnlib']:.2f}", rows["KeOps"]["over_nnlib"] >= 1


@claim(
    "inverse distances on a GPU, D = 784: time over that of its product and roots",
    "at most 1.5",
    "gpu",
)
def gpu_floor():
    _need_gpu()
    x, c, v = (part.cuda() for part in speed.drawn(20_000, 100_000, 784))
    ours = [
        speed.seconds(lambda: attend(x, c, v, InverseDistance(), backend="blocks"))
        for _ in range(6)
    ][1:]
    floor = [
        speed.seconds(lambda: [(part @ c.T).rsqrt_() for part in x.split(2000)]) for _ in range(6)
    ][1:]
    ratio = statistics.median(ours) / statistics.median(floor)
    return f"{ratio:.2f}", ratio <= 1.5
