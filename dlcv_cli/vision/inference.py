"""The frozen layers, as fast as the platform has them: each image's numbers the same in whatever company it comes.

Letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.config import Precision
from dlcv_cli.vision.models import Fire
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.transforms import in_threads

Item = TypeVar("Item")
Step = Callable[[Tensor], Tensor]

# Images a call: of flat layers (whose weights are many), and of convolutions at 224 pixels (whose activations are).
# On a CPU these few stay in a core's cache; measured with benchmarks/vgg_stages.py and written up in docs/speed.md.
GROUP = {"cpu": 16}
FEW = {"cpu": 4}
LARGE = 64  # for both on a GPU
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # torch's own test for the CPU is private, and says yes to AVX-512 that only emulates it
    native = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(test is not None and test() for test in native)


def resolve(precision: Precision, device: torch.device) -> str:
    """`float32` or `bfloat16`: what is asked for, or what the device is best at."""
    return precision if precision != "auto" else "bfloat16" if has_bfloat16(device) else "float32"


class Forward:
    """Frozen layers in eval mode, without gradients, in one precision.

    Calls of torch always have the same number of images, the last filled up, because convolutions differ in the last
    bits with that number: so an image's outputs depend on the image alone.
    """

    def __init__(
        self, layers: Sequence[nn.Module], preprocessing: Preprocessing, device: torch.device, precision: str
    ) -> None:
        self.device, self.dtype = device, DTYPES[precision]
        # where the decoding threads can compute as well, they do: two cores that work apart wait less for each other
        self.in_threads = device.type == "cpu" and len(layers) > 0
        self.fused = device.type == "cpu" and fusion_works(self.dtype)
        self.group = GROUP.get(device.type, LARGE)
        few = round(FEW.get(device.type, LARGE) * (224 / preprocessing.crop) ** 2)
        self.few = min(self.group, max(1, few))
        # outputs kept from behind the flatten layer begin with a linear one
        begins_flat = (isinstance(layer, nn.Flatten | nn.Linear) for layer in layers)
        flat = next((i for i, begins in enumerate(begins_flat) if begins), len(layers))
        self.spatial, self.flat = self._steps(layers[:flat]), self._steps(layers[flat:])
        self.mean, self.std = (
            torch.tensor(triple, device=device).view(1, 3, 1, 1) for triple in (preprocessing.mean, preprocessing.std)
        )

    def _steps(self, layers: Sequence[nn.Module]) -> list[Step]:
        """The layers in this precision, a convolution and the ReLU behind it as one if the platform can."""
        steps: list[Step] = []
        behind: nn.Module = nn.Identity()
        for layer, following in pairwise([*layers, nn.Identity()]):
            if isinstance(behind, nn.Conv2d) and isinstance(layer, nn.ReLU) and self.fused:
                pass  # done already
            elif isinstance(layer, nn.Conv2d) and isinstance(following, nn.ReLU) and self.fused:
                steps.append(self._conv_relu(layer))
            elif isinstance(layer, Fire) and self.fused:
                steps.append(self._fire(layer))
            elif isinstance(layer, nn.Linear):
                steps.append(self._linear(layer))
            else:
                steps.append(copy.deepcopy(layer).requires_grad_(False).to(self.device, self.dtype).eval())
            behind = layer
        return steps

    def _weights(self, layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
        weight, bias = (
            None if t is None else t.detach().to(self.device, self.dtype) for t in (layer.weight, layer.bias)
        )
        assert weight is not None
        return weight, bias

    def _linear(self, linear: nn.Linear) -> Step:
        weight, bias = self._weights(linear)  # the layer's own where the type is: a copy could be half a gigabyte
        return lambda x: F.linear(x, weight, bias)

    def _conv_relu(self, conv: nn.Conv2d) -> Step:
        weight, bias = self._weights(conv)
        weight = weight.contiguous(memory_format=torch.channels_last)
        return lambda x: _fused_conv_relu(x, weight, bias, conv)

    def _fire(self, fire: Fire) -> Step:
        squeeze, one, three = (self._conv_relu(conv) for conv in (fire.squeeze, fire.expand1x1, fire.expand3x3))

        def step(x: Tensor) -> Tensor:
            squeezed = squeeze(x)
            return torch.cat([one(squeezed), three(squeezed)], 1)

        return step

    def __call__(self, x: Tensor) -> Tensor:
        """Pixels (N, H, W, 3) uint8, or outputs of earlier layers (N, C, H, W) or (N, C) -> outputs (N, ...)."""
        with torch.no_grad():
            if not self.spatial and not self.flat:
                return self._entered(x)
            return torch.cat([self._group(some) for some in torch.split(x, self.group)])

    def _entered(self, x: Tensor) -> Tensor:
        if self.device.type == "cuda":
            x = x.pin_memory()
        x = x.to(self.device, non_blocking=True)
        if x.dtype == torch.uint8:
            # (N, H, W, 3) seen as (N, 3, H, W) is channels last already
            x = x.permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)
        return x.to(self.dtype)

    def _group(self, x: Tensor) -> Tensor:
        count = len(x)
        parts = []
        for few in torch.split(x, self.few):
            part = self._entered(_filled(few, self.few))
            for step in self.spatial:
                part = step(part)
            parts.append(part[: len(few)])
        y = torch.cat(parts)
        if self.flat:
            y = _filled(y, self.group)
            for step in self.flat:
                y = step(y)
        return y[:count]


def _filled(x: Tensor, count: int) -> Tensor:
    """(N, ...) -> (count, ...), with zeros."""
    if len(x) == count:
        return x
    return torch.cat([x, x.new_zeros(count - len(x), *x.shape[1:])])


def _fused_conv_relu(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups, "relu", [], ""
    )
    return out


def fusion_works(dtype: torch.dtype) -> bool:
    """Whether this build of torch has convolution and ReLU as one operation (a private one), and it is right."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 16, 3, padding=1)
        x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
        weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        bias = None if conv.bias is None else conv.bias.to(dtype)
        try:
            found = _fused_conv_relu(x.to(dtype), weight, bias, conv)
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(found.float(), conv(x).relu(), rtol=0.05, atol=0.05)


def outputs(
    forward: Forward, groups: Sequence[Sequence[Item]], load: Callable[[Sequence[Item]], Tensor], threads: int
) -> Iterator[tuple[Sequence[Item], Tensor]]:
    """Yields each group and the outputs of its images (n, ...) in order; decoding and computing overlap.

    Args:
        load: a group's pixels (n, H, W, 3) uint8, or what else `forward` takes.
    """
    if forward.in_threads:
        yield from in_threads(lambda group: forward(load(group)), groups, threads, 2 * threads)
    else:
        for group, x in in_threads(load, groups, threads, threads + 1):
            yield group, forward(x)
