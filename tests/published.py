"""The estimators by the published rule, under which what becomes a center is known exactly."""

from functools import partial

from nnlib.neighbors import DynamicClassifier, DynamicRegressor

PublishedClassifier = partial(DynamicClassifier, rule="published")
PublishedRegressor = partial(DynamicRegressor, rule="published")
