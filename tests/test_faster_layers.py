"""The layers that replace torch's: dropout has its law, pooling its bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.faster_layers import AdaptiveAvgPool2d, Dropout, replace_layer
from dlcv_cli.vision.models import build_network
from dlcv_cli.vision.steps import list_steps


def drop(p: float, x: Tensor, seed: int = 0) -> Tensor:
    """Return x after dropout in train mode."""
    torch.manual_seed(seed)
    result: Tensor = Dropout(p)(x)
    return result


@pytest.mark.parametrize("p", [0.5, 0.2, 0.4, 0.75, 0.1])
@pytest.mark.parametrize("shape", [(7, 11, 13, 17), (5, 8, 50, 50)], ids=str)
def test_dropout_keeps_the_share_and_the_mean(p: float, shape: tuple[int, ...]) -> None:
    """A share p of elements is 0, within 5 standard errors, and the others are divided by 1 - p."""
    y = drop(p, torch.ones(shape))
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    error = (p * (1 - p) / y.numel()) ** 0.5
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=5 * error)


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_dropped_elements_are_independent(p: float) -> None:
    """Neighbours along each dimension, and two masks of one seed, are dropped together in a share p * p of places."""
    torch.manual_seed(1)
    layer = Dropout(p)
    first, second = (layer(torch.ones(16, 24, 25, 26)) == 0 for _ in range(2))
    pairs = [(first.narrow(d, 0, n - 1), first.narrow(d, 1, n - 1)) for d, n in enumerate(first.shape)]
    for a, b in [*pairs, (first, second)]:
        error = (p * p * (1 - p * p) / a.numel()) ** 0.5
        assert (a & b).float().mean().item() == pytest.approx(p * p, abs=5 * error)


def test_dropout_follows_the_seed_and_not_the_layout() -> None:
    """The mask is a function of torch's seed and the shape: not of the order of dimensions in memory, or the dtype."""
    x = torch.randn(3, 5, 4, 6).bfloat16()
    y = drop(0.5, x)
    assert torch.equal(drop(0.5, x), y)
    assert not torch.equal(drop(0.5, x, seed=1), y)
    assert torch.equal(drop(0.5, x.contiguous(memory_format=torch.channels_last)), y)
    assert torch.equal(drop(0.5, x.float()).bfloat16(), y)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_gradient_of_dropout(p: float) -> None:
    """The gradient passes the elements that are kept, scaled as they are."""
    x = torch.rand(4, 9, 2, 3).add_(1).requires_grad_()
    y = drop(p, x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, (y / x).detach())


def test_dropout_is_torchs_elsewhere() -> None:
    """Of vectors, in eval mode, and at p = 0 and 1, dropout is torch's, to the last bit; no images are no error."""
    x = torch.randn(3, 4, 2, 2)
    for p, of in ((0.5, x.flatten(1)), (0.0, x), (1.0, x)):
        mine = drop(p, of)
        torch.manual_seed(0)
        assert torch.equal(mine, nn.functional.dropout(of, p)), p
    assert Dropout(0.5).eval()(x) is x
    assert drop(0.5, x[:0]).shape == (0, 4, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pooling_has_the_bits_of_torch(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Means and gradients are torch's, to the last bit, in train and eval mode."""
    results = []
    for layer in (nn.AdaptiveAvgPool2d(1), AdaptiveAvgPool2d(1), AdaptiveAvgPool2d((1, 1)).eval()):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, 7, 13, 11, generator=generator).to(dtype).contiguous(memory_format=layout).requires_grad_()
        y = layer(x.relu())
        (y * torch.arange(7, dtype=dtype).view(7, 1, 1)).sum().backward()
        assert x.grad is not None
        results.append((y.detach(), x.grad))
    for y, gradient in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("arch", ["vgg16", "squeezenet1_1", "efficientnet_b0", "resnet18"])
def test_steps_have_no_layer_that_has_a_faster_one(arch: str) -> None:
    """Each step that has a faster layer is replaced, with its settings; the name and the description stay torch's."""
    with torch.device("meta"):
        network = build_network(ARCHITECTURES[arch], 3)
    replaced = 0
    for name, step in list_steps(network.eval(), ARCHITECTURES[arch]):
        assert type(step) not in (nn.Dropout, nn.AdaptiveAvgPool2d) or step.output_size not in (1, (1, 1)), name
        if isinstance(step, Dropout | AdaptiveAvgPool2d):
            own = network.get_submodule(name)
            assert (repr(step), type(step).__qualname__) == (repr(own), type(own).__qualname__)
            assert vars(step).get("p") == vars(own).get("p")
            assert not step.training, name
            replaced += 1
    assert replaced
    other = nn.AdaptiveAvgPool2d(7)
    assert replace_layer(other) is other
