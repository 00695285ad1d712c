"""The estimators, all in one place: what they keep as centers, they vote with."""

from nnlib.classifier import DynamicClassifier
from nnlib.learned import LearnedCenters
from nnlib.metric import LearnedMetric
from nnlib.regressor import DynamicRegressor

__all__ = ["DynamicClassifier", "DynamicRegressor", "LearnedCenters", "LearnedMetric"]
