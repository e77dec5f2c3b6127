"""Pixels: what is decoded is what the file shows, and what the network sees is what torchvision would show it."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torchvision.transforms as tv
from numpy.typing import NDArray
from PIL import Image, ImageFile

from dlcv_cli.errors import FileError
from dlcv_cli.vision import images
from dlcv_cli.vision.preprocessing import Preprocessing

IMAGENET = Preprocessing()
SMALL = Preprocessing(resize=64, crop=64)
Pixels = NDArray[np.uint8]


def whole(image: Image.Image, index: int) -> Pixels:
    """What evaluation sees of an image."""
    return images.resize_and_crop(image, SMALL)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes) -> Pixels:
    image = images.open_upright(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def difference(a: Pixels, b: Pixels) -> int:
    """The largest difference in grey levels, of arrays of the same shape."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def noise(width: int, height: int, channels: int = 3, low: int = 0) -> Pixels:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(width * 10_007 + height).integers(low, 256, shape, dtype=np.uint8)


# --- resizing -------------------------------------------------------------------------------------------------------

SIZES = [
    (256, 256),
    (300, 200),
    (200, 300),
    (301, 203),
    (97, 131),
    (500, 31),
    (31, 500),
    (8, 8),
    (3, 2),
    (1, 7),
    (1023, 769),
    (257, 255),
]


@pytest.mark.parametrize(
    "preprocessing", [IMAGENET, SMALL, Preprocessing(resize=65, crop=64)], ids=["224 of 256", "64 of 64", "64 of 65"]
)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_resize_and_crop_is_torchvisions(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    """Resizing and cropping gives torchvision's pixels, within one grey level, at any size and aspect ratio."""
    image = Image.fromarray(noise(*size))
    resize = tv.Resize(preprocessing.resize, tv.InterpolationMode.BILINEAR, antialias=True)
    expected = np.asarray(tv.CenterCrop(preprocessing.crop)(resize(image)))
    assert difference(images.resize_and_crop(image, preprocessing), expected) <= 1


def test_one_pixel_fills_the_crop() -> None:
    """An image of a single pixel becomes a plain square of its colour."""
    image = Image.new("RGB", (1, 1), (10, 20, 30))
    assert (images.resize_and_crop(image, IMAGENET) == np.array([10, 20, 30])).all()
    assert images.resize_and_crop(image, IMAGENET).shape == (224, 224, 3)


@pytest.mark.parametrize("upright", [True, False])
def test_a_sliver_does_not_become_gigabytes(upright: bool) -> None:
    """Of a 1 x 20,000 image the middle alone is computed: right, and in little memory."""
    resource = pytest.importorskip("resource")
    ramp = np.linspace(0, 255, 20_000).astype(np.uint8)[:, None, None].repeat(3, 2)
    image = Image.fromarray(ramp if upright else np.ascontiguousarray(ramp.transpose(1, 0, 2)))
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    pixels = images.resize_and_crop(image, IMAGENET)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 2**29
    assert pixels.shape == (224, 224, 3)
    assert difference(pixels, np.full_like(pixels, ramp[10_000, 0, 0])) <= 1


# --- colour ---------------------------------------------------------------------------------------------------------


def test_grayscale_is_three_equal_channels() -> None:
    """8-bit gray keeps its values in all three channels."""
    gray = noise(13, 9, 1)
    assert difference(decode(encode(Image.fromarray(gray), "PNG")), gray[..., None].repeat(3, 2)) == 0


def test_one_bit_is_black_and_white() -> None:
    """A 1-bit image becomes 0 and 255."""
    bits = noise(13, 9, 1) > 127
    expected = (bits * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert difference(decode(encode(Image.fromarray(bits), "PNG")), expected) == 0


def over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None] / 255
    return (colour * share + 255 * (1 - share)).round().astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_rgba_lies_over_white(kind: str) -> None:
    """Transparency is composited over white, each alpha by its share."""
    rgba = noise(40, 30, 4, low=1)  # WebP may forget the colour below alpha 0
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    expected = over_white(rgba[..., :3], rgba[..., 3])
    assert difference(decode(encode(Image.fromarray(rgba), kind, **options)), expected) <= 1


def test_gray_with_alpha_lies_over_white() -> None:
    """The same for gray with alpha."""
    la = noise(40, 30, 2)
    expected = over_white(la[..., :1].repeat(3, 2), la[..., 1])
    assert difference(decode(encode(Image.fromarray(la, "LA"), "PNG")), expected) <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palette_shows_its_colours(kind: str) -> None:
    """A palette image becomes the palette's colours."""
    index, palette = noise(40, 30, 1) % 16, noise(16, 1)[0]
    image = Image.fromarray(index.astype(np.uint8))
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    assert difference(decode(encode(image, kind)), palette[index]) == 0


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(kind: str) -> None:
    """The palette entry marked transparent becomes white, the others stay."""
    index, palette = (noise(40, 30, 1) % 4).astype(np.uint8), noise(4, 1)[0]
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    palette[2] = 255
    assert difference(decode(encode(image, kind, transparency=2)), palette[index]) == 0


def test_transparent_colour_key_is_white() -> None:
    """An RGB PNG's one transparent colour becomes white."""
    image = Image.new("RGB", (4, 2), (9, 8, 7))
    image.putpixel((1, 1), (200, 0, 0))
    expected = np.full((2, 4, 3), 255, np.uint8)
    expected[1, 1] = (200, 0, 0)
    assert difference(decode(encode(image, "PNG", transparency=(9, 8, 7))), expected) == 0


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 128, 255, 0), (40, 80, 120, 100), (0, 0, 0, 255)])
def test_cmyk_is_not_inverted(ink: tuple[int, ...]) -> None:
    """A CMYK JPEG has the colour its inks leave of white paper."""
    pixels = decode(encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100, subsampling=0))
    expected = [(255 - c) * (255 - ink[3]) / 255 for c in ink[:3]]
    assert np.abs(pixels - np.array(expected)).max() <= 4


