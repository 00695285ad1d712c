"""The checker of shapes in nnlib's signatures; whole numbers pass for floats, as in Python."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
