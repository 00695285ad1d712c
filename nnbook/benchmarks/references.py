"""What one would take instead of learned centers, on the same features: rivals of a track.

A library that isn't installed has no line.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsClassifier, NeighborhoodComponentsAnalysis
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import Tensor

from nnbook.benchmarks.tracks import Splits, Track
from nnlib.attention import InverseDistance, Kernel, Labels, UniformKNN, attend
from nnlib.neighbors import DynamicClassifier, PrototypeClassifier

EUCLIDEAN, SOFTMAX = InverseDistance(), "cosine_softmax"
FEW = 10_000  # samples that are given to what is quadratic in them
SAMPLES = f"{FEW:,} samples"


class Voters:
    """k nearest neighbors of a whole training set, by cosines or Euclidean distances."""

    def __init__(self, train: tuple[Tensor, Tensor], count: int = 10, base: Kernel = EUCLIDEAN):
        self.centers = train[0].float()
        self.labels = Labels(train[1], int(train[1].max()) + 1)
        self.kernel = UniformKNN(count, base)

    def score(self, x: Tensor, y: Tensor) -> float:
        """The fraction of x [N, D] whose vote goes to y [N]."""
        votes = attend(x.float(), self.centers, self.labels, self.kernel)
        return (votes.argmax(1) == y).float().mean().item()


def scores(model, splits: Splits) -> dict[str, float]:
    """Accuracies on validation and on test."""
    return {name: float(model.score(*getattr(splits, name))) for name in ("validation", "test")}


def references(track: Track, splits: Splits, seed: int) -> Iterator[dict]:
    """Rows of the methods that the track asks for, without a learned metric."""
    scale = splits.train[0].float().std()
    splits = Splits(*((x.float() / scale, y) for x, y in splits))
    for method, make in makers(track, splits, seed).items():
        if method.startswith(track.references):
            start = time.perf_counter()
            model = make()
            row = {"method": method, "centers": centers_of(model)}
            row["seconds"] = time.perf_counter() - start
            yield row | scores(model, splits)
    if "ridge".startswith(track.references):
        yield ridge_guesses(splits, seed)


def makers(track: Track, splits: Splits, seed: int) -> dict[str, Callable]:
    """What fits each method."""
    train, few = splits.train, tuple(part[:FEW] for part in splits.train)
    quiet = {"seed": seed, "progress": False}
    nca = make_pipeline(
        NeighborhoodComponentsAnalysis(32, random_state=seed), KNeighborsClassifier(3)
    )
    network = MLPClassifier((256,), early_stopping=True, random_state=seed)
    centers = PrototypeClassifier(max(track.counts), SOFTMAX, **quiet)
    found = {
        "k nearest": lambda: Voters(train, 3),
        "condensed": lambda: DynamicClassifier(**quiet).fit(*train),
        "condensed, three passes": lambda: DynamicClassifier(passes=3, **quiet).fit(*train),
        f"scikit-learn's NCA, {SAMPLES}": lambda: nca.fit(*few),
        "learned centers, no metric": lambda: centers.fit(*train),
        f"support vectors, {SAMPLES}": lambda: SVC(C=10, gamma="scale").fit(*few),
        "small network": lambda: network.fit(*train),
    }
    if importlib.util.find_spec("imblearn"):  # which `pip install -e ".[peers]"` fetches
        found[f"imbalanced-learn's condensed, {SAMPLES}"] = lambda: resampled(few, seed)
    return found


def resampled(train: tuple[Tensor, Tensor], seed: int) -> KNeighborsClassifier:
    """The nearest of the samples that imbalanced-learn's condensed rule keeps."""
    from imblearn.under_sampling import CondensedNearestNeighbour

    samples = CondensedNearestNeighbour(random_state=seed).fit_resample(*train)
    return KNeighborsClassifier(1).fit(*samples)


def ridge_guesses(splits: Splits, seed: int, count: int = 100) -> dict:
    """A row of centers that learn from least squares' guesses for samples left out."""
    start, (x, y) = time.perf_counter(), splits.train
    alphas = np.logspace(-5, 2, 15) * len(x)
    ridge = RidgeCV(alphas, scoring="neg_mean_squared_error", store_cv_results=True)
    ridge.fit(x.numpy(), torch.nn.functional.one_hot(y).float().numpy())
    left_out = ridge.cv_results_[..., list(ridge.alphas).index(ridge.alpha_)].astype(np.float32)
    model = PrototypeClassifier(count, SOFTMAX, seed=seed, progress=False).fit(left_out, y)
    guesses = [(torch.from_numpy(ridge.predict(x.numpy())).float(), y) for x, y in splits[1:]]
    row = {"method": "learned centers on ridge guesses", "centers": count}
    row["seconds"] = time.perf_counter() - start
    return row | scores(model, Splits(splits.train, *guesses))


def centers_of(model) -> int:
    """How many samples or centers a model carries along, 0 for a network."""
    if isinstance(model, Voters):
        return len(model.centers)
    model = model[-1] if hasattr(model, "steps") else model
    counts = (getattr(model, name, 0) for name in ("num_neighbors", "n_samples_fit_"))
    return max(*counts, len(getattr(model, "support_", ())))
