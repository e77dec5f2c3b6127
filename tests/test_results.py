"""Documents of results: the same bytes after reading and writing, and damage named by field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import hash_file
from dlcv_cli.results import codec, metrics

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


@pytest.mark.parametrize("name", ["gru", "baseline", "vgg16_mini"])
def test_shipped_metrics_keep_their_bytes(name: str, tmp_path: Path) -> None:
    """Reading and writing the metrics of a shipped checkpoint gives the same bytes."""
    checkpoint = CHECKPOINTS / f"{name}.safetensors"
    document = metrics.read_metrics(checkpoint, hash_file(checkpoint))
    codec.write_document(metrics.metrics_path(tmp_path / checkpoint.name), document)
    written = metrics.metrics_path(tmp_path / checkpoint.name).read_bytes()
    assert written == metrics.metrics_path(checkpoint).read_bytes()


@pytest.mark.parametrize(
    ("keys", "value", "where"),
    [
        (("records", 0, "val_loss"), None, "$.records[0].val_loss"),
        (("records", 0, "val_loss"), 1e301, "$.records[0].val_loss"),
        (("best", "seed"), -1, "$.best.seed"),
        (("parameters", "total"), 1.5, "$.parameters.total"),
        (("records",), [], "$.records"),
        (("stage",), 3, "$.stage"),
    ],
)
def test_damaged_metrics(keys: tuple[str | int, ...], value: object, where: str, tmp_path: Path) -> None:
    """A field with a wrong type or range is named, with the file."""
    checkpoint = CHECKPOINTS / "gru.safetensors"
    document = json.loads(metrics.metrics_path(checkpoint).read_text("utf-8"))
    parent = document
    for key in keys[:-1]:
        parent = parent[key]
    parent[keys[-1]] = value
    path = tmp_path / "gru.metrics.json"
    path.write_text(json.dumps(document))
    with pytest.raises(FileError) as error:
        metrics.read_metrics(tmp_path / "gru.safetensors", hash_file(checkpoint))
    assert str(error.value).startswith(f"{path}: damaged: `{where}`: ")


def test_nan_is_not_written(tmp_path: Path) -> None:
    """NaN is never written."""
    checkpoint = CHECKPOINTS / "gru.safetensors"
    document = metrics.read_metrics(checkpoint, hash_file(checkpoint))
    bad = codec.encode(document) | {"run": {"seconds": float("nan")}}
    with pytest.raises(ValueError, match="JSON"):
        codec.write_document(tmp_path / "a.metrics.json", codec.decode(tmp_path, metrics.TrainingMetrics, bad))
    assert not list(tmp_path.iterdir())
