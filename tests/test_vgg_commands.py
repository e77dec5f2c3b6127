"""`vgg head`, `finetune` and `scratch` as a user runs them: files, refusals, exit codes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from conftest import Run, assert_refused, make_photos, read_files, read_metrics, run_dlcv
from PIL import Image
from typer.testing import Result

from dlcv_cli.config import TrainConfig
from dlcv_cli.errors import DlcvError
from dlcv_cli.files import tensors
from dlcv_cli.stages import image_training as vgg
from dlcv_cli.stages import snapshots
from dlcv_cli.studies.images.predictor import require_classes
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.hints import list_hints
from dlcv_cli.vision.models import build_network
from dlcv_cli.vision.training import Epoch

CLASSES = {"cat": 10, "straße": 10, "tree house": 15}
COMMON = ("--epochs", 1, "--threads", 1, "--precision", "float32")
TRAIN_CONFIG = [
    "epochs", "batch_size", "lr", "schedule", "decay", "weight_decay", "augment", "views", "precision", "seed",
]  # fmt: skip
STAGES = {"scratch": ["arch"], "head": ["arch", "partial"], "finetune": ["unfreeze"]}
SHA256 = re.compile(r"[0-9a-f]{64}")


def train_all(folder: Path) -> None:
    """Write photos, their split, and the chain scratch -> head -> finetune, one epoch each."""
    make_photos(folder / "photos", CLASSES)
    split = folder / "photos.split.json"
    run_dlcv("data", "split", folder / "photos", "-o", split)
    for stage, more in (
        ("scratch", ("--arch", "vgg16_mini", "--lr", 0.001)),
        ("head", ("--arch", "vgg16_mini", "--weights", folder / "scratch.safetensors")),
        ("finetune", ("--from", folder / "head.safetensors", "--batch-size", 8)),
    ):
        run_dlcv("vgg", stage, split, *COMMON, *more, "-o", folder / f"{stage}.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the whole chain. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    train_all(folder)
    return folder


@pytest.fixture
def chain(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the chain that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "chain"))


def finetune(run: Run, folder: Path, *more: object) -> Result:
    """Run the last command of the chain again."""
    return run(
        "vgg", "finetune", folder / "photos.split.json", *COMMON, "--from", folder / "head.safetensors",
        "--batch-size", 8, "-o", folder / "finetune.safetensors", *more,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("stage", STAGES)
def test_metrics_keys(trained: Path, stage: str) -> None:
    """The metrics have these keys in this order, at every level."""
    checkpoint = trained / f"{stage}.safetensors"
    metrics = read_metrics(checkpoint)
    assert list(metrics) == [
        "schema", "stage", "config", "inputs", "arch", "precision", "parameters", "records", "best", "checkpoint",
        "run",
    ]  # fmt: skip
    assert (metrics["schema"], metrics["stage"]) == ("dlcv.metrics/1", f"vgg.{stage}")
    assert list(metrics["config"]) == [*TRAIN_CONFIG, *STAGES[stage]]
    assert list(metrics["parameters"]) == ["total", "trainable"]
    *starts, epoch = metrics["records"]
    assert [record["epoch"] for record in starts] == ([0] if stage == "finetune" else [])
    assert all(record["train_loss"] is None for record in starts)
    assert list(epoch) == ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    assert metrics["best"] == epoch
    assert epoch["epoch"] == 1
    assert 0 <= epoch["val_accuracy"] <= 1
    assert metrics["precision"] == "float32"
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert metrics["checkpoint"] == {"path": checkpoint.name, "sha256": sha256}
    run = metrics["run"]
    assert list(run) == [
        "started", "seconds", "machine", "python", "versions", "device", "threads", "features", "images_per_second",
        "resumed", "seconds_before", "seconds_saving",
    ]  # fmt: skip
    assert list(run["versions"]) == ["dlcv", "torch", "torchvision", "numpy", "pillow", "safetensors"]
    assert (run["threads"], len(run["images_per_second"])) == (1, 2 if stage == "finetune" else 1)
    if stage == "scratch":
        assert run["features"] == {"used": False, "why": "nothing frozen"}
        return
    # float32 of 22 + 6 images: 512 behind classifier.1, 64 channels of 4 x 4 before features.28
    layer, numbers = {"head": ("classifier.2", 512), "finetune": ("features.28", 64 * 4 * 4)}[stage]
    assert list(run["features"]) == ["used", "before", "bytes_per_image", "images", "computed"]
    assert [*run["features"].values()] == [True, layer, 4 * numbers, 28, 28]


@pytest.mark.parametrize("stage", STAGES)
def test_metadata_keys(trained: Path, stage: str) -> None:
    """The metadata has these keys in this order, and agrees with the metrics."""
    checkpoint = trained / f"{stage}.safetensors"
    record, metrics = tensors.read_metadata(checkpoint, tensors.CHECKPOINT), read_metrics(checkpoint)
    assert list(record) == [
        "schema", "sha256", "stage", "config", "inputs", "arch", "precision", "classes", "preprocessing", "trained",
        "best", "versions",
    ]  # fmt: skip
    assert all(record[key] == metrics[key] for key in ("stage", "config", "inputs", "arch", "precision", "best"))
    assert record["arch"] == "vgg16_mini"
    layers = {"scratch": ["features", "classifier"], "head": ["classifier.6"]}
    assert record["trained"] == layers.get(stage, ["classifier", "features.28"])
    assert record["classes"] == list(CLASSES)
    assert list(record["preprocessing"]) == ["resize", "crop", "mean", "std"]
    start = {"scratch": {}, "head": {"weights": "scratch"}, "finetune": {"checkpoint": "head"}}[stage]
    files = {"split": "photos.split.json"} | {role: f"{name}.safetensors" for role, name in start.items()}
    assert {role: source["path"] for role, source in record["inputs"].items()} == files
    for role, source in record["inputs"].items():
        assert list(source) == ["path", "sha256", *(["recipe"] if role == "checkpoint" else [])]
        assert source["sha256"] == hashlib.sha256((trained / source["path"]).read_bytes()).hexdigest()


def test_settings_are_recorded(trained: Path) -> None:
    """The files record the settings, and name the layers that train by default."""
    config = read_metrics(trained / "finetune.safetensors")["config"]
    assert (config["epochs"], config["batch_size"], config["lr"], config["schedule"]) == (1, 8, 5e-5, "constant")
    assert config["unfreeze"] == "classifier,features.28"
    count = {stage: read_metrics(trained / f"{stage}.safetensors")["parameters"] for stage in STAGES}
    assert count["head"]["trainable"] == 512 * 3 + 3
    assert count["scratch"]["trainable"] == count["scratch"]["total"]
    features_28 = 64 * 64 * 9 + 64
    classifier = (64 * 4 * 512 + 512) + (512 * 512 + 512) + (512 * 3 + 3)
    assert count["finetune"]["trainable"] == features_28 + classifier


def test_only_trainable_layers_change(trained: Path) -> None:
    """Between two checkpoints only the layers that train differ."""
    stored = {stage: tensors.read(trained / f"{stage}.safetensors", tensors.CHECKPOINT).arrays for stage in STAGES}

    def layers(one: str, other: str) -> set[str]:
        pairs = ((name, array, stored[other][name]) for name, array in stored[one].items())
        return {name.rpartition(".")[0] for name, a, b in pairs if not np.array_equal(a, b)}

    assert layers("scratch", "head") == {"classifier.6"}
    assert layers("head", "finetune") == {"features.28", "classifier.0", "classifier.3", "classifier.6"}


def test_file_has_no_pickle(trained: Path) -> None:
    """A checkpoint is a JSON header and float32 tensors end to end, and nothing else."""
    data = (trained / "head.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert list(header.pop("__metadata__")) == ["dlcv"]
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == len(data) - 8 - size
    for entry in header.values():
        assert entry["data_offsets"][1] - entry["data_offsets"][0] == 4 * int(np.prod(entry["shape"]))


def test_checkpoint_loads_into_torchvision(run: Run, split_file: Path, tmp_path: Path) -> None:
    """A checkpoint of a torchvision network loads strictly into torchvision's own."""
    output = tmp_path / "squeeze.safetensors"
    result = run("vgg", "scratch", split_file, "--arch", "squeezenet1_1", "--batch-size", 8, *COMMON, "-o", output)
    assert result.exit_code == 0, result.stderr
    network = torchvision.models.squeezenet1_1(num_classes=3)
    state = safetensors.torch.load_file(output)
    network.load_state_dict(state, strict=True)
    assert {t.dtype for t in state.values()} == {torch.float32}


