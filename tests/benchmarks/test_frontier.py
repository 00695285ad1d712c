"""The frontier: what is learned never sees what it is judged by, and rows say what they are."""

import pandas as pd
import pytest
import torch

from nnbook.benchmarks.frontier import rows_of
from nnbook.benchmarks.references import references
from nnbook.benchmarks.tracks import Splits, Track, plain, split, white
from nnbook.plotting import frontier_figures


def test_splits_share_no_picture():
    train, validation, test = split("mnist", 0)
    assert (len(train[1]), len(validation[1]), len(test[1])) == (55_000, 5_000, 10_000)
    assert not torch.equal(split("mnist", 1).validation[0], validation[0])
    some = {bytes(image.numpy()) for image in validation[0][:500]}
    everyone = [bytes(image.numpy()) for image in train[0]]
    assert sum(image in some for image in everyone) <= 2  # but for digits that are twice in the set


def few(data, seed):
    """600 digits as vectors."""
    return Splits(*((x[:600], y[:600]) for x, y in plain(data, seed)))


@pytest.fixture
def small():
    """A track of them."""
    return Track(
        "mnist", few, {"epochs": 10, "width": 64, "dim": 8, "proxies": 20}, (10, 20), ("",)
    )


def test_rows_of_a_track(small):
    found = list(rows_of(small, 0, with_references=True))
    rows, others = found[:3], found[3:]
    assert [row["centers"] for row in rows] == [10, 20, 600]
    assert all(0.7 < row["test"] <= 1 and 0.7 < row["validation"] <= 1 for row in rows)
    assert rows[0]["seconds"] > 0
    methods = {row["method"] for row in others}
    assert {
        "k nearest",
        "condensed",
        "small network",
    } <= methods
    kept = {row["method"].split(",")[0]: row["centers"] for row in others}
    assert (
        kept["scikit-learn's NCA"] == 600
        and 10 <= kept.get("imbalanced-learn's condensed", 10) < 600
    )
    asked = small._replace(references=("k nearest", "small"))
    fewer = [row["method"] for row in references(asked, few("mnist", 0), 0)]
    assert fewer == ["k nearest", "small network"]
    assert [row["centers"] for row in others if row["method"] == "small network"] == [0]


def test_an_embedding_needs_no_metric(small):
    *rows, nearest, published = rows_of(small._replace(metric=None), 0)
    assert len(rows) == 2 and nearest["centers"] == published["centers"] == 600
    assert published["method"].startswith("30 nearest") and published["test"] > 0.7


def test_whitened_features_come_from_training_pictures_alone():
    sets = white("mnist", 0, 20, 0.0, few)
    deviations = sets.train[0].float().std(0)
    assert (deviations - 1).abs().max() < 0.02 < (sets.test[0].float().std(0) - 1).abs().max()


def test_a_panel_for_each_track_that_was_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(frontier_figures, "RECORDED", tmp_path)
    assert frontier_figures.recorded() == {}
    row = {"method": "learned centers", "validation": 0.9, "seconds": 1.0}
    rows = [
        row | {"seed": seed, "centers": m, "test": 0.9 + seed / 100}
        for seed in (0, 1, 2)
        for m in (10, 100)
    ]
    rows.append(row | {"method": "small network", "seed": 0, "centers": 0, "test": 0.8})
    pd.DataFrame(rows).to_csv(tmp_path / "frontier_mnist_vector.csv")
    tables = frontier_figures.recorded()
    assert tables["mnist_vector"].test.tolist() == pytest.approx([0.91, 0.91, 0.8])
    assert tables["mnist_vector"].spread.tolist()[:2] == pytest.approx([0.01, 0.01])
    assert len(frontier_figures.front(tables).axes) == 1
