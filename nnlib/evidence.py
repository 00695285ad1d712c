"""What the neighbors of many positions say: how many came, with how many continuations, how often with the true one."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from nnlib.contexts import View, runs


class Slot(NamedTuple):
    """Neighbors of asked positions: their groups, rows low..high, and start..end of those with the true character.

    `child`: numbers of the pairs of group and true character; `came`: how many neighbors it followed.
    """

    group: Int[np.ndarray, " M"]
    child: Int[np.ndarray, " M"]
    low: Int[np.ndarray, " M"]
    high: Int[np.ndarray, " M"]
    start: Int[np.ndarray, " M"]
    end: Int[np.ndarray, " M"]

    @property
    def came(self) -> Int[np.ndarray, " M"]:
        return self.end - self.start


def evidence(
    view: View,
    order: Int32[np.ndarray, " N"],
    codes: Int[np.ndarray, " N"],
    learned: Bool[np.ndarray, " N"],
    asked: Int[np.ndarray, " M"],
    adapt: bool = False,
) -> Float32[np.ndarray, "M E 3"]:
    """For each asked position and expert: the votes, the different characters among them, the votes for the true one.

    A slot is one expert, or two where the view is `deeper`: the second counts a character once for each of the next
    slot's contexts that it came in (the continuation counts of Kneser and Ney 1995). Only `learned` positions vote;
    with `adapt`, also the asked ones that stand before (they must be in order, and not learned).
    """
    voters = Voters(view, order[learned[order]], codes)
    slots = _slots(view, order, codes, learned, asked, voters)
    more = earlier if adapt else lambda keys, flags=None: 0
    experts = []
    for number, slot in enumerate(slots):
        kinds = voters.first(number, slot.low, slot.high)
        kinds = kinds + more(slot.group, (slot.came == 0) & (more(slot.child) == 0))
        experts.append((slot.high - slot.low + more(slot.group), kinds, slot.came + more(slot.child)))
        if view.deeper and number + 1 < len(slots):
            below = slots[number + 1]
            new = (below.came == 0) & (more(below.child) == 0)
            votes = voters.first(number + 1, slot.low, slot.high) + more(slot.group, new)
            came = voters.first_of_character(number + 1, slot.start, slot.end) + more(slot.child, new)
            experts.append((votes, kinds, came))
    return np.array(experts, np.float32).transpose(2, 0, 1)


def _slots(view, order, codes, learned, asked, voters: "Voters") -> list[Slot]:
    rank = np.concatenate([[0], np.cumsum(learned[order], dtype=np.int32)])
    row = np.empty(len(order), np.int32)
    row[order] = np.arange(len(order), dtype=np.int32)
    row, true, slots = row[asked], codes[asked], []
    for begin in runs(view, order):
        group = np.searchsorted(begin, row, side="right") - 1
        low, high = rank[begin[group]], rank[np.append(begin, len(order))[group + 1]]
        slots.append(Slot(group, group * (int(codes.max()) + 1) + true, low, high, *voters.ranks(low, high, true)))
    return slots


def earlier(keys: Int[np.ndarray, " M"], flags: Bool[np.ndarray, " M"] | None = None) -> Int[np.ndarray, " M"]:
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

    def __init__(self, view: View, order: Int32[np.ndarray, " N"], codes: Int[np.ndarray, " N"]):
        self.view, self.order, came = view, order, codes[order]
        self.rows = came.argsort(kind="stable").astype(np.int32)
        self.begin = np.concatenate([[0], np.cumsum(np.bincount(came, minlength=int(codes.max(initial=0)) + 1))])
        self.repeat = np.full(len(order), -1, np.int8)  # what a key shares with the one before of the same character
        self.repeat[1:] = view.common(order[self.rows[1:]], order[self.rows[:-1]])
        self.repeat[self.begin[self.begin < len(order)]] = -1

    def by_row(self) -> Int[np.ndarray, " N"]:
        """`repeat`, in the order of the contexts."""
        repeat = np.empty_like(self.repeat)
        repeat[self.rows] = self.repeat
        return repeat

    def ranks(self, low, high, true) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
        """Where among all rows by character those from low to high with the true one start and end."""
        start, end = np.empty(len(true), np.int64), np.empty(len(true), np.int64)
        asked = true.argsort(kind="stable")
        characters, first = np.unique(true[asked], return_index=True)
        for code, part in zip(characters, np.split(asked, first[1:]), strict=True):
            rows = self.rows[self.begin[code] : self.begin[code + 1]]
            start[part] = self.begin[code] + np.searchsorted(rows, low[part])
            end[part] = self.begin[code] + np.searchsorted(rows, high[part])
        return start, end

    def first(self, slot: int, low, high) -> Int[np.ndarray, " M"]:
        """How many rows from low to high have a character that didn't come before in their group of the slot."""
        new = np.empty(len(self.rows), bool)
        new[self.rows] = self._new(slot)
        return _between(new, low, high)

    def first_of_character(self, slot: int, start, end) -> Int[np.ndarray, " M"]:
        """The same for the rows by character, from start to end."""
        return _between(self._new(slot), start, end)

    def _new(self, slot: int) -> Bool[np.ndarray, " N"]:
        return self.repeat < self.view.lengths(slot, self.order[self.rows])


def _between(flags: Bool[np.ndarray, " N"], low, high) -> Int[np.ndarray, " M"]:
    total = np.concatenate([[0], np.cumsum(flags, dtype=np.int32)])
    return total[high] - total[low]
