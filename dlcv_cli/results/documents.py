"""`*.metrics.json`, schema dlcv.metrics/1, and `*.eval.json`, schema dlcv.eval/1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlcv_cli.errors import FileError, list_names
from dlcv_cli.files.disk import JSON, as_object, path_beside, read_json, write_json
from dlcv_cli.results.columns import COLUMNS

METRICS = "dlcv.metrics/1"
EVAL = "dlcv.eval/1"


def metrics_path(checkpoint: Path) -> Path:
    """Where a checkpoint's metrics lie."""
    return path_beside(checkpoint, ".metrics.json")


def write_metrics(checkpoint: Path, checkpoint_sha256: str, record: JSON) -> None:
    """Writes the metrics of a checkpoint that is on disk already."""
    own = {"path": checkpoint.name, "sha256": checkpoint_sha256}
    run = record.pop("run")
    write_json(metrics_path(checkpoint), {"schema": METRICS, **record, "checkpoint": own, "run": run})


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _or_none(form: Any) -> Any:
    return lambda value: value is None or _fits(value, form)


def _interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value)) and value[0] <= value[1]


def _cell(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_count, value))


def _each(form: Any) -> Any:
    return lambda value: isinstance(value, dict) and all(_fits(v, form) for v in value.values())


def _fits(value: Any, form: Any) -> bool:
    """Whether JSON has a form: a dict has one a key, a list one for its items; a type; a function that says so."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in value and _fits(value[key], f) for key, f in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(item, form[0]) for item in value)
    return isinstance(value, form) if isinstance(form, type) else bool(form(value))


_EVALUATION: JSON = {
    "inputs": {role: {"path": str, "sha256": str} for role in ("checkpoint", "data")},
    "data": {"study": str, "split": str, "n": _count, "path": str, "fingerprint": str},
    "metrics": _each(_number),
    "intervals": _each(_interval),
    "baselines": [{"name": str, "metrics": _each(_number), "intervals": _each(_interval)}],
    "collapse": {
        "collapsed": bool,
        "why": _or_none(str),
        "answers": _or_none(_count),
        "most_frequent": str,
        "share": _share,
    },
    "contamination": {
        "checked": [str],
        "unchecked": [{"name": str, "why": str}],
        "unrecorded": [str],
        "examples": _count,
        "chosen": _count,
        "of": _count,
        "by_chance": bool,
        "allowed": bool,
    },
    "predictions": {"path": str, "sha256": str},
}
_STUDIES: dict[str, JSON] = {
    "images": {
        "per_class": [
            {"class": str, "n": _count, "recall": _or_none(_share), "precision": _or_none(_share), "answered": _count}
        ],
        "confusion": [_cell],
        "confused": [{"true": str, "answered": str, "n": _count, "share": _share}],
        "calibration": [{"low": _share, "high": _share, "n": _count, "confidence": _share, "accuracy": _share}],
        "highest_loss": [
            {"path": str, "sha256": str, "label": str, "answer": str, "loss": _number, "probability": _share}
        ],
        "root": str,
    },
    "sequences": {
        "intervals_over": str,
        "by_length": [{"length": _count, "n": _count, "mse": _number, "mae": _number, "close": _share}],
        "seeds": [_count],
        "per_seed": [{"seed": _count, "mse": _number, "mae": _number, "close": _share, "r2": _number}],
    },
}


def read_eval(path: Path) -> JSON:
    """Reads and checks an evaluation. FileError for anything wrong in it."""
    document = read_json(path, EVAL)
    study = as_object(document.get("data")).get("study")
    if not isinstance(study, str) or study not in COLUMNS:
        raise FileError(path, f"damaged: it is of no kind of study that this version knows ({study})")
    form = _EVALUATION | _STUDIES[study]
    wrong = [key for key, part in form.items() if not _fits(document.get(key), part)]
    if not wrong:
        keys = {column.key for column in COLUMNS[study]}
        first = COLUMNS[study][0].key
        if any(first not in part for b in document["baselines"] for part in (b["metrics"], b["intervals"])):
            wrong.append("baselines")
        with_interval = {column.key for column in COLUMNS[study] if column.interval}
        wrong += [] if keys <= document["metrics"].keys() else ["metrics"]
        wrong += [] if with_interval <= document["intervals"].keys() else ["intervals"]
        spread = _each(dict.fromkeys(("mean", "std", "min", "max"), _number))
        if "runs" in document and not (spread(document["runs"]) and keys <= document["runs"].keys()):
            wrong.append("runs")
        classes = len(document.get("per_class", []))
        if any(label >= classes for cell in document.get("confusion", []) for label in cell[:2]):
            wrong.append("confusion")
    if wrong:
        raise FileError(
            path, f"damaged: {list_names(wrong)} not as an evaluation has them; remove it and evaluate again"
        )
    return document


def read_metrics(checkpoint: Path, checkpoint_sha256: str) -> JSON:
    """Reads and checks the metrics of a checkpoint. FileError for anything wrong, or another's metrics."""
    path = metrics_path(checkpoint)
    document = read_json(path, METRICS)
    if as_object(document.get("checkpoint")).get("sha256") != checkpoint_sha256:
        raise FileError(path, f"is not of this {checkpoint.name}: damaged, or exchanged since it was trained")
    record = {"val_loss": _number, "train_loss": _or_none(_number)}
    if str(document.get("stage")).startswith("vgg."):
        record |= {"epoch": _count, "train_accuracy": _share, "val_accuracy": _share}
    else:
        record |= {"iteration": _count, "seed": _count}
    if not document.get("records") or not _fits(document, {"records": [record], "best": record}):
        raise FileError(path, "damaged: records or best not as metrics have them")
    return document


def belongs(checkpoint: Path, checkpoint_sha256: str) -> bool:
    """Whether the metrics beside a checkpoint are there and its own."""
    if not metrics_path(checkpoint).exists():
        return False
    record = read_json(metrics_path(checkpoint), METRICS)
    return as_object(record.get("checkpoint")).get("sha256") == checkpoint_sha256
