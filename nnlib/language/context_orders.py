"""Orders of a text's positions by what stands before them, so that like contexts are adjacent."""

import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer

MAX_MATCH = 32  # the longest match that is looked for, in characters
CHUNK = 1 << 16  # positions worked on at once, where that takes much memory
MAX_COLUMN = 127  # a line's further columns count as this one
LETTER = re.compile(r"[\w'’]")
WORD = re.compile(r"[\w'’]+(?:[^\w'’]|$)")  # backwards: a word and the character before it
Positions = Integer[np.ndarray, " N"]


class ContextOrder:
    """One kind of context: a key of symbols for each position, the most important first.

    At a level, two positions match if their keys begin with the same `match_lengths` symbols. With
    `continuations`, a level also counts in how many different longer contexts a character came.
    """

    level_names: tuple[str, ...]
    max_length = MAX_MATCH
    continuations = False

    def __init__(self, text: str):
        self.size = len(text)
        self.reversed = text[::-1]
        self.symbols = np.pad(encode_characters(text) + 1, (MAX_MATCH, 0))

    def symbol(self, index: int, positions: Positions) -> Positions:
        """The key's symbol number `index` at each position; 0 before the text began."""
        return self.symbols[positions + (MAX_MATCH - 1 - index)]

    def key(self, position: int | np.integer, length: int = MAX_MATCH) -> str:
        """The key at a position, for comparing; shorter than `length` where the text begins."""
        start = self.size - position
        return self.reversed[start : start + length]

    def match_lengths(self, level: int, positions: Positions) -> Positions:
        """How many symbols must be the same at the level, for each of the positions."""

    @classmethod
    def query(cls, context: str) -> tuple[str, list[int]]:
        """The key of what follows `context`, and the match length of each level there."""

    def sort(self) -> Positions:
        """Return all positions, ordered by their keys: prefix doubling (Manber and Myers 1990)."""
        order, rank = _order_and_rank(self.symbols[MAX_MATCH - 1 : -1].astype(np.int64))
        length = 1
        while length < MAX_MATCH:
            key = np.multiply(rank, int(rank.max(initial=0)) + 1, dtype=np.int64)
            key[length:] += rank[:-length]
            del order, rank  # before their successors are made, to save memory
            order, rank = _order_and_rank(key)
            length *= 2
        return order

    def common_prefix(self, a: Positions, b: Positions) -> Positions:
        """Count the leading symbols that keys at positions `a` and `b` share."""
        shared = np.zeros(len(a), np.int8)
        for start in range(0, len(a), CHUNK):
            same = np.arange(start, min(start + CHUNK, len(a)))
            for index in range(self.max_length):
                same = same[self.symbol(index, a[same]) == self.symbol(index, b[same])]
                shared[same] = index + 1
        return shared


class Characters(ContextOrder):
    """The last 0 to 20 characters as they are."""

    LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 20)
    level_names = ("nothing", "the last character") + tuple(
        f"the last {length} characters" for length in LENGTHS[2:]
    )
    max_length = LENGTHS[-1]
    continuations = True

    def match_lengths(self, level, positions):
        return np.full(len(positions), self.LENGTHS[level], np.int8)

    @classmethod
    def query(cls, context):
        """The last characters, backwards, of which each level matches a fixed number."""
        return context[: -cls.max_length - 1 : -1], list(cls.LENGTHS)


