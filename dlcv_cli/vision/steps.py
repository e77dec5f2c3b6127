"""A network as a list of named steps, split so that the first part gives the same numbers in every epoch.

Letters: N images, T tokens, D features of a token.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

from dlcv_cli.errors import DlcvError, list_names
from dlcv_cli.vision.architectures import Architecture
from dlcv_cli.vision.faster_layers import replace_layer
from dlcv_cli.vision.torchvision_parts import StochasticDepth


class PatchEmbedding(nn.Module):
    """A vision transformer's first step: patches as tokens, the class token before them, positions added."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.conv_proj, self.class_token = transformer.conv_proj, transformer.class_token
        self.pos_embedding = transformer.encoder.pos_embedding

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (N, T, D) of images (N, 3, H, W)."""
        tokens = self.conv_proj(x).flatten(2).transpose(1, 2)
        embedded: Tensor = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1) + self.pos_embedding
        return embedded


class ClassToken(nn.Module):
    """A vision transformer's step before its head: the class token alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the class token (N, D) of tokens (N, T, D)."""
        return x[:, 0]


# steps that torchvision's networks take in `forward`, outside of their layers: name -> a function of the network
ADAPTERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "flatten": lambda network: nn.Flatten(1),
    "patch_embedding": PatchEmbedding,
    "take_class_token": lambda network: ClassToken(),
}


def list_steps(network: nn.Module, architecture: Architecture) -> list[tuple[str, nn.Module]]:
    """Return every step with its name, in the order in which an image passes them.

    They share the network's layers, except for those without weights that faster ones replace.

    Raises:
        DlcvError: a layer with weights is in no step.
    """
    steps = [
        step
        for name in architecture.steps
        for step in _expand(name, ADAPTERS[name](network) if name in ADAPTERS else network.get_submodule(name))
    ]
    in_steps = {id(p) for _, step in steps for p in step.parameters()}
    if forgotten := [name for name, p in network.named_parameters() if id(p) not in in_steps]:
        raise DlcvError(f"the steps of {architecture.builder} in architectures.py lack {list_names(forgotten)}")
    return steps


def _expand(name: str, layer: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(layer) is not nn.Sequential:  # a subclass is a block with a name of its own
        return [(name, replace_layer(layer))]
    return [step for child, module in layer.named_children() for step in _expand(f"{name}.{child}", module)]


@dataclass(frozen=True)
class SplitNetwork:
    """A network in two: the frozen layers (eval mode, no gradients), and the tail, from the first step that trains."""

    network: nn.Module
    frozen: nn.Sequential
    tail: nn.Sequential
    boundary: str  # name of the tail's first step

    def train(self) -> None:
        """Set the layers that train to train mode.

        Dropout is live, in frozen layers of the tail as well. BatchNorm that does not train keeps its statistics.
        StochasticDepth skips a block at random to regularise the block's own weights: in a step in which nothing
        trains it is off, so that such steps can be among the frozen layers, whose features are computed once.
        """
        self.frozen.eval()
        self.tail.train()
        for step in self.tail:
            for module in step.modules():
                if isinstance(module, _BatchNorm) and not trains(module):
                    module.eval()
                if isinstance(module, StochasticDepth) and not trains(step):
                    module.eval()


def trains(module: nn.Module) -> bool:
    """Return whether any parameter of the module gets gradients."""
    return any(p.requires_grad for p in module.parameters())


def scale_by_depth(steps: Sequence[nn.Module], names: Mapping[int, str], factor: float) -> dict[str, float]:
    """Return factor**n for each parameter that trains, where n steps that train lie behind its own.

    Args:
        names: id of a parameter -> its name.
    """
    training = [step for step in steps if trains(step)]
    return {
        names[id(p)]: factor**n
        for n, step in enumerate(reversed(training))
        for p in step.parameters()
        if p.requires_grad
    }


def is_random(step: nn.Module) -> bool:
    """Return whether a step in which nothing trains draws random numbers in train mode (see SplitNetwork.train)."""
    return any(
        (isinstance(m, _DropoutNd) and m.p > 0)
        or (isinstance(m, nn.MultiheadAttention | nn.RNNBase) and m.dropout > 0)
        or isinstance(m, nn.RReLU)
        for m in step.modules()
    )


def split_at_frozen(network: nn.Module, architecture: Architecture) -> SplitNetwork:
    """Return a network split before the first step that trains or is random. This depends on requires_grad alone.

    For vgg16 with a head to train that is after classifier.1, with the default finetune before features.28.
    """
    steps = list_steps(network, architecture)
    at = next((i for i, (_, step) in enumerate(steps) if trains(step) or is_random(step)), len(steps))
    frozen, tail = (nn.Sequential(*(step for _, step in part)) for part in (steps[:at], steps[at:]))
    return SplitNetwork(network, frozen, tail, steps[at][0] if at < len(steps) else "the end")


@dataclass(frozen=True)
class Cost:
    """Shape and cost of the features of one image."""

    shape: tuple[int, ...]  # of its features: (C, H, W), (T, D) or (C,)
    flops: int  # of their forward pass: two for each multiplication and addition
    total_flops: int  # of the whole network's


def measure_cost(split: SplitNetwork, side: int) -> Cost:
    """Return shape and cost of the features of one image of side x side pixels, without computing anything."""
    with torch.device("meta"):
        image = torch.empty(1, 3, side, side)
    counts = []
    for layers in (split.frozen, split.tail):
        twin = _copy_to_meta(layers).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            image = twin(image)
        counts.append((counter.get_total_flops(), tuple(image.shape[1:])))
    (frozen, shape), (tail, _) = counts
    return Cost(shape, frozen, frozen + tail)


def require_size(network: nn.Module, architecture: Architecture, side: int) -> None:
    """Raise ValueError if the network cannot take images of side x side pixels; computes nothing."""
    if side == architecture.preprocessing.crop:  # what it is made for
        return
    layers = _copy_to_meta(nn.Sequential(*(step for _, step in list_steps(network, architecture)))).eval()
    try:
        layers(torch.empty(1, 3, side, side, device="meta"))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the network cannot take images of {side} x {side} pixels: {reason}") from None


def _copy_to_meta(layers: nn.Sequential) -> nn.Sequential:
    """Return the same layers on meta, without copying any weights."""
    memo = {id(t): torch.empty_like(t, device="meta") for t in (*layers.parameters(), *layers.buffers())}
    return copy.deepcopy(layers, memo)


def hash_steps(steps: Sequence[nn.Module], start: bytes) -> list[bytes]:
    """Return 32 bytes for each place between the steps, both ends included: a hash of all that is computed before it.

    Two networks that begin with the same layers and weights have the same beginning of this list.

    Args:
        start: digest of the input to the first step, and of how it is computed.
    """
    keys = [hashlib.sha256(start).digest()]
    for step in steps:
        digest = hashlib.sha256(keys[-1] + repr([(name, _describe(m)) for name, m in step.named_modules()]).encode())
        for name, tensor in step.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        keys.append(digest.digest())
    return keys


def _describe(module: nn.Module) -> tuple[str, str, dict[str, Any]]:
    """Return a module's class, repr and settings, because the repr lacks some of them (an attention's heads)."""
    plain = (bool, int, float, str, tuple)
    settings = {key: v for key, v in vars(module).items() if key != "training" and isinstance(v, plain)}
    return type(module).__qualname__, repr(module), settings
