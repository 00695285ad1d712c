"""Fit centers: placed where the error is, moved by gradient, quantized while the others adapt."""

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nnlib._common.runtime import make_generator, torch_defaults
from nnlib.image_codec.bitstream import rgb_to_opponent
from nnlib.image_codec.center_coding import SHAPE_MAX, SHAPE_MIN, QuantizedCenters, quantize_centers
from nnlib.image_codec.splatting import TileGrid, add_error_gradients, render, select_centers

LEARNING_RATES = (0.6, 0.08, 0.03)  # Adam's for positions (pixels), shapes and colours
SELECTION_INTERVAL = 10  # steps between selections of the centers of each tile
QUANTIZATION_STARTS = (0.5, 0.5, 0.58)  # of positions, shapes, colours: fractions of the steps
QUANTIZATION_DURATION = 0.42
MAX_SPACING = 99.0  # pixels


class CenterFitter:
    """Centers that are being fitted to a picture; `add` and `move` them in turn.

    Parameters
    ----------
    picture : float tensor [H, W, 3] (RGB) or [H, W, 1] in 0..1
    seed : int or None, default 0

    Attributes
    ----------
    parts : list of positions [M, 2] in pixels, shapes [M, 3] and opponent colours [M, C]

    Examples
    --------
    >>> fitter = CenterFitter(torch.rand(16, 16, 1))
    >>> fitter.add(5)
    >>> fitter.move(steps=2)
    >>> fitter.render().shape
    torch.Size([16, 16, 1])
    """

    @torch_defaults()
    def __init__(self, picture: Tensor, seed: int | None = 0):
        height, width, channels = picture.shape
        self.picture = rgb_to_opponent(picture)
        self.generator = make_generator(seed)
        self.grid = TileGrid(height, width, device=picture.device)
        self.target = self.grid.split(self.picture)
        self.inside = self.grid.split(torch.ones_like(picture[..., :1]))
        self.parts = [picture.new_zeros(0, size) for size in (2, 3, channels)]

    @torch_defaults(gradients=True, one_core=True)
    def add(self, count: int) -> None:
        """Place `count` more centers at random, more of them where `density` is higher."""
        cumulative = self.density().flatten().cpu().double().cumsum(0)  # multinomial has a limit
        draws = torch.rand(count, generator=self.generator, dtype=torch.float64) * cumulative[-1]
        pixels = torch.searchsorted(cumulative, draws, right=True).clamp(max=len(cumulative) - 1)
        rows, columns = torch.unravel_index(pixels, self.picture.shape[:2])
        positions = torch.stack([rows, columns], 1) + 0.5
        existing = torch.cat([self.parts[0].detach().cpu(), positions])
        neighbor = 3 if len(existing) > 2 else 2  # the first is the center itself
        distances, _ = cKDTree(existing.numpy()).query(positions.numpy(), k=[neighbor])
        spacing = torch.from_numpy(distances[:, 0]).float().clamp(1.5, MAX_SPACING)  # inf: alone
        shapes = torch.stack([-2 * spacing.log(), 0 * spacing, 0 * spacing], 1)
        new = [part.to(self.picture) for part in (positions, shapes)]
        both = zip(self.parts, [*new, self.picture[rows, columns]], strict=True)
        self.parts = [torch.cat(parts).detach().requires_grad_() for parts in both]

    def density(self) -> Tensor:
        """How many new centers each pixel wants: by the error around it, at first by contrast."""
        if len(self.parts[0]):
            error = (self.render() - self.picture).square().sum(2)
        else:
            luma = self.picture[..., 0]
            error = torch.zeros_like(luma)
            error[1:] += luma.diff(dim=0).abs()
            error[:, 1:] += luma.diff(dim=1).abs()
        smooth = avg_pool2d(error[None], 9, 1, 4, count_include_pad=False)[0]
        return smooth + 0.3 * smooth.mean() + 1e-9

    @torch_defaults(gradients=False)
    def render(self) -> Tensor:
        """Render the centers as they are, in opponent colours."""
        return render(self.grid, *self.parts)

    @torch_defaults(gradients=True, one_core=True)
    def move(self, steps: int, final_rate: float = 1.0, quantizing=False, callback=None) -> None:
        """Take gradient steps, the last of `final_rate` times the usual size.

        `quantizing`, a growing random part of the centers is quantized, and all are in the end.
        """
        optimizer = torch.optim.Adam([{"params": [p]} for p in self.parts], betas=(0.9, 0.99))
        turn = torch.rand(len(self.parts[0]), 1, generator=self.generator).to(self.picture)
        size = self.picture.new_tensor([self.grid.height, self.grid.width])
        limits = [self.picture.new_tensor(limit) for limit in (SHAPE_MIN, SHAPE_MAX)]
        for step in range(steps):
            progress = step / steps
            for group, rate in zip(optimizer.param_groups, LEARNING_RATES, strict=True):
                group["lr"] = rate * (1 + (final_rate - 1) * progress)
            if step % SELECTION_INTERVAL == 0:
                selected = select_centers(self.grid, *self.parts[:2])
            optimizer.zero_grad()
            add_error_gradients(self.grid, self.target, self.inside, *self.parts, selected)
            quantized = self.quantized().tensors() if quantizing else self.parts
            optimizer.step()
            with torch.no_grad():
                rows = zip(self.parts, quantized, QUANTIZATION_STARTS, strict=True)
                for part, fixed, start in rows:
                    remaining = 1 - (progress - start) / QUANTIZATION_DURATION
                    fraction = 1 - min(max(remaining, 0), 1) ** 1.5
                    part.copy_(torch.where(turn < fraction, fixed.to(part), part))
                self.parts[0].clamp_(min=0).clamp_(max=size)
                self.parts[1].clamp_(*limits)
            if callback is not None:
                callback()

    def quantized(self) -> QuantizedCenters:
        """Quantize the centers."""
        return quantize_centers(*self.parts, self.grid.height, self.grid.width)
