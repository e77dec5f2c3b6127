"""Where the frozen part of a network ends: what lies before gives the same numbers in every epoch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from dlcv_cli.vision.networks import Network


@dataclass(frozen=True)
class Cut:
    """A network in two: the frozen prefix (eval mode, no gradients) and the rest, which trains."""

    prefix: nn.Sequential
    suffix: nn.Sequential
    name: str  # the first layer of the suffix

    def train(self) -> None:
        """Train mode for what trains: dropout is live; BatchNorm that does not train keeps its statistics."""
        self.prefix.eval()
        self.suffix.train()
        for module in self.suffix.modules():
            if isinstance(module, _BatchNorm) and not trains(module):
                module.eval()


def trains(module: nn.Module) -> bool:
    """Whether any parameter of the module gets gradients."""
    return any(p.requires_grad for p in module.parameters())


def is_random(module: nn.Module) -> bool:
    """Whether the module draws random numbers in train mode."""
    return any(isinstance(m, _DropoutNd) and m.p > 0 for m in module.modules())


def cut(network: Network) -> Cut:
    """Cuts before the first layer that trains or is random in train mode; it follows from requires_grad alone.

    For vgg16 with a head to train that is after classifier.1, with the default finetune before features.28.
    """
    line = network.line()
    at = next((i for i, (_, layer) in enumerate(line) if trains(layer) or is_random(layer)), len(line))
    return Cut(
        nn.Sequential(*(layer for _, layer in line[:at])),
        nn.Sequential(*(layer for _, layer in line[at:])),
        line[at][0] if at < len(line) else "the end",
    )
