"""Files written whole or not at all, files read that trust nothing, and what an output's record is compared with."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from dlcv_cli.config import FinetuneConfig
from dlcv_cli.errors import DlcvError, ExistsError, FileError
from dlcv_cli.files import disk as files
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import (
    check_output,
    hash_json,
    make_relative,
    read_json,
    replace_ending,
    write_json,
    write_whole,
)
from dlcv_cli.files.recipes import Input, Recipe, is_up_to_date
from dlcv_cli.results import metrics

SCHEMA = "dlcv.test/1"


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """Return a function that sets the umask of the process until the test ends."""
    before = files.read_umask()

    def change(mask: int) -> None:
        os.umask(mask)

    yield change
    os.umask(before)


# ----------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("old", [b"as it was", None])
def test_failed_write_keeps_old_file(tmp_path: Path, error: BaseException, old: bytes | None) -> None:
    """If writing fails, the old file is unchanged and no temporary file remains."""
    path = tmp_path / "file.json"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(type(error)), write_whole(path) as temporary:  # noqa: PT012  # what is written before the failure
        temporary.write_bytes(b"half of the n")
        raise error
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if old is None else {"file.json": old})


def test_os_errors_name_the_final_path(tmp_path: Path) -> None:
    """A system error names the final path, not the temporary one, and keeps its number."""
    path = tmp_path / "file.json"
    with pytest.raises(OSError, match="No space") as caught, write_whole(path) as temporary:
        raise OSError(28, "No space left on device", str(temporary))
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    (tmp_path / "blocks").write_text("a file")
    with pytest.raises(OSError, match="blocks") as caught, write_whole(tmp_path / "blocks" / "file.json"):
        pass
    assert caught.value.filename == str(tmp_path / "blocks" / "file.json")


def test_final_name_appears_after_the_block(tmp_path: Path) -> None:
    """The final name has the old content until the block ends; the temporary file is in the same, new folder."""
    path = tmp_path / "new" / "folder" / "file.json"
    with write_whole(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_bytes(b"one")
        assert not path.exists()
    with write_whole(path) as temporary:
        temporary.write_bytes(b"two")
        assert path.read_bytes() == b"one"
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("file.json", b"two")]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("kind", ["json", "tensors"])
def test_permissions_follow_the_umask(
    tmp_path: Path, umask: Callable[[int], None], mask: int, mode: int, kind: str
) -> None:
    """A new file has the permissions that the umask allows, and the umask does not change."""
    path = tmp_path / "file"
    umask(mask)
    if kind == "json":
        write_json(path, {})
    else:
        tensors.write(path, SCHEMA, {"a": np.zeros(1)}, {})
    assert path.stat().st_mode & 0o777 == mode
    assert files.read_umask() == mask


def test_content_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is flushed before the rename, and the folder after it."""
    path, steps = tmp_path / "file", []
    fsync = os.fsync

    def noted(handle: int) -> None:
        inode = os.fstat(handle).st_ino
        steps.append(("folder" if inode == tmp_path.stat().st_ino else inode, path.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    with write_whole(path) as temporary:
        temporary.write_bytes(b"content")
    assert steps == [(path.stat().st_ino, False), ("folder", True)]


def test_full_disk_keeps_old_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while writing is a system error with the final path; the old file is unchanged."""
    path = tmp_path / "file.safetensors"
    tensors.write(path, SCHEMA, {"a": np.zeros(3)}, {})
    before = path.read_bytes()

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "_get_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        tensors.write(path, SCHEMA, {"a": np.ones(3)}, {})
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {path.name: before}


def test_json_round_trip(tmp_path: Path) -> None:
    """Numbers are exact, keys keep their order, names beyond ASCII and beyond UTF-8 survive."""
    document = {"schema": SCHEMA, "z": 0.1 + 0.2, "a": 5e-324, "n": 2**60, "straße": "b\udcff", "none": None}
    write_json(tmp_path / "file.json", document)
    actual = read_json(tmp_path / "file.json", SCHEMA)
    assert actual == document
    assert list(actual) == list(document)
    assert "straße".encode() in (tmp_path / "file.json").read_bytes()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_json_rejects_nan(tmp_path: Path, number: float) -> None:
    """NaN and infinities, which are no JSON numbers, are never written."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": number})
    with pytest.raises(ValueError, match="not JSON compliant"):
        tensors.write(tmp_path / "file.safetensors", SCHEMA, {"a": np.zeros(1)}, {"loss": number})
    assert list(tmp_path.iterdir()) == []


