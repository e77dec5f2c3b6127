"""The frozen layers' arithmetic: the same features in any batch, those of torch's own layers; and what they cost."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import ALEXNET_FEATURES, DEEPER_BATCHNORM, NEW, shrink_networks
from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from dlcv_cli.vision import inference as module
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.batches import from_rows, split_batches, to_rows
from dlcv_cli.vision.inference import FeatureExtractor, extract_in_threads, has_bfloat16, resolve_precision
from dlcv_cli.vision.models import build_network, build_random_network, unfreeze
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.steps import SplitNetwork, hash_steps, measure_cost, split_at_frozen

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bfloat16")
MINI = ARCHITECTURES["vgg16_mini"]
OTHERS = {"alexnet features": ALEXNET_FEATURES, "batchnorm": DEEPER_BATCHNORM}
NAMES = ("vgg16_mini", "squeezenet1_1", *OTHERS, *NEW)
# pixels the images are said to have, which decides how many pass the convolutions at once: 4, 1 and 16
CASES = [
    *((name, 224) for name in NAMES),
    *((name, 448) for name in NAMES if name not in NEW),
    *(pytest.param(name, 448, marks=pytest.mark.slow) for name in NEW),
    ("vgg16_mini", 64),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the newer networks to 64 pixels."""
    shrink_networks(monkeypatch)


def split_random_network(name: str) -> SplitNetwork:
    """Return a network split before its head, with random tensors including biases and statistics."""
    architecture = OTHERS.get(name) or ARCHITECTURES[name]
    network = build_random_network(architecture, 3, seed=0)
    rng = torch.Generator().manual_seed(0)
    for key, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(*((0.5, 1.5) if key.endswith(("var", "weight")) else (-0.2, 0.2)), generator=rng)
    unfreeze(network, (architecture.head,))
    network.to(memory_format=torch.channels_last)
    return split_at_frozen(network, architecture)


