"""Planted leaks and collapses are caught, and an honest line of checkpoints raises nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import QUICK, THREADS, Run, load_json, read_files, run_dlcv

from dlcv_cli.files import sequences, splits, tensors
from dlcv_cli.vision.splits import Example


def plant_leak(chain_folder: Path, of: str, part: str, into: str = "second", count: int = 3) -> Path:
    """Write a split like `into` whose test part starts with images of another split's part, and return its path."""
    split, source = (
        load_json(chain_folder / f"{into}.split.json"),
        load_json(chain_folder / f"{of}.split.json"),
    )
    for number, example in enumerate(source["parts"][part][:count]):
        name = f"{'ab'[example['label']]}/planted{number}.png"
        shutil.copy(chain_folder / source["root"] / example["path"], chain_folder / split["root"] / name)
    output = chain_folder / "planted.split.json"
    run_dlcv("data", "split", chain_folder / split["root"], "-o", chain_folder / "whole.split.json")
    every = {
        e["path"]: e for examples in load_json(chain_folder / "whole.split.json")["parts"].values() for e in examples
    }
    leaks = [entry for path, entry in every.items() if "planted" in path]
    assert len(leaks) == count
    old = splits.read(chain_folder / f"{into}.split.json")
    parts = dict(old.parts)
    parts["test"] = [Example(**entry) for entry in leaks] + parts["test"][count:]
    splits.write(output, old.root, old.classes, parts, {})
    return output


def test_clean_lineage_raises_nothing(run: Run, chain_folder: Path) -> None:
    """Three generations on separate data raise no warning, and the file records how far back was checked."""
    result = run("eval", "--compare", *(chain_folder / f"{n}.safetensors" for n in ("head", "finetune")), *THREADS)
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr
    assert "contaminated" not in result.stdout
    leak = load_json(chain_folder / "finetune.test.eval.json")["contamination"]
    assert leak == {
        "checked": ["first.split.json", "second.split.json", "second.split.json"], "unchecked": [], "unrecorded": [],
        "examples": 0, "chosen": 0, "of": 16, "by_chance": False, "allowed": False,
    }  # fmt: skip


def test_leak_across_two_generations(run: Run, chain_folder: Path) -> None:
    """Test images that weights two generations back were trained on are refused in one line."""
    split, finetune = plant_leak(chain_folder, "first", "train"), chain_folder / "finetune.safetensors"
    before = read_files(chain_folder)
    options = ("eval", finetune, "--data", split, *THREADS)
    result = run(*options)
    assert (result.exit_code, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"dlcv: {finetune}: 3 of the 16 test examples were trained on")
    assert "--allow-contaminated" in last
    assert read_files(chain_folder) == before
    allowed = run(*options, "--allow-contaminated", "--compare")
    assert allowed.exit_code == 0, allowed.stderr
    assert "warning: CONTAMINATED: " in allowed.stderr
    assert "finetune (contaminated" in allowed.stdout or "; contaminated)" in allowed.stdout
    leak = load_json(chain_folder / "finetune.test.eval.json")["contamination"]
    assert (leak["examples"], leak["of"], leak["allowed"]) == (3, 16, True)
    again = run(*options)
    assert again.exit_code == 1, "what was allowed once is not allowed for ever"
    assert "--allow-contaminated" in again.stderr


def test_leak_without_ancestor(run: Run, chain_folder: Path) -> None:
    """Training images among the test images of another file are detected without any ancestor."""
    split = plant_leak(chain_folder, "first", "train", into="second")
    result = run("eval", chain_folder / "grand.safetensors", "--data", split, *THREADS)
    assert result.exit_code == 1
    assert "3 of the 16 test examples were trained on" in result.stderr


def test_validation_images_are_a_warning(run: Run, chain_folder: Path) -> None:
    """Test images that an ancestor was validated on are a warning with their number, not a refusal."""
    split = plant_leak(chain_folder, "first", "val")
    result = run("eval", chain_folder / "finetune.safetensors", "--data", split, *THREADS)
    assert result.exit_code == 0, result.stderr
    assert "3 of the 16 test examples are validation examples" in result.stderr
    leak = load_json(chain_folder / "finetune.test.eval.json")["contamination"]
    assert (leak["examples"], leak["chosen"]) == (0, 3)


@pytest.mark.parametrize(
    ("file", "what"),
    [("first.split.json", "missing"), ("first.split.json", "changed"), ("grand.safetensors", "missing"),
     ("head.safetensors", "changed")],
)  # fmt: skip
def test_missing_ancestor_is_unchecked(run: Run, chain_folder: Path, file: str, what: str) -> None:
    """A missing or changed file of the lineage is reported as unchecked, in a warning and in the evaluation."""
    if what == "missing":
        (chain_folder / file).unlink()
    else:
        (chain_folder / file).write_bytes((chain_folder / file).read_bytes() + b" ")
    for _ in range(2):  # made, then up to date
        result = run("eval", chain_folder / "finetune.safetensors", *THREADS)
        assert result.exit_code == 0, result.stderr
        assert "cannot check" in result.stderr
        assert file in result.stderr
    [unchecked] = load_json(chain_folder / "finetune.test.eval.json")["contamination"]["unchecked"]
    assert unchecked["name"] == file
    assert ("no such file" if what == "missing" else "has changed") in unchecked["why"]


def test_moved_data_is_checked(run: Run, chain_folder: Path) -> None:
    """A split passed with --data stands for the recorded one of the same content."""
    (chain_folder / "elsewhere").mkdir()
    moved = (chain_folder / "second.split.json").rename(chain_folder / "elsewhere" / "moved.split.json")
    result = run(
        "eval", chain_folder / "head.safetensors", "--data", moved, "--root", chain_folder / "others", *THREADS
    )
    assert result.exit_code == 0, result.stderr
    leak = load_json(chain_folder / "head.test.eval.json")["contamination"]
    assert leak["checked"] == ["first.split.json", "moved.split.json"]
    assert leak["unchecked"] == []


