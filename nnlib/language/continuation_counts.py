"""Counts of what followed the matches of many positions at once, from sorted contexts."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Integer

from nnlib.language.context_orders import ContextOrder, Positions

Queries = Integer[np.ndarray, " M"]


class Matches(NamedTuple):
    """The matches of M queries at one level, as rows of what is sorted by context or character."""

    character: Queries  # the query's own
    group: Queries  # the number of all positions with the same context
    low: Queries  # rows low..high of the known positions among them
    high: Queries
    start: Queries  # start..end of them, by character: those with the query's own
    end: Queries

    def continuation(self) -> Queries:
        """Number the pairs of a group and a character."""
        kinds = int(self.character.max()) + 1
        return self.group.astype(np.int64) * kinds + self.character

    def is_new(self) -> Bool[np.ndarray, " M"]:
        """Which queries' characters come for the first time in their group."""
        return (self.start == self.end) & (count_earlier(self.continuation()) == 0)


def expert_counts(
    contexts: ContextOrder, order: Positions, codes: np.ndarray, queries: range, adapt: bool = False
) -> Iterator[Float32[np.ndarray, "M 3"]]:
    """Count, for each expert, queries' matches, their different characters, and the true one.

    A level is one expert, or two if the order has `continuations`: the second counts a character
    once for each of the next level's contexts that it came in (Kneser and Ney 1995). Matches are
    the positions that are no queries; with `adapt`, also the queries before each one.
    """
    rows = np.flatnonzero((order >= queries.start) & (order < queries.stop)).astype(np.int32)
    known = SortedContinuations(contexts, np.delete(order, rows), codes)
    shorter = None
    for level, matches in enumerate(_match_levels(contexts, order, rows, codes, known)):
        first_by_character = known.first_occurrences(level)
        first = known.by_row(first_by_character)
        if shorter and contexts.continuations:
            total = _count_flags(first, shorter.low, shorter.high)
            hits = _count_flags(first_by_character, shorter.start, shorter.end)
            if adapt:
                is_new = matches.is_new()
                total = total + count_earlier(shorter.group, is_new)
                hits = hits + count_earlier(shorter.continuation(), is_new)
            yield np.stack([total, kinds, hits], 1).astype(np.float32)
        total = matches.high - matches.low
        kinds = _count_flags(first, matches.low, matches.high)
        hits = matches.end - matches.start
        if adapt:
            total = total + count_earlier(matches.group)
            kinds = kinds + count_earlier(matches.group, matches.is_new())
            hits = hits + count_earlier(matches.continuation())
        yield np.stack([total, kinds, hits], 1).astype(np.float32)
        shorter = matches


def _match_levels(contexts, order, rows, codes, known) -> Iterator[Matches]:
    """The matches at each level, of the queries as they follow each other in the text."""
    characters = codes[order[rows]]
    by_character = np.lexsort((rows, characters))
    by_time = order[rows].argsort()
    shared = np.zeros(len(order), np.int8)
    shared[1:] = contexts.common_prefix(order[1:], order[:-1])
    for level in range(len(contexts.level_names)):
        new = shared < contexts.match_lengths(level, order)  # which rows start a group
        new[0] = True
        groups = np.cumsum(new, dtype=np.int32)
        group = groups[rows]
        low = np.searchsorted(groups, group)
        high = np.searchsorted(groups, group, side="right")
        low -= np.searchsorted(rows, low)  # less the queries' own rows
        high -= np.searchsorted(rows, high)
        start, end = known.character_ranges(low, high, characters, by_character)
        columns = (characters, group, low, high, start, end)
        yield Matches(*(column[by_time] for column in columns))


def count_earlier(keys: Queries, flags: Bool[np.ndarray, " M"] | None = None) -> Queries:
    """Count, for each key, those before it that are the same (and have a flag)."""
    order = keys.argsort(kind="stable")
    ones = np.ones(len(keys), np.int64) if flags is None else flags[order].astype(np.int64)
    before = ones.cumsum() - ones
    new = np.ones(len(keys), bool)
    new[1:] = keys[order][1:] != keys[order][:-1]
    first = np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
    result = np.empty(len(keys), np.int64)
    result[order] = before - before[first]
    return result


class SortedContinuations:
    """The characters at positions sorted by context, and their rows once more by character."""

    def __init__(self, contexts: ContextOrder, order: Positions, codes: np.ndarray):
        self.contexts = contexts
        characters = codes[order]
        counts = np.bincount(characters, minlength=int(codes.max(initial=0)) + 1)
        self.begin = np.concatenate([[0], np.cumsum(counts)])  # of each character's rows
        self.rows = characters.argsort(kind="stable").astype(np.int32)
        self.positions = order[self.rows]
        # what a key shares with the one before of the same character
        self.repeat = np.full(len(order), -1, np.int8)
        self.repeat[1:] = contexts.common_prefix(self.positions[1:], self.positions[:-1])
        self.repeat[self.begin[self.begin < len(order)]] = -1

    def by_row(self, values: np.ndarray) -> np.ndarray:
        """Bring values from the order by character to the order of contexts."""
        result = np.empty_like(values)
        result[self.rows] = values
        return result

    def character_ranges(
        self, low: Queries, high: Queries, characters: Queries, by_character: Queries
    ) -> tuple[Queries, Queries]:
        """Where, by character, the rows low..high of each query's character start and end."""
        start = np.empty(len(characters), np.int32)
        end = np.empty(len(characters), np.int32)
        kinds, first = np.unique(characters[by_character], return_index=True)
        for code, queries in zip(kinds, np.split(by_character, first[1:]), strict=True):
            rows = self.rows[self.begin[code] : self.begin[code + 1]]
            start[queries] = self.begin[code] + np.searchsorted(rows, low[queries])
            end[queries] = self.begin[code] + np.searchsorted(rows, high[queries])
        return start, end

    def first_occurrences(self, level: int) -> Bool[np.ndarray, " N"]:
        """Which rows, by character, have one that did not come before in their level's group."""
        return self.repeat < self.contexts.match_lengths(level, self.positions)


def _count_flags(flags: np.ndarray, start: Queries, end: Queries) -> Queries:
    total = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=total[1:])
    return total[end] - total[start]