def test_sixteen_bit_gray_keeps_its_brightness() -> None:
    """A 16-bit ramp becomes the 8-bit ramp of the same brightness, not clipped at 255."""
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    pixels = decode(encode(Image.fromarray(ramp), "PNG"))
    assert difference(pixels, (ramp / 65535 * 255).round().astype(np.uint8)[..., None].repeat(3, 2)) == 0


# --- orientation and frames -----------------------------------------------------------------------------------------

# EXIF tag 0x0112 -> what to do with the stored pixels to see them upright (EXIF 2.32, 4.6.4 A)
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int, kind: str) -> None:
    """Each of the eight EXIF orientations is undone."""
    stored = noise(3, 2).repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[
        kind
    ]
    pixels = decode(encode(Image.fromarray(stored), kind, exif=exif, **options))
    assert difference(pixels, np.ascontiguousarray(UPRIGHT[orientation](stored))) <= (6 if kind == "JPEG" else 0)


def test_exif_orientation_of_sixteen_bit_gray() -> None:
    """Orientation and 16 bits together."""
    stored = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10_000
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode(encode(Image.fromarray(stored), "PNG", exif=exif))
    assert (pixels[..., 0] == np.rot90(stored / 257, -1).round()).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0neither II nor MM", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01"])
def test_damaged_exif_does_not_cost_the_image(exif: bytes, kind: str) -> None:
    """Pixels that decode are used even where the EXIF block beside them is garbage."""
    stored = Image.new("RGB", (16, 16), (200, 100, 50))
    pixels = decode(encode(stored, kind, exif=exif))
    assert difference(pixels, np.asarray(stored)) <= 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO"])
def test_first_frame(kind: str) -> None:
    """Of an animation, or of a phone's picture of several frames, the first is used."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *rest = (Image.new("RGB", (16, 16), colour) for colour in colours)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(first, kind, save_all=True, append_images=rest, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert difference(decode(data), np.asarray(first)) <= 2


# --- what is refused ------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no more than a few bytes of it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that claims 20,000 x 20,000 pixels is refused before a pixel is decoded, saying why."""
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loaded.append(self))
    with pytest.raises(ValueError, match=r"20000 x 20000 pixels is more than"):
        images.open_upright(png_header(20_000, 20_000))
    assert not loaded


def test_a_large_photo_is_not_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest size accepted lies above a phone's 108 megapixels, and is accepted without a warning."""
    monkeypatch.setattr(images, "_rgb", lambda image: image)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: None)
    monkeypatch.setattr(images.ImageOps, "exif_transpose", lambda image: image)
    assert images.open_upright(png_header(12_000, 9_000)).size == (12_000, 9_000)


KINDS = {"JPEG": {}, "PNG": {}, "BMP": {}, "WEBP": {"lossless": True}, "GIF": {}}


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1, 0.02], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_file_is_refused(kind: str, kept: float, tmp_path: Path) -> None:
    """A file cut short is a ValueError with a reason, never half an image nor a crash."""
    data = encode(Image.fromarray(noise(50, 40)), kind, **KINDS[kind])
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=r"damaged|not an image"):
        images.open_upright(path.read_bytes())
    assert images.problem(path)
    with pytest.raises(FileError, match="cut: "):
        images.load(path, whole, 0)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    """Formats that are not among the five are refused even where Pillow could read them."""
    data = encode(Image.fromarray(noise(32, 32)), kind)
    assert not images.looks_like_image(data[:32])
    with pytest.raises(ValueError, match="not an image"):
        images.open_upright(data)


