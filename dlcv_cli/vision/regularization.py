"""What keeps a training from fitting its images too closely: mixed images, weights of classes, means of weights.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcv_cli.vision.inference import lay_out


def list_changing(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what training changes: trainable parameters, and buffers (BatchNorm's statistics)."""
    yield from ((name, p) for name, p in network.named_parameters() if p.requires_grad)
    yield from network.named_buffers()


class MeanWeights:
    """Running means of all that training changes in a network. They can be exchanged with its weights.

    The decay grows to its value as (1 + n) / (10 + n) after n steps, so that the beginning is soon forgotten.
    Source: tf.train.ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.exchanged = decay, False
        self.live = {name: t.detach() for name, t in list_changing(network)}
        self.means = {name: t.clone() for name, t in self.live.items()}

    def update(self, step: int) -> None:
        """Update the means after the step of this number (0 is the first). Copy counters, which are integers."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, mean in self.means.items():
            if mean.is_floating_point():
                mean.lerp_(self.live[name], weight)
            else:
                mean.copy_(self.live[name])

    def exchange(self) -> None:
        """Exchange the network's weights and their means, or exchange them back."""
        for name, mean in self.means.items():
            now = self.live[name].clone()
            self.live[name].copy_(mean)
            mean.copy_(now)
        self.exchanged = not self.exchanged

    def pair(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return (weights that are trained, their means)."""
        return (self.means, self.live) if self.exchanged else (self.live, self.means)


def weigh_classes(labels: NDArray[np.int64], classes: int, how: str) -> Tensor:
    """Return a weight for each class (K,) float32: N / (K * images of the class), or with `sqrt` its square root."""
    counts = np.bincount(labels, minlength=classes).clip(1)
    balanced = torch.from_numpy(len(labels) / (classes * counts)).float()
    return balanced.sqrt() if how == "sqrt" else balanced


def mix_up(x: Tensor, labels: Tensor, alpha: float, seed: int) -> tuple[Tensor, list[tuple[Tensor, float]]]:
    """Return a batch mixed with itself in another order, and both orders' labels with their shares.

    Source: Zhang et al. 2017 (arXiv:1710.09412); for features of frozen layers Verma et al. 2018 (arXiv:1806.05236).
    """
    if not alpha:
        return x, [(labels, 1.0)]
    rng = np.random.default_rng(seed)
    share, order = float(rng.beta(alpha, alpha)), torch.from_numpy(rng.permutation(len(x))).to(x.device)
    return lay_out(torch.lerp(x[order], x, share)), [(labels, share), (labels[order], 1 - share)]
