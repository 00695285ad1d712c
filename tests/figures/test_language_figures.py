"""What is stated of the language models: bits and hits against rivals, time, memory, honesty."""

import subprocess
import sys
import time
from functools import cache

from figures.table import figure

from nnbook.benchmarks import language_baselines
from nnbook.benchmarks.speed import Peak
from nnlib.datasets import load_text
from nnlib.language import ContextModel, WindowModel, decode, encode

TEXTS = ("alice", "persuasion")


def halves(name: str) -> tuple[str, str]:
    book = load_text(name).replace("\r\n", "\n")
    cut = int(0.9 * len(book))
    return book[:cut], book[cut:]


@cache
def fitted(name: str) -> ContextModel:
    return ContextModel().fit(halves(name)[0])


@cache
def kneser_ney(name: str, adapt_every: int) -> tuple[float, float]:
    """Bits a character of the best of orders 3 to 8, and the best fraction of hits."""
    head, tail = halves(name)
    runs = [
        language_baselines.kneser_ney(head + tail, len(head), order, adapt_every)
        for order in range(3, 9)
    ]
    return min(bits.mean() for bits, _ in runs), max(right.mean() for _, right in runs)


def against(ours: list[float], rivals: list[float], digits: int = 3) -> str:
    pairs = zip(TEXTS, ours, rivals, strict=True)
    words = [f"{name} {mine:.{digits}f} against {other:.{digits}f}" for name, mine, other in pairs]
    return "; ".join(words)


@figure("language, static: bits, against the best modified Kneser-Ney", "0.05 fewer", "slow")
def test_static():
    ours = [fitted(name).bits_per_character(halves(name)[1]) for name in TEXTS]
    rivals = [kneser_ney(name, 0)[0] for name in TEXTS]
    return against(ours, rivals), all(
        mine <= other - 0.05 for mine, other in zip(ours, rivals, strict=True)
    )


@figure("language, adapting: bits, against PPM and adapting Kneser-Ney", "0.08 fewer", "slow")
def test_adapting():
    ours = [fitted(name).bits_per_character(halves(name)[1], adapt=True) for name in TEXTS]
    rivals = []
    for name in TEXTS:
        head, tail = halves(name)
        compressors = language_baselines.compressed(head + tail, len(head))
        rivals.append(min(*compressors.values(), kneser_ney(name, 1)[0]))
    return against(ours, rivals), all(
        mine <= other - 0.08 for mine, other in zip(ours, rivals, strict=True)
    )


@figure("language: next character right, against the best Kneser-Ney, %", "1 point more", "slow")
def test_right():
    ours = [100 * fitted(name).accuracy(halves(name)[1]) for name in TEXTS]
    rivals = [100 * kneser_ney(name, 0)[1] for name in TEXTS]
    return against(ours, rivals, 1), all(
        mine >= other + 1 for mine, other in zip(ours, rivals, strict=True)
    )


@figure("the published language model, one layer, on alice's last tenth", "stated", "slow")
def test_published():
    head, tail = halves("alice")
    model = WindowModel(progress=False).fit(head)
    bits = model.bits_per_character(tail)
    return f"{model.accuracy(tail):.1%} right, {bits:.2f} bits a character", True


@figure("bits coded against bits computed, persuasion, adapting", "within 0.1 %, decodes", "slow")
def test_coded():
    model, tail = fitted("persuasion"), halves("persuasion")[1]
    data = encode(model.reader(True), tail)
    more = 8 * len(data) / model.bits(tail, adapt=True).sum() - 1
    return f"{100 * more:+.3f} %", abs(more) <= 0.001 and decode(model.reader(True), data) == tail


@figure("probabilities sum to 1, 500 contexts", "within 1e-6")
def test_sums():
    book = load_text("alice")
    model = ContextModel().fit(book[:20_000])
    contexts = [book[place : place + place % 90] for place in range(0, 125_000, 250)]
    worst = max(abs(model.predict_proba(context).sum() - 1) for context in contexts)
    return f"{worst:.0e}", worst <= 1e-6


@figure("fit on 1 MB: seconds, peak bytes a character; characters a second", "10, 60; 500", "slow")
def test_megabyte(tmp_path):
    return fit_cost(tmp_path, sampled(1_000_000), 10, speed=500)


@figure("the same on 10 MB, sampled from the model in pieces of 20,000", "120, 60", "slow")
def test_ten_megabytes(tmp_path):
    return fit_cost(tmp_path, sampled(10_000_000), 120)


@figure("the same on 10 MB that repeat one page", "120, 60", "slow")
def test_page(tmp_path):
    return fit_cost(tmp_path, load_text("persuasion")[20_000:22_000] * 5_000, 120)


def sampled(size: int) -> str:
    """Text that the model wrote at temperature 1; ten megabytes take about an hour."""
    model = ContextModel().fit("".join("".join(halves(name)) for name in TEXTS))
    seeds = range(size // 20_000)
    return "".join(model.generate("\n\nChapter 1\n\n", 20_000, 1.0, seed) for seed in seeds)


def fit_cost(folder, book: str, limit: float, speed: float = 0) -> tuple[str, bool]:
    path = folder / "book.txt"
    path.write_text(book, encoding="utf-8", newline="")
    command = [sys.executable, __file__, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, size, rate = map(float, done.stdout.split())
    words = f"{seconds:.1f} s, {size:.0f} bytes a character, {rate:,.0f} characters a second"
    return words, seconds <= limit and size <= 60 and rate >= speed


def measure_fit(path: str) -> None:
    """Print seconds of a fit, its peak bytes a character, and characters written a second."""
    with open(path, encoding="utf-8", newline="") as file:
        book = file.read()
    ContextModel().fit(book[:20_000])
    start = time.perf_counter()
    with Peak() as peak:
        model = ContextModel().fit(book)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    model.generate("She was ", 2000, 1.0)
    print(seconds, peak.most * 2**20 / len(book), 2000 / (time.perf_counter() - start))


if __name__ == "__main__":
    measure_fit(sys.argv[1])
