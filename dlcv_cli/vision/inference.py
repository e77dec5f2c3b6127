"""Features: what the frozen layers give, as fast as the platform can, the same for an image whatever its batch.

Letters: N images, C channels, H and W pixels, T tokens, D features of a token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.squeezenet import Fire
from torchvision.ops import SqueezeExcitation

from dlcv_cli.config import Precision
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.transforms import map_in_order

Item = TypeVar("Item")
Step = Callable[[Tensor], Tensor]

# Images a call: of flat layers (whose weights are many), and of convolutions at 224 pixels (whose activations are).
# On a CPU these few stay in a core's cache; measured with benchmarks/vgg_stages.py and written up in docs/speed.md.
FLAT_BATCH = {"cpu": 16}
SPATIAL_BATCH = {"cpu": 4}
GPU_BATCH = 64  # for both
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # torch's own test for the CPU is private, and says yes to AVX-512 that only emulates it
    native = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(test is not None and test() for test in native)


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """Return `float32` or `bfloat16`: what is asked for, or for `auto` what the device is best at."""
    return precision if precision != "auto" else "bfloat16" if has_bfloat16(device) else "float32"


class FeatureExtractor:
    """Frozen layers in eval mode, without gradients, in one precision.

    Calls of torch always have the same number of images, the last filled up with zeros, because convolutions differ in
    the last bits with that number; and features always have the same layout in memory. So they depend on the image
    alone.

    Args:
        first: number of the layer that gets what it is called with; those before it are not computed.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        preprocessing: Preprocessing,
        device: torch.device,
        precision: str,
        first: int = 0,
    ) -> None:
        self.device, self.dtype = device, DTYPES[precision]
        # where the decoding threads can compute as well, they do: two cores that work apart wait less for each other
        self.in_threads = device.type == "cpu" and len(layers) > first
        self.fused = device.type == "cpu" and fusion_works(self.dtype)
        self.batch_size = FLAT_BATCH.get(device.type, GPU_BATCH)
        spatial = round(SPATIAL_BATCH.get(device.type, GPU_BATCH) * (224 / preprocessing.crop) ** 2)
        if device.type == "cpu" and any(isinstance(m, SqueezeExcitation) for layer in layers for m in layer.modules()):
            spatial = 1  # its convolutions of one pixel differ in the last bits with an image's place in the batch
        self.spatial_batch_size = min(self.batch_size, max(1, spatial))
        layers = layers[first:]
        # features that were cached behind the flatten layer begin with a linear one
        begins_flat = (isinstance(layer, nn.Flatten | nn.Linear) for layer in layers)
        flat = next((i for i, begins in enumerate(begins_flat) if begins), len(layers))
        self.spatial, self.flat = self._compile(layers[:flat]), self._compile(layers[flat:])
        self.mean, self.std = (
            torch.tensor(triple, device=device).view(1, 3, 1, 1) for triple in (preprocessing.mean, preprocessing.std)
        )

    def _compile(self, layers: Sequence[nn.Module]) -> list[Step]:
        """Return the layers in this precision, a convolution and the ReLU behind it as one if the platform can."""
        steps: list[Step] = []
        previous: nn.Module = nn.Identity()
        for layer, following in pairwise([*layers, nn.Identity()]):
            if isinstance(previous, nn.Conv2d) and isinstance(layer, nn.ReLU) and self.fused:
                pass  # done by the step before
            elif isinstance(layer, nn.Conv2d) and isinstance(following, nn.ReLU) and self.fused:
                steps.append(self._fuse_conv_relu(layer))
            elif isinstance(layer, Fire) and self.fused:
                steps.append(self._fuse_fire(layer))
            elif isinstance(layer, nn.Linear):
                steps.append(self._wrap_linear(layer))
            else:
                steps.append(copy.deepcopy(layer).requires_grad_(False).to(self.device, self.dtype).eval())
            previous = layer
        return steps

    def _cast_weights(self, layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
        weight, bias = (
            None if t is None else t.detach().to(self.device, self.dtype) for t in (layer.weight, layer.bias)
        )
        assert weight is not None
        return weight, bias

    def _wrap_linear(self, linear: nn.Linear) -> Step:
        weight, bias = self._cast_weights(linear)  # the layer's own where the type is: a copy could be half a gigabyte
        return lambda x: F.linear(x, weight, bias)

    def _fuse_conv_relu(self, conv: nn.Conv2d) -> Step:
        weight, bias = self._cast_weights(conv)
        weight = weight.contiguous(memory_format=torch.channels_last)
        return lambda x: _fused_conv_relu(x, weight, bias, conv)

    def _fuse_fire(self, fire: Fire) -> Step:
        squeeze, expand1, expand3 = (
            self._fuse_conv_relu(conv) for conv in (fire.squeeze, fire.expand1x1, fire.expand3x3)
        )

        def step(x: Tensor) -> Tensor:
            squeezed = squeeze(x)
            return torch.cat([expand1(squeezed), expand3(squeezed)], 1)

        return step

    def __call__(self, x: Tensor) -> Tensor:
        """Pixels (N, H, W, 3) uint8, or features of earlier layers (N, ...) -> features (N, ...)."""
        with torch.no_grad():
            if not self.spatial and not self.flat:
                return self._normalise(x)
            return lay_out(torch.cat([self._extract_batch(batch) for batch in torch.split(x, self.batch_size)]))

    def _normalise(self, x: Tensor) -> Tensor:
        if self.device.type == "cuda":
            x = x.pin_memory()
        x = x.to(self.device, non_blocking=True)
        if x.dtype == torch.uint8:
            # (N, H, W, 3) seen as (N, 3, H, W) is channels last already
            x = x.permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)
        return lay_out(x.to(self.dtype))

    def _extract_batch(self, x: Tensor) -> Tensor:
        count = len(x)
        parts = []
        for images in torch.split(x, self.spatial_batch_size):
            part = self._normalise(_pad(images, self.spatial_batch_size))
            for step in self.spatial:
                part = lay_out(step(part))
            parts.append(part[: len(images)])
        y = torch.cat(parts)
        if self.flat:
            y = _pad(y, self.batch_size)
            for step in self.flat:
                y = lay_out(step(y))
        return y[:count]


