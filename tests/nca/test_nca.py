"""The loss and its gradient against float64 and the published formula, and what is refused."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from nnlib.nca import MemoryBank, nca_loss


def naive(features, labels, bank, bank_labels, exclude=None, temperature=0.05, margin=0.0):
    """-log p(own class) by its definition, in float64, every score held."""
    x, m = normalize(features.double(), dim=1), normalize(bank.double(), dim=1)
    score = x @ m.T / temperature
    if exclude is not None:
        score = score.masked_fill(exclude[:, None] == torch.arange(len(m)), -torch.inf)
    same = labels[:, None] == bank_labels
    own = score.masked_fill(~same, -torch.inf).logsumexp(1)
    others = score.masked_fill(same, -torch.inf).logsumexp(1)
    found = own > -torch.inf
    lead = (
        torch.where(found, own, 0)
        - margin / temperature
        - torch.where(others > -torch.inf, others, -1e9)
    )
    return torch.where(found, torch.nn.functional.softplus(-lead), 0).sum() / len(x)


def sample(kind, n=600, b=32, dim=128, classes=7, seed=0):
    """A batch out of a bank: classes all mixed, or each about a direction of its own."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    noise = torch.randn(n, dim, generator=g)
    bank = normalize(noise if kind == "mixed" else noise * 0.02 + torch.eye(dim)[labels], dim=1)
    index = torch.randperm(n, generator=g)[:b]
    return bank[index] + 0.02 * torch.randn(b, dim, generator=g), labels[index], bank, labels, index


def both(x, labels, bank, bank_labels, **how):
    """(loss, gradient) of ours and of the naive one."""
    found = []
    for loss in (nca_loss, naive):
        leaf = x.clone().requires_grad_()
        value = loss(leaf, labels, bank, bank_labels, **how)
        value.backward()
        found.append((value.detach().double(), leaf.grad.double()))
    return found


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["mixed", "separated"])
def test_loss_and_gradient_agree_with_float64(kind, temperature, margin):
    x, labels, bank, bank_labels, index = sample(kind)
    how = {"exclude": index, "temperature": temperature, "margin": margin}
    (loss, gradient), (true, wanted) = both(x, labels, bank, bank_labels, **how)
    bound = 1e-5 * max(1, 0.05 / temperature)
    assert abs(loss - true) <= bound * true + 1e-7
    assert abs(gradient.norm() - wanted.norm()) <= bound * wanted.norm() + 1e-7
    assert (gradient - wanted).norm() <= 3 * bound * wanted.norm() + 1e-7


def test_the_published_formula_where_it_is_finite():
    x, labels, bank, bank_labels, index = sample("mixed")
    x = normalize(x, dim=1)
    for margin in (0.0, 0.1):
        scores = (x @ bank.T / 0.05).exp().double()
        scores[torch.arange(len(x)), index] = 0
        same = labels[:, None] == bank_labels
        own, others = (scores * same).sum(1), (scores * ~same).sum(1)
        lowered = own * torch.exp(torch.tensor(-margin / 0.05))
        published = -torch.log(lowered / (others + lowered)).sum() / len(x)
        loss = nca_loss(x, labels, bank, bank_labels, index, margin=margin)
        assert loss.item() == pytest.approx(published.item(), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 10**6),
)
@example(4, 1, 4, 1, 28840)  # a row of length 0.07
def test_any_sizes_blocks_and_orders(n, b, classes, dim, seed):
    g = torch.Generator().manual_seed(seed)
    bank, bank_labels = torch.randn(n, dim, generator=g), torch.randint(classes, (n,), generator=g)
    index = torch.randint(n, (b,), generator=g)
    x, labels = torch.randn(b, dim, generator=g), bank_labels[index]
    exclude = torch.where(torch.rand(b, generator=g) < 0.3, -1, index)
    import nnlib.nca.loss as module

    before, module.BLOCK_PAIRS = module.BLOCK_PAIRS, {"cpu": 7 * b}
    try:
        (loss, gradient), (true, wanted) = both(
            x, labels, bank, bank_labels, exclude=exclude, temperature=0.2
        )
    finally:
        module.BLOCK_PAIRS = before
    assert loss.item() == pytest.approx(true.item(), rel=1e-4, abs=1e-6)
    shortest = float(
        x.norm(dim=1).min()
    )  # x is divided by its length, and so is what rounding leaves
    assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-5 / min(1, shortest))


