"""The networks against torchvision's: names, shapes, published sizes, steps; what trains, and where they are split."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torchvision
from small_networks import NARROW_VGG11_BN, NEW, shrink_networks
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.ops import StochasticDepth

from dlcv_cli.errors import DlcvError
from dlcv_cli.vision.architectures import ARCHITECTURES, RESNET
from dlcv_cli.vision.models import (
    build_loaded_network,
    build_network,
    build_random_network,
    copy_weights,
    count_parameters,
    list_top_layers,
    unfreeze,
)
from dlcv_cli.vision.steps import is_random, list_steps, require_size, split_at_frozen, trains

IN_TORCHVISION = sorted(set(ARCHITECTURES) - {"vgg16_mini"})
ALL_LAYERS = ("features", "classifier")


def build_on_meta(arch: str, classes: int) -> nn.Module:
    """Return the network without its numbers: shapes only."""
    with torch.device("meta"):
        return build_network(ARCHITECTURES[arch], classes)


def randomise(module: nn.Module) -> nn.Module:
    """Give a network built on meta random numbers, also in BatchNorm statistics, that keep the scale of activations."""
    module = module.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.ndim > 1:
                nn.init.kaiming_uniform_(tensor, nonlinearity="relu")
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith(("var", "weight")) else tensor.uniform_(-0.2, 0.2)
            else:
                tensor.zero_()
    return module


def random_images(count: int, side: int) -> Tensor:
    """Return (count, 3, side, side) float32, the same in every call."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", IN_TORCHVISION)
def test_tensors_match_torchvision(arch: str) -> None:
    """A network's tensors load strictly into torchvision's own network of that name."""
    with torch.device("meta"):
        theirs = torchvision.models.get_model(arch, num_classes=7)
    ours = build_on_meta(arch, 7)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


@pytest.mark.parametrize("arch", IN_TORCHVISION)
def test_size_matches_torchvision(arch: str) -> None:
    """With ImageNet's 1000 classes, a network has as many parameters as torchvision publishes for its weights."""
    published = get_model_weights(arch).IMAGENET1K_V1.meta["num_params"]
    assert count_parameters(build_on_meta(arch, 1000))["total"] == published


@pytest.mark.parametrize(
    ("arch", "total"),
    [
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("vgg11_bn", 132_868_840),
        ("alexnet", 61_100_840),
        ("squeezenet1_1", 1_235_496),
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("vit_b_16", 86_567_656),
    ],
)
def test_size_matches_publication(arch: str, total: int) -> None:
    """Sizes are those in the literature."""
    assert count_parameters(build_on_meta(arch, 1000)) == {"total": total, "trainable": total}


