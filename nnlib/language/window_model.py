"""The published language model: windows of character codes, and the character that follows, as a classification."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnlib._common.files import atomic_folder
from nnlib._common.runtime import check_seed
from nnlib._common.serialization import ModelError, read_settings, write_settings
from nnlib._common.validation import check_int, check_number
from nnlib.neighbors import DeepClassifier

CODES = 128  # classes; the last stands for every character that isn't ASCII
FLOOR = 2.0**-20  # of each class's probability, where bits are counted
BATCH = 16_384  # windows at a time
HEAD, STACK = "windows.json", "stack"
FILES = (HEAD, f"{STACK}/stack.json", f"{STACK}/layer_*.safetensors")


class WindowModel(BaseEstimator):
    """The next character by the summed weight of windows: those it got wrong while it learned, or layers of that.

    A window is `num_features` character codes as plain numbers, under the Euclidean kernel; every character beyond code
    127 is taken as 127. The other settings are DeepClassifier's, which `stack_` is once fitted. Source: Dynamic and
    Deep Nearest Neighbors (J. Loverich, 2023).
    """

    def __init__(
        self,
        num_features: int = 10,
        num_layers: int = 1,
        splits: int = 1,
        exponent: float = -4.0,
        epsilon: float = 1e-6,
        batch_size: int = 16,
        max_neighbors: int = 10_000,
        target_accuracy: float = 0.9,
        max_count: int = 3,
        seed: int | None = 0,
        device: str = "auto",
        progress: bool = True,
    ):
        self.num_features, self.num_layers, self.splits = num_features, num_layers, splits
        self.exponent, self.epsilon, self.batch_size = exponent, epsilon, batch_size
        self.max_neighbors, self.target_accuracy, self.max_count = (
            max_neighbors,
            target_accuracy,
            max_count,
        )
        self.seed, self.device, self.progress = seed, device, progress

    def fit(self, text: str) -> "WindowModel":
        """Learn every character of a text that has a full window before it; ValueError where there is none."""
        settings = self.get_params()
        width = check_int("num_features", settings.pop("num_features"))
        self.stack_ = DeepClassifier(kernel="euclidean", **settings).fit(*_samples(text, width))
        return self

    def accuracy(self, text: str) -> float:
        """The share of the characters with a full window before them that are the most likely one there."""
        return self.layer_accuracies(text)[-1]

    def layer_accuracies(self, text: str) -> list[float]:
        """The same by each layer."""
        right = sum(
            len(y) * np.array(self.stack_.layer_scores(x, y)) for x, y in self._batches(text)
        )
        return (right / (len(text) - self.stack_.n_features_in_)).tolist()

    def bits_per_character(self, text: str) -> float:
        """-log2 of the probability of a character, on average over those with a full window before them.

        Published is 0 for a class without centers, infinitely many bits: here each has 2^-20, and its share of the
        weight counts for the rest. That floor is ours.
        """
        shares = torch.cat(
            [self._class_probabilities(x).gather(1, y[:, None]) for x, y in self._batches(text)]
        )
        return -torch.log2((1 - CODES * FLOOR) * shares + FLOOR).mean().item()

    def predict_proba(self, context: str) -> np.ndarray:
        """The probability of every code after a context, float64 [128], without the floor of `bits_per_character`.

        Of a longer context the last `num_features` characters count; a shorter one is padded with spaces on the left.
        """
        check_is_fitted(self)
        padded = torch.cat([_codes(" " * self.stack_.n_features_in_), _codes(context, "context")])
        share = self._class_probabilities(padded[None, -self.stack_.n_features_in_ :])[0]
        return (share / share.sum()).numpy()

    def generate(
        self, prompt: str, length: int = 100, temperature: float = 1.0, seed: int | None = 0
    ) -> str:
        """Draw what follows a prompt, by probabilities to the power 1 / temperature; at 0 the most likely is taken."""
        check_int("length", length, least=0)
        check_number("temperature", temperature, "[0, inf)", "a number, 0 or more")
        _codes(prompt, "prompt")
        text, generator = "", np.random.default_rng(check_seed(seed))
        for _ in range(length):
            text += chr(_drawn(self.predict_proba(prompt + text), temperature, generator))
        return text

    def save(self, folder: str | Path) -> None:
        """Write a folder, whole or not at all; raises OSError where it holds anything else or can't be written."""
        check_is_fitted(self)
        with atomic_folder(folder, FILES) as part:
            self.stack_.save(part / STACK)
            write_settings(part / HEAD, "WindowModel", {})

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> "WindowModel":
        """Read a folder that `save` wrote, onto the device; raises ModelError, naming what is wrong with any other."""
        read_settings(Path(folder) / HEAD, "WindowModel")
        stack = DeepClassifier.load(Path(folder) / STACK, device)
        if (
            stack.classes_.dtype != np.int64
            or stack.classes_.min() < 0
            or stack.classes_.max() >= CODES
        ):
            raise ModelError(
                f"folder={str(folder)!r} holds other classes than codes: give one that save wrote"
            )
        settings = {
            name: stack.get_params()[name] for name in cls().get_params() if name != "num_features"
        }
        model = cls(stack.n_features_in_, **settings)
        model.stack_ = stack
        return model

    def _batches(self, text: str) -> zip:
        check_is_fitted(self)
        return zip(
            *(part.split(BATCH) for part in _samples(text, self.stack_.n_features_in_)), strict=True
        )

    def _class_probabilities(self, windows: UInt8[Tensor, "B F"]) -> Float[Tensor, "B 128"]:
        """Each code's share of the weight, 0 for those that training never saw."""
        shares = torch.zeros(len(windows), CODES, dtype=torch.float64)
        shares[:, torch.from_numpy(self.stack_.classes_)] = self.stack_.predict_proba(
            windows
        ).double()
        return shares


def _samples(text: str, width: int) -> tuple[UInt8[Tensor, "N F"], Int64[Tensor, " N"]]:
    """All windows of a text, without a copy, and the code after each."""
    codes = _codes(text)
    if len(codes) <= width:
        raise ValueError(
            f"text has {len(codes)} characters: give more than a window of num_features={width}"
        )
    return codes.unfold(0, width, 1)[:-1], codes[width:].long()


def _codes(text: str, name: str = "text") -> UInt8[Tensor, " N"]:
    if not isinstance(text, str):
        raise ValueError(f"{name} is {type(text).__name__}: give a str")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return torch.from_numpy(codes.clip(max=CODES - 1).astype(np.uint8))


def _drawn(
    probabilities: Float[np.ndarray, "128"], temperature: float, generator: np.random.Generator
) -> int:
    if temperature == 0:
        return int(probabilities.argmax())
    with np.errstate(
        divide="ignore", over="ignore"
    ):  # without probability, or far below the most likely
        logs = np.log(probabilities)
        powers = np.exp((logs - logs.max()) / temperature)
    return int(generator.choice(CODES, p=powers / powers.sum()))
