"""The codec: its average against the core, numbers through the coder, whole and forged files."""

import inspect
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nnlib.attention import DotProduct, attend
from nnlib.datasets import load_photo
from nnlib.errors import CorruptError
from nnlib.image_codec import bitstream, center_coding, decode, encode, info, lapped_cosine
from nnlib.image_codec.__main__ import main
from nnlib.image_codec.entropy_coder import AdaptiveModel, Coder
from nnlib.image_codec.splatting import (
    CENTERS_PER_TILE,
    TileGrid,
    add_error_gradients,
    coefficients,
    monomials,
    render,
    select_centers,
)

FEW = 8  # steps of gradient: enough to make a file


def scattered(count: int, height: int, width: int, seed: int = 0):
    """Centers such as an encoder makes: places, shapes and values."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, 2, generator=generator) * torch.tensor([height, width])
    widths = (height * width / count) ** 0.5 * torch.exp(
        0.5 * torch.randn(count, 1, generator=generator)
    )
    shapes = torch.cat([-2 * widths.log(), 0.7 * torch.randn(count, 2, generator=generator)], 1)
    return places, shapes, torch.rand(count, 3, generator=generator)


def everywhere(places, shapes, values, height, width, zoom=1):
    """The core's average over all centers, in float64."""
    rows, columns = ((torch.arange(n * zoom).double() + 0.5) / zoom for n in (height, width))
    x = monomials(torch.cartesian_prod(rows, columns))
    c = coefficients(places.double(), shapes.double())
    return attend(x, c, values.double(), DotProduct()).unflatten(0, (height * zoom, width * zoom))


@pytest.mark.parametrize(
    ("height", "width", "zoom"), [(16, 16, 1), (33, 50, 1), (1, 1, 1), (5, 47, 3)]
)
def test_tiles_that_see_every_center_are_the_core(height, width, zoom):
    parts = scattered(CENTERS_PER_TILE, height, width)
    grid = TileGrid(height, width, zoom)
    drawn = render(grid, *parts)
    assert (drawn - everywhere(*parts, height, width, zoom)).abs().max() <= 1e-4


@pytest.mark.parametrize("count", [60, 120, 180])
def test_tiles_leave_out_little(count):
    parts = scattered(count, 160, 200)
    grid = TileGrid(160, 200)
    error = (render(grid, *parts) - everywhere(*parts, 160, 200)).abs()
    assert error.mean() <= 2e-3 and error.square().mean().sqrt() <= 1e-2  # 40 dB below full scale


