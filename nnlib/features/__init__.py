from nnlib.features.augment import blur, deskew, mirrored_copies, shifted_copies
from nnlib.features.patches import PatchFeatures

__all__ = ["PatchFeatures", "blur", "deskew", "mirrored_copies", "shifted_copies"]
