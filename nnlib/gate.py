"""How far to trust each expert, by how many neighbors it has and in how many ways they went on: learned, then fixed."""

from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor, nn

from nnlib.device import one_thread

HIDDEN, BATCH, RATE, EPOCHS = 64, 2048, 2e-2, 8
ROWS, LEAST = 1 << 15, 1e-6  # contexts weighed at once; the uniform guess's least weight: nothing is impossible


class Gate(nn.Module):
    """Weights that sum to 1 for the experts of a context, and for the uniform guess that comes last.

    Untrained it prefers the later experts, which match longer, by a constant factor each.
    """

    def __init__(self, experts: int):
        super().__init__()
        self.inside, self.outside = nn.Linear(3 * experts, HIDDEN), nn.Linear(HIDDEN, experts + 1)
        self.register_buffer("mean", torch.zeros(3 * experts))
        self.register_buffer("spread", torch.ones(3 * experts))
        nn.init.zeros_(self.outside.weight)
        with torch.no_grad():
            self.outside.bias.copy_(torch.cat([torch.arange(experts) * 0.2, torch.tensor([-4.0])]))

    def forward(self, votes: Float[Tensor, "B E"], kinds: Float[Tensor, "B E"]) -> Float[Tensor, "B E+1"]:
        """Weights for experts with so many votes for so many kinds of characters; one without votes gets none."""
        return self._weights((_features(votes, kinds) - self.mean) / self.spread, votes == 0)

    def _weights(self, features: Float[Tensor, "B 3E"], silent: Bool[Tensor, "B E"]) -> Float[Tensor, "B E+1"]:
        score = self.outside(nn.functional.silu(self.inside(features)))
        weights = score.masked_fill(nn.functional.pad(silent, (0, 1)), -torch.inf).softmax(1)
        return torch.cat([weights[:, :-1] * (1 - LEAST), weights[:, -1:] * (1 - LEAST) + LEAST], 1)

    @torch.no_grad()
    def trust(self, counts: Float64[np.ndarray, "E A"]) -> Float64[np.ndarray, " E+1"]:
        """The weights where each expert counted each character so often."""
        votes, kinds = torch.from_numpy(np.array([counts.sum(1), (counts > 0).sum(1)], np.float32))
        return self(votes[None], kinds[None])[0].double().numpy()

    def probabilities(self, counts: Float64[np.ndarray, "E A"]) -> Float64[np.ndarray, " A+1"]:
        """Each character's share of the weighted votes, and last that of all characters that nobody counted."""
        trust = self.trust(counts)
        p = np.append((trust[:-1] / np.maximum(counts.sum(1), 1)) @ counts, 0.0) + trust[-1] / (counts.shape[1] + 1)
        return p / p.sum()

    @torch.no_grad()
    def shares(self, evidence: Float32[np.ndarray, "B E 3"], uniform: Float64[np.ndarray, " B"]) -> np.ndarray:
        """The probabilities [B] of true characters, for which `uniform` is the uniform guess."""
        parts = zip(torch.from_numpy(evidence).split(ROWS), torch.from_numpy(uniform).split(ROWS), strict=True)
        return torch.cat([(self(*e.unbind(2)[:2]) * _guesses(e, u)).sum(1) for e, u in parts]).numpy()

    def learn(self, evidence: Float32[np.ndarray, "M E 3"], uniform: float, seed: int = 0) -> "Gate":
        """Train on what the neighbors of M positions said, for the least mean -log p of the true characters."""
        generator = torch.Generator().manual_seed(seed)
        nn.init.uniform_(self.inside.weight, -(bound := self.inside.in_features**-0.5), bound, generator=generator)
        votes, kinds, _ = torch.from_numpy(evidence).unbind(2)
        features, silent = _features(votes, kinds), votes == 0
        self.mean, self.spread = features.mean(0), features.std(0).clamp_min(0.5)  # so that no rare one explodes
        features = (features - self.mean) / self.spread
        guesses = _guesses(torch.from_numpy(evidence), uniform).float()
        batch = max(64, min(BATCH, len(votes) // 50))
        optimizer = torch.optim.Adam(self.parameters(), lr=RATE)
        steps = EPOCHS * -(-len(votes) // batch)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 1 / steps, steps)
        with one_thread():
            for rows in chain.from_iterable(_shuffled(len(votes), batch, generator) for _ in range(EPOCHS)):
                loss = -(self._weights(features[rows], silent[rows]) * guesses[rows]).sum(1).log().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                falling.step()
        return self


def _shuffled(samples: int, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randperm(samples, generator=generator).split(batch)


def _guesses(evidence: Float[Tensor, "B E 3"], uniform: float | Float[Tensor, " B"]) -> Float[Tensor, "B E+1"]:
    votes, _, came = evidence.unbind(2)
    last = torch.as_tensor(uniform, dtype=torch.float64).expand(len(came))
    return torch.cat([came / votes.clamp_min(1), last[:, None]], 1)


def _features(votes: Float[Tensor, "B E"], kinds: Float[Tensor, "B E"]) -> Float[Tensor, "B 3E"]:
    return torch.cat([(votes + 1).log(), (kinds + 1).log(), (kinds + 0.5) / (votes + 1)], 1)
