"""The networks against torchvision's: names, shapes, logits, published sizes; what trains, and where the cut is."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model_weights

from dlcv_cli.errors import DlcvError
from dlcv_cli.vision.architectures import ARCHITECTURES, Architecture, K
from dlcv_cli.vision.models import Network, count_parameters, random_network, stored_network, take_weights, unfreeze
from dlcv_cli.vision.steps import cut

IN_TORCHVISION = sorted(set(ARCHITECTURES) - {"vgg16_mini"})
ALL_LAYERS = ("features", "classifier")


def on_meta(arch: str, classes: int) -> Network:
    """The network without its numbers: shapes only."""
    with torch.device("meta"):
        return Network(ARCHITECTURES[arch], classes)


def filled(module: nn.Module) -> nn.Module:
    """A network made on meta, given numbers that keep the scale of what passes, BatchNorm's statistics included."""
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


def small_bn() -> Architecture:
    """vgg11_bn with a narrow classifier."""
    narrow = (("linear", 16), ("relu",), ("dropout", 0.5), ("linear", K))
    return replace(ARCHITECTURES["vgg11_bn"], classifier=narrow, pool=1, head="classifier.3")


@pytest.mark.parametrize("arch", IN_TORCHVISION)
def test_tensors_are_torchvisions(arch: str) -> None:
    """Every tensor has torchvision's name, shape, type and place in the order."""
    with torch.device("meta"):
        theirs = torchvision.models.get_model(arch, num_classes=7)
    ours = on_meta(arch, 7)
    assert [(n, t.shape, t.dtype) for n, t in ours.state_dict().items()] == [
        (n, t.shape, t.dtype) for n, t in theirs.state_dict().items()
    ]
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


@pytest.mark.parametrize("arch", ["alexnet", "squeezenet1_1", "vgg11", "vgg11_bn"])
def test_logits_are_torchvisions(arch: str) -> None:
    """With the same weights, the same images give the logits torchvision gives in eval mode."""
    with torch.device("meta"):
        theirs = torchvision.models.get_model(arch, num_classes=7)
    theirs = filled(theirs)
    ours = stored_network(ARCHITECTURES[arch], 7, theirs.state_dict()).eval()
    for side in (100, 102):  # between them, each of SqueezeNet's poolings differs from one that rounds down
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected, logits = theirs(x), ours(x)
        assert expected.shape == (2, 7)
        assert (expected[0] - expected[1]).abs().max() > 1e-3, "the case can tell images apart"
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", IN_TORCHVISION)
def test_size_is_torchvisions(arch: str) -> None:
    """With ImageNet's 1000 classes, as many parameters as torchvision publishes for its weights."""
    published = get_model_weights(arch).IMAGENET1K_V1.meta["num_params"]
    assert count_parameters(on_meta(arch, 1000))["total"] == published


@pytest.mark.parametrize(
    ("arch", "total"),
    [
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("vgg11_bn", 132_868_840),
        ("alexnet", 61_100_840),
        ("squeezenet1_1", 1_235_496),
    ],
)
def test_size_is_the_published_one(arch: str, total: int) -> None:
    """The sizes in the literature, whatever torchvision says."""
    assert count_parameters(on_meta(arch, 1000)) == {"total": total, "trainable": total}


@pytest.mark.parametrize(
    ("layers", "trainable"),
    [
        (("classifier.6",), 413_797),
        (ARCHITECTURES["vgg16"].unfreeze, 122_319_461),
        (ALL_LAYERS, 134_674_341),
    ],
    ids=["head", "finetune", "scratch"],
)
def test_what_trains_on_caltech101(layers: tuple[str, ...], trainable: int) -> None:
    """vgg16 on 101 classes: the published totals of head, finetune and scratch."""
    network = on_meta("vgg16", 101)
    unfreeze(network, layers)
    assert count_parameters(network) == {"total": 134_674_341, "trainable": trainable}