def test_tensors_round_trip(tmp_path: Path) -> None:
    """Arrays of any layout and the metadata are read as written; equal content gives equal bytes."""
    rng = np.random.default_rng(0)
    arrays = {
        "b": rng.normal(size=(3, 4)).astype(np.float32).T,
        "a": np.arange(5),
        "none": np.zeros((0, 2), np.float32),
    }
    record = {"stage": "test", "name": "b\udcff straße", "numbers": [0.1, 2]}
    for name in ("one", "two"):
        tensors.write(tmp_path / name, SCHEMA, arrays, record)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    actual = tensors.read(tmp_path / "one", SCHEMA)
    assert {n: (a.dtype, a.tolist()) for n, a in actual.arrays.items()} == {
        n: (a.dtype, a.tolist()) for n, a in arrays.items()
    }
    whole = (tmp_path / "one").read_bytes()
    text = json.dumps(actual.metadata, separators=(",", ":"))
    contiguous = {n: np.ascontiguousarray(a) for n, a in arrays.items()}
    assert whole == safetensors.numpy.save(contiguous, {"dlcv": text}), "as the library would write it"
    own = actual.metadata["sha256"]
    assert hashlib.sha256(whole.replace(own.encode(), b"0" * 64)).hexdigest() == own
    assert {**actual.metadata, "sha256": ""} == {"schema": SCHEMA, "sha256": "", **record}
    assert actual.metadata == tensors.read_metadata(tmp_path / "one", SCHEMA)
    data = (tmp_path / "one").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == ["dlcv"]


# ----------------------------------------------------------------------------------------------------------- reading

