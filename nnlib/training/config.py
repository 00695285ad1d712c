"""What a training run is made of, and how its learning rate goes."""

import math
from dataclasses import dataclass
from pathlib import Path

from nnlib._common.validation import check_choice, check_int, check_number

CHOICES = {
    "schedule": ("step", "cosine"),
    "watch": ("fresh", "stale"),
    "precision": ("auto", "float32", "bfloat16"),
}
CHOICES |= {"start": ("auto", "random", "embedded")}
COUNTS = {"batch_size": 2, "iter_size": 1, "epochs": 1, "low_dim": 1, "k": 1, "size": 8}
COUNTS |= {"workers": 0, "save_steps": 0, "seed": 0}


@dataclass
class TrainingConfig:
    """What a run is made of; the names are those of `python -m nnlib.training --help`, which says what they mean."""

    data: str
    out: str = ""
    arch: str = "resnet18"
    low_dim: int = 128
    loss: str = "nca"
    temperature: float = 0.05
    margin: float = 0.0
    memory_momentum: float = 0.5
    start: str = "auto"
    batch_size: int = 256
    iter_size: int = 1
    epochs: int = 130
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    warmup: float = 0.0
    size: int = 224
    crop: float = 0.08
    flip: bool | None = None
    validation: float = 0.05
    watch: str = "fresh"
    k: int = 30
    workers: int = 0
    save_steps: int = 0
    resume: str = ""
    pretrained: bool = False
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    progress: bool = True

    def check(self) -> "TrainingConfig":
        """Raise ValueError for what can't be used; returns itself."""
        for name, least in COUNTS.items():
            check_int(name, getattr(self, name), least)
        for name, known in CHOICES.items():
            check_choice(name, getattr(self, name), known)
        for name in ("lr", "temperature"):
            check_number(name, getattr(self, name), "(0, inf)", "a positive number")
        for name in ("margin", "weight_decay", "warmup"):
            check_number(name, getattr(self, name), "[0, inf)", "0 or more")
        for name in ("momentum", "memory_momentum"):
            check_number(name, getattr(self, name), "[0, 1)", "a share in [0, 1)")
        check_number("crop", self.crop, "(0, 1]", "a share of the area in (0, 1]")
        return self

    def of_pictures(self) -> tuple:
        """What `open_pictures` takes."""
        return self.data, self.size, self.validation, self.flip, self.crop, self.seed

    def folder(self) -> Path:
        return Path(self.out or f"runs/{Path(self.data).resolve().name}-{self.arch}-{self.loss}")

    def lr_at(self, epoch: float) -> float:
        """The rate at a moment, in epochs: a tenth after every 40 of 130 epochs as published, or half a cosine."""
        warm = min(1.0, epoch / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            return self.lr * warm * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.lr * warm * 0.1 ** (int(epoch) // max(1, round(self.epochs * 40 / 130)))
