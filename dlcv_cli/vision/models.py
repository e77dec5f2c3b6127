"""Build the networks of architectures.py, load their weights, and set which of their layers train.

Letters: K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlcv_cli.errors import DlcvError, list_names
from dlcv_cli.vision.architectures import Architecture
from dlcv_cli.vision.torchvision_parts import VGG, cfgs, get_model, make_layers


def _build_vgg16_mini(classes: int) -> nn.Module:
    """Return torchvision's VGG16 at an eighth of the width, pooled to 2 x 2, with a classifier 512 wide."""
    features = make_layers([width if width == "M" else int(width) // 8 for width in cfgs["D"]])
    with torch.device("meta"):  # the classifier is replaced below, so it takes no memory and no random numbers
        network = VGG(features, num_classes=classes, init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(2)
    hidden = [
        layer for size in (64 * 2 * 2, 512) for layer in (nn.Linear(size, 512), nn.ReLU(inplace=True), nn.Dropout(0.5))
    ]
    network.classifier = nn.Sequential(*hidden, nn.Linear(512, classes))
    # VGG's own scheme, N(0, 0.01) for layers 4096 wide, leaves a network this narrow on its first plateau
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):  # Source: He et al. 2015 (arXiv:1502.01852), fan in
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # all of them have a bias
    return network  # type: ignore[no-any-return]  # torchvision has no types


# networks that torchvision does not have: name -> a function of the number of classes
BUILDERS: dict[str, Callable[[int], nn.Module]] = {"vgg16_mini": _build_vgg16_mini}


def build_network(architecture: Architecture, classes: int) -> nn.Module:
    """Return a network with K logits and random weights, drawn from torch's global generator."""
    build = BUILDERS.get(architecture.builder)
    network: nn.Module = build(classes) if build else get_model(architecture.builder, num_classes=classes)
    return network


def build_random_network(architecture: Architecture, classes: int, seed: int) -> nn.Module:
    """Return a network whose random weights depend on the seed alone. Leave torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(architecture, classes)


def build_loaded_network(architecture: Architecture, classes: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a network with exactly these tensors.

    Raises:
        ValueError: a tensor is missing, superfluous, or has another shape or dtype.
    """
    with torch.device("meta"), _SkipInitialisation():
        network = build_network(architecture, classes)
    expected = network.state_dict()
    mistyped = [name for name in tensors if name in expected and tensors[name].dtype != expected[name].dtype]
    if mistyped:
        raise ValueError(f"{list_names(mistyped)} of another type than expected")
    try:
        network.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return network


class _SkipInitialisation(TorchFunctionMode):
    """Leaves new weights as they are: without numbers, to draw them would do nothing but import torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def list_top_layers(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the outermost layers with weights, which together are the whole network."""
    return tuple(dict.fromkeys(name.partition(".")[0] for name, _ in network.named_parameters()))


def unfreeze(network: nn.Module, names: Sequence[str]) -> None:
    """Make exactly the layers with these names, and all layers inside them, train.

    Raises:
        DlcvError: no layer with weights has the name.
    """
    trainable = set()
    for name in names:
        matches = {p for p, _ in network.named_parameters() if p == name or p.startswith(f"{name}.")}
        if not matches:
            layers = dict.fromkeys(p.rpartition(".")[0] or p for p, _ in network.named_parameters())
            raise DlcvError(f"no layer {name!r} with weights in this network: it has {list_names(layers, 40)}")
        trainable |= matches
    for path, parameter in network.named_parameters():
        parameter.requires_grad_(path in trainable)


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Return the `total` number of parameters, and the number of `trainable` ones."""
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, trains in sizes if trains)}


class Classifier(nn.Module):
    """A network in eval mode with its temperature: pixels (N, 3, S, S) to probabilities and logits, both (N, K)."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network.eval(), temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits."""
        logits = self.network(pixels) / self.temperature
        return logits.softmax(1), logits


@dataclass(frozen=True)
class Fit:
    """How weights fit a network: names that fit, names missing in the weights, and names that the network lacks."""

    fits: list[str]
    missing: list[str]
    unused: list[str]


def copy_weights(network: nn.Module, tensors: Mapping[str, Tensor], head: str) -> Fit:
    """Copy into the network the tensors that fit by name and shape, except those of the head."""
    own = {n: t for n, t in network.state_dict().items() if not n.startswith(f"{head}.")}
    fits = [name for name, t in own.items() if name in tensors and tensors[name].shape == t.shape]
    # torch counts batches in num_batches_tracked, for BatchNorm's momentum=None only; older files lack it
    missing = [name for name in own if name not in fits and not name.endswith("num_batches_tracked")]
    network.load_state_dict({name: tensors[name] for name in fits}, strict=False)
    return Fit(fits, missing, [name for name in tensors if name not in fits])