def test_error_and_gradients_are_the_core_s():
    exact = [part.double().requires_grad_() for part in scattered(CENTERS_PER_TILE, 40, 33)]
    picture = torch.rand(40, 33, 3, generator=torch.Generator().manual_seed(1))
    (everywhere(*exact, 40, 33) - picture).square().sum().backward()
    grid, parts = TileGrid(40, 33), [part.detach().float().requires_grad_() for part in exact]
    selected = select_centers(grid, *parts[:2])
    inside = grid.split(torch.ones(40, 33, 1))
    error = add_error_gradients(grid, grid.split(picture), inside, *parts, selected)
    drawn = render(grid, *parts).detach()
    assert error.item() == pytest.approx(float((drawn - picture).square().sum()), rel=1e-5)
    for ours, theirs in zip(parts, exact, strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 2e-4 * theirs.grad.abs().max()


def test_a_picture_is_twice_differentiable():
    parts = scattered(5, 9, 11)
    sizes = [part.numel() for part in parts]

    def error(average, flat):
        split = [part.view(5, -1) for part in flat.split(sizes)]
        return (average(*split) - 0.3).pow(3).sum()

    def ours(flat):
        return error(lambda *split: render(TileGrid(9, 11), *split), flat)

    def exact(flat):
        rows, columns = (torch.arange(size).double() + 0.5 for size in (9, 11))
        x = monomials(torch.cartesian_prod(rows, columns))

        def average(places, shapes, values):
            weights = (x @ coefficients(places, shapes).T).softmax(1)
            return (weights @ values).unflatten(0, (9, 11))

        return error(average, flat)

    flat = torch.cat([part.flatten() for part in parts])
    expected = torch.autograd.functional.hessian(exact, flat.double())
    found = torch.autograd.functional.hessian(ours, flat)
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max() > 0


@given(st.floats(-10, 3), st.floats(-4, 4), st.floats(-4, 4))
def test_any_shape_is_positive_definite(m, p, q):
    shape = torch.tensor([[m, p, q]], dtype=torch.float64)
    yy, yx, xx = -coefficients(torch.zeros(1, 2), shape)[0, 3:] / torch.tensor([1, 2, 1])
    by_hand = torch.linalg.matrix_exp(torch.tensor([[m + p, q], [q, m - p]], dtype=torch.float64))
    assert torch.allclose(torch.stack([yy, yx, xx]), by_hand[[0, 0, 1], [0, 1, 1]], rtol=1e-5)
    assert yy > 0 and yy * xx > yx * yx


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-32_000, 32_000), max_size=60), st.integers(0, 2**32 - 1))
def test_integers_come_back(values, seed):
    values = np.array(values + [0, 14, 15, -16, 1], np.int64)
    classes = np.random.default_rng(seed).integers(0, 3, len(values))
    bounds = np.abs(values) + 1

    def code(coder, given, small):
        model = AdaptiveModel.geometric([0.1, 1.0, 9.0])
        return coder.integers(model, classes, given), coder.uniform(bounds, small)

    writer = Coder()
    code(writer, values, np.abs(values) // 2)
    again, small = code(Coder(writer.to_bytes()), 0 * values, 0 * values)
    assert (again == values).all() and (small == np.abs(values) // 2).all()


def test_coding_learns_what_is_frequent():
    values = np.where(
        np.arange(4000) % 20 == 0, 1, 0
    )  # 0.286 bits each by their entropy, and 0.05 for the sign

    coder = Coder()
    model = AdaptiveModel.geometric([1.0])
    for part in values.reshape(40, 100):
        coder.integers(model, np.zeros(100, np.int64), part)
    assert len(coder.to_bytes()) * 8 <= 1.1 * (0.2864 + 0.05) * 4000


@pytest.mark.parametrize(
    ("count", "height", "width"), [(1, 1, 1), (40, 7, 300), (700, 100, 90), (2000, 33, 64)]
)
def test_centers_come_back(count, height, width):
    given = center_coding.quantize_centers(*scattered(count, height, width), height, width)
    writer = Coder()
    center_coding.code_centers(writer, given, height, width)
    nothing = center_coding.QuantizedCenters(*(0 * part for part in given))
    data = writer.to_bytes()
    again = center_coding.code_centers(Coder(data), nothing, height, width)
    rows = [sorted(map(tuple, np.hstack(part))) for part in (given, again)]
    assert rows[0] == rows[1]
    assert len(data) * 8 <= count * 70 + 64


@pytest.mark.parametrize("pitch", [8, 16])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 56), (131, 17)])
def test_coefficients_give_any_picture(pitch, height, width):
    picture = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))
    waves = lapped_cosine.analyze(picture, pitch, rounds=60)
    assert (lapped_cosine.synthesize(waves, height, width, pitch) - picture).abs().max() <= 0.02
    pull = torch.randn(waves.shape, generator=torch.Generator().manual_seed(1))
    there = (lapped_cosine.synthesize(pull, height, width, pitch) * picture).sum()
    assert there == pytest.approx(
        float((pull * lapped_cosine.analyze_adjoint(picture, pitch)).sum()), rel=1e-4, abs=1e-3
    )


def test_coefficients_come_back():
    blocks = np.random.default_rng(0).integers(-2, 3, (3, 8, 8, 5, 9)).astype(np.int16)
    blocks[:, 4:] = 0
    blocks[1] = 0
    blocks[2, 0, 0, 2, 3] = 20_000
    codes = blocks.transpose(0, 3, 1, 4, 2).reshape(3, 40, 72)
    diagonals = lapped_cosine.count_diagonals(codes, 8)
    assert diagonals[1] == 0
    writer = Coder()
    lapped_cosine.code_residual(writer, codes, 8, diagonals)
    reader = Coder(writer.to_bytes())
    assert (lapped_cosine.code_residual(reader, 0 * codes, 8, diagonals) == codes).all()


@pytest.fixture(scope="module")
def astronaut():
    return load_photo("astronaut")[100:164, 180:250]


@pytest.fixture(scope="module")
def file(astronaut):
    return encode(astronaut, 0.8, steps=FEW)


def psnr(one, other) -> float:
    return float(-10 * ((one.double() - other.double()) / 255).square().mean().log10())


