"""Stored evaluations and predictions are trusted in nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import THREADS, Run, load_json, run_dlcv

from dlcv_cli.files import tensors
from dlcv_cli.files.disk import hash_file
from dlcv_cli.results.comparison import Column
from dlcv_cli.studies.base import Metric
from dlcv_cli.studies.images.study import ImageStudy


@pytest.fixture(scope="module")
def evaluated(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the chain with head and finetune evaluated, without what only an evaluation needs."""
    chain_folder = Path(shutil.copytree(chain, tmp_path_factory.mktemp("evaluated") / "folder"))
    run_dlcv("eval", chain_folder / "head.safetensors", chain_folder / "finetune.safetensors", *THREADS)
    for photos in ("photos", "others"):
        shutil.rmtree(chain_folder / photos)
    return chain_folder


@pytest.fixture
def judged(evaluated: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may change."""
    return Path(shutil.copytree(evaluated, tmp_path / "judged"))


def test_reference_and_common_are_options_of_compare(run: Run, chain_folder: Path) -> None:
    """An unknown reference, and options of --compare without it, are wrong usage."""
    head = chain_folder / "head.safetensors"
    for options in (
        ("--reference", "head"), ("--common",), ("--format", "csv"), ("--compare", "--reference", "tail"),
    ):  # fmt: skip
        result = run("eval", head, *options)
        assert (result.exit_code, result.stdout) == (2, "")
    assert not (chain_folder / "head.test.eval.json").exists()


Damage = Callable[[dict[str, Any]], Any]
WRONG: dict[str, Damage] = {
    "an interval upside down": lambda d: d["intervals"].update(loss=[2, 1]),
    "an interval of one": lambda d: d["baselines"][0]["intervals"].update(top1_accuracy=[1]),
    "a metric of text": lambda d: d["metrics"].update(loss="1"),
    "a true metric": lambda d: d["metrics"].update(loss=True),
    "no loss of a baseline": lambda d: d["baselines"][0]["metrics"].pop("mean_per_class_recall"),
    "a share beyond 1": lambda d: d["collapse"].update(share=1.5),
    "collapsed by a number": lambda d: d["collapse"].update(collapsed=1),
    "contamination below 0": lambda d: d["contamination"].update(examples=-1),
    "no contamination": lambda d: d.pop("contamination"),
    "a class beyond the last": lambda d: d["details"]["confusion"].append([0, 2, 1]),
    "a cell of two": lambda d: d["details"]["confusion"].append([0, 1]),
    "a nameless class": lambda d: d["details"]["per_class"][0].pop("class"),
    "a recall of text": lambda d: d["details"]["per_class"][0].update(recall="high"),
    "a path of a number": lambda d: d["details"]["highest_loss"][0].update(path=3),
    "a bin beyond 1": lambda d: d["details"]["calibration"][0].update(confidence=2),
    "a root of nothing": lambda d: d["details"].update(root=None),
    "a study of one's own": lambda d: d["data"].update(study="audio"),
    "more examples than there are": lambda d: d["data"].update(n=17),
}


@pytest.mark.parametrize("damage", WRONG)
def test_damaged_evaluation(run: Run, judged: Path, damage: str) -> None:
    """A damaged evaluation is refused in one line that names one of its files."""
    head = judged / "head.safetensors"
    path = judged / "head.test.eval.json"
    document = load_json(path)
    WRONG[damage](document)
    path.write_text(json.dumps(document))
    result = run("eval", "--compare", head)
    assert (result.exit_code, result.stdout) == (1, "")
    assert str(judged / "head.test.") in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("applies", [None, lambda scores: scores.classes == 2, lambda scores: scores.classes > 2])
def test_new_metric_evaluates_again(
    run: Run, chain_folder: Path, monkeypatch: pytest.MonkeyPatch, applies: Callable[[Any], bool] | None
) -> None:
    """An evaluation without a newer metric is made again, if the metric applies to the data."""
    head = chain_folder / "head.safetensors"
    assert run("eval", head, *THREADS).exit_code == 0
    column = Column(key="errors", heading="errors", noun="errors", higher_is_better=False)
    new = Metric(column, value=lambda scores: float((~scores.right).sum()), applies=applies)
    monkeypatch.setattr(ImageStudy, "metrics", (*ImageStudy.metrics, new))
    result = run("eval", "--compare", head, "--json", *THREADS)
    assert result.exit_code == 0
    again = "written before there was errors" in result.stderr
    columns = [column["key"] for column in json.loads(result.stdout)["columns"]]
    assert again == ("errors" in columns) == (not applies or applies(SimpleNamespace(classes=2)))


@pytest.mark.parametrize("key", ["logits", "labels", "baselines", "examples"])
@pytest.mark.parametrize("what", ["gone", "short", "type", "beyond"])
def test_damaged_predictions(run: Run, judged: Path, key: str, what: str) -> None:
    """Predictions that do not fit their evaluation are refused by name, even with a matching sha256."""
    head, path = judged / "head.safetensors", judged / "head.test.predictions.safetensors"
    file = tensors.read(path, tensors.PREDICTIONS)
    change = {
        "gone": lambda a: None, "short": lambda a: a[:-1], "type": lambda a: a.astype(np.float16),
        "beyond": lambda a: a + 9,
    }[what]  # fmt: skip
    changed = change(file.arrays.pop(key))
    if changed is not None:
        file.arrays[key] = changed
    tensors.write(path, tensors.PREDICTIONS, file.arrays, {k: v for k, v in file.metadata.items() if k != "schema"})
    document = load_json(path.with_name("head.test.eval.json"))
    document["predictions"]["sha256"] = hash_file(path)
    path.with_name("head.test.eval.json").write_text(json.dumps(document))
    result = run("eval", "--compare", head)
    if what == "beyond" and key in ("logits", "examples"):
        assert result.exit_code == 0
    else:
        assert (result.exit_code, result.stdout) == (1, "")
        last = result.stderr.splitlines()[-1]
        assert str(path) in last
        assert key in last


def test_other_examples_under_one_fingerprint(run: Run, judged: Path) -> None:
    """Evaluations with one fingerprint but predictions of different examples are refused."""
    paths = [judged / "head.safetensors", judged / "finetune.safetensors"]
    predictions, document = judged / "head.test.predictions.safetensors", judged / "head.test.eval.json"
    file = tensors.read(predictions, tensors.PREDICTIONS)
    file.arrays["examples"][0] += 1
    record = {key: value for key, value in file.metadata.items() if key != "schema"}
    tensors.write(predictions, tensors.PREDICTIONS, file.arrays, record)
    content = load_json(document)
    content["predictions"]["sha256"] = hash_file(predictions)
    document.write_text(json.dumps(content))
    result = run("eval", "--compare", *paths)
    assert result.exit_code == 1
    assert "its examples differ from those of" in result.stderr


def test_stored_evaluations_need_no_torch(judged: Path) -> None:
    """Comparing stored evaluations imports neither torch nor numba."""
    code = (
        "import sys; from typer.testing import CliRunner; from dlcv_cli.cli.app import app;"
        "result = CliRunner().invoke(app, sys.argv[1:]); assert result.exit_code == 0, result.stderr;"
        "print([name for name in ('torch', 'torchvision', 'numba') if name in sys.modules])"
    )
    names = [str(judged / f"{name}.safetensors") for name in ("head", "finetune")]
    done = subprocess.run(
        [sys.executable, "-c", code, "eval", "--compare", *names], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
