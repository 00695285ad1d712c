"""Smoothed character counts against a dictionary of them, and compressors."""

import math
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbook.benchmarks import language_baselines
from nnbook.benchmarks.language_baselines import SCALARS, compressed, kneser_ney
from nnlib.datasets import load_text

ALICE, PERSUASION = (load_text(name).replace("\r\n", "\n") for name in ("alice", "persuasion"))


class Naive:
    """Modified interpolated Kneser-Ney as its paper writes it: dictionaries of counts."""

    def __init__(self, head: str, order: int):
        self.order, self.alphabet = order, sorted(set(head))
        padded = [""] * order + list(head)
        grams = [tuple(padded[i : i + order + 1]) for i in range(len(head))]
        levels = [Counter(grams)]
        for _ in range(order):
            levels.insert(
                0, Counter(gram[1:] for gram in levels[0])
            )  # of different ones: by what precedes
        self.discounts = [self.discount(Counter(level.values())) for level in levels]
        self.counts = [defaultdict(dict) for _ in levels]
        for level, counts in zip(levels, self.counts, strict=True):
            for gram, count in level.items():
                counts[gram[:-1]][gram[-1]] = count

    @staticmethod
    def discount(n: Counter) -> list[float]:
        discounts = [0.0]
        for times in (1, 2, 3):
            y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0
            d = times - (times + 1) * y * n[times + 1] / n[times] if n[times] else 0
            discounts.append(d if 0 < d < times else times / 2)
        return discounts

    def probability(self, context: tuple, character: str) -> float:
        lower = (
            self.probability(context[1:], character) if context else 1 / (len(self.alphabet) + 1)
        )
        counts, d = self.counts[len(context)].get(context), self.discounts[len(context)]
        if not counts:
            return lower
        count = counts.get(character, 0)
        spare = sum(d[min(c, 3)] for c in counts.values())
        return (count - d[min(count, 3)] + spare * lower) / sum(counts.values())

    def judged(self, before: str, character: str) -> tuple[float, bool | None]:
        """Bits, and whether it was the most likely character; None where two are equally likely."""
        context = tuple(([""] * self.order + list(before))[-self.order :])
        bits = -math.log2(self.probability(context, character))
        if character not in self.alphabet:
            bits += math.log2(SCALARS - len(self.alphabet))
        ranked = sorted((self.probability(context, c), c) for c in self.alphabet)
        tie = len(ranked) > 1 and math.isclose(ranked[-1][0], ranked[-2][0], rel_tol=1e-9)
        return bits, None if tie else ranked[-1][1] == character


def agree(string: str, cut: int, order: int) -> int:
    """Compare with the naive one; say of how many characters the most likely one was compared."""
    model = Naive(string[:cut], order)
    expected, hits = zip(
        *(model.judged(string[:i], string[i]) for i in range(cut, len(string))), strict=True
    )
    bits, right = kneser_ney(string, cut, order)
    assert (
        bits.dtype == np.float64
        and right.dtype == bool
        and bits.shape == right.shape == (len(string) - cut,)
    )
    np.testing.assert_allclose(bits, expected, rtol=1e-9)
    assert all(mine == hit for mine, hit in zip(right, hits, strict=True) if hit is not None)
    return sum(hit is not None for hit in hits)


splits = st.text("abcdé", min_size=2, max_size=60).flatmap(
    lambda string: st.tuples(st.just(string), st.integers(1, len(string) - 1))
)


@settings(deadline=None)
@given(splits, st.integers(1, 6))
def test_it_is_the_naive_one(split, order):
    agree(*split, order)


@pytest.mark.parametrize("order", [1, 3, 7])
def test_it_is_the_naive_one_on_prose(order):
    assert agree(ALICE[20_000:23_000], 2_600, order) >= 350


def test_blocks_make_no_difference(monkeypatch):
    whole = kneser_ney(ALICE[:3_000], 2_000, 4, 7)
    monkeypatch.setattr(language_baselines, "BLOCK", 1_000)
    for one, other in zip(whole, kneser_ney(ALICE[:3_000], 2_000, 4, 7), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None)
