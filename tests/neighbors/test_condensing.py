"""Condensing: blocks, threads, spare memory and other processes change nothing but the time."""

import pytest
import torch

from nnlib.attention import InfluenceCone, UniformKNN
from nnlib.datasets import load
from nnlib.neighbors.condensing import rule as condensing
from nnlib.neighbors.condensing.centers import GrowingCenters
from tests.published import PublishedClassifier, PublishedRegressor

KERNELS = ("cosine", "euclidean", "euclidian_pyramid", "influence_cone", UniformKNN(3))


@pytest.fixture
def threads():
    """Set the number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    data = load("mnist")
    return data.train_images[:2600].flatten(1).float() / 255, data.train_labels[:2600]


def condensed(x, y, kernel="cosine", **how):
    return PublishedClassifier(kernel, progress=False, **how).fit(x, y)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_any_number_of_threads_chooses_the_same_centers(kernel, digits, threads):
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(condensed(*digits, kernel))
        assert torch.get_num_threads() == count
    for other in found[1:]:
        assert torch.equal(found[0].indices_, other.indices_)
        assert torch.equal(found[0].growth_, other.growth_)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(("block", "ahead"), [(64, 64), (128, 4096), (2600, 4096), (64, 1)])
def test_any_size_of_block_chooses_the_same_centers(kernel, block, ahead, digits, monkeypatch):
    x, y = digits[0][:1500], digits[1][:1500]
    wanted = condensed(x, y, kernel)
    monkeypatch.setattr(condensing, "BLOCK_ROWS", block)
    monkeypatch.setattr(condensing, "AHEAD_ROWS", ahead)  # at 1 nothing is kept of a comparison
    assert torch.equal(condensed(x, y, kernel).indices_, wanted.indices_)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_batches_of_any_size_are_learned_alike_with_threads(kernel, digits, threads):
    x, y = digits
    threads(2)
    found = condensed(x, y, kernel, batch_size=1200)
    threads(1)
    assert torch.equal(condensed(x, y, kernel, batch_size=1200).indices_, found.indices_)
    assert torch.equal(found.indices_[:1200].sort().values, found.indices_[:1200].unique())


def test_a_picture_is_searched_with_threads_as_without(threads):
    x = torch.cartesian_prod(torch.arange(120.0), torch.arange(160.0))
    y = torch.stack([(x[:, 0] / 9).sin(), (x[:, 1] / 7).cos()], 1)
    found = []
    for count in (1, 2):
        threads(count)
        found.append(
            PublishedRegressor(InfluenceCone(4.0), tolerance=0.2, progress=False).fit(x, y)
        )
    assert torch.equal(found[0].indices_, found[1].indices_)


def test_an_error_in_a_stream_leaves_no_thread_and_the_caller_s_number(digits, threads):
    x, y = digits
    threads(2)

    def batches():
        yield x[:1200], y[:1200]
        yield x[1200:2400] * torch.nan, y[1200:2400]

    with pytest.raises(ValueError, match="NaN"):
        PublishedClassifier(progress=False).fit(batches(), classes=range(10))
    assert torch.get_num_threads() == 2


def test_a_fit_keeps_no_spare_memory_and_partial_fits_grow_by_halves(digits):
    x, y = digits
    model = condensed(x, y)
    assert model.centers_.untyped_storage().nbytes() == model.centers_.nbytes
    assert model.values_.untyped_storage().nbytes() == model.values_.nbytes
    places = set()
    for rows in torch.arange(len(x)).split(64):
        model.partial_fit(x[rows].flip(1), y[rows])
        places.add(model.centers_.data_ptr())
    assert len(places) <= 6 < len(x) / 64 / 4  # each at least half as large again as the one before


def test_trimmed_centers_stay_what_they_were():
    centers = GrowingCenters(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    for value in range(5):
        rows = torch.full((100, 2), float(value))
        centers.append(rows, torch.full((100,), value), torch.arange(100) + 100 * value)
    shown = centers.x
    centers.trim()
    assert torch.equal(centers.x, shown) and torch.equal(centers.numbers, torch.arange(500))
    assert len(centers.share_storage()) == len(centers) == centers.distinct == 500