BAD_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "nan": (b'{"schema": "dlcv.test/1", "x": NaN}', "NaN is no JSON number"),
    "infinity": (b'{"schema": "dlcv.test/1", "x": [-Infinity]}', "-Infinity is no JSON number"),
    "deep list": (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "deep object": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
    "long number": (b'{"schema": "dlcv.test/1", "x": ' + b"9" * 5000 + b"}", "not JSON"),
    "truncated": (b'{"schema": "dlcv.test/1", "x": [1, 2', "not JSON"),
    "two": (b'{"schema": "dlcv.test/1"} {}', "not JSON"),
    "binary": (bytes(range(256)), "not JSON"),
    "byte order mark": ('\ufeff{"schema": "dlcv.test/1"}'.encode(), "not JSON"),
    "list": (b'["dlcv.test/1"]', "is not a dlcv file (a dlcv.test/1 file is expected here)"),
    "text": (b'"dlcv.test/1"', "is not a dlcv file"),
    "no schema": (b'{"x": 1}', "is not a dlcv file"),
    "schema of a number": (b'{"schema": 1}', "is not a dlcv file"),
    "other schema": (b'{"schema": "dlcv.split/1"}', "holds 'dlcv.split/1'; a 'dlcv.test/1' file is expected here"),
    "later schema": (b'{"schema": "dlcv.test/2"}', "holds 'dlcv.test/2'"),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_bad_json_is_refused(tmp_path: Path, kind: str) -> None:
    """A file that is no JSON document of the schema is refused by name, with the reason."""
    content, words = BAD_JSON[kind]
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_json(path, SCHEMA)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_unusable_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a folder, and a file larger than any of ours are refused before they are read."""
    with pytest.raises(FileError, match="no such file"):
        read_json(tmp_path / "missing", SCHEMA)
    with pytest.raises(FileError, match="is not a file"):
        read_json(tmp_path, SCHEMA)
    monkeypatch.setattr(files, "MAX_JSON", 10)
    (tmp_path / "large").write_text('{"schema": "dlcv.test/1"}')
    with pytest.raises(FileError, match=r"larger than a dlcv\.test/1 file can be"):
        read_json(tmp_path / "large", SCHEMA)


@pytest.fixture
def tensors_file(tmp_path: Path) -> Path:
    """Return a valid file of tensors."""
    path = tmp_path / "file.safetensors"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4)}
    tensors.write(path, SCHEMA, arrays, {"stage": "test"})
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_tensors_must_be_finite(tmp_path: Path, value: float, dtype: type) -> None:
    """A tensor with a number that is not finite is refused by the tensor's name."""
    tensors.write(tmp_path / "file", SCHEMA, {"good": np.zeros(2), "weight": np.array([0, value], dtype)}, {})
    with pytest.raises(FileError, match=r"file: damaged: weight has numbers that are not finite"):
        tensors.read(tmp_path / "file", SCHEMA)


def try_to_read(path: Path) -> tensors.Tensors | None:
    """Return a file of tensors, or None if it is refused by name."""
    try:
        return tensors.read(path, SCHEMA)
    except FileError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        return None


def test_truncated_tensors_are_refused(tensors_file: Path) -> None:
    """A file truncated at any byte is refused."""
    data = tensors_file.read_bytes()
    for size in range(len(data)):
        tensors_file.write_bytes(data[:size])
        with pytest.raises(FileError, match=r"is empty|damaged"):
            tensors.read(tensors_file, SCHEMA)


def test_flipped_bits_are_refused_or_harmless(tensors_file: Path) -> None:
    """With any one bit of the header flipped, a file is refused by name or still read as arrays."""
    data = tensors_file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    count = 0
    for at, bit in itertools.product(range(end), (0, 2, 5)):
        tensors_file.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        actual = try_to_read(tensors_file)
        count += actual is None
        if actual:
            assert at >= 8, "the header's length"
            assert sum(array.nbytes for array in actual.arrays.values()) == 56
    assert count > end


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "X9"])
def test_dtypes_missing_in_numpy(tmp_path: Path, dtype: str) -> None:
    """A tensor with a dtype that NumPy lacks is refused by the file's name, or read as finite numbers."""
    size = 2 if dtype == "BF16" else 1
    metadata = {"dlcv": json.dumps({"schema": SCHEMA})}
    header = json.dumps(
        {"__metadata__": metadata, "a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}
    ).encode()
    path = tmp_path / "file"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2 * size))
    actual = try_to_read(path)
    assert actual is None or actual.arrays["a"].astype(float).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "is not a dlcv file"),
        ({"format": "pt"}, "is not a dlcv file"),
        ({"dlcv": ""}, "its metadata is not JSON"),
        ({"dlcv": "{"}, "its metadata is not JSON"),
        ({"dlcv": '{"schema": "dlcv.test/1", "x": NaN}'}, "NaN is no JSON number"),
        ({"dlcv": "[" * 100_000}, "nested too deep"),
        ({"dlcv": "[]"}, "is not a dlcv file"),
        ({"dlcv": '{"schema": "dlcv.test/2"}'}, "holds 'dlcv.test/2'; a 'dlcv.test/1' file is expected here"),
    ],
)
def test_tensors_without_dlcv_metadata_are_refused(tmp_path: Path, metadata: dict[str, str] | None, words: str) -> None:
    """Tensors without metadata of the schema are refused, and the message says what they hold instead."""
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "file", metadata)
    for read in (tensors.read, tensors.read_metadata):
        with pytest.raises(FileError) as caught:
            read(tmp_path / "file", SCHEMA)
        assert words in str(caught.value)


