"""Builds the networks of architectures.py in torch, under torchvision's tensor names, and says what trains.

Letters: N images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlcv_cli.errors import DlcvError, list_names
from dlcv_cli.vision.architectures import Architecture, K


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1x1 and 3x3 convolutions side by side (arXiv:1602.07360)."""

    def __init__(self, channels: int, squeeze: int, expand1x1: int, expand3x3: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand1x1, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand3x3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, expand1x1 + expand3x3, H, W)."""
        squeezed = self.squeeze(x).relu_()
        return torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], 1).relu_()


# kind -> (channels in, the layer's numbers) -> (module, channels out)
BUILD: dict[str, Callable[..., tuple[nn.Module, int]]] = {
    "conv": lambda c, out, kernel, stride, padding: (nn.Conv2d(c, out, kernel, stride, padding), out),
    "batchnorm": lambda c: (nn.BatchNorm2d(c), c),
    "relu": lambda c: (nn.ReLU(inplace=True), c),
    "maxpool": lambda c, kernel, stride, ceil=False: (nn.MaxPool2d(kernel, stride, ceil_mode=ceil), c),
    "fire": lambda c, squeeze, one, three: (Fire(c, squeeze, one, three), one + three),
    "dropout": lambda c, p: (nn.Dropout(p), c),
    "linear": lambda c, out: (nn.Linear(c, out), out),
    "avgpool": lambda c, side: (nn.AdaptiveAvgPool2d(side), c),
}


class Network(nn.Module):
    """A straight line of layers: features, average pooling, flatten, classifier; logits (N, K) out."""

    def __init__(self, architecture: Architecture, classes: int) -> None:
        super().__init__()
        self.features, channels = _sequence(architecture.features, 3, classes)
        self.avgpool = nn.AdaptiveAvgPool2d(architecture.pool) if architecture.pool else None
        self.flatten: nn.Module = nn.Flatten(1)
        channels *= (architecture.pool or 1) ** 2
        self.classifier, _ = _sequence(architecture.classifier, channels, classes)

    def line(self) -> list[tuple[str, nn.Module]]:
        """Every layer with its name, in the order in which an image passes them."""
        features = [(f"features.{name}", layer) for name, layer in self.features.named_children()]
        classifier = [(f"classifier.{name}", layer) for name, layer in self.classifier.named_children()]
        flatten = [("flatten", self.flatten)]
        if self.avgpool is None:  # a convolutional classifier: its own last pooling leaves (N, K, 1, 1)
            return [*features, *classifier, *flatten]
        return [*features, ("avgpool", self.avgpool), *flatten, *classifier]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float -> logits (N, K)."""
        for _, layer in self.line():
            x = layer(x)
        return x


def _sequence(layers: Sequence[tuple[Any, ...]], channels: int, classes: int) -> tuple[nn.Sequential, int]:
    modules = []
    for kind, *numbers in layers:
        module, channels = BUILD[kind](channels, *(classes if n is K else n for n in numbers))
        modules.append(module)
    return nn.Sequential(*modules), channels


def _initialise_vgg(network: Network) -> None:
    """He-normal convolutions (fan out), N(0, 0.01) linear layers, zero biases. Source: torchvision's VGG."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _initialise_squeezenet(network: Network) -> None:
    """He-uniform convolutions, N(0, 0.01) for the head, zero biases. Source: torchvision's SqueezeNet."""
    head = network.classifier[1]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            if module is head:
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _initialise_he(network: Network) -> None:
    """He-normal weights (fan in), zero biases, in every layer. Source: He et al. 2015 (arXiv:1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


INITIALISE: dict[str, Callable[[Network], None]] = {
    "vgg": _initialise_vgg,
    "squeezenet": _initialise_squeezenet,
    "he": _initialise_he,
    "default": lambda network: None,  # torch.nn's own
}


def random_network(architecture: Architecture, classes: int, seed: int) -> Network:
    """A network of random weights by its architecture's scheme, head included; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(architecture, classes)
        INITIALISE[architecture.initialise](network)
    return network


def unfreeze(network: Network, names: Sequence[str]) -> None:
    """Lets exactly the layers of these names (and what is inside them) train.

    Raises:
        DlcvError: a name fits no layer with weights.
    """
    chosen = set()
    for name in names:
        inside = {p for p, _ in network.named_parameters() if p == name or p.startswith(f"{name}.")}
        if not inside:
            layers = dict.fromkeys(p.rpartition(".")[0] for p, _ in network.named_parameters())
            raise DlcvError(f"no layer {name!r} with weights in this network: it has {list_names(layers, 40)}")
        chosen |= inside
    for path, parameter in network.named_parameters():
        parameter.requires_grad_(path in chosen)


def count_parameters(network: Network) -> dict[str, int]:
    """How many numbers there are in all, and how many of them train."""
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, trains in sizes if trains)}


def stored_network(architecture: Architecture, classes: int, tensors: Mapping[str, Tensor]) -> Network:
    """A network with exactly these tensors, all of them and of the right shapes and types.

    Raises:
        ValueError: they are not this network's.
    """
    with torch.device("meta"):
        network = Network(architecture, classes)
    wanted = network.state_dict()
    odd = [name for name in tensors if name in wanted and tensors[name].dtype != wanted[name].dtype]
    if odd:
        raise ValueError(f"{list_names(odd)} of another type than expected")
    try:
        network.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return network


@dataclass(frozen=True)
class Fit:
    """How weights from elsewhere fit a network: names that fit, that the weights lack, and that are left over."""

    fits: list[str]
    missing: list[str]
    left_over: list[str]


def take_weights(network: Network, tensors: Mapping[str, Tensor], head: str) -> Fit:
    """Copies what fits by name and shape into the network, all but the head, and says what did."""
    own = {n: t for n, t in network.state_dict().items() if not n.startswith(f"{head}.")}
    fits = [name for name, t in own.items() if name in tensors and tensors[name].shape == t.shape]
    # torch counts batches there for BatchNorm's momentum=None alone; older files lack it
    missing = [name for name in own if name not in fits and not name.endswith("num_batches_tracked")]
    network.load_state_dict({name: tensors[name] for name in fits}, strict=False)
    return Fit(fits, missing, [name for name in tensors if name not in fits])