def test_classes_of_one_carry_no_loss_and_no_nan():
    bank = torch.eye(4)
    x = torch.eye(4).requires_grad_()
    loss = nca_loss(x, torch.arange(4), bank, torch.arange(4), exclude=torch.arange(4))
    loss.backward()
    assert loss == 0 and not x.grad.any()


def test_one_class_alone_has_nothing_to_lose():
    x, _, bank, _, index = sample("mixed")
    loss = nca_loss(
        x.requires_grad_(),
        torch.zeros_like(index),
        bank,
        torch.zeros(len(bank), dtype=torch.int64),
        index,
    )
    loss.backward()
    assert loss == 0 and not x.grad.any()


@pytest.mark.parametrize("temperature", [1e-3, 0.005])
def test_nothing_overflows_where_the_published_formula_does(temperature):
    x, labels, bank, bank_labels, index = sample("separated")
    assert not torch.isfinite((normalize(x, dim=1) @ bank.T / temperature).exp().sum())
    wrong = (labels + 1) % 7
    for given_labels in (labels, wrong):
        leaf = x.clone().requires_grad_()
        loss = nca_loss(leaf, given_labels, bank, bank_labels, temperature=temperature)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_zero_features_and_zero_rows_are_finite():
    x, labels, bank, bank_labels, index = sample("mixed")
    x[0], bank[5] = 0, 0
    leaf = x.requires_grad_()
    loss = nca_loss(leaf, labels, bank, bank_labels, index)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_lengths_do_not_count_and_a_bank_is_as_its_rows():
    x, labels, rows, row_labels, index = sample("mixed")
    bank = MemoryBank(row_labels, 128)
    bank.fill(rows * 3)
    plain = nca_loss(x, labels, rows, row_labels, index)
    assert nca_loss(5 * x, labels, bank, exclude=index).item() == pytest.approx(
        plain.item(), rel=1e-5
    )


def test_every_sample_its_own_class_is_instance_discrimination():
    x, _, rows, _, index = sample("mixed")
    bank = MemoryBank(torch.arange(len(rows)), 128)
    bank.fill(rows)
    wanted = torch.nn.functional.cross_entropy(normalize(x, dim=1) @ rows.T / 0.1, index)
    assert nca_loss(x, index, bank, temperature=0.1).item() == pytest.approx(
        wanted.item(), rel=1e-5
    )


def test_under_autocast_scores_stay_in_float32():
    x, labels, bank, bank_labels, index = sample("separated")
    wanted = nca_loss(x, labels, bank, bank_labels, index)
    with torch.autocast("cpu", torch.bfloat16):
        assert nca_loss(x, labels, bank, bank_labels, index) == wanted
    half = nca_loss(x.bfloat16().requires_grad_(), labels, bank, bank_labels, index)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"margin": -0.1}, "margin=-0.1"),
        ({"labels": torch.full((32,), 9)}, "labels holds 9"),
        ({"labels": torch.zeros(31, dtype=torch.int64)}, "labels is"),
        ({"labels": torch.zeros(32)}, "labels is"),
        ({"bank_labels": None}, "bank_labels None"),
        ({"bank_labels": torch.zeros(5, dtype=torch.int64)}, "bank_labels"),
        ({"features": torch.zeros(32, 5)}, "features (32, 5)"),
        ({"exclude": torch.full((32,), 600)}, "exclude holds 600"),
        ({"exclude": torch.full((32,), -7)}, "exclude holds -7"),
        ({"bank_labels": torch.full((600,), -1)}, "classes of the bank, -1 ... -1"),
    ],
)
def test_what_does_not_fit_is_named(change, word):
    x, labels, bank, bank_labels, index = sample("mixed")
    given_all = {
        "features": x,
        "labels": labels,
        "bank": bank,
        "bank_labels": bank_labels,
        "exclude": index,
    } | change
    with pytest.raises(ValueError, match=word.replace("(", r"\(").replace(")", r"\)")):
        nca_loss(**given_all)


def test_labels_that_the_bank_does_not_have_for_these_samples_are_refused():
    x, labels, rows, row_labels, index = sample("mixed")
    bank = MemoryBank(row_labels, 128)
    with pytest.raises(ValueError, match="labels differ"):
        nca_loss(x, (labels + 1) % 7, bank, exclude=index)


