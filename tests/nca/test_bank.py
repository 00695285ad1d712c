"""The bank's rows, one by one and over processes, and the k-NN that reads them."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.functional import normalize

from nnlib.nca import MemoryBank, embed, knn, knn_accuracy, knn_evaluate, knn_predict, nca_loss


def drawn(n=101, b=24, dim=16, classes=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    index = torch.randperm(n, generator=g)[:b]
    return labels, index, torch.randn(b, dim, generator=g), torch.randn(n, dim, generator=g)


def test_rows_are_unit_vectors_in_the_samples_order():
    labels, index, features, rows = drawn()
    bank = MemoryBank(labels, 16)
    assert torch.allclose(bank.embeddings().norm(dim=1), torch.ones(101), atol=1e-6)
    bank.fill(rows)
    assert torch.allclose(bank.embeddings(), normalize(rows, dim=1), atol=1e-6)
    assert (bank.labels.diff() >= 0).all()


def test_update_moves_only_its_rows_by_the_published_rule():
    labels, index, features, rows = drawn()
    bank = MemoryBank(labels, 16, momentum=0.5)
    bank.fill(rows)
    before = bank.embeddings()
    bank.update(index, features * 7)
    wanted = before.clone()
    wanted[index] = normalize(0.5 * before[index] + 0.5 * normalize(features, dim=1), dim=1)
    assert torch.allclose(bank.embeddings(), wanted, atol=1e-6)
    bank.update(index[1:2], features[1:2] * 1e-20)
    bank.update(index[1:2], features[1:2] * 1e20)  # only directions count
    for bad in (0.0, torch.nan, torch.inf):
        bank.update(index[:1], torch.full((1, 16), bad), momentum=0)
        rows = bank.embeddings()
        assert torch.allclose(rows[index[0]], wanted[index[0]], atol=1e-6)
        assert torch.allclose(rows.norm(dim=1), torch.ones(101), atol=1e-6)
    again = normalize(features[1], dim=0)
    for _ in range(2):
        wanted[index[1]] = normalize(wanted[index[1]] + again, dim=0)
    assert torch.allclose(rows, wanted, atol=1e-6)


def test_a_bank_is_drawn_by_its_seed_and_saved_by_torch():
    labels = drawn()[0]
    one, two, other = (MemoryBank(labels, 16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.memory, two.memory) and not torch.equal(one.memory, other.memory)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.embeddings(), other.embeddings())


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MemoryBank(torch.tensor([0.0, 1.0])), "labels is"),
        (lambda: MemoryBank([]), "labels is of 0 samples"),
        (lambda: MemoryBank(["a", "b"]), "labels is"),
        (lambda: MemoryBank([0, 1], 4).update([-1], torch.ones(1, 4)), "index holds -1"),
        (lambda: MemoryBank([0, 1], 4).clear([2]), "index holds 2"),
        (lambda: MemoryBank([0, 1], 1).fill([[1.0], [float("nan")]]), "embeddings holds NaN"),
        (lambda: MemoryBank(torch.tensor([0, 1]), dim=0), "dim=0"),
        (lambda: MemoryBank(torch.tensor([0, 1]), momentum=1), "momentum=1"),
        (
            lambda: MemoryBank(torch.tensor([0, 1]), 4).update(torch.tensor([2]), torch.ones(1, 4)),
            "index holds 2",
        ),
        (
            lambda: MemoryBank(torch.tensor([0, 1]), 4).update(torch.tensor([1]), torch.ones(1, 5)),
            "features",
        ),
        (lambda: MemoryBank(torch.tensor([0, 1]), 4).fill(torch.ones(3, 4)), "embeddings"),
    ],
)
def test_what_does_not_fit_is_named(make, word):
    with pytest.raises((ValueError, TypeError), match=word):
        make()


def naive_knn(x, rows, labels, k, temperature, exclude=None):
    """Each query's classes by their votes in float64, most first, -1 for no further class."""
    cosine = normalize(x.double(), dim=1) @ normalize(rows.double(), dim=1).T
    cosine[:, ~rows.any(1)] = -torch.inf
    if exclude is not None:
        cosine[torch.arange(len(x))[exclude >= 0], exclude[exclude >= 0]] = -torch.inf
    ranked = []
    for similarity in cosine:
        votes = {}
        for row in similarity.argsort(descending=True, stable=True)[:k].tolist():
            if similarity[row] > -torch.inf:
                weight = torch.exp(similarity[row] / temperature).item()
                votes[int(labels[row])] = votes.get(int(labels[row]), 0) + weight
        best = sorted(votes, key=votes.get, reverse=True)  # stable: the nearest first
        ranked.append(best + [min(0, int(labels.min())) - 1] * (10 - len(best)))
    return torch.tensor(ranked)


