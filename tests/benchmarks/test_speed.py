"""Peers give what the library gives, and tables say what was measured and what was not."""

import oracle
import pandas as pd
import pytest
import torch

from nnbook.benchmarks import peers, recorded, speed
from nnbook.plotting import speed_figures


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator) for size in ((30, 6), (200, 6), (200, 4))]


@pytest.mark.parametrize("name", ["nnlib", "cdist + softmax", "scikit-learn"])
def test_peers_give_the_same_averages(name, given):
    x, c, v = given
    average = peers.averages(6)[name](x, c, v)
    assert (average - oracle.weights(x, c, "euclidean") @ v.double()).abs().max() <= 1e-4


def test_peers_find_the_same_neighbors(given):
    x, c, _ = given
    found = [peer(x, c, 5) for peer in peers.neighbors(6).values() if peer]
    assert len(found) >= 2 and all(torch.equal(each, found[0]) for each in found)


def test_the_published_loss_is_the_librarys():
    generator = torch.Generator().manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(300, 8, generator=generator), dim=1)
    labels, own = torch.arange(300) % 4, torch.arange(20)
    x = torch.randn(20, 8, generator=generator)
    found = [
        peers.losses()[name](x, labels[own], bank, labels, own)
        for name in ("nnlib", "as published")
    ]
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-4)


def test_rows_hold_what_was_measured_and_say_what_was_not(monkeypatch):
    times = {"nnlib": [1.0, 2.0, 4.0], "slow": [3.0, 8.0, 4.0]}
    monkeypatch.setattr(speed, "race", lambda works, repeats: times)
    works = {"nnlib": lambda: torch.ones(5), "slow": lambda: None, "lost": None}
    own, slow, lost = speed.rows_of(works, 3, queries=5)
    assert (own["least"], own["seconds"], own["most"], own["runs"]) == (1, 2, 4, 3)
    assert own["over_nnlib"] == 1 and slow["over_nnlib"] == 3
    assert lost["seconds"] == speed.NOTHING and "over_nnlib" not in lost


def test_a_race_takes_turns_after_a_warm_up():
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = speed.race(works | {"lost": None}, 2)
    assert calls == list("ababab") and [len(each) for each in times.values()] == [2, 2]


def test_forward_rows_know_their_error():
    rows = {row["peer"]: row for row in speed.forward(40, 300, 5, 1, but=("KeOps",))}
    assert set(rows) == {"nnlib", "cdist + softmax", "scikit-learn", "bare product"}
    assert rows["nnlib"]["error"] <= 1e-5 and rows["bare product"]["error"] is None


def test_backward_rows():
    rows = {row["peer"]: row for row in speed.backward(20, 300, 20, 1)}
    assert rows["nnlib"]["seconds"] > 0 and rows["scikit-learn"]["seconds"] == speed.NOTHING


def test_a_memory_peak_is_seen():
    with speed.Peak() as peak:
        torch.ones(20_000_000)
    assert not speed.STATUS.exists() or 60 < peak.most < 200


def test_what_is_quick_is_printed_and_not_recorded(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(recorded, "RECORDED", tmp_path)
    monkeypatch.setattr(
        speed, "table", lambda name, quick: pd.DataFrame([{"peer": "nnlib", "seconds": 1.5}])
    )
    speed.main(["nearest", "--quick"])
    assert "nnlib" in capsys.readouterr().out and not list(tmp_path.iterdir())
    speed.main(["nearest"])
    (row,) = speed.recorded("nearest").to_dict("records")
    assert (
        row["seconds"] == 1.5
        and row["command"] == "python -m nnbook.benchmarks.speed nearest"
        and row["processor"]
    )


def test_an_unknown_table_is_refused(capsys):
    with pytest.raises(SystemExit):
        speed.main(["memory"])
    assert "attend" in capsys.readouterr().err


@pytest.mark.parametrize("name", speed.TABLES)
def test_recorded_tables_tell_command_and_machine(name):
    table = speed.recorded(name)
    assert (
        table.command == f"python -m nnbook.benchmarks.speed {name}"
    ).all() and table.processor.notna().all()
    assert (table.seconds > 0).sum() >= 3


def test_far_from_the_origin_the_library_stays_exact():
    for offset in (0.0, 100.0, 1000.0):
        curves = speed_figures.along_a_line(offset)
        assert (curves["nnlib"] - curves["float64"]).abs().max() <= 1e-4
    assert (curves["textbook"] - curves["float64"]).abs().max() > 0.1
