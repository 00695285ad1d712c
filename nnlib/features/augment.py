"""What pixels give before anything is learned from labels: straight digits, blur, shifted and mirrored copies.

Tensors (or arrays) in, tensors out, on the device they lie on.
"""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.utils.validation import check_consistent_length
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad
from torchvision.transforms.v2.functional import gaussian_blur

from nnlib._common.runtime import make_generator
from nnlib._common.validation import as_tensor, check, check_int, check_number

ROWS = 4096  # pictures at a time


def deskew(images: Shaped[Tensor, "N H W"]) -> Float[Tensor, "N H W"]:
    """Grey pictures sheared and moved until their mass is upright and in the middle; an empty one stays empty.

    The shear is that of least squares: the covariance of the rows and columns of ink over the rows' variance.
    Raises ValueError for another shape. Source: LeCun, Bottou, Bengio, Haffner 1998.
    """
    images = _grey(images)
    return (
        torch.cat([_upright(part.float()) for part in images.split(ROWS)])
        if len(images)
        else images.float()
    )


def _upright(images: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    height, width = images.shape[1:]
    down, across = (torch.linspace(-1, 1, n, device=images.device) for n in (height, width))
    ink = images / images.sum((1, 2), keepdim=True).clamp(min=1e-6)
    down_mean, across_mean = ink.sum(2) @ down, ink.sum(1) @ across
    below, beside = down - down_mean[:, None], across - across_mean[:, None]
    both = torch.einsum("bhw,bh,bw->b", ink, below, beside)
    shear = both / (ink.sum(2) * below.square()).sum(1).clamp(min=1e-6)
    one, none = torch.ones_like(shear), torch.zeros_like(shear)
    moves = torch.stack([one, shear, across_mean, none, one, down_mean], 1).view(-1, 2, 3)
    grid = affine_grid(moves, [len(images), 1, height, width], align_corners=True)
    return grid_sample(images[:, None], grid, align_corners=True)[:, 0]


def blur(images: Shaped[Tensor, "N H W"], sigma: float = 1.0) -> Float[Tensor, "N H W"]:
    """Grey pictures under a Gaussian of `sigma` pixels, so that small shifts change distances little.

    Raises ValueError for another shape, and for more blur than a picture has pixels for.
    """
    sigma = float(
        check_number("sigma", sigma, "(0, inf)", "a positive number of pixels, such as 1.0")
    )
    images, reach = _grey(images), round(3 * sigma)
    most = (min(images.shape[1:]) - 1) / 3
    check(
        reach < min(images.shape[1:]),
        "sigma",
        sigma,
        f"{most:.3g} at most for pictures as small as these",
    )
    parts = [
        gaussian_blur(part.float()[:, None], 2 * reach + 1, sigma)[:, 0]
        for part in images.split(ROWS)
    ]
    return torch.cat(parts)


def _grey(images: Shaped[Tensor, "N H W"]) -> Shaped[Tensor, "N H W"]:
    images = as_tensor(images)
    if images.ndim != 3:
        raise ValueError(f"images has shape {tuple(images.shape)}: give grey pictures [N, H, W]")
    return images


def _pictures(images: Shaped[Tensor, "N H W *C"]) -> Shaped[Tensor, "N H W *C"]:
    images = as_tensor(images)
    if images.ndim not in (3, 4):
        raise ValueError(
            f"images has shape {tuple(images.shape)}: give pictures [N, H, W] or [N, H, W, C]"
        )
    return images


def shifted_copies(
    images: Shaped[Tensor, "N H W *C"],
    labels: Shaped[Tensor | np.ndarray, " N"],
    pixels: int = 1,
    copies: int | None = None,
    seed: int | None = 0,
) -> tuple[Shaped[Tensor, "K H W *C"], Shaped[Tensor | np.ndarray, " K"]]:
    """More to train on: the pictures, and copies moved by up to so many pixels each way, (2 pixels + 1)^2 in all.

    The pictures themselves come first, then all copies by one shift after the other, with 0 where nothing was. copies:
    so many in place of all, the pictures themselves among them, each of the others moved by a shift drawn by the seed.
    """
    check_int("pixels", pixels, 0)
    images = _pictures(images)
    check_consistent_length(images, labels)
    moves = [
        (i, j)
        for i in range(-pixels, pixels + 1)
        for j in range(-pixels, pixels + 1)
        if (i, j) != (0, 0)
    ]
    if copies is None:
        parts = [_moved(images, *move) for move in moves]
    else:
        generator = make_generator(seed)
        parts = [
            _moved_each(images, moves, generator) for _ in range(1, check_int("copies", copies))
        ]
    return torch.cat([images, *parts]), _again(labels, 1 + len(parts))


def _again(
    labels: Shaped[Tensor | np.ndarray, " N"], times: int
) -> Shaped[Tensor | np.ndarray, " K"]:
    """Labels of any kind, so many times over."""
    labels = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if isinstance(labels, np.ndarray) and labels.dtype.kind not in "biuf":
        return np.tile(labels, times)  # words, which tensors don't hold
    return as_tensor(labels).repeat(times)


def _moved_each(images: Tensor, moves: list[tuple[int, int]], generator: torch.Generator) -> Tensor:
    """Every picture by one of the moves, drawn for it alone."""
    found, drawn = (
        images.clone(),
        torch.randint(max(1, len(moves)), (len(images),), generator=generator),
    )
    for number, move in enumerate(moves):
        chosen = (drawn == number).to(images.device)
        found[chosen] = _moved(images[chosen], *move)
    return found


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """Every picture so many pixels lower and farther to the right."""
    height, width = images.shape[1:3]
    tail = [0, 0] * (images.ndim - 3)
    frame = pad(images, [*tail, max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)])
    return frame[:, max(-down, 0) :][:, :height, max(-right, 0) :][:, :, :width]


def mirrored_copies(images: Shaped[Tensor, "N H W *C"]) -> Shaped[Tensor, "N H W *C"]:
    """Every picture seen in a mirror beside it."""
    return _pictures(images).flip(2)