def test_get_array_checks_dtype_and_dimensions(tensors_file: Path) -> None:
    """An array is returned if it has the requested dtype and dimensions, else refused by name."""
    file = tensors.read(tensors_file, SCHEMA)
    assert tensors.get_array(file, "a", np.float32, 2).shape == (2, 3)
    for name, dtype, ndim in (("c", np.float32, 2), ("a", np.float64, 2), ("a", np.float32, 1), ("b", np.float32, 1)):
        with pytest.raises(FileError, match=f"file.safetensors: damaged: .*'{name}'"):
            tensors.get_array(file, name, dtype, ndim)


# ----------------------------------------------------------------------------------------------------------- lineage

RECIPE = Recipe(
    "vgg.head", {"lr": 0.005, "epochs": 6, "unfreeze": None}, {"split": Input("a" * 64, Path("s.split.json"))}
)


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({}, []),
        ({"stage": "vgg.scratch"}, ["it is an output of dlcv image scratch"]),
        ({"stage": None}, ["it does not say how it was made"]),
        ({"config": {"lr": 0.01, "epochs": 6, "unfreeze": None}}, ["--lr was 0.01, now 0.005"]),
        ({"config": {"lr": 1, "epochs": 2, "unfreeze": None}}, ["--lr was 1, now 0.005", "--epochs was 2, now 6"]),
        ({"config": {"lr": 0.005, "unfreeze": None}}, ["--epochs was not set, now 6"]),
        ({"config": {"lr": 0.005, "epochs": 6, "unfreeze": None, "old": 3}}, ["--old was 3, now not set"]),
        ({"config": {"lr": 0.005, "epochs": 6, "unfreeze": None, "old": None}}, []),
        ({"config": 3}, ["its settings are unreadable"]),
        ({"inputs": {"split": {"sha256": "b" * 64}}}, ["it was trained on a different split"]),
        ({"inputs": {}}, ["it was trained on a different split"]),
        (
            {"inputs": {"split": {"sha256": "a" * 64}, "weights": {"sha256": "c" * 64}}},
            ["it was made from different weights"],
        ),
        ({"inputs": {"split": "a" * 64}}, ["it was trained on a different split"]),
        ({"inputs": {"split": {"sha256": "a" * 64, "path": "moved/s.split.json"}}}, []),
    ],
)
def test_recipe_differences_are_described(tmp_path: Path, changes: dict[str, Any], differences: list[str]) -> None:
    """Differences in stage, settings and inputs are described; the path of an input is none."""
    assert RECIPE.differences(RECIPE.to_json(tmp_path) | changes) == differences


@pytest.mark.parametrize(
    ("recorded", "differences"),
    [
        ({}, []),
        ({"epochs": 4}, []),
        ({"unfreeze": "classifier,features.28"}, []),
        ({"unfreeze": " classifier , features.28 "}, []),
        ({"unfreeze": "classifier"}, ["--unfreeze was classifier, now classifier, features.28"]),
        ({"batch_size": 32, "stratify": True}, ["--batch-size was 32, now 64", "--stratify was on, now not set"]),
        ({"dropped": None}, []),
    ],
)
def test_new_settings_keep_old_outputs_up_to_date(recorded: dict[str, Any], differences: list[str]) -> None:
    """A setting that a file does not record has its default; spaces in lists do not matter."""
    recipe = Recipe("vgg.finetune", FinetuneConfig(unfreeze="classifier, features.28"))
    config = {"unfreeze": "classifier,features.28"} | recorded
    assert recipe.differences({"stage": "vgg.finetune", "config": config}) == differences


def test_recipe_to_json(tmp_path: Path) -> None:
    """Inputs are recorded by content, with a path relative to the output's folder, or by name."""
    paths = {
        "split": Input("a" * 64, tmp_path / "data" / "s.split.json", root=tmp_path / "photos"),
        "weights": Input("b" * 64, name="imagenet"),
    }
    assert Recipe("vgg.head", {"lr": 1}, paths).to_json(tmp_path / "runs") == {
        "stage": "vgg.head",
        "config": {"lr": 1},
        "inputs": {
            "split": {"path": "../data/s.split.json", "root": "../photos", "sha256": "a" * 64},
            "weights": {"name": "imagenet", "sha256": "b" * 64},
        },
    }