@pytest.mark.parametrize("classes", [2, 60])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_feature_that_is_no_number_has_no_number_as_its_loss(classes, bad):
    x, labels, bank, bank_labels, index = sample("mixed", classes=classes)
    x[3, 5] = bad  # as after a step too far, which mustn't look like a loss of 0
    assert (bank_labels == labels[3]).sum() > 1
    for how in ({}, {"exclude": index}):
        assert nca_loss(x, labels, bank, bank_labels, **how).isnan()


def second_case(dtype=torch.float64):
    x, labels, bank, bank_labels, index = sample("mixed", n=60, b=5, dim=6, classes=3)
    index[2] = -1
    return x.to(dtype), labels, normalize(bank.to(dtype), dim=1), bank_labels, index


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_second_derivatives_agree_with_the_definition(margin, monkeypatch):
    monkeypatch.setattr("nnlib.nca.loss.BLOCK_PAIRS", {"cpu": 35})
    x, *others = second_case()
    others[1][7] = 0  # a row that was cleared counts for nothing
    known = others[1].any(1)
    plain = (others[0], others[1][known], others[2][known])
    renumbered = torch.where(others[3] < 0, -1, known.cumsum(0)[others[3].clamp(min=0)] - 1)
    how = {"temperature": 0.3, "margin": margin}

    def ours(x):
        return nca_loss(x, *others, **how)

    def wanted(x):
        return naive(x, *plain, renumbered, **how)

    right = torch.autograd.functional.hessian(wanted, x)
    assert torch.allclose(ours(x), wanted(x))
    assert right.abs().max() > 0.05
    for found in (
        torch.autograd.functional.hessian(ours, x),
        torch.func.hessian(ours)(x),
        torch.func.jacrev(torch.func.jacrev(ours))(x),
    ):
        assert torch.allclose(found, right, atol=1e-9)
    narrow = torch.autograd.functional.hessian(
        lambda x: nca_loss(x, others[0], others[1].float(), *others[2:], **how), x.float()
    )
    assert (narrow - right).abs().max() <= 1e-4 * right.abs().max()
    assert torch.autograd.gradgradcheck(ours, x.requires_grad_(), fast_mode=True)


def test_gradients_of_each_sample_and_no_third_derivative():
    x, labels, bank, bank_labels, index = second_case()
    leaf = x.clone().requires_grad_()

    def loss(x, label, skip):
        return nca_loss(x[None], label[None], bank, bank_labels, skip[None])

    each = torch.func.vmap(torch.func.grad(loss))(x, labels, index)
    whole = nca_loss(leaf, labels, bank, bank_labels, index)
    first = torch.autograd.grad(whole, leaf, create_graph=True)[0]
    assert torch.allclose(each / len(x), first)
    second = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="third derivative"):
        second.sum().backward()


def test_classes_of_one_have_no_second_derivatives():
    x = torch.eye(4, dtype=torch.float64)
    found = torch.autograd.functional.hessian(
        lambda x: nca_loss(x, torch.arange(4), x.detach(), torch.arange(4), torch.arange(4)), x
    )
    assert not found.any()


def test_a_gradient_penalty_trains():
    x, *others = second_case(torch.float32)
    torch.manual_seed(0)
    network = torch.nn.Linear(6, 6)
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    penalties = []
    for _ in range(60):
        inputs = x.clone().requires_grad_()
        loss = nca_loss(network(inputs), *others, temperature=0.5)
        slope = torch.autograd.grad(loss, inputs, create_graph=True)[0]
        penalties.append(slope.square().sum())
        optimizer.zero_grad()
        penalties[-1].backward()
        optimizer.step()
    assert penalties[-1] < 0.7 * penalties[0]


@pytest.mark.parametrize("kind", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.half])
def test_lists_arrays_and_half_types_are_taken(kind):
    x, labels, bank, bank_labels, index = second_case()
    x, bank = x.half().double(), bank.half().double()
    whole = torch.Tensor.int if kind is torch.Tensor.half else kind
    given_all = [kind(x), whole(labels), kind(bank), whole(bank_labels), whole(index)]
    wanted = nca_loss(x, labels, bank, bank_labels, index)
    assert nca_loss(*given_all).item() == pytest.approx(wanted.item(), rel=1e-4)
