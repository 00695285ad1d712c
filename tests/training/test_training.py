"""Training runs: what they leave, that they go on as if never interrupted, what they refuse."""

import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from test_published import linear_average, write  # noqa: F401

from nnlib._common.runtime import single_thread
from nnlib.errors import DataError
from nnlib.nca import embed
from nnlib.training import TrainingConfig, open_pictures, train
from nnlib.training.__main__ import main
from nnlib.training.checkpoints import FEATURES, LAST, WEIGHTS, read_any, read_network
from nnlib.training.image_data import epoch_batches
from nnlib.training.trainer import Trainer, evaluate

SMALL = {
    "arch": "small",
    "low_dim": 8,
    "batch_size": 4,
    "epochs": 2,
    "size": 8,
    "lr": 0.02,
    "validation": 0.2,
}
SMALL |= {"device": "cpu", "progress": False, "k": 5}
LEFT = {"last.pt", "log.csv", WEIGHTS, FEATURES}


@pytest.fixture(autouse=True)
def calm():
    with single_thread():
        yield


def planted(root, train=10, val=3, classes="abc", noise=40):
    """Pictures whose classes are shades in noise."""
    g = np.random.default_rng(0)
    for half, count in (("train", train), ("val", val)):
        for at, name in enumerate(classes):
            (root / half / name).mkdir(parents=True)
            for number in range(count):
                shade = g.normal(40 + 80 * at, noise, (10, 10, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(shade).save(root / half / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def how(tree, tmp_path):
    return TrainingConfig(str(tree), str(tmp_path / "run"), **SMALL)


def flags(settings, *more):
    """The command line of some settings."""
    line = [settings.data]
    for name, value in vars(settings).items():
        if name in ("progress", "data") or value == getattr(TrainingConfig, name, None):
            continue
        line += ["-k" if name == "k" else f"--{name.replace('_', '-')}", str(value)]
    return [*line, "--no-progress", *map(str, more)]


def rows(folder):
    """The history without its times, which no two runs share."""
    history = read_any(folder)["history"]
    return [{name: each for name, each in row.items() if name != "seconds"} for row in history]


def read_features(folder):
    """Features, labels, classes and files of the training pictures that a run left."""
    with safe_open(folder / FEATURES, "pt") as file:
        names = [json.loads(file.metadata()[name]) for name in ("classes", "files")]
        return file.get_tensor("features"), file.get_tensor("labels"), *map(tuple, names)


def same_files(one, two):
    for name in (WEIGHTS, FEATURES):
        left, right = load_file(one / name), load_file(two / name)
        assert left.keys() == right.keys() and all(
            torch.equal(left[key], right[key]) for key in left
        )
    assert rows(one) == rows(two)


# ---- what a run leaves


@pytest.mark.parametrize(
    "given",
    [{}, {"loss": "instance", "temperature": 0.1}, {"loss": "softmax"},
     {"margin": 0.1, "watch": "stale"}, {"validation": 0},
     {"schedule": "cosine", "warmup": 0.5, "iter_size": 2, "flip": False, "workers": 1}],
)  # fmt: skip
def test_a_run_leaves_what_it_promises(how, given):
    settings = replace(how, **given)
    result, folder = train(settings), settings.folder()
    assert {file.name for file in folder.iterdir()} == LEFT
    assert [row["epoch"] for row in result.history] == [0, 1] and len(rows(folder)) == 2
    assert pd.read_csv(folder / "log.csv").to_dict("records") == result.history
    assert ("validation_knn_top1" in result.history[0]) == (settings.validation > 0)
    assert all(0 <= share <= 1 for share in result.test.values()) and not result.unread
    if settings.loss != "instance":
        assert result.test["knn_top1"] > 0.6  # a third by chance
    gallery = open_pictures(*settings.of_pictures()).gallery
    features, labels, classes, files = read_features(folder)
    assert files == result.trained.files == tuple(map(str, gallery.files))
    assert classes == ("a", "b", "c") and torch.equal(labels, gallery.labels)
    assert torch.equal(features, result.trained.features)
    assert torch.allclose(features.norm(dim=1), torch.ones(30), atol=1e-6)
    batches = gallery.in_batches(settings.batch_size)
    assert torch.equal(embed(read_network(folder), batches)[0], features)


def test_the_command_line_does_the_same(how, tmp_path, capsys):
    train(how)
    again = replace(how, out=str(tmp_path / "again"))
    assert main(flags(again)) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("epoch 0, lr 0.02, loss") and out[2].startswith("test: knn_top1 ")
    assert out[3] == f"30 training pictures embedded, in {again.folder()}" and len(out) == 4
    same_files(how.folder(), again.folder())
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0


def training_batches(run):
    return epoch_batches(run.pictures.train, run.steps, 0, 0, run.settings)


def test_a_step_of_several_batches_takes_the_mean_of_their_gradients(how):
    plain = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "cosine"}
    run = Trainer(replace(how, iter_size=2, **plain))
    assert run.steps == 24 // 8
    one, two = (Trainer(replace(how, **plain)) for _ in range(2))
    assert one.steps == 24 // 4
    stream, gradients = training_batches(one), []
    for other in (one, two):
        other.learner.train()
        other._backward(next(stream))
        gradients.append([weight.grad for weight in other.learner.parameters()])
    before = [weight.detach().clone() for weight in run.learner.parameters()]
    run.learner.train()
    run._train_step(training_batches(run))
    for was, now, first, second in zip(before, run.learner.parameters(), *gradients, strict=True):
        assert torch.allclose(was - now, 0.02 * (first + second) / 2, atol=1e-7)


def test_the_best_epoch_is_kept(tmp_path, monkeypatch):
    settings = TrainingConfig(
        str(planted(tmp_path / "tree", noise=200)), str(tmp_path / "run"), **SMALL | {"epochs": 5}
    )
    met, save = [], Trainer.save

    def noted(run):
        met.append(
            {name: tensor.clone() for name, tensor in run.learner.network.state_dict().items()}
        )
        save(run)

    monkeypatch.setattr(Trainer, "save", noted)
    figures = [row["validation_knn_top1"] for row in train(settings).history]
    at = max(range(5), key=lambda epoch: (figures[epoch], epoch))  # of equal ones the last
    best = met[at]
    assert at < 4, "the pictures have to be such that another epoch than the last is the best"
    found = load_file(settings.folder() / WEIGHTS)
    assert all(torch.equal(found[name], best[name]) for name in found)
    after = evaluate(
        replace(settings, resume=str(settings.folder()), out=str(tmp_path / "elsewhere"))
    )
    assert torch.equal(after.trained.features, read_features(settings.folder())[0])


def test_rates():
    published = TrainingConfig("x")
    assert [round(published.lr_at(e), 9) for e in (0, 39.9, 40, 80, 120)] == [
        0.1,
        0.1,
        0.01,
        0.001,
        0.0001,
    ]
    warm = TrainingConfig("x", schedule="cosine", warmup=2, epochs=10)
    assert warm.lr_at(0) == 0 and warm.lr_at(1) == pytest.approx(
        0.05 * (1 + np.cos(0.1 * np.pi)) / 2
    )
    assert warm.lr_at(10) == pytest.approx(0)


def test_bank_momentum_follows_the_published_epochs():
    published = TrainingConfig("x")
    momenta = [published.bank_momentum_at(epoch) for epoch in (0, 79, 80, 119, 120, 129)]
    assert momenta == [0.5, 0.5, 0.8, 0.8, 0.9, 0.9]
    assert TrainingConfig("x", epochs=10, memory_momentum=0.95).bank_momentum_at(9) == 0.95


# ---- broken pictures


def spoil(folder, number=3):
    (folder / f"{number}.png").write_bytes(b"no picture")
    return str(folder / f"{number}.png")


def test_broken_pictures_are_left_out_and_told(tmp_path, capsys):
    tree = planted(tmp_path / "tree")
    broken = [spoil(tree / half) for half in ("train/a", "train/c")]
    (tree / "val/b/0.png").write_bytes(b"")
    settings = TrainingConfig(str(tree), str(tmp_path / "run"), **SMALL | {"epochs": 3})
    assert main(flags(settings)) == 0
    told = capsys.readouterr().out
    assert (
        "3 pictures couldn't be read and were left out" in told
        and "28 training pictures embedded" in told
    )
    assert all(told.count(f"left out: {name} (UnidentifiedImageError") == 1 for name in broken)
    features, _, _, files = read_features(settings.folder())
    assert not set(broken) & set(files) and len(files) == len(features) == 28


@pytest.mark.parametrize("half", ["val", "train"])
def test_a_half_that_cannot_be_read_is_named(tmp_path, half):
    tree = planted(tmp_path / "tree")
    for file in (tree / half).rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=f"data=.*can be read, as .*{half}"):
        train(TrainingConfig(str(tree), str(tmp_path / "run"), **SMALL))


# ---- going on


class Stop(Exception):
    pass


def interrupted(settings, saves, monkeypatch):
    """A run that is stopped after so many saves, as if it had been killed there."""
    save, count = Trainer.save, 0

    def stopping(run):
        nonlocal count
        save(run)
        count += 1
        if count == saves:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "save", stopping)
        train(settings)


