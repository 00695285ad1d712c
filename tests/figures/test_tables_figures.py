"""What is stated of tables: estimators at their defaults on raw columns, against tuned rivals."""

from functools import cache

import numpy as np
import pytest
from figures.table import figure
from sklearn import datasets
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from nnlib.neighbors import (
    DynamicClassifier,
    DynamicRegressor,
    NeighborsClassifier,
    NeighborsRegressor,
    PrototypeClassifier,
)

COUNTS = (1, 3, 5, 7, 9, 11, 15, 21, 31, 51, 75, 101)
SPLITS = {"iris": 3, "wine": 3, "diabetes": 3}  # small sets are split by several seeds

CLASSIFIERS = {
    "NeighborsClassifier": NeighborsClassifier(),
    "DynamicClassifier": DynamicClassifier(progress=False),
    "PrototypeClassifier": PrototypeClassifier(progress=False),
}
REGRESSORS = {
    "NeighborsRegressor": NeighborsRegressor(),
    "DynamicRegressor": DynamicRegressor(progress=False),
}


def tuned(neighbors):
    """Standardised k-NN, whose number and weights of neighbors five folds choose."""
    name = type(neighbors).__name__.lower()
    settings = {f"{name}__n_neighbors": COUNTS, f"{name}__weights": ["uniform", "distance"]}
    return GridSearchCV(make_pipeline(StandardScaler(), neighbors), settings, cv=5)


RIVALS = {
    "tuned k-NN": tuned(KNeighborsClassifier()),
    "SVC": SVC(),
    "standardised SVC": make_pipeline(StandardScaler(), SVC()),
    "tuned k-NN regression": tuned(KNeighborsRegressor()),
    "random forest": RandomForestRegressor(random_state=0),
}
MODELS = CLASSIFIERS | REGRESSORS | RIVALS


@cache
def classes():
    """Seven sets of (X, labels): shipped ones, and made ones whose classes overlap."""
    mixed = {"n_features": 20, "n_informative": 5, "flip_y": 0.1, "random_state": 1}
    return {
        "iris": datasets.load_iris(return_X_y=True),
        "wine": datasets.load_wine(return_X_y=True),
        "breast cancer": datasets.load_breast_cancer(return_X_y=True),
        "digits": datasets.load_digits(return_X_y=True),
        "moons": datasets.make_moons(1000, noise=0.3, random_state=0),
        "circles": datasets.make_circles(1000, noise=0.15, factor=0.5, random_state=0),
        "20 columns": datasets.make_classification(1000, **mixed),
    }


@cache
def values():
    """Five sets of (X, targets), noise in all but none of them noise alone."""
    return {
        "diabetes": datasets.load_diabetes(return_X_y=True),
        "Friedman 1": datasets.make_friedman1(1000, noise=1.0, random_state=0),
        "Friedman 2": datasets.make_friedman2(1000, noise=50.0, random_state=0),
        "sine": noisy_sine(),
        "houses": houses(),
    }


def noisy_sine(samples=600):
    draw = np.random.RandomState(0)
    x = draw.uniform(-3, 3, (samples, 1))
    return x, np.sin(2 * x[:, 0]) + 0.2 * draw.randn(samples)


def houses(samples=2000):
    """Prices by income, age, rooms and place, in columns of very different units."""
    draw = np.random.RandomState(1)
    latitude = draw.uniform(32.5, 42, samples)
    longitude = -124 + 0.8 * (42 - latitude) + draw.gamma(2, 1.0, samples)
    income = draw.lognormal(1.2, 0.45, samples)
    age = draw.randint(1, 53, samples)
    rooms = draw.lognormal(1.6, 0.3, samples)
    bedrooms = rooms / 5 * draw.lognormal(0, 0.1, samples)
    people = draw.lognormal(7, 0.8, samples)
    household = draw.lognormal(1, 0.25, samples)
    south = np.hypot(latitude - 34, longitude + 118.3)
    north = np.hypot(latitude - 37.7, longitude + 122.3)
    price = 0.45 * income + 1.5 * np.exp(-np.minimum(south, north)) + 0.006 * age
    price += 0.3 * np.log(rooms / bedrooms) - 0.2 * np.log(household)
    price += 0.35 * draw.randn(samples)
    columns = (income, age, rooms, bedrooms, people, household, latitude, longitude)
    return np.stack(columns, 1), price.clip(0.15, 5)


