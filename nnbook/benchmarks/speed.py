"""The library next to its peers: `python -m nnbook.benchmarks.speed TABLE [--quick]` records it.

Peers run in turn in one process on the same inputs, so that what disturbs one disturbs all. A row
is one of them at one size: the median of the seconds with their range, peak extra memory, the error
against float64, and the median of its time over the library's in the same turn.
"""

import argparse
import ctypes
import statistics
import sys
import threading
import time
from collections.abc import Callable
from itertools import chain
from operator import truediv
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from nnbook.benchmarks import peers, reference_loop
from nnbook.benchmarks import recorded as records
from nnlib.attention import InverseDistance, attend
from nnlib.datasets import load
from nnlib.neighbors import DynamicClassifier

STATUS = Path("/proc/self/status")
PICTURES, DIM, BATCH = 1_281_167, 128, 256  # of ImageNet's bank
NOTHING = "not measured"
WIDTHS = (2, 3, 10, 128, 784)
TABLES = ("attend", "growth", "nearest", "nca", "fit")


class Peak:
    """The largest resident memory in megabytes while a block runs, above that at its start."""

    def __enter__(self):
        if sys.platform == "linux":  # or memory that was freed and is taken again isn't seen
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        self.before = resident()
        self.most = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while not self.ended.wait(0.002):
            self.most = max(self.most, resident() - self.before)

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def resident() -> float:
    """Megabytes of this process in memory, 0 where the system doesn't say."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


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


def rows_of(works: dict, repeats: int, error: Callable | None = None, **size) -> list[dict]:
    """A row for each peer of a race; one that isn't there is not measured."""
    times, rows = race(works, repeats), []
    for name, work in works.items():
        row = size | {"peer": name, "device": _device(), "seconds": NOTHING}
        if name in times:
            with Peak() as peak:
                result = work()
            size_mb = result.nbytes / 2**20 if isinstance(result, Tensor) else 0
            row |= timed(times[name], times["nnlib"]) | {"extra_mb": max(0.0, peak.most - size_mb)}
            row["error"] = error(result) if error else None
        rows.append(row)
    return rows


