"""How far to trust each expert, by how many neighbors it has and in how many ways they went on: learned, then fixed."""

from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Float64
from torch import Tensor, nn

from nnlib._common.runtime import make_generator

HIDDEN, BATCH, RATE, EPOCHS = 64, 2048, 1e-2, 8
FEW = 10_000  # samples from which on weights decay less
ROWS, LEAST = (
    1 << 15,
    1e-6,
)  # contexts weighed at once; the uniform guess's least weight: nothing is impossible


class GatingNetwork(nn.Module):
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

    def forward(
        self, votes: Float[Tensor, "B E"], kinds: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B E+1"]:
        """Weights for experts with so many votes for so many kinds of characters; one without votes gets none."""
        return self._weights(votes.log1p(), kinds.log1p())

    def _weights(
        self, votes: Float[Tensor, "B E"], kinds: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B E+1"]:
        score = self.outside(
            nn.functional.silu(self.inside((_features(votes, kinds) - self.mean) / self.spread))
        )
        weights = score.masked_fill(nn.functional.pad(votes == 0, (0, 1)), -torch.inf).softmax(1)
        return torch.cat([weights[:, :-1] * (1 - LEAST), weights[:, -1:] * (1 - LEAST) + LEAST], 1)

    @torch.no_grad()
    def expert_weights(self, counts: Float64[np.ndarray, "E A"]) -> Float64[np.ndarray, " E+1"]:
        """The weights where each expert counted each character so often."""
        votes, kinds = torch.from_numpy(np.array([counts.sum(1), (counts > 0).sum(1)], np.float32))
        return self(votes[None], kinds[None])[0].double().numpy()

    def probabilities(self, counts: Float64[np.ndarray, "E A"]) -> Float64[np.ndarray, " A+1"]:
        """Each character's share of the weighted votes, and last that of all characters that nobody counted."""
        trust = self.expert_weights(counts)
        p = np.append((trust[:-1] / np.maximum(counts.sum(1), 1)) @ counts, 0.0) + trust[-1] / (
            counts.shape[1] + 1
        )
        return p / p.sum()

    @torch.no_grad()
    def shares(
        self, told: Float32[np.ndarray, "B E 3"], uniform: Float64[np.ndarray, " B"]
    ) -> Float64[np.ndarray, " B"]:
        """The probabilities of the true characters that `told` counts, for which `uniform` is the uniform guess."""
        result = []
        for part, last in zip(
            torch.from_numpy(told).split(ROWS), torch.from_numpy(uniform).split(ROWS), strict=True
        ):
            votes, kinds, came = part.unbind(2)
            result.append(
                (self(votes, kinds) * _with(came.double() / votes.clamp_min(1), last)).sum(1)
            )
        return torch.cat(result).numpy()

    def learn(
        self, samples: Float16[Tensor, "M E 3"], uniform: float, seed: int = 0
    ) -> "GatingNetwork":
        """Train on `samples` of M positions, for the least mean -log p of the true characters."""
        generator = make_generator(seed)
        nn.init.uniform_(
            self.inside.weight,
            -(bound := self.inside.in_features**-0.5),
            bound,
            generator=generator,
        )
        nn.init.zeros_(self.inside.bias)
        features = _features(*samples[:: len(samples) // BATCH + 1].float().unbind(2)[:2])
        self.mean, self.spread = (
            features.mean(0),
            features.std(0).clamp_min(0.5),
        )  # so that no rare one explodes
        batch = max(64, min(BATCH, len(samples) // 50))
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=RATE, weight_decay=min(1, FEW / len(samples))
        )
        steps = EPOCHS * -(-len(samples) // batch)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 1 / steps, steps)
        for rows in chain.from_iterable(
            _shuffled(len(samples), batch, generator) for _ in range(EPOCHS)
        ):
            votes, kinds, share = samples[rows].float().unbind(2)
            loss = -(self._weights(votes, kinds) * _with(share, uniform)).sum(1).log().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
        return self


def _shuffled(samples: int, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randperm(samples, generator=generator).split(batch)


def sample(told: Float32[np.ndarray, "M 3"]) -> Float16[Tensor, "M 3"]:
    """What an expert told, small: log(1 + votes), log(1 + kinds), and the true character's share of the votes."""
    votes, kinds, came = torch.from_numpy(told).unbind(1)
    return torch.stack([votes.log1p(), kinds.log1p(), came / votes.clamp_min(1)], 1).half()


def _with(
    shares: Float[Tensor, "B E"], uniform: float | Float64[Tensor, " B"]
) -> Float[Tensor, "B E+1"]:
    return torch.cat(
        [shares, torch.as_tensor(uniform, dtype=shares.dtype).expand(len(shares))[:, None]], 1
    )


def _features(votes: Float[Tensor, "B E"], kinds: Float[Tensor, "B E"]) -> Float[Tensor, "B 3*E"]:
    """Logarithms of how many votes and kinds there were, and about how many kinds a vote."""
    return torch.cat([votes, kinds, (kinds - votes).exp()], 1)
