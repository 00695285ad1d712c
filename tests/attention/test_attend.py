"""attend against a naive float64 oracle: every kernel, on data that breaks careless distances."""

import inspect
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnlib.attention import blockwise
from nnlib.attention.blockwise import Labels
from nnlib.attention.dispatch import attend, class_log_probabilities, nearest
from nnlib.attention.kernels import (
    CosineInverseDistance,
    CosineSoftmax,
    EuclideanPyramid,
    InfluenceCone,
    InverseDistance,
    UniformKNN,
)
from nnlib.datasets import load

KERNELS = {
    "euclidean": InverseDistance(),
    "cosine": CosineInverseDistance(),
    "cosine_signed": CosineInverseDistance(signed=True),
    "euclidian_pyramid": EuclideanPyramid(),
    "influence_cone": InfluenceCone(),
    "cosine_softmax": CosineSoftmax(),
    "k_nearest": UniformKNN(3),
}
SMOOTH = [name for name in KERNELS if name != "k_nearest"]


def mnist_rows(seed):
    return (
        load("mnist").train_images[torch.randperm(60_000, generator=seed)[:450]].flatten(1).float()
        / 255
    )


def near_duplicates(seed):
    base = torch.randn(120, 64, generator=seed)
    return base[torch.arange(450) % 120] + 1e-3 * torch.randn(450, 64, generator=seed)


def two_far_clusters(seed):
    far = torch.where(torch.arange(450) % 2 == 0, 1000.0, -1000.0)[:, None]
    return torch.randn(450, 40, generator=seed) + far


DATA = {
    "low": lambda seed: torch.randn(450, 3, generator=seed),
    "middle": lambda seed: torch.randn(450, 50, generator=seed),
    "mnist": mnist_rows,
    "near duplicates": near_duplicates,
    "1,000 from the origin": lambda seed: torch.randn(450, 64, generator=seed) + 1000,
    "1,000 from the origin, low": lambda seed: torch.randn(450, 3, generator=seed) + 1000,
    "two far clusters": two_far_clusters,
    "exact duplicates": lambda seed: torch.randn(30, 40, generator=seed)[torch.arange(450) % 30],
    "zero rows": lambda seed: (
        torch.randn(450, 40, generator=seed) * (torch.arange(450) % 5 > 0)[:, None]
    ),
    "scale 1e-20": lambda seed: 1e-20 * torch.randn(450, 40, generator=seed),
    "scale 1e20": lambda seed: 1e20 * torch.randn(450, 40, generator=seed),
    "scale 1e20, low": lambda seed: 1e20 * torch.randn(450, 2, generator=seed),
    "one center": lambda seed: torch.randn(51, 40, generator=seed),
    "one query": lambda seed: torch.randn(401, 40, generator=seed),
}


