"""Trainings that are stopped and go on: to the same bytes, from wherever they were left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, assert_refused, make_photos, read_files, read_metrics, run_dlcv

from dlcv_cli.errors import Interrupted
from dlcv_cli.files import tensors
from dlcv_cli.sequences.engines.compiled import Compiled
from dlcv_cli.sequences.engines.reference import Reference
from dlcv_cli.stages import image_training as vgg
from dlcv_cli.stages import seed_runs as runs
from dlcv_cli.stages import snapshots as resume
from dlcv_cli.stages import train_sequences as seq

MINI = ("--arch", "vgg16_mini")
COMMON = ("--batch-size", 5, "--epochs", 3, "--precision", "float32", "--threads", 1)
STAGES: dict[str, tuple[object, ...]] = {
    "head": ("vgg", "head", "photos.split.json", *MINI, *COMMON),
    "finetune": ("vgg", "finetune", "photos.split.json", "--from", "start.safetensors", *COMMON, "--lr", 0.001),
    "scratch": ("vgg", "scratch", "photos.split.json", *MINI, *COMMON, "--augment", "crop-flip", "--lr", 0.001),
    "seq": ("seq", "train", "data.safetensors", "--hidden-size", 5, "--record-every", 20, "--epochs", 2),
    "torch": ("seq", "train", "data.safetensors", "--hidden-size", 3, "--record-every", 20, "--engine", "torch"),
}
INPUTS = ("photos", "photos.split.json", "start.safetensors", "data.safetensors")


@pytest.fixture(scope="module")
def expected_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the inputs of every stage, and their outputs without an interruption."""
    folder = tmp_path_factory.mktemp("base")
    make_photos(folder / "photos", {"cat": 12, "dog": 12}, (64, 64))
    with contextlib.chdir(folder):
        run_dlcv("data", "split", "photos", "-o", "photos.split.json")
        run_dlcv("vgg", "head", "photos.split.json", *MINI, *COMMON, "-o", "start.safetensors")
        run_dlcv("seq", "gen", "--count", 200, "-o", "data.safetensors")
        for name, command in STAGES.items():
            run_dlcv(*command, "-o", f"{name}.safetensors")
    return folder


