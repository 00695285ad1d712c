"""Which columns count how much, and which neighbors share the weight: chosen by leaving out.

Every choice is judged on samples that were left out of the prediction, so noise is not learned.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from sklearn.model_selection import KFold
from torch import Tensor

from nnlib._common.runtime import make_generator
from nnlib.attention import InverseDistance, Kernel, UniformKNN, attend, nearest
from nnlib.neighbors.columns import Columns, is_euclidean, plain_columns

COUNTS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)  # of nearest samples, that are tried
COLUMNS_SAMPLES = 2000  # that choose the columns' weights
KERNEL_PAIRS = 1 << 25  # of a left-out sample and another, that choose the kernel
KERNEL_SAMPLES = 1000  # left out at most
REFERENCES = 10_000  # at most, that predict a sample left out
LEARNED_COLUMNS = 256  # at most, and
LEARNED_SAMPLES = 50  # at least, for weights that are learned
STEPS = 60  # of learning them
STEPS_APART = 5  # between those that left-out samples judge
BATCH = 256
RATE = 0.15
EVENNESS = 0.03  # of the penalty on weights that differ
FIRST_EXPONENT = -4.0
EXPONENTS = (-8.0, -32.0)
BANDWIDTHS = (0.1, 0.3, 1.0)  # over the distance to the tenth neighbor
INTERPOLATION_EXPONENTS = (-4.0, -8.0, -16.0)
INTERPOLATION_BANDWIDTHS = (1e-6, 0.1, 0.3, 1.0)
SHRINKS = (0.01, 0.03, 0.1, 0.2, 0.3)  # of probabilities towards even ones
ERROR_WEIGHT = 2.0  # of a wrong class over a nat of log loss

Values = Float[Tensor, "N V"]
Losses = Callable[[Values, Values], Float[Tensor, " N"]]  # of predictions and targets


def tune(
    x: Shaped[Tensor, "N D"],
    values: Values,
    losses: Losses,
    seed: int,
    scaling: str = "auto",
    base: Kernel | None = None,
    inverse_only: bool = False,
) -> tuple[Columns, Kernel]:
    """Choose the columns' weights, and the kernel by which all samples predict one left out.

    Parameters
    ----------
    values : Tensor [N, V] of float32, what is to be predicted
    losses : function of predictions and values, one loss a sample
    scaling : "auto", "deviation" for columns over their deviation, or "none"
    base : Kernel, optional, by whose distance samples are near: only the number of the nearest is
        chosen, or nothing where it has one
    inverse_only : bool, whether all samples have to count
    """
    x = x.to(values.device)
    columns, kernel = tune_columns(x, values, losses, seed, scaling, base)
    if base is not None and base.k is not None:
        return columns, base
    if kernel is None or base is not None or len(x) > COLUMNS_SAMPLES:
        kernel = _tune_kernel(columns.apply(x), values, losses, seed, base, kernel, inverse_only)
    return columns, kernel


def tune_columns(
    x: Shaped[Tensor, "N D"],
    values: Values,
    losses: Losses,
    seed: int,
    scaling: str,
    base: Kernel | None,
) -> tuple[Columns, Kernel | None]:
    """Choose the columns' weights as `tune` does, and a kernel if one is learned with them."""
    if scaling == "none" or not (base is None or is_euclidean(base)) or x.dtype == torch.uint8:
        return plain_columns(x, base), None
    if scaling == "deviation":
        return _deviations(x), None
    return _compare_columns(x, values, losses, seed)


def _deviations(x: Shaped[Tensor, "N D"]) -> Columns:
    x = x.to(torch.float64)
    deviation = x.std(0, correction=0)
    return Columns(x.mean(0), 1 / torch.where(deviation > 0, deviation, 1.0))


def _compare_columns(
    x: Shaped[Tensor, "N D"], values: Values, losses: Losses, seed: int
) -> tuple[Columns, Kernel | None]:
    """Choose columns as they are, over their deviation, or with weights and a kernel learned.

    Learned ones have to be better than the others by two standard errors.
    """
    plain = plain_columns(x)
    if len(x) < 3:
        return plain, None
    rows = torch.randperm(len(x), generator=make_generator(seed))[:COLUMNS_SAMPLES].to(x.device)
    few = x[rows]
    values = values[rows]
    scaled = _deviations(few)
    best = plain
    lowest = _neighbor_losses(plain.apply(few), values, losses)
    others = _neighbor_losses(scaled.apply(few), values, losses)
    if float(others.mean()) < float(lowest.mean()):
        best = scaled
        lowest = others
    if len(x) < LEARNED_SAMPLES or x.shape[1] > LEARNED_COLUMNS:
        return best, None
    weight, power, held, learned = _learn_columns(scaled.apply(few), values, losses)
    if not is_lower(learned, lowest[held], errors=2.0):
        return best, None
    kernel = InverseDistance(FIRST_EXPONENT * power, epsilon=1.0)
    return Columns(scaled.offset, scaled.weight * weight), kernel


