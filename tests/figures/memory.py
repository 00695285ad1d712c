"""`python tests/figures/memory.py WORK`: peak megabytes of some work, inputs and results aside.

Each piece runs in a process of its own, so that nothing before it has raised the peak.
"""

import subprocess
import sys

import pytest
import torch

from nnbook.benchmarks.speed import STATUS, Peak
from nnlib import image_codec
from nnlib.attention import CosineInverseDistance, InfluenceCone, InverseDistance, Labels, attend
from nnlib.datasets import load, load_photo
from nnlib.features import pixel_samples
from nnlib.nca import MemoryBank, nca_loss
from nnlib.neighbors import DynamicRegressor
from tests.published import PublishedClassifier, PublishedRegressor


def extra_megabytes(work: str) -> float:
    """Run a piece of work in a new process, and return what it printed."""
    if not STATUS.exists():
        pytest.skip("resident memory is read from Linux's /proc")
    command = [sys.executable, __file__, work]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def within(limit: float, *works: str) -> tuple[str, bool]:
    """The megabytes of each piece of work, and whether all stay within a limit."""
    sizes = {work: extra_megabytes(work) for work in works}
    words = ", ".join(f"{work} {size:.0f} MB" for work, size in sizes.items())
    return words, max(sizes.values()) <= limit


def within_256(*works: str) -> tuple[str, bool]:
    return within(256, *works)


def fit(name: str, kernel: str) -> float:
    data = load(name)
    train = data.train_images, data.train_labels
    PublishedClassifier(kernel, progress=False).fit(*(part[:2000] for part in train))  # warm up
    model = PublishedClassifier(kernel, progress=False)
    with Peak() as fitting:
        model.fit(*train)
    with Peak() as predicting:
        model.predict_proba(data.test_images)
    return max(fitting.most - model.centers_.nbytes / 2**20, predicting.most)


def average(kernel, backward: bool = False) -> float:
    """60,000 x 60,000 x 784; with gradients a tenth of the queries, in the same working set."""
    data = load("mnist")
    centers = data.train_images.flatten(1).float() / 255
    queries = centers[:6000].clone() if backward else centers.clone()
    values = Labels(data.train_labels, 10)
    queries.requires_grad_(backward)
    attend(queries[:100], centers[:3000], Labels(values.labels[:3000], 10), kernel).sum()
    with Peak() as peak:
        result = attend(queries, centers, values, kernel)
        if backward:
            result.square().sum().backward()
    gradients = queries.nbytes if backward else 0
    return peak.most - (result.nbytes + gradients) / 2**20


def picture_samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns [196608, 2] of a picture, in pixels, and its RGB [196608, 3] in 0 ... 1."""
    return pixel_samples(load_photo("astronaut")[:384, :512])


def picture_regressor() -> DynamicRegressor:
    """At the published setting for pictures."""
    settings = {"influence_cone_factor": 4.0, "tolerance": 0.2, "progress": False}
    return PublishedRegressor("influence_cone", random_state=0, **settings)


def picture() -> float:
    """A picture's fit, and the prediction of all its pixels."""
    x, y = picture_samples()
    model = picture_regressor().fit(x[:4000], y[:4000])
    model.predict(x[:4000])
    with Peak() as fitting:
        model.fit(x, y)
    with Peak() as predicting:
        guess = model.predict(x)
    model_size = model.centers_.nbytes / 2**20
    return max(fitting.most - model_size, predicting.most - guess.nbytes / 2**20)


def crowded() -> float:
    """Queries that have all of 100,000 centers within their support radius."""
    centers = torch.nn.functional.normalize(torch.randn(100_000, 3))
    queries = torch.randn(200, 3) / 100
    attend(queries[:64], centers[:5000], centers[:5000], InfluenceCone(4.0))
    with Peak() as peak:
        attend(queries, centers, centers, InfluenceCone(4.0), backend="search")
    return peak.most


def encode_large() -> float:
    """Three photos, next to each other and stacked until they are 4,000 x 3,000 pixels."""
    parts = [load_photo(name)[:300, :450] for name in ("astronaut", "chelsea", "tmshre_500")]
    column = torch.cat([parts[at % 3] for at in range(10)])
    photo = column.repeat(1, 9, 1)[:, :4000].contiguous()
    with Peak() as peak:
        image_codec.decode(image_codec.encode(photo, 0.25))
    return peak.most


def nca(sorted_bank: bool) -> float:
    """A loss with its gradient against ImageNet's bank, a MemoryBank or plain rows in any order."""
    labels, x = torch.randint(1000, (1_281_167,)), torch.randn(256, 128, requires_grad=True)
    bank, index = MemoryBank(labels, 128), torch.randperm(len(labels))[:256]
    rows = (bank, None) if sorted_bank else (bank.embeddings(), labels)
    nca_loss(x, bank.labels[:256], bank.memory[:5000], bank.labels[:5000]).backward()
    with Peak() as peak:
        nca_loss(x, labels[index], *rows, index).backward()
    return peak.most


WORK = {
    "nca bank": lambda: nca(True),
    "nca rows": lambda: nca(False),
    "fit mnist cosine": lambda: fit("mnist", "cosine"),
    "fit mnist euclidean": lambda: fit("mnist", "euclidean"),
    "fit mnist cone": lambda: fit("mnist", "influence_cone"),
    "fit cifar10 cosine": lambda: fit("cifar10", "cosine"),
    "attend euclidean": lambda: average(InverseDistance()),
    "attend cosine": lambda: average(CosineInverseDistance()),
    "attend cone": lambda: average(InfluenceCone()),
    "attend and gradient": lambda: average(InverseDistance(), backward=True),
    "attend crowded": crowded,
    "fit picture": picture,
    "encode large": encode_large,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    print(WORK[sys.argv[1]]())
