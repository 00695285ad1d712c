"""What one would take instead of learned centers, on the same features: rivals of a track.

A library that isn't installed has no line.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator

from sklearn.neighbors import KNeighborsClassifier, NeighborhoodComponentsAnalysis
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import Tensor

from nnbook.benchmarks.tracks import Splits, Track
from nnlib.neighbors import DynamicClassifier, PrototypeClassifier

SOFTMAX = "cosine_softmax"
FEW = 10_000  # samples that are given to what is quadratic in them
SAMPLES = f"{FEW:,} samples"


def voters(k: int, metric: str = "euclidean") -> KNeighborsClassifier:
    """The k nearest of all samples that it is given, with a vote each."""
    return KNeighborsClassifier(k, algorithm="brute", metric=metric)


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


def makers(track: Track, splits: Splits, seed: int) -> dict[str, Callable]:
    """What fits each method."""
    train, few = splits.train, tuple(part[:FEW] for part in splits.train)
    quiet = {"random_state": seed, "progress": False}
    nca = make_pipeline(
        NeighborhoodComponentsAnalysis(32, random_state=seed), KNeighborsClassifier(3)
    )
    network = MLPClassifier((256,), early_stopping=True, random_state=seed)
    centers = PrototypeClassifier(max(track.counts), SOFTMAX, scaling="none", **quiet)
    found = {
        "k nearest": lambda: voters(3).fit(*train),
        "condensed": lambda: DynamicClassifier(rule="published", **quiet).fit(*train),
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


def centers_of(model) -> int:
    """How many samples or centers a model carries along, 0 for a network."""
    model = model[-1] if hasattr(model, "steps") else model
    counts = (getattr(model, name, 0) for name in ("num_neighbors", "n_samples_fit_"))
    return max(*counts, len(getattr(model, "support_", ())))
