from nnlib.training.config import TrainingConfig
from nnlib.training.encoders import Embedding, residual
from nnlib.training.image_data import (
    Pictures,
    SetPictures,
    batches,
    drawn,
    held_out,
    in_order,
    open_pictures,
)
from nnlib.training.trainer import train

__all__ = [
    "Embedding",
    "Pictures",
    "SetPictures",
    "TrainingConfig",
    "batches",
    "drawn",
    "held_out",
    "in_order",
    "open_pictures",
    "residual",
    "train",
]