def test_is_up_to_date(tmp_path: Path) -> None:
    """A missing or forced output is out of date, an equal recipe up to date; any other is refused with the reason."""
    path = tmp_path / "out.json"

    def recorded(output: Path) -> dict[str, Any]:
        return read_json(output, SCHEMA)

    assert not is_up_to_date(path, RECIPE, recorded, force=False)
    write_json(path, {"schema": SCHEMA, **RECIPE.to_json(tmp_path)})
    assert is_up_to_date(path, RECIPE, recorded, force=False)
    assert not is_up_to_date(path, RECIPE, recorded, force=True)
    write_json(path, {"schema": SCHEMA, **RECIPE.to_json(tmp_path), "config": {"lr": 1}})
    with pytest.raises(
        ExistsError, match=r"out\.json already exists, but --lr was 1, now 0\.005 and --epochs .*--force"
    ):
        is_up_to_date(path, RECIPE, recorded, force=False)
    path.write_text("foreign")
    with pytest.raises(
        ExistsError, match=r"already exists, but it is not the dlcv\.test/1 file expected here: .*--force"
    ):
        is_up_to_date(path, RECIPE, recorded, force=False)


def test_hash_json() -> None:
    """The order of keys does not matter; the order of lists and the types of values do; names need not be UTF-8."""
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    others = [{"a": 1, "b": [2, 1]}, {"a": "1", "b": [1, 2]}, {"a": 1, "b": [1, 2], "c": None}]
    assert len({hash_json(document) for document in ({"a": 1, "b": [1, 2]}, *others)}) == 4
    assert hash_json("b\udcff") != hash_json("b?")


# ------------------------------------------------------------------------------------------------------------- names


def test_replace_ending() -> None:
    """Files that belong to a checkpoint are named after it, including dots in its name."""
    assert replace_ending(Path("runs/head.safetensors"), ".metrics.json") == Path("runs/head.metrics.json")
    assert replace_ending(Path("runs/lr.0.01.safetensors"), ".eval.json") == Path("runs/lr.0.01.eval.json")


def test_make_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the folder that records them, in whatever folder the command runs."""
    assert make_relative(tmp_path / "a" / "x", tmp_path / "b" / "c") == "../../a/x"
    monkeypatch.chdir(tmp_path)
    assert make_relative(Path("a/x"), Path("a")) == "x"


@pytest.mark.parametrize("name", ["head.pth", "head", ".safetensors", "head.safetensors.bak"])
def test_check_output(tmp_path: Path, name: str) -> None:
    """An output needs the ending of its format and a name before it, and cannot be a folder."""
    assert check_output(tmp_path / "head.safetensors", ".safetensors") == tmp_path / "head.safetensors"
    with pytest.raises(DlcvError, match=r"must end in \.safetensors"):
        check_output(tmp_path / name, ".safetensors")
    (tmp_path / "head.safetensors").mkdir()
    with pytest.raises(DlcvError, match="is a folder"):
        check_output(tmp_path / "head.safetensors", ".safetensors")


def test_metrics_belong_to_their_checkpoint(tmp_path: Path) -> None:
    """Metrics belong to a checkpoint if they record its hash; missing ones do not."""
    checkpoint = tmp_path / "head.safetensors"
    assert not metrics.belongs_to(checkpoint, "a" * 64)
    write_json(metrics.metrics_path(checkpoint), {"schema": metrics.SCHEMA, "checkpoint": {"sha256": "a" * 64}})
    assert metrics.belongs_to(checkpoint, "a" * 64)
    assert not metrics.belongs_to(checkpoint, "b" * 64)
    write_json(metrics.metrics_path(checkpoint), {"schema": metrics.SCHEMA, "checkpoint": "a" * 64})
    assert not metrics.belongs_to(checkpoint, "a" * 64)
