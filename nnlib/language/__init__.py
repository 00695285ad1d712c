"""Language models whose earlier passages vote on the next character."""

from nnlib.language.coding import decode, encode
from nnlib.language.context_model import ContextModel
from nnlib.language.window_model import WindowModel

__all__ = ["ContextModel", "WindowModel", "decode", "encode"]
