from nnlib.image_codec.bitstream import displayed, rgb_to_opponent, unpack
from nnlib.image_codec.center_fitting import CenterFitter
from nnlib.image_codec.codec import decode, encode, info, samples
from nnlib.image_codec.entropy_coder import CorruptError
from nnlib.image_codec.splatting import metric

__all__ = [
    "CenterFitter",
    "CorruptError",
    "decode",
    "displayed",
    "encode",
    "info",
    "metric",
    "rgb_to_opponent",
    "samples",
    "unpack",
]
