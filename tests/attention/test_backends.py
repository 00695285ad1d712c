"""Every backend against a naive float64 oracle: kernels, types and shapes.

What is allocated is filled with NaN first, so that nothing that is read was left unwritten.
"""

import os
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import torch

from nnlib.attention import blockwise
from nnlib.attention.blockwise import Labels
from nnlib.attention.dispatch import attend, nearest
from nnlib.attention.kernels import (
    CosineInverseDistance,
    CosineSoftmax,
    EuclideanPyramid,
    InfluenceCone,
    InverseDistance,
    UniformKNN,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:divide by zero"
)  # in the interpreter: a weight of 0
pytest.importorskip("triton", reason="Triton comes with PyTorch where it may meet a GPU")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = {
    "inverse distance": (InverseDistance(), "euclidean", {}),
    "odd exponent": (InverseDistance(-3.0), "euclidean", {"exponent": -3.0}),
    "broken exponent": (InverseDistance(-2.5), "euclidean", {"exponent": -2.5}),
    "no epsilon": (InverseDistance(epsilon=0.0), "euclidean", {"epsilon": 0.0}),
    "cone": (InfluenceCone(), "influence_cone", {}),
    "narrow cone": (InfluenceCone(1.05), "influence_cone", {"factor": 1.05}),
    "pyramid": (EuclideanPyramid(), "euclidian_pyramid", {}),
    "cosine": (CosineInverseDistance(), "cosine", {}),
    "signed cosine": (CosineInverseDistance(signed=True), "cosine_signed", {}),
    "softmax": (CosineSoftmax(), "cosine_softmax", {}),
}
FUSED = ("inverse distance", "odd exponent", "broken exponent", "no epsilon")
SHAPES = {
    "one of each": (1, 1, 3),
    "a few": (5, 7, 3),
    "many": (70, 150, 2),
    "wide": (9, 130, 24),
    "wider": (20, 70, 70),
}
CASES = [(kernel, "blocks") for kernel in KERNELS] + [(kernel, "fused") for kernel in FUSED]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fill what is allocated with NaN, and cut even small inputs into blocks."""
    monkeypatch.setitem(blockwise.BLOCK_SHAPE, "cpu", (32, 64))
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def inputs(shape, dtype, seed):
    queries, centers, features = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    sizes = ((queries, features), (centers, features), (centers, 5))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def wanted(x, c, v, kernel, exclude, pull):
    """The oracle's averages and gradients, by autograd in float64."""
    leaves = [part.double().requires_grad_() for part in (x, c, v)]
    _, name, settings = KERNELS[kernel]
    weights = oracle.weights(*leaves[:2], name, exclude, **settings)
    average = torch.where(weights.isnan(), 0, weights) @ leaves[2]
    return average.detach(), torch.autograd.grad(average, leaves, pull.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "backend"), CASES)
def test_averages_and_gradients(kernel, backend, shape, dtype):
    x, c, v = inputs(shape, dtype, seed=len(kernel) + len(shape) + 20 * (shape == "one of each"))
    if backend == "fused" and (dtype == torch.float64 or x.shape[1] > 16):
        with pytest.raises(ValueError, match="or backend='auto'"):
            attend(*(part.to(DEVICE) for part in (x, c, v)), KERNELS[kernel][0], backend=backend)
        return
    exclude = torch.arange(len(x)) % len(c) if shape == "many" else None
    generator = torch.Generator().manual_seed(6)
    pull = torch.randn(len(x), 5, generator=generator).to(torch.promote_types(dtype, torch.float32))
    average, gradients = wanted(x, c, v, kernel, exclude, pull)
    leaves = [part.to(DEVICE).requires_grad_() for part in (x, c, v)]
    skip = None if exclude is None else exclude.to(DEVICE)
    found = attend(*leaves, KERNELS[kernel][0], exclude=skip, backend=backend)
    found.backward(pull.to(DEVICE))
    tight = {
        torch.float32: (1e-5, 1e-3),
        torch.float64: (1e-11, 1e-7),
        torch.bfloat16: (1e-5, 1e-2),
    }[dtype]
    assert (found.cpu() - average).abs().max() <= tight[0] * v.abs().max()
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert leaf.grad.isfinite().all()
        known = gradient.isfinite()  # not where coarse types put two in one place
        assert (leaf.grad.cpu() - gradient)[known].norm() <= tight[1] * gradient[
            known
        ].norm() + 1e-5


