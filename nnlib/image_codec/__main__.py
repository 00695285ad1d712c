"""`python -m nnlib.image_codec encode | decode | info`."""

import sys

from nnlib.image_codec.codec import main

if __name__ == "__main__":
    sys.exit(main())
