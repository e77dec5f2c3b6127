"""Image files by content: what is decoded is what the file shows, and what would harm is refused."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import UPRIGHT, Pixels, difference, encode, noise
from PIL import Image, ImageFile

from dlcv_cli.vision import images


def decode(data: bytes) -> Pixels:
    with images.convert_decoder_errors():
        image = images.decode_image(images.open_image(data))
    assert image.mode == "RGB"
    return np.asarray(image)


def test_images_need_no_torch() -> None:
    """Splitting a data set inspects its images without torch, which takes seconds to import."""
    script = "import sys, dlcv_cli.vision.images; assert not {'torch', 'torchvision'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


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
        decode(png_header(20_000, 20_000))
    assert not loaded


def test_a_large_photo_is_not_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest size accepted lies above a phone's 108 megapixels, and is accepted without a warning."""
    monkeypatch.setattr(images, "_convert_to_rgb", lambda image: image)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: None)
    monkeypatch.setattr(images.ImageOps, "exif_transpose", lambda image: image)
    assert images.decode_image(images.open_image(png_header(12_000, 9_000))).size == (12_000, 9_000)


KINDS = {"JPEG": {}, "PNG": {}, "BMP": {}, "WEBP": {"lossless": True}, "GIF": {}}


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1, 0.02], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_file_is_refused(kind: str, kept: float, tmp_path: Path) -> None:
    """A file cut short is a ValueError with a reason, never half an image nor a crash."""
    data = encode(Image.fromarray(noise(50, 40)), kind, **KINDS[kind])
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=r"damaged|not an image"):
        decode(path.read_bytes())
    assert re.match("damaged|not an image", images.find_problem(path) or "")


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    """Formats that are not among the five are refused even where Pillow could read them."""
    data = encode(Image.fromarray(noise(32, 32)), kind)
    assert not images.has_image_signature(data[:32])
    with pytest.raises(ValueError, match="not an image"):
        decode(data)


def test_good_file_has_no_problem(tmp_path: Path) -> None:
    """A file that decodes has no problem."""
    path = tmp_path / "good"
    path.write_bytes(encode(Image.fromarray(noise(5, 5)), "PNG"))
    assert images.find_problem(path) is None


def test_sha256_is_of_the_whole_file(tmp_path: Path) -> None:
    """A file's sha256 is that of all its bytes, image or not."""
    path = tmp_path / "any"
    path.write_bytes(bytes(range(256)) * 5000)
    assert images.hash_image_file(path) == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


def test_read_says_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a folder and a file too large are ValueErrors with the reason."""
    for path, reason in [(tmp_path / "none", "No such file"), (tmp_path, "directory")]:
        with pytest.raises(ValueError, match=reason):
            images.read_image_file(path)
        with pytest.raises(ValueError, match=reason):
            images.hash_image_file(path)
        assert reason in str(images.find_problem(path))
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    (tmp_path / "ten").write_bytes(bytes(10))
    (tmp_path / "eleven").write_bytes(bytes(11))
    assert images.read_image_file(tmp_path / "ten") == bytes(10)
    with pytest.raises(ValueError, match="larger than"):
        images.read_image_file(tmp_path / "eleven")


# --- by content -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_known_by_content(kind: str) -> None:
    """The first 32 bytes of each of the five formats are known."""
    assert images.has_image_signature(encode(Image.fromarray(noise(20, 20)), kind, **KINDS[kind])[:32])


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
    assert not images.has_image_signature(head)
