"""The published language model: windows of character codes, classified by what follows them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnlib._common.serialization import SafetensorsMixin
from nnlib._common.validation import check_int
from nnlib.language.sampling import sample_text
from nnlib.neighbors import DeepClassifier

CODES = 128  # classes; the last stands for every character that isn't ASCII
MIN_PROBABILITY = 2.0**-20  # of each class, where bits are counted
BATCH = 16_384  # windows at a time


@dataclass(eq=False, repr=False)
class WindowModel(SafetensorsMixin, BaseEstimator):
    """Language model that classifies windows of characters by the character that follows.

    A window is `num_features` character codes as plain numbers, under the Euclidean kernel; every
    character beyond code 127 is taken as 127. `stack_` is the fitted DeepClassifier.

    Parameters
    ----------
    num_features : characters of a window
    num_layers, ..., progress : as in DeepClassifier

    References
    ----------
    J. Loverich, Dynamic and Deep Nearest Neighbors (2023).

    Examples
    --------
    >>> model = WindowModel(num_features=2, progress=False).fit("abcabcabcabc")
    >>> model.generate("ab", 4, temperature=0)
    'cabc'
    """

    saved_attributes = ()
    saved_tensors = ()

    num_features: int = 10
    num_layers: int = 1
    splits: int = 1
    exponent: float = -4.0
    epsilon: float = 1e-6
    batch_size: int = 16
    max_neighbors: int = 10_000
    target_accuracy: float = 0.9
    max_count: int = 3
    random_state: int | None = 0
    device: str = "auto"
    progress: bool = True

    def fit(self, text: str) -> "WindowModel":
        """Learn every character of a text that has a full window before it."""
        settings = self.get_params()
        width = check_int("num_features", settings.pop("num_features"))
        self.stack_ = DeepClassifier(kernel="euclidean", **settings).fit(*_samples(text, width))
        return self

    def accuracy(self, text: str) -> float:
        """The fraction of the characters after a full window that are the most likely ones."""
        return self.layer_accuracies(text)[-1]

    def layer_accuracies(self, text: str) -> list[float]:
        """The same by each layer."""
        batches = self._batches(text)
        correct = sum(len(y) * np.array(self.stack_.layer_scores(x, y)) for x, y in batches)
        return (correct / (len(text) - self.stack_.n_features_in_)).tolist()

    def bits_per_character(self, text: str) -> float:
        """The mean of -log2 p of the characters after a full window, where p is 2^-20 at least.

        The published p of a class without centers is 0, which costs infinitely many bits.
        """
        batches = self._batches(text)
        p = torch.cat([self._class_probabilities(x).gather(1, y[:, None]) for x, y in batches])
        p = (1 - CODES * MIN_PROBABILITY) * p + MIN_PROBABILITY
        return -torch.log2(p).mean().item()

    def predict_proba(self, context: str) -> np.ndarray:
        """The probability of every code after a context, which is padded with spaces if short."""
        check_is_fitted(self)
        width = self.stack_.n_features_in_
        codes = torch.cat([_codes(" " * width), _codes(context, "context")])
        p = self._class_probabilities(codes[None, -width:])[0]
        return (p / p.sum()).numpy()

    def generate(
        self, prompt: str, length: int = 100, temperature: float = 1.0, seed: int | None = 0
    ) -> str:
        """Draw what follows a prompt, by probabilities to the power 1 / temperature."""
        _codes(prompt, "prompt")
        alphabet = [chr(code) for code in range(CODES)]
        return sample_text(self.predict_proba, alphabet, prompt, length, temperature, seed)

    def _submodels(self):
        return {"stack": self.stack_}

    def _restore_submodels(self, submodels) -> None:
        self.stack_ = submodels["stack"]
        classes = self.stack_.classes_
        if classes.dtype != np.int64 or classes.min() < 0 or classes.max() >= CODES:
            raise ValueError("it holds other classes than character codes")

    def _batches(self, text: str) -> zip:
        check_is_fitted(self)
        windows, codes = _samples(text, self.stack_.n_features_in_)
        return zip(windows.split(BATCH), codes.split(BATCH), strict=True)

    def _class_probabilities(self, windows: UInt8[Tensor, "B F"]) -> Float[Tensor, "B 128"]:
        """Each code's probability, 0 for those that training never saw."""
        p = torch.zeros(len(windows), CODES, dtype=torch.float64, device="cpu")
        known = torch.from_numpy(self.stack_.classes_)
        p[:, known] = self.stack_.predict_proba(windows).double()
        return p


def _samples(text: str, width: int) -> tuple[UInt8[Tensor, "N F"], Int64[Tensor, " N"]]:
    """All windows of a text, without a copy, and the code after each."""
    codes = _codes(text)
    if len(codes) <= width:
        raise ValueError(f"text has {len(codes)} characters: give more than num_features={width}")
    return codes.unfold(0, width, 1)[:-1], codes[width:].long()


def _codes(text: str, name: str = "text") -> UInt8[Tensor, " N"]:
    if not isinstance(text, str):
        raise ValueError(f"{name} is {type(text).__name__}: give a str")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return torch.from_numpy(codes.clip(max=CODES - 1).astype(np.uint8))
