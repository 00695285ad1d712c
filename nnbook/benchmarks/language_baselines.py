"""What a language model is compared with: smoothed counts of character sequences, and general compressors."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from functools import partial
from numbers import Integral
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

SCALARS = 1_112_064  # what a character of Unicode can be: code points without the surrogates
BLOCK = 1 << 19  # probabilities held at once
COMPRESSORS = {
    "gzip -9": lambda data: gzip.compress(data, 9),
    "bzip2 -9": lambda data: bz2.compress(data, 9),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}
PPMD_ORDERS = range(4, 17)
PPMD_MEMORY = (
    1 << 28
)  # bytes: a model that outgrows its memory is thrown away, and texts of a few MB stay below this


class Level(NamedTuple):
    """What is counted after contexts of one length, and where in the text: a model trained up to any place is in it."""

    contexts: Int64[np.ndarray, " N"]  # the number of the context before each place
    grams: Int64[np.ndarray, " G"]  # every context * alphabet + next character of the text, sorted
    events: Int64[
        np.ndarray, " E"
    ]  # every gram's index * (N + 1) + place where it was counted, sorted
    reached: list[
        Int64[np.ndarray, " R"]
    ]  # where a gram was counted for the 1st, ... 5th time, sorted


def kneser_ney(
    text: str, cut: int, order: int, adapt_every: int = 0
) -> tuple[Float64[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """Predict text[cut:] by modified interpolated Kneser-Ney over contexts of up to `order` characters.

    Trained on text[:cut], with adapt_every=M anew on everything before each block of M characters; M=1 takes no longer.
    Returns, for each of the T = len(text) - cut characters, its bits, and whether it was the most likely one (of
    equals, the first in Unicode). What training lacks shares one escape: of the uniform base one part in A + 1, where
    A characters were seen, and log2(1,112,064 - A) bits more to spell which. Raises ValueError where an argument can't
    be used.
    Source: Chen and Goodman, An empirical study of smoothing techniques for language modeling, 1999.
    """
    _check(text, cut)
    for name, given, least in (("order", order, 1), ("adapt_every", adapt_every, 0)):
        _require(
            isinstance(given, Integral) and given >= least,
            name,
            given,
            f"a whole number, {least} or more",
        )
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    _, begins, characters = np.unique(codes, return_index=True, return_inverse=True)
    asked = np.arange(cut, len(text))
    read = (
        cut + (asked - cut) // adapt_every * adapt_every
        if adapt_every
        else np.full(len(asked), cut)
    )
    levels = list(_levels(characters, order))
    blocks = range(0, len(asked), max(1, BLOCK // len(begins)))[1:]
    pairs = zip(np.split(asked, blocks), np.split(read, blocks), strict=True)
    bits, right = zip(*(_judged(levels, characters, begins, *pair) for pair in pairs), strict=True)
    return np.concatenate(bits), np.concatenate(right)


def _levels(characters: Int64[np.ndarray, " N"], order: int) -> Iterator[Level]:
    """The counts after contexts of 0 ... `order` characters."""
    count, alphabet = len(characters), characters.max() + 1
    contexts, grams = [np.zeros(count + 1, np.int64)], []
    for _ in range(
        order + 1
    ):  # contexts one character longer; the text's beginning is a context of its own, -1
        longer = np.append(-1, contexts[-1][:-1] * alphabet + characters)
        found, longer = np.unique(longer, return_inverse=True)
        grams.append(found)
        contexts.append(longer)
    for k in range(order + 1):
        # Below the top a gram counts once for each different character before it: where the longer gram begins.
        places = (
            np.arange(count) if k == order else np.unique(contexts[k + 2][1:], return_index=True)[1]
        )
        events = np.sort(contexts[k + 1][1:][places] * (count + 1) + places)
        gram, place = divmod(events, count + 1)
        earlier = np.arange(len(gram)) - np.searchsorted(gram, gram)
        yield Level(
            contexts[k][:-1],
            grams[k],
            events,
            [np.sort(place[earlier == times]) for times in range(5)],
        )


def _judged(levels: list[Level], characters, begins, asked, read) -> tuple[np.ndarray, np.ndarray]:
    """Bits and hits at the places `asked`, of the model that has read all before the places `read`."""
    seen = np.searchsorted(np.sort(begins), read)
    p = np.repeat(1 / (seen[:, None] + 1), len(begins), 1)
    for level in levels:
        _interpolate(p, level, asked, read, len(characters) + 1)
    truth = characters[asked]
    spelled = np.where(begins[truth] < read, 0, np.log2(SCALARS - seen))
    return spelled - np.log2(p[np.arange(len(asked)), truth]), p.argmax(1) == truth


def _interpolate(p: Float64[np.ndarray, "B A"], level: Level, asked, read, stride: int) -> None:
    """Mix the probabilities after shorter contexts, in place, with the discounted counts after these."""
    alphabet, context = p.shape[1], level.contexts[asked]
    first, end = np.searchsorted(level.grams, [context * alphabet, (context + 1) * alphabet])
    row = np.repeat(np.arange(len(asked)), end - first)
    gram = (
        np.arange(len(row)) + (end - np.cumsum(end - first))[row]
    )  # first[0] ... end[0] - 1, first[1] ... end[1] - 1
    counts = np.searchsorted(level.events, gram * stride + read[row]) - np.searchsorted(
        level.events, gram * stride
    )
    discounts = _discounts(level, read)[np.minimum(counts, 3), row]
    total, spare = (np.bincount(row, weights, len(asked)) for weights in (counts, discounts))
    p *= np.where(total > 0, spare / np.maximum(total, 1), 1)[
        :, None
    ]  # a context not met yet says nothing
    p[row, level.grams[gram] % alphabet] += (counts - discounts) / np.maximum(total, 1)[row]


def _discounts(level: Level, read: Int64[np.ndarray, " B"]) -> Float64[np.ndarray, "4 B"]:
    """What counts of 0, 1, 2, and 3 or more give up: from how many grams were counted once ... four times by then."""
    reached = np.stack([np.searchsorted(places, read) for places in level.reached])
    n, times = reached[:-1] - reached[1:], np.arange(1, 4)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        d = times - (times + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:-1]
    d = np.where(
        (d > 0) & (d < times), d, times / 2
    )  # too few grams to tell: half of the count, as in KenLM
    return np.concatenate([np.zeros((1, len(read))), d])


def compressed(text: str, cut: int) -> dict[str, float]:
    """Bits a character of text[cut:] once text[:cut] is known: how much larger a compressor's file becomes by it.

    UTF-8; a key a compressor, "gzip -9", "bzip2 -9", "xz -9e" and, where pyppmd is installed, the PPMd of the variant
    (H or I) and order (4 ... 16) that does best on this very text, such as "PPMd I, order 8".
    """
    _check(text, cut)
    found = {name: _growth(compress, text, cut) for name, compress in COMPRESSORS.items()}
    ppmd = {name: _growth(compress, text, cut) for name, compress in _ppmd().items()}
    return found | {name: ppmd[name] for name in sorted(ppmd, key=ppmd.get)[:1]}


def _growth(compress: Callable[[bytes], bytes], text: str, cut: int) -> float:
    whole, head = (len(compress(part.encode())) for part in (text, text[:cut]))
    return 8 * (whole - head) / (len(text) - cut)


def _ppmd() -> dict[str, Callable[[bytes], bytes]]:
    try:
        from pyppmd import compress
    except ImportError:
        return {}
    return {
        f"PPMd {variant}, order {order}": partial(
            compress, max_order=order, mem_size=PPMD_MEMORY, variant=variant
        )
        for variant in "HI"
        for order in PPMD_ORDERS
    }


def _check(text: str, cut: int) -> None:
    _require(isinstance(text, str), "text", type(text), "a string")
    _require(len(text) > 1, "text", text, "two characters or more")
    _require(
        isinstance(cut, Integral) and 1 <= cut < len(text),
        "cut",
        cut,
        f"a whole number, 1 ... {len(text) - 1}",
    )


def _require(holds: bool, name: str, given, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name}={given!r}: give {wanted}")
