"""Several runs in one command: each writes the bytes of its own command, and is skipped, resumed or refused alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import THREADS, Run, assert_refused, make_photos, read_files, read_metrics, run_dlcv
from test_resume import stop_after

import dlcv_cli
from dlcv_cli.config import HeadConfig, SeqTrainConfig
from dlcv_cli.errors import DivergedError, SettingError
from dlcv_cli.files import tensors
from dlcv_cli.files.recipes import identify_run
from dlcv_cli.sequences.engines.compiled import Compiled
from dlcv_cli.sequences.training import Training as SequenceTraining
from dlcv_cli.stages import image_training, seed_runs, shared_images
from dlcv_cli.stages.repeats import list_runs, name_run
from dlcv_cli.stages.train_images import train_head
from dlcv_cli.stages.train_sequences import train_sequences

SETTINGS = ("--epochs", 2, "--batch-size", 6, *THREADS)
HEAD = ("image", "head", "folds.split.json", "--arch", "vgg16_mini", *SETTINGS)
FINETUNE = ("image", "finetune", "folds.split.json", *SETTINGS)
CELL = ("seq", "train", "data.safetensors", "--hidden-size", 4, "--record-every", 40)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, a split of them with 2 folds, and sequences. Not to be changed."""
    folder = tmp_path_factory.mktemp("repeats")
    make_photos(folder / "photos", {"a": 10, "b": 14}, (64, 64))
    run_dlcv("data", "split", folder / "photos", "--folds", 2, "-o", folder / "folds.split.json")
    run_dlcv("seq", "gen", "--count", 100, "-o", folder / "data.safetensors")
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a copy of `inputs`, and return it."""
    folder = Path(shutil.copytree(inputs, tmp_path / "folder"))
    monkeypatch.chdir(folder)
    return folder


def read_checkpoints(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each checkpoint by its name without ending."""
    return {p.name.removesuffix(".safetensors"): p.read_bytes() for p in folder.glob("[!d]*.safetensors")}


