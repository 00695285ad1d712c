from nnlib.training.config import TrainingConfig
from nnlib.training.encoders import Embedding
from nnlib.training.image_data import Pictures, draw_per_class, held_out, open_pictures
from nnlib.training.trainer import train

__all__ = [
    "Embedding",
    "Pictures",
    "TrainingConfig",
    "draw_per_class",
    "held_out",
    "open_pictures",
    "train",
]
