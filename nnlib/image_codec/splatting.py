"""The one average for pictures: pixels in square tiles, and for each tile only the centers that weigh there.

A center c with shape A scores s(x) = -(x - c)^T A (x - c), which is a dot product of the pixel's monomials
1, y, x, y^2, yx, x^2 with six numbers of the center's: so a tile's scores are one matrix product, and
`attend(monomials, coefficients, colours, DotProduct())` is the same average over all centers.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

TILE = 16  # pixels a side
NEARBY = 24  # centers that a tile's pixels see
BLOCK = 32  # tiles at a time: their weights stay in a CPU's cache
REGION = 8  # tiles a side that look at the same centers
STRONG, CROWD = (
    128,
    4096,
)  # centers that reach into a region from outside, and of those inside, at most
PLACES = [
    (0.0, 0.0),
    *((y, x) for y in (-0.45, 0, 0.45) for x in (-0.45, 0, 0.45) if y or x),
]  # of a tile, in sides


class TileGrid:
    """The tiles of a picture [height, width], drawn at `zoom` samples a pixel."""

    def __init__(self, height: int, width: int, zoom: int = 1, device: torch.device | str = "cpu"):
        self.height, self.width, self.side = height * zoom, width * zoom, TILE * zoom
        self.rows, self.columns = -(-height // TILE), -(-width // TILE)
        steps = (torch.arange(self.side, device=device) + 0.5) / zoom - TILE / 2
        self.phi = monomials(torch.cartesian_prod(steps, steps)).T.contiguous()
        places = torch.cartesian_prod(torch.arange(self.rows), torch.arange(self.columns)).to(
            device
        )
        self.middles = (places + 0.5) * TILE  # [tiles, 2], in pixels

    def tiled(self, picture: Float[Tensor, "H W V"]) -> Float[Tensor, "T V P"]:
        """The picture in tiles, filled up with zeros."""
        ends = (0, self.columns * self.side - self.width, 0, self.rows * self.side - self.height)
        filled = torch.nn.functional.pad(picture.movedim(2, 0), ends)
        shape = (len(filled), self.rows, self.side, self.columns, self.side)
        return filled.reshape(shape).permute(1, 3, 0, 2, 4).flatten(3).flatten(0, 1).contiguous()

    def regions(self) -> Iterator[Int64[Tensor, " T"]]:
        """The tiles, REGION x REGION at a time."""
        index = torch.arange(self.rows * self.columns, device=self.middles.device).reshape(
            self.rows, self.columns
        )
        for rows in index.split(REGION):
            yield from (part.flatten() for part in rows.split(REGION, 1))

    def whole(self, tiles: Float[Tensor, "T V P"]) -> Float[Tensor, "H W V"]:
        """The picture that the tiles make."""
        shape = (self.rows, self.columns, tiles.shape[1], self.side, self.side)
        filled = tiles.reshape(shape).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        return filled[: self.height, : self.width]


def monomials(x: Float[Tensor, "B 2"]) -> Float[Tensor, "B 6"]:
    """1, y, x, y^2, yx and x^2 of each place."""
    y, x = x.unbind(-1)
    return torch.stack([torch.ones_like(y), y, x, y * y, y * x, x * x], -1)


def metric(shapes: Float[Tensor, "*M 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """A = exp([[m + p, q], [q, m - p]]) for shapes (m, p, q): any three numbers give a positive definite matrix.

    m is the log of 1 / width^2 in pixels, (p, q) how long the center is and which way. Returns A_yy, A_yx, A_xx.
    """
    m, p, q = shapes.unbind(-1)
    k = (p * p + q * q + 1e-9).sqrt()
    straight, turned = m.exp() * k.cosh(), m.exp() * k.sinh() / k
    return straight + turned * p, turned * q, straight - turned * p


def coefficients(
    places: Float[Tensor, "*M 2"], shapes: Float[Tensor, "*M 3"]
) -> Float[Tensor, "*M 6"]:
    """Each center's numbers: their dot product with x's monomials is -(x - place)^T A (x - place)."""
    yy, yx, xx = metric(shapes)
    y, x = places.unbind(-1)
    up, along = yy * y + yx * x, yx * y + xx * x
    return torch.stack([-(up * y + along * x), 2 * up, 2 * along, -yy, -2 * yx, -xx], -1)


def blocks(tiles: int, samples: int = 1) -> Iterator[slice]:
    """BLOCK tiles at a time, fewer where a pixel has several samples."""
    size = max(BLOCK // samples, 1)
    return (slice(start, start + size) for start in range(0, tiles, size))


def _rows(
    grid: TileGrid, places, shapes, near: Int64[Tensor, "T K"], tiles=slice(None)
) -> Float[Tensor, "T K 6"]:
    """The coefficients of each tile's nearby centers, for places relative to the tile's middle."""
    return coefficients(places[near] - grid.middles[tiles, None], shapes[near])


def _weights(grid: TileGrid, rows: Float[Tensor, "T K 6"]) -> Float[Tensor, "T K P"]:
    return torch.softmax((rows.flatten(0, 1) @ grid.phi).unflatten(0, rows.shape[:2]), 1)


@torch.no_grad()
def render(
    grid: TileGrid,
    places: Float[Tensor, "M 2"],
    shapes: Float[Tensor, "M 3"],
    values: Float[Tensor, "M V"],
    near: Int64[Tensor, "T K"],
) -> Float[Tensor, "H W V"]:
    """The weighted average at every pixel, over its tile's nearby centers, a block of tiles at a time."""
    drawn = []
    for tiles in blocks(len(near), (grid.side // TILE) ** 2):
        weights = _weights(grid, _rows(grid, places, shapes, near[tiles], tiles))
        drawn.append(values[near[tiles]].transpose(1, 2) @ weights)
    return grid.whole(torch.cat(drawn))


def squared_error(
    grid: TileGrid,
    target: Float[Tensor, "T V P"],
    inside: Float[Tensor, "T 1 P"],
    places,
    shapes,
    values,
    near,
) -> Float[Tensor, ""]:
    """The sum of squares of what `render` leaves of a picture in tiles. Differentiable in places, shapes and values."""
    return _SquaredError.apply(
        _rows(grid, places, shapes, near), values[near], grid, target, inside
    )


class _SquaredError(torch.autograd.Function):
    """The gradients to scores and values are gathered beside the error, in one sweep: the weights are made once."""

    @staticmethod
    def forward(ctx, rows, values, grid, target, inside):
        """The squared error over all tiles, a number."""
        to_rows, to_values, total = (
            torch.empty_like(rows),
            torch.empty_like(values),
            rows.new_zeros(()),
        )
        for tiles in blocks(len(rows)):
            weights = _weights(grid, rows[tiles])
            drawn = values[tiles].transpose(1, 2) @ weights
            error = (drawn - target[tiles]) * inside[tiles]
            total += error.square().sum()
            to_values[tiles] = weights @ (2 * error).transpose(1, 2)
            pull = torch.baddbmm(
                (error * drawn).sum(1, keepdim=True), values[tiles], error, beta=-1
            ).mul_(weights)
            to_rows[tiles] = (pull.flatten(0, 1) @ (2 * grid.phi.T)).unflatten(0, pull.shape[:2])
        ctx.save_for_backward(to_rows, to_values)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        to_rows, to_values = ctx.saved_tensors
        return gradient * to_rows, gradient * to_values, None, None, None


@torch.no_grad()
def select_centers(
    grid: TileGrid, places: Float[Tensor, "M 2"], shapes: Float[Tensor, "M 3"]
) -> Int64[Tensor, "T K"]:
    """The centers that weigh most in each tile: by the best of their scores, less the winner's, at nine of its places.

    The rest has next to no weight in a picture that was fitted so: there the average is the one over all centers to
    about 3e-4 of full scale in the mean. Where there are many centers, a region of tiles looks at some of them.
    """
    rows = coefficients(
        places.double(), shapes.double()
    )  # far from the origin float32 would cancel
    found = torch.empty(
        len(grid.middles), min(NEARBY, len(places)), dtype=torch.int64, device=places.device
    )
    spots = torch.tensor(PLACES, dtype=torch.float64, device=places.device) * TILE
    for tiles in grid.regions():
        middles = grid.middles[tiles].double()
        some = _around(middles, places, rows)
        scores = _lead(middles[:, None] + spots, rows[some])
        found[tiles] = some[scores.topk(found.shape[1], 1).indices]
    return found


def _around(middles: Float[Tensor, "T 2"], places, rows) -> Int64[Tensor, " C"]:
    """Centers worth a look in a region: those in it, and those that weigh most where a coarse grid meets it."""
    if len(rows) <= 4 * STRONG:
        return torch.arange(len(rows), device=rows.device)
    low, high = middles.amin(0) - 2 * TILE, middles.amax(0) + 2 * TILE
    inside = ((places >= low) & (places <= high)).all(1)
    lines = [
        torch.linspace(*ends, 6, dtype=rows.dtype, device=rows.device)
        for ends in zip(low, high, strict=True)
    ]
    strong = _lead(torch.cartesian_prod(*lines)[None], rows)[0].topk(STRONG).indices
    return torch.cat([strong, inside.index_fill_(0, strong, False).nonzero()[:CROWD, 0]])


def _lead(spots: Float[Tensor, "T S 2"], rows: Float[Tensor, "C 6"]) -> Float[Tensor, "T C"]:
    """How far each center's score is below the winner's, at the best of some spots."""
    scores = monomials(spots) @ rows.T
    return scores.sub_(scores.amax(2, keepdim=True)).amax(1)
