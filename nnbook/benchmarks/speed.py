"""Benchmarks side by side: `python -m nnbook.benchmarks.speed TABLE [--quick]` writes reports/recorded/speed_TABLE.csv.

Peers run in turn in one process on the same inputs, so that what disturbs one disturbs all. A row is one of them at one
size: the median of the seconds with their range, peak extra memory, error against float64, and what it is a ratio of.
"""

import argparse
import ctypes
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from operator import truediv
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from nnbook.benchmarks import peers, reference_loop
from nnbook.notebooks import ROOT
from nnbook.results import origin
from nnlib._common.files import atomic_write
from nnlib.attention import InverseDistance, attend
from nnlib.datasets import load
from nnlib.neighbors import DynamicClassifier

RECORDED = ROOT / "reports" / "recorded"
STATUS = Path("/proc/self/status")
PICTURES, DIM, BATCH = 1_281_167, 128, 256  # of ImageNet's bank
NOTHING = "not measured"


class Peak:
    """The largest resident memory while the block runs, looked at every few milliseconds, above that at its start."""

    def __enter__(self):
        if sys.platform == "linux":  # or memory that was freed and is taken again would not be seen
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        self.before, self.most, self.running = resident(), 0.0, True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while self.running:
            self.most = max(self.most, resident() - self.before)
            time.sleep(0.002)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()


def resident() -> float:
    """Megabytes of this process in memory, 0 where the system doesn't tell."""
    if not STATUS.exists():
        return 0.0
    return (
        next(
            int(line.split()[1])
            for line in STATUS.read_text().splitlines()
            if line.startswith("VmRSS")
        )
        / 1024
    )


def seconds(work: Callable) -> float:
    """How long it takes, a GPU's work done."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def race(works: dict[str, Callable | None], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, after one run of each that isn't counted."""
    there = {name: work for name, work in works.items() if work}
    for work in there.values():
        work()
    times = [{name: seconds(work) for name, work in there.items()} for _ in range(repeats)]
    return {name: [each[name] for each in times] for name in there}