@pytest.fixture
def place(expected_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with the inputs alone, and return it."""
    for name in INPUTS:
        copy = shutil.copytree if (expected_folder / name).is_dir() else shutil.copyfile
        copy(expected_folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def slow_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow down sequence training to 7 steps at a time and 4 ms each, so that it can be interrupted often."""
    monkeypatch.setattr(runs, "TICK", 0.01)
    for engine in (Compiled, Reference):
        monkeypatch.setattr(engine, "choose_pace", lambda _: 7)
        monkeypatch.setattr(
            engine, "advance", lambda *args, advance=engine.advance: (time.sleep(0.004), advance(*args))[1]
        )


def stop_after(monkeypatch: pytest.MonkeyPatch, checks: int, number: int = signal.SIGTERM) -> None:
    """Make the signal arrive after training has checked for one `checks` times."""
    count = [0]

    @contextlib.contextmanager
    def hold_signals() -> Iterator[Callable[[], int | None]]:
        def caught() -> int | None:
            count[0] += 1
            return number if count[0] > checks else None

        yield caught

    for stage in (vgg, seq):
        monkeypatch.setattr(stage, "hold_signals", hold_signals)


def assert_same(place: Path, expected_folder: Path, name: str) -> None:
    """Assert that the files of a stage are those of the uninterrupted run, and that there are no others."""
    assert (place / f"{name}.safetensors").read_bytes() == (expected_folder / f"{name}.safetensors").read_bytes()
    ours, theirs = (read_metrics(folder / f"{name}.safetensors") for folder in (place, expected_folder))
    assert {**ours, "run": None} == {**theirs, "run": None}
    assert {p.name for p in place.iterdir()} == {*INPUTS, f"{name}.safetensors", f"{name}.metrics.json"}


# an epoch is 3 steps, a batch of validation and the record: 5 checks; epoch 0 of finetune is the last two
@pytest.mark.parametrize("checks", [0, 1, 3, 4, 7, 14])
@pytest.mark.parametrize("name", ["head", "finetune", "scratch"])
def test_image_training_resumes(
    run: Run, place: Path, expected_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, checks: int
) -> None:
    """Interrupted in the steps, around validation or at the end of an epoch, training ends with the same bytes."""
    command = (*STAGES[name], "-o", f"{name}.safetensors")
    with monkeypatch.context() as patch:
        stop_after(patch, checks)
        result = run(*command)
    assert (result.exit_code, result.stdout) == (143, "")
    at = f"{max(0, checks + 1 - 2 * (name == 'finetune')) // 5} of 3 epochs done"
    assert f"interrupted: {name}.snapshot is saved ({at}" in result.stderr
    assert {p.name for p in place.iterdir()} == {*INPUTS, f"{name}.snapshot"}
    again = run(*command)
    assert (again.exit_code, again.stdout[:5]) == (0, "wrote")
    assert f"continuing from {name}.snapshot: {at}" in again.stderr
    assert_same(place, expected_folder, name)
    assert read_metrics(place / f"{name}.safetensors")["run"]["resumed"] == 1


@pytest.mark.usefixtures("slow_training")
@pytest.mark.parametrize("name", ["head", "scratch", "seq", "torch"])
def test_training_resumes_at_every_step(
    run: Run, place: Path, expected_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Interrupted again and again, one step later each time, training ends with the same bytes."""
    command = (*STAGES[name], "-o", f"{name}.safetensors")
    with monkeypatch.context() as patch:
        codes = []
        while not codes or codes[-1] == 143:
            stop_after(patch, 1)
            codes.append(run(*command).exit_code)
    assert codes[-1] == 0
    assert len(codes) > 3
    assert_same(place, expected_folder, name)


def test_snapshot_content(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot holds weights, Adam's moments and steps, best weights and position, and no pickle."""
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        run(*STAGES["head"], "-o", "head.safetensors")
    actual = tensors.read(place / "head.snapshot", tensors.SNAPSHOT)
    kinds = ("now", "optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq", "best")
    assert {*actual.arrays} == {f"{kind}.classifier.6.{p}" for kind in kinds for p in ("weight", "bias")}
    assert actual.arrays["optimizer.step.classifier.6.bias"].tolist() == 5
    numbers = actual.metadata["state"]
    assert (len(numbers["records"]), numbers["done"]) == (1, 10)
    assert (actual.metadata["stage"], actual.metadata["resumed"]) == ("vgg.head", 0)


def test_snapshot_of_another_training_is_refused(
    run: Run, place: Path, expected_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal names the differences and keeps the snapshot; --force starts again."""
    command = (*STAGES["head"], "-o", "head.safetensors")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(*command, "--lr", 0.1)
    before = read_files(place)
    assert_refused(run(*command), "head.snapshot belongs to a different training: --lr was 0.1, now 0.005", "--force")
    assert read_files(place) == before
    result = run(*command, "--force")
    assert result.exit_code == 0
    assert "going on" not in result.stderr
    assert_same(place, expected_folder, "head")


@pytest.mark.usefixtures("slow_training")
@pytest.mark.parametrize("name", ["head", "seq"])
def test_damaged_snapshot_is_refused(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A truncated, changed, foreign or resealed snapshot is refused in one line and kept."""
    command = (*STAGES[name], "-o", f"{name}.safetensors")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(*command)
    path = place / f"{name}.snapshot"
    whole, actual = path.read_bytes(), tensors.read(path, tensors.SNAPSHOT)
    for broken in (whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b"mine", b""):
        path.write_bytes(broken)
        result = run(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.splitlines()[-1].startswith(f"dlcv: {path.name}")
        assert path.read_bytes() == broken
    first = next(iter(actual.arrays))
    state = actual.metadata["state"]
    for arrays, record in (
        ({n: a for n, a in actual.arrays.items() if n != first}, actual.metadata),
        (actual.arrays | {first: actual.arrays[first].astype(np.float16)}, actual.metadata),
        (actual.arrays | {first: actual.arrays[first][..., :0]}, actual.metadata),
        (actual.arrays | {"more": np.zeros(1)}, actual.metadata) if name == "head" else ({}, actual.metadata),
        (actual.arrays, {**actual.metadata, "state": {}}),
        (actual.arrays, {**actual.metadata, "state": []}),
        (actual.arrays, {**actual.metadata, "state": {**state, "epoch": 7, "runs": {"0": {}}}}),
        (actual.arrays, {**actual.metadata, "state": {**state, "done": 4, "runs": {"9": {}}}}),
        (actual.arrays, {**actual.metadata, "seconds": "long"}),
    ):
        tensors.write(path, tensors.SNAPSHOT, arrays, record)
        result = run(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        last = result.stderr.splitlines()[-1]
        assert last.startswith(f"dlcv: {path.name}: damaged: "), last
        assert last.endswith("remove it, or use --force to start again")


def test_resume_with_other_threads(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training resumes with another thread count, with a warning about the last bits."""
    command = (*STAGES["head"], "-o", "head.safetensors")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(*command)
    result = run(*command, "--threads", 2)
    assert result.exit_code == 0
    assert (
        "warning: head.snapshot was saved with threads 1, now 2: the last bits of the result will differ"
        in result.stderr
    )


def test_save_interval(run: Run, place: Path, expected_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots are saved after --save-every and at the end of epochs, unless that takes too much time."""
    saved: list[str] = []
    save = resume.SnapshotFile.save

    def noted(self: Any, state: Any, at: str) -> None:
        saved.append(at)
        save(self, state, at)

    monkeypatch.setattr(resume.SnapshotFile, "save", noted)
    command = (*STAGES["head"], "-o", "head.safetensors", "--force")
    with monkeypatch.context() as patch:
        patch.setattr(resume, "SHARE", 1e9)
        assert run(*command).exit_code == 0
        assert saved == ["1 of 3 epochs done", "2 of 3 epochs done"]
        saved.clear()
        assert run(*command, "--save-every", 0).exit_code == 0
        assert len(saved) == 3 * 5 - 1
    saved.clear()
    with monkeypatch.context() as patch:
        patch.setattr(resume, "SHARE", 0)
        assert run(*command, "--save-every", 0).exit_code == 0
    assert len(saved) == 1, "the first costs nothing known"
    assert_same(place, expected_folder, "head")


@pytest.mark.parametrize("moment", ["while it trains", "at the signal"])
def test_full_disk_keeps_the_snapshot(
    run: Run, place: Path, expected_folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A failed save keeps the snapshot before; training continues, and a stop names file and disk."""
    command = (*STAGES["finetune"], "-o", "finetune.safetensors")
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        run(*command)
    before, write = read_files(place), tensors.write

    def full(path: Path, *args: Any) -> None:
        if path.suffix == ".snapshot":
            raise OSError(28, "No space left on device", str(path))
        write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "write", full)
        if moment == "at the signal":
            stop_after(patch, 2)
        result = run(*command)
    if moment == "at the signal":
        assert (result.exit_code, result.stdout) == (1, "")
        assert "dlcv: finetune.snapshot: No space left on device on the disk at /" in result.stderr.splitlines()[-1]
        assert read_files(place) == before
        assert run(*command).exit_code == 0
    else:
        assert result.exit_code == 0
        assert (
            "warning: finetune.snapshot: No space left on device; the training continues, the previous snapshot stays"
            in result.stderr
        )
    assert_same(place, expected_folder, "finetune")


def test_too_little_disk_space_is_refused(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little space for checkpoint and snapshots is refused before training."""
    before = read_files(place)
    monkeypatch.setattr(resume, "measure_free_space", lambda _: 1_000_000)
    result = run(*STAGES["scratch"], "-o", "scratch.safetensors")
    assert (result.exit_code, result.stdout) == (1, "")
    # 625,834 parameters of 4 bytes: twice weights, best weights and two means, and the checkpoint
    need = 4 * 625_834 * (2 * 4 + 1) / 1e6
    assert (
        f"scratch.safetensors: needs {need:.3g} MB of temporary space, and the disk at / has 1 MB free" in result.stderr
    )
    assert read_files(place) == before


@pytest.mark.usefixtures("slow_training")
def test_leftovers_are_deleted(run: Run, place: Path, expected_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old temporary files, locks and snapshots are deleted, whether the output is written or up to date."""
    command = (*STAGES["seq"], "-o", "seq.safetensors")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert run(*command).exit_code == 143
    snapshot = (place / "seq.snapshot").read_bytes()
    for status in ("wrote", "seq.safetensors: up to date"):
        for stray in (
            ".seq.safetensors.lock",
            ".seq.safetensors.x_1.tmp",
            ".seq.metrics.json.y.tmp",
            ".seq.snapshot.z.tmp",
        ):
            (place / stray).write_bytes(b"half")
        (place / "seq.snapshot").write_bytes(snapshot)
        assert run(*command).stdout.startswith(status)
        assert_same(place, expected_folder, "seq")
    (place / ".seq.safetensors.notes").write_text("mine")
    (place / ".other.safetensors.x_1.tmp").write_text("not ours to judge")
    run(*command, "--force")
    assert (place / ".seq.safetensors.notes").exists()
    assert (place / ".other.safetensors.x_1.tmp").exists()


# ------------------------------------------------------------------------------------------------- real processes


def start_process(*command: object, **environment: str) -> subprocess.Popen[str]:
    """dlcv in a process of its own."""
    words = [sys.executable, "-m", "dlcv_cli", *map(str, command)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})


LONG = ("seq", "train", "data.safetensors", "--epochs", 5000, "--record-every", 1000, "-o", "long.safetensors")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_save_a_snapshot(place: Path, number: int, code: int) -> None:
    """SIGINT, SIGTERM and SIGHUP each save a snapshot, print one line, and end with their exit code."""
    process = start_process(*LONG)
    assert process.stderr
    while not process.stderr.readline().startswith("iteration"):
        assert process.poll() is None
    process.send_signal(number)
    out, message = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "")
    last = message.splitlines()[-1]
    assert last.startswith("dlcv: interrupted: long.snapshot is saved (iteration ")
    assert {p.name for p in place.iterdir()} == {*INPUTS, "long.snapshot"}


def test_second_interruption_ends_at_once(place: Path) -> None:
    """A second Ctrl-C does not wait for the save; the next run deletes what it leaves."""
    script = """
import signal, sys, time
from dlcv_cli.__main__ import main
from dlcv_cli.files import tensors
def slow(path, *args):
    print("saving", flush=True)
    time.sleep(60)
tensors.write = slow
sys.argv[1:] = sys.argv[1].split()
main()
"""
    words = [sys.executable, "-c", script, " ".join(map(str, LONG))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stdout
        while not process.stderr.readline().startswith("iteration"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "saving\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT
        assert time.monotonic() - begun < 10


def test_ignored_signals_stay_ignored(place: Path) -> None:
    """Under nohup, training survives the end of its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start_process(*LONG)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert process.stderr
    while not process.stderr.readline().startswith("iteration"):
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    for _ in range(20):
        assert process.stderr.readline().startswith("iteration")
    process.kill()
    process.communicate()


def test_two_runs_of_one_output(place: Path) -> None:
    """Of two runs with the same output one continues, and the other stops with one line."""
    first = start_process(*LONG)
    assert first.stderr
    while not first.stderr.readline().startswith("iteration"):
        assert first.poll() is None
    second = start_process(*LONG)
    out, message = second.communicate(timeout=30)
    assert (second.returncode, out) == (1, "")
    assert message == "dlcv: long.safetensors is in use by another dlcv process: let it finish, or choose another -o\n"
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=20)
    assert first.returncode == 143


def test_interrupted_is_a_keyboard_interrupt() -> None:
    """A handler of KeyboardInterrupt handles Interrupted too; its exit code is the shell's."""
    assert isinstance(Interrupted(15), KeyboardInterrupt)
    assert [Interrupted(number).exit_code for number in (2, 15, 1)] == [130, 143, 129]


def test_metrics_of_a_resumed_run(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` has the number of resumptions, the seconds before them, and the seconds spent saving."""
    command = (*STAGES["scratch"], "-o", "scratch.safetensors")
    for _ in range(2):
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            run(*command)
    before = tensors.read_metadata(place / "scratch.snapshot", tensors.SNAPSHOT)["seconds"]
    assert run(*command).exit_code == 0
    actual = read_metrics(place / "scratch.safetensors")["run"]
    assert actual["resumed"] == 2
    assert actual["seconds_before"] == pytest.approx(before, abs=1e-3)
    assert 0 <= actual["seconds_saving"] < actual["seconds_before"] + actual["seconds"]