@pytest.mark.parametrize(
    ("saves", "given"),
    [
        (2, {"loss": "nca"}),
        (4, {"loss": "nca"}),
        (6, {"loss": "nca"}),
        (9, {"loss": "instance"}),
        (3, {"loss": "softmax", "iter_size": 2}),
    ],
)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(how, tmp_path, saves, given, monkeypatch):
    tree = shutil.copytree(how.data, tmp_path / "tree")
    broken = {spoil(tree / f"train/{name}", number) for name in "abc" for number in (1, 3)}
    settings = replace(how, data=str(tree), size=16, save_steps=1, **given)
    whole = train(settings)
    part = replace(settings, out=str(tmp_path / "part"), resume="auto")
    interrupted(part, saves, monkeypatch)
    rest = train(part)
    same_files(settings.folder(), part.folder())
    assert rest.test == whole.test and rest.unread == whole.unread
    assert {name.split(" (")[0] for name in rest.unread} == broken
    once_more = train(part)
    assert once_more.test == whole.test and torch.equal(
        once_more.trained.features, whole.trained.features
    )


def killed_run(moment, settings):
    """Kill a run in its own process, `moment` seconds after its first save; return its status."""
    command = [sys.executable, "-m", "nnlib.training", *flags(settings)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)
    while not (settings.folder() / LAST).exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def killed_run_goes_on(moment, settings, part):
    """Kill a run at a moment and go on with it; what it leaves is what the whole run left."""
    status = killed_run(moment, part)
    train(part)
    same_files(settings.folder(), part.folder())
    assert {file.name for file in part.folder().iterdir()} == LEFT
    return status


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(how, tmp_path):
    settings = replace(how, save_steps=1, epochs=8)
    train(settings)
    moments = np.random.default_rng().uniform(0, 0.1, 2)
    statuses = [
        killed_run_goes_on(
            moment, settings, replace(settings, out=str(tmp_path / f"part{at}"), resume="auto")
        )
        for at, moment in enumerate(moments)
    ]
    assert -signal.SIGKILL in statuses, "both had ended by then: kill earlier"


