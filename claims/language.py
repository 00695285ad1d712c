"""What is stated of the language models: bits and hits beside rivals, time, memory, and that the bits are honest."""

import subprocess
import sys
from functools import cache
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from claims.table import claim
from nnbook.benchmarks import language_baselines
from nnlib.datasets import load_text
from nnlib.language.coding import decode, encode
from nnlib.language.context_model import ContextModel
from nnlib.language.window_model import WindowModel

TEXTS = ("alice", "persuasion")
FIT = """
import sys, threading, time
from nnlib.text import ContextModel
def held(): return int(open("/proc/self/statm").read().split()[1]) * 4096
text = open(sys.argv[1], encoding="utf-8", newline="").read()
ContextModel().fit(text[:20000])
before, most, done = held(), [0], []
def watch():
    while not done:
        most[0] = max(most[0], held())
        time.sleep(0.005)
thread = threading.Thread(target=watch); thread.start()
started = time.perf_counter()
model = ContextModel().fit(text)
seconds = time.perf_counter() - started
done.append(1); thread.join()
started = time.perf_counter()
model.generate("She was ", 2000, 1.0)
print(seconds, (most[0] - before) / len(text), 2000 / (time.perf_counter() - started))
"""


class Split(NamedTuple):
    """Static and adapting bits a character of ours, the best rivals', and shares of characters right."""

    static: float
    adapting: float
    right: float
    rival_static: float
    rival_adapting: float
    rival_right: float


def halves(name: str) -> tuple[str, str]:
    book = load_text(name).replace("\r\n", "\n")
    return book[: int(0.9 * len(book))], book[int(0.9 * len(book)) :]


@cache
def split(name: str) -> Split:
    head, tail = halves(name)
    model, book = ContextModel().fit(head), head + tail
    static, adapting = (
        [language_baselines.kneser_ney(book, len(head), order, every) for order in range(3, 9)]
        for every in (0, 1)
    )
    rivals = [
        *language_baselines.compressed(book, len(head)).values(),
        *(bits.mean() for bits, _ in adapting),
    ]
    ours = (
        model.bits_per_character(tail),
        model.bits_per_character(tail, adapt=True),
        model.accuracy(tail),
    )
    return Split(
        *ours, min(b.mean() for b, _ in static), min(rivals), max(r.mean() for _, r in static)
    )


def _told(ours, theirs, digits: int = 3) -> str:
    pairs = zip(TEXTS, ours, theirs, strict=True)
    return "; ".join(
        f"{name} {mine:.{digits}f} against {other:.{digits}f}" for name, mine, other in pairs
    )


@claim(
    "language, static: bits a character, against the best modified Kneser-Ney of 3 to 8",
    "0.05 fewer",
    "slow",
)
def static():
    found = [split(name) for name in TEXTS]
    met = all(one.static <= one.rival_static - 0.05 for one in found)
    return _told([one.static for one in found], [one.rival_static for one in found]), met


@claim(
    "language, adapting: bits a character, against the best of PPM and adapting Kneser-Ney",
    "0.08 fewer",
    "slow",
)
def adapting():
    found = [split(name) for name in TEXTS]
    met = all(one.adapting <= one.rival_adapting - 0.08 for one in found)
    return _told([one.adapting for one in found], [one.rival_adapting for one in found]), met


@claim("language: next character right, against the best Kneser-Ney, %", "1 point more", "slow")
def right():
    found = [split(name) for name in TEXTS]
    met = all(one.right >= one.rival_right + 0.01 for one in found)
    return _told(
        [100 * one.right for one in found], [100 * one.rival_right for one in found], 1
    ), met


@claim("the published language model, one layer, on alice's last tenth", "stated", "slow")
def published():
    head, tail = halves("alice")
    model = WindowModel(progress=False).fit(head)
    return (
        f"{model.accuracy(tail):.1%} right, {model.bits_per_character(tail):.2f} bits a character",
        True,
    )


@claim(
    "bits really coded, against those computed, persuasion's last tenth, adapting",
    "within 0.1 %, and it comes back",
    "slow",
)
def coded():
    head, tail = halves("persuasion")
    model = ContextModel().fit(head)
    data, bits = encode(model.reader(True), tail), model.bits(tail, adapt=True).sum()
    more = 8 * len(data) / bits - 1
    return f"{100 * more:+.3f} %", abs(more) <= 0.001 and decode(model.reader(True), data) == tail


@claim("probabilities sum to 1, 500 contexts", "within 1e-6", "test")
def sums():
    book = load_text("alice")
    model = ContextModel().fit(book[:20_000])
    contexts = [book[place : place + place % 90] for place in range(0, 125_000, 250)]
    worst = max(abs(model.predict_proba(context).sum() - 1) for context in contexts)
    return f"{worst:.0e}", worst <= 1e-6


@claim(
    "language, fit on 1 MB: seconds, bytes a character at the peak; characters written a second",
    "10, 60; 500",
    "slow",
)
def megabyte():
    return _fitted(_sampled(1_000_000), 10)


@claim("the same on 10 MB, sampled from the model in pieces of 20,000", "120, 60", "slow")
def ten_megabytes():
    return _fitted(_sampled(10_000_000), 120, speed=0)


@claim("the same on 10 MB that repeat one page", "120, 60", "slow")
def page():
    book = load_text("persuasion")[20_000:22_000]
    return _fitted(book * 5_000, 120, speed=0)


def _sampled(size: int) -> str:
    """Text that the model wrote at temperature 1, after both books, in pieces; ten megabytes take about an hour."""
    model, pieces = ContextModel().fit("".join("".join(halves(name)) for name in TEXTS)), []
    for seed in range(size // 20_000):
        pieces.append(model.generate("\n\nChapter 1\n\n", 20_000, 1.0, seed))
    return "".join(pieces)


def _fitted(book: str, limit: float, speed: float = 500) -> tuple[str, bool]:
    with NamedTemporaryFile("w", encoding="utf-8", newline="") as file:
        file.write(book)
        file.flush()
        out = subprocess.run(
            [sys.executable, "-c", FIT, file.name], capture_output=True, text=True, check=True
        ).stdout
    seconds, held, fast = map(float, out.split())
    told = f"{seconds:.1f} s, {held:.0f} bytes a character, {fast:,.0f} characters a second"
    return told, seconds <= limit and held <= 60 and fast >= speed
