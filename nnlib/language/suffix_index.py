"""Look-up of one context: what followed its matches in a sorted text, and in what was appended."""

from bisect import bisect_left, bisect_right
from copy import copy
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from nnlib.language.context_orders import (
    CONTEXT_ORDERS,
    MAX_CONTEXT,
    Positions,
    encode_characters,
    sorted_contexts,
)
from nnlib.language.continuation_counts import SortedContinuations

LARGE_GROUP = 512  # matches from which on counts are cached
CACHED_COUNTS = 4096
CACHED_ROWS = 32_768


class Expert(NamedTuple):
    """A level of a context order; with `continuations`, each longer context counts once."""

    order: int
    level: int
    continuations: bool

    @property
    def name(self) -> str:
        """What its matches share with the context."""
        name = CONTEXT_ORDERS[self.order].level_names[self.level]
        return f"{name}, each context once" if self.continuations else name


EXPERTS = [  # one with continuations stands before that of the longer contexts which it counts
    Expert(number, level, continuations)
    for number, kind in enumerate(CONTEXT_ORDERS)
    for level in range(len(kind.level_names))
    for continuations in (False, True)
    if not continuations or (kind.continuations and level + 1 < len(kind.level_names))
]


class SuffixIndex:
    """A text with its sorted contexts, and counts of the characters appended to it since.

    `alphabet`: the known characters in the order of their codes, which grows by appending.
    """

    def __init__(self, text: str, contexts: list | None = None):
        self.text = text
        self.contexts = contexts or list(sorted_contexts(text))
        self.codes = encode_characters(text)
        self.context = text[-MAX_CONTEXT:]
        self.appended = ""
        self.alphabet = sorted(set(text))
        self.code_of = {character: code for code, character in enumerate(self.alphabet)}
        self.repeats = {}
        for number, (kind, order) in enumerate(self.contexts):
            if kind.continuations:
                known = SortedContinuations(kind, order, self.codes)
                self.repeats[number] = known.by_row(known.repeat)
        self.appended_counts: dict[tuple[int, str], dict[int, int]] = {}
        self._make_caches()

    def _make_caches(self) -> None:
        self._cached_count = lru_cache(CACHED_COUNTS)(self._count)
        self._cached_rows = lru_cache(CACHED_ROWS)(self._rows)

    def __getstate__(self) -> dict:
        return {key: part for key, part in vars(self).items() if not key.startswith("_cached")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._make_caches()

    def counts(self, context: str) -> Float64[np.ndarray, "E A"]:
        """How often each character followed the end of `context`, for each of EXPERTS."""
        counts = np.zeros((len(EXPERTS), len(self.alphabet)))
        for number, (key, low, high) in enumerate(self.find(context)):
            if high > low:
                count = self._cached_count if high - low > LARGE_GROUP else self._count
                known = count(EXPERTS[number], low, high)
                counts[number, : len(known)] = known
            for code, times in self.appended_counts.get((number, key), {}).items():
                counts[number, code] += times
        return counts

    def find(self, context: str) -> list[tuple[str | None, int, int]]:
        """The key that each expert's matches share (None: too short), and their rows low..high."""
        found = {}
        for number, (kind, order) in enumerate(self.contexts):
            key, lengths = kind.query(context[-MAX_CONTEXT:])
            low, high = 0, len(order)
            for level, length in enumerate(lengths):
                if length:
                    low, high = self._cached_rows(number, key[:length], length, low, high)
                shared = key[:length] if len(key) >= length else None
                found[number, level] = (shared, low, high)
        return [found[expert.order, expert.level] for expert in EXPERTS]

    def append(self, character: str, counts: Float64[np.ndarray, "E A"] | None = None) -> None:
        """Count a character that came next; `counts`: those of the context before it, if known."""
        counts = self.counts(self.context) if counts is None else counts
        code = self.code_of.setdefault(character, len(self.alphabet))
        if code == len(self.alphabet):
            self.alphabet.append(character)
        before = counts[:, code] if code < counts.shape[1] else np.zeros(len(EXPERTS))
        for number, (key, _, _) in enumerate(self.find(self.context)):
            repeated = EXPERTS[number].continuations and before[number + 1] > 0
            if key is not None and not repeated:
                times = self.appended_counts.setdefault((number, key), {})
                times[code] = times.get(code, 0) + 1
        self.context = (self.context + character)[-MAX_CONTEXT:]
        self.appended += character

    def fork(self) -> "SuffixIndex":
        """Return one that is appended to by itself; they share what is sorted."""
        other = copy(self)
        other.alphabet = list(self.alphabet)
        other.code_of = dict(self.code_of)
        other.appended_counts = {key: dict(times) for key, times in self.appended_counts.items()}
        return other

    def matches(self, expert: Expert, low: int, high: int) -> Positions:
        """The sorted text's positions that count for an expert, of those in rows low..high."""
        kind, order = self.contexts[expert.order]
        matches = order[low:high]
        if expert.continuations:
            repeats = self.repeats[expert.order][low:high]
            matches = matches[repeats < kind.match_lengths(expert.level + 1, matches)]
        return matches

    def _rows(self, number: int, key: str, length: int, low: int, high: int) -> tuple[int, int]:
        """Which of the rows low..high have keys that begin with `key`, if it is of that length."""
        if low == high or len(key) < length:
            return low, low
        kind, order = self.contexts[number]
        key_at = partial(kind.key, length=length)
        low = bisect_left(order, key, low, high, key=key_at)
        return low, bisect_right(order, key, low, high, key=key_at)

    def _count(self, expert: Expert, low: int, high: int) -> np.ndarray:
        return np.bincount(self.codes[self.matches(expert, low, high)])
