"""How many centers, and how fine the ripples that add what they leave: the best file of a size or of a fineness."""

from collections.abc import Callable
from math import inf, isinf, log2
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnlib.image_codec import lapped_cosine
from nnlib.image_codec.bitstream import (
    STEPS,
    Coded,
    codes_of,
    pack,
    render_centers,
    rgb_to_opponent,
    step_size,
)
from nnlib.image_codec.center_fitting import CenterFitter

CENTER_BITS = 37  # that a center takes in a file
CAUTION = (
    0.25  # of it is added until the centers are rounded, as they look better than they will be
)
MOST = 0.8  # of the bytes that centers may take
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of so many centers, tried one after the other
STEPS_AT_END, LEAST, GROWTH = (
    600,
    60,
    6,
)  # steps of gradient at the end; after each growth, so many times fewer
LARGE = 1 << 20  # pixels, beyond which there are fewer steps
PATIENCE = (
    0.4  # more centers gain more from the last steps: so much higher a cost is no reason to stop
)
SPARSE = 190  # pixels that a center has to itself, at least
BIT_PRICE = 0.12  # the squared error that a bit is worth, in squared steps
PITCHES = (16, 8)
STEPS_AN_OCTAVE = 28  # of the size of a file, roughly


class Choice(NamedTuple):
    """A file, and its squared error."""

    data: bytes
    error: float


class RateController:
    """Fits centers to one picture [H, W, C] in 0..1, grey or RGB, and chooses how many of them pay."""

    def __init__(
        self,
        picture: Float[Tensor, "H W C"],
        flat=False,
        steps: int | None = None,
        seed=0,
        after=None,
    ):
        self.picture, self.flat, self.seed = rgb_to_opponent(picture), flat, seed
        self.steps = steps or max(
            round(STEPS_AT_END * min(LARGE / picture[..., 0].numel(), 1)), LEAST
        )
        self.after = after  # is called after each step of gradient
        self.near = STEPS // 4  # the step that fitted last

    def of_size(self, size: float) -> bytes:
        """The best file of at most `size` bytes, or the smallest where none is so small."""

        def estimate(fit: CenterFitter) -> float:
            left = size - CAUTION * CENTER_BITS / 8 * len(fit.parts[0])
            return self._finest(self._coded(fit), fit.drawn(), left).error

        def choose(fit: CenterFitter) -> tuple[float, int, bytes]:
            coded = self._coded(fit)
            found = [
                self._finest(coded, render_centers(coded, device=self.picture.device), size, pitch)
                for pitch in PITCHES
            ]
            return min((choice.error, len(choice.data), choice.data) for choice in found)

        return self._best(8 * MOST * size / CENTER_BITS, estimate, choose)

    def of_step(self, step: int) -> bytes:
        """The file whose ripples have this step, with as many centers as save more bits than they take."""

        def price(choice: Choice, centers: int = 0) -> float:
            bits = 8 * len(choice.data) + CAUTION * CENTER_BITS * centers
            return choice.error + BIT_PRICE * step_size(step) ** 2 * bits

        def estimate(fit: CenterFitter) -> float:
            return price(self._with(self._coded(fit), fit.drawn(), step), len(fit.parts[0]))

        def choose(fit: CenterFitter) -> tuple[float, int, bytes]:
            coded = self._coded(fit)
            found = [
                self._with(coded, render_centers(coded, device=self.picture.device), step, pitch)
                for pitch in PITCHES
            ]
            return min((price(choice), len(choice.data), choice.data) for choice in found)

        return self._best(inf, estimate, choose)

    def _best(self, most: float, estimate: Callable, choose: Callable) -> bytes:
        """The file with the most centers that may pay, or with fewer where these disappoint."""
        stages = self._stages(min(most, self.picture[..., 0].numel() / SPARSE), estimate)
        lowest, few = min(stages, key=lambda stage: stage[0])
        many = [parts for price, parts in stages if price <= (1 + PATIENCE) * lowest][
            -1 if 0 < lowest < inf else 0
        ]
        found = choose(self._finished(many))
        if found[0] > lowest and few is not many:
            found = min(found, choose(self._finished(few)))
        if isinf(found[0]):  # not even without ripples: a single center is the least there is
            one = CenterFitter(self.picture, self.seed)
            one.add(1)
            found = min(found, choose(self._finished(one.copy())))
        return found[2]

    def _stages(
        self, most: float, estimate: Callable[[CenterFitter], float]
    ) -> list[tuple[float, list[Tensor]]]:
        """Ever more centers, and what a file with them may cost, until that is hopeless."""
        fit, stages = CenterFitter(self.picture, self.seed), []
        for count in sorted({max(int(most * share), 1) for share in SHARES}):
            fit.add(count - len(fit.parts[0]))
            fit.move(-(-self.steps // GROWTH), after=self.after)
            stages.append((estimate(fit), fit.copy()))
            if stages[-1][0] > (1 + PATIENCE) * min(price for price, _ in stages):
                break
        return stages

    def _finished(self, parts: list[Tensor]) -> CenterFitter:
        fit = CenterFitter(self.picture, self.seed, parts)
        fit.move(self.steps, last=0.1, rounding=True, after=self.after)
        return fit

    def _coded(self, fit: CenterFitter) -> Coded:
        height, width, channels = self.picture.shape
        return Coded(
            height, width, self.flat, fit.marks(), 0, np.zeros((channels, 8, 8, 0, 0), np.int16)
        )

    def _finest(self, coded: Coded, drawn: Tensor, size: float, pitch: int = PITCHES[0]) -> Choice:
        """The finest step whose file fits: first guessed from the last sizes, then by halving what is left."""
        waves = lapped_cosine.analyze(self.picture - drawn, pitch)
        low, high, best, step, tries = 0, STEPS - 1, None, self.near, 0
        while low <= high:
            choice, tries = self._with(coded, drawn, step, pitch, waves), tries + 1
            if len(choice.data) <= size:
                best, low, self.near = choice, step + 1, step
            else:
                high = step - 1
            guess = step + round(STEPS_AN_OCTAVE * log2(max(size, 1) / len(choice.data)))
            step = min(max(guess, low), high) if tries < 5 else (low + high) // 2
        return best or self._bare(coded, drawn, pitch, size, 0 * waves)

    def _bare(
        self, coded: Coded, drawn: Tensor, pitch: int, size: float, nothing: Tensor
    ) -> Choice:
        """The file without ripples; its error is infinite where even that is too large."""
        choice = self._with(coded, drawn, 0, pitch, nothing, rounds=0)
        return choice if len(choice.data) <= size else Choice(choice.data, inf)

    def _with(
        self, coded: Coded, drawn, step: int, pitch: int = PITCHES[0], waves=None, rounds: int = 3
    ) -> Choice:
        """The file with ripples of this step over the centers' picture."""
        rest, size = self.picture - drawn, step_size(step)
        waves = lapped_cosine.analyze(rest, pitch) if waves is None else waves
        codes = lapped_cosine.quantize(rest, waves, pitch, size, rounds)
        shown = lapped_cosine.synthesize(
            lapped_cosine.dequantize(codes) * size, *rest.shape[:2], pitch
        )
        data = pack(coded._replace(step=step, ripples=codes_of(codes, pitch)))
        return Choice(data, float((rest - shown).square().sum()))
