"""Other picture formats at equal bytes, and how far pictures and curves differ."""

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, features
from scipy.interpolate import PchipInterpolator

FORMATS = {  # what Pillow calls it, the feature it needs, its settings for a quality
    "JPEG": ("jpg", lambda quality: {"quality": quality, "optimize": True, "subsampling": "4:2:0"}),
    "WebP": ("webp", lambda quality: {"quality": quality, "method": 6}),
    "JPEG2000": (
        "jpg_2000",
        lambda quality: {"quality_mode": "dB", "quality_layers": [10 + quality * 0.4], "mct": 1},
    ),
    "AVIF": ("avif", lambda quality: {"quality": quality, "speed": 4}),
    "AVIF 4:4:4": (
        "avif",
        lambda quality: {"quality": quality, "speed": 4, "subsampling": "4:4:4"},
    ),
}


COLUMNS = [
    "picture",
    "rate",
    "format",
    "bits_per_pixel",
    "psnr_db",
    "ms_ssim",
]  # of a table of curves


class Point(NamedTuple):
    """A picture in a format: bits a pixel, and how near it comes to the original."""

    bits_per_pixel: float
    psnr_db: float
    ms_ssim: float


def available() -> list[str]:
    """The formats that this Pillow writes."""
    return [name for name, (feature, _) in FORMATS.items() if features.check(feature)]


def written(picture: torch.Tensor, name: str, quality: int) -> bytes:
    """A picture [H, W, 3], uint8, in a format."""
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, name.split()[0], **FORMATS[name][1](quality))
    return file.getvalue()


def shown(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def best(picture: torch.Tensor, name: str, size: float) -> bytes | None:
    """The file of the highest quality, 1 ... 95, of at most `size` bytes; None where none is so small."""
    low, high, found = 1, 95, None
    while low <= high:
        quality = (low + high) // 2
        data = written(picture, name, quality)
        if len(data) <= size:
            found, low = data, quality + 1
        else:
            high = quality - 1
    return found


def point(
    picture: torch.Tensor, data: bytes, decoded: Callable[[bytes], torch.Tensor] = shown
) -> Point:
    """Where a file lies among rates and distortions."""
    rate = 8 * len(data) / picture[..., 0].numel()
    return Point(rate, *distances(picture, decoded(data)))


def distances(picture: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """PSNR over RGB in dB, and MS-SSIM, nan for a picture too small for its five scales."""
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as ms_ssim,
    )
    from torchmetrics.functional.image import peak_signal_noise_ratio as psnr

    pair = [image.movedim(-1, 0)[None].double() for image in (other, picture)]
    similar = ms_ssim(*pair, data_range=255.0) if min(picture.shape[:2]) >= 176 else float("nan")
    return float(psnr(*pair, data_range=255.0)), float(similar)


def curves(
    name: str, picture: torch.Tensor, rates: Sequence[float], encode: Callable, decode: Callable
) -> list[tuple]:
    """Rows, as COLUMNS has them, of a picture in every format and in ours at rates in bits a pixel; ours are "centers".

    encode: (picture, rate) -> bytes. A format that has no file so small is left out.
    """
    rows = []
    for rate in rates:
        rows.append((name, rate, "centers", *point(picture, encode(picture, rate), decode)))
        for other in available():
            if data := best(picture, other, rate * picture[..., 0].numel() / 8):
                rows.append((name, rate, other, *point(picture, data)))
    return rows


def savings(table: pd.DataFrame, other: str) -> list[float]:
    """How many per cent more bits the centers take than another format, for each picture of a table of curves."""
    groups = [group for _, group in table.groupby("picture", sort=False)]
    return [bd_rate(*(_points(group, kind) for kind in ("centers", other))) for group in groups]


def _points(group: pd.DataFrame, kind: str) -> list[Point]:
    return [
        Point(*row) for row in group[group["format"] == kind][COLUMNS[3:]].itertuples(index=False)
    ]


def bd_rate(ours: list[Point], theirs: list[Point]) -> float:
    """How many per cent more bits ours take than theirs for the same PSNR; nan where the curves don't overlap.

    Bjontegaard's measure: the mean difference of log rates over the PSNR that both reach, interpolated monotonically.
    """
    curves = [
        sorted((p.psnr_db, np.log(p.bits_per_pixel)) for p in points) for points in (ours, theirs)
    ]
    if min(map(len, curves)) < 2:
        return float("nan")
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    if low >= high:
        return float("nan")
    means = [
        PchipInterpolator(*zip(*curve, strict=True)).integrate(low, high) / (high - low)
        for curve in curves
    ]
    return float(100 * (np.exp(means[0] - means[1]) - 1))
