"""What a training run is made of: every setting with its default, its limits and its help."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from nnlib._common.validation import check_choice, check_int, check_number
from nnlib.nca import distributed
from nnlib.training.encoders import ARCHITECTURES
from nnlib.training.objectives import LOSSES

POSITIVE = "(0, inf)"
NOT_NEGATIVE = "[0, inf)"
CHECKS = {"choices": check_choice, "least": check_int, "interval": check_number}


def option(default, meaning: str, *flags: str, **limits):
    """A setting: `least` bounds a whole number, `interval` a number, `choices` a name."""
    return field(default=default, metadata={"help": meaning, "flags": flags} | limits)


@dataclass
class TrainingConfig:
    """Settings of a training run, by default those that scalable NCA published for ImageNet.

    Parameters
    ----------
    data : folder of pictures, or the name of a set of nnlib.datasets
    out : folder that the run is written to, by default runs/DATA-ARCH-LOSS
    arch, low_dim, ... : `python -m nnlib.training --help` lists every setting with its default

    Examples
    --------
    >>> TrainingConfig("photos", schedule="cosine", epochs=10).lr_at(5)
    0.05
    """

    data: str
    out: str = option("", "folder for the results: runs/DATA-ARCH-LOSS by default")
    arch: str = option("resnet18", "architecture", "-a", choices=ARCHITECTURES)
    low_dim: int = option(128, "length of a feature", least=1)
    loss: str = option("nca", "instance: without labels; softmax: a baseline", choices=LOSSES)
    temperature: float = option(0.05, "T of exp(cos/T), in training and voting", interval=POSITIVE)
    margin: float = option(0.0, "lead of the own class, in cosines", interval=NOT_NEGATIVE)
    memory_momentum: float = option(0.5, "fraction of a bank row that is kept", interval="[0, 1)")
    batch_size: int = option(256, "pictures a batch, of all processes together", "-b")
    iter_size: int = option(1, "batches a step", least=1)
    epochs: int = option(130, "passes over the pictures", least=1)
    lr: float = option(0.1, "learning rate", interval=POSITIVE)
    momentum: float = option(0.9, "of the gradients", interval="[0, 1)")
    weight_decay: float = option(1e-4, "of all weights", "--wd", interval=NOT_NEGATIVE)
    schedule: str = option("step", "a tenth thrice; or cosine", choices=("step", "cosine"))
    warmup: float = option(0.0, "epochs over which the rate rises", interval=NOT_NEGATIVE)
    size: int = option(224, "side that pictures of a folder are brought to", least=8)
    crop: float = option(0.08, "least fraction of the area to train on", interval="(0, 1]")
    flip: bool | None = option(None, "whether a mirrored picture is as good")
    validation: float = option(0.05, "fraction to choose the epoch on", interval="[0, 1)")
    watch: str = option("fresh", "the bank to validate with", choices=("fresh", "stale"))
    k: int = option(30, "neighbors that vote", "-k", least=1)
    workers: int = option(0, "processes that read pictures, for each that trains", "-j", least=0)
    save_steps: int = option(0, "save so often within an epoch; 0: at its end", least=0)
    resume: str = option("", "auto: from --out; a checkpoint; a folder; a published snca_*.pth.tar")
    pretrained: bool = option(False, "start from torchvision's ImageNet weights")
    precision: str = option("auto", "on a GPU", choices=("auto", "float32", "bfloat16"))
    device: str = option("auto", "auto, cpu, cuda or mps")
    seed: int = option(0, "of the split, the order, the augmentation, the first weights", least=0)
    progress: bool = option(True, "show a bar")

    def check(self) -> "TrainingConfig":
        """Raise ValueError for what can't be used; return itself."""
        for setting in fields(self):
            for limit in CHECKS.keys() & setting.metadata.keys():
                value = getattr(self, setting.name)
                CHECKS[limit](setting.name, value, setting.metadata[limit])
        check_int("batch_size", self.batch_size, 2 * distributed.world_size())
        return self

    def of_pictures(self) -> tuple:
        """Return the arguments of `open_pictures`."""
        return self.data, self.size, self.validation, self.flip, self.crop, self.seed

    def folder(self) -> Path:
        """Return the folder that the run is written to."""
        return Path(self.out or f"runs/{Path(self.data).resolve().name}-{self.arch}-{self.loss}")

    def count_steps(self, pictures: int) -> int:
        """Return the steps of an epoch; the few pictures left over are others each time."""
        wanted = self.batch_size * self.iter_size
        if pictures < wanted:
            given = f"batch_size x iter_size is {wanted}"
            raise ValueError(f"{given}, for {pictures} pictures: give less")
        return pictures // wanted

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which the network computes by the precision."""
        automatic = self.precision == "auto" and device.type == "cuda"
        halved = automatic or self.precision == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16, enabled=halved)

    def lr_at(self, epoch: float) -> float:
        """Return the rate at a moment: a tenth after every 40 of 130 epochs, or half a cosine."""
        warm = min(1.0, epoch / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            return self.lr * warm * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.lr * warm * 0.1 ** (int(epoch) // max(1, round(self.epochs * 40 / 130)))

    def bank_momentum_at(self, epoch: int) -> float:
        """Return the bank's momentum: at least 0.8 and 0.9 from epochs 80 and 120 of 130 on."""
        late = {80 / 130: 0.8, 120 / 130: 0.9}
        reached = [least for start, least in late.items() if epoch >= round(start * self.epochs)]
        return max([self.memory_momentum, *reached])
