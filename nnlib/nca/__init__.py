"""Neighborhood component analysis against a memory bank of every training sample."""

from nnlib.nca import distributed
from nnlib.nca.knn import embed, knn_accuracy, knn_evaluate, knn_predict
from nnlib.nca.loss import nca_loss
from nnlib.nca.memory_bank import MemoryBank

__all__ = [
    "MemoryBank",
    "distributed",
    "embed",
    "knn_accuracy",
    "knn_evaluate",
    "knn_predict",
    "nca_loss",
]
