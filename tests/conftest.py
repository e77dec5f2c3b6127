"""What the tests share: running a command as a user would, and small folders of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dlcv_cli.cli.root import app

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs `dlcv ARGS...` in this process; the result has exit_code, stdout and stderr."""

    def invoke(*args: object) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a traceback is a bug of ours
        return result

    return invoke


def make_photos(root: Path, counts: dict[str, int], size: tuple[int, int] = (24, 20)) -> Path:
    """A folder of class folders of PNGs, each image different, each class of its own mean colour."""
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 60, (size[1], size[0], 3)) + np.array([(60 * label) % 196, 90, 120])
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of 10, 10 and 15 images; names with a space and a letter beyond ASCII."""
    return make_photos(tmp_path / "photos", {"cat": 10, "straße": 10, "tree house": 15})


@pytest.fixture
def split_file(run: Run, photos: Path) -> Path:
    """A split of `photos`, beside it."""
    path = photos.parent / "photos.split.json"
    result = run("data", "split", photos, "-o", path)
    assert result.exit_code == 0, result.stderr
    return path
