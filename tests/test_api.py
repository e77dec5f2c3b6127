"""`import dlcv_cli`: quick, typed, documented, and the same results as the command line's."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run

import dlcv_cli as dlcv
from dlcv_cli import api
from dlcv_cli.files import tensors

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
EXAMPLE = ROOT / "examples" / "digits.py"


def run_python(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run another Python in a folder."""
    env = {**os.environ, "MPLBACKEND": "agg"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=300)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run the page's code from top to bottom. Return the folder, and the values of its names."""
    folder = tmp_path_factory.mktemp("page")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"docs/python.md, block {number + 1}", "exec"), names)
    return folder, names


def test_importing_is_quick(tmp_path: Path) -> None:
    """`import dlcv_cli` and its settings import no torch, a misspelt name is an AttributeError, dir() lists all."""
    code = """
import sys
import dlcv_cli as dlcv
dlcv.SplitConfig(), dlcv.Context(), dlcv.__version__
assert {"open_checkpoint", "train_head", "__version__"} <= set(dir(dlcv))
try:
    dlcv.train_heads
except AttributeError as error:
    assert "train_heads" in str(error)
else:
    sys.exit("no error")
assert not {"torch", "numpy", "typer", "msgspec"} & set(sys.modules)
dlcv.train_head
assert "torch" in sys.modules
"""
    result = run_python("-c", code, folder=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_type_checkers_see_what_is_imported() -> None:
    """The imports for type checkers are those of the table, under the same names, and each name exists."""
    imports = [
        node for node in ast.walk(ast.parse(Path(api.__file__).read_text("utf-8"))) if type(node) is ast.ImportFrom
    ]
    listed = {alias.asname: node.module for node in imports for alias in node.names if alias.asname == alias.name}
    assert listed == api.MODULES
    for name, module in api.MODULES.items():
        assert getattr(dlcv, name) is getattr(importlib.import_module(module), name)
        assert getattr(dlcv, name).__doc__
    assert (Path(api.__file__).parent / "py.typed").exists()


def test_every_name_is_documented() -> None:
    """The page's table has every name, and no other."""
    table = PAGE.partition("## All names")[2].partition("\n\n`help")[0]
    assert {*re.findall(r"`(\w+)`", table)} == {*api.MODULES}


def test_the_page_runs(page: tuple[Path, dict[str, Any]]) -> None:
    """The code on the page runs, and what it says of its values holds."""
    folder, names = page
    assert names["split"].summary["counts"] == {"train": 50, "val": 50, "test": 100}
    assert names["logits"].shape == (100, 10)
    assert names["logits"].dtype == np.float32
    assert json.loads(json.dumps(names["document"])) == json.loads((folder / names["path"]).read_text("utf-8"))
    assert [row.name for row in names["comparison"].rows][:2] == ["head", "finetune"]
    assert (folder / "runs" / "report.html").is_file()


def test_a_stage_writes_the_bytes_of_its_command(
    page: tuple[Path, dict[str, Any]], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint made from Python is, byte for byte, the one that the command line makes."""
    monkeypatch.chdir(page[0])
    same = ("--arch", "vgg16_mini", "--batch-size", 10, "--epochs", 2, "--threads", 2)
    assert run("image", "head", "runs/digits.split.json", *same, "-o", "runs/again.safetensors").exit_code == 0
    assert Path("runs/again.safetensors").read_bytes() == Path("runs/head.safetensors").read_bytes()


def test_a_checkpoint_says_what_its_files_say(
    page: tuple[Path, dict[str, Any]], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint has its classes, network, stage and settings; its predictions are those of `dlcv predict`."""
    monkeypatch.chdir(page[0])
    model = page[1]["model"]
    assert (model.stage, model.arch, model.classes) == ("vgg.head", "vgg16_mini", [str(digit) for digit in range(10)])
    assert (model.settings["batch_size"], model.settings["epochs"]) == (10, 2)
    metrics = json.loads(Path("runs/head.metrics.json").read_text("utf-8"))
    assert [record.val_loss for record in model.metrics.records] == [own["val_loss"] for own in metrics["records"]]
    given = ["runs/digits/3", "no-such.png"]
    rows = json.loads(run("predict", "runs/head.safetensors", *given, "--top", 2, "--format", "json").stdout)
    predicted = list(model.predict(given, top=2))
    assert [{"file": str(own.file), **own.values} for own in predicted[:-1]] == rows[:-1]
    assert (predicted[-1].values, predicted[-1].problem) == ({}, rows[-1]["error"])
    assert len(list(model.predict(Path(given[0])))) == len(rows) - 1


def test_a_cell_predicts_sequences(
    page: tuple[Path, dict[str, Any]], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell's checkpoint predicts CSV files as `dlcv predict` does, and has no classes and no network."""
    monkeypatch.chdir(page[0])
    model = dlcv.open_checkpoint("runs/gru.safetensors")
    assert (model.stage, model.arch, model.classes, model.settings["cell"]) == ("seq.train", None, [], "gru")
    [row] = json.loads(run("predict", "runs/gru.safetensors", "new.csv", "--format", "json").stdout)
    assert {"file": "new.csv", **page[1]["of_a"].values} == row


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file that is missing, a training's snapshot, and a checkpoint of an unknown stage are errors with its name."""
    arrays = {"x": np.zeros(1, np.float32)}
    tensors.write(tmp_path / "snapshot", tensors.SNAPSHOT, arrays, {"stage": "vgg.head"})
    tensors.write(tmp_path / "unknown", tensors.CHECKPOINT, arrays, {"stage": "video.train"})
    tensors.write(tmp_path / "known", tensors.CHECKPOINT, arrays, {"stage": "vgg.head"})
    for name in ("missing", "snapshot", "unknown"):
        with pytest.raises(dlcv.FileError, match=name):
            dlcv.open_checkpoint(tmp_path / name)
    assert dlcv.open_checkpoint(str(tmp_path / "known")).stage == "vgg.head"


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    """The notebook on digits runs, and shows that the pretrained network is better than the one from random weights."""
    result = run_python(EXAMPLE, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "head beats scratch by" in result.stdout
    assert (tmp_path / "runs" / "digits-python" / "learning.png").is_file()


@pytest.mark.slow
def test_users_code_is_typed(tmp_path: Path) -> None:
    """mypy --strict accepts the page's code and the example, and refuses a name that there is not."""
    code = "\n".join(BLOCKS)
    (tmp_path / "page.py").write_text(code, "utf-8")
    (tmp_path / "wrong.py").write_text("import dlcv_cli as dlcv\n\ndlcv.train_heads\n", "utf-8")
    strict = ("-m", "mypy", "--strict", "--follow-imports", "silent")
    result = run_python(*strict, "page.py", EXAMPLE, folder=tmp_path)
    assert result.returncode == 0, result.stdout
    result = run_python(*strict, "wrong.py", folder=tmp_path)
    assert 'no attribute "train_heads"' in result.stdout