@pytest.mark.parametrize("kernel", ["inverse distance", "odd exponent"])
def test_fused_labels_are_one_hot_rows(kernel):
    x, c, _ = inputs("many", torch.float32, 1)
    labels = torch.arange(len(c)) % 7
    given = [part.to(DEVICE) for part in (x, c, labels)]
    share = attend(*given[:2], Labels(given[2], 9), KERNELS[kernel][0], backend="fused").cpu()
    average, _ = wanted(
        x, c, torch.nn.functional.one_hot(labels, 9), kernel, None, torch.ones(len(x), 9)
    )
    assert (share - average).abs().max() <= 1e-5 and (share[:, 7:] == 0).all()


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("offset", [0, 1000])
def test_fused_at_any_scale_and_place(scale, offset):
    x, c, v = inputs("many", torch.float32, 2)
    x, c = (x + offset) * scale, (c + offset) * scale
    average, _ = wanted(x, c, v, "inverse distance", None, torch.ones(len(x), 5))
    found = attend(
        *(part.to(DEVICE) for part in (x, c, v)), InverseDistance(), backend="fused"
    ).cpu()
    assert (found - average).abs().max() <= 1e-5 * v.abs().max()


def test_fused_takes_strided_exclusions():
    x, c, v = (part.to(DEVICE) for part in inputs("a few", torch.float32, 5))
    exclude = torch.arange(10, device=DEVICE)[::2] % 7
    found = [
        attend(x, c, v, InverseDistance(), exclude=exclude, backend=backend)
        for backend in ("fused", "blocks")
    ]
    assert (found[0] - found[1]).abs().max() <= 1e-5


def test_fused_without_any_center_left():
    one = torch.ones(1, 2, device=DEVICE, requires_grad=True)
    found = attend(
        one, one, one, InverseDistance(), exclude=torch.zeros(1, dtype=torch.int64), backend="fused"
    )
    found.sum().backward()
    assert found.tolist() == [[0, 0]] and one.grad.tolist() == [[0, 0]]


@pytest.mark.parametrize("kernel", [CosineInverseDistance(), InfluenceCone(), UniformKNN(2)])
def test_what_cannot_be_fused_says_what_would_do(kernel):
    x, c, v = (part.to(DEVICE) for part in inputs("a few", torch.float32, 3))
    with pytest.raises(ValueError, match="give InverseDistance, or CosineSoftmax"):
        attend(x, c, v, kernel, backend="fused")
    with pytest.raises(ValueError, match="no nearest centers"):
        nearest(x, c, 2, InverseDistance(), backend="fused")