@pytest.mark.parametrize("classes", [(0, 1, 2, 3, 4), (-1, 1), (-(2**40), -7, 0, 2**40)])
@pytest.mark.parametrize("k", [1, 3, 30, 1000])
def test_votes_agree_with_float64(k, classes, monkeypatch):
    labels, index, _, rows = drawn(n=900, b=40, classes=len(classes))
    labels = torch.tensor(classes)[labels]
    x = rows[index] + 0.3 * torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    index[::3] = -1
    wanted = naive_knn(x, rows, labels, k, 0.1, index)
    settings = {"k": k, "temperature": 0.1, "exclude": index}
    for queries, pairs in ((256, 1 << 22), (37, 1 << 12)):  # in one block, and in many
        monkeypatch.setitem(knn.BLOCK_QUERIES, "cpu", queries)
        monkeypatch.setitem(knn.BLOCK_PAIRS, "cpu", pairs)
        assert torch.equal(knn_predict(x, rows, labels, top=10, **settings), wanted)
        assert torch.equal(knn_predict(x, rows, labels, **settings), wanted[:, 0])


def test_of_equal_votes_the_nearest_comes_first():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([9, -4, 5, 9])
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.01]])
    found = knn_predict(x, rows, labels, k=3, temperature=1e4, top=3)  # all weights are about 1
    assert found.tolist() == [[9, 5, -4], [-4, 5, 9], [9, -4, 5]]
    assert knn_predict(x[:1], rows[[2, 2, 2]], [3, 1, 2], k=3, top=3).tolist() == [[3, 1, 2]]


def test_rows_of_zeros_are_no_ones_neighbors():
    labels, index, _, rows = drawn()
    bank = MemoryBank(labels, 16)
    bank.fill(rows)
    bank.clear(index)
    rows[index] = 0
    x = -rows[labels == 0][:20].mean(0, keepdim=True)  # most rows are opposite ones
    for count in (5, 100):
        wanted = naive_knn(x, rows, labels, count, 0.05)[:, :5]
        assert torch.equal(knn_predict(x, bank, k=count, top=5), wanted)
        assert torch.equal(knn_predict(x, rows, labels, k=count, top=5), wanted)
    bank.clear(range(101))
    assert knn_predict(x, bank, top=2).tolist() == [[-1, -1]]
    assert knn_accuracy(x, [-1], bank)["knn_top5"] == 0


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_only_directions_count_at_any_scale(scale):
    labels, _, _, rows = drawn()
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
    wanted = knn_predict(x, rows, labels)
    assert torch.equal(knn_predict(x * scale, rows / scale, labels), wanted)


def test_any_types_of_features_rows_and_labels():
    labels, index, _, rows = drawn()
    rows = rows.bfloat16().float()
    x = rows[index]
    wanted = knn_predict(x, rows, labels)
    for kind in (torch.bfloat16, torch.float64):
        assert torch.equal(knn_predict(x.to(kind), rows.to(kind), labels.int()), wanted)
    small = labels.numpy().astype(np.uint8)
    found = knn_predict(x.numpy(), rows.numpy(), small, exclude=np.full(len(x), -1, np.int32))
    assert isinstance(found, np.ndarray) and np.array_equal(found, wanted)
    assert np.array_equal(knn_predict(x.tolist(), rows.tolist(), labels.tolist()), wanted)
    bank = MemoryBank(small, 16)
    bank.fill(rows.numpy())
    bank.update(index.numpy(), x.numpy(), momentum=0)
    assert torch.equal(knn_predict(x, bank), wanted)
    right = knn_accuracy(x.tolist(), labels[index].tolist(), bank)["knn_top1"]
    assert right == pytest.approx((wanted == labels[index]).float().mean())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"features": [[1.0, float("nan")]]}, "features holds NaN or infinity .* row 0, column 1"),
        ({"features": [[1.0, float("inf")]]}, "features holds NaN or infinity"),
        ({"features": [1.0, 2.0]}, r"features \(2,\) and bank"),
        ({"features": [["a", "b"]]}, "features is <U1"),
        ({"bank": [[1.0, 0.0], [float("nan"), 1.0]]}, "bank holds NaN"),
        ({"bank_labels": [0.5, 1.0]}, "bank_labels is torch.float64"),
        ({"bank_labels": None}, "bank_labels None"),
        ({"bank_labels": [0, 1, 2]}, r"bank_labels is .*give int64 \[2\]"),
        ({"exclude": [2]}, "exclude holds 2: give 0 ... 1, or -1"),
        ({"exclude": [-2]}, "exclude holds -2"),
        ({"exclude": [0.0]}, "exclude is torch.float64"),
        ({"exclude": [0, 0]}, "exclude is"),
        ({"k": 0}, "k=0"),
        ({"top": 0}, "top=0"),
        ({"temperature": 0}, "temperature=0"),
    ],
)
def test_what_a_prediction_cannot_use_is_named(change, word):
    given = {"features": [[1.0, 2.0]], "bank": [[1.0, 0.0], [0.0, 1.0]], "bank_labels": [0, 1]}
    assert knn_predict(**given).tolist() == [1]
    with pytest.raises((ValueError, TypeError), match=word):
        knn_predict(**given | change)


