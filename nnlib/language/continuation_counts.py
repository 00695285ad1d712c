"""What the neighbors of many positions say: how many came, with how many continuations, how often with the true one."""

from collections.abc import Iterator
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Integer

from nnlib.language.context_orders import CHUNK, ContextOrder


class Slot(NamedTuple):
    """The neighbors of M asked positions in one slot: their groups, the voters' rows low..high, and start..end of those
    rows, sorted by character, that have the true one."""

    group: Integer[np.ndarray, " M"]
    low: Integer[np.ndarray, " M"]
    high: Integer[np.ndarray, " M"]
    start: Integer[np.ndarray, " M"]
    end: Integer[np.ndarray, " M"]


def expert_counts(
    view: ContextOrder,
    order: Int32[np.ndarray, " N"],
    codes: Integer[np.ndarray, " N"],
    asked: range,
    adapt: bool = False,
) -> Iterator[Float32[np.ndarray, "M 3"]]:
    """What each expert says at the asked positions: its votes, their different characters, the votes for the true one.

    A slot is one expert, or two where the view is `deeper`: the second counts a character once for each of the next
    slot's contexts that it came in (the continuation counts of Kneser and Ney 1995). All positions vote that aren't
    asked; with `adapt`, so do the asked ones that stand before.
    """
    places = np.flatnonzero((order >= asked.start) & (order < asked.stop)).astype(np.int32)
    position = order[places]
    voters, true = Voters(view, np.delete(order, places), codes), codes[position]
    first, more = voters.first(0), _Earlier(position, asked, true) if adapt else _Nothing()
    for number, (slot, below) in enumerate(
        pairwise(chain(_slots(view, order, places, true, voters), [None]))
    ):
        votes, came = (
            slot.high - slot.low + more.votes(slot),
            slot.end - slot.start + more.came(slot),
        )
        kinds = first.between(slot.low, slot.high) + more.kinds(slot)
        yield _told(position, asked, votes, kinds, came)
        if below is None:
            return
        first = voters.first(number + 1)
        if view.deeper:
            votes = first.between(slot.low, slot.high) + more.deeper(slot, below)
            came = first.of_character(slot.start, slot.end) + more.deeper_came(slot, below)
            yield _told(position, asked, votes, kinds, came)


def _told(position, asked: range, *columns) -> Float32[np.ndarray, "M 3"]:
    told = np.empty((len(asked), 3), np.float32)
    told[position - asked.start] = np.stack(columns, 1)
    return told


def _slots(view, order, places, true, voters: "Voters") -> Iterator[Slot]:
    search = np.lexsort((places, true))
    shared = np.zeros(len(order), np.int8)
    shared[1:] = view.common(order[1:], order[:-1])
    for number in range(view.slots):
        new = shared < view.lengths(number, order)
        new[0] = True
        starts, ends = _bounds(new, places)
        low, high = (row - np.searchsorted(places, row).astype(np.int32) for row in (starts, ends))
        yield Slot(starts, low, high, *voters.depends_on_others(low, high, true, search))