def timed(times: list[float], ours: list[float]) -> dict:
    """The median of some seconds with their range, and over ours."""
    ratio = statistics.median(map(truediv, times, ours))
    row = {"seconds": statistics.median(times), "least": min(times), "most": max(times)}
    return row | {"runs": len(times), "over_nnlib": ratio}


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def drawn(queries: int, centers: int, features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normal queries, centers and ten values each, on a GPU where there is one."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((queries, features), (centers, features), (centers, 10))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return tuple(torch.randn(size, generator=generator).to(device) for size in sizes)


def exact(x: Tensor, c: Tensor, v: Tensor, count: int = 20) -> Tensor:
    """The averages of the first queries in float64, from all differences."""
    rows = x[:count].double()
    distance = torch.stack([(row - c.double()).square().sum(1).sqrt() for row in rows])
    scores = (distance + InverseDistance.epsilon).log() * InverseDistance.exponent
    return torch.softmax(scores, 1) @ v.double()


def _size(work: str, queries: int, centers: int, features: int) -> dict:
    return {"work": work, "queries": queries, "centers": centers, "features": features}


def _bound(known: dict[str, Callable | None], call: Callable) -> dict[str, Callable | None]:
    """Peers as works without arguments."""
    return {name: peer and (lambda peer=peer: call(peer)) for name, peer in known.items()}


def forward(
    queries: int, centers: int, features: int, repeats: int = 5, but: tuple[str, ...] = ()
) -> list[dict]:
    """Averages without gradients, by all peers `but` some."""
    x, c, v = drawn(queries, centers, features)
    truth = exact(x, c, v)
    known = {name: peer for name, peer in peers.averages(features).items() if name not in but}
    works = _bound(known, lambda peer: peer(x, c, v))
    works["bare product"] = lambda: [part @ c.T for part in x.split(peers.CHUNK)] and None

    def error(result) -> float | None:
        if result is None:
            return None
        return float((result[: len(truth)] - truth).abs().max() / v.abs().max())

    return rows_of(works, repeats, error, **_size("forward", queries, centers, features))


def backward(queries: int, centers: int, features: int, repeats: int = 5) -> list[dict]:
    """Averages and the gradients to queries, centers and values."""
    x, c, v = (part.requires_grad_() for part in drawn(queries, centers, features))
    weights = torch.randn(queries, 10, device=x.device)

    def step(peer, *parts) -> None:
        x.grad = c.grad = v.grad = None
        for rows, gradient in parts or [(x, weights)]:
            (peer(rows, c, v) * gradient).sum().backward()

    def chunked() -> None:
        step(
            peers.softmax_averages,
            *zip(x.split(peers.CHUNK), weights.split(peers.CHUNK), strict=True),
        )

    known = peers.averages(features) | {"scikit-learn": None}  # which has no gradients
    works = _bound(known, step) | {"cdist + softmax": chunked}
    size = _size("forward + backward", queries, centers, features)
    return rows_of(works, repeats, **size)


def growth(queries: int, centers: int, features: int, repeats: int = 5) -> list[dict]:
    """The average alone, for the time a pair and the memory as centers grow."""
    x, c, v = drawn(queries, centers, features)
    works = {"nnlib": lambda: attend(x, c, v, InverseDistance(), backend="blocks")}
    return rows_of(works, repeats, **_size("growth", queries, centers, features))


def nearest(queries: int, centers: int, features: int, repeats: int = 5) -> list[dict]:
    """The nearest 10 centers of each query."""
    x, c, _ = drawn(queries, centers, features)
    works = _bound(peers.neighbors(features), lambda peer: peer(x, c, 10))
    return rows_of(works, repeats, **_size("10 nearest", queries, centers, features))


def loss(pictures: int = PICTURES, repeats: int = 5) -> list[dict]:
    """The NCA loss with its gradient over a bank of ImageNet's size, and its products alone."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(pictures, DIM, generator=generator), dim=1)
    labels = torch.randint(1000, (pictures,), generator=generator).sort().values
    own = torch.randperm(pictures, generator=generator)[:BATCH]
    x = torch.randn(BATCH, DIM, generator=generator).requires_grad_()
    step = lambda peer: peer(x, labels[own], bank, labels, own).backward()  # noqa: E731
    works = _bound(peers.losses(), step)
    works["bare products"] = lambda: (x.detach() @ bank.T) @ bank
    return rows_of(works, repeats, **_size("NCA loss and gradient", BATCH, pictures, DIM))


def fit(kernel: str, repeats: int = 1) -> list[dict]:
    """MNIST at the published setting: the fit, the published loop, the products that it needs."""
    data = load("mnist")
    x, y = data.train_images.flatten(1).float() / 255, data.train_labels
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    model = DynamicClassifier(kernel, rule="published", random_state=0, progress=False).fit(x, y)
    works = {
        "nnlib": lambda: model.fit(x, y),
        "published loop": lambda: reference_loop.fit(x, y, order, kernel),
        "bare products": lambda: products_of(model, x),
    }
    if repeats == 1:  # the loop takes minutes: it has warmed up long before it ends
        times = {name: [seconds(work)] for name, work in works.items()}
    else:
        times = race(works, repeats)
    size = _size(f"MNIST fit, {kernel}", len(x), model.num_neighbors, x.shape[1])
    rows = [{"peer": name} | timed(each, times["nnlib"]) for name, each in times.items()]
    return [size | {"device": _device()} | row for row in rows]


def products_of(model: DynamicClassifier, x: Tensor, block: int = 2048) -> None:
    """The products of a fit's samples with the centers so far, for each scale of a pyramid."""
    for start in range(0, len(x), block):
        count = int(model.growth_[max(0, start // model.batch_size - 1)])
        for step in (1, 2, 4, 8) if "pyramid" in model.kernel else (1,):
            x[start : start + block, ::step].contiguous() @ x[:count, ::step].contiguous().T


def table(name: str, quick: bool = False) -> pd.DataFrame:
    """All rows of a table; `quick`: smaller sizes, fewer runs."""
    n, runs = (20_000, 3) if quick else (100_000, 5)
    parts = []
    match name:
        case "attend":
            parts = [forward(n // 50, n, features, runs) for features in (*WIDTHS, 3072)]
            parts += [backward(n // 50, n, features, runs) for features in WIDTHS]
        case "growth":
            for features, last in ((3, 7), (128, 6), (784, 4)):
                for power in range(3, last + 1 - (quick and last > 4)):
                    queries = max(1000, 10 ** (7 - power))
                    parts.append(growth(queries, 10**power, features, runs))
        case "nearest":
            parts = [nearest(n // 50, n, features, runs) for features in WIDTHS[2:]]
        case "nca":
            parts = [loss(n if quick else PICTURES, runs)]
        case "fit":  # a pyramid's loop takes a quarter of an hour
            slow = () if quick else ("euclidean", "influence_cone")
            parts = [fit("cosine", runs), *map(fit, slow)]
    return pd.DataFrame(chain.from_iterable(parts))


def recorded(name: str) -> pd.DataFrame:
    """A table as it was last recorded; figures that weren't measured are NaN."""
    rows = records.read(f"speed_{name}")
    return rows.assign(seconds=pd.to_numeric(rows.seconds, errors="coerce"))


def main(arguments: list[str] | None = None) -> None:
    """Measure tables, print them, and record those that are not quick."""
    parser = argparse.ArgumentParser("nnbook.benchmarks.speed", description=__doc__.split("\n")[0])
    known = ", ".join(TABLES)
    parser.add_argument("tables", nargs="+", choices=TABLES, metavar="TABLE", help=f"of {known}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, only printed")
    args = parser.parse_args(arguments)
    for name in args.tables:
        rows = table(name, args.quick)
        print(rows.to_string(index=False, float_format="{:.3g}".format), flush=True)
        if not args.quick:
            records.save(f"speed_{name}", rows, f"python -m {parser.prog} {name}")


if __name__ == "__main__":
    main()