def test_a_file_is_no_larger_than_asked_and_gets_better(astronaut):
    quality = []
    for rate in (0.5, 1.0, 2.0, 4.0):
        data = encode(astronaut, rate, steps=FEW)
        assert 0.85 * rate * 64 * 70 / 8 <= len(data) <= rate * 64 * 70 / 8
        quality.append(psnr(decode(data), astronaut))
    assert quality == sorted(quality) and quality[-1] > 32


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("kind", ["text", "checkers", "photo"])
def test_small_files_keep_to_their_size(astronaut, kind, rate):
    text = (
        torch.randint(0, 2, (48, 60, 1), generator=torch.Generator().manual_seed(0)).expand(
            -1, -1, 3
        )
        * 255
    )
    checkers = (torch.arange(48)[:, None] + torch.arange(60))[..., None].expand(-1, -1, 3) % 2 * 255
    image = {"text": text, "checkers": checkers, "photo": astronaut[:48, :60]}[kind].to(torch.uint8)
    assert len(encode(image, rate, steps=FEW)) <= max(rate * 48 * 60 / 8, 40)


def test_what_torch_is_set_to_changes_nothing(astronaut, file):
    with torch.inference_mode(), torch.autocast("cpu"):
        assert encode(astronaut, 0.8, steps=FEW) == file
        assert torch.equal(decode(file), decode(bytearray(file)))


def test_quality_spends_as_it_needs(astronaut):
    files = [encode(astronaut, quality=quality, steps=FEW) for quality in (0, 30, 60, 100)]
    assert sorted(map(len, files)) == [*map(len, files)]
    assert psnr(decode(files[-1]), astronaut) > 42


