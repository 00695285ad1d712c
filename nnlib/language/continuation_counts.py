"""Counts of what followed the matches of many positions at once, from sorted contexts."""

from collections.abc import Iterator
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Integer

from nnlib.language.context_orders import ContextOrder


class Matches(NamedTuple):
    """The matches of M queries at one level: rows low..high of the group, and, of the rows sorted by
    character, those start..end of them that have the query's own character."""

    group: Integer[np.ndarray, " M"]
    low: Integer[np.ndarray, " M"]
    high: Integer[np.ndarray, " M"]
    start: Integer[np.ndarray, " M"]
    end: Integer[np.ndarray, " M"]


def expert_counts(
    contexts: ContextOrder,
    order: Int32[np.ndarray, " N"],
    codes: Integer[np.ndarray, " N"],
    queries: range,
    adapt: bool = False,
) -> Iterator[Float32[np.ndarray, "M 3"]]:
    """Count, for each expert, a query's matches, their different characters, and its own among them.

    A level is one expert, or two if the order has `continuations`: the second counts a character
    once for each of the next level's contexts that it came in (Kneser and Ney 1995). Matches are
    the positions that are no queries; with `adapt`, also the queries before each one.
    """
    rows = np.flatnonzero((order >= queries.start) & (order < queries.stop)).astype(np.int32)
    positions = order[rows]
    known = SortedContinuations(contexts, np.delete(order, rows), codes)
    earlier = EarlierQueries(positions - queries.start, codes[positions], adapt)
    levels = _match_levels(contexts, order, rows, codes[positions], known)
    first = known.first_occurrences(0)

    def columns(total, kinds, hits):
        counts = np.empty((len(queries), 3), np.float32)
        counts[positions - queries.start] = np.stack([total, kinds, hits], 1)
        return counts

    for level, (matches, longer) in enumerate(pairwise(chain(levels, [None]))):
        total = matches.high - matches.low + earlier.total(matches)
        kinds = first.between(matches.low, matches.high) + earlier.kinds(matches)
        hits = matches.end - matches.start + earlier.hits(matches)
        yield columns(total, kinds, hits)
        if longer is None:
            return
        first = known.first_occurrences(level + 1)
        if contexts.continuations:
            total = first.between(matches.low, matches.high) + earlier.total(matches, longer)
            hits = first.of_character(matches.start, matches.end) + earlier.hits(matches, longer)
            yield columns(total, kinds, hits)


def _match_levels(
    contexts, order, rows, characters, known: "SortedContinuations"
) -> Iterator[Matches]:
    by_character = np.lexsort((rows, characters))
    shared = np.zeros(len(order), np.int8)
    shared[1:] = contexts.common_prefix(order[1:], order[:-1])
    for level in range(len(contexts.level_names)):
        new = shared < contexts.match_lengths(level, order)
        new[0] = True
        starts = np.flatnonzero(np.append(new, True)).astype(np.int32)  # of groups, and the end
        group = np.searchsorted(starts, rows, side="right")
        low, high = (
            bound - np.searchsorted(rows, bound).astype(np.int32)  # without the queries' own rows
            for bound in (starts[group - 1], starts[group])
        )
        start, end = known.character_ranges(low, high, characters, by_character)
        yield Matches(starts[group - 1], low, high, start, end)


class EarlierQueries:
    """What the queries before each one add to its counts: nothing unless they `adapt`."""

    def __init__(
        self,
        times: Integer[np.ndarray, " M"],
        characters: Integer[np.ndarray, " M"],
        adapt: bool,
    ):
        self.times = times
        self.order = times.argsort()
        self.characters = characters
        self.kinds_of_characters = int(characters.max(initial=0)) + 1
        self.adapt = adapt

    def total(self, matches: Matches, longer: Matches | None = None):
        """Matches, or their first occurrences in the groups of the `longer` ones."""
        return self._sum(matches, False, longer)

    def kinds(self, matches: Matches):
        """Different characters among the matches that were not among the known ones."""
        return self._sum(matches, False, matches)

    def hits(self, matches: Matches, longer: Matches | None = None):
        """The same as `total`, of the query's own character."""
        return self._sum(matches, True, longer)

    def _sum(self, matches: Matches, own: bool, first_in: Matches | None):
        if not self.adapt:
            return 0
        keys = self._with_character(matches) if own else matches.group
        flags = None
        if first_in is not None:
            repeats = count_earlier(self._with_character(first_in)[self.order])[self.times]
            flags = ((first_in.start == first_in.end) & (repeats == 0))[self.order]
        return count_earlier(keys[self.order], flags)[self.times]

    def _with_character(self, matches: Matches) -> Integer[np.ndarray, " M"]:
        return matches.group.astype(np.int64) * self.kinds_of_characters + self.characters