@pytest.fixture
def seed():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in both directions, so that running maxima and seams are tested."""
    monkeypatch.setitem(blockwise.BLOCK_SHAPE, "cpu", (32, 96))


def split(data, name):
    queries = {"one center": 50, "one query": 1}.get(name, 50)
    return data[:queries], data[queries:]


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("kernel", KERNELS)
def test_average_is_exact(kernel, name, seed):
    x, c = split(DATA[name](seed), name)
    if kernel == "k_nearest" and name in ("exact duplicates", "zero rows"):
        pytest.skip("which of equal centers are nearest is open")
    v = torch.randn(len(c), 4, generator=seed)
    count = {"count": min(3, len(c))} if kernel == "k_nearest" else {}
    wanted = oracle.weights(x, c, kernel, **count) @ v.double()
    given = attend(x, c, v, KERNELS[kernel])
    assert given.dtype == torch.float32 and given.isfinite().all()
    assert (given - wanted).abs().max() <= 1e-5 * v.abs().max()


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("kernel", KERNELS)
def test_class_log_probabilities_are_exact(kernel, name, seed):
    x, c = split(DATA[name](seed), name)
    if kernel == "k_nearest" and name in ("exact duplicates", "zero rows"):
        pytest.skip("which of equal centers are nearest is open")
    labels = torch.randint(0, 5, (len(c),), generator=seed)  # class 5 stays empty
    count = {"count": min(3, len(c))} if kernel == "k_nearest" else {}
    share = oracle.weights(x, c, kernel, **count) @ torch.nn.functional.one_hot(labels, 6).double()
    given = class_log_probabilities(x, c, labels, 6, KERNELS[kernel])
    assert given.isfinite().all() and (given[:, 5] < -80).all()
    seen = share > 1e-12
    assert (given - share.log())[seen].abs().max() <= 1e-4


@pytest.mark.parametrize("exponent", [-1.0, -2.0, -8.0, -16.0])
@pytest.mark.parametrize("kernel", [InverseDistance, CosineInverseDistance, EuclideanPyramid])
def test_exponents_on_real_rows(kernel, exponent, seed):
    x, c = split(mnist_rows(seed), "")
    v = torch.randn(len(c), 4, generator=seed)
    name = {InverseDistance: "euclidean", CosineInverseDistance: "cosine"}.get(
        kernel, "euclidian_pyramid"
    )
    wanted = oracle.weights(x, c, name, exponent=exponent) @ v.double()
    assert (attend(x, c, v, kernel(exponent)) - wanted).abs().max() <= 1e-5 * v.abs().max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_own_row_left_out(kernel, seed):
    data = torch.randn(80, 30, generator=seed)
    exclude = torch.arange(80)
    exclude[::7] = -1
    v = torch.randn(80, 2, generator=seed)
    wanted = oracle.weights(data, data, kernel, exclude) @ v.double()
    assert (
        attend(data, data, v, KERNELS[kernel], exclude=exclude) - wanted
    ).abs().max() <= 1e-5 * v.abs().max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_query_without_any_center_gets_zero(kernel):
    one = torch.ones(1, 20)
    assert attend(one, one, one, KERNELS[kernel], exclude=torch.tensor([0])).tolist() == [
        [0.0] * 20
    ]


@pytest.mark.parametrize("kernel", KERNELS)
def test_bf16_inputs(kernel, seed):
    x, c, v = (torch.randn(n, 40, generator=seed).bfloat16() for n in (50, 300, 300))
    wanted = oracle.weights(x, c, kernel) @ v.double()
    assert (attend(x, c, v, KERNELS[kernel]) - wanted).abs().max() <= 1e-2


@pytest.mark.parametrize("features", [2, 24])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("kernel", SMOOTH)
def test_gradients(kernel, excluded, features, seed):
    x, c, v = (
        torch.randn(n, features, generator=seed, dtype=torch.float64) for n in (40, 110, 110)
    )
    exclude = torch.arange(40) if excluded else None
    inputs = [t.requires_grad_() for t in (x, c, v)]
    assert torch.autograd.gradcheck(
        lambda *given: attend(*given, KERNELS[kernel], exclude=exclude),
        inputs,
        fast_mode=True,
        atol=1e-6,
    )


@pytest.mark.parametrize("kernel", SMOOTH)
@pytest.mark.parametrize(
    "name", ["mnist", "near duplicates", "two far clusters", "scale 1e-20", "scale 1e20"]
)
def test_float32_gradients_match_float64(kernel, name, seed):
    x, c = split(DATA[name](seed), name)
    v = torch.randn(len(c), 4, generator=seed)
    pull = torch.randn(len(x), 4, generator=seed)
    found = {}
    for dtype in (torch.float32, torch.float64):
        inputs = [t.to(dtype).detach().clone().requires_grad_() for t in (x, c, v)]
        (attend(*inputs, KERNELS[kernel]) * pull.to(dtype)).sum().backward()
        found[dtype] = [t.grad.double() for t in inputs]
    for narrow, wide in zip(found[torch.float32], found[torch.float64], strict=True):
        assert narrow.isfinite().all()
        assert (narrow - wide).norm() <= 2e-3 * wide.norm() + 1e-30


@pytest.mark.parametrize("kernel", SMOOTH)
@pytest.mark.parametrize("features", [2, 24])
def test_gradients_at_distance_zero_are_finite(kernel, features, seed):
    x = torch.randn(20, features, generator=seed)
    x[3] = 0
    inputs = [t.clone().requires_grad_() for t in (x, x, x)]
    attend(*inputs, KERNELS[kernel]).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)


@pytest.mark.parametrize("kernel", ["euclidean", "cosine"])
def test_gradient_of_log_probabilities(kernel, seed):
    x, c = (
        torch.randn(n, 24, generator=seed, dtype=torch.float64, requires_grad=True)
        for n in (20, 60)
    )
    labels = torch.randint(0, 3, (60,), generator=seed)
    assert torch.autograd.gradcheck(
        lambda x, c: class_log_probabilities(x, c, labels, 3, KERNELS[kernel]),
        (x, c),
        fast_mode=True,
    )


def test_values_alone_get_a_gradient(seed):
    x, c = torch.randn(5, 4, generator=seed), torch.randn(9, 4, generator=seed)
    v = torch.randn(9, 2, generator=seed, requires_grad=True)
    attend(x, c, v, KERNELS["euclidean"]).sum().backward()
    assert torch.allclose(
        v.grad.double()[:, 0], oracle.weights(x, c, "euclidean").sum(0), atol=1e-5
    )


def test_nearest_agrees_with_sorting(seed):
    x, c = torch.randn(50, 40, generator=seed), torch.randn(400, 40, generator=seed)
    distance, index = nearest(x, c, 7, KERNELS["euclidean"])
    wanted = oracle.euclidean(x.double(), c.double()).sort(1)
    assert torch.equal(index, wanted.indices[:, :7])
    assert torch.allclose(distance.double(), wanted.values[:, :7], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 200])
def test_what_is_nowhere_is_near_nothing_and_hides_nothing(count, seed):
    x, c = torch.randn(20, 5, generator=seed), torch.randn(400, 5, generator=seed)
    c[7] = torch.nan
    known = torch.cat([torch.arange(7), torch.arange(8, 400)])
    wanted = oracle.euclidean(x.double(), c[known].double()).sort(1).indices[:, :count]
    assert torch.equal(nearest(x, c, count, KERNELS["euclidean"])[1], known[wanted])


@pytest.mark.parametrize("features", [2, 20])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_not_finite_has_no_number_as_its_average(kernel, bad, features, seed):
    x, c = torch.randn(70, features, generator=seed), torch.randn(400, features, generator=seed)
    v = torch.rand(400, 1, generator=seed)
    broken = x.clone()
    broken[7, 1] = bad
    broken.requires_grad_()
    found = attend(broken, c, v, KERNELS[kernel])
    others = torch.arange(70) != 7
    assert found[7].isnan().all()
    assert torch.allclose(found[others], attend(x, c, v, KERNELS[kernel])[others])
    if kernel in SMOOTH:
        found.sum().backward()
        assert not broken.grad[7].isfinite().all() and broken.grad[others].isfinite().all()
    nowhere, index = nearest(broken, c, 2, KERNELS[kernel])
    assert nowhere[7].isinf().all() and (index[7] == -1).all() and (index[others] >= 0).all()
    c[3, 0] = bad
    assert attend(x, c, v, KERNELS[kernel]).isnan().all()
    labels = torch.arange(400) % 3
    assert class_log_probabilities(x, c, labels, 3, KERNELS[kernel]).isnan().all()


def test_no_queries_have_no_neighbors():
    distance, index = nearest(torch.empty(0, 3), torch.ones(4, 3), 2, KERNELS["euclidean"])
    assert distance.shape == index.shape == (0, 2)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes_are_refused(label):
    with pytest.raises(ValueError, match=r"give 0 ... 2"):
        Labels(torch.tensor([0, label]), 3)


def test_nearest_says_where_no_center_is_left():
    one = torch.ones(1, 3)
    distance, index = nearest(one, one, 2, KERNELS["cosine"], exclude=torch.tensor([0]))
    assert index.tolist() == [[-1, -1]] and distance.isinf().all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    features=st.sampled_from([1, 2, 8, 9, 16, 33]),
    queries=st.integers(1, 70),
    centers=st.integers(1, 200),
    scale=st.floats(-20, 20),
    kernel=st.sampled_from(["euclidean", "cosine", "influence_cone", "euclidian_pyramid"]),
)
def test_any_shape_and_scale(seed, features, queries, centers, scale, kernel):
    generator = torch.Generator().manual_seed(seed)
    x, c = (torch.randn(n, features, generator=generator) * 10**scale for n in (queries, centers))
    v = torch.randn(centers, 3, generator=generator)
    given_, wanted = attend(x, c, v, KERNELS[kernel]), oracle.weights(x, c, kernel) @ v.double()
    assert (given_ - wanted).abs().max() <= 1e-5 * v.abs().max()
    low, high = v.min(0).values, v.max(0).values
    assert (given_ >= low - 1e-5).all() and (given_ <= high + 1e-5).all()


def test_coarse_products_elsewhere_do_not_reach_distances(seed):
    x, c = split(mnist_rows(seed), "")
    v = torch.randn(len(c), 4, generator=seed)
    wanted = attend(x, c, v, KERNELS["euclidean"])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(attend(x, c, v, KERNELS["euclidean"]), wanted)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_does_not_reach_distances(seed):
    x, c = split(mnist_rows(seed), "")
    v = torch.randn(len(c), 4, generator=seed)
    leaves = [c.clone().requires_grad_() for _ in range(2)]
    wanted = attend(x, leaves[0], v, KERNELS["cosine"])
    wanted.square().sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = attend(x, leaves[1], v, KERNELS["cosine"])
        given.square().sum().backward()
    assert given.dtype == torch.float32 and torch.equal(given, wanted)
    assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_nearest_is_exact_under_autocast(seed):
    x, c = split(mnist_rows(seed), "")
    wanted = nearest(x, c, 5, KERNELS["cosine"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = nearest(x, c, 5, KERNELS["cosine"])
    assert torch.equal(given[0], wanted[0]) and torch.equal(given[1], wanted[1])


@pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has no newer switches"
)
def test_the_newer_precision_switches_are_respected_and_restored():
    code = """if True:
        import torch
        from nnlib.attention import attend
        from nnlib.attention import InverseDistance
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        x, c = torch.randn(40, 64), torch.randn(90, 64)
        given = attend(x, c, torch.eye(90), InverseDistance())
        distance = (x.double()[:, None] - c.double()).norm(dim=2)
        wanted = torch.softmax(-4 * torch.log(distance + 1e-6), 1)
        assert (given - wanted).abs().max() < 1e-5
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_queries_get_no_answers():
    assert attend(
        torch.ones(0, 4), torch.ones(3, 4), torch.ones(3, 2), KERNELS["cosine"]
    ).shape == (0, 2)