@cache
def score(model, name):
    """Accuracy or R^2 of a model on a set: the mean over five folds of each seed."""
    if name in classes():
        x, y = classes()[name]
        folds = StratifiedKFold
    else:
        x, y = values()[name]
        folds = KFold
    splits = (folds(5, shuffle=True, random_state=seed) for seed in range(SPLITS.get(name, 1)))
    return np.mean([cross_val_score(MODELS[model], x, y, cv=split).mean() for split in splits])


def gains(model, rival, sets):
    """What a model has over a rival, on each set."""
    return {name: float(score(model, name) - score(rival, name)) for name in sets}


def lowest(gained, factor=1.0):
    """The set where least is gained, in words."""
    name = min(gained, key=gained.get)
    return f"{factor * gained[name]:+.3g} on {name}"


def mean(gained):
    return float(np.mean(list(gained.values())))


@pytest.mark.parametrize("model", CLASSIFIERS)
@figure(
    "{model} on raw columns: accuracy over tuned standardised k-NN's, 7 sets, 5 folds",
    "mean at least 0, worst at least -1 point",
    "slow",
)
def test_accuracy_over_tuned_neighbors(model):
    gained = gains(model, "tuned k-NN", classes())
    words = f"{100 * mean(gained):+.2f} points, worst {lowest(gained, 100)}"
    return words, mean(gained) >= 0 and min(gained.values()) >= -0.01


@pytest.mark.parametrize("model", CLASSIFIERS)
@figure("{model}: accuracy over SVC's defaults, the same", "mean at least 0", "slow")
def test_accuracy_over_support_vectors(model):
    raw = gains(model, "SVC", classes())
    standardised = gains(model, "standardised SVC", classes())
    words = f"{100 * mean(raw):+.2f} points ({100 * mean(standardised):+.2f} over standardised)"
    return words, mean(raw) >= 0


@pytest.mark.parametrize("model", REGRESSORS)
@figure(
    "{model} on raw columns: R^2 over tuned standardised k-NN's, 5 sets, 5 folds",
    "mean at least 0, worst at least -.02",
    "slow",
)
def test_regression_over_tuned_neighbors(model):
    gained = gains(model, "tuned k-NN regression", values())
    words = f"{mean(gained):+.3f}, worst {lowest(gained)}"
    return words, mean(gained) >= 0 and min(gained.values()) >= -0.02


@pytest.mark.parametrize("model", REGRESSORS)
@figure("{model}: R^2 over a random forest's, the same", "mean at least 0", "slow")
def test_regression_over_a_forest(model):
    gained = gains(model, "random forest", values())
    return f"{mean(gained):+.3f}, worst {lowest(gained)}", mean(gained) >= 0


@pytest.mark.parametrize("model", CLASSIFIERS)
@figure(
    "{model}: log loss over standardised 15-NN's, moons and breast cancer",
    "at most 1.05",
    "slow",
)
def test_log_loss(model):
    neighbors = make_pipeline(StandardScaler(), KNeighborsClassifier(15))
    moons = datasets.make_moons(1000, noise=0.35, random_state=0)
    ratios = []
    for x, y in (moons, classes()["breast cancer"]):
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        ours, theirs = (
            log_loss(y, cross_val_predict(each, x, y, cv=folds, method="predict_proba"))
            for each in (MODELS[model], neighbors)
        )
        ratios.append(ours / theirs)
    return f"{ratios[0]:.2f} and {ratios[1]:.2f}", max(ratios) <= 1.05
