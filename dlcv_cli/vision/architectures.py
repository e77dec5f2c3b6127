"""Straight-line networks as data. Adding one is adding an entry to ARCHITECTURES.

A layer is a tuple: its kind, then its numbers; input channels follow from what stands before it.
Kinds (see networks.py): conv (out, kernel, stride, padding), batchnorm, relu, maxpool (kernel, stride[, ceil]),
fire (squeeze, expand 1x1, expand 3x3), dropout (p), linear (out), avgpool (side). `K` stands for the number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlcv_cli.vision.preprocessing import Preprocessing

K = -1
Layer = tuple[Any, ...]


@dataclass(frozen=True)
class Architecture:
    """One network: features -> average pooling to `pool` x `pool` (if any) -> classifier."""

    features: tuple[Layer, ...]
    classifier: tuple[Layer, ...]
    pool: int | None
    head: str  # the layer that is made anew for K classes
    unfreeze: tuple[str, ...]  # what finetune trains by default
    initialise: str  # scheme of the random weights, see networks.INITIALISE
    weights: Mapping[str, str]  # names --weights knows: a torchvision weights entry, or a file we ship
    preprocessing: Preprocessing = field(default_factory=Preprocessing)


def _vgg(widths: str, batchnorm: bool = False) -> Architecture:
    """VGG from its column in table 1 of Simonyan & Zisserman 2015 (arXiv:1409.1556): 3x3 widths, M for pooling."""
    features: list[Layer] = []
    for width in widths.split():
        if width == "M":
            features.append(("maxpool", 2, 2))
        else:
            features += [("conv", int(width), 3, 1, 1), *([("batchnorm",)] if batchnorm else []), ("relu",)]
    last_conv = max(i for i, layer in enumerate(features) if layer[0] == "conv")
    depth = 3 + sum(layer[0] == "conv" for layer in features)
    return Architecture(
        features=tuple(features),
        classifier=_vgg_classifier(4096),
        pool=7,
        head="classifier.6",
        unfreeze=("classifier", f"features.{last_conv}"),
        initialise="vgg",
        weights={"imagenet": f"vgg{depth}{'_bn' if batchnorm else ''}"},
    )


def _vgg_classifier(width: int) -> tuple[Layer, ...]:
    hidden: tuple[Layer, ...] = (("linear", width), ("relu",), ("dropout", 0.5))
    return (*hidden, *hidden, ("linear", K))


VGG11 = "64 M 128 M 256 256 M 512 512 M 512 512 M"
VGG13 = "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M"
VGG16 = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M"
VGG19 = "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M"

ARCHITECTURES: dict[str, Architecture] = {
    "vgg11": _vgg(VGG11),
    "vgg13": _vgg(VGG13),
    "vgg16": _vgg(VGG16),
    "vgg19": _vgg(VGG19),
    "vgg11_bn": _vgg(VGG11, batchnorm=True),
    "vgg13_bn": _vgg(VGG13, batchnorm=True),
    "vgg16_bn": _vgg(VGG16, batchnorm=True),
    "vgg19_bn": _vgg(VGG19, batchnorm=True),
    # vgg16 at an eighth of the width for 64-pixel images: every code path in seconds on a CPU.
    "vgg16_mini": Architecture(
        features=_vgg(" ".join(w if w == "M" else str(int(w) // 8) for w in VGG16.split())).features,
        classifier=_vgg_classifier(512),
        pool=2,
        head="classifier.6",
        unfreeze=("classifier", "features.28"),
        initialise="he",  # N(0, 0.01), made for layers 4096 wide, leaves this one on its first plateau
        weights={"drawn": "vgg16_mini.safetensors"},
        preprocessing=Preprocessing(resize=64, crop=64),
    ),
    # Krizhevsky 2014 (arXiv:1404.5997), the one-column form, as in torchvision.
    "alexnet": Architecture(
        features=(
            ("conv", 64, 11, 4, 2), ("relu",), ("maxpool", 3, 2),
            ("conv", 192, 5, 1, 2), ("relu",), ("maxpool", 3, 2),
            ("conv", 384, 3, 1, 1), ("relu",),
            ("conv", 256, 3, 1, 1), ("relu",),
            ("conv", 256, 3, 1, 1), ("relu",), ("maxpool", 3, 2),
        ),
        classifier=(
            ("dropout", 0.5), ("linear", 4096), ("relu",),
            ("dropout", 0.5), ("linear", 4096), ("relu",),
            ("linear", K),
        ),
        pool=6,
        head="classifier.6",
        unfreeze=("classifier", "features.10"),
        initialise="default",
        weights={"imagenet": "alexnet"},
    ),
    # Iandola et al. 2016 (arXiv:1602.07360), version 1.1; the head is a 1x1 convolution.
    "squeezenet1_1": Architecture(
        features=(
            ("conv", 64, 3, 2, 0), ("relu",), ("maxpool", 3, 2, True),
            ("fire", 16, 64, 64), ("fire", 16, 64, 64), ("maxpool", 3, 2, True),
            ("fire", 32, 128, 128), ("fire", 32, 128, 128), ("maxpool", 3, 2, True),
            ("fire", 48, 192, 192), ("fire", 48, 192, 192),
            ("fire", 64, 256, 256), ("fire", 64, 256, 256),
        ),
        classifier=(("dropout", 0.5), ("conv", K, 1, 1, 0), ("relu",), ("avgpool", 1)),
        pool=None,
        head="classifier.1",
        unfreeze=("classifier", "features.12"),
        initialise="squeezenet",
        weights={"imagenet": "squeezenet1_1"},
    ),
}  # fmt: skip
