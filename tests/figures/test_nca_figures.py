"""What is stated of chapter 4: the loss against a whole bank, k-NN, and the training program."""

import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import test_bank
import test_nca
import test_training
import torch
from figures.memory import within
from figures.table import figure

from nnbook.benchmarks.imagenet_cost import CLASSES, DIM, PICTURES, trial
from nnlib.nca import MemoryBank, knn_predict
from nnlib.training import TrainingConfig, train

DIGITS = "mnist -a small --epochs 3 --schedule cosine --warmup 0.4 --validation 0.1 --wd 5e-4"
COLOURS = (
    "cifar10 -a small --epochs 6 --schedule cosine --warmup 1 "
    "--validation 0.05 --wd 5e-4 --watch stale"
)
QUICK = (
    "cifar10 -a resnet18 -b 512 --epochs 24 --lr 0.4 --wd 5e-4 "
    "--schedule cosine --warmup 3 --watch stale -j 4"
)
PROGRAM = "python -m nnlib.training"


@figure("NCA's loss and gradient against float64, T 0.005 to 1, with margins", "1 at most")
def test_loss_error():
    worst = 0.0
    for kind in ("mixed", "separated"):
        x, labels, bank, bank_labels, index = test_nca.sample(kind, n=5000, b=64)
        for temperature in (0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0):
            for margin in (0.0, 0.1):
                how = {"exclude": index, "temperature": temperature, "margin": margin}
                ours, exact = test_nca.both(x, labels, bank, bank_labels, **how)
                bound = 1e-5 * max(1, 0.05 / temperature)
                for value, true in ((ours[0], exact[0]), (ours[1].norm(), exact[1].norm())):
                    worst = max(worst, float(abs(value - true) / (bound * true + 1e-7)))
    return f"{worst:.2f} of the bound, which is 1e-5 max(1, 0.05/T), floor 1e-7", worst <= 1


@figure("NCA's loss over 1,281,167 x 128, B = 256: extra memory", "at most 100 MB", "slow")
def test_loss_memory():
    return within(100, "nca bank", "nca rows")


@figure("the same: time over that of its two bare products", "at most 1.3", "slow")
def test_loss_time():
    trials = [trial(queries=1, repeats=1) for _ in range(5)]
    ratio = statistics.median(each.loss_seconds / each.bare_seconds for each in trials)
    loss = statistics.median(each.loss_seconds for each in trials)
    bare = statistics.median(each.bare_seconds for each in trials)
    return f"{ratio:.2f}: {loss:.2f} s over {bare:.2f} s, medians of 5", ratio <= 1.3


@figure("a bank in 2 shards: loss, gradient, k-NN as of one process", "within 1e-5; half the rows")
def test_shards(tmp_path):
    whole, parts = test_bank._whole(24), test_bank.in_processes((0, 12, 24), tmp_path)
    loss = abs(sum(part["loss"] for part in parts) / 2 - whole["loss"])
    gradient = torch.cat([part["gradient"] for part in parts]) / 2 - whole["gradient"]
    apart = float(max(loss, gradient.abs().max()))
    same = all(
        torch.equal(torch.cat([part[name] for part in parts]), whole[name])
        for name in ("classes", "plain")
    )
    words = f"{apart:.0e} apart, classes {'equal' if same else 'differ'}, "
    return words + f"{[part['here'] for part in parts]} of 101 rows", apart <= 1e-5 and same


@figure("50,000 queries against 1,281,167 x 128, 30 nearest: exact", "200 of 200", "slow")
def test_full_evaluation():
    generator = torch.Generator().manual_seed(0)
    bank = MemoryBank(torch.randint(CLASSES, (PICTURES,), generator=generator), DIM)
    rows = torch.randn(50_000, DIM, generator=generator)
    queries = torch.nn.functional.normalize(rows, dim=1)
    start = time.perf_counter()
    classes = knn_predict(queries, bank)
    seconds = time.perf_counter() - start
    cosine, index = (queries[:200].double() @ bank.memory.double().T).topk(30)
    votes = torch.zeros(200, CLASSES, dtype=torch.float64)
    votes.scatter_add_(1, bank.labels[index], (cosine / 0.05).exp())
    right = int((votes.argmax(1) == classes[:200]).sum())
    return f"{right} of 200 as in float64; {seconds:.0f} s", right == 200


def trained(line: str, folder, seed: int = 0) -> tuple[float, float]:
    """The k-NN's test accuracy after `python -m nnlib.training LINE`, and the seconds of it all."""
    words = [*line.split(), "--out", f"{folder}/run{seed}", "--seed", str(seed), "--no-progress"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "nnlib.training", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    accuracy = float(done.stdout.split("test: knn_top1 ")[1].split()[0]) / 100
    return accuracy, time.perf_counter() - start


@figure(f"{PROGRAM} {DIGITS}: k-NN on test, all of it", "99.0 % in 180 s", "slow")
def test_digits(tmp_path):
    accuracy, seconds = trained(DIGITS, tmp_path)
    words = f"{accuracy:.2%} in {seconds:.0f} s, seed 0, epoch chosen on validation"
    return words, accuracy >= 0.99 and seconds <= 180


@figure(f"{PROGRAM} {QUICK}: k-NN on test, 3 seeds, each in 180 s", "95 %", "gpu")
def test_colours_on_a_gpu(tmp_path):
    runs = [trained(QUICK, tmp_path, seed) for seed in range(3)]
    accuracies, seconds = zip(*runs, strict=True)
    words = f"{min(accuracies):.2%} ... {max(accuracies):.2%} in {max(seconds):.0f} s at most"
    return words, min(accuracies) >= 0.95 and max(seconds) <= 180


@figure(f"what two cores can do: {PROGRAM} {COLOURS}", "shown, not held", "data")
def test_colours(tmp_path):
    accuracy, seconds = trained(COLOURS, tmp_path)
    return f"{accuracy:.2%} in {seconds:.0f} s; not measured on a GPU", True


@figure("kill -9 at 20 moments, --resume auto: as an undisturbed run", "20 of 20", "slow")
def test_killed(tmp_path):
    tree = test_training.planted(tmp_path / "tree")
    small = test_training.SMALL | {"save_steps": 1, "epochs": 8}
    whole = TrainingConfig(str(tree), str(tmp_path / "whole"), **small)
    train(whole)
    same = killed = 0
    for at in range(20):
        part = replace(whole, out=str(tmp_path / f"part{at}"), resume="auto")
        try:
            status = test_training.killed_run_goes_on(
                random.Random(at).uniform(0, 0.4), whole, part
            )
            killed += status == -signal.SIGKILL
            same += 1
        except AssertionError as difference:
            print(difference)
    return f"{same} of 20 the same, {killed} killed before they ended", same == 20
