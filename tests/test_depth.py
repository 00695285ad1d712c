"""The record of depth: rows of both stacks, and gains that are counted from layers that were kept."""

import pandas as pd
import pytest

from nnbook import depth
from nnbook.depth import gains, measured, stacks
from nnlib.data import load


def test_rows_of_both_stacks(monkeypatch):
    cut = lambda name: type(data := load(name))(*(part[:900] for part in data[:4]), data.classes)  # noqa: E731
    monkeypatch.setattr(depth, "load", cut)
    rows = pd.DataFrame(measured("mnist", 0))
    published, ours = (rows[rows["stack"] == kind] for kind in stacks(0))
    assert published.layer.tolist() == [1, 2, 3] and published.test.notna().all()
    assert published.train.is_monotonic_increasing and published.test.iloc[0] > 0.8
    assert ours.validation.notna().all() and ours.test.iloc[0] > 0.8
    refused = ours[ours.test.isna()]
    assert len(refused) <= 1 and (refused.layer == len(ours)).all() and (refused.centers == 0).all()


def test_gains_are_of_the_last_layer_kept():
    rows = [
        {"set": "mnist", "stack": stack, "seed": seed, "layer": layer, "test": test}
        for stack, tests in {"published": (0.5, 0.4, 0.3), "left out": (0.5, 0.6, None)}.items()
        for seed in (0, 1)
        for layer, test in enumerate(tests, 1)
    ]
    rows[2]["test"] = 0.2  # the third layer of the published stack's first seed
    found = gains(pd.DataFrame(rows)).set_index("stack")
    assert found.loc["published", "last"] == pytest.approx(0.25) and found.loc["left out", "last"] == pytest.approx(0.6)
    assert found.loc["published", "last_spread"] == pytest.approx(0.0707, abs=1e-4)
    assert found.layers.tolist() == [3, 2] and found["first"].tolist() == [0.5, 0.5]
