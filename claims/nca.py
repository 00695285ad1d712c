"""What is stated of chapter 4: the loss against a whole bank, the k-NN, and the training program."""

import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from claims.memory import STATUS, extra_megabytes
from claims.table import NotMeasured, claim

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(TESTS))
DIGITS = "mnist -a small --epochs 3 --schedule cosine --warmup 0.4 --validation 0.1 --wd 5e-4"
COLOURS = "cifar10 -a small --epochs 6 --schedule cosine --warmup 1 --validation 0.05 --wd 5e-4 --watch stale"
QUICK = "cifar10 -a resnet18 -b 512 --epochs 24 --lr 0.4 --wd 5e-4 --schedule cosine --warmup 3 --watch stale -j 4"


@claim(
    "NCA's loss and gradient against float64, T 0.005 to 1, margins, mixed and separated",
    "1 at most",
    "test",
)
def loss_error():
    import test_nca as cases

    worst = 0.0
    for kind in ("mixed", "separated"):
        for temperature in (0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0):
            for margin in (0.0, 0.1):
                x, labels, bank, bank_labels, index = cases.sample(kind, n=5000, b=64)
                how = {"exclude": index, "temperature": temperature, "margin": margin}
                (loss, gradient), (true, wanted) = cases.both(x, labels, bank, bank_labels, **how)
                bound = 1e-5 * max(1, 0.05 / temperature)
                pairs = ((loss, true), (gradient.norm(), wanted.norm()))
                worst = max([worst, *(float(abs(a - b) / (bound * b + 1e-7)) for a, b in pairs)])
    return f"{worst:.2f} of the bound, which is 1e-5 max(1, 0.05/T), floor 1e-7", worst <= 1


@claim("NCA's loss over 1,281,167 x 128, B = 256: extra memory", "at most 100 MB", "slow")
def loss_memory():
    if not STATUS.exists():
        raise NotMeasured("resident memory is read from Linux's /proc")
    found = {name: extra_megabytes(f"nca {name}") for name in ("bank", "rows")}
    return ", ".join(f"{name} {size:.0f} MB" for name, size in found.items()), max(
        found.values()
    ) <= 100


@claim("the same: time over that of its two bare products", "at most 1.3", "slow")
def loss_time():
    from nnbook.benchmarks.imagenet_cost import trial

    found = [trial(queries=1, repeats=1) for _ in range(5)]
    ratio = sorted(each.loss_seconds / each.bare_seconds for each in found)[2]
    loss, bare = (sorted(seconds)[2] for seconds in zip(*(each[:2] for each in found), strict=True))
    return f"{ratio:.2f}: {loss:.2f} s over {bare:.2f} s, medians of 5", ratio <= 1.3


@claim(
    "a bank in 2 shards: loss, gradient, k-NN as of one process; memory",
    "within 1e-5; half",
    "test",
)
def shards():
    import test_bank

    with tempfile.TemporaryDirectory() as folder:
        whole, parts = test_bank._whole(24), test_bank.in_processes((0, 12, 24), Path(folder))
    apart = [abs(sum(part["loss"] for part in parts) / 2 - whole["loss"])]
    apart += [(torch.cat([part["gradient"] for part in parts]) / 2 - whole["gradient"]).abs().max()]
    same = all(
        torch.equal(torch.cat([p[name] for p in parts]), whole[name])
        for name in ("classes", "plain")
    )
    held = [part["here"] for part in parts]
    most = float(max(apart))
    return (
        f"{most:.0e} apart, classes {'equal' if same else 'differ'}, {held} of 101 rows",
        most <= 1e-5 and same,
    )


@claim("50,000 queries against 1,281,167 x 128, 30 nearest: exact", "200 of 200", "slow")
def full_evaluation():
    from nnbook.benchmarks.imagenet_cost import CLASSES, DIM, PICTURES
    from nnlib.nca.knn import knn_predict
    from nnlib.nca.memory_bank import MemoryBank

    generator = torch.Generator().manual_seed(0)
    bank = MemoryBank(torch.randint(CLASSES, (PICTURES,), generator=generator), DIM)
    asked = torch.nn.functional.normalize(torch.randn(50_000, DIM, generator=generator), dim=1)
    started = time.perf_counter()
    found = knn_predict(asked, bank)
    seconds = time.perf_counter() - started
    cosine, index = (asked[:200].double() @ bank.memory.double().T).topk(30)
    votes = torch.zeros(200, CLASSES, dtype=torch.float64)
    votes.scatter_add_(1, bank.labels[index], (cosine / 0.05).exp())
    right = int((votes.argmax(1) == found[:200]).sum())
    return f"{right} of 200 as in float64; {seconds:.0f} s", right == 200


def trained(line: str, seed: int = 0) -> tuple[float, float]:
    """The k-NN's share of right test answers after `python -m nnlib.training LINE`, and the seconds of all of it."""
    with tempfile.TemporaryDirectory() as out:
        words = [*line.split(), "--out", f"{out}/run", "--seed", str(seed), "--no-progress"]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "nnlib.training", *words], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
    share = float(done.stdout.split("test: knn_top1 ")[1].split()[0]) / 100
    return share, time.perf_counter() - started


@claim(f"python -m nnlib.training {DIGITS}: k-NN on test, all of it", "99.0 % in 180 s", "slow")
def digits():
    share, seconds = trained(DIGITS)
    return (
        f"{share:.2%} in {seconds:.0f} s, seed 0, epoch chosen on validation",
        share >= 0.99 and seconds <= 180,
    )


@claim(f"python -m nnlib.training {QUICK}: k-NN on test, 3 seeds, each in 180 s", "95 %", "gpu")
def colours_on_a_gpu():
    if not torch.cuda.is_available():
        raise NotMeasured("no GPU here")
    found = [trained(QUICK, seed) for seed in range(3)]
    shares, seconds = zip(*found, strict=True)
    return f"{min(shares):.2%} ... {max(shares):.2%} in {max(seconds):.0f} s at most", (
        min(shares) >= 0.95 and max(seconds) <= 180
    )


@claim(f"what two cores can do: python -m nnlib.training {COLOURS}", "shown, not held", "data")
def colours():
    share, seconds = trained(COLOURS)
    return f"{share:.2%} in {seconds:.0f} s; not measured on a GPU", True


@claim(
    "kill -9 at 20 random moments, --resume auto: all as of an undisturbed run", "20 of 20", "slow"
)
def killed():
    return _killed(20)


def _killed(times: int) -> tuple[str, bool]:
    import test_training as cases

    same = hit = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = cases.planted(Path(folder) / "tree")
        settings = cases.Settings(
            str(tree), f"{folder}/whole", **cases.SMALL | {"save_steps": 1, "epochs": 8}
        )
        cases.train(settings)
        for at in range(times):
            moment = random.Random(at).uniform(0, 0.4)
            part = replace(settings, out=f"{folder}/part{at}", resume="auto")
            try:
                hit += cases.killed_run_goes_on(moment, settings, part) == -signal.SIGKILL
                same += 1
            except AssertionError as difference:
                print(difference)
    return f"{same} of {times} the same, {hit} killed before they ended", same == times
