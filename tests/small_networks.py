"""Networks small enough for tests, each with an entry that dlcv can build it from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from torch import Tensor, nn
from torchvision.models import ConvNeXt, ResNet, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import cfgs, make_layers

from dlcv_cli.vision.architectures import ARCHITECTURES, Architecture
from dlcv_cli.vision.models import BUILDERS
from dlcv_cli.vision.preprocessing import Preprocessing

# the networks that torchvision does not build as a straight line of layers
NEW = ("resnet18", "resnet50", "efficientnet_b0", "mobilenet_v3_small", "convnext_tiny", "vit_b_16")


class Line(nn.Module):
    """A network of features, average pooling, flattening and classifier."""

    def __init__(self, features: Sequence[nn.Module], pool: int, classifier: Sequence[nn.Module]) -> None:
        super().__init__()
        self.features, self.avgpool = nn.Sequential(*features), nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def entry(name: str, build: Callable[[int], nn.Module], head: str, unfreeze: tuple[str, ...]) -> Architecture:
    """Return an entry for a network that a test builds itself, 64 pixels wide."""
    BUILDERS[name] = build
    return replace(ARCHITECTURES["vgg16_mini"], builder=name, head=head, unfreeze=unfreeze)


def _conv(inputs: int, outputs: int, stride: int = 2) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


# no dropout: what an image loses does not depend on when it is looked at
PLAIN = entry(
    "test_plain",
    lambda k: Line([_conv(3, 8), nn.ReLU(inplace=True)], 2, [nn.Linear(32, k)]),
    "classifier.0",
    ("classifier",),
)
BATCHNORM = entry(
    "test_batchnorm",
    lambda k: Line([_conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)], 2, [nn.Linear(32, k)]),
    "classifier.0",
    ("classifier",),
)
ALEXNET_FEATURES = entry(
    "test_alexnet",
    lambda k: Line(
        [
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        ],
        6,
        [nn.Dropout(0.5), nn.Linear(192 * 36, k)],
    ),
    "classifier.1",
    ("classifier",),
)
# batch normalisation between convolution and ReLU, and frozen linear layers
DEEPER_BATCHNORM = entry(
    "test_deeper_batchnorm",
    lambda k: Line(
        [_conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2), _conv(8, 16, 1)],
        2,
        [nn.Linear(64, 32), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(32, k)],
    ),
    "classifier.3",
    ("classifier",),
)


def _build_narrow_vgg11_bn(classes: int) -> nn.Module:
    line = [nn.Linear(512, 16), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(16, classes)]
    return Line(make_layers(cfgs["A"], batch_norm=True), 1, line)


NARROW_VGG11_BN = entry("test_vgg11_bn", _build_narrow_vgg11_bn, "classifier.3", ("classifier",))


def _build_small_vit(classes: int) -> nn.Module:
    """Return the layers of vit_b_16, a twenty-fourth as wide, for 64 pixels."""
    return VisionTransformer(
        image_size=64, patch_size=16, num_layers=12, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=classes
    )


def _build_small_convnext(classes: int) -> nn.Module:
    """Return the layers of convnext_tiny, fewer and narrower."""
    widths = [(8, 16), (16, 16), (16, 32), (32, None)]
    blocks = [CNBlockConfig(width, following, 2) for width, following in widths]
    return ConvNeXt(blocks, stochastic_depth_prob=0.1, num_classes=classes)


def _build_small_resnet50(classes: int) -> nn.Module:
    """Return the blocks of resnet50, one in each stage."""
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=classes, width_per_group=8)


def shrink_networks(patch: pytest.MonkeyPatch) -> None:
    """Make the newer networks take 64 pixels, and the largest ones have fewer and narrower layers."""
    patch.setitem(BUILDERS, "vit_b_16", _build_small_vit)
    patch.setitem(BUILDERS, "convnext_tiny", _build_small_convnext)
    patch.setitem(BUILDERS, "resnet50", _build_small_resnet50)
    for name in NEW:
        interpolation = ARCHITECTURES[name].preprocessing.interpolation
        small = replace(ARCHITECTURES[name], preprocessing=Preprocessing(64, 64, interpolation=interpolation))
        patch.setitem(ARCHITECTURES, name, small)