def rows_of(
    works: dict[str, Callable | None], repeats: int, error: Callable | None = None, **size
) -> Iterator[dict]:
    """A row for each: its figures, and its time over that of "nnlib" in the same turn, as a median."""
    times = race(works, repeats)
    for name, work in works.items():
        row = size | {"peer": name, "device": _device()}
        if name not in times:
            yield row | {"seconds": NOTHING}
            continue
        with Peak() as peak:
            result = work()
        extra = peak.most - (result.nbytes / 2**20 if isinstance(result, Tensor) else 0)
        row |= {
            "seconds": statistics.median(times[name]),
            "least": min(times[name]),
            "most": max(times[name]),
        }
        row |= {
            "runs": repeats,
            "extra_mb": max(0.0, extra),
            "error": error(result) if error else None,
        }
        yield row | {"over_nnlib": statistics.median(map(truediv, times[name], times["nnlib"]))}


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def drawn(
    queries: int, centers: int, features: int, width: int = 10
) -> tuple[Tensor, Tensor, Tensor]:
    """Normal queries, centers and values, on a GPU where there is one."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((queries, features), (centers, features), (centers, width))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return tuple(torch.randn(size, generator=generator).to(device) for size in sizes)


def exact(x: Tensor, c: Tensor, v: Tensor, some: int = 20) -> Tensor:
    """The averages of a few queries in float64, from all differences."""
    distance = torch.stack([(row - c.double()).square().sum(1).sqrt() for row in x[:some].double()])
    return (
        torch.softmax((distance + InverseDistance.epsilon).log() * InverseDistance.exponent, 1)
        @ v.double()
    )


def forward(
    queries: int, centers: int, features: int, repeats: int = 5, but: tuple[str, ...] = ()
) -> list[dict]:
    """Averages without gradients, by all peers `but` some."""
    x, c, v = drawn(queries, centers, features)
    wanted, known = exact(x, c, v), peers.averages(features)
    works = {
        name: peer and (lambda peer=peer: peer(x, c, v))
        for name, peer in known.items()
        if name not in but
    }
    works |= {"bare product": lambda: [part @ c.T for part in x.split(peers.CHUNK)] and None}

    def error(result) -> float | None:
        return (
            None
            if result is None
            else float((result[: len(wanted)] - wanted).abs().max() / v.abs().max())
        )

    size = {"work": "forward", "queries": queries, "centers": centers, "features": features}
    return list(rows_of(works, repeats, error, **size))


def backward(queries: int, centers: int, features: int, repeats: int = 5) -> list[dict]:
    """Averages and the gradients to queries, centers and values."""
    given = [part.requires_grad_() for part in drawn(queries, centers, features)]
    weights = torch.randn(queries, 10, device=given[0].device)

    def whole(peer) -> None:
        for part in given:
            part.grad = None
        (peer(*given) * weights).sum().backward()

    known = peers.averages(features) | {"scikit-learn": None}  # which has no gradients
    works = {name: peer and (lambda peer=peer: whole(peer)) for name, peer in known.items()}
    works["cdist + softmax"] = lambda: _chunked(given, weights)
    size = {
        "work": "forward + backward",
        "queries": queries,
        "centers": centers,
        "features": features,
    }
    return list(rows_of(works, repeats, **size))


def _chunked(given, weights) -> None:
    for part in given:
        part.grad = None
    for x, pull in zip(given[0].split(peers.CHUNK), weights.split(peers.CHUNK), strict=True):
        (peers.softmax_averages(x, *given[1:]) * pull).sum().backward()


def growth(queries: int, centers: int, features: int, repeats: int = 5) -> list[dict]:
    """The average alone, for the time a pair and the memory as centers grow."""
    x, c, v = drawn(queries, centers, features)
    size = {"work": "growth", "queries": queries, "centers": centers, "features": features}
    return list(
        rows_of(
            {"nnlib": lambda: attend(x, c, v, InverseDistance(), backend="blocks")}, repeats, **size
        )
    )


def nearest(
    queries: int, centers: int, features: int, repeats: int = 5, count: int = 10
) -> list[dict]:
    """The nearest 10 centers of each query."""
    x, c, _ = drawn(queries, centers, features)
    works = {
        name: peer and (lambda peer=peer: peer(x, c, count))
        for name, peer in peers.neighbors(features).items()
    }
    size = {"work": "10 nearest", "queries": queries, "centers": centers, "features": features}
    return list(rows_of(works, repeats, **size))


def loss(pictures: int = PICTURES, repeats: int = 5) -> list[dict]:
    """The NCA loss with its gradient over a bank of ImageNet's size, and its two products alone."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(pictures, DIM, generator=generator), dim=1)
    labels = torch.randint(1000, (pictures,), generator=generator).sort().values
    own = torch.randperm(pictures, generator=generator)[:BATCH]
    x = torch.randn(BATCH, DIM, generator=generator).requires_grad_()

    def step(peer):
        peer(x, labels[own], bank, labels, own).backward()

    def products():
        with torch.no_grad():
            (x @ bank.T) @ bank

    works = {name: peer and (lambda peer=peer: step(peer)) for name, peer in peers.losses().items()}
    size = {"work": "NCA loss and gradient", "queries": BATCH, "centers": pictures, "features": DIM}
    return list(rows_of(works | {"bare products": products}, repeats, **size))