def count_earlier(
    keys: Integer[np.ndarray, " M"], flags: Bool[np.ndarray, " M"] | None = None
) -> Integer[np.ndarray, " M"]:
    """Count, for each key, those before it that are the same (and have a flag)."""
    order = keys.argsort(kind="stable")
    ones = np.ones(len(keys), np.int64) if flags is None else flags[order].astype(np.int64)
    before = ones.cumsum() - ones
    new = np.ones(len(keys), bool)
    new[1:] = keys[order][1:] != keys[order][:-1]
    result = np.empty(len(keys), np.int64)
    first = np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
    result[order] = before - before[first]
    return result


class SortedContinuations:
    """The characters at positions sorted by their contexts, and the rows once more by character."""

    def __init__(
        self,
        contexts: ContextOrder,
        order: Int32[np.ndarray, " N"],
        codes: Integer[np.ndarray, " T"],
    ):
        self.contexts = contexts
        characters = codes[order]
        self.rows = characters.argsort(kind="stable").astype(np.int32)
        counts = np.bincount(characters, minlength=int(codes.max(initial=0)) + 1)
        self.begin = np.concatenate([[0], np.cumsum(counts)])
        self.positions = order[self.rows]
        # what each key shares with the one before of the same character
        self.repeat = np.full(len(order), -1, np.int8)
        self.repeat[1:] = contexts.common_prefix(self.positions[1:], self.positions[:-1])
        self.repeat[self.begin[self.begin < len(order)]] = -1

    def repeat_by_row(self) -> Integer[np.ndarray, " N"]:
        """`repeat`, in the order of the contexts."""
        repeat = np.empty_like(self.repeat)
        repeat[self.rows] = self.repeat
        return repeat

    def character_ranges(
        self, low, high, characters, by_character
    ) -> tuple[Integer[np.ndarray, " M"], Integer[np.ndarray, " M"]]:
        """Where, of the rows sorted by character, those low..high of each character start and end."""
        start = np.empty(len(characters), np.int32)
        end = np.empty(len(characters), np.int32)
        kinds, first = np.unique(characters[by_character], return_index=True)
        for code, part in zip(kinds, np.split(by_character, first[1:]), strict=True):
            rows = self.rows[self.begin[code] : self.begin[code + 1]]
            start[part] = self.begin[code] + np.searchsorted(rows, low[part])
            end[part] = self.begin[code] + np.searchsorted(rows, high[part])
        return start, end

    def first_occurrences(self, level: int) -> "FirstOccurrences":
        """The rows whose character did not come before in their group of the level."""
        flags = self.repeat < self.contexts.match_lengths(level, self.positions)
        return FirstOccurrences(flags, self.rows)


class FirstOccurrences:
    """Some of the rows, to count: as they are, or sorted by character."""

    def __init__(self, flags: Bool[np.ndarray, " N"], rows: Int32[np.ndarray, " N"]):
        self.flags = flags
        by_row = np.empty(len(rows), bool)
        by_row[rows] = flags
        self.total = _running_total(by_row)

    def between(self, low, high) -> Integer[np.ndarray, " M"]:
        return self.total[high] - self.total[low]

    def of_character(self, start, end) -> Integer[np.ndarray, " M"]:
        total = _running_total(self.flags)
        return total[end] - total[start]


def _running_total(flags: Bool[np.ndarray, " N"]) -> Int32[np.ndarray, " N+1"]:
    total = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=total[1:])
    return total
