"""`seq gen` and `seq train` as a user runs them: files, refusals, exit codes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Run, assert_refused, read_files, read_metrics, run_dlcv
from typer.testing import Result

from dlcv_cli.files import sequences, tensors
from dlcv_cli.sequences.tasks import TASKS

CELLS = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
SETTINGS = ("--hidden-size", 4, "--epochs", 2, "--record-every", 30)


def train_all(folder: Path) -> None:
    """Write 64 training sequences and train every cell on them."""
    run_dlcv("seq", "gen", "--count", 100, "-o", folder / "data.safetensors")
    for cell in ("baseline", *CELLS):
        output = folder / f"{cell}.safetensors"
        run_dlcv("seq", "train", folder / "data.safetensors", "--cell", cell, *SETTINGS, "-o", output)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data and a checkpoint of each cell. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    train_all(folder)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "folder"))


def train(run: Run, folder: Path, *more: object) -> Result:
    """Run the training of the GRU again."""
    gru = ("--cell", "gru", *SETTINGS, "-o", folder / "gru.safetensors")
    return run("seq", "train", folder / "data.safetensors", *gru, *more)


# --------------------------------------------------------------------------------------------------------------- gen


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        ((), {"train": 6400, "val": 1600, "test": 2000}),
        (("--count", 7), {"train": 4, "val": 1, "test": 2}),
        (("--count", 3), {"train": 1, "val": 1, "test": 1}),
        (("--count", 10, "--test-fraction", 0.3, "--val-fraction", 0.5), {"train": 3, "val": 4, "test": 3}),
    ],
)
def test_gen_counts(run: Run, tmp_path: Path, more: tuple[object, ...], counts: dict[str, int]) -> None:
    """The default counts are the published ones; held-out parts are rounded up; the file has these counts."""
    output = tmp_path / "data.safetensors"
    result = run("seq", "gen", *more, "-o", output, "--json")
    assert json.loads(result.stdout) == {"status": "made", "output": str(output), "counts": counts}
    parts = sequences.read(output).parts
    assert {part: len(data.lengths) for part, data in parts.items()} == counts


@pytest.mark.parametrize("task", sorted(TASKS))
def test_gen_is_reproducible(run: Run, tmp_path: Path, task: str) -> None:
    """The same command gives the same bytes in two folders; another seed gives other sequences."""
    long = ("--min-length", 20, "--max-length", 22)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = run(
            "seq", "gen", "--task", task, "--count", 50, *long, "--seed", seed, "-o", tmp_path / name / "d.safetensors"
        )
        assert result.exit_code == 0
    first, same, second = ((tmp_path / name / "d.safetensors").read_bytes() for name in "abc")
    assert first == same
    assert first != second
    record = tensors.read_metadata(tmp_path / "a" / "d.safetensors", tensors.SEQUENCES)
    assert list(record) == ["schema", "sha256", "stage", "config", "inputs", "versions"]
    assert list(record["config"]) == [
        "task", "count", "min_length", "max_length", "test_fraction", "val_fraction", "seed",
    ]  # fmt: skip
    assert (record["config"]["task"], record["inputs"]) == (task, {})


def test_gen_parts_do_not_overlap(trained: Path) -> None:
    """No sequence is in two parts, and the settings change the data."""
    parts = sequences.read(trained / "data.safetensors").parts
    seen = Counter(inputs.tobytes() for d in parts.values() for inputs in np.split(d.inputs, np.cumsum(d.lengths)[:-1]))
    assert set(seen.values()) == {1}
    assert len(seen) == 100


def test_gen_up_to_date(run: Run, folder: Path) -> None:
    """The same command is up to date; another is refused with the difference; --force replaces the file."""
    before, data = read_files(folder), folder / "data.safetensors"
    result = run("seq", "gen", "--count", 100, "-o", data)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{data}: up to date (adding: train 64, val 16, test 20)\n"
    assert_refused(
        run("seq", "gen", "--count", 101, "-o", data), f"{data} already exists", "--count was 100, now 101", "--force"
    )
    assert_refused(run("seq", "gen", "--count", 100, "-o", folder / "gru.safetensors"), "dlcv.checkpoint/1")
    assert read_files(folder) == before
    assert run("seq", "gen", "--count", 101, "-o", data, "--force").stdout.startswith(f"wrote {data} ")
    assert len(sequences.read(data).parts["test"].lengths) == 21


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--count 2", 2, "count is 2"),
        ("--min-length 1", 2, "--min-length is 1"),
        ("--min-length 9 --max-length 8", 2, "--max-length is 8"),
        ("--test-fraction 0", 2, "--test-fraction is 0.0"),
        ("--task sorting", 2, "temporal-order"),
        ("--task adding-1997", 2, "--min-length is 2: adding-1997 needs at least 20"),
        ("--task adding-1997 --min-length 19 --max-length 40", 2, "--min-length is 19"),
        ("--count 3 --test-fraction 0.9", 2, "leaves a part empty"),
        ("--name", 2, ""),
    ],
)
def test_gen_wrong_usage(run: Run, tmp_path: Path, options: str, code: int, words: str) -> None:
    """Settings out of range are wrong usage, and a count that leaves a part empty is refused."""
    result = run("seq", "gen", *options.split(), "-o", tmp_path / "d.safetensors")
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- train


@pytest.mark.parametrize("cell", CELLS)
def test_checkpoint_loads_into_torch(trained: Path, cell: str) -> None:
    """A checkpoint loads strictly into torch.nn and gives the recorded validation loss."""
    output = trained / f"{cell}.safetensors"
    stored = safetensors.torch.load_file(output)
    parts: dict[str, dict[str, torch.Tensor]] = {"rnn": {}, "head": {}}
    for name, tensor in stored.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    rnn, head = CELLS[cell](2, 4), torch.nn.Linear(4, 1)
    rnn.load_state_dict(parts["rnn"], strict=True)
    head.load_state_dict(parts["head"], strict=True)
    val = sequences.read(trained / "data.safetensors").parts["val"]
    with torch.no_grad():
        predictions = [
            head(rnn(torch.from_numpy(inputs))[0][-1]).item()
            for inputs in np.split(val.inputs, np.cumsum(val.lengths)[:-1])
        ]
    mse = np.mean((np.array(predictions) - val.targets) ** 2)
    assert read_metrics(output)["best"]["val_loss"] == pytest.approx(mse, rel=1e-5)


@pytest.mark.parametrize("cell", ["baseline", *CELLS])
def test_metrics_keys(trained: Path, cell: str) -> None:
    """The metrics have these keys in this order, and a record every 30 steps and at the last step, 128."""
    output = trained / f"{cell}.safetensors"
    actual = read_metrics(output)
    assert list(actual) == [
        "schema", "stage", "config", "inputs", "task", "parameters", "records", "best", "checkpoint", "run",
    ]  # fmt: skip
    assert (actual["schema"], actual["stage"]) == ("dlcv.metrics/1", "seq.train")
    assert actual["config"] == {
        "cell": cell, "engine": "compiled", "hidden_size": 4, "epochs": 2, "batch_size": 1, "lr": 0.003,
        "clip_norm": None, "chrono": None, "record_every": 30, "seeds": 1, "seed": 0,
    }  # fmt: skip
    assert list(actual["config"]) == [
        "cell", "engine", "hidden_size", "epochs", "batch_size", "lr", "clip_norm", "chrono", "record_every",
        "seeds", "seed",
    ]  # fmt: skip
    data = hashlib.sha256((trained / "data.safetensors").read_bytes()).hexdigest()
    assert actual["inputs"] == {"data": {"path": "data.safetensors", "sha256": data}}
    gates = {"baseline": 0, "elman": 1, "lstm": 4, "gru": 3}[cell]
    count = gates * (4 * 2 + 4 * 4 + 4 + 4) + (4 + 1 if gates else 0)
    assert actual["parameters"] == {"total": count, "trainable": count}
    assert all(list(record) == ["seed", "iteration", "train_loss", "val_loss"] for record in actual["records"])
    iterations = [record["iteration"] for record in actual["records"]]
    assert iterations == ([30, 60, 90, 120, 128] if gates else [0])
    assert actual["best"] == min(actual["records"], key=lambda record: record["val_loss"])
    sha256 = hashlib.sha256(output.read_bytes()).hexdigest()
    assert actual["checkpoint"] == {"path": output.name, "sha256": sha256}
    assert list(actual["run"]) == [
        "started",
        "seconds",
        "machine",
        "python",
        "versions",
        "threads",
        "resumed",
        "seconds_before",
        "seconds_saving",
    ]
    assert actual["run"]["threads"] == 1
    assert list(actual["run"]["versions"]) == ["dlcv", "numba", "numpy", "safetensors"]


def test_metadata_keys(trained: Path) -> None:
    """The metadata has these keys in this order, and agrees with the metrics."""
    record, metrics = (
        tensors.read_metadata(trained / "gru.safetensors", tensors.CHECKPOINT),
        read_metrics(trained / "gru.safetensors"),
    )
    assert list(record) == ["schema", "sha256", "stage", "config", "inputs", "task", "seeds", "best", "versions"]
    assert record["seeds"] == [0]
    assert all(record[key] == metrics[key] for key in ("stage", "config", "inputs", "best"))
    assert record["task"] == "adding"


def test_baseline_checkpoint(trained: Path) -> None:
    """The baseline's checkpoint is the constant alone, and its only record has the constant's loss."""
    stored = tensors.read(trained / "baseline.safetensors", tensors.CHECKPOINT)
    assert {name: array.tolist() for name, array in stored.arrays.items()} == {"constant": [1.0]}
    val = sequences.read(trained / "data.safetensors").parts["val"]
    mse = np.mean((val.targets.astype(np.float64) - 1) ** 2)
    [record] = read_metrics(trained / "baseline.safetensors")["records"]
    assert record == {"seed": 0, "iteration": 0, "train_loss": None, "val_loss": pytest.approx(mse)}


def test_training_is_reproducible(trained: Path, tmp_path: Path) -> None:
    """The same commands in another folder give equal checkpoints, and metrics that differ in `run`."""
    train_all(tmp_path / "again")
    for cell in ("baseline", *CELLS):
        name = f"{cell}.safetensors"
        assert (trained / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), cell
        first, second = read_metrics(trained / name), read_metrics(tmp_path / "again" / name)
        assert list(first.pop("run")) == list(second.pop("run"))
        assert first == second


def test_up_to_date(run: Run, folder: Path) -> None:
    """The same command again says that the output is up to date and changes nothing."""
    output = folder / "gru.safetensors"
    before, stamp = read_files(folder), output.stat().st_mtime_ns
    result = train(run, folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{output}: up to date (best seed 0  iteration ")
    assert read_files(folder) == before
    assert output.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (("--hidden-size", 8), "--hidden-size was 4, now 8"),
        (("--cell", "lstm"), "--cell was gru, now lstm"),
        (("--seed", 3, "--lr", 0.1), "--lr was 0.003, now 0.1 and --seed was 0, now 3"),
        (("--batch-size", 5, "--clip-norm", 1), "--batch-size was 1, now 5 and --clip-norm was not set, now 1.0"),
        (("--engine", "torch"), "--engine was compiled, now torch"),
    ],
)
def test_other_settings_are_refused(run: Run, folder: Path, more: tuple[object, ...], difference: str) -> None:
    """Other settings are refused by name and keep the checkpoint; --force replaces it."""
    before, output = read_files(folder), folder / "gru.safetensors"
    assert_refused(train(run, folder, *more), f"{output} already exists", difference, "--force")
    assert read_files(folder) == before
    assert train(run, folder, *more, "--force").exit_code == 0
    assert output.read_bytes() != before["gru.safetensors"]


def test_other_data_is_refused(run: Run, folder: Path) -> None:
    """A checkpoint trained on other data, and a data file in its place, are refused and kept."""
    run_dlcv("seq", "gen", "--count", 10, "-o", folder / "other.safetensors")
    run_dlcv("seq", "gen", "--count", 100, "--seed", 1, "-o", folder / "data.safetensors", "--force")
    before = read_files(folder)
    assert_refused(train(run, folder), "it was made from different data")
    assert_refused(train(run, folder, "-o", folder / "other.safetensors"), "dlcv.sequences/1")
    assert_refused(
        train(run, folder, "-o", folder / "data.safetensors", "--force"), folder / "data.safetensors", "another name"
    )
    assert read_files(folder) == before


def test_missing_metrics_train_again(run: Run, trained: Path, folder: Path) -> None:
    """A checkpoint without its metrics is trained again to the same bytes, with the reason."""
    (folder / "gru.metrics.json").unlink()
    result = train(run, folder)
    assert result.exit_code == 0
    assert "metrics are missing" in result.stderr
    assert (folder / "gru.safetensors").read_bytes() == (trained / "gru.safetensors").read_bytes()
    assert (folder / "gru.metrics.json").exists()


Arrays = tensors.Arrays
DAMAGE: dict[str, Callable[[Arrays, dict[str, Any]], Any]] = {
    "one step less": lambda a, r: a.update({"train.inputs": a["train.inputs"][:-1]}),
    "a length more": lambda a, r: a["val.lengths"].__setitem__(0, a["val.lengths"][0] + 1),
    "length of 0": lambda a, r: a["train.lengths"].__setitem__(slice(2), [0, a["train.lengths"][:2].sum()]),
    "negative length": lambda a, r: a["train.lengths"].__setitem__(slice(2), [-1, a["train.lengths"][:2].sum() + 1]),
    "lengths that wrap": lambda a, r: a["test.lengths"].__setitem__(slice(2), [2**62, 2**62]),
    "a target less": lambda a, r: a.update({"test.targets": a["test.targets"][1:]}),
    "no targets": lambda a, r: a.pop("val.targets"),
    "empty part": lambda a, r: a.update({f"val.{n}": a[f"val.{n}"][:0] for n in ("inputs", "lengths", "targets")}),
    "lengths of 32 bits": lambda a, r: a.update({"train.lengths": a["train.lengths"].astype(np.int32)}),
    "inputs of 64 bits": lambda a, r: a.update({"train.inputs": a["train.inputs"].astype(np.float64)}),
    "flat inputs": lambda a, r: a.update({"train.inputs": a["train.inputs"].ravel()}),
    "nan": lambda a, r: a["train.inputs"].__setitem__(0, np.nan),
    "infinite target": lambda a, r: a["val.targets"].__setitem__(0, np.inf),
    "val is wider": lambda a, r: a.update({"val.inputs": np.hstack([a["val.inputs"]] * 2)}),
    "no inputs a step": lambda a, r: a.update({n: x[:, :0] for n, x in a.items() if n.endswith("inputs")}),
    "narrower than the task": lambda a, r: a.update({n: x[:, :1] for n, x in a.items() if n.endswith("inputs")}),
    "no config": lambda a, r: r.pop("config"),
    "unknown task": lambda a, r: r["config"].update(task="sorting"),
    "task is a list": lambda a, r: r["config"].update(task=["adding"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_damaged_sequences(run: Run, folder: Path, damage: str, command: str) -> None:
    """A damaged sequence file is refused in one line that names it, and nothing is written."""
    stored = tensors.read(folder / "data.safetensors", tensors.SEQUENCES)
    record = {key: value for key, value in stored.metadata.items() if key != "schema"}
    DAMAGE[damage](stored.arrays, record)
    bad = folder / "bad.safetensors"
    tensors.write(bad, tensors.SEQUENCES, stored.arrays, record)
    before = read_files(folder)
    if command == "train":
        assert_refused(run("seq", "train", bad, *SETTINGS, "-o", folder / "out" / "new.safetensors"), bad)
    else:
        result = run("eval", folder / "gru.safetensors", "--data", bad)
        assert result.exit_code == 1
        assert str(bad) in result.stderr.splitlines()[-1]
    assert read_files(folder) == before


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "folder", "garbage", "truncated", "checkpoint", "foreign", "json"]
)
def test_bad_data(run: Run, folder: Path, kind: str) -> None:
    """A file that holds no sequences is refused in one line that names it and the expected schema."""
    bad, good = folder / "bad.safetensors", folder / "data.safetensors"
    if kind == "empty":
        bad.touch()
    elif kind == "folder":
        bad.mkdir()
    elif kind == "garbage":
        bad.write_bytes(bytes(range(256)) * 20)
    elif kind == "truncated":
        bad.write_bytes(good.read_bytes()[:-8])
    elif kind == "checkpoint":
        shutil.copy(folder / "lstm.safetensors", bad)
    elif kind == "foreign":
        safetensors.torch.save_file({"a": torch.zeros(3)}, bad)
    elif kind == "json":
        shutil.copy(folder / "lstm.metrics.json", bad)
    before = read_files(folder)
    words = {"checkpoint": "'dlcv.checkpoint/1'; a 'dlcv.sequences/1'", "foreign": "not a dlcv file"}
    assert_refused(run("seq", "train", bad, *SETTINGS, "-o", folder / "new.safetensors"), bad, words.get(kind, ""))
    assert read_files(folder) == before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("--hidden-size 0", 2), ("--lr 0", 2), ("--lr inf", 2), ("--record-every 0", 2), ("--cell gnu", 2),
        ("--engine cuda", 2), ("--batch-size 0", 2), ("--clip-norm 0", 2), ("--clip-norm nan", 2), ("--seeds 0", 2),
        ("--seed 4294967295 --seeds 2", 2),
    ],
)  # fmt: skip
def test_train_wrong_usage(run: Run, folder: Path, options: str, code: int) -> None:
    """Settings out of range or unknown are wrong usage, and nothing is written."""
    before = read_files(folder)
    result = train(run, folder, *options.split(), "--force")
    assert (result.exit_code, result.stdout) == (code, "")
    assert read_files(folder) == before


def test_runaway_training(run: Run, folder: Path) -> None:
    """A training that diverges before its first validation pass ends with one line of advice and no file."""
    before = read_files(folder)
    result = train(run, folder, "--lr", "1e38", "--force", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[1:] == [
        "dlcv: seed 0: the loss is no longer a finite number at iteration 2: try a lower --lr than 1e+38"
    ]
    assert read_files(folder) == before


def test_output_below_a_file(run: Run, folder: Path) -> None:
    """An output whose folder is a file is refused before training."""
    (folder / "runs").write_text("a file")
    before = read_files(folder)
    assert_refused(train(run, folder, "-o", folder / "runs" / "new.safetensors"), folder / "runs")
    assert read_files(folder) == before


def test_json(run: Run, folder: Path) -> None:
    """--json prints one document with the best record, made or up to date; all else is on stderr."""
    output = folder / "gru.safetensors"
    again, forced = train(run, folder, "--json"), train(run, folder, "--json", "--force")
    for result, status in ((again, "up to date"), (forced, "made")):
        document = json.loads(result.stdout)
        assert document == {"status": status, "output": str(output), **read_metrics(output)["best"]}
        assert list(document) == ["status", "output", "seed", "iteration", "train_loss", "val_loss"]
    lines = forced.stderr.splitlines()
    assert lines[0] == "training 101 parameters (gru) on 64 sequences"
    assert [line.split()[1] for line in lines[1:]] == ["30", "60", "90", "120", "128"]


def test_a_foreign_file_beside_the_output_is_kept(run: Run, folder: Path) -> None:
    """A foreign file with the metrics' name is refused before training; --force replaces it."""
    notes = folder / "new.metrics.json"
    notes.write_text('"my notes"')
    new = ("-o", folder / "new.safetensors")
    before = read_files(folder)
    assert_refused(train(run, folder, *new), notes, "--force")
    assert read_files(folder) == before
    assert train(run, folder, *new, "--force").exit_code == 0
    assert read_metrics(folder / "new.safetensors")["schema"] == "dlcv.metrics/1"


