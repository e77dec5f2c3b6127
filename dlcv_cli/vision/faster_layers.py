"""Layers of torch that take most of a head's training step on the CPU, computed faster.

They have the names of torch's, since those of the frozen layers are part of a feature cache's key.

Letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout whose random numbers for (N, C, H, W) are drawn by numpy, 1 or 16 bits an element; else torch's own.

    torch draws 53 bits an element. Before a convolution (SqueezeNet's is one) that is most of a head's training step;
    for vectors it is a small part. Each mask starts from one number of torch's global generator, so it follows from
    torch.manual_seed. It is the same on every device, and does not depend on the order of the dimensions in memory.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return x (N, ...) with each element 0 with probability p, else divided by 1 - p; in eval mode x itself."""
        if not self.training or input.dim() != 4 or not 0 < self.p < 1:
            return super().forward(input)
        kept = self._draw(input.shape).to(input.device, non_blocking=True).to(input.dtype)
        return (input * kept).mul_(1 / (1 - self.p))

    def _draw(self, shape: torch.Size) -> Tensor:
        """Return 1 for the elements that are kept, else 0: (N, C, H, W) uint8, channels last in memory.

        16 bits round p to a multiple of 1 / 65536.
        """
        count, bits = shape.numel(), 1 if self.p == 0.5 else 16
        numbers = np.random.PCG64(int(torch.randint(2**63 - 1, ()))).random_raw(-(-count * bits // 64))
        if bits == 1:
            mask = np.unpackbits(numbers.view(np.uint8), count=count)
        else:
            mask = (numbers.view(np.uint16)[:count] >= round(self.p * 2**16)).view(np.uint8)
        n, c, h, w = shape
        return torch.from_numpy(mask).view(n, h, w, c).permute(0, 3, 1, 2)


class _Mean(torch.autograd.Function):
    """The mean over H and W. Its gradient is not copied to every pixel, so the layer before reads it much faster."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        mean = x.mean((2, 3), keepdim=True)
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0] / (ctx.shape[2] * ctx.shape[3])
        every: Tensor = gradient.expand(ctx.shape)
        return every


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """torch's pooling to one pixel, with the same bits forward and backward."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the means (N, C, 1, 1) of x (N, C, H, W)."""
        mean: Tensor = _Mean.apply(input) if self.training else super().forward(input)
        return mean


def replace_layer(layer: nn.Module) -> nn.Module:
    """Return a faster layer in place of one without weights, if there is one, else the layer itself."""
    if type(layer) is nn.Dropout:
        return Dropout(layer.p, layer.inplace).train(layer.training)
    if type(layer) is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1)):
        return AdaptiveAvgPool2d(layer.output_size).train(layer.training)
    return layer
