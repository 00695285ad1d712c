"""A language model of nearest neighbors: the passages of a text that said the same vote on what comes next."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Float64, Integer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError

from nnlib._common.files import atomic_write
from nnlib._common.runtime import check_seed, single_thread
from nnlib._common.serialization import ModelError
from nnlib._common.validation import check, check_int, check_number
from nnlib.language.coding import SCALARS, StreamingPredictor
from nnlib.language.context_orders import CONTEXT, VIEWS, ContextOrder, code_points, numbered
from nnlib.language.continuation_counts import earlier, expert_counts
from nnlib.language.gating import GatingNetwork, sample
from nnlib.language.suffix_index import EXPERTS, SuffixIndex

FORMAT = "nnlib.text.1"
FOLDS, FOLD, PRACTICE, LITTLE = (
    10,
    128_000,
    128_000,
    50,
)  # parts to practise on, their size, in all; texts too short


class Passage(NamedTuple):
    """A place of the text that voted: its weight, what stands before, the character it votes for, what follows."""

    weight: float
    position: int
    before: str
    character: str
    after: str


class ContextModel:
    """Predicts a text's next character from all places of what it read where similar characters stood before.

    A place's weight depends on how much of its past is the same (as it is written; in whole words; by the column in the
    line), and on how many such places there are, in how many ways they went on, and in how many different contexts. How
    it depends is learned by predicting parts of the training text from its other parts.
    Sources: Khandelwal et al. 2020 (neighbors as a language model), Kneser and Ney 1995, Bloom 1998 (PPMZ).
    """

    def __init__(self, seed: int | None = 0):
        self.seed = check_seed(seed)
        self._recall: SuffixIndex | None = None

    def fit(self, text: str) -> "ContextModel":
        """Learn from a text. Raises ValueError for one that is empty, or that UTF-8 can't hold."""
        _require_text("text", text, least=1)
        codes, practice = numbered(text), _practice(len(text))
        sorts = [(view, view.sorted()) for view in _views(text)]
        self.gate_ = GatingNetwork(len(EXPERTS))
        if practice:
            with single_thread():
                self.gate_.learn(
                    _practised(sorts, codes, practice), 1 / (len(set(text)) + 1), self.seed
                )
        self._text, self._recall = text, SuffixIndex(text, codes, sorts)
        return self

    def partial_fit(self, text: str) -> "ContextModel":
        """Go on reading: the text follows what was read before, and votes at once. What is learned stays as it is."""
        if self._recall is None:
            return self.fit(text)
        _require_text("text", text)
        if len(self._recall.read) + len(text) > max(1000, len(self._text) // 200):
            self._know(self._text + self._recall.read + text)
        else:
            for character in text:
                self._recall.add(character)
        return self

    @property
    def alphabet_(self) -> str:
        """The characters it knows; `predict_proba` has one number for each of them, and one for all others."""
        return "".join(self._fitted().alphabet)

    @property
    def text_(self) -> str:
        """All that it has read."""
        read = self._fitted().read
        return self._text + read

    def predict_proba(self, context: str) -> Float64[np.ndarray, " A+1"]:
        """The probability of each character of `alphabet_` after the context, and last that of any other."""
        _require_text("context", context)
        counts = self._fitted().counts(context)
        return self.gate_.probabilities(counts)

    def expert_weights(self, context: str) -> dict[str, float]:
        """How much weight goes to the places that share each kind of thing with the context; the sum is 1."""
        _require_text("context", context)
        names = [expert.name for expert in EXPERTS] + ["none: a uniform guess"]
        counts = self._fitted().counts(context)
        return dict(zip(names, self.gate_.expert_weights(counts).tolist(), strict=True))

    def bits(self, text: str, adapt: bool = False) -> Float64[np.ndarray, " N"]:
        """What each character of a text costs, -log2 p, as it follows what was read; `adapt`: learning as it reads.

        A character that it doesn't know shares the probability of all of Unicode's others.
        """
        known, characters = self.text_, len(self._fitted().alphabet)
        _require_text("text", text, least=1)
        whole = known + text
        codes, asked = numbered(whole), range(len(known), len(whole))
        told = [
            expert
            for view in _views(whole)
            for expert in expert_counts(view, view.sorted(), codes, asked, adapt)
        ]
        seen = np.isin(code_points(text), code_points(self.alphabet_))
        if adapt:
            first = ~seen & (earlier(codes[asked.start :]) == 0)
            seen, characters = ~first, characters + np.cumsum(first) - first
        uniform = 1 / (characters + 1.0) / np.where(seen, 1, SCALARS - characters)
        with single_thread():
            return -np.log2(self.gate_.shares(np.stack(told, 1), uniform))

    def bits_per_character(self, text: str, adapt: bool = False) -> float:
        """The mean of `bits`."""
        return float(self.bits(text, adapt).mean())

    def accuracy(self, text: str, adapt: bool = False) -> float:
        """The share of a text's characters that it held for the most likely ones, read as in `bits`."""
        _require_text("text", text, least=1)
        reader, right = self.reader(adapt), 0
        for character in text:
            right += int(reader.probabilities()[:-1].argmax()) == reader.code(character)
            reader.read(character)
        return right / len(text)

    def reader(self, adapt: bool = False) -> StreamingPredictor:
        """One that stands behind what was read, and reads on without changing this model."""
        return StreamingPredictor(self._fitted(), self.gate_, adapt)

    def generate(
        self,
        prompt: str = "",
        length: int = 200,
        temperature: float = 1.0,
        seed: int | None = 0,
        memory: int = CONTEXT,
    ) -> str:
        """Write on after the prompt: `length` characters, drawn from the probabilities to the power 1/temperature.

        Temperature 0 takes the most likely one each time. `memory`: how many of the last characters are looked at.
        """
        _require_text("prompt", prompt)
        check_int("length", length, 0)
        check_int("memory", memory, 0)
        check_number("temperature", temperature, "[0, inf)", "a number, 0 or more")
        random, alphabet, written = (
            np.random.default_rng(check_seed(seed)),
            self._fitted().alphabet,
            prompt,
        )
        for _ in range(length):
            p = self.predict_proba(
                written[len(written) - memory :] if memory < len(written) else written
            )[:-1]
            p = np.exp(np.log(p / p.max()) / temperature) if temperature else p == p.max()
            written += alphabet[random.choice(len(p), p=p / p.sum())]
        return written[len(prompt) :]

    def weights(self, context: str) -> Float64[np.ndarray, " N+1"]:
        """Each place's weight in the prediction after the context, and last that of the uniform guess: the sum is 1.

        A place votes for the character that stands there. What was read since the last sorting is sorted first.
        """
        _require_text("context", context)
        if self._fitted().read:
            self._know(self.text_)
        counts = self._recall.counts(context)
        trust, weights = self.gate_.expert_weights(counts), np.zeros(len(self._text) + 1)
        for votes, share, rows in zip(
            counts.sum(1), trust, self._recall.voters(context), strict=False
        ):
            weights[rows] += share / max(votes, 1)
        weights[-1] = trust[-1]
        return weights / weights.sum()

    def explain(self, context: str, top: int = 10, around: int = 40) -> list[Passage]:
        """The `top` passages that weigh most in what comes after the context."""
        weights = self.weights(context)[:-1]
        check_int("top", top)
        heaviest = np.lexsort((-np.arange(len(weights)), -weights))[:top]
        text = self._text
        return [
            Passage(
                float(weights[at]),
                at,
                text[max(0, at - around) : at],
                text[at],
                text[at + 1 : at + 1 + around],
            )
            for at in heaviest[weights[heaviest] > 0].tolist()
        ]

    def save(self, path: str | Path) -> None:
        """Write what was read and learned to one .safetensors file, whole or not at all."""
        text = torch.frombuffer(bytearray(self.text_.encode()), dtype=torch.uint8)
        header = {"format": FORMAT, "settings": json.dumps({"seed": self.seed})}
        with atomic_write(path) as part:
            save_file({"text": text, **self.gate_.state_dict()}, part, header)

    @classmethod
    def load(cls, path: str | Path) -> "ContextModel":
        """Read a model that `save` wrote. Raises ModelError, naming the file and what is wrong with it."""
        try:
            with safe_open(path, "pt") as file:
                header, parts = (
                    file.metadata() or {},
                    {name: file.get_tensor(name) for name in file.keys()},
                )
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
            model, text = (
                cls(**json.loads(header["settings"])),
                bytes(parts.pop("text").tolist()).decode(),
            )
            model.gate_ = GatingNetwork(len(EXPERTS))
            model.gate_.load_state_dict(parts)
            _require_text("text", text, least=1)
            model._know(text)
            return model
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ModelError(
                f"path={str(path)!r} can't be read as a ContextModel ({type(error).__name__}: {error}): "
                "give a file that its save() wrote"
            ) from None

    def _know(self, text: str) -> None:
        self._text, self._recall = (
            text,
            SuffixIndex(text, numbered(text), [(view, view.sorted()) for view in _views(text)]),
        )

    def _fitted(self) -> SuffixIndex:
        if self._recall is None:
            raise NotFittedError("this ContextModel has read nothing yet: call fit(text) first")
        return self._recall


def _views(text: str) -> Iterator[ContextOrder]:
    return (kind(text) for kind in VIEWS)


def _practice(size: int) -> list[range]:
    """Parts of a text to predict from all its others."""
    length = min(size // 10, FOLD)
    parts = min(FOLDS, PRACTICE // max(1, length)) if size >= LITTLE else 0
    starts = [int((part + 0.5) * size / parts - length / 2) for part in range(parts)]
    return [range(start, start + length) for start in starts]


def _practised(
    sorts: list, codes: Integer[np.ndarray, " N"], practice: list[range]
) -> Float16[torch.Tensor, "M E 3"]:
    samples = torch.empty(sum(map(len, practice)), len(EXPERTS), 3, dtype=torch.float16)
    for part, asked in zip(
        samples.split([len(asked) for asked in practice]), practice, strict=True
    ):
        told = chain.from_iterable(
            expert_counts(view, order, codes, asked) for view, order in sorts
        )
        for expert, what in enumerate(told):
            part[:, expert] = sample(what)
    return samples


def _require_text(name: str, text: str, least: int = 0) -> None:
    check(isinstance(text, str), name, text, "a str")
    check(len(text) >= least, name, text, "one of a character or more")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} holds half a surrogate pair at {error.start}, which is no character: "
                "read files as UTF-8, with nnlib.datasets.load_text"
            ) from None
