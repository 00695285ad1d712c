"""Centers for a picture: put where the error is, moved by gradient, and rounded bit by bit while the rest adapts."""

import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from nnlib._common.runtime import make_generator
from nnlib.image_codec.center_coding import SHAPE_LIMITS, QuantizedCenters, snap
from nnlib.image_codec.splatting import TileGrid, render, select_centers, squared_error

RATES = (0.6, 0.08, 0.03)  # steps of Adam for places (pixels), shapes and colours
SEARCH = 10  # steps between looks for the centers near a tile
ROUND_FROM, ROUND_TO = (
    0.5,
    0.92,
)  # the share of the steps in which places and shapes are rounded, a few at a time


class CenterFitter:
    """Centers that are being fitted to a picture [H, W, C] of opponent colours."""

    def __init__(
        self,
        picture: Float[Tensor, "H W C"],
        seed: int | None = 0,
        parts: list[Tensor] | None = None,
    ):
        self.picture, self.generator = picture, make_generator(seed)
        self.height, self.width, self.channels = picture.shape
        self.grid = TileGrid(self.height, self.width, device=picture.device)
        self.target = self.grid.tiled(picture)
        self.inside = self.grid.tiled(torch.ones_like(picture[..., :1]))
        fresh = parts or [picture.new_zeros(0, size) for size in (2, 3, self.channels)]
        self.parts = [part.clone().requires_grad_() for part in fresh]  # places, shapes, colours

    def add(self, count: int) -> None:
        """Put `count` more centers, where the error is large, a first time where the picture changes."""
        total = (
            self.unevenness().flatten().cpu().double().cumsum(0)
        )  # multinomial ends at 2^24 pixels
        drawn = torch.rand(count, generator=self.generator, dtype=torch.float64) * total[-1]
        chosen = (
            torch.searchsorted(total, drawn, right=True)
            .clamp(max=len(total) - 1)
            .to(self.picture.device)
        )
        rows, columns = chosen // self.width, chosen % self.width
        places = torch.stack([rows, columns], 1) + 0.5
        every = torch.cat([self.parts[0].detach(), places]).cpu().numpy()
        apart = cKDTree(every).query(places.cpu().numpy(), k=[min(3, len(every))])[0][
            :, 0
        ]  # itself is the first
        apart = torch.from_numpy(apart).float() if len(every) > 1 else torch.full((count,), 99.0)
        shapes = torch.stack([-2 * apart.clamp(1.5, 99).log(), apart * 0, apart * 0], 1).to(
            self.picture.device
        )
        new = places, shapes, self.picture[rows, columns]
        self.parts = [
            torch.cat(both).detach().requires_grad_() for both in zip(self.parts, new, strict=True)
        ]

    def unevenness(self) -> Float[Tensor, "H W"]:
        """How much a center is wanted at each pixel: the error around it, or the contrast while there is none."""
        if len(self.parts[0]):
            error = ((self.drawn() - self.picture) ** 2).sum(2)
        else:
            luma = self.picture[..., 0]
            error = torch.zeros_like(luma)
            error[1:] += (luma[1:] - luma[:-1]).abs()
            error[:, 1:] += (luma[:, 1:] - luma[:, :-1]).abs()
        smooth = torch.nn.functional.avg_pool2d(
            error[None, None], 9, 1, 4, count_include_pad=False
        )[0, 0]
        return smooth + 0.3 * smooth.mean() + 1e-9

    @torch.no_grad()
    def drawn(self) -> Float[Tensor, "H W C"]:
        return render(self.grid, *self.parts, select_centers(self.grid, *self.parts[:2]))

    def move(
        self, steps: int, first: float = 1.0, last: float = 1.0, rounding: bool = False, after=None
    ) -> None:
        """Gradient steps, from `first` to `last` times the usual size; `rounding`, they end on what can be written."""
        optimizer = torch.optim.Adam([{"params": [part]} for part in self.parts], betas=(0.9, 0.99))
        turn = torch.rand(len(self.parts[0]), 1, generator=self.generator).to(self.picture.device)
        near = None
        for step in range(steps):
            share = step / steps
            for group, rate in zip(optimizer.param_groups, RATES, strict=True):
                group["lr"] = rate * (first + (last - first) * share)
            if step % SEARCH == 0:
                near = select_centers(self.grid, *self.parts[:2])
            self._gradient(near)
            fixed = [turn < bound for bound in self._bounds(share)] if rounding else []
            self._step(optimizer, fixed)
            if after is not None:
                after()

    def _bounds(self, share: float) -> tuple[float, float, float]:
        geometry = (share - ROUND_FROM) / (ROUND_TO - ROUND_FROM)
        colour = (share - ROUND_FROM - 0.08) / (ROUND_TO - ROUND_FROM)
        return tuple(1 - (1 - min(max(part, 0), 1)) ** 1.5 for part in (geometry, geometry, colour))

    def _gradient(self, near) -> None:
        for part in self.parts:
            part.grad = None
        squared_error(self.grid, self.target, self.inside, *self.parts, near).backward()

    @torch.no_grad()
    def _step(self, optimizer, fixed) -> None:
        """A step of Adam; parts that are fixed are rounded instead, and stay."""
        kept = self._rounded() if fixed else []
        optimizer.step()
        for part, fix, even in zip(
            self.parts, fixed, kept, strict=False
        ):  # none is fixed, or each part in places
            part.copy_(torch.where(fix, even, part))
        self.parts[0].clamp_(min=0).clamp_(max=self.picture.new_tensor([self.height, self.width]))
        self.parts[1].clamp_(*(self.picture.new_tensor(limit) for limit in SHAPE_LIMITS))

    def copy(self) -> list[Tensor]:
        return [part.detach().clone() for part in self.parts]

    def marks(self) -> QuantizedCenters:
        return snap(*(part.detach().cpu() for part in self.parts), self.height, self.width)

    def _rounded(self) -> list[Tensor]:
        return [part.to(self.picture.device) for part in self.marks().tensors()]
