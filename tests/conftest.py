"""What the tests share: running a command as a user would, and small folders of images."""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

import dlcv_cli
from dlcv_cli.cli.app import app
from dlcv_cli.files import feature_cache

Run = Callable[..., Result]
Pixels = NDArray[np.uint8]

gc.freeze()  # what torch and typer leave for ever is not looked at again and again

# The kernels are compiled once for all tests and the processes they start, not once a cache: said before any test
# module is imported, because numba reads it when the kernels are.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have the folder of the process that started them
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="dlcv-tests-")
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)


def pytest_configure() -> None:
    """Stop if DLCV_TEST_INSTALLED is set, as the gate does, and the package is not the installed one."""
    if os.environ.get("DLCV_TEST_INSTALLED") and "site-packages" not in Path(dlcv_cli.__file__).parts:
        raise pytest.UsageError(f"{dlcv_cli.__file__} would be tested, not the installed package")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Set torch to one thread, because networks this small get slower with two; restore it afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def cache_of_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the fixtures that outlast one test a cache folder of their own, so that no real cache is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLCV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache folder for this test alone."""
    folder = tmp_path_factory.getbasetemp() / "caches" / uuid.uuid4().hex
    monkeypatch.setenv("DLCV_CACHE", str(folder))
    return folder


@pytest.fixture
def run() -> Run:
    """Return a function that runs `dlcv ARGS...` in this process; its result has exit_code, stdout and stderr."""

    def invoke(*args: object) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a traceback is a bug of ours
        return result

    return invoke


def make_photos(root: Path, counts: dict[str, int], size: tuple[int, int] = (24, 20)) -> Path:
    """Write a folder of class folders of PNGs. Each image is different, and each class has its own mean colour."""
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 60, (size[1], size[0], 3)) + np.array([(60 * label) % 196, 90, 120])
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return three classes of 10, 10 and 15 images, whose names have a space and a letter beyond ASCII."""
    return make_photos(tmp_path / "photos", {"cat": 10, "straße": 10, "tree house": 15})


@pytest.fixture
def split_file(run: Run, photos: Path) -> Path:
    """Return a split of `photos`, beside it."""
    path = photos.parent / "photos.split.json"
    result = run("data", "split", photos, "-o", path)
    assert result.exit_code == 0, result.stderr
    return path


def run_dlcv(*args: object) -> Result:
    """Run a command that must succeed, for fixtures that outlast one test."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.stderr or result.exception
    return result


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_refused(result: Result, *words: object) -> None:
    """Assert exit code 1, nothing on stdout, and one line on stderr that contains these words."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.fullmatch("dlcv: [^\\n]+\\n", result.stderr), result.stderr
    for word in words:
        assert str(word) in result.stderr


def read_metrics(checkpoint: Path) -> dict[str, Any]:
    """Return the metrics beside a checkpoint."""
    document: dict[str, Any] = json.loads(checkpoint.with_suffix(".metrics.json").read_text("utf-8"))
    return document


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


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image as a file of this format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: Pixels, b: Pixels) -> int:
    """Return the largest difference in grey levels of two arrays of the same shape."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def make_noise(width: int, height: int, channels: int = 3, low: int = 0) -> Pixels:
    """Return random pixels, (height, width, channels) uint8, which depend on the size alone."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(width * 10_007 + height).integers(low, 256, shape, dtype=np.uint8)


# ---- trainings on photos, and what they leave in the feature cache

COMMON = ("--epochs", 2, "--batch-size", 6, "--threads", 1)  # the last batch is short
TRAIN, VAL, TEST = 15, 4, 5
BOTH = TRAIN + VAL


@dataclass(frozen=True)
class Trained:
    """The output of a training: its checkpoint, its messages, and what its metrics say of the feature cache."""

    path: Path
    printed: str
    features: dict[str, Any]

    @property
    def data(self) -> bytes:
        """Return the bytes of the checkpoint."""
        return self.path.read_bytes()

    @property
    def warnings(self) -> list[str]:
        """Return the warnings that it printed."""
        return [line for line in self.printed.splitlines() if line.startswith("warning: ")]