def test_mini_has_the_layers_of_vgg16() -> None:
    """vgg16_mini is vgg16 in all but width: the same layers by name and kind, the same tensors, head and defaults."""
    mini, full = on_meta("vgg16_mini", 5), on_meta("vgg16", 5)
    assert [(n, type(m)) for n, m in mini.line()] == [(n, type(m)) for n, m in full.line()]
    assert [(n, t.ndim) for n, t in mini.state_dict().items()] == [(n, t.ndim) for n, t in full.state_dict().items()]
    assert ARCHITECTURES["vgg16_mini"].head == ARCHITECTURES["vgg16"].head
    assert ARCHITECTURES["vgg16_mini"].unfreeze == ARCHITECTURES["vgg16"].unfreeze


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_entry_names_layers_it_has(arch: str) -> None:
    """An architecture's head gives the logits, and its default for finetune trains the head too, but not all."""
    architecture, network = ARCHITECTURES[arch], on_meta(arch, 13)
    assert network.get_submodule(architecture.head).weight.shape[0] == 13
    unfreeze(network, architecture.unfreeze)
    assert all(p.requires_grad for p in network.get_submodule(architecture.head).parameters())
    count = count_parameters(network)
    assert 0 < count["trainable"] < count["total"]


@pytest.mark.parametrize("name", ["classifier.9", "features.1", "feat", "", "flatten", "features.0.weights"])
def test_unfreeze_unknown(name: str) -> None:
    """A name that fits no layer with weights is refused, with the layers there are."""
    network = on_meta("vgg16_mini", 3)
    with pytest.raises(DlcvError, match=r"no layer .* features\.28, classifier\.0") as caught:
        unfreeze(network, ["classifier.6", name])
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "name", "trains"),
    [
        ("vgg16", "features.2", ["features.2.weight", "features.2.bias"]),  # and not features.21
        ("vgg16", "features.2.bias", ["features.2.bias"]),
        ("squeezenet1_1", "features.12.squeeze", ["features.12.squeeze.weight", "features.12.squeeze.bias"]),
    ],
)
def test_unfreeze_is_exact(arch: str, name: str, trains: list[str]) -> None:
    """Exactly the named layers train afterwards, whatever trained before."""
    network = on_meta(arch, 3)
    unfreeze(network, ALL_LAYERS)
    unfreeze(network, [name])
    assert [n for n, p in network.named_parameters() if p.requires_grad] == trains


@pytest.mark.parametrize(
    ("arch", "layers", "name"),
    [
        # after classifier.1: the dropout behind it is drawn anew in every step
        ("vgg16", ("classifier.6",), "classifier.2"),
        ("vgg16_bn", ("classifier.6",), "classifier.2"),
        ("vgg16", ARCHITECTURES["vgg16"].unfreeze, "features.28"),
        ("vgg19_bn", ARCHITECTURES["vgg19_bn"].unfreeze, "features.49"),
        ("vgg16_mini", ARCHITECTURES["vgg16_mini"].unfreeze, "features.28"),
        ("alexnet", ("classifier.6",), "classifier.0"),
        ("squeezenet1_1", ("classifier.1",), "classifier.0"),
        ("squeezenet1_1", ARCHITECTURES["squeezenet1_1"].unfreeze, "features.12"),
        ("vgg16", ALL_LAYERS, "features.0"),
        ("squeezenet1_1", ALL_LAYERS, "features.0"),
        ("vgg16", ("features.28", "features.0.bias"), "features.0"),
    ],
)
def test_where_the_cut_is(arch: str, layers: tuple[str, ...], name: str) -> None:
    """The frozen prefix ends before the first layer that trains or is random, and holds all before it."""
    network = on_meta(arch, 3)
    unfreeze(network, layers)
    parts = cut(network)
    assert parts.name == name
    names = [n for n, _ in network.line()]
    assert len(parts.prefix) == names.index(name)
    assert list(map(repr, [*parts.prefix, *parts.suffix])) == [repr(layer) for _, layer in network.line()]
    assert not any(p.requires_grad for p in parts.prefix.parameters())
    assert sum(1 for _ in nn.Sequential(parts.prefix, parts.suffix).parameters()) == len(list(network.parameters()))


@pytest.mark.parametrize("arch", ["vgg16_mini", "squeezenet1_1"])
@pytest.mark.parametrize("stage", ["head", "finetune", "scratch"])
def test_prefix_and_suffix_are_the_network(arch: str, stage: str) -> None:
    """In eval mode the suffix of the prefix gives the network's logits, bit by bit."""
    architecture = ARCHITECTURES[arch]
    layers = {"head": (architecture.head,), "finetune": architecture.unfreeze, "scratch": ALL_LAYERS}[stage]
    network = random_network(architecture, 4, seed=0).eval()
    unfreeze(network, layers)
    parts = cut(network)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(parts.suffix(parts.prefix(x.clone())), network(x))