def _neighbor_losses(x: Float[Tensor, "N D"], values: Values, losses: Losses) -> Tensor:
    """Losses of the best number of neighbors, each sample being left out of its own."""
    count = min(max(COUNTS), len(x) - 1)
    left_out = torch.arange(len(x), device=x.device)
    _, index = nearest(x, x, count, InverseDistance(), left_out)
    sums = values[index].cumsum(1)
    tried = [losses(sums[:, k - 1] / k, values) for k in COUNTS if k <= count]
    return min(tried, key=lambda each: float(each.mean()))


def _learn_columns(x: Float[Tensor, "N D"], values: Values, losses: Losses):
    """Return learned weights of the columns, and the losses of samples that were left out.

    Some of the samples choose the number of steps for all.
    """
    folds = KFold(5, shuffle=True, random_state=0).split(x.cpu())
    folds = list(folds)[: 3 if len(x) <= 300 else 2]
    curves = []
    for train, held in folds:
        train, held = (torch.from_numpy(part).to(x.device) for part in (train, held))
        weights = _descend(x[train], values[train], losses)
        kept = ((weight * x[held], weight * x[train], power) for weight, power in weights)
        curves.append([_average(*each, values[train]) for each in kept])
    held = torch.cat([torch.from_numpy(part) for _, part in folds]).to(x.device)
    tried = [losses(torch.cat(step), values[held]) for step in zip(*curves, strict=True)]
    best = min(range(len(tried)), key=lambda step: float(tried[step].mean()))
    weight, power = _descend(x, values, losses)[best]
    return weight.to(torch.float64), float(power), held, tried[best]


