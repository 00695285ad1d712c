"""Second derivatives, and torch.func, of the average: against plain operations in float64."""

import oracle
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from nnlib.attention import (
    CosineInverseDistance,
    CosineSoftmax,
    DotProduct,
    EuclideanPyramid,
    InfluenceCone,
    InverseDistance,
    Kernel,
    Labels,
    UniformKNN,
    attend,
    blockwise,
    class_log_probabilities,
    derivatives,
)

KERNELS = {
    "euclidean": InverseDistance(),
    "no epsilon": InverseDistance(-2.5, epsilon=0.0),
    "cosine": CosineInverseDistance(-2.0, 1e-3),
    "cosine signed": CosineInverseDistance(-2.0, 1e-3, signed=True),
    "pyramid": EuclideanPyramid(-2.0, 1e-2, scales=2),
    "cone": InfluenceCone(3.0),
    "softmax": CosineSoftmax(0.5),
    "dot product": DotProduct(),
}
SHARP = ("euclidean", "cosine", "softmax")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in all directions."""
    monkeypatch.setitem(blockwise.BLOCK_SHAPE, "cpu", (3, 5))
    monkeypatch.setattr(derivatives, "PAIRS", 20)


def points(features=3, width=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((4, features), (9, features), (9, width))
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("features", [3, 12])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_first_and_second_derivatives(name, excluded, features):
    exclude = torch.tensor([2, -1, 0, 8]) if excluded else None
    inputs = [part.requires_grad_() for part in points(features)]

    def average(*given):
        return attend(*given, KERNELS[name], exclude=exclude)

    assert gradcheck(average, inputs, fast_mode=True)
    assert gradgradcheck(average, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("name", KERNELS)
def test_second_derivatives_of_class_fractions(name):
    x, c, _ = (part.requires_grad_() for part in points())
    labels = torch.arange(9) % 3
    assert gradgradcheck(
        lambda x, c: class_log_probabilities(x, c, labels, 3, KERNELS[name]), (x, c), fast_mode=True
    )


@pytest.mark.parametrize("name", SHARP)
def test_second_derivatives_in_sharpness(name):
    inputs = [*points(), torch.tensor(1.3, dtype=torch.float64)]
    inputs = [part.requires_grad_() for part in inputs]

    def average(x, c, v, sharpness):
        return attend(x, c, v, KERNELS[name], sharpness=sharpness)

    assert gradcheck(average, inputs) and gradgradcheck(average, inputs, fast_mode=True)


def test_a_hessian_is_that_of_the_formula():
    torch.manual_seed(0)
    x, c, v = (torch.randn(size).double() for size in ((2, 4), (50, 4), (50, 1)))

    def formula(x):
        return (oracle.weights(x, c, "euclidean", epsilon=0.0) @ v).sum()

    def ours(x):
        return attend(x, c, v, InverseDistance(epsilon=0.0)).sum()

    wanted = torch.autograd.functional.hessian(formula, x)
    assert wanted.abs().max() > 14
    assert torch.allclose(torch.autograd.functional.hessian(ours, x), wanted, atol=1e-8)
    assert torch.allclose(hessian(ours)(x), wanted, atol=1e-8)
    assert torch.allclose(jacrev(jacrev(ours))(x), wanted, atol=1e-8)
    assert torch.allclose(jacfwd(ours)(x), grad(formula)(x), atol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_far_from_the_origin_and_at_duplicates(dtype, offset):
    x, c, v = (part.to(dtype) for part in points(12))
    x = x + offset
    c = c + offset
    x[1] = c[4]
    x, c, v = (part.detach().requires_grad_() for part in (x, c, v))
    kernel = InverseDistance(-2.0, epsilon=0.5)
    found = torch.autograd.grad(attend(x, c, v, kernel).square().sum(), x, create_graph=True)[0]
    parts = torch.autograd.grad(found.square().sum(), (x, c, v))
    assert all(part.isfinite().all() and part.dtype == dtype for part in parts)
    y = x.detach().double().requires_grad_()
    weights = oracle.weights(y[[0, 2, 3]], c.double(), "euclidean", exponent=-2.0, epsilon=0.5)
    wanted = (weights @ v.double()).square().sum()
    wanted = torch.autograd.grad(wanted, y, create_graph=True)[0]
    wanted = torch.autograd.grad(wanted.square().sum(), y)[0]
    apart = [0, 2, 3]
    assert torch.allclose(parts[0][apart].double(), wanted[apart], rtol=1e-3, atol=1e-5)


def test_a_gradient_penalty_trains():
    x, c, v = points()
    v.requires_grad_()
    x.requires_grad_()
    optimizer = torch.optim.SGD([v], 0.1)
    penalties = []
    for _ in range(100):
        slope = torch.autograd.grad(attend(x, c, v, InverseDistance()).sum(), x, create_graph=True)[
            0
        ]
        penalties.append(slope.square().sum())
        optimizer.zero_grad()
        penalties[-1].backward()
        optimizer.step()
    assert penalties[-1] < 0.5 * penalties[0]


def test_what_has_no_second_derivative_says_so():
    x, c, v = (part.requires_grad_() for part in points())
    with pytest.raises(RuntimeError, match="gradients to values alone"):
        torch.autograd.functional.hessian(lambda x: attend(x, c, v, UniformKNN(2)).sum(), x)
    with pytest.raises(RuntimeError, match="gradients to values alone"):
        attend(x, c, v.detach(), UniformKNN(2)).sum().backward()
    with pytest.raises(RuntimeError, match="gradients to values alone"):
        jacfwd(lambda x: attend(x, c, v, UniformKNN(2)).sum())(x)
    first = torch.autograd.grad(attend(x, c, v, DotProduct()).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="third derivative"):
        second.sum().backward()


def test_uniform_neighbors_have_derivatives_in_values():
    x, c, v = points()
    kernel = UniformKNN(3)
    v.requires_grad_()
    assert gradcheck(lambda v: attend(x, c, v, kernel), v)
    assert gradgradcheck(lambda v: attend(x, c, v, kernel), v)
    attend(x.requires_grad_(), c, v, kernel).sum().backward()
    assert x.grad is None and v.grad.sum() == pytest.approx(8)


class Bump(Kernel):
    """A kernel that gives its log weight alone."""

    needs_nearest = True

    def log_weight(self, distance, nearest):
        return -(distance / (1 + nearest)).square()


class CosineBump(Bump):
    """The same by another distance."""

    def distance(self, queries, centers, dtype):
        return CosineSoftmax().distance(queries, centers, dtype)


class Silent(Kernel):
    """A kernel by the two methods that are quicker to run."""

    def relative_weights(self, distance, nearest, scale=1.0):
        return (nearest[:, None] - distance).div_(scale).exp_()

    def scale_by_log_slope(self, gradient, distance, nearest, scale, out):
        gradient.div_(-scale)


def test_a_kernel_of_ones_own_has_all_derivatives_by_its_log_weight():
    inputs = [part.requires_grad_() for part in points()]

    def plain(x, c, v):
        distance = torch.cdist(x, c, compute_mode="use_mm_for_euclid_dist")
        logs = Bump().log_weight(distance, distance.amin(1, keepdim=True))
        return logs.softmax(1) @ v

    assert torch.allclose(attend(*inputs, Bump()), plain(*inputs))
    assert gradcheck(lambda *given: attend(*given, Bump()), inputs)
    assert gradgradcheck(lambda *given: attend(*given, Bump()), inputs, fast_mode=True)
    assert gradcheck(lambda *given: attend(*given, Silent()), inputs)
    with pytest.raises(NotImplementedError, match="give it Euclidean distances"):
        attend(*inputs, CosineBump()).sum().backward()
    with pytest.raises(NotImplementedError, match="Silent has no log_weight"):
        gradgradcheck(lambda *given: attend(*given, Silent()), inputs)


@pytest.mark.parametrize("name", KERNELS)
def test_transforms_of_functions(name):
    x, c, v = points()
    kernel = KERNELS[name]

    def total(x, c, v, exclude=None):
        return attend(x, c, v, kernel, exclude).square().sum()

    leaves = [part.clone().requires_grad_() for part in (x, c, v)]
    wanted = torch.autograd.grad(total(*leaves), leaves)
    found = grad(total, argnums=(0, 1, 2))(x, c, v)
    for got, right in zip(found, wanted, strict=True):
        assert torch.allclose(got, right)
    exclude = torch.tensor([2, -1, 0, 8])
    one = vmap(grad(lambda x, skip: total(x[None], c, v, skip[None])))(x, exclude)
    assert torch.allclose(one, grad(lambda x: total(x, c, v, exclude))(x))
    whole = jacrev(lambda x: attend(x, c, v, kernel))(x)
    assert torch.allclose(whole, jacfwd(lambda x: attend(x, c, v, kernel))(x))
    batched = vmap(lambda v: attend(x, c, v, kernel), in_dims=1, out_dims=2)(v[:, None])
    assert torch.allclose(batched[..., 0], attend(x, c, v, kernel))
    swapped = grad(lambda x: vmap(lambda x: total(x[None], c, v))(x).sum())(x)
    assert torch.allclose(swapped, found[0])
    pushed = jvp(lambda v: attend(x, c, v, kernel), (v,), (torch.ones_like(v),))[1]
    assert torch.allclose(pushed, torch.ones_like(pushed))


@pytest.mark.parametrize("kernel", [InfluenceCone(), UniformKNN(2)])
def test_a_search_within_vmap_has_gradients(kernel, monkeypatch):
    from nnlib.attention import dispatch

    monkeypatch.setattr(dispatch, "is_worthwhile", lambda *sizes: True)
    x, c, v = points()

    def total(v):
        return vmap(lambda x: attend(x[None], c, v, kernel).square().sum())(x).sum()

    wanted = grad(lambda v: attend(x, c, v, kernel).square().sum())(v)
    assert torch.allclose(grad(total)(v), wanted)
    assert torch.allclose(jacfwd(lambda v: attend(x, c, v, kernel).square().sum())(v), wanted)


@pytest.mark.parametrize("name", KERNELS)
def test_entries_of_any_unit_within_vmap(name):
    x, c, v = points()
    units = torch.tensor([1.0, 1e9, 1e-9], dtype=torch.float64)
    if name in ("cone", "dot product"):
        units[1:] = torch.tensor([2.0, 0.5])

    def total(x, c, v):
        return attend(x, c, v, KERNELS[name]).square().sum()

    xs, cs = (torch.stack([part * unit for unit in units]) for part in (x, c))
    for of in (grad(total), jacrev(grad(total))):
        found = vmap(of, in_dims=(0, 0, None))(xs, cs, v)
        for part, *given in zip(found, xs, cs, strict=True):
            right = of(*given, v)
            assert torch.allclose(part, right, rtol=1e-8, atol=1e-12 * float(right.abs().max()))


def test_labels_within_vmap():
    x, c, _ = points()
    labels = Labels(torch.arange(9) % 3, 3)
    found = vmap(lambda x: attend(x[None], c, labels, InverseDistance())[0])(x)
    assert torch.allclose(found, attend(x, c, labels, InverseDistance()))
