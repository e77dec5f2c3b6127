"""Where the frozen part of a network ends: what lies before gives the same numbers in every epoch."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

from dlcv_cli.vision.models import Network


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


@dataclass(frozen=True)
class Work:
    """What the frozen prefix does to one image."""

    shape: tuple[int, ...]  # of its output: (C, H, W) or (C,)
    flops: int  # of its forward pass: two for each multiplication and addition
    total_flops: int  # of the whole network's


def work(parts: Cut, side: int) -> Work:
    """Shape and cost of the prefix for one image of side x side pixels, without computing anything."""
    with torch.device("meta"):
        image = torch.empty(1, 3, side, side)
    counts = []
    for layers in (parts.prefix, parts.suffix):
        twin = _on_meta(layers)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            image = twin(image)
        counts.append((counter.get_total_flops(), tuple(image.shape[1:])))
    (frozen, shape), (rest, _) = counts
    return Work(shape, frozen, frozen + rest)


def _on_meta(layers: nn.Sequential) -> nn.Sequential:
    """The same layers without numbers: not one byte of their weights is copied."""
    memo = {id(t): torch.empty_like(t, device="meta") for t in (*layers.parameters(), *layers.buffers())}
    return copy.deepcopy(layers, memo)


def chain(prefix: nn.Sequential, beginning: bytes) -> list[bytes]:
    """32 bytes for each place in the prefix, its end included, that say by content what is computed up to there.

    Two networks that begin with the same layers and weights have the same beginning of this list.

    Args:
        beginning: what the first layer is given, and how it is computed.
    """
    found = [hashlib.sha256(beginning).digest()]
    for layer in prefix:
        so_far = hashlib.sha256(found[-1] + repr(layer).encode())
        for name, tensor in layer.state_dict().items():
            so_far.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            so_far.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        found.append(so_far.digest())
    return found