def lay_out(x: Tensor) -> Tensor:
    """Return the tensor with channels last in memory, so that what follows computes alike, cached or not."""
    if x.dim() != 4:
        return x.contiguous()
    n, c, h, w = x.shape
    if x.stride() == (c * h * w, 1, w * c, c):
        return x
    # through two dimensions, because with one pixel the strides would be left as they are
    return x.permute(0, 2, 3, 1).reshape(n, -1).view(n, h, w, c).permute(0, 3, 1, 2)


def _pad(x: Tensor, count: int) -> Tensor:
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
    """Return whether this build of torch has convolution and ReLU as one operation (a private one), and it is right."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 16, 3, padding=1)
        x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
        weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        bias = None if conv.bias is None else conv.bias.to(dtype)
        try:
            fused = _fused_conv_relu(x.to(dtype), weight, bias, conv)
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(fused.float(), conv(x).relu(), rtol=0.05, atol=0.05)


def extract_in_threads(
    extractor: FeatureExtractor,
    batches: Sequence[Sequence[Item]],
    load: Callable[[Sequence[Item]], Tensor],
    threads: int,
) -> Iterator[tuple[Sequence[Item], Tensor]]:
    """Yield each batch of items and its features (n, ...) in order; decoding and computing overlap.

    Args:
        load: gives a batch's pixels (n, H, W, 3) uint8, or what else the extractor takes.
    """
    if extractor.in_threads:
        yield from map_in_order(lambda batch: extractor(load(batch)), batches, threads, 2 * threads)
    else:
        for batch, x in map_in_order(load, batches, threads, threads + 1):
            yield batch, extractor(x)
