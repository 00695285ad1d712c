"""The neighbors of one context: how a text went on wherever it had said the same, and how what was read since did."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from copy import copy
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Integer

from nnlib.language.context_orders import CONTEXT, VIEWS, ContextOrder
from nnlib.language.continuation_counts import Voters

LARGE, KEPT = (
    512,
    4096,
)  # groups of more neighbors are counted once, and so many of these counts are kept


class Expert(NamedTuple):
    """A slot of a view; a `deeper` one counts a character once for each context of the slot after it."""

    view: int
    slot: int
    deeper: bool

    @property
    def name(self) -> str:
        """What its neighbors share."""
        return f"{VIEWS[self.view].names[self.slot]}{', each context once' if self.deeper else ''}"


EXPERTS = [
    Expert(number, slot, deeper)
    for number, view in enumerate(VIEWS)
    for slot in range(view.slots)
    for deeper in (False, True)[: 1 + (view.deeper and slot + 1 < view.slots)]
]
AFTER = [
    EXPERTS.index(Expert(view, slot + 1, False)) if deeper else -1 for view, slot, deeper in EXPERTS
]


class Span(NamedTuple):
    """The neighbors of a context: what they share of its key, and their rows low..high in the sorted text."""

    key: str | None  # None where the past is too short
    low: int
    high: int


class SuffixIndex:
    """A text whose contexts are sorted, to look one up; and what was read after it, remembered by its contexts.

    `alphabet`: the known characters in the order of their codes, which reading adds to.
    """

    def __init__(
        self,
        text: str,
        codes: Integer[np.ndarray, " N"],
        sorts: list[tuple[ContextOrder, Int32[np.ndarray, " N"]]],
    ):
        self.past, self.read, self.codes, self.sorts = text[-CONTEXT:], "", codes, sorts
        self.alphabet = sorted(set(text))
        self.code = {character: code for code, character in enumerate(self.alphabet)}
        self.repeats = [
            Voters(view, order, codes).by_row() if view.deeper else None for view, order in sorts
        ]
        self.later: dict[tuple[int, str], dict[int, int]] = {}
        self._large, self._narrow = lru_cache(KEPT)(self._count), lru_cache(8 * KEPT)(self._rows)

    def counts(self, past: str) -> Float64[np.ndarray, "E A"]:
        """How often each character followed what `past` ends in, for each of EXPERTS."""
        counts = np.zeros((len(EXPERTS), len(self.alphabet)))
        for number, span in enumerate(self.spans(past)):
            if span.high > span.low:
                count = self._large if span.high - span.low > LARGE else self._count
                found = count(EXPERTS[number], span.low, span.high)
                counts[number, : len(found)] = found
            for code, times in self.later.get((number, span.key), {}).items():
                counts[number, code] += times
        return counts

    def spans(self, past: str) -> list[Span]:
        """Where each expert's neighbors stand, of a context that `past` ends in."""
        found = []
        for view, order in self.sorts:
            key, lengths = view.asked(past[-CONTEXT:])
            low, high, slots = 0, len(order), []
            for length in lengths:
                if length:
                    low, high = self._narrow(len(found), key[:length], length, low, high)
                slots.append(Span(key[:length] if len(key) >= length else None, low, high))
            found.append(slots)
        return [found[view][slot] for view, slot, _ in EXPERTS]

    def _rows(self, view: int, part: str, length: int, low: int, high: int) -> tuple[int, int]:
        """Which of the rows low..high have keys that begin with `part`, of that length if there is enough past."""
        if low == high or len(part) < length:
            return low, low
        key, order = partial(self.sorts[view][0].key, length=length), self.sorts[view][1]
        low = bisect_left(order, part, low, high, key=key)
        return low, bisect_right(order, part, low, high, key=key)

    def add(self, character: str, counts: Float64[np.ndarray, "E A"] | None = None) -> None:
        """Remember that `character` came next; `counts` of what was read so far, where they are at hand."""
        counts = self.counts(self.past) if counts is None else counts
        code = self.code.setdefault(character, len(self.alphabet))
        if code == len(self.alphabet):
            self.alphabet.append(character)
        before = counts[:, code] if code < counts.shape[1] else np.zeros(len(EXPERTS))
        for number, key in enumerate(self._keys()):
            if key is not None and (not EXPERTS[number].deeper or before[AFTER[number]] == 0):
                times = self.later.setdefault((number, key), {})
                times[code] = times.get(code, 0) + 1
        self.past, self.read = (self.past + character)[-CONTEXT:], self.read + character

    def fork(self) -> "SuffixIndex":
        """One that reads on by itself; they share what is sorted."""
        other = copy(self)
        other.alphabet, other.code = list(self.alphabet), dict(self.code)
        other.later = {key: dict(times) for key, times in self.later.items()}
        return other

    def voters(self, past: str) -> Iterator[Int32[np.ndarray, " M"]]:
        """For each expert, the positions of the text that vote after `past`; what was read later isn't among them."""
        for expert, span in zip(EXPERTS, self.spans(past), strict=True):
            yield self._voters(expert, span.low, span.high)

    def _keys(self) -> list[str | None]:
        asked = [view.asked(self.past) for view, _ in self.sorts]
        parts = [(asked[view][0], asked[view][1][slot]) for view, slot, _ in EXPERTS]
        return [key[:length] if len(key) >= length else None for key, length in parts]

    def _voters(self, expert: Expert, low: int, high: int) -> Int32[np.ndarray, " M"]:
        view, order = self.sorts[expert.view]
        voters = order[low:high]
        if expert.deeper:
            voters = voters[
                self.repeats[expert.view][low:high] < view.lengths(expert.slot + 1, voters)
            ]
        return voters

    def _count(self, expert: Expert, low: int, high: int) -> Integer[np.ndarray, " A"]:
        return np.bincount(self.codes[self._voters(expert, low, high)])
