"""Which precision a training takes, what the files say of it, and what an evaluation makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Run, make_photos, read_metrics, run_dlcv

from dlcv_cli.files import tensors
from dlcv_cli.files.disk import read_json
from dlcv_cli.vision import inference as forward

ON_CPU = ("--threads", 1, "--device", "cpu")
COMMON = ("--epochs", 1, *ON_CPU)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Return a split of a few photos."""
    make_photos(tmp_path / "photos", {"a": 6, "b": 6}, (64, 64))
    path = tmp_path / "photos.split.json"
    run_dlcv("data", "split", tmp_path / "photos", "-o", path)
    return path


def train_head(run: Run, split: Path, *more: object) -> Path:
    """Train a head on the network's default weights, and return its checkpoint."""
    output = split.parent / "head.safetensors"
    result = run("vgg", "head", split, "--arch", "vgg16_mini", *COMMON, "-o", output, *more)
    assert result.exit_code == 0, result.stderr
    return output


def read_logits(checkpoint: Path) -> np.ndarray:
    """Return the logits of the evaluation on test."""
    path = checkpoint.with_suffix(".test.predictions.safetensors")
    return tensors.read(path, tensors.PREDICTIONS).arrays["logits"]


def set_bfloat16(monkeypatch: pytest.MonkeyPatch, native: bool = False) -> None:
    """Pretend that the machine computes in bfloat16, or that it does not."""
    monkeypatch.setattr(forward, "has_bfloat16", lambda device: native)


@pytest.mark.parametrize(("native", "resolved"), [(True, "bfloat16"), (False, "float32")])
def test_auto_records_the_precision_used(
    run: Run, split: Path, monkeypatch: pytest.MonkeyPatch, native: bool, resolved: str
) -> None:
    """The settings record auto, and the metadata the precision that was used."""
    set_bfloat16(monkeypatch, native)
    checkpoint = train_head(run, split)
    for record in (read_metrics(checkpoint), tensors.read_metadata(checkpoint, tensors.CHECKPOINT)):
        assert record["config"]["precision"] == "auto"
        assert record["precision"] == resolved
    assert run("eval", checkpoint, *ON_CPU).exit_code == 0
    assert read_json(checkpoint.with_suffix(".test.eval.json"), "dlcv.eval/3")["run"]["precision"] == resolved
    assert train_head(run, split) == checkpoint, "up to date, not refused"


def test_precision_changes_the_numbers(run: Run, split: Path) -> None:
    """A bfloat16 checkpoint is evaluated in bfloat16: close to float32, and not equal."""
    answers = []
    for precision in ("float32", "bfloat16"):
        checkpoint = train_head(run, split, "--precision", precision, "--force")
        assert {a.dtype for a in tensors.read(checkpoint, tensors.CHECKPOINT).arrays.values()} == {np.dtype("float32")}
        assert run("eval", checkpoint, *ON_CPU, "--force").exit_code == 0
        answers.append(read_logits(checkpoint))
    assert answers[0].dtype == answers[1].dtype == np.float32
    assert not np.array_equal(*answers)
    np.testing.assert_allclose(*answers, atol=0.1 * np.ptp(answers[0]))


def test_evaluation_without_bfloat16(run: Run, split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bfloat16, a bfloat16 checkpoint is evaluated in float32, with a note."""
    checkpoint = train_head(run, split, "--precision", "bfloat16")
    set_bfloat16(monkeypatch)
    result = run("eval", checkpoint, *ON_CPU)
    assert result.exit_code == 0
    note = f"{checkpoint} was trained in bfloat16, which cpu does not support: using float32"
    assert note in result.stderr.splitlines()
    assert read_json(checkpoint.with_suffix(".test.eval.json"), "dlcv.eval/3")["run"]["precision"] == "float32"


def test_checkpoints_without_precision(run: Run, split: Path) -> None:
    """A checkpoint that records no precision is one of float32 in which all layers trained."""
    checkpoint = train_head(run, split, "--precision", "float32")
    stored = tensors.read(checkpoint, tensors.CHECKPOINT)
    record = {k: v for k, v in stored.metadata.items() if k not in ("schema", "precision", "trained")}
    older = split.parent / "older.safetensors"
    tensors.write(older, tensors.CHECKPOINT, stored.arrays, record)
    for path in (checkpoint, older):
        assert run("eval", path, *ON_CPU).exit_code == 0
    run_info = read_json(older.with_suffix(".test.eval.json"), "dlcv.eval/3")["run"]
    assert (run_info["precision"], run_info["features"]) == ("float32", {"used": False, "why": "nothing frozen"})
    np.testing.assert_allclose(
        read_logits(older), read_logits(checkpoint), rtol=0, atol=1e-5 * np.abs(read_logits(checkpoint)).max()
    )
    output = split.parent / "finetune.safetensors"
    assert run("vgg", "finetune", split, *COMMON, "--from", older, "-o", output).exit_code == 0