def build_extractor(layers: Sequence[nn.Module], precision: str, side: int = 224) -> FeatureExtractor:
    """Return the extractor of these layers for images of this size."""
    return FeatureExtractor(layers, Preprocessing(side, side), CPU, precision)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Return (19, 64, 64, 3) uint8: more than one batch, the last of them short."""
    return torch.randint(0, 256, (19, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def compute_plainly(prefix: nn.Sequential, pixels: Tensor) -> Tensor:
    """Return the output of torch's own layers for pixels, all at once, in float32."""
    normal = Preprocessing()
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (normal.mean, normal.std))
    with torch.inference_mode():
        actual: Tensor = copy.deepcopy(prefix).eval()((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    return actual


def extract(forward: FeatureExtractor, pixels: Tensor, order: Sequence[int], size: int, threads: int) -> Tensor:
    """Return the features of the images, computed in this order and batch size, in the images' own order."""
    actual = extract_in_threads(forward, split_batches(order, size), lambda group: pixels[list(group)], threads)
    y = torch.cat([x for _, x in actual])
    back: Tensor = y[torch.tensor(order).argsort()]
    return back


@pytest.fixture(params=[True, False], ids=["fused", "not fused"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether convolution and ReLU are fused; skip if the platform cannot."""
    works = module.fusion_works
    if not request.param:
        monkeypatch.setattr(module, "fusion_works", lambda _: False)
    elif not all(works(dtype) for dtype in module.DTYPES.values()):
        pytest.skip("this build of torch cannot")
    return bool(request.param)


@pytest.mark.parametrize(("name", "side"), CASES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_do_not_depend_on_the_batch(name: str, precision: str, side: int, fused: bool, pixels: Tensor) -> None:
    """Alone, in any batch, at any place and with any number of threads, features have the same bytes."""
    forward = build_extractor(split_random_network(name).frozen, precision, side)
    expected = forward(pixels)
    assert not torch.equal(expected[0], expected[1]), "the case can tell images apart"
    shuffled = np.random.default_rng(0).permutation(19).tolist()
    for order, size, threads in ((range(19), 1, 2), (shuffled, 3, 1), (shuffled, 16, 3), (range(18, -1, -1), 5, 2)):
        assert torch.equal(extract(forward, pixels, list(order), size, threads), expected), (size, threads)


def test_features_do_not_depend_on_torch_threads(pixels: Tensor) -> None:
    """Frozen layers do not use torch's own threads, and do not change their number."""
    forward = build_extractor(split_random_network("vgg16_mini").frozen, "float32")
    seen = set()

    def load(group: Sequence[int]) -> Tensor:
        seen.add(torch.get_num_threads())
        return pixels[list(group)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert [len(x) for _, x in extract_in_threads(forward, split_batches(range(19), 4), load, 2)] == [4, 4, 4, 4, 3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


@pytest.mark.parametrize("name", NAMES)
def test_features_match_plain_layers(name: str, fused: bool, pixels: Tensor) -> None:
    """float32 agrees with torch's own layers to 1e-5 of the largest number, bfloat16 to a few percent."""
    prefix = split_random_network(name).frozen
    expected = compute_plainly(prefix, pixels)
    most = expected.abs().max()
    for precision, bound in (("float32", 1e-5), ("bfloat16", 0.05)):
        forward = build_extractor(prefix, precision)
        assert forward.fused == fused
        actual = forward(pixels)
        assert (actual.dtype, actual.shape) == (module.DTYPES[precision], expected.shape)
        assert (actual.float() - expected).abs().max() <= bound * most
    assert expected.std() > 0.01 * most, "the case has more than zeros"


@pytest.mark.parametrize(
    "layer",
    [
        Fire(8, 4, 8, 16),
        nn.Conv2d(8, 16, 3, stride=2, padding=2, dilation=2, groups=2, bias=False),
        nn.Conv2d(8, 16, (1, 3), padding=(0, 1)),
        nn.Conv2d(8, 16, 5, stride=(1, 3)),
    ],
    ids=["fire", "stride, dilation, groups", "1 x 3", "no padding"],
)
def test_fused_layers_match_plain_layers(layer: nn.Module, fused: bool) -> None:
    """A fire module, and each kind of convolution with its ReLU, give the output of the plain layers."""
    x = torch.randn(5, 8, 9, 11, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    layers = nn.Sequential(layer) if isinstance(layer, Fire) else nn.Sequential(layer, nn.ReLU(inplace=True))
    with torch.no_grad():
        expected = layers(x)
    torch.testing.assert_close(build_extractor(layers, "float32")(x), expected, rtol=1e-5, atol=1e-6)
    assert (expected == 0).any()
    assert (expected > 0.1).any()


@pytest.mark.parametrize("wrong", ["absent", "wrong", "signature"])
def test_broken_fusion_is_detected(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's private operation is not used if it is missing, has other arguments, or is wrong."""

    def broken(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
        if wrong == "absent":
            raise AttributeError
        if wrong == "signature":
            raise RuntimeError
        return nn.functional.conv2d(x, weight, bias, conv.stride, conv.padding)

    monkeypatch.setattr(module, "_apply_conv_relu", broken)
    assert not module.fusion_works(torch.float32)
    assert not build_extractor([nn.Conv2d(3, 4, 3), nn.ReLU()], "float32").fused


@pytest.mark.parametrize(("name", "side"), CASES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_extraction_from_earlier_features(name: str, precision: str, side: int, pixels: Tensor) -> None:
    """From the features before any layer with weights, the later layers give the same bytes."""
    prefix = list(split_random_network(name).frozen)
    expected = build_extractor(prefix, precision, side)(pixels)
    places = [i for i, layer in enumerate(prefix) if i and [*layer.parameters()]]
    assert places
    for place in places[::-3]:
        rows = to_rows(build_extractor(prefix[:place], precision, side)(pixels))
        rest = FeatureExtractor(prefix, Preprocessing(side, side), CPU, precision, place)
        for indices in (slice(0, 19), slice(7, 9)):  # whole groups, and too few for one
            actual = torch.cat([x for _, x in extract_in_threads(rest, split_batches(rows[indices], 16), from_rows, 2)])
            assert torch.equal(actual, expected[indices]), prefix[place]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_extraction_does_not_change_the_network(precision: str, pixels: Tensor) -> None:
    """Extraction changes no value, dtype, mode or gradient flag of the layers, nor the pixels."""
    for name in NAMES:
        split = split_random_network(name)
        split.train()
        tensors = [*split.frozen.named_parameters(), *split.frozen.named_buffers()]
        before = [(key, t.detach().clone(), t.dtype, t.requires_grad) for key, t in tensors]
        modes = [layer.training for layer in split.tail.modules()]
        original = pixels.clone()
        actual = build_extractor(split.frozen, precision)(pixels)
        assert not actual.requires_grad
        for (key, old, dtype, grad), (_, now) in zip(before, tensors, strict=True):
            assert torch.equal(old, now.detach()), key
            assert (now.dtype, now.requires_grad, now.grad) == (dtype, grad, None), key
        assert [layer.training for layer in split.tail.modules()] == modes
        assert torch.equal(pixels, original)


def test_extraction_keeps_order_and_raises_errors() -> None:
    """Batches come in order whatever the loading time, and loading errors reach the caller."""
    forward = build_extractor([nn.Identity()], "float32")

    def load(group: Sequence[int]) -> Tensor:
        if group[0] == 9:
            raise OSError("gone")
        time.sleep(0.02 if group[0] == 0 else 0)
        return torch.full((len(group), 2), float(group[0]))

    seen = [int(x[0, 0]) for _, x in extract_in_threads(forward, split_batches(range(8), 2), load, 3)]
    assert seen == [0, 2, 4, 6]
    with pytest.raises(OSError, match="gone"):
        list(extract_in_threads(forward, [[1], [9], [2]], load, 2))


# ------------------------------------------------------------------------------------------------- by content


def test_hash_steps_has_a_key_for_every_split_point() -> None:
    """Networks that begin alike share the first keys, whatever follows and whatever trains."""
    one = build_random_network(MINI, 3, seed=0)
    other = build_random_network(MINI, 5, seed=1)
    other.features.load_state_dict(one.features.state_dict())
    unfreeze(one, ("classifier.6",))
    unfreeze(other, ("features.28",))
    long, short = (hash_steps(split_at_frozen(n, MINI).frozen, b"begin") for n in (one, other))
    assert len(long) == len(split_at_frozen(one, MINI).frozen) + 1 == len(set(long))
    assert all(len(key) == 32 for key in long)
    assert long[: len(short)] == short
    one.to(memory_format=torch.channels_last)
    assert hash_steps(split_at_frozen(one, MINI).frozen, b"begin") == long
    assert not {*hash_steps(split_at_frozen(one, MINI).frozen, b"another")} & {*long}


@pytest.mark.parametrize("name", ["squeezenet1_1", "batchnorm"])
def test_hash_steps_depends_on_every_tensor(name: str) -> None:
    """The last bit of any tensor changes every key after its layer and none before."""
    prefix = split_random_network(name).frozen
    before = hash_steps(prefix, b"")
    for key, tensor in prefix.state_dict().items():
        number = tensor[(-1,) * tensor.ndim]
        old = number.clone()
        number.copy_(old + 1 if key.endswith("tracked") else torch.nextafter(old, old + 1))
        at = int(key.partition(".")[0]) + 1
        same = [one == other for one, other in zip(hash_steps(prefix, b""), before, strict=True)]
        assert same == [True] * at + [False] * (len(same) - at), key
        number.copy_(old)
    assert hash_steps(prefix, b"") == before


@pytest.mark.parametrize(
    ("at", "layer"),
    [
        (1, nn.Identity()),
        (3, nn.MaxPool2d(3, 2)),
        (3, nn.MaxPool2d(2, 2, ceil_mode=True)),
        (1, nn.BatchNorm2d(8, eps=1e-3)),
        (0, nn.Conv2d(3, 8, 3, 1, 1)),
        (0, nn.Conv2d(3, 8, 3, 2, 1, padding_mode="reflect")),
    ],
)
def test_hash_steps_depends_on_every_layer(at: int, layer: nn.Module) -> None:
    """Another layer or setting with the same weights changes every key after it."""
    prefix = split_random_network("batchnorm").frozen
    before = hash_steps(prefix, b"")
    if layer.state_dict():
        layer.load_state_dict(prefix[at].state_dict())
    prefix[at] = layer
    same = [one == other for one, other in zip(hash_steps(prefix, b""), before, strict=True)]
    assert same == [True] * (at + 1) + [False] * (len(same) - at - 1)


# ------------------------------------------------------------------------------------------------- what it costs

# (channels in, channels out, side of the output) of vgg16's convolutions at 224 pixels
VGG16 = [
    (3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 256, 56),
    (256, 512, 28), (512, 512, 28), (512, 512, 28), (512, 512, 14), (512, 512, 14), (512, 512, 14),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "shape", "convolutions", "linear"),
    [
        (("classifier.6",), (4096,), 13, [25088 * 4096]),
        (("classifier", "features.28"), (512, 14, 14), 12, []),
        (("classifier",), (25088,), 13, []),
        (("features", "classifier"), (3, 224, 224), 0, []),
    ],
    ids=["head", "finetune", "classifier", "scratch"],
)
def test_cost_of_vgg16(layers: tuple[str, ...], shape: tuple[int, ...], convolutions: int, linear: list[int]) -> None:
    """Shape and operations of the frozen layers are those counted by hand, two per multiplication and addition."""
    with torch.device("meta"):
        network = build_network(ARCHITECTURES["vgg16"], 101)
    unfreeze(network, layers)
    counts = [9 * c * out * side**2 for c, out, side in VGG16]
    total = 2 * (sum(counts) + 25088 * 4096 + 4096 * 4096 + 4096 * 101)
    actual = measure_cost(split_at_frozen(network, ARCHITECTURES["vgg16"]), 224)
    assert actual.shape == shape
    assert actual.flops == 2 * (sum(counts[:convolutions]) + sum(linear))
    assert actual.total_flops == total
    assert total == pytest.approx(30.9e9, rel=2e-3)


def test_cost_shape_matches_features(pixels: Tensor) -> None:
    """The predicted shape is the computed one for every network, and the network keeps its numbers."""
    for name in NAMES:
        split = split_random_network(name)
        assert measure_cost(split, 64).shape == tuple(build_extractor(split.frozen, "float32")(pixels[:1]).shape[1:])
        assert all(t.device == CPU for t in (*split.frozen.state_dict().values(), *split.tail.state_dict().values()))


# ------------------------------------------------------------------------------------------------- precision, rows


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_follows_the_device(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit precision is used as it is; auto is bfloat16 exactly if the device has it."""
    monkeypatch.setattr(module, "has_bfloat16", lambda device: native)
    assert resolve_precision("auto", CPU) == ("bfloat16" if native else "float32")
    assert [resolve_precision(p, CPU) for p in PRECISIONS] == [*PRECISIONS]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "native"), [((False, False), False), ((True, False), True), ((False, True), True), (None, False)]
)
def test_has_bfloat16(answers: tuple[bool, bool] | None, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has bfloat16 with AVX-512 or AMX instructions for it; Apple's GPU has not."""
    for i, name in enumerate(("_is_avx512_bf16_supported", "_is_amx_tile_supported")):
        if answers is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda i=i: answers[i], raising=False)
    assert has_bfloat16(CPU) is native
    assert not has_bfloat16(torch.device("mps"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4, 6), (1, 3, 1, 1), (2, 1, 4, 4)])
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_rows_round_trip(dtype: torch.dtype, shape: tuple[int, ...], last: bool) -> None:
    """Features are read back bit by bit, including NaN and infinities; channels are last on disk."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -0.0])
    if x.dim() == 4 and last:
        x = x.contiguous(memory_format=torch.channels_last)
    rows = to_rows(x)
    assert rows.dtype == (np.int16 if dtype == torch.bfloat16 else np.float32)
    assert rows.shape == (shape if len(shape) == 2 else (shape[0], *shape[2:], shape[1]))
    assert rows.flags.c_contiguous
    back = from_rows(rows)
    bits: Any = torch.int16 if dtype == torch.bfloat16 else torch.int32
    assert (back.dtype, back.shape) == (dtype, shape)
    assert torch.equal(back.contiguous().view(bits), x.contiguous().view(bits))
    assert len(shape) == 2 or back.is_contiguous(memory_format=torch.channels_last)
