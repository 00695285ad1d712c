"""What is stated of the one hot path."""

from functools import cache

import oracle
import test_attend as cases
import torch
from figures.table import figure

from nnlib.attention import attend, class_log_probabilities

UNORDERED = ("exact duplicates", "zero rows")  # which of equally far centers count is open


@cache
def errors(device: str) -> tuple[float, float]:
    """The largest error of averages, relative to max|v|, and of log-probabilities, p > 1e-12."""
    average = logs = 0.0
    for name, make in cases.DATA.items():
        x, c = cases.split(make(torch.Generator().manual_seed(1)), name)
        v, labels = torch.randn(len(c), 4), torch.arange(len(c)) % 5
        for kernel, ours in cases.KERNELS.items():
            nearest = kernel == "k_nearest"
            if nearest and name in UNORDERED:
                continue
            settings = {"count": min(3, len(c))} if nearest else {}
            weights = oracle.weights(x, c, kernel, **settings)
            here = [part.to(device) for part in (x, c)]
            error = attend(*here, v.to(device), ours).cpu() - weights @ v.double()
            average = max(average, float(error.abs().max() / v.abs().max()))
            exact = weights @ torch.nn.functional.one_hot(labels, 5).double()
            log_p = class_log_probabilities(*here, labels.to(device), 5, ours).cpu()
            logs = max(logs, float((log_p - exact.log())[exact > 1e-12].abs().max()))
    return average, logs


@figure("attend against float64: 7 kernels, 14 kinds of data, relative to max|v|", "at most 1e-5")
def test_average_error():
    average, _ = errors("cpu")
    return f"{average:.1e}", average <= 1e-5


@figure("log-probabilities against float64, where p > 1e-12", "at most 1e-4")
def test_log_error():
    _, logs = errors("cpu")
    return f"{logs:.1e}", logs <= 1e-4


@figure("both on a GPU", "at most 1e-5 and 1e-4", "gpu")
def test_gpu_errors():
    average, logs = errors("cuda")
    return f"{average:.1e} and {logs:.1e}", average <= 1e-5 and logs <= 1e-4