def test_good_file_has_no_problem(tmp_path: Path) -> None:
    """A file that decodes has no problem."""
    path = tmp_path / "good"
    path.write_bytes(encode(Image.fromarray(noise(5, 5)), "PNG"))
    assert images.problem(path) is None


def test_read_says_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a folder and a file too large are ValueErrors with the reason."""
    for path, reason in [(tmp_path / "none", "No such file"), (tmp_path, "directory")]:
        with pytest.raises(ValueError, match=reason):
            images.read(path)
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    (tmp_path / "ten").write_bytes(bytes(10))
    (tmp_path / "eleven").write_bytes(bytes(11))
    assert images.read(tmp_path / "ten") == bytes(10)
    with pytest.raises(ValueError, match="larger than"):
        images.read(tmp_path / "eleven")


# --- by content -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_known_by_content(kind: str) -> None:
    """The first 32 bytes of each of the five formats are known."""
    assert images.looks_like_image(encode(Image.fromarray(noise(20, 20)), kind, **KINDS[kind])[:32])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff\xd8",
        b"\x89PNG",
        b"BMW and other cars: a list.....",
        b"BM",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"GIF is a format from 1987",
        b"<svg xmlns='http://www.w3.org/20",
        b"%PDF-1.7",
        bytes(32),
    ],
    ids=repr,
)
def test_other_content_is_no_image(head: bytes) -> None:
    """Text, sound, other formats and stubs are not taken for images."""
    assert not images.looks_like_image(head)


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch_size"), [(11, 4), (8, 4), (3, 10), (1, 1), (5, 1)])
def test_batches_come_in_order(count: int, batch_size: int, tmp_path: Path) -> None:
    """Batches hold the images in the order asked for, each once, the last one short."""
    paths = [tmp_path / str(i) for i in range(count)]
    for i, path in enumerate(paths):
        side = 400 if i % 3 == 0 else 10  # some take longer than others
        path.write_bytes(encode(Image.new("RGB", (side, side), (i, 0, 255)), "PNG"))
    order = np.random.default_rng(0).permutation(count)
    batches = list(images.load_batches(paths, order, whole, batch_size, threads=3))
    assert [len(indices) for indices, _ in batches] == [
        min(batch_size, count - start) for start in range(0, count, batch_size)
    ]
    assert np.concatenate([indices for indices, _ in batches]).tolist() == order.tolist()
    for indices, pixels in batches:
        assert pixels.shape == (len(indices), 64, 64, 3)
        assert pixels.dtype == np.uint8
        assert (pixels[..., 0] == indices[:, None, None]).all()


def test_batches_of_nothing() -> None:
    """No images, no batches."""
    assert list(images.load_batches([], np.array([], np.int64), whole, 4, threads=2)) == []


def test_a_bad_image_in_a_batch_is_named(tmp_path: Path) -> None:
    """An image that cannot be decoded stops the batches with its name, after those before it."""
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        path.write_bytes(encode(Image.new("RGB", (4, 4)), "PNG"))
    paths[3].write_bytes(b"no image")
    batches = images.load_batches(paths, np.arange(6), whole, 2, threads=2)
    assert next(batches)[0].tolist() == [0, 1]
    with pytest.raises(FileError, match=r"3\.png: not an image"):
        next(batches)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], 2).round().astype(np.uint8))


def test_flip_mirrors_half_of_the_images() -> None:
    """`flip` gives the evaluation's view or its mirror image, each about half of the time."""
    image, plain = gradient(90, 70), whole(gradient(90, 70), 0)
    views = [images.random_view(image, SMALL, "flip", np.random.default_rng(seed)) for seed in range(200)]
    mirrored = [np.array_equal(view, plain[:, ::-1]) for view in views]
    assert all(m or np.array_equal(view, plain) for m, view in zip(mirrored, views, strict=True))
    assert 70 < sum(mirrored) < 130


def test_crop_flip_takes_a_part() -> None:
    """`crop-flip` shows 35 to 100 % of the area, inside the image, at a side ratio of 3/4 to 4/3, and varies."""
    image, spans = gradient(160, 160), []
    for seed in range(100):
        view = images.random_view(image, SMALL, "crop-flip", np.random.default_rng(seed)).astype(float)
        assert view.shape == (64, 64, 3)
        spans.append((np.ptp(view[32, :, 0]) / 255, np.ptp(view[:, 32, 1]) / 255))
    wide, high = np.array(spans).T
    assert 0.3 < (wide * high).min() < 0.5
    assert 0.85 < (wide * high).max() <= 1
    assert 0.7 < (wide / high).min() < 0.85
    assert 1.2 < (wide / high).max() < 1.4


def test_crop_flip_of_a_sliver() -> None:
    """A part of a very narrow image stays inside it."""
    view = images.random_view(gradient(500, 1), SMALL, "crop-flip", np.random.default_rng(0))
    assert view.shape == (64, 64, 3)