def test_what_is_there_is_not_written_over(how, tmp_path, capsys):
    fresh = replace(how, resume="auto")
    train(fresh)  # nothing to go on with: it starts
    other = replace(how, out=str(tmp_path / "other"))
    train(replace(other, resume=str(how.folder() / WEIGHTS)))  # and this one from those weights
    before = (how.folder() / LAST).read_bytes()
    for resume in ("", str(other.folder()), str(other.folder() / WEIGHTS)):
        refused(capsys, flags(replace(how, resume=resume)), "has a run in it: give resume='auto'")
        assert (how.folder() / LAST).read_bytes() == before
    for resume in (str(how.folder()), str(how.folder() / LAST)):
        assert main(flags(replace(how, resume=resume))) == 0


def test_a_run_goes_on_in_another_folder_with_its_best_weights(how, tmp_path, monkeypatch):
    whole = train(replace(how, out=str(tmp_path / "whole")))
    interrupted(how, 1, monkeypatch)
    moved = replace(how, out=str(tmp_path / "moved"), resume=str(how.folder() / LAST))
    assert train(moved).test == whole.test
    same_files(tmp_path / "whole", moved.folder())
    assert len(read_any(how.folder())["history"]) == 1


# ---- several processes


def _worker(rank, store, whole, part, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", world_size=2, rank=rank)
    _half_a_run(rank, whole, part, folder)
    gc.collect()  # networks that hold the group would keep its threads past Python's end
    torch.distributed.destroy_process_group()


def _half_a_run(rank, whole, part, folder):
    """Half of a run that is interrupted and goes on."""
    run = Trainer(whole)
    torch.save(
        {"here": len(run.objective.bank.memory), "all": len(run.objective.bank)},
        folder / f"{rank}.pt",
    )
    interrupted(part, 3, pytest.MonkeyPatch())
    if rank == 0:
        shutil.copytree(part.folder(), folder / "alone")
    torch.distributed.barrier()
    result = train(part)
    torch.save({"test": result.test, "unread": result.unread}, folder / f"result{rank}.pt")


@pytest.mark.slow
def test_two_processes(tmp_path):
    tree = planted(tmp_path / "tree", val=2, classes="ab")
    broken = [spoil(tree / f"train/{name}") for name in "ab"]
    settings = TrainingConfig(
        str(tree),
        str(tmp_path / "run"),
        **SMALL | {"save_steps": 2, "validation": 0.01, "size": 16},
    )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
    ]
    ran = subprocess.run(
        [*launch, "nnlib.training", *flags(settings)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    told = ran.stdout.decode()
    assert ran.returncode == 0, ran.stderr.decode()
    assert (
        told.count("test: knn_top1") == 1
        and "2 pictures couldn't be read and were left out" in told
    )
    assert {file.name for file in settings.folder().iterdir()} == LEFT
    features, _, _, files = read_features(settings.folder())
    gallery = open_pictures(*settings.of_pictures()).gallery
    assert files == tuple(str(file) for file in gallery.files if str(file) not in broken)
    shown = embed(read_network(settings.folder()), gallery.in_batches(4))[0]
    assert torch.allclose(features, shown, atol=1e-5)

    part = replace(settings, out=str(tmp_path / "part"), resume="auto")
    mp.spawn(
        _worker,
        (tmp_path / "store", replace(settings, out=str(tmp_path / "new")), part, tmp_path),
        nprocs=2,
    )
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found[0] == found[1] == {"here": 9, "all": 18}
    same_files(settings.folder(), part.folder())
    results = [torch.load(tmp_path / f"result{rank}.pt") for rank in range(2)]
    assert results[0] == results[1] and len(results[0]["unread"]) == 2

    alone = replace(settings, out=str(tmp_path / "alone"), resume="auto")
    result = train(alone)
    assert len(result.history) == 2 and len(result.unread) == 2 and result.test["knn_top1"] >= 0.5
    evaluated = evaluate(replace(settings, resume="auto"))
    assert torch.allclose(evaluated.trained.features, features, atol=1e-5)


# ---- what is refused


def refused(capsys, line, *words):
    """The command line ends with 2 and one line on stderr that holds the words."""
    capsys.readouterr()
    assert main([str(word) for word in line]) == 2
    told = capsys.readouterr().err
    assert told.startswith("nnlib.training: ") and told.count("\n") == 1 and told.endswith("\n"), (
        told
    )
    for word in words:
        assert word in told, told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--batch-size", 1], ["batch_size=1 can't", "2 or more"]),
        (["--batch-size", 25], ["batch_size x iter_size is 25, for 24 pictures"]),
        (["--iter-size", 7], ["batch_size x iter_size is 28, for 24 pictures"]),
        (["--lr", "nan"], ["lr=nan"]),
        (["--lr", "-1"], ["lr=-1.0"]),
        (["--temperature", 0], ["temperature=0.0"]),
        (["--margin", "nan"], ["margin=nan"]),
        (["--wd", "-1"], ["weight_decay=-1.0"]),
        (["--warmup", "-1"], ["warmup=-1.0"]),
        (["--momentum", 1], ["momentum=1.0"]),
        (["--epochs", 0], ["epochs=0"]),
        (["--validation", 1.5], ["validation=1.5"]),
        (["--crop", 0], ["crop=0.0"]),
        (["--size", 4], ["size=4"]),
        (["--device", "abacus"], ["device='abacus'"]),
        (["--pretrained"], ["pretrained", "arch='small'"]),
        (["--evaluate"], ["resume=''"]),
        (["--evaluate", "--resume", "auto"], ["resume='auto'", "no run in it"]),
        (["--lr", 1e9], ["lr=1000000000.0: the loss is nan", "give less"]),
        (["--out", "/proc/nowhere"], ["out='/proc/nowhere'"]),
    ],
)
def test_settings_that_do_not_fit_are_named(how, more, words, capsys):
    refused(capsys, flags(how, *more), *words)


