"""What a language model is compared with: smoothed character counts, and general compressors."""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

SCALARS = 1_112_064  # what a character of Unicode can be: code points without the surrogates
BLOCK = 1 << 19  # probabilities held at once
COMPRESSORS = {
    "gzip -9": partial(gzip.compress, compresslevel=9),
    "bzip2 -9": partial(bz2.compress, compresslevel=9),
    "xz -9e": partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME),
}
PPMD_ORDERS = range(4, 17)
PPMD_MEMORY = 1 << 28  # bytes: a model that outgrows them is thrown away; a few MB stay below


class Level(NamedTuple):
    """What is counted after contexts of one length, and where: for models of any beginning."""

    contexts: np.ndarray  # [N], the number of the context before each place
    grams: np.ndarray  # [G], every context * alphabet + next character of the text, sorted
    events: np.ndarray  # [E], every gram's index * (N + 1) + place where it counts, sorted
    reached: list[np.ndarray]  # where a gram counted for the 1st, ... 5th time, sorted


def kneser_ney(
    text: str, cut: int, order: int, adapt_every: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Predict text[cut:] by modified interpolated Kneser-Ney, contexts of up to `order` characters.

    Trained on text[:cut], with adapt_every=M anew on all before each block of M characters. Returns
    the bits of each character and whether it was the most likely one (of equals, the first in
    Unicode). Characters that training lacks share one part in A + 1 of the uniform base, where A
    were seen, and take log2(1,112,064 - A) bits more to spell.

    Source: Chen and Goodman, An empirical study of smoothing techniques, 1999.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    _, begins, characters = np.unique(codes, return_index=True, return_inverse=True)
    places = np.arange(cut, len(text))
    known = cut + (places - cut) // adapt_every * adapt_every if adapt_every else 0 * places + cut
    levels = list(_levels(characters, order))
    blocks = range(0, len(places), max(1, BLOCK // len(begins)))[1:]
    pairs = zip(np.split(places, blocks), np.split(known, blocks), strict=True)
    parts = [_predict(levels, characters, begins, *pair) for pair in pairs]
    bits, right = zip(*parts, strict=True)
    return np.concatenate(bits), np.concatenate(right)


def _levels(characters: np.ndarray, order: int) -> Iterator[Level]:
    """The counts after contexts of 0 ... `order` characters."""
    count, alphabet = len(characters), characters.max() + 1
    contexts, grams = [np.zeros(count + 1, np.int64)], []
    for _ in range(order + 1):  # one character longer; the beginning is a context of its own, -1
        longer = np.append(-1, contexts[-1][:-1] * alphabet + characters)
        unique, numbers = np.unique(longer, return_inverse=True)
        grams.append(unique)
        contexts.append(numbers)
    for k in range(order + 1):
        places = np.arange(count)
        if k < order:  # a gram counts once for each different character before it
            places = np.unique(contexts[k + 2][1:], return_index=True)[1]
        events = np.sort(contexts[k + 1][1:][places] * (count + 1) + places)
        gram, place = divmod(events, count + 1)
        earlier = np.arange(len(gram)) - np.searchsorted(gram, gram)
        reached = [np.sort(place[earlier == times]) for times in range(5)]
        yield Level(contexts[k][:-1], grams[k], events, reached)


def _predict(levels, characters, begins, places, known) -> tuple[np.ndarray, np.ndarray]:
    """Bits and hits at some places, of models that have read all before the places `known`."""
    seen = np.searchsorted(np.sort(begins), known)
    p = np.repeat(1 / (seen[:, None] + 1), len(begins), 1)
    for level in levels:
        _interpolate(p, level, places, known, len(characters) + 1)
    truth = characters[places]
    spelling = np.where(begins[truth] < known, 0, np.log2(SCALARS - seen))
    return spelling - np.log2(p[np.arange(len(places)), truth]), p.argmax(1) == truth


def _interpolate(p: np.ndarray, level: Level, places, known, stride: int) -> None:
    """Mix probabilities [B, A] after shorter contexts, in place, with discounted counts."""
    alphabet, context = p.shape[1], level.contexts[places]
    first, end = np.searchsorted(level.grams, [context * alphabet, (context + 1) * alphabet])
    row = np.repeat(np.arange(len(places)), end - first)
    gram = np.arange(len(row)) + (end - np.cumsum(end - first))[row]  # all of first ... end - 1
    bounds = np.searchsorted(level.events, [gram * stride, gram * stride + known[row]])
    counts = bounds[1] - bounds[0]
    discounts = _discounts(level, known)[np.minimum(counts, 3), row]
    total = np.bincount(row, counts, len(places))
    spare = np.bincount(row, discounts, len(places))
    p *= np.where(total > 0, spare / np.maximum(total, 1), 1)[:, None]  # new contexts say nothing
    p[row, level.grams[gram] % alphabet] += (counts - discounts) / np.maximum(total, 1)[row]


def _discounts(level: Level, known: np.ndarray) -> np.ndarray:
    """What counts of 0, 1, 2, and 3 or more give up [4, B], from how many grams count so often."""
    reached = np.stack([np.searchsorted(places, known) for places in level.reached])
    n, times = reached[:-1] - reached[1:], np.arange(1, 4)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        d = times - (times + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:-1]
    d = np.where((d > 0) & (d < times), d, times / 2)  # too few grams: half, as in KenLM
    return np.concatenate([np.zeros((1, len(known))), d])


def compressed(text: str, cut: int) -> dict[str, float]:
    """Bits a character of text[cut:] once text[:cut] is known, by how much files grow in UTF-8.

    A key a compressor and, where pyppmd is installed, the PPMd of the variant (H or I) and order
    (4 ... 16) that does best on this very text, such as "PPMd I, order 8".
    """
    bits = {name: _growth(compress, text, cut) for name, compress in COMPRESSORS.items()}
    ppmd = {name: _growth(compress, text, cut) for name, compress in _ppmd().items()}
    return bits | {name: ppmd[name] for name in sorted(ppmd, key=ppmd.get)[:1]}


def _growth(compress, text: str, cut: int) -> float:
    whole, head = (len(compress(part.encode())) for part in (text, text[:cut]))
    return 8 * (whole - head) / (len(text) - cut)


def _ppmd() -> dict:
    try:
        from pyppmd import compress
    except ImportError:
        return {}
    compress = partial(compress, mem_size=PPMD_MEMORY)
    return {
        f"PPMd {variant}, order {order}": partial(compress, max_order=order, variant=variant)
        for variant in "HI"
        for order in PPMD_ORDERS
    }
