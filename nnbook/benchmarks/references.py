"""What one would take instead of learned centers, on the same features: the reference lines of a track.

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

from nnbook.benchmarks.tracks import Halves, Track
from nnlib.attention import InverseDistance, Kernel, Labels, UniformKNN, attend
from nnlib.neighbors import DynamicClassifier, PrototypeClassifier

EUCLIDEAN, SOFTMAX = InverseDistance(), "cosine_softmax"
FEW = 10_000  # samples that are given to what is quadratic in them
SAMPLES = f"{FEW:,} samples"


class Voters:
    """k nearest neighbors of a whole training set, by cosines of unit rows or Euclidean distances."""

    def __init__(self, train: tuple[Tensor, Tensor], count: int = 10, by: Kernel = EUCLIDEAN):
        self.centers, self.labels, self.kernel = train[0].float(), train[1], UniformKNN(count, by)

    def score(self, x: Tensor, y: Tensor) -> float:
        """The share of x [N, D] whose vote goes to y [N]."""
        shares = attend(
            x.float(), self.centers, Labels(self.labels, int(self.labels.max()) + 1), self.kernel
        )
        return (shares.argmax(1) == y).float().mean().item()


def scores(model, sets: Halves) -> dict[str, float]:
    """Accuracies on validation and on test."""
    return {name: float(model.score(*getattr(sets, name))) for name in ("validation", "test")}


def references(track: Track, sets: Halves, seed: int) -> Iterator[dict]:
    """Rows on the track's features, without a learned metric: those methods that the track asks for."""
    sets = Halves(*((x.float() / sets.train[0].float().std(), y) for x, y in sets))
    for method, make in makers(track, sets, seed).items():
        if method.startswith(track.beside):
            start = time.perf_counter()
            model = make()
            seconds = time.perf_counter() - start
            yield {"method": method, "centers": centers_of(model), "seconds": seconds} | scores(
                model, sets
            )
    if "ridge".startswith(track.beside):
        yield guessed(sets, seed)


def makers(track: Track, sets: Halves, seed: int) -> dict[str, Callable]:
    """What fits each method."""
    train, few = sets.train, tuple(part[:FEW] for part in sets.train)
    most, ours = max(track.counts), {"seed": seed, "progress": False}
    found = {
        "k nearest": lambda: Voters(train, 3),
        "condensed": lambda: DynamicClassifier(**ours).fit(*train),
        "condensed, three passes": lambda: DynamicClassifier(passes=3, **ours).fit(*train),
        f"scikit-learn's NCA, {SAMPLES}": lambda: make_pipeline(
            NeighborhoodComponentsAnalysis(32, random_state=seed), KNeighborsClassifier(3)
        ).fit(*few),
        "learned centers, no metric": lambda: PrototypeClassifier(most, SOFTMAX, **ours).fit(
            *train
        ),
        f"support vectors, {SAMPLES}": lambda: SVC(C=10, gamma="scale").fit(*few),
        "small network": lambda: MLPClassifier((256,), early_stopping=True, random_state=seed).fit(
            *train
        ),
    }
    if importlib.util.find_spec("imblearn"):  # which `pip install -e ".[peers]"` fetches
        found[f"imbalanced-learn's condensed, {SAMPLES}"] = lambda: resampled(few, seed)
    return found


def resampled(train: tuple[Tensor, Tensor], seed: int) -> KNeighborsClassifier:
    """The nearest of the samples that imbalanced-learn's condensed rule keeps of all classes but the rarest."""
    from imblearn.under_sampling import CondensedNearestNeighbour

    return KNeighborsClassifier(1).fit(
        *CondensedNearestNeighbour(random_state=seed).fit_resample(*train)
    )


def guessed(sets: Halves, seed: int, count: int = 100) -> dict:
    """A row of centers that learn from closed-form guesses, each training sample's being of the fit without it."""
    start, (x, y) = time.perf_counter(), sets.train
    ridge = RidgeCV(
        np.logspace(-5, 2, 15) * len(x), scoring="neg_mean_squared_error", store_cv_results=True
    )
    ridge.fit(x.float().numpy(), torch.nn.functional.one_hot(y).float().numpy())
    left_out = ridge.cv_results_[..., list(ridge.alphas).index(ridge.alpha_)]
    model = PrototypeClassifier(count, SOFTMAX, seed=seed, progress=False).fit(
        left_out.astype(np.float32), y
    )
    sets = Halves(
        sets.train,
        *((torch.from_numpy(ridge.predict(x.float().numpy())).float(), y) for x, y in sets[1:]),
    )
    row = {
        "method": "learned centers on ridge guesses",
        "centers": count,
        "seconds": time.perf_counter() - start,
    }
    return row | scores(model, sets)


def centers_of(model) -> int:
    """How many samples or centers a model carries along, 0 for a network."""
    if isinstance(model, Voters):
        return len(model.centers)
    model = model[-1] if hasattr(model, "steps") else model
    counts = (getattr(model, name, 0) for name in ("num_neighbors", "n_samples_fit_"))
    return max(*counts, len(getattr(model, "support_", ())))