def test_small_temperatures_take_the_nearest_and_bank_and_rows_agree():
    labels, index, _, rows = drawn()
    bank = MemoryBank(labels, 16)
    bank.fill(rows)
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(knn_predict(x, bank, temperature=1e-4), knn_predict(x, rows, labels, k=1))
    assert torch.equal(knn_predict(rows[index], bank, k=1), labels[index])
    assert torch.equal(knn_predict(x, bank, k=200), knn_predict(x, rows, labels, k=200))


def test_a_place_that_no_neighbor_is_left_for_is_no_class():
    one, itself = torch.ones(1, 2), torch.tensor([0])
    assert knn_predict(one, one, torch.tensor([3]), exclude=itself).tolist() == [-1]


def test_evaluation_embeds_the_gallery_anew():
    labels, _, _, rows = drawn(n=60)
    network, batches = torch.nn.Linear(16, 8), [(rows[:30], labels[:30]), (rows[30:], labels[30:])]
    fresh = knn_evaluate(network, batches, batches)
    assert fresh["nearest_top1"] == 1 and 0 <= fresh["knn_top1"] <= fresh["knn_top5"] <= 1
    assert network.training


def test_evaluation_leaves_each_module_in_its_mode():
    labels, _, _, rows = drawn(n=20)
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(16).eval(), torch.nn.Dropout(0.5))
    features, found = embed(network, [(rows.numpy(), labels.tolist())])
    assert torch.allclose(features, normalize(rows, dim=1), atol=1e-5)
    assert torch.equal(found, labels)
    assert [part.training for part in network.modules()] == [True, False, True]


def _whole(b):
    """Loss, gradient, bank and predictions of one process."""
    labels, index, features, rows = drawn(b=b)
    bank = MemoryBank(labels, 16)
    start = bank.embeddings()
    bank.fill(rows)
    leaf = features.clone().requires_grad_()
    loss = nca_loss(leaf, labels[index], bank, exclude=index, margin=0.05)
    loss.backward()
    bank.update(index, features)
    classes = knn_predict(features, bank, k=7, exclude=index, top=3)
    plain = knn_predict(features, rows, labels, k=7)
    return {"loss": loss.detach(), "gradient": leaf.grad, "start": start, "bank": bank.embeddings(),
            "classes": classes, "plain": plain}  # fmt: skip


def _sharded(rank, world, store, b, cuts, folder):
    torch.distributed.init_process_group("gloo", f"file://{store}", world_size=world, rank=rank)
    torch.set_num_threads(1)
    labels, index, features, rows = drawn(b=b)
    mine, part = (
        slice(cuts[rank], cuts[rank + 1]),
        slice(101 * rank // world, 101 * (rank + 1) // world),
    )
    bank = MemoryBank(labels, 16, sharded=True)
    start = bank.embeddings()
    bank.fill(rows)
    leaf = features[mine].clone().requires_grad_()
    loss = nca_loss(leaf, labels[index[mine]], bank, exclude=index[mine], margin=0.05)
    loss.backward()
    bank.update(index[mine], features[mine])
    classes = knn_predict(features[mine], bank, k=7, exclude=index[mine], top=3)
    plain = knn_predict(features[mine], rows[part], labels[part], k=7, sharded=True)
    found = {
        "loss": loss.detach(),
        "gradient": leaf.grad,
        "start": start,
        "bank": bank.embeddings(),
        "classes": classes,
        "plain": plain,
        "here": len(bank.memory),
    }
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def in_processes(cuts, folder):
    """The same of as many processes as parts that the batch is cut into."""
    world = len(cuts) - 1
    mp.spawn(_sharded, (world, folder / "store", 24, cuts, folder), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [(0, 12, 24), (0, 5, 5, 24)])
def test_a_sharded_bank_is_the_whole_one(cuts, tmp_path):
    whole, found, world = _whole(24), in_processes(cuts, tmp_path), len(cuts) - 1
    assert (
        sum(part["here"] for part in found) == 101
        and max(part["here"] for part in found) <= 101 / world + 1
    )
    mean = sum(part["loss"] for part in found) / world
    assert mean.item() == pytest.approx(whole["loss"].item(), rel=1e-5)
    gradient = torch.cat([part["gradient"] for part in found]) / world
    assert torch.allclose(gradient, whole["gradient"], rtol=1e-5, atol=1e-7)
    for part in found:
        assert torch.equal(part["start"], whole["start"]) and torch.allclose(
            part["bank"], whole["bank"], atol=1e-6
        )
    for name in ("classes", "plain"):
        assert torch.equal(torch.cat([part[name] for part in found]), whole[name])
