"""Drawing a text, character by character, from a model's probabilities."""

from collections.abc import Callable, Sequence

import numpy as np

from nnlib._common.runtime import check_seed
from nnlib._common.validation import check_int, check_number


def sample_text(
    predict: Callable[[str], np.ndarray],
    alphabet: Sequence[str],
    prompt: str,
    length: int,
    temperature: float,
    seed: int | None,
) -> str:
    """Draw characters by the probabilities that `predict` gives after what is there so far."""
    check_int("length", length, least=0)
    check_number("temperature", temperature, "[0, inf)", "a number, 0 or more")
    generator = np.random.default_rng(check_seed(seed))
    text = prompt
    for _ in range(length):
        p = predict(text)
        if temperature == 0:
            choice = int(p.argmax())
        else:
            with np.errstate(divide="ignore", over="ignore"):  # far below the most likely one
                powers = np.exp(np.log(p / p.max()) / temperature)
            choice = generator.choice(len(p), p=powers / powers.sum())
        text += alphabet[choice]
    return text[len(prompt) :]