@pytest.mark.parametrize(
    ("layers", "moving"),
    [
        (("classifier",), set()),
        (("features.25", "classifier"), set()),  # features.26, its BatchNorm, lies in the suffix and is frozen
        (("features.0", "classifier"), set()),  # all BatchNorm lies in the suffix and is frozen
        (("features.26",), {"features.26"}),
        (("features.22", "features.26"), {"features.26"}),
    ],
)
def test_frozen_batchnorm_keeps_its_statistics(layers: tuple[str, ...], moving: set[str]) -> None:
    """A training pass moves the running statistics of the BatchNorm layers that train, and of no other."""
    network = random_network(small_bn(), 3, seed=0)
    unfreeze(network, layers)
    before = copy.deepcopy(network.state_dict())
    parts = cut(network)
    network.train()  # what came before does not matter
    parts.train()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    parts.suffix(parts.prefix(x))
    after = network.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{name}" for layer in moving for name in statistics}


@pytest.mark.parametrize("layers", [("classifier.6",), ("classifier", "features.28"), ("classifier.6", "features.0")])
def test_dropout_stays_live(layers: tuple[str, ...]) -> None:
    """In training, frozen fully connected layers still drop out: two passes differ, of one seed they agree."""
    network = random_network(ARCHITECTURES["vgg16_mini"], 4, seed=0).eval()
    unfreeze(network, layers)
    parts = cut(network)
    parts.train()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answers.append(parts.suffix(parts.prefix(x)))
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


@pytest.mark.parametrize("arch", ["vgg16_mini", "squeezenet1_1"])
def test_random_network_follows_its_seed(arch: str) -> None:
    """The seed decides every weight, and the caller's random numbers are left alone."""
    state = torch.get_rng_state()
    one, same, other = (random_network(ARCHITECTURES[arch], 3, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    weights = [name for name in one if name.endswith("weight")]
    assert not any(torch.equal(one[name], other[name]) for name in weights)


def test_squeezenet_starts_as_torchvisions() -> None:
    """SqueezeNet's random weights come from torchvision's distributions: each layer's spread agrees."""
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1(num_classes=101).state_dict()
    ours = random_network(ARCHITECTURES["squeezenet1_1"], 101, seed=0).state_dict()
    for name, tensor in theirs.items():
        if name.endswith("weight"):
            assert ours[name].std().item() == pytest.approx(tensor.std().item(), rel=0.15), name
        else:
            assert not ours[name].any(), name


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "type"])
def test_stored_network_takes_exactly_its_tensors(damage: str) -> None:
    """A missing, surplus, misshapen or wrongly typed tensor is refused by name."""
    state = random_network(ARCHITECTURES["vgg16_mini"], 4, seed=0).state_dict()
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
        stored_network(ARCHITECTURES["vgg16_mini"], 4, state)


def test_take_weights_says_what_fits() -> None:
    """All but the head is copied where name and shape agree; the rest is told apart as missing and left over."""
    architecture = ARCHITECTURES["vgg16_mini"]
    source = random_network(architecture, 9, seed=1).state_dict()
    source["features.0.weight"] = torch.zeros(1)
    source["fc.weight"] = torch.zeros(2)
    network = random_network(architecture, 9, seed=0)
    before = copy.deepcopy(network.state_dict())
    fit = take_weights(network, source, architecture.head)
    assert fit.missing == ["features.0.weight"]
    assert sorted(fit.left_over) == ["classifier.6.bias", "classifier.6.weight", "fc.weight", "features.0.weight"]
    assert len(fit.fits) == len(before) - 3
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source[name] if name in fit.fits else before[name]), name


def test_batchnorm_counters_may_be_missing() -> None:
    """Weights from before BatchNorm counted its batches fit all the same."""
    network = random_network(small_bn(), 3, seed=0)
    source = {n: t for n, t in random_network(small_bn(), 3, 1).state_dict().items() if "num_batches" not in n}
    assert take_weights(network, source, "classifier.3").missing == []
