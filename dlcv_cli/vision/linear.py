"""The best linear head for fixed features, by L-BFGS: in seconds, where gradient descent takes many epochs.

Letters: N images, C channels, H and W positions, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.errors import SettingError
from dlcv_cli.vision.steps import SplitNetwork, trains

SETTINGS: dict[str, Any] = {  # of L-BFGS, at each weight decay
    "history_size": 10,
    "line_search_fn": "strong_wolfe",
    "tolerance_grad": 1e-6,
    "tolerance_change": 1e-9,
}
Loss = Callable[[Tensor, Tensor], Tensor]  # logits (N, K), labels (N,) -> their mean loss


@dataclass(frozen=True)
class LinearHead:
    """Where a network's last layer with weights is: logits are linear in the mean over positions of its input."""

    before: nn.Sequential  # the tail's layers before it
    layer: nn.Linear | nn.Conv2d
    after: nn.Sequential

    @classmethod
    def of(cls, split: SplitNetwork) -> LinearHead:
        """Return the only layer that trains. Raise SettingError if it is not linear, or not the only one."""
        steps = [*split.tail]
        training = [i for i, step in enumerate(steps) if trains(step)]
        layer = steps[training[0]]
        is_linear = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
        if len(training) > 1 or not is_linear:
            raise SettingError(f"--recipe auto needs a head of one linear layer, and this network's is {layer}")
        before, after = steps[: training[0]], steps[training[0] + 1 :]
        return cls(nn.Sequential(*before).eval(), layer, nn.Sequential(*after).eval())

    def pool(self, x: Tensor) -> Tensor:
        """Return the layer's input from the tail's: (N, C) float32, the mean over positions if there are any."""
        x = self.before(x.float())
        return x.mean((2, 3)) if x.dim() == 4 else x

    def set(self, solution: Solution, x: Tensor) -> None:
        """Give the layer the weights and bias of a solution.

        Before a ReLU the bias is raised. Softmax does not see what is added to all logits, and what is positive at
        every position passes the ReLU: only the lowest hundredth of what some images give is cut off.

        Args:
            x: what enters the tail, for these images.
        """
        with torch.no_grad():
            self.layer.weight.copy_(solution.weight.view_as(self.layer.weight))
            self.layer.bias.copy_(solution.bias)  # type: ignore[union-attr]  # all heads have one
            if any(isinstance(step, nn.ReLU) for step in self.after):
                lowest = self.layer(self.before(x.float())).flatten().float()
                self.layer.bias -= lowest.kthvalue(1 + len(lowest) // 100).values


@dataclass(frozen=True)
class Solution:
    """A linear head: logits = x @ weight.T + bias."""

    weight_decay: float
    weight: Tensor  # (K, C)
    bias: Tensor  # (K,)


def list_decays(x: Tensor, shares: Sequence[float]) -> list[float]:
    """Return weight decays for features (N, C), in units of their variance, rounded to two digits.

    With the features divided by their standard deviation, the same shares would do the same.
    """
    variance = (x - x.mean(0)).square().sum(1).mean().item()
    return [float(f"{share * variance:.2g}") for share in shares]


def solve(
    x: Tensor, labels: Tensor, classes: int, decays: Sequence[float], loss: Loss, iterations: int = 100
) -> Iterator[Solution]:
    """Yield the head that minimises loss + decay / 2 * the sum of the squared weights, for each decay in turn.

    Each begins from the one before, so the decays should fall. The features are centred and scaled for the solver.

    Args:
        x: features (N, C) float32.
        labels: (N,) int64.
        iterations: the most of L-BFGS at each decay.
    """
    mean = x.mean(0)
    z = x - mean
    scale = z.square().sum(1).mean().sqrt().clamp(min=1e-12)
    z = z / scale
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)

    def compute_objective(decay: float) -> Tensor:
        weight.grad = bias.grad = None
        objective = loss(F.linear(z, weight, bias), labels) + decay / 2 * weight.square().sum()
        torch.autograd.backward(objective)
        return objective

    for decay in decays:
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, **SETTINGS)
        optimizer.step(partial(compute_objective, decay / scale.item() ** 2))  # type: ignore[no-untyped-call]
        own = weight.detach() / scale
        yield Solution(decay, own, bias.detach() - own @ mean)
