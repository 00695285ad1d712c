"""Other picture formats at equal bytes, and how far pictures and curves differ."""

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, features
from scipy.interpolate import PchipInterpolator
from torch import Tensor

FORMATS = {  # the feature that Pillow needs, and its settings for a quality
    "JPEG": ("jpg", lambda q: {"quality": q, "optimize": True, "subsampling": "4:2:0"}),
    "WebP": ("webp", lambda q: {"quality": q, "method": 6}),
    "JPEG2000": (
        "jpg_2000",
        lambda q: {"quality_mode": "dB", "quality_layers": [10 + q * 0.4], "mct": 1},
    ),
    "AVIF": ("avif", lambda q: {"quality": q, "speed": 4}),
    "AVIF 4:4:4": ("avif", lambda q: {"quality": q, "speed": 4, "subsampling": "4:4:4"}),
}
COLUMNS = ["picture", "rate", "format", "bits_per_pixel", "psnr_db", "ms_ssim"]  # of curves


class Point(NamedTuple):
    """A picture in a format: bits a pixel, and how near it comes to the original."""

    bits_per_pixel: float
    psnr_db: float
    ms_ssim: float


def available() -> list[str]:
    """The formats that this Pillow writes."""
    return [name for name, (feature, _) in FORMATS.items() if features.check(feature)]


def written(picture: Tensor, name: str, quality: int) -> bytes:
    """A picture [H, W, 3], uint8, in a format."""
    file = io.BytesIO()
    _, settings = FORMATS[name]
    Image.fromarray(picture.numpy()).save(file, name.split()[0], **settings(quality))
    return file.getvalue()


def shown(data: bytes) -> Tensor:
    """The picture [H, W, 3] of a file."""
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def best(picture: Tensor, name: str, size: float) -> bytes | None:
    """The file of the highest quality, 1 ... 95, of at most `size` bytes, None without one."""
    low, high, best_file = 1, 95, None
    while low <= high:
        quality = (low + high) // 2
        data = written(picture, name, quality)
        if len(data) <= size:
            best_file, low = data, quality + 1
        else:
            high = quality - 1
    return best_file


def point(picture: Tensor, data: bytes, decode: Callable[[bytes], Tensor] = shown) -> Point:
    """Where a file lies among rates and distortions."""
    rate = 8 * len(data) / picture[..., 0].numel()
    return Point(rate, *distances(picture, decode(data)))


def distances(picture: Tensor, other: Tensor) -> tuple[float, float]:
    """PSNR over RGB in dB, and MS-SSIM, nan for a picture too small for its five scales."""
    from torchmetrics.functional import image as metrics

    pair = [image.movedim(-1, 0)[None].double() for image in (other, picture)]
    similarity = float("nan")
    if min(picture.shape[:2]) >= 176:
        ms_ssim = metrics.multiscale_structural_similarity_index_measure
        similarity = float(ms_ssim(*pair, data_range=255.0))
    return float(metrics.peak_signal_noise_ratio(*pair, data_range=255.0)), similarity


def curves(
    name: str, picture: Tensor, rates: Sequence[float], encode: Callable, decode: Callable
) -> list[tuple]:
    """Rows of COLUMNS: a picture at rates in bits a pixel, in every format and as "centers".

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
    """How many per cent more bits centers take than another format, for each picture."""
    points = {
        key: [Point(*row) for row in group[COLUMNS[3:]].itertuples(index=False)]
        for key, group in table.groupby(["picture", "format"])
    }
    pictures = table.picture.unique()
    return [bd_rate(points[name, "centers"], points.get((name, other), [])) for name in pictures]


def bd_rate(ours: list[Point], theirs: list[Point]) -> float:
    """How many per cent more bits ours take for the same PSNR; nan where curves don't overlap.

    Bjontegaard's measure: the mean difference of log rates over the PSNR that both reach,
    interpolated monotonically.
    """
    curves = [
        sorted((p.psnr_db, np.log(p.bits_per_pixel)) for p in side) for side in (ours, theirs)
    ]
    if min(map(len, curves)) < 2:
        return float("nan")
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    if low >= high:
        return float("nan")
    lines = [PchipInterpolator(*zip(*curve, strict=True)) for curve in curves]
    means = [line.integrate(low, high) / (high - low) for line in lines]
    return float(100 * (np.exp(means[0] - means[1]) - 1))
