"""Centers while they are being chosen: copies of samples, in memory that grows."""

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor


class GrowableTensor:
    """Rows that are added to, in memory that is allocated anew only when it is full."""

    def __init__(self, storage: Shaped[Tensor, "N *D"], length: int):
        self.storage = storage
        self.length = length

    @property
    def view(self) -> Shaped[Tensor, "N *D"]:
        """The rows so far; it keeps what it shows when others come."""
        return self.storage[: self.length]

    def extend(self, count: int) -> Shaped[Tensor, "K *D"]:
        """Add rows at the end, and return them to be filled in."""
        before = self.length
        if before + count > len(self.storage):
            capacity = max(before + count, 256, before * 3 // 2)
            storage = self.storage.new_empty((capacity, *self.storage.shape[1:]))
            storage[:before] = self.view
            self.storage = storage
        self.length += count
        return self.view[before:]


class GrowingCenters:
    """Features and targets of the centers, and which rows of a set in memory they were.

    Rows have no numbers (None) where samples come from a stream, or join the centers of a fit.
    """

    def __init__(self, x: Shaped[Tensor, "N D"], y: Shaped[Tensor, "N *V"]):
        self._x = GrowableTensor(x, len(x))
        self._y = GrowableTensor(y, len(y))
        self._numbers = GrowableTensor(torch.empty(0, dtype=torch.int64, device=x.device), 0)

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
        self._x.extend(len(x)).copy_(x)
        self._y.extend(len(y)).copy_(y)
        if numbers is not None:
            self._numbers.extend(len(numbers)).copy_(numbers)

    def trim(self) -> None:
        """Give spare memory back."""
        for part in (self._x, self._y):
            part.storage = part.view.clone()

    def share_storage(self) -> "GrowingCenters":
        """Return the same centers with their spare memory, to grow without changing these."""
        other = GrowingCenters(self._x.storage, self._y.storage)
        other._x.length = other._y.length = len(self)
        return other