@pytest.mark.parametrize("arch", ["alexnet", "squeezenet1_1", "vgg11_bn", "vgg16_mini", *NEW])
def test_steps_match_the_forward_pass(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps one after the other give the logits of torchvision's forward pass, bit by bit."""
    shrink_networks(monkeypatch)
    network = randomise(build_on_meta(arch, 7))
    side = 64 if arch == "vit_b_16" else 100
    x = random_images(2, side)
    with torch.inference_mode():
        expected, steps = network(x.clone()), x
        for _, step in list_steps(network, ARCHITECTURES[arch]):
            steps = step(steps)
    assert expected.shape == (2, 7)
    assert (expected[0] - expected[1]).abs().max() > 1e-3, "the case can tell images apart"
    assert torch.equal(steps, expected)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_parameter_is_in_one_step(arch: str) -> None:
    """The steps have every parameter and buffer of the network exactly once, and no two have the same name."""
    network = build_on_meta(arch, 7)
    steps = list_steps(network, ARCHITECTURES[arch])
    tensors = [id(t) for _, step in steps for t in (*step.parameters(), *step.buffers())]
    assert len(set(tensors)) == len(tensors)
    assert set(tensors) == {id(t) for t in (*network.parameters(), *network.buffers())}
    assert len({name for name, _ in steps}) == len(steps)


def test_missing_step_is_named() -> None:
    """An entry whose steps lack a layer with weights is refused by that layer, other gaps in torch's words."""
    network = build_network(ARCHITECTURES["resnet18"], 5)
    entry = replace(ARCHITECTURES["resnet18"], steps=tuple(s for s in RESNET if s != "bn1"))
    with pytest.raises(DlcvError, match=r"steps of resnet18 .* bn1\.weight, bn1\.bias"):
        split_at_frozen(network, entry)
    entry = replace(entry, steps=tuple(s for s in RESNET if s != "flatten"))
    with pytest.raises(ValueError, match=r"cannot take images of 64 x 64 pixels: .*512"):
        require_size(network, entry, 64)


@pytest.mark.parametrize(
    ("layers", "trainable"),
    [
        (("classifier.6",), 413_797),
        (ARCHITECTURES["vgg16"].unfreeze, 122_319_461),
        (ALL_LAYERS, 134_674_341),
    ],
    ids=["head", "finetune", "scratch"],
)
def test_trainable_parameters_on_caltech101(layers: tuple[str, ...], trainable: int) -> None:
    """vgg16 on 101 classes has the published totals of head, finetune and scratch."""
    network = build_on_meta("vgg16", 101)
    unfreeze(network, layers)
    assert count_parameters(network) == {"total": 134_674_341, "trainable": trainable}


def test_mini_has_the_layers_of_vgg16() -> None:
    """vgg16_mini is vgg16 in all but width: the same steps, the same tensors, head and defaults."""
    mini, full = build_on_meta("vgg16_mini", 5), build_on_meta("vgg16", 5)
    steps = [list_steps(network, ARCHITECTURES["vgg16"]) for network in (mini, full)]
    assert [(n, type(m)) for n, m in steps[0]] == [(n, type(m)) for n, m in steps[1]]
    assert [(n, t.ndim) for n, t in mini.state_dict().items()] == [(n, t.ndim) for n, t in full.state_dict().items()]
    assert ARCHITECTURES["vgg16_mini"].head == ARCHITECTURES["vgg16"].head
    assert ARCHITECTURES["vgg16_mini"].unfreeze == ARCHITECTURES["vgg16"].unfreeze


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_entries_name_existing_layers(arch: str) -> None:
    """An entry's head gives the logits; its default for finetune trains the head too, but not all."""
    architecture, network = ARCHITECTURES[arch], build_on_meta(arch, 13)
    assert network.get_submodule(architecture.head).weight.shape[0] == 13
    unfreeze(network, architecture.unfreeze)
    assert trains(network.get_submodule(architecture.head))
    count = count_parameters(network)
    assert 0 < count["trainable"] < count["total"]
    assert len(split_at_frozen(network, architecture).frozen) > 0
    unfreeze(network, list_top_layers(network))
    assert len(split_at_frozen(network, architecture).frozen) == 0


@pytest.mark.parametrize("name", ["classifier.9", "features.1", "feat", "", "flatten", "features.0.weights"])
def test_unfreeze_unknown_layer(name: str) -> None:
    """A name that fits no layer with weights is refused, and the message names the layers of the network."""
    network = build_on_meta("vgg16_mini", 3)
    with pytest.raises(DlcvError, match=r"no layer .* features\.28, classifier\.0") as caught:
        unfreeze(network, ["classifier.6", name])
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "name", "trainable"),
    [
        ("vgg16", "features.2", ["features.2.weight", "features.2.bias"]),  # and not features.21
        ("vgg16", "features.2.bias", ["features.2.bias"]),
        ("squeezenet1_1", "features.12.squeeze", ["features.12.squeeze.weight", "features.12.squeeze.bias"]),
        ("vit_b_16", "class_token", ["class_token"]),
    ],
)
def test_unfreeze_is_exact(arch: str, name: str, trainable: list[str]) -> None:
    """Exactly the named layers train afterwards, whatever trained before."""
    network = build_on_meta(arch, 3)
    unfreeze(network, list_top_layers(network))
    unfreeze(network, [name])
    assert [n for n, p in network.named_parameters() if p.requires_grad] == trainable


HEAD, DEFAULT = "head", "default"