def test_named_weights_are_unrecorded(run: Run, chain_folder: Path) -> None:
    """Named weights and files of other programs are recorded as such, without a warning."""
    from safetensors.numpy import load_file, save_file

    foreign = chain_folder / "foreign.safetensors"
    save_file(load_file(chain_folder / "grand.safetensors"), foreign)
    for name, weights in (("named", ()), ("alien", ("--weights", foreign))):
        output = chain_folder / f"{name}.safetensors"
        run_dlcv("vgg", "head", chain_folder / "second.split.json", *QUICK, *weights, "-o", output)
        result = run("eval", output, *THREADS)
        assert "warning: " not in result.stderr
        leak = load_json(chain_folder / f"{name}.test.eval.json")["contamination"]
        assert (leak["unrecorded"], leak["unchecked"]) == (["foreign.safetensors" if weights else "drawn"], [])


def test_evaluating_train_is_allowed(run: Run, chain_folder: Path) -> None:
    """--part train is contaminated by definition: it is reported, not refused."""
    result = run("eval", "--compare", chain_folder / "grand.safetensors", "--part", "train", *THREADS)
    assert result.exit_code == 0, result.stderr
    assert "evaluated on its training part" in result.stderr
    leak = load_json(chain_folder / "grand.train.eval.json")["contamination"]
    assert leak["examples"] == leak["of"] == 51
    assert leak["allowed"] is True


def test_leaked_sequences_are_refused(run: Run, tmp_path: Path) -> None:
    """A test part that another file trained on is refused; equal sequences of a finite task are no leak."""
    run_dlcv("seq", "gen", "--count", 60, "-o", tmp_path / "adding.safetensors")
    run_dlcv("seq", "train", tmp_path / "adding.safetensors", "--hidden-size", 4, "-o", tmp_path / "gru.safetensors")
    file = sequences.read(tmp_path / "adding.safetensors")
    parts = {**file.parts, "test": file.parts["train"]}
    record = {key: value for key, value in file.metadata.items() if key != "schema"}
    sequences.write(tmp_path / "leak.safetensors", parts, record)
    result = run("eval", tmp_path / "gru.safetensors", "--data", tmp_path / "leak.safetensors")
    assert result.exit_code == 1
    assert "38 of the 38 test examples were trained on" in result.stderr
    run_dlcv(
        "seq", "gen", "--task", "temporal-order", "--count", 500, "--max-length", 3, "-o", tmp_path / "few.safetensors"
    )
    run_dlcv("seq", "train", tmp_path / "few.safetensors", "--cell", "baseline", "-o", tmp_path / "b.safetensors")
    result = run("eval", "--compare", tmp_path / "b.safetensors")
    assert result.exit_code == 0
    assert "contaminated" not in result.stdout + result.stderr
    leak = load_json(tmp_path / "b.test.eval.json")["contamination"]
    assert leak["by_chance"] is True
    assert leak["examples"] > 50


# ----------------------------------------------------------------------------------------------------------- collapse


def test_planted_collapse_is_reported(run: Run, chain_folder: Path) -> None:
    """A network that always predicts one class is called collapsed in the message, table and JSON."""
    stored = tensors.read(chain_folder / "grand.safetensors", tensors.CHECKPOINT)
    stored.arrays["classifier.6.weight"][:] = 0
    stored.arrays["classifier.6.bias"][:] = [0, 1]
    record = {key: value for key, value in stored.metadata.items() if key != "schema"}
    tensors.write(chain_folder / "fallen.safetensors", tensors.CHECKPOINT, stored.arrays, record)
    result = run("eval", chain_folder / "fallen.safetensors", *THREADS)
    assert "collapsed: predicts 1 of 2 classes; 100.0 % of its predictions are b" in result.stdout
    table = run("eval", "--compare", chain_folder / "fallen.safetensors", *THREADS).stdout
    assert "fallen (collapsed) " in table
    assert "fallen has collapsed: predicts 1 of 2 classes" in table


def test_training_warns_of_a_collapse(run: Run, chain_folder: Path, tmp_path: Path) -> None:
    """Training warns of a collapse halfway and at the end, with advice."""
    split = chain_folder / "first.split.json"
    options = ("--epochs", 3, "--lr", 1.0, "--precision", "float32", "--arch", "vgg16_mini", *THREADS)
    result = run("vgg", "scratch", split, *options, "-o", tmp_path / "dead.safetensors")
    assert result.exit_code == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: collapsed")]
    assert [line.split(" epochs")[0] for line in warnings] == [
        "warning: collapsed after 2 of 3", "warning: collapsed after 3 of 3",
    ]  # fmt: skip
    assert "try a lower --lr" in warnings[0]


def test_seq_train_warns_of_a_collapse(run: Run, tmp_path: Path) -> None:
    """Training warns of a cell that has learned nothing, but not of a good cell or the baseline."""
    run_dlcv("seq", "gen", "--count", 400, "-o", tmp_path / "data.safetensors")
    for options, fallen in (
        (("--lr", 1e-9), True), (("--epochs", 8, "--cell", "gru"), False), (("--cell", "baseline"), False),
    ):  # fmt: skip
        result = run(
            "seq", "train", tmp_path / "data.safetensors", *options, "-o", tmp_path / "a.safetensors", "--force"
        )
        assert ("warning: collapsed on the validation part: " in result.stderr) is fallen, result.stderr