def test_training_is_reproducible(trained: Path, tmp_path: Path) -> None:
    """The same commands in another folder give equal checkpoints, and metrics that differ in `run`."""
    train_all(tmp_path / "again")
    for stage in STAGES:
        name = f"{stage}.safetensors"
        assert (trained / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), stage
        one, other = read_metrics(trained / name), read_metrics(tmp_path / "again" / name)
        assert one.pop("run") != other.pop("run")
        assert one == other


def test_seed_changes_the_checkpoint(run: Run, chain: Path) -> None:
    """Another seed gives other weights."""
    before = (chain / "finetune.safetensors").read_bytes()
    assert finetune(run, chain, "--seed", 1, "--force").exit_code == 0
    assert (chain / "finetune.safetensors").read_bytes() != before


# --------------------------------------------------------------------------------------------------------- like make


def test_up_to_date(run: Run, chain: Path) -> None:
    """The same command again says that the output is up to date and changes nothing."""
    output = chain / "finetune.safetensors"
    before, stamp = read_files(chain), output.stat().st_mtime_ns
    result = finetune(run, chain)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{output}: up to date (best epoch 1 ")
    assert read_files(chain) == before
    assert output.stat().st_mtime_ns == stamp


def test_up_to_date_after_moving(run: Run, trained: Path, tmp_path: Path) -> None:
    """A folder that moves with all its files stays up to date."""
    moved = Path(shutil.copytree(trained, tmp_path / "else" / "where"))
    result = finetune(run, moved)
    assert result.exit_code == 0
    assert "up to date" in result.stdout


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (("--lr", 0.01), "--lr was 5e-05, now 0.01"),
        (("--epochs", 2), "--epochs was 1, now 2"),
        (("--unfreeze", "classifier"), "--unfreeze was classifier,features.28, now classifier"),
        (("--augment", "flip", "--views", 3), "--augment was none, now flip and --views was not set, now 3"),
        (("--precision", "bfloat16"), "--precision was float32, now bfloat16"),
        (("--seed", 1, "--schedule", "cosine"), "--schedule was constant, now cosine and --seed was 0, now 1"),
    ],
)
def test_other_settings_are_refused(run: Run, chain: Path, more: tuple[object, ...], difference: str) -> None:
    """Other settings are refused with the differences, and keep the output."""
    before = read_files(chain)
    output = chain / "finetune.safetensors"
    assert_refused(finetune(run, chain, *more), f"{output} already exists", difference, "--force")
    assert read_files(chain) == before


