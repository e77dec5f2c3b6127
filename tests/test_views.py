"""What a network sees of an image file: torchvision's pixels, decoded well, varied by content alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.io
import torchvision.transforms as tv
from conftest import UPRIGHT, Pixels, difference, encode, make_noise
from PIL import Image
from torchvision.transforms import v2

from dlcv_cli.errors import FileError
from dlcv_cli.vision import images
from dlcv_cli.vision import transforms as views
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.transforms import Images

IMAGENET = Preprocessing()
SMALL = Preprocessing(resize=64, crop=64)


def seen(pixels: Pixels, preprocessing: Preprocessing = SMALL) -> Pixels:
    """What evaluation sees of pixels (H, W, 3)."""
    return views.resize(torch.from_numpy(pixels).permute(2, 0, 1), preprocessing).numpy()


def torchvisions(pixels: Pixels, preprocessing: Preprocessing = SMALL) -> Pixels:
    """The same by torchvision, on a Pillow image."""
    resize = tv.Resize(preprocessing.resize, tv.InterpolationMode(preprocessing.interpolation), antialias=True)
    return np.asarray(tv.CenterCrop(preprocessing.crop)(resize(Image.fromarray(pixels))))


def decode(data: bytes) -> Pixels:
    """(H, W, 3)."""
    image = views.decode(data)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours, as a photograph has them."""
    small = Image.fromarray(make_noise(width // 8 + 2, height // 8 + 2))
    return small.resize((width, height), Image.Resampling.BICUBIC)


# --- resizing -------------------------------------------------------------------------------------------------------

SIZES = [
    (256, 256),
    (300, 200),
    (200, 300),
    (301, 203),
    (97, 131),
    (31, 248),
    (8, 8),
    (3, 2),
    (1, 7),
    (1023, 769),
    (257, 255),
]


@pytest.mark.parametrize(
    "preprocessing",
    [IMAGENET, SMALL, Preprocessing(resize=65, crop=64), Preprocessing(interpolation="bicubic")],
    ids=["224 of 256", "64 of 64", "64 of 65", "bicubic"],
)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_resize_and_crop_is_torchvisions(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    """Resizing and cropping gives torchvision's pixels, at any size, up to a side ratio of 8.

    They are within one grey level, two for bicubic.
    """
    pixels, most = make_noise(*size), 2 if preprocessing.interpolation == "bicubic" else 1
    assert difference(seen(pixels, preprocessing), torchvisions(pixels, preprocessing)) <= most


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_squash_and_pad_are_torchvisions(size: tuple[int, int]) -> None:
    """`squash` is torchvision's Resize of both sides; `pad` its Resize of the long side, in the middle of a square."""
    pixels, image = make_noise(*size), Image.fromarray(make_noise(*size))
    squashed = np.asarray(tv.Resize((64, 64), antialias=True)(image))
    assert difference(seen(pixels, SMALL.change("squash", None)), squashed) <= 1
    high, wide = (max(1, round(64 * side / max(size))) for side in pixels.shape[:2])
    middle = np.asarray(tv.Resize((high, wide), antialias=True)(image))
    top, left = (64 - high) // 2, (64 - wide) // 2
    expected = np.full((64, 64, 3), np.round(255 * np.array(SMALL.mean)), np.uint8)
    expected[top : top + high, left : left + wide] = middle
    assert difference(seen(pixels, SMALL.change("pad", None)), expected) <= 1


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_preprocessing_survives_its_file(fit: Any) -> None:
    """What a checkpoint records of the preprocessing is read as it was; the short side keeps its ratio."""
    changed = IMAGENET.change(fit, 112)
    assert Preprocessing.from_json(json.loads(json.dumps(changed.to_json()))) == changed
    assert (changed.crop, changed.resize) == (112, 128 if fit == "crop" else 112)
    assert changed.change("crop", 224) == IMAGENET
    assert IMAGENET.change(None, None) == IMAGENET


TRIVIAL = {  # torchvision's names of the operations
    "identity": "Identity", "shear x": "ShearX", "shear y": "ShearY", "translate x": "TranslateX",
    "translate y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness", "colour": "Color",
    "contrast": "Contrast", "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
    "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


@pytest.mark.parametrize("name", views.OPERATIONS)
def test_trivial_operations_are_torchvisions(name: str) -> None:
    """Each operation, at its weakest, middle and largest strength, changes an image as torchvision's TrivialAugment."""
    theirs = v2.TrivialAugmentWide()
    strengths, signed = theirs._AUGMENTATION_SPACE[TRIVIAL[name]]
    image = torch.from_numpy(make_noise(40, 30)).permute(2, 0, 1)
    of = strengths(views.STRENGTHS, 40, 30)
    largest, ours_signed, operation = views.OPERATIONS[name]
    assert (ours_signed, len(TRIVIAL)) == (signed, len(theirs._AUGMENTATION_SPACE))
    for index in (0, 15, 30):
        strength = 0.0 if of is None else round(float(of[index]), 4)
        expected = theirs._apply_image_or_video_transform(
            image, TRIVIAL[name], strength, interpolation=v2.InterpolationMode.NEAREST, fill={}
        )
        assert torch.equal(operation(image, largest * index / 30), expected), index


def test_augmented_images_follow_their_names() -> None:
    """An augmented, erased image depends on the view's name and its content alone; other views look different."""
    image = torch.from_numpy(make_noise(40, 30))
    pictures = [views.augment_trivially(image, random.Random(f"{name} a")) for name in (0, 0, 1, 2)]
    assert torch.equal(pictures[0], pictures[1])
    assert any(not torch.equal(pictures[0], other) for other in pictures[2:])
    erased = views.erase_box(image, SMALL, random.Random(3))
    changed = (erased != image).any(2)
    assert 0.01 < changed.float().mean() < 0.4
    assert (erased[changed] == torch.tensor([124, 116, 104])).all()


def test_jittered_gray_stays_gray() -> None:
    """Of a flat gray image, contrast and saturation change nothing, and brightness the level within its range."""
    gray = torch.full((8, 9, 3), 100, dtype=torch.uint8)
    levels = [views.jitter_colors(gray, 0.5, random.Random(seed)) for seed in range(50)]
    assert all((level == level[0, 0, 0]).all() for level in levels)
    assert min(int(level[0, 0, 0]) for level in levels) in range(49, 60)
    assert max(int(level[0, 0, 0]) for level in levels) in range(140, 152)
    image = torch.from_numpy(make_noise(40, 30))
    assert torch.equal(views.jitter_colors(image, 0, random.Random(0)), image)
    first, same, other = (views.jitter_colors(image, 0.5, random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("smallest", [0.08, 0.35, 0.9])
def test_random_parts_are_as_large_as_said(smallest: float) -> None:
    """The share of an image that a random part shows, read off a ramp, is not below the smallest."""
    ramp = torch.arange(200, dtype=torch.float32).expand(200, 200)
    image = torch.stack([ramp, ramp.T, ramp]).to(torch.uint8)
    shares = []
    for seed in range(300):
        pixels = views.crop_randomly(image, SMALL, random.Random(seed), smallest).float()
        (wide, high), margin = ((pixels[..., c].max() - pixels[..., c].min() + 1 for c in (0, 1)), 0.03)
        shares.append(float(wide * high) / 200**2)
    assert min(shares) > smallest - margin - 0.1 * smallest
    assert min(shares) < smallest + 0.1
    assert max(shares) <= 1


@pytest.mark.parametrize("long", [60, 61, 63])
@pytest.mark.parametrize("across", [True, False])
def test_of_a_sliver_the_middle_is_seen(long: int, across: bool) -> None:
    """Beyond that ratio it is torchvision's middle, to half a pixel of the image."""
    ramp = np.arange(0, 4 * long, 4, dtype=np.uint8)[None, :, None].repeat(3, 0).repeat(3, 2)  # 4 levels a pixel
    pixels = np.ascontiguousarray(ramp if across else ramp.transpose(1, 0, 2))
    assert difference(seen(pixels), torchvisions(pixels)) <= 4 / 2 + 1


def test_one_pixel_fills_the_crop() -> None:
    """An image of a single pixel becomes a plain square of its colour."""
    pixels = seen(np.array([[[10, 20, 30]]], np.uint8), IMAGENET)
    assert pixels.shape == (224, 224, 3)
    assert (pixels == np.array([10, 20, 30])).all()


@pytest.mark.parametrize("upright", [True, False])
def test_a_sliver_does_not_become_gigabytes(upright: bool) -> None:
    """Of a 1 x 20,000 image the middle alone is computed: right, and in little memory."""
    resource = pytest.importorskip("resource")
    ramp = np.linspace(0, 255, 20_000).astype(np.uint8)[:, None, None].repeat(3, 2)
    pixels = ramp if upright else np.ascontiguousarray(ramp.transpose(1, 0, 2))
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    actual = seen(pixels, IMAGENET)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 2**28
    assert actual.shape == (224, 224, 3)
    assert difference(actual, np.full_like(actual, ramp[10_000, 0, 0])) <= 1


# --- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(64, 48), (101, 77), (33, 250), (7, 5), (1, 1)], ids=lambda size: f"{size}")
@pytest.mark.parametrize(("quality", "subsampling", "progressive"), [(90, 0, False), (75, 2, True), (40, 2, False)])
def test_jpegs_are_pillows(mode: str, size: tuple[int, int], quality: int, subsampling: int, progressive: bool) -> None:
    """JPEGs in colour and gray decode to Pillow's pixels within 2 grey levels."""
    options: dict[str, object] = {"quality": quality, "progressive": progressive}
    if mode == "RGB":
        options["subsampling"] = subsampling
    data = encode(photo(*size).convert(mode), "JPEG", **options)
    with images.convert_decoder_errors():
        expected = np.asarray(images.open_image(data).convert("RGB"))
    assert difference(decode(data), expected) <= 2


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 128, 255, 0), (40, 80, 120, 100), (0, 0, 0, 255)])
def test_cmyk_is_not_inverted(ink: tuple[int, ...]) -> None:
    """A CMYK JPEG has the colour its inks leave of white paper."""
    pixels = decode(encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100, subsampling=0))
    expected = [(255 - c) * (255 - ink[3]) / 255 for c in ink[:3]]
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels - np.array(expected)).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF"])
def test_other_formats_are_what_was_saved(kind: str) -> None:
    """The formats without loss give the pixels that went in."""
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = make_noise(13, 9)
    if kind == "GIF":
        pixels = pixels[..., :1].repeat(3, 2)  # which has a palette of 256
    assert difference(decode(encode(Image.fromarray(pixels), kind, **options)), pixels) == 0


def app1(content: bytes) -> bytes:
    """A JPEG segment, of the kind that EXIF and XMP come in."""
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def exif(orientation: int, order: str = "MM") -> bytes:
    """An EXIF block that says how the image is to be turned, behind another entry."""
    e = {"II": "<", "MM": ">"}[order]
    entries = [struct.pack(f"{e}HHIHH", tag, 3, 1, value, 0) for tag, value in ((0x0100, 48), (0x0112, orientation))]
    return b"Exif\0\0" + order.encode() + struct.pack(f"{e}HIH", 42, 8, 2) + b"".join(entries) + bytes(4)


XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"


@pytest.mark.parametrize("before", [b"", app1(XMP)], ids=["alone", "behind XMP"])
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9])
def test_exif_orientation(orientation: int, order: str, before: bytes) -> None:
    """Each of the eight EXIF orientations of a JPEG is undone, in both byte orders, wherever EXIF stands."""
    stored = make_noise(3, 2).repeat(16, 0).repeat(16, 1)
    plain = encode(Image.fromarray(stored), "JPEG", quality=100, subsampling=0)
    data = plain[:2] + before + app1(exif(orientation, order)) + plain[2:]
    expected = UPRIGHT.get(orientation, UPRIGHT[1])(stored)
    assert difference(decode(data), np.ascontiguousarray(expected)) <= 6
    turned = views.resize(views.decode(data), SMALL).numpy()
    assert difference(turned, torchvisions(np.ascontiguousarray(expected))) <= 7


