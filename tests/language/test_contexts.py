"""What matching contexts count, one at a time and in bulk, against a plain search."""

import re
from collections import Counter
from itertools import pairwise
from os.path import commonprefix

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnlib.datasets import load_text as shipped
from nnlib.language import context_orders
from nnlib.language.context_orders import (
    CONTEXT_ORDERS,
    Characters,
    Words,
    encode_characters,
    sorted_contexts,
)
from nnlib.language.continuation_counts import count_earlier, expert_counts
from nnlib.language.suffix_index import EXPERTS, LARGE_GROUP, SuffixIndex

LETTERS = st.text("ab \n", min_size=1, max_size=60)
MARKS = st.text("aB'. \n", min_size=1, max_size=60)
STRANGE = st.text("aÉéİ漢😀.\t \n", min_size=1, max_size=40)
TEXTS = st.one_of(LETTERS, MARKS, STRANGE)
CONTEXTS = st.text("abB'É漢 \nz", max_size=40)
ALICE = shipped("alice").replace("\r\n", "\n")


def key(order: int, level: int, context: str):
    """What matches at a level share with a context; None where the context is too short."""
    if CONTEXT_ORDERS[order] is Characters:
        length = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 20)[level]
        return None if length > len(context) else context[len(context) - length :]
    if CONTEXT_ORDERS[order] is Words:
        return back_to_words(level, context)
    if len(context) < level + 1:
        return None
    return min(len(context.split("\n")[-1]), 127), context[-level - 1 :]


def back_to_words(level: int, context: str) -> str | None:
    plain = re.sub(
        r"[\n\r\t]", " ", "".join(c.lower() if len(c.lower()) == 1 else c for c in context)
    )
    starts = [match.start() for match in re.finditer(r"[\w'’]+", plain)]
    number = level + bool(re.search(r"[\w'’]$", plain))  # how many words back
    if number == 0:
        start = len(plain) - 2
    else:
        start = (
            starts[-number] - 1 if number <= len(starts) else -1
        )  # and the character before the word
    start = max(start, len(plain) - 32)
    return plain[start:] if start >= 0 else None


class Plain:
    """A text, and counts of what followed the places that `votes` accepts, by a look at each."""

    def __init__(self, text: str):
        self.text = text
        self.keys = {
            (order, level): [key(order, level, text[:place]) for place in range(len(text))]
            for order, kind in enumerate(CONTEXT_ORDERS)
            for level in range(len(kind.level_names))
        }

    def counts(self, context: str, votes=lambda place: True) -> list[Counter]:
        """How often each character followed, for each expert."""
        places, counts = [place for place in range(len(self.text)) if votes(place)], []
        for order, level, continuations in EXPERTS:
            wanted, keys = key(order, level, context), self.keys[order, level]
            alike = [place for place in places if wanted is not None and keys[place] == wanted]
            if (
                continuations
            ):  # each context once, and one that the text's beginning cuts off by itself
                below = self.keys[order, level + 1]
                once = {
                    (place if below[place] is None else below[place], self.text[place])
                    for place in alike
                }
                counts.append(Counter(character for _, character in once))
            else:
                counts.append(Counter(self.text[place] for place in alike))
        return counts

    def counts_of_queries(self, queries: range, adapt: bool) -> np.ndarray:
        """What `expert_counts` gives, [E, M, 3]."""
        counted = []
        for at in queries:
            counts = self.counts(
                self.text[:at], lambda place, at=at: place not in queries or (adapt and place < at)
            )
            counted.append([[c.total(), len(c), c[self.text[at]]] for c in counts])
        return np.array(counted).swapaxes(0, 1)


def bulk(text: str, queries: range, adapt: bool) -> np.ndarray:
    codes = encode_characters(text)
    return np.stack(
        [
            counts
            for contexts, order in sorted_contexts(text)
            for counts in expert_counts(contexts, order, codes, queries, adapt)
        ]
    )


def as_rows(counts: list[Counter], alphabet: list[str]) -> np.ndarray:
    assert all(set(count) <= set(alphabet) for count in counts)
    return np.array([[count[character] for character in alphabet] for count in counts])


@settings(max_examples=30, deadline=None)
@given(TEXTS, CONTEXTS, st.integers(0, 60))
@example("it's a bb\nit's a bb", "\nIt's a b", 12)
@example("ab" * 100 + "\nab" * 2, "ab" * 90, 130)  # columns beyond the last that counts
@example(
    "the cat sat on the mat, the cat sat on the mat" * 2,
    "Cat sat on the mat, the cat sat on the m",
    40,
)
def test_counts_are_those_of_a_plain_search(text, other, place):
    known, plain = SuffixIndex(text), Plain(text)
    for context in ("", other, text[:place], text[-place:], text):
        np.testing.assert_array_equal(
            known.counts(context), as_rows(plain.counts(context), known.alphabet)
        )
        rows = zip(known.counts(context), EXPERTS, known.find(context), strict=True)
        for count, expert, (_, low, high) in rows:
            matches = known.matches(expert, low, high)
            assert [sum(text[at] == c for at in matches) for c in known.alphabet] == count.tolist()


