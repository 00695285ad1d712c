"""Networks from pictures to unit vectors: torchvision's residual ones, and a small one."""

import threading

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import normalize

from nnlib._common.runtime import check_seed, torch_defaults
from nnlib._common.validation import check_choice, check_int

ARCHITECTURES = ("small", "resnet18", "resnet34", "resnet50")
SMALL_SIZE = 96  # up to this side a residual network's stem keeps the resolution, as for CIFAR
GENERATOR_LOCK = threading.RLock()  # of the global generator
IMAGENET_MOMENTS = {"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}


class Embedding(nn.Module):
    """Network from pictures [B, channels, H, W], bytes or 0..1, to unit features [B, low_dim].

    Parameters
    ----------
    arch : "small", "resnet18" (default), "resnet34" or "resnet50"
    low_dim : length of a feature, default 128
    channels : of the pictures, 1 or 3
    size : side of the pictures in pixels, which a residual network's stem is chosen for
    pretrained : start from torchvision's ImageNet weights (fetched once), but for the last layer
    seed : of the first weights, default 0

    Examples
    --------
    >>> images = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
    >>> Embedding("small", low_dim=16, channels=1, size=28)(images).shape
    torch.Size([5, 16])
    """

    @torch_defaults()
    def __init__(
        self, arch="resnet18", low_dim=128, channels=3, size=224, pretrained=False, seed=0
    ):
        super().__init__()
        check_choice("arch", arch, ARCHITECTURES)
        if arch == "small" and pretrained:
            raise ValueError("pretrained: there are no weights for arch='small', give a resnet")
        self.arch = arch
        self.low_dim = check_int("low_dim", low_dim)
        self.channels = channels
        self.size = size
        with GENERATOR_LOCK, torch.random.fork_rng(devices=[]):  # modules draw from no other
            torch.default_generator.manual_seed(check_seed(seed))
            if arch == "small":
                self.backbone = _small(channels, low_dim)
            else:
                self.backbone = _residual(arch, low_dim, channels, size, pretrained)
        moments = IMAGENET_MOMENTS if channels == 3 else {"mean": [0.5], "deviation": [0.5]}
        for name, values in moments.items():
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Return unit features, in float32 under autocast too."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        pixels = (images - self.mean) / self.deviation
        if pixels.device.type != "mps":  # half as quick again on CPUs, more on GPUs
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return normalize(self.backbone(pixels).float(), dim=1)


def _small(channels: int, low_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, width in ((channels, 32), (32, 64), (64, 128)):
        layers.append(nn.Conv2d(before, width, 3, padding=1, bias=False))
        layers += [nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, low_dim))


def _residual(arch, low_dim, channels, size, pretrained) -> nn.Module:
    """torchvision's network with a new last layer, and CIFAR's stem for small pictures."""
    from torchvision import models

    try:
        network = getattr(models, arch)(weights="DEFAULT" if pretrained else None)
    except (OSError, RuntimeError) as error:
        problem = f"pretrained: {arch}'s weights can't be fetched ({error})"
        raise OSError(f"{problem}: connect once, or do without") from None
    network.fc = nn.Linear(network.fc.in_features, low_dim)
    if size <= SMALL_SIZE:
        network.maxpool = nn.Identity()
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network