def fit(kernel: str, repeats: int = 1) -> list[dict]:
    """MNIST at the published setting: the fit, the published loop written out, and the products that the fit needs."""
    data = load("mnist")
    x, y = data.train_images.flatten(1).float() / 255, data.train_labels
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    model = DynamicClassifier(kernel, seed=0, progress=False).fit(x, y)
    works = {
        "nnlib": lambda: DynamicClassifier(kernel, seed=0, progress=False).fit(x, y) and None,
        "published loop": lambda: reference_loop.fit(x, y, order, kernel) and None,
        "bare products": lambda: products_of(model, x),
    }
    if repeats == 1:  # the loop takes minutes: it has warmed up long before it ends
        times = {name: [seconds(work)] for name, work in works.items()}
    else:
        times = race(works, repeats)
    size = {
        "work": f"MNIST fit, {kernel}",
        "queries": len(x),
        "centers": model.num_neighbors,
        "features": x.shape[1],
    }
    return [
        size
        | {
            "peer": name,
            "device": _device(),
            "seconds": statistics.median(found),
            "least": min(found),
        }
        | {"most": max(found), "runs": repeats}
        | {"over_nnlib": statistics.median(map(truediv, found, times["nnlib"]))}
        for name, found in times.items()
    ]


def products_of(model: DynamicClassifier, x: Tensor, block: int = 2048) -> None:
    """The products of a fit's samples with the centers that there are when they come, for each scale of a pyramid."""
    for start in range(0, len(x), block):
        count = int(model.growth_[max(0, start // model.batch_size - 1)])
        for step in (1, 2, 4, 8) if "pyramid" in model.kernel else (1,):
            x[start : start + block, ::step].contiguous() @ x[:count, ::step].contiguous().T


def table(name: str, quick: bool = False) -> pd.DataFrame:
    """All rows of a table; `quick`: smaller sizes, fewer runs."""
    n, runs = (20_000, 3) if quick else (100_000, 5)
    match name:
        case "attend":
            rows = [row for d in (2, 3, 10, 128, 784, 3072) for row in forward(n // 50, n, d, runs)]
            rows += [row for d in (2, 3, 10, 128, 784) for row in backward(n // 50, n, d, runs)]
        case "growth":
            few, many = (
                [10**power for power in range(3, 7 - quick)],
                [10**power for power in range(3, 8 - quick)],
            )
            sizes = [(d, m) for d, counts in ((3, many), (128, few)) for m in counts] + [
                (784, 1000),
                (784, 10_000),
            ]
            rows = [row for d, m in sizes for row in growth(max(1000, 10**7 // m), m, d, runs)]
        case "nearest":
            rows = [row for d in (10, 128, 784) for row in nearest(n // 50, n, d, runs)]
        case "nca":
            rows = loss(n if quick else PICTURES, runs)
        case "fit":
            slow = (
                () if quick else ("euclidean", "influence_cone")
            )  # a pyramid's loop takes a quarter of an hour
            rows = fit("cosine", runs) + [row for kernel in slow for row in fit(kernel)]
    return pd.DataFrame(rows)


TABLES = ("attend", "growth", "nearest", "nca", "fit")


def recorded(name: str) -> pd.DataFrame:
    """A table as it was last recorded, with where and when; figures that weren't measured are NaN."""
    found = pd.read_csv(RECORDED / f"speed_{name}.csv")
    return found.assign(seconds=pd.to_numeric(found.seconds, errors="coerce"))


def main(arguments: list[str] | None = None) -> None:
    """Measure tables, print them, and record those that are not quick."""
    parser = argparse.ArgumentParser(
        "nnbook.benchmarks.speed", description="Measures the library beside its peers."
    )
    parser.add_argument(
        "tables", nargs="+", choices=TABLES, metavar="TABLE", help=f"of {', '.join(TABLES)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes, which are printed and not recorded"
    )
    args = parser.parse_args(arguments)
    for name in args.tables:
        found = table(name, args.quick)
        print(found.to_string(index=False, float_format="{:.3g}".format), flush=True)
        if not args.quick:
            found = found.assign(
                **origin(ROOT), command=f"python -m nnbook.benchmarks.speed {name}"
            )
            with atomic_write(RECORDED / f"speed_{name}.csv") as path:
                found.to_csv(path, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