@settings(max_examples=30, deadline=None)
@given(TEXTS, TEXTS, CONTEXTS)
@example("a", "bcbcabc", "ab")  # what the text's beginning cuts off
def test_what_is_read_later_counts_like_what_was_known(text, more, context):
    reader, plain = SuffixIndex(text), Plain(text + more)
    other = reader.fork()
    for character in more:
        reader.append(character)
    for query in ("", context, more, text + more):
        np.testing.assert_array_equal(
            reader.counts(query), as_rows(plain.counts(query), reader.alphabet)
        )
    assert (
        other.appended == "" and len(other.alphabet) == len(set(text)) and not other.appended_counts
    )


@settings(max_examples=30, deadline=None)
@given(TEXTS, TEXTS, st.booleans())
def test_counts_in_bulk_is_what_reading_on_counts(text, more, adapt):
    whole, reader = text + more, SuffixIndex(text)
    counted = bulk(whole, range(len(text), len(whole)), adapt)
    for step, character in enumerate(more):
        counts = reader.counts(whole[: len(text) + step])
        came = (
            counts[:, reader.code_of[character]]
            if character in reader.code_of
            else np.zeros(len(EXPERTS))
        )
        expected = np.stack([counts.sum(1), (counts > 0).sum(1), came], 1)
        np.testing.assert_array_equal(counted[:, step], expected)
        if adapt:
            reader.append(character, counts)


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(0, 59), st.integers(1, 20), st.booleans())
@example("ab" * 20, 0, 40, False)  # nobody is left to vote
@example("ab" * 20, 0, 40, True)
def test_counts_in_the_middle_of_a_text(text, start, length, adapt):
    queries = range(min(start, len(text) - 1), min(start + length, len(text)))
    np.testing.assert_array_equal(
        bulk(text, queries, adapt), Plain(text).counts_of_queries(queries, adapt)
    )


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("kinds", [254, 255, 256, 257])
def test_many_kinds_of_characters(kinds, adapt):
    once = "".join(chr(0x3041 + n) for n in range(kinds))
    text, queries = once + once[::2] + once[5:60], range(kinds + 20, kinds + 24)
    np.testing.assert_array_equal(
        bulk(text, queries, adapt), Plain(text).counts_of_queries(queries, adapt)
    )
    known = SuffixIndex(text)
    np.testing.assert_array_equal(
        known.counts(once), as_rows(Plain(text).counts(once), known.alphabet)
    )


@pytest.mark.parametrize("adapt", [False, True])
def test_work_in_pieces_is_the_same(monkeypatch, adapt):
    whole = bulk(ALICE[:1000], range(300, 500), adapt)
    monkeypatch.setattr(context_orders, "CHUNK", 17)
    np.testing.assert_array_equal(bulk(ALICE[:1000], range(300, 500), adapt), whole)


def test_large_groups_are_counted_the_same_each_time():
    text = ALICE[:1000]
    known, plain = SuffixIndex(text), Plain(text)
    for context in (text[:500], text[:499], text[:500], "e"):
        counts = known.counts(context)
        np.testing.assert_array_equal(counts, as_rows(plain.counts(context), known.alphabet))
    assert counts.sum(1)[0] == 1000 > LARGE_GROUP


@pytest.mark.parametrize("kind", CONTEXT_ORDERS)
def test_contexts_are_sorted(kind):
    contexts = kind(ALICE[:60_000])  # of so many that ranks squared are beyond 32 bits
    order = contexts.sort()
    keys = [contexts.key(place, contexts.max_length) for place in order]
    assert all(a <= b for a, b in pairwise(keys))
    assert (np.sort(order) == np.arange(60_000)).all()
    alike = [len(commonprefix(pair)) for pair in pairwise(keys)]
    assert contexts.common_prefix(order[:-1], order[1:]).tolist() == alike


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=20), st.booleans())
def test_earlier_counts_those_before(rows, flagged):
    keys, flags = np.array([row[0] for row in rows], int), np.array([row[1] for row in rows], bool)
    expected = [
        sum(k == key and (f or not flagged) for k, f in rows[:at])
        for at, (key, _) in enumerate(rows)
    ]
    assert count_earlier(keys, flags if flagged else None).tolist() == expected
