"""Features, computed as fast as the platform allows. The features of an image do not depend on its batch.

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

from dlcv_cli.config import Precision
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.torchvision_parts import Fire, SqueezeExcitation
from dlcv_cli.vision.transforms import map_in_order

Item = TypeVar("Item")
Step = Callable[[Tensor], Tensor]

# Images per call, for flat layers (with large weights) and for convolutions at 224 pixels (with large activations).
# On a CPU so few stay in a core's cache; measured with benchmarks/vgg_stages.py, see docs/speed.md.
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
    # torch's own test for the CPU is private, and also accepts AVX-512 that only emulates it
    native = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(test is not None and test() for test in native)


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """Return `float32` or `bfloat16`: the requested precision, or for `auto` the fastest of the device."""
    return precision if precision != "auto" else "bfloat16" if has_bfloat16(device) else "float32"


class FeatureExtractor:
    """Frozen layers in eval mode, without gradients, in one precision.

    Every call of torch has the same number of images, the last one filled up with zeros, because the last bits of
    convolutions change with that number. Features always have the same layout in memory. So the features of an image
    depend on that image alone.

    Args:
        first: number of the layer that takes the input; the layers before it are not computed.
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
        # on a CPU the decoding threads compute as well: cores that work apart wait less for each other
        self.in_threads = device.type == "cpu" and len(layers) > first
        self.fused = device.type == "cpu" and fusion_works(self.dtype)
        self.batch_size = FLAT_BATCH.get(device.type, GPU_BATCH)
        spatial = round(SPATIAL_BATCH.get(device.type, GPU_BATCH) * (224 / preprocessing.crop) ** 2)
        if device.type == "cpu" and any(isinstance(m, SqueezeExcitation) for layer in layers for m in layer.modules()):
            spatial = 1  # the last bits of its convolutions of one pixel change with the place in the batch
        self.spatial_batch_size = min(self.batch_size, max(1, spatial))
        layers = layers[first:]
        # after features that were cached behind the flattening, the first layer is linear
        flat = next((i for i, layer in enumerate(layers) if isinstance(layer, nn.Flatten | nn.Linear)), len(layers))
        self.spatial, self.flat = self._compile(layers[:flat]), self._compile(layers[flat:])
        self.mean, self.std = (
            torch.tensor(triple, device=device).view(1, 3, 1, 1) for triple in (preprocessing.mean, preprocessing.std)
        )

    def _compile(self, layers: Sequence[nn.Module]) -> list[Step]:
        """Return the layers in this precision. Fuse each convolution with the ReLU behind it if the platform can."""
        steps: list[Step] = []
        previous: nn.Module = nn.Identity()
        for layer, following in pairwise([*layers, nn.Identity()]):
            if isinstance(previous, nn.Conv2d) and isinstance(layer, nn.ReLU) and self.fused:
                pass  # fused with the step before
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
        weight, bias = self._cast_weights(linear)  # copied only for another dtype: up to half a gigabyte
        return lambda x: F.linear(x, weight, bias)

    def _fuse_conv_relu(self, conv: nn.Conv2d) -> Step:
        weight, bias = self._cast_weights(conv)
        weight = weight.contiguous(memory_format=torch.channels_last)
        return lambda x: _apply_conv_relu(x, weight, bias, conv)

    def _fuse_fire(self, fire: Fire) -> Step:
        squeeze, expand1, expand3 = (
            self._fuse_conv_relu(conv) for conv in (fire.squeeze, fire.expand1x1, fire.expand3x3)
        )

        def step(x: Tensor) -> Tensor:
            squeezed = squeeze(x)
            return torch.cat([expand1(squeezed), expand3(squeezed)], 1)

        return step

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features (N, ...) of pixels (N, H, W, 3) uint8, or of earlier features (N, ...)."""
        with torch.no_grad():
            if not self.spatial and not self.flat:
                return self._normalise(x)
            return lay_out(torch.cat([self._extract_batch(batch) for batch in torch.split(x, self.batch_size)]))

    def _normalise(self, x: Tensor) -> Tensor:
        if self.device.type == "cuda":
            x = x.pin_memory()
        x = x.to(self.device, non_blocking=True)
        if x.dtype == torch.uint8:
            # permuted to (N, 3, H, W), pixels are channels last already
            x = x.permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)
        return lay_out(x.to(self.dtype))

    def _extract_batch(self, x: Tensor) -> Tensor:
        count = len(x)
        pieces = []
        for images in torch.split(x, self.spatial_batch_size):
            piece = self._normalise(_pad(images, self.spatial_batch_size))
            for step in self.spatial:
                piece = lay_out(step(piece))
            pieces.append(piece[: len(images)])
        y = torch.cat(pieces)
        if self.flat:
            y = _pad(y, self.batch_size)
            for step in self.flat:
                y = lay_out(step(y))
        return y[:count]


def lay_out(x: Tensor) -> Tensor:
    """Return the tensor with channels last in memory, so that later layers compute the same bits, cached or not."""
    if x.dim() != 4:
        return x.contiguous()
    n, c, h, w = x.shape
    if x.stride() == (c * h * w, 1, w * c, c):
        return x
    # by way of two dimensions, because with one pixel torch would not change the strides
    return x.permute(0, 2, 3, 1).reshape(n, -1).view(n, h, w, c).permute(0, 3, 1, 2)


def _pad(x: Tensor, count: int) -> Tensor:
    """Return a batch (N, ...) filled up with zeros, (count, ...)."""
    if len(x) == count:
        return x
    return torch.cat([x, x.new_zeros(count - len(x), *x.shape[1:])])


def _apply_conv_relu(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups, "relu", [], ""
    )
    return out


def fusion_works(dtype: torch.dtype) -> bool:
    """Return whether this build of torch has a correct fused convolution and ReLU, which is a private operation."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 16, 3, padding=1)
        x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
        weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        bias = None if conv.bias is None else conv.bias.to(dtype)
        try:
            fused = _apply_conv_relu(x.to(dtype), weight, bias, conv)
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(fused.float(), conv(x).relu(), rtol=0.05, atol=0.05)


def extract_in_threads(
    extractor: FeatureExtractor,
    batches: Sequence[Sequence[Item]],
    load: Callable[[Sequence[Item]], Tensor],
    threads: int,
) -> Iterator[tuple[Sequence[Item], Tensor]]:
    """Yield each batch of items and its features (n, ...), in order. Decoding and computing overlap.

    Args:
        load: returns the pixels (n, H, W, 3) uint8 of a batch, or other input of the extractor.
    """
    if extractor.in_threads:
        yield from map_in_order(lambda batch: extractor(load(batch)), batches, threads, 2 * threads)
    else:
        for batch, x in map_in_order(load, batches, threads, threads + 1):
            yield batch, extractor(x)