def _bounds(
    new: Bool[np.ndarray, " N"], places: Int32[np.ndarray, " M"]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the groups of the places start, and where the next ones do; `new` says where groups start."""
    starts, ends = np.empty(len(places), np.int32), np.empty(len(places), np.int32)
    start = 0
    for first in range(0, len(new), CHUNK):
        found = np.flatnonzero(new[first : first + CHUNK]) + first
        part = slice(*np.searchsorted(places, [first, first + CHUNK]))
        number = np.searchsorted(found, places[part], side="right")
        starts[part] = np.append(start, found)[number]
        start = found[-1] if len(found) else start
    end = len(new)
    for first in reversed(range(0, len(new), CHUNK)):
        found = np.flatnonzero(new[first : first + CHUNK]) + first
        part = slice(*np.searchsorted(places, [first, first + CHUNK]))
        ends[part] = np.append(found, end)[np.searchsorted(found, places[part], side="right")]
        end = found[0] if len(found) else end
    return starts, ends


class _Nothing:
    """Nothing is read between: the asked positions don't vote."""

    def votes(self, slot: Slot, below: Slot | None = None) -> int:
        return 0

    kinds = came = deeper = deeper_came = votes


class _Earlier:
    """What the asked positions add that stand before each of them."""

    def __init__(self, position, asked: range, true):
        self.back, self.time = position - asked.start, position.argsort()
        self.true, self.characters = true, int(true.max()) + 1

    def _sum(self, keys, flags=None) -> Integer[np.ndarray, " M"]:
        flags = None if flags is None else flags[self.time]
        return earlier(keys[self.time], flags)[self.back]

    def _child(self, slot: Slot) -> Integer[np.ndarray, " M"]:
        return slot.group.astype(np.int64) * self.characters + self.true

    def _new(self, slot: Slot) -> Bool[np.ndarray, " M"]:
        return (slot.start == slot.end) & (self._sum(self._child(slot)) == 0)

    def votes(self, slot):
        return self._sum(slot.group)

    def kinds(self, slot):
        return self._sum(slot.group, self._new(slot))

    def came(self, slot):
        return self._sum(self._child(slot))

    def deeper(self, slot, below):
        return self._sum(slot.group, self._new(below))

    def deeper_came(self, slot, below):
        return self._sum(self._child(slot), self._new(below))


def earlier(
    keys: Integer[np.ndarray, " M"], flags: Bool[np.ndarray, " M"] | None = None
) -> Integer[np.ndarray, " M"]:
    """For each, how many of those before it have the same key (and a flag)."""
    order = keys.argsort(kind="stable")
    ones = np.ones(len(keys), np.int64) if flags is None else flags[order].astype(np.int64)
    before = ones.cumsum() - ones
    new = np.ones(len(keys), bool)
    new[1:] = keys[order][1:] != keys[order][:-1]
    result = np.empty(len(keys), np.int64)
    result[order] = before - before[np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))]
    return result


class Voters:
    """Positions in the order of their contexts, and their rows once more by the character that came."""

    def __init__(
        self, view: ContextOrder, order: Int32[np.ndarray, " N"], codes: Integer[np.ndarray, " T"]
    ):
        self.view, came = view, codes[order]
        self.rows = came.argsort(kind="stable").astype(np.int32)
        self.begin = np.concatenate(
            [[0], np.cumsum(np.bincount(came, minlength=int(codes.max(initial=0)) + 1))]
        )
        self.positions = order[self.rows]
        self.repeat = np.full(
            len(order), -1, np.int8
        )  # what a key shares with the one before of the same character
        self.repeat[1:] = view.common(self.positions[1:], self.positions[:-1])
        self.repeat[self.begin[self.begin < len(order)]] = -1

    def by_row(self) -> Integer[np.ndarray, " N"]:
        """`repeat`, in the order of the contexts."""
        repeat = np.empty_like(self.repeat)
        repeat[self.rows] = self.repeat
        return repeat

    def depends_on_others(
        self, low, high, true, search
    ) -> tuple[Integer[np.ndarray, " M"], Integer[np.ndarray, " M"]]:
        """Where among all rows by character those from low to high with the true one start and end.

        `search`: the order in which to look them up, by their true character.
        """
        start, end = np.empty(len(true), np.int32), np.empty(len(true), np.int32)
        characters, first = np.unique(true[search], return_index=True)
        for code, part in zip(characters, np.split(search, first[1:]), strict=True):
            rows = self.rows[self.begin[code] : self.begin[code + 1]]
            start[part] = self.begin[code] + np.searchsorted(rows, low[part])
            end[part] = self.begin[code] + np.searchsorted(rows, high[part])
        return start, end

    def first(self, slot: int) -> "First":
        """The rows whose character didn't come before in their group of the slot."""
        return First(self.repeat < self.view.lengths(slot, self.positions), self.rows)


class First:
    """Some of the rows: how many there are from one to another, as they stand or sorted by character."""

    def __init__(self, flags: Bool[np.ndarray, " N"], rows: Int32[np.ndarray, " N"]):
        self.flags, by_row = flags, np.empty(len(rows), bool)
        by_row[rows] = flags
        self.total = _total(by_row)

    def between(self, low, high) -> Integer[np.ndarray, " M"]:
        return self.total[high] - self.total[low]

    def of_character(self, start, end) -> Integer[np.ndarray, " M"]:
        total = _total(self.flags)
        return total[end] - total[start]


def _total(flags: Bool[np.ndarray, " N"]) -> Int32[np.ndarray, " N+1"]:
    total = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=total[1:])
    return total
