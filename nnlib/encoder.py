"""How many centers, and how fine the ripples that add what they leave: the best file of a size or of a fineness."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnlib import ripples
from nnlib.bitstream import STEPS, Coded, base, codes_of, opponent, pack, step_size
from nnlib.placing import Fit

CENTER_BITS = 37  # that a center takes in a file
CAUTION = 0.25  # of it is added until the centers are rounded, as they look better than they will be
MOST = 0.8  # of the bytes that centers may take
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of so many centers, tried one after the other
STEPS_AT_END, GROWTH = 300, 6  # steps of gradient once the centers are chosen; after each growth, so many times fewer
PATIENCE = 0.05  # more centers gain more from the last steps: so much higher a cost is no reason to stop
BIT_PRICE = 0.12  # the squared error that a bit is worth, in squared steps
PITCHES = (16, 8)


class Choice(NamedTuple):
    """A file, and its squared error."""

    data: bytes
    error: float


class Encoder:
    """Fits centers to one picture [H, W, C] in 0..1, grey or RGB, and chooses how many of them pay."""

    def __init__(self, picture: Float[Tensor, "H W C"], flat=False, steps: int = STEPS_AT_END, seed=0, after=None):
        self.picture, self.flat, self.steps, self.seed = opponent(picture), flat, steps, seed
        self.after = after  # is called after each step of gradient

    def of_size(self, size: float) -> bytes:
        """The best file of at most `size` bytes, or the smallest where none is so small."""

        def error(fit: Fit) -> float:
            left = size - CAUTION * CENTER_BITS / 8 * len(fit.parts[0])
            return self._finest(self._coded(fit), fit.drawn(), left).error

        fit = self.grown(int(8 * MOST * size / CENTER_BITS), error)
        coded = self._coded(fit)
        found = [self._finest(coded, base(coded), size, pitch) for pitch in PITCHES]
        return min(found, key=lambda choice: (len(choice.data) > size, choice.error)).data

    def of_step(self, step: int) -> bytes:
        """The file whose ripples have this step, with as many centers as save more bits than they take."""

        def cost(choice: Choice, centers: int = 0) -> float:
            bits = 8 * len(choice.data) + CAUTION * CENTER_BITS * centers
            return choice.error + BIT_PRICE * (step_size(step)) ** 2 * bits

        def grown_cost(fit: Fit) -> float:
            return cost(self._with(self._coded(fit), fit.drawn(), step), len(fit.parts[0]))

        coded = self._coded(self.grown(self.picture[..., 0].numel() // 60, grown_cost))
        return min((self._with(coded, base(coded), step, pitch) for pitch in PITCHES), key=cost).data

    def grown(self, most: int, cost: Callable[[Fit], float]) -> Fit:
        """Ever more centers while that lowers the cost; then the most that cost little more, moved on and rounded."""
        fit, tried = Fit(self.picture, self.seed), []
        for count in sorted({max(int(most * share), 1) for share in SHARES}):
            fit.add(count - len(fit.parts[0]))
            fit.move(-(-self.steps // GROWTH), after=self.after)
            tried.append((cost(fit), [part.detach().clone() for part in fit.parts]))
            lowest = min(price for price, _ in tried)
            if tried[-1][0] > lowest * (1 + PATIENCE):
                break
        fit.parts = [parts for price, parts in tried if price <= lowest * (1 + PATIENCE)][-1]
        fit.parts = [part.requires_grad_() for part in fit.parts]
        fit.move(self.steps, last=0.1, rounding=True, after=self.after)
        return fit

    def _coded(self, fit: Fit) -> Coded:
        height, width, channels = self.picture.shape
        return Coded(height, width, self.flat, fit.marks(), 0, np.zeros((channels, 8, 8, 0, 0), np.int16))

    def _finest(self, coded: Coded, drawn: Tensor, size: float, pitch: int = PITCHES[0]) -> Choice:
        """The finest step whose file fits; the range of steps is halved until one is left."""
        low, high, best = 0, STEPS - 1, None
        rest = self.picture - drawn
        waves = ripples.fit(rest, pitch)
        while low <= high:
            middle = (low + high) // 2
            choice = self._with(coded, drawn, middle, pitch, waves)
            if len(choice.data) <= size:
                best, low = choice, middle + 1
            else:
                high = middle - 1
        return best or choice

    def _with(self, coded: Coded, drawn: Tensor, step: int, pitch: int = PITCHES[0], waves=None) -> Choice:
        """The file with ripples of this step over the centers' picture."""
        rest, size = self.picture - drawn, step_size(step)
        waves = ripples.fit(rest, pitch) if waves is None else waves
        codes = ripples.quantize(rest, waves, pitch, size)
        shown = ripples.draw(ripples.restored(codes) * size, *rest.shape[:2], pitch)
        data = pack(coded._replace(step=step, ripples=codes_of(codes, pitch)))
        return Choice(data, float((rest - shown).square().sum()))
