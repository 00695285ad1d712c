"""A network that weighs experts by how many matches they have and how these went on."""

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Float64
from torch import Tensor, nn

from nnlib._common.runtime import make_generator, torch_defaults

HIDDEN_UNITS = 64
BATCH = 2048
LEARNING_RATE = 1e-2
EPOCHS = 8
FEW_SAMPLES = 10_000  # fewer ones make weights decay more
ROWS = 1 << 15  # contexts weighed at once
MIN_UNIFORM_WEIGHT = 1e-6  # so that no character is impossible
PerExpert = Float[Tensor, "B E"]
Weights = Float[Tensor, "B E+1"]
CharacterCounts = Float64[np.ndarray, "E A"]


class GatingNetwork(nn.Module):
    """Weights that sum to 1 for the experts of a context, and last for the uniform guess."""

    @torch_defaults()
    def __init__(self, experts: int):
        super().__init__()
        self.hidden = nn.utils.skip_init(nn.Linear, 3 * experts, HIDDEN_UNITS)
        self.output = nn.utils.skip_init(nn.Linear, HIDDEN_UNITS, experts + 1)
        self.register_buffer("mean", torch.zeros(3 * experts))
        self.register_buffer("std", torch.ones(3 * experts))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            preference = torch.arange(experts) * 0.2  # for later experts, which match longer
            self.output.bias.copy_(torch.cat([preference, torch.tensor([-4.0])]))

    def forward(self, log_total: PerExpert, log_kinds: PerExpert) -> Weights:
        """Weigh experts by log(1 + matches) and log(1 + their different characters)."""
        features = (_features(log_total, log_kinds) - self.mean) / self.std
        scores = self.output(nn.functional.silu(self.hidden(features)))
        without_matches = nn.functional.pad(log_total == 0, (0, 1))
        weights = scores.masked_fill(without_matches, -torch.inf).softmax(1)
        weights = weights * (1 - MIN_UNIFORM_WEIGHT)
        return torch.cat([weights[:, :-1], weights[:, -1:] + MIN_UNIFORM_WEIGHT], 1)

    @torch_defaults(gradients=False, one_core=True)
    def expert_weights(self, counts: CharacterCounts) -> Float64[np.ndarray, " E+1"]:
        """Weigh experts by how often each of them saw each character."""
        sums = np.array([counts.sum(1), (counts > 0).sum(1)], np.float32)
        log_total, log_kinds = torch.from_numpy(sums).log1p()
        return self(log_total[None], log_kinds[None])[0].double().numpy()

    def probabilities(self, counts: CharacterCounts) -> Float64[np.ndarray, " A+1"]:
        """Mix the experts' character frequencies; last comes the probability of all others."""
        weights = self.expert_weights(counts)
        mixed = (weights[:-1] / np.maximum(counts.sum(1), 1)) @ counts
        p = np.append(mixed, 0.0) + weights[-1] / (counts.shape[1] + 1)
        return p / p.sum()

    @torch_defaults(gradients=False, one_core=True)
    def true_probabilities(
        self, counts: Float32[np.ndarray, "B E 3"], uniform: Float64[np.ndarray, " B"]
    ) -> Float64[np.ndarray, " B"]:
        """Probabilities of the true characters, by `expert_counts` and their uniform guess."""
        mixed = []
        for start in range(0, len(counts), ROWS):
            total, kinds, hits = torch.from_numpy(counts[start : start + ROWS]).unbind(2)
            guess = torch.from_numpy(uniform[start : start + ROWS])
            weights = self(total.log1p(), kinds.log1p())
            frequencies = _append_uniform(hits.double() / total.clamp_min(1), guess)
            mixed.append((weights * frequencies).sum(1))
        return torch.cat(mixed).numpy()

    @torch_defaults(gradients=True, one_core=True)
    def fit(self, samples: Float16[Tensor, "M E 3"], uniform: float, seed: int = 0) -> None:
        """Minimize the mean -log p of the true characters of M positions (see `encode_counts`)."""
        generator = make_generator(seed)
        bound = self.hidden.in_features**-0.5
        nn.init.uniform_(self.hidden.weight, -bound, bound, generator=generator)
        log_total, log_kinds, _ = samples[:: len(samples) // BATCH + 1].float().unbind(2)
        features = _features(log_total, log_kinds)
        self.mean = features.mean(0)
        self.std = features.std(0).clamp_min(0.5)  # so that no rare one explodes
        batch = max(64, min(BATCH, len(samples) // 50))
        decay = min(1, FEW_SAMPLES / len(samples))
        optimizer = torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=decay)
        steps = EPOCHS * -(-len(samples) // batch)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 1 / steps, steps)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(samples), generator=generator).split(batch):
                log_total, log_kinds, frequency = samples[rows].float().unbind(2)
                weights = self(log_total, log_kinds)
                loss = -(weights * _append_uniform(frequency, uniform)).sum(1).log().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


def encode_counts(counts: Float32[np.ndarray, "M 3"]) -> Float16[Tensor, "M 3"]:
    """Return log(1 + matches), log(1 + kinds), and the true character's frequency among them."""
    total, kinds, hits = torch.from_numpy(counts).unbind(1)
    return torch.stack([total.log1p(), kinds.log1p(), hits / total.clamp_min(1)], 1).half()


def _append_uniform(frequencies: PerExpert, uniform: float | Float64[Tensor, " B"]) -> Weights:
    uniform = torch.as_tensor(uniform, dtype=frequencies.dtype).expand(len(frequencies))
    return torch.cat([frequencies, uniform[:, None]], 1)


def _features(log_total: PerExpert, log_kinds: PerExpert) -> Float[Tensor, "B 3*E"]:
    """Logarithms of how many matches and kinds there were, and about how many kinds a match."""
    return torch.cat([log_total, log_kinds, (log_kinds - log_total).exp()], 1)