def test_nearest_mean_holds_no_more_than_a_block(seed, monkeypatch):
    x, c = torch.randn(90, 20, generator=seed), torch.randn(300, 20, generator=seed)
    labels = torch.randint(0, 7, (300,), generator=seed)
    seen, one_hot = [], torch.nn.functional.one_hot
    monkeypatch.setattr(
        torch.nn.functional, "one_hot", lambda y, n: seen.append(len(y)) or one_hot(y, n)
    )
    share = attend(x, c, Labels(labels, 7), UniformKNN(5))
    assert torch.allclose(share.sum(1), torch.ones(90)) and max(seen) <= 32 * 5


GOOD = {"queries": torch.ones(3, 4), "centers": torch.ones(6, 4), "values": torch.ones(6, 2)}
REFUSED = [
    ({"queries": torch.ones(3, 5)}, "queries"),
    ({"queries": torch.ones(4)}, "queries"),
    ({"queries": torch.ones(3, 0), "centers": torch.ones(6, 0)}, "D 1 or more"),
    ({"queries": torch.ones(3, 4) * 1j}, "queries is torch.complex64"),
    ({"queries": "words"}, "queries"),
    ({"queries": None}, "queries"),
    ({"centers": torch.ones(0, 4)}, "centers"),
    ({"centers": torch.ones(6, 4, dtype=torch.complex128)}, "centers is torch.complex128"),
    ({"centers": [[1, 2], [3]]}, "centers"),
    ({"exclude": torch.zeros(9, dtype=torch.int64)}, "exclude"),
    ({"exclude": torch.zeros(3)}, "exclude is torch.float32"),
    ({"exclude": torch.tensor([0, 99, 1])}, "exclude holds 99: give 0 ... 5, or -1"),
    ({"exclude": [0, -5, 1]}, "exclude holds -5"),
    ({"exclude": [0.5, 1, 2]}, "exclude"),
    ({"backend": "quick"}, "backend='quick'"),
    ({"kernel": "quick"}, "kernel='quick'"),
    ({"queries": torch.ones(3, 4, device="meta")}, "queries"),
]
REFUSED_VALUES = [
    ({"values": torch.ones(7, 2)}, "values"),
    ({"values": torch.ones(6)}, "values"),
    ({"values": torch.ones(6, 2) * 1j}, "values is torch.complex64"),
    ({"values": "words"}, "values"),
    ({"values": Labels(torch.zeros(5, dtype=torch.int64), 3)}, "values"),
    ({"matmul_dtype": "float8"}, "matmul_dtype='float8'"),
    ({"sharpness": -1.0}, "sharpness=-1.0"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED + REFUSED_VALUES)
def test_bad_input_is_named(change, named):
    """What a user meets, without the shape checker of the tests before it."""
    with pytest.raises((ValueError, TypeError), match=named):
        inspect.unwrap(attend)(**(GOOD | {"kernel": "euclidean"} | change))


@pytest.mark.parametrize(("change", "named"), REFUSED)
def test_bad_input_to_nearest_is_named(change, named):
    given_ = GOOD | {"kernel": "euclidean", "count": 2} | change
    del given_["values"]
    with pytest.raises((ValueError, TypeError), match=named):
        inspect.unwrap(nearest)(**given_)


@pytest.mark.parametrize("count", [0, 2.5, None])
def test_nearest_wants_a_count(count):
    with pytest.raises(ValueError, match="count="):
        inspect.unwrap(nearest)(GOOD["queries"], GOOD["centers"], count, "euclidean")


@pytest.mark.parametrize("labels", [[0.5, 1.0], torch.zeros(2, 1, dtype=torch.int64), "words"])
def test_labels_are_whole_numbers(labels):
    with pytest.raises((ValueError, TypeError), match="labels"):
        Labels(labels, 3)


@pytest.mark.parametrize("backend", ["auto", "blocks", "search"])
@pytest.mark.parametrize("kind", [np.asarray, lambda part: part.tolist(), torch.Tensor.half])
def test_every_kind_of_numbers_is_taken(kind, backend, seed):
    x, c, v = (torch.randn(n, 2, generator=seed).half().float() for n in (20, 50, 50))
    exclude = torch.arange(20)
    kernel = InfluenceCone() if backend == "search" else "euclidean"
    wanted = attend(x, c, v, kernel, exclude)
    found = attend(kind(x), kind(c), kind(v), kernel, exclude.numpy(), backend)
    assert found.dtype == torch.float32 or kind is not torch.Tensor.half
    assert torch.allclose(found.float(), wanted, atol=1e-6)
    labels = torch.arange(50) % 3
    shares = attend(x, c, Labels(labels, 3), kernel)
    for same in (labels.numpy(), labels.int(), labels.tolist()):
        found = attend(kind(x), kind(c), Labels(same, 3), kernel)
        assert torch.allclose(found.float(), shares, atol=1e-6)
    distance, index = nearest(kind(x), kind(c), 2, kernel, exclude.tolist(), backend)
    assert torch.equal(index, nearest(x, c, 2, kernel, exclude)[1]) and distance.shape == (20, 2)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float64])
@pytest.mark.parametrize("features", [1, 2, 20])
@pytest.mark.parametrize("offset", [0, 1_700_000_000, -(2**31)])
def test_wide_types_far_from_zero_have_right_distances(offset, features, dtype):
    steps = torch.tensor([[0], [60], [100], [200]])
    c = (steps + offset).expand(-1, features).to(dtype)
    for backend in ("blocks", "auto"):
        distance, index = nearest(c[:1], c, 3, InverseDistance(), backend=backend)
        wanted = torch.tensor([[0.0, 60.0, 100.0]]) * features**0.5
        assert torch.allclose(distance.float(), wanted) and index.tolist() == [[0, 1, 2]]
    v = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    skip = torch.arange(4)
    for name in ("euclidean", "euclidian_pyramid", "influence_cone", "k_nearest"):
        found = attend(c, c, v, KERNELS[name], skip)
        moved = steps.expand(-1, features).to(dtype)
        assert torch.allclose(found, attend(moved, moved, v, KERNELS[name], skip), atol=1e-5)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
