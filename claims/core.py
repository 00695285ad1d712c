"""What is stated of the one hot path."""

import sys
from functools import cache
from pathlib import Path

import torch

from claims.table import NotMeasured, claim
from nnlib.attention.dispatch import attend, class_log_probabilities

sys.path.append(str(Path(__file__).parents[1] / "tests"))


@cache
def errors(device: str) -> tuple[float, float]:
    """The largest error of averages, relative to max|v|, and of log-probabilities where p > 1e-12, over all data."""
    import oracle
    import test_attend as cases

    average = logs = 0.0
    for name, make in cases.DATA.items():
        x, c = cases.split(make(torch.Generator().manual_seed(1)), name)
        v, labels = torch.randn(len(c), 4), torch.arange(len(c)) % 5
        for kernel, ours in cases.KERNELS.items():
            if kernel == "k_nearest" and name in ("exact duplicates", "zero rows"):
                continue  # which of equally far centers count is open
            weights = oracle.weights(
                x, c, kernel, **({"count": min(3, len(c))} if kernel == "k_nearest" else {})
            )
            there = [part.to(device) for part in (x, c, v, labels)]
            found = attend(*there[:3], ours).cpu()
            average = max(
                average, float((found - weights @ v.double()).abs().max() / v.abs().max())
            )
            share = weights @ torch.nn.functional.one_hot(labels, 5).double()
            found = class_log_probabilities(*there[:2], there[3], 5, ours).cpu()
            logs = max(logs, float((found - share.log())[share > 1e-12].abs().max()))
    return average, logs


@claim(
    "attend against float64: 7 kernels, 14 kinds of data, relative to max|v|",
    "at most 1e-5",
    "test",
)
def average_error():
    return f"{errors('cpu')[0]:.1e}", errors("cpu")[0] <= 1e-5


@claim("log-probabilities against float64, where p > 1e-12", "at most 1e-4", "test")
def log_error():
    return f"{errors('cpu')[1]:.1e}", errors("cpu")[1] <= 1e-4


@claim("both on a GPU", "at most 1e-5 and 1e-4", "gpu")
def gpu_errors():
    if not torch.cuda.is_available():
        raise NotMeasured("no GPU here")
    average, logs = errors("cuda")
    return f"{average:.1e} and {logs:.1e}", average <= 1e-5 and logs <= 1e-4