def test_other_inputs_are_refused(run: Run, chain: Path) -> None:
    """Another split or checkpoint is refused with the difference, and keeps the output."""
    before = read_files(chain)
    assert_refused(
        finetune(run, chain, "--from", chain / "scratch.safetensors"), "it was made from a different checkpoint"
    )
    assert read_files(chain) == before
    run_dlcv("data", "split", chain / "photos", "-o", chain / "photos.split.json", "--seed", 1, "--force")
    assert_refused(finetune(run, chain), "it was trained on a different split")


def test_output_of_another_stage_is_refused(run: Run, chain: Path) -> None:
    """An output of another stage is refused with the name of that stage."""
    before = read_files(chain)
    result = finetune(run, chain, "-o", chain / "scratch.safetensors")
    assert_refused(result, chain / "scratch.safetensors", "it is an output of dlcv image scratch")
    assert read_files(chain) == before


@pytest.mark.parametrize("name", ["head.safetensors", "link.safetensors"])
def test_output_that_is_the_input_is_refused(run: Run, chain: Path, name: str) -> None:
    """The checkpoint that training starts from is never replaced, under any name."""
    (chain / "link.safetensors").symlink_to("head.safetensors")
    before = read_files(chain)
    assert_refused(finetune(run, chain, "-o", chain / name, "--force"), chain / name, "another name")
    assert read_files(chain) == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x10\0\0\0\0\0\0\0{}"], ids=["empty", "text", "short"])
