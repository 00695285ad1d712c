"""`python -m nnlib.training DATA`, or `torchrun --nproc_per_node 8 -m nnlib.training DATA`: train and test an embedding.

DATA is a folder as ImageNet's (train/CLASS/*.jpg, val/CLASS/*.jpg), a folder of CLASS/*.jpg, or mnist, fashion_mnist,
cifar10 or cifar100. The published setting is the default: see --help.
"""

import argparse
import os
import sys

from nnlib.training.config import CHOICES, TrainingConfig
from nnlib.training.encoders import ARCHITECTURES
from nnlib.training.objectives import LOSSES
from nnlib.training.trainer import Result, evaluate, train

OPTIONS = {  # flags -> what they mean; types and defaults are those of Settings
    "-a --arch": "architecture",
    "--low-dim": "length of a feature",
    "--loss": "nca; instance, without labels; or softmax, as a baseline",
    "--temperature": "T of exp(cos/T), in training and voting",
    "--margin": "by how much the own class has to lead, in cosines",
    "--memory-momentum": "share of a bank row that is kept; 0.8 and 0.9 late, as published",
    "--start": "the bank's first rows: random, as published; embedded by the first weights; auto: so without labels",
    "-b --batch-size": "pictures a batch, those of all processes together",
    "--iter-size": "batches a step",
    "--epochs": "passes over the pictures",
    "--lr": "learning rate",
    "--momentum": "of the gradients",
    "--wd --weight-decay": "of all weights",
    "--schedule": "step: a tenth after 40, 80, 120 of 130 epochs; or cosine",
    "--warmup": "epochs over which the rate rises",
    "--size": "side that pictures of a folder are brought to",
    "--crop": "smallest share of a picture's area that is trained on",
    "--validation": "share of the training pictures that the epoch is chosen on",
    "--watch": "embed the bank anew for that, or take the one of the steps before, which costs nothing",
    "-k": "neighbors that vote",
    "-j --workers": "processes that read pictures, for each process that trains",
    "--save-steps": "save so often within an epoch too; 0: at its end",
    "--out": "folder for what is left: runs/DATA-ARCH-LOSS by default",
    "--resume": "auto: go on with what --out has; or a checkpoint, a folder, or a published snca_*.pth.tar",
    "--precision": "auto: bfloat16 for the network on a GPU",
    "--device": "auto, cpu, cuda or mps",
    "--seed": "draws the split, the order, the augmentation and the first weights",
}
KNOWN = CHOICES | {"arch": ARCHITECTURES, "loss": LOSSES}


def parser() -> argparse.ArgumentParser:
    """The command line's options, with the types and defaults of Settings."""
    shown = argparse.ArgumentDefaultsHelpFormatter
    line = argparse.ArgumentParser(
        "python -m nnlib.training", description=__doc__, formatter_class=shown
    )
    line.add_argument("data", metavar="DATA", help="a folder of pictures, or the name of a set")
    for flags, meaning in OPTIONS.items():
        name = flags.split()[-1].lstrip("-").replace("-", "_")
        default = getattr(TrainingConfig, name)
        how = {
            "dest": name,
            "type": type(default),
            "default": default,
            "choices": KNOWN.get(name),
            "help": meaning,
        }
        line.add_argument(*flags.split(), **how)
    line.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="whether a mirrored picture is as good",
    )
    line.add_argument(
        "--pretrained", action="store_true", help="start from torchvision's ImageNet weights"
    )
    line.add_argument(
        "-e", "--evaluate", "--test-only", action="store_true", help="only test what --resume names"
    )
    line.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, default=True, help="show a bar"
    )
    return line


def told(result: Result, settings: TrainingConfig) -> str:
    """A result in lines."""
    lines = [f"{name} {100 * share:.2f} %" for name, share in result.test.items()]
    kept = f"{len(result.trained.features)} training pictures embedded, in {settings.folder()}"
    unread = (
        [f"{len(result.unread)} pictures couldn't be read and were left out"]
        if result.unread
        else []
    )
    return "\n".join([f"test: {', '.join(lines)}", kept, *unread])


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 2 for what can't be done, 130 for Ctrl-C."""
    line = parser()
    given = vars(line.parse_args(argv))
    only_test = given.pop("evaluate")
    settings = TrainingConfig(**given)
    try:
        result = (evaluate if only_test else train)(settings)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"nnlib.training: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nnnlib.training: interrupted; --resume auto goes on from {settings.folder()}",
            file=sys.stderr,
        )
        return 130
    if os.environ.get("RANK", "0") == "0":  # those that torchrun started have parted by now
        for row in result.history:
            print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
        print(told(result, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
