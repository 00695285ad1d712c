"""Every distance against its definition in float64, and its gradients against autograd."""

import pytest
import torch

from nnlib.attention import (
    CosineInverseDistance,
    CosineSoftmax,
    DotProduct,
    EuclideanPyramid,
    InverseDistance,
)
from nnlib.distances import CosineDistance, EuclideanDistance, power_, take_rows

KERNELS = {
    "euclidean": InverseDistance(),
    "cosine": CosineInverseDistance(),
    "signed cosine": CosineSoftmax(),
    "pyramid": EuclideanPyramid(-4.0, 1e-6, scales=2),
    "dot product": DotProduct(),
}


def wanted(name, x, c):
    """The distance by its definition."""
    cosine = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(c, dim=1).T
    match name:
        case "euclidean":
            return (x[:, None] - c).norm(dim=2)
        case "cosine":
            return 1 - cosine.abs()
        case "signed cosine":
            return 1 - cosine
        case "pyramid":
            lengths = [(x[:, None, ::step] - c[:, ::step]).norm(dim=2) + 1e-6 for step in (1, 2)]
            return torch.stack([length**-4 for length in lengths]).mean(0) ** -0.25
        case "dot product":
            return -x @ c.T


def rows(features, offset=0.0):
    generator = torch.Generator().manual_seed(features)
    return [torch.randn(n, features, generator=generator) + offset for n in (20, 30)]


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("features", [3, 40])
@pytest.mark.parametrize("name", KERNELS)
def test_distances_and_gradients_are_those_of_the_definition(name, features, offset):
    x, c = rows(features, offset)
    x[0] = c[4] + 1e-3  # a pair that cancels
    distance_fn = KERNELS[name].distance(x, c, x.dtype)
    points = [distance_fn.prepare(part) for part in (x, c)]
    found, context = distance_fn.pairwise(*points, for_backward=True)
    leaves = [part.double().requires_grad_() for part in (x, c)]
    exact = wanted(name, *leaves)
    assert torch.allclose(found.double(), exact * distance_fn.scale, rtol=1e-4, atol=1e-6)
    gradient = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    parts = distance_fn.backward(*points, found, context, gradient.clone())
    exact_parts = torch.autograd.grad(exact, leaves, gradient.double())
    for part, right in zip(parts, exact_parts, strict=True):
        assert (part - distance_fn.scale * right).norm() <= 1e-3 * right.norm()


@pytest.mark.parametrize("name", KERNELS)
def test_sort_keys_sort_as_distances_do(name):
    x, c = rows(40)
    distance_fn = KERNELS[name].distance(x, c, x.dtype)
    points = [distance_fn.prepare(part) for part in (x, c)]
    distance = distance_fn.pairwise(*points)[0].clone()
    assert torch.allclose(distance_fn.from_sort_key(distance_fn.sort_key(*points)), distance)


@pytest.mark.parametrize("name", ["euclidean", "cosine", "signed cosine", "pyramid"])
def test_pairs_of_one_row_are_at_distance_zero_without_being_measured(name):
    x, _ = rows(40)
    distance_fn = KERNELS[name].distance(x, x, x.dtype)
    points = distance_fn.prepare(x)
    some = torch.tensor([3, 7, 11])
    same = (some, torch.arange(3))
    distance, _ = distance_fn.pairwise(points, take_rows(points, some), same=same)
    assert (distance[same] <= 1e-5).all() and (distance > 1e-2).sum() == 20 * 3 - 3


@pytest.mark.parametrize("exponent", [1, 2, 3, 8, 13, 64, 0.5, 2.5, 65])
def test_powers_in_place(exponent):
    base = torch.linspace(0, 1.5, 50, dtype=torch.float64)
    assert torch.allclose(power_(base.clone(), exponent), base**exponent)


def test_a_scale_and_an_offset_are_found_where_digits_would_be_lost():
    x, c = rows(40, 100.0)
    offset = EuclideanDistance.for_data(x, c, x.dtype).preconditioner.offset
    assert torch.allclose(offset, c.mean(0))
    assert EuclideanDistance.for_data(x * 1e20, c * 1e20, x.dtype).scale < 1e-20
    assert CosineDistance.for_data(c, c.dtype, signed=False).preconditioner.offset is not None