WORD = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"  # a word for the orientation
GARBAGE = [b"Exif\0\0", b"Exif\0\0neither II nor MM", exif(6)[:-20], exif(6)[:8] + b"\xff" * 30, WORD]


@pytest.mark.parametrize("block", GARBAGE)
def test_damaged_exif_does_not_cost_the_image(block: bytes) -> None:
    """A JPEG that decodes is used, as it is stored, where the EXIF block beside it is garbage."""
    stored = Image.new("RGB", (16, 24), (200, 100, 50))
    plain = encode(stored, "JPEG", quality=100)
    assert difference(decode(plain[:2] + app1(block) + plain[2:]), np.asarray(stored)) <= 4


def test_first_of_a_phones_frames() -> None:
    """Of a phone's picture of several frames (MPO, which begins as a JPEG) the first is seen."""
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0)))
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert difference(decode(data), np.asarray(first)) <= 2


@pytest.mark.parametrize("progressive", [True, False])
@pytest.mark.parametrize("kept", [0.98, 0.5, 0.1, 0.02])
def test_truncated_jpeg_is_refused(kept: float, progressive: bool) -> None:
    """A JPEG cut short is a ValueError of one line with the reason, never half an image."""
    data = encode(photo(120, 90), "JPEG", progressive=progressive)
    with pytest.raises(ValueError, match=r"\A(damaged \(.*\)|not an image that can be read)\Z") as caught:
        views.decode(data[: int(len(data) * kept)])
    assert type(caught.value) is ValueError