@pytest.mark.parametrize(
    ("arch", "layers", "boundary"),
    [
        # after classifier.1: the dropout behind it draws again in every step
        ("vgg16", HEAD, "classifier.2"),
        ("vgg16_bn", HEAD, "classifier.2"),
        ("vgg16", DEFAULT, "features.28"),
        ("vgg19_bn", DEFAULT, "features.49"),
        ("vgg16_mini", DEFAULT, "features.28"),
        ("alexnet", HEAD, "classifier.0"),
        ("squeezenet1_1", HEAD, "classifier.0"),
        ("squeezenet1_1", DEFAULT, "features.12"),
        ("vgg16", ALL_LAYERS, "features.0"),
        ("squeezenet1_1", ALL_LAYERS, "features.0"),
        ("vgg16", ("features.28", "features.0.bias"), "features.0"),
        ("resnet18", HEAD, "fc"),
        ("resnet50", DEFAULT, "layer4.0"),
        ("resnet50", ("layer4.2.bn3", "fc"), "layer4.2"),
        ("efficientnet_b0", HEAD, "classifier.0"),  # a dropout
        ("efficientnet_b0", DEFAULT, "features.7.0"),  # past the blocks with StochasticDepth
        ("mobilenet_v3_small", HEAD, "classifier.2"),
        ("mobilenet_v3_small", DEFAULT, "features.11"),
        ("convnext_tiny", HEAD, "classifier.2"),
        ("convnext_tiny", DEFAULT, "features.7.0"),
        ("vit_b_16", HEAD, "heads.head"),
        ("vit_b_16", DEFAULT, "encoder.layers.encoder_layer_11"),
        ("vit_b_16", ("class_token",), "patch_embedding"),
    ],
)
def test_split_point(arch: str, layers: str | tuple[str, ...], boundary: str) -> None:
    """The frozen layers end before the first step that trains or is random."""
    network, architecture = build_on_meta(arch, 3), ARCHITECTURES[arch]
    names = {HEAD: (architecture.head,), DEFAULT: architecture.unfreeze}
    unfreeze(network, names[layers] if isinstance(layers, str) else layers)
    split = split_at_frozen(network, architecture)
    assert split.boundary == boundary
    steps = list_steps(network, architecture)
    assert len(split.frozen) == [n for n, _ in steps].index(boundary)
    assert list(map(repr, [*split.frozen, *split.tail])) == [repr(step) for _, step in steps]
    assert not trains(split.frozen)


