"""The weighted average of centers at pixels: square tiles, and for each only its relevant centers.

A center c with shape matrix A scores s(x) = -(x - c)^T A (x - c), which is a dot product of the
pixel's monomials 1, y, x, y^2, yx, x^2 with six coefficients of the center. So a tile's scores are
one matrix product, and `attend(monomials, coefficients, colours, DotProduct())` is the same average
over all centers.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

TILE = 16  # pixels a side
CENTERS_PER_TILE = 24
BLOCK = 32  # tiles at a time, whose weights stay in a CPU's cache
REGION = 8  # tiles a side that share their candidates
OUTSIDE_CANDIDATES = 128  # centers whose weight may extend into a region from outside
INSIDE_CANDIDATES = 4096
PROBES = ((0.0, 0.0), *((y, x) for y in (-0.45, 0, 0.45) for x in (-0.45, 0, 0.45) if y or x))


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

    def split(self, picture: Float[Tensor, "H W V"]) -> Float[Tensor, "T V P"]:
        """Cut a picture into tiles, padded with zeros."""
        padding = (0, self.columns * self.side - self.width)
        padding += (0, self.rows * self.side - self.height)
        padded = functional.pad(picture.movedim(2, 0), padding)
        tiles = functional.unfold(padded[None], self.side, stride=self.side)[0]
        return tiles.T.unflatten(1, (len(padded), -1)).contiguous()

    def join(self, tiles: Float[Tensor, "T V P"]) -> Float[Tensor, "H W V"]:
        """Put tiles together to a picture, without the padding."""
        size = (self.rows * self.side, self.columns * self.side)
        padded = functional.fold(tiles.flatten(1).T[None], size, self.side, stride=self.side)
        return padded[0].movedim(0, 2)[: self.height, : self.width]

    def regions(self) -> Iterator[Int64[Tensor, " T"]]:
        """The indices of REGION x REGION tiles at a time."""
        index = torch.arange(len(self.middles), device=self.middles.device)
        for rows in index.reshape(self.rows, self.columns).split(REGION):
            yield from (part.flatten() for part in rows.split(REGION, 1))

    def weights(self, coefficients: Float[Tensor, "T K 6"]) -> Float[Tensor, "T K P"]:
        """The centers' weights at all pixels of their tile."""
        scores = coefficients.flatten(0, 1) @ self.monomials
        return torch.softmax(scores.unflatten(0, coefficients.shape[:2]), 1)


def monomials(x: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 6"]:
    """1, y, x, y^2, yx and x^2 of each position."""
    y, x = x.unbind(-1)
    return torch.stack([torch.ones_like(y), y, x, y * y, y * x, x * x], -1)


def shape_matrix(shapes: Float[Tensor, "*M 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """A = exp([[m + p, q], [q, m - p]]), the matrix of a center's squared distance.

    Parameters
    ----------
    shapes : float tensor [..., 3]
        m, the log of 1 / width^2 in pixels, and (p, q), how long the center is and which way. Any
        three numbers give a positive definite matrix.

    Returns
    -------
    tuple of tensors [...]
        A_yy, A_yx and A_xx.

    Examples
    --------
    >>> yy, yx, xx = shape_matrix(torch.zeros(3))
    >>> float(yy), float(yx), float(xx)
    (1.0, 0.0, 1.0)
    """
    m, p, q = shapes.unbind(-1)
    k = (p * p + q * q + 1e-9).sqrt()
    round_part = m.exp() * k.cosh()
    long_part = m.exp() * k.sinh() / k
    return round_part + long_part * p, long_part * q, round_part - long_part * p


def coefficients(
    positions: Float[Tensor, "*M 2"], shapes: Float[Tensor, "*M 3"]
) -> Float[Tensor, "*M 6"]:
    """Coefficients whose dot product with x's monomials is -(x - position)^T A (x - position)."""
    yy, yx, xx = shape_matrix(shapes)
    y, x = positions.unbind(-1)
    linear_y = yy * y + yx * x
    linear_x = yx * y + xx * x
    constant = -(linear_y * y + linear_x * x)
    return torch.stack([constant, 2 * linear_y, 2 * linear_x, -yy, -2 * yx, -xx], -1)


@torch.no_grad()
def render(
    grid: TileGrid, positions: Tensor, shapes: Tensor, values: Tensor
) -> Float[Tensor, "H W V"]:
    """The weighted average at every pixel, over the centers that its tile selects."""
    selected = select_centers(grid, positions, shapes)
    block = max(BLOCK * TILE**2 // grid.side**2, 1)
    rendered = []
    for index, middles in zip(selected.split(block), grid.middles.split(block), strict=True):
        rows = coefficients(positions[index] - middles[:, None], shapes[index])
        rendered.append(values[index].transpose(1, 2) @ grid.weights(rows))
    return grid.join(torch.cat(rendered))


def add_error_gradients(grid: TileGrid, target, inside, positions, shapes, values, selected):
    """Add the gradients of the squared error over pixels that are `inside`, and return the error.

    Weights are made once and never held for all tiles, as a backward pass would need them.
    """
    rows = coefficients(positions[selected] - grid.middles[:, None], shapes[selected])
    colours = values[selected]
    row_gradients = torch.empty_like(rows)
    colour_gradients = torch.empty_like(colours)
    total = rows.new_zeros(())
    with torch.no_grad():
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
def select_centers(
    grid: TileGrid, positions: Float[Tensor, "M 2"], shapes: Float[Tensor, "M 3"]
) -> Int64[Tensor, "T K"]:
    """The centers that weigh most in each tile, by their best score relative to the highest.

    Scores are taken at nine positions of the tile. All other centers have next to no weight in a
    fitted picture: the average over all differs by about 3e-4 of full scale in the mean.
    """
    double = positions.double()  # far from the origin float32 would cancel
    rows = coefficients(double, shapes.double())
    probes = double.new_tensor(PROBES) * TILE
    count = min(CENTERS_PER_TILE, len(positions))
    selected = double.new_empty((len(grid.middles), count), dtype=torch.int64)
    for tiles in grid.regions():
        middles = grid.middles[tiles].double()
        candidates = _candidates(middles, positions, rows)
        scores = _relative_scores(middles[:, None] + probes, rows[candidates])
        selected[tiles] = candidates[scores.topk(count, 1).indices]
    return selected


def _candidates(middles: Float[Tensor, "T 2"], positions, rows) -> Int64[Tensor, " C"]:
    """Centers in a region, and those outside that weigh most where a coarse grid meets it."""
    if len(rows) <= 4 * OUTSIDE_CANDIDATES:
        return torch.arange(len(rows), device=rows.device)
    low = middles.amin(0) - 2 * TILE
    high = middles.amax(0) + 2 * TILE
    inside = ((positions >= low) & (positions <= high)).all(1)
    lines = [
        torch.linspace(*ends, 6, dtype=rows.dtype, device=rows.device)
        for ends in zip(low, high, strict=True)
    ]
    scores = _relative_scores(torch.cartesian_prod(*lines)[None], rows)[0]
    strong = scores.topk(OUTSIDE_CANDIDATES).indices
    inside[strong] = False
    return torch.cat([strong, inside.nonzero()[:INSIDE_CANDIDATES, 0]])


def _relative_scores(
    probes: Float[Tensor, "T S 2"], rows: Float[Tensor, "C 6"]
) -> Float[Tensor, "T C"]:
    """How far each center's score is below the highest, at the best of some positions."""
    scores = monomials(probes) @ rows.T
    return scores.sub_(scores.amax(2, keepdim=True)).amax(1)