@given(splits, st.integers(1, 4), st.integers(1, 9))
def test_adapting_is_to_train_anew(split, order, every):
    string, cut = split
    starts = range(cut, len(string), every)
    by_hand = [kneser_ney(string[: start + every], start, order) for start in starts]
    for adapted, parts in zip(
        kneser_ney(string, cut, order, every), zip(*by_hand, strict=True), strict=True
    ):
        np.testing.assert_array_equal(adapted, np.concatenate(parts))


@pytest.mark.parametrize("head", ["a", "ab", "aaaa", "abcabcabd", ALICE[:2_000]])
@pytest.mark.parametrize("order", [1, 2, 7])
def test_probabilities_sum_to_one(head, order):
    alphabet = sorted(set(head))
    known = [2 ** -kneser_ney(head + character, len(head), order)[0][0] for character in alphabet]
    escape = 2 ** -kneser_ney(head + "é", len(head), order)[0][0] * (SCALARS - len(alphabet))
    assert sum(known) + escape == pytest.approx(1, rel=1e-12)


def test_unseen_characters_cost_finite_bits_until_learned():
    bits, right = kneser_ney("abab" * 50 + "\U0010ffffé" * 4, 200, 3)
    assert np.isfinite(bits).all() and (bits > math.log2(SCALARS - 2)).all() and not right.any()
    bits, _ = kneser_ney("abab" * 50 + "\U0010ffffé" * 4, 200, 3, 1)
    assert (bits[:2] > 20).all() and (bits[2:] < 10).all() and bits[-1] < 2


@pytest.mark.parametrize(
    ("prose", "order", "every", "bits", "right"),
    [
        (ALICE, 7, 0, 2.0057, 0.6082),
        (ALICE, 7, 1, 1.9454, 0.6166),
        (PERSUASION, 6, 0, 1.8488, 0.6151),
    ],
    ids=["alice", "alice, adapting", "persuasion"],
)
def test_figures_of_the_shipped_texts(prose, order, every, bits, right):
    found, hits = kneser_ney(prose, len(prose) * 9 // 10, order, every)
    assert found.mean() == pytest.approx(bits, abs=1e-4) and hits.mean() == pytest.approx(
        right, abs=1e-4
    )


def test_compressors_see_that_the_tail_repeats_the_head():
    pytest.importorskip("pyppmd")
    found = compressed(ALICE[:6_000] * 2, 6_000)
    *plain, ppmd = found
    assert plain == ["gzip -9", "bzip2 -9", "xz -9e"] and ppmd.startswith("PPMd ")
    assert found.pop("bzip2 -9") < 1 and max(found.values()) < 0.15  # bzip2 sorts, and finds less
    fresh = compressed(ALICE[:12_000], 6_000)
    assert all(2 < bits < 5 for bits in fresh.values())


def test_the_best_ppmd_is_told_and_can_be_read_back():
    pyppmd = pytest.importorskip("pyppmd")
    prose, cut = ALICE[:9_000], 8_000
    *_, (name, bits) = compressed(prose, cut).items()
    variant, order = name.removeprefix("PPMd ").split(", order ")
    settings = {
        "max_order": int(order),
        "mem_size": language_baselines.PPMD_MEMORY,
        "variant": variant,
    }
    whole, head = (pyppmd.compress(part.encode(), **settings) for part in (prose, prose[:cut]))
    assert bits == 8 * (len(whole) - len(head)) / 1_000
    assert bits == min(
        language_baselines._growth(ppmd, prose, cut) for ppmd in language_baselines._ppmd().values()
    )
    decoder = {"H": pyppmd.Ppmd7Decoder, "I": pyppmd.Ppmd8Decoder}[variant](
        int(order), settings["mem_size"]
    )
    assert decoder.decode(whole, len(prose.encode())).decode() == prose


def test_without_pyppmd_its_key_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyppmd", None)
    assert list(compressed("né" * 100, 50)) == ["gzip -9", "bzip2 -9", "xz -9e"]
