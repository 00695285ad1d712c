"""Train and test an embedding: `python -m nnlib.training DATA`, or with `torchrun` for `python`.

DATA is a folder as ImageNet's (train/CLASS/*.jpg, val/CLASS/*.jpg), a folder of CLASS/*.jpg, or
mnist, fashion_mnist, cifar10 or cifar100. The published setting is the default: see --help.
"""

import argparse
import os
import sys
from dataclasses import fields

from nnlib.training.config import TrainingConfig
from nnlib.training.trainer import evaluate, train


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with the settings of TrainingConfig."""
    style = argparse.ArgumentDefaultsHelpFormatter
    name = "python -m nnlib.training"
    parser = argparse.ArgumentParser(name, description=__doc__, formatter_class=style)
    parser.add_argument("data", metavar="DATA", help="a folder of pictures, or the name of a set")
    only = "only test what --resume names"
    parser.add_argument("-e", "--evaluate", "--test-only", action="store_true", help=only)
    for setting in fields(TrainingConfig)[1:]:
        flags = [*setting.metadata["flags"], f"--{setting.name.replace('_', '-')}"]
        options = {"dest": setting.name, "default": setting.default}
        options["help"] = setting.metadata["help"]
        if isinstance(setting.default, bool | None):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = type(setting.default)
            options["choices"] = setting.metadata.get("choices")
        parser.add_argument(*dict.fromkeys(flags), **options)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 2 for what can't be done, 130 for Ctrl-C."""
    arguments = vars(make_parser().parse_args(argv))
    run = evaluate if arguments.pop("evaluate") else train
    settings = TrainingConfig(**arguments)
    try:
        result = run(settings)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"nnlib.training: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        advice = f"--resume auto goes on from {settings.folder()}"
        print(f"\nnnlib.training: interrupted; {advice}", file=sys.stderr)
        return 130
    if os.environ.get("RANK", "0") != "0":  # torchrun's processes have parted by now
        return 0
    for row in result.history:
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    figures = [f"{name} {100 * value:.2f} %" for name, value in result.test.items()]
    print(f"test: {', '.join(figures)}")
    print(f"{len(result.trained.features)} training pictures embedded, in {settings.folder()}")
    if result.unread:
        print(f"{len(result.unread)} pictures couldn't be read and were left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
