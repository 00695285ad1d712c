"""Centers while they are being chosen: rows that grow in place, or rows of a set in memory by number."""

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

GATHERED = 4096  # rows at a time


class GrowableTensor:
    """Rows that are appended to, with room to spare: allocated anew only when half as many again are there."""

    def __init__(self, rows: Shaped[Tensor, "N *D"]):
        self.store, self.length = rows, len(rows)

    def append(self, rows: Shaped[Tensor, "K *D"]) -> None:
        """Add rows at the end; a `view` taken before keeps what it showed."""
        needed = self.length + len(rows)
        if needed > len(self.store):
            store = self.store.new_empty(
                (max(needed, 256, self.length * 3 // 2), *self.store.shape[1:])
            )
            store[: self.length] = self.view
            self.store = store
        self.store[self.length : needed] = rows
        self.length = needed

    @property
    def view(self) -> Shaped[Tensor, "N *D"]:
        """The rows so far."""
        return self.store[: self.length]


class CopiedCenters:
    """Centers that are copies, of samples that come and go."""

    def __init__(self, x: Shaped[Tensor, "N D"], y: Shaped[Tensor, "N *V"]):
        self._x, self._y = GrowableTensor(x), GrowableTensor(y)

    def __len__(self) -> int:
        return self._x.length

    @property
    def distinct(self) -> int:
        """How many there are: of copies nobody knows which were one sample."""
        return len(self)

    def again(self) -> "CopiedCenters":
        """The same centers and the room behind them, to grow without touching what this one shows."""
        other = CopiedCenters(self._x.store, self._y.store)
        other._x.length = other._y.length = len(self)
        return other

    def append(self, x: Shaped[Tensor, "K D"], y: Shaped[Tensor, "K *V"], numbers=None) -> None:
        """Keep these samples."""
        self._x.append(x.to(self.x.dtype))
        self._y.append(y)

    def finished(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Features and targets of the centers, in the type they were copied in."""
        return self.x, self.y

    @property
    def x(self) -> Shaped[Tensor, "N D"]:
        """The centers' features."""
        return self._x.view

    @property
    def y(self) -> Shaped[Tensor, "N *V"]:
        """The centers' targets."""
        return self._y.view


class IndexedCenters:
    """Centers that are rows of a set in memory: their numbers, and no copy."""

    def __init__(self, x: Shaped[Tensor, "N D"], y: Shaped[Tensor, "N *V"]):
        self._x, self._y, self._numbers = (
            x,
            y,
            GrowableTensor(torch.empty(0, dtype=torch.int64, device=x.device)),
        )

    def __len__(self) -> int:
        return self._numbers.length

    @property
    def distinct(self) -> int:
        """How many samples there are among them, one that was added again counting once."""
        return len(self.numbers.unique())

    def append(self, x, y, numbers: Int64[Tensor, " K"]) -> None:
        """Keep the rows of these numbers."""
        self._numbers.append(numbers)

    def finished(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Features and targets of the centers, copied out of the set."""
        return self.x.all(dtype), self.y.all(self._y.dtype)

    @property
    def numbers(self) -> Int64[Tensor, " M"]:
        """Which rows of the set became centers, in the order they did."""
        return self._numbers.view

    @property
    def x(self) -> "LazyRows":
        """The centers' features, gathered when asked for."""
        return LazyRows(self._x, self.numbers)

    @property
    def y(self) -> "LazyRows":
        """The centers' targets, gathered when asked for."""
        return LazyRows(self._y, self.numbers)


class LazyRows:
    """Rows of a tensor by number, gathered a slice at a time."""

    def __init__(self, rows: Shaped[Tensor, "N *D"], numbers: Int64[Tensor, " M"]):
        self.rows, self.numbers = rows, numbers
        self.shape, self.dtype, self.device = (
            (len(numbers), *rows.shape[1:]),
            rows.dtype,
            rows.device,
        )

    def __getitem__(self, cols: slice | Int64[Tensor, " K"]) -> Shaped[Tensor, "K *D"]:
        return self.rows[self.numbers[cols]]

    def all(self, dtype: torch.dtype) -> Shaped[Tensor, "M *D"]:
        """All of them in one tensor, converted some at a time."""
        whole = torch.empty(self.shape, dtype=dtype, device=self.device)
        for start in range(0, len(whole), GATHERED):
            whole[start : start + GATHERED] = self[start : start + GATHERED]
        return whole