def test_paths_that_do_not_fit_are_named(how, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    refused(capsys, flags(how, "--out", tmp_path / "file"), f"out='{tmp_path}/file'")
    assert (tmp_path / "file").read_text() == "mine"
    for data in (tmp_path / "nowhere", tmp_path / "file"):
        refused(capsys, [data, *flags(how)[1:]], f"data='{data}' is no folder")
    for resume in (tmp_path / "nowhere", tmp_path / "nowhere.safetensors", tmp_path):
        refused(capsys, flags(how, "--resume", resume), f"resume='{resume}'")


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_checkpoints_that_cannot_be_read_are_named_and_not_run(how, tmp_path, capsys):
    bomb, marker = tmp_path / "bomb.pt", tmp_path / "marker"
    bomb.write_bytes(pickle.dumps(Bomb(marker)))
    torch.save({"format": "nnlib.training.1", "settings": Bomb(marker)}, tmp_path / "zipped.pt")
    torch.save({"format": "nnlib.training.1"}, tmp_path / "hollow.pt")
    for name in ("bomb.pt", "zipped.pt", "hollow.pt"):
        refused(capsys, flags(how, "--resume", tmp_path / name), f"resume='{tmp_path / name}'")
        refused(
            capsys,
            flags(how, "--evaluate", "--resume", tmp_path / name),
            f"resume='{tmp_path / name}'",
        )
    assert not marker.exists()


def test_a_checkpoint_of_another_version_is_named(how, tmp_path, capsys):
    torch.save({"format": "nnlib.training.9"}, tmp_path / LAST)
    line = flags(how, "--resume", tmp_path)
    refused(capsys, line, "nnlib.training.9", "'nnlib.training.1'", "the version that wrote it")


def test_a_run_with_its_best_weights_in_a_file_of_their_own_goes_on(how, tmp_path):
    """As runs were left once: resumed and evaluated from last.pt with best.pt beside it."""
    whole = train(how)
    old = tmp_path / "old"
    old.mkdir()
    state = torch.load(how.folder() / LAST, weights_only=True)
    torch.save(state.pop("best_weights"), old / "best.pt")
    torch.save(state, old / LAST)
    for run, resume in ((train, old / LAST), (evaluate, old)):
        out = str(tmp_path / run.__name__)
        assert run(replace(how, out=out, resume=str(resume))).test == whole.test
    left, right = (load_file(path / WEIGHTS) for path in (how.folder(), tmp_path / "train"))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_other_checkpoints_are_named(how, tmp_path, capsys):
    train(how)
    capsys.readouterr()
    other = replace(how, out=str(tmp_path / "other"), resume=str(how.folder()))
    for name, given, word in (
        ("arch", "resnet18", "arch='small'"),
        ("low_dim", 9, "low_dim=8"),
        ("seed", 1, "seed=0"),
    ):
        refused(
            capsys,
            flags(replace(other, **{name: given})),
            f"resume='{how.folder()}'",
            word,
            "give the same",
        )
    weights = replace(other, resume=str(how.folder() / WEIGHTS), low_dim=9)
    refused(
        capsys,
        flags(weights),
        f"resume='{weights.resume}'",
        "doesn't fit",
        "low_dim",
    )
    more = planted(tmp_path / "more", train=11)
    refused(capsys, flags(replace(other, data=str(more))), "was trained on other pictures", "more")
    for length in (0, 100, -20):
        last = tmp_path / "cut" / LAST
        last.parent.mkdir(exist_ok=True)
        last.write_bytes((how.folder() / LAST).read_bytes()[:length])
        refused(
            capsys,
            flags(replace(other, out=str(last.parent), resume="auto")),
            "resume='auto'",
            str(last),
        )


# ---- published checkpoints


def test_a_published_checkpoint_is_evaluated(how, tmp_path, write, capsys):  # noqa: F811
    from torchvision.models import resnet18

    encoder = torch.nn.DataParallel(resnet18(num_classes=128))
    path = write(False, state_dict=encoder.state_dict())
    tree = planted(tmp_path / "few", train=3, val=1, classes="ab")
    settings = replace(
        how, data=str(tree), arch="resnet18", low_dim=128, size=112, resume=str(path), batch_size=2
    )
    assert main(flags(settings, "--evaluate")) == 0
    assert "6 training pictures embedded" in capsys.readouterr().out
    found = load_file(settings.folder() / WEIGHTS)
    assert torch.equal(found["backbone.conv1.weight"], encoder.module.conv1.weight)
    refused(
        capsys, flags(replace(settings, size=32), "--evaluate"), f"resume='{path}'", "conv1", "size"
    )
    refused(
        capsys,
        flags(replace(settings, arch="small"), "--evaluate"),
        "architecture is resnet18, not small",
    )
    refused(capsys, flags(replace(settings, low_dim=8), "--evaluate"), "doesn't fit", "low_dim")
