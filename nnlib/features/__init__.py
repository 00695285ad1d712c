"""What pictures are turned into without labels: copies, straightened digits, patches."""

from nnlib.features.augment import blur, deskew, mirrored_copies, shifted_copies
from nnlib.features.augment import center_box as center_box
from nnlib.features.augment import random_box as random_box
from nnlib.features.patches import PatchFeatures
from nnlib.features.pixels import pixel_samples

__all__ = ["PatchFeatures", "blur", "deskew", "mirrored_copies", "pixel_samples", "shifted_copies"]
