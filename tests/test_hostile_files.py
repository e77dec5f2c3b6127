"""Readers trust nothing: whatever is done to a file, it is refused in one line or is what was written."""

from __future__ import annotations

import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, assert_refused, make_photos, run_dlcv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcv_cli.errors import DlcvError, FileError
from dlcv_cli.files import sequences, splits, tensors
from dlcv_cli.results import metrics
from dlcv_cli.stages import weights
from dlcv_cli.studies.images.predictor import open_checkpoint
from dlcv_cli.studies.sequences.study import look_up_task
from dlcv_cli.studies.stored import read_evaluation
from dlcv_cli.vision.architectures import ARCHITECTURES

MINI = ARCHITECTURES["vgg16_mini"]
Bytes = st.builds(  # where (a share of the file), how much, what instead
    lambda *change: change, st.floats(0, 1), st.integers(0, 300), st.binary(max_size=300)
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a valid file of each kind."""
    folder = tmp_path_factory.mktemp("sound")
    make_photos(folder / "photos", {"cat": 5, "dog": 5}, (64, 64))
    split, data, head, gru = (
        folder / n for n in ("s.split.json", "data.safetensors", "head.safetensors", "gru.safetensors")
    )
    run_dlcv("data", "split", folder / "photos", "-o", split)
    run_dlcv("vgg", "head", split, "--arch", "vgg16_mini", "--epochs", 1, "--threads", 1, "-o", head)
    run_dlcv("seq", "gen", "--count", 60, "-o", data)
    run_dlcv("seq", "train", data, "--hidden-size", 3, "--epochs", 1, "-o", gru)
    run_dlcv("eval", gru)
    torch.save(open_checkpoint(head).network.state_dict(), folder / "head.pth")
    return folder


def of_sequences(path: Path) -> Any:
    actual = sequences.read(path)
    look_up_task(actual)
    return {part: (d.inputs.tolist(), d.lengths.tolist(), d.targets.tolist()) for part, d in actual.parts.items()}


# file -> what a reader of it makes of it, which a sha256 in it covers (None: nothing covers it)
def read_weights(path: Path) -> weights.Weights:
    """Read a local file as the weights of vgg16_mini."""
    return weights.read_weights(weights.locate_weights(str(path), MINI))


READERS: dict[str, Callable[[Path], Any]] = {
    "s.split.json": lambda path: (splits.read(path).classes, splits.read(path).parts),
    "data.safetensors": of_sequences,
    "head.safetensors": lambda path: [t.tolist() for t in open_checkpoint(path).network.state_dict().values()],
    "gru.safetensors": lambda path: tensors.read(path, tensors.CHECKPOINT).metadata,
    "gru.test.predictions.safetensors": lambda path: tensors.read(path, tensors.PREDICTIONS).metadata,
    "gru.test.eval.json": lambda path: read_evaluation(path) and None,
    "gru.metrics.json": lambda path: metrics.belongs_to(path.with_name("gru.safetensors"), "0" * 64) and None,
    "head.pth": lambda path: read_weights(path) and None,
}


@pytest.mark.parametrize("name", READERS)
def test_any_change_is_refused_or_harmless(sound: Path, tmp_path: Path, name: str) -> None:
    """A change anywhere is refused by the file's name, or does not change the content."""
    whole, path = (sound / name).read_bytes(), tmp_path / name
    path.write_bytes(whole)
    expected = READERS[name](path)
    printed: list[tuple[str, int]] = []

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(Bytes)
    def change(how: tuple[float, int, bytes]) -> None:
        share, count, instead = how
        at = int(share**3 * len(whole))  # the beginnings are where the formats are
        path.write_bytes(whole[:at] + instead + whole[at + count :])
        try:
            actual = READERS[name](path)
        except DlcvError as refusal:
            printed.append((str(refusal), refusal.exit_code))
        else:
            assert actual == expected

    change()
    assert printed
    assert all(path.name in text and code == 1 for text, code in printed)


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".safetensors")])
def test_any_changed_byte_is_refused(sound: Path, tmp_path: Path, name: str) -> None:
    """A changed byte anywhere in a file of tensors is refused."""
    whole, path = (sound / name).read_bytes(), tmp_path / name
    for at in np.random.default_rng(0).integers(len(whole), size=60).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(FileError, match=path.name):
            READERS[name](path)


def test_too_long_header_is_refused(tmp_path: Path) -> None:
    """A header longer than any of ours is refused before it is read."""
    path = tmp_path / "x.safetensors"
    for length in (2**26 + 1, 2**40, 2**63):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(FileError, match="is no safetensors file"):
            tensors.read(path, tensors.CHECKPOINT)


def expanded(path: Path, older: bool = False) -> None:
    torch.save({"w": torch.zeros(1).expand(2**31)}, path, _use_new_zipfile_serialization=not older)


def deflated(path: Path) -> None:
    plain = path.with_suffix(".plain")
    torch.save({"w": torch.zeros(2**23)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    plain.unlink()


BOMBS: dict[str, Callable[[Path], None]] = {
    "one number for billions": expanded,
    "in the older format": lambda path: expanded(path, older=True),
    "compressed": deflated,
    "complex": lambda path: torch.save({"w": torch.zeros(3, dtype=torch.complex64)}, path),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_weights_cannot_claim_memory(tmp_path: Path, kind: str) -> None:
    """A small .pth cannot allocate the memory that it claims to need."""
    path = tmp_path / "w.pth"
    BOMBS[kind](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError, match=r"w\.pth: (holds no dictionary of dense|.* unpacks to more than it is)"):
        read_weights(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB more than before"


def test_names_cannot_command_a_terminal(run: Run, tmp_path: Path) -> None:
    """Control characters in names are printed as escapes, in results and messages."""
    make_photos(tmp_path / "photos", {"a\x1b[2J": 3, "b": 3})
    split = tmp_path / "s\x07.split.json"
    assert run("data", "split", tmp_path / "photos", "-o", split).exit_code == 0
    shown = run("data", "show", split)
    assert "a\\x1b[2J" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert_refused(run("data", "show", tmp_path / "none\x1b.split.json"), "none\\x1b.split.json: no such file")
