"""How many centers, and how finely the rest is quantized: the best file of a size or of a step."""

from collections.abc import Callable
from copy import deepcopy
from math import inf, log2
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnlib.image_codec import lapped_cosine
from nnlib.image_codec.bitstream import (
    STEPS,
    CodedImage,
    pack,
    render_centers,
    rgb_to_opponent,
    step_size,
)
from nnlib.image_codec.center_fitting import CenterFitter

CENTER_BITS = 37  # that a center takes in a file
UNQUANTIZED_BITS = 0.25 * CENTER_BITS  # charged besides, as quantization will make centers worse
MAX_CENTER_BYTES = 0.8  # the fraction of a file that centers may take
PIXELS_PER_CENTER = 190  # at least
COUNT_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the most centers, tried one after the other
FINAL_STEPS = 600  # of gradient, once the number of centers is chosen
MIN_STEPS = 60
GROWTH = 6  # steps are so many times fewer after centers are added
LARGE = 1 << 20  # pixels, beyond which there are fewer steps
TOLERANCE = 0.4  # final steps help many centers more: so much higher a cost may still win
BIT_PRICE = 0.12  # the squared error that a bit is worth, in squared steps
PITCHES = (16, 8)
STEPS_PER_OCTAVE = 28  # of the size of a file, roughly


class Candidate(NamedTuple):
    """A file and its cost; the least candidate wins."""

    cost: float
    size: int
    data: bytes


class RateController:
    """Fit centers to a picture [H, W, C] in 0..1, and choose how many of them pay."""

    def __init__(self, picture: Tensor, no_channel_axis=False, steps=None, seed=0, callback=None):
        self.rgb = picture
        self.picture = rgb_to_opponent(picture)
        self.no_channel_axis = no_channel_axis
        self.pixels = picture[..., 0].numel()
        self.steps = steps or max(round(FINAL_STEPS * min(LARGE / self.pixels, 1)), MIN_STEPS)
        self.seed = seed
        self.callback = callback
        self.last_step = STEPS // 4  # that fitted

    def encode_to_size(self, size: float) -> bytes:
        """Return the best file of at most `size` bytes, or the smallest where none is so small."""

        def candidate(coded, residual, pitch=PITCHES[0], extra_bits=0.0) -> Candidate:
            return self._finest(coded, residual, pitch, size - extra_bits / 8)

        return self._search(8 * MAX_CENTER_BYTES * size / CENTER_BITS, candidate)

    def encode_to_step(self, step: int) -> bytes:
        """Return a file of this step, with as many centers as save more bits than they take."""

        def candidate(coded, residual, pitch=PITCHES[0], extra_bits=0.0) -> Candidate:
            coefficients = lapped_cosine.analyze(residual, pitch)
            error, size, data = _write(coded, residual, coefficients, pitch, step)
            price = BIT_PRICE * step_size(step) ** 2
            return Candidate(error + price * (8 * size + extra_bits), size, data)

        return self._search(inf, candidate)

    def _search(self, max_centers: float, candidate: Callable[..., Candidate]) -> bytes:
        """Return the file with the most centers that may pay, or with fewer if these disappoint."""
        stages = self._grow(min(max_centers, self.pixels / PIXELS_PER_CENTER), candidate)
        lowest, few = min(stages, key=lambda stage: stage[0])
        many = few
        if 0 < lowest < inf:
            many = [parts for cost, parts in stages if cost <= (1 + TOLERANCE) * lowest][-1]
        best = self._finish(many, candidate)
        if best.cost > lowest and few is not many:
            best = min(best, self._finish(few, candidate))
        if best.cost == inf:  # too large even without coefficients: one center is the least
            fitter = CenterFitter(self.rgb, self.seed)
            fitter.add(1)
            best = min(best, self._finish(fitter.parts, candidate))
        return best.data

    def _grow(self, max_centers: float, candidate) -> list[tuple[float, list[Tensor]]]:
        """Estimate the costs of ever more centers, until they are hopeless."""
        fitter = CenterFitter(self.rgb, self.seed)
        stages = []
        for count in sorted({max(int(max_centers * part), 1) for part in COUNT_FRACTIONS}):
            fitter.add(count - len(fitter.parts[0]))
            fitter.move(-(-self.steps // GROWTH), callback=self.callback)
            residual = self.picture - fitter.render()
            extra_bits = UNQUANTIZED_BITS * count
            cost = candidate(self._coded(fitter), residual, extra_bits=extra_bits).cost
            stages.append((cost, deepcopy(fitter.parts)))
            if cost > (1 + TOLERANCE) * min(cost for cost, _ in stages):
                break
        return stages

    def _finish(self, parts: list[Tensor], candidate) -> Candidate:
        """Fit and quantize the centers; return the best file with them."""
        fitter = CenterFitter(self.rgb, self.seed)
        fitter.parts = parts
        fitter.move(self.steps, final_rate=0.1, quantizing=True, callback=self.callback)
        coded = self._coded(fitter)
        residual = self.picture - render_centers(coded, device=self.picture.device)
        return min(candidate(coded, residual, pitch) for pitch in PITCHES)

    def _coded(self, fitter: CenterFitter) -> CodedImage:
        nothing = np.zeros((self.picture.shape[2], 0, 0), np.int16)
        size = self.picture.shape[:2]
        return CodedImage(*size, self.no_channel_axis, fitter.quantized(), 0, 8, nothing)

    def _finest(self, coded: CodedImage, residual: Tensor, pitch: int, size: float) -> Candidate:
        """Search the finest step whose file fits: guessed from sizes at first, then bisected."""
        coefficients = lapped_cosine.analyze(residual, pitch)
        low, high = 0, STEPS - 1
        step = self.last_step
        best = None
        tries = 0
        while low <= high:
            candidate = _write(coded, residual, coefficients, pitch, step)
            tries += 1
            if candidate.size <= size:
                best = candidate
                low = step + 1
                self.last_step = step
            else:
                high = step - 1
            guess = step + round(STEPS_PER_OCTAVE * log2(max(size, 1) / candidate.size))
            step = min(max(guess, low), high) if tries < 5 else (low + high) // 2
        best = best or _write(coded, residual, 0 * coefficients, pitch, step=0, rounds=0)
        return best if best.size <= size else best._replace(cost=inf)


def _write(coded: CodedImage, residual, coefficients, pitch: int, step: int, rounds=3) -> Candidate:
    """Write a file with these coefficients in steps; its cost is the squared error."""
    size = step_size(step)
    codes = lapped_cosine.quantize(residual, coefficients, pitch, size, rounds)
    coefficients = lapped_cosine.dequantize(codes, size)
    error = residual - lapped_cosine.synthesize(coefficients, *residual.shape[:2], pitch)
    codes = codes.clamp(-32767, 32767).to(torch.int16).cpu().numpy()
    data, _ = pack(coded._replace(step=step, pitch=pitch, codes=codes))
    return Candidate(float(error.square().sum()), len(data), data)
