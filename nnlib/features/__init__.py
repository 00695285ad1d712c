from nnlib.features.augment import blur, deskew, shifted_copies
from nnlib.features.patches import PatchFeatures

__all__ = ["PatchFeatures", "blur", "deskew", "shifted_copies"]
