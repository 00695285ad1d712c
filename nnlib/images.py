"""`python -m nnlib.images` is `python -m nnlib.image_codec` by its earlier name."""

import sys

from nnlib.image_codec.__main__ import main

if __name__ == "__main__":
    print("python -m nnlib.images is now python -m nnlib.image_codec", file=sys.stderr)
    sys.exit(main())
