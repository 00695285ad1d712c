"""Nearest neighbors as one weighted average: y(x) = sum_j softmax_j(s(x, c_j)) v_j."""
# ruff: noqa: F401

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnlib import datasets, image_codec
    from nnlib.attention import Labels, attend, class_log_probabilities, nearest
    from nnlib.language import ContextModel
    from nnlib.nca import MemoryBank, knn_predict, nca_loss
    from nnlib.neighbors import (
        DeepClassifier,
        DynamicClassifier,
        DynamicRegressor,
        NCATransformer,
        NeighborsClassifier,
        NeighborsRegressor,
        PrototypeClassifier,
        StackedClassifier,
    )

__version__ = "0.2.0"
_HOMES = {  # imported on first use, so that `import nnlib` is quick
    "nnlib": "datasets image_codec",
    "nnlib.attention": "Labels attend class_log_probabilities nearest",
    "nnlib.language": "ContextModel",
    "nnlib.nca": "MemoryBank knn_predict nca_loss",
    "nnlib.neighbors": "DeepClassifier DynamicClassifier DynamicRegressor NCATransformer "
    "NeighborsClassifier NeighborsRegressor PrototypeClassifier StackedClassifier",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'nnlib' has no attribute {name!r}")
    home = _HOME_OF[name]
    if home == "nnlib":
        return import_module(f"nnlib.{name}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
