"""Gradients of the weighted average: the blocks are computed again, and nothing larger than one is ever kept."""

import torch

from nnlib.blocks import column_blocks, finite, row_blocks, without
from nnlib.frames import Room
from nnlib.nearby import nearest_of
from nnlib.stream import products

TINY = torch.finfo(torch.float32).tiny  # where a weight is 0, so is its pull


class Gradients:
    """Gradients to queries, centers, values and sharpness, for what the forward pass has kept in `ctx`."""

    def __init__(self, ctx, gradient):
        saved = ctx.saved_tensors
        self.queries, self.centers, self.values, result, self.near, total, self.exclude, sharpness = saved
        self.kernel, self.metric, self.room, self.fused = ctx.kernel, ctx.metric, Room(), ctx.fused
        self.source = self.values if ctx.labels is None else ctx.labels
        self.gradient = gradient / torch.where(total > 0, total, 1)[:, None]
        self.mean, self.pulled = (self.gradient * result).sum(1, keepdim=True), any(ctx.needs_input_grad[:2])
        self.sharpness = sharpness if ctx.needs_input_grad[3] else None
        self.to_sharpness = None if self.sharpness is None else torch.zeros_like(sharpness)
        self.inputs = (self.queries, self.centers, self.values)
        self.to_queries, self.to_centers, self.to_values = (
            torch.zeros(like.shape, dtype=gradient.dtype, device=like.device) if needed else None
            for needed, like in zip(ctx.needs_input_grad[:3], self.inputs, strict=True)
        )

    def run(self):
        """The gradients to queries, centers, values and sharpness, None for those that need none."""
        if self.fused:
            found = self.fused.gradients(self.gradient, self.mean[:, 0], self.near)
            pairs = zip(found, (self.to_queries, self.to_centers, self.to_values), self.inputs, strict=True)
            return *(None if to is None else gradient.to(like.dtype) for gradient, to, like in pairs), None
        for rows in row_blocks(self.queries):
            x = self.metric.rows(self.queries[rows].to(self.gradient.dtype))
            near, to_near = finite(self.near[rows]), torch.zeros_like(self.near[rows])
            for cols in column_blocks(self.centers):
                self._block(x, rows, cols, near, to_near)
            if self.kernel.needs_nearest and self.pulled:
                self._spread_nearest(rows, to_near)
        found = zip((self.to_queries, self.to_centers, self.to_values), self.inputs, strict=True)
        return *(None if gradient is None else gradient.to(like.dtype) for gradient, like in found), self.to_sharpness

    def _block(self, x, rows, cols, near, to_near):
        c = self.metric.rows(self.centers[cols].to(self.gradient.dtype))
        distance, kept = self.metric.measure(x, c, keep=True)
        skip = None if self.exclude is None else self.exclude[rows]
        apart = self.pulled or self.sharpness is not None
        weights = self.room.beside("weights", distance).copy_(distance) if apart else distance
        self.kernel.weigh(without(weights, skip, cols), near, self.metric.scale)
        gradient, v = self.gradient[rows], self.source[cols].to(self.gradient.dtype)
        if self.to_values is not None:
            self.to_values[cols] += products(weights.T, gradient)
        if not apart:
            return
        pull = torch.mm(gradient, v.T, out=self.room.beside("pull", distance)).sub_(self.mean[rows]).mul_(weights)
        if self.sharpness is not None:  # a weight's logarithm grows with the power by that logarithm over the power
            self.to_sharpness += torch.xlogy(pull, weights.clamp(min=TINY)).sum() / self.sharpness
        if self.pulled:
            self.kernel.steepen(pull, distance, near, self.metric.scale, weights)
            if self.kernel.needs_nearest:
                to_near -= self.kernel.influence_cone_factor * pull.sum(1)
            to_queries, to_centers = self.metric.pull(x, c, distance, kept, pull)
            if self.to_queries is not None:
                self.to_queries[rows] += to_queries
            if self.to_centers is not None:
                self.to_centers[cols] += to_centers

    def _spread_nearest(self, rows, to_near):
        """The nearest distance is itself one of the distances: pass its gradient on to that pair."""
        skip = None if self.exclude is None else self.exclude[rows]
        index = nearest_of(self.queries[rows], self.centers, 1, self.metric, skip)[1][:, 0].clamp(min=0)
        x, c = (part.to(self.gradient.dtype) for part in (self.queries[rows], self.centers[index]))
        difference = (x - c) * self.metric.scale
        length = torch.linalg.vector_norm(difference, dim=1)
        pull = difference * (to_near * self.metric.scale / torch.where(length > 0, length, 1))[:, None]
        if self.to_queries is not None:
            self.to_queries[rows] += pull
        if self.to_centers is not None:
            self.to_centers.index_add_(0, index, pull, alpha=-1)