def test_what_a_split_accepts_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG that torchvision refuses and Pillow does not, by which `data split` goes, is decoded all the same."""

    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("Image is incomplete or truncated")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", refuses)
    data = encode(photo(40, 30), "JPEG")
    assert difference(decode(data), np.asarray(images.open_image(data))) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_bomb_is_refused_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of more pixels than are accepted is refused, whichever decoder it would have gone to."""
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 30 - 1)
    with pytest.raises(ValueError, match="40 x 30 pixels is more than"):
        views.decode(encode(photo(40, 30), kind))


# --- views ----------------------------------------------------------------------------------------------------------


def part_of(folder: Path, count: int = 6) -> Images:
    """Images of different content."""
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(encode(photo(90 + i, 70), "PNG"))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return Images(paths, digests, np.zeros(count, np.int64), SMALL)


@pytest.fixture
def part(tmp_path: Path) -> Images:
    """Six images of different content."""
    return part_of(tmp_path)


def digests_alone(count: int, **settings: object) -> Images:
    """Images known by their sha256 alone, which is all that the choice of a view looks at."""
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
    return Images([Path()] * count, digests, np.zeros(count, np.int64), SMALL, **settings)  # type: ignore[arg-type]


def test_plain_view_is_torchvisions(part: Images) -> None:
    """Without augmentation every epoch sees torchvision's resized middle, under one name."""
    for index, path in enumerate(part.paths):
        assert {part.view(index, epoch) for epoch in range(5)} == {"plain"}
        expected = torchvisions(np.asarray(Image.open(path)))
        assert difference(part.pixels(index, "plain").numpy(), expected) <= 1
    assert part.distinct == 1


