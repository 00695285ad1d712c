"""`python -m nnbook` is the `nnbook` command."""

import sys

from nnbook.cli import main

if __name__ == "__main__":
    sys.exit(main())
