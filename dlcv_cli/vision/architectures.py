"""The networks that dlcv knows, as data. To add one that torchvision builds, add an entry. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dlcv_cli.vision.preprocessing import Preprocessing


@dataclass(frozen=True)
class Architecture:
    """How a network is built, and the order of its layers.

    `steps` names the layers in the order in which an image passes them, so that the frozen layers can end between any
    two. The name of an nn.Sequential stands for all layers in it. Operations of torchvision between layers, such as
    "flatten", are steps as well, from steps.ADAPTERS.
    """

    builder: str  # a name of torchvision's get_model, or of models.BUILDERS
    steps: tuple[str, ...]
    head: str  # the layer that gives the logits; `head` replaces and trains it
    unfreeze: tuple[str, ...]  # layers that finetune trains by default
    # name for --weights, the default first -> torchvision's name of the weights, or a file shipped with dlcv
    weights: Mapping[str, str] = field(default_factory=lambda: {"imagenet": "IMAGENET1K_V1"})
    preprocessing: Preprocessing = field(default_factory=Preprocessing)  # where the weights do not bring their own
    # whether timm has the network under the same name, and reads these tensors
    in_timm: bool = False


CONVOLUTIONAL = ("features", "avgpool", "flatten", "classifier")
RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "flatten", "fc")
VIT = ("patch_embedding", "encoder.dropout", "encoder.layers", "encoder.ln", "take_class_token", "heads")


def _vgg(builder: str, last_convolution: int) -> Architecture:
    unfreeze = ("classifier", f"features.{last_convolution}")
    return Architecture(builder, CONVOLUTIONAL, "classifier.6", unfreeze, in_timm=True)


ARCHITECTURES: dict[str, Architecture] = {
    "vgg11": _vgg("vgg11", 18),
    "vgg13": _vgg("vgg13", 22),
    "vgg16": _vgg("vgg16", 28),
    "vgg19": _vgg("vgg19", 34),
    "vgg11_bn": _vgg("vgg11_bn", 25),
    "vgg13_bn": _vgg("vgg13_bn", 31),
    "vgg16_bn": _vgg("vgg16_bn", 40),
    "vgg19_bn": _vgg("vgg19_bn", 49),
    # vgg16 at an eighth of the width for 64-pixel images: every code path in seconds on a CPU
    "vgg16_mini": Architecture(
        "vgg16_mini",
        CONVOLUTIONAL,
        head="classifier.6",
        unfreeze=("classifier", "features.28"),
        weights={"drawn": "vgg16_mini.safetensors"},
        preprocessing=Preprocessing(resize=64, crop=64),
    ),
    "alexnet": Architecture("alexnet", CONVOLUTIONAL, "classifier.6", ("classifier", "features.10")),
    "squeezenet1_1": Architecture(
        "squeezenet1_1", ("features", "classifier", "flatten"), "classifier.1", ("classifier", "features.12")
    ),
    "resnet18": Architecture("resnet18", RESNET, "fc", ("layer4", "fc"), in_timm=True),
    "resnet50": Architecture(
        "resnet50",
        RESNET,
        head="fc",
        unfreeze=("layer4", "fc"),
        weights={"imagenet": "IMAGENET1K_V1", "imagenet-v2": "IMAGENET1K_V2"},
        in_timm=True,
    ),
    "efficientnet_b0": Architecture(
        "efficientnet_b0",
        CONVOLUTIONAL,
        head="classifier.1",
        unfreeze=("features.7", "features.8", "classifier"),
        preprocessing=Preprocessing(interpolation="bicubic"),
    ),
    "mobilenet_v3_small": Architecture(
        "mobilenet_v3_small", CONVOLUTIONAL, "classifier.3", ("features.11", "features.12", "classifier")
    ),
    "convnext_tiny": Architecture(
        "convnext_tiny",
        ("features", "avgpool", "classifier"),
        head="classifier.2",
        unfreeze=("features.7", "classifier"),
        preprocessing=Preprocessing(resize=236),
    ),
    "vit_b_16": Architecture("vit_b_16", VIT, "heads.head", ("encoder.layers.encoder_layer_11", "encoder.ln", "heads")),
}