class Words(ContextOrder):
    """The last words, without capitals and line breaks: back to the starts of one to four words.

    After a word, the first level is the last two characters.
    """

    earlier = ("the one", "two", "three")
    level_names = ("this word", *(f"this word and {words} before" for words in earlier))

    def __init__(self, text):
        text = _normalize(text)
        super().__init__(text)
        known = sorted(set(text))  # in the order of their symbols
        is_letter = np.array([False, *(bool(LETTER.match(c)) for c in known)])
        letters = is_letter[self.symbols[MAX_MATCH:]]
        after_letter = np.concatenate([[False], letters[:-1]])
        starts = np.append(np.flatnonzero(letters & ~after_letter), 0)  # 0: where there are none
        self.lengths = np.empty((len(self.level_names), self.size), np.int8)
        for first in range(0, self.size, CHUNK):
            positions = np.arange(first, min(first + CHUNK, self.size))
            within = after_letter[positions]
            word = np.searchsorted(starts[:-1], positions) - within
            for level, lengths in enumerate(self.lengths):
                back = positions - starts[np.maximum(word - level, 0)] + 1
                back[word < level] = MAX_MATCH  # before the text, where nothing matches
                if level == 0:
                    back[~within] = 2
                lengths[positions] = np.minimum(back, MAX_MATCH)

    def match_lengths(self, level, positions):
        return self.lengths[level][positions]

    @classmethod
    def query(cls, context):
        """The normalized characters, backwards, and where each of the last words starts."""
        key = _normalize(context[-MAX_MATCH:])[::-1]
        words = list(WORD.finditer(key))
        ends = [min(MAX_MATCH, match.end()) for match in words]
        if words and words[-1].end() == len(key) and LETTER.match(key[-1]):
            ends[-1] = min(MAX_MATCH, len(key) + 1)  # the first word lacks a character before it
        if not (words and words[0].start() == 0):
            ends.insert(0, 2)
        levels = len(cls.level_names)
        return key, (ends + [MAX_MATCH] * levels)[:levels]


class Lines(ContextOrder):
    """The column in the line and the last two characters: where lines end and how they begin."""

    level_names = ("column and last character", "column and last two characters")
    max_length = 3

    def __init__(self, text):
        super().__init__(text)
        self.column = np.empty(self.size, np.uint8)
        start = 0
        for line in text.split("\n"):
            part = self.column[start : start + len(line) + 1]
            part[:] = np.minimum(np.arange(len(part)), MAX_COLUMN)
            start += len(part)

    def symbol(self, index, positions):
        return self.column[positions] if index == 0 else super().symbol(index - 1, positions)

    def key(self, position, length=3):
        return chr(self.column[position]) + super().key(position, length - 1)

    def match_lengths(self, level, positions):
        return np.full(len(positions), level + 2, np.int8)

    @classmethod
    def query(cls, context):
        """The column as a character, and the last two characters, backwards."""
        column = min(len(context) - context.rfind("\n") - 1, MAX_COLUMN)
        return chr(column) + context[:-3:-1], [2, 3]

    def sort(self):
        """Order positions by column and the last two characters, which are one number."""
        kinds = int(self.symbols.max()) + 1
        last = self.symbols[MAX_MATCH - 1 : -1]
        key = np.multiply(self.column, kinds, dtype=np.int64) + last
        return _order_and_rank(key * kinds + self.symbols[MAX_MATCH - 2 : -2])[0]


CONTEXT_ORDERS = (Characters, Words, Lines)
MAX_CONTEXT = MAX_COLUMN + MAX_MATCH  # characters of a context that any order looks at


def sorted_contexts(text: str) -> Iterator[tuple[ContextOrder, Positions]]:
    """Yield each context order of a text, with its positions in that order."""
    for kind in CONTEXT_ORDERS:
        contexts = kind(text)
        yield contexts, contexts.sort()


def encode_characters(text: str) -> Positions:
    """Number characters in the order of their code points, in a type that holds one more."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    present = np.zeros(0x110000, bool)
    present[points] = True
    return (present.cumsum() - 1).astype(np.min_scalar_type(int(present.sum())))[points]


def _normalize(text: str) -> str:
    """Lower-case, with spaces for line breaks, character by character: the length stays."""
    plain = {ord(c): c.lower() for c in set(text) if len(c.lower()) == 1}
    return text.translate(plain | {ord(c): " " for c in "\n\r\t"})


def _order_and_rank(key: Positions) -> tuple[Positions, Positions]:
    """The order of numbers, and each one's rank from 1 on, the same for equal ones."""
    order = key.argsort().astype(np.int32)
    key = key[order]
    new = np.ones(len(key), bool)
    np.not_equal(key[1:], key[:-1], out=new[1:])
    del key
    rank = np.empty(len(order), np.int32)
    rank[order] = np.cumsum(new, dtype=np.int32)
    return order, rank