def test_names() -> None:
    """Only what a command has several of is in the names, the fold first."""
    output = Path("runs/head.safetensors")
    assert name_run(output, 1, 0) == Path("runs/head.fold1.seed0.safetensors")
    assert name_run(output, None, None) == output
    config = HeadConfig(seeds=2, seed=4, fold="all")
    runs = list_runs(config, output, [1, 2])
    assert [run.output.name for run in runs] == [
        f"head.fold{fold}.seed{seed}.safetensors" for fold in (1, 2) for seed in (4, 5)
    ]
    assert [run.config for run in runs[:2]] == [HeadConfig(seed=4, fold="1"), HeadConfig(seed=5, fold="1")]
    assert [run.output for run in list_runs(HeadConfig(fold="2"), output, [2])] == [output]
    assert [run.output.name for run in list_runs(HeadConfig(seeds=2), output)] == [
        "head.seed0.safetensors", "head.seed1.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["0", "x", "1,", "-1", "1-", "", "ALL", "1 2"])
def test_a_fold_that_is_none_is_refused(text: str) -> None:
    """--fold is a number, several, or all."""
    with pytest.raises(SettingError, match=r"--fold is .*: give a number from 1, several"):
        HeadConfig(fold=text)


@pytest.mark.parametrize("augment", [("none",), ("flip",), ("flip", "--views", 2), ("crop-flip",)])
def test_runs_have_the_bytes_of_their_own_commands(place: Path, run: Run, augment: tuple[Any, ...]) -> None:
    """Of each fold and seed, with shared features and views of their own."""
    settings = (*HEAD, "--augment", *augment)
    result = run(*settings, "--fold", "all", "--seeds", 2, "--seed", 3, "-o", "head.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    names = [f"head.fold{fold}.seed{seed}" for fold in (1, 2) for seed in (3, 4)]
    document = json.loads(result.stdout)
    assert [own["output"] for own in document["runs"]] == [f"{name}.safetensors" for name in names]
    several = read_checkpoints(place)
    assert sorted(several) == sorted(names)
    for fold in (1, 2):
        for seed in (3, 4):
            alone = run(*settings, "--fold", fold, "--seed", seed, "-o", "alone.safetensors", "--force", "--json")
            assert Path("alone.safetensors").read_bytes() == several[f"head.fold{fold}.seed{seed}"]
            assert "runs" not in json.loads(alone.stdout)
    metadata = tensors.read_metadata(place / "head.fold2.seed4.safetensors", tensors.CHECKPOINT)
    assert (metadata["config"]["fold"], metadata["config"]["seed"]) == ("2", 4)
    assert "seeds" not in metadata["config"]
    recipes = {
        identify_run(tensors.read_metadata(place / f"{n}.safetensors", tensors.CHECKPOINT)).recipe for n in names
    }
    assert len(recipes) == 1


def test_images_and_features_are_opened_once(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All seeds of a fold check their images once, and open their features once."""
    calls: list[str] = []
    for name in ("load_part", "open_sources"):
        original = getattr(shared_images, name)

        def count(*args: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(shared_images, name, count)
    assert run(*HEAD, "--fold", "all", "--seeds", 3, "-o", "head.safetensors").exit_code == 0
    assert sorted(calls) == ["load_part"] * 4 + ["open_sources"] * 2


def test_folds_can_be_listed(place: Path, run: Run) -> None:
    """--fold takes lists and ranges; one fold alone keeps the name that was typed."""
    assert run(*HEAD, "--fold", "1-2", "-o", "head.safetensors").exit_code == 0
    assert sorted(read_checkpoints(place)) == ["head.fold1", "head.fold2"]
    assert run(*HEAD, "--fold", "2,2", "-o", "two.safetensors").exit_code == 0
    assert Path("two.safetensors").read_bytes() == Path("head.fold2.safetensors").read_bytes()
    assert_refused(run(*HEAD, "--fold", "2,3", "-o", "x.safetensors"), "has 2 folds: there is no fold 3")


def test_runs_are_skipped_and_refused_one_by_one(place: Path, run: Run) -> None:
    """What is up to date stays; one of another recipe refuses the command before anything is trained."""
    train = (*HEAD, "--fold", 1, "-o", "head.safetensors", "--seeds")
    assert run(*train, 2).exit_code == 0
    before = read_files(place)
    lines = run(*train, 3).stdout.splitlines()
    assert ["up to date" in line for line in lines] == [True, True, False]
    after = read_files(place)
    assert {name: data for name, data in after.items() if name in before} == before
    Path("head.seed0.safetensors").unlink()
    run_dlcv(*HEAD, "--fold", 1, "--seed", 2, "--lr", 0.1, "-o", "head.seed2.safetensors", "--force")
    before = read_files(place)
    assert_refused(run(*train, 3), "head.seed2.safetensors already exists, but --lr was 0.1, now 0.005")
    assert read_files(place) == before


@pytest.mark.parametrize("checks", [2, 7])
def test_interrupted_runs_go_on(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch, checks: int) -> None:
    """A signal stops the command once its snapshot is saved; the same command then ends with the same bytes."""
    train = (*HEAD, "--fold", 1, "--seeds", 3, "-o", "head.safetensors")
    run_dlcv(*train)
    expected = read_checkpoints(place)
    for path in place.glob("head.*"):
        path.unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, checks)
        result = run(*train)
    assert result.exit_code == 128 + signal.SIGTERM
    assert len([*place.glob("*.snapshot")]) == 1
    assert len(read_checkpoints(place)) < 3
    assert run(*train).exit_code == 0
    assert read_checkpoints(place) == expected
    assert [*place.glob("*.snapshot")] == []


def test_a_diverging_run_does_not_stop_the_others(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are trained and printed, and the command ends with one line that names it."""

    class Diverging(image_training.Training):
        def _require_finite(self, *numbers: float) -> None:
            super()._require_finite(*numbers)
            if self.config.seed == 1:
                raise DivergedError("the loss is no longer a finite number")

    monkeypatch.setattr(image_training, "Training", Diverging)
    train = (*HEAD, "--fold", 1, "--seeds", 3, "-o", "head.safetensors")
    for words in ("wrote", "up to date"):
        result = run(*train)
        assert result.exit_code == 1
        assert [words in line for line in result.stdout.splitlines()] == [True, True]
        last = "dlcv: 1 of 3 runs diverged: head.seed1.safetensors: the loss is no longer a finite number"
        assert result.stderr.splitlines()[-1] == last
        assert sorted(read_checkpoints(place)) == ["head.seed0", "head.seed2"]


def test_each_run_is_finetuned_from_its_own(place: Path, run: Run) -> None:
    """With a name in place of a file, each run starts from the one of its fold and seed; all are of one recipe."""
    assert run(*HEAD, "--fold", "all", "--seeds", 2, "-o", "head.safetensors").exit_code == 0
    several = ("--fold", "all", "--seeds", 2, "-o", "tuned.safetensors")
    assert run(*FINETUNE, "--from", "head.safetensors", *several).exit_code == 0
    recipes = set()
    for fold in (1, 2):
        for seed in (0, 1):
            path = place / f"tuned.fold{fold}.seed{seed}.safetensors"
            start = place / f"head.fold{fold}.seed{seed}.safetensors"
            recorded = tensors.read_metadata(path, tensors.CHECKPOINT)["inputs"]["checkpoint"]
            origin = identify_run(tensors.read_metadata(start, tensors.CHECKPOINT))
            assert (recorded["path"], recorded["recipe"]) == (start.name, origin.recipe)
            recipes.add(identify_run(tensors.read_metadata(path, tensors.CHECKPOINT)).recipe)
            run_dlcv(*FINETUNE, "--from", start, "--fold", fold, "--seed", seed, "-o", "alone.safetensors", "--force")
            assert Path("alone.safetensors").read_bytes() == path.read_bytes()
    assert len(recipes) == 1
    from_one = run(
        *FINETUNE, "--from", "head.fold1.seed1.safetensors", "--fold", 1, "--seeds", 2, "-o", "one.safetensors"
    )
    assert from_one.exit_code == 0
    for seed in (0, 1):
        recorded = tensors.read_metadata(place / f"one.seed{seed}.safetensors", tensors.CHECKPOINT)["inputs"]
        assert recorded["checkpoint"]["path"] == "head.fold1.seed1.safetensors"
    assert_refused(run(*FINETUNE, "--from", "none.safetensors", *several[:-1], "x.safetensors"), "none.safetensors")


def test_tries_are_handed_on(place: Path, run: Run) -> None:
    """What is fine-tuned from a head whose settings were searched says so, and so does its evaluation."""
    searched = (*HEAD, "--fold", 1, "--recipe", "auto", "-o", "head.safetensors")
    assert run(*searched).exit_code == 0
    tries = tensors.read_metadata(place / "head.safetensors", tensors.CHECKPOINT)["tries"]
    assert tries > 1
    assert run(*FINETUNE, "--from", "head.safetensors", "--fold", 1, "-o", "tuned.safetensors").exit_code == 0
    assert tensors.read_metadata(place / "tuned.safetensors", tensors.CHECKPOINT)["tries"] == tries
    assert "Those of the checkpoint it starts from are the best of" in run("card", "tuned.safetensors").stdout


def test_python_functions_make_one_run(place: Path) -> None:
    """The functions of one run refuse settings of several, and name the one that takes them."""
    with pytest.raises(SettingError, match="2 runs, and this makes one: use train_image_runs"):
        train_head(Path("folds.split.json"), Path("x.safetensors"), HeadConfig(arch="vgg16_mini", fold="all"))
    with pytest.raises(SettingError, match="3 runs, and this makes one: use train_sequence_runs"):
        train_sequences(Path("data.safetensors"), Path("x.safetensors"), SeqTrainConfig(seeds=3))


# ----------------------------------------------------------------------------------------------------------- sequences


def test_log_tells_runs_apart(place: Path, run: Run) -> None:
    """The log's rows have the fold and the seed of their run."""
    assert run(*HEAD, "--fold", "all", "--seeds", 2, "-o", "h.safetensors", "--log-dir", "log").exit_code == 0
    header, *rows = (place / "log" / "records.csv").read_text().splitlines()
    assert header.startswith("fold,seed,epoch,")
    assert [row.split(",")[:3] for row in rows] == [
        [str(fold), str(seed), str(epoch)] for fold in (1, 2) for seed in (0, 1) for epoch in (1, 2)
    ]


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_cells_have_the_bytes_of_their_own_commands(place: Path, run: Run, engine: str) -> None:
    """Each seed side by side writes what it writes alone, with its own metrics."""
    assert run(*CELL, "--engine", engine, "--seeds", 5, "--seed", 2, "-o", "gru.safetensors").exit_code == 0
    several = read_checkpoints(place)
    assert sorted(several) == [f"gru.seed{seed}" for seed in range(2, 7)]
    for seed in range(2, 7):
        run_dlcv(*CELL, "--engine", engine, "--seed", seed, "-o", "alone.safetensors", "--force")
        assert Path("alone.safetensors").read_bytes() == several[f"gru.seed{seed}"]
        own, alone = (read_metrics(place / f"{name}.safetensors") for name in (f"gru.seed{seed}", "alone"))
        assert {**own, "run": None, "checkpoint": None} == {**alone, "run": None, "checkpoint": None}
    assert tensors.read_metadata(place / "gru.seed3.safetensors", tensors.CHECKPOINT)["config"]["seeds"] == 1


def test_a_diverging_cell_does_not_stop_the_others(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed without weights to keep leaves nothing; the others are written."""
    build = SequenceTraining.__init__

    def diverge(self: Any, engine: Any, count: int, val: Any, config: Any, seed: int) -> None:
        if seed == 1:
            engine.advance = lambda order: (0.0, 0)
        build(self, engine, count, val, config, seed)

    monkeypatch.setattr(SequenceTraining, "__init__", diverge)
    result = run(*CELL, "--seeds", 4, "-o", "gru.safetensors")
    assert (result.exit_code, len(result.stdout.splitlines())) == (1, 3)
    assert result.stderr.splitlines()[-1].startswith("dlcv: 1 of 4 runs diverged: gru.seed1.safetensors: seed 1: ")
    assert sorted(read_checkpoints(place)) == ["gru.seed0", "gru.seed2", "gru.seed3"]
    assert [*place.glob("*.snapshot")] == []


def test_runs_of_earlier_versions_are_refused(place: Path, run: Run) -> None:
    """A file with several stacked runs is refused by whatever would use it, with the way out."""
    run_dlcv(*CELL, "-o", "gru.safetensors")
    stored = tensors.read(place / "gru.safetensors", tensors.CHECKPOINT)
    stacked = {name: array[None].repeat(2, 0) for name, array in stored.arrays.items()}
    tensors.write(place / "old.safetensors", tensors.CHECKPOINT, stacked, {**stored.metadata, "seeds": [0, 1]})
    (place / "new.csv").write_text("sequence,a,b\nx,0.5,1\nx,0.5,1\n")
    words = "holds 2 runs in one file, as dlcv 0.1 wrote them: train again with --seeds 2, which writes one file a run"
    for command in (("eval",), ("export",), ("predict",)):
        more = ("new.csv",) if command == ("predict",) else ()
        result = run(*command, "old.safetensors", *more)
        assert result.exit_code == 1
        assert words in result.stderr.splitlines()[-1]


def test_a_signal_saves_all_cells_in_progress(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each seed that has begun leaves its own snapshot, from which the same command continues to the same bytes."""
    monkeypatch.setattr(seed_runs, "count_processors", lambda: 2)
    cell = (*CELL, "--epochs", 60, "--seeds", 3, "-o", "gru.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(Compiled, "choose_pace", lambda _: 1)
        advance = Compiled.advance
        patch.setattr(Compiled, "advance", lambda *args: (time.sleep(0.002), advance(*args))[1])
        stop_after(patch, 2)
        result = run(*cell)
    assert result.exit_code == 128 + signal.SIGTERM
    names = ["gru.seed0.snapshot", "gru.seed1.snapshot"]
    assert sorted(p.name for p in place.glob("gru.*")) == names
    last = f"dlcv: interrupted: {', '.join(names)} are saved; the same command continues from them"
    assert result.stderr.splitlines()[-1] == last
    result = run(*cell)
    assert [line.split(":")[0] for line in result.stderr.splitlines() if "continuing" in line] == [
        f"continuing from {name}" for name in names
    ]
    actual = read_checkpoints(place)
    run_dlcv(*cell, "--force")
    assert read_checkpoints(place) == actual


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_cells_go_on(place: Path, run: Run, signal_number: signal.Signals) -> None:
    """A process that is killed leaves whole files; the same command ends with the bytes of an uninterrupted one."""
    cell = (*CELL[:3], "--hidden-size", 4, "--record-every", 200, "--epochs", 2000, "--seeds", 4, "--save-every", 0)
    words = [str(word) for word in (*cell, "-o", "gru.safetensors")]
    env = {**os.environ, "PYTHONPATH": str(Path(dlcv_cli.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-m", "dlcv_cli", *words], stderr=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 120
    while not [*place.glob("gru.*.snapshot")] and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal_number)
    process.wait()
    assert len(read_checkpoints(place)) < 4, "killed before the end"
    assert run(*words).exit_code == 0
    actual = read_checkpoints(place)
    assert [*place.glob("*.snapshot")] == []
    for path in place.glob("gru.*"):
        path.unlink()
    assert run(*words).exit_code == 0
    assert read_checkpoints(place) == actual