def test_flip_mirrors_half_of_the_images() -> None:
    """`flip` sees half of the images mirrored in an epoch, and one image mirrored in half of the epochs."""
    many = digests_alone(1000, augment="flip")
    for names in ([many.view(i, 0) for i in range(1000)], [many.view(7, epoch) for epoch in range(1000)]):
        assert set(names) == {"plain", "mirrored"}
        assert 430 < names.count("mirrored") < 570


def test_mirrored_is_the_mirror_image(part: Images) -> None:
    """The mirrored view is the plain one from right to left."""
    plain, mirrored = part.pixels(0, "plain").numpy(), part.pixels(0, "mirrored").numpy()
    assert difference(mirrored, np.ascontiguousarray(plain[:, ::-1])) == 0
    assert difference(mirrored, plain) > 10


@pytest.mark.parametrize("augment", ["flip", "crop-flip"])
def test_views_come_in_turn(augment: str) -> None:
    """With 3 views an image looks the same every third epoch; without, seeds and epochs all draw anew."""
    some = digests_alone(64, augment=augment, views=3)

    def names(chosen: Images, epoch: int) -> list[bytes]:
        return [chosen.key(i, chosen.view(i, epoch)) for i in range(64)]

    assert [names(some, epoch) for epoch in range(3)] == [names(some, epoch + 3) for epoch in range(3)]
    anew = [names(replace(some, views=None, seed=seed), epoch) for seed in (0, 1) for epoch in range(9)]
    assert all(a != b for a, b in itertools.combinations(anew, 2))
    assert names(some, 2) == names(replace(some, views=None), 2)
    assert (some.distinct, replace(some, views=None).distinct) == (3, float("inf"))


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip"])
def test_views_are_by_content(part: Images, augment: str) -> None:
    """What is seen of an image, and its key, do not depend on where it stands in a split or what it is called."""
    part = replace(part, augment=augment, seed=3)  # type: ignore[arg-type]
    backwards = replace(part, paths=part.paths[::-1], digests=part.digests[::-1])
    for index, epoch in itertools.product(range(6), range(4)):
        there = 5 - index
        view = part.view(index, epoch)
        assert backwards.view(there, epoch) == view
        assert backwards.key(there, view) == part.key(index, view)
        assert torch.equal(backwards.pixels(there, view), part.pixels(index, view))


