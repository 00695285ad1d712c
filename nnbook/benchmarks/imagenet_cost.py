"""What training on ImageNet takes, from a network's layers, and timed against a full-size bank."""

from typing import NamedTuple

import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from nnbook.benchmarks.speed import DIM, PICTURES, seconds
from nnlib.nca import MemoryBank, knn_predict, nca_loss
from nnlib.training import Embedding

CLASSES = 1000


class Cost(NamedTuple):
    """Of one process: memory in megabytes, and work and traffic a step."""

    bank_mb: float
    weights_mb: float
    activations_mb: float
    loss_mb: float
    network_gflop: float
    loss_gflop: float
    exchanged_mb: float


def cost(arch: str, gpus: int, batch: int, size: int = 224) -> Cost:
    """What each GPU holds and does in a step over `batch` pictures in all, in bfloat16."""
    sizes: list[int] = []
    network = Embedding(arch, DIM, 3, size).backbone.to("meta")  # shapes, and no numbers
    picture = torch.empty(1, 3, size, size, device="meta")
    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, inputs, output: sizes.append(output.numel()))
    with FlopCounterMode(display=False) as count:
        network(picture)
    weights = sum(p.numel() for p in network.parameters())
    local, shard = batch / gpus, PICTURES / gpus
    exchanged = 4 * weights + 4 * batch * (4 * DIM + 4)
    return Cost(
        bank_mb=(shard * (4 * DIM + 16) + 8 * PICTURES) / 1e6,  # rows, labels, numbers, all places
        weights_mb=weights * 12 / 1e6,  # with gradients and their momentum
        activations_mb=local * sum(sizes) * 2 / 1e6,
        loss_mb=(3 * 2**21 + 4 * batch * (DIM + 1)) * 4 / 1e6,  # a block's scores, sums a query
        network_gflop=3 * local * count.get_total_flops() / 1e9,
        loss_gflop=4 * batch * shard * DIM / 1e9,
        exchanged_mb=exchanged / 1e6 if gpus > 1 else 0.0,
    )


class Trial(NamedTuple):
    """Seconds of a loss with its gradient, of its two bare products, and of k-NN for a query."""

    loss_seconds: float
    bare_seconds: float
    knn_seconds: float


def trial(
    pictures: int = PICTURES, batch: int = 256, queries: int = 256, repeats: int = 3
) -> Trial:
    """Time them against a bank of random embeddings; the smallest of some repetitions each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (pictures,), generator=generator)
    bank, index = MemoryBank(labels, DIM), torch.randperm(pictures, generator=generator)[:batch]
    x = normalize(torch.randn(batch, DIM, generator=generator), dim=1).requires_grad_()
    rows = torch.randn(queries, DIM, generator=generator)
    works = (
        lambda: nca_loss(x, labels[index], bank, exclude=index).backward(),
        lambda: (x.detach() @ bank.memory.T) @ bank.memory,
        lambda: knn_predict(rows, bank),
    )
    loss, bare, knn = (min(seconds(work) for _ in range(repeats)) for work in works)
    return Trial(loss, bare, knn / queries)
