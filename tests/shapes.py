"""The checker of shapes in nnlib's signatures; whole numbers pass for floats, as in Python."""

import random
from unittest.mock import patch

with patch("random.getrandbits", random.Random(0).getrandbits):  # or it moves the global generator
    from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
