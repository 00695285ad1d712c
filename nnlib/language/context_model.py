"""A language model of nearest neighbors: passages with a like context vote for what comes next."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from safetensors import safe_open
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from nnlib._common.runtime import check_seed, torch_defaults
from nnlib._common.serialization import UNREADABLE, SafetensorsMixin
from nnlib._common.validation import check, check_int
from nnlib.language.coding import SCALARS, StreamingPredictor
from nnlib.language.context_orders import MAX_CONTEXT, encode_characters, sorted_contexts
from nnlib.language.continuation_counts import count_earlier, expert_counts
from nnlib.language.gating import GatingNetwork, encode_counts
from nnlib.language.sampling import sample_text
from nnlib.language.suffix_index import EXPERTS, SuffixIndex

OLD_FORMAT = "nnlib.text.1"
MAX_PARTS = 10  # held out of the training text, one after the other, to fit the gating network on
MAX_HELD_OUT = 128_000  # characters of all parts
SHORT_TEXT = 50  # below which nothing is held out
FEW_APPENDED = 1000  # characters, up to which a text is not sorted anew


class Passage(NamedTuple):
    """A passage that votes for `character` at a position of the text, by its weight."""

    weight: float
    position: int
    before: str
    character: str
    after: str


class ContextModel(SafetensorsMixin, BaseEstimator):
    """Language model of characters in which all passages with a similar context vote.

    How much a passage weighs is learned from how much of its context is the same (characters, whole
    words, or the column in the line), how many such passages there are, and how they went on.

    Parameters
    ----------
    seed : of the gating network's training, default 0; None: another one each time

    References
    ----------
    Khandelwal et al. 2020 (kNN language models); Kneser and Ney 1995; Bloom 1998 (PPMZ).

    Examples
    --------
    >>> model = ContextModel().fit("to be, or not to be: that is the question")
    >>> model.generate("or not to ", 2, temperature=0)
    'be'
    """

    saved_attributes = ()

    def __init__(self, seed: int | None = 0):
        self.seed = check_seed(seed)
        self._index: SuffixIndex | None = None

    @torch_defaults(gradients=True, one_core=True)
    def fit(self, text: str) -> "ContextModel":
        """Learn from a text; raises ValueError for one that is empty or that UTF-8 can't hold."""
        _check_text("text", text, least=1)
        contexts = list(sorted_contexts(text))
        self.gating_ = GatingNetwork(len(EXPERTS))
        parts = _held_out_parts(len(text))
        if parts:
            codes = encode_characters(text)
            sizes = [len(part) for part in parts]
            samples = torch.empty(sum(sizes), len(EXPERTS), 3, dtype=torch.float16)
            for sample, part in zip(samples.split(sizes), parts, strict=True):
                for expert, counts in enumerate(_count_all(contexts, codes, part)):
                    sample[:, expert] = encode_counts(counts)
            self.gating_.fit(samples, 1 / (len(set(text)) + 1), self.seed)
        self._index = SuffixIndex(text, contexts)
        return self

    def partial_fit(self, text: str) -> "ContextModel":
        """Append a text, whose passages vote from now on; the gating network stays as it is."""
        if self._index is None:
            return self.fit(text)
        _check_text("text", text)
        few = max(FEW_APPENDED, len(self._index.text) // 200)
        if len(self._index.appended) + len(text) > few:
            self._index = SuffixIndex(self.text_ + text)
        else:
            for character in text:
                self._index.append(character)
        return self

    @property
    def alphabet_(self) -> str:
        """The known characters; `predict_proba` has a number for each, and one for all others."""
        return "".join(self._fitted_index().alphabet)

    @property
    def text_(self) -> str:
        """All that was fitted on and appended."""
        return self._fitted_index().text + self._index.appended

    def predict_proba(self, context: str) -> Float64[np.ndarray, " A+1"]:
        """The probability of each character of `alphabet_`, and of any other, after the context."""
        _check_text("context", context)
        counts = self._fitted_index().counts(context)
        return self.gating_.probabilities(counts)

    def expert_weights(self, context: str) -> dict[str, float]:
        """The weight of all passages that share each kind of thing with the context; sum 1."""
        _check_text("context", context)
        weights = self.gating_.expert_weights(self._fitted_index().counts(context)).tolist()
        names = [expert.name for expert in EXPERTS] + ["none: a uniform guess"]
        return dict(zip(names, weights, strict=True))

    def bits(self, text: str, adapt: bool = False) -> Float64[np.ndarray, " N"]:
        """The cost -log2 p of each character of a text that follows; `adapt`: learning on the way.

        An unknown character shares the probability of all of Unicode's others.
        """
        start = len(self.text_)
        _check_text("text", text, least=1)
        whole = self.text_ + text
        codes = encode_characters(whole)
        counts = _count_all(sorted_contexts(whole), codes, range(start, len(whole)), adapt)
        unknown = ~np.isin(codes[start:], codes[:start])
        alphabet_size = len(self.alphabet_)
        if adapt:
            unknown &= count_earlier(codes[start:]) == 0
            alphabet_size = alphabet_size + np.cumsum(unknown) - unknown
        uniform = 1 / (alphabet_size + 1.0) / np.where(unknown, SCALARS - alphabet_size, 1)
        p = self.gating_.true_probabilities(np.stack(list(counts), 1), uniform)
        return -np.log2(p)

    def bits_per_character(self, text: str, adapt: bool = False) -> float:
        """The mean of `bits`."""
        return float(self.bits(text, adapt).mean())

    def accuracy(self, text: str, adapt: bool = False) -> float:
        """The fraction of a text's characters that were the most likely ones, read as in `bits`."""
        _check_text("text", text, least=1)
        predictor = self.reader(adapt)
        correct = 0
        for character in text:
            correct += int(predictor.probabilities()[:-1].argmax() == predictor.code(character))
            predictor.read(character)
        return correct / len(text)

    def reader(self, adapt: bool = False) -> StreamingPredictor:
        """A predictor of what follows the text, which does not change this model as it reads."""
        return StreamingPredictor(self._fitted_index(), self.gating_, adapt)

    def generate(
        self,
        prompt: str = "",
        length: int = 200,
        temperature: float = 1.0,
        seed: int | None = 0,
        memory: int = MAX_CONTEXT,
    ) -> str:
        """Draw what follows a prompt, by probabilities to the power 1 / temperature.

        At 0 the most likely one is taken. `memory`: how many of the last characters are looked at.
        """
        _check_text("prompt", prompt)
        check_int("memory", memory, 0)

        def predict(text: str) -> np.ndarray:
            return self.predict_proba(text[max(0, len(text) - memory) :])[:-1]

        return sample_text(predict, self.alphabet_, prompt, length, temperature, seed)

    def weights(self, context: str) -> Float64[np.ndarray, " N+1"]:
        """Each passage's weight after the context, and last that of the uniform guess; sum 1.

        A passage votes for the character at its position. What was appended is sorted first.
        """
        _check_text("context", context)
        if self._fitted_index().appended:
            self._index = SuffixIndex(self.text_)
        counts = self._index.counts(context)
        expert_weights = self.gating_.expert_weights(counts)
        of_passage = expert_weights[:-1] / np.maximum(counts.sum(1), 1)
        weights = np.zeros(len(self._index.text) + 1)
        rows = self._index.find(context)
        for weight, expert, (_, low, high) in zip(of_passage, EXPERTS, rows, strict=True):
            weights[self._index.matches(expert, low, high)] += weight
        weights[-1] = expert_weights[-1]
        return weights / weights.sum()

    def explain(self, context: str, top: int = 10, around: int = 40) -> list[Passage]:
        """The `top` passages that weigh most in what comes after the context."""
        weights = self.weights(context)[:-1]
        check_int("top", top)
        heaviest = np.lexsort((-np.arange(len(weights)), -weights))[:top]
        text = self._index.text
        passages = []
        for at in heaviest[weights[heaviest] > 0].tolist():
            before = text[max(0, at - around) : at]
            after = text[at + 1 : at + 1 + around]
            passages.append(Passage(float(weights[at]), at, before, text[at], after))
        return passages

    @classmethod
    def load(cls, path: str | Path) -> "ContextModel":
        """Read a model that `save` wrote; raises ModelError, naming the file and what is wrong."""
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                if header.get("format") == OLD_FORMAT:
                    tensors = {}
                    for name in file.keys():  # noqa: SIM118
                        renamed = name.replace("inside", "hidden").replace("outside", "output")
                        tensors[renamed.replace("spread", "std")] = file.get_tensor(name)
                    metadata = {"settings": json.loads(header["settings"]), "attributes": {}}
                    return cls._from_metadata(metadata, tensors)
        except UNREADABLE:
            pass  # said below
        return super().load(path, "cpu")

    def _tensors(self) -> dict[str, torch.Tensor]:
        text = torch.frombuffer(bytearray(self.text_.encode()), dtype=torch.uint8)
        return {"text": text, **self.gating_.state_dict()}

    def _restore(self, tensors: dict[str, torch.Tensor]) -> None:
        text = bytes(tensors.pop("text").tolist()).decode()
        _check_text("text", text, least=1)
        self.gating_ = GatingNetwork(len(EXPERTS))
        self.gating_.load_state_dict(tensors)
        self._index = SuffixIndex(text)

    def _fitted_index(self) -> SuffixIndex:
        if self._index is None:
            raise NotFittedError("this ContextModel has no text yet: call fit(text) first")
        return self._index


def _held_out_parts(size: int) -> list[range]:
    """Parts of a text to predict from all its others."""
    if size < SHORT_TEXT:
        return []
    length = min(size // 10, MAX_HELD_OUT)
    parts = min(MAX_PARTS, MAX_HELD_OUT // length)
    starts = [int((part + 0.5) * size / parts - length / 2) for part in range(parts)]
    return [range(start, start + length) for start in starts]


def _count_all(contexts, codes, queries: range, adapt: bool = False) -> Iterator[np.ndarray]:
    for kind, order in contexts:
        yield from expert_counts(kind, order, codes, queries, adapt)


def _check_text(name: str, text: str, least: int = 0) -> None:
    check(isinstance(text, str), name, text, "a str")
    check(len(text) >= least, name, text, "one of a character or more")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"{name} holds half a surrogate pair at {error.start}, which is no character"
        raise ValueError(f"{problem}: read files as UTF-8, as load_text does") from None
