"""The record of depth: rows of both stacks, and gains counted from layers that were kept."""

import pandas as pd
import pytest

from nnbook.benchmarks import depth, frontier
from nnbook.benchmarks.depth import STACKS, causes, gains, measured
from nnbook.plotting.frontier_figures import layers
from nnlib.datasets import load


def test_rows_of_both_stacks(monkeypatch):
    cut = lambda name: type(data := load(name))(*(part[:900] for part in data[:4]), data.classes)  # noqa: E731
    monkeypatch.setattr(depth, "load", cut)
    rows = pd.DataFrame(measured("mnist", 0))
    published, ours = (rows[rows["stack"] == kind] for kind in STACKS)
    assert published.layer.tolist() == [1, 2, 3] and published.test.notna().all()
    assert published.train.is_monotonic_increasing and published.test.iloc[0] > 0.8
    assert ours.validation.notna().all() and ours.test.iloc[0] > 0.8
    refused = ours[ours.test.isna()]
    assert len(refused) <= 1 and (refused.layer == len(ours)).all() and (refused.centers == 0).all()


def test_what_can_not_be_measured_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NNLIB_DATA", str(tmp_path))
    (tmp_path / "cifar10.npz").write_bytes(b"none")
    monkeypatch.setattr(depth, "SETS", ("cifar10",))
    for main, words in ((depth.main, []), (frontier.main, ["cifar_vector"])):
        with pytest.raises(SystemExit):
            main(words)
        assert "cifar10.npz" in capsys.readouterr().err


def test_gains_are_of_the_last_layer_kept():
    rows = [
        {"set": "mnist", "stack": stack, "seed": seed, "layer": layer, "test": test}
        for stack, tests in {"published": (0.5, 0.4, 0.3), "left out": (0.5, 0.6, None)}.items()
        for seed in (0, 1)
        for layer, test in enumerate(tests, 1)
    ]
    rows[2]["test"] = 0.2  # the third layer of the published stack's first seed
    found = gains(pd.DataFrame(rows)).set_index("stack")
    assert found.loc["published", "last"] == pytest.approx(0.25) and found.loc[
        "left out", "last"
    ] == pytest.approx(0.6)
    assert found.loc["published", "last_spread"] == pytest.approx(0.0707, abs=1e-4)
    assert found.layers.tolist() == [3, 2] and found["first"].tolist() == [0.5, 0.5]


def test_the_figure_shows_layers_that_were_kept_and_the_table_the_causes():
    rows = [
        {"set": "mnist", "stack": stack, "seed": seed, "layer": layer, "test": test}
        for stack, tests in {"published": (0.5, 0.4), "left out": (0.6, None)}.items()
        for seed in (0, 1)
        for layer, test in enumerate(tests, 1)
    ]
    rows += [
        {"set": "mnist", "stack": kind, "seed": 0, "test": test}
        for kind, test in (("one", 0.5), ("two", 0.7))
    ]
    table = pd.DataFrame(rows)
    (axis,) = layers(table).axes
    assert [len(lines.lines[0].get_xdata()) for lines in axis.containers] == [2, 1]
    assert causes(table)["mnist"].tolist() == [0.5, 0.7]
