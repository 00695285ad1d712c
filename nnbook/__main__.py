"""`python -m nnbook` is the `nnbook` command."""

import sys

from nnbook.book import main

if __name__ == "__main__":
    sys.exit(main())