def test_foreign_output_is_refused(run: Run, chain: Path, content: bytes) -> None:
    """A file that is no checkpoint is kept without --force."""
    output = chain / "finetune.safetensors"
    output.write_bytes(content)
    assert_refused(finetune(run, chain), f"{output} already exists")
    assert output.read_bytes() == content
    assert finetune(run, chain, "--force").exit_code == 0
    assert tensors.read_metadata(output, tensors.CHECKPOINT)["stage"] == "vgg.finetune"


def test_force_trains_again(run: Run, trained: Path, chain: Path) -> None:
    """--force trains again: other settings give another checkpoint, the same give equal bytes."""
    output = chain / "finetune.safetensors"
    result = finetune(run, chain, "--lr", 0.01, "--force")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"wrote {output} ")
    assert read_metrics(output)["config"]["lr"] == 0.01
    assert finetune(run, chain, "--force").exit_code == 0
    assert output.read_bytes() == (trained / "finetune.safetensors").read_bytes()


@pytest.mark.parametrize("state", ["missing", "another's"])
def test_missing_metrics_train_again(run: Run, trained: Path, chain: Path, state: str) -> None:
    """A checkpoint with missing or foreign metrics is trained again, with the reason."""
    metrics = chain / "finetune.metrics.json"
    metrics.unlink()
    if state == "another's":
        shutil.copy(chain / "head.metrics.json", metrics)
    result = finetune(run, chain)
    assert result.exit_code == 0
    assert "metrics are missing or belong to another checkpoint; training again" in result.stderr
    assert result.stdout.startswith("wrote ")
    assert (chain / "finetune.safetensors").read_bytes() == (trained / "finetune.safetensors").read_bytes()
    assert read_metrics(chain / "finetune.safetensors")["stage"] == "vgg.finetune"


