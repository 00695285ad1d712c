"""Centers while they are being chosen: copies of samples, in memory that grows."""

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor


class GrowableTensor:
    """Rows that are appended to, in memory that is allocated anew only when it is full."""

    def __init__(self, rows: Shaped[Tensor, "N *D"]):
        self.storage = rows
        self.length = len(rows)

    def append(self, rows: Shaped[Tensor, "K *D"]) -> None:
        """Add rows at the end; an earlier `view` keeps what it showed."""
        needed = self.length + len(rows)
        if needed > len(self.storage):
            capacity = max(needed, 256, self.length * 3 // 2)
            storage = self.storage.new_empty((capacity, *self.storage.shape[1:]))
            storage[: self.length] = self.view
            self.storage = storage
        self.storage[self.length : needed] = rows
        self.length = needed

    @property
    def view(self) -> Shaped[Tensor, "N *D"]:
        """The rows so far."""
        return self.storage[: self.length]


class GrowingCenters:
    """Features and targets of the centers, and which rows of a set in memory they were.

    Rows have no numbers (None) where samples come from a stream, or join the centers of a fit.
    """

    def __init__(self, x: Shaped[Tensor, "N D"], y: Shaped[Tensor, "N *V"]):
        self._x = GrowableTensor(x)
        self._y = GrowableTensor(y)
        self._numbers = GrowableTensor(torch.empty(0, dtype=torch.int64, device=x.device))

    def __len__(self) -> int:
        return self._x.length

    @property
    def x(self) -> Shaped[Tensor, "N D"]:
        """The centers' features."""
        return self._x.view

    @property
    def y(self) -> Shaped[Tensor, "N *V"]:
        """The centers' targets."""
        return self._y.view

    @property
    def numbers(self) -> Int64[Tensor, " N"] | None:
        """Their row numbers in the order they were added, None where these are unknown."""
        return self._numbers.view if self._numbers.length == len(self) else None

    @property
    def distinct(self) -> int:
        """The number of different samples among them, as far as row numbers tell."""
        return len(self) if self.numbers is None else len(self.numbers.unique())

    def append(
        self, x: Shaped[Tensor, "K D"], y: Shaped[Tensor, "K *V"], numbers: Tensor | None
    ) -> None:
        """Copy samples, and note their row numbers where they have any."""
        self._x.append(x.to(self.x.dtype))
        self._y.append(y)
        if numbers is not None:
            self._numbers.append(numbers)

    def share_storage(self) -> "GrowingCenters":
        """Return the same centers with their spare memory, to grow without changing these."""
        other = GrowingCenters(self._x.storage, self._y.storage)
        other._x.length = other._y.length = len(self)
        return other