def test_a_folder_beside_the_output_is_refused(run: Run, folder: Path) -> None:
    """A folder with the metrics' name is refused before training, even with --force."""
    (folder / "new.metrics.json").mkdir()
    assert_refused(train(run, folder, "-o", folder / "new.safetensors", "--force"), "new.metrics.json", "folder")
    assert not (folder / "new.safetensors").exists()


def test_evaluation_does_not_overwrite_the_data(run: Run, folder: Path) -> None:
    """A data file with the predictions' name is kept, even with --force."""
    data = folder / "b.test.predictions.safetensors"
    (folder / "data.safetensors").rename(data)
    b = folder / "b.safetensors"
    assert run("seq", "train", data, "--cell", "baseline", "-o", b).exit_code == 0
    before = read_files(folder)
    assert_refused(run("eval", b, "--force"), data, "would be overwritten")
    assert read_files(folder) == before


def test_overflowing_predictions_are_refused(run: Run, folder: Path) -> None:
    """Finite weights whose predictions overflow are refused by name."""
    path = folder / "elman.safetensors"
    (folder / "elman.metrics.json").unlink()
    stored = tensors.read(path, tensors.CHECKPOINT)
    record = {key: value for key, value in stored.metadata.items() if key != "schema"}
    huge = {name: np.full_like(array, 3e38) for name, array in stored.arrays.items()}
    tensors.write(path, tensors.CHECKPOINT, huge, record)
    before = read_files(folder)
    assert_refused(run("eval", path), path, "not finite")
    assert read_files(folder) == before


def test_replaced_checkpoint_is_a_warning(run: Run, folder: Path) -> None:
    """A checkpoint that its metrics file does not belong to is evaluated with a warning."""
    shutil.copy(folder / "lstm.safetensors", folder / "gru.safetensors")
    result = run("eval", folder / "gru.safetensors")
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "not the checkpoint that its metrics file names" in result.stderr


def test_link_to_itself_is_refused(run: Run, folder: Path) -> None:
    """A symbolic link to itself is refused in one line."""
    loop = folder / "loop.safetensors"
    loop.symlink_to(loop)
    assert_refused(run("eval", loop), "loop")
