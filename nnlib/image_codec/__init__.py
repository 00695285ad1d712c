"""Pictures as centers in a file, and the parts of the codec that are worth looking at."""

from nnlib.errors import CorruptError
from nnlib.image_codec.bitstream import opponent_to_rgb, unpack
from nnlib.image_codec.center_fitting import CenterFitter
from nnlib.image_codec.codec import decode, encode, info

__all__ = ["CenterFitter", "CorruptError", "decode", "encode", "info", "opponent_to_rgb", "unpack"]
