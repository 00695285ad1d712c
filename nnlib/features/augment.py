"""Images before anything is learned from labels: upright, blurred, shifted and mirrored."""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.utils.validation import check_consistent_length
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad
from torchvision.transforms.v2.functional import gaussian_blur

from nnlib._common.runtime import make_generator, torch_defaults
from nnlib._common.validation import as_tensor, check, check_int, check_number

BATCH = 4096  # images at a time

Images = Shaped[Tensor, "N H W *C"]
Grey = Float[Tensor, "N H W"]


@torch_defaults()
def deskew(images: Images) -> Grey:
    """Shear and move grey images until their mass is upright and centered.

    Parameters
    ----------
    images : Tensor or ndarray [N, H, W]
        An empty image stays empty.

    References
    ----------
    Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.

    Examples
    --------
    >>> deskew(torch.eye(5)[None])[0].argmax(1).tolist()
    [2, 2, 2, 2, 2]
    """
    images = _check_images(images, (3,))
    if len(images) == 0:
        return images.float()
    return torch.cat([_upright(part.float()) for part in images.split(BATCH)])


def _upright(images: Grey) -> Grey:
    """Shear by least squares: the covariance of rows and columns over the rows' variance."""
    height, width = images.shape[1:]
    rows = torch.linspace(-1, 1, height, device=images.device)
    columns = torch.linspace(-1, 1, width, device=images.device)
    mass = images / images.sum((1, 2), keepdim=True).clamp(min=1e-6)
    row_mean = mass.sum(2) @ rows
    column_mean = mass.sum(1) @ columns
    down = rows - row_mean[:, None]
    right = columns - column_mean[:, None]
    covariance = torch.einsum("bhw,bh,bw->b", mass, down, right)
    shear = covariance / (mass.sum(2) * down.square()).sum(1).clamp(min=1e-6)
    one = torch.ones_like(shear)
    zero = torch.zeros_like(shear)
    maps = torch.stack([one, shear, column_mean, zero, one, row_mean], 1).view(-1, 2, 3)
    grid = affine_grid(maps, [len(images), 1, height, width], align_corners=True)
    return grid_sample(images[:, None], grid, align_corners=True)[:, 0]


@torch_defaults()
def blur(images: Images, sigma: float = 1.0) -> Grey:
    """Blur grey images, so that small shifts change distances little.

    Parameters
    ----------
    images : Tensor or ndarray [N, H, W]
    sigma : float, default=1.0
        Deviation of the Gaussian in pixels, at most a third of the smaller side.

    Examples
    --------
    >>> blur(torch.eye(7)[None], 0.5).shape
    torch.Size([1, 7, 7])
    """
    sigma = float(check_number("sigma", sigma, "(0, inf)", "a positive number of pixels"))
    images = _check_images(images, (3,))
    radius = round(3 * sigma)
    side = min(images.shape[1:])
    check(radius < side, "sigma", sigma, f"{(side - 1) / 3:.3g} at most for images this small")
    parts = [part.float()[:, None] for part in images.split(BATCH)]
    return torch.cat([gaussian_blur(part, 2 * radius + 1, sigma)[:, 0] for part in parts])


@torch_defaults()
def shifted_copies(
    images: Images,
    labels: Tensor | np.ndarray,
    pixels: int = 1,
    copies: int | None = None,
    seed: int | None = 0,
) -> tuple[Images, Tensor | np.ndarray]:
    """Add copies of images, moved by up to `pixels` each way over a ground of 0.

    Parameters
    ----------
    images : Tensor or ndarray [N, H, W] or [N, H, W, C]
    labels : Tensor or ndarray [N]
    copies : int, optional
        None for every shift, (2 pixels + 1)^2 N images in all; else so many times N, each copy
        moved by a shift drawn by the seed. The images themselves come first and count.

    Examples
    --------
    >>> images, labels = shifted_copies(torch.ones(2, 5, 5), torch.tensor([3, 4]))
    >>> len(images), labels[:4].tolist()
    (18, [3, 4, 3, 4])
    """
    last = 2 * check_int("pixels", pixels, 0)
    images = _check_images(images, (3, 4))
    check_consistent_length(images, labels)
    windows = _windows(images, pixels)
    still = (last + 1) ** 2 // 2  # the number of the shift that moves nothing
    rows = slice(None)
    if copies is None:
        shifts = [*range(still), *range(still + 1, 2 * still + 1)]
    else:
        rows = torch.arange(len(images))
        shifts = _draw_shifts(len(images), still, check_int("copies", copies) - 1, seed)
    side = last + 1
    moved = [windows[rows, last - shift // side, last - shift % side] for shift in shifts]
    repeat = torch.tile if isinstance(labels, Tensor) else np.tile
    return torch.cat([images, *moved]), repeat(labels, (1 + len(moved),))


def _windows(images: Images, pixels: int) -> Tensor:
    """Return a view [N, top, left, ...] of all crops out of the padded images."""
    height, width = images.shape[1:3]
    padded = pad(images, [0, 0] * (images.ndim - 3) + [pixels] * 4)
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)
    return windows.movedim(3, -1) if images.ndim == 4 else windows


def _draw_shifts(images: int, still: int, copies: int, seed: int | None) -> list[Tensor]:
    """Draw each image's shift for each copy, never the one that moves nothing."""
    generator = make_generator(seed)
    shifts = []
    for _ in range(copies):
        shift = torch.randint(max(1, 2 * still), (images,), generator=generator)
        shifts.append(shift + (shift >= still))
    return shifts


@torch_defaults()
def mirrored_copies(images: Images) -> Images:
    """Mirror images left to right.

    Parameters
    ----------
    images : Tensor or ndarray [N, H, W] or [N, H, W, C]

    Examples
    --------
    >>> mirrored_copies(torch.tensor([[[1, 2], [3, 4]]])).tolist()
    [[[2, 1], [4, 3]]]
    """
    return _check_images(images, (3, 4)).flip(2)


def center_box(width, height) -> tuple[float, ...]:
    """Return the box that is tested on: 224/256 of the shorter side, about the middle."""
    side = min(width, height) * 224 / 256
    left = (width - side) / 2
    top = (height - side) / 2
    return left, top, left + side, top + side


def random_box(width, height, generator, least):
    """Return a random box: from `least` of the area to all of it, its sides from 3:4 to 4:3."""
    for _ in range(10):
        area = width * height * generator.uniform(least, 1)
        ratio = np.exp(generator.uniform(*np.log([3 / 4, 4 / 3])))
        w = (area * ratio) ** 0.5
        h = (area / ratio) ** 0.5
        if w <= width and h <= height:
            left = generator.uniform(0, width - w)
            top = generator.uniform(0, height - h)
            return left, top, left + w, top + h
    return center_box(width, height)


def _check_images(images, dimensions: tuple[int, ...]) -> Images:
    images = as_tensor("images", images)
    if images.ndim not in dimensions:
        shapes = " or ".join(["[N, H, W]", "[N, H, W, C]"][: len(dimensions)])
        raise ValueError(f"images has shape {tuple(images.shape)}: give images {shapes}")
    return images
