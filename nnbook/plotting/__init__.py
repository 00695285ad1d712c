"""What chapters draw: figures that several of them share, and pictures that follow sliders."""

from nnbook.plotting import figures, frontier_figures, speed_figures
from nnbook.plotting.canvas import draw_ellipses, render_subset, shrink
from nnbook.plotting.explorer import Explorer
from nnbook.plotting.galleries import (
    Features,
    effective_neighbors,
    extract_features,
    flatten_pixels,
    gallery_explorer,
    neighbor_gallery,
)
from nnbook.plotting.passages import (
    character_probabilities,
    continuation,
    escape_text,
    explain_character,
    passages,
)
from nnbook.plotting.trees import all_pixels, copy_classes, write_tree
from nnbook.plotting.votes import examples_of_classes, votes

__all__ = [
    "Explorer",
    "Features",
    "all_pixels",
    "character_probabilities",
    "continuation",
    "copy_classes",
    "draw_ellipses",
    "effective_neighbors",
    "escape_text",
    "examples_of_classes",
    "explain_character",
    "extract_features",
    "figures",
    "flatten_pixels",
    "frontier_figures",
    "gallery_explorer",
    "neighbor_gallery",
    "passages",
    "render_subset",
    "shrink",
    "speed_figures",
    "votes",
    "write_tree",
]
