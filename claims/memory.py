"""`python -m claims.memory WORK`: how many megabytes a piece of work takes at its peak, inputs and results aside.

Each piece runs in a process of its own, so that nothing before it has raised the peak.
"""

import subprocess
import sys

import torch

from claims.table import NotMeasured
from nnbook.benchmarks.speed import STATUS, Peak
from nnlib.attention.blockwise import Labels
from nnlib.attention.dispatch import attend
from nnlib.attention.kernels import CosineInverseDistance, InfluenceCone, InverseDistance
from nnlib.datasets import load, load_photo
from nnlib.image_codec.codec import decode, encode
from nnlib.nca.loss import nca_loss
from nnlib.nca.memory_bank import MemoryBank
from nnlib.neighbors.classifier import DynamicClassifier


def extra_megabytes(work: str) -> float:
    """Run a piece of work in a new process, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "claims.memory", work], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout)


def within(*works: str) -> tuple[str, bool]:
    """A row's figures: the megabytes of each piece of work, and whether all stay within 256."""
    if not STATUS.exists():
        raise NotMeasured("resident memory is read from Linux's /proc")
    found = {work: extra_megabytes(work) for work in works}
    return ", ".join(f"{work} {size:.0f} MB" for work, size in found.items()), max(
        found.values()
    ) <= 256


def _fit(name: str, kernel: str) -> float:
    data = load(name)
    DynamicClassifier(kernel, progress=False).fit(
        data.train_images[:2000], data.train_labels[:2000]
    )  # warm libraries
    model = DynamicClassifier(kernel, progress=False)
    with Peak() as fit:
        model.fit(data.train_images, data.train_labels)
    with Peak() as predict:
        model.predict_proba(data.test_images)
    return max(fit.most - model.centers_.nbytes / 2**20, predict.most)


def _attend(kernel, backward: bool) -> float:
    """60,000 x 60,000 x 784 forward; a tenth of the queries with gradients, whose working set is the same."""
    images = load("mnist").train_images.flatten(1)
    queries, centers = images[: 6000 if backward else None].float() / 255, images.float() / 255
    values = Labels(load("mnist").train_labels, 10)
    queries.requires_grad_(backward)
    attend(queries[:100], centers[:3000], Labels(values.labels[:3000], 10), kernel).sum()
    with Peak() as peak:
        share = attend(queries, centers, values, kernel)
        if backward:
            share.square().sum().backward()
    return peak.most - share.nbytes / 2**20 - (queries.nbytes / 2**20 if backward else 0)


def _picture() -> float:
    """A picture's fit, and the prediction of all its pixels."""
    from claims.pictures import regressor, samples

    x, y = samples()
    model = regressor().fit(x[:4000], y[:4000])
    model.predict(x[:4000])
    with Peak() as fit:
        model.fit(x, y)
    with Peak() as predict:
        guess = model.predict(x)
    return max(fit.most - model.centers_.nbytes / 2**20, predict.most - guess.nbytes / 2**20)


def _crowded() -> float:
    """Queries that have all of 100,000 centers within reach."""
    centers = torch.nn.functional.normalize(torch.randn(100_000, 3))
    queries = torch.randn(200, 3) / 100
    attend(queries[:64], centers[:5000], centers[:5000], InfluenceCone(4.0))
    with Peak() as peak:
        attend(queries, centers, centers, InfluenceCone(4.0), backend="search")
    return peak.most


def _encode_large() -> float:
    """Three photos side by side and one above the other until they are 4,000 x 3,000."""
    parts = [load_photo(name)[:300, :450] for name in ("astronaut", "chelsea", "tmshre_500")]
    picture = torch.cat([parts[at % 3] for at in range(10)]).repeat(1, 9, 1)[:, :4000].contiguous()
    with Peak() as peak:
        decode(encode(picture, 0.25))
    return peak.most


def _nca(sorted_bank: bool) -> float:
    """A loss with its gradient against a bank of ImageNet's size, as a MemoryBank or as plain rows in any order."""
    labels, x = torch.randint(1000, (1_281_167,)), torch.randn(256, 128, requires_grad=True)
    bank, index = MemoryBank(labels, 128), torch.randperm(len(labels))[:256]
    given = (bank, None) if sorted_bank else (bank.embeddings(), labels)
    nca_loss(x, bank.labels[:256], bank.memory[:5000], bank.labels[:5000]).backward()
    with Peak() as peak:
        nca_loss(x, labels[index], *given, index).backward()
    return peak.most


WORK = {
    "nca bank": lambda: _nca(True),
    "nca rows": lambda: _nca(False),
    "fit mnist cosine": lambda: _fit("mnist", "cosine"),
    "fit mnist euclidean": lambda: _fit("mnist", "euclidean"),
    "fit mnist cone": lambda: _fit("mnist", "influence_cone"),
    "fit cifar10 cosine": lambda: _fit("cifar10", "cosine"),
    "attend euclidean": lambda: _attend(InverseDistance(), False),
    "attend cosine": lambda: _attend(CosineInverseDistance(), False),
    "attend cone": lambda: _attend(InfluenceCone(), False),
    "attend crowded": _crowded,
    "fit picture": _picture,
    "encode large": _encode_large,
    "attend and gradient": lambda: _attend(InverseDistance(), True),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    print(WORK[sys.argv[1]]())
