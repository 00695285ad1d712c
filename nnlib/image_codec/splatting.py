"""The weighted average of centers at pixels: square tiles, and for each only its relevant centers.

A center c with shape matrix A scores -(x - c)^T A (x - c), the dot product of x's monomials 1, y,
x, y^2, yx, x^2 with six coefficients of the center. So a tile's scores are one matrix product, and
`attend(monomials, coefficients, values, DotProduct())` is the same average over all centers.

Centers have positions [M, 2], shapes [M, 3] and values [M, V]; tiled pictures are [T, V, P] with P
pixels a tile, selected centers [T, K].
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

TILE = 16  # pixels a side
CENTERS_PER_TILE = 24
BLOCK = 32  # tiles at a time, whose weights stay in a CPU's cache
REGION = 8  # tiles a side that share their candidates
OUTSIDE_CANDIDATES = 128  # centers whose weight may extend into a region from outside
INSIDE_CANDIDATES = 4096
PROBES = (-0.45, 0.0, 0.45)  # where a tile is looked at, along each side


class TileGrid:
    """The tiles of a picture [height, width], rendered at `zoom` samples a pixel."""

    def __init__(self, height: int, width: int, zoom: int = 1, device: torch.device | str = "cpu"):
        self.height = height * zoom
        self.width = width * zoom
        self.side = TILE * zoom
        self.rows = -(-height // TILE)
        self.columns = -(-width // TILE)
        offsets = (torch.arange(self.side, device=device) + 0.5) / zoom - TILE / 2
        self.monomials = monomials(torch.cartesian_prod(offsets, offsets)).T.contiguous()
        index = torch.cartesian_prod(torch.arange(self.rows), torch.arange(self.columns))
        self.middles = (index.to(device) + 0.5) * TILE  # [tiles, 2], in pixels

    def split(self, picture: Tensor) -> Tensor:
        """Cut a picture [H, W, V] into tiles, padded with zeros."""
        right = self.columns * self.side - self.width
        bottom = self.rows * self.side - self.height
        padded = functional.pad(picture.movedim(2, 0), (0, right, 0, bottom))
        tiles = functional.unfold(padded[None], self.side, stride=self.side)[0]
        return tiles.T.unflatten(1, (len(padded), -1)).contiguous()

    def weights(self, coefficients: Tensor) -> Tensor:
        """Weights [T, K, P] at the pixels of tiles, of centers with coefficients [T, K, 6]."""
        scores = coefficients.flatten(0, 1) @ self.monomials
        return torch.softmax(scores.unflatten(0, coefficients.shape[:2]), 1)


def monomials(x: Tensor) -> Tensor:
    """1, y, x, y^2, yx and x^2 of positions [..., 2]."""
    y, x = x.unbind(-1)
    return torch.stack([torch.ones_like(y), y, x, y * y, y * x, x * x], -1)


def coefficients(positions: Tensor, shapes: Tensor) -> Tensor:
    """Coefficients whose dot product with x's monomials is -(x - position)^T A (x - position).

    A = exp([[m + p, q], [q, m - p]]) is positive definite for any shape: m is the log of
    1 / width^2 in pixels, (p, q) how long the center is and which way.
    """
    m, p, q = shapes.unbind(-1)
    k = (p * p + q * q + 1e-9).sqrt()
    isotropic = m.exp() * k.cosh()
    directed = m.exp() * k.sinh() / k
    yy = isotropic + directed * p
    yx = directed * q
    xx = isotropic - directed * p
    y, x = positions.unbind(-1)
    linear_y = yy * y + yx * x
    linear_x = yx * y + xx * x
    constant = -(linear_y * y + linear_x * x)
    return torch.stack([constant, 2 * linear_y, 2 * linear_x, -yy, -2 * yx, -xx], -1)


def render(grid: TileGrid, positions: Tensor, shapes: Tensor, values: Tensor) -> Tensor:
    """The weighted average at every pixel, [H, W, V], over the centers that its tile selects."""
    selected = select_centers(grid, positions, shapes)
    block = max(BLOCK * TILE**2 // grid.side**2, 1)
    rendered = []
    for index, middles in zip(selected.split(block), grid.middles.split(block), strict=True):
        rows = coefficients(positions[index] - middles[:, None], shapes[index])
        rendered.append(values[index].transpose(1, 2) @ grid.weights(rows))
    tiles = torch.cat(rendered).flatten(1).T[None]
    size = (grid.rows * grid.side, grid.columns * grid.side)
    picture = functional.fold(tiles, size, grid.side, stride=grid.side)[0]
    return picture.movedim(0, 2)[: grid.height, : grid.width]


def add_error_gradients(grid: TileGrid, target, inside, positions, shapes, values, selected):
    """Add the gradients of the squared error over pixels that are `inside`; return the error."""
    rows = coefficients(positions[selected] - grid.middles[:, None], shapes[selected])
    colours = values[selected]
    row_gradients = torch.empty_like(rows)
    colour_gradients = torch.empty_like(colours)
    total = rows.new_zeros(())
    with torch.no_grad():  # a backward pass would hold the weights of all tiles
        for start in range(0, len(rows), BLOCK):
            tiles = slice(start, start + BLOCK)
            weights = grid.weights(rows[tiles])
            rendered = colours[tiles].transpose(1, 2) @ weights
            error = (rendered - target[tiles]) * inside[tiles]
            total += error.square().sum()
            colour_gradients[tiles] = weights @ (2 * error).transpose(1, 2)
            mean = (error * rendered).sum(1, keepdim=True)
            scores = torch.baddbmm(mean, colours[tiles], error, beta=-1).mul_(weights)
            gradients = scores.flatten(0, 1) @ (2 * grid.monomials.T)
            row_gradients[tiles] = gradients.unflatten(0, scores.shape[:2])
    torch.autograd.backward([rows, colours], [row_gradients, colour_gradients])
    return total


@torch.no_grad()
def select_centers(grid: TileGrid, positions: Tensor, shapes: Tensor) -> Tensor:
    """The centers that weigh most in each tile, by their best score relative to the highest."""
    # without all others, a fitted picture differs by about 3e-4 of full scale in the mean
    double = positions.double()  # far from the origin float32 would cancel
    rows = coefficients(double, shapes.double())
    line = double.new_tensor(PROBES) * TILE
    probes = torch.cartesian_prod(line, line)
    count = min(CENTERS_PER_TILE, len(positions))
    selected = double.new_empty((len(grid.middles), count), dtype=torch.int64)
    index = torch.arange(len(selected), device=selected.device).reshape(grid.rows, grid.columns)
    regions = [part for rows in index.split(REGION) for part in rows.split(REGION, 1)]
    for tiles in map(torch.flatten, regions):
        middles = grid.middles[tiles].double()
        candidates = _candidates(middles, positions, rows)
        scores = _relative_scores(middles[:, None] + probes, rows[candidates])
        selected[tiles] = candidates[scores.topk(count, 1).indices]
    return selected


def _candidates(middles: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    """Centers in a region, and those outside that weigh most where a coarse grid meets it."""
    if len(rows) <= 4 * OUTSIDE_CANDIDATES:
        return torch.arange(len(rows), device=rows.device)
    low = middles.amin(0) - 2 * TILE
    high = middles.amax(0) + 2 * TILE
    inside = ((positions >= low) & (positions <= high)).all(1)
    line = partial(torch.linspace, steps=6, dtype=rows.dtype, device=rows.device)
    probes = torch.cartesian_prod(line(low[0], high[0]), line(low[1], high[1]))
    scores = _relative_scores(probes[None], rows)[0]
    strong = scores.topk(OUTSIDE_CANDIDATES).indices
    inside[strong] = False
    return torch.cat([strong, inside.nonzero()[:INSIDE_CANDIDATES, 0]])


def _relative_scores(probes: Tensor, rows: Tensor) -> Tensor:
    """How far each center's score [T, C] is below the highest, at the best of probes [T, S, 2]."""
    scores = monomials(probes) @ rows.T
    return scores.sub_(scores.amax(2, keepdim=True)).amax(1)
