"""`python -m nnlib.train` is `python -m nnlib.training` by its earlier name."""

import sys

from nnlib.training.__main__ import main

if __name__ == "__main__":
    print("python -m nnlib.train is now python -m nnlib.training", file=sys.stderr)
    sys.exit(main())