Train = Callable[..., Trained]


def make_trained_photos(folder: Path) -> Path:
    """Write photos of the size that the network needs, their split, and the checkpoint of a head."""
    make_photos(folder / "photos", {"cat": 8, "dog": 8, "tree": 8}, (64, 64))
    run_dlcv("data", "split", folder / "photos", "-o", folder / "photos.split.json")
    arch = ("--arch", "vgg16_mini", *COMMON, "-o", folder / "head.safetensors")
    run_dlcv("vgg", "head", folder / "photos.split.json", *arch)
    return folder


def make_trainer(run: Run, folder: Path) -> Train:
    """Return a function that runs `vgg head` or `finetune` on the folder's split, which must succeed."""

    def train(stage: str, *more: object, split: Path | None = None) -> Trained:
        output = folder / f"{len([*folder.glob('*.safetensors')])}.safetensors"
        start = ("--arch", "vgg16_mini") if stage == "head" else ("--from", folder / "head.safetensors")
        result = run("vgg", stage, split or folder / "photos.split.json", *COMMON, *start, "-o", output, *more)
        assert result.exit_code == 0, result.stderr
        return Trained(output, result.stderr, read_metrics(output)["run"]["features"])

    return train


def count_sound_entries(cache: Path) -> list[int]:
    """Assert that every feature cache opens and is sound. Return their numbers of entries, last used first."""
    actual = feature_cache.list_feature_caches(cache)
    for listing in actual:
        assert listing.problem is None
        assert all(listing.cache.is_sound(listing.cache.map_rows(), slot) for slot in range(listing.entries))
    return [listing.entries for listing in actual]


def flip_bit(path: Path, place: int) -> None:
    """Flip the lowest bit of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def trained_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, their split and a head trained on them. Tests must not change it."""
    return make_trained_photos(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def photo_folder(trained_photos: Path, tmp_path: Path) -> Path:
    """Return a copy of `trained_photos` that a test may change."""
    return Path(shutil.copytree(trained_photos, tmp_path / "folder"))


@pytest.fixture
def train(run: Run, photo_folder: Path) -> Train:
    """Return a function that trains in `photo_folder` and returns the output."""
    return make_trainer(run, photo_folder)


# ---- three generations of checkpoints

THREADS = ("--threads", 1)
QUICK = ("--arch", "vgg16_mini", "--precision", "float32", "--epochs", 1, *THREADS)


def load_json(path: Path) -> dict[str, Any]:
    """Return the document in a JSON file."""
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write grand.safetensors, trained on first.split.json, then head from it and finetune on second.split.json."""
    folder = tmp_path_factory.mktemp("chain")
    make_photos(folder / "photos", {"a": 40, "b": 40})
    first, second = folder / "first.split.json", folder / "second.split.json"
    run_dlcv("data", "split", folder / "photos", "-o", first)
    document = load_json(first)
    make_photos(folder / "others", {"a": 40, "b": 40}, size=(22, 26))
    run_dlcv("data", "split", folder / "others", "-o", second)
    assert document["fingerprint"] != load_json(second)["fingerprint"]
    run_dlcv("vgg", "scratch", first, *QUICK, "-o", folder / "grand.safetensors")
    run_dlcv(
        "vgg", "head", second, *QUICK, "--weights", folder / "grand.safetensors", "-o", folder / "head.safetensors"
    )
    run_dlcv(
        "vgg", "finetune", second, "--from", folder / "head.safetensors", "--epochs", 1, "--precision", "float32",
        *THREADS, "-o", folder / "finetune.safetensors",
    )  # fmt: skip
    return folder


@pytest.fixture
def chain_folder(chain: Path, tmp_path: Path) -> Path:
    """Return a copy of the chain that a test may change."""
    return Path(shutil.copytree(chain, tmp_path / "folder"))
