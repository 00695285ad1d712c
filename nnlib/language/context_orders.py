"""What stands before each character of a text, seen three ways, and sorted so that alike contexts lie side by side."""

import re
from functools import cached_property

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt32

DEPTH = 32  # the longest match that is looked for, in characters
CHUNK = 1 << 16  # positions worked on at once, where that takes much memory
COLUMNS = 127  # a line's further columns count as this one
LETTER = re.compile(r"[\w'’]")
WORDS = re.compile(
    r"[\w'’]+(?:[^\w'’]|$)"
)  # in a reversed context: a word and the character before it


class ContextOrder:
    """One way to see contexts: a key of symbols for each position, the weightiest first.

    A slot is a length: the position's neighbors in it are all positions whose keys begin with the same so many symbols.
    `deeper`: whether a slot also counts in how many different longer contexts each character came.
    """

    slots: int
    names: tuple[str, ...]  # of the slots
    depth, deeper = DEPTH, False

    def __init__(self, text: str):
        self.text, self.size = text, len(text)
        self.symbols = np.pad(numbered(text) + 1, (DEPTH, 0))

    def symbol(self, place: int, positions: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
        """The key's symbol number `place` at each position; 0 before the text began."""
        return self.symbols[positions + (DEPTH - 1 - place)]

    @cached_property
    def reversed(self) -> str:
        return self.text[::-1]

    def key(self, position: int | np.integer, length: int = DEPTH) -> str:
        """The key at a position, for comparing; shorter than `length` where the text begins."""
        start = self.size - position
        return self.reversed[start : start + length]

    def lengths(self, slot: int, positions: Integer[np.ndarray, " M"]) -> Integer[np.ndarray, " M"]:
        """The slot's length at each of the positions."""
        raise NotImplementedError

    @classmethod
    def asked(cls, past: str) -> tuple[str, list[int]]:
        """The key of what follows `past`, and the length of each slot there."""
        raise NotImplementedError

    def sorted(self) -> Int32[np.ndarray, " N"]:
        """All positions, ordered by their keys: prefix doubling (Manber and Myers 1990) up to DEPTH."""
        order, rank = _ranked(self.symbols[DEPTH - 1 : -1].astype(np.int64))
        length = 1
        while length < DEPTH:
            key = np.multiply(rank, int(rank.max(initial=0)) + 1, dtype=np.int64)
            key[length:] += rank[:-length]
            del order, rank  # of which this needs no copies beside its own
            order, rank = _ranked(key)
            length *= 2
        return order

    def common(
        self, a: Integer[np.ndarray, " M"], b: Integer[np.ndarray, " M"]
    ) -> Integer[np.ndarray, " M"]:
        """How many symbols the keys at positions `a` and `b` share from the start, up to DEPTH."""
        shared = np.zeros(len(a), np.int8)
        for first in range(0, len(a), CHUNK):
            self._common(
                a[first : first + CHUNK], b[first : first + CHUNK], shared[first : first + CHUNK]
            )
        return shared

    def _common(self, a, b, shared) -> None:
        alike = np.arange(len(a))
        for place in range(self.depth):
            alike = alike[self.symbol(place, a[alike]) == self.symbol(place, b[alike])]
            shared[alike] = place + 1


class Characters(ContextOrder):
    """The last characters as they are: slots of 0 to 20."""

    LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 20)
    slots, depth, deeper = len(LENGTHS), LENGTHS[-1], True
    names = (
        "nothing",
        "the last character",
        *(f"the last {length} characters" for length in LENGTHS[2:]),
    )

    def lengths(self, slot, positions):
        return np.full(len(positions), self.LENGTHS[slot], np.int8)

    @classmethod
    def asked(cls, past):
        """The last characters backwards; every slot has a length of its own, whatever they are."""
        return past[: -cls.depth - 1 : -1], list(cls.LENGTHS)


