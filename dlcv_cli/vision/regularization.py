"""What keeps a training from fitting its images too closely: mixed images, weights of classes, means of weights.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcv_cli.config import TrainConfig
from dlcv_cli.errors import SettingError
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


Targets = list[tuple[Tensor, float]]  # labels (n,), and their share


def mix_images(x: Tensor, labels: Tensor, config: TrainConfig, seed: int) -> tuple[Tensor, Targets]:
    """Return a batch (n, ...) mixed with itself in another order, and both orders' labels with their shares.

    Raises:
        SettingError: boxes are to be cut out of what has no positions.
    """
    rng = np.random.default_rng(seed)
    cuts = config.cutmix > 0 and (not config.mixup or rng.random() < 0.5)
    if not (alpha := config.cutmix if cuts else config.mixup):
        return x, [(labels, 1.0)]
    share, order = float(rng.beta(alpha, alpha)), torch.from_numpy(rng.permutation(len(x))).to(x.device)
    if cuts:
        mixed, share = _paste_box(x, x[order], share, rng)
    else:
        mixed = torch.lerp(x[order], x, share)
    return lay_out(mixed), [(labels, share), (labels[order], 1 - share)]


def _paste_box(x: Tensor, donors: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Return x (n, C, H, W) with a box of the donors (n, C, H, W), and the share of x that is left.

    Source: Yun et al. 2019 (arXiv:1905.04899): the box has its centre anywhere, and what lies beyond the edge is lost.
    """
    if x.dim() != 4:
        raise SettingError(
            "--cutmix: what enters the layers that train has no positions to cut a box out of; use --mixup"
        )
    height, width = x.shape[2:]
    (top, bottom), (left, right) = (
        np.clip(np.rint(rng.uniform(0, side) + np.array([-0.5, 0.5]) * side * np.sqrt(1 - share)), 0, side).astype(int)
        for side in (height, width)
    )
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = donors[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