def test_one_key_is_one_picture(part: Images) -> None:
    """Of all that epochs, seeds and kinds of augmentation show, two are of one key where the pixels are the same."""
    actual: dict[bytes, Pixels] = {}
    for augment, seed, epoch, index in itertools.product(("none", "flip", "crop-flip"), (0, 1), range(4), range(6)):
        chosen = replace(part, augment=augment, seed=seed)  # type: ignore[arg-type]
        view = chosen.view(index, epoch)
        key, pixels = chosen.key(index, view), chosen.pixels(index, view).numpy()
        assert len(key) == 32
        assert np.array_equal(actual.setdefault(key, pixels), pixels)
    assert len(actual) == 6 + 6 + 6 * 2 * 4, "plain, mirrored, and every random part"
    assert len({pixels.tobytes() for pixels in actual.values()}) == len(actual)
    assert part.key(0, "plain") == bytes.fromhex(part.digests[0])


def gradient(width: int, height: int) -> torch.Tensor:
    """(3, H, W): red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return torch.from_numpy(np.stack([x, y, 0 * x]).round().astype(np.uint8))


def test_random_part() -> None:
    """A random part has 35 to 100 % of the area at a side ratio of 3/4 to 4/3, anywhere, mirrored half of the time."""
    image, spans, middles, mirrored = gradient(160, 160), [], [], 0
    for seed in range(200):
        part = views.crop_randomly(image, SMALL, random.Random(seed)).numpy().astype(float)
        assert part.shape == (64, 64, 3)
        spans.append((np.ptp(part[32, :, 0]) / 255, np.ptp(part[:, 32, 1]) / 255))
        middles.append(part[32, 32, :2] / 255)
        mirrored += part[32, 0, 0] > part[32, -1, 0]
        assert part[0, 32, 1] < part[-1, 32, 1], "never upside down"
    wide, high = np.array(spans).T
    assert 0.3 < (wide * high).min() < 0.4
    assert 0.93 < (wide * high).max() <= 1
    assert 0.7 < (wide / high).min() < 0.8
    assert 1.25 < (wide / high).max() < 1.4
    assert (np.min(middles, 0) < 0.4).all()
    assert (np.max(middles, 0) > 0.6).all()
    assert 70 < mirrored < 130


def test_random_part_of_a_sliver() -> None:
    """A part of a very narrow image stays inside it."""
    for seed in range(20):
        part = views.crop_randomly(gradient(500, 1), SMALL, random.Random(seed))
        assert part.shape == (64, 64, 3)
        assert not part[..., 1:].any(), "no green in its only line"


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
@pytest.mark.parametrize(
    ("change", "words"), [("changed", "changed"), ("gone", "No such file"), ("damaged", "not an image")]
)
def test_an_image_that_is_no_longer_there(part: Images, change: str, words: str, augment: str) -> None:
    """An image that was changed or removed since its sha256 was taken, or is none, is an error that names it."""
    chosen = replace(part, augment=augment)  # type: ignore[arg-type]
    path = part.paths[3]
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(part.paths[2].read_bytes() if change == "changed" else b"no image")
    if change == "damaged":
        chosen.digests[3] = hashlib.sha256(b"no image").hexdigest()
    view = chosen.view(3, 0)
    with pytest.raises(FileError, match=words) as caught:
        chosen.pixels(3, view)
    assert str(caught.value).startswith(f"{path}: ")
    assert chosen.pixels(2, view).shape == (64, 64, 3)