def test_interruption_keeps_the_files(run: Run, chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C gives exit code 130 and changes no file."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vgg, "Training", interrupted)
    before = read_files(chain)
    result = finetune(run, chain, "--force")
    assert result.exit_code == 130
    assert result.stderr.endswith("dlcv: interrupted\n")
    assert read_files(chain) == before


# -------------------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize("change", ["changed", "missing", "folder"])
def test_changed_images_are_named(run: Run, chain: Path, change: str) -> None:
    """An image of train or val that changed since the split is refused by name."""
    split = json.loads((chain / "photos.split.json").read_text("utf-8"))
    name = split["parts"]["val"][0]["path"]
    image = chain / "photos" / name
    if change == "changed":
        shutil.copy(chain / "photos" / split["parts"]["test"][0]["path"], image)
    else:
        image.unlink()
    if change == "folder":
        image.mkdir()
    (chain / "finetune.safetensors").unlink()
    result = finetune(run, chain)
    assert result.exit_code == 1
    word = "changed" if change == "changed" else "missing"
    assert f"1 of its images in {chain / 'photos'} are missing or changed: {name} ({word})" in result.stderr
    assert not (chain / "finetune.safetensors").exists()


def test_root_option(run: Run, chain: Path) -> None:
    """Moved images are read with --root, which the checkpoint records; without it, the message names it."""
    (chain / "photos").rename(chain / "moved")
    output = chain / "new.safetensors"
    lost = finetune(run, chain, "-o", output)
    assert (lost.exit_code, lost.stdout) == (1, "")
    assert re.search(r"dlcv: .*photos\.split\.json: .*photos does not exist.*--root\n$", lost.stderr)
    result = finetune(run, chain, "-o", output, "--root", chain / "moved")
    assert result.exit_code == 0, result.stderr
    one, other = (tensors.read(chain / n, tensors.CHECKPOINT) for n in ("new.safetensors", "finetune.safetensors"))
    assert all(np.array_equal(one.arrays[name], array) for name, array in other.arrays.items())
    assert one.metadata["inputs"]["split"]["root"] == "moved"
    again = finetune(run, chain, "-o", output, "--root", chain / "moved")
    assert "up to date" in again.stdout


def test_other_classes_are_refused(run: Run, chain: Path, tmp_path: Path) -> None:
    """A checkpoint with other classes is refused with the difference."""
    make_photos(tmp_path / "animals", {"cat": 10, "dog": 10, "straße": 10})
    split = tmp_path / "animals.split.json"
    run_dlcv("data", "split", tmp_path / "animals", "-o", split)
    head, output = chain / "head.safetensors", tmp_path / "out.safetensors"
    assert_refused(
        run("vgg", "finetune", split, *COMMON, "--from", head, "-o", output),
        f"{head} was trained on other classes than {split} has",
        f"only in {head}: 'tree house'",
        f"only in {split}: 'dog'",
    )
    assert not output.exists()


def test_classes_in_another_order_are_refused() -> None:
    """The same classes in another order are refused."""
    require_classes(Path("c"), ["a", "b"], Path("s"), ["a", "b"])
    with pytest.raises(DlcvError, match="the same names in another order"):
        require_classes(Path("c"), ["a", "b"], Path("s"), ["b", "a"])


Write = Callable[[Path, Path], Any]  # (path to write, the chain's folder)


def write_half(name: str) -> Write:
    """Return a function that writes the first half of a valid file."""
    return lambda path, chain: path.write_bytes((chain / name).read_bytes()[: (chain / name).stat().st_size // 2])


def write_copy(name: str) -> Write:
    """Return a function that writes a valid file of another kind."""
    return lambda path, chain: shutil.copy(chain / name, path)


def write_sequences(path: Path, chain: Path) -> None:
    """Write a sequence file."""
    run_dlcv("seq", "gen", "--count", 20, "-o", path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").rename(path)


def write_seq_checkpoint(path: Path, chain: Path) -> None:
    """Write a checkpoint of the other study."""
    write_sequences(chain / "data", chain)
    run_dlcv("seq", "train", chain / "data", "--cell", "baseline", "-o", chain / "seq.safetensors")
    shutil.copy(chain / "seq.safetensors", path)


ANY_INPUT: dict[str, Write] = {
    "missing": lambda path, chain: None,
    "empty": lambda path, chain: path.touch(),
    "folder": lambda path, chain: path.mkdir(),
    "garbage": lambda path, chain: path.write_bytes(bytes(range(256)) * 20),
    "json list": lambda path, chain: path.write_text("[1, 2]"),
    "json": lambda path, chain: path.write_text('{"a": 1}'),
    "other schema": lambda path, chain: path.write_text('{"schema": "dlcv.split/9"}'),
    "sequences": write_sequences,
}


@pytest.mark.parametrize("kind", [*ANY_INPUT, "truncated", "metrics", "checkpoint"])
def test_bad_split_is_refused(run: Run, chain: Path, kind: str) -> None:
    """A file that is no split is refused in one line that names it, and nothing is written."""
    own = {
        "truncated": write_half("photos.split.json"),
        "metrics": write_copy("head.metrics.json"),
        "checkpoint": write_copy("head.safetensors"),
    }
    bad = chain / "bad.split.json"
    (ANY_INPUT | own)[kind](bad, chain)
    before = read_files(chain)
    result = run("vgg", "scratch", bad, "--arch", "vgg16_mini", *COMMON, "-o", chain / "out" / "new.safetensors")
    assert_refused(result, bad)
    if kind in ("other schema", "metrics"):
        assert "'dlcv.split/1'" in result.stderr, "the schema expected"
        assert re.search(r"'dlcv\.(split/9|metrics/1)'", result.stderr), "the schema found"
    assert read_files(chain) == before


@pytest.mark.parametrize("kind", [*ANY_INPUT, "truncated", "split", "foreign", "seq checkpoint"])
def test_bad_checkpoint_is_refused(run: Run, chain: Path, kind: str) -> None:
    """A file that is no image checkpoint is refused in one line that names it."""

    def foreign(path: Path, chain: Path) -> None:
        safetensors.torch.save_file({"a": torch.zeros(3)}, path)

    own: dict[str, Write] = {
        "truncated": write_half("head.safetensors"),
        "split": write_copy("photos.split.json"),
        "foreign": foreign,
        "seq checkpoint": write_seq_checkpoint,
    }
    bad = chain / "bad.safetensors"
    (ANY_INPUT | own)[kind](bad, chain)
    before = read_files(chain)
    assert_refused(finetune(run, chain, "--from", bad, "-o", chain / "out" / "new.safetensors"), bad)
    assert read_files(chain) == before


Change = Callable[[dict[str, Any], tensors.Arrays], Any]
DAMAGE: dict[str, Change] = {
    "no arch": lambda record, arrays: record.pop("arch"),
    "unknown arch": lambda record, arrays: record.update(arch="vgg99"),
    "arch is a list": lambda record, arrays: record.update(arch=["vgg16_mini"]),
    "other arch": lambda record, arrays: record.update(arch="squeezenet1_1"),
    "no classes": lambda record, arrays: record.pop("classes"),
    "classes of numbers": lambda record, arrays: record.update(classes=[1, 2, 3]),
    "too many classes": lambda record, arrays: record["classes"].append("x"),
    "no preprocessing": lambda record, arrays: record.pop("preprocessing"),
    "crop of 0": lambda record, arrays: record["preprocessing"].update(crop=0),
    "crop too small for the network": lambda record, arrays: record["preprocessing"].update(crop=1),
    "std of 0": lambda record, arrays: record["preprocessing"].update(std=[0, 1, 1]),
    "nan": lambda record, arrays: arrays["features.0.bias"].fill(np.nan),
    "infinite": lambda record, arrays: arrays["features.0.bias"].fill(np.inf),
    "no bias": lambda record, arrays: arrays.pop("features.0.bias"),
    "no such precision": lambda record, arrays: record.update(precision="float16"),
    "precision not resolved": lambda record, arrays: record.update(precision="auto"),
    "precision is a list": lambda record, arrays: record.update(precision=["float32"]),
    "no such layer": lambda record, arrays: record.update(trained=["classifier.9"]),
    "trained is a number": lambda record, arrays: record.update(trained=6),
    "trained of numbers": lambda record, arrays: record.update(trained=[6]),
    "one too many": lambda record, arrays: arrays.update(extra=np.zeros(3, np.float32)),
    "half": lambda record, arrays: arrays.update({n: a.astype(np.float16) for n, a in arrays.items()}),
    "other shape": lambda record, arrays: arrays.update({"features.0.bias": np.zeros(9, np.float32)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["finetune", "eval"])
def test_damaged_checkpoint_is_refused(run: Run, chain: Path, damage: str, command: str) -> None:
    """A damaged checkpoint is refused in one line that names it."""
    stored = tensors.read(chain / "head.safetensors", tensors.CHECKPOINT)
    record = {key: value for key, value in stored.metadata.items() if key != "schema"}
    DAMAGE[damage](record, stored.arrays)
    bad = chain / "bad.safetensors"
    tensors.write(bad, tensors.CHECKPOINT, stored.arrays, record)
    before = read_files(chain)
    if command == "finetune":
        assert_refused(finetune(run, chain, "--from", bad, "-o", chain / "out" / "new.safetensors"), bad)
    else:
        assert_refused(run("eval", bad), bad)
    assert read_files(chain) == before


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_output_below_a_file_is_refused(run: Run, chain: Path, below: str) -> None:
    """An output whose folder is a file is refused before training."""
    (chain / "runs").write_text("a file")
    before = read_files(chain)
    result = finetune(run, chain, "-o", chain / "runs" / below / "new.safetensors")
    assert_refused(result, chain / "runs")
    assert read_files(chain) == before


@pytest.mark.parametrize(("name", "words"), [("new.pth", "must end in .safetensors"), ("folder.safetensors", "folder")])
def test_bad_output_name_is_refused(run: Run, chain: Path, name: str, words: str) -> None:
    """An output with another ending, or that is a folder, is refused."""
    (chain / "folder.safetensors").mkdir()
    assert_refused(finetune(run, chain, "-o", chain / name), name, words)


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("--lr=0", 2),
        ("--lr=nan", 2),
        ("--epochs=0", 2),
        ("--epochs=two", 2),
        ("--schedule=linear", 2),
        ("--seed=-1", 2),
        ("--no-such-option", 2),
        ("--unfreeze=classifier.9", 1),
        ("--unfreeze=", 1),
    ],
)
def test_exit_codes(run: Run, chain: Path, option: str, code: int) -> None:
    """Wrong usage is exit code 2, an unknown layer 1; no file is written."""
    before = read_files(chain)
    result = finetune(run, chain, "-o", chain / "new.safetensors", option)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr
    assert read_files(chain) == before


def test_unknown_network(run: Run, split_file: Path, tmp_path: Path) -> None:
    """An unknown --arch is wrong usage, and the message lists the names."""
    result = run("vgg", "scratch", split_file, "--arch", "resnet9", "-o", tmp_path / "x.safetensors")
    assert result.exit_code == 2
    assert "vgg16_mini" in result.stderr


def test_divergence_is_one_line(run: Run, chain: Path) -> None:
    """A training that diverges ends with one line of advice and no file."""
    before = read_files(chain)
    result = finetune(run, chain, "--lr", "1e38", "-o", chain / "new.safetensors")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("dlcv: the loss is no longer a finite number in epoch 1")
    assert read_files(chain) == before


@pytest.mark.parametrize("signal", [False, True], ids=["save", "Ctrl-C"])
def test_divergence_when_a_snapshot_is_due(
    run: Run, chain: Path, monkeypatch: pytest.MonkeyPatch, signal: bool
) -> None:
    """If a snapshot is due after divergence, the same line is printed and no file written."""
    before, asked = read_files(chain), iter(range(100))

    @contextlib.contextmanager
    def interrupt_later() -> Iterator[Callable[[], int | None]]:
        yield lambda: 2 if next(asked) == 5 else None  # after epoch 0 and its validation, in the third step

    if signal:
        monkeypatch.setattr(vgg, "hold_signals", interrupt_later)
    else:
        monkeypatch.setattr(snapshots, "SHARE", 1e9)
    more = ("--lr", "1e38", "--batch-size", 4, "--save-every", 1e9 if signal else 0)
    result = finetune(run, chain, *more, "-o", chain / "new.safetensors")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("dlcv: the loss is no longer a finite number in epoch 1 at lr")
    assert read_files(chain) == before


# ------------------------------------------------------------------------------------------------------------ output


def test_json(run: Run, chain: Path) -> None:
    """--json prints one document with the best epoch, made or up to date; all else is on stderr."""
    output = chain / "finetune.safetensors"
    keys = ["status", "output", "epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    again = finetune(run, chain, "--json")
    forced = finetune(run, chain, "--json", "--force")
    for result, status in ((again, "up to date"), (forced, "made")):
        document = json.loads(result.stdout)
        assert list(document) == keys
        assert (document["status"], document["output"]) == (status, str(output))
        assert {key: document[key] for key in keys[2:]} == read_metrics(output)["best"]
    assert "epoch 1 " in forced.stderr


def test_messages_of_finetune(run: Run, chain: Path) -> None:
    """stderr has trained, frozen and cached layers and a line per epoch; stdout what was written."""
    notes = [
        r"trains [\d,]+ of [\d,]+ parameters \(vgg16_mini, 3 classes\) on \w+ in float32",
        r"frozen before features\.28: 9\d\.\d % of the 0\.\d+ GFLOP .*; features take 4,096 bytes per image",
    ]
    cold = r"0 of 28 images are cached, 115 [Kk]B to add, [^,]+ free on its disk"
    for cached in (cold, r"28 of 28 images are cached"):
        result = finetune(run, chain, "--force", "--epochs", 2)
        lines = result.stderr.splitlines()
        for line, expected in zip(lines, [*notes, f"feature cache [0-9a-f]{{12}}: {cached}"], strict=False):
            assert re.fullmatch(expected, line)
        records = [line for line in lines[3:] if not line.startswith("hint: ")]
        assert [line.split()[:2] for line in records] == [["epoch", str(number)] for number in range(3)]
        assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_preprocessing_is_chosen_once(run: Run, chain: Path, fit: str) -> None:
    """The head's --resize and --image-size are in its checkpoint; finetune and eval obey, as torch alone would."""
    head, split = chain / "other.safetensors", chain / "photos.split.json"
    options = ("--weights", chain / "scratch.safetensors", "--resize", fit, "--image-size", 48)
    run_dlcv("vgg", "head", split, *COMMON, "--arch", "vgg16_mini", *options, "-o", head)
    tuned = chain / "tuned.safetensors"
    run_dlcv("vgg", "finetune", split, *COMMON, "--from", head, "-o", tuned)
    for checkpoint in (head, tuned):
        preprocessing = tensors.read_metadata(checkpoint, tensors.CHECKPOINT)["preprocessing"]
        assert (preprocessing["fit"], preprocessing["resize"], preprocessing["crop"]) == (fit, 48, 48)
    assert "fit" not in tensors.read_metadata(chain / "head.safetensors", tensors.CHECKPOINT)["preprocessing"]
    assert run("eval", tuned, "--threads", 1).exit_code == 0
    logits = tensors.read(chain / "tuned.test.predictions.safetensors", tensors.PREDICTIONS).arrays["logits"]
    examples = json.loads(split.read_text("utf-8"))["parts"]["test"]
    network = build_network(ARCHITECTURES["vgg16_mini"], len(CLASSES)).eval()
    network.load_state_dict(safetensors.torch.load_file(tuned))
    mean, std = torch.tensor(preprocessing["mean"]), torch.tensor(preprocessing["std"])
    squares = []
    for example in examples:
        image = Image.open(chain / "photos" / example["path"]).convert("RGB")
        high, wide = (48, 48) if fit == "squash" else (round(48 * n / max(image.size)) for n in image.size[::-1])
        square = (mean * 255).round().repeat(48, 48, 1)
        top, left = (48 - high) // 2, (48 - wide) // 2
        resized = torchvision.transforms.functional.resize(image, [high, wide], antialias=True)
        square[top : top + high, left : left + wide] = torch.from_numpy(np.array(resized)).float()
        squares.append((square / 255 - mean) / std)
    with torch.no_grad():
        expected = network(torch.stack(squares).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, expected, atol=0.03 * np.ptp(expected))


def test_image_size_that_the_network_cannot_take(run: Run, chain: Path) -> None:
    """A vision transformer for 224 pixels refuses another --image-size by name, and writes nothing."""
    output = chain / "vit.safetensors"
    result = run("vgg", "scratch", chain / "photos.split.json", "--arch", "vit_b_16", "--image-size", 96, "-o", output)
    assert result.exit_code == 2
    assert "--image-size 96: the network cannot take images of 96 x 96 pixels" in result.stderr
    assert not output.exists()


def epoch(number: int, train: float | None, val_loss: float, val: float, best: bool) -> Epoch:
    """Return a record."""
    return Epoch(number, 0.1, None if train is None else 0.5, train, val_loss, val, 1.0, best, (1, 1))


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([epoch(1, 0.7, 0.60, 0.7, True), epoch(2, 0.8, 0.55, 0.75, True)], ["more --epochs"]),
        ([epoch(1, 0.7, 0.60, 0.7, True), epoch(2, 0.8, 0.599, 0.75, True)], []),
        ([epoch(1, 0.9, 0.60, 0.7, True), epoch(2, 1.0, 0.65, 0.7, False)], ["--augment"]),
        ([epoch(0, None, 0.6, 0.7, True), epoch(1, 0.8, 0.9, 0.65, False)], ["lower --lr"]),
        ([epoch(1, 0.5, 0.9, 0.5, True), epoch(2, 0.6, 0.9, 0.4, False)], ["lower --lr"]),
    ],
)
def test_hints(records: list[Epoch], words: list[str]) -> None:
    """A falling loss, a gap between training and validation, and a loss that rises at once have a hint each."""
    hints = list_hints(records, 2, TrainConfig())
    assert len(hints) == len(words)
    assert all(word in hint for word, hint in zip(words, hints, strict=True))


def test_hints_name_what_is_not_used_yet() -> None:
    """A gap between training and validation suggests the remedies that the training did not have."""
    records = [epoch(1, 0.9, 0.60, 0.7, True), epoch(2, 1.0, 0.65, 0.7, False)]
    [some] = list_hints(records, 2, TrainConfig(augment="flip", mixup=0.2))
    assert some.endswith("; try --label-smoothing 0.1, or more images")
    [none] = list_hints(records, 2, TrainConfig(augment="flip", cutmix=1.0, label_smoothing=0.1))
    assert none.endswith("; try more images")
