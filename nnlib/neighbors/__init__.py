"""Estimators over centers: all samples, condensed, learned, stacked, and metrics for them."""

from nnlib.neighbors.all_samples import NeighborsClassifier, NeighborsRegressor
from nnlib.neighbors.classifier import DynamicClassifier
from nnlib.neighbors.metric_learning import NCATransformer
from nnlib.neighbors.prototypes import PrototypeClassifier
from nnlib.neighbors.regressor import DynamicRegressor
from nnlib.neighbors.stacking import DeepClassifier, StackedClassifier

__all__ = [
    "DeepClassifier",
    "DynamicClassifier",
    "DynamicRegressor",
    "NCATransformer",
    "NeighborsClassifier",
    "NeighborsRegressor",
    "PrototypeClassifier",
    "StackedClassifier",
]
