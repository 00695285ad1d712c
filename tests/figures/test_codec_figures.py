"""What is stated of pictures as files of centers: ahead of JPEG at equal bytes, quick, and safe."""

import random
import resource
import statistics
import struct
import subprocess
import sys
import time
import zlib
from functools import cache

import pytest
from figures.memory import extra_megabytes, picture_regressor
from figures.table import figure

from nnbook.benchmarks import image_formats
from nnlib.datasets import load_photo
from nnlib.features import pixel_samples
from nnlib.image_codec import CorruptError, decode, encode

PHOTOS = ("astronaut", "chelsea", "tmshre_500")
RATES = (0.15, 0.25, 0.5, 1.0)
FORGED, LIMIT = 10_000, 1 << 16  # files, and the pixels that a decoder of forged files allows


@cache
def coded(name: str, rate: float) -> image_formats.Point:
    """Our file of a whole photo, default settings, seed 0."""
    return image_formats.point(load_photo(name), encode(load_photo(name), rate), decode)


@cache
def rival(name: str, kind: str, rate: float) -> image_formats.Point | None:
    """Another format's best file that is no larger."""
    photo = load_photo(name)
    data = image_formats.best(photo, kind, rate * photo[..., 0].numel() / 8)
    return image_formats.point(photo, data) if data else None


def lead(kind: str, *rates: float) -> list[float]:
    """How many dB our files are ahead, where the other format has files so small."""
    pairs = [(coded(name, rate), rival(name, kind, rate)) for rate in rates for name in PHOTOS]
    return [ours.psnr_db - theirs.psnr_db for ours, theirs in pairs if theirs]


def ahead(leads: list[float], mean: float, each: float) -> tuple[str, bool]:
    words = f"mean {statistics.mean(leads):+.2f} dB, each "
    words += ", ".join(f"{dB:+.2f}" for dB in leads)
    return words, statistics.mean(leads) >= mean and min(leads) >= each


@pytest.mark.parametrize("rate", RATES[:3])
@figure(
    f"PSNR at {{rate}} bits per pixel against JPEG, {', '.join(PHOTOS)}",
    "mean +1.0 dB, each +0.3 dB",
    "slow",
)
def test_low_rates(rate):
    return ahead(lead("JPEG", rate), 1.0, 0.3)


@figure("PSNR at 1.0 bits per pixel against JPEG", "mean +0 dB, each -0.5 dB", "slow")
def test_high_rate():
    return ahead(lead("JPEG", 1.0), 0.0, -0.5)


@figure("against WebP at 0.15 and 0.25, where it has such small files", "mean +0 dB", "slow")
def test_webp():
    return ahead(lead("WebP", 0.15, 0.25), 0.0, -100)


@figure("BD-rate, 0.15 to 1.0 bits per pixel", "below 0 % against WebP; AVIF stated", "slow")
def test_bd_rates():
    rates = {kind: [bd_rate(name, kind) for name in PHOTOS] for kind in ("WebP", "AVIF")}
    words = [f"{kind} {', '.join(f'{rate:+.0f} %' for rate in rates[kind])}" for kind in rates]
    return "; ".join(words), max(rates["WebP"]) < 0


def bd_rate(name: str, kind: str) -> float:
    theirs = [rival(name, kind, rate) for rate in RATES]
    ours = [coded(name, rate) for rate in RATES]
    return image_formats.bd_rate(ours, [point for point in theirs if point])


@figure("encode 512 x 512 at 0.25 bits per pixel; decode, median of 9", "60 s; 0.3 s", "slow")
def test_seconds():
    start = time.perf_counter()
    data = encode(load_photo("astronaut"))
    encoding = time.perf_counter() - start
    times = []
    for _ in range(9):
        start = time.perf_counter()
        decode(data)
        times.append(time.perf_counter() - start)
    decoding = statistics.median(times)
    return f"{encoding:.1f} s; {decoding:.3f} s", encoding <= 60 and decoding <= 0.3


@figure("12 megapixels, 4,000 x 3,000, at 0.25 bits per pixel", "within 4 GB", "slow")
def test_twelve_megapixels():
    start = time.perf_counter()
    size = extra_megabytes("encode large")
    seconds = time.perf_counter() - start
    return f"{size:.0f} MB at the peak, {seconds:.0f} s to encode and decode", size <= 4096


@figure("encode 512 x 512 on a GPU", "recorded", "gpu")
def test_gpu_seconds():
    photo, start = load_photo("astronaut"), time.perf_counter()
    data = encode(photo, device="cuda")
    seconds = time.perf_counter() - start
    return f"{seconds:.1f} s, {image_formats.point(photo, data, decode).psnr_db:.2f} dB", True


@figure("the published picture, 512 x 384, as published", "18,000 to 21,000, 25.7 dB", "data")
def test_published_picture():
    x, y = pixel_samples(load_photo("mountains"))  # isn't shipped: its licence is unknown
    model = picture_regressor().fit(x, y)
    decibels = float(-10 * (model.predict(x) - y).square().mean().log10())
    met = 18_000 <= model.num_neighbors <= 21_000 and decibels >= 25.7
    return f"{model.num_neighbors:,} centers, {decibels:.2f} dB", met


@figure(f"{FORGED:,} forged files, most with a right checksum", "clean errors, 1 GB, 5 s", "slow")
def test_forged():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    refused, decoded, slowest, megabytes = map(float, done.stdout.split())
    words = f"{refused:.0f} refused, {decoded:.0f} decoded, slowest {slowest:.2f} s, "
    return words + f"{megabytes:.0f} MB in all", slowest <= 5 and megabytes <= 1024


def forge(data: bytes, dice: random.Random) -> bytes:
    """Bytes changed, cut, doubled or added; in four of five files the checksum is right again."""
    forged = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(forged))
        match dice.randrange(6):
            case 0 | 1:
                forged[at] = dice.randrange(256)
            case 2:
                forged[dice.randrange(min(20, len(forged)))] = dice.choice((0, 1, 127, 128, 255))
            case 3:
                del forged[at + 1 :]
            case 4:
                forged[at:at] = forged[at : at + dice.randrange(30)]
            case 5:
                forged += dice.randbytes(dice.randrange(60))
    if dice.random() < 0.8 and len(forged) >= 8:
        forged[:4], forged[4:8] = data[:4], struct.pack("<I", zlib.crc32(forged[8:]))
    return bytes(forged)


def fuzz(count: int) -> None:
    """Decode forged files of small pictures; print refused, decoded, slowest, memory."""
    sizes = zip(PHOTOS, (24, 33, 48), strict=True)
    small = [load_photo(name)[40 : 40 + size, 60 : 60 + size] for name, size in sizes]
    small += [small[0][..., 0], load_photo("astronaut")[:1, :1]]
    files = [encode(image, rate, steps=8) for image in small for rate in (0.5, 4)]
    dice, refused, slowest = random.Random(0), 0, 0.0
    for number in range(count):
        start = time.perf_counter()
        try:
            decode(forge(files[number % len(files)], dice), max_pixels=LIMIT)
        except CorruptError:
            refused += 1
        slowest = max(slowest, time.perf_counter() - start)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(refused, count - refused, slowest, megabytes)


if __name__ == "__main__":
    fuzz(FORGED)