def test_the_same_bytes_and_the_same_pixels(astronaut, file):
    assert encode(astronaut, 0.8, steps=FEW) == file
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = decode(file)
        torch.set_num_threads(2)
        assert torch.equal(decode(file), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (17, 31)])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_every_size_and_kind_of_picture(size, channels):
    image = torch.randint(
        0, 256, (*size, *channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    again = decode(encode(image, 8, steps=2))
    assert again.dtype == torch.uint8 and again.shape == (size if not channels else (*size, 3))
    if channels == (1,):
        assert torch.equal(again, again[..., :1].expand(-1, -1, 3))


def test_numpy_and_grey(astronaut):
    grey = astronaut.float().mean(2).round().to(torch.uint8)
    flat = encode(grey.numpy(), 1.0, steps=FEW)
    full = encode(grey[..., None].expand(-1, -1, 3), 1.0, steps=FEW)
    assert info(flat)["channels"] == info(full)["channels"] == 1
    assert decode(flat).shape == (64, 70) and torch.equal(decode(full)[..., 1], decode(flat))


def test_transparency_is_laid_on_the_background(astronaut):
    half = torch.cat([astronaut, torch.full((64, 70, 1), 0, dtype=torch.uint8)], 2)
    for background in ((255, 255, 255), (10, 200, 30)):
        assert (
            decode(encode(half, 1.0, background=background, steps=FEW)) - torch.tensor(background)
        ).abs().max() <= 3


def test_zoom_is_the_same_picture_with_more_pixels(astronaut, file):
    large = decode(file, zoom=4)
    assert large.shape == (256, 280, 3)
    small = large.double().reshape(64, 4, 70, 4, 3).mean((1, 3))
    assert psnr(small, decode(file)) > 35


def test_the_centers_of_a_file_are_the_core_s_average(astronaut):
    coded = bitstream.unpack(encode(astronaut.repeat(3, 3, 1), 1.0, steps=60))
    places, shapes, values = coded.centers.tensors()
    assert len(places) > 2 * CENTERS_PER_TILE
    error = render(TileGrid(192, 210), places, shapes, values) - everywhere(
        places, shapes, values, 192, 210
    )
    assert error.abs().mean() <= 2e-4


def test_parts_add_up(file):
    told = info(file)
    assert (
        sum(size for name, size in told.items() if name.endswith("_bytes"))
        == told["bytes"]
        == len(file)
    )
    assert told["bits_per_pixel"] == pytest.approx(8 * len(file) / 64 / 70) and told["centers"] >= 1


def resealed(data: bytes) -> bytes:
    """The file with its checksum made right again."""
    return data[:4] + struct.pack("<I", zlib.crc32(data[8:])) + data[8:]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: b"", "no picture of centers"),
        (lambda data: b"\x89PNG\r\n\x1a\n" + data, "no picture of centers"),
        (lambda data: data[:3] + b"\x09" + data[4:], "version"),
        (lambda data: data[:-1], "checksum"),
        (lambda data: data[:8], "damaged or not all there"),
        (lambda data: data + b"\1", "checksum"),
        (lambda data: data[:40] + bytes([data[40] ^ 4]) + data[41:], "checksum"),
        (lambda data: resealed(data[:9] + b"\xff\xff\xff\xff" + data[13:]), "max_pixels"),
        (lambda data: resealed(data[:9] + b"\0\0" + data[11:]), "max_pixels"),
        (lambda data: resealed(data[:13] + b"\xff\xff\xff" + data[16:]), "makes no sense"),
        (lambda data: resealed(data[:13] + b"\0\0\0" + data[16:]), "makes no sense"),
        (lambda data: resealed(data[:17] + b"\xff" + data[18:]), "makes no sense"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(file, spoil, told):
    with pytest.raises(CorruptError, match=told):
        decode(spoil(file))


def test_the_limit_on_pixels_can_be_moved(file):
    with pytest.raises(CorruptError, match="max_pixels=100 "):
        decode(file, max_pixels=100)
    with pytest.raises(CorruptError, match="max_pixels"):
        decode(file, zoom=2, max_pixels=64 * 70)
    assert decode(file, max_pixels=64 * 70).shape == (64, 70, 3)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_forged_files_are_refused_or_decoded(file, data):
    """Bytes changed, cut or added, the checksum made right: an error in words, or some picture."""
    forged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 4))):
        forged[data.draw(st.integers(4, len(forged) - 1))] = data.draw(st.integers(0, 255))
    forged = bytes(forged[: data.draw(st.integers(8, len(forged)))]) + data.draw(
        st.binary(max_size=9)
    )
    try:
        assert decode(resealed(forged), max_pixels=1 << 14).dtype == torch.uint8
    except CorruptError:
        pass


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": torch.zeros(4, 4, 3)}, "image is torch.float32"),
        ({"image": torch.zeros(4, 4, 2, dtype=torch.uint8)}, "image is torch.uint8"),
        ({"image": torch.zeros(0, 4, 3, dtype=torch.uint8)}, "image has"),
        ({"bits_per_pixel": 0}, "bits_per_pixel=0"),
        ({"bits_per_pixel": float("nan")}, "bits_per_pixel=nan"),
        ({"quality": 101}, "quality=101"),
        ({"bits_per_pixel": 1, "quality": 50}, "both given"),
        ({"steps": 0}, "steps=0"),
        ({"image": torch.zeros(4, 4, 4, dtype=torch.uint8), "background": (1, 2)}, "background"),
    ],
)
def test_bad_arguments_are_named(change, named):
    good = {"image": torch.zeros(4, 4, 3, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=named):
        inspect.unwrap(encode)(**(good | change))


@pytest.mark.slow
def test_the_command_line(tmp_path, astronaut):
    Image.fromarray(astronaut.numpy()).save(tmp_path / "in.png")
    run = [sys.executable, "-m", "nnlib.image_codec"]
    paths = [str(tmp_path / name) for name in ("in.png", "out.nnc", "again.png")]
    options = ["--bits-per-pixel", "0.8", "--steps", str(FEW)]
    assert (
        subprocess.run([*run, "encode", *paths[:2], *options], capture_output=True).returncode == 0
    )
    assert subprocess.run([*run, "decode", *paths[1:]], capture_output=True).returncode == 0
    told = subprocess.run([*run, "info", paths[1]], capture_output=True, text=True)
    assert "bits_per_pixel: 0.7" in told.stdout or "bits_per_pixel: 0.8" in told.stdout
    assert np.array(Image.open(paths[2])).shape == (64, 70, 3)


def test_the_command_line_says_what_is_wrong(tmp_path, file, capsys):
    (tmp_path / "bad.nnc").write_bytes(file[:-3])
    (tmp_path / "good.nnc").write_bytes(file)
    for arguments, told in (
        (["decode", "bad.nnc", "out.png"], "checksum"),
        (["decode", "good.nnc", "out.nothing"], "target"),
        (["decode", "good.nnc", "out.psd"], "target"),
        (["encode", "good.nnc", "good.nnc"], "another file"),
        (["decode", "missing.nnc", "out.png"], "missing.nnc"),
        (["encode", "bad.nnc", "out.nnc"], "can't be read"),
        (["info", "bad.nnc"], "checksum"),
    ):
        assert main([arguments[0], *(str(tmp_path / name) for name in arguments[1:])]) == 1
        error = capsys.readouterr().err
        assert told in error and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.nnc", "good.nnc"]


def test_nothing_is_allocated_for_a_forged_size(file):
    forged = resealed(file[:9] + struct.pack("<HH", 8000, 8000) + file[13:])
    coded, _, _ = bitstream._read_header(forged, 1 << 26)
    assert coded.codes.base.nbytes <= 8 and coded.centers.positions.base.nbytes <= 8
