"""Softmax of cosines as the attention that PyTorch has a fused kernel for, in bfloat16."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from nnlib.cosine import unit

WIDEST = 256  # features, and columns of values, that those kernels take
LANES = 8  # their widths are multiples of it


def softmax_averages(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    values: Shaped[Tensor, "M V"],
    temperature: float,
    dtype: torch.dtype,
) -> Float[Tensor, "B V"]:
    """Averages by exp(cos / temperature), differentiable; unit rows and values are rounded to eight bits."""
    width = max(queries.shape[1], values.shape[1])
    width += -width % LANES

    def rows(part: Tensor) -> Tensor:
        return pad(part, (0, width - part.shape[1])).bfloat16()[None, None]

    q, k = (rows(unit(part.to(dtype))) for part in (queries, centers))
    return scaled_dot_product_attention(q, k, rows(values), scale=1 / temperature)[0, 0, :, : values.shape[1]].to(dtype)