@pytest.mark.parametrize("arch", ["vgg16_mini", "squeezenet1_1", *NEW])
@pytest.mark.parametrize("stage", ["head", "finetune", "scratch"])
def test_frozen_layers_and_tail_are_the_network(arch: str, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In eval mode the tail of the frozen layers gives the network's logits, bit by bit."""
    shrink_networks(monkeypatch)
    architecture = ARCHITECTURES[arch]
    network = build_random_network(architecture, 4, seed=0).eval()
    layers = {"head": (architecture.head,), "finetune": architecture.unfreeze, "scratch": list_top_layers(network)}
    unfreeze(network, layers[stage])
    split = split_at_frozen(network, architecture)
    x = random_images(2, 64)
    with torch.inference_mode():
        assert torch.equal(split.tail(split.frozen(x.clone())), network(x))


@pytest.mark.parametrize(
    ("layers", "moving"),
    [
        (("classifier",), set()),
        (("features.25", "classifier"), set()),  # features.26, its BatchNorm, lies in the tail and is frozen
        (("features.0", "classifier"), set()),  # all BatchNorm lies in the tail and is frozen
        (("features.26",), {"features.26"}),
        (("features.22", "features.26"), {"features.26"}),
    ],
)
def test_frozen_batchnorm_keeps_its_statistics(layers: tuple[str, ...], moving: set[str]) -> None:
    """A training pass changes the running statistics of exactly the BatchNorm layers that train."""
    network = build_random_network(NARROW_VGG11_BN, 3, seed=0)
    unfreeze(network, layers)
    before = copy.deepcopy(network.state_dict())
    split = split_at_frozen(network, NARROW_VGG11_BN)
    network.train()  # what came before does not matter
    split.train()
    split.tail(split.frozen(random_images(4, 32)))
    after = network.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{name}" for layer in moving for name in statistics}


def test_frozen_batchnorm_inside_a_block_keeps_its_statistics() -> None:
    """In a ResNet block of which one BatchNorm trains, the block's others keep their statistics."""
    network = build_random_network(ARCHITECTURES["resnet18"], 3, seed=0)
    unfreeze(network, ["layer4.1.bn2"])
    split = split_at_frozen(network, ARCHITECTURES["resnet18"])
    split.train()
    assert [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training] == ["layer4.1.bn2"]


@pytest.mark.parametrize("layers", [("classifier.6",), ("classifier", "features.28"), ("classifier.6", "features.0")])
def test_dropout_stays_live(layers: tuple[str, ...]) -> None:
    """In training, frozen fully connected layers use dropout: two passes differ, and agree with one seed."""
    network = build_random_network(ARCHITECTURES["vgg16_mini"], 4, seed=0).eval()
    unfreeze(network, layers)
    split = split_at_frozen(network, ARCHITECTURES["vgg16_mini"])
    split.train()
    x = random_images(2, 64)
    logits = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        logits.append(split.tail(split.frozen(x)))
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


@pytest.mark.parametrize("arch", ["efficientnet_b0", "convnext_tiny"])
def test_stochastic_depth_is_live_where_its_block_trains(arch: str) -> None:
    """StochasticDepth is in train mode in blocks that train, and in eval mode in blocks of the tail that do not."""
    network, architecture = build_on_meta(arch, 3), ARCHITECTURES[arch]
    unfreeze(network, ("features.3", "classifier"))
    split = split_at_frozen(network, architecture)
    split.train()
    live = {n for n, m in network.named_modules() if isinstance(m, StochasticDepth) and m.training}
    assert live
    assert all(name.startswith("features.3.") for name in live)
    frozen = {n for n, m in network.named_modules() if isinstance(m, StochasticDepth)} - live
    assert any(name.startswith("features.5.") for name in frozen)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0), False),
        (nn.Dropout2d(0.1), True),
        (nn.AlphaDropout(0.1), True),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), True),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.TransformerEncoderLayer(4, 2, dropout=0.1), True),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), True),
        (nn.RReLU(), True),
        (StochasticDepth(0.5, "row"), False),  # off where nothing trains
        (nn.BatchNorm2d(2), False),
        (nn.Conv2d(2, 2, 1), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_is_random(layer: nn.Module, expected: bool) -> None:
    """Random layers are recognised by class, with a probability above 0, at any depth."""
    assert is_random(layer) is expected


@pytest.mark.parametrize("arch", ["vgg16_mini", "squeezenet1_1", "resnet18"])
def test_random_network_follows_its_seed(arch: str) -> None:
    """The seed determines every weight, and the caller's random numbers do not change."""
    state = torch.get_rng_state()
    first, same, other = (build_random_network(ARCHITECTURES[arch], 3, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    weights = [name for name, t in first.items() if name.endswith("weight") and t.ndim > 1]
    assert not any(torch.equal(first[name], other[name]) for name in weights)


@pytest.mark.parametrize("arch", ["squeezenet1_1", "resnet18"])
def test_random_weights_match_torchvision(arch: str) -> None:
    """With the same seed the random weights are torchvision's, bit by bit."""
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(arch, num_classes=101).state_dict()
    ours = build_random_network(ARCHITECTURES[arch], 101, seed=3).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "type"])
def test_loaded_network_takes_exactly_its_tensors(damage: str) -> None:
    """A missing, surplus, misshapen or wrongly typed tensor is refused by name."""
    state = build_random_network(ARCHITECTURES["vgg16_mini"], 4, seed=0).state_dict()
    name = "classifier.6.bias"
    if damage == "missing":
        del state[name]
    elif damage == "extra":
        name = "classifier.7.bias"
        state[name] = torch.zeros(4)
    elif damage == "shape":
        state[name] = torch.zeros(5)
    else:
        state[name] = state[name].double()
    with pytest.raises(ValueError, match=name):
        build_loaded_network(ARCHITECTURES["vgg16_mini"], 4, state)


def test_copy_weights_says_what_fits() -> None:
    """All but the head is copied if name and shape fit; the rest is listed as missing and unused."""
    architecture = ARCHITECTURES["vgg16_mini"]
    source = build_random_network(architecture, 9, seed=1).state_dict()
    source["features.0.weight"] = torch.zeros(1)
    source["fc.weight"] = torch.zeros(2)
    network = build_random_network(architecture, 9, seed=0)
    before = copy.deepcopy(network.state_dict())
    fit = copy_weights(network, source, architecture.head)
    assert fit.missing == ["features.0.weight"]
    assert sorted(fit.unused) == ["classifier.6.bias", "classifier.6.weight", "fc.weight", "features.0.weight"]
    assert len(fit.fits) == len(before) - 3
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source[name] if name in fit.fits else before[name]), name


def test_batchnorm_counters_may_be_missing() -> None:
    """Weights without BatchNorm's counters of batches fit."""
    network = build_random_network(NARROW_VGG11_BN, 3, seed=0)
    other = build_random_network(NARROW_VGG11_BN, 3, 1).state_dict()
    source = {name: t for name, t in other.items() if "num_batches" not in name}
    assert copy_weights(network, source, "classifier.3").missing == []
