"""Training of encoders whose nearest neighbors are right."""

from nnlib.training.config import TrainingConfig
from nnlib.training.encoders import Embedding
from nnlib.training.image_data import Pictures, open_pictures
from nnlib.training.trainer import train

__all__ = ["Embedding", "Pictures", "TrainingConfig", "open_pictures", "train"]
