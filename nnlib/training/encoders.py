"""Networks that turn pictures into unit vectors: torchvision's residual networks, and one for small pictures."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import normalize

from nnlib._common.validation import check_int

RESNETS = ("resnet18", "resnet34", "resnet50")
ARCHITECTURES = ("small", *RESNETS)
SMALL = 96  # pictures up to this side keep their resolution at a residual network's stem, as is done for CIFAR
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


class Embedding(nn.Module):
    """Pictures uint8 [B, channels, H, W] to unit features [B, low_dim]; float pictures are taken to be in 0..1.

    arch: "small", "resnet18", "resnet34" or "resnet50". size: the pictures' side, which a residual network's stem is
    chosen for. pretrained: start from torchvision's ImageNet weights (fetched once), but for the last layer.
    Raises ValueError for an unknown architecture, OSError where weights can't be had.
    """

    def __init__(
        self,
        arch: str = "resnet18",
        low_dim: int = 128,
        channels: int = 3,
        size: int = 224,
        pretrained: bool = False,
    ):
        super().__init__()
        if arch not in ARCHITECTURES:
            raise ValueError(f"arch={arch!r} is not known: give one of {', '.join(ARCHITECTURES)}")
        self.arch, self.low_dim, self.channels, self.size = (
            arch,
            check_int("low_dim", low_dim),
            channels,
            size,
        )
        if arch == "small":
            if pretrained:
                raise ValueError(
                    "pretrained: there are no weights for arch='small'; give resnet18, resnet34, resnet50"
                )
            self.backbone = small(channels, low_dim)
        else:
            self.backbone = residual(arch, low_dim, channels, size, pretrained)
        mean, deviation = (MEAN, DEVIATION) if channels == 3 else ((0.5,), (0.5,))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer(
            "deviation", torch.tensor(deviation).view(1, -1, 1, 1), persistent=False
        )

    def forward(self, images: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Unit features, in float32 under autocast too."""
        pixels = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        pixels = (pixels - self.mean) / self.deviation
        if pixels.device.type != "mps":  # half as quick again on CPUs, more on GPUs
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return normalize(self.backbone(pixels).float(), dim=1)


def small(channels: int, low_dim: int) -> nn.Sequential:
    """Three stages of 3 x 3 convolutions, some hundred thousand weights: minutes on a laptop for 28 x 28 pixels."""
    widths = (channels, 32, 64, 128)
    stages = [
        stage
        for before, after in zip(widths, widths[1:], strict=False)
        for stage in _stage(before, after)
    ]
    return nn.Sequential(
        *stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], low_dim)
    )


def _stage(before: int, after: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]


def residual(arch: str, low_dim: int, channels: int, size: int, pretrained: bool) -> nn.Module:
    """torchvision's network with a linear layer of low_dim outputs at its end, and CIFAR's stem for small pictures."""
    from torchvision import models

    try:
        network = getattr(models, arch)(weights="DEFAULT" if pretrained else None)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"pretrained: {arch}'s weights can't be fetched ({error}): connect once, or do without"
        ) from None
    network.fc = nn.Linear(network.fc.in_features, low_dim)
    if size <= SMALL:
        network.maxpool = nn.Identity()
    if size <= SMALL or channels != 3:
        wide = size > SMALL
        stem = (
            {"kernel_size": 7, "stride": 2, "padding": 3}
            if wide
            else {"kernel_size": 3, "padding": 1}
        )
        network.conv1 = nn.Conv2d(channels, 64, bias=False, **stem)
    return network
