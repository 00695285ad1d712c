"""What training on ImageNet takes, computed from the network's layers, and timed against a bank of its full size."""

from time import perf_counter
from typing import NamedTuple

import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from nnlib.nca import MemoryBank, knn_predict, nca_loss
from nnlib.training import residual

PICTURES, CLASSES, DIM = 1_281_167, 1000, 128


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
    """What each of the GPUs holds and does in a step with `batch` pictures in all, activations in bfloat16."""
    with torch.device("meta"):
        network, picture = (
            residual(arch, DIM, 3, size, pretrained=False),
            torch.empty(1, 3, size, size),
        )
    kept: list[int] = []
    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, given, out: kept.append(out.numel()))
    with FlopCounterMode(display=False) as count:
        network(picture)
    weights, here, shard = (
        sum(p.numel() for p in network.parameters()),
        batch / gpus,
        PICTURES / gpus,
    )
    return Cost(
        bank_mb=(shard * (4 * DIM + 16) + 8 * PICTURES)
        / 1e6,  # rows in float32, their labels and numbers, all places
        weights_mb=weights * 12 / 1e6,  # with gradients and their momentum
        activations_mb=here * sum(kept) * 2 / 1e6,
        loss_mb=(3 * 2**21 + 4 * batch * (DIM + 1))
        * 4
        / 1e6,  # a block's scores and two sums a query, each twice
        network_gflop=3 * here * count.get_total_flops() / 1e9,
        loss_gflop=4 * batch * shard * DIM / 1e9,
        exchanged_mb=(4 * weights + 4 * batch * (4 * DIM + 4)) / 1e6 if gpus > 1 else 0.0,
    )


class Trial(NamedTuple):
    """A step at full size: seconds of the loss with its gradient, of its two bare products, of k-NN for a query."""

    loss_seconds: float
    bare_seconds: float
    knn_seconds: float


def trial(
    pictures: int = PICTURES, batch: int = 256, queries: int = 256, repeats: int = 3
) -> Trial:
    """Time the loss and the k-NN against a bank of random embeddings; the smallest of some repetitions each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (pictures,), generator=generator)
    bank, index = MemoryBank(labels, DIM), torch.randperm(pictures, generator=generator)[:batch]
    x = normalize(torch.randn(batch, DIM, generator=generator), dim=1).requires_grad_()
    asked = torch.randn(queries, DIM, generator=generator)

    def loss():
        nca_loss(x, labels[index], bank, exclude=index).backward()

    def bare():
        return (x.detach() @ bank.memory.T) @ bank.memory

    def knn():
        return knn_predict(asked, bank)

    loss_time, bare_time, knn_time = (
        min(_seconds(work) for _ in range(repeats)) for work in (loss, bare, knn)
    )
    return Trial(loss_time, bare_time, knn_time / queries)


def _seconds(work) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started
