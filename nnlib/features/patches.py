"""Features of pictures that no label has touched: how much of each of many random patches is where.

Source: A. Coates, A. Ng, "The importance of encoding versus training with sparse coding and vector quantization", 2011.
"""

import torch
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, normalize

from nnlib._common.runtime import make_generator, resolve_device
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
from nnlib.features.augment import mirrored_copies

SAMPLE = 100_000  # patches that the whitening is measured on
FAINT = 0.1  # of the softening: contrasts below are lost in it, as all are of pictures in 0..1 by default
BLOCK_NUMBERS = 1 << 23  # responses at a time


class PatchFeatures(
    SafetensorsMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Pictures [N, H, W] or [N, H, W, C] in 0..255 to non-negative features [N, 2 x count x pool x pool].

    Every patch of size x size pixels is freed of its brightness and contrast, whitened, and compared with `count`
    whitened patches drawn from the training pictures; what exceeds `threshold`, on either side, is averaged over each
    of pool x pool parts of the picture. mirror: a picture and its mirror image have the same features, the mean of
    both. softening: added to contrasts' squares, in grey levels squared; floor: to the whitening's variances.
    matmul_dtype: "bfloat16" for quicker, coarser products. Needs no labels. Features are stored in bfloat16 if `compact`.
    """

    saved_attributes = ("shape_",)
    saved_tensors = ("mean_", "whitening_", "filters_")

    def __init__(
        self,
        count: int = 400,
        size: int = 6,
        pool: int = 2,
        threshold: float = 1.0,
        softening: float = 10.0,
        floor: float = 0.1,
        mirror: bool = False,
        compact: bool = False,
        matmul_dtype: str = "float32",
        seed: int | None = 0,
        device: str = "auto",
    ):
        self.count, self.size, self.pool, self.threshold = count, size, pool, threshold
        self.softening, self.floor, self.mirror, self.compact = softening, floor, mirror, compact
        self.matmul_dtype, self.seed, self.device = matmul_dtype, seed, device

    def fit(self, X, y=None):
        """Measure the whitening and draw the patches; raises ValueError for shapes or settings without sense."""
        images = self._checked(X)
        generator = make_generator(self.seed)
        drawn = self._drawn(images, generator).to(resolve_device(self.device))
        contrast = float(drawn.var(1).mean())
        if 0 < contrast < FAINT * self.softening:
            raise ValueError(
                f"X's patches vary by {contrast:.2g} grey levels squared, which softening={self.softening!r} blots "
                "out: give pictures in 0..255, or less softening"
            )
        rows = self._even(drawn)
        self.mean_ = rows.mean(0)
        spread, axes = torch.linalg.eigh(torch.cov((rows - self.mean_).T).cpu().double())
        self.whitening_ = (axes * (spread.clamp(min=0) + self.floor).rsqrt() @ axes.T).to(rows)
        chosen = torch.randperm(len(rows), generator=generator)[: self.count].to(rows.device)
        self.filters_ = normalize((rows[chosen] - self.mean_) @ self.whitening_, dim=1)
        self.shape_ = tuple(images.shape[1:])
        return self

    def transform(self, X) -> Float[Tensor, "N F"]:
        """The features, on the device where X lies."""
        check_is_fitted(self)
        images = self._checked(X)
        if list(images.shape[1:]) != list(self.shape_):
            raise ValueError(
                f"X holds pictures {tuple(images.shape[1:])}: give {tuple(self.shape_)}, as it was fitted on"
            )
        height, width = (side - self.size + 1 for side in self.shape_[:2])
        rows = max(1, BLOCK_NUMBERS // (height * width * self.count))
        parts = [
            self._both(part).to(torch.bfloat16 if self.compact else torch.float32)
            for part in images.split(rows)
        ]
        return like_input(torch.cat(parts), X)

    @property
    def _n_features_out(self) -> int:
        return 2 * len(self.filters_) * self.pool**2

    def _both(self, images: Tensor) -> Float[Tensor, "B F"]:
        images = images.to(self.filters_.device)
        seen = self._features(images)
        return (seen + self._features(mirrored_copies(images))) / 2 if self.mirror else seen

    def _features(self, images: Tensor) -> Float[Tensor, "B F"]:
        rows = self._whitened(images)
        if self.matmul_dtype == "bfloat16":
            found = rows.bfloat16() @ self.filters_.bfloat16().T
        else:
            found = rows @ self.filters_.T
        height, width = (side - self.size + 1 for side in self.shape_[:2])
        strips = found.view(len(images), height, width, -1).tensor_split(self.pool, 1)
        parts = [
            self._excess(part) for strip in strips for part in strip.tensor_split(self.pool, 2)
        ]
        return torch.cat(parts, 1) * (self.pool**2 / (height * width))

    def _excess(self, part: Float[Tensor, "B H W K"]) -> Float[Tensor, "B F"]:
        """What responses in a part of each picture exceed the threshold by on either side, in all."""
        over, places = self.threshold, part.shape[1] * part.shape[2]
        high = part.clamp(min=over).sum((1, 2), dtype=torch.float32) - places * over
        return torch.cat(
            [high, -part.clamp(max=-over).sum((1, 2), dtype=torch.float32) - places * over], 1
        )

    def _whitened(self, images: Shaped[Tensor, "B H W *C"]) -> Float[Tensor, "K S"]:
        """All patches of all pictures, even and white: one convolution, over the contrasts, less the mean."""
        planes, size, numbers = _planes(images), self.size, self.mean_.numel()
        around = (planes - planes.mean((1, 2, 3), keepdim=True)).contiguous(
            memory_format=torch.channels_last
        )
        even = self.whitening_ - self.whitening_.mean(
            1, keepdim=True
        )  # takes a patch's brightness away
        white = conv2d(around, even.view(-1, planes.shape[1], size, size)).movedim(1, -1)
        sums = [
            avg_pool2d(part.mean(1, keepdim=True), size, 1)[:, 0]
            for part in (around, around.square())
        ]
        contrast = (sums[1] - sums[0].square()).clamp_(min=0) * (
            numbers / max(1, numbers - 1)
        ) + self.softening
        return (white / contrast.sqrt()[..., None] - self.mean_ @ self.whitening_).flatten(0, 2)

    def _drawn(self, images: Tensor, generator: torch.Generator) -> Float[Tensor, "K S"]:
        """Patches from anywhere in any pictures."""
        tops = [side - self.size + 1 for side in images.shape[1:3]]
        picture, top, left = (
            torch.randint(n, (SAMPLE, 1, 1), generator=generator) for n in (len(images), *tops)
        )
        step = torch.arange(self.size)
        places = (part.to(images.device) for part in (picture, top + step[:, None], left + step))
        return _planes(images[*places]).flatten(1)

    def _even(self, rows: Float[Tensor, "K S"]) -> Float[Tensor, "K S"]:
        """Patches without their brightness and contrast."""
        rows = rows - rows.mean(1, keepdim=True)
        return rows / (rows.var(1, keepdim=True) + self.softening).sqrt()

    def _checked(self, X) -> Shaped[Tensor, "N H W *C"]:
        for name in ("count", "size", "pool"):
            check_int(name, getattr(self, name))
        check_choice("matmul_dtype", self.matmul_dtype, MATMUL_DTYPES)
        for name, within in {
            "threshold": "[0, inf)",
            "softening": "[0, inf)",
            "floor": "(0, inf)",
        }.items():
            check_number(name, getattr(self, name), within)
        images = as_tensor(X)
        if (
            images.ndim not in (3, 4)
            or len(images) == 0
            or min(images.shape[1:3]) < self.size + self.pool - 1
        ):
            least = self.size + self.pool - 1
            raise ValueError(
                f"X has shape {tuple(images.shape)}: give pictures [N, H, W] or [N, H, W, C], {least} wide"
            )
        if self.size == 1 and images[0, 0, 0].numel() == 1:
            raise ValueError(
                "size=1 of grey pictures: freed of its brightness a pixel says nothing, give 2 or more"
            )
        check_finite("X", images)
        return images


def _planes(images: Shaped[Tensor, "B H W *C"]) -> Float[Tensor, "B C H W"]:
    return images.float().movedim(3, 1) if images.ndim == 4 else images.float()[:, None]