def _descend(x: Float[Tensor, "N D"], values: Values, losses: Losses) -> list:
    """Return the columns' weights and the power of all weights, every few steps."""
    count = min(10, len(x) - 1)
    some = torch.arange(len(x), device=x.device)[:: -(-len(x) // 500)]
    width = nearest(x[some], x, count, InverseDistance(), some)[0][:, -1].median()
    width = torch.where(width > 0, width, 1.0)
    log_weight = (-width.log()).repeat(x.shape[1]).requires_grad_()
    log_power = torch.zeros((), device=x.device, requires_grad=True)
    optimizer = torch.optim.Adam([log_weight, log_power], lr=RATE)
    generator = make_generator(0)
    penalty = EVENNESS * losses(values.mean(0).expand_as(values), values).mean()
    path = []
    for step in range(STEPS + 1):
        if step % STEPS_APART == 0:
            path.append((log_weight.detach().exp(), log_power.detach().exp()))
        rows = torch.randperm(len(x), generator=generator)[:BATCH].to(x.device)
        scaled = x * log_weight.exp()
        predicted = _average(scaled[rows], scaled, log_power.exp(), values, rows)
        loss = losses(predicted, values[rows]).mean()
        loss = loss + penalty * (log_weight - log_weight.mean()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return path


def _average(queries, x, power: Tensor, values: Values, left_out=None) -> Values:
    kernel = InverseDistance(FIRST_EXPONENT, epsilon=1.0)
    return attend(queries, x, values, kernel, left_out, sharpness=power)


def _tune_kernel(
    x: Shaped[Tensor, "N D"],
    values: Values,
    losses: Losses,
    seed: int,
    base: Kernel | None,
    learned: Kernel | None,
    inverse_only: bool,
) -> Kernel:
    """Choose a number of nearest samples, or an inverse distance where no base is given.

    More of the nearest are better where losses are alike; an inverse distance has to be better by
    a standard error.
    """
    by = base or InverseDistance()
    if len(x) < 3:
        return by if inverse_only else UniformKNN(1, by)
    rows = _some_rows(x, seed)
    own = values[rows]
    count = min(max(COUNTS), len(x) - 1)
    distances, index = nearest(x[rows], x, count, by, rows)
    sums = values[index].cumsum(1)
    counts = [k for k in COUNTS if k <= count]
    tried = [losses(sums[:, k - 1] / k, own) for k in counts]
    chosen = _smoothest(tried)
    kernel: Kernel = UniformKNN(counts[chosen], by)
    lowest = tried[chosen]
    if base is None:
        width = float(distances[:, min(10, count) - 1].median())
        if inverse_only:
            kernel = by
            lowest = losses(attend(x[rows], x, values, by, rows), own)
        for other in _inverse_distances(width, learned):
            found = losses(attend(x[rows], x, values, other, rows), own)
            if is_lower(found, lowest):
                kernel = other
                lowest = found
    return kernel


def tune_interpolation(
    x: Shaped[Tensor, "N D"], smoothed: Values, values: Values, losses: Losses, seed: int
) -> Kernel:
    """Choose the inverse distance by which samples' smoothed values predict a sample left out."""
    if len(x) < 3:
        return InverseDistance()
    step = -(-len(x) // COLUMNS_SAMPLES)  # centers are few too
    x, smoothed, values = (part[::step] for part in (x, smoothed, values))
    rows = _some_rows(x, seed)
    width = float(nearest(x[rows], x, min(10, len(x) - 1), InverseDistance(), rows)[0].median())
    width = width or 1.0
    kernels = [
        InverseDistance(exponent, width * part)
        for exponent in INTERPOLATION_EXPONENTS
        for part in INTERPOLATION_BANDWIDTHS
    ]

    def loss(kernel: Kernel) -> float:
        return float(losses(attend(x[rows], x, smoothed, kernel, rows), values[rows]).mean())

    return min(kernels, key=loss)


def _some_rows(x: Shaped[Tensor, "N D"], seed: int) -> Tensor:
    most = max(1, min(KERNEL_SAMPLES, KERNEL_PAIRS // len(x)))
    return torch.randperm(len(x), generator=make_generator(seed))[:most].to(x.device)


def _inverse_distances(width: float, learned: Kernel | None) -> list[InverseDistance]:
    exponents = (learned.exponent,) if isinstance(learned, InverseDistance) else EXPONENTS
    return [InverseDistance(p, width * part) for p in exponents for part in BANDWIDTHS if width]


def _smoothest(tried: list[Tensor]) -> int:
    """Return the last of the choices that no other is clearly better than."""
    best = min(tried, key=lambda each: float(each.mean()))
    return max(i for i, each in enumerate(tried) if not is_lower(best, each))


def is_lower(losses: Tensor, others: Tensor, errors: float = 1.0) -> bool:
    """Whether paired losses are lower, by so many standard errors of the difference."""
    gain = others - losses
    return float(gain.mean()) > errors * float(gain.std(correction=0)) / len(gain) ** 0.5


def leave_one_out(x: Shaped[Tensor, "N D"], values: Values, kernel: Kernel) -> Values:
    """Predict every sample by all the others, or by some of them where there are very many."""
    if len(x) == 1:
        return values
    x = x.to(values.device)
    step = -(-len(x) // REFERENCES)
    rows = torch.arange(len(x), device=x.device)
    left_out = torch.where(rows % step == 0, rows // step, -1)
    return attend(x, x[::step], values[::step], kernel, left_out)


def class_losses(probabilities: Values, own: Values) -> Float[Tensor, " N"]:
    """Log losses, of probabilities shrunk as suits them best, and more for a wrong class."""
    shrunk = shrink(probabilities, best_shrink(probabilities, own))
    wrong = (probabilities.detach().argmax(1) != own.argmax(1)).to(own.dtype)
    return -(shrunk * own).sum(1).log() + ERROR_WEIGHT * wrong


def class_regrets(probabilities: Values, true: Values) -> Float[Tensor, " N"]:
    """Expected losses over those of the true probabilities: log loss, and wrong classes."""
    tiny = torch.finfo(true.dtype).tiny
    ratio = (true.clamp(min=tiny) / probabilities.clamp(min=tiny)).log()
    chosen = probabilities.argmax(1, keepdim=True)
    missed = true.amax(1) - true.gather(1, chosen)[:, 0]
    return (true * ratio).sum(1) + ERROR_WEIGHT * missed


def best_shrink(probabilities: Values, own: Values) -> float:
    """How far probabilities have to be moved towards even ones to be borne out."""
    right = (probabilities.detach() * own).sum(1)
    even = 1 / own.shape[1]
    return min(SHRINKS, key=lambda s: -float(((1 - s) * right + s * even).log().mean()))


def shrink(probabilities: Values, fraction: float) -> Values:
    """Move probabilities a fraction of the way to even ones."""
    return probabilities * (1 - fraction) + fraction / probabilities.shape[1]


def squared_errors(predicted: Values, own: Values) -> Float[Tensor, " N"]:
    """Squared errors, summed over the targets."""
    return (predicted - own).square().sum(1)