@pytest.mark.parametrize("kernel", ["inverse distance", "signed cosine", "pyramid"])
def test_coarse_products_are_coarse_and_near_pairs_are_not(kernel):
    x, c, v = inputs("wider", torch.float32, 4)
    x[0] = c[3] * (1 + 1e-4)
    average, gradients = wanted(x, c, v, kernel, None, torch.ones(len(x), 5))
    leaves = [part.to(DEVICE).requires_grad_() for part in (x, c, v)]
    found = attend(*leaves, KERNELS[kernel][0], matmul_dtype="bfloat16")
    found.sum().backward()
    error = (found.detach().cpu() - average).abs()
    assert 1e-5 < error.max() <= 0.03 * v.abs().max() and error[0].max() <= 1e-4
    assert (leaves[2].grad.cpu() - gradients[2]).norm() <= 0.03 * gradients[2].norm()
    near = attend(
        x.double() + 1e-3, x.double(), v[: len(x)], KERNELS[kernel][0], matmul_dtype="bfloat16"
    ).cpu()
    assert (near - v[: len(x)]).abs().max() <= 0.03 * v.abs().max()
    with pytest.raises(ValueError, match="give 'float32'"):
        attend(x, c, v, UniformKNN(2), matmul_dtype="bfloat16")
    with pytest.raises(
        ValueError, match="matmul_dtype='float8' is not known: give one of float32, bfloat16"
    ):
        attend(x, c, v, KERNELS[kernel][0], matmul_dtype="float8")


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here():
    """The interpreter takes what a compiler does not: compile for two generations of GPUs."""
    calls = "[print(*compiled(*each)) for each in ((80, True), (90, False))]"
    script = f"from test_backends import compiled; {calls}"
    here = Path(__file__).parent
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": os.pathsep.join(map(str, (here, *here.parents[:2]))),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 6 and min(map(int, done.stdout.split())) > 1000


def compiled(capability: int, labelled: bool) -> list[int]:
    """Bytes of machine code of each kernel, for 3 features and 10 columns of values."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nnlib.attention.triton_backend import BLOCK, _backward, _forward

    known = {"skip": "*i64", "B": "i32", "M": "i32", "exponent": "fp32", "epsilon": "fp32"}
    if labelled:
        known["v"] = "*i64"
    constants = {"D": 3, "P": 4, "V": 10, "W": 16, "LABELS": labelled, "BLOCK": BLOCK}
    sizes = []
    for kernel, axis in ((_forward, 0), (_backward, 0), (_backward, 1)):
        names = kernel.arg_names
        fixed = {name: value for name, value in constants.items() if name in names}
        if "AXIS" in names:
            fixed["AXIS"] = axis
        signature = {
            name: "constexpr" if name in fixed else known.get(name, "*fp32") for name in names
        }
        places = {(names.index(name),): value for name, value in fixed.items()}
        source = ASTSource(kernel, signature, constexprs=places)
        code = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
        sizes.append(len(code))
    return sizes


@pytest.mark.parametrize(("features", "width"), [(128, 10), (5, 30), (256, 256)])
def test_attention_in_bfloat16_is_the_softmax_average(features, width):
    generator = torch.Generator().manual_seed(features)
    x, c, v = (
        torch.randn(n, m, generator=generator)
        for n, m in ((40, features), (300, features), (300, width))
    )
    kernel, leaves = CosineSoftmax(0.2), [part.to(DEVICE).requires_grad_() for part in (x, c, v)]
    found = attend(*leaves, kernel, backend="fused", matmul_dtype="bfloat16")
    exact = [part.detach().double().cpu().requires_grad_() for part in leaves]
    weights = oracle.weights(*exact[:2], "cosine_softmax", None, temperature=0.2)
    average = weights @ exact[2]
    assert (
        found.dtype == torch.float32
        and (found.detach().cpu() - average).abs().max() <= 2e-2 * v.abs().max()
    )
    pull = torch.randn(average.shape, generator=generator)
    wanted = torch.autograd.grad(average, exact, pull.double())
    for got, to in zip(torch.autograd.grad(found, leaves, pull.to(DEVICE)), wanted, strict=True):
        assert (got.cpu() - to).abs().max() <= 5e-2 * to.abs().max()
    shares = attend(
        x, c, Labels(torch.arange(300) % 7, 7), kernel, backend="fused", matmul_dtype="bfloat16"
    )
    assert torch.allclose(shares.sum(1), torch.ones(40), atol=1e-2)


def test_attention_in_bfloat16_leaves_nothing_out():
    x, index = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20)
    with pytest.raises(ValueError, match="CosineSoftmax with matmul_dtype='bfloat16'"):
        attend(x, x, x, CosineSoftmax(), exclude=index, backend="fused", matmul_dtype="bfloat16")
