"""Unsupervised image features: how much of each of many random patches is where."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, normalize

from nnlib._common.runtime import make_generator, resolve_device, torch_defaults
from nnlib._common.serialization import SafetensorsMixin
from nnlib._common.validation import (
    as_tensor,
    check_choice,
    check_finite,
    check_int,
    check_number,
    like_input,
)
from nnlib.attention import MATMUL_DTYPES
from nnlib.features.augment import Images, mirrored_copies

SAMPLED_PATCHES = 100_000  # to measure the whitening on
BLOCK_NUMBERS = 1 << 23  # responses at a time


@dataclass(eq=False, repr=False)
class PatchFeatures(
    SafetensorsMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Encode images in 0..255 by pooled responses to whitened patches of the training images.

    Every patch of [N, H, W] or [N, H, W, C] is freed of its brightness and contrast, whitened and
    compared with the filters; what exceeds the threshold on either side is averaged over each part
    of the image, giving 2 x count x pool x pool features that are not negative.

    Parameters
    ----------
    count, size, pool : int
        Number of filters, their side in pixels, and parts of the image along a side.
    threshold, softening, floor : float
        What a response has to exceed; added to contrasts' squares, in grey levels squared; added
        to the variances before whitening.
    mirror, compact : bool
        Average over the image and its mirror image; store features in bfloat16.
    matmul_dtype : {"float32", "bfloat16"}

    References
    ----------
    A. Coates, A. Ng, The importance of encoding versus training with sparse coding and vector
    quantization, 2011.

    Examples
    --------
    >>> images = 255 * torch.rand(20, 9, 9, generator=torch.Generator().manual_seed(0))
    >>> PatchFeatures(count=5, size=3).fit(images).transform(images).shape
    torch.Size([20, 40])
    """

    saved_attributes = ("shape_",)
    saved_tensors = ("mean_", "whitening_", "filters_")

    count: int = 400
    size: int = 6
    pool: int = 2
    threshold: float = 1.0
    softening: float = 10.0
    floor: float = 0.1
    mirror: bool = False
    compact: bool = False
    matmul_dtype: str = "float32"
    random_state: int | None = 0
    device: str = "auto"

    @torch_defaults()
    def fit(self, X, y=None):
        """Measure the whitening and draw the filters; ValueError for shapes or settings."""
        images = self._check(X)
        generator = make_generator(self.random_state, "random_state")
        patches = self._draw(images, generator).to(resolve_device(self.device))
        contrast = float(patches.var(1).mean())
        if 0 < contrast < 0.1 * self.softening:
            raise ValueError(
                f"X's patches vary by {contrast:.2g} grey levels squared, which "
                f"softening={self.softening!r} blots out: give images in 0..255, or less softening"
            )
        patches = patches - patches.mean(1, keepdim=True)
        patches = patches / (patches.var(1, keepdim=True) + self.softening).sqrt()
        self.mean_ = patches.mean(0)
        covariance = torch.cov((patches - self.mean_).T).cpu().double()
        variances, axes = torch.linalg.eigh(covariance)
        scales = (variances.clamp(min=0) + self.floor).rsqrt()
        self.whitening_ = (axes * scales @ axes.T).to(patches)
        chosen = torch.randperm(len(patches), generator=generator)[: self.count]
        chosen = patches[chosen.to(patches.device)]
        self.filters_ = normalize((chosen - self.mean_) @ self.whitening_, dim=1)
        self.shape_ = tuple(images.shape[1:])
        return self

    @torch_defaults()
    def transform(self, X) -> Float[Tensor, "N F"]:
        """Return the features, on the device of X."""
        check_is_fitted(self)
        images = self._check(X)
        shape = tuple(self.shape_)
        if tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"X holds images {tuple(images.shape[1:])}: give {shape}, as it was fitted on"
            )
        places = (shape[0] - self.size + 1) * (shape[1] - self.size + 1)
        parts = []
        for part in images.split(max(1, BLOCK_NUMBERS // (places * self.count))):
            part = part.to(self.filters_.device)
            features = self._features(part)
            if self.mirror:
                features = (features + self._features(mirrored_copies(part))) / 2
            parts.append(features.bfloat16() if self.compact else features)
        return like_input(torch.cat(parts), X)

    @property
    def _n_features_out(self) -> int:
        return 2 * len(self.filters_) * self.pool**2

    def _features(self, images: Tensor) -> Float[Tensor, "B F"]:
        patches = self._whiten(images)
        dtype = torch.bfloat16 if self.matmul_dtype == "bfloat16" else patches.dtype
        responses = patches.flatten(0, 2).to(dtype) @ self.filters_.to(dtype).T
        responses = responses.view(*patches.shape[:3], -1)
        parts = []
        for strip in responses.tensor_split(self.pool, 1):
            for part in strip.tensor_split(self.pool, 2):
                least = self.threshold * part.shape[1] * part.shape[2]
                above = part.clamp(min=self.threshold).sum((1, 2), dtype=torch.float32)
                below = part.clamp(max=-self.threshold).sum((1, 2), dtype=torch.float32)
                parts += [above - least, -below - least]
        return torch.cat(parts, 1) * (self.pool**2 / (patches.shape[1] * patches.shape[2]))

    def _whiten(self, images: Images) -> Float[Tensor, "B H W S"]:
        """Whiten all patches by one convolution, over the contrasts, less the mean."""
        planes = _planes(images)
        numbers = self.mean_.numel()
        centered = planes - planes.mean((1, 2, 3), keepdim=True)
        centered = centered.contiguous(memory_format=torch.channels_last)
        kernels = self.whitening_ - self.whitening_.mean(1, keepdim=True)  # blind to brightness
        white = conv2d(centered, kernels.view(-1, planes.shape[1], self.size, self.size))
        mean = avg_pool2d(centered.mean(1, keepdim=True), self.size, 1)[:, 0]
        square = avg_pool2d(centered.square().mean(1, keepdim=True), self.size, 1)[:, 0]
        unbiased = numbers / max(1, numbers - 1)
        variance = (square - mean.square()).clamp_(min=0) * unbiased
        contrast = (variance + self.softening).sqrt()
        return white.movedim(1, -1) / contrast[..., None] - self.mean_ @ self.whitening_

    def _draw(self, images: Tensor, generator: torch.Generator) -> Float[Tensor, "K S"]:
        """Draw patches from anywhere in any images."""
        sides = [side - self.size + 1 for side in images.shape[1:3]]
        drawn = (SAMPLED_PATCHES, 1, 1)
        image = torch.randint(len(images), drawn, generator=generator).to(images.device)
        top = torch.randint(sides[0], drawn, generator=generator).to(images.device)
        left = torch.randint(sides[1], drawn, generator=generator).to(images.device)
        step = torch.arange(self.size, device=images.device)
        return _planes(images[image, top + step[:, None], left + step]).flatten(1)

    def _check(self, X) -> Images:
        for name in ("count", "size", "pool"):
            check_int(name, getattr(self, name))
        for name, interval in (("threshold", "["), ("softening", "["), ("floor", "(")):
            check_number(name, getattr(self, name), f"{interval}0, inf)")
        check_choice("matmul_dtype", self.matmul_dtype, MATMUL_DTYPES)
        images = as_tensor("X", X)
        least = self.size + self.pool - 1
        if images.ndim not in (3, 4) or len(images) == 0 or min(images.shape[1:3]) < least:
            raise ValueError(
                f"X has shape {tuple(images.shape)}: give images [N, H, W] or [N, H, W, C], "
                f"{least} wide"
            )
        if self.size == 1 and images[0, 0, 0].numel() == 1:
            raise ValueError("size=1 of grey images: a pixel is all brightness, give 2 or more")
        check_finite("X", images)
        return images


def _planes(images: Images) -> Float[Tensor, "B C H W"]:
    return images.float().movedim(3, 1) if images.ndim == 4 else images.float()[:, None]
