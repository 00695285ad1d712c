"""How many centers, and how finely the rest is quantized: the best file of a size or of a step."""

from math import inf, log2
from typing import NamedTuple

import torch
from torch import Tensor

from nnlib.image_codec import lapped_cosine
from nnlib.image_codec.bitstream import STEP_SIZES, CodedImage, pack
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
    """Find the best file of a picture [H, W, C] in 0..1, of at most `size` bytes or with a step."""

    def __init__(self, picture, no_channel_axis, size, step, steps, seed, callback):
        self.picture = picture
        self.no_channel_axis = no_channel_axis
        self.size = size
        self.step = step
        pixels = picture[..., 0].numel()
        self.steps = steps or max(round(FINAL_STEPS * min(LARGE / pixels, 1)), MIN_STEPS)
        self.seed = seed
        self.callback = callback
        self.max_centers = pixels / PIXELS_PER_CENTER
        if step is None:
            self.max_centers = min(8 * MAX_CENTER_BYTES * size / CENTER_BITS, self.max_centers)
        self.last_step = len(STEP_SIZES) // 4  # that fitted

    def encode(self) -> bytes:
        """Return the file with the most centers that may pay, or with fewer if these disappoint."""
        stages = self._grow()
        lowest, few = min(stages, key=lambda stage: stage[0])
        many = few
        if 0 < lowest < inf:
            many = [parts for cost, parts in stages if cost <= (1 + TOLERANCE) * lowest][-1]
        best = self._finish(many)
        if best.cost > lowest and few is not many:
            best = min(best, self._finish(few))
        if best.cost == inf:  # too large even without coefficients: one center is the least
            fitter = CenterFitter(self.picture, self.seed)
            fitter.add(1)
            best = min(best, self._finish(fitter.parts))
        return best.data

    def _grow(self) -> list[tuple[float, list[Tensor]]]:
        """Estimate the costs of ever more centers, until they are hopeless."""
        fitter = CenterFitter(self.picture, self.seed)
        stages = []
        for count in sorted({max(int(self.max_centers * part), 1) for part in COUNT_FRACTIONS}):
            fitter.add(count - len(fitter.parts[0]))
            fitter.move(-(-self.steps // GROWTH), callback=self.callback)
            residual = fitter.picture - fitter.render()
            extra_bits = UNQUANTIZED_BITS * count
            cost = self._candidate(fitter.quantized(), residual, PITCHES[0], extra_bits).cost
            stages.append((cost, fitter.parts))
            if cost > (1 + TOLERANCE) * min(cost for cost, _ in stages):
                break
        return stages

    def _finish(self, parts: list[Tensor]) -> Candidate:
        """Fit and quantize the centers; return the best file with them."""
        fitter = CenterFitter(self.picture, self.seed)
        fitter.parts = parts
        fitter.move(self.steps, final_rate=0.1, quantizing=True, callback=self.callback)
        centers = fitter.quantized()
        fitter.parts = [part.to(self.picture) for part in centers.tensors()]
        residual = fitter.picture - fitter.render()
        return min(self._candidate(centers, residual, pitch) for pitch in PITCHES)

    def _candidate(self, centers, residual, pitch: int, extra_bits=0.0) -> Candidate:
        """Find coefficients for these centers, as if the file had more bits than it has."""
        coefficients = lapped_cosine.analyze(residual, pitch)
        if self.step is None:
            return self._finest(centers, residual, coefficients, pitch, self.size - extra_bits / 8)
        error, size, data = self._write(centers, residual, coefficients, pitch, self.step)
        price = BIT_PRICE * STEP_SIZES[self.step] ** 2
        return Candidate(error + price * (8 * size + extra_bits), size, data)

    def _finest(self, centers, residual, coefficients, pitch: int, size: float) -> Candidate:
        """Search the finest step whose file fits: guessed from sizes at first, then bisected."""
        low, high = 0, len(STEP_SIZES) - 1
        step = self.last_step
        best = None
        tries = 0
        while low <= high:
            candidate = self._write(centers, residual, coefficients, pitch, step)
            tries += 1
            if candidate.size <= size:
                best = candidate
                low = step + 1
                self.last_step = step
            else:
                high = step - 1
            guess = step + round(STEPS_PER_OCTAVE * log2(max(size, 1) / candidate.size))
            step = min(max(guess, low), high) if tries < 5 else (low + high) // 2
        best = best or self._write(centers, residual, 0 * coefficients, pitch, step=0, rounds=0)
        return best if best.size <= size else best._replace(cost=inf)  # the smallest wins

    def _write(self, centers, residual, coefficients, pitch: int, step: int, rounds=3) -> Candidate:
        """Write a file with these coefficients in steps; its cost is the squared error."""
        height, width, _ = residual.shape
        size = STEP_SIZES[step]
        codes = lapped_cosine.quantize(residual, coefficients, pitch, size, rounds)
        coefficients = lapped_cosine.dequantize(codes, size)
        error = residual - lapped_cosine.synthesize(coefficients, height, width, pitch)
        codes = codes.clamp(-32767, 32767).to(torch.int16).cpu().numpy()
        coded = CodedImage(height, width, self.no_channel_axis, centers, step, pitch, codes)
        data, _ = pack(coded)
        return Candidate(float(error.square().sum()), len(data), data)
