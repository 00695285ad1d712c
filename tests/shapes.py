"""The checker that holds calls to the shapes in nnlib's signatures; whole numbers pass for floats, as Python has it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
