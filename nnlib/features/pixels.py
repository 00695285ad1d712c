"""Pictures as data to learn: where each pixel is, and its colour."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nnlib._common.runtime import torch_defaults
from nnlib._common.validation import as_tensor


@torch_defaults()
def pixel_samples(
    image: UInt8[Tensor, "H W C"],
) -> tuple[Float[Tensor, "P 2"], Float[Tensor, "P C"]]:
    """Turn a picture into samples for a regressor: rows and columns, and colours in 0..1.

    Parameters
    ----------
    image : uint8 tensor or array [H, W, C]

    Examples
    --------
    >>> pixel_samples(torch.zeros(2, 3, 3, dtype=torch.uint8))[0].shape
    torch.Size([6, 2])
    """
    image = as_tensor("image", image)
    if image.ndim != 3:
        raise ValueError(f"image has shape {tuple(image.shape)}: give [H, W, C]")
    sides = [torch.arange(float(size), device=image.device) for size in image.shape[:2]]
    return torch.cartesian_prod(*sides), image.flatten(0, 1).float() / 255
