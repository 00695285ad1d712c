from nnlib.nca.distributed import (
    all_gather_objects,
    all_gather_rows,
    all_reduce_sum,
    broadcast,
    own_device,
    process_group,
    rank,
    shard_bounds,
    world_size,
)
from nnlib.nca.knn import embed, knn_accuracy, knn_predict, nearest_labels
from nnlib.nca.loss import nca_loss
from nnlib.nca.memory_bank import MemoryBank, momentum_at

__all__ = [
    "MemoryBank",
    "all_gather_objects",
    "all_gather_rows",
    "all_reduce_sum",
    "broadcast",
    "embed",
    "knn_accuracy",
    "knn_predict",
    "momentum_at",
    "nca_loss",
    "nearest_labels",
    "own_device",
    "process_group",
    "rank",
    "shard_bounds",
    "world_size",
]