class Words(ContextOrder):
    """The last characters with capitals and line breaks made plain: slots back to the start of a word.

    Within a word: back to its start, and to those of the one, two and three words before. After a word: the last two
    characters, and back to the starts of the last three words.
    """

    slots = 4
    names = (
        "this word",
        "this word and the one before",
        "this word and two before",
        "this word and three before",
    )

    def __init__(self, text):
        super().__init__(_folded(text))
        known = sorted(set(self.text))  # as the symbols number them
        letter = np.array([False, *(bool(LETTER.match(c)) for c in known)])[self.symbols[DEPTH:]]
        within = np.concatenate([[False], letter[:-1]])  # whether a letter stands before
        starts = np.flatnonzero(letter & ~within)
        self.back = np.empty((self.slots, self.size), np.int8)
        for first in range(0, self.size, CHUNK):
            part = slice(first, first + CHUNK)
            self.back[:, part] = self._back(
                np.arange(first, min(first + CHUNK, self.size)), within[part], starts
            )

    def _back(self, positions, within, starts) -> Integer[np.ndarray, "S M"]:
        word = np.searchsorted(starts, positions) - np.arange(self.slots)[:, None] - within
        length = np.where(
            word >= 0, positions - np.append(starts, 0)[np.maximum(word, 0)] + 1, DEPTH
        )
        length[0] = np.where(within, length[0], 2)
        return np.minimum(
            length, DEPTH
        )  # one that begins the text reaches before it, where nothing is alike

    def lengths(self, slot, positions):
        return self.back[slot][positions]

    @classmethod
    def asked(cls, past):
        """The last characters made plain, backwards, and how far back each of the words before reaches."""
        key = _folded(past[-DEPTH:])[::-1]
        words = list(WORDS.finditer(key))
        ends = [
            min(
                DEPTH, match.end() + (match.end() == len(key) and LETTER.match(key[-1]) is not None)
            )
            for match in words
        ]
        if not (words and words[0].start() == 0):
            ends.insert(0, 2)
        return key, (ends + [DEPTH] * cls.slots)[: cls.slots]


class Lines(ContextOrder):
    """The column in the line and the last two characters: where lines end, and what they begin with."""

    slots, depth = 2, 3
    names = ("column and last character", "column and last two characters")

    def __init__(self, text):
        super().__init__(text)
        self.column = np.empty(self.size, np.uint8)
        start = 0
        for line in text.split("\n"):
            part = self.column[start : start + len(line) + 1]
            part[:] = np.minimum(np.arange(len(part)), COLUMNS)
            start += len(part)

    def symbol(self, place, positions):
        return self.column[positions] if place == 0 else super().symbol(place - 1, positions)

    def key(self, position, length=3):
        return chr(self.column[position]) + super().key(position, length - 1)

    def lengths(self, slot, positions):
        return np.full(len(positions), slot + 2, np.int8)

    @classmethod
    def asked(cls, past):
        """The column with the last two characters, backwards; the slots share one and two of them with it."""
        column = min(len(past) - past.rfind("\n") - 1, COLUMNS)
        return chr(column) + past[:-3:-1], [2, 3]

    def sorted(self):
        kinds = int(self.symbols.max()) + 1
        key = np.multiply(self.column, kinds, dtype=np.int64) + self.symbols[DEPTH - 1 : -1]
        return _ranked(key * kinds + self.symbols[DEPTH - 2 : -2])[0]


VIEWS = (Characters, Words, Lines)
CONTEXT = COLUMNS + DEPTH  # of a past, what any view looks at


def code_points(text: str) -> UInt32[np.ndarray, " N"]:
    """The Unicode code points of a text. Raises UnicodeEncodeError for halves of surrogate pairs."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def numbered(text: str) -> Integer[np.ndarray, " N"]:
    """Characters as 0, 1, ... in the order of their code points, in the smallest type that holds one more."""
    points = code_points(text)
    present = np.zeros(0x110000, bool)
    present[points] = True
    kinds = int(present.sum())
    return (present.cumsum() - 1).astype(np.min_scalar_type(kinds))[points]


def _folded(text: str) -> str:
    """Without capitals and line breaks, character by character: the length stays."""
    plain = {ord(c): c.lower() for c in set(text) if len(c.lower()) == 1} | {
        ord(c): " " for c in "\n\r\t"
    }
    return text.translate(plain)


def _ranked(
    key: Int64[np.ndarray, " N"],
) -> tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " N"]]:
    """The order of numbers, and the rank of each from 1 on, alike ones alike."""
    order = key.argsort().astype(np.int32)
    key = key[order]
    new = np.ones(len(key), bool)
    np.not_equal(key[1:], key[:-1], out=new[1:])
    del key
    rank = np.empty(len(order), np.int32)
    rank[order] = np.cumsum(new, dtype=np.int32)
    return order, rank
